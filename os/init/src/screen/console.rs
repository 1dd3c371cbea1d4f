//! The text console `/dev/tty1`, and where the kernel's own messages go meanwhile.
//!
//! With `console=tty0` the kernel prints on whatever console is in the foreground, over the picture. So its messages are
//! sent to the second console, which Alt-F2 shows (TIOCLINUX(2const), `TIOCL_SETKMSGREDIRECT`), and back when the picture
//! ends, so that the reason of a restart is seen. PID 1 does both. They stay on the serial line and in the ring buffer all the while.

use croft_screen::Size;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};
use std::path::Path;

const PICTURE: &str = "/dev/tty1";
const KERNEL_LOG: &str = "/dev/tty2";
/// Number of the console in the foreground, whichever it is.
const FOREGROUND: u8 = 0;
const SECOND: u8 = 2;
/// Of one read of the keyboard: a person types less in a tenth of a second.
const KEYS_BYTES: usize = 256;
/// What is not written yet; a frame of a large console takes a quarter.
const PENDING_MAX_BYTES: usize = 2 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Console {
    terminal: OwnedFd,
    /// Kept open: a console that nobody holds is given up, and its messages with it.
    _kernel_log: Option<OwnedFd>,
    pending: Vec<u8>,
}

impl Console {
    /// `None` where there is no console.
    pub(super) fn open() -> Option<Self> {
        let terminal = open(Path::new(PICTURE)).ok()?;
        let kernel_log = open(Path::new(KERNEL_LOG)).ok();
        Self::of(terminal, kernel_log)
    }

    fn of(terminal: OwnedFd, kernel_log: Option<OwnedFd>) -> Option<Self> {
        // Keys one by one, no echo, no signals.
        let mut mode = tcgetattr(&terminal).ok()?;
        mode.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &mode).ok()?;
        Some(Self { terminal, _kernel_log: kernel_log, pending: Vec::new() })
    }

    pub(super) fn size(&self) -> Size {
        match tcgetwinsize(&self.terminal) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                Size::new(size.ws_col.into(), size.ws_row.into())
            }
            _ => Size::new(80, 25),
        }
    }

    /// What was typed; nothing where nothing was.
    pub(super) fn read(&self) -> Vec<u8> {
        let mut keys = vec![0; KEYS_BYTES];
        let length = rustix::io::read(&self.terminal, &mut keys[..]).unwrap_or(0);
        keys.truncate(length);
        keys
    }

    /// Writes what the console takes now, and keeps the rest.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.pending.len() + bytes.len() <= PENDING_MAX_BYTES {
            self.pending.extend_from_slice(bytes);
        }
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.terminal, &self.pending) {
                Ok(written) => {
                    self.pending.drain(..written);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Nobody can be told.
                Err(_) => self.pending.clear(),
            }
        }
    }

    /// Whether a part of the last frame still waits.
    pub(super) fn is_behind(&self) -> bool {
        !self.pending.is_empty()
    }
}

impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.terminal.as_fd()
    }
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// The kernel prints on the second console from now on. By PID 1, since it takes a capability that the picture does not
/// have. Nothing where there is no console.
pub(super) fn give_to_picture() {
    if let (Ok(terminal), Ok(_allocated)) = (open(Path::new(PICTURE)), open(Path::new(KERNEL_LOG))) {
        redirect(terminal.as_fd(), SECOND);
    }
}

/// The kernel prints on the console in the foreground again. For whoever ends the machine, too: the picture may be gone
/// without a word. Nothing where there is no console.
pub fn give_back() {
    if let Ok(terminal) = open(Path::new(PICTURE)) {
        redirect(terminal.as_fd(), FOREGROUND);
    }
}

#[allow(unsafe_code, reason = "TIOCLINUX has no safe wrapper in rustix or nix")]
fn redirect(terminal: BorrowedFd<'_>, console: u8) {
    /// `TIOCL_SETKMSGREDIRECT` of linux/tiocl.h: the number of a console follows.
    const SET_KMSG_REDIRECT: u8 = 11;
    mod request {
        nix::ioctl_read_bad!(tioclinux, libc::TIOCLINUX, [u8; 2]);
    }
    let mut argument = [SET_KMSG_REDIRECT, console];
    // SAFETY: the descriptor is open, and this subcode reads exactly two bytes, which live until the call returns.
    let redirected =
        unsafe { request::tioclinux(std::os::fd::AsRawFd::as_raw_fd(&terminal), &raw mut argument) };
    // A console that can't do it shows messages over the picture, which is drawn again every minute.
    let _ = redirected;
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A console on the slave's side of a pseudo-terminal, and the master's side.
    pub(crate) fn pair() -> (Console, OwnedFd) {
        let master =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let terminal = open(Path::new(name.to_str().unwrap())).unwrap();
        rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK).unwrap();
        (Console::of(terminal, None).unwrap(), master)
    }

    #[test]
    fn a_console_that_takes_nothing_holds_nobody_up_and_what_waits_is_bounded() {
        let (mut console, master) = pair();
        for _ in 0..64 {
            console.write(&vec![b'x'; 100_000]);
        }
        assert!(console.is_behind());
        assert!(console.pending.len() <= PENDING_MAX_BYTES);
        // Whoever reads gets on; the kernel brings bytes from one side to the other when it likes.
        let before = console.pending.len();
        let mut buffer = [0; 4096];
        while console.pending.len() == before {
            let _ = rustix::io::read(&master, &mut buffer[..]);
            console.flush();
            std::thread::yield_now();
        }
    }

    #[test]
    fn keys_come_one_by_one_and_are_not_echoed() {
        let (console, master) = pair();
        assert_eq!(console.read(), b"");
        rustix::io::write(&master, b"a\x03\r").unwrap();
        assert_eq!(console.read(), b"a\x03\r");
        let mut buffer = [0; 16];
        assert_eq!(rustix::io::read(&master, &mut buffer[..]), Err(Errno::AGAIN));
    }

    #[test]
    fn a_console_without_a_size_is_the_smallest() {
        let (console, _master) = pair();
        assert_eq!(console.size(), Size { columns: 80, rows: 25 });
    }
}
