//! cloud-hypervisor 53 over its REST API. Field names are those of its `vm_config.rs`; what is left out has
//! the default there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::api::request;
use super::{BoxFuture, ConsoleKind, InputKind, Machine, Vmm, VmmError};

const NAME: &str = "cloud-hypervisor";
/// The guest's context id. Each VM has its own vsock device on a Unix socket, so all can have the same.
const GUEST_CID: u32 = 3;

/// The release VMM.
#[derive(Debug, Clone)]
pub struct CloudHypervisor {
    binary: PathBuf,
}

impl CloudHypervisor {
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into() }
    }

    async fn call(
        api: &Path,
        what: &'static str,
        method: &'static str,
        endpoint: &str,
        body: Option<&[u8]>,
        limit: Duration,
    ) -> Result<Vec<u8>, VmmError> {
        let path = format!("/api/v1/{endpoint}");
        let refused = |source| VmmError::Refused { vmm: NAME, what, source };
        request(api, method, &path, body, limit).await.map_err(refused)
    }
}

impl Vmm for CloudHypervisor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn binary(&self) -> &Path {
        &self.binary
    }

    fn arguments(&self, _machine: &Machine) -> Vec<String> {
        // Its own filter lists the calls that each thread needs; ours stays below it.
        ["--api-socket", "fd=0", "--seccomp", "true"].map(str::to_owned).to_vec()
    }

    fn input(&self) -> InputKind {
        InputKind::ApiSocket
    }

    fn console(&self) -> ConsoleKind {
        ConsoleKind::Pipe
    }

    fn boot<'a>(
        &'a self,
        api: &'a Path,
        machine: &'a Machine,
        limit: Duration,
    ) -> BoxFuture<'a, Result<(), VmmError>> {
        Box::pin(async move {
            let body = serde_json::to_vec(&VmConfig::new(machine)).unwrap_or_default();
            Self::call(api, "create the machine", "PUT", "vm.create", Some(&body), limit).await?;
            Self::call(api, "boot the machine", "PUT", "vm.boot", None, limit).await.map(drop)
        })
    }

    fn ping<'a>(&'a self, api: &'a Path, limit: Duration) -> BoxFuture<'a, Result<(), VmmError>> {
        Box::pin(
            async move { Self::call(api, "answer a ping", "GET", "vmm.ping", None, limit).await.map(drop) },
        )
    }

    fn power_off<'a>(&'a self, api: &'a Path, limit: Duration) -> BoxFuture<'a, Result<(), VmmError>> {
        Box::pin(
            async move { Self::call(api, "shut down", "PUT", "vmm.shutdown", None, limit).await.map(drop) },
        )
    }
}

#[derive(Debug, Serialize)]
struct VmConfig<'a> {
    cpus: Cpus,
    memory: Memory,
    payload: Payload<'a>,
    disks: Vec<Disk<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    net: Vec<Net<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fs: Vec<Fs<'a>>,
    rng: Rng,
    serial: Console<'a>,
    console: Console<'a>,
    vsock: Vsock<'a>,
}

#[derive(Debug, Serialize)]
struct Cpus {
    boot_vcpus: u32,
    max_vcpus: u32,
    /// A workload has no business with virtualisation of its own.
    nested: bool,
}

#[derive(Debug, Serialize)]
struct Memory {
    size: u64,
    /// virtiofsd reads and writes guest memory itself.
    shared: bool,
}

#[derive(Debug, Serialize)]
struct Payload<'a> {
    kernel: &'a Path,
    initramfs: &'a Path,
    cmdline: &'a str,
}

#[derive(Debug, Serialize)]
struct Disk<'a> {
    path: &'a Path,
    readonly: bool,
    serial: &'a str,
    /// Never guessed from the content: a tenant could write the header of another format.
    image_type: &'static str,
}

#[derive(Debug, Serialize)]
struct Net<'a> {
    tap: &'a str,
    mac: &'a str,
}

#[derive(Debug, Serialize)]
struct Fs<'a> {
    tag: &'a str,
    socket: &'a Path,
    num_queues: usize,
    queue_size: u16,
}

#[derive(Debug, Serialize)]
struct Rng {
    src: &'static str,
}

#[derive(Debug, Serialize)]
struct Console<'a> {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a Path>,
}

#[derive(Debug, Serialize)]
struct Vsock<'a> {
    cid: u32,
    socket: &'a Path,
}

impl<'a> VmConfig<'a> {
    fn new(machine: &'a Machine) -> Self {
        let vcpus = u32::from(machine.vcpus);
        let disk = |disk: &'a super::MachineDisk| Disk {
            path: &disk.path,
            readonly: disk.readonly,
            serial: &disk.serial,
            image_type: "Raw",
        };
        let share = |share: &'a super::MachineShare| Fs {
            tag: &share.tag,
            socket: &share.socket,
            num_queues: 1,
            queue_size: 1024,
        };
        Self {
            cpus: Cpus { boot_vcpus: vcpus, max_vcpus: vcpus, nested: false },
            memory: Memory { size: machine.memory_bytes, shared: !machine.shares.is_empty() },
            payload: Payload {
                kernel: &machine.kernel,
                initramfs: &machine.initramfs,
                cmdline: &machine.command_line,
            },
            disks: machine.disks.iter().map(disk).collect(),
            net: machine.nics.iter().map(|nic| Net { tap: &nic.tap, mac: &nic.mac }).collect(),
            fs: machine.shares.iter().map(share).collect(),
            rng: Rng { src: "/dev/urandom" },
            serial: Console { mode: "File", file: Some(&machine.console) },
            console: Console { mode: "Off", file: None },
            vsock: Vsock { cid: GUEST_CID, socket: &machine.vsock },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_becomes_its_configuration() {
        let machine = super::super::machine();
        let json = serde_json::to_value(VmConfig::new(&machine)).unwrap();
        let expected = serde_json::json!({
            "cpus": {"boot_vcpus": 2, "max_vcpus": 2, "nested": false},
            "memory": {"size": 268_435_456_u64, "shared": true},
            "payload": {
                "kernel": "/kernel",
                "initramfs": "/initramfs",
                "cmdline": "console=ttyS0 dm-mod.create=\"root,,,ro,0 8 verity\"",
            },
            "disks": [
                {"path": "/disks/root", "readonly": true, "serial": "root", "image_type": "Raw"},
                {"path": "/disks/data", "readonly": false, "serial": "data", "image_type": "Raw"},
            ],
            "net": [{"tap": "tap0", "mac": "02:00:00:00:00:01"}],
            "fs": [{"tag": "shared", "socket": "/run/fs-shared.sock", "num_queues": 1, "queue_size": 1024}],
            "rng": {"src": "/dev/urandom"},
            "serial": {"mode": "File", "file": "/run/console"},
            "console": {"mode": "Off"},
            "vsock": {"cid": 3, "socket": "/run/vsock.sock"},
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn memory_is_shared_only_for_shared_volumes() {
        let mut machine = super::super::machine();
        machine.shares.clear();
        machine.nics.clear();
        let json = serde_json::to_value(VmConfig::new(&machine)).unwrap();
        assert_eq!(json["memory"]["shared"], false);
        assert!(json.get("fs").is_none() && json.get("net").is_none());
    }
}
