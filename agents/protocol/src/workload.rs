//! What a contract runs, exactly. Sealed to the node inside the contract; no field is optional for the
//! node: the user's bot resolves every default before anybody signs.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::contract::{PublishedPort, Transport};
use crate::{Capacity, Hash, Name, limits};

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Workload {
    /// 1.
    pub version: u32,
    pub vms: Vec<Vm>,
    pub volumes: Vec<Volume>,
}

/// One microVM.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Vm {
    pub name: Name,
    /// Hash of an [`crate::image::ImageManifest`].
    pub image: Hash,
    /// The whole command line; the first is the program.
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Given to the process as environment too, but never shown anywhere.
    pub secrets: BTreeMap<String, String>,
    pub user: String,
    pub working_dir: String,
    pub stop_signal: String,
    pub stop_grace_s: u32,
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub mounts: Vec<Mount>,
    pub ports: Vec<PortMapping>,
    pub health: Option<HealthCheck>,
    pub restart: RestartPolicy,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Volume {
    pub name: Name,
    pub kind: VolumeKind,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// A block device for one microVM (virtio-blk, ext4).
    Exclusive,
    /// A directory that several microVMs may mount (virtiofs).
    Shared,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Mount {
    pub volume: Name,
    /// Absolute path inside the microVM.
    pub path: String,
    pub read_only: bool,
}

/// A port of the node that leads to a port of the microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct PortMapping {
    pub transport: Transport,
    pub published: u16,
    pub guest: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct HealthCheck {
    pub probe: Probe,
    pub interval_s: u32,
    pub timeout_s: u32,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
    /// Failures within this time after the start don't count.
    pub start_period_s: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// Something listens on this port.
    Tcp { port: u16 },
    /// GET of this path answers with a status below 400.
    Http { port: u16, path: String },
    /// This command exits with 0.
    Exec { argv: Vec<String> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// The smallest memory a microVM boots in, with its kernel.
pub const VM_MEMORY_MIN_BYTES: u64 = 64 << 20;

/// Smaller than this, the node's file system has no room for a journal.
pub const VOLUME_MIN_BYTES: u64 = 16 << 20;
/// The largest file on the node's file system.
pub const VOLUME_MAX_BYTES: u64 = 15 << 40;

/// A workload that can't run as described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWorkload {
    #[error("workload version {version} is unknown to this release: update it")]
    Version { version: u32 },
    #[error("a workload has 1 to {limit} microVMs, not {count}", limit = limits::VMS_PER_WORKLOAD)]
    VmCount { count: usize },
    #[error("a workload has at most {limit} volumes, not {count}", limit = limits::VOLUMES_PER_WORKLOAD)]
    VolumeCount { count: usize },
    #[error("two {what} are named '{name}': give each its own name")]
    SameName { what: &'static str, name: Name },
    #[error("microVM '{vm}' has no command: set `command`, or use an image that has an entry point")]
    NoCommand { vm: Name },
    #[error("microVM '{vm}' asks for {got} of {what}; allowed are {allowed}")]
    Bounds { vm: Name, what: &'static str, got: u64, allowed: &'static str },
    #[error("microVM '{vm}' mounts volume '{volume}', which is not described: add a volume of this name")]
    UnknownVolume { vm: Name, volume: Name },
    #[error("exclusive volume '{volume}' is mounted by two microVMs: make it shared")]
    ExclusiveTwice { volume: Name },
    #[error("microVM '{vm}' mounts '{path}': use an absolute path without '..', below '/', each once")]
    MountPath { vm: Name, path: String },
    #[error("volume '{volume}' has {size_bytes} bytes; allowed are 16 MiB to 15 TiB")]
    VolumeSize { volume: Name, size_bytes: u64 },
    #[error("port {port} is published twice")]
    SamePort { port: PublishedPort },
    #[error("microVM '{vm}' publishes port 0")]
    ZeroPort { vm: Name },
    #[error("the workload publishes more than {limit} ports", limit = limits::PORTS_PER_CONTRACT)]
    PortCount,
}

impl Workload {
    /// Checks everything that can be checked without the node.
    ///
    /// # Errors
    /// [`InvalidWorkload`] names the first culprit.
    pub fn check(&self) -> Result<(), InvalidWorkload> {
        if self.version != 1 {
            return Err(InvalidWorkload::Version { version: self.version });
        }
        if self.vms.is_empty() || self.vms.len() > limits::VMS_PER_WORKLOAD {
            return Err(InvalidWorkload::VmCount { count: self.vms.len() });
        }
        if self.volumes.len() > limits::VOLUMES_PER_WORKLOAD {
            return Err(InvalidWorkload::VolumeCount { count: self.volumes.len() });
        }
        unique("microVMs", self.vms.iter().map(|v| &v.name))?;
        unique("volumes", self.volumes.iter().map(|v| &v.name))?;
        for volume in &self.volumes {
            if !(VOLUME_MIN_BYTES..=VOLUME_MAX_BYTES).contains(&volume.size_bytes) {
                return Err(InvalidWorkload::VolumeSize {
                    volume: volume.name.clone(),
                    size_bytes: volume.size_bytes,
                });
            }
        }
        let mut exclusive = BTreeSet::new();
        for vm in &self.vms {
            self.check_vm(vm, &mut exclusive)?;
        }
        self.check_ports()
    }

    fn check_vm<'a>(&'a self, vm: &'a Vm, exclusive: &mut BTreeSet<&'a Name>) -> Result<(), InvalidWorkload> {
        if vm.argv.first().is_none_or(String::is_empty) {
            return Err(InvalidWorkload::NoCommand { vm: vm.name.clone() });
        }
        let bounds =
            |what, got, allowed| Err(InvalidWorkload::Bounds { vm: vm.name.clone(), what, got, allowed });
        if !(10..=1_024_000).contains(&vm.cpu_millis) {
            return bounds("CPU millis", u64::from(vm.cpu_millis), "10 to 1024000");
        }
        if vm.memory_bytes < VM_MEMORY_MIN_BYTES
            || vm.memory_bytes > 64 << 40
            || !vm.memory_bytes.is_multiple_of(1 << 20)
        {
            return bounds("bytes of memory", vm.memory_bytes, "whole MiB from 64 MiB to 64 TiB");
        }
        if vm.stop_grace_s > 3600 {
            return bounds("seconds to stop", u64::from(vm.stop_grace_s), "0 to 3600");
        }
        let mut paths = BTreeSet::new();
        for mount in &vm.mounts {
            let path = &mount.path;
            let plain = path.starts_with('/')
                && path.len() > 1
                && path.len() < 1024
                && !path.contains('\0')
                && path.split('/').skip(1).all(|part| !part.is_empty() && part != "." && part != "..");
            if !plain || !paths.insert(path) {
                return Err(InvalidWorkload::MountPath { vm: vm.name.clone(), path: path.clone() });
            }
            let Some(volume) = self.volumes.iter().find(|v| v.name == mount.volume) else {
                return Err(InvalidWorkload::UnknownVolume {
                    vm: vm.name.clone(),
                    volume: mount.volume.clone(),
                });
            };
            if volume.kind == VolumeKind::Exclusive && !exclusive.insert(&volume.name) {
                return Err(InvalidWorkload::ExclusiveTwice { volume: volume.name.clone() });
            }
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<(), InvalidWorkload> {
        let mut seen = BTreeSet::new();
        for vm in &self.vms {
            for port in &vm.ports {
                if port.published == 0 || port.guest == 0 {
                    return Err(InvalidWorkload::ZeroPort { vm: vm.name.clone() });
                }
                let published = PublishedPort { transport: port.transport, port: port.published };
                if !seen.insert(published) {
                    return Err(InvalidWorkload::SamePort { port: published });
                }
            }
        }
        if seen.len() > limits::PORTS_PER_CONTRACT { Err(InvalidWorkload::PortCount) } else { Ok(()) }
    }

    /// The ports it publishes, in ascending order.
    #[must_use]
    pub fn published_ports(&self) -> Vec<PublishedPort> {
        let ports: BTreeSet<PublishedPort> = self
            .vms
            .iter()
            .flat_map(|vm| &vm.ports)
            .map(|p| PublishedPort { transport: p.transport, port: p.published })
            .collect();
        ports.into_iter().collect()
    }

    /// What it needs of a node: the sums over its microVMs and volumes, volumes on SSD. `None` on overflow.
    #[must_use]
    pub fn resources(&self) -> Option<Capacity> {
        let mut sum = Capacity::default();
        for vm in &self.vms {
            let one = Capacity {
                cpu_millis: u64::from(vm.cpu_millis),
                memory_bytes: vm.memory_bytes,
                ..Capacity::default()
            };
            sum = sum.checked_add(&one)?;
        }
        for volume in &self.volumes {
            sum = sum.checked_add(&Capacity { ssd_bytes: volume.size_bytes, ..Capacity::default() })?;
        }
        Some(sum)
    }
}

fn unique<'a>(what: &'static str, names: impl Iterator<Item = &'a Name>) -> Result<(), InvalidWorkload> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(InvalidWorkload::SameName { what, name: name.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
