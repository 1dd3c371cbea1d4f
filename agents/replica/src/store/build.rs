//! A ledger that comes from other replicas, not block by block.
//!
//! ```text
//!   open ──> records, page after page ──> values of one height ──> state map, in the order of its leaves
//!    ^            │ crash, next source        │ crash, next source          │ both roots are the header's
//!    └────────────┴── records stay ───────────┘                             v
//!                                                                   finish: it looks whole
//! ```
//! Every page of records is proved to be the continuation of the log that the header commits to before it is
//! written, so what is here never has to be thrown away for what another source does. Nothing needs more memory
//! than a page. It must never write what makes the file look like a ledger before all of it is there and adds up:
//! the last transaction does.

use std::collections::BTreeMap;
use std::path::PathBuf;

use croft_ledger::StateError;
use croft_ledger::log_tree::{self, LogNodes, NodeAt};
use croft_ledger::state_map::{self, MapHead, MapNodes};
use croft_light::{LightError, Tip, verify_prefix};
use croft_protocol::state::Account;
use croft_protocol::{
    Body, Escrow, Genesis, Grains, Hash, Header, Record, RecordId, SignedHeader, StateKey, ValidatorSet,
    encode,
};
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table,
    TableDefinition, WriteTransaction,
};

use super::snapshot::decoded;
use super::tables::{
    BODIES, FORMAT, HANDOVERS, HEADERS, LOG_NODES, MAP_HEADS, MAP_NODES, MAP_STALE, META, META_BASE,
    META_CHAIN, META_FORMAT, META_GENESIS, META_MAP, META_PROOFS, META_TIP, PAST, RECORDS, STATE, VERSIONS,
    version_key,
};
use super::{Disk, OpenError, StoreError};

/// Name of the unfinished file in a replica's data folder.
pub const UNFINISHED: &str = "ledger.redb.joining";
/// Leaves of the state map that are added at a time.
const LEAVES: usize = if cfg!(test) { 16 } else { 4_096 };
/// Bytes of their values, which are in memory meanwhile.
const LEAF_BYTES: usize = 8 * 1024 * 1024;
/// Entries that one transaction adds to the order of the leaves.
const ORDERED: usize = if cfg!(test) { 20 } else { 20_000 };

/// Encoded format and chain of an unfinished file.
const META_JOINING: &str = "joining";
/// Hash of a state key, which is its leaf's place in the map -> encoded state key.
const LEAF_ORDER: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("leaf-order");

/// Why the copy does not go on.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source sent what the header does not commit to.
    #[error(transparent)]
    Untrue(#[from] LightError),
    /// The source sent what can't be, or not all.
    #[error("{what}")]
    Wrong { what: String },
}

impl BuildError {
    /// Whether it is the source's doing; otherwise it is our disk's.
    #[must_use]
    pub fn is_the_sources(&self) -> bool {
        matches!(self, Self::Untrue(_) | Self::Wrong { .. })
    }
}

fn wrong(what: impl Into<String>) -> BuildError {
    BuildError::Wrong { what: what.into() }
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for BuildError {
            fn from(error: $error) -> Self {
                Self::Store(error.into())
            }
        })*
    };
}

from_redb!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

impl From<StateError> for BuildError {
    fn from(error: StateError) -> Self {
        Self::Store(error.into())
    }
}

/// A file that is not yet a ledger.
#[derive(Debug)]
pub struct Builder {
    path: PathBuf,
    database: Database,
    genesis: Genesis,
}

struct StoredLog(ReadOnlyTable<(u8, u64), &'static [u8; 32]>);

impl LogNodes for StoredLog {
    fn log_node(&self, at: NodeAt) -> Result<Option<Hash>, StateError> {
        let node = self.0.get((at.level, at.index)).map_err(StateError::new)?;
        Ok(node.map(|hash| Hash(*hash.value())))
    }
}

struct StoredMap(ReadOnlyTable<&'static [u8], &'static [u8]>);

impl MapNodes for StoredMap {
    fn map_node(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let node = self.0.get(key).map_err(StateError::new)?;
        Ok(node.map(|bytes| bytes.value().to_vec()))
    }
}

/// Opens tables so that they exist.
fn open_empty(transaction: &WriteTransaction) -> Result<(), BuildError> {
    transaction.open_table(RECORDS)?;
    transaction.open_table(VERSIONS)?;
    transaction.open_table(LOG_NODES)?;
    transaction.open_table(STATE)?;
    transaction.open_table(MAP_NODES)?;
    transaction.open_table(HEADERS)?;
    transaction.open_table(HANDOVERS)?;
    transaction.open_table(BODIES)?;
    transaction.open_table(MAP_HEADS)?;
    transaction.open_table(MAP_STALE)?;
    transaction.open_table(PAST)?;
    Ok(())
}

impl Builder {
    /// Begins, or goes on with the records that an earlier attempt left.
    ///
    /// # Errors
    /// [`OpenError::InUse`] while another attempt runs; [`BuildError::Wrong`] when the file is of another grid
    /// or release, or is a whole ledger.
    pub fn open(disk: &dyn Disk, genesis: &Genesis) -> Result<Self, BuildError> {
        let database = disk.open()?;
        let ours = encode(&(FORMAT, genesis.chain_id()));
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get(META_JOINING)?.map(|bytes| bytes.value().to_vec());
            match found {
                Some(found) if found == ours => {}
                None if meta.is_empty()? => {
                    meta.insert(META_JOINING, ours.as_slice())?;
                }
                _ => {
                    let path = disk.path().display();
                    return Err(wrong(format!("{path} is not what an unfinished join of this grid leaves")));
                }
            }
        }
        open_empty(&transaction)?;
        transaction.commit()?;
        Ok(Self { path: disk.path().to_owned(), database, genesis: genesis.clone() })
    }

    /// Records that are here, all proved.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn records(&self) -> Result<u64, StoreError> {
        Ok(self.database.begin_read()?.open_table(RECORDS)?.len()?)
    }

    /// Adds records at the end. `proof` shows that what is here with them is how the log of `tip` begins; it is
    /// empty when it is all of that log. Hands back how many are here then.
    ///
    /// # Errors
    /// [`BuildError::Untrue`], [`BuildError::Wrong`]: nothing was added.
    pub fn add_records(&self, tip: &Tip, records: &[Record], proof: &[u8]) -> Result<u64, BuildError> {
        let first = self.records()?;
        let bytes: Vec<Vec<u8>> = records.iter().map(encode).collect();
        let nodes = StoredLog(self.database.begin_read()?.open_table(LOG_NODES)?);
        let log = log_tree::append(&nodes, first, bytes.iter().map(Vec::as_slice))?;
        drop(nodes);
        let (size, end) = (log.head.size, tip.header().log_size);
        if records.is_empty() || size > end {
            return Err(wrong(format!("it sent {} records from {first} on, of {end}", records.len())));
        }
        verify_prefix(tip, size, &log.head.root, proof)?;
        let transaction = self.database.begin_write()?;
        {
            let mut stored = transaction.open_table(RECORDS)?;
            let mut versions = transaction.open_table(VERSIONS)?;
            for ((position, record), bytes) in (first..).zip(records).zip(&bytes) {
                stored.insert(position, bytes.as_slice())?;
                versions.insert(version_key(&record.id, record.version).as_slice(), position)?;
            }
            let mut nodes = transaction.open_table(LOG_NODES)?;
            for (at, hash) in &log.nodes {
                nodes.insert((at.level, at.index), &hash.0)?;
            }
        }
        transaction.commit()?;
        Ok(size)
    }

    /// Every validator set that the log has named, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn validator_sets(&self) -> Result<Vec<ValidatorSet>, StoreError> {
        let transaction = self.database.begin_read()?;
        let (versions, records) = (transaction.open_table(VERSIONS)?, transaction.open_table(RECORDS)?);
        let id = RecordId::validators();
        let (first, last) = (version_key(&id, 0), version_key(&id, u64::MAX));
        let mut sets = Vec::new();
        for entry in versions.range::<&[u8]>(first.as_slice()..=last.as_slice())? {
            if let Body::Validators(set) = record_at(&records, entry?.1.value())?.body {
                sets.push(set);
            }
        }
        Ok(sets)
    }

    /// Forgets values and what was made of them: they are of one height, and another is coming.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin_values(&self) -> Result<(), BuildError> {
        let transaction = self.database.begin_write()?;
        transaction.delete_table(STATE)?;
        transaction.delete_table(MAP_NODES)?;
        transaction.delete_table(LEAF_ORDER)?;
        open_empty(&transaction)?;
        transaction.commit()?;
        Ok(())
    }

    /// Adds values that were proved.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add_values(&self, values: &[(StateKey, Vec<u8>)]) -> Result<(), BuildError> {
        let transaction = self.database.begin_write()?;
        {
            let mut state = transaction.open_table(STATE)?;
            for (key, value) in values {
                state.insert(encode(key).as_slice(), value.as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Makes it a ledger, if everything adds up to `tip`. `handovers` are headers before it, in their order,
    /// that hand over to other validators.
    ///
    /// # Errors
    /// [`BuildError`]; it is no ledger then.
    pub fn finish(&self, tip: &SignedHeader, handovers: &[SignedHeader]) -> Result<u64, BuildError> {
        let header = &tip.header;
        let records = self.records()?;
        let nodes = StoredLog(self.database.begin_read()?.open_table(LOG_NODES)?);
        if records != header.log_size || log_tree::root(&nodes, records)? != header.log_root {
            return Err(wrong(format!("the {records} records are not the log of header {}", header.height)));
        }
        drop(nodes);
        self.check_grains()?;
        self.order_leaves()?;
        let map = self.build_map()?;
        if map.root != header.state_root {
            return Err(wrong(format!(
                "the values that it sent and the newest records do not make the state of header {}: it left \
                 some out",
                header.height
            )));
        }
        let transaction = self.database.begin_write()?;
        transaction.delete_table(LEAF_ORDER)?;
        self.write_whole(&transaction, tip, handovers, map)?;
        transaction.commit()?;
        let values = self.database.begin_read()?.open_table(STATE)?.len()?;
        Ok(values)
    }

    fn write_whole(
        &self,
        transaction: &WriteTransaction,
        tip: &SignedHeader,
        handovers: &[SignedHeader],
        map: MapHead,
    ) -> Result<(), BuildError> {
        let height = tip.header.height;
        let mut headers = transaction.open_table(HEADERS)?;
        let mut by_set = transaction.open_table(HANDOVERS)?;
        // In the order of their heights: the last one of a set counts.
        for signed in handovers.iter().chain([tip]) {
            let Header { height, validators, next_validators, .. } = signed.header;
            headers.insert(height, encode(signed).as_slice())?;
            if next_validators != validators {
                by_set.insert(&validators.0, height)?;
            }
        }
        transaction.open_table(MAP_HEADS)?.insert(height, map.versions)?;
        let mut meta = transaction.open_table(META)?;
        meta.remove(META_JOINING)?;
        meta.insert(META_CHAIN, encode(&self.genesis.chain_id()).as_slice())?;
        meta.insert(META_GENESIS, encode(&self.genesis).as_slice())?;
        meta.insert(META_BASE, height.to_le_bytes().as_slice())?;
        meta.insert(META_PROOFS, height.to_le_bytes().as_slice())?;
        meta.insert(META_TIP, height.to_le_bytes().as_slice())?;
        meta.insert(META_MAP, encode(&map).as_slice())?;
        meta.insert(META_FORMAT, FORMAT.to_le_bytes().as_slice())?;
        Ok(())
    }

    /// Grains are conserved: all that accounts and escrows hold is the supply, which is that of the genesis.
    fn check_grains(&self) -> Result<(), BuildError> {
        let state = self.database.begin_read()?.open_table(STATE)?;
        let (mut held, mut supply) = (0u128, None);
        for entry in state.range::<&[u8]>(..)? {
            let (key, value) = entry?;
            match decoded::<StateKey>("a state key", key.value())? {
                StateKey::Account(_) => {
                    held += u128::from(decoded::<Account>("an account", value.value())?.balance.0);
                }
                StateKey::Escrow(_) => {
                    held += u128::from(decoded::<Escrow>("an escrow", value.value())?.held().0);
                }
                StateKey::HeldFee(_) => held += u128::from(decoded::<Grains>("a fee", value.value())?.0),
                StateKey::Supply => supply = Some(decoded::<Grains>("the supply", value.value())?),
                _ => {}
            }
        }
        let faucet = self.genesis.faucet.as_ref().map_or(0, |faucet| u128::from(faucet.fund.0));
        let allocated: u128 =
            self.genesis.allocations.iter().map(|one| u128::from(one.grains.0)).sum::<u128>() + faucet;
        match supply {
            Some(supply) if u128::from(supply.0) == held && held == allocated => Ok(()),
            _ => Err(wrong(format!(
                "grains are not conserved: accounts and escrows have {held}, the supply is {}, the genesis \
                 allocated {allocated}",
                supply.map_or("unknown".to_owned(), |supply| supply.0.to_string())
            ))),
        }
    }

    /// Lists all state keys in the order of their leaves: so each part of the map is written once.
    fn order_leaves(&self) -> Result<(), BuildError> {
        let transaction = self.database.begin_write()?;
        transaction.delete_table(LEAF_ORDER)?;
        transaction.delete_table(MAP_NODES)?;
        transaction.open_table(MAP_NODES)?;
        transaction.open_table(LEAF_ORDER)?;
        transaction.commit()?;
        let read = self.database.begin_read()?;
        let mut ordering = LeafOrder { database: &self.database, waiting: Vec::with_capacity(ORDERED) };
        for entry in read.open_table(STATE)?.range::<&[u8]>(..)? {
            ordering.add(decoded("a state key", entry?.0.value())?)?;
        }
        // Versions of a thing stand together.
        let mut last: Option<RecordId> = None;
        for entry in read.open_table(VERSIONS)?.range::<&[u8]>(..)? {
            let (key, _) = entry?;
            let key = key.value();
            let id: RecordId = decoded("a record id", &key[..key.len().saturating_sub(8)])?;
            if last != Some(id) {
                ordering.add(StateKey::Record(id))?;
                last = Some(id);
            }
        }
        ordering.write()
    }

    /// Builds the state map, leaf after leaf.
    fn build_map(&self) -> Result<MapHead, BuildError> {
        let read = self.database.begin_read()?;
        let order = read.open_table(LEAF_ORDER)?;
        let values = Values::open(&read)?;
        let mut head = MapHead::EMPTY;
        let (mut writes, mut bytes) = (BTreeMap::new(), 0);
        for entry in order.range::<&[u8; 32]>(..)? {
            let key: StateKey = decoded("a state key", entry?.1.value())?;
            let value = values.of(&key)?;
            bytes += value.len();
            writes.insert(key, Some(value));
            if writes.len() >= LEAVES || bytes >= LEAF_BYTES {
                head = self.add_leaves(head, &std::mem::take(&mut writes))?;
                bytes = 0;
            }
        }
        self.add_leaves(head, &writes)
    }

    fn add_leaves(
        &self,
        head: MapHead,
        writes: &BTreeMap<StateKey, Option<Vec<u8>>>,
    ) -> Result<MapHead, BuildError> {
        let nodes = StoredMap(self.database.begin_read()?.open_table(MAP_NODES)?);
        let update = state_map::update(&nodes, head, writes)?;
        drop(nodes);
        let transaction = self.database.begin_write()?;
        {
            let mut nodes: Table<'_, &[u8], &[u8]> = transaction.open_table(MAP_NODES)?;
            for (key, node) in &update.nodes {
                nodes.insert(key.as_slice(), node.as_slice())?;
            }
            // Nobody asks for what is only half built.
            for key in &update.stale {
                nodes.remove(key.as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(update.head)
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// Sorts by way of the file.
struct LeafOrder<'a> {
    database: &'a Database,
    waiting: Vec<StateKey>,
}

impl LeafOrder<'_> {
    fn add(&mut self, key: StateKey) -> Result<(), BuildError> {
        self.waiting.push(key);
        if self.waiting.len() >= ORDERED { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), BuildError> {
        let transaction = self.database.begin_write()?;
        {
            let mut order = transaction.open_table(LEAF_ORDER)?;
            for key in self.waiting.drain(..) {
                order.insert(&key.hash().0, encode(&key).as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

/// What is under each state key.
struct Values {
    records: ReadOnlyTable<u64, &'static [u8]>,
    versions: ReadOnlyTable<&'static [u8], u64>,
    state: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl Values {
    fn open(transaction: &ReadTransaction) -> Result<Self, BuildError> {
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            versions: transaction.open_table(VERSIONS)?,
            state: transaction.open_table(STATE)?,
        })
    }

    fn of(&self, key: &StateKey) -> Result<Vec<u8>, BuildError> {
        let missing = || StoreError::damaged(format!("{key:?} is listed, but missing"));
        let StateKey::Record(id) = key else {
            let value = self.state.get(encode(key).as_slice())?;
            return Ok(value.ok_or_else(missing)?.value().to_vec());
        };
        // The latest version in the log is the state.
        let (first, last) = (version_key(id, 0), version_key(id, u64::MAX));
        let mut range = self.versions.range::<&[u8]>(first.as_slice()..=last.as_slice())?;
        let position = range.next_back().ok_or_else(missing)??.1.value();
        Ok(self.records.get(position)?.ok_or_else(missing)?.value().to_vec())
    }
}

fn record_at(records: &ReadOnlyTable<u64, &'static [u8]>, position: u64) -> Result<Record, StoreError> {
    let bytes = records.get(position)?;
    let bytes = bytes.ok_or_else(|| StoreError::damaged(format!("record {position} is missing")))?;
    decoded(&format!("record {position}"), bytes.value())
}
