//! Disks: `/sys/block`. None is opened here; what is on them is the business of croft-storage.

use crate::tree::{Tree, clean};
use serde::{Deserialize, Serialize};

/// The kernel counts sizes in these, whatever the disk's own sectors are.
const SECTOR_BYTES: u64 = 512;

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Nvme,
    Sata,
    Sas,
    Virtio,
    Usb,
    Mmc,
    /// iSCSI, Fibre Channel, NVMe over fabrics: the disk is not in this machine.
    Network,
    /// Parallel SCSI, hypervisors' SCSI, RAID controllers.
    Scsi,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The kernel's name, `nvme0n1`; the device is `/dev/<name>`.
    pub name: String,
    /// 0 when the disk does not say; a card reader without card is 0 as well.
    pub size_bytes: u64,
    pub rotational: bool,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub transport: Transport,
    /// The medium can be taken out. False for most USB disks, which can be pulled out whole: look at the transport.
    pub removable: bool,
    pub read_only: bool,
    pub logical_block_bytes: u32,
    pub partitions: Vec<Partition>,
    /// Names of RAID sets, LVM volumes and mappings that use the disk now.
    pub holders: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    pub name: String,
    pub number: u32,
    pub start_bytes: u64,
    pub size_bytes: u64,
}

pub(crate) fn read(tree: &Tree) -> Vec<Disk> {
    tree.names("sys/block").into_iter().filter_map(|name| read_disk(tree, name)).collect()
}

fn read_disk(tree: &Tree, name: String) -> Option<Disk> {
    let folder = format!("sys/block/{name}");
    // Loop, RAM, dm, md and zram disks have no device behind them; NVMe paths of one namespace are hidden.
    if !tree.exists(&format!("{folder}/device"))
        || tree.quiet_text(&format!("{folder}/hidden")).as_deref() == Some("1")
    {
        return None;
    }
    let at = |file: &str| format!("{folder}/{file}");
    let path = tree.link(&folder).unwrap_or_default();
    let transport = transport(&name, &path);
    let logical = tree.number(&at("queue/logical_block_size")).and_then(|bytes| u32::try_from(bytes).ok());
    Some(Disk {
        size_bytes: tree
            .number(&at("size"))
            .and_then(|sectors| sectors.checked_mul(SECTOR_BYTES))
            .unwrap_or(0),
        // Virtio disks say 1 because nobody asked the host; there, flash is the better guess.
        rotational: transport != Transport::Virtio && tree.flag(&at("queue/rotational")).unwrap_or(false),
        model: model(tree, &folder),
        serial: serial(tree, &folder),
        transport,
        removable: tree.flag(&at("removable")).unwrap_or(false),
        read_only: tree.flag(&at("ro")).unwrap_or(false),
        logical_block_bytes: logical.filter(|bytes| bytes.is_power_of_two()).unwrap_or(512),
        partitions: partitions(tree, &folder),
        holders: tree.names(&at("holders")),
        name,
    })
}

/// ATA disks behind SCSI say `ATA` as their vendor, which tells nothing.
fn model(tree: &Tree, folder: &str) -> Option<String> {
    let model = tree.name(&format!("{folder}/device/model"));
    // For PCI and virtio devices `vendor` is a number.
    let vendor =
        tree.name(&format!("{folder}/device/vendor")).filter(|name| name != "ATA" && !name.starts_with("0x"));
    match (vendor, model) {
        (Some(vendor), Some(model)) if !model.starts_with(&vendor) => Some(format!("{vendor} {model}")),
        (_, Some(model)) => Some(model),
        (vendor, None) => vendor.or_else(|| tree.name(&format!("{folder}/device/name"))),
    }
}

fn serial(tree: &Tree, folder: &str) -> Option<String> {
    let text = |file: &str| tree.name(&format!("{folder}/{file}"));
    text("device/serial").or_else(|| text("serial")).or_else(|| {
        // SCSI vital product data, page 0x80 (SPC-4, 7.8.17): four bytes of header, then the number.
        let page = tree.bytes(&format!("{folder}/device/vpd_pg80"))?;
        clean(&String::from_utf8_lossy(page.get(4..)?))
    })
}

/// From the device's place in the tree of buses.
fn transport(name: &str, path: &str) -> Transport {
    let on = |bus: &str| path.split('/').any(|part| part.strip_prefix(bus).is_some_and(is_numbered));
    if on("session") || on("rport-") || path.contains("/nvme-fabrics/") {
        Transport::Network
    } else if on("usb") {
        Transport::Usb
    } else if name.starts_with("nvme") {
        Transport::Nvme
    } else if on("virtio") {
        Transport::Virtio
    } else if name.starts_with("mmcblk") {
        Transport::Mmc
    } else if on("ata") {
        Transport::Sata
    } else if on("end_device-") {
        Transport::Sas
    } else if on("host") {
        Transport::Scsi
    } else {
        Transport::Unknown
    }
}

fn is_numbered(rest: &str) -> bool {
    rest.starts_with(|character: char| character.is_ascii_digit())
}

fn partitions(tree: &Tree, folder: &str) -> Vec<Partition> {
    tree.names(folder)
        .into_iter()
        .filter(|name| tree.exists(&format!("{folder}/{name}/partition")))
        .map(|name| {
            let number = |file: &str| tree.number(&format!("{folder}/{name}/{file}")).unwrap_or(0);
            Partition {
                number: u32::try_from(number("partition")).unwrap_or(0),
                start_bytes: number("start").saturating_mul(SECTOR_BYTES),
                size_bytes: number("size").saturating_mul(SECTOR_BYTES),
                name,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_on_the_buses_tells_the_transport() {
        let pci = "../devices/pci0000:00/0000:00:1f.2";
        for (name, path, want) in [
            ("sda", format!("{pci}/ata1/host0/target0:0:0/0:0:0:0/block/sda"), Transport::Sata),
            ("sda", format!("{pci}/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sda"), Transport::Usb),
            (
                "sda",
                format!("{pci}/host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0/block/sda"),
                Transport::Sas,
            ),
            (
                "sda",
                "../devices/platform/host2/session1/target2:0:0/2:0:0:0/block/sda".into(),
                Transport::Network,
            ),
            ("sda", format!("{pci}/virtio0/host2/target2:0:0/2:0:0:0/block/sda"), Transport::Virtio),
            ("sda", format!("{pci}/host0/target0:2:0/0:2:0:0/block/sda"), Transport::Scsi),
            ("vda", format!("{pci}/virtio1/block/vda"), Transport::Virtio),
            ("nvme0n1", format!("{pci}/nvme/nvme0/nvme0n1"), Transport::Nvme),
            ("nvme0n1", "../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1".into(), Transport::Nvme),
            ("mmcblk0", format!("{pci}/mmc_host/mmc0/mmc0:0001/block/mmcblk0"), Transport::Mmc),
            ("sda", String::new(), Transport::Unknown),
        ] {
            assert_eq!(transport(name, &path), want, "{path}");
        }
    }
}
