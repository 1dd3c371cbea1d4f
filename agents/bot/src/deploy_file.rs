//! The deploy file, `croft.toml`: what a person writes about a workload, and what it means.
//!
//! [`DeployFile::parse`] reads and checks the text; [`DeployFile::resolve`] fills every default from the
//! images and reads the secrets, so that a [`croft_protocol::workload::Workload`] comes out in which nothing is left open. Unknown
//! fields are refused. The format is documented in [`FORMAT`], which `croft deploy --help` prints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use croft_protocol::contract::Transport;
use croft_protocol::workload::{RestartPolicy, VolumeKind};
use croft_protocol::{Name, limits, units};
use serde::Deserialize;
use serde::de::DeserializeOwned;

mod resolve;
#[cfg(test)]
mod tests;

pub use resolve::{ImageDefaults, ResolveError, Resolved, ResolvedImage, SecretError};

/// A deploy file is written by hand: what is larger, is another file.
const FILE_BYTES: u64 = 256 * 1024;

/// The format, for people.
pub const FORMAT: &str = r#"THE DEPLOY FILE (croft.toml)

  name = "web"                     # what you call it; yours alone

  [vm.web]                         # a microVM; up to 16
  image = "nginx"                  # a name of 'croft image list', or a manifest's hash
  cpu = "0.5"                      # CPUs: 1, 0.5, 250m
  memory = "256M"                  # at least 64M
  command = ["/bin/app", "-v"]     # default: the image's entry point and command
  env = { LANG = "C" }             # added to the image's
  secrets = { TOKEN = { env = "MY_TOKEN" }, KEY = { file = "key.txt" } }
                                   # read when deployed, sealed to the node, shown nowhere
  user = "1000:1000"               # default: the image's
  working_dir = "/srv"             # default: the image's
  stop_signal = "SIGQUIT"          # default: the image's, else SIGTERM
  stop_grace = "10s"               # then it is killed
  restart = "always"               # always (default), on-failure, never
  mounts = [{ volume = "data", path = "/data", read_only = false }]
  ports = [{ published = 18080, guest = 80, transport = "tcp" }]    # tcp (default), udp
  health = { http = { port = 80, path = "/" }, interval = "5s", timeout = "2s", retries = 3,
             start_period = "30s" }            # or tcp = { port = 80 }, or exec = ["/bin/check"]

  [volume.data]                    # keeps what is written over restarts and power cuts
  kind = "exclusive"               # a disk for one microVM, or "shared": a directory for several
  size = "64M"                     # at least 16M

  [terms]
  duration = "24h"                 # default 24h; s, m, h, d
  grace = "1h"                     # how long the data is kept after the end; default 1h
  prepaid = "2h"                   # paid ahead, at least 1h; 'croft fund' adds to it; default: all of it
  max_price = 1000000              # grains for the whole duration; default: whatever it costs

  [placement]
  country = ["be", "nl"]           # default: anywhere
  farm = "attic"                   # default: any
  node = "node-1"                  # default: the best; needs farm

  [approval]                       # who must sign before any node may run it; default: nobody
  threshold = 2                    # weight that must approve; default: that of all
  approvers = [{ bot = "olga", weight = 2, required = true }, { bot = "otto" }]
                                   # weight: default 1; one who is required ends it by refusing
"#;

/// Why a file is no deploy file. Line numbers count from 1.
#[derive(Debug, thiserror::Error)]
pub enum DeployFileError {
    #[error(
        "there is no deploy file {path}: name the file to deploy, and see its format with 'croft deploy --help'"
    )]
    Missing { path: PathBuf },
    #[error("can't read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} has {bytes} bytes; a deploy file has at most {FILE_BYTES}")]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("{path}, line {line}: {reason}")]
    Syntax { path: PathBuf, line: usize, reason: String },
    #[error("{path}, {place}: {reason}")]
    Value { path: PathBuf, place: String, reason: String },
}

/// A deploy file, checked as far as it goes without images and secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeployFile {
    pub path: PathBuf,
    pub name: Name,
    pub vms: BTreeMap<Name, VmFile>,
    pub volumes: BTreeMap<Name, VolumeFile>,
    pub terms: TermsFile,
    pub placement: Placement,
    pub approval: Option<ApprovalFile>,
}

/// Whose weighted signatures it needs, by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovalFile {
    pub threshold: u32,
    pub approvers: Vec<ApproverFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApproverFile {
    pub bot: Name,
    pub weight: u32,
    pub required: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFile {
    pub image: String,
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub command: Option<Vec<String>>,
    pub env: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, SecretSource>,
    pub user: Option<String>,
    pub working_dir: Option<String>,
    pub stop_signal: Option<String>,
    pub stop_grace_s: u32,
    pub restart: RestartPolicy,
    pub mounts: Vec<MountFile>,
    pub ports: Vec<PortFile>,
    pub health: Option<HealthFile>,
}

/// Where a secret comes from. Never from the deploy file itself: that one is in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    Env(String),
    /// Relative to the deploy file.
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFile {
    pub kind: VolumeKind,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TermsFile {
    pub duration_s: u64,
    pub grace_s: u64,
    pub max_price: Option<u64>,
    /// `None`: the whole duration is paid with the agreement.
    pub prepaid_s: Option<u64>,
}

/// Where it may run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// ISO 3166-1 alpha-2, lower case; empty for anywhere.
    pub countries: Vec<String>,
    pub farm: Option<Name>,
    pub node: Option<Name>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFile {
    pub volume: Name,
    pub path: String,
    pub read_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortFile {
    pub published: u16,
    pub guest: u16,
    pub transport: Transport,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthFile {
    pub probe: croft_protocol::workload::Probe,
    pub interval_s: u32,
    pub timeout_s: u32,
    pub retries: u32,
    pub start_period_s: u32,
}

// What serde reads. Amounts stay texts here, so that our own messages speak of them.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    name: Name,
    vm: BTreeMap<Name, RawVm>,
    #[serde(default)]
    volume: BTreeMap<Name, RawVolume>,
    #[serde(default)]
    terms: RawTerms,
    #[serde(default)]
    placement: RawPlacement,
    approval: Option<RawApproval>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVm {
    image: String,
    cpu: Text,
    memory: Text,
    command: Option<Vec<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    secrets: BTreeMap<String, RawSecret>,
    user: Option<Text>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    stop_grace: Option<Text>,
    restart: Option<RawRestart>,
    #[serde(default)]
    mounts: Vec<RawMount>,
    #[serde(default)]
    ports: Vec<RawPort>,
    health: Option<RawHealth>,
}

/// A text, or a number that stands for its digits: `cpu = 1` is as good as `cpu = "1"`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text such as \"512M\"")]
enum Text {
    Written(String),
    Integer(i64),
    Float(f64),
}

impl Text {
    fn into_string(self) -> String {
        match self {
            Self::Written(text) => text,
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSecret {
    env: Option<String>,
    file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawRestart {
    Always,
    OnFailure,
    Never,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMount {
    volume: Name,
    path: String,
    #[serde(default)]
    read_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPort {
    published: u16,
    guest: u16,
    transport: Option<Transport>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHealth {
    tcp: Option<RawTcp>,
    http: Option<RawHttp>,
    exec: Option<Vec<String>>,
    interval: Option<Text>,
    timeout: Option<Text>,
    retries: Option<u32>,
    start_period: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTcp {
    port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    port: u16,
    path: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVolume {
    kind: VolumeKind,
    size: Text,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTerms {
    duration: Option<Text>,
    grace: Option<Text>,
    max_price: Option<u64>,
    prepaid: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApproval {
    threshold: Option<u32>,
    approvers: Vec<RawApprover>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApprover {
    bot: Name,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default)]
    required: bool,
}

fn one() -> u32 {
    1
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlacement {
    #[serde(default)]
    country: Vec<String>,
    farm: Option<Name>,
    node: Option<Name>,
}

impl DeployFile {
    /// Reads and parses a file.
    pub fn read(path: &Path) -> Result<Self, DeployFileError> {
        use std::io::Read as _;
        let failed = |source| DeployFileError::Read { path: path.to_owned(), source };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(DeployFileError::Missing { path: path.to_owned() });
            }
            Err(e) => return Err(failed(e)),
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > FILE_BYTES {
            return Err(DeployFileError::TooLarge { path: path.to_owned(), bytes: bytes.len() as u64 });
        }
        let text = String::from_utf8(bytes).map_err(|e| DeployFileError::Syntax {
            path: path.to_owned(),
            line: line_at(e.as_bytes(), e.utf8_error().valid_up_to()),
            reason: "this is not UTF-8".to_owned(),
        })?;
        Self::parse(path, &text)
    }

    /// Parses the text of a file; `path` is for messages and for the secrets' files.
    pub fn parse(path: &Path, text: &str) -> Result<Self, DeployFileError> {
        let raw: RawFile = from_toml(path, text)?;
        let checker = Checker { path };
        let mut vms = BTreeMap::new();
        for (name, vm) in raw.vm {
            let vm = checker.vm(&name, vm)?;
            vms.insert(name, vm);
        }
        let mut volumes = BTreeMap::new();
        for (name, volume) in raw.volume {
            let place = format!("[volume.{name}]");
            let size_bytes = checker.bytes(&place, "size", volume.size)?;
            volumes.insert(name, VolumeFile { kind: volume.kind, size_bytes });
        }
        Ok(Self {
            path: path.to_owned(),
            name: raw.name,
            vms,
            volumes,
            terms: checker.terms(raw.terms)?,
            placement: checker.placement(raw.placement)?,
            approval: raw.approval.map(|approval| checker.approval(approval)).transpose()?,
        })
    }
}

/// The line of a byte, from 1.
fn line_at(text: &[u8], offset: usize) -> usize {
    text[..offset].split(|b| *b == b'\n').count()
}

fn from_toml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, DeployFileError> {
    toml::from_str(text).map_err(|e| {
        let offset = e.span().map_or(0, |span| span.start.min(text.len()));
        let line = line_at(text.as_bytes(), offset);
        // The parser quotes names `so`, we 'so'; and it says "expected one of" for a list of all.
        let reason = e.message().trim().replace('`', "'").replace('\n', "; ");
        let reason =
            reason.replace(", expected one of ", "; allowed are ").replace(", expected ", "; expected is ");
        DeployFileError::Syntax { path: path.to_owned(), line, reason }
    })
}

/// Whether a text has the form of a signal's name or number; which of them exist, the guest knows.
fn is_signal(text: &str) -> bool {
    match text.strip_prefix("SIG") {
        Some(name) => {
            (2..=12).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'+' || b == b'-')
        }
        None => text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number)),
    }
}

/// Turns raw values into checked ones; knows how to name the place of a mistake.
struct Checker<'a> {
    path: &'a Path,
}

impl Checker<'_> {
    fn error(&self, place: &str, reason: impl Into<String>) -> DeployFileError {
        DeployFileError::Value { path: self.path.to_owned(), place: place.to_owned(), reason: reason.into() }
    }

    fn bytes(&self, place: &str, field: &str, text: Text) -> Result<u64, DeployFileError> {
        units::parse_bytes(&text.into_string()).map_err(|e| self.error(place, format!("{field}: {e}")))
    }

    fn seconds(&self, place: &str, field: &str, text: Text, limit: u64) -> Result<u64, DeployFileError> {
        let seconds = units::parse_seconds(&text.into_string())
            .map_err(|e| self.error(place, format!("{field}: {e}")))?;
        if seconds > limit {
            let limit = crate::terminal::show_duration(limit);
            return Err(
                self.error(place, format!("{field}: {seconds} s are too long; at most {limit} are allowed"))
            );
        }
        Ok(seconds)
    }

    fn vm(&self, name: &Name, raw: RawVm) -> Result<VmFile, DeployFileError> {
        let place = format!("[vm.{name}]");
        let cpu_millis = units::parse_cpu_millis(&raw.cpu.into_string())
            .map_err(|e| self.error(&place, format!("cpu: {e}")))?;
        let memory_bytes = self.bytes(&place, "memory", raw.memory)?;
        for key in raw.env.keys().chain(raw.secrets.keys()) {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(self.error(&place, format!("'{key}' is no name of an environment variable")));
            }
        }
        if let Some(key) = raw.env.keys().find(|key| raw.secrets.contains_key(*key)) {
            return Err(self.error(&place, format!("'{key}' is set in env and in secrets: keep one")));
        }
        let mut secrets = BTreeMap::new();
        for (key, secret) in raw.secrets {
            let source = match (secret.env, secret.file) {
                (Some(variable), None) => SecretSource::Env(variable),
                (None, Some(file)) => SecretSource::File(file),
                _ => {
                    let reason = format!("secret '{key}' needs either env = \"VARIABLE\" or file = \"PATH\"");
                    return Err(self.error(&place, reason));
                }
            };
            secrets.insert(key, source);
        }
        if let Some(signal) = raw.stop_signal.as_ref().filter(|s| !is_signal(s)) {
            let reason = format!("stop_signal: '{signal}' is no signal: write its name, such as SIGTERM");
            return Err(self.error(&place, reason));
        }
        let stop_grace_s = match raw.stop_grace {
            Some(text) => self.seconds(&place, "stop_grace", text, 3600)? as u32,
            None => 10,
        };
        let health = raw.health.map(|health| self.health(&place, health)).transpose()?;
        Ok(VmFile {
            image: raw.image,
            cpu_millis,
            memory_bytes,
            command: raw.command,
            env: raw.env,
            secrets,
            user: raw.user.map(Text::into_string),
            working_dir: raw.working_dir,
            stop_signal: raw.stop_signal,
            stop_grace_s,
            restart: match raw.restart {
                None | Some(RawRestart::Always) => RestartPolicy::Always,
                Some(RawRestart::OnFailure) => RestartPolicy::OnFailure,
                Some(RawRestart::Never) => RestartPolicy::Never,
            },
            mounts: raw
                .mounts
                .into_iter()
                .map(|m| MountFile { volume: m.volume, path: m.path, read_only: m.read_only })
                .collect(),
            ports: raw
                .ports
                .into_iter()
                .map(|p| PortFile {
                    published: p.published,
                    guest: p.guest,
                    transport: p.transport.unwrap_or(Transport::Tcp),
                })
                .collect(),
            health,
        })
    }

    fn health(&self, place: &str, raw: RawHealth) -> Result<HealthFile, DeployFileError> {
        use croft_protocol::workload::Probe;
        let probe = match (raw.tcp, raw.http, raw.exec) {
            (Some(tcp), None, None) => Probe::Tcp { port: tcp.port },
            (None, Some(http), None) => {
                let path = http.path.unwrap_or_else(|| "/".to_owned());
                if !path.starts_with('/') || path.contains(|c: char| c.is_control() || c == ' ') {
                    return Err(self.error(
                        place,
                        format!("health: path '{path}' must start with '/' and have no spaces"),
                    ));
                }
                Probe::Http { port: http.port, path }
            }
            (None, None, Some(argv)) if argv.first().is_some_and(|program| !program.is_empty()) => {
                Probe::Exec { argv }
            }
            _ => {
                let reason = "health: give exactly one of tcp = { port = … }, http = { port = …, path = \"/\" } and exec = [\"…\"]";
                return Err(self.error(place, reason));
            }
        };
        let seconds = |field, text: Option<Text>, default| {
            text.map_or(Ok(default), |t| self.seconds(place, field, t, 86_400).map(|s| s as u32))
        };
        let retries = raw.retries.unwrap_or(3);
        if !(1..=1000).contains(&retries) {
            return Err(self.error(place, format!("health: {retries} retries; allowed are 1 to 1000")));
        }
        Ok(HealthFile {
            probe,
            interval_s: seconds("health.interval", raw.interval, 10)?,
            timeout_s: seconds("health.timeout", raw.timeout, 5)?,
            retries,
            start_period_s: seconds("health.start_period", raw.start_period, 30)?,
        })
    }

    fn terms(&self, raw: RawTerms) -> Result<TermsFile, DeployFileError> {
        let seconds = |field, text: Option<Text>, default, limit| {
            text.map_or(Ok(default), |t| self.seconds("[terms]", field, t, limit))
        };
        let duration_s = seconds("duration", raw.duration, 86_400, limits::DURATION_S)?;
        let prepaid_s = match raw.prepaid {
            None => None,
            Some(text) => {
                let prepaid_s = self.seconds("[terms]", "prepaid", text, duration_s)?;
                let least_s = limits::PREPAID_S.min(duration_s);
                if prepaid_s < least_s {
                    let least = crate::terminal::show_duration(least_s);
                    let reason =
                        format!("prepaid: {prepaid_s} s are too short; at least {least} are paid ahead");
                    return Err(self.error("[terms]", reason));
                }
                Some(prepaid_s)
            }
        };
        Ok(TermsFile {
            duration_s,
            grace_s: seconds("grace", raw.grace, 3_600, limits::GRACE_S)?,
            max_price: raw.max_price,
            prepaid_s,
        })
    }

    fn approval(&self, raw: RawApproval) -> Result<ApprovalFile, DeployFileError> {
        let error = |reason: String| self.error("[approval]", reason);
        let count = raw.approvers.len();
        if !(1..=limits::APPROVERS_PER_CONTRACT).contains(&count) {
            let most = limits::APPROVERS_PER_CONTRACT;
            return Err(error(format!("{count} approvers; allowed are 1 to {most}")));
        }
        let mut total = 0_u32;
        for (i, approver) in raw.approvers.iter().enumerate() {
            let bot = &approver.bot;
            if raw.approvers[..i].iter().any(|other| other.bot == *bot) {
                return Err(error(format!("approver '{bot}' is named twice: keep one")));
            }
            if approver.weight == 0 {
                return Err(error(format!("approver '{bot}' has weight 0: give 1 or more")));
            }
            total = total
                .checked_add(approver.weight)
                .ok_or_else(|| error("the weights exceed 2^32 - 1 together: give less".to_owned()))?;
        }
        let threshold = raw.threshold.unwrap_or(total);
        if !(1..=total).contains(&threshold) {
            return Err(error(format!(
                "threshold {threshold}; allowed are 1 to {total}, the sum of the weights"
            )));
        }
        let approvers = raw.approvers.into_iter();
        let approvers = approvers
            .map(|RawApprover { bot, weight, required }| ApproverFile { bot, weight, required })
            .collect();
        Ok(ApprovalFile { threshold, approvers })
    }

    fn placement(&self, raw: RawPlacement) -> Result<Placement, DeployFileError> {
        for country in &raw.country {
            if !croft_protocol::name::is_country(country) {
                let reason = format!(
                    "'{country}' is not a country: use two lower-case letters of ISO 3166-1, such as be"
                );
                return Err(self.error("[placement]", reason));
            }
        }
        if raw.node.is_some() && raw.farm.is_none() {
            return Err(self.error("[placement]", "node is named, but not its farm: add farm = \"…\""));
        }
        Ok(Placement { countries: raw.country, farm: raw.farm, node: raw.node })
    }
}
