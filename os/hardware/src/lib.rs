//! What a machine is made of: [`Inventory::read`] looks at `/sys`, `/proc` and `/dev` below any root folder.
//!
//! It reads and never changes anything, opens no disk but to ask for its [`health`], and never panics on what firmware or a broken driver answers:
//! what is absent is `None`, what makes no sense is `None` with a line in [`Inventory::findings`], so that nothing is
//! ignored without a word. Virtual devices (loop, bridges, taps) are no hardware and are left out.
//!
//! Sources: the kernel's Documentation/ABI (sysfs-block, sysfs-class-net, sysfs-devices-system-cpu), proc(5), and
//! the SMBIOS specification 3.7 for the machine's names.

mod cpu;
mod disk;
mod firmware;
pub mod health;
mod memory;
mod nic;
mod tree;

pub use cpu::{Cpu, Virtualisation};
pub use disk::{Disk, Partition, Transport};
pub use firmware::{Firmware, FirmwareKind, Machine, SecureBoot, Tpm};
pub use health::Health;
pub use memory::Memory;
pub use nic::Nic;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One thread for each; larger shelves are asked in part.
const DISKS_ASKED_MAX: usize = 128;

/// Everything that is known about a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    pub cpu: Cpu,
    pub memory: Memory,
    /// Physical disks, in the order of their names.
    pub disks: Vec<Disk>,
    /// Physical network cards, in the order of their names.
    pub nics: Vec<Nic>,
    /// What the maker wrote into SMBIOS; all `None` on a machine without.
    pub machine: Machine,
    pub firmware: Firmware,
    pub tpm: Option<Tpm>,
    /// What each disk that can be asked says of itself, by its name; filled by [`Inventory::ask_disks`].
    #[serde(default)]
    pub health: BTreeMap<String, Health>,
    /// What could not be read or made no sense: `path: what is wrong`.
    pub findings: Vec<String>,
}

impl Inventory {
    /// Reads the machine below `root`, which is `/` on the machine itself.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let tree = tree::Tree::new(root);
        Self {
            cpu: cpu::read(&tree),
            memory: memory::read(&tree),
            disks: disk::read(&tree),
            nics: nic::read(&tree),
            machine: firmware::read_machine(&tree),
            firmware: firmware::read_firmware(&tree),
            tpm: firmware::read_tpm(&tree),
            health: BTreeMap::new(),
            findings: tree.into_findings(),
        }
    }

    /// Asks each disk for its health, all at once: a disk that is dying takes seconds. Blocks. `dev` is `/dev`.
    pub fn ask_disks(&mut self, dev: &Path) {
        self.health = std::thread::scope(|scope| {
            let asked: Vec<_> = self
                .disks
                .iter()
                .take(DISKS_ASKED_MAX)
                .map(|disk| (disk.name.clone(), scope.spawn(move || health::ask(disk, dev))))
                .collect();
            let unknown = || Health::Unknown { reason: "asking it failed".into() };
            asked
                .into_iter()
                .map(|(name, answer)| (name, answer.join().unwrap_or_else(|_| unknown())))
                .collect()
        });
    }
}
