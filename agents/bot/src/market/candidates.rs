//! Nodes that may serve, each as the ledger proves it to be, with what its reports show of its past.
//!
//! Uptime is counted over the contracts that a node has now, which its commitment on the ledger lists completely: of the
//! time in which they might have run, how much did its reports cover. Reports come once an hour, so the last hour without
//! one is not held against it. Contracts that ended are not counted: nothing proves that a list of them is whole.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use croft_market::order::Offered;
use croft_market::{Candidate, Demand};
use croft_protocol::api::{NodeQuery, Query};
use croft_protocol::contract::PublishedPort;
use croft_protocol::record::{FarmBody, FarmId};
use croft_protocol::{ContractId, Kind, NodeId, PublicKey, limits};

use crate::grid::{Contract, Grid, GridError, Node, now_ms};

/// Nodes that are looked at: a node costs half a kilobyte of proofs for each of its values.
const LOOKED_AT: usize = 512;
/// Contracts of one node that its uptime is counted over, and of all nodes: each costs a record with its proof.
const CONTRACTS_OF_NODE: usize = 16;
const CONTRACTS_OF_ALL: usize = 256;

/// Which nodes are described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those that a search says have room; if there are none, all, so that it can be said why.
    WithRoom,
    /// All of them, so that it can be said of each why not.
    All,
}

/// Nodes for a demand, as far as [`LOOKED_AT`] goes.
pub(crate) async fn candidates(
    grid: &Grid,
    demand: &Demand,
    scope: Scope,
) -> Result<Vec<Offered>, GridError> {
    let mut found = Vec::new();
    if scope == Scope::WithRoom {
        let farm = match &demand.farm {
            Some(name) => grid.farm_named(name).await?.map(|(id, _)| id),
            None => None,
        };
        if demand.farm.is_none() || farm.is_some() {
            let countries: Vec<Option<String>> = if demand.countries.is_empty() {
                vec![None]
            } else {
                demand.countries.iter().cloned().map(Some).collect()
            };
            for country in countries {
                let query = NodeQuery { farm, country, free: demand.resources, ..NodeQuery::default() };
                found.extend(search(grid, query).await?);
            }
        }
    }
    if found.is_empty() {
        found = search(grid, NodeQuery::default()).await?;
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(LOOKED_AT);
    describe(grid, &found, &demand.ports).await
}

async fn search(grid: &Grid, query: NodeQuery) -> Result<Vec<NodeId>, GridError> {
    let found = grid.find_unproved(&Query::Nodes(query)).await?;
    Ok(found.into_iter().filter(|id| id.kind == Kind::Node).map(|id| PublicKey(id.id.0)).collect())
}

async fn describe(grid: &Grid, ids: &[NodeId], ports: &[PublishedPort]) -> Result<Vec<Offered>, GridError> {
    let nodes = grid.nodes(ids).await?;
    let keys: Vec<NodeId> = nodes.iter().map(|n| n.id).collect();
    let asked: Vec<(NodeId, PublishedPort)> =
        keys.iter().flat_map(|id| ports.iter().map(|port| (*id, *port))).collect();
    let taken = grid.ports_taken(&asked).await?;
    let mut taken_ports: BTreeMap<NodeId, BTreeSet<PublishedPort>> = BTreeMap::new();
    for ((node, port), _) in asked.into_iter().zip(taken).filter(|(_, taken)| *taken) {
        taken_ports.entry(node).or_default().insert(port);
    }
    let connected = grid.presence_unproved(&keys).await?;
    let uptimes = uptimes(grid, &nodes).await?;
    let mut farms: BTreeMap<FarmId, Option<FarmBody>> = BTreeMap::new();
    let mut offered = Vec::with_capacity(nodes.len());
    for (node, connected) in nodes.into_iter().zip(connected) {
        let id = node.body.farm;
        let farm = match farms.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(grid.farm(id).await?),
        };
        let Some(farm) = farm else { continue };
        let taken_ports = taken_ports.remove(&node.id).unwrap_or_default();
        let uptime_permille = uptimes.get(&node.id).copied();
        offered.push(Offered { candidate: candidate(node, farm, taken_ports, connected), uptime_permille });
    }
    Ok(offered)
}

fn candidate(
    node: Node,
    farm: &FarmBody,
    taken_ports: BTreeSet<PublishedPort>,
    connected: bool,
) -> Candidate {
    Candidate {
        node: node.id,
        name: node.body.name,
        farm: node.body.farm,
        farm_name: farm.name.clone(),
        farmer: farm.owner,
        country: farm.country.clone(),
        prices: farm.prices,
        capacity: node.capacity,
        trust: node.body.trust,
        addresses: node.body.addresses,
        taken_ports,
        contracts: node.contracts.len(),
        draining: node.draining,
        connected: Some(connected),
    }
}

async fn uptimes(grid: &Grid, nodes: &[Node]) -> Result<BTreeMap<NodeId, u16>, GridError> {
    let of_node = |node: &Node| node.contracts.iter().take(CONTRACTS_OF_NODE).copied().collect::<Vec<_>>();
    let ids: Vec<ContractId> = nodes.iter().flat_map(of_node).take(CONTRACTS_OF_ALL).collect();
    let mut of: BTreeMap<NodeId, Vec<Contract>> = BTreeMap::new();
    for contract in grid.contracts(&ids).await? {
        of.entry(contract.body.signed.terms.node).or_default().push(contract);
    }
    let now_ms = now_ms();
    Ok(of.into_iter().filter_map(|(node, its)| Some((node, uptime(&its, now_ms)?))).collect())
}

/// Of a thousand: covered time over time in which contracts might have run. `None` where there is too little to tell.
fn uptime(contracts: &[Contract], now_ms: u64) -> Option<u16> {
    let (mut covered, mut due) = (0_u128, 0_u128);
    for contract in contracts {
        let starts_ms = contract.body.starts_ms;
        if starts_ms == 0 {
            continue;
        }
        // What is not due to be reported yet is neither up nor down.
        let quiet_ms = now_ms.saturating_sub(limits::REPORT_EVERY_MS);
        let end_ms = contract.body.expires_ms().unwrap_or(u64::MAX);
        let until_ms = contract.escrow.covered_until_ms.max(quiet_ms).min(end_ms);
        due += u128::from(until_ms.saturating_sub(starts_ms));
        covered += u128::from(contract.escrow.covered_ms);
    }
    // Below ten minutes, the time of one start decides.
    (due >= 600_000).then(|| (covered.min(due) * 1000 / due) as u16)
}

#[cfg(test)]
mod tests {
    use croft_protocol::contract::Quorum;
    use croft_protocol::{
        Body, Capacity, ContractBody, ContractState, Escrow, FarmId, Grains, Hash, Name, Rate, Record,
        RecordId, Signature, SignedTerms, Terms,
    };

    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn contract(starts_ms: u64, covered_ms: u64, covered_until_ms: u64) -> Contract {
        let key = PublicKey([1; 32]);
        let terms = Terms {
            name: Name::new("web").unwrap(),
            user: key,
            farmer: key,
            farm: FarmId(Hash([2; 32])),
            node: key,
            resources: Capacity::default(),
            ports: Vec::new(),
            rate: Rate(1),
            duration_s: 100 * 3600,
            grace_s: 0,
            prepaid_s: None,
            capacity_version: 0,
            quorum: Quorum::default(),
            sealed: vec![1],
            expires_ms: 0,
            nonce: [0; 16],
        };
        let (user, farmer) = (Signature([0; 64]).into(), Signature([0; 64]).into());
        let signed = SignedTerms { terms, user, farmer };
        let id = signed.terms.id();
        let body =
            ContractBody { signed, state: ContractState::Active, agreed_ms: 0, starts_ms, ended_ms: 0 };
        let record = Record {
            id: RecordId::contract(&id),
            version: 1,
            prev: None,
            body: Body::Contract(Box::new(body.clone())),
            author: key,
            height: 1,
            time_ms: 0,
        };
        let escrow = Escrow { deposit: Grains(1), covered_ms, covered_until_ms, ..Escrow::default() };
        Contract { id, record, body, escrow }
    }

    #[test]
    fn uptime_is_covered_time_over_time_that_reports_are_due_for() {
        let start = 10 * HOUR_MS;
        let now = start + 10 * HOUR_MS;
        // Reported half an hour ago, and it ran all the time.
        let all = now - HOUR_MS / 2;
        assert_eq!(uptime(&[contract(start, all - start, all)], now), Some(1000));
        // Silent for five hours: four of them count as down.
        let silent = start + 5 * HOUR_MS;
        assert_eq!(uptime(&[contract(start, 5 * HOUR_MS, silent)], now), Some(5000 / 9));
        // Just begun, or still waiting for its quorum: nothing is known.
        assert_eq!(uptime(&[contract(now - 1000, 0, now - 1000)], now), None);
        assert_eq!(uptime(&[contract(0, 0, 0)], now), None);
        assert_eq!(uptime(&[], now), None);
    }
}
