//! PKCS #7 SignedData (RFC 2315) as Authenticode and authenticated UEFI variables use it: one signer, SHA-256, RSA.
//!
//! Nothing that differs between two runs goes in: no signing time, no countersignature.

use cms::cert::{CertificateChoices, IssuerAndSerialNumber};
use cms::content_info::{CmsVersion, ContentInfo};
use cms::signed_data::{
    CertificateSet, DigestAlgorithmIdentifiers, EncapsulatedContentInfo, SignedAttributes, SignedData,
    SignerIdentifier, SignerInfo, SignerInfos,
};
use der::asn1::{ObjectIdentifier, OctetString, SetOfVec};
use der::{Any, AnyRef, Decode as _, Encode as _, Reader as _, SliceReader, Tag, Tagged as _};
use x509_cert::attr::Attribute;
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::rsa::{self, BadRsaSignature, RsaError, RsaKey};
use crate::sha256;
use crate::x509::{Cert, algorithm};

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
/// SPC_SP_OPUS_INFO_OBJID; Linux refuses an Authenticode signature without it (crypto/asymmetric_keys/pkcs7_parser.c).
const OPUS_INFO: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.12");
/// Our own have 2 kB; those with long chains of certificates some 10.
pub const SIGNED_DATA_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("the key does not belong to the certificate of '{subject}': take both from the same folder")]
    OtherKey { subject: String },
    #[error(transparent)]
    Rsa(#[from] RsaError),
    #[error("the signature could not be encoded")]
    Encode(#[from] der::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the signature has {len} bytes, at most {SIGNED_DATA_BYTES_MAX} are possible")]
    TooLarge { len: usize },
    #[error("the signature is malformed: {reason}")]
    Malformed { reason: String },
    #[error("the signature {what}")]
    Unsupported { what: &'static str },
    #[error("the signature covers other content than it carries: its message digest is wrong")]
    Digest,
    #[error("the signer, {signer}, is not one of the trusted certificates ({trusted})")]
    NotTrusted { signer: String, trusted: String },
    #[error("the signature was not made by the key of '{signer}'")]
    Signature { signer: String, source: BadRsaSignature },
}

impl From<der::Error> for VerifyError {
    fn from(error: der::Error) -> Self {
        Self::Malformed { reason: error.to_string() }
    }
}

/// ContentInfo with a SignedData that carries `content`, of a type that is not data: Authenticode's form.
///
/// # Errors
/// [`SignError`].
pub fn sign_attached(
    content_type: ObjectIdentifier,
    content: &Any,
    key: &RsaKey,
    cert: &Cert,
) -> Result<Vec<u8>, SignError> {
    let digest = OctetString::new(sha256(&[content.value()]))?;
    let attributes = SignedAttributes::try_from(vec![
        attribute(CONTENT_TYPE, Any::encode_from(&content_type)?)?,
        attribute(OPUS_INFO, Any::new(Tag::Sequence, Vec::new())?)?,
        attribute(MESSAGE_DIGEST, Any::encode_from(&digest)?)?,
    ])?;
    let signature = key.sign(&attributes.to_der()?)?;
    let info = EncapsulatedContentInfo { econtent_type: content_type, econtent: Some(content.clone()) };
    let signed = signed_data(info, Some(attributes), signature, key, cert)?;
    Ok(ContentInfo { content_type: SIGNED_DATA, content: Any::encode_from(&signed)? }.to_der()?)
}

/// A bare SignedData over `content`, which it does not carry: the form of EFI_VARIABLE_AUTHENTICATION_2.
///
/// # Errors
/// [`SignError`].
pub fn sign_detached(content: &[u8], key: &RsaKey, cert: &Cert) -> Result<Vec<u8>, SignError> {
    let info = EncapsulatedContentInfo { econtent_type: DATA, econtent: None };
    let signed = signed_data(info, None, key.sign(content)?, key, cert)?;
    Ok(signed.to_der()?)
}

fn signed_data(
    encap_content_info: EncapsulatedContentInfo,
    signed_attrs: Option<SignedAttributes>,
    signature: Vec<u8>,
    key: &RsaKey,
    cert: &Cert,
) -> Result<SignedData, SignError> {
    if key.public() != cert.public_key() {
        return Err(SignError::OtherKey { subject: cert.subject() });
    }
    let tbs = &cert.parsed().tbs_certificate;
    let signer = SignerInfo {
        version: CmsVersion::V1,
        sid: SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber {
            issuer: tbs.issuer.clone(),
            serial_number: tbs.serial_number.clone(),
        }),
        digest_alg: algorithm(SHA256),
        signed_attrs,
        signature_algorithm: algorithm(rsa::RSA_ENCRYPTION),
        signature: OctetString::new(signature)?,
        unsigned_attrs: None,
    };
    let certificate = CertificateChoices::Certificate(cert.parsed().clone());
    Ok(SignedData {
        version: CmsVersion::V1,
        digest_algorithms: SetOfVec::try_from(vec![algorithm(SHA256)])?,
        encap_content_info,
        certificates: Some(CertificateSet(SetOfVec::try_from(vec![certificate])?)),
        crls: None,
        signer_infos: SignerInfos(SetOfVec::try_from(vec![signer])?),
    })
}

fn attribute(oid: ObjectIdentifier, value: Any) -> Result<Attribute, der::Error> {
    Ok(Attribute { oid, values: SetOfVec::try_from(vec![value])? })
}

/// Checks a ContentInfo as [`sign_attached`] makes it, by one of `trusted`, and hands its content out. What follows
/// the encoding must be at most seven zero bytes, to which signatures in files are filled up.
///
/// # Errors
/// [`VerifyError`].
pub fn verify_attached<'a>(
    bytes: &[u8],
    content_type: ObjectIdentifier,
    trusted: &'a [Cert],
) -> Result<(Any, &'a Cert), VerifyError> {
    if bytes.len() > SIGNED_DATA_BYTES_MAX {
        return Err(VerifyError::TooLarge { len: bytes.len() });
    }
    let mut reader = SliceReader::new(bytes)?;
    let outer = ContentInfo::decode(&mut reader)?;
    let rest = reader.read_slice(reader.remaining_len())?;
    let unsupported = |what| VerifyError::Unsupported { what };
    if rest.len() > 7 || rest.iter().any(|byte| *byte != 0) {
        return Err(unsupported("is followed by something else"));
    }
    if outer.content_type != SIGNED_DATA {
        return Err(unsupported("is no SignedData"));
    }
    let signed: SignedData = outer.content.decode_as()?;
    let [signer] = signed.signer_infos.0.as_slice() else {
        return Err(unsupported("does not have exactly one signer"));
    };
    let content = match signed.encap_content_info {
        EncapsulatedContentInfo { econtent_type, econtent: Some(content) }
            if econtent_type == content_type =>
        {
            content
        }
        _ => return Err(unsupported("is about something else than an EFI program")),
    };
    check_algorithms(&signed.digest_algorithms, signer)?;
    if signed.crls.is_some() || signer.unsigned_attrs.is_some() {
        return Err(unsupported("carries more than a signature"));
    }
    let attributes = signer.signed_attrs.as_ref().ok_or_else(|| unsupported("has no signed attributes"))?;
    let value = |oid| single(attributes, oid).ok_or_else(|| unsupported("lacks a signed attribute"));
    if value(CONTENT_TYPE)?.decode_as::<ObjectIdentifier>()? != content_type {
        return Err(unsupported("names another content type than it has"));
    }
    let digest: OctetString = value(MESSAGE_DIGEST)?.decode_as()?;
    if digest.as_bytes() != sha256(&[content.value()]) {
        return Err(VerifyError::Digest);
    }
    let cert = signer_of(&signer.sid, trusted)?;
    rsa::verify(cert.public_key(), &attributes.to_der()?, signer.signature.as_bytes())
        .map_err(|source| VerifyError::Signature { signer: cert.subject(), source })?;
    // Firmware takes the certificate from here, so a file without it, or with another, would not start.
    let carried = CertificateChoices::Certificate(cert.parsed().clone());
    if !signed.certificates.is_some_and(|certificates| certificates.0.as_slice() == [carried]) {
        return Err(unsupported("does not carry its signer's certificate, and that alone"));
    }
    Ok((content, cert))
}

/// Checks a bare SignedData over content that it does not carry.
///
/// # Errors
/// [`VerifyError`].
pub fn verify_detached<'a>(
    bytes: &[u8],
    content: &[u8],
    trusted: &'a [Cert],
) -> Result<&'a Cert, VerifyError> {
    if bytes.len() > SIGNED_DATA_BYTES_MAX {
        return Err(VerifyError::TooLarge { len: bytes.len() });
    }
    let signed = SignedData::from_der(bytes)?;
    let unsupported = |what| VerifyError::Unsupported { what };
    let [signer] = signed.signer_infos.0.as_slice() else {
        return Err(unsupported("does not have exactly one signer"));
    };
    if signed.encap_content_info.econtent.is_some() || signer.signed_attrs.is_some() {
        return Err(unsupported("carries content or attributes of its own"));
    }
    check_algorithms(&signed.digest_algorithms, signer)?;
    let cert = signer_of(&signer.sid, trusted)?;
    rsa::verify(cert.public_key(), content, signer.signature.as_bytes())
        .map_err(|source| VerifyError::Signature { signer: cert.subject(), source })?;
    Ok(cert)
}

/// SHA-256 and RSA, each without parameters in one of the two ways in which that is written.
fn check_algorithms(digests: &DigestAlgorithmIdentifiers, signer: &SignerInfo) -> Result<(), VerifyError> {
    let is = |found: &AlgorithmIdentifierOwned, oid| {
        found.oid == oid && found.parameters.as_ref().is_none_or(|parameters| *parameters == Any::null())
    };
    let digests_fit = digests.len() == 1 && digests.iter().all(|digest| is(digest, SHA256));
    if digests_fit && is(&signer.digest_alg, SHA256) && is(&signer.signature_algorithm, rsa::RSA_ENCRYPTION) {
        return Ok(());
    }
    Err(VerifyError::Unsupported { what: "is not by RSA with SHA-256" })
}

fn single(attributes: &SignedAttributes, oid: ObjectIdentifier) -> Option<&Any> {
    let mut found = attributes.iter().filter(|attribute| attribute.oid == oid);
    match (found.next(), found.next()) {
        (Some(attribute), None) => match attribute.values.as_slice() {
            [value] => Some(value),
            _ => None,
        },
        _ => None,
    }
}

/// The certificate that the signer names, of those that are trusted; those in the signature itself prove nothing.
fn signer_of<'a>(sid: &SignerIdentifier, trusted: &'a [Cert]) -> Result<&'a Cert, VerifyError> {
    let SignerIdentifier::IssuerAndSerialNumber(named) = sid else {
        return Err(VerifyError::Unsupported {
            what: "names its signer by key, not by issuer and serial number",
        });
    };
    let is_it = |cert: &&Cert| {
        let tbs = &cert.parsed().tbs_certificate;
        tbs.issuer == named.issuer && tbs.serial_number == named.serial_number
    };
    trusted.iter().find(is_it).ok_or_else(|| VerifyError::NotTrusted {
        signer: format!("'{}' with serial number {}", named.issuer, named.serial_number),
        trusted: trusted.iter().map(|cert| format!("'{}'", cert.subject())).collect::<Vec<_>>().join(", "),
    })
}

/// Whether a value has the tag of a SEQUENCE.
pub(crate) fn is_sequence(value: &Any) -> bool {
    AnyRef::from(value).tag() == Tag::Sequence
}
