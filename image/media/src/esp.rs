//! The EFI system partition: FAT32 with the boot file where firmware looks for it, and the farm's addition.
//!
//! ```text
//!   EFI/BOOT/BOOTX64.EFI   the boot file that came with the medium; never overwritten, so that a machine always starts
//!   EFI/CROFT/A.EFI        upgrades write here and there in turn; the older one stays until the newer one is confirmed
//!   EFI/CROFT/B.EFI
//!   CROFT/FARM.BIN         the farm's addition
//! ```
//! There is no loader: firmware starts BOOTX64.EFI, which is the kernel, and that one starts a confirmed slot by kexec
//! or names it to the firmware (`BootOrder`, for a trial `BootNext`). FAT has no atomic replacement of a file's content,
//! so that no file which a machine may need is ever written over.

use crate::BOOT_FILE_BYTES_MAX;
use crate::fat::{self, CLUSTERS_MIN, FatError, Node, Volume};
use crate::gpt::BLOCK_BYTES;

/// Where firmware looks on removable media (UEFI 2.10, 3.5.1.1).
pub const BOOT_PATH: &str = "EFI/BOOT/BOOTX64.EFI";
/// Folder of the two slots of upgrades.
pub const SLOTS_FOLDER: &str = "EFI/CROFT";
/// The slots in it.
pub const SLOTS: [&str; 2] = ["A.EFI", "B.EFI"];
/// The farm's addition.
pub const ADDITION_PATH: &str = croft_protocol::addition::MEDIUM_PATH;
/// Volume label, so that a person sees which stick it is.
const LABEL: [u8; 11] = *b"CROFT      ";
const MIB: usize = 1024 * 1024;
/// With the smallest clusters, and both tables.
const BYTES_MIN: usize = 34 * MIB;
/// Folders, the addition, and what a node notes beside its slots.
const SPARE_BYTES: usize = 2 * MIB;
/// How much the next releases may grow, in percent.
const GROWTH_PERCENT: usize = 25;

/// What goes onto a medium.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// Signed, for Secure Boot; not looked into.
    pub boot_file: &'a [u8],
    /// The farm's addition, as sealed; not looked into.
    pub addition: Option<&'a [u8]>,
}

/// Why there is no medium.
#[derive(Debug, thiserror::Error)]
pub enum MediumError {
    #[error("the boot file is empty: build the image first")]
    NoBootFile,
    #[error("the boot file has {len} bytes, at most {BOOT_FILE_BYTES_MAX} fit on a medium")]
    BootFileTooLarge { len: usize },
    #[error("the farm's addition has {len} bytes, at most {max} are possible", max = croft_protocol::limits::ADDITION_BYTES)]
    AdditionTooLarge { len: usize },
    #[error("the EFI system partition could not be made")]
    Fat(#[from] FatError),
    #[error(transparent)]
    Partition(#[from] crate::gpt::DoesNotFit),
}

impl Contents<'_> {
    /// # Errors
    /// [`MediumError`] for content that no medium takes.
    pub fn check(&self) -> Result<(), MediumError> {
        match (self.boot_file.len(), self.addition.map_or(0, <[u8]>::len)) {
            (0, _) => Err(MediumError::NoBootFile),
            (len, _) if len > BOOT_FILE_BYTES_MAX => Err(MediumError::BootFileTooLarge { len }),
            (_, len) if len > croft_protocol::limits::ADDITION_BYTES => {
                Err(MediumError::AdditionTooLarge { len })
            }
            _ => Ok(()),
        }
    }

    /// What all identifiers of a medium come from.
    #[must_use]
    pub fn hash(&self, medium: &str) -> [u8; 32] {
        let boot = crate::sha256(&[self.boot_file]);
        let addition = self.addition.map_or([0; 32], |addition| crate::sha256(&[addition]));
        crate::sha256(&[b"croft/medium/1 ", medium.as_bytes(), b" ", &boot, &addition])
    }
}

/// Whether upgrades find a place on the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Two further boot files, each a quarter larger than this one.
    ForUpgrades,
    /// None: the medium is read-only.
    ForContents,
}

/// The partition's bytes, a whole number of MiB, for a place at `at_bytes` of the disk.
///
/// # Errors
/// [`MediumError`].
pub fn image(
    contents: &Contents<'_>,
    room: Room,
    id: [u8; 4],
    at_bytes: u64,
) -> Result<Vec<u8>, MediumError> {
    contents.check()?;
    let bytes = image_bytes(contents.boot_file.len(), room);
    let mut folders = vec![Node::Folder("BOOT", vec![Node::File("BOOTX64.EFI", contents.boot_file)])];
    if room == Room::ForUpgrades {
        folders.push(Node::Folder("CROFT", Vec::new()));
    }
    let mut root = vec![Node::Folder("EFI", folders)];
    root.extend(
        contents.addition.map(|addition| Node::Folder("CROFT", vec![Node::File("FARM.BIN", addition)])),
    );
    let hidden_sectors = (at_bytes / BLOCK_BYTES) as u32;
    let volume = Volume { bytes, cluster_bytes: cluster_bytes(bytes), id, label: LABEL, hidden_sectors };
    Ok(fat::build(volume, &root)?)
}

fn image_bytes(boot_file: usize, room: Room) -> usize {
    let slots = match room {
        Room::ForUpgrades => SLOTS.len() * (boot_file + boot_file * GROWTH_PERCENT / 100),
        Room::ForContents => 0,
    };
    // Both tables take 8 bytes for each cluster, at most a sixty-fourth.
    let content = boot_file + slots + SPARE_BYTES;
    (content + content / 64).next_multiple_of(MIB).max(BYTES_MIN)
}

/// As large as FAT32 allows: firmware reads cluster by cluster.
fn cluster_bytes(image: usize) -> usize {
    let mut cluster = 512;
    // Half a per cent for the tables.
    while image / (cluster * 2) >= CLUSTERS_MIN + CLUSTERS_MIN / 64 && cluster < 4096 {
        cluster *= 2;
    }
    cluster
}

/// Reads a file through another implementation; nothing when it is not there.
#[cfg(test)]
pub(crate) fn read_file(image: &[u8], path: &str) -> Option<Vec<u8>> {
    let fs = fatfs::FileSystem::new(std::io::Cursor::new(image.to_vec()), fatfs::FsOptions::new()).unwrap();
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut fs.root_dir().open_file(path).ok()?, &mut content).unwrap();
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot_file(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 % 253) as u8).collect()
    }

    #[test]
    fn equal_contents_make_equal_bytes_with_the_files_in_their_places() {
        let boot = boot_file(3 * MIB + 17);
        let contents = Contents { boot_file: &boot, addition: Some(b"farm") };
        let image = || super::image(&contents, Room::ForUpgrades, [1, 2, 3, 4], 1 << 20).unwrap();
        let bytes = image();
        assert!(bytes == image());
        assert_eq!(bytes.len(), BYTES_MIN);
        assert!(read_file(&bytes, BOOT_PATH).unwrap() == boot);
        assert_eq!(read_file(&bytes, ADDITION_PATH).unwrap(), b"farm");
        assert_eq!(read_file(&bytes, "EFI/CROFT/A.EFI"), None);
        let without = Contents { addition: None, ..contents };
        let bytes = super::image(&without, Room::ForContents, [1, 2, 3, 4], 0).unwrap();
        assert_eq!(read_file(&bytes, ADDITION_PATH), None);
    }

    #[test]
    fn both_slots_fit_beside_the_boot_file_even_when_releases_grow() {
        // Above the smallest size, so that nothing is given away.
        let boot = boot_file(24 * MIB);
        let contents = Contents { boot_file: &boot, addition: Some(&[1; 16 * 1024]) };
        let bytes = image(&contents, Room::ForUpgrades, [0; 4], 0).unwrap();
        let fs = fatfs::FileSystem::new(std::io::Cursor::new(bytes), fatfs::FsOptions::new()).unwrap();
        let free = fs.stats().unwrap().free_clusters() as usize * fs.cluster_size() as usize;
        assert_eq!(fs.fat_type(), fatfs::FatType::Fat32);
        assert!(free >= SLOTS.len() * 30 * MIB, "{free}");
        assert!(free < SLOTS.len() * 30 * MIB + 4 * MIB, "{free}");
    }

    #[test]
    fn what_no_medium_takes_is_refused_with_the_numbers() {
        let message =
            |boot_file: &[u8], addition| Contents { boot_file, addition }.check().unwrap_err().to_string();
        assert_eq!(message(b"", None), "the boot file is empty: build the image first");
        let large = vec![0; 16 * 1024 + 1];
        assert_eq!(
            message(b"x", Some(&large)),
            "the farm's addition has 16385 bytes, at most 16384 are possible"
        );
        assert!(message(&vec![0; BOOT_FILE_BYTES_MAX + 1], None).contains("at most 268435456 fit"));
    }
}
