//! Stands in for cloud-hypervisor and virtiofsd in `tests/owner.rs`: the same command line, the same REST API
//! on its standard input, a "guest" that dials the host and speaks the real protocol. What it does wrong is
//! written in the initramfs (before hello) and in the guest's command (after it).
//!
//! It is its own jail helper, like the node's binary.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use croft_microvm::wire::{
    Exit, ExitReport, GuestConfig, GuestEnvelope, GuestFrame, GuestHello, HealthReport, HealthState,
    HostFrame, LogChunk, MAX_GUEST_FRAME_BYTES, MAX_HOST_FRAME_BYTES, PROTOCOL_VERSION, Stream, read_frame,
    write_frame,
};

/// The API takes connections and answers no more.
static HANGING: AtomicBool = AtomicBool::new(false);

fn main() {
    croft_microvm::jail::maybe_enter();
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    if std::env::args().any(|argument| argument == "--shared-dir=/share") {
        return virtiofsd(&listener);
    }
    assert!(std::env::args().any(|argument| argument == "--api-socket"), "unknown command line");
    let fault = fs::read_to_string("/initramfs").unwrap();
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        if HANGING.load(Ordering::SeqCst) {
            std::mem::forget(stream);
        } else {
            answer(stream, fault.trim());
        }
    }
}

/// Ends with the code that its client writes, as a crashing virtiofsd would.
fn virtiofsd(listener: &UnixListener) {
    let mut code = [0];
    listener.accept().unwrap().0.read_exact(&mut code).unwrap();
    eprintln!("virtiofsd: something broke");
    std::process::exit(i32::from(code[0]));
}

fn answer(mut stream: UnixStream, fault: &str) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let head = loop {
        let count = stream.read(&mut buffer).unwrap();
        request.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                break head.to_owned();
            }
        }
        assert!(count > 0, "the request ends early");
    };
    let reply = |stream: &mut UnixStream, status: &str, body: &str| {
        write!(stream, "HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    };
    match head.split(' ').nth(1).unwrap() {
        "/api/v1/vm.boot" if fault == "die at boot" => {
            eprintln!("thread 'vmm' panicked: no such thing");
            std::process::exit(101);
        }
        "/api/v1/vm.boot" if fault == "refuse to boot" => {
            reply(&mut stream, "500", "Error booting: /disks/1 is locked by another process");
        }
        "/api/v1/vm.boot" => {
            reply(&mut stream, "204", "");
            let fault = fault.to_owned();
            std::thread::spawn(move || guest(&fault));
        }
        "/api/v1/vmm.shutdown" => {
            reply(&mut stream, "204", "");
            std::process::exit(0);
        }
        "/api/v1/vm.create" => reply(&mut stream, "204", ""),
        "/api/v1/vmm.ping" => reply(&mut stream, "200", "{\"version\":\"fake\"}"),
        other => reply(&mut stream, "404", other),
    }
}

struct Guest {
    stream: UnixStream,
    number: u64,
}

impl Guest {
    fn dial(boot_id: u8) -> Self {
        let stream = UnixStream::connect("/run/vsock.sock_1024").unwrap();
        let mut guest = Self { stream, number: 0 };
        guest.send(GuestFrame::Hello(GuestHello {
            version: PROTOCOL_VERSION,
            boot_id: [boot_id; 16],
            configured: false,
            boot_ms: 5,
            kernel: "fake".into(),
        }));
        guest
    }

    fn send(&mut self, frame: GuestFrame) {
        let envelope = GuestEnvelope { number: self.number, frame };
        self.number += 1;
        write_frame(&mut self.stream, &envelope, MAX_GUEST_FRAME_BYTES).unwrap();
    }

    fn log(&mut self, text: &str) {
        let bytes = format!("{text}\n").into_bytes();
        self.send(GuestFrame::Log(LogChunk {
            stream: Stream::Stdout,
            sequence: self.number,
            time_ms: 1,
            bytes,
        }));
    }

    fn receive(&mut self) -> HostFrame {
        read_frame(&mut self.stream, MAX_HOST_FRAME_BYTES).unwrap()
    }

    fn config(&mut self) -> GuestConfig {
        loop {
            if let HostFrame::Config(config) = self.receive() {
                return *config;
            }
        }
    }

    /// Answers pings until the host asks to stop.
    fn until_stop(&mut self) {
        loop {
            match self.receive() {
                HostFrame::Ping { nonce } => self.send(GuestFrame::Pong { nonce }),
                HostFrame::Stop { .. } => return,
                _ => {}
            }
        }
    }

    /// As the real one: report, be acknowledged, power off.
    fn exit(&mut self, code: u8, asked: bool) -> ! {
        self.send(GuestFrame::Exited(ExitReport { exit: Exit::Code(code), out_of_memory: false, asked }));
        let last = self.number - 1;
        while self.receive() != (HostFrame::Ack { number: last }) {}
        std::process::exit(0);
    }
}

fn guest(fault: &str) {
    let mut console = fs::OpenOptions::new().write(true).open("/run/console").unwrap();
    console.write_all(b"fake kernel is booting\n").unwrap();
    if fault == "no hello" {
        console.write_all(b"Kernel panic - not syncing: no root\n").unwrap();
        return;
    }
    let mut guest = Guest::dial(1);
    let config = guest.config();
    let words: Vec<&str> = config.argv.iter().map(String::as_str).collect();
    guest.send(GuestFrame::Started { boot_ms: 7, pid: 2 });
    match words.as_slice() {
        ["run"] => {
            guest.log("it runs");
            guest.until_stop();
            guest.log("it was asked to stop");
            guest.exit(0, true);
        }
        ["exit", code] => guest.exit(code.parse().unwrap(), false),
        ["die"] => {
            eprintln!("thread 'vcpu0' panicked: out of luck");
            std::process::exit(101);
        }
        ["hang"] => {
            HANGING.store(true, Ordering::SeqCst);
            guest.until_stop();
        }
        ["silent"] => std::thread::sleep(Duration::from_secs(3600)),
        ["ignore-stop"] => loop {
            guest.until_stop();
        },
        ["reboot"] => {
            drop(guest);
            Guest::dial(2).until_stop();
        }
        ["kill-helper"] => {
            UnixStream::connect("/run/fs0.sock").unwrap().write_all(&[3]).unwrap();
            guest.until_stop();
        }
        ["unhealthy"] => {
            for (check, state) in [("unknown", HealthState::Unhealthy), ("http", HealthState::Unhealthy)] {
                let report = HealthReport { check: check.into(), state, detail: "status 500".into() };
                guest.send(GuestFrame::Health(report));
            }
            guest.until_stop();
            guest.exit(0, true);
        }
        ["spam"] => {
            for number in 0..20_000 {
                guest.log(&format!("line {number} {}", "x".repeat(100)));
                // As the real guest does, which keeps a window.
                if number % 32 == 0 {
                    let last = guest.number - 1;
                    while guest.receive() != (HostFrame::Ack { number: last }) {}
                }
            }
            guest.exit(0, false);
        }
        ["inspect"] => {
            for fact in facts() {
                guest.log(&fact);
            }
            guest.exit(0, false);
        }
        other => panic!("unknown script {other:?}"),
    }
}

/// What a taken-over VMM would see.
fn facts() -> Vec<String> {
    let listing = |path: &str| {
        let mut names: Vec<String> = match fs::read_dir(path) {
            Ok(entries) => {
                entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            }
            Err(error) => vec![error.kind().to_string()],
        };
        names.sort();
        names.join(" ")
    };
    let denied =
        |result: std::io::Result<()>| result.map_or_else(|error| error.kind().to_string(), |()| "ok".into());
    vec![
        format!("user {} {}", nix::unistd::getuid(), nix::unistd::geteuid()),
        format!("groups {}", nix::unistd::getgroups().unwrap().len()),
        format!("pid {}", std::process::id()),
        format!("environment {}", std::env::vars().count()),
        format!("root {}", listing("/")),
        format!("devices {}", listing("/dev")),
        format!("run {}", listing("/run")),
        format!("host name {}", nix::unistd::gethostname().unwrap().to_string_lossy()),
        format!("write root {}", denied(fs::write("/x", "x"))),
        format!("write image {}", denied(fs::write("/disks/0", "x"))),
        format!(
            "write disk {}",
            denied(
                fs::OpenOptions::new()
                    .write(true)
                    .open("/disks/1")
                    .and_then(|mut disk| disk.write_all(b"written by the VM"))
            )
        ),
        format!("become root {}", nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).is_err()),
        format!("new namespace {:?}", nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)),
        format!("null {}", denied(fs::write("/dev/null", "x"))),
    ]
}
