//! A running machine: started, watched by one thread, ended.
//!
//! ```text
//! Boot --start--> starting --QMP greeting, cont--> running --powerdown, guest's own, quit--> exited
//!                    |                               |  ^                                      ^
//!                    '--QEMU's message, as an error  |  '-- reset (or exits, by OnReboot)      |
//!                                                    '--kill: the power cut; drop; lifetime ---'
//! ```
//!
//! One thread per machine starts QEMU, reads its serial line and reaps it. The kernel kills QEMU when
//! that thread's process dies, so no machine outlives its test, however that ends.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use croft_image_builder::initramfs::{AppendError, append_segment_to_file};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};

use crate::accelerator::{self, Accelerator, Decision};
use crate::command::{Firmware, Forward, Layout, Medium, Start, Wire, Wiring, netdev, nic_id};
use crate::disk::{self, DiskError};
use crate::firmware::{SecureBoot, StoreError};
use crate::picture::{Picture, PictureError};
use crate::profile::Profile;
use crate::qmp::{Qmp, QmpError};
use crate::serial::{self, Feed, Serial};
use crate::tpm::SoftwareTpm;

/// QEMU opens its control socket within a second; a loaded host gets sixty times that.
const START_LIMIT: Duration = Duration::from_secs(60);
/// After this, a machine whose test hangs is ended.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(30 * 60);
/// SIGKILL and reaping; only a host in deep trouble takes longer.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// Keyboards that are emulated slowly lose shorter ones.
const KEY_HOLD_MS: u64 = 80;
/// What an error shows of QEMU's own messages.
const QEMU_MESSAGE_MAX_BYTES: usize = 4096;
/// Where the node looks for its boot configuration.
const BOOT_FILE: &str = "/etc/croft/boot.toml";

/// UEFI firmware and its empty variables (package ovmf).
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// The same with Secure Boot in it.
const SECURE_FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
/// The machine's own store of variables, in its state.
const VARIABLES: &str = "firmware-variables";
const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// What happens when the guest restarts the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnReboot {
    /// It starts anew, like hardware.
    #[default]
    Restart,
    /// QEMU exits, for tests that wait for it.
    Exit,
}

/// How QEMU ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
}

impl Exit {
    /// The guest powered off, or was asked to and did.
    #[must_use]
    pub fn is_clean(self) -> bool {
        self.code == Some(0)
    }
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("qemu-system-x86_64 could not be started: run scripts/setup, or name it in CROFT_QEMU")]
    NotInstalled { source: std::io::Error },
    #[error("cannot use the state directory {path}")]
    State { path: PathBuf, source: std::io::Error },
    #[error("cannot read the kernel {path}: build it with `cargo xtask image`")]
    Kernel { path: PathBuf, source: std::io::Error },
    #[error("cannot read the medium {path}: make it with `croft farm image`")]
    Medium { path: PathBuf, source: std::io::Error },
    #[error("the firmware for test machines is not here: run scripts/setup")]
    Firmware { source: std::io::Error },
    #[error("{path} boots as it is: files and kernel arguments can't be added to a medium")]
    SealedMedium { path: PathBuf },
    #[error("no TPM could be made with its state in {path}: is swtpm installed? run scripts/setup")]
    Tpm { path: PathBuf, source: std::io::Error },
    #[error("a machine with a TPM can't be left to a terminal: start it with a handle")]
    TpmOnTerminal,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Initramfs(#[from] AppendError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("a forward of guest port {port} names NIC {nic}, but the profile {profile} has {there}")]
    NoSuchNic { port: u16, nic: usize, profile: String, there: usize },
    #[error("QEMU ended at once: {message}")]
    Qemu { message: String },
    #[error("QEMU did not open its control connection within {limit:?}: {message}")]
    Silent { limit: Duration, message: String },
    #[error("QEMU could not be controlled")]
    Qmp(#[from] QmpError),
    #[error("QEMU reports no host port for guest port {port}: is host port {wanted} taken?")]
    NoPort { port: u16, wanted: u16 },
}

/// Why there is no picture of the monitor.
#[derive(Debug, thiserror::Error)]
pub enum ScreenError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error(transparent)]
    Picture(#[from] PictureError),
}

/// Why a machine is not in the state that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    #[error("the machine did not end within {limit:.1?} {after}; its last serial lines:\n{tail}")]
    StillRunning { limit: Duration, after: &'static str, tail: String },
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("the profile has no NIC {name:?}")]
    NoSuchNic { name: String },
}

/// What is started.
#[derive(Debug, Clone)]
enum Source {
    Kernel { kernel: PathBuf, initramfs: PathBuf },
    Medium(Medium),
}

/// What the firmware is given to check with what it starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Keys {
    /// It can't check anything.
    #[default]
    None,
    SetupMode,
    Enrolled(SecureBoot),
}

/// Everything that decides a boot; `start` makes it a [`Machine`].
#[derive(Debug, Clone)]
pub struct Boot {
    profile: Profile,
    source: Source,
    state: PathBuf,
    files: Vec<(String, Vec<u8>)>,
    kernel_arguments: Vec<String>,
    forwards: Vec<Forward>,
    lifetime: Duration,
    on_reboot: OnReboot,
    accelerator: Option<Accelerator>,
    tpm: Option<PathBuf>,
    firmware: Keys,
    namespace: Option<String>,
    wire: Option<Wire>,
}

impl Boot {
    /// Boots `kernel` with `initramfs`; disks and logs live in the directory `state`, and are found
    /// there again by the next boot.
    pub fn new(
        profile: Profile,
        kernel: impl Into<PathBuf>,
        initramfs: impl Into<PathBuf>,
        state: impl Into<PathBuf>,
    ) -> Self {
        Self {
            profile,
            source: Source::Kernel { kernel: kernel.into(), initramfs: initramfs.into() },
            state: state.into(),
            files: Vec::new(),
            kernel_arguments: Vec::new(),
            forwards: Vec::new(),
            lifetime: DEFAULT_LIFETIME,
            on_reboot: OnReboot::default(),
            accelerator: None,
            tpm: None,
            firmware: Keys::default(),
            namespace: None,
            wire: None,
        }
    }

    /// Boots the image in the directory `image`, as `cargo xtask image` leaves it.
    pub fn image(profile: Profile, image: &Path, state: impl Into<PathBuf>) -> Self {
        Self::new(profile, image.join("bzImage"), image.join("initramfs.zst"), state)
    }

    /// Boots what UEFI firmware (OVMF) finds on a medium. Nothing can be appended to it: neither files nor arguments.
    pub fn medium(profile: Profile, medium: Medium, state: impl Into<PathBuf>) -> Self {
        let boot = Self::new(profile, "", "", state);
        Self { source: Source::Medium(medium), ..boot }
    }

    /// The node's boot configuration, appended to the initramfs.
    #[must_use]
    pub fn boot_file(self, toml: impl Into<Vec<u8>>) -> Self {
        self.file(BOOT_FILE, toml)
    }

    /// A file that is appended to the initramfs; it replaces the image's own at that path.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.into(), bytes.into()));
        self
    }

    /// One more argument for the kernel.
    #[must_use]
    pub fn kernel_argument(mut self, argument: impl Into<String>) -> Self {
        self.kernel_arguments.push(argument.into());
        self
    }

    /// A guest port that the host shall reach; see [`Machine::address`].
    #[must_use]
    pub fn forward(mut self, forward: Forward) -> Self {
        self.forwards.push(forward);
        self
    }

    /// The machine is killed after this, whatever happens. [`DEFAULT_LIFETIME`] unless set.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    #[must_use]
    pub fn on_reboot(mut self, on_reboot: OnReboot) -> Self {
        self.on_reboot = on_reboot;
        self
    }

    /// Instead of the one that [`accelerator::decide`] picks.
    #[must_use]
    pub fn accelerator(mut self, accelerator: Accelerator) -> Self {
        self.accelerator = Some(accelerator);
        self
    }

    /// A TPM 2.0 whose state is in a folder: the same folder is the same TPM.
    #[must_use]
    pub fn tpm(mut self, state: impl Into<PathBuf>) -> Self {
        self.tpm = Some(state.into());
        self
    }

    /// Firmware with Secure Boot on and these keys enrolled. Only for media.
    #[must_use]
    pub fn secure_boot(self, keys: SecureBoot) -> Self {
        Self { firmware: Keys::Enrolled(keys), ..self }
    }

    /// Firmware that could check what it starts and has no keys yet: in setup mode, until a boot with the same state
    /// gave it some. For a kernel, too.
    #[must_use]
    pub fn setup_mode(self) -> Self {
        Self { firmware: Keys::SetupMode, ..self }
    }

    /// QEMU runs in this network namespace, and the NICs are its taps `tap0`, `tap1`. Needs root; nothing is forwarded.
    #[must_use]
    pub fn namespace(self, name: impl Into<String>) -> Self {
        Self { namespace: Some(name.into()), ..self }
    }

    /// One more NIC, whose frames somebody here sends and gets.
    #[must_use]
    pub fn wire(self, wire: Wire) -> Self {
        Self { wire: Some(wire), ..self }
    }

    fn decide(&self) -> Decision {
        match self.accelerator {
            Some(accelerator) => Decision { accelerator, reason: "accelerator: given by the caller".into() },
            None => accelerator::decide(self.profile.nested),
        }
    }

    /// Makes disks and initramfs ready and returns QEMU's arguments.
    fn prepare(&self, decision: &Decision, wiring: Wiring<'_>) -> Result<Vec<String>, StartError> {
        let state = |source| StartError::State { path: self.state.clone(), source };
        std::fs::create_dir_all(&self.state).map_err(state)?;
        match &self.source {
            Source::Kernel { kernel, .. } => File::open(kernel)
                .map_err(|source| StartError::Kernel { path: kernel.clone(), source })
                .map(drop)?,
            Source::Medium(medium) => {
                if let Some(path) = medium.path() {
                    let unread = |source| StartError::Medium { path: path.to_owned(), source };
                    File::open(path).map_err(unread)?;
                }
                if !medium.is_bios() {
                    File::open(FIRMWARE).map_err(no_firmware)?;
                }
            }
        }
        let nics = self.profile.nic.len();
        if let Some(forward) = self.forwards.iter().find(|forward| forward.nic >= nics) {
            return Err(StartError::NoSuchNic {
                port: forward.guest_port,
                nic: forward.nic,
                profile: self.profile.name.clone(),
                there: nics,
            });
        }
        let disks = self.profile.disk.iter().map(|disk| disk::ensure(&self.state, disk));
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        let (mut initramfs, variables);
        let start = match &self.source {
            Source::Kernel { kernel, initramfs: own } => {
                initramfs = own.clone();
                if !self.files.is_empty() {
                    initramfs = self.state.join("initramfs");
                    let files: Vec<(&str, &[u8])> =
                        self.files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
                    append_segment_to_file(own, &initramfs, &files)?;
                }
                let mut arguments = self.profile.kernel_arguments();
                arguments.extend(decision.accelerator.kernel_arguments());
                arguments.extend(self.kernel_arguments.iter().cloned());
                let mut firmware = None;
                if self.firmware != Keys::None {
                    variables = self.state.join(VARIABLES);
                    self.variables(&variables)?;
                    let code = Path::new(SECURE_FIRMWARE);
                    firmware = Some(Firmware::Uefi { code, variables: &variables, secure: true });
                }
                Start::Kernel { kernel, initramfs: &initramfs, arguments, firmware }
            }
            Source::Medium(medium) => {
                if !self.files.is_empty() || !self.kernel_arguments.is_empty() {
                    let path = medium.path().unwrap_or(Path::new("the network")).to_owned();
                    return Err(StartError::SealedMedium { path });
                }
                variables = self.state.join(VARIABLES);
                let secure = self.firmware != Keys::None;
                let code = Path::new(if secure { SECURE_FIRMWARE } else { FIRMWARE });
                let firmware = if medium.is_bios() {
                    Firmware::Bios
                } else {
                    self.variables(&variables)?;
                    Firmware::Uefi { code, variables: &variables, secure }
                };
                Start::Medium { firmware, medium }
            }
        };
        let layout = Layout {
            profile: &self.profile,
            accelerator: decision.accelerator,
            start,
            disks: &disks,
            forwards: &self.forwards,
            exit_on_reboot: self.on_reboot == OnReboot::Exit,
            taps: self.namespace.is_some(),
            wire: self.wire.as_ref(),
        };
        Ok(layout.arguments(wiring))
    }

    /// The store of variables of this machine, made on its first boot.
    fn variables(&self, path: &Path) -> Result<(), StartError> {
        if path.exists() {
            return Ok(());
        }
        let mut store = std::fs::read(FIRMWARE_VARIABLES).map_err(no_firmware)?;
        if let Keys::Enrolled(keys) = &self.firmware {
            store = keys.enrol(store, Path::new(FIRMWARE_VARIABLES))?;
        }
        std::fs::write(path, store).map_err(|source| StartError::State { path: self.state.clone(), source })
    }

    /// A command that boots with the serial line on the terminal (Ctrl-A X ends it), and the decision
    /// about the accelerator.
    pub fn on_terminal(&self) -> Result<(Command, Decision), StartError> {
        if self.tpm.is_some() {
            return Err(StartError::TpmOnTerminal);
        }
        let decision = self.decide();
        let arguments = self.prepare(&decision, Wiring::Terminal)?;
        let mut command = Command::new(qemu());
        command.args(arguments);
        Ok((command, decision))
    }

    /// Starts the machine; power-on is the moment at which this returns.
    pub async fn start(self) -> Result<Machine, StartError> {
        let decision = self.decide();
        eprintln!("machine {}: {}", self.profile.name, decision.reason);
        // Socket paths are limited to 108 bytes; state directories are not.
        let sockets = tempfile::Builder::new()
            .prefix("croft-qemu-")
            .tempdir()
            .map_err(|source| StartError::State { path: std::env::temp_dir(), source })?;
        let qmp_path = sockets.path().join("qmp");
        let state = |source| StartError::State { path: self.state.clone(), source };
        let listener = UnixListener::bind(&qmp_path).map_err(state)?;
        let mut arguments = self.prepare(&decision, Wiring::Handles { qmp: &qmp_path })?;
        let tpm = match &self.tpm {
            None => None,
            Some(state) => {
                let socket = sockets.path().join("tpm");
                let tpm = SoftwareTpm::start(state, &socket).await?;
                arguments.extend(crate::tpm::arguments(&socket));
                Some(tpm)
            }
        };
        let log = File::create(self.state.join("serial.log")).map_err(state)?;
        let messages_path = self.state.join("qemu.log");
        let messages = File::create(&messages_path).map_err(state)?;

        let (feed, serial) = serial::line(Some(log));
        let mut command = match &self.namespace {
            // It becomes QEMU: the process, and what ends with it, stay the same.
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(qemu());
                command
            }
            None => Command::new(qemu()),
        };
        command.args(arguments);
        let process = Process::start(command, messages, feed).await?;
        let qmp = process.control(&listener, &messages_path).await?;
        let mut machine = Machine {
            process,
            qmp,
            serial,
            decision,
            profile: self.profile,
            state: self.state,
            forwards: Vec::new(),
            _tpm: tpm,
            _sockets: sockets,
        };
        for forward in &self.forwards {
            let address = machine.find_forward(forward).await?;
            machine.forwards.push((*forward, address));
        }
        machine.process.feed.power_on();
        machine.qmp.execute("cont", json!({})).await?;
        machine.process.end_after(self.lifetime);
        Ok(machine)
    }
}

fn no_firmware(source: std::io::Error) -> StartError {
    StartError::Firmware { source }
}

fn qemu() -> std::ffi::OsString {
    std::env::var_os("CROFT_QEMU").filter(|name| !name.is_empty()).unwrap_or("qemu-system-x86_64".into())
}

/// A machine that was started. Dropping it ends it.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    qmp: Qmp,
    serial: Serial,
    decision: Decision,
    profile: Profile,
    state: PathBuf,
    forwards: Vec<(Forward, SocketAddr)>,
    /// After the machine: it loses its TPM last.
    _tpm: Option<SoftwareTpm>,
    _sockets: tempfile::TempDir,
}

impl Machine {
    /// The serial line; its cursor stays where the last wait left it.
    pub fn serial(&mut self) -> &mut Serial {
        &mut self.serial
    }

    /// Types on the serial line.
    pub fn type_on_serial(&self, text: &str) -> std::io::Result<()> {
        let mut input = self.process.input.lock().unwrap_or_else(PoisonError::into_inner);
        input.write_all(text.as_bytes()).and_then(|()| input.flush())
    }

    /// Monitor and events of QEMU.
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// How the guest's code runs, and why.
    #[must_use]
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Disks and logs (`serial.log`, `qemu.log`) are here.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Process id of QEMU, to measure it. Not for signals: use the power methods.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Where the host reaches the TCP port `guest_port`, if it was forwarded.
    #[must_use]
    pub fn address(&self, guest_port: u16) -> Option<SocketAddr> {
        self.address_of(&Forward::tcp(guest_port))
    }

    /// Where the host reaches a forwarded port; host port and guest address need not be given.
    #[must_use]
    pub fn address_of(&self, wanted: &Forward) -> Option<SocketAddr> {
        let same = |there: &Forward| {
            (there.protocol, there.guest_port, there.nic) == (wanted.protocol, wanted.guest_port, wanted.nic)
        };
        self.forwards.iter().find(|(there, _)| same(there)).map(|(_, address)| *address)
    }

    /// Forwards one more port while the machine runs.
    pub async fn forward(&mut self, forward: Forward) -> Result<SocketAddr, StartError> {
        let command = format!("hostfwd_add {} {}", netdev(forward.nic), forward.rule());
        let answer = self.qmp.monitor(&command).await?;
        if !answer.trim().is_empty() {
            return Err(QmpError::Monitor { command, message: answer.trim().into() }.into());
        }
        let address = self.find_forward(&forward).await?;
        self.forwards.push((forward, address));
        Ok(address)
    }

    async fn find_forward(&self, forward: &Forward) -> Result<SocketAddr, StartError> {
        let usernet = self.qmp.monitor("info usernet").await?;
        forward
            .find(&usernet)
            .ok_or(StartError::NoPort { port: forward.guest_port, wanted: forward.host_port.unwrap_or(0) })
    }

    /// Writes what is on the monitor to `path` as PNG, for people.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn screenshot(&self, path: &Path) -> Result<(), QmpError> {
        self.qmp.screendump(path).await
    }

    /// What is on the monitor.
    ///
    /// # Errors
    /// [`ScreenError`].
    pub async fn picture(&self) -> Result<Picture, ScreenError> {
        let path = self.state.join("screen.ppm");
        self.qmp.execute("screendump", json!({ "filename": path })).await?;
        Ok(Picture::read(&path)?)
    }

    /// Presses keys on the machine's own keyboard, one after the other, by QEMU's names (`QKeyCode`): `f1`, `ret`, `a`.
    ///
    /// # Errors
    /// [`QmpError`] names a key that there is not.
    pub async fn press(&self, keys: &[&str]) -> Result<(), QmpError> {
        for key in keys {
            let key = json!({ "type": "qcode", "data": key });
            self.qmp.execute("send-key", json!({ "keys": [key], "hold-time": KEY_HOLD_MS })).await?;
        }
        Ok(())
    }

    /// Plugs or unplugs the cable of the profile's NIC `name`.
    pub async fn set_link(&self, name: &str, up: bool) -> Result<(), PowerError> {
        let nic = self.profile.nic.iter().find(|nic| nic.name == name);
        let nic = nic.ok_or_else(|| PowerError::NoSuchNic { name: name.into() })?;
        self.qmp.execute("set_link", json!({ "name": nic_id(nic), "up": up })).await?;
        Ok(())
    }

    /// Cuts the power: SIGKILL, at once.
    pub async fn kill(&mut self) -> Result<Exit, PowerError> {
        self.process.kill();
        self.wait_end(KILL_LIMIT, "after the power cut").await
    }

    /// Presses the power button and waits for the guest to power off.
    pub async fn powerdown(&mut self, limit: Duration) -> Result<Exit, PowerError> {
        self.qmp.execute("system_powerdown", json!({})).await?;
        self.wait_end(limit, "after the power button was pressed").await
    }

    /// Presses the reset button.
    pub async fn reset(&self) -> Result<(), PowerError> {
        self.qmp.execute("system_reset", json!({})).await?;
        Ok(())
    }

    /// Waits for the guest to end by itself.
    pub async fn wait_exit(&mut self, limit: Duration) -> Result<Exit, PowerError> {
        self.wait_end(limit, "by itself").await
    }

    async fn wait_end(&mut self, limit: Duration, after: &'static str) -> Result<Exit, PowerError> {
        let exit = tokio::time::timeout(limit, self.process.wait()).await;
        exit.map_err(|_| PowerError::StillRunning { limit, after, tail: self.serial.tail() })
    }
}

/// QEMU's process and the thread that owns it.
#[derive(Debug)]
struct Process {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    input: Mutex<ChildStdin>,
    feed: Arc<Feed>,
    exit: watch::Receiver<Option<Exit>>,
    owner: Option<JoinHandle<()>>,
    lifetime: Option<tokio::task::JoinHandle<()>>,
}

/// What the owner thread hands over once QEMU runs.
struct Started {
    pid: u32,
    pidfd: OwnedFd,
    input: ChildStdin,
}

impl Process {
    async fn start(command: Command, messages: File, feed: Feed) -> Result<Self, StartError> {
        let feed = Arc::new(feed);
        let (started_sender, started) = oneshot::channel();
        let (exit_sender, exit) = watch::channel(None);
        let owned_feed = feed.clone();
        let owner = std::thread::Builder::new()
            .name("qemu-owner".into())
            .spawn(move || own(command, messages, &owned_feed, started_sender, &exit_sender))
            .map_err(|source| StartError::NotInstalled { source })?;
        let ended = || StartError::Qemu { message: "its thread ended".into() };
        let started = started.await.map_err(|_| ended())?;
        let Started { pid, pidfd, input } = started.map_err(|source| StartError::NotInstalled { source })?;
        Ok(Self {
            pid,
            pidfd: Arc::new(pidfd),
            input: Mutex::new(input),
            feed,
            exit,
            owner: Some(owner),
            lifetime: None,
        })
    }

    /// Waits for QEMU to connect to `listener`; its messages explain why it did not.
    async fn control(&self, listener: &UnixListener, messages: &Path) -> Result<Qmp, StartError> {
        let mut exit = self.exit.clone();
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(START_LIMIT, listener.accept()) => accepted,
            _ = exit.wait_for(Option::is_some) => {
                return Err(StartError::Qemu { message: read_messages(messages) });
            }
        };
        match accepted {
            Ok(Ok((stream, _))) => match Qmp::negotiate(stream).await {
                Ok(qmp) => Ok(qmp),
                // QEMU connects before it has looked at all of its options.
                Err(error) => match tokio::time::timeout(KILL_LIMIT, exit.wait_for(Option::is_some)).await {
                    Ok(Ok(_)) => Err(StartError::Qemu { message: read_messages(messages) }),
                    _ => Err(error.into()),
                },
            },
            Ok(Err(error)) => Err(QmpError::Io(error).into()),
            Err(_) => Err(StartError::Silent { limit: START_LIMIT, message: read_messages(messages) }),
        }
    }

    fn kill(&self) {
        // Fails only when it has ended already.
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }

    async fn wait(&mut self) -> Exit {
        match self.exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.expect("waited for it"),
            // The owner thread panicked; it takes QEMU with it.
            Err(_) => Exit { code: None, signal: None },
        }
    }

    fn end_after(&mut self, lifetime: Duration) {
        let pidfd = self.pidfd.clone();
        self.lifetime = Some(tokio::spawn(async move {
            tokio::time::sleep(lifetime).await;
            eprintln!("machine: killed at the end of its lifetime of {lifetime:?}");
            let _ = pidfd_send_signal(&*pidfd, Signal::KILL);
        }));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(lifetime) = self.lifetime.take() {
            lifetime.abort();
        }
        self.kill();
        if let Some(owner) = self.owner.take() {
            // Short: the process is being killed. Afterwards disks and ports are free again.
            let _ = owner.join();
        }
    }
}

/// The owner thread: starts QEMU, feeds the serial line, reaps.
fn own(
    mut command: Command,
    messages: File,
    feed: &Feed,
    started: oneshot::Sender<std::io::Result<Started>>,
    exit: &watch::Sender<Option<Exit>>,
) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(messages);
    #[allow(unsafe_code, reason = "asking for a signal at the parent's death must happen in the child")]
    // SAFETY: the closure makes one system call; it takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
        });
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            feed.end();
            let _ = started.send(Err(error));
            return;
        }
    };
    let mut output = child.stdout.take().expect("stdout is a pipe");
    let input = child.stdin.take().expect("stdin is a pipe");
    let handed = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
        .map(|pidfd| Started { pid: child.id(), pidfd, input })
        .map_err(std::io::Error::from);
    if handed.is_err() {
        let _ = child.kill();
    }
    if started.send(handed).is_err() {
        // Whoever started the machine is gone; so must the machine be.
        let _ = child.kill();
    }
    let mut buffer = [0; 16 << 10];
    while let Ok(read) = output.read(&mut buffer) {
        if read == 0 {
            break;
        }
        feed.push(&buffer[..read]);
    }
    let status = child.wait();
    feed.end();
    let status = status.map(|status| Exit { code: status.code(), signal: status.signal() });
    exit.send_replace(Some(status.unwrap_or(Exit { code: None, signal: None })));
}

fn read_messages(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let end = &bytes[bytes.len().saturating_sub(QEMU_MESSAGE_MAX_BYTES)..];
    let text = String::from_utf8_lossy(end).trim().to_owned();
    if text.is_empty() { "it gave no reason".into() } else { text }
}
