//! PID 1 of a Croft node, and the few things that the node's agent shares with it.
//!
//! The binary `init` brings the machine from the kernel's hand-over to a supervised `/usr/bin/node`, and from a
//! request to a clean reboot or power-off. It must never exit, never wait without a limit, never speak to the
//! grid and never delete anything on a disk.
//!
//! ```text
//! main -> mounts (and the root moves to a tmpfs) -> clock -> entropy -> devices -> run (supervisor) -> reboot
//!            \______________ failure: `emergency` stops everything, counts down and reboots _____/
//! ```
//!
//! The same program with `--screen` is the [`screen`], a process of its own.
//!
//! For others: [`stage`] logs the boot in one format, [`notify`] is the line between node and init, [`log`] writes
//! records to the kernel log.

pub mod child;
pub mod clock;
pub mod devices;
pub mod emergency;
pub mod entropy;
pub mod gatekeeper;
pub mod kexec;
pub mod linux;
pub mod lockdown;
pub mod log;
pub mod mountinfo;
pub mod mounts;
pub mod notify;
pub mod output;
pub mod power_button;
pub mod privileges;
pub mod root;
pub mod run;
pub mod screen;
pub mod stage;
pub mod supervisor;
pub mod syscalls;
pub mod sysctl;
pub mod watchdog;
