//! Signature lists and authenticated variables: what firmware in setup mode takes to trust our keys.
//!
//! Source: UEFI 2.10, sections 8.2.2 (EFI_VARIABLE_AUTHENTICATION_2) and 32.4.1 (EFI_SIGNATURE_LIST).
//!
//! ```text
//!   setup mode: db.auth, then KEK.auth, then PK.auth ──▶ user mode, Secure Boot on
//!   user mode:  KEK and PK signed by PK, db signed by KEK or PK, each with a later time than the one before
//! ```

use der::DateTime;
use std::time::Duration;

use crate::keys::Signer;
use crate::pkcs7::{self, SignError, VerifyError};
use crate::sha256;
use crate::x509::Cert;

/// NON_VOLATILE, BOOTSERVICE_ACCESS, RUNTIME_ACCESS, TIME_BASED_AUTHENTICATED_WRITE_ACCESS.
const ATTRIBUTES: u32 = 0x27;
/// EFI_VARIABLE_APPEND_WRITE: what is there stays.
const APPEND: u32 = 0x40;
/// EFI_CERT_X509_GUID, a5c059a1-94e4-4aa7-87b5-ab155c2bf072, in the order in which it is written.
const X509: [u8; 16] =
    [0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72];
/// EFI_CERT_TYPE_PKCS7_GUID, 4aafd29d-68df-49ee-8aa9-347d375665a7.
const PKCS7: [u8; 16] =
    [0x9d, 0xd2, 0xaf, 0x4a, 0xdf, 0x68, 0xee, 0x49, 0x8a, 0xa9, 0x34, 0x7d, 0x37, 0x56, 0x65, 0xa7];
/// EFI_GLOBAL_VARIABLE, 8be4df61-93ca-11d2-aa0d-00e098032b8c.
const GLOBAL: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// EFI_IMAGE_SECURITY_DATABASE_GUID, d719b2cb-3d3a-4596-a3bc-dad00e67656f.
const DATABASE: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
/// WIN_CERT_REVISION_2_0 and WIN_CERT_TYPE_EFI_GUID.
const WIN_CERTIFICATE_KIND: [u8; 4] = [0x00, 0x02, 0xf1, 0x0e];
const EFI_TIME_BYTES: usize = 16;
const WIN_CERTIFICATE_HEADER: usize = 24;
/// Certificates in one variable; firmware has some tens of kilobytes for all of them.
pub const CERTIFICATES_MAX: usize = 16;

/// The variables of Secure Boot that we write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variable {
    /// Whoever has this key may replace the others.
    Pk,
    /// Whoever has one of these may change what boots.
    Kek,
    /// What boots.
    Db,
    /// What boots no more, even if a key in db signed it.
    Dbx,
}

/// What is done with what the variable has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Replace,
    Append,
}

#[derive(Debug, thiserror::Error)]
pub enum VariableError {
    #[error("{count} certificates for {variable}, possible are 1 to {CERTIFICATES_MAX}, and one for PK")]
    Count { variable: &'static str, count: usize },
    #[error("{seconds} s since 1970 is no time that firmware knows")]
    Time { seconds: u64 },
    #[error("{variable} can't be signed")]
    Sign { variable: &'static str, source: SignError },
    #[error("this is no signed content of {variable}: make it again from the keys")]
    Malformed { variable: &'static str },
    #[error("the signature of {variable} does not count")]
    Verify { variable: &'static str, source: VerifyError },
}

impl Variable {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pk => "PK",
            Self::Kek => "KEK",
            Self::Db => "db",
            Self::Dbx => "dbx",
        }
    }

    fn vendor(self) -> &'static [u8; 16] {
        match self {
            Self::Pk | Self::Kek => &GLOBAL,
            Self::Db | Self::Dbx => &DATABASE,
        }
    }

    /// What is signed: name, vendor, attributes, time and content, one after another (UEFI 2.10, 8.2.2).
    fn signed_bytes(self, attributes: u32, time: &[u8; EFI_TIME_BYTES], content: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.name().encode_utf16().flat_map(u16::to_le_bytes).collect();
        bytes.extend_from_slice(self.vendor());
        bytes.extend_from_slice(&attributes.to_le_bytes());
        bytes.extend_from_slice(time);
        bytes.extend_from_slice(content);
        bytes
    }
}

impl Write {
    fn attributes(self) -> u32 {
        match self {
            Self::Replace => ATTRIBUTES,
            Self::Append => ATTRIBUTES | APPEND,
        }
    }
}

/// Certificates as firmware keeps them, one list for each, since lists hold entries of one length.
#[must_use]
pub fn signature_list(certs: &[Cert]) -> Vec<u8> {
    let owner = owner();
    let mut list = Vec::new();
    for cert in certs {
        let entry = owner.len() + cert.der().len();
        list.extend_from_slice(&X509);
        list.extend_from_slice(&(28 + entry as u32).to_le_bytes());
        list.extend_from_slice(&0u32.to_le_bytes());
        list.extend_from_slice(&(entry as u32).to_le_bytes());
        list.extend_from_slice(&owner);
        list.extend_from_slice(cert.der());
    }
    list
}

/// A variable's new content with its authentication, as `KeyTool`, `sbkeysync` and firmware menus take it.
/// `seconds` since 1970 must be later than in any write before; firmware refuses what is not.
///
/// # Errors
/// [`VariableError`].
pub fn authenticated(
    variable: Variable,
    certs: &[Cert],
    signer: &Signer,
    seconds: u64,
    write: Write,
) -> Result<Vec<u8>, VariableError> {
    let name = variable.name();
    let max = if variable == Variable::Pk { 1 } else { CERTIFICATES_MAX };
    if !(1..=max).contains(&certs.len()) {
        return Err(VariableError::Count { variable: name, count: certs.len() });
    }
    let content = signature_list(certs);
    let time = efi_time(seconds)?;
    let signed = variable.signed_bytes(write.attributes(), &time, &content);
    let signature = pkcs7::sign_detached(&signed, signer.key(), signer.cert())
        .map_err(|source| VariableError::Sign { variable: name, source })?;
    let mut bytes = time.to_vec();
    bytes.extend_from_slice(&((WIN_CERTIFICATE_HEADER + signature.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(&WIN_CERTIFICATE_KIND);
    bytes.extend_from_slice(&PKCS7);
    bytes.extend_from_slice(&signature);
    bytes.extend_from_slice(&content);
    Ok(bytes)
}

/// Checks what [`authenticated`] made, and hands the signature list out.
///
/// # Errors
/// [`VariableError`].
pub fn verify<'a>(
    variable: Variable,
    bytes: &'a [u8],
    trusted: &[Cert],
    write: Write,
) -> Result<&'a [u8], VariableError> {
    let name = variable.name();
    let malformed = || VariableError::Malformed { variable: name };
    let (time, rest) = bytes.split_first_chunk::<EFI_TIME_BYTES>().ok_or_else(malformed)?;
    let header = rest.get(..WIN_CERTIFICATE_HEADER).ok_or_else(malformed)?;
    let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    if header[4..8] != WIN_CERTIFICATE_KIND || header[8..] != PKCS7 || len < header.len() || len > rest.len()
    {
        return Err(malformed());
    }
    let (certificate, content) = rest.split_at(len);
    let signed = variable.signed_bytes(write.attributes(), time, content);
    pkcs7::verify_detached(&certificate[WIN_CERTIFICATE_HEADER..], &signed, trusted)
        .map_err(|source| VariableError::Verify { variable: name, source })?;
    Ok(content)
}

/// Who put an entry there: the same GUID on every machine, so that a tool can tell ours from others'.
fn owner() -> [u8; 16] {
    crate::gpt::Guid::from_hash(&sha256(&[b"croft/secure-boot-owner/1"])).0
}

/// EFI_TIME (UEFI 2.10, 8.3): all but seconds to year are zero, as 8.2.2 asks.
fn efi_time(seconds: u64) -> Result<[u8; EFI_TIME_BYTES], VariableError> {
    let at = DateTime::from_unix_duration(Duration::from_secs(seconds))
        .map_err(|_| VariableError::Time { seconds })?;
    let [low, high] = at.year().to_le_bytes();
    let mut time = [0; EFI_TIME_BYTES];
    time[..7].copy_from_slice(&[low, high, at.month(), at.day(), at.hour(), at.minutes(), at.seconds()]);
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing;

    #[test]
    fn a_signature_list_has_the_specifications_offsets() {
        let cert = testing::signer("db").cert().clone();
        let list = signature_list(&[cert.clone(), cert.clone()]);
        let one = 28 + 16 + cert.der().len();
        assert_eq!(list.len(), 2 * one);
        assert_eq!(list[..16], X509);
        assert_eq!(list[16..20], (one as u32).to_le_bytes());
        assert_eq!(list[20..24], [0; 4]);
        assert_eq!(list[24..28], (one as u32 - 28).to_le_bytes());
        assert_eq!(&list[44..one], cert.der());
    }

    #[test]
    fn a_variable_counts_with_its_own_name_time_and_content_only() {
        let (kek, db) = (testing::signer("KEK"), testing::signer("db"));
        let trusted = [kek.cert().clone()];
        let make = |variable| {
            authenticated(variable, &[db.cert().clone()], &kek, 1_700_000_000, Write::Replace).unwrap()
        };
        let bytes = make(Variable::Db);
        assert_eq!(bytes, make(Variable::Db), "the same again");
        // 2023-11-14 22:13:20
        assert_eq!(bytes[..16], [0xe7, 0x07, 11, 14, 22, 13, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let content = verify(Variable::Db, &bytes, &trusted, Write::Replace).unwrap();
        assert_eq!(content, signature_list(&[db.cert().clone()]));
        assert!(verify(Variable::Kek, &bytes, &trusted, Write::Replace).is_err());
        assert!(verify(Variable::Db, &bytes, &trusted, Write::Append).is_err());
        let error = verify(Variable::Db, &bytes, &[db.cert().clone()], Write::Replace).unwrap_err();
        assert_eq!(error.to_string(), "the signature of db does not count");
        for at in [0, 6, 16, 20, 24, 41, bytes.len() - 1] {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(verify(Variable::Db, &altered, &trusted, Write::Replace).is_err(), "byte {at}");
        }
        // EDK2 looks for the digest's OID right here.
        assert_eq!(bytes[40 + 13..40 + 22], [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01]);
    }

    #[test]
    fn a_platform_key_stands_alone() {
        let pk = testing::signer("PK");
        let two = [pk.cert().clone(), pk.cert().clone()];
        let error = authenticated(Variable::Pk, &two, &pk, 0, Write::Replace).unwrap_err().to_string();
        assert_eq!(error, "2 certificates for PK, possible are 1 to 16, and one for PK");
    }
}
