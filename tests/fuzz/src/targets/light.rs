//! Proofs: whatever a replica sends, nothing is believed but what the scene's ledger says, and by no other proof than
//! the ledger's own.

use croft_ledger::memory::name;
use croft_light::{
    HandoverWalk, LightClient, compare, verify_consistency, verify_contract, verify_history,
    verify_node_contracts, verify_prefix, verify_record, verify_value,
};
use croft_protocol::api::{ProvedRecord, ProvedValue};
use croft_protocol::{Hash, RecordId, SignedHeader, StateKey, limits};

use crate::check::{bounded, bounded_message, canonical};
use crate::scene::{encoded, is_known, scene};
use crate::{Seed, Target};

const PROOF: &str = "agents/light/src/proof.rs";

pub const TARGETS: &[Target] = &[
    Target {
        name: "proof-of-value",
        decodes: "that a key of the state map has a value or none",
        sent_by: "a replica",
        files: &[PROOF],
        seeds: values,
        rounds: 1_500,
        run: value,
    },
    Target {
        name: "proof-of-record",
        decodes: "that a record stands in the log",
        sent_by: "a replica",
        files: &[PROOF],
        seeds: records,
        rounds: 1_500,
        run: record,
    },
    Target {
        name: "proof-of-history",
        decodes: "every version of a thing",
        sent_by: "a replica",
        files: &[PROOF],
        seeds: || vec![encoded("contract", &history())],
        rounds: 1_000,
        run: versions,
    },
    Target {
        name: "proof-of-prefix",
        decodes: "that a log begins with another",
        sent_by: "a replica",
        files: &[PROOF],
        seeds: prefixes,
        rounds: 2_000,
        run: prefix,
    },
    Target {
        name: "handovers",
        decodes: "headers on the way from pinned validators to the present ones",
        sent_by: "a replica, a disk",
        files: &["agents/light/src/handover.rs", "agents/light/src/tip.rs"],
        seeds: handovers,
        rounds: 400,
        run: walk,
    },
    Target {
        name: "proof-of-contracts",
        decodes: "which contracts a node has, and one of them",
        sent_by: "a replica",
        files: &["agents/light/src/contract.rs"],
        seeds: contracts,
        rounds: 800,
        run: contract,
    },
];

fn value(bytes: &[u8]) {
    let limit = limits::RESPONSE_BYTES;
    let Some((key, proved)) = canonical::<(StateKey, ProvedValue)>("proved value", limit, bytes) else {
        return;
    };
    let ledger = &scene().scenario.ledger;
    match bounded("proof of a value", bytes.len(), || verify_value(&scene().tip, &key, &proved)) {
        Ok(value) => {
            assert_eq!(value, ledger.state().get(&key).cloned(), "{key:?} is proved to be what it is not");
            assert_eq!(proved, ledger.prove(&key), "an altered proof of {key:?} holds");
        }
        Err(error) => bounded_message("proof of a value", &error.to_string()),
    }
}

fn record(bytes: &[u8]) {
    let limit = limits::RESPONSE_BYTES;
    let Some(proved) = canonical::<ProvedRecord>("proved record", limit, bytes) else { return };
    match bounded("proof of a record", bytes.len(), || verify_record(&scene().tip, &proved)) {
        Ok(_) => {
            let honest = scene().scenario.ledger.prove_record(proved.index);
            assert_eq!(Some(&proved), honest.as_ref(), "an altered proof of a record holds");
        }
        Err(error) => bounded_message("proof of a record", &error.to_string()),
    }
}

fn versions(bytes: &[u8]) {
    let limit = limits::RESPONSE_BYTES;
    let Some(found) = canonical::<Vec<ProvedRecord>>("history", limit, bytes) else { return };
    let id = RecordId::contract(&scene().contract);
    if verify_history(&scene().tip, &id, &found).is_ok() {
        let honest = history();
        let whole = found.is_empty() || honest.windows(found.len()).any(|part| *part == *found);
        assert!(whole, "a history is believed that was not");
    }
}

fn prefix(bytes: &[u8]) {
    let limit = limits::RESPONSE_BYTES;
    let Some((size, root, proof)) = canonical::<(u64, Hash, Vec<u8>)>("proved prefix", limit, bytes) else {
        return;
    };
    let scene = scene();
    let newest = scene.tip.header();
    match bounded("proof of a prefix", bytes.len(), || verify_prefix(&scene.tip, size, &root, &proof)) {
        Ok(()) => {
            let headers = scene.scenario.ledger.headers().iter().map(|signed| signed.header);
            let known = headers.filter(|header| header.log_size == size).map(|header| header.log_root).next();
            assert_eq!(Some(root), known, "a log of {size} records is believed that never was");
            let own = prefixes().into_iter().any(|(_, seed)| seed == bytes) || size == newest.log_size;
            assert!(own, "an altered proof of a prefix holds");
        }
        Err(error) => bounded_message("proof of a prefix", &error.to_string()),
    }
    if verify_consistency(&scene.older, &scene.tip, &proof).is_ok() {
        let older = usize::try_from(scene.older.height()).expect("it is small");
        assert_eq!(proof, scene.scenario.ledger.prove_consistency(older), "an altered proof holds");
    }
}

fn walk(bytes: &[u8]) {
    let limit = limits::RESPONSE_BYTES;
    let Some(headers) = canonical::<Vec<SignedHeader>>("handovers", limit, bytes) else { return };
    let ledger = &scene().scenario.ledger;
    let mut light = LightClient::new(ledger.chain(), ledger.genesis().validators.hash());
    let mut walk = HandoverWalk::new();
    for header in headers.iter().take(16) {
        let stepped = match walk.next(&light, header) {
            Some(_) => walk.step(&mut light, header),
            None => light.accept_tip(header, None).map(|_| ()),
        };
        match stepped {
            Ok(()) => assert!(is_known(header), "a header is believed that nobody certified"),
            Err(error) => bounded_message("handover", &error.to_string()),
        }
        if let Err(error) = compare(ledger.tip(), header) {
            assert!(
                !matches!(error, croft_light::LightError::Contradiction(_)),
                "honest validators are said to contradict themselves"
            );
        }
    }
}

fn contract(bytes: &[u8]) {
    let limit = limits::RESPONSE_BYTES;
    let Some(proved) = canonical::<ProvedValue>("proved contract", limit, bytes) else { return };
    let (scene, node) = (scene(), scene().scenario.node_id());
    match verify_node_contracts(&scene.tip, &node, &proved) {
        Ok(list) => assert_eq!(list, [scene.contract], "a contract is hidden or made up"),
        Err(error) => bounded_message("list of contracts", &error.to_string()),
    }
    match verify_contract(&scene.tip, &node, &scene.contract, &proved) {
        Ok(verified) => assert_eq!(*verified.body(), scene.scenario.contract(&scene.contract)),
        Err(error) => bounded_message("contract", &error.to_string()),
    }
}

fn values() -> Vec<Seed> {
    let ledger = &scene().scenario.ledger;
    let absent = [StateKey::BotName(name("nobody")), StateKey::NodeContracts(scene().scenario.user.public())];
    let keys = ledger.state().keys().filter(|key| !matches!(key, StateKey::Record(_))).chain(&absent);
    keys.enumerate().map(|(n, key)| encoded(&format!("value-{n:02}"), &(key, ledger.prove(key)))).collect()
}

fn records() -> Vec<Seed> {
    let proved = (0..).map_while(|n| scene().scenario.ledger.prove_record(n));
    proved.step_by(3).map(|proved| encoded(&format!("record-{:02}", proved.index), &proved)).collect()
}

fn history() -> Vec<ProvedRecord> {
    let id = RecordId::contract(&scene().contract);
    let proved = (0..).map_while(|n| scene().scenario.ledger.prove_record(n));
    proved.filter(|proved| proved.record.id == id).collect()
}

fn prefixes() -> Vec<Seed> {
    let ledger = &scene().scenario.ledger;
    let headers = ledger.headers().iter().map(|signed| signed.header).enumerate();
    let older = headers.take_while(|(_, header)| header.log_size < scene().tip.header().log_size);
    let seed = |(n, header): (usize, croft_protocol::Header)| {
        let proof = ledger.prove_consistency(n);
        encoded(&format!("prefix-{n:02}"), &(header.log_size, header.log_root, proof))
    };
    older.map(seed).collect()
}

fn handovers() -> Vec<Seed> {
    let headers = scene().scenario.ledger.headers();
    let changes: Vec<_> =
        headers.iter().filter(|h| h.header.next_validators != h.header.validators).cloned().collect();
    let way: Vec<_> = changes.iter().chain(headers.last()).cloned().collect();
    vec![encoded("way", &way), encoded("tip", &vec![headers[1].clone()]), encoded("handover", &changes)]
}

fn contracts() -> Vec<Seed> {
    let (ledger, node) = (&scene().scenario.ledger, scene().scenario.node_id());
    let record = StateKey::Record(RecordId::contract(&scene().contract));
    vec![
        encoded("list", &ledger.prove(&StateKey::NodeContracts(node))),
        encoded("contract", &ledger.prove(&record)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Alters each bit after `from` and hands the bytes to `believes`.
    fn no_bit_may_change(what: &str, bytes: &[u8], believes: impl Fn(&[u8]) -> bool) {
        assert!(believes(bytes), "{what}: the honest proof holds");
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut altered = bytes.to_vec();
                altered[at] ^= 1 << bit;
                assert!(!believes(&altered), "{what}: bit {bit} of byte {at} can be altered");
            }
        }
        for len in 0..bytes.len() {
            assert!(!believes(&bytes[..len]), "{what}: {len} bytes are enough");
        }
    }

    #[test]
    fn no_altered_bit_of_a_proof_of_a_value_verifies() {
        let ledger = &scene().scenario.ledger;
        for key in [StateKey::Supply, StateKey::BotName(name("nobody"))] {
            let proved = ledger.prove(&key);
            no_bit_may_change("proof", &proved.proof, |proof| {
                let proved = ProvedValue { value: proved.value.clone(), proof: proof.to_vec() };
                verify_value(&scene().tip, &key, &proved).is_ok()
            });
        }
    }

    #[test]
    fn no_altered_bit_of_a_proof_of_a_record_verifies() {
        let proved = scene().scenario.ledger.prove_record(2).unwrap();
        no_bit_may_change("proof", &proved.proof, |proof| {
            let proved = ProvedRecord { proof: proof.to_vec(), ..proved.clone() };
            verify_record(&scene().tip, &proved).is_ok()
        });
    }

    #[test]
    fn no_altered_bit_of_a_proof_of_consistency_verifies() {
        let older = usize::try_from(scene().older.height()).unwrap();
        let proof = scene().scenario.ledger.prove_consistency(older);
        no_bit_may_change("proof", &proof, |proof| {
            verify_consistency(&scene().older, &scene().tip, proof).is_ok()
        });
    }
}
