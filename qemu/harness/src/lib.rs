//! Boots kernel and initramfs in QEMU and gives typed handles to the machine: serial line, network,
//! disks, power and screen.
//!
//! ```text
//! Profile (TOML) + Boot (kernel, initramfs, files) --start--> Machine
//!                                                               |- serial()   lines, wait_for
//!                                                               |- address()  host ports of forwards
//!                                                               |- power      kill, powerdown, reset
//!                                                               '- qmp()      screen, links, events
//! ```
//!
//! Everything has a time limit. A machine must never outlive its handle, nor the process that holds it.
//! The guest reaches the host's loopback at [`HOST_ADDRESS`].

pub mod accelerator;
pub mod command;
pub mod disk;
pub mod firmware;
pub mod machine;
pub mod picture;
pub mod profile;
pub mod qmp;
pub mod serial;
mod tpm;

pub use accelerator::{Accelerator, Decision};
pub use command::{Forward, Medium, NetworkBoot, Protocol, Wire};
pub use firmware::SecureBoot;
pub use machine::{Boot, Exit, Machine, OnReboot};
pub use picture::Picture;
pub use profile::Profile;
pub use serial::{Line, Pattern, Serial};

/// Where a guest on the first NIC finds the host's loopback.
pub const HOST_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 0, 2, 2);
