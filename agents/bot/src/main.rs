//! `croft`: reads the command line, carries it out, and ends with a code that says how it went.

use std::process::ExitCode;

use croft_bot::commands::{Stop, run};
use croft_bot::exit::{Exit, Failure};
use croft_bot::flags::Flags;
use croft_bot::plan::{Plan, ProcessEnvironment};
use croft_bot::terminal::Terminal;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let flags = match Flags::parse_line(std::env::args_os()) {
        Ok(flags) => flags,
        Err(error) => {
            // Help and version are no errors and go to stdout. Nobody is left to tell if that is gone.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    let mut terminal = Terminal::standard(flags.common.json);
    let done = Plan::new(flags, &ProcessEnvironment).and_then(|plan| carry_out(plan, &mut terminal));
    match done {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            terminal.failure(&failure);
            failure.exit.into()
        }
    }
}

fn carry_out(plan: Plan, terminal: &mut Terminal) -> Result<(), Failure> {
    log_to_stderr(if plan.action.ends_by_signal() { "warn" } else { "error" });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    let (sender, stop) = Stop::new();
    if plan.action.is_local() {
        // It never yields, so it would not hear of a signal: the default ends it at once.
        return runtime.block_on(run(plan, terminal, &ProcessEnvironment, stop));
    }
    runtime.block_on(async {
        let ends_itself = plan.action.ends_by_signal();
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
        let signals = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            let _ = sender.send(true);
            if ends_itself {
                // A second one, for the impatient.
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            }
        };
        tokio::select! {
            done = run(plan, terminal, &ProcessEnvironment, stop) => done,
            () = signals => Err(Failure::interrupted()),
        }
    })
}

/// Logs from this level on, or what RUST_LOG asks for.
fn log_to_stderr(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
