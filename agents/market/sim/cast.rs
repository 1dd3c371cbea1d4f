//! Who takes part, drawn from the seed, and what altered messages look like.

use std::collections::{BTreeMap, BTreeSet};

use croft_market::journal::MemoryJournal;
use croft_market::policy::Approval;
use croft_market::score::Weights;
use croft_market::{Policy, Wish};
use croft_protocol::contract::Quorum;
use croft_protocol::market::{Said, SignedMessage};
use croft_protocol::record::{HardwareSummary, NodeBody, TrustClass};
use croft_protocol::{Capacity, FarmId, Grains, Hash, Name, PriceList, SecretKey};

use crate::actors::{Bot, Buyer, Farm, Seller};
use crate::random::Random;
use crate::world::funds::PREPAID_S;
use crate::world::{DURATION_S, START_MS};

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("the simulator's names are names")
}

pub(crate) fn key(seed: u64, kind: u8, index: usize) -> SecretKey {
    SecretKey::from_seed(&Hash::of("croft/market-sim/1", &(seed, kind, index as u64)).0)
}

/// A copy that somebody changed on its way, with the old signature.
pub(crate) fn alter(mut message: SignedMessage, random: &mut Random) -> SignedMessage {
    let inner = &mut message.message;
    match (&mut inner.said, random.below(3)) {
        (_, 0) => inner.expires_ms += 1,
        (Said::Offer(quote) | Said::Counter(quote), _) => quote.rate.0 /= 2,
        (Said::Propose { terms, fee, .. }, 1) => {
            terms.rate.0 += 1;
            fee.0 += 1;
        }
        (Said::Approve { terms, reservation }, _) => std::mem::swap(terms, reservation),
        (Said::Commit { contract }, _) => contract.0.0[0] ^= 1,
        (Said::Demand(demand), _) => demand.duration_s += 1,
        _ => inner.note.push_str("free of charge"),
    }
    message
}

pub(crate) fn bot(seed: u64, index: usize, all: usize, random: &mut Random) -> Bot {
    let kind = match index * 8 / all.max(1) {
        0 if index > 0 => Buyer::NonPayer,
        7 => Buyer::Hoarder,
        _ => Buyer::Honest,
    };
    let millis = 500 * random.between(1, 3);
    let resources = Capacity { cpu_millis: millis, memory_bytes: 1 << 30, ..Capacity::default() };
    let wish = Wish {
        name: name("o0"),
        resources,
        ports: Vec::new(),
        duration_s: DURATION_S,
        grace_s: 600,
        // Every third pays as it goes on.
        prepaid_s: index.is_multiple_of(3).then_some(PREPAID_S),
        quorum: Quorum::default(),
        place: croft_market::order::Place::default(),
        window_ms: croft_market::order::WINDOW_MS,
        max_price: Grains(DURATION_S * (40 + 20 * millis / 1000)),
        max_hold_fee: Grains(10_000),
        opening_percent: random.between(60, 100) as u8,
        weights: Weights::default(),
        avoid: BTreeSet::new(),
        seed: [0; 16],
    };
    let funds = if kind == Buyer::NonPayer { 100 } else { 500_000_000 };
    Bot {
        kind,
        key: key(seed, 1, index),
        wish,
        order: None,
        journal: MemoryJournal::default(),
        number: 0,
        is_down: false,
        placed: None,
        avoid: BTreeSet::new(),
        funds,
        wake_ms: None,
    }
}

pub(crate) fn farm(seed: u64, index: usize, all: usize, random: &mut Random) -> Farm {
    // Half of all are honest; sybils are the most among the others.
    let others = [
        Seller::Gouger,
        Seller::NoShow,
        Seller::CapacityLiar,
        Seller::LivenessLiar,
        Seller::Reneger,
        Seller::Extortionist,
        Seller::Sybil,
        Seller::Sybil,
        Seller::Sybil,
    ];
    let kind =
        if index * 2 < all { Seller::Honest } else { others[(index - all.div_ceil(2)) % others.len()] };
    let honest = kind == Seller::Honest;
    let cpu = if honest { random.between(10, 25) } else { random.between(4, 9) };
    let prices = PriceList { cpu, memory_gib: 2, ssd_gib: 0, hdd_gib: 0 };
    let policy = Policy {
        prices: (kind == Seller::Gouger).then_some(PriceList { cpu: cpu * 100, ..prices }),
        floor_percent: random.between(70, 100) as u8,
        approval: if honest && random.permille(200) { Approval::Asked } else { Approval::Automatic },
        ..Policy::default()
    };
    let (owner, node) = (key(seed, 2, index), key(seed, 3, index));
    Farm {
        kind,
        id: FarmId::new(&owner.public(), &name(&format!("farm-{index}"))),
        key: owner,
        node,
        index,
        prices,
        policy,
        desk: None,
        journal: MemoryJournal::default(),
        is_down: false,
        wake_ms: None,
        books: None,
        running: BTreeMap::new(),
        reported_ms: START_MS,
    }
}

pub(crate) fn node_body(farm: &Farm) -> NodeBody {
    let times = if farm.kind == Seller::CapacityLiar { 100 } else { 1 };
    NodeBody {
        farm: farm.id,
        name: name("n1"),
        sealing_key: [7; 32],
        capacity: Capacity {
            cpu_millis: 3_000 * times,
            memory_bytes: (16 << 30) * times,
            ..Capacity::default()
        },
        hardware: HardwareSummary::default(),
        trust: TrustClass::Plain,
        addresses: Vec::new(),
        release: "0.1.0".to_owned(),
        session: 1,
        troubles: Vec::new(),
    }
}
