//! What can be asked of the ledger, and every reason for which it refuses.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::attestation::Attestation;
use crate::batch::{Claim, all_hold};
use crate::capacity::Shortfall;
use crate::contract::{ContractId, PublishedPort, SignedTerms};
use crate::directory::Profile;
use crate::faucet::RefusedClaim;
use crate::header::ChainId;
use crate::identity::{BotSignature, KeyRefusal, Link, RefusedChange};
use crate::keys::{BadSignature, Domain, signed_bytes};
use crate::record::{BotBody, FarmId, NodeBody, ReportBody};
use crate::release::{FarmPolicy, InvalidRelease, Outcome, ReleaseVersion, SignedKeyChange, SignedRelease};
use crate::reservation::{Announcement, ReservationRefusal};
use crate::trust::RefusedQuote;
use crate::validators::{InvalidChange, SignedValidatorChange};
use crate::{BotId, Grains, Hash, Name, NodeId, PriceList, PublicKey, SecretKey, Signature};

/// Everything that can change the ledger.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "commands are few and short-lived, and boxes would be part of every match"
)]
pub enum Command {
    /// The author becomes a bot with a name. Once per key.
    CreateBot(BotBody),
    /// The author, a bot, opens a farm.
    CreateFarm { name: Name, country: String, region: Option<Name>, prices: PriceList },
    /// The farm's owner changes its prices. Contracts keep the rate that they were signed with.
    SetPrices { farm: FarmId, prices: PriceList },
    /// The author, a node, registers itself or a change of itself. `join` is needed the first time. What the record
    /// says of its trust is at most what the node says, and what the attestation shows; without one it is `plain`.
    RegisterNode { node: NodeBody, join: Option<SignedJoin>, attestation: Option<Box<Attestation>> },
    /// Either party brings what both signed; the user's first deposit goes into escrow.
    Agree(Box<SignedTerms>),
    /// The author, an approver of the contract, decides.
    Approve { contract: ContractId, approve: bool },
    /// The author, a party to the contract, ends it.
    Close { contract: ContractId },
    /// Anyone settles a contract: marks what is silent, ends what is over, refunds what no report claimed after the
    /// end.
    Settle { contract: ContractId },
    /// The author, a node, reports.
    Report(ReportBody),
    /// The author, a bot, gives grains away.
    Transfer { to: BotId, amount: Grains, memo: String },
    /// Anyone brings other validators, whom more than two thirds of the present ones' power signed for. They
    /// certify from the next block on.
    SetValidators(Box<SignedValidatorChange>),
    /// Anyone brings other release keys, which the present ones signed for; the first ones the validators.
    SetReleaseKeys(Box<SignedKeyChange>),
    /// Anyone brings a release that enough release keys signed.
    PublishRelease(Box<SignedRelease>),
    /// The author, a release key, stops a release.
    HaltRelease { channel: Name, version: ReleaseVersion, reason: String },
    /// The farm's owner decides which releases its nodes take, and when.
    SetFarmPolicy { farm: FarmId, policy: FarmPolicy },
    /// The author, a node, says what became of a release on it.
    ReleaseOutcome { channel: Name, version: ReleaseVersion, outcome: Outcome },
    /// The author, a bot, publishes a recipe of its own, or a new version of it.
    PublishRecipe { name: Name, title: String, text: String },
    /// The author takes a recipe of its own back. Its versions stay on the ledger.
    WithdrawRecipe { name: Name, reason: String },
    /// The author, a bot, says something else of itself, its whole profile at once.
    UpdateBot(Profile),
    /// The author, a bot, takes grains from the faucet of a test grid.
    ClaimFaucet,
    /// The author, any bot, pays into the escrow of a contract that has not ended. What is not used goes back to the
    /// contract's user.
    Fund { contract: ContractId, amount: Grains },
    /// The author, a farmer, holds capacity for a contract that only its user can make now. The fee for not doing so
    /// goes into escrow.
    AnnounceReservation(Box<Announcement>),
    /// The author, the farmer, takes the fee of a reservation that nobody used. After a day anyone gives it back.
    ClaimReservation { contract: ContractId },
    /// The farm's owner asks everybody to leave a node, by a time if one is given, and takes no new contracts on it.
    DrainNode { node: NodeId, until_ms: Option<u64> },
    /// The farm's owner takes new contracts on a node again.
    ReopenNode { node: NodeId },
    /// The author, a bot, replaces its key; from the next command on only the new one signs for it. Signed by both.
    RotateKey(Box<Link>),
}

/// A farm owner's permission for nodes to join.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Join {
    pub farm: FarmId,
    /// Void after this time: milliseconds since 1970, UTC.
    pub expires_ms: u64,
    pub nonce: [u8; 16],
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedJoin {
    pub join: Join,
    /// By the farm's owner, over [`Domain::JOIN`].
    pub signature: BotSignature,
}

/// A command in its envelope: bound to a chain, an author, a sequence number and an expiry height, so that
/// it can be neither replayed nor moved to another grid.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CommandBody {
    pub chain: ChainId,
    pub author: PublicKey,
    /// The author's previous sequence number plus one; the first is 0.
    pub sequence: u64,
    /// The last block height that may carry it.
    pub expires_height: u64,
    pub command: Command,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedCommand {
    pub body: CommandBody,
    /// The author's present key: whether it is, the ledger knows.
    pub key: PublicKey,
    pub signature: Signature,
}

impl SignedCommand {
    #[must_use]
    pub fn sign(body: CommandBody, key: &SecretKey) -> Self {
        let signature = key.sign(Domain::COMMAND, &body.chain, &body);
        Self { body, key: key.public(), signature }
    }

    /// Checks the signature of the key that it names, by a rule that does not depend on what it is checked with.
    /// Whether that key is the author's, only the ledger knows.
    ///
    /// # Errors
    /// [`BadSignature`] names the key.
    pub fn verify(&self) -> Result<(), BadSignature> {
        let bad = BadSignature { domain: Domain::COMMAND.0, key: self.key };
        if self.claim().holds() { Ok(()) } else { Err(bad) }
    }

    /// Whether [`Self::verify`] finds nothing wrong with any of them, at half the cost. It does not tell which one is
    /// wrong.
    #[must_use]
    pub fn all_verify(commands: &[&Self]) -> bool {
        let claims: Vec<Claim> = commands.iter().map(|command| command.claim()).collect();
        all_hold(&claims)
    }

    fn claim(&self) -> Claim {
        let Self { body, key, signature } = self;
        let message = signed_bytes(Domain::COMMAND, &body.chain, body);
        Claim { key: *key, signature: *signature, message }
    }

    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of("croft/signed-command/1", self)
    }
}

/// Why a command changes nothing. Names the culprit, and says what would help.
#[derive(
    Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize, thiserror::Error,
)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    #[error(
        "the command is for chain {theirs}, but this grid is {ours}: check the grid that the configuration pins"
    )]
    WrongChain { theirs: ChainId, ours: ChainId },
    #[error("the signature of {author} is wrong: sign again with the author's key")]
    BadSignature { author: PublicKey },
    #[error("the command is malformed: {reason}")]
    Malformed { reason: String },
    #[error(
        "sequence number {got} of {author} is wrong, expected {expected}: the command was already used or one before it is missing"
    )]
    Sequence { author: PublicKey, got: u64, expected: u64 },
    #[error("the command expired at height {expired}, the ledger is at {height}: sign it again")]
    Expired { expired: u64, height: u64 },
    #[error("expiry height {expires} is more than {limit} blocks ahead of {height}: choose a nearer one")]
    ExpiryTooFar { expires: u64, height: u64, limit: u64 },
    #[error("{author} is no bot on this grid: create it first with 'croft bot new'")]
    UnknownBot { author: PublicKey },
    #[error("there is no farm {farm} on this grid")]
    UnknownFarm { farm: FarmId },
    #[error("there is no node {node} on this grid")]
    UnknownNode { node: NodeId },
    #[error("there is no contract {contract} on this grid")]
    UnknownContract { contract: ContractId },
    #[error("{what} '{name}' is taken: choose another name")]
    NameTaken { what: String, name: Name },
    #[error("{author} is already a bot named '{name}'")]
    AlreadyBot { author: PublicKey, name: Name },
    #[error("only {allowed} may do this, not {author}")]
    NotAllowed { author: PublicKey, allowed: String },
    #[error(
        "the node's permission to join is no good: {reason}; ask the farm's owner for a new boot configuration"
    )]
    Join { reason: String },
    #[error("'{country}' is not a country: use two lower-case letters of ISO 3166-1, such as be")]
    Country { country: String },
    #[error("{what} is out of bounds: {got}, allowed are {allowed}")]
    Bounds { what: String, got: u64, allowed: String },
    #[error(
        "session {got} of node {node} is not newer than {known}: the same key runs twice, or its clock went back"
    )]
    StaleSession { node: NodeId, got: u64, known: u64 },
    #[error("the contract is not signed by {party}")]
    Unsigned { party: PublicKey },
    #[error("the contract's terms are void since {expired_ms} ms, it is {now_ms} ms: negotiate again")]
    TermsExpired { expired_ms: u64, now_ms: u64 },
    #[error(
        "stale: the terms rely on capacity version {got} of node {node}, which is at {current}{}: negotiate again",
        no_longer_fits(shortfalls)
    )]
    Stale { node: NodeId, got: u64, current: u64, shortfalls: Vec<Shortfall> },
    #[error("node {node} has too little free ({}): ask for less or choose another node", show(shortfalls))]
    Capacity { node: NodeId, shortfalls: Vec<Shortfall> },
    #[error("port {port} of node {node} is taken by another contract: choose another port")]
    PortTaken { node: NodeId, port: PublishedPort },
    #[error("node {node} already has {limit} contracts: choose another node")]
    NodeFull { node: NodeId, limit: u64 },
    #[error("{bot} has {have}, but {need} are needed: top up the wallet")]
    Funds { bot: BotId, have: Grains, need: Grains },
    #[error("the amount overflows")]
    Overflow,
    #[error("contract {contract} has already ended")]
    Ended { contract: ContractId },
    #[error("contract {contract} exists already")]
    Duplicate { contract: ContractId },
    #[error("{author} is no approver of contract {contract}, or has decided already")]
    NotApprover { author: PublicKey, contract: ContractId },
    #[error("the report is no good: {reason}")]
    Report { reason: String },
    #[error("the ledger is busy: {waiting} commands are waiting; try again in a moment")]
    Busy { waiting: u64 },
    #[error("the validators can't be changed so: {0}")]
    Validators(InvalidChange),
    #[error(
        "{author} has brought {per_minute} commands within a minute: the next one is taken in {retry_ms} ms, or by another replica"
    )]
    RateLimited { author: PublicKey, per_minute: u64, retry_ms: u64 },
    #[error("the attestation of node {node} is refused: {reason}")]
    Attestation { node: NodeId, reason: RefusedQuote },
    #[error("the release, its keys, the policy or the outcome is no good: {0}")]
    Release(InvalidRelease),
    #[error("bot {author} has no recipe '{name}'")]
    UnknownRecipe { author: BotId, name: Name },
    #[error("the faucet gives nothing: {0}")]
    Faucet(RefusedClaim),
    #[error("the reservation for contract {contract} is refused: {reason}")]
    Reservation { contract: ContractId, reason: ReservationRefusal },
    #[error("node {node} is not being drained: there is nothing to undo")]
    NotDraining { node: NodeId },
    #[error(transparent)]
    Key(KeyRefusal),
    #[error("the bot's key stays as it is: {0}")]
    KeyChange(RefusedChange),
}

/// A version that never was is stale too, whatever fits.
fn no_longer_fits(shortfalls: &[Shortfall]) -> String {
    if shortfalls.is_empty() {
        String::new()
    } else {
        format!(", and it no longer fits ({})", show(shortfalls))
    }
}

fn show(shortfalls: &[Shortfall]) -> String {
    shortfalls.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
