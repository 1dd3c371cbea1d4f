//! Quotes: TPMS_ATTEST with what the TPM says of its registers, and the signature over it (TPM 2.0 Library, part 2,
//! 10.12). It must never look inside before the signature is checked by the caller's key.

use croft_protocol::{Hash, limits};
use p256::ecdsa::signature::Verifier;

use crate::pcr::PcrSelection;
use crate::public::{EccKey, alg};
use crate::wire::{FormatError, Reader};

/// TPM_GENERATED: a restricted key signs nothing else that begins so.
const MAGIC: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_QUOTE.
const ATTEST_QUOTE: u16 = 0x8018;
/// A name is an algorithm and at most a SHA-512.
const NAME_BYTES: usize = 66;
/// A nonce is at most a SHA-512.
const NONCE_BYTES: usize = 64;

/// What the TPM signed, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// TPMS_ATTEST.
    pub attest: Vec<u8>,
    /// r and s.
    pub signature: [u8; 64],
}

/// What a quote says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    pub nonce: Vec<u8>,
    pub selection: PcrSelection,
    pub digest: Hash,
    /// Milliseconds that the TPM has had power since its owner's seed was made.
    pub clock_ms: u64,
    /// Starts of the TPM, and wake-ups since the last one.
    pub resets: u32,
    pub restarts: u32,
    pub firmware: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    #[error("the quote is not signed by the attestation key {}", .key.short())]
    Signature { key: Hash },
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl Quote {
    /// Reads TPMT_SIGNATURE: r and s of ECDSA over SHA-256.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn signature(bytes: &[u8]) -> Result<[u8; 64], FormatError> {
        let mut reader = Reader::new("the quote's signature", bytes);
        let scheme = reader.u16("scheme")?;
        reader.expect("scheme", scheme, alg::ECDSA, "0x18, ECDSA")?;
        let hash = reader.u16("hash")?;
        reader.expect("hash", hash, alg::SHA256, "0xb, SHA-256")?;
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&reader.number("r")?);
        signature[32..].copy_from_slice(&reader.number("s")?);
        reader.finish()?;
        Ok(signature)
    }

    /// Checks the signature, then reads.
    ///
    /// # Errors
    /// [`QuoteError`].
    pub fn verify(&self, key: &EccKey) -> Result<Quoted, QuoteError> {
        let bad = || QuoteError::Signature { key: key.hash() };
        let reader = Reader::new("the quote", &self.attest);
        reader.limit("length", self.attest.len(), limits::TPM_QUOTE_BYTES)?;
        let public = key.point.key().map_err(|_| bad())?;
        let signature = p256::ecdsa::Signature::from_slice(&self.signature).map_err(|_| bad())?;
        p256::ecdsa::VerifyingKey::from(public).verify(&self.attest, &signature).map_err(|_| bad())?;
        Ok(read(reader)?)
    }
}

fn read(mut reader: Reader<'_>) -> Result<Quoted, FormatError> {
    let magic = reader.u32("magic")?;
    reader.expect("magic", magic, MAGIC, "0xff544347, made by a TPM")?;
    let kind = reader.u16("type")?;
    reader.expect("type", kind, ATTEST_QUOTE, "0x8018, a quote")?;
    reader.sized("signer", NAME_BYTES)?;
    let nonce = reader.sized("nonce", NONCE_BYTES)?.to_vec();
    let clock_ms = reader.u64("clock")?;
    let resets = reader.u32("reset count")?;
    let restarts = reader.u32("restart count")?;
    // Whether the clock may have gone back after a power cut: nothing here depends on it.
    reader.u8("clock's safety")?;
    let firmware = reader.u64("firmware version")?;
    let selection = PcrSelection::read(&mut reader)?;
    let digest = reader.sized("digest", 32)?;
    reader.expect("digest size", digest.len() as u64, 32u64, "32, of SHA-256")?;
    let digest = Hash(digest.try_into().expect("32 bytes"));
    reader.finish()?;
    Ok(Quoted { nonce, selection, digest, clock_ms, resets, restarts, firmware })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::public::{ATTESTATION_KEY, tests::public};
    use crate::wire::Writer;
    use p256::ecdsa::signature::Signer;

    pub(crate) fn attest(
        magic: u32,
        kind: u16,
        nonce: &[u8],
        selection: PcrSelection,
        digest: &[u8],
    ) -> Vec<u8> {
        let head = Writer::new().u32(magic).u16(kind).sized(&[0, 0x0b]).sized(nonce);
        // Clock, resets, restarts, safe, firmware.
        let head = head.bytes(&[0; 8]).u32(1).u32(0).u8(1).bytes(&[0; 8]);
        head.bytes(&selection.encode()).sized(digest).done()
    }

    pub(crate) fn sign(secret: &p256::SecretKey, attest: Vec<u8>) -> Quote {
        let key = p256::ecdsa::SigningKey::from(secret);
        let signature: p256::ecdsa::Signature = key.sign(&attest);
        Quote { attest, signature: signature.to_bytes().into() }
    }

    fn key() -> (p256::SecretKey, EccKey) {
        let secret = p256::SecretKey::from_slice(&[7; 32]).unwrap();
        let key = EccKey::decode(&public(&secret, ATTESTATION_KEY, alg::ECDSA)).unwrap();
        (secret, key)
    }

    #[test]
    fn a_quote_says_what_was_signed() {
        let (secret, key) = key();
        let attest = attest(MAGIC, ATTEST_QUOTE, b"nonce", PcrSelection::QUOTED, &[9; 32]);
        let quoted = sign(&secret, attest).verify(&key).unwrap();
        assert_eq!(quoted.nonce, b"nonce");
        assert_eq!(quoted.selection, PcrSelection::QUOTED);
        assert_eq!(quoted.digest, Hash([9; 32]));
    }

    #[test]
    fn another_statement_of_the_same_tpm_is_no_quote() {
        let (secret, key) = key();
        let error = |magic, kind| {
            let attest = attest(magic, kind, b"n", PcrSelection::QUOTED, &[9; 32]);
            sign(&secret, attest).verify(&key).unwrap_err().to_string()
        };
        assert_eq!(error(1, ATTEST_QUOTE), "the quote has magic 0x1, wanted is 0xff544347, made by a TPM");
        assert_eq!(error(MAGIC, 0x8017), "the quote has type 0x8017, wanted is 0x8018, a quote");
    }

    #[test]
    fn every_cut_of_a_signed_quote_is_refused() {
        let (secret, key) = key();
        let whole = attest(MAGIC, ATTEST_QUOTE, b"nonce", PcrSelection::QUOTED, &[9; 32]);
        for end in 0..whole.len() {
            let error = sign(&secret, whole[..end].to_vec()).verify(&key).unwrap_err().to_string();
            assert!(error.contains("truncated"), "{end}: {error}");
        }
        let longer = [whole.as_slice(), &[0]].concat();
        let error = sign(&secret, longer).verify(&key).unwrap_err().to_string();
        assert_eq!(error, "the quote is followed by 1 bytes that belong to nothing");
        let huge = Quote { attest: vec![0; 1025], signature: [1; 64] };
        let error = huge.verify(&key).unwrap_err().to_string();
        assert_eq!(error, "the quote is malformed: its length has 1025, more than the limit of 1024");
    }

    #[test]
    fn a_changed_byte_or_another_key_breaks_the_signature() {
        let (secret, key) = key();
        let whole = attest(MAGIC, ATTEST_QUOTE, b"nonce", PcrSelection::QUOTED, &[9; 32]);
        let mut quote = sign(&secret, whole.clone());
        quote.attest[10] ^= 1;
        assert!(matches!(quote.verify(&key), Err(QuoteError::Signature { .. })));
        let other = sign(&p256::SecretKey::from_slice(&[8; 32]).unwrap(), whole);
        let error = other.verify(&key).unwrap_err().to_string();
        assert!(error.starts_with("the quote is not signed by the attestation key "), "{error}");
        let zero = Quote { signature: [0; 64], ..quote };
        assert!(matches!(zero.verify(&key), Err(QuoteError::Signature { .. })));
    }
}
