//! Reservations: announced, used, claimed, withdrawn, and free again by themselves.
//!
//! ```text
//!   announce: capacity, ports ─ held ─┬─ agree, node shrinks, claim ──┐
//!             fee ─ in escrow ─┐      └─ the slot of its expiry is over ┴─> free
//!                              └─ used, withdrawn, lapsed: the user's; claimed: the farmer's
//! ```
//! What is held of a node and what is held of money end apart: capacity at the expiry at the latest, by the first block
//! after it; the fee when somebody asks. It must never hold what no list names, nor keep a fee of what was used.

use croft_protocol::market::SignedReservation;
use croft_protocol::record::Kind;
use croft_protocol::reservation::{
    Announcement, BadAnnouncement, OpenReservations, ReservationBody, ReservationQueue, ReservationRefusal,
    ReservationSlot, ReservationState, slot_of,
};
use croft_protocol::{
    Body, BotId, ContractId, Grains, NodeId, PublicKey, RecordId, Rejection, StateKey, limits,
};

use super::contracts::{check_parties, check_terms, free_name, free_room, take_room};
use super::{known_bot, present_signer};
use crate::block::Event;
use crate::state::{StateError, StateReadExt};
use crate::work::{Step, Stop, Work};

/// Slots that one block goes through at most: after a long sleep the following blocks do the rest.
const SLOTS_PER_BLOCK: u64 = 256;
/// Reservations that one block frees before it begins no other slot.
const FREED_PER_BLOCK: usize = 512;

fn refused(contract: ContractId, reason: ReservationRefusal) -> Stop {
    Rejection::Reservation { contract, reason }.into()
}

/// Holds capacity and ports for a contract, and takes its fee into escrow.
pub(super) fn announce(work: &mut Work<'_>, author: PublicKey, announcement: &Announcement) -> Step {
    let terms = &announcement.terms;
    let (id, held) = (terms.id(), &announcement.reservation.reservation);
    if author != terms.farmer {
        let allowed = "the farmer of the reservation".to_owned();
        return Err(Rejection::NotAllowed { author, allowed }.into());
    }
    if work.contract(&id)?.is_some() {
        return Err(Rejection::Duplicate { contract: id }.into());
    }
    if work.reservation(&id)?.is_some() {
        return Err(refused(id, ReservationRefusal::Announced));
    }
    check_terms(work, terms)?;
    check_parties(work, terms)?;
    terms.price().ok_or(Rejection::Overflow)?;
    terms.deposit().ok_or(Rejection::Overflow)?;
    announcement.check_time(work.now_ms()).map_err(|reason| refused(id, reason))?;
    free_name(work, terms)?;
    // Links of a key's own making would cost many checks each: first whether it is the one that holds.
    let SignedReservation { user, farmer, .. } = &announcement.reservation;
    for (party, signature) in
        [(&terms.user, user), (&terms.farmer, farmer), (&terms.farmer, &announcement.approval)]
    {
        present_signer(work, party, signature)?;
    }
    announcement.verify(&work.ctx().chain).map_err(|bad| match bad {
        BadAnnouncement::OtherTerms => refused(id, ReservationRefusal::OtherTerms),
        BadAnnouncement::Signature(bad) => Rejection::Unsigned { party: bad.key }.into(),
    })?;

    count_in(work, id, &terms.user, &terms.farmer)?;
    take_room(work, terms, id)?;
    let mut on_node = work.node_reservations(&terms.node)?;
    let at = on_node.contracts.partition_point(|other| *other < id);
    on_node.contracts.insert(at, id);
    work.put(StateKey::NodeReservations(terms.node), &on_node);
    wait_for_expiry(work, id, held.expires_ms)?;
    work.debit(&terms.user, held.fee)?;
    work.put(StateKey::HeldFee(id), &held.fee);
    let body = ReservationBody {
        signed: announcement.reservation.clone(),
        ports: terms.ports.clone(),
        approval: announcement.approval.clone(),
        announced_ms: work.now_ms(),
        state: ReservationState::Held,
    };
    change(work, author, body, ReservationState::Held)
}

/// Puts a reservation into the slot in which it expires.
fn wait_for_expiry(work: &mut Work<'_>, id: ContractId, expires_ms: u64) -> Step {
    let slot = slot_of(expires_ms);
    let key = StateKey::ReservationSlot(slot);
    let mut waiting: ReservationSlot = work.read(&key)?.unwrap_or_default();
    if waiting.contracts.len() >= limits::RESERVATIONS_PER_SLOT {
        let limit = limits::RESERVATIONS_PER_SLOT as u64;
        return Err(refused(id, ReservationRefusal::TooManyAtOnce { limit }));
    }
    waiting.contracts.push(id);
    work.put(key, &waiting);
    let mut queue: ReservationQueue = work.read(&StateKey::ReservationQueue)?.unwrap_or_default();
    if queue.waiting == 0 {
        queue.next_slot = slot_of(work.now_ms());
    }
    queue.waiting = queue.waiting.checked_add(1).ok_or(Rejection::Overflow)?;
    work.put(StateKey::ReservationQueue, &queue);
    Ok(())
}

fn count_in(work: &mut Work<'_>, id: ContractId, user: &BotId, farmer: &BotId) -> Step {
    let mut of_user = work.open_reservations(user)?;
    if of_user.as_user >= limits::RESERVATIONS_PER_USER {
        let limit = u64::from(limits::RESERVATIONS_PER_USER);
        return Err(refused(id, ReservationRefusal::TooManyOfUser { user: *user, limit }));
    }
    of_user.as_user += 1;
    put_open(work, user, of_user);
    let mut of_farmer = work.open_reservations(farmer)?;
    if of_farmer.as_farmer >= limits::RESERVATIONS_PER_FARMER {
        let limit = u64::from(limits::RESERVATIONS_PER_FARMER);
        return Err(refused(id, ReservationRefusal::TooManyOfFarmer { farmer: *farmer, limit }));
    }
    of_farmer.as_farmer += 1;
    put_open(work, farmer, of_farmer);
    Ok(())
}

fn count_out(work: &mut Work<'_>, user: &BotId, farmer: &BotId) -> Step {
    let below = || StateError::broken("open reservations are counted in before they are counted out");
    let mut of_user = work.open_reservations(user)?;
    of_user.as_user = of_user.as_user.checked_sub(1).ok_or_else(below)?;
    put_open(work, user, of_user);
    let mut of_farmer = work.open_reservations(farmer)?;
    of_farmer.as_farmer = of_farmer.as_farmer.checked_sub(1).ok_or_else(below)?;
    put_open(work, farmer, of_farmer);
    Ok(())
}

fn put_open(work: &mut Work<'_>, bot: &BotId, open: OpenReservations) {
    let key = StateKey::OpenReservations(*bot);
    if open == OpenReservations::default() {
        work.remove(key);
    } else {
        work.put(key, &open);
    }
}

/// Gives back what a reservation holds of its node, if it still does.
fn free(work: &mut Work<'_>, body: &ReservationBody) -> Step {
    let held = &body.signed.reservation;
    let mut on_node = work.node_reservations(&held.node)?;
    let Ok(at) = on_node.contracts.binary_search(&held.contract) else { return Ok(()) };
    on_node.contracts.remove(at);
    let key = StateKey::NodeReservations(held.node);
    if on_node.contracts.is_empty() {
        work.remove(key);
    } else {
        work.put(key, &on_node);
    }
    count_out(work, &held.user, &held.farmer)?;
    free_room(work, held.node, &body.ports, &held.resources, held.contract)
}

/// The fee leaves the escrow; nobody has it yet.
fn take_fee(work: &mut Work<'_>, id: ContractId) -> Step<Grains> {
    let key = StateKey::HeldFee(id);
    let fee = work.read(&key)?.ok_or_else(|| StateError::corrupt(&key, "a reservation has no fee"))?;
    work.remove(key);
    Ok(fee)
}

fn pay_fee(work: &mut Work<'_>, id: ContractId, to: &BotId) -> Step {
    let amount = take_fee(work, id)?;
    if amount > Grains::ZERO {
        work.credit(to, amount)?;
    }
    work.event(Event::Fee { contract: id, to: *to, amount });
    Ok(())
}

fn change(work: &mut Work<'_>, author: PublicKey, mut body: ReservationBody, to: ReservationState) -> Step {
    let id = body.signed.reservation.contract;
    body.state = to;
    work.append(RecordId::reservation(&id), Body::Reservation(Box::new(body)), author)
}

/// Makes room for the contract that a reservation was for, and gives its fee back. What is returned becomes the
/// reservation's last version when the contract has its first one ([`used`]).
pub(super) fn use_up(work: &mut Work<'_>, id: ContractId) -> Step<Option<ReservationBody>> {
    let Some(body) = work.reservation(&id)?.filter(|body| body.state == ReservationState::Held) else {
        return Ok(None);
    };
    free(work, &body)?;
    pay_fee(work, id, &body.signed.reservation.user)?;
    Ok(Some(body))
}

pub(super) fn used(work: &mut Work<'_>, author: PublicKey, body: Option<ReservationBody>) -> Step {
    body.map_or(Ok(()), |body| change(work, author, body, ReservationState::Used))
}

/// Pays the fee of a reservation that nobody used.
pub(super) fn claim(work: &mut Work<'_>, author: PublicKey, id: &ContractId) -> Step {
    known_bot(work, &author)?;
    let Some(body) = work.reservation(id)? else {
        return Err(refused(*id, ReservationRefusal::NotAnnounced));
    };
    let to = body.claim(&author, work.now_ms()).map_err(|reason| refused(*id, reason))?;
    free(work, &body)?;
    let held = &body.signed.reservation;
    let payee = if to == ReservationState::Claimed { held.farmer } else { held.user };
    pay_fee(work, *id, &payee)?;
    change(work, author, body, to)
}

/// A node that has less than what is sold and held of it can't keep its reservations: they end, one by one until what
/// is left fits, and cost nothing.
pub(super) fn withdraw(work: &mut Work<'_>, node: NodeId) -> Step {
    for id in work.node_reservations(&node)?.contracts {
        let books = work.capacity(&node)?.unwrap_or_default();
        if books.total.covers(&books.used) {
            return Ok(());
        }
        let body = held(work, id)?;
        free(work, &body)?;
        pay_fee(work, id, &body.signed.reservation.user)?;
        change(work, node, body, ReservationState::Withdrawn)?;
    }
    Ok(())
}

fn held(work: &Work<'_>, id: ContractId) -> Step<ReservationBody> {
    let body = work.reservation(&id)?;
    Ok(body.ok_or_else(|| {
        let key = StateKey::Record(RecordId::reservation(&id));
        StateError::corrupt(&key, format_args!("every {:?} that is held has one", Kind::Reservation))
    })?)
}

/// Frees what expired before this block. Of the block, not of any command: it makes no record.
pub(crate) fn expire(work: &mut Work<'_>) -> Step {
    let Some(before) = work.read::<ReservationQueue>(&StateKey::ReservationQueue)? else { return Ok(()) };
    let (mut queue, now_slot) = (before, slot_of(work.now_ms()));
    let (mut slots, mut freed) = (0, 0);
    while queue.waiting > 0
        && queue.next_slot < now_slot
        && slots < SLOTS_PER_BLOCK
        && freed < FREED_PER_BLOCK
    {
        let key = StateKey::ReservationSlot(queue.next_slot);
        if let Some(slot) = work.read::<ReservationSlot>(&key)? {
            for id in &slot.contracts {
                let body = held(work, *id)?;
                free(work, &body)?;
            }
            freed += slot.contracts.len();
            let gone = slot.contracts.len() as u64;
            queue.waiting = queue
                .waiting
                .checked_sub(gone)
                .ok_or_else(|| StateError::broken("what waits for its expiry is counted"))?;
            work.remove(key);
        }
        queue.next_slot += 1;
        slots += 1;
    }
    if queue.waiting == 0 {
        work.remove(StateKey::ReservationQueue);
    } else if queue != before {
        work.put(StateKey::ReservationQueue, &queue);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
