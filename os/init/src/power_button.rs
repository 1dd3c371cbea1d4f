//! The ACPI power button, as an input device (linux/input.h).
//!
//! Reads events only; a keyboard's keys are not looked at beyond the power key.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// `struct input_event` on 64-bit: two 8-byte times, type, code, value.
const EVENT_BYTES: usize = 24;

/// Opens every input device that has a power key.
#[must_use]
pub fn open_all(sys: &Path, dev: &Path) -> Vec<File> {
    let mut names: Vec<String> = fs::read_dir(sys.join("class/input"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("event"))
        .collect();
    names.sort();
    names
        .iter()
        .filter(|name| {
            let path = sys.join("class/input").join(name).join("device/capabilities/key");
            fs::read_to_string(path).is_ok_and(|text| has_key(&text, KEY_POWER))
        })
        .filter_map(|name| {
            let path = dev.join("input").join(name);
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()
        })
        .collect()
}

/// Whether a bitmap in sysfs (64-bit words in hexadecimal, the lowest last) has a bit set.
fn has_key(bitmap: &str, key: u16) -> bool {
    let word = bitmap.split_whitespace().rev().nth(usize::from(key) / 64);
    word.and_then(|word| u64::from_str_radix(word, 16).ok()).is_some_and(|word| word >> (key % 64) & 1 == 1)
}

/// Whether the button was pressed since the last look. `Err` when the device is gone.
pub fn pressed(device: &mut File) -> std::io::Result<bool> {
    let mut pressed = false;
    let mut buffer = [0_u8; EVENT_BYTES * 16];
    loop {
        match device.read(&mut buffer) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => pressed |= buffer[..length].chunks_exact(EVENT_BYTES).any(is_press),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(pressed),
            Err(error) => return Err(error),
        }
    }
}

fn is_press(event: &[u8]) -> bool {
    let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
    half(16) == EV_KEY && half(18) == KEY_POWER && value == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        assert!(is_press(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_press(&event(EV_KEY, KEY_POWER, 0)), "release");
        assert!(!is_press(&event(EV_KEY, 30, 1)), "another key");
        assert!(!is_press(&event(0, 0, 0)), "synchronisation");
    }

    #[test]
    fn the_power_key_is_found_in_a_bitmap() {
        assert!(has_key("10000000000000 0\n", KEY_POWER), "as the ACPI button shows it");
        assert!(!has_key("0 0", KEY_POWER));
        assert!(!has_key("1000000000", KEY_POWER));
        assert!(!has_key("zz yy", KEY_POWER));
        assert!(!has_key("", KEY_POWER));
    }

    #[test]
    fn devices_without_a_power_key_stay_closed() {
        let root = tempfile::tempdir().unwrap();
        for (name, keys) in [("event0", "10000000000000 0"), ("event1", "0 fffffffe")] {
            let folder = root.path().join("class/input").join(name).join("device/capabilities");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("key"), keys).unwrap();
            fs::create_dir_all(root.path().join("input")).unwrap();
            let mut bytes = event(0, 0, 0);
            bytes.extend(event(EV_KEY, KEY_POWER, 1));
            fs::write(root.path().join("input").join(name), bytes).unwrap();
        }
        let mut devices = open_all(root.path(), root.path());
        assert_eq!(devices.len(), 1);
        // A plain file ends, where a device would block.
        assert!(pressed(&mut devices[0]).is_err());
        assert!(open_all(Path::new("/nonexistent"), root.path()).is_empty());
    }
}
