//! The kernel's source package: which tarball, and its unpacked tree.
//!
//! Must never download anything: the distribution's package manager does that, with its own
//! signatures.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::kernel_cache;
use crate::repo;

/// The series that the fragments are written for.
const SERIES: &str = "6.12";

#[derive(Debug, Clone)]
pub(crate) struct Tarball {
    pub(crate) path: PathBuf,
    /// Of its content, hexadecimal.
    pub(crate) sha256: String,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum FindError {
    #[error(
        "no kernel source in {0}: install the package linux-source-{SERIES}, or name a tarball with --source"
    )]
    NotInstalled(String),
    #[error("{0} is no file: --source wants the tarball of a Linux {SERIES} source tree")]
    NotAFile(String),
}

/// The tarball that `--source` names, or the one of the distribution's package.
pub(super) fn find(named: Option<&Path>) -> Result<Tarball> {
    let path = locate(named, Path::new("/usr/src"))?;
    let sha256 = identity(&path)?;
    Ok(Tarball { path, sha256 })
}

fn locate(named: Option<&Path>, installed: &Path) -> Result<PathBuf, FindError> {
    if let Some(path) = named {
        return if path.is_file() {
            Ok(path.to_owned())
        } else {
            Err(FindError::NotAFile(path.display().to_string()))
        };
    }
    let candidates = ["xz", "zst", "bz2", "gz"]
        .map(|ending| installed.join(format!("linux-source-{SERIES}.tar.{ending}")));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| FindError::NotInstalled(installed.display().to_string()))
}

/// SHA-256 of the content, remembered under path, size and time so that a run with nothing to do
/// doesn't read 150 MB.
fn identity(path: &Path) -> Result<String> {
    let context = || format!("can't read the kernel source {}", path.display());
    let path = path.canonicalize().with_context(context)?;
    let metadata = path.metadata().with_context(context)?;
    let modified_ns = metadata.modified()?.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let label = format!("{}\0{}\0{modified_ns}", path.display(), metadata.len());
    let memo = kernel_cache()?.join("sources").join(&hex::encode(Sha256::digest(label))[..16]);
    if let Ok(known) = fs::read_to_string(&memo)
        && known.len() == 64
    {
        return Ok(known);
    }
    let sha256 = hash_file(&path).with_context(context)?;
    if let Some(dir) = memo.parent() {
        fs::create_dir_all(dir).with_context(|| format!("can't create {}", dir.display()))?;
    }
    fs::write(&memo, &sha256).with_context(|| format!("can't write {}", memo.display()))?;
    Ok(sha256)
}

fn hash_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..length]);
    }
}

/// The directory of everything made from this tarball that is not a result.
fn work_dir(tarball: &Tarball) -> Result<PathBuf> {
    Ok(kernel_cache()?.join("work").join(&tarball.sha256[..16]))
}

/// Where the unpacked tree lies, once it is there.
pub(super) fn tree(tarball: &Tarball) -> Result<PathBuf> {
    Ok(work_dir(tarball)?.join("source"))
}

/// The unpacked tree. The caller holds the lock of the cache.
pub(super) fn unpack(tarball: &Tarball) -> Result<PathBuf> {
    let work = work_dir(tarball)?;
    let tree = tree(tarball)?;
    if tree.is_dir() {
        return Ok(tree);
    }
    let partial = work.join("source.partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("can't remove {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("can't create {}", partial.display()))?;
    eprintln!("kernel: unpacking {} (about half a minute, 1.6 GB)", tarball.path.display());
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(&tarball.path).arg("--directory").arg(&partial);
    repo::capture(tar.args(["--strip-components=1", "--no-same-owner"]))?;
    check_series(&partial)?;
    fs::rename(&partial, &tree).with_context(|| format!("can't rename {}", partial.display()))?;
    Ok(tree)
}

fn check_series(tree: &Path) -> Result<()> {
    let makefile = fs::read_to_string(tree.join("Makefile"))
        .context("the tarball holds no Linux source: no Makefile")?;
    let version =
        series(&makefile).context("the tarball holds no Linux source: its Makefile names no version")?;
    if version != SERIES {
        // Other series may work; then the check of the requested values says what is different.
        eprintln!("kernel: the source is Linux {version}, the fragments are written for {SERIES}");
    }
    Ok(())
}

/// "6.12" from the first lines of the top Makefile.
fn series(makefile: &str) -> Option<String> {
    let value = |name: &str| {
        let line = makefile
            .lines()
            .take(10)
            .find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='))?;
        Some(line.trim().to_owned())
    };
    Some(format!("{}.{}", value("VERSION")?, value("PATCHLEVEL")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_package_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = locate(None, dir.path()).unwrap_err().to_string();
        assert!(
            text.contains("install the package linux-source-6.12") && text.contains("--source"),
            "{text}"
        );
    }

    #[test]
    fn the_package_of_the_right_series_is_found_in_any_compression() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("linux-source-6.1.tar.xz"), "").unwrap();
        assert!(locate(None, dir.path()).is_err());
        let zst = dir.path().join("linux-source-6.12.tar.zst");
        fs::write(&zst, "").unwrap();
        assert_eq!(locate(None, dir.path()).unwrap(), zst);
    }

    #[test]
    fn a_named_tarball_that_does_not_exist_is_named_back() {
        let text =
            locate(Some(Path::new("/nowhere/linux.tar.xz")), Path::new("/usr/src")).unwrap_err().to_string();
        assert!(text.starts_with("/nowhere/linux.tar.xz is no file"), "{text}");
    }

    #[test]
    fn the_series_is_read_from_the_makefile() {
        let makefile = "# SPDX-License-Identifier: GPL-2.0\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 95\n";
        assert_eq!(series(makefile).as_deref(), Some("6.12"));
        assert_eq!(series("all:\n"), None);
    }
}
