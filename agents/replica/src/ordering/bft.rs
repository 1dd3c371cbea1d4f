//! Many validators order together: safe while less than a third of their power lies, live while more than two
//! thirds of it is there.
//!
//! ```text
//!   clients ──enqueue──> queue ──┐                        ┌──> links: one QUIC connection to each peer
//!   peers ──streams──> inbox ────┴──> core (one thread) ──┴──> ledger, consensus log, evidence
//! ```
//! Agreement is Malachite's state machine, which has no I/O; [`core`] surrounds it and has none either but its two
//! files, so that the simulator runs the very same code. This module gives it a thread, clocks and links. It must
//! never let one peer's messages push out another's.

mod certificates;
pub mod context;
pub mod core;
pub mod evidence;
mod links;
pub mod log;
pub mod message;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use croft_protocol::api::{Agreement, Failure, PeerStatus};
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::{PublicKey, SecretKey, SignedCommand};
use croft_transport::Endpoint;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::Instant;

use self::core::{Core, Event, Health, Now, Output};
use self::links::Links;
use self::log::{Log, LogError};
use self::message::PeerMessage;
use super::mempool::Mempool;
use super::{Clock, Ordering, Verdict};
use crate::chain::Chain;
use crate::store::StoreError;

/// What one peer may have waiting here, in KiB: two of the largest messages. Then its streams wait.
const INBOX_KIB: usize = 2 * message::MESSAGE_BYTES / 1024;

/// Why a validator does not start.
#[derive(Debug, thiserror::Error)]
pub enum BftError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the system gives no thread for agreement")]
    Thread(#[source] std::io::Error),
}

struct Delivery {
    event: Event,
    /// Gives the sender's place in the inbox back.
    _permit: Option<OwnedSemaphorePermit>,
}

/// Where a peer's messages go in.
#[derive(Debug, Clone)]
pub struct Inbox {
    events: mpsc::Sender<Delivery>,
    room: Arc<Semaphore>,
    peer: PublicKey,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.event.fmt(f)
    }
}

impl Inbox {
    /// Delivers a message of `bytes`; waits while this peer has too much here already. `false` when nobody reads
    /// any more.
    pub async fn deliver(&self, message: PeerMessage, bytes: usize) -> bool {
        let kib = u32::try_from(bytes.div_ceil(1024).clamp(1, INBOX_KIB)).unwrap_or(1);
        let Ok(permit) = self.room.clone().acquire_many_owned(kib).await else { return false };
        let event = Event::Message(self.peer, Box::new(message));
        self.events.send(Delivery { event, _permit: Some(permit) }).is_ok()
    }
}

/// What a validator works with.
#[allow(missing_debug_implementations, reason = "a clock has none")]
pub struct Plan {
    pub chain: Arc<Chain>,
    pub log: Result<Log, LogError>,
    pub key: SecretKey,
    pub peers: Vec<ReplicaAddress>,
    pub clock: Clock,
    /// Where evidence is kept.
    pub dir: PathBuf,
}

/// Orders with others.
#[derive(Debug)]
pub struct Bft {
    pool: Arc<Mutex<Mempool>>,
    events: mpsc::Sender<Delivery>,
    told: Arc<AtomicBool>,
    shared: Arc<Shared>,
    rooms: Vec<(ReplicaAddress, Arc<Semaphore>)>,
    links: Links,
    stop: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Shared {
    health: Mutex<(Health, bool)>,
    evidence: Mutex<u32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bft {
    /// Starts deciding with the others.
    ///
    /// # Errors
    /// [`BftError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(plan: Plan, endpoint: Endpoint) -> Result<Self, BftError> {
        let Plan { chain, log, key, peers, clock, dir } = plan;
        let pool = Arc::<Mutex<Mempool>>::default();
        let (events, inbox) = mpsc::channel();
        let told = Arc::new(AtomicBool::new(false));
        let shared = Arc::<Shared>::default();
        let (stop, stopped) = watch::channel(false);
        let notify = events.clone();
        let links = Links::start(endpoint, peers.clone(), move |event| {
            notify.send(Delivery { event, _permit: None }).is_ok()
        });
        let epoch = Instant::now();
        let now = now(epoch, &clock);
        let core = Core::new(chain, log, key, pool.clone(), epoch, now)?;
        let runner = Runner {
            core,
            inbox,
            told: told.clone(),
            shared: shared.clone(),
            links: links.clone(),
            epoch,
            clock,
            dir,
            stopped,
        };
        let spawned = std::thread::Builder::new().name("agreement".to_owned()).spawn(move || runner.run());
        spawned.map_err(BftError::Thread)?;
        let rooms = peers.into_iter().map(|peer| (peer, Arc::new(Semaphore::new(INBOX_KIB)))).collect();
        Ok(Self { pool, events, told, shared, rooms, links, stop })
    }

    /// Ends agreement and tells those who still wait.
    pub async fn stop(&self) {
        let _ = self.stop.send(true);
        // Wakes the thread, which sees that it is to end.
        let _ = self.events.send(Delivery { event: Event::Tick, _permit: None });
        self.stop.closed().await;
        self.links.stop();
        let busy = Verdict::Failed(Failure::Busy { what: "it is stopping".to_owned() });
        for taken in lock(&self.pool).drain() {
            taken.answer(busy.clone());
        }
    }

    /// Waits until nothing more is decided here: after [`Self::stop`], or by a fault of ours.
    pub async fn ended(&self) {
        self.stop.closed().await;
    }
}

fn now(epoch: Instant, clock: &Clock) -> Now {
    let since_ms = u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
    Now { since_ms, wall_ms: clock() }
}

impl Ordering for Bft {
    fn enqueue(&self, command: SignedCommand) -> Result<oneshot::Receiver<Verdict>, Verdict> {
        if *self.stop.borrow() {
            return Err(Verdict::Failed(Failure::Busy { what: "it is stopping".to_owned() }));
        }
        if let Some(reason) = lock(&self.shared.health).0.trouble.clone() {
            return Err(Verdict::Failed(Failure::Storage { reason }));
        }
        let receiver = lock(&self.pool).insert(command, Instant::now()).map_err(Verdict::Rejected)?;
        // One word for any number of commands.
        if !self.told.swap(true, Atomic::AcqRel) {
            let _ = self.events.send(Delivery { event: Event::Arrived, _permit: None });
        }
        Ok(receiver)
    }

    fn waiting(&self) -> u32 {
        u32::try_from(lock(&self.pool).len()).unwrap_or(u32::MAX)
    }

    fn inbox(&self, peer: &PublicKey) -> Result<Inbox, Failure> {
        let known = self.rooms.iter().find(|(known, _)| known.key == *peer);
        let (_, room) = known.ok_or_else(|| Failure::NotAllowed {
            what: format!("replica {}", peer.short()),
            remedy: "the owner of this replica lists it under [[peers]] in replica.toml".to_owned(),
        })?;
        Ok(Inbox { events: self.events.clone(), room: room.clone(), peer: *peer })
    }

    fn agreement(&self) -> Option<Agreement> {
        let (health, validator) = lock(&self.shared.health).clone();
        let heights: std::collections::BTreeMap<_, _> = health.peers.into_iter().collect();
        let peers = self.rooms.iter().map(|(peer, _)| PeerStatus {
            key: peer.key,
            address: peer.address.to_string(),
            connected: heights.contains_key(&peer.key),
            height: heights.get(&peer.key).copied().unwrap_or_default(),
        });
        Some(Agreement {
            validator,
            not_signing: health.not_signing,
            trouble: health.trouble,
            deciding: health.deciding,
            peers: peers.collect(),
            evidence: *lock(&self.shared.evidence),
        })
    }
}

/// The thread of the core.
struct Runner {
    core: Core,
    inbox: mpsc::Receiver<Delivery>,
    told: Arc<AtomicBool>,
    shared: Arc<Shared>,
    links: Links,
    epoch: Instant,
    clock: Clock,
    dir: PathBuf,
    stopped: watch::Receiver<bool>,
}

impl Runner {
    fn run(mut self) {
        while !*self.stopped.borrow() {
            let since_ms = now(self.epoch, &self.clock).since_ms;
            let wait = Duration::from_millis(self.core.wake_at().saturating_sub(since_ms));
            let event = match self.inbox.recv_timeout(wait) {
                Ok(delivery) => delivery.event,
                Err(mpsc::RecvTimeoutError::Timeout) => Event::Tick,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            if matches!(event, Event::Arrived) {
                self.told.store(false, Atomic::Release);
            }
            let outputs = self.core.handle(event, now(self.epoch, &self.clock));
            *lock(&self.shared.health) = (self.core.health().clone(), self.core.is_validator());
            for output in outputs {
                self.carry_out(output);
            }
        }
    }

    fn carry_out(&self, output: Output) {
        match output {
            Output::Send(to, message) => self.links.send(Some(&to), &message),
            Output::Broadcast(message) => self.links.send(None, &message),
            Output::Evidence(evidence) => {
                *lock(&self.shared.evidence) += 1;
                let culprit = evidence.culprit();
                match evidence.keep(&self.dir) {
                    Ok(path) => tracing::error!(
                        %culprit,
                        height = evidence.height(),
                        ?path,
                        "a validator contradicted itself: the proof is kept"
                    ),
                    Err(error) => tracing::error!(
                        %culprit, %error, "a validator contradicted itself, and the proof can't be kept"
                    ),
                }
            }
        }
    }
}
