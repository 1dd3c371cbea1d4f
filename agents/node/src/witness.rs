//! What the machine's TPM keeps and says for the node: its key, and a quote for each registration.
//!
//! ```text
//!   no TPM, or it does not work, and no key was ever in it ──▶ key on the disk, no quotes: plain
//!   TPM works ──▶ key in it; Witness: event log, vouchers of replicas, a quote over the newest header
//!   the TPM holds a key that it does not give ──▶ no identity at all: never a second one in silence
//! ```
//! After a kexec the log is the kept one: [`measured`].
//!
//! It must never wait for the TPM on a thread that has to answer, and never keep a machine off the grid because its
//! firmware measures badly: then it registers without a quote, and says why.

pub mod measured;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_attest::assess::secure_boot_digest;
use croft_attest::{MeasuredBoot, PcrSelection};
use croft_identity::{DiskKeyStore, KeyError, KeyStore, NodeIdentity, NodeKeyStore, choose};
use croft_protocol::attestation::{Attestation, Credential, Introduction, SignedVoucher};
use croft_protocol::record::NodeBody;
use croft_protocol::trust::{self, Endorsement, RecentHeader, RecentHeaders, TrustPolicy};
use croft_protocol::{Body, Hash, NodeId, Record, RecordId, StateKey, ValidatorSet, limits};
use croft_tpm::{
    FdTransport, Moment, NvState, SealPolicy, Tpm, TpmError, TransportError, boot_log, driver, transport,
};

use crate::ledger::{Ledger, LedgerError, chain_of};

/// Register 7 begins with whether Secure Boot is on.
const PCR_SECURE_BOOT: u8 = 7;

/// Where this machine's TPM is, for tests too.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    pub device: &'a Path,
    pub event_log: &'a Path,
    pub sysfs: &'a Path,
    /// Waits between two tries.
    pub pause: fn(Duration),
}

impl Default for Places<'_> {
    fn default() -> Self {
        Self {
            device: Path::new(transport::DEVICE),
            event_log: Path::new(boot_log::PATH),
            sysfs: Path::new(driver::SYSFS),
            pause: std::thread::sleep,
        }
    }
}

/// A node's identity, where its key is and why, and who quotes for it.
pub struct Identified {
    pub identity: NodeIdentity,
    pub place: String,
    pub witness: Option<Witness>,
    /// Why the machine's TPM can't keep a key, where it has one.
    pub fault: Option<String>,
}

/// Why no TPM keeps the key.
struct Without {
    why: String,
    /// Whether the machine has one.
    fault: bool,
}

/// A TPM that holds the node's key.
pub struct Witness {
    tpm: Arc<Mutex<Tpm<FdTransport>>>,
    /// Or why there is none.
    boot: Result<MeasuredBoot, String>,
    /// They hold for as long as the TPM has its keys.
    vouchers: Mutex<Vec<SignedVoucher>>,
    /// The last quote that the ledger took, if it took one.
    last: Mutex<Option<LastQuote>>,
}

/// What another quote has to be worth more than.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LastQuote {
    /// What it was weighed by.
    weighed_by: Hash,
    /// Time of the header in its nonce.
    header_ms: u64,
    /// How long after that the next one is due.
    requote_after_ms: u64,
}

impl LastQuote {
    /// Whether it grows old, whatever it is weighed by.
    fn is_due(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.header_ms) >= self.requote_after_ms
    }

    /// Whether a quote over a header of that time may be worth more.
    fn is_worth_less(&self, header_ms: u64, weighed_by: &Hash) -> bool {
        self.weighed_by != *weighed_by || self.is_due(header_ms)
    }
}

/// What a quote is made for, and what it will be weighed by.
struct Occasion {
    header: RecentHeader,
    vouchers: Vec<SignedVoucher>,
    weighed_by: Hash,
    requote_after_ms: u64,
}

/// Why a registration carries no quote.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    #[error("the firmware's event log can't be used: {reason}")]
    Log { reason: String },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the ledger has no header yet that a quote may name: it is tried again")]
    NoHeader,
    #[error("the TPM does not quote")]
    Tpm(#[from] TpmError),
    #[error("the TPM's thread ended before it answered")]
    Ended,
}

/// Takes the identity from where it is, or makes it in the best place there is. Blocks for as long as the TPM does.
///
/// # Errors
/// [`KeyError`] names the culprit and what to do.
pub fn identify(places: Places<'_>, dir: &Path) -> Result<Identified, KeyError> {
    let boot = boot_log::read(places.event_log)
        .map(|log| log.measured(PcrSelection::QUOTED))
        .map_err(|error| chain_of(&error));
    let (mut tpm, without) = usable(places, dir)?;
    let boot = match &mut tpm {
        Some(tpm) => measured::explained(tpm, boot, dir),
        None => boot,
    };
    let store = choose(tpm, seal_policy(&boot), dir)?;
    let identity = NodeIdentity::load_or_create(&store)?;
    debug_assert_eq!(identity.trust(), store.trust());
    Ok(match store {
        NodeKeyStore::Tpm(store) => {
            let tpm = Arc::new(Mutex::new(store.into_tpm()));
            let witness = Witness { tpm, boot, vouchers: Mutex::default(), last: Mutex::default() };
            Identified { identity, place: "key in the TPM".to_owned(), witness: Some(witness), fault: None }
        }
        NodeKeyStore::Disk(_) => {
            let fault = without.as_ref().filter(|without| without.fault).map(|without| without.why.clone());
            let why = without.map_or_else(
                || "where it was made before the TPM was used".to_owned(),
                |without| without.why,
            );
            Identified { identity, place: format!("key on the disk: {why}"), witness: None, fault }
        }
    })
}

/// With Secure Boot on, what it does not let run shall not open the key either.
fn seal_policy(boot: &Result<MeasuredBoot, String>) -> SealPolicy {
    let events = boot.as_ref().map_or(&[][..], |boot| &boot.events);
    match events.iter().find(|event| event.pcr == PCR_SECURE_BOOT) {
        Some(event) if event.digest == secure_boot_digest(true) => SealPolicy::SecureBoot,
        _ => SealPolicy::Tpm,
    }
}

/// The TPM, if it can keep a key; else why not. A TPM that has a key is used, whether it gives it or not.
fn usable(places: Places<'_>, dir: &Path) -> Result<(Option<Tpm<FdTransport>>, Option<Without>), KeyError> {
    let without = |why: String, fault| Ok((None, Some(Without { why, fault })));
    let mut tpm = match open(places) {
        Ok(transport) => Tpm::new(transport),
        Err(error @ TransportError::Missing { .. }) => return without(error.to_string(), false),
        Err(error) => return unless_it_may_have_a_key(dir, error.into()),
    };
    match tpm.identity_state() {
        Err(error) => return unless_it_may_have_a_key(dir, error),
        Ok(NvState::Locked(_)) => return Ok((Some(tpm), None)),
        Ok(NvState::Absent | NvState::Empty | NvState::Open(_)) => {}
    }
    match tpm.storage_key().and_then(|_| tpm.attestation_key()) {
        Ok(_) => Ok((Some(tpm), None)),
        Err(error) => without(format!("the TPM keeps no key ({})", chain_of(&error)), true),
    }
}

/// The TPM, if need be by another try of the kernel's.
pub(crate) fn open(places: Places<'_>) -> Result<FdTransport, TransportError> {
    let missing = match FdTransport::open(places.device) {
        Err(error @ TransportError::Missing { .. }) => error,
        other => return other,
    };
    if !driver::announced(places.sysfs) {
        return Err(missing);
    }
    if driver::start(places.sysfs, places.device, places.pause) {
        tracing::warn!("the kernel did not start the TPM at boot, but did when it was asked again");
        return FdTransport::open(places.device);
    }
    Err(TransportError::NotStarted { path: places.device.to_owned() })
}

/// A TPM that can't even be asked may hold this node's key. Only a key on the disk shows that it does not.
fn unless_it_may_have_a_key(
    dir: &Path,
    error: TpmError,
) -> Result<(Option<Tpm<FdTransport>>, Option<Without>), KeyError> {
    if DiskKeyStore::new(dir).exists()? {
        return Ok((None, Some(Without { why: chain_of(&error), fault: true })));
    }
    Err(KeyError::Tpm(error))
}

impl Witness {
    /// A quote for what the node registers, over the newest header that the ledger keeps for quotes.
    ///
    /// # Errors
    /// [`WitnessError`]: the node registers without one, and tries again later.
    pub async fn attest(
        &self,
        ledger: &Ledger,
        id: &NodeId,
        node: &NodeBody,
    ) -> Result<Attestation, WitnessError> {
        let occasion = self.occasion(ledger).await?;
        self.quote(ledger, id, node, occasion).await
    }

    /// The ledger did not take the last quote: the next one is worth as much as that one would have been.
    pub fn not_taken(&self) {
        *lock(&self.last) = None;
    }

    /// Whether the last quote grows old, or none was taken.
    #[must_use]
    pub fn is_due(&self, now_ms: u64) -> bool {
        lock(&self.last).is_none_or(|last| last.is_due(now_ms))
    }

    /// As [`Self::attest`], where the quote may be worth more than the last one, or that one grows old.
    pub async fn better(&self, ledger: &Ledger, id: &NodeId, node: &NodeBody) -> Option<Attestation> {
        let quoted = async {
            let occasion = self.occasion(ledger).await?;
            let last = *lock(&self.last);
            let (header_ms, by) = (occasion.header.time_ms, &occasion.weighed_by);
            if last.is_some_and(|last| !last.is_worth_less(header_ms, by)) {
                return Ok(None);
            }
            self.quote(ledger, id, node, occasion).await.map(Some)
        };
        let quoted: Result<_, WitnessError> = quoted.await;
        quoted.unwrap_or_else(|error| {
            tracing::debug!(reason = %chain_of(&error), "no better quote yet");
            None
        })
    }

    async fn occasion(&self, ledger: &Ledger) -> Result<Occasion, WitnessError> {
        let validators = StateKey::Record(RecordId::validators());
        let (_, values) =
            ledger.read(vec![StateKey::RecentHeaders, StateKey::TrustPolicy, validators]).await?;
        let recent: RecentHeaders = decoded(values.first());
        let policy: TrustPolicy = decoded(values.get(1));
        let header = *recent.headers.last().ok_or(WitnessError::NoHeader)?;
        let validators = validators_of(values.get(2));
        let need = match policy.endorsement {
            Endorsement::Unchecked => 0,
            Endorsement::Activated | Endorsement::Certified => vouchers_needed(validators.as_ref()),
        };
        // Those of validators who handed over to others count no more.
        if let Some(set) = &validators {
            lock(&self.vouchers).retain(|voucher| set.power_of(&voucher.by) > 0);
        }
        let vouchers = self.vouched(ledger, need).await?;
        let by: Vec<_> = vouchers.iter().map(|voucher| voucher.by).collect();
        let weighed_by = Hash::of("croft/weighed-by/1", &(&policy, need as u64, by));
        Ok(Occasion { header, vouchers, weighed_by, requote_after_ms: policy.requote_after_ms() })
    }

    async fn quote(
        &self,
        ledger: &Ledger,
        id: &NodeId,
        node: &NodeBody,
        occasion: Occasion,
    ) -> Result<Attestation, WitnessError> {
        let boot = self.boot.clone().map_err(|reason| WitnessError::Log { reason })?;
        let Occasion { header, vouchers, weighed_by, requote_after_ms } = occasion;
        let header_ms = header.time_ms;
        let (chain, id, statement) = (*ledger.chain(), *id, Attestation::statement(node));
        let attestation = self
            .with_tpm(move |tpm| {
                let RecentHeader { height, hash: header, .. } = header;
                tpm.attest(&Moment { chain: &chain, height, header, node: &id, statement }, boot, vouchers)
            })
            .await?;
        *lock(&self.last) = Some(LastQuote { weighed_by, header_ms, requote_after_ms });
        Ok(attestation)
    }

    /// Vouchers of enough replicas, or of as many as give one: the ledger says what is missing.
    async fn vouched(&self, ledger: &Ledger, need: usize) -> Result<Vec<SignedVoucher>, WitnessError> {
        let known = lock(&self.vouchers).clone();
        if known.len() >= need {
            return Ok(known);
        }
        let introduction: Introduction = self.with_tpm(Tpm::introduce).await?;
        let open = |credential: Credential| async move {
            let opened = self.with_tpm(move |tpm| tpm.activate_credential(&credential)).await;
            opened.map(|secret| secret.to_vec()).map_err(|error| chain_of(&error))
        };
        let (given, problems) = ledger.verified().vouchers(need, &introduction, open).await;
        for problem in problems {
            tracing::warn!(replica = %problem.replica.address, cause = problem.cause, "no voucher for the TPM");
        }
        let mut known = lock(&self.vouchers);
        if given.len() > known.len() {
            (*known).clone_from(&given);
        }
        Ok(given)
    }

    async fn with_tpm<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tpm<FdTransport>) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, WitnessError> {
        let tpm = self.tpm.clone();
        let worked = tokio::task::spawn_blocking(move || work(&mut lock(&tpm)));
        Ok(worked.await.map_err(|_| WitnessError::Ended)??)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was proved absent is as if it were empty.
fn decoded<T: borsh::BorshDeserialize + Default>(value: Option<&Option<Vec<u8>>>) -> T {
    let bytes = value.and_then(Option::as_ref);
    bytes
        .and_then(|bytes| croft_protocol::decode("state value", bytes, limits::RECORD_BYTES).ok())
        .unwrap_or_default()
}

fn validators_of(value: Option<&Option<Vec<u8>>>) -> Option<ValidatorSet> {
    let bytes = value.and_then(Option::as_ref)?;
    match croft_protocol::decode::<Record>("validators", bytes, limits::RECORD_BYTES).ok()?.body {
        Body::Validators(set) => Some(set),
        _ => None,
    }
}

/// More than a third of the validators: as the ledger counts.
fn vouchers_needed(validators: Option<&ValidatorSet>) -> usize {
    validators.map_or(1, |set| trust::vouchers_needed(set.validators.len()))
}

#[cfg(test)]
mod tests;
