//! Linux's driver of the TPM: whether it took the one that the firmware announces, and another try where it did not.
//!
//! A TPM that is still busy with the firmware's last command, or with its self-test, can miss the driver's time limits
//! at boot, and the kernel asks once. A machine must not take itself for one without a TPM because of that: it would
//! make itself a second identity.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// Where the kernel shows devices and drivers.
pub const SYSFS: &str = "/sys";
/// The ACPI table by which firmware announces a TPM 2.0.
const ANNOUNCEMENT: &str = "firmware/acpi/tables/TPM2";
/// Begins the ACPI name of every TPM 2.0.
const HARDWARE_ID: &str = "MSFT0101";
/// Buses and drivers that take it, below `bus`.
const DRIVERS: [(&str, &str); 2] = [("platform", "tpm_tis"), ("acpi", "tpm_crb")];
/// With the pauses before them, longer than a self-test takes.
const TRIES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];

/// Whether the firmware announces a TPM 2.0 that is turned on, whatever the kernel made of it.
#[must_use]
pub fn announced(sysfs: &Path) -> bool {
    // A table alone is left behind by some firmware that turned the TPM off.
    let on = |name: &String| {
        let status = fs::read_to_string(sysfs.join("bus/acpi/devices").join(name).join("status"));
        status.is_ok_and(|status| status.trim() != "0")
    };
    sysfs.join(ANNOUNCEMENT).exists() && named(&sysfs.join("bus/acpi/devices")).iter().any(on)
}

/// Gives an announced TPM that has no driver to the drivers again, until `device` is there. Blocks for some seconds.
/// Returns whether it is there.
pub fn start(sysfs: &Path, device: &Path, mut pause: impl FnMut(Duration)) -> bool {
    for time in TRIES {
        pause(time);
        for (bus, driver) in DRIVERS {
            let bus = sysfs.join("bus").join(bus);
            let devices = bus.join("devices");
            for name in named(&devices).into_iter().filter(|name| !devices.join(name).join("driver").exists())
            {
                // Refused where it is the other driver's TPM, or still busy: what counts is the device.
                let _ = fs::write(bus.join("drivers").join(driver).join("bind"), &name);
            }
        }
        if device.exists() {
            return true;
        }
    }
    false
}

/// Names of TPMs among a bus's devices.
fn named(devices: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(devices) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(HARDWARE_ID)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs(driver: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (bus, driver) in DRIVERS {
            fs::create_dir_all(dir.path().join("bus").join(bus).join("drivers").join(driver)).unwrap();
        }
        for device in ["MSFT0101:00", "PNP0303:00"] {
            fs::create_dir_all(dir.path().join("bus/platform/devices").join(device)).unwrap();
        }
        if driver {
            fs::create_dir(dir.path().join("bus/platform/devices/MSFT0101:00/driver")).unwrap();
        }
        dir
    }

    fn bound(dir: &Path) -> Option<String> {
        fs::read_to_string(dir.join("bus/platform/drivers/tpm_tis/bind")).ok()
    }

    #[test]
    fn a_tpm_that_the_kernel_left_is_offered_again_until_it_is_there() {
        let dir = sysfs(false);
        let device = dir.path().join("tpmrm0");
        let mut pauses = Vec::new();
        // Its self-test ends in the second pause.
        let there = start(dir.path(), &device, |time| {
            pauses.push(time);
            if pauses.len() == 2 {
                fs::write(&device, "").unwrap();
            }
        });
        assert!(there);
        assert_eq!(pauses, TRIES[..2]);
        assert_eq!(bound(dir.path()).as_deref(), Some("MSFT0101:00"));
    }

    #[test]
    fn it_ends_without_a_tpm_and_disturbs_no_driver() {
        let dir = sysfs(true);
        let mut pauses = 0;
        assert!(!start(dir.path(), &dir.path().join("tpmrm0"), |_| pauses += 1));
        assert_eq!(pauses, TRIES.len());
        assert_eq!(bound(dir.path()), None, "it has a driver");
    }

    #[test]
    fn a_tpm_is_announced_by_table_and_status() {
        let dir = sysfs(false);
        let (table, device) =
            (dir.path().join(ANNOUNCEMENT), dir.path().join("bus/acpi/devices/MSFT0101:00"));
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("status"), "15\n").unwrap();
        assert!(!announced(dir.path()), "a TPM 1.2 has no such table");
        fs::create_dir_all(table.parent().unwrap()).unwrap();
        fs::write(table, "").unwrap();
        assert!(announced(dir.path()));
        fs::write(device.join("status"), "0\n").unwrap();
        assert!(!announced(dir.path()), "it is turned off");
    }
}
