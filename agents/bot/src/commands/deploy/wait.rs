//! Waits until a contract runs, and says meanwhile what its node does.
//!
//! ```text
//!   approved ──node takes it──> (fetching, starting) ──report──> active: done
//!                                     └── refused, degraded for good, time over: why, and what to do
//! ```

use std::time::Duration;

use croft_protocol::api::Concern;
use croft_protocol::peer::Explanation;
use croft_protocol::record::WorkloadState;
use croft_protocol::{ContractState, Name, RecordId};
use croft_transport::verified::{Followed, Following};
use tokio::time::{Instant, timeout_at};

use super::super::{contracts, show};
use crate::exit::{Exit, Failure};
use crate::grid::{Contract, Grid, GridError};
use crate::peers::{NodePeer, PeerProblem};
use crate::terminal::{Progress, printable, show_duration};

/// How often the node is asked what it is doing.
const LOOK_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum WaitError {
    #[error("node '{node}' won't run '{name}': {reason}")]
    Refused { name: Name, node: Name, reason: String },
    #[error("'{name}' ended before it ran: {reason}")]
    Ended { name: Name, reason: &'static str },
    #[error("'{name}' does not run on node '{node}' after {waited}: {reason}")]
    TooLong { name: Name, node: Name, waited: String, reason: String },
    #[error("contract '{name}' has vanished from the ledger")]
    Vanished { name: Name },
}

/// What the node said last.
#[derive(Default)]
struct Seen {
    /// Time of the newest step that was shown.
    until_ms: u64,
    last: Option<String>,
    trouble: Option<String>,
}

pub(super) async fn until_running(
    grid: &Grid,
    node: &NodePeer,
    mut contract: Contract,
    limit: Duration,
    progress: &mut dyn Progress,
) -> Result<Contract, Failure> {
    let name = contract.body.signed.terms.name.clone();
    let id = contract.id;
    let deadline = Instant::now() + limit;
    // Events only make us look at once; losing them costs the pause between two looks.
    let mut events = grid.follow(vec![Concern::Record(RecordId::contract(&id))]).await.ok();
    let mut seen = Seen::default();
    let mut state = contract.body.state;
    progress.start(&format!("waiting for node '{}' to run '{name}'", node.name), 0);
    loop {
        contract = grid
            .contract(id)
            .await?
            .ok_or_else(|| Failure::failed(WaitError::Vanished { name: name.clone() }))?;
        if contract.body.state != state {
            state = contract.body.state;
            progress.note(&format!("{}, block {}", show::state(state), contract.record.height));
        }
        match state {
            ContractState::Active => {
                progress.finish();
                return Ok(contract);
            }
            // People decide now, and may take days.
            ContractState::Agreed => {
                progress.finish();
                progress
                    .note(&format!("'{name}' waits for its approvers: 'croft explain {name}' says for whom"));
                return Ok(contract);
            }
            ContractState::Ended(_) => {
                let reason = show::end_reason(state).unwrap_or("ended");
                return Err(Failure::refused(WaitError::Ended { name, reason }));
            }
            _ => {}
        }
        // What the node reported is on the ledger, even if the node itself can't be asked now.
        if state == ContractState::Degraded
            && let Some(report) = contracts::last_report(grid, &contract).await?
            && report.state == WorkloadState::Refused
        {
            return Err(refused(&name, node, printable(&report.detail)));
        }
        if let Some(reason) = look(grid, node, &contract, &mut seen, progress).await? {
            return Err(refused(&name, node, reason));
        }
        if Instant::now() >= deadline {
            return Err(too_long(&name, node, limit, &seen));
        }
        pause(&mut events, deadline.min(Instant::now() + LOOK_EVERY)).await;
    }
}

fn refused(name: &Name, node: &NodePeer, reason: String) -> Failure {
    let error = WaitError::Refused { name: name.clone(), node: node.name.clone(), reason };
    Failure::refused(error).remedy(format!(
        "'croft explain {name}' has the details, 'croft stop {name}' ends it and refunds what it holds"
    ))
}

/// Asks the node what it is doing. Returns why it never will.
async fn look(
    grid: &Grid,
    node: &NodePeer,
    contract: &Contract,
    seen: &mut Seen,
    progress: &mut dyn Progress,
) -> Result<Option<String>, GridError> {
    match node.explain(grid, contract.id).await {
        Ok(explanation) => {
            show_new_steps(&explanation, seen, progress);
            let refused = explanation.state == WorkloadState::Refused;
            Ok(refused.then(|| seen.last.clone().unwrap_or_else(|| "it gives no reason".to_owned())))
        }
        Err(PeerProblem::Grid(error)) => Err(error),
        // It may be rebooting, or not have seen the contract yet.
        Err(other) => {
            seen.trouble = Some(other.to_string());
            Ok(None)
        }
    }
}

fn show_new_steps(explanation: &Explanation, seen: &mut Seen, progress: &mut dyn Progress) {
    seen.trouble = None;
    // Steps are in order; the list is bounded, so old ones fall out of it.
    for step in explanation.steps.iter().filter(|step| step.time_ms > seen.until_ms) {
        let mark = if step.failed { "failed: " } else { "" };
        progress.note(&format!("  {mark}{}", printable(&step.what)));
    }
    seen.until_ms = explanation.steps.iter().map(|s| s.time_ms).fold(seen.until_ms, u64::max);
    seen.last = explanation.steps.last().map(|s| printable(&s.what));
}

fn too_long(name: &Name, node: &NodePeer, limit: Duration, seen: &Seen) -> Failure {
    let reason = match (&seen.trouble, &seen.last) {
        (Some(trouble), _) => trouble.clone(),
        (None, Some(last)) => format!("it is at '{last}'"),
        (None, None) => "it has not said anything".to_owned(),
    };
    let error = WaitError::TooLong {
        name: name.clone(),
        node: node.name.clone(),
        waited: show_duration(limit.as_secs()),
        reason,
    };
    let exit = if seen.trouble.is_some() { Exit::Unreachable } else { Exit::Failed };
    Failure::new(exit, error).remedy(format!(
        "the contract stands and the node goes on trying: see 'croft explain {name}', or end it with 'croft stop {name}'"
    ))
}

async fn pause(events: &mut Option<Following>, until: Instant) {
    let Some(follow) = events else {
        tokio::time::sleep_until(until).await;
        return;
    };
    loop {
        match timeout_at(until, follow.next()).await {
            // Every block comes by; only ours is worth a look before the time.
            Ok(Ok(Followed::Block { records, .. })) if !records.is_empty() => return,
            Ok(Ok(Followed::Block { .. } | Followed::Presence { .. })) => {}
            Ok(Ok(Followed::Resumed)) | Err(_) => return,
            Ok(Err(_)) => {
                *events = None;
                return;
            }
        }
    }
}
