//! Releases of the Croft image: what the release keys sign, what farms choose, what nodes say became of it.
//!
//! ```text
//!   ReleaseKeys ──threshold signs──> Release ──> its channel's head ──> nodes whose farm's policy names the channel
//!                                       │  trial, health                           │
//!                                       └── halted <── a key's owner, or too many returns ── ReleaseOutcome
//! ```
//! Versions of a channel only grow, and no node goes back below the highest version that it confirmed, or
//! below the newest release's `minimum`. It must never be possible to serve an old release as new, or to take a
//! signature for one channel, place or grid for another's.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::header::ChainId;
use crate::image::Chunk;
use crate::keys::Domain;
use crate::{DecodeError, FarmId, Hash, Name, NodeId, PublicKey, SecretKey, Signature, limits};

impl Domain {
    pub const RELEASE: Self = Self("croft/release/1");
    pub const RELEASE_KEYS: Self = Self("croft/release-keys/1");
}

/// `major.minor.patch`, in that order of weight. A boot file carries its own as text in `/etc/croft/release`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize,
)]
pub struct ReleaseVersion {
    pub major: u16,
    pub minor: u16,
    pub patch: u32,
}

/// A text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is not a release's version: use three numbers such as 1.4.20, up to 65535.65535.4294967295"
)]
pub struct InvalidVersion {
    pub text: String,
}

impl FromStr for ReleaseVersion {
    type Err = InvalidVersion;

    /// One text per version: no sign, no leading zero, nothing around it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.split('.');
            let version = Self {
                major: parts.next()?.parse().ok()?,
                minor: parts.next()?.parse().ok()?,
                patch: parts.next()?.parse().ok()?,
            };
            (parts.next().is_none() && version.to_string() == text).then_some(version)
        };
        parse().ok_or_else(|| InvalidVersion { text: text.chars().take(80).collect() })
    }
}

impl fmt::Display for ReleaseVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}.{}", self.major, self.minor, self.patch))
    }
}

impl Serialize for ReleaseVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReleaseVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as Deserialize>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A release: hash of its channel and version.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(transparent)]
pub struct ReleaseId(pub Hash);

impl ReleaseId {
    #[must_use]
    pub fn new(channel: &Name, version: ReleaseVersion) -> Self {
        Self(Hash::of("croft/release-id/1", &(channel, version)))
    }

    /// Where a node stands in a staged rollout: 0 to 999, other for each release, so that it is not always the
    /// same nodes that go first. A node takes part where this is below its policy's share.
    #[must_use]
    pub fn stage_of(&self, node: &NodeId) -> u16 {
        let hash = Hash::of("croft/release-stage/1", &(self, node));
        let number = u64::from_le_bytes(hash.0[..8].try_into().expect("eight of 32 bytes"));
        (number % 1000) as u16
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What release keys sign.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    pub channel: Name,
    /// Greater than every earlier one of its channel.
    pub version: ReleaseVersion,
    /// The channel's latest before it, halted or not; `None` for a channel's first.
    pub previous: Option<ReleaseVersion>,
    /// Whoever follows the channel boots nothing older any more. Never falls within a channel.
    pub minimum: ReleaseVersion,
    pub boot_file: BootFile,
    /// What a TPM shows of this boot file on every machine, in ascending order, each once: without all of it a node is
    /// not `attested`. Other registers are the machine's.
    pub measurements: Vec<Measurement>,
    pub stop: StopRule,
    /// For people: what changed. Never decides anything.
    pub notes: String,
}

/// The one file that a machine boots, and what others know it by.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootFile {
    /// Plain SHA-256 of the whole file.
    pub sha256: Hash,
    pub size_bytes: u64,
    /// SHA-256 that its Authenticode signature covers: what firmware measures into register 4 and the node into
    /// register 11.
    pub authenticode: Hash,
    /// Hash of its [`BootManifest`], a blob that lists its chunks.
    pub manifest: Hash,
}

/// An event that a register holds under this release. Those of register 11 count where kexec started it, all others
/// where firmware did.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// 0 to 23.
    pub pcr: u8,
    /// SHA-256 as it is extended.
    pub digest: Hash,
}

/// When nodes that returned stop a rollout: at least this many, and at least this share of all that tried.
///
/// Whoever owns many nodes must not stop everybody's rollout alone, nor keep a bad one going. So of one farmer's returns,
/// over all his farms, at most half of the number count, rounded up; and for the share his nodes weigh at most as much as
/// all others together. A number of 1 is one that a single node reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRule {
    /// 1 and more.
    pub returns: u32,
    /// 1 to 1000.
    pub per_mille: u16,
}

impl Default for StopRule {
    /// Three machines may have trouble of their own; a tenth of all that tried is no accident.
    fn default() -> Self {
        Self { returns: 3, per_mille: 100 }
    }
}

/// How many nodes of one farmer tried a release, and what became of it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
pub struct Tried {
    pub confirmed: u64,
    pub returned: u64,
}

/// How many nodes tried a release, and what became of it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
pub struct Trials {
    pub confirmed: u64,
    pub returned: u64,
    /// Returns that count for the number of the [`StopRule`]: of each farmer's at most [`StopRule::counted_of_one`].
    pub counted: u64,
    /// Of the farmer with the most nodes that tried it.
    pub largest: Tried,
}

impl Tried {
    fn all(self) -> u128 {
        u128::from(self.confirmed) + u128::from(self.returned)
    }
}

impl Trials {
    /// Adds what one node said to these and to its farmer's. `None` when a number would overflow.
    #[must_use]
    pub fn count(mut self, mut farmers: Tried, outcome: &Outcome, rule: StopRule) -> Option<(Self, Tried)> {
        let (all, own) = match outcome {
            Outcome::Confirmed => (&mut self.confirmed, &mut farmers.confirmed),
            Outcome::Returned { .. } => (&mut self.returned, &mut farmers.returned),
        };
        *all = all.checked_add(1)?;
        *own = own.checked_add(1)?;
        if matches!(outcome, Outcome::Returned { .. }) && farmers.returned <= rule.counted_of_one() {
            self.counted = self.counted.checked_add(1)?;
        }
        if farmers.all() > self.largest.all() {
            self.largest = farmers;
        }
        Some((self, farmers))
    }
}

impl StopRule {
    /// How many returns of one farmer's nodes count.
    #[must_use]
    pub fn counted_of_one(self) -> u64 {
        u64::from(self.returns).div_ceil(2)
    }

    #[must_use]
    pub fn stops(&self, trials: Trials) -> bool {
        trials.counted >= u64::from(self.returns) && self.is_share(trials)
    }

    fn is_share(self, trials: Trials) -> bool {
        let one = trials.largest;
        let others = Tried {
            confirmed: trials.confirmed.saturating_sub(one.confirmed),
            returned: trials.returned.saturating_sub(one.returned),
        };
        // Only one farmer can have more than all others; his nodes are scaled down to as many as theirs.
        let (returned, all) = if one.all() <= others.all() || others.all() == 0 {
            let whole = Tried { confirmed: trials.confirmed, returned: trials.returned };
            (u128::from(whole.returned), whole.all())
        } else {
            let own = u128::from(one.returned).saturating_mul(others.all());
            let theirs = u128::from(others.returned).saturating_mul(one.all());
            (own.saturating_add(theirs), one.all().saturating_mul(others.all()).saturating_mul(2))
        };
        returned.saturating_mul(1000) >= all.saturating_mul(u128::from(self.per_mille))
    }
}

/// A boot file in pieces: each is compressed with zstd and stored under SHA-256 of its compressed bytes.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct BootManifest {
    /// 1.
    pub version: u32,
    pub size_bytes: u64,
    /// In order, each of [`limits::CHUNK_BYTES`] but the last.
    pub chunks: Vec<Chunk>,
}

/// A list of pieces that is no boot file's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBootManifest {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("boot manifest {hash} is not what the release names ({wanted}): the sender is broken or lies")]
    Hash { hash: Hash, wanted: Hash },
    #[error("boot manifest {hash} is inconsistent: {reason}; publish the release again")]
    Inconsistent { hash: Hash, reason: String },
}

impl BootManifest {
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of_bytes(&crate::encode(self))
    }

    /// Decodes and checks the manifest of a release's boot file.
    ///
    /// # Errors
    /// [`InvalidBootManifest`] when it is another's, malformed or inconsistent.
    pub fn check(bytes: &[u8], file: &BootFile) -> Result<Self, InvalidBootManifest> {
        let (hash, wanted) = (Hash::of_bytes(bytes), file.manifest);
        if hash != wanted {
            return Err(InvalidBootManifest::Hash { hash, wanted });
        }
        let manifest: Self = crate::decode("boot manifest", bytes, limits::BLOB_BYTES)?;
        let inconsistent = |reason: String| Err(InvalidBootManifest::Inconsistent { hash, reason });
        if manifest.version != 1 {
            return inconsistent(format!("version {} is unknown", manifest.version));
        }
        if manifest.size_bytes != file.size_bytes || file.size_bytes > limits::BOOT_FILE_BYTES {
            return inconsistent(format!("it has {} bytes, not {}", manifest.size_bytes, file.size_bytes));
        }
        let expected = manifest.size_bytes.div_ceil(limits::CHUNK_BYTES as u64);
        if manifest.chunks.len() as u64 != expected {
            return inconsistent(format!("{} chunks where {expected} are needed", manifest.chunks.len()));
        }
        let large = |chunk: &&Chunk| chunk.compressed_bytes as usize > limits::BLOB_BYTES;
        if let Some(chunk) = manifest.chunks.iter().find(large) {
            return inconsistent(format!("chunk {} has {} bytes", chunk.hash, chunk.compressed_bytes));
        }
        Ok(manifest)
    }

    /// Uncompressed bytes of chunk `index`.
    #[must_use]
    pub fn chunk_len(&self, index: usize) -> usize {
        let start = index as u64 * limits::CHUNK_BYTES as u64;
        self.size_bytes.saturating_sub(start).min(limits::CHUNK_BYTES as u64) as usize
    }
}

/// Who may release, and how many of them it takes.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseKeys {
    /// 1 to the number of keys.
    pub threshold: u8,
    /// In ascending order, each once.
    pub keys: Vec<PublicKey>,
}

/// Other release keys for the present ones.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyChange {
    /// Hash of the record of keys that this one supersedes; `None` for the grid's first.
    pub prev: Option<Hash>,
    pub keys: ReleaseKeys,
}

/// Signatures in ascending order of keys, each key at most once.
pub type Signatures = Vec<(PublicKey, Signature)>;

/// The present keys' threshold signs. Before there are any, more than two thirds of the validators' power does.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedKeyChange {
    pub change: KeyChange,
    /// Over [`Domain::RELEASE_KEYS`].
    pub signatures: Signatures,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct SignedRelease {
    pub release: Release,
    /// Over [`Domain::RELEASE`].
    #[serde(skip)]
    pub signatures: Signatures,
}

/// Puts a signature in its place; a key's new one replaces its old one.
pub fn add_signature(signatures: &mut Signatures, (key, signature): (PublicKey, Signature)) {
    match signatures.binary_search_by_key(&key, |(key, _)| *key) {
        Ok(at) => signatures[at].1 = signature,
        Err(at) => signatures.insert(at, (key, signature)),
    }
}

/// What the ledger says of a release.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct ReleaseBody {
    pub signed: SignedRelease,
    pub state: ReleaseState,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseState {
    Published,
    /// Nobody begins with it any more. Who confirmed it keeps it until there is a newer one.
    Halted(Halt),
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Halt {
    /// The owner of one release key said so: to stop takes fewer than to go.
    Key { key: PublicKey, reason: String },
    /// Its [`StopRule`] said so.
    Returns { trials: Trials },
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { key, reason } => write!(f, "halted by release key {}: {reason}", key.short()),
            Self::Returns { trials } => write!(
                f,
                "halted by itself: {} nodes returned to the release before, {} confirmed it",
                trials.returned, trials.confirmed
            ),
        }
    }
}

/// A line of releases, of which each supersedes the one before.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct ChannelBody {
    pub name: Name,
    /// The newest, halted or not: the next one must name it.
    pub latest: ReleaseVersion,
    /// What nodes take: the newest that is not halted.
    pub offered: Option<ReleaseVersion>,
    /// Of the newest: nodes boot nothing older.
    pub minimum: ReleaseVersion,
}

/// What a farm's owner decided about upgrades of its nodes. A farm without one gets none.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FarmPolicy {
    pub channel: Name,
    /// How many of a thousand nodes take the newest release; see [`ReleaseId::stage_of`].
    pub share_per_mille: u16,
    /// When nodes may restart; `None` for at any time.
    pub window: Option<Window>,
    /// Nothing is begun while this is set.
    pub hold: bool,
}

/// A time of the day, UTC; may pass midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Minutes after midnight: 0 to 1439.
    pub start_minute: u16,
    /// 1 to 1440.
    pub duration_minutes: u16,
}

/// Minutes of a day.
pub const DAY_MINUTES: u16 = 1440;

impl Window {
    /// Whether a time, in milliseconds since 1970, lies in it.
    #[must_use]
    pub fn contains(&self, time_ms: u64) -> bool {
        let day = u64::from(DAY_MINUTES);
        let minute = time_ms / 60_000 % day;
        (minute + day - u64::from(self.start_minute) % day) % day < u64::from(self.duration_minutes)
    }
}

impl FarmPolicy {
    /// # Errors
    /// [`InvalidRelease`] names the number that is out of bounds.
    pub fn check(&self) -> Result<(), InvalidRelease> {
        bounds("the share per mille", self.share_per_mille, 0_u16, 1000_u16)?;
        if let Some(window) = self.window {
            bounds("the window's start in minutes", window.start_minute, 0_u16, DAY_MINUTES - 1)?;
            bounds("the window's duration in minutes", window.duration_minutes, 1_u16, DAY_MINUTES)?;
        }
        Ok(())
    }
}

/// What became of a release on one node: once for each.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct OutcomeBody {
    pub node: NodeId,
    pub farm: FarmId,
    pub channel: Name,
    pub version: ReleaseVersion,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It registered under the release and was healthy in time.
    Confirmed,
    /// It went back to the one before. The reason is for people and decides nothing.
    Returned { reason: String },
}

/// Why a release, its keys, a policy or an outcome does not count. Names the culprit, and says what would help.
#[derive(
    Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize, thiserror::Error,
)]
#[serde(rename_all = "snake_case")]
pub enum InvalidRelease {
    #[error("{what} must be {from} to {to}, not {got}")]
    Bounds { what: String, got: u64, from: u64, to: u64 },
    #[error("{what} must stand in ascending order, each once")]
    Order { what: String },
    #[error("this grid has no release keys: its validators set them first, with 'croft release keys'")]
    NoKeys,
    #[error(
        "it supersedes the release keys of record {}, but the present ones are of {}: make and sign it again",
        or_none(theirs.as_ref()),
        or_none(present.as_ref())
    )]
    StaleKeys { theirs: Option<Hash>, present: Option<Hash> },
    #[error("the release keys and their threshold are already these")]
    SameKeys,
    #[error("{key} signed it but is no {role}: leave that signature out")]
    Stranger { key: PublicKey, role: String },
    #[error("the signature of {key} is wrong: have it signed again")]
    BadSignature { key: PublicKey },
    #[error("it is signed by {have} of the {need} release keys that are needed: have more sign it")]
    TooFewSignatures { have: u64, need: u64 },
    #[error(
        "it is signed by {power} of {total} power of the validators, more than two thirds set a grid's first release keys: have more sign it"
    )]
    TooLittlePower { power: u64, total: u64 },
    #[error(
        "it follows {}, but the latest release of channel '{channel}' is {}: make and sign it again",
        or_none(previous.as_ref()),
        or_none(latest.as_ref())
    )]
    NotNext { channel: Name, previous: Option<ReleaseVersion>, latest: Option<ReleaseVersion> },
    #[error(
        "version {version} is not above {latest}, the latest of channel '{channel}': choose a greater one"
    )]
    NotNewer { channel: Name, version: ReleaseVersion, latest: ReleaseVersion },
    #[error(
        "its minimum {minimum} must be between {before}, the channel's present one, and its own version {version}"
    )]
    Minimum { minimum: ReleaseVersion, before: ReleaseVersion, version: ReleaseVersion },
    #[error("there is no release {version} in channel '{channel}' on this grid")]
    Unknown { channel: Name, version: ReleaseVersion },
    #[error("release {version} of channel '{channel}' is halted already")]
    AlreadyHalted { channel: Name, version: ReleaseVersion },
    #[error("the node has said already what became of release {version} of channel '{channel}'")]
    AlreadyTold { channel: Name, version: ReleaseVersion },
    #[error("the node's farm does not follow channel '{channel}'")]
    NotFollowed { channel: Name },
    #[error("the node is registered with release '{registered}', which does not fit: {rule}")]
    Registered { registered: String, rule: String },
}

fn or_none<T: fmt::Display>(value: Option<&T>) -> String {
    value.map_or_else(|| "none".to_owned(), ToString::to_string)
}

fn bounds(
    what: &str,
    got: impl Into<u64>,
    from: impl Into<u64>,
    to: impl Into<u64>,
) -> Result<(), InvalidRelease> {
    let (got, from, to) = (got.into(), from.into(), to.into());
    if (from..=to).contains(&got) {
        return Ok(());
    }
    Err(InvalidRelease::Bounds { what: what.to_owned(), got, from, to })
}

fn ascending<T: Ord>(what: &str, list: impl IntoIterator<Item = T>) -> Result<(), InvalidRelease> {
    let mut before: Option<T> = None;
    for item in list {
        if before.is_some_and(|before| before >= item) {
            return Err(InvalidRelease::Order { what: what.to_owned() });
        }
        before = Some(item);
    }
    Ok(())
}

impl ReleaseKeys {
    /// Keys in their order.
    #[must_use]
    pub fn new(threshold: u8, mut keys: Vec<PublicKey>) -> Self {
        keys.sort_unstable();
        keys.dedup();
        Self { threshold, keys }
    }

    /// # Errors
    /// [`InvalidRelease`] names what is out of bounds or order.
    pub fn check(&self) -> Result<(), InvalidRelease> {
        bounds("the number of release keys", self.keys.len() as u64, 1_u64, limits::RELEASE_KEYS as u64)?;
        bounds("the threshold", self.threshold, 1_u64, self.keys.len() as u64)?;
        ascending("the release keys", &self.keys)
    }

    #[must_use]
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.keys.binary_search(key).is_ok()
    }

    /// That enough of these keys signed a value; the signatures themselves last, since they cost most.
    fn verify<T: BorshSerialize>(
        &self,
        domain: Domain,
        chain: &ChainId,
        value: &T,
        signatures: &Signatures,
    ) -> Result<(), InvalidRelease> {
        ascending("the signatures", signatures.iter().map(|(key, _)| key))?;
        if let Some((key, _)) = signatures.iter().find(|(key, _)| !self.contains(key)) {
            return Err(InvalidRelease::Stranger { key: *key, role: "release key".to_owned() });
        }
        let (have, need) = (signatures.len() as u64, u64::from(self.threshold));
        if have < need {
            return Err(InvalidRelease::TooFewSignatures { have, need });
        }
        verify_all(domain, chain, value, signatures)
    }
}

fn verify_all<T: BorshSerialize>(
    domain: Domain,
    chain: &ChainId,
    value: &T,
    signatures: &Signatures,
) -> Result<(), InvalidRelease> {
    for (key, signature) in signatures {
        let bad = |_| InvalidRelease::BadSignature { key: *key };
        key.verify(domain, chain, value, signature).map_err(bad)?;
    }
    Ok(())
}

impl KeyChange {
    #[must_use]
    pub fn sign(&self, key: &SecretKey, chain: &ChainId) -> (PublicKey, Signature) {
        (key.public(), key.sign(Domain::RELEASE_KEYS, chain, self))
    }
}

impl SignedKeyChange {
    /// Checks a change of the present keys, which stand in the record of that hash.
    ///
    /// # Errors
    /// [`InvalidRelease`] names the first culprit.
    pub fn check(&self, chain: &ChainId, record: Hash, present: &ReleaseKeys) -> Result<(), InvalidRelease> {
        self.check_form(Some(record))?;
        if self.change.keys == *present {
            return Err(InvalidRelease::SameKeys);
        }
        present.verify(Domain::RELEASE_KEYS, chain, &self.change, &self.signatures)
    }

    /// Checks a grid's first keys.
    ///
    /// # Errors
    /// [`InvalidRelease`] names the first culprit.
    pub fn check_first(
        &self,
        chain: &ChainId,
        validators: &crate::ValidatorSet,
    ) -> Result<(), InvalidRelease> {
        self.check_form(None)?;
        ascending("the signatures", self.signatures.iter().map(|(key, _)| key))?;
        let mut power = 0;
        for (key, _) in &self.signatures {
            match validators.power_of(key) {
                0 => {
                    return Err(InvalidRelease::Stranger { key: *key, role: "validator".to_owned() });
                }
                has => power += has,
            }
        }
        let total = validators.total_power();
        if power * 3 <= total * 2 {
            return Err(InvalidRelease::TooLittlePower { power, total });
        }
        verify_all(Domain::RELEASE_KEYS, chain, &self.change, &self.signatures)
    }

    fn check_form(&self, present: Option<Hash>) -> Result<(), InvalidRelease> {
        if self.change.prev != present {
            return Err(InvalidRelease::StaleKeys { theirs: self.change.prev, present });
        }
        self.change.keys.check()
    }
}

impl Release {
    #[must_use]
    pub fn id(&self) -> ReleaseId {
        ReleaseId::new(&self.channel, self.version)
    }

    #[must_use]
    pub fn sign(&self, key: &SecretKey, chain: &ChainId) -> (PublicKey, Signature) {
        (key.public(), key.sign(Domain::RELEASE, chain, self))
    }

    /// Checks what does not depend on the ledger.
    ///
    /// # Errors
    /// [`InvalidRelease`] names what is out of bounds or order.
    pub fn check_form(&self) -> Result<(), InvalidRelease> {
        bounds("the boot file's size in bytes", self.boot_file.size_bytes, 1_u64, limits::BOOT_FILE_BYTES)?;
        bounds(
            "the number of measurements",
            self.measurements.len() as u64,
            0_u64,
            limits::RELEASE_MEASUREMENTS as u64,
        )?;
        ascending("the measurements", &self.measurements)?;
        for measurement in &self.measurements {
            bounds("a measurement's register", measurement.pcr, 0_u64, 23_u64)?;
        }
        bounds("the stop rule's returns", self.stop.returns, 1_u64, u32::MAX)?;
        bounds("the stop rule's share per mille", self.stop.per_mille, 1_u64, 1000_u64)?;
        bounds("the notes' length in bytes", self.notes.len() as u64, 0_u64, limits::TEXT_BYTES as u64)
    }

    /// Checks that it may follow what its channel has.
    ///
    /// # Errors
    /// [`InvalidRelease`] names the first culprit.
    pub fn check_follows(&self, channel: Option<&ChannelBody>) -> Result<(), InvalidRelease> {
        let latest = channel.map(|channel| channel.latest);
        if let Some(latest) = latest.filter(|latest| self.version <= *latest) {
            let (channel, version) = (self.channel.clone(), self.version);
            return Err(InvalidRelease::NotNewer { channel, version, latest });
        }
        if self.previous != latest {
            let (channel, previous) = (self.channel.clone(), self.previous);
            return Err(InvalidRelease::NotNext { channel, previous, latest });
        }
        let (minimum, version) = (self.minimum, self.version);
        let before = channel.map(|channel| channel.minimum).unwrap_or_default();
        if !(before..=version).contains(&minimum) {
            return Err(InvalidRelease::Minimum { minimum, before, version });
        }
        Ok(())
    }
}

impl SignedRelease {
    /// Checks form and signatures.
    ///
    /// # Errors
    /// [`InvalidRelease`] names the first culprit.
    pub fn check(&self, chain: &ChainId, keys: &ReleaseKeys) -> Result<(), InvalidRelease> {
        self.release.check_form()?;
        keys.verify(Domain::RELEASE, chain, &self.release, &self.signatures)
    }

    pub fn add(&mut self, signature: (PublicKey, Signature)) {
        add_signature(&mut self.signatures, signature);
    }
}

#[cfg(test)]
mod tests;
