use super::*;

/// Seeds that every test run goes through. Chosen for nothing but their number.
const FIXED: u64 = 4;
/// Seeds that no run had before.
const FRESH: u64 = 2;
/// Seeds until one shows a fault that was put in.
const UNTIL_CAUGHT: u64 = 10;

fn holds(seed: u64) -> Summary {
    let summary = run(seed, Options::default()).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(summary.without, 0, "there is room for all: {summary:?}");
    summary
}

fn is_caught(mutation: Mutation, (bots, farms): (usize, usize), expected: &[&str]) {
    for seed in 0..UNTIL_CAUGHT {
        let options = Options { mutation: Some(mutation), bots, farms };
        if let Err(failure) = run(seed, options) {
            assert!(expected.iter().any(|text| failure.contains(text)), "{failure}");
            assert!(failure.contains(&format!("sim market --start {seed} --seeds 1")), "{failure}");
            return;
        }
    }
    panic!("{UNTIL_CAUGHT} seeds do not show {mutation:?}");
}

#[test]
fn a_seed_is_a_run() {
    assert_eq!(holds(1), holds(1));
}

#[test]
fn the_fixed_seeds_hold() {
    for seed in 2..2 + FIXED {
        let summary = holds(seed);
        assert!(summary.placed > 0 && summary.refused > 0 && summary.crashes > 0, "{summary:?}");
    }
}

#[test]
fn what_is_paid_as_it_goes_on_stands_still_without_money_and_goes_on_with_it() {
    // Long ones. Who is late is drawn by the seed.
    let long = [8, 12].map(holds);
    assert!(long.iter().all(|summary| summary.funded > 0), "{long:?}");
    assert!(long.iter().any(|summary| summary.paused > 0), "{long:?}");
}

#[test]
fn in_a_market_that_is_too_small_nobody_is_kept_waiting_where_there_is_room() {
    for seed in 101..104 {
        let options = Options { bots: 24, farms: 6, mutation: None };
        let summary = run(seed, options).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(summary.without > 0 && summary.placed > 0, "there is not room for all: {summary:?}");
    }
}

#[test]
fn fresh_seeds_hold() {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let start = since.as_millis() as u64;
    println!("fresh seeds from {start}");
    (start..start + FRESH).map(holds).for_each(drop);
}

#[test]
fn bots_that_forget_their_intents_are_caught() {
    // What is forgotten becomes a second contract, or a reservation that nobody uses.
    let expected = ["ordered twice", "failed, but", "is honest and owes"];
    is_caught(Mutation::ForgetsIntents, (16, 18), &expected);
}

#[test]
fn buyers_that_do_not_look_for_approvals_pay_for_it() {
    is_caught(Mutation::OverlooksAnnouncements, (16, 18), &["is honest and owes"]);
}

#[test]
fn hoarders_pay_for_what_they_hold_back() {
    let fees: u64 = (2..2 + FIXED).map(|seed| holds(seed).fees_paid).sum();
    assert!(fees > 0, "farmers announce what hoarders reserve, and get the fee");
}

#[test]
fn farmers_that_sell_twice_are_caught() {
    // Many buyers for few farms, so that what was forgotten is wanted.
    is_caught(Mutation::SellsTwice, (20, 10), &["promised more than it has"]);
}
