//! Public areas of TPM keys on P-256 (TPMT_PUBLIC; TPM 2.0 Library, part 2, 12.2.4).
//!
//! A key's attributes are part of its name, so whoever knows that a name is genuine knows how the TPM treats the key.

use croft_protocol::{Hash, limits};

use crate::wire::{FormatError, Reader, Writer};

/// Algorithm ids (TCG Algorithm Registry).
pub mod alg {
    pub const AES: u16 = 0x0006;
    pub const KEYEDHASH: u16 = 0x0008;
    pub const SHA256: u16 = 0x000b;
    pub const NULL: u16 = 0x0010;
    pub const ECDSA: u16 = 0x0018;
    pub const ECC: u16 = 0x0023;
    pub const CFB: u16 = 0x0043;
    /// A curve, from its own list.
    pub const P256: u16 = 0x0003;
}

/// Object attributes (part 2, 8.3).
pub mod attribute {
    pub const FIXED_TPM: u32 = 1 << 1;
    pub const FIXED_PARENT: u32 = 1 << 4;
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    pub const NO_DA: u32 = 1 << 10;
    pub const RESTRICTED: u32 = 1 << 16;
    pub const DECRYPT: u32 = 1 << 17;
    pub const SIGN: u32 = 1 << 18;
}

/// What an attestation key's attributes must say: made in this TPM, never leaves it, signs only what the TPM made.
pub const ATTESTATION_KEY: u32 = attribute::FIXED_TPM
    | attribute::FIXED_PARENT
    | attribute::SENSITIVE_DATA_ORIGIN
    | attribute::RESTRICTED
    | attribute::SIGN;

/// What an endorsement key's attributes must say: it never leaves its TPM, and only decrypts credentials.
pub const ENDORSEMENT_KEY: u32 = attribute::FIXED_TPM
    | attribute::FIXED_PARENT
    | attribute::SENSITIVE_DATA_ORIGIN
    | attribute::ADMIN_WITH_POLICY
    | attribute::RESTRICTED
    | attribute::DECRYPT;

/// Affine coordinates, big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EccPoint {
    pub x: [u8; 32],
    pub y: [u8; 32],
}

impl EccPoint {
    /// As SEC 1 writes it without compression.
    #[must_use]
    pub fn sec1(&self) -> [u8; 65] {
        let mut bytes = [4; 65];
        bytes[1..33].copy_from_slice(&self.x);
        bytes[33..].copy_from_slice(&self.y);
        bytes
    }

    /// # Panics
    /// Never: an ephemeral key's point is not the point at infinity.
    #[must_use]
    pub fn of(key: &p256::PublicKey) -> Self {
        use p256::elliptic_curve::sec1::ToSec1Point;
        let bytes = key.to_sec1_point(false);
        let bytes = bytes.as_bytes();
        Self { x: bytes[1..33].try_into().expect("32 bytes"), y: bytes[33..65].try_into().expect("32 bytes") }
    }

    /// # Errors
    /// [`KeyError::NoPoint`] when it is not on the curve.
    pub fn key(&self) -> Result<p256::PublicKey, KeyError> {
        p256::PublicKey::from_sec1_bytes(&self.sec1()).map_err(|_| KeyError::NoPoint)
    }

    /// TPMS_ECC_POINT.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new().sized(&self.x).sized(&self.y).done()
    }

    /// # Errors
    /// [`FormatError`].
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self { x: reader.number("x")?, y: reader.number("y")? })
    }
}

/// Why a key can't serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("the key is not a point of P-256")]
    NoPoint,
    #[error("the key's attributes {attributes:#010x} are not those of an {role} key ({wanted:#010x})")]
    Attributes { role: &'static str, attributes: u32, wanted: u32 },
    #[error("the key's scheme is {scheme:#06x}, but attestation keys sign with ECDSA over SHA-256 (0x0018)")]
    Scheme { scheme: u16 },
}

/// A public key on P-256 as a TPM describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EccKey {
    encoded: Vec<u8>,
    pub attributes: u32,
    /// Signature scheme; [`alg::NULL`] of keys that only decrypt.
    pub scheme: u16,
    pub point: EccPoint,
}

impl EccKey {
    /// Reads TPMT_PUBLIC.
    ///
    /// # Errors
    /// [`KeyError`] when it is malformed, of another kind, or no point.
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        let mut reader = Reader::new("the public key", bytes);
        reader.limit("length", bytes.len(), limits::TPM_KEY_BYTES)?;
        let kind = reader.u16("type")?;
        reader.expect("type", kind, alg::ECC, "0x23, an elliptic curve")?;
        let name = reader.u16("name algorithm")?;
        reader.expect("name algorithm", name, alg::SHA256, "0xb, SHA-256")?;
        let attributes = reader.u32("attributes")?;
        reader.sized("policy", 64)?;
        if reader.u16("cipher")? != alg::NULL {
            reader.u16("cipher's key size")?;
            reader.u16("cipher's mode")?;
        }
        let scheme = reader.u16("scheme")?;
        if scheme != alg::NULL {
            let hash = reader.u16("scheme's hash")?;
            reader.expect("scheme's hash", hash, alg::SHA256, "0xb, SHA-256")?;
        }
        let curve = reader.u16("curve")?;
        reader.expect("curve", curve, alg::P256, "0x3, P-256")?;
        let kdf = reader.u16("key derivation")?;
        reader.expect("key derivation", kdf, alg::NULL, "0x10, none")?;
        let point = EccPoint::read(&mut reader)?;
        reader.finish()?;
        point.key()?;
        Ok(Self { encoded: bytes.to_vec(), attributes, scheme, point })
    }

    /// TPMT_PUBLIC.
    #[must_use]
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// SHA-256 of the public area.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of_bytes(&self.encoded)
    }

    /// The TPM's name of the key: algorithm and hash (part 1, chapter 16).
    #[must_use]
    pub fn name(&self) -> [u8; 34] {
        name_of(&self.encoded)
    }

    /// # Errors
    /// [`KeyError`] unless it is a restricted ECDSA key that was made in its TPM and stays there.
    pub fn check_attestation(&self) -> Result<(), KeyError> {
        self.check_role("attestation", ATTESTATION_KEY, attribute::DECRYPT)?;
        if self.scheme != alg::ECDSA {
            return Err(KeyError::Scheme { scheme: self.scheme });
        }
        Ok(())
    }

    /// # Errors
    /// [`KeyError`] unless it is a restricted decryption key that was made in its TPM and stays there.
    pub fn check_endorsement(&self) -> Result<(), KeyError> {
        self.check_role("endorsement", ENDORSEMENT_KEY, attribute::SIGN)
    }

    fn check_role(&self, role: &'static str, wanted: u32, forbidden: u32) -> Result<(), KeyError> {
        if self.attributes & wanted != wanted || self.attributes & forbidden != 0 {
            return Err(KeyError::Attributes { role, attributes: self.attributes, wanted });
        }
        Ok(())
    }
}

/// The name of any object with SHA-256 as its name algorithm.
#[must_use]
pub fn name_of(public: &[u8]) -> [u8; 34] {
    let mut name = [0; 34];
    name[..2].copy_from_slice(&alg::SHA256.to_be_bytes());
    name[2..].copy_from_slice(&Hash::of_bytes(public).0);
    name
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A public area with any attributes, over a key of our own.
    pub(crate) fn public(secret: &p256::SecretKey, attributes: u32, scheme: u16) -> Vec<u8> {
        let point = EccPoint::of(&secret.public_key());
        let head = Writer::new().u16(alg::ECC).u16(alg::SHA256).u32(attributes).sized(&[]).u16(alg::NULL);
        let head = if scheme == alg::NULL { head.u16(alg::NULL) } else { head.u16(scheme).u16(alg::SHA256) };
        head.u16(alg::P256).u16(alg::NULL).bytes(&point.encode()).done()
    }

    fn secret() -> p256::SecretKey {
        p256::SecretKey::from_slice(&[7; 32]).unwrap()
    }

    #[test]
    fn a_restricted_signing_key_is_an_attestation_key() {
        let key = EccKey::decode(&public(&secret(), ATTESTATION_KEY, alg::ECDSA)).unwrap();
        key.check_attestation().unwrap();
        assert_eq!(key.name()[..2], [0, 0x0b]);
        let free = EccKey::decode(&public(&secret(), ATTESTATION_KEY & !attribute::RESTRICTED, alg::ECDSA));
        let error = free.unwrap().check_attestation().unwrap_err().to_string();
        assert_eq!(error, "the key's attributes 0x00040032 are not those of an attestation key (0x00050032)");
        let error = key.check_endorsement().unwrap_err().to_string();
        assert!(error.contains("not those of an endorsement key"), "{error}");
    }

    #[test]
    fn a_point_off_the_curve_is_refused() {
        let mut bytes = public(&secret(), ATTESTATION_KEY, alg::ECDSA);
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(EccKey::decode(&bytes), Err(KeyError::NoPoint));
    }

    #[test]
    fn every_truncation_and_extension_is_refused() {
        let bytes = public(&secret(), ATTESTATION_KEY, alg::ECDSA);
        for end in 0..bytes.len() {
            let error = EccKey::decode(&bytes[..end]).unwrap_err().to_string();
            assert!(error.contains("truncated"), "{end}: {error}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        let error = EccKey::decode(&longer).unwrap_err().to_string();
        assert_eq!(error, "the public key is followed by 1 bytes that belong to nothing");
        let huge = vec![0; 70_000];
        let error = EccKey::decode(&huge).unwrap_err().to_string();
        assert_eq!(error, "the public key is malformed: its length has 70000, more than the limit of 256");
    }
}
