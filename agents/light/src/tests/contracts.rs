//! What a node acts on.

use croft_ledger::certify;
use croft_ledger::memory::{Scenario, key};
use croft_ledger::state_map::{self, MapHead};
use croft_protocol::contract::Approver;
use croft_protocol::state::NodeContracts;
use croft_protocol::{
    Body, Command, ContractId, ContractState, Hash, Rate, Record, RecordId, SignedHeader, StateKey,
};

use super::client;
use crate::{ContractError, LightError, Tip, VerifiedContract, verify_contract, verify_node_contracts};

fn verify(scenario: &Scenario, id: ContractId) -> Result<VerifiedContract, ContractError> {
    let proved = scenario.ledger.prove(&StateKey::Record(RecordId::contract(&id)));
    verify_contract(&super::tip(scenario), &scenario.node_id(), &id, &proved)
}

/// A tip of validators who sign a state with one altered value: what a node must withstand when more than two
/// thirds of them are broken.
fn broken_grid(
    scenario: &Scenario,
    key: &StateKey,
    value: Vec<u8>,
) -> (Tip, croft_protocol::api::ProvedValue) {
    let mut writes: std::collections::BTreeMap<_, _> =
        scenario.ledger.state().iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
    writes.insert(key.clone(), Some(value.clone()));
    let nodes = std::collections::BTreeMap::<Vec<u8>, Vec<u8>>::new();
    let update = state_map::update(&nodes, MapHead::EMPTY, &writes).unwrap();
    let nodes: std::collections::BTreeMap<_, _> = update.nodes.into_iter().collect();
    let SignedHeader { mut header, validators, .. } = scenario.ledger.tip().clone();
    header.state_root = update.head.root;
    let signed = certify(header, 0, validators, &scenario.validators);
    let proved = state_map::prove(&nodes, update.head, key, Some(value)).unwrap();
    (client(scenario).accept_tip(&signed, None).unwrap(), proved)
}

#[test]
fn a_contract_addressed_to_the_node_is_verified_and_may_run() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let contract = verify(&scenario, id).unwrap();
    assert_eq!((contract.id(), contract.user()), (id, scenario.user.public()));
    assert_eq!(contract.terms().id(), id);
    assert_eq!(contract.record().version, 1);
    assert_eq!(contract.check_may_run(), Ok(()));
}

#[test]
fn a_contract_without_its_quorum_or_after_its_end_is_verified_but_must_not_run() {
    let mut scenario = Scenario::new();
    let mut terms = scenario.terms("web");
    terms.quorum.threshold = 1;
    terms.quorum.approvers = vec![Approver { bot: scenario.other.public(), weight: 1, required: true }];
    let id = scenario.agree(terms).unwrap();
    let error = verify(&scenario, id).unwrap().check_may_run().unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("contract {id} must not run: it is Agreed, without its approvers' quorum or over")
    );
    let other = scenario.other.clone();
    scenario.ledger.submit(&other, Command::Approve { contract: id, approve: true }).unwrap();
    assert_eq!(verify(&scenario, id).unwrap().check_may_run(), Ok(()));
    let user = scenario.user.clone();
    scenario.ledger.submit(&user, Command::Close { contract: id }).unwrap();
    let ended = verify(&scenario, id).unwrap();
    assert!(matches!(ended.check_may_run(), Err(ContractError::MustNotRun { .. })));
    assert!(ended.body().data_kept_until_ms().is_some(), "the node learns when it may delete the data");
}

#[test]
fn a_nodes_list_is_complete_or_refused() {
    let mut scenario = Scenario::new();
    let (node, key) = (scenario.node_id(), StateKey::NodeContracts(scenario.node_id()));
    let list = |scenario: &Scenario| {
        verify_node_contracts(&super::tip(scenario), &node, &scenario.ledger.prove(&key))
    };
    assert_eq!(list(&scenario), Ok(Vec::new()), "its absence is proved");
    let mut ids =
        vec![scenario.agree(scenario.terms("web")).unwrap(), scenario.agree(scenario.terms("db")).unwrap()];
    ids.sort_unstable();
    assert_eq!(list(&scenario), Ok(ids.clone()));

    let mut hiding = scenario.ledger.prove(&key);
    hiding.value = Some(croft_protocol::encode(&NodeContracts { contracts: vec![ids[0]] }));
    let error = verify_node_contracts(&super::tip(&scenario), &node, &hiding).unwrap_err();
    assert!(matches!(error, ContractError::Light(LightError::Value { .. })), "{error}");
    hiding.value = None;
    assert!(verify_node_contracts(&super::tip(&scenario), &node, &hiding).is_err());
}

#[test]
fn an_absent_contract_is_named() {
    let scenario = Scenario::new();
    let id = ContractId(Hash([3; 32]));
    let error = verify(&scenario, id).unwrap_err().to_string();
    assert_eq!(error, format!("there is no contract {id} on this grid"));
}

#[test]
fn a_contract_of_another_node_is_not_ours() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let proved = scenario.ledger.prove(&StateKey::Record(RecordId::contract(&id)));
    let ours = key(51).public();
    let error = verify_contract(&super::tip(&scenario), &ours, &id, &proved).unwrap_err().to_string();
    let node = scenario.node_id();
    assert_eq!(error, format!("contract {id} is addressed to node {node}, not to {ours}"));
}

#[test]
fn even_broken_validators_can_not_make_a_node_run_what_the_parties_did_not_sign() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let other_id = scenario.agree(scenario.terms("db")).unwrap();
    let at = StateKey::Record(RecordId::contract(&id));
    let honest = verify(&scenario, id).unwrap().record().clone();
    let attempt = |change: &dyn Fn(&mut Record)| {
        let mut record = honest.clone();
        change(&mut record);
        let (tip, proved) = broken_grid(&scenario, &at, croft_protocol::encode(&record));
        verify_contract(&tip, &scenario.node_id(), &id, &proved)
    };
    assert!(attempt(&|_| {}).is_ok(), "the forgery itself works");
    let contract = |record: &mut Record, change: &dyn Fn(&mut croft_protocol::ContractBody)| {
        if let Body::Contract(body) = &mut record.body {
            change(body);
        }
    };
    let other_terms = attempt(&|record| contract(record, &|body| body.signed.terms.rate = Rate(1)));
    assert_eq!(other_terms, Err(ContractError::OtherRecord { contract: id }));
    for forge in [
        |body: &mut croft_protocol::ContractBody| body.signed.user = body.signed.farmer.clone(),
        |body: &mut croft_protocol::ContractBody| body.signed.farmer = body.signed.user.clone(),
    ] {
        let error = attempt(&|record| contract(record, &forge)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("a party did not sign contract {id}: the grid's validators are broken")
        );
    }
    let replaced = attempt(&|record| {
        *record =
            scenario.ledger.records().iter().find(|r| r.id == RecordId::contract(&other_id)).unwrap().clone();
    });
    assert_eq!(replaced, Err(ContractError::OtherRecord { contract: id }));
    let waiting = attempt(&|record| contract(record, &|body| body.state = ContractState::Agreed)).unwrap();
    assert!(waiting.check_may_run().is_err());

    let (tip, proved) = broken_grid(&scenario, &at, vec![1, 2, 3]);
    let error = verify_contract(&tip, &scenario.node_id(), &id, &proved).unwrap_err();
    assert_eq!(error.to_string(), format!("contract {id} can't be read: update this node's image"));
}

#[test]
fn a_list_without_order_or_end_is_refused() {
    let scenario = Scenario::new();
    let (node, at) = (scenario.node_id(), StateKey::NodeContracts(scenario.node_id()));
    let attempt = |contracts: Vec<ContractId>| {
        let (tip, proved) = broken_grid(&scenario, &at, croft_protocol::encode(&NodeContracts { contracts }));
        verify_node_contracts(&tip, &node, &proved)
    };
    let id = |n| ContractId(Hash([n; 32]));
    assert_eq!(attempt(vec![id(1), id(2)]), Ok(vec![id(1), id(2)]));
    for unordered in [vec![id(2), id(1)], vec![id(1), id(1)]] {
        assert_eq!(attempt(unordered), Err(ContractError::ListOrder { node }));
    }
    let many = vec![id(1); 257];
    assert!(matches!(attempt(many), Err(ContractError::List { .. })));
}
