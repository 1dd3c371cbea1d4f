//! Every reason for which a farmer does not sign, and whether it is for good.

use croft_protocol::contract::{Quorum, Transport};
use croft_protocol::{Capacity, Grains, Hash, PublicKey, Rate};

use super::*;

const NOW_MS: u64 = 1_700_000_000_000;
const PRICES: PriceList = PriceList { cpu: 10, memory_gib: 2, ssd_gib: 0, hdd_gib: 0 };

fn id(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn port(port: u16) -> PublishedPort {
    PublishedPort { transport: Transport::Tcp, port }
}

fn terms() -> Terms {
    Terms {
        name: "web".parse().unwrap(),
        user: id(1),
        farmer: id(2),
        farm: FarmId(Hash([3; 32])),
        node: id(4),
        resources: Capacity { cpu_millis: 1000, memory_bytes: 1 << 30, ..Capacity::default() },
        ports: vec![port(80)],
        rate: Rate(12),
        duration_s: 3600,
        grace_s: 60,
        prepaid_s: None,
        capacity_version: 5,
        quorum: Quorum::default(),
        sealed: vec![1],
        expires_ms: NOW_MS + 60_000,
        nonce: [0; 16],
    }
}

struct World {
    capacity: NodeCapacity,
    taken: BTreeSet<PublishedPort>,
    contracts: usize,
    connected: Option<bool>,
    policy: FarmerPolicy,
}

impl World {
    fn new() -> Self {
        let total = Capacity { cpu_millis: 2000, memory_bytes: 4 << 30, ..Capacity::default() };
        Self {
            capacity: NodeCapacity { version: 5, total, used: Capacity::default() },
            taken: BTreeSet::new(),
            contracts: 0,
            connected: Some(true),
            policy: FarmerPolicy::default(),
        }
    }

    fn check(&self, terms: &Terms) -> Result<(), ProposalRefusal> {
        let offered = OfferedNode {
            node: id(4),
            farm: FarmId(Hash([3; 32])),
            farmer: id(2),
            prices: &PRICES,
            capacity: &self.capacity,
            taken_ports: &self.taken,
            contracts: self.contracts,
            connected: self.connected,
        };
        check_proposal(terms, &offered, &self.policy, NOW_MS)
    }
}

type Change = fn(&mut Terms);

/// What the farmer says to altered terms, and whether for good.
fn refusal(change: impl FnOnce(&mut Terms)) -> (String, bool) {
    let mut terms = terms();
    change(&mut terms);
    let refusal = World::new().check(&terms).expect_err("the terms must be refused");
    (refusal.to_string(), refusal.is_final())
}

#[test]
fn fair_terms_are_signed_and_so_are_generous_ones() {
    assert_eq!(World::new().check(&terms()), Ok(()));
    let mut generous = terms();
    generous.rate = Rate(1000);
    assert_eq!(World::new().check(&generous), Ok(()));
    assert_eq!(generous.price(), Some(Grains(3_600_000)));
}

#[test]
fn terms_for_another_party_farm_or_node_are_refused_for_good() {
    let (one, two, four) = (id(1), id(2), id(4));
    assert_eq!(
        refusal(|t| t.farmer = one),
        (format!("the terms name farmer {one}, but I am {two}: ask the farm's owner"), true)
    );
    assert_eq!(
        refusal(|t| t.node = one),
        (format!("the terms name node {one}, but the one looked up is {four}"), true)
    );
    let (text, for_good) = refusal(|t| t.farm = FarmId(Hash([9; 32])));
    assert!(text.ends_with("look the node up again") && for_good, "{text}");
}

#[test]
fn too_low_a_rate_is_refused_with_the_price() {
    assert_eq!(
        refusal(|t| t.rate = Rate(11)),
        ("the rate is 11 grains per second, but these resources cost 12: offer that much".to_owned(), true)
    );
    let (text, _) = refusal(|t| t.rate = Rate(u64::MAX));
    assert_eq!(text, "the price of these resources can't be computed: it exceeds all grains");
}

#[test]
fn terms_are_open_for_a_short_while() {
    assert_eq!(
        refusal(|t| t.expires_ms = NOW_MS - 1),
        (
            format!(
                "the terms are void since {} ms, it is {NOW_MS} ms: sign new ones, and check your clock",
                NOW_MS - 1
            ),
            true
        )
    );
    assert_eq!(
        refusal(|t| t.expires_ms = NOW_MS + 600_001).0,
        "the terms stay open for 600001 ms, at most 600000 are allowed: let them expire sooner"
    );
}

#[test]
fn terms_out_of_bounds_are_refused_for_good_with_the_bounds() {
    let cases: [(Change, &str); 8] = [
        (|t| t.duration_s = 59, "the duration in seconds is 59, allowed are 60 to 315360000"),
        (|t| t.duration_s = 315_360_001, "the duration in seconds is 315360001, allowed are 60 to 315360000"),
        (|t| t.grace_s = 7_776_001, "the grace period in seconds is 7776001, allowed are 0 to 7776000"),
        (|t| t.resources.cpu_millis = 0, "the CPU in millis is 0, allowed are 1 to 18446744073709551615"),
        (|t| t.resources.memory_bytes = 0, "the memory in bytes is 0, allowed are 1 to 18446744073709551615"),
        (|t| t.sealed.clear(), "the sealed workload in bytes is 0, allowed are 1 to 65536"),
        (|t| t.ports = (1..=65).map(port).collect(), "the number of ports is 65, allowed are 0 to 64"),
        (|t| t.ports = vec![port(2), port(1)], "ports must be in ascending order, each once, none 0"),
    ];
    for (change, says) in cases {
        assert_eq!(refusal(change), (says.to_owned(), true));
    }
    assert!(refusal(|t| t.ports = vec![port(0)]).1);
}

#[test]
fn a_reserved_port_is_refused_for_good_and_a_taken_one_for_now() {
    let mut world = World::new();
    world.policy.first_port = 1024;
    let refusal = world.check(&terms()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "port 80/tcp is reserved, the first that may be published is 1024: choose another port"
    );
    assert!(refusal.is_final());
    let mut world = World::new();
    world.taken.insert(port(80));
    let refusal = world.check(&terms()).unwrap_err();
    assert_eq!(refusal.to_string(), format!("port 80/tcp of node {} is taken: choose another port", id(4)));
    assert!(!refusal.is_final());
}

#[test]
fn what_may_change_is_not_refused_for_good() {
    let mut full = World::new();
    full.contracts = 256;
    let mut offline = World::new();
    offline.connected = Some(false);
    let mut sold = World::new();
    sold.capacity.used.cpu_millis = 1500;
    let node = id(4);
    for (world, says) in [
        (full, format!("node {node} has 256 contracts, which is all it may have: choose another node")),
        (offline, format!("node {node} is not connected: choose another node, or try again later")),
        (
            sold,
            format!(
                "node {node} has too little free (CPUs: 1.000 needed, 0.500 free): ask for less, or choose another node"
            ),
        ),
    ] {
        let refusal = world.check(&terms()).unwrap_err();
        assert_eq!(refusal.to_string(), says);
        assert!(!refusal.is_final());
    }
    let (text, for_good) = refusal(|t| t.capacity_version = 6);
    assert_eq!(
        text,
        format!("the terms rely on capacity version 6 of node {node}, which is at 5: look it up again")
    );
    assert!(!for_good);
    let mut older = terms();
    older.capacity_version = 4;
    assert_eq!(World::new().check(&older), Ok(()), "an older version does no harm while it fits");
    let mut unknown = World::new();
    unknown.connected = None;
    assert_eq!(unknown.check(&terms()), Ok(()), "nobody knows is no reason");
}

#[test]
fn what_is_wrong_for_good_is_said_first() {
    let mut world = World::new();
    world.connected = Some(false);
    world.capacity.used = world.capacity.total;
    let mut cheap = terms();
    cheap.rate = Rate(1);
    assert!(matches!(world.check(&cheap), Err(ProposalRefusal::Rate { .. })));
}
