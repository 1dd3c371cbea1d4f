//! `croft history`: every version of a record, each proved to be in the log and to follow the one before it.

use croft_protocol::release::{Outcome, ReleaseState};
use croft_protocol::{Body, Hash, Kind, Name, PublicKey, Record, RecordId};
use serde::Serialize;

use super::show::{self, BotNames};
use super::{CommandError, Context, contracts, ledger};
use crate::exit::Failure;
use crate::grid::Grid;
use crate::plan::{Subject, Thing};
use crate::terminal::{printable, show_duration, show_time, table};

#[derive(Serialize)]
struct History {
    kind: Kind,
    name: String,
    id: Hash,
    /// Always true: what can't be verified is an error.
    verified: bool,
    tip_height: u64,
    versions: Vec<RecordView>,
}

#[derive(Serialize)]
struct RecordView {
    version: u64,
    height: u64,
    time_ms: u64,
    author: PublicKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    author_name: Option<String>,
    prev: Option<Hash>,
    hash: Hash,
    what: String,
    body: Body,
}

pub(super) async fn history(c: &mut Context<'_>, thing: &Thing) -> Result<(), Failure> {
    let (grid, id, name) = find(c, thing).await?;
    let name = name.unwrap_or_else(|| format!("{:?} {}", id.kind, id.id).to_lowercase());
    let (tip, records) = grid.history(id).await?;
    if records.is_empty() {
        return Err(Failure::not_found(format!("nothing is on the ledger of {name}")));
    }
    let mut names = BotNames::default();
    let mut versions = Vec::with_capacity(records.len());
    let mut before: Option<Body> = None;
    for record in records {
        let hash = record.hash();
        let author_name = ledger::author_name(&mut names, &grid, &record).await?;
        let Record { version, prev, body, author, height, time_ms, .. } = record;
        let what = what(&body, before.as_ref());
        before = Some(body.clone());
        versions.push(RecordView { version, height, time_ms, author, author_name, prev, hash, what, body });
    }
    grid.close().await;
    let history =
        History { kind: id.kind, name, id: id.id, verified: true, tip_height: tip.height(), versions };
    c.terminal.result(&history, text)
}

/// What is meant: its record's id, and how to call it where it was named.
pub(super) async fn find(
    c: &Context<'_>,
    thing: &Thing,
) -> Result<(Grid, RecordId, Option<String>), Failure> {
    match thing {
        Thing::Id(id) => Ok((c.reading_grid()?, *id, None)),
        Thing::Named(subject) => {
            let (grid, id, name) = find_named(c, subject).await?;
            Ok((grid, id, Some(name)))
        }
    }
}

async fn find_named(c: &Context<'_>, subject: &Subject) -> Result<(Grid, RecordId, String), Failure> {
    if let Subject::Contract(name) = subject {
        let acting = c.acting()?;
        let contract = contracts::any(&acting, name).await?;
        return Ok((acting.grid, RecordId::contract(&contract.id), format!("contract '{name}'")));
    }
    let grid = c.reading_grid()?;
    let name_of_grid = grid.name().clone();
    let no_farm = |farm: &Name| {
        Failure::not_found(CommandError::NoFarm { farm: farm.clone(), grid: name_of_grid.clone() })
    };
    let (id, name) = match subject {
        Subject::Contract(name) => unreachable!("contract '{name}' was found above"),
        Subject::Bot(name) => {
            let id = grid.bot_named(name).await?.ok_or_else(|| {
                Failure::not_found(CommandError::NoBot { bot: name.clone(), grid: name_of_grid.clone() })
            })?;
            (RecordId::bot(&id), format!("bot '{name}'"))
        }
        Subject::Farm(name) => {
            let (id, _) = grid.farm_named(name).await?.ok_or_else(|| no_farm(name))?;
            (RecordId::farm(&id), format!("farm '{name}'"))
        }
        Subject::Node { farm, node } | Subject::Report { farm, node } => {
            let (farm_id, _) = grid.farm_named(farm).await?.ok_or_else(|| no_farm(farm))?;
            let id = grid.node_named(&farm_id, node).await?.ok_or_else(|| {
                Failure::not_found(CommandError::NoNode { farm: farm.clone(), node: node.clone() })
            })?;
            match subject {
                Subject::Report { .. } => (RecordId::report(&id), format!("reports of node '{farm}/{node}'")),
                _ => (RecordId::node(&id), format!("node '{farm}/{node}'")),
            }
        }
    };
    Ok((grid, id, name))
}

/// What a version says, or how it differs from the one before.
pub(super) fn what(body: &Body, before: Option<&Body>) -> String {
    match body {
        Body::Bot(bot) => format!("bot '{}'", bot.name),
        Body::Farm(farm) => {
            let p = farm.prices;
            let region = farm.region.as_ref().map(|region| format!(" ({region})")).unwrap_or_default();
            format!(
                "in {}{region}, prices: CPU {}, memory {}, SSD {}, HDD {}",
                farm.country, p.cpu, p.memory_gib, p.ssd_gib, p.hdd_gib
            )
        }
        Body::Node(node) => match before {
            Some(Body::Node(old)) if old.session != node.session => {
                format!("booted again (session {}), release {}", node.session, printable(&node.release))
            }
            Some(Body::Node(old)) if old.troubles != node.troubles => {
                let troubles: Vec<String> = node.troubles.iter().map(show::trouble).collect();
                if troubles.is_empty() { "has no trouble any more".to_owned() } else { troubles.join("; ") }
            }
            Some(_) => "changed".to_owned(),
            None => format!("registered, release {}", printable(&node.release)),
        },
        Body::Contract(contract) => show::state_cell(contract.state),
        Body::Approval(approval) => if approval.approved { "approved" } else { "refused" }.to_owned(),
        Body::Report(report) => {
            let seconds = report.until_ms.saturating_sub(report.from_ms) / 1000;
            let states: Vec<&str> = report.contracts.iter().map(|c| show::workload_state(c.state)).collect();
            let states = if states.is_empty() { "no contracts".to_owned() } else { states.join(", ") };
            format!("covers {}: {states}", show_duration(seconds))
        }
        Body::Transfer(transfer) => transfer.amount.to_string(),
        Body::Profile(profile) => {
            printable(&format!("profile of bot '{}': {}", profile.name, profile.description))
        }
        Body::Keys(keys) => match keys.changes.last() {
            Some(change) => {
                format!("key replaced by {}, change {}", change.link.key.short(), keys.changes.len())
            }
            None => "no keys".to_owned(),
        },
        Body::Funding(funding) => format!("{} for contract {}", funding.amount, funding.contract.0.short()),
        Body::Reservation(reservation) => show::reservation(reservation),
        Body::Drain(drain) => show::drain(drain.draining),
        Body::Validators(set) => format!("{} validators", set.validators.len()),
        Body::Recipe(recipe) => match &recipe.withdrawn {
            Some(reason) => format!("recipe '{}' withdrawn: {}", recipe.name, printable(reason)),
            None => format!("recipe '{}': {}", recipe.name, printable(&recipe.title)),
        },
        Body::Release(_)
        | Body::ReleaseKeys(_)
        | Body::Channel(_)
        | Body::FarmPolicy(_)
        | Body::Outcome(_) => what_of_releases(body),
    }
}

fn what_of_releases(body: &Body) -> String {
    match body {
        Body::Release(body) => {
            let release = &body.signed.release;
            let state = match &body.state {
                ReleaseState::Published => "published".to_owned(),
                ReleaseState::Halted(halt) => printable(&halt.to_string()),
            };
            format!("release {} of channel '{}', {state}", release.version, release.channel)
        }
        Body::ReleaseKeys(keys) => format!("{} of {} release keys sign", keys.threshold, keys.keys.len()),
        Body::Channel(channel) => match channel.offered {
            Some(version) => format!("channel '{}' offers {version}", channel.name),
            None => format!("channel '{}' offers nothing", channel.name),
        },
        Body::FarmPolicy(policy) => format!(
            "follows channel '{}' with {} of 1000 nodes{}",
            policy.channel,
            policy.share_per_mille,
            if policy.hold { ", on hold" } else { "" }
        ),
        Body::Outcome(told) => match &told.outcome {
            Outcome::Confirmed => format!("confirmed release {}", told.version),
            Outcome::Returned { reason } => {
                format!("returned from release {}: {}", told.version, printable(reason))
            }
        },
        other => format!("{:?}", other.kind()),
    }
}

fn text(history: &History) -> String {
    let row = |v: &RecordView| {
        vec![
            v.version.to_string(),
            v.height.to_string(),
            show_time(v.time_ms),
            v.author_name.clone().unwrap_or_else(|| v.author.short()),
            v.what.clone(),
            v.prev.map_or_else(|| "-".to_owned(), |p| p.short()),
            v.hash.short(),
        ]
    };
    let rows: Vec<Vec<String>> = history.versions.iter().map(row).collect();
    format!(
        "{}: {} versions, each proved in the log at block {} and naming the one before it\n\n{}",
        history.name,
        history.versions.len(),
        history.tip_height,
        table(&["VERSION", "BLOCK", "TIME", "AUTHOR", "WHAT", "SUPERSEDES", "HASH"], &rows)
    )
}
