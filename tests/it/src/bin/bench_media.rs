//! `cargo xtask bench media`: what media cost, made from the boot file that is built.
//!
//! Ratios of one run: making a medium against writing the same boot file durably, nothing else. It must never write to
//! a device, and never outside of its temporary folder and `target/bench`.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use croft_it::matrix;
use croft_it::report::{self, Report, Row, Times};
use croft_media::esp::Contents;
use croft_media::{iso, netboot, usb};

/// Each is measured so often; the median counts.
const ROUNDS: usize = 5;

fn main() -> ExitCode {
    report::exit_code(&run())
}

fn run() -> Result<bool> {
    report::only_in_release("cargo xtask bench media")?;
    let path = matrix::built_boot_file()?;
    let boot_file = std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
    let dir = tempfile::tempdir()?;
    let mut report = Report::default();
    report.circumstance("boot file", path.display().to_string());
    let rows = media_rows(&boot_file, dir.path());
    report.part("media", rows);
    report.finish("media")
}

fn media_rows(boot_file: &[u8], dir: &Path) -> Result<Vec<Row>> {
    let contents = Contents { boot_file, addition: None };
    let plain = median(|round| durable(&dir.join(format!("plain-{round}")), boot_file))?;
    let mut rows = vec![Row::new("boot file", boot_file.len() as f64 / 1e6, "MB")];
    let mut add = |what: &str, took: f64, bytes: u64| {
        let row = Row::new(format!("{what}: made and durable / boot file made durable"), took / plain, "x");
        rows.push(
            row.note(format!("{took:.0} ms over {plain:.0} ms; {:.2} MB on the disk", bytes as f64 / 1e6)),
        );
    };
    let path = |round: usize, name: &str| dir.join(format!("{round}-{name}"));
    let took = median(|round| {
        usb::write_file(&path(round, "usb.img"), &usb::image(&contents)?.bytes)?;
        sync(&path(round, "usb.img"))
    })?;
    add("USB image", took, on_disk(&path(0, "usb.img"))?);
    let took = median(|round| durable(&path(round, "croft.iso"), &iso::image(&contents)?))?;
    add("ISO", took, on_disk(&path(0, "croft.iso"))?);
    let took = median(|round| {
        netboot::write(&path(round, "netboot"), &contents)?;
        sync(&path(round, "netboot").join(netboot::BOOT_FILE))
    })?;
    let mut bytes = 0;
    for file in std::fs::read_dir(path(0, "netboot"))? {
        bytes += on_disk(&file?.path())?;
    }
    add("netboot folder", took, bytes);
    Ok(rows)
}

/// What a file takes on the disk; holes take nothing.
fn on_disk(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata(path).with_context(|| format!("can't look at {}", path.display()))?.blocks() * 512)
}

fn durable(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    Ok(file.sync_all()?)
}

fn sync(path: &Path) -> Result<()> {
    Ok(File::open(path)?.sync_all()?)
}

/// Of [`ROUNDS`] rounds, in milliseconds.
fn median(mut once: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut times: Vec<Duration> = Vec::new();
    for round in 0..ROUNDS {
        let started = Instant::now();
        once(round)?;
        times.push(started.elapsed());
    }
    Ok(Times::new(times).percentile_ms(50.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_medium_has_a_row_with_what_it_takes_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let boot_file = vec![7; 300_000];
        let mut report = Report::default();
        report.part("media", media_rows(&boot_file, dir.path()));
        let table = report.table();
        assert!(report.holds(), "{table}");
        for medium in ["USB image", "ISO", "netboot folder"] {
            assert!(table.contains(&format!("{medium}: made and durable")), "{table}");
        }
        // The room that waits for upgrades is a hole.
        assert!(on_disk(&dir.path().join("0-usb.img")).unwrap() < 3_000_000);
    }
}
