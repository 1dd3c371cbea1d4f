//! Covered time: for how long of a report's interval each whole workload ran. Pure, with injected time.
//!
//! It must never count time that was not observed: what ran before the first observation, while the node was
//! off, or in a jump of the clock.

use std::collections::BTreeMap;

use croft_protocol::ContractId;
use croft_protocol::record::{ContractReport, WorkloadState};

/// Between two observations at most this much counts, so that a jump of the clock is not paid.
pub const OBSERVED_MAX_MS: u64 = 60_000;

#[derive(Debug, Clone, Default)]
struct Line {
    state: Option<WorkloadState>,
    detail: String,
    ran_ms: u64,
}

/// Counts between two reports.
#[derive(Debug, Clone)]
pub struct Coverage {
    from_ms: u64,
    observed_ms: u64,
    lines: BTreeMap<ContractId, Line>,
    changed: bool,
}

impl Coverage {
    /// Counts from now on.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self { from_ms: now_ms, observed_ms: now_ms, lines: BTreeMap::new(), changed: false }
    }

    /// Takes note of every contract's state now. What ran at the last observation and still runs has run in
    /// between.
    pub fn observe(&mut self, now_ms: u64, states: &BTreeMap<ContractId, (WorkloadState, String)>) {
        let between = now_ms.saturating_sub(self.observed_ms).min(OBSERVED_MAX_MS);
        self.observed_ms = self.observed_ms.max(now_ms);
        for (id, (state, detail)) in states {
            let line = self.lines.entry(*id).or_default();
            if line.state == Some(WorkloadState::Running) {
                line.ran_ms += between;
            }
            if line.state != Some(*state) || (line.detail != *detail && *state != WorkloadState::Running) {
                self.changed = true;
            }
            line.state = Some(*state);
            line.detail.clone_from(detail);
        }
        // What is gone keeps its line until it is reported: its contract's final report settles the rest.
        for (_, line) in self.lines.iter_mut().filter(|(id, _)| !states.contains_key(id)) {
            self.changed |= line.state.take().is_some();
        }
    }

    /// What of a contract ran and is not in a final report yet.
    #[must_use]
    pub fn unreported_ms(&self, id: &ContractId) -> u64 {
        self.lines.get(id).map_or(0, |line| line.ran_ms)
    }

    /// Whether something happened that the ledger should hear of now.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// When the interval began: milliseconds since 1970, UTC.
    #[must_use]
    pub fn since_ms(&self) -> u64 {
        self.from_ms
    }

    /// The report's interval and lines as of the last observation, for contracts that are still addressed to
    /// the node.
    #[must_use]
    pub fn report(&self, addressed: impl Fn(&ContractId) -> bool) -> (u64, u64, Vec<ContractReport>) {
        let lines = self
            .lines
            .iter()
            .filter(|(id, _)| addressed(id))
            .map(|(id, line)| ContractReport {
                contract: *id,
                state: line.state.unwrap_or(WorkloadState::Finished),
                ran_ms: line.ran_ms.min(self.observed_ms - self.from_ms),
                detail: line.detail.chars().take(200).collect(),
            })
            .collect();
        (self.from_ms, self.observed_ms, lines)
    }

    /// The report up to `until_ms` is final: what it covered is not counted again.
    pub fn reported(&mut self, until_ms: u64, lines: &[ContractReport]) {
        self.from_ms = self.from_ms.max(until_ms);
        let mut changed = false;
        for report in lines {
            if let Some(line) = self.lines.get_mut(&report.contract) {
                line.ran_ms = line.ran_ms.saturating_sub(report.ran_ms);
                changed |= line.state.is_some_and(|state| state != report.state);
            }
        }
        changed |= self
            .lines
            .iter()
            .any(|(id, line)| line.state.is_some() && !lines.iter().any(|report| report.contract == *id));
        self.lines.retain(|_, line| line.state.is_some());
        self.changed = changed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_protocol::Hash;

    fn id(n: u8) -> ContractId {
        ContractId(Hash([n; 32]))
    }

    fn all(states: &[(u8, WorkloadState)]) -> BTreeMap<ContractId, (WorkloadState, String)> {
        states.iter().map(|(n, s)| (id(*n), (*s, String::new()))).collect()
    }

    #[test]
    fn only_time_between_two_running_observations_counts() {
        let mut coverage = Coverage::new(1_000);
        coverage.observe(2_000, &all(&[(1, WorkloadState::Preparing)]));
        coverage.observe(3_000, &all(&[(1, WorkloadState::Running)]));
        coverage.observe(8_000, &all(&[(1, WorkloadState::Running)]));
        coverage.observe(9_000, &all(&[(1, WorkloadState::Failing)]));
        coverage.observe(20_000, &all(&[(1, WorkloadState::Failing)]));
        let (from, until, lines) = coverage.report(|_| true);
        assert_eq!(
            (from, until, lines[0].ran_ms, lines[0].state),
            (1_000, 20_000, 6_000, WorkloadState::Failing)
        );
    }

    #[test]
    fn what_was_reported_is_not_counted_again() {
        let mut coverage = Coverage::new(0);
        coverage.observe(0, &all(&[(1, WorkloadState::Running)]));
        coverage.observe(10_000, &all(&[(1, WorkloadState::Running)]));
        assert!(coverage.changed());
        let (_, until, lines) = coverage.report(|_| true);
        coverage.observe(15_000, &all(&[(1, WorkloadState::Running)]));
        coverage.reported(until, &lines);
        let (from, until, lines) = coverage.report(|_| true);
        assert_eq!((from, until, lines[0].ran_ms), (10_000, 15_000, 5_000));
        assert!(!coverage.changed());
    }

    #[test]
    fn a_change_during_the_report_is_reported_next() {
        let mut coverage = Coverage::new(0);
        coverage.observe(1_000, &all(&[(1, WorkloadState::Preparing)]));
        let (_, until, lines) = coverage.report(|_| true);
        coverage.observe(2_000, &all(&[(1, WorkloadState::Running)]));
        coverage.reported(until, &lines);
        assert!(coverage.changed());
    }

    #[test]
    fn a_jump_of_the_clock_is_not_paid() {
        let mut coverage = Coverage::new(0);
        coverage.observe(0, &all(&[(1, WorkloadState::Running)]));
        coverage.observe(86_400_000, &all(&[(1, WorkloadState::Running)]));
        assert_eq!(coverage.report(|_| true).2[0].ran_ms, OBSERVED_MAX_MS);
        coverage.observe(10, &all(&[(1, WorkloadState::Running)]));
        assert_eq!(coverage.report(|_| true).2[0].ran_ms, OBSERVED_MAX_MS, "nor one backwards");
    }

    #[test]
    fn a_contract_that_is_gone_is_reported_once_more() {
        let mut coverage = Coverage::new(0);
        coverage.observe(0, &all(&[(1, WorkloadState::Running)]));
        coverage.observe(5_000, &all(&[(1, WorkloadState::Running)]));
        coverage.observe(6_000, &all(&[]));
        let (_, until, lines) = coverage.report(|_| true);
        assert_eq!((lines.len(), lines[0].state), (1, WorkloadState::Finished));
        coverage.reported(until, &lines);
        assert!(coverage.report(|_| true).2.is_empty());
    }

    #[test]
    fn what_never_ran_and_is_gone_is_reported_too() {
        let mut coverage = Coverage::new(0);
        coverage.observe(0, &all(&[(1, WorkloadState::Preparing)]));
        coverage.reported(0, &coverage.report(|_| true).2.clone());
        coverage.observe(1_000, &all(&[]));
        coverage.observe(2_000, &all(&[]));
        assert!(coverage.changed());
        let (_, _, lines) = coverage.report(|_| true);
        assert_eq!((lines.len(), lines[0].ran_ms, coverage.unreported_ms(&id(1))), (1, 0, 0));
    }
}
