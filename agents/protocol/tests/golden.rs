//! Golden vectors: one value of each signed or hashed type, its exact bytes, and what is hashed or signed of it.
//!
//! A vector that changes means that every id, hash and signature of every grid changes with it: old ledgers can
//! no longer be verified. Then the domain's version must change too, and nodes must know both.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::addition::{
    Addition, Bond, BondMode, Expectation, Grid, Link, LinkId, LinkUse, Prefix, Replica, Validated,
};
use croft_protocol::attestation::{Attestation, MeasuredEvent, SignedVoucher, Voucher};
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::contract::{Approver, PublishedPort, Quorum, Transport};
use croft_protocol::faucet::FaucetClaims;
use croft_protocol::header::{Allocation, Validator};
use croft_protocol::identity::{self, KeysBody};
use croft_protocol::image::{Chunk, ImageConfig, ImageManifest, Verity};
use croft_protocol::keys::Domain;
use croft_protocol::market::{NegotiationId, RESERVATION, Reservation, SignedReservation};
use croft_protocol::record::{
    ApprovalBody, BotBody, ContractReport, DrainBody, Draining, FarmBody, FundingBody, HardwareSummary,
    NodeBody, ReportBody, TransferBody, TrustClass, WorkloadState,
};
use croft_protocol::release::{
    BootFile, BootManifest, ChannelBody, FarmPolicy, Halt, KeyChange, Measurement, Outcome, OutcomeBody,
    Release, ReleaseBody, ReleaseKeys, ReleaseState, ReleaseVersion, SignedKeyChange, SignedRelease,
    StopRule, Trials, Tried, Window,
};
use croft_protocol::reservation::{
    Announcement, NodeReservations, OpenReservations, ReservationBody, ReservationQueue, ReservationSlot,
    ReservationState,
};
use croft_protocol::state::{Account, NodeContracts};
use croft_protocol::trust::{Endorsement, NodeTrust, RecentHeader, RecentHeaders, TrustPolicy, WeighedQuote};
use croft_protocol::{
    Body, Capacity, Certificate, ChainId, Command, CommandBody, ContractBody, ContractId, ContractState,
    EndReason, Escrow, FarmId, Faucet, Genesis, Grains, Hash, Header, Name, NodeCapacity, NodeTrouble,
    PriceList, Profile, PublicKey, Rate, Record, RecordId, Role, SecretKey, SignedCommand, SignedHeader,
    SignedTerms, SignedValidatorChange, StateKey, Terms, TroubleKind, ValidatorChange, ValidatorSet,
};

const GOLDEN: &str = include_str!("golden.txt");
const CHAIN: ChainId = ChainId(Hash([0xc0; 32]));

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn public(n: u8) -> PublicKey {
    key(n).public()
}

fn capacity() -> Capacity {
    Capacity {
        cpu_millis: 1500,
        memory_bytes: 2 << 30,
        ssd_bytes: 3 << 30,
        hdd_bytes: 4 << 30,
        public_addresses: 5,
    }
}

fn terms() -> Terms {
    Terms {
        name: name("web"),
        user: public(1),
        farmer: public(2),
        farm: FarmId::new(&public(2), &name("green")),
        node: public(3),
        resources: capacity(),
        ports: vec![
            PublishedPort { transport: Transport::Tcp, port: 80 },
            PublishedPort { transport: Transport::Udp, port: 53 },
        ],
        rate: Rate(7),
        duration_s: 3600,
        grace_s: 60,
        prepaid_s: Some(3600),
        capacity_version: 9,
        quorum: Quorum {
            threshold: 1,
            approvers: vec![Approver { bot: public(4), weight: 1, required: true }],
        },
        sealed: b"sealed".to_vec(),
        expires_ms: 1_700_000_000_000,
        nonce: *b"0123456789abcdef",
    }
}

fn signed_terms() -> SignedTerms {
    let terms = terms();
    let (user, farmer) = (
        key(1).sign_as_bot(Domain::TERMS, &CHAIN, &terms),
        key(2).sign_as_bot(Domain::TERMS, &CHAIN, &terms),
    );
    SignedTerms { terms, user, farmer }
}

fn announcement() -> Announcement {
    let terms = terms();
    let held = Reservation::of(NegotiationId(Hash([12; 32])), &terms, Grains(5));
    let reservation = SignedReservation {
        user: key(1).sign_as_bot(RESERVATION, &CHAIN, &held),
        farmer: key(2).sign_as_bot(RESERVATION, &CHAIN, &held),
        reservation: held,
    };
    let approval = key(2).sign_as_bot(Domain::TERMS, &CHAIN, &terms);
    Announcement { reservation, terms, approval }
}

fn reservation() -> ReservationBody {
    let Announcement { reservation, terms, approval } = announcement();
    let (ports, state) = (terms.ports, ReservationState::Claimed);
    ReservationBody { signed: reservation, ports, approval, announced_ms: 6, state }
}

fn join() -> SignedJoin {
    let farm = FarmId::new(&public(2), &name("green"));
    let join = Join { farm, expires_ms: 1_700_000_000_000, nonce: [1; 16] };
    SignedJoin { signature: key(2).sign_as_bot(Domain::JOIN, &CHAIN, &join), join }
}

fn node() -> NodeBody {
    NodeBody {
        farm: FarmId::new(&public(2), &name("green")),
        name: name("n1"),
        sealing_key: [6; 32],
        capacity: capacity(),
        hardware: HardwareSummary {
            cpu_model: "cpu".to_owned(),
            threads: 8,
            vendor: "vendor".to_owned(),
            product: "product".to_owned(),
            inventory: Hash([7; 32]),
        },
        trust: TrustClass::Sealed,
        addresses: vec!["192.0.2.1".to_owned()],
        release: "0.1.0".to_owned(),
        session: 11,
        troubles: vec![NodeTrouble::new(TroubleKind::Disk, "sda", "reason", "remedy")],
    }
}

fn report() -> ReportBody {
    ReportBody {
        node: public(3),
        session: 11,
        from_ms: 1000,
        until_ms: 2000,
        contracts: vec![ContractReport {
            contract: ContractId(Hash([8; 32])),
            state: WorkloadState::Failing,
            ran_ms: 900,
            detail: "detail".to_owned(),
        }],
    }
}

fn commands() -> [(&'static str, Command); 27] {
    let (farm, contract) = (FarmId::new(&public(2), &name("green")), ContractId(Hash([8; 32])));
    let prices = PriceList { cpu: 1, memory_gib: 2, ssd_gib: 3, hdd_gib: 4 };
    let (country, region) = ("be".to_owned(), Some(name("flanders")));
    [
        ("command/create-bot", Command::CreateBot(BotBody { name: name("alice") })),
        ("command/create-farm", Command::CreateFarm { name: name("green"), country, region, prices }),
        ("command/set-prices", Command::SetPrices { farm, prices }),
        (
            "command/register-node",
            Command::RegisterNode { node: node(), join: Some(join()), attestation: None },
        ),
        (
            "command/register-attested-node",
            Command::RegisterNode { node: node(), join: None, attestation: Some(Box::new(attestation())) },
        ),
        ("command/agree", Command::Agree(Box::new(signed_terms()))),
        ("command/approve", Command::Approve { contract, approve: true }),
        ("command/close", Command::Close { contract }),
        ("command/settle", Command::Settle { contract }),
        ("command/report", Command::Report(report())),
        (
            "command/transfer",
            Command::Transfer { to: public(1), amount: Grains(5), memo: "thanks".to_owned() },
        ),
        ("command/set-validators", Command::SetValidators(Box::new(validator_change()))),
        ("command/set-release-keys", Command::SetReleaseKeys(Box::new(key_change()))),
        ("command/publish-release", Command::PublishRelease(Box::new(signed_release()))),
        (
            "command/halt-release",
            Command::HaltRelease { channel: name("stable"), version: version(3), reason: "bad".to_owned() },
        ),
        ("command/set-farm-policy", Command::SetFarmPolicy { farm, policy: policy() }),
        (
            "command/release-outcome",
            Command::ReleaseOutcome {
                channel: name("stable"),
                version: version(3),
                outcome: Outcome::Returned { reason: "late".to_owned() },
            },
        ),
        (
            "command/publish-recipe",
            Command::PublishRecipe {
                name: name("shop"),
                title: "A shop".to_owned(),
                text: "x = 1".to_owned(),
            },
        ),
        ("command/withdraw-recipe", Command::WithdrawRecipe { name: name("shop"), reason: "old".to_owned() }),
        ("command/update-bot", Command::UpdateBot(profile())),
        ("command/claim-faucet", Command::ClaimFaucet),
        ("command/fund", Command::Fund { contract, amount: Grains(5) }),
        ("command/announce-reservation", Command::AnnounceReservation(Box::new(announcement()))),
        ("command/claim-reservation", Command::ClaimReservation { contract }),
        ("command/drain-node", Command::DrainNode { node: public(3), until_ms: Some(7) }),
        ("command/reopen-node", Command::ReopenNode { node: public(3) }),
        ("command/rotate-key", Command::RotateKey(Box::new(identity::Link::sign(&key(1), &key(7), &CHAIN)))),
    ]
}

fn profile() -> Profile {
    Profile {
        name: name("alice"),
        roles: [Role::Approver, Role::User].into(),
        capabilities: [name("audits"), name("gpu")].into(),
        encryption_key: Some([6; 32]),
        description: "I buy".to_owned(),
    }
}

fn faucet() -> Faucet {
    Faucet { fund: Grains(1000), amount: Grains(10), every_s: 60, claims_per_bot: 3 }
}

fn version(patch: u32) -> ReleaseVersion {
    ReleaseVersion { major: 1, minor: 2, patch }
}

fn release_keys() -> ReleaseKeys {
    ReleaseKeys::new(1, vec![public(31), public(32)])
}

fn key_change() -> SignedKeyChange {
    let change = KeyChange { prev: Some(Hash([5; 32])), keys: release_keys() };
    SignedKeyChange { signatures: vec![change.sign(&key(31), &CHAIN)], change }
}

fn boot_manifest() -> BootManifest {
    let chunks = vec![Chunk { hash: Hash([3; 32]), compressed_bytes: 100 }];
    BootManifest { version: 1, size_bytes: 4096, chunks }
}

fn signed_release() -> SignedRelease {
    let release = Release {
        channel: name("stable"),
        version: version(3),
        previous: Some(version(2)),
        minimum: version(1),
        boot_file: BootFile {
            sha256: Hash([1; 32]),
            size_bytes: 4096,
            authenticode: Hash([2; 32]),
            manifest: boot_manifest().hash(),
        },
        measurements: vec![Measurement { pcr: 9, digest: Hash([4; 32]) }],
        stop: StopRule { returns: 3, per_mille: 100 },
        notes: "notes".to_owned(),
    };
    SignedRelease { signatures: vec![release.sign(&key(31), &CHAIN)], release }
}

fn policy() -> FarmPolicy {
    let window = Some(Window { start_minute: 60, duration_minutes: 120 });
    FarmPolicy { channel: name("stable"), share_per_mille: 250, window, hold: true }
}

fn signed_command() -> SignedCommand {
    let body = CommandBody {
        chain: CHAIN,
        author: public(1),
        sequence: 3,
        expires_height: 1000,
        command: Command::Close { contract: ContractId(Hash([8; 32])) },
    };
    SignedCommand::sign(body, &key(1))
}

fn validators() -> ValidatorSet {
    let mut validators = [Validator { key: public(101), power: 1 }, Validator { key: public(102), power: 2 }];
    validators.sort_by_key(|validator| validator.key);
    ValidatorSet { validators: validators.to_vec() }
}

fn validator_change() -> SignedValidatorChange {
    let mut next = validators();
    next.validators.push(Validator { key: public(103), power: 3 });
    next.validators.sort_by_key(|validator| validator.key);
    let change = ValidatorChange { prev: Hash([5; 32]), validators: next };
    let mut signed = SignedValidatorChange { change, signatures: Vec::new() };
    for n in [101, 102] {
        signed.add(signed.change.sign(&key(n), &CHAIN));
    }
    signed
}

fn genesis() -> Genesis {
    Genesis {
        name: name("grid"),
        time_ms: 1_700_000_000_000,
        validators: validators(),
        allocations: vec![Allocation { name: name("alice"), bot: public(1), grains: Grains(1_000_000) }],
        trust: TrustPolicy {
            endorsement: Endorsement::Activated,
            boot_files: vec![Hash([1; 32])],
            loaders: vec![Hash([2; 32])],
            options: vec![Hash([3; 32])],
            stale_after_s: 7200,
        },
        faucet: Some(faucet()),
    }
}

fn header() -> SignedHeader {
    let header = Header {
        chain: CHAIN,
        height: 5,
        time_ms: 1_700_000_000_000,
        prev: Hash([1; 32]),
        log_root: Hash([2; 32]),
        log_size: 12,
        state_root: Hash([3; 32]),
        validators: validators().hash(),
        next_validators: Hash([4; 32]),
    };
    let hash = header.hash();
    let signatures =
        [101, 102].map(|n| (public(n), Certificate::sign(&key(n), &CHAIN, 5, 1, &hash))).to_vec();
    let certificate = Certificate { height: 5, round: 1, header: hash, signatures };
    SignedHeader { header, certificate, validators: validators() }
}

fn attestation() -> Attestation {
    let voucher = Voucher {
        node: public(3),
        key: Hash([1; 32]),
        endorsement: Hash([2; 32]),
        certificate: Some(Hash([3; 32])),
        height: 4,
    };
    Attestation {
        height: 5,
        key: b"key".to_vec(),
        quote: b"quote".to_vec(),
        signature: [6; 64],
        locality: 3,
        events: vec![MeasuredEvent { pcr: 4, kind: 0x8000_0003, digest: Hash([7; 32]) }],
        vouchers: vec![SignedVoucher::sign(voucher, &CHAIN, &key(101))],
    }
}

fn node_trust() -> NodeTrust {
    NodeTrust {
        class: TrustClass::Sealed,
        session: 11,
        key: Hash([1; 32]),
        height: 5,
        quoted_ms: 6,
        release: Some(Hash([2; 32])),
        secure_boot: Some(true),
        firmware: Hash([3; 32]),
        endorsement: Endorsement::Activated,
        endorsement_key: Some(Hash([4; 32])),
        reasons: vec!["reason".to_owned()],
    }
}

fn trials() -> Trials {
    Trials { confirmed: 4, returned: 5, counted: 2, largest: Tried { confirmed: 3, returned: 4 } }
}

fn records() -> Vec<(&'static str, Record)> {
    let (release, trials) = (signed_release().release.id(), trials());
    let channel = ChannelBody {
        name: name("stable"),
        latest: version(3),
        offered: Some(version(2)),
        minimum: version(1),
    };
    let told = OutcomeBody {
        node: public(3),
        farm: FarmId::new(&public(2), &name("green")),
        channel: name("stable"),
        version: version(3),
        outcome: Outcome::Confirmed,
    };
    let contract = ContractBody {
        signed: signed_terms(),
        state: ContractState::Ended(EndReason::Expired),
        agreed_ms: 1,
        starts_ms: 2,
        ended_ms: 3,
    };
    let farm = FarmBody {
        owner: public(2),
        name: name("green"),
        country: "be".to_owned(),
        region: None,
        prices: PriceList { cpu: 1, memory_gib: 2, ssd_gib: 3, hdd_gib: 4 },
    };
    let id = contract.signed.terms.id();
    let approval = ApprovalBody { contract: id, approver: public(4), approved: true };
    let transfer =
        TransferBody { from: public(1), to: public(2), amount: Grains(5), memo: "memo".to_owned() };
    let farm_id = FarmId::new(&public(2), &name("green"));
    let funding = FundingBody { from: public(1), contract: id, amount: Grains(5) };
    let keys = KeysBody {
        changes: vec![identity::KeyChange {
            link: identity::Link::sign(&key(1), &key(7), &CHAIN),
            height: 6,
        }],
    };
    let paused =
        ContractBody { state: ContractState::Paused { since_ms: 4 }, ended_ms: 0, ..contract.clone() };
    [
        ("record/bot", RecordId::bot(&public(1)), Body::Bot(BotBody { name: name("alice") })),
        ("record/farm", RecordId::farm(&farm_id), Body::Farm(farm)),
        ("record/node", RecordId::node(&public(3)), Body::Node(node())),
        ("record/contract", RecordId::contract(&id), Body::Contract(Box::new(contract))),
        ("record/approval", RecordId::approval(&id, &public(4)), Body::Approval(approval)),
        ("record/report", RecordId::report(&public(3)), Body::Report(report())),
        ("record/transfer", RecordId::transfer(&public(1), 3), Body::Transfer(transfer)),
        ("record/validators", RecordId::validators(), Body::Validators(validators())),
        (
            "record/release",
            RecordId::release(&release),
            Body::Release(Box::new(ReleaseBody {
                signed: signed_release(),
                state: ReleaseState::Halted(Halt::Returns { trials }),
            })),
        ),
        ("record/release-keys", RecordId::release_keys(), Body::ReleaseKeys(release_keys())),
        ("record/channel", RecordId::channel(&channel.name), Body::Channel(channel)),
        ("record/farm-policy", RecordId::farm_policy(&told.farm), Body::FarmPolicy(policy())),
        ("record/outcome", RecordId::outcome(&release, &public(3)), Body::Outcome(told)),
        ("record/profile", RecordId::profile(&public(1)), Body::Profile(profile())),
        ("record/funding", RecordId::funding(&public(1), 3), Body::Funding(funding)),
        ("record/reservation", RecordId::reservation(&id), Body::Reservation(Box::new(reservation()))),
        (
            "record/drain",
            RecordId::drain(&public(3)),
            Body::Drain(DrainBody {
                node: public(3),
                draining: Some(Draining { since_ms: 6, until_ms: Some(7) }),
            }),
        ),
        ("record/keys", RecordId::keys(&public(1)), Body::Keys(keys)),
        ("record/paused-contract", RecordId::contract(&id), Body::Contract(Box::new(paused))),
    ]
    .map(|(what, id, body)| {
        let prev = Some(Hash([5; 32]));
        (what, Record { id, version: 2, prev, body, author: public(1), height: 6, time_ms: 7 })
    })
    .to_vec()
}

fn manifest() -> ImageManifest {
    ImageManifest {
        version: 1,
        verity: Verity { data_blocks: 2, root: Hash([1; 32]), salt: [2; 32] },
        size_bytes: 3 * 4096,
        chunks: vec![Chunk { hash: Hash([3; 32]), compressed_bytes: 100 }],
        config: ImageConfig {
            entrypoint: vec!["/bin/web".to_owned()],
            cmd: vec!["--help".to_owned()],
            env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            user: "www".to_owned(),
            working_dir: "/srv".to_owned(),
            stop_signal: "SIGQUIT".to_owned(),
            exposed_ports: vec!["80/tcp".to_owned()],
        },
        source: Hash([4; 32]),
    }
}

fn state_keys() -> [(&'static str, StateKey); 27] {
    let contract = ContractId(Hash([8; 32]));
    let port = PublishedPort { transport: Transport::Udp, port: 53 };
    [
        ("state-key/record", StateKey::Record(RecordId::contract(&contract))),
        ("state-key/account", StateKey::Account(public(1))),
        ("state-key/bot-name", StateKey::BotName(name("alice"))),
        ("state-key/farm-name", StateKey::FarmName(name("green"))),
        ("state-key/node-name", StateKey::NodeName(Hash([9; 32]), name("n1"))),
        ("state-key/contract-name", StateKey::ContractName(public(1), name("web"))),
        ("state-key/capacity", StateKey::Capacity(public(3))),
        ("state-key/node-contracts", StateKey::NodeContracts(public(3))),
        ("state-key/port", StateKey::Port(public(3), port)),
        ("state-key/escrow", StateKey::Escrow(contract)),
        ("state-key/supply", StateKey::Supply),
        ("state-key/trust-policy", StateKey::TrustPolicy),
        ("state-key/recent-headers", StateKey::RecentHeaders),
        ("state-key/node-trust", StateKey::NodeTrust(public(3))),
        ("state-key/tpm-key", StateKey::TpmKey(Hash([9; 32]))),
        ("state-key/trials", StateKey::Trials(signed_release().release.id())),
        ("state-key/farmer-trials", StateKey::FarmerTrials(signed_release().release.id(), public(2))),
        ("state-key/faucet", StateKey::Faucet),
        ("state-key/faucet-claims", StateKey::FaucetClaims(public(1))),
        ("state-key/held-fee", StateKey::HeldFee(contract)),
        ("state-key/node-reservations", StateKey::NodeReservations(public(3))),
        ("state-key/open-reservations", StateKey::OpenReservations(public(1))),
        ("state-key/reservation-queue", StateKey::ReservationQueue),
        ("state-key/reservation-slot", StateKey::ReservationSlot(7)),
        ("state-key/key-owner", StateKey::KeyOwner(public(7))),
        ("state-key/node-quote", StateKey::NodeQuote(public(3))),
        ("state-key/endorsement", StateKey::Endorsement(Hash([9; 32]))),
    ]
}

/// Everything, with its bytes in hex. Values are checked to come back from their bytes.
fn vectors() -> BTreeMap<String, String> {
    fn add<T>(into: &mut BTreeMap<String, String>, what: &str, value: &T)
    where
        T: BorshSerialize + BorshDeserialize + PartialEq + std::fmt::Debug,
    {
        let bytes = croft_protocol::encode(value);
        let back: T = croft_protocol::decode("golden vector", &bytes, 1 << 20).unwrap();
        assert_eq!(back, *value, "{what} comes back from its bytes");
        assert!(into.insert(what.to_owned(), hex::encode(bytes)).is_none(), "{what} twice");
    }
    let mut all = BTreeMap::new();
    let into = &mut all;
    for (what, command) in commands() {
        add(into, what, &command);
    }
    for (what, record) in records() {
        add(into, what, &record);
        add(into, &format!("{what}/hash"), &record.hash());
        add(into, &format!("{what}/id"), &record.id.id);
    }
    for (what, key) in state_keys() {
        add(into, what, &key);
        add(into, &format!("{what}/hash"), &key.hash());
    }
    add(into, "signed-command", &signed_command());
    add(into, "signed-command/hash", &signed_command().hash());
    add(into, "terms", &terms());
    add(into, "terms/id", &terms().id().0);
    add(into, "signed-terms", &signed_terms());
    add(into, "join", &join());
    add(into, "farm/id", &FarmId::new(&public(2), &name("green")).0);
    add(into, "genesis", &genesis());
    add(into, "genesis/chain-id", &genesis().chain_id().0);
    add(into, "validators", &validators());
    add(into, "validators/hash", &validators().hash());
    add(into, "validator-change", &validator_change());
    add(into, "header", &header().header);
    add(into, "header/hash", &header().header.hash());
    add(into, "certificate", &header().certificate);
    add(into, "signed-header", &header());
    add(into, "attestation", &attestation());
    let statement = Attestation::statement(&node());
    add(into, "attestation/statement", &statement);
    let (chain, id, key_hash) = (CHAIN, public(3), attestation().key_hash());
    add(
        into,
        "attestation/nonce",
        &Attestation::nonce(&chain, 5, &header().header.hash(), &id, &statement, &key_hash),
    );
    add(into, "release/id", &signed_release().release.id().0);
    add(into, "release/stage", &signed_release().release.id().stage_of(&public(3)));
    add(into, "boot-manifest", &boot_manifest());
    add(into, "value/trials", &trials());
    add(into, "value/farmer-trials", &trials().largest);
    add(into, "manifest", &manifest());
    add(into, "manifest/hash", &manifest().hash());
    add(into, "value/account", &Account { balance: Grains(5), next_sequence: 3 });
    add(into, "value/capacity", &NodeCapacity { version: 3, total: capacity(), used: Capacity::default() });
    let contracts = vec![ContractId(Hash([1; 32])), ContractId(Hash([2; 32]))];
    add(into, "value/node-contracts", &NodeContracts { contracts });
    let escrow = Escrow {
        deposit: Grains(1),
        paid: Grains(2),
        refunded: Grains(3),
        covered_ms: 4,
        covered_until_ms: 5,
    };
    add(into, "value/escrow", &escrow);
    let held = vec![ContractId(Hash([1; 32])), ContractId(Hash([2; 32]))];
    add(into, "value/node-reservations", &NodeReservations { contracts: held.clone() });
    add(into, "value/reservation-slot", &ReservationSlot { contracts: held });
    add(into, "value/open-reservations", &OpenReservations { as_user: 1, as_farmer: 2 });
    add(into, "value/reservation-queue", &ReservationQueue { next_slot: 1, waiting: 2 });
    let recent = RecentHeader { height: 5, time_ms: 6, hash: Hash([1; 32]) };
    add(into, "value/recent-headers", &RecentHeaders { headers: vec![recent] });
    add(into, "value/faucet", &faucet());
    add(into, "value/faucet-claims", &FaucetClaims { count: 2, last_ms: 7 });
    add(into, "value/node-trust", &node_trust());
    let header = RecentHeader { height: 5, time_ms: 6, hash: Hash([1; 32]) };
    let quote = WeighedQuote { node: node(), attestation: attestation(), header, height: 7, time_ms: 8 };
    add(into, "value/node-quote", &quote);
    // Both frame and body: what stands on boot media.
    let file = addition().seal(&key(2)).unwrap();
    all.insert("addition/file".to_owned(), hex::encode(file));
    all
}

fn addition() -> Addition {
    let address = Prefix { address: [192, 0, 2, 10].into(), length: 24 };
    let bond = Bond {
        members: vec![LinkId::Name("eth0".to_owned()), LinkId::Mac([2, 0, 0, 0, 0, 1])],
        mode: BondMode::Lacp,
    };
    let replicas = vec![
        Replica { address: "192.0.2.1:7700".parse().unwrap(), key: public(20) },
        Replica { address: "[2001:db8::1]:7700".parse().unwrap(), key: public(21) },
    ];
    Addition {
        grid: Grid { name: name("home"), chain: CHAIN, validators: Hash([9; 32]), replicas },
        farm: name("barn"),
        owner: public(2),
        join: join(),
        node: Some(name("node-1")),
        public_addresses: vec!["203.0.113.7".to_owned()],
        links: vec![
            Link {
                id: LinkId::Name("bond0".to_owned()),
                uses: LinkUse::Static { addresses: vec![address], gateway: Some([192, 0, 2, 1].into()) },
                dns: vec![[192, 0, 2, 53].into()],
                vlan: Some(42),
                bond: Some(bond),
            },
            Link {
                id: LinkId::Name("eth7".to_owned()),
                uses: LinkUse::Off,
                dns: vec![],
                vlan: None,
                bond: None,
            },
        ],
        ntp: vec!["ntp.example".to_owned()],
    }
}

fn golden() -> BTreeMap<String, String> {
    let lines = GOLDEN.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (what, hex) = line.split_once(' ').expect("a line is a name, a space and hex digits");
            (what.to_owned(), hex.to_owned())
        })
        .collect()
}

#[test]
fn no_encoding_hash_or_signature_has_changed() {
    let (ours, golden) = (vectors(), golden());
    let names: BTreeSet<_> = ours.keys().chain(golden.keys()).collect();
    let mut changed = String::new();
    for what in names {
        let (now, before) = (ours.get(what), golden.get(what));
        if now != before {
            let now = now.map_or("(gone)", String::as_str);
            changed.extend([what, " ", now, "\n"]);
        }
    }
    assert!(
        changed.is_empty(),
        "these differ from tests/golden.txt; if that is meant, change their domains' versions, then the file:\n{changed}"
    );
}

#[test]
fn the_golden_signatures_are_good() {
    signed_command().verify().unwrap();
    signed_terms().verify(&CHAIN).unwrap();
    let SignedJoin { join, signature } = join();
    public(2).verify(Domain::JOIN, &CHAIN, &join, &signature).unwrap();
    let file = hex::decode(&golden()["addition/file"]).unwrap();
    let opened = Validated::open(&file, &Expectation { chain: Some(CHAIN), owner: Some(public(2)) }).unwrap();
    assert_eq!(opened.get(), &addition());
    attestation().vouchers[0].verify(&CHAIN).unwrap();
    announcement().verify(&CHAIN).unwrap();
    let keys = ReleaseKeys::new(1, vec![public(31)]);
    key_change().check(&CHAIN, Hash([5; 32]), &keys).unwrap();
    signed_release().check(&CHAIN, &release_keys()).unwrap();
    validator_change().check(&CHAIN, Hash([5; 32]), &validators()).unwrap();
    let certificate = header().certificate;
    for (key, signature) in &certificate.signatures {
        key.verify(Domain::CERTIFICATE, &CHAIN, &certificate.signed_value(), signature).unwrap();
    }
}

#[test]
fn no_two_state_keys_share_a_leaf() {
    let leaves: BTreeSet<_> = state_keys().iter().map(|(_, key)| key.hash()).collect();
    assert_eq!(leaves.len(), state_keys().len());
}
