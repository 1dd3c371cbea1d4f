//! The helper's way into the jail, step by step.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, setgroups, sethostname, setresgid, setresuid};

use super::syscalls::{OneThread, close_on_exec_above_stderr, fork, give_tap, restrict};
use super::{JailError, JailSpec, JailUser, mounts};

/// User of the monitor: nobody. It only waits.
const MONITOR_USER: u32 = 65_534;

/// Everything. Returns only when a step failed.
pub(super) fn enter(spec: &JailSpec) -> Result<Infallible, JailError> {
    let alone = OneThread::check()?;
    close_on_exec_above_stderr().map_err(|error| JailError::step("closing descriptors", error))?;
    let group = spec.cgroup.join("cgroup.procs");
    std::fs::write(&group, "0")
        .map_err(|error| JailError::step(format!("joining {}", group.display()), error))?;
    // Node is the last that the kernel may kill for want of memory, and its children start out like it.
    std::fs::write("/proc/self/oom_score_adj", "0")
        .map_err(|error| JailError::step("taking back the protection from the kernel's killer", error))?;
    join_network(spec)?;
    give_taps(spec)?;
    let users = mounts::user_namespace(spec, alone)?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .map_err(|error| JailError::step("making namespaces (is the node running as root?)", error))?;
    sethostname("jail").map_err(|error| JailError::step("naming the jail", error))?;
    mounts::build(spec, users.as_ref())?;
    drop(users);
    // The monitor writes the maps of the program's user namespace after the host's /proc is out of reach.
    let proc = File::open("/proc").map_err(|error| JailError::step("opening /proc", error))?;
    mounts::pivot(spec)?;
    let (ask_read, ask_write) = pipe()?;
    let (answer_read, answer_write) = pipe()?;
    if let Some(program) = fork(alone)? {
        drop((ask_write, answer_read));
        monitor(spec, program, &proc, ask_read, answer_write)
    } else {
        drop((ask_read, answer_write, proc));
        become_program(spec, ask_write, answer_read)
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), JailError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| JailError::step("making a pipe", error))
}

fn join_network(spec: &JailSpec) -> Result<(), JailError> {
    let Some(path) = &spec.netns else {
        return unshare(CloneFlags::CLONE_NEWNET).map_err(|error| {
            JailError::step("making a network namespace (is the node running as root?)", error)
        });
    };
    let failed = |error: io::Error| {
        JailError::step(format!("joining the network namespace {}", path.display()), error)
    };
    let namespace = File::open(path).map_err(failed)?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| failed(error.into()))
}

fn give_taps(spec: &JailSpec) -> Result<(), JailError> {
    for tap in &spec.taps {
        if if_nametoindex(tap.as_str()).is_err() {
            // Attaching would create it, down and without a bridge.
            return Err(JailError::NoTap { tap: tap.clone() });
        }
        let tun = File::options().read(true).write(true).open("/dev/net/tun");
        tun.and_then(|tun| give_tap(&tun, tap, spec.user.host_id())).map_err(|error| {
            JailError::step(format!("giving tap {tap} to the VMM (is it in use?)"), error)
        })?;
    }
    Ok(())
}

/// Waits for the program and ends as it did.
fn monitor(
    spec: &JailSpec,
    program: Pid,
    proc: &File,
    ask: OwnedFd,
    answer: OwnedFd,
) -> Result<Infallible, JailError> {
    // The end of the pipe without a byte means that the program failed before it asked; it said why.
    if File::from(ask).read_exact(&mut [0]).is_ok() {
        rustix::process::fchdir(proc).map_err(|error| JailError::step("entering /proc", error))?;
        mounts::write_maps(std::path::Path::new("."), program, spec.user)
            .map_err(|error| JailError::step("mapping users", error))?;
        rustix::process::chdir("/").map_err(|error| JailError::step("leaving /proc", error))?;
        File::from(answer).write_all(&[1]).map_err(|error| JailError::step("answering", error))?;
    }
    // Else it would be called `exe` in every list of processes.
    let _ = prctl::set_name(c"jail-monitor");
    become_user(MONITOR_USER)?;
    prctl::set_no_new_privs().map_err(|error| JailError::step("giving up new privileges", error))?;
    restrict(false)?;
    loop {
        match waitpid(program, None) {
            Ok(WaitStatus::Exited(_, code)) => std::process::exit(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                // The shell's way of reporting it: the monitor can't die of every signal itself.
                std::process::exit(128 + signal as i32)
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(JailError::step("waiting for the program", error)),
        }
    }
}

fn become_program(spec: &JailSpec, ask: OwnedFd, answer: OwnedFd) -> Result<Infallible, JailError> {
    mounts::seal(spec.proc)?;
    // Before the change of user: only root may raise them.
    set_limits(spec.open_files).map_err(|error| JailError::step("setting limits", error))?;
    match spec.user {
        JailUser::Plain { id } => {
            drop((ask, answer));
            become_user(id)?;
        }
        JailUser::Namespace { .. } => {
            unshare(CloneFlags::CLONE_NEWUSER)
                .map_err(|error| JailError::step("making a user namespace", error))?;
            File::from(ask).write_all(&[1]).map_err(|error| JailError::step("asking for users", error))?;
            File::from(answer)
                .read_exact(&mut [0])
                .map_err(|error| JailError::step("waiting for users", error))?;
            become_user(0)?;
        }
    }
    // After the change of user, which clears it. The monitor is the parent.
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| JailError::step("tying life to the monitor", error))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    prctl::set_no_new_privs().map_err(|error| JailError::step("giving up new privileges", error))?;
    restrict(spec.may_unshare)?;
    let environment = spec.environment.iter().map(|(name, value)| (name, value));
    // A new process group would cost a call; exec also restores SIGPIPE.
    let error = Command::new(&spec.program).args(&spec.arguments).env_clear().envs(environment).exec();
    Err(JailError::Execute { program: spec.program.clone(), source: error })
}

fn set_limits(open_files: u64) -> Result<(), nix::errno::Errno> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    match setrlimit(Resource::RLIMIT_NOFILE, open_files, open_files) {
        // Even root may lack the capability to raise it, in a container: then what there is has to do.
        Err(nix::errno::Errno::EPERM) => {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        }
        result => result,
    }
}

/// Changes all ids; from root to anybody else this drops every capability.
fn become_user(id: u32) -> Result<(), JailError> {
    let failed = |error: nix::errno::Errno| JailError::step(format!("becoming user {id}"), error);
    setgroups(&[]).map_err(failed)?;
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    setresgid(group, group, group).map_err(failed)?;
    setresuid(user, user, user).map_err(failed)
}
