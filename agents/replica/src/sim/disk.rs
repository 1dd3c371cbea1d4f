//! The disks of a simulated machine: they lose what was not synced when the power goes, and fill up.
//!
//! ```text
//!   write ──> data (what a reader sees) ──sync──> durable (what a power cut leaves)
//!               └ pending: of these a power cut leaves any part, in any order, torn between sectors
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Database, StorageBackend};

use super::random::Random;
use crate::store::faults::{Op, apply};
use crate::store::{Disk, OpenError, RESERVED_BYTES, builder, open_error};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// What both disks of one machine share: its power and the room that is left.
#[derive(Debug, Default)]
struct Machine {
    /// Writes and syncs that still succeed, and what happens then.
    left: Option<(u64, Failing)>,
    no_power: bool,
    low_space: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failing {
    /// Nothing more is written; the machine has to start again.
    Power,
    /// Nothing more fits, until somebody makes room.
    Full,
}

#[derive(Debug)]
struct Inner {
    data: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Op>,
}

/// One disk; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk {
    path: PathBuf,
    inner: Arc<Mutex<Inner>>,
    machine: Arc<Mutex<Machine>>,
}

/// The two disks of a validator.
#[derive(Debug, Clone)]
pub(crate) struct Disks {
    pub(crate) store: SimDisk,
    pub(crate) log: SimDisk,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disks {
    pub(crate) fn new() -> Self {
        Self::with(Vec::new(), Vec::new())
    }

    fn with(store: Vec<u8>, log: Vec<u8>) -> Self {
        let machine = Arc::<Mutex<Machine>>::default();
        let disk = |name: &str, data: Vec<u8>| SimDisk {
            path: PathBuf::from(format!("/sim/{name}")),
            inner: Arc::new(Mutex::new(Inner { durable: data.clone(), data, pending: Vec::new() })),
            machine: machine.clone(),
        };
        Self { store: disk("ledger.redb", store), log: disk("consensus.redb", log) }
    }

    /// After so many more steps the machine fails.
    pub(crate) fn fail_after(&self, steps: u64, how: Failing) {
        lock(&self.store.machine).left = Some((steps, how));
    }

    /// Leaves less room than a ledger wants before it begins a block; what is written still fits.
    pub(crate) fn set_low_space(&self, low: bool) {
        lock(&self.store.machine).low_space = low;
    }

    /// Somebody made room.
    pub(crate) fn heal(&self) {
        let mut machine = lock(&self.store.machine);
        machine.low_space = false;
        machine.left = None;
    }

    /// Whether the power went in the middle of something.
    pub(crate) fn lost_power(&self) -> bool {
        lock(&self.store.machine).no_power
    }

    /// Whether anything failed: the power, or room.
    pub(crate) fn have_failed(&self) -> bool {
        let machine = lock(&self.store.machine);
        machine.no_power || matches!(machine.left, Some((0, _)))
    }

    /// Cuts the power now: whoever still has these disks open can't write to them any more.
    pub(crate) fn cut_power(&self) {
        lock(&self.store.machine).no_power = true;
    }

    /// What is on the disks when the power is back.
    pub(crate) fn after_power_cut(&self, random: &mut Random) -> Self {
        self.cut_power();
        Self::with(self.store.survivors(random), self.log.survivors(random))
    }

    /// The disks as the next process finds them, when only the process ended.
    pub(crate) fn after_exit(&self) -> Self {
        let data = |disk: &SimDisk| lock(&disk.inner).data.clone();
        Self::with(data(&self.store), data(&self.log))
    }
}

impl SimDisk {
    fn survivors(&self, random: &mut Random) -> Vec<u8> {
        let inner = lock(&self.inner);
        let mut image = inner.durable.clone();
        let (manner, cut) = (random.below(4), random.index(inner.pending.len() + 1));
        for (index, op) in inner.pending.iter().enumerate() {
            let keeps = match manner {
                0 => false,
                1 => true,
                2 => index < cut,
                _ => random.percent(50),
            };
            if !keeps {
                continue;
            }
            match op {
                Op::Write { offset, data } if random.percent(10) => {
                    let sectors = (data.len() as u64).div_ceil(SECTOR_BYTES);
                    let kept = usize::try_from(random.below(sectors + 1) * SECTOR_BYTES).unwrap_or_default();
                    let data = data[..kept.min(data.len())].to_vec();
                    apply(&mut image, &Op::Write { offset: *offset, data });
                }
                op => apply(&mut image, op),
            }
        }
        image
    }

    fn step(&self, op: Op) -> io::Result<()> {
        let mut machine = lock(&self.machine);
        match &mut machine.left {
            Some((0, Failing::Power)) => machine.no_power = true,
            Some((0, Failing::Full)) => return Err(errno(rustix::io::Errno::NOSPC)),
            Some((left, _)) => *left -= 1,
            None => {}
        }
        if machine.no_power {
            return Err(errno(rustix::io::Errno::IO));
        }
        let mut inner = lock(&self.inner);
        if matches!(op, Op::Sync) {
            let Inner { durable, pending, .. } = &mut *inner;
            for op in pending.drain(..) {
                apply(durable, &op);
            }
        } else {
            apply(&mut inner.data, &op);
            inner.pending.push(op);
        }
        Ok(())
    }
}

fn errno(errno: rustix::io::Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw_os_error())
}

impl Disk for SimDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> Result<Database, OpenError> {
        builder(true).create_with_backend(self.clone()).map_err(|error| open_error(&self.path, error))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(if lock(&self.machine).low_space { RESERVED_BYTES / 2 } else { 2 * RESERVED_BYTES })
    }
}

impl StorageBackend for SimDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.inner).data.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = lock(&self.inner);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = inner.data.get(start..start.saturating_add(out.len()));
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step(Op::SetLen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.step(Op::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.step(Op::Write { offset, data: data.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_any_part_of_the_rest() {
        let mut random = Random::new(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let disks = Disks::new();
            disks.log.write(0, &[1]).unwrap();
            disks.log.sync_data().unwrap();
            disks.log.write(1, &[2]).unwrap();
            disks.log.write(2, &[3]).unwrap();
            let after = disks.after_power_cut(&mut random);
            let data = lock(&after.log.inner).data.clone();
            assert_eq!(data[0], 1);
            seen.insert(data);
            assert!(disks.log.write(0, &[9]).is_err());
        }
        assert!(seen.len() >= 4, "{seen:?}");
    }

    #[test]
    fn both_disks_fill_up_together_and_hold_again_when_there_is_room() {
        let disks = Disks::new();
        disks.fail_after(1, Failing::Full);
        disks.store.write(0, &[1]).unwrap();
        assert!(disks.log.write(0, &[1]).is_err() && disks.store.sync_data().is_err());
        assert!(!disks.lost_power());
        disks.heal();
        disks.log.write(0, &[1]).unwrap();
    }
}
