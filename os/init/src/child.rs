//! What PID 1 takes from a program between fork and exec: blocked signals, capabilities, system calls.
//!
//! Must never allocate, lock or panic there: the memory of a forked process is a copy made at any moment.

use crate::syscalls::Program;
use nix::sys::signal::SigSet;
use rustix::thread::CapabilitySet;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What a program may have.
#[derive(Debug)]
pub struct Limits {
    pub capabilities: CapabilitySet,
    /// On top of what everybody is refused.
    pub filter: Program,
}

/// Makes the program start with these limits; it does not start where one can't be set.
pub fn limit(command: &mut Command, limits: Limits) {
    let set = move || -> std::io::Result<()> {
        // This process blocks what it reads as events; the program has to hear them.
        SigSet::empty().thread_set_mask()?;
        crate::privileges::keep_only(limits.capabilities)?;
        limits.filter.install()
    };
    #[allow(unsafe_code, reason = "these can only be set between fork and exec")]
    // SAFETY: the closure makes system calls on what was made before the fork, and neither allocates nor locks.
    unsafe {
        command.pre_exec(set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privileges::{NODE, of};
    use crate::syscalls;

    #[test]
    fn a_limited_program_starts_filtered_and_hears_signals() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: nothing to limit");
            return;
        }
        let status = std::thread::spawn(|| {
            SigSet::all().thread_block().unwrap();
            rustix::thread::set_no_new_privs(true).unwrap();
            let mut command = Command::new("cat");
            command.arg("/proc/self/status");
            limit(&mut command, Limits { capabilities: of(NODE), filter: syscalls::not_for_node() });
            String::from_utf8(command.output().unwrap().stdout).unwrap()
        });
        let status = status.join().unwrap();
        let has = |line: &str| status.lines().any(|found| found == line);
        assert!(has("SigBlk:\t0000000000000000"), "{status}");
        assert!(has("Seccomp:\t2"), "{status}");
    }
}
