//! The node's agent: `/usr/bin/node`, started and supervised by init.
//!
//! [`sequence`] reads as the flow. The same binary is the helper that jails monitors; it never returns from that.

mod addition;
mod attendant;
mod capacity;
mod contracts;
mod coverage;
mod images;
mod late;
mod ledger;
mod links;
mod log;
mod machines;
mod medium;
mod membership;
mod memory;
mod netboot;
mod networks;
mod peers;
mod reconcile;
mod register;
mod running;
mod screen;
mod sequence;
mod spec;
mod time;
mod troubles;
mod upgrade;
mod voice;
mod volumes;
mod wipe;
mod witness;
mod workload;

use std::process::ExitCode;

use croft_init::log::{Level, Log};
use croft_init::notify::Notifier;

fn main() -> ExitCode {
    // First of all: the jail must have a single thread and no open file.
    croft_microvm::jail::maybe_enter();
    let notifier = Notifier::from_env();
    let log = log::start();
    let notifier = match notifier {
        Ok(notifier) => notifier,
        Err(error) => {
            log.line(Level::Error, &format!("croft: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            log.line(Level::Error, &format!("croft: the node can't start its threads: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime
        .block_on(sequence::Start { log: &*log, notifier, troubles: troubles::Troubles::default() }.run())
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.line(Level::Error, &format!("croft: the node can't run: {}", ledger::chain_of(&error)));
            ExitCode::FAILURE
        }
    }
}
