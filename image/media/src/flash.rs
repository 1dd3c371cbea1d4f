//! Writes an image to a stick: look at the target, refuse what must not be written to, write, read back.
//!
//! ```text
//!   Target::describe ─ show to a person, who agrees ─▶ Target::check ─▶ Writable ─▶ write ─▶ Written
//!                                                          └─▶ Refusal
//! ```
//! Must never write to a device that is mounted, used by another device, or carries the running system, however it was
//! asked for; and never call a stick good that does not read back as it was written.

mod target;
mod write;

pub use target::{DescribeError, Mount, Partition, Refusal, Roots, Target, Writable};
pub use write::{FlashError, Phase, Progress, Written, write};
