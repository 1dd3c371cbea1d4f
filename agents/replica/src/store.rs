//! The ledger on disk: one redb file, one durable transaction per block.
//!
//! ```text
//!   create(genesis) ─┐
//!   open ── check ───┴─> Store ── commit(block) ──> Store, one block higher
//!                          │ latest                    │ a write failed
//!                          v                           v
//!                       Snapshot (one height,       read-only until `recover`
//!                       never changes)
//! ```
//! After a crash at any moment the file holds the old block or the new one, whole. It must never hold half a
//! block, never serve what was not committed durably, and never start a second history where one is lost.

mod audit;
mod bodies;
mod build;
mod copy;
mod disk;
#[cfg(any(test, feature = "sim"))]
#[cfg_attr(not(test), allow(dead_code, reason = "the simulator has disks of its own, on the same steps"))]
pub(crate) mod faults;
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod past;
mod search;
mod signatures;
mod snapshot;
mod tables;
#[cfg(test)]
pub(crate) mod tests;
mod verify;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};

use croft_ledger::log_tree::LogUpdate;
use croft_ledger::state_map::MapUpdate;
use croft_ledger::{BlockOutcome, InvalidGenesis, StateError};
use croft_protocol::units::show_bytes;
use croft_protocol::{ChainId, Genesis, SignedCommand, SignedHeader};
use redb::{Database, ReadableDatabase};

use self::signatures::Signatures;
pub use audit::AuditReport;
pub use build::{BuildError, Builder, UNFINISHED};
pub use copy::{LogPage, ValuesPage};
pub(crate) use disk::free_bytes;
pub use disk::{Disk, FileDisk};
#[cfg(any(test, feature = "sim"))]
pub(crate) use disk::{builder, open_error};
pub use past::{Keep, PastError, Slice};
pub use search::{Found, SearchError};
pub(crate) use snapshot::PAGE_BYTES;
pub use snapshot::Snapshot;
pub use verify::{Verified, VerifyError, verify};

/// Name of the ledger's file in a replica's data folder.
pub const FILE: &str = "ledger.redb";
/// Free space below which no block is begun: several times what the largest block writes. A disk that fills
/// up then costs submitters an answer, not the replica its file.
pub const RESERVED_BYTES: u64 = 64 * 1024 * 1024;

/// Why there is no ledger to work on.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "there is no ledger at {path}: copy it from the other replicas with 'replica join --config replica.toml', or \
         restore it from a copy; a validator that starts anew would sign a second history"
    )]
    Missing { path: PathBuf },
    #[error("there is a ledger at {path} already: choose another folder")]
    Exists { path: PathBuf },
    #[error("{path} is in use by another process: stop the other replica first")]
    InUse { path: PathBuf },
    #[error(
        "{path} belongs to chain {found}, but the genesis says {expected}: check which grid this replica is for"
    )]
    WrongChain { path: PathBuf, found: ChainId, expected: ChainId },
    #[error(
        "{path} has format {found}, this program reads format {expected}: use the release that wrote it, or move \
         the file away and run 'replica join --config replica.toml'"
    )]
    Format { path: PathBuf, found: u32, expected: u32 },
    #[error(
        "{path} is damaged: {reason}; move the file away and run 'replica join --config replica.toml', or restore it \
         from a copy"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("the genesis is no good")]
    Genesis(#[from] InvalidGenesis),
    #[error("can't open {path}: check that the disk is there, has space and may be written")]
    Io { path: PathBuf, source: Box<redb::Error> },
    #[error("can't write the first block to {path}")]
    First { path: PathBuf, source: StoreError },
}

/// Why a block was not stored, or something not read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the ledger's file can't be read or written")]
    Io(#[source] Box<redb::Error>),
    #[error(
        "{path} has only {} of disk left, {} are kept for the ledger: make room",
        show_bytes(*free),
        show_bytes(RESERVED_BYTES)
    )]
    NoSpace { path: PathBuf, free: u64 },
    #[error(
        "the ledger's file is damaged: {what}; stop the replica, move the file away and run 'replica join --config \
         replica.toml', or restore it from a copy"
    )]
    Damaged { what: String },
    #[error("the block does not follow the stored one: {what}")]
    Unfit { what: String },
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the ledger's file is closed since it failed; it is opened again before the next block")]
    Closed,
}

impl StoreError {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Io(Box::new(error.into()))
            }
        })*
    };
}

from_redb!(
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::DatabaseError
);

/// All that one decided block adds.
#[derive(Debug, Clone)]
pub struct Block {
    pub signed: SignedHeader,
    /// In their order, those that were rejected too: who executes them gets the same header.
    pub commands: Vec<SignedCommand>,
    pub outcome: BlockOutcome,
    pub log: LogUpdate,
    pub map: MapUpdate,
}

/// The ledger's file. Blocks go in one at a time; any number of readers look at snapshots.
#[derive(Debug)]
pub struct Store {
    disk: Box<dyn Disk>,
    chain: ChainId,
    /// `None` between a failed write and [`Store::recover`].
    database: RwLock<Option<Database>>,
    latest: RwLock<Arc<Snapshot>>,
    signatures: Arc<Signatures>,
    /// Blocks that wait for the file: pruning lets them go first.
    committing: AtomicUsize,
}

/// Makes the certificate of the genesis header.
pub type SignGenesis<'a> = dyn Fn(croft_protocol::Header) -> SignedHeader + 'a;

impl Store {
    /// Makes a new ledger with its genesis block in a folder that exists.
    ///
    /// # Errors
    /// [`OpenError::Exists`], [`OpenError::Genesis`], [`OpenError::Io`].
    pub fn create(dir: &Path, genesis: &Genesis, sign: &SignGenesis<'_>) -> Result<Self, OpenError> {
        let path = dir.join(FILE);
        if path.exists() {
            return Err(OpenError::Exists { path });
        }
        // Under another name until the first block is in, so that a crash leaves nothing that looks whole.
        let unfinished = dir.join(format!("{FILE}.new"));
        let made = FileDisk::create(&unfinished)
            .and_then(|disk| Self::create_on(Box::new(disk), genesis, sign))
            .and_then(|store| {
                drop(store);
                let renamed = std::fs::rename(&unfinished, &path).and_then(|()| sync_dir(dir));
                renamed.map_err(|error| io_error(&path, error))
            });
        if let Err(error) = made {
            // What is left of the attempt is of no use to anybody.
            let _ = std::fs::remove_file(&unfinished);
            return Err(error);
        }
        Self::open(dir, genesis)
    }

    /// As [`Self::create`] on any empty disk.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_on(
        disk: Box<dyn Disk>,
        genesis: &Genesis,
        sign: &SignGenesis<'_>,
    ) -> Result<Self, OpenError> {
        let first = |source| OpenError::First { path: disk.path().to_owned(), source };
        let block = write::genesis_block(genesis, sign).map_err(|error| match error {
            write::GenesisError::Invalid(error) => OpenError::Genesis(error),
            write::GenesisError::Store(source) => first(source),
        })?;
        let database = disk.open()?;
        write::write_first(&database, genesis, &block).map_err(first)?;
        Self::checked(disk, database, genesis.chain_id())
    }

    /// Opens the ledger in a folder and checks it.
    ///
    /// # Errors
    /// [`OpenError`] names the file, what is wrong and what to do.
    pub fn open(dir: &Path, genesis: &Genesis) -> Result<Self, OpenError> {
        Self::open_on(Box::new(FileDisk::open_existing(&dir.join(FILE))?), genesis)
    }

    /// As [`Self::open`] on any disk.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(disk: Box<dyn Disk>, genesis: &Genesis) -> Result<Self, OpenError> {
        let database = disk.open()?;
        Self::checked(disk, database, genesis.chain_id())
    }

    fn checked(disk: Box<dyn Disk>, database: Database, chain: ChainId) -> Result<Self, OpenError> {
        let snapshot = audit::check_open(disk.path(), &database, &chain)?;
        let signatures = Arc::default();
        let latest = RwLock::new(Arc::new(snapshot.knowing(&signatures)));
        Ok(Self {
            disk,
            chain,
            database: RwLock::new(Some(database)),
            latest,
            signatures,
            committing: AtomicUsize::new(0),
        })
    }

    /// The state at the newest committed block. Cheap.
    #[must_use]
    pub fn latest(&self) -> Arc<Snapshot> {
        self.latest.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    #[must_use]
    pub fn chain(&self) -> ChainId {
        self.chain
    }

    /// Whether there is room for a block. Checked before each one, because a write that fails half-way takes
    /// the whole file out of service.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`].
    pub fn check_space(&self) -> Result<(), StoreError> {
        match self.disk.free_bytes() {
            Ok(free) if free < RESERVED_BYTES => {
                Err(StoreError::NoSpace { path: self.disk.path().to_owned(), free })
            }
            // A disk that can't say is asked by writing.
            _ => Ok(()),
        }
    }

    /// Stores a block durably; when this returns, a power cut can't undo it.
    ///
    /// # Errors
    /// [`StoreError`]: nothing of the block can be seen. After [`StoreError::Io`] the block may still come
    /// to light at [`Self::recover`].
    pub fn commit(&self, block: &Block) -> Result<Arc<Snapshot>, StoreError> {
        self.check_space()?;
        self.committing.fetch_add(1, Relaxed);
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        self.committing.fetch_sub(1, Relaxed);
        let database = slot.as_ref().ok_or(StoreError::Closed)?;
        let stored = write::write_block(database, &self.latest(), block)
            .and_then(|()| Ok(Arc::new(Snapshot::new(&database.begin_read()?)?.knowing(&self.signatures))));
        match stored {
            Ok(snapshot) => {
                *self.latest.write().unwrap_or_else(PoisonError::into_inner) = snapshot.clone();
                Ok(snapshot)
            }
            Err(error) => {
                if matches!(error, StoreError::Io(_)) {
                    *slot = None;
                }
                Err(error)
            }
        }
    }

    /// Removes about `at_most` things of the past that `keep` does not ask for. Lets blocks go first, and leaves
    /// the file alone while the disk is short: what is removed makes room only inside the file, and costs some
    /// first.
    ///
    /// # Errors
    /// [`StoreError`]; after [`StoreError::Io`] the file is closed until [`Self::recover`].
    pub fn prune(&self, keep: Keep, at_most: usize) -> Result<Slice, StoreError> {
        if self.committing.load(Relaxed) > 0 || self.check_space().is_err() {
            return Ok(Slice::Deferred);
        }
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = slot.as_ref() else { return Ok(Slice::Deferred) };
        let pruned = past::prune(database, self.latest().height(), keep, at_most);
        if matches!(pruned, Err(StoreError::Io(_))) {
            *slot = None;
        }
        pruned
    }

    /// Opens the file again after a failed write and checks it. Does nothing where nothing failed.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn recover(&self) -> Result<Arc<Snapshot>, OpenError> {
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            let database = self.disk.open()?;
            let snapshot = audit::check_open(self.disk.path(), &database, &self.chain)?;
            *self.latest.write().unwrap_or_else(PoisonError::into_inner) =
                Arc::new(snapshot.knowing(&self.signatures));
            *slot = Some(database);
        }
        Ok(self.latest())
    }

    /// Reads every record, header, certificate and state value and checks each against the roots. Takes
    /// long.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names the first thing that is wrong.
    pub fn audit(&self) -> Result<AuditReport, StoreError> {
        audit::audit(&self.latest(), &self.chain)
    }
}

/// Makes a rename in a folder last.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}

fn io_error(path: &Path, error: std::io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), source: Box::new(redb::Error::Io(error)) }
}
