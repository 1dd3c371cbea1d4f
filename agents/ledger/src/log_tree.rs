//! The log: an RFC 6962 Merkle tree over the encodings of all records, in the order in which they were made.
//!
//! Only perfect subtrees are stored, by level and index; they never change once written. Node `(0, i)` is the
//! hash of leaf `i`, and node `(l, i)` covers the leaves from `i * 2^l` on, `2^l` of them. What an incomplete
//! right edge needs is computed from them, so that an append writes two hashes per leaf on average.
//!
//! A proof is the concatenation of its 32-byte hashes in the order of RFC 6962, sections 2.1.1 and 2.1.2.

use std::collections::BTreeMap;

use croft_protocol::Hash;
use sha2::{Digest, Sha256};

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

impl LogHead {
    /// The log without a leaf: its root is SHA-256 of nothing (RFC 6962, section 2.1).
    #[must_use]
    pub fn empty() -> Self {
        Self { size: 0, root: Hash::of_bytes(&[]) }
    }
}

/// Nodes in memory, as tests and simulators keep them.
impl LogNodes for BTreeMap<NodeAt, Hash> {
    fn log_node(&self, at: NodeAt) -> Result<Option<Hash>, StateError> {
        Ok(self.get(&at).copied())
    }
}

/// Hash of a leaf: SHA-256 of a zero byte and its bytes.
#[must_use]
pub fn leaf_hash(bytes: &[u8]) -> Hash {
    Hash(Sha256::new_with_prefix([0]).chain_update(bytes).finalize().into())
}

fn parent_hash(left: Hash, right: Hash) -> Hash {
    Hash(Sha256::new_with_prefix([1]).chain_update(left.0).chain_update(right.0).finalize().into())
}

fn node(nodes: &dyn LogNodes, level: u32, index: u64) -> Result<Hash, StateError> {
    let at = NodeAt { level: level as u8, index };
    nodes.log_node(at)?.ok_or_else(|| {
        StateError::new(format!(
            "the log's node {index} at level {level} is missing; restore this replica from another"
        ))
    })
}

/// The perfect subtrees that make up a log, one for each bit of its size.
fn peaks(nodes: &dyn LogNodes, size: u64) -> Result<[Option<Hash>; 64], StateError> {
    let mut peaks = [None; 64];
    for level in (0..u64::BITS).filter(|level| size >> level & 1 == 1) {
        peaks[level as usize] = Some(node(nodes, level, (size >> level) - 1)?);
    }
    Ok(peaks)
}

fn root_of(peaks: &[Option<Hash>; 64]) -> Hash {
    peaks
        .iter()
        .flatten()
        .copied()
        .reduce(|right, left| parent_hash(left, right))
        .unwrap_or_else(|| LogHead::empty().root)
}

/// The tree head over leaves that come one by one, without any stored node: for whoever checks a whole log.
#[derive(Debug, Clone)]
pub struct Replay {
    peaks: [Option<Hash>; 64],
    size: u64,
}

impl Default for Replay {
    fn default() -> Self {
        Self { peaks: [None; 64], size: 0 }
    }
}

impl Replay {
    /// Adds a leaf, given by its bytes.
    pub fn push(&mut self, leaf: &[u8]) {
        push(&mut self.peaks, &mut self.size, leaf, |_, _| {});
    }

    #[must_use]
    pub fn head(&self) -> LogHead {
        LogHead { size: self.size, root: root_of(&self.peaks) }
    }
}

/// A binary counter: a subtree that meets one of its own size becomes its right sibling.
fn push(peaks: &mut [Option<Hash>; 64], size: &mut u64, leaf: &[u8], mut add: impl FnMut(NodeAt, Hash)) {
    let mut hash = leaf_hash(leaf);
    let mut level = 0;
    add(NodeAt { level: 0, index: *size }, hash);
    while let Some(left) = peaks[level].take() {
        hash = parent_hash(left, hash);
        level += 1;
        add(NodeAt { level: level as u8, index: *size >> level }, hash);
    }
    peaks[level] = Some(hash);
    *size += 1;
}

/// Appends leaves, given by their bytes, to a log of `size`.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node.
pub fn append<'a>(
    nodes: &dyn LogNodes,
    size: u64,
    leaves: impl IntoIterator<Item = &'a [u8]>,
) -> Result<LogUpdate, StateError> {
    let mut peaks = peaks(nodes, size)?;
    let mut size = size;
    let mut added = Vec::new();
    for leaf in leaves {
        push(&mut peaks, &mut size, leaf, |at, hash| added.push((at, hash)));
    }
    Ok(LogUpdate { head: LogHead { size, root: root_of(&peaks) }, nodes: added })
}

/// The tree head over the first `size` leaves.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node.
pub fn root(nodes: &dyn LogNodes, size: u64) -> Result<Hash, StateError> {
    Ok(root_of(&peaks(nodes, size)?))
}

/// The largest power of two below `len`, which is at least 2 (RFC 6962, section 2.1).
fn split(len: u64) -> u64 {
    1 << (len - 1).ilog2()
}

/// Tree head over the leaves from `start` on, `len` of them. `start` is a multiple of a power of two that is
/// at least `len`.
fn subtree(nodes: &dyn LogNodes, start: u64, len: u64) -> Result<Hash, StateError> {
    if len.is_power_of_two() {
        return node(nodes, len.ilog2(), start / len);
    }
    let left = split(len);
    Ok(parent_hash(subtree(nodes, start, left)?, subtree(nodes, start + left, len - left)?))
}

/// Proof that leaf `index` is in the log of `size`.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node, or `index` is not below `size`.
pub fn prove_inclusion(nodes: &dyn LogNodes, size: u64, index: u64) -> Result<Vec<u8>, StateError> {
    if index >= size {
        return Err(StateError::new(format!("there is no record {index} in a log of {size}")));
    }
    // From the root down; a proof is written from the leaf up.
    let mut path = Vec::new();
    let (mut start, mut len) = (0, size);
    while len > 1 {
        let left = split(len);
        if index - start < left {
            path.push(subtree(nodes, start + left, len - left)?);
            len = left;
        } else {
            path.push(subtree(nodes, start, left)?);
            start += left;
            len -= left;
        }
    }
    Ok(path.iter().rev().flat_map(|hash| hash.0).collect())
}

/// Proof that the log of `old_size` is a prefix of the log of `size`.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node, or `old_size` is not within 1 and `size`.
pub fn prove_consistency(nodes: &dyn LogNodes, old_size: u64, size: u64) -> Result<Vec<u8>, StateError> {
    if old_size == 0 || old_size > size {
        return Err(StateError::new(format!("a log of {old_size} is no prefix of a log of {size}")));
    }
    let mut path = Vec::new();
    let (mut start, mut len, mut old) = (0, size, old_size);
    // Whoever verifies knows the old head; it is left out where it is a subtree of the new log.
    let mut known = true;
    while old < len {
        let left = split(len);
        if old <= left {
            path.push(subtree(nodes, start + left, len - left)?);
            len = left;
        } else {
            path.push(subtree(nodes, start, left)?);
            start += left;
            len -= left;
            old -= left;
            known = false;
        }
    }
    if !known {
        path.push(subtree(nodes, start, len)?);
    }
    Ok(path.iter().rev().flat_map(|hash| hash.0).collect())
}

#[cfg(test)]
mod tests;
