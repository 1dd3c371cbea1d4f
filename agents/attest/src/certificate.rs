//! Certificates of endorsement keys, up to the roots of TPM makers (TCG EK Credential Profile 2.5).
//!
//! Only whoever vouches needs this: everybody else trusts the voucher. It must never take a certificate for a key that
//! it does not name, nor one that was issued for another use.

use std::time::Duration;

use croft_protocol::{Hash, limits};
use pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::public::EccKey;

/// tcg-kp-EKCertificate, 2.23.133.8.1, as DER writes it.
const EK_USAGE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
/// What makers sign with.
static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512,
];
/// SubjectPublicKeyInfo of a key on P-256 up to its point (RFC 5480).
const P256_INFO: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("the TPM's certificate has {len} bytes, more than the limit of {limit}", limit = limits::TPM_CERTIFICATE_BYTES)]
    TooLarge { len: usize },
    #[error(
        "{count} certificates between the TPM's and its maker's root are more than the limit of {limit}",
        limit = limits::TPM_CERTIFICATES
    )]
    TooMany { count: usize },
    #[error("the root certificate {digest} is none ({reason})")]
    Root { digest: Hash, reason: String },
    #[error("the TPM's certificate leads to no maker that is trusted here ({reason})")]
    Untrusted { reason: String },
    #[error("the TPM's certificate is for another endorsement key")]
    OtherKey,
}

/// Checks a certificate (DER) of an endorsement key at a time, given as milliseconds since 1970, UTC. Gives back its
/// hash, for the voucher.
///
/// # Errors
/// [`CertificateError`].
pub fn verify(
    certificate: &[u8],
    intermediates: &[&[u8]],
    roots: &[&[u8]],
    key: &EccKey,
    now_ms: u64,
) -> Result<Hash, CertificateError> {
    if certificate.len() > limits::TPM_CERTIFICATE_BYTES {
        return Err(CertificateError::TooLarge { len: certificate.len() });
    }
    if intermediates.len() > limits::TPM_CERTIFICATES {
        return Err(CertificateError::TooMany { count: intermediates.len() });
    }
    let roots: Vec<CertificateDer<'_>> = roots.iter().map(|root| CertificateDer::from(*root)).collect();
    let anchor = |root| {
        webpki::anchor_from_trusted_cert(root)
            .map_err(|e| CertificateError::Root { digest: Hash::of_bytes(root), reason: e.to_string() })
    };
    let anchors = roots.iter().map(anchor).collect::<Result<Vec<_>, _>>()?;
    let intermediates: Vec<CertificateDer<'_>> =
        intermediates.iter().map(|der| CertificateDer::from(*der)).collect();
    let der = CertificateDer::from(certificate);
    let untrusted = |e: webpki::Error| CertificateError::Untrusted { reason: e.to_string() };
    let entity = EndEntityCert::try_from(&der).map_err(untrusted)?;
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
    let usage = KeyUsage::required(EK_USAGE);
    entity
        .verify_for_usage(ALGORITHMS, &anchors, &intermediates, now, usage, None, None)
        .map_err(untrusted)?;
    if *entity.subject_public_key_info() != *[P256_INFO.as_slice(), &key.point.sec1()].concat() {
        return Err(CertificateError::OtherKey);
    }
    Ok(Hash::of_bytes(certificate))
}
