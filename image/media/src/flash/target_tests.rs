use super::*;

/// A made-up machine: `/dev`, `/sys` and `/proc` in a folder.
struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    /// A system disk `sda` with one mounted partition, and an idle stick `sdb` of 16 GB with one partition.
    fn new() -> Self {
        let fake = Self { dir: tempfile::tempdir().unwrap() };
        fake.disk("pci0000:00/ata1/block/sda", "8:0", 1_000_000);
        fake.partition("pci0000:00/ata1/block/sda", "sda1", "8:1");
        fake.disk("pci0000:00/usb2/2-1/block/sdb", "8:16", 31_250_000);
        fake.partition("pci0000:00/usb2/2-1/block/sdb", "sdb1", "8:17");
        let sdb = "sys/devices/pci0000:00/usb2/2-1/block/sdb";
        fake.put(&format!("{sdb}/device/vendor"), "SanDisk \n");
        fake.put(&format!("{sdb}/device/model"), "Ultra\n");
        fake.put(&format!("{sdb}/removable"), "1\n");
        fake.mounts("22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n");
        fake.put("proc/swaps", "Filename Type Size Used Priority\n");
        fake
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn device(&self, folder: &str, name: &str, number: &str, sectors: u64) {
        self.put(&format!("sys/devices/{folder}/dev"), &format!("{number}\n"));
        self.put(&format!("sys/devices/{folder}/size"), &format!("{sectors}\n"));
        self.put(&format!("sys/devices/{folder}/ro"), "0\n");
        self.put(&format!("dev/{name}"), "");
        let classes = self.dir.path().join("sys/class/block");
        fs::create_dir_all(&classes).unwrap();
        std::os::unix::fs::symlink(format!("../../devices/{folder}"), classes.join(name)).unwrap();
    }

    fn disk(&self, folder: &str, number: &str, sectors: u64) {
        self.device(folder, folder.rsplit('/').next().unwrap(), number, sectors);
        self.put(&format!("sys/devices/{folder}/removable"), "0\n");
        self.put(&format!("sys/devices/{folder}/queue/logical_block_size"), "512\n");
    }

    fn partition(&self, disk: &str, name: &str, number: &str) {
        self.device(&format!("{disk}/{name}"), name, number, 2048);
        self.put(&format!("sys/devices/{disk}/{name}/partition"), "1\n");
    }

    /// `holder` is built on `device`.
    fn hold(&self, device: &str, holder: &str) {
        self.put(&format!("sys/class/block/{device}/holders/{holder}"), "");
    }

    fn mounts(&self, lines: &str) {
        self.put("proc/self/mountinfo", lines);
    }

    fn describe(&self, name: &str) -> Result<Target, DescribeError> {
        Target::describe(&self.roots(), &self.dir.path().join("dev").join(name))
    }

    fn roots(&self) -> Roots {
        let root = self.dir.path();
        Roots { dev: root.join("dev"), sys: root.join("sys"), proc: root.join("proc") }
    }

    fn refusal(&self, name: &str) -> String {
        self.describe(name).unwrap().check(1_000_000).unwrap_err().to_string()
    }
}

const STICK: &str = "sys/devices/pci0000:00/usb2/2-1/block/sdb";

#[test]
fn a_stick_is_described_so_that_a_person_knows_it() {
    let fake = Fake::new();
    let stick = fake.describe("sdb").unwrap();
    assert!(stick.to_string().ends_with("/dev/sdb: SanDisk Ultra, 16.0 GB, USB, removable"), "{stick}");
    assert_eq!(stick.partitions, [Partition { name: "sdb1".to_owned(), size_bytes: 1_048_576 }]);
    assert_eq!(stick.cautions(), ["what is on it will be lost: sdb1 (1.0 MB)"]);
    assert_eq!(stick.number, (8, 16));
    stick.check(1_000_000).unwrap();
    let disk = fake.describe("sda").unwrap();
    assert_eq!(disk.cautions()[0], "this is no removable disk: is it really the one?");
    assert!(disk.to_string().ends_with("/dev/sda: unknown model, 512.0 MB"), "{disk}");
}

#[test]
fn the_systems_disk_is_refused_through_every_layer() {
    let fake = Fake::new();
    assert_eq!(fake.refusal("sda"), "sda carries the running system (/): name another disk");
    assert_eq!(fake.refusal("sda1"), "sda1 carries the running system (/): name another disk");
    // Encryption on a partition, LVM on that, and root on the volume.
    fake.device("virtual/block/dm-0", "dm-0", "254:0", 100);
    fake.device("virtual/block/dm-1", "dm-1", "254:1", 100);
    fake.hold("sdb1", "dm-0");
    fake.hold("dm-0", "dm-1");
    fake.mounts("22 1 254:1 / / rw - ext4 /dev/mapper/root rw\n");
    assert_eq!(fake.refusal("sdb"), "sdb carries the running system (/): name another disk");
    // btrfs shows a number that no device has, but names its device.
    fake.mounts("22 1 0:29 /@ /home rw - btrfs /dev/sdb1 rw\n");
    assert_eq!(fake.refusal("sdb"), "sdb carries the running system (/home): name another disk");
}

#[test]
fn what_is_in_use_is_refused_with_what_to_do() {
    let fake = Fake::new();
    fake.mounts("30 1 8:17 / /media/my\\040stick rw - vfat /dev/sdb1 rw\n");
    assert_eq!(fake.refusal("sdb"), "sdb1 of disk sdb is mounted at /media/my stick: unmount it first");
    fake.mounts("");
    fake.put("proc/swaps", "Filename Type Size Used Priority\n/dev/sdb1 partition 100 0 -2\n");
    assert_eq!(fake.refusal("sdb"), "sdb1 of disk sdb is in use as swap space: 'swapoff /dev/sdb1' first");
    fake.put("proc/swaps", "Filename\n");
    fake.device("virtual/block/md0", "md0", "9:0", 100);
    fake.hold("sdb1", "md0");
    assert_eq!(fake.refusal("sdb"), "sdb is used by md0 (RAID, encryption or LVM): stop that first");
}

#[test]
fn what_can_not_hold_the_image_is_refused_with_the_numbers() {
    let fake = Fake::new();
    assert_eq!(fake.refusal("sdb1"), "sdb1 is a partition: name the whole disk, /dev/sdb");
    let stick = || fake.describe("sdb").unwrap();
    assert_eq!(
        stick().check(16_000_000_001).unwrap_err().to_string(),
        "sdb has 16000000000 bytes, 16000000001 are needed: take a larger one"
    );
    fake.put(&format!("{STICK}/queue/logical_block_size"), "4096\n");
    assert!(
        fake.refusal("sdb").starts_with("sdb has blocks of 4096 bytes, and the image is for blocks of 512")
    );
    fake.put(&format!("{STICK}/ro"), "1\n");
    assert_eq!(fake.refusal("sdb"), "sdb is read-only: move the switch on its side, or take another");
    fake.put(&format!("{STICK}/size"), "0\n");
    assert_eq!(fake.refusal("sdb"), "sdb has no medium in it");
}

#[test]
fn what_is_no_disk_or_can_not_be_understood_is_not_described() {
    let fake = Fake::new();
    let message = |name: &str| fake.describe(name).unwrap_err().to_string();
    assert!(message("sdz").ends_with("/dev/sdz: is the stick plugged in?"));
    fake.put("dev/file", "");
    assert!(
        message("file").ends_with("is no block device: name a disk such as /dev/sdb, 'lsblk' lists them")
    );
    fake.put(&format!("{STICK}/size"), "many\n");
    assert!(message("sdb").ends_with("/sdb/size holds 'many' where a number is expected"));
    fake.put(&format!("{STICK}/size"), "100\n");
    fs::remove_file(fake.dir.path().join("proc/self/mountinfo")).unwrap();
    assert!(message("sdb").contains("self/mountinfo"), "without the mounts nothing is known");
}

#[test]
fn devices_that_hold_each_other_in_a_circle_end() {
    let fake = Fake::new();
    fake.device("virtual/block/dm-0", "dm-0", "254:0", 100);
    fake.hold("sdb1", "dm-0");
    fake.hold("dm-0", "dm-0");
    assert_eq!(fake.refusal("sdb"), "sdb is used by dm-0 (RAID, encryption or LVM): stop that first");
    for depth in 0..12 {
        fake.device(&format!("virtual/block/md{depth}"), &format!("md{depth}"), &format!("9:{depth}"), 100);
        fake.hold(
            &if depth == 0 { "sdb".to_owned() } else { format!("md{}", depth - 1) },
            &format!("md{depth}"),
        );
    }
    let error = fake.describe("sdb").unwrap_err().to_string();
    assert!(error.ends_with("more than 8 on top of each other"), "{error}");
}

#[test]
fn this_machines_own_system_disk_is_never_writable() {
    let roots = Roots::default();
    for name in names(&roots.sys.join("class/block")).unwrap() {
        let Ok(target) = Target::describe(&roots, &Path::new("/dev").join(&name)) else { continue };
        let carries_root = target.mounts.iter().any(|mount| mount.place == "/");
        assert!(!carries_root || matches!(target.check(0), Err(Refusal::System { .. })), "{name}");
    }
}

#[test]
fn the_list_of_disks_has_disks_only() {
    let fake = Fake::new();
    fake.device("virtual/block/loop0", "loop0", "7:0", 100);
    fake.disk("pci0000:00/usb2/2-2/block/sdc", "8:32", 0);
    let names = |all: Vec<Target>| all.into_iter().map(|target| target.name).collect::<Vec<_>>();
    assert_eq!(names(Target::all(&fake.roots()).unwrap()), ["sda", "sdb"]);
}

#[test]
fn a_device_in_a_folder_of_dev_and_one_behind_a_link_have_the_kernels_names() {
    let fake = Fake::new();
    fake.disk("pci0000:00/block/cciss!c0d0", "104:0", 1000);
    fake.put("dev/cciss/c0d0", "");
    assert_eq!(fake.describe("cciss/c0d0").unwrap().name, "cciss!c0d0");
    std::os::unix::fs::symlink("sdb", fake.dir.path().join("dev/stick")).unwrap();
    assert_eq!(fake.describe("stick").unwrap().name, "sdb");
    fake.put("dev/mapper/.keep", "");
    std::os::unix::fs::symlink("../sdb1", fake.dir.path().join("dev/mapper/root")).unwrap();
    fake.mounts("22 1 0:40 / /usr rw - overlay /dev/mapper/root rw\n");
    assert_eq!(fake.refusal("sdb"), "sdb carries the running system (/usr): name another disk");
}
