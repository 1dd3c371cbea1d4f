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

    /// Gives the draft its date, and makes it the latest.
    pub(super) fn publish(&self, date: &str) -> Result<PathBuf, ShelfError> {
        if !is_date(date) {
            return Err(ShelfError::Date(date.to_owned()));
        }
        let names = std::iter::once(date.to_owned()).chain((2..=PER_DAY_MAX).map(|n| format!("{date}.{n}")));
        let free = names.map(|name| self.dir.join(name)).find(|path| path.symlink_metadata().is_err());
        let folder = free.ok_or_else(|| ShelfError::TooMany { date: date.to_owned() })?;
        fs::rename(self.dir.join(DRAFT), &folder).map_err(io("can't name the nightly", &folder))?;
        let next = self.dir.join(NEXT_LATEST);
        let _ = fs::remove_file(&next);
        symlink(folder.file_name().unwrap_or_default(), &next).map_err(io("can't link", &next))?;
        let latest = self.dir.join(LATEST);
        fs::rename(&next, &latest).map_err(io("can't turn", &latest))?;
        Ok(folder)
    }
}

pub(super) fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 10
        && bytes.iter().enumerate().all(|(index, byte)| match index {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        })
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
            shelf.publish("2026-01-31").unwrap();
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
    fn what_is_no_date_is_refused_and_nothing_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path()).unwrap();
        shelf.draft().unwrap();
        for bad in ["", "2026-1-31", "../../../x", "2026-01-31x", "2026/01/31"] {
            let text = shelf.publish(bad).unwrap_err().to_string();
            assert_eq!(text, format!("{bad:?} is no date: write it as 2026-01-31"));
        }
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
