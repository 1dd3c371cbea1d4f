//! Is the file what it should be? A quick check at every start, a whole one on demand.

use std::path::Path;

use croft_ledger::{log_tree, state_map};
use croft_light::{HandoverWalk, LightClient};
use croft_protocol::{ChainId, Hash, Header, Record, RecordId, SignedHeader, StateKey, encode};
use redb::{Database, ReadableDatabase};

use super::snapshot::{Snapshot, identify};
use super::tables::FORMAT;
use super::{OpenError, PastError, StoreError, index};

/// Records at the end of the log that are checked at every start: those of the last blocks.
const CHECKED_RECORDS: u64 = 256;

/// What a whole check looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditReport {
    pub headers: u64,
    /// Blocks whose commands are here and can be read; what they lead to is not executed again.
    pub bodies: u64,
    pub records: u64,
    pub values: u64,
}

/// Version, chain, and everything around the tip.
pub(super) fn check_open(path: &Path, database: &Database, chain: &ChainId) -> Result<Snapshot, OpenError> {
    let damaged = |error: StoreError| match error {
        StoreError::Damaged { what } => OpenError::Damaged { path: path.to_owned(), reason: what },
        StoreError::Io(source) => match *source {
            redb::Error::TableDoesNotExist(table) => OpenError::Damaged {
                path: path.to_owned(),
                reason: format!("its table '{table}' is missing: it is no ledger"),
            },
            redb::Error::Corrupted(reason) => OpenError::Damaged { path: path.to_owned(), reason },
            source => OpenError::Io { path: path.to_owned(), source: Box::new(source) },
        },
        other => OpenError::Damaged { path: path.to_owned(), reason: other.to_string() },
    };
    let transaction = database.begin_read().map_err(|e| damaged(e.into()))?;
    let (format, found) = identify(&transaction).map_err(damaged)?;
    if format != FORMAT {
        return Err(OpenError::Format { path: path.to_owned(), found: format, expected: FORMAT });
    }
    if found != *chain {
        return Err(OpenError::WrongChain { path: path.to_owned(), found, expected: *chain });
    }
    drop(transaction);
    index::ensure(database).map_err(damaged)?;
    let transaction = database.begin_read().map_err(|e| damaged(e.into()))?;
    let snapshot = Snapshot::new(&transaction).map_err(damaged)?;
    check_tip(&snapshot, chain).map_err(damaged)?;
    Ok(snapshot)
}

fn expect(holds: bool, what: impl FnOnce() -> String) -> Result<(), StoreError> {
    if holds { Ok(()) } else { Err(StoreError::Damaged { what: what() }) }
}

fn check_tip(snapshot: &Snapshot, chain: &ChainId) -> Result<(), StoreError> {
    let header = snapshot.tip().header;
    check_certificate(snapshot.tip(), chain)?;
    let (headers, records) = snapshot.counts()?;
    let base = snapshot.base();
    expect(base <= header.height && headers == header.height - base + 1, || {
        format!("it has {headers} headers from height {base} to {}", header.height)
    })?;
    expect(records == header.log_size, || format!("it has {records} of {} records", header.log_size))?;
    check_link(snapshot, &header)?;
    expect(snapshot.map_head().root == header.state_root, || {
        "the state map is not that of the newest header".to_owned()
    })?;
    let root = log_tree::root(snapshot, header.log_size)?;
    expect(root == header.log_root, || "the log is not that of the newest header".to_owned())?;
    for position in header.log_size.saturating_sub(CHECKED_RECORDS)..header.log_size {
        check_record(snapshot, position)?;
    }
    check_value(snapshot, &StateKey::Supply)?;
    check_value(snapshot, &StateKey::Record(RecordId::validators()))
}

/// The header before names this one's past.
fn check_link(snapshot: &Snapshot, header: &Header) -> Result<(), StoreError> {
    let prev = match header.height.checked_sub(1) {
        None => Hash::ZERO,
        // A joined ledger begins here; its certificate is what is known of its past.
        Some(_) if header.height == snapshot.base() => return Ok(()),
        Some(height) => match snapshot.header(height)? {
            Some(signed) => signed.header.hash(),
            None => return Err(StoreError::damaged(format!("header {height} is missing"))),
        },
    };
    expect(header.prev == prev, || format!("header {} does not follow the one before", header.height))
}

fn check_certificate(signed: &SignedHeader, chain: &ChainId) -> Result<(), StoreError> {
    let height = signed.header.height;
    expect(signed.header.chain == *chain, || format!("header {height} is of another chain"))?;
    croft_light::verify_certificate(signed).map_err(|error| StoreError::damaged(error.to_string()))
}

/// A set that handed over is found by its hash, unless it is back.
fn check_handover(snapshot: &Snapshot, header: &Header) -> Result<(), StoreError> {
    let Header { height, validators, next_validators, .. } = *header;
    let present = snapshot.tip().header.next_validators;
    if next_validators == validators || validators == present {
        return Ok(());
    }
    let found = snapshot.handover(&validators)?.map(|signed| signed.header);
    let holds = found.is_some_and(|found| found.height >= height && found.validators == validators);
    expect(holds, || format!("the handover at height {height} can't be found by its validators"))
}

/// The record is the one that the log commits to.
fn check_record(snapshot: &Snapshot, position: u64) -> Result<(), StoreError> {
    let bytes = snapshot.record_bytes(position)?;
    let bytes = bytes.ok_or_else(|| StoreError::damaged(format!("record {position} is missing")))?;
    let leaf = log_tree::NodeAt { level: 0, index: position };
    let known = log_tree::LogNodes::log_node(snapshot, leaf)?;
    expect(known == Some(log_tree::leaf_hash(&bytes)), || {
        format!("record {position} is not the one that the log commits to")
    })
}

/// The value is the one that the state map commits to.
fn check_value(snapshot: &Snapshot, key: &StateKey) -> Result<(), StoreError> {
    let value = snapshot.value(key)?;
    expect(value.is_some(), || format!("{key:?} is missing"))?;
    state_map::prove(snapshot, snapshot.map_head(), key, value)
        .map(|_| ())
        .map_err(|e| StoreError::damaged(e.to_string()))
}

/// Headers below the base are handovers, and lead from the validators of the genesis to those of the base: of a
/// set that came back the last one is here, so not each follows the one before. Hands back how many there are.
pub(super) fn walk_to_base(snapshot: &Snapshot, light: &mut LightClient) -> Result<u64, StoreError> {
    let handovers = snapshot.handovers()?;
    for signed in &handovers {
        check_certificate(signed, light.chain())?;
        check_handover(snapshot, &signed.header)?;
        let Header { height, validators, next_validators, .. } = signed.header;
        expect(validators != next_validators, || format!("header {height} hands over to nobody"))?;
    }
    let base = snapshot.base();
    let base =
        snapshot.header(base)?.ok_or_else(|| StoreError::damaged(format!("header {base} is missing")))?;
    let mut walk = HandoverWalk::new();
    while let Some(validators) = walk.next(light, &base) {
        let step = handovers.iter().rev().find(|signed| signed.header.validators == validators);
        let step = step.ok_or_else(|| {
            StoreError::damaged(format!("the handover of validators {validators} before its base is missing"))
        })?;
        walk.step(light, step).map_err(|error| StoreError::damaged(error.to_string()))?;
    }
    Ok(handovers.len() as u64)
}

/// Everything in the file against the roots of its tip.
pub(super) fn audit(snapshot: &Snapshot, chain: &ChainId) -> Result<AuditReport, StoreError> {
    check_tip(snapshot, chain)?;
    let tip = snapshot.tip().header;
    let mut headers = 0;
    let mut light = LightClient::new(*chain, snapshot.genesis().validators.hash());
    headers += walk_to_base(snapshot, &mut light)?;
    for height in snapshot.base()..=tip.height {
        let signed = snapshot.header(height)?;
        let signed = signed.ok_or_else(|| StoreError::damaged(format!("header {height} is missing")))?;
        // By the validators that the one before names, back to those of the genesis.
        light.accept_tip(&signed, None).map_err(|error| StoreError::damaged(error.to_string()))?;
        check_link(snapshot, &signed.header)?;
        headers += 1;
        check_handover(snapshot, &signed.header)?;
    }
    check_past(snapshot, &tip)?;
    let mut bodies = 0;
    for height in snapshot.heights_with_commands()? {
        let height = height?;
        expect(height <= tip.height, || format!("it has commands of block {height}, above the newest"))?;
        snapshot.commands(height)?;
        bodies += 1;
    }
    let mut index = index::Check::default();
    for position in 0..tip.log_size {
        check_record(snapshot, position)?;
        if let Some(newest) = check_chain_of_versions(snapshot, position)? {
            index.record(snapshot, &newest)?;
        }
    }
    index.finish(snapshot)?;
    let mut values = 0;
    snapshot.each_value(|key, value| {
        values += 1;
        state_map::prove(snapshot, snapshot.map_head(), &key, Some(value))
            .map(|_| ())
            .map_err(|e| StoreError::damaged(e.to_string()))
    })?;
    Ok(AuditReport { headers, bodies, records: tip.log_size, values })
}

/// What is promised of the past can be proved.
fn check_past(snapshot: &Snapshot, tip: &Header) -> Result<(), StoreError> {
    let kept = snapshot.kept()?;
    expect(kept.proofs >= kept.headers && kept.proofs <= tip.height, || {
        format!("it promises proofs from height {} on, at height {}", kept.proofs, tip.height)
    })?;
    for height in kept.proofs..=tip.height {
        snapshot.prove_at(height, &StateKey::Supply).map_err(|error| match error {
            PastError::Store(error) => error,
            error => StoreError::damaged(error.to_string()),
        })?;
    }
    Ok(())
}

/// A record names its predecessor; the newest of its kind, which is handed back, is what the state map commits to.
fn check_chain_of_versions(snapshot: &Snapshot, position: u64) -> Result<Option<Record>, StoreError> {
    let Some(record) = snapshot.record_at(position)? else {
        return Err(StoreError::damaged(format!("record {position} is missing")));
    };
    let id = record.id;
    expect(snapshot.position(&id, record.version)? == Some(position), || {
        format!("version {} of {id:?} is not where it should be", record.version)
    })?;
    let prev = match record.version {
        1 => None,
        version => match snapshot.position(&id, version - 1)? {
            Some(position) => snapshot.record_bytes(position)?.map(|bytes| Hash::of_bytes(&bytes)),
            None => return Err(StoreError::damaged(format!("version {} of {id:?} is missing", version - 1))),
        },
    };
    expect(record.prev == prev, || {
        format!("version {} of {id:?} does not name the one before", record.version)
    })?;
    if snapshot.latest_position(&id)? == Some(position) {
        state_map::prove(snapshot, snapshot.map_head(), &StateKey::Record(id), Some(encode(&record)))
            .map_err(|e| StoreError::damaged(e.to_string()))?;
        return Ok(Some(record));
    }
    Ok(None)
}
