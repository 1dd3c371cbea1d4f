//! The node's one nftables table, `inet croft`: what may reach the node, what workloads may reach, which ports are
//! published.
//!
//! The whole table is rendered from one [`Ruleset`] and replaced in one transaction, so there is no drift: what the
//! kernel has is the last value that was applied, or the one before. Never touches another table.
//!
//! ```text
//!  world --NIC--> prerouting: published port? -> guest   --> forward: redirected, established  --> workload
//!                                                        `-> input: established, ICMP, DHCP    --> node
//!  workload --> forward: to the world, from its own pool --> postrouting: masquerade --NIC--> world
//!           `-> another workload, the node: dropped (the node answers ping)
//! ```

mod apply;
mod encode;
mod rule;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddrV4;

use ipnet::Ipv4Net;
use thiserror::Error;

pub use apply::{ApplyError, apply, remove};
pub use rule::Protocol;
use rule::{Action, Chain, ConnectionState, Direction, Hook, Icmp, Icmpv6, Match, Rule, Side};

use crate::workload::{DeploymentId, LINK_PREFIX};

/// Our table. Whoever debugs a node sees it with `nft list table inet croft`.
pub const TABLE: &str = "croft";
/// One netlink batch holds them all; far more than a node has workloads.
pub const PUBLISHED_MAX: usize = 4096;

/// A port of the node that leads to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    pub deployment: DeploymentId,
    pub protocol: Protocol,
    /// On the node's addresses.
    pub port: u16,
    /// The guest's address and port.
    pub to: SocketAddrV4,
}

/// Everything that the table depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    pool: Ipv4Net,
    published: Vec<Published>,
    refused: Vec<Ipv4Net>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum RulesetError {
    #[error(
        "{protocol} port {port} is published by contract {first} and by contract {second}: one of them must choose another port"
    )]
    PortConflict { protocol: Protocol, port: u16, first: DeploymentId, second: DeploymentId },
    #[error("contract {deployment} publishes {protocol} port 0: choose a port from 1 to 65535")]
    PortZero { deployment: DeploymentId, protocol: Protocol },
    #[error(
        "contract {deployment} publishes {protocol} port {port} to {to}, which is outside the workload pool {pool}"
    )]
    OutsidePool { deployment: DeploymentId, protocol: Protocol, port: u16, to: SocketAddrV4, pool: Ipv4Net },
    #[error("{count} published ports, a node has at most {PUBLISHED_MAX}")]
    TooMany { count: usize },
}

impl Ruleset {
    /// `pool` is what all deployments' subnets are taken from. `published` in any order.
    pub fn new(pool: Ipv4Net, published: impl IntoIterator<Item = Published>) -> Result<Self, RulesetError> {
        let pool = pool.trunc();
        let mut by_port: BTreeMap<(Protocol, u16), Published> = BTreeMap::new();
        for port in published {
            let Published { deployment, protocol, port: number, to } = port;
            if number == 0 || to.port() == 0 {
                return Err(RulesetError::PortZero { deployment, protocol });
            }
            if !pool.contains(to.ip()) {
                return Err(RulesetError::OutsidePool { deployment, protocol, port: number, to, pool });
            }
            if let Some(other) = by_port.insert((protocol, number), port) {
                // Named in a fixed order, so that the same conflict always reads the same.
                let (first, second) = (other.deployment.min(deployment), other.deployment.max(deployment));
                return Err(RulesetError::PortConflict { protocol, port: number, first, second });
            }
        }
        if by_port.len() > PUBLISHED_MAX {
            return Err(RulesetError::TooMany { count: by_port.len() });
        }
        Ok(Self { pool, published: by_port.into_values().collect(), refused: Vec::new() })
    }

    /// Networks that workloads may not reach, such as the farmer's own.
    #[must_use]
    pub fn refusing(mut self, networks: impl IntoIterator<Item = Ipv4Net>) -> Self {
        self.refused = networks.into_iter().map(|net| net.trunc()).collect();
        self.refused.sort();
        self.refused.dedup();
        self
    }

    pub fn published(&self) -> &[Published] {
        &self.published
    }

    fn chains(&self) -> Vec<Chain> {
        vec![self.prerouting(), self.postrouting(), self.forward(), input()]
    }

    fn prerouting(&self) -> Chain {
        let rules = self.published.iter().map(|published| {
            let port =
                Match::Port { protocol: published.protocol, side: Side::Destination, port: published.port };
            Rule::new([from_world(), port], Action::Redirect(published.to))
                .with_comment(&format!("contract {}", published.deployment))
        });
        Chain {
            hook: Hook::Prerouting,
            nat: true,
            priority: -100,
            accept_by_default: true,
            rules: rules.collect(),
        }
    }

    fn postrouting(&self) -> Chain {
        let rule = Rule::new([self.with_pool_source(), to_world()], Action::Masquerade);
        Chain {
            hook: Hook::Postrouting,
            nat: true,
            priority: 100,
            accept_by_default: true,
            rules: vec![rule],
        }
    }

    fn forward(&self) -> Chain {
        let mut rules = vec![
            Rule::new([Match::Connection(ConnectionState::Invalid)], Action::Drop),
            Rule::new([Match::Connection(ConnectionState::EstablishedOrRelated)], Action::Accept),
            Rule::new([from_workload(), to_workload()], Action::Drop),
        ];
        rules.extend(self.refused.iter().map(|net| {
            Rule::new([from_workload(), Match::Network { side: Side::Destination, net: *net }], Action::Drop)
        }));
        rules.push(Rule::new([from_workload(), self.with_pool_source()], Action::Accept));
        rules.push(Rule::new([to_workload(), Match::Redirected], Action::Accept));
        Chain { hook: Hook::Forward, nat: false, priority: 0, accept_by_default: false, rules }
    }

    fn with_pool_source(&self) -> Match {
        Match::Network { side: Side::Source, net: self.pool }
    }
}

fn input() -> Chain {
    let accept = |matches: Vec<Match>| Rule::new(matches, Action::Accept);
    let mut rules = vec![
        accept(vec![Match::Link { direction: Direction::In, name: "lo".to_owned() }]),
        accept(vec![Match::Connection(ConnectionState::EstablishedOrRelated)]),
        accept(vec![from_workload(), Match::Icmp(Icmp::EchoRequest)]),
        Rule::new([from_workload()], Action::Drop),
    ];
    let icmp = [Icmp::DestinationUnreachable, Icmp::EchoRequest, Icmp::TimeExceeded, Icmp::ParameterProblem];
    rules.extend(icmp.map(|kind| accept(vec![Match::Icmp(kind)])));
    let icmpv6 = [
        Icmpv6::DestinationUnreachable,
        Icmpv6::PacketTooBig,
        Icmpv6::TimeExceeded,
        Icmpv6::ParameterProblem,
        Icmpv6::EchoRequest,
        Icmpv6::MldListenerQuery,
        Icmpv6::RouterAdvertisement,
        Icmpv6::NeighbourSolicitation,
        Icmpv6::NeighbourAdvertisement,
    ];
    rules.extend(icmpv6.map(|kind| accept(vec![Match::Icmpv6(kind)])));
    let udp = |side, port| Match::Port { protocol: Protocol::Udp, side, port };
    rules.push(accept(vec![udp(Side::Source, 67), udp(Side::Destination, 68)]));
    Chain { hook: Hook::Input, nat: false, priority: 0, accept_by_default: false, rules }
}

fn from_workload() -> Match {
    Match::LinkPrefix { direction: Direction::In, prefix: LINK_PREFIX.to_owned(), equal: true }
}

fn to_workload() -> Match {
    Match::LinkPrefix { direction: Direction::Out, prefix: LINK_PREFIX.to_owned(), equal: true }
}

fn from_world() -> Match {
    Match::LinkPrefix { direction: Direction::In, prefix: LINK_PREFIX.to_owned(), equal: false }
}

fn to_world() -> Match {
    Match::LinkPrefix { direction: Direction::Out, prefix: LINK_PREFIX.to_owned(), equal: false }
}

/// As `nft list table inet croft` prints it.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        for (place, chain) in self.chains().iter().enumerate() {
            write!(f, "{}{chain}", if place == 0 { "" } else { "\n" })?;
        }
        writeln!(f, "}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> DeploymentId {
        DeploymentId::new([byte; 32])
    }

    fn published(deployment: u8, protocol: Protocol, port: u16, to: &str) -> Published {
        Published { deployment: id(deployment), protocol, port, to: to.parse().unwrap() }
    }

    fn pool() -> Ipv4Net {
        "10.90.0.0/16".parse().unwrap()
    }

    #[test]
    fn a_port_conflict_names_port_and_both_contracts() {
        let one = published(0xbb, Protocol::Tcp, 80, "10.90.1.2:8080");
        let two = published(0xaa, Protocol::Tcp, 80, "10.90.2.2:80");
        let error = Ruleset::new(pool(), [one, two]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tcp port 80 is published by contract aaaaaaaaaaaa and by contract bbbbbbbbbbbb: one of them must choose another port"
        );
        assert_eq!(Ruleset::new(pool(), [two, one]).unwrap_err(), error, "whatever the order");
        let udp = Published { protocol: Protocol::Udp, ..two };
        assert_eq!(Ruleset::new(pool(), [one, udp]).unwrap().published().len(), 2, "tcp and udp are apart");
    }

    #[test]
    fn a_target_outside_the_pool_is_refused() {
        let stray = published(1, Protocol::Tcp, 80, "192.0.2.1:80");
        let text = Ruleset::new(pool(), [stray]).unwrap_err().to_string();
        assert_eq!(
            text,
            "contract 010101010101 publishes tcp port 80 to 192.0.2.1:80, which is outside the workload pool 10.90.0.0/16"
        );
        let zero = published(1, Protocol::Udp, 0, "10.90.1.2:53");
        assert!(Ruleset::new(pool(), [zero]).unwrap_err().to_string().contains("port 0"));
    }

    #[test]
    fn more_ports_than_a_batch_holds_are_refused() {
        let many = (1..=4097).map(|port| published(1, Protocol::Tcp, port, "10.90.1.2:80"));
        assert_eq!(
            Ruleset::new(pool(), many).unwrap_err().to_string(),
            "4097 published ports, a node has at most 4096"
        );
    }

    #[test]
    fn the_same_set_renders_the_same_whatever_its_order() {
        let ports = [
            published(1, Protocol::Tcp, 8080, "10.90.1.2:80"),
            published(2, Protocol::Udp, 53, "10.90.2.2:53"),
            published(2, Protocol::Tcp, 443, "10.90.2.3:443"),
        ];
        let forward = Ruleset::new(pool(), ports).unwrap();
        let backward = Ruleset::new(pool(), ports.into_iter().rev()).unwrap();
        assert_eq!(forward.to_string(), backward.to_string());
        assert!(forward.to_string().contains(
            "iifname != \"cw*\" tcp dport 8080 dnat ip to 10.90.1.2:80 comment \"contract 010101010101\""
        ));
    }

    #[test]
    fn nothing_reaches_the_node_or_a_workload_by_default() {
        let text =
            Ruleset::new(pool(), []).unwrap().refusing(["192.168.1.7/24".parse().unwrap()]).to_string();
        assert!(text.contains("type filter hook input priority filter; policy drop;"));
        assert!(text.contains("type filter hook forward priority filter; policy drop;"));
        let position = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("{needle} not in\n{text}"));
        assert!(
            position("iifname \"cw*\" oifname \"cw*\" drop")
                < position("iifname \"cw*\" ip saddr 10.90.0.0/16 accept")
        );
        assert!(
            position("ip daddr 192.168.1.0/24 drop")
                < position("iifname \"cw*\" ip saddr 10.90.0.0/16 accept")
        );
        assert!(!text.contains("dport 22"));
    }
}
