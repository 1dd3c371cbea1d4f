//! `croft deploy`: from a file to a workload that runs.
//!
//! ```text
//!   file ──resolve──> workload ──candidates, rank──> a node and a price        (--dry-run ends here)
//!     ──upload──> blobs at the replica ──propose──> farmer's signature ──agree──> contract on the ledger
//!     ──wait──> running, or why not
//! ```
//! Nothing is paid before the farmer signed and the ledger took both signatures. When a farmer or the ledger
//! says no for a reason that another node does not share, the next best node is tried. It must never agree to
//! terms other than those it showed: node, rate and duration come from the ranking, and the farmer's signature
//! is over exactly these.

mod candidates;
pub(super) mod upload;
mod wait;

use std::time::Duration;

use croft_market::{Demand, Excluded, Fit, Matches, rank};
use croft_protocol::contract::Quorum;
use croft_protocol::image::ImageConfig;
use croft_protocol::keys::{BadSignature, Domain};
use croft_protocol::peer::{FarmRequest, FarmResponse};
use croft_protocol::seal::SealError;
use croft_protocol::{
    Command, ContractId, Grains, Hash, Name, NodeId, Rate, Rejection, SignedTerms, Terms, seal,
};
use serde::Serialize;

use super::show::{self, PortView};
use super::{Acting, Context, contracts, quorum};
use crate::deploy_file::{DeployFile, DeployFileError, ImageDefaults, ResolveError, Resolved};
use crate::exit::Failure;
use crate::flags::DeployFlags;
use crate::grid::{Contract, GridError, now_ms};
use crate::home::{Home, HomeError};
use crate::image::BlobError;
use crate::peers::{self, PeerProblem};
use crate::terminal::push;

/// A farmer signs within seconds; the terms are void soon after, so that nobody is bound for long.
const TERMS_OPEN_MS: u64 = 5 * 60_000;
/// Nodes that are asked before we give up.
const NODES_TRIED: usize = 5;
/// Exclusions that are shown to a person; JSON has all.
const EXCLUDED_SHOWN: usize = 8;

#[derive(Debug, thiserror::Error)]
enum DeployError {
    #[error(
        "'{name}' runs already, on node '{node}': end it with 'croft stop {name}', or give this one another name"
    )]
    Exists { name: Name, node: String },
    #[error("no node of grid '{grid}' can run '{name}':{}", show_excluded(excluded))]
    NoFit { grid: Name, name: Name, excluded: Vec<Excluded> },
    #[error("there is no node on grid '{grid}' yet: farmers add them with 'croft farm new'")]
    NoNodes { grid: Name },
    #[error("none of the nodes that fit could be had:{}", list(reasons))]
    NotHad { reasons: Vec<String> },
    #[error("'{name}' can't be sealed to node '{node}'")]
    Seal { name: Name, node: Name, source: SealError },
    #[error("the farmer's bot of farm '{farm}' signed something else than the terms")]
    FarmerSignature { farm: Name, source: BadSignature },
    #[error("the resources of '{name}' exceed what can be counted: ask for less")]
    Overflow { name: Name },
    #[error("the kernel gives no randomness")]
    Randomness(#[source] getrandom::Error),
    #[error("contract '{name}' is not on the ledger although the command was final: look with 'croft ps'")]
    NotAgreed { name: Name },
}

fn show_excluded(excluded: &[Excluded]) -> String {
    let mut lines: Vec<String> = excluded
        .iter()
        .take(EXCLUDED_SHOWN)
        .map(|e| {
            let reasons: Vec<String> = e.reasons.iter().map(ToString::to_string).collect();
            format!("node '{}' of farm '{}': {}", e.name, e.farm_name, reasons.join("; "))
        })
        .collect();
    if excluded.len() > EXCLUDED_SHOWN {
        lines.push(format!("and {} more nodes", excluded.len() - EXCLUDED_SHOWN));
    }
    list(&lines)
}

fn list(lines: &[String]) -> String {
    lines.iter().fold(String::new(), |text, line| text + "\n  - " + line)
}

#[derive(Serialize)]
struct Deployed {
    name: Name,
    #[serde(skip_serializing_if = "Option::is_none")]
    contract: Option<ContractId>,
    node: Name,
    node_id: NodeId,
    farm: Name,
    country: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    height: Option<u64>,
    /// Grains per second.
    rate: Rate,
    /// For the whole duration.
    price: Grains,
    /// Of it with the agreement.
    deposit: Grains,
    duration_s: u64,
    ports: Vec<PortView>,
    images: Vec<UsedImage>,
    excluded: Vec<Excluded>,
    dry_run: bool,
}

#[derive(Serialize)]
struct UsedImage {
    name: String,
    manifest: Hash,
}

pub(super) async fn deploy(c: &mut Context<'_>, flags: &DeployFlags) -> Result<(), Failure> {
    let file = DeployFile::read(&flags.file).map_err(file_failure)?;
    deploy_file(c, &file, flags).await
}

/// What a deploy file means in this home.
pub(super) fn resolve(c: &Context<'_>, path: &std::path::Path) -> Result<Resolved, Failure> {
    resolve_file(c, &DeployFile::read(path).map_err(file_failure)?)
}

fn resolve_file(c: &Context<'_>, file: &DeployFile) -> Result<Resolved, Failure> {
    let images = HomeImages { home: c.home.clone() };
    let environment = c.environment;
    file.resolve(&images, &|name| environment.variable(name)).map_err(resolve_failure)
}

/// Where something is not to be placed.
pub(super) struct Not<'a> {
    pub(super) nodes: &'a std::collections::BTreeSet<NodeId>,
    /// In none but these; empty for anywhere.
    pub(super) regions_but: &'a [Name],
}

/// From a resolved file to a contract on the ledger, without waiting until it runs.
pub(super) async fn place(
    c: &mut Context<'_>,
    acting: &Acting,
    resolved: &Resolved,
    not: &Not<'_>,
) -> Result<ContractId, Failure> {
    must_not_run(acting, &resolved.name).await?;
    let quorum = quorum::resolve(&acting.grid, resolved.approval.as_ref()).await?;
    let demand = demand(acting, resolved).await?;
    let mut all = candidates::candidates(&acting.grid, &resolved.placement, &demand).await?;
    all.retain(|candidate| !not.nodes.contains(&candidate.node));
    if !not.regions_but.is_empty() {
        let mut allowed = Vec::new();
        for candidate in all {
            let farm = acting.grid.farm(candidate.farm).await?;
            if farm.and_then(|farm| farm.region).is_some_and(|region| not.regions_but.contains(&region)) {
                allowed.push(candidate);
            }
        }
        all = allowed;
    }
    if all.is_empty() {
        return Err(Failure::not_found(DeployError::NoNodes { grid: acting.grid.name().clone() }));
    }
    let matches = rank(&all, &demand);
    if matches.fits.is_empty() {
        return Err(no_fit(acting, resolved, matches));
    }
    let store = c.home.blobs();
    for image in &resolved.images {
        upload::upload(&acting.grid, &store, image, &mut *c.progress()).await?;
    }
    agree(c, acting, resolved, &quorum, &matches).await.map(|(_, id)| id)
}

/// The same of a file that was read, or never was one.
pub(super) async fn deploy_file(
    c: &mut Context<'_>,
    file: &DeployFile,
    flags: &DeployFlags,
) -> Result<(), Failure> {
    let resolved = resolve_file(c, file)?;
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    must_not_run(&acting, &resolved.name).await?;

    let quorum = quorum::resolve(&acting.grid, resolved.approval.as_ref()).await?;
    let demand = demand(&acting, &resolved).await?;
    let candidates = candidates::candidates(&acting.grid, &resolved.placement, &demand).await?;
    if candidates.is_empty() {
        return Err(Failure::not_found(DeployError::NoNodes { grid: acting.grid.name().clone() }));
    }
    let matches = rank(&candidates, &demand);
    let Some(best) = matches.fits.first().cloned() else { return Err(no_fit(&acting, &resolved, matches)) };
    let addresses = |node: NodeId| {
        candidates.iter().find(|c| c.node == node).map(|c| c.addresses.clone()).unwrap_or_default()
    };
    if flags.dry_run {
        let shown = deployed(&resolved, &best, addresses(best.node), &matches.excluded, None, true);
        acting.grid.close().await;
        return c.terminal.result(&shown, |d| dry_run_text(d, &matches));
    }

    let store = c.home.blobs();
    for image in &resolved.images {
        upload::upload(&acting.grid, &store, image, &mut *c.progress()).await?;
    }
    let (fit, id) = agree(c, &acting, &resolved, &quorum, &matches).await?;
    let mut contract = acting
        .grid
        .contract(id)
        .await?
        .ok_or_else(|| Failure::failed(DeployError::NotAgreed { name: resolved.name.clone() }))?;
    c.note(&format!(
        "agreed with farm '{}' on node '{}' in block {}: {} for {}",
        fit.farm_name,
        fit.name,
        contract.record.height,
        fit.price,
        crate::terminal::show_duration(resolved.terms.duration_s)
    ));
    if !flags.detach {
        let peer = peers::NodePeer { id: fit.node, name: fit.name.clone() };
        let limit = Duration::from_secs(flags.timeout);
        contract = wait::until_running(&acting.grid, &peer, contract, limit, &mut *c.progress()).await?;
    }
    acting.grid.close().await;
    let shown = deployed(&resolved, &fit, addresses(fit.node), &matches.excluded, Some(&contract), false);
    c.terminal.result(&shown, deployed_text)
}

/// The name must be free: the ledger would refuse it too, but only after the farmer was asked.
async fn must_not_run(acting: &Acting, name: &Name) -> Result<(), Failure> {
    let Some(running) = contracts::running(&acting.grid, acting.id(), name).await? else { return Ok(()) };
    let node = running.body.signed.terms.node;
    let node = acting.grid.node(node).await?.map_or_else(|| node.short(), |n| n.body.name.to_string());
    Err(Failure::refused(DeployError::Exists { name: name.clone(), node }))
}

async fn demand(acting: &Acting, resolved: &Resolved) -> Result<Demand, Failure> {
    let resources = resolved
        .workload
        .resources()
        .ok_or_else(|| Failure::usage(DeployError::Overflow { name: resolved.name.clone() }))?;
    Ok(Demand {
        resources,
        ports: resolved.workload.published_ports(),
        duration_s: resolved.terms.duration_s,
        node: resolved.placement.node.clone(),
        farm: resolved.placement.farm.clone(),
        countries: resolved.placement.countries.clone(),
        trust: None,
        max_price: resolved.terms.max_price.map(Grains),
        // A part of the price is the ledger's to judge.
        funds: match resolved.terms.prepaid_s {
            None => Some(acting.grid.account(acting.id()).await?.balance),
            Some(_) => None,
        },
    })
}

fn no_fit(acting: &Acting, resolved: &Resolved, matches: Matches) -> Failure {
    use croft_market::Exclusion;
    let every = |test: fn(&Exclusion) -> bool| {
        !matches.excluded.is_empty() && matches.excluded.iter().all(|e| e.reasons.iter().any(test))
    };
    let remedy = if every(|r| matches!(r, Exclusion::Funds { .. })) {
        format!(
            "top up the wallet: whoever has grains gives some with 'croft wallet send {} GRAINS'",
            acting.name
        )
    } else if every(|r| matches!(r, Exclusion::TooDear { .. })) {
        "raise max_price under [terms], or shorten duration".to_owned()
    } else if every(|r| matches!(r, Exclusion::Offline)) {
        "wait until a machine is back online: 'croft farm nodes --all' shows which are".to_owned()
    } else if every(|r| matches!(r, Exclusion::PortTaken { .. })) {
        "publish another port".to_owned()
    } else {
        "ask for less, or widen [placement]; 'croft farm nodes --all' shows what is free".to_owned()
    };
    Failure::not_found(DeployError::NoFit {
        grid: acting.grid.name().clone(),
        name: resolved.name.clone(),
        excluded: matches.excluded,
    })
    .remedy(remedy)
}

/// Asks the farmers of the best nodes in turn until one signs and the ledger agrees.
async fn agree(
    c: &mut Context<'_>,
    acting: &Acting,
    resolved: &Resolved,
    quorum: &Quorum,
    matches: &Matches,
) -> Result<(Fit, ContractId), Failure> {
    let mut reasons = Vec::new();
    let mut last = None;
    for fit in matches.fits.iter().take(NODES_TRIED) {
        match agree_with(acting, resolved, quorum, fit).await {
            Ok(id) => return Ok((fit.clone(), id)),
            Err(failure) if failure.elsewhere => {
                let message = failure.failure.message();
                c.note(&format!("not on node '{}' of farm '{}': {message}", fit.name, fit.farm_name));
                reasons.push(format!("node '{}' of farm '{}': {message}", fit.name, fit.farm_name));
                last = Some(failure.failure);
            }
            Err(failure) => return Err(failure.failure),
        }
    }
    match last {
        // One node: its own words, and its own exit code.
        Some(only) if reasons.len() == 1 => Err(only),
        Some(last) => Err(Failure::new(last.exit, DeployError::NotHad { reasons })),
        None => Err(Failure::failed(DeployError::NotAgreed { name: resolved.name.clone() })),
    }
}

/// Why one node can't be had, and whether another might.
struct NotThisOne {
    failure: Failure,
    elsewhere: bool,
}

impl NotThisOne {
    fn anywhere(error: impl Into<Failure>) -> Self {
        Self { failure: error.into(), elsewhere: false }
    }

    fn here(error: impl Into<Failure>) -> Self {
        Self { failure: error.into(), elsewhere: true }
    }
}

async fn agree_with(
    acting: &Acting,
    resolved: &Resolved,
    quorum: &Quorum,
    fit: &Fit,
) -> Result<ContractId, NotThisOne> {
    let grid = &acting.grid;
    let node = grid
        .node(fit.node)
        .await
        .map_err(NotThisOne::anywhere)?
        .ok_or_else(|| NotThisOne::here(Failure::not_found(format!("node '{}' is gone", fit.name))))?;
    let plain = croft_protocol::encode(&resolved.workload);
    let sealed =
        seal::seal(&node.body.sealing_key, &grid.pin().chain, &fit.node, &plain).map_err(|source| {
            let (name, node) = (resolved.name.clone(), fit.name.clone());
            let too_large = matches!(source, SealError::TooLarge { .. });
            let failure = Failure::usage(DeployError::Seal { name, node, source });
            if too_large { NotThisOne::anywhere(failure) } else { NotThisOne::here(failure) }
        })?;
    let mut terms = terms(acting, resolved, fit, sealed).map_err(NotThisOne::anywhere)?;
    terms.quorum = quorum.clone();
    let id = terms.id();
    let user = acting.key.sign(Domain::TERMS, &grid.pin().chain, &terms);
    let request = FarmRequest::Propose { terms: Box::new(terms.clone()), user };
    let answer =
        peers::propose(grid, fit.farmer, &fit.farm_name, &request).await.map_err(
            |problem| match problem {
                PeerProblem::FarmerOffline { .. }
                | PeerProblem::FarmerSilent { .. }
                | PeerProblem::Frame { .. } => NotThisOne::here(problem),
                other => NotThisOne::anywhere(other),
            },
        )?;
    let farmer = match answer {
        FarmResponse::Signed { farmer } => farmer,
        FarmResponse::Refused { reason, .. } => {
            let whom = format!("the farmer's bot of farm '{}'", fit.farm_name);
            return Err(NotThisOne::here(PeerProblem::Refused { whom, reason: peers::bounded(reason) }));
        }
    };
    let signed = SignedTerms { terms, user, farmer };
    signed.verify(&grid.pin().chain).map_err(|source| {
        let farm = fit.farm_name.clone();
        NotThisOne::here(Failure::refused(DeployError::FarmerSignature { farm, source }))
    })?;
    match grid.submit(&acting.key, &Command::Agree(Box::new(signed))).await {
        Ok(_) => Ok(id),
        Err(error) if error.rejection().is_some_and(is_the_nodes) => Err(NotThisOne::here(error)),
        Err(error) => Err(NotThisOne::anywhere(error)),
    }
}

/// Whether the ledger's reason lies in the node that was chosen.
fn is_the_nodes(rejection: &Rejection) -> bool {
    matches!(
        rejection,
        Rejection::Stale { .. }
            | Rejection::Capacity { .. }
            | Rejection::PortTaken { .. }
            | Rejection::NodeFull { .. }
            | Rejection::UnknownNode { .. }
    )
}

fn terms(acting: &Acting, resolved: &Resolved, fit: &Fit, sealed: Vec<u8>) -> Result<Terms, Failure> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|e| Failure::failed(DeployError::Randomness(e)))?;
    let resources = resolved
        .workload
        .resources()
        .ok_or_else(|| Failure::usage(DeployError::Overflow { name: resolved.name.clone() }))?;
    Ok(Terms {
        name: resolved.name.clone(),
        user: acting.id(),
        farmer: fit.farmer,
        farm: fit.farm,
        node: fit.node,
        resources,
        ports: resolved.workload.published_ports(),
        rate: fit.rate,
        duration_s: resolved.terms.duration_s,
        grace_s: resolved.terms.grace_s,
        prepaid_s: resolved.terms.prepaid_s,
        capacity_version: fit.capacity_version,
        quorum: Quorum::default(),
        sealed,
        expires_ms: now_ms() + TERMS_OPEN_MS,
        nonce,
    })
}

fn deployed(
    resolved: &Resolved,
    fit: &Fit,
    addresses: Vec<String>,
    excluded: &[Excluded],
    contract: Option<&Contract>,
    dry_run: bool,
) -> Deployed {
    Deployed {
        name: resolved.name.clone(),
        contract: contract.map(|c| c.id),
        node: fit.name.clone(),
        node_id: fit.node,
        farm: fit.farm_name.clone(),
        country: fit.country.clone(),
        state: contract.map(|c| show::state(c.body.state)),
        height: contract.map(|c| c.record.height),
        rate: fit.rate,
        price: fit.price,
        deposit: resolved
            .terms
            .prepaid_s
            .and_then(|prepaid_s| fit.rate.for_seconds(prepaid_s))
            .unwrap_or(fit.price),
        duration_s: resolved.terms.duration_s,
        ports: show::ports(&resolved.workload.published_ports(), &addresses),
        images: resolved
            .images
            .iter()
            .map(|i| UsedImage { name: i.name.clone(), manifest: i.manifest })
            .collect(),
        excluded: excluded.to_vec(),
        dry_run,
    }
}

fn deployed_text(d: &Deployed) -> String {
    let state = match d.state {
        Some("active") => "runs",
        Some(state) => state,
        None => "-",
    };
    let mut text =
        format!("'{}' {state} on node '{}' of farm '{}' ({})\n", d.name, d.node, d.farm, d.country);
    for port in &d.ports {
        for url in &port.urls {
            push!(text, "  {url}\n");
        }
    }
    push!(
        text,
        "  {} are in escrow for {}; what is not used is refunded\n",
        d.deposit,
        crate::terminal::show_duration(d.deposit.0.checked_div(d.rate.0).unwrap_or(d.duration_s))
    );
    text
}

fn dry_run_text(d: &Deployed, matches: &Matches) -> String {
    let mut text = format!(
        "'{}' would run on node '{}' of farm '{}' ({})\n  price  {} for {} ({} grains per second)\n",
        d.name,
        d.node,
        d.farm,
        d.country,
        d.price,
        crate::terminal::show_duration(d.duration_s),
        d.rate.0
    );
    for other in matches.fits.iter().skip(1).take(EXCLUDED_SHOWN) {
        push!(
            text,
            "  or on node '{}' of farm '{}' ({}) for {}\n",
            other.name,
            other.farm_name,
            other.country,
            other.price
        );
    }
    for excluded in matches.excluded.iter().take(EXCLUDED_SHOWN) {
        let reasons: Vec<String> = excluded.reasons.iter().map(ToString::to_string).collect();
        push!(
            text,
            "  not on node '{}' of farm '{}': {}\n",
            excluded.name,
            excluded.farm_name,
            reasons.join("; ")
        );
    }
    text.push_str("nothing was changed\n");
    text
}

/// Images by their names in the home, or by the hashes of their manifests.
pub(super) struct HomeImages {
    pub(super) home: Home,
}

impl ImageDefaults for HomeImages {
    fn find(&self, image: &str) -> Result<(Hash, ImageConfig), String> {
        let chain = |failure: Failure| failure.message();
        let hash = if let Ok(hash) = image.parse::<Hash>() {
            hash
        } else {
            let name = Name::new(image).map_err(|e| chain(Failure::failed(e)))?;
            self.home.image(&name).map_err(|e| chain(e.into()))?.manifest
        };
        let manifest = upload::manifest(&self.home.blobs(), hash).map_err(|e| chain(e.into()))?;
        Ok((hash, manifest.config))
    }
}

fn file_failure(error: DeployFileError) -> Failure {
    match error {
        DeployFileError::Missing { .. } => Failure::not_found(error),
        DeployFileError::Read { .. } => Failure::failed(error),
        _ => Failure::usage(error),
    }
}

fn resolve_failure(error: ResolveError) -> Failure {
    match error {
        ResolveError::Image { .. } => Failure::not_found(error),
        _ => Failure::usage(error),
    }
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        Self::failed(error)
    }
}

// Errors that come from asking are the grid's, the home's or a peer's: each knows its exit code.
const _: fn(GridError) -> Failure = Failure::from;
const _: fn(HomeError) -> Failure = Failure::from;
