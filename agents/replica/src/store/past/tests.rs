//! Old values and their proofs, what goes when, and crashes while it goes.

use std::collections::BTreeMap;

use croft_light::{LightClient, verify_value};
use croft_protocol::{Command, RecordId, SignedHeader};
use redb::ReadableDatabase;

use super::super::faults::{MemoryDisk, Op};
use super::super::tests::crash_images;
use super::super::{RESERVED_BYTES, Store};
use super::*;
use crate::testing::{Grid, key};

const KEEP: Keep = Keep { proof_blocks: 20, command_blocks: 30 };

/// One block that changes things that are there: the version of a node, accounts, the capacity.
fn overwrite(grid: &Grid, store: &Store, round: u64) {
    let view = store.latest();
    let node = Command::RegisterNode { node: grid.node_body("n1", 1 + round), join: None, attestation: None };
    let commands = [grid.sign(&view, &grid.node, 0, node), grid.sign(&view, &grid.user, 0, grid.pay(round))];
    grid.commit(store, &commands);
}

fn prune_all(store: &Store, keep: Keep, at_most: usize) {
    while let Slice::More { removed } = store.prune(keep, at_most).unwrap() {
        assert!(removed <= at_most + NODES_PER_ROW, "{removed} in a slice of {at_most}");
    }
}

fn watched(grid: &Grid) -> Vec<StateKey> {
    vec![
        StateKey::Account(grid.user.public()),
        StateKey::Account(grid.node.public()),
        StateKey::Account(key(77).public()),
        StateKey::Capacity(grid.node.public()),
        StateKey::Record(RecordId::node(&grid.node.public())),
        StateKey::Record(RecordId::contract(&grid.terms("web", 1).id())),
        StateKey::Supply,
    ]
}

fn check(grid: &Grid, header: &SignedHeader, key: &StateKey, proved: &ProvedValue) -> Option<Vec<u8>> {
    let mut light = LightClient::new(grid.chain(), grid.genesis.validators.hash());
    let tip = light.accept_tip(header, None).unwrap();
    verify_value(&tip, key, proved).unwrap()
}

#[test]
fn every_value_of_the_window_is_proved_at_its_height_and_older_ones_are_refused_by_name() {
    let grid = Grid::new();
    let (store, _) = grid.store();
    // What was the newest at each height.
    let mut then = BTreeMap::new();
    let mut remember = |store: &Store| {
        let view = store.latest();
        for key in watched(&grid) {
            then.insert((view.height(), key.clone()), view.prove(&key).unwrap().value);
        }
    };
    remember(&store);
    grid.populate(&store);
    remember(&store);
    for round in 1..=50 {
        overwrite(&grid, &store, round);
        remember(&store);
    }
    let all = |from: u64| {
        let view = store.latest();
        for ((height, key), value) in &then {
            let proved = view.prove_at(*height, key);
            if *height >= from {
                let header = view.header(*height).unwrap().unwrap();
                assert_eq!(check(&grid, &header, key, &proved.unwrap()), *value, "{key:?} at {height}");
            } else {
                assert_eq!(
                    proved.unwrap_err().to_string(),
                    format!(
                        "values are kept from height {from} on, height {height} is pruned: ask for a newer one"
                    )
                );
            }
        }
    };
    let tip = store.latest().height();
    all(0);
    assert_eq!(
        store.latest().prove_at(tip + 1, &StateKey::Supply).unwrap_err().to_string(),
        format!("height {} is above the newest block {tip}", tip + 1)
    );
    prune_all(&store, KEEP, 16);
    overwrite(&grid, &store, 99);
    all(tip - KEEP.proof_blocks);
    let kept = store.latest().kept().unwrap();
    assert_eq!((kept.headers, kept.proofs), (0, tip - KEEP.proof_blocks));
    assert_eq!(kept.commands, Some(tip - KEEP.command_blocks));
    assert_eq!(store.latest().commands(tip - KEEP.command_blocks - 1).unwrap(), None);
    assert_eq!(store.latest().commands(tip).unwrap().unwrap().len(), 2);
    store.audit().unwrap();
}

/// Bytes of what is not kept for ever.
fn passing_bytes(store: &Store) -> u64 {
    let slot = store.database.read().unwrap();
    let transaction = slot.as_ref().unwrap().begin_read().unwrap();
    let nodes = transaction.open_table(MAP_NODES).unwrap().stats().unwrap();
    let stale = transaction.open_table(MAP_STALE).unwrap().stats().unwrap();
    let heads = transaction.open_table(MAP_HEADS).unwrap().stats().unwrap();
    let past = transaction.open_table(PAST).unwrap().stats().unwrap();
    let bodies = transaction.open_table(BODIES).unwrap().stats().unwrap();
    [nodes, stale, heads, past, bodies].iter().map(redb::TableStats::stored_bytes).sum()
}

#[test]
fn the_same_things_changed_again_and_again_take_no_more_room() {
    let grid = Grid::new();
    let (store, _) = grid.store();
    grid.populate(&store);
    let version = |round: u64| Command::RegisterNode {
        node: grid.node_body("n1", 1 + round),
        join: None,
        attestation: None,
    };
    let mut bytes = Vec::new();
    for round in 1..=200u64 {
        grid.commit(&store, &[grid.sign(&store.latest(), &grid.node, 0, version(round))]);
        prune_all(&store, KEEP, 64);
        if round % 50 == 0 {
            bytes.push(passing_bytes(&store));
        }
    }
    let (least, most) = (bytes.iter().min().unwrap(), bytes.iter().max().unwrap());
    assert!(most - least < least / 10, "after 50, 100, 150 and 200 changes: {bytes:?}");
    store.audit().unwrap();
}

#[test]
fn more_stale_nodes_than_are_kept_end_the_window_early_and_what_is_promised_still_holds() {
    let grid = Grid::new();
    let (store, _) = grid.store();
    grid.populate(&store);
    for round in 1..=20 {
        overwrite(&grid, &store, round);
    }
    let rows = store.latest().kept().unwrap().stale_rows;
    assert!(rows >= 20, "{rows}");
    let tip = store.latest().height();
    let slot = store.database.read().unwrap();
    while let Slice::More { .. } = prune_within(slot.as_ref().unwrap(), tip, Keep::default(), 8, 16).unwrap()
    {
    }
    drop(slot);
    overwrite(&grid, &store, 30);
    let kept = store.latest().kept().unwrap();
    assert!(kept.proofs > tip - 10 && kept.proofs < tip, "{kept:?}");
    store.audit().unwrap();
}

#[test]
fn a_crash_at_any_write_of_a_slice_or_the_block_after_it_loses_nothing_that_is_promised() {
    let grid = Grid::new();
    let (store, disk) = grid.store();
    grid.populate(&store);
    for round in 1..=12 {
        overwrite(&grid, &store, round);
    }
    let keep = Keep { proof_blocks: 3, command_blocks: 4 };
    let before = disk.data();
    disk.take_journal();
    let first = store.prune(keep, 8).unwrap();
    assert!(matches!(first, Slice::More { .. }), "{first:?}");
    overwrite(&grid, &store, 13);
    prune_all(&store, keep, 8);
    overwrite(&grid, &store, 14);
    let journal = disk.take_journal();
    assert!(journal.iter().any(|op| matches!(op, Op::Sync)));
    let mut promised = std::collections::BTreeSet::new();
    // Some of them: each takes two whole checks.
    for (cut, image) in crash_images(&before, &journal).into_iter().step_by(13) {
        let disk = MemoryDisk::with(image);
        let store = grid.open(&disk).unwrap_or_else(|e| panic!("after write {cut}: {e}"));
        store.audit().unwrap_or_else(|e| panic!("after write {cut}: {e}"));
        promised.insert(store.latest().kept().unwrap().proofs);
        prune_all(&store, keep, 64);
        overwrite(&grid, &store, 50);
        store.audit().unwrap_or_else(|e| panic!("after write {cut}, pruned again: {e}"));
    }
    assert!(promised.len() >= 2, "before and after: {promised:?}");
}

#[test]
fn a_slice_on_a_failing_disk_harms_nothing_and_on_a_short_one_does_not_begin() {
    let grid = Grid::new();
    let (store, disk) = grid.store();
    grid.populate(&store);
    for round in 1..=12 {
        overwrite(&grid, &store, round);
    }
    let keep = Keep { proof_blocks: 3, command_blocks: 4 };
    disk.take_journal();
    disk.set_free(RESERVED_BYTES - 1);
    assert_eq!(store.prune(keep, 100).unwrap(), Slice::Deferred);
    assert!(disk.take_journal().is_empty(), "nothing was written");
    disk.set_free(2 * RESERVED_BYTES);
    for left in 0..40 {
        disk.fail_after(Some(left));
        // A slice need not touch the disk before the next block does.
        let pruned = store.prune(keep, 8);
        disk.fail_after(None);
        if let Err(error) = pruned {
            assert!(crate::chain_of(&error).contains("No space left on device"), "{error:?}");
            store.recover().unwrap();
        }
        overwrite(&grid, &store, 100 + left);
        store.audit().unwrap();
    }
    let kept = store.latest().kept().unwrap();
    assert!(kept.proofs > 30, "{kept:?}");
}
