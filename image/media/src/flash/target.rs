//! What a block device is, from `/sys`, `/proc` and `/dev` under roots that tests replace.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::gpt::BLOCK_BYTES;

/// Devices on top of devices: partitions under RAID under encryption under LVM is four.
const DEPTH_MAX: usize = 8;
/// Partitions and holders of one disk.
const FAMILY_MAX: usize = 1024;
/// A table of mounts with far more lines than any machine has.
const TABLE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Where the running system lives: whoever is mounted there carries it.
const SYSTEM_PLACES: [&str; 8] = ["/", "/boot", "/boot/efi", "/efi", "/usr", "/var", "/etc", "/home"];

/// Where the kernel shows things.
#[derive(Debug, Clone)]
pub struct Roots {
    pub dev: PathBuf,
    pub sys: PathBuf,
    pub proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { dev: PathBuf::from("/dev"), sys: PathBuf::from("/sys"), proc: PathBuf::from("/proc") }
    }
}

/// A block device, for a person to recognise, and all that forbids writing to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As it was asked for, without links.
    pub path: PathBuf,
    /// `sdb`
    pub name: String,
    pub vendor: String,
    pub model: String,
    pub serial: String,
    pub size_bytes: u64,
    pub logical_block_bytes: u64,
    /// What the device says of itself; disks in USB enclosures often say no.
    pub removable: bool,
    pub usb: bool,
    pub read_only: bool,
    /// The disk that it is a partition of.
    pub partition_of: Option<String>,
    pub partitions: Vec<Partition>,
    /// Of the disk, its partitions, and what is built on them.
    pub mounts: Vec<Mount>,
    pub swaps: Vec<String>,
    /// RAID, encryption, LVM that use the disk or a partition.
    pub holders: Vec<String>,
    /// Major and minor number, so that a device which was exchanged meanwhile is noticed.
    pub(super) number: (u32, u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub name: String,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `sdb1`, `dm-0`
    pub device: String,
    pub place: String,
}

/// A target that may be written to.
#[derive(Debug, Clone)]
pub struct Writable(pub(super) Target);

/// Why nothing is known of a device.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    #[error("can't find {path}: is the stick plugged in?")]
    Missing { path: PathBuf, source: io::Error },
    #[error("{path} is no block device: name a disk such as /dev/sdb, 'lsblk' lists them")]
    NotBlock { path: PathBuf },
    #[error("can't read {path}, which describes the device")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} holds '{text}' where a number is expected")]
    Garbled { path: PathBuf, text: String },
    #[error("{name} has more than {FAMILY_MAX} devices on it, or more than {DEPTH_MAX} on top of each other")]
    TooDeep { name: String },
}

/// Why a device is not written to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{name} is a partition: name the whole disk, /dev/{disk}")]
    Partition { name: String, disk: String },
    #[error("{name} carries the running system ({place}): name another disk")]
    System { name: String, place: String },
    #[error("{device} of disk {name} is mounted at {place}: unmount it first")]
    Mounted { name: String, device: String, place: String },
    #[error("{device} of disk {name} is in use as swap space: 'swapoff /dev/{device}' first")]
    Swap { name: String, device: String },
    #[error("{name} is used by {holder} (RAID, encryption or LVM): stop that first")]
    Held { name: String, holder: String },
    #[error("{name} is read-only: move the switch on its side, or take another")]
    ReadOnly { name: String },
    #[error("{name} has no medium in it")]
    NoMedium { name: String },
    #[error("{name} has {has} bytes, {needs} are needed: take a larger one")]
    TooSmall { name: String, has: u64, needs: u64 },
    #[error(
        "{name} has blocks of {bytes} bytes, and the image is for blocks of {BLOCK_BYTES}: take another stick"
    )]
    BlockSize { name: String, bytes: u64 },
}

impl Target {
    /// All disks that have a medium in them, so that a person finds the stick. Loop devices, RAM disks and what is built
    /// on other devices are left out, and so is what can't be described.
    ///
    /// # Errors
    /// [`DescribeError`] when the kernel shows no block devices at all.
    pub fn all(roots: &Roots) -> Result<Vec<Self>, DescribeError> {
        let classes = roots.sys.join("class/block");
        let mut all = Vec::new();
        for name in names(&classes)?.into_iter().take(FAMILY_MAX) {
            let folder = fs::canonicalize(classes.join(&name)).unwrap_or_default();
            let is_virtual = folder.components().any(|part| part.as_os_str() == "virtual");
            if is_virtual || folder.join("partition").exists() {
                continue;
            }
            let found = Self::describe(roots, &roots.dev.join(name.replace('!', "/")));
            all.extend(found.ok().filter(|target| target.size_bytes > 0));
        }
        Ok(all)
    }

    /// Looks at a device.
    ///
    /// # Errors
    /// [`DescribeError`] when it is none, or the kernel's description can't be read.
    pub fn describe(roots: &Roots, device: &Path) -> Result<Self, DescribeError> {
        let path = fs::canonicalize(device)
            .map_err(|source| DescribeError::Missing { path: device.to_owned(), source })?;
        let not_block = || DescribeError::NotBlock { path: path.clone() };
        let name = name_of(roots, &path).ok_or_else(not_block)?;
        let classes = roots.sys.join("class/block");
        let Ok(folder) = fs::canonicalize(classes.join(&name)) else { return Err(not_block()) };
        let text = |file: &str| read_optional(&folder.join(file)).map(Option::unwrap_or_default);
        let is_partition = folder.join("partition").exists();
        let disk = is_partition.then(|| folder.parent().and_then(Path::file_name)).flatten();
        let queue = if is_partition { folder.join("../queue") } else { folder.join("queue") };

        let mut family = BTreeSet::new();
        collect(&classes, &folder, &name, 0, &mut family)?;
        let partitions = partitions(&folder)?;
        let own: BTreeSet<&str> =
            partitions.iter().map(|partition| partition.name.as_str()).chain([name.as_str()]).collect();
        let holders = family.iter().filter(|member| !own.contains(member.as_str())).cloned().collect();
        let logical = match read_optional(&queue.join("logical_block_size"))? {
            Some(_) => number(&queue.join("logical_block_size"))?,
            None => BLOCK_BYTES,
        };
        Ok(Self {
            vendor: text("device/vendor")?,
            model: text("device/model")?,
            serial: text("device/serial")?,
            size_bytes: number(&folder.join("size"))?.saturating_mul(512),
            logical_block_bytes: logical,
            removable: text("removable")? == "1",
            usb: folder.components().any(|part| part.as_os_str().to_string_lossy().starts_with("usb")),
            read_only: text("ro")? == "1",
            partition_of: disk.map(|disk| disk.to_string_lossy().into_owned()),
            partitions,
            mounts: mounts(roots, &classes, &family)?,
            swaps: swaps(roots, &family)?,
            holders,
            number: device_number(&folder.join("dev"))?,
            path,
            name,
        })
    }

    /// Whether an image of this size may be written.
    ///
    /// # Errors
    /// [`Refusal`], the gravest first.
    pub fn check(self, needs: u64) -> Result<Writable, Refusal> {
        let name = self.name.clone();
        if let Some(mount) = self.mounts.iter().find(|mount| SYSTEM_PLACES.contains(&mount.place.as_str())) {
            return Err(Refusal::System { name, place: mount.place.clone() });
        }
        if let Some(disk) = self.partition_of {
            return Err(Refusal::Partition { name, disk });
        }
        if let Some(Mount { device, place }) = self.mounts.into_iter().next() {
            return Err(Refusal::Mounted { name, device, place });
        }
        if let Some(device) = self.swaps.into_iter().next() {
            return Err(Refusal::Swap { name, device });
        }
        if let Some(holder) = self.holders.into_iter().next() {
            return Err(Refusal::Held { name, holder });
        }
        if self.size_bytes == 0 {
            return Err(Refusal::NoMedium { name });
        }
        if self.read_only {
            return Err(Refusal::ReadOnly { name });
        }
        if self.logical_block_bytes != BLOCK_BYTES {
            return Err(Refusal::BlockSize { name, bytes: self.logical_block_bytes });
        }
        if self.size_bytes < needs {
            return Err(Refusal::TooSmall { name, has: self.size_bytes, needs });
        }
        let nothing = (Vec::new(), Vec::new(), Vec::new());
        Ok(Writable(Self {
            mounts: nothing.0,
            swaps: nothing.1,
            holders: nothing.2,
            partition_of: None,
            ..self
        }))
    }

    /// What a person should hear before agreeing.
    #[must_use]
    pub fn cautions(&self) -> Vec<String> {
        let mut cautions = Vec::new();
        if !self.removable && !self.usb {
            cautions.push("this is no removable disk: is it really the one?".to_owned());
        }
        if !self.partitions.is_empty() {
            let names = self.partitions.iter().map(|p| format!("{} ({})", p.name, size(p.size_bytes)));
            cautions.push(format!("what is on it will be lost: {}", names.collect::<Vec<_>>().join(", ")));
        }
        cautions
    }
}

impl fmt::Display for Target {
    /// `/dev/sdb: SanDisk Ultra, 16.0 GB, USB, removable`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = [self.vendor.as_str(), self.model.as_str()];
        let words: Vec<&str> = known.into_iter().filter(|word| !word.is_empty()).collect();
        let model = if words.is_empty() { "unknown model".to_owned() } else { words.join(" ") };
        write!(f, "{}: {model}, {}", self.path.display(), size(self.size_bytes))?;
        for (is_so, word) in [(self.usb, "USB"), (self.removable, "removable"), (self.read_only, "read-only")]
        {
            if is_so {
                write!(f, ", {word}")?;
            }
        }
        Ok(())
    }
}

/// In the units in which sticks are sold.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000_000 => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
        _ => format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10),
    }
}

/// A device, its partitions, and everything that is built on any of them.
fn collect(
    classes: &Path,
    folder: &Path,
    name: &str,
    depth: usize,
    family: &mut BTreeSet<String>,
) -> Result<(), DescribeError> {
    if depth > DEPTH_MAX || family.len() > FAMILY_MAX {
        return Err(DescribeError::TooDeep { name: name.to_owned() });
    }
    if !family.insert(name.to_owned()) {
        return Ok(());
    }
    for partition in partitions(folder)? {
        collect(classes, &folder.join(&partition.name), &partition.name, depth + 1, family)?;
    }
    for holder in names(&folder.join("holders"))? {
        // A holder that vanishes between two looks holds no more.
        if let Ok(above) = fs::canonicalize(classes.join(&holder)) {
            collect(classes, &above, &holder, depth + 1, family)?;
        }
    }
    Ok(())
}

fn partitions(folder: &Path) -> Result<Vec<Partition>, DescribeError> {
    let mut partitions = Vec::new();
    for name in names(folder)? {
        let inside = folder.join(&name);
        if inside.join("partition").exists() {
            let size_bytes = number(&inside.join("size"))?.saturating_mul(512);
            partitions.push(Partition { name, size_bytes });
        }
    }
    Ok(partitions)
}

/// Names in a folder, in order; none where there is no folder.
fn names(folder: &Path) -> Result<Vec<String>, DescribeError> {
    let failed = |source| DescribeError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// By number, and by name too: some file systems (btrfs, overlay) show numbers of their own.
fn mounts(roots: &Roots, classes: &Path, family: &BTreeSet<String>) -> Result<Vec<Mount>, DescribeError> {
    let mut numbers = Vec::new();
    for name in family {
        if let Some(number) = read_optional(&classes.join(name).join("dev"))? {
            numbers.push((number, name));
        }
    }
    let mut mounts = Vec::new();
    // proc_pid_mountinfo(5): id, parent, major:minor, root, place, options, optional fields, "-", type, source.
    for line in table(&roots.proc.join("self/mountinfo"))?.lines() {
        let mut fields = line.split(' ');
        let (Some(number), Some(place)) = (fields.nth(2), fields.nth(1)) else { continue };
        let source = fields.skip_while(|field| *field != "-").nth(2).map(unescape).unwrap_or_default();
        let by_number = numbers.iter().find(|(known, _)| known == number).map(|(_, name)| (*name).clone());
        let device = by_number.or_else(|| name_in_table(roots, &source).filter(|name| family.contains(name)));
        if let Some(device) = device {
            mounts.push(Mount { device, place: unescape(place) });
        }
    }
    Ok(mounts)
}

fn swaps(roots: &Roots, family: &BTreeSet<String>) -> Result<Vec<String>, DescribeError> {
    let table = table(&roots.proc.join("swaps"))?;
    let first = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    Ok(first
        .filter_map(|path| name_in_table(roots, &unescape(path)))
        .filter(|name| family.contains(name))
        .collect())
}

/// The kernel's name of a device, `dm-0` for `/dev/mapper/root`. It writes '!' for '/', as in `cciss!c0d0`.
fn name_of(roots: &Roots, path: &Path) -> Option<String> {
    let real = fs::canonicalize(path);
    let root = fs::canonicalize(&roots.dev).ok()?;
    let inside = real.as_deref().unwrap_or(path).strip_prefix(&root).ok()?;
    Some(inside.to_str()?.replace('/', "!"))
}

/// A path as the kernel's tables write it, `/dev/sda1`.
fn name_in_table(roots: &Roots, path: &str) -> Option<String> {
    name_of(roots, &roots.dev.join(path.strip_prefix("/dev/")?))
}

/// Spaces and the like stand as octal numbers in the kernel's tables.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\');
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Without these tables nothing is known of mounts, and then nothing may be written.
fn table(path: &Path) -> Result<String, DescribeError> {
    let failed = |source| DescribeError::Read { path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(failed)?;
    if bytes.len() > TABLE_BYTES_MAX {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is too long")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A line of `/sys`, trimmed; nothing where there is none, as for models of virtual disks.
fn read_optional(path: &Path) -> Result<Option<String>, DescribeError> {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).into_owned();
            Ok(Some(text.trim().chars().filter(|c| !c.is_control()).collect()))
        }
        // A device may refuse to say its serial number.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.kind() == io::ErrorKind::NotADirectory =>
        {
            Ok(None)
        }
        Err(source) => Err(DescribeError::Read { path: path.to_owned(), source }),
    }
}

fn number(path: &Path) -> Result<u64, DescribeError> {
    let text = read_optional(path)?.unwrap_or_default();
    text.parse().map_err(|_| DescribeError::Garbled { path: path.to_owned(), text })
}

fn device_number(path: &Path) -> Result<(u32, u32), DescribeError> {
    let text = read_optional(path)?.unwrap_or_default();
    let parsed =
        text.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| DescribeError::Garbled { path: path.to_owned(), text })
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
