//! Signs and verifies boot files as firmware under Secure Boot, and Linux before kexec, check them.
//!
//! Source: Microsoft, "Windows Authenticode Portable Executable Signature Format" (2008); UEFI 2.10, chapter 32.
//!
//! ```text
//!   boot file ─ filled up to 8 bytes ─ hash ─▶ SpcIndirectDataContent ─▶ SignedData ─▶ WIN_CERTIFICATE, appended
//! ```
//! Equal file and key give equal bytes. Must never sign a file over an older signature: which one counts would depend
//! on the firmware.

use der::asn1::{ObjectIdentifier, OctetString};
use der::{Any, Decode as _, Sequence, Tag};
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::keys::Signer;
use crate::pe::{Pe, PeError};
use crate::pkcs7::{self, SignError, VerifyError};
use crate::x509::{Cert, algorithm};

/// SPC_INDIRECT_DATA_OBJID
const SPC_INDIRECT_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.4");
/// SPC_PE_IMAGE_DATAOBJ
const SPC_PE_IMAGE_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.15");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
/// SpcPeImageData without flags, whose file is an empty string: BIT STRING {}, `[0] { [2] { [0] "" } }`. Nobody reads
/// it, all write something like it.
const NO_FLAGS_NO_FILE: [u8; 9] = [0x03, 0x01, 0x00, 0xa0, 0x04, 0xa2, 0x02, 0x80, 0x00];
/// WIN_CERT_REVISION_2_0 and WIN_CERT_TYPE_PKCS_SIGNED_DATA.
const WIN_CERTIFICATE_KIND: [u8; 4] = [0x00, 0x02, 0x02, 0x00];
/// Length, revision and type.
const WIN_CERTIFICATE_HEADER: usize = 8;
/// Certificates begin and end on such a boundary.
const ALIGNMENT: usize = 8;

#[derive(Sequence)]
struct SpcIndirectDataContent {
    data: SpcAttributeTypeAndOptionalValue,
    message_digest: DigestInfo,
}

#[derive(Sequence)]
struct SpcAttributeTypeAndOptionalValue {
    kind: ObjectIdentifier,
    value: Any,
}

#[derive(Sequence)]
struct DigestInfo {
    digest_algorithm: AlgorithmIdentifierOwned,
    digest: OctetString,
}

#[derive(Debug, thiserror::Error)]
pub enum SignFileError {
    #[error(transparent)]
    Pe(#[from] PeError),
    #[error("the boot file is signed already: sign the unsigned one, or strip it first")]
    Signed,
    #[error("the boot file can't be signed")]
    Sign(#[from] SignError),
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyFileError {
    #[error(transparent)]
    Pe(#[from] PeError),
    #[error("the boot file is not signed: sign it, or take the one of a release")]
    Unsigned,
    #[error("the boot file's certificate table is malformed: copy the file again")]
    Table,
    #[error("the boot file was altered after it was signed: its hash is {found}, signed is {signed}")]
    Altered { signed: String, found: String },
    #[error("the boot file's checksum is {found:#010x}, not {right:#010x}: copy the file again")]
    Checksum { right: u32, found: u32 },
    #[error("the signature of the boot file does not count")]
    Signature(#[from] VerifyError),
}

/// The signed file.
///
/// # Errors
/// [`SignFileError`] names what is wrong with the file or the key.
pub fn sign(file: &[u8], signer: &Signer) -> Result<Vec<u8>, SignFileError> {
    if !Pe::parse(file)?.certificates().is_empty() {
        return Err(SignFileError::Signed);
    }
    let mut padded = file.to_vec();
    padded.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    let pe = Pe::parse(&padded)?;
    let content = indirect_data(pe.hash()).map_err(SignError::from)?;
    let signature = pkcs7::sign_attached(SPC_INDIRECT_DATA, &content, signer.key(), signer.cert())?;
    let len = (WIN_CERTIFICATE_HEADER + signature.len()).next_multiple_of(ALIGNMENT);
    let mut table = Vec::with_capacity(len);
    table.extend_from_slice(&(len as u32).to_le_bytes());
    table.extend_from_slice(&WIN_CERTIFICATE_KIND);
    table.extend_from_slice(&signature);
    table.resize(len, 0);
    Ok(pe.with_certificates(&table))
}

/// The file without signatures. The zero bytes to which it was filled up stay.
///
/// # Errors
/// [`PeError`].
pub fn strip(file: &[u8]) -> Result<Vec<u8>, PeError> {
    Ok(Pe::parse(file)?.with_certificates(&[]))
}

/// Checks that one of `trusted` signed exactly this file, and says which. A file with several signatures is refused:
/// we make none.
///
/// # Errors
/// [`VerifyFileError`].
pub fn verify<'a>(file: &[u8], trusted: &'a [Cert]) -> Result<&'a Cert, VerifyFileError> {
    let pe = Pe::parse(file)?;
    let table = pe.certificates();
    if table.is_empty() {
        return Err(VerifyFileError::Unsigned);
    }
    let header = table.get(..WIN_CERTIFICATE_HEADER).ok_or(VerifyFileError::Table)?;
    let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    // Some count the bytes to which they fill up, some don't.
    if header[4..] != WIN_CERTIFICATE_KIND
        || len < header.len()
        || len.next_multiple_of(ALIGNMENT) != table.len()
    {
        return Err(VerifyFileError::Table);
    }
    let (content, cert) =
        pkcs7::verify_attached(&table[WIN_CERTIFICATE_HEADER..], SPC_INDIRECT_DATA, trusted)?;
    let unsupported = |what| VerifyFileError::Signature(VerifyError::Unsupported { what });
    if !pkcs7::is_sequence(&content) {
        return Err(unsupported("has no SpcIndirectDataContent"));
    }
    let data: SpcIndirectDataContent = content.decode_as().map_err(VerifyError::from)?;
    if data.data.kind != SPC_PE_IMAGE_DATA || data.message_digest.digest_algorithm.oid != SHA256 {
        return Err(unsupported("is not about the SHA-256 of an EFI program"));
    }
    let (signed, found) = (data.message_digest.digest.as_bytes(), pe.hash());
    if signed != found {
        return Err(VerifyFileError::Altered { signed: hex::encode(signed), found: hex::encode(found) });
    }
    // No signature covers it. Some loaders look at it, and a copy with any other byte is not the file that was made.
    let (right, found) = pe.checksums();
    if right != found {
        return Err(VerifyFileError::Checksum { right, found });
    }
    Ok(cert)
}

fn indirect_data(hash: [u8; 32]) -> Result<Any, der::Error> {
    let data = SpcIndirectDataContent {
        data: SpcAttributeTypeAndOptionalValue {
            kind: SPC_PE_IMAGE_DATA,
            value: Any::new(Tag::Sequence, NO_FLAGS_NO_FILE)?,
        },
        message_digest: DigestInfo { digest_algorithm: algorithm(SHA256), digest: OctetString::new(hash)? },
    };
    let bytes = der::Encode::to_der(&data)?;
    Any::from_der(&bytes)
}

#[cfg(test)]
#[path = "authenticode_tests.rs"]
mod tests;
