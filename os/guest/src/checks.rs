//! Health checks: one thread per check asks, [`Tracker`] decides, changes go to the host.
//!
//! Must never outlive its timeout by more than the kernel needs, and never trust what the workload answers:
//! answers are bounded in time and size.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use croft_guest::health::Tracker;
use croft_guest::users::User;
use croft_guest::wire::{Exit, GuestFrame, HealthCheck, HealthReport, HealthState, Probe, shorten};

use crate::host::Host;
use crate::power::say;
use crate::process::{Reaper, signal};

/// A status line and some headers; the rest is not read.
const MAX_ANSWER_BYTES: u64 = 4096;
/// Stack of a checking thread; the default would count against small guests.
const STACK_BYTES: usize = 128 * 1024;

/// What exec checks run as: like the workload itself.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) user: User,
    pub(crate) cwd: String,
    pub(crate) env: Vec<(String, String)>,
}

/// Starts all checks; they end with the guest.
pub(crate) fn start(checks: &[HealthCheck], context: &Context, host: &Host) {
    let started = Instant::now();
    for check in checks {
        let (check, context, host) = (check.clone(), context.clone(), host.clone());
        let name = check.name.clone();
        let thread = std::thread::Builder::new().name("check".into()).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(move || run(&check, &context, &host, started)) {
            say(&format!("health check {name} does not run: {error}"));
        }
    }
}

fn run(check: &HealthCheck, context: &Context, host: &Host, started: Instant) {
    let mut tracker = Tracker::new(check);
    loop {
        let begun = Instant::now();
        let result = probe(&check.probe, Duration::from_millis(u64::from(check.timeout_ms)), context);
        if let Some(state) = tracker.observe(started.elapsed().as_millis() as u64, result.is_ok()) {
            let detail = match (state, &result) {
                (HealthState::Healthy, _) | (_, Ok(())) => String::new(),
                (_, Err(reason)) => shorten(reason),
            };
            host.tell(GuestFrame::Health(HealthReport { check: check.name.clone(), state, detail }));
        }
        let interval = Duration::from_millis(u64::from(check.interval_ms));
        std::thread::sleep(interval.saturating_sub(begun.elapsed()));
    }
}

fn probe(probe: &Probe, timeout: Duration, context: &Context) -> Result<(), String> {
    match probe {
        Probe::Tcp { port } => dial(*port, timeout).map(drop),
        Probe::Http { port, path, status_min, status_max } => {
            let status = http_status(*port, path, timeout)?;
            if (*status_min..=*status_max).contains(&status) {
                Ok(())
            } else {
                Err(format!("GET {path} on port {port} answered {status}"))
            }
        }
        Probe::Exec { argv } => execute(argv, timeout, context),
    }
}

fn dial(port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, timeout)
        .map_err(|error| format!("connecting to port {port}: {error}"))
}

fn http_status(port: u16, path: &str, timeout: Duration) -> Result<u16, String> {
    let deadline = Instant::now() + timeout;
    let mut stream = dial(port, timeout)?;
    let failed = |error: io::Error| format!("GET {path} on port {port}: {error}");
    stream.set_write_timeout(Some(timeout)).map_err(failed)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: croft-health\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && (answer.len() as u64) < MAX_ANSWER_BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("GET {path} on port {port}: no answer within {} ms", timeout.as_millis()));
        }
        stream.set_read_timeout(Some(left)).map_err(failed)?;
        let mut buffer = [0_u8; 512];
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    parse_status(&answer).ok_or_else(|| format!("GET {path} on port {port}: the answer is not HTTP"))
}

/// Reads `HTTP/1.1 200 ...` (RFC 9112, section 4).
fn parse_status(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|byte| *byte == b'\n').next()?).ok()?;
    let mut words = line.trim_end().split(' ');
    if !words.next()?.starts_with("HTTP/1.") {
        return None;
    }
    words.next()?.parse().ok().filter(|status| (100..600).contains(status))
}

fn execute(argv: &[String], timeout: Duration, context: &Context) -> Result<(), String> {
    let running = context
        .reaper
        .spawn_workload(&context.user, &context.cwd, argv, |command| {
            command.env_clear().envs(context.env.iter().map(|(name, value)| (name, value)));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        })
        .map_err(|error| error.0)?;
    match running.exit.recv_timeout(timeout) {
        Ok(Exit::Code(0)) => Ok(()),
        Ok(exit) => Err(format!("{}: {exit}", argv[0])),
        Err(_) => {
            // The helper started a session, so this is the whole group of the check.
            let _ = signal(-running.pid, nix::libc::SIGKILL as u8);
            Err(format!("{}: no result within {} ms", argv[0], timeout.as_millis()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn serve(answer: &'static [u8]) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let mut request = [0_u8; 1024];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(answer);
            }
        });
        port
    }

    #[test]
    fn the_status_of_an_answer_decides() {
        assert_eq!(http_status(serve(b"HTTP/1.1 204 No Content\r\n\r\n"), "/", LIMIT), Ok(204));
        assert_eq!(http_status(serve(b"HTTP/1.0 503\r\n"), "/", LIMIT), Ok(503));
    }

    #[test]
    fn an_answer_that_is_not_http_is_a_failure() {
        for answer in [&b"SSH-2.0-OpenSSH\r\n"[..], b"HTTP/1.1 abc\r\n", b"HTTP/1.1 99999 x\r\n", b""] {
            let error = http_status(serve(answer), "/", LIMIT).unwrap_err();
            assert!(error.ends_with("the answer is not HTTP"), "{error}");
        }
    }

    #[test]
    fn a_silent_server_fails_after_the_timeout_and_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = http_status(port, "/up", Duration::from_millis(20)).unwrap_err();
        assert_eq!(error, format!("GET /up on port {port}: no answer within 20 ms"));
    }

    #[test]
    fn a_closed_port_is_named() {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let error = dial(port, LIMIT).unwrap_err();
        assert!(error.starts_with(&format!("connecting to port {port}: ")), "{error}");
    }
}
