//! `croft skill` as people type it, and what `croft farm serve` says of itself.

use std::path::PathBuf;

use clap::Subcommand;
use croft_protocol::Name;
use croft_skills::Hook;

pub(super) const SERVE_HELP: &str = "\
Example:
  croft farm serve --bot bob
  croft farm serve attic --policy policy.toml --skill night-discount --bot bob

Stays connected and signs what fits: policy, price, free capacity and ports. Without --policy it sells to
everybody at the farm's prices on the ledger. What it promised is kept in the home over restarts. Each decision
is one line. A skill names prices between the policy's floor and the list price, or refuses; where it fails, the policy's
price counts.
JSON, one object per line: {time_ms, event: \"serving\", bot, farms, policy?, skill?, promised} and then
      {time_ms, event: \"signed\" | \"refused\" | \"announced\" | \"unused\" | \"failed\" | \"skill\", user?, contract?, name?, node?,
      price?, reason?}

";

#[derive(Debug, Subcommand)]
pub enum SkillCommand {
    /// Take a skill into this home
    #[command(after_help = "\
Example:
  croft skill add night-discount.skill
  croft skill add night-discount.skill --author 5f0c…e1     # only if this key signed it

Checks its signature, that it asks for nothing but its log, and that it starts. An older version, or somebody else's skill
of the same name, is refused. Nothing uses it until 'farm serve', 'deploy', 'approve' or 'message read' is told so.
JSON: {skill: {name, version, hooks, component, author, bytes}, replaced?}")]
    Add {
        /// What 'croft skill pack' made
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Which key has to have signed it: a bot's id, or the key that replaced its first one
        #[arg(long, value_name = "KEY")]
        author: Option<croft_protocol::PublicKey>,
    },
    /// Skills of this home
    #[command(after_help = "\
Example:
  croft skill list

JSON: {skills: [{name, version, hooks, component, author, bytes}]}")]
    List,
    /// Ask a skill something, and show its answer, its log and what it used
    #[command(after_help = "\
Example:
  croft skill test night-discount
  croft skill test house-rules.skill --hook approval --input request.json

Without --input each hook gets a question that is like a real one; 'croft skill test NAME --json' shows it, to be changed.
JSON: {name, version, answers: [{hook, question, answer?, fault?, log: [text], fuel, fuel_limit}]}; exit code 1 when an
      answer is missing")]
    Test {
        /// A skill of this home, or a file of one
        #[arg(value_name = "NAME|FILE")]
        skill: String,
        /// Only this hook: pricing, scoring, approval or messages
        #[arg(long, value_name = "HOOK")]
        hook: Option<Hook>,
        /// The question, as JSON
        #[arg(long, value_name = "FILE", requires = "hook")]
        input: Option<PathBuf>,
    },
    /// Remove a skill from this home
    #[command(after_help = "\
Example:
  croft skill remove night-discount

JSON: {removed}")]
    Remove {
        /// What it is called
        name: Name,
    },
    /// Make a skill of compiled WebAssembly, signed by the acting bot
    #[command(after_help = "\
Example:
  cargo build --release --target wasm32-unknown-unknown
  croft skill pack target/wasm32-unknown-unknown/release/night_discount.wasm --name night-discount --version 1 --bot bob

Takes a core module or a component. Its hooks are found in it. 'agents/skills/README.md' tells how to write one.
The bot's present key signs it. Whoever has a version by a key that was replaced removes that one before he takes the next:
a skill is its author's key's, and no ledger is asked.
JSON: {out, skill: {name, version, hooks, component, author, bytes}}")]
    Pack {
        /// What the compiler made
        #[arg(value_name = "WASM")]
        module: PathBuf,
        /// What it is called
        #[arg(long)]
        name: Name,
        /// Higher than that of the skill that it replaces
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        version: u32,
        /// Where the skill goes [default: NAME.skill]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// The interface that skills are written against, skill.wit
    #[command(after_help = "\
Example:
  croft skill interface > skill.wit

JSON: {package, text}")]
    Interface,
}
