//! Whether a farmer's bot signs what a user proposes, at fixed prices.

use std::collections::BTreeSet;

use croft_protocol::capacity::Shortfall;
use croft_protocol::contract::PublishedPort;
use croft_protocol::{BotId, FarmId, NodeCapacity, NodeId, PriceList, Terms, limits};

/// What a farmer allows, beyond prices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FarmerPolicy {
    /// Shorter contracts are not worth it.
    pub min_duration_s: u64,
    /// Longer ones bind the price for too long.
    pub max_duration_s: u64,
    pub max_grace_s: u64,
    /// A signature binds the farmer until the terms expire: at most this long from now.
    pub max_open_ms: u64,
    /// The lowest port that may be published; those below are the node's.
    pub first_port: u16,
}

impl Default for FarmerPolicy {
    fn default() -> Self {
        Self {
            min_duration_s: 60,
            max_duration_s: limits::DURATION_S,
            max_grace_s: limits::GRACE_S,
            max_open_ms: 10 * 60_000,
            first_port: 1,
        }
    }
}

/// The node that a proposal names, as the farmer's bot knows it from the ledger.
#[derive(Debug, Clone, Copy)]
pub struct OfferedNode<'a> {
    pub node: NodeId,
    pub farm: FarmId,
    /// The farm's owner: whose signature is asked for.
    pub farmer: BotId,
    pub prices: &'a PriceList,
    pub capacity: &'a NodeCapacity,
    pub taken_ports: &'a BTreeSet<PublishedPort>,
    /// Contracts that it has.
    pub contracts: usize,
    /// Whether it is connected to a replica now; `None` when nobody knows.
    pub connected: Option<bool>,
}

/// Why the farmer does not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposalRefusal {
    #[error("the terms name farmer {got}, but I am {ours}: ask the farm's owner")]
    Farmer { got: BotId, ours: BotId },
    #[error("the terms name farm {got}, but node {node} is of farm {ours}: look the node up again")]
    Farm { node: NodeId, got: FarmId, ours: FarmId },
    #[error("the terms name node {got}, but the one looked up is {ours}")]
    Node { got: NodeId, ours: NodeId },
    #[error(
        "the terms are void since {expired_ms} ms, it is {now_ms} ms: sign new ones, and check your clock"
    )]
    Expired { expired_ms: u64, now_ms: u64 },
    #[error("the terms stay open for {open_ms} ms, at most {limit_ms} are allowed: let them expire sooner")]
    OpenTooLong { open_ms: u64, limit_ms: u64 },
    #[error("{what} is {got}, allowed are {min} to {max}")]
    Bounds { what: &'static str, got: u64, min: u64, max: u64 },
    #[error("the price of these resources can't be computed: it exceeds all grains")]
    Overflow,
    #[error("the rate is {got} grains per second, but these resources cost {asked}: offer that much")]
    Rate { got: u64, asked: u64 },
    #[error("node {node} has too little free ({}): ask for less, or choose another node", join(shortfalls))]
    Capacity { node: NodeId, shortfalls: Vec<Shortfall> },
    #[error(
        "the terms rely on capacity version {got} of node {node}, which is at {current}: look it up again"
    )]
    Version { node: NodeId, got: u64, current: u64 },
    #[error("port {port} of node {node} is taken: choose another port")]
    Port { node: NodeId, port: PublishedPort },
    #[error("port {port} is reserved, the first that may be published is {first}: choose another port")]
    ReservedPort { port: PublishedPort, first: u16 },
    #[error("ports must be in ascending order, each once, none 0")]
    PortOrder,
    #[error("node {node} has {limit} contracts, which is all it may have: choose another node")]
    Full { node: NodeId, limit: usize },
    #[error("node {node} is not connected: choose another node, or try again later")]
    Offline { node: NodeId },
}

fn join(shortfalls: &[Shortfall]) -> String {
    shortfalls.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl ProposalRefusal {
    /// Whether the same terms will never be signed. What is not final may pass later: when others leave, or
    /// when the node is back.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Capacity { .. }
                | Self::Version { .. }
                | Self::Port { .. }
                | Self::Full { .. }
                | Self::Offline { .. }
        )
    }
}

/// Whether the farmer's bot signs these terms. What is wrong for good is said before what may change.
///
/// # Errors
/// [`ProposalRefusal`] names the first reason.
pub fn check_proposal(
    terms: &Terms,
    offered: &OfferedNode<'_>,
    policy: &FarmerPolicy,
    now_ms: u64,
) -> Result<(), ProposalRefusal> {
    check_parties(terms, offered)?;
    check_times(terms, policy, now_ms)?;
    let asked = offered.prices.rate(&terms.resources).ok_or(ProposalRefusal::Overflow)?;
    if terms.rate < asked {
        return Err(ProposalRefusal::Rate { got: terms.rate.0, asked: asked.0 });
    }
    if terms.price().is_none() {
        return Err(ProposalRefusal::Overflow);
    }
    check_ports(terms, offered, policy)?;
    check_room(terms, offered)
}

fn check_parties(terms: &Terms, offered: &OfferedNode<'_>) -> Result<(), ProposalRefusal> {
    if terms.farmer != offered.farmer {
        return Err(ProposalRefusal::Farmer { got: terms.farmer, ours: offered.farmer });
    }
    if terms.node != offered.node {
        return Err(ProposalRefusal::Node { got: terms.node, ours: offered.node });
    }
    if terms.farm != offered.farm {
        return Err(ProposalRefusal::Farm { node: offered.node, got: terms.farm, ours: offered.farm });
    }
    Ok(())
}

fn check_times(terms: &Terms, policy: &FarmerPolicy, now_ms: u64) -> Result<(), ProposalRefusal> {
    let Some(open_ms) = terms.expires_ms.checked_sub(now_ms) else {
        return Err(ProposalRefusal::Expired { expired_ms: terms.expires_ms, now_ms });
    };
    if open_ms > policy.max_open_ms {
        return Err(ProposalRefusal::OpenTooLong { open_ms, limit_ms: policy.max_open_ms });
    }
    let bounds = |what, got, min, max| {
        if (min..=max).contains(&got) { Ok(()) } else { Err(ProposalRefusal::Bounds { what, got, min, max }) }
    };
    bounds("the duration in seconds", terms.duration_s, policy.min_duration_s, policy.max_duration_s)?;
    bounds("the grace period in seconds", terms.grace_s, 0, policy.max_grace_s)?;
    // A paused contract keeps its capacity for the grace period, unpaid: for no longer than was paid ahead.
    let prepaid_s = terms.prepaid_s.unwrap_or(terms.duration_s);
    if terms.prepaid_s.is_some() {
        bounds("the time that is paid ahead, in seconds,", prepaid_s, terms.grace_s, terms.duration_s)?;
    }
    bounds("the CPU in millis", terms.resources.cpu_millis, 1, u64::MAX)?;
    bounds("the memory in bytes", terms.resources.memory_bytes, 1, u64::MAX)?;
    bounds(
        "the sealed workload in bytes",
        terms.sealed.len() as u64,
        1,
        limits::SEALED_WORKLOAD_BYTES as u64,
    )?;
    bounds("the number of ports", terms.ports.len() as u64, 0, limits::PORTS_PER_CONTRACT as u64)?;
    let approvers = terms.quorum.approvers.len() as u64;
    bounds("the number of approvers", approvers, 0, limits::APPROVERS_PER_CONTRACT as u64)
}

fn check_ports(
    terms: &Terms,
    offered: &OfferedNode<'_>,
    policy: &FarmerPolicy,
) -> Result<(), ProposalRefusal> {
    let ascending = terms.ports.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || terms.ports.iter().any(|port| port.port == 0) {
        return Err(ProposalRefusal::PortOrder);
    }
    for port in &terms.ports {
        if port.port < policy.first_port {
            return Err(ProposalRefusal::ReservedPort { port: *port, first: policy.first_port });
        }
    }
    match terms.ports.iter().find(|port| offered.taken_ports.contains(port)) {
        Some(port) => Err(ProposalRefusal::Port { node: offered.node, port: *port }),
        None => Ok(()),
    }
}

fn check_room(terms: &Terms, offered: &OfferedNode<'_>) -> Result<(), ProposalRefusal> {
    let node = offered.node;
    if terms.capacity_version > offered.capacity.version {
        let (got, current) = (terms.capacity_version, offered.capacity.version);
        return Err(ProposalRefusal::Version { node, got, current });
    }
    let shortfalls = offered.capacity.free().shortfalls(&terms.resources);
    if !shortfalls.is_empty() {
        return Err(ProposalRefusal::Capacity { node, shortfalls });
    }
    if offered.contracts >= limits::CONTRACTS_PER_NODE {
        return Err(ProposalRefusal::Full { node, limit: limits::CONTRACTS_PER_NODE });
    }
    if offered.connected == Some(false) {
        return Err(ProposalRefusal::Offline { node });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
