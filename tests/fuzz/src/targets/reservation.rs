//! What is announced of reservations, and what the ledger keeps of them.

use croft_protocol::reservation::{
    NodeReservations, OpenReservations, ReservationQueue, ReservationSlot, slot_of,
};
use croft_protocol::{
    Announcement, Body, Command, Grains, Record, RecordId, Rejection, ReservationBody, ReservationState,
    SignedCommand, limits,
};

use crate::check::{bounded, bounded_message, canonical};
use crate::scene::{encoded, scene, signed};
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[Target {
    name: "reservation",
    decodes: "an announced reservation, what the ledger keeps of it, and why it is refused",
    sent_by: "anybody",
    files: &["agents/protocol/src/reservation.rs"],
    seeds,
    rounds: 1_500,
    run: reservation,
}];

fn announcement() -> Announcement {
    let scenario = &scene().scenario;
    scenario.announcement(scenario.terms("reserved"), Grains(5))
}

fn body() -> ReservationBody {
    let Announcement { reservation, terms, approval } = announcement();
    let (ports, announced_ms, state) = (terms.ports, 7, ReservationState::Held);
    ReservationBody { signed: reservation, ports, approval, announced_ms, state }
}

fn seeds() -> Vec<Seed> {
    let contract = announcement().terms.id();
    let reason = croft_protocol::ReservationRefusal::NotYet { expires_ms: 2, now_ms: 1 };
    let user = scene().scenario.user.public();
    let record = Record {
        id: RecordId::reservation(&contract),
        version: 1,
        prev: None,
        body: Body::Reservation(Box::new(body())),
        author: user,
        height: 1,
        time_ms: 2,
    };
    vec![
        encoded("announcement", &announcement()),
        encoded("announce", &signed(Command::AnnounceReservation(Box::new(announcement())))),
        encoded("claim", &signed(Command::ClaimReservation { contract })),
        encoded("body", &body()),
        encoded("record", &record),
        encoded("refusal", &Rejection::Reservation { contract, reason }),
        encoded("of-node", &NodeReservations { contracts: vec![contract] }),
        encoded("open", &OpenReservations { as_user: 1, as_farmer: 2 }),
        encoded("queue", &ReservationQueue { next_slot: 1, waiting: 2 }),
        encoded("slot", &ReservationSlot { contracts: vec![contract] }),
    ]
}

/// Nothing is believed that both did not sign, and no fee is due before its time.
fn reservation(bytes: &[u8]) {
    let chain = scene().scenario.ledger.chain();
    if let Some(it) = canonical::<Announcement>("announcement", limits::COMMAND_BYTES, bytes) {
        match bounded("announcement", bytes.len(), || it.verify(&chain)) {
            Ok(()) => assert_eq!(it, announcement(), "an altered announcement has good signatures"),
            Err(bad) => bounded_message("announcement", &bad.to_string()),
        }
        let expires_ms = it.reservation.reservation.expires_ms;
        if let Err(refusal) = it.check_time(expires_ms) {
            bounded_message("announcement", &refusal.to_string());
        }
    }
    if let Some(it) = canonical::<ReservationBody>("reservation", limits::RECORD_BYTES, bytes) {
        let held = &it.signed.reservation;
        assert!(it.claim(&held.farmer, held.expires_ms).is_err(), "a fee is due before the expiry");
        assert!(slot_of(held.expires_ms) <= held.expires_ms);
    }
    if let Some(Rejection::Reservation { reason, .. }) =
        canonical::<Rejection>("rejection", limits::RESPONSE_BYTES, bytes)
    {
        bounded_message("refusal", &reason.to_string());
    }
    drop(canonical::<SignedCommand>("command", limits::COMMAND_BYTES, bytes));
    drop(canonical::<Record>("record", limits::RECORD_BYTES, bytes));
    drop(canonical::<NodeReservations>("reservations of a node", limits::RECORD_BYTES, bytes));
    drop(canonical::<ReservationSlot>("reservations of a slot", limits::RECORD_BYTES, bytes));
    let _ = canonical::<OpenReservations>("open reservations", limits::RECORD_BYTES, bytes);
    let _ = canonical::<ReservationQueue>("queue of reservations", limits::RECORD_BYTES, bytes);
}
