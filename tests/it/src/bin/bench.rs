//! `cargo xtask bench`: the rows of the budget table that exist now, measured in one run, as ratios where machines
//! differ. Prints a table with budget and verdict, writes JSON, and exits 1 when a budget is missed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use croft_it::grid::images;
use croft_it::http;
use croft_it::scene::Scene;
use serde_json::json;

const USAGE: &str = "usage: cargo xtask bench [boot|deploy] [--vmm cloud-hypervisor|alioth]";

/// One measured row.
struct Row {
    what: &'static str,
    measured: f64,
    unit: &'static str,
    budget: f64,
    goal: f64,
}

impl Row {
    fn verdict(&self) -> &'static str {
        if self.measured > self.budget {
            "MISSED"
        } else if self.measured > self.goal {
            "within budget"
        } else {
            "goal reached"
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench failed: {error:#}");
            ExitCode::FAILURE
        }
    }
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
    let mut rows = Vec::new();
    if boot {
        rows.extend(boot_rows(&mut scene, &image).await?);
    }
    if deploy {
        rows.extend(deploy_rows(&mut scene).await?);
    }
    rows.extend(script_rows());
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
    report(name, &vmm, &rows)
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
    Ok(vec![
        Row { what: "boot file", measured: size, unit: "MB", budget: 32.0, goal: 24.0 },
        Row {
            what: "kernel start to registered / to first user instruction",
            measured: registered / first_instruction,
            unit: "x",
            budget: 2.0,
            goal: 1.5,
        },
        Row {
            what: "resident memory of the idle node",
            measured: resident,
            unit: "MiB",
            budget: 96.0,
            goal: 64.0,
        },
    ])
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
    scene.grid.croft(["--bot", "alice", "deploy", &file, "--detach"]).await?;
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
        Row {
            what: "contract final to first reply / VMM start to entry point",
            measured: reply_ms / bare_ms,
            unit: "x",
            budget: 1.5,
            goal: 1.2,
        },
        Row {
            what: "host memory per microVM beyond the guest's",
            measured: beside / 1024.0,
            unit: "MiB",
            budget: 24.0,
            goal: 12.0,
        },
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
        rows.push(Row { what: "scripts/demo, last run", measured, unit: "s", budget: 90.0, goal: 90.0 });
    }
    if let Some(measured) = seconds("ci.seconds") {
        rows.push(Row { what: ".ci/run, last run", measured, unit: "s", budget: 3600.0, goal: 1200.0 });
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

fn report(name: &str, vmm: &str, rows: &[Row]) -> Result<bool> {
    println!(
        "\n{:<58} {:>10}      {:>8} {:>8}  verdict",
        format!("with {vmm}"),
        "measured",
        "budget",
        "goal"
    );
    for row in rows {
        println!(
            "{:<58} {:>10.2} {:<4} {:>8} {:>8}  {}",
            row.what,
            row.measured,
            row.unit,
            row.budget,
            row.goal,
            row.verdict()
        );
    }
    let json = json!({
        "bench": name,
        "vmm": vmm,
        "rows": rows.iter().map(|row| json!({
            "what": row.what, "measured": row.measured, "unit": row.unit, "budget": row.budget, "goal": row.goal,
            "verdict": row.verdict(),
        })).collect::<Vec<_>>(),
    });
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{name}-{vmm}.json"));
    std::fs::write(&path, serde_json::to_vec_pretty(&json)?)?;
    eprintln!("bench: written to {}", path.canonicalize()?.display());
    Ok(rows.iter().all(|row| row.measured <= row.budget))
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
    fn a_missed_budget_is_named_so() {
        let row = |measured| Row { what: "x", measured, unit: "s", budget: 2.0, goal: 1.0 };
        assert_eq!(
            [row(0.5).verdict(), row(1.5).verdict(), row(2.5).verdict()],
            ["goal reached", "within budget", "MISSED"]
        );
    }
}
