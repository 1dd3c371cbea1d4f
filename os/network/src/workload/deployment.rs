//! Makes, adopts, lists and removes the network of a deployment. Every step holds when repeated, so an `ensure` that
//! was cut short is finished by the next one, and a `remove` too.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::link::InfoKind;
use thiserror::Error;
use tokio::sync::Mutex;

use crate::mac::MacAddr;
use crate::netns::{Namespace, NamespaceError};
use crate::rtnl::{Link, NetlinkError, Rtnl};
use crate::sysctl::{self, SysctlError};
use crate::tap::{self, Owner, TapError};
use crate::workload::names::{BRIDGE, LINK_PREFIX, PEER, TAP_PREFIX};
use crate::workload::{DeploymentId, Pool, PoolError};

/// Where the node keeps namespaces.
pub const NAMESPACES: &str = "/run/croft/netns";
/// IPv4's least (RFC 791) and what the kernel's links take at most.
const MTU_BYTES: std::ops::RangeInclusive<u32> = 576..=65_535;

/// What a deployment needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentSpec {
    pub id: DeploymentId,
    pub machines: Vec<MachineSpec>,
    /// Of the uplink, so that guests' packets fit.
    pub mtu_bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// Unique in the deployment.
    pub name: String,
    /// Place in the contract, unique and the same for as long as the contract runs: the guest's address follows.
    pub index: u16,
    /// Who runs its VMM.
    pub owner: Owner,
}

/// A deployment's network as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentNetwork {
    /// To be entered by the VMM.
    pub namespace: PathBuf,
    /// Root end of the link.
    pub link: String,
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
    pub mtu_bytes: u32,
    /// In the order of the spec.
    pub taps: Vec<TapDevice>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapDevice {
    pub machine: String,
    /// Inside the namespace.
    pub name: String,
    /// For the guest's card.
    pub mac: MacAddr,
    /// For the guest's card, with the subnet's prefix length.
    pub address: Ipv4Net,
}

/// What is left on this machine of a deployment, whole or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    pub id: DeploymentId,
    pub has_namespace: bool,
    pub has_link: bool,
    pub subnet: Option<Ipv4Net>,
}

#[derive(Debug, Error)]
pub enum EnsureError {
    #[error("deployment {id} has two machines named {name:?}")]
    RepeatedName { id: DeploymentId, name: String },
    #[error("machines {first:?} and {second:?} of deployment {id} have the same index {index}")]
    RepeatedIndex { id: DeploymentId, index: u16, first: String, second: String },
    #[error("machine {name:?} of deployment {id} has index {index}, a subnet holds {guests} guests")]
    TooManyMachines { id: DeploymentId, name: String, index: u16, guests: u32 },
    #[error("mtu of {mtu_bytes} bytes for deployment {id} is not between 576 and 65535")]
    BadMtu { id: DeploymentId, mtu_bytes: u32 },
    #[error("link {link} is taken by {holder}, deployment {id} can't have it")]
    NameTaken { id: DeploymentId, link: String, holder: String },
    #[error("no subnet for deployment {id}")]
    Pool { id: DeploymentId, source: PoolError },
    #[error("network of deployment {id}")]
    Namespace { id: DeploymentId, source: NamespaceError },
    #[error("network of deployment {id}")]
    Netlink { id: DeploymentId, source: NetlinkError },
    #[error("network of deployment {id}")]
    Sysctl { id: DeploymentId, source: SysctlError },
    #[error("network of deployment {id}, machine {machine:?}")]
    Tap { id: DeploymentId, machine: String, source: TapError },
}

#[derive(Debug, Error)]
pub enum RemoveError {
    #[error("can't remove the network of deployment {id}")]
    Namespace { id: DeploymentId, source: NamespaceError },
    #[error("can't remove the network of deployment {id}")]
    Netlink { id: DeploymentId, source: NetlinkError },
}

#[derive(Debug, Error)]
pub enum WorkloadsError {
    #[error("can't list namespaces in {}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("can't list workload links")]
    Netlink(#[from] NetlinkError),
    #[error("can't let the node forward packets")]
    Sysctl(#[from] SysctlError),
}

/// All deployments of this machine. Works on the network namespace of the threads that call it.
#[derive(Debug)]
pub struct Workloads {
    pool: Pool,
    namespaces: PathBuf,
    /// Held from choosing a subnet until the kernel knows it.
    choosing: Mutex<()>,
}

impl Workloads {
    pub fn new(pool: Pool) -> Self {
        Self::with_directory(pool, NAMESPACES)
    }

    pub fn with_directory(pool: Pool, namespaces: impl Into<PathBuf>) -> Self {
        Self { pool, namespaces: namespaces.into(), choosing: Mutex::new(()) }
    }

    pub fn pool(&self) -> Pool {
        self.pool
    }

    /// Lets the kernel forward IPv4. Apply a ruleset first: until then everything would be forwarded.
    pub fn prepare(&self) -> Result<(), WorkloadsError> {
        Ok(sysctl::set("ipv4/ip_forward", "1")?)
    }

    /// Makes the network, or completes and adopts what is there. Taps of machines that the spec no longer names go.
    pub async fn ensure(&self, spec: &DeploymentSpec) -> Result<DeploymentNetwork, EnsureError> {
        let id = spec.id;
        self.check(spec)?;
        let namespace_failed = |source| EnsureError::Namespace { id, source };
        let netlink_failed = |source| EnsureError::Netlink { id, source };

        let namespace = Namespace::ensure(&self.namespace_path(&id)).await.map_err(namespace_failed)?;
        let rtnl = Rtnl::open().map_err(netlink_failed)?;
        let link = ensure_link(&rtnl, spec, &namespace).await?;
        let inside = spec.clone();
        namespace.run(move || ensure_inside(inside)).await.map_err(namespace_failed)??;
        let subnet = self.ensure_address(&rtnl, &id, &link).await?;

        Ok(DeploymentNetwork {
            namespace: namespace.path().to_owned(),
            link: link.name,
            subnet,
            gateway: Pool::gateway(subnet).addr(),
            mtu_bytes: spec.mtu_bytes,
            taps: spec.machines.iter().map(|machine| tap_device(&id, machine, subnet)).collect(),
        })
    }

    fn check(&self, spec: &DeploymentSpec) -> Result<(), EnsureError> {
        let id = spec.id;
        if !MTU_BYTES.contains(&spec.mtu_bytes) {
            return Err(EnsureError::BadMtu { id, mtu_bytes: spec.mtu_bytes });
        }
        let guests = self.pool.guests();
        for (place, machine) in spec.machines.iter().enumerate() {
            let (name, index) = (machine.name.clone(), machine.index);
            if u32::from(index) >= guests {
                return Err(EnsureError::TooManyMachines { id, name, index, guests });
            }
            let earlier = &spec.machines[..place];
            if earlier.iter().any(|other| other.name == name) {
                return Err(EnsureError::RepeatedName { id, name });
            }
            if let Some(other) = earlier.iter().find(|other| other.index == index) {
                return Err(EnsureError::RepeatedIndex {
                    id,
                    index,
                    first: other.name.clone(),
                    second: name,
                });
            }
        }
        Ok(())
    }

    /// The subnet is what the link's address says; a link without one gets a free one.
    async fn ensure_address(
        &self,
        rtnl: &Rtnl,
        id: &DeploymentId,
        link: &Link,
    ) -> Result<Ipv4Net, EnsureError> {
        let failed = |source| EnsureError::Netlink { id: *id, source };
        let _choosing = self.choosing.lock().await;
        let links = rtnl.links().await.map_err(failed)?;
        let is_workload =
            |index: u32| links.iter().any(|link| link.index == index && link.name.starts_with(LINK_PREFIX));
        let mut taken = BTreeSet::new();
        let mut own = None;
        for address in rtnl.addresses().await.map_err(failed)? {
            let IpNet::V4(net) = address.net else { continue };
            let Some(subnet) = self.pool.subnet_of(net.addr()) else { continue };
            if address.link == link.index && net == Pool::gateway(subnet) {
                own = Some(subnet);
            } else if is_workload(address.link) {
                taken.insert(subnet);
            }
        }
        let subnet = match own.filter(|subnet| !taken.contains(subnet)) {
            Some(subnet) => subnet,
            None => self.pool.allocate(id, &taken).map_err(|source| EnsureError::Pool { id: *id, source })?,
        };
        rtnl.set_address(link.index, Pool::gateway(subnet).into(), None).await.map_err(failed)?;
        Ok(subnet)
    }

    /// Every deployment that left something here, by id.
    pub async fn list(&self) -> Result<Vec<Existing>, WorkloadsError> {
        let rtnl = Rtnl::open()?;
        let addresses = rtnl.addresses().await?;
        let mut found: Vec<Existing> = Vec::new();
        for link in rtnl.links().await?.iter().filter(|link| link.name.starts_with(LINK_PREFIX)) {
            let Some(id) = link.alias.as_deref().and_then(DeploymentId::from_alias) else { continue };
            let subnet =
                addresses.iter().filter(|address| address.link == link.index).find_map(
                    |address| match address.net {
                        IpNet::V4(net) => self.pool.subnet_of(net.addr()),
                        IpNet::V6(_) => None,
                    },
                );
            found.push(Existing { id, has_namespace: false, has_link: true, subnet });
        }
        for id in self.namespace_ids()? {
            match found.iter_mut().find(|existing| existing.id == id) {
                Some(existing) => existing.has_namespace = true,
                None => found.push(Existing { id, has_namespace: true, has_link: false, subnet: None }),
            }
        }
        found.sort_by_key(|existing| existing.id);
        Ok(found)
    }

    fn namespace_ids(&self) -> Result<Vec<DeploymentId>, WorkloadsError> {
        let failed = |source| WorkloadsError::List { path: self.namespaces.clone(), source };
        let entries = match fs::read_dir(&self.namespaces) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>();
        Ok(names.map_err(failed)?.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// Takes everything of the deployment away; nothing there is success. Stop its VMMs first: a namespace lives on
    /// while a process is in it.
    pub async fn remove(&self, id: &DeploymentId) -> Result<(), RemoveError> {
        let failed = |source| RemoveError::Netlink { id: *id, source };
        let rtnl = Rtnl::open().map_err(failed)?;
        if let Some(link) = rtnl.find(&id.link_name()).await.map_err(failed)? {
            // A link of that name that belongs to somebody else stays.
            if holder(&link, id).is_none() {
                rtnl.delete_link(link.index).await.map_err(failed)?;
            }
        }
        Namespace::remove(&self.namespace_path(id))
            .map_err(|source| RemoveError::Namespace { id: *id, source })
    }

    fn namespace_path(&self, id: &DeploymentId) -> PathBuf {
        self.namespaces.join(id.to_hex())
    }
}

/// Opens a guest's tap from outside, for a VMM that is handed a descriptor.
pub async fn open_tap(namespace: &Path, name: &str) -> Result<std::os::fd::OwnedFd, OpenTapError> {
    let name = name.to_owned();
    Ok(Namespace::open(namespace)?.run(move || async move { tap::open(&name) }).await??)
}

#[derive(Debug, Error)]
pub enum OpenTapError {
    #[error("can't reach the tap's namespace")]
    Namespace(#[from] NamespaceError),
    #[error("can't open the tap")]
    Tap(#[from] TapError),
}

fn tap_device(id: &DeploymentId, machine: &MachineSpec, subnet: Ipv4Net) -> TapDevice {
    TapDevice {
        machine: machine.name.clone(),
        name: id.tap_name(&machine.name),
        mac: id.machine_mac(&machine.name),
        address: Pool::guest(subnet, machine.index),
    }
}

/// Who else has the link; `None` when it is the deployment's own or nobody's yet.
fn holder(link: &Link, id: &DeploymentId) -> Option<String> {
    match &link.alias {
        Some(alias) if *alias == id.alias() => None,
        Some(alias) => Some(alias.clone()),
        // Cut short between creation and alias: the MAC address tells.
        None if link.mac == Some(id.gateway_mac()) => None,
        None => Some("a link that isn't ours".to_owned()),
    }
}

/// The pair, its root end hardened and up. A root end without its far end is left from a namespace that is gone.
async fn ensure_link(rtnl: &Rtnl, spec: &DeploymentSpec, namespace: &Namespace) -> Result<Link, EnsureError> {
    let id = spec.id;
    let failed = |source| EnsureError::Netlink { id, source };
    let name = id.link_name();
    let has_peer = namespace
        .run(|| async { Ok(Rtnl::open()?.find(PEER).await?.is_some()) })
        .await
        .map_err(|source| EnsureError::Namespace { id, source })?
        .map_err(failed)?;
    if let Some(link) = rtnl.find(&name).await.map_err(failed)? {
        if let Some(holder) = holder(&link, &id) {
            return Err(EnsureError::NameTaken { id, link: name, holder });
        }
        if !has_peer {
            rtnl.delete_link(link.index).await.map_err(failed)?;
        }
    }
    if rtnl.find(&name).await.map_err(failed)?.is_none() {
        let file = namespace.file();
        rtnl.add_veth(&name, id.gateway_mac(), PEER, file.as_fd(), spec.mtu_bytes).await.map_err(failed)?;
    }
    let link = rtnl.link(&name).await.map_err(failed)?;
    rtnl.set_alias(link.index, &id.alias()).await.map_err(failed)?;
    if link.mtu_bytes != spec.mtu_bytes {
        rtnl.set_mtu(link.index, spec.mtu_bytes).await.map_err(failed)?;
    }
    harden(&name).map_err(|source| EnsureError::Sysctl { id, source })?;
    rtnl.set_up(link.index, true).await.map_err(failed)?;
    Ok(link)
}

/// A guest is a stranger on this link: it may use its own addresses, and learns only about the gateway's.
fn harden(link: &str) -> Result<(), SysctlError> {
    sysctl::set(&format!("ipv4/conf/{link}/rp_filter"), "1")?;
    sysctl::set(&format!("ipv4/conf/{link}/arp_ignore"), "1")?;
    sysctl::set(&format!("ipv4/conf/{link}/accept_redirects"), "0")?;
    sysctl::set(&format!("ipv4/conf/{link}/send_redirects"), "0")?;
    sysctl::set(&format!("ipv4/conf/{link}/accept_source_route"), "0")?;
    sysctl::set_if_present(&format!("ipv6/conf/{link}/disable_ipv6"), "1")
}

/// Runs inside the namespace: bridge, far end of the link, taps.
async fn ensure_inside(spec: DeploymentSpec) -> Result<(), EnsureError> {
    let id = spec.id;
    let failed = |source| EnsureError::Netlink { id, source };
    // Guests speak to each other over the bridge; the namespace itself has no address and answers nobody.
    for place in ["all", "default"] {
        sysctl::set_if_present(&format!("ipv6/conf/{place}/disable_ipv6"), "1")
            .map_err(|source| EnsureError::Sysctl { id, source })?;
    }
    let rtnl = Rtnl::open().map_err(failed)?;
    rtnl.set_up(rtnl.link("lo").await.map_err(failed)?.index, true).await.map_err(failed)?;
    rtnl.add_bridge(BRIDGE, spec.mtu_bytes).await.map_err(failed)?;
    let bridge = rtnl.link(BRIDGE).await.map_err(failed)?;

    for machine in &spec.machines {
        let tap_failed = |source| EnsureError::Tap { id, machine: machine.name.clone(), source };
        tap::ensure(&id.tap_name(&machine.name), machine.owner).map_err(tap_failed)?;
    }
    let wanted: BTreeSet<String> = spec.machines.iter().map(|machine| id.tap_name(&machine.name)).collect();
    for link in rtnl.links().await.map_err(failed)? {
        let is_tap = link.name.starts_with(TAP_PREFIX) && link.kind == Some(InfoKind::Tun);
        if is_tap && !wanted.contains(&link.name) {
            rtnl.delete_link(link.index).await.map_err(failed)?;
        } else if is_tap || link.name == PEER {
            if link.mtu_bytes != spec.mtu_bytes {
                rtnl.set_mtu(link.index, spec.mtu_bytes).await.map_err(failed)?;
            }
            if link.controller != Some(bridge.index) {
                rtnl.set_bridge(link.index, bridge.index).await.map_err(failed)?;
            }
            rtnl.set_up(link.index, true).await.map_err(failed)?;
        }
    }
    rtnl.set_up(bridge.index, true).await.map_err(failed)
}
