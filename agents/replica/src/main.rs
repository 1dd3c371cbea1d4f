//! `replica`: runs one replica until it is told to stop.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use croft_replica::store::Store;
use croft_replica::{Replica, ReplicaConfig};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Keeps a grid's ledger and answers nodes and bots.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// The file that 'croft grid init' wrote.
    #[arg(long, value_name = "FILE", default_value = "replica.toml")]
    config: PathBuf,
    /// Check every byte of the ledger and exit.
    #[arg(long)]
    check: bool,
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
    runtime.block_on(run(config))
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
