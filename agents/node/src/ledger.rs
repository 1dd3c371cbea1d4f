//! The ledger as this node sees it: every answer is proved before anybody here acts on it.
//!
//! ```text
//!   croft_transport::verified ── proved values, tips of several replicas compared ──> node
//!        │                                                                              │
//!        └── newest header, proof of a broken word ──> data disk                        └── signs, submits
//! ```
//! It must never hand out a value without a proof. What the disk keeps of an earlier boot is checked again from the
//! pinned validators on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use croft_light::{LightError, Tip};
use croft_protocol::api::{Concern, ProvedValue};
use croft_protocol::boot::GridPin;
use croft_protocol::{ChainId, Command, Header, SecretKey, StateKey};
use croft_transport::ClientError;
use croft_transport::verified::{Following, Keep, Trusted, Verified};

/// Why the ledger says nothing that this node may act on.
pub use croft_transport::verified::VerifiedError as LedgerError;

use crate::time::Time;

/// Blocks within which a command of ours is carried or void.
const EXPIRES_BLOCKS: u64 = 200;
/// Files in the folder of the contracts; their names are no documents.
const TIP_FILE: &str = ".tip";
const CONTRADICTION_FILE: &str = ".contradiction";

/// A proved view of the ledger, and a voice on it.
pub struct Ledger {
    verified: Verified,
    key: SecretKey,
}

impl Ledger {
    /// A view that trusts what is pinned, and goes on from what an earlier boot left in `folder`.
    ///
    /// # Errors
    /// [`ClientError`] when no socket can be opened.
    pub fn open(
        grid: &GridPin,
        key: SecretKey,
        time: Arc<Time>,
        folder: PathBuf,
    ) -> Result<Self, ClientError> {
        let trusted =
            Trusted { chain: grid.chain, validators: grid.validators, replicas: grid.replicas.clone() };
        let verified = Verified::open(&key, trusted, Disk { time, folder })?;
        Ok(Self { verified, key })
    }

    #[must_use]
    pub fn chain(&self) -> &ChainId {
        self.verified.chain()
    }

    /// For blobs, relayed calls, and what is known of the replicas.
    #[must_use]
    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    /// The newest final header, verified. Returns its height and time.
    ///
    /// # Errors
    /// [`LedgerError`] when no replica has one that this node accepts.
    pub async fn tip(&self) -> Result<(u64, u64), LedgerError> {
        self.verified.tip().await.map(|tip| (tip.height(), tip.time_ms()))
    }

    /// Final headers from now on; says when to pull again.
    ///
    /// # Errors
    /// [`LedgerError`] when no replica lets this node follow.
    pub async fn follow(&self, concerning: Vec<Concern>) -> Result<Following, LedgerError> {
        self.verified.follow(concerning).await
    }

    /// Values of the state map, each proved present or absent. Returns the height that they are of.
    ///
    /// # Errors
    /// [`LedgerError`] when no replica gives proofs.
    pub async fn read(&self, keys: Vec<StateKey>) -> Result<(u64, Vec<Option<Vec<u8>>>), LedgerError> {
        self.verified.get(&keys).await.map(|(tip, values)| (tip.height(), values))
    }

    /// Asks for values with their proofs until `check` accepts a replica's answer; a replica whose answer proves
    /// nothing is set aside.
    ///
    /// # Errors
    /// [`LedgerError`] when no replica gives proofs.
    pub async fn prove<T>(
        &self,
        keys: Vec<StateKey>,
        check: impl Fn(&Tip, &[ProvedValue]) -> Result<T, LightError>,
    ) -> Result<T, LedgerError> {
        let keys = &keys;
        let check = |tip: &Tip, proved: &Vec<ProvedValue>| check(tip, proved);
        self.verified.prove(|client| async move { client.get(keys.clone()).await }, check).await
    }

    /// Signs a command with the node's key and waits until it is proved to be final. Returns its height.
    ///
    /// # Errors
    /// [`LedgerError::Client`] with the ledger's rejection, or without an answer.
    pub async fn submit(&self, command: Command) -> Result<u64, LedgerError> {
        let done = self.verified.submit(&self.key, &command, EXPIRES_BLOCKS).await?;
        Ok(done.height.unwrap_or(done.proved_at))
    }
}

/// What outlives a boot. A disk that is full costs only that the next boot starts where this one did.
#[derive(Debug)]
struct Disk {
    time: Arc<Time>,
    folder: PathBuf,
}

impl Disk {
    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.folder.join(name);
        let temporary = path.with_extension("new");
        let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, &path));
        if let Err(error) = written {
            tracing::debug!(%error, path = %path.display(), "can't keep what was seen of the ledger");
        }
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.folder.join(name)).ok()
    }

    fn contradiction(&self) -> PathBuf {
        self.folder.join(CONTRADICTION_FILE)
    }
}

impl Keep for Disk {
    fn now_ms(&self) -> Option<u64> {
        self.time.trusted_ms()
    }

    fn saw_header(&self, header: &Header) {
        self.time.saw_header(header.time_ms);
    }

    fn trail(&self) -> Option<Vec<u8>> {
        self.read(TIP_FILE)
    }

    fn keep_trail(&self, _: u64, bytes: &[u8]) {
        // Only one process has this disk, and it goes on from what is there: heights only grow.
        self.write(TIP_FILE, bytes);
    }

    fn evidence(&self) -> Option<Vec<u8>> {
        self.read(CONTRADICTION_FILE)
    }

    fn keep_evidence(&self, bytes: &[u8]) {
        if !Path::exists(&self.contradiction()) {
            self.write(CONTRADICTION_FILE, bytes);
        }
    }

    fn evidence_place(&self) -> String {
        self.contradiction().display().to_string()
    }
}

/// An error and all its causes on one line.
pub fn chain_of(error: &dyn std::error::Error) -> String {
    croft_init::log::chain(error)
}

/// Waits longer after each failure, up to a minute.
#[derive(Debug, Default)]
pub struct BackOff {
    failures: u32,
}

impl BackOff {
    /// The pause before the next try.
    #[must_use]
    pub fn next(&mut self) -> Duration {
        let pause = Duration::from_millis(500) * 2_u32.pow(self.failures.min(7));
        self.failures += 1;
        pause.min(Duration::from_secs(60))
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_proof_of_a_broken_word_is_kept_and_no_other_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk { time: Arc::default(), folder: dir.path().to_owned() };
        assert_eq!((disk.trail(), disk.evidence()), (None, None));
        disk.keep_evidence(b"first");
        disk.keep_evidence(b"second");
        assert_eq!(disk.evidence().unwrap(), b"first");
        assert_eq!(disk.evidence_place(), dir.path().join(".contradiction").display().to_string());
    }

    #[test]
    fn headers_bound_the_clock_and_an_unset_clock_judges_no_header() {
        let disk = Disk { time: Arc::default(), folder: PathBuf::new() };
        assert_eq!(disk.now_ms(), None);
        let seen = Header {
            chain: ChainId(croft_protocol::Hash::ZERO),
            height: 1,
            time_ms: 77,
            prev: croft_protocol::Hash::ZERO,
            log_root: croft_protocol::Hash::ZERO,
            log_size: 0,
            state_root: croft_protocol::Hash::ZERO,
            validators: croft_protocol::Hash::ZERO,
            next_validators: croft_protocol::Hash::ZERO,
        };
        disk.saw_header(&seen);
        assert_eq!(disk.time.header_ms(), 77);
    }
}
