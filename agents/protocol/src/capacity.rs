//! What a node has and what of it is sold: a vector with a version number.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

/// Amounts of each resource.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
pub struct Capacity {
    /// Thousandths of a CPU thread.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub ssd_bytes: u64,
    pub hdd_bytes: u64,
    /// Public IP addresses that can be given away whole.
    pub public_addresses: u32,
}

impl Capacity {
    /// Names of the resources in `needed` that exceed `self`, with both amounts, for messages.
    #[must_use]
    pub fn shortfalls(&self, needed: &Self) -> Vec<Shortfall> {
        self.pairs()
            .into_iter()
            .zip(needed.pairs())
            .filter(|((_, have), (_, need))| need > have)
            .map(|((resource, have), (_, need))| Shortfall { resource, need, have })
            .collect()
    }

    #[must_use]
    pub fn covers(&self, needed: &Self) -> bool {
        self.shortfalls(needed).is_empty()
    }

    /// `None` when a resource would overflow.
    #[must_use]
    pub fn checked_add(&self, other: &Self) -> Option<Self> {
        Some(Self {
            cpu_millis: self.cpu_millis.checked_add(other.cpu_millis)?,
            memory_bytes: self.memory_bytes.checked_add(other.memory_bytes)?,
            ssd_bytes: self.ssd_bytes.checked_add(other.ssd_bytes)?,
            hdd_bytes: self.hdd_bytes.checked_add(other.hdd_bytes)?,
            public_addresses: self.public_addresses.checked_add(other.public_addresses)?,
        })
    }

    /// `None` when a resource would go below zero.
    #[must_use]
    pub fn checked_sub(&self, other: &Self) -> Option<Self> {
        Some(Self {
            cpu_millis: self.cpu_millis.checked_sub(other.cpu_millis)?,
            memory_bytes: self.memory_bytes.checked_sub(other.memory_bytes)?,
            ssd_bytes: self.ssd_bytes.checked_sub(other.ssd_bytes)?,
            hdd_bytes: self.hdd_bytes.checked_sub(other.hdd_bytes)?,
            public_addresses: self.public_addresses.checked_sub(other.public_addresses)?,
        })
    }

    /// Each resource less the other's, or zero.
    #[must_use]
    pub fn saturating_sub(&self, other: &Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            ssd_bytes: self.ssd_bytes.saturating_sub(other.ssd_bytes),
            hdd_bytes: self.hdd_bytes.saturating_sub(other.hdd_bytes),
            public_addresses: self.public_addresses.saturating_sub(other.public_addresses),
        }
    }

    fn pairs(&self) -> [(Resource, u64); 5] {
        [
            (Resource::Cpu, self.cpu_millis),
            (Resource::Memory, self.memory_bytes),
            (Resource::Ssd, self.ssd_bytes),
            (Resource::Hdd, self.hdd_bytes),
            (Resource::PublicAddresses, u64::from(self.public_addresses)),
        ]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    Cpu,
    Memory,
    Ssd,
    Hdd,
    PublicAddresses,
}

/// One resource of which there is too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Shortfall {
    pub resource: Resource,
    pub need: u64,
    pub have: u64,
}

impl std::fmt::Display for Shortfall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |amount: u64| match self.resource {
            Resource::Cpu => format!("{}.{:03}", amount / 1000, amount % 1000),
            Resource::PublicAddresses => amount.to_string(),
            _ => crate::units::show_bytes(amount),
        };
        let name = match self.resource {
            Resource::Cpu => "CPUs",
            Resource::Memory => "memory",
            Resource::Ssd => "SSD",
            Resource::Hdd => "HDD",
            Resource::PublicAddresses => "public addresses",
        };
        write!(f, "{name}: {} needed, {} free", show(self.need), show(self.have))
    }
}

/// A node's books, kept by the ledger: every change adds one to `version`, and a contract names the
/// version it relies on.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
pub struct NodeCapacity {
    pub version: u64,
    pub total: Capacity,
    pub used: Capacity,
}

impl NodeCapacity {
    /// What can still be sold. Zero where the node shrank below what is in use.
    #[must_use]
    pub fn free(&self) -> Capacity {
        self.total.saturating_sub(&self.used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortfall_names_resource_need_and_have() {
        let have = Capacity { cpu_millis: 1500, memory_bytes: 1 << 30, ..Capacity::default() };
        let need = Capacity { cpu_millis: 2000, memory_bytes: 4 << 30, ..Capacity::default() };
        let shown: Vec<String> = have.shortfalls(&need).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["CPUs: 2.000 needed, 1.500 free", "memory: 4 GiB needed, 1 GiB free"]);
        assert!(need.covers(&have));
    }
}
