//! End to end: the real image in QEMU, a real grid beside it, nginx from the distribution as the workload. Each test
//! says which monitor it runs with. One machine at a time: emulation takes every core that there is.

use std::path::PathBuf;
use std::time::Duration;

use croft_it::grid::{Grid, images};
use croft_it::scene::{self, Scene};
use tokio::sync::{Mutex, MutexGuard};

static ONE_MACHINE: Mutex<()> = Mutex::const_new(());

async fn one_machine() -> MutexGuard<'static, ()> {
    ONE_MACHINE.lock().await
}

fn cache() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = std::env::var_os("CROFT_CACHE").map_or_else(|| home.join(".cache/croft"), PathBuf::from);
    cache.join("demo")
}

fn say(text: &str) {
    eprintln!("{text}");
}

/// The whole life of a workload, with one image.
async fn lifecycle(vmm: &str, image: PathBuf) {
    eprintln!("== lifecycle with {vmm}");
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::begin(dir.path(), &image, 1, &mut say).await.unwrap();
    scene.deploy(&cache(), &mut say).await.unwrap();

    let ps = scene.grid.croft(["--bot", "alice", "ps"]).await.unwrap();
    assert!(ps.contains("web"), "{ps}");
    let logs = scene.grid.croft(["--bot", "alice", "logs", "web", "--tail", "20"]).await.unwrap();
    assert!(logs.contains("GET / HTTP/1.1"), "nginx logs each request: {logs}");
    let explained = scene.grid.croft(["--bot", "alice", "explain", "web"]).await.unwrap();
    assert!(explained.contains("image") && explained.contains("running"), "{explained}");
    let (code, _, refusal) = scene.grid.try_croft(["--bot", "farmer", "logs", "web"]).await.unwrap();
    assert_ne!(code, 0, "another bot has no contract 'web': {refusal}");

    scene.write("kept over a power cut").await.unwrap();
    // With the ledger out of reach, the machine must come back from its own disk.
    scene.grid.stop_ledger().await.unwrap();
    scene.power_cut(&mut say).await.unwrap();
    scene.read("kept over a power cut").await.unwrap();
    scene.grid.start_ledger().await.unwrap();
    let limit = Duration::from_secs(180);
    scene.node.serial().wait_for("registered", limit).await.unwrap();

    scene.stop(&mut say).await.unwrap();
    let history = scene.grid.croft(["--bot", "alice", "history", "web"]).await.unwrap();
    assert!(history.to_lowercase().contains("ended"), "the whole chain of versions: {history}");
    eprintln!("{}", scene.table.show());
    let Scene { grid, mut node, .. } = scene;
    let exit = node.powerdown(Duration::from_secs(180)).await.unwrap();
    assert!(exit.is_clean(), "the power button ends the machine in order: {exit:?}");
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_lives_through_a_power_cut_and_ends_with_its_contract() {
    let _alone = one_machine().await;
    for (vmm, image) in images().unwrap() {
        lifecycle(&vmm, image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_pins_other_validators_says_so_and_stays_up() {
    let _alone = one_machine().await;
    let (_, image) = images().unwrap().remove(0);
    let dir = tempfile::tempdir().unwrap();
    let mut grid = Grid::start(dir.path(), 1).await.unwrap();
    grid.farm().await.unwrap();
    let mut lines: Vec<String> = grid.boot_config().unwrap().lines().map(str::to_owned).collect();
    for line in &mut lines {
        if line.starts_with("validators = ") {
            *line = format!("validators = \"{}\"", "00".repeat(32));
        }
    }
    let mut node = grid.node(&image, &lines.join("\n")).unwrap().start().await.unwrap();
    let limit = Duration::from_secs(180);
    let failed = node.serial().wait_for("ledger: failed", limit).await.unwrap();
    assert!(failed.text.contains("validator"), "the reason names the culprit: {}", failed.text);
    node.serial().wait_for("reconcile: ok", limit).await.unwrap();
    let listeners = node.serial().wait_for("listeners: ", limit).await.unwrap();
    assert!(
        listeners.text.ends_with("listeners: none"),
        "a running node waits for nobody: {}",
        listeners.text
    );
    let nodes = grid.croft(["--bot", "farmer", "farm", "nodes"]).await.unwrap();
    assert!(!nodes.contains("n1"), "a node that trusts nobody registers with nobody: {nodes}");
    node.kill().await.unwrap();
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_before_anybody_pays() {
    let _alone = one_machine().await;
    let (_, image) = images().unwrap().remove(0);
    let dir = tempfile::tempdir().unwrap();
    let mut grid = Grid::start(dir.path(), 1).await.unwrap();
    grid.farm().await.unwrap();
    let mut node = grid.boot_node(&image).await.unwrap();
    scene::registered(&mut node).await.unwrap();
    grid.croft(["bot", "new", "alice", "--grains", "1000000000"]).await.unwrap();
    let layout = croft_it::oci::nginx_layout(&cache()).unwrap();
    let source = format!("{}:{}", layout.display(), croft_it::oci::TAG);
    grid.croft(["image", "build", &source, "--name", "nginx"]).await.unwrap();

    let file = dir.path().join("web.toml");
    let path = file.to_str().unwrap();
    let cases = [
        ("memory = \"256M\"", "memory = \"900G\"", "memory"),
        ("image = \"nginx\"", "image = \"apache\"", "apache"),
        ("[terms]", "[terms]\ncolour = \"red\"", "colour"),
    ];
    for (from, to, named) in cases {
        std::fs::write(&file, scene::WEB.replace(from, to)).unwrap();
        let (code, _, stderr) = grid.try_croft(["--bot", "alice", "deploy", path]).await.unwrap();
        assert_ne!(code, 0, "{to} is refused");
        assert!(stderr.contains(named), "the message names '{named}': {stderr}");
    }
    let wallet = grid.croft(["--bot", "alice", "wallet", "show"]).await.unwrap();
    assert!(wallet.contains("1 000 000 000"), "nothing was paid: {wallet}");
    node.kill().await.unwrap();
    grid.stop().await.unwrap();
}

/// The same bytes start from both; what is the farm's own comes from the medium, after its signature was checked.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_boots_by_firmware_from_a_stick_and_from_a_disc_and_registers() {
    let Some(boot_file) = std::env::var_os("CROFT_BOOT_FILE").map(PathBuf::from) else {
        eprintln!("skipped: CROFT_BOOT_FILE names no boot file ('cargo xtask image --boot-file' makes one)");
        return;
    };
    let _alone = one_machine().await;
    let dir = tempfile::tempdir().unwrap();
    let mut grid = Grid::start(dir.path(), 1).await.unwrap();
    grid.farm().await.unwrap();
    for disc in [false, true] {
        let mut node = grid.boot_medium(&boot_file, disc).await.unwrap();
        let addition = node.serial().wait_for("the farm's addition is valid", Duration::from_secs(180)).await;
        eprintln!("{}", addition.unwrap().text);
        eprintln!("{}", scene::registered(&mut node).await.unwrap());
        let nodes = grid.croft(["--bot", "farmer", "farm", "nodes"]).await.unwrap();
        assert!(nodes.contains("alpha"), "{nodes}");
        node.kill().await.unwrap();
    }
    grid.stop().await.unwrap();
}
