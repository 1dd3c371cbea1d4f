//! The files that are served: those that the checksums of one folder list, these checksums, and iPXE for BIOS.
//!
//! Must never follow a link or a name out of the folder, never serve what somebody else put into it, and never half of one
//! folder and half of the next: the folder is checked against its own checksums before the first answer.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};

use crate::netboot::{self, BOOT_FILE, CHECKSUMS, NetbootError, SCRIPT};

/// iPXE for BIOS machines whose own ROM is another's, and where the distribution's package `ipxe` has it.
pub const UNDIONLY: &str = "undionly.kpxe";
const UNDIONLY_PACKAGED: &str = "/usr/lib/ipxe/undionly.kpxe";
/// Longer names are nobody's here.
const NAME_BYTES: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{path} is no netboot folder: make one with 'croft farm image --medium netboot'")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} can't be served")]
    Damaged { path: PathBuf, source: Box<NetbootError> },
    #[error("{path} has no {name}: make the folder again with 'croft farm image --medium netboot'")]
    Lacks { path: PathBuf, name: &'static str },
}

/// Why a name is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    #[error("not the name of a file here")]
    Name,
    #[error("there is no such file")]
    Missing,
}

#[derive(Debug)]
pub struct Folder {
    dir: OwnedFd,
    /// What its checksums list.
    listed: Vec<String>,
    /// From outside the folder, chosen by us and not by who asks.
    undionly: Option<PathBuf>,
}

/// An open file; it stays the same while a newer one takes its name.
#[derive(Debug)]
pub struct Served {
    pub name: String,
    pub file: File,
    pub bytes: u64,
}

impl Folder {
    /// Opens a folder that `netboot::write` made, and checks it.
    ///
    /// # Errors
    /// [`FolderError`] names what is missing.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let failed =
            |source: rustix::io::Errno| FolderError::Open { path: path.to_owned(), source: source.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        for name in [BOOT_FILE, SCRIPT] {
            if in_folder(&folder, name).is_err() {
                return Err(FolderError::Lacks { path: path.to_owned(), name });
            }
        }
        let listed = netboot::verify(path)
            .map_err(|source| FolderError::Damaged { path: path.to_owned(), source: Box::new(source) })?;
        let packaged = PathBuf::from(UNDIONLY_PACKAGED);
        let undionly = (in_folder(&folder, UNDIONLY).is_err() && packaged.is_file()).then_some(packaged);
        Ok(Self { dir: folder, listed, undionly })
    }

    /// Whether BIOS machines without iPXE of their own can be served.
    #[must_use]
    pub fn has_undionly(&self) -> bool {
        self.file(UNDIONLY).is_ok()
    }

    /// A file by the name that a machine asks for.
    ///
    /// # Errors
    /// [`NotServed`].
    pub fn file(&self, asked: &str) -> Result<Served, NotServed> {
        let name = plain(asked).ok_or(NotServed::Name)?;
        if ![CHECKSUMS, UNDIONLY].contains(&name) && !self.listed.iter().any(|listed| listed == name) {
            return Err(NotServed::Missing);
        }
        match &self.undionly {
            Some(path) if name == UNDIONLY => Served::new(name, File::open(path)),
            _ => in_folder(&self.dir, name),
        }
    }
}

impl Served {
    fn new(name: &str, opened: io::Result<File>) -> Result<Self, NotServed> {
        let file = opened.map_err(|_| NotServed::Missing)?;
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => {
                Ok(Self { name: name.to_owned(), file, bytes: metadata.len() })
            }
            _ => Err(NotServed::Missing),
        }
    }
}

/// A file of the folder itself, listed or not.
fn in_folder(folder: &OwnedFd, name: &str) -> Result<Served, NotServed> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat(folder, name, flags, Mode::empty());
    Served::new(name, opened.map(File::from).map_err(io::Error::from))
}

/// The name of a file in the folder itself. Firmware likes to put slashes before it.
fn plain(asked: &str) -> Option<&str> {
    let name = asked.trim_start_matches('/');
    let name = name.strip_prefix("./").unwrap_or(name);
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let is_plain = (1..=NAME_BYTES).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(fits);
    is_plain.then_some(name)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::esp::Contents;

    pub(crate) fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        netboot::write(dir.path(), &Contents { boot_file: b"MZ kernel", addition: Some(b"farm") }).unwrap();
        std::fs::write(dir.path().join(UNDIONLY), b"ipxe").unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    #[test]
    fn files_of_the_folder_are_served_and_nothing_that_is_elsewhere() {
        let (dir, folder) = folder();
        for asked in ["croft.efi", "/croft.efi", "//croft.efi", "./croft.efi"] {
            let mut served = folder.file(asked).unwrap();
            let mut content = String::new();
            served.file.read_to_string(&mut content).unwrap();
            assert_eq!((content.as_str(), served.bytes, served.name.as_str()), ("MZ kernel", 9, "croft.efi"));
        }
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join(".hidden"), "x").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "x").unwrap();
        for asked in [
            "../etc/passwd",
            "/etc/passwd",
            "sub/../croft.efi",
            "..",
            ".",
            "",
            ".hidden",
            "a\0b",
            "a b",
            "x\\y",
        ] {
            assert_eq!(folder.file(asked).unwrap_err(), NotServed::Name, "{asked:?}");
        }
        for asked in ["link", "sub", "nothing", "notes.txt"] {
            assert_eq!(folder.file(asked).unwrap_err(), NotServed::Missing, "{asked:?}");
        }
        for asked in ["boot.ipxe", "autoexec.ipxe", "farm.bin", "SHA256SUMS", UNDIONLY] {
            assert!(folder.file(asked).is_ok(), "{asked:?}");
        }
    }

    #[test]
    fn a_folder_that_machines_can_not_boot_from_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        let error = Folder::open(dir.path()).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "{path} has no croft.efi: make the folder again with 'croft farm image --medium netboot'"
            )
        );
        let error = Folder::open(&dir.path().join("no")).unwrap_err().to_string();
        assert!(
            error.ends_with("is no netboot folder: make one with 'croft farm image --medium netboot'"),
            "{error}"
        );
        let (dir, _) = folder();
        std::fs::write(dir.path().join(BOOT_FILE), b"MZ altered").unwrap();
        let error = Folder::open(dir.path()).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("croft.efi is not what its checksums say"), "{source}");
        std::fs::write(dir.path().join(CHECKSUMS), b"").unwrap();
        let error = Folder::open(dir.path()).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, "the netboot folder's SHA256SUMS does not list croft.efi: make the folder again");
    }
}
