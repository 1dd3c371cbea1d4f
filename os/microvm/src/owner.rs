//! The one task that owns one VM.
//!
//! ```text
//!            ┌──────────────────────── back-off ◄──────────────────────┐
//!            ▼                                                         │
//!        Preparing ──> Starting ──> Running ──> Stopping ──(policy)────┤
//!            │             │                        ▲                  ▼
//!            └─ failed ────┴── died, hung, stop ────┘                Ended
//! ```
//!
//! - Preparing: checks files; makes directory, control group, sockets; starts virtiofsd and the VMM.
//! - Starting: boots the machine; waits for the guest's hello and its entry point.
//! - Running: watches processes, VMM, guest and health.
//! - Stopping: asks guest, then VMM, then kills; removes everything.
//!
//! Each phase is a struct that lives as long as the phase; [`Life`] is what passes from one to the next.
//!
//! Must never leave a process, group, socket or directory behind, whatever happened, and never wait without
//! a limit for anything that a guest or a VMM does.

mod life;

use std::sync::Arc;
use std::time::Duration;

use croft_guest::wire::HealthState;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::Release;
use crate::cgroup::CgroupRoot;
use crate::clock::wall_ms;
use crate::guest::GuestEvent;
use crate::logs::Logs;
use crate::policy::{Decision, PingTracker, RestartHistory};
use crate::settings::VmmSettings;
use crate::spec::VmSpec;
use crate::status::{BootTimings, EndCause, Health, Phase, VmStatus};
use crate::vmm::Vmm;

use life::{Life, LifeEvent, ProcessKind};

/// Lines of the guest's console in a message.
const CONSOLE_TAIL_BYTES: usize = 1024;
/// Between the end of a helper and the end of the VMM that caused it.
const SETTLE: Duration = Duration::from_secs(2);
/// Grace when nobody holds the VM any more.
const ABANDONED_GRACE: Duration = Duration::from_secs(10);

/// What the owner can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// End for good. Legal in every phase; a later one may shorten the grace.
    Stop { grace: Duration },
}

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) settings: Arc<VmmSettings>,
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) cgroups: CgroupRoot,
    pub(crate) spec: VmSpec,
    pub(crate) slot: u16,
    pub(crate) logs: Logs,
    pub(crate) console: Logs,
    pub(crate) status: watch::Sender<VmStatus>,
}

/// The queue, with the end of all handles turned into one last command.
#[derive(Debug)]
pub(crate) struct Commands {
    queue: mpsc::Receiver<Command>,
    abandoned: bool,
}

impl Commands {
    /// Cancel-safe.
    async fn next(&mut self) -> Command {
        if self.abandoned {
            return std::future::pending().await;
        }
        self.queue.recv().await.unwrap_or_else(|| {
            self.abandoned = true;
            Command::Stop { grace: ABANDONED_GRACE }
        })
    }
}

/// Why a phase ended, and what is asked of the guest before it goes.
#[derive(Debug)]
struct Ending {
    cause: EndCause,
    /// Stop signal first, with so much time.
    grace: Option<Duration>,
}

impl Ending {
    fn now(cause: EndCause) -> Self {
        Self { cause, grace: None }
    }
}

impl Owner {
    /// Runs the VM until it ends for good.
    pub(crate) async fn run(self, queue: mpsc::Receiver<Command>, release: Release) {
        let mut commands = Commands { queue, abandoned: false };
        let mut history = RestartHistory::default();
        let cause = loop {
            let (cause, ran) = self.live(&mut commands).await;
            self.note(&cause);
            let Decision::RestartAfter(delay) = history.decide(self.spec.restart, &cause, ran) else {
                break cause;
            };
            self.status.send_modify(|status| {
                status.phase = Phase::BackingOff;
                status.since_ms = wall_ms();
                status.last_end = Some(cause.clone());
                status.backoff = Some(delay);
            });
            tokio::select! {
                () = sleep_until(Instant::now() + delay) => {}
                Command::Stop { .. } = commands.next() => break EndCause::Stopped,
            }
            self.status.send_modify(|status| {
                status.phase = Phase::Preparing;
                status.since_ms = wall_ms();
                status.restarts += 1;
                status.backoff = None;
                status.health.clear();
            });
        };
        self.logs.close();
        self.console.close();
        // Before the status, so that whoever waits for the end can start it again at once.
        drop(release);
        self.status.send_modify(|status| {
            status.phase = Phase::Ended;
            status.since_ms = wall_ms();
            status.last_end = Some(cause);
        });
    }

    fn note(&self, cause: &EndCause) {
        tracing::info!(vm = %self.spec.id, %cause, "VM ended");
        if !cause.is_success() {
            self.logs.finish_lines();
            self.logs.note(&cause.to_string());
        }
    }

    fn enter(&self, phase: Phase) {
        tracing::debug!(vm = %self.spec.id, %phase, "VM phase");
        self.status.send_modify(|status| {
            status.phase = phase;
            status.since_ms = wall_ms();
        });
    }

    /// One life; returns why it ended and how long the entry point ran.
    async fn live(&self, commands: &mut Commands) -> (EndCause, Duration) {
        let mut life = Life::new(self);
        let mut started = None;
        let ending = self.phases(&mut life, commands, &mut started).await.unwrap_or_else(|ending| ending);
        let ran = started.map_or(Duration::ZERO, |started: Instant| started.elapsed());
        self.enter(Phase::Stopping);
        let cause = Stopping { owner: self, life, ending }.run(commands).await;
        (cause, ran)
    }

    async fn phases(
        &self,
        life: &mut Life,
        commands: &mut Commands,
        started: &mut Option<Instant>,
    ) -> Result<Ending, Ending> {
        let began = Instant::now();
        Preparing { owner: self, life }.run()?;
        self.enter(Phase::Starting);
        Starting { owner: self, life, began }.run(commands).await?;
        self.enter(Phase::Running);
        *started = Some(Instant::now());
        Ok(Running { owner: self, life }.run(commands).await)
    }

    fn console_tail(&self) -> String {
        self.console.finish_lines();
        self.console.tail(CONSOLE_TAIL_BYTES)
    }

    /// What a guest's event means when it ends the VM; `None` when it does not.
    fn cause_of_event(&self, event: &GuestEvent) -> Option<EndCause> {
        match event {
            GuestEvent::Exited(report) => {
                Some(EndCause::Exited { exit: report.exit, out_of_memory: report.out_of_memory })
            }
            GuestEvent::Failed { step, reason } => {
                Some(EndCause::GuestFailed { step: *step, reason: reason.clone() })
            }
            GuestEvent::Restarted => Some(EndCause::GuestRestarted { console: self.console_tail() }),
            GuestEvent::Misbehaved { reason } => Some(EndCause::GuestMisbehaved { reason: reason.clone() }),
            GuestEvent::Silent { silent } => Some(EndCause::GuestHung { silent: *silent }),
            GuestEvent::Hello { .. }
            | GuestEvent::Disconnected
            | GuestEvent::Started { .. }
            | GuestEvent::Health(_) => None,
        }
    }
}

/// What the end of a process means.
fn cause_of_end(life: &Life, kind: &ProcessKind, ended: crate::process::Ended) -> EndCause {
    if life.was_out_of_memory() {
        return EndCause::OutOfMemory;
    }
    match kind {
        ProcessKind::Vmm => EndCause::VmmDied { status: ended.status, last_lines: ended.last_lines },
        ProcessKind::Helper(name) => {
            EndCause::HelperDied { name: name.clone(), status: ended.status, last_lines: ended.last_lines }
        }
    }
}

/// A process ended; finds out why. A helper also ends, cleanly, because the VMM did, and the guest's last words
/// may still be on their way.
async fn process_ended(
    owner: &Owner,
    life: &mut Life,
    kind: ProcessKind,
    ended: crate::process::Ended,
    commands: &mut Commands,
) -> Ending {
    let broken_helper = kind != ProcessKind::Vmm && !ended.clean;
    let mut cause = cause_of_end(life, &kind, ended);
    let deadline = Instant::now() + SETTLE;
    while life.vmm_is_running() || !life.guest_has_left() {
        tokio::select! {
            event = life.next(commands) => match event {
                LifeEvent::Guest(event) => if let Some(told) = owner.cause_of_event(&event) {
                    return Ending::now(told);
                },
                // A VMM that a broken helper took along is not the culprit.
                LifeEvent::Ended(ProcessKind::Vmm, ended) if !broken_helper => {
                    cause = cause_of_end(life, &ProcessKind::Vmm, ended);
                }
                LifeEvent::Ended(..) => {}
                LifeEvent::Command(Command::Stop { .. }) => return Ending::now(EndCause::Stopped),
            },
            () = sleep_until(deadline) => break,
        }
    }
    Ending::now(cause)
}

struct Preparing<'a> {
    owner: &'a Owner,
    life: &'a mut Life,
}

impl Preparing<'_> {
    fn run(self) -> Result<(), Ending> {
        let failed = |error| Ending::now(EndCause::NotStarted { reason: crate::error_chain(&error) });
        self.life.prepare(self.owner).map_err(failed)
    }
}

struct Starting<'a> {
    owner: &'a Owner,
    life: &'a mut Life,
    began: Instant,
}

impl Starting<'_> {
    async fn run(mut self, commands: &mut Commands) -> Result<(), Ending> {
        let limits = self.owner.settings.limits;
        let mut timings = BootTimings { spawned: self.began.elapsed(), ..BootTimings::default() };
        self.boot(commands).await?;
        timings.booted = self.began.elapsed();
        let hello = |event: &GuestEvent| matches!(event, GuestEvent::Hello { .. });
        self.until(commands, "say hello", limits.hello, hello).await?;
        timings.hello = self.began.elapsed();
        let running = |event: &GuestEvent| matches!(event, GuestEvent::Started { .. });
        let event = self.until(commands, "start its entry point", limits.started, running).await?;
        timings.started = self.began.elapsed();
        if let GuestEvent::Started { boot } = event {
            timings.guest_boot = boot;
        }
        self.owner.status.send_modify(|status| status.timings = Some(timings));
        Ok(())
    }

    async fn boot(&mut self, commands: &mut Commands) -> Result<(), Ending> {
        let owner = self.owner;
        let (api, machine) = (self.life.api_socket(), self.life.machine());
        let boot = owner.vmm.boot(&api, &machine, owner.settings.limits.boot);
        tokio::select! {
            result = boot => match result {
                Ok(()) => Ok(()),
                Err(error) => {
                    // A VMM that dies takes its answer with it; its last words say more.
                    let died = self.life.process_end(SETTLE).await;
                    Err(Ending::now(match died {
                        Some((kind, ended)) => cause_of_end(self.life, &kind, ended),
                        None => EndCause::NotStarted { reason: crate::error_chain(&error) },
                    }))
                }
            },
            (kind, ended) = self.life.any_process_end() => {
                Err(Ending::now(cause_of_end(self.life, &kind, ended)))
            }
            Command::Stop { .. } = commands.next() => Err(Ending::now(EndCause::Stopped)),
        }
    }

    /// Waits for an event of the guest.
    async fn until(
        &mut self,
        commands: &mut Commands,
        what: &'static str,
        limit: Duration,
        wanted: impl Fn(&GuestEvent) -> bool,
    ) -> Result<GuestEvent, Ending> {
        let deadline = Instant::now() + limit;
        loop {
            let event = tokio::select! {
                event = self.life.next(commands) => event,
                () = sleep_until(deadline) => {
                    let console = self.owner.console_tail();
                    return Err(Ending::now(EndCause::GuestLate { what, waited: limit, console }));
                }
            };
            match event {
                LifeEvent::Guest(event) if wanted(&event) => return Ok(event),
                LifeEvent::Guest(event) => {
                    if let Some(cause) = self.owner.cause_of_event(&event) {
                        return Err(Ending::now(cause));
                    }
                }
                LifeEvent::Ended(kind, ended) => {
                    return Err(process_ended(self.owner, self.life, kind, ended, commands).await);
                }
                LifeEvent::Command(Command::Stop { grace }) => {
                    return Err(Ending { cause: EndCause::Stopped, grace: Some(grace) });
                }
            }
        }
    }
}

struct Running<'a> {
    owner: &'a Owner,
    life: &'a mut Life,
}

impl Running<'_> {
    async fn run(self, commands: &mut Commands) -> Ending {
        let limits = self.owner.settings.limits;
        let mut tracker = PingTracker::new(limits.ping_misses);
        let mut pings = self.life.start_pings(self.owner);
        loop {
            let event = tokio::select! {
                event = self.life.next(commands) => event,
                Some(answer) = pings.recv() => {
                    if tracker.observe(answer.is_ok()) {
                        let reason = answer.err().unwrap_or_default();
                        return Ending::now(EndCause::VmmHung { reason });
                    }
                    continue;
                }
            };
            match event {
                LifeEvent::Guest(GuestEvent::Health(report)) => {
                    if let Some(ending) = self.judge(report) {
                        return ending;
                    }
                }
                LifeEvent::Guest(event) => {
                    if let Some(cause) = self.owner.cause_of_event(&event) {
                        return Ending::now(cause);
                    }
                }
                LifeEvent::Ended(kind, ended) => {
                    return process_ended(self.owner, self.life, kind, ended, commands).await;
                }
                LifeEvent::Command(Command::Stop { grace }) => {
                    return Ending { cause: EndCause::Stopped, grace: Some(grace) };
                }
            }
        }
    }

    fn judge(&self, report: croft_guest::wire::HealthReport) -> Option<Ending> {
        // Names come from the guest: only those that were configured may take memory here.
        if !self.owner.spec.guest.health.iter().any(|check| check.name == report.check) {
            return None;
        }
        tracing::info!(vm = %self.owner.spec.id, check = report.check, state = ?report.state, "health changed");
        self.owner.status.send_modify(|status| {
            let health = Health { state: report.state, detail: report.detail.clone() };
            status.health.insert(report.check.clone(), health);
        });
        let unhealthy = report.state == HealthState::Unhealthy && self.owner.spec.restart_unhealthy;
        let cause = EndCause::Unhealthy { check: report.check, detail: report.detail };
        unhealthy.then_some(Ending { cause, grace: Some(ABANDONED_GRACE) })
    }
}

struct Stopping<'a> {
    owner: &'a Owner,
    life: Life,
    ending: Ending,
}

impl Stopping<'_> {
    async fn run(mut self, commands: &mut Commands) -> EndCause {
        let limits = self.owner.settings.limits;
        if let Some(grace) = self.ending.grace {
            self.life.stop_guest(grace).await;
            self.wait_for_end(grace + limits.power_off, commands).await;
        } else if matches!(self.ending.cause, EndCause::Exited { .. } | EndCause::GuestFailed { .. }) {
            // It powers off by itself, when its file systems are clean.
            self.wait_for_end(limits.power_off, commands).await;
        }
        let reachable = !matches!(self.ending.cause, EndCause::VmmHung { .. });
        if self.life.vmm_is_running() && reachable {
            if let Err(error) = self.owner.vmm.power_off(&self.life.api_socket(), limits.ping).await {
                tracing::debug!(vm = %self.owner.spec.id, error = crate::error_chain(&error), "power off");
            }
            self.wait_for_end(Duration::from_secs(1), commands).await;
        }
        self.life.remove(self.owner).await;
        self.ending.cause
    }

    /// Waits for the end of the VMM; another stop command may shorten it.
    async fn wait_for_end(&mut self, limit: Duration, commands: &mut Commands) {
        let mut deadline = Instant::now() + limit;
        while self.life.vmm_is_running() {
            let event = tokio::select! {
                event = self.life.next(commands) => event,
                () = sleep_until(deadline) => return,
            };
            match event {
                LifeEvent::Command(Command::Stop { grace }) => {
                    self.ending.cause = EndCause::Stopped;
                    self.life.stop_guest(grace).await;
                    deadline = deadline.min(Instant::now() + grace + self.owner.settings.limits.power_off);
                }
                LifeEvent::Ended(ProcessKind::Vmm, _) => return,
                LifeEvent::Ended(..) | LifeEvent::Guest(_) => {}
            }
        }
    }
}
