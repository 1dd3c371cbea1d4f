//! The main loop of PID 1: inputs from the machine go to the [`Supervisor`], its actions back to the machine.
//!
//! The loop never blocks without the supervisor's deadline, and everything behind [`Machine`] must return at once:
//! slow work (flushing, unmounting) runs beside it and reports back as an input.

use crate::log::Level;
use crate::supervisor::{Action, Ending, Input, Signal, Supervisor, Time};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longer than [`crate::emergency`] takes for all its steps, so that it has the first word on the restart.
const STAND_BY: Duration = Duration::from_secs(60);

/// The system calls that the loop needs. Linux implements it for real, tests in virtual time.
pub trait Machine {
    /// Time since boot.
    fn now(&self) -> Time;
    /// Waits until something happens or `until` has come; what happened, in order. May be empty.
    fn wait(&mut self, until: Time) -> Vec<Input>;
    /// Whether another thread of PID 1 has failed and [`crate::emergency`] ends the machine.
    fn ends_elsewhere(&self) -> bool;
    /// Starts node; the process id, or a reason that names the culprit.
    fn start_node(&mut self) -> Result<i32, String>;
    fn signal_node(&mut self, pid: i32, signal: Signal);
    /// Signals every process but PID 1; `wait` reports when none is left.
    fn signal_everyone(&mut self, signal: Signal);
    fn feed_watchdog(&mut self);
    /// Begins to load a kernel; `wait` reports the end.
    fn begin_load(&mut self, kernel: PathBuf);
    fn tell_loaded(&mut self, kernel: &Path);
    /// Begins to flush all filesystems; `wait` reports the end.
    fn begin_sync(&mut self);
    /// Begins to unmount everything that is on a disk; `wait` reports the end.
    fn begin_unmount(&mut self);
    fn log(&mut self, level: Level, text: &str);
    /// Restarts or switches off. Returns only in tests, or when the kernel refuses.
    fn finish(&mut self, ending: Ending);
}

/// Runs until the machine ends, here or elsewhere.
pub fn run(mut supervisor: Supervisor, machine: &mut impl Machine) {
    let mut inputs = vec![Input::Begin];
    loop {
        if machine.ends_elsewhere() {
            return stand_by(machine);
        }
        for input in inputs {
            give(&mut supervisor, machine, input);
        }
        let Some(until) = supervisor.deadline() else { return };
        inputs = machine.wait(until);
        // Deadlines are looked at even when something else happened first.
        inputs.push(Input::Tick);
    }
}

/// Hears and reaps what is being stopped, and decides nothing: no start, no feed.
fn stand_by(machine: &mut impl Machine) {
    let end = machine.now() + STAND_BY;
    while machine.now() < end {
        let _ = machine.wait(end);
    }
}

/// One input, its actions, and the answers that some of them give at once.
fn give(supervisor: &mut Supervisor, machine: &mut impl Machine, input: Input) {
    let mut inputs = vec![input];
    while let Some(input) = inputs.pop() {
        for action in supervisor.handle(machine.now(), input) {
            match action {
                Action::StartNode => inputs.push(match machine.start_node() {
                    Ok(pid) => Input::NodeStarted { pid },
                    Err(reason) => Input::NodeNotStarted { reason },
                }),
                Action::SignalNode { pid, signal } => machine.signal_node(pid, signal),
                Action::SignalEveryone(signal) => machine.signal_everyone(signal),
                Action::FeedWatchdog => machine.feed_watchdog(),
                Action::LoadKernel(kernel) => machine.begin_load(kernel),
                Action::TellLoaded(kernel) => machine.tell_loaded(&kernel),
                Action::Sync => machine.begin_sync(),
                Action::Unmount => machine.begin_unmount(),
                Action::Log { level, text } => machine.log(level, &text),
                Action::Finish(ending) => machine.finish(ending),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::Message;
    use crate::supervisor::{End, Policy};
    use std::collections::BTreeMap;

    /// A machine in virtual time: a script of inputs, and a diary of what was done to it.
    #[derive(Default)]
    struct Script {
        now: Time,
        next: BTreeMap<Time, Vec<Input>>,
        starts: Vec<Result<i32, String>>,
        diary: Vec<String>,
        feeds: u32,
        /// When another thread fails.
        fails: Option<Time>,
    }

    impl Script {
        fn at(mut self, seconds: u64, input: Input) -> Self {
            self.next.entry(Duration::from_secs(seconds)).or_default().push(input);
            self
        }
    }

    impl Machine for Script {
        fn now(&self) -> Time {
            self.now
        }
        fn wait(&mut self, until: Time) -> Vec<Input> {
            match self.next.first_key_value() {
                Some((at, _)) if *at <= until => {
                    let (at, inputs) = self.next.pop_first().unwrap();
                    self.now = self.now.max(at);
                    inputs
                }
                _ => {
                    self.now = self.now.max(until);
                    vec![]
                }
            }
        }
        fn start_node(&mut self) -> Result<i32, String> {
            self.diary.push("start".into());
            if self.starts.is_empty() { Ok(42) } else { self.starts.remove(0) }
        }
        fn signal_node(&mut self, pid: i32, signal: Signal) {
            self.diary.push(format!("{signal:?} {pid}"));
            self.next.entry(self.now).or_default().push(Input::Ended { pid, end: End::Exited(0) });
        }
        fn signal_everyone(&mut self, signal: Signal) {
            self.diary.push(format!("{signal:?} all"));
            self.next.entry(self.now).or_default().push(Input::NoProcessLeft);
        }
        fn ends_elsewhere(&self) -> bool {
            self.fails.is_some_and(|fails| self.now >= fails)
        }
        fn feed_watchdog(&mut self) {
            self.feeds += 1;
        }
        fn tell_loaded(&mut self, _: &Path) {}

        fn begin_load(&mut self, kernel: PathBuf) {
            self.diary.push(format!("load {}", kernel.display()));
        }
        fn begin_sync(&mut self) {
            self.diary.push("sync".into());
            self.next.entry(self.now).or_default().push(Input::Synced);
        }
        fn begin_unmount(&mut self) {
            self.diary.push("unmount".into());
            self.next.entry(self.now).or_default().push(Input::Unmounted { left: vec![] });
        }
        fn log(&mut self, _: Level, _: &str) {}
        fn finish(&mut self, ending: Ending) {
            self.diary.push(format!("{ending:?}"));
        }
    }

    #[test]
    fn the_loop_brings_a_machine_from_start_to_power_off() {
        let mut machine = Script::default()
            .at(5, Input::Message(Message::Alive))
            .at(6, Input::Message(Message::Poweroff("the farmer asked".into())));
        run(Supervisor::new(Policy::default()), &mut machine);
        assert_eq!(machine.diary, ["start", "Terminate 42", "Terminate all", "sync", "unmount", "Poweroff"]);
    }

    #[test]
    fn nothing_is_started_or_fed_once_another_thread_ends_the_machine() {
        let script = || {
            let killed = Input::Ended { pid: 42, end: End::Killed(15) };
            Script::default()
                .at(5, Input::Message(Message::Alive))
                .at(31, killed)
                .at(95, Input::Message(Message::Poweroff("the farmer asked".into())))
        };
        let mut machine = Script { fails: Some(Duration::from_secs(31)), ..script() };
        run(Supervisor::new(Policy::default()), &mut machine);
        assert_eq!((machine.diary, machine.feeds), (vec!["start".to_owned()], 4), "up to the failure only");
        assert_eq!(machine.now, Duration::from_secs(91), "and the wait has a limit");
        let mut machine = script();
        run(Supervisor::new(Policy::default()), &mut machine);
        assert_eq!(machine.diary[..2], ["start", "start"], "without a failure");
    }

    #[test]
    fn a_node_that_never_comes_ends_in_an_ordered_restart() {
        let mut machine = Script { starts: vec![Err("no such file".into()); 1_000], ..Script::default() };
        run(Supervisor::new(Policy::default()), &mut machine);
        let starts = machine.diary.iter().filter(|entry| *entry == "start").count();
        assert!((15..40).contains(&starts), "{starts} starts in fifteen minutes");
        assert_eq!(machine.diary[starts..], ["Terminate all", "sync", "unmount", "Reboot"]);
        assert!(machine.now > Duration::from_secs(15 * 60));
    }
}
