//! `cargo xtask sim`: the seeded simulation of several validators, over as many seeds as wanted; `cargo xtask sim
//! market`: that of bots and farms.
//!
//! The simulations themselves are a program of `croft-replica` and an example of `croft-market`.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};

use crate::repo;

/// Runs seeds of the simulation; a failure prints its seed, the commit, the last of what happened, and how to
/// repeat it.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them; by default one from the clock.
    #[arg(long)]
    start: Option<u64>,
    /// Those that failed once, first.
    #[arg(long)]
    regressions: bool,
    /// Print everything that happens: for one seed.
    #[arg(long)]
    aloud: bool,
    /// Put a fault into the validators, to see that it is found: forgets-votes or skips-certificates.
    #[arg(long)]
    mutation: Option<String>,
    /// How many run at once; by default one per CPU.
    #[arg(long)]
    jobs: Option<usize>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Simulate a market: bots, farms and attackers on the real ledger core.
    Market(Market),
}

/// Runs seeds of the market; a failure prints its seed, the last of what happened, and how to repeat it.
#[derive(Debug, Args)]
struct Market {
    /// How many seeds to run.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first of them; by default one from the clock.
    #[arg(long)]
    start: Option<u64>,
    /// Buyers, one in eight of them a hoarder; hundreds want --release and a minute for each seed.
    #[arg(long, default_value_t = 16)]
    bots: u64,
    /// Farms, half of them attackers.
    #[arg(long, default_value_t = 18)]
    farms: u64,
    /// Put a fault into the bots, to see that it is found: forgets-intents or sells-twice.
    #[arg(long)]
    mutation: Option<String>,
    /// Optimised, for many bots.
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let Some(What::Market(market)) = &arguments.what {
        return run_market(market);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(repo::root()).args(["run", "--quiet"]);
    command.args(["-p", "croft-replica", "--features", "sim", "--bin", "sim", "--"]);
    command.arg(format!("--seeds={}", arguments.seeds));
    command.args(arguments.start.map(|start| format!("--start={start}")));
    command.args(arguments.jobs.map(|jobs| format!("--jobs={jobs}")));
    command.args(arguments.mutation.as_ref().map(|mutation| format!("--mutation={mutation}")));
    command.args(arguments.regressions.then_some("--regressions"));
    command.args(arguments.aloud.then_some("--aloud"));
    command.env("CROFT_COMMIT", commit());
    if !command.status().context("starting cargo")?.success() {
        bail!("the simulation failed: see above");
    }
    Ok(())
}

fn run_market(market: &Market) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(repo::root()).args(["run", "--quiet", "-p", "croft-market", "--example", "sim"]);
    command.args(market.release.then_some("--release")).arg("--");
    for (name, value) in [("--seeds", market.seeds), ("--bots", market.bots), ("--farms", market.farms)] {
        command.args([name.to_owned(), value.to_string()]);
    }
    if let Some(start) = market.start {
        command.args(["--start".to_owned(), start.to_string()]);
    }
    if let Some(mutation) = &market.mutation {
        command.args(["--mutation", mutation]);
    }
    if !command.status().context("starting cargo")?.success() {
        bail!("the simulation of the market failed: see above");
    }
    Ok(())
}

/// What is checked out, for whoever repeats a failure.
fn commit() -> String {
    let mut git = Command::new("git");
    git.current_dir(repo::root()).args(["describe", "--always", "--dirty", "--abbrev=12"]);
    match git.output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}
