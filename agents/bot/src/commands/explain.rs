//! `croft explain`: where a contract stands, why, and what to do.
//!
//! Three witnesses, each named: the ledger (proved), the replica (who is connected), and the node itself
//! (signed by its key in TLS, believed for what it is).

use croft_protocol::peer::Explanation;
use croft_protocol::record::{TrustClass, WorkloadState};
use croft_protocol::{
    Body, ContractId, ContractState, Escrow, Grains, Hash, Name, NodeId, NodeTrouble, Rate, Record, RecordId,
    limits,
};
use serde::Serialize;

use super::contracts::ReportView;
use super::logs::node_of;
use super::quorum::{self, QuorumView};
use super::{Acting, Context, contracts, show};
use crate::exit::Failure;
use crate::grid::{Contract, GridError, now_ms};
use crate::peers::NodePeer;
use crate::terminal::{printable, push, show_duration, show_time};

#[derive(Serialize)]
struct Explained {
    name: Name,
    contract: ContractId,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// Oldest first.
    states: Vec<StateView>,
    escrow: EscrowView,
    rate: Rate,
    price: Option<Grains>,
    node: NodeView,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<ReportView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<Explanation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quorum: Option<QuorumView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    funded_until_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<Grains>,
    advice: Vec<String>,
}

#[derive(Serialize)]
struct StateView {
    state: &'static str,
    version: u64,
    height: u64,
    time_ms: u64,
    hash: Hash,
}

#[derive(Serialize)]
struct EscrowView {
    deposit: Grains,
    paid: Grains,
    refunded: Grains,
    held: Grains,
    covered_ms: u64,
}

#[derive(Serialize)]
struct NodeView {
    node: Name,
    id: NodeId,
    farm: String,
    online: bool,
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<TrustClass>,
    /// Why it is not worth more.
    trust_reasons: Vec<String>,
    /// What is wrong with the machine and what to do, in its own words.
    troubles: Vec<NodeTrouble>,
}

pub(super) async fn explain(c: &mut Context<'_>, name: &Name) -> Result<(), Failure> {
    let acting = c.acting()?;
    let contract = contracts::any(&acting, name).await?;
    let (_, versions) = acting.grid.history(RecordId::contract(&contract.id)).await?;
    let peer = node_of(&acting, &contract).await?;
    let node = node_view(&acting, &contract, &peer).await?;
    let report = contracts::last_report(&acting.grid, &contract).await?;
    let (explanation, explanation_error) = match (node.online, contract.body.state) {
        // It does not run it, and there is nothing to tell.
        (_, ContractState::Ended(_) | ContractState::Agreed | ContractState::Paused { .. }) => (None, None),
        (false, _) => (None, Some(format!("node '{}' is not connected", peer.name))),
        (true, _) => match peer.explain(&acting.grid, contract.id).await {
            Ok(explanation) => (Some(explanation), None),
            Err(problem) => (None, Some(Failure::failed(problem).message())),
        },
    };
    let quorum = quorum::view(&acting.grid, &contract).await?;
    acting.grid.close().await;
    let terms = &contract.body.signed.terms;
    let explained = Explained {
        name: terms.name.clone(),
        contract: contract.id,
        state: show::state(contract.body.state),
        reason: show::end_reason(contract.body.state),
        states: versions.iter().filter_map(state_view).collect(),
        escrow: escrow_view(&contract.escrow),
        rate: terms.rate,
        price: terms.price(),
        advice: advice(&contract, &node, report.as_ref(), explanation.as_ref(), quorum.as_ref()),
        quorum,
        funded_until_ms: show::funded_until_ms(&contract),
        missing: show::missing(&contract),
        node,
        report,
        explanation,
        explanation_error,
    };
    c.terminal.result(&explained, |e| text(e, &contract))
}

fn state_view(record: &Record) -> Option<StateView> {
    let Body::Contract(body) = &record.body else { return None };
    Some(StateView {
        state: show::state(body.state),
        version: record.version,
        height: record.height,
        time_ms: record.time_ms,
        hash: record.hash(),
    })
}

fn escrow_view(escrow: &Escrow) -> EscrowView {
    EscrowView {
        deposit: escrow.deposit,
        paid: escrow.paid,
        refunded: escrow.refunded,
        held: escrow.held(),
        covered_ms: escrow.covered_ms,
    }
}

async fn node_view(acting: &Acting, contract: &Contract, peer: &NodePeer) -> Result<NodeView, GridError> {
    let terms = &contract.body.signed.terms;
    let farm = acting.grid.farm(terms.farm).await?;
    let node = acting.grid.node(peer.id).await?;
    Ok(NodeView {
        node: peer.name.clone(),
        id: peer.id,
        farm: farm.map_or_else(|| terms.farm.0.short(), |f| f.name.to_string()),
        online: acting.grid.presence_unproved(&[peer.id]).await?.first() == Some(&true),
        trust: node.as_ref().map(|n| n.body.trust),
        trust_reasons: node.as_ref().and_then(|n| n.trust.clone()).map(|t| t.reasons).unwrap_or_default(),
        troubles: node.as_ref().map(|n| n.body.troubles.clone()).unwrap_or_default(),
        addresses: node.map(|n| n.body.addresses).unwrap_or_default(),
    })
}

/// What to do, most urgent first.
fn advice(
    contract: &Contract,
    node: &NodeView,
    report: Option<&ReportView>,
    explanation: Option<&Explanation>,
    quorum: Option<&QuorumView>,
) -> Vec<String> {
    let name = &contract.body.signed.terms.name;
    let mut advice = Vec::new();
    let trouble = explanation
        .map(|e| e.state)
        .or(report.map(|r| r.state))
        .is_some_and(|s| matches!(s, WorkloadState::Failing | WorkloadState::Refused));
    match contract.body.state {
        ContractState::Ended(_) => {
            advice.push("nothing: it has ended. 'croft deploy' starts it anew".to_owned());
            return advice;
        }
        ContractState::Agreed => {
            let whom = quorum.map_or_else(|| "its approvers".to_owned(), QuorumView::waits_for);
            advice.push(format!("it waits for {whom}: each decides with 'croft approve'"));
        }
        ContractState::Paused { .. } => {
            let missing = show::missing(contract).unwrap_or_default();
            let until = contract.body.funds_awaited_until_ms().unwrap_or_default();
            advice.push(format!(
                "its funds ran out: 'croft fund {name} {}' resumes it until {}; then it ends, and its data goes",
                missing.0,
                show_time(until)
            ));
        }
        _ if !node.online => advice.push(format!(
            "node '{}' is offline: it is not paid meanwhile and goes on when it is back; ask its farmer, or 'croft stop {name}' and deploy elsewhere",
            node.node
        )),
        ContractState::Approved if report.is_none() && explanation.is_none_or(|e| e.steps.is_empty()) => {
            advice.push("the node has not taken it up yet: this takes seconds".to_owned());
        }
        ContractState::Approved if !trouble => {
            advice.push("the node is preparing it: fetching a large image takes a while".to_owned());
        }
        ContractState::Active if !trouble => advice.push("nothing: it runs".to_owned()),
        _ => {}
    }
    if trouble {
        advice.push(format!("see its output with 'croft logs {name}'"));
        if explanation.is_some_and(|e| e.state == WorkloadState::Refused) {
            advice.push(format!(
                "the node won't run it as it is: 'croft stop {name}', correct the file, deploy again"
            ));
        }
    } else if contract.body.state == ContractState::Degraded && node.online {
        advice.push(format!("the node is online but has not reported that it runs: see 'croft logs {name}'"));
    }
    let silent_ms = now_ms().saturating_sub(report.map_or(contract.body.agreed_ms, |r| r.time_ms));
    if contract.body.state == ContractState::Active && silent_ms > 2 * limits::REPORT_EVERY_MS {
        advice.push(format!("the node has not reported for {}", show_duration(silent_ms / 1000)));
    }
    advice
}

fn text(e: &Explained, contract: &Contract) -> String {
    let mut t = format!("'{}' is {}", e.name, show::state_cell(contract.body.state));
    push!(t, " on node '{}' of farm '{}'\n\non the ledger (proved)\n", e.node.node, e.node.farm);
    for s in &e.states {
        push!(t, "  {}  {:<9} block {}\n", show_time(s.time_ms), s.state, s.height);
    }
    for approver in e.quorum.iter().flat_map(|quorum| &quorum.approvers) {
        let required = if approver.required { ", required" } else { "" };
        push!(
            t,
            "  approver {} (weight {}{required}): {}\n",
            approver.bot,
            approver.weight,
            approver.decision
        );
    }
    if let Some(quorum) = &e.quorum {
        push!(t, "  approved {} of {}\n", quorum.approved, quorum.threshold);
    }
    if let Some(until) = e.funded_until_ms {
        push!(t, "  {}  its funds are used up, if it always runs\n", show_time(until));
    }
    if let Some(until) = contract.body.funds_awaited_until_ms() {
        push!(t, "  {}  it ends without funds\n", show_time(until));
    }
    if let Some(expires) = contract.body.expires_ms().filter(|_| contract.body.ended_ms == 0) {
        push!(t, "  {}  its time is over\n", show_time(expires));
    }
    push!(
        t,
        "  price {}, paid {} for {}, held {}, refunded {}\n",
        e.price.unwrap_or_default(),
        e.escrow.paid,
        show_duration(e.escrow.covered_ms / 1000),
        e.escrow.held,
        e.escrow.refunded
    );
    if let Some(trust) = e.node.trust {
        push!(t, "  the node's trust: {}\n", show::trust(trust));
    }
    for reason in &e.node.trust_reasons {
        push!(t, "    {}\n", printable(reason));
    }
    for trouble in &e.node.troubles {
        push!(t, "  the node {}\n", show::trouble(trouble));
    }
    match &e.report {
        Some(r) => push!(
            t,
            "  last report: {} in block {}, {} ago{}\n",
            show::workload_state(r.state),
            r.height,
            show_duration(now_ms().saturating_sub(r.time_ms) / 1000),
            if r.detail.is_empty() { String::new() } else { format!(": {}", printable(&r.detail)) }
        ),
        None => t.push_str("  the node has not reported it yet\n"),
    }
    push!(t, "\nthe replica says that the node is {}\n", if e.node.online { "online" } else { "offline" });
    if let Some(explanation) = &e.explanation {
        push!(t, "\nthe node says: {}\n", show::workload_state(explanation.state));
        for step in &explanation.steps {
            let mark = if step.failed { "failed: " } else { "" };
            push!(t, "  {}  {mark}{}\n", show_time(step.time_ms), printable(&step.what));
        }
        for vm in &explanation.vms {
            push!(
                t,
                "  microVM '{}': {} for {}, {} restarts{}{}\n",
                vm.name,
                printable(&vm.phase),
                show_duration(now_ms().saturating_sub(vm.since_ms) / 1000),
                vm.restarts,
                if vm.address.is_empty() { String::new() } else { format!(", {}", printable(&vm.address)) },
                if vm.detail.is_empty() { String::new() } else { format!(": {}", printable(&vm.detail)) }
            );
        }
    }
    if let Some(error) = &e.explanation_error {
        push!(t, "\nthe node itself could not be asked: {}\n", printable(error));
    }
    t.push_str("\nwhat to do\n");
    for advice in &e.advice {
        push!(t, "  {advice}\n");
    }
    t
}
