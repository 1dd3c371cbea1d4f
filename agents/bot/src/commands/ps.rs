//! `croft ps`: the contracts of the acting bot.

use croft_protocol::record::TrustClass;
use croft_protocol::{ContractId, Grains, Name, NodeId, Rate};
use serde::Serialize;

use super::quorum::{self, QuorumView};
use super::show::{self, PortView};
use super::{Context, contracts};
use crate::exit::Failure;
use crate::grid::{Contract, Grid, GridError, Node, now_ms};
use crate::terminal::{show_duration, table};

#[derive(Serialize)]
struct Contracts {
    contracts: Vec<View>,
}

#[derive(Serialize)]
struct View {
    name: Name,
    contract: ContractId,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    node: String,
    node_id: NodeId,
    farm: String,
    online: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<TrustClass>,
    ports: Vec<PortView>,
    agreed_ms: u64,
    starts_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
    ended_ms: u64,
    rate: Rate,
    price: Option<Grains>,
    paid: Grains,
    held: Grains,
    refunded: Grains,
    covered_ms: u64,
    height: u64,
    deposit: Grains,
    #[serde(skip_serializing_if = "Option::is_none")]
    funded_until_ms: Option<u64>,
    /// What a paused one needs to go on, and until when.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<Grains>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_until_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quorum: Option<QuorumView>,
}

pub(super) async fn ps(c: &mut Context<'_>, all: bool) -> Result<(), Failure> {
    let acting = c.acting()?;
    let contracts = contracts::of_user(&acting, all).await?;
    let mut views = Vec::with_capacity(contracts.len());
    for contract in contracts {
        let terms = &contract.body.signed.terms;
        let node = acting.grid.node(terms.node).await?;
        let online = acting.grid.presence_unproved(&[terms.node]).await?.first() == Some(&true);
        views.push(view(&acting.grid, contract, node, online).await?);
    }
    acting.grid.close().await;
    c.terminal.result(&Contracts { contracts: views }, |v| text(&v.contracts, all))
}

async fn view(grid: &Grid, contract: Contract, node: Option<Node>, online: bool) -> Result<View, GridError> {
    let quorum = quorum::view(grid, &contract).await?;
    let (funded_until_ms, missing) = (show::funded_until_ms(&contract), show::missing(&contract));
    let Contract { id, record, body, escrow } = contract;
    let terms = &body.signed.terms;
    let farm = grid.farm(terms.farm).await?.map_or_else(|| terms.farm.0.short(), |f| f.name.to_string());
    let addresses = node.as_ref().map(|n| n.body.addresses.clone()).unwrap_or_default();
    Ok(View {
        name: terms.name.clone(),
        contract: id,
        state: show::state(body.state),
        reason: show::end_reason(body.state),
        trust: node.as_ref().map(|n| n.body.trust),
        node: node.map_or_else(|| terms.node.short(), |n| n.body.name.to_string()),
        node_id: terms.node,
        farm,
        online,
        ports: show::ports(&terms.ports, &addresses),
        agreed_ms: body.agreed_ms,
        starts_ms: body.starts_ms,
        expires_ms: body.expires_ms(),
        ended_ms: body.ended_ms,
        rate: terms.rate,
        price: terms.price(),
        paid: escrow.paid,
        held: escrow.held(),
        refunded: escrow.refunded,
        covered_ms: escrow.covered_ms,
        height: record.height,
        deposit: escrow.deposit,
        funded_until_ms,
        missing,
        paused_until_ms: body.funds_awaited_until_ms(),
        quorum,
    })
}

fn text(views: &[View], all: bool) -> String {
    if views.is_empty() {
        let hint = if all { "" } else { "; 'croft ps --all' shows ended ones" };
        return format!("nothing runs; 'croft deploy FILE' starts something{hint}\n");
    }
    let row = |v: &View| {
        let state = match (v.reason, v.missing, &v.quorum) {
            (Some(reason), ..) => format!("{}: {reason}", v.state),
            (None, Some(missing), _) => format!("{}: needs {}", v.state, missing.0),
            (None, None, Some(quorum)) if v.state == "agreed" => {
                format!("agreed: waits for {}", quorum.waits_for())
            }
            _ => v.state.to_owned(),
        };
        let node = if v.online || v.ended_ms > 0 { v.node.clone() } else { format!("{} (offline)", v.node) };
        vec![
            v.name.to_string(),
            state,
            node,
            v.farm.clone(),
            v.trust.map_or("-", show::trust).to_owned(),
            if v.ended_ms > 0 { "-".to_owned() } else { show::ports_cell(&v.ports) },
            show_duration(now_ms().saturating_sub(v.agreed_ms) / 1000),
            v.price.map_or_else(|| "-".to_owned(), |p| p.0.to_string()),
            v.paid.0.to_string(),
            v.held.0.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = views.iter().map(row).collect();
    table(&["NAME", "STATE", "NODE", "FARM", "TRUST", "PORTS", "AGE", "PRICE", "PAID", "HELD"], &rows)
}
