//! The ledger as this node sees it: every answer is proved before anybody here acts on it.
//!
//! ```text
//! transport::Client ── answer ──> light::LightClient ── proved value ──> node
//!        ▲                              │ no proof, old, contradicts: set the replica aside, ask the next
//!        └──────────────────────────────┘
//! ```
//! It must never hand out a value without a proof, nor accept a header older than one it has seen, in this boot or
//! an earlier one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use croft_light::{LightClient, LightError, Tip};
use croft_protocol::api::ProvedValue;
use croft_protocol::state::Account;
use croft_protocol::{
    ChainId, Command, CommandBody, DecodeError, Hash, PublicKey, Rejection, SecretKey, SignedCommand,
    SignedHeader, StateKey, limits,
};
use croft_transport::{Client, ClientError};
use tokio::sync::Mutex;

use crate::time::Time;

/// Blocks within which a command of ours is carried or void.
const EXPIRES_BLOCKS: u64 = 200;
/// Answers that don't prove what they say, until we give up for now.
const TRIES: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("replica {} gives no proof: {source}", replica.short())]
    Unproved { replica: PublicKey, source: LightError },
    #[error("{what} on the ledger can't be read: update this node's image")]
    Malformed { what: &'static str, source: DecodeError },
}

impl LedgerError {
    /// The ledger's own no, if it is one.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Client(ClientError::Rejected { rejection, .. }) => Some(rejection),
            _ => None,
        }
    }
}

/// A proved view of the ledger, and a voice on it.
pub struct Ledger {
    client: Client,
    light: Mutex<LightClient>,
    chain: ChainId,
    key: SecretKey,
    time: Arc<Time>,
    /// Where the newest header is kept over boots.
    tip_file: PathBuf,
    /// One command at a time, so that sequence numbers don't race.
    submitting: Mutex<()>,
}

impl Ledger {
    /// A view that trusts one chain and one validator set, and remembers its newest header in `tip_file`.
    #[must_use]
    pub fn new(
        client: Client,
        chain: ChainId,
        validators: Hash,
        key: SecretKey,
        time: Arc<Time>,
        tip_file: PathBuf,
    ) -> Self {
        let mut light = LightClient::new(chain, validators);
        // What an earlier boot saw binds this one; its age does not matter.
        let kept = std::fs::read(&tip_file).ok();
        let kept = kept.and_then(|bytes| croft_protocol::decode("tip", &bytes, limits::RESPONSE_BYTES).ok());
        if let Some(tip) = kept
            && let Err(error) = light.accept_tip(&tip, None)
        {
            tracing::warn!(%error, "the header of an earlier boot does not belong to this grid: ignored");
        }
        Self { client, light: Mutex::new(light), chain, key, time, tip_file, submitting: Mutex::new(()) }
    }

    #[must_use]
    pub fn chain(&self) -> &ChainId {
        &self.chain
    }

    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Checks a final header, remembers it, and bounds the clock by it.
    ///
    /// # Errors
    /// [`LedgerError::Unproved`]; the replica is set aside.
    pub async fn accept(&self, header: &SignedHeader, replica: PublicKey) -> Result<u64, LedgerError> {
        let mut light = self.light.lock().await;
        let result = light.accept_tip(header, self.time.trusted_ms());
        drop(light);
        match result {
            Ok(_) => {
                self.time.saw_header(header.header.time_ms);
                self.remember(header);
                Ok(header.header.height)
            }
            Err(source) => {
                self.client.report_lie(&replica, &source.to_string()).await;
                Err(LedgerError::Unproved { replica, source })
            }
        }
    }

    /// Keeps the newest header for the next boot. A disk that is full costs only that.
    fn remember(&self, header: &SignedHeader) {
        let temporary = self.tip_file.with_extension("new");
        let written = std::fs::write(&temporary, croft_protocol::encode(header))
            .and_then(|()| std::fs::rename(&temporary, &self.tip_file));
        if let Err(error) = written {
            tracing::debug!(%error, "can't keep the newest header");
        }
    }

    /// The newest final header, verified. Returns its height and time.
    ///
    /// # Errors
    /// [`LedgerError`] when no replica has one that this node accepts.
    pub async fn tip(&self) -> Result<(u64, u64), LedgerError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let answer = self.client.tip().await?;
            match self.accept(&answer.value, answer.replica).await {
                Ok(height) => return Ok((height, answer.value.header.time_ms)),
                Err(error) if tries >= TRIES => return Err(error),
                Err(error) => tracing::warn!(error = %chain_of(&error), "asking another replica"),
            }
        }
    }

    /// Values of the state map, each proved present or absent. Returns the height that they are of.
    ///
    /// # Errors
    /// [`LedgerError`] when no replica gives proofs.
    pub async fn read(&self, keys: Vec<StateKey>) -> Result<(u64, Vec<Option<Vec<u8>>>), LedgerError> {
        self.prove(keys.clone(), |tip, proved| {
            let values =
                keys.iter().zip(proved).map(|(key, value)| croft_light::verify_value(tip, key, value));
            Ok((tip.height(), values.collect::<Result<_, _>>()?))
        })
        .await
    }

    /// Asks for values with their proofs until `check` accepts a replica's answer; a replica whose answer proves
    /// nothing is set aside.
    ///
    /// # Errors
    /// [`LedgerError`] when no replica gives proofs.
    pub async fn prove<T>(
        &self,
        keys: Vec<StateKey>,
        check: impl Fn(&Tip, &[ProvedValue]) -> Result<T, LightError>,
    ) -> Result<T, LedgerError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let answer = self.client.get(keys.clone()).await?;
            let ((header, proved), replica) = (answer.value, answer.replica);
            let tip = self.light.lock().await.accept_tip(&header, self.time.trusted_ms());
            match tip.and_then(|tip| check(&tip, &proved)) {
                Ok(value) => {
                    self.time.saw_header(header.header.time_ms);
                    return Ok(value);
                }
                Err(source) => {
                    self.client.report_lie(&replica, &source.to_string()).await;
                    let error = LedgerError::Unproved { replica, source };
                    if tries >= TRIES {
                        return Err(error);
                    }
                    tracing::warn!(error = %chain_of(&error), "asking another replica");
                }
            }
        }
    }

    /// Signs a command with the node's key and waits until it is final. Returns its height.
    ///
    /// # Errors
    /// [`LedgerError::Client`] with the ledger's rejection, or without an answer.
    pub async fn submit(&self, command: Command) -> Result<u64, LedgerError> {
        let _one_at_a_time = self.submitting.lock().await;
        let mut retried = false;
        loop {
            let author = self.key.public();
            let (height, values) = self.read(vec![StateKey::Account(author)]).await?;
            let account: Account = match &values[0] {
                Some(bytes) => croft_protocol::decode("account", bytes, limits::RECORD_BYTES)
                    .map_err(|source| LedgerError::Malformed { what: "the node's account", source })?,
                None => Account::default(),
            };
            let body = CommandBody {
                chain: self.chain,
                author,
                sequence: account.next_sequence,
                expires_height: height + EXPIRES_BLOCKS,
                command: command.clone(),
            };
            match self.client.submit(SignedCommand::sign(body, &self.key)).await {
                Ok(answer) => return Ok(answer.value.height),
                // An earlier command of ours became final after all: our number is one too low.
                Err(ClientError::Rejected { rejection, .. })
                    if !retried && matches!(*rejection, Rejection::Sequence { .. }) =>
                {
                    retried = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// An error and all its causes on one line.
pub fn chain_of(error: &dyn std::error::Error) -> String {
    croft_init::log::chain(error)
}

/// Waits longer after each failure, up to a minute.
#[derive(Debug, Default)]
pub struct BackOff {
    failures: u32,
}

impl BackOff {
    /// The pause before the next try.
    #[must_use]
    pub fn next(&mut self) -> Duration {
        let pause = Duration::from_millis(500) * 2_u32.pow(self.failures.min(7));
        self.failures += 1;
        pause.min(Duration::from_secs(60))
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}
