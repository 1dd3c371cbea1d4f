//! `cargo xtask bench`: measures what the budget table of the design names, on the images that are built.
//!
//! The measuring itself is a program of `tests/it`, so that this one stays quick to build.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// Size of the boot file, boot to registered, idle memory.
    Boot,
    /// Contract to first reply, host memory per microVM.
    Deploy,
}

/// Prints a table with budget and verdict, writes JSON under target/bench/, exits 1 when a budget is missed.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only these; default: all.
    what: Option<What>,
    /// The image to measure; default: the one with cloud-hypervisor where it is built.
    #[arg(long)]
    vmm: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(&cargo)
        .args(["build", "--quiet", "-p", "croft-bot", "-p", "croft-it", "--bins"])
        .status()
        .context("starting cargo")?;
    if !built.success() {
        bail!("the programs to measure with can't be built: see above");
    }
    let mut command = Command::new(&cargo);
    command.args(["run", "--quiet", "-p", "croft-it", "--bin", "bench", "--"]);
    match arguments.what {
        Some(What::Boot) => drop(command.arg("boot")),
        Some(What::Deploy) => drop(command.arg("deploy")),
        None => {}
    }
    if let Some(vmm) = &arguments.vmm {
        command.args(["--vmm", vmm]);
    }
    if !command.status().context("starting the bench")?.success() {
        bail!("a budget was missed, or something could not be measured: see above");
    }
    Ok(())
}
