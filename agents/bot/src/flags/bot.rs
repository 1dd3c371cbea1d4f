//! `croft bot` and `croft wallet` as people type them.

use std::path::PathBuf;

use clap::Subcommand;
use croft_protocol::{Grains, Name};

use super::parse_grains;

#[derive(Debug, Subcommand)]
pub enum BotCommand {
    /// Make a bot: a key in this home and a name on the ledger
    #[command(after_help = "\
Example:
  croft bot new alice --grains 1000000

If it was interrupted, running it again finishes the work.
JSON: {bot, id, grid, balance}")]
    New {
        /// What it is called, by everybody on the grid
        name: Name,
        /// Grains from the treasury, whose key must be in this home
        #[arg(long, value_name = "GRAINS", value_parser = parse_grains)]
        grains: Option<Grains>,
    },
    /// Identity and wallet of a bot, as the ledger has them
    #[command(after_help = "\
Example:
  croft bot show alice

JSON: {bot, id, grid, registered, own, balance, next_sequence}")]
    Show {
        /// Which [default: the acting bot]
        name: Option<Name>,
    },
    /// Put a bot's key behind a passphrase, change the passphrase, or take it away
    #[command(after_help = "\
Example:
  croft bot passphrase alice

Whoever forgets it has lost the key, unless the recovery phrase is written down: 'croft bot phrase'. Bots that
run by themselves take it from a file that only their owner reads: --passphrase-file.
JSON: {bot, id, locked}")]
    Passphrase {
        /// Which [default: the acting bot]
        name: Option<Name>,
        /// Keep the key open from now on
        #[arg(long)]
        remove: bool,
        /// The new one is the first line of this file [default: it is asked for]
        #[arg(long, value_name = "FILE", conflicts_with = "remove")]
        new_passphrase_file: Option<PathBuf>,
    },
    /// Show the recovery phrase: 24 words from which the key can be made anew
    #[command(after_help = "\
Example:
  croft bot phrase alice        # write it down, on paper; whoever has it is the bot

JSON: {bot, id, words}")]
    Phrase {
        /// Which [default: the acting bot]
        name: Option<Name>,
    },
    /// Write a bot's key, behind a passphrase, to a file for another machine or a safe
    #[command(after_help = "\
Example:
  croft bot export alice alice.croft-key

JSON: {bot, id, file}")]
    Export {
        name: Name,
        /// Must not exist
        file: PathBuf,
        /// The first line of this file locks it [default: the key's own passphrase, else it is asked for]
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
    },
    /// Take a bot's key into this home: an exported file, or the 24 words
    #[command(after_help = "\
Examples:
  croft bot import alice.croft-key
  croft bot import --words --name alice

An exported key stays behind its passphrase. No key is ever replaced.
JSON: {bot, id, locked}")]
    Import {
        /// What 'bot export' wrote
        #[arg(conflicts_with = "words", required_unless_present = "words")]
        file: Option<PathBuf>,
        /// Ask for the 24 words
        #[arg(long, requires = "name")]
        words: bool,
        /// The words are in this file
        #[arg(long, value_name = "FILE", requires = "words")]
        words_file: Option<PathBuf>,
        /// What the bot is called in this home [default: as in the file]
        #[arg(long)]
        name: Option<Name>,
    },
}

#[derive(Debug, Subcommand)]
pub enum WalletCommand {
    /// Balance, what contracts hold, and transfers
    #[command(after_help = "\
Example:
  croft wallet show --bot alice

JSON: {bot, id, balance, held, transfers: [{height, time_ms, from, to, amount, memo}]}")]
    Show,
    /// Give grains to another bot
    #[command(after_help = "\
Example:
  croft wallet send bob 5000 --memo 'for the cake'

JSON: {from, to, amount, memo, height, balance}")]
    Send {
        /// Name of the bot that gets them
        to: Name,
        /// How many
        #[arg(value_parser = parse_grains)]
        amount: Grains,
        /// A word with it; everybody can read it
        #[arg(long, default_value = "")]
        memo: String,
    },
}
