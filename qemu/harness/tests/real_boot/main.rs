//! Boots a real kernel in QEMU with an init of a hundred lines: the harness itself, seen as a test
//! sees it.
//!
//! The kernel is `CROFT_TEST_KERNEL`, else that of an image under `target/image/`. Without a kernel,
//! QEMU or a C compiler the tests say so and do nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use croft_image_builder::{Archive, Entry, Kind};
use croft_qemu_harness::serial::WaitError;
use croft_qemu_harness::{Boot, Forward, Machine, OnReboot, Profile};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Emulation on a busy machine takes ten seconds; a machine that takes five minutes hangs.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

const PROFILE: &str = r#"
name = "harness-test"
cpus = 1
memory_mib = 256
watchdog = false
kernel_arguments = ["console=ttyS0,115200", "panic=30"]
[[disk]]
name = "data"
size_mib = 8
serial = "test-data"
[[nic]]
name = "lan"
"#;

fn profile() -> Profile {
    Profile::parse(PROFILE, Path::new("test")).unwrap()
}

fn kernel() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("CROFT_TEST_KERNEL").filter(|value| !value.is_empty()) {
        return Some(named.into());
    }
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/image");
    let images = std::fs::read_dir(images).ok()?;
    images.filter_map(|image| Some(image.ok()?.path().join("bzImage"))).find(|kernel| kernel.exists())
}

/// Compiles the init and packs it, once.
fn initramfs() -> Option<&'static Path> {
    static PACKED: OnceLock<Option<(tempfile::TempDir, PathBuf)>> = OnceLock::new();
    let packed = PACKED.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("init");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_boot/init.c");
        let output =
            Command::new("cc").args(["-static", "-Os", "-Wall", "-o"]).arg(&program).arg(source).output();
        let output = output.ok()?;
        assert!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        let mut archive = Archive::new();
        archive.insert("/init", Entry::file(std::fs::read(program).unwrap(), 0o755)).unwrap();
        let console = Entry { kind: Kind::CharacterDevice { major: 5, minor: 1 }, mode: 0o600 };
        archive.insert("/dev/console", console).unwrap();
        let packed = directory.path().join("initramfs.zst");
        std::fs::write(&packed, croft_image_builder::compress(&archive, 3).bytes).unwrap();
        Some((directory, packed))
    });
    packed.as_ref().map(|(_, packed)| packed.as_path())
}

/// A boot with everything that this test needs; `None`, said aloud, when something is not installed.
fn boot(state: &Path) -> Option<Boot> {
    let Some(kernel) = kernel() else {
        eprintln!("skipped: no kernel; name one in CROFT_TEST_KERNEL, or run `cargo xtask image`");
        return None;
    };
    let Some(initramfs) = initramfs() else {
        eprintln!("skipped: there is no C compiler; run scripts/setup");
        return None;
    };
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        eprintln!("skipped: there is no qemu-system-x86_64; run scripts/setup");
        return None;
    }
    Some(Boot::new(profile(), kernel, initramfs, state))
}

async fn ready(machine: &mut Machine) {
    machine.serial().wait_for("test: ready", BOOT_LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_boots_answers_loses_power_and_keeps_its_disk() {
    let state = tempfile::tempdir().unwrap();
    let Some(first) = boot(state.path()) else { return };
    let first = first.boot_file("farm = \"hill\"\n").forward(Forward::tcp(7));
    let mut machine = first.clone().start().await.unwrap_or_else(|error| panic!("{error}"));
    ready(&mut machine).await;
    let serial = machine.serial();
    assert!(serial.find("test: boot file: farm = \"hill\"").is_some(), "{}", serial.tail());
    assert!(serial.find("test: boot 1 of this disk").is_some(), "{}", serial.tail());

    let mut stream = TcpStream::connect(machine.address(7).unwrap()).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    tokio::time::timeout(BOOT_LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"hello");

    let more = machine.forward(Forward { host_port: None, ..Forward::tcp(8) }).await.unwrap();
    assert_ne!(Some(more), machine.address(7));

    let screen = state.path().join("screen.png");
    machine.qmp().screendump(&screen).await.unwrap();
    assert_eq!(std::fs::read(&screen).unwrap()[..4], *b"\x89PNG");
    machine.set_link("lan", false).await.unwrap();
    let error = machine.set_link("wan", false).await.unwrap_err();
    assert_eq!(error.to_string(), "the profile has no NIC \"wan\"");

    let exit = machine.kill().await.unwrap();
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
    let gone = machine.serial().wait_for("never", BOOT_LIMIT).await.unwrap_err();
    assert!(matches!(gone, WaitError::Ended { .. }), "{gone}");
    drop(machine);

    let mut machine = first.start().await.unwrap();
    ready(&mut machine).await;
    assert!(machine.serial().find("test: boot 2 of this disk").is_some(), "{}", machine.serial().tail());
    machine.type_on_serial("poweroff\n").unwrap();
    let exit = machine.wait_exit(BOOT_LIMIT).await.unwrap();
    assert!(exit.is_clean(), "{exit:?}");
    let log = std::fs::read_to_string(state.path().join("serial.log")).unwrap();
    assert!(log.contains("test: boot 2 of this disk"), "{log}");
}

/// The first image under `target/image/`, kernel and all.
fn image() -> Option<PathBuf> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/image");
    let found = std::fs::read_dir(images).ok()?.filter_map(|image| Some(image.ok()?.path()));
    let image = found.into_iter().find(|image| croft_image_builder::image::open(image).is_ok());
    if image.is_none() {
        eprintln!("skipped: no image; run `cargo xtask image`");
    }
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_image_powers_off_when_the_button_is_pressed() {
    let (state, Some(image)) = (tempfile::tempdir().unwrap(), image()) else { return };
    let boot = Boot::image(Profile::named("standard").unwrap(), &image, state.path());
    let mut machine = boot.start().await.unwrap_or_else(|error| panic!("{error}"));
    let serial = machine.serial();
    serial.wait_for("croft: stage 4/11", BOOT_LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
    // Without a boot configuration the node can't run, and says so; the button works all the same.
    let complaint = serial.wait_for("the node can't run", BOOT_LIMIT).await;
    let complaint = complaint.unwrap_or_else(|error| panic!("{error}"));
    for word in ["no disk and no server has a farm's addition", "'croft farm image'", "/dev/vda: none"] {
        assert!(complaint.text.contains(word), "{}", complaint.text);
    }
    let exit = machine.powerdown(BOOT_LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(exit.is_clean(), "{exit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_reset_boots_again() {
    let state = tempfile::tempdir().unwrap();
    let Some(boot) = boot(state.path()) else { return };
    let mut machine = boot.start().await.unwrap_or_else(|error| panic!("{error}"));
    ready(&mut machine).await;
    assert!(machine.serial().find("test: no boot file").is_some());
    machine.reset().await.unwrap();
    machine.serial().wait_for("test: boot 2 of this disk", BOOT_LIMIT).await.unwrap();
    ready(&mut machine).await;
    assert_eq!(machine.qmp().status().await.unwrap(), "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_a_wait_long_before_its_limit() {
    let state = tempfile::tempdir().unwrap();
    let Some(boot) = boot(state.path()) else { return };
    let mut machine = boot.on_reboot(OnReboot::Exit).start().await.unwrap_or_else(|error| panic!("{error}"));
    ready(&mut machine).await;
    machine.type_on_serial("die\n").unwrap();
    let error = machine.serial().wait_for("something else", BOOT_LIMIT).await.unwrap_err();
    assert!(matches!(error, WaitError::Panicked { .. }), "{error}");
    assert!(error.to_string().contains("Attempted to kill init"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_ends_with_its_handle_and_with_its_lifetime() {
    let state = tempfile::tempdir().unwrap();
    let Some(boot) = boot(state.path()) else { return };
    let machine = boot.clone().start().await.unwrap_or_else(|error| panic!("{error}"));
    let process = PathBuf::from(format!("/proc/{}", machine.pid()));
    assert!(process.exists());
    drop(machine);
    assert!(!process.exists(), "the machine outlived its handle");

    let mut machine = boot.lifetime(Duration::from_millis(1)).start().await.unwrap();
    let exit = machine.wait_exit(BOOT_LIMIT).await.unwrap();
    assert_eq!(exit.signal, Some(9));
}

#[tokio::test]
async fn what_keeps_a_machine_from_starting_is_named() {
    let state = tempfile::tempdir().unwrap();
    let Some(boot) = boot(state.path()) else { return };

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = boot.clone().forward(Forward::tcp(7).at_host_port(port)).start().await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("QEMU ended at once: ") && text.contains(&port.to_string()), "{text}");

    let error = boot.clone().forward(Forward { nic: 3, ..Forward::tcp(7) }).start().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "a forward of guest port 7 names NIC 3, but the profile harness-test has 1"
    );

    let nowhere = Boot::new(profile(), "/nowhere/bzImage", initramfs().unwrap(), state.path());
    let error = nowhere.start().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the kernel /nowhere/bzImage: build it with `cargo xtask image`"
    );
}
