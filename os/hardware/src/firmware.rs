//! The machine's names (SMBIOS), its firmware and its TPM.

use crate::tree::Tree;
use serde::{Deserialize, Serialize};

/// As the maker wrote it. Placeholders that makers forget to fill in count as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub vendor: Option<String>,
    pub product: Option<String>,
    pub serial: Option<String>,
    /// Lower case. Many cheap boards share one: good for people to recognise a machine, no identity.
    pub uuid: Option<String>,
    pub firmware_vendor: Option<String>,
    pub firmware_version: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirmwareKind {
    Efi,
    Bios,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecureBoot {
    On,
    Off,
    /// Off, and open for new keys.
    Setup,
    /// EFI firmware that does not say, or whose variables could not be read.
    Unknown,
    /// BIOS firmware has none.
    Impossible,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    pub kind: FirmwareKind,
    pub secure_boot: SecureBoot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tpm {
    /// 1 or 2; `None` when the driver does not say.
    pub version: Option<u8>,
}

const PLACEHOLDERS: &[&str] = &[
    "to be filled by o.e.m.",
    "to be filled by o.e.m",
    "default string",
    "system manufacturer",
    "system product name",
    "system serial number",
    "system version",
    "not specified",
    "not applicable",
    "not available",
    "unknown",
    "none",
    "n/a",
    "o.e.m.",
    "oem",
    "0",
    "0123456789",
    "123456789",
    "xxxxxxxx",
];

/// Found on whole product lines.
const PLACEHOLDER_UUIDS: &[&str] = &[
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "03000200-0400-0500-0006-000700080009",
    "00020003-0004-0005-0006-000700080009",
];

pub(crate) fn read_machine(tree: &Tree) -> Machine {
    let name = |file: &str| {
        tree.name(&format!("sys/class/dmi/id/{file}"))
            .filter(|name| !PLACEHOLDERS.contains(&name.to_ascii_lowercase().as_str()))
    };
    Machine {
        vendor: name("sys_vendor"),
        product: name("product_name"),
        serial: name("product_serial"),
        uuid: name("product_uuid").and_then(|text| uuid(tree, &text)),
        firmware_vendor: name("bios_vendor"),
        firmware_version: name("bios_version"),
    }
}

fn uuid(tree: &Tree, text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let well_formed = text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    if !well_formed {
        tree.find("sys/class/dmi/id/product_uuid", "is not a UUID");
    }
    (well_formed && !PLACEHOLDER_UUIDS.contains(&text.as_str())).then_some(text)
}

pub(crate) fn read_firmware(tree: &Tree) -> Firmware {
    if !tree.exists("sys/firmware/efi") {
        return Firmware { kind: FirmwareKind::Bios, secure_boot: SecureBoot::Impossible };
    }
    let secure_boot = match (variable(tree, "SecureBoot"), variable(tree, "SetupMode")) {
        (Some(1), _) => SecureBoot::On,
        (Some(0), Some(1)) => SecureBoot::Setup,
        (Some(0), _) => SecureBoot::Off,
        _ => SecureBoot::Unknown,
    };
    Firmware { kind: FirmwareKind::Efi, secure_boot }
}

/// A one-byte variable of the EFI global namespace (UEFI 2.10, section 3.3): four bytes of attributes, then the value.
fn variable(tree: &Tree, name: &str) -> Option<u8> {
    let path = format!("sys/firmware/efi/efivars/{name}-8be4df61-93ca-11d2-aa0d-00e098032b8c");
    match tree.bytes(&path)?.as_slice() {
        [_, _, _, _, value] => Some(*value),
        other => {
            tree.find(&path, &format!("{} bytes instead of 5", other.len()));
            None
        }
    }
}

pub(crate) fn read_tpm(tree: &Tree) -> Option<Tpm> {
    tree.exists("sys/class/tpm/tpm0").then(|| Tpm {
        version: tree
            .number("sys/class/tpm/tpm0/tpm_version_major")
            .and_then(|version| u8::try_from(version).ok())
            .filter(|version| matches!(version, 1 | 2)),
    })
}
