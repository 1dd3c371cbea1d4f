//! `guest @exec`: the last steps between PID 1 and a program of the workload, in a process of its own.
//!
//! PID 1 has threads, so what has to happen between fork and exec (groups, user, directory, control group)
//! happens here instead, in a program that was just executed and has one thread.
//!
//! Must never fall back to more privilege: any step that fails ends the process with a message.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use croft_guest::users::User;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// First argument that selects this module.
pub(crate) const ARGUMENT: &str = "@exec";
/// Control group of the workload, made by [`crate::process::create_control_group`].
pub(crate) const CONTROL_GROUP: &str = "/sys/fs/cgroup/workload";
/// What OCI runtimes use when the image sets no `PATH`.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Enough for servers; the hard limit is the kernel's own ceiling.
const OPEN_FILES_SOFT: u64 = 65_536;
const OPEN_FILES_HARD: u64 = 1_048_576;

const EXIT_NOT_FOUND: u8 = 127;
const EXIT_NOT_EXECUTABLE: u8 = 126;

/// The command line of the helper for `argv`; `error_fd` is inherited and closed by a successful exec.
pub(crate) fn command(user: &User, cwd: &str, error_fd: RawFd, argv: &[String]) -> Command {
    let groups: Vec<String> = user.groups.iter().map(ToString::to_string).collect();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("guest").arg(ARGUMENT).args([
        user.uid.to_string(),
        user.gid.to_string(),
        groups.join(","),
        cwd.to_owned(),
        error_fd.to_string(),
    ]);
    command.args(argv);
    command
}

struct Arguments {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    cwd: PathBuf,
    error_fd: RawFd,
    argv: Vec<OsString>,
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Arguments> {
    let mut number = || arguments.next()?.to_str()?.parse::<u32>().ok();
    let (uid, gid) = (Uid::from_raw(number()?), Gid::from_raw(number()?));
    let groups = arguments.next()?;
    let groups = groups.to_str()?.split(',').filter(|text| !text.is_empty());
    let groups = groups.map(|text| text.parse().ok().map(Gid::from_raw)).collect::<Option<Vec<_>>>()?;
    let cwd = PathBuf::from(arguments.next()?);
    let error_fd = arguments.next()?.to_str()?.parse().ok()?;
    let argv: Vec<OsString> = arguments.collect();
    if argv.is_empty() {
        return None;
    }
    Some(Arguments { uid, gid, groups, cwd, error_fd, argv })
}

/// Body of the helper process; returns only when something failed.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(arguments) = parse(arguments) else {
        eprintln!("guest {ARGUMENT}: wrong arguments");
        return ExitCode::from(2);
    };
    // SAFETY: PID 1 passed this descriptor for us alone and nothing else in this process knows it.
    #[allow(unsafe_code, reason = "a descriptor number can only be taken over this way")]
    let error_pipe = unsafe { OwnedFd::from_raw_fd(arguments.error_fd) };
    let (code, message) = match become_workload(&arguments, &error_pipe) {
        Err(message) => (EXIT_NOT_EXECUTABLE, message),
        Ok(()) => execute(&arguments.argv),
    };
    let _ = File::from(error_pipe).write_all(message.as_bytes());
    ExitCode::from(code)
}

fn become_workload(arguments: &Arguments, error_pipe: &OwnedFd) -> Result<(), String> {
    let during = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    rustix::io::fcntl_setfd(error_pipe, rustix::io::FdFlags::CLOEXEC)
        .map_err(|e| during("descriptor", &e))?;
    let group = Path::new(CONTROL_GROUP).join("cgroup.procs");
    if group.exists() {
        std::fs::write(&group, "0").map_err(|e| during("joining the control group", &e))?;
    }
    // PID 1 protects itself from the out-of-memory killer; its children must not inherit that.
    std::fs::write("/proc/self/oom_score_adj", "0").map_err(|e| during("resetting the OOM score", &e))?;
    nix::unistd::setsid().map_err(|e| during("starting a session", &e))?;
    // Not fatal: a smaller limit still runs most workloads.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES_SOFT, OPEN_FILES_HARD);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    setgroups(&arguments.groups).map_err(|e| during("setting groups", &e))?;
    setresgid(arguments.gid, arguments.gid, arguments.gid).map_err(|e| during("setting the group", &e))?;
    setresuid(arguments.uid, arguments.uid, arguments.uid).map_err(|e| during("setting the user", &e))?;
    // As the user: a directory that it may not enter is an error here and not later.
    std::env::set_current_dir(&arguments.cwd)
        .map_err(|e| during(&format!("working directory {}", arguments.cwd.display()), &e))
}

/// Executes the first match; returns the exit code and message of the failure.
fn execute(argv: &[OsString]) -> (u8, String) {
    let program = &argv[0];
    let name = program.to_string_lossy();
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut denied: Option<(PathBuf, io::Error)> = None;
    for candidate in candidates(program.as_os_str(), &path) {
        // Rust programs ignore SIGPIPE; `exec` of the standard library resets it for the workload.
        let error = Command::new(&candidate).arg0(program).args(&argv[1..]).exec();
        match error.kind() {
            io::ErrorKind::NotFound if !candidate.exists() => {}
            _ => {
                denied.get_or_insert((candidate, error));
            }
        }
    }
    match denied {
        Some((candidate, error)) => {
            let hint = match error.raw_os_error() {
                Some(nix::libc::ENOENT) => ": its interpreter or loader is not in the image",
                Some(nix::libc::ENOEXEC) => ": it is neither a program for this machine nor a script with #!",
                Some(nix::libc::EACCES) => ": it is not executable for the user",
                _ => "",
            };
            (EXIT_NOT_EXECUTABLE, format!("{}: {error}{hint}", candidate.display()))
        }
        None if program.as_bytes().contains(&b'/') => {
            (EXIT_NOT_FOUND, format!("{name}: not in the image: check the command"))
        }
        None => {
            let path = path.to_string_lossy();
            (EXIT_NOT_FOUND, format!("{name}: not found in PATH ({path}): check the command"))
        }
    }
}

fn candidates(program: &std::ffi::OsStr, path: &std::ffi::OsStr) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(program)];
    }
    std::env::split_paths(path)
        .map(|dir| if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir })
        .map(|dir| dir.join(program))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> impl Iterator<Item = OsString> {
        words.iter().map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn the_helper_reads_what_pid_1_writes() {
        let user = User { uid: 33, gid: 34, groups: vec![34, 101], home: "/".into(), name: None };
        let argv = ["nginx", "-g", "daemon off;"].map(str::to_owned);
        let command = command(&user, "/srv/www", 7, &argv);
        let mut written = command.get_args().map(OsString::from);
        assert_eq!(written.next().unwrap(), ARGUMENT);
        let parsed = parse(written).unwrap();
        assert_eq!((parsed.uid.as_raw(), parsed.gid.as_raw()), (33, 34));
        assert_eq!(parsed.groups, [Gid::from_raw(34), Gid::from_raw(101)]);
        assert_eq!((parsed.cwd.to_str(), parsed.error_fd), (Some("/srv/www"), 7));
        assert_eq!(parsed.argv, argv.map(OsString::from));
    }

    #[test]
    fn wrong_arguments_are_refused_and_never_become_root() {
        for words in [
            &["x", "0", "", "/", "3", "sh"][..],
            &["0", "0", "1,x", "/", "3", "sh"],
            &["0", "0", "", "/", "3"],
        ] {
            assert!(parse(strings(words)).is_none(), "{words:?}");
        }
    }

    #[test]
    fn a_word_with_a_slash_is_not_searched_for() {
        let candidates = |program: &str| candidates(program.as_ref(), "/bin::/usr/bin".as_ref());
        assert_eq!(candidates("./run"), [PathBuf::from("./run")]);
        assert_eq!(candidates("sh"), ["/bin/sh", "./sh", "/usr/bin/sh"].map(PathBuf::from));
    }

    #[test]
    fn a_missing_program_is_named_with_where_it_was_sought() {
        let (code, message) = execute(&["/no/such/program".into()]);
        assert_eq!((code, message.as_str()), (127, "/no/such/program: not in the image: check the command"));
        let (code, message) = execute(&["no-such-program-anywhere".into()]);
        assert_eq!(code, 127);
        assert!(message.starts_with("no-such-program-anywhere: not found in PATH ("), "{message}");
    }

    #[test]
    fn a_program_that_can_not_run_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
        let (code, message) = execute(&[script.clone().into()]);
        assert_eq!(code, 126);
        assert!(message.contains("it is not executable for the user"), "{message}");
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (code, message) = execute(&[script.into()]);
        assert_eq!(code, 126);
        assert!(message.contains("its interpreter or loader is not in the image"), "{message}");
    }
}
