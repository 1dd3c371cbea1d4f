//! The hybrid ISO: on a CD the firmware finds the EFI system partition through El Torito, on a stick through the GPT.
//!
//! Sources: ECMA-119 (ISO 9660), "El Torito" Bootable CD-ROM Format 1.0, UEFI 2.10 section 13.3.2.
//!
//! ```text
//!   sector (2,048 bytes)
//!   0..16     system area: protective MBR, GPT and its entries, in blocks of 512 bytes
//!   16 17 18  primary volume, El Torito boot record, terminator
//!   19 20     path tables
//!   21 22     root folder, folder CROFT
//!   23        boot catalogue
//!   24..      README.TXT, CROFT/FARM.BIN
//!   512..     ESP.IMG: the partition, at 1 MiB
//!   end       backup GPT
//! ```
//! The addition is there twice, since who reads a CD sees no partition. A CD can't be written, so the partition has no
//! room for upgrades; a machine that booted from it upgrades through kexec only.

use crate::esp::{self, Contents, MediumError, Room};
use crate::gpt::{BACKUP_BLOCKS, BLOCK_BYTES, Disk, ESP_TYPE, Guid, Partition};
use crate::sha256;

const SECTOR: usize = 2048;
const VOLUME: usize = 16;
const BOOT_RECORD: usize = 17;
const TERMINATOR: usize = 18;
const PATH_TABLE_LITTLE: usize = 19;
const PATH_TABLE_BIG: usize = 20;
const ROOT: usize = 21;
const FOLDER: usize = 22;
const CATALOGUE: usize = 23;
const README_AT: usize = 24;
const ADDITION_AT: usize = 25;
/// 1 MiB, as on a stick.
const ESP_AT: usize = 512;
/// Shown when the disc is opened on some computer.
const README: &str = "This medium starts a machine of the Croft grid. There is nothing to install: boot from it.\r\n\
    ESP.IMG is what the firmware reads; CROFT\\FARM.BIN, if there, says to which farm the machine belongs.\r\n";
/// The same moment as on FAT, 1980-01-01 00:00:00 UTC, in both forms of ECMA-119 (8.4.26.1 and 9.1.5).
const DATE_LONG: &[u8; 17] = b"1980010100000000\0";
const DATE_SHORT: [u8; 7] = [80, 1, 1, 0, 0, 0, 0];
const NO_DATE: &[u8; 17] = b"0000000000000000\0";

/// A file or folder as a folder lists it.
struct Entry {
    name: &'static [u8],
    sector: usize,
    bytes: usize,
    is_folder: bool,
}

/// The image for this content.
///
/// # Errors
/// [`MediumError`].
pub fn image(contents: &Contents<'_>) -> Result<Vec<u8>, MediumError> {
    let hash = contents.hash("iso");
    let [a, b, c, d, ..] = hash;
    let esp = esp::image(contents, Room::ForContents, [a, b, c, d], (ESP_AT * SECTOR) as u64)?;
    let per_sector = (SECTOR as u64) / BLOCK_BYTES;
    let first = ESP_AT as u64 * per_sector;
    let blocks = esp.len() as u64 / BLOCK_BYTES;
    let all = (first + blocks + BACKUP_BLOCKS).next_multiple_of(2048);
    let sectors = (all / per_sector) as usize;
    let mut iso = vec![0; sectors * SECTOR];
    let mut put = |sector: usize, bytes: &[u8]| iso[sector * SECTOR..][..bytes.len()].copy_from_slice(bytes);

    let addition = contents.addition.map(|addition| Entry {
        name: b"FARM.BIN;1",
        sector: ADDITION_AT,
        bytes: addition.len(),
        is_folder: false,
    });
    let mut root = Vec::new();
    if addition.is_some() {
        root.push(Entry { name: b"CROFT", sector: FOLDER, bytes: SECTOR, is_folder: true });
    }
    root.push(Entry { name: b"ESP.IMG;1", sector: ESP_AT, bytes: esp.len(), is_folder: false });
    root.push(Entry { name: b"README.TXT;1", sector: README_AT, bytes: README.len(), is_folder: false });

    let path_table = |big: bool| path_table(addition.is_some(), big);
    put(VOLUME, &primary_volume(sectors, path_table(false).len()));
    put(BOOT_RECORD, &boot_record());
    put(TERMINATOR, b"\xffCD001\x01");
    put(PATH_TABLE_LITTLE, &path_table(false));
    put(PATH_TABLE_BIG, &path_table(true));
    put(ROOT, &folder(ROOT, &root));
    if let Some(entry) = addition {
        put(FOLDER, &folder(FOLDER, &[entry]));
    }
    put(CATALOGUE, &catalogue(esp.len() / SECTOR));
    put(README_AT, README.as_bytes());
    put(ADDITION_AT, contents.addition.unwrap_or_default());
    put(ESP_AT, &esp);
    let disk = Disk {
        guid: Guid::from_hash(&sha256(&[b"disk", &hash])),
        blocks: all,
        partition: Partition {
            kind: ESP_TYPE,
            guid: Guid::from_hash(&sha256(&[b"partition", &hash])),
            first,
            blocks,
            name: crate::usb::PARTITION_NAME,
        },
    };
    disk.write(&mut iso)?;
    Ok(iso)
}

/// ECMA-119, 8.4.
fn primary_volume(sectors: usize, path_table_bytes: usize) -> Vec<u8> {
    let mut volume = vec![0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| volume[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x01CD001\x01");
    put(8, &[b' '; 32]);
    put(40, &padded::<32>(b"CROFT"));
    put(80, &both32(sectors));
    put(120, &both16(1));
    put(124, &both16(1));
    put(128, &both16(SECTOR));
    put(132, &both32(path_table_bytes));
    put(140, &(PATH_TABLE_LITTLE as u32).to_le_bytes());
    put(148, &(PATH_TABLE_BIG as u32).to_be_bytes());
    put(156, &record(b"\0", ROOT, SECTOR, true));
    // Volume set, publisher, preparer, application: nobody.
    put(190, &[b' '; 128 * 4]);
    // Copyright, abstract and bibliographic file.
    put(702, &[b' '; 37 * 3]);
    put(813, DATE_LONG);
    put(830, DATE_LONG);
    put(847, NO_DATE);
    put(864, DATE_LONG);
    put(881, &[1]);
    volume
}

/// El Torito 1.0, figure 7.
fn boot_record() -> Vec<u8> {
    let mut record = vec![0; 75];
    record[..7].copy_from_slice(b"\x00CD001\x01");
    record[7..39].copy_from_slice(&{
        let mut name = [0; 32];
        name[..23].copy_from_slice(b"EL TORITO SPECIFICATION");
        name
    });
    record[71..75].copy_from_slice(&(CATALOGUE as u32).to_le_bytes());
    record
}

/// El Torito 1.0, figures 2 and 3: one entry, without emulation, for platform 0xEF, which is UEFI.
fn catalogue(esp_sectors: usize) -> Vec<u8> {
    let mut catalogue = vec![0; 64];
    catalogue[..2].copy_from_slice(&[1, 0xef]);
    catalogue[4..9].copy_from_slice(b"CROFT");
    catalogue[30..32].copy_from_slice(&[0x55, 0xaa]);
    let words = catalogue[..32].chunks(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
    let sum = words.fold(0u16, u16::wrapping_add);
    catalogue[28..30].copy_from_slice(&0u16.wrapping_sub(sum).to_le_bytes());
    catalogue[32] = 0x88;
    // Counted in 512 bytes, and too small for what is booted today: 0 means up to the end of the disc (UEFI 13.3.2.1).
    let blocks = u16::try_from(esp_sectors * (SECTOR / 512)).unwrap_or(0);
    catalogue[38..40].copy_from_slice(&blocks.to_le_bytes());
    catalogue[40..44].copy_from_slice(&(ESP_AT as u32).to_le_bytes());
    catalogue
}

/// ECMA-119, 9.4: the root, and the folder in it.
fn path_table(has_folder: bool, big: bool) -> Vec<u8> {
    let number = |value: usize| if big { (value as u32).to_be_bytes() } else { (value as u32).to_le_bytes() };
    let parent: [u8; 2] = if big { [0, 1] } else { [1, 0] };
    let mut table = vec![1, 0];
    table.extend(number(ROOT));
    table.extend(parent);
    table.extend([0, 0]);
    if has_folder {
        table.extend([5, 0]);
        table.extend(number(FOLDER));
        table.extend(parent);
        table.extend(b"CROFT\0");
    }
    table
}

/// ECMA-119, 6.8: itself, its parent (the root in both cases), what is in it.
fn folder(here: usize, entries: &[Entry]) -> Vec<u8> {
    let mut folder = record(b"\0", here, SECTOR, true);
    folder.extend(record(b"\x01", ROOT, SECTOR, true));
    for Entry { name, sector, bytes, is_folder } in entries {
        folder.extend(record(name, *sector, *bytes, *is_folder));
    }
    folder
}

/// ECMA-119, 9.1.
fn record(name: &[u8], sector: usize, bytes: usize, is_folder: bool) -> Vec<u8> {
    let len = (33 + name.len()).next_multiple_of(2);
    let mut record = vec![len as u8, 0];
    record.extend(both32(sector));
    record.extend(both32(bytes));
    record.extend(DATE_SHORT);
    record.extend([if is_folder { 2 } else { 0 }, 0, 0]);
    record.extend(both16(1));
    record.push(name.len() as u8);
    record.extend(name);
    record.resize(len, 0);
    record
}

/// Both byte orders, one after the other (ECMA-119, 7.3.3).
fn both32(value: usize) -> [u8; 8] {
    let (little, big) = ((value as u32).to_le_bytes(), (value as u32).to_be_bytes());
    std::array::from_fn(|at| if at < 4 { little[at] } else { big[at - 4] })
}

fn both16(value: usize) -> [u8; 4] {
    let (little, big) = ((value as u16).to_le_bytes(), (value as u16).to_be_bytes());
    [little[0], little[1], big[0], big[1]]
}

fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
    std::array::from_fn(|at| text.get(at).copied().unwrap_or(b' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn contents() -> Contents<'static> {
        Contents { boot_file: &[0x4d; 10_000], addition: Some(b"farm") }
    }

    #[test]
    fn equal_contents_make_equal_discs_and_the_boot_entry_leads_to_the_boot_file() {
        let iso = image(&contents()).unwrap();
        assert!(iso == image(&contents()).unwrap());
        let catalogue = &iso[CATALOGUE * SECTOR..][..64];
        let words = catalogue[..32].chunks(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
        assert_eq!(words.fold(0u16, u16::wrapping_add), 0, "the catalogue's checksum");
        let at = u32::from_le_bytes(catalogue[40..44].try_into().unwrap()) as usize * SECTOR;
        let disk = ::gpt::GptConfig::new()
            .writable(false)
            .open_from_device(std::io::Cursor::new(iso.clone()))
            .unwrap();
        let partition = &disk.partitions()[&1];
        assert_eq!(partition.first_lba as usize * 512, at, "one partition for both ways");
        let esp = &iso[at..(partition.last_lba as usize + 1) * 512];
        assert_eq!(esp::read_file(esp, esp::BOOT_PATH).unwrap(), contents().boot_file);
        assert_eq!(&iso[ADDITION_AT * SECTOR..][..4], b"farm");
    }

    #[test]
    fn xorriso_and_isoinfo_read_what_we_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("croft.iso");
        std::fs::write(&path, image(&contents()).unwrap()).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            for argument in arguments {
                match *argument {
                    "ISO" => command.arg(&path),
                    other => command.arg(other),
                };
            }
            let Ok(output) = command.output() else {
                eprintln!("{program} is not installed: not compared");
                return None;
            };
            let text = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(output.status.success(), "{program}: {text}");
            Some(text)
        };
        if let Some(text) = run("xorriso", &["-indev", "ISO", "-report_el_torito", "plain", "-find", "/"]) {
            assert!(text.contains("UEFI") && text.contains("'/CROFT/FARM.BIN'"), "{text}");
            assert!(!text.contains("FAILURE") && !text.contains("SORRY"), "{text}");
        }
        if let Some(text) = run("xorriso", &["-indev", "ISO", "-report_system_area", "plain"]) {
            assert!(text.contains("GPT") && text.contains("protective-msdos-label"), "{text}");
        }
        if let Some(text) = run("isoinfo", &["-R", "-l", "-i", "ISO"]) {
            assert!(text.contains("FARM.BIN;1") && text.contains("ESP.IMG;1"), "{text}");
        }
        if let Some(text) = run("isoinfo", &["-x", "/CROFT/FARM.BIN;1", "-i", "ISO"]) {
            assert!(text.starts_with("farm"), "{text}");
        }
    }
}
