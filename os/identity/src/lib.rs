//! The node's keys: one ed25519 key that signs, one X25519 key that opens what is sealed to the node.
//!
//! Both come from one 32-byte seed behind [`KeyStore`]: sealed in the machine's TPM ([`tpm`], trust class `sealed`), or
//! in a file on the data disk, which anybody who copies the disk has too: trust class `plain`.
//!
//! It must never make a new identity where an old one exists but can't be read: a node that silently
//! changed its key would abandon its contracts.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use croft_protocol::record::TrustClass;
use croft_protocol::seal::SealingKey;
use croft_protocol::{Hash, NodeId, SecretKey};
use serde::{Deserialize, Serialize};

pub mod tpm;

pub use tpm::{NodeKeyStore, TpmKeyStore, choose, is_disk_of};

/// Where a seed is kept.
pub trait KeyStore {
    /// What an identity from this store is worth on the record.
    fn trust(&self) -> TrustClass;

    /// The seed, or `None` where there has never been one.
    ///
    /// # Errors
    /// [`KeyError`] when there is one that can't be read: never treat that as `None`.
    fn load(&self) -> Result<Option<[u8; 32]>, KeyError>;

    /// Keeps a seed durably where there is none yet.
    ///
    /// # Errors
    /// [`KeyError`] when it can't be kept, or one is there already.
    fn create(&self, seed: &[u8; 32]) -> Result<(), KeyError>;
}

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("can't {action} the node key {path}: check the data disk")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "the node key {path} is damaged ({reason}): restore it from a copy, or remove it to start as a new node, \
         which loses the contracts of the old one"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("there already is a node key {path}: it is never overwritten")]
    Exists { path: PathBuf },
    #[error("the TPM does not give or keep the node key")]
    Tpm(#[from] croft_tpm::TpmError),
    #[error("there already is a node key in the TPM at {index:#x}: it is never overwritten")]
    InTpm { index: u32 },
    #[error(
        "this data disk belongs to a node whose key is in another TPM, or was in this one before it was cleared: put the \
         disk back into its machine, or remove {path} to start as a new node, which loses the contracts of the old one"
    )]
    OtherTpm { path: PathBuf },
    #[error(
        "this data disk belongs to another node ({path} says so), and this machine's TPM has a key of its own: put the \
         disk back into its machine, or wipe it"
    )]
    OtherDisk { path: PathBuf },
    #[error(
        "the node key is in the machine's TPM ({path} says so), but there is none: turn the TPM on in the firmware \
         setup, or put the disk back into its machine"
    )]
    TpmGone { path: PathBuf },
    #[error(
        "there is a node key both in the TPM and on the disk, {path}: put the disk back into its machine, or remove that \
         file to be the node of the TPM"
    )]
    TwoKeys { path: PathBuf },
    #[error("the kernel gives no randomness for a new key ({reason})")]
    Randomness { reason: String },
}

/// A node's identity.
pub struct NodeIdentity {
    key: SecretKey,
    sealing: SealingKey,
    trust: TrustClass,
    /// Whether this call made it.
    created: bool,
}

impl NodeIdentity {
    /// Takes the identity from a store, or makes one where there has never been any.
    ///
    /// # Errors
    /// [`KeyError`] of the store.
    pub fn load_or_create(store: &dyn KeyStore) -> Result<Self, KeyError> {
        if let Some(seed) = store.load()? {
            return Ok(Self::from_seed(&seed, store.trust(), false));
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| KeyError::Randomness { reason: e.to_string() })?;
        store.create(&seed)?;
        Ok(Self::from_seed(&seed, store.trust(), true))
    }

    fn from_seed(seed: &[u8; 32], trust: TrustClass, created: bool) -> Self {
        let derive = |purpose: &str| Hash::of(purpose, seed).0;
        Self {
            key: SecretKey::from_seed(&derive("croft/node-signing-key/1")),
            sealing: SealingKey::from_seed(&derive("croft/node-sealing-key/1")),
            trust,
            created,
        }
    }

    #[must_use]
    pub fn id(&self) -> NodeId {
        self.key.public()
    }

    /// Signs commands and proves the node to its peers.
    #[must_use]
    pub fn key(&self) -> &SecretKey {
        &self.key
    }

    /// Opens workloads.
    #[must_use]
    pub fn sealing(&self) -> &SealingKey {
        &self.sealing
    }

    #[must_use]
    pub fn trust(&self) -> TrustClass {
        self.trust
    }

    #[must_use]
    pub fn is_new(&self) -> bool {
        self.created
    }
}

/// A seed in a file that only root reads.
pub struct DiskKeyStore {
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    seed: String,
    /// First 8 bytes of SHA-256 of the seed, to tell damage from a different key.
    check: String,
}

impl DiskKeyStore {
    /// A store in a directory, such as `/data/identity`; the directory is made when needed.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("node.key")
    }

    /// Whether there is a key file, readable or not.
    ///
    /// # Errors
    /// [`KeyError::Io`] when that can't be told.
    pub fn exists(&self) -> Result<bool, KeyError> {
        let path = self.path();
        path.try_exists().map_err(|source| KeyError::Io { action: "look for", path, source })
    }
}

fn check_of(seed: &[u8; 32]) -> String {
    hex::encode(&Hash::of_bytes(seed).0[..8])
}

impl KeyStore for DiskKeyStore {
    fn trust(&self) -> TrustClass {
        TrustClass::Plain
    }

    fn load(&self) -> Result<Option<[u8; 32]>, KeyError> {
        let path = self.path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(KeyError::Damaged { path, reason: "it is not text".into() });
            }
            Err(source) => return Err(KeyError::Io { action: "read", path, source }),
        };
        let damaged = |reason: String| KeyError::Damaged { path: path.clone(), reason };
        let file: KeyFile = toml::from_str(&text).map_err(|e| damaged(e.message().to_owned()))?;
        if file.version != 1 {
            return Err(damaged(format!("version {} is unknown to this release", file.version)));
        }
        let mut seed = [0; 32];
        hex::decode_to_slice(&file.seed, &mut seed).map_err(|e| damaged(e.to_string()))?;
        if check_of(&seed) != file.check {
            return Err(damaged("its check value does not match".into()));
        }
        Ok(Some(seed))
    }

    fn create(&self, seed: &[u8; 32]) -> Result<(), KeyError> {
        let file = KeyFile { version: 1, seed: hex::encode(seed), check: check_of(seed) };
        let text = toml::to_string(&file).expect("a key file has a TOML form");
        write_once(&self.dir, "node.key", &text)
    }
}

/// Writes a file that only root reads, durably, where there is none yet. Makes the directory when needed.
fn write_once(dir: &Path, name: &str, text: &str) -> Result<(), KeyError> {
    let path = dir.join(name);
    let io = |action| {
        let path = path.clone();
        move |source| KeyError::Io { action, path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("make the directory of"))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io("protect"))?;
    // Complete under another name first: a power cut leaves either no key or a whole one.
    let temporary = dir.join(format!("{name}.new"));
    let _ = fs::remove_file(&temporary);
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io("create"))?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(io("write"))?;
    match fs::hard_link(&temporary, &path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(KeyError::Exists { path }),
        Err(e) => return Err(io("create")(e)),
    }
    fs::remove_file(&temporary).map_err(io("finish"))?;
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync the directory of"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskKeyStore::new(&dir.path().join("identity"));
        let first = NodeIdentity::load_or_create(&store).unwrap();
        let second = NodeIdentity::load_or_create(&store).unwrap();
        assert!(first.is_new() && !second.is_new());
        assert_eq!(first.id(), second.id());
        assert_eq!(first.sealing().public(), second.sealing().public());
        assert_eq!(second.trust(), TrustClass::Plain);
        let mode = fs::metadata(store.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskKeyStore::new(dir.path());
        NodeIdentity::load_or_create(&store).unwrap();
        let good = fs::read_to_string(store.path()).unwrap();
        let flipped = {
            let at = good.find("seed = \"").unwrap() + 8;
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            String::from_utf8(bytes).unwrap()
        };
        for bad in ["", "nonsense", "version = 1", flipped.as_str()] {
            fs::write(store.path(), bad).unwrap();
            let Err(error) = NodeIdentity::load_or_create(&store) else { panic!("accepted {bad:?}") };
            assert!(error.to_string().contains("is damaged"), "{error}");
            assert_eq!(fs::read_to_string(store.path()).unwrap(), bad, "the file is left as it was");
        }
    }

    #[test]
    fn an_existing_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskKeyStore::new(dir.path());
        store.create(&[1; 32]).unwrap();
        let error = store.create(&[2; 32]).unwrap_err();
        assert!(error.to_string().ends_with("it is never overwritten"), "{error}");
        assert_eq!(store.load().unwrap(), Some([1; 32]));
    }

    #[test]
    fn a_leftover_of_a_power_cut_is_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskKeyStore::new(dir.path());
        fs::write(dir.path().join("node.key.new"), "half").unwrap();
        assert!(store.load().unwrap().is_none());
        assert!(NodeIdentity::load_or_create(&store).unwrap().is_new());
    }
}
