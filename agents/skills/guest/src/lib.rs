//! What a skill in Rust needs: the types of `skill.wit`, a trait for each hook, and the glue between them and the bot.
//!
//! ```ignore
//! struct Cheap;
//! impl croft_skill::Pricing for Cheap {
//!     fn price(demand: &croft_skill::Demand) -> croft_skill::Price {
//!         croft_skill::Price::Rate(demand.floor_rate)
//!     }
//! }
//! croft_skill::pricing!(Cheap);
//! ```
//! Built with `--target wasm32-unknown-unknown` as a `cdylib`, then `croft skill pack`. The glue follows the canonical ABI
//! of the component model: what `croft skill pack` takes was checked against `skill.wit`. It has no dependencies and needs
//! no newer Rust than 1.63, so that a distribution's compiler will do; wit-bindgen makes skills as well.

pub mod glue;

/// An amount of everything that a node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub ssd_bytes: u64,
    pub hdd_bytes: u64,
    pub public_addresses: u32,
}

/// How well a node's identity is known, from little to much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    Plain,
    Sealed,
    Attested,
}

/// What somebody wants to buy. Rates are grains per second, times milliseconds since 1970 UTC, keys 64 hex digits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    pub now_ms: u64,
    pub buyer: String,
    pub country: String,
    pub resources: Resources,
    /// What is free of the node before this demand.
    pub free: Resources,
    pub duration_s: u64,
    pub list_rate: u64,
    pub floor_rate: u64,
    pub policy_rate: u64,
    pub offered_rate: Option<u64>,
    pub our_rate: Option<u64>,
    pub round: u32,
    pub rounds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Price {
    /// What the policy says.
    Policy,
    /// This rate, within the policy's bounds.
    Rate(u64),
    Refuse,
}

/// What a farm wants for what is wanted; amounts are grains for the whole duration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub resources: Resources,
    pub duration_s: u64,
    pub price: u64,
    pub hold_fee: u64,
    pub effective: u64,
    pub farm: String,
    pub farmer: String,
    pub node: String,
    pub country: String,
    pub trust: Trust,
    pub uptime_permille: Option<u16>,
}

/// A contract that waits for an approver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub now_ms: u64,
    pub name: String,
    pub owner: String,
    pub owner_key: String,
    pub farm: String,
    pub country: String,
    pub trust: Trust,
    pub resources: Resources,
    pub price: u64,
    pub duration_s: u64,
    pub approved: u64,
    pub threshold: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A person decides.
    Abstain,
    Approve,
    Refuse,
}

/// What somebody wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub sender: String,
    pub sender_key: String,
    pub time_ms: u64,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reaction {
    Show,
    /// Shown, marked with a word of up to 32 characters.
    Mark(String),
    Hide,
}

/// A farmer's prices; made a hook by [`pricing!`].
pub trait Pricing {
    fn price(demand: &Demand) -> Price;
}

/// What a buyer holds against an offer, in grains; made a hook by [`scoring!`].
pub trait Scoring {
    fn surcharge(offer: &Offer) -> i64;
}

/// What an approver says; made a hook by [`approval!`].
pub trait Approval {
    fn decide(request: &Request) -> Decision;
}

/// What becomes of messages; made a hook by [`messages!`].
pub trait Messages {
    fn react(message: &Message) -> Reaction;
}

/// A line for whoever tests the skill: a few are kept, cut to 200 characters.
pub fn log(line: &str) {
    glue::log(line);
}

/// Makes a type that is [`Pricing`] the skill's pricing hook.
#[macro_export]
macro_rules! pricing {
    ($skill:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[export_name = "croft:skill/pricing@1.0.0#price"]
        pub unsafe extern "C" fn __croft_skill_price(
            question: *const $crate::glue::RawDemand,
        ) -> *const $crate::glue::RawPrice {
            $crate::glue::price::<$skill>(question)
        }
    };
}

/// Makes a type that is [`Scoring`] the skill's scoring hook.
#[macro_export]
macro_rules! scoring {
    ($skill:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[export_name = "croft:skill/scoring@1.0.0#surcharge"]
        pub unsafe extern "C" fn __croft_skill_surcharge(question: *const $crate::glue::RawOffer) -> i64 {
            $crate::glue::surcharge::<$skill>(question)
        }
    };
}

/// Makes a type that is [`Approval`] the skill's approval hook.
#[macro_export]
macro_rules! approval {
    ($skill:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[export_name = "croft:skill/approval@1.0.0#decide"]
        pub unsafe extern "C" fn __croft_skill_decide(question: *const $crate::glue::RawRequest) -> i32 {
            $crate::glue::decide::<$skill>(question)
        }
    };
}

/// Makes a type that is [`Messages`] the skill's messages hook.
#[macro_export]
macro_rules! messages {
    ($skill:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[export_name = "croft:skill/messages@1.0.0#react"]
        pub unsafe extern "C" fn __croft_skill_react(
            sender: *const u8,
            sender_len: usize,
            sender_key: *const u8,
            sender_key_len: usize,
            time_ms: u64,
            text: *const u8,
            text_len: usize,
        ) -> *const $crate::glue::RawReaction {
            let message = $crate::Message {
                sender: $crate::glue::text(sender, sender_len),
                sender_key: $crate::glue::text(sender_key, sender_key_len),
                time_ms,
                text: $crate::glue::text(text, text_len),
            };
            $crate::glue::react::<$skill>(&message)
        }
    };
}
