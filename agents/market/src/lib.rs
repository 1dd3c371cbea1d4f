//! The market: what something costs, who can serve a demand, and whether a farmer signs.
//!
//! ```text
//!   user's bot                                 farmer's bot
//!   Demand + Candidates ── rank ──> Matches
//!                            │ best fit, or why none
//!                            v
//!                          Terms ── proposal ──> check_proposal ──> signs, or a typed refusal
//! ```
//! No I/O, no clock, no randomness: the same input gives the same answer in every bot. Only typed terms count;
//! free text and speed of reply never do. Every refusal explains itself before anybody pays.

mod proposal;
mod rank;

pub use proposal::{FarmerPolicy, OfferedNode, ProposalRefusal, check_proposal};
pub use rank::{Candidate, Demand, Excluded, Exclusion, Fit, Matches, rank};
