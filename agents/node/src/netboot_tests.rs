//! Servers of all kinds on loopback, and the places that their offers name.

use tokio::net::TcpListener;

use super::*;
use crate::medium::testing::sealed;

fn place(file: &str) -> Option<String> {
    let offer = BootOffer { server: Ipv4Addr::new(192, 0, 2, 1), file: file.to_owned() };
    beside(&offer).map(|place| place.to_string())
}

#[test]
fn the_addition_is_beside_the_boot_file_whatever_brings_it() {
    for (file, expected) in [
        ("http://192.0.2.9:8080/rack/boot.ipxe", "http://192.0.2.9:8080/rack/farm.bin"),
        ("http://192.0.2.9/croft.efi?x=/y#z", "http://192.0.2.9:80/farm.bin"),
        ("tftp://192.0.2.9/a/croft.efi", "tftp://192.0.2.9/a/farm.bin"),
        ("croft.efi", "tftp://192.0.2.1/farm.bin"),
        ("/srv/croft.efi", "tftp://192.0.2.1/srv/farm.bin"),
    ] {
        assert_eq!(place(file).as_deref(), Some(expected), "{file}");
    }
    for file in [
        "http://boot.example.org/croft.efi",
        "https://192.0.2.9/x",
        "http://192.0.2.9",
        "../x",
        "nfs://1.2.3.4/x",
    ] {
        assert_eq!(place(file), None, "{file}");
    }
}

fn somewhere() -> Place {
    Place::Http { server: "192.0.2.9:80".parse().unwrap(), path: "/farm.bin".to_owned() }
}

#[test]
fn an_answer_of_http_is_taken_whole_or_not_at_all() {
    let read = |text: &str| body(&somewhere(), text.as_bytes()).map_err(|error| error.to_string());
    assert_eq!(read("HTTP/1.0 200 OK\r\n\r\nabc").unwrap(), b"abc");
    assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc").unwrap(), b"ab");
    let refused = read("HTTP/1.1 404 Not \u{1b}Found\r\n\r\n").unwrap_err();
    assert!(refused == "http://192.0.2.9:80/farm.bin: the answer is no HTTP", "{refused}");
    let refused = read("HTTP/1.1 404 Not Found\r\n\r\n").unwrap_err();
    assert_eq!(refused, "http://192.0.2.9:80/farm.bin: the server says 404 Not Found");
    for garbled in [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc",
        "HTTP/1.1 200 OK\r\nX: y",
        "220 smtp.example.org\r\n\r\n",
        "",
    ] {
        assert_eq!(read(garbled).unwrap_err(), "http://192.0.2.9:80/farm.bin: the answer is no HTTP");
    }
    let large = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(limits::ADDITION_BYTES + 1));
    assert!(read(&large).unwrap_err().contains("more than the 16384 bytes"));
}

fn data(block: u16, bytes: &[u8]) -> Vec<u8> {
    let [high, low] = block.to_be_bytes();
    [&[0, 3, high, low], bytes].concat()
}

#[test]
fn a_file_by_tftp_is_the_blocks_in_their_order_and_nothing_else() {
    let mut reader = Reader::default();
    assert_eq!(reader.take(b"\0\x06BLKSIZE\08\0tsize\x00100\0"), Step::Acknowledge(0));
    assert_eq!(reader.take(&data(1, b"01234567")), Step::Acknowledge(1));
    assert_eq!(reader.take(&data(1, b"01234567")), Step::Again, "a block that came twice");
    assert_eq!(reader.take(&data(3, b"later")), Step::Again);
    assert_eq!(reader.take(&data(2, b"89")), Step::Whole(2));
    assert_eq!(reader.content, b"0123456789");

    assert_eq!(Reader::default().take(b"\0\x06blksize\x0065464\0"), Step::Garbled, "more than was asked for");
    assert_eq!(Reader::default().take(&data(1, &[0; 513])), Step::Garbled);
    assert_eq!(
        Reader::default().take(b"\0\x05\0\x01File\x1b not found\0"),
        Step::Refused("error 1: File not found".into())
    );
    for bad in [&b""[..], b"\0", b"\0\x03\0", b"\0\x04\0\0", b"\x01\x03\0\x01"] {
        assert_eq!(Reader::default().take(bad), Step::Garbled, "{bad:?}");
    }
    let mut endless = Reader::default();
    let steps: Vec<Step> = (1..=33).map(|block| endless.take(&data(block, &[0; 512]))).collect();
    assert_eq!(steps[31..], [Step::Acknowledge(32), Step::TooLarge]);
}

/// A server that answers one connection and says nothing more.
async fn http(answer: Vec<u8>) -> Place {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(server) = listener.local_addr().unwrap() else { unreachable!() };
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 1024];
        let len = stream.read(&mut request).await.unwrap();
        assert!(request[..len].starts_with(b"GET /rack/farm.bin HTTP/1.0\r\n"));
        stream.write_all(&answer).await.unwrap();
    });
    Place::Http { server, path: "/rack/farm.bin".to_owned() }
}

#[tokio::test]
async fn an_addition_from_a_server_counts_only_when_it_checks() {
    let (config, good) = sealed("attic");
    let mut altered = good.clone();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    let mut round = Round::default();
    for bytes in [&altered, &good, &good] {
        let place = http([b"HTTP/1.0 200 OK\r\n\r\n", bytes.as_slice()].concat()).await;
        let fetched = fetch(&place, FETCH_LIMIT).await.unwrap();
        take(&mut round, &place, &fetched);
    }
    assert_eq!(round.found.len(), 1, "the same from two servers is one");
    assert_eq!(round.found[0].1.boot_config(), config);
    assert_eq!(round.reasons.len(), 1);
    assert!(
        round.reasons[0].contains("is refused: ") && round.reasons[0].contains("was altered"),
        "{round:?}"
    );
}

#[tokio::test]
async fn a_server_that_keeps_silent_is_given_up_with_its_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(server) = listener.local_addr().unwrap() else { unreachable!() };
    let place = Place::Http { server, path: "/farm.bin".to_owned() };
    let error = fetch(&place, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.to_string(), format!("http://{server}/farm.bin: no answer within 0 s"));
}

#[tokio::test]
async fn a_file_comes_by_tftp_though_packets_come_twice_and_from_strangers() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(at) = server.local_addr().unwrap() else { unreachable!() };
    let content = vec![7; BLOCK_BYTES + 3];
    let sent = content.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (len, client) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"\0\x01rack/farm.bin\0octet\0blksize\x001428\0");
        // As TFTP has it: the answers come from another port than the one that was asked.
        let session = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        session.send_to(b"\0\x06blksize\x001428\0", client).await.unwrap();
        session.recv_from(&mut buffer).await.unwrap();
        server.send_to(b"\0\x05\0\0a stranger", client).await.unwrap();
        for (block, part) in (1..).zip(sent.chunks(BLOCK_BYTES)) {
            for _ in 0..2 {
                session.send_to(&data(block, part), client).await.unwrap();
            }
            session.recv_from(&mut buffer).await.unwrap();
        }
    });
    let place = Place::Tftp { server: *at.ip(), path: "rack/farm.bin".to_owned() };
    let fetched = fetch_tftp(&place, (*at.ip(), at.port()), "rack/farm.bin").await.unwrap();
    assert_eq!(fetched, content);
}
