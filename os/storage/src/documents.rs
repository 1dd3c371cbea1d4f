//! Small files that survive a power cut: verified contracts, the height that the node has seen.
//!
//! A write leaves the old document or the new one, never a mixture and never nothing. Each document carries its own
//! digest, so that a disk that rots is noticed: a damaged document is an error, never wrong bytes.
//!
//! ```text
//! write: .new-<name> written -> synced -> renamed to <name> -> folder synced
//! ```

use crate::capacity::{available, is_full};
use crate::digest::Digest;
use crate::files::{Files, OsFiles};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;

/// Longest document. Contracts are a few kilobytes; more than this is a mistake of the caller.
pub const DOCUMENT_MAX_BYTES: usize = 4 << 20;
/// Longest name of a document.
pub const NAME_MAX_BYTES: usize = 128;

const MAGIC: &[u8; 8] = b"croftdoc";
const HEADER_BYTES: usize = 8 + 32;
const NEW: &str = ".new-";

#[derive(Debug, thiserror::Error)]
pub enum OpenDocumentsError {
    #[error("the documents in {folder} can't be opened")]
    Io {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum PutDocumentError {
    #[error("{0:?} is no name for a document: 1 to {NAME_MAX_BYTES} of a-z, 0-9, -, _ and ., not first a .")]
    Name(String),
    #[error("document {name} has {bytes} bytes, {DOCUMENT_MAX_BYTES} are the limit")]
    TooLarge { name: String, bytes: usize },
    #[error(
        "document {name} does not fit, {free_bytes} bytes are free on {folder}: end contracts of this node or give it a \
         larger disk"
    )]
    Full { name: String, folder: PathBuf, free_bytes: u64 },
    #[error("document {name} can't be written to {folder}")]
    Io {
        name: String,
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum GetDocumentError {
    #[error("{0:?} is no name for a document")]
    Name(String),
    #[error("document {path} is damaged, the disk may be dying: remove it and fetch it again")]
    Damaged { path: PathBuf },
    #[error("document {path} can't be read")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A folder of documents.
#[derive(Debug)]
pub struct Documents {
    files: Arc<dyn Files>,
    folder: PathBuf,
    /// Two writers of one document would share the temporary name.
    writing: Mutex<()>,
}

impl Documents {
    /// Opens a folder, makes it if needed, and clears what a power cut left half done.
    pub fn open(folder: &Path) -> Result<Self, OpenDocumentsError> {
        Self::open_on(Arc::new(OsFiles), folder)
    }

    /// On other files than the system's, for tests that cut the power.
    pub fn open_on(files: Arc<dyn Files>, folder: &Path) -> Result<Self, OpenDocumentsError> {
        let io = |source| OpenDocumentsError::Io { folder: folder.into(), source };
        files.make_folder(folder).map_err(io)?;
        for entry in files.list(folder).map_err(io)?.iter().filter(|entry| entry.name.starts_with(NEW)) {
            files.remove(&folder.join(&entry.name)).map_err(io)?;
        }
        Ok(Self { files, folder: folder.into(), writing: Mutex::new(()) })
    }

    /// Writes or replaces a document. When it returns, the document survives a power cut.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), PutDocumentError> {
        if !is_name(name) {
            return Err(PutDocumentError::Name(name.chars().take(NAME_MAX_BYTES).collect()));
        }
        if bytes.len() > DOCUMENT_MAX_BYTES {
            return Err(PutDocumentError::TooLarge { name: name.into(), bytes: bytes.len() });
        }
        let _alone = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let new = self.folder.join(format!("{NEW}{name}"));
        self.write(&new, name, bytes).map_err(|source| {
            // Best effort: `open` clears it as well.
            let _ = self.files.remove(&new);
            let (name, folder) = (name.to_owned(), self.folder.clone());
            if is_full(&source) {
                PutDocumentError::Full { free_bytes: available(&folder), name, folder }
            } else {
                PutDocumentError::Io { name, folder, source }
            }
        })
    }

    fn write(&self, new: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut sink = self.files.create(new)?;
        sink.write_all(MAGIC)?;
        sink.write_all(&Digest::of(bytes).0)?;
        sink.write_all(bytes)?;
        sink.sync()?;
        drop(sink);
        self.files.rename(new, &self.folder.join(name))?;
        self.files.sync_folder(&self.folder)
    }

    /// The document, or `None` when there is none of that name.
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>, GetDocumentError> {
        if !is_name(name) {
            return Err(GetDocumentError::Name(name.chars().take(NAME_MAX_BYTES).collect()));
        }
        let path = self.folder.join(name);
        let mut bytes = Vec::new();
        let limit = (HEADER_BYTES + DOCUMENT_MAX_BYTES) as u64 + 1;
        let read = self.files.open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(GetDocumentError::Io { path, source }),
        }
        let intact = bytes.len() >= HEADER_BYTES
            && bytes[..8] == *MAGIC
            && bytes[8..HEADER_BYTES] == Digest::of(&bytes[HEADER_BYTES..]).0;
        if !intact {
            return Err(GetDocumentError::Damaged { path });
        }
        bytes.drain(..HEADER_BYTES);
        Ok(Some(bytes))
    }

    /// Names of all documents, sorted.
    pub fn list(&self) -> Result<Vec<String>, GetDocumentError> {
        let entries = self
            .files
            .list(&self.folder)
            .map_err(|source| GetDocumentError::Io { path: self.folder.clone(), source })?;
        let mut names: Vec<String> = entries
            .into_iter()
            .filter(|entry| !entry.folder && is_name(&entry.name))
            .map(|entry| entry.name)
            .collect();
        names.sort();
        Ok(names)
    }

    /// Removes a document for good. Whether there was one.
    pub fn remove(&self, name: &str) -> Result<bool, GetDocumentError> {
        if !is_name(name) {
            return Err(GetDocumentError::Name(name.chars().take(NAME_MAX_BYTES).collect()));
        }
        let path = self.folder.join(name);
        match self.files.remove(&path).and_then(|()| self.files.sync_folder(&self.folder)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(GetDocumentError::Io { path, source }),
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_MAX_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power_cut::Disk;

    const FOLDER: &str = "/data/contracts";

    fn on(disk: &Disk) -> Documents {
        Documents::open_on(Arc::new(disk.clone()), Path::new(FOLDER)).unwrap()
    }

    #[test]
    fn documents_are_written_read_listed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let documents = Documents::open(folder.path()).unwrap();
        assert_eq!(documents.get("a").unwrap(), None);
        documents.put("b.contract", b"two").unwrap();
        documents.put("a", b"").unwrap();
        documents.put("b.contract", b"three").unwrap();
        assert_eq!(documents.get("b.contract").unwrap().unwrap(), b"three");
        assert_eq!(documents.get("a").unwrap().unwrap(), b"");
        assert_eq!(documents.list().unwrap(), ["a", "b.contract"]);
        assert!(documents.remove("a").unwrap());
        assert!(!documents.remove("a").unwrap());
        assert_eq!(Documents::open(folder.path()).unwrap().list().unwrap(), ["b.contract"]);
    }

    #[test]
    fn a_power_cut_at_any_step_leaves_the_old_or_the_new_document() {
        let (old, new) = (vec![1; 5_000], vec![2; 3_000]);
        for before in [None, Some(&old)] {
            for step in 0.. {
                let disk = Disk::default();
                if let Some(old) = before {
                    on(&disk).put("contract", old).unwrap();
                }
                disk.cut_after(step);
                let done = on(&disk).put("contract", &new).is_ok();
                for seed in 0..64 {
                    let boot = disk.after_the_cut(seed);
                    let documents = on(&boot);
                    let found =
                        documents.get("contract").unwrap_or_else(|e| panic!("step {step}, seed {seed}: {e}"));
                    let fits = found.as_ref() == Some(&new) || (!done && found.as_ref() == before);
                    assert!(
                        fits,
                        "step {step}, seed {seed}, done {done}: {:?} bytes",
                        found.map(|f| f.len())
                    );
                    assert!(
                        boot.paths().iter().all(|path| !path.to_string_lossy().contains(NEW)),
                        "a rest is left"
                    );
                }
                if done {
                    assert!(step >= 6, "a write takes more than {step} steps");
                    break;
                }
            }
        }
    }

    #[test]
    fn a_removed_document_stays_removed() {
        for step in 0.. {
            let disk = Disk::default();
            on(&disk).put("contract", b"old").unwrap();
            disk.cut_after(step);
            let done = on(&disk).remove("contract").is_ok();
            for seed in 0..16 {
                let found = on(&disk.after_the_cut(seed)).get("contract").unwrap();
                assert!(
                    found.is_none() || (!done && found.as_deref() == Some(b"old")),
                    "step {step}, seed {seed}"
                );
            }
            if done {
                break;
            }
        }
    }

    #[test]
    fn a_damaged_document_is_named_and_never_returned() {
        let disk = Disk::default();
        let documents = on(&disk);
        documents.put("contract", b"signed by both").unwrap();
        disk.damage(Path::new("/data/contracts/contract"));
        assert_eq!(
            documents.get("contract").unwrap_err().to_string(),
            "document /data/contracts/contract is damaged, the disk may be dying: remove it and fetch it again"
        );
        documents.put("contract", b"fetched again").unwrap();
        assert_eq!(documents.get("contract").unwrap().unwrap(), b"fetched again");
    }

    #[test]
    fn a_full_disk_keeps_the_old_document_and_says_what_to_do() {
        let disk = Disk::default();
        let documents = on(&disk);
        documents.put("contract", b"old").unwrap();
        disk.limit_room(1_000);
        let error = documents.put("contract", &[7; 5_000]).unwrap_err();
        assert!(matches!(error, PutDocumentError::Full { .. }), "{error}");
        assert!(
            error.to_string().ends_with("end contracts of this node or give it a larger disk"),
            "{error}"
        );
        assert_eq!(documents.get("contract").unwrap().unwrap(), b"old");
        assert_eq!(disk.paths().len(), 1, "a rest takes room");
    }

    #[test]
    fn names_cannot_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let documents = Documents::open(folder.path()).unwrap();
        let long = "x".repeat(NAME_MAX_BYTES + 1);
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", ".new-x", "A", "a\0", "ä", long.as_str()] {
            assert!(matches!(documents.put(name, b"x"), Err(PutDocumentError::Name(_))), "{name:?}");
            assert!(matches!(documents.get(name), Err(GetDocumentError::Name(_))), "{name:?}");
            assert!(matches!(documents.remove(name), Err(GetDocumentError::Name(_))), "{name:?}");
        }
        let large = vec![0; DOCUMENT_MAX_BYTES + 1];
        assert!(matches!(documents.put("x", &large), Err(PutDocumentError::TooLarge { .. })));
    }
}
