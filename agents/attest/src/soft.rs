//! A program that plays a TPM, for tests: what a policy that checks no endorsement can't tell from a real one.
//!
//! Deterministic: the same seed has the same keys and signs the same bytes. It must never be in a build for the field.

use croft_protocol::attestation::{Attestation, Introduction, MeasuredEvent};
use croft_protocol::{ChainId, Hash, NodeId};
use p256::ecdsa::signature::Signer;

use crate::pcr::{self, PCR_BOOT, PCR_OPTIONS, PcrSelection};
use crate::public::{ATTESTATION_KEY, ENDORSEMENT_KEY, EccPoint, alg};
use crate::wire::Writer;

/// A machine with such a TPM.
#[derive(Debug, Clone)]
pub struct SoftTpm {
    attestation: p256::SecretKey,
    endorsement: p256::SecretKey,
}

/// To what an attestation is bound: chain, height and hash of a header, node, statement.
pub type Bound<'a> = (&'a ChainId, u64, Hash, &'a NodeId, Hash);

impl SoftTpm {
    /// The same number is the same TPM.
    ///
    /// # Panics
    /// Once in 2^32 numbers, whose hash is no key.
    #[must_use]
    pub fn new(number: impl Into<u64>) -> Self {
        let number = number.into();
        let key = |role: &str| {
            let seed = Hash::of("croft/soft-tpm/1", &(number, role));
            p256::SecretKey::from_slice(&seed.0).expect("the hash is a key")
        };
        Self { attestation: key("attestation"), endorsement: key("endorsement") }
    }

    /// The same TPM with another attestation key: it makes any number of them.
    #[must_use]
    pub fn with_other_key(&self, number: impl Into<u64>) -> Self {
        Self { attestation: Self::new(number).attestation, endorsement: self.endorsement.clone() }
    }

    /// The attestation key: TPMT_PUBLIC.
    #[must_use]
    pub fn key(&self) -> Vec<u8> {
        public(&self.attestation, ATTESTATION_KEY, alg::ECDSA)
    }

    /// What it says to whoever shall vouch for it: without a maker's certificate.
    #[must_use]
    pub fn introduce(&self) -> Introduction {
        let endorsement = public(&self.endorsement, ENDORSEMENT_KEY, alg::NULL);
        Introduction { key: self.key(), endorsement, certificates: vec![] }
    }

    /// What firmware extends when it boots these images.
    #[must_use]
    pub fn booted(images: &[Hash]) -> Vec<MeasuredEvent> {
        let event = |pcr, kind, digest| MeasuredEvent { pcr, kind, digest };
        let separator = Hash::of_bytes(&[0; 4]);
        let mut events = vec![event(0, 8, Hash([0xa0; 32]))];
        events.extend([0, 2, PCR_BOOT, 7].map(|pcr| event(pcr, 4, separator)));
        events.extend(images.iter().map(|image| event(PCR_BOOT, 0x8000_0003, *image)));
        events.push(event(PCR_OPTIONS, 6, Hash::of_bytes(&[])));
        events
    }

    /// A quote over what these events leave in the registers, without vouchers.
    #[must_use]
    pub fn attest(&self, bound: Bound<'_>, events: Vec<MeasuredEvent>) -> Attestation {
        let (chain, height, header, node, statement) = bound;
        let key = self.key();
        let nonce = Attestation::nonce(chain, height, &header, node, &statement, &Hash::of_bytes(&key));
        let digest = pcr::digest(&pcr::replay(PcrSelection::QUOTED, 0, &events));
        // Magic, type, signer, nonce; clock, resets, restarts, safe, firmware; registers.
        let head = Writer::new().u32(0xff54_4347).u16(0x8018).sized(&[0, 0x0b]).sized(&nonce.0);
        let head = head.bytes(&[0; 8]).u32(1).u32(0).u8(1).bytes(&[0; 8]);
        let quote = head.bytes(&PcrSelection::QUOTED.encode()).sized(&digest.0).done();
        let signature: p256::ecdsa::Signature = p256::ecdsa::SigningKey::from(&self.attestation).sign(&quote);
        let signature = signature.to_bytes().into();
        Attestation { height, key, quote, signature, locality: 0, events, vouchers: vec![] }
    }
}

fn public(secret: &p256::SecretKey, attributes: u32, scheme: u16) -> Vec<u8> {
    let point = EccPoint::of(&secret.public_key());
    let head = Writer::new().u16(alg::ECC).u16(alg::SHA256).u32(attributes).sized(&[]).u16(alg::NULL);
    let head = if scheme == alg::NULL { head.u16(alg::NULL) } else { head.u16(scheme).u16(alg::SHA256) };
    head.u16(alg::P256).u16(alg::NULL).bytes(&point.encode()).done()
}
