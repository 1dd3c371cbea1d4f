//! What each command does, one function each. Envelope and sequence number are checked already.

mod contracts;
mod drain;
mod faucet;
mod identities;
mod keys;
mod recipes;
pub(crate) mod releases;
mod reports;
pub(crate) mod reservations;
mod trust;
mod validators;

use croft_protocol::record::{BotBody, FarmBody, TransferBody};
use croft_protocol::{
    Body, BotId, BotSignature, Command, FarmId, Grains, NodeId, PublicKey, RecordId, Rejection,
    SignedCommand, limits,
};

use crate::block::Event;
use crate::state::StateReadExt;
use crate::work::{Step, Stop, Work};

pub(crate) fn dispatch(work: &mut Work<'_>, author: PublicKey, signed: &SignedCommand) -> Step {
    match &signed.body.command {
        Command::CreateBot(bot) => identities::create_bot(work, author, bot),
        Command::CreateFarm { name, country, region, prices } => {
            let place = (country.as_str(), region.as_ref());
            identities::create_farm(work, author, name, place, *prices)
        }
        Command::SetPrices { farm, prices } => identities::set_prices(work, author, farm, *prices),
        Command::RegisterNode { node, join, attestation } => {
            identities::register_node(work, author, node, join.as_ref(), attestation.as_deref())
        }
        Command::Agree(terms) => contracts::agree(work, author, terms),
        Command::Approve { contract, approve } => contracts::approve(work, author, contract, *approve),
        Command::Close { contract } => contracts::close(work, author, contract),
        Command::Settle { contract } => contracts::settle(work, author, contract),
        Command::Report(report) => reports::report(work, author, report),
        Command::Transfer { to, amount, memo } => {
            transfer(work, author, to, *amount, memo, signed.body.sequence)
        }
        Command::SetValidators(change) => validators::set_validators(work, author, change),
        Command::SetReleaseKeys(change) => releases::set_keys(work, author, change),
        Command::PublishRelease(release) => releases::publish(work, author, release),
        Command::HaltRelease { channel, version, reason } => {
            releases::halt(work, author, channel, *version, reason)
        }
        Command::SetFarmPolicy { farm, policy } => releases::set_policy(work, author, farm, policy),
        Command::ReleaseOutcome { channel, version, outcome } => {
            releases::outcome(work, author, channel, *version, outcome)
        }
        Command::PublishRecipe { name, title, text } => recipes::publish(work, author, name, title, text),
        Command::WithdrawRecipe { name, reason } => recipes::withdraw(work, author, name, reason),
        Command::UpdateBot(profile) => identities::update_bot(work, author, profile),
        Command::ClaimFaucet => faucet::claim(work, author, signed.body.sequence),
        Command::Fund { contract, amount } => {
            contracts::fund(work, author, contract, *amount, signed.body.sequence)
        }
        Command::AnnounceReservation(announcement) => reservations::announce(work, author, announcement),
        Command::DrainNode { node, until_ms } => drain::drain(work, author, node, *until_ms),
        Command::ReopenNode { node } => drain::reopen(work, author, node),
        Command::ClaimReservation { contract } => reservations::claim(work, author, contract),
        Command::RotateKey(link) => keys::rotate(work, author, link),
    }
}

fn transfer(
    work: &mut Work<'_>,
    author: PublicKey,
    to: &BotId,
    amount: Grains,
    memo: &str,
    sequence: u64,
) -> Step {
    known_bot(work, &author)?;
    known_bot(work, to)?;
    if *to == author {
        return Err(malformed("a transfer goes to another bot"));
    }
    if amount == Grains::ZERO {
        return Err(bounds("the amount in grains", 0_u64, "1 and more"));
    }
    check_text("the memo", memo)?;
    work.debit(&author, amount)?;
    work.credit(to, amount)?;
    let body = TransferBody { from: author, to: *to, amount, memo: memo.to_owned() };
    work.append(RecordId::transfer(&author, sequence), Body::Transfer(body), author)?;
    work.event(Event::Transferred { from: author, to: *to, amount });
    Ok(())
}

fn known_bot(work: &Work<'_>, id: &BotId) -> Step<BotBody> {
    Ok(work.bot(id)?.ok_or(Rejection::UnknownBot { author: *id })?)
}

/// A signature that is good may be of a key that was replaced since.
fn present_signer(work: &Work<'_>, bot: &BotId, signature: &BotSignature) -> Step {
    Ok(work.check_key(bot, &signature.key(bot))?.map_err(Rejection::Key)?)
}

fn known_farm(work: &Work<'_>, id: &FarmId) -> Step<FarmBody> {
    Ok(work.farm(id)?.ok_or(Rejection::UnknownFarm { farm: *id })?)
}

fn known_node(work: &Work<'_>, id: &NodeId) -> Step<croft_protocol::record::NodeBody> {
    Ok(work.node(id)?.ok_or(Rejection::UnknownNode { node: *id })?)
}

fn bounds(what: &str, got: impl TryInto<u64>, allowed: impl std::fmt::Display) -> Stop {
    let got = got.try_into().unwrap_or(u64::MAX);
    Rejection::Bounds { what: what.to_owned(), got, allowed: allowed.to_string() }.into()
}

fn malformed(reason: impl Into<String>) -> Stop {
    Rejection::Malformed { reason: reason.into() }.into()
}

fn check_text(what: &str, text: &str) -> Step {
    if text.len() > limits::TEXT_BYTES {
        let allowed = format_args!("at most {}", limits::TEXT_BYTES);
        return Err(bounds(&format!("the length of {what} in bytes"), text.len(), allowed));
    }
    Ok(())
}
