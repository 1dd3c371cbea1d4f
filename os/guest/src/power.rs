//! The end: flush what is written and power the machine off. Also the console, for what happens before and
//! after the host can be told.

use std::io::Write;

use nix::sys::reboot::{RebootMode, reboot};

/// Writes one line to the kernel log, which reaches the console.
pub(crate) fn say(text: &str) {
    let line = format!("<5>guest: {text}\n");
    let kernel_log = std::fs::OpenOptions::new().write(true).open("/dev/kmsg");
    if kernel_log.and_then(|mut log| log.write_all(line.as_bytes())).is_err() {
        // Before /dev is mounted there is only what the kernel gave as standard error.
        let _ = writeln!(std::io::stderr(), "guest: {text}");
    }
}

/// Milliseconds since the kernel started.
pub(crate) fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Never a reboot: the VMM would start the guest again underneath its owner.
pub(crate) fn off() -> ! {
    rustix::fs::sync();
    loop {
        match reboot(RebootMode::RB_POWER_OFF) {
            Ok(never) => match never {},
            Err(error) => say(&format!("power off failed: {error}")),
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
