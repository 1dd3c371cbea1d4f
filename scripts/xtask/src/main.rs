//! `cargo xtask`: the one entry point for chores.
//!
//! Dispatches only. Each chore is a module with its own arguments and its own `run`; nothing that
//! Croft does in the field may live here.

mod bench;
mod check;
mod image;
mod kernel;
mod nightly;
mod qemu;
mod repo;
mod sim;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the Croft source tree.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build the kernels of the node and of its microVMs from the fragments in kernel-config/.
    Kernel(kernel::Arguments),
    /// Build the node image with everything that goes into it, and print what each part costs.
    Image(image::Arguments),
    /// Boot an image in QEMU with its serial line on the terminal.
    Qemu(qemu::Arguments),
    /// Measure what the budget table names, and say which budget is missed.
    Bench(bench::Arguments),
    /// Build everything twice, compare byte by byte, and put the result with its papers into a dated folder.
    Nightly(nightly::Arguments),
    /// Run the seeded simulation of the ledger: several validators, liars, crashes, partitions.
    Sim(sim::Arguments),
    /// Check what no compiler checks: crate edges, forbidden words, lengths, reasons.
    Tidy(tidy::Arguments),
    /// Everything a change must pass before it is pushed, except the tests.
    Check(check::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Kernel(arguments) => kernel::run(&arguments),
        Chore::Image(arguments) => image::run(&arguments),
        Chore::Qemu(arguments) => qemu::run(&arguments),
        Chore::Bench(arguments) => bench::run(&arguments),
        Chore::Nightly(arguments) => nightly::run(&arguments),
        Chore::Sim(arguments) => sim::run(&arguments),
        Chore::Tidy(arguments) => tidy::run(&arguments),
        Chore::Check(arguments) => check::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain, once, here and nowhere else.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
