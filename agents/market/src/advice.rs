//! What code of the owner's own may say to a price or an offer. The machines ask it where it is set, and keep their bounds
//! whatever it says: a price stays between floor and list, and what counts against an offer is never paid.
//!
//! Implementations answer from the question alone, like everything here: the same question, the same answer.

use std::fmt;

use croft_protocol::{Capacity, Rate};

use crate::score::Bid;
use crate::strategy::View;

/// A price that the policy made, before it is said.
#[derive(Debug, Clone, Copy)]
pub struct Priced<'a> {
    pub view: View<'a>,
    pub now_ms: u64,
    /// Free of the node, after everything that is promised and kept back.
    pub free: Capacity,
    /// The lowest rate for this duration.
    pub floor: Rate,
    /// What the policy answers.
    pub policy: Rate,
}

/// What to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// What the policy says.
    Policy,
    /// This rate, within the policy's bounds.
    Rate(Rate),
    /// Sell nothing for this demand.
    Refuse,
}

/// A farmer's own prices.
pub trait Pricing: fmt::Debug + Send + Sync {
    fn price(&self, priced: &Priced<'_>) -> Advice;
}

/// What a buyer holds against an offer, in grains, beyond the built-in surcharges; below nothing for one that is liked.
pub trait Scoring: fmt::Debug + Send + Sync {
    /// `effective` is the price with the built-in surcharges, in grains.
    fn surcharge(&self, bid: &Bid, effective: u64) -> i64;
}

/// The rate that is said in the end.
pub(crate) fn bounded(priced: &Priced<'_>, advised: Rate) -> Rate {
    let rate = advised.clamp(priced.floor.min(priced.view.list), priced.view.list);
    match (priced.view.theirs, priced.view.ours) {
        // Who offers more pays what it offers.
        (Some(theirs), _) if theirs.rate >= rate => theirs.rate,
        // Nobody's price goes up while he haggles.
        (_, Some(ours)) => rate.min(ours),
        _ => rate,
    }
}
