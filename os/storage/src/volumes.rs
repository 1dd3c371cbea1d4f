//! Tenants' volumes: `/data/volumes/<contract>/<name>.img` for one microVM alone (virtio-blk), or
//! `/data/volumes/<contract>/<name>/` shared by several (virtiofsd), each with the room that its contract paid for.
//!
//! Made under a temporary name and renamed when complete, so that a power cut never leaves half a volume. Nothing here
//! deletes a volume because of a failure, a restart or a missing contract: [`Volumes::delete`] wants [`Ended`], and
//! that comes from the ledger alone.

use crate::capacity::{available, is_full};
use crate::data::{Data, Medium};
use crate::quota::{self, Project};
use crate::tools::{Ext4, ToolError, Tools};
use rustix::fs::{FallocateFlags, Gid, Uid};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Longest name of a volume.
pub const NAME_MAX_BYTES: usize = 63;
/// Smaller than this, ext4 has no room for a journal.
pub const VOLUME_MIN_BYTES: u64 = 16 << 20;
/// Larger ones are beyond what ext4 with 4 KiB blocks holds in one file.
pub const VOLUME_MAX_BYTES: u64 = 15 << 40;

const NEW: &str = ".new-";
const GONE: &str = ".gone-";
const IMAGE: &str = ".img";
/// Projects below are left to others.
const FIRST_PROJECT: Project = 1000;

/// A contract, by its 32 bytes on the ledger.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContractKey([u8; 32]);

/// A volume's name within its contract.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    #[error("{0:?} is no contract id of 64 lower-case hexadecimal digits")]
    Contract(String),
    #[error(
        "{0:?} is no name for a volume: 1 to {NAME_MAX_BYTES} of a-z, 0-9 and -, first a letter or digit"
    )]
    Volume(String),
}

impl ContractKey {
    #[must_use]
    pub fn new(id: [u8; 32]) -> Self {
        Self(id)
    }

    pub fn parse(text: &str) -> Result<Self, ParseKeyError> {
        match crate::digest::Digest::parse(text) {
            Ok(digest) => Ok(Self(digest.0)),
            Err(_) => Err(ParseKeyError::Contract(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for ContractKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ContractKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl VolumeName {
    pub fn parse(text: &str) -> Result<Self, ParseKeyError> {
        let valid = (1..=NAME_MAX_BYTES).contains(&text.len())
            && !text.starts_with('-')
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(ParseKeyError::Volume(text.chars().take(80).collect()))
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An ext4 image for one microVM.
    Exclusive,
    /// A folder for several.
    Shared,
}

/// Whom a volume belongs to on the node: the unprivileged user of its VMM or virtiofsd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The proof that a tenant's data may go: the ledger says that the contract ended, and its grace period passed by the
/// ledger's own clock. To be made from a verified header and record only, never from a local guess, a missing
/// contract or a failed fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    contract: ContractKey,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("data of contract {contract} is kept for {left_s} s more")]
pub struct NotYetError {
    pub contract: ContractKey,
    pub left_s: u64,
}

impl Ended {
    /// Both times in seconds since 1970: when the grace period ends as the contract's last record has it, and the time
    /// of the latest final header that the node has verified.
    pub fn by_ledger(
        contract: ContractKey,
        grace_until_s: u64,
        ledger_now_s: u64,
    ) -> Result<Self, NotYetError> {
        match grace_until_s.checked_sub(ledger_now_s) {
            None | Some(0) => Ok(Self { contract }),
            Some(left_s) => Err(NotYetError { contract, left_s }),
        }
    }

    #[must_use]
    pub fn contract(&self) -> ContractKey {
        self.contract
    }
}

/// A volume that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub contract: ContractKey,
    pub name: VolumeName,
    pub kind: Kind,
    pub path: PathBuf,
    /// What it may grow to: the size of an image, the limit of a folder; `None` for a folder without an enforced one.
    pub size_bytes: Option<u64>,
    /// What it takes now.
    pub used_bytes: u64,
}

/// A shared volume, ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    pub path: PathBuf,
    /// `Err` with the reason, where nothing but good will keeps it within its size.
    pub limit: Result<(), String>,
}

/// What is there against what should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Known and there.
    pub present: Vec<Volume>,
    /// Known, but not there: to be made, or lost with a disk.
    pub missing: Vec<(ContractKey, VolumeName)>,
    /// There, but nobody known asks for it: kept until the ledger says that its contract ended.
    pub unknown: Vec<Volume>,
}

#[derive(Debug, thiserror::Error)]
pub enum CreateVolumeError {
    #[error("volume {volume} of {bytes} bytes: {VOLUME_MIN_BYTES} to {VOLUME_MAX_BYTES} are possible")]
    Size { volume: String, bytes: u64 },
    #[error("volume {volume} exists with {there} bytes instead of {wanted}: give the other one another name")]
    OtherSize { volume: String, there: u64, wanted: u64 },
    #[error(
        "volume {volume} exists as {there:?} and is wanted as {wanted:?}: give the other one another name"
    )]
    OtherKind { volume: String, there: Kind, wanted: Kind },
    #[error(
        "volume {volume} of {bytes} bytes does not fit, {free_bytes} bytes are free on {folder}: place it on another node, \
         or end contracts of this one"
    )]
    Full { volume: String, bytes: u64, folder: PathBuf, free_bytes: u64 },
    #[error("volume {volume} can't be formatted")]
    Format {
        volume: String,
        #[source]
        source: ToolError,
    },
    #[error("volume {volume} can't be made")]
    Io {
        volume: String,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum VolumesError {
    #[error("{path} can't be read")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum DeleteVolumeError {
    #[error("volume {volume} is of another contract than {ended}, which ended")]
    OtherContract { volume: String, ended: ContractKey },
    #[error("volume {volume} can't be deleted")]
    Io {
        volume: String,
        #[source]
        source: io::Error,
    },
}

/// All volumes below one folder. One per node.
#[derive(Debug)]
pub struct Volumes {
    root: PathBuf,
    tools: Tools,
    /// Why folders have no enforced limit, if so.
    no_quota: Option<String>,
    /// Making and deleting go one by one: project numbers and names are chosen under it.
    changing: Mutex<()>,
}

impl Volumes {
    /// Opens `/data/volumes` and clears what a power cut left half made or half deleted.
    pub fn open(data: &Data, tools: Tools) -> Result<Self, VolumesError> {
        let no_quota = match &data.medium {
            Medium::Memory { .. } => {
                Some("/data is in memory, where folders have no limits of their own".to_owned())
            }
            Medium::Disk { project_quota: false, name, .. } => Some(format!(
                "the filesystem on {name} has no project quota, or the kernel lacks CONFIG_QFMT_V2"
            )),
            Medium::Disk { .. } => None,
        };
        let volumes = Self { root: data.folder("volumes"), tools, no_quota, changing: Mutex::new(()) };
        volumes.clear_rests()?;
        Ok(volumes)
    }

    fn clear_rests(&self) -> Result<(), VolumesError> {
        for (_, folder) in self.contracts()? {
            let at = |source| VolumesError::Io { path: folder.clone(), source };
            for entry in fs::read_dir(&folder).map_err(at)? {
                let path = entry.map_err(at)?.path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if name.starts_with(NEW) || name.starts_with(GONE) {
                    remove(&path).map_err(|source| VolumesError::Io { path, source })?;
                }
            }
        }
        Ok(())
    }

    fn contracts(&self) -> Result<Vec<(ContractKey, PathBuf)>, VolumesError> {
        let at = |source| VolumesError::Io { path: self.root.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(at)? {
            let entry = entry.map_err(at)?;
            let key = entry.file_name().to_str().and_then(|name| ContractKey::parse(name).ok());
            if let Some(key) = key.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                found.push((key, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    fn folder(&self, contract: &ContractKey) -> PathBuf {
        self.root.join(contract.to_string())
    }

    /// Where a volume is or would be.
    #[must_use]
    pub fn path(&self, contract: &ContractKey, name: &VolumeName, kind: Kind) -> PathBuf {
        self.folder(contract).join(match kind {
            Kind::Exclusive => format!("{name}{IMAGE}"),
            Kind::Shared => name.to_string(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an image with all its room allocated, formatted as ext4; an existing one of the same size is returned as
    /// it is, with its data.
    pub fn create_exclusive(
        &self,
        contract: &ContractKey,
        name: &VolumeName,
        bytes: u64,
        owner: Owner,
    ) -> Result<PathBuf, CreateVolumeError> {
        let _alone = self.lock();
        let making = Making { volume: format!("{contract}/{name}"), bytes, folder: self.folder(contract) };
        let path = self.path(contract, name, Kind::Exclusive);
        if self.there(&making, contract, name, Kind::Exclusive)? {
            let there = fs::metadata(&path).map_err(|source| making.io(source))?.len();
            if there != bytes {
                return Err(CreateVolumeError::OtherSize { volume: making.volume, there, wanted: bytes });
            }
            chown(&path, owner).map_err(|source| making.io(source))?;
            return Ok(path);
        }
        // Asked before, because a failed allocation first takes all the room that there is from everybody else.
        making.fits()?;
        let new = making.folder.join(format!("{NEW}{name}{IMAGE}"));
        let made = self.make_image(&making, &new, name, owner).and_then(|()| making.publish(&new, &path));
        if let Err(error) = made {
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        Ok(path)
    }

    fn make_image(
        &self,
        making: &Making,
        new: &Path,
        name: &VolumeName,
        owner: Owner,
    ) -> Result<(), CreateVolumeError> {
        let io = |source| making.io(source);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(new).map_err(io)?;
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(io)?;
        // The room is the tenant's from now on: nobody else can fill the disk under it.
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, making.bytes)
            .map_err(|errno| io(errno.into()))?;
        let label: String = name.as_str().chars().take(16).collect();
        let options =
            Ext4 { label: &label, uuid: None, size_bytes: None, project_quota: false, reserved_percent: 0 };
        self.tools
            .make_ext4(new, &options)
            .map_err(|source| CreateVolumeError::Format { volume: making.volume.clone(), source })?;
        chown(new, owner).map_err(io)?;
        file.sync_all().map_err(io)
    }

    /// Makes a folder that can't outgrow its size; an existing one is returned with its data, its limit set anew.
    pub fn create_shared(
        &self,
        contract: &ContractKey,
        name: &VolumeName,
        bytes: u64,
        owner: Owner,
    ) -> Result<Shared, CreateVolumeError> {
        let _alone = self.lock();
        let making = Making { volume: format!("{contract}/{name}"), bytes, folder: self.folder(contract) };
        let path = self.path(contract, name, Kind::Shared);
        if !self.there(&making, contract, name, Kind::Shared)? {
            making.fits()?;
            let new = making.folder.join(format!("{NEW}{name}"));
            let made = self.make_folder(&new).map_err(|source| making.io(source));
            if let Err(error) = made.and_then(|()| making.publish(&new, &path)) {
                let _ = fs::remove_dir(&new);
                return Err(error);
            }
        }
        chown(&path, owner).map_err(|source| making.io(source))?;
        let limit = match &self.no_quota {
            Some(why) => Err(why.clone()),
            None => limit(&path, bytes).map_err(|error| format!("its limit can't be set: {error}")),
        };
        Ok(Shared { path, limit })
    }

    fn make_folder(&self, new: &Path) -> io::Result<()> {
        fs::create_dir(new)?;
        fs::set_permissions(new, fs::Permissions::from_mode(0o700))?;
        if self.no_quota.is_none() {
            quota::set_project(new, self.free_project()?)?;
        }
        File::open(new)?.sync_all()
    }

    /// One above the highest in use. Asked of the folders themselves, so there is no list that could be wrong.
    fn free_project(&self) -> io::Result<Project> {
        let mut highest = FIRST_PROJECT - 1;
        for (_, folder) in self.contracts().map_err(io::Error::other)? {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    highest = highest.max(quota::project(&entry.path())?);
                }
            }
        }
        highest.checked_add(1).ok_or_else(|| io::Error::other("no project number is left"))
    }

    /// Checks the size, makes the contract's folder, and says whether the volume is there already.
    fn there(
        &self,
        making: &Making,
        contract: &ContractKey,
        name: &VolumeName,
        wanted: Kind,
    ) -> Result<bool, CreateVolumeError> {
        if !(VOLUME_MIN_BYTES..=VOLUME_MAX_BYTES).contains(&making.bytes) {
            return Err(CreateVolumeError::Size { volume: making.volume.clone(), bytes: making.bytes });
        }
        for kind in [Kind::Exclusive, Kind::Shared] {
            if self.path(contract, name, kind).exists() {
                if kind != wanted {
                    return Err(CreateVolumeError::OtherKind {
                        volume: making.volume.clone(),
                        there: kind,
                        wanted,
                    });
                }
                return Ok(true);
            }
        }
        let io = |source| making.io(source);
        match fs::create_dir(&making.folder) {
            Ok(()) => {
                // VMMs of other users pass through, but don't list.
                fs::set_permissions(&making.folder, fs::Permissions::from_mode(0o711)).map_err(io)?;
                File::open(&self.root).and_then(|root| root.sync_all()).map_err(io)?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io(error)),
        }
        for rest in [format!("{NEW}{name}"), format!("{NEW}{name}{IMAGE}")] {
            remove(&making.folder.join(rest)).map_err(io)?;
        }
        Ok(false)
    }

    /// Every volume that exists, by contract and name.
    pub fn list(&self) -> Result<Vec<Volume>, VolumesError> {
        let mut volumes = Vec::new();
        for (contract, folder) in self.contracts()? {
            let at = |source| VolumesError::Io { path: folder.clone(), source };
            for entry in fs::read_dir(&folder).map_err(at)? {
                let entry = entry.map_err(at)?;
                if let Some(volume) = self.look(contract, &entry.path()).map_err(at)? {
                    volumes.push(volume);
                }
            }
        }
        volumes.sort_by(|a, b| (a.contract, &a.name, a.kind).cmp(&(b.contract, &b.name, b.kind)));
        Ok(volumes)
    }

    fn look(&self, contract: ContractKey, path: &Path) -> io::Result<Option<Volume>> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (stem, kind) = match text.strip_suffix(IMAGE) {
            Some(stem) if meta.is_file() => (stem, Kind::Exclusive),
            None if meta.is_dir() => (text, Kind::Shared),
            _ => return Ok(None),
        };
        let Ok(name) = VolumeName::parse(stem) else { return Ok(None) };
        let (size_bytes, used_bytes) = match kind {
            Kind::Exclusive => (Some(meta.len()), meta.blocks() * 512),
            Kind::Shared => self.shared_usage(path)?,
        };
        Ok(Some(Volume { contract, name, kind, path: path.into(), size_bytes, used_bytes }))
    }

    /// From the quota where there is one; by walking the folder elsewhere.
    fn shared_usage(&self, path: &Path) -> io::Result<(Option<u64>, u64)> {
        if self.no_quota.is_none() {
            let project = quota::project(path)?;
            if project != 0 {
                let usage = quota::usage(path, project)?;
                return Ok((Some(usage.limit_bytes).filter(|limit| *limit > 0), usage.used_bytes));
            }
        }
        Ok((None, walk(path)?))
    }

    /// Compares what exists with what the node's contracts ask for.
    pub fn compare(&self, known: &BTreeSet<(ContractKey, VolumeName)>) -> Result<Comparison, VolumesError> {
        let (present, unknown): (Vec<Volume>, Vec<Volume>) = self
            .list()?
            .into_iter()
            .partition(|volume| known.contains(&(volume.contract, volume.name.clone())));
        let there: BTreeSet<_> =
            present.iter().map(|volume| (volume.contract, volume.name.clone())).collect();
        Ok(Comparison { missing: known.difference(&there).cloned().collect(), present, unknown })
    }

    /// Deletes a volume for good. The only way that a tenant's data goes; see [`Ended`] for when.
    pub fn delete(&self, volume: &Volume, ended: &Ended) -> Result<(), DeleteVolumeError> {
        let _alone = self.lock();
        let label = format!("{}/{}", volume.contract, volume.name);
        if volume.contract != ended.contract {
            return Err(DeleteVolumeError::OtherContract { volume: label, ended: ended.contract });
        }
        let io = |source| DeleteVolumeError::Io { volume: label.clone(), source };
        // From the key, not from the path that the caller holds: nothing outside can be meant.
        let path = self.path(&volume.contract, &volume.name, volume.kind);
        let folder = self.folder(&volume.contract);
        let suffix = if volume.kind == Kind::Exclusive { IMAGE } else { "" };
        let gone = folder.join(format!("{GONE}{}{suffix}", volume.name));
        let project = if volume.kind == Kind::Shared { quota::project(&path).unwrap_or(0) } else { 0 };
        // First out of sight in one step; a cut after this is finished by the next start.
        remove(&gone).map_err(io)?;
        match fs::rename(&path, &gone) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io(error)),
        }
        File::open(&folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        remove(&gone).map_err(io)?;
        if project >= FIRST_PROJECT && self.no_quota.is_none() {
            // The number may be given out again, and must not bring its old limit.
            let _ = quota::set_limit(&self.root, project, 0);
        }
        // Goes once it is empty.
        let _ = fs::remove_dir(&folder);
        Ok(())
    }
}

/// What the steps of making a volume share.
struct Making {
    volume: String,
    bytes: u64,
    folder: PathBuf,
}

impl Making {
    fn io(&self, source: io::Error) -> CreateVolumeError {
        if is_full(&source) {
            return self.full(available(&self.folder));
        }
        CreateVolumeError::Io { volume: self.volume.clone(), source }
    }

    fn fits(&self) -> Result<(), CreateVolumeError> {
        let free_bytes = available(&self.folder);
        if self.bytes > free_bytes { Err(self.full(free_bytes)) } else { Ok(()) }
    }

    fn full(&self, free_bytes: u64) -> CreateVolumeError {
        let (volume, folder) = (self.volume.clone(), self.folder.clone());
        CreateVolumeError::Full { volume, bytes: self.bytes, folder, free_bytes }
    }

    /// Gives a complete volume its name, durably.
    fn publish(&self, new: &Path, path: &Path) -> Result<(), CreateVolumeError> {
        fs::rename(new, path)
            .and_then(|()| File::open(&self.folder)?.sync_all())
            .map_err(|source| self.io(source))
    }
}

fn limit(path: &Path, bytes: u64) -> io::Result<()> {
    let project = quota::project(path)?;
    if project == 0 {
        return Err(io::Error::other("the folder has no project: it was made without quota"));
    }
    quota::set_limit(path, project, bytes)
}

fn chown(path: &Path, owner: Owner) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if (meta.uid(), meta.gid()) == (owner.uid, owner.gid) {
        return Ok(());
    }
    rustix::fs::chown(path, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
        .map_err(Into::into)
}

/// A file or a whole folder; links are not followed. Not an error when it is not there.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Bytes on disk below a folder; links are counted, not followed.
fn walk(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut left = vec![folder.to_path_buf()];
    while let Some(path) = left.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            // Its tenant may be deleting in this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            match fs::read_dir(&path) {
                Ok(entries) => left.extend(entries.flatten().map(|entry| entry.path())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
