//! The connection to the host, kept alive for as long as the guest runs.
//!
//! ```text
//! dialling ──> greeted ──> connected ──(error, or nothing heard for HOST_SILENCE_MS)──> dialling
//! ```
//!
//! Two threads: the reader dials, greets and reads; the writer sends what the [`Outbox`] releases.
//!
//! Must never make a caller wait: everybody else only puts frames into the outbox.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use croft_guest::outbox::Outbox;
use croft_guest::wire::{
    CONTROL_PORT, FrameError, GuestConfig, GuestEnvelope, GuestFrame, GuestHello, HOST_CID, HOST_SILENCE_MS,
    HostFrame, MAX_GUEST_FRAME_BYTES, MAX_HOST_FRAME_BYTES, Stream, encode, read_frame,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::power::{boot_ms, say, wall_ms};

/// Output that waits for the host; more would take memory from the workload.
const MAX_WAITING_LOG_BYTES: usize = 256 * 1024;
/// Frames are collected into writes of this size: each write costs the VMM an exit and the host a wake-up.
const BATCH_BYTES: usize = 16 * 1024;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(2);

/// What the host wants.
#[derive(Debug)]
pub(crate) enum Request {
    Config(Box<GuestConfig>),
    Stop { grace: Duration },
    Refused { reason: String },
}

/// Opens a connection; tests use other sockets than vsock.
pub(crate) type Dial = Box<dyn FnMut() -> io::Result<OwnedFd> + Send>;

/// Dials the host's control port.
pub(crate) fn vsock() -> Dial {
    Box::new(|| {
        let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        connect(fd.as_raw_fd(), &VsockAddr::new(HOST_CID, CONTROL_PORT))?;
        Ok(fd)
    })
}

/// Handle to the connection, for everybody who has something to tell.
#[derive(Clone)]
pub(crate) struct Host {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    outbox: Outbox,
    connection: Option<Arc<OwnedFd>>,
    /// Counts connections, so that the writer notices a new one.
    generation: u64,
    configured: bool,
}

impl Host {
    /// Starts both threads. Requests of the host arrive at `requests`.
    pub(crate) fn start(
        dial: Dial,
        boot_id: [u8; 16],
        kernel: String,
        requests: Sender<Request>,
    ) -> io::Result<Self> {
        let state = State {
            outbox: Outbox::new(MAX_WAITING_LOG_BYTES),
            connection: None,
            generation: 0,
            configured: false,
        };
        let host = Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) };
        let reader = Reader { host: host.clone(), dial, boot_id, kernel, requests };
        std::thread::Builder::new().name("host-reader".into()).spawn(move || reader.run())?;
        let writer = host.clone();
        std::thread::Builder::new().name("host-writer".into()).spawn(move || writer.write_for_ever())?;
        Ok(host)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues anything but output.
    pub(crate) fn tell(&self, frame: GuestFrame) {
        self.lock().outbox.push(frame);
        self.shared.changed.notify_all();
    }

    /// Queues output; drops the oldest when the host is too slow.
    pub(crate) fn log(&self, stream: Stream, bytes: &[u8]) {
        self.lock().outbox.push_log(stream, wall_ms(), bytes);
        self.shared.changed.notify_all();
    }

    /// Waits until the host has handled everything, at most for `limit`. True when it has.
    pub(crate) fn flush(&self, limit: Duration) -> bool {
        let waiting = |state: &mut State| !state.outbox.is_empty();
        let waited = self.shared.changed.wait_timeout_while(self.lock(), limit, waiting);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn write_for_ever(&self) {
        let mut state = self.lock();
        loop {
            let batch = match state.connection {
                Some(_) => next_batch(&mut state.outbox),
                None => Vec::new(),
            };
            if batch.is_empty() {
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let Some(connection) = state.connection.clone() else { continue };
            let generation = state.generation;
            drop(state);
            let result = write_all(&connection, &batch);
            state = self.lock();
            if let Err(error) = result
                && state.generation == generation
            {
                say(&format!("writing to the host: {error}"));
                // The reader notices and dials again; what was on the way is repeated then.
                let _ = rustix::net::shutdown(&connection, rustix::net::Shutdown::Both);
                state.connection = None;
            }
        }
    }
}

fn next_batch(outbox: &mut Outbox) -> Vec<u8> {
    let mut batch = Vec::new();
    while batch.len() < BATCH_BYTES {
        let Some(frame) = outbox.next_frame() else { break };
        batch.extend_from_slice(&frame);
    }
    batch
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::net::send(fd, bytes, rustix::net::SendFlags::NOSIGNAL)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Reads from a shared descriptor.
struct ReadHalf<'a>(&'a OwnedFd);

impl io::Read for ReadHalf<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

struct Reader {
    host: Host,
    dial: Dial,
    boot_id: [u8; 16],
    kernel: String,
    requests: Sender<Request>,
}

impl Reader {
    fn run(mut self) {
        let mut delay = RETRY_FIRST;
        loop {
            let started = Instant::now();
            match self.connect_and_read() {
                Ok(never) => match never {},
                Err(error) => say(&format!("host: {}", chain(&error))),
            }
            self.host.lock().connection = None;
            // A connection that held for a while was a good one: start over with short delays.
            if started.elapsed() > Duration::from_secs(10) {
                delay = RETRY_FIRST;
            }
            std::thread::sleep(delay);
            delay = (delay * 2).min(RETRY_LONGEST);
        }
    }

    fn connect_and_read(&mut self) -> Result<std::convert::Infallible, FrameError> {
        let fd = Arc::new((self.dial)().map_err(FrameError::Io)?);
        let silence = Some(Duration::from_millis(HOST_SILENCE_MS));
        set_socket_timeout(&*fd, Timeout::Recv, silence).map_err(|error| FrameError::Io(error.into()))?;
        let hello = GuestHello {
            version: croft_guest::wire::PROTOCOL_VERSION,
            boot_id: self.boot_id,
            configured: self.host.lock().configured,
            boot_ms: boot_ms(),
            kernel: self.kernel.clone(),
        };
        let hello = GuestEnvelope { number: 0, frame: GuestFrame::Hello(hello) };
        write_all(&fd, &encode(&hello, MAX_GUEST_FRAME_BYTES)).map_err(FrameError::Io)?;
        {
            let mut state = self.host.lock();
            state.outbox.reconnected();
            state.connection = Some(Arc::clone(&fd));
            state.generation += 1;
        }
        self.host.shared.changed.notify_all();
        loop {
            let frame: HostFrame = read_frame(&mut ReadHalf(&fd), MAX_HOST_FRAME_BYTES)?;
            self.handle(frame);
        }
    }

    fn handle(&self, frame: HostFrame) {
        let request = match frame {
            HostFrame::Ack { number } => {
                self.host.lock().outbox.ack(number);
                self.host.shared.changed.notify_all();
                return;
            }
            HostFrame::Ping { nonce } => return self.host.tell(GuestFrame::Pong { nonce }),
            HostFrame::Config(config) => {
                let first = !std::mem::replace(&mut self.host.lock().configured, true);
                if !first {
                    return say("a second configuration was ignored");
                }
                Request::Config(config)
            }
            HostFrame::Stop { grace_ms } => Request::Stop { grace: Duration::from_millis(grace_ms) },
            HostFrame::Refused { reason } => Request::Refused { reason },
        };
        // Only fails when the guest is about to power off.
        let _ = self.requests.send(request);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use croft_guest::wire::write_frame;

    const LIMIT: Duration = Duration::from_secs(30);

    struct Rig {
        _dir: tempfile::TempDir,
        listener: UnixListener,
        host: Host,
        requests: Receiver<Request>,
    }

    impl Rig {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("socket");
            let listener = UnixListener::bind(&path).unwrap();
            let (sender, requests) = channel();
            let dial: Dial = Box::new(move || Ok(UnixStream::connect(&path)?.into()));
            let host = Host::start(dial, [1; 16], "6.12".into(), sender).unwrap();
            Self { _dir: dir, listener, host, requests }
        }

        fn accept(&self) -> (UnixStream, GuestHello) {
            let mut stream = self.listener.accept().unwrap().0;
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let GuestFrame::Hello(hello) = read(&mut stream).frame else { panic!("hello comes first") };
            (stream, hello)
        }
    }

    fn read(stream: &mut UnixStream) -> GuestEnvelope {
        read_frame(stream, MAX_GUEST_FRAME_BYTES).unwrap()
    }

    fn write(stream: &mut UnixStream, frame: &HostFrame) {
        write_frame(stream, frame, MAX_HOST_FRAME_BYTES).unwrap();
    }

    #[test]
    fn a_lost_connection_is_dialled_again_and_nothing_is_lost() {
        let rig = Rig::new();
        let (mut first, hello) = rig.accept();
        assert!(!hello.configured);
        write(&mut first, &HostFrame::Config(Box::default()));
        assert!(matches!(rig.requests.recv_timeout(LIMIT).unwrap(), Request::Config(_)));
        rig.host.tell(GuestFrame::Started { boot_ms: 1, pid: 2 });
        assert_eq!(read(&mut first).number, 1);
        drop(first);
        rig.host.log(Stream::Stdout, b"x");
        let (mut second, hello) = rig.accept();
        assert!(hello.configured, "the host must know that it need not configure again");
        assert_eq!(hello.boot_id, [1; 16]);
        let again = read(&mut second);
        assert_eq!((again.number, again.frame), (1, GuestFrame::Started { boot_ms: 1, pid: 2 }));
        assert_eq!(read(&mut second).number, 2);
        write(&mut second, &HostFrame::Ack { number: 2 });
        assert!(rig.host.flush(LIMIT));
    }

    #[test]
    fn pings_are_answered_and_stop_reaches_the_supervisor() {
        let rig = Rig::new();
        let (mut stream, _) = rig.accept();
        write(&mut stream, &HostFrame::Ping { nonce: 42 });
        assert_eq!(read(&mut stream).frame, GuestFrame::Pong { nonce: 42 });
        write(&mut stream, &HostFrame::Stop { grace_ms: 1500 });
        let Request::Stop { grace } = rig.requests.recv_timeout(LIMIT).unwrap() else {
            panic!("stop expected")
        };
        assert_eq!(grace, Duration::from_millis(1500));
    }

    #[test]
    fn a_host_that_does_not_read_never_blocks_the_workload() {
        let rig = Rig::new();
        let (mut stream, _) = rig.accept();
        // Far more than socket buffers, window and outbox hold; `log` must return each time.
        let pieces = 5000;
        for _ in 0..pieces {
            rig.host.log(Stream::Stdout, &[b'x'; 1000]);
        }
        assert!(!rig.host.flush(Duration::ZERO));
        let (mut taken, mut dropped) = (0, 0);
        while taken + dropped < pieces * 1000 {
            let envelope = read(&mut stream);
            match envelope.frame {
                GuestFrame::Log(chunk) => taken += chunk.bytes.len() as u64,
                GuestFrame::DroppedLogs { bytes, .. } => dropped += bytes,
                other => panic!("unexpected {other:?}"),
            }
            write(&mut stream, &HostFrame::Ack { number: envelope.number });
        }
        assert!(dropped > 4_000_000, "most must have been dropped, were {dropped} bytes");
        assert!(rig.host.flush(LIMIT));
    }

    #[test]
    fn garbage_from_the_host_costs_the_connection_only() {
        let rig = Rig::new();
        let (mut first, _) = rig.accept();
        io::Write::write_all(&mut first, &[0xff; 64]).unwrap();
        let (mut second, _) = rig.accept();
        write(&mut second, &HostFrame::Ping { nonce: 1 });
        assert_eq!(read(&mut second).frame, GuestFrame::Pong { nonce: 1 });
    }

    #[test]
    fn a_second_configuration_is_ignored() {
        let rig = Rig::new();
        let (mut stream, _) = rig.accept();
        for _ in 0..2 {
            write(&mut stream, &HostFrame::Config(Box::default()));
        }
        write(&mut stream, &HostFrame::Refused { reason: "end".into() });
        assert!(matches!(rig.requests.recv_timeout(LIMIT).unwrap(), Request::Config(_)));
        assert!(matches!(rig.requests.recv_timeout(LIMIT).unwrap(), Request::Refused { .. }));
    }
}
