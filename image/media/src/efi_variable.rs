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
/// EFI_CERT_SHA256_GUID, c1c41626-504c-4092-aca9-41f936934328.
const SHA256: [u8; 16] =
    [0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28];
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
/// Entries in one variable; firmware has some tens of kilobytes for all of them.
pub const ENTRIES_MAX: usize = 64;

/// What a variable names.
#[derive(Debug, Clone, Copy)]
pub enum Entries<'a> {
    Certificates(&'a [Cert]),
    /// Authenticode hashes ([`crate::pe::Pe::hash`]) of single boot files: to end one release without ending its key.
    BootFiles(&'a [[u8; 32]]),
}

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
    #[error("{count} entries for {variable}, possible are 1 to {ENTRIES_MAX}, and one certificate for PK")]
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

impl Entries<'_> {
    fn count(&self) -> usize {
        match self {
            Self::Certificates(certs) => certs.len(),
            Self::BootFiles(hashes) => hashes.len(),
        }
    }
}

/// Entries as firmware keeps them. A list holds entries of one length: one list for each certificate, one for all
/// hashes.
#[must_use]
pub fn signature_list(entries: Entries<'_>) -> Vec<u8> {
    let mut lists = Vec::new();
    match entries {
        Entries::Certificates(certs) => {
            for cert in certs {
                put_list(&mut lists, &X509, &[cert.der()]);
            }
        }
        Entries::BootFiles([]) => {}
        Entries::BootFiles(hashes) => {
            put_list(&mut lists, &SHA256, &hashes.iter().map(<[u8; 32]>::as_slice).collect::<Vec<_>>());
        }
    }
    lists
}

/// One EFI_SIGNATURE_LIST, all of whose entries have the length of the first.
fn put_list(lists: &mut Vec<u8>, kind: &[u8; 16], entries: &[&[u8]]) {
    let owner = owner();
    let entry = owner.len() + entries.first().map_or(0, |first| first.len());
    lists.extend_from_slice(kind);
    lists.extend_from_slice(&((28 + entry * entries.len()) as u32).to_le_bytes());
    lists.extend_from_slice(&0u32.to_le_bytes());
    lists.extend_from_slice(&(entry as u32).to_le_bytes());
    for content in entries {
        lists.extend_from_slice(&owner);
        lists.extend_from_slice(content);
    }
}

/// A variable's new content with its authentication, as `KeyTool`, `sbkeysync` and firmware menus take it.
/// `seconds` since 1970 must be later than in any write before; firmware refuses what is not.
///
/// # Errors
/// [`VariableError`].
pub fn authenticated(
    variable: Variable,
    entries: Entries<'_>,
    signer: &Signer,
    seconds: u64,
    write: Write,
) -> Result<Vec<u8>, VariableError> {
    let name = variable.name();
    let fits = match (variable, entries) {
        (Variable::Pk, Entries::Certificates([_])) => true,
        (Variable::Pk, _) => false,
        _ => (1..=ENTRIES_MAX).contains(&entries.count()),
    };
    if !fits {
        return Err(VariableError::Count { variable: name, count: entries.count() });
    }
    let content = signature_list(entries);
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
        let list = signature_list(Entries::Certificates(&[cert.clone(), cert.clone()]));
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
            authenticated(
                variable,
                Entries::Certificates(&[db.cert().clone()]),
                &kek,
                1_700_000_000,
                Write::Replace,
            )
            .unwrap()
        };
        let bytes = make(Variable::Db);
        assert_eq!(bytes, make(Variable::Db), "the same again");
        // 2023-11-14 22:13:20
        assert_eq!(bytes[..16], [0xe7, 0x07, 11, 14, 22, 13, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let content = verify(Variable::Db, &bytes, &trusted, Write::Replace).unwrap();
        assert_eq!(content, signature_list(Entries::Certificates(&[db.cert().clone()])));
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
        let message =
            |entries| authenticated(Variable::Pk, entries, &pk, 0, Write::Replace).unwrap_err().to_string();
        let said = "possible are 1 to 64, and one certificate for PK";
        assert_eq!(message(Entries::Certificates(&two)), format!("2 entries for PK, {said}"));
        assert_eq!(message(Entries::BootFiles(&[[1; 32]])), format!("1 entries for PK, {said}"));
    }

    #[test]
    fn single_boot_files_can_be_forbidden() {
        let kek = testing::signer("KEK");
        let hashes = [[1; 32], [2; 32]];
        let make = |hashes| authenticated(Variable::Dbx, Entries::BootFiles(hashes), &kek, 1, Write::Append);
        let bytes = make(&hashes).unwrap();
        let trusted = [kek.cert().clone()];
        let list = verify(Variable::Dbx, &bytes, &trusted, Write::Append).unwrap();
        assert_eq!(list.len(), 28 + 2 * 48);
        assert_eq!(list[..16], SHA256);
        assert_eq!(list[24..28], 48u32.to_le_bytes());
        assert_eq!((&list[44..76], &list[92..]), (&hashes[0][..], &hashes[1][..]));
        assert!(matches!(make(&[]), Err(VariableError::Count { variable: "dbx", count: 0 })));
        assert!(matches!(make(&[[0; 32]; 65]), Err(VariableError::Count { count: 65, .. })));
    }
}
