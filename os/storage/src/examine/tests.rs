use super::*;
use std::path::PathBuf;

const SIZE: u64 = 2 << 30;

fn disk(name: &str) -> Disk {
    Disk {
        name: name.into(),
        size_bytes: SIZE,
        rotational: false,
        model: None,
        serial: None,
        transport: Transport::Virtio,
        removable: false,
        read_only: false,
        logical_block_bytes: 512,
        partitions: vec![],
        holders: vec![],
    }
}

/// A sparse file that stands for a disk.
struct Image {
    folder: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("vda")).unwrap().set_len(SIZE).unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("vda")
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        File::options().write(true).open(self.path()).unwrap().write_all_at(bytes, offset).unwrap();
    }

    fn verdict(&self) -> Verdict {
        examine(&[disk("vda")], self.folder.path()).remove(0).verdict
    }
}

/// A superblock as `Ext::parse` reads it.
fn superblock(uuid: [u8; 16], label: &str) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[0x38..0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
    bytes[0x3a] = 1;
    bytes[0x60] = 0x40;
    bytes[0x68..0x78].copy_from_slice(&uuid);
    bytes[0x78..0x78 + label.len()].copy_from_slice(label.as_bytes());
    bytes
}

const OURS: Marker = Marker { state: State::Ready, uuid: [7; 16], created_unix: 1_800_000_000 };

#[test]
fn zeros_and_erased_flash_are_empty() {
    let image = Image::new();
    assert_eq!(image.verdict(), Verdict::Empty { interrupted: false });
    image.write(0, &vec![0xff; WINDOW_BYTES]);
    image.write(SIZE - WINDOW_BYTES as u64, &vec![0xff; WINDOW_BYTES]);
    assert_eq!(image.verdict(), Verdict::Empty { interrupted: false });
}

#[test]
fn a_single_byte_at_either_end_is_somebodys_data() {
    for offset in [0, 77_777, WINDOW_BYTES as u64 - 1, SIZE - WINDOW_BYTES as u64, SIZE - 1] {
        let image = Image::new();
        image.write(offset, &[1]);
        assert_eq!(
            image.verdict(),
            Verdict::Foreign { what: "data of a kind that is not recognised".into() },
            "at {offset}"
        );
    }
}

#[test]
fn our_disk_is_ours() {
    let image = Image::new();
    image.write(0, &OURS.encode());
    image.write(1024, &superblock(OURS.uuid, LABEL));
    let verdict = image.verdict();
    assert_eq!(verdict, Verdict::Data { uuid: [7; 16], created_unix: 1_800_000_000, check: false });
}

#[test]
fn noted_errors_and_a_lost_superblock_ask_for_a_check() {
    let image = Image::new();
    image.write(0, &OURS.encode());
    let mut bytes = superblock(OURS.uuid, LABEL);
    bytes[0x3a] = 3;
    image.write(1024, &bytes);
    assert!(matches!(image.verdict(), Verdict::Data { check: true, .. }));
    image.write(1024, &[0; 1024]);
    assert!(matches!(image.verdict(), Verdict::Data { check: true, .. }));
}

#[test]
fn the_label_alone_does_not_make_a_disk_ours() {
    let image = Image::new();
    image.write(1024, &superblock([9; 16], LABEL));
    let verdict = image.verdict();
    assert_eq!(
        verdict.to_string(),
        "not touched: it holds an ext4 filesystem labelled \"croft-data\", but without this system's marker"
    );
}

#[test]
fn somebody_who_reformatted_our_disk_keeps_his_data() {
    let image = Image::new();
    image.write(0, &OURS.encode());
    image.write(1024, &superblock([9; 16], "photos"));
    assert!(matches!(image.verdict(), Verdict::Foreign { .. }), "another ext4");
    image.write(1024, &[0; 1024]);
    image.write(0x1_0040, b"_BHRfS_M");
    assert_eq!(
        image.verdict().to_string(),
        "not touched: it holds a Btrfs filesystem that replaced this system's filesystem"
    );
}

#[test]
fn an_interrupted_formatting_is_recognised_at_every_step() {
    let image = Image::new();
    let intent = Marker { state: State::Formatting, ..OURS };
    image.write(SIZE - RESERVED_BYTES, &intent.encode());
    assert_eq!(image.verdict(), Verdict::Empty { interrupted: true }, "before mke2fs");
    image.write(8192, &[3; 4096]);
    assert_eq!(image.verdict(), Verdict::Empty { interrupted: true }, "mke2fs has begun");
    image.write(1024, &superblock(OURS.uuid, LABEL));
    assert_eq!(image.verdict(), Verdict::Empty { interrupted: true }, "before the marker");
    image.write(0, &OURS.encode());
    assert!(matches!(image.verdict(), Verdict::Data { check: false, .. }), "before the intent is cleared");
}

#[test]
fn an_old_intent_does_not_endanger_the_next_owner() {
    let intent = Marker { state: State::Formatting, ..OURS };
    for (offset, bytes) in [
        (1024, superblock([9; 16], "photos")),
        (0, vec![0x33, 0xc0]),
        (512, b"EFI PART".to_vec()),
        (0x1_0040, b"_BHRfS_M".to_vec()),
        (SIZE - 512, b"EFI PART".to_vec()),
        (SIZE - 5, vec![1]),
    ] {
        let image = Image::new();
        image.write(SIZE - RESERVED_BYTES, &intent.encode());
        image.write(offset, &bytes);
        assert!(
            matches!(image.verdict(), Verdict::Foreign { .. }),
            "something at {offset}: {:?}",
            image.verdict()
        );
    }
}

#[test]
fn disks_that_are_not_used_say_why_and_what_to_do() {
    let image = Image::new();
    let usb = Disk { transport: Transport::Usb, ..disk("vda") };
    let locked = Disk { read_only: true, ..disk("vda") };
    let small = Disk { size_bytes: 512 << 20, ..disk("vda") };
    let member = Disk { holders: vec!["md127".into()], ..disk("vda") };
    let absent = disk("vdz");
    let partition =
        croft_hardware::Partition { name: "vda1".into(), number: 1, start_bytes: 0, size_bytes: 1 };
    let parted = Disk { partitions: vec![partition], ..disk("vda") };
    let texts: Vec<String> = examine(&[usb, locked, small, member, absent, parted], image.folder.path())
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(texts[0], "vda: not used: it can be taken out");
    assert_eq!(texts[1], "vda: not used: it is write-protected; remove its write protection");
    assert_eq!(texts[2], "vda: not used: 512 MiB are too small; use a disk of at least 1 GiB");
    assert!(
        texts[3].starts_with("vda: not touched: it holds a part of md127; to give it to the node"),
        "{}",
        texts[3]
    );
    assert!(texts[4].starts_with("vdz: not used: it can't be read: No such file"), "{}", texts[4]);
    assert!(texts[4].ends_with("check its cable and power, then replace it"), "{}", texts[4]);
    assert!(texts[5].starts_with("vda: not touched: it holds 1 partitions; "), "{}", texts[5]);
}

#[test]
fn a_disk_that_is_shorter_than_it_says_is_unreadable() {
    let image = Image::new();
    let liar = Disk { size_bytes: SIZE * 2, ..disk("vda") };
    let verdict = examine(&[liar], image.folder.path()).remove(0).verdict;
    assert!(matches!(verdict, Verdict::Unreadable { .. }), "{verdict:?}");
}
