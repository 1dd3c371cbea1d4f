//! Links to the other replicas: each of us dials every peer, and speaks only on what it dialled.
//!
//! ```text
//!   down ──connect, two streams──> up ──queue full──> that message is dropped; it is asked for, or said again
//!    ^                              │
//!    └────── broken, back-off ──────┘
//! ```
//! Votes have a stream of their own, so that no body holds them up. It must never wait for a slow peer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use croft_protocol::PublicKey;
use croft_protocol::api::{Request, Response};
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::limits;
use croft_transport::{Connection, Endpoint, SendStream, frame};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::core::Event;
use super::message::{MESSAGE_BYTES, PeerMessage};

/// Votes and requests that may wait for one peer.
const QUICK_QUEUE: usize = 4_096;
/// Bodies, blocks and commands that may wait for one peer.
const BULK_QUEUE: usize = 32;
/// Between two tries to connect: short at first, so that a restarted peer is back within a round.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// For a handshake. A peer that starts a moment later must not cost the time of a far one that is slow.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// For the other end to accept a stream.
const OPEN: Duration = Duration::from_secs(5);
/// For one message to leave.
const WRITE: Duration = Duration::from_secs(15);

type Frame = Arc<Vec<u8>>;

#[derive(Debug, Default)]
struct Queues {
    /// None while the link is down.
    up: Option<(mpsc::Sender<Frame>, mpsc::Sender<Frame>)>,
}

#[derive(Debug)]
struct Link {
    peer: PublicKey,
    queues: Arc<Mutex<Queues>>,
    task: JoinHandle<()>,
}

/// All links of one replica. Clones are the same.
#[derive(Debug, Clone)]
pub struct Links {
    links: Arc<Vec<Link>>,
}

impl Links {
    /// Starts dialling. `tell` hears when links come up and go down; `false` from it ends the link.
    pub fn start<T>(endpoint: Endpoint, peers: Vec<ReplicaAddress>, tell: T) -> Self
    where
        T: Fn(Event) -> bool + Clone + Send + 'static,
    {
        let links = peers.into_iter().map(|peer| {
            let queues = Arc::<Mutex<Queues>>::default();
            let key = peer.key;
            let task = tokio::spawn(keep(endpoint.clone(), peer, queues.clone(), tell.clone()));
            Link { peer: key, queues, task }
        });
        Self { links: Arc::new(links.collect()) }
    }

    /// Sends to one peer or to all whose link is up.
    pub fn send(&self, to: Option<&PublicKey>, message: &PeerMessage) {
        let Ok(bytes) = frame::encode("the message", message, MESSAGE_BYTES) else {
            tracing::error!("a message is larger than any may be");
            return;
        };
        let (frame, bulk) = (Arc::new(bytes), message.is_bulk());
        for link in self.links.iter().filter(|link| to.is_none_or(|to| link.peer == *to)) {
            let queues = link.queues.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((quick, slow)) = &queues.up else { continue };
            let queue = if bulk { slow } else { quick };
            if queue.try_send(frame.clone()).is_err() {
                tracing::debug!(peer = %link.peer.short(), bulk, "a message for a slow peer is dropped");
            }
        }
    }

    /// Ends every link.
    pub fn stop(&self) {
        for link in self.links.iter() {
            link.task.abort();
        }
    }
}

/// Keeps one link up for as long as there is somebody to tell.
async fn keep<T>(endpoint: Endpoint, peer: ReplicaAddress, queues: Arc<Mutex<Queues>>, tell: T)
where
    T: Fn(Event) -> bool,
{
    let mut pause = FIRST_PAUSE;
    let mut complained = false;
    loop {
        match connect(&endpoint, &peer).await {
            Ok((connection, quick, bulk)) => {
                (pause, complained) = (FIRST_PAUSE, false);
                tracing::info!(peer = %peer.key.short(), address = %peer.address, "linked with replica");
                let (quick_queue, quick_frames) = mpsc::channel(QUICK_QUEUE);
                let (bulk_queue, bulk_frames) = mpsc::channel(BULK_QUEUE);
                set(&queues, Some((quick_queue, bulk_queue)));
                if !tell(Event::Connected(peer.key)) {
                    return;
                }
                tokio::select! {
                    () = write(quick, quick_frames) => {}
                    () = write(bulk, bulk_frames) => {}
                    _ = connection.closed() => {}
                }
                set(&queues, None);
                connection.close("the link is made again");
                tracing::info!(peer = %peer.key.short(), "link with replica is down");
                if !tell(Event::Gone(peer.key)) {
                    return;
                }
            }
            Err(reason) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::info!(peer = %peer.key.short(), address = %peer.address, reason, "no link yet");
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn set(queues: &Mutex<Queues>, up: Option<(mpsc::Sender<Frame>, mpsc::Sender<Frame>)>) {
    queues.lock().unwrap_or_else(PoisonError::into_inner).up = up;
}

async fn connect(
    endpoint: &Endpoint,
    peer: &ReplicaAddress,
) -> Result<(Connection, SendStream, SendStream), String> {
    let connection =
        endpoint.connect_within(peer.address, peer.key, HANDSHAKE).await.map_err(|e| crate::chain_of(&e))?;
    let quick = open(&connection, false).await?;
    let bulk = open(&connection, true).await?;
    Ok((connection, quick, bulk))
}

async fn open(connection: &Connection, bulk: bool) -> Result<SendStream, String> {
    let (mut send, mut recv) = connection.open().await.map_err(|e| crate::chain_of(&e))?;
    let request = Request::Replicate { bulk };
    let written = frame::write(&mut send, "the request", &request, limits::REQUEST_BYTES, OPEN).await;
    written.map_err(|e| crate::chain_of(&e))?;
    let answer = frame::read(&mut recv, "the answer", limits::RESPONSE_BYTES, OPEN).await;
    match answer.map_err(|e| crate::chain_of(&e))? {
        Response::Replicating => Ok(send),
        Response::Failed(failure) => Err(failure.to_string()),
        _ => Err("it answered something else than was asked".to_owned()),
    }
}

async fn write(mut stream: SendStream, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if let Err(error) = frame::write_encoded(&mut stream, "the message", &frame, WRITE).await {
            tracing::debug!(cause = crate::chain_of(&error), "a link broke");
            return;
        }
    }
}
