//! The guarded wipe of a disk, asked for by a person before the machine.
//!
//! It must never touch the medium that the machine started from, a disk that can be taken out, or one that anything uses
//! now, and none whose serial number was not typed. What the menu checked is checked again, against the disks that are
//! there now.

use std::path::Path;

use croft_hardware::Inventory;
use croft_screen::model::{Disk, essence};
use croft_storage::examine::{Examined, Verdict, examine};
use croft_storage::wipe::{WipeError, wipe};

#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("there is no disk {disk} any more: nothing was wiped")]
    Gone { disk: String },
    #[error("{disk} stays as it is: {reason}")]
    Kept { disk: String, reason: String },
    #[error("what was typed is not what {disk} is called: nothing was wiped")]
    NotConfirmed { disk: String },
    #[error(transparent)]
    Wipe(#[from] WipeError),
}

/// Why a disk can't be wiped; `None` where it can.
#[must_use]
pub fn keep(one: &Examined, medium: Option<&str>, data: Option<&str>) -> Option<String> {
    let name = Some(one.disk.name.as_str());
    if medium == name {
        return Some("the machine started from it".into());
    }
    if data == name {
        return Some(
            "the node uses it now, with its identity and its tenants' data; to give it up for good, take it out and \
             wipe it in another machine"
                .into(),
        );
    }
    if !one.disk.holders.is_empty() {
        return Some(format!("it is a part of {}", one.disk.holders.join(", ")));
    }
    match &one.verdict {
        Verdict::Removable => {
            Some("it can be taken out, so it may be a boot medium: wipe it elsewhere".into())
        }
        Verdict::ReadOnly => Some("it is write-protected".into()),
        _ => None,
    }
}

/// Wipes the disk if all of that holds. Blocks; returns what to tell the person.
///
/// # Errors
/// [`OrderError`]; nothing was written but for [`WipeError::Write`].
pub fn carry_out(
    name: &str,
    typed: &str,
    medium: Option<&str>,
    data: Option<&str>,
) -> Result<String, OrderError> {
    let disks = examine(&Inventory::read(Path::new("/")).disks, Path::new("/dev"));
    let one = chosen(&disks, name, typed, medium, data)?;
    wipe(&one.disk, Path::new("/dev"))?;
    tracing::warn!(disk = name, "wiped by a person at the machine");
    Ok(format!("{name} is empty now; the node takes it at its next start: restart it from the menu"))
}

fn chosen<'a>(
    disks: &'a [Examined],
    name: &str,
    typed: &str,
    medium: Option<&str>,
    data: Option<&str>,
) -> Result<&'a Examined, OrderError> {
    let disk = name.to_owned();
    let Some(one) = disks.iter().find(|one| one.disk.name == name) else {
        return Err(OrderError::Gone { disk });
    };
    if let Some(reason) = keep(one, medium, data) {
        return Err(OrderError::Kept { disk, reason });
    }
    let shown = Disk {
        model: croft_screen::text::plain(one.disk.model.as_deref().unwrap_or_default()),
        serial: croft_screen::text::plain(one.disk.serial.as_deref().unwrap_or_default()),
        ..Disk::default()
    };
    match shown.confirmation() {
        Some(wanted) if essence(wanted) == essence(typed) => Ok(one),
        _ => Err(OrderError::NotConfirmed { disk }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_hardware::{Disk as Hardware, Transport};

    fn examined(name: &str, serial: Option<&str>, verdict: Verdict) -> Examined {
        let disk = Hardware {
            name: name.into(),
            size_bytes: 20 << 30,
            rotational: false,
            model: None,
            serial: serial.map(ToOwned::to_owned),
            transport: Transport::Sata,
            removable: false,
            read_only: false,
            logical_block_bytes: 512,
            partitions: vec![],
            holders: vec![],
        };
        Examined { disk, verdict }
    }

    fn refusal(disks: &[Examined], name: &str, typed: &str) -> String {
        chosen(disks, name, typed, Some("sda"), Some("sdb")).unwrap_err().to_string()
    }

    #[test]
    fn only_a_disk_that_nobody_needs_and_whose_serial_number_was_typed_is_wiped() {
        let foreign = || Verdict::Foreign { what: "a filesystem".into() };
        let mut held = examined("sdd", Some("S4"), foreign());
        held.disk.holders = vec!["md0".into()];
        let disks = [
            examined("sda", Some("S1"), foreign()),
            examined("sdb", Some("S2"), foreign()),
            examined("sdc", Some("S-3"), foreign()),
            held,
            examined("sde", None, foreign()),
            examined("sdf", Some("S6"), Verdict::Removable),
        ];
        assert_eq!(chosen(&disks, "sdc", "s3", Some("sda"), Some("sdb")).unwrap().disk.name, "sdc");
        assert_eq!(
            refusal(&disks, "sdc", "s4"),
            "what was typed is not what sdc is called: nothing was wiped"
        );
        assert_eq!(refusal(&disks, "sde", ""), "what was typed is not what sde is called: nothing was wiped");
        assert_eq!(refusal(&disks, "sda", "s1"), "sda stays as it is: the machine started from it");
        assert!(refusal(&disks, "sdb", "s2").contains("the node uses it now"));
        assert!(refusal(&disks, "sdd", "s4").contains("it is a part of md0"));
        assert!(refusal(&disks, "sdf", "s6").contains("may be a boot medium"));
        assert_eq!(refusal(&disks, "sdz", "s"), "there is no disk sdz any more: nothing was wiped");
    }
}
