//! Reports: a node says what ran, and its farmer is paid for it.
//!
//! ```text
//!   previous until ──┐            ┌── block time + clock slack
//!                    v            v
//!        ────────────[from … until]──────>  covers at most REPORT_COVERS_MS, and not what is long past
//! ```
//! A node can't be paid twice for one moment, nor for a moment before the start or after the end of a
//! contract, nor for time about which it was silent too long, nor for more than the escrow holds: with the last of
//! it the contract is paused. What ran before an end is paid by the report after it, if that comes soon.

use std::collections::BTreeSet;

use croft_protocol::record::{ContractReport, ReportBody, WorkloadState};
use croft_protocol::{
    Body, ContractBody, ContractState, EndReason, Grains, NodeId, PublicKey, RecordId, Rejection, limits,
};

use super::{check_text, contracts, known_node};
use crate::state::{StateError, StateReadExt};
use crate::work::{Step, Stop, Work};

pub(super) fn report(work: &mut Work<'_>, author: PublicKey, report: &ReportBody) -> Step {
    if report.node != author {
        let allowed = format!("node {} itself", report.node);
        return Err(Rejection::NotAllowed { author, allowed }.into());
    }
    let node = known_node(work, &author)?;
    if report.session < node.session {
        let (got, known) = (report.session, node.session);
        return Err(Rejection::StaleSession { node: author, got, known }.into());
    }
    if report.session > node.session {
        return Err(no_good(format!(
            "session {} is not registered, {} is: register first",
            report.session, node.session
        )));
    }
    check_interval(work, &author, report)?;
    let mut seen = BTreeSet::new();
    for line in &report.contracts {
        if !seen.insert(line.contract) {
            return Err(no_good(format!("contract {} stands in it twice", line.contract)));
        }
    }
    if report.contracts.len() > limits::CONTRACTS_PER_NODE {
        return Err(no_good(format!(
            "it has {} contracts, at most {} are allowed",
            report.contracts.len(),
            limits::CONTRACTS_PER_NODE
        )));
    }
    work.append(RecordId::report(&author), Body::Report(report.clone()), author)?;
    for line in &report.contracts {
        apply(work, author, report, line)?;
    }
    Ok(())
}

fn check_interval(work: &Work<'_>, node: &NodeId, report: &ReportBody) -> Step {
    let ReportBody { from_ms, until_ms, .. } = *report;
    let now_ms = work.now_ms();
    if from_ms > until_ms {
        return Err(no_good(format!("it covers {from_ms} to {until_ms} ms, backwards")));
    }
    if until_ms - from_ms > limits::REPORT_COVERS_MS {
        return Err(no_good(format!(
            "it covers {} ms, at most {} are allowed",
            until_ms - from_ms,
            limits::REPORT_COVERS_MS
        )));
    }
    if until_ms > now_ms.saturating_add(limits::CLOCK_SLACK_MS) {
        return Err(no_good(format!(
            "it covers until {until_ms} ms, but it is {now_ms} ms: correct the node's clock"
        )));
    }
    let oldest_ms = now_ms.saturating_sub(limits::REPORT_COVERS_MS + limits::CLOCK_SLACK_MS);
    if from_ms < oldest_ms {
        return Err(no_good(format!(
            "it covers from {from_ms} ms, nothing before {oldest_ms} ms counts now"
        )));
    }
    let before = match work.record(&RecordId::report(node))?.map(|record| record.body) {
        None => 0,
        Some(Body::Report(before)) => before.until_ms,
        Some(_) => return Err(StateError::broken("a report is a report").into()),
    };
    if from_ms < before {
        return Err(no_good(format!("it covers from {from_ms} ms, an earlier one covers until {before} ms")));
    }
    Ok(())
}

fn apply(work: &mut Work<'_>, node: NodeId, report: &ReportBody, line: &ContractReport) -> Step {
    let id = line.contract;
    let Some(body) = work.contract(&id)? else {
        return Err(no_good(format!("there is no contract {id} on this grid")));
    };
    if body.signed.terms.node != node {
        return Err(no_good(format!("contract {id} is addressed to another node")));
    }
    if line.ran_ms > report.until_ms - report.from_ms {
        return Err(no_good(format!(
            "contract {id} can't have run {} ms of {}",
            line.ran_ms,
            report.until_ms - report.from_ms
        )));
    }
    check_text("a contract's detail", &line.detail)?;
    match body.state {
        ContractState::Agreed if line.ran_ms > 0 || line.state == WorkloadState::Running => {
            Err(no_good(format!("contract {id} must not run: it waits for its approvers")))
        }
        // It is being prepared, or it may not run now: nobody pays for it.
        ContractState::Agreed | ContractState::Paused { .. } => Ok(()),
        ContractState::Ended(_) => apply_final(work, report, line, &body),
        ContractState::Approved | ContractState::Active | ContractState::Degraded => {
            apply_running(work, node, report, line, body)
        }
    }
}

fn apply_running(
    work: &mut Work<'_>,
    node: NodeId,
    report: &ReportBody,
    line: &ContractReport,
    body: ContractBody,
) -> Step {
    let id = line.contract;
    let expires_ms = body.expires_ms().unwrap_or(body.starts_ms);
    let covered_until_ms = contracts::escrow_of(work, &id)?.covered_until_ms;
    let from_ms = report.from_ms.max(body.starts_ms).max(covered_until_ms);
    let until_ms = report.until_ms.min(expires_ms);
    let ran_ms = line.ran_ms.min(until_ms.saturating_sub(from_ms));
    contracts::pay(work, id, &body.signed.terms, ran_ms, until_ms)?;
    if contracts::is_over(&body, work.now_ms()) {
        return contracts::end(work, node, id, body, EndReason::Expired);
    }
    if body.is_out_of_funds(&contracts::escrow_of(work, &id)?) {
        let (from, since_ms) = (body.state, work.now_ms());
        return contracts::change_state(work, node, id, body, ContractState::Paused { since_ms }, Some(from));
    }
    let state = next_state(body.state, line.state);
    if state == body.state {
        return Ok(());
    }
    let from = body.state;
    contracts::change_state(work, node, id, body, state, Some(from))
}

/// Pays for what ran until the end; the rest goes back once a report has reached it.
fn apply_final(work: &mut Work<'_>, report: &ReportBody, line: &ContractReport, body: &ContractBody) -> Step {
    let id = line.contract;
    let escrow = contracts::escrow_of(work, &id)?;
    let in_time = body.final_report_until_ms().is_some_and(|until_ms| work.now_ms() < until_ms);
    if escrow.held() == Grains::ZERO || !in_time {
        return Ok(());
    }
    let end_ms = body.ended_ms.min(body.expires_ms().unwrap_or(body.ended_ms));
    let from_ms = report.from_ms.max(body.starts_ms).max(escrow.covered_until_ms);
    let until_ms = report.until_ms.min(end_ms);
    let ran_ms = line.ran_ms.min(until_ms.saturating_sub(from_ms));
    contracts::pay(work, id, &body.signed.terms, ran_ms, until_ms)?;
    if report.until_ms >= end_ms { contracts::refund_all(work, id, body) } else { Ok(()) }
}

/// What the node says, as a state of the contract.
fn next_state(now: ContractState, reported: WorkloadState) -> ContractState {
    match (now, reported) {
        (_, WorkloadState::Running | WorkloadState::Finished) => ContractState::Active,
        // On its first start a workload takes its time; later that is not what its user pays for.
        (_, WorkloadState::Failing | WorkloadState::Refused)
        | (ContractState::Active, WorkloadState::Preparing) => ContractState::Degraded,
        (now, WorkloadState::Preparing) => now,
    }
}

fn no_good(reason: String) -> Stop {
    Rejection::Report { reason }.into()
}

#[cfg(test)]
mod tests;
