//! The directory that holds what is a person's own: keys of bots, grids that they trust, images.
//!
//! ```text
//!   config.toml              default bot and default grid
//!   bots/NAME.key            secret key of a bot, readable by its owner only, open or behind a passphrase (keyfile)
//!   bots/NAME.keys/N.key     keys that follow it, where it was replaced on a grid: 1.key, 2.key
//!   grids/NAME/keys/BOT      which of its keys signs for a bot there, and what leads from its first one to it
//!   grids/NAME/pin.toml      chain id, validators and replicas that are trusted
//!   grids/NAME/tip           the newest header that was verified: nothing older is believed any more
//!   grids/NAME/contradiction proof that the grid's validators signed two histories: nothing is done on it
//!   grids/NAME/standing/     standing orders of 'croft keep': BOT.ORDER.json, and a lock for each
//!   grids/NAME/ledger-dir    where the embedded replica's files are, if the grid was made here
//!   grids/NAME/ledger/       there, unless --dir said otherwise
//!   grids/NAME/messages/ID.seen  which messages the bot with this id has had
//!   images/NAME.json         what a name stands for
//!   blobs/                   chunks and manifests
//!   orders/GRID/BOT/NAME/    journal of an order that is under way
//!   desks/GRID/BOT/          journal of what a farmer's bot promised
//!   skills/NAME.skill        code that the bots of this home may be extended with, signed by its author
//!   farms/NAME/boot.toml     boot configuration of a farm's machines, unless --boot-config said otherwise
//!   tmp/                     images being built
//! ```
//! Every file is written aside and renamed. It must never show a key, replace one, or read one that others
//! can read too.

mod keys;
mod skills;
mod standing;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use croft_protocol::boot::GridPin;
use croft_protocol::{BotId, Hash, Name, SecretKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::files;
use crate::image::BlobStore;
use crate::keyfile::{KeyFile, ParseError, open_text};

pub use keys::Successor;
pub use skills::AddSkillError;
pub use standing::KeptOrder;

/// No file of ours is larger; whatever is, is not ours.
const FILE_BYTES: u64 = 1024 * 1024;

/// Why something of the home can't be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error(
        "there is no bot '{name}' in {home}; it has {known}: make it with 'croft bot new {name}', or choose another with --bot"
    )]
    NoBot { name: Name, home: PathBuf, known: String },
    #[error(
        "no bot is chosen and {home} has {known}: choose one with --bot, or make one with 'croft bot new NAME'"
    )]
    NoDefaultBot { home: PathBuf, known: String },
    #[error("bot '{name}' has a key in {home} already: choose another name")]
    BotExists { name: Name, home: PathBuf },
    #[error("{path} was written by another 'croft' at the same time: look at what it did, then try again")]
    KeyExists { path: PathBuf },
    #[error(
        "bot '{name}' has {limit} later keys in {home}, which is all that are kept: use another bot, or move those away that hold on no grid"
    )]
    TooManyKeys { name: Name, home: PathBuf, limit: usize },
    #[error(
        "this key of bot '{name}' is in {home} already: 'croft bot rotate {name} --resume' takes it up where it holds"
    )]
    KeyKnown { name: Name, home: PathBuf },
    #[error(
        "there is no grid '{name}' in {home}; it has {known}: make it with 'croft grid init {name}', or add its pin with 'croft grid join FILE'"
    )]
    NoGrid { name: Name, home: PathBuf, known: String },
    #[error(
        "no grid is chosen and {home} has {known}: choose one with --grid, make one with 'croft grid init NAME', or add a pin with 'croft grid join FILE'"
    )]
    NoDefaultGrid { home: PathBuf, known: String },
    #[error("grid '{name}' exists in {home} already: choose another name")]
    GridExists { name: Name, home: PathBuf },
    #[error(
        "there is no image '{name}' in {home}; it has {known}: build it with 'croft image build OCI_LAYOUT --name {name}'"
    )]
    NoImage { name: Name, home: PathBuf, known: String },
    #[error("there is no skill '{name}' in {home}; it has {known}: add it with 'croft skill add FILE'")]
    NoSkill { name: Name, home: PathBuf, known: String },
    #[error(
        "{path} can be read by others (mode {mode:o}): whoever read it may have the secret in it; if nobody did, 'chmod 600 {path}'"
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path} holds no key: restore it from a backup")]
    BadKey { path: PathBuf, source: ParseError },
    #[error(
        "{path} is the key of bot '{found}', not of '{name}': give the file its old name, or import it with 'croft bot import'"
    )]
    OtherBot { path: PathBuf, found: Name, name: Name },
    #[error("{path} is not what croft wrote there: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("can't read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("can't write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("the kernel gives no randomness for a key")]
    Randomness(#[source] getrandom::Error),
}

/// What a person chose once.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default_bot: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default_grid: Option<Name>,
}

/// What the name of an image stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEntry {
    pub name: Name,
    /// Hash of the manifest.
    pub manifest: Hash,
    /// Digest of the OCI manifest that it was made from.
    pub source: Hash,
    /// Where that was.
    pub layout: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Length of the image file.
    pub size_bytes: u64,
    /// Length of its chunks as they are stored and sent.
    pub stored_bytes: u64,
    pub files: u64,
    /// Milliseconds since 1970, UTC.
    pub built_ms: u64,
    /// What made the file system.
    pub tool: String,
}

#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// A home that exists or will be made on the first write.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    // Bots.

    /// Names of the bots whose keys are here, sorted.
    pub fn bots(&self) -> Result<Vec<Name>, HomeError> {
        self.names("bots", ".key")
    }

    /// The key of a bot, open or locked.
    pub fn key_file(&self, name: &Name) -> Result<KeyFile, HomeError> {
        let path = self.key_path(name);
        if !path.exists() {
            return Err(HomeError::NoBot {
                name: name.clone(),
                home: self.root.clone(),
                known: known("bots", &self.bots()?),
            });
        }
        let file = read_key_file(&path)?;
        match &file {
            // It is sealed with its name, which a person will be asked for.
            KeyFile::Locked(locked) if locked.name != *name => {
                Err(HomeError::OtherBot { path, found: locked.name.clone(), name: name.clone() })
            }
            _ => Ok(file),
        }
    }

    /// The bot that acts: the one that was asked for, else the chosen one, else the only one.
    pub fn acting_name(&self, asked: Option<&Name>) -> Result<Name, HomeError> {
        if let Some(name) = asked {
            return Ok(name.clone());
        }
        match self.config()?.default_bot {
            Some(name) => Ok(name),
            None => only(self.bots()?).map_err(|bots| HomeError::NoDefaultBot {
                home: self.root.clone(),
                known: known("bots", &bots),
            }),
        }
    }

    /// Makes and keeps a new key. The first bot becomes the default one.
    pub fn new_bot(&self, name: &Name) -> Result<SecretKey, HomeError> {
        let key = self.new_treasury(name)?;
        self.choose_first(name)?;
        Ok(key)
    }

    fn choose_first(&self, name: &Name) -> Result<(), HomeError> {
        self.change_config(|config| {
            config.default_bot.get_or_insert_with(|| name.clone());
        })
    }

    /// Keeps a key that comes from elsewhere, as the text of its file. The first bot becomes the default one.
    pub fn import_bot(&self, name: &Name, text: &str) -> Result<(), HomeError> {
        if !write_new(&self.key_path(name), text.as_bytes())? {
            return Err(HomeError::BotExists { name: name.clone(), home: self.root.clone() });
        }
        self.choose_first(name)
    }

    /// The same for a bot that acts only when it is named.
    pub fn new_treasury(&self, name: &Name) -> Result<SecretKey, HomeError> {
        let key = SecretKey::generate().map_err(HomeError::Randomness)?;
        if !write_new(&self.key_path(name), open_text(&key).as_bytes())? {
            return Err(HomeError::BotExists { name: name.clone(), home: self.root.clone() });
        }
        Ok(key)
    }

    /// Removes a key that was made a moment ago and stands for nothing on any ledger.
    pub fn forget_unused_bot(&self, name: &Name) -> Result<(), HomeError> {
        let path = self.key_path(name);
        fs::remove_file(&path).map_err(|source| HomeError::Write { path, source })?;
        self.change_config(|config| {
            if config.default_bot.as_ref() == Some(name) {
                config.default_bot = None;
            }
        })
    }

    // Grids.

    /// Names of the grids that are pinned here, sorted.
    pub fn grids(&self) -> Result<Vec<Name>, HomeError> {
        let mut names = self.names("grids", "")?;
        names.retain(|name| self.grid_dir(name).join("pin.toml").exists());
        Ok(names)
    }

    /// What is trusted of a grid: the one that was asked for, else the chosen one, else the only one.
    pub fn grid(&self, asked: Option<&Name>) -> Result<GridPin, HomeError> {
        let name = match asked {
            Some(name) => name.clone(),
            None => match self.config()?.default_grid {
                Some(name) => name,
                None => only(self.grids()?).map_err(|grids| HomeError::NoDefaultGrid {
                    home: self.root.clone(),
                    known: known("grids", &grids),
                })?,
            },
        };
        let path = self.grid_dir(&name).join("pin.toml");
        let Some(bytes) = read(&path)? else {
            return Err(HomeError::NoGrid {
                name,
                home: self.root.clone(),
                known: known("grids", &self.grids()?),
            });
        };
        parse_toml(&path, &bytes)
    }

    /// Keeps a new grid's pin. The first grid becomes the default one.
    pub fn add_grid(&self, pin: &GridPin) -> Result<(), HomeError> {
        let path = self.grid_dir(&pin.name).join("pin.toml");
        let text = to_toml(&path, pin)?;
        if !write_new(&path, text.as_bytes())? {
            return Err(HomeError::GridExists { name: pin.name.clone(), home: self.root.clone() });
        }
        self.change_config(|config| {
            config.default_grid.get_or_insert_with(|| pin.name.clone());
        })
    }

    /// Keeps where the embedded replica of a grid has its ledger.
    pub fn keep_ledger_dir(&self, name: &Name, dir: &Path) -> Result<(), HomeError> {
        let path = self.grid_dir(name).join("ledger-dir");
        let text = dir.to_str().ok_or_else(|| HomeError::Write {
            path: path.clone(),
            source: io::Error::other(format!("{} is no text", dir.display())),
        })?;
        write(&path, text.as_bytes())
    }

    /// Where that is, if the grid was made in this home.
    pub fn ledger_dir(&self, name: &Name) -> Result<Option<PathBuf>, HomeError> {
        let path = self.grid_dir(name).join("ledger-dir");
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let text =
            String::from_utf8(bytes).map_err(|e| HomeError::Damaged { path, reason: e.to_string() })?;
        Ok(Some(PathBuf::from(text)))
    }

    /// Where everything of one grid is.
    #[must_use]
    pub fn grid_dir(&self, name: &Name) -> PathBuf {
        self.root.join("grids").join(name.as_str())
    }

    /// The newest header that was verified, as it was kept.
    pub fn tip(&self, grid: &Name) -> Result<Option<Vec<u8>>, HomeError> {
        read(&self.grid_dir(grid).join("tip"))
    }

    /// Keeps the newest verified header, unless `is_newer` says that another process kept a newer one.
    pub fn keep_tip(
        &self,
        grid: &Name,
        bytes: &[u8],
        is_newer: impl FnOnce(&[u8]) -> bool,
    ) -> Result<(), HomeError> {
        let path = self.grid_dir(grid).join("tip");
        let _lock = lock(&self.grid_dir(grid))?;
        if read(&path)?.is_some_and(|kept| !is_newer(&kept)) {
            return Ok(());
        }
        write(&path, bytes)
    }

    /// Proof that the validators of a grid signed two histories, if there is one.
    pub fn contradiction(&self, grid: &Name) -> Result<Option<Vec<u8>>, HomeError> {
        read(&self.contradiction_path(grid))
    }

    /// Keeps the first such proof.
    pub fn keep_contradiction(&self, grid: &Name, bytes: &[u8]) -> Result<(), HomeError> {
        write_new(&self.contradiction_path(grid), bytes).map(|_| ())
    }

    #[must_use]
    pub fn contradiction_path(&self, grid: &Name) -> PathBuf {
        self.grid_dir(grid).join("contradiction")
    }

    // Messages.

    /// Held until dropped: only one process of this home reads messages at a time.
    pub(crate) fn lock_messages(&self, grid: &Name) -> Result<fs::File, HomeError> {
        lock(&self.grid_dir(grid).join("messages"))
    }

    /// Which messages a bot has had, as it was kept.
    pub fn messages_seen(&self, grid: &Name, bot: &BotId) -> Result<Option<Vec<u8>>, HomeError> {
        read(&self.messages_seen_path(grid, bot))
    }

    pub fn keep_messages_seen(&self, grid: &Name, bot: &BotId, bytes: &[u8]) -> Result<(), HomeError> {
        write(&self.messages_seen_path(grid, bot), bytes)
    }

    #[must_use]
    pub fn messages_seen_path(&self, grid: &Name, bot: &BotId) -> PathBuf {
        self.grid_dir(grid).join("messages").join(format!("{bot}.seen"))
    }

    // Images.

    /// Everything that has a name, sorted by it.
    pub fn images(&self) -> Result<Vec<ImageEntry>, HomeError> {
        let names = self.names("images", ".json")?;
        names.iter().map(|name| self.image(name)).collect()
    }

    pub fn image(&self, name: &Name) -> Result<ImageEntry, HomeError> {
        let path = self.image_path(name);
        let Some(bytes) = read(&path)? else {
            return Err(HomeError::NoImage {
                name: name.clone(),
                home: self.root.clone(),
                known: known("images", &self.names("images", ".json")?),
            });
        };
        serde_json::from_slice(&bytes).map_err(|e| HomeError::Damaged { path, reason: e.to_string() })
    }

    /// Gives an image its name; what had it before is still there under its hash.
    pub fn name_image(&self, entry: &ImageEntry) -> Result<(), HomeError> {
        let path = self.image_path(&entry.name);
        let text = serde_json::to_vec_pretty(entry)
            .map_err(|e| HomeError::Write { path: path.clone(), source: e.into() })?;
        write(&path, &text)
    }

    #[must_use]
    pub fn blobs(&self) -> BlobStore {
        BlobStore::new(&self.root.join("blobs"))
    }

    /// Where images are built unless another place is chosen.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.root.join("tmp")
    }

    // Journals.

    /// Where the journal of a bot's order of this name is.
    #[must_use]
    pub fn order_dir(&self, grid: &Name, bot: &Name, order: &Name) -> PathBuf {
        self.root.join("orders").join(grid.as_str()).join(bot.as_str()).join(order.as_str())
    }

    /// Where the journal of a farmer's bot is.
    #[must_use]
    pub fn desk_dir(&self, grid: &Name, bot: &Name) -> PathBuf {
        self.root.join("desks").join(grid.as_str()).join(bot.as_str())
    }

    // Files.

    fn key_path(&self, name: &Name) -> PathBuf {
        self.root.join("bots").join(format!("{name}.key"))
    }

    fn image_path(&self, name: &Name) -> PathBuf {
        self.root.join("images").join(format!("{name}.json"))
    }

    fn config(&self) -> Result<Config, HomeError> {
        let path = self.root.join("config.toml");
        match read(&path)? {
            Some(bytes) => parse_toml(&path, &bytes),
            None => Ok(Config::default()),
        }
    }

    fn change_config(&self, change: impl FnOnce(&mut Config)) -> Result<(), HomeError> {
        let _lock = lock(&self.root)?;
        let mut config = self.config()?;
        change(&mut config);
        let path = self.root.join("config.toml");
        write(&path, to_toml(&path, &config)?.as_bytes())
    }

    fn names(&self, dir: &str, suffix: &str) -> Result<Vec<Name>, HomeError> {
        let path = self.root.join(dir);
        let failed = |source| HomeError::Read { path: path.clone(), source };
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(failed)?.file_name();
            let stem = file.to_str().and_then(|f| f.strip_suffix(suffix));
            if let Some(name) = stem.and_then(|s| Name::new(s).ok()) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), HomeError> {
    files::aside(path, bytes, true)
        .and_then(|file| file.replace(path, true))
        .map_err(|source| HomeError::Write { path: path.to_owned(), source })
}

/// Writes a file that must not exist. Returns whether it did not.
fn write_new(path: &Path, bytes: &[u8]) -> Result<bool, HomeError> {
    files::aside(path, bytes, true)
        .and_then(|file| file.add(path))
        .map_err(|source| HomeError::Write { path: path.to_owned(), source })
}

/// Held until dropped: only one process changes what is in a directory at a time.
fn lock(dir: &Path) -> Result<fs::File, HomeError> {
    files::lock(dir).map_err(|source| HomeError::Write { path: dir.to_owned(), source })
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, HomeError> {
    use io::Read as _;
    let failed = |source| HomeError::Read { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES {
        let reason = format!("it has more than {FILE_BYTES} bytes");
        return Err(HomeError::Damaged { path: path.to_owned(), reason });
    }
    Ok(Some(bytes))
}

/// The key in a file that only its owner can read, which is not locked: a replica has nobody to ask.
pub(crate) fn read_key(path: &Path) -> Result<SecretKey, HomeError> {
    match read_key_file(path)? {
        KeyFile::Open(key) => Ok(key),
        KeyFile::Locked(_) => {
            let source = ParseError::Locked { reason: "it is behind a passphrase".to_owned() };
            Err(HomeError::BadKey { path: path.to_owned(), source })
        }
    }
}

/// What a file that only its owner can read holds.
fn read_key_file(path: &Path) -> Result<KeyFile, HomeError> {
    KeyFile::parse(&read_private(path)?).map_err(|source| HomeError::BadKey { path: path.to_owned(), source })
}

/// The text of a file that only its owner can read.
pub(crate) fn read_private(path: &Path) -> Result<Zeroizing<String>, HomeError> {
    let failed = |source| HomeError::Read { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(failed)?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(HomeError::Exposed { path: path.to_owned(), mode });
    }
    if metadata.len() > FILE_BYTES {
        let reason = format!("it has more than {FILE_BYTES} bytes");
        return Err(HomeError::Damaged { path: path.to_owned(), reason });
    }
    fs::read_to_string(path).map(Zeroizing::new).map_err(failed)
}

fn parse_toml<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, HomeError> {
    let damaged = |reason: String| HomeError::Damaged { path: path.to_owned(), reason };
    let text = std::str::from_utf8(bytes).map_err(|e| damaged(e.to_string()))?;
    toml::from_str(text).map_err(|e| damaged(e.message().to_owned()))
}

fn to_toml<T: Serialize>(path: &Path, value: &T) -> Result<String, HomeError> {
    toml::to_string_pretty(value)
        .map_err(|e| HomeError::Write { path: path.to_owned(), source: io::Error::other(e) })
}

fn only(mut names: Vec<Name>) -> Result<Name, Vec<Name>> {
    if names.len() == 1 { Ok(names.remove(0)) } else { Err(names) }
}

/// `no bots`, or their names.
fn known(what: &str, names: &[Name]) -> String {
    if names.is_empty() {
        return format!("no {what}");
    }
    let shown: Vec<&str> = names.iter().take(12).map(Name::as_str).collect();
    let more = if names.len() > 12 { ", …" } else { "" };
    shown.join(", ") + more
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use croft_protocol::{ChainId, PublicKey};

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn a_key_is_kept_for_its_owner_only_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(&dir.path().join("home"));
        let made = home.new_bot(&name("alice")).unwrap();
        assert_eq!(home.key_file(&name("alice")).unwrap().id(), made.public());
        let path = dir.path().join("home/bots/alice.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = home.new_bot(&name("alice")).unwrap_err().to_string();
        assert!(error.contains("bot 'alice' has a key in"), "{error}");
        assert_eq!(home.key_file(&name("alice")).unwrap().id(), made.public());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_command_that_helps() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        home.new_bot(&name("alice")).unwrap();
        let path = dir.path().join("bots/alice.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = home.key_file(&name("alice")).unwrap_err().to_string();
        assert!(error.contains("can be read by others (mode 644)"), "{error}");
        assert!(error.ends_with(&format!("'chmod 600 {}'", path.display())), "{error}");
    }

    #[test]
    fn a_damaged_key_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        home.new_bot(&name("alice")).unwrap();
        let path = dir.path().join("bots/alice.key");
        fs::write(&path, "5ecret").unwrap();
        let error = home.key_file(&name("alice")).unwrap_err();
        let text = crate::exit::Failure::failed(error).message();
        assert!(text.contains("holds no key: restore it from a backup"), "{text}");
        assert!(!text.contains("5ecret"), "{text}");
    }

    #[test]
    fn the_acting_bot_is_the_asked_the_default_or_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let error = home.acting_name(None).unwrap_err().to_string();
        assert!(error.contains("no bot is chosen and"), "{error}");
        assert!(error.contains("has no bots: choose one with --bot, or make one"), "{error}");
        home.new_bot(&name("alice")).unwrap();
        home.new_bot(&name("bob")).unwrap();
        assert_eq!(home.acting_name(None).unwrap(), name("alice"));
        assert_eq!(home.acting_name(Some(&name("bob"))).unwrap(), name("bob"));
        let error = home.key_file(&name("carol")).unwrap_err().to_string();
        assert!(error.starts_with("there is no bot 'carol' in"), "{error}");
        assert!(error.contains("it has alice, bob"), "{error}");
    }

    #[test]
    fn a_tip_is_only_replaced_by_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let grid = name("demo");
        home.keep_tip(&grid, b"5", |_| unreachable!("nothing is kept yet")).unwrap();
        home.keep_tip(&grid, b"4", |kept| kept < &b"4"[..]).unwrap();
        assert_eq!(home.tip(&grid).unwrap().unwrap(), b"5");
        home.keep_tip(&grid, b"6", |kept| kept < &b"6"[..]).unwrap();
        assert_eq!(home.tip(&grid).unwrap().unwrap(), b"6");
    }

    #[test]
    fn a_grid_is_pinned_once() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let error = home.grid(None).unwrap_err().to_string();
        assert!(error.contains("no grid is chosen") && error.contains("has no grids"), "{error}");
        let pin = GridPin {
            name: name("demo"),
            chain: ChainId(Hash([1; 32])),
            validators: Hash([2; 32]),
            replicas: vec![croft_protocol::boot::ReplicaAddress {
                address: "127.0.0.1:4600".parse().unwrap(),
                key: PublicKey([3; 32]),
            }],
        };
        home.add_grid(&pin).unwrap();
        assert_eq!(home.grid(None).unwrap(), pin);
        assert!(home.add_grid(&pin).unwrap_err().to_string().contains("grid 'demo' exists in"));
        let error = home.grid(Some(&name("other"))).unwrap_err().to_string();
        assert!(error.contains("there is no grid 'other' in") && error.contains("it has demo"), "{error}");
    }
}
