//! One block, one transaction.
//!
//! It must never write part of a block: every table changes in the same durable transaction, and a block
//! that does not follow the stored one is refused before anything is written.

use std::collections::BTreeMap;

use croft_ledger::log_tree::NodeAt;
use croft_ledger::{BlockContext, InvalidGenesis, assemble, execute_genesis};
use croft_protocol::{Genesis, Hash, Record, RecordId, StateKey, encode};
use redb::{AccessGuard, Database, ReadableTable, WriteTransaction};

use super::snapshot::Snapshot;
use super::tables::{
    BODIES, FORMAT, HANDOVERS, HEADERS, INDEX_VERSION, LOG_NODES, MAP_NODES, META, META_BASE, META_CHAIN,
    META_FORMAT, META_GENESIS, META_INDEX, META_MAP, META_PROOFS, META_TIP, PAST, RECORDS, STATE, VERSIONS,
    version_key,
};
use super::{Block, SignGenesis, StoreError, bodies, index, past};

pub(super) enum GenesisError {
    Invalid(InvalidGenesis),
    Store(StoreError),
}

/// Executes and certifies the genesis.
pub(super) fn genesis_block(genesis: &Genesis, sign: &SignGenesis<'_>) -> Result<Block, GenesisError> {
    let outcome = execute_genesis(genesis).map_err(GenesisError::Invalid)?;
    let (no_log, no_map) = (BTreeMap::<NodeAt, Hash>::new(), BTreeMap::<Vec<u8>, Vec<u8>>::new());
    let before = assemble::Before::Genesis(genesis);
    let assembled = assemble::assemble(before, BlockContext::genesis(genesis), &outcome, &no_log, &no_map)
        .map_err(|e| GenesisError::Store(e.into()))?;
    let signed = sign(assembled.header);
    Ok(Block { signed, commands: Vec::new(), outcome, log: assembled.log, map: assembled.map })
}

/// What everybody makes of a genesis: the first header, and its records.
pub(super) fn made_by(genesis: &Genesis) -> Result<(croft_protocol::Header, Vec<Record>), String> {
    // Nobody's signature is asked for: only what would be signed.
    match genesis_block(genesis, &|header| assemble::certify(header, 0, genesis.validators.clone(), &[])) {
        Ok(block) => Ok((block.signed.header, block.outcome.records)),
        Err(GenesisError::Invalid(error)) => Err(error.to_string()),
        Err(GenesisError::Store(error)) => Err(error.to_string()),
    }
}

/// Writes the first block of a new file.
pub(super) fn write_first(database: &Database, genesis: &Genesis, block: &Block) -> Result<(), StoreError> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        if meta.get(META_FORMAT)?.is_some() {
            return Err(StoreError::Unfit { what: "there is a ledger in this file already".to_owned() });
        }
        meta.insert(META_FORMAT, FORMAT.to_le_bytes().as_slice())?;
        meta.insert(META_CHAIN, encode(&genesis.chain_id()).as_slice())?;
        meta.insert(META_GENESIS, encode(genesis).as_slice())?;
        meta.insert(META_INDEX, INDEX_VERSION.to_le_bytes().as_slice())?;
        meta.insert(META_BASE, 0u64.to_le_bytes().as_slice())?;
        meta.insert(META_PROOFS, 0u64.to_le_bytes().as_slice())?;
    }
    write_tables(&transaction, block)?;
    transaction.commit()?;
    Ok(())
}

/// Writes a block on top of what `before` shows.
pub(super) fn write_block(database: &Database, before: &Snapshot, block: &Block) -> Result<(), StoreError> {
    check_follows(before, block)?;
    let transaction = database.begin_write()?;
    write_tables(&transaction, block)?;
    transaction.commit()?;
    Ok(())
}

fn check_follows(before: &Snapshot, block: &Block) -> Result<(), StoreError> {
    let (old, new) = (&before.tip().header, &block.signed.header);
    let rules = [
        (new.chain == old.chain, "it is of another chain"),
        (new.height == old.height + 1, "its height is not the next"),
        (new.prev == old.hash(), "it names another header as the previous one"),
        (new.time_ms > old.time_ms, "its time is not later"),
        (new.validators == old.next_validators, "it is certified by other validators"),
        (new.log_size == old.log_size + block.outcome.records.len() as u64, "its log has another size"),
        (block.outcome.results.len() == block.commands.len(), "it has not one result for each command"),
        (new.log_root == block.log.head.root && new.log_size == block.log.head.size, "its log root is wrong"),
        (new.state_root == block.map.head.root, "its state root is wrong"),
        (block.signed.certificate.header == new.hash(), "its certificate is for another header"),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(StoreError::Unfit { what: (*what).to_owned() }),
        None => Ok(()),
    }
}

fn write_tables(transaction: &WriteTransaction, block: &Block) -> Result<(), StoreError> {
    let header = &block.signed.header;
    let first = header.log_size - block.outcome.records.len() as u64;
    write_records(transaction, block, first)?;
    write_state(transaction, block)?;
    write_nodes(transaction, block)?;
    index::update(transaction, block)?;
    let body = bodies::packed(&block.commands)?;
    transaction.open_table(BODIES)?.insert(header.height, body.as_slice())?;
    transaction.open_table(HEADERS)?.insert(header.height, encode(&block.signed).as_slice())?;
    // Opened at each block so that it exists from the first one on.
    let mut handovers = transaction.open_table(HANDOVERS)?;
    if header.next_validators != header.validators {
        handovers.insert(&header.validators.0, header.height)?;
    }
    let mut meta = transaction.open_table(META)?;
    meta.insert(META_TIP, header.height.to_le_bytes().as_slice())?;
    meta.insert(META_MAP, encode(&block.map.head).as_slice())?;
    Ok(())
}

fn write_records(transaction: &WriteTransaction, block: &Block, first: u64) -> Result<(), StoreError> {
    let mut records = transaction.open_table(RECORDS)?;
    let mut versions = transaction.open_table(VERSIONS)?;
    for (position, record) in (first..).zip(&block.outcome.records) {
        let known = records.insert(position, encode(record).as_slice())?.is_some();
        let key = version_key(&record.id, record.version);
        if known || versions.insert(key.as_slice(), position)?.is_some() {
            let what = format!("version {} of {:?} is stored already", record.version, record.id);
            return Err(StoreError::Unfit { what });
        }
    }
    Ok(())
}

fn write_state(transaction: &WriteTransaction, block: &Block) -> Result<(), StoreError> {
    // The latest version of a record is its state: it must be the same bytes, or proofs would fail.
    let latest: BTreeMap<RecordId, &croft_protocol::Record> =
        block.outcome.records.iter().map(|record| (record.id, record)).collect();
    let height = block.signed.header.height;
    let mut state = transaction.open_table(STATE)?;
    let mut past = transaction.open_table(PAST)?;
    for (key, value) in &block.outcome.writes {
        match (key, value) {
            (StateKey::Record(id), value) => {
                let record = latest.get(id).map(|record| encode(*record));
                if record.is_none() || record != *value {
                    let what = format!("the state of {id:?} is not its newest record");
                    return Err(StoreError::Unfit { what });
                }
            }
            (key, value) => {
                let key = encode(key);
                let old = match value {
                    Some(value) => state.insert(key.as_slice(), value.as_slice())?,
                    None => state.remove(key.as_slice())?,
                };
                past::remember_value(&mut past, height, &key, old.as_ref().map(AccessGuard::value))?;
            }
        }
    }
    Ok(())
}

fn write_nodes(transaction: &WriteTransaction, block: &Block) -> Result<(), StoreError> {
    let mut log_nodes = transaction.open_table(LOG_NODES)?;
    for (at, hash) in &block.log.nodes {
        log_nodes.insert((at.level, at.index), &hash.0)?;
    }
    let mut map_nodes = transaction.open_table(MAP_NODES)?;
    for (key, node) in &block.map.nodes {
        map_nodes.insert(key.as_slice(), node.as_slice())?;
    }
    past::remember_map(transaction, block)
}
