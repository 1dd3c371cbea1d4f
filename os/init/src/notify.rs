//! The line between node and init: short text messages over a Unix seqpacket socket pair.
//!
//! Init hands one end to node as the file descriptor named by `CROFT_NOTIFY_FD`. Node says `alive` at least every
//! five seconds from its main loop, `ready` when its stages are done, `reboot <reason>` or `poweroff <reason>` to
//! ask for an ordered end. To go on with another kernel it says `load <path>`, reads the answer beside that file, and then
//! `kexec <path>`: in between it can tell the TPM what is about to run, knowing that it will. The hardware watchdog is fed
//! only while these messages come: they must never be sent from a timer or a thread of their own, which would keep a hung
//! node alive.

use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// Name of the environment variable that carries the number of node's end.
pub const NOTIFY_ENV: &str = "CROFT_NOTIFY_FD";

/// Longest message in bytes; a longer reason is cut by the sender and refused by the receiver.
pub const MESSAGE_MAX_BYTES: usize = 512;

/// What node can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The main loop turns.
    Alive,
    /// All stages are done.
    Ready,
    /// Restart the machine in order, for the reason given.
    Reboot(String),
    /// Switch the machine off in order, for the reason given.
    Poweroff(String),
    /// Load the kernel in this file, and leave [`loaded_of`], [`refusal_of`] or [`trouble_of`] it. Nothing
    /// ends.
    Load(PathBuf),
    /// End in order and go on with the kernel in this file, if it is the one that was loaded last; else nothing ends.
    Kexec(PathBuf),
}

/// Kernels are taken from this folder only, which holds what node has checked.
pub const KERNEL_FOLDER: &str = "/run/croft/kernel";

/// An empty file by which init says that a kernel is loaded.
#[must_use]
pub fn loaded_of(kernel: &Path) -> PathBuf {
    kernel.with_extension("loaded")
}

/// Where init says why a kernel was refused, for what it is.
#[must_use]
pub fn refusal_of(kernel: &Path) -> PathBuf {
    kernel.with_extension("refused")
}

/// Where init says why a kernel could not be loaded now, which is no fault of it.
#[must_use]
pub fn trouble_of(kernel: &Path) -> PathBuf {
    kernel.with_extension("trouble")
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseMessageError {
    #[error("message of {0} bytes from node, {MESSAGE_MAX_BYTES} are the limit")]
    TooLong(usize),
    #[error("message from node is not UTF-8")]
    NotUtf8,
    #[error(
        "unknown message {0:?} from node; alive, ready, reboot <reason>, poweroff <reason>, load <path>, kexec <path>"
    )]
    Unknown(String),
    #[error("message {0:?} from node lacks its reason")]
    NoReason(&'static str),
    #[error("kernel {0:?} is not directly in {KERNEL_FOLDER}")]
    ElsewhereKernel(String),
}

impl Message {
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseMessageError> {
        if bytes.len() > MESSAGE_MAX_BYTES {
            return Err(ParseMessageError::TooLong(bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ParseMessageError::NotUtf8)?.trim();
        let (verb, reason) = text.split_once(' ').unwrap_or((text, ""));
        let reason = reason.trim();
        match (verb, reason) {
            ("alive", "") => Ok(Self::Alive),
            ("ready", "") => Ok(Self::Ready),
            ("reboot", "") => Err(ParseMessageError::NoReason("reboot")),
            ("poweroff", "") => Err(ParseMessageError::NoReason("poweroff")),
            ("load", path) => kernel(path).map(Self::Load),
            ("kexec", path) => kernel(path).map(Self::Kexec),
            ("reboot", reason) => Ok(Self::Reboot(reason.to_owned())),
            ("poweroff", reason) => Ok(Self::Poweroff(reason.to_owned())),
            _ => Err(ParseMessageError::Unknown(text.chars().take(40).collect())),
        }
    }
}

/// A file directly in [`KERNEL_FOLDER`].
fn kernel(path: &str) -> Result<PathBuf, ParseMessageError> {
    let file = Path::new(path);
    let is_plain = matches!(file.components().next_back(), Some(Component::Normal(_)));
    if file.parent() == Some(Path::new(KERNEL_FOLDER)) && is_plain {
        Ok(file.to_owned())
    } else {
        Err(ParseMessageError::ElsewhereKernel(path.chars().take(80).collect()))
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alive => f.write_str("alive"),
            Self::Ready => f.write_str("ready"),
            Self::Reboot(reason) => write!(f, "reboot {reason}"),
            Self::Poweroff(reason) => write!(f, "poweroff {reason}"),
            Self::Load(path) => write!(f, "load {}", path.display()),
            Self::Kexec(path) => write!(f, "kexec {}", path.display()),
        }
    }
}

/// Node's end.
#[derive(Debug)]
pub struct Notifier {
    socket: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
pub enum NotifierError {
    #[error("{NOTIFY_ENV}={0:?} is not a file descriptor; init sets it, leave it unset elsewhere")]
    NotANumber(String),
    #[error("{NOTIFY_ENV}={fd} names no open socket; init sets it, leave it unset elsewhere")]
    NotASocket { fd: RawFd },
}

#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// Init has closed its end: it is stopping this process, or it died.
    #[error("init does not listen any more")]
    Closed,
    #[error("init can't be notified")]
    Send(#[source] Errno),
}

impl Notifier {
    /// Takes over the socket that init left in the environment; `None` when this process was not started by init.
    /// To be called once, early, before anything else opens files.
    pub fn from_env() -> Result<Option<Self>, NotifierError> {
        match std::env::var(NOTIFY_ENV) {
            Ok(text) => Self::from_text(&text).map(Some),
            Err(_) => Ok(None),
        }
    }

    fn from_text(text: &str) -> Result<Self, NotifierError> {
        let fd: RawFd = text
            .parse()
            .ok()
            .filter(|fd| *fd > 2)
            .ok_or_else(|| NotifierError::NotANumber(text.to_owned()))?;
        #[allow(unsafe_code, reason = "a descriptor inherited across exec has no safe owner to take it from")]
        // SAFETY: the descriptor is only looked at during this call, and a number that is not open answers EBADF.
        let inherited = unsafe { BorrowedFd::borrow_raw(fd) };
        // A duplicate with close-on-exec is what node's own children must not see.
        let socket =
            rustix::io::fcntl_dupfd_cloexec(inherited, 3).map_err(|_| NotifierError::NotASocket { fd })?;
        rustix::net::sockopt::socket_type(&socket).map_err(|_| NotifierError::NotASocket { fd })?;
        #[allow(unsafe_code, reason = "the inherited descriptor has to be closed")]
        // SAFETY: it is open (it was just duplicated), init made it for this process alone, and nothing else in the
        // process has taken it: `from_env` is documented to be called once, before other files are opened.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Self { socket })
    }

    /// Sends without blocking. A full queue counts as sent: init has plenty of signs of life to read.
    pub fn send(&self, message: &Message) -> Result<(), NotifyError> {
        let text = message.to_string();
        let end = (0..=text.len().min(MESSAGE_MAX_BYTES))
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        match rustix::net::send(
            &self.socket,
            &text.as_bytes()[..end],
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN) if matches!(message, Message::Alive) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(NotifyError::Closed),
            Err(error) => Err(NotifyError::Send(error)),
        }
    }
}

/// Init's end.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
}

/// What a look at the socket gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Message(Message),
    Refused(ParseMessageError),
    /// Nothing more for now.
    Nothing,
    /// The other end is closed.
    Closed,
}

/// A fresh pair per start of node, so that no message of a dead node counts for the next one. Both ends close on
/// exec; init lifts that from node's end at the moment of the start.
pub fn pair() -> Result<(Listener, OwnedFd), Errno> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Listener { socket: ours }, theirs))
}

impl Listener {
    /// Never blocks.
    pub fn receive(&self) -> Received {
        // One byte more than allowed tells a long message from one that just fits.
        let mut buffer = [0_u8; MESSAGE_MAX_BYTES + 1];
        loop {
            return match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => Received::Closed,
                Ok((length, _)) => match Message::parse(&buffer[..length]) {
                    Ok(message) => Received::Message(message),
                    Err(error) => Received::Refused(error),
                },
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Received::Nothing,
                Err(_) => Received::Closed,
            };
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::IntoRawFd;

    #[test]
    fn messages_survive_the_way_through_text() {
        for message in [
            Message::Alive,
            Message::Ready,
            Message::Reboot("release 7 is installed".into()),
            Message::Poweroff("the farmer asked".into()),
            Message::Load("/run/croft/kernel/release.efi".into()),
            Message::Kexec("/run/croft/kernel/release.efi".into()),
        ] {
            assert_eq!(Message::parse(message.to_string().as_bytes()), Ok(message));
        }
    }

    #[test]
    fn a_power_request_without_a_reason_is_refused() {
        assert_eq!(
            Message::parse(b"reboot").unwrap_err().to_string(),
            "message \"reboot\" from node lacks its reason"
        );
        assert!(Message::parse(b"poweroff  ").is_err());
    }

    #[test]
    fn a_kernel_from_elsewhere_is_refused_by_its_path() {
        for path in ["/tmp/k", "/run/croft/kernel", "/run/croft/kernel/..", "/run/croft/kernel/../x", "k", ""]
        {
            for verb in ["load", "kexec"] {
                let error = Message::parse(format!("{verb} {path}").as_bytes()).unwrap_err().to_string();
                assert_eq!(error, format!("kernel {path:?} is not directly in /run/croft/kernel"));
            }
        }
    }

    #[test]
    fn nonsense_is_refused_with_what_would_be_understood() {
        let error = Message::parse(b"aliveX").unwrap_err().to_string();
        assert!(error.contains("\"aliveX\"") && error.contains("alive, ready"), "{error}");
        assert_eq!(Message::parse(&[0xff, 0xfe]), Err(ParseMessageError::NotUtf8));
        assert_eq!(Message::parse(&[b'a'; 600]), Err(ParseMessageError::TooLong(600)));
        assert!(matches!(Message::parse(b""), Err(ParseMessageError::Unknown(_))));
    }

    #[test]
    fn node_reaches_init_over_the_inherited_descriptor() {
        let (listener, theirs) = pair().unwrap();
        let notifier = Notifier::from_text(&theirs.into_raw_fd().to_string()).unwrap();
        assert_eq!(listener.receive(), Received::Nothing);
        notifier.send(&Message::Alive).unwrap();
        notifier.send(&Message::Reboot("x".repeat(2_000))).unwrap();
        assert_eq!(listener.receive(), Received::Message(Message::Alive));
        assert!(
            matches!(listener.receive(), Received::Message(Message::Reboot(reason)) if reason.len() > 400)
        );
        drop(notifier);
        assert_eq!(listener.receive(), Received::Closed);
    }

    #[test]
    fn node_hears_that_init_is_gone() {
        let (listener, theirs) = pair().unwrap();
        let notifier = Notifier { socket: theirs };
        drop(listener);
        assert!(matches!(notifier.send(&Message::Alive), Err(NotifyError::Closed)));
    }

    #[test]
    fn heartbeats_never_block_when_init_does_not_read() {
        let (listener, theirs) = pair().unwrap();
        let notifier = Notifier { socket: theirs };
        for _ in 0..10_000 {
            notifier.send(&Message::Alive).unwrap();
        }
        assert_eq!(listener.receive(), Received::Message(Message::Alive));
    }

    #[test]
    fn a_wrong_descriptor_is_refused_by_number() {
        let error = Notifier::from_text("900").unwrap_err().to_string();
        assert!(error.starts_with("CROFT_NOTIFY_FD=900 names no open socket"), "{error}");
        assert!(matches!(Notifier::from_text("x"), Err(NotifierError::NotANumber(_))));
        assert!(matches!(Notifier::from_text("1"), Err(NotifierError::NotANumber(_))));
    }
}
