//! The seeded simulation of a market: production bots and farms on the real ledger core, in virtual time.
//!
//! ```text
//!   seed ──> who takes part ──> world: messages, crashes, blocks, reports ──> Summary
//!                                └─ oracle, after every event and at the end ──> Failure with its seed
//! ```
//! `cargo xtask sim market` runs it; its tests run a fixed set of seeds and a few fresh ones. It must never draw time or
//! chance from outside: who has a seed has the run.

mod actors;
mod cast;
mod ledger;
mod oracle;
mod random;
#[cfg(test)]
mod tests;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use world::{Options, Summary, World};

/// A fault in the bots themselves, to prove that the simulation sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Buyers act before they write: what they wrote is gone after a crash.
    ForgetsIntents,
    /// Honest farmers forget what they promised.
    SellsTwice,
    /// Honest buyers do not look for approvals that were kept from them.
    OverlooksAnnouncements,
}

/// Runs one seed.
///
/// # Errors
/// What must not have happened, and how to see it again.
pub(crate) fn run(seed: u64, options: Options) -> Result<Summary, String> {
    let mut world = World::new(seed, options);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    let what = match outcome {
        Ok(Ok(summary)) => return Ok(summary),
        Ok(Err(violation)) => violation,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("a panic: {}", text.unwrap_or("without words"))
        }
    };
    let trace = world.trace.iter().fold(String::new(), |trace, line| trace + line + "\n");
    let size = format!("--bots {} --farms {}", options.bots, options.farms);
    Err(format!(
        "{trace}seed {seed}: {what}\nrepeat it with: cargo xtask sim market --start {seed} --seeds 1 {size}"
    ))
}

const USAGE: &str = "usage: sim [--seeds N] [--start SEED] [--bots N] [--farms N] [--mutation forgets-intents|sells-twice|overlooks]";

fn parse() -> Result<(u64, u64, Options), String> {
    let (mut seeds, mut options) = (20, Options::default());
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut start = since.map_or(1, |since| since.as_secs() % 1_000_000_000 * 1_000);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value; {USAGE}"))?;
        let number = value.parse::<u64>().map_err(|e| format!("{name} {value}: {e}; {USAGE}"));
        match name.as_str() {
            "--seeds" => seeds = number?,
            "--start" => start = number?,
            "--bots" => options.bots = number?.clamp(1, 10_000) as usize,
            "--farms" => options.farms = number?.clamp(2, 10_000) as usize,
            "--mutation" if value == "forgets-intents" => options.mutation = Some(Mutation::ForgetsIntents),
            "--mutation" if value == "overlooks" => {
                options.mutation = Some(Mutation::OverlooksAnnouncements);
            }
            "--mutation" if value == "sells-twice" => options.mutation = Some(Mutation::SellsTwice),
            _ => return Err(format!("{name} {value} is not known; {USAGE}")),
        }
    }
    Ok((seeds, start, options))
}

fn main() -> ExitCode {
    let (seeds, start, options) = match parse() {
        Ok(parsed) => parsed,
        Err(problem) => {
            eprintln!("error: {problem}");
            return ExitCode::from(2);
        }
    };
    println!("{seeds} seeds from {start}: {} bots, {} farms", options.bots, options.farms);
    // Panics are failures of their seed and told with it.
    std::panic::set_hook(Box::new(|_| {}));
    let mut failed = 0;
    for seed in start..start.saturating_add(seeds) {
        match run(seed, options) {
            Ok(summary) => println!("seed {seed}: {summary:?}"),
            Err(failure) => {
                failed += 1;
                eprintln!("{failure}\n");
            }
        }
    }
    println!("{failed} of {seeds} seeds failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
