use super::*;

use std::fs;
use std::process::Command;

use crate::flash::{Roots, Target};

const MIB: usize = 1024 * 1024;

/// A loop device over a file, released at the end.
struct Loop {
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Loop {
    /// Nothing where the kernel has no loop devices or we are not root.
    fn new(bytes: usize) -> Option<Self> {
        if !Path::new("/dev/loop-control").exists() || !rustix::process::geteuid().is_root() {
            eprintln!("no loop devices for us here: not tested");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        // Not empty, so that what must be cleared can be seen.
        fs::write(&file, vec![0xaa; bytes]).unwrap();
        let output = Command::new("losetup").args(["--show", "--find"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        Some(Self { dir, path })
    }

    fn backing(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn writable(&self, needs: usize) -> Writable {
        Target::describe(&Roots::default(), &self.path).unwrap().check(needs as u64).unwrap()
    }

    fn content(&self) -> Vec<u8> {
        fs::read(self.backing()).unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

fn image(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i / 512 + i) as u8).collect()
}

fn go(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn an_image_is_on_the_device_and_old_tables_at_its_end_are_gone() {
    let Some(device) = Loop::new(16 * MIB) else { return };
    let image = image(9 * MIB + 512);
    let mut seen = Vec::new();
    let written = write(&device.writable(image.len()), &image, &mut |progress| {
        seen.push(progress);
        ControlFlow::Continue(())
    });
    assert_eq!(written.unwrap().bytes, image.len() as u64);
    let content = device.content();
    assert!(content[..image.len()] == image[..]);
    assert!(content[image.len()..15 * MIB].iter().all(|byte| *byte == 0xaa), "nothing else was touched");
    assert!(content[15 * MIB..].iter().all(|byte| *byte == 0), "the end is cleared");
    for phase in [Phase::Write, Phase::Verify] {
        let of_phase: Vec<_> = seen.iter().filter(|progress| progress.phase == phase).collect();
        assert!(of_phase.is_sorted_by_key(|progress| progress.done_bytes));
        assert_eq!(of_phase.last().unwrap().done_bytes, image.len() as u64);
    }
}

#[test]
fn a_device_that_keeps_something_else_is_not_called_good() {
    let Some(device) = Loop::new(8 * MIB) else { return };
    let image = image(5 * MIB);
    let backing = device.backing();
    let error = write(&device.writable(image.len()), &image, &mut |progress| {
        if progress.phase == Phase::Write && progress.done_bytes == progress.all_bytes {
            // As memory that is worn out, or not there.
            let mut file = File::options().write(true).open(&backing).unwrap();
            file.seek(SeekFrom::Start(4 * MIB as u64 + 700)).unwrap();
            file.write_all(&[!image[4 * MIB + 700]]).unwrap();
            file.sync_all().unwrap();
        }
        ControlFlow::Continue(())
    });
    match error.unwrap_err() {
        FlashError::Differs { at, .. } => assert_eq!(at, 4 * MIB as u64 + 700),
        other => panic!("{other}"),
    }
}

#[test]
fn a_stopped_stick_has_no_beginning_and_boots_nowhere() {
    let Some(device) = Loop::new(16 * MIB) else { return };
    let image = image(12 * MIB);
    let error = write(&device.writable(image.len()), &image, &mut |progress| {
        if progress.done_bytes > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let error = error.unwrap_err().to_string();
    assert!(error.ends_with("was stopped: the stick does not boot now; write it again"), "{error}");
    assert!(device.content()[..4 * MIB].iter().all(|byte| *byte == 0));
}

#[test]
fn a_device_that_is_claimed_or_exchanged_since_it_was_looked_at_is_left_alone() {
    let Some(device) = Loop::new(8 * MIB) else { return };
    let image = image(MIB);
    let writable = device.writable(image.len());
    let claim = open(&device.path, OFlags::EXCL).unwrap();
    let error = write(&writable, &image, &mut go).unwrap_err().to_string();
    assert!(error.contains("is in use by another program"), "{error}");
    drop(claim);

    let mut exchanged = writable.clone();
    exchanged.0.number.1 += 1;
    let error = write(&exchanged, &image, &mut go).unwrap_err().to_string();
    assert!(error.contains("is not the device any more that was looked at: nothing was written"), "{error}");
    let mut resized = writable.clone();
    resized.0.size_bytes += 512;
    assert!(matches!(write(&resized, &image, &mut go), Err(FlashError::Changed { .. })));
    assert!(device.content().iter().all(|byte| *byte == 0xaa), "nothing was written");
    write(&writable, &image, &mut go).unwrap();
}

#[test]
fn an_image_that_can_not_be_written_whole_is_not_begun() {
    let Some(device) = Loop::new(MIB) else { return };
    let writable = device.writable(MIB);
    assert!(matches!(write(&writable, &[0; 513], &mut go), Err(FlashError::Image { len: 513 })));
    assert!(matches!(write(&writable, &[], &mut go), Err(FlashError::Image { len: 0 })));
    let error = write(&writable, &image(2 * MIB), &mut go).unwrap_err().to_string();
    assert_eq!(
        error,
        "the image has 2097152 bytes, and only 1048576 were found to fit: nothing was written; look again"
    );
    assert!(device.content().iter().all(|byte| *byte == 0xaa));
    let mut gone = writable.clone();
    gone.0.path = PathBuf::from("/dev/croft-no-such-device");
    assert!(matches!(write(&gone, &image(512), &mut go), Err(FlashError::Open { .. })));
}

#[test]
fn a_mounted_device_is_refused_and_written_once_it_is_free() {
    let Some(device) = Loop::new(8 * MIB) else { return };
    let Ok(made) = Command::new("mkfs.vfat").arg(&device.path).output() else {
        eprintln!("mkfs.vfat is not installed: not tested");
        return;
    };
    assert!(made.status.success());
    let place = device.dir.path().join("mounted here");
    fs::create_dir(&place).unwrap();
    let mounted = Command::new("mount").args(["-t", "vfat"]).arg(&device.path).arg(&place).output().unwrap();
    if !mounted.status.success() {
        eprintln!("nothing can be mounted here: not tested");
        return;
    }
    let described = Target::describe(&Roots::default(), &device.path);
    let writable = described.map(|target| target.check(0));
    let busy = open(&device.path, OFlags::EXCL);
    assert!(Command::new("umount").arg(&place).status().unwrap().success());
    let refusal = writable.unwrap().unwrap_err().to_string();
    assert!(
        refusal.contains("is mounted at") && refusal.contains("mounted here: unmount it first"),
        "{refusal}"
    );
    assert!(matches!(busy, Err(FlashError::Busy { .. })));
    write(&device.writable(512), &image(512), &mut go).unwrap();
}
