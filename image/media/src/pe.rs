//! PE/COFF as far as Authenticode needs it: where the hashed parts are, the hash, the checksum.
//!
//! Source: Microsoft, "Windows Authenticode Portable Executable Signature Format", "Calculating the PE Image Hash";
//! PE format specification for the offsets. Only PE32+ for x86_64, whose sections lie one after another without
//! gaps: bytes between sections would be loaded by nobody and hashed by some.

use sha2::{Digest as _, Sha256};

use crate::BOOT_FILE_BYTES_MAX;

const MACHINE_X86_64: u16 = 0x8664;
const MAGIC_PE32_PLUS: u16 = 0x20b;
/// The specification's own limit (IMAGE_NUMBEROF_SECTIONS of the Windows loader).
const SECTIONS_MAX: u16 = 96;
/// Offsets in the optional header of PE32+.
const OPT_SIZE_OF_HEADERS: usize = 60;
const OPT_CHECKSUM: usize = 64;
const OPT_DIRECTORIES: usize = 108;
const OPT_SECURITY: usize = 112 + 4 * 8;
const SECTION_BYTES: usize = 40;

/// Why a file is no boot file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeError {
    #[error("the boot file has {len} bytes, at most {BOOT_FILE_BYTES_MAX} are possible")]
    TooLarge { len: usize },
    #[error("the boot file ends within {what}: build it again, or copy it again")]
    Truncated { what: &'static str },
    #[error("the boot file is no EFI program ({what}): is it a bzImage built with CONFIG_EFI_STUB?")]
    NotPe { what: &'static str },
    #[error(
        "the boot file is for machine {found:#06x}, only x86_64 ({MACHINE_X86_64:#06x}) can be signed here"
    )]
    Machine { found: u16 },
    #[error("the boot file's section {index} {what}, so that its hash would not cover every byte")]
    Section { index: usize, what: &'static str },
    #[error("the boot file's certificate table {what}: take the unsigned file and sign it again")]
    CertificateTable { what: &'static str },
}

/// A parsed boot file: offsets only, all of them checked against the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pe<'a> {
    bytes: &'a [u8],
    checksum_at: usize,
    security_at: usize,
    headers: usize,
    /// End of the last section.
    sections_end: usize,
    /// Offset and size; size 0 when unsigned.
    certificates: (usize, usize),
}

impl<'a> Pe<'a> {
    /// Finds everything that the hash needs.
    ///
    /// # Errors
    /// [`PeError`] names the part that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PeError> {
        if bytes.len() > BOOT_FILE_BYTES_MAX {
            return Err(PeError::TooLarge { len: bytes.len() });
        }
        let dos = "the DOS header";
        if bytes.get(..2) != Some(b"MZ") {
            return Err(PeError::NotPe { what: "it does not begin with MZ" });
        }
        let pe = u32_at(bytes, 0x3c, dos)? as usize;
        if pe > bytes.len() || bytes.get(pe..pe + 4) != Some(b"PE\0\0") {
            return Err(PeError::NotPe { what: "it has no PE signature" });
        }
        let coff = "the COFF header";
        let machine = u16_at(bytes, pe + 4, coff)?;
        if machine != MACHINE_X86_64 {
            return Err(PeError::Machine { found: machine });
        }
        let count = u16_at(bytes, pe + 6, coff)?;
        let opt = pe + 24;
        let opt_size = usize::from(u16_at(bytes, pe + 20, coff)?);
        let optional = "the optional header";
        if u16_at(bytes, opt, optional)? != MAGIC_PE32_PLUS {
            return Err(PeError::NotPe { what: "it is not PE32+" });
        }
        if u32_at(bytes, opt + OPT_DIRECTORIES, optional)? < 5 || opt_size < OPT_SECURITY + 8 {
            return Err(PeError::NotPe { what: "it has no place for a signature" });
        }
        let headers = u32_at(bytes, opt + OPT_SIZE_OF_HEADERS, optional)? as usize;
        let table = opt + opt_size;
        let table_end = table + usize::from(count) * SECTION_BYTES;
        if !(1..=SECTIONS_MAX).contains(&count) {
            return Err(PeError::NotPe { what: "it has no sections, or too many" });
        }
        if headers < table_end || headers > bytes.len() {
            return Err(PeError::Truncated { what: "its headers" });
        }
        let sections_end = sections_end(bytes, table, usize::from(count), headers)?;
        let security_at = opt + OPT_SECURITY;
        let at = u32_at(bytes, security_at, optional)? as usize;
        let size = u32_at(bytes, security_at + 4, optional)? as usize;
        let table_fits =
            at >= sections_end && at.is_multiple_of(8) && at.checked_add(size) == Some(bytes.len());
        if size != 0 && !table_fits {
            return Err(PeError::CertificateTable { what: "is not what the file ends with" });
        }
        if size == 0 && at != 0 {
            return Err(PeError::CertificateTable { what: "has a place but no size" });
        }
        let certificates = if size == 0 { (bytes.len(), 0) } else { (at, size) };
        Ok(Self { bytes, checksum_at: opt + OPT_CHECKSUM, security_at, headers, sections_end, certificates })
    }

    /// The Authenticode hash: everything but the checksum, the entry that finds the certificates, and those.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(&self.bytes[..self.checksum_at]);
        hasher.update(&self.bytes[self.checksum_at + 4..self.security_at]);
        hasher.update(&self.bytes[self.security_at + 8..self.headers]);
        // Sections follow on each other (checked), and what stands behind them is hashed with them.
        hasher.update(&self.bytes[self.headers..self.certificates.0]);
        hasher.finalize().into()
    }

    /// The certificate table, empty when the file is unsigned.
    #[must_use]
    pub fn certificates(&self) -> &'a [u8] {
        &self.bytes[self.certificates.0..]
    }

    /// Where the sections end; what follows belongs to no section.
    #[must_use]
    pub fn sections_end(&self) -> usize {
        self.sections_end
    }

    /// The file with these certificates in place of those it has, and a right checksum.
    #[must_use]
    pub fn with_certificates(&self, table: &[u8]) -> Vec<u8> {
        let mut out = self.bytes[..self.certificates.0].to_vec();
        let entry = if table.is_empty() { (0, 0) } else { (out.len() as u32, table.len() as u32) };
        out[self.security_at..self.security_at + 4].copy_from_slice(&entry.0.to_le_bytes());
        out[self.security_at + 4..self.security_at + 8].copy_from_slice(&entry.1.to_le_bytes());
        out.extend_from_slice(table);
        let sum = checksum(&out, self.checksum_at);
        out[self.checksum_at..self.checksum_at + 4].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The checksum that the header should have, and the one it has.
    #[must_use]
    pub fn checksums(&self) -> (u32, u32) {
        let has = self.bytes[self.checksum_at..self.checksum_at + 4].iter().rev();
        (checksum(self.bytes, self.checksum_at), has.fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }
}

/// Where the last section ends. They begin where the headers end and leave no gap.
fn sections_end(bytes: &[u8], table: usize, count: usize, headers: usize) -> Result<usize, PeError> {
    let mut sections = Vec::with_capacity(count);
    for index in 0..count {
        let at = table + index * SECTION_BYTES;
        let size = u32_at(bytes, at + 16, "its section table")? as usize;
        let start = u32_at(bytes, at + 20, "its section table")? as usize;
        if size != 0 {
            sections.push((start, size, index));
        }
    }
    sections.sort_unstable();
    let mut end = headers;
    for (start, size, index) in sections {
        if start < end {
            return Err(PeError::Section { index, what: "overlaps what stands before it" });
        }
        if start > end {
            return Err(PeError::Section { index, what: "leaves a gap before it" });
        }
        end = start
            .checked_add(size)
            .filter(|end| *end <= bytes.len())
            .ok_or(PeError::Section { index, what: "is longer than the file" })?;
    }
    Ok(end)
}

/// The checksum of IMAGEHLP's CheckSumMappedFile: 16-bit words added with carry, without the field itself, plus the
/// length.
fn checksum(bytes: &[u8], field_at: usize) -> u32 {
    let mut sum = 0u32;
    let mut at = 0;
    while at < bytes.len() {
        // The field is aligned to two bytes in every file that a linker made; where it isn't, bytes are masked singly.
        let byte = |i: usize| {
            if (field_at..field_at + 4).contains(&i) {
                0
            } else {
                u32::from(bytes.get(i).copied().unwrap_or(0))
            }
        };
        sum += byte(at) | byte(at + 1) << 8;
        sum = (sum & 0xffff) + (sum >> 16);
        at += 2;
    }
    (sum & 0xffff) + (sum >> 16) + bytes.len() as u32
}

fn u16_at(bytes: &[u8], at: usize, what: &'static str) -> Result<u16, PeError> {
    let two = bytes.get(at..at + 2).and_then(|two| two.try_into().ok());
    two.map(u16::from_le_bytes).ok_or(PeError::Truncated { what })
}

fn u32_at(bytes: &[u8], at: usize, what: &'static str) -> Result<u32, PeError> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_le_bytes).ok_or(PeError::Truncated { what })
}

#[cfg(test)]
#[path = "pe_tests.rs"]
mod tests;
