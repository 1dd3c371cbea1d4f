//! Proxy DHCP (PXE 2.1, 2.2.3; RFC 4578; UEFI 2.10, 24.7): tells firmware its boot file, beside the DHCP server that
//! gives it an address.
//!
//! ```text
//!   port 67,   DISCOVER of PXEClient or HTTPClient ──> OFFER without an address: server, boot file
//!   port 4011, REQUEST of PXEClient                ──> ACK, the same (UEFI asks again here)
//! ```
//! Everything else is ignored with its reason. It must never offer an address, and never answer a machine that does not
//! say that it boots from the network.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::wire::{DhcpOpCode, DhcpOption, DhcpPacket};

use super::folder::UNDIONLY;
use crate::netboot::{BOOT_FILE, SCRIPT};

/// Where DHCP servers listen.
pub const SERVER_PORT: u16 = 67;
/// Where a proxy listens for machines that have an address already.
pub const PROXY_PORT: u16 = 4011;
const CLIENT_PORT: u16 = 68;

const HEADER_LEN: usize = 240;
const MAGIC: u32 = 0x6382_5363;
/// RFC 1542: never shorter on the wire.
const MESSAGE_LEN_MIN: usize = 300;
/// Name of the boot file in the header (RFC 2131, figure 1); its last byte stays 0.
const FILE_FIELD: std::ops::Range<usize> = 108..236;

/// What a machine says it boots as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// PXE of a BIOS: takes only a small loader.
    Bios,
    /// iPXE, on BIOS or UEFI: takes a script.
    Ipxe,
    /// PXE of UEFI on x64: starts the boot file by TFTP.
    Uefi,
    /// HTTP boot of UEFI on x64.
    UefiHttp,
}

impl Client {
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Bios => "BIOS",
            Self::Ipxe => "iPXE",
            Self::Uefi => "UEFI PXE",
            Self::UefiHttp => "UEFI HTTP",
        }
    }
}

/// A message that asks for a boot file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub mac: [u8; 6],
    pub client: Client,
    /// The fixed part of the message, which the answer repeats.
    header: Vec<u8>,
    vendor: &'static str,
    /// Option 97, which PXE wants back.
    machine: Option<Vec<u8>>,
    relay: Ipv4Addr,
    is_discover: bool,
}

/// Why a message is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    #[error("not a DHCP message: {0}")]
    Malformed(&'static str),
    #[error("a message of type {0}, which is the DHCP server's to answer")]
    OtherType(u8),
    #[error("does not boot from the network")]
    NotBooting,
    #[error("{machine} has architecture {architecture}, for which there is no boot file: only x86-64 boots")]
    Architecture { machine: Mac, architecture: u16 },
    #[error(
        "{machine} boots by {} and {lacks}", client.words()
    )]
    Lacks { machine: Mac, client: Client, lacks: &'static str },
}

/// A hardware address as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if place == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// What this server has to offer.
#[derive(Debug, Clone, Copy)]
pub struct Offers {
    pub address: Ipv4Addr,
    /// `None`: everything goes by TFTP.
    pub http_port: Option<u16>,
    pub has_undionly: bool,
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub bytes: Vec<u8>,
    pub to: SocketAddrV4,
    pub boot_file: String,
}

impl Asked {
    /// Reads a message that came to `port`.
    ///
    /// # Errors
    /// [`Ignored`] says why it is nobody's who boots here.
    pub fn read(bytes: &[u8], port: u16) -> Result<Self, Ignored> {
        let packet =
            DhcpPacket::new_checked(bytes).map_err(|_| Ignored::Malformed("shorter than its header"))?;
        if packet.magic_number() != MAGIC {
            return Err(Ignored::Malformed("no magic number"));
        }
        if packet.opcode() != DhcpOpCode::Request || packet.hardware_len() != 6 {
            return Err(Ignored::Malformed("not a request of an Ethernet card"));
        }
        let mut options: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for DhcpOption { kind, data } in packet.options() {
            options.entry(kind).or_default().extend_from_slice(data);
        }
        let option = |code: u8| options.get(&code).map_or(&[][..], Vec::as_slice);
        let &[kind] = option(53) else { return Err(Ignored::Malformed("no message type")) };
        // DISCOVER on the server's port; REQUEST and INFORM on the proxy's.
        if !matches!((port, kind), (SERVER_PORT, 1) | (PROXY_PORT, 3 | 8)) {
            return Err(Ignored::OtherType(kind));
        }
        let vendor = match option(60) {
            class if class.starts_with(b"PXEClient") => "PXEClient",
            class if class.starts_with(b"HTTPClient") => "HTTPClient",
            _ => return Err(Ignored::NotBooting),
        };
        let mac = packet.client_hardware_address().0;
        // Of several that a machine names the first is the one that runs (RFC 4578, 2.1).
        let architecture = option(93).first_chunk::<2>().map_or(0, |code| u16::from_be_bytes(*code));
        // iPXE says so in the user class, with or without the length that RFC 3004 asks for, or by its own option.
        let is_ipxe = option(77).windows(4).any(|part| part == b"iPXE") || options.contains_key(&175);
        let client = match (vendor, architecture) {
            ("HTTPClient", 16) => Client::UefiHttp,
            ("PXEClient", 0 | 7 | 9) if is_ipxe => Client::Ipxe,
            ("PXEClient", 0) => Client::Bios,
            ("PXEClient", 7 | 9) => Client::Uefi,
            _ => return Err(Ignored::Architecture { machine: Mac(mac), architecture }),
        };
        // The UUID with its type; nothing else belongs there.
        let machine = Some(option(97)).filter(|id| id.len() == 17).map(<[u8]>::to_vec);
        let header = bytes[..HEADER_LEN].to_vec();
        let relay = packet.relay_agent_ip();
        Ok(Self { mac, client, header, vendor, machine, relay, is_discover: kind == 1 })
    }
}

impl Offers {
    /// What a machine is told. `from` is where its message came from.
    ///
    /// # Errors
    /// [`Ignored::Lacks`] when nothing here boots it.
    pub fn answer(&self, asked: &Asked, from: SocketAddrV4) -> Result<Answer, Ignored> {
        let boot_file = self.boot_file(asked)?;
        let to = match (asked.is_discover, asked.relay) {
            (false, _) => from,
            (true, Ipv4Addr::UNSPECIFIED) => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
            (true, relay) => SocketAddrV4::new(relay, SERVER_PORT),
        };
        Ok(Answer { bytes: self.encode(asked, &boot_file), to, boot_file })
    }

    fn boot_file(&self, asked: &Asked) -> Result<String, Ignored> {
        let by_http = |port: u16, name: &str| format!("http://{}:{port}/{name}", self.address);
        let lacks = |lacks| Ignored::Lacks { machine: Mac(asked.mac), client: asked.client, lacks };
        match (asked.client, self.http_port) {
            (Client::UefiHttp, Some(port)) => Ok(by_http(port, BOOT_FILE)),
            (Client::UefiHttp, None) => Err(lacks("HTTP is not served: leave out --no-http")),
            (Client::Ipxe, Some(port)) => Ok(by_http(port, SCRIPT)),
            // With its server, since the script's own names are relative to it.
            (Client::Ipxe, None) => Ok(format!("tftp://{}/{SCRIPT}", self.address)),
            (Client::Uefi, _) => Ok(BOOT_FILE.to_owned()),
            (Client::Bios, _) if self.has_undionly => Ok(UNDIONLY.to_owned()),
            (Client::Bios, _) => {
                Err(lacks("needs iPXE first: install the package ipxe, or put undionly.kpxe into the folder"))
            }
        }
    }

    fn encode(&self, asked: &Asked, boot_file: &str) -> Vec<u8> {
        let mut bytes = asked.header.clone();
        // A reply, no hops, no seconds; transaction, flags, relay and hardware address stay. No address: a proxy has none.
        bytes[0] = 2;
        bytes[3] = 0;
        bytes[8..10].fill(0);
        bytes[16..20].fill(0);
        bytes[20..24].copy_from_slice(&self.address.octets());
        bytes[44..236].fill(0);
        if let Some(field) = bytes[FILE_FIELD].get_mut(..boot_file.len()).filter(|f| f.len() < 128) {
            field.copy_from_slice(boot_file.as_bytes());
        }
        let address = self.address.octets();
        let name = self.address.to_string();
        let mut add = |code: u8, data: &[u8]| {
            bytes.extend([code, data.len() as u8]);
            bytes.extend_from_slice(data);
        };
        add(53, &[if asked.is_discover { 2 } else { 5 }]);
        add(54, &address);
        add(60, asked.vendor.as_bytes());
        add(66, name.as_bytes());
        add(67, boot_file.as_bytes());
        if let Some(machine) = &asked.machine {
            add(97, machine);
        }
        // "Take the boot file that stands here" (PXE 2.1, table 2-1, discovery control, bit 3). UEFI takes it from port
        // 4011 where this is left out, and asks for a menu where it is not.
        if matches!(asked.client, Client::Bios | Client::Ipxe) {
            add(43, &[6, 1, 8, 255]);
        }
        bytes.push(255);
        bytes.resize(bytes.len().max(MESSAGE_LEN_MIN), 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 50), 68);
    const OFFERS: Offers =
        Offers { address: Ipv4Addr::new(192, 0, 2, 1), http_port: Some(8080), has_undionly: true };

    /// A message of a machine.
    fn message(kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[..4].copy_from_slice(&[1, 1, 6, 1]);
        bytes[4..8].copy_from_slice(b"xidx");
        bytes[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        bytes[236..240].copy_from_slice(&MAGIC.to_be_bytes());
        for (code, data) in [(53, &[kind][..])].iter().chain(options) {
            bytes.extend([*code, data.len() as u8]);
            bytes.extend_from_slice(data);
        }
        bytes.push(255);
        bytes
    }

    fn pxe(architecture: u16) -> Vec<(u8, Vec<u8>)> {
        vec![
            (60, format!("PXEClient:Arch:{architecture:05}").into()),
            (93, architecture.to_be_bytes().into()),
        ]
    }

    fn told(options: &[(u8, Vec<u8>)], offers: &Offers) -> Result<(Client, String), String> {
        let options: Vec<(u8, &[u8])> = options.iter().map(|(code, data)| (*code, &data[..])).collect();
        let asked = Asked::read(&message(1, &options), SERVER_PORT).map_err(|error| error.to_string())?;
        let answer = offers.answer(&asked, FROM).map_err(|error| error.to_string())?;
        Ok((asked.client, answer.boot_file))
    }

    #[test]
    fn each_kind_of_firmware_is_told_the_file_that_it_can_start() {
        let is = |client, file: &str| Ok((client, file.to_owned()));
        let http = vec![(60, b"HTTPClient:Arch:00016:UNDI:003001".to_vec()), (93, vec![0, 16])];
        let ipxe = |architecture| [pxe(architecture), vec![(77, b"iPXE".to_vec())]].concat();
        let file = "http://192.0.2.1:8080/boot.ipxe";
        assert_eq!(told(&pxe(0), &OFFERS), is(Client::Bios, "undionly.kpxe"));
        assert_eq!(told(&pxe(7), &OFFERS), is(Client::Uefi, "croft.efi"));
        assert_eq!(told(&pxe(9), &OFFERS), is(Client::Uefi, "croft.efi"));
        assert_eq!(told(&ipxe(0), &OFFERS), is(Client::Ipxe, file));
        assert_eq!(told(&ipxe(7), &OFFERS), is(Client::Ipxe, file));
        assert_eq!(told(&http, &OFFERS), is(Client::UefiHttp, "http://192.0.2.1:8080/croft.efi"));
        let by_tftp = Offers { http_port: None, has_undionly: false, ..OFFERS };
        assert_eq!(told(&ipxe(0), &by_tftp), is(Client::Ipxe, "tftp://192.0.2.1/boot.ipxe"));
        assert_eq!(
            told(&http, &by_tftp).unwrap_err(),
            "02:00:00:00:00:07 boots by UEFI HTTP and HTTP is not served: leave out --no-http"
        );
        assert_eq!(
            told(&pxe(0), &by_tftp).unwrap_err(),
            "02:00:00:00:00:07 boots by BIOS and needs iPXE first: install the package ipxe, or put undionly.kpxe into the folder"
        );
        // 6 is UEFI on a 32-bit processor, which iPXE does not change.
        for (architecture, options) in [(11, pxe(11)), (6, pxe(6)), (6, ipxe(6))] {
            assert_eq!(
                told(&options, &OFFERS).unwrap_err(),
                format!(
                    "02:00:00:00:00:07 has architecture {architecture}, for which there is no boot file: only x86-64 boots"
                )
            );
        }
    }

    #[test]
    fn an_answer_has_no_address_and_goes_where_the_machine_hears_it() {
        let options: &[(u8, &[u8])] = &[(60, b"PXEClient"), (93, &[0, 7]), (97, &[0; 17])];
        let discover = Asked::read(&message(1, options), SERVER_PORT).unwrap();
        let offer = OFFERS.answer(&discover, FROM).unwrap();
        assert_eq!(offer.to.to_string(), "255.255.255.255:68");
        let packet = DhcpPacket::new_checked(&offer.bytes[..]).unwrap();
        assert!(packet.your_ip().is_unspecified(), "never an address");
        assert_eq!((packet.transaction_id(), packet.opcode()), (0x7869_6478, DhcpOpCode::Reply));
        assert_eq!(packet.server_ip(), OFFERS.address);
        let codes: Vec<u8> = packet.options().map(|option| option.kind).collect();
        assert_eq!(codes, [53, 54, 60, 66, 67, 97], "no lease, no mask, no router; no menu for UEFI");
        assert!(offer.bytes[FILE_FIELD].starts_with(b"croft.efi\0") && offer.bytes.len() >= 300);

        let request = Asked::read(&message(3, options), PROXY_PORT).unwrap();
        let ack = OFFERS.answer(&request, FROM).unwrap();
        assert_eq!((ack.to, ack.bytes[242]), (FROM, 5));

        let mut relayed = message(1, options);
        relayed[24..28].copy_from_slice(&[192, 0, 2, 254]);
        let relayed = Asked::read(&relayed, SERVER_PORT).unwrap();
        assert_eq!(OFFERS.answer(&relayed, FROM).unwrap().to.to_string(), "192.0.2.254:67");
    }

    #[test]
    fn machines_that_do_not_boot_and_messages_for_the_dhcp_server_are_left_alone() {
        let pxe: &[(u8, &[u8])] = &[(60, b"PXEClient"), (93, &[0, 0])];
        let read = |bytes: &[u8], port| Asked::read(bytes, port).unwrap_err();
        assert_eq!(read(&message(1, &[]), SERVER_PORT), Ignored::NotBooting);
        assert_eq!(read(&message(1, &[(60, b"MSFT 5.0")]), SERVER_PORT), Ignored::NotBooting);
        assert_eq!(read(&message(3, pxe), SERVER_PORT), Ignored::OtherType(3), "the lease is not ours");
        assert_eq!(read(&message(1, pxe), PROXY_PORT), Ignored::OtherType(1));
        let good = message(1, pxe);
        let mut answer = good.clone();
        answer[0] = 2;
        assert!(matches!(read(&answer, SERVER_PORT), Ignored::Malformed(_)));
        for len in 0..HEADER_LEN {
            assert!(matches!(read(&good[..len], SERVER_PORT), Ignored::Malformed(_)));
        }
    }
}
