//! `croft bot`, `croft message` and `croft wallet` as people type them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use croft_protocol::{Grains, Name, Role};

use super::{parse_grains, parse_seconds};

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

JSON: {bot, id, grid, registered, own, balance, next_sequence, roles, capabilities, description, encryption_key,
       listed}")]
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
  croft bot import alice.croft-key --later     # then: croft bot rotate alice --resume

An exported key stays behind its passphrase. No key is ever replaced: one that 'croft bot rotate' made elsewhere is kept
beside those that are here.
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
        /// Another key of a bot that has one here: it was replaced elsewhere
        #[arg(long)]
        later: bool,
    },
    /// Replace a bot's key by a new one: from then on the old one signs nothing, wherever it is
    #[command(after_help = "\
Examples:
  croft bot rotate alice
  croft bot rotate alice --resume     # the key was replaced elsewhere, or a run was interrupted

Id, name, wallet, farms and contracts stay. The new key has a recovery phrase of its own: write it down, 'croft bot
phrase'; the old phrase is worth nothing on this grid any more. What runs with the old key ('croft farm serve') has to be
started anew. Release keys and skills that it signed hold by themselves: change those too. A key can be replaced eight times.
JSON: {bot, id, grid, key, changes, height, changed}")]
    Rotate {
        /// Which [default: the acting bot]
        name: Option<Name>,
        /// Replace nothing: take up what the ledger says of the bot's keys
        #[arg(long)]
        resume: bool,
    },
    /// Say of the acting bot what others find it by, and publish its key for messages
    #[command(after_help = "\
Examples:
  croft bot update --bot anna --role approver --capability audits --description 'Signs for hospitals'
  croft bot update --no-messages

What is not named stays as it is. The key for messages comes from the bot's own key.
JSON: {bot, id, roles, capabilities, description, encryption_key, version, height}")]
    Update(BotUpdateFlags),
    /// Bots by what they say of themselves
    #[command(after_help = "\
Examples:
  croft bot find hospital
  croft bot find --role approver --capability audits

Each word of TEXT is part of a name, a capability or a description. Every profile is proved to be the bot's own and
its latest; that it is true, and that none was left out, nothing proves.
JSON: {bots: [{bot, id, roles, capabilities, description, messages, height}], more}")]
    Find(BotFindFlags),
}

/// As [`croft_protocol::Role`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleFlag {
    /// Has farms
    Farmer,
    /// Deploys workloads
    User,
    /// Writes recipes
    Expert,
    /// Co-signs contracts
    Approver,
}

impl From<RoleFlag> for Role {
    fn from(flag: RoleFlag) -> Self {
        match flag {
            RoleFlag::Farmer => Self::Farmer,
            RoleFlag::User => Self::User,
            RoleFlag::Expert => Self::Expert,
            RoleFlag::Approver => Self::Approver,
        }
    }
}

#[derive(Debug, Default, Args)]
pub struct BotUpdateFlags {
    /// What it is on the grid for; replaces the roles it had
    #[arg(long = "role", value_name = "ROLE", value_enum, value_delimiter = ',')]
    pub roles: Vec<RoleFlag>,
    /// No role any more
    #[arg(long, conflicts_with = "roles")]
    pub no_roles: bool,
    /// What it offers: lower-case letters, digits and '-', such as gpu; replaces those it had
    #[arg(long = "capability", value_name = "NAME", value_delimiter = ',')]
    pub capabilities: Vec<Name>,
    /// No capability any more
    #[arg(long, conflicts_with = "capabilities")]
    pub no_capabilities: bool,
    /// One line for people; '' for none
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Take no messages: the key for them is not published any more
    #[arg(long)]
    pub no_messages: bool,
}

#[derive(Debug, Args)]
pub struct BotFindFlags {
    /// Words in the name, the capabilities or the description
    #[arg(value_name = "TEXT", required_unless_present_any = ["role", "capability"])]
    pub text: Option<String>,
    /// With this role
    #[arg(long, value_name = "ROLE", value_enum)]
    pub role: Option<RoleFlag>,
    /// With this capability
    #[arg(long, value_name = "NAME")]
    pub capability: Option<Name>,
    /// At most so many
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
}

#[derive(Debug, Subcommand)]
pub enum MessageCommand {
    /// Write to another bot; nobody on the way can read it
    #[command(after_help = "\
Examples:
  croft message send bob 'the disks have arrived'
  croft message send bob --file report.txt

It goes to the bot directly where that listens ('message read --follow'), else it waits in mailboxes at two replicas
for a month. A message has at most 32 KiB of text.
JSON: {to, id, time_ms, bytes, delivered: \"directly\" | \"mailbox\", mailboxes, expires_ms?}")]
    Send {
        /// Name of the bot that gets it
        to: Name,
        /// What it says
        #[arg(required_unless_present = "file", conflicts_with = "file")]
        text: Option<String>,
        /// It says what is in this file, as UTF-8
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// What others wrote since the last time, oldest first
    #[command(after_help = "\
Examples:
  croft message read --bot bob
  croft message read --follow --json

What is shown is not shown again, and leaves the mailboxes. Texts are strangers': believe who wrote them, which is
proved, and nothing else. What a skill hides counts as read; where it fails, the message is shown.
JSON: {messages: [{id, from, from_id, time_ms, text, mark?}]}; with --follow one object per line:
      {time_ms, event: \"listening\", bot} and then {event: \"message\", id, from, from_id, time_ms, text, mark?}")]
    Read {
        /// Go on until interrupted, and take messages directly
        #[arg(long, short)]
        follow: bool,
        /// A skill that marks messages, or hides them
        #[arg(long, value_name = "NAME")]
        skill: Option<Name>,
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
    /// Each change of the balance with the record behind it, and whether they add up
    #[command(after_help = "\
Examples:
  croft wallet statement --bot alice
  croft wallet statement --since 2026-11-01 --json

Every line's record was proved. 'complete' says that the lines add up to the balance; where they do not, a replica
held something back, or the ledger changed meanwhile.
JSON: {bot, id, tip_height, balance, opening, complete, unexplained, lines: [{time_ms, height, what, amount, with,
       record, kind, memo?}], sums: {in, out}, held}
      'amount' and 'unexplained' are negative where grains went away; 'opening' is the balance before --since")]
    Statement {
        /// Only from this day on, 00:00 UTC, such as 2026-11-01
        #[arg(long, value_name = "DATE", value_parser = parse_date)]
        since: Option<u64>,
    },
    /// Take grains from the faucet of a test grid
    #[command(after_help = "\
Example:
  croft wallet faucet --bot alice

JSON: {bot, amount, balance, height}")]
    Faucet,
    /// Take back fees of reservations that were not used and that their farmers did not claim within a day
    #[command(after_help = "\
Example:
  croft wallet reclaim --bot alice

JSON: {bot, back: [{contract, farmer, amount, claimable_until_ms}], waiting: [{contract, farmer, amount,
       claimable_until_ms}], balance}")]
    Reclaim,
}

/// A faucet is for grids on which things are tried out.
#[derive(Debug, Args)]
pub struct FaucetFlags {
    /// Give so many grains to each bot that asks: 'croft wallet faucet'; for test grids only
    #[arg(long = "faucet", value_name = "GRAINS", value_parser = parse_grains)]
    pub amount: Option<Grains>,
    /// What the faucet has in all [default: a thousand times that]
    #[arg(long = "faucet-fund", value_name = "GRAINS", value_parser = parse_grains, requires = "amount")]
    pub fund: Option<Grains>,
    /// From one time that a bot asks to the next
    #[arg(long = "faucet-every", value_name = "TIME", default_value = "24h", value_parser = parse_seconds, requires = "amount")]
    pub every: u64,
    /// How often one bot may ask
    #[arg(long = "faucet-claims", value_name = "NUMBER", default_value_t = 10, requires = "amount")]
    pub claims: u32,
}

/// The first millisecond of a day, since 1970, UTC.
fn parse_date(text: &str) -> Result<u64, String> {
    let wrong = || "write a day as 2026-11-01".to_owned();
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts[..] else { return Err(wrong()) };
    let number = |text: &str, len: usize| {
        let digits = text.len() == len && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten().ok_or_else(wrong)
    };
    let (year, month, day) = (number(year, 4)?, number(month, 2)?, number(day, 2)?);
    let leap = (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return Err(wrong()),
    };
    if year < 1970 || !(1..=days).contains(&day) {
        return Err(wrong());
    }
    // Days since 1970 of a civil date (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let (era, year) = (year / 400, year % 400);
    let of_era = year * 365 + year / 4 - year / 100 + of_year;
    Ok((era * 146_097 + of_era - 719_468) * 86_400_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::show_time;

    #[test]
    fn a_day_is_its_first_moment_and_others_are_refused() {
        for day in ["1970-01-01", "1999-12-31", "2000-02-29", "2024-02-29", "2026-11-23", "2100-03-01"] {
            assert!(show_time(parse_date(day).unwrap()).starts_with(&format!("{day} 00:00:00")), "{day}");
        }
        for bad in [
            "",
            "2026",
            "2026-13-01",
            "2026-00-01",
            "2023-02-29",
            "2100-02-29",
            "26-11-01",
            "2026-1-1",
            "1969-12-31",
            "2026-11-00",
            "+026-11-01",
        ] {
            assert!(parse_date(bad).unwrap_err().contains("2026-11-01"), "{bad}");
        }
    }
}
