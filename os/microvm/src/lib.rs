//! Drives a virtual machine monitor: one jailed process per microVM, with a control group of its own, helpers
//! for shared volumes, and the connection to the guest's PID 1.
//!
//! ```text
//! Microvms ──start──> Microvm (handle)
//!                        │ queue, status, logs
//!                     owner (one task per VM)
//!                        ├─ jail: VMM ............ vmm::{CloudHypervisor, Alioth}
//!                        ├─ jail: virtiofsd, one per share
//!                        ├─ control group
//!                        └─ guest link (vsock)
//! ```
//!
//! Must never trust a guest or a VMM, run either with more than it needs, or leave anything behind when a VM
//! ends. It knows nothing about contracts, images or networks: paths, taps and limits are given.

mod cgroup;
mod clock;
#[doc(hidden)]
pub mod fuzzing;
mod guest;
pub mod jail;
pub mod logs;
mod owner;
pub mod policy;
mod process;
mod settings;
pub mod spec;
pub mod status;
pub mod vmm;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub use cgroup::{CgroupError, Enforcement, Usage};
pub use croft_guest::wire;
pub use settings::{TimeLimits, UserPlan, VmmSettings};

use cgroup::CgroupRoot;
use logs::Logs;
use owner::{Command, Owner};
use spec::{SpecError, VmId, VmSpec};
use status::{EndCause, Phase, VmStatus};
use vmm::Vmm;

/// Commands that may wait for a busy owner.
const QUEUE: usize = 8;
/// What a Unix socket's path may have, without the NUL (unix(7)).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Longest that is added to the runtime directory: the name of a VM and `/run/vsock.sock_1024`.
const LONGEST_SOCKET_BYTES: usize = 1 + 40 + 20;

/// An error with its sources, for one line of a log or a message.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Why VMs can't be run here at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the VMM {path} can't be used: is it in the node image?")]
    NoVmm { path: PathBuf, source: io::Error },
    #[error("/dev/kvm can't be opened: enable virtualisation (VT-x or AMD-V) in the firmware")]
    NoKvm { source: io::Error },
    #[error("can't make the runtime directory {path}")]
    RuntimeDirectory { path: PathBuf, source: io::Error },
    #[error("the runtime directory {path} is too long for sockets below it: use at most 46 bytes")]
    LongPath { path: PathBuf },
    #[error("control groups can't be used")]
    Cgroup(#[from] CgroupError),
}

/// All microVMs of a node.
#[derive(Debug)]
pub struct Microvms {
    settings: Arc<VmmSettings>,
    vmm: Arc<dyn Vmm>,
    cgroups: CgroupRoot,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    slots: BTreeSet<u16>,
    vms: BTreeMap<VmId, u16>,
}

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Microvms {
    /// Checks what every VM needs, and ends what an earlier run of this process left behind.
    pub async fn open(settings: VmmSettings, vmm: Arc<dyn Vmm>) -> Result<Self, OpenError> {
        let path = vmm.binary().to_owned();
        fs::metadata(&path).map_err(|source| OpenError::NoVmm { path, source })?;
        if settings.devices.iter().any(|device| device.ends_with("kvm")) {
            let kvm = fs::File::options().read(true).write(true).open("/dev/kvm");
            kvm.map_err(|source| OpenError::NoKvm { source })?;
        }
        let path = settings.runtime_dir.clone();
        if path.as_os_str().len() + LONGEST_SOCKET_BYTES > MAX_SOCKET_PATH_BYTES {
            return Err(OpenError::LongPath { path });
        }
        fs::create_dir_all(&path).map_err(|source| OpenError::RuntimeDirectory { path, source })?;
        let cgroups = CgroupRoot::open(&settings.cgroup_root, settings.enforcement)?;
        let microvms = Self {
            settings: Arc::new(settings),
            vmm,
            cgroups,
            running: Arc::new(Mutex::new(Running::default())),
        };
        microvms.sweep().await?;
        Ok(microvms)
    }

    /// Kills VMs of an earlier run: their owner is gone, and the ledger says what has to run.
    async fn sweep(&self) -> Result<(), OpenError> {
        let root = &self.settings.runtime_dir;
        let unreadable = |source| OpenError::RuntimeDirectory { path: root.clone(), source };
        for name in self.cgroups.children().map_err(unreadable)? {
            tracing::warn!(vm = name, "ending a VM that an earlier run left");
            let cgroup = self.cgroups.existing(&name);
            cgroup.kill(self.settings.limits.kill).await?;
            cgroup.remove()?;
        }
        for entry in fs::read_dir(root).map_err(unreadable)?.filter_map(Result::ok) {
            fs::remove_dir_all(entry.path()).map_err(unreadable)?;
        }
        Ok(())
    }

    /// Starts a VM; returns at once. What goes wrong later is in its status.
    pub fn start(&self, spec: VmSpec) -> Result<Microvm, SpecError> {
        spec.validate()?;
        let slot = self.reserve(&spec.id)?;
        let (commands, queue) = mpsc::channel(QUEUE);
        let status = watch::Sender::new(VmStatus {
            phase: Phase::Preparing,
            since_ms: clock::wall_ms(),
            restarts: 0,
            last_end: None,
            health: BTreeMap::new(),
            timings: None,
            backoff: None,
        });
        let handle = Microvm {
            id: spec.id.clone(),
            commands,
            status: status.subscribe(),
            logs: Logs::new(&spec.logs),
            console: Logs::new(&spec.console),
            cgroup: self.settings.cgroup_root.join(spec.id.as_str()),
        };
        let release = Release { running: Arc::clone(&self.running), id: spec.id.clone() };
        let owner = Owner {
            settings: Arc::clone(&self.settings),
            vmm: Arc::clone(&self.vmm),
            cgroups: self.cgroups.clone(),
            spec,
            slot,
            logs: handle.logs.clone(),
            console: handle.console.clone(),
            status,
        };
        tokio::spawn(async move {
            owner.run(queue, release).await;
        });
        Ok(handle)
    }

    fn reserve(&self, id: &VmId) -> Result<u16, SpecError> {
        let mut running = lock(&self.running);
        if running.vms.contains_key(id) {
            return Err(SpecError::Duplicate { id: id.clone() });
        }
        let limit = self.settings.users.slots;
        let slot =
            (0..limit).find(|slot| !running.slots.contains(slot)).ok_or(SpecError::NoSlot { limit })?;
        running.slots.insert(slot);
        running.vms.insert(id.clone(), slot);
        Ok(slot)
    }
}

/// Frees the slot of a VM when its owner is gone.
#[derive(Debug)]
struct Release {
    running: Arc<Mutex<Running>>,
    id: VmId,
}

impl Drop for Release {
    fn drop(&mut self) {
        let mut running = lock(&self.running);
        if let Some(slot) = running.vms.remove(&self.id) {
            running.slots.remove(&slot);
        }
    }
}

/// A running VM. When the last clone is dropped, the VM is stopped.
#[derive(Debug, Clone)]
pub struct Microvm {
    id: VmId,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<VmStatus>,
    logs: Logs,
    console: Logs,
    cgroup: PathBuf,
}

impl Microvm {
    pub fn id(&self) -> &VmId {
        &self.id
    }

    /// The present picture.
    pub fn status(&self) -> VmStatus {
        self.status.borrow().clone()
    }

    /// Changes of the picture.
    pub fn watch(&self) -> watch::Receiver<VmStatus> {
        self.status.clone()
    }

    /// Output of the workload.
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// Output of the guest kernel and its PID 1.
    pub fn console(&self) -> &Logs {
        &self.console
    }

    /// Processor time and memory of VMM and helpers since the last start.
    pub fn usage(&self) -> Usage {
        cgroup::usage(&self.cgroup)
    }

    /// Asks the VM to end for good: the stop signal, `grace`, then force. Returns at once; may be repeated
    /// with a shorter grace.
    pub async fn request_stop(&self, grace: Duration) {
        // Fails only when it has ended.
        let _ = self.commands.send(Command::Stop { grace }).await;
    }

    /// Ends the VM and waits until nothing of it is left.
    pub async fn stop(&self, grace: Duration) -> EndCause {
        self.request_stop(grace).await;
        self.ended().await
    }

    /// Waits until the VM has ended for good; returns why.
    pub async fn ended(&self) -> EndCause {
        let mut status = self.status.clone();
        // Fails only when the owner is gone, which ends VMs first.
        let _ = status.wait_for(|status| status.phase == Phase::Ended).await;
        let cause = status.borrow().last_end.clone();
        cause.unwrap_or(EndCause::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_errors_is_one_line() {
        let error = OpenError::NoKvm { source: io::Error::other("no such device") };
        assert_eq!(
            error_chain(&error),
            "/dev/kvm can't be opened: enable virtualisation (VT-x or AMD-V) in the firmware: no such device"
        );
    }

    #[tokio::test]
    async fn a_missing_vmm_is_named() {
        let vmm = Arc::new(vmm::CloudHypervisor::new("/no/such/vmm"));
        let error = Microvms::open(VmmSettings::node(false), vmm).await.unwrap_err();
        assert_eq!(error.to_string(), "the VMM /no/such/vmm can't be used: is it in the node image?");
    }
}
