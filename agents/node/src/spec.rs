//! From a contract's workload to what the microVM driver takes. Pure.
//!
//! It must never run what differs from the contract in a single field: what can't be translated is refused with
//! the field's name.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use croft_guest::wire::{
    Cidr, ConfigError, GuestConfig, HealthCheck, Interface, Network, OverlaySize, Probe, Route, Secret,
    SecretTarget, StopSignal, Volume, VolumeSource,
};
use croft_microvm::policy::{Backoff, RestartPolicy};
use croft_microvm::spec::{Disk, LogLimits, Nic, RootImage, Share, SpecError, VmId, VmSpec};
use croft_protocol::workload::{self, VolumeKind, Workload};
use croft_protocol::{Capacity, ContractBody, ContractId};

use crate::images::Image;

/// Why a workload is refused for good.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("the sealed workload can't be opened")]
    Seal(#[from] croft_protocol::seal::SealError),
    #[error("the workload can't be read: its user's bot is of another release")]
    Decode(#[from] croft_protocol::DecodeError),
    #[error("the workload is impossible")]
    Invalid(#[from] workload::InvalidWorkload),
    #[error(
        "the workload needs more than the contract pays for ({shortfalls}): sign a contract for all of it"
    )]
    Resources { shortfalls: String },
    #[error("the workload publishes ports that the contract does not name: sign a contract that names them")]
    Ports,
    #[error("microVM '{vm}' can't run as described")]
    Spec { vm: String, source: SpecError },
    #[error("microVM '{vm}' has a stop signal that nobody knows")]
    Signal { vm: String, source: ConfigError },
}

/// Opens the bytes of a verified contract and compares them with its terms.
///
/// # Errors
/// [`WorkloadError`]: the contract is refused, its user is told why.
pub fn open(plain: &[u8], body: &ContractBody) -> Result<Workload, WorkloadError> {
    let workload: Workload =
        croft_protocol::decode("workload", plain, croft_protocol::limits::SEALED_WORKLOAD_BYTES)?;
    workload.check()?;
    let terms = &body.signed.terms;
    let needs = workload.resources().unwrap_or(Capacity {
        cpu_millis: u64::MAX,
        memory_bytes: u64::MAX,
        ssd_bytes: u64::MAX,
        hdd_bytes: u64::MAX,
        public_addresses: u32::MAX,
    });
    let shortfalls = terms.resources.shortfalls(&needs);
    if !shortfalls.is_empty() {
        let shortfalls = shortfalls.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return Err(WorkloadError::Resources { shortfalls });
    }
    if workload.published_ports().iter().any(|port| !terms.ports.contains(port)) {
        return Err(WorkloadError::Ports);
    }
    Ok(workload)
}

/// Where a microVM stands in its contract's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub netns: PathBuf,
    pub tap: String,
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub dns: Vec<IpAddr>,
}

/// Files of the node image that every microVM boots from.
#[derive(Debug, Clone)]
pub struct GuestFiles {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// What the node adds to a workload.
#[derive(Debug, Clone)]
pub struct Surroundings<'a> {
    pub place: Place,
    pub files: &'a GuestFiles,
    /// The microVMs of the contract by name.
    pub neighbours: &'a [(String, Ipv4Addr)],
    pub log_dir: &'a Path,
    pub now_ms: u64,
}

/// Name of a microVM on its node: no two contracts share one.
#[must_use]
pub fn vm_id(contract: &ContractId, index: usize) -> VmId {
    let text = format!("{}-{index}", &contract.to_string()[..32]);
    VmId::new(text).expect("hex digits and a number are a name")
}

/// The microVM of index `index`. `volume_path` says where the node keeps a volume.
///
/// # Errors
/// [`WorkloadError`] names the microVM and what can't be done.
pub fn vm_spec(
    contract: &ContractId,
    workload: &Workload,
    index: usize,
    image: &Image,
    around: &Surroundings<'_>,
    volume_path: impl Fn(&workload::Volume) -> PathBuf,
) -> Result<VmSpec, WorkloadError> {
    let Surroundings { place, files, neighbours, log_dir, now_ms } = around;
    let vm = &workload.vms[index];
    let name = vm.name.to_string();
    let id = vm_id(contract, index);
    let stop_signal = if vm.stop_signal.is_empty() {
        StopSignal::default()
    } else {
        StopSignal::parse(&vm.stop_signal)
            .map_err(|source| WorkloadError::Signal { vm: name.clone(), source })?
    };
    let (mut disks, mut shares, mut volumes) = (Vec::new(), Vec::new(), Vec::new());
    for mount in &vm.mounts {
        let Some(volume) = workload.volumes.iter().find(|v| v.name == mount.volume) else { continue };
        let source = match volume.kind {
            VolumeKind::Exclusive => {
                let serial = format!("volume-{}", disks.len());
                disks.push(Disk {
                    path: volume_path(volume),
                    serial: serial.clone(),
                    readonly: mount.read_only,
                });
                VolumeSource::Disk { serial, position: (disks.len() - 1) as u8 }
            }
            VolumeKind::Shared => {
                let tag = format!("share-{}", shares.len());
                shares.push(Share { tag: tag.clone(), dir: volume_path(volume), readonly: mount.read_only });
                VolumeSource::Share { tag }
            }
        };
        volumes.push(Volume { mount_path: mount.path.clone(), readonly: mount.read_only, source });
    }
    let spec = VmSpec {
        id: id.clone(),
        vcpus: vm.cpu_millis.div_ceil(1000).clamp(1, 128) as u8,
        cpu_millis: vm.cpu_millis,
        memory_bytes: vm.memory_bytes,
        kernel: files.kernel.clone(),
        initramfs: files.initramfs.clone(),
        root: RootImage {
            path: image.path.clone(),
            data_blocks: image.manifest.verity.data_blocks,
            root_hash: image.manifest.verity.root.0,
            salt: image.manifest.verity.salt.to_vec(),
        },
        disks,
        shares,
        netns: Some(place.netns.clone()),
        nics: vec![Nic { tap: place.tap.clone(), mac: place.mac }],
        guest: GuestConfig {
            hostname: name.clone(),
            argv: vm.argv.clone(),
            env: vm.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            secrets: secrets(vm),
            user: vm.user.clone(),
            cwd: vm.working_dir.clone(),
            stop_signal,
            overlay: OverlaySize::default(),
            volumes,
            network: network(place, neighbours),
            files: Vec::new(),
            health: health(vm),
            now_ms: *now_ms,
        },
        restart: match vm.restart {
            workload::RestartPolicy::Always => RestartPolicy::Always(Backoff::default()),
            workload::RestartPolicy::OnFailure => RestartPolicy::OnFailure(Backoff::default()),
            workload::RestartPolicy::Never => RestartPolicy::Never,
        },
        restart_unhealthy: vm.restart != workload::RestartPolicy::Never,
        logs: LogLimits { file: Some(log_dir.join(format!("{id}.log"))), ..LogLimits::default() },
        console: LogLimits::default(),
    };
    spec.validate().map_err(|source| WorkloadError::Spec { vm: name, source })?;
    Ok(spec)
}

fn secrets(vm: &workload::Vm) -> Vec<Secret> {
    vm.secrets
        .iter()
        .map(|(name, value)| Secret {
            name: name.clone(),
            value: value.clone().into_bytes(),
            target: SecretTarget::Environment,
        })
        .collect()
}

fn network(place: &Place, neighbours: &[(String, Ipv4Addr)]) -> Network {
    let any = Cidr { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0 };
    Network {
        interfaces: vec![Interface {
            mac: place.mac,
            addresses: vec![Cidr { address: IpAddr::V4(place.address), prefix: place.prefix }],
            routes: vec![Route { destination: any, gateway: Some(IpAddr::V4(place.gateway)) }],
            mtu: 1500,
        }],
        dns: place.dns.clone(),
        search: Vec::new(),
        hosts: neighbours.iter().map(|(name, ip)| (IpAddr::V4(*ip), vec![name.clone()])).collect(),
    }
}

fn health(vm: &workload::Vm) -> Vec<HealthCheck> {
    let Some(check) = &vm.health else { return Vec::new() };
    let probe = match &check.probe {
        workload::Probe::Tcp { port } => Probe::Tcp { port: *port },
        workload::Probe::Http { port, path } => {
            Probe::Http { port: *port, path: path.clone(), status_min: 200, status_max: 399 }
        }
        workload::Probe::Exec { argv } => Probe::Exec { argv: argv.clone() },
    };
    vec![HealthCheck {
        name: "health".into(),
        probe,
        interval_ms: check.interval_s.saturating_mul(1000),
        timeout_ms: check.timeout_s.saturating_mul(1000),
        retries: check.retries.min(u32::from(u16::MAX)) as u16,
        start_period_ms: check.start_period_s.saturating_mul(1000),
    }]
}
