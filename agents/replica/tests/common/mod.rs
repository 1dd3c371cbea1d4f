//! A grid with a replica, for tests over the network.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_protocol::boot::ReplicaAddress;
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::contract::Quorum;
use croft_protocol::header::Allocation;
use croft_protocol::keys::Domain;
use croft_protocol::record::{HardwareSummary, NodeBody, TrustClass};
use croft_protocol::{
    Capacity, ChainId, Command, CommandBody, FarmId, Grains, Hash, Name, PriceList, PublicKey, Rate,
    SecretKey, SignedCommand, SignedTerms, Terms, TrustPolicy,
};
use croft_replica::{GridPlan, Replica, ReplicaConfig, Running, init_grid};
use croft_transport::Client;

pub const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// How long an event may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(120);
pub const ALLOWANCE: u64 = 1_000_000;

pub fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Waits for something that must happen.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it must happen")
}

/// The files of a grid, and who is on it.
pub struct Files {
    dir: tempfile::TempDir,
    config: PathBuf,
    pub user: SecretKey,
    pub farmer: SecretKey,
    pub node: SecretKey,
    chain: ChainId,
}

impl Files {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (user, farmer, node) = (key(1), key(2), key(3));
        let allocations = [("alice", &user), ("fred", &farmer)].map(|(bot, key)| Allocation {
            name: name(bot),
            bot: key.public(),
            grains: Grains(ALLOWANCE),
        });
        let plan = GridPlan {
            name: name("test"),
            time_ms: now_ms(),
            allocations: allocations.to_vec(),
            listen: vec![LOOPBACK],
            trust: TrustPolicy::default(),
            faucet: None,
        };
        let grid = init_grid(dir.path(), plan).unwrap();
        Self {
            dir,
            config: grid.replicas[0].config.clone(),
            user,
            farmer,
            node,
            chain: grid.genesis.chain_id(),
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn config_path(&self) -> &Path {
        &self.config
    }

    pub fn config(&self) -> ReplicaConfig {
        ReplicaConfig::load(&self.config).unwrap()
    }

    pub fn chain(&self) -> ChainId {
        self.chain
    }

    pub fn sign(&self, key: &SecretKey, sequence: u64, command: Command) -> SignedCommand {
        let body = CommandBody {
            chain: self.chain,
            author: key.public(),
            sequence,
            expires_height: 10_000,
            command,
        };
        SignedCommand::sign(body, key)
    }

    pub fn farm(&self) -> FarmId {
        FarmId::new(&self.farmer.public(), &name("green"))
    }

    pub fn create_farm() -> Command {
        let prices = PriceList { cpu: 10, memory_gib: 0, ssd_gib: 0, hdd_gib: 0 };
        Command::CreateFarm { name: name("green"), country: "be".to_owned(), region: None, prices }
    }

    pub fn register(&self) -> Command {
        let join = Join { farm: self.farm(), expires_ms: now_ms() + 3_600_000, nonce: [1; 16] };
        let signature = self.farmer.sign_as_bot(Domain::JOIN, &self.chain, &join);
        let node = NodeBody {
            farm: self.farm(),
            name: name("n1"),
            sealing_key: [7; 32],
            capacity: Capacity { cpu_millis: 8_000, memory_bytes: 16 << 30, ..Capacity::default() },
            hardware: HardwareSummary::default(),
            trust: TrustClass::Plain,
            addresses: vec!["192.0.2.1".to_owned()],
            release: "0.1.0".to_owned(),
            session: 1,
            troubles: Vec::new(),
        };
        Command::RegisterNode { node, join: Some(SignedJoin { join, signature }), attestation: None }
    }

    pub fn terms(&self, called: &str) -> Terms {
        Terms {
            name: name(called),
            user: self.user.public(),
            farmer: self.farmer.public(),
            farm: self.farm(),
            node: self.node.public(),
            resources: Capacity { cpu_millis: 1_000, memory_bytes: 1 << 30, ..Capacity::default() },
            ports: Vec::new(),
            rate: Rate(10),
            duration_s: 1_000,
            grace_s: 3_600,
            prepaid_s: None,
            capacity_version: 1,
            quorum: Quorum::default(),
            sealed: vec![5; 100],
            expires_ms: now_ms() + 600_000,
            nonce: Hash::of_bytes(called.as_bytes()).0[..16].try_into().unwrap(),
        }
    }

    pub fn agree(&self, terms: Terms) -> Command {
        let user = self.user.sign_as_bot(Domain::TERMS, &self.chain, &terms);
        let farmer = self.farmer.sign_as_bot(Domain::TERMS, &self.chain, &terms);
        Command::Agree(Box::new(SignedTerms { terms, user, farmer }))
    }

    pub fn pay(&self, grains: u64) -> Command {
        Command::Transfer { to: self.farmer.public(), amount: Grains(grains), memo: "thanks".to_owned() }
    }
}

/// A grid whose replica runs in this process.
pub struct Bench {
    files: Files,
    running: Option<Running>,
    pin: ReplicaAddress,
}

impl std::ops::Deref for Bench {
    type Target = Files;

    fn deref(&self) -> &Files {
        &self.files
    }
}

impl Bench {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut ReplicaConfig)) -> Self {
        let files = Files::new();
        let mut config = files.config();
        change(&mut config);
        let running = Replica::start(config).await.unwrap();
        Self { files, pin: running.pin(), running: Some(running) }
    }

    pub fn pin(&self) -> ReplicaAddress {
        self.pin.clone()
    }

    pub fn client(&self, key: &SecretKey) -> Client {
        Client::new(key, vec![self.pin()]).unwrap()
    }

    /// Stops the replica and starts it again at the same address.
    pub async fn restart(mut self) -> Self {
        self.running.take().unwrap().stop().await;
        let config = ReplicaConfig { listen: self.pin.address, ..self.files.config() };
        self.running = Some(Replica::start(config).await.unwrap());
        self
    }

    pub async fn stop(mut self) {
        self.running.take().unwrap().stop().await;
    }

    /// Stops the replica, keeps the files.
    pub async fn halt(mut self) -> Files {
        self.running.take().unwrap().stop().await;
        self.files
    }

    /// Waits until somebody takes calls.
    pub async fn wait_for_listener(&self, caller: &Client, to: PublicKey) {
        within(async {
            while caller.relay(to).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}
