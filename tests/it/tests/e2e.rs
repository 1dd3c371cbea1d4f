//! End to end: the real image in QEMU, a real grid beside it, nginx from the distribution as the workload. Each test
//! says which monitor it runs with. One machine at a time: emulation takes every core that there is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_it::grid::{Grid, images};
use croft_it::scan;
use croft_it::scene::{self, Scene};
use croft_it::{matrix, oci, releases};
use croft_qemu_harness::{Boot, SecureBoot, Wire};
use tokio::sync::{Mutex, MutexGuard};

static ONE_MACHINE: Mutex<()> = Mutex::const_new(());

async fn one_machine() -> MutexGuard<'static, ()> {
    ONE_MACHINE.lock().await
}

fn say(text: &str) {
    eprintln!("{text}");
}

/// The whole life of a workload, with one image.
async fn lifecycle(vmm: &str, image: PathBuf) {
    eprintln!("== lifecycle with {vmm}");
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::begin(dir.path(), &image, 1, &mut say).await.unwrap();
    scene.deploy(&oci::cache(), &mut say).await.unwrap();

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
    let (mut wire, boot) = wired(&grid, &image).await;
    let mut node = boot.start().await.unwrap();
    scene::registered(&mut node).await.unwrap();
    grid.croft(["bot", "new", "alice", "--grains", "1000000000"]).await.unwrap();
    let layout = oci::nginx_layout(&oci::cache()).unwrap();
    let source = format!("{}:{}", layout.display(), oci::TAG);
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
    closed_but_for_what_is_published(&grid, &mut node, &mut wire).await;
    confined_and_discreet(&grid, &node);
    node.kill().await.unwrap();
    grid.stop().await.unwrap();
}

/// The farm's node with one more card, on which it can be scanned, and with its whole kernel log on the serial line.
async fn wired(grid: &Grid, image: &Path) -> (scan::Wire, Boot) {
    let wire = scan::Wire::new().await.unwrap();
    let (there, here) = wire.ends().unwrap();
    let config = grid.boot_config().unwrap() + scan::LINK;
    let boot = grid.node(image, &config).unwrap().kernel_argument("ignore_loglevel");
    (wire, boot.wire(Wire { mac: scan::MAC.to_owned(), there, here }))
}

/// Of all ports that there are, only the one that a contract publishes takes a connection, and no datagram is answered.
async fn closed_but_for_what_is_published(
    grid: &Grid,
    node: &mut croft_qemu_harness::Machine,
    wire: &mut scan::Wire,
) {
    let expected = BTreeSet::from([grid.web_port()]);
    let open = wire.open_tcp_ports(&expected).await.unwrap_or_else(|error| {
        panic!("{error:#}\n{}", node.serial().tail());
    });
    assert_eq!(open, expected, "open TCP ports");
    assert_eq!(wire.answering_udp_ports().await.unwrap(), BTreeSet::new(), "UDP ports that answer");
}

/// What node may do is what init leaves it, nothing that it needed was refused, and what must stay secret stands nowhere
/// on the serial line, which has the whole kernel log.
fn confined_and_discreet(grid: &Grid, node: &croft_qemu_harness::Machine) {
    let said = std::fs::read_to_string(node.state().join("serial.log")).unwrap();
    let line = said.lines().find(|line| line.contains("node runs with")).expect("node says what it may do");
    assert!(line.ends_with("14 capabilities, no new privileges, 2 system call filters"), "{line}");
    let refused: Vec<&str> = said.lines().filter(|line| line.contains("croft: refused ")).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    assert!(said.contains("Kernel command line:"), "the log begins with the kernel's own words");

    let config = grid.boot_config().unwrap();
    let join =
        config.lines().find_map(|line| line.strip_prefix("join = \"")).expect("the permission to join");
    let join = join.trim_end_matches('"');
    let mut secrets = vec![("the permission to join".to_owned(), join.to_owned())];
    // Half of its signature would not do, but must not be there either.
    let signature = &join.as_bytes()[join.len() - 128..];
    secrets.extend(signature.chunks_exact(32).map(|part| {
        ("a part of the permission to join".to_owned(), String::from_utf8_lossy(part).into_owned())
    }));
    for path in key_files(&grid.dir().join("home")) {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        secrets.extend(
            text.split_whitespace()
                .filter(|word| word.len() >= 32)
                .map(|word| (path.display().to_string(), word.trim_matches(['"', ',']).to_owned())),
        );
    }
    assert!(secrets.len() > 3, "there are keys of bots to look for: {secrets:?}");
    for (what, secret) in secrets {
        assert!(!said.contains(&secret), "{what} is on the serial line");
    }
}

/// Files with secret keys below a folder.
fn key_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(key_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "key") {
            found.push(path);
        }
    }
    found
}

/// An expert's web server with a database on a network of their own, deployed by somebody else with two parameters.
async fn recipe(grid: &Grid, node: &mut croft_qemu_harness::Machine) {
    let source = format!("{}:shop", oci::shop_layout(&oci::cache()).unwrap().display());
    grid.croft(["image", "build", &source, "--name", "shop"]).await.unwrap();
    grid.croft(["bot", "new", "eve", "--grains", "1000"]).await.unwrap();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/shop/recipe.toml");
    grid.croft(["--bot", "eve", "recipe", "publish", file]).await.unwrap();
    let port = format!("published={}", grid.web_port());
    let values = ["--set", "greeting=good day", "--set", &port, "--detach"];
    let deploy = ["--bot", "alice", "recipe", "deploy", "eve/shop", "--yes", "--name", "corner"];
    grid.croft(deploy.iter().chain(&values)).await.unwrap();
    let web = node.address(grid.web_port()).unwrap();
    let limit = Duration::from_secs(900);
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
    let Some([boot_file]) = matrix::boot_files(["CROFT_BOOT_FILE"]) else { return };
    if !matrix::is_full() {
        return;
    }
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
    let Some([boot_file]) = matrix::boot_files(["CROFT_BOOT_FILE"]) else { return };
    if !matrix::is_full() {
        return;
    }
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
        let verified = verified(&grid).await;
        assert_eq!((&verified["holds"], &verified["class"]), (&true.into(), &expected.into()), "{verified}");
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

/// Boot files of three versions: 0.1.0; 0.2.0 that is good; 0.3.0 whose kernel finds no init. `cargo xtask image
/// --boot-file --release VERSION --out DIR` makes them, the last with `--append rdinit=/nothing`.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_keeps_a_good_release_and_returns_from_a_broken_one_which_then_stops() {
    let files = matrix::boot_files(["CROFT_BOOT_FILE", "CROFT_NEXT_BOOT_FILE", "CROFT_BROKEN_BOOT_FILE"]);
    let Some([first, next, broken]) = files else { return };
    let _alone = one_machine().await;
    let dir = tempfile::tempdir().unwrap();
    let mut grid = Grid::start(dir.path(), 1).await.unwrap();
    grid.farm().await.unwrap();
    let key = releases::key(&grid).await.unwrap();
    grid.croft(["--bot", "farmer", "farm", "policy", "alpha", "--channel", "stable"]).await.unwrap();
    let mut node = grid.boot_medium(&first, false).await.unwrap();
    scene::registered(&mut node).await.unwrap();
    let mut scene = Scene::with(grid, node).unwrap();
    scene.deploy(&oci::cache(), &mut say).await.unwrap();
    let web = scene.web();
    let Scene { grid, mut node, .. } = scene;

    let limit = Duration::from_secs(600);
    let watch = croft_it::http::Watch::start(web, "/");
    releases::publish(&grid, &key, &next, "0.2.0").await.unwrap();
    node.serial().wait_for("booting a release on trial", limit).await.unwrap();
    node.serial().wait_for("this release is on trial", limit).await.unwrap();
    node.serial().wait_for("the release is confirmed", limit).await.unwrap();
    node.serial().wait_for("the ledger knows the outcome", limit).await.unwrap();
    let nodes = grid.json(["--bot", "farmer", "farm", "nodes"]).await.unwrap();
    assert_eq!(nodes["nodes"][0]["release"], "0.2.0", "{nodes}");
    let shown = grid.json(["release", "show", "stable", "0.2.0"]).await.unwrap();
    assert_eq!((&shown["trials"]["confirmed"], &shown["state"]), (&1.into(), &"published".into()), "{shown}");
    // The workload came back from the record.
    croft_it::http::wait_for_ok(web, "/", limit).await.unwrap();
    let gap = watch.longest_gap();
    eprintln!("the workload did not answer for {:.1} s during the upgrade", gap.as_secs_f64());
    // Far more than what lies between two questions, and less than any kernel starts in.
    assert!(gap > Duration::from_secs(2), "it was another machine that started anew");

    releases::publish(&grid, &key, &broken, "0.3.0").await.unwrap();
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

/// Signed copies of boot files, and firmware's lists of the keys by which they are.
async fn signed(grid: &Grid, boot_files: &[&Path]) -> (SecureBoot, Vec<PathBuf>) {
    let path = |name: &str| grid.dir().join(name).to_str().unwrap().to_owned();
    let keys = path("keys");
    grid.croft(["media", "keys", &keys]).await.unwrap();
    let mut signed = Vec::new();
    for (number, file) in boot_files.iter().enumerate() {
        let out = path(&format!("signed-{number}.efi"));
        let file = file.to_str().unwrap();
        grid.croft(["media", "sign", file, "--keys", &keys, "--out", &out]).await.unwrap();
        signed.push(out.into());
    }
    let list = |name: &str| std::fs::read(Path::new(&keys).join("enrol").join(name)).unwrap();
    (SecureBoot { pk: list("PK.esl"), kek: list("KEK.esl"), db: list("db.esl") }, signed)
}

/// Authenticode SHA-256, as firmware measures it.
/// What a bot finds that weighs the only node's quote itself.
async fn verified(grid: &Grid) -> serde_json::Value {
    let node = only_node(grid).await;
    let name = format!("alpha/{}", node["node"].as_str().unwrap());
    grid.json(["--bot", "farmer", "farm", "verify", &name]).await.unwrap()
}

fn authenticode(file: &Path) -> String {
    let bytes = std::fs::read(file).unwrap();
    croft_protocol::Hash(croft_media::pe::Pe::parse(&bytes).unwrap().hash()).to_string()
}

/// The kernel locks itself down and takes only what a key of the firmware signed; the TPM is told what it takes, so that
/// `attested` speaks of the release that runs and not of the one on the medium.
#[tokio::test(flavor = "multi_thread")]
async fn under_secure_boot_a_signed_release_is_taken_and_attested_and_an_unsigned_one_is_refused() {
    let files = matrix::boot_files(["CROFT_BOOT_FILE", "CROFT_NEXT_BOOT_FILE"]);
    let Some([first, next]) = files else { return };
    let _alone = one_machine().await;
    let dir = tempfile::tempdir().unwrap();
    let known = authenticode(&first);
    // swtpm has no maker's certificate.
    let more = ["--tpm", "activated", "--boot-file", &known];
    let mut grid = Grid::start_with(dir.path(), 1, &more).await.unwrap();
    grid.farm().await.unwrap();
    let (keys, signed) = signed(&grid, &[&first, &next]).await;
    let key = releases::key(&grid).await.unwrap();
    grid.croft(["--bot", "farmer", "farm", "policy", "alpha", "--channel", "stable"]).await.unwrap();
    let boot = grid.medium(&signed[0], false).await.unwrap();
    let boot = boot.secure_boot(keys).tpm(dir.path().join("tpm"));
    let mut node = boot.start().await.unwrap();
    let limit = Duration::from_secs(600);
    let locked = "Kernel is locked down from EFI Secure Boot";
    node.serial().wait_for(locked, limit).await.unwrap();
    let registered = scene::registered(&mut node).await.unwrap();
    assert!(registered.contains("attested"), "{registered}");
    assert_eq!(only_node(&grid).await["boot_file"], known, "what firmware started");

    releases::publish(&grid, &key, &signed[1], "0.2.0").await.unwrap();
    node.serial().wait_for("booting a release on trial", limit).await.unwrap();
    node.serial().wait_for("the TPM knows what runs next", limit).await.unwrap();
    node.serial().wait_for(locked, limit).await.unwrap();
    node.serial().wait_for("this release is on trial", limit).await.unwrap();
    let registered = scene::registered(&mut node).await.unwrap();
    assert!(registered.contains("attested"), "{registered}");
    let after = only_node(&grid).await;
    assert_eq!((&after["release"], &after["trust"]), (&"0.2.0".into(), &"attested".into()), "{after}");
    assert_eq!(after["boot_file"], authenticode(&signed[1]), "what was started by kexec: {after}");
    let verified = verified(&grid).await;
    assert_eq!((&verified["holds"], &verified["class"]), (&true.into(), &"attested".into()), "{verified}");
    assert_eq!(verified["release"]["version"], "0.2.0", "{verified}");
    node.serial().wait_for("the release is confirmed", limit).await.unwrap();

    releases::publish(&grid, &key, &next, "0.3.0").await.unwrap();
    node.serial().wait_for("booting a release on trial", limit).await.unwrap();
    let refused = node.serial().wait_for("the upgrade does not go on", limit).await.unwrap();
    assert!(refused.text.contains("only what a key of the firmware signed"), "{}", refused.text);
    node.serial().wait_for("the ledger knows the outcome", limit).await.unwrap();
    let shown = grid.json(["release", "show", "stable", "0.3.0"]).await.unwrap();
    assert_eq!(shown["state"]["halted"]["returns"]["trials"]["returned"], 1, "{shown}");
    let after = only_node(&grid).await;
    assert_eq!((&after["release"], &after["trust"]), (&"0.2.0".into(), &"attested".into()), "{after}");
    node.kill().await.unwrap();
    grid.stop().await.unwrap();
}
