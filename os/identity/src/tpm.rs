//! A seed that the machine's TPM keeps, in its own memory: the same TPM without any disk gives the same identity.
//!
//! ```text
//!            NV index                     marker on the data disk
//!   none ──────────────────────────────── none      ▶ None: there has never been a key
//!   none ──────────────────────────────── there     ▶ error: the key is in another TPM, or this one was cleared
//!   open (power cut while it was made) ── none      ▶ the key, and the index is locked now; half a key is none
//!   locked ────────────────────────────── none      ▶ the key, and a new disk gets its marker
//!   locked ────────────────────────────── the same  ▶ the key
//!   locked ────────────────────────────── another   ▶ error: the disk belongs to another node
//! ```
//! The marker is a hash of the sealed blob: it opens nothing, but tells a machine that lost its key from a new one.
//!
//! It must never give a machine a new identity where a marker or a locked index says that there is an old one, and the
//! seed must never touch a disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_protocol::Hash;
use croft_protocol::record::TrustClass;
use croft_tpm::{IDENTITY_INDEX, NvState, SealPolicy, Sealed, Tpm, TpmError, Transport};

use crate::{DiskKeyStore, KeyError, KeyStore, write_once};

/// A seed sealed in a TPM.
pub struct TpmKeyStore<T: Transport> {
    tpm: Mutex<Tpm<T>>,
    policy: SealPolicy,
    dir: PathBuf,
}

/// Where a node's seed is, or shall be.
pub enum NodeKeyStore<T: Transport> {
    Tpm(Box<TpmKeyStore<T>>),
    Disk(DiskKeyStore),
}

impl<T: Transport> TpmKeyStore<T> {
    /// A store in a TPM, with its marker in a directory such as `/data/identity`. The policy counts for new keys.
    #[must_use]
    pub fn new(tpm: Tpm<T>, policy: SealPolicy, dir: &Path) -> Self {
        Self { tpm: Mutex::new(tpm), policy, dir: dir.to_owned() }
    }

    /// The TPM back, for quotes.
    pub fn into_tpm(self) -> Tpm<T> {
        self.tpm.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn tpm(&self) -> MutexGuard<'_, Tpm<T>> {
        self.tpm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn marker_path(&self) -> PathBuf {
        self.dir.join("tpm.key")
    }

    /// The hash on the disk. A damaged marker still is one.
    fn marker(&self) -> Result<Option<String>, KeyError> {
        let path = self.marker_path();
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KeyError::Io { action: "read", path, source }),
        }
    }

    /// Sets the marker, or checks the one that is there.
    fn mark(&self, blob: &[u8]) -> Result<(), KeyError> {
        let hash = Hash::of_bytes(blob).to_string();
        match self.marker()? {
            Some(marker) if marker == hash => Ok(()),
            Some(_) => Err(KeyError::OtherDisk { path: self.marker_path() }),
            None => write_once(&self.dir, "tpm.key", &hash),
        }
    }

    fn open(tpm: &mut Tpm<T>, sealed: &Sealed) -> Result<[u8; 32], KeyError> {
        let seed = tpm.unseal(sealed)?;
        seed.as_slice().try_into().map_err(|_| KeyError::Tpm(damaged("it has another length")))
    }
}

fn damaged(reason: &'static str) -> TpmError {
    TpmError::Damaged { index: IDENTITY_INDEX, reason }
}

impl<T: Transport> KeyStore for TpmKeyStore<T> {
    fn trust(&self) -> TrustClass {
        TrustClass::Sealed
    }

    fn load(&self) -> Result<Option<[u8; 32]>, KeyError> {
        let mut tpm = self.tpm();
        let (blob, locked) = match tpm.identity_state()? {
            NvState::Locked(blob) => (blob, true),
            // Nobody has seen this key's identity unless all of it is there.
            NvState::Open(blob) if Sealed::decode(&blob).is_ok() => (blob, false),
            NvState::Absent | NvState::Empty | NvState::Open(_) => {
                return match self.marker()? {
                    Some(_) => Err(KeyError::OtherTpm { path: self.marker_path() }),
                    None => Ok(None),
                };
            }
        };
        let sealed = Sealed::decode(&blob).map_err(damaged)?;
        let seed = Self::open(&mut tpm, &sealed)?;
        if !locked {
            tpm.identity_lock()?;
        }
        self.mark(&blob)?;
        Ok(Some(seed))
    }

    fn create(&self, seed: &[u8; 32]) -> Result<(), KeyError> {
        if self.marker()?.is_some() {
            return Err(KeyError::OtherTpm { path: self.marker_path() });
        }
        let mut tpm = self.tpm();
        if matches!(tpm.identity_state()?, NvState::Locked(_)) {
            return Err(KeyError::InTpm { index: IDENTITY_INDEX });
        }
        let sealed = tpm.seal(seed, self.policy)?;
        // Before anything depends on it: a TPM that seals but does not unseal keeps nothing.
        if Self::open(&mut tpm, &sealed)? != *seed {
            return Err(KeyError::Tpm(damaged("it comes back different")));
        }
        let blob = sealed.encode();
        tpm.identity_write(&blob)?;
        self.mark(&blob)
    }
}

/// Whether a directory is on the disk of the node whose key this is, as the TPM keeps it.
#[must_use]
pub fn is_disk_of(dir: &Path, blob: &[u8]) -> bool {
    fs::read_to_string(dir.join("tpm.key"))
        .is_ok_and(|marker| marker.trim() == Hash::of_bytes(blob).to_string())
}

/// Decides where a node's seed is: where it has been, else in the TPM, else on the disk.
///
/// A node that began on a disk stays there, `plain`: its seed has been readable, and a TPM can't undo that. It becomes
/// `sealed` by starting anew.
///
/// # Errors
/// [`KeyError::TwoKeys`] when there are two, [`KeyError::TpmGone`] when the key is in a TPM that is not there; never a
/// guess.
pub fn choose<T: Transport>(
    tpm: Option<Tpm<T>>,
    policy: SealPolicy,
    dir: &Path,
) -> Result<NodeKeyStore<T>, KeyError> {
    let disk = DiskKeyStore::new(dir);
    let on_disk = disk.exists()?;
    let Some(mut tpm) = tpm else {
        let marker = dir.join("tpm.key");
        return match marker.try_exists() {
            Ok(false) => Ok(NodeKeyStore::Disk(disk)),
            Ok(true) => Err(KeyError::TpmGone { path: marker }),
            Err(source) => Err(KeyError::Io { action: "look for", path: marker, source }),
        };
    };
    if !on_disk {
        return Ok(NodeKeyStore::Tpm(Box::new(TpmKeyStore::new(tpm, policy, dir))));
    }
    match tpm.identity_state()? {
        NvState::Locked(_) => Err(KeyError::TwoKeys { path: disk.path() }),
        NvState::Absent | NvState::Empty | NvState::Open(_) => Ok(NodeKeyStore::Disk(disk)),
    }
}

impl<T: Transport> KeyStore for NodeKeyStore<T> {
    fn trust(&self) -> TrustClass {
        match self {
            Self::Tpm(store) => store.trust(),
            Self::Disk(store) => store.trust(),
        }
    }

    fn load(&self) -> Result<Option<[u8; 32]>, KeyError> {
        match self {
            Self::Tpm(store) => store.load(),
            Self::Disk(store) => store.load(),
        }
    }

    fn create(&self, seed: &[u8; 32]) -> Result<(), KeyError> {
        match self {
            Self::Tpm(store) => store.create(seed),
            Self::Disk(store) => store.create(seed),
        }
    }
}

#[cfg(test)]
mod tests;
