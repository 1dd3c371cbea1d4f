//! Takes from a disk what makes it somebody's: both its ends, where partition tables, filesystems and our marker lie.
//!
//! It must never be called but for a person who named this very disk; the caller has made sure of that. It refuses a disk
//! that anything uses. What lies between the ends stays until it is written over.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use croft_hardware::Disk;

use crate::examine;
use crate::signature::{Ends, WINDOW_BYTES};

/// Zeros that are written at once.
const PIECE_BYTES: usize = 1 << 20;
/// At each end: far more than any signature needs, and all copies of a small superblock.
const END_BYTES: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum WipeError {
    #[error("{device} can't be opened alone: something uses it; nothing was wiped")]
    InUse { device: PathBuf, source: io::Error },
    #[error("{device} can't be written: replace the disk")]
    Write { device: PathBuf, source: io::Error },
    #[error("{device} does not keep what was written: {left}; replace the disk")]
    NotEmpty { device: PathBuf, left: String },
}

/// Wipes both ends and reads them again. Blocks for as long as the disk takes.
///
/// # Errors
/// [`WipeError`]; before `Write` nothing was changed.
pub fn wipe(disk: &Disk, dev: &Path) -> Result<(), WipeError> {
    let device = dev.join(&disk.name);
    let alone = OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(&device);
    let file = alone.map_err(|source| WipeError::InUse { device: device.clone(), source })?;
    let written = zero(&file, disk.size_bytes).and_then(|()| file.sync_all());
    written.map_err(|source| WipeError::Write { device: device.clone(), source })?;
    // The kernel forgets the partitions that were there.
    reread(&file);
    drop(file);
    let (head, tail) = examine::read_ends(&device, disk.size_bytes)
        .map_err(|source| WipeError::Write { device: device.clone(), source })?;
    match examine::judge(&Ends { head: &head, tail: &tail, size_bytes: disk.size_bytes }) {
        examine::Verdict::Empty { .. } => Ok(()),
        verdict => Err(WipeError::NotEmpty { device, left: verdict.to_string() }),
    }
}

fn zero(file: &File, size_bytes: u64) -> io::Result<()> {
    debug_assert!(END_BYTES >= WINDOW_BYTES as u64);
    let zeros = vec![0; PIECE_BYTES];
    let end = size_bytes.saturating_sub(END_BYTES);
    for start in [0, end] {
        let stop = start.saturating_add(END_BYTES).min(size_bytes);
        let mut at = start;
        while at < stop {
            let length = (stop - at).min(PIECE_BYTES as u64) as usize;
            file.write_all_at(&zeros[..length], at)?;
            at += length as u64;
        }
    }
    Ok(())
}

#[allow(unsafe_code, reason = "BLKRRPART has no safe wrapper in rustix or nix")]
fn reread(file: &File) {
    mod request {
        // `_IO(0x12, 95)` of linux/fs.h.
        nix::ioctl_none!(blkrrpart, 0x12, 95);
    }
    // SAFETY: the descriptor is open, and the request takes no argument. Not a disk, or one whose old partitions are in
    // use: the next start finds out.
    let _ = unsafe { request::blkrrpart(std::os::fd::AsRawFd::as_raw_fd(file)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_hardware::Transport;

    fn disk(size_bytes: u64) -> Disk {
        Disk {
            name: "disk".into(),
            size_bytes,
            rotational: false,
            model: None,
            serial: Some("S".into()),
            transport: Transport::Virtio,
            removable: false,
            read_only: false,
            logical_block_bytes: 512,
            partitions: vec![],
            holders: vec![],
        }
    }

    #[test]
    fn a_wiped_disk_is_empty_at_both_ends_and_untouched_between() {
        let dev = tempfile::tempdir().unwrap();
        let size = 64 << 20;
        let file = File::create(dev.path().join("disk")).unwrap();
        file.set_len(size).unwrap();
        for at in [0, 510, 1080, size - 512, size - 4096, size / 2] {
            file.write_all_at(b"\x55\xaaEFI PART", at).unwrap();
        }
        wipe(&disk(size), dev.path()).unwrap();
        let mut middle = [0; 10];
        File::open(dev.path().join("disk")).unwrap().read_exact_at(&mut middle, size / 2).unwrap();
        assert_eq!(&middle, b"\x55\xaaEFI PART");
        let found = examine::examine(&[disk(size)], dev.path());
        // Too small for data, but empty as far as its bytes go.
        assert!(matches!(found[0].verdict, examine::Verdict::TooSmall { .. }));
    }

    #[test]
    fn a_disk_that_is_smaller_than_both_ends_is_wiped_whole() {
        let dev = tempfile::tempdir().unwrap();
        let size = 5 << 20;
        std::fs::write(dev.path().join("disk"), vec![0xff; size]).unwrap();
        wipe(&disk(size as u64), dev.path()).unwrap();
        let bytes = std::fs::read(dev.path().join("disk")).unwrap();
        assert!(bytes.len() == size && bytes.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_disk_that_is_gone_is_named() {
        let dev = tempfile::tempdir().unwrap();
        let error = wipe(&disk(1 << 20), dev.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("disk can't be opened alone: something uses it; nothing was wiped"),
            "{error}"
        );
    }
}
