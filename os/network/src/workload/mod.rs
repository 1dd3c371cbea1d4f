//! Networks of workloads: one per deployment (contract), apart from all others and from the node itself.
//!
//! ```text
//!  root namespace                      namespace /run/croft/netns/<contract>
//!  cw<12 hex> 10.90.7.1/24 ==veth== up0 -- br0 -- ct<12 hex> (tap) == guest 10.90.7.2/24
//!      |                                      `-- ct<12 hex> (tap) == guest 10.90.7.3/24
//!  forwarding, nftables, NAT
//! ```
//!
//! Names, MAC addresses and guest addresses follow from ids alone; which subnet a deployment has is written down in
//! one place only, the address of its link. So a node that restarts finds everything again and owns no state file.

mod deployment;
mod names;
mod pool;

pub use deployment::{
    DeploymentNetwork, DeploymentSpec, EnsureError, Existing, MachineSpec, NAMESPACES, OpenTapError,
    RemoveError, TapDevice, Workloads, WorkloadsError, open_tap,
};
pub use names::{DeploymentId, DeploymentIdError};
pub use pool::{Pool, PoolError};

pub(crate) use names::LINK_PREFIX;

pub use crate::netns::{Namespace, NamespaceError};
pub use crate::tap::{Owner, TapError};
