//! The few things that neither the standard library nor rustix nor nix wrap safely, each with its argument,
//! and the system call filter of every jailed program.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::unistd::{ForkResult, Pid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::JailError;

/// Proof that this process has one thread. Nothing here starts another one.
#[derive(Debug, Clone, Copy)]
pub(super) struct OneThread(());

impl OneThread {
    pub(super) fn check() -> Result<Self, JailError> {
        let tasks = std::fs::read_dir("/proc/self/task");
        match tasks.map_err(|error| JailError::step("counting threads", error))?.count() {
            1 => Ok(Self(())),
            threads => Err(JailError::Threads(threads)),
        }
    }
}

/// Forks; the child gets `None`.
pub(super) fn fork(_alone: OneThread) -> Result<Option<Pid>, JailError> {
    // SAFETY: there is one thread, so no lock can be held by another one that the child would miss.
    #[allow(unsafe_code, reason = "fork has no safe wrapper; the process has one thread")]
    let result = unsafe { nix::unistd::fork() };
    match result.map_err(|error| JailError::step("forking", error))? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Makes every descriptor above standard error close when a program is executed.
pub(super) fn close_on_exec_above_stderr() -> io::Result<()> {
    // SAFETY: only sets flags of descriptors; no descriptor changes its owner or is closed here.
    #[allow(unsafe_code, reason = "close_range has no safe wrapper")]
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Attributes of a detached mount.
pub(super) struct MountAttributes<'a> {
    pub(super) set: u64,
    pub(super) users: Option<BorrowedFd<'a>>,
}

/// `mount_setattr` on a mount from `open_tree`.
pub(super) fn set_mount_attributes(mount: &OwnedFd, attributes: &MountAttributes<'_>) -> io::Result<()> {
    let mut set = attributes.set;
    let mut users = 0;
    if let Some(fd) = attributes.users {
        set |= libc::MOUNT_ATTR_IDMAP;
        users = fd.as_raw_fd() as u64;
    }
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: users };
    let empty: &CStr = c"";
    // SAFETY: both pointers are valid for the call, the size is that of the structure, and the kernel only
    // reads them.
    #[allow(unsafe_code, reason = "mount_setattr has no safe wrapper")]
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

mod ioctls {
    // linux/if_tun.h
    nix::ioctl_write_ptr_bad!(
        tun_set_iff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int!(tun_set_owner, b'T', 204);
    nix::ioctl_write_int!(tun_set_group, b'T', 206);
}

/// Lets `user`, with the group of the same number, attach to the persistent tap `name`. `tun` is an open `/dev/net/tun`.
pub(super) fn give_tap(tun: &impl AsFd, name: &str, user: u32) -> io::Result<()> {
    let mut interface = [0; libc::IFNAMSIZ];
    for (to, from) in interface.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let request =
        libc::ifreq { ifr_name: interface, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    let fd = tun.as_fd().as_raw_fd();
    // SAFETY: the request outlives the call and the descriptor is open; both calls only read what they get.
    #[allow(unsafe_code, reason = "ioctls on taps have no safe wrapper")]
    unsafe {
        ioctls::tun_set_iff(fd, &raw const request)?;
        ioctls::tun_set_owner(fd, libc::c_ulong::from(user))?;
        // Whoever made the tap may have named a group, which then has to fit too.
        ioctls::tun_set_group(fd, libc::c_ulong::from(user))?;
    }
    Ok(())
}

/// Calls that no VMM and no virtiofsd needs, and with which one that was taken over could reach further.
/// cloud-hypervisor and virtiofsd put filters of their own on top that list what they do need.
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// Namespaces that a call must not make.
const NAMESPACES: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u64;

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    action: i32,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let action = SeccompAction::Errno(action as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, action, TargetArch::x86_64)?.try_into()
}

/// The filters: denied calls, new namespaces by `clone` and `unshare`, and `clone3`, whose flags a filter
/// can't read, as if the kernel did not know it (the C library then uses `clone`).
fn filters(may_unshare: bool) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let makes_namespace = |bit: u64| {
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bit), bit)?;
        SeccompRule::new(vec![condition])
    };
    let rules = (0..64)
        .map(|shift| 1_u64 << shift)
        .filter(|bit| NAMESPACES & bit != 0)
        .map(makes_namespace)
        .collect::<Result<Vec<_>, _>>()?;
    denied.insert(libc::SYS_clone, rules.clone());
    denied.insert(libc::SYS_unshare, if may_unshare { rules } else { Vec::new() });
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok(vec![filter(denied, libc::EPERM)?, filter(unknown, libc::ENOSYS)?])
}

/// Filters this process and everything it executes. Needs `no_new_privs`.
pub(super) fn restrict(may_unshare: bool) -> Result<(), JailError> {
    let failed = |error: &dyn std::fmt::Display| {
        JailError::step("filtering system calls", io::Error::other(error.to_string()))
    };
    for program in filters(may_unshare).map_err(|error| failed(&error))? {
        seccompiler::apply_filter(&program).map_err(|error| failed(&error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_filters_compile() {
        assert_eq!(filters(false).unwrap().len(), 2);
        assert_eq!(filters(true).unwrap().len(), 2);
    }

    /// In a thread of its own: a filter can't be taken off again.
    #[test]
    fn denied_calls_fail_and_others_work() {
        std::thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            restrict(false).unwrap();
            let denied = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).unwrap_err();
            assert_eq!(denied, nix::errno::Errno::EPERM);
            let denied = nix::unistd::sethostname("x").unwrap_err();
            assert_eq!(denied, nix::errno::Errno::EPERM);
            std::fs::read("/proc/self/status").unwrap();
            // Threads still start, although clone3 looks unknown.
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
        })
        .join()
        .unwrap();
    }
}
