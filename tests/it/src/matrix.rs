//! How much of the boot matrix runs: `CROFT_BOOT_MATRIX` is `quick` or `full`, and the boot files are in
//! `CROFT_BOOT_FILE`, `CROFT_NEXT_BOOT_FILE` and `CROFT_BROKEN_BOOT_FILE` (`scripts/test` sets them). What does not run
//! says so.

use std::path::PathBuf;

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
