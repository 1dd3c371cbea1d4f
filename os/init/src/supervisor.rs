//! The decisions of PID 1 once the machine is up: when node starts again, whether the watchdog is fed, in which
//! order the machine stops. No clock, no system call: inputs and times come in, actions go out.
//!
//! It must never end in a state without a deadline or a living process to wait for, never feed the watchdog for a
//! node that is hung, and never skip a step of the shutdown without saying so.
//!
//! ```text
//!              +------------------- back-off -------------------+
//!              v                                                |
//!   start -> Starting -> Running --- exit, or hung: killed -----+
//!                |          |                   no stable run for 15 minutes
//!                |          | reboot, power-off        |
//!                v          v                          v
//!              StoppingNode (TERM, then KILL) -> StoppingRest (TERM, then KILL) -> Syncing -> Unmounting
//!                                                                -> CountingDown (after a fault) -> Finished
//! ```

use crate::log::Level;
use crate::notify::Message;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Time since boot, monotonic.
pub type Time = Duration;

/// The limits, in one place so that tests and readers see them together.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How long a fresh node may be silent. It reads disks and waits for a network before its main loop turns;
    /// too short, and a slow machine never comes up.
    pub start_grace: Duration,
    /// How long a running node may be silent before it counts as hung and is killed. It promises a message every
    /// five seconds.
    pub heartbeat_limit: Duration,
    /// Pause before the first restart; it doubles with each failure.
    pub backoff_first: Duration,
    /// Longest pause: workloads keep running without node, but nothing heals them.
    pub backoff_max: Duration,
    /// A run of this length forgives all failures before it.
    pub stable_after: Duration,
    /// Without one stable run for this long, the machine restarts: its workloads suffer a restart, but without a
    /// node nobody reports them and nobody is paid.
    pub hopeless_after: Duration,
    /// A killed process that is still there after this is stuck in the kernel; only a restart helps.
    pub kill_limit: Duration,
    /// How long node may take to stop its workloads in order.
    pub stop_node_limit: Duration,
    /// How long all others may take, once asked, and again once killed.
    pub stop_rest_limit: Duration,
    /// A dying disk can block `sync` for ever.
    pub sync_limit: Duration,
    pub unmount_limit: Duration,
    /// How long the reason stays on the screen before the machine restarts by itself.
    pub countdown: Duration,
    /// Well below the watchdog's timeout.
    pub feed_every: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            start_grace: Duration::from_secs(120),
            heartbeat_limit: Duration::from_secs(60),
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            stable_after: Duration::from_secs(120),
            hopeless_after: Duration::from_secs(15 * 60),
            kill_limit: Duration::from_secs(30),
            stop_node_limit: Duration::from_secs(45),
            stop_rest_limit: Duration::from_secs(5),
            sync_limit: Duration::from_secs(30),
            unmount_limit: Duration::from_secs(15),
            countdown: Duration::from_secs(20),
            feed_every: Duration::from_secs(10),
        }
    }
}

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Reboot,
    Poweroff,
    /// On with the kernel that is loaded.
    Kexec,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reboot => "restarting",
            Self::Poweroff => "switching off",
            Self::Kexec => "going on with another release",
        })
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Killed(i32),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with status {code}"),
            Self::Killed(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "was killed by signal {signal} ({name})"),
                None => write!(f, "was killed by signal {signal}"),
            },
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    nix::sys::signal::Signal::try_from(signal).ok().map(nix::sys::signal::Signal::as_str)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Kill,
}

/// What can happen to PID 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The machine is up; node may start.
    Begin,
    /// Answers to [`Action::StartNode`].
    NodeStarted {
        pid: i32,
    },
    NodeNotStarted {
        reason: String,
    },
    /// A process was reaped: node or an orphan.
    Ended {
        pid: i32,
        end: End,
    },
    /// Nothing but PID 1 is left.
    NoProcessLeft,
    Message(Message),
    /// Power button, Ctrl-Alt-Del, a signal.
    Asked {
        ending: Ending,
        by: String,
    },
    /// Answer to [`Action::LoadKernel`]: the file that is loaded, or why it is not.
    Loaded {
        kernel: PathBuf,
        refused: Option<String>,
    },
    Synced,
    /// Mount points that could not be unmounted or made read-only.
    Unmounted {
        left: Vec<String>,
    },
    /// A deadline may have passed.
    Tick,
}

/// What the edge has to do, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    StartNode,
    SignalNode {
        pid: i32,
        signal: Signal,
    },
    SignalEveryone(Signal),
    FeedWatchdog,
    /// Start loading a kernel; `Input::Loaded` answers. A refusal is left where node finds it.
    LoadKernel(PathBuf),
    /// Tell node that this kernel is loaded: from now on it can be asked for.
    TellLoaded(PathBuf),
    /// Start flushing all filesystems; `Input::Synced` answers.
    Sync,
    /// Start unmounting; `Input::Unmounted` answers.
    Unmount,
    Log {
        level: Level,
        text: String,
    },
    /// The last one.
    Finish(Ending),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Before `Begin`.
    Idle,
    /// Node starts at `until`.
    Waiting {
        until: Time,
    },
    /// `StartNode` was given, its answer is due at once.
    Starting,
    Running(Run),
    StoppingNode {
        pid: i32,
        killed: bool,
        deadline: Time,
        next_word: Time,
    },
    StoppingRest {
        killed: bool,
        deadline: Time,
    },
    Syncing {
        deadline: Time,
    },
    Unmounting {
        deadline: Time,
    },
    CountingDown {
        until: Time,
        next_word: Time,
    },
    Finished,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    pid: i32,
    since: Time,
    /// The latest message; `None` until the first.
    heard: Option<Time>,
    ready: bool,
    /// When it was killed for silence.
    killed: Option<Time>,
}

impl Run {
    /// When silence becomes a hang.
    fn silent_until(&self, policy: &Policy) -> Time {
        match self.heard {
            None => self.since + policy.start_grace,
            Some(heard) => (heard + policy.heartbeat_limit).max(self.since + policy.heartbeat_limit),
        }
    }

    fn stable(&self, policy: &Policy, now: Time) -> bool {
        self.heard.is_some() && self.killed.is_none() && now >= self.since + policy.stable_after
    }
}

/// See the module's diagram.
#[derive(Debug)]
pub struct Supervisor {
    policy: Policy,
    phase: Phase,
    /// Failures since the last stable run.
    failures: u32,
    /// When a node last was in a stable run, or the beginning.
    well: Time,
    /// The kernel that a kexec would start.
    loaded: Option<PathBuf>,
    /// What was asked for first; set once.
    ending: Option<(Ending, bool)>,
    next_feed: Time,
    starved: bool,
    actions: Vec<Action>,
}

impl Supervisor {
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            phase: Phase::Idle,
            failures: 0,
            well: Time::ZERO,
            loaded: None,
            ending: None,
            next_feed: Time::ZERO,
            starved: false,
            actions: Vec::new(),
        }
    }

    /// Takes one input and everything that is due by `now`.
    #[must_use = "the actions have to be done"]
    pub fn handle(&mut self, now: Time, input: Input) -> Vec<Action> {
        self.take(now, input);
        self.advance(now);
        self.feed(now);
        std::mem::take(&mut self.actions)
    }

    /// When `Input::Tick` is due at the latest; `None` once all is over.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let own = match &self.phase {
            Phase::Idle | Phase::Starting => None,
            Phase::Waiting { until } => Some(*until),
            Phase::Running(run) => Some(match run.killed {
                Some(killed) => killed + self.policy.kill_limit,
                None => run.silent_until(&self.policy),
            }),
            Phase::StoppingNode { deadline, next_word, .. } => Some(*deadline.min(next_word)),
            Phase::StoppingRest { deadline, .. }
            | Phase::Syncing { deadline }
            | Phase::Unmounting { deadline } => Some(*deadline),
            Phase::CountingDown { until, next_word } => Some(*until.min(next_word)),
            Phase::Finished => return None,
        };
        Some(own.map_or(self.next_feed, |own| own.min(self.next_feed)))
    }

    /// Whether node runs and speaks, or still may be silent.
    #[must_use]
    pub fn healthy(&self, now: Time) -> bool {
        match &self.phase {
            Phase::Running(run) => run.killed.is_none() && now < run.silent_until(&self.policy),
            // Every other phase ends by its own deadline, and a row of failures ends by `hopeless_after`.
            Phase::Finished => false,
            _ => true,
        }
    }

    fn take(&mut self, now: Time, input: Input) {
        match input {
            Input::Begin => {
                if self.phase == Phase::Idle {
                    self.well = now;
                    self.start();
                }
            }
            Input::NodeStarted { pid } => self.started(now, pid),
            Input::NodeNotStarted { reason } => {
                if self.phase == Phase::Starting {
                    self.failed(now, &format!("node can't be started: {reason}"));
                }
            }
            Input::Ended { pid, end } => self.ended(now, pid, end),
            Input::NoProcessLeft => {
                if let Phase::StoppingRest { .. } = self.phase {
                    self.sync(now);
                }
            }
            Input::Message(message) => self.heard(now, message),
            Input::Asked { ending, by } => self.end(now, ending, &by, false),
            Input::Loaded { kernel, refused: None } => {
                self.log(Level::Notice, format!("{} is loaded", kernel.display()));
                self.actions.push(Action::TellLoaded(kernel.clone()));
                self.loaded = Some(kernel);
            }
            Input::Loaded { kernel, refused: Some(reason) } => {
                self.log(Level::Error, format!("{} can't be booted: {reason}", kernel.display()));
                self.loaded = None;
            }
            Input::Synced => {
                if let Phase::Syncing { .. } = self.phase {
                    self.unmount(now);
                }
            }
            Input::Unmounted { left } => {
                if let Phase::Unmounting { .. } = self.phase {
                    if !left.is_empty() {
                        self.log(Level::Error, format!("still mounted at the end: {}", left.join(", ")));
                    }
                    self.count_down(now);
                }
            }
            Input::Tick => {}
        }
    }

    fn advance(&mut self, now: Time) {
        match self.phase.clone() {
            Phase::Waiting { until } if now >= until => self.start(),
            Phase::Running(run) => self.watch(now, run),
            Phase::StoppingNode { pid, killed, deadline, next_word } => {
                self.press_node(now, pid, killed, deadline, next_word);
            }
            Phase::StoppingRest { killed, deadline } if now >= deadline => {
                if killed {
                    self.log(
                        Level::Error,
                        "processes are left that can't be killed: going on without them".into(),
                    );
                    self.sync(now);
                } else {
                    self.actions.push(Action::SignalEveryone(Signal::Kill));
                    self.phase =
                        Phase::StoppingRest { killed: true, deadline: now + self.policy.stop_rest_limit };
                }
            }
            Phase::Syncing { deadline } if now >= deadline => {
                let seconds = self.policy.sync_limit.as_secs();
                self.log(Level::Error, format!("disks did not take all data within {seconds} s: going on"));
                self.unmount(now);
            }
            Phase::Unmounting { deadline } if now >= deadline => {
                let seconds = self.policy.unmount_limit.as_secs();
                self.log(Level::Error, format!("unmounting did not end within {seconds} s: going on"));
                self.count_down(now);
            }
            Phase::CountingDown { until, next_word } => self.count(now, until, next_word),
            _ => {}
        }
    }

    /// A feed that was refused is made up for as soon as node is well again.
    fn feed(&mut self, now: Time) {
        if self.phase == Phase::Finished || (now < self.next_feed && !self.starved) {
            return;
        }
        self.starved = !self.healthy(now);
        if !self.starved {
            self.actions.push(Action::FeedWatchdog);
        }
        if !self.starved || now >= self.next_feed {
            self.next_feed = now + self.policy.feed_every;
        }
    }

    fn start(&mut self) {
        self.phase = Phase::Starting;
        self.actions.push(Action::StartNode);
    }

    fn started(&mut self, now: Time, pid: i32) {
        if self.phase != Phase::Starting {
            return;
        }
        if self.failures == 0 {
            self.log(Level::Info, format!("node runs as process {pid}"));
        } else {
            self.log(Level::Notice, format!("node runs again as process {pid}"));
        }
        self.phase = Phase::Running(Run { pid, since: now, heard: None, ready: false, killed: None });
    }

    fn heard(&mut self, now: Time, message: Message) {
        let Phase::Running(run) = &mut self.phase else { return };
        run.heard = Some(now);
        match message {
            Message::Alive => {}
            Message::Ready if run.ready => {}
            Message::Ready => {
                run.ready = true;
                let seconds = now.saturating_sub(run.since).as_secs_f32();
                self.log(Level::Notice, format!("node is ready after {seconds:.1} s"));
            }
            Message::Reboot(reason) => self.end(now, Ending::Reboot, &format!("node asks: {reason}"), false),
            Message::Poweroff(reason) => {
                self.end(now, Ending::Poweroff, &format!("node asks: {reason}"), false);
            }
            Message::Load(kernel) => self.actions.push(Action::LoadKernel(kernel)),
            Message::Kexec(kernel) if self.loaded.as_ref() == Some(&kernel) => {
                self.end(now, Ending::Kexec, &format!("node asks for {}", kernel.display()), false);
            }
            Message::Kexec(kernel) => {
                self.log(
                    Level::Error,
                    format!("{} is not the kernel that was loaded: nothing ends", kernel.display()),
                );
            }
        }
    }

    fn ended(&mut self, now: Time, pid: i32, end: End) {
        match &self.phase {
            Phase::Running(run) if run.pid == pid => {
                let lived = now.saturating_sub(run.since);
                if run.stable(&self.policy, now) {
                    self.failures = 0;
                    self.well = now;
                }
                let hint = if lived < Duration::from_secs(1) && run.heard.is_none() {
                    " (at once: its own lines above say why)"
                } else {
                    ""
                };
                self.failed(now, &format!("node {end} after {:.1} s{hint}", lived.as_secs_f32()));
            }
            Phase::StoppingNode { pid: node, .. } if *node == pid => {
                self.log(Level::Notice, format!("node {end}"));
                self.stop_rest(now);
            }
            _ => {}
        }
    }

    /// Node is not there: pause, and start again; or give the machine up.
    fn failed(&mut self, now: Time, what: &str) {
        self.failures = self.failures.saturating_add(1);
        if now.saturating_sub(self.well) >= self.policy.hopeless_after {
            self.log(Level::Error, what.into());
            let minutes = self.policy.hopeless_after.as_secs() / 60;
            let reason = format!("node did not run well for {minutes} minutes ({} failures)", self.failures);
            self.end(now, Ending::Reboot, &reason, true);
            return;
        }
        let doublings = (self.failures - 1).min(16);
        let pause = (self.policy.backoff_first * 2_u32.pow(doublings)).min(self.policy.backoff_max);
        self.log(Level::Error, format!("{what}: start {} in {} s", self.failures + 1, pause.as_secs()));
        self.phase = Phase::Waiting { until: now + pause };
    }

    /// Kills a node that is silent for too long.
    fn watch(&mut self, now: Time, run: Run) {
        if run.stable(&self.policy, now) {
            self.failures = 0;
            self.well = now;
        }
        match run.killed {
            None if now >= run.silent_until(&self.policy) => {
                let silent = now.saturating_sub(run.heard.unwrap_or(run.since)).as_secs();
                self.log(Level::Error, format!("node hangs, silent for {silent} s: killing it"));
                self.actions.push(Action::SignalNode { pid: run.pid, signal: Signal::Kill });
                self.phase = Phase::Running(Run { killed: Some(now), ..run });
            }
            Some(killed) if now >= killed + self.policy.kill_limit => {
                self.end(now, Ending::Reboot, "node is stuck in the kernel and can't be killed", true);
            }
            _ => {}
        }
    }

    fn end(&mut self, now: Time, ending: Ending, reason: &str, fault: bool) {
        if let Some((ending, _)) = self.ending {
            self.log(Level::Notice, format!("already {ending}, so this changes nothing: {reason}"));
            return;
        }
        self.ending = Some((ending, fault));
        let level = if fault { Level::Critical } else { Level::Notice };
        self.log(level, format!("{ending}: {reason}"));
        match &self.phase {
            Phase::Running(run) if run.killed.is_none() => {
                let pid = run.pid;
                self.actions.push(Action::SignalNode { pid, signal: Signal::Terminate });
                self.phase = Phase::StoppingNode {
                    pid,
                    killed: false,
                    deadline: now + self.policy.stop_node_limit,
                    next_word: now + Duration::from_secs(5),
                };
            }
            _ => self.stop_rest(now),
        }
    }

    fn press_node(&mut self, now: Time, pid: i32, killed: bool, deadline: Time, next_word: Time) {
        if now >= deadline && killed {
            self.log(Level::Error, "node is stuck in the kernel: going on without it".into());
            self.stop_rest(now);
        } else if now >= deadline {
            let seconds = self.policy.stop_node_limit.as_secs();
            self.log(Level::Error, format!("node did not stop within {seconds} s: killing it"));
            self.actions.push(Action::SignalNode { pid, signal: Signal::Kill });
            let deadline = now + self.policy.stop_rest_limit;
            self.phase = Phase::StoppingNode { pid, killed: true, deadline, next_word: deadline };
        } else if now >= next_word {
            let left = deadline.saturating_sub(now).as_secs();
            self.log(Level::Notice, format!("waiting for node to stop its workloads, {left} s left"));
            self.phase =
                Phase::StoppingNode { pid, killed, deadline, next_word: next_word + Duration::from_secs(5) };
        }
    }

    fn stop_rest(&mut self, now: Time) {
        self.actions.push(Action::SignalEveryone(Signal::Terminate));
        self.phase = Phase::StoppingRest { killed: false, deadline: now + self.policy.stop_rest_limit };
    }

    fn sync(&mut self, now: Time) {
        self.actions.push(Action::Sync);
        self.phase = Phase::Syncing { deadline: now + self.policy.sync_limit };
    }

    fn unmount(&mut self, now: Time) {
        self.actions.push(Action::Unmount);
        self.phase = Phase::Unmounting { deadline: now + self.policy.unmount_limit };
    }

    /// After a fault the reason stays readable for a while; otherwise the end comes at once.
    fn count_down(&mut self, now: Time) {
        if let Some((_, true)) = self.ending {
            self.phase = Phase::CountingDown { until: now + self.policy.countdown, next_word: now };
            self.advance(now);
        } else {
            self.finish();
        }
    }

    fn count(&mut self, now: Time, until: Time, next_word: Time) {
        if now >= until {
            self.finish();
        } else if now >= next_word {
            let ending = self.ending.map_or(Ending::Reboot, |(ending, _)| ending);
            let left = until.saturating_sub(now).as_secs();
            self.log(Level::Critical, format!("{ending} in {left} s"));
            let step = Duration::from_secs(if left > 5 { 5 } else { 1 });
            self.phase = Phase::CountingDown { until, next_word: now + step };
        }
    }

    fn finish(&mut self) {
        let ending = self.ending.map_or(Ending::Reboot, |(ending, _)| ending);
        self.log(Level::Notice, format!("{ending} now"));
        self.actions.push(Action::Finish(ending));
        self.phase = Phase::Finished;
    }

    fn log(&mut self, level: Level, text: String) {
        self.actions.push(Action::Log { level, text: format!("croft: {text}") });
    }
}

#[cfg(test)]
mod tests;
