use croft_protocol::contract::{Quorum, Transport};
use croft_protocol::market::{Demand, RESERVATION};

use super::*;
use crate::testing::{CHAIN, NOW, answer, books, cpus, demand, desk, farm, name, node, party, refusal, tell};

fn policy() -> Policy {
    Policy { floor_percent: 70, ..Policy::default() }
}

/// A buyer that says what the test wants.
struct Hand {
    party: Party,
    talk: Conversation,
}

impl Hand {
    fn new(buyer: u8, change: impl FnOnce(&mut Demand)) -> Self {
        let party = party(buyer);
        let mut demand = Demand { node: node(2), ..demand(&party, &crate::testing::party(2)) };
        change(&mut demand);
        let talk = Conversation::open(&party, demand, NOW + 60_000).unwrap();
        Self { party, talk }
    }

    fn first(&self, desk: &mut Desk) -> Vec<DeskOutput> {
        tell(desk, self.talk.transcript().last(), NOW)
    }

    fn say(&mut self, desk: &mut Desk, said: Said) -> Vec<DeskOutput> {
        let message = self.talk.say(&self.party, said, NOW + 50_000).unwrap();
        tell(desk, &message, NOW)
    }

    fn hear(&mut self, outputs: &[DeskOutput]) -> Said {
        let message = answer(outputs).expect("the desk answers");
        self.talk.hear(&CHAIN, message.clone(), NOW).unwrap();
        message.message.said
    }

    fn proposal(&self, called: &str) -> Said {
        let demand = self.talk.transcript().demand().clone();
        let quote = self.talk.transcript().quote().unwrap();
        let terms = Terms {
            name: name(called),
            user: demand.buyer,
            farmer: demand.farmer,
            farm: demand.farm,
            node: demand.node,
            resources: demand.resources,
            ports: demand.ports,
            rate: quote.rate,
            duration_s: demand.duration_s,
            grace_s: demand.grace_s,
            prepaid_s: demand.prepaid_s,
            capacity_version: quote.capacity_version,
            quorum: Quorum::default(),
            sealed: vec![1],
            expires_ms: NOW + 60_000,
            nonce: [1; 16],
        };
        let reservation = Reservation::of(self.talk.transcript().id(), &terms, quote.hold_fee);
        let user = self.party.key.sign_as_bot(RESERVATION, &CHAIN, &reservation);
        Said::Propose { terms: Box::new(terms), fee: quote.hold_fee, user }
    }
}

fn reason(said: &Said) -> (bool, Reason) {
    match said {
        Said::Reject { last, reason } => (*last, reason.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_price_is_found_and_what_is_approved_is_written_first() {
    let mut desk = desk(2, policy());
    let mut hand = Hand::new(1, |_| {});
    let Said::Offer(offer) = hand.hear(&hand.first(&mut desk)) else { panic!() };
    assert_eq!((offer.rate, offer.capacity_version), (Rate(10), 5));
    let low = Quote { rate: Rate(1), capacity_version: 0, ..offer };
    let out = hand.say(&mut desk, Said::Counter(low));
    let Said::Counter(second) = hand.hear(&out) else { panic!() };
    assert_eq!(second.rate, Rate(9));
    let out = hand.say(&mut desk, Said::Counter(Quote { rate: Rate(8), ..low }));
    let Said::Counter(third) = hand.hear(&out) else { panic!() };
    assert_eq!(third.rate, Rate(8), "the same price again accepts it");
    let propose = hand.proposal("web");
    let out = hand.say(&mut desk, propose);
    assert!(matches!(&out[0], DeskOutput::Write(entry) if matches!(**entry, DeskEntry::Held(_))), "{out:?}");
    assert!(matches!(hand.hear(&out), Said::Approve { .. }));
    let reservation = hand.talk.transcript().reservation().unwrap();
    assert_eq!(reservation.verify(&CHAIN), Ok(()));
    assert_eq!(desk.reservations(), [&reservation]);
}

use croft_protocol::Rate;

#[test]
fn a_price_below_the_reserve_is_never_accepted_and_the_last_offer_stands() {
    let mut desk = desk(2, policy());
    let mut hand = Hand::new(1, |_| {});
    let Said::Offer(offer) = hand.hear(&hand.first(&mut desk)) else { panic!() };
    let mut seen = vec![offer.rate.0];
    loop {
        let out = hand.say(&mut desk, Said::Counter(Quote { rate: Rate(1), capacity_version: 0, ..offer }));
        match hand.hear(&out) {
            Said::Counter(quote) => seen.push(quote.rate.0),
            other => {
                assert_eq!(reason(&other), (false, Reason::PriceTooLow));
                break;
            }
        }
    }
    assert_eq!(seen, [10, 9, 8]);
    let propose = hand.proposal("web");
    let out = hand.say(&mut desk, propose);
    assert!(matches!(hand.hear(&out), Said::Approve { .. }));
}

#[test]
fn capacity_and_ports_are_promised_once() {
    let mut desk = desk(2, policy());
    let port = PublishedPort { transport: Transport::Tcp, port: 80 };
    let mut hands: Vec<Hand> = [10, 11]
        .map(|n| Hand::new(n, |demand| (demand.resources, demand.ports) = (cpus(1), vec![port])))
        .into();
    for hand in &mut hands {
        assert!(matches!(hand.hear(&hand.first(&mut desk)), Said::Offer(_)));
    }
    let propose = hands[0].proposal("web");
    let out = hands[0].say(&mut desk, propose);
    assert!(matches!(hands[0].hear(&out), Said::Approve { .. }));
    let propose = hands[1].proposal("web");
    let out = hands[1].say(&mut desk, propose);
    assert_eq!(reason(&hands[1].hear(&out)), (false, Reason::PortTaken { port }));
    let mut large = Hand::new(12, |demand| demand.resources = cpus(4));
    assert_eq!(reason(&large.hear(&large.first(&mut desk))), (true, Reason::NoRoom));
}

/// Another key of a bot, of which no ledger was told.
fn later(key: &croft_protocol::SecretKey) -> croft_protocol::SecretKey {
    let new = party(99).key;
    let link = croft_protocol::identity::Link::sign(key, &new, &CHAIN);
    new.of_bot(key.id(), vec![link], &CHAIN).unwrap()
}

#[test]
fn a_port_is_promised_once_whatever_the_books_say_of_it() {
    let mut desk = desk(2, policy());
    let port = PublishedPort { transport: Transport::Tcp, port: 80 };
    let mut hands: Vec<Hand> = [10, 11]
        .map(|n| Hand::new(n, |demand| (demand.resources, demand.ports) = (cpus(1), vec![port])))
        .into();
    for hand in &mut hands {
        hand.hear(&hand.first(&mut desk));
    }
    let propose = hands[0].proposal("web");
    let out = hands[0].say(&mut desk, propose);
    assert!(matches!(hands[0].hear(&out), Said::Approve { .. }));
    // Its reservation is on the ledger, as books say that were read for another port.
    let contract = desk.reservations()[0].reservation.contract;
    let known = croft_protocol::NodeCapacity { used: cpus(1), ..books(&party(2), cpus(4)).capacity };
    let seen = Books { capacity: known, reserved: [contract].into(), ..books(&party(2), cpus(4)) };
    let _ = desk.handle(DeskEvent::Books { node: node(2), books: Some(Box::new(seen)) }, NOW);
    let propose = hands[1].proposal("web");
    let out = hands[1].say(&mut desk, propose);
    assert_eq!(reason(&hands[1].hear(&out)), (false, Reason::PortTaken { port }));
}

#[test]
fn nothing_is_held_that_is_over_before_it_can_be_announced() {
    for (left_ms, is_held) in [(HOLD_LEAST_MS - 1, false), (HOLD_LEAST_MS, true)] {
        let mut desk = desk(2, policy());
        let mut hand = Hand::new(1, |_| {});
        hand.hear(&hand.first(&mut desk));
        let Said::Propose { mut terms, fee, .. } = hand.proposal("web") else { panic!() };
        terms.expires_ms = NOW + left_ms;
        let user = hand.party.key.sign_as_bot(
            RESERVATION,
            &CHAIN,
            &Reservation::of(hand.talk.transcript().id(), &terms, fee),
        );
        let message = hand.talk.say(&hand.party, Said::Propose { terms, fee, user }, NOW + 20_000).unwrap();
        let out = tell(&mut desk, &message, NOW);
        let said = hand.hear(&out);
        if !is_held {
            assert_eq!(reason(&said), (false, Reason::NotAsQuoted));
            continue;
        }
        assert!(matches!(said, Said::Approve { .. }), "{said:?}");
        // Whoever wakes late, by a try's time, still finds the time for it.
        let wake_ms = desk.next_wake_ms().unwrap();
        let late = desk.handle(DeskEvent::Tick, wake_ms + ANNOUNCE_AGAIN_MS);
        assert_eq!(steps(&late), ["announcing", "announce"]);
    }
}

#[test]
fn what_a_users_other_reservations_keep_out_is_announced_again() {
    let (mut desk, contract, _) = approved();
    let user = party(1).id();
    let crowded = [
        refused(contract, ReservationRefusal::TooManyOfUser { user, limit: 16 }),
        Err(Rejection::Funds { bot: user, have: Grains(0), need: Grains(1) }),
    ];
    for (n, result) in crowded.into_iter().enumerate() {
        let now_ms = NOW + 30_000 + 5_000 * n as u64;
        assert!(steps(&desk.handle(DeskEvent::Tick, now_ms)).ends_with(&["announce"]));
        assert!(desk.handle(DeskEvent::Announced { contract, result }, now_ms).is_empty());
    }
    assert_eq!(steps(&desk.handle(DeskEvent::Tick, NOW + 40_000)), ["announce"]);
}

#[test]
fn what_was_promised_stays_promised_over_a_restart() {
    let mut first = desk(2, policy());
    let mut hand = Hand::new(1, |demand| demand.resources = cpus(3));
    hand.hear(&hand.first(&mut first));
    let propose = hand.proposal("web");
    let out = hand.say(&mut first, propose);
    let entries: Vec<DeskEntry> = out
        .iter()
        .filter_map(|o| match o {
            DeskOutput::Write(entry) => Some(entry.as_ref().clone()),
            _ => None,
        })
        .collect();
    let mut again = Desk::recover(party(2), policy(), &entries, NOW).unwrap();
    let known = Some(Box::new(books(&party(2), cpus(4))));
    let _ = again.handle(DeskEvent::Books { node: node(2), books: known }, NOW);
    assert_eq!(again.reservations().len(), 1);
    let repeat = tell(&mut again, hand.talk.transcript().last(), NOW);
    assert_eq!(answer(&repeat), answer(&out), "the same approval, word for word");
    let mut other = Hand::new(3, |demand| demand.resources = cpus(2));
    assert_eq!(reason(&other.hear(&other.first(&mut again))), (true, Reason::NoRoom));
    let gone = again.handle(DeskEvent::Agreed { contract: entries_contract(&entries) }, NOW);
    assert!(matches!(&gone[0], DeskOutput::Write(entry) if matches!(**entry, DeskEntry::Freed(_))));
}

fn entries_contract(entries: &[DeskEntry]) -> ContractId {
    match &entries[0] {
        DeskEntry::Held(transcript) => transcript.proposal().unwrap().0.id(),
        DeskEntry::Freed(contract)
        | DeskEntry::Announcing(contract)
        | DeskEntry::Unused(contract)
        | DeskEntry::Settled(contract) => *contract,
    }
}

/// What is written, and what of it the ledger is asked.
fn steps(outputs: &[DeskOutput]) -> Vec<&'static str> {
    let step = |output: &DeskOutput| match output {
        DeskOutput::Write(entry) => match **entry {
            DeskEntry::Held(_) => "held",
            DeskEntry::Freed(_) => "freed",
            DeskEntry::Announcing(_) => "announcing",
            DeskEntry::Unused(_) => "unused",
            DeskEntry::Settled(_) => "settled",
        },
        DeskOutput::Announce(_) => "announce",
        DeskOutput::Claim(_) => "claim",
        _ => "other",
    };
    outputs.iter().map(step).collect()
}

fn entries(outputs: &[DeskOutput]) -> Vec<DeskEntry> {
    let entry = |output: &DeskOutput| match output {
        DeskOutput::Write(entry) => Some(entry.as_ref().clone()),
        _ => None,
    };
    outputs.iter().filter_map(entry).collect()
}

/// A desk that approved one proposal, and what it wrote.
fn approved() -> (Desk, ContractId, Vec<DeskEntry>) {
    let mut desk = desk(2, policy());
    let mut hand = Hand::new(1, |demand| demand.resources = cpus(3));
    hand.hear(&hand.first(&mut desk));
    let propose = hand.proposal("web");
    let out = hand.say(&mut desk, propose);
    let written = entries(&out);
    (desk, entries_contract(&written), written)
}

fn refused(contract: ContractId, reason: ReservationRefusal) -> Result<(), Rejection> {
    Err(Rejection::Reservation { contract, reason })
}

#[test]
fn what_has_no_answer_is_announced_and_claimed_again_until_there_is_one() {
    let (mut desk, contract, _) = approved();
    let tick = |desk: &mut Desk, after_ms| desk.handle(DeskEvent::Tick, NOW + after_ms);
    assert_eq!(steps(&tick(&mut desk, 30_000)), ["announcing", "announce"]);
    assert!(tick(&mut desk, 34_999).is_empty());
    assert_eq!(steps(&tick(&mut desk, 35_000)), ["announce"], "written once, said again");
    let busy = Err(Rejection::Busy { waiting: 9 });
    assert!(desk.handle(DeskEvent::Announced { contract, result: busy }, NOW + 36_000).is_empty());
    assert_eq!(steps(&tick(&mut desk, 40_000)), ["announce"]);
    let known = refused(contract, ReservationRefusal::Announced);
    assert!(desk.handle(DeskEvent::Announced { contract, result: known }, NOW + 41_000).is_empty());
    assert!(tick(&mut desk, 45_000).is_empty(), "the ledger has it");
    assert_eq!(steps(&tick(&mut desk, 70_001)), ["unused", "claim"]);
    assert!(tick(&mut desk, 130_000).is_empty());
    assert_eq!(steps(&tick(&mut desk, 130_001)), ["claim"]);
    let early = refused(contract, ReservationRefusal::NotYet { expires_ms: 2, now_ms: 1 });
    assert!(desk.handle(DeskEvent::Claimed { contract, result: early }, NOW + 131_000).is_empty());
    assert_eq!(steps(&tick(&mut desk, 136_000)), ["claim"], "the ledger's time is behind");
    let out = desk.handle(DeskEvent::Claimed { contract, result: Ok(()) }, NOW + 137_000);
    assert_eq!(steps(&out), ["settled"]);
    assert!(desk.claims().is_empty());
}

#[test]
fn an_announcement_that_comes_too_late_is_not_made_and_costs_nobody_anything() {
    let (mut desk, ..) = approved();
    assert!(desk.handle(DeskEvent::Tick, NOW + 45_001).is_empty());
    assert_eq!(steps(&desk.handle(DeskEvent::Tick, NOW + 70_001)), ["freed"]);
    let (mut desk, contract, _) = approved();
    let _ = desk.handle(DeskEvent::Tick, NOW + 30_000);
    let result = refused(contract, ReservationRefusal::TooLate { expires_ms: 1, now_ms: 2 });
    assert!(desk.handle(DeskEvent::Announced { contract, result }, NOW + 31_000).is_empty());
    assert_eq!(steps(&desk.handle(DeskEvent::Tick, NOW + 70_001)), ["freed"], "nothing to claim");
}

#[test]
fn a_fee_is_claimed_after_a_restart_at_any_step() {
    let (mut desk, contract, mut written) = approved();
    for (after_ms, next) in [(30_000, &["announce"][..]), (70_001, &["claim"])] {
        written.extend(entries(&desk.handle(DeskEvent::Tick, NOW + after_ms)));
        let mut again = Desk::recover(party(2), policy(), &written, NOW + after_ms).unwrap();
        let out = again.handle(DeskEvent::Tick, NOW + after_ms);
        assert_eq!(steps(&out), next, "asked again, written before");
    }
    let out = desk.handle(DeskEvent::Claimed { contract, result: Ok(()) }, NOW + 71_000);
    written.extend(entries(&out));
    let mut again = Desk::recover(party(2), policy(), &written, NOW + 72_000).unwrap();
    assert!(again.claims().is_empty() && again.reservations().is_empty());
    assert!(again.handle(DeskEvent::Tick, NOW + 200_000).is_empty());
}

#[test]
fn what_a_former_key_approved_is_not_promised_after_the_bot_starts_with_a_new_one() {
    let (mut desk, contract, written) = approved();
    let old = party(2).key;
    let next = croft_protocol::SecretKey::from_seed(&[77; 32]);
    let links = vec![croft_protocol::identity::Link::sign(&old, &next, &CHAIN)];
    let key = next.of_bot(old.public(), links, &CHAIN).unwrap();
    let changed = || Party { key: key.clone(), chain: CHAIN };
    let again = Desk::recover(changed(), policy(), &written, NOW).unwrap();
    assert!(again.reservations().is_empty(), "the ledger would refuse the approval");
    let same = Desk::recover(party(2), policy(), &written, NOW).unwrap();
    assert_eq!(same.reservations().len(), 1);

    // What was announced holds capacity on the ledger, whoever signs now.
    let mut written = written;
    written.extend(entries(&desk.handle(DeskEvent::Tick, NOW + 30_000)));
    let mut again = Desk::recover(changed(), policy(), &written, NOW + 30_000).unwrap();
    assert_eq!(again.reservations().len(), 1);
    let refusal = croft_protocol::KeyRefusal::Replaced { bot: old.public(), key: old.public(), height: 9 };
    let result = Err(Rejection::Key(refusal));
    assert!(again.handle(DeskEvent::Announced { contract, result }, NOW + 31_000).is_empty());
    assert_eq!(steps(&again.handle(DeskEvent::Tick, NOW + 70_001)), ["freed"], "no fee is due");
}

#[test]
fn what_the_ledger_reserves_is_counted_once() {
    let (mut desk, contract, _) = approved();
    let mut known = books(&party(2), cpus(4));
    known.capacity.used = cpus(3);
    known.reserved = [contract].into();
    let event = DeskEvent::Books { node: node(2), books: Some(Box::new(known)) };
    assert!(desk.handle(event, NOW).is_empty());
    let mut hand = Hand::new(3, |demand| demand.resources = cpus(1));
    assert!(matches!(hand.hear(&hand.first(&mut desk)), Said::Offer(_)), "one of four CPUs is free");
    let mut hand = Hand::new(3, |demand| (demand.resources, demand.nonce) = (cpus(2), [8; 16]));
    assert_eq!(reason(&hand.hear(&hand.first(&mut desk))), (true, Reason::NoRoom));
}

#[test]
fn nothing_new_is_taken_on_a_node_that_is_emptied() {
    let mut desk = desk(2, policy());
    let known = Books { is_draining: true, ..books(&party(2), cpus(4)) };
    let event = DeskEvent::Books { node: node(2), books: Some(Box::new(known)) };
    assert!(desk.handle(event, NOW).is_empty());
    let mut hand = Hand::new(1, |_| {});
    assert_eq!(reason(&hand.hear(&hand.first(&mut desk))), (true, Reason::Draining));
}

#[test]
fn what_the_ledger_holds_can_not_be_given_back_before_it_expires() {
    let mut desk = desk(2, policy());
    let mut hand = Hand::new(1, |_| {});
    hand.hear(&hand.first(&mut desk));
    let propose = hand.proposal("web");
    let out = hand.say(&mut desk, propose);
    hand.hear(&out);
    let _ = desk.handle(DeskEvent::Tick, NOW + 30_000);
    let out = hand.say(&mut desk, Said::Reject { last: true, reason: Reason::ChoseAnother });
    assert!(entries(&out).is_empty(), "{out:?}");
    assert_eq!(desk.reservations().len(), 1);
}

#[test]
fn an_unused_reservation_is_announced_freed_and_claimed_and_its_user_stopped() {
    let mut desk = desk(2, policy());
    for round in 0..3_u8 {
        let mut hand = Hand::new(1, |demand| demand.nonce = [round; 16]);
        hand.hear(&hand.first(&mut desk));
        let propose = hand.proposal("web");
        let out = hand.say(&mut desk, propose);
        assert!(matches!(hand.hear(&out), Said::Approve { .. }), "round {round}");
        let out = desk.handle(DeskEvent::Tick, NOW + 30_000);
        assert_eq!(steps(&out), ["announcing", "announce"]);
        // Time is turned back for the next round: what was held is gone all the same.
        let out = desk.handle(DeskEvent::Tick, NOW + 70_001);
        assert_eq!(steps(&out), ["unused", "claim"]);
        assert!(desk.reservations().is_empty());
    }
    let mut hand = Hand::new(1, |demand| demand.nonce = [9; 16]);
    hand.hear(&hand.first(&mut desk));
    let propose = hand.proposal("web");
    let out = hand.say(&mut desk, propose);
    assert_eq!(reason(&hand.hear(&out)), (true, Reason::TooManyReservations));
}

#[test]
fn a_person_is_asked_and_silence_binds_nobody() {
    let asked = Policy { approval: crate::policy::Approval::Asked, ..policy() };
    let mut desk = desk(2, asked);
    let mut hand = Hand::new(1, |_| {});
    hand.hear(&hand.first(&mut desk));
    let propose = hand.proposal("web");
    let out = hand.say(&mut desk, propose);
    let [DeskOutput::Ask { negotiation, .. }] = out[..] else { panic!("{out:?}") };
    assert!(desk.reservations().is_empty());
    let late = desk.handle(DeskEvent::Decided { negotiation, approved: true }, NOW + 50_001);
    assert!(late.is_empty(), "{late:?}");
    let out = desk.handle(DeskEvent::Decided { negotiation, approved: false }, NOW);
    assert_eq!(reason(&hand.hear(&out)), (true, Reason::NotApproved));
}

#[test]
fn each_policy_refuses_with_its_reason() {
    use crate::strategy::{Customers, Regions, Term};
    let customers = Customers { denied: [party(1).id()].into(), ..Customers::default() };
    let term = Term { min_s: 7200, ..Policy::default().term };
    for (policy, expected) in [
        (Policy { maintenance: true, ..policy() }, Reason::Maintenance),
        (Policy { customers, ..policy() }, Reason::CustomerNotAllowed),
        (Policy { regions: Regions([("nl".to_owned(), None)].into()), ..policy() }, Reason::Region),
        (Policy { term, ..policy() }, Reason::TermTooShort { min_s: 7200 }),
        (Policy { keep: cpus(4), ..policy() }, Reason::NoRoom),
    ] {
        let mut desk = desk(2, policy);
        let mut hand = Hand::new(1, |_| {});
        assert_eq!(reason(&hand.hear(&hand.first(&mut desk))), (true, expected));
    }
    let mut desk = desk(2, policy());
    let mut hand = Hand::new(1, |demand| demand.node = node(9));
    assert_eq!(reason(&hand.hear(&hand.first(&mut desk))), (true, Reason::UnknownNode));
    let mut hand = Hand::new(1, |demand| demand.duration_s = u64::MAX);
    let expected = Reason::TermTooLong { max_s: limits::DURATION_S };
    assert_eq!(reason(&hand.hear(&hand.first(&mut desk))), (true, expected));
}

#[test]
fn a_message_that_somebody_else_sends_is_a_replay() {
    let mut desk = desk(2, policy());
    let hand = Hand::new(1, |_| {});
    let message = Box::new(hand.talk.transcript().last().clone());
    let out = desk.handle(DeskEvent::Message { from: party(7).id(), funds: None, message }, NOW);
    let text = refusal(&out).unwrap();
    assert!(text.ends_with("it was replayed; bots speak for themselves"), "{text}");
}

#[test]
fn one_bot_can_open_so_many_negotiations_and_no_more() {
    let mut desk = desk(2, policy());
    for n in 0..OPEN_PER_PEER as u8 {
        let hand = Hand::new(1, |demand| demand.nonce = [n; 16]);
        assert!(answer(&hand.first(&mut desk)).is_some());
    }
    let hand = Hand::new(1, |demand| demand.nonce = [99; 16]);
    let text = refusal(&hand.first(&mut desk)).unwrap();
    assert!(text.ends_with("has 8 negotiations open here, which is all it may have: end some"), "{text}");
    let hand = Hand::new(3, |_| {});
    assert!(answer(&hand.first(&mut desk)).is_some(), "others are served");
    let _ = desk.handle(DeskEvent::Tick, NOW + 16 * 60_000);
    assert_eq!(desk.next_wake_ms(), None, "what is void is forgotten");
}

#[test]
fn a_proposal_that_is_not_the_quote_is_refused_with_what_differs() {
    let mut desk = desk(2, policy());
    let mut hand = Hand::new(1, |_| {});
    hand.hear(&hand.first(&mut desk));
    let Said::Propose { mut terms, fee, user } = hand.proposal("web") else { panic!() };
    terms.rate = Rate(1);
    let said = Said::Propose { terms, fee, user };
    let refused = hand.talk.say(&hand.party, said, NOW + 50_000).unwrap_err().to_string();
    assert_eq!(
        refused,
        "the proposal's price differs from what was demanded and quoted: propose exactly that"
    );
    let Said::Propose { terms, fee, .. } = hand.proposal("web") else { panic!() };
    let user = party(9).key.sign_as_bot(
        RESERVATION,
        &CHAIN,
        &Reservation::of(hand.talk.transcript().id(), &terms, fee),
    );
    let refused = hand.talk.say(&hand.party, Said::Propose { terms, fee, user }, NOW + 50_000).unwrap_err();
    assert!(refused.to_string().ends_with("it was tampered with"), "{refused}");
    // A key that nobody but its owner knows of: the ledger would take no announcement of what it signed.
    let Said::Propose { terms, fee, .. } = hand.proposal("web") else { panic!() };
    let other = later(&hand.party.key);
    let user =
        other.sign_as_bot(RESERVATION, &CHAIN, &Reservation::of(hand.talk.transcript().id(), &terms, fee));
    let refused = hand.talk.say(&hand.party, Said::Propose { terms, fee, user }, NOW + 50_000).unwrap_err();
    assert!(refused.to_string().contains(&format!("is not signed by {}", hand.party.id())), "{refused}");
    assert_eq!(farm(&party(2)), hand.talk.transcript().demand().farm);
}

#[test]
fn negotiations_that_ended_make_room_for_others_but_not_at_any_pace() {
    let mut desk = desk(2, policy());
    for n in 0..KNOWN_PER_PEER as u8 {
        let mut hand = Hand::new(1, |demand| demand.nonce = [n; 16]);
        hand.hear(&hand.first(&mut desk));
        let out = hand.say(&mut desk, Said::Reject { last: true, reason: Reason::ChoseAnother });
        assert_eq!(refusal(&out), None);
    }
    let hand = Hand::new(1, |demand| demand.nonce = [200; 16]);
    let text = refusal(&hand.first(&mut desk)).unwrap();
    assert!(
        text.ends_with("had 64 negotiations here within a minute, which is all it may have: wait for one"),
        "{text}"
    );
    let hand = Hand::new(3, |_| {});
    assert!(answer(&hand.first(&mut desk)).is_some(), "others are served");
}

/// Says this to every price, and remembers nothing.
#[derive(Debug)]
struct Says(Advice);

impl Pricing for Says {
    fn price(&self, priced: &Priced<'_>) -> Advice {
        assert_eq!((priced.floor, priced.view.list, priced.now_ms), (Rate(7), Rate(10), NOW));
        assert!(priced.free.covers(&priced.view.demand.resources));
        self.0
    }
}

#[test]
fn a_farmers_own_prices_count_between_the_policys_floor_and_its_list() {
    for (advice, first) in [
        (Advice::Policy, 10),
        (Advice::Rate(Rate(8)), 8),
        (Advice::Rate(Rate(0)), 7),
        (Advice::Rate(Rate(u64::MAX)), 10),
    ] {
        let mut desk = desk(2, policy());
        desk.set_pricing(Some(Box::new(Says(advice))));
        let mut hand = Hand::new(1, |_| {});
        let Said::Offer(offer) = hand.hear(&hand.first(&mut desk)) else { panic!() };
        assert_eq!(offer.rate, Rate(first), "{advice:?}");
    }
}

#[test]
fn a_farmers_own_price_takes_more_where_more_is_offered_and_never_goes_up() {
    let mut desk = desk(2, policy());
    desk.set_pricing(Some(Box::new(Says(Advice::Rate(Rate(8))))));
    let mut hand = Hand::new(1, |_| {});
    let Said::Offer(offer) = hand.hear(&hand.first(&mut desk)) else { panic!() };
    let counter = |rate| Said::Counter(Quote { rate: Rate(rate), capacity_version: 0, ..offer });
    let out = hand.say(&mut desk, counter(1));
    let Said::Counter(second) = hand.hear(&out) else { panic!() };
    assert_eq!(second.rate, Rate(8));
    desk.set_pricing(Some(Box::new(Says(Advice::Rate(Rate(10))))));
    let out = hand.say(&mut desk, counter(2));
    let Said::Counter(third) = hand.hear(&out) else { panic!() };
    assert_eq!(third.rate, Rate(8), "what was said is not taken back");
    desk.set_pricing(Some(Box::new(Says(Advice::Rate(Rate(7))))));
    let mut other = Hand::new(3, |_| {});
    let Said::Offer(offer) = other.hear(&other.first(&mut desk)) else { panic!() };
    assert_eq!(offer.rate, Rate(7));
    let out = other.say(&mut desk, Said::Counter(Quote { rate: Rate(9), capacity_version: 0, ..offer }));
    let Said::Counter(taken) = other.hear(&out) else { panic!() };
    assert_eq!(taken.rate, Rate(9), "who offers more pays it");
}

#[test]
fn a_farmers_own_prices_may_refuse_and_what_the_policy_refuses_is_not_asked_of_them() {
    let mut refusing = desk(2, policy());
    refusing.set_pricing(Some(Box::new(Says(Advice::Refuse))));
    let mut hand = Hand::new(1, |_| {});
    let said = hand.hear(&hand.first(&mut refusing));
    assert_eq!(reason(&said), (true, Reason::Rule));
    assert_eq!(Reason::Rule.to_string(), "a rule of the farm's owner refuses it: ask another farm");
    let mut closed = desk(2, Policy { maintenance: true, ..policy() });
    closed.set_pricing(Some(Box::new(Says(Advice::Rate(Rate(7))))));
    let mut hand = Hand::new(1, |_| {});
    let said = hand.hear(&hand.first(&mut closed));
    assert_eq!(reason(&said), (true, Reason::Maintenance));
}
