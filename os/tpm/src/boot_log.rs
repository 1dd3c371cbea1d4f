//! Reads what the firmware measured, from securityfs.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use croft_attest::EventLog;
use croft_attest::event_log::LOG_BYTES;

/// Where Linux shows the first TPM's log.
pub const PATH: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

#[derive(Debug, thiserror::Error)]
pub enum BootLogError {
    #[error("the firmware left no event log at {path}: boot by UEFI, with the TPM turned on")]
    Missing { path: PathBuf },
    #[error("can't read the event log {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the event log {path} can't be understood")]
    Format { path: PathBuf, source: croft_attest::FormatError },
}

/// Reads and parses a log, [`PATH`] on nodes.
///
/// # Errors
/// [`BootLogError`].
pub fn read(path: &Path) -> Result<EventLog, BootLogError> {
    let named = || path.to_owned();
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(BootLogError::Missing { path: named() }),
        Err(source) => return Err(BootLogError::Io { path: named(), source }),
    };
    let mut bytes = Vec::new();
    // One more than allowed, so that a longer one is refused and not cut.
    file.take(LOG_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| BootLogError::Io { path: named(), source })?;
    EventLog::decode(&bytes).map_err(|source| BootLogError::Format { path: named(), source })
}
