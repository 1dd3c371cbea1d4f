//! Links and addresses of the node; networks of workloads. Everything goes through netlink and system calls of this
//! process: no other program is run.
//!
//! - [`config`], [`status`]: what the farmer wrote, and what the report says.
//! - `dhcp`, [`dns`], [`sntp`], [`clock`]: protocol cores without I/O, with their sockets at the edge.
//!
//! Must never: wait without a limit for somebody else's server, listen on a port, or leave an address on a link past
//! its lease.

pub mod config;
mod dhcp;
pub mod firewall;
pub mod mac;
mod netns;
mod rtnl;
pub mod status;
mod sysctl;
mod tap;
pub mod workload;
