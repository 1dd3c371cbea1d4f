//! Order, completeness, and every reason in words.

use croft_protocol::contract::Transport;
use croft_protocol::{Hash, PublicKey};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn port(port: u16) -> PublishedPort {
    PublishedPort { transport: Transport::Tcp, port }
}

fn candidate(n: u8, cpu_price: u64) -> Candidate {
    let total = Capacity { cpu_millis: 4000, memory_bytes: 8 << 30, ..Capacity::default() };
    Candidate {
        node: PublicKey([n; 32]),
        name: name(&format!("node-{n}")),
        farm: FarmId(Hash([n; 32])),
        farm_name: name("green"),
        farmer: PublicKey([200; 32]),
        country: "be".to_owned(),
        prices: PriceList { cpu: cpu_price, ..PriceList::default() },
        capacity: NodeCapacity { version: 3, total, used: Capacity::default() },
        trust: TrustClass::Plain,
        addresses: vec!["192.0.2.1".to_owned()],
        taken_ports: BTreeSet::new(),
        contracts: 0,
        draining: None,
        connected: Some(true),
    }
}

fn demand() -> Demand {
    Demand {
        resources: Capacity { cpu_millis: 1000, memory_bytes: 1 << 30, ..Capacity::default() },
        ports: vec![port(80)],
        duration_s: 100,
        ..Demand::default()
    }
}

fn reasons(
    change_candidate: impl FnOnce(&mut Candidate),
    change_demand: impl FnOnce(&mut Demand),
) -> Vec<String> {
    let (mut candidate, mut demand) = (candidate(1, 10), demand());
    change_candidate(&mut candidate);
    change_demand(&mut demand);
    let matches = rank(&[candidate], &demand);
    assert!(matches.fits.is_empty(), "{matches:?}");
    matches.excluded[0].reasons.iter().map(ToString::to_string).collect()
}

#[test]
fn the_cheapest_comes_first_and_among_equals_the_lower_id() {
    let candidates = [candidate(3, 10), candidate(2, 10), candidate(1, 11), candidate(4, 9)];
    let matches = rank(&candidates, &demand());
    let order: Vec<_> = matches.fits.iter().map(|fit| (fit.name.to_string(), fit.price.0)).collect();
    let expected = [("node-4", 900), ("node-2", 1000), ("node-3", 1000), ("node-1", 1100)];
    assert_eq!(order, expected.map(|(name, price)| (name.to_owned(), price)));
    assert_eq!(matches.fits[0].rate, Rate(9));
    assert_eq!(matches.fits[0].capacity_version, 3);
}

#[test]
fn every_reason_is_given_in_words_and_all_at_once() {
    assert_eq!(reasons(|_| {}, |d| d.node = Some(name("n9"))), ["only node 'n9' is wanted"]);
    assert_eq!(
        reasons(|_| {}, |d| d.farm = Some(name("red"))),
        ["it is of farm 'green', only 'red' is wanted"]
    );
    assert_eq!(
        reasons(|_| {}, |d| d.countries = vec!["nl".to_owned(), "de".to_owned()]),
        ["it is in be, wanted is nl or de"]
    );
    assert_eq!(
        reasons(|_| {}, |d| d.trust = Some(TrustClass::Sealed)),
        ["its identity is plain (key on disk), at least sealed (key in a TPM) is wanted"]
    );
    assert_eq!(reasons(|c| c.taken_ports = [port(80)].into(), |_| {}), ["port 80/tcp is taken"]);
    assert_eq!(reasons(|c| c.addresses.clear(), |_| {}), ["it has no address to publish ports on"]);
    assert_eq!(reasons(|c| c.contracts = 256, |_| {}), ["it has 256 contracts, which is all it may have"]);
    assert_eq!(reasons(|c| c.connected = Some(false), |_| {}), ["it is not connected"]);
    let draining = Some(croft_protocol::record::Draining { since_ms: 1, until_ms: None });
    assert_eq!(
        reasons(|c| c.draining = draining, |_| {}),
        ["its farm empties it, and takes nothing new on it"]
    );
    assert_eq!(
        reasons(|_| {}, |d| d.max_price = Some(Grains(999))),
        ["it costs 1 000 grains, the limit is 999 grains"]
    );
    assert_eq!(
        reasons(|_| {}, |d| d.funds = Some(Grains(5))),
        ["it costs 1 000 grains, the wallet has 5 grains"]
    );
    assert_eq!(reasons(|c| c.prices.cpu = u64::MAX, |_| {}), ["its price exceeds all grains"]);
    assert_eq!(
        reasons(
            |c| {
                c.capacity.used = Capacity { cpu_millis: 3500, memory_bytes: 8 << 30, ..Capacity::default() };
                c.connected = Some(false);
            },
            |_| {}
        ),
        ["CPUs: 1.000 needed, 0.500 free; memory: 1 GiB needed, 0 B free", "it is not connected"]
    );
}

#[test]
fn what_is_not_asked_for_excludes_nobody() {
    let mut plain = candidate(1, 10);
    plain.addresses.clear();
    plain.connected = None;
    let mut demand = demand();
    demand.ports.clear();
    demand.countries = vec!["nl".to_owned(), "be".to_owned()];
    demand.max_price = Some(Grains(1000));
    demand.trust = Some(TrustClass::Plain);
    assert_eq!(rank(&[plain], &demand).fits.len(), 1);
}

#[test]
fn the_nearest_miss_comes_first() {
    let (mut far, mut near) = (candidate(1, 10), candidate(2, 10));
    far.connected = Some(false);
    far.addresses.clear();
    near.connected = Some(false);
    let matches = rank(&[far, near], &demand());
    assert_eq!(matches.excluded[0].name, name("node-2"));
    assert!(rank(&[], &demand()).excluded.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Everybody is in one list, in an order that does not depend on the order of the answers.
    #[test]
    fn the_order_of_arrival_makes_no_difference(
        nodes in prop::collection::btree_map(any::<u8>(), (0_u64..5, 0_u64..5000, any::<bool>()), 0..20),
        seed in any::<u64>(),
    ) {
        let candidates: Vec<_> = nodes
            .iter()
            .map(|(n, (price, used, connected))| {
                let mut candidate = candidate(*n, *price);
                candidate.capacity.used.cpu_millis = *used;
                candidate.connected = Some(*connected);
                candidate
            })
            .collect();
        let mut shuffled = candidates.clone();
        shuffled.sort_by_key(|c| u64::from(c.node.0[0]).wrapping_mul(seed | 1));
        let matches = rank(&candidates, &demand());
        prop_assert_eq!(&matches, &rank(&shuffled, &demand()));
        prop_assert_eq!(matches.fits.len() + matches.excluded.len(), candidates.len());
        prop_assert!(matches.fits.is_sorted_by_key(|fit| (fit.price, fit.node)));
        prop_assert!(matches.excluded.iter().all(|excluded| !excluded.reasons.is_empty()));
    }
}
