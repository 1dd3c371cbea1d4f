//! The microVMs of this node behind one handle: which monitor drives them, and what a single one costs the host.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use croft_microvm::logs::Logs;
use croft_microvm::spec::{SpecError, VmSpec};
use croft_microvm::status::{Phase, VmStatus};
use croft_microvm::vmm::{Alioth, CloudHypervisor, Vmm};
use croft_microvm::{Microvm, Microvms, OpenError, VmmSettings};
use croft_protocol::{NodeTrouble, TroubleKind};
use tokio::sync::watch;

const CLOUD_HYPERVISOR: &str = "/usr/bin/cloud-hypervisor";
const ALIOTH: &str = "/usr/bin/alioth";

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("microVMs can't run on this machine")]
    Open(#[from] OpenError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("{reason}")]
    None { reason: String },
}

/// All microVMs, or why there can be none.
pub struct Machines {
    microvms: Result<Microvms, NodeTrouble>,
    vmm: &'static str,
}

impl Machines {
    /// With the monitor that the image holds. A machine that can't run microVMs still runs the agent, so that its
    /// farmer hears why.
    pub async fn open(emulated: bool) -> Self {
        let (vmm, driver): (_, Arc<dyn Vmm>) = if Path::new(CLOUD_HYPERVISOR).exists() {
            ("cloud-hypervisor", Arc::new(CloudHypervisor::new(CLOUD_HYPERVISOR)))
        } else {
            ("alioth", Arc::new(Alioth::new(ALIOTH)))
        };
        let microvms =
            Microvms::open(VmmSettings::node(emulated), driver).await.map_err(|error| none(&error));
        Self { microvms, vmm }
    }

    /// The monitor's name.
    #[must_use]
    pub fn vmm(&self) -> &'static str {
        self.vmm
    }

    /// Why no microVM can run here, if none can.
    #[must_use]
    pub fn trouble(&self) -> Option<&NodeTrouble> {
        self.microvms.as_ref().err()
    }

    /// Starts one.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn start(&self, spec: VmSpec) -> Result<Machine, MachineError> {
        let microvms =
            self.microvms.as_ref().map_err(|trouble| MachineError::None { reason: trouble.to_string() })?;
        let memory_bytes = spec.memory_bytes;
        let microvm = microvms.start(spec)?;
        Ok(Machine { changes: microvm.watch(), microvm, memory_bytes })
    }
}

/// Why there can be none, and what to do.
fn none(error: &OpenError) -> NodeTrouble {
    let (reason, remedy) = match error {
        OpenError::NoKvm { source } => (
            format!("/dev/kvm can't be opened ({source})"),
            "enable virtualisation (VT-x or AMD-V) in the firmware setup",
        ),
        OpenError::NoVmm { path, source } => (
            format!("the monitor {} can't be used ({source})", path.display()),
            "boot the node from a complete release",
        ),
        other => (croft_microvm::error_chain(other), "restart the node; if it stays so, report this"),
    };
    let reason = format!("no microVM can run here: {reason}");
    NodeTrouble::new(TroubleKind::Virtualisation, "", &reason, remedy)
}

/// One microVM. Dropping it stops it.
pub struct Machine {
    microvm: Microvm,
    changes: watch::Receiver<VmStatus>,
    memory_bytes: u64,
}

impl Machine {
    /// The present picture; [`Self::changed`] waits for a newer one.
    pub fn status(&mut self) -> VmStatus {
        self.changes.borrow_and_update().clone()
    }

    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // Its owner is gone, and with it all news.
            std::future::pending::<()>().await;
        }
    }

    #[must_use]
    pub fn logs(&self) -> Logs {
        self.microvm.logs().clone()
    }

    /// Asks it to end for good.
    pub fn stop(&self, grace: Duration) {
        let microvm = self.microvm.clone();
        tokio::spawn(async move { microvm.request_stop(grace).await });
    }

    /// Waits until nothing of it is left.
    pub async fn ended(&mut self) {
        let _ = self.changes.wait_for(|status| status.phase == Phase::Ended).await;
    }

    /// Resident bytes of its monitor and helpers beside the guest's memory, as the kernel counts them.
    #[must_use]
    pub fn overhead_bytes(&self) -> Option<u64> {
        let processes =
            Path::new("/sys/fs/cgroup/croft").join(self.microvm.id().as_str()).join("cgroup.procs");
        let list = fs::read_to_string(processes).ok()?;
        let sum = list
            .lines()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps")).ok())
            .map(|smaps| resident_beside(&smaps, self.memory_bytes))
            .sum();
        Some(sum)
    }
}

/// Resident bytes of all mappings in a `/proc/PID/smaps` (proc(5)) but those that are the guest's memory: a monitor
/// maps it whole or in the two parts below and above the PCI hole, shared with virtiofsd.
fn resident_beside(smaps: &str, guest_bytes: u64) -> u64 {
    let (mut size_kib, mut sum_kib) = (0, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().and_then(|n| n.parse::<u64>().ok())) {
            (Some("Size:"), Some(kib)) => size_kib = kib,
            // Proportional, so that a page that two processes share counts once.
            (Some("Pss:"), Some(kib)) if size_kib * 1024 < guest_bytes / 4 => sum_kib += kib,
            _ => {}
        }
    }
    sum_kib * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_not_the_monitors() {
        let smaps = "\
7f0000000000-7f0010000000 rw-s 00000000 00:01 5  /memfd:ram (deleted)
Size:             262144 kB
Rss:              100000 kB
Pss:              100000 kB
55d000000000-55d000600000 r-xp 00000000 00:02 9  /vmm
Size:               6144 kB
Rss:                4000 kB
Pss:                3000 kB
";
        assert_eq!(resident_beside(smaps, 256 << 20), 3000 << 10);
    }
}
