//! DHCP messages on the wire (RFC 2131, 2132, 3442): what we send, and what we take from an answer.
//!
//! Anybody on the wire can write these bytes. Parsing never panics, bounds every list, and gives a precise reason for
//! what it leaves out. Parameters without which there is no lease must be right; a broken list of resolvers is dropped.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use smoltcp::wire::{
    ArpHardware, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket, EthernetAddress,
};
use thiserror::Error;

use crate::mac::MacAddr;

/// Header, magic number and room for our few options. RFC 1542: never shorter than 300 bytes on the wire.
const MESSAGE_LEN: usize = 548;
const MESSAGE_LEN_MIN: usize = 300;
/// What we tell servers that they may send: an Ethernet frame less the IPv4 and UDP headers.
const ANSWER_LEN_MAX: u16 = 1472;
/// Servers, routers or routes per option that we look at.
const LIST_LEN_MAX: usize = 16;
/// A lease shorter than this would make us talk to the server all the time.
const LEASE_MIN: Duration = Duration::from_secs(30);
/// RFC 2131 3.3: all bits set is for ever.
const FOREVER_S: u32 = u32::MAX;
/// A path shorter than this loses IPv6; longer than this no NIC takes.
const MTU_BYTES: std::ops::RangeInclusive<u16> = 1280..=9216;

mod option {
    pub(super) const SUBNET_MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const DOMAIN: u8 = 15;
    pub(super) const MTU: u8 = 26;
    pub(super) const NTP: u8 = 42;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER_ID: u8 = 54;
    pub(super) const PARAMETER_LIST: u8 = 55;
    pub(super) const MESSAGE: u8 = 56;
    pub(super) const MAX_MESSAGE_SIZE: u8 = 57;
    pub(super) const RENEWAL_TIME: u8 = 58;
    pub(super) const REBINDING_TIME: u8 = 59;
    pub(super) const CLIENT_ID: u8 = 61;
    pub(super) const CLASSLESS_ROUTES: u8 = 121;
}

/// What a server granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Net,
    pub(crate) server: Ipv4Addr,
    /// `None` where the server sent a route list (option 121) without a default route.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Destination and next hop; `0.0.0.0` as next hop means on this wire. Never the default route.
    pub(crate) routes: Vec<(Ipv4Net, Ipv4Addr)>,
    pub(crate) dns: Vec<Ipv4Addr>,
    pub(crate) ntp: Vec<Ipv4Addr>,
    pub(crate) mtu_bytes: Option<u16>,
    /// `None`: for ever. T1 < T2 < lease otherwise.
    pub(crate) times: Option<LeaseTimes>,
}

/// All from the moment when we sent the request that was granted (RFC 2131 4.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseTimes {
    pub(crate) renew: Duration,
    pub(crate) rebind: Duration,
    pub(crate) expire: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Discover,
    /// In SELECTING: names server and address.
    Select {
        server: Ipv4Addr,
        address: Ipv4Addr,
    },
    /// INIT-REBOOT: names the address only.
    Reboot {
        address: Ipv4Addr,
    },
    /// RENEWING and REBINDING: speaks with its address.
    Extend {
        address: Ipv4Addr,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) kind: Kind,
    pub(crate) xid: u32,
    pub(crate) secs: u16,
    pub(crate) mac: MacAddr,
    pub(crate) hostname: Option<&'a str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Offer(Lease),
    Ack(Lease),
    Nak { server: Option<Ipv4Addr>, message: String },
}

/// Why a packet did not move the client.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Ignored {
    #[error("not a DHCP message: {0}")]
    Malformed(&'static str),
    #[error("not an answer of a server")]
    NotReply,
    #[error("answer to transaction {got:08x}, ours is {ours:08x}")]
    OtherTransaction { ours: u32, got: u32 },
    #[error("answer for {0}")]
    OtherClient(MacAddr),
    #[error("message type {0} means nothing to a client")]
    OtherType(u8),
    #[error("server offers address {0}, which no machine can have")]
    BadAddress(Ipv4Addr),
    #[error("{what} while {state}")]
    Unexpected { what: &'static str, state: &'static str },
    #[error("answer of server {got}, we asked {asked}")]
    OtherServer { asked: Ipv4Addr, got: Ipv4Addr },
    #[error("server grants {got}, we asked for {asked}")]
    OtherAddress { asked: Ipv4Addr, got: Ipv4Addr },
}

impl Request<'_> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; MESSAGE_LEN];
        let mut packet = DhcpPacket::new_unchecked(&mut bytes[..]);
        packet.set_sname_and_boot_file_to_zero();
        packet.set_opcode(DhcpOpCode::Request);
        packet.set_hardware_type(ArpHardware::Ethernet);
        packet.set_hardware_len(6);
        packet.set_transaction_id(self.xid);
        packet.set_client_hardware_address(EthernetAddress(self.mac.0));
        packet.set_hops(0);
        packet.set_secs(self.secs);
        packet.set_magic_number(0x6382_5363);
        let client = if let Kind::Extend { address } = self.kind { address } else { Ipv4Addr::UNSPECIFIED };
        packet.set_client_ip(client);
        packet.set_your_ip(Ipv4Addr::UNSPECIFIED);
        packet.set_server_ip(Ipv4Addr::UNSPECIFIED);
        packet.set_relay_agent_ip(Ipv4Addr::UNSPECIFIED);
        // No broadcast flag: the raw socket hears unicast answers before we have the address, and a broadcast
        // answer would wake every other machine on the wire.
        packet.set_flags(DhcpFlags::empty());

        let room = MESSAGE_LEN - 240;
        let mut writer = packet.options_mut();
        let mut used = 0;
        for (kind, data) in self.options() {
            used += 2 + data.len();
            debug_assert!(used < room, "our options are bounded");
            let written = writer.emit(DhcpOption { kind, data: &data });
            debug_assert!(written.is_ok(), "our options are bounded");
        }
        let ended = writer.end();
        debug_assert!(ended.is_ok(), "room for the end mark");
        bytes.truncate((240 + used + 1).max(MESSAGE_LEN_MIN));
        bytes
    }

    fn options(&self) -> Vec<(u8, Vec<u8>)> {
        let message_type = match self.kind {
            Kind::Discover => DhcpMessageType::Discover,
            _ => DhcpMessageType::Request,
        };
        let mut client_id = vec![1];
        client_id.extend(self.mac.0);
        let mut options =
            vec![(option::MESSAGE_TYPE, vec![u8::from(message_type)]), (option::CLIENT_ID, client_id)];
        match self.kind {
            Kind::Discover | Kind::Extend { .. } => {}
            Kind::Select { server, address } => {
                options.push((option::REQUESTED_ADDRESS, address.octets().to_vec()));
                options.push((option::SERVER_ID, server.octets().to_vec()));
            }
            Kind::Reboot { address } => options.push((option::REQUESTED_ADDRESS, address.octets().to_vec())),
        }
        options.push((option::MAX_MESSAGE_SIZE, ANSWER_LEN_MAX.to_be_bytes().to_vec()));
        options.push((
            option::PARAMETER_LIST,
            vec![
                option::SUBNET_MASK,
                option::CLASSLESS_ROUTES,
                option::ROUTER,
                option::DNS,
                option::DOMAIN,
                option::MTU,
                option::NTP,
                option::LEASE_TIME,
                option::RENEWAL_TIME,
                option::REBINDING_TIME,
            ],
        ));
        if let Some(name) = self.hostname.filter(|name| !name.is_empty()) {
            let bytes = name.as_bytes();
            options.push((option::HOST_NAME, bytes[..bytes.len().min(63)].to_vec()));
        }
        options
    }
}

/// Reads an answer to transaction `xid` of the machine `mac`.
pub(crate) fn parse(bytes: &[u8], mac: MacAddr, xid: u32) -> Result<Answer, Ignored> {
    let packet = DhcpPacket::new_checked(bytes).map_err(|_| Ignored::Malformed("shorter than its header"))?;
    if packet.magic_number() != 0x6382_5363 {
        return Err(Ignored::Malformed("no magic number"));
    }
    if packet.opcode() != DhcpOpCode::Reply {
        return Err(Ignored::NotReply);
    }
    if packet.hardware_len() != 6 {
        return Err(Ignored::Malformed("hardware address is not six bytes"));
    }
    if packet.transaction_id() != xid {
        return Err(Ignored::OtherTransaction { ours: xid, got: packet.transaction_id() });
    }
    let client = MacAddr(packet.client_hardware_address().0);
    if client != mac {
        return Err(Ignored::OtherClient(client));
    }
    // RFC 3396: an option that is given several times is one long option.
    let mut options: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for DhcpOption { kind, data } in packet.options() {
        options.entry(kind).or_default().extend_from_slice(data);
    }
    let &[kind] = options.get(&option::MESSAGE_TYPE).map(Vec::as_slice).unwrap_or_default() else {
        return Err(Ignored::Malformed("no message type"));
    };
    match DhcpMessageType::from(kind) {
        DhcpMessageType::Offer => Ok(Answer::Offer(lease(packet.your_ip(), &options)?)),
        DhcpMessageType::Ack => Ok(Answer::Ack(lease(packet.your_ip(), &options)?)),
        DhcpMessageType::Nak => Ok(Answer::Nak {
            server: address(&options, option::SERVER_ID),
            message: printable(options.get(&option::MESSAGE).map(Vec::as_slice).unwrap_or_default()),
        }),
        _ => Err(Ignored::OtherType(kind)),
    }
}

type Options = BTreeMap<u8, Vec<u8>>;

fn lease(given: Ipv4Addr, options: &Options) -> Result<Lease, Ignored> {
    let server = address(options, option::SERVER_ID).ok_or(Ignored::Malformed("no server identifier"))?;
    let prefix_len = match options.get(&option::SUBNET_MASK) {
        Some(mask) => prefix_len(mask).ok_or(Ignored::Malformed("subnet mask is not a mask"))?,
        None => natural_prefix_len(given),
    };
    let net = Ipv4Net::new(given, prefix_len).map_err(|_| Ignored::Malformed("subnet mask is not a mask"))?;
    if !is_host(net) {
        return Err(Ignored::BadAddress(given));
    }
    let seconds = |code| match options.get(&code).map(|data| <[u8; 4]>::try_from(data.as_slice())) {
        Some(Ok(data)) => Some(u32::from_be_bytes(data)),
        _ => None,
    };
    let times = match seconds(option::LEASE_TIME) {
        None => return Err(Ignored::Malformed("no lease time")),
        Some(0) => return Err(Ignored::Malformed("lease of no time")),
        Some(FOREVER_S) => None,
        Some(lease_s) => {
            Some(LeaseTimes::new(lease_s, seconds(option::RENEWAL_TIME), seconds(option::REBINDING_TIME)))
        }
    };
    let (gateway, routes) =
        match options.get(&option::CLASSLESS_ROUTES).and_then(|data| classless_routes(data)) {
            // RFC 3442: with a route list the router option must be ignored.
            Some(mut routes) => {
                let default = routes.iter().position(|(net, _)| net.prefix_len() == 0);
                let gateway = default.map(|place| routes.remove(place).1).filter(|hop| !hop.is_unspecified());
                routes.retain(|(net, _)| net.prefix_len() != 0);
                (gateway, routes)
            }
            None => (
                addresses(options, option::ROUTER).first().copied().filter(|router| *router != given),
                Vec::new(),
            ),
        };
    Ok(Lease {
        address: net,
        server,
        gateway,
        routes,
        dns: addresses(options, option::DNS),
        ntp: addresses(options, option::NTP),
        mtu_bytes: options
            .get(&option::MTU)
            .and_then(|data| <[u8; 2]>::try_from(data.as_slice()).ok())
            .map(u16::from_be_bytes)
            .filter(|mtu| MTU_BYTES.contains(mtu)),
        times,
    })
}

impl LeaseTimes {
    /// RFC 2131 4.4.5: half and seven eighths, unless the server says otherwise in the right order.
    fn new(lease_s: u32, renew_s: Option<u32>, rebind_s: Option<u32>) -> Self {
        let expire = Duration::from_secs(u64::from(lease_s)).max(LEASE_MIN);
        let rebind =
            rebind_s.map(|s| Duration::from_secs(s.into())).filter(|t2| *t2 < expire && !t2.is_zero());
        let rebind = rebind.unwrap_or(expire * 7 / 8);
        let renew = renew_s.map(|s| Duration::from_secs(s.into())).filter(|t1| *t1 < rebind && !t1.is_zero());
        let renew = renew.unwrap_or((expire / 2).min(rebind * 4 / 7));
        Self { renew, rebind, expire }
    }
}

fn address(options: &Options, code: u8) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = options.get(&code)?.as_slice().try_into().ok()?;
    Some(Ipv4Addr::from(octets)).filter(|address| is_unicast(*address))
}

fn addresses(options: &Options, code: u8) -> Vec<Ipv4Addr> {
    let data = options.get(&code).map(Vec::as_slice).unwrap_or_default();
    let (octets, _) = data.as_chunks::<4>();
    octets
        .iter()
        .map(|octets| Ipv4Addr::from(*octets))
        .filter(|a| is_unicast(*a))
        .take(LIST_LEN_MAX)
        .collect()
}

/// RFC 3442: prefix length, then as many bytes of the network as it needs, then the next hop.
fn classless_routes(mut data: &[u8]) -> Option<Vec<(Ipv4Net, Ipv4Addr)>> {
    let mut routes = Vec::new();
    while let Some((&prefix_len, rest)) = data.split_first() {
        let significant = usize::from(prefix_len).div_ceil(8);
        if prefix_len > 32 || rest.len() < significant + 4 || routes.len() == LIST_LEN_MAX {
            return None;
        }
        let mut network = [0u8; 4];
        network[..significant].copy_from_slice(&rest[..significant]);
        let hop: [u8; 4] = rest[significant..significant + 4].try_into().ok()?;
        routes.push((Ipv4Net::new(network.into(), prefix_len).ok()?.trunc(), Ipv4Addr::from(hop)));
        data = &rest[significant + 4..];
    }
    if routes.is_empty() { None } else { Some(routes) }
}

fn prefix_len(mask: &[u8]) -> Option<u8> {
    let mask = Ipv4Addr::from(<[u8; 4]>::try_from(mask).ok()?);
    ipnet::ipv4_mask_to_prefix(mask).ok().filter(|len| *len > 0)
}

/// Of the address's class (RFC 2132 3.3 leaves the mask out only on classful networks).
fn natural_prefix_len(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

fn is_unicast(address: Ipv4Addr) -> bool {
    !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_broadcast()
        && !address.is_loopback()
        && address.octets()[0] != 0
        && address.octets()[0] < 240
}

fn is_host(net: Ipv4Net) -> bool {
    is_unicast(net.addr())
        && (net.prefix_len() > 30 || (net.addr() != net.network() && net.addr() != net.broadcast()))
}

/// A server's words go on our console: bounded, and nothing that could move its cursor.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .filter(|c| !c.is_control())
        .take(80)
        .collect::<String>()
        .trim()
        .to_owned()
}
