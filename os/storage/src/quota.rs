//! Limits of folders: ext4 project quotas.
//!
//! Every file below a folder carries the folder's project number, and the kernel counts and limits what a project
//! uses. The owner of a file may change its number only in the first user namespace, so whoever serves such a folder
//! to a stranger runs in a namespace of its own. Sources: ioctl_fsx (linux/fs.h), quotactl(2).

use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Number of a project: of one folder here. 0 is everything else.
pub type Project = u32;

/// What a project uses and may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub used_bytes: u64,
    /// 0 is no limit.
    pub limit_bytes: u64,
}

const PROJECT_INHERIT: u32 = 0x200;
const PRJQUOTA: i32 = 2;
const Q_GETQUOTA: i32 = 0x80_0007;
const Q_SETQUOTA: i32 = 0x80_0008;
const QIF_BLOCK_LIMITS: u32 = 1;
const QIF_INODE_LIMITS: u32 = 4;
/// Limits are counted in these.
const QUOTA_BLOCK_BYTES: u64 = 1024;
/// A file for each of these, and some: fewer than ext4 has inodes for, so that nobody can use up all of them.
const BYTES_PER_INODE: u64 = 16 << 10;
const INODES_MIN: u64 = 1024;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

mod ioctl {
    #![allow(unsafe_code, reason = "the two ioctls have no safe wrapper in rustix or nix")]
    use super::Attributes;
    // SAFETY of the callers: both take a pointer to one `struct fsxattr` that lives through the call.
    nix::ioctl_read!(get_attributes, b'X', 31, Attributes);
    nix::ioctl_write_ptr!(set_attributes, b'X', 32, Attributes);
}

/// Whether the filesystem that holds `path` limits projects now.
#[must_use]
pub fn enforced(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    usage_of(&file, 0).is_ok()
}

/// Puts an empty folder into a project; everything made in it later inherits that.
pub fn set_project(folder: &Path, project: Project) -> std::io::Result<()> {
    let file = File::open(folder)?;
    let mut attributes = get(&file)?;
    attributes.project = project;
    attributes.flags |= PROJECT_INHERIT;
    #[allow(unsafe_code, reason = "the ioctl has no safe wrapper")]
    // SAFETY: the descriptor is open and the pointer is to a local structure of the kernel's layout.
    unsafe { ioctl::set_attributes(file.as_raw_fd(), &raw const attributes) }
        .map_err(std::io::Error::from)?;
    Ok(())
}

/// The project of a folder; 0 when it has none.
pub fn project(folder: &Path) -> std::io::Result<Project> {
    Ok(get(&File::open(folder)?)?.project)
}

fn get(file: &File) -> std::io::Result<Attributes> {
    let mut attributes = Attributes::default();
    #[allow(unsafe_code, reason = "the ioctl has no safe wrapper")]
    // SAFETY: as above; the kernel fills the structure.
    unsafe { ioctl::get_attributes(file.as_raw_fd(), &raw mut attributes) }.map_err(std::io::Error::from)?;
    Ok(attributes)
}

/// Sets how much a project may use, in bytes and in files.
pub fn set_limit(anywhere: &Path, project: Project, bytes: u64) -> std::io::Result<()> {
    let file = File::open(anywhere)?;
    let blocks = bytes.div_ceil(QUOTA_BLOCK_BYTES);
    let inodes = bytes / BYTES_PER_INODE + INODES_MIN;
    let mut block = empty_block();
    block.dqb_bhardlimit = blocks;
    block.dqb_bsoftlimit = blocks;
    block.dqb_ihardlimit = inodes;
    block.dqb_isoftlimit = inodes;
    block.dqb_valid = QIF_BLOCK_LIMITS | QIF_INODE_LIMITS;
    quotactl(&file, Q_SETQUOTA, project, &mut block).map_err(std::io::Error::from)
}

/// What a project uses.
pub fn usage(anywhere: &Path, project: Project) -> std::io::Result<Usage> {
    usage_of(&File::open(anywhere)?, project).map_err(std::io::Error::from)
}

fn usage_of(file: &File, project: Project) -> Result<Usage, Errno> {
    let mut block = empty_block();
    quotactl(file, Q_GETQUOTA, project, &mut block)?;
    Ok(Usage {
        used_bytes: block.dqb_curspace,
        limit_bytes: block.dqb_bhardlimit.saturating_mul(QUOTA_BLOCK_BYTES),
    })
}

fn empty_block() -> libc::dqblk {
    libc::dqblk {
        dqb_bhardlimit: 0,
        dqb_bsoftlimit: 0,
        dqb_curspace: 0,
        dqb_ihardlimit: 0,
        dqb_isoftlimit: 0,
        dqb_curinodes: 0,
        dqb_btime: 0,
        dqb_itime: 0,
        dqb_valid: 0,
    }
}

/// `quotactl_fd`: by a file on the filesystem, so that nobody has to know its device.
fn quotactl(file: &File, command: i32, project: Project, block: &mut libc::dqblk) -> Result<(), Errno> {
    let command = (command << 8) | PRJQUOTA;
    #[allow(unsafe_code, reason = "the system call has no wrapper in rustix, nix or libc")]
    // SAFETY: the descriptor is open, and both commands read or fill exactly one `struct if_dqblk`, whose layout
    // `libc::dqblk` has.
    let answer = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, project, std::ptr::from_mut(block))
    };
    if answer == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_without_project_quota_says_so() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(!enforced(folder.path()));
        assert!(!enforced(Path::new("/nonexistent")));
        assert!(set_limit(folder.path(), 7, 1 << 20).is_err());
    }

    #[test]
    fn the_structures_have_the_kernels_size() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<libc::dqblk>(), 72);
    }
}
