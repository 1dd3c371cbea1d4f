//! The ledger at one height: reads, proofs and searches. It never changes while somebody looks.

use std::fmt;

use croft_ledger::log_tree::{self, LogNodes, NodeAt};
use croft_ledger::state_map::{self, MapHead, MapNodes};
use croft_ledger::{StateError, StateRead};
use croft_protocol::api::{ProvedRecord, ProvedValue, Query};
use croft_protocol::{
    Body, Capacity, ChainId, Genesis, Hash, Record, RecordId, SignedCommand, SignedHeader, StateKey, encode,
    limits,
};
use redb::{ReadOnlyTable, ReadTransaction, ReadableTableMetadata};

use super::tables::{
    BODIES, FORMAT, HEADERS, INDEX, Index, LOG_NODES, MAP_NODES, MAP_STALE, META, META_CHAIN, META_FORMAT,
    META_GENESIS, META_MAP, META_TIP, RECORDS, STATE, VERSIONS, index_scope, version_key,
};
use super::{StoreError, bodies};

/// A page ends when its records reach this many bytes, so that it fits into a response with its proofs.
pub(crate) const PAGE_BYTES: usize = limits::RESPONSE_BYTES * 3 / 4;
/// Entries that one search looks at before it hands back what it has: bounds what a stranger can cost.
const SCANNED_ENTRIES: usize = 20_000;

/// A committed state.
pub struct Snapshot {
    tip: SignedHeader,
    map: MapHead,
    genesis: Genesis,
    headers: ReadOnlyTable<u64, &'static [u8]>,
    bodies: ReadOnlyTable<u64, &'static [u8]>,
    records: ReadOnlyTable<u64, &'static [u8]>,
    versions: ReadOnlyTable<&'static [u8], u64>,
    state: ReadOnlyTable<&'static [u8], &'static [u8]>,
    log_nodes: ReadOnlyTable<(u8, u64), &'static [u8; 32]>,
    map_nodes: ReadOnlyTable<&'static [u8], &'static [u8]>,
    map_stale: ReadOnlyTable<(u64, u32), &'static [u8]>,
    index: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("height", &self.tip.header.height).finish_non_exhaustive()
    }
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub records: Vec<Record>,
    /// Where to go on; `None` at the end.
    pub next: Option<RecordId>,
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
        let height: [u8; 8] =
            get(META_TIP)?.try_into().map_err(|_| StoreError::damaged("its height is no number"))?;
        let headers = transaction.open_table(HEADERS)?;
        let tip = header_at(&headers, u64::from_le_bytes(height))?
            .ok_or_else(|| StoreError::damaged("the newest header is missing"))?;
        Ok(Self {
            tip,
            map: decoded("the head of the state map", &get(META_MAP)?)?,
            genesis: decoded("the genesis", &get(META_GENESIS)?)?,
            headers,
            bodies: transaction.open_table(BODIES)?,
            records: transaction.open_table(RECORDS)?,
            versions: transaction.open_table(VERSIONS)?,
            state: transaction.open_table(STATE)?,
            log_nodes: transaction.open_table(LOG_NODES)?,
            map_nodes: transaction.open_table(MAP_NODES)?,
            map_stale: transaction.open_table(MAP_STALE)?,
            index: transaction.open_table(INDEX)?,
        })
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

    /// Nodes of the state map that wait for their removal.
    pub(super) fn stale_nodes(&self) -> Result<u64, StoreError> {
        Ok(self.map_stale.len()?)
    }

    /// Number of stored headers and records.
    pub(super) fn counts(&self) -> Result<(u64, u64), StoreError> {
        Ok((self.headers.len()?, self.records.len()?))
    }

    /// The final header at a height; `None` above the tip.
    pub fn header(&self, height: u64) -> Result<Option<SignedHeader>, StoreError> {
        header_at(&self.headers, height)
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
        let (first, last) = (version_key(id, 0), version_key(id, u64::MAX));
        let mut range = self.versions.range::<&[u8]>(first.as_slice()..=last.as_slice())?;
        match range.next_back() {
            Some(entry) => Ok(Some(entry?.1.value())),
            None => Ok(None),
        }
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

    /// Searches by index, in the order in which things came to be. `None` when `after` is not known.
    pub fn query(
        &self,
        query: &Query,
        after: Option<&RecordId>,
        count: usize,
    ) -> Result<Option<Found>, StoreError> {
        let scope = scope_of(query);
        let start = match after {
            None => scope.clone(),
            Some(id) => match self.position(id, 1)? {
                None => return Ok(None),
                Some(first) => [&scope[..], &first.saturating_add(1).to_be_bytes()].concat(),
            },
        };
        let end = [&scope[..], &[0xff; 8]].concat();
        let mut found = Found { records: Vec::new(), next: None };
        let mut bytes = 0;
        let mut last = None;
        let entries = self.index.range::<&[u8]>(start.as_slice()..=end.as_slice())?;
        for (scanned, entry) in entries.enumerate() {
            let (_, value) = entry?;
            let (id, free) = indexed(value.value())?;
            if found.records.len() >= count || bytes > PAGE_BYTES || scanned >= SCANNED_ENTRIES {
                found.next = last;
                break;
            }
            last = Some(id);
            if let Query::Nodes { free: needed, .. } = query
                && !free.is_some_and(|free| free.covers(needed))
            {
                continue;
            }
            let record = self
                .latest_record(&id)?
                .ok_or_else(|| StoreError::damaged(format!("{id:?} is indexed, but missing")))?;
            if self.matches(query, &record)? {
                bytes += encode(&record).len();
                found.records.push(record);
            }
        }
        Ok(Some(found))
    }

    /// What the scope of the index does not say already.
    fn matches(&self, query: &Query, record: &Record) -> Result<bool, StoreError> {
        Ok(match (query, &record.body) {
            (Query::Nodes { farm: Some(farm), country: Some(country), .. }, Body::Node(_)) => {
                let farm = self.latest_record(&RecordId::farm(farm))?;
                matches!(farm.map(|f| f.body), Some(Body::Farm(farm)) if farm.country == *country)
            }
            (Query::Contracts { user, farmer, node, .. }, Body::Contract(contract)) => {
                let terms = &contract.signed.terms;
                user.is_none_or(|u| terms.user == u)
                    && farmer.is_none_or(|f| terms.farmer == f)
                    && node.is_none_or(|n| terms.node == n)
            }
            _ => true,
        })
    }
}

/// The narrowest index that answers a query.
fn scope_of(query: &Query) -> Vec<u8> {
    match query {
        Query::Farms { owner: None } => index_scope(Index::Farms, &[]),
        Query::Farms { owner: Some(owner) } => index_scope(Index::FarmsOfOwner, &owner.0),
        Query::Nodes { farm: Some(farm), .. } => index_scope(Index::NodesOfFarm, &farm.0.0),
        Query::Nodes { farm: None, country: Some(country), .. } => {
            index_scope(Index::NodesInCountry, country.as_bytes())
        }
        Query::Nodes { farm: None, country: None, .. } => index_scope(Index::Nodes, &[]),
        Query::Contracts { user, farmer, node, ended } => match (node.or(*user).or(*farmer), ended) {
            (Some(party), true) => index_scope(Index::ContractsOf, &party.0),
            (Some(party), false) => index_scope(Index::LiveContractsOf, &party.0),
            (None, true) => index_scope(Index::Contracts, &[]),
            (None, false) => index_scope(Index::LiveContracts, &[]),
        },
        Query::Transfers { of } => index_scope(Index::TransfersOf, &of.0),
    }
}

/// The value of an index entry.
pub(super) fn index_value(id: &RecordId, free: Option<&Capacity>) -> Vec<u8> {
    encode(&(id, free))
}

fn indexed(bytes: &[u8]) -> Result<(RecordId, Option<Capacity>), StoreError> {
    decoded("an index entry", bytes)
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
