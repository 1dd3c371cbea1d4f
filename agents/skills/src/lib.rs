//! Skills: code of others that a bot asks for an answer, such as a price, and never has to trust.
//!
//! ```text
//!   module ──pack──> component ──sign──> skill file ──decode: bounds, hash, signature──> SignedSkill
//!                                                                                            │ load: imports, types
//!                       question (typed) ──> an instance of its own, fuel, memory ──> Answer │<── Skill
//!                                                └─ trap, loop, memory, nonsense ──> Fault, and the bot's own way
//! ```
//! The interface is `wit/skill.wit`; [`hooks`] has its types. [`mod@file`] is what is passed around, [`pack`] makes it,
//! [`host`] runs it.
//!
//! A skill has no authority: it imports nothing but a bounded log. It must never see a clock, a key, a file or the
//! network, never run longer or grow larger than [`limits`] say, and never cost more than its own answer.

pub mod file;
pub mod hooks;
pub mod host;
pub mod limits;
pub mod pack;
mod shape;

pub use file::{Hook, Manifest, SignedSkill, SkillFileError};
pub use host::{Answer, Fault, Host, LoadError, Skill};
pub use pack::{PackError, component};

/// The interface, as skill writers get it.
pub const WIT: &str = include_str!("../wit/skill.wit");
