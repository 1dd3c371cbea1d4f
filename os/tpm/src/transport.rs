//! The way to a TPM: one command out, one response back, within a time limit.
//!
//! ```text
//!   idle ──write──▶ waiting ──whole response──▶ idle
//!                      └──time is over──▶ lost: a late answer would be taken for the next one's, so open it anew
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The kernel's resource manager: it swaps keys and sessions, and drops them when we close.
pub const DEVICE: &str = "/dev/tpmrm0";
/// No TPM takes or gives more at once (TPM_PT_MAX_RESPONSE_SIZE).
pub const MESSAGE_BYTES: usize = 4096;
const HEADER_BYTES: usize = 10;

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error(
        "there is no TPM 2.0 at {path}: turn it on in the firmware setup (fTPM, PTT), if the machine has one"
    )]
    Missing { path: PathBuf },
    #[error(
        "the firmware announces a TPM 2.0, but the kernel can't start it, so there is no {path}: power-cycle the machine; if \
         it happens again, turn the TPM off in the firmware setup, which makes the machine another node"
    )]
    NotStarted { path: PathBuf },
    #[error("can't open the TPM {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("can't {action} the TPM")]
    Io { action: &'static str, source: io::Error },
    #[error(
        "the TPM gave no answer within {limit_ms} ms: power-cycle the machine; if it happens again, the TPM is broken"
    )]
    Timeout { limit_ms: u128 },
    #[error("the TPM was given up after it did not answer: open it anew")]
    Lost,
    #[error("the TPM answered {len} bytes, which is no response (10 to 4096)")]
    Size { len: usize },
}

/// Carries commands to a TPM.
pub trait Transport {
    /// Sends one command, gives back the whole response.
    ///
    /// # Errors
    /// [`TransportError`].
    fn exchange(&mut self, command: &[u8], limit: Duration) -> Result<Vec<u8>, TransportError>;

    /// Lets a busy TPM be.
    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// A TPM behind a file descriptor: the kernel's device, or the socket of an emulator.
#[derive(Debug)]
pub struct FdTransport {
    fd: OwnedFd,
    lost: bool,
}

impl FdTransport {
    /// Opens a TPM device, [`DEVICE`] on nodes.
    ///
    /// # Errors
    /// [`TransportError::Missing`] where there is none.
    pub fn open(path: &Path) -> Result<Self, TransportError> {
        // Without O_NONBLOCK the kernel would hold us inside write() until the TPM is ready, for minutes if need be.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        match fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Ok(file) => Ok(Self { fd: file.into(), lost: false }),
            // No driver took the device (ENXIO, ENODEV), or it has no node at all.
            Err(e) if e.kind() == io::ErrorKind::NotFound || matches!(e.raw_os_error(), Some(6 | 19)) => {
                Err(TransportError::Missing { path: path.to_owned() })
            }
            Err(source) => Err(TransportError::Open { path: path.to_owned(), source }),
        }
    }

    /// Takes a connected socket.
    ///
    /// # Errors
    /// When it can't be made non-blocking.
    pub fn over(fd: OwnedFd) -> Result<Self, TransportError> {
        rustix::io::ioctl_fionbio(&fd, true).map_err(io_error("prepare"))?;
        Ok(Self { fd, lost: false })
    }

    fn wait(&self, flags: PollFlags, until: Instant, limit: Duration) -> Result<(), TransportError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left)
                .map_err(|_| TransportError::Timeout { limit_ms: limit.as_millis() })?;
            match poll(&mut [PollFd::from_borrowed_fd(self.fd.as_fd(), flags)], Some(&timeout)) {
                Ok(0) => return Err(TransportError::Timeout { limit_ms: limit.as_millis() }),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(io_error("wait for")(e)),
            }
        }
    }

    fn write(&self, mut bytes: &[u8], until: Instant, limit: Duration) -> Result<(), TransportError> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.fd, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => self.wait(PollFlags::OUT, until, limit)?,
                Err(e) => return Err(io_error("write to")(e)),
            }
        }
        Ok(())
    }

    fn read(&self, until: Instant, limit: Duration) -> Result<Vec<u8>, TransportError> {
        let mut response = Vec::new();
        let mut buffer = [0; MESSAGE_BYTES];
        loop {
            self.wait(PollFlags::IN, until, limit)?;
            match rustix::io::read(&self.fd, &mut buffer) {
                Ok(0) => return Err(TransportError::Lost),
                Ok(count) => response.extend_from_slice(&buffer[..count]),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
                Err(e) => return Err(io_error("read from")(e)),
            }
            let Some(size) = response.get(2..6) else { continue };
            let size = u32::from_be_bytes(size.try_into().expect("four bytes")) as usize;
            if !(HEADER_BYTES..=MESSAGE_BYTES).contains(&size) || response.len() > size {
                return Err(TransportError::Size { len: size.max(response.len()) });
            }
            if response.len() == size {
                return Ok(response);
            }
        }
    }
}

fn io_error(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> TransportError {
    move |errno| TransportError::Io { action, source: errno.into() }
}

impl Transport for FdTransport {
    fn exchange(&mut self, command: &[u8], limit: Duration) -> Result<Vec<u8>, TransportError> {
        if self.lost {
            return Err(TransportError::Lost);
        }
        let until = Instant::now() + limit;
        let response = self.write(command, until, limit).and_then(|()| self.read(until, limit));
        self.lost = response.is_err();
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const COMMAND: &[u8] = &[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];

    #[test]
    fn a_machine_without_a_tpm_says_where_to_turn_it_on() {
        let error = FdTransport::open(Path::new("/nowhere/tpmrm0")).unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no TPM 2.0 at /nowhere/tpmrm0: turn it on in the firmware setup (fTPM, PTT), if the machine has one"
        );
    }

    #[test]
    fn a_silent_tpm_is_given_up_and_never_asked_again() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut transport = FdTransport::over(ours.into()).unwrap();
        let limit = Duration::from_millis(5);
        let error = transport.exchange(COMMAND, limit).unwrap_err().to_string();
        assert!(error.starts_with("the TPM gave no answer within 5 ms: power-cycle"), "{error}");
        // The late answer of the first command must not become the answer of the second.
        theirs.write_all(&[0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0]).unwrap();
        assert!(matches!(transport.exchange(COMMAND, limit), Err(TransportError::Lost)));
    }

    #[test]
    fn a_response_in_pieces_is_put_together_and_an_impossible_one_refused() {
        let limit = Duration::from_secs(30);
        let answered = |bytes: &[u8]| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(bytes).unwrap();
            FdTransport::over(ours.into()).unwrap().exchange(COMMAND, limit)
        };
        assert_eq!(answered(&[0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0]).unwrap().len(), 10);
        let huge = answered(&[0x80, 1, 0, 0, 0x20, 0, 0, 0, 0, 0]).unwrap_err().to_string();
        assert_eq!(huge, "the TPM answered 8192 bytes, which is no response (10 to 4096)");
        assert!(matches!(answered(&[0x80, 1, 0, 0, 0, 9, 0, 0, 0]), Err(TransportError::Size { len: 9 })));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut transport = FdTransport::over(ours.into()).unwrap();
        let writer = std::thread::spawn(move || {
            for byte in [0x80, 1, 0, 0, 0, 11, 0, 0, 0, 0, 7] {
                theirs.write_all(&[byte]).unwrap();
            }
            theirs
        });
        assert_eq!(transport.exchange(COMMAND, limit).unwrap().last(), Some(&7));
        drop(writer.join().unwrap());
        assert!(transport.exchange(COMMAND, limit).is_err(), "nobody is there any more");
    }
}
