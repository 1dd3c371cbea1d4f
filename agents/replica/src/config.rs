//! The files of a replica: what `grid init` writes and `replica --config` reads.
//!
//! ```text
//!   replica.toml    listen address, quotas, where the rest is
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
use croft_protocol::header::Allocation;
use croft_protocol::units::parse_bytes;
use croft_protocol::{Genesis, Name, SecretKey, ValidatorSet};
use serde::{Deserialize, Serialize};

use crate::blobs::BlobQuotas;
use crate::replica::ReplicaConfig;
use crate::store::{OpenError, Store, sync_dir};

const CONFIG: &str = "replica.toml";
const GENESIS: &str = "genesis.json";
const KEY: &str = "validator.key";
const DATA: &str = "data";
/// A genesis is a few kilobytes; a file larger than this is something else.
const FILE_BYTES: u64 = 4 * 1024 * 1024;

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
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BlobsFile {
    per_bot: String,
    total: String,
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
        Ok(Self { dir: dir.join(&file.data), listen: file.listen, key, genesis, blobs })
    }
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
    /// UDP address of its first replica.
    pub listen: SocketAddr,
}

/// A grid with one validator, ready to be started.
#[derive(Debug)]
pub struct NewGrid {
    pub genesis: Genesis,
    pub validator: SecretKey,
    /// Path of `replica.toml`.
    pub config: PathBuf,
}

/// Why there is no new grid.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("{path} is there already: a grid is made only once; choose another folder")]
    Exists { path: PathBuf },
    #[error("the system has no randomness for a key")]
    Random(#[source] getrandom::Error),
    #[error("can't write {path}: check that the folder may be written and has space")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] OpenError),
}

/// Makes a grid: key, genesis, configuration and the ledger with its first block. The folder may exist.
///
/// # Errors
/// [`InitError`]; what was there before is untouched.
pub fn init_grid(dir: &Path, plan: GridPlan) -> Result<NewGrid, InitError> {
    let write_error = |path: &Path, source| InitError::Write { path: path.to_owned(), source };
    let data = dir.join(DATA);
    std::fs::create_dir_all(&data).map_err(|source| write_error(&data, source))?;
    for name in [CONFIG, GENESIS, KEY] {
        let path = dir.join(name);
        if path.exists() {
            return Err(InitError::Exists { path });
        }
    }
    let validator = SecretKey::generate().map_err(InitError::Random)?;
    let validators = ValidatorSet::of_equals(&[validator.public()]);
    let GridPlan { name, time_ms, allocations, listen } = plan;
    let genesis = Genesis { name, time_ms, validators, allocations };
    let sign =
        |header| assemble::certify(header, 0, genesis.validators.clone(), std::slice::from_ref(&validator));
    // First what may fail for reasons of the plan, last what makes it a grid.
    drop(Store::create(&data, &genesis, &sign)?);
    let json = serde_json::to_string_pretty(&genesis).expect("a genesis has a JSON form");
    let config = format!(
        "# The first replica of grid '{}'. Start it with: replica --config {CONFIG}\n{}",
        genesis.name,
        toml::to_string(&File {
            listen,
            genesis: default_genesis(),
            key: default_key(),
            data: default_data(),
            blobs: BlobsFile::default(),
        })
        .expect("a configuration has a TOML form")
    );
    let files = [
        (KEY, 0o600, format!("{}\n", hex::encode(validator.seed()))),
        (GENESIS, 0o644, json + "\n"),
        (CONFIG, 0o644, config),
    ];
    for (name, mode, text) in files {
        let path = dir.join(name);
        write_new(&path, mode, &text).map_err(|source| write_error(&path, source))?;
    }
    sync_dir(dir).map_err(|source| write_error(dir, source))?;
    Ok(NewGrid { genesis, validator, config: dir.join(CONFIG) })
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
            listen: "127.0.0.1:0".parse().unwrap(),
        }
    }

    #[test]
    fn a_new_grid_is_read_back_as_it_was_made_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let grid = init_grid(dir.path(), plan()).unwrap();
        let config = ReplicaConfig::load(&grid.config).unwrap();
        assert_eq!(config.genesis, grid.genesis);
        assert_eq!(config.key.public(), grid.validator.public());
        let mode = std::fs::metadata(dir.path().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_grid_is_never_made_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let first = init_grid(dir.path(), plan()).unwrap();
        let error = init_grid(dir.path(), plan()).unwrap_err().to_string();
        let path = first.config.display();
        assert_eq!(
            error,
            format!("{path} is there already: a grid is made only once; choose another folder")
        );
        assert_eq!(ReplicaConfig::load(&first.config).unwrap().genesis, first.genesis);
    }

    #[test]
    fn unknown_fields_and_bad_sizes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let grid = init_grid(dir.path(), plan()).unwrap();
        let text = std::fs::read_to_string(&grid.config).unwrap();
        std::fs::write(&grid.config, format!("colour = 1\n{text}")).unwrap();
        let error = ReplicaConfig::load(&grid.config).unwrap_err().to_string();
        assert!(error.contains("unknown field `colour`"), "{error}");
        std::fs::write(&grid.config, text.replace("8G", "8 apples")).unwrap();
        let error = ReplicaConfig::load(&grid.config).unwrap_err().to_string();
        assert!(error.contains("blobs.per_bot: '8 apples' is not a size"), "{error}");
    }

    #[test]
    fn a_damaged_key_and_a_missing_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let grid = init_grid(dir.path(), plan()).unwrap();
        let key = dir.path().join(KEY);
        std::fs::write(&key, "12").unwrap();
        let error = ReplicaConfig::load(&grid.config).unwrap_err().to_string();
        let shown = key.display();
        assert_eq!(error, format!("{shown} holds no key: it must be 64 hex digits; restore it from a copy"));
        std::fs::remove_file(&key).unwrap();
        let error = ReplicaConfig::load(&grid.config).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("can't read {shown}: check the path, or make a grid with 'croft grid init'")
        );
    }
}
