//! Contracts: what two bots agreed and signed.
//!
//! ```text
//!   agree ──> Agreed ──quorum──> Approved ──node runs it──> Active <──> Degraded
//!                │                  │  ^                       │            │
//!                │                  │  └──fund── Paused <──funds ran out────┤
//!                │                  │              │ grace      │            │
//!                └──────────────────┴──────────────┴─close, expiry──────────┴──> Ended(reason)
//! ```
//! A contract without approvers is `Approved` from the start. Only `Approved`, `Active` and `Degraded` may run.
//! `Paused` keeps node, capacity and data for the grace period. After the end of one that ran, what its node may
//! have run since its last report stays held for [`crate::limits::FINAL_REPORT_MS`].

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::hash::ParseHexError;
use crate::header::ChainId;
use crate::identity::BotSignature;
use crate::keys::{BadSignature, Domain};
use crate::{BotId, Capacity, FarmId, Grains, Hash, Name, NodeId, Rate, limits};

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
    /// How long the node keeps the data after the end, and how long it waits for funds that ran out.
    pub grace_s: u64,
    /// How much of the duration is paid for with the agreement, at least [`crate::limits::PREPAID_S`]; the rest is
    /// funded as it goes on. `None`: all of it.
    pub prepaid_s: Option<u64>,
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

    /// What goes into escrow with the agreement; `None` when that overflows.
    #[must_use]
    pub fn deposit(&self) -> Option<Grains> {
        self.rate.for_seconds(self.prepaid_s.unwrap_or(self.duration_s))
    }
}

/// Terms with both signatures.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedTerms {
    pub terms: Terms,
    pub user: BotSignature,
    pub farmer: BotSignature,
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
    /// Its funds ran out, and nobody funded it within the grace period.
    OutOfFunds,
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
    /// Its funds ran out at this block time. It may not run; `Fund` resumes it within the grace period.
    Paused {
        since_ms: u64,
    },
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

    /// When its node may delete its data; `None` before the end. Where funds ran out, the grace period has passed
    /// with the pause.
    #[must_use]
    pub fn data_kept_until_ms(&self) -> Option<u64> {
        match self.state {
            ContractState::Ended(EndReason::OutOfFunds) => Some(self.ended_ms),
            ContractState::Ended(_) => Some(self.ended_ms.saturating_add(self.grace_ms())),
            _ => None,
        }
    }

    /// Until when a paused contract waits for funds; `None` when it does not.
    #[must_use]
    pub fn funds_awaited_until_ms(&self) -> Option<u64> {
        match self.state {
            ContractState::Paused { since_ms } => Some(since_ms.saturating_add(self.grace_ms())),
            _ => None,
        }
    }

    /// Until when the node's final report counts for what ran before the end; `None` before the end.
    #[must_use]
    pub fn final_report_until_ms(&self) -> Option<u64> {
        matches!(self.state, ContractState::Ended(_))
            .then(|| self.ended_ms.saturating_add(limits::FINAL_REPORT_MS))
    }

    fn grace_ms(&self) -> u64 {
        self.signed.terms.grace_s.saturating_mul(1000)
    }

    /// How much longer it could run if it always did: from what is covered to its expiry, in milliseconds.
    #[must_use]
    pub fn time_left_ms(&self, escrow: &Escrow) -> u64 {
        let all_ms = self.signed.terms.duration_s.saturating_mul(1000);
        self.expires_ms().map_or(all_ms, |at| at.saturating_sub(escrow.covered_until_ms))
    }

    /// Whether its funds are used up, but for a rest that is not worth a start. Never while they last until its
    /// expiry.
    #[must_use]
    pub fn is_out_of_funds(&self, escrow: &Escrow) -> bool {
        let least_ms = limits::FUNDED_LEAST_MS.min(self.time_left_ms(escrow));
        escrow.runs_ms(self.signed.terms.rate) < least_ms
    }

    /// How much more it takes to resume it, were it paused: an hour's pay or what is left.
    #[must_use]
    pub fn missing_to_resume(&self, escrow: &Escrow, now_ms: u64) -> Grains {
        let left_ms = self.expires_ms().map_or(0, |at| at.saturating_sub(now_ms));
        let least_ms = limits::PREPAID_S.saturating_mul(1000).min(left_ms);
        let short_ms = least_ms.saturating_sub(escrow.runs_ms(self.signed.terms.rate));
        let grains = u128::from(self.signed.terms.rate.0) * u128::from(short_ms);
        Grains(u64::try_from(grains.div_ceil(1000)).unwrap_or(u64::MAX))
    }
}

/// A contract as its node keeps it for a boot in which the ledger is out of reach.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct KeptContract {
    pub body: ContractBody,
    /// As long as its funds last at most, as of the newest proof: milliseconds since 1970, UTC. From then on nobody
    /// pays for what runs.
    pub paid_until_ms: u64,
    /// What its escrow held then.
    pub held: Grains,
}

impl KeptContract {
    /// `unreported_ms` is what ran and is not in any report yet.
    #[must_use]
    pub fn new(body: ContractBody, escrow: &Escrow, unreported_ms: u64, now_ms: u64) -> Self {
        let rate = body.signed.terms.rate;
        // What lasts until the expiry has no other end.
        let lasts = body.signed.terms.price().is_some_and(|price| escrow.deposit >= price);
        // What is before the covered time is no longer owed, whatever a report on its way says.
        let unreported_ms = unreported_ms.min(now_ms.saturating_sub(escrow.covered_until_ms));
        let paid_until_ms = if lasts {
            u64::MAX
        } else {
            now_ms.saturating_add(escrow.runs_ms(rate)).saturating_sub(unreported_ms)
        };
        Self { body, paid_until_ms, held: escrow.held() }
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

/// A contract's money. `deposit = paid + refunded + what is still held`. The deposit grows by what anyone funds.
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

    /// For how much running time it pays in all, in whole milliseconds; what is free runs for ever.
    #[must_use]
    pub fn funds_ms(&self, rate: Rate) -> u64 {
        let funds = self.deposit.0.saturating_sub(self.refunded.0);
        let ms = (u128::from(funds) * 1000).checked_div(u128::from(rate.0));
        ms.map_or(u64::MAX, |ms| u64::try_from(ms).unwrap_or(u64::MAX))
    }

    /// For how much more running time it pays.
    #[must_use]
    pub fn runs_ms(&self, rate: Rate) -> u64 {
        self.funds_ms(rate).saturating_sub(self.covered_ms)
    }
}
