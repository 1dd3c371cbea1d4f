//! What lasts longer than one answer: following, listening, relaying.

use std::sync::Arc;
use std::time::Duration;

use croft_protocol::api::{Concern, Event, Failure, IncomingRelay, Request, Response, Service};
use croft_protocol::attestation::{Credential, Introduction, SignedVoucher};
use croft_protocol::{PublicKey, limits};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::link::{Link, Links, Verdict};
use super::{Answer, ClientError, READ_MS, chain};
use crate::frame::{self, Exchange, FrameError, FrameReader};
use crate::relay::RelayStream;

/// A follower hears a header at least every heartbeat; a replica that misses three is of no use.
const FOLLOW_SILENCE_MS: u64 = 3 * limits::HEARTBEAT_MS;
/// Calls that nobody has picked up yet; more are hung up.
const WAITING_CALLS: usize = 16;
/// How long the first bytes of a call may take.
const CALL_MS: u64 = 5_000;

/// A stream of final headers and what concerns us.
#[derive(Debug)]
pub struct Follow {
    links: Arc<Links>,
    link: Link,
    recv: quinn::RecvStream,
    _send: quinn::SendStream,
    reader: FrameReader,
    heard: Instant,
}

pub(super) async fn follow(links: &Arc<Links>, concerning: Vec<Concern>) -> Result<Follow, ClientError> {
    let request = Request::Follow { concerning };
    let within = Duration::from_millis(READ_MS);
    let mut last = None;
    for _ in 0..=links.count() {
        let link = match links.get().await {
            Ok(link) => link,
            Err(error) => return Err(last.unwrap_or(error)),
        };
        match frame::ask(link.connection(), &request, within).await {
            Ok((send, recv)) => {
                let (reader, heard) = (FrameReader::new(), Instant::now());
                return Ok(Follow { links: links.clone(), link, recv, _send: send, reader, heard });
            }
            Err(error) => {
                let replica = link.replica();
                let reason = chain(&error);
                links.drop_link(&link, Verdict::Down, reason.clone()).await;
                last = Some(ClientError::StreamEnded { replica, reason });
            }
        }
    }
    Err(last.expect("at least one attempt was made"))
}

impl Follow {
    /// Whom we follow.
    #[must_use]
    pub fn replica(&self) -> PublicKey {
        self.link.replica()
    }

    /// The next event. Dropping the future loses nothing, so it can be waited for among other things.
    ///
    /// # Errors
    /// [`ClientError::StreamEnded`] when the replica is gone or silent, [`ClientError::Failed`] with its
    /// reason when it ends the stream.
    pub async fn next(&mut self) -> Result<Answer<Event>, ClientError> {
        const WHAT: &str = "an event";
        let replica = self.link.replica();
        let next = self.reader.next(&mut self.recv, WHAT, limits::RESPONSE_BYTES);
        let deadline = self.heard + Duration::from_millis(FOLLOW_SILENCE_MS);
        let read = match timeout_at(deadline, next).await {
            Ok(read) => read,
            Err(_) => Err(FrameError::Slow { what: WHAT, limit_ms: FOLLOW_SILENCE_MS }),
        };
        self.heard = Instant::now();
        let reason = match read {
            Ok(Some(Event::Failed(failure))) => return Err(ClientError::Failed { replica, failure }),
            Ok(Some(value)) => return Ok(Answer { value, replica }),
            Ok(None) => "it closed it".to_owned(),
            Err(error) => {
                let reason = chain(&error);
                if matches!(error, FrameError::Slow { .. } | FrameError::Decode(_)) {
                    self.links.drop_link(&self.link, Verdict::Down, reason.clone()).await;
                }
                reason
            }
        };
        Err(ClientError::StreamEnded { replica, reason })
    }
}

/// Somebody who calls us through a replica.
#[derive(Debug)]
pub struct Relayed {
    /// Who, by the replica's word. [`crate::peer_accept`] proves it.
    pub from: PublicKey,
    pub stream: RelayStream,
}

/// Where calls come in, over whichever replica we are connected to. Dropping it stops listening.
#[derive(Debug)]
pub struct Listener {
    calls: mpsc::Receiver<Relayed>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    pub(super) fn start(links: Arc<Links>, service: Service) -> Self {
        let (sender, calls) = mpsc::channel(WAITING_CALLS);
        Self { calls, task: tokio::spawn(listen(links, service, sender)) }
    }

    /// The next call. Waits for as long as it takes, through lost connections.
    pub async fn accept(&mut self) -> Option<Relayed> {
        self.calls.recv().await
    }
}

async fn listen(links: Arc<Links>, service: Service, calls: mpsc::Sender<Relayed>) {
    let request = match service {
        Service::Calls => Request::Listen,
        Service::Messages => Request::ListenFor { service },
    };
    loop {
        // `get` waits for the back-off of each replica, so this loop can't spin.
        let Ok(link) = links.get().await else { continue };
        let within = Duration::from_millis(READ_MS);
        let asked = frame::request(link.connection(), &request, limits::REQUEST_BYTES, within).await;
        match asked {
            Ok(Response::Listening) => links.praise(&link).await,
            Ok(other) => {
                let cause = match other {
                    Response::Failed(failure) => format!("it does not let us listen: {failure}"),
                    _ => "it answered something else than was asked".to_owned(),
                };
                tracing::warn!(replica = %link.replica().short(), cause, "can't listen");
                links.drop_link(&link, Verdict::Down, cause).await;
                continue;
            }
            Err(error) => {
                links.drop_link(&link, Verdict::Down, chain(&error)).await;
                continue;
            }
        }
        while let Ok((send, mut recv)) = link.connection().accept().await {
            let calls = calls.clone();
            // Of its own, so that a call without a first frame holds up nobody.
            tokio::spawn(async move {
                let within = Duration::from_millis(CALL_MS);
                let first: Result<IncomingRelay, _> =
                    frame::read(&mut recv, "the caller's name", 64, within).await;
                if let Ok(IncomingRelay { from }) = first {
                    // Hangs up when nobody picks up: dropping the stream resets it.
                    let _ = calls.try_send(Relayed { from, stream: RelayStream::new(send, recv) });
                }
            });
        }
    }
}

pub(super) async fn relay(
    links: &Arc<Links>,
    to: PublicKey,
    service: Service,
) -> Result<Answer<RelayStream>, ClientError> {
    let mut last = None;
    for _ in 0..=links.count() {
        let link = match links.get().await {
            Ok(link) => link,
            Err(error) => return Err(last.unwrap_or(error)),
        };
        let replica = link.replica();
        match pipe(&link, to, service).await {
            Ok(Ok(stream)) => {
                links.praise(&link).await;
                return Ok(Answer { value: stream, replica });
            }
            Ok(Err(failure)) if matches!(failure, Failure::Busy { .. }) && links.count() > 1 => {
                links.drop_link(&link, Verdict::Busy, failure.to_string()).await;
                last = Some(ClientError::Failed { replica, failure });
            }
            Ok(Err(failure)) => return Err(ClientError::Failed { replica, failure }),
            Err(error) => {
                let reason = chain(&error);
                links.drop_link(&link, Verdict::Down, reason.clone()).await;
                last = Some(ClientError::StreamEnded { replica, reason });
            }
        }
    }
    Err(last.expect("at least one attempt was made"))
}

async fn pipe(
    link: &Link,
    to: PublicKey,
    service: Service,
) -> Result<Result<RelayStream, Failure>, Exchange> {
    let within = Duration::from_millis(READ_MS);
    let request = match service {
        Service::Calls => Request::Relay { to },
        Service::Messages => Request::RelayTo { to, service },
    };
    let (send, mut recv) = frame::ask(link.connection(), &request, within).await?;
    let response = frame::read(&mut recv, "the response", limits::REQUEST_BYTES, within)
        .await
        .map_err(Exchange::Unanswered)?;
    Ok(match response {
        Response::Relayed => Ok(RelayStream::new(send, recv)),
        Response::Failed(failure) => Err(failure),
        _ => Err(Failure::Malformed { reason: "the replica answered something else".to_owned() }),
    })
}

/// One attempt at the replica that is in use: the secret that it sends is for this stream only.
pub(super) async fn vouch<Opening>(
    links: &Arc<Links>,
    introduction: &Introduction,
    open: impl Fn(Credential) -> Opening,
) -> Result<SignedVoucher, ClientError>
where
    Opening: Future<Output = Result<Vec<u8>, String>>,
{
    const WHAT: &str = "the response";
    let link = links.get().await?;
    let replica = link.replica();
    let ended = |reason: String| ClientError::StreamEnded { replica, reason };
    let strange = || ended("it answered something else than was asked".to_owned());
    let within = Duration::from_millis(READ_MS);
    let request = Request::Vouch(Box::new(introduction.clone()));
    let (mut send, mut recv) =
        frame::ask(link.connection(), &request, within).await.map_err(|e| ended(chain(&e)))?;
    let read = |error: FrameError| ended(chain(&error));
    let credential = match frame::read(&mut recv, WHAT, limits::REQUEST_BYTES, within).await.map_err(read)? {
        Response::Credential(credential) => *credential,
        Response::Failed(failure) => return Err(ClientError::Failed { replica, failure }),
        _ => return Err(strange()),
    };
    credential.check().map_err(|error| ended(error.to_string()))?;
    let secret =
        open(credential).await.map_err(|reason| ended(format!("our TPM did not answer it: {reason}")))?;
    frame::write(&mut send, "the secret", &secret, 256, within).await.map_err(read)?;
    // Fails only when the other end has stopped the stream; then reading says why.
    let _ = send.finish();
    match frame::read(&mut recv, WHAT, limits::REQUEST_BYTES, within).await.map_err(read)? {
        Response::Vouched(signed) => Ok(*signed),
        Response::Failed(failure) => Err(ClientError::Failed { replica, failure }),
        _ => Err(strange()),
    }
}
