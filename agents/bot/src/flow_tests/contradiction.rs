//! Validators that signed two histories: the proof stops everything on that grid, and is shown.

use croft_protocol::{Certificate, ChainId, Hash, Header, SecretKey, SignedHeader, ValidatorSet};

use super::world::World;

/// A header that the grid's only validator signed.
fn signed(key: &SecretKey, chain: ChainId, state_root: Hash) -> SignedHeader {
    let validators = ValidatorSet::of_equals(&[key.public()]);
    let set = validators.hash();
    let header = Header {
        chain,
        height: 1_000_000,
        time_ms: 1,
        prev: Hash::ZERO,
        log_root: Hash::ZERO,
        log_size: 0,
        state_root,
        validators: set,
        next_validators: set,
    };
    let hash = header.hash();
    let signature = Certificate::sign(key, &chain, header.height, 0, &hash);
    let certificate = Certificate {
        height: header.height,
        round: 0,
        header: hash,
        signatures: vec![(key.public(), signature)],
    };
    SignedHeader { header, certificate, validators }
}

#[test]
fn a_kept_proof_of_two_histories_is_shown_and_nothing_is_done_on_the_grid() {
    let world = World::with_farm();
    let chain: ChainId = world.json("grid status")["chain"].as_str().unwrap().parse().unwrap();
    let key = std::fs::read_to_string(world.home().join("grids/demo/ledger/validator.key")).unwrap();
    let mut seed = [0; 32];
    hex::decode_to_slice(key.trim(), &mut seed).unwrap();
    let key = SecretKey::from_seed(&seed);
    let proof = [Hash([1; 32]), Hash([2; 32])].map(|root| signed(&key, chain, root));
    let path = world.home().join("grids/demo/contradiction");
    std::fs::write(&path, croft_protocol::encode(&proof)).unwrap();

    for line in ["grid status", "ps --bot alice", "wallet send bob 5 --bot alice"] {
        let output = world.run(line);
        assert_eq!(output.code, 1, "{line}: {}", output.err);
        let says = "the validators of this grid signed two histories, header 1000000 ";
        assert!(output.err.contains(says), "{line}: {}", output.err);
        assert!(output.err.contains(&proof[1].header.hash().to_string()), "{line}: {}", output.err);
        assert!(
            output.err.contains(&format!("the proof is in {}", path.display())),
            "{line}: {}",
            output.err
        );
    }
    // What proves nothing stops nobody.
    std::fs::write(&path, b"garbled").unwrap();
    world.json("grid status");
    std::fs::write(&path, croft_protocol::encode(&[&proof[0], &proof[0]])).unwrap();
    world.json("grid status");
}
