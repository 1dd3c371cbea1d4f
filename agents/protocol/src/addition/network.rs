//! A farm's own settings of links: addresses, VLANs, bonds, as typed values with bounds.
//!
//! Whether the machine has these links is not known here; whether they make sense is.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::boot::{BondSettings, LinkMode, LinkSettings};
use crate::limits;

pub use crate::boot::BondMode;

/// How a link is found: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum LinkId {
    /// The kernel's name, such as `enp3s0`; for a bond the name that it gets.
    Name(String),
    /// Six bytes, not of a group.
    Mac([u8; 6]),
}

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Prefix {
    pub address: IpAddr,
    /// Bits: 1 to 32 or 128.
    pub length: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an address with its prefix length such as 192.0.2.10/24")]
pub struct ParsePrefixError {
    pub text: String,
}

/// How a link gets its addresses.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum LinkUse {
    Dhcp,
    Static { addresses: Vec<Prefix>, gateway: Option<IpAddr> },
    Off,
}

/// Several links that act as one.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Bond {
    pub members: Vec<LinkId>,
    pub mode: BondMode,
}

/// One link that doesn't simply use DHCP without a tag.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Link {
    pub id: LinkId,
    pub uses: LinkUse,
    /// Resolvers; asked before those that DHCP names.
    pub dns: Vec<IpAddr>,
    /// The addresses are on this VLAN (IEEE 802.1Q, 1 to 4094) of the link, not on the link itself.
    pub vlan: Option<u16>,
    /// The link is made of these.
    pub bond: Option<Bond>,
}

/// Settings of links that can't be meant so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLink {
    #[error("{count} {what}, at most {max} are possible")]
    TooMany { what: &'static str, count: usize, max: usize },
    #[error(
        "'{name}' is neither the name of a link (1 to 15 printable characters without '/' and spaces) nor a MAC address of one card"
    )]
    Id { name: String },
    #[error("link '{link}' stands twice: keep one entry, or give the entries different VLANs")]
    Repeated { link: String },
    #[error("link '{link}' is static but has no address: add one such as 192.0.2.10/24, or use DHCP")]
    NoAddress { link: String },
    #[error(
        "link '{link}' has addresses or a gateway but is not static: set it to static, or leave them out"
    )]
    UnusedAddress { link: String },
    #[error("link '{link}': {source}")]
    Prefix { link: String, source: ParsePrefixError },
    #[error("link '{link}': {address} is no address that a machine can have")]
    Address { link: String, address: IpAddr },
    #[error("link '{link}': VLAN {vlan} does not exist, possible are 1 to 4094")]
    Vlan { link: String, vlan: u16 },
    #[error("bond '{link}' must have a name of its own, not a MAC address")]
    BondName { link: String },
    #[error("bond '{link}' has {count} members, possible are 1 to {max}", max = limits::BOND_MEMBERS)]
    BondMembers { link: String, count: usize },
    #[error(
        "link '{member}' belongs to a bond and stands somewhere else too: a member has no settings of its own"
    )]
    BondMember { member: String },
}

impl LinkId {
    /// `enp3s0` or `52:54:00:12:34:56`.
    ///
    /// # Errors
    /// [`InvalidLink::Id`].
    pub fn parse(text: &str) -> Result<Self, InvalidLink> {
        let id = if text.contains(':') { Self::parse_mac(text) } else { Some(Self::Name(text.to_owned())) };
        let wrong = || InvalidLink::Id { name: text.chars().filter(|c| !c.is_control()).take(40).collect() };
        id.filter(Self::is_possible).ok_or_else(wrong)
    }

    fn parse_mac(text: &str) -> Option<Self> {
        let mut mac = [0; 6];
        let mut digits = text.split(':');
        for byte in &mut mac {
            let two =
                digits.next().filter(|two| two.len() == 2 && two.bytes().all(|b| b.is_ascii_hexdigit()))?;
            *byte = u8::from_str_radix(two, 16).ok()?;
        }
        digits.next().is_none().then_some(Self::Mac(mac))
    }

    /// Names by the kernel's own rule (dev_valid_name), less what is ambiguous in a path or a log line.
    fn is_possible(&self) -> bool {
        match self {
            Self::Name(name) => {
                (1..=15).contains(&name.len())
                    && !matches!(name.as_str(), "." | "..")
                    && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
            }
            Self::Mac(mac) => mac[0] & 1 == 0 && *mac != [0; 6],
        }
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Mac(mac) => f.write_str(&mac.map(|byte| format!("{byte:02x}")).join(":")),
        }
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParsePrefixError { text: text.chars().filter(|c| !c.is_control()).take(80).collect() };
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let prefix = Self {
            address: address.parse().map_err(|_| wrong())?,
            length: length.parse().map_err(|_| wrong())?,
        };
        if prefix.has_possible_length() { Ok(prefix) } else { Err(wrong()) }
    }
}

impl Prefix {
    fn has_possible_length(&self) -> bool {
        (1..=if self.address.is_ipv4() { 32 } else { 128 }).contains(&self.length)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Link {
    /// What a farmer wrote.
    ///
    /// # Errors
    /// [`InvalidLink`] names the link and what is wrong with it.
    pub fn from_settings(settings: &LinkSettings) -> Result<Self, InvalidLink> {
        let link = || settings.name.chars().filter(|c| !c.is_control()).take(40).collect::<String>();
        let prefix =
            |text: &String| text.parse().map_err(|source| InvalidLink::Prefix { link: link(), source });
        let addresses = settings.addresses.iter().map(prefix).collect::<Result<Vec<_>, _>>()?;
        let uses = match settings.mode {
            LinkMode::Static => LinkUse::Static { addresses, gateway: settings.gateway },
            _ if !addresses.is_empty() || settings.gateway.is_some() => {
                return Err(InvalidLink::UnusedAddress { link: link() });
            }
            LinkMode::Dhcp => LinkUse::Dhcp,
            LinkMode::Off => LinkUse::Off,
        };
        let bond = |bond: &BondSettings| {
            let members = bond.members.iter().map(|name| LinkId::parse(name)).collect::<Result<_, _>>()?;
            Ok(Bond { members, mode: bond.mode })
        };
        Ok(Self {
            id: LinkId::parse(&settings.name)?,
            uses,
            dns: settings.dns.clone(),
            vlan: settings.vlan,
            bond: settings.bond.as_ref().map(bond).transpose()?,
        })
    }

    #[must_use]
    pub fn to_settings(&self) -> LinkSettings {
        let (mode, addresses, gateway) = match &self.uses {
            LinkUse::Dhcp => (LinkMode::Dhcp, Vec::new(), None),
            LinkUse::Off => (LinkMode::Off, Vec::new(), None),
            LinkUse::Static { addresses, gateway } => {
                (LinkMode::Static, addresses.iter().map(ToString::to_string).collect(), *gateway)
            }
        };
        let bond = |bond: &Bond| BondSettings {
            members: bond.members.iter().map(ToString::to_string).collect(),
            mode: bond.mode,
        };
        LinkSettings {
            name: self.id.to_string(),
            mode,
            addresses,
            gateway,
            dns: self.dns.clone(),
            vlan: self.vlan,
            bond: self.bond.as_ref().map(bond),
        }
    }

    fn check(&self) -> Result<(), InvalidLink> {
        let link = self.id.to_string();
        if !self.id.is_possible() {
            return Err(InvalidLink::Id {
                name: link.chars().filter(|c| !c.is_control()).take(40).collect(),
            });
        }
        at_most("resolvers", self.dns.len(), limits::ADDITION_TEXTS)?;
        if let LinkUse::Static { addresses, gateway } = &self.uses {
            at_most("addresses", addresses.len(), limits::ADDITION_TEXTS)?;
            if addresses.is_empty() {
                return Err(InvalidLink::NoAddress { link });
            }
            for prefix in addresses {
                let ip = prefix.address;
                if !prefix.has_possible_length() || ip.is_loopback() || !is_a_machines(ip) {
                    return Err(InvalidLink::Address { link, address: ip });
                }
            }
            if let Some(address) = gateway.filter(|ip| !is_a_machines(*ip)) {
                return Err(InvalidLink::Address { link, address });
            }
        }
        if let Some(address) = self.dns.iter().find(|ip| !is_a_machines(**ip)) {
            return Err(InvalidLink::Address { link, address: *address });
        }
        if let Some(vlan) = self.vlan.filter(|vlan| !(1..=4094).contains(vlan)) {
            return Err(InvalidLink::Vlan { link, vlan });
        }
        let Some(bond) = &self.bond else { return Ok(()) };
        if matches!(self.id, LinkId::Mac(_)) {
            return Err(InvalidLink::BondName { link });
        }
        let count = bond.members.len();
        if !(1..=limits::BOND_MEMBERS).contains(&count) {
            return Err(InvalidLink::BondMembers { link, count });
        }
        match bond.members.iter().find(|member| !member.is_possible()) {
            Some(member) => Err(InvalidLink::Id { name: member.to_string().chars().take(40).collect() }),
            None => Ok(()),
        }
    }
}

/// Each link by itself, then all of them together.
pub(super) fn check(links: &[Link]) -> Result<(), InvalidLink> {
    at_most("links", links.len(), limits::LINKS)?;
    let mut seen = BTreeSet::new();
    let mut bonds = BTreeSet::new();
    for link in links {
        link.check()?;
        let twice_bonded = link.bond.is_some() && !bonds.insert(&link.id);
        if twice_bonded || !seen.insert((&link.id, link.vlan)) {
            return Err(InvalidLink::Repeated { link: link.id.to_string() });
        }
    }
    let mut members = BTreeSet::new();
    for member in links.iter().filter_map(|link| link.bond.as_ref()).flat_map(|bond| &bond.members) {
        if !members.insert(member) || links.iter().any(|link| link.id == *member) {
            return Err(InvalidLink::BondMember { member: member.to_string() });
        }
    }
    Ok(())
}

fn is_a_machines(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast()
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), InvalidLink> {
    if count > max { Err(InvalidLink::TooMany { what, count, max }) } else { Ok(()) }
}
