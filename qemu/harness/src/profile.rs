//! Profiles (`qemu/profiles/*.toml`): the machine to boot on, as people read and change it.
//!
//! Unknown fields are refused, sizes bounded, names checked, so that nothing odd reaches QEMU's option
//! syntax.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// QEMU's q35 takes more; no test machine needs it.
const CPUS_MAX: u32 = 64;
const MEMORY_MIN_MIB: u64 = 64;
const MEMORY_MAX_MIB: u64 = 1 << 20;
const DISK_MAX_MIB: u64 = 64 << 20;
const DISKS_MAX: usize = 16;
const NICS_MAX: usize = 8;
/// Longest serial number that virtio-blk shows the guest (VIRTIO 1.2, 5.2.6).
const SERIAL_MAX_BYTES: usize = 20;

/// The kernel's own arguments on a node; a profile may replace them.
pub const NODE_ARGUMENTS: [&str; 7] = [
    "console=tty0",
    "console=ttyS0,115200",
    "loglevel=6",
    "printk.devkmsg=on",
    "printk.time=1",
    "panic=30",
    "watchdog.stop_on_reboot=0",
];

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Appears in messages and in QEMU's process name.
    pub name: String,
    #[serde(default)]
    pub machine: MachineType,
    pub cpus: u32,
    pub memory_mib: u64,
    /// The machine runs virtual machines itself, so the accelerator must nest.
    #[serde(default)]
    pub nested: bool,
    /// Hardware watchdog (i6300esb) that resets the machine.
    #[serde(default = "yes")]
    pub watchdog: bool,
    /// A serial port. Without one nothing of the kernel's log is heard: look at the ledger, or at the monitor.
    #[serde(default = "yes")]
    pub serial: bool,
    /// The clock starts with this year's first day, as one does whose battery is empty. Default: the host's time.
    #[serde(default)]
    pub clock_year: Option<u16>,
    /// Replaces [`NODE_ARGUMENTS`].
    #[serde(default)]
    pub kernel_arguments: Option<Vec<String>>,
    /// Added to the kernel's arguments.
    #[serde(default)]
    pub extra_kernel_arguments: Vec<String>,
    /// What SMBIOS tells the guest.
    #[serde(default)]
    pub smbios: Option<Smbios>,
    #[serde(default)]
    pub disk: Vec<Disk>,
    #[serde(default)]
    pub nic: Vec<Nic>,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineType {
    #[default]
    Q35,
    Pc,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Smbios {
    pub manufacturer: String,
    pub product: String,
    pub serial: String,
}

/// A disk; its file is `<name>.<format>` in the state directory, made when it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub name: String,
    pub size_mib: u64,
    #[serde(default)]
    pub model: DiskModel,
    #[serde(default)]
    pub format: DiskFormat,
    pub serial: String,
    /// Reads and writes no faster than this, as a disk that is dying.
    #[serde(default)]
    pub bytes_per_second: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskModel {
    #[default]
    Virtio,
    Nvme,
    /// A solid-state disk on AHCI.
    SataSsd,
    /// A rotating disk on AHCI.
    SataHdd,
    Usb,
    /// A disk behind a MegaRAID SAS controller.
    Megaraid,
    /// A disk on the SCSI controller of QEMU and clouds.
    VirtioScsi,
    /// A disk on VMware's paravirtual SCSI controller.
    Pvscsi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// A sparse file.
    #[default]
    Raw,
    /// Needs `qemu-img`.
    Qcow2,
}

/// A NIC in a user network of its own: 10.0.2.0/24 for the first, 10.0.3.0/24 for the second…
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    pub name: String,
    #[serde(default)]
    pub model: NicModel,
    #[serde(default)]
    pub mac: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NicModel {
    #[default]
    Virtio,
    E1000e,
    Igb,
    Rtl8139,
    Vmxnet3,
}

/// Why a profile can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("cannot read the profile {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the profile {path} is not valid")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("the profile {profile} has {field} = {value}: it must be {allowed}")]
    OutOfRange { profile: String, field: &'static str, value: String, allowed: String },
    #[error("the profile {profile} has two {what} named {name}: give each its own name")]
    Duplicate { profile: String, what: &'static str, name: String },
    #[error("there is no profile {name:?}; there is {known}")]
    Unknown { name: String, known: String },
}

impl Profile {
    /// Reads the profile at `path`.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ProfileError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// The profile `name` of this source tree: `qemu/profiles/<name>.toml`.
    pub fn named(name: &str) -> Result<Self, ProfileError> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles");
        let path = directory.join(format!("{name}.toml"));
        if is_plain(name) && path.exists() {
            return Self::load(&path);
        }
        let files = std::fs::read_dir(&directory)
            .map_err(|source| ProfileError::Read { path: directory.clone(), source })?;
        let mut known: Vec<String> = files
            .filter_map(|file| Some(file.ok()?.file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
            .collect();
        known.sort();
        Err(ProfileError::Unknown { name: name.into(), known: known.join(", ") })
    }

    /// Parses and checks a profile; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text)
            .map_err(|source| ProfileError::Parse { path: path.into(), source: Box::new(source) })?;
        profile.check()?;
        Ok(profile)
    }

    pub(crate) fn check(&self) -> Result<(), ProfileError> {
        self.check_name("name", &self.name)?;
        self.check_range("cpus", u64::from(self.cpus), 1, u64::from(CPUS_MAX))?;
        self.check_range("memory_mib", self.memory_mib, MEMORY_MIN_MIB, MEMORY_MAX_MIB)?;
        if let Some(year) = self.clock_year {
            self.check_range("clock_year", u64::from(year), 1970, 2099)?;
        }
        self.check_range("number of disks", self.disk.len() as u64, 0, DISKS_MAX as u64)?;
        self.check_range("number of NICs", self.nic.len() as u64, 0, NICS_MAX as u64)?;
        let mut names = BTreeSet::new();
        for disk in &self.disk {
            self.check_name("disk.name", &disk.name)?;
            self.check_range("disk.size_mib", disk.size_mib, 1, DISK_MAX_MIB)?;
            if !is_plain(&disk.serial) || disk.serial.len() > SERIAL_MAX_BYTES {
                let allowed = format!("1 to {SERIAL_MAX_BYTES} letters, digits, '-' and '_'");
                return Err(self.out_of_range("disk.serial", &disk.serial, allowed));
            }
            if !names.insert(&disk.name) {
                return Err(self.duplicate("disks", &disk.name));
            }
        }
        names.clear();
        for nic in &self.nic {
            self.check_name("nic.name", &nic.name)?;
            if !names.insert(&nic.name) {
                return Err(self.duplicate("NICs", &nic.name));
            }
            if let Some(mac) = nic.mac.as_ref().filter(|mac| !is_mac(mac)) {
                return Err(self.out_of_range(
                    "nic.mac",
                    mac,
                    "six hex octets such as 52:54:00:00:00:01".into(),
                ));
            }
        }
        Ok(())
    }

    fn check_name(&self, field: &'static str, value: &str) -> Result<(), ProfileError> {
        if is_plain(value) {
            return Ok(());
        }
        Err(self.out_of_range(field, value, "letters, digits, '-' and '_'".into()))
    }

    fn check_range(&self, field: &'static str, value: u64, min: u64, max: u64) -> Result<(), ProfileError> {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(self.out_of_range(field, &value.to_string(), format!("from {min} to {max}")))
    }

    fn out_of_range(&self, field: &'static str, value: &str, allowed: String) -> ProfileError {
        ProfileError::OutOfRange { profile: self.name.clone(), field, value: value.into(), allowed }
    }

    fn duplicate(&self, what: &'static str, name: &str) -> ProfileError {
        ProfileError::Duplicate { profile: self.name.clone(), what, name: name.into() }
    }

    /// The kernel's arguments, without what the accelerator adds.
    #[must_use]
    pub fn kernel_arguments(&self) -> Vec<String> {
        let own = self.kernel_arguments.clone();
        let mut arguments = own.unwrap_or_else(|| NODE_ARGUMENTS.map(str::to_owned).to_vec());
        arguments.extend(self.extra_kernel_arguments.iter().cloned());
        arguments
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn is_mac(text: &str) -> bool {
    let octets: Vec<&str> = text.split(':').collect();
    octets.len() == 6
        && octets.iter().all(|octet| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Profile, String> {
        Profile::parse(text, Path::new("p.toml")).map_err(|error| match &error {
            ProfileError::Parse { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        })
    }

    const BASE: &str = "name = \"t\"\ncpus = 2\nmemory_mib = 512\n";

    #[test]
    fn defaults_are_a_nodes() {
        let profile = parse(BASE).unwrap();
        assert_eq!(profile.machine, MachineType::Q35);
        assert!(profile.watchdog);
        assert_eq!(profile.kernel_arguments().join(" "), NODE_ARGUMENTS.join(" "));
    }

    #[test]
    fn extra_arguments_come_after_the_nodes() {
        let profile = parse(&format!("{BASE}extra_kernel_arguments = [\"quiet\"]")).unwrap();
        assert_eq!(profile.kernel_arguments().last().unwrap(), "quiet");
        let replaced = parse(&format!("{BASE}kernel_arguments = [\"console=ttyS0\"]")).unwrap();
        assert_eq!(replaced.kernel_arguments(), ["console=ttyS0"]);
    }

    #[test]
    fn mistakes_are_named_with_what_is_allowed() {
        let unknown = parse(&format!("{BASE}memory = 3")).unwrap_err();
        assert!(
            unknown.contains("p.toml is not valid") && unknown.contains("unknown field `memory`"),
            "{unknown}"
        );
        assert_eq!(
            parse("name = \"t\"\ncpus = 0\nmemory_mib = 512").unwrap_err(),
            "the profile t has cpus = 0: it must be from 1 to 64"
        );
        let disk = "[[disk]]\nname = \"a\"\nsize_mib = 1\nserial = \"s\"\n";
        assert_eq!(
            parse(&format!("{BASE}{disk}{disk}")).unwrap_err(),
            "the profile t has two disks named a: give each its own name"
        );
        assert_eq!(
            parse(&format!("{BASE}{}", disk.replace("\"s\"", "\"x,file=/etc/shadow\""))).unwrap_err(),
            "the profile t has disk.serial = x,file=/etc/shadow: \
             it must be 1 to 20 letters, digits, '-' and '_'"
        );
        assert_eq!(
            parse(&format!("{BASE}[[nic]]\nname = \"n\"\nmac = \"1:2\"")).unwrap_err(),
            "the profile t has nic.mac = 1:2: it must be six hex octets such as 52:54:00:00:00:01"
        );
    }

    #[test]
    fn an_unknown_profile_is_refused_with_the_known_ones() {
        let error = Profile::named("../harness/Cargo").unwrap_err().to_string();
        assert!(error.starts_with("there is no profile \"../harness/Cargo\"; there is "), "{error}");
        assert!(error.contains("standard"), "{error}");
    }

    #[test]
    fn the_shipped_profiles_are_valid_and_named_like_their_files() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles");
        for file in std::fs::read_dir(directory).unwrap() {
            let path = file.unwrap().path();
            let profile = Profile::load(&path).unwrap();
            assert_eq!(profile.name, path.file_stem().unwrap().to_str().unwrap());
        }
    }
}
