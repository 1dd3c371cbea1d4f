//! Golden vectors of what bots say to each other while they negotiate: one message of each kind and each reason, its
//! exact bytes, and what is hashed of it; and that they make one conversation which proves itself.
//!
//! A vector that changes means that bots of two releases no longer understand each other, and that no transcript from
//! before can be proved. Then the domain's version must change too.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::contract::{PublishedPort, Quorum, Transport};
use croft_protocol::keys::Domain;
use croft_protocol::market::{
    Demand, Message, NegotiationId, Quote, RESERVATION, Reason, Reservation, Role, Said, SignedMessage,
    SignedReservation,
};
use croft_protocol::peer::{FarmRequest, FarmResponse};
use croft_protocol::{
    BotSignature, Capacity, ChainId, FarmId, Grains, Hash, Name, PublicKey, Rate, SecretKey, Terms,
};

const GOLDEN: &str = include_str!("golden_market.txt");
const CHAIN: ChainId = ChainId(Hash([0xc0; 32]));
const NOW: u64 = 1_700_000_000_000;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn public(n: u8) -> PublicKey {
    key(n).public()
}

fn port() -> PublishedPort {
    PublishedPort { transport: Transport::Tcp, port: 80 }
}

fn demand() -> Demand {
    Demand {
        buyer: public(1),
        farmer: public(2),
        farm: FarmId::new(&public(2), &name("green")),
        node: public(3),
        resources: Capacity {
            cpu_millis: 1500,
            memory_bytes: 2 << 30,
            ssd_bytes: 3 << 30,
            hdd_bytes: 4 << 30,
            public_addresses: 5,
        },
        ports: vec![port()],
        duration_s: 7200,
        grace_s: 60,
        prepaid_s: Some(3600),
        nonce: *b"0123456789abcdef",
    }
}

fn quote(rate: u64) -> Quote {
    Quote { rate: Rate(rate), hold_fee: Grains(5), hold_ms: 60_000, capacity_version: 9 }
}

fn terms() -> Terms {
    let demand = demand();
    Terms {
        name: name("web"),
        user: demand.buyer,
        farmer: demand.farmer,
        farm: demand.farm,
        node: demand.node,
        resources: demand.resources,
        ports: demand.ports,
        rate: Rate(8),
        duration_s: demand.duration_s,
        grace_s: demand.grace_s,
        prepaid_s: demand.prepaid_s,
        capacity_version: 9,
        quorum: Quorum::default(),
        sealed: b"sealed".to_vec(),
        expires_ms: NOW + 60_000,
        nonce: *b"fedcba9876543210",
    }
}

fn reservation() -> Reservation {
    Reservation::of(demand().id(&CHAIN), &terms(), Grains(5))
}

fn reservation_signature(n: u8) -> BotSignature {
    key(n).sign_as_bot(RESERVATION, &CHAIN, &reservation())
}

/// One negotiation from the demand to the contract.
fn conversation() -> Vec<SignedMessage> {
    let said = [
        Said::Demand(demand()),
        Said::Offer(quote(10)),
        Said::Counter(Quote { capacity_version: 0, ..quote(8) }),
        Said::Counter(quote(8)),
        Said::Propose { terms: Box::new(terms()), fee: Grains(5), user: reservation_signature(1) },
        Said::Approve {
            terms: key(2).sign_as_bot(Domain::TERMS, &CHAIN, &terms()),
            reservation: reservation_signature(2),
        },
        Said::Commit { contract: terms().id() },
    ];
    let mut messages: Vec<SignedMessage> = Vec::new();
    for (step, said) in (0_u32..).zip(said) {
        let prev = messages.last().map_or(Hash::ZERO, SignedMessage::hash);
        messages.push(sign(step, prev, said));
    }
    messages
}

fn sign(step: u32, prev: Hash, said: Said) -> SignedMessage {
    let author = if Role::of_step(step) == Role::Buyer { key(1) } else { key(2) };
    let message = Message {
        negotiation: demand().id(&CHAIN),
        step,
        prev,
        author: author.public(),
        expires_ms: NOW + 60_000,
        said,
        note: "hello".to_owned(),
    };
    SignedMessage::sign(message, &CHAIN, &author)
}

/// Every reason: a new one must be added here, or the match does not compile.
fn reasons() -> Vec<Reason> {
    let next = |reason: &Reason| match reason {
        Reason::Maintenance => Some(Reason::CustomerNotAllowed),
        Reason::CustomerNotAllowed => Some(Reason::Region),
        Reason::Region => Some(Reason::UnknownNode),
        Reason::UnknownNode => Some(Reason::TermTooShort { min_s: 1 }),
        Reason::TermTooShort { .. } => Some(Reason::TermTooLong { max_s: 2 }),
        Reason::TermTooLong { .. } => Some(Reason::GraceTooLong { max_s: 3 }),
        Reason::GraceTooLong { .. } => Some(Reason::NoRoom),
        Reason::NoRoom => Some(Reason::PortTaken { port: port() }),
        Reason::PortTaken { .. } => Some(Reason::NodeFull),
        Reason::NodeFull => Some(Reason::Offline),
        Reason::Offline => Some(Reason::PriceTooLow),
        Reason::PriceTooLow => Some(Reason::PriceTooHigh),
        Reason::PriceTooHigh => Some(Reason::HoldFeeTooHigh),
        Reason::HoldFeeTooHigh => Some(Reason::NotAsQuoted),
        Reason::NotAsQuoted => Some(Reason::NotApproved),
        Reason::NotApproved => Some(Reason::Funds),
        Reason::Funds => Some(Reason::TooManyReservations),
        Reason::TooManyReservations => Some(Reason::TooManyRounds),
        Reason::TooManyRounds => Some(Reason::Overflow),
        Reason::Overflow => Some(Reason::ChoseAnother),
        Reason::ChoseAnother => Some(Reason::Ledger),
        Reason::Ledger => Some(Reason::Malformed),
        Reason::Malformed => Some(Reason::PrepaidTooShort { min_s: 4 }),
        Reason::PrepaidTooShort { .. } => Some(Reason::Draining),
        Reason::Draining => Some(Reason::Rule),
        Reason::Rule => None,
    };
    std::iter::successors(Some(Reason::Maintenance), next).collect()
}

/// Everything, with its bytes in hex. Values are checked to come back from their bytes.
fn vectors() -> BTreeMap<String, String> {
    fn add<T>(into: &mut BTreeMap<String, String>, what: &str, value: &T)
    where
        T: BorshSerialize + BorshDeserialize + PartialEq + std::fmt::Debug,
    {
        let bytes = croft_protocol::encode(value);
        let back: T = croft_protocol::decode("golden vector", &bytes, 1 << 20).unwrap();
        assert_eq!(back, *value, "{what} comes back from its bytes");
        assert!(into.insert(what.to_owned(), hex::encode(bytes)).is_none(), "{what} twice");
    }
    let mut all = BTreeMap::new();
    let into = &mut all;
    for message in conversation() {
        let what =
            format!("message/{}-{}", message.message.step, message.message.said.name().replace(' ', "-"));
        add(into, &what, &message);
        add(into, &format!("{what}/hash"), &message.hash());
    }
    for reason in reasons() {
        let shown = format!("{reason:?}");
        let called = shown.split(' ').next().unwrap().to_lowercase();
        let said = Said::Reject { last: true, reason };
        add(into, &format!("reject/{called}"), &sign(1, conversation()[0].hash(), said));
    }
    add(into, "negotiation/id", &demand().id(&CHAIN).0);
    add(into, "reservation", &reservation());
    let (user, farmer) = (reservation_signature(1), reservation_signature(2));
    add(into, "signed-reservation", &SignedReservation { reservation: reservation(), user, farmer });
    let message = Box::new(conversation()[0].clone());
    let request = croft_protocol::encode(&FarmRequest::Negotiate { message: message.clone() });
    all.insert("peer/negotiate".to_owned(), hex::encode(request));
    let response = croft_protocol::encode(&FarmResponse::Said { message });
    all.insert("peer/said".to_owned(), hex::encode(response));
    all
}

fn golden() -> BTreeMap<String, String> {
    let lines = GOLDEN.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = |line: &str| line.split_once(' ').map(|(what, hex)| (what.to_owned(), hex.to_owned()));
    lines.map(|line| split(line).expect("a line is a name, a space and hex digits")).collect()
}

#[test]
fn no_encoding_hash_or_signature_of_a_message_has_changed() {
    let (ours, golden) = (vectors(), golden());
    let names: BTreeSet<_> = ours.keys().chain(golden.keys()).collect();
    let mut changed = String::new();
    for what in names {
        let (now, before) = (ours.get(what), golden.get(what));
        if now != before {
            changed.extend([what.as_str(), " ", now.map_or("(gone)", String::as_str), "\n"]);
        }
    }
    assert!(
        changed.is_empty(),
        "these differ from tests/golden_market.txt; if that is meant, change their domains' versions, then the \
         file:\n{changed}"
    );
}

#[test]
fn the_golden_messages_are_signed_in_turn_and_each_names_the_one_before() {
    let mut prev = Hash::ZERO;
    for (what, hex) in
        golden().iter().filter(|(what, _)| what.starts_with("message/") && !what.ends_with("/hash"))
    {
        let message: SignedMessage = borsh::from_slice(&hex::decode(hex).unwrap()).unwrap();
        message.verify(&CHAIN).unwrap();
        assert_eq!(message.message.prev, prev, "{what}");
        assert_eq!(message.message.negotiation, demand().id(&CHAIN), "{what}");
        prev = message.hash();
        let elsewhere = message.verify(&ChainId(Hash([0xc1; 32])));
        assert!(elsewhere.is_err(), "{what} counts on one grid only");
    }
    assert_ne!(prev, Hash::ZERO);
    let signed: SignedReservation =
        borsh::from_slice(&hex::decode(&golden()["signed-reservation"]).unwrap()).unwrap();
    signed.verify(&CHAIN).unwrap();
    assert_eq!(signed.reservation.contract, terms().id());
    let other = Reservation { negotiation: NegotiationId(Hash::ZERO), ..signed.reservation.clone() };
    assert!(SignedReservation { reservation: other, ..signed }.verify(&CHAIN).is_err());
}
