//! The networks of all contracts on this node, and the one firewall that they share.
//!
//! Every change renders the whole ruleset from what is published now, so it can't drift from the contracts.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use croft_network::firewall::{self, Protocol, Published, Ruleset};
use croft_network::workload::{DeploymentId, DeploymentNetwork, DeploymentSpec, Pool, Workloads};
use croft_protocol::ContractId;
use croft_protocol::contract::Transport;
use croft_protocol::workload::Workload;
use tokio::sync::Mutex;

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Ensure(#[from] croft_network::workload::EnsureError),
    #[error(transparent)]
    Remove(#[from] croft_network::workload::RemoveError),
    #[error(transparent)]
    Workloads(#[from] croft_network::workload::WorkloadsError),
    #[error(transparent)]
    Ruleset(#[from] firewall::RulesetError),
    #[error("can't change the firewall")]
    Firewall(#[from] firewall::ApplyError),
}

pub struct Networks {
    workloads: Workloads,
    published: Mutex<BTreeMap<ContractId, Vec<Published>>>,
}

/// How the network crate names a contract.
#[must_use]
pub fn deployment(contract: &ContractId) -> DeploymentId {
    DeploymentId::new(contract.0.0)
}

impl Networks {
    /// Closes the node to the outside, then lets it forward.
    ///
    /// # Errors
    /// [`NetworkError`] when the kernel refuses.
    pub fn open(pool: Pool) -> Result<Self, NetworkError> {
        let networks = Self { workloads: Workloads::new(pool), published: Mutex::new(BTreeMap::new()) };
        firewall::apply(&Ruleset::new(pool.net(), [])?)?;
        networks.workloads.prepare()?;
        Ok(networks)
    }

    /// Makes a contract's network, or adopts what is there.
    ///
    /// # Errors
    /// [`NetworkError::Ensure`].
    pub async fn ensure(&self, spec: &DeploymentSpec) -> Result<DeploymentNetwork, NetworkError> {
        Ok(self.workloads.ensure(spec).await?)
    }

    /// Opens the contract's ports. Nothing changes on failure.
    ///
    /// # Errors
    /// [`NetworkError::Ruleset`] names the port and both contracts.
    pub async fn publish(&self, contract: &ContractId, ports: Vec<Published>) -> Result<(), NetworkError> {
        let mut published = self.published.lock().await;
        let mut next = published.clone();
        next.insert(*contract, ports);
        self.apply(&next)?;
        *published = next;
        Ok(())
    }

    /// Closes the contract's ports and takes its network away. Stop its processes first.
    ///
    /// # Errors
    /// [`NetworkError`]; may be repeated.
    pub async fn remove(&self, contract: &ContractId) -> Result<(), NetworkError> {
        let mut published = self.published.lock().await;
        if published.remove(contract).is_some() {
            self.apply(&published)?;
        }
        drop(published);
        Ok(self.workloads.remove(&deployment(contract)).await?)
    }

    fn apply(&self, published: &BTreeMap<ContractId, Vec<Published>>) -> Result<(), NetworkError> {
        let all = published.values().flatten().copied();
        firewall::apply(&Ruleset::new(self.workloads.pool().net(), all)?)?;
        Ok(())
    }
}

/// The published ports of a workload on its network.
#[must_use]
pub fn ports(contract: &ContractId, workload: &Workload, network: &DeploymentNetwork) -> Vec<Published> {
    workload
        .vms
        .iter()
        .zip(&network.taps)
        .flat_map(|(vm, tap)| {
            vm.ports.iter().map(|port| Published {
                deployment: deployment(contract),
                protocol: match port.transport {
                    Transport::Tcp => Protocol::Tcp,
                    Transport::Udp => Protocol::Udp,
                },
                port: port.published,
                to: SocketAddrV4::new(tap.address.addr(), port.guest),
            })
        })
        .collect()
}
