//! Loads the kernel that comes after this one (kexec_file_load(2)).
//!
//! The boot file carries its initramfs and its command line, so none is handed over. Whether the file is the one that
//! was meant is checked by whoever asks; whether it is signed, by the kernel, where Secure Boot locked that down.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// linux/kexec.h.
const NO_INITRAMFS: libc::c_ulong = 4;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("kernel {path} can't be opened")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("this kernel does not take {path}: {hint}")]
    Refused {
        path: PathBuf,
        hint: &'static str,
        #[source]
        source: io::Error,
    },
}

impl LoadError {
    /// Whether the file is what is wrong, and will be at every other try and on every other machine of the kind.
    #[must_use]
    pub fn is_of_the_file(&self) -> bool {
        let Self::Refused { source, .. } = self else { return false };
        let errors =
            [libc::EPERM, libc::EKEYREJECTED, libc::ENOKEY, libc::EBADMSG, libc::ENOEXEC, libc::EINVAL];
        source.raw_os_error().is_some_and(|error| errors.contains(&error))
    }
}

/// Loads a boot file in place of what was loaded before. Takes up to some seconds: the kernel reads and hashes it.
///
/// # Errors
/// [`LoadError`]; then nothing is loaded.
pub fn load(kernel: &Path) -> Result<(), LoadError> {
    let file = File::open(kernel).map_err(|source| LoadError::Open { path: kernel.to_owned(), source })?;
    // An empty text with its end: the built-in command line counts.
    let command_line = c"";
    #[allow(unsafe_code, reason = "neither rustix nor nix wraps kexec_file_load")]
    // SAFETY: the descriptor is open during the call; the kernel reads one byte of a static text; the flag says that
    // the second descriptor is not looked at.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            file.as_raw_fd(),
            -1,
            1 as libc::c_ulong,
            command_line.as_ptr(),
            NO_INITRAMFS,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    let hint = match source.raw_os_error() {
        Some(libc::EPERM) => "under Secure Boot it takes only what a key of the firmware signed",
        Some(libc::EKEYREJECTED | libc::ENOKEY | libc::EBADMSG) => {
            "its signature is not by a key of the firmware"
        }
        Some(libc::ENOEXEC | libc::EINVAL) => "it is no bootable kernel",
        Some(libc::ENOSYS) => "it was built without kexec",
        Some(libc::ENOMEM) => "there is too little memory",
        _ => "boot it from a medium instead",
    };
    Err(LoadError::Refused { path: kernel.to_owned(), hint, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.efi");
        let error = load(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("kernel {} can't be opened", path.display()));
        assert!(!error.is_of_the_file());
        let refused = |error| LoadError::Refused {
            path: path.clone(),
            hint: "",
            source: io::Error::from_raw_os_error(error),
        };
        assert!(refused(libc::ENOEXEC).is_of_the_file() && refused(libc::EKEYREJECTED).is_of_the_file());
        assert!(!refused(libc::ENOMEM).is_of_the_file() && !refused(libc::EBUSY).is_of_the_file());
        // Never a real kernel: where the tests run as root, it would be loaded.
        std::fs::write(&path, b"no kernel").unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.starts_with(&format!("this kernel does not take {}", path.display())), "{error}");
    }
}
