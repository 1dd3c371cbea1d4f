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
        let user = self.party.key.sign(RESERVATION, &CHAIN, &reservation);
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
        DeskEntry::Freed(contract) => *contract,
    }
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
        assert!(matches!(out[..], [DeskOutput::Announce { .. }]), "{out:?}");
        // Time is turned back for the next round: what was held is gone all the same.
        let out = desk.handle(DeskEvent::Tick, NOW + 70_001);
        assert!(matches!(out[..], [DeskOutput::Write(_), DeskOutput::Claim(_)]), "{out:?}");
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
    let user =
        party(9).key.sign(RESERVATION, &CHAIN, &Reservation::of(hand.talk.transcript().id(), &terms, fee));
    let refused = hand.talk.say(&hand.party, Said::Propose { terms, fee, user }, NOW + 50_000).unwrap_err();
    assert!(refused.to_string().ends_with("it was tampered with"), "{refused}");
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
