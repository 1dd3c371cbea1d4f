//! The log: an RFC 6962 Merkle tree over the encodings of all records, in the order in which they were made.
//!
//! Only perfect subtrees are stored, by level and index; they never change once written. Node `(0, i)` is the
//! hash of leaf `i`, and node `(l, i)` covers the leaves from `i * 2^l` on, `2^l` of them. What an incomplete
//! right edge needs is computed from them, so that an append writes two hashes per leaf on average.
//!
//! A proof is the concatenation of its 32-byte hashes in the order of RFC 6962, sections 2.1.1 and 2.1.2.

use croft_protocol::Hash;

use crate::state::StateError;

/// Position of a stored node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAt {
    /// 0 for leaves; below 64.
    pub level: u8,
    pub index: u64,
}

/// Reads stored nodes.
pub trait LogNodes {
    /// The hash at a position; `None` when it was never written.
    ///
    /// # Errors
    /// [`StateError`] when the store fails.
    fn log_node(&self, at: NodeAt) -> Result<Option<Hash>, StateError>;
}

/// Number of leaves and tree head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogHead {
    pub size: u64,
    pub root: Hash,
}

/// What an append adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogUpdate {
    pub head: LogHead,
    /// New nodes, to be stored for ever.
    pub nodes: Vec<(NodeAt, Hash)>,
}

/// Hash of a leaf: SHA-256 of a zero byte and its bytes.
#[must_use]
pub fn leaf_hash(_bytes: &[u8]) -> Hash {
    todo!()
}

/// Appends leaves, given by their bytes, to a log of `size`.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node.
pub fn append<'a>(
    _nodes: &dyn LogNodes,
    _size: u64,
    _leaves: impl IntoIterator<Item = &'a [u8]>,
) -> Result<LogUpdate, StateError> {
    todo!()
}

/// The tree head over the first `size` leaves.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node.
pub fn root(_nodes: &dyn LogNodes, _size: u64) -> Result<Hash, StateError> {
    todo!()
}

/// Proof that leaf `index` is in the log of `size`.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node, or `index` is not below `size`.
pub fn prove_inclusion(_nodes: &dyn LogNodes, _size: u64, _index: u64) -> Result<Vec<u8>, StateError> {
    todo!()
}

/// Proof that the log of `old_size` is a prefix of the log of `size`.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node, or `old_size` is not within 1 and `size`.
pub fn prove_consistency(_nodes: &dyn LogNodes, _old_size: u64, _size: u64) -> Result<Vec<u8>, StateError> {
    todo!()
}
