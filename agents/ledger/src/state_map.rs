//! The state map: a sparse Merkle tree (jmt, SHA-256) from the hash of a [`StateKey`] to the SHA-256 of its
//! value's bytes, with proofs of existence and absence.
//!
//! The tree has versions of its own, apart from the block height: a block without writes makes none. Nodes
//! are stored under opaque keys; those that an update makes stale may be removed once nobody proves against
//! an older version any more. Values are not stored here a second time.
//!
//! A proof is the canonical encoding of [`jmt::proof::SparseMerkleProof`] over SHA-256.

use std::collections::BTreeMap;

use croft_protocol::api::ProvedValue;
use croft_protocol::{Hash, StateKey};

use crate::state::StateError;

/// Reads stored nodes of the map.
pub trait MapNodes {
    /// The bytes of a node; `None` when it was never written, or removed.
    ///
    /// # Errors
    /// [`StateError`] when the store fails.
    fn map_node(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;
}

/// Version and root of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, borsh::BorshSerialize, borsh::BorshDeserialize)]
pub struct MapHead {
    /// How many updates there were; the newest version is one less.
    pub versions: u64,
    pub root: Hash,
}

/// What an update adds and makes stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapUpdate {
    pub head: MapHead,
    /// New nodes: key and bytes. Keys grow with the version, byte by byte, so that they append to an ordered
    /// store.
    pub nodes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys of nodes that only versions before this one need.
    pub stale: Vec<Vec<u8>>,
}

impl MapHead {
    /// The map without a key.
    pub const EMPTY: Self = Self { versions: 0, root: Hash(*b"SPARSE_MERKLE_PLACEHOLDER_HASH__") };
}

/// Applies a block's writes. Without writes the head stays and nothing is added.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node.
pub fn update(
    _nodes: &dyn MapNodes,
    _head: MapHead,
    _writes: &BTreeMap<StateKey, Option<Vec<u8>>>,
) -> Result<MapUpdate, StateError> {
    todo!()
}

/// Proves the value under a key, or its absence, against `head`. `value` is what the state holds at `head`.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node, or `value` is not what the map commits to.
pub fn prove(
    _nodes: &dyn MapNodes,
    _head: MapHead,
    _key: &StateKey,
    _value: Option<Vec<u8>>,
) -> Result<ProvedValue, StateError> {
    todo!()
}
