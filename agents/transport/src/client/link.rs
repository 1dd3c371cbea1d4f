//! Which replica we talk to, and when each may be tried again.
//!
//! It must never try a replica more often than its back-off allows, whatever the callers do.

use std::time::Duration;

use croft_protocol::boot::ReplicaAddress;
use croft_protocol::{PublicKey, SecretKey};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::{ClientError, chain};
use crate::endpoint::{Connection, Endpoint};

/// A replica that doesn't answer in this time is passed over.
const CONNECT_MS: u64 = 5_000;
/// The first pause after a failure; each further one doubles it.
const BACK_OFF_MIN_MS: u64 = 200;
/// The longest pause: a replica that comes back is found within this time.
const BACK_OFF_MAX_MS: u64 = 15_000;
/// How long a liar is left alone. Whoever pinned it should look.
const LIAR_MS: u64 = 600_000;

/// How long a request takes to fail when every replica is set aside.
const ALL_LIED_MS: u64 = 1_000;

/// What is wrong with a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaProblem {
    pub replica: ReplicaAddress,
    /// Cause and remedy.
    pub cause: String,
}

pub(super) fn show(problems: &[ReplicaProblem]) -> String {
    let each = problems
        .iter()
        .map(|p| format!("replica {} at {}: {}", p.replica.key.short(), p.replica.address, p.cause));
    each.collect::<Vec<_>>().join("; ")
}

/// Why a connection is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It broke or was too slow.
    Down,
    /// It works, but can't answer now.
    Busy,
}

#[derive(Debug)]
struct Candidate {
    address: ReplicaAddress,
    failures: u32,
    not_before: Instant,
    cause: Option<String>,
    lied: bool,
}

impl Candidate {
    fn failed(&mut self, cause: String) {
        self.failures = self.failures.saturating_add(1);
        self.cause = Some(cause);
        self.not_before = Instant::now() + back_off(self.failures);
    }
}

/// Doubles with each failure; half of it is random, so that a fleet doesn't come back all at once.
fn back_off(failures: u32) -> Duration {
    let doubled = BACK_OFF_MIN_MS.saturating_mul(1 << failures.saturating_sub(1).min(10));
    let longest = doubled.min(BACK_OFF_MAX_MS);
    let mut random = [0; 4];
    // Without randomness the pause is the longest one, which is safe.
    let share = match getrandom::fill(&mut random) {
        Ok(()) => u64::from(u32::from_le_bytes(random)),
        Err(_) => u64::from(u32::MAX),
    };
    Duration::from_millis(longest / 2 + (longest / 2) * share / u64::from(u32::MAX))
}

/// A connection to one replica.
#[derive(Debug, Clone)]
pub(super) struct Link {
    connection: Connection,
    index: usize,
}

impl Link {
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn replica(&self) -> PublicKey {
        self.connection.peer()
    }
}

#[derive(Debug)]
struct State {
    link: Option<Link>,
    candidates: Vec<Candidate>,
}

#[derive(Debug)]
pub(super) struct Links {
    endpoint: Endpoint,
    count: usize,
    /// Held while connecting: the others wait for the same connection.
    state: Mutex<State>,
}

impl Links {
    pub(super) fn new(me: &SecretKey, replicas: Vec<ReplicaAddress>) -> Result<Self, ClientError> {
        if replicas.is_empty() {
            return Err(ClientError::NoReplica);
        }
        Self::over(Endpoint::client(me).map_err(Box::new)?, replicas)
    }

    pub(super) fn over(endpoint: Endpoint, replicas: Vec<ReplicaAddress>) -> Result<Self, ClientError> {
        if replicas.is_empty() {
            return Err(ClientError::NoReplica);
        }
        let now = Instant::now();
        let candidates: Vec<Candidate> = replicas
            .into_iter()
            .map(|address| Candidate { address, failures: 0, not_before: now, cause: None, lied: false })
            .collect();
        let count = candidates.len();
        Ok(Self { endpoint, count, state: Mutex::new(State { link: None, candidates }) })
    }

    pub(super) fn key(&self) -> PublicKey {
        self.endpoint.key()
    }

    pub(super) fn secret(&self) -> &SecretKey {
        self.endpoint.secret()
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) async fn current(&self) -> Option<ReplicaAddress> {
        let state = self.state.lock().await;
        let link = state.link.as_ref().filter(|link| link.connection.is_open())?;
        Some(state.candidates[link.index].address.clone())
    }

    /// The connection; makes one if there is none, trying each replica once, the most promising first, and
    /// waiting for its back-off.
    pub(super) async fn get(&self) -> Result<Link, ClientError> {
        let mut state = self.state.lock().await;
        if let Some(link) = state.link.as_ref().filter(|link| link.connection.is_open()) {
            return Ok(link.clone());
        }
        state.link = None;
        let mut order: Vec<usize> = (0..state.candidates.len()).collect();
        order.sort_by_key(|i| state.candidates[*i].not_before);
        let horizon = Instant::now() + Duration::from_millis(BACK_OFF_MAX_MS);
        order.retain(|i| state.candidates[*i].not_before <= horizon);
        if order.is_empty() {
            // All lied. Whoever asks in a loop must not turn it into a busy one.
            sleep(Duration::from_millis(ALL_LIED_MS)).await;
        }
        for index in order {
            sleep_until(state.candidates[index].not_before).await;
            let ReplicaAddress { address, key } = state.candidates[index].address;
            let within = Duration::from_millis(CONNECT_MS);
            match self.endpoint.connect_within(address, key, within).await {
                Ok(connection) => {
                    tracing::debug!(%address, replica = %key.short(), "connected to replica");
                    let link = Link { connection, index };
                    state.link = Some(link.clone());
                    return Ok(link);
                }
                Err(error) => {
                    let cause = chain(&error);
                    tracing::debug!(%address, replica = %key.short(), cause, "replica can't be reached");
                    state.candidates[index].failed(cause);
                }
            }
        }
        Err(ClientError::Unavailable { problems: problems(&state) })
    }

    /// Gives a connection up, if it is still the one in use, and lets its replica rest.
    pub(super) async fn drop_link(&self, link: &Link, verdict: Verdict, cause: String) {
        let mut state = self.state.lock().await;
        // A busy replica stays connected where there is no other: its followers live on that connection.
        let keep = verdict == Verdict::Busy && self.count == 1;
        let same = state.link.as_ref().is_some_and(|l| l.connection.id() == link.connection.id());
        if same && !keep {
            tracing::debug!(replica = %link.replica().short(), cause, "gave replica up");
            state.link = None;
        }
        if !keep {
            link.connection.close("not used any more");
        }
        state.candidates[link.index].failed(cause);
    }

    /// Forgets a replica's failures: it answered.
    pub(super) async fn praise(&self, link: &Link) {
        let mut state = self.state.lock().await;
        let candidate = &mut state.candidates[link.index];
        if !candidate.lied {
            candidate.failures = 0;
            candidate.cause = None;
        }
    }

    pub(super) async fn set_aside(&self, replica: &PublicKey, what: &str) {
        let mut state = self.state.lock().await;
        tracing::warn!(replica = %replica.short(), what, "replica set aside because it lied");
        for candidate in &mut state.candidates {
            if candidate.address.key == *replica {
                candidate.lied = true;
                candidate.failed(format!(
                    "it is set aside for {} minutes because it lied: {what}; ask its owner, or pin another",
                    LIAR_MS / 60_000
                ));
                candidate.not_before = Instant::now() + Duration::from_millis(LIAR_MS);
            }
        }
        if let Some(link) = state.link.take_if(|link| link.replica() == *replica) {
            link.connection.close("you don't tell the truth");
        }
    }

    pub(super) async fn problems(&self) -> Vec<ReplicaProblem> {
        problems(&*self.state.lock().await)
    }

    pub(super) async fn close(&self) {
        self.endpoint.close("done").await;
    }
}

fn problems(state: &State) -> Vec<ReplicaProblem> {
    let with_cause = state.candidates.iter().filter_map(|candidate| {
        let cause = candidate.cause.clone()?;
        Some(ReplicaProblem { replica: candidate.address.clone(), cause })
    });
    with_cause.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_to_its_limit_and_is_never_zero() {
        for failures in 1..40 {
            let longest = (BACK_OFF_MIN_MS << (failures - 1).min(20)).min(BACK_OFF_MAX_MS);
            let pause = u64::try_from(back_off(failures).as_millis()).unwrap();
            assert!((longest / 2..=longest).contains(&pause), "{failures}: {pause}");
        }
    }
}
