//! `replica`: runs one replica until it is told to stop, and mends one that lost a file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use croft_protocol::limits;
use croft_replica::join::{JoinPlan, Progress, join};
use croft_replica::ordering::wall_clock;
use croft_replica::rejoin::rejoin;
use croft_replica::store::Store;
use croft_replica::{Replica, ReplicaConfig};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Executing blocks makes and frees many small maps and values on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps a grid's ledger and answers nodes and bots.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = false)]
struct Arguments {
    /// The file that 'croft grid init' wrote.
    #[arg(long, value_name = "FILE", default_value = "replica.toml", global = true)]
    config: PathBuf,
    /// Check every byte of the ledger and exit.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Copy the ledger from the other replicas that replica.toml lists, verified, where there is none
    #[command(after_help = "\
For a new replica, one that was away for too long, or one whose ledger is damaged: move the damaged file away
first. What was fetched and proved stays when it is interrupted; run it again. The others let validators copy,
their own [[peers]], and the keys that they list under 'observers'.

Example:
  mv data/ledger.redb /somewhere/else/
  replica join --config replica.toml")]
    Join,
    /// Replace a lost or damaged consensus log by one that signs nothing that may have been signed
    #[command(after_help = "\
The replica must be stopped, its ledger whole, and some of the others running.

Example:
  replica rejoin --config replica.toml")]
    Rejoin,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("CROFT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let config = ReplicaConfig::load(&arguments.config)?;
    if arguments.check {
        let report = Store::open(&config.dir, &config.genesis)?.audit()?;
        println!(
            "the ledger is whole: {} headers, {} lists of commands, {} records, {} values",
            report.headers, report.bodies, report.records, report.values
        );
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    match arguments.action {
        None => runtime.block_on(run(config)),
        Some(Action::Join) => runtime.block_on(run_join(config, &arguments.config)),
        Some(Action::Rejoin) => runtime.block_on(run_rejoin(&config)),
    }
}

async fn run(config: ReplicaConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for SIGINT")?;
    let mut running = Replica::start(config).await?;
    // For whoever started it: from here on it answers.
    println!(
        "replica {} of grid '{}' serves on {}",
        running.key(),
        running.genesis().name,
        running.address()
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = running.ended() => anyhow::bail!("the replica stopped by itself: see the log above"),
    }
    running.stop().await;
    Ok(())
}

async fn run_join(config: ReplicaConfig, path: &Path) -> anyhow::Result<()> {
    let said = Mutex::new(0);
    let plan = JoinPlan {
        dir: config.dir.clone(),
        genesis: config.genesis,
        key: config.key,
        replicas: config.peers,
        clock: wall_clock(),
        progress: Arc::new(move |progress| {
            let mut said = said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(line) = line(progress, &mut said) {
                println!("{line}");
            }
        }),
    };
    let report = join(plan).await?;
    println!(
        "the ledger is here: block {}, {} records, {} values, {} changes of validators before it",
        report.height, report.records, report.values, report.handovers
    );
    if report.age_ms > limits::TIP_MAX_AGE_MS {
        println!(
            "its newest block is {} s old: the grid stands still, or the others are behind",
            report.age_ms / 1000
        );
    }
    if !config.dir.join(croft_replica::ordering::bft::log::FILE).exists() {
        println!(
            "there is no consensus log: if it is to sign, run 'replica rejoin --config {}'",
            path.display()
        );
    }
    Ok(())
}

/// What is worth a line: `said` is the tenth of the whole that was told last.
fn line(progress: &Progress, said: &mut u64) -> Option<String> {
    let mut tenth = |what: &str, have: u64, of: u64| {
        let now = (have * 10).checked_div(of).unwrap_or(10);
        let news = *said != now;
        *said = now;
        news.then(|| format!("{have} of {of} {what} are here and proved"))
    };
    match progress {
        Progress::Source { replica, height } => {
            Some(format!("replica {} is at block {height}, verified", replica.short()))
        }
        Progress::Problem(problem) => Some(format!(
            "replica {} {}: {}",
            problem.replica.short(),
            if problem.lied { "lies" } else { "does not help" },
            problem.reason
        )),
        Progress::Records { have, of } => tenth("records", *have, *of),
        Progress::Values { have, of } => tenth("values", *have, *of),
        Progress::Building { height } => {
            Some(format!("the state map of block {height} is built and compared"))
        }
    }
}

async fn run_rejoin(config: &ReplicaConfig) -> anyhow::Result<()> {
    let done = rejoin(config).await?;
    if let Some(aside) = &done.set_aside {
        println!("the old log is at {}", aside.display());
    }
    println!(
        "the ledger is at block {}, {} of the others were asked: this replica signs again above block {}",
        done.tip,
        done.asked.len(),
        done.sign_above
    );
    Ok(())
}
