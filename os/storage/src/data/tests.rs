//! The choice of the disk is tested everywhere. What mounts needs root and loop devices, and runs in a mount
//! namespace of its own; elsewhere it says that it is skipped.

use super::*;
use crate::tools::for_test;
use croft_hardware::Transport;
use rustix::thread::UnshareFlags;
use std::process::Command;

const SIZE: u64 = (2 << 30) + 4096 * 3;

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

fn examined(name: &str, verdict: Verdict) -> Examined {
    Examined { disk: disk(name), verdict }
}

#[test]
fn of_several_data_disks_the_oldest_is_used() {
    let data = |created_unix| Verdict::Data { uuid: [1; 16], created_unix, check: false };
    let disks = [examined("vda", data(300)), examined("vdb", data(100)), examined("vdc", Verdict::Removable)];
    assert_eq!(ours(&disks), [1, 0]);
}

#[test]
fn of_several_empty_disks_flash_comes_first_then_size() {
    let empty_disk = |name, rotational, size_bytes| Examined {
        disk: Disk { rotational, size_bytes, ..disk(name) },
        verdict: Verdict::Empty { interrupted: false },
    };
    let disks = [
        empty_disk("sda", true, 900),
        empty_disk("sdb", false, 100),
        empty_disk("sdc", false, 200),
        examined("sdd", Verdict::Foreign { what: "photos".into() }),
    ];
    assert_eq!(empty(&disks), [2, 1, 0]);
}

/// Disks as files, bound to loop devices, below a `dev` of their own.
struct Bench {
    folder: tempfile::TempDir,
    options: Options,
    loops: Vec<PathBuf>,
}

impl Bench {
    /// `None`, with a word, where this can't run.
    fn new(names: &[&str]) -> Option<Self> {
        let tools = for_test()?;
        // A namespace belongs to a thread, and each test runs on its own.
        if rustix::process::geteuid().as_raw() != 0 || unshare_mounts().is_err() {
            println!("skipped: needs root for a mount namespace");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let dev = folder.path().join("dev");
        fs::create_dir(&dev).unwrap();
        let options = Options { tools, dev, target: folder.path().join("data"), memory_max_bytes: 64 << 20 };
        let mut bench = Self { folder, options, loops: vec![] };
        for name in names {
            bench.add(name)?;
        }
        Some(bench)
    }

    fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.img"))
    }

    fn add(&mut self, name: &str) -> Option<()> {
        let image = self.image(name);
        File::create(&image).unwrap().set_len(SIZE).unwrap();
        let Ok(output) = Command::new("losetup").arg("--show").arg("-f").arg(&image).output() else {
            println!("skipped: losetup is not installed");
            return None;
        };
        if !output.status.success() {
            println!("skipped: no loop device: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        std::os::unix::fs::symlink(&device, self.options.dev.join(name)).unwrap();
        self.loops.push(device);
        Some(())
    }

    fn attach(&self, names: &[&str]) -> Attached {
        let disks: Vec<Disk> = names.iter().map(|name| disk(name)).collect();
        attach(&disks, &self.options).unwrap()
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.options.dev.join(name)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
        file.sync_all().unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.options.target, UnmountFlags::DETACH);
        for device in &self.loops {
            let _ = Command::new("losetup").arg("-d").arg(device).status();
        }
    }
}

fn unshare_mounts() -> rustix::io::Result<()> {
    #[allow(unsafe_code, reason = "rustix marks every unshare as unsafe because of CLONE_FILES")]
    // SAFETY: only the mount namespace and the working folder are unshared; no descriptor table is touched.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS)?;
    }
    use rustix::mount::MountPropagationFlags;
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
}

#[test]
fn an_empty_disk_becomes_the_data_disk_and_is_found_again() {
    let Some(bench) = Bench::new(&["vda"]) else { return };
    let first = bench.attach(&["vda"]);
    let Medium::Disk { new: true, uuid, .. } = first.data.medium else { panic!("{first:?}") };
    assert!(!first.data.ephemeral());
    for (name, mode) in FOLDERS {
        let meta = fs::metadata(first.data.folder(name)).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777, mode, "{name}");
    }
    fs::write(first.data.folder("identity/key"), "secret").unwrap();
    detach(&first.data).unwrap();

    let second = bench.attach(&["vda"]);
    let Medium::Disk { new: false, uuid: again, repaired: false, .. } = second.data.medium else {
        panic!("{second:?}")
    };
    assert_eq!(again, uuid);
    assert_eq!(fs::read_to_string(second.data.folder("identity/key")).unwrap(), "secret");
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let target = bench.options.target.to_str().unwrap();
    let line = mounts.lines().find(|line| line.contains(target)).unwrap();
    for option in ["nosuid", "nodev", "noexec", "noatime"] {
        assert!(line.contains(option), "{option} is missing in {line}");
    }
}

#[test]
fn a_process_that_starts_again_takes_over_what_is_mounted() {
    let Some(bench) = Bench::new(&["vda"]) else { return };
    let first = bench.attach(&["vda"]);
    fs::write(first.data.folder("identity/key"), "secret").unwrap();
    let second = bench.attach(&["vda"]);
    assert!(
        matches!(&second.data.medium, Medium::Disk { name, new: false, .. } if name == "vda"),
        "{second:?}"
    );
    assert_eq!(fs::read_to_string(second.data.folder("identity/key")).unwrap(), "secret");
    detach(&second.data).unwrap();
    assert!(!second.data.folder("identity").exists(), "it was mounted twice");

    let memory = bench.attach(&[]);
    fs::write(memory.data.folder("identity/key"), "short-lived").unwrap();
    let again = bench.attach(&["vda"]);
    assert_eq!(again.data.medium, Medium::Memory { limit_bytes: 64 << 20, why: WhyMemory::OursBroken });
    assert_eq!(fs::read_to_string(again.data.folder("identity/key")).unwrap(), "short-lived");
}

#[test]
fn without_a_usable_disk_data_is_in_memory_bounded_and_flagged() {
    let Some(bench) = Bench::new(&["vda"]) else { return };
    bench.write("vda", 0, b"somebody's");
    let attached = bench.attach(&["vda"]);
    assert_eq!(attached.data.medium, Medium::Memory { limit_bytes: 64 << 20, why: WhyMemory::NoDisk });
    assert!(attached.data.ephemeral());
    let error = fs::write(attached.data.folder("cache/big"), vec![1; 80 << 20]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let mut head = [0; 10];
    File::open(bench.image("vda")).unwrap().read_exact_at(&mut head, 0).unwrap();
    assert_eq!(&head, b"somebody's", "a foreign disk was written");
}

#[test]
fn a_disk_that_lost_its_superblock_is_repaired() {
    let Some(bench) = Bench::new(&["vda"]) else { return };
    let attached = bench.attach(&["vda"]);
    fs::write(attached.data.folder("identity/key"), "secret").unwrap();
    detach(&attached.data).unwrap();
    bench.write("vda", 1024, &[0; 1024]);
    let attached = bench.attach(&["vda"]);
    assert!(matches!(attached.data.medium, Medium::Disk { repaired: true, new: false, .. }), "{attached:?}");
    assert_eq!(fs::read_to_string(attached.data.folder("identity/key")).unwrap(), "secret");
}

#[test]
fn a_broken_data_disk_is_never_reformatted_and_no_other_takes_its_place() {
    let Some(bench) = Bench::new(&["vda", "vdb"]) else { return };
    let attached = bench.attach(&["vda"]);
    detach(&attached.data).unwrap();
    let noise: Vec<u8> =
        (0..64_u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
    bench.write("vda", 2048, &noise);
    let attached = bench.attach(&["vda", "vdb"]);
    let Medium::Memory { why: WhyMemory::OursBroken, .. } = attached.data.medium else {
        panic!("{attached:?}")
    };
    let text = attached.disks[0].to_string();
    assert!(text.starts_with("vda: data disk of this node, but broken: "), "{text}");
    assert!(text.contains("to save its data start another system and run `e2fsck -f /dev/vda`"), "{text}");
    assert_eq!(
        attached.disks[1].verdict,
        Verdict::Empty { interrupted: false },
        "the other disk was touched"
    );
    let mut kept = vec![0; 4096];
    File::open(bench.image("vda")).unwrap().read_exact_at(&mut kept, 32 << 20).unwrap();
    assert_eq!(kept, noise[(32 << 20) - 2048..][..4096], "the broken disk was written");
}

#[test]
fn a_formatting_that_a_power_cut_ended_is_done_again() {
    let Some(bench) = Bench::new(&["vda"]) else { return };
    let intent = Marker { state: State::Formatting, uuid: [5; 16], created_unix: 1 };
    bench.write("vda", SIZE - RESERVED_BYTES, &intent.encode());
    bench.write("vda", 8 << 12, &[3; 4096]);
    let attached = bench.attach(&["vda"]);
    assert!(matches!(attached.data.medium, Medium::Disk { new: true, .. }), "{attached:?}");
    detach(&attached.data).unwrap();
    let verdict = examine::examine(&[disk("vda")], &bench.options.dev).remove(0).verdict;
    assert!(matches!(verdict, Verdict::Data { check: false, .. }), "{verdict:?}");
}

#[test]
fn a_disk_that_is_in_use_is_not_formatted() {
    let Some(bench) = Bench::new(&["vda"]) else { return };
    let attached = bench.attach(&["vda"]);
    let error = open_alone(&bench.options.dev.join("vda")).unwrap_err();
    assert!(error.to_string().ends_with("can't be opened for formatting"), "{error}");
    drop(attached);
}

#[test]
fn what_is_not_empty_is_refused_at_the_last_moment() {
    let Some(tools) = for_test() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vda");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(b"late", 4000).unwrap();
    let error = make(&disk("vda"), &path, [1; 16], &tools, false).unwrap_err().to_string();
    assert!(error.contains("is not empty any more: not touched: it holds data"), "{error}");
}
