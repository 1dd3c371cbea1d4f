//! One nftables rule as data. Every rule exists once and is turned both into netlink (`encode`) and into the text that
//! `nft list` prints, so that a test can hold the kernel's view against ours.

use std::fmt;
use std::net::SocketAddrV4;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    Invalid,
    EstablishedOrRelated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// ICMP types that the node needs (RFC 792).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Icmp {
    DestinationUnreachable = 3,
    EchoRequest = 8,
    TimeExceeded = 11,
    ParameterProblem = 12,
}

/// ICMPv6 types that the node needs (RFC 4890 4.4): without neighbour discovery there is no IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Icmpv6 {
    DestinationUnreachable = 1,
    PacketTooBig = 2,
    TimeExceeded = 3,
    ParameterProblem = 4,
    EchoRequest = 128,
    MldListenerQuery = 130,
    RouterAdvertisement = 134,
    NeighbourSolicitation = 135,
    NeighbourAdvertisement = 136,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// The link's name begins with a prefix, or does not.
    LinkPrefix {
        direction: Direction,
        prefix: String,
        equal: bool,
    },
    /// The link has exactly this name.
    Link {
        direction: Direction,
        name: String,
    },
    Connection(ConnectionState),
    /// The packet's connection was redirected by a published port.
    Redirected,
    Network {
        side: Side,
        net: Ipv4Net,
    },
    Port {
        protocol: Protocol,
        side: Side,
        port: u16,
    },
    Icmp(Icmp),
    Icmpv6(Icmpv6),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Accept,
    Drop,
    Masquerade,
    Redirect(SocketAddrV4),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: Vec<Match>,
    pub(crate) action: Action,
    /// Shown by `nft list`; printable ASCII without quotes, at most `COMMENT_LEN_MAX` bytes.
    pub(crate) comment: Option<String>,
}

/// The kernel's limit (NFT_USERDATA_MAXLEN 256) less the attribute's own bytes, with room to spare.
pub(crate) const COMMENT_LEN_MAX: usize = 120;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting,
    Input,
    Forward,
    Postrouting,
}

/// A base chain: where the kernel calls it, and what happens to packets that no rule takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) hook: Hook,
    pub(crate) nat: bool,
    pub(crate) priority: i32,
    pub(crate) accept_by_default: bool,
    pub(crate) rules: Vec<Rule>,
}

impl Hook {
    /// Also the chain's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Postrouting => "postrouting",
        }
    }
}

impl Rule {
    pub(crate) fn new(matches: impl IntoIterator<Item = Match>, action: Action) -> Self {
        Self { matches: matches.into_iter().collect(), action, comment: None }
    }

    /// Keeps what the kernel and `nft` print back unchanged.
    pub(crate) fn with_comment(mut self, text: &str) -> Self {
        let clean = |c: char| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { ' ' };
        self.comment = Some(text.chars().map(clean).take(COMMENT_LEN_MAX).collect());
        self
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let link = |direction: &Direction| match direction {
            Direction::In => "iifname",
            Direction::Out => "oifname",
        };
        match self {
            Self::LinkPrefix { direction, prefix, equal } => {
                write!(f, "{} {}\"{prefix}*\"", link(direction), if *equal { "" } else { "!= " })
            }
            Self::Link { direction, name } => write!(f, "{} \"{name}\"", link(direction)),
            Self::Connection(ConnectionState::Invalid) => f.write_str("ct state invalid"),
            Self::Connection(ConnectionState::EstablishedOrRelated) => {
                f.write_str("ct state established,related")
            }
            Self::Redirected => f.write_str("ct status dnat"),
            Self::Network { side: Side::Source, net } => write!(f, "ip saddr {}", network(*net)),
            Self::Network { side: Side::Destination, net } => write!(f, "ip daddr {}", network(*net)),
            Self::Port { protocol, side: Side::Source, port } => write!(f, "{protocol} sport {port}"),
            Self::Port { protocol, side: Side::Destination, port } => write!(f, "{protocol} dport {port}"),
            Self::Icmp(kind) => write!(f, "icmp type {}", icmp_name(*kind)),
            Self::Icmpv6(kind) => write!(f, "icmpv6 type {}", icmpv6_name(*kind)),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.matches {
            write!(f, "{part} ")?;
        }
        match &self.action {
            Action::Accept => f.write_str("accept")?,
            Action::Drop => f.write_str("drop")?,
            Action::Masquerade => f.write_str("masquerade")?,
            Action::Redirect(to) => write!(f, "dnat ip to {to}")?,
        }
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.hook.name();
        let kind = if self.nat { "nat" } else { "filter" };
        let priority = match self.priority {
            -100 => "dstnat".to_owned(),
            0 => "filter".to_owned(),
            100 => "srcnat".to_owned(),
            other => other.to_string(),
        };
        let policy = if self.accept_by_default { "accept" } else { "drop" };
        writeln!(f, "\tchain {name} {{")?;
        writeln!(f, "\t\ttype {kind} hook {name} priority {priority}; policy {policy};")?;
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

fn network(net: Ipv4Net) -> String {
    if net.prefix_len() == 32 { net.addr().to_string() } else { net.trunc().to_string() }
}

fn icmp_name(kind: Icmp) -> &'static str {
    match kind {
        Icmp::DestinationUnreachable => "destination-unreachable",
        Icmp::EchoRequest => "echo-request",
        Icmp::TimeExceeded => "time-exceeded",
        Icmp::ParameterProblem => "parameter-problem",
    }
}

fn icmpv6_name(kind: Icmpv6) -> &'static str {
    match kind {
        Icmpv6::DestinationUnreachable => "destination-unreachable",
        Icmpv6::PacketTooBig => "packet-too-big",
        Icmpv6::TimeExceeded => "time-exceeded",
        Icmpv6::ParameterProblem => "parameter-problem",
        Icmpv6::EchoRequest => "echo-request",
        Icmpv6::MldListenerQuery => "mld-listener-query",
        Icmpv6::RouterAdvertisement => "nd-router-advert",
        Icmpv6::NeighbourSolicitation => "nd-neighbor-solicit",
        Icmpv6::NeighbourAdvertisement => "nd-neighbor-advert",
    }
}
