//! Inventories of captured and made-up machines; `tests/trees/*` holds them as text, and [`plant`] says in which form.

use croft_hardware::{FirmwareKind, Inventory, SecureBoot, Transport, Virtualisation};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Makes a folder tree from text. One entry a line: `path = text`, `path =x 00 ff` (bytes), `path -> target` (link),
/// `path/` (folder), `path !` (a folder where a file is expected, so that reading fails), `path <<` with lines up to
/// `>>`. `{1..4}` in a path stands for four of them. `#` starts a comment.
fn plant(text: &str) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(path) = line.strip_suffix(" <<") {
            let content: Vec<&str> = lines.by_ref().take_while(|line| *line != ">>").collect();
            write(root.path(), path, content.join("\n").as_bytes());
        } else if let Some((path, target)) = line.split_once(" -> ") {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, path).unwrap();
        } else if let Some((path, bytes)) = line.split_once(" =x ") {
            let bytes: Vec<u8> = bytes.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            write(root.path(), path, &bytes);
        } else if let Some((path, text)) = line.split_once(" =") {
            for path in expand(path) {
                write(root.path(), &path, format!("{}\n", text.strip_prefix(' ').unwrap_or(text)).as_bytes());
            }
        } else {
            let path = line.strip_suffix(" !").or(line.strip_suffix('/')).expect("a line of a known form");
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
    }
    root
}

fn expand(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (range, after) = rest.split_once('}').unwrap();
    let (first, last) = range.split_once("..").unwrap();
    let range = first.parse::<u32>().unwrap()..=last.parse::<u32>().unwrap();
    range.map(|number| format!("{before}{number}{after}")).collect()
}

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn read(text: &str) -> Inventory {
    Inventory::read(plant(text).path())
}

fn names(inventory: &Inventory) -> Vec<&str> {
    inventory.disks.iter().map(|disk| disk.name.as_str()).collect()
}

#[test]
fn a_server_with_many_disks_and_a_bond() {
    let inventory = read(include_str!("trees/server.tree"));
    assert_eq!((inventory.cpu.sockets, inventory.cpu.cores, inventory.cpu.threads), (2, 3, 4));
    assert_eq!(inventory.cpu.virtualisation, Virtualisation::Svm);
    assert!(inventory.cpu.kvm && !inventory.cpu.virtual_machine);
    // sev_es is not on every processor.
    assert_eq!(inventory.cpu.flags, ["aes", "avx2", "rdrand", "rdseed", "sev", "sha_ni"]);
    assert_eq!(inventory.memory.total_bytes, 263_841_384 * 1024);
    assert_eq!(inventory.memory.installed_bytes, Some(256 << 30), "the block that is offline does not count");

    assert_eq!(names(&inventory), ["sda", "sdb", "sdc", "nvme2n1", "nvme10n1"]);
    let [sata, sas, usb, multipath, nvme] = inventory.disks.as_slice() else { panic!("five disks") };
    assert_eq!(sata.transport, Transport::Sata);
    assert_eq!(sata.model.as_deref(), Some("WDC WD4003FFBX-6"));
    assert_eq!(sata.serial.as_deref(), Some("VBG1234F"));
    assert!(sata.rotational && sata.holders == ["md127"]);
    assert_eq!(sata.size_bytes, 7_814_037_168 * 512);
    assert_eq!(sata.partitions.len(), 2);
    assert_eq!((sata.partitions[1].number, sata.partitions[1].start_bytes), (2, 1_050_624 * 512));
    assert_eq!((sas.transport, sas.model.as_deref()), (Transport::Sas, Some("SEAGATE ST8000NM0075")));
    assert_eq!(usb.transport, Transport::Usb);
    assert!(usb.removable && usb.read_only);
    assert_eq!((multipath.transport, multipath.serial.as_deref()), (Transport::Nvme, Some("PHLJ000001")));
    assert_eq!((nvme.transport, nvme.logical_block_bytes), (Transport::Nvme, 4096));
    assert_eq!(nvme.model.as_deref(), Some("SAMSUNG MZQL21T9HCJR-00A07"));
    assert!(!nvme.rotational);

    let [first, second] = inventory.nics.as_slice() else { panic!("two cards: {:?}", inventory.nics) };
    assert_eq!((first.name.as_str(), first.driver.as_deref()), ("eno1np0", Some("bnxt_en")));
    assert_eq!((first.speed_mbit, first.carrier), (Some(25_000), Some(true)));
    assert_eq!(first.pci_id.as_deref(), Some("14e4:16d7"));
    assert_eq!(first.pci_address.as_deref(), Some("0000:61:00.0"));
    assert_eq!(second.mac.as_deref(), Some("3c:ec:ef:00:00:02"), "its own address, not the bond's");
    assert_eq!((second.speed_mbit, second.carrier), (None, Some(false)));

    assert_eq!(inventory.machine.vendor.as_deref(), Some("Supermicro"));
    assert_eq!(inventory.machine.uuid.as_deref(), Some("00112233-4455-6677-8899-aabbccddeeff"));
    assert_eq!(
        (inventory.firmware.kind, inventory.firmware.secure_boot),
        (FirmwareKind::Efi, SecureBoot::On)
    );
    assert_eq!(inventory.tpm.unwrap().version, Some(2));
    assert_eq!(inventory.findings, ["/sys/class/net/ib0: link of type 32 is not Ethernet and not used"]);
}

#[test]
fn an_old_desktop_without_smbios() {
    let inventory = read(include_str!("trees/desktop.tree"));
    assert_eq!((inventory.cpu.sockets, inventory.cpu.cores, inventory.cpu.threads), (1, 2, 2));
    assert_eq!(inventory.cpu.virtualisation, Virtualisation::None);
    assert!(!inventory.cpu.kvm);
    assert_eq!(inventory.cpu.model.as_deref(), Some("Intel(R) Pentium(R) Dual CPU E2180 @ 2.00GHz"));
    assert_eq!(inventory.machine, croft_hardware::Machine::default());
    assert_eq!(inventory.firmware.kind, FirmwareKind::Bios);
    assert_eq!(inventory.firmware.secure_boot, SecureBoot::Impossible);
    assert_eq!(inventory.tpm, None);
    assert_eq!(names(&inventory), ["sr0", "sda"], "as people count: shorter letters first");
    assert!(inventory.disks[0].removable);
    let card = &inventory.nics[0];
    assert_eq!((card.driver.as_deref(), card.carrier, card.speed_mbit), (Some("8139too"), None, None));
    assert_eq!(inventory.findings, [""; 0], "a link that is down is no fault");
}

#[test]
fn garbage_is_reported_and_never_a_panic() {
    let inventory = read(include_str!("trees/garbled.tree"));
    assert_eq!((inventory.cpu.sockets, inventory.cpu.cores, inventory.cpu.threads), (1, 1, 1));
    assert_eq!(inventory.memory.total_bytes, 0);
    assert_eq!(names(&inventory), ["sda"]);
    let disk = &inventory.disks[0];
    assert_eq!((disk.size_bytes, disk.logical_block_bytes), (0, 512));
    assert_eq!(disk.model.as_deref(), Some("[2JA B"), "no control characters");
    assert_eq!(disk.serial, None);
    assert_eq!(inventory.nics.len(), 2);
    assert!(inventory.nics.iter().all(|card| card.mac.is_none()));
    assert_eq!(inventory.machine.vendor, None, "a placeholder is no name");
    assert_eq!(inventory.machine.uuid, None);
    assert_eq!(inventory.firmware.secure_boot, SecureBoot::Unknown);
    assert_eq!(inventory.tpm.unwrap().version, None);
    let findings = inventory.findings.join("\n");
    for part in [
        "/proc/cpuinfo: names no processor: one is assumed",
        "/proc/meminfo: MemTotal is \"plenty\": the size of the memory is unknown",
        "/sys/block/sda/size: \"99999999999999999999\" is not a number",
        "/sys/block/sda/removable: \"maybe\" is not a number",
        "/sys/block/sda/ro: can't be read: Is a directory",
        "/sys/class/net/eth0/type: \"ethernet\" is not a number",
        "/sys/class/net/eth0/address: \"zz:zz:zz:zz:zz:zz\" is not an Ethernet address",
        "/sys/class/net/eth1/address: \"00:00:00:00:00:00\" is not an Ethernet address",
        "/sys/class/dmi/id/product_uuid: is not a UUID",
        "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c: 1 bytes instead of 5",
    ] {
        assert!(findings.contains(part), "{part} is missing in:\n{findings}");
    }
}

#[test]
fn a_virtual_machine_of_a_cloud() {
    let inventory = read(include_str!("trees/cloud.tree"));
    assert_eq!((inventory.cpu.sockets, inventory.cpu.cores, inventory.cpu.threads), (1, 2, 2));
    assert!(inventory.cpu.virtual_machine);
    assert_eq!(inventory.cpu.virtualisation, Virtualisation::None);
    assert!(inventory.cpu.kvm, "the device is there although nothing behind it works");
    assert_eq!(names(&inventory), ["vda"], "no loop, no zram");
    assert_eq!(inventory.disks[0].transport, Transport::Virtio);
    assert_eq!(inventory.disks[0].size_bytes, 256 << 30);
    assert!(!inventory.disks[0].rotational, "a virtio disk does not know, whatever it says");
    assert_eq!(inventory.nics.len(), 1);
    assert_eq!(inventory.nics[0].driver.as_deref(), Some("virtio_net"));
    assert_eq!(inventory.nics[0].pci_id.as_deref(), Some("1af4:1041"));
    assert_eq!(inventory.findings, [""; 0]);
}

#[test]
fn a_virtual_machine_of_qemu() {
    let inventory = read(include_str!("trees/q35.tree"));
    assert_eq!((inventory.cpu.sockets, inventory.cpu.cores, inventory.cpu.threads), (1, 2, 2));
    assert_eq!(inventory.cpu.virtualisation, Virtualisation::Svm);
    assert!(inventory.cpu.kvm && inventory.cpu.virtual_machine);
    assert_eq!(inventory.memory.total_bytes, 998_256 * 1024);
    assert_eq!(inventory.machine.product.as_deref(), Some("Standard PC (Q35 + ICH9, 2009)"));
    assert_eq!(inventory.machine.serial, None, "an empty serial number is none");
    assert_eq!(inventory.firmware.kind, FirmwareKind::Bios);
    let disks: Vec<_> =
        inventory.disks.iter().map(|disk| (disk.name.as_str(), disk.serial.as_deref())).collect();
    assert_eq!(disks, [("sr0", None), ("vda", Some("demo-disk"))]);
    assert_eq!(inventory.disks[0].model.as_deref(), Some("QEMU DVD-ROM"));
    assert!(inventory.disks[0].read_only && inventory.disks[0].removable);
    assert_eq!((inventory.disks[1].transport, inventory.disks[1].size_bytes), (Transport::Virtio, 4 << 30));
    assert_eq!(
        (inventory.nics[0].mac.as_deref(), inventory.nics[0].carrier),
        (Some("52:54:00:12:34:56"), None)
    );
    assert_eq!(inventory.findings, [""; 0]);
}

#[test]
fn a_machine_that_shows_nothing_is_an_empty_inventory() {
    let inventory = read("");
    assert_eq!((inventory.disks.len(), inventory.nics.len(), inventory.memory.total_bytes), (0, 0, 0));
    assert_eq!(inventory.cpu.threads, 1);
    assert_eq!(inventory.findings.len(), 2, "{:?}", inventory.findings);
}

#[test]
fn an_inventory_survives_the_way_through_json() {
    for tree in [include_str!("trees/server.tree"), include_str!("trees/garbled.tree")] {
        let inventory = read(tree);
        let text = serde_json::to_string(&inventory).unwrap();
        assert_eq!(serde_json::from_str::<Inventory>(&text).unwrap(), inventory);
    }
}

#[test]
fn an_attribute_that_turns_to_garbage_never_is_a_panic() {
    for tree in [include_str!("trees/server.tree"), include_str!("trees/desktop.tree")] {
        let root = plant(tree);
        let files = tree.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).flat_map(expand);
        // Of the many blocks of memory one is enough.
        for path in files.filter(|path| !path.contains("memory/memory") || path.ends_with("memory1/state")) {
            let path = root.path().join(path);
            let good = fs::read(&path).unwrap();
            for bad in ["", "-1", "18446744073709551616", "\u{0}\u{1b}", "0x", "💥"] {
                fs::write(&path, bad).unwrap();
                let _ = Inventory::read(root.path());
            }
            fs::write(&path, good).unwrap();
        }
    }
}

#[test]
fn this_machine_can_be_read() {
    let inventory = Inventory::read(Path::new("/"));
    assert!(inventory.cpu.threads >= 1);
    assert!(inventory.memory.total_bytes > 64 << 20, "{:?}", inventory.memory);
}
