//! ed25519 identities: bots, nodes and validators are their public keys.
//!
//! Verification is `verify_strict` only: it refuses small-order keys and the malleable encodings that
//! RFC 8032 leaves open, so that every implementation agrees on every signature. Signatures of commands have a rule of
//! their own, as exact and as safe, by which many can be checked together (`batch.rs`).

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::hash::{ParseHexError, parse_hex};
use crate::header::ChainId;
use crate::identity::{self, BadLinks, BotSignature, Link};

/// An ed25519 public key, 32 bytes, not yet known to be a valid point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct PublicKey(pub [u8; 32]);

/// A bot is its first public key, also after that was replaced ([`crate::identity`]).
pub type BotId = PublicKey;
/// A node is its public key.
pub type NodeId = PublicKey;

/// An ed25519 signature, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Signature(pub [u8; 64]);

/// A signature that does not belong to this key and message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("signature over {domain} by {key} is wrong")]
pub struct BadSignature {
    pub domain: &'static str,
    pub key: PublicKey,
}

/// What a signature can cover. The text goes into the signed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain(pub &'static str);

impl Domain {
    pub const COMMAND: Self = Self("croft/command/1");
    pub const TERMS: Self = Self("croft/terms/1");
    pub const CERTIFICATE: Self = Self("croft/certificate/1");
    pub const JOIN: Self = Self("croft/join/1");
    /// Votes of validators other than those that make a certificate.
    pub const VOTE: Self = Self("croft/vote/1");
    /// Proposals of validators.
    pub const PROPOSAL: Self = Self("croft/proposal/1");
    /// That an attestation key lives in the TPM of an endorsement key.
    pub const VOUCHER: Self = Self("croft/voucher/1");
    /// Messages from bot to bot.
    pub const MESSAGE: Self = Self("croft/message/1");
    /// That a bot's key is followed by another one ([`crate::identity`]).
    pub const KEY_CHANGE: Self = Self("croft/key-change/1");
}

pub(crate) fn signed_bytes<T: BorshSerialize + ?Sized>(
    domain: Domain,
    chain: &ChainId,
    value: &T,
) -> Vec<u8> {
    crate::encode(&(domain.0, chain, value))
}

impl PublicKey {
    /// Checks a signature over a domain, a chain and a value. A [`crate::identity::BotSignature`] may be of a key that
    /// followed this one; whether that key still holds, only the ledger knows.
    ///
    /// # Errors
    /// [`BadSignature`] when the key is no valid point or the signature is not this key's.
    pub fn verify<T: BorshSerialize + ?Sized, S: SignedWith>(
        &self,
        domain: Domain,
        chain: &ChainId,
        value: &T,
        signature: &S,
    ) -> Result<(), BadSignature> {
        let bad = BadSignature { domain: domain.0, key: *self };
        let (key, signature) = signature.signed_with(self, chain).ok_or(bad)?;
        let key = VerifyingKey::from_bytes(&key.0).map_err(|_| bad)?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(&signed_bytes(domain, chain, value), &signature).map_err(|_| bad)
    }

    /// The first eight hex digits, for people; never for comparison.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

/// What shows that an identity signed something.
pub trait SignedWith {
    /// The key that signed, if it is the identity's, and its signature.
    fn signed_with(&self, identity: &PublicKey, chain: &ChainId) -> Option<(PublicKey, Signature)>;
}

impl SignedWith for Signature {
    fn signed_with(&self, identity: &PublicKey, _: &ChainId) -> Option<(PublicKey, Self)> {
        Some((*identity, *self))
    }
}

/// An ed25519 secret key. Wiped from memory when dropped; never shown.
pub struct SecretKey {
    key: SigningKey,
    /// Of a bot whose key was replaced.
    successor: Option<Box<(BotId, Vec<Link>)>>,
}

impl SecretKey {
    /// A new key from the kernel's randomness.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a 32-byte seed (RFC 8032, section 5.1.5).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(seed), successor: None }
    }

    /// The same key as the present one of a bot: the last of `links`, which lead to it from the bot's first key.
    ///
    /// # Errors
    /// [`BadLinks`] when they don't.
    pub fn of_bot(self, bot: BotId, links: Vec<Link>, chain: &ChainId) -> Result<Self, BadLinks> {
        let found = identity::check_links(&bot, &links, chain)?;
        if found != self.public() {
            return Err(BadLinks::Elsewhere { bot, key: self.public(), found });
        }
        let successor = (!links.is_empty()).then(|| Box::new((bot, links)));
        Ok(Self { successor, ..self })
    }

    /// The 32-byte seed, to be stored where only its owner reads.
    #[must_use]
    pub fn seed(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.key.verifying_key().to_bytes())
    }

    /// Who signs with it: its first key.
    #[must_use]
    pub fn id(&self) -> BotId {
        self.successor.as_ref().map_or_else(|| self.public(), |successor| successor.0)
    }

    /// What leads from the first key to this one; nothing for a key that was never replaced.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        self.successor.as_ref().map_or(&[], |successor| &successor.1)
    }

    /// Signs as the bot that it is the key of.
    #[must_use]
    pub fn sign_as_bot<T: BorshSerialize + ?Sized>(
        &self,
        domain: Domain,
        chain: &ChainId,
        value: &T,
    ) -> BotSignature {
        BotSignature { links: self.links().to_vec(), signature: self.sign(domain, chain, value) }
    }

    /// Signs a domain, a chain and a value.
    #[must_use]
    pub fn sign<T: BorshSerialize + ?Sized>(&self, domain: Domain, chain: &ChainId, value: &T) -> Signature {
        Signature(self.key.sign(&signed_bytes(domain, chain, value)).to_bytes())
    }

    /// The same key in PKCS #8 (RFC 8410), as TLS libraries want it: 48 bytes of DER.
    #[must_use]
    pub fn pkcs8_der(&self) -> Vec<u8> {
        // SEQUENCE { version 0, AlgorithmIdentifier 1.3.101.112, OCTET STRING { OCTET STRING seed } }
        let mut der = vec![
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
        ];
        der.extend_from_slice(&self.key.to_bytes());
        der
    }
}

impl Clone for SecretKey {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), successor: self.successor.clone() }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public().short())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.short())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", hex::encode(&self.0[..4]))
    }
}

impl FromStr for PublicKey {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex("a public key", text).map(Self)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as Deserialize>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hash;

    const CHAIN: ChainId = ChainId(Hash([7; 32]));

    #[test]
    fn a_signature_holds_for_its_domain_chain_and_value_only() {
        let key = SecretKey::from_seed(&[1; 32]);
        let signature = key.sign(Domain::TERMS, &CHAIN, "hello");
        let public = key.public();
        assert!(public.verify(Domain::TERMS, &CHAIN, "hello", &signature).is_ok());
        assert!(public.verify(Domain::COMMAND, &CHAIN, "hello", &signature).is_err());
        assert!(public.verify(Domain::TERMS, &ChainId(Hash([8; 32])), "hello", &signature).is_err());
        assert!(public.verify(Domain::TERMS, &CHAIN, "hullo", &signature).is_err());
    }

    #[test]
    fn a_key_that_is_no_point_is_refused_with_its_name() {
        let nonsense = PublicKey([0xff; 32]);
        let error = nonsense.verify(Domain::TERMS, &CHAIN, "x", &Signature([0; 64])).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("signature over croft/terms/1 by {} is wrong", "ff".repeat(32))
        );
    }

    #[test]
    fn a_secret_key_is_never_shown() {
        let key = SecretKey::from_seed(&[3; 32]);
        assert!(!format!("{key:?}").contains(&hex::encode([3; 32])));
    }
}
