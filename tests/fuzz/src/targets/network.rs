//! What a node hears on its wire before it trusts anybody.

use std::time::Duration;

use croft_network::clock::UnixTime;
use croft_network::config::NetworkConfig;
use croft_network::workload::DeploymentId;
use croft_network::{MacAddr, fuzzing, sntp};

use crate::check::{bounded, bounded_message, json_again, shown, text, toml_again};
use crate::scene::written;
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[
    Target {
        name: "dhcp-answer",
        decodes: "a DHCP offer, acknowledgement or refusal",
        sent_by: "whoever is on the wire",
        files: &["os/network/src/dhcp/message.rs"],
        seeds: dhcp_answers,
        rounds: 3_000,
        run: dhcp,
    },
    Target {
        name: "dns-answer",
        decodes: "a DNS answer",
        sent_by: "whoever is on the wire",
        files: &["os/network/src/dns.rs"],
        seeds: dns_answers,
        rounds: 3_000,
        run: dns,
    },
    Target {
        name: "sntp-answer",
        decodes: "an answer of a time server",
        sent_by: "whoever is on the wire",
        files: &["os/network/src/sntp.rs"],
        seeds: sntp_answers,
        rounds: 3_000,
        run: sntp_answer,
    },
    Target {
        name: "network-config",
        decodes: "links as the farmer wrote them",
        sent_by: "a boot medium",
        files: &["os/network/src/config.rs", "agents/node/src/links.rs"],
        seeds: || vec![written("links.toml", LINKS)],
        rounds: 800,
        run: config,
    },
    Target {
        name: "network-ids",
        decodes: "MAC addresses and ids of deployments from text",
        sent_by: "a boot medium, files",
        files: &["os/network/src/mac.rs", "os/network/src/workload/names.rs"],
        seeds: ids,
        rounds: 2_000,
        run: id,
    },
];

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const XID: u32 = 0x1234_5678;
const NONCE: u64 = 0x0102_0304_0506_0708;
const DNS_ID: u16 = 0x4242;
const HOST: &str = "pool.example.org";
const LINKS: &str = r#"[[links]]
mac = "52:54:00:12:34:56"
mode = "static"
addresses = ["192.0.2.10/24", "2001:db8::10/64"]
gateway = "192.0.2.1"
gateway6 = "fe80::1"
dns = ["192.0.2.1"]

[[links]]
name = "enp3s0"
mode = "dhcp"
"#;

fn dhcp(bytes: &[u8]) {
    match bounded("DHCP answer", bytes.len(), || fuzzing::dhcp_answer(bytes, MAC, XID)) {
        Ok(Ok(lease)) => {
            assert!((1..=32).contains(&lease.prefix_len));
            assert!(lease.routes <= 64 && lease.servers.len() <= 4 * 64);
            let octets = lease.address.octets();
            let usable = octets[0] != 0 && octets[0] != 127 && octets[0] < 224;
            assert!(usable, "{} is no machine's address", lease.address);
            if let Some((renew, rebind, expire)) = lease.times_s {
                assert!(renew <= rebind && rebind <= expire && expire > 0, "{:?}", lease.times_s);
            }
        }
        Ok(Err(words)) => {
            assert!(words.chars().count() <= 80 && !words.chars().any(char::is_control), "{words:?}");
        }
        Err(ignored) => bounded_message("DHCP answer", &ignored),
    }
}

fn dns(bytes: &[u8]) {
    for v6 in [false, true] {
        let answer = bounded("DNS answer", bytes.len(), || fuzzing::dns_answer(bytes, HOST, v6, DNS_ID));
        for address in answer.unwrap_or_default() {
            assert_eq!(address.is_ipv6(), v6, "an address of the wrong family");
        }
    }
    if let Some(name) = text(bytes)
        && let Ok(question) = fuzzing::dns_question(name, false, DNS_ID)
    {
        assert!(question.len() <= 12 + 255 + 4, "a question of {} bytes", question.len());
        let answer = fuzzing::dns_answer(&question, name, false, DNS_ID);
        assert!(answer.is_err(), "the question itself counts as an answer");
    }
}

fn sntp_answer(bytes: &[u8]) {
    let request = sntp::Request::new(NONCE);
    for sent in [0, 1_700_000_000_000] {
        let sent = UnixTime::from_millis(sent);
        match request.read(bytes, sent, Duration::from_millis(80)) {
            Ok(sample) => {
                assert!((1..=15).contains(&sample.stratum));
                assert!(sample.round_trip <= Duration::from_millis(80), "{:?}", sample.round_trip);
                let _ = sent.plus(sample.offset);
            }
            Err(error) => bounded_message("SNTP answer", &error.to_string()),
        }
    }
}

fn config(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(config) = bounded("network configuration", bytes.len(), || toml::from_str::<NetworkConfig>(text))
    else {
        return;
    };
    toml_again("network configuration", &config);
    if let Err(error) = config.validate() {
        assert!(error.to_string().len() <= 4 * 1024 + 4 * bytes.len(), "{error}");
    }
}

fn id(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let _ = shown::<MacAddr>("MAC address", text);
    // Shown short, for people; files hold it whole.
    if let Ok(id) = text.parse::<DeploymentId>() {
        json_again("id of a deployment", &id);
    }
}

/// RFC 2131, section 2, with options after the magic number.
fn dhcp_packet(options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0_u8; 236];
    (bytes[0], bytes[1], bytes[2]) = (2, 1, 6);
    bytes[4..8].copy_from_slice(&XID.to_be_bytes());
    bytes[16..20].copy_from_slice(&[192, 0, 2, 10]);
    bytes[28..34].copy_from_slice(&MAC);
    bytes.extend([0x63, 0x82, 0x53, 0x63]);
    for (code, data) in options {
        bytes.extend([*code, data.len() as u8]);
        bytes.extend(*data);
    }
    bytes.push(0xff);
    bytes
}

fn dhcp_answers() -> Vec<Seed> {
    let lease: [(u8, &[u8]); 11] = [
        (53, &[5]),
        (54, &[192, 0, 2, 1]),
        (1, &[255, 255, 255, 0]),
        (3, &[192, 0, 2, 1]),
        (6, &[192, 0, 2, 1, 198, 51, 100, 1]),
        (42, &[192, 0, 2, 1]),
        (26, &[5, 220]),
        (51, &[0, 0, 14, 16]),
        (58, &[0, 0, 7, 8]),
        (59, &[0, 0, 12, 78]),
        (121, &[0, 192, 0, 2, 1, 24, 198, 51, 100, 192, 0, 2, 2]),
    ];
    let refusal: [(u8, &[u8]); 3] = [(53, &[6]), (54, &[192, 0, 2, 1]), (56, b"no more addresses")];
    vec![
        ("ack".to_owned(), dhcp_packet(&lease)),
        ("short-ack".to_owned(), dhcp_packet(&[(53, &[2]), (54, &[192, 0, 2, 1]), (51, &[255; 4])])),
        ("nak".to_owned(), dhcp_packet(&refusal)),
    ]
}

/// RFC 1035, section 4: the question again, then an alias and its address, with names as pointers.
fn dns_answer(v6: bool) -> Vec<u8> {
    let mut bytes = fuzzing::dns_question(HOST, v6, DNS_ID).expect("it is a name");
    bytes[2..4].copy_from_slice(&[0x81, 0x80]);
    bytes[6..8].copy_from_slice(&[0, 2]);
    bytes.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 4, 1, b'a', 0xc0, 17]);
    let alias = bytes.len() - 4;
    bytes.extend([0xc0, alias as u8, 0, if v6 { 28 } else { 1 }, 0, 1, 0, 0, 0, 60]);
    if v6 {
        bytes.extend([0, 16, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    } else {
        bytes.extend([0, 4, 192, 0, 2, 7]);
    }
    bytes
}

fn dns_answers() -> Vec<Seed> {
    vec![("a".to_owned(), dns_answer(false)), ("aaaa".to_owned(), dns_answer(true)), written("name", HOST)]
}

fn sntp_answers() -> Vec<Seed> {
    let mut bytes = [0_u8; 48];
    (bytes[0], bytes[1], bytes[2], bytes[3]) = (0x24, 2, 6, 0xec);
    bytes[24..32].copy_from_slice(&NONCE.to_be_bytes());
    // 1,700,000,000 s after 1970 in seconds since 1900, and 10 ms held by the server.
    let received = (1_700_000_000_u64 + 2_208_988_800) << 32;
    bytes[32..40].copy_from_slice(&received.to_be_bytes());
    bytes[40..48].copy_from_slice(&(received + (1 << 32) / 100).to_be_bytes());
    let mut refusal = bytes;
    refusal[1] = 0;
    refusal[12..16].copy_from_slice(b"RATE");
    vec![("time".to_owned(), bytes.to_vec()), ("kiss".to_owned(), refusal.to_vec())]
}

fn ids() -> Vec<Seed> {
    let id = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    vec![written("mac", "52:54:00:12:34:56"), written("deployment", id)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_what_they_are_called() {
        let [ack, short, nak] = &dhcp_answers()[..] else { panic!("there are three") };
        let lease = fuzzing::dhcp_answer(&ack.1, MAC, XID).unwrap().unwrap();
        assert_eq!((lease.prefix_len, lease.routes), (24, 1));
        assert!(fuzzing::dhcp_answer(&short.1, MAC, XID).unwrap().unwrap().times_s.is_none());
        assert_eq!(fuzzing::dhcp_answer(&nak.1, MAC, XID).unwrap().unwrap_err(), "no more addresses");
        for (v6, expected) in [(false, "192.0.2.7"), (true, "2001:db8::1")] {
            let found = fuzzing::dns_answer(&dns_answer(v6), HOST, v6, DNS_ID).unwrap();
            assert_eq!(found, [expected.parse::<std::net::IpAddr>().unwrap()]);
        }
        let sent = UnixTime::from_millis(1_700_000_000_000);
        let [(_, time), (_, kiss)] = &sntp_answers()[..] else { panic!("there are two") };
        sntp::Request::new(NONCE).read(time, sent, Duration::from_millis(80)).unwrap();
        let error = sntp::Request::new(NONCE).read(kiss, sent, Duration::from_millis(80)).unwrap_err();
        assert_eq!(error.to_string(), "server tells us to go away (RATE)");
    }
}
