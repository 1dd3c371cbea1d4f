//! `croft ledger query`: nodes, farms and contracts by what they are; page after page up to a limit.

use std::collections::BTreeMap;

use croft_protocol::api::{ContractQuery, FarmQuery, NodeQuery, Query};
use croft_protocol::record::{FarmBody, TrustClass};
use croft_protocol::{
    Body, BotId, Capacity, ContractBody, ContractId, FarmId, Grains, Hash, Name, NodeId, NodeTrouble,
    PriceList, PublicKey, Rate, Record, RecordId,
};
use serde::Serialize;

use crate::commands::show::{self, BotNames};
use crate::commands::{CommandError, Context};
use crate::exit::Failure;
use crate::grid::{FoundThing, Grid, GridError};
use crate::plan::{QueryPlan, QuerySubject};
use crate::terminal::{printable, show_time, table};

/// What a search came to.
struct Results {
    things: Vec<FoundThing>,
    /// The limit cut it off.
    more: bool,
    tip_height: Option<u64>,
}

#[derive(Serialize)]
struct View<T> {
    proved: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tip_height: Option<u64>,
    more: bool,
    #[serde(flatten)]
    things: BTreeMap<&'static str, Vec<T>>,
}

pub(super) async fn query(c: &mut Context<'_>, plan: QueryPlan) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    match plan.subject.clone() {
        QuerySubject::Nodes { farm, owner, query } => nodes(c, &grid, &plan, farm, owner, query).await?,
        QuerySubject::Farms { owner, query } => {
            let owner = bot(&grid, owner).await?;
            farms(c, &grid, &plan, FarmQuery { owner, ..query }).await?;
        }
        QuerySubject::Contracts { user, farmer, node, expires_within_s, query } => {
            let node = match node {
                Some((farm, node)) => Some(node_named(&grid, &farm, &node).await?),
                None => None,
            };
            let expires_before_ms = match expires_within_s {
                Some(s) => Some(grid.tip().await?.time_ms().saturating_add(s.saturating_mul(1000))),
                None => None,
            };
            let (user, farmer) = (bot(&grid, user).await?, bot(&grid, farmer).await?);
            contracts(c, &grid, &plan, ContractQuery { user, farmer, node, expires_before_ms, ..query })
                .await?;
        }
    }
    grid.close().await;
    Ok(())
}

async fn bot(grid: &Grid, name: Option<Name>) -> Result<Option<BotId>, Failure> {
    let Some(name) = name else { return Ok(None) };
    match grid.bot_named(&name).await? {
        Some(id) => Ok(Some(id)),
        None => Err(Failure::not_found(CommandError::NoBot { bot: name, grid: grid.name().clone() })),
    }
}

async fn farm_named(grid: &Grid, name: &Name) -> Result<FarmId, Failure> {
    match grid.farm_named(name).await? {
        Some((id, _)) => Ok(id),
        None => {
            Err(Failure::not_found(CommandError::NoFarm { farm: name.clone(), grid: grid.name().clone() }))
        }
    }
}

async fn node_named(grid: &Grid, farm: &Name, node: &Name) -> Result<NodeId, Failure> {
    let id = farm_named(grid, farm).await?;
    match grid.node_named(&id, node).await? {
        Some(id) => Ok(id),
        None => Err(Failure::not_found(CommandError::NoNode { farm: farm.clone(), node: node.clone() })),
    }
}

/// All pages up to the limit, each thing once.
async fn all(grid: &Grid, query: &Query, plan: &QueryPlan) -> Result<Results, Failure> {
    let limit = plan.limit as usize;
    let mut found: BTreeMap<RecordId, FoundThing> = BTreeMap::new();
    let (mut from, mut tip_height) = (None, None);
    loop {
        let page = grid.find(query, from.clone(), limit - found.len(), plan.proved).await?;
        tip_height = page.tip.map(|tip| tip.height()).or(tip_height);
        for thing in page.things {
            found.insert(thing.record.id, thing);
        }
        let ended = page.next.is_none() || page.next == from;
        if ended || found.len() >= limit {
            let more = !ended || found.len() > limit;
            let things = found.into_values().take(limit).collect();
            return Ok(Results { things, more, tip_height });
        }
        from = page.next;
    }
}

/// How things of one kind stand in a table.
struct Columns<'a, T> {
    headings: &'a [&'a str],
    row: fn(&T) -> Vec<String>,
}

fn show<T: Serialize>(
    c: &mut Context<'_>,
    plan: &QueryPlan,
    (what, results, things): (&'static str, Results, Vec<T>),
    columns: &Columns<'_, T>,
) -> Result<(), Failure> {
    let Columns { headings, row } = *columns;
    let left_out = results.things.len() - things.len();
    if left_out > 0 {
        c.note(&format!("{left_out} changed while they were looked at, and are left out"));
    }
    let more = results.more;
    let view = View {
        proved: plan.proved,
        tip_height: results.tip_height,
        more,
        things: BTreeMap::from([(what, things)]),
    };
    c.terminal.result(&view, |view| {
        let things = &view.things[what];
        let mut text = match (things.is_empty(), view.proved) {
            (true, _) => format!("no {what} found\n"),
            (false, true) => table(headings, &things.iter().map(row).collect::<Vec<_>>()),
            (false, false) => {
                let table = table(headings, &things.iter().map(row).collect::<Vec<_>>());
                format!("{table}(as a replica says; --proved has each one proved)\n")
            }
        };
        if more {
            text.push_str("there are more: raise --limit, or ask for less\n");
        }
        text
    })
}

#[derive(Serialize)]
struct NodeView {
    node: Name,
    id: NodeId,
    farm: Name,
    owner: String,
    country: String,
    region: Option<Name>,
    trust: TrustClass,
    release: String,
    /// What is wrong with it, in its own words.
    troubles: Vec<NodeTrouble>,
    total: Capacity,
    #[serde(skip_serializing_if = "Option::is_none")]
    free: Option<Capacity>,
    per_hour: Option<Grains>,
    version: u64,
    height: u64,
    hash: Hash,
}

async fn nodes(
    c: &mut Context<'_>,
    grid: &Grid,
    plan: &QueryPlan,
    farm: Option<Name>,
    owner: Option<Name>,
    query: NodeQuery,
) -> Result<(), Failure> {
    let farm = match farm {
        Some(name) => Some(farm_named(grid, &name).await?),
        None => None,
    };
    let query = NodeQuery { farm, owner: bot(grid, owner).await?, ..query };
    let results = all(grid, &Query::Nodes(query.clone()), plan).await?;
    let (mut farms, mut names) = (BTreeMap::new(), BotNames::default());
    let mut views = Vec::new();
    for FoundThing { record, capacity } in &results.things {
        let Body::Node(body) = &record.body else { continue };
        let Some(farm) = farm_of(grid, &mut farms, body.farm).await? else { continue };
        let free = capacity.map(|capacity| capacity.free());
        if plan.proved && !free.is_some_and(|free| query.matches(body, &free, &farm)) {
            continue;
        }
        views.push(NodeView {
            node: body.name.clone(),
            id: PublicKey(record.id.id.0),
            farm: farm.name.clone(),
            owner: names.name(grid, farm.owner).await?,
            country: farm.country.clone(),
            region: farm.region.clone(),
            trust: body.trust,
            release: body.release.clone(),
            troubles: body.troubles.clone(),
            total: body.capacity,
            free,
            per_hour: farm.prices.per_hour(&query.free),
            version: record.version,
            height: record.height,
            hash: record.hash(),
        });
    }
    views.sort_by(|a, b| (a.per_hour, &a.farm, &a.node).cmp(&(b.per_hour, &b.farm, &b.node)));
    let headings = ["NODE", "FARM", "OWNER", "IN", "TRUST", "CPU", "MEMORY", "SSD", "HDD", "PER HOUR"];
    show(c, plan, ("nodes", results, views), &Columns { headings: &headings, row: node_row })
}

async fn farm_of(
    grid: &Grid,
    known: &mut BTreeMap<FarmId, Option<FarmBody>>,
    id: FarmId,
) -> Result<Option<FarmBody>, GridError> {
    if let Some(farm) = known.get(&id) {
        return Ok(farm.clone());
    }
    let farm = grid.farm(id).await?;
    known.insert(id, farm.clone());
    Ok(farm)
}

fn place(country: &str, region: Option<&Name>) -> String {
    region.map_or_else(|| country.to_owned(), |region| format!("{country}/{region}"))
}

/// Free of total where what is free was proved, else the total.
fn node_row(n: &NodeView) -> Vec<String> {
    let amount = |pick: fn(&Capacity) -> u64| match &n.free {
        Some(free) => show::of_total(free, &n.total, pick),
        None => croft_protocol::units::show_bytes(pick(&n.total)),
    };
    let cpus = match &n.free {
        Some(free) => format!("{} / {}", show::cpus(free.cpu_millis), show::cpus(n.total.cpu_millis)),
        None => show::cpus(n.total.cpu_millis),
    };
    vec![
        n.node.to_string(),
        n.farm.to_string(),
        n.owner.clone(),
        place(&n.country, n.region.as_ref()),
        show::trust(n.trust).to_owned(),
        cpus,
        amount(|c| c.memory_bytes),
        amount(|c| c.ssd_bytes),
        amount(|c| c.hdd_bytes),
        n.per_hour.map_or_else(|| "-".to_owned(), |grains| grains.0.to_string()),
    ]
}

#[derive(Serialize)]
struct FarmView {
    farm: Name,
    id: FarmId,
    owner: String,
    country: String,
    region: Option<Name>,
    prices: PriceList,
    version: u64,
    height: u64,
    hash: Hash,
}

async fn farms(c: &mut Context<'_>, grid: &Grid, plan: &QueryPlan, query: FarmQuery) -> Result<(), Failure> {
    let results = all(grid, &Query::Farms(query.clone()), plan).await?;
    let mut names = BotNames::default();
    let mut views = Vec::new();
    for FoundThing { record, .. } in &results.things {
        let Body::Farm(farm) = &record.body else { continue };
        if !query.matches(farm) {
            continue;
        }
        views.push(FarmView {
            farm: farm.name.clone(),
            id: FarmId(record.id.id),
            owner: names.name(grid, farm.owner).await?,
            country: farm.country.clone(),
            region: farm.region.clone(),
            prices: farm.prices,
            version: record.version,
            height: record.height,
            hash: record.hash(),
        });
    }
    views.sort_by(|a, b| a.farm.cmp(&b.farm));
    let headings = ["FARM", "OWNER", "IN", "CPU", "MEMORY", "SSD", "HDD", "BLOCK"];
    show(c, plan, ("farms", results, views), &Columns { headings: &headings, row: farm_row })
}

fn farm_row(f: &FarmView) -> Vec<String> {
    let p = &f.prices;
    let prices = [p.cpu, p.memory_gib, p.ssd_gib, p.hdd_gib].map(|price| price.to_string());
    let mut row = vec![f.farm.to_string(), f.owner.clone(), place(&f.country, f.region.as_ref())];
    row.extend(prices);
    row.push(f.height.to_string());
    row
}

#[derive(Serialize)]
struct ContractView {
    name: Name,
    contract: ContractId,
    state: &'static str,
    user: String,
    farmer: String,
    node: NodeId,
    resources: Capacity,
    rate: Rate,
    agreed_ms: u64,
    expires_ms: Option<u64>,
    ended_ms: u64,
    version: u64,
    height: u64,
    hash: Hash,
}

async fn contracts(
    c: &mut Context<'_>,
    grid: &Grid,
    plan: &QueryPlan,
    query: ContractQuery,
) -> Result<(), Failure> {
    let results = all(grid, &Query::Contracts(query.clone()), plan).await?;
    let mut names = BotNames::default();
    let mut views = Vec::new();
    for FoundThing { record, .. } in &results.things {
        let Body::Contract(body) = &record.body else { continue };
        if query.matches(body) {
            views.push(contract_view(grid, &mut names, record, body).await?);
        }
    }
    views.sort_by_key(|view| (view.agreed_ms, view.contract));
    let headings = ["NAME", "STATE", "USER", "FARMER", "NODE", "CPU", "MEMORY", "UNTIL", "CONTRACT"];
    show(c, plan, ("contracts", results, views), &Columns { headings: &headings, row: contract_row })
}

fn contract_row(v: &ContractView) -> Vec<String> {
    vec![
        v.name.to_string(),
        v.state.to_owned(),
        printable(&v.user),
        printable(&v.farmer),
        v.node.short(),
        show::cpus(v.resources.cpu_millis),
        croft_protocol::units::show_bytes(v.resources.memory_bytes),
        v.expires_ms.map_or_else(|| "-".to_owned(), show_time),
        v.contract.0.short(),
    ]
}

async fn contract_view(
    grid: &Grid,
    names: &mut BotNames,
    record: &Record,
    body: &ContractBody,
) -> Result<ContractView, GridError> {
    let terms = &body.signed.terms;
    Ok(ContractView {
        name: terms.name.clone(),
        contract: ContractId(record.id.id),
        state: show::state(body.state),
        user: names.name(grid, terms.user).await?,
        farmer: names.name(grid, terms.farmer).await?,
        node: terms.node,
        resources: terms.resources,
        rate: terms.rate,
        agreed_ms: body.agreed_ms,
        expires_ms: body.expires_ms(),
        ended_ms: body.ended_ms,
        version: record.version,
        height: record.height,
        hash: record.hash(),
    })
}
