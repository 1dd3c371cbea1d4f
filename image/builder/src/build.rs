//! Cargo builds of what goes into the image: our own programs, and static programs from the crate
//! registry, kept in a cache by everything that decides their bytes.
//!
//! ```text
//! <cache>/bin/<key>/<program>     finished third-party programs
//! <cache>/build/<crate>/          their cargo target directories
//! <cache>/target-image/           our own programs (profile `image`, static)
//! <cache>/log/<crate>.log         what cargo said
//! ```
//!
//! Must never use the caller's compiler flags: they would reach the image.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::elf::{self, StaticError};

/// The node's target; naming it keeps the static flags away from build scripts and proc macros.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC_FLAGS: &str = "-C target-feature=+crt-static";
/// How much of cargo's output an error shows.
const LOG_TAIL_LINES: usize = 15;

/// Where a distribution puts static libraries.
const LIBRARY_DIRECTORIES: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];

/// A program from the crate registry that links statically.
#[derive(Debug, Clone, Copy)]
pub struct RegistryProgram {
    /// Crate name.
    pub name: &'static str,
    pub version: &'static str,
    /// Name of its executable.
    pub program: &'static str,
    /// C libraries: name of the environment variable's prefix, and of the library.
    pub libraries: &'static [(&'static str, &'static str)],
    /// For the progress line, on two cores.
    pub minutes: u32,
}

/// Serves shared volumes to microVMs.
pub const VIRTIOFSD: RegistryProgram = RegistryProgram {
    name: "virtiofsd",
    version: "1.14.0",
    program: "virtiofsd",
    libraries: &[("LIBSECCOMP", "libseccomp.a"), ("LIBCAPNG", "libcap-ng.a")],
    minutes: 2,
};

/// The VMM for images without cloud-hypervisor.
pub const ALIOTH: RegistryProgram =
    RegistryProgram { name: "alioth-cli", version: "0.12.0", program: "alioth", libraries: &[], minutes: 2 };

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{library}, which {name} needs, is not installed: run scripts/setup")]
    LibraryMissing { name: String, library: String },
    #[error("{program} could not be started: install the Rust toolchain, or put it on the PATH")]
    NotStarted { program: String, source: std::io::Error },
    #[error("building {name} failed ({status}); the end of {log}:\n{tail}")]
    Failed { name: String, status: String, log: PathBuf, tail: String },
    #[error("building our programs failed ({status}); cargo's messages are above")]
    OursFailed { status: String },
    #[error("cargo built no program in the package {package}: it needs a [[bin]]")]
    NoProgram { package: String },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Static(#[from] StaticError),
}

/// The cache of everything that is slow to build: `CROFT_CACHE`, or `~/.cache/croft`.
#[must_use]
pub fn cache_directory() -> PathBuf {
    let named = std::env::var_os("CROFT_CACHE").filter(|value| !value.is_empty()).map(PathBuf::from);
    named.unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
        home.join(".cache/croft")
    })
}

/// A `cargo` command without the caller's flags.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let inherited = text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_PROFILE_")
            || text.starts_with("CARGO_BUILD_")
            || matches!(
                &*text,
                "CARGO_ENCODED_RUSTFLAGS"
                    | "RUSTFLAGS"
                    | "CARGO_TARGET_DIR"
                    | "CARGO_MANIFEST_DIR"
                    | "CARGO_MANIFEST_PATH"
                    | "RUSTC_WORKSPACE_WRAPPER"
            );
        if inherited {
            command.env_remove(&name);
        }
    }
    command.env("RUSTFLAGS", STATIC_FLAGS).stdin(Stdio::null());
    command
}

impl RegistryProgram {
    /// Environment that decides what is built.
    fn environment(&self) -> Result<Vec<(String, String)>, BuildError> {
        let mut environment: Vec<(String, String)> = [
            ("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
            ("CARGO_PROFILE_RELEASE_LTO", "thin"),
            ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "4"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        for (prefix, library) in self.libraries {
            let directory = LIBRARY_DIRECTORIES
                .iter()
                .find(|directory| Path::new(directory).join(library).exists())
                .ok_or_else(|| BuildError::LibraryMissing {
                    name: self.name.into(),
                    library: (*library).into(),
                })?;
            environment.push((format!("{prefix}_LINK_TYPE"), "static".into()));
            environment.push((format!("{prefix}_LIB_PATH"), (*directory).into()));
        }
        Ok(environment)
    }

    /// Builds the program unless the cache has it; `progress` gets one line before a build starts.
    pub fn install(&self, cache: &Path, progress: &mut dyn FnMut(String)) -> Result<PathBuf, BuildError> {
        let environment = self.environment()?;
        let key = key(&[
            self.name.into(),
            self.version.into(),
            TARGET.into(),
            STATIC_FLAGS.into(),
            format!("{environment:?}"),
            compiler_version()?,
        ]);
        let kept = cache.join("bin").join(key);
        let finished = kept.join(self.program);
        if finished.exists() {
            return Ok(finished);
        }
        progress(format!("building {} {} (about {} min)", self.name, self.version, self.minutes));
        let build = cache.join("build").join(self.name);
        let root = build.join("install");
        let log = cache.join("log").join(format!("{}.log", self.name));
        for directory in [&kept, &root, &cache.join("log")] {
            std::fs::create_dir_all(directory)
                .map_err(|source| BuildError::Write { path: directory.clone(), source })?;
        }
        self.run(&environment, &build, &root, &log)?;
        let built = root.join("bin").join(self.program);
        elf::require_static(&built)?;
        // Renamed into place, so that a build cut short leaves nothing that looks finished.
        let partial = kept.join(format!("{}.partial-{}", self.program, std::process::id()));
        std::fs::copy(&built, &partial)
            .and_then(|_| std::fs::rename(&partial, &finished))
            .map_err(|source| BuildError::Write { path: finished.clone(), source })?;
        Ok(finished)
    }

    fn run(
        &self,
        environment: &[(String, String)],
        build: &Path,
        root: &Path,
        log: &Path,
    ) -> Result<(), BuildError> {
        let write = |source| BuildError::Write { path: log.into(), source };
        let output = File::create(log).map_err(write)?;
        let errors = output.try_clone().map_err(write)?;
        let status = cargo()
            .args(["install", "--locked", "--no-track", "--force", "--target", TARGET])
            .arg(format!("{}@{}", self.name, self.version))
            .arg("--target-dir")
            .arg(build)
            .arg("--root")
            .arg(root)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(output)
            .stderr(errors)
            .status()
            .map_err(|source| BuildError::NotStarted { program: "cargo".into(), source })?;
        if status.success() {
            return Ok(());
        }
        Err(BuildError::Failed {
            name: self.name.into(),
            status: status.to_string(),
            log: log.into(),
            tail: tail(log),
        })
    }
}

/// Builds the programs of `packages` in the workspace at `root`, and maps package to executable.
///
/// Always asks cargo, which notices by itself when there is nothing to do.
pub fn build_ours(
    root: &Path,
    cache: &Path,
    packages: &[&str],
) -> Result<BTreeMap<String, PathBuf>, BuildError> {
    let mut command = cargo();
    command
        .current_dir(root)
        .args(["build", "--bins", "--profile", "image", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--target-dir")
        .arg(cache.join("target-image"))
        .stdout(Stdio::piped());
    for package in packages {
        command.args(["--package", package]);
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| BuildError::NotStarted { program: "cargo".into(), source })?;
    if !output.status.success() {
        return Err(BuildError::OursFailed { status: output.status.to_string() });
    }
    let built: Vec<CargoMessage> = output
        .stdout
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(&line).ok())
        .collect();
    let mut programs = BTreeMap::new();
    for package in packages {
        let program = program_of(package, &built)
            .ok_or_else(|| BuildError::NoProgram { package: (*package).to_owned() })?;
        elf::require_static(&program)?;
        programs.insert((*package).to_owned(), program);
    }
    Ok(programs)
}

/// The part of cargo's `compiler-artifact` message that we need.
#[derive(Deserialize)]
struct CargoMessage {
    package_id: String,
    executable: Option<PathBuf>,
}

/// The package's executable; of several, the one named like the package without its prefix.
fn program_of(package: &str, messages: &[CargoMessage]) -> Option<PathBuf> {
    let short = package.strip_prefix("croft-").unwrap_or(package);
    let mut programs: Vec<&PathBuf> = messages
        .iter()
        .filter(|message| package_name(&message.package_id) == package)
        .filter_map(|message| message.executable.as_ref())
        .collect();
    programs.sort_by_key(|program| program.file_name().is_none_or(|name| name != short));
    programs.first().map(|program| (*program).clone())
}

/// Package ids look like `path+file:///src/os/init#croft-init@0.1.0` (cargo's "Package ID Specifications").
fn package_name(id: &str) -> &str {
    let end = id.rsplit_once('#').map_or(id, |(_, end)| end);
    end.split_once('@').map_or(end, |(name, _)| name)
}

fn compiler_version() -> Result<String, BuildError> {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&program).arg("-vV").output().map_err(|source| BuildError::NotStarted {
        program: program.to_string_lossy().into_owned(),
        source,
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn key(parts: &[String]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex::encode(&hasher.finalize()[..8])
}

fn tail(log: &Path) -> String {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, executable: Option<&str>) -> CargoMessage {
        CargoMessage { package_id: id.into(), executable: executable.map(PathBuf::from) }
    }

    #[test]
    fn a_packages_program_is_found_by_package_not_by_name() {
        let messages = [
            message("path+file:///src/os/init#croft-init@0.1.0", None),
            message("path+file:///src/os/init#croft-init@0.1.0", Some("/t/image/init")),
            message("path+file:///src/agents/node#croft-node@0.1.0", Some("/t/image/helper")),
            message("path+file:///src/agents/node#croft-node@0.1.0", Some("/t/image/node")),
        ];
        assert_eq!(program_of("croft-init", &messages), Some("/t/image/init".into()));
        assert_eq!(program_of("croft-node", &messages), Some("/t/image/node".into()));
        assert_eq!(program_of("croft-guest", &messages), None);
    }

    #[test]
    fn keys_keep_their_parts_apart() {
        assert_ne!(key(&["ab".into(), "c".into()]), key(&["a".into(), "bc".into()]));
    }

    #[test]
    fn a_missing_static_library_says_what_to_run() {
        let program = RegistryProgram { libraries: &[("LIBNOWHERE", "libcroft-nowhere.a")], ..VIRTIOFSD };
        let error = program.environment().unwrap_err();
        assert_eq!(
            error.to_string(),
            "libcroft-nowhere.a, which virtiofsd needs, is not installed: run scripts/setup"
        );
    }

    #[test]
    fn a_log_ends_with_its_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let lines: Vec<String> = (0..40).map(|line| line.to_string()).collect();
        std::fs::write(&log, lines.join("\n")).unwrap();
        assert_eq!(tail(&log), lines[25..].join("\n"));
        assert_eq!(tail(Path::new("/nowhere")), "");
    }
}
