//! Sealing of workloads to one node, and of messages to one bot (`crate::message`): HPKE (RFC 9180), base mode, X25519, HKDF-SHA256, ChaCha20-Poly1305.
//!
//! The associated data binds a sealed workload to its chain and node, so that a contract can't carry one
//! that was sealed for another contract's node.

use borsh::{BorshDeserialize, BorshSerialize};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};

use crate::header::ChainId;
use crate::{NodeId, limits};

const INFO: &[u8] = b"croft/sealed-workload/1";

#[derive(BorshSerialize, BorshDeserialize)]
struct Envelope {
    encapped: [u8; 32],
    ciphertext: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("the node's sealing key is no X25519 key")]
    BadKey,
    #[error("a workload of {len} bytes exceeds the limit of {limit}", limit = limits::SEALED_WORKLOAD_BYTES)]
    TooLarge { len: usize },
    #[error("the workload is not sealed to this node and chain, or was altered")]
    NotForUs,
}

/// An X25519 secret key that opens what is sealed to its node.
#[derive(Clone)]
pub struct SealingKey(<X25519HkdfSha256 as Kem>::PrivateKey);

impl SealingKey {
    /// The key that belongs to a 32-byte secret (RFC 9180, `DeriveKeyPair`).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(X25519HkdfSha256::derive_keypair(seed).0)
    }

    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        X25519HkdfSha256::sk_to_pk(&self.0).to_bytes().into()
    }

    /// Opens what [`seal`] made for this key, node and chain.
    ///
    /// # Errors
    /// [`SealError::NotForUs`] when it was made for another, or altered.
    pub fn open(&self, chain: &ChainId, node: &NodeId, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        open_raw(INFO, self, &crate::encode(&(chain, node)), sealed, limits::SEALED_WORKLOAD_BYTES)
    }
}

/// Opens what [`seal_raw`] made with the same purpose and associated data; refuses more than `limit` bytes.
pub(crate) fn open_raw(
    info: &[u8],
    key: &SealingKey,
    bound: &[u8],
    sealed: &[u8],
    limit: usize,
) -> Result<Vec<u8>, SealError> {
    let envelope: Envelope = crate::decode("sealed bytes", sealed, limit).map_err(|_| SealError::NotForUs)?;
    let encapped = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(&envelope.encapped)
        .map_err(|_| SealError::NotForUs)?;
    hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &key.0,
        &encapped,
        info,
        &envelope.ciphertext,
        bound,
    )
    .map_err(|_| SealError::NotForUs)
}

/// Seals bytes to an X25519 key for one purpose, bound to associated data.
pub(crate) fn seal_raw(
    info: &[u8],
    sealing_key: &[u8; 32],
    bound: &[u8],
    plain: &[u8],
) -> Result<Vec<u8>, SealError> {
    let key = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(sealing_key).map_err(|_| SealError::BadKey)?;
    let (encapped, ciphertext) = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &key,
        info,
        plain,
        bound,
    )
    .map_err(|_| SealError::BadKey)?;
    Ok(crate::encode(&Envelope { encapped: encapped.to_bytes().into(), ciphertext }))
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealingKey(of {})", hex::encode(&self.public()[..4]))
    }
}

/// Seals bytes to a node's X25519 key with fresh randomness from the kernel.
///
/// # Errors
/// [`SealError`] when the key is none or the bytes are too many.
pub fn seal(
    sealing_key: &[u8; 32],
    chain: &ChainId,
    node: &NodeId,
    plain: &[u8],
) -> Result<Vec<u8>, SealError> {
    let sealed = seal_raw(INFO, sealing_key, &crate::encode(&(chain, node)), plain)?;
    if sealed.len() > limits::SEALED_WORKLOAD_BYTES {
        return Err(SealError::TooLarge { len: sealed.len() });
    }
    Ok(sealed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hash, SecretKey};

    const CHAIN: ChainId = ChainId(Hash([7; 32]));

    #[test]
    fn only_the_node_it_was_sealed_to_can_open_it() {
        let key = SealingKey::from_seed(&[1; 32]);
        let node = SecretKey::from_seed(&[2; 32]).public();
        let other_node = SecretKey::from_seed(&[3; 32]).public();
        let sealed = seal(&key.public(), &CHAIN, &node, b"secret").unwrap();
        assert_eq!(key.open(&CHAIN, &node, &sealed).unwrap(), b"secret");
        assert_eq!(key.open(&CHAIN, &other_node, &sealed), Err(SealError::NotForUs));
        assert_eq!(key.open(&ChainId(Hash([8; 32])), &node, &sealed), Err(SealError::NotForUs));
        assert_eq!(SealingKey::from_seed(&[9; 32]).open(&CHAIN, &node, &sealed), Err(SealError::NotForUs));
    }

    #[test]
    fn an_altered_byte_anywhere_is_noticed() {
        let key = SealingKey::from_seed(&[1; 32]);
        let node = SecretKey::from_seed(&[2; 32]).public();
        let sealed = seal(&key.public(), &CHAIN, &node, b"secret").unwrap();
        for i in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[i] ^= 1;
            assert_eq!(key.open(&CHAIN, &node, &altered), Err(SealError::NotForUs), "byte {i}");
        }
    }

    #[test]
    fn too_large_a_workload_is_refused_with_both_sizes() {
        let key = SealingKey::from_seed(&[1; 32]);
        let node = SecretKey::from_seed(&[2; 32]).public();
        let error = seal(&key.public(), &CHAIN, &node, &vec![0; limits::SEALED_WORKLOAD_BYTES]).unwrap_err();
        assert_eq!(error.to_string(), "a workload of 65588 bytes exceeds the limit of 65536");
    }
}
