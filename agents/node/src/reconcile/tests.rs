use super::*;
use croft_protocol::contract::{EndReason, Escrow, Quorum, SignedTerms, Terms};
use croft_protocol::{Capacity, ContractBody, FarmId, Hash, Name, PublicKey, Rate, Signature};
use proptest::prelude::*;

const START_MS: u64 = 1_000_000;

fn body(state: ContractState, ended_ms: u64) -> ContractBody {
    let key = PublicKey([1; 32]);
    let terms = Terms {
        name: Name::new("web").unwrap(),
        user: key,
        farmer: key,
        farm: FarmId(Hash::ZERO),
        node: key,
        resources: Capacity::default(),
        ports: vec![],
        rate: Rate(1),
        duration_s: 100,
        grace_s: 50,
        prepaid_s: None,
        capacity_version: 1,
        quorum: Quorum::default(),
        sealed: vec![],
        expires_ms: u64::MAX,
        nonce: [0; 16],
    };
    let starts_ms = if state == ContractState::Agreed { 0 } else { START_MS };
    ContractBody {
        signed: SignedTerms { terms, user: Signature([0; 64]).into(), farmer: Signature([0; 64]).into() },
        state,
        agreed_ms: START_MS,
        starts_ms,
        ended_ms,
    }
}

fn id() -> ContractId {
    ContractId(Hash([9; 32]))
}

fn decide(body: ContractBody, task: Option<Activity>, now_ms: u64) -> Vec<Action> {
    decide_kept(KeptContract { body, paid_until_ms: u64::MAX, held: Grains(0) }, task, now_ms)
}

fn decide_kept(kept: KeptContract, task: Option<Activity>, now_ms: u64) -> Vec<Action> {
    actions(&BTreeMap::from([(id(), kept)]), &task.map(|t| (id(), t)).into_iter().collect(), now_ms)
}

/// As of [`START_MS`], with a deposit for 40 of the 100 seconds.
fn prepaid(escrow: Escrow, unreported_ms: u64, now_ms: u64) -> KeptContract {
    let escrow = Escrow { deposit: Grains(40), covered_until_ms: START_MS, ..escrow };
    KeptContract::new(body(ContractState::Active, 0), &escrow, unreported_ms, now_ms)
}

#[test]
fn a_workload_stops_by_itself_when_its_funds_are_used_up() {
    let kept = prepaid(Escrow::default(), 0, START_MS);
    assert_eq!(kept.paid_until_ms, START_MS + 40_000);
    assert_eq!(decide_kept(kept.clone(), Some(Activity::Working), START_MS + 39_999), []);
    let stopped = decide_kept(kept.clone(), Some(Activity::Working), START_MS + 40_000);
    assert_eq!(stopped, [Action::Stop(id(), StopReason::Unpaid)]);
    assert_eq!(decide_kept(kept, None, START_MS + 40_000), [], "nor is it started for nothing");
    // What ran and is not reported yet is owed too, and is counted once.
    assert_eq!(prepaid(Escrow::default(), 10_000, START_MS + 10_000).paid_until_ms, START_MS + 40_000);
    let covered = Escrow { covered_ms: 15_000, paid: Grains(15), ..Escrow::default() };
    assert_eq!(prepaid(covered, 5_000, START_MS + 30_000).paid_until_ms, START_MS + 50_000);
    assert_eq!(prepaid(covered, 99_000, START_MS + 30_000).paid_until_ms, START_MS + 25_000);
    let full = KeptContract::new(
        body(ContractState::Active, 0),
        &Escrow { deposit: Grains(100), ..Escrow::default() },
        0,
        START_MS,
    );
    assert_eq!(full.paid_until_ms, u64::MAX, "what is paid until its expiry has no other end");
}

#[test]
fn a_paused_contract_keeps_its_data_and_is_settled_after_the_grace_period() {
    let paused = body(ContractState::Paused { since_ms: START_MS + 10_000 }, 0);
    let stop = Action::Stop(id(), StopReason::Unpaid);
    assert_eq!(decide(paused.clone(), Some(Activity::Working), START_MS + 10_001), [stop]);
    assert_eq!(decide(paused.clone(), None, START_MS + 59_999), []);
    assert_eq!(decide(paused, None, START_MS + 60_000), [Action::Settle(id())]);
    let ended = body(ContractState::Ended(EndReason::OutOfFunds), START_MS + 61_000);
    assert_eq!(decide(ended, None, START_MS + 61_000), [Action::DeleteData(id())], "the grace has passed");
}

#[test]
fn what_no_final_report_claimed_is_settled_for_the_user() {
    let ended = body(ContractState::Ended(EndReason::ClosedByUser), START_MS + 10);
    let kept = KeptContract { body: ended, paid_until_ms: u64::MAX, held: Grains(3) };
    let late = START_MS + 10 + croft_protocol::limits::FINAL_REPORT_MS;
    assert!(!decide_kept(kept.clone(), None, late - 1).contains(&Action::Settle(id())));
    assert!(decide_kept(kept.clone(), None, late).contains(&Action::Settle(id())));
    let refunded = KeptContract { held: Grains(0), ..kept };
    assert!(!decide_kept(refunded, None, late).contains(&Action::Settle(id())));
}

#[test]
fn an_approved_contract_is_started_once() {
    assert_eq!(decide(body(ContractState::Approved, 0), None, START_MS), [Action::Start(id())]);
    assert_eq!(decide(body(ContractState::Approved, 0), Some(Activity::Working), START_MS), []);
}

#[test]
fn a_contract_without_its_quorum_never_runs() {
    assert_eq!(decide(body(ContractState::Agreed, 0), None, START_MS), []);
    let stop = Action::Stop(id(), StopReason::NotAllowed);
    assert_eq!(decide(body(ContractState::Agreed, 0), Some(Activity::Working), START_MS), [stop]);
}

#[test]
fn a_degraded_contract_goes_on() {
    assert_eq!(decide(body(ContractState::Degraded, 0), Some(Activity::Working), START_MS), []);
    assert_eq!(decide(body(ContractState::Degraded, 0), None, START_MS), [Action::Start(id())]);
}

#[test]
fn paid_time_that_is_over_stops_the_workload_and_settles() {
    let over = START_MS + 100_000;
    let actions = decide(body(ContractState::Active, 0), Some(Activity::Working), over);
    assert_eq!(actions, [Action::Stop(id(), StopReason::Expired), Action::Settle(id())]);
    let before = decide(body(ContractState::Active, 0), Some(Activity::Working), over - 1);
    assert_eq!(before, []);
}

#[test]
fn data_outlives_the_contract_for_the_grace_period() {
    let ended = body(ContractState::Ended(EndReason::ClosedByUser), START_MS + 10);
    assert_eq!(decide(ended.clone(), None, START_MS + 10 + 49_999), []);
    assert_eq!(decide(ended.clone(), None, START_MS + 10 + 50_000), [Action::DeleteData(id())]);
    let stopping = decide(ended, Some(Activity::Stopping), START_MS + 10 + 50_000);
    assert_eq!(stopping, [], "data is in use until the owner task is gone");
}

#[test]
fn a_workload_whose_record_is_out_of_reach_is_left_alone() {
    let tasks = BTreeMap::from([(id(), Activity::Working)]);
    assert_eq!(actions(&BTreeMap::new(), &tasks, START_MS), []);
}

proptest! {
    #[test]
    fn data_is_deleted_only_of_ended_contracts_after_their_grace(
        state in 0_usize..7, ended in 0_u64..2_000_000, now in 0_u64..4_000_000, task in 0_usize..3,
    ) {
        let state = [
            ContractState::Agreed, ContractState::Approved, ContractState::Active, ContractState::Degraded,
            ContractState::Ended(EndReason::Expired), ContractState::Ended(EndReason::OutOfFunds),
            ContractState::Paused { since_ms: START_MS },
        ][state];
        let task = [None, Some(Activity::Working), Some(Activity::Stopping)][task];
        let found = decide(body(state, ended), task, now);
        if found.contains(&Action::DeleteData(id())) {
            let grace_ms = if state == ContractState::Ended(EndReason::OutOfFunds) { 0 } else { 50_000 };
            prop_assert!(matches!(state, ContractState::Ended(_)) && now >= ended + grace_ms && task.is_none());
        }
        let starts = found.contains(&Action::Start(id()));
        let stops = found.iter().any(|a| matches!(a, Action::Stop(..)));
        prop_assert!(!(starts && stops));
        if starts {
            prop_assert!(state.may_run() && task.is_none());
        }
    }
}
