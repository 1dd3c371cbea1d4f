//! Nodes that may serve, each as the ledger proves it to be.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use croft_market::{Candidate, Demand};
use croft_protocol::api::{NodeQuery, Query};
use croft_protocol::contract::PublishedPort;
use croft_protocol::record::{FarmBody, FarmId};
use croft_protocol::{Kind, NodeId, PublicKey};

use crate::deploy_file::Placement;
use crate::grid::{Grid, GridError, Node};

/// Nodes that are looked at: a node costs half a kilobyte of proofs for each of its values.
const LOOKED_AT: usize = 512;

/// First the nodes that a search says have room; if there are none, all others, so that it can be said why.
pub(super) async fn candidates(
    grid: &Grid,
    placement: &Placement,
    demand: &Demand,
) -> Result<Vec<Candidate>, GridError> {
    let farm = match &placement.farm {
        Some(name) => grid.farm_named(name).await?.map(|(id, _)| id),
        None => None,
    };
    let mut found = Vec::new();
    if placement.farm.is_none() || farm.is_some() {
        let countries: Vec<Option<String>> = if placement.countries.is_empty() {
            vec![None]
        } else {
            placement.countries.iter().cloned().map(Some).collect()
        };
        for country in countries {
            let query = NodeQuery { farm, country, free: demand.resources, ..NodeQuery::default() };
            found.extend(search(grid, query).await?);
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

async fn describe(grid: &Grid, ids: &[NodeId], ports: &[PublishedPort]) -> Result<Vec<Candidate>, GridError> {
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
    let mut farms: BTreeMap<FarmId, Option<FarmBody>> = BTreeMap::new();
    let mut candidates = Vec::with_capacity(nodes.len());
    for (node, connected) in nodes.into_iter().zip(connected) {
        let id = node.body.farm;
        let farm = match farms.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(grid.farm(id).await?),
        };
        let Some(farm) = farm else { continue };
        let taken_ports = taken_ports.remove(&node.id).unwrap_or_default();
        candidates.push(candidate(node, farm, taken_ports, connected));
    }
    Ok(candidates)
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
        connected: Some(connected),
    }
}
