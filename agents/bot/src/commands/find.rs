//! `croft find` and `croft cost`: who could run something, for what, and why the others could not.
//!
//! Reads only, and asks no farmer: prices are those of the lists on the ledger.

use std::collections::BTreeMap;

use croft_market::order::Offered;
use croft_market::{Candidate, Demand, Excluded, Fit, Matches, rank};
use croft_protocol::contract::{PublishedPort, Transport};
use croft_protocol::record::TrustClass;
use croft_protocol::{Capacity, Grains, Name, NodeId, Rate, units};
use serde::Serialize;

use super::{CommandError, Context, deploy, show};
use crate::exit::Failure;
use crate::flags::{CostFlags, FindFlags, TrustFlag};
use crate::market::candidates::{Scope, candidates};
use crate::terminal::{printable, push, show_duration, table};

/// Excluded nodes that are shown to a person; JSON has all.
const SHOWN: usize = 16;

#[derive(Serialize)]
struct Found {
    duration_s: u64,
    resources: Capacity,
    matches: Vec<MatchView>,
    excluded: Vec<ExcludedView>,
}

#[derive(Serialize)]
struct Cost {
    name: Name,
    duration_s: u64,
    resources: Capacity,
    /// What the wallet has.
    balance: Grains,
    #[serde(skip_serializing_if = "Option::is_none")]
    cheapest: Option<Grains>,
    #[serde(skip_serializing_if = "Option::is_none")]
    median: Option<Grains>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dearest: Option<Grains>,
    matches: Vec<MatchView>,
    excluded: Vec<ExcludedView>,
}

/// A node that fits.
#[derive(Serialize)]
struct MatchView {
    node: Name,
    node_id: NodeId,
    farm: Name,
    country: String,
    trust: TrustClass,
    #[serde(skip_serializing_if = "Option::is_none")]
    uptime_permille: Option<u16>,
    /// Grains per second.
    rate: Rate,
    /// For the whole duration.
    price: Grains,
    free: Capacity,
    contracts: usize,
    addresses: Vec<String>,
}

/// A node that does not, with every reason.
#[derive(Serialize)]
struct ExcludedView {
    node: Name,
    node_id: NodeId,
    farm: Name,
    country: String,
    trust: TrustClass,
    #[serde(skip_serializing_if = "Option::is_none")]
    uptime_permille: Option<u16>,
    reasons: Vec<String>,
}

pub(super) async fn find(c: &mut Context<'_>, flags: &FindFlags) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    if let Some(farm) = &flags.farm
        && grid.farm_named(farm).await?.is_none()
    {
        let error = CommandError::NoFarm { farm: farm.clone(), grid: grid.name().clone() };
        return Err(Failure::not_found(error));
    }
    let mut ports: Vec<PublishedPort> =
        flags.ports.iter().map(|port| PublishedPort { transport: Transport::Tcp, port: *port }).collect();
    ports.sort_unstable();
    ports.dedup();
    let demand = Demand {
        resources: Capacity {
            cpu_millis: u64::from(flags.cpu),
            memory_bytes: flags.memory,
            ssd_bytes: flags.ssd,
            hdd_bytes: flags.hdd,
            public_addresses: 0,
        },
        ports,
        duration_s: flags.duration,
        farm: flags.farm.clone(),
        countries: flags.country.clone(),
        trust: flags.trust.map(|trust| match trust {
            TrustFlag::Plain => TrustClass::Plain,
            TrustFlag::Sealed => TrustClass::Sealed,
            TrustFlag::Attested => TrustClass::Attested,
        }),
        max_price: flags.max_price,
        ..Demand::default()
    };
    let offered = candidates(&grid, &demand, Scope::All).await?;
    grid.close().await;
    let (matches, excluded) = views(offered, &demand);
    let (duration_s, resources) = (demand.duration_s, demand.resources);
    c.terminal.result(&Found { duration_s, resources, matches, excluded }, found_text)
}

pub(super) async fn cost(c: &mut Context<'_>, flags: &CostFlags) -> Result<(), Failure> {
    let resolved = deploy::read(c, &flags.file)?;
    let acting = c.acting()?;
    let demand = deploy::demand(&acting, &resolved, None).await?;
    let offered = candidates(&acting.grid, &demand, Scope::All).await?;
    acting.grid.close().await;
    let nodes: Vec<Candidate> = offered.iter().map(|offered| offered.candidate.clone()).collect();
    let estimate = croft_market::cost(&nodes, &demand);
    let (matches, excluded) = views(offered, &demand);
    let cost = Cost {
        name: resolved.name,
        duration_s: demand.duration_s,
        resources: demand.resources,
        balance: demand.funds.unwrap_or_default(),
        cheapest: estimate.cheapest,
        median: estimate.median,
        dearest: estimate.dearest,
        matches,
        excluded,
    };
    c.terminal.result(&cost, cost_text)
}

/// Candidates, each in one of the two lists.
fn views(offered: Vec<Offered>, demand: &Demand) -> (Vec<MatchView>, Vec<ExcludedView>) {
    let nodes: Vec<Candidate> = offered.iter().map(|offered| offered.candidate.clone()).collect();
    let by_id: BTreeMap<NodeId, Offered> =
        offered.into_iter().map(|offered| (offered.candidate.node, offered)).collect();
    let Matches { fits, excluded } = rank(&nodes, demand);
    let fit = |fit: Fit| {
        let Offered { candidate, uptime_permille } = by_id.get(&fit.node)?;
        Some(MatchView {
            node: fit.name,
            node_id: fit.node,
            farm: fit.farm_name,
            country: fit.country,
            trust: candidate.trust,
            uptime_permille: *uptime_permille,
            rate: fit.rate,
            price: fit.price,
            free: candidate.capacity.free(),
            contracts: candidate.contracts,
            addresses: candidate.addresses.clone(),
        })
    };
    let not = |excluded: Excluded| {
        let Offered { candidate, uptime_permille } = by_id.get(&excluded.node)?;
        Some(ExcludedView {
            node: excluded.name,
            node_id: excluded.node,
            farm: excluded.farm_name,
            country: candidate.country.clone(),
            trust: candidate.trust,
            uptime_permille: *uptime_permille,
            reasons: excluded.reasons.iter().map(ToString::to_string).collect(),
        })
    };
    (fits.into_iter().filter_map(fit).collect(), excluded.into_iter().filter_map(not).collect())
}

fn found_text(found: &Found) -> String {
    let mut text = if found.matches.is_empty() {
        "no node fits\n".to_owned()
    } else {
        matches_text(&found.matches, found.duration_s)
    };
    text.push_str(&excluded_text(&found.excluded));
    text
}

fn cost_text(cost: &Cost) -> String {
    let needs = &cost.resources;
    let mut text = format!(
        "'{}' needs {} CPU, {} memory and {} SSD for {}; the wallet has {}\n",
        cost.name,
        show::cpus(needs.cpu_millis),
        units::show_bytes(needs.memory_bytes),
        units::show_bytes(needs.ssd_bytes),
        show_duration(cost.duration_s),
        cost.balance
    );
    match (cost.cheapest, cost.median, cost.dearest) {
        (Some(cheapest), Some(median), Some(dearest)) => {
            push!(text, "  cheapest  {cheapest}\n  median    {median}\n  dearest   {dearest}\n");
            text.push_str(&matches_text(&cost.matches, cost.duration_s));
        }
        _ => text.push_str("no node fits\n"),
    }
    text.push_str(&excluded_text(&cost.excluded));
    text
}

fn matches_text(matches: &[MatchView], duration_s: u64) -> String {
    let row = |m: &MatchView| {
        vec![
            m.node.to_string(),
            m.farm.to_string(),
            m.country.clone(),
            m.price.to_string(),
            show::trust(m.trust).to_owned(),
            m.uptime_permille.map_or_else(|| "-".to_owned(), show::permille),
            show::cpus(m.free.cpu_millis),
            units::show_bytes(m.free.memory_bytes),
            printable(&m.addresses.join(" ")),
        ]
    };
    let rows: Vec<Vec<String>> = matches.iter().map(row).collect();
    let price = format!("FOR {}", show_duration(duration_s).to_uppercase());
    let headings =
        ["NODE", "FARM", "IN", price.as_str(), "TRUST", "UPTIME", "CPU FREE", "MEMORY FREE", "ADDRESSES"];
    table(&headings, &rows)
}

fn excluded_text(excluded: &[ExcludedView]) -> String {
    let mut text = String::new();
    for other in excluded.iter().take(SHOWN) {
        let reasons = printable(&other.reasons.join("; "));
        push!(text, "not node '{}' of farm '{}': {reasons}\n", other.node, other.farm);
    }
    if excluded.len() > SHOWN {
        push!(text, "and {} more nodes; --json has all\n", excluded.len() - SHOWN);
    }
    text
}
