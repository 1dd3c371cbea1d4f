//! What makes a stranger's answer true: certificates, proofs and signatures.
//!
//! ```text
//!   pinned chain and validator set
//!        │ HandoverWalk, once per change of validators
//!        v
//!   LightClient ── accept_tip ──> Tip ── verify_value, verify_record ──> what the ledger really says
//!                                  └── verify_node_contracts, verify_contract ──> what a node may run
//! ```
//! No I/O and no clock. It must never hand out anything that more than two thirds of the trusted validators
//! have not signed for, directly or through a proof, and never trust a replica for anything but being there.
//!
//! Errors say what is wrong with the answer; the caller knows which replica sent it and asks another.

mod contract;
mod handover;
mod proof;
mod tip;

pub use contract::{ContractError, VerifiedContract, verify_contract, verify_node_contracts};
pub use handover::{HANDOVERS, HandoverWalk, compare};
pub use proof::{verify_consistency, verify_history, verify_prefix, verify_record, verify_value};
pub use tip::{Bounds, Contradiction, Fault, LightClient, LightError, Tip, verify_certificate};

#[cfg(test)]
mod tests;
