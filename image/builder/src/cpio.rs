//! The newc cpio archive, as the kernel unpacks it (`Documentation/driver-api/early-userspace/
//! buffer-format.rst`): a 110-byte ASCII header, the name, the data, each padded to 4 bytes.
//!
//! Written deterministically: entries in byte order of their paths, owner root, time 0, inode numbers
//! counted from 1. Must never contain a file whose parent directory is missing: the kernel drops such
//! files without a word.

use std::collections::BTreeMap;
use std::collections::btree_map;

const MAGIC: &[u8] = b"070701";
const HEADER_BYTES: usize = 110;
const TRAILER: &str = "TRAILER!!!";
/// The kernel's `PATH_MAX`; it refuses longer names, and so do we, while the builder can still say which.
const NAME_MAX_BYTES: usize = 4096;

const TYPE_MASK: u32 = 0o170_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const TYPE_CHARACTER_DEVICE: u32 = 0o020_000;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Vec<u8>),
    /// Holds the target as written.
    Symlink(String),
    CharacterDevice {
        major: u32,
        minor: u32,
    },
}

/// One entry: what it is and its permission bits (at most `0o7777`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub mode: u32,
}

impl Entry {
    pub fn file(data: impl Into<Vec<u8>>, mode: u32) -> Self {
        Self { kind: Kind::File(data.into()), mode }
    }

    pub fn directory(mode: u32) -> Self {
        Self { kind: Kind::Directory, mode }
    }

    pub fn symlink(target: impl Into<String>) -> Self {
        Self { kind: Kind::Symlink(target.into()), mode: 0o777 }
    }

    fn type_bits(&self) -> u32 {
        match self.kind {
            Kind::Directory => TYPE_DIRECTORY,
            Kind::File(_) => TYPE_FILE,
            Kind::Symlink(_) => TYPE_SYMLINK,
            Kind::CharacterDevice { .. } => TYPE_CHARACTER_DEVICE,
        }
    }

    fn data(&self) -> &[u8] {
        match &self.kind {
            Kind::File(data) => data,
            Kind::Symlink(target) => target.as_bytes(),
            Kind::Directory | Kind::CharacterDevice { .. } => &[],
        }
    }
}

/// The entries of one archive, by path without a leading slash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

/// Why a path or an entry can't go into an archive.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InsertError {
    #[error("{path:?} is no usable archive path: write it absolute, without '.', '..', '//' or a NUL")]
    BadPath { path: String },
    #[error("{path} is longer than {NAME_MAX_BYTES} bytes: the kernel refuses such names")]
    PathTooLong { path: String },
    #[error("{path} is there twice with different content: remove one of the two")]
    Conflict { path: String },
    #[error("{path} lies below {parent}, which is not a directory: change one of the two paths")]
    ParentNotDirectory { path: String, parent: String },
    #[error("{path} is larger than 4 GiB, more than the newc format can hold")]
    TooLarge { path: String },
    #[error("{path} has mode {mode:o}: only permission bits up to 7777 are allowed")]
    BadMode { path: String, mode: u32 },
}

/// Why bytes are no archive.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    #[error("the archive ends in the middle of an entry, at byte {at}: the file is truncated")]
    Truncated { at: usize },
    #[error("no newc header at byte {at}: the archive is damaged or of another format")]
    BadHeader { at: usize },
    #[error("entry at byte {at} has a name that is not UTF-8 or not NUL-terminated")]
    BadName { at: usize },
    #[error("{path} has the unsupported type {type_bits:o}")]
    UnsupportedType { path: String, type_bits: u32 },
}

impl Archive {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `entry` at the absolute `path`, and its missing parents as directories with mode 755.
    ///
    /// The same entry twice is fine (two tools share a library); two different ones are an error. A
    /// directory may be given again to change the mode of one that was added as a parent.
    pub fn insert(&mut self, path: &str, entry: Entry) -> Result<(), InsertError> {
        let name = checked_name(path)?;
        if entry.mode > 0o7777 {
            return Err(InsertError::BadMode { path: path.into(), mode: entry.mode });
        }
        if u32::try_from(entry.data().len()).is_err() {
            return Err(InsertError::TooLarge { path: path.into() });
        }
        self.insert_parents(name)?;
        match self.entries.entry(name.to_owned()) {
            btree_map::Entry::Vacant(vacant) => {
                vacant.insert(entry);
            }
            btree_map::Entry::Occupied(mut there) if there.get().kind == Kind::Directory => {
                if entry.kind != Kind::Directory {
                    return Err(InsertError::Conflict { path: path.into() });
                }
                there.insert(entry);
            }
            btree_map::Entry::Occupied(there) if *there.get() == entry => {}
            btree_map::Entry::Occupied(_) => return Err(InsertError::Conflict { path: path.into() }),
        }
        Ok(())
    }

    fn insert_parents(&mut self, name: &str) -> Result<(), InsertError> {
        for (at, _) in name.match_indices('/') {
            let parent = &name[..at];
            let there = self.entries.entry(parent.to_owned()).or_insert_with(|| Entry::directory(0o755));
            if there.kind != Kind::Directory {
                return Err(InsertError::ParentNotDirectory {
                    path: format!("/{name}"),
                    parent: format!("/{parent}"),
                });
            }
        }
        Ok(())
    }

    /// The entry at `path`, with or without a leading slash.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path.trim_start_matches('/'))
    }

    /// The bytes of the regular file at `path`.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&[u8]> {
        match &self.get(path)?.kind {
            Kind::File(data) => Some(data),
            _ => None,
        }
    }

    /// All entries in the order in which they are written; paths without a leading slash.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Lets `other`'s entries replace ours, as the kernel does with a later segment.
    pub(crate) fn overlay(&mut self, other: Self) {
        self.entries.extend(other.entries);
    }

    /// The whole archive with its trailer; the length is a multiple of 4.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, (path, entry)) in self.iter().enumerate() {
            write_entry(&mut out, index as u32 + 1, path, entry);
        }
        write_trailer(&mut out);
        out
    }
}

fn checked_name(path: &str) -> Result<&str, InsertError> {
    let bad = || InsertError::BadPath { path: path.into() };
    let name = path.strip_prefix('/').ok_or_else(bad)?;
    if name == TRAILER || name.contains('\0') || name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(bad());
    }
    if name.len() >= NAME_MAX_BYTES {
        return Err(InsertError::PathTooLong { path: path.into() });
    }
    Ok(name)
}

/// Writes header, name and data of one entry. `out` must be 4-byte aligned, and is again afterwards.
pub(crate) fn write_entry(out: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) {
    let (major, minor) = match entry.kind {
        Kind::CharacterDevice { major, minor } => (major, minor),
        _ => (0, 0),
    };
    // Above 1 the kernel looks for hard links, which regular files here never are.
    let links = if entry.kind == Kind::Directory { 2 } else { 1 };
    let header = Header {
        inode,
        mode: entry.type_bits() | entry.mode,
        links,
        bytes: entry.data().len(),
        major,
        minor,
    };
    header.write(out, path);
    out.extend_from_slice(entry.data());
    pad(out);
}

pub(crate) fn write_trailer(out: &mut Vec<u8>) {
    Header { inode: 0, mode: 0, links: 1, bytes: 0, major: 0, minor: 0 }.write(out, TRAILER);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

struct Header {
    inode: u32,
    mode: u32,
    links: u32,
    bytes: usize,
    major: u32,
    minor: u32,
}

impl Header {
    fn write(&self, out: &mut Vec<u8>, name: &str) {
        let size = u32::try_from(self.bytes).expect("insert refuses files above 4 GiB");
        out.extend_from_slice(MAGIC);
        let name_bytes = name.len() as u32 + 1;
        // inode mode uid gid links mtime size major minor rmajor rminor namesize check
        let fields =
            [self.inode, self.mode, 0, 0, self.links, 0, size, 0, 0, self.major, self.minor, name_bytes, 0];
        for field in fields {
            out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        pad(out);
    }
}

/// Reads one archive from the start of `bytes`, and says how many bytes it took, trailer included.
///
/// Strict about what it understands, since it reads what we wrote and what we append to.
pub fn parse(bytes: &[u8]) -> Result<(Archive, usize), ParseError> {
    let mut archive = Archive::new();
    let mut at = 0;
    loop {
        let field = |index: usize| header_field(bytes, at, index);
        if bytes.len() < at + HEADER_BYTES {
            return Err(ParseError::Truncated { at });
        }
        if bytes[at..at + 6] != *MAGIC {
            return Err(ParseError::BadHeader { at });
        }
        let (mode, size, name_bytes) = (field(1)?, field(6)? as usize, field(11)? as usize);
        let (major, minor) = (field(9)?, field(10)?);
        let name_start = at + HEADER_BYTES;
        let name = slice(bytes, name_start, name_bytes).ok_or(ParseError::Truncated { at })?;
        let name = std::ffi::CStr::from_bytes_with_nul(name)
            .ok()
            .and_then(|name| name.to_str().ok())
            .ok_or(ParseError::BadName { at })?;
        let data_start = (name_start + name_bytes).next_multiple_of(4);
        if name == TRAILER {
            return Ok((archive, data_start.min(bytes.len())));
        }
        let data = slice(bytes, data_start, size).ok_or(ParseError::Truncated { at })?;
        let kind = match mode & TYPE_MASK {
            TYPE_DIRECTORY => Kind::Directory,
            TYPE_FILE => Kind::File(data.to_vec()),
            TYPE_SYMLINK => {
                let target = std::str::from_utf8(data).map_err(|_| ParseError::BadName { at })?;
                Kind::Symlink(target.to_owned())
            }
            TYPE_CHARACTER_DEVICE => Kind::CharacterDevice { major, minor },
            type_bits => return Err(ParseError::UnsupportedType { path: format!("/{name}"), type_bits }),
        };
        // What could not be inserted is not read either: it would mean something else where it is written again.
        let path = format!("/{}", name.trim_start_matches('/'));
        let name = checked_name(&path).map_err(|_| ParseError::BadName { at })?;
        archive.entries.insert(name.to_owned(), Entry { kind, mode: mode & 0o7777 });
        at = (data_start + size).next_multiple_of(4);
    }
}

fn slice(bytes: &[u8], start: usize, len: usize) -> Option<&[u8]> {
    bytes.get(start..start.checked_add(len)?)
}

fn header_field(bytes: &[u8], at: usize, index: usize) -> Result<u32, ParseError> {
    let start = at + MAGIC.len() + index * 8;
    let text = slice(bytes, start, 8).ok_or(ParseError::Truncated { at })?;
    std::str::from_utf8(text)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .and_then(|text| u32::from_str_radix(text, 16).ok())
        .ok_or(ParseError::BadHeader { at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Archive {
        let mut archive = Archive::new();
        archive.insert("/init", Entry::file(*b"#!init", 0o755)).unwrap();
        archive.insert("/usr/bin/node", Entry::file(vec![7; 4099], 0o755)).unwrap();
        archive.insert("/lib", Entry::symlink("usr/lib")).unwrap();
        archive.insert("/empty", Entry::file(*b"", 0o600)).unwrap();
        let console = Entry { kind: Kind::CharacterDevice { major: 5, minor: 1 }, mode: 0o600 };
        archive.insert("/dev/console", console).unwrap();
        archive
    }

    #[test]
    fn what_was_written_is_read_back() {
        let bytes = sample().to_bytes();
        let (read, used) = parse(&bytes).unwrap();
        assert_eq!(read, sample());
        assert_eq!(used, bytes.len());
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn parents_come_before_their_children() {
        let archive = sample();
        let paths: Vec<_> = archive.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["dev", "dev/console", "empty", "init", "lib", "usr", "usr/bin", "usr/bin/node"]);
    }

    #[test]
    fn order_of_insertion_does_not_change_the_bytes() {
        let mut reversed = Archive::new();
        for (path, entry) in sample().iter().collect::<Vec<_>>().into_iter().rev() {
            reversed.insert(&format!("/{path}"), entry.clone()).unwrap();
        }
        assert_eq!(reversed.to_bytes(), sample().to_bytes());
    }

    #[test]
    fn header_matches_the_kernels_format() {
        let mut archive = Archive::new();
        archive.insert("/a", Entry::file(*b"xy", 0o644)).unwrap();
        let bytes = archive.to_bytes();
        let expected = concat!(
            "070701",
            "00000001",
            "000081a4",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000002",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000002",
            "00000000",
            "a\0xy\0\0"
        );
        assert_eq!(std::str::from_utf8(&bytes[..116]).unwrap(), expected);
    }

    #[test]
    fn a_path_is_refused_with_its_name() {
        let mut archive = Archive::new();
        for bad in ["relative", "/", "/a//b", "/a/../b", "/./a", "/a\0b", ""] {
            let error = archive.insert(bad, Entry::file(*b"", 0o644)).unwrap_err();
            assert_eq!(error, InsertError::BadPath { path: bad.into() });
        }
        let long = format!("/{}", "x".repeat(NAME_MAX_BYTES));
        let error = archive.insert(&long, Entry::file(*b"", 0o644)).unwrap_err();
        assert!(error.to_string().contains("longer than 4096 bytes"), "{error}");
    }

    #[test]
    fn two_contents_at_one_path_are_a_conflict() {
        let mut archive = sample();
        archive.insert("/init", Entry::file(*b"#!init", 0o755)).unwrap();
        let error = archive.insert("/init", Entry::file(*b"other", 0o755)).unwrap_err();
        assert_eq!(error.to_string(), "/init is there twice with different content: remove one of the two");
    }

    #[test]
    fn a_file_below_a_symlink_is_refused() {
        let error = sample().insert("/lib/libc.so.6", Entry::file(*b"", 0o644)).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("/lib/libc.so.6 lies below /lib, which is not a directory"), "{text}");
    }

    #[test]
    fn a_directory_may_change_the_mode_of_an_implied_parent() {
        let mut archive = sample();
        archive.insert("/usr", Entry::directory(0o700)).unwrap();
        assert_eq!(archive.get("/usr").unwrap().mode, 0o700);
        assert!(archive.insert("/usr", Entry::file(*b"", 0o644)).is_err());
    }

    #[test]
    fn a_path_that_could_not_be_written_is_not_read() {
        for bad in ["..", "a/../b", "/TRAILER!!!", "a//b", "."] {
            let mut bytes = Vec::new();
            write_entry(&mut bytes, 1, bad, &Entry::file(*b"x", 0o644));
            write_trailer(&mut bytes);
            let error = parse(&bytes).unwrap_err();
            assert!(matches!(error, ParseError::BadName { at: 0 }), "{bad}: {error}");
        }
    }

    #[test]
    fn a_truncated_archive_is_refused_at_every_length() {
        let bytes = sample().to_bytes();
        let trailer_padding = 3;
        for len in 0..bytes.len() - trailer_padding {
            assert!(parse(&bytes[..len]).is_err(), "{len} of {} bytes were accepted", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn the_parser_survives_any_damage(at in 0usize..5000, value: u8, noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = sample().to_bytes();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = parse(&bytes);
            let _ = parse(&noise);
        }
    }
}
