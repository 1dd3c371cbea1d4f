//! `cargo xtask bench`: the rows of the budget table that exist now, measured in one run, as ratios where machines
//! differ. Prints a table with budget and verdict, writes JSON, and exits 1 when a budget is missed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use croft_it::grid::images;
use croft_it::http;
use croft_it::report::{self, Limit, Report, Row};
use croft_it::scene::Scene;

const USAGE: &str = "usage: cargo xtask bench [boot|deploy] [--vmm cloud-hypervisor|alioth]";

#[tokio::main]
async fn main() -> ExitCode {
    report::exit_code(&run().await)
}

async fn run() -> Result<bool> {
    let (mut boot, mut deploy, mut vmm) = (false, false, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "boot" => boot = true,
            "deploy" => deploy = true,
            "--vmm" => vmm = Some(arguments.next().context(USAGE)?),
            other => bail!("unknown argument '{other}'\n{USAGE}"),
        }
    }
    if !boot && !deploy {
        (boot, deploy) = (true, true);
    }
    let mut images = images()?;
    if let Some(wanted) = &vmm {
        images.retain(|(name, _)| name == wanted);
    }
    let (vmm, image) =
        images.into_iter().next().context("no image with that VMM: run 'cargo xtask image'")?;
    let dir = tempfile::tempdir()?;
    let mut say = |text: &str| eprintln!("bench: {text}");
    let mut scene = Scene::begin(dir.path(), &image, 1, &mut say).await?;
    let mut report = Report::default();
    report.circumstance("monitor", vmm.as_str());
    if boot {
        report.part("boot", boot_rows(&mut scene, &image).await);
    }
    if deploy {
        report.part("deploy", deploy_rows(&mut scene).await);
    }
    for row in script_rows() {
        report.add(row);
    }
    let Scene { grid, mut node, .. } = scene;
    node.kill().await?;
    grid.stop().await?;
    let name = if boot && deploy {
        "all"
    } else if boot {
        "boot"
    } else {
        "deploy"
    };
    report.finish(&format!("{name}-{vmm}"))
}

/// Size, boot time and idle memory of the node.
async fn boot_rows(scene: &mut Scene, image: &Path) -> Result<Vec<Row>> {
    let bytes = |name: &str| Ok::<_, anyhow::Error>(std::fs::metadata(image.join(name))?.len());
    let size = (bytes("bzImage")? + bytes("initramfs.zst")?) as f64 / 1e6;
    scene.node.serial().wait_for("idle memory:", Duration::from_secs(120)).await?;
    let lines = scene.node.serial().lines();
    let line = |needle: &str| {
        lines.iter().find(|l| l.text.contains(needle)).with_context(|| format!("no line with '{needle}'"))
    };
    let mounts = &line("mounts: ok in")?.text;
    let first_instruction = kernel_seconds(mounts)? - number_after(mounts, "ok in ")? / 1000.0;
    let registered = kernel_seconds(&line("register: ok")?.text)?;
    let memory = &line("idle memory:")?.text;
    // A kernel that can't tell must not look like a node that takes nothing.
    ensure!(number_after(memory, "idle memory: ")? > 0.0, "the node can't measure its processes: {memory}");
    let resident =
        (number_after(memory, "idle memory: ")? + number_after(memory, "in processes, ")?) / 1024.0;
    let mut rows = vec![
        Row::new("boot file", size, "MB")
            .limit(Limit::AtMost { budget: 32.0, goal: 24.0 })
            .note(parts(image)?),
        Row::new(
            "kernel start to registered / to first user instruction",
            registered / first_instruction,
            "x",
        )
        .limit(Limit::AtMost { budget: 2.0, goal: 1.5 }),
        Row::new("resident memory of the idle node", resident, "MiB")
            .limit(Limit::AtMost { budget: 96.0, goal: 64.0 }),
    ];
    let texts: Vec<String> = lines.iter().map(|line| line.text.clone()).collect();
    rows.extend(stage_rows(&texts, first_instruction)?);
    Ok(rows)
}

/// The parts of the boot file, the largest first.
fn parts(image: &Path) -> Result<String> {
    let path = image.join("sizes.json");
    let read = std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
    let sizes: serde_json::Value = serde_json::from_slice(&read)?;
    let parts = sizes["parts"].as_array().with_context(|| format!("{} names no parts", path.display()))?;
    let parts = parts.iter().map(|part| {
        let bytes = part["compressed_bytes"].as_u64().unwrap_or_default();
        format!("{} {:.2}", part["part"].as_str().unwrap_or("?"), bytes as f64 / 1e6)
    });
    Ok(parts.collect::<Vec<_>>().join(", "))
}

/// A second deployment, with the image on the node already.
async fn deploy_rows(scene: &mut Scene) -> Result<Vec<Row>> {
    let cache =
        std::env::var_os("CROFT_DEMO_CACHE").map_or_else(|| scene.grid.dir().to_owned(), PathBuf::from);
    let mut say = |text: &str| eprintln!("bench: {text}");
    scene.deploy(&cache, &mut say).await?;
    scene.stop(&mut say).await?;
    scene.node.serial().skip_to_end();
    let file = scene.grid.dir().join("web.toml");
    let file = file.to_str().context("a path in UTF-8")?.to_owned();
    scene.grid.croft(["--bot", "alice", "deploy", &file, "--yes", "--detach"]).await?;
    let r#final = Instant::now();
    http::wait_for_ok(scene.web(), "/", Duration::from_secs(300)).await?;
    let reply_ms = r#final.elapsed().as_millis() as f64;
    let runs = scene.node.serial().wait_for("microVM web runs:", Duration::from_secs(60)).await?.text;
    let bare_ms = number_after(&runs, "started ")?;
    let beside = number_after(&runs, "started ").and_then(|_| {
        let tail = runs.rsplit("ms, ").next().unwrap_or_default();
        tail.split(' ').next().and_then(|n| n.parse::<f64>().ok()).context("no memory in the line")
    })?;
    ensure!(beside > 0.0, "the node can't measure its monitors: {runs}");
    Ok(vec![
        Row::new("contract final to first reply / VMM start to entry point", reply_ms / bare_ms, "x")
            .limit(Limit::AtMost { budget: 1.5, goal: 1.2 }),
        Row::new("host memory per microVM beyond the guest's", beside / 1024.0, "MiB")
            .limit(Limit::AtMost { budget: 24.0, goal: 12.0 }),
    ])
}

/// What the scripts wrote of their last runs.
fn script_rows() -> Vec<Row> {
    let Some(cache) = std::env::var_os("CROFT_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/croft")))
    else {
        return Vec::new();
    };
    let seconds =
        |name: &str| std::fs::read_to_string(cache.join("log").join(name)).ok()?.trim().parse().ok();
    let mut rows = Vec::new();
    if let Some(measured) = seconds("demo.seconds") {
        rows.push(
            Row::new("scripts/demo, last run", measured, "s")
                .limit(Limit::AtMost { budget: 90.0, goal: 90.0 }),
        );
    }
    if let Some(measured) = seconds("ci.seconds") {
        rows.push(
            Row::new(".ci/run, last run", measured, "s")
                .limit(Limit::AtMost { budget: 3600.0, goal: 1200.0 }),
        );
    }
    rows
}

/// The kernel's own clock at the start of a line: seconds since the kernel started.
fn kernel_seconds(line: &str) -> Result<f64> {
    let inside = line.split_once('[').and_then(|(_, rest)| rest.split_once(']')).context("no kernel time")?.0;
    Ok(inside.trim().parse()?)
}

fn number_after(line: &str, marker: &str) -> Result<f64> {
    let rest = line.split_once(marker).with_context(|| format!("no '{marker}' in '{line}'"))?.1;
    let digits: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    digits.parse().with_context(|| format!("no number after '{marker}'"))
}

/// What each stage of the boot took, against the bare kernel's start to the first instruction of init.
fn stage_rows(lines: &[String], bare_s: f64) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for text in lines.iter().filter(|text| text.contains(": ok in ")) {
        let Some((_, stage)) = text.split_once("croft: stage ") else { continue };
        let name = stage.split_once(": ").map_or(stage, |(name, _)| name);
        let took_ms = number_after(text, ": ok in ")?;
        rows.push(
            Row::new(format!("stage {name} / bare kernel boot"), took_ms / 1000.0 / bare_s, "x")
                .note(format!("{took_ms:.0} ms")),
        );
    }
    ensure!(!rows.is_empty(), "the boot told of no stage");
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_are_read_from_lines() {
        let line = "[    1.250000] croft: stage 1/11 mounts: ok in 50 ms";
        assert!((kernel_seconds(line).unwrap() - 1.25).abs() < 1e-9);
        assert!((number_after(line, "ok in ").unwrap() - 50.0).abs() < 1e-9);
        assert!(number_after(line, "missing ").is_err());
    }

    #[test]
    fn each_stage_is_held_against_the_bare_kernel() {
        let line = |text: &str| text.to_owned();
        let lines = [
            line("[    1.250000] croft: stage 1/11 mounts: ok in 50 ms"),
            line("[    1.300000] croft: stage 5/11 network: waiting: no carrier on eth0"),
            line("[    2.300000] croft: stage 5/11 network: ok in 900 ms: 10.0.2.15"),
        ];
        let mut report = Report::default();
        report.part("stages", stage_rows(&lines, 1.2));
        let table = report.table();
        assert!(report.holds(), "{table}");
        assert!(table.contains("stage 1/11 mounts / bare kernel boot") && table.contains("0.042"), "{table}");
        assert!(table.contains("0.750") && table.contains("900 ms"), "{table}");
        assert_eq!(stage_rows(&[], 1.2).unwrap_err().to_string(), "the boot told of no stage");
    }
}
