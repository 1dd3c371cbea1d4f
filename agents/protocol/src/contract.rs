//! Contracts: what two bots agreed and signed.
//!
//! ```text
//!   agree ──> Agreed ──quorum──> Approved ──node runs it──> Active <──> Degraded
//!                │                  │                          │            │
//!                └──────────────────┴────────close, expiry─────┴────────────┴──> Ended(reason)
//! ```
//! A contract without approvers is `Approved` from the start. Only `Approved`, `Active` and `Degraded` may run.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::hash::ParseHexError;
use crate::header::ChainId;
use crate::keys::{BadSignature, Domain};
use crate::{BotId, Capacity, FarmId, Grains, Hash, Name, NodeId, Rate, Signature};

/// Hash of a contract's terms.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct ContractId(pub Hash);

impl fmt::Display for ContractId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ContractId {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Tcp,
    Udp,
}

/// A port of the node that leads into the workload. The ledger gives each out once per node.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
pub struct PublishedPort {
    pub transport: Transport,
    pub port: u16,
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{}/{transport}", self.port)
    }
}

/// Whose weighted signatures a contract needs before any node may run it.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Quorum {
    /// Weight that must approve; 0 with no approvers.
    pub threshold: u32,
    pub approvers: Vec<Approver>,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Approver {
    pub bot: BotId,
    pub weight: u32,
    /// A required approver who refuses ends the contract.
    pub required: bool,
}

/// What both parties sign.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Terms {
    /// What its user calls it; unique among the user's running contracts.
    pub name: Name,
    pub user: BotId,
    pub farmer: BotId,
    pub farm: FarmId,
    pub node: NodeId,
    pub resources: Capacity,
    pub ports: Vec<PublishedPort>,
    pub rate: Rate,
    pub duration_s: u64,
    /// How long the node keeps the data after the end.
    pub grace_s: u64,
    /// The version of the node's capacity that the farmer relied on.
    pub capacity_version: u64,
    pub quorum: Quorum,
    /// The workload, sealed to the node ([`crate::seal`]).
    pub sealed: Vec<u8>,
    /// The farmer's and user's signatures are void after this time: milliseconds since 1970, UTC.
    pub expires_ms: u64,
    /// Random, so that equal wishes are different contracts.
    pub nonce: [u8; 16],
}

impl Terms {
    #[must_use]
    pub fn id(&self) -> ContractId {
        ContractId(Hash::of("croft/contract/1", self))
    }

    /// Rate x duration; `None` when that overflows.
    #[must_use]
    pub fn price(&self) -> Option<Grains> {
        self.rate.for_seconds(self.duration_s)
    }
}

/// Terms with both signatures.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedTerms {
    pub terms: Terms,
    pub user: Signature,
    pub farmer: Signature,
}

impl SignedTerms {
    /// Checks both signatures.
    ///
    /// # Errors
    /// [`BadSignature`] names the party.
    pub fn verify(&self, chain: &ChainId) -> Result<(), BadSignature> {
        self.terms.user.verify(Domain::TERMS, chain, &self.terms, &self.user)?;
        self.terms.farmer.verify(Domain::TERMS, chain, &self.terms, &self.farmer)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its user closed it.
    ClosedByUser,
    /// Its farmer closed it.
    ClosedByFarmer,
    /// Its duration is over.
    Expired,
    /// A required approver refused.
    NotApproved,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContractState {
    /// Signed by both; waits for its quorum.
    Agreed,
    /// May run.
    Approved,
    /// Its node reported that it runs.
    Active,
    /// Its node reported trouble, or nothing.
    Degraded,
    Ended(EndReason),
}

impl ContractState {
    /// Whether a node may run it.
    #[must_use]
    pub fn may_run(self) -> bool {
        matches!(self, Self::Approved | Self::Active | Self::Degraded)
    }
}

/// A contract as the ledger keeps it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ContractBody {
    pub signed: SignedTerms,
    pub state: ContractState,
    /// Block time of the agreement: milliseconds since 1970, UTC.
    pub agreed_ms: u64,
    /// Block time from which it may run; the duration counts from here. 0 while it waits for its quorum.
    pub starts_ms: u64,
    /// Block time of the end; 0 before.
    pub ended_ms: u64,
}

impl ContractBody {
    /// When its duration is over; `None` before it started.
    #[must_use]
    pub fn expires_ms(&self) -> Option<u64> {
        (self.starts_ms > 0)
            .then(|| self.starts_ms.saturating_add(self.signed.terms.duration_s.saturating_mul(1000)))
    }

    /// When its node may delete its data; `None` before the end.
    #[must_use]
    pub fn data_kept_until_ms(&self) -> Option<u64> {
        matches!(self.state, ContractState::Ended(_))
            .then(|| self.ended_ms.saturating_add(self.signed.terms.grace_s.saturating_mul(1000)))
    }
}

impl Serialize for ContractBody {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut s = serializer.serialize_struct("ContractBody", 5)?;
        s.serialize_field("terms", &self.signed.terms)?;
        s.serialize_field("state", &self.state)?;
        s.serialize_field("agreed_ms", &self.agreed_ms)?;
        s.serialize_field("starts_ms", &self.starts_ms)?;
        s.serialize_field("ended_ms", &self.ended_ms)?;
        s.end()
    }
}

/// A contract's money. `deposit = paid + refunded + what is still held`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
pub struct Escrow {
    pub deposit: Grains,
    pub paid: Grains,
    pub refunded: Grains,
    /// Milliseconds that the node's reports cover.
    pub covered_ms: u64,
    /// Reports count from here on: milliseconds since 1970, UTC.
    pub covered_until_ms: u64,
}

impl Escrow {
    /// What neither party has yet.
    #[must_use]
    pub fn held(&self) -> Grains {
        Grains(self.deposit.0.saturating_sub(self.paid.0).saturating_sub(self.refunded.0))
    }
}
