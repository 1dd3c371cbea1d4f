//! A step that failed, in words for the owner of the workload.

use croft_guest::wire::Step;

/// Ends the boot; becomes [`croft_guest::wire::GuestFrame::Failed`].
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) reason: String,
}

impl Failure {
    pub(crate) fn new(step: Step, reason: impl Into<String>) -> Self {
        Self { step, reason: reason.into() }
    }
}

/// Attaches the step and what was tried to an error of the system.
pub(crate) trait During<T> {
    fn during(self, step: Step, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> During<T> for Result<T, E> {
    fn during(self, step: Step, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(step, format!("{}: {error}", what())))
    }
}
