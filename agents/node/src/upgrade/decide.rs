//! What a node does about releases: from what it knows to one action, without any input or output.
//!
//! It must never try what is halted, below what was confirmed, below the channel's minimum, tried before, outside the
//! farm's window or beyond its share; and never leave a trial without an end.

use std::time::Duration;

use croft_protocol::release::{ChannelBody, FarmPolicy, ReleaseBody, ReleaseState};
use croft_protocol::{NodeId, ReleaseVersion};

use super::journal::{Installed, Journal, Told};

/// How long a release on trial has from the start of its agent until it is registered and well. A slow machine that
/// waits for DHCP, NTP and a quorum needs a minute or two; tenants wait meanwhile.
pub const TRIAL_LIMIT: Duration = Duration::from_secs(300);
/// How long it has to be well before it is confirmed.
pub const WELL_FOR: Duration = Duration::from_secs(20);

/// Everything that counts.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub node: NodeId,
    /// `None` for an image without a version: a developer's, which is never replaced.
    pub running: Option<ReleaseVersion>,
    /// Milliseconds since 1970, UTC, by ledger and clock.
    pub now_ms: u64,
    /// Since the agent of this boot was started.
    pub up: Duration,
    /// Since when, in the same time, the node is registered and can do what it is there for; `None` while it is not.
    pub well_since: Option<Duration>,
    /// What keeps it from being well, for the record.
    pub trouble: &'a str,
    /// Proved by the ledger; `None` where there is none, or while the ledger was not read.
    pub policy: Option<&'a FarmPolicy>,
    pub channel: Option<&'a ChannelBody>,
    /// What the channel offers.
    pub offered: Option<&'a ReleaseBody>,
    pub journal: &'a Journal,
    /// What the TPM says was confirmed here: the disk may be a copy from before.
    pub floor: Option<ReleaseVersion>,
    /// Whether the offered release's boot file is here and whole.
    pub fetched: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do, and why.
    Stay(Why),
    /// Bring the release's boot file here.
    Fetch(Installed),
    /// Boot the release on trial.
    Try(Installed),
    /// The release on trial is good.
    Confirm,
    /// The release on trial is not: restart into the one before.
    GoBack { reason: String },
    /// The ledger has to hear of this.
    Tell(Told),
}

/// Why a node stays with what it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("the release on trial has time left")]
    OnTrial,
    #[error("the node is not registered yet")]
    NotWell,
    #[error("this image has no version, so it is a developer's and stays")]
    NoVersion,
    #[error("the farm has no upgrade policy: 'croft farm policy' sets one")]
    NoPolicy,
    #[error("the farm holds upgrades")]
    Held,
    #[error("the channel offers nothing")]
    NothingOffered,
    #[error("the release is halted")]
    Halted,
    #[error("the newest release runs")]
    UpToDate,
    #[error("the release is older than the channel's minimum")]
    BelowMinimum,
    #[error("the release is older than one that was confirmed on this machine, says its TPM")]
    BelowFloor,
    #[error("the release was tried here and did not do")]
    GivenUp,
    #[error("the release is for others of the farm's nodes first")]
    NotYetInShare,
    #[error("the farm's window is closed")]
    OutsideWindow,
}

/// See the module.
#[must_use]
pub fn decide(facts: &Facts<'_>) -> Action {
    let well_for = facts.well_since.map(|since| facts.up.saturating_sub(since));
    if facts.journal.trial.is_some() {
        return match well_for {
            Some(well_for) if well_for >= WELL_FOR => Action::Confirm,
            _ if facts.up >= TRIAL_LIMIT => {
                let seconds = TRIAL_LIMIT.as_secs();
                Action::GoBack { reason: format!("not well within {seconds} s: {}", facts.trouble) }
            }
            _ => Action::Stay(Why::OnTrial),
        };
    }
    if well_for.is_none() {
        return Action::Stay(Why::NotWell);
    }
    if let Some(told) = facts.journal.untold.first() {
        return Action::Tell(told.clone());
    }
    match candidate(facts) {
        Err(why) => Action::Stay(why),
        Ok(release) if !facts.fetched => Action::Fetch(release),
        Ok(_) if !facts.policy.is_some_and(|policy| is_open(policy, facts.now_ms)) => {
            Action::Stay(Why::OutsideWindow)
        }
        Ok(release) => Action::Try(release),
    }
}

fn is_open(policy: &FarmPolicy, now_ms: u64) -> bool {
    policy.window.is_none_or(|window| window.contains(now_ms))
}

/// The release that this node should have, if it should have another.
fn candidate(facts: &Facts<'_>) -> Result<Installed, Why> {
    let running = facts.running.ok_or(Why::NoVersion)?;
    let policy = facts.policy.ok_or(Why::NoPolicy)?;
    if policy.hold {
        return Err(Why::Held);
    }
    let channel =
        facts.channel.filter(|channel| channel.name == policy.channel).ok_or(Why::NothingOffered)?;
    let body = facts.offered.ok_or(Why::NothingOffered)?;
    let release = &body.signed.release;
    if release.channel != channel.name || Some(release.version) != channel.offered {
        return Err(Why::NothingOffered);
    }
    if body.state != ReleaseState::Published {
        return Err(Why::Halted);
    }
    // The medium's release runs though a newer one was confirmed: that one could not be reached, or its file is damaged.
    let confirmed = facts.journal.confirmed.as_ref().map(|confirmed| confirmed.version);
    let is_lost = confirmed == Some(release.version) && running < release.version;
    if !is_lost && facts.journal.floor(Some(running)).is_some_and(|floor| release.version <= floor) {
        return Err(Why::UpToDate);
    }
    // The same version may come again: whoever lost the disk lost the release with it.
    if facts.floor.is_some_and(|floor| release.version < floor) {
        return Err(Why::BelowFloor);
    }
    if release.version < channel.minimum {
        return Err(Why::BelowMinimum);
    }
    if facts.journal.has_given_up(&release.id()) {
        return Err(Why::GivenUp);
    }
    if release.id().stage_of(&facts.node) >= policy.share_per_mille {
        return Err(Why::NotYetInShare);
    }
    Ok(Installed::of(release))
}
