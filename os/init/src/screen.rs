//! The monitor: a process of its own (`/init --screen`) that owns the text console, from the first stages to the end.
//!
//! ```text
//!   kernel log (/dev/kmsg) ── stages of init and node ──┐
//!   node's agent ── status, answers (/run/croft/screen) ┼─> screen ──> /dev/tty1
//!   keyboard (/dev/tty1) ── menu ───────────────────────┘     ├─ restart, switch off: signals to PID 1
//!                                                              └─ orders ──> node's agent
//! ```
//!
//! One owner, so that nobody draws over another; beside PID 1 and the agent, because it shows the reasons of an agent
//! that can't run, because drawing on a slow framebuffer must not hold up either, and because a defect in it costs nothing
//! but the picture. PID 1 starts it again a few times and then lives without it.
//!
//! It must never wait for the console, for the agent or for a key: every descriptor is non-blocking, what is not written
//! yet is at most one frame, and a machine without a console ends this process quietly. Only `/dev/tty1` is a keyboard
//! here, which no serial line and no network reaches.

mod console;
mod keeper;

pub use console::give_back;
pub use keeper::{FLAG, Keeper};

use console::Console;
use croft_screen::wire::{Inbox, MESSAGE_MAX_BYTES, SOCKET, ToAgent, ToScreen, encode};
use croft_screen::{Action, Keys, Menu, Painter, Stages, Status, View, render};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::time::Timespec;
use std::collections::VecDeque;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two looks at the size of the console, and two frames when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// A busy log must not make the framebuffer the busiest device of the machine.
const FRAME_EVERY: Duration = Duration::from_millis(100);
/// After this the whole picture is drawn again: firmware and panels garble consoles.
const WHOLE_EVERY: Duration = Duration::from_secs(60);
/// Records of the kernel log per turn.
const RECORDS_PER_TURN: usize = 256;
/// The kernel's longest record with its dictionary (`CONSOLE_EXT_LOG_MAX`).
const RECORD_BYTES: usize = 8192;
/// Orders that wait for an agent that does not read.
const ORDERS_MAX: usize = 4;

#[derive(Debug, thiserror::Error)]
enum ScreenError {
    #[error("signals can't be received as events")]
    Signals(#[source] nix::Error),
}

/// The whole life of the process.
#[must_use]
pub fn main() -> ExitCode {
    let Some(console) = Console::open() else {
        // No monitor is no error.
        return ExitCode::SUCCESS;
    };
    match Screen::new(console, listen(Path::new(SOCKET)).ok()).map(Screen::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("croft: no picture on the monitor: {}", crate::log::chain(&error));
            ExitCode::FAILURE
        }
    }
}

struct Screen {
    console: Console,
    signals: SignalFd,
    kernel_log: Option<OwnedFd>,
    listener: Option<OwnedFd>,
    agent: Option<Agent>,
    painter: Painter,
    menu: Menu,
    stages: Stages,
    status: Status,
    /// Something has changed since the last frame.
    stale: bool,
    drawn: Instant,
    drawn_whole: Instant,
}

/// The connection of the node's agent; a new one takes the place of the old.
struct Agent {
    socket: OwnedFd,
    inbox: Inbox,
    orders: VecDeque<Vec<u8>>,
}

impl Screen {
    fn new(console: Console, listener: Option<OwnedFd>) -> Result<Self, ScreenError> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block().map_err(ScreenError::Signals)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&mask, flags).map_err(ScreenError::Signals)?;
        let log_flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let now = Instant::now();
        let version = std::fs::read_to_string("/etc/croft/release").unwrap_or_default();
        Ok(Self {
            console,
            signals,
            kernel_log: rustix::fs::open("/dev/kmsg", log_flags, Mode::empty()).ok(),
            listener,
            agent: None,
            painter: Painter::default(),
            menu: Menu::default(),
            stages: Stages::default(),
            status: Status { version, ..Status::default() }.bounded(),
            stale: true,
            drawn: now.checked_sub(TICK).unwrap_or(now),
            drawn_whole: now,
        })
    }

    fn run(mut self) {
        loop {
            self.read_kernel_log();
            self.read_agent();
            self.read_keys();
            self.draw();
            if self.told_to_end() {
                self.console.write(Painter::farewell());
                return;
            }
            self.wait();
        }
    }

    fn wait(&mut self) {
        let pause = if self.stale { FRAME_EVERY } else { TICK };
        let timeout = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: i64::from(pause.subsec_nanos()) };
        let console = if self.console.is_behind() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.console.as_fd(), console),
        ];
        // While a frame is due anyway, more news is no reason to turn faster.
        if !self.stale {
            fds.extend(self.kernel_log.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        }
        fds.extend(self.listener.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        fds.extend(self.agent.iter().map(|agent| {
            let out = if agent.orders.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            PollFd::from_borrowed_fd(agent.socket.as_fd(), PollFlags::IN | out)
        }));
        if let Err(error) = rustix::event::poll(&mut fds, Some(&timeout))
            && error != Errno::INTR
        {
            // Can't happen with valid descriptors; never spin on it.
            std::thread::sleep(TICK);
        }
    }

    fn told_to_end(&self) -> bool {
        matches!(self.signals.read_signal(), Ok(Some(_)))
    }

    fn read_kernel_log(&mut self) {
        let Some(log) = &self.kernel_log else { return };
        let mut record = [0_u8; RECORD_BYTES];
        for _ in 0..RECORDS_PER_TURN {
            match rustix::io::read(log, &mut record[..]) {
                Ok(length) if length > 0 => self.stale |= self.stages.take_record(&record[..length]),
                // Records were overwritten before they were read, or a signal came: go on with the next.
                Err(Errno::PIPE | Errno::INTR) => {}
                Ok(_) | Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.kernel_log = None;
                    return;
                }
            }
        }
    }

    fn read_agent(&mut self) {
        if let Some(listener) = &self.listener
            && let Ok(socket) =
                rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
        {
            self.agent = Some(Agent { socket, inbox: Inbox::default(), orders: VecDeque::new() });
            self.stale = true;
        }
        let Some(agent) = &mut self.agent else { return };
        let Some(messages) = agent.exchange() else {
            self.agent = None;
            self.stale = true;
            return;
        };
        for message in messages {
            self.stale = true;
            match message {
                ToScreen::Status(status) => self.status = *status,
                ToScreen::Answer(text) => self.menu.answer(&text),
            }
        }
    }

    fn read_keys(&mut self) {
        for key in Keys::decode(&self.console.read()) {
            self.stale = true;
            match self.menu.handle(key, &self.status) {
                None => {}
                Some(Action::Restart) => self.ask_init(Signal::SIGINT),
                Some(Action::SwitchOff) => self.ask_init(Signal::SIGUSR2),
                Some(Action::Order(order)) => {
                    let sent = self.agent.as_mut().is_some_and(|agent| agent.order(&ToAgent::Order(order)));
                    if !sent {
                        self.menu.answer("the node's agent does not run now: nothing was done");
                    }
                }
            }
        }
    }

    /// PID 1 takes these for Ctrl-Alt-Del and a request to switch off: an ordered end.
    fn ask_init(&mut self, signal: Signal) {
        if let Err(error) = kill(Pid::from_raw(1), signal) {
            self.menu.answer(&format!("PID 1 can't be told: {error}"));
        }
    }

    fn draw(&mut self) {
        let now = Instant::now();
        self.console.flush();
        // A console that takes no more gets the next frame when it has taken the last.
        if self.console.is_behind() || now.duration_since(self.drawn) < FRAME_EVERY {
            return;
        }
        if now.duration_since(self.drawn_whole) >= WHOLE_EVERY {
            self.painter.forget();
            self.drawn_whole = now;
        }
        let view = View {
            status: &self.status,
            stages: &self.stages,
            menu: &self.menu,
            agent: self.agent.is_some(),
        };
        let frame = render(view, self.console.size());
        let bytes = self.painter.paint(frame);
        self.console.write(&bytes);
        self.stale = false;
        self.drawn = now;
    }
}

impl Agent {
    /// Sends what waits and takes what is there; `None` when the connection is of no use any more.
    fn exchange(&mut self) -> Option<Vec<ToScreen>> {
        while let Some(order) = self.orders.front_mut() {
            match rustix::io::write(&self.socket, order) {
                Ok(written) if written == order.len() => {
                    self.orders.pop_front();
                }
                Ok(written) => {
                    order.drain(..written);
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(_) => return None,
            }
        }
        let mut buffer = vec![0_u8; 64 << 10];
        let mut messages = Vec::new();
        // Bounded by what one message may take: the rest waits for the next turn.
        for _ in 0..MESSAGE_MAX_BYTES / buffer.len() {
            match rustix::io::read(&self.socket, &mut buffer[..]) {
                Ok(0) => return None,
                Ok(length) => self.inbox.push(&buffer[..length]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return None,
            }
            while let Some(message) = self.inbox.next_message().ok()? {
                messages.push(ToScreen::decode(&message).ok()?);
            }
        }
        Some(messages)
    }

    /// Whether the order is on its way.
    fn order(&mut self, order: &ToAgent) -> bool {
        match encode(order) {
            Ok(bytes) if self.orders.len() < ORDERS_MAX => {
                self.orders.push_back(bytes);
                true
            }
            _ => false,
        }
    }
}

/// For root alone.
fn listen(path: &Path) -> Result<OwnedFd, Errno> {
    let _ = std::fs::remove_file(path);
    if let Some(folder) = path.parent() {
        let _ = std::fs::create_dir_all(folder);
    }
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(path)?);
    rustix::process::umask(before);
    bound?;
    rustix::net::listen(&socket, 2)?;
    Ok(socket)
}

#[cfg(test)]
mod tests;
