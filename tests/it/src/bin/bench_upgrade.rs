//! `cargo xtask bench upgrade`: how long a published workload is silent when its machine takes a release, beside a
//! restart through firmware. One machine in QEMU boots from a stick, with nginx as the workload.
//!
//! Both figures are of the same machine and run, so their ratio depends little on how fast it is emulated.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use croft_it::grid::Grid;
use croft_it::report::{self, Limit, Report, Row};
use croft_it::scene::{self, Scene};
use croft_it::{http, matrix, oci, releases};

/// For a step of the machine, emulated.
const LIMIT: Duration = Duration::from_secs(900);

#[tokio::main]
async fn main() -> ExitCode {
    report::exit_code(&report::until_told(run()).await)
}

async fn run() -> Result<bool> {
    let files = matrix::two_versions()?;
    let mut report = Report::default();
    for (version, path) in &files {
        report.circumstance(version, path.display().to_string());
    }
    let [(_, first), (version, next)] = files;
    report.part("upgrade", rows(&first, (version, &next)).await);
    report.finish("upgrade")
}

async fn rows(first: &Path, (version, next): (&str, &PathBuf)) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let mut say = |text: &str| eprintln!("bench: {text}");
    let mut grid = Grid::start(dir.path(), 1).await?;
    grid.farm().await?;
    let key = releases::key(&grid).await?;
    grid.croft(["--bot", "farmer", "farm", "policy", "alpha", "--channel", "stable"]).await?;
    say("booting from a stick");
    let medium = grid.medium(first, false).await?;
    let started = Instant::now();
    let mut node = medium.clone().start().await?;
    scene::registered(&mut node).await?;
    let booted = started.elapsed();
    let mut scene = Scene::with(grid, node)?;
    scene.deploy(&oci::cache(), &mut say).await?;
    let web = scene.web();
    let Scene { grid, mut node, .. } = scene;

    say("a restart through firmware, in order: power button, then power");
    let watch = http::Watch::start(web, "/");
    ensure!(node.powerdown(LIMIT).await?.is_clean(), "the machine did not end in order");
    let mut node = medium.start().await?;
    http::wait_for_ok(web, "/", LIMIT).await.with_context(|| node.serial().tail())?;
    let restart = watch.longest_gap();
    scene::registered(&mut node).await?;

    say("an upgrade");
    let watch = http::Watch::start(web, "/");
    let started = Instant::now();
    releases::publish(&grid, &key, next, version).await?;
    node.serial().wait_for("booting a release on trial", LIMIT).await?;
    let fetched = started.elapsed();
    node.serial().wait_for("the release is confirmed", LIMIT).await?;
    let confirmed = started.elapsed();
    http::wait_for_ok(web, "/", LIMIT).await.with_context(|| node.serial().tail())?;
    let upgrade = watch.longest_gap();
    node.kill().await?;
    grid.stop().await?;
    ensure!(upgrade > Duration::from_secs(1), "the workload never fell silent: nothing was upgraded");

    let bytes = std::fs::metadata(next)?.len() as f64;
    let what = "silence of a workload: upgrade by kexec / restart through firmware";
    Ok(vec![
        Row::new(what, upgrade.as_secs_f64() / restart.as_secs_f64(), "x")
            .limit(Limit::AtMost { budget: 1.0, goal: 0.8 })
            .note(format!("{:.1} s and {:.1} s", upgrade.as_secs_f64(), restart.as_secs_f64())),
        Row::new(
            "power-on through firmware to registered / silence of the restart",
            booted.as_secs_f64() / restart.as_secs_f64(),
            "x",
        )
        .note(format!("{:.1} s, from a stick", booted.as_secs_f64())),
        Row::new(
            "published to booting / silence of the upgrade",
            fetched.as_secs_f64() / upgrade.as_secs_f64(),
            "x",
        )
        .note(format!(
            "{:.1} s, in which the workload answers; {:.1} MB fetched",
            fetched.as_secs_f64(),
            bytes / 1e6
        )),
        Row::new(
            "published to confirmed / silence of the upgrade",
            confirmed.as_secs_f64() / upgrade.as_secs_f64(),
            "x",
        )
        .note(format!("{:.1} s; well for 20 s before it counts", confirmed.as_secs_f64())),
    ])
}
