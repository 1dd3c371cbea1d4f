//! Knocks at every port of a running node, from a card of its own: a second NIC whose wire ends in this process, frame by
//! frame (QEMU's `socket` network, UDP on loopback). So nothing is between the scan and the node, no other network sees a
//! packet of it, and no privilege is needed.
//!
//! ```text
//!   128 SYN (or 48 UDP probes) ── echo request ──> node ──> echo reply: all of the batch were taken in ── next batch
//! ```
//! An open TCP port answers SYN, ACK. A UDP probe is a QUIC packet of a version that nobody speaks, in the size of an
//! Initial: whoever speaks QUIC answers it with the versions that he does speak (RFC 9000, section 6).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber, UdpPacket, UdpRepr,
};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};

/// The node's second card; [`LINK`] gives it its address.
pub const MAC: &str = "52:54:00:c0:f7:99";
const NODE_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0x00, 0xc0, 0xf7, 0x99]);
const OUR_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0x00, 0xc0, 0xf7, 0x98]);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 2);
const OURS: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
/// For the node's boot configuration.
pub const LINK: &str =
    "\n[[link]]\nname = \"52:54:00:c0:f7:99\"\nmode = \"static\"\naddresses = [\"10.79.0.2/24\"]\n";

const OUR_PORT: u16 = 40_000;
/// What QEMU's end of the wire holds back without loss, by size of the packets.
const TCP_BATCH: usize = 128;
const UDP_BATCH: usize = 48;
/// Until an echo is asked for again.
const ECHO: Duration = Duration::from_secs(5);
/// A node that does not answer by then is not there.
const ECHOES_MAX: usize = 24;
/// Behind a published port is a guest, which takes longer than the node.
const GUEST: Duration = Duration::from_secs(60);
/// An Initial's least size (RFC 9000, section 14.1).
const QUIC_BYTES: usize = 1_200;

/// Our end of the wire.
#[derive(Debug)]
pub struct Wire {
    socket: UdpSocket,
    qemu: SocketAddr,
    echoes: u16,
}

/// What came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Somebody asks who has our address.
    Asked {
        by: EthernetAddress,
        at: Ipv4Addr,
    },
    Echo(u16),
    /// SYN, ACK from this port.
    Open(u16),
    /// A datagram from this port.
    Answered(u16),
}

impl Wire {
    /// On two ports of loopback that nobody has now.
    ///
    /// # Errors
    /// When there are none.
    pub async fn new() -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.context("no port for the wire")?;
        let free = UdpSocket::bind("127.0.0.1:0").await.context("no port for QEMU's end of the wire")?;
        Ok(Self { socket, qemu: free.local_addr()?, echoes: 0 })
    }

    /// Our port and QEMU's.
    ///
    /// # Errors
    /// When the socket has no address.
    pub fn ends(&self) -> Result<(u16, u16)> {
        Ok((self.socket.local_addr()?.port(), self.qemu.port()))
    }

    /// All TCP ports that take a connection. Waits a while for those that are expected.
    ///
    /// # Errors
    /// When the node does not answer at all.
    pub async fn open_tcp_ports(&mut self, expected: &BTreeSet<u16>) -> Result<BTreeSet<u16>> {
        let mut found = BTreeSet::new();
        let ports: Vec<u16> = (1..=u16::MAX).collect();
        for batch in ports.chunks(TCP_BATCH) {
            let frames: Vec<Vec<u8>> = batch.iter().map(|port| syn(*port)).collect();
            self.send(&frames, open, &mut found).await?;
        }
        let deadline = Instant::now() + GUEST;
        while !found.is_superset(expected) {
            let Ok(seen) = timeout_at(deadline, self.receive()).await else { break };
            found.extend(open(seen?));
        }
        Ok(found)
    }

    /// All UDP ports that answer a packet of QUIC, or anything at all.
    ///
    /// # Errors
    /// When the node does not answer an echo.
    pub async fn answering_udp_ports(&mut self) -> Result<BTreeSet<u16>> {
        let mut found = BTreeSet::new();
        let ports: Vec<u16> = (1..=u16::MAX).collect();
        for batch in ports.chunks(UDP_BATCH) {
            let frames: Vec<Vec<u8>> = batch.iter().map(|port| quic(*port)).collect();
            self.send(&frames, answered, &mut found).await?;
        }
        Ok(found)
    }

    /// Sends, and returns when the node has taken them all in; ports that answer meanwhile as `port` says are added.
    async fn send(
        &mut self,
        frames: &[Vec<u8>],
        port: fn(Seen) -> Option<u16>,
        found: &mut BTreeSet<u16>,
    ) -> Result<()> {
        for frame in frames {
            self.socket.send_to(frame, self.qemu).await.context("the wire is cut")?;
        }
        for _ in 0..ECHOES_MAX {
            self.echoes = self.echoes.wrapping_add(1);
            let number = self.echoes;
            self.socket.send_to(&echo(number), self.qemu).await.context("the wire is cut")?;
            let heard = timeout(ECHO, async {
                loop {
                    match self.receive().await? {
                        Seen::Echo(seen) if seen == number => return Ok::<_, anyhow::Error>(()),
                        seen => found.extend(port(seen)),
                    }
                }
            });
            if let Ok(heard) = heard.await {
                return heard;
            }
        }
        bail!("{NODE} does not answer an echo: has the node its second card, and its address there?")
    }

    /// The next frame that says something. Whoever asks for our address gets it.
    async fn receive(&self) -> Result<Seen> {
        let mut buffer = vec![0; 65_536];
        loop {
            let length = match self.socket.recv(&mut buffer).await {
                Ok(length) => length,
                // QEMU is not there yet: loopback says so for what was sent.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error).context("the wire is cut"),
            };
            match seen(&buffer[..length]) {
                Some(Seen::Asked { by, at }) => {
                    self.socket.send_to(&here(by, at), self.qemu).await.context("the wire is cut")?;
                }
                Some(seen) => return Ok(seen),
                None => {}
            }
        }
    }
}

/// The port of a TCP connection that is taken.
fn open(seen: Seen) -> Option<u16> {
    if let Seen::Open(port) = seen { Some(port) } else { None }
}

/// The port of a datagram. Whoever takes a connection that nobody completes says so again for minutes: that is none.
fn answered(seen: Seen) -> Option<u16> {
    if let Seen::Answered(port) = seen { Some(port) } else { None }
}

/// What a frame says; `None` for what is not for us.
fn seen(bytes: &[u8]) -> Option<Seen> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    match frame.ethertype() {
        EthernetProtocol::Arp => match ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).ok()?).ok()? {
            ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr,
                source_protocol_addr,
                target_protocol_addr: OURS,
                ..
            } => Some(Seen::Asked { by: source_hardware_addr, at: source_protocol_addr }),
            _ => None,
        },
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
            if packet.dst_addr() != OURS {
                return None;
            }
            match packet.next_header() {
                IpProtocol::Tcp => {
                    let tcp = TcpPacket::new_checked(packet.payload()).ok()?;
                    (tcp.syn() && tcp.ack()).then(|| Seen::Open(tcp.src_port()))
                }
                IpProtocol::Udp => {
                    Some(Seen::Answered(UdpPacket::new_checked(packet.payload()).ok()?.src_port()))
                }
                IpProtocol::Icmp => {
                    let icmp = Icmpv4Packet::new_checked(packet.payload()).ok()?;
                    match Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::ignored()).ok()? {
                        Icmpv4Repr::EchoReply { seq_no, .. } => Some(Seen::Echo(seq_no)),
                        _ => None,
                    }
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn frame(
    to: EthernetAddress,
    kind: EthernetProtocol,
    length: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut bytes = vec![0; EthernetFrame::<&[u8]>::buffer_len(length)];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    EthernetRepr { src_addr: OUR_MAC, dst_addr: to, ethertype: kind }.emit(&mut frame);
    fill(frame.payload_mut());
    bytes
}

fn packet(protocol: IpProtocol, length: usize, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let repr = Ipv4Repr {
        src_addr: OURS,
        dst_addr: NODE,
        next_header: protocol,
        payload_len: length,
        hop_limit: 64,
    };
    frame(NODE_MAC, EthernetProtocol::Ipv4, repr.buffer_len() + length, |bytes| {
        let mut packet = Ipv4Packet::new_unchecked(bytes);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        fill(packet.payload_mut());
    })
}

fn syn(port: u16) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: OUR_PORT,
        dst_port: port,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1),
        ack_number: None,
        window_len: 1024,
        window_scale: None,
        max_seg_size: Some(1400),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    packet(IpProtocol::Tcp, repr.buffer_len(), |bytes| {
        let (from, to) = (IpAddress::from(OURS), IpAddress::from(NODE));
        repr.emit(&mut TcpPacket::new_unchecked(bytes), &from, &to, &ChecksumCapabilities::default());
    })
}

/// A long header of a version that is kept free for this (RFC 9000, section 15), with ids of 8 bytes.
fn quic(port: u16) -> Vec<u8> {
    let repr = UdpRepr { src_port: OUR_PORT, dst_port: port };
    packet(IpProtocol::Udp, repr.header_len() + QUIC_BYTES, |bytes| {
        let (from, to) = (IpAddress::from(OURS), IpAddress::from(NODE));
        let fill = |payload: &mut [u8]| {
            payload[..6].copy_from_slice(&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8]);
            payload[14] = 8;
        };
        let mut datagram = UdpPacket::new_unchecked(bytes);
        repr.emit(&mut datagram, &from, &to, QUIC_BYTES, fill, &ChecksumCapabilities::default());
    })
}

fn echo(number: u16) -> Vec<u8> {
    let repr = Icmpv4Repr::EchoRequest { ident: 1, seq_no: number, data: &[] };
    packet(IpProtocol::Icmp, repr.buffer_len(), |bytes| {
        repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    })
}

/// That we are here.
fn here(to: EthernetAddress, at: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: OUR_MAC,
        source_protocol_addr: OURS,
        target_hardware_addr: to,
        target_protocol_addr: at,
    };
    frame(to, EthernetProtocol::Arp, repr.buffer_len(), |bytes| {
        repr.emit(&mut ArpPacket::new_unchecked(bytes));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with these ports open, on QEMU's end of the wire: answers what comes as a machine would.
    async fn play_node(wire: &Wire, tcp: u16, udp: u16) -> tokio::task::JoinHandle<()> {
        let (ours, qemu) = wire.ends().unwrap();
        let socket = UdpSocket::bind(("127.0.0.1", qemu)).await.unwrap();
        tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            // First of all it wants to know where we are.
            socket.send_to(&ask(), ("127.0.0.1", ours)).await.unwrap();
            let mut opened: Option<Vec<u8>> = None;
            loop {
                let length = socket.recv(&mut buffer).await.unwrap();
                if let Some(answer) = answer(&buffer[..length], tcp, udp) {
                    socket.send_to(&answer, ("127.0.0.1", ours)).await.unwrap();
                    // Nobody completes the connection, so its SYN, ACK is said again with whatever comes next.
                    if let Some(again) = &opened {
                        socket.send_to(again, ("127.0.0.1", ours)).await.unwrap();
                    }
                    if seen(&answer) == Some(Seen::Open(tcp)) {
                        opened = Some(answer);
                    }
                }
            }
        })
    }

    fn ask() -> Vec<u8> {
        let repr = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: NODE_MAC,
            source_protocol_addr: NODE,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: OURS,
        };
        frame(EthernetAddress::BROADCAST, EthernetProtocol::Arp, repr.buffer_len(), |bytes| {
            repr.emit(&mut ArpPacket::new_unchecked(bytes));
        })
    }

    /// What comes, with both ends turned round; a SYN becomes SYN, ACK and an echo its reply.
    fn answer(bytes: &[u8], tcp: u16, udp: u16) -> Option<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        if frame.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let mut ip = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.set_src_addr(NODE);
        ip.set_dst_addr(OURS);
        match ip.next_header() {
            IpProtocol::Tcp => {
                let mut packet = TcpPacket::new_unchecked(ip.payload_mut());
                let port = packet.dst_port();
                packet.set_src_port(port);
                packet.set_ack(true);
                (port == tcp).then_some(bytes)
            }
            IpProtocol::Udp => {
                let mut packet = UdpPacket::new_unchecked(ip.payload_mut());
                let port = packet.dst_port();
                packet.set_src_port(port);
                (port == udp && packet.payload_mut().len() == QUIC_BYTES).then_some(bytes)
            }
            IpProtocol::Icmp => {
                Icmpv4Packet::new_unchecked(ip.payload_mut())
                    .set_msg_type(smoltcp::wire::Icmpv4Message::EchoReply);
                Some(bytes)
            }
            _ => None,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_port_that_answers_is_found_among_all() {
        let mut wire = Wire::new().await.unwrap();
        let node = play_node(&wire, 22, 4433).await;
        let expected = BTreeSet::from([22]);
        assert_eq!(wire.open_tcp_ports(&expected).await.unwrap(), expected);
        assert_eq!(wire.answering_udp_ports().await.unwrap(), BTreeSet::from([4433]));
        node.abort();
    }

    #[test]
    fn what_is_for_others_says_nothing() {
        assert_eq!(seen(&[0; 10]), None);
        assert_eq!(seen(&syn(80)), None, "our own");
        assert_eq!(seen(&ask()), Some(Seen::Asked { by: NODE_MAC, at: NODE }));
    }
}
