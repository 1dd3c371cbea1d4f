//! Disk files of a machine: made when missing, kept otherwise, so that a machine boots again with
//! what it wrote.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::profile::{Disk, DiskFormat};

/// Why a disk file could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot create the disk file {path}")]
    Create { path: PathBuf, source: std::io::Error },
    #[error(
        "the disk file {path} has {there} bytes, but its profile says {wanted}: remove it, or change the profile"
    )]
    OtherSize { path: PathBuf, there: u64, wanted: u64 },
    #[error(
        "qemu-img, which makes qcow2 files, could not be started: run scripts/setup, or use format = \"raw\""
    )]
    NoTool { source: std::io::Error },
    #[error("qemu-img could not make {path}: {message}")]
    Tool { path: PathBuf, message: String },
}

/// The file of `disk` in the state directory.
#[must_use]
pub fn path(state: &Path, disk: &Disk) -> PathBuf {
    let suffix = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    state.join(format!("{}.{suffix}", disk.name))
}

/// Makes the file of `disk` unless it is there; never touches one that is there.
pub fn ensure(state: &Path, disk: &Disk) -> Result<PathBuf, DiskError> {
    let path = path(state, disk);
    let wanted = disk.size_mib << 20;
    if let Ok(there) = std::fs::metadata(&path) {
        if disk.format == DiskFormat::Raw && there.len() != wanted {
            return Err(DiskError::OtherSize { path, there: there.len(), wanted });
        }
        return Ok(path);
    }
    match disk.format {
        DiskFormat::Raw => std::fs::File::create_new(&path)
            .and_then(|file| file.set_len(wanted))
            .map_err(|source| DiskError::Create { path: path.clone(), source })?,
        DiskFormat::Qcow2 => make_qcow2(&path, wanted)?,
    }
    Ok(path)
}

fn make_qcow2(path: &Path, bytes: u64) -> Result<(), DiskError> {
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg(bytes.to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(|source| DiskError::NoTool { source })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(DiskError::Tool { path: path.into(), message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::DiskModel;

    fn disk(format: DiskFormat) -> Disk {
        Disk {
            name: "data".into(),
            size_mib: 8,
            model: DiskModel::Virtio,
            format,
            serial: "s".into(),
            bytes_per_second: None,
        }
    }

    #[test]
    fn a_disk_is_made_once_and_kept() {
        let state = tempfile::tempdir().unwrap();
        let path = ensure(state.path(), &disk(DiskFormat::Raw)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8 << 20);
        let mut content = std::fs::read(&path).unwrap();
        content[4096] = 42;
        std::fs::write(&path, &content).unwrap();
        assert_eq!(ensure(state.path(), &disk(DiskFormat::Raw)).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap()[4096], 42);
    }

    #[test]
    fn a_disk_of_another_size_is_not_touched() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(path(state.path(), &disk(DiskFormat::Raw)), "tenant's data").unwrap();
        let error = ensure(state.path(), &disk(DiskFormat::Raw)).unwrap_err().to_string();
        assert!(error.contains("data.raw has 13 bytes, but its profile says 8388608"), "{error}");
        let kept = std::fs::read(path(state.path(), &disk(DiskFormat::Raw))).unwrap();
        assert_eq!(kept, b"tenant's data");
    }

    #[test]
    fn a_qcow2_file_is_one() {
        let state = tempfile::tempdir().unwrap();
        match ensure(state.path(), &disk(DiskFormat::Qcow2)) {
            Ok(path) => assert_eq!(std::fs::read(path).unwrap()[..4], *b"QFI\xfb"),
            Err(error @ DiskError::NoTool { .. }) => eprintln!("skipped: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
}
