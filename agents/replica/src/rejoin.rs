//! Makes a replica fit to sign again whose consensus log is lost or damaged.
//!
//! ```text
//!   ledger here ─┐
//!   tips of peers┴─> the highest height that was begun ──> old log set aside, new log that signs above it
//! ```
//! The lost log may have held votes for the height after the tip, or for a later one where the ledger too comes from
//! an old copy. So the new log signs nothing up to there: others decide those heights, and from the next one on this
//! replica takes part. It must never touch a ledger that is in use.

use std::path::PathBuf;
use std::time::Duration;

use croft_protocol::{PublicKey, SignedHeader};
use croft_transport::Client;

use crate::ReplicaConfig;
use crate::ordering::bft::log::{self, Log, LogError};
use crate::store::{FileDisk, OpenError, Store};

/// For one peer to say how far it is.
const ANSWER: Duration = Duration::from_secs(10);

/// Why there is no new log.
#[derive(Debug, thiserror::Error)]
pub enum RejoinError {
    #[error(
        "this replica orders alone, so it has no consensus log: list the others under [[peers]] in replica.toml"
    )]
    Alone,
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the consensus log is whole: there is nothing to mend; start the replica")]
    Whole,
    #[error(
        "no other replica could be asked how far the grid is ({reason}): start some of them, then run this again"
    )]
    NobodyAnswers { reason: String },
    #[error("can't set {path} aside: check that the folder may be written")]
    SetAside { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejoined {
    /// Height of the ledger here.
    pub tip: u64,
    /// Nothing up to this height will be signed.
    pub sign_above: u64,
    /// Where the old log is now, if there was one.
    pub set_aside: Option<PathBuf>,
    /// The replicas that said how far they are.
    pub asked: Vec<PublicKey>,
}

/// Replaces a lost or damaged consensus log.
///
/// # Errors
/// [`RejoinError`]; then nothing was changed.
pub async fn rejoin(config: &ReplicaConfig) -> Result<Rejoined, RejoinError> {
    if config.peers.is_empty() {
        return Err(RejoinError::Alone);
    }
    // Held until the end: nobody else may work on it meanwhile.
    let store = Store::open(&config.dir, &config.genesis)?;
    let path = log::path(&config.dir);
    let opened = FileDisk::open_existing(&path).map_err(LogError::from);
    if opened.and_then(|disk| Log::open(&disk, store.chain())).is_ok() {
        return Err(RejoinError::Whole);
    }
    let tip = store.latest().height();
    let (mut highest, mut asked, mut reason) = (tip, Vec::new(), String::new());
    for peer in &config.peers {
        match ask(config, peer).await {
            Ok(header) => {
                highest = highest.max(header.header.height);
                asked.push(peer.key);
            }
            Err(error) => reason = error,
        }
    }
    if asked.is_empty() {
        return Err(RejoinError::NobodyAnswers { reason });
    }
    let set_aside = path.exists().then(|| log::path(&config.dir).with_extension(format!("damaged-at-{tip}")));
    if let Some(aside) = &set_aside {
        std::fs::rename(&path, aside)
            .map_err(|source| RejoinError::SetAside { path: path.clone(), source })?;
    }
    let sign_above = highest + 1;
    drop(Log::create(&FileDisk::create(&path)?, store.chain(), sign_above)?);
    Ok(Rejoined { tip, sign_above, set_aside, asked })
}

/// The newest header of another replica, certified by the validators that it names.
async fn ask(
    config: &ReplicaConfig,
    peer: &croft_protocol::boot::ReplicaAddress,
) -> Result<SignedHeader, String> {
    let client = Client::new(&config.key, vec![peer.clone()]).map_err(|e| crate::chain_of(&e))?;
    let answer = tokio::time::timeout(ANSWER, client.tip()).await;
    client.close().await;
    let header = answer.map_err(|_| format!("{} does not answer", peer.address))?;
    let header = header.map_err(|e| crate::chain_of(&e))?.value;
    if header.header.chain != config.genesis.chain_id() {
        return Err(format!("{} is on another chain", peer.address));
    }
    // A height that nobody certified must not keep us from signing for ever.
    croft_light::verify_certificate(&header).map_err(|e| e.to_string())?;
    Ok(header)
}
