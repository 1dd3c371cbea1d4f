//! What a microVM is made of, as its owner on the node describes it, checked before anything is started.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use croft_guest::wire::{self, ConfigError, GuestConfig, VolumeSource};

use crate::policy::RestartPolicy;

/// Below this no guest kernel boots.
pub const MIN_MEMORY_BYTES: u64 = 48 << 20;
/// More is a mistake in units.
pub const MAX_MEMORY_BYTES: u64 = 16 << 40;
pub const MAX_VCPUS: u8 = 128;
const MAX_ID_BYTES: usize = 40;
/// Block size of image and hash tree: what every reader of dm-verity supports.
pub const VERITY_BLOCK_BYTES: u64 = 4096;
/// `IFNAMSIZ` without the NUL.
const MAX_INTERFACE_NAME_BYTES: usize = 15;

/// Name of a VM on its node; part of file names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(String);

impl VmId {
    /// 1 to 40 lower-case letters, digits and `-`, not starting with `-`.
    pub fn new(text: impl Into<String>) -> Result<Self, SpecError> {
        let text = text.into();
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.is_empty() || text.len() > MAX_ID_BYTES || text.starts_with('-') || !text.bytes().all(good) {
            return Err(SpecError::Id { id: text });
        }
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A microVM to run.
#[derive(Debug, Clone)]
pub struct VmSpec {
    pub id: VmId,
    pub vcpus: u8,
    /// Processor time for the whole VM in thousandths of a processor; the limit of its control group.
    pub cpu_millis: u32,
    /// Memory the guest sees.
    pub memory_bytes: u64,
    /// Guest kernel, ELF with a PVH note or bzImage.
    pub kernel: PathBuf,
    /// The guest's PID 1 as a cpio archive.
    pub initramfs: PathBuf,
    pub root: RootImage,
    /// Further disks, in the order of [`VolumeSource::Disk`] positions.
    pub disks: Vec<Disk>,
    pub shares: Vec<Share>,
    /// Network namespace of the deployment with the taps; without it the VM has no network.
    pub netns: Option<PathBuf>,
    pub nics: Vec<Nic>,
    pub guest: GuestConfig,
    pub restart: RestartPolicy,
    /// Restart when a health check says unhealthy.
    pub restart_unhealthy: bool,
    pub logs: LogLimits,
    /// What the guest kernel and PID 1 write; separate, so that a workload can't push it out.
    pub console: LogLimits,
}

/// The verified root: one file with an EROFS image and its dm-verity hash tree behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootImage {
    pub path: PathBuf,
    /// Blocks of [`VERITY_BLOCK_BYTES`] in the image; the hash tree starts right behind them.
    pub data_blocks: u64,
    /// SHA-256 root of the hash tree.
    pub root_hash: [u8; 32],
    /// At most 256 bytes; may be empty.
    pub salt: Vec<u8>,
}

/// A disk of raw bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub path: PathBuf,
    /// At most 20 bytes; how the guest finds it.
    pub serial: String,
    pub readonly: bool,
}

/// A directory of the host that the guest sees through virtio-fs. On disk, owners are the guest's own numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub tag: String,
    pub dir: PathBuf,
    pub readonly: bool,
}

/// A network interface on an existing, persistent tap that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    pub tap: String,
    pub mac: [u8; 6],
}

impl Nic {
    pub(crate) fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// Bounds of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLimits {
    /// Kept in memory.
    pub memory_bytes: usize,
    /// Also written here, when set; one older file with the suffix `.1` is kept.
    pub file: Option<PathBuf>,
    /// Both files together.
    pub file_bytes: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { memory_bytes: 256 * 1024, file: None, file_bytes: 8 << 20 }
    }
}

/// Why a VM is refused before anything is started.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("VM name {id:?} is not valid: use 1 to 40 lower-case letters, digits and '-'")]
    Id { id: String },
    #[error("VM {id} is running already: stop it first")]
    Duplicate { id: VmId },
    #[error("{limit} VMs run on this node already: there are no user ids left for another one")]
    NoSlot { limit: u16 },
    #[error("{what} of VM {id} is {value}, it must be between {min} and {max}")]
    Range { id: VmId, what: &'static str, value: u64, min: u64, max: u64 },
    #[error("{what} {text:?} of VM {id} is not valid: {rule}")]
    Text { id: VmId, what: &'static str, text: String, rule: &'static str },
    #[error("volume {name} of VM {id} has no {what} of that name: name one, or remove the volume")]
    VolumeWithout { id: VmId, name: String, what: &'static str },
    #[error("VM {id} has network interfaces but no network namespace: set both or neither")]
    NoNamespace { id: VmId },
    #[error("the guest configuration of VM {id} is not valid")]
    Guest { id: VmId, source: ConfigError },
}

impl VmSpec {
    /// Checks everything that can be known without looking at files.
    pub fn validate(&self) -> Result<(), SpecError> {
        let id = &self.id;
        let range = |what, value, min, max| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(SpecError::Range { id: id.clone(), what, value, min, max })
            }
        };
        range("the number of processors", u64::from(self.vcpus), 1, u64::from(MAX_VCPUS))?;
        range("processor time", u64::from(self.cpu_millis), 10, u64::from(MAX_VCPUS) * 1000)?;
        range("memory", self.memory_bytes, MIN_MEMORY_BYTES, MAX_MEMORY_BYTES)?;
        range("the image size in blocks", self.root.data_blocks, 1, 1 << 36)?;
        range("the salt's length", self.root.salt.len() as u64, 0, 256)?;
        self.guest.validate().map_err(|source| SpecError::Guest { id: id.clone(), source })?;
        let token = |what, text: &str, limit| {
            wire::token(what, text, limit).map_err(|source| SpecError::Guest { id: id.clone(), source })
        };
        for disk in &self.disks {
            token("disk serial", &disk.serial, wire::MAX_SERIAL_BYTES)?;
        }
        for share in &self.shares {
            token("share tag", &share.tag, wire::MAX_TAG_BYTES)?;
        }
        if !self.nics.is_empty() && self.netns.is_none() {
            return Err(SpecError::NoNamespace { id: id.clone() });
        }
        for nic in &self.nics {
            self.validate_tap(&nic.tap)?;
        }
        self.validate_volumes()
    }

    fn validate_tap(&self, tap: &str) -> Result<(), SpecError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if tap.is_empty() || tap.len() > MAX_INTERFACE_NAME_BYTES || !tap.bytes().all(good) {
            return Err(SpecError::Text {
                id: self.id.clone(),
                what: "tap",
                text: tap.to_owned(),
                rule: "1 to 15 letters, digits, '-', '_' or '.'",
            });
        }
        Ok(())
    }

    fn validate_volumes(&self) -> Result<(), SpecError> {
        for volume in &self.guest.volumes {
            let (name, known, what) = match &volume.source {
                VolumeSource::Disk { serial, position } => {
                    let disk = self.disks.get(usize::from(*position));
                    (serial, disk.is_some_and(|disk| disk.serial == *serial), "disk")
                }
                VolumeSource::Share { tag } => {
                    (tag, self.shares.iter().any(|share| share.tag == *tag), "share")
                }
            };
            if !known {
                return Err(SpecError::VolumeWithout { id: self.id.clone(), name: name.clone(), what });
            }
        }
        Ok(())
    }
}

/// Formats of a guest kernel, told apart by their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    Elf,
    BzImage,
}

/// Why a kernel can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("guest kernel {path} can't be read: is the node image complete?")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "guest kernel {path} is neither an ELF vmlinux nor a bzImage: build it with `cargo xtask kernel`"
    )]
    Format { path: PathBuf },
}

impl KernelFormat {
    /// Looks at the first bytes of the file.
    pub fn detect(path: &Path) -> Result<Self, KernelError> {
        let mut head = Vec::new();
        File::open(path)
            .and_then(|file| file.take(0x206).read_to_end(&mut head))
            .map_err(|source| KernelError::Read { path: path.to_owned(), source })?;
        // The x86 boot protocol has "HdrS" at 0x202 (Documentation/arch/x86/boot.rst).
        if head.starts_with(b"\x7fELF") {
            Ok(Self::Elf)
        } else if head.get(0x202..0x206) == Some(b"HdrS") {
            Ok(Self::BzImage)
        } else {
            Err(KernelError::Format { path: path.to_owned() })
        }
    }
}

/// The guest kernel's command line. It opens the verified root and holds no configuration: anybody in the
/// guest can read it.
pub(crate) fn kernel_command_line(root: &RootImage, emulated: bool) -> String {
    let sectors = root.data_blocks * (VERITY_BLOCK_BYTES / 512);
    let salt = if root.salt.is_empty() { "-".to_owned() } else { hex::encode(&root.salt) };
    let (blocks, size) = (root.data_blocks, VERITY_BLOCK_BYTES);
    let mut line = format!(
        "console=ttyS0 loglevel=5 panic=-1 random.trust_cpu=on \
         dm-mod.create=\"root,,,ro,0 {sectors} verity 1 /dev/vda /dev/vda {size} {size} {blocks} {blocks} sha256 {} \
         {salt}\"",
        hex::encode(root.root_hash)
    );
    if emulated {
        // KVM in an emulated machine mis-times the deadline timer and the guest hangs at its first tick.
        line.push_str(" lapic=notscdeadline");
    }
    line
}

#[cfg(test)]
pub(crate) mod tests {
    use croft_guest::wire::Volume;

    use super::*;

    pub(crate) fn spec() -> VmSpec {
        VmSpec {
            id: VmId::new("web-1").unwrap(),
            vcpus: 1,
            cpu_millis: 500,
            memory_bytes: 256 << 20,
            kernel: "/k".into(),
            initramfs: "/i".into(),
            root: RootImage { path: "/r".into(), data_blocks: 2, root_hash: [0xab; 32], salt: vec![] },
            disks: vec![Disk { path: "/d".into(), serial: "data".into(), readonly: false }],
            shares: vec![Share { tag: "shared".into(), dir: "/s".into(), readonly: false }],
            netns: None,
            nics: vec![],
            guest: GuestConfig {
                hostname: "web".into(),
                argv: vec!["/bin/true".into()],
                ..GuestConfig::default()
            },
            restart: RestartPolicy::Never,
            restart_unhealthy: true,
            logs: LogLimits::default(),
            console: LogLimits::default(),
        }
    }

    #[test]
    fn the_command_line_opens_the_root_and_nothing_else() {
        let mut root = spec().root;
        assert_eq!(
            kernel_command_line(&root, false),
            format!(
                "console=ttyS0 loglevel=5 panic=-1 random.trust_cpu=on dm-mod.create=\"root,,,ro,0 16 verity 1 \
                 /dev/vda /dev/vda 4096 4096 2 2 sha256 {} -\"",
                "ab".repeat(32)
            )
        );
        root.salt = vec![1, 2];
        assert!(kernel_command_line(&root, true).ends_with(" 0102\" lapic=notscdeadline"));
    }

    #[test]
    fn each_broken_rule_is_named_with_the_vm() {
        type Change = fn(&mut VmSpec);
        let cases: Vec<(Change, &str)> = vec![
            (|s| s.vcpus = 0, "the number of processors of VM web-1 is 0, it must be between 1 and 128"),
            (|s| s.memory_bytes = 512, "memory of VM web-1 is 512"),
            (|s| s.cpu_millis = 0, "processor time of VM web-1 is 0"),
            (
                |s| s.nics.push(Nic { tap: "t0".into(), mac: [2; 6] }),
                "VM web-1 has network interfaces but no network namespace",
            ),
            (
                |s| {
                    s.netns = Some("/n".into());
                    s.nics.push(Nic { tap: "t0,mac=x".into(), mac: [2; 6] });
                },
                "tap \"t0,mac=x\" of VM web-1 is not valid",
            ),
            (|s| s.shares[0].tag = "a b".into(), "the guest configuration of VM web-1 is not valid"),
            (
                |s| {
                    s.guest.volumes.push(Volume {
                        mount_path: "/data".into(),
                        readonly: false,
                        source: VolumeSource::Disk { serial: "other".into(), position: 0 },
                    });
                },
                "volume other of VM web-1 has no disk of that name",
            ),
            (|s| s.guest.argv.clear(), "the guest configuration of VM web-1 is not valid"),
        ];
        spec().validate().unwrap();
        for (change, expected) in cases {
            let mut spec = spec();
            change(&mut spec);
            let error = spec.validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} should contain {expected:?}");
        }
    }

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in ["", "../x", "a/b", "A", "-a", "a.b", &"x".repeat(41)] {
            VmId::new(bad).unwrap_err();
        }
        assert_eq!(VmId::new("c0ffee-web-0").unwrap().as_str(), "c0ffee-web-0");
    }

    #[test]
    fn kernels_are_told_apart_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, b"\x7fELFxxx").unwrap();
        assert_eq!(KernelFormat::detect(&path).unwrap(), KernelFormat::Elf);
        let mut image = vec![0_u8; 0x300];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        std::fs::write(&path, image).unwrap();
        assert_eq!(KernelFormat::detect(&path).unwrap(), KernelFormat::BzImage);
        std::fs::write(&path, b"text").unwrap();
        let error = KernelFormat::detect(&path).unwrap_err().to_string();
        assert!(error.contains("is neither an ELF vmlinux nor a bzImage"), "{error}");
        let error = KernelFormat::detect(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("is the node image complete?"), "{error}");
    }
}
