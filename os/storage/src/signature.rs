//! What is on a disk, told from its first and last mebibyte.
//!
//! Pure: bytes in, names out. It errs towards finding something, because what is found is never touched.
//!
//! Sources: util-linux libblkid (superblocks and partitions), ext4 Documentation/filesystems/ext4, UEFI 2.10
//! section 5.3 (GPT), md(4), the LUKS on-disk formats 1 and 2.

use std::fmt;

/// How much of each end is looked at. All formats below keep their magic numbers there.
pub const WINDOW_BYTES: usize = 1 << 20;

/// One thing that was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// `an ext4 filesystem`, `a GPT partition table`: reads on after "holds".
    pub what: &'static str,
    pub label: Option<String>,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        match &self.label {
            Some(label) => write!(f, " labelled {label:?}"),
            None => Ok(()),
        }
    }
}

/// Both ends of a disk. They overlap on small disks.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    /// From the first byte on.
    pub head: &'a [u8],
    /// Up to the last byte.
    pub tail: &'a [u8],
    pub size_bytes: u64,
}

/// A magic number at a fixed place counted from the start.
type Magic = (usize, &'static [u8], &'static str);

const MAGICS: &[Magic] = &[
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    (0x4000, b"SKUL\xba\xbe", "a LUKS encrypted volume"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID set (md)"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID set (md)"),
    (0, b"XFSB", "an XFS filesystem"),
    (0x1_0040, b"_BHRfS_M", "a Btrfs filesystem"),
    (3, b"NTFS    ", "an NTFS filesystem"),
    (3, b"EXFAT   ", "an exFAT filesystem"),
    (3, b"-FVE-FS-", "a BitLocker volume"),
    (54, b"FAT12   ", "a FAT filesystem"),
    (54, b"FAT16   ", "a FAT filesystem"),
    (82, b"FAT32   ", "a FAT filesystem"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4086, b"SWAP-SPACE", "swap space"),
    (4086, b"S1SUSPEND", "a suspended system"),
    (8182, b"SWAPSPACE2", "swap space"),
    (65_526, b"SWAPSPACE2", "swap space"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0x8001, b"BEA01", "a UDF filesystem"),
    (0x8001, b"NSR0", "a UDF filesystem"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS filesystem"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS image"),
    (1024, b"H+\x00\x04", "an HFS+ filesystem"),
    (1024, b"HX\x00\x05", "an HFS+ filesystem"),
    (32, b"NXSB", "an APFS container"),
    (0, b"hsqs", "a SquashFS image"),
    (0, b"verity\0\0", "a dm-verity hash device"),
    (0x8000, b"JFS1", "a JFS filesystem"),
    (0x1_0034, b"ReIsEr", "a ReiserFS filesystem"),
    (0x2034, b"ReIsEr", "a ReiserFS filesystem"),
    (1030, b"\x34\x34", "a NILFS2 filesystem"),
    (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a bcache device"),
    (4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "a bcachefs filesystem"),
    (0, b"bluestore block device", "a Ceph OSD"),
    (512, b"\x57\x45\x56\x82", "a BSD disk label"),
    (508, b"\xda\xbe", "a Sun disk label"),
    (512, b"PM\0\0", "an Apple partition map"),
];

/// A magic number at a fixed distance from the end.
const TAIL_MAGICS: &[Magic] = &[
    (512, b"EFI PART", "the backup of a GPT partition table"),
    (4096, b"EFI PART", "the backup of a GPT partition table"),
    (512, b"\xde\x11\xde\x11", "a member of a hardware RAID set (DDF)"),
    (1024, b"Intel Raid ISM Cfg Sig.", "a member of an Intel RAID set"),
    (4036, b"\x83\x74\x02\x6b", "a DRBD device"),
    (4036, b"\x8a\x5d\x8a\xb1", "a DRBD device"),
];

/// Everything that is recognised, each thing once. Empty when nothing is; see [`blank`] for the rest.
#[must_use]
pub fn recognise(ends: &Ends<'_>) -> Vec<Signature> {
    let mut found: Vec<Signature> = Vec::new();
    let mut add = |what, label| {
        if !found.iter().any(|signature| signature.what == what) {
            found.push(Signature { what, label });
        }
    };
    for (offset, magic, what) in MAGICS {
        if bytes_at(ends.head, *offset, magic.len()) == Some(magic) {
            add(what, None);
        }
    }
    for (distance, magic, what) in TAIL_MAGICS {
        let start = ends.tail.len().checked_sub(*distance);
        if start.and_then(|start| bytes_at(ends.tail, start, magic.len())) == Some(magic) {
            add(what, None);
        }
    }
    if let Some(superblock) = Ext::parse(ends.head) {
        add(superblock.what(), superblock.label.clone());
    }
    if is_lvm(ends.head) {
        add("an LVM physical volume", None);
    }
    if is_zfs(ends) {
        add("a member of a ZFS pool", None);
    }
    if is_md_at_end(ends) {
        add("a member of a Linux RAID set (md)", None);
    }
    if has_mbr(ends.head)
        && !found.iter().any(|signature| signature.what.contains("FAT") || signature.what.contains("NTFS"))
    {
        found.push(Signature { what: "an MBR partition table", label: None });
    }
    found
}

/// Whether a stretch of a disk was never written, or was erased: all zeros, or all ones as some flash reads.
#[must_use]
pub fn blank(bytes: &[u8]) -> bool {
    match bytes.first() {
        Some(first @ (0x00 | 0xff)) => bytes.iter().all(|byte| byte == first),
        Some(_) => false,
        None => true,
    }
}

fn bytes_at(bytes: &[u8], offset: usize, length: usize) -> Option<&[u8]> {
    bytes.get(offset..offset.checked_add(length)?)
}

fn le16(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes_at(bytes, offset, 2)?.try_into().ok()?))
}

fn le32(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes_at(bytes, offset, 4)?.try_into().ok()?))
}

/// The parts of an ext2, ext3 or ext4 superblock that decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ext {
    pub label: Option<String>,
    pub uuid: [u8; 16],
    /// The kernel or e2fsck noted errors that are not repaired.
    pub has_errors: bool,
    compatible: u32,
    incompatible: u32,
}

impl Ext {
    const SUPERBLOCK: usize = 1024;
    const HAS_JOURNAL: u32 = 0x4;
    /// Extents, 64 bit, flexible groups: what only ext4 has.
    const EXT4_ONLY: u32 = 0x40 | 0x80 | 0x200;

    /// From the first bytes of a disk.
    #[must_use]
    pub fn parse(head: &[u8]) -> Option<Self> {
        let at = |offset| Self::SUPERBLOCK + offset;
        if le16(head, at(0x38))? != 0xef53 {
            return None;
        }
        let label = bytes_at(head, at(0x78), 16)?;
        let label = String::from_utf8_lossy(label.split(|byte| *byte == 0).next()?).into_owned();
        Some(Self {
            label: (!label.is_empty()).then_some(label),
            uuid: bytes_at(head, at(0x68), 16)?.try_into().ok()?,
            has_errors: le16(head, at(0x3a))? & 2 != 0 || le32(head, at(0x194))? > 0,
            compatible: le32(head, at(0x5c))?,
            incompatible: le32(head, at(0x60))?,
        })
    }

    fn what(&self) -> &'static str {
        if self.incompatible & Self::EXT4_ONLY != 0 {
            "an ext4 filesystem"
        } else if self.compatible & Self::HAS_JOURNAL != 0 {
            "an ext3 filesystem"
        } else {
            "an ext2 filesystem"
        }
    }
}

/// The label may sit in any of the first four sectors.
fn is_lvm(head: &[u8]) -> bool {
    [0, 512, 1024, 1536].into_iter().any(|sector| {
        bytes_at(head, sector, 8) == Some(b"LABELONE") && bytes_at(head, sector + 24, 4) == Some(b"LVM2")
    })
}

/// Uberblocks fill the second half of each of four labels of 256 KiB: two at the start, two at the end.
fn is_zfs(ends: &Ends<'_>) -> bool {
    const LABEL: usize = 256 << 10;
    const LITTLE: &[u8] = &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0];
    const BIG: &[u8] = &[0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c];
    let has = |label: &[u8]| {
        (LABEL / 2..LABEL)
            .step_by(1024)
            .any(|slot| matches!(bytes_at(label, slot, 8), Some(magic) if magic == LITTLE || magic == BIG))
    };
    // Labels are aligned to their own size from the start, so the end of the disk may leave a rest.
    let rest = usize::try_from(ends.size_bytes % LABEL as u64).unwrap_or(0);
    let tail = ends.tail.len().checked_sub(rest).map_or(&[][..], |end| &ends.tail[..end]);
    [0, LABEL].into_iter().filter_map(|start| ends.head.get(start..)).any(has)
        || [LABEL, 2 * LABEL]
            .into_iter()
            .filter_map(|back| tail.get(tail.len().checked_sub(back)?..))
            .any(has)
}

/// md formats 1.0 (8 to 12 KiB before the end) and 0.90 (64 to 128 KiB before the end).
fn is_md_at_end(ends: &Ends<'_>) -> bool {
    const LITTLE: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
    const BIG: &[u8] = &[0xa9, 0x2b, 0x4e, 0xfc];
    let at = |offset: u64| {
        let back = usize::try_from(ends.size_bytes.checked_sub(offset)?).ok()?;
        bytes_at(ends.tail, ends.tail.len().checked_sub(back)?, 4)
    };
    let version_1_0 = (ends.size_bytes / 4096 * 4096).checked_sub(8 << 10);
    let version_0_90 = (ends.size_bytes / (64 << 10) * (64 << 10)).checked_sub(64 << 10);
    version_1_0.and_then(at) == Some(LITTLE)
        || version_0_90.and_then(at).is_some_and(|magic| magic == LITTLE || magic == BIG)
}

/// A boot signature and at least one partition that makes sense; boot sectors of filesystems have the former alone.
fn has_mbr(head: &[u8]) -> bool {
    bytes_at(head, 510, 2) == Some(&[0x55, 0xaa])
        && (446..510).step_by(16).any(|entry| {
            let flag = head[entry];
            let kind = head[entry + 4];
            matches!(flag, 0x00 | 0x80)
                && kind != 0
                && le32(head, entry + 12).is_some_and(|sectors| sectors > 0)
        })
}

#[cfg(test)]
mod tests;
