//! Which time to believe. Pure, but for the two functions at the end that read and set the kernel's clock.
//!
//! Three sources, by rank: the ledger's header time says what is possible, time servers say what is likely, the
//! machine's own clock says what to do when nobody else speaks. Nobody on the path of an NTP packet can move a node
//! outside of what the validators signed. Never waits: a node without time servers goes on with what it has.

use std::fmt;
use std::time::Duration;

use rustix::time::{ClockId, Timespec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Below this a step would only make logs jump; the next measurement may be off by as much.
const STEP_MIN: Offset = Offset::from_millis(50);
/// How far a validator's clock may be ahead of true time when it proposes a block.
const HEADER_AHEAD_MAX: Duration = Duration::from_secs(10);
const NANOS_PER_S: i64 = 1_000_000_000;

/// Nanoseconds since 1970-01-01 00:00:00 UTC, without leap seconds. Good until the year 2262.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnixTime(i64);

/// What has to be added to this machine's clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Offset(i64);

/// What the ledger says that the time can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerBounds {
    earliest: Option<UnixTime>,
    latest: Option<UnixTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The machine's own clock.
    Own,
    /// The median of the time servers that the ledger allows.
    Ntp,
    /// The nearest time that the ledger allows.
    Ledger,
}

/// What to do with the clock, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    /// Add this to the clock; `None` leaves it alone.
    pub step: Option<Offset>,
    pub source: Source,
    /// Time servers whose answer the ledger contradicts.
    pub refused: usize,
    /// Time servers that were believed.
    pub used: usize,
}

impl UnixTime {
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(NANOS_PER_S))
    }

    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    #[must_use]
    pub const fn plus(self, offset: Offset) -> Self {
        Self(self.0.saturating_add(offset.0))
    }

    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }

    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// What leads from `self` to `other`.
    pub const fn until(self, other: Self) -> Offset {
        Offset(other.0.saturating_sub(self.0))
    }
}

impl Offset {
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    #[must_use]
    pub const fn magnitude(self) -> Self {
        Self(self.0.saturating_abs())
    }
}

/// Seconds with sign and milliseconds: `+0.125 s`.
impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { '-' } else { '+' };
        let millis = self.0.unsigned_abs() / 1_000_000;
        write!(f, "{sign}{}.{:03} s", millis / 1000, millis % 1000)
    }
}

impl LedgerBounds {
    /// Nothing is known of the ledger yet: anything goes.
    pub const fn unknown() -> Self {
        Self { earliest: None, latest: None }
    }

    /// From a header that was verified at some time in the past (kept on disk, or pinned in the image): time doesn't
    /// run backwards, but how long the machine was off nobody knows.
    pub fn past(header_time: UnixTime) -> Self {
        Self { earliest: Some(header_time.before(HEADER_AHEAD_MAX)), latest: None }
    }

    /// From a header that replicas hold to be the tip now. `age_max` is how old a tip may be on a ledger that runs.
    pub fn tip(header_time: UnixTime, age_max: Duration) -> Self {
        Self { latest: Some(header_time.after(age_max)), ..Self::past(header_time) }
    }

    pub fn allow(&self, time: UnixTime) -> bool {
        self.nearest(time) == time
    }

    fn nearest(&self, time: UnixTime) -> UnixTime {
        let time = self.latest.map_or(time, |latest| time.min(latest));
        self.earliest.map_or(time, |earliest| time.max(earliest))
    }
}

/// What to do, given what this machine's clock says, how far each time server says that it is off, and what the ledger
/// allows.
pub fn choose_time(own: UnixTime, ntp: &[Offset], ledger: LedgerBounds) -> Decision {
    let mut allowed: Vec<Offset> =
        ntp.iter().copied().filter(|offset| ledger.allow(own.plus(*offset))).collect();
    let (used, refused) = (allowed.len(), ntp.len() - allowed.len());
    if let Some(offset) = median(&mut allowed) {
        // Two servers far apart have their median outside the bounds at worst when the bounds are not an interval;
        // they are one, so the mean of two allowed times is allowed.
        let step = Some(offset).filter(|offset| offset.magnitude() >= STEP_MIN || !ledger.allow(own));
        return Decision { step, source: Source::Ntp, refused, used };
    }
    let nearest = ledger.nearest(own);
    if nearest == own {
        Decision { step: None, source: Source::Own, refused, used }
    } else {
        Decision { step: Some(own.until(nearest)), source: Source::Ledger, refused, used }
    }
}

/// Middle value; the mean of the middle two. `None` of nothing.
pub fn median(offsets: &mut [Offset]) -> Option<Offset> {
    offsets.sort_unstable();
    let upper = offsets.get(offsets.len() / 2)?;
    if offsets.len() % 2 == 1 {
        return Some(*upper);
    }
    let lower = offsets[offsets.len() / 2 - 1];
    Some(Offset(i64::midpoint(lower.0, upper.0)))
}

/// For the stage line on the console.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.step, self.source) {
            (Some(step), Source::Ntp) => write!(f, "set by {step} after {} time servers", self.used)?,
            (None, Source::Ntp) => write!(f, "agrees with {} time servers", self.used)?,
            (Some(step), _) => write!(f, "set by {step} to what the ledger allows")?,
            (None, _) => f.write_str("kept as it is, no time server was heard")?,
        }
        match self.refused {
            0 => Ok(()),
            refused => write!(f, "; {refused} time servers contradict the ledger and were ignored"),
        }
    }
}

#[derive(Debug, Error)]
#[error("can't set the clock by {offset}: the process needs CAP_SYS_TIME")]
pub struct ClockError {
    offset: Offset,
    source: std::io::Error,
}

/// The kernel's wall clock.
pub fn now() -> UnixTime {
    let time = rustix::time::clock_gettime(ClockId::Realtime);
    UnixTime(time.tv_sec.saturating_mul(NANOS_PER_S).saturating_add(time.tv_nsec))
}

/// Steps the kernel's wall clock. Monotonic time, and with it every timer, runs on undisturbed.
pub fn step(offset: Offset) -> Result<(), ClockError> {
    let target = now().plus(offset).0.max(0);
    let time = Timespec { tv_sec: target / NANOS_PER_S, tv_nsec: target % NANOS_PER_S };
    rustix::time::clock_settime(ClockId::Realtime, time)
        .map_err(|error| ClockError { offset, source: error.into() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn offsets(millis: &[i64]) -> Vec<Offset> {
        millis.iter().map(|ms| Offset::from_millis(*ms)).collect()
    }

    fn decide(ntp_ms: &[i64], ledger: LedgerBounds) -> Decision {
        choose_time(OWN, &offsets(ntp_ms), ledger)
    }

    #[test]
    fn the_median_outvotes_a_liar() {
        let decision = decide(&[3_000, 86_400_000, 3_100], LedgerBounds::unknown());
        assert_eq!(decision.step, Some(Offset::from_millis(3_100)));
        assert_eq!(decision.to_string(), "set by +3.100 s after 3 time servers");
        assert_eq!(median(&mut offsets(&[1, 3])), Some(Offset::from_millis(2)));
        assert_eq!(median(&mut []), None);
    }

    #[test]
    fn a_small_difference_is_left_alone() {
        let decision = decide(&[20, -10, 30], LedgerBounds::unknown());
        assert_eq!((decision.step, decision.source), (None, Source::Ntp));
        assert_eq!(decision.to_string(), "agrees with 3 time servers");
    }

    #[test]
    fn time_servers_cannot_go_behind_the_ledger() {
        let ledger = LedgerBounds::past(OWN.before(Duration::from_secs(60)));
        let decision = decide(&[-86_400_000, -86_400_000, -1_000], ledger);
        assert_eq!(decision.step, Some(Offset::from_millis(-1_000)), "the only honest one counts");
        assert_eq!(decision.refused, 2);
        let decision = decide(&[-86_400_000], ledger);
        assert_eq!((decision.step, decision.source), (None, Source::Own));
        assert!(decision.to_string().ends_with("1 time servers contradict the ledger and were ignored"));
    }

    #[test]
    fn time_servers_cannot_run_ahead_of_the_tip() {
        let ledger = LedgerBounds::tip(OWN, Duration::from_secs(3600));
        let decision = decide(&[7_200_000], ledger);
        assert_eq!((decision.step, decision.refused), (None, 1));
        let decision = decide(&[1_800_000], ledger);
        assert_eq!(decision.step, Some(Offset::from_millis(1_800_000)));
    }

    #[test]
    fn without_time_servers_a_clock_that_lost_its_battery_is_brought_to_the_ledger() {
        let epoch = UnixTime::from_secs(0);
        let decision = choose_time(epoch, &[], LedgerBounds::past(OWN));
        assert_eq!(decision.source, Source::Ledger);
        assert_eq!(epoch.plus(decision.step.unwrap()), OWN.before(HEADER_AHEAD_MAX));
        let decision = choose_time(epoch, &[], LedgerBounds::unknown());
        assert_eq!((decision.step, decision.source), (None, Source::Own));
        assert_eq!(decision.to_string(), "kept as it is, no time server was heard");
    }

    #[test]
    fn an_offset_prints_with_sign() {
        assert_eq!(Offset::from_millis(-61_005).to_string(), "-61.005 s");
        assert_eq!(Offset::from_nanos(i64::MIN).magnitude().as_nanos(), i64::MAX);
    }

    proptest! {
        /// Whatever servers say, the outcome is within the ledger's bounds.
        #[test]
        fn the_ledger_always_holds(
            own in 0i64..4_000_000_000,
            header in 1_000_000_000i64..3_000_000_000,
            age_s in 1u64..100_000,
            ntp in proptest::collection::vec(any::<i64>(), 0..6),
        ) {
            let ledger = LedgerBounds::tip(UnixTime::from_secs(header), Duration::from_secs(age_s));
            let own = UnixTime::from_secs(own);
            let ntp: Vec<Offset> = ntp.into_iter().map(Offset::from_nanos).collect();
            let decision = choose_time(own, &ntp, ledger);
            prop_assert!(ledger.allow(own.plus(decision.step.unwrap_or_default())));
            prop_assert_eq!(decision.used + decision.refused, ntp.len());
        }
    }
}
