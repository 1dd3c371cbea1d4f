//! GUID partition tables with one partition, the EFI system partition: protective MBR, primary and backup.
//!
//! Source: UEFI 2.10, chapter 5. Every GUID is given, none is random, so that equal content gives equal bytes.

use std::fmt;

/// Bytes of a logical block; USB sticks and disk images have no other.
pub const BLOCK_BYTES: u64 = 512;
/// Entries in a table, as everybody writes them.
const ENTRIES: u32 = 128;
const ENTRY_BYTES: u32 = 128;
/// Blocks of the entries.
const ENTRIES_BLOCKS: u64 = (ENTRIES * ENTRY_BYTES) as u64 / BLOCK_BYTES;
/// Blocks at the end of a disk that belong to the backup: entries and header.
pub const BACKUP_BLOCKS: u64 = ENTRIES_BLOCKS + 1;
/// Blocks at the beginning: protective MBR, header, entries.
pub const PRIMARY_BLOCKS: u64 = 2 + ENTRIES_BLOCKS;
/// EFI system partition, c12a7328-f81f-11d2-ba4b-00a0c93ec93b, as it is written.
pub const ESP_TYPE: Guid =
    Guid([0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]);

/// A GUID as it stands on a disk: the first three fields in little-endian order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// A GUID of version 8 (RFC 9562, section 5.8) from the beginning of a hash.
    #[must_use]
    pub fn from_hash(hash: &[u8; 32]) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        // Version in the highest bits of the third field, variant in those of the fourth.
        bytes[7] = bytes[7] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Three numbers in little-endian order, then bytes.
        let mut shown = self.0;
        shown[..4].reverse();
        shown[4..6].reverse();
        shown[6..8].reverse();
        let part = |at: std::ops::Range<usize>| hex::encode(&shown[at]);
        write!(f, "{}-{}-{}-{}-{}", part(0..4), part(4..6), part(6..8), part(8..10), part(10..16))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A disk with one partition. Counts and places in blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub guid: Guid,
    pub blocks: u64,
    pub partition: Partition,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub kind: Guid,
    pub guid: Guid,
    pub first: u64,
    pub blocks: u64,
    /// At most 36 characters.
    pub name: &'static str,
}

/// A partition that does not fit between the two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a partition of {wanted} blocks from block {first} does not fit on a disk of {blocks} blocks")]
pub struct DoesNotFit {
    pub first: u64,
    pub wanted: u64,
    pub blocks: u64,
}

impl Disk {
    /// Writes both tables, and the protective MBR, into a disk's bytes. The first 440 bytes stay as they are.
    ///
    /// # Errors
    /// [`DoesNotFit`].
    pub fn write(&self, disk: &mut [u8]) -> Result<(), DoesNotFit> {
        let Partition { first, blocks: wanted, .. } = self.partition;
        let no = DoesNotFit { first, wanted, blocks: self.blocks };
        let usable_end = self.blocks.checked_sub(BACKUP_BLOCKS).ok_or(no)?;
        let end = first.checked_add(wanted).ok_or(no)?;
        if first < PRIMARY_BLOCKS
            || wanted == 0
            || end > usable_end
            || disk.len() as u64 != self.blocks * BLOCK_BYTES
        {
            return Err(no);
        }
        let entries = self.entries();
        let last = self.blocks - 1;
        put(disk, 0, 440, &self.protective_mbr());
        put(disk, 1, 0, &self.header(1, last, 2, &entries));
        put(disk, 2, 0, &entries);
        put(disk, last - ENTRIES_BLOCKS, 0, &entries);
        put(disk, last, 0, &self.header(last, 1, last - ENTRIES_BLOCKS, &entries));
        Ok(())
    }

    /// From byte 440 on: no signature, one partition of type 0xEE over everything, 0x55AA.
    fn protective_mbr(&self) -> [u8; 72] {
        let mut mbr = [0; 72];
        // Not bootable; CHS 0/0/2 to the largest.
        mbr[6..14].copy_from_slice(&[0x00, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff]);
        mbr[14..18].copy_from_slice(&1u32.to_le_bytes());
        let covered = u32::try_from(self.blocks - 1).unwrap_or(u32::MAX);
        mbr[18..22].copy_from_slice(&covered.to_le_bytes());
        mbr[70..].copy_from_slice(&[0x55, 0xaa]);
        mbr
    }

    fn entries(&self) -> Vec<u8> {
        let Partition { kind, guid, first, blocks, name } = &self.partition;
        let mut entries = vec![0; (ENTRIES * ENTRY_BYTES) as usize];
        entries[..16].copy_from_slice(&kind.0);
        entries[16..32].copy_from_slice(&guid.0);
        entries[32..40].copy_from_slice(&first.to_le_bytes());
        entries[40..48].copy_from_slice(&(first + blocks - 1).to_le_bytes());
        for (at, unit) in name.encode_utf16().take(36).enumerate() {
            entries[56 + 2 * at..58 + 2 * at].copy_from_slice(&unit.to_le_bytes());
        }
        entries
    }

    fn header(&self, here: u64, other: u64, entries_at: u64, entries: &[u8]) -> [u8; 92] {
        let mut header = [0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        let last_usable = self.blocks - BACKUP_BLOCKS - 1;
        for (at, block) in
            [(24, here), (32, other), (40, PRIMARY_BLOCKS), (48, last_usable), (72, entries_at)]
        {
            header[at..at + 8].copy_from_slice(&block.to_le_bytes());
        }
        header[56..72].copy_from_slice(&self.guid.0);
        header[80..84].copy_from_slice(&ENTRIES.to_le_bytes());
        header[84..88].copy_from_slice(&ENTRY_BYTES.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(entries).to_le_bytes());
        let own = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&own.to_le_bytes());
        header
    }
}

fn put(disk: &mut [u8], block: u64, offset: usize, bytes: &[u8]) {
    let at = (block * BLOCK_BYTES) as usize + offset;
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn disk() -> Disk {
        let partition = Partition {
            kind: ESP_TYPE,
            guid: Guid::from_hash(&[2; 32]),
            first: 64,
            blocks: 100,
            name: "croft",
        };
        Disk { guid: Guid::from_hash(&[1; 32]), blocks: 256, partition }
    }

    #[test]
    fn another_implementation_reads_both_tables() {
        let mut bytes = vec![0; 256 * 512];
        disk().write(&mut bytes).unwrap();
        let read = |bytes: &[u8]| {
            let config = ::gpt::GptConfig::new()
                .writable(false)
                .logical_block_size(::gpt::disk::LogicalBlockSize::Lb512);
            config.open_from_device(Cursor::new(bytes.to_vec())).unwrap()
        };
        let check = |bytes: &[u8]| {
            let found = read(bytes);
            assert_eq!(found.guid().to_string(), disk().guid.to_string());
            let partitions = found.partitions();
            assert_eq!(partitions.len(), 1);
            let partition = &partitions[&1];
            assert_eq!((partition.first_lba, partition.last_lba), (64, 163));
            assert_eq!(partition.part_type_guid, ::gpt::partition_types::EFI);
            assert_eq!(partition.part_guid.to_string(), disk().partition.guid.to_string());
            assert_eq!(partition.name, "croft");
        };
        check(&bytes);
        assert!(read(&bytes).primary_header().is_ok() && read(&bytes).backup_header().is_ok());
        // A broken primary header leaves the backup.
        bytes[512 + 60] ^= 1;
        check(&bytes);
    }

    #[test]
    fn a_partition_outside_the_disk_is_refused_with_the_numbers() {
        let mut small = disk();
        small.blocks = 190;
        let error = small.write(&mut vec![0; 190 * 512]).unwrap_err().to_string();
        assert_eq!(error, "a partition of 100 blocks from block 64 does not fit on a disk of 190 blocks");
        for (first, blocks) in [(33, 1), (64, 0), (u64::MAX, 2)] {
            let mut wrong = disk();
            (wrong.partition.first, wrong.partition.blocks) = (first, blocks);
            assert!(wrong.write(&mut vec![0; 256 * 512]).is_err(), "{first} {blocks}");
        }
    }

    #[test]
    fn a_guid_is_shown_as_tools_show_it() {
        assert_eq!(ESP_TYPE.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(Guid::from_hash(&[0xff; 32]).to_string(), "ffffffff-ffff-8fff-bfff-ffffffffffff");
    }
}
