//! `cargo xtask bench`: measures what the budget table of the design names, on the images that are built.
//!
//! The measuring itself is two programs of `tests/it`, so that this one stays quick to build.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::repo;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Size of the boot file, boot to registered, idle memory.
    Boot,
    /// Contract to first reply, host memory per microVM.
    Deploy,
    /// Records per second beside etcd and PostgreSQL, latencies, catch-up, a long history. Builds in release;
    /// takes about half an hour, with --quick some minutes. Only when asked for.
    Ledger,
    /// Searching, agreeing and settling; many bots at once; idle bots. Builds in release; takes some minutes. Only
    /// when asked for.
    Market,
    /// What making a USB image, an ISO and a netboot folder costs. Needs 'cargo xtask image --boot-file'. Builds in
    /// release. Only when asked for, and in a nightly.
    Media,
    /// What a rack of fifty takes that boots from one netboot server at once. Needs 'cargo xtask image --boot-file' and
    /// root. Builds in release. Only when asked for.
    Rack,
    /// How long a workload is silent when its machine takes a release, beside a restart through firmware. Needs boot
    /// files of two versions ('scripts/test' makes them). Some minutes. Only when asked for.
    Upgrade,
}

impl What {
    /// The program that measures it, where it is a program of its own that takes no arguments.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Media => Some("bench_media"),
            Self::Rack => Some("bench_rack"),
            Self::Upgrade => Some("bench_upgrade"),
            Self::Boot | Self::Deploy | Self::Ledger | Self::Market => None,
        }
    }
}

/// Prints a table with budget and verdict, writes JSON under target/bench/, exits 1 when a budget is missed or
/// something could not be measured.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only these; default: boot and deploy.
    what: Option<What>,
    /// The image to measure; default: the one with cloud-hypervisor where it is built.
    #[arg(long)]
    vmm: Option<String>,
    /// Of ledger and market: smaller counts and shorter windows, to try and not to judge.
    #[arg(long)]
    quick: bool,
    /// Of the ledger: only load, light, catch-up, followers or history; of the market: only search, agree, idle, settle
    /// or crowd. May be given several times.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Of the ledger: size of its long history.
    #[arg(long, value_name = "N")]
    records: Option<u64>,
    /// Of the ledger: size of a record under load.
    #[arg(long, value_name = "N")]
    record_bytes: Option<u64>,
    /// Of the ledger: where its files go; several GB at full length.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<String>,
}

impl Arguments {
    /// The ledger's own options, as its program takes them.
    fn of_ledger(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.quick {
            words.push("--quick".to_owned());
        }
        let valued = self.only.iter().map(|part| ("--only", part.clone()));
        let numbers = [("--records", self.records), ("--record-bytes", self.record_bytes)];
        let numbers = numbers.into_iter().filter_map(|(name, value)| Some((name, value?.to_string())));
        let dir = self.dir.iter().map(|dir| ("--dir", dir.clone()));
        for (name, value) in valued.chain(numbers).chain(dir) {
            words.extend([name.to_owned(), value]);
        }
        words
    }
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let of_ledger = arguments.of_ledger();
    if arguments.what == Some(What::Ledger) {
        if arguments.vmm.is_some() {
            bail!("--vmm is of the image: leave it out for the ledger");
        }
        return in_release("bench_ledger", &["-p", "croft-replica", "--bin", "replica"], &of_ledger);
    }
    if arguments.what == Some(What::Market) {
        let of_ledger_only = arguments.records.is_some() || arguments.record_bytes.is_some();
        if arguments.vmm.is_some() || arguments.dir.is_some() || of_ledger_only {
            bail!("of the market there are --quick and --only");
        }
        let packages = ["-p", "croft-bot", "--bin", "croft", "--bin", "sim_node"];
        return in_release("bench_market", &packages, &of_ledger);
    }
    if let Some(option) = of_ledger.first() {
        bail!("{option} is of the ledger: say 'cargo xtask bench ledger {option}'");
    }
    if let Some(program) = arguments.what.and_then(What::program) {
        if arguments.vmm.is_some() {
            bail!("--vmm is of the image: leave it out here, or name the boot file in CROFT_BOOT_FILE");
        }
        return in_release(program, &["-p", "croft-bot", "--bin", "croft"], &[]);
    }
    let built = cargo()
        .args(["build", "--quiet", "-p", "croft-bot", "-p", "croft-it", "--bin", "croft", "--bin", "bench"])
        .status()
        .context("starting cargo")?;
    if !built.success() {
        bail!("the programs to measure with can't be built: see above");
    }
    let mut command = program("debug", "bench");
    match arguments.what {
        Some(What::Boot) => drop(command.arg("boot")),
        Some(What::Deploy) => drop(command.arg("deploy")),
        Some(_) | None => {}
    }
    if let Some(vmm) = &arguments.vmm {
        command.args(["--vmm", vmm]);
    }
    measured(&mut command)
}

/// Builds a program that measures with what it measures, and runs it. In release: figures of a debug build mean nothing.
fn in_release(program: &str, beside: &[&str], arguments: &[String]) -> Result<()> {
    eprintln!("bench: building {program} and what it measures in release");
    let mut build = cargo();
    build.args(["build", "--release"]).args(beside).args(["-p", "croft-it", "--bin", program]);
    if !build.status().context("starting cargo")?.success() {
        bail!("the programs to measure with can't be built: see above");
    }
    measured(self::program("release", program).args(arguments))
}

/// What was built. Not by `cargo run`: for one package alone it takes other features, and builds everything once more.
fn program(profile: &str, name: &str) -> Command {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo::root().join("target"), PathBuf::from);
    Command::new(target.join(profile).join(name))
}

fn measured(command: &mut Command) -> Result<()> {
    if !command.status().context("starting the bench")?.success() {
        bail!("a budget was missed, or something could not be measured: see above");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(text: &str) -> Arguments {
        Line::parse_from(std::iter::once("bench").chain(text.split_whitespace())).arguments
    }

    #[test]
    fn options_of_the_ledger_reach_its_program_and_no_other() {
        let arguments = parse("ledger --quick --only load --only light --records 70000 --dir /x");
        let expected = "--quick --only load --only light --records 70000 --dir /x";
        assert_eq!(arguments.of_ledger().join(" "), expected);
        let error = run(&parse("boot --quick")).unwrap_err().to_string();
        assert_eq!(error, "--quick is of the ledger: say 'cargo xtask bench ledger --quick'");
        let error = run(&parse("market --records 70000")).unwrap_err().to_string();
        assert_eq!(error, "of the market there are --quick and --only");
        let error = run(&parse("ledger --vmm alioth")).unwrap_err().to_string();
        assert_eq!(error, "--vmm is of the image: leave it out for the ledger");
    }
}
