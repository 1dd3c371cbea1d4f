//! Nodes that are being emptied: a proposal to everybody who has a contract there, on the record.
//!
//! It changes nothing of any contract: whoever signed one keeps it until its term ends, or ends it himself. Nor does it
//! refuse what both sign afterwards: the farmer's bot signs nothing new there, and what it signed before stays good.

use croft_protocol::record::{DrainBody, Draining};
use croft_protocol::{Body, NodeId, PublicKey, RecordId, Rejection};

use super::{bounds, known_farm, known_node};
use crate::state::StateReadExt as _;
use crate::work::{Step, Work};

/// A drain is announced at most so long ahead: a year.
const AHEAD_MS: u64 = 365 * 86_400_000;

fn must_own(work: &Work<'_>, author: PublicKey, node: &NodeId) -> Step {
    let farm = known_farm(work, &known_node(work, node)?.farm)?;
    if farm.owner == author {
        return Ok(());
    }
    let allowed = format!("the owner of farm '{}'", farm.name);
    Err(Rejection::NotAllowed { author, allowed }.into())
}

pub(super) fn drain(work: &mut Work<'_>, author: PublicKey, node: &NodeId, until_ms: Option<u64>) -> Step {
    must_own(work, author, node)?;
    let now_ms = work.now_ms();
    if let Some(until_ms) = until_ms.filter(|at| !(now_ms..=now_ms.saturating_add(AHEAD_MS)).contains(at)) {
        let allowed = format_args!("{now_ms}, which is now, to a year from now");
        return Err(bounds("the time of the drain in milliseconds", until_ms, allowed));
    }
    // Another time for the same drain: those who heard of it first heard of it then.
    let since_ms = work.draining(node)?.map_or(now_ms, |before| before.since_ms);
    let body = DrainBody { node: *node, draining: Some(Draining { since_ms, until_ms }) };
    work.append(RecordId::drain(node), Body::Drain(body), author)
}

pub(super) fn reopen(work: &mut Work<'_>, author: PublicKey, node: &NodeId) -> Step {
    must_own(work, author, node)?;
    if work.draining(node)?.is_none() {
        return Err(Rejection::NotDraining { node: *node }.into());
    }
    work.append(RecordId::drain(node), Body::Drain(DrainBody { node: *node, draining: None }), author)
}

#[cfg(test)]
mod tests {
    use croft_protocol::Command;

    use super::*;
    use crate::memory::{ALLOWANCE, Scenario};

    #[test]
    fn only_the_farms_owner_drains_a_node_and_contracts_stay_as_they_are() {
        let mut scenario = Scenario::new();
        let (farmer, other, node) = (scenario.farmer.clone(), scenario.other.clone(), scenario.node_id());
        let id = scenario.agree(scenario.terms("web")).unwrap();
        let before = scenario.contract(&id);
        let until_ms = Some(scenario.now_ms() + 60_000);
        let refused = scenario.ledger.submit(&other, Command::DrainNode { node, until_ms }).unwrap_err();
        assert!(refused.to_string().starts_with("only the owner of farm 'green' may do this"), "{refused}");
        scenario.ledger.submit(&farmer, Command::DrainNode { node, until_ms }).unwrap();
        let since_ms = scenario.now_ms();
        assert_eq!(scenario.ledger.draining(&node).unwrap(), Some(Draining { since_ms, until_ms }));
        assert_eq!(scenario.contract(&id), before, "nobody's contract is touched");
        scenario.ledger.submit(&farmer, Command::DrainNode { node, until_ms: None }).unwrap();
        let now = scenario.ledger.draining(&node).unwrap();
        assert_eq!(now, Some(Draining { since_ms, until_ms: None }), "the same drain, another time");
        scenario.ledger.submit(&farmer, Command::ReopenNode { node }).unwrap();
        assert_eq!(scenario.ledger.draining(&node).unwrap(), None);
        let refused = scenario.ledger.submit(&farmer, Command::ReopenNode { node }).unwrap_err().to_string();
        assert_eq!(refused, format!("node {node} is not being drained: there is nothing to undo"));
    }

    #[test]
    fn a_drain_is_for_a_time_to_come_and_what_both_signed_before_stays_good() {
        let mut scenario = Scenario::new();
        let (farmer, user, node) = (scenario.farmer.clone(), scenario.user.clone(), scenario.node_id());
        for until_ms in [scenario.now_ms() - 1, scenario.now_ms() + 2 * AHEAD_MS] {
            let drain = Command::DrainNode { node, until_ms: Some(until_ms) };
            let refused = scenario.ledger.submit(&farmer, drain).unwrap_err().to_string();
            assert!(refused.contains("which is now, to a year from now"), "{refused}");
        }
        scenario.ledger.submit(&farmer, Command::DrainNode { node, until_ms: None }).unwrap();
        let id = scenario.agree(scenario.terms("web")).unwrap();
        scenario.ledger.submit(&user, Command::Close { contract: id }).unwrap();
        assert!(scenario.balance(&user).0 >= ALLOWANCE.0 - 1, "who leaves gets back what he did not use");
    }
}
