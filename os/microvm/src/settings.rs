//! How this node runs VMs: programs, directories, users, limits.

use std::path::PathBuf;
use std::time::Duration;

use crate::cgroup::Enforcement;

/// Users for jailed programs. Ranges must not overlap anything else on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserPlan {
    /// The VMM of slot n is user `vmm_first + n`.
    pub vmm_first: u32,
    /// virtiofsd of slot n has the 65,536 users from `share_first + n * 65,536` on.
    pub share_first: u32,
    /// VMs that can run at once.
    pub slots: u16,
}

impl Default for UserPlan {
    fn default() -> Self {
        Self { vmm_first: 200_000, share_first: 0x1000_0000, slots: 4096 }
    }
}

impl UserPlan {
    /// Users inside one user namespace.
    pub const SHARE_USERS: u32 = 65_536;

    pub(crate) fn vmm(&self, slot: u16) -> u32 {
        self.vmm_first + u32::from(slot)
    }

    pub(crate) fn share(&self, slot: u16) -> u32 {
        self.share_first + u32::from(slot) * Self::SHARE_USERS
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLimits {
    /// The VMM creates and boots the machine.
    pub boot: Duration,
    /// From there to the guest's hello.
    pub hello: Duration,
    /// From there to the running entry point.
    pub started: Duration,
    /// Between two pings of the VMM.
    pub ping_interval: Duration,
    /// One ping of the VMM.
    pub ping: Duration,
    /// Unanswered pings in a row that make a hang.
    pub ping_misses: u32,
    /// Without a frame of the guest, which is pinged all the time, it is taken for hung.
    pub guest_silence: Duration,
    /// From the report of the exit to the end of the VMM, before it is killed.
    pub power_off: Duration,
    /// For killed processes to be gone.
    pub kill: Duration,
}

impl TimeLimits {
    /// For machines with hardware virtualisation.
    pub const fn hardware() -> Self {
        Self {
            boot: Duration::from_secs(15),
            hello: Duration::from_secs(60),
            started: Duration::from_secs(60),
            ping_interval: Duration::from_secs(5),
            ping: Duration::from_secs(5),
            ping_misses: 3,
            guest_silence: Duration::from_secs(30),
            power_off: Duration::from_secs(20),
            kill: Duration::from_secs(10),
        }
    }

    /// For VMs inside emulated machines, which are ten times slower and often busy.
    pub const fn emulated() -> Self {
        Self {
            boot: Duration::from_secs(120),
            hello: Duration::from_secs(240),
            started: Duration::from_secs(240),
            ping_interval: Duration::from_secs(10),
            ping: Duration::from_secs(30),
            ping_misses: 3,
            guest_silence: Duration::from_secs(180),
            power_off: Duration::from_secs(120),
            kill: Duration::from_secs(30),
        }
    }
}

/// Settings of [`crate::Microvms`].
#[derive(Debug, Clone)]
pub struct VmmSettings {
    /// `/usr/bin/virtiofsd`, statically linked.
    pub virtiofsd: PathBuf,
    /// A binary whose `main` calls [`crate::jail::maybe_enter`] first; normally the running one.
    pub jail_helper: PathBuf,
    /// Runtime state, one directory per VM; on a tmpfs.
    pub runtime_dir: PathBuf,
    /// Control groups, one per VM.
    pub cgroup_root: PathBuf,
    pub enforcement: Enforcement,
    pub users: UserPlan,
    /// The node is itself emulated.
    pub emulated: bool,
    pub limits: TimeLimits,
    /// Host memory for VMM and helpers, beyond the guest's.
    pub overhead_bytes: u64,
    /// Device nodes that a VMM needs.
    pub devices: Vec<PathBuf>,
    /// Host directories that jailed programs need besides; empty when all are statically linked.
    pub libraries: Vec<PathBuf>,
}

impl VmmSettings {
    /// What a node uses; `emulated` for nodes without hardware virtualisation of their own.
    pub fn node(emulated: bool) -> Self {
        Self {
            virtiofsd: "/usr/bin/virtiofsd".into(),
            jail_helper: "/proc/self/exe".into(),
            runtime_dir: "/run/croft/vm".into(),
            cgroup_root: "/sys/fs/cgroup/croft".into(),
            enforcement: Enforcement::Required,
            users: UserPlan::default(),
            emulated,
            limits: if emulated { TimeLimits::emulated() } else { TimeLimits::hardware() },
            overhead_bytes: 96 << 20,
            devices: ["/dev/kvm", "/dev/net/tun", "/dev/urandom", "/dev/null"].map(PathBuf::from).to_vec(),
            libraries: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_vms_never_overlap() {
        let plan = UserPlan::default();
        assert!(plan.vmm(plan.slots - 1) < plan.share(0));
        assert_eq!(plan.share(1) - plan.share(0), UserPlan::SHARE_USERS);
        assert!(plan.share(plan.slots - 1).checked_add(UserPlan::SHARE_USERS).is_some());
    }
}
