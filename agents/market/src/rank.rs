//! Which nodes fit a demand, cheapest first, and why the others don't.

use std::collections::BTreeSet;
use std::fmt;

use croft_protocol::capacity::Shortfall;
use croft_protocol::contract::PublishedPort;
use croft_protocol::record::{Draining, TrustClass};
use croft_protocol::{BotId, Capacity, FarmId, Grains, Name, NodeCapacity, NodeId, PriceList, Rate, limits};
use serde::Serialize;

/// A node that might serve, as the ledger describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    pub name: Name,
    pub farm: FarmId,
    pub farm_name: Name,
    pub farmer: BotId,
    pub country: String,
    pub prices: PriceList,
    pub capacity: NodeCapacity,
    pub trust: TrustClass,
    /// Where its published ports can be reached.
    pub addresses: Vec<String>,
    pub taken_ports: BTreeSet<PublishedPort>,
    /// Contracts that it has.
    pub contracts: usize,
    /// Its farm empties it.
    pub draining: Option<Draining>,
    /// Whether it is connected to a replica now; `None` when nobody knows.
    pub connected: Option<bool>,
}

/// What a user wants, and the limits within which the bot may choose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    pub resources: Capacity,
    pub ports: Vec<PublishedPort>,
    pub duration_s: u64,
    pub node: Option<Name>,
    pub farm: Option<Name>,
    /// Any of these; empty for anywhere.
    pub countries: Vec<String>,
    /// At least this.
    pub trust: Option<TrustClass>,
    /// For the whole duration.
    pub max_price: Option<Grains>,
    /// What the wallet has.
    pub funds: Option<Grains>,
}

/// A node that serves the demand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fit {
    pub node: NodeId,
    pub name: Name,
    pub farm: FarmId,
    pub farm_name: Name,
    pub farmer: BotId,
    pub country: String,
    pub rate: Rate,
    /// Rate x duration.
    pub price: Grains,
    /// The version that the terms should rely on.
    pub capacity_version: u64,
}

/// Why a node does not serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Exclusion {
    OtherNode { wanted: Name },
    OtherFarm { wanted: Name, farm: Name },
    OtherCountry { wanted: Vec<String>, country: String },
    TooLittleTrust { wanted: TrustClass, trust: TrustClass },
    Capacity { shortfalls: Vec<Shortfall> },
    PortTaken { port: PublishedPort },
    NoAddress,
    Full { limit: usize },
    Offline,
    Draining { until_ms: Option<u64> },
    TooDear { price: Grains, limit: Grains },
    Funds { price: Grains, funds: Grains },
    Overflow,
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherNode { wanted } => write!(f, "only node '{wanted}' is wanted"),
            Self::OtherFarm { wanted, farm } => {
                write!(f, "it is of farm '{farm}', only '{wanted}' is wanted")
            }
            Self::OtherCountry { wanted, country } => {
                write!(f, "it is in {country}, wanted is {}", wanted.join(" or "))
            }
            Self::TooLittleTrust { wanted, trust } => {
                write!(
                    f,
                    "its identity is {}, at least {} is wanted",
                    show_trust(*trust),
                    show_trust(*wanted)
                )
            }
            Self::Capacity { shortfalls } => {
                let shown: Vec<_> = shortfalls.iter().map(ToString::to_string).collect();
                f.write_str(&shown.join("; "))
            }
            Self::PortTaken { port } => write!(f, "port {port} is taken"),
            Self::NoAddress => f.write_str("it has no address to publish ports on"),
            Self::Full { limit } => write!(f, "it has {limit} contracts, which is all it may have"),
            Self::Offline => f.write_str("it is not connected"),
            Self::Draining { .. } => f.write_str("its farm empties it, and takes nothing new on it"),
            Self::TooDear { price, limit } => write!(f, "it costs {price}, the limit is {limit}"),
            Self::Funds { price, funds } => write!(f, "it costs {price}, the wallet has {funds}"),
            Self::Overflow => f.write_str("its price exceeds all grains"),
        }
    }
}

fn show_trust(trust: TrustClass) -> &'static str {
    match trust {
        TrustClass::Plain => "plain (key on disk)",
        TrustClass::Sealed => "sealed (key in a TPM)",
        TrustClass::Attested => "attested (measured boot)",
    }
}

/// A node that does not serve, with every reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Excluded {
    pub node: NodeId,
    pub name: Name,
    pub farm_name: Name,
    pub reasons: Vec<Exclusion>,
}

/// The answer to a demand. Both lists are complete: every candidate stands in one of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Matches {
    /// Cheapest first; among equals by node id.
    pub fits: Vec<Fit>,
    /// Fewest reasons first, since those are nearest to fitting; among equals by node id.
    pub excluded: Vec<Excluded>,
}

/// Sorts candidates into those that fit and those that don't. The order of the input makes no difference.
#[must_use]
pub fn rank(candidates: &[Candidate], demand: &Demand) -> Matches {
    let mut matches = Matches::default();
    for candidate in candidates {
        match fit(candidate, demand) {
            Ok(fit) => matches.fits.push(fit),
            Err(reasons) => matches.excluded.push(Excluded {
                node: candidate.node,
                name: candidate.name.clone(),
                farm_name: candidate.farm_name.clone(),
                reasons,
            }),
        }
    }
    matches.fits.sort_by_key(|fit| (fit.price, fit.node));
    matches.excluded.sort_by_key(|excluded| (excluded.reasons.len(), excluded.node));
    matches
}

fn fit(candidate: &Candidate, demand: &Demand) -> Result<Fit, Vec<Exclusion>> {
    let mut reasons = place(candidate, demand);
    reasons.extend(room(candidate, demand));
    let rate = candidate.prices.rate(&demand.resources);
    let price = rate.and_then(|rate| rate.for_seconds(demand.duration_s));
    let (Some(rate), Some(price)) = (rate, price) else {
        reasons.push(Exclusion::Overflow);
        return Err(reasons);
    };
    if let Some(limit) = demand.max_price.filter(|limit| price > *limit) {
        reasons.push(Exclusion::TooDear { price, limit });
    }
    if let Some(funds) = demand.funds.filter(|funds| price > *funds) {
        reasons.push(Exclusion::Funds { price, funds });
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    Ok(Fit {
        node: candidate.node,
        name: candidate.name.clone(),
        farm: candidate.farm,
        farm_name: candidate.farm_name.clone(),
        farmer: candidate.farmer,
        country: candidate.country.clone(),
        rate,
        price,
        capacity_version: candidate.capacity.version,
    })
}

/// Reasons that lie in who and where it is.
fn place(candidate: &Candidate, demand: &Demand) -> Vec<Exclusion> {
    let mut reasons = Vec::new();
    if let Some(wanted) = demand.node.as_ref().filter(|wanted| **wanted != candidate.name) {
        reasons.push(Exclusion::OtherNode { wanted: wanted.clone() });
    }
    if let Some(wanted) = demand.farm.as_ref().filter(|wanted| **wanted != candidate.farm_name) {
        let farm = candidate.farm_name.clone();
        reasons.push(Exclusion::OtherFarm { wanted: wanted.clone(), farm });
    }
    if !demand.countries.is_empty() && !demand.countries.contains(&candidate.country) {
        let (wanted, country) = (demand.countries.clone(), candidate.country.clone());
        reasons.push(Exclusion::OtherCountry { wanted, country });
    }
    if let Some(wanted) = demand.trust.filter(|wanted| candidate.trust < *wanted) {
        reasons.push(Exclusion::TooLittleTrust { wanted, trust: candidate.trust });
    }
    reasons
}

/// Reasons that lie in what it has to give now.
fn room(candidate: &Candidate, demand: &Demand) -> Vec<Exclusion> {
    let mut reasons = Vec::new();
    let shortfalls = candidate.capacity.free().shortfalls(&demand.resources);
    if !shortfalls.is_empty() {
        reasons.push(Exclusion::Capacity { shortfalls });
    }
    let taken = demand.ports.iter().filter(|port| candidate.taken_ports.contains(port));
    reasons.extend(taken.map(|port| Exclusion::PortTaken { port: *port }));
    if !demand.ports.is_empty() && candidate.addresses.is_empty() {
        reasons.push(Exclusion::NoAddress);
    }
    if candidate.contracts >= limits::CONTRACTS_PER_NODE {
        reasons.push(Exclusion::Full { limit: limits::CONTRACTS_PER_NODE });
    }
    if let Some(Draining { until_ms, .. }) = candidate.draining {
        reasons.push(Exclusion::Draining { until_ms });
    }
    if candidate.connected == Some(false) {
        reasons.push(Exclusion::Offline);
    }
    reasons
}

#[cfg(test)]
mod tests;
