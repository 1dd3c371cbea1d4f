//! `/data`: on the node's disk, or in memory where there is none.
//!
//! ```text
//! examined disks --- one of ours -----> check when needed -> mount -> Data on disk
//!            |           `--- broken: said, never reformatted, and no other disk takes its place
//!            |--- an empty one -> intent -> mke2fs -> marker -> mount -> Data on disk
//!            `--- none ----------------------------------------------> Data in memory, gone at the next boot
//! ```
//!
//! Started again on a running machine, it takes over what is mounted. It must never format what `examine` does not call empty, and looks again right before it does.

use crate::examine::{self, Examined, LABEL, Verdict};
use crate::marker::{MARKER_BYTES, Marker, RESERVED_BYTES, State};
use crate::signature::Ends;
use crate::tools::{CheckError, Checked, Ext4, ToolError, Tools};
use croft_hardware::Disk;
use croft_init::log::chain;
use croft_init::mountinfo;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Of a data disk: nothing on it is a program or a device, and nobody needs access times.
const FLAGS: MountFlags =
    MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC).union(MountFlags::NOATIME);

/// Folders that every data disk has, with their modes: the identity is nobody else's business.
const FOLDERS: [(&str, u32); 4] =
    [("identity", 0o700), ("cache", 0o755), ("contracts", 0o700), ("volumes", 0o711)];

/// Name of `/data` in memory among the mounts.
const MEMORY: &str = "croft-data-memory";

/// Kept for root, so that tenants' folders can't stop the node's own writes.
const RESERVED_PERCENT: u8 = 1;

/// How to attach.
#[derive(Debug, Clone)]
pub struct Options {
    pub tools: Tools,
    pub dev: PathBuf,
    pub target: PathBuf,
    /// Limit of `/data` in memory.
    pub memory_max_bytes: u64,
}

impl Options {
    /// As on a node: a quarter of the memory for a `/data` without disk.
    #[must_use]
    pub fn node(memory_total_bytes: u64) -> Self {
        Self {
            tools: Tools::default(),
            dev: "/dev".into(),
            target: "/data".into(),
            memory_max_bytes: (memory_total_bytes / 4).max(64 << 20),
        }
    }
}

/// A mounted `/data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    pub path: PathBuf,
    pub medium: Medium,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    Disk {
        name: String,
        uuid: [u8; 16],
        rotational: bool,
        project_quota: bool,
        /// Freshly formatted in this boot: no identity, no volumes yet.
        new: bool,
        /// Errors were found and repaired: worth a look at the disk's health.
        repaired: bool,
    },
    /// Gone at the next boot.
    Memory { limit_bytes: u64, why: WhyMemory },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyMemory {
    /// The machine has no disk that may be used.
    NoDisk,
    /// There is a disk of ours, and it is broken. The node's identity and its tenants' volumes are on it, so no other
    /// disk was formatted: a new identity must not take over in silence.
    OursBroken,
}

impl Data {
    /// Whether what is written here is lost with the power.
    #[must_use]
    pub fn ephemeral(&self) -> bool {
        matches!(self.medium, Medium::Memory { .. })
    }

    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// What came of it, with the verdict on each disk for log and report.
#[derive(Debug)]
pub struct Attached {
    pub data: Data,
    pub disks: Vec<Examined>,
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("{target} can't be mounted in memory")]
    Memory {
        target: PathBuf,
        #[source]
        source: Errno,
    },
    #[error("{path} can't be made on the data disk")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Finds the data disk, formats an empty one where there is none, and mounts it. Blocks while a disk is checked,
/// which takes minutes on a large one: not for a thread that has to answer.
pub fn attach(disks: &[Disk], options: &Options) -> Result<Attached, AttachError> {
    let mut examined = examine::examine(disks, &options.dev);
    let medium = match adopt(&examined, options) {
        Some(medium) => medium,
        None => match attach_disk(&mut examined, options) {
            Ok(medium) => medium,
            Err(why) => mount_memory(options, why)?,
        },
    };
    let data = Data { path: options.target.clone(), medium };
    for (name, mode) in FOLDERS {
        make_folder(&data.path.join(name), mode)?;
    }
    Ok(Attached { data, disks: examined })
}

fn make_folder(path: &Path, mode: u32) -> Result<(), AttachError> {
    let made = fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)));
    made.map_err(|source| AttachError::Folder { path: path.into(), source })
}

/// What is mounted already, because this process started again and the machine did not.
fn adopt(examined: &[Examined], options: &Options) -> Option<Medium> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let mount = mountinfo::parse(&text).into_iter().rev().find(|mount| mount.target == options.target)?;
    let device = |disk: &Examined| options.dev.join(&disk.disk.name);
    let ours = examined.iter().find(|disk| device(disk).as_os_str() == mount.source.as_str());
    match ours.map(|disk| (&disk.disk, &disk.verdict)) {
        Some((disk, Verdict::Data { uuid, .. })) => Some(Medium::Disk {
            name: disk.name.clone(),
            uuid: *uuid,
            rotational: disk.rotational,
            project_quota: crate::quota::enforced(&options.target),
            new: false,
            repaired: false,
        }),
        _ if mount.source == MEMORY => {
            let broken = examined.iter().any(|disk| matches!(disk.verdict, Verdict::Data { .. }));
            let why = if broken { WhyMemory::OursBroken } else { WhyMemory::NoDisk };
            let limit_bytes =
                crate::capacity::capacity(&options.target).map_or(0, |capacity| capacity.total_bytes);
            Some(Medium::Memory { limit_bytes, why })
        }
        _ => None,
    }
}

/// Tries ours, oldest first, then empty ones, best first. Disks that fail get the verdict `Broken`.
fn attach_disk(examined: &mut [Examined], options: &Options) -> Result<Medium, WhyMemory> {
    let mut broken = false;
    for index in ours(examined) {
        match open_ours(&examined[index], options) {
            Ok(medium) => return Ok(medium),
            Err(error) => {
                broken = true;
                examined[index].verdict = Verdict::Broken { reason: chain(&error) };
            }
        }
    }
    if broken {
        return Err(WhyMemory::OursBroken);
    }
    for index in empty(examined) {
        match format(&examined[index].disk, options) {
            Ok(medium) => return Ok(medium),
            Err(error) => {
                examined[index].verdict =
                    Verdict::Unreadable { error: format!("formatting failed: {}", chain(&error)) };
            }
        }
    }
    Err(WhyMemory::NoDisk)
}

fn ours(examined: &[Examined]) -> Vec<usize> {
    let mut found: Vec<(u64, usize)> = examined
        .iter()
        .enumerate()
        .filter_map(|(index, disk)| match disk.verdict {
            Verdict::Data { created_unix, .. } => Some((created_unix, index)),
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, index)| index).collect()
}

/// Flash before magnets, then the largest.
fn empty(examined: &[Examined]) -> Vec<usize> {
    let mut found: Vec<usize> = (0..examined.len())
        .filter(|index| matches!(examined[*index].verdict, Verdict::Empty { .. }))
        .collect();
    found.sort_by_key(|index| {
        let disk = &examined[*index].disk;
        (disk.rotational, std::cmp::Reverse(disk.size_bytes), *index)
    });
    found
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("{device} can't be mounted{hint}")]
    Mount {
        device: PathBuf,
        hint: &'static str,
        #[source]
        source: Errno,
    },
}

fn open_ours(examined: &Examined, options: &Options) -> Result<Medium, OpenError> {
    let Verdict::Data { uuid, check, .. } = examined.verdict else { unreachable!("only ours are opened") };
    let device = options.dev.join(&examined.disk.name);
    let mut repaired = check && options.tools.check(&device)? == Checked::Repaired;
    let mounted = mount(&device, &options.target);
    let project_quota = match mounted {
        Ok(quota) => quota,
        // The kernel saw damage that the superblock did not show.
        Err(Errno::UCLEAN | Errno::BADMSG | Errno::INVAL | Errno::IO) => {
            repaired |= options.tools.check(&device)? == Checked::Repaired;
            mount(&device, &options.target).map_err(|source| mount_error(&device, source))?
        }
        Err(source) => return Err(mount_error(&device, source)),
    };
    let rotational = examined.disk.rotational;
    Ok(Medium::Disk {
        name: examined.disk.name.clone(),
        uuid,
        rotational,
        project_quota,
        new: false,
        repaired,
    })
}

fn mount_error(device: &Path, source: Errno) -> OpenError {
    let hint = match source {
        Errno::INVAL | Errno::NOPROTOOPT | Errno::ROFS => {
            ": the kernel may lack CONFIG_EXT4_FS, CONFIG_QUOTA or CONFIG_QFMT_V2; its log says more"
        }
        Errno::BUSY => ": something else uses it",
        _ => "",
    };
    OpenError::Mount { device: device.into(), hint, source }
}

/// Mounts with project quota, or without where the filesystem or the kernel has none. Whether quota is on.
fn mount(device: &Path, target: &Path) -> Result<bool, Errno> {
    let _ = fs::create_dir_all(target);
    for (options, quota) in [("errors=remount-ro,prjquota", true), ("errors=remount-ro", false)] {
        let data = CString::new(options).unwrap_or_default();
        match rustix::mount::mount(device, target, "ext4", FLAGS, Some(data.as_c_str())) {
            Ok(()) => return Ok(quota && crate::quota::enforced(target)),
            Err(_) if quota => {}
            Err(error) => return Err(error),
        }
    }
    unreachable!("the last attempt returns")
}

fn mount_memory(options: &Options, why: WhyMemory) -> Result<Medium, AttachError> {
    let target = &options.target;
    let _ = fs::create_dir_all(target);
    let limit_bytes = options.memory_max_bytes;
    let data = CString::new(format!("mode=0755,size={limit_bytes},nr_inodes=256k")).unwrap_or_default();
    rustix::mount::mount(MEMORY, target, "tmpfs", FLAGS, Some(data.as_c_str()))
        .map_err(|source| AttachError::Memory { target: target.clone(), source })?;
    Ok(Medium::Memory { limit_bytes, why })
}

#[derive(Debug, thiserror::Error)]
enum FormatError {
    #[error("{device} can't be opened for formatting")]
    Open {
        device: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{device} is not empty any more: {verdict}")]
    NotEmpty { device: PathBuf, verdict: Verdict },
    #[error("{device} can't be written")]
    Write {
        device: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the kernel gives no random bytes for the UUID")]
    Random(#[source] Errno),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Mount(#[from] OpenError),
}

/// Formats an empty disk and mounts it; without quota when this kernel can't mount it with.
fn format(disk: &Disk, options: &Options) -> Result<Medium, FormatError> {
    let device = options.dev.join(&disk.name);
    let uuid = random_uuid().map_err(FormatError::Random)?;
    make(disk, &device, uuid, &options.tools, true)?;
    let mut quota = mount(&device, &options.target);
    if quota.is_err() {
        // Nothing was stored yet, so nothing is lost by starting over.
        erase_marker(&device)?;
        make(disk, &device, uuid, &options.tools, false)?;
        quota = mount(&device, &options.target);
    }
    let project_quota = quota.map_err(|source| mount_error(&device, source))?;
    let (name, rotational) = (disk.name.clone(), disk.rotational);
    Ok(Medium::Disk { name, uuid, rotational, project_quota, new: true, repaired: false })
}

/// The steps of the module `marker`, each durable before the next.
fn make(disk: &Disk, device: &Path, uuid: [u8; 16], tools: &Tools, quota: bool) -> Result<(), FormatError> {
    let write = |source| FormatError::Write { device: device.into(), source };
    let created_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let intent = Marker { state: State::Formatting, uuid, created_unix };
    let place = disk.size_bytes - RESERVED_BYTES;
    {
        let file = open_alone(device)?;
        let (head, tail) = examine::read_ends(device, disk.size_bytes).map_err(write)?;
        let verdict = examine::judge(&Ends { head: &head, tail: &tail, size_bytes: disk.size_bytes });
        if !matches!(verdict, Verdict::Empty { .. }) {
            return Err(FormatError::NotEmpty { device: device.into(), verdict });
        }
        file.write_all_at(&intent.encode(), place).and_then(|()| file.sync_all()).map_err(write)?;
    }
    tools.make_ext4(
        device,
        &Ext4 {
            label: LABEL,
            uuid: Some(uuid),
            size_bytes: Some(place),
            project_quota: quota,
            reserved_percent: RESERVED_PERCENT,
        },
    )?;
    let file = open_alone(device)?;
    let marker = Marker { state: State::Ready, ..intent };
    file.sync_all().map_err(write)?;
    file.write_all_at(&marker.encode(), 0).and_then(|()| file.sync_all()).map_err(write)?;
    file.write_all_at(&[0; MARKER_BYTES], place).and_then(|()| file.sync_all()).map_err(write)?;
    Ok(())
}

/// Back to the state of an interrupted formatting, which may be done again.
fn erase_marker(device: &Path) -> Result<(), FormatError> {
    let write = |source| FormatError::Write { device: device.into(), source };
    let file = open_alone(device)?;
    let mut bytes = [0; MARKER_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(write)?;
    let Some(marker) = Marker::decode(&bytes) else { return Ok(()) };
    let intent = Marker { state: State::Formatting, ..marker };
    let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|errno| write(errno.into()))?;
    file.write_all_at(&intent.encode(), size - RESERVED_BYTES)
        .and_then(|()| file.sync_all())
        .map_err(write)?;
    file.write_all_at(&[0; MARKER_BYTES], 0).and_then(|()| file.sync_all()).map_err(write)
}

/// `O_EXCL` on a block device fails while anything else has it mounted or in a RAID set.
fn open_alone(device: &Path) -> Result<File, FormatError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(device)
        .map_err(|source| FormatError::Open { device: device.into(), source })
}

fn random_uuid() -> Result<[u8; 16], Errno> {
    let mut uuid = [0_u8; 16];
    rustix::rand::getrandom(&mut uuid[..], rustix::rand::GetRandomFlags::empty())?;
    // Version 4, variant 1 (RFC 9562, section 5.4).
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// Unmounts; for tests and for a node that gives the disk back before its end.
pub fn detach(data: &Data) -> Result<(), Errno> {
    rustix::mount::unmount(&data.path, UnmountFlags::NOFOLLOW)
}

#[cfg(test)]
mod tests;
