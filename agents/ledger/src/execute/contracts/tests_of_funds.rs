//! Funds that run out, come back or don't, and the last report after an end.

use croft_protocol::record::WorkloadState::{Preparing, Running};
use croft_protocol::{
    Command, ContractId, ContractState, EndReason, Grains, Rate, RecordId, Rejection, Terms, limits,
};

use crate::block::Event;
use crate::memory::{ALLOWANCE, Scenario, key};
use crate::state::StateReadExt;

const HOUR_MS: u64 = 3_600_000;

/// Four hours at 10 grains a second, of which the first is paid ahead, and a grace period of half an hour.
fn by_the_hour(scenario: &Scenario) -> Terms {
    let mut terms = scenario.terms("web");
    (terms.duration_s, terms.grace_s, terms.prepaid_s) = (4 * 3600, 1800, Some(3600));
    terms
}

fn agreed() -> (Scenario, ContractId, u64) {
    let mut scenario = Scenario::new();
    let id = scenario.agree(by_the_hour(&scenario)).unwrap();
    let start_ms = scenario.contract(&id).starts_ms;
    (scenario, id, start_ms)
}

/// One that ran for the hour that was paid ahead.
fn paused() -> (Scenario, ContractId, u64) {
    let (mut scenario, id, start_ms) = agreed();
    scenario.report(start_ms, start_ms + HOUR_MS, vec![(id, Running, HOUR_MS)]).unwrap();
    (scenario, id, start_ms + HOUR_MS)
}

fn fund(scenario: &mut Scenario, at_ms: u64, id: ContractId, grains: u64) -> Result<(), Rejection> {
    let other = scenario.other.clone();
    let amount = Grains(grains);
    scenario.ledger.submit_at(at_ms, &other, Command::Fund { contract: id, amount }).map(|_| ())
}

fn settle(scenario: &mut Scenario, at_ms: u64, id: ContractId) -> Result<(), Rejection> {
    let other = scenario.other.clone();
    scenario.ledger.submit_at(at_ms, &other, Command::Settle { contract: id }).map(|_| ())
}

fn close(scenario: &mut Scenario, at_ms: u64, id: ContractId) {
    let user = scenario.user.clone();
    scenario.ledger.submit_at(at_ms, &user, Command::Close { contract: id }).unwrap();
}

#[test]
fn a_part_of_the_price_is_paid_ahead_and_no_less_than_an_hour() {
    let (scenario, id, _) = agreed();
    assert_eq!(scenario.escrow(&id).deposit, Grains(36_000));
    assert_eq!(scenario.balance(&scenario.user), Grains(ALLOWANCE.0 - 36_000));

    let refused = |prepaid_s| {
        let mut scenario = Scenario::new();
        let terms = Terms { prepaid_s: Some(prepaid_s), ..by_the_hour(&scenario) };
        scenario.agree(terms).unwrap_err().to_string()
    };
    let says = "the time that is paid ahead, in seconds, is out of bounds";
    assert_eq!(refused(3599), format!("{says}: 3599, allowed are 3600 to 14400"));
    assert_eq!(refused(14_401), format!("{says}: 14401, allowed are 3600 to 14400"));

    // What lasts for less than an hour is paid as a whole.
    let mut scenario = Scenario::new();
    let terms = Terms { prepaid_s: Some(1000), ..scenario.terms("short") };
    scenario.agree(terms).unwrap();
}

#[test]
fn a_contract_whose_funds_ran_out_is_paused_and_keeps_its_place() {
    let (scenario, id, at_ms) = paused();
    let (body, escrow) = (scenario.contract(&id), scenario.escrow(&id));
    assert_eq!(body.state, ContractState::Paused { since_ms: at_ms });
    assert!(!body.state.may_run());
    assert_eq!((escrow.paid, escrow.held()), (Grains(36_000), Grains::ZERO));
    assert_eq!(scenario.free().cpu_millis, scenario.node_body().capacity.cpu_millis - 1000);
    assert_eq!(body.funds_awaited_until_ms(), Some(at_ms + 1_800_000));
}

#[test]
fn nothing_beyond_the_funds_is_paid() {
    let (mut scenario, id, start_ms) = agreed();
    // Two hours at once: the first is paid.
    scenario.report(start_ms, start_ms + 2 * HOUR_MS, vec![(id, Running, 2 * HOUR_MS)]).unwrap();
    let escrow = scenario.escrow(&id);
    assert_eq!((escrow.paid, escrow.covered_ms), (Grains(36_000), HOUR_MS));
    // What its node runs while it is paused is its own affair.
    let from_ms = start_ms + 2 * HOUR_MS;
    scenario.report(from_ms, from_ms + 600_000, vec![(id, Running, 600_000)]).unwrap();
    assert_eq!(scenario.escrow(&id), escrow);
    assert!(matches!(scenario.contract(&id).state, ContractState::Paused { .. }));
}

#[test]
fn a_rest_that_is_not_worth_a_start_pauses_too_and_is_not_lost() {
    let (mut scenario, id, start_ms) = agreed();
    let ran_ms = HOUR_MS - limits::FUNDED_LEAST_MS;
    scenario.report(start_ms, start_ms + ran_ms, vec![(id, Running, ran_ms)]).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Active);
    let from_ms = start_ms + ran_ms;
    scenario.report(from_ms, from_ms + 1000, vec![(id, Running, 1000)]).unwrap();
    assert!(matches!(scenario.contract(&id).state, ContractState::Paused { .. }));
    assert_eq!(scenario.escrow(&id).held(), Grains(590));
    close(&mut scenario, from_ms + 2000, id);
    assert_eq!(scenario.balance(&scenario.user), Grains(ALLOWANCE.0 - 36_000 + 590));
}

#[test]
fn anyone_funds_and_an_hours_pay_resumes_it() {
    let (mut scenario, id, at_ms) = paused();
    fund(&mut scenario, at_ms + 1000, id, 35_999).unwrap();
    assert!(matches!(scenario.contract(&id).state, ContractState::Paused { .. }), "not an hour yet");
    assert_eq!(scenario.contract(&id).missing_to_resume(&scenario.escrow(&id), at_ms + 2000), Grains(1));
    fund(&mut scenario, at_ms + 600_000, id, 1).unwrap();
    let (body, escrow) = (scenario.contract(&id), scenario.escrow(&id));
    assert_eq!((body.state, escrow.deposit), (ContractState::Approved, Grains(72_000)));
    assert_eq!(scenario.balance(&scenario.other), Grains(ALLOWANCE.0 - 36_000));

    // The pause itself is not paid, whatever the node says.
    let from_ms = at_ms;
    scenario.report(from_ms, at_ms + 660_000, vec![(id, Running, 660_000)]).unwrap();
    assert_eq!(scenario.escrow(&id).paid, Grains(36_600));
    assert_eq!(scenario.contract(&id).state, ContractState::Active);

    let sequence = scenario.ledger.account(&scenario.other.public()).unwrap().next_sequence - 1;
    let record = RecordId::funding(&scenario.other.public(), sequence);
    assert!(scenario.ledger.record(&record).unwrap().is_some(), "each payment is on the record");
}

#[test]
fn what_others_funded_goes_back_to_the_user_of_the_contract() {
    let (mut scenario, id, start_ms) = agreed();
    fund(&mut scenario, start_ms + 1000, id, 5000).unwrap();
    let other = scenario.other.public();
    assert_eq!(scenario.ledger.events(), [Event::Funded { contract: id, from: other, amount: Grains(5000) }]);
    close(&mut scenario, start_ms + 2000, id);
    settle(&mut scenario, start_ms + 2000 + limits::FINAL_REPORT_MS, id).unwrap();
    assert_eq!(scenario.balance(&scenario.user), Grains(ALLOWANCE.0 + 5000));
}

#[test]
fn no_more_is_taken_than_the_whole_duration_costs() {
    let (mut scenario, id, start_ms) = agreed();
    let refused = fund(&mut scenario, start_ms + 1, id, 108_001).unwrap_err().to_string();
    assert_eq!(
        refused,
        "the amount in grains is out of bounds: 108001, allowed are 1 to 108000, which pay for its whole duration"
    );
    let none = fund(&mut scenario, start_ms + 2, id, 0).unwrap_err().to_string();
    assert!(none.contains("out of bounds: 0, allowed are 1 to 108000"), "{none}");
    fund(&mut scenario, start_ms + 3, id, 108_000).unwrap();
    let full = fund(&mut scenario, start_ms + 4, id, 1).unwrap_err().to_string();
    assert!(full.ends_with("1, allowed are none, since its whole duration is paid for"), "{full}");
    // Fully funded, it is never paused before its time is over.
    for hour in 0..4 {
        let from_ms = start_ms + hour * HOUR_MS;
        let lines = vec![(id, Running, HOUR_MS - 1)];
        scenario.report(from_ms, from_ms + HOUR_MS - 1, lines).unwrap();
        assert_eq!(scenario.contract(&id).state, ContractState::Active);
    }
}

#[test]
fn who_can_not_pay_or_is_nobody_does_not_fund() {
    let (mut scenario, id, start_ms) = agreed();
    let stranger = key(50);
    let command = Command::Fund { contract: id, amount: Grains(5) };
    let refused = scenario.ledger.submit_at(start_ms + 1, &stranger, command).unwrap_err().to_string();
    assert!(refused.contains("is no bot on this grid"), "{refused}");
    let other = scenario.other.clone();
    let poor = Command::Transfer { to: scenario.user.public(), amount: ALLOWANCE, memo: String::new() };
    scenario.ledger.submit_at(start_ms + 2, &other, poor).unwrap();
    let refused = fund(&mut scenario, start_ms + 3, id, 5).unwrap_err().to_string();
    assert!(refused.ends_with("has 0 grains, but 5 grains are needed: top up the wallet"), "{refused}");
}

#[test]
fn without_funds_it_ends_after_the_grace_period_and_the_rest_goes_back() {
    let (mut scenario, id, at_ms) = paused();
    fund(&mut scenario, at_ms + 1000, id, 100).unwrap();
    let last_ms = at_ms + 1_800_000;
    settle(&mut scenario, last_ms - 1, id).unwrap();
    assert!(matches!(scenario.contract(&id).state, ContractState::Paused { .. }));
    let mut too_late = scenario.clone();
    assert_eq!(fund(&mut too_late, last_ms, id, 36_000), Err(Rejection::Ended { contract: id }));
    settle(&mut scenario, last_ms + 5000, id).unwrap();
    let body = scenario.contract(&id);
    assert_eq!(body.state, ContractState::Ended(EndReason::OutOfFunds));
    assert_eq!(body.data_kept_until_ms(), Some(last_ms + 5000), "the grace period has passed");
    assert_eq!(scenario.escrow(&id).held(), Grains::ZERO);
    assert_eq!(scenario.balance(&scenario.user), Grains(ALLOWANCE.0 - 36_000 + 100));
    assert_eq!(scenario.free(), scenario.node_body().capacity);
}

#[test]
fn a_pause_does_not_prolong_a_contract() {
    let mut scenario = Scenario::new();
    let terms = Terms { duration_s: 3700, ..by_the_hour(&scenario) };
    let id = scenario.agree(terms).unwrap();
    let start_ms = scenario.contract(&id).starts_ms;
    scenario.report(start_ms, start_ms + HOUR_MS, vec![(id, Running, HOUR_MS)]).unwrap();
    assert!(matches!(scenario.contract(&id).state, ContractState::Paused { .. }));
    // Little is left: that much resumes it.
    let now_ms = start_ms + HOUR_MS + 50_000;
    assert_eq!(scenario.contract(&id).missing_to_resume(&scenario.escrow(&id), now_ms), Grains(500));
    let mut resumed = scenario.clone();
    fund(&mut resumed, now_ms, id, 500).unwrap();
    assert_eq!(resumed.contract(&id).state, ContractState::Approved);
    settle(&mut scenario, start_ms + 3_700_000, id).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Ended(EndReason::Expired));
}

#[test]
fn what_is_free_never_runs_out() {
    let mut scenario = Scenario::new();
    let terms = Terms { rate: Rate(0), ..by_the_hour(&scenario) };
    let id = scenario.agree(terms).unwrap();
    let start_ms = scenario.contract(&id).starts_ms;
    scenario.report(start_ms, start_ms + 2 * HOUR_MS, vec![(id, Running, 2 * HOUR_MS)]).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Active);
}

#[test]
fn what_ran_before_a_close_is_paid_by_the_report_after_it() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let start_ms = scenario.contract(&id).starts_ms;
    scenario.report(start_ms, start_ms + 100_000, vec![(id, Running, 100_000)]).unwrap();
    let end_ms = start_ms + 160_000;
    close(&mut scenario, end_ms, id);
    let body = scenario.contract(&id);
    assert_eq!(body.state, ContractState::Ended(EndReason::ClosedByUser));
    assert_eq!(scenario.escrow(&id).held(), Grains(600), "what its node can still claim");
    assert_eq!(scenario.balance(&scenario.user), Grains(ALLOWANCE.0 - 1600));
    assert_eq!(scenario.free(), scenario.node_body().capacity, "all else is free at once");

    // One on its way pays its part, the last one the rest; what ran after the end counts for nothing.
    scenario.report(start_ms + 100_000, start_ms + 120_000, vec![(id, Running, 20_000)]).unwrap();
    assert_eq!((scenario.escrow(&id).paid, scenario.escrow(&id).held()), (Grains(1200), Grains(400)));
    scenario.report(start_ms + 120_000, end_ms + 5000, vec![(id, Preparing, 30_000)]).unwrap();
    assert_eq!((scenario.escrow(&id).paid, scenario.escrow(&id).held()), (Grains(1500), Grains::ZERO));
    assert_eq!(scenario.balance(&scenario.user), Grains(ALLOWANCE.0 - 1500));
    assert_eq!(settle(&mut scenario, end_ms + 6000, id), Err(Rejection::Ended { contract: id }));
}

#[test]
fn a_final_report_that_comes_too_late_pays_nothing() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let start_ms = scenario.contract(&id).starts_ms;
    let end_ms = start_ms + 300_000;
    close(&mut scenario, end_ms, id);
    let late_ms = end_ms + limits::FINAL_REPORT_MS;
    settle(&mut scenario, late_ms - 1, id).unwrap();
    assert_eq!(scenario.escrow(&id).held(), Grains(3000));
    scenario.report(start_ms, late_ms, vec![(id, Running, 300_000)]).unwrap();
    assert_eq!(scenario.escrow(&id).held(), Grains(3000));
    settle(&mut scenario, late_ms + 1, id).unwrap();
    assert_eq!(scenario.balance(&scenario.user), ALLOWANCE);
}

#[test]
fn an_expiry_that_somebody_settles_first_costs_its_node_nothing() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let start_ms = scenario.contract(&id).starts_ms;
    settle(&mut scenario, start_ms + 1_000_000, id).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Ended(EndReason::Expired));
    scenario.report(start_ms, start_ms + 1_001_000, vec![(id, Running, 1_000_000)]).unwrap();
    assert_eq!(scenario.balance(&scenario.farmer), Grains(ALLOWANCE.0 + 10_000));
}

#[test]
fn of_a_long_silence_only_as_much_stays_held_as_a_report_can_claim() {
    let (mut scenario, id, start_ms) = agreed();
    fund(&mut scenario, start_ms + 1, id, 108_000).unwrap();
    close(&mut scenario, start_ms + 3 * HOUR_MS, id);
    let reach_s = (limits::REPORT_COVERS_MS + limits::CLOCK_SLACK_MS) / 1000;
    assert_eq!(scenario.escrow(&id).held(), Grains(10 * reach_s));
}
