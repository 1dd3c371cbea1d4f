//! Which offer is taken, and why each other one is not.
//!
//! ```text
//!   bids (typed terms) + weights ──> effective price of each ──> cheapest first ──> Explain
//! ```
//! The effective price is what an hour that really runs would cost: the price, divided by the uptime, plus a surcharge
//! for weaker identities. Equal ones are ordered by a hash that the buyer's seed goes into, so that nobody can choose
//! keys that come first. An owner's own code may add to it ([`crate::advice`]). The order of the input, the time of a reply and free text make no difference.

use std::fmt;

use croft_protocol::market::Reason;
use croft_protocol::record::TrustClass;
use croft_protocol::{BotId, FarmId, Grains, Hash, Name, NodeId, Rate};
use serde::Serialize;

use crate::advice::Scoring;
use crate::rank::{Candidate, Exclusion};

/// An offer on the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bid {
    pub node: NodeId,
    pub name: Name,
    pub farm: FarmId,
    pub farm_name: Name,
    pub farmer: BotId,
    pub country: String,
    pub trust: TrustClass,
    /// Of a thousand, over the node's paid time; `None` for a node without a past.
    pub uptime_permille: Option<u16>,
    pub rate: Rate,
    pub price: Grains,
    pub hold_fee: Grains,
}

impl Bid {
    /// Of a candidate at a price.
    #[must_use]
    pub fn of(
        candidate: &Candidate,
        uptime: Option<u16>,
        rate: Rate,
        price: Grains,
        hold_fee: Grains,
    ) -> Self {
        Self {
            node: candidate.node,
            name: candidate.name.clone(),
            farm: candidate.farm,
            farm_name: candidate.farm_name.clone(),
            farmer: candidate.farmer,
            country: candidate.country.clone(),
            trust: candidate.trust,
            uptime_permille: uptime,
            rate,
            price,
            hold_fee,
        }
    }
}

/// What a buyer holds against a bid, in thousandths of its price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    pub plain_permille: u16,
    pub sealed_permille: u16,
    /// Taken for nodes without a past. Above what a new node deserves, sybils come first; below, nobody new ever does.
    pub unknown_uptime_permille: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { plain_permille: 50, sealed_permille: 20, unknown_uptime_permille: 950 }
    }
}

/// A bid with what it is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Scored {
    pub node: NodeId,
    pub name: Name,
    pub farm_name: Name,
    pub farmer: BotId,
    pub country: String,
    pub rate: Rate,
    pub price: Grains,
    pub hold_fee: Grains,
    /// What decides: the price with surcharges.
    pub effective: Grains,
    pub trust: TrustClass,
    pub trust_surcharge: Grains,
    pub uptime_permille: u16,
    pub uptime_surcharge: Grains,
    /// Of the owner's own code.
    pub own_surcharge: i64,
}

/// Why a node is not the one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It fits by the ledger, but at most so many are asked, and so many of one farmer.
    NotAsked {
        limit: usize,
        per_farmer: usize,
    },
    /// By what the ledger says of it.
    Ledger(Exclusion),
    NoReply,
    /// Its farmer's bot is not connected.
    Unreachable,
    /// Its farmer's bot did not take what was said.
    Unheard {
        problem: String,
    },
    /// It let the owner down before, or in an earlier attempt.
    Avoided,
    Refused {
        reason: Reason,
    },
    /// What its farmer said was void.
    Invalid {
        problem: String,
    },
    TooDear {
        price: Grains,
        limit: Grains,
    },
    Outscored {
        effective: Grains,
        chosen: Grains,
    },
    /// It was chosen and could not be had.
    Failed {
        reason: Reason,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked { limit, per_farmer } => {
                write!(f, "it fits, but at most {limit} are asked, and {per_farmer} of one farmer")
            }
            Self::Ledger(exclusion) => exclusion.fmt(f),
            Self::NoReply => f.write_str("its farmer's bot did not answer in time"),
            Self::Unreachable => {
                f.write_str("its farmer's bot is not connected: its owner must run 'croft farm serve'")
            }
            Self::Unheard { problem } => {
                write!(f, "its farmer's bot did not take what was said: {problem}")
            }
            Self::Avoided => f.write_str("it let you down before: it is not asked again"),
            Self::Refused { reason } => write!(f, "refused: {reason}"),
            Self::Invalid { problem } => write!(f, "its farmer's bot said something void: {problem}"),
            Self::TooDear { price, limit } => write!(f, "it wants {price} at last, the limit is {limit}"),
            Self::Outscored { effective, chosen } => {
                write!(f, "it is worth {effective} with surcharges, the chosen one {chosen}")
            }
            Self::Failed { reason } => write!(f, "it was chosen and could not be had: {reason}"),
        }
    }
}

/// A node that is not taken, with every reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotTaken {
    pub node: NodeId,
    pub name: Name,
    pub farm_name: Name,
    pub why: Vec<Why>,
}

/// The whole decision: every candidate stands in it exactly once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Explain {
    pub chosen: Option<Scored>,
    /// Best first: others that could have been taken, then the rest by node.
    pub others: Vec<NotTaken>,
}

impl fmt::Display for Explain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.chosen {
            None => writeln!(f, "no node is taken")?,
            Some(s) => {
                writeln!(f, "node '{}' of farm '{}' in {} for {}", s.name, s.farm_name, s.country, s.price)?;
                writeln!(
                    f,
                    "  worth {}: {} for its identity, {} for an uptime of {}.{} %",
                    s.effective,
                    s.trust_surcharge,
                    s.uptime_surcharge,
                    s.uptime_permille / 10,
                    s.uptime_permille % 10
                )?;
                if s.own_surcharge != 0 {
                    writeln!(f, "  and {} grains by your own scoring", s.own_surcharge)?;
                }
            }
        }
        for other in &self.others {
            let why: Vec<String> = other.why.iter().map(ToString::to_string).collect();
            writeln!(f, "  not node '{}' of farm '{}': {}", other.name, other.farm_name, why.join("; "))?;
        }
        Ok(())
    }
}

/// Bids in the order in which they are to be tried. `seed` is the buyer's secret until it chose.
#[must_use]
pub fn score(bids: &[Bid], weights: Weights, seed: &[u8; 16]) -> Vec<Scored> {
    score_with(bids, weights, seed, None)
}

/// The same with what the owner's own code holds against each.
#[must_use]
pub fn score_with(bids: &[Bid], weights: Weights, seed: &[u8; 16], own: Option<&dyn Scoring>) -> Vec<Scored> {
    let one = |bid: &Bid| {
        let mut scored = score_one(bid, weights);
        if let Some(own) = own {
            scored.own_surcharge = own.surcharge(bid, scored.effective.0);
            scored.effective = Grains(scored.effective.0.saturating_add_signed(scored.own_surcharge));
        }
        scored
    };
    let mut scored: Vec<Scored> = bids.iter().map(one).collect();
    scored.sort_by_cached_key(|s| (s.effective, s.price, Hash::of("croft/score-tie/1", &(seed, &s.node))));
    scored
}

fn score_one(bid: &Bid, weights: Weights) -> Scored {
    let price = u128::from(bid.price.0);
    let permille = match bid.trust {
        TrustClass::Plain => weights.plain_permille,
        TrustClass::Sealed => weights.sealed_permille,
        TrustClass::Attested => 0,
    };
    // Below 2^64 x 2^16: no overflow. What exceeds all grains is as bad as can be.
    let trust = (price * u128::from(permille)).div_ceil(1000);
    let uptime = bid.uptime_permille.unwrap_or(weights.unknown_uptime_permille).clamp(1, 1000);
    let down = (price * 1000).div_ceil(u128::from(uptime)) - price;
    let grains = |amount: u128| Grains(u64::try_from(amount).unwrap_or(u64::MAX));
    Scored {
        node: bid.node,
        name: bid.name.clone(),
        farm_name: bid.farm_name.clone(),
        farmer: bid.farmer,
        country: bid.country.clone(),
        rate: bid.rate,
        price: bid.price,
        hold_fee: bid.hold_fee,
        effective: grains(price + trust + down),
        trust: bid.trust,
        trust_surcharge: grains(trust),
        uptime_permille: uptime,
        uptime_surcharge: grains(down),
        own_surcharge: 0,
    }
}

/// What a demand would cost by the price lists, before anybody is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// For the whole duration; `None` where no node fits.
    pub cheapest: Option<Grains>,
    pub median: Option<Grains>,
    pub dearest: Option<Grains>,
    /// Nodes that fit, cheapest first.
    pub fits: Vec<crate::rank::Fit>,
    pub excluded: Vec<crate::rank::Excluded>,
}

/// The estimate of a demand: what `croft cost` shows. Limits on price and funds count as in [`crate::rank()`].
#[must_use]
pub fn cost(candidates: &[Candidate], demand: &crate::rank::Demand) -> Estimate {
    let matches = crate::rank::rank(candidates, demand);
    let price = |at: usize| matches.fits.get(at).map(|fit| fit.price);
    Estimate {
        cheapest: price(0),
        median: price(matches.fits.len() / 2),
        dearest: matches.fits.last().map(|fit| fit.price),
        fits: matches.fits,
        excluded: matches.excluded,
    }
}

#[cfg(test)]
mod tests;
