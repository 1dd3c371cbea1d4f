//! What validators sign: block headers, and the certificates that make them final.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::faucet::Faucet;
use crate::hash::ParseHexError;
use crate::keys::Domain;
use crate::trust::TrustPolicy;
use crate::{Grains, Hash, Name, PublicKey, SecretKey, Signature};

/// A grid: the hash of its genesis.
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
pub struct ChainId(pub Hash);

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ChainId {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// What everybody under one chain id agrees on before the first block.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Genesis {
    pub name: Name,
    /// Milliseconds since 1970, UTC.
    pub time_ms: u64,
    pub validators: ValidatorSet,
    /// Who owns all grains there will ever be.
    pub allocations: Vec<Allocation>,
    /// What it asks of nodes' TPMs.
    #[serde(default)]
    pub trust: TrustPolicy,
    /// Of test grids only: grains for whoever asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faucet: Option<Faucet>,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Allocation {
    pub name: Name,
    pub bot: PublicKey,
    pub grains: Grains,
}

impl Genesis {
    #[must_use]
    pub fn chain_id(&self) -> ChainId {
        ChainId(Hash::of("croft/genesis/3", self))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Validator {
    pub key: PublicKey,
    pub power: u64,
}

/// Validators in ascending order of their keys, each once, each with power.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct ValidatorSet {
    pub validators: Vec<Validator>,
}

/// A list that is no validator set.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
    thiserror::Error,
)]
#[serde(rename_all = "snake_case")]
pub enum InvalidValidatorSet {
    #[error("a validator set has 1 to {limit} validators, not {count}", limit = crate::limits::VALIDATORS)]
    Count { count: u64 },
    #[error("validators must stand in ascending order of their keys, each once; {key} does not")]
    Order { key: PublicKey },
    #[error("validator {key} has power {power}; allowed are 1 to 1000000")]
    Power { key: PublicKey, power: u64 },
}

impl ValidatorSet {
    /// A set of equals.
    #[must_use]
    pub fn of_equals(keys: &[PublicKey]) -> Self {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys.dedup();
        Self { validators: keys.into_iter().map(|key| Validator { key, power: 1 }).collect() }
    }

    /// Checks number, order and powers.
    ///
    /// # Errors
    /// [`InvalidValidatorSet`] names the first culprit.
    pub fn check(&self) -> Result<(), InvalidValidatorSet> {
        let count = self.validators.len();
        if count == 0 || count > crate::limits::VALIDATORS {
            return Err(InvalidValidatorSet::Count { count: count as u64 });
        }
        for pair in self.validators.windows(2) {
            if pair[0].key >= pair[1].key {
                return Err(InvalidValidatorSet::Order { key: pair[1].key });
            }
        }
        for validator in &self.validators {
            if !(1..=1_000_000).contains(&validator.power) {
                return Err(InvalidValidatorSet::Power { key: validator.key, power: validator.power });
            }
        }
        Ok(())
    }

    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of("croft/validators/1", self)
    }

    /// Power of one key; 0 when it is no validator. The set must be checked.
    #[must_use]
    pub fn power_of(&self, key: &PublicKey) -> u64 {
        self.validators.binary_search_by_key(key, |v| v.key).map_or(0, |at| self.validators[at].power)
    }

    #[must_use]
    pub fn total_power(&self) -> u64 {
        self.validators.iter().map(|v| v.power).sum()
    }
}

/// A block header. Its hash is what validators sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Header {
    pub chain: ChainId,
    /// 0 for the genesis block.
    pub height: u64,
    /// Milliseconds since 1970, UTC; greater than the previous header's.
    pub time_ms: u64,
    /// Hash of the previous header; zero at height 0.
    pub prev: Hash,
    /// RFC 6962 tree head over all records up to and including this block.
    pub log_root: Hash,
    /// Number of those records.
    pub log_size: u64,
    /// Root of the state map after this block.
    pub state_root: Hash,
    /// Hash of the validator set that certifies this block.
    pub validators: Hash,
    /// Hash of the set that certifies the next.
    pub next_validators: Hash,
}

impl Header {
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of("croft/header/1", self)
    }
}

/// Signatures of more than two thirds of the power over one header.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Certificate {
    pub height: u64,
    /// The consensus round that decided; 0 in solo ordering.
    pub round: u32,
    pub header: Hash,
    /// In ascending order of keys, each validator at most once.
    pub signatures: Vec<(PublicKey, Signature)>,
}

impl Certificate {
    /// One validator's signature for a certificate.
    #[must_use]
    pub fn sign(key: &SecretKey, chain: &ChainId, height: u64, round: u32, header: &Hash) -> Signature {
        key.sign(Domain::CERTIFICATE, chain, &(height, round, header))
    }

    /// What each signature covers.
    #[must_use]
    pub fn signed_value(&self) -> (u64, u32, Hash) {
        (self.height, self.round, self.header)
    }
}

/// A final header.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedHeader {
    pub header: Header,
    pub certificate: Certificate,
    /// The set whose hash is `header.validators`: small, and saves a round trip.
    pub validators: ValidatorSet,
}
