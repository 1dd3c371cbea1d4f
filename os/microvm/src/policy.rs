//! Decisions of a VM's owner: restart or not and when, whether a VMM hangs. No I/O, no clock.

use std::time::Duration;

use crate::status::EndCause;

/// What happens when a VM ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// It stays ended.
    Never,
    /// It is started again unless the entry point exited with 0.
    OnFailure(Backoff),
    /// It is started again whatever happened.
    Always(Backoff),
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self::Always(Backoff::default())
    }
}

/// How long to wait before the next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Wait before the first restart; doubles with each further one.
    pub first: Duration,
    pub longest: Duration,
    /// A VM that ran for so long starts over with [`Backoff::first`].
    pub stable: Duration,
}

impl Default for Backoff {
    /// One second to five minutes; ten minutes of running forgive the past.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(300),
            stable: Duration::from_secs(600),
        }
    }
}

/// What the owner does after a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    End,
    RestartAfter(Duration),
}

/// Restarts in a row without a stable run between them.
#[derive(Debug, Clone, Copy, Default)]
pub struct RestartHistory {
    in_a_row: u32,
}

impl RestartHistory {
    /// Decides what follows on `cause` after the VM ran for `ran`.
    #[must_use]
    pub fn decide(&mut self, policy: RestartPolicy, cause: &EndCause, ran: Duration) -> Decision {
        let (backoff, even_after_success) = match policy {
            RestartPolicy::Never => return Decision::End,
            RestartPolicy::OnFailure(backoff) => (backoff, false),
            RestartPolicy::Always(backoff) => (backoff, true),
        };
        if matches!(cause, EndCause::Stopped) || (cause.is_success() && !even_after_success) {
            return Decision::End;
        }
        if ran >= backoff.stable {
            self.in_a_row = 0;
        }
        // 2^30 seconds is beyond every limit.
        let factor = 1_u32 << self.in_a_row.min(30);
        self.in_a_row = self.in_a_row.saturating_add(1);
        Decision::RestartAfter(backoff.first.saturating_mul(factor).min(backoff.longest))
    }
}

/// Counts unanswered pings of a VMM.
#[derive(Debug)]
pub struct PingTracker {
    limit: u32,
    missed: u32,
}

impl PingTracker {
    /// `limit` misses in a row mean that it hangs.
    pub fn new(limit: u32) -> Self {
        Self { limit: limit.max(1), missed: 0 }
    }

    /// True when the VMM must be taken for hung.
    #[must_use]
    pub fn observe(&mut self, answered: bool) -> bool {
        self.missed = if answered { 0 } else { self.missed.saturating_add(1) };
        self.missed >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use croft_guest::wire::Exit;
    use proptest::prelude::*;

    use super::*;

    fn exited(code: u8) -> EndCause {
        EndCause::Exited { exit: Exit::Code(code), out_of_memory: false }
    }

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(10),
        stable: Duration::from_secs(60),
    };

    #[test]
    fn a_stopped_vm_is_never_restarted() {
        let mut history = RestartHistory::default();
        let decision = history.decide(RestartPolicy::Always(BACKOFF), &EndCause::Stopped, Duration::ZERO);
        assert_eq!(decision, Decision::End);
    }

    #[test]
    fn success_ends_on_failure_but_not_always() {
        let mut history = RestartHistory::default();
        assert_eq!(
            history.decide(RestartPolicy::OnFailure(BACKOFF), &exited(0), Duration::ZERO),
            Decision::End
        );
        assert_eq!(
            history.decide(RestartPolicy::Always(BACKOFF), &exited(0), Duration::ZERO),
            Decision::RestartAfter(BACKOFF.first)
        );
    }

    #[test]
    fn an_entry_point_killed_for_memory_is_a_failure() {
        let cause = EndCause::Exited { exit: Exit::Code(0), out_of_memory: true };
        let decision =
            RestartHistory::default().decide(RestartPolicy::OnFailure(BACKOFF), &cause, Duration::ZERO);
        assert_eq!(decision, Decision::RestartAfter(BACKOFF.first));
    }

    #[test]
    fn delays_double_up_to_the_longest_and_a_stable_run_forgives() {
        let mut history = RestartHistory::default();
        let mut decide = |ran| match history.decide(RestartPolicy::Always(BACKOFF), &exited(1), ran) {
            Decision::RestartAfter(delay) => delay.as_secs(),
            Decision::End => panic!("it must be restarted"),
        };
        let delays: Vec<u64> = (0..6).map(|_| decide(Duration::from_secs(59))).collect();
        assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
        assert_eq!(decide(Duration::from_secs(60)), 1);
        assert_eq!(decide(Duration::ZERO), 2);
    }

    #[test]
    fn only_misses_in_a_row_make_a_hang() {
        let mut tracker = PingTracker::new(2);
        let verdicts: Vec<bool> =
            [false, true, false, false, true].into_iter().map(|answered| tracker.observe(answered)).collect();
        assert_eq!(verdicts, [false, false, false, true, false]);
    }

    proptest! {
        #[test]
        fn a_delay_is_never_shorter_than_the_first_nor_longer_than_the_longest(runs in prop::collection::vec(0u64..200, 0..100)) {
            let mut history = RestartHistory::default();
            for ran in runs {
                let decision = history.decide(RestartPolicy::Always(BACKOFF), &exited(1), Duration::from_secs(ran));
                let Decision::RestartAfter(delay) = decision else { panic!("it must be restarted") };
                prop_assert!((BACKOFF.first..=BACKOFF.longest).contains(&delay));
            }
        }
    }
}
