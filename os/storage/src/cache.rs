//! Verified blobs by their SHA-256 digest: what the node fetched and may need again.
//!
//! Nothing is kept that does not have the digest it claims, and nothing is handed out without looking again: a damaged
//! entry is removed and reported, and the caller fetches it once more. What was used longest ago makes room for what
//! comes; pinned entries never do. Losing all of it costs time, never data.
//!
//! ```text
//! put: room made -> new/<n> written and hashed -> synced -> renamed to <2 digits>/<digest> -> folder synced
//! ```

use crate::capacity::{available, is_full};
use crate::digest::Digest;
use crate::files::{Files, OsFiles};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const NEW: &str = "new";
const COPY_BYTES: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum OpenCacheError {
    #[error("the cache in {folder} can't be opened: remove the folder, it is filled again")]
    Io {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum PutBlobError {
    #[error("blob {want} has the digest {got}: it was changed on the way, fetch it from somebody else")]
    Digest { want: Digest, got: Digest },
    #[error("blob {digest} is longer than the {bytes} bytes it should have: fetch it from somebody else")]
    TooLong { digest: Digest, bytes: u64 },
    #[error("blob {digest} ended after {got} of {bytes} bytes: fetch it again")]
    TooShort { digest: Digest, got: u64, bytes: u64 },
    #[error(
        "blob {digest} of {bytes} bytes does not fit into the cache of {quota_bytes} bytes, of which {pinned_bytes} are in \
         use by workloads: end some of them or give the node a larger disk"
    )]
    Quota { digest: Digest, bytes: u64, quota_bytes: u64, pinned_bytes: u64 },
    #[error(
        "blob {digest} of {bytes} bytes does not fit, {free_bytes} bytes are free on {folder}: end contracts of this node \
         or give it a larger disk"
    )]
    Full { digest: Digest, bytes: u64, folder: PathBuf, free_bytes: u64 },
    #[error("blob {digest} can't be fetched")]
    Source {
        digest: Digest,
        #[source]
        source: io::Error,
    },
    #[error("blob {digest} can't be written to {folder}")]
    Io {
        digest: Digest,
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum GetBlobError {
    /// It is gone already: fetch it again.
    #[error(
        "blob {digest} was damaged on the disk, which may be dying; it is removed and has to be fetched again"
    )]
    Damaged { digest: Digest },
    #[error("blob {digest} can't be read")]
    Io {
        digest: Digest,
        #[source]
        source: io::Error,
    },
}

/// How full the cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub entries: usize,
    pub used_bytes: u64,
    pub pinned_bytes: u64,
    pub quota_bytes: u64,
}

#[derive(Debug, Clone)]
struct Blob {
    bytes: u64,
    /// Grows with each use; loaded from the files' times at first.
    used: u64,
    pins: u32,
}

#[derive(Debug, Default)]
struct Index {
    blobs: BTreeMap<Digest, Blob>,
    used_bytes: u64,
    /// Room promised to blobs that are being written.
    reserved_bytes: u64,
    next_use: u64,
    next_new: u64,
    /// Folders that are there durably.
    shelves: BTreeSet<PathBuf>,
    /// Pins of blobs that are not there yet.
    early_pins: BTreeMap<Digest, u32>,
}

/// See the module. Shared between threads by reference; long copies don't hold the lock.
#[derive(Debug)]
pub struct Cache {
    files: Arc<dyn Files>,
    folder: PathBuf,
    quota_bytes: u64,
    index: Mutex<Index>,
}

impl Cache {
    /// Opens a folder, makes it if needed, and clears what a power cut left half done. Pin what workloads need before
    /// anything is put: an unpinned entry may be evicted by the first one.
    pub fn open(folder: &Path, quota_bytes: u64) -> Result<Self, OpenCacheError> {
        Self::open_on(Arc::new(OsFiles), folder, quota_bytes)
    }

    /// On other files than the system's, for tests that cut the power.
    pub fn open_on(files: Arc<dyn Files>, folder: &Path, quota_bytes: u64) -> Result<Self, OpenCacheError> {
        let io = |source| OpenCacheError::Io { folder: folder.into(), source };
        let new = folder.join(NEW);
        files.make_folder(&new).map_err(io)?;
        for entry in files.list(&new).map_err(io)? {
            files.remove(&new.join(&entry.name)).map_err(io)?;
        }
        let mut found = Vec::new();
        let mut shelves = BTreeSet::new();
        for shelf in
            files.list(folder).map_err(io)?.into_iter().filter(|entry| entry.folder && entry.name != NEW)
        {
            for entry in files.list(&folder.join(&shelf.name)).map_err(io)? {
                match Digest::parse(&entry.name) {
                    Ok(digest) if !entry.folder => found.push((entry.modified_ns, digest, entry.bytes)),
                    _ => {}
                }
            }
            shelves.insert(folder.join(shelf.name));
        }
        found.sort_unstable();
        let mut index = Index { shelves, ..Index::default() };
        for (_, digest, bytes) in found {
            index.insert(digest, bytes);
        }
        Ok(Self { files, folder: folder.into(), quota_bytes, index: Mutex::new(index) })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // The index is consistent at every point where a panic could leave it.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shelf(&self, digest: &Digest) -> PathBuf {
        self.folder.join(hex::encode(&digest.0[..1]))
    }

    /// Where a blob is, once it was put; for programs that read it in place. Not a promise that it is there or whole.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.shelf(digest).join(digest.to_string())
    }

    /// Takes exactly `bytes` bytes from `source`, keeps them when they have the digest, and returns where. When it
    /// returns, the blob survives a power cut. A blob that is there already is not read from the source.
    pub fn put(&self, digest: &Digest, bytes: u64, source: &mut dyn Read) -> Result<PathBuf, PutBlobError> {
        if self.touch(digest) {
            return Ok(self.path(digest));
        }
        let new = self.reserve(digest, bytes)?;
        let result = self.write(digest, bytes, source, &new);
        if let Err(PutBlobError::Full { .. }) = &result {
            // The disk is fuller than the quota knows. The source is spent, so only the next attempt can use the room.
            self.index().evict(bytes).iter().for_each(|digest| self.forget(digest));
        }
        let mut index = self.index();
        index.reserved_bytes -= bytes;
        match result {
            Ok(()) => {
                index.insert(*digest, bytes);
                Ok(self.path(digest))
            }
            Err(error) => {
                drop(index);
                let _ = self.files.remove(&new);
                Err(error)
            }
        }
    }

    /// Makes room, promises it, and names the new file.
    fn reserve(&self, digest: &Digest, bytes: u64) -> Result<PathBuf, PutBlobError> {
        let mut index = self.index();
        let quota_bytes = self.quota_bytes;
        let needed =
            (index.used_bytes + index.reserved_bytes).saturating_add(bytes).saturating_sub(quota_bytes);
        if needed > index.evictable_bytes() {
            let pinned_bytes = index.pinned_bytes();
            return Err(PutBlobError::Quota { digest: *digest, bytes, quota_bytes, pinned_bytes });
        }
        for victim in index.evict(needed) {
            self.forget(&victim);
        }
        index.reserved_bytes += bytes;
        index.next_new += 1;
        Ok(self.folder.join(NEW).join(index.next_new.to_string()))
    }

    fn write(
        &self,
        digest: &Digest,
        bytes: u64,
        source: &mut dyn Read,
        new: &Path,
    ) -> Result<(), PutBlobError> {
        let io = |source: io::Error| {
            let folder = self.folder.clone();
            if is_full(&source) {
                PutBlobError::Full { digest: *digest, bytes, free_bytes: available(&folder), folder }
            } else {
                PutBlobError::Io { digest: *digest, folder, source }
            }
        };
        let mut sink = self.files.create(new).map_err(io)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; COPY_BYTES];
        let mut got = 0_u64;
        loop {
            let length = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(PutBlobError::Source { digest: *digest, source }),
            };
            got += length as u64;
            if got > bytes {
                return Err(PutBlobError::TooLong { digest: *digest, bytes });
            }
            hash.update(&buffer[..length]);
            sink.write_all(&buffer[..length]).map_err(io)?;
        }
        if got < bytes {
            return Err(PutBlobError::TooShort { digest: *digest, got, bytes });
        }
        let found = Digest(hash.finalize().into());
        if found != *digest {
            return Err(PutBlobError::Digest { want: *digest, got: found });
        }
        sink.sync().map_err(io)?;
        drop(sink);
        let shelf = self.shelf(digest);
        self.make_shelf(&shelf).map_err(io)?;
        self.files.rename(new, &self.path(digest)).map_err(io)?;
        self.files.sync_folder(&shelf).map_err(io)
    }

    fn make_shelf(&self, shelf: &Path) -> io::Result<()> {
        if self.index().shelves.contains(shelf) {
            return Ok(());
        }
        self.files.make_folder(shelf)?;
        self.files.sync_folder(&self.folder)?;
        self.index().shelves.insert(shelf.into());
        Ok(())
    }

    /// Whether a blob is there. Says nothing about its bytes.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.index().blobs.contains_key(digest)
    }

    /// The bytes of a blob, verified; `None` when it is not there.
    pub fn get(&self, digest: &Digest) -> Result<Option<Vec<u8>>, GetBlobError> {
        let mut bytes = Vec::new();
        Ok(self.copy_to(digest, &mut bytes)?.map(|_| bytes))
    }

    /// Verifies a blob where it is and returns its path; `None` when it is not there.
    pub fn verified_path(&self, digest: &Digest) -> Result<Option<PathBuf>, GetBlobError> {
        Ok(self.copy_to(digest, &mut io::sink())?.map(|_| self.path(digest)))
    }

    /// Copies a blob out and verifies it on the way; how many bytes, or `None` when it is not there. What was written
    /// before an error is worthless.
    pub fn copy_to(&self, digest: &Digest, target: &mut dyn Write) -> Result<Option<u64>, GetBlobError> {
        if !self.touch(digest) {
            return Ok(None);
        }
        let io = |source| GetBlobError::Io { digest: *digest, source };
        let mut file = match self.files.open(&self.path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.drop_entry(digest);
                return Ok(None);
            }
            Err(source) => return Err(io(source)),
        };
        let mut hash = Sha256::new();
        let mut buffer = vec![0; COPY_BYTES];
        let mut copied = 0_u64;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    hash.update(&buffer[..length]);
                    target.write_all(&buffer[..length]).map_err(io)?;
                    copied += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A sector that can't be read is damage like any other.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => return Err(self.damaged(digest)),
                Err(source) => return Err(io(source)),
            }
        }
        if Digest(hash.finalize().into()) != *digest {
            return Err(self.damaged(digest));
        }
        Ok(Some(copied))
    }

    fn damaged(&self, digest: &Digest) -> GetBlobError {
        self.drop_entry(digest);
        GetBlobError::Damaged { digest: *digest }
    }

    /// Removes a blob, pinned or not: it is damaged or gone.
    fn drop_entry(&self, digest: &Digest) {
        let mut index = self.index();
        index.remove(digest, true);
        self.forget(digest);
    }

    /// The file of an entry that the index does not know any more.
    fn forget(&self, digest: &Digest) {
        // A rest that stays is found at the next start.
        let _ = self.files.remove(&self.path(digest));
    }

    /// Keeps a blob from eviction until it is unpinned as often; works ahead of its arrival.
    pub fn pin(&self, digest: &Digest) {
        let mut index = self.index();
        match index.blobs.get_mut(digest) {
            Some(blob) => blob.pins += 1,
            None => *index.early_pins.entry(*digest).or_default() += 1,
        }
    }

    pub fn unpin(&self, digest: &Digest) {
        let mut index = self.index();
        if let Some(blob) = index.blobs.get_mut(digest) {
            blob.pins = blob.pins.saturating_sub(1);
        } else if let Some(pins) = index.early_pins.get_mut(digest) {
            *pins -= 1;
            if *pins == 0 {
                index.early_pins.remove(digest);
            }
        }
    }

    #[must_use]
    pub fn usage(&self) -> Usage {
        let index = self.index();
        Usage {
            entries: index.blobs.len(),
            used_bytes: index.used_bytes,
            pinned_bytes: index.pinned_bytes(),
            quota_bytes: self.quota_bytes,
        }
    }

    /// Notes a use; whether the blob is there.
    fn touch(&self, digest: &Digest) -> bool {
        let mut index = self.index();
        index.next_use += 1;
        let next = index.next_use;
        let Some(blob) = index.blobs.get_mut(digest) else { return false };
        blob.used = next;
        drop(index);
        // The time on disk only matters after a restart.
        let _ = self.files.touch(&self.path(digest));
        true
    }
}

impl Index {
    fn insert(&mut self, digest: Digest, bytes: u64) {
        self.next_use += 1;
        let pins = self.early_pins.remove(&digest).unwrap_or(0);
        let blob = Blob { bytes, used: self.next_use, pins };
        match self.blobs.insert(digest, blob) {
            // Two wrote the same at once: one file is left.
            Some(before) => {
                self.used_bytes = self.used_bytes - before.bytes + bytes;
                if let Some(blob) = self.blobs.get_mut(&digest) {
                    blob.pins += before.pins;
                }
            }
            None => self.used_bytes += bytes,
        }
    }

    fn remove(&mut self, digest: &Digest, keep_pins: bool) {
        if let Some(blob) = self.blobs.remove(digest) {
            self.used_bytes -= blob.bytes;
            if keep_pins && blob.pins > 0 {
                self.early_pins.insert(*digest, blob.pins);
            }
        }
    }

    fn pinned_bytes(&self) -> u64 {
        self.blobs.values().filter(|blob| blob.pins > 0).map(|blob| blob.bytes).sum()
    }

    fn evictable_bytes(&self) -> u64 {
        self.used_bytes - self.pinned_bytes()
    }

    /// Takes out what was used longest ago, until that many bytes are free.
    fn evict(&mut self, bytes: u64) -> Vec<Digest> {
        let mut idle: Vec<(u64, Digest, u64)> = self
            .blobs
            .iter()
            .filter(|(_, blob)| blob.pins == 0)
            .map(|(digest, blob)| (blob.used, *digest, blob.bytes))
            .collect();
        idle.sort_unstable();
        let mut freed = 0;
        let mut victims = Vec::new();
        for (_, digest, size) in idle {
            if freed >= bytes {
                break;
            }
            freed += size;
            self.remove(&digest, false);
            victims.push(digest);
        }
        victims
    }
}

#[cfg(test)]
mod tests;
