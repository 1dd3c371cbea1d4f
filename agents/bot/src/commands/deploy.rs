//! `croft deploy`: from a file to a workload that runs.
//!
//! ```text
//!   file ──resolve──> workload ──candidates, rank──> a node and a price        (--dry-run ends here)
//!     ──market::order::place──> offers, a question, both signatures, contract on the ledger
//!     ──wait──> running, or why not
//! ```
//! Nothing is promised before the owner said yes, or --yes for him; nothing is paid before the farmer signed and the
//! ledger took both signatures. What negotiates is in [`crate::market::order`]; here is what a person sees of it.

mod wait;

use std::time::Duration;

use croft_market::score::{Explain, NotTaken, Why};
use croft_market::{Candidate, Demand, Excluded, Matches, OrderFailure, rank};
use croft_protocol::image::ImageConfig;
use croft_protocol::{ContractId, Grains, Hash, Name, NodeId, Rate};
use croft_skills::Hook;
use serde::Serialize;

use super::show::{self, PortView};
use super::{Acting, Context, quorum};
use crate::deploy_file::{DeployFile, DeployFileError, ImageDefaults, ResolveError, Resolved, TermsFile};
use crate::exit::Failure;
use crate::flags::DeployFlags;
use crate::grid::GridError;
use crate::home::{Home, HomeError};
use crate::image::BlobError;
use crate::market::candidates::{Scope, candidates};
use crate::market::order::{self, Buyer, Choice, Limits, Placed, place};
use crate::market::{upload, why};
use crate::peers;
use crate::plan::Environment;
use crate::skills::OwnSkill;
use crate::terminal::{push, show_duration};

/// Where nobody is there to be asked.
#[derive(Debug, thiserror::Error)]
#[error(
    "nobody is at the terminal to be asked about the price: say yes with --yes, and set a limit with --max-price"
)]
struct NobodyToAsk;

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
    dry_run: bool,
    /// An earlier run began it.
    resumed: bool,
    explain: Explain,
    excluded: Vec<Excluded>,
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

/// The same of a file that was read, or never was one.
pub(super) async fn deploy_file(
    c: &mut Context<'_>,
    file: &DeployFile,
    flags: &DeployFlags,
) -> Result<(), Failure> {
    let resolved = resolve(c, file)?;
    let skill = flags.skill.as_ref().map(|name| OwnSkill::load(&c.home, name, Hook::Scoring)).transpose()?;
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    if flags.dry_run {
        return dry_run(c, &acting, &resolved, flags).await;
    }
    let quorum = quorum::resolve(&acting.grid, resolved.approval.as_ref()).await?;
    let (max_price, window_ms) = (flags.max_price, flags.window * 1000);
    let limits = Limits { max_price, window_ms, quorum, skill, ..Limits::default() };
    let (environment, home) = (c.environment, c.home.clone());
    let mut nobody = false;
    let mut says_yes = |choice: &Choice<'_>| {
        let answer = if flags.yes { Some(true) } else { agrees(environment, choice) };
        nobody |= answer.is_none();
        answer == Some(true)
    };
    let buyer = Buyer { home: &home, name: &acting.name, key: &acting.key, grid: &acting.grid };
    let placed = place(&buyer, &resolved, &limits, &mut says_yes, &mut *c.progress()).await;
    if nobody && placed.is_err() {
        return Err(Failure::usage(NobodyToAsk));
    }
    let Placed { mut contract, node, farm, explain, resumed } = placed?;
    let price = contract.body.signed.terms.price().unwrap_or_default();
    c.note(&format!(
        "agreed with farm '{}' on node '{}' in block {}: {price} for {}",
        farm.name,
        node.body.name,
        contract.record.height,
        show_duration(resolved.terms.duration_s)
    ));
    if !flags.detach {
        let peer = peers::NodePeer { id: node.id, name: node.body.name.clone() };
        let limit = Duration::from_secs(flags.timeout);
        contract = wait::until_running(&acting.grid, &peer, contract, limit, &mut *c.progress()).await?;
    }
    acting.grid.close().await;
    let shown = Deployed {
        contract: Some(contract.id),
        node: node.body.name.clone(),
        node_id: node.id,
        farm: farm.name.clone(),
        country: farm.country.clone(),
        state: Some(show::state(contract.body.state)),
        height: Some(contract.record.height),
        rate: contract.body.signed.terms.rate,
        price,
        deposit: contract.body.signed.terms.deposit().unwrap_or(price),
        resumed,
        explain,
        ..Deployed::of(&resolved, &contract.body.signed.terms.ports, &node.body.addresses, node.id)
    };
    c.terminal.result(&shown, |d| deployed_text(d, flags.explain))
}

/// Reads a deploy file and fills in what it leaves open.
pub(super) fn read(c: &Context<'_>, file: &std::path::Path) -> Result<Resolved, Failure> {
    resolve(c, &DeployFile::read(file).map_err(file_failure)?)
}

fn resolve(c: &Context<'_>, file: &DeployFile) -> Result<Resolved, Failure> {
    let images = HomeImages { home: c.home.clone() };
    let environment = c.environment;
    file.resolve(&images, &|name| environment.variable(name)).map_err(resolve_failure)
}

/// What the person at the terminal says to a price and its reasons; `None` where nobody is there.
fn agrees(environment: &dyn Environment, choice: &Choice<'_>) -> Option<bool> {
    let chosen = choice.explain.chosen.as_ref()?;
    let question = format!(
        "{}'{}' for {} over {}: order it? [y/N] ",
        reasons(choice.explain),
        choice.name,
        chosen.price,
        show_duration(choice.duration_s)
    );
    let answer = environment.ask(&question)?;
    Some(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Why this one, and why each other one not.
fn reasons(explain: &Explain) -> String {
    let mut text = String::new();
    if let Some(s) = &explain.chosen {
        push!(text, "node '{}' of farm '{}' in {} for {}\n", s.name, s.farm_name, s.country, s.price);
        push!(
            text,
            "  counted as {}: {} more for an identity that is {}, {} more for an uptime of {}\n",
            s.effective,
            s.trust_surcharge,
            show::trust(s.trust),
            s.uptime_surcharge,
            show::permille(s.uptime_permille)
        );
        if s.own_surcharge != 0 {
            push!(text, "  and {} grains of it by your own scoring\n", s.own_surcharge);
        }
        push!(text, "  if it is reserved and not used: at most {}\n", s.hold_fee);
    }
    for other in explain.others.iter().take(why::SHOWN) {
        push!(text, "  not {}\n", why::line(other));
    }
    if explain.others.len() > why::SHOWN {
        push!(text, "  and {} more nodes\n", explain.others.len() - why::SHOWN);
    }
    text
}

async fn dry_run(
    c: &mut Context<'_>,
    acting: &Acting,
    resolved: &Resolved,
    flags: &DeployFlags,
) -> Result<(), Failure> {
    let demand = demand(acting, resolved, flags.max_price).await?;
    let offered = candidates(&acting.grid, &demand, Scope::WithRoom).await?;
    let offered: Vec<Candidate> = offered.into_iter().map(|offered| offered.candidate).collect();
    let matches = rank(&offered, &demand);
    let Some(best) = matches.fits.first() else {
        return Err(no_fit(acting, resolved, matches));
    };
    let addresses = offered.iter().find(|c| c.node == best.node).map(|c| c.addresses.clone());
    let shown = Deployed {
        node: best.name.clone(),
        farm: best.farm_name.clone(),
        country: best.country.clone(),
        rate: best.rate,
        price: best.price,
        deposit: deposit(&resolved.terms, best.rate).unwrap_or(best.price),
        dry_run: true,
        excluded: matches.excluded.clone(),
        ..Deployed::of(resolved, &demand.ports, &addresses.unwrap_or_default(), best.node)
    };
    acting.grid.close().await;
    c.terminal.result(&shown, |d| dry_run_text(d, &matches))
}

/// What is paid with the agreement, where that is not everything.
fn deposit(terms: &TermsFile, rate: Rate) -> Option<Grains> {
    terms.prepaid_s.and_then(|prepaid_s| rate.for_seconds(prepaid_s))
}

/// What a file asks for, within the owner's limits and the wallet.
pub(super) async fn demand(
    acting: &Acting,
    resolved: &Resolved,
    max_price: Option<Grains>,
) -> Result<Demand, Failure> {
    Ok(Demand {
        resources: order::resources(resolved)?,
        ports: resolved.workload.published_ports(),
        duration_s: resolved.terms.duration_s,
        node: resolved.placement.node.clone(),
        farm: resolved.placement.farm.clone(),
        countries: resolved.placement.countries.clone(),
        trust: None,
        max_price: order::max_price(resolved, max_price),
        funds: Some(order::affordable(resolved, acting.grid.account(acting.id()).await?.balance)),
    })
}

fn no_fit(acting: &Acting, resolved: &Resolved, matches: Matches) -> Failure {
    let not_taken = |excluded: Excluded| NotTaken {
        node: excluded.node,
        name: excluded.name,
        farm_name: excluded.farm_name,
        why: excluded.reasons.into_iter().map(Why::Ledger).collect(),
    };
    let others = matches.excluded.into_iter().map(not_taken).collect();
    let name = resolved.name.clone();
    let failure = OrderFailure::NoFit { name: name.clone() };
    why::failure(name, acting.grid.name(), failure, &Explain { chosen: None, others })
}

impl Deployed {
    /// What the file says; the rest is still open.
    fn of(
        resolved: &Resolved,
        ports: &[croft_protocol::contract::PublishedPort],
        addresses: &[String],
        node_id: NodeId,
    ) -> Self {
        let used =
            |i: &crate::deploy_file::ResolvedImage| UsedImage { name: i.name.clone(), manifest: i.manifest };
        Self {
            name: resolved.name.clone(),
            contract: None,
            node: resolved.name.clone(),
            node_id,
            farm: resolved.name.clone(),
            country: String::new(),
            state: None,
            height: None,
            rate: Rate(0),
            price: Grains::ZERO,
            deposit: Grains::ZERO,
            duration_s: resolved.terms.duration_s,
            ports: show::ports(ports, addresses),
            images: resolved.images.iter().map(used).collect(),
            dry_run: false,
            resumed: false,
            explain: Explain::default(),
            excluded: Vec::new(),
        }
    }
}

fn deployed_text(d: &Deployed, explain: bool) -> String {
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
        show_duration(d.deposit.0.checked_div(d.rate.0).unwrap_or(d.duration_s))
    );
    if explain && d.resumed && d.explain.chosen.is_none() {
        text.push_str("why this node was chosen went with the run that was interrupted\n");
    } else if explain {
        text.push_str(&reasons(&d.explain));
    }
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
        show_duration(d.duration_s),
        d.rate.0
    );
    for other in matches.fits.iter().skip(1).take(why::SHOWN) {
        push!(
            text,
            "  or on node '{}' of farm '{}' ({}) for {}\n",
            other.name,
            other.farm_name,
            other.country,
            other.price
        );
    }
    for excluded in matches.excluded.iter().take(why::SHOWN) {
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
