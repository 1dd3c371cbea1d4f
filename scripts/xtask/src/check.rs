//! `cargo xtask check`: what a change must pass before it is pushed, except the tests.
//!
//! All steps run even when one fails. A step that can't run here says why; it must never count as
//! passed in silence.

use std::env;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::{repo, tidy};

#[derive(Debug, Args)]
pub(crate) struct Arguments {}

/// How a step ended.
#[derive(Debug)]
enum Outcome {
    Passed,
    /// With the reason.
    Skipped(String),
    Failed(anyhow::Error),
}

type Step = fn() -> Outcome;

const STEPS: [(&str, Step); 5] =
    [("format", format), ("tidy", tidy_rules), ("clippy", clippy), ("docs", docs), ("deny", deny)];

pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        let started = Instant::now();
        let outcome = step();
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Outcome::Passed => eprintln!("check {name}: ok in {seconds:.1} s"),
            Outcome::Skipped(reason) => eprintln!("check {name}: skipped: {reason}"),
            Outcome::Failed(error) => {
                eprintln!("check {name}: failed: {error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("check: failed: {}", failed.join(", "));
    }
    Ok(())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(repo::root());
    command
}

fn outcome(result: Result<()>) -> Outcome {
    result.map_or_else(Outcome::Failed, |()| Outcome::Passed)
}

fn format() -> Outcome {
    outcome(repo::run(&mut cargo(&["fmt", "--all", "--check"])))
}

fn tidy_rules() -> Outcome {
    outcome(tidy::run(&tidy::Arguments {}))
}

fn clippy() -> Outcome {
    let arguments = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    outcome(repo::run(&mut cargo(&arguments)))
}

fn docs() -> Outcome {
    let arguments = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
    outcome(repo::run(cargo(&arguments).env("RUSTDOCFLAGS", "-D warnings")))
}

/// Licences, bans and sources need no network; advisories need their database.
fn deny() -> Outcome {
    if !repo::on_path("cargo-deny") {
        return Outcome::Skipped("cargo-deny isn't installed: cargo install --locked cargo-deny".to_owned());
    }
    let local = ["deny", "--offline", "check", "licenses", "bans", "sources"];
    if let Err(error) = repo::run(&mut cargo(&local)) {
        return Outcome::Failed(error);
    }
    if let Err(error) = repo::capture(&mut cargo(&["deny", "fetch", "db"])) {
        let error = repo::last_lines(&format!("{error:#}"), 1);
        return Outcome::Skipped(format!(
            "licences, bans and sources are ok; no advisories, their database is out of reach: {error}"
        ));
    }
    outcome(repo::run(&mut cargo(&["deny", "--offline", "check", "advisories"])))
}
