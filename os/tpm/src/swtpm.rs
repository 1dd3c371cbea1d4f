//! A TPM in a child process, for tests: swtpm on one end of a socket pair, its state in a folder of its own.
//!
//! It starts as fast as it can be spawned, listens nowhere, and ends with the value that holds it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use croft_attest::Writer;
use tempfile::TempDir;

use crate::{FdTransport, Tpm, Transport};

/// A machine's TPM: its state outlives [`Swtpm::power_on`]s, as in a machine.
#[derive(Debug)]
pub struct Swtpm {
    state: TempDir,
}

/// One power-on of a TPM. Dropping it is a power cut.
pub struct Powered {
    /// Dropped, and so flushed, before the process ends.
    pub tpm: Tpm<FdTransport>,
    process: Process,
}

/// The child. Dropping it ends it.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Default for Swtpm {
    fn default() -> Self {
        Self::new()
    }
}

impl Swtpm {
    /// A new TPM, as from the factory.
    ///
    /// # Panics
    /// When there is no room for its state.
    #[must_use]
    pub fn new() -> Self {
        Self { state: TempDir::with_prefix("croft-swtpm-").expect("a folder for the TPM's state") }
    }

    #[must_use]
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// Turns the machine on: registers at zero, keys and indices as they were.
    ///
    /// # Panics
    /// When swtpm is not installed.
    #[must_use]
    pub fn power_on(&self) -> Powered {
        let (transport, process) = self.plug();
        Powered { tpm: Tpm::new(transport), process }
    }

    /// The bare way to a TPM that was turned on.
    ///
    /// # Panics
    /// When swtpm is not installed.
    #[must_use]
    pub fn plug(&self) -> (FdTransport, Process) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let state = format!("dir={}", self.state.path().display());
        let log = self.state.path().join("log");
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate", &state, "--flags", "not-need-init,startup-clear"])
            .args(["--server", "type=tcp,fd=0", "--log", &log_to(log)])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm runs: install the packages swtpm and swtpm-tools");
        let transport = FdTransport::over(ours.into()).expect("a socket of our own");
        (transport, Process(child))
    }
}

impl Powered {
    /// The child's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// What Croft itself never sends: TPM2_Clear by the lockout hierarchy, as a firmware setup does it.
    ///
    /// # Panics
    /// When the TPM refuses.
    pub fn clear(&mut self) {
        self.raw(0x126, &[0x4000_000a], &[]);
    }

    /// Somebody else takes ownership with a password.
    ///
    /// # Panics
    /// When the TPM refuses.
    pub fn set_owner_password(&mut self, password: &[u8]) {
        self.raw(0x129, &[0x4000_0001], &Writer::new().sized(password).done());
    }

    /// The TPM alone. The process must outlive it, or it answers nothing.
    #[must_use]
    pub fn split(self) -> (Tpm<FdTransport>, Process) {
        (self.tpm, self.process)
    }

    /// What a power cut leaves while an identity is written: the index is defined, some bytes are in it, none locked.
    ///
    /// # Panics
    /// When the TPM refuses.
    pub fn leave_identity(&mut self, bytes: &[u8], written: usize) {
        self.tpm.identity_begin(bytes.len()).expect("the index is defined");
        if written > 0 {
            self.tpm.identity_put(&bytes[..written]).expect("the bytes are written");
        }
    }

    /// What a maker does in the factory: a certificate in the maker's part of the memory.
    ///
    /// # Panics
    /// When the TPM refuses.
    pub fn install_endorsement_certificate(&mut self, der: &[u8]) {
        const PLATFORM: u32 = 0x4000_000c;
        // Written by the platform, read by everybody; made by the platform; apart from the lockout.
        let attributes = 1 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 25 | 1 << 30;
        let index = crate::EK_CERTIFICATE_INDEX;
        let public =
            Writer::new().u32(index).u16(0xb).u32(attributes).sized(&[]).u16(der.len() as u16).done();
        self.raw(0x12a, &[PLATFORM], &Writer::new().sized(&[]).sized(&public).done());
        for (number, part) in der.chunks(512).enumerate() {
            let parameters = Writer::new().sized(part).u16(512 * number as u16).done();
            self.raw(0x137, &[PLATFORM, index], &parameters);
        }
    }

    fn raw(&mut self, code: u32, handles: &[u32], parameters: &[u8]) {
        let auth = Writer::new().u32(9).u32(0x4000_0009).sized(&[]).u8(1).sized(&[]).done();
        let handles = handles.iter().fold(Writer::new(), |all, handle| all.u32(*handle)).done();
        let body = [handles.as_slice(), &auth, parameters].concat();
        let command = Writer::new().u16(0x8002).u32(10 + body.len() as u32).u32(code).bytes(&body).done();
        let response = self.tpm.transport.exchange(&command, Duration::from_secs(60)).expect("an answer");
        assert_eq!(response[6..10], [0; 4], "the TPM refused {code:#x}");
    }
}

fn log_to(path: PathBuf) -> String {
    format!("file={},level=1", path.display())
}
