use tokio::net::TcpListener;

use super::*;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// An answer to a query, with records of owner, type and data in plain wire form.
fn answer(query: &[u8], flags: u16, records: &[(&Name, u16, &[u8])]) -> Vec<u8> {
    let mut bytes = query.to_vec();
    bytes[2..4].copy_from_slice(&(0x8180 | flags).to_be_bytes());
    bytes[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
    for (owner, kind, data) in records {
        bytes.extend(&owner.0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 0, 60]);
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend(*data);
    }
    bytes
}

fn read(bytes: &[u8]) -> Result<Answer, NotOurs> {
    read_answer(bytes, &name("pool.example"), Family::V4, 7)
}

#[test]
fn addresses_are_read_through_aliases() {
    let (question, alias, other) = (name("Pool.Example."), name("a.example"), name("evil.example"));
    let query = question.query(Family::V4, 7);
    let bytes = answer(
        &query,
        0,
        &[
            (&question, 5, &alias.0),
            (&alias, 1, &[192, 0, 2, 1]),
            (&other, 1, &[6, 6, 6, 6]),
            (&alias, 1, &[192, 0, 2, 2]),
        ],
    );
    let expected = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
    assert_eq!(read(&bytes), Ok(Answer::Addresses(expected.to_vec())));
}

#[test]
fn a_compressed_owner_is_followed_and_a_loop_is_not() {
    let query = name("pool.example").query(Family::V4, 7);
    let mut bytes = answer(&query, 0, &[]);
    bytes[7] = 1;
    let mut good = bytes.clone();
    good.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    assert_eq!(read(&good), Ok(Answer::Addresses(vec!["192.0.2.1".parse().unwrap()])));
    let place = bytes.len() as u8;
    bytes.extend([0xc0, place, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    assert_eq!(read(&bytes), Err(NotOurs));
}

#[test]
fn what_does_not_answer_our_question_is_not_ours() {
    let query = name("pool.example").query(Family::V4, 7);
    let good = answer(&query, 0, &[(&name("pool.example"), 1, &[192, 0, 2, 1])]);
    assert!(read(&good).is_ok());
    let other_id = answer(&name("pool.example").query(Family::V4, 8), 0, &[]);
    let other_name = answer(&name("evil.example").query(Family::V4, 7), 0, &[]);
    let other_type = answer(&name("pool.example").query(Family::V6, 7), 0, &[]);
    for bytes in
        [&query, &other_id, &other_name, &other_type, &good[..11].to_vec(), &good[..good.len() - 1].to_vec()]
    {
        assert_eq!(read(bytes), Err(NotOurs), "{bytes:?}");
    }
}

#[test]
fn error_codes_are_told_apart() {
    let query = name("pool.example").query(Family::V4, 7);
    assert_eq!(read(&answer(&query, 3, &[])), Ok(Answer::NotFound));
    assert_eq!(read(&answer(&query, 2, &[])), Ok(Answer::Refused("server failure")));
    assert_eq!(read(&answer(&query, 5, &[])), Ok(Answer::Refused("refused")));
    assert_eq!(read(&answer(&query, 0x200, &[])), Ok(Answer::Truncated));
    assert_eq!(read(&answer(&query, 0, &[])), Ok(Answer::Addresses(vec![])));
}

#[test]
fn names_that_cannot_be_are_refused_before_anybody_is_asked() {
    let (long_label, long_name) = ("a".repeat(64), "a.".repeat(128));
    for (text, why) in [
        ("", "it is empty"),
        (".", "it is empty"),
        ("a..b", "each part between dots has 1 to 63 characters"),
        (&long_label, "each part between dots has 1 to 63 characters"),
        ("a b", "only letters, digits, hyphens and dots are possible"),
        (&long_name, "it has more than 253 characters"),
    ] {
        let error = Name::parse(text).unwrap_err().to_string();
        assert!(error.contains("is not a host name") && error.ends_with(why), "{error}");
    }
    assert_eq!(name("A.Example").to_string(), "a.example");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), real: bool) {
        if real {
            let mut start = name("pool.example").query(Family::V4, 7);
            start[2] = 0x81;
            start[7] = 3;
            start.extend(bytes);
            bytes = start;
        }
        let _ = read(&bytes);
    }
}

/// A resolver on loopback: `reply` makes an answer of each query, `None` stays silent.
async fn resolver(reply: fn(&[u8]) -> Option<Vec<u8>>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            if let Some(bytes) = reply(&buffer[..len]) {
                socket.send_to(&bytes, from).await.unwrap();
            }
        }
    });
    address
}

fn is_v4(query: &[u8]) -> bool {
    query[query.len() - 3] == 1
}

#[allow(clippy::unnecessary_wraps, reason = "of the type that a resolver takes")]
fn both_families(query: &[u8]) -> Option<Vec<u8>> {
    let question = name("pool.example");
    let v6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    Some(if is_v4(query) {
        answer(query, 0, &[(&question, 1, &[192, 0, 2, 1])])
    } else {
        answer(query, 0, &[(&question, 28, &v6)])
    })
}

#[tokio::test]
async fn both_families_are_found_and_an_address_needs_nobody() {
    let server = resolver(both_families).await;
    let found = resolve_at("pool.example", &[server], Duration::from_secs(20)).await.unwrap();
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(
        resolve("192.0.2.9", &[], Duration::ZERO).await.unwrap(),
        ["192.0.2.9".parse::<IpAddr>().unwrap()]
    );
}

#[tokio::test]
async fn a_refusing_resolver_is_passed_over_for_the_next() {
    let bad = resolver(|query| Some(answer(query, 5, &[]))).await;
    let good = resolver(both_families).await;
    let found = resolve_at("pool.example", &[bad, good], Duration::from_secs(20)).await.unwrap();
    assert_eq!(found.len(), 2);
    let error = resolve_at("pool.example", &[bad], Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no resolver could tell the address of pool.example: 127.0.0.1: answered with error refused"
    );
}

#[tokio::test]
async fn an_unknown_name_is_the_names_fault() {
    let server = resolver(|query| Some(answer(query, 3, &[]))).await;
    let error = resolve_at("pool.example", &[server], Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(error.to_string(), "pool.example does not exist, says resolver 127.0.0.1");
    let server = resolver(|query| Some(answer(query, 0, &[]))).await;
    let error = resolve_at("pool.example", &[server], Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(error.to_string(), "pool.example has no address, says resolver 127.0.0.1");
    let error = resolve("pool.example", &[], Duration::from_secs(1)).await.unwrap_err();
    assert!(error.to_string().starts_with("no resolver to ask for pool.example"));
}

#[tokio::test]
async fn a_silent_resolver_costs_the_limit_and_no_more() {
    let server = resolver(|_| None).await;
    let error = resolve_at("pool.example", &[server], Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(error.to_string(), "no resolver could tell the address of pool.example: 127.0.0.1: no answer");
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp() {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = udp.recv_from(&mut buffer).await {
            udp.send_to(&answer(&buffer[..len], 0x200, &[]), from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let len = stream.read_u16().await.unwrap();
            let mut query = vec![0; usize::from(len)];
            stream.read_exact(&mut query).await.unwrap();
            let bytes = both_families(&query).unwrap();
            stream.write_u16(bytes.len() as u16).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    });
    let found = resolve_at("pool.example", &[address], Duration::from_secs(20)).await.unwrap();
    assert_eq!(found.len(), 2);
}
