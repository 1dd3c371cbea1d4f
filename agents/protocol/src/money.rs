//! Integer money. A grain is the smallest amount; nothing is ever rounded against a party twice, because
//! what is owed is computed from the whole covered time and only the difference is paid.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

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
