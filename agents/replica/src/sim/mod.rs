//! The seeded simulation of a whole ledger: real validators on real stores and logs, in virtual time.
//!
//! ```text
//!   seed ──> plan (who, which clocks, what goes wrong when) ──> world ──> Summary
//!                                                                 └─ oracle, after each event ──> Failure
//! ```
//! Real are the core of every validator, its ledger and its consensus log with their file formats; simulated are
//! disks, clocks, links, submitters, and all that goes wrong with them. It must never draw time or chance from
//! outside: who has a seed has the run. A seed that failed once stays in [`REGRESSIONS`].

mod clients;
mod disk;
mod liar;
mod machine;
mod network;
mod oracle;
mod plan;
mod random;
#[cfg(test)]
mod tests;
mod trace;
mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use self::world::World;

/// Time of the genesis: milliseconds since 1970, UTC.
const START_MS: u64 = 1_800_000_000_000;

/// Seeds that found something once.
///
/// - 15: a body that came before its height had begun was never told to the engine.
/// - 34: what had been overtaken stayed in the queue of an observer, and kept it from telling what is next.
/// - 112: the power goes again while a replica starts.
/// - 134: a replica that may not propose kept commands for ever that had been refused elsewhere.
/// - 159: a proposal that the log could not take was told to a peer whose link came up.
pub const REGRESSIONS: &[u64] = &[15, 34, 112, 134, 159];

/// A fault in the validators themselves, to prove that the simulation sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mutation {
    /// A validator starts with an empty consensus log after a crash.
    ForgetsVotes,
    /// Validators take blocks of others without looking at their certificates.
    SkipsCertificates,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    pub mutation: Option<Mutation>,
    /// Says everything that happens, as it happens.
    pub aloud: bool,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Hash of everything that happened.
    pub trace: u64,
    pub height: u64,
    /// Commands that became final, and that were refused.
    pub finals: u64,
    pub refused: u64,
    pub evidence: u64,
    pub events: u64,
    /// How often replicas were started.
    pub lives: u64,
    pub virtual_ms: u64,
}

/// A run in which something happened that must not.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub what: String,
    /// The last lines of what happened.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        write!(
            f,
            "seed {}: {}\nrepeat it with: cargo xtask sim --start {} --seeds 1",
            self.seed, self.what, self.seed
        )
    }
}

/// Runs one seed.
///
/// # Errors
/// [`Failure`] says what must not have happened, and how to see it again.
pub fn run(seed: u64, options: Options) -> Result<Summary, Box<Failure>> {
    let mut world = World::new(seed, options);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    let what = match outcome {
        Ok(Ok(summary)) => return Ok(summary),
        Ok(Err(violation)) => violation.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("a panic: {}", text.unwrap_or("without words"))
        }
    };
    Err(Box::new(Failure { seed, what, trace: world.trace.tail() }))
}
