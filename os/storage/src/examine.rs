//! The verdict on each disk: ours, empty, or somebody's, with the reason and what a person can do.
//!
//! Reads only, both ends of the disk. A disk counts as empty only when both ends are blank; whatever else is on it is
//! foreign and never touched, recognised or not.

use crate::marker::{MARKER_BYTES, Marker, RESERVED_BYTES, State};
use crate::signature::{Ends, Ext, WINDOW_BYTES, blank, recognise};
use croft_hardware::{Disk, Transport};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Label of the filesystem on a data disk.
pub const LABEL: &str = "croft-data";

/// Below this a disk can't hold one workload's image and volume.
pub const DATA_DISK_MIN_BYTES: u64 = 1 << 30;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Ours.
    Data {
        uuid: [u8; 16],
        created_unix: u64,
        /// The superblock is damaged, or notes errors: to be checked before it is mounted.
        check: bool,
    },
    /// Nothing on it, or nothing but our own formatting that a power cut ended.
    Empty {
        interrupted: bool,
    },
    /// Somebody's. `what` reads on after "holds".
    Foreign {
        what: String,
    },
    /// Ours, but it could not be repaired or mounted; set by `attach`, never by `examine`.
    Broken {
        reason: String,
    },
    TooSmall {
        size_bytes: u64,
    },
    Removable,
    ReadOnly,
    Unreadable {
        error: String,
    },
}

impl Verdict {
    /// What a person can do about it; `None` where nothing has to be done.
    #[must_use]
    pub fn remedy(&self, disk: &str) -> Option<String> {
        match self {
            Self::Data { .. } | Self::Empty { .. } | Self::Removable => None,
            Self::Foreign { .. } => Some(format!(
                "to give it to the node and lose what is on it, start another system and run `wipefs -a /dev/{disk}*; \
                 blkdiscard -zf /dev/{disk}` (or write zeros over its first and last MiB)"
            )),
            Self::Broken { .. } => Some(format!(
                "replace the disk if it is dying; to save its data start another system and run `e2fsck -f /dev/{disk}`; \
                 to give its data up, write zeros over its first and last MiB"
            )),
            Self::TooSmall { .. } => {
                Some(format!("use a disk of at least {} GiB", DATA_DISK_MIN_BYTES >> 30))
            }
            Self::ReadOnly => Some("remove its write protection".into()),
            Self::Unreadable { .. } => Some("check its cable and power, then replace it".into()),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data { check: false, .. } => f.write_str("data disk of this node"),
            Self::Data { check: true, .. } => f.write_str("data disk of this node, to be checked for errors"),
            Self::Empty { interrupted: false } => f.write_str("empty"),
            Self::Empty { interrupted: true } => f.write_str("empty: a power cut ended its formatting"),
            Self::Foreign { what } => write!(f, "not touched: it holds {what}"),
            Self::Broken { reason } => write!(f, "data disk of this node, but broken: {reason}"),
            Self::TooSmall { size_bytes } => write!(f, "not used: {} MiB are too small", size_bytes >> 20),
            Self::Removable => f.write_str("not used: it can be taken out"),
            Self::ReadOnly => f.write_str("not used: it is write-protected"),
            Self::Unreadable { error } => write!(f, "not used: it can't be read: {error}"),
        }
    }
}

/// A disk and what was found about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    pub disk: Disk,
    pub verdict: Verdict,
}

impl fmt::Display for Examined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.disk.name, self.verdict)?;
        match self.verdict.remedy(&self.disk.name) {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// All disks of an inventory, in its order. `dev` is `/dev`.
#[must_use]
pub fn examine(disks: &[Disk], dev: &Path) -> Vec<Examined> {
    disks
        .iter()
        .map(|disk| Examined { verdict: examine_disk(disk, &dev.join(&disk.name)), disk: disk.clone() })
        .collect()
}

fn examine_disk(disk: &Disk, device: &Path) -> Verdict {
    if disk.removable || disk.transport == Transport::Usb {
        return Verdict::Removable;
    }
    if disk.read_only {
        return Verdict::ReadOnly;
    }
    if disk.size_bytes < DATA_DISK_MIN_BYTES {
        return Verdict::TooSmall { size_bytes: disk.size_bytes };
    }
    if !disk.holders.is_empty() {
        return Verdict::Foreign { what: format!("a part of {}", disk.holders.join(", ")) };
    }
    match read_ends(device, disk.size_bytes) {
        Ok((head, tail)) => {
            let verdict = judge(&Ends { head: &head, tail: &tail, size_bytes: disk.size_bytes });
            match verdict {
                Verdict::Empty { .. } if !disk.partitions.is_empty() => {
                    Verdict::Foreign { what: format!("{} partitions", disk.partitions.len()) }
                }
                other => other,
            }
        }
        Err(error) => Verdict::Unreadable { error: error.to_string() },
    }
}

pub(crate) fn read_ends(device: &Path, size_bytes: u64) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let file = File::open(device)?;
    let read = |offset| {
        let mut window = vec![0; WINDOW_BYTES];
        file.read_exact_at(&mut window, offset).map(|()| window)
    };
    Ok((read(0)?, read(size_bytes.saturating_sub(WINDOW_BYTES as u64))?))
}

/// From the bytes at both ends.
#[must_use]
pub fn judge(ends: &Ends<'_>) -> Verdict {
    let ext = Ext::parse(ends.head);
    if let Some(marker) = Marker::decode(ends.head).filter(|marker| marker.state == State::Ready) {
        return judge_marked(&marker, ext.as_ref(), ends);
    }
    if blank(ends.head) && blank(ends.tail) {
        return Verdict::Empty { interrupted: false };
    }
    if was_interrupted(ext.as_ref(), ends) {
        return Verdict::Empty { interrupted: true };
    }
    let found = recognise(ends);
    let what = match found.as_slice() {
        [] => "data of a kind that is not recognised".to_owned(),
        [only] if only.label.as_deref() == Some(LABEL) => format!("{only}, but without this system's marker"),
        several => several.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
    };
    Verdict::Foreign { what }
}

/// Our marker is there: the filesystem behind it is ours, damaged, or somebody's newer one.
fn judge_marked(marker: &Marker, ext: Option<&Ext>, ends: &Ends<'_>) -> Verdict {
    let ours = |check| Verdict::Data { uuid: marker.uuid, created_unix: marker.created_unix, check };
    match ext {
        Some(ext) if ext.uuid == marker.uuid && ext.label.as_deref() == Some(LABEL) => ours(ext.has_errors),
        Some(_) => Verdict::Foreign { what: "an ext filesystem that replaced this system's".into() },
        None => match recognise(ends).first() {
            Some(other) => {
                Verdict::Foreign { what: format!("{other} that replaced this system's filesystem") }
            }
            // The superblock is gone; copies of it are further in, and e2fsck finds them.
            None => ours(true),
        },
    }
}

/// Whether all that is there is our own half-made filesystem. An intent may outlive its disk's next owner, so
/// everything around it has to fit: no boot sector, no signature but the very filesystem that it announced.
fn was_interrupted(ext: Option<&Ext>, ends: &Ends<'_>) -> bool {
    let Some(intent) = intent_of(ends) else { return false };
    let ours = ext.is_none_or(|ext| ext.uuid == intent.uuid && ext.label.as_deref() == Some(LABEL));
    let others = recognise(ends).len() > usize::from(ext.is_some());
    ours && !others && blank(&ends.head[..1024]) && blank(&ends.tail[MARKER_BYTES..])
}

/// The intent sits in the first sector of the reserved stretch.
fn intent_of(ends: &Ends<'_>) -> Option<Marker> {
    debug_assert_eq!(RESERVED_BYTES, WINDOW_BYTES as u64);
    Marker::decode(ends.tail).filter(|marker| marker.state == State::Formatting)
}

#[cfg(test)]
mod tests;
