//! Releases of a test's grid: one key that signs them, boot files on a channel.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::grid::Grid;

/// A grid whose release keys are one, made here; its path.
///
/// # Errors
/// The command's own message.
pub async fn key(grid: &Grid) -> Result<String> {
    let path = |name: &str| grid.dir().join(name).to_str().map(str::to_owned).context("a path in UTF-8");
    let (key, change) = (path("release.key")?, path("release-keys.json")?);
    let made = grid.json(["release", "keys", "new", &key]).await?;
    let public = made["key"].as_str().context("a key")?;
    let propose = ["release", "keys", "propose", "--key", public, "--threshold", "1", "--out", &change];
    grid.croft(propose).await?;
    let validator = path("home/grids/demo/ledger/validator.key")?;
    grid.croft(["release", "sign", &change, "--key", &validator]).await?;
    grid.croft(["--bot", "farmer", "release", "publish", &change]).await?;
    Ok(key)
}

/// Publishes a boot file on the channel `stable`; one return stops it.
///
/// # Errors
/// The command's own message.
pub async fn publish(grid: &Grid, key: &str, boot_file: &Path, version: &str) -> Result<()> {
    let out = grid.dir().join(format!("{version}.json"));
    let out = out.to_str().context("a path in UTF-8")?;
    let boot_file = boot_file.to_str().context("a path in UTF-8")?;
    let what = ["--channel", "stable", "--version", version, "--stop-returns", "1", "--out", out];
    let prepare = ["release", "prepare", "--boot-file", boot_file].into_iter().chain(what);
    grid.croft(prepare).await?;
    grid.croft(["release", "sign", out, "--key", key]).await?;
    grid.croft(["--bot", "farmer", "release", "publish", out, "--boot-file", boot_file]).await?;
    Ok(())
}
