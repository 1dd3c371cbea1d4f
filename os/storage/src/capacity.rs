//! How much room a filesystem has.

use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    pub total_bytes: u64,
    /// What is left, the part that is kept for root included.
    pub free_bytes: u64,
    /// What is left for tenants.
    pub available_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the room on {path} can't be told")]
pub struct CapacityError {
    path: PathBuf,
    #[source]
    source: Errno,
}

pub fn capacity(path: &Path) -> Result<Capacity, CapacityError> {
    let stat = rustix::fs::statvfs(path).map_err(|source| CapacityError { path: path.into(), source })?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Capacity {
        total_bytes: bytes(stat.f_blocks),
        free_bytes: bytes(stat.f_bfree),
        available_bytes: bytes(stat.f_bavail),
    })
}

/// A disk, a project or a tmpfs that is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// For messages: what is left, or 0 where nobody knows.
pub(crate) fn available(path: &Path) -> u64 {
    capacity(path).map_or(0, |capacity| capacity.available_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_told_in_bytes() {
        let capacity = capacity(Path::new("/")).unwrap();
        assert!(capacity.total_bytes > 1 << 20);
        assert!(
            capacity.available_bytes <= capacity.free_bytes && capacity.free_bytes <= capacity.total_bytes
        );
    }

    #[test]
    fn a_place_that_is_not_there_is_named() {
        let error = super::capacity(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(error.to_string(), "the room on /nonexistent can't be told");
    }
}
