//! Where the ledger's bytes are: the seam at which tests inject crashes and failures.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use redb::{Builder, Database, DatabaseError, StorageError};

use super::{OpenError, io_error};

/// Pages kept in memory. The default of 1 GiB would be most of a small machine.
const CACHE_BYTES: usize = 48 * 1024 * 1024;
/// Files up to this size are checked page by page at every start, which takes seconds; larger ones only
/// around the tip, and whole with `replica --check`.
const CHECK_WHOLE_FILE_BYTES: u64 = 1024 * 1024 * 1024;

/// Something on which one database lies.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Its name in messages.
    fn path(&self) -> &Path;

    /// Opens the database, or an empty one where there is nothing yet.
    ///
    /// # Errors
    /// [`OpenError`].
    fn open(&self) -> Result<Database, OpenError>;

    /// How much more could be written.
    ///
    /// # Errors
    /// When nobody knows.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// A file.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
}

impl FileDisk {
    /// A new, empty file, over whatever an unfinished attempt left there.
    ///
    /// # Errors
    /// [`OpenError::Io`].
    pub fn create(path: &Path) -> Result<Self, OpenError> {
        std::fs::File::create(path).map_err(|error| io_error(path, error))?;
        Ok(Self { path: path.to_owned() })
    }

    /// A file with whatever is in it, or a new one.
    ///
    /// # Errors
    /// [`OpenError::Io`].
    pub fn open_or_create(path: &Path) -> Result<Self, OpenError> {
        let made = OpenOptions::new().append(true).create(true).open(path);
        made.map_err(|error| io_error(path, error))?;
        Ok(Self { path: path.to_owned() })
    }

    /// A file that is there and not empty.
    ///
    /// # Errors
    /// [`OpenError::Missing`], [`OpenError::Damaged`], [`OpenError::Io`].
    pub fn open_existing(path: &Path) -> Result<Self, OpenError> {
        let path = path.to_owned();
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() == 0 => {
                Err(OpenError::Damaged { path, reason: "it is empty".to_owned() })
            }
            Ok(_) => Ok(Self { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::Missing { path }),
            Err(error) => Err(io_error(&path, error)),
        }
    }
}

impl Disk for FileDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> Result<Database, OpenError> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path);
        let file = file.map_err(|error| io_error(&self.path, error))?;
        let len = file.metadata().map_err(|error| io_error(&self.path, error))?.len();
        let opened = redb::backends::FileBackend::new(file)
            .and_then(|backend| builder(len <= CHECK_WHOLE_FILE_BYTES).create_with_backend(backend));
        opened.map_err(|error| open_error(&self.path, error))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        free_bytes(&self.path)
    }
}

/// What an ordinary user could still write to the file system of a path.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

pub(crate) fn builder(check_whole_file: bool) -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(check_whole_file);
    builder
}

pub(crate) fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path },
        DatabaseError::Storage(StorageError::Corrupted(reason)) => OpenError::Damaged { path, reason },
        DatabaseError::Storage(StorageError::Io(error))
            if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            OpenError::Damaged { path, reason: error.to_string() }
        }
        error => OpenError::Io { path, source: Box::new(error.into()) },
    }
}
