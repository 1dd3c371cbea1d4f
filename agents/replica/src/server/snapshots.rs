//! Copies of the ledger for other replicas.
//!
//! ```text
//!   SnapshotOpen ──allowed, room──> session of one key, one height ──values, page by page──> idle or too old: gone
//! ```
//! A session holds one view of the file, which keeps everything of its height: so there are few, and none lives
//! long. Records need none: what is in the log stays there. It must never serve those whom neither the validators
//! nor the owner of this replica chose: a copy costs as much as thousands of reads.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use croft_protocol::api::{Failure, Response};
use croft_protocol::{Body, PublicKey, RecordId, StateKey};
use tokio::time::{Instant, sleep_until};

use super::Server;
use super::answer::failed;
use crate::store::{LogPage, Snapshot, StoreError};

/// Sessions at a time: one for each of the other replicas of a usual grid, and one for an observer.
const SESSIONS: usize = 4;
/// A session that is not used ends after this.
const IDLE: Duration = Duration::from_secs(60);
/// And one that is, after this: meanwhile the file keeps what has been replaced since.
const AGE: Duration = Duration::from_secs(20 * 60);

/// Who copies what.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    observers: BTreeSet<PublicKey>,
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    opened: u64,
    open: Vec<Session>,
}

#[derive(Debug)]
struct Session {
    id: u64,
    key: PublicKey,
    snapshot: Arc<Snapshot>,
    opened: Instant,
    used: Instant,
}

impl Session {
    fn ends(&self) -> Instant {
        (self.opened + AGE).min(self.used + IDLE)
    }
}

impl Snapshots {
    pub(crate) fn new(observers: impl IntoIterator<Item = PublicKey>) -> Arc<Self> {
        Arc::new(Self { observers: observers.into_iter().collect(), sessions: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a key is a validator's, now or from the next block on, or an observer's.
    pub(crate) fn is_allowed(&self, latest: &Snapshot, key: &PublicKey) -> Result<bool, StoreError> {
        if self.observers.contains(key) || latest.tip().validators.validators.iter().any(|v| v.key == *key) {
            return Ok(true);
        }
        let record = latest.latest_record(&RecordId::validators())?;
        Ok(match record.map(|record| record.body) {
            Some(Body::Validators(set)) => set.validators.iter().any(|v| v.key == *key),
            _ => false,
        })
    }

    /// Begins a session; the key's earlier one ends.
    fn open(self: &Arc<Self>, key: PublicKey, snapshot: Arc<Snapshot>) -> Result<u64, Failure> {
        let now = Instant::now();
        let mut sessions = self.lock();
        sessions.open.retain(|session| session.key != key && session.ends() > now);
        if sessions.open.len() >= SESSIONS {
            return Err(Failure::Busy { what: format!("{SESSIONS} replicas are copying the ledger") });
        }
        sessions.opened += 1;
        let id = sessions.opened;
        sessions.open.push(Session { id, key, snapshot, opened: now, used: now });
        drop(sessions);
        tokio::spawn(expire(Arc::downgrade(self), id));
        Ok(id)
    }

    /// The view of a session, which is used now.
    fn of(&self, key: &PublicKey, id: u64) -> Result<Arc<Snapshot>, Failure> {
        let now = Instant::now();
        let mut sessions = self.lock();
        let session =
            sessions.open.iter_mut().find(|one| one.id == id && one.key == *key && one.ends() > now);
        let session = session
            .ok_or_else(|| Failure::NotFound { what: format!("snapshot {id}: it ended; open another") })?;
        session.used = now;
        Ok(session.snapshot.clone())
    }
}

/// Ends a session when its time has come, asked or not: it must not hold on to the file.
async fn expire(snapshots: Weak<Snapshots>, id: u64) {
    loop {
        let Some(snapshots) = snapshots.upgrade() else { return };
        let ends = {
            let mut sessions = snapshots.lock();
            let now = Instant::now();
            sessions.open.retain(|session| session.id != id || session.ends() > now);
            match sessions.open.iter().find(|session| session.id == id) {
                Some(session) => session.ends(),
                None => return,
            }
        };
        drop(snapshots);
        sleep_until(ends).await;
    }
}

impl Server {
    async fn check_may_copy(&self, key: PublicKey) -> Result<(), Failure> {
        let (latest, snapshots) = (self.chain.latest(), self.snapshots.clone());
        if self.blocking(move || snapshots.is_allowed(&latest, &key).map_err(failed)).await? {
            return Ok(());
        }
        Err(Failure::NotAllowed {
            what: format!("{key} is no validator of this grid and"),
            remedy: "ask the replica's owner to list the key under 'observers' in its replica.toml"
                .to_owned(),
        })
    }

    pub(super) async fn open_snapshot(&self, key: PublicKey) -> Result<Response, Failure> {
        self.check_may_copy(key).await?;
        let snapshot = self.chain.latest();
        let read = snapshot.clone();
        let values = self.blocking(move || read.values().map_err(failed)).await?;
        let tip = Box::new(snapshot.tip().clone());
        let id = self.snapshots.open(key, snapshot)?;
        tracing::info!(%key, height = tip.header.height, "another replica copies the ledger");
        Ok(Response::SnapshotOpened { tip, id, values })
    }

    pub(super) async fn snapshot_values(
        &self,
        key: PublicKey,
        id: u64,
        after: Option<StateKey>,
    ) -> Result<Response, Failure> {
        let snapshot = self.snapshots.of(&key, id)?;
        let page = self.blocking(move || snapshot.values_after(after.as_ref()).map_err(failed)).await?;
        Ok(Response::SnapshotValues { values: page.values, more: page.more })
    }

    pub(super) async fn snapshot_records(
        &self,
        key: PublicKey,
        first: u64,
        size: u64,
    ) -> Result<Response, Failure> {
        self.check_may_copy(key).await?;
        let snapshot = self.chain.latest();
        let page = self.blocking(move || snapshot.log_page(first, size).map_err(failed)).await?;
        let LogPage { records, proof } = page.ok_or_else(|| Failure::NotFound {
            what: format!("log of {size} records with a record {first}"),
        })?;
        Ok(Response::SnapshotRecords { records, proof })
    }
}
