//! Gives the machine a root that can be pivoted and can't grow without limit.
//!
//! The kernel's first root can't be the subject of `pivot_root`, and jails need that; nor has it a sensible size
//! limit, so that a runaway log could eat the memory of workloads.
//!
//! ```text
//! first root is a tmpfs (as usual): limited by a remount, bound over itself: nothing is copied
//! first root is a ramfs:            each file copied to a tmpfs and freed before the next, then moved over it
//! anything else:                    left as it is
//! ```
//!
//! It must never delete anything outside of that first root: [`first_root`] asks both the kernel's mount table and
//! the filesystem's magic number, and a file on another device is left alone.

use crate::mountinfo;
use rustix::fs::{CWD, FileType, FsWord, Mode, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// `RAMFS_MAGIC` and `TMPFS_MAGIC` of linux/magic.h: what an initramfs can be.
const RAMFS_MAGIC: FsWord = 0x8584_58f6_u32 as FsWord;
const TMPFS_MAGIC: FsWord = 0x0102_1994;

/// Room beyond the tree. The root is written until [`seal`] (mount points); what grows belongs to `/run` or `/data`.
const HEADROOM_BYTES: u64 = 16 << 20;
const HEADROOM_INODES: u64 = 4096;

/// Deepest folder that is copied; an image is shallow, and the walk is recursive.
const DEPTH_MAX: usize = 64;

const NEW_ROOT: &str = "/.new-root";

#[derive(Debug, thiserror::Error)]
pub enum MoveRootError {
    #[error("{path} can't be copied to the new root")]
    Copy {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is nested deeper than {DEPTH_MAX} folders: the image is damaged")]
    TooDeep { path: PathBuf },
    #[error("{step} of the new root failed")]
    Switch {
        step: &'static str,
        #[source]
        source: Errno,
    },
}

/// How big a tree is, before it moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tree {
    pub bytes: u64,
    pub inodes: u64,
}

/// What the kernel started us on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstRoot {
    /// An initramfs in a tmpfs.
    Tmpfs,
    /// An initramfs in a ramfs.
    Ramfs,
    /// Somebody's real root, or ours after the change.
    Other,
}

#[must_use]
pub fn first_root() -> FirstRoot {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let named = mountinfo::parse(&text)
        .iter()
        .rev()
        .find(|mount| mount.target == Path::new("/"))
        .is_some_and(|mount| mount.filesystem == "rootfs" || mount.source == "rootfs");
    match rustix::fs::statfs("/").map(|stat| stat.f_type) {
        Ok(TMPFS_MAGIC) if named && Path::new("/init").exists() => FirstRoot::Tmpfs,
        Ok(RAMFS_MAGIC) if named && Path::new("/init").exists() => FirstRoot::Ramfs,
        _ => FirstRoot::Other,
    }
}

/// Limits a first root that is a tmpfs and binds it over itself: the copy of the mount has a parent, so it can be
/// pivoted. The mounts in `movable` move along.
pub fn bind_in_place(movable: &[&str]) -> Result<Tree, MoveRootError> {
    let switch = |step| move |source| MoveRootError::Switch { step, source };
    let new_root = Path::new(NEW_ROOT);
    let copy_error = |source| MoveRootError::Copy { path: "/".into(), source };
    fs::create_dir(new_root).map_err(copy_error)?;
    let stat = rustix::fs::statfs("/").map_err(switch("measuring"))?;
    let block = u64::try_from(stat.f_bsize).unwrap_or(4096);
    let tree = Tree {
        bytes: stat.f_blocks.saturating_sub(stat.f_bfree) * block,
        inodes: stat.f_files.saturating_sub(stat.f_ffree),
    };
    let limit = rustix::mount::mount_remount("/", MountFlags::empty(), tree.limits().as_c_str());
    limit.map_err(switch("limiting"))?;
    rustix::mount::mount_bind("/", new_root).map_err(switch("binding"))?;
    rustix::mount::mount_remount(new_root, MountFlags::BIND | MountFlags::NOSUID, c"")
        .map_err(switch("securing"))?;
    enter(new_root, movable)?;
    // The mount point shows through, because both mounts show the same tree.
    let _ = fs::remove_dir(new_root);
    Ok(tree)
}

/// Copies the tree and makes the copy `/`. The mounts in `movable` move along. Afterwards the running program is
/// still the original's, so the caller starts itself again to free it.
pub fn copy_to_tmpfs(movable: &[&str]) -> Result<Tree, MoveRootError> {
    let new_root = Path::new(NEW_ROOT);
    let copy_error = |source| MoveRootError::Copy { path: "/".into(), source };
    let device = fs::symlink_metadata("/").map_err(copy_error)?.dev();
    let tree = measure(Path::new("/"), device).map_err(copy_error)?;
    fs::create_dir(new_root).map_err(copy_error)?;
    let limits = tree.limits();
    rustix::mount::mount("croft-root", new_root, "tmpfs", MountFlags::NOSUID, Some(limits.as_c_str()))
        .map_err(|source| MoveRootError::Switch { step: "mounting", source })?;
    Mover { device, links: HashMap::new() }.folder(Path::new("/"), new_root, 0)?;
    rustix::fs::chmod(new_root, Mode::from_raw_mode(0o755))
        .map_err(|source| MoveRootError::Switch { step: "opening", source })?;
    enter(new_root, movable)?;
    Ok(tree)
}

/// Makes the root read-only, once everything that needs a mount point has one: whoever gets to write files then can't
/// change what runs. What is mounted below stays as it is.
pub fn seal(root: &Path) -> Result<(), MoveRootError> {
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::RDONLY;
    rustix::mount::mount_remount(root, flags, c"")
        .map_err(|source| MoveRootError::Switch { step: "sealing", source })
}

/// Makes a mounted tree the root: what is mounted on the old one moves in, then it moves over the old one.
fn enter(new_root: &Path, movable: &[&str]) -> Result<(), MoveRootError> {
    let switch = |step| move |source| MoveRootError::Switch { step, source };
    for target in movable {
        let to = new_root.join(target.trim_start_matches('/'));
        rustix::mount::mount_move(*target, &to).map_err(switch("moving mounts"))?;
    }
    rustix::process::chdir(new_root).map_err(switch("entering"))?;
    rustix::mount::mount_move(".", "/").map_err(switch("moving"))?;
    rustix::process::chroot(".").map_err(switch("chroot"))?;
    rustix::process::chdir("/").map_err(switch("entering"))
}

impl Tree {
    /// Mount options of a tmpfs that holds the tree and a little more.
    fn limits(&self) -> std::ffi::CString {
        let bytes = self.bytes + HEADROOM_BYTES;
        let inodes = self.inodes + HEADROOM_INODES;
        std::ffi::CString::new(format!("mode=0755,size={bytes},nr_inodes={inodes}")).unwrap_or_default()
    }
}

/// Bytes in whole pages, as a tmpfs counts them. Does not leave `device`.
fn measure(path: &Path, device: u64) -> io::Result<Tree> {
    const PAGE_BYTES: u64 = 4096;
    let mut tree = Tree::default();
    let mut linked = BTreeSet::new();
    let mut left = vec![path.to_path_buf()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path)?;
        if meta.dev() != device {
            continue;
        }
        if meta.nlink() > 1 && !meta.is_dir() && !linked.insert(meta.ino()) {
            continue;
        }
        tree.inodes += 1;
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        } else {
            tree.bytes += meta.len().div_ceil(PAGE_BYTES) * PAGE_BYTES;
        }
    }
    Ok(tree)
}

struct Mover {
    device: u64,
    /// Inode of the original -> its first copy, for files with more than one name.
    links: HashMap<u64, PathBuf>,
}

impl Mover {
    /// Moves what is in `from` into `to`, which exists.
    fn folder(&mut self, from: &Path, to: &Path, depth: usize) -> Result<(), MoveRootError> {
        if depth > DEPTH_MAX {
            return Err(MoveRootError::TooDeep { path: from.into() });
        }
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| MoveRootError::Copy { path, source }
        };
        let mut names = fs::read_dir(from)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(at(from))?
            .into_iter()
            .map(|entry| entry.file_name())
            .collect::<Vec<_>>();
        names.sort();
        for name in names {
            let (source, target) = (from.join(&name), to.join(&name));
            let meta = fs::symlink_metadata(&source).map_err(at(&source))?;
            if meta.dev() != self.device {
                // Something is mounted here: only its mount point comes along.
                if source != Path::new(NEW_ROOT) {
                    fs::create_dir(&target).map_err(at(&source))?;
                }
                continue;
            }
            if meta.is_dir() {
                fs::create_dir(&target).map_err(at(&source))?;
                self.folder(&source, &target, depth + 1)?;
                dress(&target, &meta).map_err(at(&source))?;
                // Not empty where something is mounted below; it then stays, and costs nothing.
                let _ = fs::remove_dir(&source);
            } else {
                self.file(&source, &target, &meta).map_err(at(&source))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, source: &Path, target: &Path, meta: &fs::Metadata) -> io::Result<()> {
        if let Some(first) = self.links.get(&meta.ino()) {
            fs::hard_link(first, target)?;
            return fs::remove_file(source);
        }
        let kind = FileType::from_raw_mode(meta.mode());
        match kind {
            FileType::Symlink => std::os::unix::fs::symlink(fs::read_link(source)?, target)?,
            FileType::RegularFile => {
                io::copy(&mut fs::File::open(source)?, &mut fs::File::create_new(target)?)?;
            }
            _ => {
                let mode = Mode::from_raw_mode(meta.mode());
                rustix::fs::mknodat(CWD, target, kind, mode, meta.rdev())?;
            }
        }
        dress(target, meta)?;
        if meta.nlink() > 1 {
            self.links.insert(meta.ino(), target.into());
        }
        fs::remove_file(source)
    }
}

/// Owner, mode and times of the original; the owner first, since a change of owner clears mode bits.
fn dress(target: &Path, meta: &fs::Metadata) -> io::Result<()> {
    std::os::unix::fs::lchown(target, Some(meta.uid()), Some(meta.gid()))?;
    if !meta.file_type().is_symlink() {
        rustix::fs::chmod(target, Mode::from_raw_mode(meta.mode()))?;
    }
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(meta.mtime(), meta.mtime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, target, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn move_tree(from: &Path, to: &Path) -> Result<(), MoveRootError> {
        let device = fs::symlink_metadata(from).unwrap().dev();
        Mover { device, links: HashMap::new() }.folder(from, to, 0)
    }

    #[test]
    fn files_links_modes_and_times_come_along_and_the_originals_are_freed() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let program = from.path().join("usr/bin/node");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::write(&program, vec![7; 100_000]).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o751)).unwrap();
        fs::hard_link(&program, from.path().join("same")).unwrap();
        std::os::unix::fs::symlink("usr/bin/node", from.path().join("link")).unwrap();
        fs::create_dir(from.path().join("empty")).unwrap();
        let before = fs::metadata(&program).unwrap();
        move_tree(from.path(), to.path()).unwrap();

        let copy = fs::metadata(to.path().join("usr/bin/node")).unwrap();
        assert_eq!((copy.len(), copy.mode() & 0o7777, copy.mtime()), (100_000, 0o751, before.mtime()));
        assert_eq!(copy.nlink(), 2);
        assert_eq!(fs::read_link(to.path().join("link")).unwrap(), Path::new("usr/bin/node"));
        assert!(to.path().join("empty").is_dir());
        assert_eq!(fs::read_dir(from.path()).unwrap().count(), 0, "originals are left");
    }

    #[test]
    fn a_tree_is_measured_in_whole_pages() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("one"), [1]).unwrap();
        fs::write(directory.path().join("two"), vec![1; 4097]).unwrap();
        fs::hard_link(directory.path().join("two"), directory.path().join("same")).unwrap();
        let device = fs::symlink_metadata(directory.path()).unwrap().dev();
        assert_eq!(measure(directory.path(), device).unwrap(), Tree { bytes: 3 * 4096, inodes: 3 });
        assert_eq!(
            measure(directory.path(), device + 1).unwrap(),
            Tree::default(),
            "never leaves the device"
        );
    }

    #[test]
    fn a_tree_without_end_is_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("d/".repeat(DEPTH_MAX + 2))).unwrap();
        assert!(matches!(move_tree(from.path(), to.path()), Err(MoveRootError::TooDeep { .. })));
    }

    #[test]
    fn the_root_of_a_usual_machine_is_never_touched() {
        if fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" - rootfs rootfs ") {
            println!("skipped: this machine's root is an initramfs");
            return;
        }
        assert_eq!(first_root(), FirstRoot::Other);
    }
}
