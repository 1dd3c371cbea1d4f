//! Volumes: ext4 on exclusive virtio disks, virtio-fs for shared directories.
//!
//! Must never format or repair: that is the host's duty, and a guest that does it destroys data.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use croft_guest::users::User;
use croft_guest::wire::{Step, Volume, VolumeSource};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::failure::{During, Failure};
use crate::mounts::ensure_directory;
use crate::power::say;

/// Devices are probed before init runs, except on a very slow machine.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);

/// Mounts all volumes; returns where, in order.
pub(crate) fn mount_all(volumes: &[Volume]) -> Result<Vec<PathBuf>, Failure> {
    // Outer paths first, whatever order they were named in: /data before /data/logs.
    let mut ordered: Vec<&Volume> = volumes.iter().collect();
    ordered.sort_by_key(|volume| Path::new(&volume.mount_path).components().count());
    let mut mounted = Vec::new();
    for volume in ordered {
        let path = PathBuf::from(&volume.mount_path);
        ensure_directory(&path, 0o755).during(Step::Volumes, || format!("creating {}", path.display()))?;
        let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
        if volume.readonly {
            flags |= MountFlags::RDONLY;
        }
        match &volume.source {
            VolumeSource::Disk { serial, position } => {
                let device = wait_for_disk(serial, *position)?;
                mount(&device, &path, "ext4", flags, None).map_err(|error| {
                    Failure::new(
                        Step::Volumes,
                        format!(
                            "mounting volume {serial} ({}) on {}: {error}: the volume must be an ext4 file system",
                            device.display(),
                            path.display()
                        ),
                    )
                })?;
            }
            VolumeSource::Share { tag } => {
                mount(tag.as_str(), &path, "virtiofs", flags, None).map_err(|error| {
                    Failure::new(
                        Step::Volumes,
                        format!(
                            "mounting shared volume {tag} on {}: {error}: is its virtiofsd running?",
                            path.display()
                        ),
                    )
                })?;
            }
        }
        mounted.push(path);
    }
    Ok(mounted)
}

/// Unmounts in reverse order, so that file systems are clean for their next mount.
pub(crate) fn unmount_all(mounted: &[PathBuf]) {
    for path in mounted.iter().rev() {
        if let Err(error) = unmount(path, UnmountFlags::empty()) {
            say(&format!("unmounting {}: {error}, detaching it", path.display()));
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}

/// Makes the workload's user the owner of volumes that nobody has used yet: a new volume belongs to root, and
/// a workload that is not root could never write to it.
pub(crate) fn give_new(mounted: &[PathBuf], user: &User) -> Result<(), Failure> {
    if user.uid == 0 {
        return Ok(());
    }
    for path in mounted {
        let give = |new| if new { chown(path, Some(user.uid), Some(user.gid)) } else { Ok(()) };
        let given = is_new(path).and_then(give);
        match given {
            // A read-only volume is as it is.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
            given => given.during(Step::Volumes, || {
                format!("giving the new volume {} to user {}", path.display(), user.uid)
            })?,
        }
    }
    Ok(())
}

/// Root's, and empty but for what mke2fs makes.
fn is_new(path: &Path) -> io::Result<bool> {
    let metadata = fs::metadata(path)?;
    if metadata.uid() != 0 || metadata.gid() != 0 {
        return Ok(false);
    }
    for entry in fs::read_dir(path)? {
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

fn wait_for_disk(serial: &str, position: u8) -> Result<PathBuf, Failure> {
    let started = Instant::now();
    loop {
        if let Some(device) = find_disk(Path::new("/sys/block"), serial, position) {
            return Ok(device);
        }
        if started.elapsed() > DEVICE_LIMIT {
            return Err(Failure::new(
                Step::Volumes,
                format!("no disk with serial {serial} appeared within {} s", DEVICE_LIMIT.as_secs()),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// By serial where any disk has a serial of ours, else by position behind the root image's `vda`.
fn find_disk(sys_block: &Path, serial: &str, position: u8) -> Option<PathBuf> {
    let mut disks: Vec<String> = fs::read_dir(sys_block)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("vd"))
        .collect();
    disks.sort_by_key(|name| (name.len(), name.clone()));
    let serial_of = |name: &str| {
        fs::read_to_string(sys_block.join(name).join("serial")).unwrap_or_default().trim().to_owned()
    };
    if let Some(name) = disks.iter().find(|name| serial_of(name) == serial) {
        return Some(Path::new("/dev").join(name));
    }
    // alioth answers with its own device names and has no way to set serials; any other VMM with a foreign
    // serial on that position has the wrong disk there.
    let name = disks.get(usize::from(position) + 1)?;
    let own_name = serial_of(name);
    (own_name.is_empty() || own_name.starts_with("virtio-blk-")).then(|| Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sys_block(disks: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, serial) in disks {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("serial"), serial).unwrap();
        }
        dir
    }

    #[test]
    fn a_disk_is_found_by_its_serial_wherever_it_sits() {
        let dir = sys_block(&[("vda", "root"), ("vdb", "logs\n"), ("vdc", "data\n"), ("loop0", "")]);
        assert_eq!(find_disk(dir.path(), "data", 0), Some("/dev/vdc".into()));
    }

    #[test]
    fn without_serials_the_position_decides() {
        let dir = sys_block(&[
            ("vda", "virtio-blk-0"),
            ("vdb", "virtio-blk-1"),
            ("vdc", "virtio-blk-2"),
            ("vdaa", ""),
        ]);
        assert_eq!(find_disk(dir.path(), "data", 1), Some("/dev/vdc".into()));
    }

    #[test]
    fn a_disk_with_another_serial_is_never_taken_by_position() {
        let dir = sys_block(&[("vda", "root"), ("vdb", "somebody")]);
        assert_eq!(find_disk(dir.path(), "data", 0), None);
    }

    #[test]
    fn only_an_unused_volume_of_roots_is_given_away() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: only root can give files away");
        }
        let user = User { uid: 1000, gid: 1001, groups: vec![], home: "/".into(), name: None };
        let dir = tempfile::tempdir().unwrap();
        let paths = ["new", "used", "foreign"].map(|name| dir.path().join(name));
        for path in &paths {
            fs::create_dir_all(path.join("lost+found")).unwrap();
        }
        fs::write(paths[1].join("file"), "").unwrap();
        chown(&paths[2], Some(7), Some(7)).unwrap();
        give_new(&paths, &user).unwrap();
        let owners =
            paths.map(|path| fs::metadata(path).map(|metadata| (metadata.uid(), metadata.gid())).unwrap());
        assert_eq!(owners, [(1000, 1001), (0, 0), (7, 7)]);
    }

    #[test]
    fn a_missing_disk_is_not_found() {
        let dir = sys_block(&[("vda", "root")]);
        assert_eq!(find_disk(dir.path(), "data", 0), None);
    }
}
