//! What the microVM's PID 1 and the host that drives it have in common, and the parts of PID 1 that need no
//! kernel to be tested: messages, the outbox with its window, health decisions, users of an image.
//!
//! Must never grow an async runtime or a dependency on the rest of the grid: this code is inside every guest.

pub mod health;
pub mod outbox;
pub mod users;
pub mod wire;
