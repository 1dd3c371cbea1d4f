//! The kernel's links, addresses and routes over rtnetlink, in the few words that the rest of the crate needs.
//!
//! A handle speaks to the network namespace of the thread that opened it. "Already there" and "already gone" are
//! success, because everything here is repeated until it holds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
};
use rtnetlink::packet_route::link::{
    BondMode as KernelBondMode, InfoData, InfoKind, InfoVeth, InfoVlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{
    Handle, LinkBond, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan, MulticastGroup,
    RouteMessageBuilder,
};
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::config::BondMode;
use crate::mac::MacAddr;

/// The kernel's main routing table.
const TABLE_MAIN: u8 = 254;
/// The kernel's word for an address without end.
const FOREVER_S: u32 = u32::MAX;
/// A listing takes far less than a pause.
const LIST_ATTEMPTS: u32 = 10;
const LIST_PAUSE: Duration = Duration::from_millis(10);

/// The kernel refused a request, or could not be asked.
#[derive(Debug, Error)]
pub enum NetlinkError {
    #[error("can't open a netlink socket")]
    Open(#[source] std::io::Error),
    #[error("can't {what}")]
    Request { what: String, source: std::io::Error },
    #[error("no link {0}")]
    NoLink(String),
}

pub(crate) type Result<T> = std::result::Result<T, NetlinkError>;

#[derive(Clone, Debug)]
pub(crate) struct Rtnl {
    handle: Handle,
    /// The kernel runs one listing per socket at a time, and answers EBUSY to the next.
    listing: Arc<Mutex<()>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<MacAddr>,
    /// The card's own, also while it shows a bond's.
    pub(crate) permanent_mac: Option<MacAddr>,
    pub(crate) up: bool,
    pub(crate) carrier: bool,
    pub(crate) mtu_bytes: u32,
    /// `None`: a device of its own, which on Ethernet means a network card.
    pub(crate) kind: Option<InfoKind>,
    pub(crate) alias: Option<String>,
    /// Index of the bridge or bond that it belongs to.
    pub(crate) controller: Option<u32>,
    /// Index of the link that a VLAN stands on, and the VLAN's number.
    pub(crate) parent: Option<u32>,
    pub(crate) vlan: Option<u16>,
    pub(crate) ethernet: bool,
    pub(crate) loopback: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) link: u32,
    pub(crate) net: IpNet,
    /// From a router advertisement.
    pub(crate) dynamic: bool,
    pub(crate) link_local: bool,
    /// Not usable yet or ever: duplicate address detection runs or failed.
    pub(crate) tentative: bool,
}

/// A route of the main table. `destination` of prefix length 0 is the default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) link: u32,
    pub(crate) destination: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) metric: u32,
    /// Put there by us: protocol static or dhcp.
    pub(crate) ours: bool,
}

impl Link {
    /// A network card: Ethernet, and no kind of virtual link.
    pub(crate) fn is_physical(&self) -> bool {
        self.ethernet && !self.loopback && self.kind.is_none()
    }

    /// The address by which a person knows the card.
    pub(crate) fn own_mac(&self) -> Option<MacAddr> {
        self.permanent_mac.or(self.mac).filter(|mac| !mac.is_unusable())
    }

    pub(crate) fn is_vlan_of(&self, parent: &Self, vlan: u16) -> bool {
        self.kind == Some(InfoKind::Vlan) && self.parent == Some(parent.index) && self.vlan == Some(vlan)
    }
}

impl Rtnl {
    /// For the namespace of the calling thread. Needs a running tokio runtime, which serves the socket.
    pub(crate) fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle, listing: Arc::new(Mutex::new(())) })
    }

    /// One item per change of links, addresses or routes. What changed must be read anew: messages can be lost.
    pub(crate) fn changes() -> Result<impl Stream<Item = ()> + Unpin> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        // The connection ends when its last handle goes.
        Ok(messages.map(move |_| {
            let _keep = &handle;
        }))
    }

    async fn list<T, S>(&self, what: &str, request: impl Fn() -> S) -> Result<Vec<T>>
    where
        S: Stream<Item = std::result::Result<T, rtnetlink::Error>>,
    {
        let _alone = self.listing.lock().await;
        for attempt in 1.. {
            match request().try_collect().await {
                // The listing of a task that was aborted in the middle still runs.
                Err(error) if is(&error, &[libc::EBUSY]) && attempt < LIST_ATTEMPTS => {
                    sleep(LIST_PAUSE).await;
                }
                // A kernel without IPv6 has no such table.
                Err(error) if is(&error, &[libc::EAFNOSUPPORT, libc::EOPNOTSUPP]) => return Ok(Vec::new()),
                listed => return listed.map_err(failed(what)),
            }
        }
        unreachable!("the last attempt returns")
    }

    pub(crate) async fn links(&self) -> Result<Vec<Link>> {
        let messages = self.list("list links", || self.handle.link().get().execute()).await?;
        Ok(messages.into_iter().map(read_link).collect())
    }

    /// `None` where there is no link of that name.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<Link>> {
        Ok(self.links().await?.into_iter().find(|link| link.name == name))
    }

    pub(crate) async fn link(&self, name: &str) -> Result<Link> {
        self.find(name).await?.ok_or_else(|| NetlinkError::NoLink(name.to_owned()))
    }

    async fn set(&self, message: LinkMessage, what: impl FnOnce() -> String) -> Result<()> {
        self.handle.link().set(message).execute().await.map_err(failed_with(what))
    }

    pub(crate) async fn set_up(&self, link: u32, up: bool) -> Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(link);
        let message = if up { message.up() } else { message.down() };
        self.set(message.build(), || format!("set link {link} {}", if up { "up" } else { "down" })).await
    }

    pub(crate) async fn set_mtu(&self, link: u32, mtu_bytes: u32) -> Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(link).mtu(mtu_bytes).build();
        self.set(message, || format!("set the mtu of link {link} to {mtu_bytes}")).await
    }

    pub(crate) async fn set_bridge(&self, link: u32, bridge: u32) -> Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(link).controller(bridge).build();
        self.set(message, || format!("put link {link} into bridge {bridge}")).await
    }

    pub(crate) async fn set_alias(&self, link: u32, alias: &str) -> Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(link).alias(alias).build();
        self.set(message, || format!("write the alias of link {link}")).await
    }

    /// Both ends get `mtu_bytes`; the far end `peer` is born in `namespace`.
    pub(crate) async fn add_veth(
        &self,
        name: &str,
        mac: MacAddr,
        peer: &str,
        namespace: BorrowedFd<'_>,
        mtu_bytes: u32,
    ) -> Result<()> {
        let peer_end = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .mtu(mtu_bytes)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new(name, peer)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer_end)))
            .address(mac.0.to_vec())
            .mtu(mtu_bytes)
            .build();
        let added = self.handle.link().add(message).execute().await;
        added.map_err(failed_with(|| format!("create the link pair {name} and {peer}")))
    }

    /// No spanning tree, no snooping: one tenant's guests and one way out.
    pub(crate) async fn add_bridge(&self, name: &str, mtu_bytes: u32) -> Result<()> {
        let message = LinkBridge::new(name).mcast_snooping(false).forward_delay(0).mtu(mtu_bytes).build();
        let added = self.handle.link().add(message).execute().await;
        unless(added, &[libc::EEXIST]).map_err(failed_with(|| format!("create bridge {name}")))
    }

    /// Looks at its members ten times a second; an answer that takes longer is a cable that is out.
    pub(crate) async fn add_bond(&self, name: &str, mode: BondMode) -> Result<()> {
        const LOOK_MS: u32 = 100;
        let mode = match mode {
            BondMode::ActiveBackup => KernelBondMode::ActiveBackup,
            BondMode::Lacp => KernelBondMode::Ieee8023Ad,
        };
        let message = LinkBond::new(name).mode(mode).miimon(LOOK_MS).build();
        let added = self.handle.link().add(message).execute().await;
        added.map_err(failed_with(|| format!("create bond {name}: the kernel needs BONDING")))
    }

    /// The kernel takes only members that are down, and brings them up itself.
    pub(crate) async fn join_bond(&self, member: u32, bond: u32) -> Result<()> {
        self.set_up(member, false).await?;
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(member).controller(bond).build();
        self.set(message, || format!("put link {member} into bond {bond}")).await
    }

    pub(crate) async fn add_vlan(&self, name: &str, parent: u32, vlan: u16) -> Result<()> {
        let message = LinkVlan::new(name, parent, vlan).build();
        let added = self.handle.link().add(message).execute().await;
        added.map_err(failed_with(|| format!("create VLAN {vlan} as {name}: the kernel needs VLAN_8021Q")))
    }

    /// Gone is gone, whoever did it.
    pub(crate) async fn delete_link(&self, link: u32) -> Result<()> {
        let deleted = self.handle.link().del(link).execute().await;
        unless(deleted, &[libc::ENODEV]).map_err(failed_with(|| format!("delete link {link}")))
    }

    pub(crate) async fn addresses(&self) -> Result<Vec<Address>> {
        let messages = self.list("list addresses", || self.handle.address().get().execute()).await?;
        Ok(messages.iter().filter_map(read_address).collect())
    }

    /// Adds the address, or renews its time. The kernel takes it away itself after `valid_s`, should this process
    /// die before the lease does.
    pub(crate) async fn set_address(&self, link: u32, net: IpNet, valid_s: Option<u32>) -> Result<()> {
        let mut request = self.handle.address().add(link, net.addr(), net.prefix_len()).replace();
        if let Some(valid_s) = valid_s {
            let mut times = CacheInfo::default();
            times.ifa_valid = valid_s.min(FOREVER_S - 1);
            times.ifa_preferred = times.ifa_valid;
            request.message_mut().attributes.push(AddressAttribute::CacheInfo(times));
        }
        request.execute().await.map_err(failed_with(|| format!("give {net} to link {link}")))
    }

    pub(crate) async fn delete_address(&self, link: u32, net: IpNet) -> Result<()> {
        let mut request = self.handle.address().add(link, net.addr(), net.prefix_len());
        let message = request.message_mut().clone();
        let deleted = self.handle.address().del(message).execute().await;
        unless(deleted, &[libc::EADDRNOTAVAIL, libc::ENODEV])
            .map_err(failed_with(|| format!("take {net} from link {link}")))
    }

    /// Routes of the main table that lead somewhere: default routes and our own.
    pub(crate) async fn routes(&self) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        let requests =
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for request in requests {
            let messages =
                self.list("list routes", || self.handle.route().get(request.clone()).execute()).await?;
            routes.extend(messages.iter().filter_map(read_route));
        }
        Ok(routes)
    }

    pub(crate) async fn set_route(&self, route: &Route) -> Result<()> {
        let what = || format!("route {} over link {}", route.destination, route.link);
        let added = self.handle.route().add(route_message(route)).replace().execute().await;
        added.map_err(failed_with(what))
    }

    pub(crate) async fn delete_route(&self, route: &Route) -> Result<()> {
        let what = || format!("remove the route to {} over link {}", route.destination, route.link);
        let deleted = self.handle.route().del(route_message(route)).execute().await;
        unless(deleted, &[libc::ESRCH, libc::ENODEV]).map_err(failed_with(what))
    }
}

fn route_message(route: &Route) -> RouteMessage {
    match (route.destination, route.gateway) {
        (IpNet::V4(net), gateway) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(route.link)
                .priority(route.metric)
                .protocol(RouteProtocol::Static);
            if let Some(IpAddr::V4(gateway)) = gateway {
                // Hosters' gateways are often outside our prefix; the configuration has been checked already.
                builder = builder.gateway(gateway).onlink();
            } else {
                builder = builder.scope(rtnetlink::packet_route::route::RouteScope::Link);
            }
            builder.build()
        }
        (IpNet::V6(net), gateway) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(route.link)
                .priority(route.metric)
                .protocol(RouteProtocol::Static);
            if let Some(IpAddr::V6(gateway)) = gateway {
                builder = builder.gateway(gateway).onlink();
            }
            builder.build()
        }
    }
}

fn read_link(message: LinkMessage) -> Link {
    let header = &message.header;
    let flags = header.flags;
    let mut link = Link {
        index: header.index,
        name: String::new(),
        mac: None,
        permanent_mac: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mtu_bytes: 0,
        kind: None,
        alias: None,
        controller: None,
        parent: None,
        vlan: None,
        ethernet: header.link_layer_type == LinkLayerType::Ether,
        loopback: flags.contains(LinkFlags::Loopback),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = MacAddr::from_slice(&bytes),
            LinkAttribute::PermAddress(bytes) => {
                // Virtual links have none, or zeros.
                link.permanent_mac = MacAddr::from_slice(&bytes).filter(|mac| !mac.is_unusable());
            }
            LinkAttribute::Link(parent) => link.parent = Some(parent),
            LinkAttribute::Mtu(mtu) => link.mtu_bytes = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Controller(index) => link.controller = Some(index).filter(|index| *index != 0),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind),
                        LinkInfo::Data(InfoData::Vlan(data)) => {
                            link.vlan = data.iter().find_map(|data| match data {
                                InfoVlan::Id(vlan) => Some(*vlan),
                                _ => None,
                            });
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn read_address(message: &AddressMessage) -> Option<Address> {
    let mut address = None;
    let mut flags = message.header.flags;
    for attribute in &message.attributes {
        match attribute {
            // Where both are given, LOCAL is ours and ADDRESS may be the far end's.
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(other) if address.is_none() => address = Some(*other),
            AddressAttribute::Flags(all) => flags = AddressHeaderFlags::from_bits_truncate(all.bits() as u8),
            _ => {}
        }
    }
    let address = address?;
    Some(Address {
        link: message.header.index,
        net: IpNet::new(address, message.header.prefix_len).ok()?,
        dynamic: address.is_ipv6() && !flags.contains(AddressHeaderFlags::Permanent),
        link_local: message.header.scope == AddressScope::Link,
        tentative: flags.intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed),
    })
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.table != TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let ours = matches!(header.protocol, RouteProtocol::Static | RouteProtocol::Dhcp);
    if header.destination_prefix_length != 0 && !ours {
        return None;
    }
    let family_v4 = header.address_family == rtnetlink::packet_route::AddressFamily::Inet;
    let any: IpAddr = if family_v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let (mut link, mut gateway, mut metric, mut destination) = (None, None, 0, any);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(address) => gateway = read_route_address(address),
            RouteAttribute::Destination(address) => destination = read_route_address(address)?,
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(Route { link: link?, destination, gateway, metric, ours })
}

fn read_route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn failed(what: &str) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    let what = what.to_owned();
    failed_with(|| what)
}

fn failed_with(what: impl FnOnce() -> String) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    move |error| NetlinkError::Request { what: what(), source: io_error(error) }
}

/// The kernel's error number, in the words of the C library.
fn io_error(error: rtnetlink::Error) -> std::io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => std::io::Error::other(other.to_string()),
    }
}

fn is(error: &rtnetlink::Error, numbers: &[i32]) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if numbers.contains(&message.raw_code().abs()))
}

fn unless(
    result: std::result::Result<(), rtnetlink::Error>,
    numbers: &[i32],
) -> std::result::Result<(), rtnetlink::Error> {
    result.or_else(|error| if is(&error, numbers) { Ok(()) } else { Err(error) })
}
