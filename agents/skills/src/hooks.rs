//! The questions and answers of `wit/skill.wit` as types. Only numbers, keys, names and countries: what a stranger wrote
//! freely is nobody's reason for a price.

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

/// A capacity, wherever a question has one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[serde(deny_unknown_fields)]
#[component(record)]
pub struct Resources {
    #[component(name = "cpu-millis")]
    pub cpu_millis: u64,
    #[component(name = "memory-bytes")]
    pub memory_bytes: u64,
    #[component(name = "ssd-bytes")]
    pub ssd_bytes: u64,
    #[component(name = "hdd-bytes")]
    pub hdd_bytes: u64,
    #[component(name = "public-addresses")]
    pub public_addresses: u32,
}

impl From<&croft_protocol::Capacity> for Resources {
    fn from(capacity: &croft_protocol::Capacity) -> Self {
        let croft_protocol::Capacity { cpu_millis, memory_bytes, ssd_bytes, hdd_bytes, public_addresses } =
            *capacity;
        Self { cpu_millis, memory_bytes, ssd_bytes, hdd_bytes, public_addresses }
    }
}

/// As the ledger classes nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[serde(rename_all = "lowercase")]
#[component(enum)]
#[repr(u8)]
pub enum Trust {
    #[component(name = "plain")]
    Plain,
    #[component(name = "sealed")]
    Sealed,
    #[component(name = "attested")]
    Attested,
}

impl From<croft_protocol::record::TrustClass> for Trust {
    fn from(class: croft_protocol::record::TrustClass) -> Self {
        use croft_protocol::record::TrustClass;
        match class {
            TrustClass::Plain => Self::Plain,
            TrustClass::Sealed => Self::Sealed,
            TrustClass::Attested => Self::Attested,
        }
    }
}

/// Asked of a farmer's skill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[serde(deny_unknown_fields)]
#[component(record)]
pub struct Demand {
    #[component(name = "now-ms")]
    pub now_ms: u64,
    pub buyer: String,
    pub country: String,
    pub resources: Resources,
    pub free: Resources,
    #[component(name = "duration-s")]
    pub duration_s: u64,
    #[component(name = "list-rate")]
    pub list_rate: u64,
    #[component(name = "floor-rate")]
    pub floor_rate: u64,
    #[component(name = "policy-rate")]
    pub policy_rate: u64,
    #[component(name = "offered-rate")]
    pub offered_rate: Option<u64>,
    #[component(name = "our-rate")]
    pub our_rate: Option<u64>,
    pub round: u32,
    pub rounds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ComponentType, Lift)]
#[serde(rename_all = "lowercase")]
#[component(variant)]
pub enum Price {
    #[component(name = "policy")]
    Policy,
    #[component(name = "rate")]
    Rate(u64),
    #[component(name = "refuse")]
    Refuse,
}

/// Asked of a buyer's skill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[serde(deny_unknown_fields)]
#[component(record)]
pub struct Offer {
    pub resources: Resources,
    #[component(name = "duration-s")]
    pub duration_s: u64,
    pub price: u64,
    #[component(name = "hold-fee")]
    pub hold_fee: u64,
    pub effective: u64,
    pub farm: String,
    pub farmer: String,
    pub node: String,
    pub country: String,
    pub trust: Trust,
    #[component(name = "uptime-permille")]
    pub uptime_permille: Option<u16>,
}

/// Asked of an approver's skill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[serde(deny_unknown_fields)]
#[component(record)]
pub struct Request {
    #[component(name = "now-ms")]
    pub now_ms: u64,
    pub name: String,
    pub owner: String,
    #[component(name = "owner-key")]
    pub owner_key: String,
    pub farm: String,
    pub country: String,
    pub trust: Trust,
    pub resources: Resources,
    pub price: u64,
    #[component(name = "duration-s")]
    pub duration_s: u64,
    pub approved: u64,
    pub threshold: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ComponentType, Lift)]
#[serde(rename_all = "lowercase")]
#[component(enum)]
#[repr(u8)]
pub enum Decision {
    #[component(name = "abstain")]
    Abstain,
    #[component(name = "approve")]
    Approve,
    #[component(name = "refuse")]
    Refuse,
}

/// Asked of the receiver's skill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[serde(deny_unknown_fields)]
#[component(record)]
pub struct Message {
    pub sender: String,
    #[component(name = "sender-key")]
    pub sender_key: String,
    #[component(name = "time-ms")]
    pub time_ms: u64,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ComponentType, Lift)]
#[serde(rename_all = "lowercase")]
#[component(variant)]
pub enum Reaction {
    #[component(name = "show")]
    Show,
    #[component(name = "mark")]
    Mark(String),
    #[component(name = "hide")]
    Hide,
}

/// Questions that are like real ones, for whoever tries a skill out.
pub mod examples {
    use super::{Demand, Message, Offer, Request, Resources, Trust};

    /// 2027-01-15 03:00 UTC, a Friday.
    const NIGHT_MS: u64 = 1_799_982_000_000;

    fn resources() -> Resources {
        Resources { cpu_millis: 2000, memory_bytes: 4 << 30, ..Resources::default() }
    }

    fn key(n: u8) -> String {
        format!("{n:02x}").repeat(32)
    }

    #[must_use]
    pub fn demand() -> Demand {
        Demand {
            now_ms: NIGHT_MS,
            buyer: key(0xa1),
            country: "be".to_owned(),
            resources: resources(),
            free: Resources { cpu_millis: 8000, memory_bytes: 16 << 30, ..Resources::default() },
            duration_s: 86_400,
            list_rate: 400,
            floor_rate: 200,
            policy_rate: 400,
            offered_rate: None,
            our_rate: None,
            round: 0,
            rounds: 4,
        }
    }

    #[must_use]
    pub fn offer() -> Offer {
        Offer {
            resources: resources(),
            duration_s: 86_400,
            price: 34_560_000,
            hold_fee: 24_000,
            effective: 36_288_000,
            farm: "attic".to_owned(),
            farmer: key(0xb0),
            node: key(0xc0),
            country: "be".to_owned(),
            trust: Trust::Plain,
            uptime_permille: Some(998),
        }
    }

    #[must_use]
    pub fn request() -> Request {
        Request {
            now_ms: NIGHT_MS,
            name: "shop".to_owned(),
            owner: "alice".to_owned(),
            owner_key: key(0xa1),
            farm: "attic".to_owned(),
            country: "be".to_owned(),
            trust: Trust::Plain,
            resources: resources(),
            price: 34_560_000,
            duration_s: 86_400,
            approved: 0,
            threshold: 1,
        }
    }

    #[must_use]
    pub fn message() -> Message {
        Message {
            sender: "alice".to_owned(),
            sender_key: key(0xa1),
            time_ms: NIGHT_MS,
            text: "the disks are here".to_owned(),
        }
    }
}
