//! Runs `examples/smoke.rs` with real VMMs on a real node kernel, in an emulated machine.
//!
//! Needs `CROFT_NODE_KERNEL` (bzImage with KVM), `CROFT_GUEST_KERNEL` (vmlinux), `CROFT_VIRTIOFSD` and at
//! least one of `CROFT_CLOUD_HYPERVISOR` and `CROFT_ALIOTH` (all static), and qemu-system-x86_64, mkfs.erofs,
//! veritysetup, mke2fs and cpio. `CROFT_SMOKE_VMM` and `CROFT_SMOKE_CASE` choose. Prints why it skips.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// A breakpoint that the kernel had already taken away again: QEMU's threads now and then run a translation of code that
/// was patched meanwhile (each first and last VM patches the scheduler). No processor does.
const STALE_CODE: &str = "Oops: int3";
/// Boots until one is whole.
const EMULATIONS: usize = 4;

/// All cases with both VMMs take about five minutes on a busy machine with two cores.
const LIMIT: Duration = Duration::from_secs(40 * 60);
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Size of the image's blocks.
const BLOCK: u64 = 4096;

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists())
}

fn run(command: &mut Command) -> String {
    let output =
        command.stderr(Stdio::inherit()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Static binaries of this workspace, beside those of the node image.
fn build() -> (PathBuf, PathBuf) {
    let target = std::env::var_os("CROFT_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/croft"),
        PathBuf::from,
    );
    let target = target.join("target-image");
    for what in [&["-p", "croft-guest", "--bin", "guest"][..], &["-p", "croft-microvm", "--example", "smoke"]]
    {
        run(Command::new(env!("CARGO"))
            .args(["build", "--profile", "image", "--target", TARGET])
            .args(what)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env("CARGO_TARGET_DIR", &target));
    }
    let binaries = target.join(TARGET).join("image");
    (binaries.join("guest"), binaries.join("examples/smoke"))
}

fn put(from: &Path, to: PathBuf) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
}

/// A newc archive of `dir`, owned by root, with `/dev/console`.
fn archive(dir: &Path, to: &Path) {
    let list = run(Command::new("find").arg(".").current_dir(dir));
    let mut cpio = Command::new("cpio")
        .args(["-o", "-H", "newc", "-R", "0:0", "--quiet", "-O"])
        .arg(to)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .spawn()
        .expect("cpio");
    cpio.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    assert!(cpio.wait().unwrap().success(), "cpio failed");
}

fn make_image(smoke: &Path, work: &Path, images: &Path) {
    let tree = work.join("tree");
    put(smoke, tree.join("bin/smoke"));
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::create_dir_all(tree.join("home/app")).unwrap();
    let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n";
    fs::write(tree.join("etc/passwd"), passwd).unwrap();
    fs::write(tree.join("etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:app\n").unwrap();
    fs::create_dir_all(images).unwrap();
    let image = images.join("root.img");
    run(Command::new("mkfs.erofs").args(["-zlz4hc", "-T0", "--all-root", "--quiet"]).arg(&image).arg(&tree));
    let size = fs::metadata(&image).unwrap().len().next_multiple_of(BLOCK);
    fs::File::options().write(true).open(&image).unwrap().set_len(size).unwrap();
    let salt = "00112233";
    let told = run(Command::new("veritysetup")
        .args(["format", "--no-superblock", "--salt", salt, &format!("--hash-offset={size}")])
        .arg(&image)
        .arg(&image));
    let root_hash =
        told.lines().find_map(|line| line.strip_prefix("Root hash:")).expect("a root hash").trim();
    let blocks = size / BLOCK;
    let json = format!("{{\"root_hash\":\"{root_hash}\",\"salt\":\"{salt}\",\"data_blocks\":\"{blocks}\"}}");
    fs::write(images.join("root.json"), json).unwrap();
    let data = images.join("data.img");
    fs::File::create(&data).unwrap().set_len(16 << 20).unwrap();
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-E", "root_owner=0:0"]).arg(&data));
}

/// Processor frequency as the host's kernel measured it: the emulated kernel misjudges it under load.
fn tsc_khz() -> Option<u64> {
    let log = Command::new("dmesg").output().ok()?;
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    let line = log.lines().find(|line| line.contains("tsc: Detected"))?;
    let mhz: f64 = line.split("Detected ").nth(1)?.split(' ').next()?.parse().ok()?;
    Some((mhz * 1000.0) as u64)
}

/// Boots once. The verdict, if it came to one, and what failed; `Err` where the emulation itself broke the kernel.
fn boot(node: &Path, initramfs: &Path, line: &str) -> Result<(Option<String>, Vec<String>), String> {
    let mut qemu = Command::new("qemu-system-x86_64")
        .args([
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "EPYC,+svm",
            "-smp",
            "2",
            "-m",
            "1536",
        ])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-device", "virtio-rng-pci", "-append", line])
        .arg("-kernel")
        .arg(node)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-system-x86_64");
    let (sender, lines) = channel();
    let output = BufReader::new(qemu.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in output.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            println!("{line}");
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + LIMIT;
    let mut verdict = None;
    let mut failures = Vec::new();
    let mut broken = None;
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        if line.contains(STALE_CODE) {
            broken = Some(line.clone());
        }
        if line.contains("FAILED") {
            failures.push(line.clone());
        }
        if line.contains("SMOKE done:") {
            verdict = Some(line);
            break;
        }
    }
    let _ = qemu.kill();
    let _ = qemu.wait();
    match (verdict, broken) {
        (None, Some(broken)) => Err(broken),
        (verdict, _) => Ok((verdict, failures)),
    }
}

#[test]
fn real_vmms_run_real_guests() {
    let (Some(node), Some(guest_kernel), Some(virtiofsd)) =
        (variable("CROFT_NODE_KERNEL"), variable("CROFT_GUEST_KERNEL"), variable("CROFT_VIRTIOFSD"))
    else {
        eprintln!("skipped: set CROFT_NODE_KERNEL, CROFT_GUEST_KERNEL and CROFT_VIRTIOFSD to existing files");
        return;
    };
    let vmms = [("CROFT_CLOUD_HYPERVISOR", "cloud-hypervisor"), ("CROFT_ALIOTH", "alioth")];
    let vmms: Vec<(PathBuf, &str)> =
        vmms.iter().filter_map(|(name, file)| Some((variable(name)?, *file))).collect();
    if vmms.is_empty() {
        eprintln!("skipped: set CROFT_CLOUD_HYPERVISOR or CROFT_ALIOTH to an existing file");
        return;
    }
    let (guest, smoke) = build();
    let work = tempfile::tempdir().unwrap();
    let guest_root = work.path().join("guest");
    put(&guest, guest_root.join("init"));
    let root = work.path().join("root");
    fs::create_dir_all(root.join("guest")).unwrap();
    archive(&guest_root, &root.join("guest/initramfs"));
    put(&smoke, root.join("init"));
    put(&virtiofsd, root.join("bin/virtiofsd"));
    for (path, name) in &vmms {
        put(path, root.join("bin").join(name));
    }
    put(&guest_kernel, root.join("guest/vmlinux"));
    make_image(&smoke, work.path(), &root.join("images"));
    let initramfs = work.path().join("initramfs");
    archive(&root, &initramfs);

    // As the harness does: a busy host emulates the timer too slowly for the kernel's check, and clears pages slowly.
    let mut line =
        vec!["console=ttyS0 panic=-1 loglevel=4 rdinit=/init init_on_free=0 no_timer_check".to_owned()];
    if let Some(khz) = tsc_khz() {
        line.push(format!("tsc_early_khz={khz}"));
    }
    for (name, key) in [("CROFT_SMOKE_VMM", "smoke.vmm"), ("CROFT_SMOKE_CASE", "smoke.case")] {
        if let Ok(value) = std::env::var(name) {
            line.push(format!("{key}={value}"));
        }
    }
    let line = line.join(" ");
    let mut tries = (0..EMULATIONS).map(|_| boot(&node, &initramfs, &line));
    let told =
        tries.find_map(|told| told.inspect_err(|broken| println!("the emulation broke: {broken}")).ok());
    let (verdict, failures) = told.expect("QEMU's emulation broke the kernel again and again");
    let verdict = verdict.expect("the machine ended or hung before all cases were done");
    assert!(verdict.ends_with("SMOKE done: 0 failed"), "{verdict}: {failures:#?}");
}
