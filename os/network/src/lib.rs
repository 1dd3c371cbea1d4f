//! Links and addresses of the node; networks of workloads. Everything goes through netlink and system calls of this
//! process: no other program is run.
//!
//! - [`config`], [`status`]: what the farmer wrote, and what the report says.
//! - `dhcp`, [`dns`], [`sntp`], [`clock`]: protocol cores without I/O, with their sockets at the edge.
//!
//! Must never: wait without a limit for somebody else's server, listen on a port, or leave an address on a link past
//! its lease.

pub mod clock;
mod compound;
pub mod config;
mod dhcp;
pub mod dns;
pub mod firewall;
#[doc(hidden)]
pub mod fuzzing;
mod link;
pub mod listeners;
pub mod mac;
mod netns;
mod network;
mod rtnl;
pub mod sntp;
pub mod status;
mod sysctl;
mod tap;
pub mod workload;

pub use config::{BondConfig, BondMode, LinkConfig, LinkMode, NetworkConfig};
pub use dhcp::boot::{BootOffer, ask as ask_boot_file};
pub use dns::resolve;
pub use listeners::listeners;
pub use mac::MacAddr;
pub use network::{Network, StartError, WaitLimits};
pub use rtnl::NetlinkError;
pub use status::{LinkStatus, NetworkStatus, NoUplink};
pub use sysctl::SysctlError;
