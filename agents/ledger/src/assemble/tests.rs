//! Headers follow one another, and commit to all that a block changed.

use croft_protocol::StateKey;

use super::*;
use crate::block::execute_block;
use crate::memory::{Scenario, key};
use crate::state::StateRead;

/// An empty block after the scenario's tip, with whatever a test changes.
fn attempt(change: impl FnOnce(&mut Header, &mut BlockContext)) -> Result<Assembled, StateError> {
    let scenario = Scenario::new();
    let mut header = scenario.ledger.tip().header;
    let mut ctx = BlockContext::after(&header, header.time_ms + 1);
    let map = MapHead { versions: 3, root: header.state_root };
    let outcome = execute_block(&scenario.ledger, ctx, &[]).unwrap();
    change(&mut header, &mut ctx);
    let (log, map_nodes) = (scenario.ledger.log_nodes(), scenario.ledger.map_nodes());
    assemble(Before::Header { header: &header, map }, ctx, &outcome, log, map_nodes)
}

#[test]
fn an_empty_block_keeps_both_roots() {
    let before = Scenario::new().ledger.tip().header;
    let header = attempt(|_, _| {}).unwrap().header;
    assert_eq!(header.prev, before.hash());
    assert_eq!((header.log_root, header.log_size), (before.log_root, before.log_size));
    assert_eq!(header.state_root, before.state_root);
    assert_eq!((header.validators, header.next_validators), (before.next_validators, before.next_validators));
}

#[test]
fn a_block_that_does_not_follow_is_no_block() {
    let error = attempt(|_, ctx| ctx.height += 1).unwrap_err().to_string();
    assert!(error.contains("block 4 follows block 2"), "{error}");
    let error = attempt(|_, ctx| ctx.time_ms -= 1).unwrap_err().to_string();
    assert!(error.contains("is greater than that of the previous one"), "{error}");
    let error = attempt(|_, ctx| ctx.chain.0.0[0] ^= 1).unwrap_err().to_string();
    assert!(error.contains("follows block"), "{error}");
    let error = attempt(|_, ctx| ctx.prev.0[0] ^= 1).unwrap_err().to_string();
    assert!(error.contains("block 3 names the header before it"), "{error}");
    let error = attempt(|_, ctx| ctx.prev_ms -= 1).unwrap_err().to_string();
    assert!(error.contains("block 3 names the header before it"), "{error}");
    let altered = attempt(|header, ctx| {
        header.state_root.0[0] ^= 1;
        ctx.prev = header.hash();
    });
    let error = altered.unwrap_err().to_string();
    assert!(error.contains("the state map is that of block 2"), "{error}");
}

#[test]
fn every_state_key_is_provable_against_the_tip_and_so_is_every_record() {
    let mut scenario = Scenario::new();
    scenario.agree(scenario.terms("web")).unwrap();
    for key in scenario.ledger.state().keys() {
        assert_eq!(scenario.ledger.prove(key).value, scenario.ledger.get(key).unwrap());
    }
    let absent = StateKey::Account(key(99).public());
    assert_eq!(scenario.ledger.prove(&absent).value, None);
    let size = scenario.ledger.tip().header.log_size;
    assert_eq!(size as usize, scenario.ledger.records().len());
    assert!(scenario.ledger.prove_record(size - 1).is_some() && scenario.ledger.prove_record(size).is_none());
}

#[test]
fn records_of_one_thing_form_a_chain() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let close = croft_protocol::Command::Close { contract: id };
    let user = scenario.user.clone();
    scenario.ledger.submit(&user, close).unwrap();
    let of_contract = croft_protocol::RecordId::contract(&id);
    let versions: Vec<_> = scenario.ledger.records().iter().filter(|r| r.id == of_contract).collect();
    assert_eq!(versions.len(), 2);
    assert_eq!((versions[0].version, versions[0].prev), (1, None));
    assert_eq!((versions[1].version, versions[1].prev), (2, Some(versions[0].hash())));
}

#[test]
fn signatures_are_put_in_order_each_once() {
    let scenario = Scenario::new();
    let header = scenario.ledger.tip().header;
    let mut keys = scenario.validators.clone();
    keys.reverse();
    keys.push(keys[0].clone());
    let signed = certify(header, 3, scenario.ledger.genesis().validators.clone(), &keys);
    let order: Vec<_> = signed.certificate.signatures.iter().map(|(key, _)| *key).collect();
    assert_eq!(order, signed.validators.validators.iter().map(|v| v.key).collect::<Vec<_>>());
    assert_eq!((signed.certificate.height, signed.certificate.round), (header.height, 3));
}
