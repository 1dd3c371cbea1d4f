//! The node's monitor as a person sees it: the real image, a graphics card, a keyboard, a camera.
//!
//! There is no grid: a node whose ledger is out of reach still shows who it is and why it can't go on. Without an image
//! the tests say so and do nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_protocol::boot::{BootConfig, ClockSettings, FarmJoin, GridPin, NodeSettings, ReplicaAddress};
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::keys::{Domain, SecretKey};
use croft_protocol::{ChainId, FarmId, Hash, Name};
use croft_qemu_harness::{Boot, Machine, Picture, Profile};

/// Emulation on a busy machine takes half a minute; a machine that takes ten minutes hangs.
const LIMIT: Duration = Duration::from_secs(600);
/// Between two looks at the monitor.
const LOOK_EVERY: Duration = Duration::from_millis(500);

const PROFILE: &str = r#"
name = "screen-test"
cpus = 2
memory_mib = 1536
nested = true
[[disk]]
name = "data"
size_mib = 4096
model = "nvme"
serial = "croft-nvme-0"
[[disk]]
name = "old"
size_mib = 64
model = "sata-ssd"
serial = "croft-sata-0"
[[nic]]
name = "lan"
model = "e1000e"
mac = "52:54:00:c0:f7:09"
"#;

/// The first image under `target/image/`, kernel and all; another place in `CROFT_IMAGES`.
fn image() -> Option<PathBuf> {
    let images = std::env::var_os("CROFT_IMAGES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/image"), PathBuf::from);
    let found = std::fs::read_dir(images).ok()?.filter_map(|image| Some(image.ok()?.path()));
    let image = found.into_iter().find(|image| croft_image_builder::image::open(image).is_ok());
    if image.is_none() {
        eprintln!("skipped: no image; run `cargo xtask image`");
    }
    image
}

/// Of a grid that nobody runs.
fn boot_config() -> String {
    let owner = SecretKey::from_seed(&[7; 32]);
    let chain = ChainId(Hash([1; 32]));
    let join = Join { farm: FarmId(Hash([2; 32])), expires_ms: u64::MAX, nonce: [3; 16] };
    let signature = owner.sign_as_bot(Domain::JOIN, &chain, &join);
    let name = |text: &str| Name::new(text).unwrap();
    BootConfig {
        grid: GridPin {
            name: name("nowhere"),
            chain,
            validators: Hash([4; 32]),
            replicas: vec![ReplicaAddress { address: "10.0.2.2:9".parse().unwrap(), key: owner.public() }],
        },
        farm: FarmJoin::new(name("alpha"), &SignedJoin { join, signature }),
        node: NodeSettings { name: Some(name("hill-7")), ..NodeSettings::default() },
        links: vec![],
        clock: ClockSettings::default(),
    }
    .to_toml()
}

/// What a camera reads off the picture.
fn code(picture: &Picture) -> Option<String> {
    let mut image = rqrr::PreparedImage::prepare_from_greyscale(picture.width, picture.height, |x, y| {
        picture.grey[y * picture.width + x]
    });
    image.detect_grids().iter().find_map(|grid| Some(grid.decode().ok()?.1))
}

/// The first picture of which `found` finds something.
async fn until<T>(machine: &Machine, what: &str, found: impl Fn(&Picture) -> Option<T>) -> T {
    let search = async {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            let picture = machine.picture().await.unwrap();
            if let Some(found) = found(&picture) {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(LIMIT, search).await;
    found.unwrap_or_else(|_| panic!("the monitor never shows {what}"))
}

async fn photograph(machine: &Machine, name: &str) {
    let folder =
        std::env::var_os("CROFT_SCREENSHOTS").map_or_else(|| machine.state().to_owned(), PathBuf::from);
    std::fs::create_dir_all(&folder).unwrap();
    machine.screenshot(&folder.join(name)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_monitor_shows_the_nodes_id_as_a_code_and_its_menu_restarts_only_after_a_yes() {
    let (state, Some(image)) = (tempfile::tempdir().unwrap(), image()) else { return };
    let profile = Profile::parse(PROFILE, Path::new("test")).unwrap();
    let boot = Boot::image(profile, &image, state.path()).boot_file(boot_config());
    let mut machine = boot.start().await.unwrap_or_else(|error| panic!("{error}"));
    let serial = machine.serial();
    serial.wait_for("croft: stage 5/11 network: ok", LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
    // QEMU's controllers answer both questions.
    for disk in ["croft: disk nvme0n1: health good", "croft: disk sda: health good"] {
        serial.wait_for(disk, LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
    }
    let line = serial.wait_for("croft: node id ", LIMIT).await.unwrap_or_else(|error| panic!("{error}")).text;
    let id = line.rsplit(' ').next().unwrap().to_owned();
    assert_eq!(id.len(), 64, "{line}");

    photograph(&machine, "1-begin.png").await;
    let read = until(&machine, "a code", code).await;
    assert_eq!(read.to_ascii_lowercase(), id, "the code is the node's id");
    let failed = machine.serial().wait_for("croft: stage 9/11 ledger: failed", LIMIT).await;
    failed.unwrap_or_else(|error| panic!("{error}"));
    machine.serial().wait_for("croft: stage 11/11 reconcile: ok", LIMIT).await.unwrap();
    until(&machine, "a code at the end of the boot", code).await;
    photograph(&machine, "2-booted.png").await;

    let closed = machine.picture().await.unwrap();
    machine.press(&["f1"]).await.unwrap();
    let top = until(&machine, "the menu", |picture| (picture != &closed).then(|| picture.clone())).await;
    photograph(&machine, "3-menu.png").await;
    machine.press(&["3"]).await.unwrap();
    let question = until(&machine, "a question", |picture| (picture != &top).then(|| picture.clone())).await;
    photograph(&machine, "4-question.png").await;
    // Enter alone says no.
    machine.press(&["ret"]).await.unwrap();
    until(&machine, "the menu again", |picture| (picture != &question).then_some(())).await;
    assert!(machine.serial().find("Ctrl-Alt-Del").is_none(), "{}", machine.serial().tail());
    assert_eq!(machine.qmp().status().await.unwrap(), "running");

    let before = machine.qmp().next_event();
    machine.press(&["3", "down", "ret"]).await.unwrap();
    machine.serial().wait_for("Ctrl-Alt-Del", LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
    machine.qmp().wait_event("RESET", before, LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
    // The same key on the same disk: the same code.
    machine.serial().skip_to_end();
    machine.serial().wait_for("croft: node id ", LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
    let again = until(&machine, "the code after the restart", code).await;
    assert_eq!(again, read);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_a_cable_still_shows_who_it_is() {
    let (state, Some(image)) = (tempfile::tempdir().unwrap(), image()) else { return };
    let profile = Profile::parse(PROFILE, Path::new("test")).unwrap();
    let boot = Boot::image(profile, &image, state.path()).boot_file(boot_config());
    let mut machine = boot.start().await.unwrap_or_else(|error| panic!("{error}"));
    machine.set_link("lan", false).await.unwrap();
    let serial = machine.serial();
    let line = serial.wait_for("croft: stage 5/11 network: failed", LIMIT).await;
    assert!(line.unwrap().text.contains("no carrier on eth0: check the cable"));
    // It works without a network.
    until(&machine, "a code", code).await;
    photograph(&machine, "5-no-cable.png").await;
    machine.set_link("lan", true).await.unwrap();
    machine.serial().wait_for("dhcp lease", LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
}

/// Keys for a text; QEMU names those that are no letters or digits.
fn keys(text: &str) -> Vec<String> {
    let name = |character: char| match character {
        '-' => "minus".to_owned(),
        '.' => "dot".to_owned(),
        other => other.to_string(),
    };
    text.chars().map(name).chain(["ret".to_owned()]).collect()
}

/// Presses keys one after the other, each once the monitor shows what came of the one before: a busy machine loses keys.
async fn press_each<K: AsRef<str>>(machine: &Machine, keys: impl IntoIterator<Item = K>) {
    for key in keys {
        let before = machine.picture().await.unwrap();
        machine.press(&[key.as_ref()]).await.unwrap();
        until(machine, "what a key does", |picture| (picture != &before).then_some(())).await;
    }
}

/// The magic of ext4, in its first superblock.
fn has_ext4(disk: &Path) -> bool {
    std::fs::read(disk).unwrap()[1080..1082] == [0x53, 0xef]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_menu_wipes_a_disk_only_after_its_serial_number_was_typed_and_gives_a_card_an_address() {
    let (state, Some(image)) = (tempfile::tempdir().unwrap(), image()) else { return };
    let profile = Profile::parse(PROFILE, Path::new("test")).unwrap();
    let old = state.path().join("old.raw");
    std::fs::File::create(&old).unwrap().set_len(64 << 20).unwrap();
    let made = std::process::Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&old).status();
    assert!(made.unwrap().success() && has_ext4(&old));
    let boot = Boot::image(profile, &image, state.path()).boot_file(boot_config());
    let mut machine = boot.start().await.unwrap_or_else(|error| panic!("{error}"));
    machine.serial().wait_for("croft: stage 11/11 reconcile: ok", LIMIT).await.unwrap();

    // The disk that the node uses can't be chosen; it is the second one.
    press_each(&machine, ["f1", "2", "2"]).await;
    photograph(&machine, "6-disk-in-use.png").await;
    press_each(&machine, ["1"]).await;
    press_each(&machine, keys("croft-sata-1")).await;
    photograph(&machine, "7-wrong-serial.png").await;
    assert!(has_ext4(&old), "the wrong serial number wipes nothing");
    press_each(&machine, keys("croft-sata-0")).await;
    let wiped = machine.serial().wait_for("wiped by a person at the machine", LIMIT).await;
    assert!(wiped.unwrap_or_else(|error| panic!("{error}")).text.contains("sda"));
    machine.serial().wait_for("order of a person at the machine", LIMIT).await.unwrap();
    photograph(&machine, "8-wiped.png").await;
    assert!(!has_ext4(&old), "it is empty now");

    press_each(&machine, ["ret", "f1", "1", "1"]).await;
    for line in ["10.0.2.77", "24", "10.0.2.2", "", ""] {
        press_each(&machine, keys(line)).await;
    }
    photograph(&machine, "9-settings.png").await;
    press_each(&machine, ["down", "ret"]).await;
    let told = machine.serial().wait_for("order of a person at the machine", LIMIT).await;
    let told = told.unwrap_or_else(|error| panic!("{error}")).text;
    assert!(told.contains("eth0 has new settings until the machine restarts"), "{told}");
    let set = machine.serial().wait_for("address set", LIMIT).await;
    let set = set.unwrap_or_else(|error| panic!("{error}")).text;
    assert!(set.contains("10.0.2.77/24"), "{set}");
    photograph(&machine, "10-new-address.png").await;
    machine.kill().await.unwrap();
}
