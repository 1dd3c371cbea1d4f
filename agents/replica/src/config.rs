//! The files of a replica: what `grid init` writes and `replica --config` reads.
//!
//! ```text
//!   replica.toml    listen address, quotas, what is kept of the past, where the rest is
//!   genesis.json    what everybody on the grid agrees on; to be given to everybody
//!   validator.key   the seed of the validator's key, 64 hex digits; mode 0600, to be given to nobody
//!   data/           the ledger and the blobs
//! ```
//! It must never overwrite a grid that is there, nor leave a secret key readable to others.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use croft_ledger::assemble;
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::header::Allocation;
use croft_protocol::units::parse_bytes;
use croft_protocol::{Faucet, Genesis, Name, PublicKey, SecretKey, TrustPolicy, ValidatorSet, limits};
use serde::{Deserialize, Serialize};

use crate::blobs::BlobQuotas;
use crate::ordering::bft::log::{self, Log, LogError};
use crate::replica::ReplicaConfig;
use crate::store::{FileDisk, Keep, OpenError, Store, sync_dir};

const CONFIG: &str = "replica.toml";
const GENESIS: &str = "genesis.json";
const KEY: &str = "validator.key";
const DATA: &str = "data";
/// A genesis is a few kilobytes; a file larger than this is something else.
const FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Makers of TPMs have a few roots each, and there are a dozen makers.
const TPM_MAKERS: usize = 128;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: SocketAddr,
    #[serde(default = "default_genesis")]
    genesis: PathBuf,
    #[serde(default = "default_key")]
    key: PathBuf,
    #[serde(default = "default_data")]
    data: PathBuf,
    #[serde(default)]
    blobs: BlobsFile,
    #[serde(default)]
    keep: KeepFile,
    #[serde(default)]
    admission: AdmissionFile,
    /// Files with root certificates of TPMs' makers, DER, relative to this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tpm_makers: Vec<PathBuf>,
    /// Keys of replicas that are no validators and may copy the ledger.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    observers: Vec<PublicKey>,
    /// The other replicas.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    peers: Vec<ReplicaAddress>,
}

/// How many blocks back there are proofs and commands; see [`Keep`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KeepFile {
    proof_blocks: u64,
    command_blocks: u64,
}

impl Default for KeepFile {
    fn default() -> Self {
        let Keep { proof_blocks, command_blocks } = Keep::default();
        Self { proof_blocks, command_blocks }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BlobsFile {
    per_bot: String,
    total: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AdmissionFile {
    commands_per_minute: u64,
}

impl Default for AdmissionFile {
    fn default() -> Self {
        Self { commands_per_minute: limits::COMMANDS_PER_MINUTE }
    }
}

impl Default for BlobsFile {
    fn default() -> Self {
        Self { per_bot: "8G".to_owned(), total: "64G".to_owned() }
    }
}

fn default_genesis() -> PathBuf {
    GENESIS.into()
}

fn default_key() -> PathBuf {
    KEY.into()
}

fn default_data() -> PathBuf {
    DATA.into()
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("can't read {path}: check the path, or make a grid with 'croft grid init'")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} has more than {FILE_BYTES} bytes: it is not what it should be")]
    TooLarge { path: PathBuf },
    #[error("{path} is not valid: {reason}; correct it")]
    Invalid { path: PathBuf, reason: String },
    #[error("{path} holds no key: it must be 64 hex digits; restore it from a copy")]
    Key { path: PathBuf },
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let error = |source| ConfigError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(error)?.len() > FILE_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    std::fs::read_to_string(path).map_err(error)
}

impl ReplicaConfig {
    /// Reads `replica.toml` and the files that it names, relative to it.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the line or field.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let invalid = |path: &Path, reason: String| ConfigError::Invalid {
            path: path.to_owned(),
            reason: reason.trim().replace('\n', " "),
        };
        let file: File = toml::from_str(&read(path)?).map_err(|error| invalid(path, error.to_string()))?;
        let bytes = |field: &str, text: &str| {
            parse_bytes(text).map_err(|error| invalid(path, format!("blobs.{field}: {error}")))
        };
        let blobs = BlobQuotas {
            per_bot_bytes: bytes("per_bot", &file.blobs.per_bot)?,
            total_bytes: bytes("total", &file.blobs.total)?,
        };
        let dir = path.parent().unwrap_or(Path::new("."));
        let genesis_path = dir.join(&file.genesis);
        let genesis: Genesis = serde_json::from_str(&read(&genesis_path)?)
            .map_err(|error| invalid(&genesis_path, error.to_string()))?;
        let key_path = dir.join(&file.key);
        let key = parse_key(&read(&key_path)?).ok_or(ConfigError::Key { path: key_path })?;
        if let Some(twice) = file.peers.iter().find(|peer| peer.key == key.public()) {
            let reason = format!("peers: {} is this replica's own key; leave it out", twice.key);
            return Err(invalid(path, reason));
        }
        if file.peers.len() > limits::VALIDATORS {
            let reason =
                format!("peers: at most {} are allowed, not {}", limits::VALIDATORS, file.peers.len());
            return Err(invalid(path, reason));
        }
        let makers = read_makers(path, dir, &file.tpm_makers)?;
        let KeepFile { proof_blocks, command_blocks } = file.keep;
        let keep = Keep { proof_blocks, command_blocks };
        Ok(Self {
            dir: dir.join(&file.data),
            listen: file.listen,
            key,
            genesis,
            blobs,
            keep,
            commands_per_minute: file.admission.commands_per_minute,
            makers,
            peers: file.peers,
            observers: file.observers,
        })
    }
}

/// Root certificates of makers. One that can't be read is an error: nodes with its TPMs would silently be worth less.
fn read_makers(config: &Path, dir: &Path, files: &[PathBuf]) -> Result<Vec<Vec<u8>>, ConfigError> {
    let invalid = |path: &Path, reason: String| ConfigError::Invalid { path: path.to_owned(), reason };
    if files.len() > TPM_MAKERS {
        return Err(invalid(
            config,
            format!("tpm_makers: at most {TPM_MAKERS} are allowed, not {}", files.len()),
        ));
    }
    let read = |file: &PathBuf| {
        let path = dir.join(file);
        let error = |source| ConfigError::Read { path: path.clone(), source };
        let bytes = std::fs::metadata(&path).map_err(error)?.len();
        // DER of a certificate is a sequence; PEM is not taken for one.
        if bytes > limits::TPM_CERTIFICATE_BYTES as u64 {
            let reason =
                format!("it has {bytes} bytes, at most {} are allowed", limits::TPM_CERTIFICATE_BYTES);
            return Err(invalid(&path, reason));
        }
        let der = std::fs::read(&path).map_err(error)?;
        if der.first() != Some(&0x30) {
            let reason =
                "it is no certificate in DER; convert it with 'openssl x509 -outform der'".to_owned();
            return Err(invalid(&path, reason));
        }
        Ok(der)
    };
    files.iter().map(read).collect()
}

fn parse_key(text: &str) -> Option<SecretKey> {
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim(), &mut seed).ok()?;
    Some(SecretKey::from_seed(&seed))
}

/// What a new grid is to be.
#[derive(Debug, Clone)]
pub struct GridPlan {
    pub name: Name,
    /// Milliseconds since 1970, UTC: now.
    pub time_ms: u64,
    /// Who owns all grains there will ever be.
    pub allocations: Vec<Allocation>,
    /// UDP addresses of its replicas: one of them orders alone, several decide together.
    pub listen: Vec<SocketAddr>,
    /// What it asks of nodes' TPMs.
    pub trust: TrustPolicy,
    /// Of a grid that is for trying things out.
    pub faucet: Option<Faucet>,
}

/// A replica of a new grid.
#[derive(Debug)]
pub struct NewReplica {
    pub key: SecretKey,
    pub listen: SocketAddr,
    /// Path of `replica.toml`.
    pub config: PathBuf,
}

/// A grid whose replicas are ready to be started.
#[derive(Debug)]
pub struct NewGrid {
    pub genesis: Genesis,
    /// In the order of the plan's addresses.
    pub replicas: Vec<NewReplica>,
}

/// Why there is no new grid.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("{path} is there already: a grid is made only once; choose another folder")]
    Exists { path: PathBuf },
    #[error("a grid has 1 to {} replicas, not {count}", limits::VALIDATORS)]
    Count { count: usize },
    #[error("two replicas would listen on {address}: give each an address of its own")]
    SameAddress { address: SocketAddr },
    #[error("the system has no randomness for a key")]
    Random(#[source] getrandom::Error),
    #[error("can't write {path}: check that the folder may be written and has space")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Trust(#[from] croft_protocol::trust::InvalidTrustPolicy),
    #[error(transparent)]
    Faucet(#[from] croft_protocol::faucet::InvalidFaucet),
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Folder of one replica of a grid: the grid's own where there is one, numbered folders in it where there are
/// several.
#[must_use]
pub fn replica_dir(dir: &Path, index: usize, count: usize) -> PathBuf {
    if count == 1 { dir.to_owned() } else { dir.join(format!("replica-{}", index + 1)) }
}

/// Makes a grid: keys, genesis, and for each replica its configuration, its ledger with the first block, and its
/// consensus log. The folder may exist.
///
/// # Errors
/// [`InitError`]; what was there before is untouched.
pub fn init_grid(dir: &Path, plan: GridPlan) -> Result<NewGrid, InitError> {
    let GridPlan { name, time_ms, allocations, listen, trust, faucet } = plan;
    let count = listen.len();
    if !(1..=limits::VALIDATORS).contains(&count) {
        return Err(InitError::Count { count });
    }
    for (index, address) in listen.iter().enumerate() {
        if listen[..index].contains(address) {
            return Err(InitError::SameAddress { address: *address });
        }
        let dir = replica_dir(dir, index, count);
        for name in [CONFIG, GENESIS, KEY] {
            let path = dir.join(name);
            if path.exists() {
                return Err(InitError::Exists { path });
            }
        }
    }
    let keys: Vec<SecretKey> =
        listen.iter().map(|_| SecretKey::generate()).collect::<Result<_, _>>().map_err(InitError::Random)?;
    let public: Vec<_> = keys.iter().map(SecretKey::public).collect();
    let validators = ValidatorSet::of_equals(&public);
    let genesis = Genesis { name, time_ms, validators, allocations, trust, faucet };
    genesis.trust.check()?;
    genesis.faucet.as_ref().map_or(Ok(()), Faucet::check)?;
    let all: Vec<ReplicaAddress> = listen
        .iter()
        .zip(&public)
        .map(|(address, key)| ReplicaAddress { address: *address, key: *key })
        .collect();
    let mut replicas = Vec::with_capacity(count);
    for (index, key) in keys.iter().enumerate() {
        let dir = replica_dir(dir, index, count);
        let peers = all.iter().filter(|replica| replica.key != key.public()).cloned().collect();
        let config = init_replica(&dir, &genesis, &keys, key, listen[index], peers)?;
        replicas.push(NewReplica { key: key.clone(), listen: listen[index], config });
    }
    Ok(NewGrid { genesis, replicas })
}

/// The files of one replica.
fn init_replica(
    dir: &Path,
    genesis: &Genesis,
    validators: &[SecretKey],
    key: &SecretKey,
    listen: SocketAddr,
    peers: Vec<ReplicaAddress>,
) -> Result<PathBuf, InitError> {
    let write_error = |path: &Path, source| InitError::Write { path: path.to_owned(), source };
    let data = dir.join(DATA);
    std::fs::create_dir_all(&data).map_err(|source| write_error(&data, source))?;
    let sign = |header| assemble::certify(header, 0, genesis.validators.clone(), validators);
    // First what may fail for reasons of the plan, last what makes it a grid.
    drop(Store::create(&data, genesis, &sign)?);
    drop(Log::create(&FileDisk::create(&log::path(&data))?, genesis.chain_id(), 0)?);
    let json = serde_json::to_string_pretty(genesis).expect("a genesis has a JSON form");
    let config = format!(
        "# A replica of grid '{}'. Start it with: replica --config {CONFIG}\n{}",
        genesis.name,
        toml::to_string(&File {
            listen,
            genesis: default_genesis(),
            key: default_key(),
            data: default_data(),
            blobs: BlobsFile::default(),
            keep: KeepFile::default(),
            admission: AdmissionFile::default(),
            tpm_makers: Vec::new(),
            observers: Vec::new(),
            peers,
        })
        .expect("a configuration has a TOML form")
    );
    let files = [
        (KEY, 0o600, format!("{}\n", hex::encode(key.seed()))),
        (GENESIS, 0o644, json + "\n"),
        (CONFIG, 0o644, config),
    ];
    for (name, mode, text) in files {
        let path = dir.join(name);
        write_new(&path, mode, &text).map_err(|source| write_error(&path, source))?;
    }
    sync_dir(dir).map_err(|source| write_error(dir, source))?;
    Ok(dir.join(CONFIG))
}

fn write_new(path: &Path, mode: u32, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn plan() -> GridPlan {
        GridPlan {
            name: Name::new("demo").unwrap(),
            time_ms: 1_000,
            allocations: Vec::new(),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            trust: TrustPolicy::default(),
            faucet: None,
        }
    }

    #[test]
    fn a_new_grid_is_read_back_as_it_was_made_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let grid = init_grid(dir.path(), plan()).unwrap();
        let config = ReplicaConfig::load(&grid.replicas[0].config).unwrap();
        assert_eq!(config.genesis, grid.genesis);
        assert_eq!(config.key.public(), grid.replicas[0].key.public());
        let mode = std::fs::metadata(dir.path().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_grid_is_never_made_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let first = init_grid(dir.path(), plan()).unwrap();
        let error = init_grid(dir.path(), plan()).unwrap_err().to_string();
        let path = first.replicas[0].config.display();
        assert_eq!(
            error,
            format!("{path} is there already: a grid is made only once; choose another folder")
        );
        assert_eq!(ReplicaConfig::load(&first.replicas[0].config).unwrap().genesis, first.genesis);
    }

    #[test]
    fn unknown_fields_and_bad_sizes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let grid = init_grid(dir.path(), plan()).unwrap();
        let text = std::fs::read_to_string(&grid.replicas[0].config).unwrap();
        std::fs::write(&grid.replicas[0].config, format!("colour = 1\n{text}")).unwrap();
        let error = ReplicaConfig::load(&grid.replicas[0].config).unwrap_err().to_string();
        assert!(error.contains("unknown field `colour`"), "{error}");
        std::fs::write(&grid.replicas[0].config, text.replace("8G", "8 apples")).unwrap();
        let error = ReplicaConfig::load(&grid.replicas[0].config).unwrap_err().to_string();
        assert!(error.contains("blobs.per_bot: '8 apples' is not a size"), "{error}");
    }

    #[test]
    fn a_damaged_key_and_a_missing_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let grid = init_grid(dir.path(), plan()).unwrap();
        let key = dir.path().join(KEY);
        std::fs::write(&key, "12").unwrap();
        let error = ReplicaConfig::load(&grid.replicas[0].config).unwrap_err().to_string();
        let shown = key.display();
        assert_eq!(error, format!("{shown} holds no key: it must be 64 hex digits; restore it from a copy"));
        std::fs::remove_file(&key).unwrap();
        let error = ReplicaConfig::load(&grid.replicas[0].config).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("can't read {shown}: check the path, or make a grid with 'croft grid init'")
        );
    }
}
