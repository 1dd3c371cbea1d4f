//! What machines of a rack send to a netboot server, and what answers them.

use std::net::{Ipv4Addr, SocketAddrV4};

use croft_media::serve::dhcp::{Asked, Offers, PROXY_PORT, SERVER_PORT};
use croft_media::serve::http;
use croft_media::serve::tftp::{Next, ReadRequest, Session};
use croft_network::fuzzing;

use crate::check::{bounded, bounded_message};
use crate::scene::written;
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[
    Target {
        name: "boot-offer",
        decodes: "an offer of a boot file",
        sent_by: "whoever is on the wire",
        files: &["os/network/src/dhcp/boot.rs"],
        seeds: || vec![("offer".to_owned(), message(2, 2, &[(67, b"http://192.0.2.1:8080/croft.efi")]))],
        rounds: 3_000,
        run: boot_offer,
    },
    Target {
        name: "netboot-request",
        decodes: "a DHCP message of firmware that boots",
        sent_by: "whoever is on the rack's wire",
        files: &["image/media/src/serve/dhcp.rs"],
        seeds: requests,
        rounds: 3_000,
        run: netboot_request,
    },
    Target {
        name: "tftp-packet",
        decodes: "a read request and what follows it",
        sent_by: "whoever is on the rack's wire",
        files: &["image/media/src/serve/tftp.rs"],
        seeds: || vec![("read".to_owned(), READ.to_vec()), ("acknowledge".to_owned(), vec![0, 4, 0, 1])],
        rounds: 3_000,
        run: tftp_packet,
    },
    Target {
        name: "http-request",
        decodes: "the head of a request for a file",
        sent_by: "whoever is on the rack's wire",
        files: &["image/media/src/serve/http.rs"],
        seeds: || vec![written("get", GET), written("head", HEAD)],
        rounds: 3_000,
        run: http_request,
    },
];

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const XID: u32 = 0x1234_5670;
const READ: &[u8] = b"\0\x01croft.efi\0octet\0blksize\x001468\0windowsize\x004\0tsize\x000\0";
const GET: &str = "GET /croft.efi HTTP/1.1\r\nHost: 192.0.2.1:8080\r\nRange: bytes=5-9\r\n\r\n";
const HEAD: &str = "HEAD /boot.ipxe?x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
const FILE_BYTES: u64 = 100_000;

/// A DHCP message of or to one machine.
fn message(operation: u8, kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[operation, 1, 6]);
    bytes[4..8].copy_from_slice(&XID.to_be_bytes());
    if operation == 2 {
        bytes[20..24].copy_from_slice(&[192, 0, 2, 1]);
    }
    bytes[28..34].copy_from_slice(&MAC);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    for (code, data) in [(53, &[kind][..])].iter().chain(options) {
        bytes.extend([*code, data.len() as u8]);
        bytes.extend_from_slice(data);
    }
    bytes.push(255);
    bytes
}

fn requests() -> Vec<Seed> {
    let http: &[(u8, &[u8])] = &[(60, b"HTTPClient:Arch:00016:UNDI:003001"), (93, &[0, 16]), (97, &[0; 17])];
    let ipxe: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0]), (77, b"iPXE")];
    let uefi: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00007:UNDI:003001"), (93, &[0, 7])];
    let seed = |name: &str, kind, options| (name.to_owned(), message(1, kind, options));
    vec![seed("http", 1, http), seed("ipxe", 1, ipxe), seed("uefi-request", 3, uefi)]
}

fn boot_offer(bytes: &[u8]) {
    if let Some(offer) = bounded("boot offer", bytes.len(), || fuzzing::boot_offer(bytes, MAC, XID)) {
        assert!((1..=255).contains(&offer.file.len()) && offer.file.bytes().all(|b| b.is_ascii_graphic()));
        assert!(!offer.server.is_unspecified() && !offer.server.is_broadcast());
    }
}

fn netboot_request(bytes: &[u8]) {
    let offers = Offers { address: Ipv4Addr::new(192, 0, 2, 1), http_port: Some(8080), has_undionly: true };
    for port in [SERVER_PORT, PROXY_PORT] {
        let from = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 68);
        match bounded("netboot request", bytes.len(), || Asked::read(bytes, port)) {
            Ok(asked) => {
                let answer = offers.answer(&asked, from).unwrap_or_else(|error| panic!("{error}"));
                assert!(answer.bytes.len() <= 600, "an answer of {} bytes", answer.bytes.len());
                assert_eq!(answer.bytes[16..20], [0; 4], "a proxy gives no address");
            }
            Err(ignored) => bounded_message("netboot request", &ignored.to_string()),
        }
    }
}

fn tftp_packet(bytes: &[u8]) {
    match bounded("TFTP request", bytes.len(), || ReadRequest::read(bytes)) {
        Ok(request) => {
            let mut session = Session::new(&request, FILE_BYTES);
            assert!(session.window().count() <= 16);
        }
        Err(refusal) => bounded_message("TFTP request", &refusal.to_string()),
    }
    let request = ReadRequest::read(READ).unwrap_or_else(|error| panic!("{error}"));
    let mut session = Session::new(&request, FILE_BYTES);
    session.take(&[0, 4, 0, 0]);
    assert_eq!(session.window().count(), 4);
    match bounded("TFTP packet", bytes.len(), || session.take(bytes)) {
        Next::Failed(said) => bounded_message("TFTP packet", &said),
        Next::Done => panic!("the file was not sent yet"),
        Next::Send | Next::Wait => {}
    }
}

fn http_request(bytes: &[u8]) {
    match bounded("HTTP request", bytes.len(), || http::Request::read(bytes)) {
        Ok(Some((request, end))) => {
            assert!(end <= bytes.len() && end <= http::HEAD_BYTES);
            if let Some((first, count)) = request.answer(FILE_BYTES).body {
                assert!(first + count <= FILE_BYTES, "bytes that the file does not have");
            }
        }
        Ok(None) => assert!(bytes.len() < http::HEAD_BYTES),
        Err(refusal) => bounded_message("HTTP request", &refusal.to_string()),
    }
}
