use super::*;

/// Seeds that every test run goes through. Chosen for nothing but their number.
const FIXED: u64 = 12;
/// Seeds until one shows a fault that was put in: most have no liar that makes use of it.
const UNTIL_CAUGHT: u64 = 40;
/// Seeds that no run had before.
const FRESH: u64 = 3;

fn holds(seed: u64) -> Summary {
    run(seed, Options::default()).unwrap_or_else(|failure| panic!("{failure}"))
}

/// Runs seeds until one of them shows a fault that was put in on purpose.
fn is_caught(mutation: Mutation, expected: &str) {
    let options = Options { mutation: Some(mutation), ..Options::default() };
    for seed in 0..UNTIL_CAUGHT {
        if let Err(failure) = run(seed, options) {
            assert!(failure.what.contains(expected), "{failure}");
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
fn the_first_fixed_seeds_hold() {
    (0..FIXED / 2).map(holds).for_each(drop);
}

#[test]
fn the_other_fixed_seeds_hold() {
    (FIXED / 2..FIXED).map(holds).for_each(drop);
}

#[test]
fn seeds_that_failed_once_hold() {
    REGRESSIONS.iter().map(|seed| holds(*seed)).for_each(drop);
}

#[test]
fn fresh_seeds_hold() {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let start = since.as_millis() as u64;
    println!("fresh seeds from {start}");
    (start..start + FRESH).map(holds).for_each(drop);
}

#[test]
fn a_validator_that_forgets_its_votes_is_caught() {
    is_caught(Mutation::ForgetsVotes, "contradicts itself");
}

#[test]
fn validators_that_do_not_look_at_certificates_are_caught() {
    is_caught(Mutation::SkipsCertificates, "certificate");
}
