//! What root may do on a node: a table of capabilities, each with the one who needs it. All others are given up by
//! PID 1 before it starts anything, so that nothing on the machine can ever have them again.
//!
//! Must never keep a capability without a reason, and never run after a thread was started: each thread has its own.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// What stays, and why.
pub const KEPT: &[(CapabilitySet, &str)] = &[
    (CapabilitySet::SYS_ADMIN, "mounts, namespaces, device mapper, cgroups, NVMe health"),
    (CapabilitySet::NET_ADMIN, "links, addresses, routes, nftables, WireGuard"),
    (CapabilitySet::NET_RAW, "DHCP before there is an address"),
    (CapabilitySet::NET_BIND_SERVICE, "DHCP's port 68; ports below 1024 that workloads publish"),
    (CapabilitySet::SYS_TIME, "the clock, from the ledger and from SNTP"),
    (CapabilitySet::SYS_BOOT, "restart, power off, kexec of a signed release"),
    (CapabilitySet::SYS_RESOURCE, "limits of VMMs above the default, project quota, OOM scores"),
    (CapabilitySet::SYS_NICE, "weights and cores of VMMs"),
    (CapabilitySet::SYS_CHROOT, "jails"),
    (CapabilitySet::SYS_PTRACE, "what memory a VMM really takes: its smaps, under another user"),
    (CapabilitySet::SYS_RAWIO, "health of SATA disks (SG_IO)"),
    (CapabilitySet::SETUID, "VMMs and virtiofsd under their own users"),
    (CapabilitySet::SETGID, "VMMs and virtiofsd under their own groups"),
    (CapabilitySet::SETPCAP, "giving up more in the jails"),
    (CapabilitySet::SETFCAP, "virtiofsd: files of a guest keep their capabilities"),
    (CapabilitySet::MKNOD, "devices of a jail"),
    (CapabilitySet::KILL, "stopping what runs under other users"),
    (CapabilitySet::CHOWN, "files of jails and volumes"),
    (CapabilitySet::FOWNER, "files of jails and volumes"),
    (CapabilitySet::FSETID, "files of volumes keep their set-group-id bit"),
    (CapabilitySet::DAC_OVERRIDE, "sockets and volumes of other users"),
    (CapabilitySet::DAC_READ_SEARCH, "virtiofsd's file handles"),
    (CapabilitySet::SYSLOG, "the kernel log, to show it on the screen"),
    (CapabilitySet::SYS_TTY_CONFIG, "the screen's consoles"),
    (CapabilitySet::IPC_LOCK, "keys and guest memory that are never paged out"),
];

/// The highest number that a set can hold.
const NUMBERS: u32 = 64;

#[derive(Debug, thiserror::Error)]
pub enum DropError {
    #[error("the capability number {number} can't be given up")]
    Bounding {
        number: u32,
        #[source]
        source: Errno,
    },
    #[error("the capabilities of PID 1 can't be {step}")]
    Own {
        step: &'static str,
        #[source]
        source: Errno,
    },
}

/// All of [`KEPT`].
#[must_use]
pub fn kept() -> CapabilitySet {
    KEPT.iter().fold(CapabilitySet::empty(), |all, (one, _)| all | *one)
}

/// Gives up every other capability for this thread and all that it will start, and every way to gain one by executing
/// a program. Returns how many were given up.
///
/// # Errors
/// When the kernel refuses; what was given up until then stays given up.
pub fn give_up() -> Result<usize, DropError> {
    let kept = kept();
    let mut count = 0;
    for number in 0..NUMBERS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => count += 1,
            // Higher than what this kernel knows.
            Err(Errno::INVAL) => break,
            Err(source) => return Err(DropError::Bounding { number, source }),
        }
    }
    let own = |step| move |source| DropError::Own { step, source };
    rustix::thread::clear_ambient_capability_set().map_err(own("cleared of ambient ones"))?;
    let now = rustix::thread::capabilities(None).map_err(own("read"))?;
    let less = CapabilitySets {
        effective: now.effective & kept,
        permitted: now.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, less).map_err(own("reduced"))?;
    rustix::thread::set_no_new_privs(true).map_err(own("sealed"))?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn every_capability_is_kept_once_and_with_a_reason() {
        for (index, (one, reason)) in KEPT.iter().enumerate() {
            assert_eq!(one.bits().count_ones(), 1, "{reason}");
            assert!(!reason.is_empty());
            assert!(KEPT[..index].iter().all(|(earlier, _)| earlier != one), "{one:?} stands there twice");
        }
    }

    #[test]
    fn nothing_that_changes_the_kernel_or_its_rules_is_kept() {
        let never = CapabilitySet::SYS_MODULE
            | CapabilitySet::BPF
            | CapabilitySet::PERFMON
            | CapabilitySet::MAC_ADMIN
            | CapabilitySet::MAC_OVERRIDE
            | CapabilitySet::AUDIT_CONTROL
            | CapabilitySet::CHECKPOINT_RESTORE;
        assert!(!kept().intersects(never));
    }

    /// In a thread of its own: capabilities belong to threads, and a program that it starts inherits from it.
    #[test]
    fn a_program_started_afterwards_has_nothing_else_even_as_root() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: nothing to give up");
            return;
        }
        let status = std::thread::spawn(|| {
            give_up().unwrap();
            Command::new("cat").arg("/proc/self/status").output().unwrap()
        });
        let status = String::from_utf8(status.join().unwrap().stdout).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().to_owned()
        };
        for name in ["CapEff:", "CapPrm:", "CapBnd:"] {
            let set = u64::from_str_radix(&field(name), 16).unwrap();
            assert_eq!(set & !kept().bits(), 0, "{name} {set:x}");
        }
        assert_eq!(field("CapInh:"), "0000000000000000");
        assert_eq!(field("NoNewPrivs:"), "1");
    }
}
