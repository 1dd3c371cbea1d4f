//! The ledger at one height: reads, proofs and searches. It never changes while somebody looks.

use std::fmt;
use std::sync::Arc;

use croft_ledger::log_tree::{self, LogNodes, NodeAt};
use croft_ledger::state_map::{self, MapHead, MapNodes};
use croft_ledger::{StateError, StateRead};
use croft_protocol::api::{Cursor, ProvedRecord, ProvedThing, ProvedValue, Query};
use croft_protocol::{
    Capacity, ChainId, Genesis, Hash, Kind, NodeCapacity, NodeId, PublicKey, Record, RecordId, SignedCommand,
    SignedHeader, StateKey, encode, limits,
};
use redb::{ReadOnlyTable, ReadTransaction, ReadableTableMetadata};

use super::index::Entry;
use super::past::height_in;
use super::search::{Bounds, Found, SearchError, search};
use super::signatures::Signatures;
use super::tables::{
    BODIES, ENTRIES, FORMAT, HANDOVERS, HEADERS, INDEX, LOG_NODES, MAP_HEADS, MAP_NODES, MAP_STALE, META,
    META_BASE, META_CHAIN, META_FORMAT, META_GENESIS, META_MAP, META_PROOFS, META_TIP, PAST, RECORDS, STATE,
    VERSIONS, version_in, version_key,
};
use super::{StoreError, bodies};

/// A page ends when its records reach this many bytes, so that it fits into a response with its proofs.
pub(crate) const PAGE_BYTES: usize = limits::RESPONSE_BYTES * 3 / 4;

/// A committed state.
pub struct Snapshot {
    tip: SignedHeader,
    map: MapHead,
    genesis: Genesis,
    headers: ReadOnlyTable<u64, &'static [u8]>,
    /// Every header from this height on is here.
    pub(super) base: u64,
    /// Values can be proved from this height on.
    pub(super) proofs_from: u64,
    pub(super) bodies: ReadOnlyTable<u64, &'static [u8]>,
    records: ReadOnlyTable<u64, &'static [u8]>,
    versions: ReadOnlyTable<&'static [u8], u64>,
    pub(super) state: ReadOnlyTable<&'static [u8], &'static [u8]>,
    log_nodes: ReadOnlyTable<(u8, u64), &'static [u8; 32]>,
    map_nodes: ReadOnlyTable<&'static [u8], &'static [u8]>,
    pub(super) map_stale: ReadOnlyTable<(u64, u32), &'static [u8]>,
    pub(super) map_heads: ReadOnlyTable<u64, u64>,
    pub(super) past: ReadOnlyTable<(u64, &'static [u8]), &'static [u8]>,
    index: ReadOnlyTable<&'static [u8], ()>,
    entries: ReadOnlyTable<&'static [u8], &'static [u8]>,
    handovers: ReadOnlyTable<&'static [u8; 32], u64>,
    signatures: Arc<Signatures>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("height", &self.tip.header.height).finish_non_exhaustive()
    }
}

/// Version and chain of a file, whatever else is in it.
pub(super) fn identify(transaction: &ReadTransaction) -> Result<(u32, ChainId), StoreError> {
    let meta = transaction.open_table(META)?;
    let format = meta.get(META_FORMAT)?.ok_or_else(|| StoreError::damaged("it has no version"))?;
    let format: [u8; 4] =
        format.value().try_into().map_err(|_| StoreError::damaged("its version is no number"))?;
    let format = u32::from_le_bytes(format);
    if format != FORMAT {
        return Ok((format, ChainId(Hash::ZERO)));
    }
    let chain = meta.get(META_CHAIN)?.ok_or_else(|| StoreError::damaged("it names no chain"))?;
    Ok((format, decoded("the chain id", chain.value())?))
}

pub(super) fn decoded<T: borsh::BorshDeserialize>(what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    borsh::from_slice(bytes).map_err(|e| StoreError::damaged(format!("{what} can't be decoded: {e}")))
}

impl Snapshot {
    pub(super) fn new(transaction: &ReadTransaction) -> Result<Self, StoreError> {
        let meta = transaction.open_table(META)?;
        let get = |key: &'static str| -> Result<Vec<u8>, StoreError> {
            let value = meta.get(key)?;
            let value = value.ok_or_else(|| StoreError::damaged(format!("its '{key}' is missing")))?;
            Ok(value.value().to_vec())
        };
        let headers = transaction.open_table(HEADERS)?;
        let tip = header_at(&headers, height_in(&meta, META_TIP)?)?
            .ok_or_else(|| StoreError::damaged("the newest header is missing"))?;
        Ok(Self {
            tip,
            map: decoded("the head of the state map", &get(META_MAP)?)?,
            genesis: decoded("the genesis", &get(META_GENESIS)?)?,
            base: height_in(&meta, META_BASE)?,
            proofs_from: height_in(&meta, META_PROOFS)?,
            headers,
            bodies: transaction.open_table(BODIES)?,
            records: transaction.open_table(RECORDS)?,
            versions: transaction.open_table(VERSIONS)?,
            state: transaction.open_table(STATE)?,
            log_nodes: transaction.open_table(LOG_NODES)?,
            map_nodes: transaction.open_table(MAP_NODES)?,
            map_stale: transaction.open_table(MAP_STALE)?,
            map_heads: transaction.open_table(MAP_HEADS)?,
            past: transaction.open_table(PAST)?,
            index: transaction.open_table(INDEX)?,
            entries: transaction.open_table(ENTRIES)?,
            handovers: transaction.open_table(HANDOVERS)?,
            signatures: Arc::default(),
        })
    }

    /// The same state, with what earlier ones know of signatures.
    pub(super) fn knowing(self, signatures: &Arc<Signatures>) -> Self {
        Self { signatures: signatures.clone(), ..self }
    }

    /// Checks the signatures of commands together, which costs half of checking each when it is asked about.
    pub fn learn_signatures(&self, commands: &[SignedCommand]) {
        self.signatures.learn(commands);
    }

    /// The newest final header of this state.
    #[must_use]
    pub fn tip(&self) -> &SignedHeader {
        &self.tip
    }

    #[must_use]
    pub fn height(&self) -> u64 {
        self.tip.header.height
    }

    #[must_use]
    pub fn map_head(&self) -> MapHead {
        self.map
    }

    #[must_use]
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Number of headers from the base on, and of records.
    pub(super) fn counts(&self) -> Result<(u64, u64), StoreError> {
        let mut below = 0;
        for header in self.headers.range::<u64>(..self.base)? {
            header?;
            below += 1;
        }
        Ok((self.headers.len()? - below, self.records.len()?))
    }

    /// Headers below the base: those that hand over to other validators, in their order.
    pub(crate) fn handovers(&self) -> Result<Vec<SignedHeader>, StoreError> {
        let headers = self.headers.range::<u64>(..self.base)?;
        headers
            .map(|entry| {
                let (height, bytes) = entry?;
                decoded(&format!("header {}", height.value()), bytes.value())
            })
            .collect()
    }

    /// Every header from this height on is here; of those below, only some.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The final header at a height; `None` above the tip, and for most below [`Self::base`].
    pub fn header(&self, height: u64) -> Result<Option<SignedHeader>, StoreError> {
        header_at(&self.headers, height)
    }

    /// The header by which these validators handed over to others for good, or for the last time: whoever
    /// trusts them may go on from there, and needs none of the changes in between. `None` of the present ones.
    pub fn handover(&self, validators: &Hash) -> Result<Option<SignedHeader>, StoreError> {
        if *validators == self.tip.header.next_validators {
            return Ok(None);
        }
        let Some(height) = self.handovers.get(&validators.0)? else { return Ok(None) };
        let height = height.value();
        let header = self.header(height)?;
        header.map(Some).ok_or_else(|| StoreError::damaged(format!("handover header {height} is missing")))
    }

    /// The commands of the block at a height, in their order; `None` above the tip, and where they were never
    /// had or are kept no longer.
    pub fn commands(&self, height: u64) -> Result<Option<Vec<SignedCommand>>, StoreError> {
        match self.bodies.get(height)? {
            Some(bytes) => Ok(Some(bodies::unpacked(height, bytes.value())?)),
            None => Ok(None),
        }
    }

    /// The first height whose commands are here; the one after the tip where there are none.
    pub fn earliest_commands(&self) -> Result<u64, StoreError> {
        match self.bodies.range::<u64>(..)?.next() {
            Some(entry) => Ok(entry?.0.value()),
            None => Ok(self.height() + 1),
        }
    }

    /// Every height whose commands are here.
    pub(super) fn heights_with_commands(
        &self,
    ) -> Result<impl Iterator<Item = Result<u64, StoreError>>, StoreError> {
        Ok(self.bodies.range::<u64>(..)?.map(|entry| Ok(entry?.0.value())))
    }

    /// The record at a position of the log; `None` past its end.
    pub fn record_at(&self, position: u64) -> Result<Option<Record>, StoreError> {
        match self.records.get(position)? {
            Some(bytes) => Ok(Some(decoded(&format!("record {position}"), bytes.value())?)),
            None => Ok(None),
        }
    }

    /// The encoding of the record at a position of the log.
    pub(super) fn record_bytes(&self, position: u64) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.records.get(position)?.map(|bytes| bytes.value().to_vec()))
    }

    /// Position in the log of one version of a thing.
    pub fn position(&self, id: &RecordId, version: u64) -> Result<Option<u64>, StoreError> {
        Ok(self.versions.get(version_key(id, version).as_slice())?.map(|position| position.value()))
    }

    /// Position in the log of the latest version of a thing.
    pub fn latest_position(&self, id: &RecordId) -> Result<Option<u64>, StoreError> {
        Ok(self.latest(id)?.map(|(_, position)| position))
    }

    /// Number of the latest version of a thing.
    pub(super) fn latest_version(&self, id: &RecordId) -> Result<Option<u64>, StoreError> {
        Ok(self.latest(id)?.map(|(version, _)| version))
    }

    fn latest(&self, id: &RecordId) -> Result<Option<(u64, u64)>, StoreError> {
        let (first, last) = (version_key(id, 0), version_key(id, u64::MAX));
        let mut range = self.versions.range::<&[u8]>(first.as_slice()..=last.as_slice())?;
        let Some(entry) = range.next_back() else { return Ok(None) };
        let (key, position) = entry?;
        Ok(Some((version_in(key.value())?, position.value())))
    }

    /// The latest version of a thing.
    pub fn latest_record(&self, id: &RecordId) -> Result<Option<Record>, StoreError> {
        match self.latest_position(id)? {
            Some(position) => self.record_at(position),
            None => Ok(None),
        }
    }

    /// The bytes under a state key.
    pub fn value(&self, key: &StateKey) -> Result<Option<Vec<u8>>, StoreError> {
        if let StateKey::Record(id) = key {
            return match self.latest_position(id)? {
                Some(position) => self.record_bytes(position),
                None => Ok(None),
            };
        }
        Ok(self.state.get(encode(key).as_slice())?.map(|bytes| bytes.value().to_vec()))
    }

    /// Every state key of this state except those of records, with its value.
    pub(super) fn each_value(
        &self,
        mut visit: impl FnMut(StateKey, Vec<u8>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for entry in self.state.range::<&[u8]>(..)? {
            let (key, value) = entry?;
            visit(decoded("a state key", key.value())?, value.value().to_vec())?;
        }
        Ok(())
    }

    /// A value, or its absence, with a proof against the tip.
    pub fn prove(&self, key: &StateKey) -> Result<ProvedValue, StoreError> {
        Ok(state_map::prove(self, self.map, key, self.value(key)?)?)
    }

    /// A record of the log with a proof against the tip; `None` past its end.
    pub fn prove_record(&self, index: u64) -> Result<Option<ProvedRecord>, StoreError> {
        let Some(record) = self.record_at(index)? else { return Ok(None) };
        let proof = log_tree::prove_inclusion(self, self.tip.header.log_size, index)?;
        Ok(Some(ProvedRecord { index, record, proof }))
    }

    /// Records by their position, as many as were asked for and fit into a page.
    pub fn range(&self, first: u64, count: usize) -> Result<Vec<ProvedRecord>, StoreError> {
        let end = self.tip.header.log_size.min(first.saturating_add(count as u64));
        self.page(first..end)
    }

    /// Versions of a thing, oldest first, as many as were asked for and fit into a page.
    pub fn history(
        &self,
        id: &RecordId,
        first_version: u64,
        count: usize,
    ) -> Result<Vec<ProvedRecord>, StoreError> {
        let (first, last) = (version_key(id, first_version), version_key(id, u64::MAX));
        let mut positions = Vec::new();
        for entry in self.versions.range::<&[u8]>(first.as_slice()..=last.as_slice())?.take(count) {
            positions.push(entry?.1.value());
        }
        self.page(positions)
    }

    fn page(&self, positions: impl IntoIterator<Item = u64>) -> Result<Vec<ProvedRecord>, StoreError> {
        let mut page = Vec::new();
        let mut bytes = 0;
        for position in positions {
            let proved = self.prove_record(position)?.ok_or_else(|| missing_record(position))?;
            bytes += encode(&proved).len();
            if bytes > PAGE_BYTES && !page.is_empty() {
                break;
            }
            page.push(proved);
        }
        Ok(page)
    }

    /// Searches by index: the latest version of each found thing, as many as were asked for and fit into a
    /// page.
    ///
    /// # Errors
    /// [`SearchError::Cursor`] when `from` is not of this search.
    pub fn query(
        &self,
        query: &Query,
        from: Option<&Cursor>,
        count: usize,
    ) -> Result<Found<Record>, SearchError> {
        search(self, query, from, Bounds::of(count), |id| {
            let record = self.latest_record(&id)?.ok_or_else(|| no_record(&id))?;
            let bytes = encode(&record).len();
            Ok((record, bytes))
        })
    }

    /// As [`Self::query`], each with proofs against the tip.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn query_proved(
        &self,
        query: &Query,
        from: Option<&Cursor>,
        count: usize,
    ) -> Result<Found<ProvedThing>, SearchError> {
        let count = count.min(limits::PROVED_PER_PAGE);
        search(self, query, from, Bounds::of(count), |id| {
            let record = self.prove(&StateKey::Record(id))?;
            let capacity = match id.kind {
                Kind::Node => Some(self.prove(&StateKey::Capacity(PublicKey(id.id.0)))?),
                _ => None,
            };
            let thing = ProvedThing { id, record, capacity };
            let bytes = encode(&thing).len();
            Ok((thing, bytes))
        })
    }

    pub(super) fn index(&self) -> &ReadOnlyTable<&'static [u8], ()> {
        &self.index
    }

    pub(super) fn entries(&self) -> &ReadOnlyTable<&'static [u8], &'static [u8]> {
        &self.entries
    }

    /// What searches compare of a thing.
    pub(super) fn entry(&self, id: &RecordId) -> Result<Option<Entry>, StoreError> {
        let entry = self.entries.get(encode(id).as_slice())?;
        entry.map(|bytes| decoded("an index entry", bytes.value())).transpose()
    }

    /// What is free on a node.
    pub(super) fn free(&self, node: &NodeId) -> Result<Capacity, StoreError> {
        match self.value(&StateKey::Capacity(*node))? {
            Some(bytes) => Ok(decoded::<NodeCapacity>("a node's capacity", &bytes)?.free()),
            None => Ok(Capacity::default()),
        }
    }
}

fn no_record(id: &RecordId) -> StoreError {
    StoreError::damaged(format!("{id:?} is indexed, but missing"))
}

fn header_at(
    headers: &ReadOnlyTable<u64, &'static [u8]>,
    height: u64,
) -> Result<Option<SignedHeader>, StoreError> {
    match headers.get(height)? {
        Some(bytes) => Ok(Some(decoded(&format!("header {height}"), bytes.value())?)),
        None => Ok(None),
    }
}

fn missing_record(position: u64) -> StoreError {
    StoreError::damaged(format!("record {position} of the log is missing"))
}

impl StateRead for Snapshot {
    fn get(&self, key: &StateKey) -> Result<Option<Vec<u8>>, StateError> {
        self.value(key).map_err(StateError::new)
    }

    fn is_signed(&self, command: &SignedCommand) -> bool {
        self.signatures.holds(command)
    }
}

impl LogNodes for Snapshot {
    fn log_node(&self, at: NodeAt) -> Result<Option<Hash>, StateError> {
        let node = self.log_nodes.get((at.level, at.index)).map_err(StateError::new)?;
        Ok(node.map(|hash| Hash(*hash.value())))
    }
}

impl MapNodes for Snapshot {
    fn map_node(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let node = self.map_nodes.get(key).map_err(StateError::new)?;
        Ok(node.map(|bytes| bytes.value().to_vec()))
    }
}
