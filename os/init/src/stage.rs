//! The boot as one list of eleven stages, logged in one format by init and node alike.
//!
//! ```text
//! croft: stage 3/11 entropy: ok in 12 ms
//! croft: stage 4/11 devices: ok in 130 ms: disks vda; network cards eth0 (virtio_net)
//! croft: stage 5/11 network: waiting: no carrier on eth0
//! croft: stage 5/11 network: failed in 10003 ms: no carrier on eth0: check the cable
//! ```
//!
//! A stage that was begun must be finished with [`Running::ok`] or [`Running::failed`]; one that is dropped
//! unfinished reports itself as abandoned, so that no stage ever ends without a word.

use crate::log::{Level, Log, chain};
use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

/// The stages in their order. Init does the first four, node the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Mounts,
    Clock,
    Entropy,
    Devices,
    Network,
    Inventory,
    Disks,
    Identity,
    Ledger,
    Register,
    Reconcile,
}

impl Stage {
    pub const ALL: [Self; 11] = [
        Self::Mounts,
        Self::Clock,
        Self::Entropy,
        Self::Devices,
        Self::Network,
        Self::Inventory,
        Self::Disks,
        Self::Identity,
        Self::Ledger,
        Self::Register,
        Self::Reconcile,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mounts => "mounts",
            Self::Clock => "clock",
            Self::Entropy => "entropy",
            Self::Devices => "devices",
            Self::Network => "network",
            Self::Identity => "identity",
            Self::Inventory => "inventory",
            Self::Disks => "disks",
            Self::Ledger => "ledger",
            Self::Register => "register",
            Self::Reconcile => "reconcile",
        }
    }

    /// 1 for the first.
    #[must_use]
    pub fn number(self) -> usize {
        self as usize + 1
    }

    /// Starts the stage's clock. The start itself goes to the ring buffer only.
    pub fn begin(self, log: &dyn Log) -> Running<'_> {
        self.begin_at(log, Instant::now())
    }

    /// Like [`Stage::begin`], for a stage that began before this process did.
    pub fn begin_at(self, log: &dyn Log, started: Instant) -> Running<'_> {
        log.line(Level::Info, &format!("croft: {self}: started"));
        Running { stage: self, log, started, finished: false }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stage {}/{} {}", self.number(), Self::ALL.len(), self.name())
    }
}

/// A stage that runs.
#[must_use = "a stage ends with `ok` or `failed`"]
pub struct Running<'a> {
    stage: Stage,
    log: &'a dyn Log,
    started: Instant,
    finished: bool,
}

impl Running<'_> {
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Says what the stage waits for, so that a boot which takes long shows why while it lasts.
    pub fn waiting(&self, why: &str) {
        self.log.line(Level::Notice, &format!("croft: {}: waiting: {why}", self.stage));
    }

    /// Ends the stage well. `detail` may be empty.
    pub fn ok(mut self, detail: &str) -> Duration {
        self.finish(Level::Notice, "ok", detail)
    }

    /// Ends the stage with the whole chain of causes; the error's text should end with the remedy.
    pub fn failed(mut self, error: &(dyn Error + 'static)) -> Duration {
        self.finish(Level::Error, "failed", &chain(error))
    }

    /// Like [`Running::failed`], where the reason is text already.
    pub fn failed_because(mut self, reason: &str) -> Duration {
        self.finish(Level::Error, "failed", reason)
    }

    fn finish(&mut self, level: Level, verdict: &str, detail: &str) -> Duration {
        self.finished = true;
        let took = self.started.elapsed();
        self.log.line(level, &line(self.stage, verdict, took, detail));
        took
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.finish(Level::Error, "failed", "abandoned before it ended");
        }
    }
}

impl fmt::Debug for Running<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("stage", &self.stage)
            .field("started", &self.started)
            .finish_non_exhaustive()
    }
}

fn line(stage: Stage, verdict: &str, took: Duration, detail: &str) -> String {
    let separator = if detail.is_empty() { "" } else { ": " };
    format!("croft: {stage}: {verdict} in {} ms{separator}{detail}", took.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Recorded;

    #[test]
    fn stages_are_numbered_in_the_order_of_the_boot() {
        let names: Vec<String> = Stage::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(names[0], "stage 1/11 mounts");
        assert_eq!(names[4], "stage 5/11 network");
        assert_eq!(names[10], "stage 11/11 reconcile");
        assert!(Stage::ALL.is_sorted());
    }

    #[test]
    fn results_read_as_the_format_promises() {
        assert_eq!(
            line(Stage::Entropy, "ok", Duration::from_millis(12), ""),
            "croft: stage 3/11 entropy: ok in 12 ms"
        );
        let reason = "no carrier on eth0: check the cable";
        assert_eq!(
            line(Stage::Network, "failed", Duration::from_millis(10_003), reason),
            "croft: stage 5/11 network: failed in 10003 ms: no carrier on eth0: check the cable"
        );
    }

    #[test]
    fn a_failed_stage_names_every_cause() {
        #[derive(Debug, thiserror::Error)]
        #[error("/dev/vda can't be read: replace the disk")]
        struct Unreadable(#[source] std::io::Error);
        let log = Recorded::default();
        let _ = Stage::Disks.begin(&log).failed(&Unreadable(std::io::Error::other("input/output error")));
        let last = log.lines().pop().unwrap();
        assert!(last.starts_with("croft: stage 7/11 disks: failed in "), "{last}");
        assert!(
            last.ends_with(" ms: /dev/vda can't be read: replace the disk: input/output error"),
            "{last}"
        );
    }

    #[test]
    fn a_stage_that_is_forgotten_still_reports() {
        let log = Recorded::default();
        drop(Stage::Ledger.begin(&log));
        assert!(log.lines().pop().unwrap().ends_with("abandoned before it ended"));
    }

    #[test]
    fn a_finished_stage_reports_once() {
        let log = Recorded::default();
        let running = Stage::Clock.begin(&log);
        running.waiting("the real-time clock");
        let _ = running.ok("from rtc0");
        let lines = log.lines();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[1], "croft: stage 2/11 clock: waiting: the real-time clock");
    }
}
