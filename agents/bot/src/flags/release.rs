//! `croft release` and `croft farm policy` as people type them.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use croft_protocol::release::{DAY_MINUTES, Window};
use croft_protocol::{Name, PublicKey, ReleaseVersion};

#[derive(Debug, Subcommand)]
pub enum ReleaseCommand {
    /// Who may release, and how many of them it takes
    #[command(subcommand)]
    Keys(ReleaseKeysCommand),
    /// Write a release for the owners of release keys to sign
    #[command(after_help = "\
Example:
  croft release prepare --boot-file croft.efi --channel stable --version 1.4.0 --out release.json

The boot file carries the same version in /etc/croft/release ('cargo xtask image --release 1.4.0'). What it leaves in
a TPM's registers on every machine is predicted from the file: its Authenticode SHA-256 in register 4 where firmware
starts it, in 11 where an upgrade does. Nodes whose TPM shows something else are 'sealed', not 'attested'.
JSON: {grid, file, subject: {release: {channel, version, previous, minimum, boot_file, measurements: [{pcr, digest}],
       stop, notes}}, signed, enough}")]
    Prepare(PrepareFlags),
    /// Sign a release, or a change of the release keys
    #[command(after_help = "\
Example:
  croft release sign release.json --key ann.key

Shows what it signs, and refuses what the ledger would. Owners pass the file on, or each sign a copy of it.
The first release keys of a grid are signed by its validators, with their validator.key.
JSON: {grid, file, subject, signed, enough}")]
    Sign {
        /// What 'prepare' or 'keys propose' wrote; the signature is added to it
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// A release key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Bring what enough keys signed to the ledger, and the boot file to the replicas
    #[command(after_help = "\
Example:
  croft release publish release.json --boot-file croft.efi
  croft release publish keys-of-ann.json keys-of-ben.json

Any bot may. Nodes whose farm's policy names the channel begin at once.
JSON: {grid, height, subject}")]
    Publish(PublishFlags),
    /// Releases of a channel, newest first
    #[command(after_help = "\
Example:
  croft release list stable

JSON: {grid, name, latest, offered, minimum, releases: [{channel, version, previous, minimum, boot_file,
       measurements, stop, notes, state, trials: {confirmed, returned}}]}")]
    List {
        /// Its name, such as stable
        channel: Name,
    },
    /// A release, and what became of it
    #[command(after_help = "\
Example:
  croft release show stable 1.4.0

JSON: {channel, version, previous, minimum, boot_file, measurements, stop, notes, state,
       trials: {confirmed, returned}}")]
    Show(ReleaseTarget),
    /// Stop a release: nobody begins with it any more
    #[command(after_help = "\
Example:
  croft release halt stable 1.4.0 --key ann.key --reason 'loses volumes'

One release key is enough. A release from which too many nodes return halts itself.
JSON: {channel, version, previous, minimum, boot_file, measurements, stop, notes, state,
       trials: {confirmed, returned}}")]
    Halt {
        #[command(flatten)]
        target: ReleaseTarget,
        /// Why; everybody can read it
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// A release key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
}

#[derive(Debug, Clone, Args)]
pub struct ReleaseTarget {
    /// The channel, such as stable
    pub channel: Name,
    /// The version, such as 1.4.0
    pub version: ReleaseVersion,
}

#[derive(Debug, Subcommand)]
pub enum ReleaseKeysCommand {
    /// The present release keys, verified
    #[command(after_help = "\
Example:
  croft release keys show

JSON: {grid, record, threshold, keys}")]
    Show,
    /// Make a release key
    #[command(after_help = "\
Example:
  croft release keys new ann.key

JSON: {file, key}")]
    New {
        /// A new file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Write a change of the release keys for the present ones to sign
    #[command(after_help = "\
Example:
  croft release keys propose --key 5f0c…e1 --key 77ab…04 --key 09d2…3c --threshold 2 --out keys.json

The first ones are signed by validators with more than two thirds of the power.
JSON: {grid, file, subject: {keys: {prev, keys: {threshold, keys}}}, signed, enough}")]
    Propose {
        /// Every key that is to be there afterwards; repeated
        #[arg(long = "key", value_name = "KEY", required = true)]
        keys: Vec<PublicKey>,
        /// How many of them a release takes
        #[arg(long, value_name = "N")]
        threshold: u8,
        /// Where to write it
        #[arg(long, value_name = "FILE", default_value = "release-keys.json")]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct PrepareFlags {
    /// The boot file, signed for Secure Boot where that is used
    #[arg(long, value_name = "FILE")]
    pub boot_file: PathBuf,
    /// Whom it is for
    #[arg(long, value_name = "NAME")]
    pub channel: Name,
    /// Its version: above the channel's latest
    #[arg(long, value_name = "VERSION")]
    pub version: ReleaseVersion,
    /// Nodes of the channel boot nothing below this any more [default: as before]
    #[arg(long, value_name = "VERSION")]
    pub minimum: Option<ReleaseVersion>,
    /// So many nodes must return before the rollout stops by itself; of one farmer's, at most half count
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub stop_returns: u32,
    /// And they must be so many of a thousand that tried
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub stop_share: u16,
    /// What changed; everybody can read it
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub notes: String,
    /// Where to write it
    #[arg(long, value_name = "FILE", default_value = "release.json")]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
pub struct PublishFlags {
    /// The signed file, or several copies of it with different signatures
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// The release's boot file
    #[arg(long, value_name = "FILE")]
    pub boot_file: Option<PathBuf>,
}

pub(super) const POLICY_HELP: &str = "\
Example:
  croft farm policy attic --channel stable --share 100 --window 01:30+120
  croft farm policy attic --hold

Without any flag it shows the policy. What is not named stays. A farm without a policy takes no releases. The window
is UTC, from a time of the day on for so many minutes; 'any' is at any time.
JSON: {farm, id, policy: {channel, share_per_mille, window: {start_minute, duration_minutes}, hold}}";

#[derive(Debug, Args)]
pub struct PolicyFlags {
    /// Which farm; the acting bot must be its owner to change anything
    pub farm: Name,
    /// The channel whose releases its machines take
    #[arg(long, value_name = "NAME")]
    pub channel: Option<Name>,
    /// How many of a thousand machines take the newest release [default at first: 1000]
    #[arg(long, value_name = "PER_MILLE")]
    pub share: Option<u16>,
    /// When machines may restart for it [default at first: any]
    #[arg(long, value_name = "HH:MM+MINUTES", value_parser = parse_window)]
    pub window: Option<PolicyWindow>,
    /// Begin nothing
    #[arg(long, conflicts_with = "resume")]
    pub hold: bool,
    /// Go on after --hold
    #[arg(long)]
    pub resume: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyWindow(pub Option<Window>);

fn parse_window(text: &str) -> Result<PolicyWindow, String> {
    if text == "any" {
        return Ok(PolicyWindow(None));
    }
    let parse = || {
        let (start, duration) = text.split_once('+')?;
        let (hour, minute) = start.split_once(':')?;
        let (hour, minute) = (hour.parse::<u16>().ok()?, minute.parse::<u16>().ok()?);
        let duration_minutes = duration.parse().ok().filter(|d| (1..=DAY_MINUTES).contains(d))?;
        (hour < 24 && minute < 60).then_some(Window { start_minute: hour * 60 + minute, duration_minutes })
    };
    let window = parse().ok_or("write HH:MM+MINUTES such as 01:30+120, or any".to_owned())?;
    Ok(PolicyWindow(Some(window)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_a_time_of_the_day_and_minutes() {
        let window = Window { start_minute: 90, duration_minutes: 120 };
        assert_eq!(parse_window("01:30+120"), Ok(PolicyWindow(Some(window))));
        assert_eq!(parse_window("any"), Ok(PolicyWindow(None)));
        for text in ["", "01:30", "24:00+1", "01:60+1", "01:30+0", "01:30+1441", "1+1"] {
            assert!(parse_window(text).unwrap_err().contains("01:30+120"), "{text}");
        }
    }
}
