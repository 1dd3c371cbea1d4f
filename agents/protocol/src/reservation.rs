//! Reservations on the ledger: capacity that is held for one contract, and the fee that is due when nobody uses it.
//!
//! ```text
//!   announce ──> Held ──agree──> Used            the fee goes back to the user
//!                 │ ├──node shrinks──> Withdrawn the fee goes back to the user
//!                 │ └──a day after its expiry──> Lapsed       the same
//!                 └──claim after its expiry──> Claimed        the fee is the farmer's
//! ```
//! Both signed the reservation ([`crate::market`]); the farmer announces it with its signature over the terms, so that
//! the user alone can make a contract of it, whether or not the approval ever reached it. The fee is taken into escrow
//! with the announcement. Capacity and ports are free again at the expiry, whoever claims or does not. A fee must never
//! be due for what the user could not use.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::contract::{ContractId, PublishedPort, Terms};
use crate::header::ChainId;
use crate::identity::BotSignature;
use crate::keys::{BadSignature, Domain};
use crate::market::{CLAIM_MS, NOTICE_MS, RESERVATION_MS, Reservation, SignedReservation};
use crate::{BotId, limits};

/// What a farmer brings to the ledger.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Announcement {
    pub reservation: SignedReservation,
    /// What the reservation is for.
    pub terms: Terms,
    /// The farmer's signature over the terms.
    pub approval: BotSignature,
}

impl Announcement {
    /// Checks that the reservation is that of the terms, that both signed it, and that the farmer signed the terms.
    ///
    /// # Errors
    /// [`BadAnnouncement`] says what does not hold.
    pub fn verify(&self, chain: &ChainId) -> Result<(), BadAnnouncement> {
        let Self { reservation, terms, approval } = self;
        let held = &reservation.reservation;
        if *held != Reservation::of(held.negotiation, terms, held.fee) {
            return Err(BadAnnouncement::OtherTerms);
        }
        reservation.verify(chain)?;
        Ok(terms.farmer.verify(Domain::TERMS, chain, terms, approval)?)
    }

    /// Whether it comes in time at this block time: early enough for the user to find it, and not so early that
    /// capacity is held for longer than allowed.
    ///
    /// # Errors
    /// [`ReservationRefusal`] says which of both it is.
    pub fn check_time(&self, now_ms: u64) -> Result<(), ReservationRefusal> {
        let expires_ms = self.reservation.reservation.expires_ms;
        if now_ms.saturating_add(NOTICE_MS) > expires_ms {
            return Err(ReservationRefusal::TooLate { expires_ms, now_ms });
        }
        let limit_ms = RESERVATION_MS + limits::CLOCK_SLACK_MS;
        if expires_ms - now_ms > limit_ms {
            return Err(ReservationRefusal::TooLong { held_ms: expires_ms - now_ms, limit_ms });
        }
        Ok(())
    }
}

/// Why an announcement does not hold together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAnnouncement {
    #[error("the reservation is not that of the terms")]
    OtherTerms,
    #[error(transparent)]
    Signature(#[from] BadSignature),
}

/// What became of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReservationState {
    /// Its fee is in escrow, and until the expiry its capacity is held.
    Held,
    /// Its contract was agreed on.
    Used,
    /// Nobody used it, and the farmer has the fee.
    Claimed,
    /// Its node has not got any more what was held.
    Withdrawn,
    /// Nobody used it, and nobody claimed the fee in time.
    Lapsed,
}

/// A reservation as the ledger keeps it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ReservationBody {
    pub signed: SignedReservation,
    pub ports: Vec<PublishedPort>,
    /// The farmer's signature over the terms: with it the user can make a contract of it.
    pub approval: BotSignature,
    /// Block time of the announcement: milliseconds since 1970, UTC.
    pub announced_ms: u64,
    pub state: ReservationState,
}

impl ReservationBody {
    /// Until when its fee can be claimed.
    #[must_use]
    pub fn claimable_until_ms(&self) -> u64 {
        self.signed.reservation.expires_ms.saturating_add(CLAIM_MS)
    }

    /// What a claim at this block time comes to: `Claimed` by the farmer in time, `Lapsed` by anyone later. Pure, so
    /// that the ledger, the farmer's bot and the simulator decide alike.
    ///
    /// # Errors
    /// [`ReservationRefusal`] says why nothing is due.
    pub fn claim(&self, author: &BotId, now_ms: u64) -> Result<ReservationState, ReservationRefusal> {
        match self.state {
            ReservationState::Held => {}
            ReservationState::Used => return Err(ReservationRefusal::Used),
            ReservationState::Claimed => return Err(ReservationRefusal::Claimed),
            ReservationState::Withdrawn => return Err(ReservationRefusal::Withdrawn),
            ReservationState::Lapsed => return Err(ReservationRefusal::Lapsed),
        }
        let Reservation { expires_ms, farmer, .. } = self.signed.reservation;
        if now_ms <= expires_ms {
            return Err(ReservationRefusal::NotYet { expires_ms, now_ms });
        }
        let until_ms = self.claimable_until_ms();
        if now_ms > until_ms {
            return Ok(ReservationState::Lapsed);
        }
        if *author == farmer {
            Ok(ReservationState::Claimed)
        } else {
            Err(ReservationRefusal::NotFarmer { farmer, until_ms })
        }
    }
}

impl Serialize for ReservationBody {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut s = serializer.serialize_struct("ReservationBody", 4)?;
        s.serialize_field("reservation", &self.signed.reservation)?;
        s.serialize_field("ports", &self.ports)?;
        s.serialize_field("announced_ms", &self.announced_ms)?;
        s.serialize_field("state", &self.state)?;
        s.end()
    }
}

/// Why a reservation is not announced, or its fee not paid. Whose it is, the rejection around it says.
#[derive(
    Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize, thiserror::Error,
)]
#[serde(rename_all = "snake_case")]
pub enum ReservationRefusal {
    #[error("it was announced already")]
    Announced,
    #[error("it is not that of the terms that came with it: announce what both signed")]
    OtherTerms,
    #[error(
        "it expires at {expires_ms} ms, it is {now_ms} ms, and its user needs {NOTICE_MS} ms to find it: it stays unannounced, and no fee is due"
    )]
    TooLate { expires_ms: u64, now_ms: u64 },
    #[error("it would hold capacity for {held_ms} ms, at most {limit_ms} are allowed: let it expire sooner")]
    TooLong { held_ms: u64, limit_ms: u64 },
    #[error("{user} has {limit} reservations open, which is all that one bot may have: use them, or wait")]
    TooManyOfUser { user: BotId, limit: u64 },
    #[error("{farmer} has {limit} reservations open, which is all that one farmer may have: wait for some")]
    TooManyOfFarmer { farmer: BotId, limit: u64 },
    #[error(
        "{limit} reservations expire within the same seconds, which is all: let it expire a little later"
    )]
    TooManyAtOnce { limit: u64 },
    #[error("it was never announced: no fee is due")]
    NotAnnounced,
    #[error("it is good until {expires_ms} ms, it is {now_ms} ms: claim the fee after that")]
    NotYet { expires_ms: u64, now_ms: u64 },
    #[error("only farmer {farmer} may claim its fee, until {until_ms} ms; after that anybody gives it back")]
    NotFarmer { farmer: BotId, until_ms: u64 },
    #[error("its contract was agreed on: a reservation that was used costs nothing")]
    Used,
    #[error("its fee was claimed already")]
    Claimed,
    #[error("its node no longer had what was held: no fee is due")]
    Withdrawn,
    #[error("its fee was not claimed in time and went back to its user")]
    Lapsed,
}

impl ReservationRefusal {
    /// Whether nothing more can come of a claim.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::NotAnnounced
                | Self::Used
                | Self::Claimed
                | Self::Withdrawn
                | Self::Lapsed
                | Self::NotFarmer { .. }
        )
    }
}

/// The reservations that hold capacity of a node: in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct NodeReservations {
    pub contracts: Vec<ContractId>,
}

/// How many reservations of a bot hold capacity: as user and as farmer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct OpenReservations {
    pub as_user: u32,
    pub as_farmer: u32,
}

/// Which slots of time may hold reservations that expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct ReservationQueue {
    /// The first slot that was not gone through.
    pub next_slot: u64,
    /// Reservations in this slot and later ones.
    pub waiting: u64,
}

/// Reservations that expire in one slot, as they were announced.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct ReservationSlot {
    pub contracts: Vec<ContractId>,
}

/// The slot of an expiry. It is gone through when it is over.
#[must_use]
pub fn slot_of(time_ms: u64) -> u64 {
    time_ms / limits::RESERVATION_SLOT_MS
}
