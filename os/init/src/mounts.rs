//! The filesystems of the running system, as one table.
//!
//! Runs twice over: the first rows before the root moves (they move along), the others after it. It must never
//! mount a disk: that is node's business, after it has looked at what is on it.

use crate::mountinfo;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub filesystem: &'static str,
    pub target: &'static str,
    pub flags: MountFlags,
    pub data: &'static str,
    /// Mode of the mount point where it has to be made.
    pub mode: u32,
    pub need: Need,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Without it the machine is no node: a fatal error.
    Must,
    /// Mounted where the kernel has the filesystem and the mount point; noted otherwise.
    WhereThere,
}

/// The three that everything else stands on; mounted on the initramfs and moved with the root.
#[must_use]
pub fn early() -> [Row; 3] {
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    [
        // Not `hidepid`: node looks at its VMMs under their own users, and nobody else is there to hide from.
        Row {
            filesystem: "proc",
            target: "/proc",
            flags: safe | MountFlags::NODEV,
            data: "",
            mode: 0o555,
            need: Need::Must,
        },
        Row {
            filesystem: "sysfs",
            target: "/sys",
            flags: safe | MountFlags::NODEV,
            data: "",
            mode: 0o555,
            need: Need::Must,
        },
        Row {
            filesystem: "devtmpfs",
            target: "/dev",
            flags: safe,
            data: "mode=0755",
            mode: 0o755,
            need: Need::Must,
        },
    ]
}

/// What comes on top, in order.
#[must_use]
pub fn late() -> [Row; 7] {
    let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let row =
        |filesystem, target, flags, data, mode, need| Row { filesystem, target, flags, data, mode, need };
    [
        // alioth wants a terminal as its standard input, so ptmx is open to unprivileged VMMs.
        row(
            "devpts",
            "/dev/pts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            "mode=0600,ptmxmode=0666",
            0o755,
            Need::Must,
        ),
        // Guest memory is a memfd and not counted here; the rest needs little.
        row("tmpfs", "/dev/shm", closed, "mode=1777,size=64m,nr_inodes=4k", 0o1777, Need::Must),
        // Runtime state and the jails of VMMs, which execute from here.
        row(
            "tmpfs",
            "/run",
            MountFlags::NOSUID | MountFlags::NODEV,
            "mode=0755,size=10%,nr_inodes=64k",
            0o755,
            Need::Must,
        ),
        row("tmpfs", "/tmp", closed, "mode=1777,size=10%,nr_inodes=64k", 0o1777, Need::Must),
        // Limits of every microVM; node refuses to run workloads without.
        row("cgroup2", "/sys/fs/cgroup", closed, "nsdelegate,memory_recursiveprot", 0o555, Need::Must),
        // TPM event log and lockdown state.
        row("securityfs", "/sys/kernel/security", closed, "", 0o555, Need::WhereThere),
        // Secure Boot state; read-only, since nothing here may change the firmware's variables.
        row(
            "efivarfs",
            "/sys/firmware/efi/efivars",
            MountFlags::RDONLY.union(closed),
            "",
            0o555,
            Need::WhereThere,
        ),
    ]
}

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("{filesystem} can't be mounted on {target}: the kernel lacks it or the image is damaged")]
    Mount {
        filesystem: &'static str,
        target: PathBuf,
        #[source]
        source: Errno,
    },
    #[error("mount point {target} can't be made")]
    Target {
        target: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What happened to one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Mounted,
    /// The same filesystem was there already.
    Was,
    /// Neither there nor needed.
    Absent,
}

pub fn mount(row: &Row) -> Result<Outcome, MountError> {
    let target = Path::new(row.target);
    if row.need == Need::WhereThere && !target.is_dir() {
        return Ok(Outcome::Absent);
    }
    if is_mounted(row) {
        return Ok(Outcome::Was);
    }
    if !target.is_dir() {
        fs::create_dir_all(target)
            .and_then(|()| fs::set_permissions(target, fs::Permissions::from_mode(row.mode)))
            .map_err(|source| MountError::Target { target: target.into(), source })?;
    }
    let data = std::ffi::CString::new(row.data).unwrap_or_default();
    let mounted =
        rustix::mount::mount(row.filesystem, target, row.filesystem, row.flags, Some(data.as_c_str()));
    match (mounted, row.need) {
        (Ok(()), _) => Ok(Outcome::Mounted),
        (Err(_), Need::WhereThere) => Ok(Outcome::Absent),
        // The kernel mounts devtmpfs by itself in some configurations.
        (Err(Errno::BUSY), Need::Must) => Ok(Outcome::Was),
        (Err(source), Need::Must) => {
            Err(MountError::Mount { filesystem: row.filesystem, target: target.into(), source })
        }
    }
}

fn is_mounted(row: &Row) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mountinfo::parse(&text)
        .iter()
        .rev()
        .find(|mount| mount.target == Path::new(row.target))
        .is_some_and(|mount| mount.filesystem == row.filesystem)
}

/// Folders that the running system expects beside the mounts.
pub fn make_folders() -> io::Result<()> {
    for (path, mode) in [("/run/croft", 0o755), ("/data", 0o755), ("/sys/fs/cgroup/croft", 0o755)] {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Hands the root cgroup's controllers to its children, as far as the kernel has them; those that it has not.
#[must_use]
pub fn enable_controllers(cgroup: &Path) -> Vec<&'static str> {
    ["cpu", "cpuset", "memory", "io", "pids"]
        .into_iter()
        .filter(|controller| {
            fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}")).is_err()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_forbids_set_uid_programs_and_only_dev_has_devices() {
        for row in early().iter().chain(&late()) {
            assert!(row.flags.contains(MountFlags::NOSUID), "{}", row.target);
            assert!(
                row.flags.contains(MountFlags::NODEV) || row.target == "/dev" || row.target == "/dev/pts",
                "{}",
                row.target
            );
        }
    }

    #[test]
    fn every_tmpfs_is_bounded_in_bytes_and_inodes() {
        for row in late().iter().filter(|row| row.filesystem == "tmpfs") {
            assert!(row.data.contains("size=") && row.data.contains("nr_inodes="), "{}", row.target);
        }
    }

    #[test]
    fn a_parent_is_mounted_before_its_children() {
        let rows: Vec<Row> = early().into_iter().chain(late()).collect();
        for (index, row) in rows.iter().enumerate() {
            for later in &rows[index + 1..] {
                assert!(
                    !Path::new(row.target).starts_with(later.target),
                    "{} covers {}",
                    later.target,
                    row.target
                );
            }
        }
    }

    #[test]
    fn controllers_that_the_kernel_lacks_are_named() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            enable_controllers(&directory.path().join("absent")),
            ["cpu", "cpuset", "memory", "io", "pids"]
        );
        fs::write(directory.path().join("cgroup.subtree_control"), "").unwrap();
        assert!(enable_controllers(directory.path()).is_empty());
    }
}
