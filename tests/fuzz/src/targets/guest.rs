//! Between a microVM and its host: neither trusts the other.

use croft_guest::users;
use croft_guest::wire::{
    self, Cidr, Exit, ExitReport, File, GuestConfig, GuestEnvelope, GuestFrame, GuestHello, HealthCheck,
    HealthReport, HealthState, HostFrame, Interface, LogChunk, MAX_GUEST_FRAME_BYTES, MAX_HOST_FRAME_BYTES,
    Network, OverlaySize, Probe, Route, Secret, SecretTarget, Step, StopSignal, Stream, Volume, VolumeSource,
};
use croft_microvm::fuzzing;

use crate::check::{bounded, bounded_message, canonical, text};
use crate::scene::written;
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[
    Target {
        name: "guest-frames",
        decodes: "what a microVM's PID 1 tells its host",
        sent_by: "a workload",
        files: &["os/guest/src/wire.rs", "os/microvm/src/guest.rs"],
        seeds: guest_frames,
        rounds: 2_000,
        run: guest,
    },
    Target {
        name: "host-frame",
        decodes: "what a host tells a microVM's PID 1",
        sent_by: "the node",
        files: &["os/guest/src/wire.rs"],
        seeds: host_frames,
        rounds: 2_000,
        run: host,
    },
    Target {
        name: "stop-signal",
        decodes: "a signal's name",
        sent_by: "who made the image",
        files: &["os/guest/src/wire.rs"],
        seeds: signals,
        rounds: 2_000,
        run: signal,
    },
    Target {
        name: "image-users",
        decodes: "/etc/passwd and /etc/group of an image",
        sent_by: "who made the image",
        files: &["os/guest/src/users.rs"],
        seeds: users_of_images,
        rounds: 2_000,
        run: image_users,
    },
    Target {
        name: "vmm-answer",
        decodes: "a VMM's answer over HTTP",
        sent_by: "a VMM that its guest took over",
        files: &["os/microvm/src/vmm/api.rs"],
        seeds: answers,
        rounds: 2_000,
        run: vmm_answer,
    },
];

fn guest(bytes: &[u8]) {
    match bounded("frames of a guest", bytes.len(), || fuzzing::guest_frames(bytes)) {
        Ok((frames, left)) => {
            let again: Vec<u8> =
                frames.iter().flat_map(|frame| wire::encode(frame, MAX_GUEST_FRAME_BYTES)).collect();
            assert_eq!(again, bytes[..bytes.len() - left], "a frame has two encodings");
        }
        Err(error) => bounded_message("frame of a guest", &error.to_string()),
    }
    let mut stream = bytes;
    let _ = wire::read_frame::<GuestEnvelope>(&mut stream, MAX_GUEST_FRAME_BYTES);
}

fn host(bytes: &[u8]) {
    let Some(frame) = canonical::<HostFrame>("frame of the host", MAX_HOST_FRAME_BYTES, bytes) else {
        return;
    };
    if let HostFrame::Config(config) = frame {
        match config.validate() {
            Ok(()) => {
                assert!(!config.argv.is_empty());
                let paths = config.files.iter().map(|file| &file.path);
                for path in paths.chain(config.volumes.iter().map(|volume| &volume.mount_path)) {
                    assert!(path.starts_with('/') && !path.split('/').any(|part| part == ".."), "{path}");
                }
            }
            Err(error) => drop(error.to_string()),
        }
    }
}

fn signal(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(StopSignal(number)) = StopSignal::parse(text) {
        assert!((1..=64).contains(&number), "{number}");
        assert!(
            !text.starts_with('+') && !text.contains("++") && !text.contains("-+"),
            "'{text}' is a signal"
        );
    }
}

/// The first line is who is looked for, the second half of the rest the groups.
fn image_users(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let (wanted, files) = text.split_once('\n').unwrap_or((text, ""));
    let (passwd, group) = files.split_once("\n\n").unwrap_or((files, ""));
    match bounded("users", bytes.len(), || users::resolve(wanted, passwd, group)) {
        Ok(user) => {
            assert!(user.groups.contains(&user.gid) && !user.home.is_empty());
            let name = wanted.split(':').next().unwrap_or_default();
            let known = passwd.lines().any(|line| line.split(':').next() == Some(name));
            let is_number = name.is_empty() || name.parse::<u32>().is_ok();
            assert!(known || is_number, "'{wanted}' became {user:?} without an entry");
        }
        Err(error) => drop(error.to_string()),
    }
}

fn vmm_answer(bytes: &[u8]) {
    match bounded("answer of a VMM", bytes.len(), || fuzzing::vmm_answer(bytes)) {
        Ok(Some((status, body))) => {
            assert!((100..600).contains(&status), "{status}");
            assert!(bytes.windows(body.len().max(1)).any(|part| part == body) || body.is_empty());
        }
        Ok(None) => {}
        Err(reason) => bounded_message("answer of a VMM", &reason),
    }
}

fn guest_frames() -> Vec<Seed> {
    let hello = GuestHello {
        version: wire::PROTOCOL_VERSION,
        boot_id: [7; 16],
        configured: false,
        boot_ms: 120,
        kernel: "6.12.0".to_owned(),
    };
    let log = LogChunk { stream: Stream::Stdout, sequence: 1, time_ms: 2, bytes: b"hello\n".to_vec() };
    let health = HealthReport {
        check: "http".to_owned(),
        state: HealthState::Unhealthy,
        detail: "refused".to_owned(),
    };
    let frames = [
        GuestFrame::Hello(hello),
        GuestFrame::Log(log),
        GuestFrame::DroppedLogs { chunks: 1, bytes: 2 },
        GuestFrame::Started { boot_ms: 130, pid: 2 },
        GuestFrame::Health(health),
        GuestFrame::Exited(ExitReport { exit: Exit::Signal(9), out_of_memory: true, asked: false }),
        GuestFrame::Failed { step: Step::Network, reason: "no such link".to_owned() },
        GuestFrame::Pong { nonce: 9 },
    ];
    let encode = |(number, frame): (u64, GuestFrame)| {
        wire::encode(&GuestEnvelope { number, frame }, MAX_GUEST_FRAME_BYTES)
    };
    let all: Vec<Vec<u8>> = (0..).zip(frames).map(encode).collect();
    let mut seeds: Vec<Seed> =
        all.iter().enumerate().map(|(n, frame)| (format!("frame-{n}"), frame.clone())).collect();
    seeds.push(("all".to_owned(), all.concat()));
    seeds
}

fn config() -> GuestConfig {
    let address = |text: &str| text.parse().expect("it is an address");
    let network = Network {
        interfaces: vec![Interface {
            mac: [2, 0, 0, 0, 0, 1],
            addresses: vec![Cidr { address: address("10.0.0.2"), prefix: 24 }],
            routes: vec![Route {
                destination: Cidr { address: address("0.0.0.0"), prefix: 0 },
                gateway: Some(address("10.0.0.1")),
            }],
            mtu: 1420,
        }],
        dns: vec![address("2001:db8::1")],
        search: vec!["example.org".to_owned()],
        hosts: vec![(address("10.0.0.3"), vec!["db".to_owned()])],
    };
    let check = HealthCheck {
        name: "http".to_owned(),
        probe: Probe::Http { port: 80, path: "/".to_owned(), status_min: 200, status_max: 399 },
        interval_ms: 5_000,
        timeout_ms: 1_000,
        retries: 3,
        start_period_ms: 0,
    };
    GuestConfig {
        hostname: "web".to_owned(),
        argv: vec!["/bin/web".to_owned()],
        env: vec![("A".to_owned(), "b".to_owned())],
        secrets: vec![Secret {
            name: "KEY".to_owned(),
            value: b"secret".to_vec(),
            target: SecretTarget::File { path: "/run/key".to_owned() },
        }],
        user: "www".to_owned(),
        cwd: "/srv".to_owned(),
        stop_signal: StopSignal::default(),
        overlay: OverlaySize::Bytes(16 << 20),
        volumes: vec![
            Volume {
                mount_path: "/data".to_owned(),
                readonly: false,
                source: VolumeSource::Disk { serial: "data".to_owned(), position: 0 },
            },
            Volume {
                mount_path: "/shared".to_owned(),
                readonly: true,
                source: VolumeSource::Share { tag: "shared".to_owned() },
            },
        ],
        network,
        files: vec![File { path: "/etc/motd".to_owned(), mode: 0o644, contents: b"hello".to_vec() }],
        health: vec![check],
        now_ms: 1_700_000_000_000,
    }
}

fn host_frames() -> Vec<Seed> {
    let frames = [
        HostFrame::Config(Box::new(config())),
        HostFrame::Ack { number: 3 },
        HostFrame::Ping { nonce: 9 },
        HostFrame::Stop { grace_ms: 10_000 },
        HostFrame::Refused { reason: "another version".to_owned() },
    ];
    frames.iter().enumerate().map(|(n, frame)| crate::scene::encoded(&format!("frame-{n}"), frame)).collect()
}

fn signals() -> Vec<Seed> {
    let words = ["SIGTERM", "QUIT", "9", "SIGRTMIN+3", "RTMAX-2", "64"];
    words.iter().enumerate().map(|(n, word)| written(&format!("word-{n}"), word)).collect()
}

fn users_of_images() -> Vec<Seed> {
    let files = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/var/www:/bin/false\n\nroot:x:0:\nwww:x:33:\nlog:x:4:www\n";
    ["", "www", "www:log", "33:4", "1000"]
        .iter()
        .enumerate()
        .map(|(n, wanted)| written(&format!("user-{n}"), &format!("{wanted}\n{files}")))
        .collect()
}

fn answers() -> Vec<Seed> {
    vec![
        written("body", "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 2\r\n\r\n{}"),
        written("empty", "HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n"),
        written("error", "HTTP/1.1 500 \r\nContent-Length: 11\r\n\r\nno such vm.\r"),
    ]
}
