//! What to do next: a pure function from what should be, what is, and the time.
//!
//! It must never ask for the deletion of data unless the ledger said that the contract ended and its grace
//! period passed, and never for the stop of a workload because something could not be read. What nobody pays for
//! it stops, also when the ledger can't be asked.
//!
//! ```text
//!  contracts (proved) ──┐
//!  owner tasks ─────────┼──> actions(..) ──> [Start, Stop, Settle, DeleteData]
//!  time ────────────────┘
//! ```

use std::collections::BTreeMap;

use croft_protocol::contract::KeptContract;
use croft_protocol::{ContractId, ContractState, Grains};

/// What the owner task of a contract is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Fetching, starting, running or trying again.
    Working,
    /// Taking everything down.
    Stopping,
}

/// Why a workload is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The ledger says that the contract ended, or it does not allow it to run.
    NotAllowed,
    /// Its duration is over.
    Expired,
    /// Its funds are used up.
    Unpaid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the owner task.
    Start(ContractId),
    /// Tell the owner task to take everything down; data stays.
    Stop(ContractId, StopReason),
    /// Ask the ledger to settle a contract whose time, or whose wait for funds or for a final report, is over.
    Settle(ContractId),
    /// The grace period passed: remove the volumes, then the stored contract.
    DeleteData(ContractId),
}

/// The actions that bring what is closer to what should be, in ascending order of contracts. The same input
/// gives the same actions; an action is asked for again until its effect is seen.
///
/// `known` are the contracts that the light client verified, now or in an earlier boot. A task or data without a
/// known contract is left alone: its record may only be out of reach.
#[must_use]
pub fn actions(
    known: &BTreeMap<ContractId, KeptContract>,
    tasks: &BTreeMap<ContractId, Activity>,
    now_ms: u64,
) -> Vec<Action> {
    let mut actions = Vec::new();
    for (id, KeptContract { body, paid_until_ms, held }) in known {
        let expired = body.expires_ms().is_some_and(|at| now_ms >= at);
        let should_run = body.state.may_run() && !expired && now_ms < *paid_until_ms;
        match (should_run, tasks.get(id)) {
            (true, None) => actions.push(Action::Start(*id)),
            (false, Some(Activity::Working)) => {
                let reason = match body.state {
                    ContractState::Agreed | ContractState::Ended(_) => StopReason::NotAllowed,
                    _ if expired => StopReason::Expired,
                    _ => StopReason::Unpaid,
                };
                actions.push(Action::Stop(*id, reason));
            }
            _ => {}
        }
        let paused = matches!(body.state, ContractState::Paused { .. });
        let unfunded = body.funds_awaited_until_ms().is_some_and(|until| now_ms >= until);
        let unclaimed = *held > Grains::ZERO && body.final_report_until_ms().is_some_and(|at| now_ms >= at);
        if expired && (body.state.may_run() || paused) || unfunded || unclaimed {
            actions.push(Action::Settle(*id));
        }
        let over = matches!(body.state, ContractState::Ended(_))
            && body.data_kept_until_ms().is_some_and(|until| now_ms >= until);
        if over && !tasks.contains_key(id) {
            actions.push(Action::DeleteData(*id));
        }
    }
    actions
}

#[cfg(test)]
mod tests;
