//! What a node remembers of upgrades over its boots: one small document on the data disk, replaced as a whole.
//!
//! ```text
//!            arm                 at_start (new release)        confirm
//!   no trial ───> Trial(Armed) ─────────────────────> Running ────────> confirmed, told
//!                    │                                   │ fail
//!                    │ at_start (old release)            v
//!                    └────────> given up, told <───── Failed   (at_start, old release)
//!                                                       │ at_start (still the new release: restart)
//!                                                       v
//!                    given up <────────────────────── Left     (at_start, again the new one: the medium has it)
//! ```
//! Every step is written before anything happens that depends on it, so that a power cut at any point leaves a journal
//! that says what to do: on with it, or back. It must never forget what was given up or the highest version confirmed.

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::release::{BootFile, Outcome, Release};
use croft_protocol::{Name, ReleaseId, ReleaseVersion, limits};

/// Starts of the node's agent within one trial: init starts it again when it ends, and that is no sign of health.
pub const TRIAL_STARTS: u8 = 3;
/// Boots in a row by which the confirmed release was to be reached from the one on the medium without getting there.
pub const RESUMES: u8 = 3;
/// Releases that are remembered as bad. The ledger offers one at a time, and never an older one again.
const GIVEN_UP: usize = 32;
/// Outcomes that wait for the ledger.
const UNTOLD: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize)]
pub struct Journal {
    /// The highest version that ran well here. Nothing below it is tried.
    pub confirmed: Option<Installed>,
    pub trial: Option<Trial>,
    /// Oldest first.
    pub given_up: Vec<ReleaseId>,
    /// Oldest first.
    pub untold: Vec<Told>,
    /// Attempts to reach `confirmed` since it last ran well.
    pub resumes: u8,
}

/// A release whose boot file is on the data disk.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Installed {
    pub channel: Name,
    pub version: ReleaseVersion,
    pub boot_file: BootFile,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Trial {
    pub of: Installed,
    pub phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Phase {
    /// The machine is about to boot it.
    Armed,
    /// It runs; so many times its agent was started.
    Running { starts: u8 },
    /// It is not to run any more; why.
    Failed { reason: String },
    /// The machine restarts for no other reason than to leave it.
    Left { reason: String },
}

/// What the ledger has to hear.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Told {
    pub channel: Name,
    pub version: ReleaseVersion,
    pub outcome: Outcome,
}

/// What a boot begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    Normal,
    /// The release that runs is on trial.
    Trial,
    /// The trial has failed, and its release still runs: restart the machine, which boots what is on its medium.
    GoBack {
        reason: String,
    },
    /// The trial has failed, and the machine's medium has the same release: there is none to go back to.
    NoWayBack {
        reason: String,
    },
    /// The medium has an older release than the one that was confirmed: go on with that one.
    Resume(Installed),
}

impl Installed {
    #[must_use]
    pub fn of(release: &Release) -> Self {
        Self {
            channel: release.channel.clone(),
            version: release.version,
            boot_file: release.boot_file.clone(),
        }
    }

    #[must_use]
    pub fn id(&self) -> ReleaseId {
        ReleaseId::new(&self.channel, self.version)
    }
}

impl Journal {
    /// What to begin with where `running` is the release of this boot; `None` for one without a version, such as a
    /// developer's. The changed journal must be durable before anything is done about it.
    #[must_use]
    pub fn at_start(&mut self, running: Option<ReleaseVersion>) -> Start {
        if let Some(trial) = &mut self.trial {
            if running == Some(trial.of.version) {
                let starts = match &trial.phase {
                    Phase::Armed => 1,
                    Phase::Running { starts } => starts.saturating_add(1),
                    Phase::Failed { reason } => {
                        let reason = reason.clone();
                        trial.phase = Phase::Left { reason: reason.clone() };
                        return Start::GoBack { reason };
                    }
                    Phase::Left { reason } => {
                        let (reason, id) = (reason.clone(), trial.of.id());
                        // The ledger is not told: a node has not returned from what it runs.
                        self.trial = None;
                        self.never_again(id);
                        return Start::NoWayBack { reason };
                    }
                };
                if starts > TRIAL_STARTS {
                    let reason = format!("its agent ended {TRIAL_STARTS} times before it was confirmed");
                    trial.phase = Phase::Failed { reason: reason.clone() };
                    return Start::GoBack { reason };
                }
                trial.phase = Phase::Running { starts };
                return Start::Trial;
            }
            let reason = match &trial.phase {
                Phase::Armed => "it never came up: no sign of life before the machine restarted".to_owned(),
                Phase::Running { .. } => "the machine restarted before it was confirmed".to_owned(),
                Phase::Failed { reason } | Phase::Left { reason } => reason.clone(),
            };
            self.give_up(reason);
        }
        match &self.confirmed {
            Some(confirmed) if running.is_none_or(|running| running < confirmed.version) => {
                if self.resumes >= RESUMES {
                    return Start::Normal;
                }
                self.resumes += 1;
                Start::Resume(confirmed.clone())
            }
            _ => Start::Normal,
        }
    }

    /// The machine is about to boot a release that it never ran.
    pub fn arm(&mut self, of: Installed) {
        self.trial = Some(Trial { of, phase: Phase::Armed });
    }

    /// The trial did not begin, for a reason that is not the release's.
    pub fn disarm(&mut self) {
        self.trial = None;
    }

    /// The release on trial registered and is well.
    pub fn confirm(&mut self) {
        if let Some(Trial { of, .. }) = self.trial.take() {
            self.tell(&of, Outcome::Confirmed);
            self.confirmed = Some(of);
            self.resumes = 0;
        }
    }

    /// The release on trial must go; it still runs.
    pub fn fail(&mut self, reason: String) {
        if let Some(trial) = &mut self.trial {
            trial.phase = Phase::Failed { reason };
        }
    }

    /// The trial is over, and another release runs.
    pub fn give_up(&mut self, reason: String) {
        let Some(Trial { of, .. }) = self.trial.take() else { return };
        self.never_again(of.id());
        let mut reason = reason;
        if reason.len() > limits::TEXT_BYTES {
            let end = (0..=limits::TEXT_BYTES).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
            reason.truncate(end);
        }
        self.tell(&of, Outcome::Returned { reason });
    }

    /// The release is not tried on this machine any more.
    fn never_again(&mut self, id: ReleaseId) {
        self.given_up.push(id);
        drop_oldest(&mut self.given_up, GIVEN_UP);
    }

    /// The confirmed release runs and is well.
    pub fn resumed(&mut self) {
        self.resumes = 0;
    }

    fn tell(&mut self, of: &Installed, outcome: Outcome) {
        self.untold.push(Told { channel: of.channel.clone(), version: of.version, outcome });
        drop_oldest(&mut self.untold, UNTOLD);
    }

    /// Whether a release was tried here and did not do.
    #[must_use]
    pub fn has_given_up(&self, id: &ReleaseId) -> bool {
        self.given_up.contains(id)
    }

    /// Nothing at or below this is tried.
    #[must_use]
    pub fn floor(&self, running: Option<ReleaseVersion>) -> Option<ReleaseVersion> {
        self.confirmed.as_ref().map(|confirmed| confirmed.version).max(running)
    }
}

fn drop_oldest<T>(list: &mut Vec<T>, most: usize) {
    let over = list.len().saturating_sub(most);
    list.drain(..over);
}
