//! Which release a nightly is. Nodes take a release only where its version is above theirs, so it grows with the date.
//!
//! ```text
//! 0.1.0, the second of 2026-01-31 ──> 0.1.2026013102
//! ```
//! It is above the source's own version and below the next MINOR: a release that is to follow nightlies needs one.

use thiserror::Error;

use super::shelf::Slot;
use crate::image;

#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum ReleaseError {
    #[error("the source's version {0:?} is none that a release can have: write three numbers in Cargo.toml")]
    Base(String),
    #[error("{0} does not fit into a release's version: the last day that does is 4294-12-31")]
    Date(String),
    #[error(
        "the source's version {base} is not below {version}, that of {date}: raise its MINOR and set PATCH to 0"
    )]
    NotAbove { base: String, version: String, date: String },
}

/// The version of a nightly made from a source of version `base`: its MAJOR and MINOR, the day's digits and the nightly's
/// number within the day.
///
/// # Errors
/// [`ReleaseError`] names what does not fit.
pub(super) fn version(base: &str, slot: &Slot) -> Result<String, ReleaseError> {
    let not_three = || ReleaseError::Base(base.to_owned());
    let base = image::parse_release(base).map_err(|_| not_three())?;
    let (line, patch) = base.rsplit_once('.').ok_or_else(not_three)?;
    let patch: u32 = patch.parse().map_err(|_| not_three())?;
    // The shelf has checked both: eight digits, and a number of two.
    let dated = format!("{}{:02}", slot.date().replace('-', ""), slot.number());
    let dated: u32 = dated.parse().map_err(|_| ReleaseError::Date(slot.date().to_owned()))?;
    let version = format!("{line}.{dated}");
    if patch >= dated {
        return Err(ReleaseError::NotAbove { date: slot.date().to_owned(), base, version });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(date: &str, number: u32) -> String {
        version("0.1.7", &Slot::new(date, number).unwrap()).unwrap()
    }

    fn numbers(version: &str) -> (u16, u16, u32) {
        let parts: Vec<&str> = version.split('.').collect();
        (parts[0].parse().unwrap(), parts[1].parse().unwrap(), parts[2].parse().unwrap())
    }

    #[test]
    fn each_nightly_is_above_every_earlier_one_and_above_its_source() {
        assert_eq!(of("2026-01-31", 2), "0.1.2026013102");
        let mut last = numbers("0.1.7");
        let days = [
            "1999-12-31",
            "2026-01-31",
            "2026-02-01",
            "2026-02-28",
            "2026-03-01",
            "2026-12-31",
            "2027-01-01",
        ];
        for day in days.into_iter().chain(["4294-12-31"]) {
            for number in [1, 2, 9, 10, 99] {
                let version = of(day, number);
                assert!(image::parse_release(&version).is_ok(), "nodes can't read {version}");
                assert!(numbers(&version) > last, "{version} is not above {last:?}");
                last = numbers(&version);
            }
        }
        assert!(last < numbers("0.2.0"), "the next minor follows all of them");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let text =
            |base: &str, date: &str| version(base, &Slot::new(date, 1).unwrap()).unwrap_err().to_string();
        assert_eq!(
            text("0.1.0", "4295-01-01"),
            "4295-01-01 does not fit into a release's version: the last day that does is 4294-12-31"
        );
        assert_eq!(
            text("0.1.0-rc1", "2026-01-31"),
            "the source's version \"0.1.0-rc1\" is none that a release can have: write three numbers in Cargo.toml"
        );
        assert_eq!(
            text("0.1.2026013101", "2026-01-31"),
            "the source's version 0.1.2026013101 is not below 0.1.2026013101, that of 2026-01-31: raise its MINOR and \
             set PATCH to 0"
        );
    }
}
