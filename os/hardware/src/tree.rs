//! Bounded reads below a root folder, with a list of what went wrong.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Longest attribute; sysfs gives at most a page, `/proc/cpuinfo` about 1.5 kB per thread.
const READ_MAX_BYTES: u64 = 16 << 20;
/// Longest name of a model, maker or serial number that is kept.
const NAME_MAX_CHARS: usize = 128;
/// A machine with more wrong attributes than this is broken in a way that one more line won't explain.
const FINDINGS_MAX: usize = 256;

pub(crate) struct Tree {
    root: PathBuf,
    findings: RefCell<Vec<String>>,
}

impl Tree {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.into(), findings: RefCell::default() }
    }

    pub(crate) fn into_findings(self) -> Vec<String> {
        self.findings.into_inner()
    }

    pub(crate) fn find(&self, path: &str, what: &str) {
        let mut findings = self.findings.borrow_mut();
        if findings.len() < FINDINGS_MAX {
            findings.push(format!("/{path}: {what}"));
        }
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// Bytes of a file; `None` when there is no such file. Other failures are findings.
    pub(crate) fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        match self.read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            Err(error) => {
                self.find(path, &format!("can't be read: {error}"));
                None
            }
        }
    }

    /// Like [`Tree::bytes`], for attributes that answer with an error in usual states (a link that is down).
    pub(crate) fn quiet_text(&self, path: &str) -> Option<String> {
        self.read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    fn read(&self, path: &str) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.root.join(path))?.take(READ_MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Text, without blanks around it.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        self.bytes(path).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A name that somebody's firmware chose: printable, single blanks, bounded; `None` when nothing is left.
    pub(crate) fn name(&self, path: &str) -> Option<String> {
        clean(&self.text(path)?)
    }

    /// A number in decimal, or in hexadecimal after `0x`.
    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        let text = self.text(path)?;
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        if number.is_err() {
            self.find(path, &format!("{:?} is not a number", excerpt(&text)));
        }
        number.ok()
    }

    /// `0` or `1`.
    pub(crate) fn flag(&self, path: &str) -> Option<bool> {
        self.number(path).map(|number| number != 0)
    }

    /// Names in a folder, sorted as people count: `sda`, `sdb`, `sdaa`; `nvme2n1`, `nvme10n1`.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let entries = match fs::read_dir(self.root.join(path)) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    self.find(path, &format!("can't be listed: {error}"));
                }
                return Vec::new();
            }
        };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_by_key(|name| natural(name));
        names
    }

    /// Where a symbolic link points, as it is written.
    pub(crate) fn link(&self, path: &str) -> Option<String> {
        fs::read_link(self.root.join(path)).ok()?.into_os_string().into_string().ok()
    }
}

/// Sort key: shorter letters first, then numbers by value.
fn natural(name: &str) -> (usize, String, Vec<u64>) {
    let letters: String = name.chars().filter(|character| !character.is_ascii_digit()).collect();
    let numbers = name
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    (letters.len(), letters, numbers)
}

/// See [`Tree::name`].
pub(crate) fn clean(text: &str) -> Option<String> {
    let words: Vec<String> = text
        .split(|character: char| character.is_whitespace() || character.is_control())
        .map(|word| {
            word.chars().filter(|character| *character != char::REPLACEMENT_CHARACTER).collect::<String>()
        })
        .filter(|word| !word.is_empty())
        .collect();
    let name: String = words.join(" ").chars().take(NAME_MAX_CHARS).collect();
    (!name.is_empty()).then_some(name)
}

pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_firmware_become_printable_and_bounded() {
        assert_eq!(clean("  QEMU\0\0 HARDDISK \n"), Some("QEMU HARDDISK".into()));
        assert_eq!(clean("\x1b[2Jevil"), Some("[2Jevil".into()));
        assert_eq!(clean(" \0\n"), None);
        assert_eq!(clean(&"x".repeat(500)).unwrap().len(), NAME_MAX_CHARS);
    }

    #[test]
    fn disks_are_counted_as_people_count() {
        let mut names = vec!["sdaa", "nvme10n1", "sdb", "nvme2n1", "sda", "vda"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["sda", "sdb", "vda", "sdaa", "nvme2n1", "nvme10n1"]);
    }
}
