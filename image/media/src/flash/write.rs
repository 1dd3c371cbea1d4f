//! Writing, syncing, reading back.
//!
//! ```text
//!   clear the beginning and the end ─▶ write all but the beginning ─▶ sync ─▶ write the beginning ─▶ sync ─▶ read back
//! ```
//! The beginning holds the partition table and is written last: a stick that was pulled out half-way boots nowhere,
//! instead of somewhere. The end of the device is cleared because a backup table from before lies there.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags};

use super::target::Writable;

/// Written and read at a time; a multiple of what flash memory erases, and small enough for a smooth progress bar.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// What is cleared at the end: backup GPT, RAID and ZFS labels.
const TAIL_BYTES: u64 = 1024 * 1024;
/// O_DIRECT wants memory, place and length in multiples of the logical block; pages do for all.
const ALIGNMENT: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Write,
    Verify,
}

/// How far it is. Both phases count up to the image's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub phase: Phase,
    pub done_bytes: u64,
    pub all_bytes: u64,
}

/// A stick that reads back as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub bytes: u64,
    /// Whether it was read from the device itself; some devices only allow reading through the kernel's cache, which
    /// was emptied then.
    pub read_directly: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum FlashError {
    #[error("no rights to write to {path}: run this as root")]
    Rights { path: PathBuf },
    #[error(
        "{path} is in use by another program or was mounted just now: nothing was written; unmount it first"
    )]
    Busy { path: PathBuf },
    #[error("{path} is not the device any more that was looked at: nothing was written; look again")]
    Changed { path: PathBuf },
    #[error("can't open {path}: nothing was written")]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "the image has {len} bytes, which is no whole number of blocks: nothing was written; make it again"
    )]
    Image { len: usize },
    #[error(
        "the image has {len} bytes, and only {checked} were found to fit: nothing was written; look again"
    )]
    Larger { len: usize, checked: u64 },
    #[error(
        "writing to {path} failed at byte {at}: the stick does not boot now; write it again, or take another"
    )]
    Write { path: PathBuf, at: u64, source: io::Error },
    #[error("reading {path} back failed at byte {at}: don't use the stick; take another")]
    Read { path: PathBuf, at: u64, source: io::Error },
    #[error(
        "{path} reads back something else than was written, from byte {at} on: don't use the stick; it is broken or smaller than it says"
    )]
    Differs { path: PathBuf, at: u64 },
    #[error("writing to {path} was stopped: the stick does not boot now; write it again")]
    Stopped { path: PathBuf },
}

/// Writes an image and reads it back. `progress` may stop it.
///
/// # Errors
/// [`FlashError`] says what state the stick is in.
pub fn write(
    target: &Writable,
    image: &[u8],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Written, FlashError> {
    let path = &target.0.path;
    if image.is_empty() || !image.len().is_multiple_of(512) {
        return Err(FlashError::Image { len: image.len() });
    }
    if image.len() as u64 > target.0.size_bytes {
        return Err(FlashError::Larger { len: image.len(), checked: target.0.size_bytes });
    }
    let device = open(path, OFlags::EXCL)?;
    check_identity(&device, target)?;
    let mut job = Job { path, image, progress };
    job.write_all(&device, target.0.size_bytes)?;
    // The exclusive claim stays while reading: nobody mounts the stick in between.
    let (direct, read_directly) =
        match open(path, OFlags::DIRECT) {
            Ok(direct) => (direct, true),
            Err(FlashError::Open { source, .. })
                if source.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) =>
            {
                rustix::fs::fadvise(&device, 0, None, Advice::DontNeed)
                    .map_err(|error| FlashError::Read { path: path.clone(), at: 0, source: error.into() })?;
                (device.try_clone().map_err(|source| FlashError::Open { path: path.clone(), source })?, false)
            }
            Err(error) => return Err(error),
        };
    job.verify(direct)?;
    drop(device);
    Ok(Written { bytes: image.len() as u64, read_directly })
}

fn open(path: &Path, flags: OFlags) -> Result<File, FlashError> {
    let flags = flags | OFlags::CLOEXEC;
    let opened = File::options().read(true).write(true).custom_flags(flags.bits().cast_signed()).open(path);
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => FlashError::Busy { path: path.to_owned() },
        io::ErrorKind::PermissionDenied => FlashError::Rights { path: path.to_owned() },
        _ => FlashError::Open { path: path.to_owned(), source },
    })
}

/// Between looking and writing a stick may have been exchanged for a disk.
fn check_identity(device: &File, target: &Writable) -> Result<(), FlashError> {
    let changed = || FlashError::Changed { path: target.0.path.clone() };
    let metadata = device.metadata().map_err(|_| changed())?;
    let number = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    let mut end = device;
    let size = end.seek(SeekFrom::End(0)).map_err(|_| changed())?;
    if !metadata.file_type().is_block_device() || number != target.0.number || size != target.0.size_bytes {
        return Err(changed());
    }
    Ok(())
}

struct Job<'a> {
    path: &'a Path,
    image: &'a [u8],
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

impl Job<'_> {
    fn write_all(&mut self, device: &File, size: u64) -> Result<(), FlashError> {
        let beginning = self.image.len().min(CHUNK_BYTES);
        let tail = size.saturating_sub(TAIL_BYTES).max(self.image.len() as u64);
        self.put(device, 0, &vec![0; beginning])?;
        self.put(device, tail, &vec![0; (size - tail) as usize])?;
        self.sync(device, 0)?;
        let mut at = beginning;
        self.tell(Phase::Write, 0)?;
        while at < self.image.len() {
            let end = self.image.len().min(at + CHUNK_BYTES);
            self.put(device, at as u64, &self.image[at..end])?;
            // Piece by piece, or the last sync alone would take minutes without a word.
            self.sync(device, at as u64)?;
            at = end;
            self.tell(Phase::Write, at - beginning)?;
        }
        self.put(device, 0, &self.image[..beginning])?;
        self.sync(device, 0)?;
        self.tell(Phase::Write, self.image.len())
    }

    fn verify(&mut self, device: File) -> Result<(), FlashError> {
        let mut buffer = Aligned::new(CHUNK_BYTES);
        let mut device = device;
        let mut at = 0;
        device.seek(SeekFrom::Start(0)).map_err(|source| self.read_failed(0, source))?;
        while at < self.image.len() {
            let end = self.image.len().min(at + CHUNK_BYTES);
            let piece = &mut buffer.get()[..end - at];
            device.read_exact(piece).map_err(|source| self.read_failed(at, source))?;
            let wrote = &self.image[at..end];
            if let Some(first) = piece.iter().zip(wrote).position(|(read, wrote)| read != wrote) {
                return Err(FlashError::Differs { path: self.path.to_owned(), at: (at + first) as u64 });
            }
            at = end;
            self.tell(Phase::Verify, at)?;
        }
        Ok(())
    }

    fn put(&self, mut device: &File, at: u64, bytes: &[u8]) -> Result<(), FlashError> {
        let done = device.seek(SeekFrom::Start(at)).and_then(|_| device.write_all(bytes));
        done.map_err(|source| FlashError::Write { path: self.path.to_owned(), at, source })
    }

    fn sync(&self, device: &File, at: u64) -> Result<(), FlashError> {
        device.sync_all().map_err(|source| FlashError::Write { path: self.path.to_owned(), at, source })
    }

    fn read_failed(&self, at: usize, source: io::Error) -> FlashError {
        FlashError::Read { path: self.path.to_owned(), at: at as u64, source }
    }

    fn tell(&mut self, phase: Phase, done: usize) -> Result<(), FlashError> {
        let all_bytes = self.image.len() as u64;
        match (self.progress)(Progress { phase, done_bytes: done as u64, all_bytes }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(FlashError::Stopped { path: self.path.to_owned() }),
        }
    }
}

/// Memory that begins on a page.
struct Aligned {
    memory: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT];
        let from = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, from, len }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.len]
    }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
