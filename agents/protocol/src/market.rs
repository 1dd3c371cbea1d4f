//! What two bots say to each other while they negotiate, and what a reservation is.
//!
//! ```text
//!   buyer   Demand ─────────> Counter ... ─────────> Propose ──────────> Commit
//!   farmer          Offer ─────────> Counter ...             Approve
//!            each may say Reject { last, reason } instead; every message is void after its own expiry
//! ```
//! Buyer and farmer speak in turn: even steps are the buyer's, odd ones the farmer's. Each message names the hash of
//! the one before, so that the last one proves the whole conversation. A negotiation's id is the hash of its demand,
//! which names both parties: no message can be moved to another negotiation, party or chain. A `note` is for people and
//! must never decide anything.
//!
//! **Reservations that are not used** cost their user a fee, so that nobody holds capacity back for free. The user signs
//! the reservation with the proposal, the farmer with the approval. A farmer who got the user's signature and kept the
//! approval to itself must not earn the fee: it is due only if the approval was announced on the ledger
//! [`NOTICE_MS`] before the reservation expired, where the user's bot finds and uses it ([`crate::reservation`]).

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::Serialize;

use crate::contract::{ContractId, PublishedPort, Terms};
use crate::header::ChainId;
use crate::identity::BotSignature;
use crate::keys::{BadSignature, Domain};
use crate::{BotId, Capacity, FarmId, Grains, Hash, NodeId, Rate, SecretKey};

/// Messages of a negotiation.
pub const NEGOTIATION: Domain = Domain("croft/negotiation/1");
/// Reservations: the buyer's promise of a fee, the farmer's promise of capacity.
pub const RESERVATION: Domain = Domain("croft/reservation/1");

/// Messages in one negotiation. Both keep all of them, so this bounds what a stranger makes us remember.
pub const STEPS: u32 = 24;
/// Encoded bytes of one message: a proposal carries the sealed workload.
pub const MESSAGE_BYTES: usize = 96 * 1024;
/// A message binds its author for at most this long.
pub const OPEN_MS: u64 = 15 * 60_000;
/// Capacity is held back for at most this long: the longer, the more a hoarder can hold.
pub const RESERVATION_MS: u64 = 10 * 60_000;
/// An approval must be where the user finds it for at least this long before it expires.
pub const NOTICE_MS: u64 = 15_000;
/// The fee of an unused reservation can be claimed for this long after its expiry. Then it may be forgotten.
pub const CLAIM_MS: u64 = 24 * 3_600_000;

/// One negotiation: the hash of chain and demand.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize, Serialize,
)]
#[serde(transparent)]
pub struct NegotiationId(pub Hash);

impl fmt::Display for NegotiationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Buyer,
    Farmer,
}

impl Role {
    /// Who speaks at a step.
    #[must_use]
    pub fn of_step(step: u32) -> Self {
        if step.is_multiple_of(2) { Self::Buyer } else { Self::Farmer }
    }

    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Buyer => Self::Farmer,
            Self::Farmer => Self::Buyer,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Buyer => "the buyer",
            Self::Farmer => "the farmer",
        })
    }
}

/// What a buyer asks one farm for.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Demand {
    pub buyer: BotId,
    pub farmer: BotId,
    pub farm: FarmId,
    pub node: NodeId,
    pub resources: Capacity,
    pub ports: Vec<PublishedPort>,
    pub duration_s: u64,
    pub grace_s: u64,
    /// As in [`Terms::prepaid_s`].
    pub prepaid_s: Option<u64>,
    /// So that equal wishes are different negotiations.
    pub nonce: [u8; 16],
}

impl Demand {
    #[must_use]
    pub fn id(&self, chain: &ChainId) -> NegotiationId {
        NegotiationId(Hash::of("croft/negotiation/1", &(chain, self)))
    }

    #[must_use]
    pub fn party(&self, role: Role) -> BotId {
        match role {
            Role::Buyer => self.buyer,
            Role::Farmer => self.farmer,
        }
    }
}

/// A price for what was demanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Quote {
    pub rate: Rate,
    /// What a reservation costs that is not followed by a contract.
    pub hold_fee: Grains,
    /// How long capacity is held after the farmer approved.
    pub hold_ms: u64,
    /// The version of the node's capacity that the farmer has seen; 0 from a buyer.
    pub capacity_version: u64,
}

/// Capacity that a farmer holds back for one contract until it expires.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Reservation {
    pub negotiation: NegotiationId,
    pub contract: ContractId,
    pub user: BotId,
    pub farmer: BotId,
    pub node: NodeId,
    pub resources: Capacity,
    pub capacity_version: u64,
    /// What the user owes if the contract is not on the ledger when this expires.
    pub fee: Grains,
    /// Milliseconds since 1970, UTC; that of the terms.
    pub expires_ms: u64,
}

impl Reservation {
    /// What belongs to these terms.
    #[must_use]
    pub fn of(negotiation: NegotiationId, terms: &Terms, fee: Grains) -> Self {
        Self {
            negotiation,
            contract: terms.id(),
            user: terms.user,
            farmer: terms.farmer,
            node: terms.node,
            resources: terms.resources,
            capacity_version: terms.capacity_version,
            fee,
            expires_ms: terms.expires_ms,
        }
    }
}

/// A reservation with both signatures: the user owes the fee, the farmer the capacity.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedReservation {
    pub reservation: Reservation,
    pub user: BotSignature,
    pub farmer: BotSignature,
}

impl SignedReservation {
    /// Checks both signatures.
    ///
    /// # Errors
    /// [`BadSignature`] names the party.
    pub fn verify(&self, chain: &ChainId) -> Result<(), BadSignature> {
        let Self { reservation, user, farmer } = self;
        reservation.user.verify(RESERVATION, chain, reservation, user)?;
        reservation.farmer.verify(RESERVATION, chain, reservation, farmer)
    }
}

/// Why somebody does not go on. Typed, so that a machine can choose what to do next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The farm takes no new contracts now.
    Maintenance,
    CustomerNotAllowed,
    /// The farm does not sell in the place of this node.
    Region,
    UnknownNode,
    TermTooShort {
        min_s: u64,
    },
    TermTooLong {
        max_s: u64,
    },
    GraceTooLong {
        max_s: u64,
    },
    NoRoom,
    PortTaken {
        port: PublishedPort,
    },
    NodeFull,
    Offline,
    PriceTooLow,
    PriceTooHigh,
    HoldFeeTooHigh,
    /// What is proposed is not what was quoted.
    NotAsQuoted,
    /// A person was asked, and said no.
    NotApproved,
    /// The buyer can't pay price and fee.
    Funds,
    /// The buyer has reservations open, or left too many unused.
    TooManyReservations,
    TooManyRounds,
    Overflow,
    /// The buyer takes another offer.
    ChoseAnother,
    /// The ledger refuses the contract.
    Ledger,
    Malformed,
    /// Capacity would be kept for unpaid grace longer than it was paid for.
    PrepaidTooShort {
        min_s: u64,
    },
    /// The node is being emptied.
    Draining,
    /// A rule of the farmer's own refuses this demand.
    Rule,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maintenance => f.write_str("the farm is in maintenance: try again later"),
            Self::CustomerNotAllowed => f.write_str("the farm does not sell to this bot: ask its owner"),
            Self::Region => {
                f.write_str("the farm does not sell in the place of this node: choose another node")
            }
            Self::UnknownNode => f.write_str("the farm has no such node: look it up again"),
            Self::TermTooShort { min_s } => write!(f, "it sells for at least {min_s} s: ask for longer"),
            Self::TermTooLong { max_s } => write!(f, "it sells for at most {max_s} s: ask for less time"),
            Self::GraceTooLong { max_s } => {
                write!(f, "it keeps data for at most {max_s} s: ask for less grace")
            }
            Self::NoRoom => f.write_str("too little is free: ask for less, or choose another node"),
            Self::PortTaken { port } => write!(f, "port {port} is taken: publish another one"),
            Self::NodeFull => f.write_str("the node has all contracts that it may have: choose another node"),
            Self::Offline => f.write_str("the node is not connected: choose another one, or try again later"),
            Self::PriceTooLow => f.write_str("the price is too low: offer more"),
            Self::PriceTooHigh => f.write_str("the price is above the buyer's limit: ask for less"),
            Self::HoldFeeTooHigh => {
                f.write_str("the fee for an unused reservation is above the buyer's limit")
            }
            Self::NotAsQuoted => f.write_str("what is proposed is not what was quoted: propose the quote"),
            Self::NotApproved => f.write_str("its owner was asked and said no"),
            Self::Funds => f.write_str("the wallet does not cover price and fee: top it up"),
            Self::TooManyReservations => {
                f.write_str("this bot has too many reservations open or left unused: use them, or wait")
            }
            Self::Rule => f.write_str("a rule of the farm's owner refuses it: ask another farm"),
            Self::TooManyRounds => f.write_str("no price was found in the rounds that are allowed"),
            Self::Overflow => f.write_str("the price exceeds all grains: ask for less"),
            Self::ChoseAnother => f.write_str("the buyer takes another offer"),
            Self::Ledger => f.write_str("the ledger refuses the contract"),
            Self::Malformed => f.write_str("the demand is malformed"),
            Self::Draining => {
                f.write_str("the farm empties this node, and takes nothing new on it: choose another node")
            }
            Self::PrepaidTooShort { min_s } => {
                write!(
                    f,
                    "what is paid ahead must last for the grace period, {min_s} s: prepay more, or ask for less grace"
                )
            }
        }
    }
}

/// What one message says.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Said {
    /// Buyer, step 0.
    Demand(Demand),
    /// Farmer: the first price.
    Offer(Quote),
    /// Either: another price. The same one again accepts it.
    Counter(Quote),
    /// Buyer: exact terms, and its signature over the reservation that belongs to them. Not yet over the terms: the
    /// farmer alone can commit the buyer to nothing but the fee.
    Propose { terms: Box<Terms>, fee: Grains, user: BotSignature },
    /// Farmer: its signatures over terms and reservation. Now the buyer alone can commit.
    Approve { terms: BotSignature, reservation: BotSignature },
    /// Buyer: the contract is on the ledger.
    Commit { contract: ContractId },
    /// Either: no. `last` ends the negotiation; otherwise the other may say something else.
    Reject { last: bool, reason: Reason },
}

impl Said {
    /// Whether this ends a negotiation.
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Commit { .. } | Self::Reject { last: true, .. })
    }

    /// For messages about messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Demand(_) => "a demand",
            Self::Offer(_) => "an offer",
            Self::Counter(_) => "a counter-offer",
            Self::Propose { .. } => "a proposal",
            Self::Approve { .. } => "an approval",
            Self::Commit { .. } => "a commit",
            Self::Reject { .. } => "a rejection",
        }
    }
}

/// One step of a negotiation.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Message {
    pub negotiation: NegotiationId,
    /// 0, 1, 2, ...
    pub step: u32,
    /// Hash of the signed message before; zero at step 0.
    pub prev: Hash,
    pub author: BotId,
    /// Void after this time: milliseconds since 1970, UTC.
    pub expires_ms: u64,
    pub said: Said,
    /// For people. Never decides anything.
    pub note: String,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedMessage {
    pub message: Message,
    pub signature: BotSignature,
}

impl SignedMessage {
    #[must_use]
    pub fn sign(message: Message, chain: &ChainId, key: &SecretKey) -> Self {
        let signature = key.sign_as_bot(NEGOTIATION, chain, &message);
        Self { message, signature }
    }

    /// Checks the author's signature.
    ///
    /// # Errors
    /// [`BadSignature`] names the author.
    pub fn verify(&self, chain: &ChainId) -> Result<(), BadSignature> {
        self.message.author.verify(NEGOTIATION, chain, &self.message, &self.signature)
    }

    /// What the next message names.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of("croft/negotiation-message/1", self)
    }
}
