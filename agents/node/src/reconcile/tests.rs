use super::*;
use croft_protocol::contract::{EndReason, Quorum, SignedTerms, Terms};
use croft_protocol::{Capacity, FarmId, Hash, Name, PublicKey, Rate, Signature};
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
        capacity_version: 1,
        quorum: Quorum::default(),
        sealed: vec![],
        expires_ms: u64::MAX,
        nonce: [0; 16],
    };
    let starts_ms = if state == ContractState::Agreed { 0 } else { START_MS };
    ContractBody {
        signed: SignedTerms { terms, user: Signature([0; 64]), farmer: Signature([0; 64]) },
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
    actions(&BTreeMap::from([(id(), body)]), &task.map(|t| (id(), t)).into_iter().collect(), now_ms)
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
        state in 0_usize..5, ended in 0_u64..2_000_000, now in 0_u64..4_000_000, task in 0_usize..3,
    ) {
        let state = [
            ContractState::Agreed, ContractState::Approved, ContractState::Active, ContractState::Degraded,
            ContractState::Ended(EndReason::Expired),
        ][state];
        let task = [None, Some(Activity::Working), Some(Activity::Stopping)][task];
        let found = decide(body(state, ended), task, now);
        if found.contains(&Action::DeleteData(id())) {
            prop_assert!(matches!(state, ContractState::Ended(_)) && now >= ended + 50_000 && task.is_none());
        }
        let starts = found.contains(&Action::Start(id()));
        let stops = found.iter().any(|a| matches!(a, Action::Stop(..)));
        prop_assert!(!(starts && stops));
        if starts {
            prop_assert!(state.may_run() && task.is_none());
        }
    }
}
