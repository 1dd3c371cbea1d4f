//! What can be searched for, and how a search goes on from page to page.
//!
//! Every condition that is given must hold. A search finds what its replica shows; proofs tell that a found
//! thing is what it says, never that none was left out.

use std::io;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::Serialize;

pub use crate::directory::BotQuery;
use crate::directory::is_printable;
use crate::name::is_country;
use crate::record::{FarmBody, FarmId, NodeBody, TrustClass};
use crate::{BotId, Capacity, ContractBody, ContractState, Grains, Hash, Name, NodeId, limits};

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    Nodes(NodeQuery),
    Farms(FarmQuery),
    Contracts(ContractQuery),
    /// From or to a bot, oldest first.
    Transfers {
        of: BotId,
    },
    /// Recipes that were not withdrawn.
    Recipes {
        author: Option<BotId>,
    },
    /// Bots that say something of themselves.
    Bots(BotQuery),
    /// With a bot as user or farmer, whatever became of them.
    Reservations {
        of: BotId,
    },
}

/// Nodes by themselves and by their farm.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct NodeQuery {
    pub farm: Option<FarmId>,
    /// Owner of the farm.
    pub owner: Option<BotId>,
    /// Of the farm: ISO 3166-1 alpha-2, lower case.
    pub country: Option<String>,
    /// Of the farm; only with its country.
    pub region: Option<Name>,
    /// At least this much of each resource is free.
    pub free: Capacity,
    /// At most this, in grains, for an hour of `free` by the farm's price list as it is now
    /// ([`crate::PriceList::per_hour`]). What costs more than 2^64 grains never fits.
    pub max_per_hour: Option<Grains>,
    /// This class or a better one.
    pub trust: Option<TrustClass>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct FarmQuery {
    pub owner: Option<BotId>,
    /// ISO 3166-1 alpha-2, lower case.
    pub country: Option<String>,
    /// Only with its country.
    pub region: Option<Name>,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct ContractQuery {
    pub user: Option<BotId>,
    pub farmer: Option<BotId>,
    pub node: Option<NodeId>,
    pub phases: Phases,
    /// Their time is or was over before this: milliseconds since 1970, UTC. A contract that waits for its
    /// quorum has no such time and is not found.
    pub expires_before_ms: Option<u64>,
}

impl Default for ContractQuery {
    /// All that have not ended.
    fn default() -> Self {
        Self { user: None, farmer: None, node: None, phases: Phases::LIVE, expires_before_ms: None }
    }
}

/// A contract's state without the reason of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Agreed,
    Approved,
    Active,
    Degraded,
    Ended,
    Paused,
}

impl Phase {
    pub const ALL: [Self; 6] =
        [Self::Agreed, Self::Approved, Self::Active, Self::Degraded, Self::Ended, Self::Paused];
}

impl From<ContractState> for Phase {
    fn from(state: ContractState) -> Self {
        match state {
            ContractState::Agreed => Self::Agreed,
            ContractState::Approved => Self::Approved,
            ContractState::Active => Self::Active,
            ContractState::Degraded => Self::Degraded,
            ContractState::Ended(_) => Self::Ended,
            ContractState::Paused { .. } => Self::Paused,
        }
    }
}

/// A set of phases, never empty: one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize)]
pub struct Phases(u8);

impl Phases {
    pub const ALL: Self = Self(0b11_1111);
    /// All that have not ended.
    pub const LIVE: Self = Self(0b10_1111);

    /// `None` for no phases at all: such a search would find nothing, whatever there is.
    #[must_use]
    pub fn of(phases: &[Phase]) -> Option<Self> {
        let bits = phases.iter().fold(0, |bits, phase| bits | 1 << *phase as u8);
        (bits != 0).then_some(Self(bits))
    }

    #[must_use]
    pub fn has(self, phase: Phase) -> bool {
        self.0 & (1 << phase as u8) != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Phase> {
        Phase::ALL.into_iter().filter(move |phase| self.has(*phase))
    }
}

impl BorshDeserialize for Phases {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        match u8::deserialize_reader(reader)? {
            bits @ 1..=0b11_1111 => Ok(Self(bits)),
            bits => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{bits:#b} is no set of phases"))),
        }
    }
}

impl Serialize for Phases {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// Where a search goes on. Opaque: bound to the search that it came from, and valid while records change.
/// What is added, or moves in the order of the search, between two pages may be found twice or not at all;
/// all else is found once.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize)]
pub struct Cursor(Vec<u8>);

impl Cursor {
    /// `None` for more than [`limits::CURSOR_BYTES`].
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() <= limits::CURSOR_BYTES).then_some(Self(bytes))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl BorshDeserialize for Cursor {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        let bytes = Vec::deserialize_reader(reader)?;
        let len = bytes.len();
        let too_long = || format!("a cursor has at most {} bytes, not {len}", limits::CURSOR_BYTES);
        Self::new(bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, too_long()))
    }
}

/// A search that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuery {
    #[error("'{country}' is not a country: use two lower-case letters of ISO 3166-1, such as be")]
    Country { country: String },
    #[error("region '{region}' is asked for without its country: name both")]
    RegionAlone { region: Name },
    #[error("a text to search for has 1 to {limit} bytes of printable characters", limit = limits::SEARCH_TEXT_BYTES)]
    Text,
}

impl Query {
    /// Checks what its type does not say already.
    ///
    /// # Errors
    /// [`InvalidQuery`] names the condition.
    pub fn check(&self) -> Result<(), InvalidQuery> {
        let (country, region) = match self {
            Self::Nodes(NodeQuery { country, region, .. })
            | Self::Farms(FarmQuery { country, region, .. }) => (country, region),
            Self::Bots(BotQuery { text: Some(text), .. }) => {
                let fits = (1..=limits::SEARCH_TEXT_BYTES).contains(&text.len());
                return if fits && text.chars().all(is_printable) { Ok(()) } else { Err(InvalidQuery::Text) };
            }
            Self::Contracts(_)
            | Self::Transfers { .. }
            | Self::Recipes { .. }
            | Self::Bots(_)
            | Self::Reservations { .. } => return Ok(()),
        };
        match (country, region) {
            (Some(country), _) if !is_country(country) => {
                Err(InvalidQuery::Country { country: country.chars().take(16).collect() })
            }
            (None, Some(region)) => Err(InvalidQuery::RegionAlone { region: region.clone() }),
            _ => Ok(()),
        }
    }

    /// What a cursor is bound to.
    #[must_use]
    pub fn shape(&self) -> Hash {
        Hash::of("croft/query/1", self)
    }
}

impl FarmQuery {
    #[must_use]
    pub fn matches(&self, farm: &FarmBody) -> bool {
        is_in(farm, self.owner, self.country.as_ref(), self.region.as_ref())
    }
}

fn is_in(farm: &FarmBody, owner: Option<BotId>, country: Option<&String>, region: Option<&Name>) -> bool {
    owner.is_none_or(|owner| farm.owner == owner)
        && country.is_none_or(|country| farm.country == *country)
        && region.is_none_or(|region| farm.region.as_ref() == Some(region))
}

impl NodeQuery {
    /// Whether what is known of a node and its farm is what was asked for.
    #[must_use]
    pub fn matches(&self, node: &NodeBody, free: &Capacity, farm: &FarmBody) -> bool {
        self.farm.is_none_or(|farm| node.farm == farm)
            && is_in(farm, self.owner, self.country.as_ref(), self.region.as_ref())
            && free.covers(&self.free)
            && self.trust.is_none_or(|trust| node.trust >= trust)
            && self.affords(&farm.prices)
    }

    /// Whether these prices are within the limit.
    #[must_use]
    pub fn affords(&self, prices: &crate::PriceList) -> bool {
        self.max_per_hour.is_none_or(|max| prices.per_hour(&self.free).is_some_and(|cost| cost <= max))
    }
}

impl ContractQuery {
    #[must_use]
    pub fn matches(&self, contract: &ContractBody) -> bool {
        let terms = &contract.signed.terms;
        self.user.is_none_or(|user| terms.user == user)
            && self.farmer.is_none_or(|farmer| terms.farmer == farmer)
            && self.node.is_none_or(|node| terms.node == node)
            && self.phases.has(contract.state.into())
            && self.expires_before_ms.is_none_or(|t| contract.expires_ms().is_some_and(|at| at < t))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_needs_its_country_and_a_country_has_two_letters() {
        let region = Some(Name::new("flanders").unwrap());
        let query = Query::Farms(FarmQuery { region: region.clone(), ..FarmQuery::default() });
        let alone = query.check().unwrap_err().to_string();
        assert_eq!(alone, "region 'flanders' is asked for without its country: name both");
        let long = Some("Belgium".repeat(10));
        let query = Query::Nodes(NodeQuery { country: long, ..NodeQuery::default() });
        let error = query.check().unwrap_err().to_string();
        assert!(error.starts_with("'BelgiumBelgiumBe' is not a country"), "{error}");
        let country = Some("be".to_owned());
        assert_eq!(Query::Farms(FarmQuery { country, region, ..FarmQuery::default() }).check(), Ok(()));
    }

    #[test]
    fn sets_of_phases_are_decoded_only_when_they_name_phases() {
        for bits in [0_u8, 0b100_0000, 0xff] {
            assert!(borsh::from_slice::<Phases>(&[bits]).is_err(), "{bits}");
        }
        let some = Phases::of(&[Phase::Active, Phase::Ended]).unwrap();
        assert_eq!(borsh::from_slice::<Phases>(&crate::encode(&some)).unwrap(), some);
        assert_eq!(some.iter().collect::<Vec<_>>(), [Phase::Active, Phase::Ended]);
        assert_eq!(Phases::of(&[]), None);
        assert!(!Phases::LIVE.has(Phase::Ended));
    }

    #[test]
    fn a_cursor_longer_than_its_limit_is_not_decoded() {
        let bytes = crate::encode(&vec![0_u8; limits::CURSOR_BYTES + 1]);
        let error = borsh::from_slice::<Cursor>(&bytes).unwrap_err().to_string();
        assert_eq!(error, "a cursor has at most 256 bytes, not 257");
    }
}
