//! QEMU's command line for a machine, and the host ports of its network.
//!
//! Must never use the person's QEMU configuration or defaults: a machine is what its profile says.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::accelerator::Accelerator;
use crate::profile::{Disk, DiskFormat, DiskModel, MachineType, Nic, NicModel, Profile};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the guest that the host shall reach on its loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    pub protocol: Protocol,
    pub guest_port: u16,
    /// `None`: a free one, which the kernel picks.
    pub host_port: Option<u16>,
    /// Index of the NIC in the profile.
    pub nic: usize,
    /// `None`: the first address of the user network's DHCP.
    pub guest_address: Option<Ipv4Addr>,
}

impl Forward {
    #[must_use]
    pub fn tcp(guest_port: u16) -> Self {
        Self { protocol: Protocol::Tcp, guest_port, host_port: None, nic: 0, guest_address: None }
    }

    #[must_use]
    pub fn udp(guest_port: u16) -> Self {
        Self { protocol: Protocol::Udp, ..Self::tcp(guest_port) }
    }

    /// At this port of the host instead of a free one.
    #[must_use]
    pub fn at_host_port(self, port: u16) -> Self {
        Self { host_port: Some(port), ..self }
    }

    /// QEMU's `hostfwd` rule; port 0 makes the kernel pick, without a race.
    pub(crate) fn rule(&self) -> String {
        let guest = self.guest_address.map(|address| address.to_string()).unwrap_or_default();
        let host_port = self.host_port.unwrap_or(0);
        format!("{}:127.0.0.1:{host_port}-{guest}:{}", self.protocol.name(), self.guest_port)
    }

    /// The host's address of this forward, out of what the monitor's `info usernet` prints.
    pub(crate) fn find(&self, usernet: &str) -> Option<SocketAddr> {
        let kind = format!("{}[HOST_FORWARD]", self.protocol.name().to_uppercase());
        let section = format!("({})", netdev(self.nic));
        let mut here = false;
        for line in usernet.lines() {
            if line.starts_with("Hub ") || line.trim_end().ends_with("):") {
                here = line.contains(&section);
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [what, _, host, host_port, guest, guest_port, ..] = words[..]
                && here
                && what == kind
                && guest_port.parse() == Ok(self.guest_port)
                && self.guest_address.is_none_or(|address| guest.parse() == Ok(address))
            {
                return Some(SocketAddr::new(host.parse().ok()?, host_port.parse().ok()?));
            }
        }
        None
    }
}

/// QEMU's name of the user network behind a NIC.
pub(crate) fn netdev(index: usize) -> String {
    format!("net{index}")
}

/// QEMU's name of a NIC, for `set_link`.
pub(crate) fn nic_id(nic: &Nic) -> String {
    format!("nic-{}", nic.name)
}

/// What a machine's firmware boots from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// A stick with these bytes. The machine may write to it.
    Usb(PathBuf),
    /// A disc in a SATA drive.
    Disc(PathBuf),
    /// The first NIC.
    Network(NetworkBoot),
}

/// Who loads from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkBoot {
    /// SeaBIOS with iPXE in the NIC's ROM.
    BiosIpxe,
    /// OVMF's own PXE, by TFTP.
    UefiPxe,
    /// OVMF's own HTTP boot.
    UefiHttp,
}

impl Medium {
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Usb(path) | Self::Disc(path) => Some(path),
            Self::Network(_) => None,
        }
    }

    pub(crate) fn is_bios(&self) -> bool {
        *self == Self::Network(NetworkBoot::BiosIpxe)
    }
}

/// What QEMU starts.
#[derive(Debug)]
pub(crate) enum Start<'a> {
    /// Handed over by QEMU: to itself, or to UEFI firmware.
    Kernel { kernel: &'a Path, initramfs: &'a Path, arguments: Vec<String>, firmware: Option<Firmware<'a>> },
    /// Firmware, and what it finds.
    Medium { firmware: Firmware<'a>, medium: &'a Medium },
}

impl<'a> Start<'a> {
    fn firmware(&self) -> Option<Firmware<'a>> {
        match self {
            Self::Kernel { firmware, .. } => *firmware,
            Self::Medium { firmware, .. } => Some(*firmware),
        }
    }
}

/// The machine's own software.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Firmware<'a> {
    /// QEMU's own SeaBIOS.
    Bios,
    /// OVMF with a store of its own for variables; with `secure` only it may write there.
    Uefi { code: &'a Path, variables: &'a Path, secure: bool },
}

/// Everything that stands on the command line.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    pub(crate) profile: &'a Profile,
    pub(crate) accelerator: Accelerator,
    pub(crate) start: Start<'a>,
    /// One per disk of the profile.
    pub(crate) disks: &'a [PathBuf],
    pub(crate) forwards: &'a [Forward],
    pub(crate) exit_on_reboot: bool,
    /// NICs are the taps `tap0`, `tap1` of the namespace that QEMU runs in, not user networks.
    pub(crate) taps: bool,
    pub(crate) wire: Option<&'a Wire>,
}

/// One more NIC, whose frames come and go as datagrams on loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    pub mac: String,
    /// Where frames go.
    pub there: u16,
    /// Where QEMU waits for frames.
    pub here: u16,
}

/// How the machine is wired to whoever starts it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wiring<'a> {
    /// Serial on standard input and output, QMP to this socket, waiting for `cont`.
    Handles { qmp: &'a Path },
    /// Serial and monitor on the terminal (Ctrl-A H for help).
    Terminal,
}

/// A comma in a value is doubled in QEMU's option syntax.
fn value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

impl Layout<'_> {
    pub(crate) fn arguments(&self, wiring: Wiring<'_>) -> Vec<String> {
        let profile = self.profile;
        let mut out: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| out.extend(words.iter().map(|word| (*word).to_owned()));
        let machine = match profile.machine {
            MachineType::Q35 => "q35",
            MachineType::Pc => "pc",
        };
        add(&["-nodefaults", "-no-user-config", "-name", &format!("croft-{}", profile.name)]);
        match self.start.firmware() {
            Some(Firmware::Uefi { secure: true, .. }) => {
                add(&["-machine", &format!("{machine},smm=on")]);
                add(&["-global", "driver=cfi.pflash01,property=secure,value=on"]);
            }
            _ => add(&["-machine", machine]),
        }
        let processor = self.accelerator.arguments(profile.nested);
        add(&processor.iter().map(String::as_str).collect::<Vec<_>>());
        add(&["-smp", &profile.cpus.to_string(), "-m", &format!("{}M", profile.memory_mib)]);
        let base =
            profile.clock_year.map_or_else(|| "utc".to_owned(), |year| format!("{year}-01-01T00:00:00"));
        add(&["-rtc", &format!("base={base},clock=host"), "-display", "none", "-device", "VGA"]);
        add(&["-object", "rng-builtin,id=rng0", "-device", "virtio-rng-pci,rng=rng0"]);
        if profile.watchdog {
            add(&["-device", "i6300esb", "-action", "watchdog=reset"]);
        }
        if let Some(smbios) = &profile.smbios {
            let quoted = |text: &str| text.replace(',', ",,");
            let (manufacturer, product) = (quoted(&smbios.manufacturer), quoted(&smbios.product));
            let serial = quoted(&smbios.serial);
            add(&[
                "-smbios",
                &format!("type=1,manufacturer={manufacturer},product={product},serial={serial}"),
            ]);
        }
        self.add_disks(&mut add);
        self.add_nics(&mut add);
        self.add_start(&mut add);
        if self.exit_on_reboot {
            add(&["-no-reboot"]);
        }
        match wiring {
            Wiring::Handles { qmp } => {
                add(&["-S", "-chardev", "stdio,id=serial0,signal=off"]);
                if profile.serial {
                    add(&["-serial", "chardev:serial0"]);
                }
                add(&["-chardev", &format!("socket,id=qmp0,path={}", value(qmp))]);
                add(&["-mon", "chardev=qmp0,mode=control"]);
            }
            Wiring::Terminal => add(&["-serial", "mon:stdio"]),
        }
        out
    }

    fn add_start(&self, add: &mut impl FnMut(&[&str])) {
        if let Some(Firmware::Uefi { code, variables, .. }) = self.start.firmware() {
            let code = format!("if=pflash,unit=0,format=raw,readonly=on,file={}", value(code));
            add(&["-drive", &code]);
            add(&["-drive", &format!("if=pflash,unit=1,format=raw,file={}", value(variables))]);
        }
        match &self.start {
            Start::Kernel { kernel, initramfs, arguments, .. } => {
                add(&["-kernel", &kernel.to_string_lossy(), "-initrd", &initramfs.to_string_lossy()]);
                add(&["-append", &arguments.join(" ")]);
            }
            Start::Medium { medium, .. } => {
                let file = medium.path().map(value).unwrap_or_default();
                match medium {
                    Medium::Usb(_) => {
                        if !self.has_usb_disk() {
                            add(&["-device", "qemu-xhci,id=xhci0"]);
                        }
                        add(&["-drive", &format!("if=none,id=medium,format=raw,cache=unsafe,file={file}")]);
                        add(&["-device", "usb-storage,bus=xhci0.0,drive=medium,removable=on,bootindex=0"]);
                    }
                    Medium::Disc(_) => {
                        let drive = "if=none,id=medium,format=raw,media=cdrom,readonly=on";
                        add(&["-drive", &format!("{drive},file={file}")]);
                        add(&["-device", "ich9-ahci,id=discs0"]);
                        add(&["-device", "ide-cd,bus=discs0.0,drive=medium,bootindex=0"]);
                    }
                    // Both are there for a NIC, and PXE comes first (OvmfPkg/README, "Network Support").
                    Medium::Network(NetworkBoot::UefiHttp) => {
                        for version in ["IPv4", "IPv6"] {
                            let name = format!("opt/org.tianocore/{version}PXESupport");
                            add(&["-fw_cfg", &format!("name={name},string=no")]);
                        }
                    }
                    Medium::Network(_) => {}
                }
            }
        }
    }

    fn has_usb_disk(&self) -> bool {
        self.profile.disk.iter().any(|disk| disk.model == DiskModel::Usb)
    }

    fn add_disks(&self, add: &mut impl FnMut(&[&str])) {
        if self.has_usb_disk() {
            add(&["-device", "qemu-xhci,id=xhci0"]);
        }
        let sata = |disk: &Disk| matches!(disk.model, DiskModel::SataSsd | DiskModel::SataHdd);
        if self.profile.disk.iter().any(sata) {
            // Beside the chipset's own controller, which has only six ports on q35 and none on pc.
            add(&["-device", "ich9-ahci,id=ahci0"]);
        }
        for (model, controller) in [
            (DiskModel::Megaraid, "megasas-gen2,id=raid0"),
            (DiskModel::VirtioScsi, "virtio-scsi-pci,id=scsi0"),
            (DiskModel::Pvscsi, "pvscsi,id=pvscsi0"),
        ] {
            if self.profile.disk.iter().any(|disk| disk.model == model) {
                add(&["-device", controller]);
            }
        }
        let (mut port, mut target) = (0, 0);
        let mut on_scsi = |bus: &str, id: &str, serial: &str| {
            target += 1;
            format!("scsi-hd,bus={bus}.0,scsi-id={},drive={id},serial={serial}", target - 1)
        };
        for (disk, path) in self.profile.disk.iter().zip(self.disks) {
            let id = format!("disk-{}", disk.name);
            // Killing QEMU is our power cut. What a guest wrote to a raw file is then in the host's cache,
            // flushed or not, so flushing to the host's disk buys nothing; qcow2 metadata is QEMU's own.
            let (format, cache) = match disk.format {
                DiskFormat::Raw => ("raw", "unsafe"),
                DiskFormat::Qcow2 => ("qcow2", "writeback"),
            };
            let file = value(path);
            let slow = disk.bytes_per_second.map(|bytes| format!(",throttling.bps-total={bytes}"));
            let slow = slow.unwrap_or_default();
            add(&[
                "-drive",
                &format!("if=none,id={id},file={file},format={format},cache={cache},discard=unmap{slow}"),
            ]);
            let serial = &disk.serial;
            let device = match disk.model {
                DiskModel::Virtio => format!("virtio-blk-pci,drive={id},serial={serial}"),
                DiskModel::Nvme => format!("nvme,drive={id},serial={serial}"),
                DiskModel::Usb => format!("usb-storage,bus=xhci0.0,drive={id},serial={serial}"),
                DiskModel::Megaraid => on_scsi("raid0", &id, serial),
                DiskModel::VirtioScsi => on_scsi("scsi0", &id, serial),
                DiskModel::Pvscsi => on_scsi("pvscsi0", &id, serial),
                DiskModel::SataSsd | DiskModel::SataHdd => {
                    // Rotation rate 1 means "non-rotating" (ATA8-ACS, word 217).
                    let rate = if disk.model == DiskModel::SataSsd { 1 } else { 7200 };
                    port += 1;
                    let bus = port - 1;
                    format!("ide-hd,bus=ahci0.{bus},drive={id},serial={serial},rotation_rate={rate}")
                }
            };
            add(&["-device", &device]);
        }
    }

    fn add_nics(&self, add: &mut impl FnMut(&[&str])) {
        for (index, nic) in self.profile.nic.iter().enumerate() {
            let netdev = netdev(index);
            let mut user = format!("user,id={netdev},net=10.0.{}.0/24", index + 2);
            if self.taps {
                user = format!("tap,id={netdev},ifname=tap{index},script=no,downscript=no");
            }
            for forward in self.forwards.iter().filter(|forward| forward.nic == index) {
                user.push_str(",hostfwd=");
                user.push_str(&forward.rule());
            }
            add(&["-netdev", &user]);
            let model = match nic.model {
                NicModel::Virtio => "virtio-net-pci",
                NicModel::E1000e => "e1000e",
                NicModel::Igb => "igb",
                NicModel::Rtl8139 => "rtl8139",
                NicModel::Vmxnet3 => "vmxnet3",
            };
            let mac = nic.mac.as_ref().map(|mac| format!(",mac={mac}")).unwrap_or_default();
            let boots = match &self.start {
                Start::Medium { medium: medium @ Medium::Network(_), .. } if index == 0 => {
                    Some(medium.is_bios())
                }
                _ => None,
            };
            let boot = match boots {
                Some(true) => ",bootindex=0",
                Some(false) => ",bootindex=0,romfile=",
                // Without its boot ROM: the kernel is given, or another medium, and the ROM costs a second.
                None => ",romfile=",
            };
            add(&["-device", &format!("{model},id={},netdev={netdev}{mac}{boot}", nic_id(nic))]);
        }
        if let Some(Wire { mac, there, here }) = self.wire {
            let wire = format!("socket,id=wire0,udp=127.0.0.1:{there},localaddr=127.0.0.1:{here}");
            add(&["-netdev", &wire]);
            add(&["-device", &format!("virtio-net-pci,id=nic-wire,netdev=wire0,mac={mac},romfile=")]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(profile: &Profile, accelerator: Accelerator, forwards: &[Forward]) -> String {
        let disks: Vec<PathBuf> =
            profile.disk.iter().map(|disk| PathBuf::from(format!("/state/a,b/{}.raw", disk.name))).collect();
        let layout = Layout {
            profile,
            accelerator,
            start: Start::Kernel {
                kernel: Path::new("/k"),
                initramfs: Path::new("/i"),
                arguments: profile.kernel_arguments(),
                firmware: None,
            },
            disks: &disks,
            forwards,
            exit_on_reboot: false,
            taps: false,
            wire: Some(&Wire { mac: "52:54:00:c0:f7:99".into(), there: 4001, here: 4002 }),
        };
        layout.arguments(Wiring::Handles { qmp: Path::new("/s/qmp") }).join(" ")
    }

    const TCG: Accelerator = Accelerator::Tcg { tsc_khz: None };

    #[test]
    fn a_standard_node_is_what_its_profile_says() {
        let profile = Profile::named("standard").unwrap();
        let line = arguments(&profile, TCG, &[Forward::tcp(80), Forward::udp(53).at_host_port(5353)]);
        for expected in [
            "-nodefaults -no-user-config -name croft-standard -machine q35",
            "-accel tcg,thread=multi -cpu EPYC,+svm",
            "-smp 2 -m 3072M",
            "-device i6300esb -action watchdog=reset",
            "file=/state/a,,b/data.raw,format=raw,cache=unsafe",
            "-device virtio-blk-pci,drive=disk-data,serial=croft-data-0",
            "net=10.0.2.0/24,hostfwd=tcp:127.0.0.1:0-:80,hostfwd=udp:127.0.0.1:5353-:53",
            "virtio-net-pci,id=nic-lan,netdev=net0,mac=52:54:00:c0:f7:01,romfile=",
            "-netdev socket,id=wire0,udp=127.0.0.1:4001,localaddr=127.0.0.1:4002 ",
            "virtio-net-pci,id=nic-wire,netdev=wire0,mac=52:54:00:c0:f7:99,romfile=",
            "-append console=tty0 console=ttyS0,115200 loglevel=6 printk.devkmsg=on printk.time=1 panic=30 \
             watchdog.stop_on_reboot=0",
            "-S -chardev stdio,id=serial0,signal=off",
        ] {
            assert!(line.contains(expected), "{expected:?} is not in {line}");
        }
        assert!(!line.contains("no-reboot"), "{line}");
    }

    #[test]
    fn firmware_boots_a_medium_and_gets_no_kernel() {
        let profile = Profile::named("standard").unwrap();
        let of = |firmware: Firmware<'_>, medium: &Medium| {
            let layout = Layout {
                profile: &profile,
                accelerator: TCG,
                start: Start::Medium { firmware, medium },
                disks: &[PathBuf::from("/d")],
                forwards: &[],
                exit_on_reboot: true,
                taps: matches!(medium, Medium::Network(_)),
                wire: None,
            };
            layout.arguments(Wiring::Terminal).join(" ")
        };
        let uefi = |secure| Firmware::Uefi { code: Path::new("/f"), variables: Path::new("/s/v"), secure };
        let line = |medium: &Medium| of(uefi(false), medium);
        let usb = line(&Medium::Usb("/m,1".into()));
        assert!(usb.contains("if=pflash,unit=0,format=raw,readonly=on,file=/f "), "{usb}");
        assert!(usb.contains("id=medium,format=raw,cache=unsafe,file=/m,,1 "), "{usb}");
        assert!(usb.contains("usb-storage,bus=xhci0.0,drive=medium,removable=on,bootindex=0"), "{usb}");
        assert!(!usb.contains("-kernel") && !usb.contains("-append"), "{usb}");
        let disc = line(&Medium::Disc("/m".into()));
        assert!(disc.contains("ide-cd,bus=discs0.0,drive=medium,bootindex=0"), "{disc}");
        let secure = of(uefi(true), &Medium::Usb("/m".into()));
        assert!(secure.contains("-machine q35,smm=on -global driver=cfi.pflash01,property=secure,value=on"));
        let ipxe = of(Firmware::Bios, &Medium::Network(NetworkBoot::BiosIpxe));
        assert!(ipxe.contains("tap,id=net0,ifname=tap0,script=no,downscript=no "), "{ipxe}");
        assert!(
            ipxe.contains(",bootindex=0") && !ipxe.contains("romfile=") && !ipxe.contains("pflash"),
            "{ipxe}"
        );
        let http = line(&Medium::Network(NetworkBoot::UefiHttp));
        assert!(http.contains("name=opt/org.tianocore/IPv4PXESupport,string=no"), "{http}");
        assert!(http.contains(",bootindex=0,romfile="), "{http}");
    }

    #[test]
    fn kvm_takes_the_hosts_processor() {
        let line = arguments(&Profile::named("bare").unwrap(), Accelerator::Kvm, &[]);
        assert!(line.contains("-accel kvm -cpu host"), "{line}");
        assert!(!line.contains("i6300esb"), "{line}");
    }

    #[test]
    fn servers_have_raid_controllers_and_virtual_ones_their_own_cards() {
        let mut profile = Profile::named("workstation").unwrap();
        for disk in &mut profile.disk {
            disk.model = DiskModel::Megaraid;
        }
        profile.nic[0].model = NicModel::Vmxnet3;
        let line = arguments(&profile, TCG, &[]);
        for expected in [
            "-device megasas-gen2,id=raid0 ",
            "scsi-hd,bus=raid0.0,scsi-id=0,drive=disk-ssd,serial=croft-ssd-0 ",
            "scsi-hd,bus=raid0.0,scsi-id=1,drive=disk-hdd,serial=croft-hdd-0 ",
            "-device vmxnet3,id=nic-",
        ] {
            assert!(line.contains(expected), "{expected:?} is not in {line}");
        }
    }

    #[test]
    fn a_dying_disk_a_dead_battery_and_clouds_have_their_options() {
        let mut profile = Profile::named("workstation").unwrap();
        profile.clock_year = Some(2001);
        profile.disk[0].bytes_per_second = Some(64);
        profile.disk[0].model = DiskModel::VirtioScsi;
        profile.disk[1].model = DiskModel::Pvscsi;
        let line = arguments(&profile, TCG, &[]);
        for expected in [
            "-rtc base=2001-01-01T00:00:00,clock=host ",
            "discard=unmap,throttling.bps-total=64 ",
            "-device virtio-scsi-pci,id=scsi0 ",
            "-device pvscsi,id=pvscsi0 ",
            "scsi-hd,bus=scsi0.0,scsi-id=0,drive=disk-ssd",
            "scsi-hd,bus=pvscsi0.0,scsi-id=1,drive=disk-hdd",
        ] {
            assert!(line.contains(expected), "{expected:?} is not in {line}");
        }
        profile.clock_year = Some(1492);
        let error = profile.check().unwrap_err().to_string();
        assert_eq!(error, "the profile workstation has clock_year = 1492: it must be from 1970 to 2099");
    }

    #[test]
    fn old_machines_have_sata_disks_that_rotate_or_not() {
        let line = arguments(&Profile::named("workstation").unwrap(), TCG, &[]);
        assert!(
            line.contains("ide-hd,bus=ahci0.0,drive=disk-ssd,serial=croft-ssd-0,rotation_rate=1 "),
            "{line}"
        );
        assert!(
            line.contains("ide-hd,bus=ahci0.1,drive=disk-hdd,serial=croft-hdd-0,rotation_rate=7200"),
            "{line}"
        );
    }

    /// As QEMU 10.0 prints it.
    const USERNET: &str = "Hub -1 (net0):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[ESTABLISHED]    9       10.0.2.15 40163       10.0.2.2    80     0     0
  TCP[HOST_FORWARD]   8       127.0.0.1 40163       10.0.2.15    80     0     0
  UDP[HOST_FORWARD]   3       127.0.0.1 54322       10.0.2.15    80     0     0
Hub -1 (net1):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]   8       127.0.0.1 40199       10.0.3.15    80     0     0
";

    #[test]
    fn host_ports_are_read_from_the_monitor() {
        let port = |forward: Forward| forward.find(USERNET).map(|address| address.to_string());
        assert_eq!(port(Forward::tcp(80)).unwrap(), "127.0.0.1:40163");
        assert_eq!(port(Forward::udp(80)).unwrap(), "127.0.0.1:54322");
        assert_eq!(port(Forward { nic: 1, ..Forward::tcp(80) }).unwrap(), "127.0.0.1:40199");
        assert_eq!(port(Forward::tcp(443)), None);
        let elsewhere = Forward { guest_address: Some(Ipv4Addr::new(10, 0, 2, 99)), ..Forward::tcp(80) };
        assert_eq!(port(elsewhere), None);
    }
}
