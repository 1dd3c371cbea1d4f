//! The tables of the file and the form of their keys.
//!
//! All integers in byte keys are big-endian, so that keys sort as numbers do.

use croft_protocol::{RecordId, encode};
use redb::TableDefinition;

/// Version of everything in this module. A program refuses files of another.
pub(super) const FORMAT: u32 = 2;

/// [`META_FORMAT`], [`META_CHAIN`], [`META_GENESIS`], [`META_TIP`], [`META_MAP`].
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Version of the file: u32, little-endian.
pub(super) const META_FORMAT: &str = "format";
/// Encoded chain id.
pub(super) const META_CHAIN: &str = "chain";
/// Encoded genesis.
pub(super) const META_GENESIS: &str = "genesis";
/// Height of the tip: u64, little-endian.
pub(super) const META_TIP: &str = "tip";
/// Encoded head of the state map.
pub(super) const META_MAP: &str = "map";

/// Height -> encoded [`croft_protocol::SignedHeader`].
pub(super) const HEADERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("headers");
/// Height -> the commands of the block, as `bodies` packs them. Old ones may be gone.
pub(super) const BODIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bodies");
/// Position in the log -> encoded [`croft_protocol::Record`].
pub(super) const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
/// [`version_key`] -> position in the log.
pub(super) const VERSIONS: TableDefinition<'_, &[u8], u64> = TableDefinition::new("versions");
/// Encoded state key -> value. Records are not here: their latest version is found by [`VERSIONS`].
pub(super) const STATE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");
/// Level and index -> hash.
pub(super) const LOG_NODES: TableDefinition<'_, (u8, u64), &[u8; 32]> = TableDefinition::new("log-nodes");
/// Nodes of the state map.
pub(super) const MAP_NODES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("map-nodes");
/// Height that made it stale and a counter -> key of a node of the state map that is to be removed.
pub(super) const MAP_STALE: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("map-stale");
/// [`index_key`] -> encoded record id, for nodes followed by what is free.
pub(super) const INDEX: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index");

/// A record id and a version.
pub(super) fn version_key(id: &RecordId, version: u64) -> Vec<u8> {
    let mut key = encode(id);
    key.extend_from_slice(&version.to_be_bytes());
    key
}

/// What an index is about. Within a scope, things stand in the order in which they came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Index {
    Farms = 1,
    /// Scope: owner.
    FarmsOfOwner = 2,
    Nodes = 3,
    /// Scope: farm.
    NodesOfFarm = 4,
    /// Scope: two letters.
    NodesInCountry = 5,
    Contracts = 6,
    /// Scope: user, farmer or node.
    ContractsOf = 7,
    LiveContracts = 8,
    /// Scope: user, farmer or node.
    LiveContractsOf = 9,
    /// Scope: bot.
    TransfersOf = 10,
}

/// Start of all keys of one scope.
pub(super) fn index_scope(index: Index, scope: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + scope.len() + 8);
    key.push(index as u8);
    key.extend_from_slice(scope);
    key
}

/// One entry: `first` is the position in the log of the thing's first version.
pub(super) fn index_key(index: Index, scope: &[u8], first: u64) -> Vec<u8> {
    let mut key = index_scope(index, scope);
    key.extend_from_slice(&first.to_be_bytes());
    key
}
