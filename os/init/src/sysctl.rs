//! Kernel settings of the node, each with its reason. A key that this kernel lacks is skipped; one that refuses its
//! value is reported. Nothing here is fatal: a node with a weaker setting is better than no node.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Key as below `/proc/sys`, value.
pub type Setting = (&'static str, &'static str);

pub const TABLE: &[Setting] = &[
    // Notices of the boot stages reach the console, chatter of drivers does not.
    ("kernel/printk", "6 4 1 6"),
    // Panics restart the machine; an oops may have left locks held, and a host of strangers must not go on after it.
    ("kernel/panic", "30"),
    ("kernel/panic_on_oops", "1"),
    // Kernel log and addresses are of use to root and to attackers only.
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "2"),
    // A VMM that was broken out of runs unprivileged: it gets no BPF, no perf, no userfaultfd to attack with.
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("net/core/bpf_jit_harden", "2"),
    ("kernel/perf_event_paranoid", "3"),
    ("vm/unprivileged_userfaultfd", "0"),
    // Nobody debugs here; processes of one user must not read each other's guest memory.
    ("kernel/yama/ptrace_scope", "3"),
    ("dev/tty/ldisc_autoload", "0"),
    ("dev/tty/legacy_tiocsti", "0"),
    // From the keyboard only sync, remount read-only and restart: a hung machine has no other door.
    ("kernel/sysrq", "176"),
    // Guest memory must not land in a core file; the limit of 0 that init sets does the rest.
    ("fs/suid_dumpable", "0"),
    // Tricks with links and queues in shared folders.
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "2"),
    ("fs/protected_regular", "2"),
    ("kernel/randomize_va_space", "2"),
    // What a workload wrote and did not sync is on the disk after some seconds, not half a minute: power cuts happen.
    ("vm/dirty_expire_centisecs", "200"),
    ("vm/dirty_writeback_centisecs", "100"),
    // A million descriptors for node: each microVM takes about a hundred.
    ("fs/nr_open", "1048576"),
    // Workloads sit behind the node's NAT. Comes before the other IPv4 keys, because it resets some of them.
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    // A forwarding host ignores router advertisements unless told otherwise, and would have no IPv6 of its own.
    ("net/ipv6/conf/all/accept_ra", "2"),
    ("net/ipv6/conf/default/accept_ra", "2"),
    // Loose: a source must be reachable at all. Strict would break machines with two links to one router; workloads'
    // own links are filtered strictly where they are made.
    ("net/ipv4/conf/all/rp_filter", "2"),
    ("net/ipv4/conf/default/rp_filter", "2"),
    // Neighbours must not bend routes.
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_source_route", "0"),
    ("net/ipv4/conf/default/accept_source_route", "0"),
    ("net/ipv4/tcp_syncookies", "1"),
    ("net/ipv4/icmp_echo_ignore_broadcasts", "1"),
];

/// What became of the table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub set: usize,
    /// Keys that this kernel does not have.
    pub absent: Vec<&'static str>,
    /// `key: reason`.
    pub refused: Vec<String>,
}

#[must_use]
pub fn apply(root: &Path, table: &[Setting]) -> Applied {
    let mut applied = Applied::default();
    for (key, value) in table {
        // Never creates: a key that is absent must not become a file on a wrong root.
        let written = fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(root.join(key))
            .and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()));
        match written {
            Ok(()) => applied.set += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => applied.absent.push(key),
            Err(error) => applied.refused.push(format!("{key} = {value}: {error}")),
        }
    }
    applied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_set_skipped_or_reported() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("there"), "0\n").unwrap();
        fs::create_dir(root.path().join("stubborn")).unwrap();
        let applied = apply(root.path(), &[("there", "1"), ("absent", "1"), ("stubborn", "1")]);
        assert_eq!((applied.set, applied.absent), (1, vec!["absent"]));
        assert!(applied.refused[0].starts_with("stubborn = 1: "), "{:?}", applied.refused);
        assert_eq!(fs::read_to_string(root.path().join("there")).unwrap(), "1");
        assert!(!root.path().join("absent").exists(), "never creates");
    }

    #[test]
    fn no_key_is_listed_twice_and_forwarding_comes_before_what_it_resets() {
        let mut keys: Vec<_> = TABLE.iter().map(|(key, _)| *key).collect();
        let forward = keys.iter().position(|key| *key == "net/ipv4/ip_forward").unwrap();
        assert!(keys.iter().take(forward).all(|key| !key.starts_with("net/ipv4/")));
        keys.sort_unstable();
        let count = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }
}
