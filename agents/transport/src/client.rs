//! Asks one of several pinned replicas, and goes to the next when one is down, slow or lies.
//!
//! ```text
//!              ┌──────── asked, answered ────────┐
//!              v                                 │
//!   no link ─connect─> linked ───────────────────┘
//!      ^                 │ broke, too slow, busy, lied
//!      └── back-off ─────┘
//! ```
//! All requests share one connection. Reads are asked again elsewhere; a command that may have arrived is
//! not, because only the ledger knows what became of it. This module checks the shape of answers and the
//! hash of blobs; it must never be taken as having verified anything else: that is for `light`, whose
//! owner calls [`Client::report_lie`].

mod link;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use croft_protocol::api::{
    Concern, Cursor, Failure, Mail, Page, ProvedPage, ProvedRecord, ProvedValue, Query, RefusedNode, Request,
    Response, Service, Status,
};
use croft_protocol::attestation::{Credential, Introduction, SignedVoucher};
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::{
    FarmId, Genesis, Hash, PublicKey, RecordId, Rejection, SecretKey, SignedCommand, SignedHeader, StateKey,
    limits,
};

use crate::endpoint::{BindError, Endpoint};
use crate::frame::{self, Exchange};
use crate::relay::{PeerError, PeerStream, RelayStream, peer_connect};
pub use link::ReplicaProblem;
use link::{Links, Verdict};
pub use stream::{Follow, Listener, Relayed};

/// A read that takes longer is asked elsewhere.
const READ_MS: u64 = 10_000;
/// A command waits for its block; longer than this means that the ledger stands still.
const SUBMIT_MS: u64 = 30_000;
/// A blob of 2 MiB at 1 Mbit/s takes 17 s.
const BLOB_MS: u64 = 40_000;

/// An answer and the replica that gave it, to be reported if the answer turns out to be a lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    pub value: T,
    pub replica: PublicKey,
}

/// Where a command ended up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    pub height: u64,
    /// Hashes of the records that it made.
    pub records: Vec<Hash>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the configuration names no replica: add one with its address and key")]
    NoReplica,
    #[error(transparent)]
    Bind(#[from] Box<BindError>),
    #[error("no replica of the grid can be used: {}", link::show(problems))]
    Unavailable { problems: Vec<ReplicaProblem> },
    /// The ledger said no. It won't change its mind about the same command.
    #[error("the ledger refuses: {rejection}")]
    Rejected { replica: PublicKey, rejection: Box<Rejection> },
    /// The replica can't answer this request; another might.
    #[error("replica {}: {failure}", replica.short())]
    Failed { replica: PublicKey, failure: Failure },
    #[error(
        "replica {} went away before it said whether the command is final: look at the ledger before signing it again",
        replica.short()
    )]
    OutcomeUnknown { replica: PublicKey, source: Box<Exchange> },
    #[error("blob {hash} does not have the bytes of its name at any replica: publish it again")]
    BlobTampered { hash: Hash },
    #[error("replica {} ended the stream: {reason}; open it again", replica.short())]
    StreamEnded { replica: PublicKey, reason: String },
    #[error("the peer {} can't be reached through replica {}", peer.short(), replica.short())]
    Peer { peer: PublicKey, replica: PublicKey, source: Box<PeerError> },
}

/// A connection to whichever pinned replica works. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    links: Arc<Links>,
}

impl Client {
    /// Opens nothing yet: the first request does.
    ///
    /// # Errors
    /// [`ClientError::NoReplica`], [`ClientError::Bind`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(me: &SecretKey, replicas: Vec<ReplicaAddress>) -> Result<Self, ClientError> {
        Ok(Self { links: Arc::new(Links::new(me, replicas)?) })
    }

    /// The same over an endpoint that others use too.
    pub(crate) fn over(endpoint: Endpoint, replicas: Vec<ReplicaAddress>) -> Result<Self, ClientError> {
        Ok(Self { links: Arc::new(Links::over(endpoint, replicas)?) })
    }

    /// Our own key.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.links.key()
    }

    /// The replica that the last request went to, if it is still connected.
    pub async fn current(&self) -> Option<ReplicaAddress> {
        self.links.current().await
    }

    /// Sets a replica aside for minutes, because what it says can't be true; `what` goes into messages.
    pub async fn report_lie(&self, replica: &PublicKey, what: &str) {
        self.links.set_aside(replica, what).await;
    }

    /// Ends the connection with a word.
    pub async fn close(&self) {
        self.links.close().await;
    }

    /// The grid's genesis; compare its chain id with the pinned one.
    pub async fn genesis(&self) -> Result<Answer<Genesis>, ClientError> {
        self.read(&Request::Genesis, |response| match response {
            Response::Genesis(genesis) => Ok(*genesis),
            other => Err(other),
        })
        .await
    }

    /// The newest final header.
    pub async fn tip(&self) -> Result<Answer<SignedHeader>, ClientError> {
        self.read(&Request::Tip, header).await
    }

    /// The final header at a height.
    pub async fn header(&self, height: u64) -> Result<Answer<SignedHeader>, ClientError> {
        self.read(&Request::Header { height }, header).await
    }

    /// The newest final header by which these validators hand over to others.
    ///
    /// # Errors
    /// [`Failure::NotFound`] in [`ClientError::Failed`] when they are the present ones or never were any.
    pub async fn handover(&self, validators: Hash) -> Result<Answer<SignedHeader>, ClientError> {
        self.read(&Request::Handover { validators }, header).await
    }

    /// Brings a command to the ledger and waits until it is final.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] with the ledger's reason; [`ClientError::OutcomeUnknown`] when only the
    /// ledger knows.
    pub async fn submit(&self, command: SignedCommand) -> Result<Answer<Submitted>, ClientError> {
        let request = Request::Submit(Box::new(command));
        let within = Duration::from_millis(SUBMIT_MS);
        let answer = self
            .ask(&request, limits::RESPONSE_BYTES, within, |response| match response {
                Response::Final { height, records } => Ok(Ok(Submitted { height, records })),
                Response::Rejected(rejection) => Ok(Err(rejection)),
                other => Err(other),
            })
            .await?;
        match answer.value {
            Ok(submitted) => Ok(Answer { value: submitted, replica: answer.replica }),
            Err(rejection) => {
                Err(ClientError::Rejected { replica: answer.replica, rejection: Box::new(rejection) })
            }
        }
    }

    /// Latest values with proofs against the tip that comes with them, in the order of the keys.
    pub async fn get(
        &self,
        keys: Vec<StateKey>,
    ) -> Result<Answer<(SignedHeader, Vec<ProvedValue>)>, ClientError> {
        let count = keys.len();
        self.read(&Request::Get { keys }, move |response| match response {
            Response::Values { tip, values } if values.len() == count => Ok((*tip, values)),
            other => Err(other),
        })
        .await
    }

    /// Records by their position in the log, with proofs against the tip that comes with them. A page may
    /// be shorter than asked for.
    pub async fn range(
        &self,
        first: u64,
        count: u32,
    ) -> Result<Answer<(SignedHeader, Vec<ProvedRecord>)>, ClientError> {
        self.read(&Request::Range { first, count }, move |r| records(r, count)).await
    }

    /// Versions of a thing, oldest first, with proofs. A page may be shorter than asked for.
    pub async fn history(
        &self,
        id: RecordId,
        first_version: u64,
        count: u32,
    ) -> Result<Answer<(SignedHeader, Vec<ProvedRecord>)>, ClientError> {
        self.read(&Request::History { id, first_version, count }, move |r| records(r, count)).await
    }

    /// Searches. Nothing of it is proved.
    pub async fn query(
        &self,
        query: Query,
        after: Option<Cursor>,
        count: u32,
    ) -> Result<Answer<Page>, ClientError> {
        self.read(&Request::Query { query, after, count, prove: false }, move |response| match response {
            Response::Found(page) if page.records.len() <= count as usize => Ok(page),
            other => Err(other),
        })
        .await
    }

    /// Searches; each found thing comes with its proof against the page's tip. Nothing proves that all were
    /// found. A page has at most [`limits::PROVED_PER_PAGE`] things.
    pub async fn query_proved(
        &self,
        query: Query,
        after: Option<Cursor>,
        count: u32,
    ) -> Result<Answer<ProvedPage>, ClientError> {
        self.read(&Request::Query { query, after, count, prove: true }, move |response| match response {
            Response::FoundProved(page) if page.things.len() <= count as usize => Ok(*page),
            other => Err(other),
        })
        .await
    }

    /// Which of these are connected to the replica, in the order of the question.
    pub async fn presence(&self, keys: Vec<PublicKey>) -> Result<Answer<Vec<bool>>, ClientError> {
        let count = keys.len();
        self.read(&Request::Presence { keys }, move |response| match response {
            Response::Presence(present) if present.len() == count => Ok(present),
            other => Err(other),
        })
        .await
    }

    /// Asks the replica to vouch for our TPM, which opens the credential that it sends. Nothing of the voucher is
    /// checked here.
    ///
    /// # Errors
    /// [`ClientError::Failed`] with the replica's reason, [`ClientError::StreamEnded`] too when the TPM fails.
    pub async fn vouch<Opening>(
        &self,
        introduction: &Introduction,
        open: impl Fn(Credential) -> Opening,
    ) -> Result<SignedVoucher, ClientError>
    where
        Opening: Future<Output = Result<Vec<u8>, String>>,
    {
        stream::vouch(&self.links, introduction, open).await
    }

    /// Machines of a farm whose registration the replica saw refused lately.
    pub async fn refused(&self, farm: FarmId) -> Result<Answer<Vec<RefusedNode>>, ClientError> {
        self.read(&Request::Refused { farm }, |response| match response {
            Response::Refused(refused)
                if refused.len() <= limits::REFUSED_PER_FARM
                    && refused.iter().map(|one| one.node).is_sorted_by(|a, b| a < b) =>
            {
                Ok(refused)
            }
            other => Err(other),
        })
        .await
    }

    /// What the replica says of itself.
    pub async fn status(&self) -> Result<Answer<Status>, ClientError> {
        self.read(&Request::Status, |response| match response {
            Response::Status(status) => Ok(*status),
            other => Err(other),
        })
        .await
    }

    /// Which of these blobs the replica has, in the order of the question.
    pub async fn has_blobs(&self, hashes: Vec<Hash>) -> Result<Answer<Vec<bool>>, ClientError> {
        let count = hashes.len();
        self.read(&Request::HasBlobs { hashes }, move |response| match response {
            Response::Blobs(present) if present.len() == count => Ok(present),
            other => Err(other),
        })
        .await
    }

    /// A blob, with its hash checked: a replica that sends other bytes is set aside and the next is asked.
    ///
    /// # Errors
    /// [`ClientError::BlobTampered`] when nobody has the right bytes.
    pub async fn get_blob(&self, hash: Hash) -> Result<Vec<u8>, ClientError> {
        let request = Request::GetBlob { hash };
        let within = Duration::from_millis(BLOB_MS);
        for _ in 0..self.links.count() {
            let asked = self.ask(&request, limits::BLOB_BYTES + 64, within, |r| match r {
                Response::Blob(bytes) => Ok(bytes),
                other => Err(other),
            });
            let answer = asked.await?;
            if Hash::of_bytes(&answer.value) == hash {
                return Ok(answer.value);
            }
            let what = format!("it sent other bytes for blob {hash}");
            self.links.set_aside(&answer.replica, &what).await;
        }
        Err(ClientError::BlobTampered { hash })
    }

    /// Stores a blob at the replica; only known bots may.
    ///
    /// # Errors
    /// [`ClientError::Failed`] with the quota that is full.
    pub async fn put_blob(&self, bytes: Vec<u8>) -> Result<Hash, ClientError> {
        let expected = Hash::of_bytes(&bytes);
        let request = Request::PutBlob { bytes };
        let within = Duration::from_millis(BLOB_MS);
        let asked = self.ask(&request, limits::REQUEST_BYTES, within, |r| match r {
            Response::BlobStored { hash } if hash == expected => Ok(hash),
            other => Err(other),
        });
        asked.await.map(|answer| answer.value)
    }

    /// Leaves a sealed message at the replica, for a bot that takes no calls now; says until when it is kept.
    ///
    /// # Errors
    /// [`ClientError::Failed`] with the quota that is full, or that there is no such bot.
    pub async fn leave_mail(&self, to: PublicKey, sealed: Vec<u8>) -> Result<Answer<u64>, ClientError> {
        self.read(&Request::LeaveMail { to, sealed }, |response| match response {
            Response::MailLeft { expires_ms } => Ok(expires_ms),
            other => Err(other),
        })
        .await
    }

    /// Our own mail with numbers above one, oldest first, and whether there is more. Nothing of it is opened.
    pub async fn fetch_mail(&self, after: u64) -> Result<Answer<(Vec<Mail>, bool)>, ClientError> {
        self.read(&Request::FetchMail { after }, move |response| match response {
            Response::Mail { mail, more }
                if mail.iter().map(|mail| mail.number).is_sorted_by(|a, b| a < b)
                    && mail.first().is_none_or(|first| first.number > after)
                    && !(more && mail.is_empty()) =>
            {
                Ok((mail, more))
            }
            other => Err(other),
        })
        .await
    }

    /// Tells the replica that we have some of our mail; says how much of it was there.
    pub async fn drop_mail(&self, mail: Vec<Hash>) -> Result<Answer<u32>, ClientError> {
        self.read(&Request::DropMail { mail }, |response| match response {
            Response::MailDropped { count } => Ok(count),
            other => Err(other),
        })
        .await
    }

    /// Final headers from now on, with the records that concern some things. The first event is the tip
    /// without records: what is read after it misses nothing. When it ends, follow again and read again.
    pub async fn follow(&self, concerning: Vec<Concern>) -> Result<Follow, ClientError> {
        stream::follow(&self.links, concerning).await
    }

    /// From now on, whoever calls us through a replica comes out here. It reconnects by itself until it is
    /// dropped.
    #[must_use]
    pub fn listen(&self) -> Listener {
        self.listen_for(Service::Calls)
    }

    /// The same for calls of one kind. A client listens for one kind only.
    #[must_use]
    pub fn listen_for(&self, service: Service) -> Listener {
        Listener::start(self.links.clone(), service)
    }

    /// A pipe to whoever listens under this key; nothing is known yet of who that is.
    ///
    /// # Errors
    /// [`Failure::NotListening`] in [`ClientError::Failed`] when the peer is offline.
    pub async fn relay(&self, to: PublicKey) -> Result<Answer<RelayStream>, ClientError> {
        stream::relay(&self.links, to, Service::Calls).await
    }

    /// TLS with whoever holds this key, through a replica that can't read it.
    ///
    /// # Errors
    /// As [`Self::relay`]; [`ClientError::Peer`] when the other end is somebody else.
    pub async fn peer(&self, to: PublicKey) -> Result<PeerStream, ClientError> {
        self.peer_for(to, Service::Calls).await
    }

    /// The same with whoever takes calls of this kind.
    ///
    /// # Errors
    /// As [`Self::peer`].
    pub async fn peer_for(&self, to: PublicKey, service: Service) -> Result<PeerStream, ClientError> {
        let Answer { value, replica } = stream::relay(&self.links, to, service).await?;
        peer_connect(value, self.links.secret(), to).await.map_err(|source| ClientError::Peer {
            peer: to,
            replica,
            source: Box::new(source),
        })
    }

    async fn read<T>(
        &self,
        request: &Request,
        pick: impl Fn(Response) -> Result<T, Response>,
    ) -> Result<Answer<T>, ClientError> {
        self.ask(request, limits::RESPONSE_BYTES, Duration::from_millis(READ_MS), pick).await
    }

    /// Asks, and asks again elsewhere while that is safe. `pick` hands back a response of the wrong kind.
    async fn ask<T>(
        &self,
        request: &Request,
        limit: usize,
        within: Duration,
        pick: impl Fn(Response) -> Result<T, Response>,
    ) -> Result<Answer<T>, ClientError> {
        let mut last = None;
        // Once more than there are replicas: a connection may have died without our knowing.
        for _ in 0..=self.links.count() {
            let link = match self.links.get().await {
                Ok(link) => link,
                Err(error) => return Err(last.unwrap_or(error)),
            };
            let replica = link.replica();
            match frame::request(link.connection(), request, limit, within).await {
                Ok(Response::Failed(failure)) if is_passing(&failure) => {
                    self.links.drop_link(&link, Verdict::Busy, failure.to_string()).await;
                    last = Some(ClientError::Failed { replica, failure });
                }
                Ok(Response::Failed(failure)) => return Err(ClientError::Failed { replica, failure }),
                Ok(response) => {
                    if let Ok(value) = pick(response) {
                        self.links.praise(&link).await;
                        return Ok(Answer { value, replica });
                    }
                    self.links.set_aside(&replica, "it answered something else than was asked").await;
                }
                Err(error @ Exchange::Unanswered(_)) if matches!(request, Request::Submit(_)) => {
                    self.links.drop_link(&link, Verdict::Down, chain(&error)).await;
                    return Err(ClientError::OutcomeUnknown { replica, source: Box::new(error) });
                }
                Err(error) => self.links.drop_link(&link, Verdict::Down, chain(&error)).await,
            }
        }
        match last {
            Some(error) => Err(error),
            None => Err(ClientError::Unavailable { problems: self.links.problems().await }),
        }
    }
}

/// Whether another replica, or the same one later, may well answer.
fn is_passing(failure: &Failure) -> bool {
    matches!(failure, Failure::Busy { .. } | Failure::Storage { .. })
}

fn header(response: Response) -> Result<SignedHeader, Response> {
    match response {
        Response::Header(header) => Ok(*header),
        other => Err(other),
    }
}

fn records(response: Response, count: u32) -> Result<(SignedHeader, Vec<ProvedRecord>), Response> {
    match response {
        Response::Records { tip, records } if records.len() <= count as usize => Ok((*tip, records)),
        other => Err(other),
    }
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
