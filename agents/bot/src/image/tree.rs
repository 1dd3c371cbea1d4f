//! The directory in which an image's file system grows, and the only way to touch it.
//!
//! Layers come from strangers. Every path is resolved by the kernel inside the tree (`openat2` with
//! `RESOLVE_IN_ROOT`), so that neither `..` nor a link, absolute or relative, leads out of it; the last
//! component is never followed at all. It must never open an existing file for writing: a hard link of an
//! earlier layer would be changed with it.
//!
//! Root sets owners, modes and devices on the files themselves. Anybody else leaves them as they can and
//! notes the truth beside, in the form that `fakeroot -i` reads.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

/// Directories within each other. The kernel allows deeper ones, mkfs.erofs and our own stack don't.
const DEPTH: usize = 256;

/// A path inside the tree: components that are neither empty, `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TreePath(Vec<u8>);

impl TreePath {
    /// Cleans a path of an archive: a leading `/` and `.` components mean nothing, `..` is refused.
    pub(crate) fn new(path: &[u8]) -> Result<Self, TreeError> {
        let refuse = |reason| Err(TreeError::Path { path: lossy(path), reason });
        let mut clean = Vec::with_capacity(path.len());
        for part in path.split(|b| *b == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return refuse("climbs with '..'"),
                _ if part.contains(&0) => return refuse("contains a zero byte"),
                _ if part.len() > 255 => return refuse("has a component of more than 255 bytes"),
                _ => {}
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(part);
        }
        Ok(Self(clean))
    }

    /// The tree's root itself.
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Parent and last component; `None` for the root.
    pub(crate) fn split(&self) -> Option<(Self, &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => (Self(self.0[..slash].to_vec()), &self.0[slash + 1..]),
            None => (Self(Vec::new()), &self.0),
        })
    }

    /// A name below this path.
    pub(crate) fn join(&self, name: &[u8]) -> Result<Self, TreeError> {
        if name.is_empty() || name == b"." || name == b".." {
            return Err(TreeError::Path { path: self.to_string(), reason: "hides nothing that can exist" });
        }
        let mut path = self.0.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Ok(Self(path))
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|p| !p.is_empty())
    }
}

impl std::fmt::Display for TreePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}", lossy(&self.0))
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
}

/// Why something can't be put into the tree.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("the path '{path}' {reason}: the layer is hostile or broken")]
    Path { path: String, reason: &'static str },
    #[error("{path} leads through something that is no directory: the layer contradicts those below it")]
    NotADirectory { path: TreePath },
    #[error("{path} leads through a link to nothing: the layer contradicts those below it")]
    DanglingParent { path: TreePath },
    #[error("{path} is a hard link to {target}, which does not exist: the layer is broken")]
    NoLinkTarget { path: TreePath, target: TreePath },
    #[error("directories are nested more than {DEPTH} deep at '{name}'")]
    TooDeep { name: String },
    #[error(
        "{path} has the attribute '{name}', which only root can set: run 'sudo croft image build' with the same --home"
    )]
    AttributeNeedsRoot { path: TreePath, name: String },
    #[error("{path} has the attribute '{name}', which would change the meaning of the overlay above it")]
    OverlayAttribute { path: TreePath, name: String },
    #[error(
        "the scratch directory {dir} gives its files the attribute '{name}', which would end up in the image: choose another place with --scratch"
    )]
    InheritedAttribute { dir: PathBuf, name: String },
    #[error("can't {action} {path}")]
    System { action: &'static str, path: TreePath, source: io::Error },
}

/// Owner, mode and time of something in the tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: u64,
}

/// What [`Tree::finish`] counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TreeSummary {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// The newest time in the tree, seconds since 1970.
    pub(crate) newest_s: u64,
}

/// What fakeroot should say of an inode.
#[derive(Debug, Clone, Copy)]
struct Pretended {
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u64,
}

pub(crate) struct Tree {
    dir: PathBuf,
    root: OwnedFd,
    /// `None` when we are root.
    pretended: Option<HashMap<u64, Pretended>>,
    /// Times of directories, by inode: set last, since every new file in them changes them.
    directory_times: HashMap<u64, u64>,
    has_xattrs: bool,
}

impl Tree {
    /// Starts an empty tree in an empty directory with the privilege that we have.
    #[cfg(test)]
    pub(crate) fn new(dir: &Path) -> Result<Self, TreeError> {
        Self::with_privilege(dir, rustix::process::geteuid().is_root())
    }

    /// Starts an empty tree in an empty directory.
    pub(crate) fn with_privilege(dir: &Path, as_root: bool) -> Result<Self, TreeError> {
        let top = TreePath(Vec::new());
        let root = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| system("open", &top, e))?;
        let mut names = vec![0u8; 4096];
        // A file system without attributes gives none to its files.
        let len = rustix::fs::llistxattr(dir, &mut names).unwrap_or(0);
        if let Some(name) = names[..len].split(|b| *b == 0).find(|n| !n.is_empty()) {
            return Err(TreeError::InheritedAttribute { dir: dir.to_owned(), name: lossy(name) });
        }
        let mut tree = Self {
            dir: dir.to_owned(),
            root,
            pretended: (!as_root).then(HashMap::new),
            directory_times: HashMap::new(),
            has_xattrs: false,
        };
        // Until a layer says otherwise.
        let root_attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime_s: 0 };
        tree.directory(&top, &root_attributes, &BTreeMap::new())?;
        Ok(tree)
    }

    pub(crate) fn has_xattrs(&self) -> bool {
        self.has_xattrs
    }

    /// Makes a directory, or gives an existing one new attributes.
    pub(crate) fn directory(
        &mut self,
        path: &TreePath,
        attributes: &Attributes,
        xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<(), TreeError> {
        let fd = if let Some((parent, name)) = path.split() {
            let parent = self.parent(&parent)?;
            match stat(&parent, name, path)? {
                Some(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {}
                other => {
                    if other.is_some() {
                        remove(&parent, name, path, 0)?;
                    }
                    rustix::fs::mkdirat(&parent, OsStr::from_bytes(name), Mode::RWXU)
                        .map_err(|e| system("make directory", path, e))?;
                }
            }
            open_directory(&parent, name, path)?
        } else {
            rustix::fs::open(&self.dir, DIRECTORY, Mode::empty()).map_err(|e| system("open", path, e))?
        };
        self.set_xattrs(path, fd.as_fd(), xattrs)?;
        let inode = self.own(path, fd.as_fd(), FileType::Directory, attributes)?;
        self.directory_times.insert(inode, attributes.mtime_s);
        Ok(())
    }

    /// Makes a new file, whatever was there before, and lets the caller fill it.
    pub(crate) fn file<E: From<TreeError>>(
        &mut self,
        path: &TreePath,
        attributes: &Attributes,
        xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (parent, name) = self.make_room(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, OsStr::from_bytes(&name), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| system("create", path, e))?;
        let mut file = File::from(fd);
        fill(&mut |bytes| {
            file.write_all(bytes)
                .map_err(|source| E::from(TreeError::System { action: "write", path: path.clone(), source }))
        })?;
        self.set_xattrs(path, file.as_fd(), xattrs)?;
        self.own(path, file.as_fd(), FileType::RegularFile, attributes)?;
        rustix::fs::futimens(&file, &times(attributes.mtime_s))
            .map_err(|e| system("set the time of", path, e))?;
        Ok(())
    }

    pub(crate) fn symlink(
        &mut self,
        path: &TreePath,
        target: &[u8],
        attributes: &Attributes,
    ) -> Result<(), TreeError> {
        let (parent, name) = self.make_room(path)?;
        let name = OsStr::from_bytes(&name);
        rustix::fs::symlinkat(OsStr::from_bytes(target), &parent, name)
            .map_err(|e| system("link", path, e))?;
        self.own_unopened(path, &parent, name, FileType::Symlink, 0, attributes)
    }

    /// Another name for what `target` names; links are not followed at its end.
    pub(crate) fn hard_link(&mut self, path: &TreePath, target: &TreePath) -> Result<(), TreeError> {
        let missing = || TreeError::NoLinkTarget { path: path.clone(), target: target.clone() };
        let (target_parent, target_name) = target.split().ok_or_else(missing)?;
        let target_parent = self.open_inside(&target_parent)?.ok_or_else(missing)?;
        let found = stat(&target_parent, target_name, target)?.ok_or_else(missing)?;
        if let Some((parent, name)) = path.split()
            && let Some(parent) = self.open_inside(&parent)?
            && let Some(here) = stat(&parent, name, path)?
            && here.st_ino == found.st_ino
        {
            return Ok(());
        }
        let (parent, name) = self.make_room(path)?;
        rustix::fs::linkat(
            &target_parent,
            OsStr::from_bytes(target_name),
            &parent,
            OsStr::from_bytes(&name),
            AtFlags::empty(),
        )
        .map_err(|e| if e == Errno::NOENT { missing() } else { system("link", path, e) })
    }

    /// A device (with its number) or a FIFO.
    pub(crate) fn special(
        &mut self,
        path: &TreePath,
        kind: FileType,
        device: (u32, u32),
        attributes: &Attributes,
    ) -> Result<(), TreeError> {
        let (parent, name) = self.make_room(path)?;
        let name = OsStr::from_bytes(&name);
        let rdev = rustix::fs::makedev(device.0, device.1);
        if self.pretended.is_some() {
            // An empty file stands in; fakeroot tells mkfs.erofs what it should be.
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR).map(drop)
        } else {
            rustix::fs::mknodat(&parent, name, kind, Mode::RUSR | Mode::WUSR, rdev)
        }
        .map_err(|e| system("make", path, e))?;
        self.own_unopened(path, &parent, name, kind, rdev, attributes)
    }

    /// Removes what earlier layers left under a path; nothing there is fine.
    pub(crate) fn remove(&mut self, path: &TreePath) -> Result<(), TreeError> {
        let Some((parent, name)) = path.split() else { return self.remove_children(path) };
        let Some(parent) = self.open_inside(&parent)? else { return Ok(()) };
        if stat(&parent, name, path)?.is_some() {
            remove(&parent, name, path, 0)?;
        }
        Ok(())
    }

    /// Empties a directory; nothing there is fine.
    pub(crate) fn remove_children(&mut self, path: &TreePath) -> Result<(), TreeError> {
        let Some(dir) = self.open_inside(path)? else { return Ok(()) };
        for name in children(&dir, path)? {
            remove(&dir, &name, path, 0)?;
        }
        Ok(())
    }

    /// Sets the times of all directories and counts what is there.
    pub(crate) fn finish(&mut self) -> Result<TreeSummary, TreeError> {
        let top = TreePath(Vec::new());
        let root =
            rustix::fs::open(&self.dir, DIRECTORY, Mode::empty()).map_err(|e| system("open", &top, e))?;
        let mut summary = TreeSummary::default();
        self.finish_directory(&root, &top, 0, &mut summary)?;
        Ok(summary)
    }

    /// What `fakeroot -i` has to read so that others see the true owners; `None` when they are real.
    pub(crate) fn fakeroot_state(&self) -> Result<Option<String>, TreeError> {
        use std::fmt::Write as _;
        let Some(pretended) = &self.pretended else { return Ok(None) };
        let device =
            rustix::fs::fstat(&self.root).map_err(|e| system("look at", &TreePath(Vec::new()), e))?.st_dev;
        let mut text = String::new();
        for (inode, p) in pretended {
            // One link is enough for fakeroot: it counts them only to forget removed files.
            let _ = writeln!(
                text,
                "dev={device:x},ino={inode},mode={:o},uid={},gid={},nlink=1,rdev={}",
                p.mode, p.uid, p.gid, p.rdev
            );
        }
        Ok(Some(text))
    }

    fn finish_directory(
        &mut self,
        dir: &OwnedFd,
        path: &TreePath,
        depth: usize,
        summary: &mut TreeSummary,
    ) -> Result<(), TreeError> {
        for name in children(dir, path)? {
            let Some(found) = stat(dir, &name, path)? else { continue };
            summary.files += 1;
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => {
                    if depth >= DEPTH {
                        return Err(TreeError::TooDeep { name: lossy(&name) });
                    }
                    let child = open_directory(dir, &name, path)?;
                    self.finish_directory(&child, path, depth + 1, summary)?;
                }
                kind => {
                    if kind == FileType::RegularFile {
                        summary.bytes += u64::try_from(found.st_size).unwrap_or(0);
                    }
                    summary.newest_s = summary.newest_s.max(u64::try_from(found.st_mtime).unwrap_or(0));
                }
            }
        }
        let inode = rustix::fs::fstat(dir).map_err(|e| system("look at", path, e))?.st_ino;
        let time = self.directory_times.get(&inode).copied().unwrap_or(0);
        summary.newest_s = summary.newest_s.max(time);
        rustix::fs::futimens(dir, &times(time)).map_err(|e| system("set the time of", path, e))
    }

    /// Opens a directory of the tree, following its links inside it; `None` when there is none.
    fn open_inside(&self, path: &TreePath) -> Result<Option<OwnedFd>, TreeError> {
        let text: &[u8] = if path.is_root() { b"." } else { &path.0 };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.root, OsStr::from_bytes(text), DIRECTORY, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR) => Err(TreeError::NotADirectory { path: path.clone() }),
            Err(e) => Err(system("open", path, e)),
        }
    }

    /// Opens a directory and makes it, and those above it, where they are missing.
    fn parent(&mut self, path: &TreePath) -> Result<OwnedFd, TreeError> {
        if let Some(fd) = self.open_inside(path)? {
            return Ok(fd);
        }
        let mut prefix = TreePath(Vec::new());
        let mut fd = self.open_inside(&prefix)?.ok_or_else(|| system("open", path, Errno::NOENT))?;
        for part in path.parts() {
            if !prefix.is_root() {
                prefix.0.push(b'/');
            }
            prefix.0.extend_from_slice(part);
            if let Some(next) = self.open_inside(&prefix)? {
                fd = next;
                continue;
            }
            match rustix::fs::mkdirat(&fd, OsStr::from_bytes(part), Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Err(TreeError::DanglingParent { path: prefix }),
                Err(e) => return Err(system("make directory", &prefix, e)),
            }
            fd = open_directory(&fd, part, &prefix)?;
            let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime_s: 0 };
            let inode = self.own(&prefix, fd.as_fd(), FileType::Directory, &attributes)?;
            self.directory_times.insert(inode, 0);
        }
        Ok(fd)
    }

    /// The parent and name of something new; what was there is gone.
    fn make_room(&mut self, path: &TreePath) -> Result<(OwnedFd, Vec<u8>), TreeError> {
        let Some((parent, name)) = path.split() else {
            return Err(TreeError::Path { path: "/".to_owned(), reason: "is not a directory in the layer" });
        };
        let name = name.to_vec();
        let parent = self.parent(&parent)?;
        if stat(&parent, &name, path)?.is_some() {
            remove(&parent, &name, path, 0)?;
        }
        Ok((parent, name))
    }

    /// Sets or notes owner and mode of something open. Returns its inode.
    fn own(
        &mut self,
        path: &TreePath,
        fd: std::os::fd::BorrowedFd<'_>,
        kind: FileType,
        attributes: &Attributes,
    ) -> Result<u64, TreeError> {
        let inode = rustix::fs::fstat(fd).map_err(|e| system("look at", path, e))?.st_ino;
        let mode = kind.as_raw_mode() | attributes.mode;
        if let Some(pretended) = &mut self.pretended {
            pretended.insert(inode, Pretended { mode, uid: attributes.uid, gid: attributes.gid, rdev: 0 });
        } else {
            // The owner first: changing it clears setuid.
            rustix::fs::fchown(
                fd,
                owner(attributes.uid, Uid::from_raw),
                owner(attributes.gid, Gid::from_raw),
            )
            .map_err(|e| system("change the owner of", path, e))?;
            rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode))
                .map_err(|e| system("change the mode of", path, e))?;
        }
        Ok(inode)
    }

    /// The same for what can't be opened: links, devices, FIFOs. Sets the time too.
    fn own_unopened(
        &mut self,
        path: &TreePath,
        parent: &OwnedFd,
        name: &OsStr,
        kind: FileType,
        rdev: u64,
        attributes: &Attributes,
    ) -> Result<(), TreeError> {
        if let Some(pretended) = &mut self.pretended {
            let inode = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| system("look at", path, e))?
                .st_ino;
            // mkfs.erofs takes the mode of a link from lstat, which is always 0777 on Linux.
            let mode = if kind == FileType::Symlink { 0o777 } else { attributes.mode };
            let mode = kind.as_raw_mode() | mode;
            pretended.insert(inode, Pretended { mode, uid: attributes.uid, gid: attributes.gid, rdev });
        } else {
            rustix::fs::chownat(
                parent,
                name,
                owner(attributes.uid, Uid::from_raw),
                owner(attributes.gid, Gid::from_raw),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|e| system("change the owner of", path, e))?;
            if kind != FileType::Symlink {
                rustix::fs::chmodat(parent, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty())
                    .map_err(|e| system("change the mode of", path, e))?;
            }
        }
        rustix::fs::utimensat(parent, name, &times(attributes.mtime_s), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| system("set the time of", path, e))
    }

    fn set_xattrs(
        &mut self,
        path: &TreePath,
        fd: std::os::fd::BorrowedFd<'_>,
        xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<(), TreeError> {
        for (name, value) in xattrs {
            if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
                return Err(TreeError::OverlayAttribute { path: path.clone(), name: lossy(name) });
            }
            let Ok(c_name) = CString::new(name.as_slice()) else {
                return Err(TreeError::Path {
                    path: path.to_string(),
                    reason: "has a nonsensical attribute",
                });
            };
            match rustix::fs::fsetxattr(fd, c_name.as_c_str(), value, rustix::fs::XattrFlags::empty()) {
                Ok(()) => self.has_xattrs = true,
                Err(Errno::PERM | Errno::ACCESS) if self.pretended.is_some() => {
                    return Err(TreeError::AttributeNeedsRoot { path: path.clone(), name: lossy(name) });
                }
                Err(e) => return Err(system("set an attribute of", path, e)),
            }
        }
        Ok(())
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn system(action: &'static str, path: &TreePath, errno: Errno) -> TreeError {
    TreeError::System { action, path: path.clone(), source: errno.into() }
}

fn owner<T>(id: u32, make: impl FnOnce(u32) -> T) -> Option<T> {
    // 0xffff_ffff means "leave it" to the kernel.
    (id != u32::MAX).then(|| make(id))
}

fn times(mtime_s: u64) -> Timestamps {
    // File systems end where 34 bits end at the earliest; EROFS keeps 64.
    let time = Timespec { tv_sec: i64::try_from(mtime_s).unwrap_or(0).min(i64::from(u32::MAX)), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn stat(dir: &OwnedFd, name: &[u8], path: &TreePath) -> Result<Option<Stat>, TreeError> {
    match rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(system("look at", path, e)),
    }
}

fn open_directory(dir: &OwnedFd, name: &[u8], path: &TreePath) -> Result<OwnedFd, TreeError> {
    rustix::fs::openat(dir, OsStr::from_bytes(name), DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|e| system("open", path, e))
}

fn children(dir: &OwnedFd, path: &TreePath) -> Result<Vec<Vec<u8>>, TreeError> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).map_err(|e| system("list", path, e))? {
        let entry = entry.map_err(|e| system("list", path, e))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn remove(parent: &OwnedFd, name: &[u8], path: &TreePath, depth: usize) -> Result<(), TreeError> {
    if depth > DEPTH {
        return Err(TreeError::TooDeep { name: lossy(name) });
    }
    let os_name = OsStr::from_bytes(name);
    match rustix::fs::unlinkat(parent, os_name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(system("remove", path, e)),
    }
    let dir = open_directory(parent, name, path)?;
    for child in children(&dir, path)? {
        remove(&dir, &child, path, depth + 1)?;
    }
    rustix::fs::unlinkat(parent, os_name, AtFlags::REMOVEDIR).map_err(|e| system("remove", path, e))
}

#[cfg(test)]
mod tests;
