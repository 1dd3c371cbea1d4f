//! `cargo xtask nightly`: the present commit, built twice, compared, described, and put on the shelf.
//!
//! ```text
//! git archive ──> one/croft ───────────build──┐
//!            └──> two/elsewhere/source ─build──┴─ compare ─ score ─ bench ─ SBOM, changes, sums, signature ─> shelf
//! ```
//! The two builds share neither source folder, nor target folder, nor cache; with `--reuse-kernels` they share the
//! kernels that the caller's cache has. Must never change `latest` unless everything before went well.

mod build;
mod changes;
mod compare;
mod debian;
mod hardening;
mod release;
mod sbom;
mod shelf;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{image, repo};
use build::{Builder, Built, Full, Quick};
use shelf::{Shelf, Slot};

/// Builds everything twice, compares, and puts the result with its papers into a dated folder that `latest` names.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where nightlies lie [default: target/nightly].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only init and guest: no kernels, no image, no boot. To try the nightly itself.
    #[arg(long)]
    quick: bool,
    /// Take the kernels from the cache instead of building them twice.
    #[arg(long, conflicts_with = "quick")]
    reuse_kernels: bool,
    /// Sign SHA256SUMS with this ed25519 key (PEM), by openssl.
    #[arg(long, value_name = "PEM")]
    sign_key: Option<PathBuf>,
    /// The folder's name [default: today, UTC].
    #[arg(long, value_name = "YYYY-MM-DD")]
    date: Option<String>,
}

/// `version.json`: what this nightly is.
#[derive(Debug, Serialize, Deserialize)]
struct Version {
    /// Of the release that its image says it is.
    #[serde(rename = "version")]
    number: String,
    commit: String,
    date: String,
    /// What was not done: quick, or with kernels from the cache.
    #[serde(default)]
    remarks: Vec<String>,
}

/// One nightly, whoever builds it.
struct Nightly<'a> {
    root: &'a Path,
    work: PathBuf,
    shelf: Shelf,
    slot: Slot,
    /// Of both builds: what nodes compare.
    release: String,
    sign_key: Option<&'a Path>,
    remarks: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = repo::root();
    let date = match &arguments.date {
        Some(date) => date.clone(),
        None => repo::capture(Command::new("date").args(["-u", "+%F"]))?.trim().to_owned(),
    };
    if let Some(key) = arguments.sign_key.as_deref().filter(|key| !key.is_file()) {
        bail!("{} is no file: --sign-key wants an ed25519 key in PEM", key.display());
    }
    let mut remarks = Vec::new();
    if arguments.quick {
        remarks.push("quick: no kernels, no image, no boot".to_owned());
    }
    if arguments.reuse_kernels {
        remarks.push("kernels from the cache: built once".to_owned());
    }
    if !repo::capture(Command::new("git").arg("-C").arg(&root).args(["status", "--porcelain"]))?.is_empty() {
        eprintln!("nightly: what is not committed is not in it");
    }
    let out = arguments.out.clone().unwrap_or_else(|| root.join("target/nightly"));
    let shelf = Shelf::open(&out)?;
    let slot = shelf.next(&date)?;
    let nightly = Nightly {
        root: &root,
        work: repo::cache()?.join("nightly"),
        release: release::version(env!("CARGO_PKG_VERSION"), &slot)?,
        shelf,
        slot,
        sign_key: arguments.sign_key.as_deref(),
        remarks,
    };
    let folder = if arguments.quick {
        nightly.make(&Quick)?
    } else {
        nightly.make(&Full { reuse_kernels: arguments.reuse_kernels, cache: repo::cache()? })?
    };
    println!("{}", folder.display());
    Ok(())
}

impl Nightly<'_> {
    fn make(&self, builder: &dyn Builder) -> Result<PathBuf> {
        builder.ready()?;
        let commit = changes::head(self.root)?;
        let draft = self.shelf.draft()?;
        let (one, two) = (self.work.join("one"), self.work.join("two"));
        let (source, other) = (one.join("croft"), two.join("elsewhere/source"));
        for (place, source) in [(&one, &source), (&two, &other)] {
            unpack(self.root, &commit, place, source)?;
        }
        eprintln!("nightly: {}, first build", self.release);
        let first = builder.build(&source, &one.join("cache"), &self.release)?;
        eprintln!("nightly: second build");
        let second = builder.build(&other, &two.join("cache"), &self.release)?;
        compare::compare(&first.artifacts, &second.artifacts)?;
        eprintln!("nightly: {} files, equal byte by byte", first.artifacts.len());
        for artifact in &first.artifacts {
            let target = draft.join(&artifact.name);
            fs::copy(&artifact.path, &target).with_context(|| format!("can't write {}", target.display()))?;
        }
        let tables = builder.measure(&source, &one.join("cache"), &first)?;
        self.describe(&draft, &commit, &first, &tables, &source)?;
        sums(&draft)?;
        if let Some(key) = self.sign_key {
            sign(&draft, key)?;
        }
        let folder = self.shelf.publish(&self.slot)?;
        for place in [&one, &two] {
            let _ = fs::remove_dir_all(place);
        }
        Ok(folder)
    }

    /// The papers: version, changes, bill of materials, tables, and one page that sums them up.
    fn describe(
        &self,
        draft: &Path,
        commit: &str,
        built: &Built,
        tables: &[(String, String)],
        source: &Path,
    ) -> Result<()> {
        let put = |name: &str, text: &str| {
            let path = draft.join(name);
            fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
        };
        let mut remarks = self.remarks.clone();
        if self.sign_key.is_none() {
            remarks.push("not signed: no --sign-key".to_owned());
        }
        let version = Version {
            number: self.release.clone(),
            commit: commit.to_owned(),
            date: self.slot.date().to_owned(),
            remarks,
        };
        put("version.json", &(serde_json::to_string_pretty(&version)? + "\n"))?;
        let changes = changes::list(self.root, self.last_commit()?.as_deref())?;
        put("CHANGES.md", &changes)?;
        put("sbom.cdx.json", &sbom::make(source, &self.release, built.components.clone())?)?;
        for (name, text) in tables {
            put(name, text)?;
        }
        let mut page = format!("# Croft {} of {}\n\nCommit {commit}.\n", version.number, version.date);
        for remark in &version.remarks {
            let _ = writeln!(page, "{remark}.");
        }
        page.push_str("\n## Files, equal in two builds\n\n");
        for artifact in &built.artifacts {
            let bytes = fs::metadata(&artifact.path).map_or(0, |meta| meta.len());
            let _ = writeln!(page, "- {}: {bytes} bytes", artifact.name);
        }
        for (name, text) in
            tables.iter().filter(|(name, _)| Path::new(name).extension().is_none_or(|e| e != "json"))
        {
            let _ = write!(page, "\n## {name}\n\n```text\n{}\n```\n", text.trim_end());
        }
        if built.artifacts.iter().any(|artifact| image::MEDIA.iter().any(|(_, name)| *name == artifact.name))
        {
            let _ = write!(page, "\n{}", how_to_boot(&version));
        }
        let _ = write!(page, "\n## Changes\n\n{changes}");
        put("README.md", &page)
    }

    /// The commit of the newest nightly. A damaged one is said, not passed over.
    fn last_commit(&self) -> Result<Option<String>> {
        let Some(latest) = self.shelf.latest() else { return Ok(None) };
        let path = latest.join("version.json");
        let text = fs::read_to_string(&path).with_context(|| {
            format!("can't read {}: the last nightly is damaged, point `latest` to another", path.display())
        })?;
        let version: Version = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged: point `latest` to another nightly", path.display()))?;
        Ok(Some(version.commit))
    }
}

/// What a developer does with the media, and how the boot file is made again.
fn how_to_boot(version: &Version) -> String {
    let Version { number, commit, .. } = version;
    format!(
        "## How to boot it\n\n\
         croft-usb.img (stick) and croft.iso (disc) boot under UEFI, without Secure Boot, and have no farm's part: the \
         machine says that it finds none, unless another disk or the server that it would boot from has one.\n\n\
         ```sh\n\
         croft media flash croft-usb.img /dev/sdX\n\
         ```\n\n\
         A stick with a farm's part, signed by the farm's bot, is made of croft.efi:\n\n\
         ```sh\n\
         croft --bot farmer farm image --farm alpha --boot-file croft.efi --out usb.img    # or --medium iso\n\
         croft media flash usb.img /dev/sdX\n\
         ```\n\n\
         The same bytes are made of commit {commit} by:\n\n\
         ```sh\n\
         cargo xtask image --boot-file --media --release {number}\n\
         ```\n"
    )
}

/// The commit's files, and nothing else, in a fresh place.
fn unpack(root: &Path, commit: &str, place: &Path, source: &Path) -> Result<()> {
    if place.exists() {
        fs::remove_dir_all(place).with_context(|| format!("can't remove {}", place.display()))?;
    }
    fs::create_dir_all(source).with_context(|| format!("can't create {}", source.display()))?;
    let archive = place.join("source.tar");
    let mut git = Command::new("git");
    git.arg("-C").arg(root).args(["archive", "--format=tar", "--output"]).arg(&archive).arg(commit);
    repo::capture(&mut git)?;
    repo::capture(Command::new("tar").arg("--extract").arg("--file").arg(&archive).arg("-C").arg(source))?;
    Ok(())
}

/// `SHA256SUMS` over every file, as `sha256sum --check` takes it.
fn sums(draft: &Path) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(draft).with_context(|| format!("can't read {}", draft.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let mut text = String::new();
    for name in names {
        let _ = writeln!(text, "{}  {name}", sha256(&draft.join(&name))?);
    }
    let path = draft.join("SHA256SUMS");
    fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
}

fn sha256(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
    Ok(hex::encode(Sha256::digest(bytes)))
}

/// `SHA256SUMS.sig` (64 bytes), and the public key beside it. Verified at once, with that key.
fn sign(draft: &Path, key: &Path) -> Result<()> {
    let (sums, signature) = (draft.join("SHA256SUMS"), draft.join("SHA256SUMS.sig"));
    let public = draft.join("signer.pem");
    let openssl = || Command::new("openssl");
    repo::capture(openssl().args(["pkey", "-pubout", "-in"]).arg(key).arg("-out").arg(&public))?;
    let mut sign = openssl();
    sign.args(["pkeyutl", "-sign", "-rawin", "-inkey"]).arg(key);
    repo::capture(sign.arg("-in").arg(&sums).arg("-out").arg(&signature))?;
    let mut verify = openssl();
    verify.args(["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey"]).arg(&public);
    repo::capture(verify.arg("-in").arg(&sums).arg("-sigfile").arg(&signature))?;
    Ok(())
}

#[cfg(test)]
mod tests;
