use super::*;
use std::fs;
use std::path::Path;
use std::process::Command;

fn names(head: &[u8], tail: &[u8], size_bytes: u64) -> Vec<String> {
    recognise(&Ends { head, tail, size_bytes }).iter().map(ToString::to_string).collect()
}

/// A disk of zeros with some bytes at some place; negative places count from the end.
fn with(place: i64, bytes: &[u8]) -> Vec<String> {
    let size = 16 << 20;
    let mut disk = vec![0; size];
    let start = usize::try_from(if place < 0 { size as i64 + place } else { place }).unwrap();
    disk[start..start + bytes.len()].copy_from_slice(bytes);
    names(&disk[..WINDOW_BYTES], &disk[size - WINDOW_BYTES..], size as u64)
}

#[test]
fn every_magic_number_is_found_in_its_place_and_nowhere_else() {
    for (offset, magic, what) in MAGICS {
        assert!(with(*offset as i64, magic).contains(&(*what).to_owned()), "{what} at {offset}");
        assert!(!with(*offset as i64 + 1, magic).contains(&(*what).to_owned()), "{what} at {offset} + 1");
    }
    for (distance, magic, what) in TAIL_MAGICS {
        assert!(with(-(*distance as i64), magic).contains(&(*what).to_owned()), "{what} at the end");
    }
}

#[test]
fn signatures_that_move_are_found() {
    for sector in [0, 512, 1024, 1536] {
        let mut label = b"LABELONE".to_vec();
        label.extend([0; 16]);
        label.extend(b"LVM2 001");
        assert_eq!(with(sector, &label), ["an LVM physical volume"], "sector at {sector}");
    }
    let uberblock = [0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0];
    for place in [
        128 << 10,
        (128 << 10) + 7 * 1024,
        (256 << 10) + (255 << 10),
        -(128 << 10),
        -(512 << 10) + (130 << 10),
    ] {
        assert_eq!(with(place, &uberblock), ["a member of a ZFS pool"], "uberblock at {place}");
    }
    for place in [-(8 << 10), -(64 << 10)] {
        assert_eq!(
            with(place, &[0xfc, 0x4e, 0x2b, 0xa9]),
            ["a member of a Linux RAID set (md)"],
            "at {place}"
        );
    }
    assert_eq!(
        with(-(64 << 10), &[0xa9, 0x2b, 0x4e, 0xfc]),
        ["a member of a Linux RAID set (md)"],
        "big endian"
    );
}

#[test]
fn a_boot_sector_without_partitions_is_no_partition_table() {
    assert_eq!(with(510, &[0x55, 0xaa]), [""; 0]);
    let mut sector = [0_u8; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector[446 + 4] = 0x83;
    sector[446 + 12] = 9;
    assert_eq!(with(0, &sector), ["an MBR partition table"]);
    sector[446] = 0x33;
    assert_eq!(with(0, &sector), [""; 0], "code in the place of the table");
}

#[test]
fn erased_is_blank_and_anything_else_is_not() {
    assert!(blank(&[0; 4096]) && blank(&[0xff; 4096]) && blank(&[]));
    let mut bytes = [0; 4096];
    bytes[4095] = 0xff;
    assert!(!blank(&bytes));
    assert!(!blank(&[0x55; 4096]), "one repeated byte is somebody's pattern");
}

#[test]
fn short_and_odd_disks_never_panic() {
    for length in [0_usize, 1, 511, 512, 513, 1024, 1100, 4095, 4096, 65_600, 262_144, WINDOW_BYTES - 1] {
        for fill in [0x00, 0xff, 0x55] {
            let bytes = vec![fill; length];
            let _ = names(&bytes, &bytes, length as u64);
            let _ = names(&bytes, &bytes, u64::MAX);
            let _ = names(&bytes, &bytes, 0);
        }
    }
}

/// Runs a tool on an image of 320 MiB and says what is recognised. `None` when the tool is not installed.
fn made_by(program: &str, arguments: &[&str], input: &str) -> Option<Vec<String>> {
    let path = ["/usr/sbin", "/sbin", "/usr/bin"]
        .into_iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists());
    let Some(path) = path else {
        println!("skipped: {program} is not installed");
        return None;
    };
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    let size = 320_u64 << 20;
    fs::File::create(&image).unwrap().set_len(size).unwrap();
    let stdin = directory.path().join("stdin");
    fs::write(&stdin, input).unwrap();
    let output = Command::new(path)
        .args(arguments)
        .arg(&image)
        .stdin(fs::File::open(stdin).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    let file = fs::File::open(&image).unwrap();
    let read = |offset: u64| {
        let mut window = vec![0; WINDOW_BYTES];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut window, offset).unwrap();
        window
    };
    Some(names(&read(0), &read(size - WINDOW_BYTES as u64), size))
}

#[test]
fn what_real_tools_write_is_recognised() {
    let cases: &[(&str, &[&str], &str, &str)] = &[
        ("mke2fs", &["-q", "-F", "-t", "ext4", "-L", "backup"], "", "an ext4 filesystem labelled \"backup\""),
        ("mke2fs", &["-q", "-F", "-t", "ext3"], "", "an ext3 filesystem"),
        ("mke2fs", &["-q", "-F", "-t", "ext2"], "", "an ext2 filesystem"),
        ("mkswap", &[], "", "swap space"),
        ("mkfs.vfat", &[], "", "a FAT filesystem"),
        ("mkfs.vfat", &["-F", "32"], "", "a FAT filesystem"),
        ("mkfs.xfs", &["-q"], "", "an XFS filesystem"),
        ("mkfs.btrfs", &["-q"], "", "a Btrfs filesystem"),
        ("mkntfs", &["-q", "-F", "-s", "512", "-p", "0", "-H", "16", "-S", "63"], "", "an NTFS filesystem"),
        ("mkfs.f2fs", &["-q"], "", "an F2FS filesystem"),
        ("sfdisk", &["-q"], "label: gpt\n,100M\n", "a GPT partition table"),
        ("sfdisk", &["-q"], "label: dos\n,100M\n", "an MBR partition table"),
        (
            "cryptsetup",
            &[
                "luksFormat",
                "-q",
                "--type",
                "luks2",
                "--pbkdf",
                "pbkdf2",
                "--pbkdf-force-iterations",
                "1000",
                "--key-file",
                "-",
            ],
            "secret",
            "a LUKS encrypted volume",
        ),
        (
            "cryptsetup",
            &["luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000", "--key-file", "-"],
            "secret",
            "a LUKS encrypted volume",
        ),
    ];
    for (program, arguments, input, want) in cases {
        if let Some(found) = made_by(program, arguments, input) {
            assert!(found.contains(&(*want).to_owned()), "{program} {arguments:?}: {found:?}");
        }
    }
}
