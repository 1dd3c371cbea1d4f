//! What replicas say to each other, and what a replica reads from its own disk.

use std::cell::OnceCell;

use croft_protocol::{Hash, PublicKey, SecretKey, limits};
use croft_replica::ReplicaConfig;
use croft_replica::ordering::bft::context::{
    Height, Member, PolkaCertificate, Proposal, RoundCertificate, Value, Vote, sign_proposal, sign_vote,
};
use croft_replica::ordering::bft::evidence::Evidence;
use croft_replica::ordering::bft::log::{Entry, TimeoutOf};
use croft_replica::ordering::bft::message::{Body, FinalBlock, MESSAGE_BYTES, PeerMessage, Signed};
use croft_replica::store::fuzzing;
use malachite_types::{NilOrVal, PolkaSignature, Round, RoundCertificateType, RoundSignature, VoteType};

use crate::check::{bounded, bounded_message, canonical, text};
use crate::scene::{encoded, rewrite, scene, written};
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[
    Target {
        name: "peer-message",
        decodes: "votes, proposals, bodies, blocks and commands",
        sent_by: "another replica",
        files: &[
            "agents/replica/src/ordering/bft/message.rs",
            "agents/replica/src/ordering/bft/context.rs",
            "agents/replica/src/server/replicate.rs",
        ],
        seeds: messages,
        rounds: 2_500,
        run: peer_message,
    },
    Target {
        name: "consensus-log-entry",
        decodes: "what a validator saw and said",
        sent_by: "a disk",
        files: &["agents/replica/src/ordering/bft/log.rs"],
        seeds: entries,
        rounds: 2_000,
        run: log_entry,
    },
    Target {
        name: "evidence",
        decodes: "two contradicting messages of one validator",
        sent_by: "a disk, another replica",
        files: &["agents/replica/src/ordering/bft/evidence.rs"],
        seeds: || vec![encoded("votes", &double_vote()), encoded("proposals", &double_proposal())],
        rounds: 800,
        run: evidence,
    },
    Target {
        name: "stored-commands",
        decodes: "the commands of a block as they lie on the disk, packed",
        sent_by: "a disk",
        files: &["agents/replica/src/store/bodies.rs"],
        seeds: stored_commands,
        rounds: 1_000,
        run: unpack,
    },
    Target {
        name: "index-entry",
        decodes: "an entry of the search index",
        sent_by: "a disk",
        files: &["agents/replica/src/store/index.rs", "agents/replica/src/store/snapshot.rs"],
        seeds: index_entries,
        rounds: 1_500,
        run: index_entry,
    },
    Target {
        name: "replica-config",
        decodes: "replica.toml",
        sent_by: "people",
        files: &["agents/replica/src/config.rs"],
        seeds: || vec![written("replica.toml", CONFIG), written("short.toml", "listen = \"127.0.0.1:0\"\n")],
        rounds: 400,
        run: config,
    },
];

const CONFIG: &str = r#"listen = "192.0.2.3:7400"
genesis = "genesis.json"
key = "validator.key"
data = "data"
observers = ["00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"]

[blobs]
per_bot = "8G"
total = "64G"

[keep]
proof_blocks = 1000
command_blocks = 10000

[[peers]]
address = "192.0.2.4:7400"
key = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
"#;

fn peer_message(bytes: &[u8]) {
    let Some(message) = canonical::<PeerMessage>("peer message", MESSAGE_BYTES, bytes) else { return };
    let _ = message.is_bulk();
    if let PeerMessage::Body(body) = message {
        let _ = body.hash();
    }
}

fn log_entry(bytes: &[u8]) {
    if let Some(entry) = canonical::<Entry>("entry", MESSAGE_BYTES, bytes) {
        let is_body = matches!(entry, Entry::Body { .. });
        // What was written because of an input must be read as that input.
        match entry.clone().input() {
            Some(input) => assert_eq!(Entry::of(input).as_ref(), Some(&entry), "an entry means another"),
            None => assert!(is_body),
        }
    }
}

fn evidence(bytes: &[u8]) {
    let Some(evidence) = canonical::<Evidence>("evidence", MESSAGE_BYTES, bytes) else { return };
    let _ = (evidence.culprit(), evidence.height());
    if evidence.holds(&scene().scenario.ledger.chain()) {
        let known = [double_vote(), double_proposal()].contains(&evidence) || swapped().contains(&evidence);
        assert!(known, "a validator is accused that did nothing");
    }
}

fn unpack(bytes: &[u8]) {
    // Packed lists may grow to the size of a block, whatever their own size; no further.
    let info = allocation_counter::measure(|| match fuzzing::unpacked(bytes) {
        Ok(commands) => assert!(commands.len() <= limits::COMMANDS_PER_BLOCK),
        Err(error) => bounded_message("stored commands", &error.to_string()),
    });
    let allowed = 4 * limits::BLOCK_BYTES as u64;
    assert!(info.bytes_max <= allowed, "{} bytes take {} of memory", bytes.len(), info.bytes_max);
}

fn index_entry(bytes: &[u8]) {
    if let Ok(again) = bounded("index entry", bytes.len(), || fuzzing::index_entry(bytes)) {
        assert_eq!(again, bytes, "an entry has two encodings");
    }
}

thread_local! {
    static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

fn config(bytes: &[u8]) {
    if text(bytes).is_none() {
        return;
    }
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| {
            let folder = tempfile::tempdir().expect("a folder can be made");
            let genesis = serde_json::to_vec(scene().scenario.ledger.genesis()).expect("it has a form");
            std::fs::write(folder.path().join("genesis.json"), genesis).expect("a file can be written");
            let key = "00".repeat(32);
            std::fs::write(folder.path().join("validator.key"), key).expect("a file can be written");
            folder
        });
        let path = folder.path().join("replica.toml");
        rewrite(&path, bytes);
        match ReplicaConfig::load(&path) {
            Ok(config) => assert!(config.peers.len() <= limits::VALIDATORS),
            Err(error) => assert!(error.to_string().len() <= 4 * 1024 + 2 * bytes.len(), "{error}"),
        }
    });
}

fn validator() -> &'static SecretKey {
    &scene().scenario.validators[0]
}

fn member() -> Member {
    Member(validator().public())
}

fn vote(kind: VoteType, value: NilOrVal<Hash>) -> Signed<Vote> {
    let message = Vote { kind, height: Height(9), round: Round::Some(1), value, voter: member() };
    let signature = sign_vote(validator(), &scene().scenario.ledger.chain(), &message);
    Signed { message, signature }
}

fn proposal(header: u8) -> Signed<Proposal> {
    let message = Proposal {
        height: Height(9),
        round: Round::Some(1),
        value: Value { header: Hash([header; 32]), body: Hash([2; 32]) },
        pol_round: Round::Nil,
        proposer: member(),
    };
    let signature = sign_proposal(validator(), &scene().scenario.ledger.chain(), &message);
    Signed { message, signature }
}

fn double_vote() -> Evidence {
    Evidence::Votes(
        vote(VoteType::Precommit, NilOrVal::Val(Hash([1; 32]))),
        vote(VoteType::Precommit, NilOrVal::Nil),
    )
}

fn double_proposal() -> Evidence {
    Evidence::Proposals(proposal(1), proposal(3))
}

/// The same accusations the other way round.
fn swapped() -> [Evidence; 2] {
    [double_vote(), double_proposal()].map(|evidence| match evidence {
        Evidence::Votes(a, b) => Evidence::Votes(b, a),
        Evidence::Proposals(a, b) => Evidence::Proposals(b, a),
    })
}

fn polka() -> PolkaCertificate {
    let signature = vote(VoteType::Prevote, NilOrVal::Val(Hash([1; 32]))).signature;
    PolkaCertificate {
        height: Height(9),
        round: Round::Some(1),
        value_id: Hash([1; 32]),
        polka_signatures: vec![PolkaSignature::new(member(), signature)],
    }
}

fn body() -> Body {
    Body { height: 9, time_ms: 1_700_000_000_000, commands: scene().commands[..2].to_vec() }
}

fn messages() -> Vec<Seed> {
    let precommit = vote(VoteType::Precommit, NilOrVal::Val(Hash([1; 32])));
    let skip = RoundCertificate {
        height: Height(9),
        round: Round::Some(1),
        cert_type: RoundCertificateType::Skip,
        round_signatures: vec![RoundSignature::new(
            VoteType::Precommit,
            NilOrVal::Nil,
            member(),
            precommit.signature,
        )],
    };
    let block = FinalBlock {
        signed: scene().scenario.ledger.tip().clone(),
        commands: scene().commands[..1].to_vec(),
    };
    let all = [
        PeerMessage::Status { height: 9, earliest: 1 },
        PeerMessage::Vote(precommit),
        PeerMessage::Proposal(proposal(1)),
        PeerMessage::PolkaCertificate(polka()),
        PeerMessage::RoundCertificate(skip),
        PeerMessage::Body(body()),
        PeerMessage::WantBody { height: 9, body: body().hash() },
        PeerMessage::Commands(scene().commands[..1].to_vec()),
        PeerMessage::WantBlocks { first: 1, count: 5 },
        PeerMessage::Blocks(vec![block]),
    ];
    all.iter().enumerate().map(|(n, message)| encoded(&format!("message-{n}"), message)).collect()
}

fn entries() -> Vec<Seed> {
    let value = Entry::Value {
        height: 9,
        round: Round::Some(1),
        valid_round: Round::Nil,
        proposer: member(),
        value: Value { header: Hash([1; 32]), body: Hash([2; 32]) },
        valid: true,
    };
    let all = [
        Entry::Vote(vote(VoteType::Prevote, NilOrVal::Nil)),
        Entry::Proposal(proposal(1)),
        Entry::Polka(polka()),
        Entry::Timeout { kind: TimeoutOf::Prevote, round: Round::Some(1) },
        value,
        Entry::Body { made_in: Some(1), body: body() },
    ];
    all.iter().enumerate().map(|(n, entry)| encoded(&format!("entry-{n}"), entry)).collect()
}

fn stored_commands() -> Vec<Seed> {
    let packed = |count: usize| fuzzing::packed(&scene().commands[..count]).unwrap_or_default();
    vec![("none".to_owned(), packed(0)), ("packed".to_owned(), packed(scene().commands.len()))]
}

/// As the store writes them: the tag of the kind, then what searches compare.
fn index_entries() -> Vec<Seed> {
    let (owner, farm) = (scene().scenario.farmer.public(), scene().scenario.farm);
    let prices = croft_protocol::PriceList { cpu: 1, memory_gib: 2, ssd_gib: 3, hdd_gib: 4 };
    let region: Option<croft_protocol::Name> = "flanders".parse().ok();
    let capacity = scene().scenario.node_body().capacity;
    let nobody = PublicKey([7; 32]);
    vec![
        encoded("farm", &(0_u8, owner, "be".to_owned(), region, prices)),
        encoded("node", &(1_u8, farm, 0_u8, capacity)),
        encoded("contract", &(2_u8, owner, nobody, nobody, 2_u8, Some(5_u64))),
    ]
}
