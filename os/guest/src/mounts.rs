//! Kernel filesystems, the verified root with its writable layer, and the switch into it.
//!
//! `/run` and `/tmp` are not mounts of their own: the writable layer is memory already, and what the image
//! put there stays visible and inside the one bound.

use std::ffi::CString;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use croft_guest::wire::{OverlaySize, Step};
use rustix::mount::{MountFlags, mount, mount_move};

use crate::failure::{During, Failure};
use crate::power::say;

/// The kernel opens dm-verity before init, except on a very slow machine.
const ROOT_DEVICE_LIMIT: Duration = Duration::from_secs(20);
const ROOT_DEVICE: &str = "/dev/dm-0";
/// Memory that the writable layer must leave to everything else.
const MIN_OVERLAY_BYTES: u64 = 1 << 20;

/// What a workload writes and does not sync goes to its volumes within seconds: a power cut of the node must not cost
/// half a minute.
const WRITE_BACK: [(&str, &str); 2] =
    [("/proc/sys/vm/dirty_expire_centisecs", "200"), ("/proc/sys/vm/dirty_writeback_centisecs", "100")];

const LOWER: &str = "/croft/lower";
const UPPER: &str = "/croft/upper";
const ROOT: &str = "/croft/root";

/// Mounts what every step needs, in the initramfs.
pub(crate) fn early() -> Result<(), Failure> {
    let nodev = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    let table: [(&str, &str, &str, MountFlags, &str); 6] = [
        ("proc", "/proc", "proc", nodev, ""),
        ("sysfs", "/sys", "sysfs", nodev, ""),
        ("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755"),
        (
            "devpts",
            "/dev/pts",
            "devpts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            "mode=0620,gid=5,ptmxmode=0666",
        ),
        ("shm", "/dev/shm", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777,size=50%"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2", nodev, ""),
    ];
    for (source, target, kind, flags, data) in table {
        if !Path::new(target).exists() {
            DirBuilder::new()
                .recursive(true)
                .create(target)
                .during(Step::Mounts, || format!("creating {target}"))?;
        }
        let data = CString::new(data).unwrap_or_default();
        match mount(source, target, kind, flags, Some(data.as_c_str())) {
            // The kernel mounts devtmpfs by itself when it is configured so.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            // Limits and out-of-memory reports need it, workloads do not.
            Err(error) if kind == "cgroup2" => say(&format!("no cgroups: {error}")),
            Err(error) => {
                return Err(Failure::new(Step::Mounts, format!("mounting {kind} on {target}: {error}")));
            }
        }
    }
    for (setting, value) in WRITE_BACK {
        if let Err(error) = fs::write(setting, value) {
            say(&format!("setting {setting}: {error}"));
        }
    }
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        let path = Path::new("/dev").join(link);
        if link == "ptmx" {
            let _ = fs::remove_file(&path);
        }
        match symlink(target, &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                say(&format!("linking {}: {error}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Mounts the verified image under a writable layer and makes the result the root of every process.
pub(crate) fn enter_root(overlay: OverlaySize) -> Result<(), Failure> {
    let started = Instant::now();
    while !Path::new(ROOT_DEVICE).exists() {
        if started.elapsed() > ROOT_DEVICE_LIMIT {
            return Err(Failure::new(
                Step::RootImage,
                format!(
                    "{ROOT_DEVICE} did not appear within {} s: the kernel could not open the verified image; \
                     check that /dev/vda is the image and dm-mod.create has its root hash",
                    ROOT_DEVICE_LIMIT.as_secs()
                ),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for dir in [LOWER, UPPER, ROOT] {
        DirBuilder::new()
            .recursive(true)
            .create(dir)
            .during(Step::RootImage, || format!("creating {dir}"))?;
    }
    mount(ROOT_DEVICE, LOWER, "erofs", MountFlags::RDONLY | MountFlags::NODEV, None).map_err(|error| {
        let why = match error {
            rustix::io::Errno::IO => "the image does not match its root hash, or the disk can't be read",
            rustix::io::Errno::INVAL => "the image is not an EROFS file system this kernel knows",
            _ => "the image can't be mounted",
        };
        Failure::new(Step::RootImage, format!("mounting {ROOT_DEVICE}: {error}: {why}"))
    })?;
    let bytes = overlay_bytes(overlay, memory_bytes().unwrap_or(0));
    let size = CString::new(format!("size={bytes},mode=0755")).unwrap_or_default();
    mount("overlay-upper", UPPER, "tmpfs", MountFlags::NODEV, Some(size.as_c_str()))
        .during(Step::Overlay, || format!("mounting {bytes} bytes of memory for the writable layer"))?;
    for dir in ["upper", "work"] {
        let path = Path::new(UPPER).join(dir);
        DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .during(Step::Overlay, || format!("creating {}", path.display()))?;
    }
    let options = CString::new(format!("lowerdir={LOWER},upperdir={UPPER}/upper,workdir={UPPER}/work"))
        .unwrap_or_default();
    mount("overlay", ROOT, "overlay", MountFlags::NODEV, Some(options.as_c_str()))
        .during(Step::Overlay, || "mounting the writable layer over the image".to_owned())?;
    switch_root()
}

fn switch_root() -> Result<(), Failure> {
    for dir in ["proc", "sys", "dev"] {
        let target = Path::new(ROOT).join(dir);
        ensure_directory(&target, 0o755)
            .during(Step::RootImage, || format!("creating {}", target.display()))?;
        mount_move(Path::new("/").join(dir), &target)
            .during(Step::RootImage, || format!("moving /{dir} into the root"))?;
    }
    rustix::process::chdir(ROOT).during(Step::RootImage, || format!("entering {ROOT}"))?;
    mount_move(".", "/").during(Step::RootImage, || "moving the root".to_owned())?;
    rustix::process::chroot(".").during(Step::RootImage, || "changing the root".to_owned())?;
    rustix::process::chdir("/").during(Step::RootImage, || "entering the root".to_owned())?;
    for (dir, mode) in [("/tmp", 0o1777), ("/run", 0o755), ("/etc", 0o755)] {
        ensure_directory(Path::new(dir), mode).during(Step::Overlay, || format!("creating {dir}"))?;
    }
    Ok(())
}

/// Creates a directory unless one is there; an existing one keeps its mode.
pub(crate) fn ensure_directory(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).create(path)?;
    // The umask must not take bits away, and `DirBuilder` can't set the sticky bit.
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Bytes of memory the guest has.
pub(crate) fn memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn overlay_bytes(overlay: OverlaySize, memory: u64) -> u64 {
    // More than 90 % of memory in files leaves nothing to run with, whatever was asked for.
    let ceiling = memory / 10 * 9;
    let bytes = match overlay {
        OverlaySize::Bytes(bytes) => bytes,
        OverlaySize::PercentOfMemory(share) => memory / 100 * u64::from(share),
    };
    bytes.min(ceiling).max(MIN_OVERLAY_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writable_layer_never_takes_all_memory() {
        assert_eq!(overlay_bytes(OverlaySize::PercentOfMemory(40), 1000 << 20), 400 << 20);
        assert_eq!(overlay_bytes(OverlaySize::Bytes(1 << 40), 1000 << 20), 900 << 20);
        assert_eq!(overlay_bytes(OverlaySize::Bytes(64 << 20), 1000 << 20), 64 << 20);
        assert_eq!(overlay_bytes(OverlaySize::PercentOfMemory(40), 0), MIN_OVERLAY_BYTES);
    }

    #[test]
    fn an_existing_directory_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        ensure_directory(&path, 0o1777).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o1777);
        ensure_directory(&path, 0o700).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o1777);
    }
}
