//! The market: what something costs, who can serve a demand, how two bots agree on it, and why not.
//!
//! ```text
//!   user's bot                                                    farmer's bot
//!   candidates ── rank ──> Order ── Demand, Counter*, Propose ──> Desk <── Policy (policy.toml)
//!                            │  <── Offer, Counter*, Approve ──     │ reservations
//!                            │ score: why this one, why no other    │
//!                            └────── Commit: the ledger ────────────┘
//! ```
//! [`order`] and [`desk`] are the two bots as machines: events and time in, outputs in their order out. [`transcript`] is
//! what was said, provable; [`strategy`] and [`policy`] decide; [`score`] chooses and explains; [`journal`] is where
//! intents are written before they are acted on. [`standing`] keeps so many replicas of one thing. [`advice`] is where an
//! owner's own code has a say.
//!
//! No I/O, no clock, no randomness: the same input gives the same answer in every bot. Only typed terms count;
//! free text and speed of reply never do. Every refusal explains itself before anybody pays.

pub mod advice;
pub mod conversation;
pub mod desk;
pub mod journal;
pub mod order;
pub mod policy;
mod rank;
pub mod score;
pub mod standing;
pub mod strategy;
#[cfg(test)]
mod testing;
pub mod transcript;

pub use desk::{Desk, DeskEntry, DeskEvent, DeskOutput};
pub use order::{Order, OrderEntry, OrderEvent, OrderFailure, OrderOutput, Outcome, Wish};
pub use policy::{Policy, PolicyFile};
pub use rank::{Candidate, Demand, Excluded, Exclusion, Fit, Matches, rank};
pub use score::{Estimate, Explain, cost};
