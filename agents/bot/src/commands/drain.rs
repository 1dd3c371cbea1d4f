//! `croft farm drain`: asks everybody to leave a node, by agreement.
//!
//! ```text
//!   DrainNode on the ledger ──> desks take nothing new, searches leave it out, standing orders move away
//!            └──> a message to each user, for people: it decides nothing
//! ```
//! It must never end a contract: only who signed one does.

use std::collections::BTreeMap;

use croft_protocol::{BotId, Command, ContractId, Name, NodeId};
use serde::Serialize;

use super::{Acting, CommandError, Context, message};
use crate::exit::Failure;
use crate::grid::{Node, now_ms};
use crate::terminal::{printable, push, show_time};

#[derive(Debug, thiserror::Error)]
enum DrainError {
    #[error("farm '{farm}' belongs to another bot ({owner}), not to '{bot}': choose the owner with --bot")]
    NotOurs { farm: Name, owner: BotId, bot: Name },
}

#[derive(Serialize)]
struct Tenant {
    name: Name,
    contract: ContractId,
    user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    told: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Serialize)]
struct View {
    farm: Name,
    node: Name,
    id: NodeId,
    draining: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    since_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until_ms: Option<u64>,
    contracts: Vec<Tenant>,
}

pub(super) async fn drain(
    c: &mut Context<'_>,
    (farm, node): (Name, Name),
    until_s: Option<u64>,
    undo: bool,
) -> Result<(), Failure> {
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let grid = &acting.grid;
    let missing = || CommandError::NoFarm { farm: farm.clone(), grid: grid.name().clone() };
    let (farm_id, body) = grid.farm_named(&farm).await?.ok_or_else(|| Failure::not_found(missing()))?;
    if body.owner != acting.id() {
        let (owner, bot) = (body.owner, acting.name.clone());
        return Err(Failure::refused(DrainError::NotOurs { farm, owner, bot }));
    }
    let missing = || CommandError::NoNode { farm: farm.clone(), node: node.clone() };
    let id = grid.node_named(&farm_id, &node).await?.ok_or_else(|| Failure::not_found(missing()))?;
    let until_ms = until_s.map(|after_s| now_ms().saturating_add(after_s.saturating_mul(1000)));
    let command =
        if undo { Command::ReopenNode { node: id } } else { Command::DrainNode { node: id, until_ms } };
    grid.submit(&acting.key, &command).await?;
    let after = grid.node(id).await?.ok_or_else(|| Failure::not_found(missing()))?;
    let contracts = if undo { Vec::new() } else { tell_all(&acting, &farm, &after).await? };
    acting.grid.close().await;
    let view = View {
        farm,
        node,
        id,
        draining: after.draining.is_some(),
        since_ms: after.draining.map(|draining| draining.since_ms),
        until_ms: after.draining.and_then(|draining| draining.until_ms),
        contracts,
    };
    c.terminal.result(&view, text)
}

/// One message to each user. Whoever can't be told finds it on the ledger.
async fn tell_all(acting: &Acting, farm: &Name, node: &Node) -> Result<Vec<Tenant>, Failure> {
    let mut of: BTreeMap<BotId, Vec<(Name, ContractId)>> = BTreeMap::new();
    for contract in acting.grid.contracts(&node.contracts).await? {
        let terms = contract.body.signed.terms;
        of.entry(terms.user).or_default().push((terms.name, contract.id));
    }
    let mut all = Vec::new();
    for (user, theirs) in of {
        let called = acting.grid.bot(user).await?.map(|bot| bot.name);
        let told = match &called {
            Some(called) => message::post(acting, called, user, proposal(farm, node, &theirs)).await,
            None => Err(Failure::not_found("it is no bot any more".to_owned())),
        };
        let shown = called.as_ref().map_or_else(|| user.short(), Name::to_string);
        let (told, problem) = match told {
            Ok(sent) => (Some(sent.delivered), None),
            Err(failure) => (None, Some(failure.message())),
        };
        all.extend(theirs.into_iter().map(|(name, contract)| Tenant {
            name,
            contract,
            user: shown.clone(),
            told,
            problem: problem.clone(),
        }));
    }
    Ok(all)
}

/// For people. Bots read the ledger.
fn proposal(farm: &Name, node: &Node, contracts: &[(Name, ContractId)]) -> String {
    let names: Vec<String> = contracts.iter().map(|(name, _)| format!("'{name}'")).collect();
    let until = node.draining.and_then(|draining| draining.until_ms);
    let until = until.map(|at| format!(", until {}", show_time(at))).unwrap_or_default();
    format!(
        "Farm '{farm}' empties node '{}'{until}. Please move {}: deploy it again, then 'croft stop' the old one; \
         what is not used is refunded. Standing orders ('croft keep') do that by themselves. Without an answer it \
         stays until its term ends.",
        node.body.name,
        names.join(", ")
    )
}

fn text(view: &View) -> String {
    let View { farm, node, .. } = view;
    if !view.draining {
        return format!("node '{node}' of farm '{farm}' takes new contracts again\n");
    }
    let mut text = format!("node '{node}' of farm '{farm}' takes no new contracts");
    if let Some(until_ms) = view.until_ms {
        push!(text, ", to be empty by {}", show_time(until_ms));
    }
    text.push('\n');
    for told in &view.contracts {
        push!(text, "  '{}' of {}: ", told.name, printable(&told.user));
        match (&told.told, &told.problem) {
            (Some("mailbox"), _) => text.push_str("a message waits in its mailbox\n"),
            (Some(_), _) => text.push_str("it was told\n"),
            (None, problem) => {
                let problem = problem.as_deref().unwrap_or("it could not be told");
                push!(text, "not told: {}\n", printable(problem));
            }
        }
    }
    if view.contracts.is_empty() {
        text.push_str("  no contract is there: it can be worked on now\n");
    }
    text
}
