//! Where this machine would boot from over the network, asked as firmware asks (PXE 2.1; RFC 4578; UEFI 2.10, 24.7).
//!
//! ```text
//!   DISCOVER as UEFI HTTP boot ─┐
//!   DISCOVER as PXE firmware   ─┼─> offers with a boot file, of DHCP servers and of proxies, until the time is over
//!   DISCOVER as iPXE           ─┘
//! ```
//! No offer is ever taken up: the link's own client has its lease, and servers forget what nobody asks for. Anybody on
//! the wire can answer, so an offer is a hint where to look and nothing more.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::wire::{DhcpOpCode, DhcpOption, DhcpPacket};
use tokio::time::{Instant, timeout_at};

use super::socket::DhcpSocket;
use crate::mac::MacAddr;

/// Distinct offers that are kept: a rack has one server, or two.
const OFFERS_MAX: usize = 8;
/// A proxy answers beside the DHCP server, not after it; this long one waits for the other.
const SECOND_ANSWER: Duration = Duration::from_secs(1);
/// What is lost is said again this much later.
const REPEAT: Duration = Duration::from_millis(1_500);
/// RFC 1542: never shorter on the wire.
const MESSAGE_LEN_MIN: usize = 300;
/// The fixed part, with the magic number.
const HEADER_LEN: usize = 240;
const MAGIC: u32 = 0x6382_5363;
/// Where the header has the name of the boot file (RFC 2131, figure 1).
const FILE_FIELD: std::ops::Range<usize> = 108..236;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;

/// A boot file that a server names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootOffer {
    /// Who keeps the file, where its name alone does not say so.
    pub server: Ipv4Addr,
    /// A name on a TFTP server, or an address that begins with a scheme. Printable, without spaces.
    pub file: String,
}

/// Client architectures (RFC 4578, section 2.1, and its registry).
const BIOS: u16 = 0;
const UEFI_X64: u16 = 7;
const UEFI_X64_HTTP: u16 = 16;

#[derive(Clone, Copy)]
struct Class {
    vendor: &'static str,
    architecture: u16,
    /// iPXE says who it is, and gets a script.
    is_ipxe: bool,
}

/// What firmware of this kind says of itself; servers answer to each something else.
fn classes(is_uefi: bool) -> Vec<Class> {
    let pxe = if is_uefi { UEFI_X64 } else { BIOS };
    let mut classes = vec![
        Class { vendor: "PXEClient", architecture: pxe, is_ipxe: false },
        Class { vendor: "PXEClient", architecture: pxe, is_ipxe: true },
    ];
    if is_uefi {
        classes.insert(0, Class { vendor: "HTTPClient", architecture: UEFI_X64_HTTP, is_ipxe: false });
    }
    classes
}

/// Asks on one link; empty when nobody names a boot file.
///
/// # Errors
/// When the link has no packet socket.
pub async fn ask(
    link: u32,
    link_name: &str,
    mac: MacAddr,
    is_uefi: bool,
    limit: Duration,
) -> io::Result<Vec<BootOffer>> {
    let socket = DhcpSocket::open(link, link_name)?;
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    // The low bits count the classes.
    let first = u32::from_ne_bytes(random) & !0xf;
    let classes = classes(is_uefi);
    let mut offers: Vec<BootOffer> = Vec::new();
    let (mut end, mut repeat) = (Instant::now() + limit, Instant::now());
    loop {
        if repeat <= Instant::now() {
            for (xid, class) in (first..).zip(&classes) {
                socket.broadcast(&discover(xid, mac, *class))?;
            }
            repeat = Instant::now() + REPEAT;
        }
        match timeout_at(end.min(repeat), socket.receive()).await {
            Ok(payload) => {
                let Some(offer) = offer(&payload?, mac, first, classes.len()) else { continue };
                if offers.len() < OFFERS_MAX && !offers.contains(&offer) {
                    offers.push(offer);
                    end = end.min(Instant::now() + SECOND_ANSWER);
                }
            }
            Err(_) if Instant::now() >= end => return Ok(offers),
            Err(_) => {}
        }
    }
}

fn discover(xid: u32, mac: MacAddr, class: Class) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    // Request, Ethernet, six bytes of address.
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    bytes[28..34].copy_from_slice(&mac.0);
    bytes[236..240].copy_from_slice(&MAGIC.to_be_bytes());
    let vendor = format!("{}:Arch:{:05}:UNDI:003016", class.vendor, class.architecture);
    let mut client_id = vec![1];
    client_id.extend(mac.0);
    let mut add = |code: u8, data: &[u8]| {
        bytes.extend([code, data.len() as u8]);
        bytes.extend_from_slice(data);
    };
    add(53, &[DISCOVER]);
    // The lease's own identity, so that a server has nothing new to remember.
    add(61, &client_id);
    add(57, &1472_u16.to_be_bytes());
    add(60, vendor.as_bytes());
    add(93, &class.architecture.to_be_bytes());
    add(94, &[1, 3, 16]);
    if class.is_ipxe {
        add(77, b"iPXE");
    }
    add(55, &[1, 3, 43, 54, 60, 66, 67]);
    bytes.push(255);
    bytes.resize(bytes.len().max(MESSAGE_LEN_MIN), 0);
    bytes
}

/// What a packet offers to boot; `None` of everything else.
pub(crate) fn offer(bytes: &[u8], mac: MacAddr, first: u32, count: usize) -> Option<BootOffer> {
    let packet = DhcpPacket::new_checked(bytes).ok()?;
    let ours = packet.transaction_id().wrapping_sub(first) < count as u32;
    if packet.magic_number() != MAGIC
        || packet.opcode() != DhcpOpCode::Reply
        || !ours
        || packet.client_hardware_address().0 != mac.0
    {
        return None;
    }
    // RFC 3396: an option that is given several times is one long option.
    let mut options: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for DhcpOption { kind, data } in packet.options() {
        options.entry(kind).or_default().extend_from_slice(data);
    }
    if options.get(&53).map(Vec::as_slice) != Some(&[OFFER]) {
        return None;
    }
    // With option 52 the header's field holds more options.
    let field = bytes.get(FILE_FIELD).filter(|_| !options.contains_key(&52));
    let file = options.get(&67).and_then(|name| text(name)).or_else(|| field.and_then(text))?;
    let named = options.get(&66).and_then(|name| text(name)?.parse().ok());
    let id = options.get(&54).and_then(|id| <[u8; 4]>::try_from(id.as_slice()).ok()).map(Ipv4Addr::from);
    let server = [named, Some(packet.server_ip()), id].into_iter().flatten().find(|a| is_host(*a))?;
    Some(BootOffer { server, file })
}

/// Text up to the first NUL: printable ASCII without spaces, or nothing.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let text = &bytes[..end];
    let fits = (1..=255).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic);
    fits.then(|| String::from_utf8_lossy(text).into_owned())
}

fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);
    const XID: u32 = 0x1230;

    /// An offer of 192.0.2.1 with these options; the header names `file`.
    fn answer(file: &str, options: &[(u8, &[u8])]) -> Vec<u8> {
        let class = Class { vendor: "PXEClient", architecture: BIOS, is_ipxe: false };
        let mut bytes = discover(XID + 1, MAC, class);
        bytes.truncate(HEADER_LEN);
        bytes[0] = 2;
        bytes[20..24].copy_from_slice(&[192, 0, 2, 1]);
        bytes[FILE_FIELD][..file.len()].copy_from_slice(file.as_bytes());
        for (code, data) in [(53, &[OFFER][..])].iter().chain(options) {
            bytes.extend([*code, data.len() as u8]);
            bytes.extend_from_slice(data);
        }
        bytes.push(255);
        bytes
    }

    fn read(bytes: &[u8]) -> Option<(String, String)> {
        offer(bytes, MAC, XID, 3).map(|offer| (offer.server.to_string(), offer.file))
    }

    fn is(server: &str, file: &str) -> (String, String) {
        (server.to_owned(), file.to_owned())
    }

    #[test]
    fn the_boot_file_and_its_server_are_found_wherever_a_server_writes_them() {
        assert_eq!(read(&answer("croft.efi", &[])).unwrap(), is("192.0.2.1", "croft.efi"));
        let url: &[u8] = b"http://192.0.2.9/boot.ipxe";
        assert_eq!(
            read(&answer("other", &[(67, url)])).unwrap(),
            is("192.0.2.1", "http://192.0.2.9/boot.ipxe")
        );
        assert_eq!(read(&answer("f", &[(66, b"192.0.2.5\0")])).unwrap(), is("192.0.2.5", "f"));
        let mut nobody = answer("f", &[(54, &[192, 0, 2, 8])]);
        nobody[20..24].fill(0);
        assert_eq!(read(&nobody).unwrap(), is("192.0.2.8", "f"), "the server itself keeps it");
    }

    #[test]
    fn what_is_no_offer_of_a_boot_file_for_this_machine_is_ignored() {
        let good = answer("croft.efi", &[]);
        let alter = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            read(&bytes)
        };
        assert_eq!(alter(0, 1), None, "a request");
        assert_eq!(alter(7, 0x33), None, "a fourth class, which was not asked for");
        assert_eq!(alter(33, 8), None, "another machine");
        assert_eq!(alter(HEADER_LEN + 2, 5), None, "an acknowledgement");
        assert_eq!(alter(FILE_FIELD.start + 2, b' '), None, "a name with a space");
        assert_eq!(alter(FILE_FIELD.start + 2, 0x1b), None, "a name that moves the cursor");
        assert_eq!(read(&answer("", &[])), None);
        assert_eq!(read(&answer("x", &[(52, &[1])])), None, "the field holds options");
        for len in 0..good.len() {
            let _ = read(&good[..len]);
        }
    }

    #[test]
    fn firmware_of_each_kind_says_what_it_is() {
        let said = |is_uefi| -> Vec<String> {
            classes(is_uefi).iter().map(|c| format!("{} {}", c.vendor, c.architecture)).collect()
        };
        assert_eq!(said(true), ["HTTPClient 16", "PXEClient 7", "PXEClient 7"]);
        assert_eq!(said(false), ["PXEClient 0", "PXEClient 0"]);
        let message = discover(1, MAC, classes(true)[0]);
        let text = String::from_utf8_lossy(&message);
        assert!(text.contains("HTTPClient:Arch:00016:UNDI:003016"), "{text}");
    }
}
