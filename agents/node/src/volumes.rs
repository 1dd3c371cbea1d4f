//! Volumes of contracts, off the threads that have to answer: making one may take a while.

use std::path::PathBuf;
use std::sync::Arc;

use croft_protocol::workload::{Volume, VolumeKind};
use croft_protocol::{ContractBody, ContractId};
use croft_storage::data::Data;
use croft_storage::tools::Tools;
use croft_storage::volumes::{
    self, ContractKey, CreateVolumeError, DeleteVolumeError, Ended, Kind, NotYetError, Owner, ParseKeyError,
    VolumeName, VolumesError,
};

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error(transparent)]
    Open(#[from] VolumesError),
    #[error(transparent)]
    Name(#[from] ParseKeyError),
    #[error(transparent)]
    Create(#[from] CreateVolumeError),
    #[error(transparent)]
    Delete(#[from] DeleteVolumeError),
    #[error(transparent)]
    NotYet(#[from] NotYetError),
    #[error("the contract has not ended: its data is kept")]
    NotEnded,
}

/// All volumes of this node.
#[derive(Clone)]
pub struct Volumes {
    store: Arc<volumes::Volumes>,
}

/// On disk, owners are the guest's own numbers; the jail maps them.
const OWNER: Owner = Owner { uid: 0, gid: 0 };

impl Volumes {
    /// Finishes what a power cut left half deleted, which may take minutes.
    ///
    /// # Errors
    /// [`VolumeError::Open`].
    pub async fn open(data: &Data) -> Result<Self, VolumeError> {
        let data = data.clone();
        blocking(move || Ok(Self { store: Arc::new(volumes::Volumes::open(&data, Tools::default())?) })).await
    }

    /// Makes a volume, or finds it with its data.
    ///
    /// # Errors
    /// [`VolumeError::Create`] names the volume and the remedy.
    pub async fn ensure(&self, contract: &ContractId, volume: &Volume) -> Result<(), VolumeError> {
        let (store, key) = (self.store.clone(), ContractKey::new(contract.0.0));
        let name = VolumeName::parse(volume.name.as_str())?;
        let (kind, bytes) = (volume.kind, volume.size_bytes);
        blocking(move || match kind {
            VolumeKind::Exclusive => Ok(store.create_exclusive(&key, &name, bytes, OWNER).map(|_| ())?),
            VolumeKind::Shared => {
                let shared = store.create_shared(&key, &name, bytes, OWNER)?;
                if let Err(reason) = shared.limit {
                    tracing::warn!(volume = %name, reason, "nothing keeps the volume within its size");
                }
                Ok(())
            }
        })
        .await
    }

    /// Where a volume is.
    #[must_use]
    pub fn path(&self, contract: &ContractId, volume: &Volume) -> PathBuf {
        let name = VolumeName::parse(volume.name.as_str()).expect("a name is a volume's name");
        let kind = match volume.kind {
            VolumeKind::Exclusive => Kind::Exclusive,
            VolumeKind::Shared => Kind::Shared,
        };
        self.store.path(&ContractKey::new(contract.0.0), &name, kind)
    }

    /// Deletes everything of a contract whose grace period is over by the ledger's own clock: milliseconds since
    /// 1970, UTC, of the newest verified header.
    ///
    /// # Errors
    /// [`VolumeError::NotYet`], [`VolumeError::NotEnded`]: nothing was touched.
    pub async fn delete(
        &self,
        contract: &ContractId,
        body: &ContractBody,
        ledger_ms: u64,
    ) -> Result<(), VolumeError> {
        let key = ContractKey::new(contract.0.0);
        let until_ms = body.data_kept_until_ms().ok_or(VolumeError::NotEnded)?;
        let ended = Ended::by_ledger(key, until_ms.div_ceil(1000), ledger_ms / 1000)?;
        let store = self.store.clone();
        blocking(move || {
            for volume in store.list()?.iter().filter(|volume| volume.contract == key) {
                store.delete(volume, &ended)?;
            }
            Ok(())
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
