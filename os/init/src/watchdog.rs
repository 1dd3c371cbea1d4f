//! The hardware watchdog: resets the machine unless it is fed. Only the supervisor decides when.
//!
//! It must never be disarmed while the machine runs: a closed device keeps counting, which is what a dying PID 1
//! should leave behind. Before power-off it is disarmed, or some boards would switch on again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// Above the longest pause between two feeds of a healthy node, below the patience of its tenants.
pub const TIMEOUT: Duration = Duration::from_secs(60);

mod ioctl {
    #![allow(unsafe_code, reason = "linux/watchdog.h has no safe wrapper in rustix or nix")]
    // SAFETY of the callers: both take a pointer to one C int that lives through the call.
    nix::ioctl_readwrite!(set_timeout, b'W', 6, libc::c_int);
}

/// An armed watchdog.
#[derive(Debug)]
pub struct Watchdog {
    device: File,
    /// What the hardware made of [`TIMEOUT`].
    pub timeout: Duration,
}

impl Watchdog {
    /// Opens and thereby arms it. Hardware with a shorter limit keeps its own.
    pub fn arm(path: &Path) -> io::Result<Self> {
        let device = OpenOptions::new().write(true).open(path)?;
        let mut seconds = libc::c_int::try_from(TIMEOUT.as_secs()).unwrap_or(60);
        #[allow(unsafe_code, reason = "the ioctl has no safe wrapper")]
        // SAFETY: the descriptor is open, the pointer is to a local C int.
        let set = unsafe { ioctl::set_timeout(std::os::fd::AsRawFd::as_raw_fd(&device), &raw mut seconds) };
        // Without the call the hardware's default holds; 15 s is the shortest default of common drivers.
        let seconds = if set.is_ok() { u64::try_from(seconds).unwrap_or(15) } else { 15 };
        Ok(Self { device, timeout: Duration::from_secs(seconds.max(1)) })
    }

    pub fn feed(&mut self) -> io::Result<()> {
        // Any byte but the magic one.
        self.device.write_all(b"\0")
    }

    /// The magic byte lets the next close disarm it, where the driver allows that.
    pub fn disarm(mut self) {
        let _ = self.device.write_all(b"V");
    }
}
