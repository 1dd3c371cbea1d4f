//! Reservations: who pays for what is held and not used, and that nothing is held for ever.

use croft_protocol::contract::{PublishedPort, Transport};
use croft_protocol::market::{CLAIM_MS, NOTICE_MS, RESERVATION_MS};
use croft_protocol::{Capacity, Command, SecretKey, Terms};

use super::*;
use crate::memory::{ALLOWANCE, Scenario};

const FEE: Grains = Grains(700);
const HOLD_MS: u64 = 60_000;

fn terms(scenario: &Scenario) -> Terms {
    Terms {
        ports: vec![PublishedPort { transport: Transport::Tcp, port: 80 }],
        expires_ms: scenario.now_ms() + HOLD_MS,
        ..scenario.terms("web")
    }
}

fn reserved() -> (Scenario, Terms, ContractId) {
    let mut scenario = Scenario::new();
    let terms = terms(&scenario);
    let id = scenario.reserve(terms.clone(), FEE).unwrap();
    (scenario, terms, id)
}

fn announce(scenario: &mut Scenario, change: impl FnOnce(&mut Terms)) -> Result<ContractId, Rejection> {
    let mut terms = terms(scenario);
    change(&mut terms);
    scenario.reserve(terms, FEE)
}

fn state(scenario: &Scenario, id: &ContractId) -> ReservationState {
    scenario.ledger.reservation(id).unwrap().unwrap().state
}

fn claim_at(
    scenario: &mut Scenario,
    at_ms: u64,
    by: &SecretKey,
    contract: ContractId,
) -> Result<(), Rejection> {
    scenario.ledger.submit_at(at_ms, by, Command::ClaimReservation { contract }).map(drop)
}

fn nothing(scenario: &mut Scenario, at_ms: u64) {
    scenario.ledger.commit(at_ms, &[]);
}

#[test]
fn an_announcement_holds_capacity_and_ports_and_escrows_the_fee() {
    let mut scenario = Scenario::new();
    let free = scenario.free();
    let terms = terms(&scenario);
    let id = scenario.reserve(terms.clone(), FEE).unwrap();
    assert_eq!(Some(scenario.free()), free.checked_sub(&terms.resources));
    assert_eq!(scenario.balance(&scenario.user), Grains(ALLOWANCE.0 - FEE.0));
    assert_eq!(scenario.balance(&scenario.farmer), ALLOWANCE);
    let body = scenario.ledger.reservation(&id).unwrap().unwrap();
    assert_eq!((body.state, body.announced_ms), (ReservationState::Held, scenario.now_ms()));
    let refused = announce(&mut scenario, |terms| terms.nonce = [9; 16]).unwrap_err();
    assert!(refused.to_string().contains("port 80/tcp"), "the port is promised once: {refused}");
    let other = Capacity { cpu_millis: 7500, memory_bytes: 1, ..Capacity::default() };
    let mut large = scenario.terms("large");
    (large.resources, large.capacity_version) = (other, 2);
    let refused = scenario.agree(large).unwrap_err();
    assert!(matches!(refused, Rejection::Capacity { .. }), "what is held is sold to nobody else: {refused}");
}

#[test]
fn a_reservation_that_is_used_costs_nothing_and_can_be_used_with_the_last_grain() {
    let (mut scenario, terms, id) = reserved();
    let (user, other) = (scenario.user.clone(), scenario.other.public());
    // All but the price, which the fee is a part of.
    let amount = Grains(ALLOWANCE.0 - 10_000);
    let memo = String::new();
    scenario.ledger.submit(&user, Command::Transfer { to: other, amount, memo }).unwrap();
    scenario.agree(terms).unwrap();
    assert_eq!(scenario.balance(&scenario.user), Grains::ZERO);
    assert_eq!(scenario.escrow(&id).deposit, Grains(10_000));
    assert_eq!(state(&scenario, &id), ReservationState::Used);
    let farmer = scenario.farmer.clone();
    let late = scenario.now_ms() + 2 * HOLD_MS;
    let refused = claim_at(&mut scenario, late, &farmer, id).unwrap_err().to_string();
    let text = format!("the reservation for contract {id} is refused: its contract was agreed on: ");
    assert_eq!(refused, text + "a reservation that was used costs nothing");
}

#[test]
fn capacity_frees_itself_at_the_expiry_without_any_command() {
    let (mut scenario, terms, id) = reserved();
    let free = scenario.free().checked_add(&terms.resources).unwrap();
    nothing(&mut scenario, terms.expires_ms);
    assert_ne!(scenario.free(), free, "it is good until it expires");
    nothing(&mut scenario, terms.expires_ms + limits::RESERVATION_SLOT_MS);
    assert_eq!(scenario.free(), free);
    let again = Terms { nonce: [9; 16], expires_ms: scenario.now_ms() + HOLD_MS, ..terms };
    assert!(scenario.reserve(again, FEE).is_ok(), "the port is free too");
    assert_eq!(state(&scenario, &id), ReservationState::Held, "the fee waits for whoever it is due to");
}

#[test]
fn the_farmer_claims_the_fee_once_after_the_expiry_and_nobody_else_does() {
    let (mut scenario, terms, id) = reserved();
    let (user, farmer, other) = (scenario.user.clone(), scenario.farmer.clone(), scenario.other.clone());
    let early = claim_at(&mut scenario, terms.expires_ms, &farmer, id).unwrap_err().to_string();
    let at = terms.expires_ms;
    assert!(early.ends_with(&format!("it is good until {at} ms, it is {at} ms: claim the fee after that")));
    for by in [&user, &other] {
        let at_ms = scenario.now_ms() + 1;
        let refused = claim_at(&mut scenario, at_ms, by, id).unwrap_err().to_string();
        assert!(refused.contains(&format!("only farmer {} may claim its fee", farmer.public())), "{refused}");
    }
    let at_ms = scenario.now_ms() + 1;
    claim_at(&mut scenario, at_ms, &farmer, id).unwrap();
    assert_eq!(scenario.balance(&farmer), Grains(ALLOWANCE.0 + FEE.0));
    assert_eq!(state(&scenario, &id), ReservationState::Claimed);
    let twice = claim_at(&mut scenario, at_ms + 1, &farmer, id).unwrap_err().to_string();
    assert!(twice.ends_with("its fee was claimed already"), "{twice}");
    let agreed = scenario.agree(terms).unwrap_err();
    assert!(matches!(agreed, Rejection::TermsExpired { .. }), "{agreed}");
}

#[test]
fn a_fee_that_nobody_claims_within_a_day_goes_back_whoever_asks() {
    let (mut scenario, terms, id) = reserved();
    let (farmer, other) = (scenario.farmer.clone(), scenario.other.clone());
    claim_at(&mut scenario, terms.expires_ms + CLAIM_MS + 1, &other, id).unwrap();
    assert_eq!(scenario.balance(&scenario.user), ALLOWANCE);
    assert_eq!(state(&scenario, &id), ReservationState::Lapsed);
    let at_ms = scenario.now_ms() + 1;
    let late = claim_at(&mut scenario, at_ms, &farmer, id).unwrap_err().to_string();
    assert!(late.ends_with("its fee was not claimed in time and went back to its user"), "{late}");
}

#[test]
fn a_claim_for_what_was_never_announced_is_refused() {
    let mut scenario = Scenario::new();
    let (farmer, id) = (scenario.farmer.clone(), terms(&scenario).id());
    let at_ms = scenario.now_ms() + 1;
    let refused = claim_at(&mut scenario, at_ms, &farmer, id).unwrap_err().to_string();
    assert!(refused.ends_with("it was never announced: no fee is due"), "{refused}");
}

#[test]
fn an_approval_that_its_user_could_not_find_in_time_is_not_announced() {
    let mut scenario = Scenario::new();
    // The block comes one millisecond later.
    let late = announce(&mut scenario, |terms| terms.expires_ms = terms.expires_ms - HOLD_MS + NOTICE_MS);
    let late = late.unwrap_err().to_string();
    assert!(late.ends_with("needs 15000 ms to find it: it stays unannounced, and no fee is due"), "{late}");
    assert_eq!(scenario.balance(&scenario.user), ALLOWANCE);
    let most = RESERVATION_MS + limits::CLOCK_SLACK_MS;
    let long = announce(&mut scenario, |terms| terms.expires_ms = terms.expires_ms - HOLD_MS + most + 2)
        .unwrap_err();
    assert!(long.to_string().ends_with("at most 660000 are allowed: let it expire sooner"), "{long}");
    assert!(
        announce(&mut scenario, |terms| terms.expires_ms = terms.expires_ms - HOLD_MS + NOTICE_MS + 1)
            .is_ok()
    );
}

#[test]
fn only_what_both_signed_is_announced_and_only_by_the_farmer() {
    let mut scenario = Scenario::new();
    let (user, farmer) = (scenario.user.clone(), scenario.farmer.clone());
    let good = scenario.announcement(terms(&scenario), FEE);
    let refused = |scenario: &mut Scenario, by: &SecretKey, announcement: &Announcement| {
        let command = Command::AnnounceReservation(Box::new(announcement.clone()));
        scenario.ledger.submit(by, command).unwrap_err().to_string()
    };
    let text = refused(&mut scenario, &user, &good);
    assert!(text.starts_with("only the farmer of the reservation may do this"), "{text}");
    let mut other = good.clone();
    other.terms.nonce = [8; 16];
    let text = refused(&mut scenario, &farmer, &other);
    assert!(text.contains("it is not that of the terms that came with it"), "{text}");
    let mut dearer = good.clone();
    dearer.reservation.reservation.fee = Grains(FEE.0 + 1);
    let text = refused(&mut scenario, &farmer, &dearer);
    assert_eq!(text, format!("the contract is not signed by {}", user.public()));
    let mut without = good.clone();
    without.approval = good.reservation.farmer.clone();
    let text = refused(&mut scenario, &farmer, &without);
    assert_eq!(text, format!("the contract is not signed by {}", farmer.public()));
    let poor = scenario.announcement(terms(&scenario), Grains(ALLOWANCE.0 + 1));
    let text = refused(&mut scenario, &farmer, &poor);
    assert!(text.contains("are needed: top up the wallet"), "{text}");
    let command = Command::AnnounceReservation(Box::new(good.clone()));
    scenario.ledger.submit(&farmer, command).unwrap();
    let text = refused(&mut scenario, &farmer, &good);
    assert!(text.ends_with("it was announced already"), "{text}");
}

#[test]
fn what_was_agreed_on_is_not_announced_any_more() {
    let mut scenario = Scenario::new();
    let terms = terms(&scenario);
    let id = scenario.agree(terms.clone()).unwrap();
    assert_eq!(scenario.reserve(terms, FEE), Err(Rejection::Duplicate { contract: id }));
}

#[test]
fn a_hoarder_can_hold_so_much_and_no_more() {
    let mut scenario = Scenario::new();
    let mut hold = |n: u32| {
        announce(&mut scenario, |terms| {
            terms.nonce = [u8::try_from(n).unwrap(); 16];
            terms.ports = Vec::new();
            terms.resources = Capacity { cpu_millis: 1, memory_bytes: 1, ..Capacity::default() };
        })
    };
    for n in 0..limits::RESERVATIONS_PER_USER {
        hold(n).unwrap();
    }
    let refused = hold(200).unwrap_err().to_string();
    assert!(refused.ends_with("16 reservations open, which is all that one bot may have: use them, or wait"));
    let until_ms = scenario.now_ms() + HOLD_MS + limits::RESERVATION_SLOT_MS;
    nothing(&mut scenario, until_ms);
    assert_eq!(
        scenario.ledger.open_reservations(&scenario.user.public()).unwrap(),
        OpenReservations::default()
    );
    assert!(announce(&mut scenario, |_| {}).is_ok());
}

#[test]
fn a_farmer_whose_node_shrinks_gets_no_fee_for_what_can_not_be_used() {
    let (mut scenario, terms, id) = reserved();
    let (node, farmer) = (scenario.node.clone(), scenario.farmer.clone());
    let mut body = scenario.node_body();
    body.capacity.cpu_millis = 500;
    let register = Command::RegisterNode { node: body, join: None, attestation: None };
    scenario.ledger.submit(&node, register).unwrap();
    assert_eq!(state(&scenario, &id), ReservationState::Withdrawn);
    assert_eq!(scenario.balance(&scenario.user), ALLOWANCE);
    let refused = scenario.agree(terms.clone()).unwrap_err();
    assert!(matches!(refused, Rejection::Stale { .. }), "{refused}");
    let refused = claim_at(&mut scenario, terms.expires_ms + 1, &farmer, id).unwrap_err().to_string();
    assert!(refused.ends_with("its node no longer had what was held: no fee is due"), "{refused}");
}

#[test]
fn after_a_long_sleep_of_the_ledger_everything_is_free_again() {
    let mut scenario = Scenario::new();
    let free = scenario.free();
    for n in 0..8 {
        let hold_ms = 20_000 + 90_000 * u64::from(n);
        let reserved = announce(&mut scenario, |terms| {
            terms.nonce = [n; 16];
            terms.ports = Vec::new();
            terms.expires_ms = terms.expires_ms - HOLD_MS + hold_ms.min(RESERVATION_MS);
            terms.resources = Capacity { cpu_millis: 500, memory_bytes: 1, ..Capacity::default() };
        });
        reserved.unwrap();
    }
    let year_ms = 365 * 86_400_000;
    let at_ms = scenario.now_ms() + year_ms;
    nothing(&mut scenario, at_ms);
    assert_eq!(scenario.free(), free, "all slots that can hold something are gone through at once");
    assert_eq!(scenario.ledger.read::<ReservationQueue>(&StateKey::ReservationQueue).unwrap(), None);
}

#[test]
fn each_put_in_fault_breaks_an_invariant() {
    let (scenario, terms, id) = reserved();
    let (node, user) = (terms.node, terms.user);
    let faults: [(&str, StateKey, Option<Vec<u8>>); 7] = [
        ("a lost fee", StateKey::HeldFee(id), None),
        ("another fee", StateKey::HeldFee(id), Some(croft_protocol::encode(&Grains(FEE.0 + 1)))),
        ("nothing held", StateKey::NodeReservations(node), None),
        ("not counted", StateKey::OpenReservations(user), None),
        ("never freed", StateKey::ReservationSlot(slot_of(terms.expires_ms)), None),
        ("never looked for", StateKey::ReservationQueue, None),
        ("its port is free", StateKey::Port(node, terms.ports[0]), None),
    ];
    for (what, key, value) in faults {
        let mut state = scenario.ledger.state().clone();
        assert!(state.contains_key(&key), "{what}");
        match value {
            Some(value) => drop(state.insert(key, value)),
            None => drop(state.remove(&key)),
        }
        let pairs = state.iter().map(|(key, value)| (key, value.as_slice()));
        assert!(crate::check_invariants(pairs).is_err(), "{what} goes unseen");
    }
}
