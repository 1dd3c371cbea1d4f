//! What firmware, disks and neighbours in the same machine say.

use std::cell::OnceCell;
use std::path::Path;

use croft_hardware::Inventory;
use croft_hardware::health::{self, Health};
use croft_identity::{DiskKeyStore, KeyStore};
use croft_init::{mountinfo, notify};
use croft_screen::text::plain;
use croft_screen::wire::{Inbox, ToAgent, ToScreen};
use croft_screen::{Action, Keys, Menu, Stages, Status};
use croft_storage::digest::Digest;
use croft_storage::documents::Documents;
use croft_storage::marker::{Marker, State};
use croft_storage::signature::{self, Ends, Ext};
use croft_storage::volumes::{ContractKey, VolumeName};

use crate::check::{bounded, bounded_message, canonical, text};
use crate::scene::{encoded, rewrite, written};
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[
    Target {
        name: "hardware",
        decodes: "SMBIOS names, EFI variables, CPUs, memory, disks and NICs below /sys and /proc",
        sent_by: "firmware and drivers",
        files: &[
            "os/hardware/src/cpu.rs",
            "os/hardware/src/disk.rs",
            "os/hardware/src/firmware.rs",
            "os/hardware/src/memory.rs",
            "os/hardware/src/nic.rs",
            "os/hardware/src/tree.rs",
        ],
        seeds: || vec![encoded("machine", &MACHINE.map(|text| text.as_bytes().to_vec()).to_vec())],
        rounds: 150,
        run: hardware,
    },
    Target {
        name: "disk-health",
        decodes: "NVMe's SMART log, and sense data with the registers of an ATA disk",
        sent_by: "a disk",
        files: &["os/hardware/src/health.rs"],
        seeds: health_pages,
        rounds: 2_000,
        run: disk_health,
    },
    Target {
        name: "screen-message",
        decodes: "what the node's agent and its screen tell each other",
        sent_by: "the agent, with names from firmware, disks and tenants",
        files: &["os/screen/src/wire.rs"],
        seeds: || vec![("answer".to_owned(), b"\x01\x04\x00\x00\x00done".to_vec())],
        rounds: 2_000,
        run: screen_message,
    },
    Target {
        name: "screen-line",
        decodes: "records of the kernel log, and what a keyboard types",
        sent_by: "drivers, and whoever stands before the machine",
        files: &["os/screen/src/stages.rs", "os/screen/src/menu.rs"],
        seeds: screen_lines,
        rounds: 2_000,
        run: screen_line,
    },
    Target {
        name: "data-disk-marker",
        decodes: "how a data disk says that it is ours",
        sent_by: "a disk",
        files: &["os/storage/src/marker.rs"],
        seeds: markers,
        rounds: 2_000,
        run: marker,
    },
    Target {
        name: "disk-signatures",
        decodes: "what is on a disk, from both of its ends",
        sent_by: "a disk",
        files: &["os/storage/src/signature.rs"],
        seeds: disks,
        rounds: 1_000,
        run: disk,
    },
    Target {
        name: "documents",
        decodes: "a small file that survives a power cut",
        sent_by: "a disk",
        files: &["os/storage/src/documents.rs"],
        seeds: stored,
        rounds: 300,
        run: document,
    },
    Target {
        name: "storage-names",
        decodes: "digests, contracts and volumes from file names",
        sent_by: "a disk",
        files: &["os/storage/src/digest.rs", "os/storage/src/volumes.rs"],
        seeds: names,
        rounds: 2_000,
        run: storage_names,
    },
    Target {
        name: "node-key",
        decodes: "the node's key on disk (node.key)",
        sent_by: "a disk",
        files: &["os/identity/src/lib.rs"],
        seeds: node_keys,
        rounds: 300,
        run: node_key,
    },
    Target {
        name: "node-notices",
        decodes: "what the node's agent tells PID 1",
        sent_by: "the node's agent",
        files: &["os/init/src/notify.rs"],
        seeds: notices,
        rounds: 2_000,
        run: notice,
    },
    Target {
        name: "mountinfo",
        decodes: "/proc/self/mountinfo",
        sent_by: "the kernel, with names of others",
        files: &["os/init/src/mountinfo.rs"],
        seeds: || vec![written("mountinfo", MOUNTS)],
        rounds: 2_000,
        run: mounts,
    },
];

/// Where the pieces of [`MACHINE`] go.
const PATHS: [&str; 24] = [
    "sys/class/dmi/id/sys_vendor",
    "sys/class/dmi/id/product_name",
    "sys/class/dmi/id/product_serial",
    "sys/class/dmi/id/product_uuid",
    "sys/class/dmi/id/bios_version",
    "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
    "sys/firmware/efi/efivars/SetupMode-8be4df61-93ca-11d2-aa0d-00e098032b8c",
    "sys/class/tpm/tpm0/tpm_version_major",
    "proc/cpuinfo",
    "proc/meminfo",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/cpu0/topology/core_id",
    "sys/devices/system/cpu/cpu0/topology/physical_package_id",
    "sys/devices/system/memory/block_size_bytes",
    "sys/devices/system/memory/memory0/state",
    "sys/block/sda/size",
    "sys/block/sda/removable",
    "sys/block/sda/queue/rotational",
    "sys/block/sda/queue/logical_block_size",
    "sys/block/sda/device/model",
    "sys/block/sda/sda1/partition",
    "sys/block/sda/sda1/size",
    "sys/class/net/enp3s0/address",
    "sys/class/net/enp3s0/speed",
];

const MACHINE: [&str; 24] = [
    "LENOVO\n",
    "ThinkStation  P360\n",
    "PF0ABCDE\n",
    "12345678-9ABC-DEF0-1234-56789abcdef0\n",
    "1.23\n",
    "\u{6}\0\0\0\u{1}",
    "\u{6}\0\0\0\0",
    "2\n",
    "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu vmx aes\ncore id\t\t: 0\n\n",
    "MemTotal:       16303428 kB\nMemFree:         1000 kB\n",
    "0-7\n",
    "0\n",
    "0\n",
    "8000000\n",
    "online\n",
    "1000215216\n",
    "0\n",
    "0\n",
    "512\n",
    "Samsung SSD 860 \n",
    "1\n",
    "1048576\n",
    "52:54:00:12:34:56\n",
    "-1\n",
];

const MOUNTS: &str = "22 1 0:21 / / rw,relatime shared:1 - tmpfs root rw\n\
                      23 22 8:1 / /data rw,noatime shared:2 master:1 - ext4 /dev/sda1 rw\n\
                      24 22 0:5 / /mnt/with\\040blank rw - 9p share rw\n";

thread_local! {
    static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
    static DOCUMENTS: OnceCell<Documents> = const { OnceCell::new() };
}

/// A folder that is the same in all runs of a thread.
fn with_folder<T>(run: impl FnOnce(&Path) -> T) -> T {
    let make = || tempfile::tempdir().expect("a folder can be made");
    FOLDER.with(|folder| run(folder.get_or_init(make).path()))
}

fn put(root: &Path, path: &str, bytes: &[u8]) {
    rewrite(&root.join(path), bytes);
}

fn hardware(bytes: &[u8]) {
    let Some(pieces) = canonical::<Vec<Vec<u8>>>("pieces of a machine", 1 << 20, bytes) else { return };
    let inventory = with_folder(|root| {
        for (n, path) in PATHS.iter().enumerate() {
            put(root, path, pieces.get(n).map(Vec::as_slice).unwrap_or_default());
        }
        bounded("inventory", bytes.len(), || Inventory::read(root))
    });
    let machine = &inventory.machine;
    let names =
        [&machine.vendor, &machine.product, &machine.serial, &machine.uuid, &machine.firmware_version];
    for name in names.into_iter().flatten() {
        assert!(name.chars().count() <= 128 && !name.chars().any(char::is_control), "{name:?}");
    }
    assert!(inventory.findings.len() <= 256);
    assert!(inventory.findings.iter().all(|finding| finding.len() <= 1024), "{:?}", inventory.findings);
    crate::check::json_again("inventory", &inventory);
}

fn health_pages() -> Vec<Seed> {
    let mut page = vec![0; health::NVME_LOG_BYTES];
    page[1..5].copy_from_slice(&[0x43, 0x01, 100, 10]);
    page[128] = 2;
    let mut sense = vec![0; health::SENSE_BYTES];
    sense[..8].copy_from_slice(&[0x72, 0x01, 0x00, 0x1d, 0, 0, 0, 14]);
    sense[8..22].copy_from_slice(&[0x09, 12, 0, 0, 0, 0, 0, 0, 0, 0x4f, 0, 0xc2, 0, 0x50]);
    vec![("nvme".to_owned(), page), ("ata".to_owned(), sense)]
}

/// A disk is never good unless it said so, and what is told of it is short.
fn disk_health(bytes: &[u8]) {
    let ata = bounded("sense data", bytes.len(), || health::ata_health(bytes));
    if ata == Health::Good {
        assert!(bytes.windows(3).any(|w| w[0] == 0x4f && (w[1] == 0xc2 || w[2] == 0xc2)), "{bytes:?}");
    }
    if let Some(log) = health::NvmeLog::decode(bytes) {
        let health = log.health();
        assert!(health != Health::Good || log.critical_warning.trailing_zeros() >= 6);
        assert!(health.to_string().len() <= 512);
    }
}

fn screen_message(bytes: &[u8]) {
    let message = bounded("a message", bytes.len(), || ToScreen::decode(bytes));
    match message {
        Ok(ToScreen::Status(status)) => {
            assert_eq!((*status).clone().bounded(), *status, "bounds hold for ever");
        }
        Ok(ToScreen::Answer(text)) => assert_eq!(plain(&text), text),
        Err(error) => bounded_message("a message", &error.to_string()),
    }
    if let Err(error) = ToAgent::decode(bytes) {
        bounded_message("an order", &error.to_string());
    }
    let mut inbox = Inbox::default();
    inbox.push(bytes);
    while let Ok(Some(message)) = inbox.next_message() {
        assert!(message.len() < bytes.len());
    }
}

fn screen_lines() -> Vec<Seed> {
    let record = b"3,812,3100211,-;croft: stage 5/11 network: failed in 9 ms: no carrier on eth0\n";
    let keys = b"\x1b[[A21ab-1\r\x1b[A\x1bOP\x7f";
    vec![("record".to_owned(), record.to_vec()), ("keys".to_owned(), keys.to_vec())]
}

fn screen_line(bytes: &[u8]) {
    let mut stages = Stages::default();
    stages.take_record(bytes);
    let texts =
        stages.list.iter().map(|stage| &stage.detail).chain(stages.troubles().iter().map(|line| &line.text));
    for text in texts {
        assert_eq!(&plain(text), text, "a line could steer the terminal");
    }
    let (mut menu, status) = (Menu::default(), Status::default());
    for key in Keys::decode(bytes) {
        let action = menu.handle(key, &status);
        assert!(!matches!(action, Some(Action::Order(_))), "there is nothing to order");
    }
}

fn marker(bytes: &[u8]) {
    if let Some(marker) = Marker::decode(bytes) {
        assert_eq!(marker.encode(), bytes[..512], "a marker has two forms");
        let known = markers().into_iter().any(|(_, seed)| seed[..] == bytes[..512]);
        assert!(known, "an altered marker is believed");
    }
}

/// The input stands at the start and at the end of a disk of 2 MiB, at places where formats keep their magic numbers.
fn disk(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(64 * 1024)];
    let found = bounded("a disk", bytes.len(), || {
        let ends = Ends { head: bytes, tail: bytes, size_bytes: 2 << 20 };
        signature::recognise(&ends)
    });
    let mut kinds: Vec<_> = found.iter().map(|signature| signature.what).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), found.len(), "a thing is found twice");
    if let Some(ext) = Ext::parse(bytes) {
        assert!(ext.label.is_none_or(|label| label.chars().count() <= 16));
        assert!(found.iter().any(|signature| signature.what.contains("ext")), "a file system is overlooked");
    }
    assert!(!signature::blank(bytes) || found.is_empty(), "a blank disk holds {found:?}");
}

fn document(bytes: &[u8]) {
    with_folder(|folder| {
        DOCUMENTS.with(|documents| {
            let open = || Documents::open(&folder.join("documents")).expect("the folder can be made");
            let documents = documents.get_or_init(open);
            put(folder, "documents/input", bytes);
            let read = bounded("document", bytes.len(), || documents.get("input"));
            if let Ok(Some(content)) = read {
                assert_eq!(stored_form(&content), bytes, "a damaged document is read");
            }
        });
    });
}

/// A document's magic number, its digest, and itself.
fn stored_form(content: &[u8]) -> Vec<u8> {
    [b"croftdoc", &Digest::of(content).0[..], content].concat()
}

fn storage_names(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match Digest::parse(text) {
        Ok(digest) => assert_eq!(digest.to_string(), text, "a digest has two names"),
        Err(error) => bounded_message("digest", &error.to_string()),
    }
    match ContractKey::parse(text) {
        Ok(key) => assert_eq!(key.to_string(), text, "a contract has two names"),
        Err(error) => bounded_message("contract", &error.to_string()),
    }
    match VolumeName::parse(text) {
        Ok(name) => assert!(name.as_str() == text && !text.contains(['/', '.', '\0'])),
        Err(error) => bounded_message("volume", &error.to_string()),
    }
}

fn node_key(bytes: &[u8]) {
    with_folder(|folder| {
        put(folder, "node.key", bytes);
        if let Ok(Some(seed)) = DiskKeyStore::new(folder).load() {
            assert_eq!(seed, [7; 32], "a damaged key is taken for another");
        }
    });
}

fn notice(bytes: &[u8]) {
    match notify::Message::parse(bytes) {
        Ok(message) => {
            let again = notify::Message::parse(message.to_string().as_bytes());
            assert_eq!(again.as_ref(), Ok(&message), "a notice is not read as it is shown");
        }
        Err(error) => bounded_message("notice", &error.to_string()),
    }
}

fn mounts(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let mounts = bounded("mounts", bytes.len(), || mountinfo::parse(text));
    assert!(mounts.len() <= text.lines().count());
    for mount in mounts {
        let _ = mount.on_disk();
    }
}

fn markers() -> Vec<Seed> {
    let marker = |state| Marker { state, uuid: [9; 16], created_unix: 1_700_000_000 }.encode().to_vec();
    vec![("ready".to_owned(), marker(State::Ready)), ("formatting".to_owned(), marker(State::Formatting))]
}

fn disks() -> Vec<Seed> {
    let mut ext = vec![0_u8; 4096];
    ext[1024 + 0x38..1024 + 0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
    ext[1024 + 0x60] = 0x40;
    ext[1024 + 0x78..1024 + 0x7c].copy_from_slice(b"data");
    let mut table = vec![0_u8; 1024];
    table[510..512].copy_from_slice(&[0x55, 0xaa]);
    (table[446], table[450], table[458]) = (0x80, 0x83, 1);
    table[512..520].copy_from_slice(b"EFI PART");
    let mut lvm = vec![0_u8; 2048];
    lvm[512..520].copy_from_slice(b"LABELONE");
    lvm[536..540].copy_from_slice(b"LVM2");
    vec![
        ("ext4".to_owned(), ext),
        ("tables".to_owned(), table),
        ("lvm".to_owned(), lvm),
        ("blank".to_owned(), vec![0xff; 512]),
    ]
}

fn stored() -> Vec<Seed> {
    vec![("document".to_owned(), stored_form(b"a contract")), ("empty".to_owned(), stored_form(b""))]
}

fn names() -> Vec<Seed> {
    let hash = Digest::of(b"abc").to_string();
    vec![written("digest", &hash), written("upper", &hash.to_uppercase()), written("volume", "data-1")]
}

/// As the node writes it, with the check value of the seed.
fn node_keys() -> Vec<Seed> {
    let seed = [7_u8; 32];
    let check = hex::encode(&croft_protocol::Hash::of_bytes(&seed).0[..8]);
    let text = format!("version = 1\nseed = \"{}\"\ncheck = \"{check}\"\n", hex::encode(seed));
    vec![written("node.key", &text)]
}

fn notices() -> Vec<Seed> {
    let words = ["alive", "ready", "reboot a new release", "poweroff the farmer asked"];
    words.iter().enumerate().map(|(n, word)| written(&format!("notice-{n}"), word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_what_they_are_called() {
        with_folder(|folder| {
            put(folder, "node.key", &node_keys()[0].1);
            assert_eq!(DiskKeyStore::new(folder).load().unwrap(), Some([7; 32]));
        });
        let found = disks().into_iter().map(|(_, bytes)| {
            let ends = Ends { head: &bytes, tail: &bytes, size_bytes: 2 << 20 };
            signature::recognise(&ends).iter().map(|found| found.what).collect::<Vec<_>>()
        });
        let found: Vec<_> = found.collect();
        assert_eq!(found[0], ["an ext4 filesystem"]);
        assert!(found[1].contains(&"a GPT partition table"), "{found:?}");
        assert_eq!((&found[2][..], &found[3][..]), (&["an LVM physical volume"][..], &[][..]));
        assert_eq!(mountinfo::parse(MOUNTS).len(), 3);
    }
}
