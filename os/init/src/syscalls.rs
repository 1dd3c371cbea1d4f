//! Which system calls anybody on a node may make (seccomp(2)): a list of what init, node, the VMMs, virtiofsd and the two
//! filesystem tools need. Everything else is refused, and so is whatever a later kernel brings. Jails and VMMs have
//! narrower filters of their own on top (`os/microvm`).
//!
//! ```text
//!   PID 1 ── ALLOWED, else asked of the gatekeeper: EPERM and a line in the log ── inherited by all
//!     └─ node ── besides: NOT_FOR_NODE, EPERM ── inherited by jails, VMMs, tools
//! ```
//! Must never allow what reaches into another process or into the kernel: tracing, other processes' memory, modules,
//! BPF, performance events, keyrings, unsigned kexec, I/O ports, swap. A filter can never be taken off again.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use libc::{c_long, sock_filter};

/// Calls that not every C library has a name for (arch/x86/entry/syscalls/syscall_64.tbl).
const QUOTACTL_FD: c_long = 443;
const CACHESTAT: c_long = 451;
const FCHMODAT2: c_long = 452;
const MAP_SHADOW_STACK: c_long = 453;
const FUTEX_WAKE: c_long = 454;
const FUTEX_WAIT: c_long = 455;
const FUTEX_REQUEUE: c_long = 456;
const STATMOUNT: c_long = 457;
const LISTMOUNT: c_long = 458;
const MSEAL: c_long = 462;

/// Files and folders. `name_to_handle_at` only names: nobody may open by handle.
const FILES: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_open,
    libc::SYS_close,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_lstat,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_access,
    libc::SYS_pipe,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_sendfile,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_getdents,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_rename,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_creat,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_symlink,
    libc::SYS_readlink,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_umask,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_mknod,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
    libc::SYS_readahead,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_fchownat,
    libc::SYS_futimesat,
    libc::SYS_newfstatat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_readlinkat,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_utimensat,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_name_to_handle_at,
    libc::SYS_statx,
    libc::SYS_copy_file_range,
    libc::SYS_close_range,
    libc::SYS_inotify_init,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    CACHESTAT,
];

/// Mounts, quota and namespaces: node and its jails make them.
const MOUNTS: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    QUOTACTL_FD,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_sethostname,
    STATMOUNT,
    LISTMOUNT,
];

/// Memory, threads, and waiting for events. io_uring is how cloud-hypervisor serves disks; only it uses it, under a
/// filter of its own.
const MEMORY_AND_THREADS: &[c_long] = &[
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_mlockall,
    libc::SYS_munlockall,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_get_mempolicy,
    libc::SYS_memfd_create,
    libc::SYS_membarrier,
    libc::SYS_pkey_mprotect,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    MAP_SHADOW_STACK,
    MSEAL,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    FUTEX_WAKE,
    FUTEX_WAIT,
    FUTEX_REQUEUE,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_setparam,
    libc::SYS_sched_getparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_getattr,
    libc::SYS_getcpu,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_create,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd,
    libc::SYS_eventfd2,
    libc::SYS_signalfd,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_io_setup,
    libc::SYS_io_destroy,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    libc::SYS_io_cancel,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Processes, signals, users, limits. Restart and kexec of a signed file are init's alone: see [`NOT_FOR_NODE`].
const PROCESSES: &[c_long] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_pause,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_getgroups,
    libc::SYS_setgroups,
    libc::SYS_setresuid,
    libc::SYS_getresuid,
    libc::SYS_setresgid,
    libc::SYS_getresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setpgid,
    libc::SYS_getpgid,
    libc::SYS_getpgrp,
    libc::SYS_setsid,
    libc::SYS_getsid,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_prctl,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_ioprio_get,
    libc::SYS_times,
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_reboot,
    libc::SYS_kexec_file_load,
];

/// Network, time, randomness, what the machine is.
const NETWORK_AND_TIME: &[c_long] = &[
    libc::SYS_ioctl,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_settime,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_getitimer,
    libc::SYS_setitimer,
    libc::SYS_alarm,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];

/// All of it.
const ALLOWED: [&[c_long]; 5] = [FILES, MOUNTS, MEMORY_AND_THREADS, PROCESSES, NETWORK_AND_TIME];

/// What PID 1 does for node, which only asks.
const NOT_FOR_NODE: &[c_long] = &[libc::SYS_reboot, libc::SYS_kexec_file_load];

/// The newest call that this list was made in sight of. Later ones are answered as an older kernel would, so that a C
/// library falls back to what it knows.
pub const NEWEST_KNOWN: c_long = 467;

/// Names of what is refused and worth a look, for the log; others are numbers there.
const NAMES: &[(c_long, &str)] = &[
    (libc::SYS_ptrace, "ptrace"),
    (libc::SYS_process_vm_readv, "process_vm_readv"),
    (libc::SYS_process_vm_writev, "process_vm_writev"),
    (libc::SYS_pidfd_getfd, "pidfd_getfd"),
    (libc::SYS_kcmp, "kcmp"),
    (libc::SYS_init_module, "init_module"),
    (libc::SYS_finit_module, "finit_module"),
    (libc::SYS_delete_module, "delete_module"),
    (libc::SYS_bpf, "bpf"),
    (libc::SYS_perf_event_open, "perf_event_open"),
    (libc::SYS_userfaultfd, "userfaultfd"),
    (libc::SYS_keyctl, "keyctl"),
    (libc::SYS_add_key, "add_key"),
    (libc::SYS_request_key, "request_key"),
    (libc::SYS_kexec_load, "kexec_load"),
    (libc::SYS_open_by_handle_at, "open_by_handle_at"),
    (libc::SYS_swapon, "swapon"),
    (libc::SYS_swapoff, "swapoff"),
    (libc::SYS_iopl, "iopl"),
    (libc::SYS_ioperm, "ioperm"),
    (libc::SYS_modify_ldt, "modify_ldt"),
    (libc::SYS_personality, "personality"),
    (libc::SYS_syslog, "syslog"),
    (libc::SYS_acct, "acct"),
    (libc::SYS_chroot, "chroot"),
    (libc::SYS_fanotify_init, "fanotify_init"),
    (libc::SYS_process_madvise, "process_madvise"),
    (libc::SYS_move_pages, "move_pages"),
    (libc::SYS_settimeofday, "settimeofday"),
    (libc::SYS_adjtimex, "adjtimex"),
];

/// `ptrace`, or `call 499`.
#[must_use]
pub fn name(call: c_long) -> String {
    NAMES
        .iter()
        .find(|(number, _)| *number == call)
        .map_or_else(|| format!("call {call}"), |(_, name)| (*name).into())
}

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
/// `AUDIT_ARCH_X86_64` (linux/audit.h).
const X86_64: u32 = 0xc000_003e;

/// What the kernel does with calls that are not allowed.
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ASK: u32 = libc::SECCOMP_RET_USER_NOTIF;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

/// A filter, ready for the kernel.
#[derive(Debug, Clone)]
pub struct Program(Vec<sock_filter>);

impl Program {
    /// `calls` get the one answer, all others the other. Calls of another architecture than this one are refused.
    fn new<'a>(calls: impl Iterator<Item = &'a c_long>, answer: u32, others: u32) -> Self {
        let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
        let compare = |value, if_so, if_not| {
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, if_so, if_not, value)
        };
        let end = |value| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, value);
        let mut program = vec![load(ARCHITECTURE_AT), compare(X86_64, 1, 0), end(REFUSE), load(NUMBER_AT)];
        for call in calls {
            program.extend([compare(*call as u32, 0, 1), end(answer)]);
        }
        program.push(end(others));
        Self(program)
    }

    /// Filters this thread and all that it starts from now on. Makes one system call. Needs `no_new_privs`.
    ///
    /// # Errors
    /// When the kernel has no seccomp, or something in the way.
    pub fn install(&self) -> io::Result<()> {
        self.set(0).map(drop)
    }

    fn set(&self, flags: libc::c_ulong) -> io::Result<libc::c_int> {
        let length = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
        let program = libc::sock_fprog { len: length, filter: self.0.as_ptr().cast_mut() };
        // SAFETY: the program lives through the call, its length is its own, and the kernel only reads it.
        #[allow(unsafe_code, reason = "seccomp has no wrapper in rustix or nix")]
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                std::ptr::from_ref(&program),
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
    }
}

fn instruction(code: u32, if_so: u8, if_not: u8, value: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: if_so, jf: if_not, k: value }
}

fn allowed() -> impl Iterator<Item = &'static c_long> {
    ALLOWED.into_iter().flatten()
}

/// The list as a filter that refuses without a word.
#[must_use]
pub fn silent() -> Program {
    Program::new(allowed(), ALLOW, REFUSE)
}

/// What node, and all that it starts, is refused besides.
#[must_use]
pub fn not_for_node() -> Program {
    Program::new(NOT_FOR_NODE.iter(), REFUSE, ALLOW)
}

/// Filters this thread and all that it starts from now on; whoever holds what comes back answers what is not allowed.
/// When that is closed, such calls look unknown to the kernel.
///
/// # Errors
/// When the kernel has no seccomp, or somebody else answers for this process already.
pub fn install_asking() -> io::Result<OwnedFd> {
    let descriptor = Program::new(allowed(), ALLOW, ASK).set(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: the kernel has just made it for this call, and nobody else knows it.
    #[allow(unsafe_code, reason = "the descriptor comes as a number")]
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// With arguments that do nothing, should a filter let it through.
    fn call(number: c_long) -> Result<c_long, i32> {
        // SAFETY: null pointers, descriptor -1 and unknown commands: the kernel refuses each of these calls by itself.
        #[allow(unsafe_code, reason = "calls that nobody wraps are the subject")]
        let result = unsafe { libc::syscall(number, -1, 0, 0, 0, 0, 0) };
        if result < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(result) }
    }

    /// In a thread of its own: a filter can't be taken off again.
    fn filtered<T: Send + 'static>(program: Program, work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            program.install().unwrap();
            work()
        });
        thread.join().unwrap()
    }

    /// What no program on a node may ever do, whatever else the list comes to hold.
    const NEVER: &[c_long] = &[
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_process_madvise,
        libc::SYS_kcmp,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_kexec_load,
        libc::SYS_open_by_handle_at,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_ioperm,
        libc::SYS_modify_ldt,
        libc::SYS_syslog,
        libc::SYS_chroot,
        libc::SYS_fanotify_init,
        libc::SYS_move_pages,
        libc::SYS_lookup_dcookie,
        libc::SYS_uselib,
        libc::SYS_remap_file_pages,
    ];

    #[test]
    fn no_call_is_listed_twice_and_none_that_nobody_may_ever_make() {
        let mut seen = BTreeSet::new();
        for number in allowed() {
            assert!(seen.insert(*number), "call {number} is listed twice");
            assert!(*number <= NEWEST_KNOWN, "call {number}");
        }
        for number in NEVER {
            assert!(!seen.contains(number), "{} is allowed", name(*number));
        }
        // The kernel takes 4,096 instructions.
        assert!(silent().0.len() < 4_096, "{}", silent().0.len());
    }

    #[test]
    fn what_nobody_may_ever_do_is_refused() {
        let answers =
            filtered(silent(), || NEVER.iter().map(|number| (*number, call(*number))).collect::<Vec<_>>());
        for (number, answer) in answers {
            assert_eq!(answer, Err(libc::EPERM), "{}", name(number));
        }
    }

    #[test]
    fn files_threads_programs_and_sockets_work_under_the_filter() {
        filtered(silent(), || {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("a"), "text").unwrap();
            std::fs::rename(folder.path().join("a"), folder.path().join("b")).unwrap();
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            let output = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            let status = String::from_utf8(output.stdout).unwrap();
            assert!(status.lines().any(|line| line == "Seccomp:\t2"), "it is inherited: {status}");
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            let mut byte = [0];
            assert_eq!(socket.recv(&mut byte).unwrap(), 1);
        });
    }

    #[test]
    fn node_can_neither_restart_the_machine_nor_load_a_kernel_and_init_can() {
        let both = [libc::SYS_reboot, libc::SYS_kexec_file_load];
        for number in both {
            assert_eq!(filtered(not_for_node(), move || call(number)), Err(libc::EPERM));
            assert!(allowed().any(|allowed| *allowed == number), "init needs {number}");
        }
        filtered(not_for_node(), || std::fs::read("/proc/self/status").unwrap());
    }

    #[test]
    fn a_refused_call_has_a_name_or_a_number() {
        assert_eq!(name(libc::SYS_ptrace), "ptrace");
        assert_eq!(name(499), "call 499");
    }
}
