//! How much of the boot matrix runs: `CROFT_BOOT_MATRIX` is `quick` or `full`, and the boot files are in
//! `CROFT_BOOT_FILE`, `CROFT_NEXT_BOOT_FILE` and `CROFT_BROKEN_BOOT_FILE` (`scripts/test` sets them). What does not run
//! says so.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use croft_media::netboot;

/// Whether everything runs. Says so where it does not.
#[must_use]
pub fn is_full() -> bool {
    let is_full = wants_all();
    if !is_full {
        eprintln!("skipped: runs with CROFT_BOOT_MATRIX=full");
    }
    is_full
}

/// The same without a word.
#[must_use]
pub fn wants_all() -> bool {
    std::env::var("CROFT_BOOT_MATRIX").is_ok_and(|value| value == "full")
}

/// The boot files that these variables name; `None`, with a word, where one names none.
#[must_use]
pub fn boot_files<const N: usize>(variables: [&str; N]) -> Option<[PathBuf; N]> {
    let missing = variables.iter().find(|name| std::env::var_os(name).is_none());
    if let Some(name) = missing {
        eprintln!(
            "skipped: {name} names no boot file ('cargo xtask image --boot-file --for-tests' makes one)"
        );
        return None;
    }
    Some(variables.map(|name| std::env::var_os(name).map(PathBuf::from).unwrap_or_default()))
}

/// The boot file of the tests, else the one that 'cargo xtask image --boot-file' made last.
///
/// # Errors
/// Says how to make one where there is none.
pub fn built_boot_file() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CROFT_BOOT_FILE") {
        return Ok(PathBuf::from(path));
    }
    let images = target().join("image");
    let found = ["cloud-hypervisor", "alioth"].map(|vmm| images.join(vmm).join(netboot::BOOT_FILE));
    let found = found.into_iter().find(|path| path.is_file());
    found.context("there is no boot file: run 'cargo xtask image --boot-file'")
}

/// Boot files of two versions, the older one first: those of the tests, named or where `scripts/test` leaves them.
///
/// # Errors
/// Says how to make the one that is missing.
pub fn two_versions() -> Result<[(&'static str, PathBuf); 2]> {
    let find = |version, variable| {
        Ok::<_, anyhow::Error>((version, version_in(&target(), version, std::env::var_os(variable))?))
    };
    Ok([find("0.1.0", "CROFT_BOOT_FILE")?, find("0.2.0", "CROFT_NEXT_BOOT_FILE")?])
}

fn version_in(target: &Path, version: &str, named: Option<OsString>) -> Result<PathBuf> {
    let usual = || target.join("boot").join(version).join(netboot::BOOT_FILE);
    let path = named.map_or_else(usual, PathBuf::from);
    ensure!(
        path.is_file(),
        "there is no {}: make it with 'cargo xtask image --boot-file --for-tests --release {version} --out \
         target/boot/{version}'",
        path.display()
    );
    Ok(path)
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_version_is_named_with_the_command_that_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = version_in(dir.path(), "0.2.0", None).unwrap_err().to_string();
        let path = dir.path().join("boot/0.2.0/croft.efi");
        let expected = format!(
            "there is no {}: make it with 'cargo xtask image --boot-file --for-tests --release 0.2.0 --out target/boot/0.2.0'",
            path.display()
        );
        assert_eq!(error, expected);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "a boot file").unwrap();
        assert_eq!(version_in(dir.path(), "0.2.0", None).unwrap(), path);
        assert!(
            version_in(dir.path(), "0.2.0", Some("/nowhere/croft.efi".into())).is_err(),
            "what is named counts"
        );
    }
}
