//! Children of PID 1: starting them, and the one place that reaps them.
//!
//! ```text
//! spawn (table locked) ──> running ──> waited for without reaping ──> table locked, reaped, told
//! ```
//!
//! Every process whose parent dies becomes a child of PID 1, so one thread waits for all. It looks first
//! without reaping and reaps only under the table's lock, which `spawn` holds until the child is entered:
//! no exit status can be lost between the two.
//!
//! Must never be bypassed: `Child::wait` of the standard library would race with the reaper.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use croft_guest::users::User;
use croft_guest::wire::Exit;
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::exec;
use crate::power::say;

/// Memory that stays for PID 1 and the kernel when the workload takes all it can get.
const RESERVED_BYTES: u64 = 16 << 20;

/// See the module's header.
#[derive(Default)]
pub(crate) struct Reaper {
    table: Mutex<Table>,
    spawned: Condvar,
}

#[derive(Default)]
struct Table {
    waiting: HashMap<i32, Sender<Exit>>,
    /// Counts children started, so that the reaper sees one that came while it found none.
    generation: u64,
}

/// A running child.
pub(crate) struct Running {
    pub(crate) pid: i32,
    /// Gets exactly one message.
    pub(crate) exit: Receiver<Exit>,
}

/// Why a program of the workload did not start.
#[derive(Debug)]
pub(crate) struct StartError(pub(crate) String);

impl Reaper {
    /// Starts the one thread that reaps.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let own = Arc::clone(&reaper);
        std::thread::Builder::new().name("reaper".into()).spawn(move || own.reap_for_ever())?;
        Ok(reaper)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `command`. The child's status is only available through the returned receiver.
    #[cfg(test)]
    fn spawn(&self, command: &mut Command) -> io::Result<Running> {
        let mut table = self.lock();
        let child = command.spawn()?;
        Ok(self.enter(&mut table, child.id() as i32))
    }

    fn enter(&self, table: &mut Table, pid: i32) -> Running {
        let (sender, exit) = channel();
        table.waiting.insert(pid, sender);
        table.generation += 1;
        self.spawned.notify_all();
        Running { pid, exit }
    }

    /// Starts a program of the workload through [`exec`], and waits until it is really executed.
    pub(crate) fn spawn_workload(
        &self,
        user: &User,
        cwd: &str,
        argv: &[String],
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Running, StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError(format!("starting {}: {error}", argv[0]));
        let mut table = self.lock();
        // Inheritable on purpose. No other child can inherit it: children start under the same lock.
        let (read, write) = pipe_with(PipeFlags::empty()).map_err(|error| failed(&error))?;
        rustix::io::fcntl_setfd(&read, rustix::io::FdFlags::CLOEXEC).map_err(|error| failed(&error))?;
        let mut command = exec::command(user, cwd, write.as_raw_fd(), argv);
        prepare(&mut command);
        let child = command.spawn().map_err(|error| failed(&error))?;
        let running = self.enter(&mut table, child.id() as i32);
        drop(command);
        drop(write);
        let message = read_all(read);
        drop(table);
        if message.is_empty() { Ok(running) } else { Err(StartError(message)) }
    }

    fn reap_for_ever(&self) {
        loop {
            let seen = self.lock().generation;
            match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        self.reap(pid);
                    }
                }
                Err(Errno::ECHILD) => {
                    // No children, so no orphans either: nothing can come before the next spawn.
                    let table = self.lock();
                    drop(self.spawned.wait_while(table, |table| table.generation == seen));
                }
                Err(Errno::EINTR) => {}
                Err(error) => say(&format!("waiting for children: {error}")),
            }
        }
    }

    fn reap(&self, pid: Pid) {
        let mut table = self.lock();
        let exit = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Exit::Code(code as u8),
            Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(signal as i32 as u8),
            // The standard library reaps a child by itself when its exec failed.
            Ok(_) | Err(_) => return,
        };
        if let Some(sender) = table.waiting.remove(&pid.as_raw()) {
            // Nobody may be interested any more.
            let _ = sender.send(exit);
        }
    }
}

fn read_all(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    let _ = fs::File::from(fd).take(4096).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends any signal, real-time ones included.
pub(crate) fn signal(pid: i32, signal: u8) -> io::Result<()> {
    // SAFETY: kill takes two integers and touches no memory of this process.
    #[allow(unsafe_code, reason = "the safe wrappers know no real-time signals")]
    let result = unsafe { nix::libc::kill(pid, i32::from(signal)) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Kills every process but PID 1.
pub(crate) fn kill_all() {
    // ESRCH: there is none.
    let _ = signal(-1, nix::libc::SIGKILL as u8);
}

/// Protects PID 1 from the out-of-memory killer and bounds the workload's memory below the machine's.
pub(crate) fn create_control_group(memory_bytes: u64) {
    let attempt = || -> io::Result<()> {
        fs::write("/proc/self/oom_score_adj", "-1000")?;
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids")?;
        fs::create_dir(exec::CONTROL_GROUP)?;
        let limit = memory_bytes.saturating_sub(RESERVED_BYTES).max(memory_bytes / 2);
        fs::write(Path::new(exec::CONTROL_GROUP).join("memory.max"), limit.to_string())
    };
    if let Err(error) = attempt() {
        // The workload runs without, only a lack of memory is then less well contained.
        say(&format!("no memory limit for the workload: {error}"));
    }
}

/// Whether the kernel killed something of the workload for want of memory.
pub(crate) fn was_out_of_memory() -> bool {
    let count = |path: &str, key: &str| -> u64 {
        let text = fs::read_to_string(path).unwrap_or_default();
        let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
        text.lines().find_map(value).unwrap_or(0)
    };
    count("/sys/fs/cgroup/workload/memory.events", "oom_kill") > 0 || count("/proc/vmstat", "oom_kill") > 0
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::time::Duration;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    /// One reaper for the test process: it must be the only one that waits.
    fn reaper() -> Arc<Reaper> {
        static REAPER: std::sync::OnceLock<Arc<Reaper>> = std::sync::OnceLock::new();
        Arc::clone(REAPER.get_or_init(|| Reaper::start().unwrap()))
    }

    #[test]
    fn exit_codes_and_signals_reach_who_asked() {
        let reaper = reaper();
        let code = reaper.spawn(&mut shell("exit 7")).unwrap();
        let signalled = reaper.spawn(&mut shell("kill -9 $$")).unwrap();
        assert_eq!(code.exit.recv_timeout(LIMIT).unwrap(), Exit::Code(7));
        assert_eq!(signalled.exit.recv_timeout(LIMIT).unwrap(), Exit::Signal(9));
    }

    #[test]
    fn a_hundred_instant_exits_lose_none() {
        let reaper = reaper();
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let reaper = Arc::clone(&reaper);
                std::thread::spawn(move || {
                    for round in 0..25_u8 {
                        let expected = thread * 25 + round;
                        let running = reaper.spawn(&mut shell(&format!("exit {expected}"))).unwrap();
                        assert_eq!(running.exit.recv_timeout(LIMIT).unwrap(), Exit::Code(expected));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn orphans_are_reaped_and_do_not_disturb() {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let reaper = reaper();
        let parent = reaper.spawn(&mut shell("(sleep 0; exit 3) & exit 4")).unwrap();
        assert_eq!(parent.exit.recv_timeout(LIMIT).unwrap(), Exit::Code(4));
        let next = reaper.spawn(&mut shell("exit 5")).unwrap();
        assert_eq!(next.exit.recv_timeout(LIMIT).unwrap(), Exit::Code(5));
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error_and_not_a_panic() {
        let error = reaper().spawn(&mut Command::new("/no/such/program")).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
