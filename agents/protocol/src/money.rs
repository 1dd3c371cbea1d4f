//! Integer money. A grain is the smallest amount; nothing is ever rounded against a party twice, because
//! what is owed is computed from the whole covered time and only the difference is paid.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::Capacity;

/// An amount of money in grains.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct Grains(pub u64);

impl Grains {
    pub const ZERO: Self = Self(0);

    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }
}

impl fmt::Display for Grains {
    /// Digits in groups of three: `1 250 000 grains`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (i, c) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                f.write_str(" ")?;
            }
            write!(f, "{c}")?;
        }
        f.write_str(" grains")
    }
}

/// A price in grains per second.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct Rate(pub u64);

impl Rate {
    /// What `seconds` cost; `None` when it exceeds 2^64 grains.
    #[must_use]
    pub fn for_seconds(self, seconds: u64) -> Option<Grains> {
        self.0.checked_mul(seconds).map(Grains)
    }
}

/// A farm's fixed prices, in grains per second for each unit. Ports and addresses are free for now.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct PriceList {
    /// For one whole CPU (1000 millis).
    pub cpu: u64,
    /// For one GiB of memory.
    pub memory_gib: u64,
    /// For one GiB of SSD.
    pub ssd_gib: u64,
    /// For one GiB of rotating disk.
    pub hdd_gib: u64,
}

const MILLIS: u128 = 1000;
const GIB: u128 = 1 << 30;

impl PriceList {
    /// What resources cost at these prices, in grains per second, rounded up once for all together. Public
    /// addresses are free for now. `None` when it exceeds 2^64 grains per second.
    #[must_use]
    pub fn rate(&self, resources: &Capacity) -> Option<Rate> {
        let cpu = u128::from(self.cpu) * u128::from(resources.cpu_millis);
        // Each product is below 2^128; their sum may not be.
        let gib = [
            (self.memory_gib, resources.memory_bytes),
            (self.ssd_gib, resources.ssd_bytes),
            (self.hdd_gib, resources.hdd_bytes),
        ]
        .into_iter()
        .try_fold(0_u128, |sum, (price, bytes)| sum.checked_add(u128::from(price) * u128::from(bytes)))?;
        // cpu / 1000 + gib / 2^30, whole parts apart so that the fractions can't overflow.
        let whole = (cpu / MILLIS).checked_add(gib / GIB)?;
        let fraction = (cpu % MILLIS) * GIB + (gib % GIB) * MILLIS;
        let rate = whole.checked_add(fraction.div_ceil(MILLIS * GIB))?;
        u64::try_from(rate).ok().map(Rate)
    }

    /// What resources cost for an hour; `None` when it exceeds 2^64 grains. Searches for a maximum price mean
    /// this.
    #[must_use]
    pub fn per_hour(&self, resources: &Capacity) -> Option<Grains> {
        self.rate(resources)?.for_seconds(3_600)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PRICES: PriceList = PriceList { cpu: 1000, memory_gib: 100, ssd_gib: 10, hdd_gib: 1 };

    #[test]
    fn a_price_is_the_sum_over_all_resources() {
        let resources = Capacity {
            cpu_millis: 2500,
            memory_bytes: 4 << 30,
            ssd_bytes: 20 << 30,
            hdd_bytes: 7 << 30,
            public_addresses: 1,
        };
        assert_eq!(PRICES.rate(&resources), Some(Rate(2500 + 400 + 200 + 7)));
    }

    #[test]
    fn a_price_is_rounded_up_once_and_not_for_each_resource() {
        let half_each = Capacity { cpu_millis: 500, memory_bytes: 1 << 29, ..Capacity::default() };
        let one = PriceList { cpu: 1, memory_gib: 1, ..PriceList::default() };
        assert_eq!(one.rate(&half_each), Some(Rate(1)));
        let a_byte_more = Capacity { memory_bytes: (1 << 29) + 1, ..half_each };
        assert_eq!(one.rate(&a_byte_more), Some(Rate(2)));
        assert_eq!(one.rate(&Capacity::default()), Some(Rate(0)));
    }

    #[test]
    fn a_price_beyond_all_grains_is_none_and_no_panic() {
        let dear = PriceList { cpu: u64::MAX, memory_gib: u64::MAX, ssd_gib: u64::MAX, hdd_gib: u64::MAX };
        let much = Capacity {
            cpu_millis: u64::MAX,
            memory_bytes: u64::MAX,
            ssd_bytes: u64::MAX,
            hdd_bytes: u64::MAX,
            public_addresses: 0,
        };
        assert_eq!(dear.rate(&much), None);
        let one_cpu = Capacity { cpu_millis: 1000, ..Capacity::default() };
        assert_eq!(dear.rate(&one_cpu), Some(Rate(u64::MAX)));
        assert_eq!(dear.rate(&Capacity { cpu_millis: 1001, ..one_cpu }), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Splitting a demand over two contracts is never cheaper, and costs at most one grain more.
        #[test]
        fn splitting_never_pays(
            prices in (0_u64..1 << 40, 0_u64..1 << 40),
            a in (0_u64..1 << 20, 0_u64..1 << 40),
            b in (0_u64..1 << 20, 0_u64..1 << 40),
        ) {
            let prices = PriceList { cpu: prices.0, memory_gib: prices.1, ..PriceList::default() };
            let of = |(cpu_millis, memory_bytes)| Capacity { cpu_millis, memory_bytes, ..Capacity::default() };
            let (a, b) = (of(a), of(b));
            let whole = prices.rate(&a.checked_add(&b).unwrap()).unwrap().0;
            let parts = prices.rate(&a).unwrap().0 + prices.rate(&b).unwrap().0;
            prop_assert!(whole <= parts && parts <= whole + 1, "{whole} and {parts}");
        }
    }
}
