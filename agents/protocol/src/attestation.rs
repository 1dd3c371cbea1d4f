//! What a node shows of its TPM when it registers: a quote over its measured boot, bound to itself and to now.
//!
//! Only the form and its bounds are here; `croft-attest` says what it is worth. TPM structures stay in the TPM's own
//! encoding (TPM 2.0 Library, part 2), because that is what the TPM hashed and signed.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::header::ChainId;
use crate::keys::{BadSignature, Domain};
use crate::record::NodeBody;
use crate::{Hash, NodeId, PublicKey, SecretKey, Signature, limits};

/// A node's proof of what it booted.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Attestation {
    /// Height of the recent header whose hash is in the quote's nonce.
    pub height: u64,
    /// The attestation key: TPMT_PUBLIC, at most [`limits::TPM_KEY_BYTES`].
    pub key: Vec<u8>,
    /// TPMS_ATTEST as the TPM signed it, at most [`limits::TPM_QUOTE_BYTES`].
    pub quote: Vec<u8>,
    /// ECDSA P-256 over SHA-256 of `quote`: r and s, 32 bytes each, big-endian.
    pub signature: [u8; 64],
    /// The locality from which the firmware started the TPM: 0, 3 or 4. Register 0 begins with it.
    pub locality: u8,
    /// What was extended into the quoted registers, in order; at most [`limits::MEASURED_EVENTS`].
    pub events: Vec<MeasuredEvent>,
    /// Who has seen that the attestation key lives in the TPM of an endorsement key; at most [`limits::VOUCHERS`].
    pub vouchers: Vec<SignedVoucher>,
}

/// One entry of the firmware's event log, in the SHA-256 bank, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct MeasuredEvent {
    pub pcr: u8,
    /// Event type (TCG PC Client Platform Firmware Profile, table 27).
    pub kind: u32,
    pub digest: Hash,
}

/// "I sent this endorsement key a secret for this attestation key, and the node answered with it."
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Voucher {
    pub node: NodeId,
    /// SHA-256 of the attestation key's TPMT_PUBLIC: its TPM name without the algorithm.
    pub key: Hash,
    /// The same of the endorsement key.
    pub endorsement: Hash,
    /// SHA-256 of the endorsement key's certificate, when the voucher's author checked it against the makers' roots.
    pub certificate: Option<Hash>,
    /// Height of the ledger when it was given.
    pub height: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedVoucher {
    pub voucher: Voucher,
    pub by: PublicKey,
    /// Over [`Domain::VOUCHER`].
    pub signature: Signature,
}

/// A node asks somebody to vouch for its TPM. Three messages on one stream that the node opens: this, [`Credential`],
/// the secret in it; then the [`SignedVoucher`].
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Introduction {
    /// The attestation key: TPMT_PUBLIC, at most [`limits::TPM_KEY_BYTES`].
    pub key: Vec<u8>,
    /// The endorsement key, likewise.
    pub endorsement: Vec<u8>,
    /// DER, first of the endorsement key, then of issuers up to a maker's root, without it: at most
    /// [`limits::TPM_CERTIFICATES`] of [`limits::TPM_CERTIFICATE_BYTES`]. None where the TPM has none.
    pub certificates: Vec<Vec<u8>>,
}

/// A secret that only the TPM with the endorsement key opens, and only beside the attestation key.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Credential {
    /// Contents of TPM2B_ID_OBJECT.
    pub blob: Vec<u8>,
    /// Contents of TPM2B_ENCRYPTED_SECRET.
    pub secret: Vec<u8>,
}

/// An attestation that is larger than any honest one.
#[derive(
    Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize, thiserror::Error,
)]
#[error("the attestation's {field} has {got}, more than the limit of {limit}")]
pub struct AttestationTooLarge {
    pub field: String,
    pub got: u64,
    pub limit: u64,
}

/// `(field, length, limit)` of each; the first that is too long is the culprit.
fn check_lengths(lengths: &[(&str, usize, usize)]) -> Result<(), AttestationTooLarge> {
    match lengths.iter().find(|(_, got, limit)| got > limit) {
        None => Ok(()),
        Some((field, got, limit)) => {
            Err(AttestationTooLarge { field: (*field).to_owned(), got: *got as u64, limit: *limit as u64 })
        }
    }
}

impl Introduction {
    /// Checks every length.
    ///
    /// # Errors
    /// [`AttestationTooLarge`] names the first field.
    pub fn check(&self) -> Result<(), AttestationTooLarge> {
        let longest = self.certificates.iter().map(Vec::len).max().unwrap_or(0);
        check_lengths(&[
            ("key", self.key.len(), limits::TPM_KEY_BYTES),
            ("endorsement key", self.endorsement.len(), limits::TPM_KEY_BYTES),
            ("certificates", self.certificates.len(), limits::TPM_CERTIFICATES),
            ("longest certificate", longest, limits::TPM_CERTIFICATE_BYTES),
        ])
    }
}

impl Credential {
    /// Checks every length.
    ///
    /// # Errors
    /// [`AttestationTooLarge`] names the first field.
    pub fn check(&self) -> Result<(), AttestationTooLarge> {
        check_lengths(&[
            ("credential", self.blob.len(), limits::TPM_KEY_BYTES),
            ("encrypted secret", self.secret.len(), limits::TPM_KEY_BYTES),
        ])
    }
}

impl Attestation {
    /// Checks every length.
    ///
    /// # Errors
    /// [`AttestationTooLarge`] names the first field.
    pub fn check(&self) -> Result<(), AttestationTooLarge> {
        check_lengths(&[
            ("key", self.key.len(), limits::TPM_KEY_BYTES),
            ("quote", self.quote.len(), limits::TPM_QUOTE_BYTES),
            ("events", self.events.len(), limits::MEASURED_EVENTS),
            ("vouchers", self.vouchers.len(), limits::VOUCHERS),
        ])
    }

    /// SHA-256 of the attestation key.
    #[must_use]
    pub fn key_hash(&self) -> Hash {
        Hash::of_bytes(&self.key)
    }

    /// What the node says of itself and the quote holds: the body as the node signs it.
    #[must_use]
    pub fn statement(node: &NodeBody) -> Hash {
        Hash::of("croft/quoted-node/2", node)
    }

    /// The quote's nonce: this chain, a header nobody could foresee, this node, what it says, and the key that quotes.
    #[must_use]
    pub fn nonce(
        chain: &ChainId,
        height: u64,
        header: &Hash,
        node: &NodeId,
        statement: &Hash,
        key: &Hash,
    ) -> Hash {
        Hash::of("croft/quote/1", &(chain, height, header, node, statement, key))
    }
}

impl SignedVoucher {
    #[must_use]
    pub fn sign(voucher: Voucher, chain: &ChainId, key: &SecretKey) -> Self {
        let signature = key.sign(Domain::VOUCHER, chain, &voucher);
        Self { voucher, by: key.public(), signature }
    }

    /// # Errors
    /// [`BadSignature`] names the author.
    pub fn verify(&self, chain: &ChainId) -> Result<(), BadSignature> {
        self.by.verify(Domain::VOUCHER, chain, &self.voucher, &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attestation() -> Attestation {
        Attestation {
            height: 1,
            key: vec![],
            quote: vec![],
            signature: [0; 64],
            locality: 0,
            events: vec![],
            vouchers: vec![],
        }
    }

    #[test]
    fn an_oversized_field_is_named() {
        attestation().check().unwrap();
        let event = MeasuredEvent { pcr: 4, kind: 4, digest: Hash::ZERO };
        let cases = [
            (Attestation { key: vec![0; 257], ..attestation() }, "key has 257, more than the limit of 256"),
            (
                Attestation { quote: vec![0; 1025], ..attestation() },
                "quote has 1025, more than the limit of 1024",
            ),
            (
                Attestation { events: vec![event; 513], ..attestation() },
                "events has 513, more than the limit of 512",
            ),
        ];
        for (bad, text) in cases {
            assert_eq!(bad.check().unwrap_err().to_string(), format!("the attestation's {text}"));
        }
    }

    #[test]
    fn an_introduction_and_a_credential_are_bounded() {
        let good = Introduction { key: vec![], endorsement: vec![], certificates: vec![vec![0; 4096]; 8] };
        good.check().unwrap();
        let many = Introduction { certificates: vec![vec![]; 9], ..good.clone() };
        let error = many.check().unwrap_err().to_string();
        assert_eq!(error, "the attestation's certificates has 9, more than the limit of 8");
        let long = Introduction { certificates: vec![vec![0; 4097]], ..good };
        let error = long.check().unwrap_err().to_string();
        assert_eq!(error, "the attestation's longest certificate has 4097, more than the limit of 4096");
        let credential = Credential { blob: vec![0; 257], secret: vec![] };
        let error = credential.check().unwrap_err().to_string();
        assert_eq!(error, "the attestation's credential has 257, more than the limit of 256");
    }

    #[test]
    fn the_largest_attestation_leaves_room_in_a_command() {
        let event = MeasuredEvent { pcr: 4, kind: 4, digest: Hash::ZERO };
        let voucher = Voucher {
            node: PublicKey([1; 32]),
            key: Hash::ZERO,
            endorsement: Hash::ZERO,
            certificate: Some(Hash::ZERO),
            height: 0,
        };
        let key = SecretKey::from_seed(&[1; 32]);
        let largest = Attestation {
            key: vec![0; limits::TPM_KEY_BYTES],
            quote: vec![0; limits::TPM_QUOTE_BYTES],
            events: vec![event; limits::MEASURED_EVENTS],
            vouchers: vec![SignedVoucher::sign(voucher, &ChainId(Hash::ZERO), &key); limits::VOUCHERS],
            ..attestation()
        };
        largest.check().unwrap();
        assert!(crate::encode(&largest).len() * 3 < limits::COMMAND_BYTES);
    }

    #[test]
    fn a_voucher_holds_for_its_chain_and_words_only() {
        let key = SecretKey::from_seed(&[1; 32]);
        let voucher = Voucher {
            node: key.public(),
            key: Hash([1; 32]),
            endorsement: Hash([2; 32]),
            certificate: None,
            height: 5,
        };
        let chain = ChainId(Hash([7; 32]));
        let mut signed = SignedVoucher::sign(voucher, &chain, &key);
        signed.verify(&chain).unwrap();
        assert!(signed.verify(&ChainId(Hash([8; 32]))).is_err());
        signed.voucher.certificate = Some(Hash([3; 32]));
        assert!(signed.verify(&chain).is_err());
    }
}
