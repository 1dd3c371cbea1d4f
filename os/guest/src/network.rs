//! Addresses, routes and MTU by rtnetlink; interfaces are found by their hardware address.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use croft_guest::wire::{Cidr, Interface, Network, Route, Step};
use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::failure::{During, Failure};

/// Devices are probed before init runs, except on a very slow machine.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);
/// The loopback interface is always the first of a network namespace.
const LOOPBACK: u32 = 1;

/// Brings loopback and all configured interfaces up.
pub(crate) fn apply(network: &Network) -> Result<(), Failure> {
    let mut netlink = Netlink::open().during(Step::Network, || "opening netlink".to_owned())?;
    netlink.set_up(LOOPBACK, 0).during(Step::Network, || "bringing lo up".to_owned())?;
    for interface in &network.interfaces {
        configure(&mut netlink, interface)?;
    }
    Ok(())
}

fn configure(netlink: &mut Netlink, interface: &Interface) -> Result<(), Failure> {
    let mac = interface.mac.map(|byte| format!("{byte:02x}")).join(":");
    let index = wait_for_interface(&mac)?;
    netlink
        .set_up(index, interface.mtu)
        .during(Step::Network, || format!("bringing the interface {mac} up with MTU {}", interface.mtu))?;
    for address in &interface.addresses {
        netlink
            .add_address(index, *address)
            .during(Step::Network, || format!("adding {address} to the interface {mac}"))?;
    }
    for route in &interface.routes {
        netlink.add_route(index, *route).during(Step::Network, || {
            format!(
                "adding the route to {} by {}: the gateway must be in a network of the interface {mac}",
                route.destination,
                route.gateway.map_or_else(|| "link".to_owned(), |gateway| gateway.to_string())
            )
        })?;
    }
    Ok(())
}

fn wait_for_interface(mac: &str) -> Result<u32, Failure> {
    let started = Instant::now();
    loop {
        if let Some(index) = find_interface(Path::new("/sys/class/net"), mac) {
            return Ok(index);
        }
        if started.elapsed() > DEVICE_LIMIT {
            let limit = DEVICE_LIMIT.as_secs();
            return Err(Failure::new(Step::Network, format!("no interface {mac} appeared within {limit} s")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn find_interface(sys_class_net: &Path, mac: &str) -> Option<u32> {
    fs::read_dir(sys_class_net).ok()?.filter_map(Result::ok).find_map(|entry| {
        let address = fs::read_to_string(entry.path().join("address")).ok()?;
        if !address.trim().eq_ignore_ascii_case(mac) {
            return None;
        }
        fs::read_to_string(entry.path().join("ifindex")).ok()?.trim().parse().ok()
    })
}

/// One rtnetlink socket; every request waits for its acknowledgement.
struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn set_up(&mut self, index: u32, mtu: u16) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        if mtu != 0 {
            message.attributes.push(LinkAttribute::Mtu(u32::from(mtu)));
        }
        self.request(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn add_address(&mut self, index: u32, cidr: Cidr) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(cidr.address);
        message.header.prefix_len = cidr.prefix;
        message.header.index = index;
        message.header.scope = AddressScope::Universe;
        if cidr.address.is_ipv6() {
            // The host gives each address to one guest only; waiting for duplicates costs a second of boot.
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes =
            vec![AddressAttribute::Local(cidr.address), AddressAttribute::Address(cidr.address)];
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn add_route(&mut self, index: u32, route: Route) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.destination.address);
        message.header.destination_prefix_length = route.destination.prefix;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if route.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        message.attributes.push(RouteAttribute::Oif(index));
        if route.destination.prefix > 0 {
            let address = RouteAddress::from(route.destination.address);
            message.attributes.push(RouteAttribute::Destination(address));
        }
        if let Some(gateway) = route.gateway {
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        }
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            let answer = NetlinkMessage::<Unread>::deserialize(&answer).map_err(|error| {
                io::Error::other(format!("netlink answered with something else: {error}"))
            })?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            return match answer.payload {
                NetlinkPayload::Error(error) => match error.code {
                    None => Ok(()),
                    Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
                },
                _ => Err(io::Error::other("netlink answered without an acknowledgement")),
            };
        }
    }
}

/// Whatever else the kernel says. Reading it would link decoders of every kind of message there is.
#[derive(Debug)]
struct Unread;

impl NetlinkDeserializable for Unread {
    type Error = DecodeError;

    fn deserialize(_header: &NetlinkHeader, _payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self)
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{InfoKind, LinkInfo};

    use super::*;

    #[test]
    fn an_interface_is_found_by_its_hardware_address() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mac, index) in
            [("lo", "00:00:00:00:00:00\n", "1\n"), ("eth0", "02:00:00:00:00:0A\n", "7\n")]
        {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("address"), mac).unwrap();
            fs::write(dir.path().join(name).join("ifindex"), index).unwrap();
        }
        assert_eq!(find_interface(dir.path(), "02:00:00:00:00:0a"), Some(7));
        assert_eq!(find_interface(dir.path(), "02:00:00:00:00:0b"), None);
    }

    /// Runs the real code on a real interface, in a network namespace of its own. No child processes: this
    /// test binary has a reaper.
    #[test]
    fn addresses_routes_and_mtu_reach_the_kernel() {
        let inside = std::thread::spawn(|| {
            if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped: a network namespace needs root ({error})");
                return None;
            }
            let mut netlink = Netlink::open().unwrap();
            let mut link = LinkMessage::default();
            link.attributes = vec![
                LinkAttribute::IfName("g0".into()),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
            ];
            if let Err(error) = netlink.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE) {
                eprintln!("skipped: this kernel has no veth ({error})");
                return None;
            }
            // /sys shows the namespace it was mounted in, so the interface is found by its name here.
            let index = nix::net::if_::if_nametoindex("g0").unwrap();
            netlink.set_up(LOOPBACK, 0).unwrap();
            netlink.set_up(index, 1400).unwrap();
            let cidr = |text: &str, prefix| Cidr { address: text.parse().unwrap(), prefix };
            netlink.add_address(index, cidr("10.9.0.2", 24)).unwrap();
            netlink.add_address(index, cidr("fd09::2", 64)).unwrap();
            let route =
                |gateway: &str| Route { destination: cidr("0.0.0.0", 0), gateway: gateway.parse().ok() };
            netlink.add_route(index, route("10.9.0.1")).unwrap();
            let error = netlink.add_route(index, route("10.8.0.1")).unwrap_err();
            let addresses: Vec<String> = nix::ifaddrs::getifaddrs()
                .unwrap()
                .filter_map(|entry| Some(format!("{} {}", entry.interface_name, entry.address?)))
                .collect();
            let devices = fs::read_to_string("/proc/thread-self/net/route").unwrap();
            Some((addresses, devices, error))
        });
        let Some((addresses, routes, error)) = inside.join().unwrap() else { return };
        for expected in ["g0 10.9.0.2:0", "g0 [fd09::2]:0", "lo 127.0.0.1:0"] {
            assert!(addresses.iter().any(|address| address == expected), "{expected} in {addresses:?}");
        }
        // Destination, gateway 10.9.0.1, flags up and gateway.
        assert!(routes.contains("g0\t00000000\t0100090A\t0003"), "{routes}");
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENETUNREACH));
    }
}
