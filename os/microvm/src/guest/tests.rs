//! A host's session against guests that behave, lose their connection, lie and flood.

use croft_guest::wire::{Exit, HealthState, LogChunk, MAX_TEXT_BYTES, Stream, read_frame};

use super::*;
use crate::logs::{LogItem, LogStart};
use crate::spec::LogLimits;

const LIMIT: Duration = Duration::from_secs(60);

struct Rig {
    _dir: tempfile::TempDir,
    path: PathBuf,
    link: GuestLink,
    logs: Logs,
}

impl Rig {
    fn new() -> Self {
        Self::with_silence(Duration::from_secs(3600))
    }

    fn with_silence(silence: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let logs = Logs::new(&LogLimits { memory_bytes: 1 << 20, file: None, file_bytes: 0 });
        let config = GuestConfig { hostname: "web".into(), argv: vec!["x".into()], ..GuestConfig::default() };
        let user = nix::unistd::geteuid().as_raw();
        let link = GuestLink::listen(&path, user, config, logs.clone(), silence).unwrap();
        Self { _dir: dir, path, link, logs }
    }

    async fn dial(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    async fn event(&mut self) -> GuestEvent {
        timeout(LIMIT, self.link.events.recv()).await.unwrap().unwrap()
    }
}

fn hello(boot: u8, configured: bool) -> GuestFrame {
    GuestFrame::Hello(GuestHello {
        version: PROTOCOL_VERSION,
        boot_id: [boot; 16],
        configured,
        boot_ms: 900,
        kernel: "6.12".into(),
    })
}

fn log(sequence: u64, bytes: &[u8]) -> GuestFrame {
    GuestFrame::Log(LogChunk { stream: Stream::Stdout, sequence, time_ms: 7, bytes: bytes.to_vec() })
}

async fn say(stream: &mut UnixStream, number: u64, frame: GuestFrame) {
    stream.write_all(&encode(&GuestEnvelope { number, frame }, MAX_GUEST_FRAME_BYTES)).await.unwrap();
}

/// The next frame that is not a ping.
async fn hear(stream: &mut UnixStream) -> Option<HostFrame> {
    loop {
        let mut prefix = [0; 4];
        timeout(LIMIT, stream.read_exact(&mut prefix)).await.unwrap().ok()?;
        let mut body = vec![0; u32::from_le_bytes(prefix) as usize];
        stream.read_exact(&mut body).await.ok()?;
        let mut bytes = prefix.to_vec();
        bytes.extend(body);
        match read_frame(&mut bytes.as_slice(), MAX_HOST_FRAME_BYTES).unwrap() {
            HostFrame::Ping { .. } => {}
            frame => return Some(frame),
        }
    }
}

async fn hear_ack(stream: &mut UnixStream, number: u64) {
    while let Some(frame) = hear(stream).await {
        if frame == (HostFrame::Ack { number }) {
            return;
        }
    }
    panic!("the connection ended before {number} was acknowledged");
}

#[tokio::test]
async fn a_guest_is_configured_once_and_its_life_is_told() {
    let mut rig = Rig::new();
    let mut guest = rig.dial().await;
    say(&mut guest, 0, hello(1, false)).await;
    let Some(HostFrame::Config(config)) = hear(&mut guest).await else {
        panic!("a configuration comes first")
    };
    assert_eq!(config.hostname, "web");
    assert!(config.now_ms > 0, "the guest needs the time");
    say(&mut guest, 1, GuestFrame::Started { boot_ms: 1200, pid: 9 }).await;
    say(&mut guest, 2, log(0, b"hello\n")).await;
    let report = ExitReport { exit: Exit::Code(3), out_of_memory: false, asked: false };
    say(&mut guest, 3, GuestFrame::Exited(report.clone())).await;
    hear_ack(&mut guest, 3).await;
    assert_eq!(rig.event().await, GuestEvent::Hello { kernel: "6.12".into() });
    assert_eq!(rig.event().await, GuestEvent::Started { boot: Duration::from_millis(1200) });
    assert_eq!(rig.event().await, GuestEvent::Exited(report));
    let Some(LogItem::Line(line)) = rig.logs.subscribe(LogStart::Start, false).try_next() else {
        panic!("a line")
    };
    assert_eq!((line.text.as_ref(), line.time_ms, line.source), ("hello", 7, Source::Stdout));
}

#[tokio::test]
async fn frames_repeated_after_a_lost_connection_count_once() {
    let mut rig = Rig::new();
    let mut guest = rig.dial().await;
    say(&mut guest, 0, hello(1, false)).await;
    say(&mut guest, 1, log(0, b"once\n")).await;
    hear_ack(&mut guest, 1).await;
    drop(guest);
    let mut guest = rig.dial().await;
    say(&mut guest, 0, hello(1, true)).await;
    say(&mut guest, 1, log(0, b"once\n")).await;
    say(&mut guest, 2, log(1, b"twice\n")).await;
    hear_ack(&mut guest, 2).await;
    let mut reader = rig.logs.subscribe(LogStart::Start, false);
    assert_eq!(std::iter::from_fn(|| reader.try_next()).count(), 2);
    assert_eq!(rig.event().await, GuestEvent::Hello { kernel: "6.12".into() });
    assert_eq!(rig.event().await, GuestEvent::Disconnected);
    assert_eq!(rig.event().await, GuestEvent::Hello { kernel: "6.12".into() });
}

#[tokio::test]
async fn a_stop_reaches_a_guest_that_dials_later() {
    let rig = Rig::new();
    rig.link.stop(Duration::from_secs(3)).await;
    let mut guest = rig.dial().await;
    say(&mut guest, 0, hello(1, false)).await;
    assert!(matches!(hear(&mut guest).await, Some(HostFrame::Config(_))));
    assert_eq!(hear(&mut guest).await, Some(HostFrame::Stop { grace_ms: 3000 }));
}

#[tokio::test]
async fn a_guest_of_another_version_is_refused_with_a_reason() {
    let mut rig = Rig::new();
    let mut guest = rig.dial().await;
    let GuestFrame::Hello(mut greeting) = hello(1, false) else { unreachable!() };
    greeting.version = 99;
    say(&mut guest, 0, GuestFrame::Hello(greeting)).await;
    let reason = "the guest speaks version 99, this node version 1: use the guest of the same release";
    assert_eq!(hear(&mut guest).await, Some(HostFrame::Refused { reason: reason.into() }));
    assert_eq!(rig.event().await, GuestEvent::Misbehaved { reason: reason.into() });
}

#[tokio::test]
async fn another_boot_id_means_that_the_guest_restarted() {
    let mut rig = Rig::new();
    let mut guest = rig.dial().await;
    say(&mut guest, 0, hello(1, false)).await;
    assert!(matches!(hear(&mut guest).await, Some(HostFrame::Config(_))));
    drop(guest);
    let mut guest = rig.dial().await;
    say(&mut guest, 0, hello(2, false)).await;
    assert!(matches!(rig.event().await, GuestEvent::Hello { .. }));
    assert_eq!(rig.event().await, GuestEvent::Disconnected);
    assert_eq!(rig.event().await, GuestEvent::Restarted);
}

#[tokio::test]
async fn garbage_ends_the_guest_and_not_the_node() {
    let mut rig = Rig::new();
    let mut guest = rig.dial().await;
    guest.write_all(&[0xff; 64]).await.unwrap();
    let GuestEvent::Misbehaved { reason } = rig.event().await else { panic!("garbage must be told") };
    assert!(reason.contains("at most 16384 are allowed"), "{reason}");
    let mut rig = Rig::new();
    let mut guest = rig.dial().await;
    guest.write_all(&[3, 0, 0, 0, 0xff, 0xff, 0xff]).await.unwrap();
    assert_eq!(
        rig.event().await,
        GuestEvent::Misbehaved { reason: "a frame does not decode: Unexpected length of input".into() }
    );
}

#[tokio::test]
async fn a_guest_that_does_not_greet_is_refused() {
    let mut rig = Rig::new();
    let mut guest = rig.dial().await;
    say(&mut guest, 1, log(0, b"x")).await;
    assert_eq!(rig.event().await, GuestEvent::Misbehaved { reason: "it did not say hello first".into() });
}

#[tokio::test]
async fn a_guest_that_falls_silent_is_told() {
    let mut rig = Rig::with_silence(Duration::from_millis(50));
    let mut guest = rig.dial().await;
    say(&mut guest, 0, hello(1, false)).await;
    assert!(matches!(rig.event().await, GuestEvent::Hello { .. }));
    let GuestEvent::Silent { silent } = rig.event().await else { panic!("silence must be told") };
    assert!(silent >= Duration::from_millis(50), "{silent:?}");
    drop(guest);
}

#[tokio::test]
async fn a_health_report_is_bounded() {
    let mut rig = Rig::new();
    let mut guest = rig.dial().await;
    say(&mut guest, 0, hello(1, true)).await;
    let report = HealthReport {
        check: "http".into(),
        state: HealthState::Unhealthy,
        detail: "\u{00e4}".repeat(MAX_TEXT_BYTES),
    };
    say(&mut guest, 1, GuestFrame::Health(report)).await;
    assert!(matches!(rig.event().await, GuestEvent::Hello { .. }));
    let GuestEvent::Health(report) = rig.event().await else { panic!("a report") };
    assert!(report.detail.len() <= MAX_TEXT_BYTES + 3);
}

#[tokio::test]
async fn a_reason_of_the_guest_can_not_control_a_terminal() {
    let mut rig = Rig::new();
    let mut guest = rig.dial().await;
    say(&mut guest, 0, hello(1, true)).await;
    say(&mut guest, 1, GuestFrame::Failed { step: Step::User, reason: "a\u{1b}[2Jb\nc".into() }).await;
    assert!(matches!(rig.event().await, GuestEvent::Hello { .. }));
    assert_eq!(rig.event().await, GuestEvent::Failed { step: Step::User, reason: "a [2Jb\nc".into() });
}

#[tokio::test(start_paused = true)]
async fn output_beyond_the_rate_has_to_wait() {
    let mut budget = Budget::new(1000, 2000);
    assert_eq!(budget.take(2000), Duration::ZERO, "a burst is free");
    assert_eq!(budget.take(500), Duration::from_millis(500));
    tokio::time::advance(Duration::from_millis(500)).await;
    assert_eq!(budget.take(1000), Duration::from_secs(1));
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(budget.take(2000), Duration::ZERO, "rest fills the burst and no more");
    assert_eq!(budget.take(1), Duration::from_millis(1));
}

#[test]
fn frames_are_cut_wherever_the_stream_cuts_them() {
    let mut bytes = encode(&GuestEnvelope { number: 0, frame: hello(1, false) }, MAX_GUEST_FRAME_BYTES);
    bytes.extend(encode(&GuestEnvelope { number: 1, frame: log(0, b"abc") }, MAX_GUEST_FRAME_BYTES));
    for cut in 0..bytes.len() {
        let mut reader = FrameReader::default();
        let mut frames = 0;
        for part in [&bytes[..cut], &bytes[cut..]] {
            reader.buffer.extend_from_slice(part);
            while reader.cut().unwrap().is_some() {
                frames += 1;
            }
        }
        assert_eq!((frames, reader.buffer.len()), (2, 0), "cut at {cut}");
    }
}
