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
    recipe(&grid, &mut node).await;
    node.kill().await.unwrap();
    grid.stop().await.unwrap();
}

/// An expert's web server with a database on a network of their own, deployed by somebody else with two parameters.
async fn recipe(grid: &Grid, node: &mut croft_qemu_harness::Machine) {
    let source = format!("{}:shop", croft_it::oci::shop_layout(&cache()).unwrap().display());
    grid.croft(["image", "build", &source, "--name", "shop"]).await.unwrap();
    grid.croft(["bot", "new", "eve", "--grains", "1000"]).await.unwrap();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/shop/recipe.toml");
    grid.croft(["--bot", "eve", "recipe", "publish", file]).await.unwrap();
    let port = format!("published={}", grid.web_port());
    let values = ["--set", "greeting=good day", "--set", &port, "--detach"];
    let deploy = ["--bot", "alice", "recipe", "deploy", "eve/shop", "--yes", "--name", "corner"];
    grid.croft(deploy.iter().chain(&values)).await.unwrap();
    let web = node.address(grid.web_port()).unwrap();
    let limit = Duration::from_secs(300);
    let first = croft_it::http::wait_for_ok(web, "/", limit).await.unwrap_or_else(|e| {
        panic!("the shop does not open: {e:#}\n{}", node.serial().tail());
    });
    let visitor =
        |body: &str| body.trim().strip_prefix("good day, visitor ").and_then(|n| n.parse::<u32>().ok());
    let count = visitor(&first.body).unwrap_or_else(|| panic!("another server answers: {}", first.body));
    let second = croft_it::http::get(web, "/").await.unwrap();
    // Some of the questions of before may have been answered meanwhile.
    assert!(visitor(&second.body) > Some(count), "the database counts: {}", second.body);
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

/// What `farm nodes` says of the farm's only node.
async fn only_node(grid: &Grid) -> serde_json::Value {
    let nodes = grid.json(["--bot", "farmer", "farm", "nodes"]).await.unwrap();
    let nodes = nodes["nodes"].as_array().unwrap().clone();
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    nodes.into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_tpm_is_sealed_and_is_the_same_node_after_its_disk_died() {
    let _alone = one_machine().await;
    let (_, image) = images().unwrap().remove(0);
    let dir = tempfile::tempdir().unwrap();
    // Replicas vouch over QUIC; swtpm has no maker's certificate.
    let mut grid = Grid::start_with(dir.path(), 1, &["--tpm", "activated"]).await.unwrap();
    grid.farm().await.unwrap();
    let boot_config = grid.boot_config().unwrap();
    let boot = grid.node(&image, &boot_config).unwrap().tpm(dir.path().join("tpm"));
    let limit = Duration::from_secs(180);
    let mut first = None;
    for _ in 0..2 {
        let mut machine = boot.clone().start().await.unwrap();
        let identity = machine.serial().wait_for("identity: ok", limit).await.unwrap();
        assert!(identity.text.contains("key in the TPM"), "{}", identity.text);
        let registered = scene::registered(&mut machine).await.unwrap();
        assert!(registered.contains("sealed ("), "{registered}");
        let node = only_node(&grid).await;
        assert_eq!(node["trust"], "sealed", "{node}");
        assert!(!node["trust_reasons"].as_array().unwrap().is_empty(), "{node}");
        assert_eq!(*first.get_or_insert(node["id"].clone()), node["id"], "it is the same node");
        machine.kill().await.unwrap();
        drop(machine);
        // The data disk dies; an empty one takes its place.
        std::fs::remove_dir_all(dir.path().join("node")).unwrap();
    }
    // Its disk in another machine: that one has a TPM of its own, and is no second holder of the key.
    let mut machine = boot.clone().start().await.unwrap();
    scene::registered(&mut machine).await.unwrap();
    machine.kill().await.unwrap();
    drop(machine);
    let mut other = boot.tpm(dir.path().join("another-tpm")).start().await.unwrap();
    let refused = other.serial().wait_for("identity: failed", limit).await.unwrap();
    assert!(refused.text.contains("put the disk back into its machine"), "{}", refused.text);
    other.kill().await.unwrap();
    assert_eq!(only_node(&grid).await["id"], first.unwrap());
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_boot_file_is_attested_and_an_altered_one_only_sealed() {
    let Some(boot_file) = std::env::var_os("CROFT_BOOT_FILE").map(PathBuf::from) else {
        eprintln!("skipped: CROFT_BOOT_FILE names no boot file ('cargo xtask image --boot-file' makes one)");
        return;
    };
    let _alone = one_machine().await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(&boot_file).unwrap();
    let more = ["--tpm", "activated", "--boot-file", boot_file.to_str().unwrap()];
    let mut grid = Grid::start_with(dir.path(), 1, &more).await.unwrap();
    grid.farm().await.unwrap();
    // Bytes that nobody reads change the digest, and nothing else.
    let altered = dir.path().join("altered.efi");
    std::fs::write(&altered, [bytes.as_slice(), &[0; 512]].concat()).unwrap();
    for (file, expected) in [(&boot_file, "attested"), (&altered, "sealed")] {
        let boot = grid.medium(file, false).await.unwrap().tpm(dir.path().join("tpm"));
        let mut machine = boot.start().await.unwrap();
        let registered = scene::registered(&mut machine).await.unwrap();
        assert!(registered.contains(expected), "{registered}");
        let node = only_node(&grid).await;
        assert_eq!(node["trust"], expected, "{node}");
        if expected == "sealed" {
            assert!(
                node["trust_reasons"][0].as_str().unwrap().contains("boot an unmodified release"),
                "{node}"
            );
        }
        machine.kill().await.unwrap();
    }
    grid.stop().await.unwrap();
}

/// A grid whose release keys are one, made here.
async fn release_key(grid: &Grid) -> String {
    let path = |name: &str| grid.dir().join(name).to_str().unwrap().to_owned();
    let (key, change) = (path("release.key"), path("release-keys.json"));
    let made = grid.json(["release", "keys", "new", &key]).await.unwrap();
    let public = made["key"].as_str().unwrap();
    let propose = ["release", "keys", "propose", "--key", public, "--threshold", "1", "--out", &change];
    grid.croft(propose).await.unwrap();
    let validator = path("home/grids/demo/ledger/validator.key");
    grid.croft(["release", "sign", &change, "--key", &validator]).await.unwrap();
    grid.croft(["--bot", "farmer", "release", "publish", &change]).await.unwrap();
    key
}

/// Publishes a boot file; one return stops it.
async fn publish(grid: &Grid, key: &str, boot_file: &std::path::Path, version: &str) {
    let out = grid.dir().join(format!("{version}.json")).to_str().unwrap().to_owned();
    let boot_file = boot_file.to_str().unwrap();
    let what = ["--channel", "stable", "--version", version, "--stop-returns", "1", "--out", &out];
    let prepare = ["release", "prepare", "--boot-file", boot_file].into_iter().chain(what);
    grid.croft(prepare).await.unwrap();
    grid.croft(["release", "sign", &out, "--key", key]).await.unwrap();
    grid.croft(["--bot", "farmer", "release", "publish", &out, "--boot-file", boot_file]).await.unwrap();
}

/// Boot files of three versions: 0.1.0; 0.2.0 that is good; 0.3.0 whose kernel finds no init. `cargo xtask image
/// --boot-file --release VERSION --out DIR` makes them, the last with `--append rdinit=/nothing`.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_keeps_a_good_release_and_returns_from_a_broken_one_which_then_stops() {
    let files = ["CROFT_BOOT_FILE", "CROFT_NEXT_BOOT_FILE", "CROFT_BROKEN_BOOT_FILE"];
    let files = files.map(|name| std::env::var_os(name).map(PathBuf::from));
    let [Some(first), Some(next), Some(broken)] = files else {
        eprintln!(
            "skipped: CROFT_BOOT_FILE, CROFT_NEXT_BOOT_FILE and CROFT_BROKEN_BOOT_FILE name no boot files"
        );
        return;
    };
    let _alone = one_machine().await;
    let dir = tempfile::tempdir().unwrap();
    let mut grid = Grid::start(dir.path(), 1).await.unwrap();
    grid.farm().await.unwrap();
    let key = release_key(&grid).await;
    grid.croft(["--bot", "farmer", "farm", "policy", "alpha", "--channel", "stable"]).await.unwrap();
    let mut node = grid.boot_medium(&first, false).await.unwrap();
    scene::registered(&mut node).await.unwrap();

    let limit = Duration::from_secs(600);
    publish(&grid, &key, &next, "0.2.0").await;
    node.serial().wait_for("booting a release on trial", limit).await.unwrap();
    node.serial().wait_for("this release is on trial", limit).await.unwrap();
    node.serial().wait_for("the release is confirmed", limit).await.unwrap();
    node.serial().wait_for("the ledger knows the outcome", limit).await.unwrap();
    let nodes = grid.json(["--bot", "farmer", "farm", "nodes"]).await.unwrap();
    assert_eq!(nodes["nodes"][0]["release"], "0.2.0", "{nodes}");
    let shown = grid.json(["release", "show", "stable", "0.2.0"]).await.unwrap();
    assert_eq!((&shown["trials"]["confirmed"], &shown["state"]), (&1.into(), &"published".into()), "{shown}");

    publish(&grid, &key, &broken, "0.3.0").await;
    node.serial().wait_for("booting a release on trial", limit).await.unwrap();
    // The kernel panics and restarts; firmware boots 0.1.0, which goes on with what was confirmed.
    node.serial().wait_for("Kernel panic", limit).await.unwrap();
    node.serial().wait_for("going on with the release that was confirmed here", limit).await.unwrap();
    scene::registered(&mut node).await.unwrap();
    node.serial().wait_for("the ledger knows the outcome", limit).await.unwrap();
    let shown = grid.json(["release", "show", "stable", "0.3.0"]).await.unwrap();
    assert_eq!(shown["state"]["halted"]["returns"]["trials"]["returned"], 1, "{shown}");
    let nodes = grid.json(["--bot", "farmer", "farm", "nodes"]).await.unwrap();
    assert_eq!(nodes["nodes"][0]["release"], "0.2.0", "{nodes}");
    let listed = grid.json(["release", "list", "stable"]).await.unwrap();
    assert_eq!(listed["offered"], "0.2.0", "{listed}");
    node.kill().await.unwrap();
    grid.stop().await.unwrap();
}
