//! What a node's monitor shows, and the menu behind its keyboard. No I/O, no clock.
//!
//! ```text
//!   agent ──Status (wire)──┐
//!   kernel log ──Stages────┼──> View ──layout──> Frame ──Painter──> bytes for the terminal
//!   keyboard ──Keys──> Menu┘         └─> Action (restart, switch off) or Order (to the agent)
//! ```
//!
//! It must never let text from outside steer the terminal, never draw beyond the size that it was given, and never
//! yield the order to wipe a disk unless its serial number was typed.

pub mod frame;
mod layout;
pub mod menu;
pub mod model;
mod qr;
pub mod stages;
pub mod text;
pub mod wire;

pub use frame::{Frame, Painter, Size};
pub use layout::{View, render};
pub use menu::{Action, Keys, Menu};
pub use model::{Order, Status, Tone};
pub use stages::Stages;
