//! Content-addressed blobs as files: chunks and manifests of images.
//!
//! `blobs/ab/<hash>-<owner>`, written under `blobs/new/` first; the file's time is when somebody last stored, fetched
//! or asked for it. Where a quota is full, the blobs that were unused for longest make room, of the same owner or of
//! all, but none that was used within a day: a deployment under way never loses what it brought. A replica can't see
//! which images contracts run, for that is sealed; nodes keep theirs, and bots bring again what is missing.
//! It must never hand out bytes that are not those of the name, and never keep half a blob after a crash. Its
//! functions block.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use croft_protocol::api::Failure;
use croft_protocol::units::show_bytes;
use croft_protocol::{Hash, PublicKey, limits};

use crate::ordering::{Clock, wall_clock};
use crate::store::{RESERVED_BYTES, sync_dir};

/// Free space below which no blob is taken: the ledger's reserve, so that blobs never starve it.
const KEPT_FREE_BYTES: u64 = 4 * RESERVED_BYTES;

/// How many bytes of blobs may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobQuotas {
    pub per_bot_bytes: u64,
    pub total_bytes: u64,
}

/// What was used within this time makes no room for others.
const KEPT_MS: u64 = 24 * 3_600_000;
/// How far the time of a file may lag behind the last use: a restart forgets that much.
const MARKED_MS: u64 = 3_600_000;

#[derive(Debug, Clone, Copy)]
struct Entry {
    owner: PublicKey,
    bytes: u64,
    /// Milliseconds since 1970, UTC.
    used_ms: u64,
    /// What its file says.
    marked_ms: u64,
}

#[derive(Debug, Default)]
struct Index {
    blobs: BTreeMap<Hash, Entry>,
    /// The same in the order of their last use.
    by_use: BTreeSet<(u64, Hash)>,
    /// Stored and promised bytes of each owner, and of all.
    used: BTreeMap<PublicKey, u64>,
    total: u64,
}

impl Index {
    fn charge(&mut self, owner: PublicKey, bytes: u64) {
        *self.used.entry(owner).or_default() += bytes;
        self.total += bytes;
    }

    /// Puts in a blob whose bytes are charged; `false` when it is there already.
    fn insert(&mut self, hash: Hash, entry: Entry) -> bool {
        if let Some(before) = self.blobs.insert(hash, entry) {
            self.by_use.remove(&(before.used_ms, hash));
            self.by_use.insert((entry.used_ms, hash));
            return false;
        }
        self.by_use.insert((entry.used_ms, hash));
        true
    }

    /// Takes out a blob and what was charged for it.
    fn remove(&mut self, hash: &Hash) -> Option<Entry> {
        let entry = self.blobs.remove(hash)?;
        self.by_use.remove(&(entry.used_ms, *hash));
        self.release(&entry.owner, entry.bytes);
        Some(entry)
    }

    /// Notes a use; the entry, if its file should be told.
    fn touch(&mut self, hash: &Hash, now_ms: u64) -> Option<Entry> {
        let entry = self.blobs.get_mut(hash)?;
        self.by_use.remove(&(entry.used_ms, *hash));
        entry.used_ms = entry.used_ms.max(now_ms);
        self.by_use.insert((entry.used_ms, *hash));
        if now_ms < entry.marked_ms.saturating_add(MARKED_MS) {
            return None;
        }
        entry.marked_ms = now_ms;
        Some(*entry)
    }

    /// The blob that was unused for longest, of one owner or of all, if that is long enough.
    fn oldest(&self, owner: Option<&PublicKey>, now_ms: u64) -> Option<Hash> {
        let unused = self.by_use.iter().take_while(|(used_ms, _)| used_ms.saturating_add(KEPT_MS) <= now_ms);
        let mut of = unused.filter(|(_, hash)| owner.is_none_or(|owner| self.blobs[hash].owner == *owner));
        of.next().map(|(_, hash)| *hash)
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
pub(crate) struct Blobs {
    dir: PathBuf,
    quotas: BlobQuotas,
    clock: Clock,
    index: Mutex<Index>,
    next: AtomicU64,
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blobs").field("dir", &self.dir).field("quotas", &self.quotas).finish_non_exhaustive()
    }
}

impl Blobs {
    /// Looks at what is there and clears away what a crash left half-written.
    pub(crate) fn open(dir: PathBuf, quotas: BlobQuotas) -> io::Result<Self> {
        Self::open_at(dir, quotas, wall_clock())
    }

    fn open_at(dir: PathBuf, quotas: BlobQuotas, clock: Clock) -> io::Result<Self> {
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
                let metadata = file.metadata()?;
                let (bytes, used_ms) = (metadata.len(), millis(metadata.modified()?));
                if index.insert(hash, Entry { owner, bytes, used_ms, marked_ms: used_ms }) {
                    index.charge(owner, bytes);
                }
            }
        }
        Ok(Self { dir, quotas, clock, index: Mutex::new(index), next: AtomicU64::new(0) })
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

    /// Which of these are here. Whoever asks is about to use them.
    pub(crate) fn has(&self, hashes: &[Hash]) -> Vec<bool> {
        hashes.iter().map(|hash| self.touch(hash).is_some()).collect()
    }

    /// Notes that a blob is used; `None` when it is not here.
    fn touch(&self, hash: &Hash) -> Option<Entry> {
        let now_ms = (self.clock)();
        let (entry, mark) = {
            let mut index = self.lock();
            let mark = index.touch(hash, now_ms);
            (index.blobs.get(hash).copied()?, mark)
        };
        if let Some(entry) = mark {
            let path = self.path(hash, &entry.owner);
            let marked = mark_used(&path, now_ms);
            if let Err(error) = marked {
                tracing::debug!(path = %path.display(), %error, "the time of a blob can't be set");
            }
        }
        Some(entry)
    }

    /// The bytes of a blob, checked. One that the disk has changed is put out of the way, so that it can be
    /// stored again.
    pub(crate) fn get(&self, hash: &Hash) -> Result<Vec<u8>, Failure> {
        let not_found = || Failure::NotFound { what: format!("blob {hash}") };
        let entry = self.touch(hash).ok_or_else(not_found)?;
        let path = self.path(hash, &entry.owner);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(storage(&path, &error)),
        };
        if Hash::of_bytes(&bytes) == *hash {
            return Ok(bytes);
        }
        if self.lock().remove(hash).is_none() {
            // It made room for others meanwhile.
            return Err(not_found());
        }
        tracing::error!(path = %path.display(), "blob is damaged on the disk and is put out of the way");
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
        let stored = self.write(&path, bytes).and_then(|()| mark_used(&path, (self.clock)()));
        let mut index = self.lock();
        match stored {
            Ok(()) => {
                let now_ms = (self.clock)();
                if !index.insert(hash, Entry { owner, bytes: size, used_ms: now_ms, marked_ms: now_ms }) {
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
        let mut free = crate::store::free_bytes(&self.dir).map_err(|e| storage(&self.dir, &e))?;
        let BlobQuotas { per_bot_bytes, total_bytes } = self.quotas;
        if self.touch(hash).is_some() {
            return Ok(false);
        }
        let mut index = self.lock();
        let used_by = |index: &Index| index.used.get(&owner).copied().unwrap_or(0);
        while used_by(&index) + size > per_bot_bytes && self.drop_oldest(&mut index, Some(&owner)).is_some() {
        }
        let used = used_by(&index);
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
        while index.total + size > total_bytes || free < KEPT_FREE_BYTES + size {
            let Some(bytes) = self.drop_oldest(&mut index, None) else { break };
            free += bytes;
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

    /// Gives up the blob that was unused for longest, if that is long enough: its bytes. Under the lock, so that
    /// nobody stores it again meanwhile.
    fn drop_oldest(&self, index: &mut Index, owner: Option<&PublicKey>) -> Option<u64> {
        let hash = index.oldest(owner, (self.clock)())?;
        let entry = index.remove(&hash)?;
        let path = self.path(&hash, &entry.owner);
        tracing::info!(blob = %hash, bytes = entry.bytes, "a blob that nobody used makes room");
        if let Err(error) = std::fs::remove_file(&path) {
            // It is found again at the next start; until then the disk has less room than we think.
            tracing::warn!(path = %path.display(), %error, "a blob can't be removed");
        }
        Some(entry.bytes)
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

fn millis(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Sets the time of a file.
fn mark_used(path: &Path, now_ms: u64) -> io::Result<()> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms);
    std::fs::File::options().append(true).open(path)?.set_modified(time)
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
    use std::sync::Arc;

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
    fn what_nobody_used_for_a_day_makes_room_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicU64::new(1_800_000_000_000));
        let open = || {
            let now = now.clone();
            let clock: Clock = Arc::new(move || now.load(Ordering::Relaxed));
            Blobs::open_at(dir.path().join("blobs"), QUOTAS, clock).unwrap()
        };
        let pass = |hours: u64| now.fetch_add(hours * 3_600_000, Ordering::Relaxed);
        let blobs = open();
        let [first, second, third] = [b"1234", b"abcd", b"ABCD"].map(|bytes| {
            let owner = if bytes == b"ABCD" { OTHER } else { OWNER };
            let hash = blobs.put(owner, bytes).unwrap();
            pass(1);
            hash
        });
        // All were used within a day: nothing makes room.
        assert!(blobs.put(OTHER, b"6 more").is_err());
        pass(24);
        assert_eq!(blobs.has(&[first]), [true], "asking is using");
        // The total is full by one byte: the second is the oldest now. What is known of uses survives a restart.
        drop(blobs);
        let blobs = open();
        blobs.put(OTHER, b"4more").unwrap();
        assert_eq!(blobs.has(&[first, second, third]), [true, false, true]);
        assert_eq!(blobs.get(&second).unwrap_err().to_string(), format!("there is no blob {second} here"));
        assert!(!blobs.path(&second, &OWNER).exists());
        // Of one owner only his own make room for him.
        pass(24);
        blobs.put(OWNER, b"7 bytes").unwrap();
        assert_eq!(blobs.has(&[first, third]), [false, true]);
        assert!(blobs.total_bytes() <= QUOTAS.total_bytes);
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
