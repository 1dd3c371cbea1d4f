//! Where nightlies lie: one folder per day, and `latest`, which names the newest good one.
//!
//! ```text
//! <shelf>/.draft/        being made; gone at the next start
//! <shelf>/2026-01-31/    whole; .2, .3 … where a day has several
//! <shelf>/latest ->      changed by one rename
//! ```
//! Must never show a folder that is not whole, and never touch `latest` unless its folder is.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use thiserror::Error;

const DRAFT: &str = ".draft";
const LATEST: &str = "latest";
const NEXT_LATEST: &str = ".latest";
/// Of one day: more are a loop, not work.
const PER_DAY_MAX: u32 = 99;

#[derive(Debug, Error)]
pub(super) enum ShelfError {
    #[error("{step} {path}")]
    Io {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0:?} is no date: write it as 2026-01-31")]
    Date(String),
    #[error("{path} is no link: move it away, since it is where the newest nightly is named")]
    LatestIsNoLink { path: PathBuf },
    #[error("{path} appeared while this nightly was made: make it again, or give it another --date")]
    Taken { path: PathBuf },
    #[error("{date} has {PER_DAY_MAX} nightlies already: remove some")]
    TooMany { date: String },
}

fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ShelfError {
    let path = path.to_owned();
    move |source| ShelfError::Io { step, path, source }
}

pub(super) struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    pub(super) fn open(dir: &Path) -> Result<Self, ShelfError> {
        fs::create_dir_all(dir).map_err(io("can't create", dir))?;
        let latest = dir.join(LATEST);
        if latest.symlink_metadata().is_ok_and(|meta| !meta.is_symlink()) {
            return Err(ShelfError::LatestIsNoLink { path: latest });
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// The newest good nightly, if there is one.
    pub(super) fn latest(&self) -> Option<PathBuf> {
        self.dir.join(LATEST).canonicalize().ok()
    }

    /// An empty folder to fill.
    pub(super) fn draft(&self) -> Result<PathBuf, ShelfError> {
        let draft = self.dir.join(DRAFT);
        match fs::remove_dir_all(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io("can't remove", &draft)(error));
            }
            _ => {}
        }
        fs::create_dir(&draft).map_err(io("can't create", &draft))?;
        Ok(draft)
    }

    /// The place of the day's next nightly. After the highest that is there, also where one before it was removed.
    pub(super) fn next(&self, date: &str) -> Result<Slot, ShelfError> {
        let slots = (1..=PER_DAY_MAX).map(|number| Slot::new(date, number)).collect::<Result<Vec<_>, _>>()?;
        let taken = |slot: &Slot| self.dir.join(slot.name()).symlink_metadata().is_ok();
        let last = slots.iter().rposition(taken);
        let next = slots.into_iter().nth(last.map_or(0, |last| last + 1));
        next.ok_or_else(|| ShelfError::TooMany { date: date.to_owned() })
    }

    /// Gives the draft its place, which must be free, and makes it the latest.
    pub(super) fn publish(&self, slot: &Slot) -> Result<PathBuf, ShelfError> {
        let folder = self.dir.join(slot.name());
        if folder.symlink_metadata().is_ok() {
            return Err(ShelfError::Taken { path: folder });
        }
        fs::rename(self.dir.join(DRAFT), &folder).map_err(io("can't name the nightly", &folder))?;
        let next = self.dir.join(NEXT_LATEST);
        let _ = fs::remove_file(&next);
        symlink(folder.file_name().unwrap_or_default(), &next).map_err(io("can't link", &next))?;
        let latest = self.dir.join(LATEST);
        fs::rename(&next, &latest).map_err(io("can't turn", &latest))?;
        Ok(folder)
    }
}

/// A nightly's place on the shelf: its day, and its number within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    date: String,
    number: u32,
}

impl Slot {
    /// `number` is 1 to [`PER_DAY_MAX`].
    pub(super) fn new(date: &str, number: u32) -> Result<Self, ShelfError> {
        if !is_date(date) {
            return Err(ShelfError::Date(date.to_owned()));
        }
        if !(1..=PER_DAY_MAX).contains(&number) {
            return Err(ShelfError::TooMany { date: date.to_owned() });
        }
        Ok(Self { date: date.to_owned(), number })
    }

    pub(super) fn date(&self) -> &str {
        &self.date
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The day; `.2`, `.3` … behind it where it has several.
    pub(super) fn name(&self) -> String {
        if self.number == 1 { self.date.clone() } else { format!("{}.{}", self.date, self.number) }
    }
}

/// Ten characters, with a month and a day that a year may have.
fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    let form = bytes.len() == 10
        && bytes.iter().enumerate().all(|(index, byte)| match index {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    form && ("01"..="12").contains(&&text[5..7]) && ("01"..="31").contains(&&text[8..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_is_the_one_published_last_and_earlier_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path()).unwrap();
        assert_eq!(shelf.latest(), None);
        for content in ["a", "b", "c"] {
            fs::write(shelf.draft().unwrap().join("f"), content).unwrap();
            shelf.publish(&shelf.next("2026-01-31").unwrap()).unwrap();
            assert_eq!(fs::read_to_string(dir.path().join("latest/f")).unwrap(), content);
        }
        for (name, content) in [("2026-01-31", "a"), ("2026-01-31.2", "b"), ("2026-01-31.3", "c")] {
            assert_eq!(fs::read_to_string(dir.path().join(name).join("f")).unwrap(), content);
        }
        assert_eq!(fs::read_link(dir.path().join("latest")).unwrap(), Path::new("2026-01-31.3"));
    }

    #[test]
    fn a_draft_that_was_left_is_never_part_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path()).unwrap();
        fs::write(shelf.draft().unwrap().join("half"), "").unwrap();
        assert_eq!(fs::read_dir(shelf.draft().unwrap()).unwrap().count(), 0);
        assert_eq!(shelf.latest(), None);
    }

    #[test]
    fn what_is_no_date_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path()).unwrap();
        let bad = [
            "",
            "2026-1-31",
            "../../../x",
            "2026-01-31x",
            "2026/01/31",
            "2026-13-01",
            "2026-00-01",
            "2026-01-32",
        ];
        for bad in bad {
            let text = shelf.next(bad).unwrap_err().to_string();
            assert_eq!(text, format!("{bad:?} is no date: write it as 2026-01-31"));
        }
    }

    #[test]
    fn a_number_is_not_given_again_while_a_later_one_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path()).unwrap();
        fs::create_dir(dir.path().join("2026-01-31.3")).unwrap();
        assert_eq!(shelf.next("2026-01-31").unwrap(), Slot::new("2026-01-31", 4).unwrap());
        assert_eq!(shelf.next("2026-02-01").unwrap().name(), "2026-02-01");
        fs::create_dir(dir.path().join("2026-01-31.99")).unwrap();
        let text = shelf.next("2026-01-31").unwrap_err().to_string();
        assert_eq!(text, "2026-01-31 has 99 nightlies already: remove some");
    }

    #[test]
    fn a_place_that_was_taken_meanwhile_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path()).unwrap();
        shelf.draft().unwrap();
        let slot = shelf.next("2026-01-31").unwrap();
        fs::create_dir(dir.path().join("2026-01-31")).unwrap();
        let text = shelf.publish(&slot).unwrap_err().to_string();
        assert!(
            text.ends_with(
                "2026-01-31 appeared while this nightly was made: make it again, or give it another --date"
            ),
            "{text}"
        );
        assert_eq!(shelf.latest(), None);
    }

    #[test]
    fn a_folder_in_the_place_of_the_link_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("latest")).unwrap();
        let text = Shelf::open(dir.path()).err().unwrap().to_string();
        assert!(text.contains("latest is no link: move it away"), "{text}");
    }
}
