//! Golden vectors, limits, and decoders on garbage.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;

fn config() -> GuestConfig {
    GuestConfig {
        hostname: "web".into(),
        argv: vec!["nginx".into(), "-g".into(), "daemon off;".into()],
        env: vec![("PATH".into(), "/bin".into())],
        secrets: vec![Secret {
            name: "TOKEN".into(),
            value: b"s3cret".to_vec(),
            target: SecretTarget::Environment,
        }],
        user: "www-data".into(),
        cwd: "/srv".into(),
        stop_signal: StopSignal(3),
        overlay: OverlaySize::PercentOfMemory(40),
        volumes: vec![Volume {
            mount_path: "/data".into(),
            readonly: false,
            source: VolumeSource::Disk { serial: "data".into(), position: 0 },
        }],
        network: Network {
            interfaces: vec![Interface {
                mac: [2, 0, 0, 0, 0, 1],
                addresses: vec![Cidr { address: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)), prefix: 24 }],
                routes: vec![Route {
                    destination: Cidr { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0 },
                    gateway: Some(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1))),
                }],
                mtu: 1500,
            }],
            dns: vec![IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1))],
            search: vec![],
            hosts: vec![],
        },
        files: vec![File { path: "/etc/motd".into(), mode: 0o644, contents: b"hi".to_vec() }],
        health: vec![HealthCheck {
            name: "http".into(),
            probe: Probe::Http { port: 80, path: "/".into(), status_min: 200, status_max: 399 },
            interval_ms: 1000,
            timeout_ms: 500,
            retries: 3,
            start_period_ms: 0,
        }],
        now_ms: 1_700_000_000_000,
    }
}

/// The bytes on the wire are a contract between a guest image and every later host.
#[test]
fn the_encoding_matches_its_golden_vectors() {
    let hello = GuestEnvelope {
        number: 0,
        frame: GuestFrame::Hello(GuestHello {
            version: 1,
            boot_id: [7; 16],
            configured: false,
            boot_ms: 900,
            kernel: "6.12".into(),
        }),
    };
    let frames: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "hello",
            encode(&hello, MAX_GUEST_FRAME_BYTES),
            "2c000000000000000000000000010007070707070707070707070707070707008403000000000000\
             04000000362e3132",
        ),
        (
            "log",
            encode(
                &GuestEnvelope {
                    number: 2,
                    frame: GuestFrame::Log(LogChunk {
                        stream: Stream::Stderr,
                        sequence: 5,
                        time_ms: 6,
                        bytes: b"ab".to_vec(),
                    }),
                },
                MAX_GUEST_FRAME_BYTES,
            ),
            "200000000200000000000000010105000000000000000600000000000000020000006162",
        ),
        (
            "exited",
            encode(
                &GuestEnvelope {
                    number: 3,
                    frame: GuestFrame::Exited(ExitReport {
                        exit: Exit::Signal(9),
                        out_of_memory: true,
                        asked: false,
                    }),
                },
                MAX_GUEST_FRAME_BYTES,
            ),
            "0d00000003000000000000000501090100",
        ),
        (
            "failed",
            encode(
                &GuestEnvelope {
                    number: 4,
                    frame: GuestFrame::Failed { step: Step::RootImage, reason: "x".into() },
                },
                MAX_GUEST_FRAME_BYTES,
            ),
            "0f00000004000000000000000602010000\
             0078",
        ),
        ("ack", encode(&HostFrame::Ack { number: 258 }, MAX_HOST_FRAME_BYTES), "09000000010201000000000000"),
        ("ping", encode(&HostFrame::Ping { nonce: 1 }, MAX_HOST_FRAME_BYTES), "09000000020100000000000000"),
        (
            "stop",
            encode(&HostFrame::Stop { grace_ms: 10_000 }, MAX_HOST_FRAME_BYTES),
            "09000000031027000000000000",
        ),
    ];
    for (name, bytes, golden) in frames {
        assert_eq!(hex::encode(bytes), golden, "{name}");
    }
}

#[test]
fn a_configuration_survives_the_wire() {
    let frame = HostFrame::Config(Box::new(config()));
    let bytes = encode(&frame, MAX_HOST_FRAME_BYTES);
    let read: HostFrame = read_frame(&mut bytes.as_slice(), MAX_HOST_FRAME_BYTES).unwrap();
    assert_eq!(read, frame);
    config().validate().unwrap();
}

#[test]
fn a_frame_longer_than_allowed_is_refused_before_it_is_read() {
    let mut bytes = (MAX_GUEST_FRAME_BYTES as u32 + 1).to_le_bytes().to_vec();
    bytes.extend([0; 16]);
    let error = read_frame::<GuestEnvelope>(&mut bytes.as_slice(), MAX_GUEST_FRAME_BYTES).unwrap_err();
    assert_eq!(error.to_string(), "a frame of 16385 bytes is announced, at most 16384 are allowed");
}

#[test]
fn a_frame_with_trailing_bytes_is_malformed() {
    let mut body = borsh::to_vec(&HostFrame::Ping { nonce: 1 }).unwrap();
    body.push(0);
    assert!(matches!(decode::<HostFrame>(&body), Err(FrameError::Malformed(_))));
}

#[test]
fn the_largest_log_chunk_fits_a_frame() {
    let frame = GuestFrame::Log(LogChunk {
        stream: Stream::Stdout,
        sequence: u64::MAX,
        time_ms: u64::MAX,
        bytes: vec![0; MAX_LOG_CHUNK_BYTES],
    });
    encode(&GuestEnvelope { number: u64::MAX, frame }, MAX_GUEST_FRAME_BYTES);
}

#[test]
fn debug_output_of_a_configuration_holds_no_secret() {
    let mut config = config();
    config.env.push(("PASSWORD".into(), "hunter2".into()));
    let text = format!("{:?} {config:?}", HostFrame::Config(Box::new(config.clone())));
    assert!(text.contains("TOKEN") && text.contains("PASSWORD"), "{text}");
    assert!(!text.contains("s3cret") && !text.contains("hunter2"), "{text}");
}

#[test]
fn stop_signals_are_read_as_oci_images_write_them() {
    for (text, number) in
        [("SIGTERM", 15), ("TERM", 15), ("SIGQUIT", 3), ("9", 9), ("SIGRTMIN+3", 37), ("SIGWINCH", 28)]
    {
        assert_eq!(StopSignal::parse(text).unwrap(), StopSignal(number), "{text}");
    }
    let error = StopSignal::parse("SIGNOPE").unwrap_err();
    assert_eq!(
        error.to_string(),
        "stop signal \"SIGNOPE\" is unknown: use a name such as SIGTERM or a number from 1 to 64"
    );
    for bad in ["0", "65", "", "SIGRTMIN+99", "SIGRTMAX-60", "+9", "SIGRTMIN++3", "RTMAX-+2"] {
        StopSignal::parse(bad).unwrap_err();
    }
}

type Change = fn(&mut GuestConfig);

#[test]
fn each_broken_rule_is_named() {
    let cases: Vec<(Change, &str)> = vec![
        (|c| c.argv.clear(), "there is no command to run"),
        (|c| c.hostname = "a b".into(), "hostname \"a b\" is not valid"),
        (|c| c.env.push(("A=B".into(), String::new())), "environment variable \"A=B\""),
        (|c| c.cwd = "srv".into(), "working directory \"srv\""),
        (|c| c.overlay = OverlaySize::PercentOfMemory(99), "writable layer in percent is 99"),
        (|c| c.volumes[0].mount_path = "/a/../b".into(), "volume path \"/a/../b\""),
        (|c| c.volumes[0].mount_path = "/proc/".into(), "can't replace /, /proc, /sys or /dev"),
        (|c| c.volumes.push(c.volumes[0].clone()), "volume path appears twice: \"/data\""),
        (
            |c| c.volumes[0].source = VolumeSource::Share { tag: "a,b".into() },
            "share tag \"a,b\" is not valid",
        ),
        (|c| c.network.interfaces[0].addresses[0].prefix = 33, "prefix length is 33"),
        (|c| c.network.interfaces[0].mtu = 100, "MTU is 100"),
        (
            |c| c.network.interfaces[0].routes[0].gateway = Some("::1".parse().unwrap()),
            "must be of one address family",
        ),
        (|c| c.health.push(c.health[0].clone()), "health check appears twice: \"http\""),
        (|c| c.health[0].interval_ms = 1, "health check interval in ms is 1"),
        (
            |c| c.files[0].contents = vec![0; MAX_HOST_FRAME_BYTES],
            "at most 262128 fit: shorten files or environment",
        ),
    ];
    for (change, expected) in cases {
        let mut config = config();
        change(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} should contain {expected:?}");
    }
}

#[test]
fn a_valid_configuration_always_fits_a_frame() {
    let mut config = config();
    config.files[0].contents.clear();
    let used = borsh::object_length(&config).unwrap();
    config.files[0].contents = vec![1; MAX_HOST_FRAME_BYTES - 16 - used];
    config.validate().unwrap();
    encode(&HostFrame::Config(Box::new(config)), MAX_HOST_FRAME_BYTES);
}

#[test]
fn a_long_text_is_cut_at_a_character() {
    let text = "\u{00e4}".repeat(MAX_TEXT_BYTES);
    let short = shorten(&text);
    assert!(short.len() <= MAX_TEXT_BYTES + 3 && short.ends_with("..."));
}

proptest! {
    #[test]
    fn decoders_never_panic_on_garbage(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = decode::<GuestEnvelope>(&bytes);
        let _ = decode::<HostFrame>(&bytes);
        let _ = read_frame::<GuestEnvelope>(&mut bytes.as_slice(), MAX_GUEST_FRAME_BYTES);
        let _ = read_frame::<HostFrame>(&mut bytes.as_slice(), MAX_HOST_FRAME_BYTES);
    }

    #[test]
    fn a_damaged_configuration_decodes_or_fails_but_never_panics(
        at in 0usize..400, value in any::<u8>(), cut in 0usize..400,
    ) {
        let mut body = borsh::to_vec(&HostFrame::Config(Box::new(config()))).unwrap();
        let length = body.len();
        body[at % length] = value;
        if let Ok(HostFrame::Config(config)) = decode::<HostFrame>(&body) {
            let _ = config.validate();
        }
        let _ = decode::<HostFrame>(&body[..cut % length]);
    }

    #[test]
    fn log_frames_round_trip(bytes in proptest::collection::vec(any::<u8>(), 0..MAX_LOG_CHUNK_BYTES), number in 1u64..) {
        let frame = GuestEnvelope {
            number,
            frame: GuestFrame::Log(LogChunk { stream: Stream::Stdout, sequence: 1, time_ms: 2, bytes }),
        };
        let encoded = encode(&frame, MAX_GUEST_FRAME_BYTES);
        prop_assert_eq!(read_frame::<GuestEnvelope>(&mut encoded.as_slice(), MAX_GUEST_FRAME_BYTES).unwrap(), frame);
    }
}
