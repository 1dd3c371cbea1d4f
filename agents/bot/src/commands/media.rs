//! `croft farm image` and `croft media`: what a machine boots from, and bringing it onto a stick.
//!
//! The boot file is the same for every farm; what is a farm's own is the addition beside it. It must never write to a
//! device that its owner did not name and agree to.

mod serve;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use croft_media::esp::{Contents, MediumError};
use croft_media::flash::{self, DescribeError, FlashError, Phase, Refusal, Roots, Target};
use croft_media::keys::{self, KeyError, Role, Signer};
use croft_media::netboot::NetbootError;
use croft_media::pe::{Pe, PeError};
use croft_media::{authenticode, iso, netboot, rsa, usb};
use croft_protocol::addition::{Addition, FromBootError, InvalidAddition};
use croft_protocol::boot::{BootConfig, InvalidBootConfig};
use croft_protocol::units::show_bytes;
use croft_protocol::{Hash, Name};
use serde::Serialize;

pub(super) use serve::serve;

use super::Context;
use crate::exit::Failure;
use crate::files;
use crate::flags::{FarmImageFlags, Medium};
use crate::grid::now_ms;
use crate::plan::Environment;
use crate::terminal::table;

/// A boot configuration is a few kilobytes.
const BOOT_CONFIG_BYTES: u64 = 64 * 1024;
/// Whose name stands in new certificates.
const ORGANISATION: &str = "Croft";

#[derive(Debug, thiserror::Error)]
enum MediaError {
    #[error("can't read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("can't write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(
        "farm '{farm}' has no boot configuration at {path}: write one with 'croft farm new {farm}', or name it with --boot-config"
    )]
    NoBootConfig { farm: Name, path: PathBuf },
    #[error("{path} is larger than a boot configuration can be")]
    TooLarge { path: PathBuf },
    #[error("{path} is the boot configuration of farm '{found}', not of '{farm}'")]
    OtherFarm { path: PathBuf, farm: Name, found: Name },
    #[error("{path} is no boot configuration")]
    BootConfig { path: PathBuf, source: Box<InvalidBootConfig> },
    #[error("this boot configuration can't go onto a medium")]
    Addition(#[from] FromBootError),
    #[error("this boot configuration can't go onto a medium; sign it as the farm's owner: --bot OWNER")]
    Seal(#[from] InvalidAddition),
    #[error(transparent)]
    NotAFile(#[from] usb::NotAFile),
    #[error("{path} is no boot file: make one with 'cargo xtask image --boot-file'")]
    NoBootFile { path: PathBuf, source: PeError },
    #[error("the medium can't be made")]
    Medium(#[from] MediumError),
    #[error("the netboot folder can't be made")]
    Netboot(#[from] NetbootError),
    #[error("{path} can't be signed")]
    Sign { path: PathBuf, source: Box<authenticode::SignFileError> },
    #[error(
        "nobody is here to ask: look at the line above, and say that it is the right disk with --yes-erase {device}"
    )]
    NobodyToAsk { device: String },
    #[error("--yes-erase names {said}, but the disk to write to is {device}: nothing was written")]
    OtherDevice { said: String, device: String },
    #[error("'{answer}' is not '{device}': nothing was written")]
    NotAgreed { answer: String, device: String },
}

#[derive(Serialize)]
struct Made {
    farm: Name,
    medium: Medium,
    out: PathBuf,
    boot_file_sha256: Hash,
    signed: bool,
    addition_bytes: usize,
    bytes: u64,
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|source| Failure::not_found(MediaError::Read { path: path.to_owned(), source }))
}

/// The boot configuration of a farm, as `farm new` wrote it.
fn boot_config(farm: &Name, path: &Path) -> Result<BootConfig, Failure> {
    let Ok(metadata) = std::fs::metadata(path) else {
        let error = MediaError::NoBootConfig { farm: farm.clone(), path: path.to_owned() };
        return Err(Failure::not_found(error));
    };
    if metadata.len() > BOOT_CONFIG_BYTES {
        return Err(Failure::usage(MediaError::TooLarge { path: path.to_owned() }));
    }
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    let config = BootConfig::parse(&text).map_err(|source| {
        Failure::usage(MediaError::BootConfig { path: path.to_owned(), source: Box::new(source) })
    })?;
    if config.farm.name != *farm {
        let (farm, found) = (farm.clone(), config.farm.name);
        return Err(Failure::usage(MediaError::OtherFarm { path: path.to_owned(), farm, found }));
    }
    Ok(config)
}

/// Makes a medium for a farm's machines. Needs no replica: all of it is in files.
pub(super) fn image(c: &mut Context<'_>, flags: &FarmImageFlags) -> Result<(), Failure> {
    let farm = &flags.farm;
    if flags.medium != Medium::Netboot {
        check_out(&flags.out)?;
    }
    let default = || c.home.root().join("farms").join(farm.as_str()).join("boot.toml");
    let config = boot_config(farm, &flags.boot_config.clone().unwrap_or_else(default))?;
    let (_, owner) = c.acting_key()?;
    let addition =
        Addition::from_boot(&config, owner.id()).map_err(|e| Failure::usage(MediaError::from(e)))?;
    let addition = addition.seal(&owner).map_err(|e| Failure::usage(MediaError::from(e)))?;
    let mut boot_file = read(&flags.boot_file)?;
    let mut is_signed = is_signed(&flags.boot_file, &boot_file)?;
    if let Some(folder) = &flags.keys {
        (boot_file, is_signed) = (signed(&flags.boot_file, &boot_file, folder)?, true);
    }
    let contents = Contents { boot_file: &boot_file, addition: Some(&addition) };
    let failed = |error: MediaError| Failure::failed(error);
    let write = |bytes: &[u8]| {
        let failed = |source| failed(MediaError::Write { path: flags.out.clone(), source });
        usb::write_file(&flags.out, bytes).map(|()| bytes.len() as u64).map_err(failed)
    };
    let bytes = match flags.medium {
        Medium::Usb => write(&usb::image(&contents).map_err(|e| failed(e.into()))?.bytes)?,
        Medium::Iso => write(&iso::image(&contents).map_err(|e| failed(e.into()))?)?,
        Medium::Netboot => {
            netboot::write(&flags.out, &contents).map_err(|e| failed(e.into()))?;
            (boot_file.len() + addition.len()) as u64
        }
    };
    let shown = Made {
        farm: farm.clone(),
        medium: flags.medium,
        out: std::path::absolute(&flags.out).unwrap_or_else(|_| flags.out.clone()),
        boot_file_sha256: Hash::of_bytes(&boot_file),
        signed: is_signed,
        addition_bytes: addition.len(),
        bytes,
    };
    c.terminal.result(&shown, |m| {
        let next = match m.medium {
            Medium::Usb | Medium::Iso => {
                format!("Next: 'croft media flash {} DEVICE', and boot a machine from it.", m.out.display())
            }
            Medium::Netboot => format!(
                    "Next: 'croft media serve --folder {}' as root on a machine of the rack, and boot the others by network.",
                    m.out.display()
                )
        };
        let unsigned = if m.signed {
            ""
        } else {
            "\n  the boot file is not signed: machines under Secure Boot refuse it; sign it with --keys"
        };
        format!(
            "{} for farm '{}': {} ({})\n  boot file  sha256 {}{unsigned}\n  it holds a permission to join the farm: keep it like a key\n{next}\n",
            m.medium.words(),
            m.farm,
            m.out.display(),
            show_bytes(m.bytes),
            m.boot_file_sha256,
        )
    })
}

/// A file takes the name in the end, so that a device there would lose its node.
fn check_out(out: &Path) -> Result<(), Failure> {
    usb::check_path(out).map_err(|error| Failure::usage(MediaError::from(error)))
}

/// Whether a boot file carries a signature, whoever's; what is no EFI program is refused.
fn is_signed(path: &Path, boot_file: &[u8]) -> Result<bool, Failure> {
    let pe = Pe::parse(boot_file)
        .map_err(|source| Failure::usage(MediaError::NoBootFile { path: path.to_owned(), source }))?;
    Ok(!pe.certificates().is_empty())
}

fn signed(path: &Path, boot_file: &[u8], folder: &Path) -> Result<Vec<u8>, Failure> {
    let signer = Signer::load(folder, Role::Db).map_err(Failure::failed)?;
    authenticode::sign(boot_file, &signer).map_err(|source| {
        Failure::failed(MediaError::Sign { path: path.to_owned(), source: Box::new(source) })
    })
}

#[derive(Serialize)]
struct Signed {
    out: PathBuf,
    sha256: Hash,
    signer: String,
}

/// Signs a boot file for Secure Boot.
pub(super) fn sign(c: &mut Context<'_>, file: &Path, folder: &Path, out: &Path) -> Result<(), Failure> {
    check_out(out)?;
    let bytes = signed(file, &read(file)?, folder)?;
    let written = files::aside(out, &bytes, false).and_then(|aside| aside.replace(out, false));
    written.map_err(|source| Failure::failed(MediaError::Write { path: out.to_owned(), source }))?;
    let signer = keys::load_certificate(folder, Role::Db).map_err(Failure::failed)?.subject();
    let shown = Signed { out: out.to_owned(), sha256: Hash::of_bytes(&bytes), signer };
    c.terminal.result(&shown, |s| {
        format!("{} is signed by {}\n  sha256  {}\n", s.out.display(), s.signer, s.sha256)
    })
}

#[derive(Serialize)]
struct Keys {
    folder: PathBuf,
    enrolment: PathBuf,
}

/// Makes PK, KEK and db, and the files that bring them into a machine's firmware.
pub(super) fn make_keys(c: &mut Context<'_>, folder: &Path) -> Result<(), Failure> {
    keys::create(folder, ORGANISATION, rsa::Bits::default(), now_ms() / 1_000)
        .map_err(|error: KeyError| Failure::failed(error))?;
    let shown = Keys { folder: folder.to_owned(), enrolment: folder.join(keys::ENROLMENT) };
    c.terminal.result(&shown, |k| {
        format!(
            "keys for Secure Boot in {}\n  enrolment  {}: copy it to a stick, put the firmware into setup mode, and enrol db, KEK, then PK\nKeep PK and KEK offline; only db is needed to sign. 'croft media sign' signs a boot file.\n",
            k.folder.display(),
            k.enrolment.display()
        )
    })
}

#[derive(Serialize)]
struct Disks {
    disks: Vec<Disk>,
}

#[derive(Serialize)]
struct Disk {
    device: PathBuf,
    model: String,
    size_bytes: u64,
    removable: bool,
    usb: bool,
    refused: Option<String>,
}

/// Disks that an image could be written to, and why one can't.
pub(super) fn disks(c: &mut Context<'_>) -> Result<(), Failure> {
    let all = Target::all(&Roots::default()).map_err(|error: DescribeError| Failure::failed(error))?;
    let disk = |target: Target| Disk {
        device: target.path.clone(),
        model: format!("{} {}", target.vendor, target.model).trim().to_owned(),
        size_bytes: target.size_bytes,
        removable: target.removable,
        usb: target.usb,
        refused: target.check(0).err().map(|refusal| refusal.to_string()),
    };
    let shown = Disks { disks: all.into_iter().map(disk).collect() };
    c.terminal.result(&shown, |d| {
        let row = |disk: &Disk| {
            let kind = match (disk.usb, disk.removable) {
                (true, _) => "USB",
                (false, true) => "removable",
                (false, false) => "fixed",
            };
            let verdict = disk.refused.clone().unwrap_or_else(|| "may be written to".to_owned());
            vec![
                disk.device.display().to_string(),
                disk.model.clone(),
                show_bytes(disk.size_bytes),
                kind.to_owned(),
                verdict,
            ]
        };
        table(&["DEVICE", "MODEL", "SIZE", "KIND", ""], &d.disks.iter().map(row).collect::<Vec<_>>())
    })
}

#[derive(Serialize)]
struct Flashed {
    device: PathBuf,
    bytes: u64,
    /// Read back from the medium itself, not from memory.
    read_directly: bool,
}

/// Writes an image to a stick and reads it back.
pub(super) fn flash(
    c: &mut Context<'_>,
    image: &Path,
    device: &Path,
    agreed: Option<&str>,
) -> Result<(), Failure> {
    let bytes = read(image)?;
    let target = Target::describe(&Roots::default(), device)
        .map_err(|error: DescribeError| Failure::not_found(error))?;
    c.note(&target.to_string());
    for caution in target.cautions() {
        c.note(&caution);
    }
    let path = target.path.clone();
    let writable = target.check(bytes.len() as u64).map_err(|refusal: Refusal| Failure::refused(refusal))?;
    agree(c.environment, &path.display().to_string(), agreed)?;
    let mut said = None;
    let stop = c.stop.clone();
    let mut progress = |progress: flash::Progress| {
        let percent = progress.done_bytes.saturating_mul(100) / progress.all_bytes.max(1);
        let now = (progress.phase, percent / 10);
        if said != Some(now) {
            said = Some(now);
            let doing = if progress.phase == Phase::Write { "writing" } else { "reading back" };
            c.note(&format!("{doing}: {percent} %"));
        }
        if stop.is_due() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let written =
        flash::write(&writable, &bytes, &mut progress).map_err(|error: FlashError| Failure::failed(error))?;
    let shown = Flashed { device: path, bytes: written.bytes, read_directly: written.read_directly };
    c.terminal.result(&shown, |f| {
        let how = if f.read_directly { "" } else { " (not past the system's memory: it can't here)" };
        format!("{} was written to {} and read back the same{how}\n", show_bytes(f.bytes), f.device.display())
    })
}

/// Whoever writes over a disk says its name once more.
fn agree(environment: &dyn Environment, device: &str, agreed: Option<&str>) -> Result<(), Failure> {
    if let Some(said) = agreed {
        if said == device {
            return Ok(());
        }
        let (said, device) = (said.to_owned(), device.to_owned());
        return Err(Failure::refused(MediaError::OtherDevice { said, device }));
    }
    let question = format!("Everything on {device} will be lost. Type its name to go on: ");
    let Some(answer) = environment.ask(&question) else {
        return Err(Failure::usage(MediaError::NobodyToAsk { device: device.to_owned() }));
    };
    if answer.trim() == device {
        return Ok(());
    }
    let (answer, device) = (answer.trim().to_owned(), device.to_owned());
    Err(Failure::refused(MediaError::NotAgreed { answer, device }))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    /// Somebody at the terminal, or nobody.
    struct Person(Option<&'static str>);

    impl Environment for Person {
        fn variable(&self, _: &str) -> Option<OsString> {
            None
        }

        fn ask(&self, question: &str) -> Option<String> {
            assert!(question.contains("Everything on /dev/sdz will be lost"), "{question}");
            self.0.map(str::to_owned)
        }
    }

    fn asked(person: Option<&'static str>, flag: Option<&str>) -> Result<(), String> {
        agree(&Person(person), "/dev/sdz", flag).map_err(|failure| failure.message())
    }

    #[test]
    fn a_disk_is_written_over_only_when_its_name_is_said_once_more() {
        assert_eq!(asked(Some("/dev/sdz\n"), None), Ok(()));
        assert_eq!(asked(None, Some("/dev/sdz")), Ok(()));
        assert_eq!(asked(Some("yes\n"), None).unwrap_err(), "'yes' is not '/dev/sdz': nothing was written");
        assert_eq!(
            asked(None, None).unwrap_err(),
            "nobody is here to ask: look at the line above, and say that it is the right disk with --yes-erase /dev/sdz"
        );
        assert_eq!(
            asked(Some("/dev/sdz"), Some("/dev/sda")).unwrap_err(),
            "--yes-erase names /dev/sda, but the disk to write to is /dev/sdz: nothing was written"
        );
    }
}
