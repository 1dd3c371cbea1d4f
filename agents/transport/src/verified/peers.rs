//! Peers behind the replicas: calls come in over every connected replica, and go out over whichever has the peer.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use croft_protocol::PublicKey;
use croft_protocol::api::{Failure, Service};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::members::Member;
use super::{Inner, Miss, Verified, VerifiedError};
use crate::client::{ClientError, Relayed};
use crate::relay::PeerStream;

/// Calls that nobody has picked up yet, over all replicas.
const WAITING_CALLS: usize = 16;

/// Where calls come in, over every connected replica. Dropping it stops listening.
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
    /// The next call. Waits for as long as it takes, through lost connections.
    pub async fn accept(&mut self) -> Option<Relayed> {
        self.calls.recv().await
    }
}

/// Ends with what holds it.
struct Ear(JoinHandle<()>);

impl Drop for Ear {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Verified {
    /// From now on, whoever calls us through any connected replica comes out here.
    #[must_use]
    pub fn listen(&self) -> Listener {
        self.listen_for(Service::Calls)
    }

    /// The same for calls of one kind; one kind for each `Verified`.
    #[must_use]
    pub fn listen_for(&self, service: Service) -> Listener {
        self.tend();
        let (sender, calls) = mpsc::channel(WAITING_CALLS);
        Listener { calls, task: tokio::spawn(listen(Arc::downgrade(&self.inner), service, sender)) }
    }

    /// TLS with whoever holds this key, through a replica that can't read it: each replica is tried until one has
    /// the peer, also those that we are not connected to.
    ///
    /// # Errors
    /// [`Failure::NotListening`] in [`ClientError::Failed`] when no replica has the peer; [`ClientError::Peer`] when
    /// somebody else answers.
    pub async fn peer(&self, to: PublicKey) -> Result<PeerStream, VerifiedError> {
        self.peer_for(to, Service::Calls).await
    }

    /// The same with whoever takes calls of this kind.
    ///
    /// # Errors
    /// As [`Self::peer`].
    pub async fn peer_for(&self, to: PublicKey, service: Service) -> Result<PeerStream, VerifiedError> {
        // A bot is known by its first key and shows its present one.
        let key = self.present_key(to).await?;
        let call = |member: Arc<Member>| async move {
            match member.client().peer_for(key, service).await {
                Err(error @ ClientError::Failed { failure: Failure::NotListening { .. }, .. }) => {
                    Ok(Err(error))
                }
                called => called.map(Ok).map_err(Miss::of_client),
            }
        };
        // That the peer is not there is no fault of a replica: the next one is asked without holding it against it.
        let mut absent = None;
        let mut other = None;
        for member in self.inner.members.order() {
            match self.single(member, call).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => absent = Some(error),
                Err(error) => other = Some(error),
            }
        }
        match (absent, other) {
            (_, Some(error @ VerifiedError::Client(ClientError::Peer { .. }))) | (None, Some(error)) => {
                Err(error)
            }
            (Some(error), _) => Err(error.into()),
            (None, None) => Err(self.unavailable()),
        }
    }

    /// One replica, with what its failure means for it.
    pub(super) async fn single<T, Run>(
        &self,
        member: Arc<Member>,
        run: impl Fn(Arc<Member>) -> Run,
    ) -> Result<T, VerifiedError>
    where
        Run: Future<Output = Result<T, Miss>>,
    {
        self.tend();
        self.check_halted()?;
        match run(member.clone()).await {
            Ok(value) => Ok(value),
            Err(Miss::Final(error)) => Err(error),
            Err(Miss::Elsewhere(error) | Miss::Behind(error)) => {
                if !matches!(error, VerifiedError::Client(ClientError::Peer { .. })) {
                    member.failed(&crate::client::chain(&error));
                }
                Err(error)
            }
        }
    }
}

async fn listen(inner: Weak<Inner>, service: Service, calls: mpsc::Sender<Relayed>) {
    let Some(mut active) = inner.upgrade().map(|inner| inner.members.watch_active()) else { return };
    let mut ears: BTreeMap<usize, Ear> = BTreeMap::new();
    loop {
        {
            let Some(inner) = inner.upgrade() else { return };
            let now = active.borrow_and_update().clone();
            ears.retain(|index, _| now.contains(index));
            for index in now {
                ears.entry(index).or_insert_with(|| {
                    let (mut at, calls) =
                        (inner.members.get(index).client().listen_for(service), calls.clone());
                    Ear(tokio::spawn(async move {
                        while let Some(call) = at.accept().await {
                            // Hangs up when nobody picks up.
                            let _ = calls.try_send(call);
                        }
                    }))
                });
            }
        }
        if active.changed().await.is_err() {
            return;
        }
    }
}
