//! The USB disk image: protective MBR, GPT, one EFI system partition.
//!
//! ```text
//!   0        MBR, GPT
//!   1 MiB    EFI system partition (see esp)
//!   end      backup GPT, within the last MiB
//! ```
//! A stick is larger than the image: the backup table then lies before its end, which firmware and Linux accept as
//! long as the primary one is right. Disk and partition get GUIDs from the content, so a stick tells what it holds, and
//! two sticks of one image are equal.

use std::fs;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use crate::esp::{self, Contents, MediumError, Room};
use crate::gpt::{BACKUP_BLOCKS, BLOCK_BYTES, Disk, ESP_TYPE, Guid, Partition};
use crate::sha256;

/// Where the partition begins: flash memory likes it, and everything else that partitions does the same.
pub const PARTITION_AT_BYTES: u64 = 1024 * 1024;
/// The name that tools show.
pub const PARTITION_NAME: &str = "croft-boot";

/// An image and how it is identified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub bytes: Vec<u8>,
    pub disk: Guid,
    pub partition: Guid,
}

/// Why nothing is written to a path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAFile {
    #[error("{path} is a disk: name a file, and write that to the disk with 'croft media flash'")]
    Disk { path: PathBuf },
    #[error("{path} is there and is no regular file: name another one")]
    Other { path: PathBuf },
}

/// The image for this content.
///
/// # Errors
/// [`MediumError`].
pub fn image(contents: &Contents<'_>) -> Result<Image, MediumError> {
    let hash = contents.hash("usb");
    let [a, b, c, d, ..] = hash;
    let esp = esp::image(contents, Room::ForUpgrades, [a, b, c, d], PARTITION_AT_BYTES)?;
    let first = PARTITION_AT_BYTES / BLOCK_BYTES;
    let blocks = esp.len() as u64 / BLOCK_BYTES;
    let disk = Disk {
        guid: Guid::from_hash(&sha256(&[b"disk", &hash])),
        // To a whole MiB: virtual machines and sticks take nothing else gladly.
        blocks: (first + blocks + BACKUP_BLOCKS).next_multiple_of(PARTITION_AT_BYTES / BLOCK_BYTES),
        partition: Partition {
            kind: ESP_TYPE,
            guid: Guid::from_hash(&sha256(&[b"partition", &hash])),
            first,
            blocks,
            name: PARTITION_NAME,
        },
    };
    let mut bytes = vec![0; (disk.blocks * BLOCK_BYTES) as usize];
    bytes[PARTITION_AT_BYTES as usize..][..esp.len()].copy_from_slice(&esp);
    disk.write(&mut bytes)?;
    Ok(Image { bytes, disk: disk.guid, partition: disk.partition.guid })
}

/// Checks that a file may take this path: a rename over a device node would replace the node, and write nothing to the
/// device. A link counts as what it leads to.
///
/// # Errors
/// [`NotAFile`] for what is there and is no regular file.
pub fn check_path(path: &Path) -> Result<(), NotAFile> {
    match fs::metadata(path).map(|metadata| metadata.file_type()) {
        Ok(kind) if kind.is_block_device() => Err(NotAFile::Disk { path: path.to_owned() }),
        Ok(kind) if !kind.is_file() => Err(NotAFile::Other { path: path.to_owned() }),
        // What can't be looked at can't be written either, which says why.
        _ => Ok(()),
    }
}

/// Writes an image as a file with holes where it is empty: most of it waits for upgrades. Written aside and renamed, so
/// that no half image has the name.
///
/// # Errors
/// Of the file system, and [`NotAFile`].
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    const HOLE_BYTES: usize = 64 * 1024;
    check_path(path).map_err(io::Error::other)?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    for (index, part) in bytes.chunks(HOLE_BYTES).enumerate() {
        if part.iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start((index * HOLE_BYTES) as u64))?;
            file.write_all(part)?;
        }
    }
    file.as_file().set_len(bytes.len() as u64)?;
    // It may hold a join token, which is a permission.
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn contents() -> Contents<'static> {
        Contents { boot_file: &[0x4d; 10_000], addition: Some(b"farm") }
    }

    #[test]
    fn equal_contents_make_equal_sticks_and_other_contents_other_guids() {
        let image = super::image(&contents()).unwrap();
        assert!(image == super::image(&contents()).unwrap());
        let other = super::image(&Contents { addition: None, ..contents() }).unwrap();
        assert_ne!((image.disk, image.partition), (other.disk, other.partition));
        assert_ne!(image.disk, image.partition);
        assert!(image.bytes.len().is_multiple_of(1024 * 1024));
    }

    #[test]
    fn another_implementation_finds_the_partition_and_the_boot_file_in_it() {
        let image = super::image(&contents()).unwrap();
        let config = ::gpt::GptConfig::new().writable(false);
        let disk = config.open_from_device(io::Cursor::new(image.bytes.clone())).unwrap();
        let partition = &disk.partitions()[&1];
        assert_eq!(partition.part_guid.to_string(), image.partition.to_string());
        let at = (partition.first_lba * 512) as usize;
        let end = ((partition.last_lba + 1) * 512) as usize;
        let boot = esp::read_file(&image.bytes[at..end], esp::BOOT_PATH).unwrap();
        assert_eq!(boot, contents().boot_file);
    }

    #[test]
    fn a_written_image_is_whole_sparse_and_for_its_owner() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("usb.img");
        let image = super::image(&contents()).unwrap();
        write_file(&path, &image.bytes).unwrap();
        assert!(fs::read(&path).unwrap() == image.bytes);
        let metadata = path.metadata().unwrap();
        assert!(metadata.blocks() * 512 < metadata.len() / 4, "{} blocks", metadata.blocks());
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_regular_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, link, disk) =
            (dir.path().join("socket"), dir.path().join("link"), dir.path().join("sdz"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        for path in [&socket, &link] {
            let error = write_file(path, b"image").unwrap_err().to_string();
            assert_eq!(
                error,
                format!("{} is there and is no regular file: name another one", path.display())
            );
        }
        assert!(socket.symlink_metadata().unwrap().file_type().is_socket());
        assert!(link.is_symlink());
        // Of a major number that no driver has. Needs root.
        let device = rustix::fs::makedev(4_000, 0);
        let (kind, mode) = (rustix::fs::FileType::BlockDevice, rustix::fs::Mode::RUSR);
        if rustix::fs::mknodat(rustix::fs::CWD, &disk, kind, mode, device).is_ok() {
            let error = check_path(&disk).unwrap_err().to_string();
            assert_eq!(
                error,
                format!(
                    "{} is a disk: name a file, and write that to the disk with 'croft media flash'",
                    disk.display()
                )
            );
        }
    }

    #[test]
    fn sgdisk_fsck_and_mtools_find_no_fault() {
        let dir = tempfile::tempdir().unwrap();
        let image = super::image(&contents()).unwrap();
        let (disk, esp) = (dir.path().join("usb.img"), dir.path().join("esp.img"));
        write_file(&disk, &image.bytes).unwrap();
        let partition = &image.bytes[PARTITION_AT_BYTES as usize..image.bytes.len() - 1024 * 1024];
        fs::write(&esp, partition).unwrap();
        let run = |program: &str, arguments: &[&str], file: &Path| {
            let Ok(output) = Command::new(program).args(arguments).arg(file).output() else {
                eprintln!("{program} is not installed: not compared");
                return None;
            };
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{program}: {text} {}", String::from_utf8_lossy(&output.stderr));
            Some(text)
        };
        if let Some(text) = run("sgdisk", &["--verify"], &disk) {
            assert!(text.contains("No problems found"), "{text}");
        }
        if let Some(text) = run("fsck.vfat", &["-n"], &esp) {
            assert!(!text.to_lowercase().contains("differ"), "{text}");
        }
        if let Some(text) = run("mdir", &["-/", "-b", "-i"], &esp) {
            assert!(text.contains("EFI/BOOT/BOOTX64.EFI") && text.contains("CROFT/FARM.BIN"), "{text}");
        }
    }
}
