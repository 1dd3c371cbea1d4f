//! The machines of `croft_market` as they run in a bot: their journals are files, their messages go through the relay.
//!
//! ```text
//!   place() ── Order ── demand, counter, propose ──relay──> Office ── Desk      (croft deploy, croft farm serve)
//!      └ orders/…/journal                                     └ desks/…/journal
//! ```
//! No terminal in here: who calls it says what a person is shown. It must never go on after an entry that may not be
//! durable.

pub(crate) mod candidates;
pub(crate) mod journal;
pub(crate) mod office;
pub(crate) mod order;
pub(crate) mod upload;
pub(crate) mod why;
