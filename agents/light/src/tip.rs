//! Tips: which header to believe.
//!
//! ```text
//!   Trust { set A } ── tips certified by A, ever higher ──> handover header: A certifies, B is next
//!                                                                  │
//!   Trust { set B, above the handover } <──────────────────────────┘
//! ```

use croft_protocol::header::InvalidValidatorSet;
use croft_protocol::keys::Domain;
use croft_protocol::{ChainId, Hash, Header, PublicKey, RecordId, SignedHeader, StateKey, limits};

/// How far a header's time may be from the clock, where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// An older tip is not acted on: a replica may hide what came since.
    pub max_age_ms: u64,
    /// A tip farther in the future means that a clock is wrong.
    pub max_ahead_ms: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { max_age_ms: limits::TIP_MAX_AGE_MS, max_ahead_ms: limits::CLOCK_SLACK_MS }
    }
}

/// A header that this client has verified. Proofs are checked against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    header: Header,
    hash: Hash,
}

impl Tip {
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }

    #[must_use]
    pub fn height(&self) -> u64 {
        self.header.height
    }

    /// Milliseconds since 1970, UTC.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.header.time_ms
    }
}

/// Two final headers that can't both be: evidence against more than a third of the validators' power.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    pub known: SignedHeader,
    pub other: SignedHeader,
}

/// What an error says of the replica that sent the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It may be honest and late: ask another, and this one again later.
    Lag,
    /// No honest replica of this grid sends this.
    Lie,
    /// The validators themselves broke their word: stop acting on this grid and tell its owners.
    Validators,
    /// It may be this client that knows too little: a handover is missing, or its clock is wrong.
    Ours,
}

/// Why an answer is not believed. The caller adds which replica sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LightError {
    #[error("it sent a header of chain {theirs}, but this grid is {ours}: check the replica's address")]
    WrongChain { theirs: ChainId, ours: ChainId },
    #[error(
        "header {height} is certified by validators {theirs}, trusted are {trusted}: fetch the handover header, \
         or pin the grid's present validators"
    )]
    UnknownValidators { height: u64, theirs: Hash, trusted: Hash },
    #[error("the validators that came with header {height} are {got}, the header names {named}")]
    WrongValidators { height: u64, got: Hash, named: Hash },
    #[error("the validators that came with header {height} are no set")]
    InvalidValidators { height: u64, source: InvalidValidatorSet },
    #[error("the certificate that came with header {height} is for height {certified} or another header")]
    WrongCertificate { height: u64, certified: u64 },
    #[error("{key} signed header {height} but is no validator of it")]
    NotValidator { height: u64, key: PublicKey },
    #[error(
        "the signatures of header {height} must stand in ascending order of keys, each once; {key} does not"
    )]
    SignatureOrder { height: u64, key: PublicKey },
    #[error("the signature of validator {key} over header {height} is wrong")]
    BadSignature { height: u64, key: PublicKey },
    #[error("header {height} is signed by {power} of {total} power, more than two thirds are needed")]
    TooLittlePower { height: u64, power: u64, total: u64 },
    #[error("header {height} is older than header {known}, which is already known: the replica is behind")]
    Back { height: u64, known: u64 },
    #[error(
        "there are two final headers for height {}, {} and {}: validators signed both; stop and tell the grid's owners",
        .0.other.header.height, .0.known.header.hash(), .0.other.header.hash()
    )]
    Contradiction(Box<Contradiction>),
    #[error("header {height} does not follow header {known}: {reason}")]
    NotFollowing { height: u64, known: u64, reason: &'static str },
    #[error(
        "header {height} is {age_ms} ms old, at most {limit_ms} are allowed: the replica is cut off, or this clock is wrong"
    )]
    TooOld { height: u64, age_ms: u64, limit_ms: u64 },
    #[error(
        "header {height} is {ahead_ms} ms in the future, at most {limit_ms} are allowed: this clock or the grid's is wrong"
    )]
    Future { height: u64, ahead_ms: u64, limit_ms: u64 },
    #[error("header {height} hands over to nobody: its next validators are its own")]
    NoHandover { height: u64 },
    #[error("asked for the handover by validators {asked}, it sent header {height} by {theirs}")]
    WrongHandover { height: u64, theirs: Hash, asked: Hash },
    #[error(
        "more than {limit} handovers lie between the trusted validators and the replica's: pin the grid's present validators"
    )]
    TooManyHandovers { limit: usize },
    #[error("asked for header {asked}, it sent header {height}")]
    OtherHeight { height: u64, asked: u64 },
    #[error("the proof for {} at height {height} is wrong: {reason}", show_key(key))]
    Value { height: u64, key: Box<StateKey>, reason: String },
    #[error("the proof for record {index} of {id:?} at height {height} is wrong: {reason}")]
    Record { height: u64, index: u64, id: RecordId, reason: String },
    #[error("the first {old_size} records are not those of the log of {size} at height {height}: {reason}")]
    Prefix { height: u64, size: u64, old_size: u64, reason: String },
    #[error(
        "the log of {size} records at height {height} is not the continuation of one of {old_size}: {reason}"
    )]
    Consistency { height: u64, size: u64, old_size: u64, reason: String },
}

fn show_key(key: &StateKey) -> String {
    match key {
        StateKey::Record(id) => format!("the latest {:?} {}", id.kind, id.id),
        StateKey::Account(key) => format!("the account of {key}"),
        StateKey::BotName(name) => format!("bot name '{name}'"),
        StateKey::FarmName(name) => format!("farm name '{name}'"),
        StateKey::NodeName(_, name) => format!("node name '{name}'"),
        StateKey::ContractName(_, name) => format!("contract name '{name}'"),
        StateKey::Capacity(node) => format!("the capacity of node {node}"),
        StateKey::NodeContracts(node) => format!("the contracts of node {node}"),
        StateKey::Port(node, port) => format!("port {port} of node {node}"),
        StateKey::Escrow(contract) => format!("the escrow of contract {contract}"),
        StateKey::Supply => "the supply".to_owned(),
        StateKey::TrustPolicy => "the trust policy".to_owned(),
        StateKey::RecentHeaders => "the recent headers".to_owned(),
        StateKey::NodeTrust(node) => format!("the trust in node {node}"),
        StateKey::TpmKey(key) => format!("the node of the TPM {key}"),
        StateKey::Trials(release) => format!("the trials of release {release}"),
        StateKey::Faucet => "the faucet".to_owned(),
        StateKey::FaucetClaims(bot) => format!("the claims of bot {bot}"),
        StateKey::FarmerTrials(release, farmer) => {
            format!("the trials of release {release} by farmer {farmer}")
        }
        StateKey::HeldFee(contract) => format!("the fee held for contract {contract}"),
        StateKey::NodeReservations(node) => format!("the reservations of node {node}"),
        StateKey::OpenReservations(bot) => format!("the open reservations of bot {bot}"),
        StateKey::ReservationQueue => "the queue of reservations".to_owned(),
        StateKey::ReservationSlot(slot) => format!("the reservations that expire in slot {slot}"),
        StateKey::KeyOwner(key) => format!("the owner of key {key}"),
        StateKey::Endorsement(key) => format!("the node of the TPM with endorsement key {key}"),
        StateKey::NodeQuote(node) => format!("the last quote of node {node}"),
    }
}

impl LightError {
    /// What it says of the replica that sent the answer.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Back { .. } | Self::TooOld { .. } => Fault::Lag,
            Self::UnknownValidators { .. } | Self::Future { .. } => Fault::Ours,
            Self::Contradiction(_) | Self::NotFollowing { .. } => Fault::Validators,
            _ => Fault::Lie,
        }
    }
}

/// Checks that a header is final: certified by more than two thirds of the power of the set that it names,
/// each signature by a member, once. Says nothing of whether that set is to be trusted.
///
/// # Errors
/// [`LightError`] names the first culprit.
pub fn verify_certificate(signed: &SignedHeader) -> Result<(), LightError> {
    let SignedHeader { header, certificate, validators } = signed;
    let height = header.height;
    validators.check().map_err(|source| LightError::InvalidValidators { height, source })?;
    let got = validators.hash();
    if got != header.validators {
        return Err(LightError::WrongValidators { height, got, named: header.validators });
    }
    if certificate.height != height || certificate.header != header.hash() {
        return Err(LightError::WrongCertificate { height, certified: certificate.height });
    }
    let mut power = 0;
    let mut before: Option<PublicKey> = None;
    for (key, signature) in &certificate.signatures {
        let key = *key;
        if before.is_some_and(|before| before >= key) {
            return Err(LightError::SignatureOrder { height, key });
        }
        before = Some(key);
        let at = validators
            .validators
            .binary_search_by_key(&key, |validator| validator.key)
            .map_err(|_| LightError::NotValidator { height, key })?;
        key.verify(Domain::CERTIFICATE, &header.chain, &certificate.signed_value(), signature)
            .map_err(|_| LightError::BadSignature { height, key })?;
        // At most 64 validators of a million each: no overflow.
        power += validators.validators[at].power;
    }
    let total = validators.total_power();
    if power * 3 <= total * 2 {
        return Err(LightError::TooLittlePower { height, power, total });
    }
    Ok(())
}

/// Follows one grid from its pinned validators on.
#[derive(Debug, Clone)]
pub struct LightClient {
    chain: ChainId,
    bounds: Bounds,
    /// Hash of the set that certifies headers above the newest one known.
    trusted: Hash,
    newest: Option<SignedHeader>,
}

impl LightClient {
    /// A client that trusts one chain and one validator set, by its hash.
    #[must_use]
    pub fn new(chain: ChainId, validators: Hash) -> Self {
        Self { chain, bounds: Bounds::default(), trusted: validators, newest: None }
    }

    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    #[must_use]
    pub fn chain(&self) -> &ChainId {
        &self.chain
    }

    /// Hash of the set that certifies the headers above the newest one known: to be kept where the pinned set
    /// was, so that the next start needs no old handover.
    #[must_use]
    pub fn trusted(&self) -> Hash {
        self.trusted
    }

    /// The newest header known, a tip or a handover.
    #[must_use]
    pub fn newest(&self) -> Option<&SignedHeader> {
        self.newest.as_ref()
    }

    /// Believes a header, and none below it from then on. `now_ms` is the time in milliseconds since 1970,
    /// UTC, where a clock can be trusted; without one the header's age is not checked.
    ///
    /// # Errors
    /// [`LightError`]; the client is as before.
    pub fn accept_tip(&mut self, signed: &SignedHeader, now_ms: Option<u64>) -> Result<Tip, LightError> {
        let tip = self.check(signed)?;
        if let Some(now_ms) = now_ms {
            self.check_age(&signed.header, now_ms)?;
        }
        self.remember(signed);
        Ok(tip)
    }

    /// Believes a header of any age that hands over to other validators, and trusts those from then on. To be
    /// given the handovers in their order.
    ///
    /// # Errors
    /// [`LightError`]; the client is as before.
    pub fn accept_handover(&mut self, signed: &SignedHeader) -> Result<Tip, LightError> {
        let height = signed.header.height;
        if signed.header.next_validators == signed.header.validators {
            return Err(LightError::NoHandover { height });
        }
        let tip = self.check(signed)?;
        self.remember(signed);
        Ok(tip)
    }

    fn remember(&mut self, signed: &SignedHeader) {
        self.trusted = signed.header.next_validators;
        self.newest = Some(signed.clone());
    }

    fn check(&self, signed: &SignedHeader) -> Result<Tip, LightError> {
        let header = signed.header;
        let height = header.height;
        if header.chain != self.chain {
            return Err(LightError::WrongChain { theirs: header.chain, ours: self.chain });
        }
        // The newest header was certified by the set before it, every later one by the set that it names.
        let trusted = match &self.newest {
            Some(newest) if height == newest.header.height => newest.header.validators,
            Some(newest) if height < newest.header.height => {
                return Err(LightError::Back { height, known: newest.header.height });
            }
            _ => self.trusted,
        };
        if header.validators != trusted {
            return Err(LightError::UnknownValidators { height, theirs: header.validators, trusted });
        }
        verify_certificate(signed)?;
        let tip = Tip { header, hash: header.hash() };
        if let Some(newest) = &self.newest {
            check_follows(newest, signed)?;
        }
        Ok(tip)
    }

    fn check_age(&self, header: &Header, now_ms: u64) -> Result<(), LightError> {
        let Header { height, time_ms, .. } = *header;
        let age_ms = now_ms.saturating_sub(time_ms);
        if age_ms > self.bounds.max_age_ms {
            return Err(LightError::TooOld { height, age_ms, limit_ms: self.bounds.max_age_ms });
        }
        let ahead_ms = time_ms.saturating_sub(now_ms);
        if ahead_ms > self.bounds.max_ahead_ms {
            return Err(LightError::Future { height, ahead_ms, limit_ms: self.bounds.max_ahead_ms });
        }
        Ok(())
    }
}

/// Both are certified; can both be true?
fn check_follows(known: &SignedHeader, other: &SignedHeader) -> Result<(), LightError> {
    let (before, after) = (&known.header, &other.header);
    if after.height == before.height {
        if after == before {
            return Ok(());
        }
        let contradiction = Contradiction { known: known.clone(), other: other.clone() };
        return Err(LightError::Contradiction(Box::new(contradiction)));
    }
    let not = |reason| Err(LightError::NotFollowing { height: after.height, known: before.height, reason });
    if after.time_ms <= before.time_ms {
        return not("its time is not later");
    }
    if after.log_size < before.log_size {
        return not("its log is shorter");
    }
    if after.height == before.height + 1 && after.prev != before.hash() {
        return not("it names another parent");
    }
    Ok(())
}
