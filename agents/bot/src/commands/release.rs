//! `croft release`: what release keys sign, what nodes take, and what became of it.
//!
//! ```text
//!   prepare, keys propose ──> file ── sign, by each owner of a release key ──> file ── publish ──> ledger, blobs
//! ```
//! At every step a file is checked against what the ledger has, by the ledger's own rules, so that nobody signs what
//! will be refused. It must never sign what it has not shown, nor publish a release whose boot file is not at the
//! replicas.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use croft_attest::predict::predicted;
use croft_media::pe::{Pe, PeError};
use croft_protocol::image::Chunk;
use croft_protocol::release::{
    BootFile, BootManifest, ChannelBody, InvalidRelease, KeyChange, Measurement, Release, ReleaseBody,
    ReleaseKeys, ReleaseState, Signatures, SignedKeyChange, SignedRelease, StopRule, Trials, add_signature,
};
use croft_protocol::{
    Body, ChainId, Command, Hash, Name, PublicKey, RecordId, ReleaseId, ReleaseVersion, SecretKey, Signature,
    limits, units,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Context;
use super::validators;
use crate::exit::Failure;
use crate::files;
use crate::flags::{PrepareFlags, PublishFlags, ReleaseTarget};
use crate::grid::{Grid, GridError};
use crate::terminal::{push, table};

/// A release with its notes and all signatures has some 10 KiB.
const FILE_BYTES: u64 = 256 * 1024;
/// For boot files, as for images.
const COMPRESSION_LEVEL: i32 = 12;
/// Versions of a channel that are listed.
const LISTED: usize = 100;

#[derive(Debug, thiserror::Error)]
enum ReleaseError {
    #[error(
        "grid '{grid}' has no release keys: make some with 'croft release keys new', then 'croft release keys propose'"
    )]
    NoKeys { grid: Name },
    #[error("channel '{channel}' has no release on grid '{grid}'")]
    NoChannel { channel: Name, grid: Name },
    #[error(
        "there is no release {version} in channel '{channel}' on grid '{grid}': 'croft release list {channel}' lists them"
    )]
    NoRelease { channel: Name, version: ReleaseVersion, grid: Name },
    #[error("the key in {path} is {key}, which is no {role} of grid '{grid}'")]
    NotOurs { path: PathBuf, key: PublicKey, role: &'static str, grid: Name },
    #[error("{path} is there already: choose another file")]
    Exists { path: PathBuf },
    #[error("can't read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("can't write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is nothing to be released: {reason}; make one with 'croft release prepare'")]
    BadFile { path: PathBuf, reason: String },
    #[error("{path} is for chain {theirs}, but grid '{grid}' is {ours}: choose the grid with --grid")]
    OtherChain { path: PathBuf, grid: Name, theirs: ChainId, ours: ChainId },
    #[error("{path} is about something else than {first}: publish copies of one and the same file")]
    OtherSubject { path: PathBuf, first: PathBuf },
    #[error("grid '{grid}' would not take it")]
    Invalid { grid: Name, source: InvalidRelease },
    #[error("{path} is no boot file: it can't be started by firmware")]
    BootFile { path: PathBuf, source: PeError },
    #[error("{path} has {len} bytes, a boot file has at most {limit}", limit = limits::BOOT_FILE_BYTES)]
    TooLarge { path: PathBuf, len: u64 },
    #[error("{path} is not the boot file of this release: its SHA-256 is {found}, the release has {wanted}")]
    OtherBootFile { path: PathBuf, found: Hash, wanted: Hash },
    #[error("say where the boot file is with --boot-file: nodes fetch it from the replicas")]
    NoBootFile,
    #[error("the boot file can't be compressed")]
    Compress(#[source] std::io::Error),
    #[error("the kernel gives no randomness")]
    Randomness(#[source] getrandom::Error),
}

/// What people pass on to one another.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Subject {
    Release(Release),
    Keys(KeyChange),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    grid: Name,
    chain: ChainId,
    subject: Subject,
    signatures: Vec<FileSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSignature {
    key: PublicKey,
    /// 128 hex digits.
    signature: String,
}

/// A file's content, as the ledger wants it.
struct Paper {
    subject: Subject,
    signatures: Signatures,
}

/// The chain and the content of a file's text; the signatures are not checked yet.
fn parse(text: &str) -> Result<(ChainId, Paper), String> {
    let file: File = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut signatures = Signatures::new();
    for FileSignature { key, signature } in file.signatures {
        let mut bytes = [0; 64];
        hex::decode_to_slice(&signature, &mut bytes)
            .map_err(|_| format!("the signature of {key} is not 128 hex digits"))?;
        add_signature(&mut signatures, (key, Signature(bytes)));
    }
    Ok((file.chain, Paper { subject: file.subject, signatures }))
}

/// Whether a text is a file that `croft release` would read. For fuzzing.
#[must_use]
pub(crate) fn is_file(text: &str) -> bool {
    parse(text).is_ok()
}

impl Paper {
    fn load(grid: &Grid, path: &Path) -> Result<Self, Failure> {
        let failed = |source| Failure::failed(ReleaseError::Read { path: path.to_owned(), source });
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
        let (theirs, paper) = parse(&text)
            .map_err(|reason| Failure::usage(ReleaseError::BadFile { path: path.to_owned(), reason }))?;
        let ours = grid.pin().chain;
        if theirs != ours {
            let (path, grid) = (path.to_owned(), grid.name().clone());
            return Err(Failure::usage(ReleaseError::OtherChain { path, grid, theirs, ours }));
        }
        Ok(paper)
    }

    fn text(&self, grid: &Grid) -> Result<String, Failure> {
        let signature = |(key, signature): &(PublicKey, Signature)| FileSignature {
            key: *key,
            signature: hex::encode(signature.0),
        };
        let file = File {
            grid: grid.name().clone(),
            chain: grid.pin().chain,
            subject: self.subject.clone(),
            signatures: self.signatures.iter().map(signature).collect(),
        };
        serde_json::to_string_pretty(&file).map(|text| text + "\n").map_err(Failure::failed)
    }

    fn write_new(&self, grid: &Grid, out: &Path) -> Result<(), Failure> {
        let text = self.text(grid)?;
        let failed = |source| Failure::failed(ReleaseError::Write { path: out.to_owned(), source });
        let new = files::aside(out, text.as_bytes(), true).and_then(|file| file.add(out)).map_err(failed)?;
        if new { Ok(()) } else { Err(Failure::usage(ReleaseError::Exists { path: out.to_owned() })) }
    }

    /// Checks it by the ledger's rules; where `complete`, with all signatures that it takes.
    fn check(&self, grid: &Grid, present: &Present, complete: bool) -> Result<(), InvalidRelease> {
        let chain = &grid.pin().chain;
        let result = match &self.subject {
            Subject::Release(release) => {
                release.check_follows(present.channel.as_ref())?;
                let signed = SignedRelease { release: release.clone(), signatures: self.signatures.clone() };
                signed.check(chain, &present.keys.as_ref().ok_or(InvalidRelease::NoKeys)?.1)
            }
            Subject::Keys(change) => {
                let signed = SignedKeyChange { change: change.clone(), signatures: self.signatures.clone() };
                match &present.keys {
                    Some((record, keys)) => signed.check(chain, *record, keys),
                    None => signed.check_first(chain, &present.validators),
                }
            }
        };
        match result {
            Err(InvalidRelease::TooFewSignatures { .. } | InvalidRelease::TooLittlePower { .. })
                if !complete =>
            {
                Ok(())
            }
            result => result,
        }
    }

    fn sign(&mut self, key: &SecretKey, chain: &ChainId) {
        let signature = match &self.subject {
            Subject::Release(release) => release.sign(key, chain),
            Subject::Keys(change) => change.sign(key, chain),
        };
        add_signature(&mut self.signatures, signature);
    }
}

fn invalid(grid: &Grid, source: InvalidRelease) -> Failure {
    Failure::refused(ReleaseError::Invalid { grid: grid.name().clone(), source })
}

/// What the ledger has, proved.
struct Present {
    keys: Option<(Hash, ReleaseKeys)>,
    channel: Option<ChannelBody>,
    validators: croft_protocol::ValidatorSet,
}

impl Present {
    async fn read(grid: &Grid, subject: &Subject) -> Result<Self, Failure> {
        let channel = match subject {
            Subject::Release(release) => channel(grid, &release.channel).await?,
            Subject::Keys(_) => None,
        };
        Ok(Self { keys: keys(grid).await?, channel, validators: validators::present_set(grid).await? })
    }

    /// Whose signature counts for a subject.
    fn may_sign(&self, key: &PublicKey) -> bool {
        match &self.keys {
            Some((_, keys)) => keys.contains(key),
            None => self.validators.power_of(key) > 0,
        }
    }
}

fn broken(grid: &Grid, what: &str) -> Failure {
    GridError::OtherRecord { grid: grid.name().clone(), what: what.to_owned() }.into()
}

/// The present release keys with the hash of their record.
async fn keys(grid: &Grid) -> Result<Option<(Hash, ReleaseKeys)>, Failure> {
    let Some(record) = grid.record(RecordId::release_keys()).await? else { return Ok(None) };
    let hash = record.hash();
    match record.body {
        Body::ReleaseKeys(keys) => Ok(Some((hash, keys))),
        _ => Err(broken(grid, "the release keys")),
    }
}

async fn channel(grid: &Grid, name: &Name) -> Result<Option<ChannelBody>, Failure> {
    match grid.record(RecordId::channel(name)).await?.map(|record| record.body) {
        None => Ok(None),
        Some(Body::Channel(channel)) if channel.name == *name => Ok(Some(channel)),
        Some(_) => Err(broken(grid, "a channel")),
    }
}

async fn release(grid: &Grid, channel: &Name, version: ReleaseVersion) -> Result<ReleaseBody, Failure> {
    let id = ReleaseId::new(channel, version);
    match grid.record(RecordId::release(&id)).await?.map(|record| record.body) {
        Some(Body::Release(body)) if body.signed.release.id() == id => Ok(*body),
        Some(_) => Err(broken(grid, "a release")),
        None => {
            let (channel, grid) = (channel.clone(), grid.name().clone());
            Err(Failure::not_found(ReleaseError::NoRelease { channel, version, grid }))
        }
    }
}

#[derive(Serialize)]
struct KeysView {
    grid: Name,
    record: Hash,
    threshold: u8,
    keys: Vec<PublicKey>,
}

pub(super) async fn keys_show(c: &mut Context<'_>) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let found = keys(&grid).await?;
    let name = grid.name().clone();
    let (record, keys) =
        found.ok_or_else(|| Failure::not_found(ReleaseError::NoKeys { grid: name.clone() }))?;
    grid.close().await;
    let view = KeysView { grid: name, record, threshold: keys.threshold, keys: keys.keys };
    c.terminal.result(&view, |view| {
        let mut text =
            format!("grid '{}': {} of {} release keys sign\n", view.grid, view.threshold, view.keys.len());
        for key in &view.keys {
            push!(text, "  {key}\n");
        }
        text
    })
}

#[derive(Serialize)]
struct NewKeyView {
    file: PathBuf,
    key: PublicKey,
}

pub(super) fn keys_new(c: &mut Context<'_>, path: &Path) -> Result<(), Failure> {
    let key = SecretKey::generate().map_err(|e| Failure::failed(ReleaseError::Randomness(e)))?;
    let failed = |source| Failure::failed(ReleaseError::Write { path: path.to_owned(), source });
    let text = hex::encode(key.seed()) + "\n";
    // Files that are written aside are their owner's alone.
    let new = files::aside(path, text.as_bytes(), true).and_then(|file| file.add(path)).map_err(failed)?;
    if !new {
        return Err(Failure::usage(ReleaseError::Exists { path: path.to_owned() }));
    }
    let view = NewKeyView { file: path.to_owned(), key: key.public() };
    c.terminal.result(&view, |view| {
        format!("release key {} is in {}: keep it offline\n", view.key, view.file.display())
    })
}

/// What a file says, and how far it is.
#[derive(Serialize)]
struct PaperView {
    grid: Name,
    file: PathBuf,
    subject: Subject,
    signed: Vec<PublicKey>,
    /// Whether it can be published.
    enough: bool,
}

impl PaperView {
    fn new(grid: &Grid, file: &Path, paper: &Paper, present: &Present) -> Result<Self, Failure> {
        paper.check(grid, present, false).map_err(|source| invalid(grid, source))?;
        Ok(Self {
            grid: grid.name().clone(),
            file: file.to_owned(),
            subject: paper.subject.clone(),
            signed: paper.signatures.iter().map(|(key, _)| *key).collect(),
            enough: paper.check(grid, present, true).is_ok(),
        })
    }

    fn text(&self) -> String {
        let mut text = match &self.subject {
            Subject::Release(release) => release_text(release),
            Subject::Keys(change) => {
                let keys = &change.keys;
                let mut text = format!("release keys, {} of {} sign\n", keys.threshold, keys.keys.len());
                for key in &keys.keys {
                    push!(text, "  {key}\n");
                }
                text
            }
        };
        for key in &self.signed {
            push!(text, "  signed by {key}\n");
        }
        let file = self.file.display();
        if self.enough {
            push!(text, "Next: 'croft release publish {file}'\n");
        } else {
            push!(text, "Next: owners of keys run 'croft release sign {file} --key FILE'\n");
        }
        text
    }
}

fn release_text(release: &Release) -> String {
    let mut text = format!("release {} of channel '{}'\n", release.version, release.channel);
    let previous = release.previous.map_or_else(|| "none".to_owned(), |version| version.to_string());
    push!(text, "  follows       {previous}; nodes boot nothing below {}\n", release.minimum);
    push!(
        text,
        "  boot file     {} ({})\n",
        release.boot_file.sha256,
        units::show_bytes(release.boot_file.size_bytes)
    );
    push!(text, "  Authenticode  {}\n", release.boot_file.authenticode);
    for Measurement { pcr, digest } in &release.measurements {
        push!(text, "  register {pcr:<4} {digest}\n");
    }
    push!(
        text,
        "  stops after   {} returns that are {} of 1000 trials\n",
        release.stop.returns,
        release.stop.per_mille
    );
    if !release.notes.is_empty() {
        push!(text, "  notes         {}\n", crate::terminal::printable(&release.notes));
    }
    text
}

pub(super) async fn keys_propose(
    c: &mut Context<'_>,
    new: &[PublicKey],
    threshold: u8,
    out: &Path,
) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let prev = keys(&grid).await?.map(|(record, _)| record);
    let subject = Subject::Keys(KeyChange { prev, keys: ReleaseKeys::new(threshold, new.to_vec()) });
    write_paper(c, grid, subject, out).await
}

/// Checks what is to be signed, writes it, and shows it.
async fn write_paper(c: &mut Context<'_>, grid: Grid, subject: Subject, out: &Path) -> Result<(), Failure> {
    let present = Present::read(&grid, &subject).await?;
    let paper = Paper { subject, signatures: Signatures::new() };
    let view = PaperView::new(&grid, out, &paper, &present)?;
    paper.write_new(&grid, out)?;
    grid.close().await;
    c.terminal.result(&view, PaperView::text)
}

/// A boot file cut into blobs.
struct Blobs {
    file: BootFile,
    /// The manifest comes last.
    blobs: Vec<Vec<u8>>,
}

impl Blobs {
    fn cut(path: &Path) -> Result<Self, Failure> {
        let failed = |source| Failure::failed(ReleaseError::Read { path: path.to_owned(), source });
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(limits::BOOT_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        let len = bytes.len() as u64;
        if len > limits::BOOT_FILE_BYTES {
            return Err(Failure::usage(ReleaseError::TooLarge { path: path.to_owned(), len }));
        }
        let bad = |source| Failure::usage(ReleaseError::BootFile { path: path.to_owned(), source });
        let authenticode = Hash(Pe::parse(&bytes).map_err(bad)?.hash());
        let mut blobs = Vec::new();
        let mut chunks = Vec::new();
        for chunk in bytes.chunks(limits::CHUNK_BYTES) {
            let packed = zstd::bulk::compress(chunk, COMPRESSION_LEVEL)
                .map_err(|e| Failure::failed(ReleaseError::Compress(e)))?;
            let compressed_bytes = u32::try_from(packed.len()).expect("a chunk has at most some MiB");
            chunks.push(Chunk { hash: Hash::of_bytes(&packed), compressed_bytes });
            blobs.push(packed);
        }
        let manifest = BootManifest { version: 1, size_bytes: len, chunks };
        blobs.push(croft_protocol::encode(&manifest));
        let sha256 = Hash(Sha256::digest(&bytes).into());
        let file = BootFile { sha256, size_bytes: len, authenticode, manifest: manifest.hash() };
        Ok(Self { file, blobs })
    }

    /// Stores at the replicas what they lack; the manifest last.
    async fn upload(&self, grid: &Grid) -> Result<(), Failure> {
        for blob in &self.blobs {
            let hash = Hash::of_bytes(blob);
            let has = grid.verified().has_blobs(&[hash]).await.map_err(|e| grid.error(e))?;
            if has.first() != Some(&true) {
                grid.verified().put_blob(blob.clone()).await.map_err(|e| grid.error(e))?;
            }
        }
        Ok(())
    }
}

pub(super) async fn prepare(c: &mut Context<'_>, flags: PrepareFlags) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let blobs = Blobs::cut(&flags.boot_file)?;
    let before = channel(&grid, &flags.channel).await?;
    let release = Release {
        previous: before.as_ref().map(|channel| channel.latest),
        minimum: flags.minimum.or(before.map(|channel| channel.minimum)).unwrap_or_default(),
        channel: flags.channel,
        version: flags.version,
        measurements: predicted(blobs.file.authenticode),
        boot_file: blobs.file,
        stop: StopRule { returns: flags.stop_returns, per_mille: flags.stop_share },
        notes: flags.notes,
    };
    release.check_form().map_err(|source| invalid(&grid, source))?;
    write_paper(c, grid, Subject::Release(release), &flags.out).await
}

pub(super) async fn sign(c: &mut Context<'_>, path: &Path, key_path: &Path) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let key = crate::home::read_key(key_path)?;
    let mut paper = Paper::load(&grid, path)?;
    let present = Present::read(&grid, &paper.subject).await?;
    if !present.may_sign(&key.public()) {
        let role = if present.keys.is_some() { "release key" } else { "validator" };
        let (path, key, grid) = (key_path.to_owned(), key.public(), grid.name().clone());
        return Err(Failure::refused(ReleaseError::NotOurs { path, key, role, grid }));
    }
    paper.sign(&key, &grid.pin().chain);
    // Before the signature is anywhere: nobody signs what the ledger would refuse.
    let view = PaperView::new(&grid, path, &paper, &present)?;
    let text = paper.text(&grid)?;
    let failed = |source| Failure::failed(ReleaseError::Write { path: path.to_owned(), source });
    files::aside(path, text.as_bytes(), true).and_then(|file| file.replace(path, true)).map_err(failed)?;
    grid.close().await;
    c.terminal.result(&view, PaperView::text)
}

#[derive(Serialize)]
struct Published {
    grid: Name,
    height: u64,
    subject: Subject,
}

pub(super) async fn publish(c: &mut Context<'_>, flags: &PublishFlags) -> Result<(), Failure> {
    let acting = c.acting()?;
    let grid = &acting.grid;
    let first = &flags.files[0];
    let mut paper = Paper::load(grid, first)?;
    for path in &flags.files[1..] {
        let other = Paper::load(grid, path)?;
        if other.subject != paper.subject {
            let error = ReleaseError::OtherSubject { path: path.clone(), first: first.clone() };
            return Err(Failure::usage(error));
        }
        other.signatures.into_iter().for_each(|signature| add_signature(&mut paper.signatures, signature));
    }
    let present = Present::read(grid, &paper.subject).await?;
    paper.check(grid, &present, true).map_err(|source| invalid(grid, source))?;
    let Paper { subject, signatures } = paper;
    let command = match subject.clone() {
        Subject::Keys(change) => Command::SetReleaseKeys(Box::new(SignedKeyChange { change, signatures })),
        Subject::Release(release) => {
            let path = flags.boot_file.as_ref().ok_or_else(|| Failure::usage(ReleaseError::NoBootFile))?;
            let blobs = Blobs::cut(path)?;
            if blobs.file.sha256 != release.boot_file.sha256 {
                let (path, found, wanted) = (path.clone(), blobs.file.sha256, release.boot_file.sha256);
                return Err(Failure::usage(ReleaseError::OtherBootFile { path, found, wanted }));
            }
            // Before the ledger knows it: nodes begin at once.
            blobs.upload(grid).await?;
            Command::PublishRelease(Box::new(SignedRelease { release, signatures }))
        }
    };
    let done = grid.submit(&acting.key, &command).await?;
    let height = done.height.unwrap_or(done.proved_at);
    acting.grid.close().await;
    let published = Published { grid: acting.grid.name().clone(), height, subject };
    c.terminal.result(&published, |published| {
        let what = match &published.subject {
            Subject::Keys(_) => "the release keys are set".to_owned(),
            Subject::Release(release) => {
                format!("release {} of channel '{}' is published", release.version, release.channel)
            }
        };
        format!("{what}, at height {}\n", published.height)
    })
}

#[derive(Serialize)]
struct ReleaseView {
    #[serde(flatten)]
    release: Release,
    state: ReleaseState,
    trials: Trials,
}

impl ReleaseView {
    async fn read(grid: &Grid, channel: &Name, version: ReleaseVersion) -> Result<Self, Failure> {
        let body = release(grid, channel, version).await?;
        let trials = grid.trials(ReleaseId::new(channel, version)).await?;
        Ok(Self { release: body.signed.release, state: body.state, trials })
    }

    fn state_text(&self) -> String {
        match &self.state {
            ReleaseState::Published => "published".to_owned(),
            ReleaseState::Halted(halt) => crate::terminal::printable(&halt.to_string()),
        }
    }
}

#[derive(Serialize)]
struct ListView {
    grid: Name,
    #[serde(flatten)]
    channel: ChannelBody,
    releases: Vec<ReleaseView>,
}

pub(super) async fn list(c: &mut Context<'_>, name: &Name) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let missing = || ReleaseError::NoChannel { channel: name.clone(), grid: grid.name().clone() };
    let channel = channel(&grid, name).await?.ok_or_else(|| Failure::not_found(missing()))?;
    let mut releases = Vec::new();
    let mut next = Some(channel.latest);
    while let Some(version) = next.filter(|_| releases.len() < LISTED) {
        let view = ReleaseView::read(&grid, name, version).await?;
        next = view.release.previous;
        releases.push(view);
    }
    grid.close().await;
    let view = ListView { grid: grid.name().clone(), channel, releases };
    c.terminal.result(&view, |view| {
        let offered = view.channel.offered.map_or_else(|| "nothing".to_owned(), |v| v.to_string());
        let rows: Vec<Vec<String>> = view.releases.iter().map(row).collect();
        format!(
            "channel '{}' offers {offered}; nodes boot nothing below {}\n{}",
            view.channel.name,
            view.channel.minimum,
            table(&["VERSION", "CONFIRMED", "RETURNED", "STATE"], &rows)
        )
    })
}

fn row(view: &ReleaseView) -> Vec<String> {
    let Trials { confirmed, returned, .. } = view.trials;
    vec![view.release.version.to_string(), confirmed.to_string(), returned.to_string(), view.state_text()]
}

pub(super) async fn show(c: &mut Context<'_>, target: &ReleaseTarget) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let view = ReleaseView::read(&grid, &target.channel, target.version).await?;
    grid.close().await;
    show_view(c, &view)
}

fn show_view(c: &mut Context<'_>, view: &ReleaseView) -> Result<(), Failure> {
    c.terminal.result(view, |view| {
        let mut text = release_text(&view.release);
        push!(text, "  state         {}\n", view.state_text());
        let Trials { confirmed, returned, counted, .. } = view.trials;
        let rule = view.release.stop;
        push!(text, "  trials        {confirmed} confirmed, {returned} returned\n");
        push!(
            text,
            "  stop rule     {counted} of {} returns that count, of each farmer's nodes at most {}\n",
            rule.returns,
            rule.counted_of_one()
        );
        text
    })
}

pub(super) async fn halt(
    c: &mut Context<'_>,
    target: &ReleaseTarget,
    reason: String,
    key_path: &Path,
) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let key = crate::home::read_key(key_path)?;
    let is_ours = keys(&grid).await?.is_some_and(|(_, keys)| keys.contains(&key.public()));
    if !is_ours {
        let (path, key, grid) = (key_path.to_owned(), key.public(), grid.name().clone());
        return Err(Failure::refused(ReleaseError::NotOurs { path, key, role: "release key", grid }));
    }
    let ReleaseTarget { channel, version } = target.clone();
    release(&grid, &channel, version).await?;
    let command = Command::HaltRelease { channel: channel.clone(), version, reason };
    grid.submit(&key, &command).await?;
    let view = ReleaseView::read(&grid, &channel, version).await?;
    grid.close().await;
    show_view(c, &view)
}
