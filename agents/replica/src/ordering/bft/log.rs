//! The consensus log: what this validator has seen and said of the height that is being decided.
//!
//! ```text
//!   create ─┐
//!   open ───┴─> entries(height) ──append, flush──> durable, then it may be said
//!                    └ of a lower height: forgotten with the first flush of a higher one
//! ```
//! A validator that forgets what it signed may sign the opposite. So nothing may leave it before [`Log::flush`]
//! returned, a log that is missing or damaged must never be replaced in silence, and [`Log::sign_above`] keeps a
//! log that was made anew from signing what its lost predecessor may have signed.

use std::path::Path;

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::{ChainId, Hash};
use malachite_types::{Round, Timeout, TimeoutKind, Validity};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::context::{Grid, Member, PolkaCertificate, Proposal, Value, Vote};
use super::message::{Body, Signed};
use crate::store::{Disk, OpenError};

/// Name of the log in a replica's data folder.
pub const FILE: &str = "consensus.redb";

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const CHAIN: TableDefinition<'_, (), &[u8; 32]> = TableDefinition::new("chain");
const HEIGHT: &str = "height";
const SIGN_ABOVE: &str = "sign_above";

/// Why the log can't be used. The replica then keeps the ledger, but signs nothing.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{path} is damaged: {reason}")]
    Damaged { path: String, reason: String },
    #[error("{path} is the log of chain {found}, but this replica is on {expected}")]
    WrongChain { path: String, found: ChainId, expected: ChainId },
    #[error("{path} can't be read or written")]
    Io { path: String, source: Box<redb::Error> },
}

/// What took too long. A byte that is none of these is damage, not the last of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum TimeoutOf {
    Propose,
    Prevote,
    Precommit,
}

/// Something that must survive a crash, in the order in which it happened.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Entry {
    Vote(Signed<Vote>),
    Proposal(Signed<Proposal>),
    Polka(PolkaCertificate),
    Timeout {
        kind: TimeoutOf,
        round: Round,
    },
    Value {
        height: u64,
        round: Round,
        valid_round: Round,
        proposer: Member,
        value: Value,
        valid: bool,
    },
    /// A body that was executed; with the round for which this validator made it itself.
    Body {
        made_in: Option<u32>,
        body: Body,
    },
}

impl Entry {
    /// An input of the engine as an entry; `None` of those that need not survive.
    #[must_use]
    pub fn of(input: malachite::Input<Grid>) -> Option<Self> {
        use malachite::Input;
        match input {
            Input::Vote(vote) => Some(Self::Vote(vote.into())),
            Input::Proposal(proposal) => Some(Self::Proposal(proposal.into())),
            Input::PolkaCertificate(certificate) => Some(Self::Polka(certificate)),
            Input::TimeoutElapsed(timeout) => {
                let kind = match timeout.kind {
                    TimeoutKind::Propose => TimeoutOf::Propose,
                    TimeoutKind::Prevote => TimeoutOf::Prevote,
                    TimeoutKind::Precommit => TimeoutOf::Precommit,
                    TimeoutKind::Rebroadcast | TimeoutKind::FinalizeHeight(_) => return None,
                };
                Some(Self::Timeout { kind, round: timeout.round })
            }
            Input::ProposedValue(value, _) => Some(Self::Value {
                height: value.height.0,
                round: value.round,
                valid_round: value.valid_round,
                proposer: value.proposer,
                value: value.value,
                valid: value.validity.is_valid(),
            }),
            _ => None,
        }
    }

    /// The input of the engine that it was; `None` of a body, which the engine does not see.
    #[must_use]
    pub fn input(self) -> Option<malachite::Input<Grid>> {
        use malachite::{Input, ProposedValue};
        Some(match self {
            Self::Vote(vote) => Input::Vote(vote.into()),
            Self::Proposal(proposal) => Input::Proposal(proposal.into()),
            Self::Polka(certificate) => Input::PolkaCertificate(certificate),
            Self::Timeout { kind, round } => {
                let kind = match kind {
                    TimeoutOf::Propose => TimeoutKind::Propose,
                    TimeoutOf::Prevote => TimeoutKind::Prevote,
                    TimeoutOf::Precommit => TimeoutKind::Precommit,
                };
                Input::TimeoutElapsed(Timeout { kind, round })
            }
            Self::Value { height, round, valid_round, proposer, value, valid } => Input::ProposedValue(
                ProposedValue {
                    height: super::context::Height(height),
                    round,
                    valid_round,
                    proposer,
                    value,
                    validity: Validity::from_bool(valid),
                },
                malachite_types::ValueOrigin::Consensus,
            ),
            Self::Body { .. } => return None,
        })
    }
}

/// Chain, height and limit of signing, as far as they are there.
type Meta = (Option<[u8; 32]>, Option<u64>, Option<u64>);

/// The log of one validator.
#[derive(Debug)]
pub struct Log {
    path: String,
    database: Database,
    /// The height that the stored entries are of.
    height: u64,
    sign_above: u64,
    next: u64,
    pending: Vec<Vec<u8>>,
}

impl Log {
    /// A new, empty log. `sign_above` is the highest height that its owner may have signed before.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn create(disk: &dyn Disk, chain: ChainId, sign_above: u64) -> Result<Self, LogError> {
        let path = disk.path().display().to_string();
        let database = disk.open()?;
        let write = || -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            transaction.open_table(CHAIN)?.insert((), &chain.0.0)?;
            transaction.open_table(META)?.insert(SIGN_ABOVE, sign_above)?;
            transaction.open_table(META)?.insert(HEIGHT, 0)?;
            transaction.open_table(ENTRIES)?;
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|source| LogError::Io { path: path.clone(), source: Box::new(source) })?;
        Ok(Self { path, database, height: 0, sign_above, next: 0, pending: Vec::new() })
    }

    /// Opens a log and reads it whole, so that damage shows before anything is signed.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(disk: &dyn Disk, chain: ChainId) -> Result<Self, LogError> {
        let path = disk.path().display().to_string();
        let database = disk.open()?;
        let mut log = Self { path, database, height: 0, sign_above: 0, next: 0, pending: Vec::new() };
        let (found, height, sign_above) = log.read_meta().map_err(|source| log.io(source))?;
        let missing = |what: &str| log.damaged(format!("it lacks its {what}"));
        let found = ChainId(Hash(found.ok_or_else(|| missing("chain"))?));
        if found != chain {
            return Err(LogError::WrongChain { path: log.path, found, expected: chain });
        }
        let height = height.ok_or_else(|| missing("height"))?;
        let sign_above = sign_above.ok_or_else(|| missing("limit of signing"))?;
        (log.height, log.sign_above) = (height, sign_above);
        log.next = log.entries(height)?.len() as u64;
        Ok(log)
    }

    fn read_meta(&self) -> Result<Meta, redb::Error> {
        let transaction = self.database.begin_read()?;
        let meta = match transaction.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok((None, None, None)),
            Err(error) => return Err(error.into()),
        };
        let chain = transaction.open_table(CHAIN)?.get(())?.map(|guard| *guard.value());
        let value = |key| Ok::<_, redb::Error>(meta.get(key)?.map(|guard| guard.value()));
        Ok((chain, value(HEIGHT)?, value(SIGN_ABOVE)?))
    }

    fn io(&self, source: redb::Error) -> LogError {
        match source {
            redb::Error::Corrupted(reason) => self.damaged(reason),
            source => LogError::Io { path: self.path.clone(), source: Box::new(source) },
        }
    }

    fn damaged(&self, reason: impl Into<String>) -> LogError {
        LogError::Damaged { path: self.path.clone(), reason: reason.into() }
    }

    /// Nothing up to this height may be signed.
    #[must_use]
    pub fn sign_above(&self) -> u64 {
        self.sign_above
    }

    /// What is known of a height, in order; nothing of a height that the log is not of.
    ///
    /// # Errors
    /// [`LogError::Damaged`] names the entry.
    pub fn entries(&self, height: u64) -> Result<Vec<Entry>, LogError> {
        if height != self.height {
            return Ok(Vec::new());
        }
        let read = || -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
            let table = self.database.begin_read()?.open_table(ENTRIES)?;
            table
                .iter()?
                .map(|row| Ok(row.map(|(key, value)| (key.value(), value.value().to_vec()))?))
                .collect()
        };
        let rows = read().map_err(|source| self.io(source))?;
        let mut entries = Vec::with_capacity(rows.len());
        for (expected, (key, bytes)) in (0..).zip(rows) {
            if key != expected {
                return Err(self.damaged(format!("entry {expected} of height {height} is missing")));
            }
            let entry = croft_protocol::decode("entry", &bytes, super::message::MESSAGE_BYTES);
            entries.push(entry.map_err(|e| self.damaged(format!("entry {key} of height {height}: {e}")))?);
        }
        Ok(entries)
    }

    /// Adds an entry of the height that is being decided; it is durable after [`Self::flush`].
    pub fn append(&mut self, entry: &Entry) {
        self.pending.push(croft_protocol::encode(entry));
    }

    /// Makes everything durable that was appended; forgets other heights.
    ///
    /// # Errors
    /// [`LogError::Io`]: nothing that stands on these entries may be said.
    pub fn flush(&mut self, height: u64) -> Result<(), LogError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = self.write(height);
        let next = written.map_err(|source| self.io(source))?;
        (self.height, self.next) = (height, next);
        self.pending.clear();
        Ok(())
    }

    fn write(&self, height: u64) -> Result<u64, redb::Error> {
        let transaction = self.database.begin_write()?;
        let mut next = self.next;
        if height != self.height {
            transaction.delete_table(ENTRIES)?;
            transaction.open_table(META)?.insert(HEIGHT, height)?;
            next = 0;
        }
        {
            let mut table = transaction.open_table(ENTRIES)?;
            for bytes in &self.pending {
                table.insert(next, bytes.as_slice())?;
                next += 1;
            }
        }
        transaction.commit()?;
        Ok(next)
    }

    /// Drops what was appended and not flushed, when its height is over.
    pub fn forget_pending(&mut self) {
        self.pending.clear();
    }
}

/// Path of the log beside a ledger's folder.
#[must_use]
pub fn path(dir: &Path) -> std::path::PathBuf {
    dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use croft_protocol::SecretKey;
    use malachite_types::{NilOrVal, VoteType};

    use super::*;
    use crate::ordering::bft::context::{self, Height};
    use crate::store::faults::{MemoryDisk, Op, apply};

    const CHAIN_ID: ChainId = ChainId(Hash([1; 32]));

    fn vote(height: u64, round: u32) -> Entry {
        let key = SecretKey::from_seed(&[1; 32]);
        let message = Vote {
            kind: VoteType::Prevote,
            height: Height(height),
            round: Round::new(round),
            value: NilOrVal::Nil,
            voter: Member(key.public()),
        };
        let signature = context::sign_vote(&key, &CHAIN_ID, &message);
        Entry::Vote(Signed { message, signature })
    }

    #[test]
    fn what_was_flushed_is_there_after_a_restart_and_a_new_height_starts_empty() {
        let disk = MemoryDisk::new();
        let mut log = Log::create(&disk, CHAIN_ID, 7).unwrap();
        log.append(&vote(8, 0));
        log.flush(8).unwrap();
        log.append(&vote(8, 1));
        log.flush(8).unwrap();
        drop(log);
        let mut log = Log::open(&disk, CHAIN_ID).unwrap();
        assert_eq!((log.sign_above(), log.entries(8).unwrap()), (7, vec![vote(8, 0), vote(8, 1)]));
        log.append(&vote(9, 0));
        log.flush(9).unwrap();
        let log = {
            drop(log);
            Log::open(&disk, CHAIN_ID).unwrap()
        };
        assert_eq!((log.entries(8).unwrap(), log.entries(9).unwrap()), (vec![], vec![vote(9, 0)]));
    }

    #[test]
    fn a_power_cut_at_any_write_keeps_what_was_flushed_before() {
        let disk = MemoryDisk::new();
        let mut log = Log::create(&disk, CHAIN_ID, 0).unwrap();
        log.append(&vote(1, 0));
        log.flush(1).unwrap();
        let mut image = disk.data();
        disk.take_journal();
        log.append(&vote(1, 1));
        log.flush(1).unwrap();
        let journal = disk.take_journal();
        assert!(journal.iter().any(|op| matches!(op, Op::Sync)));
        for op in &journal {
            let log = Log::open(&MemoryDisk::with(image.clone()), CHAIN_ID).unwrap();
            let entries = log.entries(1).unwrap();
            assert_eq!(entries[0], vote(1, 0));
            assert!(entries.len() <= 2);
            apply(&mut image, op);
        }
        let log = Log::open(&MemoryDisk::with(image), CHAIN_ID).unwrap();
        assert_eq!(log.entries(1).unwrap().len(), 2);
    }

    #[test]
    fn a_full_disk_is_told_and_an_empty_file_is_no_log() {
        let disk = MemoryDisk::new();
        let mut log = Log::create(&disk, CHAIN_ID, 0).unwrap();
        disk.fail_after(Some(0));
        log.append(&vote(1, 0));
        assert!(matches!(log.flush(1), Err(LogError::Io { .. })));
        let error = Log::open(&MemoryDisk::new(), CHAIN_ID).unwrap_err().to_string();
        assert_eq!(error, "/test/ledger.redb is damaged: it lacks its chain");
    }

    #[test]
    fn a_timeout_of_no_known_kind_is_damage() {
        let entry = Entry::Timeout { kind: TimeoutOf::Precommit, round: Round::Some(1) };
        let mut bytes = croft_protocol::encode(&entry);
        assert_eq!(bytes[1], 2, "as earlier releases wrote it");
        bytes[1] = 3;
        let mut log = Log::create(&MemoryDisk::new(), CHAIN_ID, 0).unwrap();
        log.pending.push(bytes);
        log.flush(5).unwrap();
        let error = log.entries(5).unwrap_err().to_string();
        assert!(error.starts_with("/test/ledger.redb is damaged: entry 0 of height 5"), "{error}");
    }

    #[test]
    fn the_log_of_another_grid_is_refused() {
        let disk = MemoryDisk::new();
        drop(Log::create(&disk, CHAIN_ID, 0).unwrap());
        let other = ChainId(Hash([2; 32]));
        let error = Log::open(&disk, other).unwrap_err().to_string();
        assert!(error.contains(&format!("but this replica is on {other}")), "{error}");
    }
}
