//! A running replica: opens what it needs, starts what runs, and stops it in order.
//!
//! ```text
//!   ReplicaConfig ──start──> Running ──stop──> everything closed, the address free again
//!                              └─ ended: by a fault of ours
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use croft_protocol::boot::ReplicaAddress;
use croft_protocol::{Genesis, PublicKey, SecretKey};
use croft_transport::{BindError, Endpoint};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::blobs::{BlobQuotas, Blobs};
use crate::chain::Chain;
use crate::mail::Mailboxes;
use crate::ordering::bft::log::{self, Log, LogError};
use crate::ordering::bft::{Bft, BftError, Plan};
use crate::ordering::solo::{NotAlone, Solo};
use crate::ordering::{Ordering, wall_clock};
use crate::pruning;
use crate::server::{Intake, Server};
use crate::store::{FileDisk, Keep, OpenError, Store};

/// How long requests under way may take to end when the replica stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// All that a replica is told.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// Where the ledger and the blobs are.
    pub dir: PathBuf,
    /// UDP address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The replica's identity; in solo ordering the validator's key.
    pub key: SecretKey,
    pub genesis: Genesis,
    pub blobs: BlobQuotas,
    /// Commands that one author may bring in a minute.
    pub commands_per_minute: u64,
    /// Root certificates of TPMs' makers, DER: whose TPMs this replica vouches for as genuine.
    pub makers: Vec<Vec<u8>>,
    /// How much of the past is kept.
    pub keep: Keep,
    /// Who may copy the ledger beside the validators.
    pub observers: Vec<PublicKey>,
    /// The other replicas, validators or not, with which this one decides. Without any it orders alone.
    pub peers: Vec<ReplicaAddress>,
}

/// How this replica makes blocks.
#[derive(Debug)]
enum Order {
    Solo(Arc<Solo>),
    Bft(Arc<Bft>),
}

impl Order {
    fn shared(&self) -> Arc<dyn Ordering> {
        match self {
            Self::Solo(solo) => solo.clone(),
            Self::Bft(bft) => bft.clone(),
        }
    }

    async fn stop(&self) {
        match self {
            Self::Solo(solo) => solo.stop().await,
            Self::Bft(bft) => bft.stop().await,
        }
    }

    async fn ended(&self) {
        match self {
            Self::Solo(solo) => solo.ended().await,
            Self::Bft(bft) => bft.ended().await,
        }
    }
}

/// Why a replica does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    NotAlone(#[from] NotAlone),
    #[error(transparent)]
    Bft(#[from] BftError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("can't use the blobs in {path}: check that the folder may be written")]
    Blobs { path: PathBuf, source: std::io::Error },
    #[error(
        "can't use the mailboxes in {path}: check that it may be written; if it is damaged, move it away, and the mail in \
         it is lost"
    )]
    Mail { path: PathBuf, source: crate::store::StoreError },
    #[error("the socket has no address")]
    Address(#[source] std::io::Error),
}

/// Starts replicas.
#[derive(Debug)]
pub struct Replica;

impl Replica {
    /// Opens the ledger, starts making blocks and answers requests, until [`Running::stop`].
    ///
    /// # Errors
    /// [`StartError`] names the file, address or key, and what to do.
    pub async fn start(config: ReplicaConfig) -> Result<Running, StartError> {
        let ReplicaConfig { dir, listen, key, genesis, blobs: quotas, keep, observers, peers, .. } = config;
        let (commands_per_minute, makers) = (config.commands_per_minute, config.makers);
        // They are asked for blocks, so they may ask for all of them.
        let copiers = observers.into_iter().chain(peers.iter().map(|peer| peer.key)).collect();
        let path = dir.join("blobs");
        let opened = tokio::task::spawn_blocking({
            let (path, dir) = (path.clone(), dir.clone());
            move || -> Result<_, StartError> {
                let store = Store::open(&dir, &genesis)?;
                let blobs =
                    Blobs::open(path.clone(), quotas).map_err(|source| StartError::Blobs { path, source })?;
                let mail = Mailboxes::open(&dir)
                    .map_err(|source| StartError::Mail { path: Mailboxes::path(&dir), source })?;
                Ok((store, blobs, mail, genesis))
            }
        });
        let (store, blobs, mail, genesis) = opened.await.map_err(|error| OpenError::Damaged {
            path,
            reason: format!("reading it failed in an unforeseen way: {error}"),
        })??;
        let endpoint = Endpoint::server(&key, listen)?;
        let address = endpoint.local_address().map_err(StartError::Address)?;
        let chain = Arc::new(Chain::new(store));
        let order = if peers.is_empty() {
            Order::Solo(Arc::new(Solo::start(chain.clone(), key.clone(), wall_clock())?))
        } else {
            let log = open_log(&dir, &chain);
            let plan = Plan {
                chain: chain.clone(),
                log,
                key: key.clone(),
                peers,
                clock: wall_clock(),
                dir: dir.clone(),
            };
            Order::Bft(Arc::new(Bft::start(plan, endpoint.clone())?))
        };
        let intake = Intake { observers: copiers, commands_per_minute, key: key.clone(), makers };
        let server = Server::new(chain.clone(), order.shared(), (Arc::new(blobs), Arc::new(mail)), intake);
        let serving = tokio::spawn(server.run(endpoint.clone()));
        let pruning = pruning::start(chain.clone(), order.shared(), keep);
        let height = chain.latest().height();
        tracing::info!(%address, grid = %genesis.name, height, key = %key.public(), "replica serves");
        Ok(Running { address, key: key.public(), genesis, endpoint: Some(endpoint), order, serving, pruning })
    }
}

/// The consensus log of a validator. A ledger that was always ordered alone has none yet, and signed no votes.
fn open_log(dir: &Path, chain: &Chain) -> Result<Log, LogError> {
    let (path, tip) = (log::path(dir), chain.latest());
    let first = tip.tip().validators.validators.len() == 1 && !path.exists();
    if first {
        return Log::create(&FileDisk::create(&path)?, chain.store().chain(), tip.height());
    }
    Log::open(&FileDisk::open_existing(&path)?, chain.store().chain())
}

/// A replica that serves. Dropping it stops it without waiting; better call [`Self::stop`].
#[derive(Debug)]
#[must_use = "dropping it stops the replica"]
pub struct Running {
    address: SocketAddr,
    key: PublicKey,
    genesis: Genesis,
    /// `None` only while it stops.
    endpoint: Option<Endpoint>,
    order: Order,
    serving: JoinHandle<()>,
    pruning: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.pruning.abort();
        self.serving.abort();
    }
}

impl Running {
    /// Where it listens: the configured address with the real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.key
    }

    #[must_use]
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Address and key as clients pin them. The address is the one it listens on, which for `0.0.0.0` is not
    /// one to connect to from elsewhere.
    #[must_use]
    pub fn pin(&self) -> ReplicaAddress {
        ReplicaAddress { address: self.address, key: self.key }
    }

    /// Waits until it serves no more by a fault of its own.
    pub async fn ended(&mut self) {
        tokio::select! {
            () = self.order.ended() => {}
            _ = &mut self.serving => {}
        }
    }

    /// Finishes the block under way, tells everybody, closes the ledger and frees the address.
    pub async fn stop(mut self) {
        self.order.stop().await;
        // A slice that is under way ends by itself; it lets go of the ledger as `serving` does.
        self.pruning.abort();
        let _ = (&mut self.pruning).await;
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.close("the replica stops").await;
            // It ends by itself once its connections are closed, and lets go of the ledger.
            let _ = timeout(STOP_TIME, &mut self.serving).await;
            self.serving.abort();
            endpoint.shut_down("the replica stops").await;
        }
        tracing::info!(address = %self.address, "replica stopped");
    }
}
