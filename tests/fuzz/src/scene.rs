//! Real values to start from: a grid with a farm, a node, contracts and new validators, the same in every run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use croft_attest::soft::SoftTpm;
use croft_ledger::StateReadExt;
use croft_ledger::memory::{Scenario, key, name};
use croft_light::{LightClient, Tip};
use croft_protocol::attestation::Attestation;
use croft_protocol::contract::{Approver, PublishedPort, Quorum, Transport};
use croft_protocol::image::{Chunk, ImageConfig, ImageManifest, Verity};
use croft_protocol::record::{NodeBody, TrustClass, WorkloadState};
use croft_protocol::trust::{Endorsement, RecentHeader, RecentHeaders, TrustPolicy};
use croft_protocol::workload::{
    HealthCheck, Mount, PortMapping, Probe, RestartPolicy, Vm, Volume, VolumeKind, Workload,
};
use croft_protocol::{
    Command, CommandBody, ContractId, Hash, SecretKey, SignedCommand, SignedHeader, SignedValidatorChange,
    StateKey, ValidatorSet,
};

use crate::Seed;

/// A ledger with some history, and the commands that made it.
pub struct Scene {
    pub scenario: Scenario,
    pub commands: Vec<SignedCommand>,
    pub change: SignedValidatorChange,
    pub contract: ContractId,
    /// Whom the change is about.
    pub before: ValidatorSet,
    /// The tip as a client believes it that pinned the first validators.
    pub tip: Tip,
    /// An older tip, for proofs of consistency.
    pub older: Tip,
}

static SCENE: LazyLock<Scene> = LazyLock::new(make);

/// The one scene.
#[must_use]
pub fn scene() -> &'static Scene {
    &SCENE
}

fn keys(numbers: &[u8]) -> Vec<SecretKey> {
    numbers.iter().map(|n| key(*n)).collect()
}

fn make() -> Scene {
    let numbers = [101, 102, 103, 104];
    let publics: Vec<_> = keys(&numbers).iter().map(SecretKey::public).collect();
    let policy = TrustPolicy { endorsement: Endorsement::Unchecked, ..TrustPolicy::default() };
    let mut scenario = Scenario::with_policy(ValidatorSet::of_equals(&publics), &numbers, policy);
    let mut commands = Vec::new();
    let mut submit = |scenario: &mut Scenario, author: &SecretKey, command: Command| {
        let signed = scenario.ledger.sign(author, command);
        let at_ms = scenario.now_ms() + 1;
        let result = scenario.ledger.commit(at_ms, std::slice::from_ref(&signed)).remove(0);
        result.unwrap_or_else(|rejection| panic!("the scene's command is refused: {rejection}"));
        commands.push(signed);
    };
    let (user, farmer, node, other) =
        (scenario.user.clone(), scenario.farmer.clone(), scenario.node.clone(), scenario.other.clone());
    let register = attested_registration(&scenario);
    submit(&mut scenario, &node, register);
    let mut terms = scenario.terms("web");
    terms.ports = vec![PublishedPort { transport: Transport::Tcp, port: 80 }];
    let approver = Approver { bot: other.public(), weight: 1, required: true };
    terms.quorum = Quorum { threshold: 1, approvers: vec![approver] };
    let contract = terms.id();
    let agree = Command::Agree(Box::new(scenario.sign(terms)));
    submit(&mut scenario, &user, agree);
    submit(&mut scenario, &other, Command::Approve { contract, approve: true });
    let now_ms = scenario.now_ms();
    let report = scenario.report_body(now_ms - 1, now_ms, vec![(contract, WorkloadState::Running, 1)]);
    submit(&mut scenario, &node, Command::Report(report));
    let older = believed(&scenario);
    let transfer = Command::Transfer {
        to: farmer.public(),
        amount: croft_protocol::Grains(5),
        memo: "thanks".to_owned(),
    };
    submit(&mut scenario, &user, transfer);
    scenario.ledger.add_keys([key(105)]);
    let before = scenario.ledger.genesis().validators.clone();
    let publics: Vec<_> = keys(&[102, 103, 104, 105]).iter().map(SecretKey::public).collect();
    let next = ValidatorSet::of_equals(&publics);
    let change = scenario.ledger.sign_change(next, &keys(&[101, 102, 103]));
    submit(&mut scenario, &user, Command::SetValidators(Box::new(change.clone())));
    submit(&mut scenario, &user, Command::Settle { contract });
    let tip = believed(&scenario);
    Scene { scenario, commands, change, contract, before, tip, older }
}

/// A node whose TPM a program plays: this grid takes it.
fn attested_registration(scenario: &Scenario) -> Command {
    let node = NodeBody { trust: TrustClass::Sealed, ..scenario.node_body() };
    let recent = scenario.ledger.read::<RecentHeaders>(&StateKey::RecentHeaders);
    let recent = recent.expect("memory can be read").expect("there is a header to quote");
    let RecentHeader { height, hash, .. } = recent.headers[0];
    let (chain, id) = (scenario.ledger.chain(), scenario.node_id());
    let bound = (&chain, height, hash, &id, Attestation::statement(&node));
    let attestation = SoftTpm::new(7_u8).attest(bound, SoftTpm::booted(&[Hash([0x11; 32])]));
    Command::RegisterNode { node, join: Some(scenario.join()), attestation: Some(Box::new(attestation)) }
}

/// The newest header, as a client believes it that walks the handovers.
fn believed(scenario: &Scenario) -> Tip {
    let mut light = LightClient::new(scenario.ledger.chain(), scenario.ledger.genesis().validators.hash());
    for handover in scenario.ledger.headers() {
        if handover.header.next_validators != handover.header.validators {
            light.accept_handover(handover).expect("an honest handover is believed");
        }
    }
    light.accept_tip(scenario.ledger.tip(), None).expect("an honest tip is believed")
}

/// Whether a header is one of the scene's.
#[must_use]
pub fn is_known(signed: &SignedHeader) -> bool {
    scene().scenario.ledger.headers().iter().any(|known| known.header == signed.header)
}

/// A body in its envelope, by the scene's user.
#[must_use]
pub fn signed(command: Command) -> SignedCommand {
    let (scenario, user) = (&scene().scenario, &scene().scenario.user);
    let body = CommandBody {
        chain: scenario.ledger.chain(),
        author: user.public(),
        sequence: 9,
        expires_height: 1_000,
        command,
    };
    SignedCommand::sign(body, user)
}

/// A workload that uses every field.
#[must_use]
pub fn workload() -> Workload {
    let vm = Vm {
        name: name("web"),
        image: manifest().hash(),
        argv: vec!["/bin/web".to_owned(), "--port=80".to_owned()],
        env: BTreeMap::from([("A".to_owned(), "b".to_owned()), ("C".to_owned(), "d".to_owned())]),
        secrets: BTreeMap::from([("K".to_owned(), "v".to_owned())]),
        user: "www:www".to_owned(),
        working_dir: "/srv".to_owned(),
        stop_signal: "SIGTERM".to_owned(),
        stop_grace_s: 10,
        cpu_millis: 500,
        memory_bytes: 128 << 20,
        mounts: vec![Mount { volume: name("data"), path: "/data".to_owned(), read_only: false }],
        ports: vec![PortMapping { transport: Transport::Tcp, published: 80, guest: 8080 }],
        health: Some(HealthCheck {
            probe: Probe::Http { port: 8080, path: "/up".to_owned() },
            interval_s: 5,
            timeout_s: 1,
            retries: 3,
            start_period_s: 10,
        }),
        restart: RestartPolicy::Always,
    };
    let volume = Volume { name: name("data"), kind: VolumeKind::Exclusive, size_bytes: 1 << 30 };
    Workload { version: 1, vms: vec![vm], volumes: vec![volume] }
}

/// The manifest of an image of three blocks.
#[must_use]
pub fn manifest() -> ImageManifest {
    ImageManifest {
        version: 1,
        verity: Verity { data_blocks: 2, root: Hash([1; 32]), salt: [2; 32] },
        size_bytes: 3 * 4096,
        chunks: vec![Chunk { hash: Hash([3; 32]), compressed_bytes: 100 }],
        config: ImageConfig {
            entrypoint: vec!["/bin/web".to_owned()],
            cmd: vec!["--help".to_owned()],
            env: BTreeMap::from([("A".to_owned(), "b".to_owned()), ("C".to_owned(), "d".to_owned())]),
            user: "www".to_owned(),
            working_dir: "/srv".to_owned(),
            stop_signal: "SIGQUIT".to_owned(),
            exposed_ports: vec!["80/tcp".to_owned()],
        },
        source: Hash([4; 32]),
    }
}

/// A value's encoding as a file of the corpus.
#[must_use]
pub fn encoded<T: borsh::BorshSerialize>(name: &str, value: &T) -> Seed {
    (name.to_owned(), croft_protocol::encode(value))
}

/// Writes a file anew. Removed first: some file systems wait for the disk where a file is cut short and written again.
///
/// # Panics
/// When it can't be written.
pub fn rewrite(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    let folder = path.parent().expect("it has one");
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(path, bytes));
    written.unwrap_or_else(|error| panic!("{} can't be written: {error}", path.display()));
}

/// A text as a file of the corpus.
#[must_use]
pub fn written(name: &str, text: &str) -> Seed {
    (name.to_owned(), text.as_bytes().to_vec())
}
