//! The initramfs: one zstd-compressed cpio archive, to which whoever boots may append segments.
//!
//! The kernel (`init/initramfs.c`) reads segments one after the other: zero bytes between them are
//! skipped, an uncompressed archive must start at a multiple of 4, and a later entry replaces an
//! earlier one. [`read`] does the same, so that tests see what the kernel will see.
//!
//! Must never produce a frame that the kernel can't unpack: one frame, window at most 128 MiB.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::cpio::{self, Archive, Entry};

/// Level 19 is a fifth smaller than level 12 on our content and costs 15 seconds; 20 and above need a
/// window with which small machines pay at boot.
pub const COMPRESSION_LEVEL: i32 = 19;

/// Beyond this an unpacked image can't be one of ours; a damaged length must not eat the host's memory.
const UNPACKED_MAX_BYTES: usize = 1 << 30;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How much of the compressed file each entry takes; the sum is the file's length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contribution {
    /// Path without a leading slash.
    pub path: String,
    pub uncompressed_bytes: u64,
    pub compressed_bytes: u64,
}

/// A compressed initramfs and what each entry contributes to it.
#[derive(Debug, Clone)]
pub struct Compressed {
    pub bytes: Vec<u8>,
    pub contributions: Vec<Contribution>,
}

/// Below this an entry's share is not worth a flush of the encoder: it is counted with its successor.
const FLUSH_MIN_BYTES: usize = 64 << 10;

/// Compresses `archive` at `level` (1 to 19, normally [`COMPRESSION_LEVEL`]) into one zstd frame.
///
/// The encoder is flushed after each larger entry: that ends a block but keeps the window, so the
/// shares are exact and cost next to nothing.
///
/// # Panics
/// Only when zstd itself is broken: it writes to memory.
#[must_use]
pub fn compress(archive: &Archive, level: i32) -> Compressed {
    let mut encoder =
        zstd::stream::write::Encoder::new(Vec::new(), level.clamp(1, 19)).expect("level is valid");
    encoder.include_checksum(true).expect("zstd takes the checksum flag");
    let mut contributions = Vec::new();
    let mut raw = Vec::new();
    let mut written = 0;
    for (index, (path, entry)) in archive.iter().enumerate() {
        raw.clear();
        cpio::write_entry(&mut raw, index as u32 + 1, path, entry);
        encoder.write_all(&raw).expect("writing to memory");
        if raw.len() >= FLUSH_MIN_BYTES {
            encoder.flush().expect("writing to memory");
        }
        let now = encoder.get_ref().len();
        contributions.push(Contribution {
            path: path.to_owned(),
            uncompressed_bytes: raw.len() as u64,
            compressed_bytes: (now - written) as u64,
        });
        written = now;
    }
    raw.clear();
    cpio::write_trailer(&mut raw);
    encoder.write_all(&raw).expect("writing to memory");
    let bytes = encoder.finish().expect("writing to memory");
    if let Some(last) = contributions.last_mut() {
        last.uncompressed_bytes += raw.len() as u64;
        last.compressed_bytes += (bytes.len() - written) as u64;
    }
    Compressed { bytes, contributions }
}

/// Why a segment could not be appended to an initramfs file.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("cannot read the initramfs {path}: build it with `cargo xtask image`")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write the initramfs {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Entry(#[from] cpio::InsertError),
}

/// Appends an uncompressed archive with `files` (absolute path, bytes; mode 644, root's) to `initramfs`.
///
/// Parents are included, so a file can't get lost because its directory is missing in the image; a
/// directory that exists already stays, with mode 755.
pub fn append_segment(initramfs: &mut Vec<u8>, files: &[(&str, &[u8])]) -> Result<(), cpio::InsertError> {
    let mut archive = Archive::new();
    for (path, data) in files {
        archive.insert(path, Entry::file(*data, 0o644))?;
    }
    initramfs.resize(initramfs.len().next_multiple_of(4), 0);
    initramfs.extend_from_slice(&archive.to_bytes());
    Ok(())
}

/// Writes a copy of the file `initramfs` with a segment appended (see [`append_segment`]) to `out`.
pub fn append_segment_to_file(
    initramfs: &Path,
    out: &Path,
    files: &[(&str, &[u8])],
) -> Result<(), AppendError> {
    let mut bytes =
        std::fs::read(initramfs).map_err(|source| AppendError::Read { path: initramfs.into(), source })?;
    append_segment(&mut bytes, files)?;
    std::fs::write(out, bytes).map_err(|source| AppendError::Write { path: out.into(), source })
}

/// Why bytes are no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("segment at byte {at} is no cpio archive")]
    Cpio { at: usize, source: cpio::ParseError },
    #[error("segment at byte {at} is a damaged zstd frame")]
    Zstd { at: usize, source: std::io::Error },
    #[error("segment at byte {at} unpacks to more than 1 GiB, which no node image does")]
    TooLarge { at: usize },
    #[error("segment at byte {at} is neither a cpio archive on a 4-byte boundary nor a zstd frame")]
    UnknownFormat { at: usize },
    #[error("compressed segment at byte {at} has {bytes} bytes after its archive's end")]
    Junk { at: usize, bytes: usize },
}

/// Reads all segments the way the kernel does; later entries replace earlier ones.
pub fn read(bytes: &[u8]) -> Result<Archive, ReadError> {
    let mut archive = Archive::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if rest[0] == b'0' && at.is_multiple_of(4) {
            let (segment, used) = cpio::parse(rest).map_err(|source| ReadError::Cpio { at, source })?;
            archive.overlay(segment);
            at += used;
        } else if rest[0] == 0 {
            at += 1;
        } else if rest.starts_with(&ZSTD_MAGIC) {
            let (unpacked, used) = decompress_frame(rest, at)?;
            let (segment, inner) = cpio::parse(&unpacked).map_err(|source| ReadError::Cpio { at, source })?;
            if unpacked[inner..].iter().any(|byte| *byte != 0) {
                return Err(ReadError::Junk { at, bytes: unpacked.len() - inner });
            }
            archive.overlay(segment);
            at += used;
        } else {
            return Err(ReadError::UnknownFormat { at });
        }
    }
    Ok(archive)
}

fn decompress_frame(bytes: &[u8], at: usize) -> Result<(Vec<u8>, usize), ReadError> {
    let failed = |source| ReadError::Zstd { at, source };
    let mut rest = bytes;
    let mut unpacked = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(&mut rest).map_err(failed)?.single_frame();
    decoder.take(UNPACKED_MAX_BYTES as u64 + 1).read_to_end(&mut unpacked).map_err(failed)?;
    if unpacked.len() > UNPACKED_MAX_BYTES {
        return Err(ReadError::TooLarge { at });
    }
    Ok((unpacked, bytes.len() - rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::Kind;

    fn image() -> Archive {
        let mut archive = Archive::new();
        // Noise does not compress, so the size of the frame varies with it and alignment gets tested.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .take(70_001)
        .collect();
        archive.insert("/init", Entry::file(noise, 0o755)).unwrap();
        archive.insert("/usr/bin/node", Entry::file(vec![0; 300_000], 0o755)).unwrap();
        archive.insert("/etc/croft/boot.toml", Entry::file(*b"old", 0o600)).unwrap();
        let console = Entry { kind: Kind::CharacterDevice { major: 5, minor: 1 }, mode: 0o600 };
        archive.insert("/dev/console", console).unwrap();
        archive
    }

    #[test]
    fn two_builds_are_byte_identical() {
        assert_eq!(compress(&image(), 3).bytes, compress(&image(), 3).bytes);
    }

    #[test]
    fn the_compressed_image_reads_back() {
        assert_eq!(read(&compress(&image(), 3).bytes).unwrap(), image());
    }

    #[test]
    fn shares_add_up_to_the_file() {
        let compressed = compress(&image(), 3);
        let total: u64 = compressed.contributions.iter().map(|share| share.compressed_bytes).sum();
        assert_eq!(total, compressed.bytes.len() as u64);
        let share =
            |path| compressed.contributions.iter().find(|share| share.path == path).unwrap().compressed_bytes;
        assert!(share("init") > 60_000, "noise must not compress: {}", share("init"));
        assert!(share("usr/bin/node") < 1_000, "zeros must compress: {}", share("usr/bin/node"));
    }

    #[test]
    fn an_appended_file_replaces_the_images_own() {
        // Every alignment of the compressed part.
        for extra in 0..4 {
            let mut archive = image();
            archive.insert("/pad", Entry::file(vec![0xa5; extra], 0o644)).unwrap();
            let mut bytes = compress(&archive, 1).bytes;
            bytes.extend(std::iter::repeat_n(0, extra));
            append_segment(&mut bytes, &[("/etc/croft/boot.toml", b"new"), ("/deep/er/file", b"x")]).unwrap();
            let read = read(&bytes).unwrap();
            assert_eq!(read.file("/etc/croft/boot.toml"), Some(&b"new"[..]));
            assert_eq!(read.file("/deep/er/file"), Some(&b"x"[..]));
            assert_eq!(read.get("/deep/er").unwrap().kind, Kind::Directory);
            assert_eq!(read.file("/init"), image().file("/init"));
        }
    }

    #[test]
    fn a_segment_may_be_appended_twice() {
        let mut bytes = compress(&image(), 1).bytes;
        append_segment(&mut bytes, &[("/etc/croft/boot.toml", b"one")]).unwrap();
        append_segment(&mut bytes, &[("/etc/croft/boot.toml", b"two")]).unwrap();
        assert_eq!(read(&bytes).unwrap().file("/etc/croft/boot.toml"), Some(&b"two"[..]));
    }

    #[test]
    fn damage_is_reported_with_its_place() {
        let good = compress(&image(), 1).bytes;
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        assert!(read(&flipped).is_err());

        let mut junk = good.clone();
        junk.resize(junk.len().next_multiple_of(4), 0);
        let at = junk.len();
        junk.extend_from_slice(b"\x1f\x8b rubbish");
        let error = read(&junk).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("segment at byte {at} is neither a cpio archive on a 4-byte boundary nor a zstd frame")
        );
    }

    #[test]
    fn a_missing_image_says_how_to_build_it() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("initramfs.zst");
        let error = append_segment_to_file(&missing, &directory.path().join("out"), &[]).unwrap_err();
        assert!(error.to_string().contains("initramfs.zst: build it with `cargo xtask image`"), "{error}");
    }
}
