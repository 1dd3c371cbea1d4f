//! PID 1's hold on the screen's process: started early, started again a few times, never waited for.

use crate::child;
use crate::log::{Level, Log};
use crate::privileges;
use crate::supervisor::{End, Time};
use crate::syscalls;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Argument with which this program is the screen.
pub const FLAG: &str = "--screen";
/// Before it is started again.
const PAUSE: Duration = Duration::from_secs(10);
/// A picture that fails so often won't come.
const STARTS_MAX: u32 = 5;

#[derive(Debug)]
enum State {
    Runs { pid: i32 },
    Waits { until: Time },
    Over,
}

/// See the module.
#[derive(Debug)]
pub struct Keeper {
    state: State,
    starts: u32,
}

impl Keeper {
    /// Starts the screen.
    pub fn start(log: &dyn Log) -> Self {
        let mut keeper = Self { state: State::Over, starts: 0 };
        keeper.spawn(log);
        keeper
    }

    /// One that never starts anything.
    #[cfg(test)]
    pub fn none() -> Self {
        Self { state: State::Over, starts: STARTS_MAX }
    }

    fn spawn(&mut self, log: &dyn Log) {
        self.starts += 1;
        let mut command = Command::new("/init");
        // Its own group: signals to node's are not for it.
        command.arg(FLAG).env_clear().current_dir("/").stdin(Stdio::null()).process_group(0);
        let capabilities = privileges::of(privileges::SCREEN);
        // What node may not do, a picture need not either.
        child::limit(&mut command, child::Limits { capabilities, filter: syscalls::not_for_node() });
        super::console::give_to_picture();
        self.state = match command.spawn() {
            Ok(child) => State::Runs { pid: i32::try_from(child.id()).unwrap_or(0) },
            Err(error) => {
                log.line(Level::Warning, &format!("croft: no picture on the monitor: {error}"));
                State::Over
            }
        };
    }

    /// Takes the end of a process; whether it was the screen's.
    pub fn ended(&mut self, now: Time, pid: i32, end: End, log: &dyn Log) -> bool {
        if !matches!(self.state, State::Runs { pid: ours } if ours == pid) {
            return false;
        }
        self.state = match end {
            // There is no console.
            End::Exited(0) => State::Over,
            _ if self.starts >= STARTS_MAX => {
                log.line(Level::Warning, &format!("croft: the screen {end}; no picture any more"));
                State::Over
            }
            _ => {
                log.line(Level::Warning, &format!("croft: the screen {end}; it starts again"));
                State::Waits { until: now + PAUSE }
            }
        };
        true
    }

    /// When [`Self::advance`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        match self.state {
            State::Waits { until } => Some(until),
            _ => None,
        }
    }

    /// Starts it again when it is time.
    pub fn advance(&mut self, now: Time, log: &dyn Log) {
        if self.deadline().is_some_and(|until| now >= until) {
            self.spawn(log);
        }
    }

    /// The machine ends: it is not started any more.
    pub fn give_up(&mut self) {
        if let State::Waits { .. } = self.state {
            self.state = State::Over;
        }
        self.starts = STARTS_MAX;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Recorded;

    fn running(starts: u32) -> Keeper {
        Keeper { state: State::Runs { pid: 42 }, starts }
    }

    #[test]
    fn a_screen_that_dies_starts_again_after_a_pause_and_not_for_ever() {
        let log = Recorded::default();
        let mut keeper = running(1);
        assert!(!keeper.ended(Time::ZERO, 41, End::Exited(1), &log), "another's end");
        assert!(keeper.ended(Time::ZERO, 42, End::Killed(11), &log));
        assert_eq!(keeper.deadline(), Some(PAUSE));
        assert!(
            log.lines()[0].contains("was killed by signal 11 (SIGSEGV); it starts again"),
            "{:?}",
            log.lines()
        );
        let mut keeper = running(STARTS_MAX);
        assert!(keeper.ended(Time::ZERO, 42, End::Exited(1), &log));
        assert_eq!(keeper.deadline(), None);
    }

    #[test]
    fn a_machine_without_a_console_is_left_alone_and_so_is_one_that_ends() {
        let log = Recorded::default();
        let mut keeper = running(1);
        assert!(keeper.ended(Time::ZERO, 42, End::Exited(0), &log));
        assert_eq!((keeper.deadline(), log.lines().len()), (None, 0));
        let mut keeper = running(1);
        keeper.give_up();
        assert!(keeper.ended(Time::ZERO, 42, End::Killed(15), &log));
        assert_eq!(keeper.deadline(), None);
    }
}
