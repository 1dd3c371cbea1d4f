//! The life of a contract as people type it: approvers, funds, standing orders.

use std::path::PathBuf;

use clap::Args;
use croft_protocol::{Grains, Name};

use super::parse_grains;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  croft approve alice/shop
  croft approve 5f0c22 --refuse      # a required approver ends it so, and its user is refunded
  croft approve --skill house-rules  # a skill decides about all that wait; what it leaves open, waits on

JSON: {name, contract, owner, decision, state, reason?, quorum: {threshold, approved, approvers: [{bot, weight,
       required, decision}]}, refunded, height}; with --skill {skill, version, decisions: [{name, contract, owner,
       decision: \"approved\" | \"refused\" | \"open\", reason?, log: [text]}]}")]
pub struct ApproveFlags {
    /// OWNER/NAME, the name alone where only one waits for this bot, an id or its first digits [with --skill: all that
    /// wait]
    pub contract: Option<String>,
    /// Say no
    #[arg(long)]
    pub refuse: bool,
    /// Let a skill decide
    #[arg(long, value_name = "NAME", conflicts_with = "refuse")]
    pub skill: Option<Name>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  croft approvals --bot olga

JSON: {bot, approvals: [{name, contract, owner, decision?, quorum: {threshold, approved, approvers: [{bot, weight,
       required, decision}]}, cpu_millis, memory_bytes, price, duration_s, agreed_ms, waits_until_ms}]}")]
pub struct ApprovalsFlags {
    /// Those too on which this bot has decided and others have not
    #[arg(long, short)]
    pub all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  croft fund web 36000
  croft fund alice/shop 36000        # anyone may; what is not used goes back to alice

At most what the whole duration costs is taken. A paused contract goes on once an hour is paid for.
JSON: {name, contract, owner, state, reason?, price, deposit, paid, held, refunded, funded_until_ms?, missing?,
       balance}")]
pub struct FundFlags {
    /// Your own by its name, OWNER/NAME, an id or its first digits
    pub contract: String,
    /// How many
    #[arg(value_parser = parse_grains)]
    pub amount: Grains,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  croft settle web

Ends what is over, marks what its node is silent about, and refunds what no final report claimed within 15 minutes
after the end. Anyone may; twice changes nothing.
JSON: {name, contract, owner, state, reason?, price, deposit, paid, held, refunded, funded_until_ms?, missing?,
       balance}")]
pub struct SettleFlags {
    /// Your own by its name, OWNER/NAME, an id or its first digits
    pub contract: String,
}

#[derive(Debug, Args)]
#[command(after_long_help = concat!("\
Examples:
  croft keep keep.toml               # until it is interrupted; started again, it goes on where it was
  croft keep keep.toml --once        # one look, for a timer

A node that stays silent, or a workload in trouble, is replaced within the limits: another node is found and paid,
then the old contract is closed. What is intended is on the disk before it is done, and has a name of its own, so
nothing is ordered twice. Volumes don't move along.

JSON, one object per line: {time_ms, order, event, name?, contract?, amount?, reason?, error?}
      event: keeping, order, close, settle, fund, waiting, failed, unreachable, resting

"), after_help = "See 'croft keep --help' for the format of the keep file.")]
pub struct KeepFlags {
    /// The keep file
    #[arg(value_name = "FILE", default_value = "keep.toml")]
    pub file: PathBuf,
    /// Look once, do what is to be done, and end
    #[arg(long)]
    pub once: bool,
}
