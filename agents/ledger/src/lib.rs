//! The ledger's state machine: commands in, records and state out.
//!
//! ```text
//!   signed commands ──> execute_block ──> BlockOutcome { records, writes, results, events }
//!                          ^                        │
//!                     StateRead                 assemble ──> Header + nodes of both trees
//! ```
//! No I/O, no clock, no randomness, no floating point, no unordered maps: two replicas that execute the same
//! blocks get the same bytes. It must never turn a storage failure into a rejection: a [`StateError`] stops
//! the block, and nothing of it may be kept.
//!
//! Where to look: [`block`] executes, [`state`] is what the store must offer, [`log_tree`] and [`state_map`]
//! are the two authenticated trees, [`mod@assemble`] makes headers, [`invariants`] checks a whole state,
//! [`memory`] is a ledger without a disk for tests and simulators.

pub mod assemble;
pub mod block;
mod execute;
pub mod invariants;
pub mod log_tree;
pub mod memory;
pub mod state;
pub mod state_map;
mod work;

pub use assemble::{Assembled, Before, assemble, certify};
pub use block::{
    BlockContext, BlockOutcome, Event, InvalidGenesis, Receipt, SEQUENCE_WINDOW, check_admission,
    execute_block, execute_genesis,
};
pub use invariants::{BrokenInvariant, check_invariants};
pub use memory::MemoryLedger;
pub use state::{PresentValidators, StateError, StateRead, StateReadExt};

#[cfg(test)]
mod model_tests;
