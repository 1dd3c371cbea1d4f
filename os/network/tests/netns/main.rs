//! The crate against a real kernel and real peers, in network namespaces that the tests make themselves.
//!
//! One binary, so that it can be linked statically and run inside the node image too. Needs root; a test whose tool or
//! kernel feature is missing prints why it is skipped. Nothing leaves these namespaces.

mod compound;
mod harness;
mod links;
mod workloads;
