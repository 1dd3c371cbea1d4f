//! Bots, farms and nodes: who is who, and who belongs to whom.

use croft_protocol::attestation::Attestation;
use croft_protocol::command::SignedJoin;
use croft_protocol::keys::Domain;
use croft_protocol::name::is_country;
use croft_protocol::record::{BotBody, FarmBody, NodeBody};
use croft_protocol::units::{show_duration, show_time};
use croft_protocol::{
    Body, FarmId, Name, NodeCapacity, PriceList, Profile, PublicKey, RecordId, Rejection, StateKey, trouble,
};

use super::{bounds, check_text, known_bot, known_farm, malformed, present_signer, reservations, trust};
use crate::block::Event;
use crate::state::{StateRead, StateReadExt};
use crate::work::{Step, Work};

/// Addresses of one node: a few links with IPv4, IPv6 and a name each.
const ADDRESSES_PER_NODE: usize = 16;
/// A host name or address (RFC 1035, section 2.3.4).
const ADDRESS_BYTES: usize = 255;

pub(super) fn create_bot(work: &mut Work<'_>, author: PublicKey, bot: &BotBody) -> Step {
    if let Some(known) = work.bot(&author)? {
        return Err(Rejection::AlreadyBot { author, name: known.name }.into());
    }
    claim_name(work, StateKey::BotName(bot.name.clone()), "bot name", &bot.name, &author)?;
    work.append(RecordId::bot(&author), Body::Bot(bot.clone()), author)
}

/// A bot says something else of itself. Its name is in the profile, so that whoever has only that knows whose it is.
pub(super) fn update_bot(work: &mut Work<'_>, author: PublicKey, profile: &Profile) -> Step {
    let bot = known_bot(work, &author)?;
    if profile.name != bot.name {
        return Err(malformed(format!(
            "the profile is of bot '{}', its author is '{}'",
            profile.name, bot.name
        )));
    }
    profile.check().map_err(|invalid| malformed(invalid.to_string()))?;
    work.append(RecordId::profile(&author), Body::Profile(profile.clone()), author)
}

pub(super) fn create_farm(
    work: &mut Work<'_>,
    author: PublicKey,
    name: &Name,
    (country, region): (&str, Option<&Name>),
    prices: PriceList,
) -> Step {
    known_bot(work, &author)?;
    if !is_country(country) {
        return Err(Rejection::Country { country: country.chars().take(16).collect() }.into());
    }
    let id = FarmId::new(&author, name);
    claim_name(work, StateKey::FarmName(name.clone()), "farm name", name, &id)?;
    let (country, region) = (country.to_owned(), region.cloned());
    let body = FarmBody { owner: author, name: name.clone(), country, region, prices };
    work.append(RecordId::farm(&id), Body::Farm(body), author)
}

pub(super) fn set_prices(work: &mut Work<'_>, author: PublicKey, farm: &FarmId, prices: PriceList) -> Step {
    let mut body = known_farm(work, farm)?;
    if body.owner != author {
        let allowed = format!("the owner of farm '{}'", body.name);
        return Err(Rejection::NotAllowed { author, allowed }.into());
    }
    body.prices = prices;
    work.append(RecordId::farm(farm), Body::Farm(body), author)
}

pub(super) fn register_node(
    work: &mut Work<'_>,
    author: PublicKey,
    node: &NodeBody,
    join: Option<&SignedJoin>,
    attestation: Option<&Attestation>,
) -> Step {
    let farm = known_farm(work, &node.farm)?;
    check_node_texts(node)?;
    let before = work.node(&author)?;
    match &before {
        None => check_join(work, &farm, node, join)?,
        Some(before) => check_change(author, before, node)?,
    }

    let name_key = |of: &NodeBody| StateKey::NodeName(of.farm.0, of.name.clone());
    if before.as_ref().is_none_or(|before| before.name != node.name) {
        claim_name(work, name_key(node), "node name", &node.name, &author)?;
        if let Some(before) = &before {
            work.remove(name_key(before));
        }
    }

    let mut capacity = work.capacity(&author)?.unwrap_or_default();
    if before.is_none() || capacity.total != node.capacity {
        // What is in use stays in the books even where the node shrank below it: then nothing is free.
        let version = capacity.version.checked_add(1).ok_or(Rejection::Overflow)?;
        capacity = NodeCapacity { version, total: node.capacity, used: capacity.used };
        work.put(StateKey::Capacity(author), &capacity);
        work.event(Event::Capacity { node: author });
        reservations::withdraw(work, author)?;
    }
    let class = trust::weigh(work, author, before.as_ref(), node, attestation)?;
    work.append(RecordId::node(&author), Body::Node(NodeBody { trust: class, ..node.clone() }), author)
}

/// A node's first registration needs its farm owner's permission.
fn check_join(work: &Work<'_>, farm: &FarmBody, node: &NodeBody, join: Option<&SignedJoin>) -> Step {
    let no_good = |reason: String| Err(Rejection::Join { reason }.into());
    let Some(SignedJoin { join, signature }) = join else {
        return no_good("it is missing, and the node is not registered yet".to_owned());
    };
    if join.farm != node.farm {
        return no_good(format!("it is for farm {}, not for '{}'", join.farm, farm.name));
    }
    if join.expires_ms < work.now_ms() {
        let ago = show_duration((work.now_ms() - join.expires_ms) / 1000);
        return no_good(format!("it expired {ago} ago, at {}", show_time(join.expires_ms)));
    }
    present_signer(work, &farm.owner, signature)?;
    if farm.owner.verify(Domain::JOIN, &work.ctx().chain, join, signature).is_err() {
        return no_good(format!("it is not signed by the owner of farm '{}'", farm.name));
    }
    Ok(())
}

/// Later it changes itself, as long as it is the same machine in the same farm.
fn check_change(node: PublicKey, before: &NodeBody, after: &NodeBody) -> Step {
    if before.farm != after.farm {
        let reason = format!("node {node} belongs to farm {} and can't move to {}", before.farm, after.farm);
        return Err(Rejection::Join { reason }.into());
    }
    // Within one boot a node may change what it says of itself, but not its keys nor what it measured of its hardware
    // when it started: a second machine with a copy of its key has another inventory, and shows itself here.
    let same = before.sealing_key == after.sealing_key && before.hardware == after.hardware;
    let twin = after.session == before.session && !same;
    if after.session < before.session || twin {
        return Err(Rejection::StaleSession { node, got: after.session, known: before.session }.into());
    }
    Ok(())
}

fn check_node_texts(node: &NodeBody) -> Step {
    if node.addresses.len() > ADDRESSES_PER_NODE {
        let allowed = format_args!("at most {ADDRESSES_PER_NODE}");
        return Err(bounds("the number of addresses", node.addresses.len(), allowed));
    }
    if let Some(long) = node.addresses.iter().find(|address| address.len() > ADDRESS_BYTES) {
        let allowed = format_args!("at most {ADDRESS_BYTES}");
        return Err(bounds("the length of an address in bytes", long.len(), allowed));
    }
    let hardware = &node.hardware;
    check_text("the release", &node.release)?;
    check_text("the CPU model", &hardware.cpu_model)?;
    check_text("the vendor", &hardware.vendor)?;
    check_text("the product", &hardware.product)?;
    trouble::check(&node.troubles).map_err(|invalid| malformed(invalid.to_string()))
}

fn claim_name<T: borsh::BorshSerialize>(
    work: &mut Work<'_>,
    key: StateKey,
    what: &str,
    name: &Name,
    holder: &T,
) -> Step {
    if work.get(&key)?.is_some() {
        return Err(Rejection::NameTaken { what: what.to_owned(), name: name.clone() }.into());
    }
    work.put(key, holder);
    Ok(())
}

#[cfg(test)]
mod tests;
