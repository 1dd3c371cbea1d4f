//! Against the library that light clients verify with.

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
use proptest::prelude::*;
use sha2_next::Sha256;

use super::*;

type Peer = MemoryBackedTree<Sha256, Vec<u8>>;

fn leaf(i: u64) -> Vec<u8> {
    format!("record {i}").into_bytes()
}

/// Our log and ct-merkle's, both of `size`.
fn both(size: u64) -> (BTreeMap<NodeAt, Hash>, LogHead, Peer) {
    let mut peer = Peer::new();
    let leaves: Vec<_> = (0..size).map(leaf).collect();
    let update = append(&BTreeMap::new(), 0, leaves.iter().map(Vec::as_slice)).unwrap();
    for leaf in leaves {
        peer.push(leaf);
    }
    (update.nodes.into_iter().collect(), update.head, peer)
}

fn peer_root(head: LogHead) -> RootHash<Sha256> {
    RootHash::new(head.root.0.into(), head.size)
}

#[test]
fn an_empty_log_has_the_root_of_rfc_6962() {
    assert_eq!(
        LogHead::empty().root.to_string(),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    assert_eq!(root(&BTreeMap::new(), 0).unwrap(), LogHead::empty().root);
}

#[test]
fn roots_and_proofs_are_those_of_ct_merkle_for_every_size() {
    for size in 1..=70 {
        let (nodes, head, peer) = both(size);
        assert_eq!(head.root.0[..], peer.root().as_bytes()[..], "size {size}");
        assert_eq!(root(&nodes, size).unwrap(), head.root);
        let mut replay = Replay::default();
        (0..size).for_each(|i| replay.push(&leaf(i)));
        assert_eq!(replay.head(), head);
        for index in 0..size {
            let proof = prove_inclusion(&nodes, size, index).unwrap();
            assert_eq!(proof, peer.prove_inclusion(index as usize).as_bytes(), "{index} of {size}");
        }
        for old in 1..=size {
            let proof = prove_consistency(&nodes, old, size).unwrap();
            assert_eq!(proof, peer.prove_consistency((size - old) as usize).as_bytes(), "{old} to {size}");
        }
    }
}

#[test]
fn a_proof_beyond_the_log_is_refused_with_both_numbers() {
    let (nodes, ..) = both(3);
    let error = prove_inclusion(&nodes, 3, 3).unwrap_err().to_string();
    assert_eq!(error, "there is no record 3 in a log of 3");
    let error = prove_consistency(&nodes, 4, 3).unwrap_err().to_string();
    assert_eq!(error, "a log of 4 is no prefix of a log of 3");
    assert!(prove_consistency(&nodes, 0, 3).is_err());
}

#[test]
fn a_missing_node_is_named() {
    let (mut nodes, ..) = both(4);
    nodes.remove(&NodeAt { level: 1, index: 1 });
    let error = prove_inclusion(&nodes, 4, 0).unwrap_err().to_string();
    assert_eq!(error, "the log's node 1 at level 1 is missing; restore this replica from another");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// However the leaves are cut into appends, nodes and root are the same, and every proof verifies.
    #[test]
    fn appends_of_any_sizes_make_one_log(batches in prop::collection::vec(0_u64..40, 1..12), pick in any::<u64>()) {
        let mut nodes = BTreeMap::new();
        let mut head = LogHead::empty();
        let mut old = None;
        for batch in batches {
            let leaves: Vec<_> = (head.size..head.size + batch).map(leaf).collect();
            let update = append(&nodes, head.size, leaves.iter().map(Vec::as_slice)).unwrap();
            for (at, hash) in update.nodes {
                prop_assert_eq!(nodes.insert(at, hash), None, "nodes never change");
            }
            if head.size > 0 {
                old = Some(head);
            }
            head = update.head;
        }
        let (all, whole, _) = both(head.size);
        prop_assert_eq!(&nodes, &all);
        prop_assert_eq!(head, whole);
        if head.size > 0 {
            let index = pick % head.size;
            let proof = InclusionProof::from_bytes(prove_inclusion(&nodes, head.size, index).unwrap());
            prop_assert!(peer_root(head).verify_inclusion(&leaf(index), index, &proof).is_ok());
            prop_assert!(peer_root(head).verify_inclusion(&leaf(index + 1), index, &proof).is_err());
        }
        if let Some(old) = old {
            let proof = prove_consistency(&nodes, old.size, head.size).unwrap();
            let proof = ConsistencyProof::try_from_bytes(proof).unwrap();
            prop_assert!(peer_root(head).verify_consistency(&peer_root(old), &proof).is_ok());
        }
    }
}
