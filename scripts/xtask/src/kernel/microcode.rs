//! Microcode of Intel's and AMD's processors for the boot file, from what the builder's machine has.
//!
//! The kernel loads it before anything else runs, but only from an initramfs that a loader hands over or from its own
//! image; the boot file takes no initramfs, so it is the latter (`EXTRA_FIRMWARE`). The files are not free software:
//! none is in the tree, and a builder without them gets a boot file without them and a line that says so.
//!
//! Must never take more than its share of the boot file, nor a file of another name or size than a maker gives out.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// What one file may have: the largest so far have 600 kB.
const FILE_BYTES_MAX: u64 = 2_000_000;
/// AMD's first, since they are few and small; then Intel's. In each the newest processors first.
const MAKERS: [&str; 2] = ["amd-ucode", "intel-ucode"];

/// A file as the kernel asks for it (`intel-ucode/06-cf-02`), and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// What was found, and how many files had no room.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Microcode {
    pub(super) blobs: Vec<Blob>,
    left_out: usize,
}

#[derive(Debug, Error)]
pub(super) enum CollectError {
    #[error("the firmware {path} can't be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} has {bytes} bytes: that is no microcode (at most {FILE_BYTES_MAX})")]
    TooLarge { path: PathBuf, bytes: u64 },
}

/// The builder's firmware, where [`super::boot_file::make`] looks: `CROFT_FIRMWARE`, else the distribution's.
pub(super) fn folder() -> PathBuf {
    env::var_os("CROFT_FIRMWARE").map_or_else(|| "/lib/firmware".into(), PathBuf::from)
}

/// Takes what a firmware folder (`/lib/firmware`) has, up to `room_bytes` altogether.
pub(super) fn collect(folder: &Path, room_bytes: u64) -> Result<Microcode, CollectError> {
    let mut found = Microcode::default();
    let mut room = room_bytes;
    for maker in MAKERS {
        for name in names(&folder.join(maker), maker)? {
            let path = folder.join(&name);
            let read = |source| CollectError::Read { path: path.clone(), source };
            let bytes = fs::metadata(&path).map_err(read)?.len();
            if bytes > FILE_BYTES_MAX {
                return Err(CollectError::TooLarge { path, bytes });
            }
            if bytes > room {
                found.left_out += 1;
                continue;
            }
            room -= bytes;
            found.blobs.push(Blob { name, bytes: fs::read(&path).map_err(read)? });
        }
    }
    Ok(found)
}

/// The maker's files, the newest processors first. None where there is no such folder.
fn names(folder: &Path, maker: &str) -> Result<Vec<String>, CollectError> {
    let read = |source| CollectError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(read)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(read)?.file_name().to_string_lossy().into_owned();
        if is_microcode(maker, &name) {
            names.push(format!("{maker}/{name}"));
        }
    }
    // Family and model are hexadecimal digits of equal length.
    names.sort_by(|a, b| b.cmp(a));
    Ok(names)
}

/// The names that the kernel asks for, and that Kconfig takes: nothing of `.asc`, `.initramfs` or notes beside them.
fn is_microcode(maker: &str, name: &str) -> bool {
    let hex = |text: &str| {
        text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    if maker == "intel-ucode" {
        let parts: Vec<&str> = name.split('-').collect();
        return parts.len() == 3 && parts.into_iter().all(hex);
    }
    let family = name.strip_prefix("microcode_amd").and_then(|rest| rest.strip_suffix(".bin"));
    family.is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix("_fam").and_then(|r| r.strip_suffix('h')).is_some_and(hex)
    })
}

impl Microcode {
    /// One line about it.
    pub(super) fn describe(&self, folder: &Path) -> String {
        let folder = folder.display();
        if self.blobs.is_empty() {
            return format!(
                "microcode: none in {folder}, so machines keep what their firmware has (packages intel-microcode and \
                 amd64-microcode, not free software)"
            );
        }
        let bytes: usize = self.blobs.iter().map(|blob| blob.bytes.len()).sum();
        let mut text =
            format!("microcode: {} files of {folder}, {} kB", self.blobs.len(), bytes.div_ceil(1000));
        if self.left_out > 0 {
            let _ =
                write!(text, "; {} for older processors have no room (see --microcode-kb)", self.left_out);
        }
        text
    }

    /// SHA-256 and path of each file, as `sha256sum` prints them.
    pub(super) fn sums(&self, folder: &Path) -> String {
        let mut text = String::new();
        for blob in &self.blobs {
            let sum = hex::encode(Sha256::digest(&blob.bytes));
            let _ = writeln!(text, "{sum}  {}", folder.join(&blob.name).display());
        }
        text
    }

    /// The names as Kconfig takes them.
    pub(super) fn setting(&self) -> String {
        let names: Vec<&str> = self.blobs.iter().map(|blob| blob.name.as_str()).collect();
        names.join(" ")
    }

    /// Writes the files below a folder.
    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        for blob in &self.blobs {
            let path = folder.join(&blob.name);
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            fs::write(path, &blob.bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, usize)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![7; *bytes]).unwrap();
        }
        dir
    }

    #[test]
    fn amd_comes_first_then_intel_and_the_newest_before_the_others() {
        let dir = folder(&[
            ("intel-ucode/06-55-04", 10),
            ("intel-ucode/06-cf-02", 10),
            ("amd-ucode/microcode_amd_fam19h.bin", 10),
            ("amd-ucode/microcode_amd.bin", 10),
        ]);
        let found = collect(dir.path(), 1_000).unwrap();
        assert_eq!(
            found.setting(),
            "amd-ucode/microcode_amd_fam19h.bin amd-ucode/microcode_amd.bin intel-ucode/06-cf-02 intel-ucode/06-55-04"
        );
    }

    #[test]
    fn what_has_no_room_is_left_out_and_counted() {
        let dir = folder(&[
            ("intel-ucode/06-cf-02", 600),
            ("intel-ucode/06-8f-08", 500),
            ("intel-ucode/06-55-04", 400),
        ]);
        let found = collect(dir.path(), 1_000).unwrap();
        assert_eq!(found.setting(), "intel-ucode/06-cf-02 intel-ucode/06-55-04");
        let text = found.describe(Path::new("/fw"));
        assert_eq!(
            text,
            "microcode: 2 files of /fw, 1 kB; 1 for older processors have no room (see --microcode-kb)"
        );
    }

    #[test]
    fn each_file_that_is_taken_has_its_sum_and_path_and_no_other() {
        let dir = folder(&[("intel-ucode/06-cf-02", 3), ("intel-ucode/06-55-04", 2_000)]);
        let text = collect(dir.path(), 1_000).unwrap().sums(Path::new("/fw"));
        let sum = hex::encode(Sha256::digest([7; 3]));
        assert_eq!(text, format!("{sum}  /fw/intel-ucode/06-cf-02\n"));
    }

    #[test]
    fn only_the_names_that_the_kernel_asks_for_are_taken() {
        let names =
            ["06-55-04.initramfs", "06-55", "06-55-4x", "README", "06-55-04 CONFIG_X=y", "06-55-04-01"];
        let files: Vec<(String, usize)> =
            names.iter().map(|name| (format!("intel-ucode/{name}"), 1)).collect();
        let files: Vec<(&str, usize)> = files.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        let dir = folder(&files);
        assert_eq!(collect(dir.path(), 1_000).unwrap(), Microcode::default());
        let dir = folder(&[("amd-ucode/microcode_amd_fam17h.bin.asc", 1), ("amd-ucode/other.bin", 1)]);
        assert_eq!(collect(dir.path(), 1_000).unwrap(), Microcode::default());
    }

    #[test]
    fn a_machine_without_microcode_is_told_what_that_means() {
        let dir = tempfile::tempdir().unwrap();
        let text = collect(dir.path(), 1_000).unwrap().describe(dir.path());
        assert!(
            text.contains("microcode: none in") && text.contains("intel-microcode and amd64-microcode"),
            "{text}"
        );
    }

    #[test]
    fn a_file_that_is_too_large_is_refused_by_name() {
        let dir = folder(&[("intel-ucode/06-cf-02", 2_000_001)]);
        let text = collect(dir.path(), u64::MAX).unwrap_err().to_string();
        assert!(text.contains("06-cf-02 has 2000001 bytes: that is no microcode"), "{text}");
    }
}
