//! Two parties, a node and a wish, for the tests of this crate.

use std::collections::BTreeSet;

use croft_protocol::market::{Demand, NegotiationId, SignedMessage};
use croft_protocol::record::TrustClass;
use croft_protocol::{
    Capacity, ChainId, FarmId, Grains, Hash, Name, NodeCapacity, NodeId, PriceList, PublicKey, SecretKey,
};

use crate::conversation::Party;
use crate::desk::{Books, Desk, DeskEvent, DeskOutput};
use crate::order::{Offered, Order, OrderEvent, OrderOutput, Wish};
use crate::policy::Policy;
use crate::rank::Candidate;
use crate::score::Weights;

pub(crate) const NOW: u64 = 1_800_000_000_000;
pub(crate) const CHAIN: ChainId = ChainId(Hash([7; 32]));
pub(crate) const PRICES: PriceList = PriceList { cpu: 10, memory_gib: 0, ssd_gib: 0, hdd_gib: 0 };

pub(crate) fn party(n: u8) -> Party {
    Party { key: SecretKey::from_seed(&[n; 32]), chain: CHAIN }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn node(n: u8) -> NodeId {
    PublicKey([n; 32])
}

pub(crate) fn farm(farmer: &Party) -> FarmId {
    FarmId::new(&farmer.id(), &name("green"))
}

pub(crate) fn cpus(cpus: u64) -> Capacity {
    Capacity { cpu_millis: cpus * 1000, memory_bytes: cpus << 30, ..Capacity::default() }
}

pub(crate) fn demand(buyer: &Party, farmer: &Party) -> Demand {
    Demand {
        buyer: buyer.id(),
        farmer: farmer.id(),
        farm: farm(farmer),
        node: node(1),
        resources: cpus(1),
        ports: Vec::new(),
        duration_s: 3600,
        grace_s: 60,
        prepaid_s: None,
        nonce: [3; 16],
    }
}

pub(crate) fn books(farmer: &Party, total: Capacity) -> Books {
    Books {
        farm: farm(farmer),
        country: "be".to_owned(),
        region: None,
        prices: PRICES,
        capacity: NodeCapacity { version: 5, total, used: Capacity::default() },
        taken_ports: BTreeSet::new(),
        contracts: 0,
        reserved: BTreeSet::new(),
        is_draining: false,
        connected: Some(true),
    }
}

/// A desk of one node with 4 CPUs.
pub(crate) fn desk(n: u8, policy: Policy) -> Desk {
    let farmer = party(n);
    let mut desk = Desk::new(farmer.clone(), policy);
    let books = Some(Box::new(books(&farmer, cpus(4))));
    assert!(desk.handle(DeskEvent::Books { node: node(n), books }, NOW).is_empty());
    desk
}

pub(crate) fn wish() -> Wish {
    Wish {
        name: name("web"),
        resources: cpus(1),
        ports: Vec::new(),
        duration_s: 3600,
        grace_s: 60,
        prepaid_s: None,
        quorum: croft_protocol::contract::Quorum::default(),
        place: crate::order::Place::default(),
        window_ms: crate::order::WINDOW_MS,
        max_price: Grains(40_000),
        max_hold_fee: Grains(1_000),
        opening_percent: 70,
        weights: Weights::default(),
        avoid: BTreeSet::new(),
        seed: [9; 16],
    }
}

/// What the ledger says of the node of farmer `n`.
pub(crate) fn offered(n: u8) -> Offered {
    let farmer = party(n);
    let candidate = Candidate {
        node: node(n),
        name: name(&format!("n{n}")),
        farm: farm(&farmer),
        farm_name: name(&format!("farm-{n}")),
        farmer: farmer.id(),
        country: "be".to_owned(),
        prices: PRICES,
        capacity: NodeCapacity { version: 5, total: cpus(4), used: Capacity::default() },
        trust: TrustClass::Plain,
        addresses: Vec::new(),
        taken_ports: BTreeSet::new(),
        contracts: 0,
        draining: None,
        connected: None,
    };
    Offered { candidate, uptime_permille: None }
}

/// Messages that an order sends.
pub(crate) fn sent(outputs: &[OrderOutput]) -> Vec<(PublicKey, SignedMessage)> {
    let of = |output: &OrderOutput| match output {
        OrderOutput::Send { to, message } => Some((*to, message.as_ref().clone())),
        _ => None,
    };
    outputs.iter().filter_map(of).collect()
}

/// The message that a desk answers with, if any.
pub(crate) fn answer(outputs: &[DeskOutput]) -> Option<SignedMessage> {
    outputs.iter().find_map(|output| match output {
        DeskOutput::Send { message, .. } => Some(message.as_ref().clone()),
        _ => None,
    })
}

/// Why a desk refuses, if it does.
pub(crate) fn refusal(outputs: &[DeskOutput]) -> Option<String> {
    outputs.iter().find_map(|output| match output {
        DeskOutput::Refused { refusal, .. } => Some(refusal.to_string()),
        _ => None,
    })
}

pub(crate) fn tell(desk: &mut Desk, message: &SignedMessage, now_ms: u64) -> Vec<DeskOutput> {
    let from = message.message.author;
    desk.handle(DeskEvent::Message { from, funds: None, message: Box::new(message.clone()) }, now_ms)
}

pub(crate) fn hear(order: &mut Order, message: &SignedMessage, now_ms: u64) -> Vec<OrderOutput> {
    let from = message.message.author;
    order.handle(OrderEvent::Message { from, message: Box::new(message.clone()) }, now_ms)
}

/// The seal that an order waits for.
pub(crate) fn seal(outputs: &[OrderOutput]) -> Option<NegotiationId> {
    outputs.iter().find_map(|output| match output {
        OrderOutput::Seal { negotiation, .. } => Some(*negotiation),
        _ => None,
    })
}
