//! The end of a machine that can't go on: everything is stopped, written out with a limit, and after a visible
//! countdown the machine restarts. Used before the supervisor runs, and by the panic hook after.
//!
//! It must never return and never wait for anything without a limit. The watchdog stays armed: where this hangs, or the
//! kernel does, it resets the machine, which may cost slow firmware a second reset.

use crate::log::{Kmsg, Level, Log};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::system::RebootCommand;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Long enough to read one line, or to photograph it.
const COUNTDOWN_SECONDS: u64 = 20;
const STOP_LIMIT: Duration = Duration::from_secs(5);
const SYNC_LIMIT: Duration = Duration::from_secs(10);

static ENTERED: AtomicBool = AtomicBool::new(false);

/// Makes a panic of any thread of PID 1 end in an ordered restart instead of a kernel panic.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        restart(&format!("init failed, which is a defect of this release: {info}"));
    }));
}

/// Whether the machine is ending here: nobody may start a process or feed the watchdog any more.
#[must_use]
pub fn entered() -> bool {
    ENTERED.load(Ordering::SeqCst)
}

/// Stops everything and restarts the machine.
pub fn restart(reason: &str) -> ! {
    if ENTERED.swap(true, Ordering::SeqCst) {
        // A second thread, or a panic in here: the first one does the work, within its limits.
        std::thread::sleep(Duration::from_secs(120));
        reboot();
    }
    let log = Kmsg::open();
    // The picture ends; the reason is to be read where it was.
    crate::screen::give_back();
    log.line(Level::Critical, &format!("croft: {reason}"));
    let everyone = Pid::from_raw(-1);
    if kill(everyone, Signal::SIGTERM).is_ok() {
        std::thread::sleep(STOP_LIMIT);
        let _ = kill(everyone, Signal::SIGKILL);
    }
    if !within(SYNC_LIMIT, rustix::fs::sync) {
        log.line(Level::Error, "croft: disks did not take all data in time: going on");
    }
    for left in (1..=COUNTDOWN_SECONDS).rev() {
        if left % 5 == 0 || left < 5 {
            log.line(Level::Critical, &format!("croft: restarting in {left} s: {reason}"));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    reboot();
}

/// Runs work that may hang beside us; whether it ended in time.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, end) = mpsc::channel();
    let started = std::thread::Builder::new().spawn(move || {
        work();
        let _ = done.send(());
    });
    started.is_ok() && end.recv_timeout(limit).is_ok()
}

fn reboot() -> ! {
    let _ = rustix::system::reboot(RebootCommand::Restart);
    // The kernel refused, or takes its time: the hardware watchdog is not fed any more.
    loop {
        std::thread::sleep(Duration::from_secs(3_600));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_hangs_does_not_hold_up_the_restart() {
        let (release, held) = mpsc::channel::<()>();
        assert!(!within(Duration::from_millis(1), move || {
            let _ = held.recv();
        }));
        drop(release);
        assert!(within(Duration::from_secs(60), || {}));
    }
}
