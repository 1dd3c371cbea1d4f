//! An append-only file of entries, each with its length and its hash: what a bot must not forget.
//!
//! ```text
//!   [length: 4 bytes, little-endian][SHA-256 of the entry: 32][entry: borsh] ...
//! ```
//! An entry at the end that a crash cut off was never promised to anybody, and is dropped. Anything else that does not
//! hold is damage, and nothing is done on it. One process at a time: the directory is locked while the journal is open.
//! It must never say that an entry is written before it survives a crash.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use borsh::{BorshDeserialize, BorshSerialize};
use croft_market::journal::Journal;
use croft_protocol::Hash;

use crate::files;

/// One entry: two transcripts with sealed workloads are some 400 KiB. Larger is damage.
const ENTRY_BYTES: usize = 4 << 20;
/// A whole journal. Farmers' journals are rewritten long before.
const FILE_BYTES: u64 = 256 << 20;
const HEAD_BYTES: usize = 4 + 32;

/// Why a journal can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("{path} is in use: another croft works on the same; wait for it, or end it")]
    Busy { path: PathBuf },
    #[error("can't read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("can't write {path}: nothing is done that it does not hold")]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{path} is damaged at byte {offset} ({reason}): restore it, or move it away if nothing in it is open any more"
    )]
    Damaged { path: PathBuf, offset: usize, reason: String },
    #[error("{path} has {bytes} bytes, at most {FILE_BYTES} are allowed: it is not what croft wrote")]
    TooLarge { path: PathBuf, bytes: u64 },
}

/// A journal of entries of one kind, open and locked.
#[derive(Debug)]
pub(crate) struct FileJournal<E> {
    path: PathBuf,
    file: File,
    /// A write failed: what is behind it is unknown.
    broken: bool,
    _lock: File,
    entries: PhantomData<E>,
}

impl<E: BorshSerialize + BorshDeserialize> FileJournal<E> {
    /// Opens the journal of a directory, which is made where there is none, and drops what a crash cut off.
    pub(crate) fn open(dir: &Path) -> Result<Self, JournalError> {
        let path = dir.join("journal");
        let failed = |source| JournalError::Write { path: path.clone(), source };
        let lock =
            files::try_lock(dir).map_err(failed)?.ok_or_else(|| JournalError::Busy { path: path.clone() })?;
        if !path.exists() {
            files::aside(&path, &[], true).and_then(|file| file.add(&path)).map_err(failed)?;
        }
        let (_, whole) = parse::<E>(&path, &read(&path)?)?;
        let file = OpenOptions::new().append(true).mode(0o600).open(&path).map_err(failed)?;
        file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(Self { path, file, broken: false, _lock: lock, entries: PhantomData })
    }

    /// Puts these entries in place of all others, at once.
    pub(crate) fn replace(&mut self, entries: &[E]) -> Result<(), JournalError> {
        let failed = |source| JournalError::Write { path: self.path.clone(), source };
        let bytes: Vec<u8> = entries.iter().flat_map(frame).collect();
        files::aside(&self.path, &bytes, true)
            .and_then(|file| file.replace(&self.path, true))
            .map_err(failed)?;
        self.file = OpenOptions::new().append(true).open(&self.path).map_err(failed)?;
        self.broken = false;
        Ok(())
    }

    /// How many bytes it has.
    pub(crate) fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }
}

impl<E: BorshSerialize + BorshDeserialize> Journal<E> for FileJournal<E> {
    type Error = JournalError;

    fn write(&mut self, entry: &E) -> Result<(), JournalError> {
        let failed = |source| JournalError::Write { path: self.path.clone(), source };
        if self.broken {
            return Err(failed(io::Error::other("an entry before this one could not be written")));
        }
        let written = self.file.write_all(&frame(entry)).and_then(|()| self.file.sync_data());
        self.broken = written.is_err();
        written.map_err(failed)
    }

    fn entries(&self) -> Result<Vec<E>, JournalError> {
        parse(&self.path, &read(&self.path)?).map(|(entries, _)| entries)
    }
}

fn frame<E: BorshSerialize>(entry: &E) -> Vec<u8> {
    let bytes = croft_protocol::encode(entry);
    let mut frame = Vec::with_capacity(HEAD_BYTES + bytes.len());
    // An entry is far below four gigabytes.
    frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    frame.extend_from_slice(&Hash::of_bytes(&bytes).0);
    frame.extend_from_slice(&bytes);
    frame
}

fn read(path: &Path) -> Result<Vec<u8>, JournalError> {
    let failed = |source| JournalError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > FILE_BYTES {
        return Err(JournalError::TooLarge { path: path.to_owned(), bytes });
    }
    let mut all = Vec::with_capacity(bytes as usize);
    file.take(FILE_BYTES).read_to_end(&mut all).map_err(failed)?;
    Ok(all)
}

/// The entries, and how many bytes of the file hold them: what a crash cut off is left out.
fn parse<E: BorshDeserialize>(path: &Path, all: &[u8]) -> Result<(Vec<E>, usize), JournalError> {
    let (mut entries, mut offset) = (Vec::new(), 0);
    let damaged = |offset, reason: String| JournalError::Damaged { path: path.to_owned(), offset, reason };
    loop {
        let rest = &all[offset..];
        // A power cut may leave a longer file without its bytes, which reads as zeros.
        if rest.iter().all(|byte| *byte == 0) {
            break;
        }
        let Some((len, behind)) = rest.split_first_chunk::<4>() else { break };
        let len = u32::from_le_bytes(*len) as usize;
        if len > ENTRY_BYTES {
            return Err(damaged(offset, format!("an entry of {len} bytes")));
        }
        let Some((hash, behind)) = behind.split_first_chunk::<32>() else { break };
        let Some(bytes) = behind.get(..len) else { break };
        let end = offset + HEAD_BYTES + len;
        if Hash::of_bytes(bytes).0 != *hash {
            // A power cut may leave the last entry with its length and without its bytes.
            if end == all.len() {
                break;
            }
            return Err(damaged(offset, "an entry does not have its hash".to_owned()));
        }
        let entry = croft_protocol::decode("a journal's entry", bytes, ENTRY_BYTES)
            .map_err(|error| damaged(offset, error.to_string()))?;
        entries.push(entry);
        offset = end;
    }
    Ok((entries, offset))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn cut(path: &Path, bytes: u64) {
        OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
    }

    fn numbers(journal: &FileJournal<u64>) -> Vec<u64> {
        journal.entries().unwrap()
    }

    #[test]
    fn what_was_written_is_there_after_a_restart_and_what_a_crash_cut_off_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = FileJournal::open(dir.path()).unwrap();
        for number in [1_u64, 2, 3] {
            journal.write(&number).unwrap();
        }
        let whole = journal.bytes();
        drop(journal);
        for cut_off in 1..(HEAD_BYTES as u64 + 8) {
            cut(&dir.path().join("journal"), whole - cut_off);
            let mut journal = FileJournal::open(dir.path()).unwrap();
            assert_eq!(numbers(&journal), [1, 2], "{cut_off} bytes were cut off");
            journal.write(&3).unwrap();
            assert_eq!(numbers(&journal), [1, 2, 3]);
        }
    }

    #[test]
    fn damage_before_the_end_is_told_with_its_place_and_never_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = FileJournal::open(dir.path()).unwrap();
        journal.write(&1_u64).unwrap();
        journal.write(&2_u64).unwrap();
        drop(journal);
        let path = dir.path().join("journal");
        let mut bytes = fs::read(&path).unwrap();
        bytes[HEAD_BYTES] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = FileJournal::<u64>::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("is damaged at byte 0 (an entry does not have its hash): restore it"),
            "{error}"
        );
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        let error = FileJournal::<u64>::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("an entry of 4294967295 bytes"), "{error}");
    }

    #[test]
    fn two_processes_never_write_one_journal() {
        let dir = tempfile::tempdir().unwrap();
        let first = FileJournal::<u64>::open(dir.path()).unwrap();
        let error = FileJournal::<u64>::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is in use: another croft works on the same"), "{error}");
        drop(first);
        assert!(FileJournal::<u64>::open(dir.path()).is_ok());
    }

    #[test]
    fn entries_are_replaced_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = FileJournal::open(dir.path()).unwrap();
        for number in 0..9_u64 {
            journal.write(&number).unwrap();
        }
        journal.replace(&[8]).unwrap();
        journal.write(&9).unwrap();
        assert_eq!(numbers(&journal), [8, 9]);
        drop(journal);
        assert_eq!(numbers(&FileJournal::open(dir.path()).unwrap()), [8, 9]);
    }
}
