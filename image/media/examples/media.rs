//! Makes boot media by hand, to look at them under real firmware. `croft` and `xtask` have the commands for people.
//!
//! ```text
//!   media keys FOLDER                        new PK, KEK and db
//!   media enrol FOLDER OUT                   files for setup mode
//!   media sign FOLDER BOOT-FILE OUT          signs with db
//!   media verify FOLDER BOOT-FILE
//!   media usb|iso|netboot BOOT-FILE OUT [ADDITION]
//!   media look DEVICE                        what a device is, and whether it may be written to
//! ```

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use croft_media::esp::Contents;
use croft_media::flash::{Roots, Target};
use croft_media::keys::{self, Enrolment, Role, Signer};
use croft_media::{authenticode, iso, netboot, rsa, usb};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (command, rest) = arguments.split_first().ok_or("see the head of this file")?;
    match (command.to_str().unwrap_or_default(), rest) {
        ("keys", [folder]) => keys::create(folder, "Croft by hand", rsa::Bits::Rsa2048, 1_700_000_000)?,
        ("enrol", [folder, out]) => {
            let (pk, kek) = (Signer::load(folder, Role::Pk)?, Signer::load(folder, Role::Kek)?);
            Enrolment::new(&pk, &kek, &keys::load_certificate(folder, Role::Db)?, &[])?.write(out)?;
        }
        ("sign", [folder, file, out]) => {
            fs::write(out, authenticode::sign(&fs::read(file)?, &Signer::load(folder, Role::Db)?)?)?;
        }
        ("verify", [folder, file]) => {
            let trusted = [keys::load_certificate(folder, Role::Db)?];
            println!("signed by {}", authenticode::verify(&fs::read(file)?, &trusted)?.subject());
        }
        ("look", [device]) => {
            let target = Target::describe(&Roots::default(), device)?;
            println!("{target}\n{}", target.cautions().join("\n"));
            match target.check(0) {
                Ok(_) => println!("may be written to"),
                Err(refusal) => println!("refused: {refusal}"),
            }
        }
        (medium, [file, out, addition @ ..]) => write_medium(medium, file, out, addition.first())?,
        _ => return Err("see the head of this file".into()),
    }
    Ok(())
}

fn write_medium(
    medium: &str,
    file: &Path,
    out: &Path,
    addition: Option<&PathBuf>,
) -> Result<(), Box<dyn Error>> {
    let addition = addition.map(fs::read).transpose()?;
    let boot_file = fs::read(file)?;
    let contents = Contents { boot_file: &boot_file, addition: addition.as_deref() };
    match medium {
        "usb" => usb::write_file(out, &usb::image(&contents)?.bytes)?,
        "iso" => usb::write_file(out, &iso::image(&contents)?)?,
        "netboot" => netboot::write(out, &contents)?,
        other => return Err(format!("no medium is called {other}").into()),
    }
    Ok(())
}
