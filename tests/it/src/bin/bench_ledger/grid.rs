//! Four replicas that decide together, each its own process, on loopback, with many people who own grains.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use croft_protocol::api::Status;
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::header::Allocation;
use croft_protocol::{
    ChainId, Command, CommandBody, Genesis, Grains, Hash, Name, PublicKey, SecretKey, SignedCommand,
    TrustPolicy,
};
use croft_replica::{GridPlan, init_grid};
use croft_transport::{Client, Submitted};
use tokio::time::{Instant, sleep, timeout};

use crate::machine::{self, Process};

pub(crate) const REPLICAS: usize = 4;
/// Replicas find each other within this.
const LINKS: Duration = Duration::from_secs(60);
/// A single command on an idle grid.
const COMMAND: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Milliseconds since 1970, UTC.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A key that is the same in every run: what is measured must not depend on luck.
pub(crate) fn key(role: &str, number: usize) -> SecretKey {
    SecretKey::from_seed(&Hash::of_bytes(format!("bench ledger {role} {number}").as_bytes()).0)
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("names of the bench are names")
}

pub(crate) fn allocation(role: &str, number: usize) -> Allocation {
    let bot = key(role, number).public();
    Allocation { name: name(&format!("{role}-{number}")), bot, grains: Grains(1_000_000_000) }
}

/// Somebody who signs commands one after the other.
#[derive(Debug)]
pub(crate) struct Author {
    key: SecretKey,
    chain: ChainId,
    expires_height: u64,
    next: u64,
}

impl Author {
    /// One who has not signed anything yet. `expires_height` is that of everything it will sign.
    pub(crate) fn new(key: SecretKey, chain: ChainId, expires_height: u64) -> Self {
        Self { key, chain, expires_height, next: 0 }
    }

    pub(crate) fn key(&self) -> &SecretKey {
        &self.key
    }

    pub(crate) fn public(&self) -> PublicKey {
        self.key.public()
    }

    pub(crate) fn sign(&mut self, command: Command) -> SignedCommand {
        let (chain, author, sequence) = (self.chain, self.key.public(), self.next);
        self.next += 1;
        let body = CommandBody { chain, author, sequence, expires_height: self.expires_height, command };
        SignedCommand::sign(body, &self.key)
    }
}

/// The processes of a grid, and how to reach them.
pub(crate) struct Grid {
    dir: PathBuf,
    genesis: Genesis,
    pins: Vec<ReplicaAddress>,
    configs: Vec<PathBuf>,
    processes: Vec<Option<Process>>,
    /// One for each replica, for questions of our own.
    control: Vec<Client>,
}

impl Grid {
    /// Makes a grid and waits until all its replicas are linked.
    pub(crate) async fn start(dir: &Path, allocations: Vec<Allocation>) -> Result<Self> {
        let listen = free_udp_addresses(REPLICAS)?;
        let plan = GridPlan {
            name: name("bench"),
            time_ms: now_ms(),
            allocations,
            listen,
            trust: TrustPolicy::default(),
            faucet: None,
        };
        let made = init_grid(dir, plan).context("making the grid")?;
        let pins: Vec<_> = made
            .replicas
            .iter()
            .map(|replica| ReplicaAddress { address: replica.listen, key: replica.key.public() })
            .collect();
        let me = key("control", 0);
        let control = pins.iter().map(|pin| Client::new(&me, vec![pin.clone()])).collect::<Result<_, _>>()?;
        let mut grid = Self {
            dir: dir.to_owned(),
            genesis: made.genesis,
            configs: made.replicas.into_iter().map(|replica| replica.config).collect(),
            processes: pins.iter().map(|_| None).collect(),
            pins,
            control,
        };
        for index in 0..REPLICAS {
            grid.start_replica(index).await?;
        }
        grid.wait_for_links().await?;
        Ok(grid)
    }

    pub(crate) async fn start_replica(&mut self, index: usize) -> Result<()> {
        let log = self.dir.join(format!("replica-{}.log", index + 1));
        self.processes[index] = Some(start_replica(&self.configs[index], index + 1, log).await?);
        Ok(())
    }

    pub(crate) async fn stop_replica(&mut self, index: usize) -> Result<()> {
        match self.processes[index].take() {
            Some(process) => process.stop().await,
            None => Ok(()),
        }
    }

    pub(crate) async fn wait_for_links(&self) -> Result<()> {
        let linked = async {
            for client in &self.control {
                loop {
                    let peers = match client.status().await {
                        Ok(answer) => answer.value.agreement.map(|agreement| agreement.peers),
                        Err(_) => None,
                    };
                    let all = |peers: &Vec<_>| peers.len() == REPLICAS - 1;
                    if peers.filter(all).is_some_and(|peers| peers.iter().all(|peer| peer.connected)) {
                        break;
                    }
                    sleep(POLL).await;
                }
            }
        };
        timeout(LINKS, linked).await.with_context(|| format!("the replicas are not linked after {LINKS:?}"))
    }

    pub(crate) async fn status(&self, index: usize) -> Result<Status> {
        Ok(self.control[index].status().await?.value)
    }

    /// Waits until a replica has at least so many records; when that was.
    pub(crate) async fn wait_for_records(
        &self,
        index: usize,
        records: u64,
        within: Duration,
    ) -> Result<Instant> {
        let deadline = Instant::now() + within;
        loop {
            let status = self.status(index).await;
            let now = Instant::now();
            match status {
                Ok(status) if status.records >= records => return Ok(now),
                Ok(status) if now > deadline => bail!(
                    "replica {} has {} of {records} records after {within:?}: {:?}",
                    index + 1,
                    status.records,
                    status.agreement
                ),
                Err(error) if now > deadline => return Err(error),
                _ => sleep(POLL).await,
            }
        }
    }

    /// Brings one command through the first replica.
    pub(crate) async fn submit(&self, command: SignedCommand) -> Result<Submitted> {
        let submitted = timeout(COMMAND, self.control[0].submit(command)).await;
        Ok(submitted.with_context(|| format!("a command is not final after {COMMAND:?}"))??.value)
    }

    pub(crate) fn control(&self, index: usize) -> &Client {
        &self.control[index]
    }

    pub(crate) fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    pub(crate) fn chain(&self) -> ChainId {
        self.genesis.chain_id()
    }

    pub(crate) fn pins(&self) -> &[ReplicaAddress] {
        &self.pins
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().flatten()
    }

    /// Processor time of all replicas so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.running().map(Process::cpu).sum()
    }

    /// Memory of all replicas.
    pub(crate) fn resident_bytes(&self) -> Result<f64> {
        self.running().map(Process::resident_bytes).sum()
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        for client in &self.control {
            client.close().await;
        }
        for index in 0..self.processes.len() {
            self.stop_replica(index).await?;
        }
        Ok(())
    }
}

/// Starts one replica from its configuration; it serves when this returns.
pub(crate) async fn start_replica(config: &Path, number: usize, log: PathBuf) -> Result<Process> {
    let mut command = tokio::process::Command::new(machine::built("replica")?);
    command.arg("--config").arg(config).env("CROFT_LOG", "warn");
    Process::start(format!("replica {number}"), command, Some("serves on"), log).await
}

/// UDP addresses of loopback that nobody has now.
pub(crate) fn free_udp_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let sockets: Vec<UdpSocket> =
        (0..count).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
    Ok(sockets.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>()?)
}
