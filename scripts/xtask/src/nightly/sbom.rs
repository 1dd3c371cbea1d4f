//! The bill of materials of an image, as CycloneDX 1.6 (ECMA-424) in JSON.
//!
//! ```text
//! cargo metadata ── closure of init, node, guest over what is compiled into them ─┐
//! Cargo.lock ────── SHA-256 of each crate ─────────────────────────────────────────┼─> sbom.cdx.json
//! what else goes in (kernels, VMM, virtiofsd, the distribution's tools) ───────────┘
//! ```
//! Equal inputs give equal bytes: identifiers come from the content. Must never list what is only used to build or to
//! test, and never leave out a crate that is linked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::repo;

/// What runs on nodes and in microVMs.
pub(super) const SHIPPED: [&str; 3] = ["croft-init", "croft-node", "croft-guest"];

#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum SbomError {
    #[error("{0} is not in cargo's metadata, though the image has it")]
    NoPackage(String),
    #[error("{0} is a dependency, but cargo's metadata does not describe it")]
    Undescribed(String),
}

/// As much of `cargo metadata --format-version 1` as is needed.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    description: Option<String>,
    source: Option<String>,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
}

impl Package {
    /// Runs in the compiler, and leaves only the code that it wrote.
    fn is_macro(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
    }
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    /// Nothing for what is linked; `build` and `dev` are not in the image.
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Debug, Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    bom_format: &'static str,
    spec_version: &'static str,
    serial_number: String,
    version: u32,
    metadata: About,
    components: Vec<Component>,
    dependencies: Vec<Edges>,
}

#[derive(Debug, Serialize)]
struct About {
    component: Component,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Component {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "bom-ref")]
    reference: String,
    name: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    licenses: Vec<License>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purl: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
struct Hash {
    alg: &'static str,
    content: String,
}

#[derive(Debug, Clone, Serialize)]
struct License {
    expression: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Edges {
    #[serde(rename = "ref")]
    reference: String,
    depends_on: Vec<String>,
}

impl Component {
    /// Something that no crate is: a kernel, a program of the distribution.
    pub(super) fn other(kind: &'static str, name: &str, version: &str, purl: Option<String>) -> Self {
        Self {
            kind,
            reference: purl.clone().unwrap_or_else(|| format!("{name}@{version}")),
            name: name.to_owned(),
            version: version.to_owned(),
            description: None,
            hashes: Vec::new(),
            licenses: Vec::new(),
            purl,
        }
    }

    /// With a line for people.
    pub(super) fn described(mut self, text: &str) -> Self {
        self.description = Some(text.to_owned());
        self
    }

    /// With the SPDX expression of its licence.
    pub(super) fn licensed(mut self, expression: &str) -> Self {
        self.licenses = vec![License { expression: expression.to_owned() }];
        self
    }

    /// With the SHA-256 of its file, hexadecimal.
    pub(super) fn hashed(mut self, sha256: &str) -> Self {
        self.hashes = vec![Hash { alg: "SHA-256", content: sha256.to_owned() }];
        self
    }
}

/// The document for the tree at `root`, as a release of this version, and what else goes into the image.
pub(super) fn make(root: &Path, version: &str, others: Vec<Component>) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["metadata", "--format-version", "1", "--locked"]);
    command.args(["--filter-platform", croft_image_builder::build::TARGET]);
    let metadata = repo::capture(&mut command)?;
    let path = root.join("Cargo.lock");
    let lock = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let document = document(&metadata, &lock, version, others)?;
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn document(metadata: &str, lock: &str, version: &str, others: Vec<Component>) -> Result<Document> {
    let metadata: Metadata = serde_json::from_str(metadata).context("cargo's metadata has another form")?;
    let lock: Lock = toml::from_str(lock).context("Cargo.lock has another form")?;
    let checksums: BTreeMap<(&str, &str), &str> = lock
        .package
        .iter()
        .filter_map(|one| Some(((one.name.as_str(), one.version.as_str()), one.checksum.as_deref()?)))
        .collect();
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let linked = linked(&metadata, &packages)?;
    let component = |id: &str| -> Result<Component, SbomError> {
        let package = packages.get(id).ok_or_else(|| SbomError::Undescribed(id.to_owned()))?;
        let checksum = checksums.get(&(package.name.as_str(), package.version.as_str()));
        Ok(of_package(package, checksum.copied()))
    };
    let mut components = linked.keys().map(|id| component(id)).collect::<Result<Vec<_>, _>>()?;
    let references: BTreeMap<&str, String> =
        linked.keys().zip(&components).map(|(id, component)| (*id, component.reference.clone())).collect();
    let mut dependencies: Vec<Edges> = linked
        .iter()
        .map(|(id, on)| Edges {
            reference: references[id].clone(),
            depends_on: on.iter().map(|id| references[id].clone()).collect(),
        })
        .collect();
    let image = Component::other("operating-system", "croft", version, None);
    let shipped = metadata.packages.iter().filter(|package| SHIPPED.contains(&package.name.as_str()));
    let direct = shipped.map(|package| references[package.id.as_str()].clone());
    let depends_on = direct.chain(others.iter().map(|other| other.reference.clone())).collect();
    dependencies.insert(0, Edges { reference: image.reference.clone(), depends_on });
    components.extend(others);
    let content = serde_json::to_vec(&(&components, &dependencies))?;
    Ok(Document {
        bom_format: "CycloneDX",
        spec_version: "1.6",
        serial_number: serial_number(&content),
        version: 1,
        metadata: About { component: image },
        components,
        dependencies,
    })
}

/// What is linked into the shipped programs, each with what it links itself.
fn linked<'a>(
    metadata: &'a Metadata,
    packages: &BTreeMap<&str, &'a Package>,
) -> Result<BTreeMap<&'a str, BTreeSet<&'a str>>, SbomError> {
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let mut open = Vec::new();
    for name in SHIPPED {
        let package = packages.values().find(|package| package.name == name && package.source.is_none());
        open.push(package.ok_or_else(|| SbomError::NoPackage(name.to_owned()))?.id.as_str());
    }
    let mut done = BTreeMap::new();
    while let Some(id) = open.pop() {
        if done.contains_key(id) {
            continue;
        }
        let node = nodes.get(id).ok_or_else(|| SbomError::Undescribed(id.to_owned()))?;
        let linked = node.deps.iter().filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        let mut on = BTreeSet::new();
        for dep in linked {
            let package = packages.get(dep.pkg.as_str());
            if !package.ok_or_else(|| SbomError::Undescribed(dep.pkg.clone()))?.is_macro() {
                on.insert(dep.pkg.as_str());
            }
        }
        open.extend(&on);
        done.insert(id, on);
    }
    Ok(done)
}

fn of_package(package: &Package, checksum: Option<&str>) -> Component {
    let purl = format!("pkg:cargo/{}@{}", package.name, package.version.replace('+', "%2B"));
    let ours = package.source.is_none();
    let mut component = Component::other(
        if ours && SHIPPED.contains(&package.name.as_str()) { "application" } else { "library" },
        &package.name,
        &package.version,
        // Ours are in no registry.
        (!ours).then_some(purl),
    );
    component.description.clone_from(&package.description);
    if let Some(license) = &package.license {
        // Cargo's old form of "or".
        component = component.licensed(&license.replace('/', " OR "));
    }
    if let Some(checksum) = checksum {
        component = component.hashed(checksum);
    }
    component
}

/// A UUID (RFC 9562, version 8: own meaning) of the content's hash.
fn serial_number(content: &[u8]) -> String {
    let mut bytes: [u8; 16] = Sha256::digest(content)[..16].try_into().expect("a hash is longer");
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    let parts = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
    format!("urn:uuid:{}", parts.join("-"))
}

#[cfg(test)]
mod tests;
