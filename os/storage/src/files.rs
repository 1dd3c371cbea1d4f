//! The few file operations that cache and documents are made of, behind a trait, so that tests can cut the power
//! between any two of them.
//!
//! What is durable after which call: the bytes of a file after [`Sink::sync`]; its name after [`Files::sync_folder`].
//! Nothing else is. A caller that needs both asks for both, in this order.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A file that is being written.
pub trait Sink: Write + Send {
    /// Makes the bytes durable, not the name.
    fn sync(&mut self) -> io::Result<()>;
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub bytes: u64,
    pub folder: bool,
    /// Nanoseconds since 1970.
    pub modified_ns: u64,
}

pub trait Files: Send + Sync + Debug {
    /// A new file, readable by the owner alone; fails when the name is taken.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>>;
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;
    /// Replaces what has the new name. Atomic.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// With its parents; not an error when it is there.
    fn make_folder(&self, path: &Path) -> io::Result<()>;
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;
    /// Sets the time of the last change to now; how recently an entry of the cache was used.
    fn touch(&self, path: &Path) -> io::Result<()>;
}

/// The real ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFiles;

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Files for OsFiles {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let modified = meta.modified().unwrap_or(UNIX_EPOCH);
            let modified_ns = modified.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
            entries.push(Entry {
                name,
                bytes: meta.len(),
                folder: meta.is_dir(),
                modified_ns: u64::try_from(modified_ns).unwrap_or(u64::MAX),
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        File::options().write(true).open(path)?.set_modified(SystemTime::now())
    }
}
