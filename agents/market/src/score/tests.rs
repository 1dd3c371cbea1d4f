use proptest::prelude::*;

use super::*;
use crate::testing::offered;

fn bid(n: u8, price: u64) -> Bid {
    Bid::of(&offered(n).candidate, None, Rate(1), Grains(price), Grains(1))
}

const SEED: [u8; 16] = [4; 16];

#[test]
fn a_cheaper_node_that_is_often_down_is_worth_less() {
    let good = Bid { uptime_permille: Some(1000), ..bid(1, 1000) };
    let bad = Bid { uptime_permille: Some(500), ..bid(2, 600) };
    let scored = score(&[bad, good], Weights::default(), &SEED);
    assert_eq!(scored[0].name.as_str(), "n1");
    assert_eq!((scored[0].effective, scored[1].effective), (Grains(1050), Grains(1230)));
}

#[test]
fn a_node_without_a_past_pays_for_it_and_an_attested_one_does_not_pay_for_its_identity() {
    let scored = score(&[bid(1, 1000)], Weights::default(), &SEED);
    assert_eq!((scored[0].trust_surcharge, scored[0].uptime_surcharge), (Grains(50), Grains(53)));
    let attested = Bid { trust: TrustClass::Attested, ..bid(1, 1000) };
    assert_eq!(score(&[attested], Weights::default(), &SEED)[0].trust_surcharge, Grains(0));
}

#[test]
fn a_price_near_all_grains_does_not_overflow() {
    let scored = score(&[bid(1, u64::MAX), bid(2, 5)], Weights::default(), &SEED);
    assert_eq!((scored[0].price, scored[1].effective), (Grains(5), Grains(u64::MAX)));
}

#[derive(Debug)]
struct Dislikes(&'static str, i64);

impl Scoring for Dislikes {
    fn surcharge(&self, bid: &Bid, _: u64) -> i64 {
        if bid.name.as_str() == self.0 { self.1 } else { 0 }
    }
}

#[test]
fn an_owners_own_scoring_changes_the_order_and_no_price() {
    let bids = [bid(1, 1000), bid(2, 1010)];
    let order = |own: Dislikes| {
        let scored = score_with(&bids, Weights::default(), &SEED, Some(&own));
        scored.into_iter().map(|s| (s.name.to_string(), s.price.0, s.own_surcharge)).collect::<Vec<_>>()
    };
    let (one, two) = (("n1".to_owned(), 1000), ("n2".to_owned(), 1010));
    assert_eq!(order(Dislikes("n3", 5)), [(one.0.clone(), 1000, 0), (two.0.clone(), 1010, 0)]);
    assert_eq!(order(Dislikes("n1", 500)), [(two.0.clone(), 1010, 0), (one.0.clone(), 1000, 500)]);
    assert_eq!(order(Dislikes("n2", i64::MIN)), [(two.0.clone(), 1010, i64::MIN), (one.0.clone(), 1000, 0)]);
    let most = score_with(&bids[..1], Weights::default(), &SEED, Some(&Dislikes("n1", i64::MAX)));
    assert_eq!(most[0].effective, Grains(1103 + i64::MAX as u64));
    let explain = Explain { chosen: most.into_iter().next(), others: Vec::new() }.to_string();
    assert!(explain.contains("  and 9223372036854775807 grains by your own scoring\n"), "{explain}");
}

#[test]
fn equal_bids_are_ordered_by_the_buyers_seed_and_not_by_key() {
    let bids: Vec<Bid> = (1..=8).map(|n| bid(n, 1000)).collect();
    let first: std::collections::BTreeSet<NodeId> =
        (0..40).map(|seed| score(&bids, Weights::default(), &[seed; 16])[0].node).collect();
    assert!(first.len() > 4, "{first:?}");
}

#[test]
fn an_explanation_says_why_this_one_and_why_each_other_one_not() {
    let chosen = score(&[bid(1, 1000)], Weights::default(), &SEED).pop();
    let Candidate { node, name, farm_name, .. } = offered(2).candidate;
    let why = vec![Why::Outscored { effective: Grains(1200), chosen: Grains(1103) }];
    let explain = Explain { chosen, others: vec![NotTaken { node, name, farm_name, why }] };
    assert_eq!(
        explain.to_string(),
        "node 'n1' of farm 'farm-1' in be for 1 000 grains\n  worth 1 103 grains: 50 grains for its identity, \
         53 grains for an uptime of 95.0 %\n  not node 'n2' of farm 'farm-2': it is worth 1 200 grains with \
         surcharges, the chosen one 1 103 grains\n"
    );
}

#[test]
fn an_estimate_tells_the_range_before_anybody_is_asked() {
    let mut dear = offered(2).candidate;
    dear.prices.cpu = 30;
    let search =
        crate::rank::Demand { resources: crate::testing::cpus(1), duration_s: 10, ..Default::default() };
    let estimate = cost(&[dear, offered(1).candidate], &search);
    assert_eq!((estimate.cheapest, estimate.dearest), (Some(Grains(100)), Some(Grains(300))));
    let none = cost(&[], &search);
    assert_eq!((none.cheapest, none.median, none.dearest), (None, None, None));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_bids_makes_no_difference(
        prices in prop::collection::vec((1_u64..50, 0_u16..1000), 1..12),
        turn in 0_usize..12,
    ) {
        let bids: Vec<Bid> = prices.iter().zip(1..).map(|((price, up), n)| {
            Bid { uptime_permille: Some(*up), ..bid(n, *price) }
        }).collect();
        let mut turned = bids.clone();
        turned.rotate_left(turn % bids.len());
        prop_assert_eq!(
            score(&bids, Weights::default(), &SEED),
            score(&turned, Weights::default(), &SEED)
        );
    }
}
