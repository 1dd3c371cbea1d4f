//! `cargo xtask bench market`: how fast bots find each other and agree, and what they cost.
//!
//! ```text
//!   search, agree, idle: real processes on loopback, a replica with 10,000 nodes ──┐
//!   settle: the state machine alone, beside transfers                             ├──> table, target/bench/market.json
//!   crowd: the production machines of 50 bots and 100 farms, in virtual time     ──┘
//! ```
//! All traffic stays on loopback, all files in one temporary folder, and every process that is started is ended. It must
//! never call a budget held that was not measured.

mod crowd;
mod processes;
mod settle;
mod town;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use croft_it::report::{self, Report, Row};

const USAGE: &str = "\
usage: cargo xtask bench market [options]
  --quick      smaller counts: to try, not to judge
  --only PART  search, agree, idle, settle or crowd; may be given several times";
const PARTS: [&str; 5] = ["search", "agree", "idle", "settle", "crowd"];

/// How much is measured.
#[derive(Debug, Clone)]
struct Plan {
    quick: bool,
    parts: Vec<String>,
    /// On the ledger.
    nodes: usize,
    searches: usize,
    /// Whole searches by `croft find`.
    finds: usize,
    /// Contracts that are agreed one after the other by processes.
    deals: usize,
    /// Blocks of each kind.
    blocks: usize,
    bots: usize,
    workloads: usize,
    idle_s: u64,
}

impl Plan {
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let (mut quick, mut parts) = (false, Vec::new());
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => quick = true,
                "--only" => {
                    let part = arguments.next();
                    parts.push(part.with_context(|| format!("--only needs a value\n{USAGE}"))?);
                }
                other => bail!("unknown argument '{other}'\n{USAGE}"),
            }
        }
        if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
            bail!("'{unknown}' is no part: there are {}", PARTS.join(", "));
        }
        if parts.is_empty() {
            parts = PARTS.map(str::to_owned).to_vec();
        }
        let of = |small, full| if quick { small } else { full };
        Ok(Self {
            quick,
            parts,
            nodes: of(1_000, 10_000),
            searches: of(200, 2_000),
            finds: of(1, 10),
            deals: of(8, 60),
            blocks: of(5, 40),
            bots: of(10, 50),
            workloads: of(50, 1_000),
            idle_s: of(5, 60) as u64,
        })
    }

    fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    report::exit_code(&run_until_told().await)
}

async fn run_until_told() -> Result<bool> {
    let plan = Plan::parse(std::env::args().skip(1))?;
    if !plan.quick {
        report::only_in_release("cargo xtask bench market")?;
    }
    report::until_told(run(plan)).await
}

async fn run(plan: Plan) -> Result<bool> {
    let mut report = Report::default();
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    report.circumstance(
        "build",
        if cfg!(debug_assertions) { "debug: figures mean nothing" } else { "release" },
    );
    report.circumstance("counts", if plan.quick { "quick: to try, not to judge" } else { "full" });
    report.circumstance("processors", processors.to_string());
    let dir = tempfile::Builder::new().prefix("croft-bench-market-").tempdir()?;
    if ["search", "agree", "idle"].iter().any(|part| plan.has(part))
        && let Err(error) = processes::measure(&plan, dir.path(), &mut report).await
    {
        report.add(Row::missing("bots as processes", format!("{error:#}")));
    }
    if plan.has("settle") {
        let blocks = plan.blocks;
        report.part("settling", tokio::task::spawn_blocking(move || settle::rows(blocks)).await?);
    }
    if plan.has("crowd") {
        let crowd = plan.clone();
        report.part("a crowd of bots", tokio::task::spawn_blocking(move || crowd::rows(&crowd)).await?);
    }
    report.finish("market")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Plan> {
        Plan::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn without_options_everything_is_measured_at_full_length() {
        let plan = parse("").unwrap();
        assert_eq!((plan.nodes, plan.workloads, plan.bots), (10_000, 1_000, 50));
        assert!(PARTS.iter().all(|part| plan.has(part)));
        assert!(parse("--quick").unwrap().nodes < plan.nodes);
    }

    #[test]
    fn what_is_unknown_is_named() {
        let says = |text: &str| parse(text).unwrap_err().to_string();
        assert!(says("--fast").starts_with("unknown argument '--fast'\nusage: cargo xtask bench market"));
        assert!(says("--only").starts_with("--only needs a value"));
        assert_eq!(says("--only load"), "'load' is no part: there are search, agree, idle, settle, crowd");
    }
}
