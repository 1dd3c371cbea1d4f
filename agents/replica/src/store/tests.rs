//! Crashes between any two writes, failing disks, damaged files, and what searches find.

use croft_ledger::{StateReadExt, assemble};
use croft_light::{LightClient, verify_record, verify_value};
use croft_protocol::api::{ContractQuery, FarmQuery, NodeQuery, Phases, Query};
use croft_protocol::contract::ContractBody;
use croft_protocol::header::Validator;
use croft_protocol::{
    Body, Capacity, Command, ContractState, EndReason, Hash, Kind, RecordId, SignedValidatorChange, StateKey,
    ValidatorChange, ValidatorSet,
};

use super::faults::{MemoryDisk, Op, apply};
use super::*;
use crate::ordering::make_block;
use crate::testing::{Grid, START_MS, key};

fn apply_all<'a>(image: &mut Vec<u8>, ops: impl IntoIterator<Item = &'a Op>) {
    for op in ops {
        apply(image, op);
    }
}

/// What the disk may hold after the power went at a moment: each write since the last sync may or may not
/// have reached it, and one may be torn.
pub(crate) fn crash_images(before: &[u8], journal: &[Op]) -> Vec<(usize, Vec<u8>)> {
    let mut images = Vec::new();
    for cut in 0..=journal.len() {
        let synced = journal[..cut].iter().rposition(|op| matches!(op, Op::Sync)).map_or(0, |at| at + 1);
        let mut durable = before.to_vec();
        apply_all(&mut durable, &journal[..synced]);
        let pending = &journal[synced..cut];
        images.push((cut, durable.clone()));
        let mut all = durable.clone();
        apply_all(&mut all, pending);
        images.push((cut, all));
        for odd in [0, 1] {
            let mut some = durable.clone();
            // Growing the file is a matter of its metadata; what is written beyond needs it.
            let kept = |(i, op): &(usize, &Op)| i % 2 == odd || matches!(op, Op::SetLen(_));
            apply_all(&mut some, pending.iter().enumerate().filter(kept).map(|(_, op)| op));
            images.push((cut, some));
        }
        if let Some((Op::Write { offset, data }, rest)) = pending.split_last() {
            let mut torn = durable;
            apply_all(&mut torn, rest);
            let half = Op::Write { offset: *offset, data: data[..data.len() / 2].to_vec() };
            apply(&mut torn, &half);
            images.push((cut, torn));
        }
    }
    images
}

#[test]
fn a_crash_at_any_write_leaves_the_old_block_or_the_new_one_whole() {
    let grid = Grid::new();
    let (store, disk) = grid.store();
    grid.populate(&store);
    let (old, before) = (store.latest().height(), disk.data());
    disk.take_journal();
    let pay = grid.sign(&store.latest(), &grid.user, 0, grid.pay(7));
    grid.commit(&store, &[pay]);
    let journal = disk.take_journal();
    assert!(journal.iter().any(|op| matches!(op, Op::Sync)), "the commit is durable");
    let images = crash_images(&before, &journal);
    assert!(images.len() > 20, "{} images", images.len());
    let mut seen = [false; 2];
    for (cut, image) in images {
        let disk = MemoryDisk::with(image);
        let store = grid.open(&disk).unwrap_or_else(|e| panic!("after write {cut}: {e}"));
        let height = store.latest().height();
        assert!(height == old || height == old + 1, "after write {cut}: height {height}");
        assert!(cut < journal.len() || height == old + 1, "what was acknowledged is there");
        seen[usize::from(height > old)] = true;
        store.audit().unwrap_or_else(|e| panic!("after write {cut}: {e}"));
        grid.commit(&store, &[]);
    }
    assert_eq!(seen, [true, true]);
}

#[test]
fn a_write_that_fails_shows_nothing_of_the_block_and_the_file_recovers() {
    let grid = Grid::new();
    let mut failures = 0;
    for left in 0.. {
        let (store, disk) = grid.store();
        grid.populate(&store);
        let old = store.latest().height();
        let pay = grid.sign(&store.latest(), &grid.user, 0, grid.pay(7));
        let block = grid.block(&store, &[pay]);
        disk.fail_after(Some(left));
        let committed = store.commit(&block);
        disk.fail_after(None);
        let Err(error) = committed else { break };
        failures += 1;
        assert!(matches!(error, StoreError::Io(_)), "{error}");
        assert!(crate::chain_of(&error).contains("No space left on device"), "{error:?}");
        assert_eq!(store.latest().height(), old, "readers still see the old block");
        assert!(matches!(store.commit(&block), Err(StoreError::Closed)));
        let height = store.recover().unwrap().height();
        assert!(height == old || height == old + 1);
        store.audit().unwrap();
        grid.commit(&store, &[]);
    }
    assert!(failures > 3, "{failures} failures");
}

#[test]
fn no_block_is_begun_on_a_disk_that_is_nearly_full() {
    let grid = Grid::new();
    let (store, disk) = grid.store();
    disk.set_free(RESERVED_BYTES - 1);
    let error = store.commit(&grid.block(&store, &[])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/test/ledger.redb has only 64 MiB of disk left, 64 MiB are kept for the ledger: make room"
    );
    assert_eq!(store.latest().height(), 0);
    disk.set_free(RESERVED_BYTES);
    grid.commit(&store, &[]);
}

#[test]
fn a_damaged_file_is_refused_and_named() {
    let grid = Grid::new();
    let (store, disk) = grid.store();
    grid.populate(&store);
    drop(store);
    let whole = disk.data();
    let mut refused = 0;
    // Every place once in a while; many bytes of a file are free space.
    for at in (0..whole.len()).step_by(1021) {
        let mut image = whole.clone();
        image[at] ^= 0xff;
        match grid.open(&MemoryDisk::with(image)) {
            Ok(store) => assert!(store.audit().is_ok(), "byte {at} is wrong and nobody noticed"),
            Err(error @ OpenError::Damaged { .. }) => {
                refused += 1;
                let text = error.to_string();
                assert!(text.starts_with("/test/ledger.redb is damaged: "), "{text}");
                let remedy = "; move the file away and run 'replica join --config replica.toml', or restore it from a copy";
                assert!(text.ends_with(remedy), "{text}");
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("/test/ledger.redb"), "{error}");
            }
        }
    }
    assert!(refused > 10, "{refused} refused");
}

#[test]
fn a_block_that_does_not_follow_is_refused_with_the_reason() {
    let grid = Grid::new();
    let (store, _) = grid.store();
    let good = grid.block(&store, &[]);
    let refused = |change: fn(&mut Block)| {
        let mut block = good.clone();
        change(&mut block);
        store.commit(&block).unwrap_err().to_string()
    };
    let says = |what: &str| format!("the block does not follow the stored one: {what}");
    assert_eq!(refused(|b| b.signed.header.height = 2), says("its height is not the next"));
    assert_eq!(refused(|b| b.signed.header.time_ms = START_MS), says("its time is not later"));
    assert_eq!(refused(|b| b.signed.header.log_size = 9), says("its log has another size"));
    assert_eq!(
        refused(|b| b.outcome.results.push(Err(croft_protocol::Rejection::Overflow))),
        says("it has not one result for each command")
    );
    assert_eq!(refused(|b| b.signed.header.state_root = Hash::ZERO), says("its state root is wrong"));
    assert_eq!(
        refused(|b| b.signed.certificate.header = Hash::ZERO),
        says("its certificate is for another header")
    );
    store.commit(&good).unwrap();
    assert_eq!(store.commit(&good).unwrap_err().to_string(), says("its height is not the next"));
}

#[test]
fn the_commands_of_a_block_are_kept_and_make_the_same_block_again() {
    let grid = Grid::new();
    let (store, disk) = grid.store();
    grid.populate(&store);
    let before = store.latest();
    let good = grid.sign(&before, &grid.user, 0, grid.pay(7));
    let bad = grid.sign(&before, &grid.user, 1, grid.pay(u64::MAX));
    let block = grid.block(&store, &[good.clone(), bad.clone()]);
    assert!(block.outcome.results[1].is_err(), "a rejected command is part of the block too");
    store.commit(&block).unwrap();
    // A second look at the same bytes, as after a start.
    let opened = grid.open(&disk).unwrap();
    let snapshot = opened.latest();
    let kept = snapshot.commands(snapshot.height()).unwrap().unwrap();
    assert_eq!(kept, [good, bad]);
    let time_ms = block.signed.header.time_ms;
    let again = make_block(&before, time_ms, &kept, |header| grid.certify(header)).unwrap();
    assert_eq!(again.signed, block.signed);
    assert_eq!(snapshot.commands(0).unwrap(), Some(Vec::new()));
    assert_eq!(snapshot.commands(snapshot.height() + 1).unwrap(), None);
}

#[test]
fn a_file_of_an_earlier_format_is_refused_and_left_alone() {
    let grid = Grid::new();
    let (store, disk) = grid.store();
    drop(store);
    let database = disk.open().unwrap();
    let transaction = database.begin_write().unwrap();
    let old = 1u32.to_le_bytes();
    transaction.open_table(tables::META).unwrap().insert(tables::META_FORMAT, old.as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = grid.open(&disk).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "/test/ledger.redb has format 1, this program reads format {}: use the release that wrote it, or move the \
             file away and run 'replica join --config replica.toml'",
            tables::FORMAT
        )
    );
}

#[test]
fn a_ledger_on_a_real_file_is_exclusive_and_bound_to_its_chain() {
    let grid = Grid::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let missing = Store::open(dir.path(), &grid.genesis).unwrap_err().to_string();
    assert_eq!(
        missing,
        format!(
            "there is no ledger at {}: copy it from the other replicas with 'replica join --config replica.toml', or \
             restore it from a copy; a validator that starts anew would sign a second history",
            path.display()
        )
    );
    let store = Store::create(dir.path(), &grid.genesis, &|header| grid.certify(header)).unwrap();
    let again = Store::open(dir.path(), &grid.genesis).unwrap_err().to_string();
    assert_eq!(
        again,
        format!("{} is in use by another process: stop the other replica first", path.display())
    );
    let exists = Store::create(dir.path(), &grid.genesis, &|header| grid.certify(header)).unwrap_err();
    assert_eq!(
        exists.to_string(),
        format!("there is a ledger at {} already: choose another folder", path.display())
    );
    grid.commit(&store, &[]);
    drop(store);
    assert_eq!(Store::open(dir.path(), &grid.genesis).unwrap().latest().height(), 1);
    let mut other = grid.genesis.clone();
    other.time_ms += 1;
    let wrong = Store::open(dir.path(), &other).unwrap_err().to_string();
    assert_eq!(
        wrong,
        format!(
            "{} belongs to chain {}, but the genesis says {}: check which grid this replica is for",
            path.display(),
            grid.chain(),
            other.chain_id()
        )
    );
    std::fs::write(&path, b"").unwrap();
    let empty = Store::open(dir.path(), &grid.genesis).unwrap_err().to_string();
    assert_eq!(
        empty,
        format!(
            "{} is damaged: it is empty; move the file away and run 'replica join --config replica.toml', or restore it \
             from a copy",
            path.display()
        )
    );
}

#[test]
fn what_is_read_is_proved_to_a_light_client() {
    let grid = Grid::new();
    let (store, _) = grid.store();
    grid.populate(&store);
    let snapshot = store.latest();
    let mut light = LightClient::new(grid.chain(), grid.genesis.validators.hash());
    let tip = light.accept_tip(snapshot.tip(), None).unwrap();
    let contract = grid.terms("web", 1).id();
    for key in [
        StateKey::Record(RecordId::contract(&contract)),
        StateKey::Capacity(grid.node.public()),
        StateKey::NodeContracts(grid.node.public()),
        StateKey::Account(grid.user.public()),
    ] {
        let proved = snapshot.prove(&key).unwrap();
        assert!(verify_value(&tip, &key, &proved).unwrap().is_some(), "{key:?}");
    }
    let absent = StateKey::Account(key(77).public());
    assert_eq!(verify_value(&tip, &absent, &snapshot.prove(&absent).unwrap()).unwrap(), None);
    let log = snapshot.range(0, 100).unwrap();
    assert_eq!(log.len() as u64, tip.header().log_size);
    for proved in &log {
        verify_record(&tip, proved).unwrap();
    }
    let history = snapshot.history(&RecordId::farm(&grid.farm()), 1, 10).unwrap();
    assert_eq!(history.len(), 1);
    croft_light::verify_record(&tip, &history[0]).unwrap();
}

#[test]
fn a_snapshot_does_not_change_while_blocks_come() {
    let grid = Grid::new();
    let (store, _) = grid.store();
    let before = store.latest();
    grid.populate(&store);
    assert_eq!(before.height(), 0);
    assert!(before.farm(&grid.farm()).unwrap().is_none());
    assert!(store.latest().farm(&grid.farm()).unwrap().is_some());
    let absent = StateKey::Record(RecordId::farm(&grid.farm()));
    assert_eq!(before.prove(&absent).unwrap().value, None);
}

fn ids(store: &Store, query: &Query) -> Vec<RecordId> {
    let found = store.latest().query(query, None, 100).unwrap();
    assert_eq!(found.next, None);
    found.things.iter().map(|record| record.id).collect()
}

fn contracts(ended: bool) -> Query {
    let phases = if ended { Phases::ALL } else { Phases::LIVE };
    Query::Contracts(ContractQuery { phases, ..ContractQuery::default() })
}

#[test]
fn searches_find_what_is_there_and_follow_its_changes() {
    let grid = Grid::new();
    let (store, _) = grid.store();
    grid.populate(&store);
    let contract = RecordId::contract(&grid.terms("web", 1).id());
    let node = RecordId::node(&grid.node.public());
    let farm = RecordId::farm(&grid.farm());
    let farms = |owner| Query::Farms(FarmQuery { owner, ..FarmQuery::default() });
    assert_eq!(ids(&store, &farms(None)), [farm]);
    assert_eq!(ids(&store, &farms(Some(grid.farmer.public()))), [farm]);
    assert_eq!(ids(&store, &farms(Some(grid.user.public()))), []);
    for (user, farmer, on) in [
        (Some(&grid.user), None, None),
        (None, Some(&grid.farmer), None),
        (None, None, Some(&grid.node)),
        (Some(&grid.user), Some(&grid.farmer), Some(&grid.node)),
    ] {
        let party = |key: Option<&croft_protocol::SecretKey>| key.map(croft_protocol::SecretKey::public);
        let query =
            ContractQuery { user: party(user), farmer: party(farmer), node: party(on), ..Default::default() };
        let query = Query::Contracts(query);
        assert_eq!(ids(&store, &query), [contract], "{query:?}");
    }
    let swapped =
        ContractQuery { user: Some(grid.farmer.public()), phases: Phases::ALL, ..Default::default() };
    assert_eq!(ids(&store, &Query::Contracts(swapped)), [], "a farmer is not the user");
    let nodes = |farm, country: Option<&str>, cpu_millis| {
        Query::Nodes(NodeQuery {
            farm,
            country: country.map(str::to_owned),
            free: Capacity { cpu_millis, ..Capacity::default() },
            ..NodeQuery::default()
        })
    };
    for query in [
        nodes(None, None, 7_000),
        nodes(Some(grid.farm()), None, 7_000),
        nodes(None, Some("be"), 7_000),
        nodes(Some(grid.farm()), Some("be"), 7_000),
    ] {
        assert_eq!(ids(&store, &query), [node], "{query:?}");
    }
    assert_eq!(ids(&store, &nodes(Some(grid.farm()), Some("nl"), 1)), []);
    assert_eq!(ids(&store, &nodes(None, Some("nl"), 1)), []);
    assert_eq!(ids(&store, &nodes(None, None, 7_001)), [], "one of eight CPUs is sold");

    let close = Command::Close { contract: grid.terms("web", 1).id() };
    grid.commit(&store, &[grid.sign(&store.latest(), &grid.user, 0, close)]);
    assert_eq!(ids(&store, &nodes(None, None, 8_000)), [node], "it is free again");
    assert_eq!(ids(&store, &contracts(false)), []);
    assert_eq!(ids(&store, &contracts(true)), [contract]);
    let latest = store.latest().latest_record(&contract).unwrap().unwrap();
    let Body::Contract(body) = latest.body else { panic!() };
    let ContractBody { state, .. } = *body;
    assert_eq!(state, ContractState::Ended(EndReason::ClosedByUser));
}

#[test]
fn pages_go_on_where_they_stopped() {
    let grid = Grid::new();
    let (store, _) = grid.store();
    let view = store.latest();
    let commands: Vec<_> = (0..10).map(|i| grid.sign(&view, &grid.user, i, grid.pay(i + 1))).collect();
    let made = grid.commit(&store, &commands);
    let mut made: Vec<_> = made.iter().filter(|r| r.id.kind == Kind::Transfer).map(|r| r.id).collect();
    assert_eq!(made.len(), 10);
    for of in [grid.user.public(), grid.farmer.public()] {
        let query = Query::Transfers { of };
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.latest().query(&query, after.as_ref(), 3).unwrap();
            assert!(page.things.len() <= 3);
            seen.extend(page.things.iter().map(|record| record.id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        seen.sort_unstable();
        made.sort_unstable();
        assert_eq!(seen, made);
    }
}

/// Commits a block in which the one validator gets another power; whoever is to certify it does.
pub(crate) fn set_power(grid: &Grid, store: &Store, power: u64) {
    let before = store.latest();
    let present = before.validators().unwrap();
    let key = grid.validator.public();
    let validators = ValidatorSet { validators: vec![Validator { key, power }] };
    let change = ValidatorChange { prev: present.record, validators };
    let signatures = vec![change.sign(&grid.validator, &grid.chain())];
    let command = Command::SetValidators(Box::new(SignedValidatorChange { change, signatures }));
    let command = grid.sign(&before, &grid.user, 0, command);
    let certify = |header| assemble::certify(header, 0, present.set, std::slice::from_ref(&grid.validator));
    let block = make_block(&before, before.tip().header.time_ms + 1, &[command], certify).unwrap();
    block.outcome.results[0].as_ref().unwrap();
    store.commit(&block).unwrap();
}

#[test]
fn the_last_handover_of_each_set_is_found_and_none_of_the_present_one() {
    let grid = Grid::new();
    let (store, disk) = grid.store();
    let set = |power| ValidatorSet { validators: vec![Validator { key: grid.validator.public(), power }] };
    let found = |store: &Store, power: u64| {
        let header = store.latest().handover(&set(power).hash()).unwrap();
        header.map(|signed| (signed.header.height, signed.header.next_validators))
    };
    assert_eq!(found(&store, 1), None, "it never handed over");
    set_power(&grid, &store, 10);
    assert_eq!(found(&store, 1), Some((1, set(10).hash())), "as soon as the block is there that says so");
    assert_eq!(found(&store, 10), None);
    set_power(&grid, &store, 9);
    assert_eq!(found(&store, 10), Some((2, set(9).hash())));
    set_power(&grid, &store, 10);
    assert_eq!(found(&store, 10), None, "it is back: nobody need go anywhere");
    assert_eq!(found(&store, 9), Some((3, set(10).hash())));
    set_power(&grid, &store, 9);
    set_power(&grid, &store, 8);
    assert_eq!(found(&store, 10), Some((4, set(9).hash())), "the last time counts");
    assert_eq!(found(&store, 9), Some((5, set(8).hash())));
    assert_eq!(found(&store, 7), None, "it never was one");
    store.audit().unwrap();

    // Whoever trusts the first set comes to the present one, whatever it has seen of the time between.
    for seen in 0..=4 {
        let snapshot = store.latest();
        let mut light = LightClient::new(grid.chain(), set(1).hash());
        for height in 1..=seen {
            light.accept_handover(&snapshot.header(height).unwrap().unwrap()).unwrap();
        }
        while let Some(handover) = snapshot.handover(&light.trusted()).unwrap() {
            light.accept_handover(&handover).unwrap();
        }
        assert_eq!(light.trusted(), set(8).hash());
    }
    drop(store);
    assert_eq!(found(&grid.open(&disk).unwrap(), 10), Some((4, set(9).hash())));
}
