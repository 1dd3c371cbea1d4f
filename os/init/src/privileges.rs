//! What root may do on a node: one table of capabilities for each of the three programs of ours, each line with its reason.
//! PID 1 gives up all others before it starts anything, so that nothing on the machine can ever have them again; what it
//! starts gets less than it has itself.
//!
//! ```text
//!   PID 1: INIT in effect, INIT + NODE + SCREEN to hand on
//!     ├─ node: NODE ──> jails: none, or those of a user namespace of their own
//!     └─ screen: SCREEN
//! ```
//! Must never keep a capability without a reason, and never run after a thread was started: each thread has its own.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Capabilities with their reasons.
pub type Table = &'static [(CapabilitySet, &'static str)];

/// What PID 1 uses itself.
pub const INIT: Table = &[
    (CapabilitySet::SYS_ADMIN, "unmounting at the end; the kernel's messages on the second console"),
    (CapabilitySet::SYS_BOOT, "restart, power off, kexec of a signed release"),
    (CapabilitySet::SYS_RESOURCE, "node's limit of open files; whom the kernel spares when memory runs out"),
    (CapabilitySet::SYS_TIME, "the clock, before there is a network"),
    (CapabilitySet::KILL, "the end of what runs under other users"),
    (CapabilitySet::SETPCAP, "what it starts gets less"),
];

/// What node uses. No SYS_BOOT: it asks init. No SYSLOG: it writes to the kernel log and reads nothing there.
pub const NODE: Table = &[
    (CapabilitySet::SYS_ADMIN, "mounts, namespaces, device mapper, cgroups, quota, NVMe health"),
    (CapabilitySet::NET_ADMIN, "links, addresses, routes, nftables, WireGuard"),
    (CapabilitySet::NET_RAW, "DHCP before there is an address"),
    (CapabilitySet::NET_BIND_SERVICE, "DHCP's port 68"),
    (CapabilitySet::SYS_TIME, "the clock, from the ledger and from SNTP"),
    (
        CapabilitySet::SYS_PTRACE,
        "what memory a VMM really takes: its smaps, under another user; nobody may trace",
    ),
    (CapabilitySet::SYS_RAWIO, "health of SATA disks (SG_IO)"),
    (CapabilitySet::SETUID, "VMMs and virtiofsd under their own users"),
    (CapabilitySet::SETGID, "VMMs and virtiofsd under their own groups"),
    (CapabilitySet::MKNOD, "devices of a jail"),
    (CapabilitySet::KILL, "stopping what runs under other users"),
    (CapabilitySet::CHOWN, "files of jails and volumes"),
    (CapabilitySet::FOWNER, "modes of what jails own"),
    (CapabilitySet::DAC_OVERRIDE, "sockets and volumes of other users"),
];

/// What the screen uses: it draws on consoles that belong to root anyway.
pub const SCREEN: Table =
    &[(CapabilitySet::SYSLOG, "the kernel log, whose boot stages and warnings it shows")];

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

/// All of a table.
#[must_use]
pub fn of(table: Table) -> CapabilitySet {
    table.iter().fold(CapabilitySet::empty(), |all, (one, _)| all | *one)
}

/// All that anybody on the machine can still have.
#[must_use]
pub fn kept() -> CapabilitySet {
    of(INIT) | of(NODE) | of(SCREEN)
}

/// Gives up every other capability for this thread and all that it will start, and every way to gain one by executing
/// a program. Returns how many were given up.
///
/// # Errors
/// When the kernel refuses; what was given up until then stays given up.
pub fn give_up() -> Result<usize, DropError> {
    let count = reduce(kept(), of(INIT))?;
    rustix::thread::set_no_new_privs(true).map_err(|source| DropError::Own { step: "sealed", source })?;
    Ok(count)
}

/// Keeps these for this thread and what it executes. Makes system calls only, so that it may run between fork and
/// exec.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_only(set: CapabilitySet) -> Result<(), Errno> {
    reduce(set, set).map(drop).map_err(|error| match error {
        DropError::Bounding { source, .. } | DropError::Own { source, .. } => source,
    })
}

/// How many were given up beyond `permitted`, of which `effective` stays in effect.
fn reduce(permitted: CapabilitySet, effective: CapabilitySet) -> Result<usize, DropError> {
    let mut count = 0;
    for number in 0..NUMBERS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if permitted.contains(one) {
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
        effective: now.permitted & permitted & effective,
        permitted: now.permitted & permitted,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, less).map_err(own("reduced"))?;
    Ok(count)
}

/// What the kernel says of this process: `14 capabilities, no new privileges, 2 system call filters`.
#[must_use]
pub fn describe() -> String {
    describe_status(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// `status` as proc(5) has it.
fn describe_status(status: &str) -> String {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim();
    // What it could have counts, not only what is in effect.
    let count = |name: &str| u64::from_str_radix(field(name), 16).map_or(64, u64::count_ones);
    let capabilities = count("CapPrm:").max(count("CapBnd:"));
    let sealed = if field("NoNewPrivs:") == "1" { "no new privileges" } else { "NEW PRIVILEGES POSSIBLE" };
    let filters = match field("Seccomp_filters:") {
        "" | "0" => "NO system call filter",
        "1" => "1 system call filter",
        more => return format!("{capabilities} capabilities, {sealed}, {more} system call filters"),
    };
    format!("{capabilities} capabilities, {sealed}, {filters}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn every_capability_stands_in_a_table_once_and_with_a_reason() {
        for table in [INIT, NODE, SCREEN] {
            for (index, (one, reason)) in table.iter().enumerate() {
                assert_eq!(one.bits().count_ones(), 1, "{reason}");
                assert!(!reason.is_empty());
                assert!(
                    table[..index].iter().all(|(earlier, _)| earlier != one),
                    "{one:?} stands there twice"
                );
            }
        }
    }

    #[test]
    fn nothing_that_changes_the_kernel_or_its_rules_is_kept_and_node_can_t_end_the_machine() {
        let never = CapabilitySet::SYS_MODULE
            | CapabilitySet::BPF
            | CapabilitySet::PERFMON
            | CapabilitySet::MAC_ADMIN
            | CapabilitySet::MAC_OVERRIDE
            | CapabilitySet::AUDIT_CONTROL
            | CapabilitySet::CHECKPOINT_RESTORE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::SETFCAP
            | CapabilitySet::IPC_LOCK;
        assert!(!kept().intersects(never));
        let not_nodes = CapabilitySet::SYS_BOOT | CapabilitySet::SETPCAP | CapabilitySet::SYSLOG;
        assert!(!of(NODE).intersects(not_nodes));
    }

    fn field(status: &str, name: &str) -> String {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().to_owned()
    }

    fn assert_within(status: &str, names: &[&str], set: CapabilitySet) {
        for name in names {
            let has = u64::from_str_radix(&field(status, name), 16).unwrap();
            assert_eq!(has & !set.bits(), 0, "{name} {has:x}");
        }
    }

    /// In a thread of its own: capabilities belong to threads, and a program that it starts inherits from it.
    fn status_after(reduce: impl FnOnce() + Send + 'static) -> Option<(String, String)> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: nothing to give up");
            return None;
        }
        let work = move || {
            reduce();
            let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let program = Command::new("cat").arg("/proc/self/status").output().unwrap();
            (own, String::from_utf8(program.stdout).unwrap())
        };
        Some(std::thread::spawn(work).join().unwrap())
    }

    #[test]
    fn a_program_started_afterwards_has_nothing_else_even_as_root() {
        let Some((own, program)) = status_after(|| assert!(give_up().unwrap() > 0)) else { return };
        assert_within(&own, &["CapEff:"], of(INIT));
        assert_within(&program, &["CapEff:", "CapPrm:", "CapBnd:"], kept());
        assert_eq!(field(&program, "CapInh:"), "0000000000000000");
        assert_eq!(field(&program, "NoNewPrivs:"), "1");
    }

    #[test]
    fn what_pid_1_starts_gets_its_own_table_and_can_t_have_more() {
        for table in [NODE, SCREEN] {
            let Some((own, program)) = status_after(move || {
                give_up().unwrap();
                keep_only(of(table)).unwrap();
            }) else {
                return;
            };
            for status in [own, program] {
                assert_within(&status, &["CapEff:", "CapPrm:", "CapBnd:"], of(table));
            }
        }
    }

    #[test]
    fn a_process_says_what_it_has_and_shouts_where_a_lock_is_missing() {
        let status = "CapPrm:\t0000000000000003\nCapEff:\t0000000000000001\nCapBnd:\t0000000000000007\n\
                      NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";
        assert_eq!(describe_status(status), "3 capabilities, no new privileges, 2 system call filters");
        let text = describe_status("NoNewPrivs:\t0\nSeccomp_filters:\t0\n");
        assert_eq!(text, "64 capabilities, NEW PRIVILEGES POSSIBLE, NO system call filter");
    }
}
