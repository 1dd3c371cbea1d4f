//! `croft grid`: making a grid, running its replica in the foreground, looking at it, trusting another's.

use std::fmt::Write as _;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use croft_protocol::api::{Agreement, Kept};
use croft_protocol::boot::{GridPin, ReplicaAddress};
use croft_protocol::header::{Allocation, Validator};
use croft_protocol::{ChainId, Faucet, Grains, Hash, Name, PublicKey, TrustPolicy, limits};
use croft_replica::{
    ConfigError, GridPlan, InitError, Replica, ReplicaConfig, Running, StartError, init_grid, replica_dir,
};
use croft_transport::verified::ReplicaView as Seen;
use serde::Serialize;

use super::Context;
use crate::exit::Failure;
use crate::flags::{GridInitFlags, GridUpFlags};
use crate::grid::{Grid, now_ms};
use crate::home::HomeError;
use crate::terminal::show_duration;

/// A pin is a few hundred bytes.
const PIN_BYTES: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
enum GridCommandError {
    #[error("port 0 is another one at each start, but clients pin it: choose one, such as 127.0.0.1:4600")]
    PortZero,
    #[error("{count} replicas need {count} ports from {first} on, but 65535 is the last: choose a lower one")]
    Ports { first: SocketAddr, count: u8 },
    #[error("grid '{grid}' has {count} replicas in {dir}: --replica takes 1 to {count}")]
    NoSuchReplica { grid: Name, dir: PathBuf, count: usize },
    #[error(
        "--listen moves a single replica, but {count} would run: change 'listen' in each replica.toml, and the pin"
    )]
    ListenOfMany { count: usize },
    #[error(
        "the ledger of grid '{grid}' is not in {dir}: this home only has its pin; run it where it was made, or say where it is with --dir"
    )]
    NotOurs { grid: Name, dir: PathBuf },
    #[error(
        "the ledger in {dir} is that of another grid than '{grid}': its chain is {found}, pinned is {expected}"
    )]
    OtherChain { grid: Name, dir: PathBuf, found: ChainId, expected: ChainId },
    #[error("the replica of grid '{grid}' stopped by itself: see its log with RUST_LOG=info")]
    Ended { grid: Name },
    #[error("can't read {path}: --boot-file takes a boot file or the 64 hex digits of its digest")]
    BootFile { path: PathBuf, source: std::io::Error },
    #[error("{path} is no boot file")]
    NoBootFile { path: PathBuf, source: croft_media::pe::PeError },
    #[error("can't read the pin {path}")]
    ReadPin { path: PathBuf, source: std::io::Error },
    #[error(
        "{path} is no pin: {reason}; it has name, chain, validators and [[replica]] with address and key"
    )]
    BadPin { path: PathBuf, reason: String },
}

#[derive(Serialize)]
struct NewGridView {
    grid: Name,
    chain: ChainId,
    validators: Hash,
    replicas: Vec<ReplicaAddress>,
    dir: PathBuf,
    treasury: Treasury,
}

#[derive(Serialize)]
struct Treasury {
    bot: Name,
    id: PublicKey,
    grains: Grains,
}

pub(super) fn init(c: &mut Context<'_>, flags: &GridInitFlags) -> Result<(), Failure> {
    if flags.listen.port() == 0 {
        return Err(Failure::usage(GridCommandError::PortZero));
    }
    if c.home.grids()?.contains(&flags.name) {
        let error = HomeError::GridExists { name: flags.name.clone(), home: c.home.root().to_owned() };
        return Err(error.into());
    }
    let dir = match &flags.dir {
        Some(dir) => std::path::absolute(dir).map_err(Failure::failed)?,
        None => c.home.grid_dir(&flags.name).join("ledger"),
    };
    // A treasury of this home may serve several grids; its key is never replaced.
    let treasury = match c.home.key_file(&flags.treasury_bot) {
        Ok(file) => file.id(),
        Err(HomeError::NoBot { .. }) => c.home.new_treasury(&flags.treasury_bot)?.public(),
        Err(error) => return Err(error.into()),
    };
    let allocation = Allocation { name: flags.treasury_bot.clone(), bot: treasury, grains: flags.treasury };
    let plan = GridPlan {
        name: flags.name.clone(),
        time_ms: now_ms(),
        allocations: vec![allocation],
        listen: addresses(flags.listen, flags.replicas)?,
        trust: TrustPolicy {
            endorsement: flags.tpm.into(),
            stale_after_s: flags.stale_after,
            boot_files: flags.boot_files.iter().map(|what| boot_file(what)).collect::<Result<_, _>>()?,
            ..TrustPolicy::default()
        },
        faucet: flags.faucet.amount.map(|amount| Faucet {
            fund: flags.faucet.fund.unwrap_or(Grains(amount.0.saturating_mul(1000))),
            amount,
            every_s: flags.faucet.every,
            claims_per_bot: flags.faucet.claims,
        }),
    };
    let new = init_grid(&dir, plan)?;
    let replicas = new.replicas.iter();
    let replicas = replicas.map(|r| ReplicaAddress { address: reachable(r.listen), key: r.key.public() });
    let pin = GridPin {
        name: flags.name.clone(),
        chain: new.genesis.chain_id(),
        validators: new.genesis.validators.hash(),
        replicas: replicas.collect(),
    };
    c.home.keep_ledger_dir(&flags.name, &dir)?;
    c.home.add_grid(&pin)?;
    let view = NewGridView {
        grid: flags.name.clone(),
        chain: pin.chain,
        validators: pin.validators,
        replicas: pin.replicas.clone(),
        dir,
        treasury: Treasury { bot: flags.treasury_bot.clone(), id: treasury, grains: flags.treasury },
    };
    c.terminal.result(&view, |v| {
        format!(
            "grid '{}' is made\n  chain     {}\n  ledger    {}\n  replicas  {}\n  treasury  bot '{}' with {}\nNext: 'croft grid up'\n",
            v.grid,
            v.chain,
            v.dir.display(),
            v.replicas.iter().map(|r| r.address.to_string()).collect::<Vec<_>>().join(", "),
            v.treasury.bot,
            v.treasury.grains
        )
    })
}

/// A digest, or that of a file.
fn boot_file(what: &str) -> Result<Hash, Failure> {
    if let Ok(digest) = what.parse() {
        return Ok(digest);
    }
    let path = PathBuf::from(what);
    let unread = |source| Failure::usage(GridCommandError::BootFile { path: path.clone(), source });
    let bytes = std::fs::read(&path).map_err(unread)?;
    let pe = croft_media::pe::Pe::parse(&bytes);
    let none = |source| Failure::usage(GridCommandError::NoBootFile { path: path.clone(), source });
    Ok(Hash(pe.map_err(none)?.hash()))
}

/// One address for each replica: the same machine, one port after the other.
fn addresses(first: SocketAddr, count: u8) -> Result<Vec<SocketAddr>, Failure> {
    (0..u16::from(count))
        .map(|n| {
            let port = first.port().checked_add(n);
            let port = port.ok_or_else(|| Failure::usage(GridCommandError::Ports { first, count }))?;
            Ok(SocketAddr::new(first.ip(), port))
        })
        .collect()
}

/// Where clients on this machine find what listens there.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

impl From<InitError> for Failure {
    fn from(error: InitError) -> Self {
        Self::failed(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::failed(error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::failed(error)
    }
}

#[derive(Serialize)]
struct ReplicaView {
    ready: bool,
    grid: Name,
    chain: ChainId,
    replica: PublicKey,
    listen: SocketAddr,
}

pub(super) async fn up(c: &mut Context<'_>, flags: &GridUpFlags) -> Result<(), Failure> {
    let pin = c.pin()?;
    let dir = match &flags.dir {
        Some(dir) => dir.clone(),
        None => c.home.ledger_dir(&pin.name)?.unwrap_or_else(|| c.home.grid_dir(&pin.name).join("ledger")),
    };
    let files = replica_files(&dir);
    if files.is_empty() {
        return Err(Failure::not_found(GridCommandError::NotOurs { grid: pin.name, dir }));
    }
    let count = files.len();
    let chosen = match flags.replica {
        None => files,
        Some(n) => {
            let index = usize::from(n).checked_sub(1);
            let file = index.and_then(|index| files.into_iter().nth(index));
            let no_such =
                || GridCommandError::NoSuchReplica { grid: pin.name.clone(), dir: dir.clone(), count };
            vec![file.ok_or_else(|| Failure::usage(no_such()))?]
        }
    };
    if flags.listen.is_some() && chosen.len() > 1 {
        return Err(Failure::usage(GridCommandError::ListenOfMany { count }));
    }
    let mut all = Vec::with_capacity(chosen.len());
    for file in chosen {
        match start(c, &pin, &dir, &file, flags.listen).await {
            Ok(running) => all.push(running),
            Err(failure) => {
                stop_all(all).await;
                return Err(failure);
            }
        }
    }
    let ended = futures_util::future::select_all(all.iter_mut().map(|running| Box::pin(running.ended())));
    let by_itself = tokio::select! {
        () = c.stop.wait() => false,
        _ = ended => true,
    };
    stop_all(all).await;
    if by_itself {
        return Err(Failure::failed(GridCommandError::Ended { grid: pin.name }));
    }
    Ok(())
}

/// The configurations of a grid's replicas, in order.
fn replica_files(dir: &Path) -> Vec<PathBuf> {
    let one = dir.join("replica.toml");
    if one.is_file() {
        return vec![one];
    }
    (0..limits::VALIDATORS)
        .map(|index| replica_dir(dir, index, limits::VALIDATORS).join("replica.toml"))
        .take_while(|file| file.is_file())
        .collect()
}

async fn start(
    c: &mut Context<'_>,
    pin: &GridPin,
    dir: &Path,
    file: &Path,
    listen: Option<SocketAddr>,
) -> Result<Running, Failure> {
    let mut config = ReplicaConfig::load(file)?;
    let found = config.genesis.chain_id();
    if found != pin.chain {
        let (grid, dir) = (pin.name.clone(), dir.to_owned());
        let error = GridCommandError::OtherChain { grid, dir, found, expected: pin.chain };
        return Err(Failure::failed(error));
    }
    if let Some(listen) = listen {
        config.listen = listen;
    }
    let running = Replica::start(config).await?;
    let view = ReplicaView {
        ready: true,
        grid: pin.name.clone(),
        chain: pin.chain,
        replica: running.key(),
        listen: running.address(),
    };
    c.terminal.item(&view, |r| {
        format!("ready: grid {} on {}, chain {}, replica {}", r.grid, r.listen, r.chain, r.replica)
    })?;
    Ok(running)
}

async fn stop_all(all: Vec<Running>) {
    for running in all {
        running.stop().await;
    }
}

#[derive(Serialize)]
struct StatusView {
    grid: Name,
    chain: ChainId,
    height: u64,
    header: Hash,
    time_ms: u64,
    age_ms: u64,
    records: u64,
    validators: Vec<Validator>,
    replicas: Vec<ReplicaStatus>,
}

/// One replica as it describes itself: nothing of this is proved.
#[derive(Serialize)]
struct ReplicaStatus {
    address: SocketAddr,
    key: PublicKey,
    #[serde(flatten)]
    said: Said,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Said {
    Nothing {
        trouble: String,
    },
    Status {
        height: u64,
        /// Blocks behind the highest of all.
        lag: u64,
        waiting: u32,
        connections: u32,
        blob_bytes: u64,
        kept: Kept,
        #[serde(flatten)]
        agreement: Option<Agreement>,
        /// What we have against it: it lied, or its answers are of no use.
        #[serde(skip_serializing_if = "Option::is_none")]
        problem: Option<String>,
    },
}

/// Asks every replica of the pin at the same time; one that is away must not hide the others.
async fn ask_all(grid: &Grid) -> Vec<ReplicaStatus> {
    let views = grid.verified().unproved().replicas().await;
    let highest = views.iter().filter_map(|view| view.status.as_ref()).map(|s| s.height).max();
    let highest = highest.unwrap_or_default();
    let view = |view: Seen| {
        let said = match view.status {
            Some(status) => Said::Status {
                height: status.height,
                lag: highest - status.height,
                waiting: status.waiting,
                connections: status.connections,
                blob_bytes: status.blob_bytes,
                kept: status.kept,
                agreement: status.agreement,
                problem: view.problem,
            },
            None => Said::Nothing { trouble: view.problem.unwrap_or_else(|| "it says nothing".to_owned()) },
        };
        ReplicaStatus { address: view.replica.address, key: view.replica.key, said }
    };
    let mut all: Vec<ReplicaStatus> = views.into_iter().map(view).collect();
    let pinned = &grid.pin().replicas;
    all.sort_by_key(|replica| pinned.iter().position(|p| p.key == replica.key));
    all
}

impl Said {
    fn show(&self) -> String {
        let (height, lag, waiting, connections, blob_bytes, kept, agreement, problem) = match self {
            Self::Nothing { trouble } => return format!("away: {trouble}"),
            Self::Status { height, lag, waiting, connections, blob_bytes, kept, agreement, problem } => {
                (height, lag, waiting, connections, blob_bytes, kept, agreement, problem)
            }
        };
        let blobs = croft_protocol::units::show_bytes(*blob_bytes);
        let mut text = format!(
            "block {height} ({}), {waiting} waiting, {connections} connections, {blobs} of blobs, \
             headers from {}, proofs from {}",
            if *lag == 0 { "level".to_owned() } else { format!("{lag} behind") },
            kept.headers,
            kept.proofs
        );
        if let Some(problem) = problem {
            let _ = write!(text, "\n              not used: {problem}");
        }
        let Some(agreement) = agreement else { return text };
        let linked = agreement.peers.iter().filter(|peer| peer.connected).count();
        let role = if agreement.validator { "validator" } else { "observer" };
        let _ = write!(text, ", {role}, {linked} of {} peers linked", agreement.peers.len());
        if let Some((height, round)) = agreement.deciding {
            let _ = write!(text, ", deciding block {height} in round {round}");
        }
        if agreement.evidence > 0 {
            let _ = write!(text, ", {} proofs of misbehaviour", agreement.evidence);
        }
        if let Some(reason) = &agreement.not_signing {
            let _ = write!(text, "\n              signs nothing: {reason}");
        }
        if let Some(reason) = &agreement.trouble {
            let _ = write!(text, "\n              trouble: {reason}");
        }
        text
    }
}

pub(super) async fn status(c: &mut Context<'_>) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let tip = grid.tip().await?;
    let replicas = ask_all(&grid).await;
    let view = StatusView {
        grid: grid.name().clone(),
        chain: tip.header().chain,
        height: tip.height(),
        header: tip.hash(),
        time_ms: tip.time_ms(),
        age_ms: now_ms().saturating_sub(tip.time_ms()),
        records: tip.header().log_size,
        // The header names their hash; the light client has checked that these are they.
        validators: grid.validators(),
        replicas,
    };
    grid.close().await;
    c.terminal.result(&view, |s| {
        let mut text = format!(
            "grid '{}' is at block {}, {} old, verified\n  chain       {}\n  header      {}\n  records     {}\n  validators  {}\n",
            s.grid,
            s.height,
            show_duration(s.age_ms / 1000),
            s.chain,
            s.header,
            s.records,
            s.validators.iter().map(|v| v.key.short()).collect::<Vec<_>>().join(", "),
        );
        for replica in &s.replicas {
            let _ = writeln!(text, "  replica     {} at {}: {}", replica.key.short(), replica.address, replica.said.show());
        }
        text
    })
}

#[derive(Serialize)]
struct Joined {
    grid: Name,
    chain: ChainId,
    validators: Hash,
    replicas: Vec<ReplicaAddress>,
}

pub(super) fn join(c: &mut Context<'_>, path: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::failed(GridCommandError::ReadPin { path: path.to_owned(), source });
    let bad = |reason: String| Failure::usage(GridCommandError::BadPin { path: path.to_owned(), reason });
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(PIN_BYTES).read_to_string(&mut text).map_err(failed)?;
    let pin: GridPin = toml::from_str(&text).map_err(|e| bad(e.message().to_owned()))?;
    if pin.replicas.is_empty() {
        return Err(bad("it names no replica".to_owned()));
    }
    c.home.add_grid(&pin)?;
    let joined =
        Joined { grid: pin.name, chain: pin.chain, validators: pin.validators, replicas: pin.replicas };
    c.terminal.result(&joined, |j| format!("grid '{}' is trusted\n  chain  {}\n", j.grid, j.chain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_this_machine_do_not_connect_to_an_unspecified_address() {
        let at = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(at("0.0.0.0:4600"), "127.0.0.1:4600");
        assert_eq!(at("[::]:4600"), "[::1]:4600");
        assert_eq!(at("192.0.2.1:4600"), "192.0.2.1:4600");
    }
}
