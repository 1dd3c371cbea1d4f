//! Proofs, altered and out of place.

use std::collections::BTreeMap;

use croft_ledger::memory::{Scenario, key};
use croft_ledger::{StateRead, log_tree};
use croft_protocol::api::{ProvedRecord, ProvedValue};
use croft_protocol::{Command, ContractId, RecordId, StateKey};

use super::{client, recertified, tip};
use crate::{Fault, LightError, Tip, verify_consistency, verify_history, verify_record, verify_value};

/// A grid with a contract that ran and ended, so that there are several versions and absences.
fn scenario() -> (Scenario, ContractId) {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let start = scenario.now_ms();
    let running = croft_protocol::record::WorkloadState::Running;
    scenario.report(start, start + 1000, vec![(id, running, 1000)]).unwrap();
    let user = scenario.user.clone();
    scenario.ledger.submit(&user, Command::Close { contract: id }).unwrap();
    scenario.agree(scenario.terms("db")).unwrap();
    (scenario, id)
}

fn absent_keys(id: ContractId) -> Vec<StateKey> {
    let nobody = key(99).public();
    vec![
        StateKey::Account(nobody),
        StateKey::NodeContracts(nobody),
        StateKey::Record(RecordId::node(&nobody)),
        // It was there once.
        StateKey::ContractName(key(1).public(), "web".parse().unwrap()),
        StateKey::Escrow(ContractId(croft_protocol::Hash(id.0.0.map(|b| b ^ 1)))),
    ]
}

#[test]
fn everything_in_the_state_is_proved_and_what_is_not_is_proved_absent() {
    let (scenario, id) = scenario();
    let tip = tip(&scenario);
    for key in scenario.ledger.state().keys() {
        let value = verify_value(&tip, key, &scenario.ledger.prove(key)).unwrap();
        assert_eq!(value, scenario.ledger.get(key).unwrap());
    }
    for key in absent_keys(id) {
        assert_eq!(verify_value(&tip, &key, &scenario.ledger.prove(&key)), Ok(None), "{key:?}");
    }
}

#[test]
fn an_altered_byte_anywhere_in_a_proved_value_is_noticed() {
    let (scenario, id) = scenario();
    let tip = tip(&scenario);
    let mut keys = absent_keys(id);
    keys.extend([
        StateKey::Supply,
        StateKey::Record(RecordId::contract(&id)),
        StateKey::NodeContracts(scenario.node_id()),
    ]);
    for key in keys {
        let honest = scenario.ledger.prove(&key);
        let bytes = croft_protocol::encode(&honest);
        let mut noticed = 0;
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            let Ok(proved) = croft_protocol::decode::<ProvedValue>("value", &altered, 1 << 20) else {
                continue;
            };
            let result = verify_value(&tip, &key, &proved);
            assert!(result.is_err(), "{key:?}: byte {at} of {} was not noticed", bytes.len());
            noticed += 1;
        }
        assert!(noticed > 32, "{key:?}: {noticed}");
    }
}

#[test]
fn a_value_can_not_be_hidden_replaced_or_invented() {
    let (scenario, id) = scenario();
    let tip = tip(&scenario);
    let present = StateKey::NodeContracts(scenario.node_id());
    let honest = scenario.ledger.prove(&present);
    let [absent, ..] = &absent_keys(id)[..] else { unreachable!() };
    let absence = scenario.ledger.prove(absent);
    let with = |value: Option<&[u8]>, of: &ProvedValue| ProvedValue {
        value: value.map(<[u8]>::to_vec),
        proof: of.proof.clone(),
    };
    for (key, lie) in [
        (&present, with(None, &honest)),
        (&present, with(None, &absence)),
        (&present, with(Some(b"other"), &honest)),
        (&present, with(honest.value.as_deref(), &absence)),
        (absent, with(Some(b"invented"), &absence)),
        (absent, honest.clone()),
        (absent, with(None, &honest)),
    ] {
        let error = verify_value(&tip, key, &lie).unwrap_err();
        assert_eq!(error.fault(), Fault::Lie);
        assert!(error.to_string().starts_with("the proof for "), "{error}");
    }
    let error = verify_value(&tip, &present, &with(None, &honest)).unwrap_err().to_string();
    let node = scenario.node_id();
    assert!(error.starts_with(&format!("the proof for the contracts of node {node} at height ")), "{error}");
}

#[test]
fn a_superseded_value_is_refused() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let key = StateKey::Record(RecordId::contract(&id));
    let old = scenario.ledger.prove(&key);
    assert!(verify_value(&tip(&scenario), &key, &old).is_ok());
    let user = scenario.user.clone();
    scenario.ledger.submit(&user, Command::Close { contract: id }).unwrap();
    assert!(verify_value(&tip(&scenario), &key, &old).is_err(), "it says that the contract still runs");
}

#[test]
fn oversized_proofs_are_not_even_decoded() {
    let (scenario, _) = scenario();
    let tip = tip(&scenario);
    let huge = ProvedValue { value: None, proof: vec![0; 1 << 20] };
    let error = verify_value(&tip, &StateKey::Supply, &huge).unwrap_err().to_string();
    assert!(error.contains("state proof has 1048576 bytes, more than the limit of 20480"), "{error}");
    let mut record = scenario.ledger.prove_record(0).unwrap();
    record.proof = vec![0; 1 << 20];
    let error = verify_record(&tip, &record).unwrap_err().to_string();
    assert!(error.contains("1048576 bytes are too many"), "{error}");
    assert!(verify_consistency(&tip, &tip, &record.proof).is_err());
}

#[test]
fn every_record_is_proved_at_its_place_and_no_other() {
    let (scenario, _) = scenario();
    let tip = tip(&scenario);
    let size = scenario.ledger.records().len() as u64;
    for index in 0..size {
        let proved = scenario.ledger.prove_record(index).unwrap();
        assert_eq!(verify_record(&tip, &proved).unwrap(), &scenario.ledger.records()[index as usize]);
        let mut moved = proved.clone();
        moved.index = (index + 1) % size;
        assert!(verify_record(&tip, &moved).is_err(), "{index}");
        moved.index = u64::MAX;
        assert!(verify_record(&tip, &moved).is_err(), "{index}");
    }
}

#[test]
fn an_altered_byte_anywhere_in_a_proved_record_is_noticed() {
    let (scenario, _) = scenario();
    let tip = tip(&scenario);
    for index in [0, 5, scenario.ledger.records().len() as u64 - 1] {
        let honest = scenario.ledger.prove_record(index).unwrap();
        let bytes = croft_protocol::encode(&honest);
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            if let Ok(proved) = croft_protocol::decode::<ProvedRecord>("record", &altered, 1 << 20) {
                assert!(verify_record(&tip, &proved).is_err(), "record {index}: byte {at} was not noticed");
            }
        }
    }
}

fn history(scenario: &Scenario, id: &RecordId) -> Vec<ProvedRecord> {
    let of = |(index, record): (usize, &croft_protocol::Record)| (record.id == *id).then_some(index as u64);
    let indices = scenario.ledger.records().iter().enumerate().filter_map(of);
    indices.map(|index| scenario.ledger.prove_record(index).unwrap()).collect()
}

#[test]
fn a_history_is_a_chain_of_versions() {
    let (scenario, contract) = scenario();
    let (tip, id) = (tip(&scenario), RecordId::contract(&contract));
    let versions = history(&scenario, &id);
    let records = verify_history(&tip, &id, &versions).unwrap();
    assert_eq!(records.iter().map(|record| record.version).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(verify_history(&tip, &id, &versions[1..]).unwrap().len(), 2, "a page may begin anywhere");

    let gap = vec![versions[0].clone(), versions[2].clone()];
    let error = verify_history(&tip, &id, &gap).unwrap_err().to_string();
    assert!(error.ends_with("is wrong: it does not supersede the one before it"), "{error}");
    let mut backwards = versions.clone();
    backwards.reverse();
    assert!(verify_history(&tip, &id, &backwards).is_err());
    let other = RecordId::node(&scenario.node_id());
    let error = verify_history(&tip, &other, &versions).unwrap_err().to_string();
    assert!(error.ends_with("is wrong: it is of another thing than was asked for"), "{error}");
}

#[test]
fn a_version_that_supersedes_another_past_is_noticed_even_in_the_log() {
    let (scenario, contract) = scenario();
    let id = RecordId::contract(&contract);
    let records: Vec<_> = history(&scenario, &id).into_iter().map(|proved| proved.record).collect();
    // Broken validators certify a log in which version 2 names something else than version 1.
    let attempt = |prev| {
        let mut records = vec![records[0].clone(), records[1].clone()];
        records[1].prev = prev;
        let leaves: Vec<_> = records.iter().map(croft_protocol::encode).collect();
        let nodes = BTreeMap::new();
        let log = log_tree::append(&nodes, 0, leaves.iter().map(Vec::as_slice)).unwrap();
        let nodes: BTreeMap<_, _> = log.nodes.into_iter().collect();
        let signed = recertified(&scenario, scenario.ledger.tip(), |header| {
            (header.log_root, header.log_size) = (log.head.root, log.head.size);
        });
        let tip = client(&scenario).accept_tip(&signed, None).unwrap();
        let proved = records.into_iter().zip(0..).map(|(record, index)| {
            let proof = log_tree::prove_inclusion(&nodes, 2, index).unwrap();
            ProvedRecord { index, record, proof }
        });
        let proved: Vec<_> = proved.collect();
        verify_history(&tip, &id, &proved).map(|records| records.len())
    };
    assert_eq!(attempt(Some(records[0].hash())), Ok(2));
    for prev in [None, Some(croft_protocol::Hash::ZERO)] {
        assert!(attempt(prev).unwrap_err().to_string().contains("does not supersede the one before it"));
    }
}

#[test]
fn a_log_only_grows() {
    let (scenario, _) = scenario();
    let newest = tip(&scenario);
    let mut follower = client(&scenario);
    let tips: Vec<Tip> =
        scenario.ledger.headers().iter().map(|signed| follower.accept_tip(signed, None).unwrap()).collect();
    for (height, older) in tips.iter().enumerate() {
        let proof = scenario.ledger.prove_consistency(height);
        verify_consistency(older, &newest, &proof).unwrap();
        for at in 0..proof.len() {
            let mut altered = proof.clone();
            altered[at] ^= 1;
            assert!(verify_consistency(older, &newest, &altered).is_err(), "{height}: byte {at}");
        }
    }
    let backwards = verify_consistency(&newest, &tips[0], &[]).unwrap_err();
    assert!(matches!(backwards, LightError::Consistency { .. }), "{backwards}");

    // Another grid's log is no continuation, whatever the proof.
    let mut other = Scenario::new();
    other.add_bot("else", &key(60));
    other.add_bot("more", &key(61));
    let other_tip = tip(&other);
    let proof = scenario.ledger.prove_consistency(3);
    assert!(verify_consistency(&other_tip, &newest, &proof).is_err());
}
