//! The language of the grid: ids, records, commands, messages, limits and their canonical encoding.
//!
//! Everything that is signed or hashed is encoded with borsh, which has exactly one encoding per value,
//! and every signature covers a domain and the chain id, so that no bytes mean two things. This crate does
//! no I/O, reads no clock and depends on no other crate of ours.
//!
//! Where to look: [`command`] says what can be asked of the ledger and why it may be refused, [`record`]
//! what the ledger keeps, [`header`] what validators sign, [`validators`] how they are replaced, [`state`] what can
//! be proved, [`api`] what a replica answers, [`addition`] what a farm tells its machines before they boot, [`peer`]
//! what nodes and bots say to each other, [`market`] how they negotiate, [`reservation`] what is held meanwhile, [`message`] what
//! they write to each other, [`directory`] what they say of themselves, [`release`] what boot files there are and who
//! takes them, [`trouble`] what is wrong with a node, [`workload`] and [`image`] what runs.

pub mod addition;
pub mod api;
pub mod attestation;
mod batch;
pub mod boot;
pub mod capacity;
pub mod command;
pub mod contract;
pub mod directory;
pub mod faucet;
pub mod hash;
pub mod header;
pub mod identity;
pub mod image;
pub mod keys;
pub mod limits;
pub mod market;
pub mod message;
pub mod money;
pub mod name;
pub mod peer;
pub mod query;
pub mod record;
pub mod release;
pub mod reservation;
pub mod seal;
pub mod state;
pub mod trouble;
pub mod trust;
pub mod units;
pub mod validators;
pub mod workload;

pub use attestation::Attestation;
pub use capacity::{Capacity, NodeCapacity};
pub use command::{Command, CommandBody, Rejection, SignedCommand};
pub use contract::{ContractBody, ContractId, ContractState, EndReason, Escrow, SignedTerms, Terms};
pub use directory::{Profile, Role};
pub use faucet::Faucet;
pub use hash::Hash;
pub use header::{Certificate, ChainId, Genesis, Header, SignedHeader, Validator, ValidatorSet};
pub use identity::{BotSignature, KeyRefusal};
pub use keys::{BotId, NodeId, PublicKey, SecretKey, Signature};
pub use money::{Grains, PriceList, Rate};
pub use name::Name;
pub use record::{Body, FarmId, Kind, Record, RecordId};
pub use release::{InvalidRelease, ReleaseId, ReleaseVersion};
pub use reservation::{Announcement, ReservationBody, ReservationRefusal, ReservationState};
pub use state::StateKey;
pub use trouble::{NodeTrouble, TroubleKind};
pub use trust::{Endorsement, NodeTrust, TrustPolicy};
pub use validators::{InvalidChange, SignedValidatorChange, ValidatorChange};

/// Encodes a value canonically.
///
/// # Panics
/// Never for the types of this crate: encoding into memory fails only for collections of 2^32 items.
pub fn encode<T: borsh::BorshSerialize + ?Sized>(value: &T) -> Vec<u8> {
    borsh::to_vec(value).expect("encoding into memory can't fail")
}

/// Why bytes from outside are not a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than this kind of message may have; nothing was decoded.
    #[error("{what} has {len} bytes, more than the limit of {limit}")]
    TooLarge { what: &'static str, len: usize, limit: usize },
    /// Truncated, trailing or nonsensical bytes.
    #[error("{what} is malformed: {reason}")]
    Malformed { what: &'static str, reason: String },
}

/// Decodes exactly one value from at most `limit` bytes.
///
/// # Errors
/// [`DecodeError`] when the bytes are too many, too few, too strange, or followed by others.
pub fn decode<T: borsh::BorshDeserialize>(
    what: &'static str,
    bytes: &[u8],
    limit: usize,
) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLarge { what, len: bytes.len(), limit });
    }
    borsh::from_slice(bytes).map_err(|e| DecodeError::Malformed { what, reason: e.to_string() })
}
