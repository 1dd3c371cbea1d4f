//! [`Machine`] on Linux: signals, the notify socket, the watchdog and the power button behind one `poll`.
//!
//! This is the only place of the process that reaps children, on one thread, so that no exit status is lost and no
//! process id is used after its process is gone.

use crate::child;
use crate::emergency;
use crate::kexec;
use crate::log::{Kmsg, Level, Log, chain};
use crate::mountinfo;
use crate::notify::{self, Listener, NOTIFY_ENV, Received};
use crate::output::{self, Output};
use crate::power_button;
use crate::privileges;
use crate::run::Machine;
use crate::screen;
use crate::supervisor::{End, Ending, Input, Signal, Time};
use crate::syscalls;
use crate::watchdog::Watchdogs;
use nix::sys::signal::{SigSet, Signal as UnixSignal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit, WaitOptions};
use rustix::system::RebootCommand;
use rustix::time::{ClockId, Timespec};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// The program that init exists for.
pub const NODE: &str = "/usr/bin/node";

/// Open files of node: a microVM takes about a hundred.
const NODE_FILES_MAX: u64 = 1_048_576;

/// Node goes last when memory runs out: VMMs that it starts set their own score, 0 unless they have a reason.
const NODE_OOM_SCORE: &str = "-900";
const INIT_OOM_SCORE: &str = "-1000";

/// Pipes of earlier nodes that are kept for their children; whoever still writes to an older one is not heard.
const OUTPUTS_MAX: usize = 16;

/// Messages that are read from node per turn; more wait, so that a mad node can't hold the loop.
const MESSAGES_PER_TURN: usize = 32;

/// Messages that are read from a node that has ended: more than the kernel queues for it.
const LAST_MESSAGES_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    #[error("signals can't be received as events")]
    Signals(#[source] nix::Error),
    #[error("no event counter for work beside the loop")]
    Wake(#[source] Errno),
}

/// See the module.
#[derive(Debug)]
pub struct Linux {
    log: Kmsg,
    signals: SignalFd,
    /// The node that runs, until it is reaped.
    node_pid: Option<i32>,
    /// Init's end of the pair with it.
    listener: Option<Listener>,
    /// What node prints, the latest last; earlier ones while children of an earlier node live on.
    outputs: Vec<Output>,
    buttons: Vec<File>,
    watchdogs: Watchdogs,
    /// Results of work beside the loop, and the counter that wakes it.
    results: Receiver<Input>,
    send: Sender<Input>,
    wake: Arc<OwnedFd>,
    /// Set by `signal_everyone`: report when nothing is left.
    report_empty: bool,
    node: PathBuf,
    screen: screen::Keeper,
}

impl Linux {
    /// Blocks the signals that PID 1 handles. To be called before any thread is started, so that all inherit it.
    pub fn new(node: &Path, screen: screen::Keeper) -> Result<Self, LinuxError> {
        let mut mask = SigSet::empty();
        for signal in [
            UnixSignal::SIGCHLD,
            UnixSignal::SIGINT,
            UnixSignal::SIGTERM,
            UnixSignal::SIGPWR,
            UnixSignal::SIGUSR2,
            UnixSignal::SIGHUP,
        ] {
            mask.add(signal);
        }
        mask.thread_block().map_err(LinuxError::Signals)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(LinuxError::Signals)?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(LinuxError::Wake)?;
        let (send, results) = channel();
        Ok(Self {
            log: Kmsg::open(),
            signals,
            node_pid: None,
            listener: None,
            outputs: Vec::new(),
            buttons: Vec::new(),
            watchdogs: Watchdogs::default(),
            results,
            send,
            wake: Arc::new(wake),
            report_empty: false,
            node: node.into(),
            screen,
        })
    }

    /// Takes the machine over: Ctrl-Alt-Del becomes a signal, the power button is watched, the watchdog armed, limits
    /// are set. What is missing is said and lived without.
    pub fn take_over(&mut self) {
        if rustix::system::reboot(RebootCommand::CadOff).is_err() {
            self.log.line(Level::Warning, "croft: Ctrl-Alt-Del restarts at once: the kernel keeps it");
        }
        let files = Rlimit { current: Some(NODE_FILES_MAX), maximum: Some(NODE_FILES_MAX) };
        if let Err(error) = rustix::process::setrlimit(Resource::Nofile, files) {
            self.log.line(
                Level::Warning,
                &format!("croft: node keeps the kernel's limit of open files: {error}"),
            );
        }
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        let _ = rustix::process::setrlimit(Resource::Core, none);
        let _ = fs::write("/proc/self/oom_score_adj", INIT_OOM_SCORE);
        self.buttons = power_button::open_all(Path::new("/sys"), Path::new("/dev"));
        let button = if self.buttons.is_empty() { "no power button" } else { "power button" };
        self.watchdogs = Watchdogs::arm(Path::new("/sys"), Path::new("/dev"), &self.log);
        let watchdog = self.watchdogs.describe();
        self.log.line(Level::Notice, &format!("croft: {watchdog}; {button}"));
    }

    /// All children that have ended, and orphans with them.
    fn reap(&mut self, inputs: &mut Vec<Input>) {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let end = match status.terminating_signal() {
                        Some(signal) => End::Killed(signal),
                        None => End::Exited(status.exit_status().unwrap_or(-1)),
                    };
                    self.ended(pid.as_raw_nonzero().get(), end, inputs);
                }
                Ok(None) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    // No child at all.
                    if std::mem::take(&mut self.report_empty) {
                        inputs.push(Input::NoProcessLeft);
                    }
                    return;
                }
            }
        }
    }

    /// The end of a process, after what it said last.
    fn ended(&mut self, pid: i32, end: End, inputs: &mut Vec<Input>) {
        if self.screen.ended(self.now(), pid, end, &self.log) {
            screen::give_back();
            return;
        }
        if self.node_pid == Some(pid) {
            self.node_pid = None;
            self.read_outputs();
            self.read_messages(LAST_MESSAGES_MAX, inputs);
        }
        inputs.push(Input::Ended { pid, end });
    }

    fn read_signals(&self, inputs: &mut Vec<Input>) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let (ending, by) = match i32::try_from(info.ssi_signo).map(UnixSignal::try_from) {
                Ok(Ok(UnixSignal::SIGINT)) => (Ending::Reboot, "Ctrl-Alt-Del"),
                Ok(Ok(UnixSignal::SIGTERM)) => (Ending::Reboot, "signal SIGTERM"),
                Ok(Ok(UnixSignal::SIGPWR)) => (Ending::Poweroff, "the power fails (SIGPWR)"),
                Ok(Ok(UnixSignal::SIGUSR2)) => (Ending::Poweroff, "signal SIGUSR2"),
                _ => continue,
            };
            inputs.push(Input::Asked { ending, by: by.into() });
        }
    }

    fn read_messages(&mut self, max: usize, inputs: &mut Vec<Input>) {
        let Some(listener) = &self.listener else { return };
        for _ in 0..max {
            match listener.receive() {
                Received::Message(message) => inputs.push(Input::Message(message)),
                Received::Refused(error) => self.log.line(Level::Warning, &format!("croft: {error}")),
                Received::Nothing => return,
                Received::Closed => {
                    self.listener = None;
                    return;
                }
            }
        }
    }

    fn read_buttons(&mut self, inputs: &mut Vec<Input>) {
        self.buttons.retain_mut(|button| match power_button::pressed(button) {
            Ok(true) => {
                inputs.push(Input::Asked {
                    ending: Ending::Poweroff,
                    by: "the power button was pressed".into(),
                });
                true
            }
            Ok(false) => true,
            // Unplugged: reading on would only spin.
            Err(_) => false,
        });
    }

    /// Before exits are reported, so that a crash is preceded by its own words.
    fn read_outputs(&mut self) {
        let log = &self.log;
        self.outputs.retain_mut(|output| output.pass_on(log));
    }

    /// Blocks until a descriptor is readable or the time has come.
    fn poll(&self, until: Time) {
        let left = until.saturating_sub(self.now());
        // A little late is fine; a little early would spin.
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
        ];
        if let Some(listener) = &self.listener {
            fds.push(PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN));
        }
        fds.extend(self.outputs.iter().map(|output| PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN)));
        fds.extend(self.buttons.iter().map(|button| PollFd::from_borrowed_fd(button.as_fd(), PollFlags::IN)));
        if let Err(error) = rustix::event::poll(&mut fds, Some(&timeout))
            && error != Errno::INTR
        {
            // Can't happen with valid descriptors; never spin on it.
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// Work that may block, beside the loop.
    fn beside(&mut self, work: impl FnOnce() -> Input + Send + 'static) {
        let (send, wake) = (self.send.clone(), Arc::clone(&self.wake));
        let spawned = std::thread::Builder::new().name("beside".into()).spawn(move || {
            let _ = send.send(work());
            let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
        });
        if let Err(error) = spawned {
            // The step's limit ends the wait.
            self.log.line(Level::Error, &format!("croft: no thread for the shutdown: {error}"));
        }
    }
}

impl Machine for Linux {
    fn now(&self) -> Time {
        let time = rustix::time::clock_gettime(ClockId::Monotonic);
        Time::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    fn wait(&mut self, until: Time) -> Vec<Input> {
        let mut inputs = Vec::new();
        if emergency::entered() {
            // A new picture would hide the reason.
            self.screen.give_up();
        }
        // Before the wait as well: the last process may have ended before anybody waited for it.
        self.read_outputs();
        self.reap(&mut inputs);
        if !inputs.is_empty() {
            return inputs;
        }
        self.poll(self.screen.deadline().map_or(until, |screen| screen.min(until)));
        self.screen.advance(self.now(), &self.log);
        let mut count = [0_u8; 8];
        let _ = rustix::io::read(&*self.wake, &mut count[..]);
        self.read_signals(&mut inputs);
        self.read_messages(MESSAGES_PER_TURN, &mut inputs);
        self.read_buttons(&mut inputs);
        self.read_outputs();
        self.reap(&mut inputs);
        inputs.extend(self.results.try_iter());
        inputs
    }

    fn ends_elsewhere(&self) -> bool {
        emergency::entered()
    }

    fn start_node(&mut self) -> Result<i32, String> {
        let path = self.node.display();
        match fs::metadata(&self.node) {
            Err(error) => return Err(format!("{path}: {error}: build the image again")),
            Ok(meta) if !meta.is_file() => {
                return Err(format!("{path} is not a file: build the image again"));
            }
            Ok(_) => {}
        }
        self.listener = None;
        // Half a line of an earlier node, whose children keep the pipe open.
        self.outputs.iter_mut().for_each(|output| output.flush(&self.log));
        let (ours, theirs) =
            notify::pair().map_err(|error| format!("no socket for its messages: {error}"))?;
        let (output, print) = output::pair().map_err(|error| format!("no pipe for its output: {error}"))?;
        let print_too = print.try_clone().map_err(|error| format!("no pipe for its errors: {error}"))?;
        // Only this thread starts processes, so the descriptor leaks to nobody else in this moment.
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(|error| format!("its socket: {error}"))?;
        let mut command = Command::new(&self.node);
        let capabilities = privileges::of(privileges::NODE);
        child::limit(&mut command, child::Limits { capabilities, filter: syscalls::not_for_node() });
        let spawned = command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/")
            .env("RUST_BACKTRACE", "1")
            .env(NOTIFY_ENV, theirs.as_raw_fd().to_string())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(print)
            .stderr(print_too)
            .process_group(0)
            .spawn();
        drop(theirs);
        let child = spawned.map_err(|error| format!("{path}: {error}"))?;
        // The handle is dropped on purpose: `reap` is the only one that waits.
        let pid = i32::try_from(child.id()).map_err(|_| format!("{path}: impossible process id"))?;
        if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), NODE_OOM_SCORE) {
            self.log
                .line(Level::Warning, &format!("croft: node is not spared when memory runs out: {error}"));
        }
        self.node_pid = Some(pid);
        self.listener = Some(ours);
        if self.outputs.len() >= OUTPUTS_MAX {
            self.outputs.remove(0);
        }
        self.outputs.push(output);
        Ok(pid)
    }

    fn signal_node(&mut self, pid: i32, signal: Signal) {
        // One that is reaped already, and whose last message is only being handled, has given its id away.
        if self.node_pid == Some(pid) {
            let _ = kill(Pid::from_raw(pid), unix(signal));
        }
    }

    fn signal_everyone(&mut self, signal: Signal) {
        self.report_empty = true;
        self.screen.give_up();
        if kill(Pid::from_raw(-1), unix(signal)).is_err() {
            // Nobody to signal: `wait` finds out.
            let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
        }
    }

    fn feed_watchdog(&mut self) {
        self.watchdogs.feed(&self.log);
    }

    fn begin_load(&mut self, kernel: PathBuf) {
        self.beside(|| {
            let error = kexec::load(&kernel).err();
            let refused = error.as_ref().map(|error| chain(error));
            if let (Some(error), Some(reason)) = (&error, &refused) {
                let told = if error.is_of_the_file() { notify::refusal_of } else { notify::trouble_of };
                // Node waits for one of these files, and gives up by itself where even this fails.
                let _ = fs::write(told(&kernel), reason);
            }
            Input::Loaded { kernel, refused }
        });
    }

    fn tell_loaded(&mut self, kernel: &Path) {
        let _ = fs::write(notify::loaded_of(kernel), "");
    }

    fn begin_sync(&mut self) {
        self.beside(|| {
            rustix::fs::sync();
            Input::Synced
        });
    }

    fn begin_unmount(&mut self) {
        self.beside(|| Input::Unmounted { left: unmount_disks() });
    }

    fn log(&mut self, level: Level, text: &str) {
        self.log.line(level, text);
    }

    fn finish(&mut self, ending: Ending) {
        screen::give_back();
        let command = match ending {
            Ending::Reboot => {
                self.watchdogs.disarm(&self.log);
                RebootCommand::Restart
            }
            Ending::Poweroff => {
                self.watchdogs.disarm(&self.log);
                RebootCommand::PowerOff
            }
            // It guards the other kernel until a driver there takes it over.
            Ending::Kexec => {
                self.watchdogs.leave_to_next_kernel(&self.log);
                RebootCommand::Kexec
            }
        };
        let refused = rustix::system::reboot(command);
        emergency::restart(&format!("the kernel refuses to end: {refused:?}"));
    }
}

fn unix(signal: Signal) -> UnixSignal {
    match signal {
        Signal::Terminate => UnixSignal::SIGTERM,
        Signal::Kill => UnixSignal::SIGKILL,
    }
}

/// Unmounts everything on a disk, the last mounted first; what is busy becomes read-only. What is left, with reasons.
fn unmount_disks() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut left = Vec::new();
    for mount in mountinfo::parse(&text).iter().rev().filter(|mount| mount.on_disk()) {
        let Err(busy) = rustix::mount::unmount(&mount.target, UnmountFlags::NOFOLLOW) else { continue };
        if rustix::mount::mount_remount(&mount.target, MountFlags::RDONLY, "").is_err() {
            left.push(format!("{} ({busy})", mount.target.display()));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::Message;

    #[test]
    fn what_node_says_last_comes_before_its_end_however_much_it_is() {
        let mut linux = Linux::new(Path::new(NODE), screen::Keeper::none()).unwrap();
        let (ours, theirs) = notify::pair().unwrap();
        let node = i32::MAX;
        (linux.node_pid, linux.listener) = (Some(node), Some(ours));
        let request = Message::Reboot("release 7 is installed".into());
        let all = [vec![Message::Alive; 2 * MESSAGES_PER_TURN], vec![request]].concat();
        for message in &all {
            rustix::net::send(&theirs, message.to_string().as_bytes(), rustix::net::SendFlags::DONTWAIT)
                .unwrap();
        }
        drop(theirs);
        let mut inputs = Vec::new();
        let end = End::Exited(0);
        linux.ended(node - 1, end, &mut inputs);
        assert_eq!(inputs, [Input::Ended { pid: node - 1, end }], "an orphan's end reads nothing");
        linux.ended(node, end, &mut inputs);
        let expected = all.into_iter().map(Input::Message).chain([Input::Ended { pid: node, end }]);
        assert_eq!(inputs[1..], expected.collect::<Vec<_>>());
        assert_eq!(linux.node_pid, None, "nobody signals an id that is another's by now");
    }
}
