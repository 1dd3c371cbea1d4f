//! The policy file: what a farmer writes. Unknown fields are refused; every mistake is told with its line.
//!
//! It parses text and nothing else: reading the file and looking up bots is its caller's.

use std::collections::{BTreeMap, BTreeSet};

use croft_protocol::market::RESERVATION_MS;
use croft_protocol::{BotId, Capacity, Grains, Name, PriceList, limits, name, units};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{Approval, Policy};
use crate::desk::HOLD_LEAST_MS;
use crate::strategy::{Customers, Discounts, Regions, Term};

/// A policy file is written by hand: what is larger, is another file.
const FILE_BYTES: usize = 64 * 1024;
/// Entries of one list. Every demand is compared with all of them.
const LIST: usize = 1024;

/// The format, for people.
pub const FORMAT: &str = r#"THE POLICY FILE (policy.toml)

  maintenance = false              # true: no new contracts; what runs runs on
  regions = ["be", "nl/limburg"]   # sell only for nodes there; default: everywhere
  rounds = 4                       # prices that are named in one negotiation, 1 to 8

  [prices]                         # grains per second; default: the farm's on the ledger
  cpu = 10                         # one CPU
  memory_gib = 2
  ssd_gib = 1
  hdd_gib = 0

  [terms]
  min = "1h"                       # s, m, h, d; default 60s
  max = "365d"                     # default 3650d
  max_grace = "30d"                # default 90d

  [[discount]]                     # for contracts of at least so long; the longest that applies counts
  from = "30d"
  percent = 10

  [customers]                      # names of bots, or their ids; default: everybody
  allow = ["alice"]
  deny = ["mallory"]

  [reserve]
  floor_percent = 80               # never below this share of the price; default 100: no haggling
  keep_cpu = "1"                   # kept back on every node, for yourself
  keep_memory = "2G"
  keep_ssd = "10G"

  [approval]
  mode = "automatic"               # or "asked": 'croft farm serve' asks before it signs
  above = 100000                   # asked only above this price

  [hold]
  time = "60s"                     # how long capacity is held after an approval; at most 10m
  fee_percent = 100                # of the price of that time, owed if the reservation is not used
"#;

/// Why a text is no policy. Line numbers count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFileError {
    #[error("the policy has {bytes} bytes, at most {limit} are allowed: this is another file")]
    TooLarge { bytes: usize, limit: usize },
    #[error("line {line}: {reason}")]
    Syntax { line: usize, reason: String },
    #[error("{place}: {reason}")]
    Value { place: &'static str, reason: String },
}

/// A policy that names a bot that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("[customers]: there is no bot '{name}' on this grid: correct the name, or ask it to register")]
pub struct UnknownBot {
    pub name: String,
}

/// A policy with names of customers instead of their ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFile {
    policy: Policy,
    allow: Vec<Customer>,
    deny: Vec<Customer>,
}

/// A bot as a person writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Customer {
    Id(BotId),
    Name(Name),
}

// What serde reads. Amounts have types of their own, so that a bad one is told with its line.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    maintenance: bool,
    #[serde(default)]
    regions: Vec<Region>,
    rounds: Option<Rounds>,
    prices: Option<PriceList>,
    #[serde(default)]
    terms: RawTerms,
    #[serde(default)]
    discount: Vec<RawDiscount>,
    #[serde(default)]
    customers: RawCustomers,
    #[serde(default)]
    reserve: RawReserve,
    #[serde(default)]
    approval: RawApproval,
    #[serde(default)]
    hold: RawHold,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTerms {
    min: Option<Seconds>,
    max: Option<Seconds>,
    max_grace: Option<Seconds>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDiscount {
    from: Seconds,
    percent: Percent,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCustomers {
    #[serde(default)]
    allow: Vec<Customer>,
    #[serde(default)]
    deny: Vec<Customer>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReserve {
    floor_percent: Option<Percent>,
    keep_cpu: Option<Cpu>,
    keep_memory: Option<Bytes>,
    keep_ssd: Option<Bytes>,
    keep_hdd: Option<Bytes>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApproval {
    mode: Option<Mode>,
    above: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Automatic,
    Asked,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHold {
    time: Option<Seconds>,
    fee_percent: Option<Percent>,
}

/// A type that is read from a text by a function that explains itself.
macro_rules! from_text {
    ($name:ident, $inner:ty, $parse:expr) => {
        struct $name($inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as Deserialize>::deserialize(deserializer)?;
                $parse(text.as_str()).map(Self).map_err(D::Error::custom)
            }
        }
    };
}

from_text!(Seconds, u64, units::parse_seconds);
from_text!(Bytes, u64, units::parse_bytes);
from_text!(Cpu, u64, |text| units::parse_cpu_millis(text).map(u64::from));
from_text!(Region, (String, Option<Name>), parse_region);

struct Percent(u8);

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match <i64 as Deserialize>::deserialize(deserializer)? {
            percent @ 0..=100 => Ok(Self(percent as u8)),
            other => Err(D::Error::custom(format_args!("{other} is no share: write 0 to 100"))),
        }
    }
}

struct Rounds(u32);

impl<'de> Deserialize<'de> for Rounds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match <i64 as Deserialize>::deserialize(deserializer)? {
            rounds @ 1..=8 => Ok(Self(rounds as u32)),
            other => Err(D::Error::custom(format_args!("{other} rounds are not possible: write 1 to 8"))),
        }
    }
}

impl<'de> Deserialize<'de> for Customer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as Deserialize>::deserialize(deserializer)?;
        if text.len() == 64 {
            return text.parse().map(Self::Id).map_err(D::Error::custom);
        }
        Name::new(&text).map(Self::Name).map_err(D::Error::custom)
    }
}

fn parse_region(text: &str) -> Result<(String, Option<Name>), String> {
    let (country, region) = match text.split_once('/') {
        Some((country, region)) => (country, Some(Name::new(region).map_err(|e| e.to_string())?)),
        None => (text, None),
    };
    if !name::is_country(country) {
        let shown: String = country.chars().take(80).collect();
        return Err(format!(
            "'{shown}' is not a country: use two lower-case letters of ISO 3166-1, such as be, or be/flanders"
        ));
    }
    Ok((country.to_owned(), region))
}

impl PolicyFile {
    /// Reads a policy from its text.
    ///
    /// # Errors
    /// [`PolicyFileError`] names line or section, and what would be right.
    pub fn parse(text: &str) -> Result<Self, PolicyFileError> {
        if text.len() > FILE_BYTES {
            return Err(PolicyFileError::TooLarge { bytes: text.len(), limit: FILE_BYTES });
        }
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..offset].split(|b| *b == b'\n').count();
            // The parser quotes names `so`, we 'so'.
            let reason = error.message().trim().replace('`', "'").replace('\n', "; ");
            PolicyFileError::Syntax { line, reason }
        })?;
        raw.check()
    }

    /// Replaces names by ids.
    ///
    /// # Errors
    /// [`UnknownBot`] for the first that `lookup` does not know.
    pub fn resolve(self, mut lookup: impl FnMut(&Name) -> Option<BotId>) -> Result<Policy, UnknownBot> {
        let mut all = |customers: Vec<Customer>| -> Result<BTreeSet<BotId>, UnknownBot> {
            customers
                .into_iter()
                .map(|customer| match customer {
                    Customer::Id(id) => Ok(id),
                    Customer::Name(name) => lookup(&name).ok_or(UnknownBot { name: name.to_string() }),
                })
                .collect()
        };
        let customers = Customers { allowed: all(self.allow)?, denied: all(self.deny)? };
        Ok(Policy { customers, ..self.policy })
    }

    /// Names that [`Self::resolve`] will ask for.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.allow.iter().chain(&self.deny).filter_map(|customer| match customer {
            Customer::Name(name) => Some(name),
            Customer::Id(_) => None,
        })
    }
}

fn value(place: &'static str, reason: impl Into<String>) -> PolicyFileError {
    PolicyFileError::Value { place, reason: reason.into() }
}

impl Raw {
    fn check(self) -> Result<PolicyFile, PolicyFileError> {
        let default = Policy::default();
        let lists = [
            ("regions", self.regions.len()),
            ("[[discount]]", self.discount.len()),
            ("[customers] allow", self.customers.allow.len()),
            ("[customers] deny", self.customers.deny.len()),
        ];
        for (place, len) in lists {
            if len > LIST {
                return Err(value(place, format!("it has {len} entries, at most {LIST} are allowed")));
            }
        }
        if let Some(both) = self.customers.allow.iter().find(|c| self.customers.deny.contains(c)) {
            let reason = format!("'{both}' stands under allow and deny: take it out of one");
            return Err(value("[customers]", reason));
        }
        let hold_ms = self.hold.time.map_or(default.hold_ms, |time| time.0.saturating_mul(1000));
        if hold_ms > RESERVATION_MS {
            let reason = format!("capacity is held for at most {} s: write less", RESERVATION_MS / 1000);
            return Err(value("[hold] time", reason));
        }
        if hold_ms < HOLD_LEAST_MS {
            let reason = format!(
                "capacity that is held for less than {} s could not be announced, so nobody would pay for it: write more",
                HOLD_LEAST_MS / 1000
            );
            return Err(value("[hold] time", reason));
        }
        let policy = Policy {
            prices: self.prices,
            term: self.terms.check(default.term)?,
            discounts: discounts(self.discount)?,
            customers: Customers::default(),
            regions: Regions(self.regions.into_iter().map(|region| region.0).collect()),
            floor_percent: self.reserve.floor_percent.map_or(default.floor_percent, |p| p.0),
            keep: Capacity {
                cpu_millis: self.reserve.keep_cpu.map_or(0, |cpu| cpu.0),
                memory_bytes: self.reserve.keep_memory.map_or(0, |bytes| bytes.0),
                ssd_bytes: self.reserve.keep_ssd.map_or(0, |bytes| bytes.0),
                hdd_bytes: self.reserve.keep_hdd.map_or(0, |bytes| bytes.0),
                public_addresses: 0,
            },
            approval: self.approval.check()?,
            hold_ms,
            hold_fee_percent: self.hold.fee_percent.map_or(default.hold_fee_percent, |p| p.0),
            maintenance: self.maintenance,
            rounds: self.rounds.map_or(default.rounds, |rounds| rounds.0),
        };
        Ok(PolicyFile { policy, allow: self.customers.allow, deny: self.customers.deny })
    }
}

impl RawTerms {
    fn check(self, default: Term) -> Result<Term, PolicyFileError> {
        let or = |given: Option<Seconds>, default| given.map_or(default, |seconds| seconds.0);
        let term = Term {
            min_s: or(self.min, default.min_s),
            max_s: or(self.max, default.max_s),
            max_grace_s: or(self.max_grace, default.max_grace_s),
        };
        if term.max_s > limits::DURATION_S {
            let reason = format!("contracts last at most {} days: write less", limits::DURATION_S / 86_400);
            return Err(value("[terms] max", reason));
        }
        if term.max_grace_s > limits::GRACE_S {
            let reason = format!("data is kept for at most {} days: write less", limits::GRACE_S / 86_400);
            return Err(value("[terms] max_grace", reason));
        }
        if term.min_s > term.max_s {
            let reason =
                format!("{} s is more than max, {} s: nothing could be sold", term.min_s, term.max_s);
            return Err(value("[terms] min", reason));
        }
        Ok(term)
    }
}

impl RawApproval {
    fn check(self) -> Result<Approval, PolicyFileError> {
        match (self.mode, self.above) {
            (Some(Mode::Automatic), Some(_)) => {
                Err(value("[approval] above", "it means nothing with mode = \"automatic\": take one out"))
            }
            (None | Some(Mode::Automatic), None) => Ok(Approval::Automatic),
            (_, Some(above)) => Ok(Approval::AskedAbove(Grains(above))),
            (Some(Mode::Asked), None) => Ok(Approval::Asked),
        }
    }
}

fn discounts(raw: Vec<RawDiscount>) -> Result<Discounts, PolicyFileError> {
    let mut discounts = BTreeMap::new();
    for RawDiscount { from, percent } in raw {
        if discounts.insert(from.0, percent.0).is_some() {
            let reason = format!("two discounts start at {} s: keep one", from.0);
            return Err(value("[[discount]]", reason));
        }
    }
    Ok(Discounts(discounts))
}

impl std::fmt::Display for Customer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}
