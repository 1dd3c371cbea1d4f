//! What a report may say, and that nobody is paid twice, too early, too late, or for silence.

use croft_protocol::contract::Approver;
use croft_protocol::record::WorkloadState::{self, Failing, Finished, Preparing, Refused, Running};
use croft_protocol::{Command, ContractId, Grains, Hash, Rejection};

use super::*;
use crate::block::Receipt;
use crate::memory::{ALLOWANCE, Scenario, key};

/// A grid with a running contract of 1000 s at 10 grains/s, and its start.
fn running() -> (Scenario, ContractId, u64) {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let start_ms = scenario.now_ms();
    (scenario, id, start_ms)
}

/// A report in a block at a given time, with whatever a test changes.
fn report_at(
    scenario: &mut Scenario,
    at_ms: u64,
    change: impl FnOnce(&mut ReportBody),
) -> Result<Receipt, Rejection> {
    let (node, now_ms) = (scenario.node.clone(), scenario.now_ms());
    let mut report = scenario.report_body(now_ms, now_ms, Vec::new());
    change(&mut report);
    scenario.ledger.submit_at(at_ms, &node, Command::Report(report))
}

fn reason(result: Result<Receipt, Rejection>) -> String {
    let text = result.expect_err("the report must be refused").to_string();
    text.strip_prefix("the report is no good: ").unwrap_or(&text).to_owned()
}

#[test]
fn covered_time_is_paid_at_once_and_rounding_is_never_repeated() {
    let (mut scenario, id, start) = running();
    // 10 grains/s for 1 ms is nothing yet, a hundred times 1 ms is one grain.
    for i in 0..100 {
        scenario.report(start + i, start + i + 1, vec![(id, Running, 1)]).unwrap();
    }
    assert_eq!(scenario.escrow(&id).covered_ms, 100);
    assert_eq!(scenario.escrow(&id).paid, Grains(1));
    assert_eq!(scenario.balance(&scenario.farmer), Grains(ALLOWANCE.0 + 1));
}

#[test]
fn only_the_time_that_it_ran_is_paid() {
    let (mut scenario, id, start) = running();
    scenario.report(start, start + 100_000, vec![(id, Failing, 30_000)]).unwrap();
    assert_eq!(scenario.escrow(&id).paid, Grains(300));
    scenario.report(start + 100_000, start + 200_000, vec![(id, Preparing, 0)]).unwrap();
    assert_eq!(scenario.escrow(&id).paid, Grains(300));
    scenario.report(start + 200_000, start + 300_000, Vec::new()).unwrap();
    assert_eq!(scenario.escrow(&id).paid, Grains(300), "what is not in the report did not run");
}

#[test]
fn time_before_the_start_and_after_the_end_is_not_paid() {
    let mut scenario = Scenario::new();
    let before = scenario.now_ms();
    let at_ms = before + 50_000;
    let (user, agree) = (scenario.user.clone(), scenario.sign(scenario.terms("web")));
    let id = agree.terms.id();
    scenario.ledger.submit_at(at_ms, &user, Command::Agree(Box::new(agree))).unwrap();
    scenario.report(before, at_ms + 10_000, vec![(id, Running, 60_000)]).unwrap();
    assert_eq!(scenario.escrow(&id).paid, Grains(100));
    let last = at_ms + 10_000;
    scenario.report(last, last + 5_000_000, vec![(id, Running, 5_000_000)]).unwrap();
    let escrow = scenario.escrow(&id);
    assert_eq!((escrow.paid, escrow.refunded), (Grains(10_000), Grains::ZERO), "never beyond the deposit");
    let ended = ContractState::Ended(EndReason::Expired);
    assert_eq!(scenario.contract(&id).state, ended, "a report after the end ends it");
}

#[test]
fn no_moment_is_covered_twice() {
    let (mut scenario, id, start) = running();
    scenario.report(start, start + 10_000, vec![(id, Running, 10_000)]).unwrap();
    let again = scenario.report(start + 9_999, start + 20_000, vec![(id, Running, 10_000)]);
    assert_eq!(
        reason(again),
        format!("it covers from {} ms, an earlier one covers until {} ms", start + 9_999, start + 10_000)
    );
    // Not in a new session either.
    let node = scenario.node.clone();
    let mut body = scenario.node_body();
    body.session = 2;
    scenario
        .ledger
        .submit(&node, Command::RegisterNode { node: body, join: None, attestation: None })
        .unwrap();
    let new = report_at(&mut scenario, start + 30_000, |report| {
        report.session = 2;
        report.from_ms = start;
        report.until_ms = start + 20_000;
    });
    assert!(reason(new).contains("an earlier one covers until"));
}

#[test]
fn a_report_is_recent_not_too_long_and_not_from_the_future() {
    let (mut scenario, _, start) = running();
    let now = start + 100_000_000;
    let refused = |from_ms, until_ms| {
        reason(report_at(&mut scenario.clone(), now, |report| {
            report.from_ms = from_ms;
            report.until_ms = until_ms;
        }))
    };
    assert_eq!(refused(now, now - 1), format!("it covers {now} to {} ms, backwards", now - 1));
    let covers = limits::REPORT_COVERS_MS;
    assert_eq!(refused(now - covers - 1, now), "it covers 7200001 ms, at most 7200000 are allowed");
    let ahead = now + limits::CLOCK_SLACK_MS + 1;
    assert_eq!(
        refused(now, ahead),
        format!("it covers until {ahead} ms, but it is {now} ms: correct the node's clock")
    );
    let oldest = now - covers - limits::CLOCK_SLACK_MS;
    assert_eq!(
        refused(oldest - 1, oldest),
        format!("it covers from {} ms, nothing before {oldest} ms counts now", oldest - 1)
    );
    report_at(&mut scenario, now, |report| {
        report.from_ms = now - covers + limits::CLOCK_SLACK_MS;
        report.until_ms = now + limits::CLOCK_SLACK_MS;
    })
    .expect("both limits may be reached");
}

#[test]
fn silence_is_not_paid_afterwards() {
    let mut scenario = Scenario::new();
    let mut terms = scenario.terms("web");
    terms.duration_s = 86_400;
    let id = scenario.agree(terms).unwrap();
    let start = scenario.now_ms();
    // A day later the node says that it ran all the time; two hours of that can count.
    let now = start + 80_000_000;
    let covers = limits::REPORT_COVERS_MS;
    let mut claim = |at_ms, from_ms| {
        report_at(&mut scenario, at_ms, |report| {
            (report.from_ms, report.until_ms) = (from_ms, from_ms + covers);
            let line = ContractReport { contract: id, state: Running, ran_ms: covers, detail: String::new() };
            report.contracts = vec![line];
        })
    };
    assert!(reason(claim(now, start)).contains("nothing before"));
    claim(now + 1, now - covers).unwrap();
    assert!(reason(claim(now + 2, now - 2 * covers)).contains("nothing before"));
    assert!(reason(claim(now + 3, now - covers)).contains("an earlier one covers until"));
    assert_eq!(scenario.escrow(&id).covered_ms, covers);
}

#[test]
fn a_report_speaks_for_its_own_node_and_registered_session() {
    let (mut scenario, ..) = running();
    let (user, node, now_ms) = (scenario.user.clone(), scenario.node_id(), scenario.now_ms());
    let body = scenario.report_body(now_ms, now_ms, Vec::new());
    let foreign = scenario.ledger.submit(&user, Command::Report(body.clone()));
    assert_eq!(reason(foreign), format!("only node {node} itself may do this, not {}", user.public()));

    let stranger = key(50);
    let unknown = ReportBody { node: stranger.public(), ..body };
    let unknown = scenario.ledger.submit(&stranger, Command::Report(unknown));
    assert_eq!(reason(unknown), format!("there is no node {} on this grid", stranger.public()));

    let now_ms = scenario.now_ms();
    let older = report_at(&mut scenario, now_ms + 1, |report| report.session = 0);
    assert!(matches!(older, Err(Rejection::StaleSession { got: 0, known: 1, .. })));
    let newer = report_at(&mut scenario, now_ms + 2, |report| report.session = 2);
    assert_eq!(reason(newer), "session 2 is not registered, 1 is: register first");
}

#[test]
fn a_report_speaks_of_contracts_that_are_addressed_to_its_node() {
    let (mut scenario, id, start) = running();
    let nowhere = ContractId(Hash([3; 32]));
    let result = scenario.report(start, start + 10, vec![(nowhere, Running, 1)]);
    assert_eq!(reason(result), format!("there is no contract {nowhere} on this grid"));
    let result = scenario.report(start, start + 10, vec![(id, Running, 1), (id, Running, 1)]);
    assert_eq!(reason(result), format!("contract {id} stands in it twice"));
    let result = scenario.report(start, start + 10, vec![(id, Running, 11)]);
    assert_eq!(reason(result), format!("contract {id} can't have run 11 ms of 10"));
    let now_ms = scenario.now_ms();
    let line = ContractReport { contract: id, state: Running, ran_ms: 0, detail: "x".repeat(1025) };
    let result = report_at(&mut scenario, now_ms + 1, |report| report.contracts = vec![line]);
    assert!(reason(result).starts_with("the length of a contract's detail in bytes"));
    let many = (0..257_u16).map(|n| {
        let mut hash = [0; 32];
        hash[..2].copy_from_slice(&n.to_le_bytes());
        (ContractId(Hash(hash)), Running, 0)
    });
    let result = scenario.report(start, start + 10, many.collect());
    assert_eq!(reason(result), "it has 257 contracts, at most 256 are allowed");

    // Another node of the same farm.
    let second = key(51);
    let mut body = scenario.node_body();
    body.name = crate::memory::name("n2");
    let join = Some(scenario.join());
    scenario.ledger.submit(&second, Command::RegisterNode { node: body, join, attestation: None }).unwrap();
    let now_ms = scenario.now_ms();
    let mut report = scenario.report_body(now_ms, now_ms, vec![(id, Running, 0)]);
    report.node = second.public();
    let result = scenario.ledger.submit(&second, Command::Report(report));
    assert_eq!(reason(result), format!("contract {id} is addressed to another node"));
}

#[test]
fn a_refused_report_pays_nothing_for_any_of_its_contracts() {
    let (mut scenario, id, start) = running();
    let nowhere = ContractId(Hash([255; 32]));
    let before = scenario.ledger.state().clone();
    let result = scenario.report(start, start + 10_000, vec![(id, Running, 10_000), (nowhere, Running, 1)]);
    assert!(result.is_err());
    assert_eq!(*scenario.ledger.state(), before);
}

#[test]
fn a_contract_that_ended_meanwhile_does_not_spoil_the_report() {
    let (mut scenario, id, start) = running();
    let other = scenario.agree(scenario.terms("other")).unwrap();
    let user = scenario.user.clone();
    scenario.ledger.submit(&user, Command::Close { contract: id }).unwrap();
    let lines = vec![(id, Running, 10_000), (other, Running, 9_000)];
    scenario.report(start, start + 10_000, lines).unwrap();
    assert_eq!(scenario.escrow(&id).paid, Grains::ZERO);
    assert_eq!(scenario.escrow(&other).paid, Grains(90));
}

#[test]
fn a_contract_without_its_quorum_must_not_run() {
    let mut scenario = Scenario::new();
    let mut terms = scenario.terms("web");
    terms.quorum.threshold = 1;
    terms.quorum.approvers = vec![Approver { bot: scenario.other.public(), weight: 1, required: true }];
    let id = scenario.agree(terms).unwrap();
    let start = scenario.now_ms();
    let says = format!("contract {id} must not run: it waits for its approvers");
    for (state, ran_ms) in [(Running, 0), (Failing, 1)] {
        assert_eq!(reason(scenario.report(start, start + 10, vec![(id, state, ran_ms)])), says);
    }
    scenario.report(start, start + 10, vec![(id, Preparing, 0)]).expect("it may fetch what it will need");
    assert_eq!(scenario.contract(&id).state, ContractState::Agreed);
}

#[test]
fn the_contracts_state_follows_what_its_node_says() {
    let (mut scenario, id, start) = running();
    let steps: [(WorkloadState, ContractState); 9] = [
        (Preparing, ContractState::Approved),
        (Running, ContractState::Active),
        (Running, ContractState::Active),
        (Failing, ContractState::Degraded),
        (Preparing, ContractState::Degraded),
        (Running, ContractState::Active),
        (Preparing, ContractState::Degraded),
        (Finished, ContractState::Active),
        (Refused, ContractState::Degraded),
    ];
    let mut version = 1;
    let mut before = ContractState::Approved;
    for (i, (reported, expected)) in steps.into_iter().enumerate() {
        let from = start + i as u64;
        scenario.report(from, from + 1, vec![(id, reported, 0)]).unwrap();
        assert_eq!(scenario.contract(&id).state, expected, "step {i}: {reported:?}");
        version += u64::from(expected != before);
        before = expected;
        let record = scenario.ledger.record(&RecordId::contract(&id)).unwrap().unwrap();
        assert_eq!(record.version, version, "a new version only when the state changes");
    }
    let reports = scenario.ledger.record(&RecordId::report(&scenario.node_id())).unwrap().unwrap();
    assert_eq!(reports.version, 9, "each report is a version of the node's");
}

#[test]
fn a_refused_workload_of_a_new_contract_is_degraded() {
    let (mut scenario, id, start) = running();
    scenario.report(start, start, vec![(id, Refused, 0)]).unwrap();
    assert_eq!(scenario.contract(&id).state, ContractState::Degraded);
}
