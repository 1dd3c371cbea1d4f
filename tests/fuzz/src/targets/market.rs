//! What bots say while they negotiate, and the policies that farmers write.

use croft_market::PolicyFile;
use croft_market::conversation::{Conversation, Party};
use croft_market::policy::FORMAT;
use croft_market::transcript::Transcript;
use croft_protocol::market::{Demand, Message, Quote, STEPS, Said, SignedMessage};
use croft_protocol::{Capacity, ChainId, FarmId, Grains, Hash, Rate, SecretKey};

use crate::check::{bounded, bounded_message, canonical, text};
use crate::scene::{encoded, written};
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[
    Target {
        name: "negotiation",
        decodes: "everything that two bots said to each other",
        sent_by: "a bot that proves something",
        files: &["agents/protocol/src/market.rs", "agents/market/src/transcript.rs"],
        seeds: negotiations,
        rounds: 300,
        run: negotiation,
    },
    Target {
        name: "policy-file",
        decodes: "a farm's policy as people write it (policy.toml)",
        sent_by: "people",
        files: &["agents/market/src/policy/file.rs"],
        seeds: policy_files,
        rounds: 800,
        run: policy_file,
    },
];

const CHAIN: ChainId = ChainId(Hash([7; 32]));
const OPEN_MS: u64 = 1_800_000_000_000;

fn party(n: u8) -> Party {
    Party { key: SecretKey::from_seed(&[n; 32]), chain: CHAIN }
}

fn negotiations() -> Vec<Seed> {
    let (buyer, farmer) = (party(1), party(2));
    let demand = Demand {
        buyer: buyer.id(),
        farmer: farmer.id(),
        farm: FarmId(Hash([3; 32])),
        node: farmer.id(),
        resources: Capacity { cpu_millis: 1000, memory_bytes: 1 << 30, ..Capacity::default() },
        ports: Vec::new(),
        duration_s: 3600,
        grace_s: 60,
        prepaid_s: None,
        nonce: [4; 16],
    };
    let quote = |rate| Quote { rate: Rate(rate), hold_fee: Grains(5), hold_ms: 60_000, capacity_version: 1 };
    let mut talk = Conversation::open(&buyer, demand, OPEN_MS).expect("a demand can be said");
    let opened = talk.transcript().clone();
    let offer = Message {
        negotiation: opened.id(),
        step: 1,
        prev: opened.last().hash(),
        author: farmer.id(),
        expires_ms: OPEN_MS,
        said: Said::Offer(quote(10)),
        note: "for you".to_owned(),
    };
    let offer = SignedMessage::sign(offer, &CHAIN, &farmer.key);
    talk.hear(&CHAIN, offer, OPEN_MS).expect("an offer can be heard");
    talk.say(&buyer, Said::Counter(quote(8)), OPEN_MS).expect("a price can be said");
    vec![encoded("demand", &opened), encoded("haggling", talk.transcript())]
}

/// What verifies can be asked anything; what does not says why in bounded words.
fn negotiation(bytes: &[u8]) {
    let Some(transcript) = canonical::<Transcript>("a transcript", 1 << 20, bytes) else { return };
    match bounded("transcript", bytes.len(), || transcript.verify(&CHAIN)) {
        Ok(()) => {
            assert!((1..=STEPS).contains(&transcript.next_step()));
            assert_eq!(transcript.id(), transcript.demand().id(&CHAIN));
            assert!(transcript.holds(transcript.last()));
            assert!(transcript.reservation().is_none() || transcript.proposal().is_some());
        }
        Err(refusal) => bounded_message("a transcript", &refusal.to_string()),
    }
}

fn policy_files() -> Vec<Seed> {
    let whole = FORMAT.split_once("\n\n").map_or(FORMAT, |(_, whole)| whole);
    vec![written("whole.toml", whole), written("small.toml", "[terms]\nmin = \"1h\"\n")]
}

fn policy_file(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match bounded("policy file", bytes.len(), || PolicyFile::parse(text)) {
        Ok(file) => {
            let names = file.names().count();
            let mut asked = 0;
            let resolved = file.resolve(|_| {
                asked += 1;
                Some(party(1).id())
            });
            let policy = resolved.expect("every name is known");
            assert_eq!(asked, names);
            assert!(policy.floor_percent <= 100 && policy.term.min_s <= policy.term.max_s);
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() <= 4 * 1024 + 8 * bytes.len(), "{message}");
        }
    }
}
