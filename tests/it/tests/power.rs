//! Power that goes away where it hurts: at each stage of a boot, and at each step of an upgrade. What comes back must be
//! the same node, registered, with nobody's help.
//!
//! They take minutes, so they run with `CROFT_BOOT_MATRIX=full` alone.

use std::time::Duration;

use croft_it::grid::{Grid, images};
use croft_it::scene::{self, Scene};
use croft_it::{matrix, oci, releases};
use croft_qemu_harness::Machine;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(900);

/// What `farm nodes` says of the farm's only node.
async fn only_node(grid: &Grid) -> Value {
    let nodes = grid.json(["--bot", "farmer", "farm", "nodes"]).await.unwrap();
    let nodes = nodes["nodes"].as_array().unwrap().clone();
    assert_eq!(nodes.len(), 1, "one machine is one node, however often it starts: {nodes:?}");
    nodes.into_iter().next().unwrap()
}

/// Cuts the power as soon as the machine says this.
async fn cut_at(mut machine: Machine, text: &str) {
    let said = machine.serial().wait_for(text, LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
    eprintln!("cut at: {}", said.text);
    machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_power_is_cut_at_each_stage_comes_back_as_one_and_the_same_node() {
    if !matrix::is_full() {
        return;
    }
    let (_, image) = images().unwrap().remove(0);
    let dir = tempfile::tempdir().unwrap();
    let mut grid = Grid::start(dir.path(), 1).await.unwrap();
    grid.farm().await.unwrap();
    for stage in 1..=11 {
        cut_at(grid.boot_node(&image).await.unwrap(), &format!("croft: stage {stage}/11 ")).await;
    }
    let mut machine = grid.boot_node(&image).await.unwrap();
    scene::registered(&mut machine).await.unwrap();
    let id = only_node(&grid).await["id"].clone();
    machine.kill().await.unwrap();
    drop(machine);
    let mut machine = grid.boot_node(&image).await.unwrap();
    scene::registered(&mut machine).await.unwrap();
    assert_eq!(only_node(&grid).await["id"], id);
    machine.kill().await.unwrap();
    grid.stop().await.unwrap();
}

/// A copied disk: two machines with one key and one contract. Whoever registered last runs it, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_machines_with_one_key_the_older_stops_its_workloads() {
    if !matrix::is_full() {
        return;
    }
    let (_, image) = images().unwrap().remove(0);
    let dir = tempfile::tempdir().unwrap();
    let mut say = |text: &str| eprintln!("{text}");
    let mut scene = Scene::begin(dir.path(), &image, 1, &mut say).await.unwrap();
    scene.deploy(&oci::cache(), &mut say).await.unwrap();
    let Scene { grid, mut node, .. } = scene;
    node.kill().await.unwrap();
    drop(node);
    let mut copy = std::process::Command::new("cp");
    copy.args(["-a", "--sparse=always"]).arg(dir.path().join("node")).arg(dir.path().join("copy"));
    assert!(copy.status().unwrap().success());
    let mut first = grid.boot_node(&image).await.unwrap();
    scene::registered(&mut first).await.unwrap();
    first.serial().wait_for("workload web: Running", LIMIT).await.unwrap();
    let copy = grid.machine("copy", &image, &grid.boot_config().unwrap()).unwrap();
    let mut copy = copy.start().await.unwrap();
    scene::registered(&mut copy).await.unwrap();
    let told = first.serial().wait_for("another machine runs with this node's key", LIMIT).await.unwrap();
    assert!(told.text.contains("is newer than"), "{}", told.text);
    first.serial().wait_for("workload web: stopped", LIMIT).await.unwrap();
    copy.serial().wait_for("workload web: Running", LIMIT).await.unwrap();
    only_node(&grid).await;
    first.kill().await.unwrap();
    copy.kill().await.unwrap();
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_starts_before_its_ledger_registers_when_the_ledger_comes() {
    if !matrix::is_full() {
        return;
    }
    let (_, image) = images().unwrap().remove(0);
    let dir = tempfile::tempdir().unwrap();
    let mut grid = Grid::start(dir.path(), 1).await.unwrap();
    grid.farm().await.unwrap();
    grid.stop_ledger().await.unwrap();
    let mut machine = grid.boot_node(&image).await.unwrap();
    let waits = machine.serial().wait_for("stage 9/11 ledger: waiting", LIMIT).await.unwrap();
    assert!(waits.text.contains("10.0.2.2"), "it names whom it can't reach: {}", waits.text);
    grid.start_ledger().await.unwrap();
    scene::registered(&mut machine).await.unwrap();
    only_node(&grid).await;
    machine.kill().await.unwrap();
    grid.stop().await.unwrap();
}

/// Before the trial a cut only costs time; during the trial it counts as a return, and the release that ran before goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_whose_power_is_cut_at_each_step_ends_in_a_release_that_works() {
    let files = matrix::boot_files(["CROFT_BOOT_FILE", "CROFT_NEXT_BOOT_FILE"]);
    let Some([first, next]) = files else { return };
    if !matrix::is_full() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut grid = Grid::start(dir.path(), 1).await.unwrap();
    grid.farm().await.unwrap();
    let key = releases::key(&grid).await.unwrap();
    grid.croft(["--bot", "farmer", "farm", "policy", "alpha", "--channel", "stable"]).await.unwrap();
    releases::publish(&grid, &key, &next, "0.2.0").await.unwrap();
    for step in ["fetching a release", "the release is here", "booting a release on trial"] {
        cut_at(grid.boot_medium(&first, false).await.unwrap(), step).await;
    }
    // Whatever the last cut came to, the machine is well, and the ledger hears how it went.
    let mut machine = grid.boot_medium(&first, false).await.unwrap();
    scene::registered(&mut machine).await.unwrap();
    machine.serial().wait_for("the ledger knows the outcome", LIMIT).await.unwrap();
    let shown = grid.json(["release", "show", "stable", "0.2.0"]).await.unwrap();
    let (confirmed, returned) = (&shown["trials"]["confirmed"], &shown["trials"]["returned"]);
    let ran = only_node(&grid).await["release"].clone();
    match ran.as_str() {
        Some("0.2.0") => assert_eq!(confirmed, 1, "{shown}"),
        _ => assert!(shown.to_string().contains("\"returned\":1") && confirmed != 1, "{returned}: {shown}"),
    }
    machine.kill().await.unwrap();
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_during_a_trial_returns_to_the_release_of_before() {
    let files = matrix::boot_files(["CROFT_BOOT_FILE", "CROFT_NEXT_BOOT_FILE"]);
    let Some([first, next]) = files else { return };
    if !matrix::is_full() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut grid = Grid::start(dir.path(), 1).await.unwrap();
    grid.farm().await.unwrap();
    let key = releases::key(&grid).await.unwrap();
    grid.croft(["--bot", "farmer", "farm", "policy", "alpha", "--channel", "stable"]).await.unwrap();
    releases::publish(&grid, &key, &next, "0.2.0").await.unwrap();
    cut_at(grid.boot_medium(&first, false).await.unwrap(), "this release is on trial").await;
    let mut machine = grid.boot_medium(&first, false).await.unwrap();
    scene::registered(&mut machine).await.unwrap();
    machine.serial().wait_for("the ledger knows the outcome", LIMIT).await.unwrap();
    let shown = grid.json(["release", "show", "stable", "0.2.0"]).await.unwrap();
    assert_eq!(shown["state"]["halted"]["returns"]["trials"]["returned"], 1, "{shown}");
    assert_ne!(only_node(&grid).await["release"], "0.2.0");
    machine.kill().await.unwrap();
    grid.stop().await.unwrap();
}
