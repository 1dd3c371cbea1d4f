//! The state map: a sparse Merkle tree (jmt, SHA-256) from the hash of a [`StateKey`] to the SHA-256 of its
//! value's bytes, with proofs of existence and absence.
//!
//! The tree has versions of its own, apart from the block height: a block without writes makes none. Nodes
//! are stored under opaque keys; those that an update makes stale may be removed once nobody proves against
//! an older version any more. Values are not stored here a second time.
//!
//! A proof is the canonical encoding of [`jmt::proof::SparseMerkleProof`] over SHA-256.

use std::cell::RefCell;
use std::collections::BTreeMap;

use croft_protocol::api::ProvedValue;
use croft_protocol::{Hash, StateKey};
use jmt::proof::{INTERNAL_DOMAIN_SEPARATOR, LEAF_DOMAIN_SEPARATOR};
use jmt::storage::{LeafNode, Node, NodeKey, TreeReader};
use jmt::{KeyHash, OwnedValue, RootHash, Sha256Jmt, ValueHash, Version};
use sha2::{Digest, Sha256};

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

/// Nodes in memory, as tests and simulators keep them.
impl MapNodes for BTreeMap<Vec<u8>, Vec<u8>> {
    fn map_node(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.get(key).cloned())
    }
}

/// Applies a block's writes. Without writes the head stays and nothing is added.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node.
pub fn update(
    nodes: &dyn MapNodes,
    head: MapHead,
    writes: &BTreeMap<StateKey, Option<Vec<u8>>>,
) -> Result<MapUpdate, StateError> {
    if writes.is_empty() {
        return Ok(MapUpdate { head, nodes: Vec::new(), stale: Vec::new() });
    }
    let reader = Reader { nodes };
    let tree = Sha256Jmt::new(&reader);
    let version = head.versions;
    let leaf = |(key, value): (&StateKey, &Option<Vec<u8>>)| {
        (KeyHash(key.hash().0), value.as_deref().map(|bytes| Hash::of_bytes(bytes).0.to_vec()))
    };
    // The batch is a third cheaper but knows no deletion; both yield the same root.
    let (root, batch) = if writes.values().all(Option::is_some) {
        let set = writes.iter().map(leaf).filter_map(|(key, value)| Some((key, value?))).collect();
        let (roots, batch) = tree.batch_put_value_sets(vec![set], None, version).map_err(failure)?;
        (*roots.last().ok_or_else(|| StateError::broken("a batch has a root"))?, batch)
    } else {
        tree.put_value_set(writes.iter().map(leaf), version).map_err(failure)?
    };
    let nodes = batch
        .node_batch
        .nodes()
        .iter()
        .map(|(key, node)| (stored_key(key), croft_protocol::encode(node)))
        .collect();
    let stale = batch.stale_node_index_batch.iter().map(|index| stored_key(&index.node_key)).collect();
    Ok(MapUpdate { head: MapHead { versions: version + 1, root: Hash(root.0) }, nodes, stale })
}

/// Proves the value under a key, or its absence, against `head`. `value` is what the state holds at `head`.
///
/// # Errors
/// [`StateError`] when the store fails or lacks a node, or `value` is not what the map commits to.
pub fn prove(
    nodes: &dyn MapNodes,
    head: MapHead,
    key: &StateKey,
    value: Option<Vec<u8>>,
) -> Result<ProvedValue, StateError> {
    let Some(version) = head.versions.checked_sub(1) else {
        return Err(StateError::new("the state map is empty: there is no genesis block yet"));
    };
    let leaf = KeyHash(key.hash().0);
    let digest = value.as_deref().map(|bytes| Hash::of_bytes(bytes).0);
    let reader = ProofReader { reader: Reader { nodes }, digest, failure: RefCell::new(None) };
    let proved = Sha256Jmt::new(&reader).get_with_proof(leaf, version);
    if let Some(failure) = reader.failure.into_inner() {
        return Err(failure);
    }
    let (_, proof) = proved.map_err(failure)?;
    // Five microseconds, and no client is ever sent a proof that it must take for a lie.
    proof
        .verify(RootHash(head.root.0), leaf, digest)
        .map_err(|e| StateError::corrupt(key, format!("the map does not commit to it: {e}")))?;
    Ok(ProvedValue { value, proof: croft_protocol::encode(&proof) })
}

/// The root over all of a state's keys, each with the SHA-256 of its value, without any stored node: for
/// whoever checks a whole state. Each key stands once.
#[must_use]
pub fn root_of(state: impl IntoIterator<Item = (StateKey, Hash)>) -> Hash {
    // What the map holds is the value's hash, and jmt hashes what it holds.
    let mut leaves: Vec<(Hash, Hash)> =
        state.into_iter().map(|(key, value)| (key.hash(), Hash::of_bytes(&value.0))).collect();
    leaves.sort_unstable();
    subtree_root(&leaves, 0)
}

/// Root over sorted leaves whose keys agree in the first `depth` bits. A subtree of one leaf is that leaf.
fn subtree_root(leaves: &[(Hash, Hash)], depth: usize) -> Hash {
    let hash = |domain: &[u8], left: &Hash, right: &Hash| {
        Hash(Sha256::new_with_prefix(domain).chain_update(left.0).chain_update(right.0).finalize().into())
    };
    match leaves {
        [] => MapHead::EMPTY.root,
        // Two keys with the same hash: no root that anybody has is over both.
        [(key, value)] | [(key, value), ..] if leaves.len() == 1 || depth == 256 => {
            hash(LEAF_DOMAIN_SEPARATOR, key, value)
        }
        _ => {
            let bit = |key: &Hash| key.0[depth / 8] >> (7 - depth % 8) & 1;
            let (left, right) = leaves.split_at(leaves.partition_point(|(key, _)| bit(key) == 0));
            let (left, right) = (subtree_root(left, depth + 1), subtree_root(right, depth + 1));
            hash(INTERNAL_DOMAIN_SEPARATOR, &left, &right)
        }
    }
}

/// Version (big-endian), number of nibbles, and the nibbles, two to a byte.
fn stored_key(key: &NodeKey) -> Vec<u8> {
    let path = key.nibble_path();
    let mut bytes = Vec::with_capacity(9 + path.num_nibbles().div_ceil(2));
    bytes.extend_from_slice(&key.version().to_be_bytes());
    bytes.push(path.num_nibbles() as u8);
    for (i, nibble) in path.nibbles().map(u8::from).enumerate() {
        if i % 2 == 0 {
            bytes.push(nibble << 4);
        } else if let Some(last) = bytes.last_mut() {
            *last |= nibble;
        }
    }
    bytes
}

/// jmt reports everything as `anyhow::Error`; what came from the store comes back as it was.
fn failure(error: anyhow::Error) -> StateError {
    error.downcast::<StateError>().unwrap_or_else(|error| StateError::new(format!("state map: {error:#}")))
}

struct Reader<'a> {
    nodes: &'a dyn MapNodes,
}

impl TreeReader for Reader<'_> {
    fn get_node_option(&self, key: &NodeKey) -> anyhow::Result<Option<Node>> {
        let Some(bytes) = self.nodes.map_node(&stored_key(key))? else { return Ok(None) };
        let node = borsh::from_slice(&bytes).map_err(|e| {
            StateError::new(format!("node {key:?} of the state map is corrupt: {e}; restore this replica"))
        })?;
        Ok(Some(node))
    }

    fn get_value_option(&self, _: Version, _: KeyHash) -> anyhow::Result<Option<OwnedValue>> {
        Err(StateError::broken("an update reads no values").into())
    }

    fn get_rightmost_leaf(&self) -> anyhow::Result<Option<(NodeKey, LeafNode)>> {
        Err(StateError::broken("the map is never restored from leaves").into())
    }
}

/// jmt panics when a node can't be read while it gathers siblings. So this reader never fails: it remembers
/// the first failure, and hands out a leaf in its place; the proof is then thrown away.
struct ProofReader<'a> {
    reader: Reader<'a>,
    digest: Option<[u8; 32]>,
    failure: RefCell<Option<StateError>>,
}

impl TreeReader for ProofReader<'_> {
    fn get_node_option(&self, key: &NodeKey) -> anyhow::Result<Option<Node>> {
        let failure = match self.reader.get_node_option(key) {
            Ok(Some(node)) => return Ok(Some(node)),
            Ok(None) => StateError::new(format!(
                "node {key:?} of the state map is missing; restore this replica from another"
            )),
            Err(error) => failure(error),
        };
        self.failure.borrow_mut().get_or_insert(failure);
        Ok(Some(Node::Leaf(LeafNode::new(KeyHash([0; 32]), ValueHash([0; 32])))))
    }

    fn get_value_option(&self, _: Version, _: KeyHash) -> anyhow::Result<Option<OwnedValue>> {
        // What the leaf says is checked by verifying the whole proof.
        Ok(Some(self.digest.unwrap_or_default().to_vec()))
    }

    fn get_rightmost_leaf(&self) -> anyhow::Result<Option<(NodeKey, LeafNode)>> {
        self.reader.get_rightmost_leaf()
    }
}

#[cfg(test)]
mod tests;
