//! Deletions above all: an absence that was an existence must be provable, and leave no trace in the root.

use croft_protocol::{PublicKey, StateKey};
use jmt::proof::SparseMerkleProof;
use proptest::prelude::*;
use sha2::Sha256;

use super::*;

type Nodes = BTreeMap<Vec<u8>, Vec<u8>>;

fn key(n: u16) -> StateKey {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    StateKey::Account(PublicKey(bytes))
}

fn set(items: &[(u16, Option<&[u8]>)]) -> BTreeMap<StateKey, Option<Vec<u8>>> {
    items.iter().map(|(n, value)| (key(*n), value.map(<[u8]>::to_vec))).collect()
}

fn apply(nodes: &mut Nodes, head: MapHead, writes: &BTreeMap<StateKey, Option<Vec<u8>>>) -> MapHead {
    let update = update(nodes, head, writes).unwrap();
    for (key, node) in update.nodes {
        assert_eq!(nodes.insert(key, node), None, "nodes never change");
    }
    update.head
}

/// What a light client does.
fn verify(head: MapHead, key: &StateKey, proved: &ProvedValue) -> bool {
    let proof: SparseMerkleProof<Sha256> = borsh::from_slice(&proved.proof).unwrap();
    let digest = proved.value.as_deref().map(|bytes| Hash::of_bytes(bytes).0);
    proof.verify(RootHash(head.root.0), KeyHash(key.hash().0), digest).is_ok()
}

#[test]
fn the_empty_map_has_the_root_of_jmt() {
    assert_eq!(MapHead::EMPTY.root.0, Sha256Jmt::<Reader<'_>>::EMPTY_ROOT.0);
    let error = prove(&Nodes::new(), MapHead::EMPTY, &key(1), None).unwrap_err().to_string();
    assert_eq!(error, "the state map is empty: there is no genesis block yet");
}

#[test]
fn a_block_without_writes_makes_no_version() {
    let mut nodes = Nodes::new();
    let head = apply(&mut nodes, MapHead::EMPTY, &set(&[(1, Some(b"a"))]));
    let again = update(&nodes, head, &BTreeMap::new()).unwrap();
    assert_eq!(again, MapUpdate { head, nodes: Vec::new(), stale: Vec::new() });
}

#[test]
fn a_deleted_key_is_proved_absent_and_leaves_the_root_it_found() {
    let mut nodes = Nodes::new();
    let before = apply(&mut nodes, MapHead::EMPTY, &set(&[(1, Some(b"a")), (2, Some(b"b"))]));
    let with = apply(&mut nodes, before, &set(&[(3, Some(b"c"))]));
    let present = prove(&nodes, with, &key(3), Some(b"c".to_vec())).unwrap();
    assert!(verify(with, &key(3), &present));
    let after = apply(&mut nodes, with, &set(&[(3, None)]));
    assert_eq!(after.root, before.root);
    let absent = prove(&nodes, after, &key(3), None).unwrap();
    assert!(verify(after, &key(3), &absent));
    assert!(!verify(with, &key(3), &absent), "the absence holds for the new root only");
    assert!(!verify(after, &key(3), &present));
}

#[test]
fn the_last_key_can_go_too() {
    let mut nodes = Nodes::new();
    let one = apply(&mut nodes, MapHead::EMPTY, &set(&[(1, Some(b"a"))]));
    let none = apply(&mut nodes, one, &set(&[(1, None)]));
    assert_eq!(none.root, MapHead::EMPTY.root);
    assert!(verify(none, &key(1), &prove(&nodes, none, &key(1), None).unwrap()));
    let back = apply(&mut nodes, none, &set(&[(1, Some(b"a"))]));
    assert_eq!(back.root, one.root);
}

#[test]
fn a_value_that_the_map_does_not_commit_to_is_never_sent() {
    let mut nodes = Nodes::new();
    let head = apply(&mut nodes, MapHead::EMPTY, &set(&[(1, Some(b"a"))]));
    for wrong in [None, Some(b"b".to_vec())] {
        let error = prove(&nodes, head, &key(1), wrong).unwrap_err().to_string();
        assert!(error.contains("the map does not commit to it"), "{error}");
    }
}

/// A store that lacks nodes.
struct Broken;

impl MapNodes for Broken {
    fn map_node(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Err(StateError::new("disk on fire"))
    }
}

#[test]
fn a_failure_of_the_store_comes_back_as_it_was() {
    let mut nodes = Nodes::new();
    let many: Vec<_> = (0..50).map(|n| (n, Some(b"x".as_slice()))).collect();
    let head = apply(&mut nodes, MapHead::EMPTY, &set(&many));
    let proof = prove(&Broken, head, &key(1), Some(b"x".to_vec())).unwrap_err();
    let insert = update(&Broken, head, &set(&[(1, Some(b"a"))])).unwrap_err();
    let delete = update(&Broken, head, &set(&[(1, None)])).unwrap_err();
    for error in [proof, insert, delete] {
        assert_eq!(error.to_string(), "disk on fire");
    }
}

#[test]
fn any_single_missing_node_is_an_error_and_never_a_panic() {
    let mut nodes = Nodes::new();
    let many: Vec<_> = (0..24).map(|n| (n, Some(b"x".as_slice()))).collect();
    let head = apply(&mut nodes, MapHead::EMPTY, &set(&many));
    let mut missed = 0;
    for gone in nodes.keys() {
        let mut holed = nodes.clone();
        holed.remove(gone);
        for n in 0..24 {
            if let Err(error) = prove(&holed, head, &key(n), Some(b"x".to_vec())) {
                assert!(error.to_string().contains("is missing"), "{error}");
                missed += 1;
            }
        }
    }
    assert!(missed > 24);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    /// The root depends on what the map holds, never on how it came to hold it; every key of the universe is
    /// provable, present or absent; and stale nodes are really not needed.
    #[test]
    fn the_root_knows_no_history(
        blocks in prop::collection::vec(
            prop::collection::vec((0_u16..60, prop::option::weighted(0.6, any::<u8>())), 1..25),
            1..15,
        ),
    ) {
        let mut nodes = Nodes::new();
        let mut head = MapHead::EMPTY;
        let mut model = BTreeMap::new();
        for block in blocks {
            let mut writes = BTreeMap::new();
            for (n, value) in block {
                let value = value.map(|v| vec![v]);
                // As the executor does: only what changes.
                if model.get(&n) == value.as_ref() {
                    writes.remove(&key(n));
                } else {
                    writes.insert(key(n), value.clone());
                }
            }
            for n in 0_u16..60 {
                match writes.get(&key(n)) {
                    Some(Some(value)) => drop(model.insert(n, value.clone())),
                    Some(None) => drop(model.remove(&n)),
                    None => {}
                }
            }
            let update = update(&nodes, head, &writes).unwrap();
            nodes.extend(update.nodes);
            for stale in update.stale {
                prop_assert!(nodes.remove(&stale).is_some(), "a stale node was there");
            }
            head = update.head;
            let fresh: BTreeMap<_, _> = model.iter().map(|(n, v)| (key(*n), Some(v.clone()))).collect();
            let fresh = super::update(&Nodes::new(), MapHead::EMPTY, &fresh).unwrap();
            prop_assert_eq!(head.root, fresh.head.root);
            let leaves = model.iter().map(|(n, value)| (key(*n), Hash::of_bytes(value)));
            prop_assert_eq!(head.root, root_of(leaves));
        }
        if head.versions > 0 {
            for n in 0..60 {
                let proved = prove(&nodes, head, &key(n), model.get(&n).cloned()).unwrap();
                prop_assert!(verify(head, &key(n), &proved));
            }
        }
    }
}
