use std::collections::BTreeMap;

use proptest::prelude::*;

use super::Strategy as _;
use super::*;
use crate::testing::{demand, party};

fn quote(rate: u64) -> Quote {
    Quote { rate: Rate(rate), hold_fee: Grains(5), hold_ms: 1, capacity_version: 1 }
}

fn view(demand: &Demand, role: Role, theirs: Option<u64>, round: u32) -> View<'_> {
    let theirs = theirs.map(quote);
    View { role, demand, country: "be", region: None, list: Rate(100), theirs, ours: None, round, rounds: 4 }
}

#[test]
fn the_strictest_of_all_wins_in_any_order() {
    use Decision::{Negotiating, Ready, Reject};
    let decisions = [
        Ready,
        Negotiating(Rate(5)),
        Negotiating(Rate(9)),
        Reject(Reason::Region),
        Reject(Reason::Maintenance),
    ];
    for role in [Role::Buyer, Role::Farmer] {
        for a in &decisions {
            for b in &decisions {
                assert_eq!(a.clone().and(b.clone(), role), b.clone().and(a.clone(), role), "{a:?} {b:?}");
            }
        }
    }
    assert_eq!(Negotiating(Rate(5)).and(Negotiating(Rate(9)), Role::Buyer), Negotiating(Rate(5)));
    assert_eq!(Negotiating(Rate(5)).and(Negotiating(Rate(9)), Role::Farmer), Negotiating(Rate(9)));
    assert_eq!(Reject(Reason::Region).and(Negotiating(Rate(1)), Role::Buyer), Reject(Reason::Region));
}

#[test]
fn a_farmer_comes_down_to_its_floor_and_not_below() {
    let demand = demand(&party(1), &party(2));
    let strategy = FromList { floor_percent: 80 };
    let said: Vec<Decision> =
        (0..4).map(|round| strategy.decide(&view(&demand, Role::Farmer, None, round))).collect();
    assert_eq!(said, [100, 93, 86, 80].map(|rate| Decision::Negotiating(Rate(rate))));
    let low = strategy.decide(&view(&demand, Role::Farmer, Some(79), 3));
    assert_eq!(low, Decision::Reject(Reason::PriceTooLow));
    assert_eq!(strategy.decide(&view(&demand, Role::Farmer, Some(80), 3)), Decision::Ready);
}

#[test]
fn a_buyer_never_goes_above_its_limits() {
    let demand = demand(&party(1), &party(2));
    let limits = Limits { max_rate: Rate(50), max_hold_fee: Grains(4) };
    let dear = limits.decide(&view(&demand, Role::Buyer, Some(40), 0));
    assert_eq!(dear, Decision::Reject(Reason::HoldFeeTooHigh));
    let limits = Limits { max_hold_fee: Grains(5), ..limits };
    assert_eq!(limits.decide(&view(&demand, Role::Buyer, Some(50), 0)), Decision::Ready);
    assert_eq!(limits.decide(&view(&demand, Role::Buyer, Some(51), 0)), Decision::Negotiating(Rate(50)));
    let last = limits.decide(&view(&demand, Role::Buyer, Some(51), 3));
    assert_eq!(last, Decision::Reject(Reason::PriceTooHigh));
}

#[test]
fn who_and_where_and_how_long_is_refused_with_its_reason() {
    let demand = demand(&party(1), &party(2));
    let view = view(&demand, Role::Farmer, None, 0);
    let customers = Customers { allowed: [party(5).id()].into(), ..Customers::default() };
    assert_eq!(customers.decide(&view), Decision::Reject(Reason::CustomerNotAllowed));
    let customers = Customers { denied: [party(1).id()].into(), ..Customers::default() };
    assert_eq!(customers.decide(&view), Decision::Reject(Reason::CustomerNotAllowed));
    let regions = Regions([("be".to_owned(), Some(crate::testing::name("flanders")))].into());
    assert_eq!(regions.decide(&view), Decision::Reject(Reason::Region));
    assert_eq!(Regions([("be".to_owned(), None)].into()).decide(&view), Decision::Ready);
    let term = Term { min_s: 3601, max_s: 9999, max_grace_s: 60 };
    assert_eq!(term.decide(&view), Decision::Reject(Reason::TermTooShort { min_s: 3601 }));
    let term = Term { min_s: 1, max_s: 3600, max_grace_s: 59 };
    assert_eq!(term.decide(&view), Decision::Reject(Reason::GraceTooLong { max_s: 59 }));
    let term = Term { max_grace_s: 60, ..term };
    assert_eq!(term.decide(&view), Decision::Ready);
    let short = croft_protocol::market::Demand { prepaid_s: Some(59), ..demand.clone() };
    let view = View { demand: &short, ..view };
    assert_eq!(term.decide(&view), Decision::Reject(Reason::PrepaidTooShort { min_s: 60 }));
}

#[test]
fn the_longest_discount_that_applies_counts() {
    let discounts = Discounts(BTreeMap::from([(100, 10), (1000, 25)]));
    assert_eq!([99, 100, 999, 1000].map(|s| discounts.percent(s)), [0, 10, 10, 25]);
    assert_eq!(discounts.rate(Rate(101), 100), Rate(91));
    assert_eq!(discounts.rate(Rate(u64::MAX), 1000), share(Rate(u64::MAX), 75));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the prices, a concession stays between its ends, and moves one way.
    #[test]
    fn a_concession_moves_one_way(first: u64, last: u64, rounds in 1_u32..10) {
        let concession = Concession { first: Rate(first), last: Rate(last) };
        let targets: Vec<Rate> = (0..rounds).map(|round| concession.target(round, rounds)).collect();
        for target in &targets {
            prop_assert!(first.min(last) <= target.0 && target.0 <= first.max(last));
        }
        prop_assert!(targets.is_sorted() || targets.iter().rev().is_sorted());
    }

    /// A share is never more than the whole, and never nothing of something.
    #[test]
    fn a_share_is_a_share(rate in 1_u64.., percent in 1_u8..=100) {
        let part = share(Rate(rate), percent).0;
        prop_assert!((1..=rate).contains(&part));
    }
}
