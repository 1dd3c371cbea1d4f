//! The boot matrix: firmware, medium and trouble, one row each. The same signed boot file starts everywhere, and what
//! must not start does not. One machine at a time: emulation takes every core that there is.
//!
//! `CROFT_BOOT_FILE` names the boot file (`cargo xtask image --boot-file --for-tests`). With `CROFT_BOOT_MATRIX=full`
//! every row runs, else those without which a change could break a whole path unseen. `CROFT_SCREENSHOTS` names a folder
//! for a picture of each row's monitor.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use croft_image_builder::{Archive, Entry, Kind};
use croft_it::grid::{self, Grid};
use croft_it::matrix;
use croft_it::rack::{self, Rack};
use croft_it::table::Table;
use croft_qemu_harness::profile::{Disk, DiskModel, NicModel};
use croft_qemu_harness::{Boot, Medium, NetworkBoot, Profile, SecureBoot, Wire};
use serde_json::Value;
use tokio::net::UdpSocket;

/// From power-on to the line that a row waits for, with emulation on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);
const VALID: &str = "the farm's addition is valid";
/// What a farmer adds to `boot.toml` for a VLAN on a bond.
const BOND: &str = r#"
[[link]]
name = "bond0"
mode = "static"
addresses = ["10.78.7.10/24"]
gateway = "10.78.7.1"
bond = { members = ["eth0", "eth1"], mode = "active-backup" }
vlan = 7
"#;

/// What a machine boots from in a row.
#[derive(Clone, Copy, PartialEq)]
enum From {
    Network(NetworkBoot),
    /// The signed boot file by UEFI HTTP; Secure Boot is on, and there is a TPM.
    SecureNetwork,
    /// A stick with the farm's addition: as it is, or spoilt.
    Stick(Spoilt),
    /// A stick whose boot file is signed, not signed, or altered after it; Secure Boot is on.
    SecureStick(Signed),
}

#[derive(Clone, Copy, PartialEq)]
enum Spoilt {
    Nothing,
    /// One byte of the addition.
    Addition,
    /// The addition's name: there is none on the stick.
    Absent,
    /// Nothing is spoilt, and the farm's permission to join has ended.
    Expired,
}

#[derive(Clone, Copy, PartialEq)]
enum Signed {
    Yes,
    No,
    Altered,
}

/// One row.
struct Row {
    name: &'static str,
    from: From,
    /// What the machine must say, in this order.
    says: &'static [&'static str],
    /// Kinds of trouble that the ledger must show of the new node, each with its remedy.
    tells: &'static [&'static str],
    /// What the netboot server must have said.
    served: &'static [&'static str],
    cpus: u32,
    memory_mib: u64,
    disk: Content,
    disk_model: DiskModel,
    nic: NicModel,
    /// Plugged into a switch with two netboot servers of different farms.
    two_servers: bool,
    /// Everything by TFTP.
    no_http: bool,
    /// Plugged into a switch on which nobody gives addresses.
    no_dhcp: bool,
    /// Megabits per second towards the machine.
    slow: Option<u32>,
    /// Whether the machine registered is seen on the ledger alone.
    no_serial: bool,
    /// Its processor runs no virtual machines.
    no_virtualisation: bool,
    /// A second disk, with somebody else's file system.
    second_disk: bool,
    /// That one is about to die: it gives a sector in eight seconds.
    dying_disk: bool,
    /// What the machine's clock begins with.
    clock_year: Option<u16>,
    full_only: bool,
}

/// What is on the machine's one disk.
#[derive(Clone, Copy, PartialEq)]
enum Content {
    NoDisk,
    Empty,
    /// Somebody else's file system.
    Foreign,
}

const ROW: Row = Row {
    name: "",
    from: From::Stick(Spoilt::Nothing),
    says: &[VALID],
    tells: &[],
    served: &[],
    cpus: 2,
    memory_mib: 1536,
    disk: Content::NoDisk,
    disk_model: DiskModel::Virtio,
    nic: NicModel::Virtio,
    two_servers: false,
    no_http: false,
    no_dhcp: false,
    slow: None,
    no_serial: false,
    no_virtualisation: false,
    second_disk: false,
    dying_disk: false,
    clock_year: None,
    full_only: false,
};

fn rows() -> Vec<Row> {
    use NetworkBoot::{BiosIpxe, UefiHttp, UefiPxe};
    vec![
        Row {
            name: "SeaBIOS, iPXE, HTTP",
            from: From::Network(BiosIpxe),
            says: &["http://10.78.0.1:8080/farm.bin"],
            served: &["asks by iPXE: http://10.78.0.1:8080/boot.ipxe", "took by HTTP: croft.efi"],
            ..ROW
        },
        Row {
            name: "SeaBIOS, iPXE, TFTP",
            from: From::Network(BiosIpxe),
            says: &["tftp://10.78.0.1/farm.bin"],
            served: &["asks by iPXE: tftp://10.78.0.1/boot.ipxe", "took by TFTP: croft.efi"],
            no_http: true,
            full_only: true,
            ..ROW
        },
        Row {
            name: "SeaBIOS, iPXE, HTTP at 10 Mbit/s",
            from: From::Network(BiosIpxe),
            says: &["http://10.78.0.1:8080/farm.bin"],
            served: &["took by HTTP: croft.efi"],
            slow: Some(10),
            full_only: true,
            ..ROW
        },
        Row {
            name: "OVMF, HTTP",
            from: From::Network(UefiHttp),
            says: &["http://10.78.0.1:8080/farm.bin"],
            served: &["asks by UEFI HTTP: http://10.78.0.1:8080/croft.efi", "took by HTTP: croft.efi"],
            full_only: true,
            ..ROW
        },
        Row {
            name: "OVMF, PXE, TFTP",
            from: From::Network(UefiPxe),
            says: &["farm.bin"],
            served: &["asks by UEFI PXE: croft.efi", "took by TFTP: croft.efi"],
            full_only: true,
            ..ROW
        },
        Row {
            name: "OVMF, Secure Boot, TPM, HTTP",
            from: From::SecureNetwork,
            says: &["Kernel is locked down from EFI Secure Boot", "farm.bin", "key in the TPM"],
            served: &["took by HTTP: croft.efi"],
            full_only: true,
            ..ROW
        },
        Row {
            name: "OVMF, Secure Boot, signed stick",
            from: From::SecureStick(Signed::Yes),
            says: &["UEFI Secure Boot is enabled", "Kernel is locked down from EFI Secure Boot", VALID],
            full_only: true,
            ..ROW
        },
        Row {
            name: "OVMF, Secure Boot, unsigned stick",
            from: From::SecureStick(Signed::No),
            says: &["Access Denied"],
            ..ROW
        },
        Row {
            name: "OVMF, Secure Boot, altered stick",
            from: From::SecureStick(Signed::Altered),
            says: &["Access Denied"],
            full_only: true,
            ..ROW
        },
        Row {
            name: "altered addition",
            from: From::Stick(Spoilt::Addition),
            says: &["/dev/sda is refused: the farm's addition was altered"],
            ..ROW
        },
        Row {
            name: "foreign disk, 1 GiB, 1 CPU",
            says: &[VALID, "no usable data disk"],
            cpus: 1,
            memory_mib: 1024,
            disk: Content::Foreign,
            ..ROW
        },
        Row {
            name: "no DHCP, no disk",
            says: &[VALID, "no DHCP answer on", "no usable data disk"],
            no_dhcp: true,
            full_only: true,
            ..ROW
        },
        Row {
            name: "empty disk, 4 CPUs",
            says: &[VALID, "is the data disk"],
            cpus: 4,
            disk: Content::Empty,
            full_only: true,
            ..ROW
        },
        Row {
            name: "expired permission to join",
            from: From::Stick(Spoilt::Expired),
            says: &[VALID, "permission to join is no good: it expired"],
            ..ROW
        },
        Row {
            name: "an empty and a foreign disk",
            says: &[VALID, "is the data disk", "register: ok"],
            disk: Content::Empty,
            second_disk: true,
            full_only: true,
            ..ROW
        },
        Row {
            name: "a dying disk",
            says: &[VALID, "inventory: ok"],
            second_disk: true,
            dying_disk: true,
            disk: Content::Empty,
            full_only: true,
            ..ROW
        },
        Row {
            name: "a clock of 2001, no time server",
            says: &[VALID, "register: ok"],
            tells: &["disk"],
            clock_year: Some(2001),
            ..ROW
        },
        Row {
            name: "too little memory",
            says: &[VALID, "of memory, and nothing can be sold below 448 MiB: add memory"],
            memory_mib: 448,
            full_only: true,
            ..ROW
        },
        Row {
            name: "no virtualisation",
            says: &[VALID, "register: ok", "enable virtualisation (VT-x or AMD-V) in the firmware setup"],
            tells: &["virtualisation"],
            disk: Content::Empty,
            no_virtualisation: true,
            full_only: true,
            ..ROW
        },
        Row {
            name: "no serial port",
            says: &[],
            disk: Content::Empty,
            no_serial: true,
            full_only: true,
            ..ROW
        },
        Row {
            name: "two servers that differ",
            from: From::Stick(Spoilt::Absent),
            says: &["are not the same: take out the medium, or stop the server"],
            two_servers: true,
            full_only: true,
            ..ROW
        },
    ]
}

/// Each card and controller takes a machine to its registration.
fn hardware_rows() -> Vec<Row> {
    let row = |name, nic, disk_model| Row {
        name,
        says: &[VALID, "network: ok", "is the data disk", "register: ok"],
        disk: Content::Empty,
        disk_model,
        nic,
        full_only: true,
        ..ROW
    };
    vec![
        row("e1000e, NVMe", NicModel::E1000e, DiskModel::Nvme),
        row("igb, AHCI", NicModel::Igb, DiskModel::SataSsd),
        row("vmxnet3, MegaRAID", NicModel::Vmxnet3, DiskModel::Megaraid),
        row("vmxnet3, PVSCSI", NicModel::Vmxnet3, DiskModel::Pvscsi),
        row("virtio-net, virtio-scsi", NicModel::Virtio, DiskModel::VirtioScsi),
        Row { cpus: 12, memory_mib: 6144, ..row("12 CPUs, 6 GiB", NicModel::Virtio, DiskModel::Virtio) },
    ]
}

/// What all rows share.
struct Bench {
    dir: tempfile::TempDir,
    grid: Grid,
    /// What many machines boot with: it names none of them.
    config: PathBuf,
    boot_file: PathBuf,
    signed: PathBuf,
    keys: SecureBoot,
}

impl Bench {
    async fn new(boot_file: PathBuf) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut grid = Grid::start(&dir.path().join("grid"), 1).await?;
        grid.farm().await?;
        let config = dir.path().join("rack.toml");
        grid.boot_config_of("alpha", &config, &[]).await?;
        let (keys, signed) = (dir.path().join("keys"), dir.path().join("signed.efi"));
        grid.croft(["media", "keys", path(&keys)?]).await?;
        grid.croft(["media", "sign", path(&boot_file)?, "--keys", path(&keys)?, "--out", path(&signed)?])
            .await?;
        let list = |name: &str| std::fs::read(keys.join("enrol").join(name)).context("an enrolment");
        let keys = SecureBoot { pk: list("PK.esl")?, kek: list("KEK.esl")?, db: list("db.esl")? };
        Ok(Self { dir, grid, config, boot_file, signed, keys })
    }

    /// A medium of the farm, made as its owner would.
    async fn medium(&self, boot_file: &Path, kind: &str, name: &str) -> Result<PathBuf> {
        let out = self.dir.path().join(name);
        if !out.exists() {
            self.grid.image_of(("alpha", &self.config), boot_file, kind, &out).await?;
        }
        Ok(out)
    }

    /// The medium of a row; what was spoilt in it is no other row's.
    async fn prepare(&self, row: &Row) -> Result<Medium> {
        let stick = match row.from {
            From::Network(boot) => return Ok(Medium::Network(boot)),
            From::SecureNetwork => return Ok(Medium::Network(NetworkBoot::UefiHttp)),
            From::Stick(Spoilt::Expired) => {
                let (config, out) =
                    (self.dir.path().join("expired.toml"), self.dir.path().join("expired.img"));
                self.grid.boot_config_of("alpha", &config, &["--valid", "10s"]).await?;
                self.grid.image_of(("alpha", &config), &self.boot_file, "usb", &out).await?;
                // However fast the machine is, it comes too late.
                tokio::time::sleep(Duration::from_secs(10)).await;
                out
            }
            From::Stick(_) | From::SecureStick(Signed::No) => {
                self.medium(&self.boot_file, "usb", "usb.img").await?
            }
            From::SecureStick(Signed::Yes) => self.medium(&self.signed, "usb", "signed.img").await?,
            From::SecureStick(Signed::Altered) => {
                let mut bytes = std::fs::read(&self.signed)?;
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                let altered = self.dir.path().join("altered.efi");
                std::fs::write(&altered, bytes)?;
                self.medium(&altered, "usb", "altered.img").await?
            }
        };
        let own = self.dir.path().join("stick.img");
        let mut bytes = std::fs::read(stick)?;
        if row.from == From::Stick(Spoilt::Addition) {
            // Behind magic, version and length: some byte of what was signed.
            let start = find(&bytes, b"CROFTADD").context("the stick has an addition")?;
            bytes[start + 40] ^= 1;
        }
        if row.from == From::Stick(Spoilt::Absent) {
            let name = find(&bytes, b"FARM    BIN").context("the stick has a file for the addition")?;
            bytes[name..name + 4].copy_from_slice(b"BARN");
        }
        std::fs::write(&own, bytes)?;
        Ok(Medium::Usb(own))
    }

    /// The switch of a row, with what serves on it.
    async fn rack(&self, number: usize, row: &Row, state: &Path) -> Result<Rack> {
        let mut rack = Rack::new(&number.to_string()).await?;
        if !row.no_dhcp {
            rack.dhcp(state)?;
        }
        if let Some(megabit) = row.slow {
            rack.slow_down(megabit).await?;
        }
        if row.two_servers || row.from.is_network() {
            let folder = match row.from {
                From::SecureNetwork => self.medium(&self.signed, "netboot", "signed-netboot").await?,
                _ => self.medium(&self.boot_file, "netboot", "netboot").await?,
            };
            let more: &[&str] = if row.no_http { &["--no-http"] } else { &[] };
            rack.serve(&grid::binary("croft")?, &folder, more).await?;
        }
        if row.two_servers {
            let (config, folder) = (self.dir.path().join("beta.toml"), self.dir.path().join("beta"));
            self.grid.boot_config_of("beta", &config, &[]).await?;
            self.grid.image_of(("beta", &config), &self.boot_file, "netboot", &folder).await?;
            rack.serve_too(&grid::binary("croft")?, &folder).await?;
        }
        Ok(rack)
    }

    /// The nodes that the ledger knows.
    async fn listed(&self) -> Result<Vec<Value>> {
        let listed = self.grid.json(["--bot", "farmer", "farm", "nodes"]).await?;
        listed["nodes"].as_array().cloned().context("a list of nodes")
    }

    /// Waits until the farmer reads that a machine was refused, and why.
    async fn refused(&self, why: &str) -> Result<String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let listed = self.grid.json(["--bot", "farmer", "farm", "nodes"]).await?;
            let refused = listed["refused"].as_array().context("a list of refused machines")?;
            let reasons = refused.iter().filter_map(|machine| machine["reason"].as_str());
            if let Some(reason) = reasons.into_iter().find(|reason| reason.contains(why)) {
                return Ok(format!("the farmer reads: {reason}"));
            }
            ensure!(Instant::now() < deadline, "nobody was refused for '{why}': {refused:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Waits until a node that was not in `before` has a trouble of this kind on the ledger.
    async fn told(&self, kind: &str, before: &[Value]) -> Result<String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let nodes = self.listed().await?;
            let new = nodes.iter().filter(|node| before.iter().all(|old| old["node"] != node["node"]));
            let mut troubles = new.flat_map(|node| node["troubles"].as_array().into_iter().flatten());
            if let Some(trouble) = troubles.find(|trouble| trouble["kind"] == kind) {
                let remedy = trouble["remedy"].as_str().unwrap_or_default();
                ensure!(!remedy.is_empty(), "{trouble} has no remedy");
                return Ok(format!("on the ledger: {}: {remedy}", trouble["reason"].as_str().unwrap_or("?")));
            }
            ensure!(Instant::now() < deadline, "no {kind} trouble within {LIMIT:?}: {nodes:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn run(&self, number: usize, row: &Row) -> Result<String> {
        let state = self.dir.path().join(format!("row-{number}"));
        std::fs::create_dir_all(&state)?;
        let mut profile = Profile::named("standard")?;
        (profile.cpus, profile.memory_mib) = (row.cpus, row.memory_mib);
        profile.disk.truncate(usize::from(row.disk != Content::NoDisk));
        for disk in &mut profile.disk {
            (disk.size_mib, disk.model) = (disk.size_mib.min(4096), row.disk_model);
        }
        for nic in &mut profile.nic {
            nic.model = row.nic;
        }
        profile.clock_year = row.clock_year;
        (profile.serial, profile.nested) = (!row.no_serial, !row.no_virtualisation);
        if row.second_disk {
            let mut second = profile.disk.first().context("the first disk is described")?.clone();
            (second.name, second.serial) = ("photos".into(), "not-ours".into());
            second.size_mib = 1100;
            if row.dying_disk {
                (second.model, second.bytes_per_second) = (DiskModel::SataHdd, Some(64));
            }
            profile.disk.push(second);
        }
        let foreign = profile.disk.last().filter(|_| row.disk == Content::Foreign || row.second_disk);
        let foreign = foreign.map(|disk| foreign_disk(&state, disk)).transpose()?;
        let before = foreign.as_deref().map(hash).transpose()?;

        let rack = if row.is_on_switch() { Some(self.rack(number, row, &state).await?) } else { None };
        let mut boot = Boot::medium(profile, self.prepare(row).await?, &state).lifetime(2 * LIMIT);
        if matches!(row.from, From::SecureStick(_) | From::SecureNetwork) {
            boot = boot.secure_boot(self.keys.clone());
        }
        if row.from == From::SecureNetwork {
            boot = boot.tpm(state.join("tpm"));
        }
        if let Some(rack) = &rack {
            boot = boot.namespace(rack.namespace());
        }
        let registered = self.listed().await?;
        let mut machine = boot.start().await?;
        let mut last = String::new();
        if row.no_serial {
            let deadline = Instant::now() + LIMIT;
            while self.listed().await?.len() == registered.len() {
                ensure!(Instant::now() < deadline, "no node came up on the ledger within {LIMIT:?}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            last = "one more node on the ledger".into();
        }
        for text in row.says {
            last = machine.serial().wait_for(*text, LIMIT).await?.text;
        }
        for kind in row.tells {
            last = self.told(kind, &registered).await?;
        }
        if row.from == From::Stick(Spoilt::Expired) {
            last = self.refused("expired").await?;
        }
        for text in row.served {
            rack.as_ref().context("the row has a server")?.said(text, Duration::from_secs(1)).await?;
        }
        if let Some(folder) = std::env::var_os("CROFT_SCREENSHOTS") {
            // The line was heard before it was painted.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let name: String =
                row.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            machine.screenshot(&PathBuf::from(folder).join(format!("boot-{name}.png"))).await?;
        }
        machine.kill().await?;
        if let Some(disk) = &foreign {
            ensure!(before == Some(hash(disk)?), "the foreign disk was written to");
        }
        Ok(last.trim().chars().take(100).collect())
    }
}

impl Row {
    fn is_on_switch(&self) -> bool {
        self.no_dhcp || self.two_servers || self.from.is_network()
    }
}

impl From {
    fn is_network(self) -> bool {
        matches!(self, Self::Network(_) | Self::SecureNetwork)
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// A disk with a file system that is not Croft's, made where the harness looks for it.
fn foreign_disk(state: &Path, disk: &Disk) -> Result<PathBuf> {
    let file = state.join(format!("{}.raw", disk.name));
    std::fs::File::create(&file)?.set_len(disk.size_mib << 20)?;
    let made = std::process::Command::new("mkfs.ext4").args(["-q", "-F", "-L", "photos"]).arg(&file).status();
    ensure!(made.context("mkfs.ext4")?.success(), "mkfs.ext4 failed");
    Ok(file)
}

fn hash(file: &Path) -> Result<String> {
    let output = std::process::Command::new("sha256sum").arg(file).output().context("sha256sum")?;
    ensure!(output.status.success(), "sha256sum failed");
    Ok(String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_boots_by_every_path_and_by_none_that_is_not_signed() {
    let Some([boot_file]) = matrix::boot_files(["CROFT_BOOT_FILE"]) else { return };
    let is_full = matrix::wants_all();
    let only = std::env::var("CROFT_BOOT_ROW").unwrap_or_default();
    let bench = Bench::new(boot_file).await.unwrap();
    let (mut table, mut failures) = (Table::default(), Vec::new());
    for (number, row) in rows().iter().chain(&hardware_rows()).enumerate() {
        if row.full_only && !is_full || !row.name.contains(&only) {
            continue;
        }
        if row.is_on_switch() && !rack::is_possible() {
            eprintln!("skipped {}: it needs root and /dev/net/tun", row.name);
            continue;
        }
        eprintln!("== {}", row.name);
        let started = Instant::now();
        match bench.run(number, row).await {
            Ok(said) => table.add(row.name, started.elapsed(), said),
            Err(error) => {
                eprintln!("FAILED {}: {error:#}", row.name);
                table.add(row.name, started.elapsed(), "FAILED");
                failures.push(format!("{}: {error:?}", row.name));
            }
        }
    }
    eprintln!("{}", table.show());
    bench.grid.stop().await.unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// A machine with nothing to keep anything on.
fn diskless() -> Result<Profile> {
    let mut profile = Profile::named("standard")?;
    profile.memory_mib = 1536;
    profile.disk.clear();
    Ok(profile)
}

/// Whether a frame asks in VLAN 7 who has the gateway of [`BOND`]; `Err` where the machine speaks outside of it.
fn asks_for_the_gateway(frame: &[u8]) -> Result<bool> {
    const ARP: &[u8] = &[0x08, 0x06];
    ensure!(frame.get(12..14) != Some(ARP), "a request without a tag: {frame:02x?}");
    let tag = frame.get(14..16).map(|tag| u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff);
    let is_arp = frame.get(12..14) == Some(&[0x81, 0x00]) && frame.get(16..18) == Some(ARP);
    let (sender, wanted) = (frame.get(32..36), frame.get(42..46));
    Ok(is_arp && tag == Some(7) && sender == Some(&[10, 78, 7, 10]) && wanted == Some(&[10, 78, 7, 1]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bond_goes_over_to_its_other_card_and_speaks_in_its_vlan() -> Result<()> {
    let Some([boot_file]) = matrix::boot_files(["CROFT_BOOT_FILE"]) else { return Ok(()) };
    if !matrix::wants_all() {
        return Ok(());
    }
    let bench = Bench::new(boot_file).await?;
    let (config, stick) = (bench.dir.path().join("bond.toml"), bench.dir.path().join("bond.img"));
    std::fs::write(&config, std::fs::read_to_string(&bench.config)? + BOND)?;
    bench.grid.image_of(("alpha", &config), &bench.boot_file, "usb", &stick).await?;

    // The second card's wire ends here.
    let (ours, free) = (UdpSocket::bind("127.0.0.1:0").await?, UdpSocket::bind("127.0.0.1:0").await?);
    let (there, here) = (ours.local_addr()?.port(), free.local_addr()?.port());
    drop(free);
    let wire = Wire { mac: "52:54:00:c0:f7:99".into(), there, here };
    let boot = Boot::medium(diskless()?, Medium::Usb(stick), bench.dir.path().join("bond"));
    let mut machine = boot.wire(wire).lifetime(2 * LIMIT).start().await?;
    machine.serial().wait_for(VALID, LIMIT).await?;
    machine.serial().wait_for("bond0.7 10.78.7.10/24", LIMIT).await?;
    machine.set_link("lan", false).await?;
    let heard = tokio::time::timeout(LIMIT, async {
        let mut frame = [0; 2048];
        loop {
            // QEMU is silent until it is there.
            let Ok(length) = ours.recv(&mut frame).await else { continue };
            if asks_for_the_gateway(&frame[..length])? {
                return Ok::<_, anyhow::Error>(());
            }
        }
    });
    heard.await.context("nothing came in the VLAN over the second card")??;
    machine.kill().await?;
    bench.grid.stop().await
}

/// An initramfs whose PID 1 gives the firmware the files that `croft media keys` left in `folder`.
fn enrolling(folder: &Path, dir: &Path) -> Result<PathBuf> {
    let (program, packed) = (dir.join("enrol"), dir.join("enrol.zst"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boot/enrol.c");
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-static", "-Os", "-Wall", "-Werror", "-o"]).arg(&program).arg(source);
    ensure!(compiler.status().context("cc: run scripts/setup")?.success(), "cc failed");
    let mut archive = Archive::new();
    archive.insert("/init", Entry::file(std::fs::read(program)?, 0o755))?;
    let console = Entry { kind: Kind::CharacterDevice { major: 5, minor: 1 }, mode: 0o600 };
    archive.insert("/dev/console", console)?;
    for name in ["db.auth", "KEK.auth", "PK.auth"] {
        archive.insert(&format!("/enrol/{name}"), Entry::file(std::fs::read(folder.join(name))?, 0o444))?;
    }
    std::fs::write(&packed, croft_image_builder::compress(&archive, 3).bytes)?;
    Ok(packed)
}

#[tokio::test(flavor = "multi_thread")]
async fn firmware_in_setup_mode_takes_our_keys_and_then_starts_only_what_they_signed() -> Result<()> {
    let (Some([boot_file]), Some([kernel])) =
        (matrix::boot_files(["CROFT_BOOT_FILE"]), matrix::boot_files(["CROFT_TEST_KERNEL"]))
    else {
        return Ok(());
    };
    if !matrix::wants_all() {
        return Ok(());
    }
    let bench = Bench::new(boot_file).await?;
    let state = bench.dir.path().join("setup-mode");
    std::fs::create_dir_all(&state)?;
    let signed = bench.medium(&bench.signed, "usb", "signed.img").await?;
    let unsigned = bench.medium(&bench.boot_file, "usb", "usb.img").await?;

    let initramfs = enrolling(&bench.dir.path().join("keys/enrol"), bench.dir.path())?;
    let boot = Boot::new(diskless()?, kernel, initramfs, &state).setup_mode().lifetime(LIMIT);
    let mut machine = boot.start().await?;
    let serial = machine.serial();
    for variable in ["db", "KEK", "PK"] {
        serial.wait_for(format!("enrol: {variable}: taken"), LIMIT).await?;
    }
    machine.wait_exit(LIMIT).await?;

    for (stick, says) in [
        (signed, &["UEFI Secure Boot is enabled", "Kernel is locked down from EFI Secure Boot", VALID][..]),
        (unsigned, &["Access Denied"]),
    ] {
        let boot = Boot::medium(diskless()?, Medium::Usb(stick), &state).setup_mode().lifetime(LIMIT);
        let mut machine = boot.start().await?;
        for text in says {
            machine.serial().wait_for(*text, LIMIT).await?;
        }
        machine.kill().await?;
    }
    bench.grid.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_initramfs_that_a_uefi_loader_hands_over_does_not_replace_the_signed_one() -> Result<()> {
    let Some([boot_file]) = matrix::boot_files(["CROFT_BOOT_FILE"]) else { return Ok(()) };
    if !matrix::wants_all() {
        return Ok(());
    }
    let bench = Bench::new(boot_file).await?;
    let state = bench.dir.path().join("handed-over");
    std::fs::create_dir_all(&state)?;
    let foreign = enrolling(&bench.dir.path().join("keys/enrol"), bench.dir.path())?;
    let boot = Boot::new(diskless()?, &bench.boot_file, foreign, &state).setup_mode().lifetime(LIMIT);
    let mut machine = boot.start().await?;
    machine.serial().wait_for("croft: stage 4/11", LIMIT).await?;
    let foreign = machine.serial().find("enrol:");
    ensure!(foreign.is_none(), "the foreign one ran: {foreign:?}");
    machine.kill().await?;
    bench.grid.stop().await
}

#[tokio::test]
async fn a_netboot_server_without_a_rack_says_what_is_missing() -> Result<()> {
    let croft = grid::binary("croft")?;
    let dir = tempfile::tempdir()?;
    let serve = |folder: &Path, more: &[&str]| -> Result<String> {
        let mut command = std::process::Command::new(&croft);
        command
            .arg("--home")
            .arg(dir.path().join("home"))
            .args(["media", "serve", "--folder"])
            .arg(folder)
            .args(more);
        let output = command.output()?;
        if output.status.success() {
            bail!("it serves");
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let missing = serve(&dir.path().join("no"), &[])?;
    assert!(missing.contains("is no netboot folder: make one with 'croft farm image"), "{missing}");
    let empty = serve(dir.path(), &[])?;
    assert!(empty.contains("has no croft.efi"), "{empty}");
    Ok(())
}
