//! What to answer to a price: ready, negotiating, or reject. Strategies are small and put together.
//!
//! ```text
//!   View ──> every strategy of All ──> strictest:  Reject  >  Negotiating(the rate that favours us most)  >  Ready
//! ```
//! Typed terms and the number of the round decide; who answered first, and what a note says, is not even visible here.
//! Integers only; what overflows is rejected.

use std::collections::BTreeSet;

use croft_protocol::market::{Demand, Quote, Reason, Role};
use croft_protocol::{BotId, Grains, Name, Rate};

/// All that a decision may depend on.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub role: Role,
    pub demand: &'a Demand,
    pub country: &'a str,
    pub region: Option<&'a Name>,
    /// What these resources cost by the farm's price list.
    pub list: Rate,
    /// The other side's last price.
    pub theirs: Option<Quote>,
    /// Our own last price.
    pub ours: Option<Rate>,
    /// Our answers so far, and how many there will be at most.
    pub round: u32,
    pub rounds: u32,
}

impl View<'_> {
    fn is_last(&self) -> bool {
        self.round + 1 >= self.rounds
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Their price is fine.
    Ready,
    /// We name this price.
    Negotiating(Rate),
    Reject(Reason),
}

impl Decision {
    /// The stricter of two, for one side.
    #[must_use]
    pub fn and(self, other: Self, role: Role) -> Self {
        match (self, other) {
            // Among reasons the order of the enum decides, so that the order of strategies does not.
            (Self::Reject(a), Self::Reject(b)) => Self::Reject(a.min(b)),
            (Self::Reject(reason), _) | (_, Self::Reject(reason)) => Self::Reject(reason),
            (Self::Negotiating(a), Self::Negotiating(b)) => Self::Negotiating(match role {
                Role::Buyer => a.min(b),
                Role::Farmer => a.max(b),
            }),
            (Self::Negotiating(rate), Self::Ready) | (Self::Ready, Self::Negotiating(rate)) => {
                Self::Negotiating(rate)
            }
            (Self::Ready, Self::Ready) => Self::Ready,
        }
    }
}

/// One consideration.
pub trait Strategy: std::fmt::Debug + Send + Sync {
    fn decide(&self, view: &View<'_>) -> Decision;
}

/// All of them; the strictest wins.
#[derive(Debug, Default)]
pub struct All(pub Vec<Box<dyn Strategy>>);

impl Strategy for All {
    fn decide(&self, view: &View<'_>) -> Decision {
        self.0.iter().fold(Decision::Ready, |sum, one| sum.and(one.decide(view), view.role))
    }
}

/// From a first price to a last one, in equal steps over the rounds. For a buyer it goes up, for a farmer down.
#[derive(Debug, Clone, Copy)]
pub struct Concession {
    pub first: Rate,
    pub last: Rate,
}

impl Concession {
    /// What is acceptable in a round.
    #[must_use]
    pub fn target(&self, round: u32, rounds: u32) -> Rate {
        let steps = u128::from(rounds.saturating_sub(1).max(1));
        let at = u128::from(round).min(steps);
        let (first, last) = (u128::from(self.first.0), u128::from(self.last.0));
        // Between two 64-bit numbers, so it is one; the products are below 2^96.
        Rate(((first * (steps - at) + last * at) / steps) as u64)
    }
}

impl Strategy for Concession {
    fn decide(&self, view: &View<'_>) -> Decision {
        let target = self.target(view.round, view.rounds);
        match view.theirs {
            Some(quote) if view.role == Role::Buyer && quote.rate <= target => Decision::Ready,
            Some(quote) if view.role == Role::Farmer && quote.rate >= target => Decision::Ready,
            Some(_) if view.is_last() => Decision::Reject(match view.role {
                Role::Buyer => Reason::PriceTooHigh,
                Role::Farmer => Reason::PriceTooLow,
            }),
            _ => Decision::Negotiating(target),
        }
    }
}

/// A buyer's limits: never above this rate, never a dearer reservation.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_rate: Rate,
    pub max_hold_fee: Grains,
}

impl Strategy for Limits {
    fn decide(&self, view: &View<'_>) -> Decision {
        match view.theirs {
            Some(quote) if quote.hold_fee > self.max_hold_fee => Decision::Reject(Reason::HoldFeeTooHigh),
            Some(quote) if quote.rate <= self.max_rate => Decision::Ready,
            Some(_) if view.is_last() => Decision::Reject(Reason::PriceTooHigh),
            _ => Decision::Negotiating(self.max_rate),
        }
    }
}

/// A farmer's reserve: never below this rate.
#[derive(Debug, Clone, Copy)]
pub struct Reserve {
    pub floor: Rate,
}

impl Strategy for Reserve {
    fn decide(&self, view: &View<'_>) -> Decision {
        match view.theirs {
            Some(quote) if quote.rate >= self.floor => Decision::Ready,
            Some(_) if view.is_last() => Decision::Reject(Reason::PriceTooLow),
            _ => Decision::Negotiating(self.floor),
        }
    }
}

/// Who may buy. An empty list of the allowed is everybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Customers {
    pub allowed: BTreeSet<BotId>,
    pub denied: BTreeSet<BotId>,
}

impl Strategy for Customers {
    fn decide(&self, view: &View<'_>) -> Decision {
        let buyer = &view.demand.buyer;
        let fine = !self.denied.contains(buyer) && (self.allowed.is_empty() || self.allowed.contains(buyer));
        if fine { Decision::Ready } else { Decision::Reject(Reason::CustomerNotAllowed) }
    }
}

/// Where is sold: a country, or one region of it. Empty is everywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Regions(pub BTreeSet<(String, Option<Name>)>);

impl Strategy for Regions {
    fn decide(&self, view: &View<'_>) -> Decision {
        let here = |(country, region): &(String, Option<Name>)| {
            country == view.country && region.as_ref().is_none_or(|region| Some(region) == view.region)
        };
        let fine = self.0.is_empty() || self.0.iter().any(here);
        if fine { Decision::Ready } else { Decision::Reject(Reason::Region) }
    }
}

/// For how long is sold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    pub min_s: u64,
    pub max_s: u64,
    pub max_grace_s: u64,
}

impl Strategy for Term {
    fn decide(&self, view: &View<'_>) -> Decision {
        let Demand { duration_s, grace_s, prepaid_s, .. } = *view.demand;
        if duration_s < self.min_s {
            Decision::Reject(Reason::TermTooShort { min_s: self.min_s })
        } else if duration_s > self.max_s {
            Decision::Reject(Reason::TermTooLong { max_s: self.max_s })
        } else if grace_s > self.max_grace_s {
            Decision::Reject(Reason::GraceTooLong { max_s: self.max_grace_s })
        } else if prepaid_s.is_some_and(|prepaid_s| prepaid_s < grace_s) {
            // A paused contract keeps its capacity for the grace period, unpaid.
            Decision::Reject(Reason::PrepaidTooShort { min_s: grace_s })
        } else {
            Decision::Ready
        }
    }
}

/// Less for longer: the list price that the inner strategy sees is reduced.
#[derive(Debug)]
pub struct TermDiscount<S> {
    pub discounts: Discounts,
    pub inner: S,
}

impl<S: Strategy> Strategy for TermDiscount<S> {
    fn decide(&self, view: &View<'_>) -> Decision {
        let list = self.discounts.rate(view.list, view.demand.duration_s);
        self.inner.decide(&View { list, ..*view })
    }
}

/// A farmer's concession from the list price down to a share of it.
#[derive(Debug, Clone, Copy)]
pub struct FromList {
    /// Of the list price, in hundredths.
    pub floor_percent: u8,
}

impl Strategy for FromList {
    fn decide(&self, view: &View<'_>) -> Decision {
        let floor = share(view.list, self.floor_percent);
        let concession = Concession { first: view.list, last: floor };
        concession.decide(view).and(Reserve { floor }.decide(view), view.role)
    }
}

/// Discounts by duration: from so many seconds on, so many percent. The longest that applies counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discounts(pub std::collections::BTreeMap<u64, u8>);

impl Discounts {
    #[must_use]
    pub fn percent(&self, duration_s: u64) -> u8 {
        self.0.range(..=duration_s).next_back().map_or(0, |(_, percent)| (*percent).min(100))
    }

    #[must_use]
    pub fn rate(&self, list: Rate, duration_s: u64) -> Rate {
        share(list, 100 - self.percent(duration_s))
    }
}

/// So many hundredths of a rate, rounded up: never to nothing by rounding.
#[must_use]
pub fn share(rate: Rate, percent: u8) -> Rate {
    let percent = u128::from(percent.min(100));
    Rate((u128::from(rate.0) * percent).div_ceil(100) as u64)
}

#[cfg(test)]
mod tests;
