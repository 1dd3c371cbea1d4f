//! Reads the tar stream of one layer, entry by entry, with every size bounded.
//!
//! Headers are decoded by the `tar` crate; the walk over them is ours, because that crate reads extended
//! headers and long names into memory without a bound, and takes a file's size from the old header where an
//! extended header overrides it. It must never act on an entry: that is the unpacker's part.
//!
//! Formats: POSIX.1-2001 ustar and pax (IEEE Std 1003.1, `pax`), GNU long names, base-256 numbers, and
//! extended attributes as `SCHILY.xattr.*` (OCI image specification, `layer.md`). Sparse files are refused.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::Header;

/// A tar block.
const BLOCK_BYTES: u64 = 512;
/// All extended headers and long names of one entry: they hold a path, a link and some attributes. Beyond this it is an
/// attack, since they are kept until the entry comes.
const EXTENSION_BYTES: u64 = 1024 * 1024;
/// `PATH_MAX` of Linux.
const PATH_BYTES: usize = 4096;

/// One thing in a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it stands in the stream; not yet cleaned.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970; earlier times count as 1970.
    pub(crate) mtime_s: u64,
    /// Sorted, so that they are set in the same order each time.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File {
        size_bytes: u64,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    /// Another name for a file that was already unpacked.
    HardLink {
        target: Vec<u8>,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// A stream that is no layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("the archive can't be read at byte {offset}")]
    Read { offset: u64, source: io::Error },
    #[error("the archive is cut off at byte {offset}")]
    CutOff { offset: u64 },
    #[error("the archive is damaged at byte {offset}: {reason}")]
    Damaged { offset: u64, reason: String },
    #[error("'{path}' has extensions of {bytes} bytes; allowed are {EXTENSION_BYTES}")]
    ExtensionTooLarge { path: String, bytes: u64 },
    #[error("the path '{path}…' has {bytes} bytes; Linux allows {PATH_BYTES}")]
    PathTooLong { path: String, bytes: usize },
    #[error("'{path}' is {what}, which image layers don't have: export the image with another tool")]
    Unsupported { path: String, what: String },
}

/// What extended headers said of the entry after them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime_s: Option<u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub(crate) struct LayerTar<R> {
    inner: R,
    /// Bytes read so far.
    offset: u64,
    /// Content and padding of the current entry that nobody has read.
    content: u64,
    padding: u64,
    ended: bool,
}

impl<R: Read> LayerTar<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, offset: 0, content: 0, padding: 0, ended: false }
    }

    /// The next entry, `None` at the end. What was left of the previous one is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        let mut extended = 0;
        loop {
            self.skip_rest()?;
            if self.ended {
                return Ok(None);
            }
            let Some(header) = self.header()? else {
                self.ended = true;
                return Ok(None);
            };
            let at = self.offset - BLOCK_BYTES;
            let size = header.entry_size().map_err(|e| damaged(at, e.to_string()))?;
            match header.entry_type().as_byte() {
                b'x' => {
                    let text = self.extension(&header, size, &mut extended)?;
                    parse_pax(&text, at, &mut extensions)?;
                }
                b'g' => {
                    // Global headers carry comments of `git archive` and the like.
                    self.extension(&header, size, &mut extended)?;
                }
                b'L' => extensions.path = Some(until_nul(self.extension(&header, size, &mut extended)?)),
                b'K' => extensions.link = Some(until_nul(self.extension(&header, size, &mut extended)?)),
                _ => return self.entry(&header, size, extensions, at).map(Some),
            }
        }
    }

    /// Reads content of the current entry; 0 at its end.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let want = buffer.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = self.read_some(&mut buffer[..want])?;
        if got == 0 {
            return Err(TarError::CutOff { offset: self.offset });
        }
        self.content -= got as u64;
        Ok(got)
    }

    /// The stream behind the archive: what follows its end marker.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    fn entry(&mut self, header: &Header, size: u64, ext: Extensions, at: u64) -> Result<Entry, TarError> {
        let path = ext.path.unwrap_or_else(|| header.path_bytes().into_owned());
        check_path(&path)?;
        let shown = String::from_utf8_lossy(&path).into_owned();
        let bad = |e: io::Error| damaged(at, e.to_string());
        let link = || -> Result<Vec<u8>, TarError> {
            let link = ext
                .link
                .clone()
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default();
            check_path(&link)?;
            if link.is_empty() {
                return Err(damaged(at, format!("'{shown}' is a link to nothing")));
            }
            Ok(link)
        };
        let device = || -> Result<(u32, u32), TarError> {
            let major = header.device_major().map_err(bad)?.unwrap_or(0);
            let minor = header.device_minor().map_err(bad)?.unwrap_or(0);
            Ok((major, minor))
        };
        let size = ext.size.unwrap_or(size);
        let kind = match header.entry_type().as_byte() {
            // Before POSIX, a directory was a file whose name ends with a slash.
            b'0' | 0 if path.ends_with(b"/") && size == 0 => EntryKind::Directory,
            b'0' | b'7' | 0 => EntryKind::File { size_bytes: size },
            b'1' => EntryKind::HardLink { target: link()? },
            b'2' => EntryKind::Symlink { target: link()? },
            b'3' => device().map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'S' => return Err(TarError::Unsupported { path: shown, what: "a sparse file".to_owned() }),
            other => {
                let what = format!("of the unknown type '{}'", char::from(other).escape_default());
                return Err(TarError::Unsupported { path: shown, what });
            }
        };
        // Some writers give links a size although nothing follows them (POSIX: it is to be ignored).
        let content = if let EntryKind::File { size_bytes } = kind { size_bytes } else { 0 };
        self.expect(content);
        let id = |value: u64, what: &str| {
            u32::try_from(value).map_err(|_| damaged(at, format!("{what} {value} of '{shown}' is too large")))
        };
        Ok(Entry {
            mode: header.mode().map_err(bad)? & 0o7777,
            uid: ext.uid.map_or_else(|| header.uid().map_err(bad).and_then(|v| id(v, "uid")), Ok)?,
            gid: ext.gid.map_or_else(|| header.gid().map_err(bad).and_then(|v| id(v, "gid")), Ok)?,
            // Times before 1970 and after 2^63 are written in base 256; neither is worth a failure.
            mtime_s: ext.mtime_s.unwrap_or_else(|| header.mtime().unwrap_or(0)),
            xattrs: ext.xattrs,
            path,
            kind,
        })
    }

    /// One header block, `None` at the end marker or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < BLOCK_BYTES as usize {
            match self.read_some(&mut header.as_mut_bytes()[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::CutOff { offset: self.offset }),
                got => filled += got,
            }
        }
        if header.as_bytes().iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let at = self.offset - BLOCK_BYTES;
        let stored = header.cksum().map_err(|e| damaged(at, e.to_string()))?;
        // The checksum counts itself as eight spaces.
        let sum: u32 = header
            .as_bytes()
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
            .sum();
        if sum != stored {
            return Err(damaged(at, format!("a header's checksum is {sum}, it claims {stored}")));
        }
        Ok(Some(header))
    }

    /// The content of an extended header. `extended` counts those of the same entry.
    fn extension(&mut self, header: &Header, size: u64, extended: &mut u64) -> Result<Vec<u8>, TarError> {
        // A header without content counts too: an entry may not have any number of them.
        *extended = extended.saturating_add(size.max(BLOCK_BYTES));
        if *extended > EXTENSION_BYTES {
            let path = String::from_utf8_lossy(&header.path_bytes()).into_owned();
            return Err(TarError::ExtensionTooLarge { path, bytes: *extended });
        }
        self.expect(size);
        let mut text = vec![0; size as usize];
        let mut filled = 0;
        while filled < text.len() {
            filled += self.read_content(&mut text[filled..])?;
        }
        Ok(text)
    }

    fn expect(&mut self, content: u64) {
        self.content = content;
        self.padding = (BLOCK_BYTES - content % BLOCK_BYTES) % BLOCK_BYTES;
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 16 * 1024];
        while self.read_content(&mut buffer)? > 0 {}
        while self.padding > 0 {
            let got = self.read_some(&mut buffer[..self.padding as usize])?;
            if got == 0 {
                // `umoci insert` leaves out the last padding and the end marker. Nothing of an entry is
                // missing, and the layer's digest says whether anything else is.
                self.ended = true;
                self.padding = 0;
                break;
            }
            self.padding -= got as u64;
        }
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.inner.read(buffer) {
                Ok(got) => {
                    self.offset += got as u64;
                    return Ok(got);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset: self.offset, source }),
            }
        }
    }
}

fn damaged(offset: u64, reason: String) -> TarError {
    TarError::Damaged { offset, reason }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn check_path(path: &[u8]) -> Result<(), TarError> {
    if path.len() > PATH_BYTES {
        let start = String::from_utf8_lossy(&path[..64]).into_owned();
        return Err(TarError::PathTooLong { path: start, bytes: path.len() });
    }
    Ok(())
}

/// Records of the form `LENGTH KEY=VALUE\n`, where the length counts the whole record.
fn parse_pax(text: &[u8], at: u64, ext: &mut Extensions) -> Result<(), TarError> {
    let mut rest = text;
    while !rest.is_empty() {
        let (key, value, after) = pax_record(rest).ok_or_else(|| damaged(at, "a pax record".to_owned()))?;
        rest = after;
        let number = || {
            std::str::from_utf8(value)
                .ok()
                .and_then(|v| v.parse::<u64>().ok())
                .ok_or_else(|| damaged(at, format!("pax value of '{}'", String::from_utf8_lossy(key))))
        };
        match key {
            b"path" => ext.path = Some(value.to_vec()),
            b"linkpath" => ext.link = Some(value.to_vec()),
            b"size" => ext.size = Some(number()?),
            b"uid" => ext.uid = Some(u32::try_from(number()?).map_err(|e| damaged(at, e.to_string()))?),
            b"gid" => ext.gid = Some(u32::try_from(number()?).map_err(|e| damaged(at, e.to_string()))?),
            b"mtime" => {
                // A decimal number, perhaps negative; whole seconds are enough for a read-only image.
                let text = std::str::from_utf8(value).unwrap_or("");
                let whole = text.split('.').next().unwrap_or("");
                ext.mtime_s = Some(if whole.starts_with('-') {
                    0
                } else {
                    whole.parse().map_err(|_| damaged(at, "pax value of 'mtime'".to_owned()))?
                });
            }
            _ if key.starts_with(b"SCHILY.xattr.") => {
                ext.xattrs.insert(key[b"SCHILY.xattr.".len()..].to_vec(), value.to_vec());
            }
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(TarError::Unsupported {
                    path: String::from_utf8_lossy(ext.path.as_deref().unwrap_or(b"?")).into_owned(),
                    what: "a sparse file".to_owned(),
                });
            }
            // Access times, names of users and comments don't concern an image.
            _ => {}
        }
    }
    Ok(())
}

fn pax_record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().position(|b| *b == b' ')?;
    let len: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
    let record = text.get(..len)?.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &text[len..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, kind: u8, size: u64) -> Header {
        let mut h = Header::new_ustar();
        h.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        h.set_entry_type(tar::EntryType::new(kind));
        h.set_size(size);
        h.set_mode(0o644);
        h.set_uid(1000);
        h.set_gid(100);
        h.set_mtime(7);
        h.set_cksum();
        h
    }

    fn archive(parts: &[(Header, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (header, content) in parts {
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.extend_from_slice(&[0; 1024]);
        bytes
    }

    fn pax(key: &str, value: &str) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut len = body + body.to_string().len();
        len = body + len.to_string().len();
        format!("{len} {key}={value}\n").into_bytes()
    }

    fn first(bytes: &[u8]) -> Result<Option<Entry>, TarError> {
        LayerTar::new(bytes).next_entry()
    }

    #[test]
    fn a_pax_header_overrides_path_size_owner_time_and_adds_attributes() {
        let mut text = pax("path", "a/long/name");
        text.extend(pax("size", "5"));
        text.extend(pax("uid", "70000"));
        text.extend(pax("mtime", "12.75"));
        text.extend(pax("SCHILY.xattr.user.x", "y=z"));
        let bytes = archive(&[
            (header("ext", b'x', text.len() as u64), &text),
            (header("short", b'0', 0), b"hello"),
            (header("next", b'0', 0), b""),
        ]);
        let mut tar = LayerTar::new(&bytes[..]);
        let entry = tar.next_entry().unwrap().unwrap();
        assert_eq!(entry.path, b"a/long/name");
        assert_eq!(entry.kind, EntryKind::File { size_bytes: 5 });
        assert_eq!((entry.uid, entry.gid, entry.mtime_s), (70_000, 100, 12));
        assert_eq!(entry.xattrs[&b"user.x"[..]], b"y=z");
        let mut content = [0; 10];
        assert_eq!(tar.read_content(&mut content).unwrap(), 5);
        assert_eq!(&content[..5], b"hello");
        assert_eq!(tar.next_entry().unwrap().unwrap().path, b"next");
        assert_eq!(tar.next_entry().unwrap(), None);
    }

    #[test]
    fn gnu_long_names_are_read() {
        let bytes = archive(&[
            (header("L", b'L', 4), b"abc\0"),
            (header("K", b'K', 3), b"to\0"),
            (header("x", b'2', 0), b""),
        ]);
        let entry = first(&bytes).unwrap().unwrap();
        assert_eq!(entry.path, b"abc");
        assert_eq!(entry.kind, EntryKind::Symlink { target: b"to".to_vec() });
    }

    #[test]
    fn a_huge_extension_is_refused_before_it_is_read() {
        let error = first(&archive(&[(header("bomb", b'x', 1 << 33), b"")])).unwrap_err().to_string();
        assert_eq!(error, "'bomb' has extensions of 8589934592 bytes; allowed are 1048576");
    }

    #[test]
    fn any_number_of_extensions_of_one_entry_is_refused_before_they_fill_the_memory() {
        let attribute = |n: usize| pax(&format!("SCHILY.xattr.user.{n}"), &"v".repeat(600 * 1024));
        let parts: Vec<_> = (0..3).map(attribute).collect();
        let parts: Vec<_> =
            parts.iter().map(|text| (header("many", b'x', text.len() as u64), text.as_slice())).collect();
        let error = first(&archive(&parts)).unwrap_err().to_string();
        assert!(error.starts_with("'many' has extensions of 12"), "{error}");
        assert!(error.ends_with("bytes; allowed are 1048576"), "{error}");
        let empty: Vec<_> = (0..2_049).map(|_| (header("many", b'x', 0), &b""[..])).collect();
        let error = first(&archive(&empty)).unwrap_err().to_string();
        assert!(error.starts_with("'many' has extensions of 1049088 bytes"), "{error}");
    }

    #[test]
    fn damage_is_named_with_its_place() {
        let mut bytes = archive(&[(header("a", b'0', 0), b""), (header("b", b'0', 0), b"")]);
        bytes[512] = b'c';
        let mut tar = LayerTar::new(&bytes[..]);
        tar.next_entry().unwrap();
        let error = tar.next_entry().unwrap_err().to_string();
        assert!(error.starts_with("the archive is damaged at byte 512: a header's checksum is"), "{error}");
    }

    #[test]
    fn a_stream_that_ends_within_a_file_is_cut_off() {
        let bytes = archive(&[(header("a", b'0', 600), &[1; 600])]);
        let mut tar = LayerTar::new(&bytes[..700]);
        tar.next_entry().unwrap();
        assert_eq!(tar.next_entry().unwrap_err().to_string(), "the archive is cut off at byte 700");
    }

    #[test]
    fn a_stream_that_ends_after_the_last_content_is_complete() {
        let bytes = archive(&[(header("a", b'0', 16), &[1; 16])]);
        let mut tar = LayerTar::new(&bytes[..512 + 16]);
        assert_eq!(tar.next_entry().unwrap().unwrap().path, b"a");
        assert_eq!(tar.next_entry().unwrap(), None);
    }

    #[test]
    fn sparse_files_and_unknown_types_are_refused_with_the_path() {
        let error = first(&archive(&[(header("s", b'S', 0), b"")])).unwrap_err().to_string();
        assert!(error.starts_with("'s' is a sparse file, which image layers don't have"), "{error}");
        let error = first(&archive(&[(header("d", b'D', 0), b"")])).unwrap_err().to_string();
        assert!(error.starts_with("'d' is of the unknown type 'D'"), "{error}");
    }
}
