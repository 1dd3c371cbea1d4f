//! What the node's report and its console say about each NIC. Plain data: read from the kernel, never a wish.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::LinkMode;
use crate::mac::MacAddr;

/// Where an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressSource {
    Dhcp,
    Static,
    /// IPv6 from a router advertisement.
    Slaac,
    LinkLocal,
    /// On the link, but not put there by us.
    Foreign,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressStatus {
    pub address: IpNet,
    pub source: AddressSource,
}

/// How far a link has come.
///
/// ```text
/// off                      (boot.toml says so)
/// no-carrier <-> waiting-for-dhcp -> ready
///            <-> ready     (static)
/// failed: the kernel refused something, or the server did; tried again in the background
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    Off,
    NoCarrier,
    WaitingForDhcp,
    Ready,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkStatus {
    pub name: String,
    pub index: u32,
    pub mac: MacAddr,
    pub carrier: bool,
    pub mtu_bytes: u32,
    pub mode: LinkMode,
    pub state: LinkState,
    pub addresses: Vec<AddressStatus>,
    /// Of the default routes over this link, IPv4 first.
    pub gateways: Vec<IpAddr>,
    pub dns: Vec<IpAddr>,
    /// Time servers that DHCP named (option 42).
    pub ntp: Vec<IpAddr>,
    /// The DHCP server of the present lease.
    pub dhcp_server: Option<IpAddr>,
    /// What went wrong last, kept until the link is ready.
    pub last_error: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkStatus {
    /// In the kernel's order.
    pub links: Vec<LinkStatus>,
    /// Name of the link that carries the default route.
    pub uplink: Option<String>,
    /// Links that the configuration names and this machine does not have.
    pub missing: Vec<String>,
    /// VLANs and bonds that could not be made.
    #[serde(default)]
    pub failed: Vec<FailedLink>,
}

/// A VLAN or a bond that could not be made, or not of all its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedLink {
    pub link: String,
    pub cause: String,
}

impl LinkStatus {
    /// Carries packets to the world: carrier, a routable address and a default route of the same family.
    pub fn is_uplink_candidate(&self) -> bool {
        self.carrier
            && self.gateways.iter().any(|gateway| {
                self.addresses.iter().any(|address| {
                    address.source != AddressSource::LinkLocal
                        && address.address.addr().is_ipv4() == gateway.is_ipv4()
                })
            })
    }

    /// First routable address, IPv4 first.
    pub fn address(&self) -> Option<IpNet> {
        let routable =
            || self.addresses.iter().filter(|a| a.source != AddressSource::LinkLocal).map(|a| a.address);
        routable().find(|net| net.addr().is_ipv4()).or_else(|| routable().next())
    }
}

impl NetworkStatus {
    pub fn uplink(&self) -> Option<&LinkStatus> {
        let name = self.uplink.as_deref()?;
        self.links.iter().find(|link| link.name == name)
    }

    /// Resolvers of all links, the uplink's first, without repetition.
    pub fn dns(&self) -> Vec<IpAddr> {
        self.collect(|link| &link.dns)
    }

    /// Time servers of all links, the uplink's first, without repetition.
    pub fn ntp(&self) -> Vec<IpAddr> {
        self.collect(|link| &link.ntp)
    }

    fn collect(&self, list: impl Fn(&LinkStatus) -> &Vec<IpAddr>) -> Vec<IpAddr> {
        let mut found = Vec::new();
        for server in self.uplink().into_iter().chain(&self.links).flat_map(list) {
            if !found.contains(server) {
                found.push(*server);
            }
        }
        found
    }
}

/// Why one link is not the uplink, as the console shows it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NotReady {
    #[error("{link} is off in boot.toml: set its mode to dhcp or static")]
    Off { link: String },
    #[error("no carrier on {link}: check the cable")]
    NoCarrier { link: String },
    #[error(
        "no DHCP answer on {link} in {waited_s} s: check the server or set a static address in boot.toml"
    )]
    NoDhcpAnswer { link: String, waited_s: u64 },
    #[error("{link} failed: {cause}")]
    Failed { link: String, cause: String },
    #[error("{link} has address {address} but no gateway: {remedy}")]
    NoGateway { link: String, address: IpNet, remedy: &'static str },
    #[error("boot.toml names link {link}, which this machine does not have: {present}")]
    Missing { link: String, present: String },
}

/// No link carries a default route; each says why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", join(reasons))]
pub struct NoUplink {
    pub reasons: Vec<NotReady>,
}

fn join(reasons: &[NotReady]) -> String {
    if reasons.is_empty() {
        return "no network card found: connect one, or check that it is one of the supported families"
            .to_owned();
    }
    let mut text = String::new();
    for (place, reason) in reasons.iter().enumerate() {
        let _ = write!(text, "{}{reason}", if place == 0 { "" } else { "; " });
    }
    text
}

impl NoUplink {
    /// Reads the reasons from a status; `waited_s` is how long the caller has been waiting.
    pub fn explain(status: &NetworkStatus, waited_s: u64) -> Self {
        let present = status
            .links
            .iter()
            .map(|link| format!("{} ({})", link.name, link.mac))
            .collect::<Vec<_>>()
            .join(", ");
        let present = if present.is_empty() { "it has none".to_owned() } else { format!("it has {present}") };
        let missing = status
            .missing
            .iter()
            .map(|link| NotReady::Missing { link: link.clone(), present: present.clone() });
        let failed = status
            .failed
            .iter()
            .map(|failed| NotReady::Failed { link: failed.link.clone(), cause: failed.cause.clone() });
        // What only carries others is as well as they are.
        let told = status.links.iter().filter(|link| link.mode != LinkMode::Carrier || !link.carrier);
        let reasons = told.map(|link| Self::reason(link, waited_s)).chain(missing).chain(failed).collect();
        Self { reasons }
    }

    fn reason(status: &LinkStatus, waited_s: u64) -> NotReady {
        let link = status.name.clone();
        match (status.state, status.address()) {
            (LinkState::Off, _) => NotReady::Off { link },
            _ if !status.carrier => NotReady::NoCarrier { link },
            (LinkState::Failed, _) => NotReady::Failed {
                link,
                cause: status.last_error.clone().unwrap_or_else(|| "unknown".to_owned()),
            },
            (LinkState::WaitingForDhcp | LinkState::NoCarrier, _) => match &status.last_error {
                Some(cause) => NotReady::Failed { link, cause: cause.clone() },
                None => NotReady::NoDhcpAnswer { link, waited_s },
            },
            (LinkState::Ready, Some(address)) => {
                let remedy = match status.mode {
                    LinkMode::Dhcp => {
                        "let the DHCP server name one (option 3) or set a static address in boot.toml"
                    }
                    LinkMode::Static | LinkMode::Off | LinkMode::Carrier => {
                        "set gateway for this link in boot.toml"
                    }
                };
                NotReady::NoGateway { link, address, remedy }
            }
            (LinkState::Ready, None) => NotReady::Failed { link, cause: "its addresses are gone".to_owned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, state: LinkState, carrier: bool) -> LinkStatus {
        LinkStatus {
            name: name.into(),
            index: 2,
            mac: MacAddr([0x52, 0x54, 0, 1, 2, 3]),
            carrier,
            mtu_bytes: 1500,
            mode: LinkMode::Dhcp,
            state,
            addresses: vec![],
            gateways: vec![],
            dns: vec![],
            ntp: vec![],
            dhcp_server: None,
            last_error: None,
        }
    }

    fn address(text: &str, source: AddressSource) -> AddressStatus {
        AddressStatus { address: text.parse().unwrap(), source }
    }

    #[test]
    fn each_nic_says_why_it_carries_nothing() {
        let mut with_address = link("eth2", LinkState::Ready, true);
        with_address.addresses.push(address("10.0.2.15/24", AddressSource::Dhcp));
        let mut refused = link("eth3", LinkState::WaitingForDhcp, true);
        refused.last_error = Some("DHCP server 10.0.0.1 refuses us".into());
        let status = NetworkStatus {
            links: vec![
                link("eth0", LinkState::NoCarrier, false),
                link("eth1", LinkState::WaitingForDhcp, true),
                with_address,
                refused,
                link("eth4", LinkState::Off, false),
            ],
            uplink: None,
            missing: vec!["eth9".into()],
            failed: vec![FailedLink { link: "bond0".into(), cause: "the kernel lacks BONDING".into() }],
        };
        let text = NoUplink::explain(&status, 10).to_string();
        for part in [
            "no carrier on eth0: check the cable; ",
            "no DHCP answer on eth1 in 10 s: check the server or set a static address in boot.toml; ",
            "eth2 has address 10.0.2.15/24 but no gateway: let the DHCP server name one (option 3)",
            "eth3 failed: DHCP server 10.0.0.1 refuses us",
            "eth4 is off in boot.toml",
            "bond0 failed: the kernel lacks BONDING",
            "boot.toml names link eth9, which this machine does not have: it has eth0 (52:54:00:01:02:03)",
        ] {
            assert!(text.contains(part), "{part:?} not in {text:?}");
        }
    }

    #[test]
    fn a_machine_without_nic_is_told_so() {
        assert!(
            NoUplink::explain(&NetworkStatus::default(), 1)
                .to_string()
                .starts_with("no network card found: ")
        );
    }

    #[test]
    fn a_default_route_needs_an_address_of_its_family() {
        let mut candidate = link("eth0", LinkState::Ready, true);
        candidate.gateways.push("fe80::1".parse().unwrap());
        candidate.addresses.push(address("10.0.2.15/24", AddressSource::Dhcp));
        candidate.addresses.push(address("fe80::2/64", AddressSource::LinkLocal));
        assert!(!candidate.is_uplink_candidate());
        candidate.gateways.push("10.0.2.2".parse().unwrap());
        assert!(candidate.is_uplink_candidate());
        candidate.carrier = false;
        assert!(!candidate.is_uplink_candidate());
    }

    #[test]
    fn the_uplinks_resolvers_come_first_and_once() {
        let mut first = link("eth0", LinkState::Ready, true);
        first.dns = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let mut second = link("eth1", LinkState::Ready, true);
        second.dns = vec!["10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap()];
        let status = NetworkStatus {
            links: vec![first, second],
            uplink: Some("eth1".into()),
            ..NetworkStatus::default()
        };
        let dns: Vec<String> = status.dns().iter().map(ToString::to_string).collect();
        assert_eq!(dns, ["10.0.0.2", "10.0.0.3", "10.0.0.1"]);
    }

    #[test]
    fn a_status_survives_json() {
        let mut one = link("eth0", LinkState::Ready, true);
        one.addresses.push(address("2001:db8::5/64", AddressSource::Slaac));
        let status =
            NetworkStatus { links: vec![one], uplink: Some("eth0".into()), ..NetworkStatus::default() };
        let json = serde_json::to_string(&status).unwrap();
        assert!(json.contains("\"slaac\"") && json.contains("\"52:54:00:01:02:03\""), "{json}");
        assert_eq!(serde_json::from_str::<NetworkStatus>(&json).unwrap(), status);
    }
}
