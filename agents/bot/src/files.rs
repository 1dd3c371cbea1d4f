//! Writing files so that others find them whole, and their owner can use them.
//!
//! A file is written aside, flushed, and renamed. As root, what is made belongs to the owner of the directory
//! that it is made in: after 'sudo croft image build --home ~/.croft', the person can still use their home.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// A finished file that has no name yet.
pub(crate) struct Aside(tempfile::NamedTempFile);

/// Makes a directory and those above it, for their owner only.
pub(crate) fn make_dirs(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists()).collect();
    for dir in missing.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => belong_to_parent(dir)?,
            // Another process was faster.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes bytes into a nameless file in the directory of `path`, readable by its owner only.
pub(crate) fn aside(path: &Path, bytes: &[u8], durable: bool) -> io::Result<Aside> {
    let dir = dir_of(path);
    make_dirs(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    belong_to_parent(file.path())?;
    if durable {
        file.as_file().sync_all()?;
    }
    Ok(Aside(file))
}

impl Aside {
    /// Puts it in place, whatever was there.
    pub(crate) fn replace(self, path: &Path, durable: bool) -> io::Result<()> {
        self.0.persist(path).map_err(|e| e.error)?;
        if durable { sync_dir(dir_of(path)) } else { Ok(()) }
    }

    /// Puts it in place if nothing is there. Returns whether nothing was.
    pub(crate) fn add(self, path: &Path) -> io::Result<bool> {
        match self.0.persist_noclobber(path) {
            Ok(_) => sync_dir(dir_of(path)).map(|()| true),
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e.error),
        }
    }
}

/// Waits until no other process holds the directory's lock, and holds it until dropped.
pub(crate) fn lock(dir: &Path) -> io::Result<fs::File> {
    make_dirs(dir)?;
    let file = lock_file(&dir.join(".lock"))?;
    file.lock()?;
    Ok(file)
}

/// A file that is there to be locked.
pub(crate) fn lock_file(path: &Path) -> io::Result<fs::File> {
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    belong_to_parent(path)?;
    Ok(file)
}

/// As [`lock`], without waiting; `None` when another process holds it.
pub(crate) fn try_lock(dir: &Path) -> io::Result<Option<fs::File>> {
    make_dirs(dir)?;
    let file = lock_file(&dir.join(".lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// The directory of a path, also of one without any.
pub(crate) fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a rename durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

fn belong_to_parent(path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let parent = fs::metadata(dir_of(path))?;
    if parent.uid() != 0 {
        std::os::unix::fs::lchown(path, Some(parent.uid()), Some(parent.gid()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::is_root;

    #[test]
    fn what_root_makes_in_a_persons_home_belongs_to_the_person() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(1234), Some(2345)).unwrap();
        let path = home.join("a/b/file");
        aside(&path, b"x", true).unwrap().replace(&path, true).unwrap();
        for made in [home.join("a"), home.join("a/b"), path] {
            let found = fs::metadata(&made).unwrap();
            assert_eq!((found.uid(), found.gid()), (1234, 2345), "{}", made.display());
            assert_eq!(found.mode() & 0o077, 0, "{}", made.display());
        }
    }

    #[test]
    fn a_file_is_added_only_where_none_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(aside(&path, b"1", true).unwrap().add(&path).unwrap());
        assert!(!aside(&path, b"2", true).unwrap().add(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"1");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
    }
}
