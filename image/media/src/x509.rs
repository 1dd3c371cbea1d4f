//! Self-signed certificates (RFC 5280) that hold the public halves of Secure Boot keys.
//!
//! Firmware looks at key, issuer and serial number only; dates it ignores, since its clock may be wrong. Equal key,
//! name and time give equal bytes.

use std::str::FromStr as _;
use std::time::Duration;

use der::asn1::{BitString, GeneralizedTime, ObjectIdentifier, OctetString, UtcTime};
use der::{Any, DateTime, Decode as _, Encode as _};
use x509_cert::Certificate;
use x509_cert::TbsCertificate;
use x509_cert::certificate::Version;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectKeyIdentifier};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use crate::rsa::{RSA_ENCRYPTION, RsaError, RsaKey};
use crate::sha256;

/// sha256WithRSAEncryption (RFC 8017, appendix C).
pub(crate) const SHA256_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
/// id-kp-codeSigning (RFC 5280, 4.2.1.12).
const CODE_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.3");
/// Nobody checks it, and a key that must go sooner is revoked in dbx.
const VALID_FOR: Duration = Duration::from_secs(20 * 365 * 86_400);
/// From 2050 on, dates have four digits for the year (RFC 5280, 4.1.2.5).
const YEAR_2050_S: u64 = 2_524_608_000;
/// A certificate in a file from outside; the largest in use have some 3 kB.
pub const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;
/// What a name may have, so that firmware shows it whole.
const TEXT_BYTES_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error(
        "'{text}' can't stand in a certificate: use 1 to {TEXT_BYTES_MAX} letters, digits, spaces and '-'"
    )]
    Text { text: String },
    #[error("{seconds} s since 1970 is no time that a certificate can have")]
    Time { seconds: u64 },
    #[error("the certificate has {len} bytes, at most {CERTIFICATE_BYTES_MAX} are possible")]
    TooLarge { len: usize },
    #[error("this is no X.509 certificate in DER ({reason}): convert it with 'openssl x509 -outform der'")]
    Malformed { reason: String },
    #[error("the certificate of '{subject}' holds no RSA key, and firmware knows no other")]
    NotRsa { subject: String },
    #[error(transparent)]
    Rsa(#[from] RsaError),
    #[error("a certificate could not be encoded")]
    Encode(#[from] der::Error),
}

/// A certificate whose parts were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cert {
    der: Vec<u8>,
    parsed: Certificate,
    key: Vec<u8>,
}

impl Cert {
    /// Makes a certificate for a key, signed by that key.
    ///
    /// # Errors
    /// [`CertificateError`] names the text or the time that can't be.
    pub fn self_signed(
        key: &RsaKey,
        common_name: &str,
        organisation: &str,
        created_s: u64,
    ) -> Result<Self, CertificateError> {
        for text in [common_name, organisation] {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b == b' ' || b == b'-';
            if !(1..=TEXT_BYTES_MAX).contains(&text.len()) || !text.bytes().all(fits) || text.trim() != text {
                return Err(CertificateError::Text { text: text.chars().take(80).collect() });
            }
        }
        let name = Name::from_str(&format!("CN={common_name},O={organisation}"))?;
        let public = SubjectPublicKeyInfoOwned {
            algorithm: algorithm(RSA_ENCRYPTION),
            subject_public_key: BitString::from_bytes(key.public())?,
        };
        let id = sha256(&[key.public()]);
        // Positive, and never the same for two keys.
        let mut serial = id[..16].to_vec();
        serial[0] = serial[0] & 0x7f | 0x40;
        let tbs = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(&serial)?,
            signature: algorithm(SHA256_WITH_RSA),
            issuer: name.clone(),
            validity: Validity {
                not_before: time(created_s)?,
                not_after: time(created_s + VALID_FOR.as_secs())?,
            },
            subject: name,
            subject_public_key_info: public,
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(extensions(&id[..20])?),
        };
        let signature = BitString::from_bytes(&key.sign(&tbs.to_der()?)?)?;
        let parsed =
            Certificate { tbs_certificate: tbs, signature_algorithm: algorithm(SHA256_WITH_RSA), signature };
        Ok(Self { der: parsed.to_der()?, parsed, key: key.public().to_vec() })
    }

    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// [`CertificateError`] when it is none, or holds another kind of key.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(CertificateError::TooLarge { len: der.len() });
        }
        let parsed =
            Certificate::from_der(der).map_err(|e| CertificateError::Malformed { reason: e.to_string() })?;
        let info = &parsed.tbs_certificate.subject_public_key_info;
        let key = info.subject_public_key.as_bytes().filter(|_| info.algorithm.oid == RSA_ENCRYPTION);
        let Some(key) = key.map(<[u8]>::to_vec) else {
            return Err(CertificateError::NotRsa { subject: parsed.tbs_certificate.subject.to_string() });
        };
        Ok(Self { der: der.to_vec(), parsed, key })
    }

    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// RSAPublicKey in DER.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.key
    }

    /// `CN=…,O=…`
    #[must_use]
    pub fn subject(&self) -> String {
        self.parsed.tbs_certificate.subject.to_string()
    }

    /// SHA-256 of the DER, as firmware and `openssl x509 -fingerprint -sha256` show it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex::encode(sha256(&[&self.der]))
    }

    /// When it was made, seconds since 1970.
    #[must_use]
    pub fn created_s(&self) -> u64 {
        self.parsed.tbs_certificate.validity.not_before.to_unix_duration().as_secs()
    }

    pub(crate) fn parsed(&self) -> &Certificate {
        &self.parsed
    }
}

/// An algorithm with NULL parameters, as RSA's and, in PKCS #7, SHA-256's are written.
pub(crate) fn algorithm(oid: ObjectIdentifier) -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid, parameters: Some(Any::null()) }
}

fn time(seconds: u64) -> Result<Time, CertificateError> {
    let wrong = |_| CertificateError::Time { seconds };
    let at = DateTime::from_unix_duration(Duration::from_secs(seconds)).map_err(wrong)?;
    Ok(if seconds < YEAR_2050_S {
        Time::UtcTime(UtcTime::from_date_time(at).map_err(wrong)?)
    } else {
        Time::GeneralTime(GeneralizedTime::from_date_time(at))
    })
}

fn extensions(key_id: &[u8]) -> Result<Vec<Extension>, der::Error> {
    use der::oid::AssociatedOid;
    fn extension<T: AssociatedOid + der::Encode>(critical: bool, value: &T) -> Result<Extension, der::Error> {
        Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(value.to_der()?)? })
    }
    Ok(vec![
        extension(true, &BasicConstraints { ca: false, path_len_constraint: None })?,
        extension(true, &KeyUsage(KeyUsages::DigitalSignature.into()))?,
        extension(false, &ExtendedKeyUsage(vec![CODE_SIGNING]))?,
        extension(false, &SubjectKeyIdentifier(OctetString::new(key_id)?))?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing;

    #[test]
    fn a_certificate_is_a_function_of_key_name_and_time_and_signed_by_its_own_key() {
        let key = testing::rsa("db");
        let make = |created| Cert::self_signed(&key, "Croft db", "Example Farm", created).unwrap();
        let cert = make(1_700_000_000);
        assert_eq!(cert, make(1_700_000_000));
        assert_ne!(cert, make(1_700_000_001));
        assert_eq!(cert.subject(), "CN=Croft db,O=Example Farm");
        assert_eq!(cert.created_s(), 1_700_000_000);
        assert_eq!(cert.public_key(), key.public());
        let signed = cert.parsed().tbs_certificate.to_der().unwrap();
        crate::rsa::verify(key.public(), &signed, cert.parsed().signature.raw_bytes()).unwrap();
        assert_eq!(Cert::from_der(cert.der()).unwrap(), cert);
        // Into the years that have four digits.
        assert_eq!(make(YEAR_2050_S).created_s(), YEAR_2050_S);
    }

    #[test]
    fn names_that_would_change_a_certificates_meaning_are_refused() {
        let key = testing::rsa("db");
        for bad in ["", "a,CN=b", "ü", " a", "a\n"] {
            let error = Cert::self_signed(&key, bad, "o", 0).unwrap_err().to_string();
            assert!(error.contains("can't stand in a certificate"), "{error}");
        }
        let error = Cert::from_der(b"-----BEGIN CERTIFICATE-----").unwrap_err().to_string();
        assert!(error.contains("convert it with 'openssl x509 -outform der'"), "{error}");
        assert!(matches!(
            Cert::from_der(&vec![0; CERTIFICATE_BYTES_MAX + 1]),
            Err(CertificateError::TooLarge { .. })
        ));
    }
}
