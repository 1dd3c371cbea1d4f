//! What a VM's owner tells everybody else: phase, reason of the last end, health, timings.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use croft_guest::wire::{Exit, HealthState, Step};

/// Where a VM is in its life: preparing, starting, running, stopping, then backing off and preparing again, or
/// ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Files, control group, sockets and helper processes are being made.
    Preparing,
    /// The VMM runs; the guest boots.
    Starting,
    /// The entry point runs.
    Running,
    /// It is being ended.
    Stopping,
    /// It ended and will be started again.
    BackingOff,
    /// It ended for good; nothing of it is left.
    Ended,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::BackingOff => "backing off",
            Self::Ended => "ended",
        })
    }
}

/// Why a VM ended, in words for its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndCause {
    /// Somebody asked for it.
    Stopped,
    /// The entry point ended.
    Exited { exit: Exit, out_of_memory: bool },
    /// The guest could not run the workload.
    GuestFailed { step: Step, reason: String },
    /// It never got as far as a running VMM.
    NotStarted { reason: String },
    /// The guest did not get as far as it had to in time.
    GuestLate { what: &'static str, waited: Duration, console: String },
    /// The VMM process ended by itself.
    VmmDied { status: String, last_lines: String },
    /// The VMM does not answer.
    VmmHung { reason: String },
    /// The guest does not answer.
    GuestHung { silent: Duration },
    /// The guest kernel restarted underneath its owner.
    GuestRestarted { console: String },
    /// The guest speaks something that its host does not accept.
    GuestMisbehaved { reason: String },
    /// A helper process (virtiofsd) ended while the VM needed it.
    HelperDied { name: String, status: String, last_lines: String },
    /// A health check failed and the policy restarts unhealthy VMs.
    Unhealthy { check: String, detail: String },
    /// The host's control group killed it for want of memory.
    OutOfMemory,
}

impl EndCause {
    /// True when the entry point did what it was meant to.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Stopped | Self::Exited { exit: Exit::Code(0), out_of_memory: false })
    }
}

impl fmt::Display for EndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail = |f: &mut fmt::Formatter<'_>, what: &str, lines: &str| {
            if lines.is_empty() { Ok(()) } else { write!(f, "; {what}:\n{lines}") }
        };
        match self {
            Self::Stopped => f.write_str("stopped as asked"),
            Self::Exited { exit, out_of_memory: false } => write!(f, "the entry point ended with {exit}"),
            Self::Exited { exit, out_of_memory: true } => {
                write!(f, "the entry point ran out of memory and ended with {exit}: give the workload more memory")
            }
            Self::GuestFailed { step, reason } => write!(f, "the guest failed at {step}: {reason}"),
            Self::NotStarted { reason } => write!(f, "it could not be started: {reason}"),
            Self::GuestLate { what, waited, console } => {
                write!(f, "the guest did not {what} in {} s", waited.as_secs())?;
                tail(f, "last lines of its console", console)
            }
            Self::VmmDied { status, last_lines } => {
                write!(f, "the VMM ended with {status}")?;
                tail(f, "its last lines", last_lines)
            }
            Self::VmmHung { reason } => write!(f, "the VMM does not answer: {reason}"),
            Self::GuestHung { silent } => write!(f, "the guest has been silent for {} s", silent.as_secs()),
            Self::GuestRestarted { console } => {
                f.write_str("the guest kernel restarted by itself")?;
                tail(f, "last lines of its console", console)
            }
            Self::GuestMisbehaved { reason } => write!(f, "the guest broke the protocol: {reason}"),
            Self::HelperDied { name, status, last_lines } => {
                write!(f, "{name} ended with {status}")?;
                tail(f, "its last lines", last_lines)
            }
            Self::Unhealthy { check, detail } => write!(f, "health check {check} failed: {detail}"),
            Self::OutOfMemory => f.write_str(
                "the VM exceeded the host memory set aside for it: raise the allowance for the VMM, or give it more",
            ),
        }
    }
}

/// How long the parts of the last start took, from the decision to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BootTimings {
    /// Until the VMM process was started in its jail.
    pub spawned: Duration,
    /// Until the VMM accepted the machine and runs it.
    pub booted: Duration,
    /// Until the guest's PID 1 said hello.
    pub hello: Duration,
    /// Until the entry point ran.
    pub started: Duration,
    /// Of these, what the guest kernel and PID 1 counted themselves.
    pub guest_boot: Duration,
}

/// The verdict of one health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub state: HealthState,
    /// Why; empty when healthy.
    pub detail: String,
}

/// One consistent picture of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmStatus {
    pub phase: Phase,
    /// When the phase began, milliseconds since 1970.
    pub since_ms: u64,
    /// Starts after the first one.
    pub restarts: u32,
    /// Why the VM ended the last time it did.
    pub last_end: Option<EndCause>,
    /// By name of the check; empty until the first verdict.
    pub health: BTreeMap<String, Health>,
    /// Of the present or last run.
    pub timings: Option<BootTimings>,
    /// Wait before the next start, while backing off.
    pub backoff: Option<Duration>,
}

impl VmStatus {
    /// True while the entry point runs and no health check says otherwise.
    pub fn is_healthy(&self) -> bool {
        self.phase == Phase::Running
            && self.health.values().all(|health| health.state != HealthState::Unhealthy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_name_the_culprit_and_show_what_it_said_last() {
        let cause = EndCause::VmmDied { status: "exit status: 1".into(), last_lines: "no such disk".into() };
        assert_eq!(cause.to_string(), "the VMM ended with exit status: 1; its last lines:\nno such disk");
        let cause = EndCause::GuestLate {
            what: "say hello",
            waited: Duration::from_secs(60),
            console: String::new(),
        };
        assert_eq!(cause.to_string(), "the guest did not say hello in 60 s");
        let cause = EndCause::GuestFailed { step: Step::RootImage, reason: "it does not match".into() };
        assert_eq!(cause.to_string(), "the guest failed at root image: it does not match");
    }

    #[test]
    fn only_an_orderly_end_is_a_success() {
        let exited = |code, out_of_memory| EndCause::Exited { exit: Exit::Code(code), out_of_memory };
        assert!(exited(0, false).is_success() && EndCause::Stopped.is_success());
        assert!(!exited(1, false).is_success() && !exited(0, true).is_success());
        assert!(!EndCause::OutOfMemory.is_success());
    }
}
