//! What one life of a VM holds: directory, control group, sockets, processes. Made by Preparing, removed by
//! Stopping, also when only a part of it was made.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Duration, timeout};

use super::{Command, Commands, Owner};
use crate::cgroup::{Cgroup, CgroupError, Limits};
use crate::guest::{GuestEvent, GuestLink, ListenError};
use crate::jail::{JailMount, JailSpec, JailUser};
use crate::process::{Ended, Jailed, SpawnError, read_console};
use crate::settings::UserPlan;
use crate::spec::{KernelError, KernelFormat, Share, kernel_command_line};
use crate::vmm::{ConsoleKind, InputKind, Machine, MachineDisk, MachineNic, MachineShare};

/// Serial of the root image's disk.
const ROOT_SERIAL: &str = "croft-root";
/// Threads and processes of VMM and helpers, beyond one per virtual processor.
const EXTRA_PIDS: u32 = 192;
/// Descriptors of a VMM: a handful per device.
const VMM_OPEN_FILES: u64 = 4096;
/// Descriptors of virtiofsd: one per file that the guest knows.
const SHARE_OPEN_FILES: u64 = 65_536;

// Paths in a VMM's jail.
const IN_JAIL_VMM: &str = "/vmm";
const IN_JAIL_KERNEL: &str = "/kernel";
const IN_JAIL_INITRAMFS: &str = "/initramfs";
const IN_JAIL_DISKS: &str = "/disks";
const IN_JAIL_RUN: &str = "/run";
// Paths in virtiofsd's jail.
const IN_JAIL_VIRTIOFSD: &str = "/virtiofsd";
const IN_JAIL_SHARE: &str = "/share";

/// Why a VM could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("{what} {path} can't be used: {remedy}")]
    Missing { what: &'static str, path: PathBuf, remedy: &'static str, source: io::Error },
    #[error("/dev/kvm can't be opened: enable virtualisation (VT-x or AMD-V) in the firmware")]
    NoKvm { source: io::Error },
    #[error("disk {path} is in use by another process: is another VM running on it? stop that one first")]
    Locked { path: PathBuf },
    #[error("can't make {what} {path}")]
    Make { what: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("can't make a terminal for the VMM: is /dev/ptmx there?")]
    Terminal(#[source] io::Error),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

/// Which process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProcessKind {
    Vmm,
    /// virtiofsd of a share.
    Helper(String),
}

/// What can happen to a life.
#[derive(Debug)]
pub(crate) enum LifeEvent {
    Guest(GuestEvent),
    Ended(ProcessKind, Ended),
    Command(Command),
}

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Life {
    /// Sockets and the console pipe; the VMM sees it as `/run`.
    run: PathBuf,
    /// Mount points of the jails' roots.
    roots: PathBuf,
    machine: Arc<Machine>,
    cgroup: Option<Cgroup>,
    link: Option<GuestLink>,
    /// The link told everything it will.
    link_closed: bool,
    /// The guest is connected, as far as events that were read say.
    connected: bool,
    ends: mpsc::Receiver<(ProcessKind, Ended)>,
    ends_sender: mpsc::Sender<(ProcessKind, Ended)>,
    running: Vec<ProcessKind>,
    tasks: Vec<JoinHandle<()>>,
    /// The VMM's terminal hangs up when this closes.
    terminal: Option<OwnedFd>,
}

impl Drop for Life {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Life {
    pub(crate) fn new(owner: &Owner) -> Self {
        let base = owner.settings.runtime_dir.join(owner.spec.id.as_str());
        // At most the shares and the VMM.
        let (ends_sender, ends) = mpsc::channel(owner.spec.shares.len() + 1);
        Self {
            run: base.join("run"),
            roots: base.join("roots"),
            machine: Arc::new(machine(owner, KernelFormat::Elf)),
            cgroup: None,
            link: None,
            link_closed: false,
            connected: false,
            ends,
            ends_sender,
            running: Vec::new(),
            tasks: Vec::new(),
            terminal: None,
        }
    }

    pub(crate) fn api_socket(&self) -> PathBuf {
        self.run.join("api.sock")
    }

    pub(crate) fn machine(&self) -> Arc<Machine> {
        Arc::clone(&self.machine)
    }

    pub(crate) fn was_out_of_memory(&self) -> bool {
        self.cgroup.as_ref().is_some_and(Cgroup::was_out_of_memory)
    }

    /// Makes everything and starts all processes.
    pub(crate) fn prepare(&mut self, owner: &Owner) -> Result<(), PrepareError> {
        check_files(owner)?;
        let format = KernelFormat::detect(&owner.spec.kernel)?;
        self.machine = Arc::new(machine(owner, format));
        self.make_directories(owner)?;
        let limits = Limits {
            cpu_millis: owner.spec.cpu_millis,
            memory_bytes: owner.spec.memory_bytes + owner.settings.overhead_bytes,
            pids: u32::from(owner.spec.vcpus) + EXTRA_PIDS,
        };
        self.cgroup = Some(owner.cgroups.create(owner.spec.id.as_str(), limits)?);
        let user = owner.settings.users.vmm(owner.slot);
        self.link = Some(GuestLink::listen(
            &self.run.join(format!("vsock.sock_{}", croft_guest::wire::CONTROL_PORT)),
            user,
            owner.spec.guest.clone(),
            owner.logs.clone(),
            owner.settings.limits.guest_silence,
        )?);
        for (position, share) in owner.spec.shares.iter().enumerate() {
            self.start_virtiofsd(owner, position, share)?;
        }
        self.start_vmm(owner)
    }

    fn make_directories(&self, owner: &Owner) -> Result<(), PrepareError> {
        let user = owner.settings.users.vmm(owner.slot);
        for path in [&self.run, &self.roots] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|source| PrepareError::Make { what: "the directory", path: path.clone(), source })?;
        }
        chown(&self.run, Some(user), Some(user)).map_err(|source| PrepareError::Make {
            what: "the directory",
            path: self.run.clone(),
            source,
        })
    }

    /// A listening socket, for the standard input of a process.
    fn listen(&self, name: &str, user: Option<u32>) -> Result<OwnedFd, PrepareError> {
        let path = self.run.join(name);
        let bound = UnixListener::bind(&path).and_then(|listener| {
            chown(&path, user, user)?;
            Ok(listener.into())
        });
        bound.map_err(|source| PrepareError::Make { what: "the socket", path, source })
    }

    fn jail(&self, owner: &Owner, name: &str) -> Result<JailSpec, PrepareError> {
        let root = self.roots.join(name);
        fs::create_dir(&root).map_err(|source| PrepareError::Make {
            what: "the directory",
            path: root.clone(),
            source,
        })?;
        let cgroup = self.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()).unwrap_or_default();
        let libraries = owner.settings.libraries.iter().map(|path| visible(path, path, true));
        Ok(JailSpec {
            root,
            cgroup,
            netns: None,
            taps: Vec::new(),
            user: JailUser::Plain { id: owner.settings.users.vmm(owner.slot) },
            mounts: libraries.collect(),
            devices: Vec::new(),
            proc: false,
            program: PathBuf::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            open_files: VMM_OPEN_FILES,
            may_unshare: false,
        })
    }

    fn start_virtiofsd(&mut self, owner: &Owner, position: usize, share: &Share) -> Result<(), PrepareError> {
        let settings = &owner.settings;
        let vmm_user = settings.users.vmm(owner.slot);
        let input = self.listen(&share_socket(position), Some(vmm_user))?;
        let name = format!("virtiofsd-{}", share.tag);
        let mut jail = self.jail(owner, &name)?;
        let first = settings.users.share(owner.slot);
        jail.user = JailUser::Namespace { first, count: UserPlan::SHARE_USERS };
        jail.mounts.push(visible(&settings.virtiofsd, IN_JAIL_VIRTIOFSD, true));
        jail.mounts.push(JailMount {
            source: share.dir.clone(),
            target: IN_JAIL_SHARE.into(),
            readonly: share.readonly,
            executable: false,
            map_users: true,
        });
        jail.proc = true;
        jail.may_unshare = true;
        jail.open_files = SHARE_OPEN_FILES;
        jail.program = IN_JAIL_VIRTIOFSD.into();
        let flags = [
            "--fd=0",
            "--shared-dir=/share",
            // The jail is the sandbox.
            "--sandbox=none",
            "--seccomp=kill",
            // They would need a capability of the host.
            "--inode-file-handles=never",
            // The jail has set it.
            "--rlimit-nofile=0",
            "--log-level=warn",
        ];
        jail.arguments = flags.map(str::to_owned).to_vec();
        if share.readonly {
            jail.arguments.push("--readonly".to_owned());
        }
        let process = Jailed::spawn(&settings.jail_helper, &name, &jail, input, None)?;
        self.watch(ProcessKind::Helper(name), process);
        Ok(())
    }

    fn start_vmm(&mut self, owner: &Owner) -> Result<(), PrepareError> {
        let (settings, spec) = (&owner.settings, &owner.spec);
        let mut jail = self.jail(owner, "vmm")?;
        jail.netns.clone_from(&spec.netns);
        jail.taps = spec.nics.iter().map(|nic| nic.tap.clone()).collect();
        jail.devices.clone_from(&settings.devices);
        jail.mounts.push(visible(owner.vmm.binary(), IN_JAIL_VMM, true));
        jail.mounts.push(visible(&spec.kernel, IN_JAIL_KERNEL, false));
        jail.mounts.push(visible(&spec.initramfs, IN_JAIL_INITRAMFS, false));
        let writable = |source: &Path, target: PathBuf, readonly, map_users| JailMount {
            source: source.to_owned(),
            target,
            readonly,
            executable: false,
            map_users,
        };
        jail.mounts.push(writable(&self.run, IN_JAIL_RUN.into(), false, false));
        jail.mounts.push(writable(&spec.root.path, disk_path(0), true, true));
        for (position, disk) in spec.disks.iter().enumerate() {
            jail.mounts.push(writable(&disk.path, disk_path(position + 1), disk.readonly, true));
        }
        jail.program = IN_JAIL_VMM.into();
        jail.arguments = owner.vmm.arguments(&self.machine);
        let input = match owner.vmm.input() {
            InputKind::ApiSocket => self.listen("api.sock", None)?,
            InputKind::Terminal => self.make_terminal()?,
        };
        let output = match owner.vmm.console() {
            ConsoleKind::Output => Some(owner.console.clone()),
            ConsoleKind::Pipe => {
                self.make_console(owner)?;
                None
            }
        };
        let process = Jailed::spawn(&settings.jail_helper, owner.vmm.name(), &jail, input, output)?;
        self.watch(ProcessKind::Vmm, process);
        Ok(())
    }

    fn make_console(&mut self, owner: &Owner) -> Result<(), PrepareError> {
        let path = self.run.join("console");
        let failed = |source| PrepareError::Make { what: "the console pipe", path: path.clone(), source };
        let user = owner.settings.users.vmm(owner.slot);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .map_err(|error| failed(error.into()))?;
        chown(&path, Some(user), Some(user)).map_err(failed)?;
        // Also open for writing, so that it never ends while the VMM reboots the guest.
        let pipe = tokio::net::unix::pipe::OpenOptions::new().read_write(true).open_receiver(&path);
        self.tasks.push(read_console(pipe.map_err(failed)?, owner.console.clone()));
        Ok(())
    }

    /// Keeps the controlling side; returns the other for the VMM.
    fn make_terminal(&mut self) -> Result<OwnedFd, PrepareError> {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let made = openpt(flags).and_then(|controller| {
            grantpt(&controller)?;
            unlockpt(&controller)?;
            // By descriptor: the node needs no devpts at a certain path.
            let terminal = ioctl_tiocgptpeer(&controller, flags)?;
            Ok((controller, terminal))
        });
        let (controller, terminal) = made.map_err(|error| PrepareError::Terminal(error.into()))?;
        self.terminal = Some(controller);
        Ok(terminal)
    }

    fn watch(&mut self, kind: ProcessKind, mut process: Jailed) {
        tracing::debug!(name = process.name, pid = process.id(), "started");
        self.running.push(kind.clone());
        let ends = self.ends_sender.clone();
        self.tasks.push(tokio::spawn(async move {
            let ended = process.wait().await;
            // There is room for the end of every process.
            let _ = ends.send((kind, ended)).await;
        }));
    }

    pub(crate) fn vmm_is_running(&self) -> bool {
        self.running.contains(&ProcessKind::Vmm)
    }

    /// True when everything that a guest said before its VMM ended was read.
    pub(crate) fn guest_has_left(&self) -> bool {
        self.link_closed || !self.connected
    }

    /// The next thing that happens; guest first, whose last words explain the end of its VMM. Cancel-safe.
    pub(super) async fn next(&mut self, commands: &mut Commands) -> LifeEvent {
        loop {
            tokio::select! {
                biased;
                event = next_of_guest(&mut self.link), if !self.link_closed => match event {
                    Some(event) => {
                        match event {
                            GuestEvent::Hello { .. } => self.connected = true,
                            GuestEvent::Disconnected => self.connected = false,
                            _ => {}
                        }
                        return LifeEvent::Guest(event);
                    }
                    None => self.link_closed = true,
                },
                Some((kind, ended)) = self.ends.recv() => {
                    self.running.retain(|running| *running != kind);
                    return LifeEvent::Ended(kind, ended);
                }
                command = commands.next() => return LifeEvent::Command(command),
            }
        }
    }

    /// Waits for the end of any process. Cancel-safe.
    pub(crate) async fn any_process_end(&mut self) -> (ProcessKind, Ended) {
        match self.ends.recv().await {
            Some((kind, ended)) => {
                self.running.retain(|running| *running != kind);
                (kind, ended)
            }
            // This life holds a sender itself.
            None => std::future::pending().await,
        }
    }

    /// As [`Life::any_process_end`], at most for `limit`.
    pub(crate) async fn process_end(&mut self, limit: Duration) -> Option<(ProcessKind, Ended)> {
        timeout(limit, self.any_process_end()).await.ok()
    }

    /// Pings the VMM from now on; answers come over the channel.
    pub(crate) fn start_pings(&mut self, owner: &Owner) -> mpsc::Receiver<Result<(), String>> {
        let (sender, receiver) = mpsc::channel(1);
        let (vmm, limits, api) = (Arc::clone(&owner.vmm), owner.settings.limits, self.api_socket());
        self.tasks.push(tokio::spawn(async move {
            loop {
                tokio::time::sleep(limits.ping_interval).await;
                let answer = vmm.ping(&api, limits.ping).await.map_err(|error| crate::error_chain(&error));
                if sender.send(answer).await.is_err() {
                    return;
                }
            }
        }));
        receiver
    }

    pub(crate) async fn stop_guest(&self, grace: Duration) {
        if let Some(link) = &self.link {
            link.stop(grace).await;
        }
    }

    /// Kills what is left and removes everything. Failures are logged: there is nobody who could do better.
    pub(crate) async fn remove(mut self, owner: &Owner) {
        let id = &owner.spec.id;
        let limit = owner.settings.limits.kill;
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.kill(limit).await
        {
            tracing::error!(vm = %id, error = crate::error_chain(&error), "killing a VM");
        }
        while !self.running.is_empty() && self.process_end(limit).await.is_some() {}
        self.link = None;
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.remove()
        {
            tracing::error!(vm = %id, error = crate::error_chain(&error), "removing a control group");
        }
        let base = owner.settings.runtime_dir.join(id.as_str());
        match fs::remove_dir_all(&base) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(vm = %id, path = %base.display(), %error, "removing a directory");
            }
            _ => {}
        }
    }
}

async fn next_of_guest(link: &mut Option<GuestLink>) -> Option<GuestEvent> {
    match link {
        Some(link) => link.events.recv().await,
        None => None,
    }
}

/// By position: tags would make paths too long for sockets.
fn share_socket(position: usize) -> String {
    format!("fs{position}.sock")
}

fn disk_path(position: usize) -> PathBuf {
    Path::new(IN_JAIL_DISKS).join(position.to_string())
}

fn visible(source: &Path, target: impl AsRef<OsStr>, executable: bool) -> JailMount {
    let target = PathBuf::from(target.as_ref());
    JailMount { source: source.to_owned(), target, readonly: true, executable, map_users: false }
}

fn machine(owner: &Owner, kernel_format: KernelFormat) -> Machine {
    let spec = &owner.spec;
    let root = MachineDisk { path: disk_path(0), serial: ROOT_SERIAL.to_owned(), readonly: true };
    let disks = spec.disks.iter().enumerate().map(|(position, disk)| MachineDisk {
        path: disk_path(position + 1),
        serial: disk.serial.clone(),
        readonly: disk.readonly,
    });
    let run = Path::new(IN_JAIL_RUN);
    let shares = spec.shares.iter().enumerate().map(|(position, share)| MachineShare {
        tag: share.tag.clone(),
        socket: run.join(share_socket(position)),
    });
    Machine {
        vcpus: spec.vcpus,
        memory_bytes: spec.memory_bytes,
        kernel: IN_JAIL_KERNEL.into(),
        kernel_format,
        initramfs: IN_JAIL_INITRAMFS.into(),
        command_line: kernel_command_line(&spec.root, owner.settings.emulated),
        disks: std::iter::once(root).chain(disks).collect(),
        shares: shares.collect(),
        nics: spec.nics.iter().map(|nic| MachineNic { tap: nic.tap.clone(), mac: nic.mac_text() }).collect(),
        vsock: run.join("vsock.sock"),
        console: run.join("console"),
    }
}

/// Everything that must be there, each with what to do when it is not.
fn check_files(owner: &Owner) -> Result<(), PrepareError> {
    let (spec, settings) = (&owner.spec, &owner.settings);
    let complete = "is the node image complete?";
    let fetched = "has the image been fetched?";
    let volume = "has the volume been made?";
    let mut files: Vec<(&'static str, &Path, &'static str)> = vec![
        ("the VMM", owner.vmm.binary(), complete),
        ("the guest's initramfs", &spec.initramfs, complete),
        ("the image", &spec.root.path, fetched),
    ];
    files.extend(spec.disks.iter().map(|disk| ("the disk", disk.path.as_path(), volume)));
    files.extend(spec.shares.iter().map(|share| ("the shared volume", share.dir.as_path(), volume)));
    if !spec.shares.is_empty() {
        files.push(("virtiofsd", &settings.virtiofsd, complete));
    }
    if let Some(netns) = &spec.netns {
        files.push(("the network namespace", netns, "is the deployment's network up?"));
    }
    for (what, path, remedy) in files {
        let missing = |source| PrepareError::Missing { what, path: path.to_owned(), remedy, source };
        let metadata = fs::metadata(path).map_err(missing)?;
        let is_program = what == "the VMM" || what == "virtiofsd";
        if is_program && metadata.permissions().mode() & 0o111 == 0 {
            return Err(missing(io::Error::other("it is not executable")));
        }
        let is_share = what == "the shared volume";
        if is_share && !metadata.is_dir() {
            return Err(missing(io::Error::other("it is not a directory")));
        }
    }
    for disk in spec.disks.iter().filter(|disk| !disk.readonly) {
        check_unlocked(&disk.path)?;
    }
    if settings.devices.iter().any(|device| device.ends_with("kvm")) {
        let kvm = fs::File::options().read(true).write(true).open("/dev/kvm");
        kvm.map_err(|source| PrepareError::NoKvm { source })?;
    }
    Ok(())
}

/// The VMM takes the lock that counts; this one gives the reason in words. cloud-hypervisor locks by open file
/// description, alioth by flock.
fn check_unlocked(path: &Path) -> Result<(), PrepareError> {
    let missing = |source| PrepareError::Missing {
        what: "the disk",
        path: path.to_owned(),
        remedy: "can the node write to it?",
        source,
    };
    let file = fs::File::options().read(true).write(true).open(path).map_err(missing)?;
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let by_description = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).is_ok();
    let by_file = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok();
    // Both locks end with the file.
    if by_description && by_file { Ok(()) } else { Err(PrepareError::Locked { path: path.to_owned() }) }
}
