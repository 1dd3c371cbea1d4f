//! Decides from the results of a health check what is true about the workload. No I/O, no clock.
//!
//! ```text
//! Starting ──success──> Healthy <──success── Unhealthy
//!     └────────── `retries` failures in a row ──▲ (those within the start period do not count)
//! ```

use crate::wire::{HealthCheck, HealthState};

/// The state of one check.
#[derive(Debug)]
pub struct Tracker {
    retries: u16,
    start_period_ms: u64,
    state: HealthState,
    failures: u16,
}

impl Tracker {
    pub fn new(check: &HealthCheck) -> Self {
        Self {
            retries: check.retries.max(1),
            start_period_ms: u64::from(check.start_period_ms),
            state: HealthState::Starting,
            failures: 0,
        }
    }

    /// Takes a result that came `since_start_ms` after the workload started; returns the state if it changed.
    #[must_use]
    pub fn observe(&mut self, since_start_ms: u64, success: bool) -> Option<HealthState> {
        let next = if success {
            self.failures = 0;
            HealthState::Healthy
        } else if self.state == HealthState::Starting && since_start_ms < self.start_period_ms {
            HealthState::Starting
        } else {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.retries { HealthState::Unhealthy } else { self.state }
        };
        let changed = next != self.state;
        self.state = next;
        changed.then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Probe;

    fn tracker(retries: u16, start_period_ms: u32) -> Tracker {
        Tracker::new(&HealthCheck {
            name: "c".into(),
            probe: Probe::Tcp { port: 80 },
            interval_ms: 1000,
            timeout_ms: 100,
            retries,
            start_period_ms,
        })
    }

    #[test]
    fn one_success_is_enough_to_be_healthy() {
        assert_eq!(tracker(3, 0).observe(1, true), Some(HealthState::Healthy));
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let mut tracker = tracker(2, 0);
        assert_eq!(tracker.observe(1, true), Some(HealthState::Healthy));
        assert_eq!(tracker.observe(2, false), None);
        assert_eq!(tracker.observe(3, true), None);
        assert_eq!(tracker.observe(4, false), None);
        assert_eq!(tracker.observe(5, false), Some(HealthState::Unhealthy));
        assert_eq!(tracker.observe(6, false), None, "a state is told once");
        assert_eq!(tracker.observe(7, true), Some(HealthState::Healthy));
    }

    #[test]
    fn failures_in_the_start_period_do_not_count() {
        let mut tracker = tracker(1, 1000);
        assert_eq!(tracker.observe(10, false), None);
        assert_eq!(tracker.observe(999, false), None);
        assert_eq!(tracker.observe(1000, false), Some(HealthState::Unhealthy));
    }

    #[test]
    fn a_workload_that_was_healthy_gets_no_more_start_period() {
        let mut tracker = tracker(1, 1000);
        assert_eq!(tracker.observe(10, true), Some(HealthState::Healthy));
        assert_eq!(tracker.observe(20, false), Some(HealthState::Unhealthy));
    }
}
