//! `croft grid validators`: who orders the ledger, and replacing them by signatures of those who do.
//!
//! ```text
//!   propose ──> change file ── sign, by each owner of a validator.key ──> change file ── submit ──> ledger
//! ```
//! At every step the change is checked against the ledger's present validators, by the same rules as the
//! ledger's own, so that nobody signs or collects signatures for what will be refused. It must never sign a
//! change that it has not shown.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use croft_protocol::header::Validator;
use croft_protocol::{
    Body, ChainId, Command, Hash, InvalidChange, Name, PublicKey, RecordId, Signature, SignedValidatorChange,
    ValidatorChange, ValidatorSet,
};
use serde::{Deserialize, Serialize};

use super::Context;
use crate::exit::Failure;
use crate::files;
use crate::flags::NewPower;
use crate::grid::{Grid, GridError};
use crate::terminal::push;

/// 64 validators and their signatures are some 20 KiB.
const FILE_BYTES: u64 = 256 * 1024;

#[derive(Debug, thiserror::Error)]
enum ValidatorsError {
    #[error("nothing would change: say who is to be a validator with --set, or who no longer with --remove")]
    Nothing,
    #[error("{key} is no validator of grid '{grid}': 'croft grid validators show' lists them")]
    NotThere { key: PublicKey, grid: Name },
    #[error(
        "the key in {path} is {key}, which is no validator of grid '{grid}': use the validator.key of one of its replicas"
    )]
    NotOurs { path: PathBuf, key: PublicKey, grid: Name },
    #[error("no validator of grid '{grid}' was made in this home: say where its key is with --key FILE")]
    NoKey { grid: Name },
    #[error("{path} is there already: choose another file with --out")]
    Exists { path: PathBuf },
    #[error("can't read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("can't write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is no change of validators: {reason}; make one with 'croft grid validators propose'")]
    BadFile { path: PathBuf, reason: String },
    #[error("{path} is for chain {theirs}, but grid '{grid}' is {ours}: choose the grid with --grid")]
    OtherChain { path: PathBuf, grid: Name, theirs: ChainId, ours: ChainId },
    #[error("{path} has another change than {first}: submit files of one and the same proposal")]
    OtherChange { path: PathBuf, first: PathBuf },
    #[error("the validators of grid '{grid}' can't be changed so")]
    Invalid { grid: Name, source: InvalidChange },
}

/// What people pass on to one another.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeFile {
    grid: Name,
    chain: ChainId,
    change: ValidatorChange,
    signatures: Vec<FileSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSignature {
    validator: PublicKey,
    /// 128 hex digits.
    signature: String,
}

impl ChangeFile {
    fn new(grid: &Grid, signed: &SignedValidatorChange) -> Self {
        let signature = |(validator, signature): &(PublicKey, Signature)| FileSignature {
            validator: *validator,
            signature: hex::encode(signature.0),
        };
        Self {
            grid: grid.name().clone(),
            chain: grid.pin().chain,
            change: signed.change.clone(),
            signatures: signed.signatures.iter().map(signature).collect(),
        }
    }

    fn text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

/// The chain and the change in a file's text; the signatures are not checked yet.
pub(crate) fn parse(text: &str) -> Result<(ChainId, SignedValidatorChange), String> {
    let file: ChangeFile = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut signed = SignedValidatorChange { change: file.change, signatures: Vec::new() };
    for FileSignature { validator, signature } in file.signatures {
        let mut bytes = [0; 64];
        hex::decode_to_slice(&signature, &mut bytes)
            .map_err(|_| format!("the signature of {validator} is not 128 hex digits"))?;
        signed.add((validator, Signature(bytes)));
    }
    Ok((file.chain, signed))
}

/// Reads a change and checks its form, its grid and each signature in it.
fn load(grid: &Grid, path: &Path) -> Result<SignedValidatorChange, Failure> {
    let failed = |source| Failure::failed(ValidatorsError::Read { path: path.to_owned(), source });
    let bad = |reason: String| Failure::usage(ValidatorsError::BadFile { path: path.to_owned(), reason });
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
    let (theirs, signed) = parse(&text).map_err(bad)?;
    let ours = grid.pin().chain;
    if theirs != ours {
        let (path, grid) = (path.to_owned(), grid.name().clone());
        return Err(Failure::usage(ValidatorsError::OtherChain { path, grid, theirs, ours }));
    }
    signed.verify_signatures(&ours).map_err(|source| invalid(grid, source))?;
    Ok(signed)
}

fn invalid(grid: &Grid, source: InvalidChange) -> Failure {
    Failure::refused(ValidatorsError::Invalid { grid: grid.name().clone(), source })
}

/// The present validators, proved.
struct Present {
    record: Hash,
    version: u64,
    height: u64,
    set: ValidatorSet,
}

async fn present(grid: &Grid) -> Result<Present, Failure> {
    let broken = || GridError::OtherRecord { grid: grid.name().clone(), what: "the validators".to_owned() };
    let record = grid.record(RecordId::validators()).await?.ok_or_else(broken)?;
    let hash = record.hash();
    let Body::Validators(set) = record.body else { return Err(broken().into()) };
    Ok(Present { record: hash, version: record.version, height: record.height, set })
}

/// The present validators, proved.
pub(super) async fn present_set(grid: &Grid) -> Result<ValidatorSet, Failure> {
    Ok(present(grid).await?.set)
}

#[derive(Serialize)]
struct PresentView {
    grid: Name,
    record: Hash,
    version: u64,
    height: u64,
    validators: Vec<Validator>,
}

impl PresentView {
    fn new(grid: &Grid, present: Present) -> Self {
        let Present { record, version, height, set } = present;
        Self { grid: grid.name().clone(), record, version, height, validators: set.validators }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "grid '{}' has {} validators since block {}, record version {}\n",
            self.grid,
            self.validators.len(),
            self.height,
            self.version
        );
        for validator in &self.validators {
            push!(text, "  {}  power {}\n", validator.key, validator.power);
        }
        text
    }
}

pub(super) async fn show(c: &mut Context<'_>) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let view = PresentView::new(&grid, present(&grid).await?);
    grid.close().await;
    c.terminal.result(&view, PresentView::text)
}

/// What a change does, and how far it is.
#[derive(Serialize)]
struct ChangeView {
    grid: Name,
    file: PathBuf,
    supersedes: Hash,
    adds: Vec<Validator>,
    removes: Vec<Validator>,
    /// Those who stay with another power: the new one.
    changes: Vec<Validator>,
    signed: Vec<PublicKey>,
    signed_power: u64,
    total_power: u64,
    /// Whether it can be submitted.
    enough: bool,
}

impl ChangeView {
    /// Checks the whole change but for the power behind it.
    fn new(
        grid: &Grid,
        file: &Path,
        present: &Present,
        signed: &SignedValidatorChange,
    ) -> Result<Self, Failure> {
        signed.change.check(present.record, &present.set).map_err(|source| invalid(grid, source))?;
        let signed_power = signed.claimed_power(&present.set).map_err(|source| invalid(grid, source))?;
        let (old, new) = (&present.set, &signed.change.validators);
        let pick = |from: &ValidatorSet, which: &dyn Fn(&Validator) -> bool| {
            from.validators.iter().filter(|v| which(v)).copied().collect()
        };
        let total_power = old.total_power();
        Ok(Self {
            grid: grid.name().clone(),
            file: file.to_owned(),
            supersedes: present.record,
            adds: pick(new, &|v| old.power_of(&v.key) == 0),
            removes: pick(old, &|v| new.power_of(&v.key) == 0),
            changes: pick(new, &|v| ![0, v.power].contains(&old.power_of(&v.key))),
            signed: signed.signatures.iter().map(|(key, _)| *key).collect(),
            signed_power,
            total_power,
            enough: signed_power * 3 > total_power * 2,
        })
    }

    fn text(&self) -> String {
        let mut text = format!("the validators of grid '{}' would change\n", self.grid);
        for (what, validators) in
            [("add   ", &self.adds), ("remove", &self.removes), ("change", &self.changes)]
        {
            for validator in validators {
                push!(text, "  {what}  {}  power {}\n", validator.key, validator.power);
            }
        }
        let file = self.file.display();
        push!(text, "  signed by {} of {} power\n", self.signed_power, self.total_power);
        if self.enough {
            push!(text, "Next: 'croft grid validators submit {file}'\n");
        } else {
            push!(text, "Next: more owners of validators run 'croft grid validators sign {file}'\n");
        }
        text
    }
}

pub(super) async fn propose(
    c: &mut Context<'_>,
    set: &[NewPower],
    remove: &[PublicKey],
    out: &Path,
) -> Result<(), Failure> {
    if set.is_empty() && remove.is_empty() {
        return Err(Failure::usage(ValidatorsError::Nothing));
    }
    let grid = c.reading_grid()?;
    let present = present(&grid).await?;
    let mut validators = present.set.validators.clone();
    for key in remove {
        if present.set.power_of(key) == 0 {
            let error = ValidatorsError::NotThere { key: *key, grid: grid.name().clone() };
            return Err(Failure::not_found(error));
        }
        validators.retain(|v| v.key != *key);
    }
    for NewPower { key, power } in set {
        validators.retain(|v| v.key != *key);
        validators.push(Validator { key: *key, power: *power });
    }
    validators.sort_by_key(|v| v.key);
    let change = ValidatorChange { prev: present.record, validators: ValidatorSet { validators } };
    let signed = SignedValidatorChange { change, signatures: Vec::new() };
    let view = ChangeView::new(&grid, out, &present, &signed)?;
    let failed = |source| Failure::failed(ValidatorsError::Write { path: out.to_owned(), source });
    let text = ChangeFile::new(&grid, &signed).text().map_err(|e| failed(e.into()))?;
    let new = files::aside(out, text.as_bytes(), true).and_then(|file| file.add(out)).map_err(failed)?;
    if !new {
        return Err(Failure::usage(ValidatorsError::Exists { path: out.to_owned() }));
    }
    grid.close().await;
    c.terminal.result(&view, ChangeView::text)
}

pub(super) async fn sign(c: &mut Context<'_>, path: &Path, key: Option<&Path>) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let key_path = match key {
        Some(path) => path.to_owned(),
        None => c
            .home
            .ledger_dir(grid.name())?
            .map(|dir| dir.join("validator.key"))
            .ok_or_else(|| Failure::not_found(ValidatorsError::NoKey { grid: grid.name().clone() }))?,
    };
    let key = crate::home::read_key(&key_path)?;
    let mut signed = load(&grid, path)?;
    let present = present(&grid).await?;
    if present.set.power_of(&key.public()) == 0 {
        let (key, grid) = (key.public(), grid.name().clone());
        return Err(Failure::refused(ValidatorsError::NotOurs { path: key_path, key, grid }));
    }
    signed.add(signed.change.sign(&key, &grid.pin().chain));
    // Before the signature is anywhere: nobody signs what the ledger would refuse.
    let view = ChangeView::new(&grid, path, &present, &signed)?;
    let failed = |source| Failure::failed(ValidatorsError::Write { path: path.to_owned(), source });
    let text = ChangeFile::new(&grid, &signed).text().map_err(|e| failed(e.into()))?;
    files::aside(path, text.as_bytes(), true).and_then(|file| file.replace(path, true)).map_err(failed)?;
    grid.close().await;
    c.terminal.result(&view, ChangeView::text)
}

pub(super) async fn submit(c: &mut Context<'_>, paths: &[PathBuf]) -> Result<(), Failure> {
    let acting = c.acting()?;
    let grid = &acting.grid;
    let first = &paths[0];
    let mut signed = load(grid, first)?;
    for path in &paths[1..] {
        let other = load(grid, path)?;
        if other.change != signed.change {
            let error = ValidatorsError::OtherChange { path: path.clone(), first: first.clone() };
            return Err(Failure::usage(error));
        }
        other.signatures.into_iter().for_each(|signature| signed.add(signature));
    }
    let before = present(grid).await?;
    signed.check(&grid.pin().chain, before.record, &before.set).map_err(|source| invalid(grid, source))?;
    let wanted = signed.change.validators.clone();
    grid.submit(&acting.key, &Command::SetValidators(Box::new(signed))).await?;
    let after = present(grid).await?;
    if after.set != wanted {
        return Err(GridError::OutcomeUnknown { grid: grid.name().clone() }.into());
    }
    let view = PresentView::new(grid, after);
    grid.close().await;
    c.terminal.result(&view, PresentView::text)
}
