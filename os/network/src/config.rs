//! What the boot configuration says about links, checked before anything touches a NIC.
//!
//! Unknown fields are refused, and every refusal names the link and what to write instead. Never falls back silently
//! from a wrong static address to DHCP: the farmer would look for the machine at the wrong address.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::mac::MacAddr;

/// Longest name that the kernel gives a link (IFNAMSIZ less the closing NUL).
pub const LINK_NAME_LEN_MAX: usize = 15;
/// Addresses, resolvers and links per list: far above any real machine, small enough to bound a report.
pub const LIST_LEN_MAX: usize = 64;

/// How a link gets its IPv4 address. IPv6 comes by router advertisement unless static IPv6 addresses are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkMode {
    #[default]
    Dhcp,
    Static,
    /// Left down.
    Off,
    /// Up, without addresses: VLANs stand on it, or it is a part of a bond. Never written by a person.
    Carrier,
}

impl fmt::Display for LinkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dhcp => "dhcp",
            Self::Static => "static",
            Self::Off => "off",
            Self::Carrier => "carrier",
        })
    }
}

/// One link, found by name or by MAC address (exactly one of the two).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    #[serde(default)]
    pub mode: LinkMode,
    /// With prefix length, such as `192.0.2.10/24`. Only in mode static.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// Resolvers; asked before those that DHCP names.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// The addresses are on this VLAN (IEEE 802.1Q, 1 to 4094) of the link, not on the link itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The link is made of others, and has the entry's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<BondConfig>,
}

/// Several links that act as one (Documentation/networking/bonding.rst).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BondConfig {
    /// Names or MAC addresses.
    pub members: Vec<String>,
    #[serde(default)]
    pub mode: BondMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BondMode {
    /// One carries everything, another takes over. Needs nothing of the switch.
    #[default]
    ActiveBackup,
    /// IEEE 802.3ad; the switch must be set up for it.
    Lacp,
}

/// All links. A link that is not named here uses DHCP and router advertisements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    #[serde(default)]
    pub links: Vec<LinkConfig>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("link {place} in boot.toml has neither name nor mac: give exactly one of them")]
    NoMatch { place: usize },
    #[error("link {link} in boot.toml has both name and mac: give exactly one of them")]
    TwoMatches { link: String },
    #[error("link name {name:?} in boot.toml is not 1 to 15 printable characters without spaces and slashes")]
    BadName { name: String },
    #[error("mac address {mac} in boot.toml belongs to a group, not to a network card")]
    GroupMac { mac: MacAddr },
    #[error("link {link} stands twice in boot.toml: keep one entry")]
    Repeated { link: String },
    #[error(
        "link {link} is static but has no addresses: add addresses = [\"192.0.2.10/24\"] or set mode = \"dhcp\""
    )]
    NoAddresses { link: String },
    #[error(
        "link {link} has addresses but mode = \"{mode}\": set mode = \"static\" or remove addresses and gateway"
    )]
    UnusedAddresses { link: String, mode: LinkMode },
    #[error("address {address} of link {link} can't be given to a machine")]
    BadAddress { link: String, address: IpNet },
    #[error("address {address} stands twice in boot.toml, on link {link}: every address has one place")]
    RepeatedAddress { link: String, address: IpAddr },
    #[error(
        "gateway {gateway} of link {link} is not in any of its networks ({networks}): correct the gateway or the prefix length"
    )]
    GatewayOutside { link: String, gateway: IpAddr, networks: String },
    #[error("gateway {gateway} of link {link} is the link's own address")]
    GatewayIsSelf { link: String, gateway: IpAddr },
    #[error("resolver {server} of link {link} is not the address of a machine")]
    BadResolver { link: String, server: IpAddr },
    #[error("link {link} can't be set to mode = \"carrier\": use dhcp, static or off")]
    CarrierMode { link: String },
    #[error("link {link} has vlan = {vlan}: VLANs are numbered from 1 to 4094")]
    BadVlan { link: String, vlan: u16 },
    #[error("bond {link} needs a name of its own, such as bond0: write name instead of mac")]
    BondByMac { link: String },
    #[error("bond {link} has no members: add members = [\"eth0\", \"eth1\"]")]
    NoMembers { link: String },
    #[error("member {member:?} of bond {link} is neither the name of a link nor a MAC address")]
    BadMember { link: String, member: String },
    #[error("link {member} can be in one bond only, and have no entry of its own: correct bond {link}")]
    MemberTwice { link: String, member: String },
    #[error("boot.toml lists {count} {what}, at most {LIST_LEN_MAX} are possible")]
    TooMany { what: &'static str, count: usize },
}

impl LinkConfig {
    /// Name or MAC address, whichever the entry is found by.
    pub fn label(&self) -> String {
        match (&self.name, &self.mac) {
            (Some(name), _) => name.clone(),
            (None, Some(mac)) => mac.to_string(),
            (None, None) => "?".to_owned(),
        }
    }

    pub fn matches(&self, name: &str, mac: MacAddr) -> bool {
        self.name.as_deref() == Some(name) || self.mac == Some(mac)
    }

    /// What no other entry may have as well: VLANs of one link are several.
    fn key(&self) -> String {
        match self.vlan {
            Some(vlan) => format!("{} (VLAN {vlan})", self.label()),
            None => self.label(),
        }
    }

    fn check_parts(&self) -> Result<(), ConfigError> {
        let link = self.label();
        if self.mode == LinkMode::Carrier {
            return Err(ConfigError::CarrierMode { link });
        }
        if let Some(vlan) = self.vlan.filter(|vlan| !(1..=4094).contains(vlan)) {
            return Err(ConfigError::BadVlan { link, vlan });
        }
        let Some(bond) = &self.bond else { return Ok(()) };
        if self.name.is_none() {
            return Err(ConfigError::BondByMac { link });
        }
        if bond.members.is_empty() {
            return Err(ConfigError::NoMembers { link });
        }
        if bond.members.len() > LIST_LEN_MAX {
            return Err(ConfigError::TooMany { what: "members of a bond", count: bond.members.len() });
        }
        let good = |member: &&String| {
            let mac = member.parse::<MacAddr>().is_ok_and(|mac| !mac.is_unusable());
            !mac && !is_link_name(member) || **member == link
        };
        match bond.members.iter().find(good) {
            Some(member) => Err(ConfigError::BadMember { link, member: member.chars().take(40).collect() }),
            None => Ok(()),
        }
    }

    fn check(&self, place: usize) -> Result<(), ConfigError> {
        let link = self.label();
        match (&self.name, &self.mac) {
            (None, None) => return Err(ConfigError::NoMatch { place }),
            (Some(_), Some(_)) => return Err(ConfigError::TwoMatches { link }),
            (Some(name), None) if !is_link_name(name) => {
                return Err(ConfigError::BadName { name: name.chars().take(40).collect() });
            }
            (None, Some(mac)) if mac.is_unusable() => return Err(ConfigError::GroupMac { mac: *mac }),
            _ => {}
        }
        self.check_parts()?;
        for (what, count) in [("addresses", self.addresses.len()), ("resolvers", self.dns.len())] {
            if count > LIST_LEN_MAX {
                return Err(ConfigError::TooMany { what, count });
            }
        }
        let has_static_parts =
            !self.addresses.is_empty() || self.gateway.is_some() || self.gateway6.is_some();
        match self.mode {
            LinkMode::Static if self.addresses.is_empty() => return Err(ConfigError::NoAddresses { link }),
            LinkMode::Dhcp | LinkMode::Off | LinkMode::Carrier if has_static_parts => {
                return Err(ConfigError::UnusedAddresses { link, mode: self.mode });
            }
            _ => {}
        }
        if let Some(address) = self.addresses.iter().find(|address| !is_host_address(address)) {
            return Err(ConfigError::BadAddress { link, address: *address });
        }
        if let Some(server) = self.dns.iter().find(|server| server.is_unspecified() || server.is_multicast())
        {
            return Err(ConfigError::BadResolver { link, server: *server });
        }
        for gateway in self.gateway.map(IpAddr::V4).into_iter().chain(self.gateway6.map(IpAddr::V6)) {
            self.check_gateway(gateway)?;
        }
        Ok(())
    }

    fn check_gateway(&self, gateway: IpAddr) -> Result<(), ConfigError> {
        let link = self.label();
        let same_family = || self.addresses.iter().filter(|net| net.addr().is_ipv4() == gateway.is_ipv4());
        if same_family().any(|net| net.addr() == gateway) {
            return Err(ConfigError::GatewayIsSelf { link, gateway });
        }
        // A host route (/32, /128) reaches any gateway on its wire: hosters hand out such addresses. Link-local
        // gateways are on every IPv6 wire.
        let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let reachable =
            same_family().any(|net| net.contains(&gateway) || net.prefix_len() == net.max_prefix_len());
        if reachable || link_local {
            return Ok(());
        }
        let networks = same_family().map(|net| net.trunc().to_string()).collect::<Vec<_>>().join(", ");
        let networks =
            if networks.is_empty() { "it has no address of that family".to_owned() } else { networks };
        Err(ConfigError::GatewayOutside { link, gateway, networks })
    }
}

impl NetworkConfig {
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.links.len() > LIST_LEN_MAX {
            return Err(ConfigError::TooMany { what: "links", count: self.links.len() });
        }
        let mut links = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for (place, link) in self.links.iter().enumerate() {
            link.check(place + 1)?;
            if !links.insert(link.key()) {
                return Err(ConfigError::Repeated { link: link.key() });
            }
            for net in &link.addresses {
                if !addresses.insert(net.addr()) {
                    return Err(ConfigError::RepeatedAddress { link: link.label(), address: net.addr() });
                }
            }
        }
        self.check_members()
    }

    /// A member belongs to its bond alone. The bond's own VLANs are entries with the bond's name.
    fn check_members(&self) -> Result<(), ConfigError> {
        let mut members = BTreeSet::new();
        for (link, bond) in self.links.iter().filter_map(|link| Some((link, link.bond.as_ref()?))) {
            for member in &bond.members {
                let has_entry = self.links.iter().any(|other| other.label().eq_ignore_ascii_case(member));
                if !members.insert(member.to_ascii_lowercase()) || has_entry {
                    return Err(ConfigError::MemberTwice { link: link.label(), member: member.clone() });
                }
            }
        }
        Ok(())
    }

    /// The entry for a link; without one it uses DHCP.
    pub fn link(&self, name: &str, mac: MacAddr) -> Option<&LinkConfig> {
        self.links.iter().find(|link| link.matches(name, mac))
    }
}

/// The kernel's own rule (dev_valid_name), less characters that would make a path or a log line ambiguous.
pub(crate) fn is_link_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LINK_NAME_LEN_MAX
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
}

fn is_host_address(net: &IpNet) -> bool {
    let address = net.addr();
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || net.prefix_len() == 0 {
        return false;
    }
    match net {
        // /31 (RFC 3021) and /32 have neither network nor broadcast address.
        IpNet::V4(v4) => v4.prefix_len() > 30 || (v4.addr() != v4.network() && v4.addr() != v4.broadcast()),
        IpNet::V6(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetworkConfig, String> {
        let config: NetworkConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    fn refusal(text: &str) -> String {
        parse(text).expect_err("must be refused")
    }

    #[test]
    fn a_static_link_is_read_as_written() {
        let config = parse(
            r#"
            [[links]]
            name = "eth0"
            mode = "static"
            addresses = ["192.0.2.10/24", "2001:db8::10/64"]
            gateway = "192.0.2.1"
            gateway6 = "fe80::1"
            dns = ["192.0.2.53"]
            [[links]]
            mac = "52:54:00:12:34:56"
            mode = "off"
            "#,
        )
        .unwrap();
        let eth0 = config.link("eth0", MacAddr([2; 6])).unwrap();
        assert_eq!(eth0.mode, LinkMode::Static);
        assert_eq!(eth0.addresses[0].addr(), "192.0.2.10".parse::<IpAddr>().unwrap());
        let by_mac = config.link("eth7", "52:54:00:12:34:56".parse().unwrap()).unwrap();
        assert_eq!(by_mac.mode, LinkMode::Off);
        assert!(config.link("eth1", MacAddr([2; 6])).is_none());
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<NetworkConfig>(&json).unwrap(), config);
    }

    #[test]
    fn unknown_fields_are_refused_by_name() {
        assert!(refusal("[[links]]\nname = \"eth0\"\ngatway = \"192.0.2.1\"").contains("gatway"));
    }

    #[test]
    fn a_link_needs_exactly_one_way_to_be_found() {
        assert_eq!(
            refusal("[[links]]\nmode = \"off\""),
            "link 1 in boot.toml has neither name nor mac: give exactly one of them"
        );
        assert_eq!(
            refusal("[[links]]\nname = \"eth0\"\nmac = \"52:54:00:12:34:56\""),
            "link eth0 in boot.toml has both name and mac: give exactly one of them"
        );
        assert!(refusal("[[links]]\nname = \"averylonglinkname\"").contains("\"averylonglinkname\""));
        assert!(refusal("[[links]]\nmac = \"01:00:5e:00:00:01\"").contains("belongs to a group"));
        assert_eq!(
            refusal("[[links]]\nname = \"eth0\"\n[[links]]\nname = \"eth0\""),
            "link eth0 stands twice in boot.toml: keep one entry"
        );
    }

    #[test]
    fn static_parts_and_mode_must_agree() {
        assert!(refusal("[[links]]\nname = \"eth0\"\nmode = \"static\"").contains("has no addresses"));
        assert!(
            refusal("[[links]]\nname = \"eth0\"\naddresses = [\"192.0.2.10/24\"]")
                .contains("mode = \"dhcp\"")
        );
        assert!(
            refusal("[[links]]\nname = \"eth0\"\nmode = \"off\"\ngateway = \"192.0.2.1\"")
                .contains("mode = \"off\"")
        );
    }

    #[test]
    fn an_address_that_no_machine_can_have_is_refused() {
        for address in [
            "192.0.2.0/24",
            "192.0.2.255/24",
            "0.0.0.0/8",
            "224.0.0.1/24",
            "127.0.0.1/8",
            "::/64",
            "10.0.0.1/0",
        ] {
            let text = format!("[[links]]\nname = \"eth0\"\nmode = \"static\"\naddresses = [\"{address}\"]");
            assert!(refusal(&text).contains("can't be given to a machine"), "{address}");
        }
        parse("[[links]]\nname = \"eth0\"\nmode = \"static\"\naddresses = [\"192.0.2.0/31\"]").unwrap();
    }

    #[test]
    fn a_gateway_outside_the_network_is_named_with_the_networks() {
        let text = |gateway: &str, address: &str| {
            format!(
                "[[links]]\nname = \"eth0\"\nmode = \"static\"\naddresses = [\"{address}\"]\ngateway = \"{gateway}\""
            )
        };
        assert_eq!(
            refusal(&text("192.0.3.1", "192.0.2.10/24")),
            "gateway 192.0.3.1 of link eth0 is not in any of its networks (192.0.2.0/24): correct the gateway or the prefix length"
        );
        assert!(refusal(&text("192.0.2.10", "192.0.2.10/24")).contains("own address"));
        assert!(refusal(&text("192.0.2.1", "2001:db8::1/64")).contains("no address of that family"));
        parse(&text("172.31.1.1", "192.0.2.10/32")).unwrap();
    }

    #[test]
    fn vlans_and_bonds_are_read_as_written() {
        let config = parse(
            "[[links]]\nname = \"bond0\"\nvlan = 7\nbond = { members = [\"eth0\", \"52:54:00:12:34:56\"], mode = \"lacp\" }\n\
             [[links]]\nname = \"bond0\"\nvlan = 8",
        )
        .unwrap();
        let bond = config.links[0].bond.as_ref().unwrap();
        assert_eq!((bond.mode, bond.members.len(), config.links[1].vlan), (BondMode::Lacp, 2, Some(8)));
    }

    #[test]
    fn impossible_vlans_and_bonds_are_refused_by_name() {
        let entry = |rest: &str| refusal(&format!("[[links]]\nname = \"bond0\"\n{rest}"));
        assert_eq!(entry("vlan = 4095"), "link bond0 has vlan = 4095: VLANs are numbered from 1 to 4094");
        assert!(entry("vlan = 0").contains("from 1 to 4094"));
        assert!(entry("bond = { members = [] }").contains("has no members"));
        assert!(entry("bond = { members = [\"a b\"] }").contains("member \"a b\" of bond bond0"));
        assert!(entry("bond = { members = [\"bond0\"] }").contains("member \"bond0\" of bond bond0"));
        assert!(
            entry("bond = { members = [\"eth0\", \"eth0\"] }").contains("link eth0 can be in one bond only")
        );
        assert!(entry("mode = \"carrier\"").contains("use dhcp, static or off"));
        assert!(
            entry("vlan = 7\n[[links]]\nname = \"bond0\"\nvlan = 7").contains("bond0 (VLAN 7) stands twice")
        );
        let own = "bond = { members = [\"eth0\"] }\n[[links]]\nname = \"eth0\"";
        assert!(entry(own).contains("have no entry of its own"), "{}", entry(own));
        let by_mac = "[[links]]\nmac = \"52:54:00:12:34:56\"\nbond = { members = [\"eth0\"] }";
        assert!(refusal(by_mac).contains("needs a name of its own"));
    }

    #[test]
    fn one_address_has_one_place() {
        let text = "[[links]]\nname = \"a\"\nmode = \"static\"\naddresses = [\"192.0.2.10/24\"]\n\
                    [[links]]\nname = \"b\"\nmode = \"static\"\naddresses = [\"192.0.2.10/25\"]";
        assert_eq!(
            refusal(text),
            "address 192.0.2.10 stands twice in boot.toml, on link b: every address has one place"
        );
    }
}
