//! Runs seeds of the simulation, several at once, and says how to repeat the one that fails.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use croft_replica::sim::{Failure, Mutation, Options, REGRESSIONS, run};

/// The seeded simulation of several validators in virtual time.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them; by default one from the clock.
    #[arg(long)]
    start: Option<u64>,
    /// Seeds that failed once, first.
    #[arg(long)]
    regressions: bool,
    /// Says everything that happens: for one seed.
    #[arg(long)]
    aloud: bool,
    /// Puts a fault into the validators, to see that it is found.
    #[arg(long, value_enum)]
    mutation: Option<Mutation>,
    /// How many run at once; by default one per CPU.
    #[arg(long)]
    jobs: Option<usize>,
}

fn fresh() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs() % 1_000_000_000 * 1_000)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let start = arguments.start.unwrap_or_else(fresh);
    let mut seeds: Vec<u64> = (start..start.saturating_add(arguments.seeds)).collect();
    if arguments.regressions {
        seeds.splice(0..0, REGRESSIONS.iter().copied());
    }
    let commit = std::env::var("CROFT_COMMIT").unwrap_or_else(|_| "unknown".to_owned());
    println!("{} seeds from {start}, commit {commit}", seeds.len());
    // Panics are failures of their seed and told with it.
    std::panic::set_hook(Box::new(|_| {}));
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let options = Options { mutation: arguments.mutation, aloud: arguments.aloud };
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::<Failure>::new()));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.unwrap_or(cpus).clamp(1, seeds.len().max(1)) {
            scope.spawn(|| work(&seeds, &next, &failed, options));
        }
    });
    let failed = failed.into_inner().unwrap_or_default();
    for failure in &failed {
        eprintln!("{failure}\ncommit {commit}\n");
    }
    println!("{} of {} seeds failed", failed.len(), seeds.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work(seeds: &[u64], next: &AtomicU64, failed: &Mutex<Vec<Failure>>, options: Options) {
    while let Some(seed) =
        usize::try_from(next.fetch_add(1, Ordering::Relaxed)).ok().and_then(|at| seeds.get(at))
    {
        let started = Instant::now();
        let outcome = run(*seed, options);
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(summary) => println!("seed {seed}: ok in {seconds:.1} s: {summary:?}"),
            Err(failure) => {
                println!("seed {seed}: failed in {seconds:.1} s: {}", failure.what);
                failed.lock().expect("nobody panics while it is held").push(*failure);
            }
        }
    }
}
