//! A farmer's policy: at which prices, to whom, where and for how long it sells, and whether a person is asked.
//!
//! ```text
//!   policy.toml ──parse──> PolicyFile ──names resolved──> Policy ──strategy()──> Ready | Negotiating | Reject
//!                                                           └──approval()──> automatic | a person is asked
//! ```
//! Pure: the same demand gets the same answer. It must never sell below its floor, nor what it keeps for itself.

mod file;

use croft_protocol::market::{RESERVATION_MS, Reason};
use croft_protocol::{Capacity, Grains, PriceList, Rate, limits};

pub use file::{FORMAT, PolicyFile, PolicyFileError, UnknownBot};

use crate::strategy::{
    All, Customers, Decision, Discounts, FromList, Regions, Strategy, Term, TermDiscount, View, share,
};

/// When a person is asked before the farm signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approval {
    Automatic,
    /// Every time.
    Asked,
    /// Where the whole price is more than this.
    AskedAbove(Grains),
}

/// What a farm sells and how, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Instead of the farm's prices on the ledger. Below those is fine; buyers expect no more.
    pub prices: Option<PriceList>,
    pub term: Term,
    pub discounts: Discounts,
    pub customers: Customers,
    pub regions: Regions,
    /// The lowest share of the list price, in hundredths.
    pub floor_percent: u8,
    /// Kept back on every node, for its owner.
    pub keep: Capacity,
    pub approval: Approval,
    /// How long capacity is held after an approval.
    pub hold_ms: u64,
    /// Of what the held time would have cost, in hundredths: the fee of a reservation that is not used.
    pub hold_fee_percent: u8,
    /// No new contracts: what runs runs on.
    pub maintenance: bool,
    /// Prices that are named per negotiation.
    pub rounds: u32,
}

impl Default for Policy {
    /// List prices, everybody, automatically.
    fn default() -> Self {
        Self {
            prices: None,
            term: Term { min_s: 60, max_s: limits::DURATION_S, max_grace_s: limits::GRACE_S },
            discounts: Discounts::default(),
            customers: Customers::default(),
            regions: Regions::default(),
            floor_percent: 100,
            keep: Capacity::default(),
            approval: Approval::Automatic,
            hold_ms: 60_000,
            hold_fee_percent: 100,
            maintenance: false,
            rounds: 4,
        }
    }
}

#[derive(Debug)]
struct Maintenance;

impl Strategy for Maintenance {
    fn decide(&self, _: &View<'_>) -> Decision {
        Decision::Reject(Reason::Maintenance)
    }
}

impl Policy {
    /// What these resources cost before discounts; `None` when it exceeds all grains.
    #[must_use]
    pub fn list(&self, ledger: &PriceList, resources: &Capacity) -> Option<Rate> {
        self.prices.as_ref().unwrap_or(ledger).rate(resources)
    }

    /// The policy as one strategy.
    #[must_use]
    pub fn strategy(&self) -> All {
        let price = TermDiscount {
            discounts: self.discounts.clone(),
            inner: FromList { floor_percent: self.floor_percent },
        };
        let mut all: Vec<Box<dyn Strategy>> = vec![
            Box::new(self.customers.clone()),
            Box::new(self.regions.clone()),
            Box::new(self.term),
            Box::new(price),
        ];
        if self.maintenance {
            all.push(Box::new(Maintenance));
        }
        All(all)
    }

    /// The lowest rate for a duration.
    #[must_use]
    pub fn floor(&self, list: Rate, duration_s: u64) -> Rate {
        share(self.discounts.rate(list, duration_s), self.floor_percent)
    }

    /// What an unused reservation costs at a rate; `None` when it exceeds all grains.
    #[must_use]
    pub fn hold_fee(&self, rate: Rate) -> Option<Grains> {
        let held = u128::from(rate.0) * u128::from(self.hold_ms) * u128::from(self.hold_fee_percent);
        u64::try_from(held.div_ceil(100_000)).ok().map(Grains)
    }

    /// Whether a person is asked for a contract of this price.
    #[must_use]
    pub fn asks(&self, price: Grains) -> bool {
        match self.approval {
            Approval::Automatic => false,
            Approval::Asked => true,
            Approval::AskedAbove(limit) => price > limit,
        }
    }

    /// How long capacity is held: never longer than the protocol allows.
    #[must_use]
    pub fn hold_ms(&self) -> u64 {
        self.hold_ms.clamp(1, RESERVATION_MS)
    }
}

#[cfg(test)]
mod tests;
