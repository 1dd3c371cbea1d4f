//! The messages between a microVM's PID 1 and its host: what they are, how long they may get, how they are
//! framed. One vsock connection carries them all; the guest dials host CID 2, port [`CONTROL_PORT`].
//!
//! ```text
//! guest -> host   Hello, then Log, DroppedLogs, Started, Health, Pong, and at the end Exited or Failed
//! host  -> guest  Config (once per boot, after Hello), Ack, Ping, Stop, Refused
//! ```
//!
//! A frame is a little-endian `u32` length and the borsh encoding of one [`GuestEnvelope`] or [`HostFrame`].
//! Frames of the guest are numbered; the host acknowledges the highest number it has handled, and the guest
//! keeps at most [`WINDOW_BYTES`] unacknowledged. Two reasons: what was on the way when a connection broke is
//! sent again over the next one, and a VMM that never returns vsock credit by itself (alioth) can't stall.
//!
//! Must never panic or allocate without bound on what the other side sends: a guest is hostile to its host.

use std::io::{self, Read, Write};
use std::net::IpAddr;

use borsh::{BorshDeserialize, BorshSerialize};

/// Raised when a frame changes its meaning; the host refuses a guest of another version.
pub const PROTOCOL_VERSION: u16 = 1;
/// The host's vsock port. The VMM turns it into the Unix socket `<vsock socket>_1024`.
pub const CONTROL_PORT: u32 = 1024;
/// The host's context id, fixed by the vsock specification.
pub const HOST_CID: u32 = 2;
/// Largest frame to the guest. A larger one would not fit the guest's receive queue at once, and alioth does
/// not resume a transfer that ran out of receive buffers.
pub const MAX_HOST_FRAME_BYTES: usize = 256 * 1024;
/// Largest frame to the host; bounds what a hostile guest can make the host buffer.
pub const MAX_GUEST_FRAME_BYTES: usize = 16 * 1024;
/// Largest piece of output in one [`LogChunk`]; leaves room for the envelope within [`MAX_GUEST_FRAME_BYTES`].
pub const MAX_LOG_CHUNK_BYTES: usize = 8 * 1024;
/// Bytes that the guest may have on the way. alioth writes to its Unix socket without waiting and loses the
/// device when that would block, so this stays far below the default socket buffer (208 KiB).
pub const WINDOW_BYTES: usize = 32 * 1024;
/// Frames that the guest may have on the way: small frames cost the host socket about 1 KiB each.
pub const WINDOW_FRAMES: usize = 64;
/// How often the host pings a guest.
pub const PING_INTERVAL_MS: u64 = 5_000;
/// A guest that hears nothing for so long dials again. Some VMMs do not report that the host went away.
pub const HOST_SILENCE_MS: u64 = 25_000;

/// Longest reason or detail text in a frame, in bytes.
pub const MAX_TEXT_BYTES: usize = 2 * 1024;
const MAX_ITEMS: usize = 1024;
const MAX_VOLUMES: usize = 16;
const MAX_INTERFACES: usize = 8;
const MAX_FILES: usize = 64;
const MAX_CHECKS: usize = 16;
const MAX_NAME_BYTES: usize = 64;
const MAX_PATH_BYTES: usize = 1024;
/// virtio-fs tags are 36 bytes in the device's configuration space.
pub const MAX_TAG_BYTES: usize = 36;
/// virtio-blk serials are 20 bytes.
pub const MAX_SERIAL_BYTES: usize = 20;

// ---------------------------------------------------------------------------------------------------------
// Guest to host

/// A numbered frame of the guest. Numbers start at 1 and never repeat within one boot of the guest.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct GuestEnvelope {
    /// Position in the guest's stream; 0 for [`GuestFrame::Hello`], which is not acknowledged.
    pub number: u64,
    /// What happened.
    pub frame: GuestFrame,
}

/// What the guest tells its host.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum GuestFrame {
    /// First frame of every connection.
    Hello(GuestHello),
    /// Output of the workload.
    Log(LogChunk),
    /// Output was discarded because the host did not take it in time.
    DroppedLogs { chunks: u64, bytes: u64 },
    /// The entry point runs.
    Started { boot_ms: u64, pid: u32 },
    /// A health check changed its verdict.
    Health(HealthReport),
    /// The entry point ended. Nothing but log frames that were queued before comes ahead of it.
    Exited(ExitReport),
    /// The guest can't run the workload and powers off.
    Failed { step: Step, reason: String },
    /// Answer to [`HostFrame::Ping`].
    Pong { nonce: u64 },
}

/// Who dials, and whether this is the continuation of a boot that the host knows.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct GuestHello {
    /// [`PROTOCOL_VERSION`] of the guest.
    pub version: u16,
    /// Random per boot: a new value on an old VM means that the guest restarted underneath its host.
    pub boot_id: [u8; 16],
    /// True when the guest already has its configuration and only lost the connection.
    pub configured: bool,
    /// Time since the guest kernel started.
    pub boot_ms: u64,
    /// `uname -r` of the guest.
    pub kernel: String,
}

/// A piece of output, cut anywhere, not at line ends.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct LogChunk {
    pub stream: Stream,
    /// Counts the chunks of this boot, dropped ones included: a gap is visible.
    pub sequence: u64,
    /// Guest's wall clock at the first byte, milliseconds since 1970.
    pub time_ms: u64,
    /// At most [`MAX_LOG_CHUNK_BYTES`].
    pub bytes: Vec<u8>,
}

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum Stream {
    Stdout,
    Stderr,
    /// Written by the guest's PID 1 itself.
    System,
}

/// The verdict of one health check, sent when it changes.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct HealthReport {
    /// Name of the check in [`GuestConfig::health`].
    pub check: String,
    pub state: HealthState,
    /// Why, for people; empty when healthy.
    pub detail: String,
}

/// Verdict of a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum HealthState {
    /// Not judged yet.
    Starting,
    Healthy,
    Unhealthy,
}

/// How the entry point ended.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ExitReport {
    pub exit: Exit,
    /// The kernel killed something of the workload for want of memory.
    pub out_of_memory: bool,
    /// The host had asked for it.
    pub asked: bool,
}

/// Exit status as `waitpid` reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum Exit {
    Code(u8),
    Signal(u8),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// The step in which a guest failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum Step {
    Mounts,
    Configuration,
    RootImage,
    Overlay,
    Volumes,
    Network,
    Files,
    User,
    EntryPoint,
    /// A fault of PID 1 itself.
    Internal,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mounts => "mounts",
            Self::Configuration => "configuration",
            Self::RootImage => "root image",
            Self::Overlay => "overlay",
            Self::Volumes => "volumes",
            Self::Network => "network",
            Self::Files => "files",
            Self::User => "user",
            Self::EntryPoint => "entry point",
            Self::Internal => "internal",
        })
    }
}

// ---------------------------------------------------------------------------------------------------------
// Host to guest

/// What the host tells its guest.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum HostFrame {
    /// Answer to the first [`GuestFrame::Hello`] of a boot.
    Config(Box<GuestConfig>),
    /// All frames up to `number` are handled and need not be kept.
    Ack { number: u64 },
    /// Are you alive?
    Ping { nonce: u64 },
    /// Send the stop signal, wait `grace_ms`, then kill.
    Stop { grace_ms: u64 },
    /// The host will not work with this guest; it powers off.
    Refused { reason: String },
}

/// Everything that a microVM needs to know to run one workload.
#[derive(Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Default)]
pub struct GuestConfig {
    pub hostname: String,
    /// The command; the first word is looked up in `PATH` when it has no slash.
    pub argv: Vec<String>,
    /// Environment, image defaults already merged in.
    pub env: Vec<(String, String)>,
    pub secrets: Vec<Secret>,
    /// OCI `User`: `name`, `uid`, `name:group`, `uid:gid`; empty is root.
    pub user: String,
    /// Working directory; created when missing. Empty is `/`.
    pub cwd: String,
    pub stop_signal: StopSignal,
    pub overlay: OverlaySize,
    pub volumes: Vec<Volume>,
    pub network: Network,
    pub files: Vec<File>,
    pub health: Vec<HealthCheck>,
    /// Host's wall clock, milliseconds since 1970; 0 is unknown. The guest corrects its clock when it is far off.
    pub now_ms: u64,
}

impl std::fmt::Debug for GuestConfig {
    /// Leaves out values of the environment, secrets and files: this type ends up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestConfig")
            .field("hostname", &self.hostname)
            .field("argv", &self.argv)
            .field("env", &self.env.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("secrets", &self.secrets)
            .field("user", &self.user)
            .field("cwd", &self.cwd)
            .field("stop_signal", &self.stop_signal)
            .field("overlay", &self.overlay)
            .field("volumes", &self.volumes)
            .field("network", &self.network)
            .field("files", &self.files)
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

/// A value that must not appear in any log.
#[derive(Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Secret {
    pub name: String,
    pub value: Vec<u8>,
    pub target: SecretTarget,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({}, {} bytes, {:?})", self.name, self.value.len(), self.target)
    }
}

/// How the workload gets a secret.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum SecretTarget {
    /// As an environment variable called like the secret.
    Environment,
    /// As a file readable by the workload's user only.
    File { path: String },
}

/// A file that the host puts into the writable layer before the entry point starts.
#[derive(Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct File {
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    pub contents: Vec<u8>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File({}, {:o}, {} bytes)", self.path, self.mode, self.contents.len())
    }
}

/// A signal number, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct StopSignal(pub u8);

impl Default for StopSignal {
    /// SIGTERM, as OCI says.
    fn default() -> Self {
        Self(15)
    }
}

impl StopSignal {
    /// Reads OCI's `StopSignal`: a number, a name with or without `SIG`, or `SIGRTMIN+n`.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let bad = || ConfigError::StopSignal { text: text.to_owned() };
        // `parse` alone would take a sign.
        let number = |text: &str| text.parse::<u8>().ok().filter(|_| !text.starts_with('+'));
        if let Some(number) = number(text) {
            return if (1..=64).contains(&number) { Ok(Self(number)) } else { Err(bad()) };
        }
        let name = text.strip_prefix("SIG").unwrap_or(text);
        let real_time = |offset: &str, base: i16, sign: i16| {
            let signal = base + sign * i16::from(number(offset)?);
            (34..=64).contains(&signal).then_some(Self(signal as u8))
        };
        if let Some(offset) = name.strip_prefix("RTMIN+") {
            return real_time(offset, 34, 1).ok_or_else(bad);
        }
        if let Some(offset) = name.strip_prefix("RTMAX-") {
            return real_time(offset, 64, -1).ok_or_else(bad);
        }
        let number = match name {
            "HUP" => 1,
            "INT" => 2,
            "QUIT" => 3,
            "ABRT" => 6,
            "KILL" => 9,
            "USR1" => 10,
            "USR2" => 12,
            "PIPE" => 13,
            "ALRM" => 14,
            "TERM" => 15,
            "CONT" => 18,
            "STOP" => 19,
            "WINCH" => 28,
            "PWR" => 30,
            "RTMIN" => 34,
            "RTMAX" => 64,
            _ => return Err(bad()),
        };
        Ok(Self(number))
    }
}

/// How much the workload may write over its read-only image. The layer lives in the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum OverlaySize {
    Bytes(u64),
    /// 1 to 90.
    PercentOfMemory(u8),
}

impl Default for OverlaySize {
    fn default() -> Self {
        Self::PercentOfMemory(40)
    }
}

/// A volume and where the workload sees it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Volume {
    pub mount_path: String,
    pub readonly: bool,
    pub source: VolumeSource,
}

/// What is behind a volume.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum VolumeSource {
    /// ext4 on a virtio disk, found by its serial; where the VMM can't set serials, by its position after
    /// the root image (0 is `/dev/vdb`).
    Disk { serial: String, position: u8 },
    /// A virtio-fs device.
    Share { tag: String },
}

/// Links, name service and names.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Default)]
pub struct Network {
    pub interfaces: Vec<Interface>,
    pub dns: Vec<IpAddr>,
    pub search: Vec<String>,
    pub hosts: Vec<(IpAddr, Vec<String>)>,
}

/// One network interface, found by its hardware address.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Interface {
    pub mac: [u8; 6],
    pub addresses: Vec<Cidr>,
    pub routes: Vec<Route>,
    /// 576 to 65535; 0 leaves the device's own.
    pub mtu: u16,
}

/// An address with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A route; `0.0.0.0/0` or `::/0` is the default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Route {
    pub destination: Cidr,
    pub gateway: Option<IpAddr>,
}

/// A question asked again and again to learn whether the workload works.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct HealthCheck {
    pub name: String,
    pub probe: Probe,
    pub interval_ms: u32,
    pub timeout_ms: u32,
    /// Failures in a row that make it unhealthy.
    pub retries: u16,
    /// Failures within this time after the start do not count.
    pub start_period_ms: u32,
}

/// How to ask.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Probe {
    /// A connection to 127.0.0.1 is accepted.
    Tcp { port: u16 },
    /// `GET path` on 127.0.0.1 answers with a status in the range.
    Http { port: u16, path: String, status_min: u16, status_max: u16 },
    /// The command exits with 0.
    Exec { argv: Vec<String> },
}

// ---------------------------------------------------------------------------------------------------------
// Validation

/// Why a configuration is refused, before it leaves the host and again where it arrives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no command to run: set a command, or use an image with an entry point")]
    NoCommand,
    #[error("{what} has {count} entries, at most {limit} are allowed")]
    TooMany { what: &'static str, count: usize, limit: usize },
    #[error("{what} {text:?} is not valid: {rule}")]
    Text { what: &'static str, text: String, rule: &'static str },
    #[error("{what} appears twice: {text:?}")]
    Duplicate { what: &'static str, text: String },
    #[error("stop signal {text:?} is unknown: use a name such as SIGTERM or a number from 1 to 64")]
    StopSignal { text: String },
    #[error("{what} is {value}, it must be between {min} and {max}")]
    Range { what: &'static str, value: u64, min: u64, max: u64 },
    #[error("the configuration takes {bytes} bytes, at most {limit} fit: shorten files or environment")]
    TooLarge { bytes: usize, limit: usize },
}

impl GuestConfig {
    /// Checks sizes, names and ranges.
    pub fn validate(&self) -> Result<(), ConfigError> {
        name("hostname", &self.hostname)?;
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(ConfigError::NoCommand);
        }
        count("command", self.argv.len(), MAX_ITEMS)?;
        for word in &self.argv {
            no_nul("command", word)?;
        }
        self.validate_environment()?;
        no_nul("user", &self.user)?;
        if !self.cwd.is_empty() {
            path("working directory", &self.cwd)?;
        }
        range("stop signal", u64::from(self.stop_signal.0), 1, 64)?;
        match self.overlay {
            OverlaySize::Bytes(bytes) => {
                range("writable layer in bytes", bytes, 1 << 20, 1 << 40)?;
            }
            OverlaySize::PercentOfMemory(share) => {
                range("writable layer in percent", u64::from(share), 1, 90)?;
            }
        }
        self.validate_volumes()?;
        self.validate_network()?;
        self.validate_files()?;
        self.validate_health()?;
        let bytes = borsh::object_length(self).unwrap_or(usize::MAX);
        // Room for the enum tag.
        let limit = MAX_HOST_FRAME_BYTES - 16;
        if bytes > limit { Err(ConfigError::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    fn validate_environment(&self) -> Result<(), ConfigError> {
        count("environment", self.env.len(), MAX_ITEMS)?;
        count("secrets", self.secrets.len(), MAX_FILES)?;
        for (variable, value) in &self.env {
            variable_name(variable)?;
            no_nul("environment value of", value)?;
        }
        for secret in &self.secrets {
            match &secret.target {
                SecretTarget::Environment => {
                    variable_name(&secret.name)?;
                    if secret.value.contains(&0) || std::str::from_utf8(&secret.value).is_err() {
                        return Err(ConfigError::Text {
                            what: "secret",
                            text: secret.name.clone(),
                            rule: "its value must be text to become an environment variable",
                        });
                    }
                }
                SecretTarget::File { path: target } => path("secret file", target)?,
            }
        }
        Ok(())
    }

    fn validate_volumes(&self) -> Result<(), ConfigError> {
        count("volumes", self.volumes.len(), MAX_VOLUMES)?;
        let mut seen = Vec::new();
        for volume in &self.volumes {
            path("volume path", &volume.mount_path)?;
            let normal = volume.mount_path.trim_end_matches('/');
            if normal.is_empty() || ["/proc", "/sys", "/dev"].contains(&normal) {
                return Err(ConfigError::Text {
                    what: "volume path",
                    text: volume.mount_path.clone(),
                    rule: "a volume can't replace /, /proc, /sys or /dev",
                });
            }
            if seen.contains(&normal) {
                return Err(ConfigError::Duplicate { what: "volume path", text: normal.to_owned() });
            }
            seen.push(normal);
            match &volume.source {
                VolumeSource::Disk { serial, .. } => token("disk serial", serial, MAX_SERIAL_BYTES)?,
                VolumeSource::Share { tag } => token("share tag", tag, MAX_TAG_BYTES)?,
            }
        }
        Ok(())
    }

    fn validate_network(&self) -> Result<(), ConfigError> {
        let network = &self.network;
        count("interfaces", network.interfaces.len(), MAX_INTERFACES)?;
        count("name servers", network.dns.len(), 8)?;
        count("search domains", network.search.len(), 8)?;
        count("hosts", network.hosts.len(), MAX_ITEMS)?;
        for domain in &network.search {
            name("search domain", domain)?;
        }
        for host in network.hosts.iter().flat_map(|(_, names)| names) {
            name("host name", host)?;
        }
        for interface in &network.interfaces {
            count("addresses", interface.addresses.len(), 16)?;
            count("routes", interface.routes.len(), 64)?;
            if interface.mtu != 0 {
                range("MTU", u64::from(interface.mtu), 576, 65_535)?;
            }
            for cidr in interface.addresses.iter().chain(interface.routes.iter().map(|r| &r.destination)) {
                let max = if cidr.address.is_ipv4() { 32 } else { 128 };
                range("prefix length", u64::from(cidr.prefix), 0, max)?;
            }
            for route in &interface.routes {
                if route
                    .gateway
                    .is_some_and(|gateway| gateway.is_ipv4() != route.destination.address.is_ipv4())
                {
                    return Err(ConfigError::Text {
                        what: "route",
                        text: route.destination.to_string(),
                        rule: "destination and gateway must be of one address family",
                    });
                }
            }
        }
        Ok(())
    }

    fn validate_files(&self) -> Result<(), ConfigError> {
        count("files", self.files.len(), MAX_FILES)?;
        for file in &self.files {
            path("file", &file.path)?;
            range("file mode", u64::from(file.mode), 0, 0o7777)?;
        }
        Ok(())
    }

    fn validate_health(&self) -> Result<(), ConfigError> {
        count("health checks", self.health.len(), MAX_CHECKS)?;
        let mut seen = Vec::new();
        for check in &self.health {
            name("health check", &check.name)?;
            if seen.contains(&&check.name) {
                return Err(ConfigError::Duplicate { what: "health check", text: check.name.clone() });
            }
            seen.push(&check.name);
            range("health check interval in ms", u64::from(check.interval_ms), 100, 86_400_000)?;
            range("health check timeout in ms", u64::from(check.timeout_ms), 1, 600_000)?;
            range("health check retries", u64::from(check.retries), 1, 1000)?;
            match &check.probe {
                Probe::Tcp { port } => range("health check port", u64::from(*port), 1, 65_535)?,
                Probe::Http { port, path, status_min, status_max } => {
                    range("health check port", u64::from(*port), 1, 65_535)?;
                    range("health check status", u64::from(*status_max), u64::from(*status_min), 599)?;
                    if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b == 0x7f) {
                        return Err(ConfigError::Text {
                            what: "health check path",
                            text: path.clone(),
                            rule: "it must start with / and hold no spaces or control characters",
                        });
                    }
                }
                Probe::Exec { argv } => {
                    count("health check command", argv.len(), MAX_ITEMS)?;
                    if argv.first().is_none_or(String::is_empty) {
                        return Err(ConfigError::NoCommand);
                    }
                    for word in argv {
                        no_nul("health check command", word)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn count(what: &'static str, count: usize, limit: usize) -> Result<(), ConfigError> {
    if count > limit { Err(ConfigError::TooMany { what, count, limit }) } else { Ok(()) }
}

fn range(what: &'static str, value: u64, min: u64, max: u64) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(ConfigError::Range { what, value, min, max }) }
}

fn no_nul(what: &'static str, text: &str) -> Result<(), ConfigError> {
    if text.contains('\0') {
        return Err(ConfigError::Text { what, text: text.to_owned(), rule: "it must not hold a NUL byte" });
    }
    Ok(())
}

fn variable_name(text: &str) -> Result<(), ConfigError> {
    if text.is_empty() || text.contains(['=', '\0']) {
        let rule = "a variable needs a name without = and NUL";
        return Err(ConfigError::Text { what: "environment variable", text: text.to_owned(), rule });
    }
    Ok(())
}

fn name(what: &'static str, text: &str) -> Result<(), ConfigError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.is_empty()
        || text.len() > MAX_NAME_BYTES
        || text.starts_with(['-', '.'])
        || !text.bytes().all(good)
    {
        let rule = "1 to 64 letters, digits, '-', '_' or '.', not starting with '-' or '.'";
        return Err(ConfigError::Text { what, text: text.to_owned(), rule });
    }
    Ok(())
}

/// Tags and serials: they also appear in argument lists and file names of the host.
pub fn token(what: &'static str, text: &str, limit: usize) -> Result<(), ConfigError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if text.is_empty() || text.len() > limit || text.starts_with('-') || !text.bytes().all(good) {
        let rule =
            "letters, digits, '-' and '_' within the device's limit (36 bytes for a tag, 20 for a serial)";
        return Err(ConfigError::Text { what, text: text.to_owned(), rule });
    }
    Ok(())
}

fn path(what: &'static str, text: &str) -> Result<(), ConfigError> {
    let climbs = text.split('/').any(|part| part == "..");
    if !text.starts_with('/') || text.len() > MAX_PATH_BYTES || text.contains('\0') || climbs {
        let rule = "it must be an absolute path without '..', at most 1024 bytes";
        return Err(ConfigError::Text { what, text: text.to_owned(), rule });
    }
    Ok(())
}

/// Cuts a text for a frame at a character boundary.
#[must_use]
pub fn shorten(text: &str) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text.to_owned();
    }
    let mut end = MAX_TEXT_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}

// ---------------------------------------------------------------------------------------------------------
// Framing

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {bytes} bytes is announced, at most {limit} are allowed")]
    TooLong { bytes: usize, limit: usize },
    #[error("a frame does not decode")]
    Malformed(#[source] io::Error),
    #[error("the connection ended")]
    Closed,
    #[error("the connection failed")]
    Io(#[source] io::Error),
}

/// Encodes a frame with its length in front.
///
/// # Panics
/// When the value does not fit `limit`: callers bound what they put into a frame.
pub fn encode<T: BorshSerialize>(value: &T, limit: usize) -> Vec<u8> {
    let mut out = vec![0_u8; 4];
    // Writing to a Vec does not fail.
    borsh::to_writer(&mut out, value).expect("encoding into memory");
    let length = out.len() - 4;
    assert!(length <= limit, "a frame of {length} bytes exceeds {limit}");
    out[..4].copy_from_slice(&(length as u32).to_le_bytes());
    out
}

/// Decodes the body of a frame; trailing bytes are an error.
pub fn decode<T: BorshDeserialize>(body: &[u8]) -> Result<T, FrameError> {
    borsh::from_slice(body).map_err(FrameError::Malformed)
}

/// Checks an announced length, before anything is allocated for it.
pub fn checked_length(prefix: [u8; 4], limit: usize) -> Result<usize, FrameError> {
    let bytes = u32::from_le_bytes(prefix) as usize;
    if bytes == 0 || bytes > limit { Err(FrameError::TooLong { bytes, limit }) } else { Ok(bytes) }
}

/// Reads one frame from a blocking stream.
pub fn read_frame<T: BorshDeserialize>(stream: &mut impl Read, limit: usize) -> Result<T, FrameError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Closed,
        _ => FrameError::Io(error),
    };
    let mut prefix = [0_u8; 4];
    stream.read_exact(&mut prefix).map_err(failed)?;
    let mut body = vec![0_u8; checked_length(prefix, limit)?];
    stream.read_exact(&mut body).map_err(failed)?;
    decode(&body)
}

/// Writes one frame to a blocking stream.
pub fn write_frame<T: BorshSerialize>(stream: &mut impl Write, value: &T, limit: usize) -> io::Result<()> {
    stream.write_all(&encode(value, limit))
}

#[cfg(test)]
mod tests;
