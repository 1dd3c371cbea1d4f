//! The host's end of the connection to a guest.
//!
//! ```text
//! listening ──> greeted (hello) ──> configured ──> ... ──> exited or failed
//!     ▲             │ another boot id, another version, garbage: told to the owner
//!     └─────────────┘ connection lost: the guest dials again and repeats what was not acknowledged
//! ```
//!
//! One task per VM. Everything that comes from the guest is hostile until it is decoded and bounded.
//!
//! Must never buffer more than a frame beyond its limit, and never let a guest keep the node busy: output
//! beyond [`LOG_BYTES_PER_SECOND`] is taken later, which makes the guest drop it.

use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_guest::wire::{
    ExitReport, FrameError, GuestConfig, GuestEnvelope, GuestFrame, GuestHello, HealthReport, HostFrame,
    MAX_GUEST_FRAME_BYTES, MAX_HOST_FRAME_BYTES, PING_INTERVAL_MS, PROTOCOL_VERSION, Step, checked_length,
    decode, encode, shorten,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::clock::wall_ms;
use crate::logs::{Logs, Source};

/// What the node takes from one guest. A guest that writes more loses the rest.
const LOG_BYTES_PER_SECOND: u64 = 2 << 20;
/// Output that may come at once.
const LOG_BURST_BYTES: u64 = 4 << 20;
/// Between two connections of a guest.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// A guest that does not take a small frame within this time is gone.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// What the owner of the VM learns from its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GuestEvent {
    /// A connection begins.
    Hello {
        kernel: String,
    },
    /// A connection ended, and everything that came over it was told before.
    Disconnected,
    Started {
        boot: Duration,
    },
    Health(HealthReport),
    Exited(ExitReport),
    Failed {
        step: Step,
        reason: String,
    },
    /// Another boot id: the kernel started again underneath.
    Restarted,
    /// It can't be worked with.
    Misbehaved {
        reason: String,
    },
    /// Nothing heard for too long, after the first hello.
    Silent {
        silent: Duration,
    },
}

/// Why the socket for a guest could not be made.
#[derive(Debug, thiserror::Error)]
#[error("can't listen for the guest on {path}")]
pub(crate) struct ListenError {
    path: PathBuf,
    source: io::Error,
}

/// The owner's handle. Dropping it ends the task.
#[derive(Debug)]
pub(crate) struct GuestLink {
    pub(crate) events: mpsc::Receiver<GuestEvent>,
    stop: mpsc::Sender<Duration>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for GuestLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl GuestLink {
    /// Listens on `path`, which only `user` (the VMM) may dial.
    pub(crate) fn listen(
        path: &Path,
        user: u32,
        config: GuestConfig,
        logs: Logs,
        silence: Duration,
    ) -> Result<Self, ListenError> {
        let failed = |source| ListenError { path: path.to_owned(), source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        chown(path, Some(user), Some(user)).map_err(failed)?;
        // Events are few, and the owner always reads them.
        let (events_sender, events) = mpsc::channel(64);
        let (stop, stop_receiver) = mpsc::channel(4);
        let session = Session {
            config,
            logs,
            events: events_sender,
            boot_id: None,
            handled: 0,
            stopping: None,
            silence,
            last_heard: None,
            budget: Budget::new(LOG_BYTES_PER_SECOND, LOG_BURST_BYTES),
        };
        let task = tokio::spawn(serve(listener, session, stop_receiver));
        Ok(Self { events, stop, task })
    }

    /// Asks the guest to stop its workload; repeated on every new connection.
    pub(crate) async fn stop(&self, grace: Duration) {
        // Fails only when the task is gone, and the guest with it.
        let _ = self.stop.send(grace).await;
    }
}

/// What outlives a connection.
struct Session {
    config: GuestConfig,
    logs: Logs,
    events: mpsc::Sender<GuestEvent>,
    boot_id: Option<[u8; 16]>,
    /// Highest number of a frame that was handled.
    handled: u64,
    stopping: Option<Duration>,
    silence: Duration,
    last_heard: Option<Instant>,
    budget: Budget,
}

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the guest does not read")]
    Stalled,
    /// Nothing more is expected of this guest.
    #[error("the owner was told")]
    Finished,
}

async fn serve(listener: UnixListener, mut session: Session, mut stop: mpsc::Receiver<Duration>) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a guest");
                    sleep(RECONNECT_PAUSE).await;
                    continue;
                }
            },
            Some(grace) = stop.recv() => {
                session.stopping = Some(grace);
                continue;
            }
            () = session.silent() => return session.tell_silence().await,
        };
        match session.converse(stream, &mut stop).await {
            Lost::Finished => return,
            Lost::Frame(FrameError::Closed) => {}
            Lost::Frame(error @ (FrameError::TooLong { .. } | FrameError::Malformed(_))) => {
                return session.tell(GuestEvent::Misbehaved { reason: crate::error_chain(&error) }).await;
            }
            error => tracing::debug!(error = crate::error_chain(&error), "guest connection lost"),
        }
        session.tell(GuestEvent::Disconnected).await;
        sleep(RECONNECT_PAUSE).await;
    }
}

impl Session {
    async fn tell(&self, event: GuestEvent) {
        // Fails only when the owner is gone.
        let _ = self.events.send(event).await;
    }

    /// Ends when the guest was silent for too long; never before its first hello.
    fn silent(&self) -> impl Future<Output = ()> + use<> {
        let deadline = self.last_heard.map(|heard| heard + self.silence);
        async move {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        }
    }

    async fn tell_silence(&self) {
        let silent = self.last_heard.map_or(self.silence, |heard| heard.elapsed());
        self.tell(GuestEvent::Silent { silent }).await;
    }

    async fn converse(&mut self, mut stream: UnixStream, stop: &mut mpsc::Receiver<Duration>) -> Lost {
        let mut reader = FrameReader::default();
        let mut ping = interval(Duration::from_millis(PING_INTERVAL_MS));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut greeted = false;
        let mut nonce = 0;
        let first_hello = Instant::now() + self.silence;
        loop {
            let step = tokio::select! {
                frame = reader.next(&mut stream) => match frame {
                    Ok(envelope) => {
                        self.last_heard = Some(Instant::now());
                        let more = reader.has_frame();
                        self.handle(envelope, &mut stream, &mut greeted, more).await
                    }
                    Err(error) => Err(error.into()),
                },
                _ = ping.tick(), if greeted => {
                    nonce += 1;
                    send(&mut stream, &HostFrame::Ping { nonce }).await
                }
                Some(grace) = stop.recv() => {
                    self.stopping = Some(grace);
                    if greeted { self.send_stop(&mut stream, grace).await } else { Ok(()) }
                }
                () = self.silent() => {
                    self.tell_silence().await;
                    Err(Lost::Finished)
                }
                () = sleep_until(first_hello), if !greeted => Err(Lost::Stalled),
            };
            if let Err(lost) = step {
                return lost;
            }
        }
    }

    async fn send_stop(&self, stream: &mut UnixStream, grace: Duration) -> Result<(), Lost> {
        send(stream, &HostFrame::Stop { grace_ms: grace.as_millis() as u64 }).await
    }

    /// Handles one frame; acknowledges when no further one waits in the buffer.
    async fn handle(
        &mut self,
        envelope: GuestEnvelope,
        stream: &mut UnixStream,
        greeted: &mut bool,
        more: bool,
    ) -> Result<(), Lost> {
        let GuestEnvelope { number, frame } = envelope;
        let first = !std::mem::replace(greeted, true);
        match frame {
            GuestFrame::Hello(hello) if first => return self.greet(hello, stream).await,
            // Each hello costs the host a configuration.
            GuestFrame::Hello(_) => return self.give_up("it said hello twice").await,
            _ if first => return self.give_up("it did not say hello first").await,
            _ => {}
        }
        // A repeated frame was handled over an earlier connection.
        if number > self.handled {
            self.handled = number;
            self.take(frame).await;
        }
        if more { Ok(()) } else { send(stream, &HostFrame::Ack { number: self.handled }).await }
    }

    async fn give_up(&self, reason: &str) -> Result<(), Lost> {
        self.tell(GuestEvent::Misbehaved { reason: reason.to_owned() }).await;
        Err(Lost::Finished)
    }

    async fn greet(&mut self, hello: GuestHello, stream: &mut UnixStream) -> Result<(), Lost> {
        if hello.version != PROTOCOL_VERSION {
            let reason = format!(
                "the guest speaks version {}, this node version {PROTOCOL_VERSION}: use the guest of the same release",
                hello.version
            );
            send(stream, &HostFrame::Refused { reason: reason.clone() }).await?;
            self.tell(GuestEvent::Misbehaved { reason }).await;
            return Err(Lost::Finished);
        }
        match self.boot_id {
            Some(known) if known != hello.boot_id => {
                self.tell(GuestEvent::Restarted).await;
                return Err(Lost::Finished);
            }
            _ => self.boot_id = Some(hello.boot_id),
        }
        let kernel = hello.kernel.chars().filter(char::is_ascii_graphic).take(64).collect();
        self.tell(GuestEvent::Hello { kernel }).await;
        if !hello.configured {
            let config = GuestConfig { now_ms: wall_ms(), ..self.config.clone() };
            send(stream, &HostFrame::Config(Box::new(config))).await?;
        }
        match self.stopping {
            Some(grace) => self.send_stop(stream, grace).await,
            None => Ok(()),
        }
    }

    async fn take(&mut self, frame: GuestFrame) {
        let event = match frame {
            GuestFrame::Log(chunk) => {
                self.logs.push(chunk.stream.into(), chunk.time_ms, &chunk.bytes);
                // Before the acknowledgement: this is what slows the guest down.
                let wait = self.budget.take(chunk.bytes.len() as u64);
                // Even a timer of zero takes a millisecond.
                if !wait.is_zero() {
                    sleep(wait).await;
                }
                return;
            }
            GuestFrame::DroppedLogs { chunks, bytes } => {
                let text =
                    format!("{chunks} pieces of output, {bytes} bytes, were dropped: it writes too fast\n");
                self.logs.push(Source::System, wall_ms(), text.as_bytes());
                return;
            }
            GuestFrame::Pong { .. } | GuestFrame::Hello(_) => return,
            GuestFrame::Started { boot_ms, .. } => {
                GuestEvent::Started { boot: Duration::from_millis(boot_ms) }
            }
            GuestFrame::Health(mut report) => {
                report.detail = plain(&report.detail);
                GuestEvent::Health(report)
            }
            GuestFrame::Exited(report) => GuestEvent::Exited(report),
            GuestFrame::Failed { step, reason } => GuestEvent::Failed { step, reason: plain(&reason) },
        };
        self.tell(event).await;
    }
}

/// A text of the guest's for the node's own messages: bounded, and without control over a terminal.
fn plain(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    shorten(&text)
}

async fn send(stream: &mut UnixStream, frame: &HostFrame) -> Result<(), Lost> {
    let bytes = encode(frame, MAX_HOST_FRAME_BYTES);
    Ok(timeout(WRITE_LIMIT, stream.write_all(&bytes)).await.map_err(|_| Lost::Stalled)??)
}

/// Cuts frames out of a stream. Dropping a pending read loses nothing.
#[derive(Debug, Default)]
struct FrameReader {
    buffer: Vec<u8>,
}

impl FrameReader {
    async fn next(&mut self, stream: &mut UnixStream) -> Result<GuestEnvelope, FrameError> {
        let mut chunk = [0_u8; 4096];
        loop {
            if let Some(envelope) = self.cut()? {
                return Ok(envelope);
            }
            match stream.read(&mut chunk).await.map_err(FrameError::Io)? {
                0 => return Err(FrameError::Closed),
                count => self.buffer.extend_from_slice(&chunk[..count]),
            }
        }
    }

    fn length(&self) -> Result<Option<usize>, FrameError> {
        match self.buffer.first_chunk::<4>() {
            Some(prefix) => checked_length(*prefix, MAX_GUEST_FRAME_BYTES).map(Some),
            None => Ok(None),
        }
    }

    fn cut(&mut self) -> Result<Option<GuestEnvelope>, FrameError> {
        let Some(length) = self.length()? else { return Ok(None) };
        let Some(body) = self.buffer.get(4..4 + length) else { return Ok(None) };
        let envelope = decode(body)?;
        self.buffer.drain(..4 + length);
        Ok(Some(envelope))
    }

    /// True when a whole frame waits.
    fn has_frame(&self) -> bool {
        self.length().ok().flatten().is_some_and(|length| self.buffer.len() >= 4 + length)
    }
}

/// For [`crate::fuzzing`]: the frames that a guest's bytes hold, and what is left of them.
pub(crate) fn frames_of(bytes: &[u8]) -> Result<(Vec<GuestEnvelope>, usize), FrameError> {
    let mut reader = FrameReader { buffer: bytes.to_vec() };
    let mut frames = Vec::new();
    while let Some(frame) = reader.cut()? {
        frames.push(frame);
    }
    Ok((frames, reader.buffer.len()))
}

/// A token bucket that answers how long to wait.
#[derive(Debug)]
struct Budget {
    per_second: u64,
    burst: u64,
    available: u64,
    since: Instant,
}

impl Budget {
    fn new(per_second: u64, burst: u64) -> Self {
        Self { per_second, burst, available: burst, since: Instant::now() }
    }

    fn take(&mut self, amount: u64) -> Duration {
        let now = Instant::now();
        let earned = now.duration_since(self.since).as_millis() as u64 * self.per_second / 1000;
        self.available = (self.available + earned).min(self.burst);
        self.since = now;
        if amount <= self.available {
            self.available -= amount;
            return Duration::ZERO;
        }
        let missing = amount - self.available;
        self.available = 0;
        let wait = Duration::from_millis(missing * 1000 / self.per_second);
        // What is earned while waiting is what was missing.
        self.since = now + wait;
        wait
    }
}

#[cfg(test)]
mod tests;
