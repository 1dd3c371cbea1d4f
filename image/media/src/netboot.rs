//! The netboot folder: the same boot file for UEFI HTTP boot, TFTP and iPXE.
//!
//! ```text
//!   croft.efi       the boot file: UEFI HTTP boot and PXE (TFTP) start it as it is
//!   boot.ipxe       the script for iPXE, over HTTP or TFTP, under UEFI and BIOS
//!   autoexec.ipxe   the same; iPXE looks for it beside its own program
//!   farm.bin        the farm's addition
//!   SHA256SUMS      of all of them
//! ```
//! No loader hands the addition over: whatever comes to a kernel as initrd could replace files of the signed image. The
//! node itself asks the network where it would boot from, and fetches `farm.bin` from beside that file
//! (`agents/node/src/netboot.rs`). So the addition must lie in the same folder as what machines boot.
//!
//! Names are lower case and 8.3 where it can be, since TFTP servers differ. Must never leave a folder from which a
//! machine boots one half of the old and one of the new: files are replaced one by one, the checksums last, and each
//! appears whole.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::esp::{Contents, MediumError};
use crate::sha256;

pub const BOOT_FILE: &str = "croft.efi";
pub const SCRIPT: &str = "boot.ipxe";
pub const AUTOEXEC: &str = "autoexec.ipxe";
pub const ADDITION: &str = "farm.bin";
pub const CHECKSUMS: &str = "SHA256SUMS";

#[derive(Debug, thiserror::Error)]
pub enum NetbootError {
    #[error(transparent)]
    Medium(#[from] MediumError),
    #[error("can't write the netboot file {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("can't read the netboot file {path}: make the folder again")]
    Read { path: PathBuf, source: io::Error },
    #[error("the netboot folder's {name} is not what its checksums say: make the folder again")]
    Differs { name: String },
    #[error(
        "line {line} of the netboot folder's {CHECKSUMS} is no checksum of a file in it: make the folder again"
    )]
    Line { line: usize },
    #[error("the netboot folder's {CHECKSUMS} does not list {name}: make the folder again")]
    Unlisted { name: &'static str },
}

/// The script for iPXE. Addresses are relative: iPXE takes files from where it took the script. It tries for ever, with
/// pauses, since a rack that starts after a power cut is up before its server.
#[must_use]
pub fn script() -> String {
    format!(
        "#!ipxe\n\
         # Boots a machine of the Croft grid with the files beside this script.\n\
         set tries:int32 0\n\
         :start\n\
         imgfree\n\
         kernel --name {BOOT_FILE} {BOOT_FILE} || goto again\n\
         boot || goto again\n\
         :again\n\
         inc tries\n\
         echo The boot file could not be loaded (${{tries}} times so far): is the server up? Trying again in 10 s.\n\
         sleep 10\n\
         goto start\n"
    )
}

/// All files of the folder by name, in the order in which they are to be written.
///
/// # Errors
/// [`MediumError`] for content that no medium takes.
pub fn files(contents: &Contents<'_>) -> Result<Vec<(&'static str, Vec<u8>)>, MediumError> {
    contents.check()?;
    let script = script().into_bytes();
    let mut files = vec![(BOOT_FILE, contents.boot_file.to_vec())];
    files.extend(contents.addition.map(|addition| (ADDITION, addition.to_vec())));
    files.extend([(SCRIPT, script.clone()), (AUTOEXEC, script)]);
    let mut sums = String::new();
    for (name, content) in &files {
        // Of sha256sum, which can check the folder with -c.
        let _ = writeln!(sums, "{}  {name}", hex::encode(sha256(&[content])));
    }
    files.push((CHECKSUMS, sums.into_bytes()));
    Ok(files)
}

/// Writes the folder, made if it is not there. Other files in it stay; an addition from before goes when there is none.
///
/// # Errors
/// [`NetbootError`] names the file.
pub fn write(folder: &Path, contents: &Contents<'_>) -> Result<(), NetbootError> {
    let files = files(contents)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| NetbootError::Write { path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    for (name, content) in files {
        let path = folder.join(name);
        replace(folder, &path, &content).map_err(failed(&path))?;
    }
    if contents.addition.is_none() {
        let path = folder.join(ADDITION);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
            _ => {}
        }
    }
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))
}

/// Checks a folder by its own checksums, as a server does before it hands anything out. Returns the names that they list:
/// boot file and script always, addition and second script where they are there.
///
/// # Errors
/// [`NetbootError`] names the file or the line.
pub fn verify(folder: &Path) -> Result<Vec<String>, NetbootError> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).map_err(|source| NetbootError::Read { path, source })
    };
    let sums = String::from_utf8_lossy(&read(CHECKSUMS)?).into_owned();
    let known = [BOOT_FILE, SCRIPT, AUTOEXEC, ADDITION];
    let mut names = Vec::new();
    for (at, line) in sums.lines().enumerate() {
        let parts = line.split_once("  ").filter(|(_, name)| known.contains(name));
        let Some((sum, name)) = parts else { return Err(NetbootError::Line { line: at + 1 }) };
        if hex::encode(sha256(&[&read(name)?])) != sum {
            return Err(NetbootError::Differs { name: name.to_owned() });
        }
        names.push(name.to_owned());
    }
    // Without these no machine boots, and a list that was cut off at its end checks as well as a whole one.
    match [BOOT_FILE, SCRIPT].into_iter().find(|name| !names.iter().any(|listed| listed == name)) {
        Some(name) => Err(NetbootError::Unlisted { name }),
        None => Ok(names),
    }
}

/// Whole or not at all, and readable for the server, which is somebody else.
fn replace(folder: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENTS: Contents<'static> = Contents { boot_file: b"kernel", addition: Some(b"farm") };

    #[test]
    fn the_folder_holds_what_its_checksums_say_and_sha256sum_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("netboot");
        write(&folder, &CONTENTS).unwrap();
        assert_eq!(verify(&folder).unwrap(), [BOOT_FILE, ADDITION, SCRIPT, AUTOEXEC]);
        assert_eq!(fs::read(folder.join(BOOT_FILE)).unwrap(), b"kernel");
        assert_eq!(fs::metadata(folder.join(BOOT_FILE)).unwrap().permissions().mode() & 0o777, 0o644);
        let check =
            std::process::Command::new("sha256sum").args(["-c", CHECKSUMS]).current_dir(&folder).output();
        assert!(check.unwrap().status.success());
        fs::write(folder.join(ADDITION), b"other").unwrap();
        let error = verify(&folder).unwrap_err().to_string();
        assert_eq!(
            error,
            "the netboot folder's farm.bin is not what its checksums say: make the folder again"
        );
        fs::write(folder.join(CHECKSUMS), "00  ../../etc/passwd\n").unwrap();
        assert!(matches!(verify(&folder), Err(NetbootError::Line { line: 1 })));
    }

    #[test]
    fn checksums_that_leave_out_what_machines_boot_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &CONTENTS).unwrap();
        let sums = fs::read_to_string(dir.path().join(CHECKSUMS)).unwrap();
        let says = |name: &str| {
            format!("the netboot folder's SHA256SUMS does not list {name}: make the folder again")
        };
        let without = |name: &str| -> String {
            sums.split_inclusive('\n').filter(|line| !line.ends_with(&format!("  {name}\n"))).collect()
        };
        for (left, name) in
            [(String::new(), BOOT_FILE), (without(BOOT_FILE), BOOT_FILE), (without(SCRIPT), SCRIPT)]
        {
            fs::write(dir.path().join(CHECKSUMS), left).unwrap();
            assert_eq!(verify(dir.path()).unwrap_err().to_string(), says(name));
        }
    }

    #[test]
    fn a_farms_addition_does_not_outlive_a_folder_made_without_one() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &CONTENTS).unwrap();
        fs::write(dir.path().join("else"), b"stays").unwrap();
        write(dir.path(), &Contents { addition: None, ..CONTENTS }).unwrap();
        assert_eq!(verify(dir.path()).unwrap(), [BOOT_FILE, SCRIPT, AUTOEXEC]);
        assert!(!dir.path().join(ADDITION).exists());
        assert!(dir.path().join("else").exists());
    }

    #[test]
    fn the_script_takes_everything_from_beside_itself_and_never_gives_up() {
        let script = script();
        assert!(script.starts_with("#!ipxe\n"));
        assert!(script.contains("\nkernel --name croft.efi croft.efi || goto again\n"));
        assert!(!script.contains("http://") && script.ends_with("goto start\n"));
        assert!(!script.contains("initrd"), "a kernel would unpack it over its own files");
    }
}
