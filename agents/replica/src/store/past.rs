//! The near past: what the state held some blocks ago, with proofs against the headers of then.
//!
//! ```text
//!   height    0 ........ base ........ commands ........ proofs ........ tip
//!   records   kept for ever ───────────────────────────────────────────────
//!   headers   (handovers)  kept for ever ──────────────────────────────────
//!   commands                           kept for a window ──────────────────
//!   values, with their proofs                            kept for a window ─
//! ```
//! A block that replaces a value leaves the old one in `PAST`, under its own height; the nodes of the state map
//! that it makes stale stay, and are listed in `MAP_STALE`. [`prune`] takes away what has left its window, in
//! slices that each are one transaction. It must never remove what a proof at a height that is still promised
//! needs: the promise is withdrawn in the transaction that breaks it.

use croft_ledger::state_map::{self, MapHead};
use croft_protocol::api::{Kept, ProvedValue};
use croft_protocol::{RecordId, StateKey, encode};
use redb::{Database, Durability, ReadableTable, ReadableTableMetadata, Table, WriteTransaction};

use super::snapshot::{Snapshot, decoded};
use super::tables::{BODIES, MAP_HEADS, MAP_NODES, MAP_STALE, META, META_PROOFS, PAST};
use super::{Block, StoreError};

/// Keys of stale nodes in one row of the list.
const NODES_PER_ROW: usize = 64;
/// More rows than this are not kept, whatever the window: under load it then ends earlier, but at a million
/// state keys some 200 MiB bound what the past takes.
const STALE_ROWS: u64 = 8_192;

/// How much of the past is kept beside records and headers, which stay for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Blocks back for which values can still be proved.
    pub proof_blocks: u64,
    /// Blocks back whose commands are there for replicas that were away.
    pub command_blocks: u64,
}

impl Default for Keep {
    /// Ten seconds a block when it is quiet: three hours for proofs, a day for replicas that were away.
    fn default() -> Self {
        Self { proof_blocks: 1_000, command_blocks: 10_000 }
    }
}

/// Why a value of the past can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    #[error("values are kept from height {from} on, height {height} is pruned: ask for a newer one")]
    Pruned { height: u64, from: u64 },
    #[error("height {height} is above the newest block {tip}")]
    Future { height: u64, tip: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a slice did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slice {
    /// Nothing is left that has outlived its window.
    Done { removed: usize },
    /// The next slice goes on.
    More { removed: usize },
    /// A block waits for the file, or the disk is short: nothing was touched.
    Deferred,
}

/// The list of a value's past: when it was replaced, and its key.
type PastTable<'t> = Table<'t, (u64, &'static [u8]), &'static [u8]>;

/// Remembers what a block replaces in the state.
pub(super) fn remember_value(
    past: &mut PastTable<'_>,
    height: u64,
    key: &[u8],
    old: Option<&[u8]>,
) -> Result<(), StoreError> {
    // Nobody asks what was before the first block.
    if height > 0 {
        past.insert((height, key), encode(&old).as_slice())?;
    }
    Ok(())
}

/// Remembers which nodes of the state map a block makes stale, and where the map's versions stand.
pub(super) fn remember_map(transaction: &WriteTransaction, block: &Block) -> Result<(), StoreError> {
    let height = block.signed.header.height;
    let mut stale = transaction.open_table(MAP_STALE)?;
    for (row, keys) in (0u32..).zip(block.map.stale.chunks(NODES_PER_ROW)) {
        stale.insert((height, row), encode(keys).as_slice())?;
    }
    transaction.open_table(MAP_HEADS)?.insert(height, block.map.head.versions)?;
    Ok(())
}

/// One slice: removes about `at_most` things that have left their windows at height `tip`.
pub(super) fn prune(database: &Database, tip: u64, keep: Keep, at_most: usize) -> Result<Slice, StoreError> {
    prune_within(database, tip, keep, STALE_ROWS, at_most)
}

fn prune_within(
    database: &Database,
    tip: u64,
    keep: Keep,
    stale_rows: u64,
    at_most: usize,
) -> Result<Slice, StoreError> {
    let mut transaction = database.begin_write()?;
    // A slice that is lost in a crash is made again: it need not wait for the disk.
    transaction.set_durability(Durability::None).map_err(|e| StoreError::Io(Box::new(e.into())))?;
    let mut slice = Budget { stale_rows, left: at_most, removed: 0, more: false };
    slice.proofs(&transaction, tip.saturating_sub(keep.proof_blocks))?;
    slice.commands(&transaction, tip.saturating_sub(keep.command_blocks))?;
    let Budget { removed, more, .. } = slice;
    if removed == 0 {
        transaction.abort()?;
        return Ok(Slice::Done { removed });
    }
    transaction.commit()?;
    Ok(if more { Slice::More { removed } } else { Slice::Done { removed } })
}

struct Budget {
    /// Rows of stale nodes that may stay.
    stale_rows: u64,
    /// Things that may yet be removed.
    left: usize,
    removed: usize,
    more: bool,
}

impl Budget {
    /// Whether there is room for one more; if not, the next slice has work.
    fn allows(&mut self) -> bool {
        self.more |= self.left == 0;
        self.left > 0
    }

    fn spend(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
        self.removed += count;
    }

    /// Values and proofs below `from`, and more where too much waits.
    fn proofs(&mut self, transaction: &WriteTransaction, from: u64) -> Result<(), StoreError> {
        let mut meta = transaction.open_table(META)?;
        let promised = height_in(&meta, META_PROOFS)?;
        let mut from = from.max(promised);
        let mut stale = transaction.open_table(MAP_STALE)?;
        let mut nodes = transaction.open_table(MAP_NODES)?;
        loop {
            let oldest = stale.first()?.map(|(key, _)| key.value().0);
            let Some(height) = oldest else { break };
            if height > from && stale.len()? <= self.stale_rows {
                break;
            }
            if !self.allows() {
                break;
            }
            from = from.max(height);
            let keys: Vec<Vec<u8>> = match stale.pop_first()? {
                Some((_, row)) => decoded("a list of stale nodes", row.value())?,
                None => break,
            };
            for key in &keys {
                nodes.remove(key.as_slice())?;
            }
            self.spend(keys.len().max(1));
        }
        let mut past = transaction.open_table(PAST)?;
        while past.first()?.is_some_and(|(key, _)| key.value().0 <= from) && self.allows() {
            past.pop_first()?;
            self.spend(1);
        }
        let mut heads = transaction.open_table(MAP_HEADS)?;
        while heads.first()?.is_some_and(|(height, _)| height.value() < from) && self.allows() {
            heads.pop_first()?;
            self.spend(1);
        }
        if from > promised && self.removed > 0 {
            meta.insert(META_PROOFS, from.to_le_bytes().as_slice())?;
        }
        Ok(())
    }

    /// Commands of the blocks below `from`.
    fn commands(&mut self, transaction: &WriteTransaction, from: u64) -> Result<(), StoreError> {
        let mut bodies = transaction.open_table(BODIES)?;
        while bodies.first()?.is_some_and(|(height, _)| height.value() < from) && self.allows() {
            bodies.pop_first()?;
            self.spend(1);
        }
        Ok(())
    }
}

/// A height among what is kept under a name.
pub(super) fn height_in(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &'static str,
) -> Result<u64, StoreError> {
    let bytes = meta.get(name)?;
    let bytes = bytes.ok_or_else(|| StoreError::damaged(format!("its '{name}' is missing")))?;
    let bytes: [u8; 8] =
        bytes.value().try_into().map_err(|_| StoreError::damaged(format!("its '{name}' is no number")))?;
    Ok(u64::from_le_bytes(bytes))
}

impl Snapshot {
    /// From which heights on there is what.
    pub fn kept(&self) -> Result<Kept, StoreError> {
        Ok(Kept {
            headers: self.base,
            proofs: self.proofs_from,
            commands: self.bodies.first()?.map(|(height, _)| height.value()),
            stale_rows: self.map_stale.len()?,
        })
    }

    /// A value as of a height, or its absence, with a proof against the header of that height.
    ///
    /// # Errors
    /// [`PastError::Pruned`] names the oldest height that can be asked for.
    pub fn prove_at(&self, height: u64, key: &StateKey) -> Result<ProvedValue, PastError> {
        let tip = self.height();
        if height > tip {
            return Err(PastError::Future { height, tip });
        }
        if height < self.proofs_from {
            return Err(PastError::Pruned { height, from: self.proofs_from });
        }
        let missing = || StoreError::damaged(format!("the state map of height {height} is missing"));
        let header = self.header(height)?.ok_or_else(missing)?.header;
        let versions = self.map_heads.get(height).map_err(StoreError::from)?.ok_or_else(missing)?.value();
        let value = match key {
            StateKey::Record(id) => self.record_of_log(id, header.log_size)?,
            key => self.value_of_past(height, key)?,
        };
        let head = MapHead { versions, root: header.state_root };
        Ok(state_map::prove(self, head, key, value).map_err(StoreError::State)?)
    }

    /// The newest version of a thing within the first records of the log.
    fn record_of_log(&self, id: &RecordId, size: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(newest) = self.latest_version(id)? else { return Ok(None) };
        let position = |version| -> Result<u64, StoreError> {
            let position = self.position(id, version)?;
            position.ok_or_else(|| StoreError::damaged(format!("version {version} of {id:?} is missing")))
        };
        // Later versions stand at later positions; `there` versions are within, `beyond` are not.
        let (mut there, mut beyond) = (0, newest + 1);
        while beyond - there > 1 {
            let middle = there + (beyond - there) / 2;
            if position(middle)? < size { there = middle } else { beyond = middle }
        }
        if there == 0 { Ok(None) } else { self.record_bytes(position(there)?) }
    }

    /// What the first later block that replaced a value found there, or what is there now.
    fn value_of_past(&self, height: u64, key: &StateKey) -> Result<Option<Vec<u8>>, StoreError> {
        let bytes = encode(key);
        for later in height + 1..=self.height() {
            if let Some(old) = self.past.get((later, bytes.as_slice()))? {
                return decoded("a value of the past", old.value());
            }
        }
        self.value(key)
    }
}

#[cfg(test)]
mod tests;
