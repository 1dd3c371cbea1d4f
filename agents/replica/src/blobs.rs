//! Content-addressed blobs as files: chunks and manifests of images.
//!
//! `blobs/ab/<hash>-<owner>`, written under `blobs/new/` first. It must never hand out bytes that are not
//! those of the name, and never keep half a blob after a crash. Its functions block.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_protocol::api::Failure;
use croft_protocol::units::show_bytes;
use croft_protocol::{Hash, PublicKey, limits};

use crate::store::{RESERVED_BYTES, sync_dir};

/// Free space below which no blob is taken: the ledger's reserve, so that blobs never starve it.
const KEPT_FREE_BYTES: u64 = 4 * RESERVED_BYTES;

/// How many bytes of blobs may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobQuotas {
    pub per_bot_bytes: u64,
    pub total_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    owner: PublicKey,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Index {
    blobs: BTreeMap<Hash, Entry>,
    /// Stored and promised bytes of each owner, and of all.
    used: BTreeMap<PublicKey, u64>,
    total: u64,
}

impl Index {
    fn charge(&mut self, owner: PublicKey, bytes: u64) {
        *self.used.entry(owner).or_default() += bytes;
        self.total += bytes;
    }

    fn release(&mut self, owner: &PublicKey, bytes: u64) {
        self.total -= bytes;
        if let Some(used) = self.used.get_mut(owner) {
            *used -= bytes;
            if *used == 0 {
                self.used.remove(owner);
            }
        }
    }
}

/// The blobs of one replica.
#[derive(Debug)]
pub(crate) struct Blobs {
    dir: PathBuf,
    quotas: BlobQuotas,
    index: Mutex<Index>,
    next: AtomicU64,
}

impl Blobs {
    /// Looks at what is there and clears away what a crash left half-written.
    pub(crate) fn open(dir: PathBuf, quotas: BlobQuotas) -> io::Result<Self> {
        let unfinished = dir.join("new");
        match std::fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(&unfinished)?,
        }
        let mut index = Index::default();
        for shelf in std::fs::read_dir(&dir)? {
            let shelf = shelf?;
            if shelf.file_name() == "new" || !shelf.file_type()?.is_dir() {
                continue;
            }
            for file in std::fs::read_dir(shelf.path())? {
                let file = file?;
                let Some((hash, owner)) = file.file_name().to_str().and_then(parse) else {
                    tracing::warn!(path = %file.path().display(), "this file is no blob and is left alone");
                    continue;
                };
                let bytes = file.metadata()?.len();
                if index.blobs.insert(hash, Entry { owner, bytes }).is_none() {
                    index.charge(owner, bytes);
                }
            }
        }
        Ok(Self { dir, quotas, index: Mutex::new(index), next: AtomicU64::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, hash: &Hash, owner: &PublicKey) -> PathBuf {
        let hash = hash.to_string();
        self.dir.join(&hash[..2]).join(format!("{hash}-{owner}"))
    }

    /// Bytes of all blobs.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.lock().total
    }

    pub(crate) fn has(&self, hashes: &[Hash]) -> Vec<bool> {
        let index = self.lock();
        hashes.iter().map(|hash| index.blobs.contains_key(hash)).collect()
    }

    /// The bytes of a blob, checked. One that the disk has changed is put out of the way, so that it can be
    /// stored again.
    pub(crate) fn get(&self, hash: &Hash) -> Result<Vec<u8>, Failure> {
        let not_found = || Failure::NotFound { what: format!("blob {hash}") };
        let entry = self.lock().blobs.get(hash).copied().ok_or_else(not_found)?;
        let path = self.path(hash, &entry.owner);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(storage(&path, &error)),
        };
        if Hash::of_bytes(&bytes) == *hash {
            return Ok(bytes);
        }
        tracing::error!(path = %path.display(), "blob is damaged on the disk and is put out of the way");
        let mut index = self.lock();
        if index.blobs.remove(hash).is_some() {
            index.release(&entry.owner, entry.bytes);
        }
        // If it can't be moved, it is found damaged again after the next start.
        let _ = std::fs::rename(&path, self.dir.join("new").join(format!("damaged-{hash}")));
        Err(not_found())
    }

    /// Stores a blob durably, within the quotas.
    pub(crate) fn put(&self, owner: PublicKey, bytes: &[u8]) -> Result<Hash, Failure> {
        let size = bytes.len() as u64;
        if bytes.len() > limits::BLOB_BYTES {
            let limit = limits::BLOB_BYTES as u64;
            return Err(Failure::TooMuch { what: "bytes of a blob".to_owned(), got: size, limit });
        }
        let hash = Hash::of_bytes(bytes);
        if !self.reserve(&hash, owner, size)? {
            return Ok(hash);
        }
        let path = self.path(&hash, &owner);
        let stored = self.write(&path, bytes);
        let mut index = self.lock();
        match stored {
            Ok(()) => {
                if index.blobs.insert(hash, Entry { owner, bytes: size }).is_some() {
                    // Somebody else stored the same at the same time.
                    index.release(&owner, size);
                }
                Ok(hash)
            }
            Err(error) => {
                index.release(&owner, size);
                Err(storage(&path, &error))
            }
        }
    }

    /// Charges the owner; `false` when the blob is there already.
    fn reserve(&self, hash: &Hash, owner: PublicKey, size: u64) -> Result<bool, Failure> {
        let free = crate::store::free_bytes(&self.dir).map_err(|e| storage(&self.dir, &e))?;
        let BlobQuotas { per_bot_bytes, total_bytes } = self.quotas;
        let mut index = self.lock();
        if index.blobs.contains_key(hash) {
            return Ok(false);
        }
        let used = index.used.get(&owner).copied().unwrap_or(0);
        if used + size > per_bot_bytes {
            return Err(Failure::Quota {
                what: format!(
                    "{} of your {} for blobs are used",
                    show_bytes(used),
                    show_bytes(per_bot_bytes)
                ),
                remedy: "publish smaller images, or ask the replica's owner for more".to_owned(),
            });
        }
        if index.total + size > total_bytes || free < KEPT_FREE_BYTES + size {
            return Err(Failure::Quota {
                what: format!("the replica has no room for more blobs ({} kept)", show_bytes(index.total)),
                remedy: "ask the replica's owner to enlarge its disk or its quota".to_owned(),
            });
        }
        index.charge(owner, size);
        Ok(true)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.dir.join("new").join(number.to_string());
        let written = (|| {
            let mut file = std::fs::File::create(&unfinished)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            let shelf = path.parent().unwrap_or(&self.dir);
            if !shelf.exists() {
                std::fs::create_dir_all(shelf)?;
                sync_dir(&self.dir)?;
            }
            std::fs::rename(&unfinished, path)?;
            sync_dir(shelf)
        })();
        if written.is_err() {
            // The next start clears it away, if this can't.
            let _ = std::fs::remove_file(&unfinished);
        }
        written
    }
}

fn parse(name: &str) -> Option<(Hash, PublicKey)> {
    let (hash, owner) = name.split_once('-')?;
    Some((Hash::from_str(hash).ok()?, PublicKey::from_str(owner).ok()?))
}

fn storage(path: &Path, error: &io::Error) -> Failure {
    Failure::Storage { reason: format!("{}: {error}", path.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: PublicKey = PublicKey([1; 32]);
    const OTHER: PublicKey = PublicKey([2; 32]);
    const QUOTAS: BlobQuotas = BlobQuotas { per_bot_bytes: 10, total_bytes: 15 };

    fn open(dir: &Path) -> Blobs {
        Blobs::open(dir.join("blobs"), QUOTAS).unwrap()
    }

    #[test]
    fn a_blob_comes_back_after_a_restart_and_is_charged_once() {
        let dir = tempfile::tempdir().unwrap();
        let hash = open(dir.path()).put(OWNER, b"bytes").unwrap();
        let blobs = open(dir.path());
        assert_eq!(blobs.put(OTHER, b"bytes").unwrap(), hash);
        assert_eq!(blobs.total_bytes(), 5);
        assert_eq!(blobs.get(&hash).unwrap(), b"bytes");
        assert_eq!(blobs.has(&[hash, Hash::ZERO]), [true, false]);
    }

    #[test]
    fn a_blob_that_the_disk_changed_is_noticed_and_can_be_stored_again() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = open(dir.path());
        let hash = blobs.put(OWNER, b"bytes").unwrap();
        std::fs::write(blobs.path(&hash, &OWNER), b"bytez").unwrap();
        let error = blobs.get(&hash).unwrap_err().to_string();
        assert_eq!(error, format!("there is no blob {hash} here"));
        assert_eq!(blobs.total_bytes(), 0);
        assert_eq!(blobs.put(OWNER, b"bytes").unwrap(), hash);
        assert_eq!(blobs.get(&hash).unwrap(), b"bytes");
    }

    #[test]
    fn quotas_of_one_and_of_all_are_kept_and_explained() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = open(dir.path());
        blobs.put(OWNER, b"12345678").unwrap();
        assert_eq!(
            blobs.put(OWNER, b"abc").unwrap_err().to_string(),
            "quota: 8 B of your 10 B for blobs are used; publish smaller images, or ask the replica's owner for more"
        );
        assert_eq!(
            blobs.put(OTHER, b"abcdefgh").unwrap_err().to_string(),
            "quota: the replica has no room for more blobs (8 B kept); ask the replica's owner to enlarge its disk or its quota"
        );
        blobs.put(OTHER, b"abc").unwrap();
    }

    #[test]
    fn what_a_crash_left_half_written_is_cleared_away_and_strange_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let hash = open(dir.path()).put(OWNER, b"bytes").unwrap();
        let half = dir.path().join("blobs/new/7");
        std::fs::write(&half, b"by").unwrap();
        let strange = dir.path().join("blobs/ab");
        std::fs::create_dir_all(&strange).unwrap();
        std::fs::write(strange.join("notes.txt"), b"mine").unwrap();
        let blobs = open(dir.path());
        assert!(!half.exists());
        assert!(strange.join("notes.txt").exists());
        assert_eq!(blobs.get(&hash).unwrap(), b"bytes");
    }

    #[test]
    fn an_oversized_blob_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = open(dir.path()).put(OWNER, &vec![0; limits::BLOB_BYTES + 1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the request asks for 2097153 bytes of a blob, at most 2097152 are allowed"
        );
    }
}
