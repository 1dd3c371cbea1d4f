//! Which VMM goes into the image, and where its binary comes from.
//!
//! ```text
//! CROFT_CLOUD_HYPERVISOR set --yes--> that file, or an error (it was asked for by name)
//!        | no
//! cloud-hypervisor on PATH, static --yes--> that file
//!        | no
//! pinned download, SHA-256 right --yes--> the cached file
//!        | no
//! one line that says why --> alioth, built from the crate registry
//! ```
//!
//! Must never take a download whose digest differs, nor a binary that the node can't run.

use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::elf::{self, StaticError};

/// The release that the pinned digest belongs to.
pub const CLOUD_HYPERVISOR_VERSION: &str = "53.0";
/// The project's own static release asset.
pub const CLOUD_HYPERVISOR_URL: &str =
    "https://github.com/cloud-hypervisor/cloud-hypervisor/releases/download/v53.0/cloud-hypervisor-static";
/// SHA-256 of that asset.
pub const CLOUD_HYPERVISOR_SHA256: &str = "448af3d4e59b22c2987f7df94c213ad40fb53a10d437e42b5ee6c4fce7c29ecc";

/// A machine without a way out must not wait long at each build.
const CONNECT_TIMEOUT_SECONDS: u32 = 5;
/// 5 MB over a slow line.
const DOWNLOAD_TIMEOUT_SECONDS: u32 = 300;
/// After a failed download, builds use the other VMM for this long before they try again.
const RETRY_AFTER: Duration = Duration::from_secs(3600);

/// The two VMMs for which there are drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vmm {
    CloudHypervisor,
    Alioth,
}

impl Vmm {
    /// As in paths and options: `cloud-hypervisor` or `alioth`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Alioth => "alioth",
        }
    }
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the person asked for with `--vmm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    #[default]
    Auto,
    Only(Vmm),
}

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cloud-hypervisor" => Ok(Self::Only(Vmm::CloudHypervisor)),
            "alioth" => Ok(Self::Only(Vmm::Alioth)),
            _ => Err(format!("there is no VMM {text:?}: write auto, cloud-hypervisor or alioth")),
        }
    }
}

/// The decision, with a line that says how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    CloudHypervisor {
        binary: PathBuf,
        reason: String,
    },
    /// Its binary is built from the crate registry by the caller.
    Alioth {
        reason: String,
    },
}

impl Choice {
    #[must_use]
    pub fn vmm(&self) -> Vmm {
        match self {
            Self::CloudHypervisor { .. } => Vmm::CloudHypervisor,
            Self::Alioth { .. } => Vmm::Alioth,
        }
    }

    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::CloudHypervisor { reason, .. } | Self::Alioth { reason } => reason,
        }
    }
}

/// Why no VMM could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    #[error("CROFT_CLOUD_HYPERVISOR names a file that can't be used: correct it, or unset it")]
    Named(#[source] StaticError),
    #[error(
        "no usable cloud-hypervisor: {reason}; put a static build of v{CLOUD_HYPERVISOR_VERSION} on the PATH \
         or name it in CROFT_CLOUD_HYPERVISOR, or use --vmm alioth"
    )]
    NotFound { reason: String },
}

/// Where to look, so that tests need neither this machine's environment nor a network.
pub struct Surroundings<'a> {
    /// Value of `CROFT_CLOUD_HYPERVISOR`.
    pub named: Option<OsString>,
    /// Value of `PATH`.
    pub search_path: Option<OsString>,
    /// Where downloads are kept.
    pub cache: PathBuf,
    /// Digest that a download must have, in hex.
    pub sha256: String,
    /// Puts the release asset at the path; an error text says why it couldn't.
    pub download: &'a dyn Fn(&Path) -> Result<(), String>,
}

impl Surroundings<'static> {
    /// This machine, with downloads kept below `cache`.
    #[must_use]
    pub fn of_this_machine(cache: &Path) -> Self {
        Self {
            named: std::env::var_os("CROFT_CLOUD_HYPERVISOR").filter(|value| !value.is_empty()),
            search_path: std::env::var_os("PATH"),
            cache: cache.into(),
            sha256: CLOUD_HYPERVISOR_SHA256.into(),
            download: &download_with_curl,
        }
    }
}

/// Chooses the VMM and, for cloud-hypervisor, its binary.
pub fn choose(wanted: Wanted, around: &Surroundings<'_>) -> Result<Choice, ChooseError> {
    if wanted == Wanted::Only(Vmm::Alioth) {
        return Ok(Choice::Alioth { reason: "alioth: asked for".into() });
    }
    if let Some(named) = &around.named {
        let binary = PathBuf::from(named);
        elf::require_static(&binary).map_err(ChooseError::Named)?;
        let reason = format!("cloud-hypervisor: {} (CROFT_CLOUD_HYPERVISOR)", binary.display());
        return Ok(Choice::CloudHypervisor { binary, reason });
    }
    let mut misses = Vec::new();
    match on_path(around.search_path.as_ref()) {
        Ok(binary) => {
            let reason = format!("cloud-hypervisor: {} (PATH)", binary.display());
            return Ok(Choice::CloudHypervisor { binary, reason });
        }
        Err(miss) => misses.push(miss),
    }
    match downloaded(around) {
        Ok(binary) => {
            let reason = format!("cloud-hypervisor: v{CLOUD_HYPERVISOR_VERSION}, pinned download");
            return Ok(Choice::CloudHypervisor { binary, reason });
        }
        Err(miss) => misses.push(miss),
    }
    let reason = misses.join("; ");
    if wanted == Wanted::Only(Vmm::CloudHypervisor) {
        return Err(ChooseError::NotFound { reason });
    }
    Ok(Choice::Alioth { reason: format!("alioth, because there is no cloud-hypervisor: {reason}") })
}

fn on_path(search_path: Option<&OsString>) -> Result<PathBuf, String> {
    let mut miss = "it is not on the PATH".to_owned();
    for directory in search_path.iter().flat_map(std::env::split_paths) {
        let candidate = directory.join("cloud-hypervisor");
        if !candidate.is_file() {
            continue;
        }
        match elf::require_static(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) => miss = error.to_string(),
        }
    }
    Err(miss)
}

fn downloaded(around: &Surroundings<'_>) -> Result<PathBuf, String> {
    let directory = around.cache.join("bin").join(&around.sha256[..16.min(around.sha256.len())]);
    let binary = directory.join("cloud-hypervisor");
    if digest(&binary).is_ok_and(|digest| digest == around.sha256) {
        return Ok(binary);
    }
    let failed = directory.join("failed");
    if let Some(earlier) = recent_failure(&failed) {
        return Err(format!(
            "{earlier} (not tried again for an hour; remove {} to try now)",
            failed.display()
        ));
    }
    std::fs::create_dir_all(&directory)
        .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    let partial = directory.join(format!("partial-{}", std::process::id()));
    let result = fetch_checked(around, &partial, &binary);
    let _ = std::fs::remove_file(&partial);
    if let Err(miss) = &result {
        let _ = std::fs::write(&failed, miss);
    }
    result.map(|()| binary)
}

fn fetch_checked(around: &Surroundings<'_>, partial: &Path, binary: &Path) -> Result<(), String> {
    (around.download)(partial)?;
    let digest = digest(partial).map_err(|error| format!("the download can't be read: {error}"))?;
    if digest != around.sha256 {
        return Err(format!("the download has SHA-256 {digest} instead of the pinned {}", around.sha256));
    }
    elf::require_static(partial).map_err(|error| error.to_string())?;
    std::fs::rename(partial, binary).map_err(|error| format!("cannot keep the download: {error}"))
}

fn recent_failure(file: &Path) -> Option<String> {
    let age = SystemTime::now().duration_since(std::fs::metadata(file).ok()?.modified().ok()?).ok()?;
    if age > RETRY_AFTER {
        return None;
    }
    std::fs::read_to_string(file).ok()
}

/// SHA-256 of a file, in hex.
pub fn digest(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

fn download_with_curl(to: &Path) -> Result<(), String> {
    let output = Command::new("curl")
        .args(["--fail", "--silent", "--show-error", "--location", "--proto", "=https"])
        .args(["--connect-timeout", &CONNECT_TIMEOUT_SECONDS.to_string()])
        .args(["--max-time", &DOWNLOAD_TIMEOUT_SECONDS.to_string()])
        .arg("--output")
        .arg(to)
        .arg(CLOUD_HYPERVISOR_URL)
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| format!("curl could not be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(format!("the pinned download failed: {}", message.trim().trim_start_matches("curl: ")))
}

#[cfg(test)]
mod tests;
