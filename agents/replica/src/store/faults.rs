//! A disk in memory that remembers every write, so that tests can cut the power between any two of them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use redb::{Database, StorageBackend};

use super::disk::{Disk, builder, open_error};
use super::{OpenError, RESERVED_BYTES};

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
    Sync,
}

#[derive(Debug, Default)]
struct Inner {
    data: Vec<u8>,
    journal: Vec<Op>,
    /// Writes and syncs that still succeed; then all fail.
    left: Option<u64>,
    free: Option<u64>,
}

/// A disk; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct MemoryDisk {
    path: PathBuf,
    inner: Arc<Mutex<Inner>>,
}

impl MemoryDisk {
    pub(crate) fn new() -> Self {
        Self::with(Vec::new())
    }

    pub(crate) fn with(data: Vec<u8>) -> Self {
        let inner = Inner { data, ..Inner::default() };
        Self { path: PathBuf::from("/test/ledger.redb"), inner: Arc::new(Mutex::new(inner)) }
    }

    pub(crate) fn data(&self) -> Vec<u8> {
        self.inner.lock().unwrap().data.clone()
    }

    /// What was done since the last call.
    pub(crate) fn take_journal(&self) -> Vec<Op> {
        std::mem::take(&mut self.inner.lock().unwrap().journal)
    }

    /// After this many more writes and syncs, each fails as on a full disk; `None` heals it.
    pub(crate) fn fail_after(&self, left: Option<u64>) {
        self.inner.lock().unwrap().left = left;
    }

    pub(crate) fn set_free(&self, bytes: u64) {
        self.inner.lock().unwrap().free = Some(bytes);
    }

    fn step(&self, op: Op) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        match &mut inner.left {
            Some(0) => return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())),
            Some(left) => *left -= 1,
            None => {}
        }
        apply(&mut inner.data, &op);
        inner.journal.push(op);
        Ok(())
    }
}

/// Does to an image what a disk would do.
pub(crate) fn apply(image: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { offset, data } => {
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            if image.len() < end {
                image.resize(end, 0);
            }
            image[start..end].copy_from_slice(data);
        }
        Op::SetLen(len) => image.resize(*len as usize, 0),
        Op::Sync => {}
    }
}

impl Disk for MemoryDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> Result<Database, OpenError> {
        builder(true).create_with_backend(self.clone()).map_err(|error| open_error(&self.path, error))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.inner.lock().unwrap().free.unwrap_or(2 * RESERVED_BYTES))
    }
}

impl StorageBackend for MemoryDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.lock().unwrap().data.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.inner.lock().unwrap();
        let start = offset as usize;
        let bytes = inner.data.get(start..start + out.len());
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
