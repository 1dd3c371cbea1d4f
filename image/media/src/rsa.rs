//! RSA keys of Secure Boot. Firmware knows nothing else that everybody implements: RSA with 2048 bits and SHA-256 is
//! what the UEFI specification asks for, and 3072 works with every current firmware.
//!
//! Signatures are PKCS #1 v1.5 (RFC 8017, section 8.2), which are deterministic. ring signs, in constant time, and
//! checks each key that is made or read here. Must never show a secret.

use std::fmt;

use crypto_bigint::{BoxedUint, ConcatenatingMul as _, Gcd as _, NonZero, Odd, Resize as _};
use crypto_primes::hazmat::{SetBits, SmallFactorsSieveFactory};
use crypto_primes::{Flavor, is_prime, sieve_and_find};
use der::asn1::{AnyRef, ObjectIdentifier, OctetStringRef, UintRef};
use der::{Encode as _, Sequence};
use rand_core::UnwrapErr;
use ring::rsa::KeyPair;
use ring::signature::{self, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

/// rsaEncryption (RFC 8017, appendix C).
pub(crate) const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// The public exponent of all keys here (FIPS 186-5, A.1.1).
const EXPONENT: u32 = 65_537;

/// Length of the modulus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bits {
    /// Every firmware takes it.
    #[default]
    Rsa2048,
    /// About 128 bits of strength; a little firmware from before 2015 refuses it.
    Rsa3072,
}

impl Bits {
    #[must_use]
    pub fn count(self) -> u32 {
        match self {
            Self::Rsa2048 => 2048,
            Self::Rsa3072 => 3072,
        }
    }
}

/// Why there is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RsaError {
    #[error("the kernel gives no randomness")]
    Randomness(#[source] getrandom::Error),
    #[error("this is no RSA key of 2048 to 4096 bits in PKCS #8 ({reason})")]
    Key { reason: String },
    #[error("the RSA signature could not be made")]
    Sign,
}

/// A signature that does not belong to this key and message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the RSA signature is wrong")]
pub struct BadRsaSignature;

/// An RSA key pair.
pub struct RsaKey {
    pair: KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

/// RSAPrivateKey (RFC 8017, appendix A.1.2).
#[derive(Sequence)]
struct RsaPrivateKey<'a> {
    version: u8,
    modulus: UintRef<'a>,
    public_exponent: UintRef<'a>,
    private_exponent: UintRef<'a>,
    prime1: UintRef<'a>,
    prime2: UintRef<'a>,
    exponent1: UintRef<'a>,
    exponent2: UintRef<'a>,
    coefficient: UintRef<'a>,
}

#[derive(Sequence)]
struct Algorithm<'a> {
    oid: ObjectIdentifier,
    parameters: AnyRef<'a>,
}

/// PrivateKeyInfo (RFC 5208, section 5).
#[derive(Sequence)]
struct PrivateKeyInfo<'a> {
    version: u8,
    algorithm: Algorithm<'a>,
    private_key: OctetStringRef<'a>,
}

impl RsaKey {
    /// A new key from the kernel's randomness; takes a second or so.
    ///
    /// # Errors
    /// [`RsaError::Randomness`].
    pub fn generate(bits: Bits) -> Result<Self, RsaError> {
        // The adapter below panics without randomness; a kernel that gives some gives more.
        getrandom::fill(&mut [0; 32]).map_err(RsaError::Randomness)?;
        loop {
            // Whatever ring finds wrong with a key (a divisor that happens to be shared) is made anew.
            if let Some(der) = private_key_info(bits)
                && let Ok(key) = Self::from_pkcs8(&der)
            {
                return Ok(key);
            }
        }
    }

    /// Reads a key from PKCS #8 in DER.
    ///
    /// # Errors
    /// [`RsaError::Key`] with what ring says.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, RsaError> {
        let pair = KeyPair::from_pkcs8(der).map_err(|e| RsaError::Key { reason: e.to_string() })?;
        Ok(Self { pair, pkcs8: Zeroizing::new(der.to_vec()) })
    }

    /// For the file that only the owner reads.
    #[must_use]
    pub fn to_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// RSAPublicKey (RFC 8017, appendix A.1.1) in DER.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// PKCS #1 v1.5 with SHA-256 over the whole message.
    ///
    /// # Errors
    /// [`RsaError::Sign`] when memory runs out, or a fault was caught in the computation.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RsaError> {
        let mut signature = vec![0; self.pair.public().modulus_len()];
        let rng = ring::rand::SystemRandom::new();
        self.pair
            .sign(&signature::RSA_PKCS1_SHA256, &rng, message, &mut signature)
            .map_err(|_| RsaError::Sign)?;
        Ok(signature)
    }
}

impl fmt::Debug for RsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RsaKey({} bits)", self.pair.public().modulus_len() * 8)
    }
}

/// Checks a signature by an RSAPublicKey in DER, 2048 to 8192 bits.
///
/// # Errors
/// [`BadRsaSignature`].
pub fn verify(public: &[u8], message: &[u8], signature: &[u8]) -> Result<(), BadRsaSignature> {
    UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, public)
        .verify(message, signature)
        .map_err(|_| BadRsaSignature)
}

/// Two primes with their two highest bits set, so that the modulus has its full length.
fn prime(bits: u32) -> Option<BoxedUint> {
    let factory = SmallFactorsSieveFactory::new(Flavor::Any, bits, SetBits::TwoMsb).ok()?;
    let mut rng = UnwrapErr(getrandom::SysRng);
    sieve_and_find(&mut rng, factory, |_, candidate| is_prime(Flavor::Any, candidate)).ok()?
}

/// A fresh key in PKCS #8; nothing when the primes don't fit each other.
fn private_key_info(bits: Bits) -> Option<Zeroizing<Vec<u8>>> {
    let mut primes = [prime(bits.count() / 2)?, prime(bits.count() / 2)?];
    // ring wants the larger one first.
    primes.sort();
    let [q, p] = primes;
    let one = BoxedUint::one();
    let (p1, q1) = (p.wrapping_sub(&one), q.wrapping_sub(&one));
    let modulus = p.concatenating_mul(&q);
    let gcd = Option::<NonZero<BoxedUint>>::from(NonZero::new(p1.gcd(&q1)))?;
    let lambda = p1.concatenating_mul(&q1.wrapping_div(&gcd));
    let precision = modulus.bits_precision();
    let e = BoxedUint::from(EXPONENT).resize(precision);
    let lambda = Option::<NonZero<BoxedUint>>::from(NonZero::new(lambda.resize(precision)))?;
    let d = Option::<BoxedUint>::from(e.invert_mod(&lambda))?;
    let dp = d.rem(&Option::<NonZero<BoxedUint>>::from(NonZero::new(p1))?);
    let dq = d.rem(&Option::<NonZero<BoxedUint>>::from(NonZero::new(q1))?);
    let odd_p = Option::<Odd<BoxedUint>>::from(Odd::new(p.clone()))?;
    let qinv = Option::<BoxedUint>::from(q.invert_odd_mod(&odd_p))?;
    encode(&modulus, &[&d, &p, &q, &dp, &dq, &qinv]).ok()
}

fn encode(modulus: &BoxedUint, secrets: &[&BoxedUint; 6]) -> der::Result<Zeroizing<Vec<u8>>> {
    let modulus = modulus.to_be_bytes();
    let exponent = EXPONENT.to_be_bytes();
    let secrets = secrets.map(|secret| Zeroizing::new(secret.to_be_bytes().into_vec()));
    let [d, p, q, dp, dq, qinv] = &secrets;
    let key = RsaPrivateKey {
        version: 0,
        modulus: UintRef::new(&modulus)?,
        public_exponent: UintRef::new(&exponent)?,
        private_exponent: UintRef::new(d)?,
        prime1: UintRef::new(p)?,
        prime2: UintRef::new(q)?,
        exponent1: UintRef::new(dp)?,
        exponent2: UintRef::new(dq)?,
        coefficient: UintRef::new(qinv)?,
    };
    let key = Zeroizing::new(key.to_der()?);
    let info = PrivateKeyInfo {
        version: 0,
        algorithm: Algorithm { oid: RSA_ENCRYPTION, parameters: AnyRef::NULL },
        private_key: OctetStringRef::new(&key)?,
    };
    Ok(Zeroizing::new(info.to_der()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_signs_what_its_public_half_verifies() {
        let key = RsaKey::generate(Bits::Rsa2048).unwrap();
        let signature = key.sign(b"hello").unwrap();
        assert_eq!(signature.len(), 256);
        assert_eq!(signature, key.sign(b"hello").unwrap(), "PKCS #1 v1.5 is deterministic");
        verify(key.public(), b"hello", &signature).unwrap();
        assert_eq!(verify(key.public(), b"hullo", &signature), Err(BadRsaSignature));
        let again = RsaKey::from_pkcs8(key.to_pkcs8()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_ne!(RsaKey::generate(Bits::Rsa2048).unwrap().public(), key.public());
        assert_eq!(format!("{key:?}"), "RsaKey(2048 bits)");
    }

    #[test]
    fn a_longer_key_has_the_length_that_was_asked_for() {
        let key = RsaKey::generate(Bits::Rsa3072).unwrap();
        assert_eq!(key.sign(b"x").unwrap().len(), 384);
        verify(key.public(), b"x", &key.sign(b"x").unwrap()).unwrap();
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_reason() {
        let error = RsaKey::from_pkcs8(b"-----BEGIN PRIVATE KEY-----").unwrap_err().to_string();
        assert!(error.starts_with("this is no RSA key of 2048 to 4096 bits in PKCS #8 ("), "{error}");
    }
}
