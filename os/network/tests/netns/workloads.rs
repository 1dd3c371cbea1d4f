//! Networks of workloads: a world, a node, and guests of two contracts.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

use croft_network::firewall::{self, Protocol, Published, Ruleset};
use croft_network::workload::{
    DeploymentId, DeploymentNetwork, DeploymentSpec, EnsureError, MachineSpec, Namespace, Owner, Pool,
    Workloads, open_tap,
};
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::link::{InfoData, InfoTun, LinkAttribute, LinkInfo};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::harness::{
    Lab, PATIENCE, SILENCE, address, find_link, in_node, into_bridge, link, machine, netlink, route, tool,
    up, wire,
};

const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// Address of the node's veth end is `.1` of each subnet.
const VIRTIO_HEADER_LEN: usize = 10;

fn id(byte: u8) -> DeploymentId {
    DeploymentId::new([byte; 32])
}

fn spec(byte: u8, machines: &[(&str, u16)]) -> DeploymentSpec {
    let owner = Owner { uid: 4001, gid: 4002 };
    let machines =
        machines.iter().map(|(name, index)| MachineSpec { name: (*name).into(), index: *index, owner });
    DeploymentSpec { id: id(byte), machines: machines.collect(), mtu_bytes: 1500 }
}

fn workloads(lab: &Lab) -> Workloads {
    Workloads::with_directory(Pool::default(), lab.namespaces())
}

fn published(deployment: u8, protocol: Protocol, port: u16, to: Ipv4Addr, to_port: u16) -> Published {
    Published { deployment: id(deployment), protocol, port, to: SocketAddrV4::new(to, to_port) }
}

/// A machine on a deployment's bridge, in place of a guest behind a tap.
async fn guest(lab: &Lab, name: &str, network: &DeploymentNetwork, host: u8) -> (Namespace, Ipv4Addr) {
    let namespace = lab.namespace(name).await;
    let inner = Namespace::open(namespace.path()).unwrap();
    let port = format!("p-{name}");
    Namespace::open(&network.namespace)
        .unwrap()
        .run(move || async move {
            wire(&port, "eth0", &inner).await;
            into_bridge(&port, "br0").await;
            up(&port).await;
        })
        .await
        .unwrap();
    let [a, b, c, _] = network.subnet.network().octets();
    let (own, gateway) = (Ipv4Addr::new(a, b, c, host), network.gateway.to_string());
    let net = format!("{own}/24");
    namespace.run(move || async move { machine("eth0", &net, &gateway).await }).await.unwrap();
    (namespace, own)
}

/// Node with a link to the world, which is 192.0.2.1 and routes everything to the node.
async fn world(lab: &Lab) -> Namespace {
    let world = lab.namespace("world").await;
    wire("eth0", "w0", &world).await;
    machine("eth0", "192.0.2.10/24", "192.0.2.1").await;
    world
        .run(|| async {
            up("w0").await;
            address("w0", "192.0.2.1/24").await;
            route("10.90.0.0/16", "192.0.2.10").await;
        })
        .await
        .unwrap();
    world
}

/// Answers each connection with the address that it came from.
fn spawn_echo(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, from)) = listener.accept().await {
            let _ = stream.write_all(from.ip().to_string().as_bytes()).await;
        }
    });
}

/// Runs the same server in another namespace until the returned handle is dropped.
struct Server {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

async fn serve(namespace: &Namespace, port: u16) -> Server {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let namespace = Namespace::open(namespace.path()).unwrap();
    tokio::spawn(async move {
        namespace
            .run(move || async move {
                spawn_echo(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.unwrap());
                let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await.unwrap();
                tokio::spawn(async move {
                    let mut buffer = [0; 64];
                    while let Ok((_, from)) = udp.recv_from(&mut buffer).await {
                        let _ = udp.send_to(from.ip().to_string().as_bytes(), from).await;
                    }
                });
                ready.send(()).unwrap();
                let _ = stopped.await;
            })
            .await
            .unwrap();
    });
    is_ready.await.unwrap();
    Server { stop: Some(stop) }
}

/// What a server says to a client in `namespace`; `None` when it can't be reached.
async fn ask(namespace: &Namespace, to: impl Into<SocketAddr>, patience: Duration) -> Option<String> {
    let to = to.into();
    let talk = async move {
        let mut stream = TcpStream::connect(to).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    };
    namespace.run(move || async move { timeout(patience, talk).await.ok().flatten() }).await.unwrap()
}

async fn ask_udp(namespace: &Namespace, to: SocketAddrV4) -> Option<String> {
    let talk = async move {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
        socket.connect(to).await.ok()?;
        socket.send(b"?").await.ok()?;
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer).await.ok()?;
        Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
    };
    namespace.run(move || async move { timeout(PATIENCE, talk).await.ok().flatten() }).await.unwrap()
}

/// Whether `to` answers a ping from `namespace`.
async fn ping(namespace: &Namespace, to: Ipv4Addr) -> bool {
    let ping = move || async move {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::ICMPV4))
                .unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(&SocketAddrV4::new(to, 0).into()).unwrap();
        // Echo request, id 7, sequence 1, checksum of those.
        socket.send(&[8, 0, 0xf7, 0xf7, 0, 7, 0, 1]).unwrap();
        let socket: std::net::UdpSocket = socket.into();
        let mut buffer = [0; 256];
        loop {
            let Ok(len) = socket.recv(&mut buffer) else { return false };
            if len > 20 && buffer[20] == 0 {
                return true;
            }
        }
    };
    namespace.run(ping).await.unwrap()
}

#[test]
fn published_ports_reach_guests_and_nothing_else_reaches_anything() {
    in_node("firewall", |lab| async move {
        let world = world(&lab).await;
        let workloads = workloads(&lab);
        firewall::apply(&Ruleset::new(workloads.pool().net(), []).unwrap()).unwrap();
        workloads.prepare().unwrap();
        let first = workloads.ensure(&spec(1, &[("web", 0)])).await.unwrap();
        let second = workloads.ensure(&spec(2, &[("db", 0)])).await.unwrap();
        assert_ne!(first.subnet, second.subnet);
        let (web, web_address) = guest(&lab, "web", &first, 2).await;
        let (peer, peer_address) = guest(&lab, "peer", &first, 3).await;
        let (db, db_address) = guest(&lab, "db", &second, 2).await;
        let ports = [
            published(1, Protocol::Tcp, 8080, web_address, 80),
            published(1, Protocol::Udp, 8080, web_address, 80),
            published(2, Protocol::Tcp, 8081, db_address, 80),
        ];
        firewall::apply(&Ruleset::new(workloads.pool().net(), ports).unwrap()).unwrap();

        let _servers =
            [serve(&web, 80).await, serve(&db, 80).await, serve(&world, 80).await, serve(&peer, 80).await];
        spawn_echo(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9000)).await.unwrap());

        // From the world: what is published, over TCP and UDP, and the guest sees who asks.
        assert_eq!(ask(&world, SocketAddrV4::new(NODE, 8080), PATIENCE).await.as_deref(), Some("192.0.2.1"));
        assert_eq!(ask(&world, SocketAddrV4::new(NODE, 8081), PATIENCE).await.as_deref(), Some("192.0.2.1"));
        assert_eq!(ask_udp(&world, SocketAddrV4::new(NODE, 8080)).await.as_deref(), Some("192.0.2.1"));
        // To the world: under the node's address.
        assert_eq!(
            ask(&web, SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 80), PATIENCE).await.as_deref(),
            Some("192.0.2.10")
        );
        // Among guests of one contract: directly.
        assert_eq!(
            ask(&web, SocketAddrV4::new(peer_address, 80), PATIENCE).await,
            Some(web_address.to_string())
        );
        // The gateway and the node answer pings, so that a guest can find out where a path ends.
        assert!(ping(&web, first.gateway).await);
        assert!(ping(&world, NODE).await);

        // The node itself is closed, to the world and to guests on all of its addresses.
        for (from, to) in [(&world, NODE), (&web, NODE), (&web, first.gateway), (&web, second.gateway)] {
            assert_eq!(ask(from, SocketAddrV4::new(to, 9000), SILENCE).await, None, "{to} must be closed");
        }
        // Another contract's guests are out of reach, directly and through their published port.
        assert_eq!(ask(&web, SocketAddrV4::new(db_address, 80), SILENCE).await, None);
        assert_eq!(ask(&web, SocketAddrV4::new(NODE, 8081), SILENCE).await, None);
        // A guest's own address can't be reached from the world, even by who routes it to the node.
        assert_eq!(ask(&world, SocketAddrV4::new(web_address, 80), SILENCE).await, None);

        // A contract that ends takes its port with it; the other one stays.
        firewall::apply(&Ruleset::new(workloads.pool().net(), [ports[2]]).unwrap()).unwrap();
        assert_eq!(ask(&world, SocketAddrV4::new(NODE, 8080), SILENCE).await, None);
        assert_eq!(ask(&world, SocketAddrV4::new(NODE, 8081), PATIENCE).await.as_deref(), Some("192.0.2.1"));

        // The farmer's own network can be closed to guests.
        let refusing =
            Ruleset::new(workloads.pool().net(), []).unwrap().refusing(["192.0.2.0/24".parse().unwrap()]);
        firewall::apply(&refusing).unwrap();
        assert_eq!(ask(&web, SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 80), SILENCE).await, None);
    });
}

#[test]
fn a_guest_cannot_speak_with_a_foreign_address() {
    in_node("spoof", |lab| async move {
        let world = world(&lab).await;
        let workloads = workloads(&lab);
        firewall::apply(&Ruleset::new(workloads.pool().net(), []).unwrap()).unwrap();
        workloads.prepare().unwrap();
        let network = workloads.ensure(&spec(1, &[("web", 0)])).await.unwrap();
        let (web, _) = guest(&lab, "web", &network, 2).await;
        // The world would answer it: only the node stands between.
        web.run(|| async { address("eth0", "10.91.0.5/32").await }).await.unwrap();
        world.run(|| async { route("10.91.0.0/16", "192.0.2.10").await }).await.unwrap();
        let listener = world
            .run(|| async { UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 99)).await.unwrap().into_std().unwrap() })
            .await
            .unwrap();
        let listener = UdpSocket::from_std(listener).unwrap();
        web.run(|| async {
            let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 99);
            for (from, text) in [(Ipv4Addr::new(10, 91, 0, 5), "spoofed"), (Ipv4Addr::UNSPECIFIED, "honest")]
            {
                UdpSocket::bind((from, 0)).await.unwrap().send_to(text.as_bytes(), to).await.unwrap();
            }
        })
        .await
        .unwrap();
        let mut buffer = [0; 32];
        let (len, from) = timeout(PATIENCE, listener.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!((&buffer[..len], from.ip().to_string().as_str()), (&b"honest"[..], "192.0.2.10"));
        assert!(
            timeout(SILENCE, listener.recv_from(&mut buffer)).await.is_err(),
            "the spoofed packet came through"
        );
    });
}

#[test]
fn the_kernel_holds_exactly_the_table_that_we_show() {
    in_node("nft", |_lab| async move {
        let Some(nft) = tool("nft", "nftables") else { return };
        let ports = [
            published(1, Protocol::Tcp, 8080, Ipv4Addr::new(10, 90, 1, 2), 80),
            published(2, Protocol::Udp, 53, Ipv4Addr::new(10, 90, 2, 2), 53),
        ];
        let pool = Pool::default().net();
        let full = Ruleset::new(pool, ports)
            .unwrap()
            .refusing(["192.168.0.0/17".parse().unwrap(), "169.254.169.254/32".parse().unwrap()]);
        for ruleset in [full.clone(), full, Ruleset::new(pool, []).unwrap()] {
            firewall::apply(&ruleset).unwrap();
            let listed = Command::new(&nft).args(["list", "ruleset"]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&listed.stdout), ruleset.to_string());
        }
        firewall::remove().unwrap();
        firewall::remove().unwrap();
        let listed = Command::new(&nft).args(["list", "ruleset"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&listed.stdout), "");
    });
}

#[test]
fn the_largest_ruleset_goes_in_one_piece() {
    in_node("large", |_lab| async move {
        let port = |port| published(1, Protocol::Tcp, port, Ipv4Addr::new(10, 90, 1, 2), 80);
        let largest = Ruleset::new(Pool::default().net(), (1..=4096).map(port)).unwrap();
        firewall::apply(&largest).unwrap();
        firewall::apply(&largest).unwrap();
    });
}

#[test]
fn ensure_adopts_what_is_there_and_remove_leaves_nothing() {
    in_node("adopt", |lab| async move {
        let one = workloads(&lab);
        let first = one.ensure(&spec(1, &[("web", 0), ("db", 1)])).await.unwrap();
        assert_eq!(first.taps.len(), 2);
        assert_eq!(first.taps[0].address.addr(), Ipv4Addr::from(u32::from(first.subnet.network()) + 2));
        assert_eq!(first.link, id(1).link_name());

        // Another process, the same result.
        let again = workloads(&lab);
        assert_eq!(again.ensure(&spec(1, &[("web", 0), ("db", 1)])).await.unwrap(), first);
        // A machine that is gone takes its tap along; the others keep theirs.
        let fewer = again.ensure(&spec(1, &[("db", 1)])).await.unwrap();
        assert_eq!(fewer.taps, first.taps[1..]);
        let namespace = Namespace::open(&first.namespace).unwrap();
        let (gone, kept) = (first.taps[0].name.clone(), first.taps[1].name.clone());
        let present = namespace
            .run(move || async move {
                (find_link(&netlink(), &gone).await.is_some(), find_link(&netlink(), &kept).await.is_some())
            })
            .await
            .unwrap();
        assert_eq!(present, (false, true));

        let other = again.ensure(&spec(2, &[])).await.unwrap();
        let listed: Vec<_> = again
            .list()
            .await
            .unwrap()
            .into_iter()
            .map(|existing| (existing.id, existing.subnet, existing.has_namespace && existing.has_link))
            .collect();
        assert_eq!(listed, [(id(1), Some(first.subnet), true), (id(2), Some(other.subnet), true)]);

        for byte in [1, 2, 2, 3] {
            again.remove(&id(byte)).await.unwrap();
        }
        assert_eq!(again.list().await.unwrap(), []);
        assert!(find_link(&netlink(), &first.link).await.is_none());
    });
}

#[test]
fn a_half_made_network_is_completed() {
    in_node("half", |lab| async move {
        let workloads = workloads(&lab);
        let whole = workloads.ensure(&spec(1, &[("web", 0)])).await.unwrap();
        // The namespace is lost, and its link's far end with it after a while: as after a crash between two steps.
        Namespace::remove(&whole.namespace).unwrap();
        std::fs::write(&whole.namespace, "").unwrap();
        let again = workloads.ensure(&spec(1, &[("web", 0)])).await.unwrap();
        assert_eq!((again.subnet, again.taps.clone()), (whole.subnet, whole.taps.clone()));
        // The root end is lost.
        let handle = netlink();
        let index = link(&handle, &whole.link).await.header.index;
        handle.link().del(index).execute().await.unwrap();
        let listed = workloads.list().await.unwrap();
        assert_eq!((listed[0].has_namespace, listed[0].has_link), (true, false));
        let again = workloads.ensure(&spec(1, &[("web", 0)])).await.unwrap();
        assert_eq!(again.subnet, whole.subnet);
    });
}

#[test]
fn a_foreign_link_of_our_name_is_neither_used_nor_removed() {
    in_node("foreign", |lab| async move {
        let other = lab.namespace("other").await;
        wire(&id(1).link_name(), "x0", &other).await;
        let workloads = workloads(&lab);
        let error = workloads.ensure(&spec(1, &[])).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "link cw010101010101 is taken by a link that isn't ours, deployment 010101010101 can't have it"
        );
        workloads.remove(&id(1)).await.unwrap();
        assert!(find_link(&netlink(), &id(1).link_name()).await.is_some());
    });
}

#[test]
fn a_wrong_spec_is_refused_before_anything_is_made() {
    in_node("spec", |lab| async move {
        let workloads = workloads(&lab);
        let refusal = |spec: DeploymentSpec| {
            let workloads = &workloads;
            async move { workloads.ensure(&spec).await.unwrap_err() }
        };
        assert!(matches!(refusal(spec(1, &[("a", 0), ("a", 1)])).await, EnsureError::RepeatedName { .. }));
        let error = refusal(spec(1, &[("a", 0), ("b", 0)])).await.to_string();
        assert_eq!(error, "machines \"a\" and \"b\" of deployment 010101010101 have the same index 0");
        let error = refusal(spec(1, &[("a", 253)])).await.to_string();
        assert_eq!(
            error,
            "machine \"a\" of deployment 010101010101 has index 253, a subnet holds 253 guests"
        );
        assert!(matches!(
            refusal(DeploymentSpec { mtu_bytes: 60, ..spec(1, &[]) }).await,
            EnsureError::BadMtu { .. }
        ));
        assert_eq!(workloads.list().await.unwrap(), []);
    });
}

#[test]
fn deployments_that_start_together_get_different_subnets() {
    in_node("together", |lab| async move {
        let small = Pool::new("10.90.0.0/22".parse().unwrap(), 24).unwrap();
        let workloads = Workloads::with_directory(small, lab.namespaces());
        let specs: Vec<DeploymentSpec> = (1..=4).map(|byte| spec(byte, &[])).collect();
        let made = futures_util::future::join_all(specs.iter().map(|spec| workloads.ensure(spec))).await;
        let subnets: std::collections::BTreeSet<_> =
            made.into_iter().map(|network| network.unwrap().subnet).collect();
        assert_eq!(subnets.len(), 4);
        let error = workloads.ensure(&spec(5, &[])).await.unwrap_err();
        assert_eq!(error.to_string(), "no subnet for deployment 050505050505");
        assert!(
            std::error::Error::source(&error)
                .unwrap()
                .to_string()
                .starts_with("all 4 subnets of workload pool 10.90.0.0/22 are taken")
        );
    });
}

#[test]
fn a_tap_belongs_to_its_owner_and_reaches_the_gateway() {
    in_node("tap", |lab| async move {
        let workloads = workloads(&lab);
        let network = workloads.ensure(&spec(1, &[("web", 0)])).await.unwrap();
        let tap = network.taps[0].clone();
        let name = tap.name.clone();
        let namespace = Namespace::open(&network.namespace).unwrap();
        let attributes =
            namespace.run(move || async move { link(&netlink(), &name).await.attributes }).await.unwrap();
        let infos = attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
                LinkInfo::Data(InfoData::Tun(tun)) => Some(tun.clone()),
                _ => None,
            }),
            _ => None,
        });
        let infos = infos.expect("a tun device");
        // IFLA_TUN_OWNER and IFLA_TUN_GROUP.
        let number = |kind, value: u32| InfoTun::Other(DefaultNla::new(kind, value.to_ne_bytes().to_vec()));
        assert!(infos.contains(&number(1, 4001)) && infos.contains(&number(2, 4002)), "{infos:?}");

        // A guest's first packet: who has the gateway's address?
        let mut guest: std::fs::File = open_tap(&network.namespace, &tap.name).await.unwrap().into();
        let own = EthernetAddress(tap.mac.0);
        let request = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: own,
            source_protocol_addr: tap.address.addr(),
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: network.gateway,
        };
        let ethernet = EthernetRepr {
            src_addr: own,
            dst_addr: EthernetAddress::BROADCAST,
            ethertype: EthernetProtocol::Arp,
        };
        let mut frame = vec![0; VIRTIO_HEADER_LEN + ethernet.buffer_len() + request.buffer_len()];
        let mut packet = EthernetFrame::new_unchecked(&mut frame[VIRTIO_HEADER_LEN..]);
        ethernet.emit(&mut packet);
        request.emit(&mut ArpPacket::new_unchecked(packet.payload_mut()));
        // Asked again like any guest would: the bridge needs a moment to see that the tap has carrier.
        let answer = tokio::task::spawn_blocking(move || {
            let began = std::time::Instant::now();
            let mut buffer = [0; 2048];
            while began.elapsed() < PATIENCE {
                guest.write_all(&frame).unwrap();
                while is_readable(&guest) {
                    let len = guest.read(&mut buffer).unwrap();
                    let Ok(frame) = EthernetFrame::new_checked(&buffer[VIRTIO_HEADER_LEN..len]) else {
                        continue;
                    };
                    let Ok(arp) = ArpPacket::new_checked(frame.payload()) else { continue };
                    if frame.ethertype() == EthernetProtocol::Arp && arp.operation() == ArpOperation::Reply {
                        return (arp.source_protocol_addr().to_vec(), arp.target_hardware_addr().to_vec());
                    }
                }
            }
            panic!("the gateway never answered");
        });
        let (gateway, to) = answer.await.unwrap();
        assert_eq!((gateway, to), (network.gateway.octets().to_vec(), tap.mac.0.to_vec()));

        // While a VMM holds it, ensure adopts it.
        let _held = open_tap(&network.namespace, &tap.name).await;
        assert_eq!(workloads.ensure(&spec(1, &[("web", 0)])).await.unwrap(), network);
    });
}

/// Within a fifth of a second.
fn is_readable(file: &std::fs::File) -> bool {
    let mut polled = [rustix::event::PollFd::new(file, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    rustix::event::poll(&mut polled, Some(&patience)).unwrap() > 0
}
