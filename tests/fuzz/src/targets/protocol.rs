//! What is signed, hashed or sent over the grid's network: borsh.

use croft_attest::soft::SoftTpm;
use croft_ledger::memory::name;
use croft_market::transcript::Transcript;
use croft_protocol::api::{
    BotQuery, Concern, ContractQuery, Cursor, Event, Failure, FarmQuery, IncomingRelay, Mail, NodeQuery,
    Page, ProvedPage, ProvedRecord, ProvedThing, Query, RefusedNode, Request, Response, Service,
};
use croft_protocol::attestation::{Credential, SignedVoucher, Voucher};
use croft_protocol::command::SignedJoin;
use croft_protocol::contract::KeptContract;
use croft_protocol::faucet::FaucetClaims;
use croft_protocol::identity::{BotSignature, KeyChange, KeysBody, Link};
use croft_protocol::image::{Chunk, ImageManifest};
use croft_protocol::market::{Demand, Message, Quote, Said, SignedMessage};
use croft_protocol::message::{Message as Letter, MessageId, message_key};
use croft_protocol::peer::{
    BotRequest, BotResponse, Explanation, FarmRequest, FarmResponse, LogLine, NodeRequest, NodeResponse,
    Step, VmExplanation,
};
use croft_protocol::record::WorkloadState;
use croft_protocol::release::{BootFile, BootManifest};
use croft_protocol::seal::{SealingKey, seal};
use croft_protocol::state::NodeContracts;
use croft_protocol::trust::{NodeTrust, RecentHeaders, TrustPolicy, WeighedQuote};
use croft_protocol::workload::Workload;
use croft_protocol::{
    Body, ChainId, Command, ContractBody, Escrow, Faucet, Grains, Hash, NodeCapacity, PriceList, Profile,
    Rate, Record, RecordId, Rejection, Role, SignedCommand, SignedHeader, SignedTerms, SignedValidatorChange,
    StateKey, limits,
};

use crate::check::{bounded, bounded_message, canonical};
use crate::scene::{encoded, is_known, manifest, scene, signed, workload};
use crate::{Seed, Target};

const COMMAND: &str = "agents/protocol/src/command.rs";
const RECORD: &str = "agents/protocol/src/record.rs";
const HEADER: &str = "agents/protocol/src/header.rs";
const API: &str = "agents/protocol/src/api.rs";
const QUERY: &str = "agents/protocol/src/query.rs";
const LIB: &str = "agents/protocol/src/lib.rs";

pub const TARGETS: &[Target] = &[
    Target {
        name: "signed-command",
        decodes: "a command in its envelope",
        sent_by: "anybody",
        files: &[COMMAND, LIB],
        seeds: commands,
        rounds: 1_500,
        run: signed_command,
    },
    Target {
        name: "record",
        decodes: "a record of the log",
        sent_by: "a replica",
        files: &[
            RECORD,
            "agents/protocol/src/contract.rs",
            "agents/protocol/src/name.rs",
            "agents/bot/src/commands/ledger.rs",
            "agents/bot/src/commands/wallet.rs",
        ],
        seeds: records,
        rounds: 2_000,
        run: record,
    },
    Target {
        name: "signed-header",
        decodes: "a header with its certificate and validators",
        sent_by: "a replica",
        files: &[HEADER],
        seeds: headers,
        rounds: 1_500,
        run: signed_header,
    },
    Target {
        name: "validator-change",
        decodes: "a change of the validators with signatures",
        sent_by: "anybody",
        files: &["agents/protocol/src/validators.rs"],
        seeds: || vec![encoded("signed", &scene().change), encoded("unsigned", &unsigned_change())],
        rounds: 1_500,
        run: validator_change,
    },
    Target {
        name: "terms",
        decodes: "terms, and terms with both signatures",
        sent_by: "a user's bot, a farmer's bot",
        files: &["agents/protocol/src/contract.rs"],
        seeds: || vec![encoded("web", &signed_terms())],
        rounds: 1_500,
        run: terms,
    },
    Target {
        name: "contract-body",
        decodes: "a contract as a node kept it",
        sent_by: "a disk",
        files: &["agents/node/src/contracts.rs", "agents/protocol/src/contract.rs"],
        seeds: || vec![encoded("web", &kept_body())],
        rounds: 1_500,
        run: kept_contract,
    },
    Target {
        name: "join",
        decodes: "a farm's permission to join",
        sent_by: "anybody",
        files: &[COMMAND],
        seeds: || {
            let join = scene().scenario.join();
            let signature = BotSignature { links: vec![link()], signature: join.signature.signature };
            vec![encoded("join", &join), encoded("later-key", &SignedJoin { signature, ..join })]
        },
        rounds: 1_000,
        run: |bytes| _ = canonical::<SignedJoin>("join permission", 2048, bytes),
    },
    Target {
        name: "request",
        decodes: "a request to a replica",
        sent_by: "anybody",
        files: &[API, QUERY, "agents/replica/src/server.rs"],
        seeds: requests,
        rounds: 3_000,
        run: request,
    },
    Target {
        name: "response",
        decodes: "a replica's answer",
        sent_by: "a replica",
        files: &[API, "agents/bot/src/grid.rs"],
        seeds: responses,
        rounds: 3_000,
        run: response,
    },
    Target {
        name: "event",
        decodes: "what a follower hears",
        sent_by: "a replica",
        files: &[API],
        seeds: events,
        rounds: 2_000,
        run: |bytes| drop(canonical::<Event>("event", limits::RESPONSE_BYTES, bytes)),
    },
    Target {
        name: "relay-hello",
        decodes: "who calls over a relay",
        sent_by: "a replica",
        files: &[API],
        seeds: || vec![encoded("from", &IncomingRelay { from: scene().scenario.user.public() })],
        rounds: 500,
        run: |bytes| _ = canonical::<IncomingRelay>("relay hello", 64, bytes),
    },
    Target {
        name: "cursor",
        decodes: "where a search goes on",
        sent_by: "anybody",
        files: &[QUERY],
        seeds: || Cursor::new(vec![7; 90]).iter().map(|cursor| encoded("cursor", cursor)).collect(),
        rounds: 1_000,
        run: cursor,
    },
    Target {
        name: "state-key",
        decodes: "a key of the state map",
        sent_by: "anybody",
        files: &["agents/protocol/src/state.rs"],
        seeds: state_keys,
        rounds: 1_500,
        run: |bytes| drop(canonical::<StateKey>("state key", 1024, bytes)),
    },
    Target {
        name: "state-value",
        decodes: "what stands under a key of the state map",
        sent_by: "a replica",
        files: &[
            "agents/protocol/src/state.rs",
            "agents/protocol/src/capacity.rs",
            "agents/protocol/src/trust.rs",
            "agents/ledger/src/state.rs",
            "agents/node/src/witness.rs",
        ],
        seeds: state_values,
        rounds: 1_500,
        run: state_value,
    },
    Target {
        name: "node-peer",
        decodes: "what a node and its users say to each other",
        sent_by: "anybody, through a relay",
        files: &["agents/protocol/src/peer.rs", "agents/node/src/peers.rs"],
        seeds: node_messages,
        rounds: 2_000,
        run: node_peer,
    },
    Target {
        name: "farm-peer",
        decodes: "what a user's and a farmer's bot say to each other",
        sent_by: "anybody, through a relay",
        files: &["agents/protocol/src/peer.rs", "agents/bot/src/peers.rs"],
        seeds: farm_messages,
        rounds: 1_500,
        run: farm_peer,
    },
    Target {
        name: "workload",
        decodes: "an opened workload",
        sent_by: "a user's bot",
        files: &["agents/protocol/src/workload.rs", "agents/node/src/spec.rs"],
        seeds: || vec![encoded("web", &workload())],
        rounds: 2_500,
        run: opened_workload,
    },
    Target {
        name: "sealed-workload",
        decodes: "a workload sealed to a node",
        sent_by: "a user's bot",
        files: &["agents/protocol/src/seal.rs"],
        seeds: || {
            vec![("plain".to_owned(), b"plain".to_vec()), encoded("envelope", &([9_u8; 32], vec![1_u8; 40]))]
        },
        rounds: 60,
        run: sealed,
    },
    Target {
        name: "sealed-message",
        decodes: "what a bot finds in a message once it is opened",
        sent_by: "another bot",
        files: &["agents/protocol/src/message.rs"],
        seeds: || {
            let signature =
                BotSignature { links: vec![link()], signature: croft_protocol::Signature([1; 64]) };
            let hello = croft_protocol::encode(&(letter("hello"), signature));
            vec![("hello".to_owned(), hello), ("sealed".to_owned(), vec![7; 400])]
        },
        rounds: 60,
        run: sealed_message,
    },
    Target {
        name: "bot-peer",
        decodes: "a message that is handed over, and the answer",
        sent_by: "another bot, through the relay",
        files: &["agents/bot/src/commands/message.rs"],
        seeds: || {
            let refused = BotResponse::Refused { reason: "no".to_owned() };
            vec![
                encoded("deliver", &BotRequest::Deliver { sealed: vec![1, 2, 3] }),
                encoded("taken", &BotResponse::Taken),
                encoded("refused", &refused),
            ]
        },
        rounds: 600,
        run: bot_peer,
    },
    Target {
        name: "boot-manifest",
        decodes: "the list of a boot file's pieces",
        sent_by: "a replica",
        files: &["agents/protocol/src/release.rs", "agents/node/src/upgrade/files.rs"],
        seeds: || vec![encoded("two-chunks", &boot_manifest())],
        rounds: 1_500,
        run: checked_boot_manifest,
    },
    Target {
        name: "image-manifest",
        decodes: "the manifest of a workload image",
        sent_by: "a replica",
        files: &[
            "agents/protocol/src/image.rs",
            "agents/node/src/images.rs",
            "agents/bot/src/image/blobs.rs",
        ],
        seeds: || vec![encoded("three-blocks", &manifest())],
        rounds: 2_500,
        run: image_manifest,
    },
];

fn boot_manifest() -> BootManifest {
    let chunk = |n| Chunk { hash: Hash([n; 32]), compressed_bytes: 100 };
    BootManifest { version: 1, size_bytes: (1 << 20) + 1, chunks: vec![chunk(1), chunk(2)] }
}

fn checked_boot_manifest(bytes: &[u8]) {
    let size_bytes = boot_manifest().size_bytes;
    let file = BootFile {
        sha256: Hash::ZERO,
        size_bytes,
        authenticode: Hash::ZERO,
        manifest: Hash::of_bytes(bytes),
    };
    match bounded("boot manifest", bytes.len(), || BootManifest::check(bytes, &file)) {
        Ok(manifest) => {
            let sum: usize = (0..manifest.chunks.len()).map(|n| manifest.chunk_len(n)).sum();
            assert_eq!(sum as u64, size_bytes, "pieces of another file");
        }
        Err(error) => bounded_message("boot manifest", &error.to_string()),
    }
}

fn signed_command(bytes: &[u8]) {
    let Some(command) = canonical::<SignedCommand>("command", limits::COMMAND_BYTES, bytes) else { return };
    if command.verify().is_ok() {
        let known = commands().into_iter().any(|(_, seed)| seed == bytes);
        assert!(known, "an altered command has a good signature");
    }
    let ledger = &scene().scenario.ledger;
    let admitted = croft_ledger::check_admission(ledger, &ledger.chain(), 20, &command);
    if let Err(rejection) = admitted.expect("memory can be read") {
        bounded_message("command", &rejection.to_string());
    }
}

fn record(bytes: &[u8]) {
    let Some(record) = canonical::<Record>("record", limits::RECORD_BYTES, bytes) else { return };
    assert_eq!(record.hash(), Hash::of_bytes(bytes), "a record's hash is that of its bytes");
    serde_json::to_string(&record.body).expect("every record can be shown");
    if let Body::Contract(body) = &record.body {
        money_and_times(body);
    }
}

fn money_and_times(body: &ContractBody) {
    let terms = &body.signed.terms;
    let _ = (terms.id(), terms.price(), terms.deposit(), body.expires_ms(), body.data_kept_until_ms());
    let escrow = Escrow { deposit: terms.deposit().unwrap_or_default(), ..Escrow::default() };
    let _ = (body.funds_awaited_until_ms(), body.final_report_until_ms(), body.is_out_of_funds(&escrow));
    let _ = (body.missing_to_resume(&escrow, 0), KeptContract::new(body.clone(), &escrow, 1, u64::MAX));
}

fn signed_header(bytes: &[u8]) {
    let Some(signed) = canonical::<SignedHeader>("header", limits::RESPONSE_BYTES, bytes) else { return };
    match croft_light::verify_certificate(&signed) {
        Ok(()) => assert!(is_known(&signed), "a header that nobody certified has a good certificate"),
        Err(error) => bounded_message("header", &error.to_string()),
    }
}

fn validator_change(bytes: &[u8]) {
    let Some(change) = canonical::<SignedValidatorChange>("validator change", limits::COMMAND_BYTES, bytes)
    else {
        return;
    };
    let scene = scene();
    match change.check(&scene.scenario.ledger.chain(), scene.change.change.prev, &scene.before) {
        Ok(()) => assert_eq!(change, scene.change, "validators were changed without their signatures"),
        Err(error) => bounded_message("validator change", &error.to_string()),
    }
}

fn terms(bytes: &[u8]) {
    let Some(signed) = canonical::<SignedTerms>("terms", limits::COMMAND_BYTES, bytes) else { return };
    let scenario = &scene().scenario;
    if signed.verify(&scenario.ledger.chain()).is_ok() {
        assert_eq!(signed, signed_terms(), "altered terms have good signatures");
    }
}

fn kept_contract(bytes: &[u8]) {
    let Some(kept) = canonical::<KeptContract>("kept contract", limits::RECORD_BYTES, bytes) else { return };
    let body = kept.body;
    money_and_times(&body);
    if body.signed.verify(&scene().scenario.ledger.chain()).is_ok() {
        assert_eq!(body.signed, contract_body().signed, "altered terms have good signatures");
    }
}

fn request(bytes: &[u8]) {
    let Some(request) = canonical::<Request>("request", limits::REQUEST_BYTES, bytes) else { return };
    if let Request::Query { query, after, .. } = request {
        assert!(after.is_none_or(|cursor| cursor.as_bytes().len() <= limits::CURSOR_BYTES));
        if let Err(error) = query.check() {
            bounded_message("query", &error.to_string());
        }
    }
}

fn response(bytes: &[u8]) {
    match canonical::<Response>("response", limits::RESPONSE_BYTES, bytes) {
        Some(Response::Rejected(rejection)) => {
            let text = rejection.to_string();
            assert!(text.len() <= 32 * bytes.len() + 1024, "a rejection is shown with {} bytes", text.len());
            crate::check::json_again("rejection", &rejection);
        }
        Some(Response::Failed(failure)) => drop(failure.to_string()),
        Some(Response::Status(status)) => {
            drop(serde_json::to_string(&status).expect("a status can be shown"));
        }
        _ => {}
    }
}

fn cursor(bytes: &[u8]) {
    if let Some(cursor) = canonical::<Cursor>("cursor", limits::REQUEST_BYTES, bytes) {
        assert!(cursor.as_bytes().len() <= limits::CURSOR_BYTES);
    }
}

fn state_value(bytes: &[u8]) {
    let limit = limits::RECORD_BYTES;
    let _ = canonical::<croft_protocol::state::Account>("account", limit, bytes);
    drop(canonical::<NodeContracts>("list of contracts", limit, bytes));
    drop(canonical::<RecentHeaders>("recent headers", limit, bytes));
    drop(canonical::<NodeTrust>("trust in a node", limit, bytes));
    drop(canonical::<WeighedQuote>("last quote of a node", limit, bytes));
    let _ = canonical::<FaucetClaims>("claims from a faucet", limit, bytes);
    if let Some(rule) = canonical::<Faucet>("faucet", limit, bytes)
        && let Err(error) = rule.check()
    {
        bounded_message("faucet", &error.to_string());
    }
    if let Some(policy) = canonical::<TrustPolicy>("trust policy", limit, bytes)
        && let Err(error) = policy.check()
    {
        bounded_message("trust policy", &error.to_string());
    }
    if let Some(books) = canonical::<NodeCapacity>("capacity", limit, bytes) {
        assert!(books.total.covers(&books.free()), "more is free than there is");
    }
    if let Some(escrow) = canonical::<Escrow>("escrow", limit, bytes) {
        assert!(escrow.held() <= escrow.deposit, "more is held than was paid in");
    }
}

fn node_peer(bytes: &[u8]) {
    drop(canonical::<NodeRequest>("node request", limits::PEER_MESSAGE_BYTES, bytes));
    drop(canonical::<NodeResponse>("node response", limits::PEER_MESSAGE_BYTES, bytes));
}

fn farm_peer(bytes: &[u8]) {
    let chain = scene().scenario.ledger.chain();
    if let Some(FarmRequest::Negotiate { message }) =
        canonical::<FarmRequest>("message to a farmer", limits::PEER_MESSAGE_BYTES, bytes)
    {
        match Transcript::open(&chain, *message) {
            Ok(transcript) => {
                assert_eq!(*transcript.last(), demand(), "an altered demand has a good signature");
            }
            Err(refusal) => bounded_message("demand", &refusal.to_string()),
        }
    }
    if let Some(FarmResponse::Said { message }) =
        canonical::<FarmResponse>("answer of a farmer", limits::PEER_MESSAGE_BYTES, bytes)
    {
        // Whatever it is, it is not the farmer's answer to that demand, unless the farmer signed it.
        let mut transcript = Transcript::open(&chain, demand()).expect("our own demand is good");
        let before = transcript.clone();
        if let Err(refusal) = transcript.append(&chain, *message) {
            bounded_message("answer", &refusal.to_string());
            assert_eq!(transcript, before, "a refused message changed the transcript");
        }
    }
}

fn opened_workload(bytes: &[u8]) {
    let Some(workload) = canonical::<Workload>("workload", limits::SEALED_WORKLOAD_BYTES, bytes) else {
        return;
    };
    match workload.check() {
        Ok(()) => {
            assert!(workload.resources().is_some(), "a checked workload needs a sum that overflows");
            let ports = workload.published_ports();
            assert!(ports.len() <= limits::PORTS_PER_CONTRACT && ports.is_sorted());
            let volumes = workload.vms.iter().flat_map(|vm| &vm.mounts);
            for mount in volumes {
                assert!(workload.volumes.iter().any(|volume| volume.name == mount.volume));
                assert!(!mount.path.split('/').any(|part| part == ".."), "{}", mount.path);
            }
        }
        Err(error) => bounded_message("workload", &error.to_string()),
    }
}

/// The sealing draws randomness, so what is sealed differs from run to run; what must hold does not.
fn sealed(bytes: &[u8]) {
    let key = SealingKey::from_seed(&[1; 32]);
    let (chain, node) = (scene().scenario.ledger.chain(), scene().scenario.node_id());
    let made_up = bounded("sealed workload", bytes.len(), || key.open(&chain, &node, bytes).is_ok());
    assert!(!made_up, "bytes that nobody sealed can be opened");
    let Ok(mut sealed) = seal(&key.public(), &chain, &node, bytes) else { return };
    assert_eq!(key.open(&chain, &node, &sealed).as_deref(), Ok(bytes));
    assert!(key.open(&ChainId(Hash::ZERO), &node, &sealed).is_err(), "it opens on another grid");
    let sum: usize = bytes.iter().map(|byte| usize::from(*byte)).sum();
    let at = (sum * 31 + bytes.len()) % sealed.len();
    sealed[at] ^= 1 << (sum % 8);
    assert!(key.open(&chain, &node, &sealed).is_err(), "it opens although byte {at} was altered");
}

fn letter(text: &str) -> Letter {
    let (from, to) = (&scene().scenario.user, &scene().scenario.farmer);
    let text = text.to_owned();
    Letter { id: MessageId([9; 16]), from: from.public(), to: to.public(), time_ms: 5, text }
}

/// Nothing is believed that its sender did not sign for us, whatever stands in the box; and what he did write comes
/// out as it went in.
fn sealed_message(bytes: &[u8]) {
    let (user, farmer) = (&scene().scenario.user, &scene().scenario.farmer);
    let (chain, key) = (scene().scenario.ledger.chain(), message_key(farmer));
    let open = |sealed: &[u8]| Letter::open(sealed, &chain, &farmer.public(), &key).map(|(letter, _)| letter);
    let made_up = bounded("sealed message", bytes.len(), || open(bytes).is_ok());
    assert!(!made_up, "bytes that nobody sealed can be opened");
    if let Ok(sealed) = croft_protocol::message::seal_any(&key.public(), &chain, &farmer.public(), bytes) {
        match bounded("message", sealed.len(), || open(&sealed)) {
            Ok(message) => panic!("{message:?} has a good signature"),
            Err(error) => bounded_message("message", &error.to_string()),
        }
    }
    let message = letter(&String::from_utf8_lossy(bytes));
    let Ok(sealed) = message.seal(user, &chain, &key.public()) else { return };
    assert_eq!(open(&sealed), Ok(message));
}

fn bot_peer(bytes: &[u8]) {
    drop(canonical::<BotRequest>("delivery", limits::PEER_MESSAGE_BYTES, bytes));
    drop(canonical::<BotResponse>("answer to a delivery", limits::PEER_MESSAGE_BYTES, bytes));
}

fn image_manifest(bytes: &[u8]) {
    let wanted = Hash::of_bytes(bytes);
    let checked = bounded("image manifest", bytes.len(), || ImageManifest::check(bytes, wanted));
    match checked {
        Ok(manifest) => {
            assert_eq!(manifest.hash(), wanted, "a manifest has another hash than its bytes");
            let sum: u64 = (0..manifest.chunks.len()).map(|index| manifest.chunk_len(index) as u64).sum();
            assert_eq!(sum, manifest.size_bytes, "the chunks are not the image");
        }
        Err(error) => bounded_message("image manifest", &error.to_string()),
    }
    assert!(ImageManifest::check(bytes, Hash::ZERO).is_err(), "a manifest stands for another");
    drop(canonical::<ImageManifest>("image manifest", limits::BLOB_BYTES, bytes));
}

fn commands() -> Vec<Seed> {
    let scene = scene();
    let numbered = scene.commands.iter().enumerate();
    let mut seeds: Vec<_> = numbered.map(|(n, command)| encoded(&format!("scene-{n}"), command)).collect();
    let prices = PriceList { cpu: 1, memory_gib: 2, ssd_gib: 3, hdd_gib: 4 };
    let (farm, contract) = (scene.scenario.farm, scene.contract);
    let (country, region) = ("be".to_owned(), Some(name("flanders")));
    let node = croft_ledger::memory::key(9).public();
    for (called, command) in [
        ("create-bot", Command::CreateBot(croft_protocol::record::BotBody { name: name("bob") })),
        ("create-farm", Command::CreateFarm { name: name("blue"), country, region, prices }),
        ("set-prices", Command::SetPrices { farm, prices }),
        ("close", Command::Close { contract }),
        ("update-bot", Command::UpdateBot(profile())),
        ("claim-faucet", Command::ClaimFaucet),
        ("drain-node", Command::DrainNode { node, until_ms: Some(7) }),
        ("reopen-node", Command::ReopenNode { node }),
        ("rotate-key", Command::RotateKey(Box::new(link()))),
    ] {
        seeds.push(encoded(called, &signed(command)));
    }
    seeds
}

/// From the user's key to another one.
fn link() -> Link {
    let scenario = &scene().scenario;
    Link::sign(&scenario.user, &croft_ledger::memory::key(9), &scenario.ledger.chain())
}

fn profile() -> Profile {
    Profile {
        roles: [Role::Farmer, Role::Approver].into(),
        capabilities: [name("gpu"), name("web")].into(),
        encryption_key: Some([3; 32]),
        description: "sells".to_owned(),
        ..Profile::named(name("bob"))
    }
}

fn records() -> Vec<Seed> {
    let numbered = scene().scenario.ledger.records().iter().enumerate();
    let mut seeds: Vec<_> = numbered.map(|(n, record)| encoded(&format!("record-{n:02}"), record)).collect();
    let bot = scene().scenario.user.public();
    let record = Record {
        id: RecordId::profile(&bot),
        version: 1,
        prev: None,
        body: Body::Profile(profile()),
        author: bot,
        height: 1,
        time_ms: 2,
    };
    seeds.push(encoded("profile", &record));
    let keys = KeysBody { changes: vec![KeyChange { link: link(), height: 9 }] };
    let record = Record { id: RecordId::keys(&bot), body: Body::Keys(keys), ..record };
    seeds.push(encoded("keys", &record));
    seeds
}

fn headers() -> Vec<Seed> {
    let headers = scene().scenario.ledger.headers();
    [0, 1, headers.len() - 2, headers.len() - 1]
        .map(|n| encoded(&format!("height-{n}"), &headers[n]))
        .to_vec()
}

fn unsigned_change() -> SignedValidatorChange {
    SignedValidatorChange { signatures: Vec::new(), ..scene().change.clone() }
}

fn kept_body() -> KeptContract {
    KeptContract::new(contract_body(), &Escrow::default(), 0, croft_ledger::memory::START_MS)
}

fn contract_body() -> ContractBody {
    scene().scenario.contract(&scene().contract)
}

fn signed_terms() -> SignedTerms {
    contract_body().signed
}

fn requests() -> Vec<Seed> {
    let scene = scene();
    let (node, user) = (scene.scenario.node_id(), scene.scenario.user.public());
    let nodes = NodeQuery {
        farm: Some(scene.scenario.farm),
        country: Some("be".to_owned()),
        region: Some(name("flanders")),
        max_per_hour: Some(croft_protocol::Grains(5)),
        trust: Some(croft_protocol::record::TrustClass::Sealed),
        ..NodeQuery::default()
    };
    let farms = FarmQuery { owner: Some(user), ..FarmQuery::default() };
    let contracts = ContractQuery { node: Some(node), ..ContractQuery::default() };
    let query = |query| Request::Query { query, after: Cursor::new(vec![1; 40]), count: 9, prove: true };
    let concerning = vec![
        Concern::Node(node),
        Concern::Bot(user),
        Concern::Presence(user),
        Concern::Record(RecordId::node(&node)),
    ];
    let all = [
        Request::Genesis,
        Request::Tip,
        Request::Header { height: 3 },
        Request::Submit(Box::new(scene.commands[1].clone())),
        Request::Get { keys: vec![StateKey::Supply, StateKey::NodeContracts(node)] },
        Request::Range { first: 1, count: 2 },
        Request::History { id: RecordId::node(&node), first_version: 1, count: 2 },
        query(Query::Nodes(nodes)),
        query(Query::Farms(farms)),
        query(Query::Contracts(contracts)),
        query(Query::Transfers { of: user }),
        Request::Follow { concerning },
        Request::HasBlobs { hashes: vec![Hash::ZERO] },
        Request::GetBlob { hash: Hash::ZERO },
        Request::PutBlob { bytes: vec![1, 2, 3] },
        Request::Listen,
        Request::Relay { to: node },
        Request::Presence { keys: vec![node] },
        Request::Status,
        Request::Replicate { bulk: true },
        Request::Handover { validators: Hash::ZERO },
        Request::SnapshotOpen,
        Request::SnapshotValues { id: 1, after: Some(StateKey::Supply) },
        Request::SnapshotRecords { first: 1, size: 2 },
        Request::Vouch(Box::new(SoftTpm::new(7_u8).introduce())),
        Request::LeaveMail { to: user, sealed: vec![1; 300] },
        Request::FetchMail { after: 3 },
        Request::DropMail { mail: vec![Hash::ZERO] },
        Request::Refused { farm: croft_protocol::FarmId(Hash::ZERO) },
        Request::ListenFor { service: Service::Messages },
        Request::RelayTo { to: user, service: Service::Calls },
        query(Query::Bots(BotQuery {
            text: Some("fast".to_owned()),
            role: Some(Role::Farmer),
            capability: Some(name("gpu")),
        })),
    ];
    all.iter().enumerate().map(|(n, request)| encoded(&format!("request-{n:02}"), request)).collect()
}

fn responses() -> Vec<Seed> {
    let scene = scene();
    let ledger = &scene.scenario.ledger;
    let (tip, node) = (Box::new(ledger.tip().clone()), scene.scenario.node_id());
    let proved: Vec<ProvedRecord> = ledger.prove_record(3).into_iter().collect();
    let thing = ProvedThing {
        id: RecordId::node(&node),
        record: ledger.prove(&StateKey::Record(RecordId::node(&node))),
        capacity: Some(ledger.prove(&StateKey::Capacity(node))),
    };
    let page = ProvedPage { tip: (*tip).clone(), things: vec![thing], next: Cursor::new(vec![3; 8]) };
    let records = ledger.records()[..2].to_vec();
    let values = vec![ledger.prove(&StateKey::Supply), ledger.prove(&StateKey::BotName(name("nobody")))];
    let stale = Rejection::Sequence { author: node, got: 1, expected: 2 };
    let voucher = Voucher {
        node,
        key: Hash([1; 32]),
        endorsement: Hash([2; 32]),
        certificate: Some(Hash([3; 32])),
        height: 4,
    };
    let cursor = Failure::Cursor { reason: "it can't be read".to_owned() };
    let all = [
        Response::Genesis(Box::new(ledger.genesis().clone())),
        Response::Header(tip.clone()),
        Response::Final { height: 3, records: vec![Hash::ZERO] },
        Response::Rejected(stale),
        Response::Values { tip: tip.clone(), values: values.clone() },
        Response::Records { tip: tip.clone(), records: proved },
        Response::Found(Page { height: 3, records: records.clone(), next: None }),
        Response::FoundProved(Box::new(page)),
        Response::Blobs(vec![true, false]),
        Response::Blob(vec![1, 2, 3]),
        Response::BlobStored { hash: Hash::ZERO },
        Response::Listening,
        Response::Relayed,
        Response::Presence(vec![true]),
        Response::Replicating,
        Response::SnapshotOpened { tip, id: 1, values: 2 },
        Response::SnapshotValues { values: vec![(StateKey::Supply, values[0].clone())], more: true },
        Response::SnapshotRecords { records, proof: vec![7; 64] },
        Response::Failed(cursor),
        Response::Credential(Box::new(Credential { blob: vec![1; 70], secret: vec![2; 68] })),
        Response::Vouched(Box::new(SignedVoucher::sign(
            voucher,
            &ledger.chain(),
            &scene.scenario.validators[0],
        ))),
        Response::MailLeft { expires_ms: 9 },
        Response::Mail { mail: vec![Mail { number: 3, sealed: vec![1; 300] }], more: true },
        Response::MailDropped { count: 1 },
        Response::Refused(vec![RefusedNode {
            node: scene.scenario.node_id(),
            name: croft_ledger::memory::name("n1"),
            reason: "no".to_owned(),
            time_ms: 5,
            count: 2,
        }]),
    ];
    all.iter().enumerate().map(|(n, response)| encoded(&format!("response-{n:02}"), response)).collect()
}

fn events() -> Vec<Seed> {
    let ledger = &scene().scenario.ledger;
    let block =
        Event::Block { header: Box::new(ledger.tip().clone()), records: ledger.records()[..1].to_vec() };
    let failed = Event::Failed(Failure::Busy { what: "much".to_owned() });
    let presence = Event::Presence { key: scene().scenario.node_id(), connected: true };
    vec![encoded("block", &block), encoded("presence", &presence), encoded("failed", &failed)]
}

fn state_keys() -> Vec<Seed> {
    let keys = scene().scenario.ledger.state().keys().enumerate();
    keys.map(|(n, key)| encoded(&format!("key-{n:02}"), key)).collect()
}

fn state_values() -> Vec<Seed> {
    let state = scene().scenario.ledger.state().iter().enumerate();
    let small = state.filter(|(_, (key, _))| !matches!(key, StateKey::Record(_)));
    small.map(|(n, (_, value))| (format!("value-{n:02}"), value.clone())).collect()
}

fn node_messages() -> Vec<Seed> {
    let contract = scene().contract;
    let logs = NodeRequest::Logs { contract, vm: name("web"), tail_lines: 5, follow: true };
    let line = LogLine { time_ms: 1, stderr: true, text: "hello".to_owned() };
    let vm = VmExplanation {
        name: name("web"),
        phase: "running".to_owned(),
        since_ms: 1,
        restarts: 2,
        address: "10.0.0.2".to_owned(),
        detail: String::new(),
    };
    let explained = NodeResponse::Explained(Explanation {
        state: WorkloadState::Running,
        steps: vec![Step { time_ms: 1, what: "fetched".to_owned(), failed: false }],
        vms: vec![vm],
    });
    vec![
        encoded("logs", &logs),
        encoded("explain", &NodeRequest::Explain { contract }),
        encoded("lines", &NodeResponse::Logs(vec![line])),
        encoded("explained", &explained),
        encoded("refused", &NodeResponse::Refused { reason: "not yours".to_owned() }),
    ]
}

fn farm_messages() -> Vec<Seed> {
    let demand = demand();
    let quote = Quote { rate: Rate(7), hold_fee: Grains(420), hold_ms: 60_000, capacity_version: 1 };
    let message = Message {
        negotiation: demand.message.negotiation,
        step: 1,
        prev: demand.hash(),
        author: scene().scenario.farmer.public(),
        expires_ms: demand.message.expires_ms,
        said: Said::Offer(quote),
        note: String::new(),
    };
    let scenario = &scene().scenario;
    let offer = SignedMessage::sign(message, &scenario.ledger.chain(), &scenario.farmer);
    vec![
        encoded("demand", &FarmRequest::Negotiate { message: Box::new(demand) }),
        encoded("offer", &FarmResponse::Said { message: Box::new(offer) }),
        encoded("heard", &FarmResponse::Heard),
        encoded("refused", &FarmResponse::Refused { reason: "no".to_owned() }),
    ]
}

/// The demand of the scene's user for the scene's node.
fn demand() -> SignedMessage {
    let scenario = &scene().scenario;
    let chain = scenario.ledger.chain();
    let demand = Demand {
        buyer: scenario.user.public(),
        farmer: scenario.farmer.public(),
        farm: scenario.farm,
        node: scenario.node_id(),
        resources: signed_terms().terms.resources,
        ports: Vec::new(),
        duration_s: 3600,
        grace_s: 60,
        prepaid_s: None,
        nonce: [1; 16],
    };
    let message = Message {
        negotiation: demand.id(&chain),
        step: 0,
        prev: Hash::ZERO,
        author: scenario.user.public(),
        expires_ms: croft_ledger::memory::START_MS + 60_000,
        said: Said::Demand(demand),
        note: String::new(),
    };
    SignedMessage::sign(message, &chain, &scenario.user)
}
