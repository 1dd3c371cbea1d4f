//! The ledger's agent: it orders commands into blocks, keeps them, and answers questions about them.
//!
//! ```text
//!   client ──Submit──> server ──admission──> ordering ──make_block──> store (durable) ──> Final
//!                        │ Get, Range, Query, Follow   <── Snapshot ──────┘
//!                        └ blobs, mailboxes, presence, relay: beside the ledger
//! ```
//! Where to look: [`replica`] starts and stops it, [`config`] reads and writes its files, [`ordering`] makes
//! blocks, [`store`] keeps them, [`chain`] announces them; `server` is the QUIC API.

mod blobs;
pub mod chain;
pub mod config;
pub mod join;
mod mail;
pub mod ordering;
mod presence;
mod pruning;
mod rate;
mod refused;
pub mod rejoin;
pub mod replica;
mod server;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod store;
#[cfg(test)]
mod testing;

pub use blobs::BlobQuotas;
pub use config::{ConfigError, GridPlan, InitError, NewGrid, NewReplica, init_grid, replica_dir};
pub use replica::{Replica, ReplicaConfig, Running, StartError};

/// An error with all its causes in one line, for messages that leave this process.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
