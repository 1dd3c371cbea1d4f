//! Releases, who may make them, who takes them, and when they stop by themselves.
//!
//! ```text
//!   published ── one release key, or as many returns as its stop rule allows ──> halted (for ever)
//!
//!   channel: latest ──previous──> ... ──previous──> first;  offered = the newest of them that is not halted
//! ```
//! Channel and release change in one command, so that a channel never offers what is halted.

use croft_protocol::release::{
    ChannelBody, FarmPolicy, Halt, InvalidRelease, Outcome, OutcomeBody, Release, ReleaseBody, ReleaseKeys,
    ReleaseState, ReleaseVersion, SignedKeyChange, SignedRelease,
};
use croft_protocol::{Body, FarmId, Hash, Name, PublicKey, RecordId, Rejection, ReleaseId, StateKey, limits};

use super::{check_text, known_farm, known_node};
use crate::state::{StateError, StateRead, StateReadExt};
use crate::work::{Step, Stop, Work};

/// How far back a channel looks for a release that is not halted. A channel with more bad ones in a row offers
/// nothing until the next is published.
pub(crate) const LOOK_BACK: usize = limits::CHANNEL_LOOK_BACK;

pub(super) fn set_keys(work: &mut Work<'_>, author: PublicKey, signed: &SignedKeyChange) -> Step {
    let chain = work.ctx().chain;
    match present_keys(work)? {
        Some((record, present)) => signed.check(&chain, record, &present).map_err(refuse)?,
        None => signed.check_first(&chain, &work.validators()?.set).map_err(refuse)?,
    }
    work.append(RecordId::release_keys(), Body::ReleaseKeys(signed.change.keys.clone()), author)
}

pub(super) fn publish(work: &mut Work<'_>, author: PublicKey, signed: &SignedRelease) -> Step {
    let (_, keys) = present_keys(work)?.ok_or_else(|| refuse(InvalidRelease::NoKeys))?;
    let release = &signed.release;
    let channel = work.channel(&release.channel)?;
    release.check_follows(channel.as_ref()).map_err(refuse)?;
    signed.check(&work.ctx().chain, &keys).map_err(refuse)?;
    let body = ReleaseBody { signed: signed.clone(), state: ReleaseState::Published };
    work.append(RecordId::release(&release.id()), Body::Release(Box::new(body)), author)?;
    let head = ChannelBody {
        name: release.channel.clone(),
        latest: release.version,
        offered: Some(release.version),
        minimum: release.minimum,
    };
    work.append(RecordId::channel(&release.channel), Body::Channel(head), author)
}

pub(super) fn halt(
    work: &mut Work<'_>,
    author: PublicKey,
    channel: &Name,
    version: ReleaseVersion,
    reason: &str,
) -> Step {
    let (_, keys) = present_keys(work)?.ok_or_else(|| refuse(InvalidRelease::NoKeys))?;
    if !keys.contains(&author) {
        return Err(Rejection::NotAllowed { author, allowed: "a release key".to_owned() }.into());
    }
    check_text("the reason", reason)?;
    let body = known_release(work, channel, version)?;
    if body.state != ReleaseState::Published {
        return Err(refuse(InvalidRelease::AlreadyHalted { channel: channel.clone(), version }));
    }
    set_halted(work, author, body, Halt::Key { key: author, reason: reason.to_owned() })
}

pub(super) fn set_policy(work: &mut Work<'_>, author: PublicKey, farm: &FarmId, policy: &FarmPolicy) -> Step {
    let body = known_farm(work, farm)?;
    if body.owner != author {
        let allowed = format!("the owner of farm '{}'", body.name);
        return Err(Rejection::NotAllowed { author, allowed }.into());
    }
    policy.check().map_err(refuse)?;
    work.append(RecordId::farm_policy(farm), Body::FarmPolicy(policy.clone()), author)
}

pub(super) fn outcome(
    work: &mut Work<'_>,
    author: PublicKey,
    channel: &Name,
    version: ReleaseVersion,
    outcome: &Outcome,
) -> Step {
    let node = known_node(work, &author)?;
    let body = known_release(work, channel, version)?;
    let follows = work.farm_policy(&node.farm)?.is_some_and(|policy| policy.channel == *channel);
    if !follows {
        return Err(refuse(InvalidRelease::NotFollowed { channel: channel.clone() }));
    }
    let runs = node.release == version.to_string();
    let rule = match outcome {
        Outcome::Confirmed if !runs => Some("who confirms a release is registered with it"),
        Outcome::Returned { .. } if runs => Some("who returned from a release is registered with another"),
        _ => None,
    };
    if let Some(rule) = rule {
        let (registered, rule) = (node.release, rule.to_owned());
        return Err(refuse(InvalidRelease::Registered { registered, rule }));
    }
    if let Outcome::Returned { reason } = outcome {
        check_text("the reason", reason)?;
    }
    let id = ReleaseId::new(channel, version);
    let record = RecordId::outcome(&id, &author);
    if work.get(&StateKey::Record(record))?.is_some() {
        return Err(refuse(InvalidRelease::AlreadyTold { channel: channel.clone(), version }));
    }
    let told = OutcomeBody {
        node: author,
        farm: node.farm,
        channel: channel.clone(),
        version,
        outcome: outcome.clone(),
    };
    work.append(record, Body::Outcome(told), author)?;
    let (rule, farmer) = (body.signed.release.stop, known_farm(work, &node.farm)?.owner);
    let (trials, own) = (work.trials(&id)?, work.farmer_trials(&id, &farmer)?);
    let (trials, own) = trials.count(own, outcome, rule).ok_or(Rejection::Overflow)?;
    work.put(StateKey::Trials(id), &trials);
    work.put(StateKey::FarmerTrials(id, farmer), &own);
    if body.state == ReleaseState::Published && rule.stops(trials) {
        set_halted(work, author, body, Halt::Returns { trials })?;
    }
    Ok(())
}

/// The release is offered to nobody any more; its channel offers the newest before it that still is.
fn set_halted(work: &mut Work<'_>, author: PublicKey, mut body: ReleaseBody, halt: Halt) -> Step {
    body.state = ReleaseState::Halted(halt);
    let Release { channel, version, .. } = &body.signed.release;
    let (channel, version) = (channel.clone(), *version);
    let id = RecordId::release(&body.signed.release.id());
    work.append(id, Body::Release(Box::new(body)), author)?;
    let mut head = work
        .channel(&channel)?
        .ok_or_else(|| StateError::broken(format_args!("channel '{channel}' has a head")))?;
    if head.offered == Some(version) {
        head.offered = newest_offered(work, &head)?;
        work.append(RecordId::channel(&channel), Body::Channel(head), author)?;
    }
    Ok(())
}

fn newest_offered(work: &Work<'_>, head: &ChannelBody) -> Step<Option<ReleaseVersion>> {
    let mut next = Some(head.latest);
    for _ in 0..LOOK_BACK {
        let Some(version) = next else { return Ok(None) };
        let body = known_release(work, &head.name, version)?;
        if body.state == ReleaseState::Published {
            // What is below the channel's minimum is offered to nobody.
            return Ok(Some(version).filter(|version| *version >= head.minimum));
        }
        next = body.signed.release.previous;
    }
    Ok(None)
}

/// The releases that a channel's nodes may well run: its newest that were not halted and are not below its minimum.
pub(super) fn in_force(state: &dyn StateRead, channel: &Name) -> Result<Vec<Release>, StateError> {
    let Some(head) = state.channel(channel)? else { return Ok(Vec::new()) };
    let (mut found, mut next) = (Vec::new(), Some(head.latest));
    for _ in 0..LOOK_BACK {
        let Some(version) = next.filter(|version| *version >= head.minimum) else { break };
        let body = state.release(&ReleaseId::new(channel, version))?.ok_or_else(|| {
            StateError::broken(format_args!("release {version} of channel '{channel}' is kept"))
        })?;
        next = body.signed.release.previous;
        if body.state == ReleaseState::Published {
            found.push(body.signed.release);
        }
    }
    Ok(found)
}

fn known_release(work: &Work<'_>, channel: &Name, version: ReleaseVersion) -> Step<ReleaseBody> {
    let unknown = || refuse(InvalidRelease::Unknown { channel: channel.clone(), version });
    work.release(&ReleaseId::new(channel, version))?.ok_or_else(unknown)
}

/// The record's hash and its keys.
fn present_keys(work: &Work<'_>) -> Step<Option<(Hash, ReleaseKeys)>> {
    let key = StateKey::Record(RecordId::release_keys());
    let Some(bytes) = work.get(&key)? else { return Ok(None) };
    let keys = work.release_keys()?.ok_or_else(|| StateError::corrupt(&key, "it is missing"))?;
    Ok(Some((Hash::of_bytes(&bytes), keys)))
}

fn refuse(reason: InvalidRelease) -> Stop {
    Rejection::Release(reason).into()
}

#[cfg(test)]
mod tests;
