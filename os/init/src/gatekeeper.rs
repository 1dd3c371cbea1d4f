//! Who answers calls that the list of [`syscalls`] does not have: a thread of PID 1 that writes them to
//! the log and refuses.
//!
//! ```text
//!   any process ── call not on the list ──> kernel ──> gatekeeper: a line in the log, EPERM
//!                                                       (ENOSYS where the call is newer than the list)
//! ```
//! The kernel has no audit log of its own here, so without this nobody would hear of it. It must never let a call through,
//! never wait for the caller, and never fill the log: whoever calls in a loop is counted.

use crate::log::{Level, Log};
use crate::syscalls::{self, NEWEST_KNOWN};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Lines in one [`PERIOD`]; the rest is counted.
const LINES_MAX: u32 = 20;
const PERIOD: Duration = Duration::from_secs(60);
/// Of a program's name, as the kernel keeps it.
const NAME_MAX_CHARS: usize = 15;

mod ioctl {
    #![allow(unsafe_code, reason = "linux/seccomp.h has no safe wrapper in rustix or nix")]
    // SAFETY of the callers: both take a pointer to one structure of the kernel's own size that lives through the call.
    nix::ioctl_readwrite!(receive, b'!', 0, libc::seccomp_notif);
    nix::ioctl_readwrite!(send, b'!', 1, libc::seccomp_notif_resp);
}

/// How the calls are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filtered {
    /// Each is written to the log.
    Logged,
    /// Without a word: nobody can be asked on this kernel.
    Silently,
}

/// Filters this thread and all that it starts from now on. To be called by PID 1 before other threads are started.
///
/// # Errors
/// When the kernel filters nothing at all.
pub fn filter(log: impl Log + 'static) -> io::Result<Filtered> {
    let (sender, receiver) = channel();
    let thread = start(receiver, log);
    match thread.and_then(|()| syscalls::install_asking()) {
        Ok(listener) => {
            // The thread waits for nothing else.
            let _ = sender.send(listener);
            Ok(Filtered::Logged)
        }
        // No thread, or somebody outside answers for this process already.
        Err(_) => syscalls::silent().install().map(|()| Filtered::Silently),
    }
}

/// Started unfiltered and with every signal blocked, since PID 1 reads those elsewhere; filters itself then.
fn start(listener: Receiver<OwnedFd>, log: impl Log + 'static) -> io::Result<()> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let spawned = std::thread::Builder::new().name("gatekeeper".into()).spawn(move || {
        // Never asking: it would wait for itself.
        if let Err(error) = syscalls::silent().install() {
            log.line(Level::Warning, &format!("croft: the gatekeeper itself is not filtered: {error}"));
        }
        if let Ok(listener) = listener.recv() {
            serve(&listener, &log);
        }
    });
    before.thread_set_mask()?;
    spawned.map(drop)
}

/// Until the kernel has nobody left to ask for.
fn serve(listener: &OwnedFd, log: &dyn Log) {
    let mut book = Book::default();
    loop {
        match receive(listener) {
            Ok(call) => {
                if let Some(line) = book.line(Instant::now(), &program(call.process), call) {
                    log.line(Level::Warning, &line);
                }
                answer(listener, call);
            }
            // A signal, or the caller ended before it was heard.
            Err(Errno::EINTR | Errno::ENOENT) => {}
            Err(error) => {
                log.line(Level::Error, &format!("croft: refused calls are not logged any more: {error}"));
                return;
            }
        }
    }
}

/// Somebody waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    /// The kernel's number of the question.
    id: u64,
    process: u32,
    number: libc::c_long,
}

impl Call {
    fn errno(self) -> i32 {
        if self.number > NEWEST_KNOWN { libc::ENOSYS } else { libc::EPERM }
    }
}

fn receive(listener: &OwnedFd) -> Result<Call, Errno> {
    let data = libc::seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] };
    // All zero, which the kernel demands.
    let mut question = libc::seccomp_notif { id: 0, pid: 0, flags: 0, data };
    // SAFETY: the descriptor is open, the structure is local and of the kernel's size.
    #[allow(unsafe_code, reason = "the ioctl has no safe wrapper")]
    unsafe { ioctl::receive(listener.as_raw_fd(), &raw mut question) }?;
    Ok(Call { id: question.id, process: question.pid, number: question.data.nr.into() })
}

fn answer(listener: &OwnedFd, call: Call) {
    let mut answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: -call.errno(), flags: 0 };
    // SAFETY: as above.
    #[allow(unsafe_code, reason = "the ioctl has no safe wrapper")]
    let sent = unsafe { ioctl::send(listener.as_raw_fd(), &raw mut answer) };
    // The caller may have been killed meanwhile.
    let _ = sent;
}

/// What a process calls itself, which it may choose: for people only.
fn program(process: u32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    text.trim().chars().take(NAME_MAX_CHARS).collect()
}

/// What was written lately.
#[derive(Debug, Default)]
struct Book {
    since: Option<Instant>,
    lines: u32,
    untold: u64,
}

impl Book {
    /// The line for a call, unless there were too many lately.
    fn line(&mut self, now: Instant, program: &str, call: Call) -> Option<String> {
        if self.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines >= LINES_MAX {
            self.untold += 1;
            return None;
        }
        self.lines += 1;
        let untold = match std::mem::take(&mut self.untold) {
            0 => String::new(),
            count => format!(" ({count} more before it)"),
        };
        let call_name = syscalls::name(call.number);
        Some(format!("croft: refused {call_name} to process {} ({program}){untold}", call.process))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Recorded;
    use std::sync::Arc;

    /// A log that two threads hold.
    struct Shared(Arc<Recorded>);

    impl Log for Shared {
        fn line(&self, level: Level, text: &str) {
            self.0.line(level, text);
        }
    }

    fn errno_of(number: libc::c_long) -> i32 {
        // SAFETY: descriptor -1 and null pointers, which the kernel refuses by itself.
        #[allow(unsafe_code, reason = "calls that nobody wraps are the subject")]
        let result = unsafe { libc::syscall(number, -1, 0, 0, 0, 0, 0) };
        assert_eq!(result, -1, "call {number} went through");
        io::Error::last_os_error().raw_os_error().unwrap()
    }

    #[test]
    fn a_refused_call_is_written_down_and_one_of_a_later_kernel_looks_unknown() {
        let log = Arc::new(Recorded::default());
        let shared = Shared(log.clone());
        let heard = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            let how = filter(shared).unwrap();
            assert_eq!(errno_of(libc::SYS_ptrace), libc::EPERM);
            assert_eq!(errno_of(libc::SYS_open_by_handle_at), libc::EPERM);
            let newer = errno_of(NEWEST_KNOWN + 30);
            (how, newer)
        });
        let (how, newer) = heard.join().unwrap();
        if how == Filtered::Silently {
            eprintln!("somebody else answers for this process: {newer}");
            return;
        }
        assert_eq!(newer, libc::ENOSYS);
        let lines = log.lines();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("croft: refused ptrace to process "), "{lines:?}");
        assert!(lines[1].starts_with("croft: refused open_by_handle_at to process "), "{lines:?}");
        assert!(lines[2].starts_with("croft: refused call 497 to process "), "{lines:?}");
    }

    #[test]
    fn whoever_calls_in_a_loop_is_counted_and_does_not_fill_the_log() {
        let (mut book, start) = (Book::default(), Instant::now());
        let call = Call { id: 1, process: 42, number: libc::SYS_bpf };
        let written = (0..1_000).filter_map(|_| book.line(start, "node", call)).count();
        assert_eq!(written, LINES_MAX as usize);
        let line = book.line(start + PERIOD, "node", call).unwrap();
        assert_eq!(line, "croft: refused bpf to process 42 (node) (980 more before it)");
        let line = book.line(start + PERIOD, "node", call).unwrap();
        assert_eq!(line, "croft: refused bpf to process 42 (node)");
    }
}
