//! The QUIC API: who may connect, what each may ask for, and what each may cost.
//!
//! ```text
//!   Incoming ──limits, handshake──> connection of a key ──stream──> one request, one answer
//!                                        │                            └─> follow, relay: until it ends
//!                                        └─ presence, calls
//! ```
//! Every message, queue, count and wait has a limit. A peer that is slow or hostile loses its stream or its
//! connection, and costs nobody else anything. It must never answer with what is not final.

mod answer;
mod follow;
mod gate;
mod mailing;
mod refusals;
mod relay;
mod replicate;
mod snapshots;
mod vouch;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use croft_ledger::StateReadExt;
use croft_protocol::api::{Event, Failure, Request, Response, Service};
use croft_protocol::{PublicKey, RecordId, SecretKey, limits};
use croft_transport::{Connection, Endpoint, FrameError, Incoming, RecvStream, SendStream, frame};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::blobs::Blobs;
use crate::chain::Chain;
use crate::mail::Mailboxes;
use crate::ordering::Ordering;
use crate::presence::{Presence, Present};
use crate::rate::{Meter, Rate};
use crate::refused::Refused;

/// Connections in all. Each may cost some megabytes of buffers when its peer tries hard.
const CONNECTIONS: usize = 4_096;
/// Connections from one IPv4 address or one IPv6 network of 64 bits: a large farm behind one address fits, and
/// one stranger can't take all.
const CONNECTIONS_PER_ADDRESS: usize = 512;
/// Handshakes at a time: each costs two signatures, which anybody can ask for.
const HANDSHAKES: usize = 64;
/// With this many handshakes under way, others must first show that their address is their own.
const UNVALIDATED_HANDSHAKES: usize = 16;
/// Requests that read the ledger or the disk at a time: more would only wait for each other.
const READS: usize = 16;
/// Frames larger than a request that are read at a time: bounds the memory that blobs take.
const LARGE_FRAMES: usize = 16;
/// A request must be there this long after its stream.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// A blob of 2 MiB at 1 Mbit/s takes 17 s.
const BLOB_TIME: Duration = Duration::from_secs(40);
/// An answer must be taken in this time.
const ANSWER_TIME: Duration = Duration::from_secs(40);
/// Answers up to this size are sent without further ado.
const SMALL_ANSWER_BYTES: usize = 64 * 1024;
/// Larger answers that wait to be taken by those whom the ledger knows.
const KNOWN_ANSWERS_KIB: usize = 256 * 1024;
/// The same for strangers: they can hold up only each other.
const STRANGERS_ANSWERS_KIB: usize = 64 * 1024;
/// Messages that one bot leaves in mailboxes: each costs a write to the disk.
const MAIL_PER_TIME: Rate = Rate { amount: 60, per: Duration::from_secs(60) };
/// How long a read waits for its turn before the replica calls itself busy.
const TURN_TIME: Duration = Duration::from_secs(5);

const ANSWER: &str = "the response";

/// What this replica takes from whom.
#[derive(Debug)]
pub(crate) struct Intake {
    /// Who may copy the ledger.
    pub(crate) observers: Vec<PublicKey>,
    /// Commands that one author may bring in a minute.
    pub(crate) commands_per_minute: u64,
    /// Who this replica is when it vouches for nodes' TPMs.
    pub(crate) key: SecretKey,
    /// Root certificates of TPMs' makers, DER.
    pub(crate) makers: Vec<Vec<u8>>,
}

/// All that answers come from.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) chain: Arc<Chain>,
    pub(crate) ordering: Arc<dyn Ordering>,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) mail: Arc<Mailboxes>,
    /// What each bot has left in mailboxes lately.
    mailing: Mutex<Meter>,
    pub(crate) presence: Arc<Presence>,
    gate: Arc<gate::Gate>,
    reads: Semaphore,
    large_frames: Semaphore,
    known_answers: Semaphore,
    strangers_answers: Semaphore,
    relays: Arc<relay::Relays>,
    vouching: vouch::Vouching,
    /// What each author has brought lately.
    authors: Mutex<Meter>,
    commands_per_minute: u64,
    refused: Mutex<Refused>,
    pub(crate) snapshots: Arc<snapshots::Snapshots>,
    addresses: Mutex<BTreeMap<IpAddr, usize>>,
}

/// Counts one connection of an address until dropped.
struct Neighbour<'a> {
    server: &'a Server,
    address: IpAddr,
}

impl Drop for Neighbour<'_> {
    fn drop(&mut self) {
        let mut addresses = self.server.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

/// What one stranger has one of: an IPv4 address, or an IPv6 network.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Server {
    /// `observers` may copy the ledger, as validators may.
    pub(crate) fn new(
        chain: Arc<Chain>,
        ordering: Arc<dyn Ordering>,
        (blobs, mail): (Arc<Blobs>, Arc<Mailboxes>),
        Intake { observers, commands_per_minute, key, makers }: Intake,
    ) -> Arc<Self> {
        let rate = Rate { amount: commands_per_minute, per: Duration::from_secs(60) };
        Arc::new(Self {
            gate: gate::Gate::new(chain.clone()),
            chain,
            ordering,
            blobs,
            mail,
            mailing: Mutex::new(Meter::new(MAIL_PER_TIME)),
            presence: Presence::new(),
            reads: Semaphore::new(READS),
            large_frames: Semaphore::new(LARGE_FRAMES),
            known_answers: Semaphore::new(KNOWN_ANSWERS_KIB),
            strangers_answers: Semaphore::new(STRANGERS_ANSWERS_KIB),
            relays: Arc::default(),
            vouching: vouch::Vouching::new(key, makers),
            authors: Mutex::new(Meter::new(rate)),
            commands_per_minute,
            refused: Mutex::default(),
            snapshots: snapshots::Snapshots::new(observers),
            addresses: Mutex::default(),
        })
    }

    /// Serves until the endpoint is closed and every connection has ended. Dropping the future ends them too.
    pub(crate) async fn run(self: Arc<Self>, endpoint: Endpoint) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                incoming = endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    if endpoint.open_connections() >= CONNECTIONS {
                        incoming.refuse();
                        continue;
                    }
                    let Ok(permit) = handshakes.clone().try_acquire_owned() else {
                        incoming.refuse();
                        continue;
                    };
                    let crowded = HANDSHAKES - handshakes.available_permits() > UNVALIDATED_HANDSHAKES;
                    if crowded && !incoming.is_validated() {
                        incoming.demand_validation();
                        continue;
                    }
                    connections.spawn(self.clone().meet(incoming, permit));
                }
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "serving a connection panicked");
                    }
                }
            }
        }
        // Their connections are closed, so they end; whoever stops us does not wait for ever.
        while connections.join_next().await.is_some() {}
    }

    async fn meet(self: Arc<Self>, incoming: Incoming, permit: tokio::sync::OwnedSemaphorePermit) {
        let Some(_neighbour) = self.count(incoming.remote_address().ip()) else {
            incoming.refuse();
            return;
        };
        let connection = match incoming.finish().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(cause = crate::chain_of(&error), "handshake failed");
                return;
            }
        };
        drop(permit);
        self.serve(connection).await;
    }

    fn count(&self, address: IpAddr) -> Option<Neighbour<'_>> {
        let address = neighbourhood(address);
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_default();
        if *count >= CONNECTIONS_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Neighbour { server: self, address })
    }

    async fn serve(self: &Arc<Self>, connection: Connection) {
        let present = Arc::new(self.presence.enter(connection.clone()));
        let follows = Arc::new(Semaphore::new(follow::FOLLOWS_PER_CONNECTION));
        // The number of streams that one peer may have open is the transport's limit.
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                stream = connection.accept() => {
                    let Ok((send, recv)) = stream else { break };
                    let stream = Stream {
                        server: self.clone(),
                        connection: connection.clone(),
                        present: present.clone(),
                        follows: follows.clone(),
                    };
                    streams.spawn(stream.serve(send, recv));
                }
                Some(ended) = streams.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, peer = %connection.peer().short(), "a request panicked");
                    }
                }
            }
        }
        streams.shutdown().await;
    }

    /// Runs what blocks, with a bound on how many do so at a time.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let busy = || Failure::Busy { what: format!("{READS} requests are being read for") };
        let turn = timeout(TURN_TIME, self.reads.acquire()).await;
        let _turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%error, "a read panicked");
                Err(Failure::Storage { reason: "a read failed inside the replica".to_owned() })
            }
        }
    }

    /// Who speaks over a connection that proved a key.
    async fn identity(&self, key: PublicKey) -> Result<PublicKey, Failure> {
        let snapshot = self.chain.latest();
        self.blocking(move || {
            let identity = snapshot.identity_of(&key).map_err(|error| {
                tracing::error!(%error, "the ledger can't be read");
                Failure::Storage { reason: error.to_string() }
            })?;
            identity.map_err(Failure::Key)
        })
        .await
    }

    /// Whether the ledger knows this bot.
    async fn is_bot(&self, key: PublicKey) -> Result<bool, Failure> {
        let snapshot = self.chain.latest();
        self.blocking(move || {
            let position = snapshot.latest_position(&RecordId::bot(&key)).map_err(answer::failed)?;
            Ok(position.is_some())
        })
        .await
    }

    /// Whether the ledger knows a bot, a node or a validator of this key, or the owner an observer.
    async fn is_known(&self, key: PublicKey) -> Result<bool, Failure> {
        let (snapshot, snapshots) = (self.chain.latest(), self.snapshots.clone());
        self.blocking(move || {
            if snapshots.is_allowed(&snapshot, &key).map_err(answer::failed)? {
                return Ok(true);
            }
            for id in [RecordId::bot(&key), RecordId::node(&key)] {
                if snapshot.latest_position(&id).map_err(answer::failed)?.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
    }
}

/// One stream of one connection.
struct Stream {
    server: Arc<Server>,
    connection: Connection,
    present: Arc<Present>,
    follows: Arc<Semaphore>,
}

impl Stream {
    async fn serve(self, mut send: SendStream, mut recv: RecvStream) {
        let request = match self.read(&mut recv).await {
            Ok(request) => request,
            Err(failure) => return respond(&mut send, Response::Failed(failure)).await,
        };
        match request {
            Request::Follow { concerning } => {
                let Ok(_turn) = self.follows.clone().try_acquire_owned() else {
                    let failure = Failure::Quota {
                        what: format!("{} streams are followed", follow::FOLLOWS_PER_CONNECTION),
                        remedy: "close some of them".to_owned(),
                    };
                    return follow::send(&mut send, &Event::Failed(failure)).await.unwrap_or_default();
                };
                follow::run(&self.server, concerning, &mut send).await;
            }
            Request::Relay { to } => {
                let from = self.connection.peer();
                relay::run(&self.server, from, (to, Service::Calls), send, recv).await;
            }
            Request::RelayTo { to, service } => {
                let from = self.connection.peer();
                relay::run(&self.server, from, (to, service), send, recv).await;
            }
            Request::Listen | Request::ListenFor { .. } => {
                let service = match request {
                    Request::ListenFor { service } => service,
                    _ => Service::Calls,
                };
                let response = match self.server.identity(self.connection.peer()).await {
                    Ok(_) => {
                        self.present.listen(service);
                        Response::Listening
                    }
                    Err(failure) => Response::Failed(failure),
                };
                respond(&mut send, response).await;
            }
            Request::Vouch(introduction) => {
                vouch::run(&self.server, self.connection.peer(), *introduction, send, recv).await;
            }
            Request::Replicate { .. } => {
                replicate::run(&self.server, self.connection.peer(), send, recv).await;
            }
            request => {
                let peer = self.connection.peer();
                let response = self.server.answer(peer, request).await;
                self.server.respond_large(peer, &mut send, response).await;
            }
        }
    }

    async fn read(&self, recv: &mut RecvStream) -> Result<Request, Failure> {
        const WHAT: &str = "the request";
        let malformed = |error: FrameError| Failure::Malformed { reason: error.to_string() };
        let len = frame::read_length(recv, WHAT, REQUEST_TIME).await.map_err(malformed)?;
        if len <= limits::REQUEST_BYTES {
            return frame::read_body(recv, WHAT, len, REQUEST_TIME).await.map_err(malformed);
        }
        let limit = limits::BLOB_BYTES + 64;
        if len > limit {
            let (got, limit) = (len as u64, limit as u64);
            return Err(Failure::TooMuch { what: "bytes".to_owned(), got, limit });
        }
        // Only a blob is this large; strangers don't get the memory for one.
        let peer = self.server.identity(self.connection.peer()).await?;
        answer::check_may_put(&self.server, peer).await?;
        let busy = || Failure::Busy { what: format!("{LARGE_FRAMES} blobs are being received") };
        let turn = timeout(BLOB_TIME, self.server.large_frames.acquire()).await;
        let _turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        frame::read_body(recv, WHAT, len, BLOB_TIME).await.map_err(malformed)
    }
}

/// Sends the one answer. Whoever does not take it in time has lost it.
async fn respond(send: &mut SendStream, response: Response) {
    if let Ok(bytes) = encode(&response) {
        write(send, &bytes).await;
    }
}

fn encode(response: &Response) -> Result<Vec<u8>, FrameError> {
    match frame::encode(ANSWER, response, limits::RESPONSE_BYTES) {
        Err(FrameError::Oversized { len, limit, .. }) => {
            let (got, limit) = (len as u64, limit as u64);
            let failure = Failure::TooMuch { what: "bytes in one answer".to_owned(), got, limit };
            frame::encode(ANSWER, &Response::Failed(failure), limits::RESPONSE_BYTES)
        }
        other => other,
    }
}

async fn write(send: &mut SendStream, bytes: &[u8]) {
    if frame::write_encoded(send, ANSWER, bytes, ANSWER_TIME).await.is_ok() {
        // Fails only when the other end has stopped the stream.
        let _ = send.finish();
    }
}

impl Server {
    /// As [`respond`], for answers that may be large: a peer that asks for many and takes none must not fill
    /// the memory.
    async fn respond_large(&self, peer: PublicKey, send: &mut SendStream, response: Response) {
        let Ok(bytes) = encode(&response) else { return };
        drop(response);
        if bytes.len() <= SMALL_ANSWER_BYTES {
            return write(send, &bytes).await;
        }
        let known = match self.identity(peer).await {
            Ok(identity) => self.is_known(identity).await,
            Err(failure) => Err(failure),
        };
        let budget = match known {
            Ok(true) => &self.known_answers,
            _ => &self.strangers_answers,
        };
        let kib = u32::try_from(bytes.len().div_ceil(1024)).unwrap_or(u32::MAX);
        let Ok(Ok(_turn)) = timeout(TURN_TIME, budget.acquire_many(kib)).await else {
            let what = "too many large answers wait to be taken".to_owned();
            return respond(send, Response::Failed(Failure::Busy { what })).await;
        };
        write(send, &bytes).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_an_ipv6_network_but_not_an_ipv4_address() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
