//! The system time at boot: from the kernel, else from the real-time clock, never below the release's own date.
//!
//! It only has to be good enough for certificates and logs until node has asked the network; a machine with an empty
//! battery must not sit in 1970.

use rustix::time::{ClockId, Timespec};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 2026-01-01: no release is older. Too late a floor would set back a right clock; too early a one helps less.
const OLDEST_RELEASE_UNIX: u64 = 1_767_225_600;

/// A clock that is further ahead of the release than this is wrong: such a machine would take every signature and
/// lease for expired.
const AHEAD_MAX: Duration = Duration::from_secs(20 * 366 * 86_400);

/// Where the time came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The kernel's time is sane already.
    Keep,
    /// Set to the real-time clock.
    Rtc(u64),
    /// Set to the floor: nothing better is known.
    Floor(u64),
}

/// Seconds since 1970 in, decision out.
#[must_use]
pub fn choose(system: u64, rtc: Option<u64>, floor: u64) -> Choice {
    let sane = floor..floor + AHEAD_MAX.as_secs();
    match rtc {
        _ if sane.contains(&system) => Choice::Keep,
        Some(rtc) if sane.contains(&rtc) => Choice::Rtc(rtc),
        _ => Choice::Floor(floor),
    }
}

/// The earliest time that can be true: the line `built = <seconds since 1970>` of `/etc/croft/release`, or the time
/// of this program's release.
#[must_use]
pub fn floor(release: &str) -> u64 {
    let built = release
        .lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| key.trim() == "built")
        .and_then(|(_, value)| value.trim().trim_matches('"').parse::<u64>().ok())
        .unwrap_or(0);
    built.max(OLDEST_RELEASE_UNIX)
}

#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    #[error("the system clock can't be set to {seconds} s after 1970")]
    Set {
        seconds: u64,
        #[source]
        source: rustix::io::Errno,
    },
}

/// Sets the clock where needed; what was done, for the log.
pub fn set() -> Result<String, ClockError> {
    let release = fs::read_to_string("/etc/croft/release").unwrap_or_default();
    let system = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let rtc = read_rtc(Path::new("/sys/class/rtc"));
    let choice = choose(system, rtc, floor(&release));
    match choice {
        Choice::Keep => {}
        Choice::Rtc(seconds) | Choice::Floor(seconds) => {
            let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
            rustix::time::clock_settime(ClockId::Realtime, time)
                .map_err(|source| ClockError::Set { seconds, source })?;
        }
    }
    Ok(match choice {
        Choice::Keep => format!("{} by the kernel", utc(system)),
        Choice::Rtc(seconds) => format!("{} by the real-time clock", utc(seconds)),
        Choice::Floor(seconds) => {
            let clock = rtc
                .map_or("no real-time clock".into(), |rtc| format!("the real-time clock says {}", utc(rtc)));
            format!("{} by the release's date, until the network knows better: {clock}", utc(seconds))
        }
    })
}

/// The kernel offers the clock as text, so no `ioctl` is needed.
fn read_rtc(class: &Path) -> Option<u64> {
    fs::read_to_string(class.join("rtc0/since_epoch")).ok()?.trim().parse().ok()
}

/// `2026-11-22 13:32:49 UTC`; days to date after Howard Hinnant, "chrono-compatible low-level date algorithms".
#[must_use]
pub fn utc(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: u64 = OLDEST_RELEASE_UNIX;

    #[test]
    fn a_sane_clock_is_left_alone() {
        assert_eq!(choose(FLOOR + 1, Some(FLOOR + 9_999), FLOOR), Choice::Keep);
    }

    #[test]
    fn a_clock_in_the_past_takes_the_real_time_clock() {
        assert_eq!(choose(0, Some(FLOOR + 5), FLOOR), Choice::Rtc(FLOOR + 5));
    }

    #[test]
    fn an_empty_battery_or_a_clock_far_ahead_ends_at_the_floor() {
        assert_eq!(choose(12, Some(946_684_800), FLOOR), Choice::Floor(FLOOR));
        assert_eq!(choose(12, None, FLOOR), Choice::Floor(FLOOR));
        assert_eq!(choose(u64::MAX, Some(FLOOR * 2), FLOOR), Choice::Floor(FLOOR));
    }

    #[test]
    fn the_floor_is_the_release_but_never_before_the_first_one() {
        assert_eq!(floor("version = \"0.1.0\"\nbuilt = 1800000000\n"), 1_800_000_000);
        assert_eq!(floor("built = \"1800000000\""), 1_800_000_000);
        for bad in ["", "built = yesterday", "built = -1", "built=0", "0.1.0"] {
            assert_eq!(floor(bad), OLDEST_RELEASE_UNIX, "{bad:?}");
        }
    }

    #[test]
    fn dates_read_as_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_827_696), "2000-02-29 12:34:56 UTC");
        assert_eq!(utc(OLDEST_RELEASE_UNIX), "2026-01-01 00:00:00 UTC");
    }

    #[test]
    fn a_real_time_clock_that_answers_nonsense_is_no_clock() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_rtc(directory.path()), None);
        fs::create_dir(directory.path().join("rtc0")).unwrap();
        for (text, want) in [("1800000000\n", Some(1_800_000_000)), ("-5", None), ("", None), ("x", None)] {
            fs::write(directory.path().join("rtc0/since_epoch"), text).unwrap();
            assert_eq!(read_rtc(directory.path()), want, "{text:?}");
        }
    }
}
