//! The person's agent, as a library: everything that `croft` does, callable in-process.
//!
//! ```text
//!   flags (what was typed) ──> plan (validated) ──> commands (one module each) ──> terminal, exit code
//!                                                     │
//!                    home (keys, pins, images)  grid (proved reads)  peers (nodes, farmers)  image (build)
//! ```

pub mod commands;
pub mod deploy_file;
pub mod exit;
pub(crate) mod files;
pub mod flags;
#[cfg(test)]
mod flow_tests;
#[doc(hidden)]
pub mod fuzzing;
pub mod grid;
pub mod home;
pub mod image;
pub mod keep_file;
pub mod keyfile;
pub(crate) mod market;
pub mod peers;
pub mod plan;
pub mod recipe;
pub(crate) mod skills;
pub mod terminal;
#[cfg(test)]
pub(crate) mod testing;
