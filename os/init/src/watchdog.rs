//! The watchdog: resets the machine unless it is fed. Only the supervisor decides when.
//!
//! Hardware goes before the kernel's own timer, which sees a hung PID 1 but not a hung kernel. A chipset's driver may
//! come up after init (behind its SMBus, for one), so the first feeds look again and move over.
//!
//! ```text
//!   arm -> hardware <---------------------------+
//!      \-> software, or none: LOOKS feeds look -+-> stays, and says so
//! ```
//!
//! It must never be disarmed while the machine runs, but for a better one that already counts: a closed device keeps
//! counting, which is what a dying PID 1 should leave behind. An ordered restart or power-off disarms it, or slow
//! firmware would be reset once more, and some boards would switch on again. Over a kexec it goes on counting, which
//! needs `watchdog.stop_on_reboot=0` on the kernel's command line: most drivers stop it otherwise.

use crate::log::{Level, Log};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Above the longest pause between two feeds of a healthy node, below the patience of its tenants.
const TIMEOUT: Duration = Duration::from_secs(60);

/// From the last feed to the driver of the next kernel: too short, and a slow machine is reset in the midst of an upgrade.
const KEXEC_TIMEOUT: Duration = Duration::from_secs(180);

/// Feeds that look for hardware, ten seconds apart: drivers are there within seconds, slow chipsets within a minute.
const LOOKS: u32 = 12;

/// What softdog calls itself (`drivers/watchdog/softdog.c`).
const SOFTWARE: &str = "Software Watchdog";

mod ioctl {
    #![allow(unsafe_code, reason = "linux/watchdog.h has no safe wrapper in rustix or nix")]

    /// `struct watchdog_info`.
    #[repr(C)]
    #[derive(Default)]
    pub struct Info {
        pub options: u32,
        pub firmware_version: u32,
        pub identity: [u8; 32],
    }

    /// `WDIOS_DISABLECARD`.
    pub const DISABLE: libc::c_int = 1;

    // SAFETY of the callers: the first takes a pointer to one `Info`, the others to one C int, that live through the call.
    nix::ioctl_read!(get_support, b'W', 0, Info);
    nix::ioctl_read!(set_options, b'W', 4, libc::c_int);
    nix::ioctl_readwrite!(set_timeout, b'W', 6, libc::c_int);
}

/// A watchdog that the kernel has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    /// `watchdog0`, in sysfs and in `/dev`.
    name: String,
    /// Absent where the kernel is built without `WATCHDOG_SYSFS`: then the opened device tells.
    identity: Option<String>,
}

/// All that are registered, in the order in which they should be tried: hardware, what does not say, software; the first
/// registered first.
fn candidates(sys: &Path) -> Vec<Candidate> {
    let folder = sys.join("class/watchdog");
    let mut found: Vec<(u8, u32, Candidate)> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix("watchdog")?.parse().ok()?;
            let identity = fs::read_to_string(entry.path().join("identity")).ok();
            let identity = identity.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
            let rank = match identity.as_deref() {
                Some(SOFTWARE) => 2,
                Some(_) => 0,
                None => 1,
            };
            Some((rank, number, Candidate { name, identity }))
        })
        .collect();
    found.sort_by_key(|(rank, number, _)| (*rank, *number));
    found.into_iter().map(|(_, _, candidate)| candidate).collect()
}

/// An armed watchdog.
#[derive(Debug)]
struct Watchdog {
    device: File,
    name: String,
    /// What it calls itself, or its name.
    identity: String,
    /// What the hardware made of [`TIMEOUT`].
    timeout: Duration,
}

impl Watchdog {
    /// Opens and thereby arms it. Hardware with a shorter limit keeps its own.
    fn arm(dev: &Path, candidate: Candidate) -> io::Result<Self> {
        let Candidate { name, identity } = candidate;
        let device = OpenOptions::new().write(true).open(dev.join(&name))?;
        let identity = identity.or_else(|| identity_of(&device)).unwrap_or_else(|| name.clone());
        // Without the call the hardware's default holds; 15 s is the shortest default of common drivers.
        let timeout = set_timeout(&device, TIMEOUT).unwrap_or(Duration::from_secs(15));
        Ok(Self { device, name, identity, timeout })
    }

    fn is_software(&self) -> bool {
        self.identity == SOFTWARE
    }

    fn feed(&mut self) -> io::Result<()> {
        // Any byte but the magic one.
        self.device.write_all(b"\0")
    }

    /// Stops it. On an error it counts on and has to be fed.
    fn disarm(&mut self) -> io::Result<()> {
        // The magic byte lets the close stop it, where the driver knows no call for it.
        self.device.write_all(b"V")?;
        let mut options = ioctl::DISABLE;
        #[allow(unsafe_code, reason = "the ioctl has no safe wrapper")]
        // SAFETY: the descriptor is open, the pointer is to a local C int.
        match unsafe { ioctl::set_options(self.device.as_raw_fd(), &raw mut options) } {
            Ok(_) | Err(nix::Error::ENOTTY) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What the driver calls itself.
fn identity_of(device: &File) -> Option<String> {
    let mut info = ioctl::Info::default();
    #[allow(unsafe_code, reason = "the ioctl has no safe wrapper")]
    // SAFETY: the descriptor is open, the pointer is to a local structure of the kernel's layout.
    unsafe { ioctl::get_support(device.as_raw_fd(), &raw mut info) }.ok()?;
    let text = info.identity.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(String::from_utf8_lossy(text).trim().to_owned()).filter(|text| !text.is_empty())
}

/// What the driver made of it; `None` where it takes none.
fn set_timeout(device: &File, timeout: Duration) -> Option<Duration> {
    let mut seconds = libc::c_int::try_from(timeout.as_secs()).ok()?;
    #[allow(unsafe_code, reason = "the ioctl has no safe wrapper")]
    // SAFETY: the descriptor is open, the pointer is to a local C int.
    unsafe { ioctl::set_timeout(device.as_raw_fd(), &raw mut seconds) }.ok()?;
    Some(Duration::from_secs(u64::try_from(seconds).ok()?.max(1)))
}

/// All that init has armed: one, or none; more only where one of them can't be disarmed.
#[derive(Debug, Default)]
pub struct Watchdogs {
    sys: PathBuf,
    dev: PathBuf,
    armed: Vec<Watchdog>,
    /// Feeds that still look for hardware.
    looks_left: u32,
    /// Said to be unusable, so that each is said once.
    refused: BTreeSet<String>,
}

impl Watchdogs {
    /// Arms the best of what is registered in `sys` (`/sys` but in tests), with its device in `dev`.
    #[must_use]
    pub fn arm(sys: &Path, dev: &Path, log: &dyn Log) -> Self {
        let mut all = Self { sys: sys.to_owned(), dev: dev.to_owned(), ..Self::default() };
        all.look(log);
        all.looks_left = if all.has_hardware() { 0 } else { LOOKS };
        all
    }

    /// `watchdog iTCO_wdt of 60 s`, or what is there instead.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.armed.first() {
            Some(one) if one.is_software() => {
                format!("no hardware watchdog yet, only {} of {} s", one.identity, one.timeout.as_secs())
            }
            Some(one) => format!("watchdog {} of {} s", one.identity, one.timeout.as_secs()),
            None => "no watchdog yet".into(),
        }
    }

    /// Feeds, and at first looks for a better one.
    pub fn feed(&mut self, log: &dyn Log) {
        for one in &mut self.armed {
            if let Err(error) = one.feed() {
                let text = format!("croft: the watchdog {} can't be fed: {error}", one.identity);
                log.line(Level::Error, &text);
            }
        }
        if self.looks_left == 0 {
            return;
        }
        self.looks_left -= 1;
        self.look(log);
        if self.has_hardware() {
            self.looks_left = 0;
            log.line(Level::Notice, &format!("croft: {}, which came up late", self.describe()));
        } else if self.looks_left == 0 {
            let text = "croft: no hardware watchdog, so a kernel that hangs needs a person: look whether the firmware's \
                        settings have one switched off";
            log.line(Level::Warning, text);
        }
    }

    /// Before an ordered restart or power-off. Also what init never used: firmware may have started it, the kernel feeds it
    /// since, and with `stop_on_reboot=0` nobody else stops it.
    pub fn disarm(&mut self, log: &dyn Log) {
        self.looks_left = 0;
        let others = candidates(&self.sys);
        let others = others.into_iter().filter(|other| self.armed.iter().all(|one| one.name != other.name));
        // Only an open one can be stopped.
        let others: Vec<Watchdog> = others.filter_map(|other| Watchdog::arm(&self.dev, other).ok()).collect();
        self.armed.extend(others);
        self.release(0, log);
    }

    /// Before a kexec: from here on nobody feeds, until the driver of the next kernel does.
    pub fn leave_to_next_kernel(&mut self, log: &dyn Log) {
        self.looks_left = 0;
        for one in &self.armed {
            let _ = set_timeout(&one.device, KEXEC_TIMEOUT);
        }
        self.feed(log);
    }

    fn has_hardware(&self) -> bool {
        self.armed.iter().any(|one| !one.is_software())
    }

    /// Arms the best, and disarms what it was until now. Only where there is no hardware yet.
    fn look(&mut self, log: &dyn Log) {
        for candidate in candidates(&self.sys) {
            if self.armed.iter().any(|one| one.name == candidate.name) {
                continue;
            }
            let name = candidate.name.clone();
            match Watchdog::arm(&self.dev, candidate) {
                Ok(one) => {
                    let better = !one.is_software() || self.armed.is_empty();
                    self.armed.insert(usize::from(!better), one);
                    self.release(1, log);
                }
                // Tried again at the next look: the device may be about to appear.
                Err(error) if self.refused.insert(name.clone()) => {
                    log.line(Level::Warning, &format!("croft: {name} can't be used: {error}"));
                }
                Err(_) => {}
            }
            if self.has_hardware() {
                return;
            }
        }
    }

    /// Disarms all but the first `kept`. What can't be disarmed stays, and is fed.
    fn release(&mut self, kept: usize, log: &dyn Log) {
        let mut index = 0;
        self.armed.retain_mut(|one| {
            index += 1;
            if index <= kept {
                return true;
            }
            let Err(error) = one.disarm() else { return false };
            let text =
                format!("croft: the watchdog {} can't be disarmed and counts on: {error}", one.identity);
            log.line(Level::Warning, &text);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Recorded;

    /// A made-up `/sys` and `/dev`, where a device is a file that keeps what was written.
    struct Machine {
        root: tempfile::TempDir,
        log: Recorded,
    }

    impl Machine {
        fn new() -> Self {
            Self { root: tempfile::tempdir().unwrap(), log: Recorded::default() }
        }

        fn registers(&self, name: &str, identity: Option<&str>) {
            let folder = self.root.path().join("class/watchdog").join(name);
            fs::create_dir_all(&folder).unwrap();
            if let Some(identity) = identity {
                fs::write(folder.join("identity"), format!("{identity}\n")).unwrap();
            }
        }

        /// With its device.
        fn has(&self, name: &str, identity: &str) {
            self.registers(name, Some(identity));
            fs::write(self.root.path().join(name), "").unwrap();
        }

        fn arm(&self) -> Watchdogs {
            Watchdogs::arm(self.root.path(), self.root.path(), &self.log)
        }

        fn written(&self, name: &str) -> Vec<u8> {
            fs::read(self.root.path().join(name)).unwrap()
        }

        fn names(&self) -> Vec<String> {
            candidates(self.root.path()).into_iter().map(|one| one.name).collect()
        }
    }

    #[test]
    fn hardware_goes_before_software_and_the_first_registered_before_later_ones() {
        let machine = Machine::new();
        assert_eq!(machine.names(), [""; 0], "no watchdog at all");
        machine.registers("watchdog0", Some("Software Watchdog"));
        machine.registers("watchdog10", Some("i6300ESB timer"));
        machine.registers("watchdog2", Some("iTCO_wdt"));
        machine.registers("watchdog1", None);
        machine.registers("watchdog", Some("no number"));
        machine.registers("other0", Some("no watchdog"));
        assert_eq!(machine.names(), ["watchdog2", "watchdog10", "watchdog1", "watchdog0"]);
    }

    #[test]
    fn software_that_was_registered_first_is_left_alone_where_there_is_hardware() {
        let machine = Machine::new();
        machine.has("watchdog0", "Software Watchdog");
        machine.has("watchdog1", "iTCO_wdt");
        let mut watchdogs = machine.arm();
        assert_eq!(watchdogs.describe(), "watchdog iTCO_wdt of 15 s");
        watchdogs.feed(&machine.log);
        assert_eq!((machine.written("watchdog0"), machine.written("watchdog1")), (vec![], b"\0".to_vec()));
        assert_eq!(machine.log.lines(), [""; 0]);
    }

    #[test]
    fn hardware_that_comes_up_late_takes_over_and_software_is_disarmed() {
        let machine = Machine::new();
        machine.has("watchdog0", "Software Watchdog");
        let mut watchdogs = machine.arm();
        assert_eq!(watchdogs.describe(), "no hardware watchdog yet, only Software Watchdog of 15 s");
        watchdogs.feed(&machine.log);
        // In sysfs before it is in /dev.
        machine.registers("watchdog1", Some("iTCO_wdt"));
        watchdogs.feed(&machine.log);
        machine.has("watchdog1", "iTCO_wdt");
        watchdogs.feed(&machine.log);
        watchdogs.feed(&machine.log);
        assert_eq!(machine.written("watchdog0"), b"\0\0\0V");
        assert_eq!(machine.written("watchdog1"), b"\0");
        let lines = machine.log.lines();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("croft: watchdog1 can't be used: No such file"), "{lines:?}");
        assert_eq!(lines[1], "croft: watchdog iTCO_wdt of 15 s, which came up late");
    }

    #[test]
    fn the_search_for_hardware_ends_with_a_word() {
        let machine = Machine::new();
        machine.has("watchdog0", "Software Watchdog");
        let mut watchdogs = machine.arm();
        for _ in 0..LOOKS {
            watchdogs.feed(&machine.log);
        }
        let lines = machine.log.lines();
        assert!(
            lines.len() == 1 && lines[0].starts_with("croft: no hardware watchdog, so a kernel"),
            "{lines:?}"
        );
        machine.has("watchdog1", "iTCO_wdt");
        watchdogs.feed(&machine.log);
        assert_eq!(machine.written("watchdog1"), b"", "nobody looks any more");
    }

    #[test]
    fn a_machine_without_any_gets_the_first_that_appears() {
        let machine = Machine::new();
        let mut watchdogs = machine.arm();
        assert_eq!(watchdogs.describe(), "no watchdog yet");
        machine.has("watchdog0", "Software Watchdog");
        watchdogs.feed(&machine.log);
        watchdogs.feed(&machine.log);
        assert_eq!(machine.written("watchdog0"), b"\0");
    }

    #[test]
    fn hardware_that_can_not_be_opened_is_named_once_and_software_serves() {
        let machine = Machine::new();
        machine.registers("watchdog0", Some("iTCO_wdt"));
        machine.has("watchdog1", "Software Watchdog");
        let mut watchdogs = machine.arm();
        watchdogs.feed(&machine.log);
        assert_eq!(machine.written("watchdog1"), b"\0");
        assert_eq!(machine.log.lines().len(), 1);
    }

    #[test]
    fn an_ordered_end_disarms_and_a_kexec_feeds_a_last_time() {
        let machine = Machine::new();
        machine.has("watchdog0", "iTCO_wdt");
        machine.has("watchdog1", "wdat_wdt");
        let mut watchdogs = machine.arm();
        watchdogs.leave_to_next_kernel(&machine.log);
        assert_eq!(machine.written("watchdog0"), b"\0");
        watchdogs.disarm(&machine.log);
        watchdogs.feed(&machine.log);
        assert_eq!(machine.written("watchdog0"), b"\0V", "disarmed, and never fed again");
        assert_eq!(machine.written("watchdog1"), b"V", "firmware may have started it");
    }
}
