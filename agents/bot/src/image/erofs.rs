//! Makes the read-only file system by running `mkfs.erofs` on a finished tree.
//!
//! Same tree, same bytes: the identifier is fixed, and the file system's own time is that of the newest file.
//! Files keep their times, since programs compare them (Python's byte code, `make`, HTTP caches).

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One for all: the image's identity is its verity root.
const UUID: &str = "c8f00000-0000-4000-8000-00000000e20f";

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    #[error(
        "mkfs.erofs is not installed: 'apt install erofs-utils', or your distribution's package of that name"
    )]
    NoMkfs,
    #[error(
        "without root, the owners of files can only be kept with fakeroot: 'apt install fakeroot', or run 'sudo croft image build' with the same --home"
    )]
    NoFakeroot,
    #[error("{program} can't be started")]
    Start { program: PathBuf, source: io::Error },
    #[error("mkfs.erofs failed ({status}): {said}")]
    Failed { status: String, said: String },
    #[error("can't write {path} for fakeroot")]
    State { path: PathBuf, source: io::Error },
}

/// How a tree becomes a file.
pub(crate) struct Recipe<'a> {
    pub(crate) tree: &'a Path,
    pub(crate) output: &'a Path,
    /// A directory for what fakeroot has to read.
    pub(crate) scratch: &'a Path,
    /// Owners and modes that the tree's files don't have themselves; see [`super::tree`].
    pub(crate) fakeroot_state: Option<&'a str>,
    pub(crate) xattrs: bool,
    pub(crate) newest_s: u64,
}

/// Checks that the tools are there, before hours of unpacking.
pub(crate) fn check_tools(as_root: bool) -> Result<(), ErofsError> {
    find("mkfs.erofs").ok_or(ErofsError::NoMkfs)?;
    if !as_root {
        find("fakeroot").ok_or(ErofsError::NoFakeroot)?;
    }
    Ok(())
}

/// Makes the file system.
pub(crate) fn make(recipe: &Recipe<'_>) -> Result<(), ErofsError> {
    let mkfs = find("mkfs.erofs").ok_or(ErofsError::NoMkfs)?;
    let mut command;
    if let Some(state) = recipe.fakeroot_state {
        let path = recipe.scratch.join("owners");
        std::fs::write(&path, state).map_err(|source| ErofsError::State { path: path.clone(), source })?;
        command = Command::new(find("fakeroot").ok_or(ErofsError::NoFakeroot)?);
        command.arg("-i").arg(path).arg("--").arg(mkfs);
    } else {
        command = Command::new(mkfs);
    }
    command.args(["--quiet", "-U", UUID, "-zlz4hc", "--preserve-mtime"]);
    if !recipe.xattrs {
        command.arg("-x-1");
    }
    command
        .arg(recipe.output)
        .arg(recipe.tree)
        .env("SOURCE_DATE_EPOCH", recipe.newest_s.to_string())
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    let output = command
        .output()
        .map_err(|source| ErofsError::Start { program: command.get_program().into(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.is_empty() {
        String::from_utf8_lossy(&output.stdout).trim().clone_into(&mut said);
    }
    let said =
        said.lines().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("; ");
    Err(ErofsError::Failed { status: output.status.to_string(), said })
}

/// The version of `mkfs.erofs`: another one may make other bytes.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(find("mkfs.erofs")?).arg("-V").stdin(Stdio::null()).output().ok()?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Old ones don't know the flag, but introduce themselves before they say so.
    text.lines().find(|line| line.starts_with("mkfs.erofs ")).map(|line| line.trim().to_owned())
}

/// A program on the path, or where distributions keep what only root has there.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}
