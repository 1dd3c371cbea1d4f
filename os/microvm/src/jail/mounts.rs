//! The root of a jail: a small tmpfs with what the program needs bound into it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};

use super::syscalls::{MountAttributes, OneThread, fork, set_mount_attributes};
use super::{JailError, JailMount, JailSpec, JailUser};

/// Device nodes and empty mount points only.
const ROOT_OPTIONS: &std::ffi::CStr = c"mode=0755,size=1m,nr_inodes=256";

impl JailUser {
    /// Owner of what the jail makes in its root, as the host sees it.
    pub(super) fn host_id(self) -> u32 {
        match self {
            Self::Plain { id } => id,
            Self::Namespace { first, .. } => first,
        }
    }

    /// The lines of `uid_map` and `gid_map`.
    pub(super) fn map(self) -> String {
        match self {
            Self::Plain { id } => format!("0 {id} 1\n"),
            Self::Namespace { first, count } => format!("0 {first} {count}\n"),
        }
    }
}

/// Mounts the root and everything in it. The caller has a mount namespace of its own.
pub(super) fn build(spec: &JailSpec, users: Option<&OwnedFd>) -> Result<(), JailError> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|error| JailError::step("making mounts private", error))?;
    mount("jail", &spec.root, "tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, Some(ROOT_OPTIONS))
        .map_err(|error| JailError::step(format!("mounting a root on {}", spec.root.display()), error))?;
    for mount in &spec.mounts {
        bind(spec, mount, users)?;
    }
    for device in &spec.devices {
        make_device(spec, device)?;
    }
    if spec.proc {
        make_directory(&in_root(spec, Path::new("/proc")))?;
    }
    Ok(())
}

/// Makes the built root the only one. What is mounted elsewhere is gone for this process.
pub(super) fn pivot(spec: &JailSpec) -> Result<(), JailError> {
    let failed = |step: &str, error: rustix::io::Errno| JailError::step(step, error);
    rustix::process::chdir(&spec.root).map_err(|error| failed("entering the root", error))?;
    rustix::process::pivot_root(".", ".").map_err(|error| match error {
        rustix::io::Errno::INVAL => JailError::step(
            "changing the root (the node must not run from its initramfs: init moves it to a tmpfs first)",
            error,
        ),
        _ => failed("changing the root", error),
    })?;
    unmount(".", UnmountFlags::DETACH).map_err(|error| failed("leaving the old root", error))?;
    rustix::process::chdir("/").map_err(|error| failed("entering the new root", error))
}

/// Mounts `/proc` of the present process namespace and closes the root for writing.
pub(super) fn seal(proc: bool) -> Result<(), JailError> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    if proc {
        mount("proc", "/proc", "proc", flags, None)
            .map_err(|error| JailError::step("mounting /proc", error))?;
    }
    mount_remount("/", MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::BIND, "")
        .map_err(|error| JailError::step("closing the root for writing", error))
}

fn in_root(spec: &JailSpec, path: &Path) -> PathBuf {
    spec.root.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_directory(path: &Path) -> Result<(), JailError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|error| JailError::step(format!("creating {}", path.display()), error))
}

fn bind(spec: &JailSpec, mount: &JailMount, users: Option<&OwnedFd>) -> Result<(), JailError> {
    let source = mount.source.display();
    let metadata = fs::metadata(&mount.source)
        .map_err(|error| JailError::step(format!("looking at {source}"), error))?;
    let target = in_root(spec, &mount.target);
    if metadata.is_dir() {
        make_directory(&target)?;
    } else {
        if let Some(parent) = target.parent() {
            make_directory(parent)?;
        }
        File::create(&target)
            .map_err(|error| JailError::step(format!("creating {}", target.display()), error))?;
    }
    // Not recursive: what is mounted below a shared directory is not meant to be shared.
    let tree =
        open_tree(CWD, &mount.source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .map_err(|error| JailError::step(format!("taking {source}"), error))?;
    let mut set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if mount.readonly {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    if !mount.executable {
        set |= libc::MOUNT_ATTR_NOEXEC;
    }
    set_mount_attributes(&tree, &MountAttributes { set, users: None })
        .map_err(|error| JailError::step(format!("restricting {source}"), error))?;
    if let Some(users) = users.filter(|_| mount.map_users) {
        let attributes = MountAttributes { set: 0, users: Some(users.as_fd()) };
        set_mount_attributes(&tree, &attributes).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => JailError::NoIdMap { path: mount.source.clone(), source: error },
            _ => JailError::step(format!("mapping users of {source}"), error),
        })?;
    }
    move_mount(tree.as_fd(), "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| JailError::step(format!("mounting {source} on {}", mount.target.display()), error))
}

/// A node of the jail's own, so that its owner is the jail's user and the host's node keeps its own.
fn make_device(spec: &JailSpec, device: &Path) -> Result<(), JailError> {
    let failed = |error: io::Error| JailError::step(format!("device {}", device.display()), error);
    let metadata = fs::metadata(device).map_err(failed)?;
    if !metadata.file_type().is_char_device() {
        return Err(failed(io::Error::other("it is not a character device")));
    }
    let target = in_root(spec, device);
    if let Some(parent) = target.parent() {
        make_directory(parent)?;
    }
    mknodat(CWD, &target, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, metadata.rdev())
        .map_err(|error| failed(error.into()))?;
    let user = spec.user.host_id();
    chown(&target, Some(user), Some(user)).map_err(failed)?;
    // mknod obeys the umask.
    fs::set_permissions(&target, Permissions::from_mode(0o600)).map_err(failed)
}

/// A user namespace with the jail's map, for mapped mounts. Nobody lives in it. Made before the process
/// namespace, whose first child it would become otherwise.
pub(super) fn user_namespace(spec: &JailSpec, alone: OneThread) -> Result<Option<OwnedFd>, JailError> {
    if !spec.mounts.iter().any(|mount| mount.map_users) {
        return Ok(None);
    }
    let failed = |error: io::Error| JailError::step("making a user namespace", error);
    let (ready_read, ready_write) = rustix::pipe::pipe().map_err(|error| failed(error.into()))?;
    let (hold_read, hold_write) = rustix::pipe::pipe().map_err(|error| failed(error.into()))?;
    let Some(child) = fork(alone)? else {
        drop(hold_write);
        let made = unshare(CloneFlags::CLONE_NEWUSER).is_ok();
        let _ = File::from(ready_write).write_all(&[u8::from(made)]);
        // Until the parent has what it wants, or is gone.
        let _ = File::from(hold_read).read(&mut [0]);
        std::process::exit(0);
    };
    drop(ready_write);
    let mut made = [0];
    let result = File::from(ready_read)
        .read_exact(&mut made)
        .and_then(|()| match made {
            [1] => write_maps(Path::new("/proc"), child, spec.user),
            _ => Err(io::Error::other("the kernel refuses: are user namespaces enabled?")),
        })
        .and_then(|()| File::open(format!("/proc/{child}/ns/user")));
    drop(hold_write);
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
    result.map(|file| Some(OwnedFd::from(file))).map_err(failed)
}

/// Writes the maps of a process that just made its user namespace.
pub(super) fn write_maps(proc: &Path, process: Pid, user: JailUser) -> io::Result<()> {
    for file in ["uid_map", "gid_map"] {
        fs::write(proc.join(process.to_string()).join(file), user.map())?;
    }
    Ok(())
}
