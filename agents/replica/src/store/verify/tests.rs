//! Each kind of damage, made inside a file that is otherwise as it should be, is found and said with its height.

use croft_ledger::StateReadExt;
use croft_ledger::block::BlockContext;
use croft_ledger::{Before, BlockOutcome, assemble, certify};
use croft_protocol::record::BotBody;
use croft_protocol::state::Account;
use croft_protocol::validators::{SignedValidatorChange, ValidatorChange};
use croft_protocol::{Command, ContractBody, Kind, SignedHeader, ValidatorSet, encode};
use redb::{ReadableTable, WriteTransaction};

use super::*;
use crate::store::faults::MemoryDisk;
use crate::store::tables::{ENTRIES, HEADERS, INDEX, RECORDS, STATE};
use crate::store::{Block, Store};
use crate::testing::{Grid, key, name};

/// Blocks 1 to 3 are a farm, its node and a contract; 4 a transfer, 5 the contract's end.
fn ledger(grid: &Grid) -> (Store, MemoryDisk) {
    let (store, disk) = grid.store();
    grid.populate(&store);
    grid.commit(&store, &[grid.sign(&store.latest(), &grid.user, 0, grid.pay(7))]);
    let close = Command::Close { contract: grid.terms("web", 1).id() };
    grid.commit(&store, &[grid.sign(&store.latest(), &grid.user, 0, close)]);
    (store, disk)
}

fn check(grid: &Grid, disk: &MemoryDisk) -> Result<Verified, VerifyError> {
    verify(disk, Some(&grid.genesis), |_, _| {})
}

fn change(disk: &MemoryDisk, change: impl FnOnce(&WriteTransaction)) {
    let database = disk.open().unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
}

/// What is said of a ledger after a change inside its file.
fn said(tamper: impl FnOnce(&Grid, &WriteTransaction)) -> String {
    let grid = Grid::new();
    let (store, disk) = ledger(&grid);
    drop(store);
    change(&disk, |transaction| tamper(&grid, transaction));
    check(&grid, &disk).unwrap_err().to_string()
}

fn edit_header(transaction: &WriteTransaction, height: u64, edit: impl FnOnce(&mut SignedHeader)) {
    let mut headers = transaction.open_table(HEADERS).unwrap();
    let mut signed: SignedHeader = borsh::from_slice(headers.get(height).unwrap().unwrap().value()).unwrap();
    edit(&mut signed);
    headers.insert(height, encode(&signed).as_slice()).unwrap();
}

/// Position of the first record of a kind.
fn position_of(transaction: &WriteTransaction, kind: Kind) -> (u64, Record) {
    let records = transaction.open_table(RECORDS).unwrap();
    let mut found = records.iter().unwrap().map(|entry| {
        let (position, bytes) = entry.unwrap();
        (position.value(), borsh::from_slice::<Record>(bytes.value()).unwrap())
    });
    found.find(|(_, record)| record.id.kind == kind).unwrap()
}

fn put_record(transaction: &WriteTransaction, position: u64, record: &Record) {
    let mut records = transaction.open_table(RECORDS).unwrap();
    records.insert(position, encode(record).as_slice()).unwrap();
}

#[test]
fn a_whole_ledger_is_found_to_be_whole() {
    let grid = Grid::new();
    let (store, disk) = ledger(&grid);
    let expected = store.latest().tip().header;
    drop(store);
    let mut steps = Vec::new();
    let verified = verify(&disk, None, |done, all| steps.push((done, all))).unwrap();
    assert_eq!(steps, (1..=6).map(|done| (done, 6)).collect::<Vec<_>>());
    assert_eq!((verified.height, verified.records), (expected.height, expected.log_size));
    assert_eq!((verified.contracts, verified.handovers), (1, 0));
    assert_eq!((verified.supply, verified.chain), (Grains(2_000_000), grid.chain()));
    assert_eq!(check(&grid, &disk).unwrap(), verified);
}

#[test]
fn damaged_headers_are_named_with_their_height() {
    let missing = said(|_, t| drop(t.open_table(HEADERS).unwrap().remove(2).unwrap()));
    assert_eq!(missing, "block 2 is wrong: its header is missing");
    let garbled = said(|_, t| drop(t.open_table(HEADERS).unwrap().insert(2, [1, 2, 3].as_slice()).unwrap()));
    assert!(garbled.starts_with("block 2 is wrong: header 2 can't be decoded"), "{garbled}");
    let forged = said(|grid, t| {
        edit_header(t, 2, |signed| signed.certificate.signatures[0].1 = certify_other(grid, signed));
    });
    let validator = Grid::new().validator.public();
    assert_eq!(
        forged,
        format!("block 2 is wrong: the signature of validator {validator} over header 2 is wrong")
    );
    let unsigned = said(|_, t| edit_header(t, 4, |signed| signed.certificate.signatures.clear()));
    assert_eq!(
        unsigned,
        "block 4 is wrong: header 4 is signed by 0 of 1 power, more than two thirds are needed"
    );
}

/// The validator's signature over another header.
fn certify_other(grid: &Grid, signed: &SignedHeader) -> croft_protocol::Signature {
    let other = Header { time_ms: signed.header.time_ms + 1, ..signed.header };
    grid.certify(other).certificate.signatures[0].1
}

#[test]
fn a_header_that_its_validator_signed_again_breaks_the_chain_at_the_next() {
    let again = said(|grid, t| {
        edit_header(t, 2, |signed| {
            *signed = grid.certify(Header { state_root: Hash::ZERO, ..signed.header });
        });
    });
    assert_eq!(again, "block 3 is wrong: it does not name the block before it");
    let first = said(|grid, t| {
        edit_header(t, 0, |signed| {
            *signed = grid.certify(Header { state_root: Hash::ZERO, ..signed.header });
        });
    });
    assert_eq!(first, "block 0 is wrong: it is not what the genesis makes");
}

#[test]
fn a_certificate_of_validators_who_are_not_in_force_is_refused() {
    let stranger = key(99);
    let text = said(|_, t| {
        edit_header(t, 2, |signed| {
            let set = ValidatorSet::of_equals(&[stranger.public()]);
            let header = Header { validators: set.hash(), ..signed.header };
            *signed = certify(header, 0, set, std::slice::from_ref(&stranger));
        });
    });
    assert_eq!(text, "block 2 is wrong: it is certified by other validators than are in force");
}

#[test]
fn validators_who_took_over_are_believed_from_the_next_block_on() {
    let grid = Grid::new();
    let (store, disk) = ledger(&grid);
    let (old, new) = (grid.validator.clone(), key(101));
    let set = ValidatorSet::of_equals(&[old.public(), new.public()]);
    let present = store.latest().validators().unwrap().record;
    let change = ValidatorChange { prev: present, validators: set.clone() };
    let signature = change.sign(&old, &grid.chain());
    let command =
        Command::SetValidators(Box::new(SignedValidatorChange { change, signatures: vec![signature] }));
    grid.commit(&store, &[grid.sign(&store.latest(), &grid.user, 0, command)]);
    let before = store.latest();
    let time_ms = before.tip().header.time_ms + 1;
    let both = |header| certify(header, 0, set.clone(), &[old.clone(), new.clone()]);
    store.commit(&crate::ordering::make_block(&before, time_ms, &[], both).unwrap()).unwrap();
    drop(store);
    let verified = check(&grid, &disk).unwrap();
    assert_eq!((verified.height, verified.handovers), (7, 1));

    // The old one alone is no longer enough.
    change_header(&disk, 7, |signed| signed.certificate.signatures.retain(|(key, _)| *key == old.public()));
    assert_eq!(
        check(&grid, &disk).unwrap_err().to_string(),
        "block 7 is wrong: header 7 is signed by 1 of 2 power, more than two thirds are needed"
    );
}

fn change_header(disk: &MemoryDisk, height: u64, edit: impl FnOnce(&mut SignedHeader)) {
    change(disk, |transaction| edit_header(transaction, height, edit));
}

#[test]
fn changed_and_missing_records_are_named_with_their_block() {
    let missing = said(|_, t| {
        let (position, _) = position_of(t, Kind::Node);
        t.open_table(RECORDS).unwrap().remove(position).unwrap();
    });
    assert!(
        missing.starts_with("block 2 is wrong: record ") && missing.ends_with(" is missing"),
        "{missing}"
    );
    let changed = said(|_, t| {
        let (position, mut record) = position_of(t, Kind::Transfer);
        let Body::Transfer(transfer) = &mut record.body else { panic!() };
        transfer.amount = Grains(8);
        put_record(t, position, &record);
    });
    assert_eq!(changed, "block 4 is wrong: its log root is not that of the records up to it");
    let redated = said(|_, t| {
        let (position, mut record) = position_of(t, Kind::Transfer);
        record.height = 2;
        put_record(t, position, &record);
    });
    assert!(redated.starts_with("block 4 is wrong: record "), "{redated}");
    assert!(redated.ends_with(" is dated to another block"), "{redated}");
    let renumbered = said(|_, t| {
        let (position, mut record) = position_of(t, Kind::Farm);
        record.version = 3;
        put_record(t, position, &record);
    });
    assert!(renumbered.starts_with("block 1 is wrong: record "), "{renumbered}");
    assert!(renumbered.ends_with(" does not name version 0 as the one before it"), "{renumbered}");
}

#[test]
fn changed_values_are_found_by_their_sums_or_by_the_root() {
    let edit = |grid: &Grid, t: &WriteTransaction, edit: fn(&mut Account)| {
        let mut state = t.open_table(STATE).unwrap();
        let key = encode(&StateKey::Account(grid.user.public()));
        let mut account: Account =
            borsh::from_slice(state.get(key.as_slice()).unwrap().unwrap().value()).unwrap();
        edit(&mut account);
        state.insert(key.as_slice(), encode(&account).as_slice()).unwrap();
    };
    let richer = said(|grid, t| edit(grid, t, |account| account.balance.0 += 1));
    assert_eq!(
        richer,
        "block 5 is wrong: the supply is 2 000 000 grains, but accounts have 1999981, escrows hold 20 and reservations 0"
    );
    let younger = said(|grid, t| edit(grid, t, |account| account.next_sequence = 0));
    assert_eq!(younger, "block 5 is wrong: its state root is not that of the records and values in the file");
    let minted = said(|grid, t| {
        edit(grid, t, |account| account.balance.0 += 1);
        let mut state = t.open_table(STATE).unwrap();
        state.insert(encode(&StateKey::Supply).as_slice(), encode(&Grains(2_000_001)).as_slice()).unwrap();
    });
    assert_eq!(minted, "block 5 is wrong: there are 2 000 001 grains, the genesis made 2 000 000 grains");
}

/// A block of one record that no command makes, certified by the validator, as if it had gone bad.
fn commit_forged(grid: &Grid, store: &Store, id: RecordId, version: u64, body: Body) {
    let before = store.latest();
    let header = before.tip().header;
    let ctx = BlockContext::after(&header, header.time_ms + 1);
    let known = before.latest_record(&id).unwrap();
    let prev = known.map(|record| record.hash());
    let author = grid.user.public();
    let record = Record { id, version, prev, body, author, height: ctx.height, time_ms: ctx.time_ms };
    let outcome = BlockOutcome {
        writes: [(StateKey::Record(id), Some(encode(&record)))].into(),
        records: vec![record],
        results: Vec::new(),
        events: Vec::new(),
    };
    let made = assemble(
        Before::Header { header: &header, map: before.map_head() },
        ctx,
        &outcome,
        &*before,
        &*before,
    );
    let made = made.unwrap();
    let signed = grid.certify(made.header);
    store.commit(&Block { signed, commands: Vec::new(), outcome, log: made.log, map: made.map }).unwrap();
}

#[test]
fn capacity_that_was_sold_twice_is_found_even_if_validators_signed_it() {
    let grid = Grid::new();
    let (store, disk) = ledger(&grid);
    let mut terms = grid.terms("huge", 1);
    terms.resources.cpu_millis = 8_001;
    let id = terms.id();
    let Command::Agree(signed) = grid.agree(terms) else { panic!() };
    let now = store.latest().tip().header.time_ms;
    let body = ContractBody {
        signed: *signed,
        state: ContractState::Approved,
        agreed_ms: now,
        starts_ms: now,
        ended_ms: 0,
    };
    commit_forged(&grid, &store, RecordId::contract(&id), 1, Body::Contract(Box::new(body)));
    drop(store);
    let node = grid.node.public();
    assert_eq!(
        check(&grid, &disk).unwrap_err().to_string(),
        format!("block 6 is wrong: contract {id} takes more than node {node} has left")
    );
}

#[test]
fn a_version_that_skips_one_is_found_even_if_validators_signed_it() {
    let grid = Grid::new();
    let (store, disk) = ledger(&grid);
    let body = Body::Bot(BotBody { name: name("mallory") });
    commit_forged(&grid, &store, RecordId::bot(&grid.user.public()), 3, body);
    drop(store);
    let error = check(&grid, &disk).unwrap_err().to_string();
    assert!(error.starts_with("block 6 is wrong: record "), "{error}");
    assert!(error.ends_with(" does not name version 1 as the one before it"), "{error}");
}

#[test]
fn a_damaged_index_is_told_from_a_damaged_ledger() {
    let missing = said(|_, t| drop(t.open_table(INDEX).unwrap().pop_first().unwrap()));
    assert!(missing.starts_with("all blocks are right, but the file around them is not: "), "{missing}");
    assert!(missing.ends_with("of the index"), "{missing}");
    let surplus = said(|_, t| drop(t.open_table(INDEX).unwrap().insert([1, 2].as_slice(), ()).unwrap()));
    assert!(surplus.contains("the index has "), "{surplus}");
    let other = said(|_, t| drop(t.open_table(ENTRIES).unwrap().pop_first().unwrap()));
    assert!(other.contains("the index entry of"), "{other}");
}

#[test]
fn another_grids_ledger_is_refused_with_both_chains() {
    let grid = Grid::new();
    let (store, disk) = ledger(&grid);
    drop(store);
    let mut other = grid.genesis.clone();
    other.time_ms += 1;
    let error = verify(&disk, Some(&other), |_, _| {}).unwrap_err().to_string();
    let (found, expected) = (grid.chain(), other.chain_id());
    assert!(error.contains(&format!("belongs to chain {found}, but the genesis says {expected}")), "{error}");
}

#[test]
fn an_index_of_another_release_is_made_anew_and_is_the_same() {
    let grid = Grid::new();
    let (store, disk) = ledger(&grid);
    drop(store);
    change(&disk, |transaction| {
        let mut meta = transaction.open_table(crate::store::tables::META).unwrap();
        meta.remove(crate::store::tables::META_INDEX).unwrap();
        transaction.delete_table(INDEX).unwrap();
        transaction.delete_table(ENTRIES).unwrap();
    });
    grid.open(&disk).unwrap().audit().unwrap();
    check(&grid, &disk).unwrap();
}
