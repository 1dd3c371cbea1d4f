//! The jail in which every VMM and every virtiofsd runs.
//!
//! ```text
//! node ──spawns──> helper (this module, one thread, root)
//!                    joins the control group and the network namespace, makes namespaces and a root of
//!                    its own with nothing but what the program needs, then forks:
//!                    ├─ monitor: drops all privilege, waits, ends as the program ended
//!                    └─ program: PID 1 of its namespace, own user, no new privileges, system call filter
//! ```
//!
//! The helper is the calling binary itself, executed again: [`maybe_enter`] must be the first thing that its
//! `main` does. So there is one thread, which makes fork and namespaces safe, and no state is inherited.
//!
//! Must never continue after a step that failed, and never run the program with more than it asked for.

mod enter;
mod mounts;
mod syscalls;

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// First argument that makes the calling binary a jail.
pub const ARGUMENT: &str = "@jail";
/// Exit code of a jail that could not be set up; its standard error says why.
pub const EXIT_JAIL: i32 = 125;

/// Users that one program may be: inside the jail and on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JailUser {
    /// A plain user of the host without any capability.
    Plain { id: u32 },
    /// Root of a user namespace; users 0 to `count` are `first` to `first + count` of the host.
    Namespace { first: u32, count: u32 },
}

/// One thing of the host that is visible in the jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailMount {
    /// File or directory of the host.
    pub source: PathBuf,
    /// Absolute path in the jail.
    pub target: PathBuf,
    pub readonly: bool,
    /// Programs may be executed from it.
    pub executable: bool,
    /// What belongs to users 0.. on disk belongs to the jail's users in the jail, so that files keep
    /// neutral owners and need no change of ownership per start.
    pub map_users: bool,
}

/// What the helper needs to know. Passed as JSON on its command line: paths and numbers only, no secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailSpec {
    /// Empty directory of the host on which the jail's root is mounted, in a mount namespace of its own.
    pub root: PathBuf,
    /// Control group to join, with a `cgroup.procs` file.
    pub cgroup: PathBuf,
    /// Network namespace to join; without it a new and empty one.
    pub netns: Option<PathBuf>,
    /// Taps that the program's user may attach to.
    pub taps: Vec<String>,
    pub user: JailUser,
    pub mounts: Vec<JailMount>,
    /// Device nodes of the host that exist in the jail under the same path.
    pub devices: Vec<PathBuf>,
    /// Mount `/proc` of the jail's own process namespace.
    pub proc: bool,
    /// Path in the jail.
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// `RLIMIT_NOFILE`.
    pub open_files: u64,
    /// The program changes namespaces of its own threads (`unshare(CLONE_FS)` of virtiofsd).
    pub may_unshare: bool,
}

/// Why a program could not be jailed. Printed by the helper, read by the owner of the VM.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    #[error("the jail's description is not valid")]
    Spec(#[source] serde_json::Error),
    #[error("the jail helper has {0} threads, it must be entered first thing in main")]
    Threads(usize),
    #[error("{step}")]
    Step { step: String, source: std::io::Error },
    #[error("tap {tap} does not exist in the network namespace: create it, persistent and up, before the VM")]
    NoTap { tap: String },
    #[error("{path} can't be given to another user: its file system does not support id-mapped mounts")]
    NoIdMap { path: PathBuf, source: std::io::Error },
    #[error("{program} can't be executed: is it there, for this machine and statically linked?")]
    Execute { program: PathBuf, source: std::io::Error },
}

impl JailError {
    fn step(step: impl Into<String>, error: impl Into<std::io::Error>) -> Self {
        Self::Step { step: step.into(), source: error.into() }
    }
}

/// Turns this process into a jail when its arguments say so; else returns at once.
///
/// Must be the first thing in `main`, before threads and before any file is opened.
pub fn maybe_enter() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != ARGUMENT) {
        return;
    }
    let spec: OsString = arguments.next().unwrap_or_default();
    let result = serde_json::from_slice(spec.as_encoded_bytes()).map_err(JailError::Spec);
    let error = match result.and_then(|spec: JailSpec| enter::enter(&spec)) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    eprintln!("jail: {}", crate::error_chain(&error));
    std::process::exit(EXIT_JAIL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_with_unknown_fields_is_refused() {
        let error = serde_json::from_str::<JailSpec>(r#"{"root":"/","privileged":true}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `privileged`"), "{error}");
    }
}
