//! `croft farm new` and `croft farm nodes`: opening a farm, what its machines boot with, what they are.

use std::path::{Path, PathBuf};

use croft_protocol::api::{FarmQuery, NodeQuery, Query, RefusedNode};
use croft_protocol::boot::{BootConfig, FarmJoin, GridPin, NodeSettings};
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::keys::Domain;
use croft_protocol::record::{Draining, FarmBody, TrustClass};
use croft_protocol::{
    BotId, Capacity, Command, FarmId, Hash, Kind, Name, NodeId, NodeTrouble, PriceList, PublicKey,
    TrustPolicy,
};
use serde::Serialize;

use super::show::{self, BotNames};
use super::{Acting, CommandError, Context};
use crate::exit::Failure;
use crate::files;
use crate::grid::{Grid, GridError, Node};
use crate::plan::FarmNew;
use crate::terminal::{printable, push, show_duration, show_time, table};

#[derive(Debug, thiserror::Error)]
enum FarmError {
    #[error(
        "farm '{farm}' belongs to bot '{owner}', not to '{bot}': choose another name, or the owner with --bot"
    )]
    NotOurs { farm: Name, owner: String, bot: Name },
    #[error(
        "grid '{grid}' has {replicas} replicas, but {given} --replica-address were given: give one for each, in the order of the pin"
    )]
    ReplicaAddresses { grid: Name, replicas: usize, given: usize },
    #[error("{path} exists and is no boot configuration: choose another file with --boot-config")]
    NotBootConfig { path: PathBuf },
    #[error("can't write the boot configuration {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the kernel gives no randomness")]
    Randomness(#[source] getrandom::Error),
    #[error(
        "farm '{farm}' is not on the ledger although the command was final: look with 'croft history {farm} --kind farm'"
    )]
    NotMade { farm: Name },
    #[error(
        "bot '{bot}' has no farm on grid '{grid}': open one with 'croft farm new', or see all with --all"
    )]
    NoFarms { bot: Name, grid: Name },
}

#[derive(Serialize)]
struct NewFarm {
    farm: Name,
    id: FarmId,
    owner: Name,
    country: String,
    region: Option<Name>,
    prices: PriceList,
    created: bool,
    boot_config: PathBuf,
    join_expires_ms: u64,
}

pub(super) async fn new(c: &mut Context<'_>, new: FarmNew) -> Result<(), Failure> {
    let acting = c.acting()?;
    let replicas = acting.grid.pin().replicas.len();
    let given = new.replica_addresses.len();
    if given != 0 && given != replicas {
        let grid = acting.grid.name().clone();
        return Err(Failure::usage(FarmError::ReplicaAddresses { grid, replicas, given }));
    }
    let path = new
        .boot_config
        .clone()
        .unwrap_or_else(|| c.home.root().join("farms").join(new.name.as_str()).join("boot.toml"));
    check_replaceable(&path)?;
    acting.must_be_registered().await?;

    let (id, farm, created) = open_farm(&acting, &new).await?;
    let place = (&new.country, &new.region);
    if !created && (farm.prices != new.prices || (&farm.country, &farm.region) != place) {
        c.note(&format!("farm '{}' exists: its prices and place stay as they are", new.name));
    }
    let join_expires_ms = acting.grid.tip().await?.time_ms().saturating_add(new.valid_s.saturating_mul(1000));
    let config = boot_config(&acting, &new, id, join_expires_ms)?;
    for replica in config.grid.replicas.iter().filter(|r| r.address.ip().is_loopback()) {
        c.note(&format!(
            "a machine can't reach the replica at {}: give its address from there with --replica-address",
            replica.address
        ));
    }
    write_private(&path, &config.to_toml())?;
    acting.grid.close().await;
    let shown = NewFarm {
        farm: new.name,
        id,
        owner: acting.name.clone(),
        country: farm.country,
        region: farm.region,
        prices: farm.prices,
        created,
        boot_config: std::path::absolute(&path).unwrap_or(path),
        join_expires_ms,
    };
    c.terminal.result(&shown, |f| {
        format!(
            "farm '{}' of bot '{}' {}\n  boot configuration  {}\n  machines may join until {}\nNext: 'croft farm serve --bot {}', and boot a machine with that file.\n",
            f.farm,
            f.owner,
            if f.created { "is open" } else { "was open already" },
            f.boot_config.display(),
            show_time(f.join_expires_ms),
            f.owner
        )
    })
}

/// The farm, made if it is not there.
async fn open_farm(acting: &Acting, new: &FarmNew) -> Result<(FarmId, FarmBody, bool), Failure> {
    let found = acting.grid.farm_named(&new.name).await?;
    let created = found.is_none();
    let (id, farm) = if let Some(found) = found {
        found
    } else {
        let (name, country, region) = (new.name.clone(), new.country.clone(), new.region.clone());
        let command = Command::CreateFarm { name, country, region, prices: new.prices };
        acting.grid.submit(&acting.key, &command).await?;
        acting
            .grid
            .farm_named(&new.name)
            .await?
            .ok_or_else(|| Failure::failed(FarmError::NotMade { farm: new.name.clone() }))?
    };
    if farm.owner != acting.id() {
        let owner = BotNames::default().name(&acting.grid, farm.owner).await?;
        let error = FarmError::NotOurs { farm: new.name.clone(), owner, bot: acting.name.clone() };
        return Err(Failure::refused(error));
    }
    Ok((id, farm, created))
}

fn boot_config(acting: &Acting, new: &FarmNew, farm: FarmId, expires_ms: u64) -> Result<BootConfig, Failure> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|e| Failure::failed(FarmError::Randomness(e)))?;
    let join = Join { farm, expires_ms, nonce };
    let pin = acting.grid.pin();
    let signature = acting.key.sign_as_bot(Domain::JOIN, &pin.chain, &join);
    let mut replicas = pin.replicas.clone();
    for (replica, address) in replicas.iter_mut().zip(&new.replica_addresses) {
        replica.address = *address;
    }
    Ok(BootConfig {
        grid: GridPin { replicas, ..pin.clone() },
        farm: FarmJoin::new(new.name.clone(), &SignedJoin { join, signature }),
        node: NodeSettings { name: new.node_name.clone(), public_addresses: new.public_addresses.clone() },
        links: Vec::new(),
        clock: croft_protocol::boot::ClockSettings::default(),
    })
}

/// An older boot configuration may be replaced, nothing else.
fn check_replaceable(path: &Path) -> Result<(), Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) if BootConfig::parse(&text).is_ok() => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(Failure::usage(FarmError::NotBootConfig { path: path.to_owned() })),
    }
}

/// Written aside and renamed, for its owner only: it holds a permission.
fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |source| Failure::failed(FarmError::Write { path: path.to_owned(), source });
    files::aside(path, text.as_bytes(), true).and_then(|file| file.replace(path, true)).map_err(failed)
}

#[derive(Serialize)]
struct Nodes {
    nodes: Vec<NodeView>,
    /// Machines that wanted to register and were not let, as replicas say.
    refused: Vec<RefusedView>,
}

#[derive(Serialize)]
struct RefusedView {
    node: Name,
    id: NodeId,
    farm: Name,
    reason: String,
    time_ms: u64,
    count: u32,
}

#[derive(Serialize)]
struct NodeView {
    node: Name,
    id: NodeId,
    farm: Name,
    country: String,
    region: Option<Name>,
    online: bool,
    /// It takes nothing new, and everybody is asked to leave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    draining: Option<Draining>,
    trust: TrustClass,
    /// Why it is not worth more.
    trust_reasons: Vec<String>,
    /// What is wrong with the machine and what to do, in its own words.
    troubles: Vec<NodeTrouble>,
    /// When the last quote was made that the trust stands on.
    #[serde(skip_serializing_if = "Option::is_none")]
    quoted_ms: Option<u64>,
    /// Whether that is longer ago than the grid's policy allows.
    stale: bool,
    #[serde(skip)]
    age: String,
    /// Authenticode SHA-256 of the boot file that runs, where a TPM vouches for one that is known.
    boot_file: Option<Hash>,
    release: String,
    capacity_version: u64,
    total: Capacity,
    used: Capacity,
    free: Capacity,
    contracts: usize,
    addresses: Vec<String>,
    cpu_model: String,
    threads: u32,
    vendor: String,
    product: String,
    session: u64,
    height: u64,
}

pub(super) async fn nodes(c: &mut Context<'_>, name: Option<Name>, all: bool) -> Result<(), Failure> {
    let grid;
    let farms = match (name, all) {
        (Some(name), _) => {
            grid = c.reading_grid()?;
            let Some(farm) = grid.farm_named(&name).await? else {
                let error = CommandError::NoFarm { farm: name, grid: grid.name().clone() };
                return Err(Failure::not_found(error));
            };
            vec![farm]
        }
        (None, true) => {
            grid = c.reading_grid()?;
            farms_of(&grid, None).await?
        }
        (None, false) => {
            let acting = c.acting()?;
            let farms = farms_of(&acting.grid, Some(acting.id())).await?;
            if farms.is_empty() {
                let error = FarmError::NoFarms { bot: acting.name, grid: acting.grid.name().clone() };
                return Err(Failure::not_found(error));
            }
            grid = acting.grid;
            farms
        }
    };
    let (mut nodes, mut refused) = (Vec::new(), Vec::new());
    let (policy, now_ms) = (grid.trust_policy().await?, grid.tip().await?.time_ms());
    for (id, farm) in farms {
        // Another's farm is another's business, and asking about all of them takes long.
        if !all {
            refused.extend(refused_of(&grid, id, &farm).await?);
        }
        let found = nodes_of(&grid, id).await?;
        let keys: Vec<PublicKey> = found.iter().map(|n| n.id).collect();
        let online = grid.presence_unproved(&keys).await?;
        nodes.extend(
            found.into_iter().zip(online).map(|(node, online)| view(node, &farm, online, (&policy, now_ms))),
        );
    }
    nodes.sort_by(|a, b| (&a.farm, &a.node).cmp(&(&b.farm, &b.node)));
    grid.close().await;
    c.terminal.result(&Nodes { nodes, refused }, |n| nodes_text(&n.nodes) + &refused_text(&n.refused))
}

/// Machines that replicas saw refused, but for those that are registered since.
async fn refused_of(grid: &Grid, id: FarmId, farm: &FarmBody) -> Result<Vec<RefusedView>, GridError> {
    let said = grid.refused_unproved(id).await;
    let ids: Vec<NodeId> = said.iter().map(|one| one.node).collect();
    let known = grid.nodes(&ids).await?;
    let since = |one: &RefusedNode| known.iter().any(|n| n.id == one.node && n.record.time_ms >= one.time_ms);
    let views = said.into_iter().filter(|one| !since(one)).map(|one| RefusedView {
        node: one.name,
        id: one.node,
        farm: farm.name.clone(),
        reason: one.reason,
        time_ms: one.time_ms,
        count: one.count,
    });
    Ok(views.collect())
}

fn refused_text(refused: &[RefusedView]) -> String {
    let mut text = String::new();
    for one in refused {
        let (id, time) = (one.id.short(), show_time(one.time_ms));
        let reason = printable(&one.reason);
        push!(
            text,
            "machine {id} ('{}') of farm {} was refused {} times, last {time}: {reason}\n",
            one.node,
            one.farm,
            one.count
        );
    }
    text
}

/// Farms of an owner or all, as a replica finds them, each proved.
pub(super) async fn farms_of(
    grid: &Grid,
    owner: Option<BotId>,
) -> Result<Vec<(FarmId, FarmBody)>, GridError> {
    let mut farms = Vec::new();
    for id in grid.find_unproved(&Query::Farms(FarmQuery { owner, ..FarmQuery::default() })).await? {
        if id.kind != Kind::Farm {
            continue;
        }
        let id = FarmId(id.id);
        if let Some(farm) = grid.farm(id).await?.filter(|f| owner.is_none_or(|o| f.owner == o)) {
            farms.push((id, farm));
        }
    }
    farms.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    farms.dedup();
    Ok(farms)
}

/// Nodes of a farm, as a replica finds them, each proved.
async fn nodes_of(grid: &Grid, farm: FarmId) -> Result<Vec<Node>, GridError> {
    let query = Query::Nodes(NodeQuery { farm: Some(farm), ..NodeQuery::default() });
    let mut ids: Vec<NodeId> = grid
        .find_unproved(&query)
        .await?
        .into_iter()
        .filter(|id| id.kind == Kind::Node)
        .map(|id| PublicKey(id.id.0))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let mut nodes = grid.nodes(&ids).await?;
    nodes.retain(|n| n.body.farm == farm);
    Ok(nodes)
}

fn view(node: Node, farm: &FarmBody, online: bool, (policy, now_ms): (&TrustPolicy, u64)) -> NodeView {
    let free = node.capacity.free();
    let boot_file = node.trust.as_ref().and_then(|trust| trust.release);
    // `plain` promises nothing that could grow old.
    let quoted = node.trust.as_ref().filter(|trust| trust.class > TrustClass::Plain);
    let quoted_ms = quoted.map(|trust| trust.quoted_ms);
    NodeView {
        node: node.body.name,
        id: node.id,
        farm: farm.name.clone(),
        country: farm.country.clone(),
        region: farm.region.clone(),
        online,
        draining: node.draining,
        trust: node.body.trust,
        trust_reasons: node.trust.map(|trust| trust.reasons).unwrap_or_default(),
        troubles: node.body.troubles,
        quoted_ms,
        stale: quoted_ms.is_some_and(|quoted_ms| policy.is_stale(quoted_ms, now_ms)),
        age: quoted_ms.map_or_else(String::new, |at| show_duration(now_ms.saturating_sub(at) / 1000)),
        boot_file,
        release: node.body.release,
        capacity_version: node.capacity.version,
        total: node.capacity.total,
        used: node.capacity.used,
        free,
        contracts: node.contracts.len(),
        addresses: node.body.addresses,
        cpu_model: node.body.hardware.cpu_model,
        threads: node.body.hardware.threads,
        vendor: node.body.hardware.vendor,
        product: node.body.hardware.product,
        session: node.body.session,
        height: node.record.height,
    }
}

fn nodes_text(nodes: &[NodeView]) -> String {
    if nodes.is_empty() {
        return "no nodes yet: boot a machine with the boot configuration of 'croft farm new'\n".to_owned();
    }
    let row = |n: &NodeView| {
        vec![
            n.node.to_string(),
            n.farm.to_string(),
            n.country.clone(),
            match (n.online, n.draining) {
                (true, Some(_)) => "draining",
                (true, None) => "online",
                (false, _) => "offline",
            }
            .to_owned(),
            match (n.quoted_ms, n.stale) {
                (Some(_), false) => format!("{} {} ago", show::trust(n.trust), n.age),
                (Some(_), true) => format!("{} {} ago, stale", show::trust(n.trust), n.age),
                (None, _) => show::trust(n.trust).to_owned(),
            },
            printable(&n.release),
            format!("{} / {}", show::cpus(n.free.cpu_millis), show::cpus(n.total.cpu_millis)),
            show::of_total(&n.free, &n.total, |c| c.memory_bytes),
            show::of_total(&n.free, &n.total, |c| c.ssd_bytes),
            show::of_total(&n.free, &n.total, |c| c.hdd_bytes),
            n.contracts.to_string(),
            printable(&n.addresses.join(" ")),
        ]
    };
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    let headings = [
        "NODE",
        "FARM",
        "IN",
        "STATE",
        "TRUST",
        "RELEASE",
        "CPU FREE",
        "MEMORY FREE",
        "SSD FREE",
        "HDD FREE",
        "CONTRACTS",
        "ADDRESSES",
    ];
    let mut text = table(&headings, &rows);
    for n in nodes {
        if n.stale {
            push!(
                text,
                "{} was {} {} ago, which is stale: it quotes anew every few hours while it runs, so look at its TPM or restart it\n",
                n.node,
                show::trust(n.trust),
                n.age
            );
        }
        for reason in &n.trust_reasons {
            push!(text, "{} is {}: {}\n", n.node, show::trust(n.trust), printable(reason));
        }
        for trouble in &n.troubles {
            push!(text, "{} {}\n", n.node, show::trouble(trouble));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_boot_configuration_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        assert!(check_replaceable(&path).is_ok());
        std::fs::write(&path, "my notes").unwrap();
        let error = check_replaceable(&path).unwrap_err().message();
        assert!(error.contains("exists and is no boot configuration: choose another file"), "{error}");
    }
}
