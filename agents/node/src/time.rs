//! What time it is, as far as this node can know: the system clock, bounded by what final headers say.
//!
//! A machine whose battery died starts years off, and NTP may be blocked or lie. A final header is signed by the
//! validators, so true time is never before the newest one that was seen; and a live ledger makes one at least
//! every heartbeat, so just after a fresh one true time is not far behind it either.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The node's clock.
#[derive(Debug, Default)]
pub struct Time {
    /// Time of the newest header that was verified: milliseconds since 1970, UTC.
    header_ms: AtomicU64,
    /// Whether the system clock was set from a source or agrees with a header.
    trusted: AtomicBool,
}

impl Time {
    /// Now: milliseconds since 1970, UTC, never before the newest header.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        system_ms().max(self.header_ms.load(Ordering::Relaxed))
    }

    /// Now, if the clock can be trusted to judge the age of headers.
    #[must_use]
    pub fn trusted_ms(&self) -> Option<u64> {
        self.trusted.load(Ordering::Relaxed).then(|| self.now_ms())
    }

    /// NTP answered, or the clock agreed with a fresh header.
    pub fn trust(&self) {
        self.trusted.store(true, Ordering::Relaxed);
    }

    pub fn saw_header(&self, time_ms: u64) {
        self.header_ms.fetch_max(time_ms, Ordering::Relaxed);
    }

    /// Time of the newest verified header, 0 before the first.
    #[must_use]
    pub fn header_ms(&self) -> u64 {
        self.header_ms.load(Ordering::Relaxed)
    }
}

/// The system clock: milliseconds since 1970, UTC; 0 before that.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place where this crate reads the wall clock")]
pub fn system_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Never ends without a time.
pub async fn sleep_until_some(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_never_before_a_final_header() {
        let time = Time::default();
        let future = system_ms() + 3_600_000;
        time.saw_header(future);
        time.saw_header(5);
        assert_eq!(time.now_ms(), future);
    }

    #[test]
    fn an_unset_clock_judges_nobody() {
        let time = Time::default();
        assert_eq!(time.trusted_ms(), None);
        time.trust();
        assert!(time.trusted_ms().is_some());
    }
}
