//! What of a machine can be sold. Pure.
//!
//! CPU is counted like memory and never oversold; the node keeps a share for itself, so that a sold machine still
//! heals itself and answers.

use croft_protocol::Capacity;

/// Memory that kernel, init and node need, whatever the machine's size.
pub const RESERVED_MEMORY_BYTES: u64 = 192 << 20;
/// A machine with less registers with nothing to sell: what would be left is no use to anybody, and the node itself could
/// run out. Somewhat below what is on the label, since firmware and kernel keep a part.
pub const LEAST_MEMORY_BYTES: u64 = 448 << 20;
/// One of so many bytes of memory goes to monitors, page tables and caches of the workloads.
pub const MEMORY_OVERHEAD_SHARE: u64 = 16;
/// One of so many bytes of the data disk is for images, verified contracts and the filesystem itself.
pub const DISK_OVERHEAD_SHARE: u64 = 5;

/// What was found, as far as it can be sold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Found {
    pub threads: u32,
    /// Whether microVMs can run at all.
    pub virtualisation: bool,
    pub memory_bytes: u64,
    /// Size of the data disk; 0 where there is none.
    pub data_bytes: u64,
    pub data_rotational: bool,
}

/// The capacity to register. A machine that can't run microVMs registers with nothing to sell, so that its farmer
/// sees it.
#[must_use]
pub fn sellable(found: Found) -> Capacity {
    if !found.virtualisation || found.memory_bytes < LEAST_MEMORY_BYTES {
        return Capacity::default();
    }
    let memory = found.memory_bytes.saturating_sub(found.memory_bytes / MEMORY_OVERHEAD_SHARE);
    let disk = found.data_bytes - found.data_bytes / DISK_OVERHEAD_SHARE;
    // Whole MiB: what people ask for.
    let whole = |bytes: u64| bytes & !((1 << 20) - 1);
    Capacity {
        cpu_millis: u64::from(found.threads) * 1000,
        memory_bytes: whole(memory.saturating_sub(RESERVED_MEMORY_BYTES)),
        ssd_bytes: if found.data_rotational { 0 } else { whole(disk) },
        hdd_bytes: if found.data_rotational { whole(disk) } else { 0 },
        public_addresses: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Found = Found {
        threads: 4,
        virtualisation: true,
        memory_bytes: 8 << 30,
        data_bytes: 100 << 30,
        data_rotational: false,
    };

    #[test]
    fn the_node_keeps_its_share() {
        let capacity = sellable(MACHINE);
        assert_eq!(capacity.cpu_millis, 4000);
        assert_eq!(capacity.memory_bytes, (8 << 30) - (512 << 20) - RESERVED_MEMORY_BYTES);
        assert_eq!((capacity.ssd_bytes, capacity.hdd_bytes), (80 << 30, 0));
    }

    #[test]
    fn a_rotating_disk_is_sold_as_one() {
        let capacity = sellable(Found { data_rotational: true, ..MACHINE });
        assert_eq!((capacity.ssd_bytes, capacity.hdd_bytes), (0, 80 << 30));
    }

    #[test]
    fn a_machine_without_virtualisation_has_nothing_to_sell() {
        assert_eq!(sellable(Found { virtualisation: false, ..MACHINE }), Capacity::default());
    }

    #[test]
    fn a_tiny_machine_has_nothing_to_sell() {
        let with = |memory_bytes| sellable(Found { memory_bytes, ..MACHINE });
        assert_eq!(with(LEAST_MEMORY_BYTES - 1), Capacity::default());
        assert!(with(LEAST_MEMORY_BYTES).memory_bytes >= 192 << 20);
    }
}
