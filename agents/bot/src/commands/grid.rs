//! `croft grid`: making a grid, running its replica in the foreground, looking at it, trusting another's.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use croft_protocol::boot::{GridPin, ReplicaAddress};
use croft_protocol::header::{Allocation, Validator};
use croft_protocol::{ChainId, Grains, Hash, Name, PublicKey};
use croft_replica::{ConfigError, GridPlan, InitError, Replica, ReplicaConfig, StartError, init_grid};
use serde::Serialize;

use super::Context;
use crate::exit::Failure;
use crate::flags::{GridInitFlags, GridUpFlags};
use crate::grid::now_ms;
use crate::home::HomeError;
use crate::terminal::show_duration;

/// A pin is a few hundred bytes.
const PIN_BYTES: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
enum GridCommandError {
    #[error("port 0 is another one at each start, but clients pin it: choose one, such as 127.0.0.1:4600")]
    PortZero,
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
    replica: PublicKey,
    listen: SocketAddr,
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
    let treasury = match c.home.bot(&flags.treasury_bot) {
        Ok(key) => key,
        Err(HomeError::NoBot { .. }) => c.home.new_treasury(&flags.treasury_bot)?,
        Err(error) => return Err(error.into()),
    };
    let allocation =
        Allocation { name: flags.treasury_bot.clone(), bot: treasury.public(), grains: flags.treasury };
    let plan = GridPlan {
        name: flags.name.clone(),
        time_ms: now_ms(),
        allocations: vec![allocation],
        listen: flags.listen,
    };
    let new = init_grid(&dir, plan)?;
    let pin = GridPin {
        name: flags.name.clone(),
        chain: new.genesis.chain_id(),
        validators: new.genesis.validators.hash(),
        replicas: vec![ReplicaAddress { address: reachable(flags.listen), key: new.validator.public() }],
    };
    c.home.keep_ledger_dir(&flags.name, &dir)?;
    c.home.add_grid(&pin)?;
    let view = NewGridView {
        grid: flags.name.clone(),
        chain: pin.chain,
        validators: pin.validators,
        replica: new.validator.public(),
        listen: flags.listen,
        dir,
        treasury: Treasury { bot: flags.treasury_bot.clone(), id: treasury.public(), grains: flags.treasury },
    };
    c.terminal.result(&view, |v| {
        format!(
            "grid '{}' is made\n  chain     {}\n  ledger    {}\n  treasury  bot '{}' with {}\nNext: 'croft grid up'\n",
            v.grid,
            v.chain,
            v.dir.display(),
            v.treasury.bot,
            v.treasury.grains
        )
    })
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
    let file = dir.join("replica.toml");
    if !file.is_file() {
        return Err(Failure::not_found(GridCommandError::NotOurs { grid: pin.name, dir }));
    }
    let mut config = ReplicaConfig::load(&file)?;
    let found = config.genesis.chain_id();
    if found != pin.chain {
        let error = GridCommandError::OtherChain { grid: pin.name, dir, found, expected: pin.chain };
        return Err(Failure::failed(error));
    }
    if let Some(listen) = flags.listen {
        config.listen = listen;
    }
    let mut running = Replica::start(config).await?;
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
    tokio::select! {
        () = c.stop.wait() => {}
        () = running.ended() => {
            running.stop().await;
            return Err(Failure::failed(GridCommandError::Ended { grid: pin.name }));
        }
    }
    running.stop().await;
    Ok(())
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
    replica: ReplicaAddress,
    replicas: usize,
    connections: u32,
    waiting: u32,
    blob_bytes: u64,
}

pub(super) async fn status(c: &mut Context<'_>) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let tip = grid.tip().await?;
    let said = grid.status_unproved().await?;
    let replica = grid.client().current().await;
    let view = StatusView {
        grid: grid.name().clone(),
        chain: tip.header().chain,
        height: tip.height(),
        header: tip.hash(),
        time_ms: tip.time_ms(),
        age_ms: now_ms().saturating_sub(tip.time_ms()),
        records: tip.header().log_size,
        // The header names their hash; the light client has checked that these are they.
        validators: grid.validators().await,
        replica: replica.unwrap_or_else(|| grid.pin().replicas[0].clone()),
        replicas: grid.pin().replicas.len(),
        connections: said.connections,
        waiting: said.waiting,
        blob_bytes: said.blob_bytes,
    };
    grid.close().await;
    c.terminal.result(&view, |s| {
        format!(
            "grid '{}' is at block {}, {} old, verified\n  chain       {}\n  header      {}\n  records     {}\n  validators  {}\n  replica     {} ({}), {} connections, {} commands waiting, {} of blobs\n",
            s.grid,
            s.height,
            show_duration(s.age_ms / 1000),
            s.chain,
            s.header,
            s.records,
            s.validators.iter().map(|v| v.key.short()).collect::<Vec<_>>().join(", "),
            s.replica.address,
            s.replica.key.short(),
            s.connections,
            s.waiting,
            croft_protocol::units::show_bytes(s.blob_bytes)
        )
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
