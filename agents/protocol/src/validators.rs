//! A change of the grid's validators, and when it counts.
//!
//! ```text
//!   ValidatorChange { prev, validators } ── signed by > 2/3 of the present power ──> validators record n+1
//!                                                                                  └─ certifies the next block
//! ```
//! The same check runs in the state machine and in the hands of those who sign, so that nobody collects
//! signatures for what the ledger will refuse. It must never let one change take the ledger out of the hands
//! of those who have it: more than two thirds agree, and at least two thirds of the present power stay.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::header::{ChainId, InvalidValidatorSet, ValidatorSet};
use crate::keys::Domain;
use crate::{Hash, PublicKey, SecretKey, Signature};

impl Domain {
    pub const VALIDATORS: Self = Self("croft/validator-change/1");
}

/// What present validators sign.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidatorChange {
    /// Hash of the validators record that this one supersedes: void as soon as there is another.
    pub prev: Hash,
    pub validators: ValidatorSet,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedValidatorChange {
    pub change: ValidatorChange,
    /// By present validators over [`Domain::VALIDATORS`], in ascending order of keys, each at most once.
    pub signatures: Vec<(PublicKey, Signature)>,
}

/// Why a change of the validators does not count. Names the culprit, and says what would help.
#[derive(
    Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize, thiserror::Error,
)]
#[serde(rename_all = "snake_case")]
pub enum InvalidChange {
    #[error(
        "it supersedes validators record {theirs}, but the present one is {present}: propose it again and have it signed again"
    )]
    Stale { theirs: Hash, present: Hash },
    #[error("{0}")]
    Set(InvalidValidatorSet),
    #[error("the validators and their powers are already these")]
    Same,
    #[error(
        "of the present validators' power {total} only {kept} would stay, at least two thirds must: replace fewer at a time"
    )]
    TooMuchRemoved { kept: u64, total: u64 },
    #[error("{key} signed it but is no validator: leave that signature out")]
    NotValidator { key: PublicKey },
    #[error("the signatures must stand in ascending order of their keys, each once; {key} does not")]
    SignatureOrder { key: PublicKey },
    #[error(
        "it is signed by {power} of {total} power, more than two thirds are needed: have more validators sign it"
    )]
    TooLittlePower { power: u64, total: u64 },
    #[error("the signature of validator {key} is wrong: have it signed again")]
    BadSignature { key: PublicKey },
    #[error("the validators were changed in this very block: submit it again")]
    TwiceInBlock,
}

impl ValidatorChange {
    #[must_use]
    pub fn sign(&self, key: &SecretKey, chain: &ChainId) -> (PublicKey, Signature) {
        (key.public(), key.sign(Domain::VALIDATORS, chain, self))
    }

    /// Checks what does not depend on signatures. `record` is the hash of the present validators record,
    /// `present` the set in it.
    ///
    /// # Errors
    /// [`InvalidChange`] names the first culprit.
    pub fn check(&self, record: Hash, present: &ValidatorSet) -> Result<(), InvalidChange> {
        if self.prev != record {
            return Err(InvalidChange::Stale { theirs: self.prev, present: record });
        }
        self.validators.check().map_err(InvalidChange::Set)?;
        if self.validators == *present {
            return Err(InvalidChange::Same);
        }
        let (kept, total) = (self.kept_power(present), present.total_power());
        if kept * 3 < total * 2 {
            return Err(InvalidChange::TooMuchRemoved { kept, total });
        }
        Ok(())
    }

    /// How much of the present power stays where it is. At most 64 validators of a million each: no overflow.
    fn kept_power(&self, present: &ValidatorSet) -> u64 {
        present.validators.iter().map(|v| v.power.min(self.validators.power_of(&v.key))).sum()
    }
}

impl SignedValidatorChange {
    /// Checks everything, the signatures themselves last, since they cost most.
    ///
    /// # Errors
    /// [`InvalidChange`] names the first culprit.
    pub fn check(&self, chain: &ChainId, record: Hash, present: &ValidatorSet) -> Result<(), InvalidChange> {
        self.change.check(record, present)?;
        let (power, total) = (self.claimed_power(present)?, present.total_power());
        if power * 3 <= total * 2 {
            return Err(InvalidChange::TooLittlePower { power, total });
        }
        self.verify_signatures(chain)
    }

    /// Power of those who claim to have signed, each a present validator and in order.
    ///
    /// # Errors
    /// [`InvalidChange::NotValidator`], [`InvalidChange::SignatureOrder`].
    pub fn claimed_power(&self, present: &ValidatorSet) -> Result<u64, InvalidChange> {
        let mut power = 0;
        let mut before: Option<PublicKey> = None;
        for (key, _) in &self.signatures {
            let key = *key;
            if before.is_some_and(|before| before >= key) {
                return Err(InvalidChange::SignatureOrder { key });
            }
            before = Some(key);
            match present.power_of(&key) {
                0 => return Err(InvalidChange::NotValidator { key }),
                has => power += has,
            }
        }
        Ok(power)
    }

    /// # Errors
    /// [`InvalidChange::BadSignature`] names the first culprit.
    pub fn verify_signatures(&self, chain: &ChainId) -> Result<(), InvalidChange> {
        for (key, signature) in &self.signatures {
            key.verify(Domain::VALIDATORS, chain, &self.change, signature)
                .map_err(|_| InvalidChange::BadSignature { key: *key })?;
        }
        Ok(())
    }

    /// Adds a signature in its place; a validator's new signature replaces its old one.
    pub fn add(&mut self, (key, signature): (PublicKey, Signature)) {
        match self.signatures.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => self.signatures[at].1 = signature,
            Err(at) => self.signatures.insert(at, (key, signature)),
        }
    }
}
