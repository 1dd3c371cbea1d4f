//! Four replicas on loopback that decide together, asked by real clients.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{ALLOWANCE, PATIENCE, key, name, now_ms, within};
use croft_light::{LightClient, verify_value};
use croft_protocol::api::Agreement;
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::header::Allocation;
use croft_protocol::state::Account;
use croft_protocol::validators::{SignedValidatorChange, ValidatorChange};
use croft_protocol::{
    Command, CommandBody, Genesis, Grains, Hash, RecordId, SecretKey, SignedCommand, StateKey, TrustPolicy,
    ValidatorSet,
};
use croft_replica::join::{JoinPlan, join};
use croft_replica::ordering::wall_clock;
use croft_replica::rejoin::rejoin;
use croft_replica::{GridPlan, NewGrid, Replica, ReplicaConfig, Running, init_grid};
use croft_transport::Client;

/// A grid of several replicas, some of which run.
struct Cluster {
    dir: tempfile::TempDir,
    grid: NewGrid,
    running: Vec<Option<Running>>,
}

fn free_addresses(count: usize) -> Vec<SocketAddr> {
    // All are held until all are known, so that no two are the same.
    let sockets: Vec<_> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    sockets.iter().map(|socket| socket.local_addr().unwrap()).collect()
}

impl Cluster {
    fn new(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let allocations = (1..=4).map(|seed| Allocation {
            name: name(&format!("bot{seed}")),
            bot: key(seed).public(),
            grains: Grains(ALLOWANCE),
        });
        let plan = GridPlan {
            name: name("test"),
            time_ms: now_ms(),
            allocations: allocations.collect(),
            listen: free_addresses(count),
            trust: TrustPolicy::default(),
            faucet: None,
        };
        let grid = init_grid(dir.path(), plan).unwrap();
        let running = grid.replicas.iter().map(|_| None).collect();
        Self { dir, grid, running }
    }

    async fn start(&mut self, index: usize) {
        let config = ReplicaConfig::load(&self.grid.replicas[index].config).unwrap();
        self.running[index] = Some(Replica::start(config).await.unwrap());
    }

    async fn stop(&mut self, index: usize) {
        self.running[index].take().unwrap().stop().await;
    }

    async fn up(count: usize) -> Self {
        let mut cluster = Self::new(count);
        for index in 0..count {
            cluster.start(index).await;
        }
        cluster
    }

    fn genesis(&self) -> &Genesis {
        &self.grid.genesis
    }

    fn address(&self, index: usize) -> ReplicaAddress {
        let replica = &self.grid.replicas[index];
        ReplicaAddress { address: replica.listen, key: replica.key.public() }
    }

    fn client(&self, me: &SecretKey, index: usize) -> Client {
        Client::new(me, vec![self.address(index)]).unwrap()
    }

    fn pay(&self, from: u8, to: u8, sequence: u64, amount: u64) -> SignedCommand {
        let to = key(to).public();
        self.sign(from, sequence, Command::Transfer { to, amount: Grains(amount), memo: String::new() })
    }

    fn sign(&self, from: u8, sequence: u64, command: Command) -> SignedCommand {
        let body = CommandBody {
            chain: self.genesis().chain_id(),
            author: key(from).public(),
            sequence,
            expires_height: 10_000,
            command,
        };
        SignedCommand::sign(body, &key(from))
    }

    /// A proved balance at one replica.
    async fn balance(&self, index: usize, of: u8) -> (u64, u64) {
        let client = self.client(&key(90), index);
        let account = StateKey::Account(key(of).public());
        let (signed, values) = client.get(vec![account.clone()]).await.unwrap().value;
        let mut light = LightClient::new(self.genesis().chain_id(), self.genesis().validators.hash());
        let tip = light.accept_tip(&signed, None).unwrap();
        let value = verify_value(&tip, &account, &values[0]).unwrap().unwrap();
        let account: Account = croft_protocol::decode("account", &value, 1024).unwrap();
        (tip.height(), account.balance.0)
    }

    /// Waits until a replica has a height.
    async fn reaches(&self, index: usize, height: u64) {
        let client = self.client(&key(91), index);
        within(async {
            while client.tip().await.unwrap().value.header.height < height {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    async fn agreement(&self, index: usize) -> Agreement {
        self.client(&key(92), index).status().await.unwrap().value.agreement.unwrap()
    }

    async fn end(mut self) {
        for running in self.running.iter_mut().filter_map(Option::take) {
            running.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_takes_is_final_on_all_four() {
    let cluster = Cluster::up(4).await;
    let mut last = 0;
    for from in 1..=4_u8 {
        let client = cluster.client(&key(from), usize::from(from) - 1);
        let to = from % 4 + 1;
        let paid = within(client.submit(cluster.pay(from, to, 0, 10 * u64::from(from)))).await.unwrap();
        last = paid.value.height;
    }
    for index in 0..4 {
        cluster.reaches(index, last).await;
        let (_, balance) = cluster.balance(index, 1).await;
        assert_eq!(balance, ALLOWANCE - 10 + 40, "replica {index}");
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_of_four_go_on_and_the_fourth_catches_up() {
    let mut cluster = Cluster::up(4).await;
    let client = cluster.client(&key(1), 0);
    within(client.submit(cluster.pay(1, 2, 0, 1))).await.unwrap();
    cluster.stop(3).await;
    let mut height = 0;
    for sequence in 1..6 {
        let paid = tokio::time::timeout(2 * PATIENCE, client.submit(cluster.pay(1, 2, sequence, 1))).await;
        height = paid.unwrap().unwrap().value.height;
    }
    cluster.start(3).await;
    cluster.reaches(3, height).await;
    assert_eq!(cluster.balance(3, 2).await.1, ALLOWANCE + 6);
    // It decides again, too: with another one away nothing goes on without it.
    cluster.stop(0).await;
    let client = cluster.client(&key(2), 3);
    let paid = tokio::time::timeout(2 * PATIENCE, client.submit(cluster.pay(2, 1, 0, 1))).await;
    assert!(paid.unwrap().unwrap().value.height > height);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_a_damaged_log_follows_signs_nothing_and_rejoins() {
    let mut cluster = Cluster::up(4).await;
    let client = cluster.client(&key(1), 0);
    within(client.submit(cluster.pay(1, 2, 0, 1))).await.unwrap();
    cluster.stop(3).await;
    let config = ReplicaConfig::load(&cluster.grid.replicas[3].config).unwrap();
    let log = config.dir.join("consensus.redb");
    let error = rejoin(&config).await.unwrap_err().to_string();
    assert_eq!(error, "the consensus log is whole: there is nothing to mend; start the replica");
    std::fs::write(&log, "no log").unwrap();

    cluster.start(3).await;
    let paid = within(client.submit(cluster.pay(1, 2, 1, 1))).await.unwrap().value;
    cluster.reaches(3, paid.height).await;
    let agreement = cluster.agreement(3).await;
    let reason = agreement.not_signing.unwrap();
    assert!(reason.contains(&log.display().to_string()), "{reason}");
    cluster.stop(3).await;

    let done = rejoin(&config).await.unwrap();
    assert!(done.sign_above > paid.height && done.tip >= paid.height, "{done:?}");
    assert!(done.set_aside.unwrap().is_file());
    cluster.start(3).await;
    let mut height = 0;
    for sequence in 2..4 {
        let paid = within(client.submit(cluster.pay(1, 2, sequence, 1))).await.unwrap();
        height = paid.value.height;
    }
    cluster.reaches(3, height).await;
    assert_eq!(cluster.agreement(3).await.not_signing, None);
    // With another one away nothing is decided without it.
    cluster.stop(0).await;
    let client = cluster.client(&key(2), 1);
    let paid = tokio::time::timeout(2 * PATIENCE, client.submit(cluster.pay(2, 1, 0, 1))).await;
    assert!(paid.unwrap().unwrap().value.height > done.sign_above);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_four_decide_nothing_and_three_do() {
    let mut cluster = Cluster::new(4);
    cluster.start(0).await;
    cluster.start(1).await;
    let client = cluster.client(&key(1), 0);
    let command = cluster.pay(1, 2, 0, 5);
    let waiting = tokio::spawn({
        let (client, command) = (client.clone(), command.clone());
        async move { client.submit(command).await }
    });
    cluster.start(2).await;
    // Nothing is decided before: the only way to this height is with a third replica.
    within(waiting).await.unwrap().unwrap();
    cluster.reaches(2, 1).await;
    assert_eq!(cluster.balance(2, 2).await.1, ALLOWANCE + 5);
    cluster.end().await;
}

/// Runs the program as a person would; what it says, and whether it was content.
async fn command(arguments: &[&str], config: &std::path::Path) -> (bool, String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_replica"));
    let output = within(command.args(arguments).arg("--config").arg(config).output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lost_everything_but_its_key_joins_rejoins_and_decides_again() {
    let mut cluster = Cluster::up(4).await;
    let client = cluster.client(&key(1), 0);
    within(client.submit(cluster.pay(1, 2, 0, 1))).await.unwrap();
    cluster.stop(3).await;
    let path = cluster.grid.replicas[3].config.clone();
    let data = ReplicaConfig::load(&path).unwrap().dir;
    for sequence in 1..4 {
        within(client.submit(cluster.pay(1, 2, sequence, 1))).await.unwrap();
    }

    std::fs::write(data.join("ledger.redb"), "no ledger").unwrap();
    let (good, _, said) = command(&[], &path).await;
    assert!(!good, "a damaged ledger is refused");
    assert!(said.contains("ledger.redb is damaged"), "{said}");
    assert!(said.contains("move the file away and run 'replica join --config replica.toml'"), "{said}");
    let (good, _, said) = command(&["join"], &path).await;
    assert!(!good && said.contains("there is a ledger at"), "{said}");
    std::fs::remove_dir_all(&data).unwrap();

    let (good, said, errors) = command(&["join"], &path).await;
    assert!(good, "{said}{errors}");
    assert!(said.contains("records are here and proved"), "{said}");
    assert!(said.contains("the ledger is here: block "), "{said}");
    assert!(said.contains("there is no consensus log: if it is to sign, run 'replica rejoin"), "{said}");
    let (good, checked, errors) = command(&["--check"], &path).await;
    assert!(
        good && checked.starts_with("the ledger is whole: 1 headers, 0 lists of commands"),
        "{checked}{errors}"
    );
    let (good, said, errors) = command(&["rejoin"], &path).await;
    assert!(good && said.contains("this replica signs again above block "), "{said}{errors}");

    cluster.start(3).await;
    let mut height = 0;
    for sequence in 4..8 {
        height = within(client.submit(cluster.pay(1, 2, sequence, 1))).await.unwrap().value.height;
    }
    cluster.reaches(3, height).await;
    assert_eq!(cluster.balance(3, 2).await.1, ALLOWANCE + 8);
    // With another one away nothing is decided without it.
    cluster.stop(0).await;
    let client = cluster.client(&key(2), 3);
    let paid = tokio::time::timeout(2 * PATIENCE, client.submit(cluster.pay(2, 1, 0, 1))).await;
    assert!(paid.unwrap().unwrap().value.height > height);
    cluster.end().await;
}

/// The files of a replica that knows the others but has no ledger yet.
fn newcomer(
    dir: &Path,
    key: &SecretKey,
    listen: SocketAddr,
    genesis: &Genesis,
    peers: &str,
) -> ReplicaConfig {
    std::fs::create_dir_all(dir.join("data")).unwrap();
    std::fs::write(dir.join("validator.key"), hex::encode(key.seed())).unwrap();
    std::fs::write(dir.join("genesis.json"), serde_json::to_string(genesis).unwrap()).unwrap();
    let file = dir.join("replica.toml");
    std::fs::write(&file, format!("listen = \"{listen}\"\n{peers}")).unwrap();
    ReplicaConfig::load(&file).unwrap()
}

fn as_peers<'a>(replicas: impl Iterator<Item = &'a (SocketAddr, SecretKey)>) -> String {
    let peer = |(address, key): &(SocketAddr, SecretKey)| {
        format!("[[peers]]\naddress = \"{address}\"\nkey = \"{}\"\n", key.public())
    };
    replicas.map(peer).collect::<Vec<_>>().concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_grid_of_one_grows_to_four_without_a_new_history() {
    let mut cluster = Cluster::new(1);
    cluster.start(0).await;
    let client = cluster.client(&key(1), 0);
    within(client.submit(cluster.pay(1, 2, 0, 1))).await.unwrap();
    let before = client.header(1).await.unwrap().value;

    // The owner lists the newcomers and starts the replica again: its clients only see it away for a moment.
    let mut all = vec![(cluster.grid.replicas[0].listen, cluster.grid.replicas[0].key.clone())];
    all.extend(free_addresses(3).into_iter().zip([key(201), key(202), key(203)]));
    cluster.stop(0).await;
    let file = &cluster.grid.replicas[0].config;
    let text = std::fs::read_to_string(file).unwrap() + &as_peers(all[1..].iter());
    std::fs::write(file, text).unwrap();
    cluster.start(0).await;

    // Each copies the ledger and follows, without a vote.
    for (index, (listen, key)) in all.iter().enumerate().skip(1) {
        let others = all.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, replica)| replica);
        let dir = cluster.dir.path().join(format!("new-{index}"));
        let config = newcomer(&dir, key, *listen, cluster.genesis(), &as_peers(others));
        let plan = JoinPlan {
            dir: config.dir.clone(),
            genesis: config.genesis.clone(),
            key: config.key.clone(),
            replicas: vec![cluster.address(0)],
            clock: wall_clock(),
            progress: Arc::new(|_| {}),
        };
        within(join(plan)).await.unwrap();
        cluster.running.push(Some(within(Replica::start(config)).await.unwrap()));
    }
    let client = cluster.client(&key(1), 0);
    within(client.submit(cluster.pay(1, 2, 1, 1))).await.unwrap();

    // One signature of the one validator, and the four decide together.
    let present = StateKey::Record(RecordId::validators());
    let (_, values) = client.get(vec![present]).await.unwrap().value;
    let prev = Hash::of_bytes(values[0].value.as_ref().unwrap());
    let keys: Vec<_> = all.iter().map(|(_, key)| key.public()).collect();
    let change = ValidatorChange { prev, validators: ValidatorSet::of_equals(&keys) };
    let signatures = vec![change.sign(&all[0].1, &cluster.genesis().chain_id())];
    let change = Command::SetValidators(Box::new(SignedValidatorChange { change, signatures }));
    within(client.submit(cluster.sign(1, 2, change))).await.unwrap();
    let asked = |index: usize| {
        let (address, key) = &all[index];
        ReplicaAddress { address: *address, key: key.public() }
    };
    let newcomer = Client::new(&key(2), vec![asked(2)]).unwrap();
    let paid = tokio::time::timeout(2 * PATIENCE, newcomer.submit(cluster.pay(2, 1, 0, 1))).await;
    let height = paid.unwrap().unwrap().value.height;
    let header = newcomer.header(height).await.unwrap().value;
    assert_eq!(header.validators, ValidatorSet::of_equals(&keys));
    assert!(header.certificate.signatures.len() >= 3, "more than two thirds of four");

    // The first one is no longer needed.
    cluster.stop(0).await;
    let paid = tokio::time::timeout(2 * PATIENCE, newcomer.submit(cluster.pay(2, 1, 1, 1))).await;
    assert!(paid.unwrap().unwrap().value.height > height);
    cluster.start(0).await;
    assert_eq!(cluster.client(&key(1), 0).header(1).await.unwrap().value, before, "the same history");
    cluster.end().await;
}
