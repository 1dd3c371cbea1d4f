//! The tables of the file and the form of their keys.
//!
//! All integers in byte keys are big-endian, so that keys sort as numbers do.

use croft_protocol::{RecordId, encode};
use redb::TableDefinition;

use super::StoreError;

/// Version of everything in this module. A program refuses files of another.
pub(super) const FORMAT: u32 = 4;

/// Version of [`INDEX`] and [`ENTRIES`]. They are made anew in a file that has another one or none.
pub(super) const INDEX_VERSION: u32 = 4;

/// [`META_FORMAT`], [`META_CHAIN`], [`META_GENESIS`], [`META_BASE`], [`META_PROOFS`], [`META_TIP`],
/// [`META_MAP`], [`META_INDEX`].
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Version of the file: u32, little-endian.
pub(super) const META_FORMAT: &str = "format";
/// Encoded chain id.
pub(super) const META_CHAIN: &str = "chain";
/// Encoded genesis.
pub(super) const META_GENESIS: &str = "genesis";
/// Height from which on every header is here: u64, little-endian. 0 unless the ledger was joined.
pub(super) const META_BASE: &str = "base";
/// Height from which on values can be proved: u64, little-endian.
pub(super) const META_PROOFS: &str = "proofs";
/// Height of the tip: u64, little-endian.
pub(super) const META_TIP: &str = "tip";
/// Encoded head of the state map.
pub(super) const META_MAP: &str = "map";
/// Version of the index: u32, little-endian.
pub(super) const META_INDEX: &str = "index";

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
/// Height -> versions of the state map after the block. Old ones may be gone.
pub(super) const MAP_HEADS: TableDefinition<'_, u64, u64> = TableDefinition::new("map-heads");
/// Height of the block that replaced a value, and the encoded state key -> encoded old value, if there was one.
pub(super) const PAST: TableDefinition<'_, (u64, &[u8]), &[u8]> = TableDefinition::new("past");
/// Height that made them stale and a counter -> encoded list of keys of nodes of the state map.
pub(super) const MAP_STALE: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("map-stale");
/// Keys of [`super::index`], all that there is to them -> nothing.
pub(super) const INDEX: TableDefinition<'_, &[u8], ()> = TableDefinition::new("index");
/// Encoded record id of a farm, node, contract or profile -> encoded [`super::index::Entry`]: what searches compare.
pub(super) const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
/// Hash of a validator set -> height of the last header that it certified before others took over. Of a set
/// that came back and is the present one, that height is of an earlier time and not to be given out.
pub(super) const HANDOVERS: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("handovers");

/// A record id and a version.
pub(super) fn version_key(id: &RecordId, version: u64) -> Vec<u8> {
    let mut key = encode(id);
    key.extend_from_slice(&version.to_be_bytes());
    key
}

/// The version in such a key.
pub(super) fn version_in(key: &[u8]) -> Result<u64, StoreError> {
    match key.last_chunk() {
        Some(version) => Ok(u64::from_be_bytes(*version)),
        None => Err(StoreError::damaged(format!("the key of a version has {} bytes", key.len()))),
    }
}
