//! Requests that have one answer.

use std::sync::{Arc, PoisonError};

use croft_protocol::api::{
    Cursor, Failure, Page, ProvedPage, ProvedRecord, Query, Request, Response, Status,
};
use croft_protocol::{Hash, PublicKey, Rejection, SignedCommand, StateKey, limits};
use tokio::time::Instant;

use super::Server;
use super::refusals::Attempt;
use crate::ordering::Verdict;
use crate::store::{Found, SearchError, Snapshot, StoreError};

/// Blobs that one question may be about: what fits into a request.
const HASHES_PER_QUESTION: usize = 4_000;

/// A ledger that can't be read, as its clients hear of it.
pub(super) fn failed(error: StoreError) -> Failure {
    tracing::error!(cause = crate::chain_of(&error), "the ledger can't be read");
    Failure::Storage { reason: crate::chain_of(&error) }
}

pub(super) fn at_most(what: &str, got: usize, limit: usize) -> Result<(), Failure> {
    if got <= limit {
        return Ok(());
    }
    Err(Failure::TooMuch { what: what.to_owned(), got: got as u64, limit: limit as u64 })
}

/// Only those may store blobs whom the ledger knows: a stranger could make keys without end.
pub(super) async fn check_may_put(server: &Server, key: PublicKey) -> Result<(), Failure> {
    if server.is_bot(key).await? {
        return Ok(());
    }
    Err(Failure::Quota {
        what: format!("{key} is no bot on this grid and may not store blobs"),
        remedy: "create it first with 'croft bot new'".to_owned(),
    })
}

impl Server {
    pub(crate) async fn answer(&self, peer: PublicKey, request: Request) -> Response {
        self.try_answer(peer, request).await.unwrap_or_else(Response::Failed)
    }

    async fn try_answer(&self, key: PublicKey, request: Request) -> Result<Response, Failure> {
        // What belongs to a bot stays its own when its key is replaced; what everybody may read needs no name.
        let peer = match request {
            Request::PutBlob { .. }
            | Request::LeaveMail { .. }
            | Request::FetchMail { .. }
            | Request::DropMail { .. } => self.identity(key).await?,
            _ => key,
        };
        match request {
            Request::Genesis => Ok(Response::Genesis(Box::new(self.chain.latest().genesis().clone()))),
            Request::Tip => Ok(Response::Header(Box::new(self.chain.latest().tip().clone()))),
            Request::Header { height } => self.header(height).await,
            Request::Handover { validators } => self.handover(validators).await,
            Request::Submit(command) => self.submit(*command).await,
            Request::Get { keys } => self.get(keys).await,
            Request::Range { first, count } => {
                self.records(count, move |snapshot, count| snapshot.range(first, count)).await
            }
            Request::History { id, first_version, count } => {
                self.records(count, move |s, count| s.history(&id, first_version, count)).await
            }
            Request::Query { query, after, count, prove } => self.query(query, after, count, prove).await,
            Request::HasBlobs { hashes } => {
                at_most("blobs", hashes.len(), HASHES_PER_QUESTION)?;
                let blobs = self.blobs.clone();
                self.blocking(move || Ok(Response::Blobs(blobs.has(&hashes)))).await
            }
            Request::GetBlob { hash } => {
                let blobs = self.blobs.clone();
                self.blocking(move || blobs.get(&hash)).await.map(Response::Blob)
            }
            Request::PutBlob { bytes } => {
                check_may_put(self, peer).await?;
                let blobs = self.blobs.clone();
                let hash = self.blocking(move || blobs.put(peer, &bytes)).await?;
                Ok(Response::BlobStored { hash })
            }
            Request::Presence { keys } => {
                at_most("keys", keys.len(), limits::KEYS_PER_GET)?;
                let present = keys.iter().map(|key| self.presence.is_connected(key));
                Ok(Response::Presence(present.collect()))
            }
            Request::Status => self.status().await,
            Request::Refused { farm } => Ok(self.refused(farm)),
            Request::LeaveMail { to, sealed } => self.leave_mail(peer, to, sealed).await,
            Request::FetchMail { after } => self.fetch_mail(peer, after).await,
            Request::DropMail { mail } => self.drop_mail(peer, mail).await,
            Request::SnapshotOpen => self.open_snapshot(peer).await,
            Request::SnapshotValues { id, after } => self.snapshot_values(peer, id, after).await,
            Request::SnapshotRecords { first, size } => self.snapshot_records(peer, first, size).await,
            Request::Follow { .. }
            | Request::Listen
            | Request::ListenFor { .. }
            | Request::Relay { .. }
            | Request::RelayTo { .. }
            | Request::Replicate { .. }
            | Request::Vouch(_) => {
                Err(Failure::Malformed { reason: "this request has no single answer".to_owned() })
            }
        }
    }

    async fn header(&self, height: u64) -> Result<Response, Failure> {
        let snapshot = self.chain.latest();
        let base = snapshot.base();
        let header = self.blocking(move || snapshot.header(height).map_err(failed)).await?;
        let header = header.ok_or_else(|| {
            let what = match base {
                base if height < base => format!("header {height}, the earliest is {base},"),
                _ => format!("header {height}"),
            };
            Failure::NotFound { what }
        })?;
        Ok(Response::Header(Box::new(header)))
    }

    async fn handover(&self, validators: Hash) -> Result<Response, Failure> {
        let snapshot = self.chain.latest();
        let header = self.blocking(move || snapshot.handover(&validators).map_err(failed)).await?;
        let header = header.ok_or_else(|| Failure::NotFound {
            what: format!(
                "handover by validators {validators}: they are the present ones, or never were any here"
            ),
        })?;
        Ok(Response::Header(Box::new(header)))
    }

    /// Checks what is cheap, then waits until the command is final or rejected.
    async fn submit(&self, command: SignedCommand) -> Result<Response, Failure> {
        let verdict = match self.gate.look_at(command).await? {
            Err(rejection) => Verdict::Rejected(rejection),
            Ok(command) => match self.take_turn(command.body.author) {
                Err(rejection) => Verdict::Rejected(rejection),
                Ok(()) => self.order(command).await,
            },
        };
        match verdict {
            Verdict::Final { height, records } => Ok(Response::Final { height, records }),
            Verdict::Rejected(rejection) => Ok(Response::Rejected(rejection)),
            Verdict::Failed(failure) => Err(failure),
        }
    }

    /// Counts a command that its author has signed: nobody else can use up what he may bring.
    fn take_turn(&self, author: PublicKey) -> Result<(), Rejection> {
        let mut authors = self.authors.lock().unwrap_or_else(PoisonError::into_inner);
        authors.take(author, 1, Instant::now()).map_err(|wait| Rejection::RateLimited {
            author,
            per_minute: self.commands_per_minute,
            // Rounded up: too early would be refused again.
            retry_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1),
        })
    }

    async fn order(&self, command: SignedCommand) -> Verdict {
        let registers = Attempt::of(&command);
        let verdict = match self.ordering.enqueue(command) {
            Err(verdict) => verdict,
            Ok(receiver) => receiver
                .await
                .unwrap_or_else(|_| Verdict::Failed(Failure::Busy { what: "it is stopping".to_owned() })),
        };
        if let Some(attempt) = registers {
            self.note(attempt, &verdict).await;
        }
        verdict
    }

    async fn get(&self, keys: Vec<StateKey>) -> Result<Response, Failure> {
        at_most("keys", keys.len(), limits::KEYS_PER_GET)?;
        let snapshot = self.chain.latest();
        self.blocking(move || {
            let mut values = Vec::with_capacity(keys.len());
            let mut bytes = 0;
            for key in &keys {
                let proved = snapshot.prove(key).map_err(failed)?;
                bytes += proved.value.as_ref().map_or(0, Vec::len) + proved.proof.len();
                // Before the next one is read: a page of the largest contracts would be 24 MiB.
                at_most("bytes in one answer", bytes, limits::RESPONSE_BYTES)?;
                values.push(proved);
            }
            Ok(Response::Values { tip: Box::new(snapshot.tip().clone()), values })
        })
        .await
    }

    async fn records(
        &self,
        count: u32,
        read: impl FnOnce(&Snapshot, usize) -> Result<Vec<ProvedRecord>, StoreError> + Send + 'static,
    ) -> Result<Response, Failure> {
        at_most("records", count as usize, limits::RECORDS_PER_PAGE)?;
        let snapshot = self.chain.latest();
        self.blocking(move || {
            let records = read(&snapshot, count as usize).map_err(failed)?;
            Ok(Response::Records { tip: Box::new(snapshot.tip().clone()), records })
        })
        .await
    }

    async fn query(
        &self,
        query: Query,
        after: Option<Cursor>,
        count: u32,
        prove: bool,
    ) -> Result<Response, Failure> {
        at_most("records", count as usize, limits::RECORDS_PER_PAGE)?;
        query.check().map_err(|error| Failure::Malformed { reason: error.to_string() })?;
        let refused = |error: SearchError| match error {
            SearchError::Cursor { reason } => Failure::Cursor { reason: reason.to_owned() },
            SearchError::Store(error) => failed(error),
        };
        let snapshot = self.chain.latest();
        self.blocking(move || {
            let (after, count) = (after.as_ref(), count as usize);
            if prove {
                let Found { things, next, .. } =
                    snapshot.query_proved(&query, after, count).map_err(refused)?;
                let page = ProvedPage { tip: snapshot.tip().clone(), things, next };
                return Ok(Response::FoundProved(Box::new(page)));
            }
            let Found { things, next, .. } = snapshot.query(&query, after, count).map_err(refused)?;
            Ok(Response::Found(Page { height: snapshot.height(), records: things, next }))
        })
        .await
    }

    async fn status(&self) -> Result<Response, Failure> {
        let snapshot: Arc<Snapshot> = self.chain.latest();
        let read = snapshot.clone();
        let kept = self.blocking(move || read.kept().map_err(failed)).await?;
        let signed = snapshot.tip();
        Ok(Response::Status(Box::new(Status {
            name: snapshot.genesis().name.clone(),
            chain: signed.header.chain,
            height: signed.header.height,
            time_ms: signed.header.time_ms,
            records: signed.header.log_size,
            validators: signed.validators.clone(),
            connections: u32::try_from(self.presence.connections()).unwrap_or(u32::MAX),
            waiting: self.ordering.waiting(),
            blob_bytes: self.blobs.total_bytes(),
            kept,
            agreement: self.ordering.agreement(),
        })))
    }
}
