//! PID 1 of a microVM: turns a verified image, a configuration and some devices into a running workload,
//! tells the host about it, and powers off when it ends.
//!
//! ```text
//! mounts ─> dial host ─> configuration ─> root image ─> volumes ─> network ─> files ─> entry point
//!                                                                                         │
//! power off <─ report exit <─ sync, unmount <─ kill what is left <─ exited or stopped <────┘
//! ```
//!
//! Must never: return from `main` or panic without powering off (the VMM would restart the kernel for ever),
//! open a listening port, take configuration from the kernel command line, or let a slow host stall the
//! workload. There is no async runtime and no shell.

mod boot;
mod checks;
mod exec;
mod failure;
mod host;
mod mounts;
mod names;
mod network;
mod power;
mod process;
mod supervise;
mod volumes;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let _program = arguments.next();
    if arguments.next().is_some_and(|first| first == exec::ARGUMENT) {
        return exec::run(arguments);
    }
    if std::process::id() != 1 {
        eprintln!("guest is PID 1 of a microVM and does nothing elsewhere");
        return ExitCode::from(2);
    }
    boot::run();
    power::off()
}
