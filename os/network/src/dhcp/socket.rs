//! The DHCP client's sockets: a packet socket that speaks before the link has an address, and a UDP socket for the
//! unicast of a renewal.
//!
//! The packet socket is bound to one link and filtered in the kernel to UDP port 68, so that a busy wire does not wake
//! the node. Firewall rules don't apply to it.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const IPV4_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;
/// The largest Ethernet frame that we said we take, with room for jumbo frames of servers that don't listen.
const FRAME_LEN_MAX: usize = 9216;
const HOP_LIMIT: u8 = 64;
/// Answers that wait while we are busy; more would be an attack.
const RECEIVE_BUFFER_BYTES: usize = 128 * 1024;

/// IPv4, UDP, not a fragment, to port 68. The kernel hands over the packet from its IP header on.
const FILTER: [SockFilter; 9] = [
    SockFilter::new(0x30, 0, 0, 9),      // A = protocol
    SockFilter::new(0x15, 0, 6, 17),     // UDP?
    SockFilter::new(0x28, 0, 0, 6),      // A = fragment field
    SockFilter::new(0x45, 4, 0, 0x3fff), // more fragments, or not the first?
    SockFilter::new(0xb1, 0, 0, 0),      // X = header length
    SockFilter::new(0x48, 0, 0, 2),      // A = destination port
    SockFilter::new(0x15, 0, 1, 68),     // ours?
    SockFilter::new(0x06, 0, 0, 0xffff), // take it whole
    SockFilter::new(0x06, 0, 0, 0),      // leave it
];

#[derive(Debug)]
pub(crate) struct DhcpSocket {
    packets: AsyncFd<Socket>,
    link: u32,
    link_name: String,
}

impl DhcpSocket {
    #[allow(unsafe_code, reason = "tokio has no safe registration of foreign sockets")]
    pub(crate) fn open(link: u32, link_name: &str) -> io::Result<Self> {
        let kind = Type::DGRAM.nonblocking().cloexec();
        // Protocol 0 hears nothing: no foreign packet slips in before filter and binding hold.
        let socket = Socket::new_raw(Domain::PACKET, kind, None)?;
        socket.attach_filter(&FILTER)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        set_auxdata(&socket)?;
        socket.bind(&link_address(link, [0; 6]))?;
        // SAFETY: socket2 keeps its one descriptor open and unchanged for as long as the socket lives.
        let packets = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { packets, link, link_name: link_name.to_owned() })
    }

    /// To everybody on the wire, from no address.
    pub(crate) fn broadcast(&self, payload: &[u8]) -> io::Result<()> {
        let packet = wrap(payload);
        // Sent at once or not at all: the client repeats what is lost.
        self.packets.get_ref().send_to(&packet, &link_address(self.link, [0xff; 6]))?;
        Ok(())
    }

    /// To the server of the lease, through the kernel's stack. The answer comes to the packet socket all the same.
    pub(crate) fn unicast(&self, from: Ipv4Addr, server: Ipv4Addr, payload: &[u8]) -> io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(self.link_name.as_bytes()))?;
        socket.bind(&SocketAddrV4::new(from, CLIENT_PORT).into())?;
        socket.send_to(payload, &SocketAddrV4::new(server, SERVER_PORT).into())?;
        Ok(())
    }

    /// The payload of the next packet that is whole.
    pub(crate) async fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; FRAME_LEN_MAX];
        loop {
            let received =
                self.packets.async_io(Interest::READABLE, |socket| receive_one(socket, &mut buffer)).await?;
            if let Some(payload) = received.and_then(|(len, checked)| unwrap(&buffer[..len], checked)) {
                return Ok(payload);
            }
        }
    }
}

/// Length, and whether the UDP checksum is to be verified. `None` for a packet that was cut.
fn receive_one(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
    let mut control = nix::cmsg_space!([u8; size_of::<libc::tpacket_auxdata>()]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Ok(None);
    }
    // Packets from a server on this machine (a VM, a container) carry no checksum yet: the network card would have
    // filled it in. The kernel says so in the first word of the auxiliary data.
    let mut verify = true;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::Unknown(unknown) = control
            && unknown.cmsg_header.cmsg_level == libc::SOL_PACKET
            && unknown.cmsg_header.cmsg_type == libc::PACKET_AUXDATA
            && let Some(status) = unknown.data_bytes.first_chunk::<4>()
        {
            verify = u32::from_ne_bytes(*status) & libc::TP_STATUS_CSUMNOTREADY == 0;
        }
    }
    Ok(Some((message.bytes, verify)))
}

/// IPv4 and UDP around a message from 0.0.0.0 to everybody.
fn wrap(payload: &[u8]) -> Vec<u8> {
    let udp = UdpRepr { src_port: CLIENT_PORT, dst_port: SERVER_PORT };
    let ip = Ipv4Repr {
        src_addr: Ipv4Addr::UNSPECIFIED,
        dst_addr: Ipv4Addr::BROADCAST,
        next_header: IpProtocol::Udp,
        payload_len: UDP_HEADER_LEN + payload.len(),
        hop_limit: HOP_LIMIT,
    };
    let mut bytes = vec![0; IPV4_HEADER_LEN + ip.payload_len];
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &checksums);
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut bytes[IPV4_HEADER_LEN..]),
        &IpAddress::Ipv4(ip.src_addr),
        &IpAddress::Ipv4(ip.dst_addr),
        payload.len(),
        |room| room.copy_from_slice(payload),
        &checksums,
    );
    bytes
}

/// The message in a packet from a server's port to ours; `None` of anything else.
fn unwrap(bytes: &[u8], verify_udp: bool) -> Option<Vec<u8>> {
    let mut checksums = ChecksumCapabilities::default();
    if !verify_udp {
        checksums.udp = Checksum::None;
    }
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    let ip = Ipv4Repr::parse(&packet, &checksums).ok()?;
    if ip.next_header != IpProtocol::Udp || packet.more_frags() || packet.frag_offset() != 0 {
        return None;
    }
    let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
    let udp = UdpRepr::parse(&datagram, &ip.src_addr.into(), &ip.dst_addr.into(), &checksums).ok()?;
    (udp.src_port == SERVER_PORT && udp.dst_port == CLIENT_PORT).then(|| datagram.payload().to_vec())
}

#[allow(unsafe_code, reason = "neither socket2 nor nix has a constructor for link-layer addresses")]
fn link_address(link: u32, to: [u8; 6]) -> SockAddr {
    let mut octets = [0u8; 8];
    octets[..6].copy_from_slice(&to);
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_IP as u16).to_be(),
        sll_ifindex: link as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: octets,
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the types that sockaddr_storage is made to hold.
    unsafe { *storage.view_as::<libc::sockaddr_ll>() = address };
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds an address of the family that it names, of this length.
    unsafe { SockAddr::new(storage, len) }
}

#[allow(unsafe_code, reason = "PACKET_AUXDATA has no wrapper in socket2, nix or rustix")]
fn set_auxdata(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the option takes an int of this size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_AUXDATA,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What we send, turned round as a server's answer.
    fn answer(payload: &[u8]) -> Vec<u8> {
        let mut bytes = wrap(payload);
        let mut udp = UdpPacket::new_unchecked(&mut bytes[IPV4_HEADER_LEN..]);
        udp.set_src_port(SERVER_PORT);
        udp.set_dst_port(CLIENT_PORT);
        bytes
    }

    #[test]
    fn a_message_comes_out_of_its_packet_unchanged() {
        // The sum of both ports is the same, so the checksum still holds.
        assert_eq!(unwrap(&answer(b"hello"), true).as_deref(), Some(&b"hello"[..]));
        assert_eq!(unwrap(&wrap(b"hello"), true), None, "our own request is no answer");
    }

    #[test]
    fn a_damaged_packet_is_dropped_unless_its_checksum_is_not_ready() {
        let good = answer(b"hello");
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(unwrap(&damaged, true), None);
        assert!(unwrap(&damaged, false).is_some());
        let mut header = good.clone();
        header[8] ^= 1;
        assert_eq!(unwrap(&header, false), None, "the IP header is always checked");
        for len in 0..good.len() {
            assert_eq!(unwrap(&good[..len], false), None);
        }
        let mut fragment = good;
        fragment[6] = 0x20;
        assert_eq!(unwrap(&fragment, false), None);
    }
}
