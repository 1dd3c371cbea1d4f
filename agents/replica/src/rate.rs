//! How much one identity may ask for in a time: token buckets, kept as the one moment at which each is full again
//! (the generic cell rate algorithm, ITU-T I.371). No I/O and no clock: time comes in as an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use croft_protocol::PublicKey;
use tokio::time::Instant;

/// Identities that are remembered before those who have been quiet are forgotten.
const REMEMBERED: usize = 8_192;

/// So much in so much time, all of it at once if need be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) amount: u64,
    pub(crate) per: Duration,
}

impl Rate {
    /// How long it takes until so much may be asked for again.
    fn time_of(&self, amount: u64) -> Duration {
        let nanos = self.per.as_nanos() * u128::from(amount) / u128::from(self.amount.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What each identity has asked for lately.
#[derive(Debug)]
pub(crate) struct Meter {
    rate: Rate,
    /// When the bucket of each is full again. Whoever is not here has a full one.
    full_at: BTreeMap<PublicKey, Instant>,
}

impl Meter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, full_at: BTreeMap::new() }
    }

    /// Takes an amount from the bucket of an identity.
    ///
    /// # Errors
    /// How long until there is so much in it; then nothing was taken. More than the bucket holds is never there.
    pub(crate) fn take(&mut self, who: PublicKey, amount: u64, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.get(&who).copied().unwrap_or(now).max(now);
        let after = full_at + self.rate.time_of(amount);
        let over = after.saturating_duration_since(now).saturating_sub(self.rate.per);
        if !over.is_zero() {
            return Err(over);
        }
        if self.full_at.len() >= REMEMBERED && !self.full_at.contains_key(&who) {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        self.full_at.insert(who, after);
        Ok(())
    }

    /// Takes an amount even if there is not so much: what has happened already counts.
    ///
    /// # Errors
    /// How long until the bucket is no longer overdrawn.
    pub(crate) fn charge(&mut self, who: PublicKey, amount: u64, now: Instant) -> Result<(), Duration> {
        let taken = self.take(who, amount, now);
        if taken.is_err() {
            let full_at = self.full_at.get(&who).copied().unwrap_or(now).max(now);
            self.full_at.insert(who, full_at + self.rate.time_of(amount));
        }
        taken
    }

    /// Whether anything is left to take, by whoever has overdrawn.
    ///
    /// # Errors
    /// How long until there is.
    pub(crate) fn check(&self, who: &PublicKey, now: Instant) -> Result<(), Duration> {
        let Some(full_at) = self.full_at.get(who) else { return Ok(()) };
        let over = full_at.saturating_duration_since(now).saturating_sub(self.rate.per);
        if over.is_zero() { Ok(()) } else { Err(over) }
    }
}

/// A wait for people: never zero.
pub(crate) fn show_wait(wait: Duration) -> String {
    match wait.as_secs() + u64::from(wait.subsec_nanos() > 0) {
        seconds @ 0..=119 => format!("{} s", seconds.max(1)),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: PublicKey = PublicKey([1; 32]);
    const OTHER: PublicKey = PublicKey([2; 32]);
    const TEN: Rate = Rate { amount: 10, per: Duration::from_secs(60) };

    #[test]
    fn a_full_bucket_may_be_emptied_at_once_and_fills_again_evenly() {
        let mut meter = Meter::new(TEN);
        let now = Instant::now();
        for _ in 0..10 {
            meter.take(WHO, 1, now).unwrap();
        }
        assert_eq!(meter.take(WHO, 1, now), Err(Duration::from_secs(6)));
        assert_eq!(meter.take(WHO, 2, now), Err(Duration::from_secs(12)), "a refusal takes nothing");
        meter.take(OTHER, 10, now).unwrap();
        meter.take(WHO, 1, now + Duration::from_secs(6)).unwrap();
        assert_eq!(meter.take(WHO, 1, now + Duration::from_secs(6)), Err(Duration::from_secs(6)));
        meter.take(WHO, 10, now + Duration::from_secs(3_600)).unwrap();
        assert!(meter.take(WHO, 11, now + Duration::from_secs(36_000)).is_err(), "more than it holds");
    }

    #[test]
    fn what_has_happened_counts_and_is_paid_off_by_time() {
        let mut meter = Meter::new(TEN);
        let now = Instant::now();
        meter.charge(WHO, 8, now).unwrap();
        assert_eq!(meter.check(&WHO, now), Ok(()));
        assert_eq!(meter.charge(WHO, 5, now), Err(Duration::from_secs(18)));
        assert_eq!(meter.check(&WHO, now), Err(Duration::from_secs(18)));
        assert_eq!(meter.check(&WHO, now + Duration::from_secs(18)), Ok(()));
    }

    #[test]
    fn those_who_have_been_quiet_are_forgotten() {
        let mut meter = Meter::new(TEN);
        let now = Instant::now();
        let who = |n: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_le_bytes());
            PublicKey(key)
        };
        for n in 0..REMEMBERED as u32 {
            meter.take(who(n), 1, now).unwrap();
        }
        meter.take(who(u32::MAX), 1, now + Duration::from_secs(6)).unwrap();
        assert_eq!(meter.full_at.len(), 1);
    }

    #[test]
    fn a_wait_is_rounded_up_to_what_people_say() {
        assert_eq!(show_wait(Duration::from_millis(1)), "1 s");
        assert_eq!(show_wait(Duration::from_millis(6_001)), "7 s");
        assert_eq!(show_wait(Duration::from_secs(121)), "3 min");
    }
}
