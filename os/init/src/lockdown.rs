//! Kernel lockdown where the firmware checks what it starts: only what is signed may follow it.
//!
//! With Secure Boot the chain from firmware to kernel is signed; root must then not be able to swap the kernel it runs
//! on, or to read its secrets. The kernel locks itself to `integrity` before any program runs; this raises it to
//! `confidentiality`, which also closes the ways to read kernel memory. What remains open is what Croft uses: KVM,
//! disks, network, and kexec of an image that a key of the firmware signed.
//!
//! Must never lower a lock (the kernel refuses that too), and never take an unreadable variable for "off".

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Both variables are of the firmware's global namespace (UEFI specification 2.10, section 3.3).
const SECURE_BOOT: &str = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
const SETUP_MODE: &str = "sys/firmware/efi/efivars/SetupMode-8be4df61-93ca-11d2-aa0d-00e098032b8c";
const EFI: &str = "sys/firmware/efi";
const LOCKDOWN: &str = "sys/kernel/security/lockdown";

/// What a machine with Secure Boot gets.
const WANTED: &str = "confidentiality";

/// What the firmware says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecureBoot {
    On,
    Off,
    /// No UEFI at all.
    NoFirmware,
    /// UEFI, but the variable can't be read or has another form: to be treated as on.
    Unknown,
}

/// How the machine is locked after [`apply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Locked {
    /// With the level that the kernel shows now.
    At { level: String, secure_boot: SecureBoot },
    /// Secure Boot is off or absent, and nothing was asked for.
    NotAsked(SecureBoot),
}

impl Locked {
    /// For the line of the stage.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::At { level, secure_boot: SecureBoot::Unknown } => {
                format!("lockdown {level}, because Secure Boot can't be read")
            }
            Self::At { level, .. } => format!("Secure Boot with lockdown {level}"),
            Self::NotAsked(SecureBoot::NoFirmware) => "no Secure Boot (no UEFI)".to_owned(),
            Self::NotAsked(_) => "Secure Boot is off".to_owned(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LockdownError {
    #[error(
        "the kernel has no lockdown at {path}, though Secure Boot is on: build it from kernel-config/node"
    )]
    Absent { path: PathBuf },
    #[error(
        "{path} does not take the level {WANTED}, though Secure Boot is on: root could replace the kernel"
    )]
    Refused {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} shows {shown:?} after {WANTED} was written, though Secure Boot is on")]
    NotHeld { path: PathBuf, shown: String },
}

/// Locks the kernel down where Secure Boot is on. `root` is `/` but in tests.
///
/// # Errors
/// When it should be locked and is not: the caller says so loudly. The kernel's own lock, if any, stays.
pub fn apply(root: &Path) -> Result<Locked, LockdownError> {
    let secure_boot = secure_boot(root);
    if matches!(secure_boot, SecureBoot::Off | SecureBoot::NoFirmware) {
        return Ok(Locked::NotAsked(secure_boot));
    }
    let path = root.join(LOCKDOWN);
    let read = || fs::read_to_string(&path).ok();
    let Some(before) = read() else { return Err(LockdownError::Absent { path }) };
    if level(&before) != Some(WANTED) {
        fs::write(&path, WANTED).map_err(|source| LockdownError::Refused { path: path.clone(), source })?;
    }
    let shown = read().unwrap_or_default();
    match level(&shown) {
        Some(WANTED) => Ok(Locked::At { level: WANTED.to_owned(), secure_boot }),
        _ => Err(LockdownError::NotHeld { path, shown: shown.trim().to_owned() }),
    }
}

/// What the firmware's variables say. In setup mode nothing is checked, whatever the other variable says.
#[must_use]
pub fn secure_boot(root: &Path) -> SecureBoot {
    if !root.join(EFI).is_dir() {
        return SecureBoot::NoFirmware;
    }
    match (flag(&root.join(SECURE_BOOT)), flag(&root.join(SETUP_MODE))) {
        (Flag::Set, Flag::Set) | (Flag::Clear | Flag::Absent, _) => SecureBoot::Off,
        (Flag::Set, _) => SecureBoot::On,
        (Flag::Unreadable, _) => SecureBoot::Unknown,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flag {
    Set,
    Clear,
    Absent,
    Unreadable,
}

/// A variable of one byte, as efivarfs shows it: four bytes of attributes, then the value.
fn flag(path: &Path) -> Flag {
    match fs::read(path) {
        Ok(bytes) => match bytes[..] {
            [_, _, _, _, 1] => Flag::Set,
            [_, _, _, _, 0] => Flag::Clear,
            _ => Flag::Unreadable,
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Flag::Absent,
        Err(_) => Flag::Unreadable,
    }
}

/// The level in brackets: `none [integrity] confidentiality`. The bare word, which a plain file holds after a write in
/// a test, counts too.
fn level(shown: &str) -> Option<&str> {
    match shown.split_once('[') {
        Some((_, rest)) => rest.split_once(']').map(|(level, _)| level),
        None => Some(shown.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these variables, and a kernel that shows this level.
    fn machine(secure_boot: &[u8], setup_mode: &[u8], lockdown: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        put(SECURE_BOOT, secure_boot);
        put(SETUP_MODE, setup_mode);
        if let Some(text) = lockdown {
            put(LOCKDOWN, text.as_bytes());
        }
        root
    }

    const ON: &[u8] = &[6, 0, 0, 0, 1];
    const OFF: &[u8] = &[6, 0, 0, 0, 0];
    const OPEN: &str = "[none] integrity confidentiality\n";

    fn shown(root: &tempfile::TempDir) -> String {
        fs::read_to_string(root.path().join(LOCKDOWN)).unwrap()
    }

    #[test]
    fn a_machine_with_secure_boot_is_locked_to_confidentiality() {
        for before in [OPEN, "none [integrity] confidentiality\n"] {
            let root = machine(ON, OFF, Some(before));
            assert_eq!(apply(root.path()).unwrap().describe(), "Secure Boot with lockdown confidentiality");
            assert_eq!(shown(&root), "confidentiality");
        }
    }

    #[test]
    fn a_locked_kernel_is_not_written_to_again() {
        let before = "none integrity [confidentiality]\n";
        let root = machine(ON, OFF, Some(before));
        apply(root.path()).unwrap();
        assert_eq!(shown(&root), before);
    }

    #[test]
    fn without_secure_boot_nothing_is_locked() {
        for (secure_boot, setup_mode) in [(OFF, OFF), (OFF, ON), (ON, ON)] {
            let root = machine(secure_boot, setup_mode, Some(OPEN));
            assert_eq!(apply(root.path()).unwrap(), Locked::NotAsked(SecureBoot::Off));
            assert_eq!(shown(&root), OPEN);
        }
        let bios = tempfile::tempdir().unwrap();
        assert_eq!(apply(bios.path()).unwrap().describe(), "no Secure Boot (no UEFI)");
    }

    #[test]
    fn a_variable_of_another_form_counts_as_on() {
        for bytes in [&[][..], &[1], &[6, 0, 0, 0], &[6, 0, 0, 0, 2], &[6, 0, 0, 0, 1, 0]] {
            let root = machine(bytes, OFF, Some(OPEN));
            let text = apply(root.path()).unwrap().describe();
            assert_eq!(text, "lockdown confidentiality, because Secure Boot can't be read", "{bytes:?}");
        }
    }

    #[test]
    fn a_kernel_that_does_not_lock_is_named() {
        let root = machine(ON, OFF, None);
        let text = apply(root.path()).unwrap_err().to_string();
        assert!(text.contains("no lockdown at") && text.contains("kernel-config/node"), "{text}");
        // A folder in its place takes no writes.
        let root = machine(ON, OFF, None);
        fs::create_dir_all(root.path().join(LOCKDOWN)).unwrap();
        assert!(matches!(apply(root.path()), Err(LockdownError::Absent { .. })));
    }
}
