//! Manifests (`image/manifests/*.toml`): what stands where in an image, as people read and change it.
//!
//! A file's bytes come from a named input (what was built for this image), from the host (a
//! distribution's tool, with its libraries) or from the manifest itself. Unknown fields and inputs are
//! refused. It must never fall back to something else when a source is missing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cpio::{Archive, Entry, InsertError, Kind};
use crate::elf::{self, ClosureError};
use crate::vmm::Vmm;

/// One image, as its manifest describes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: String,
    #[serde(default)]
    pub directory: Vec<DirectoryEntry>,
    #[serde(default)]
    pub symlink: Vec<SymlinkEntry>,
    #[serde(default)]
    pub character_device: Vec<DeviceEntry>,
    #[serde(default)]
    pub file: Vec<FileEntry>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryEntry {
    pub path: String,
    pub mode: Mode,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SymlinkEntry {
    pub path: String,
    pub target: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceEntry {
    pub path: String,
    pub mode: Mode,
    pub major: u32,
    pub minor: u32,
}

/// A regular file; exactly one of `input`, `host` and `text` says where its bytes come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub path: String,
    pub mode: Mode,
    /// Row of the size table.
    pub part: String,
    pub input: Option<String>,
    pub host: Option<PathBuf>,
    pub text: Option<String>,
    /// Also take the shared libraries that the file needs.
    #[serde(default)]
    pub libraries: bool,
    /// Refuse the file unless it is a static x86-64 program.
    #[serde(default, rename = "static")]
    pub must_be_static: bool,
    /// Only in images with this VMM.
    pub vmm: Option<Vmm>,
}

/// Permission bits, written as an octal string ("0755").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mode(pub u32);

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        u32::from_str_radix(&text, 8)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .map(Self)
            .ok_or_else(|| format!("mode {text:?} is not octal permission bits such as \"0755\""))
    }
}

/// Row of the size table to which an entry belongs.
pub type Part = String;

/// An archive, and for each path (without a leading slash) the part it belongs to.
#[derive(Debug, Clone, Default)]
pub struct Assembled {
    pub archive: Archive,
    pub parts: BTreeMap<String, Part>,
}

/// The part of directories, links and devices.
pub const LAYOUT: &str = "layout";

/// Why a manifest can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read the manifest {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the manifest {path} is not valid")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{file} in the manifest {path} needs exactly one of input, host and text")]
    Source { path: PathBuf, file: String },
}

/// Why an image can't be assembled from its manifest.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    #[error(
        "{path} in the {manifest} manifest wants the input {input:?}, which was not supplied; there is {known}"
    )]
    UnknownInput { manifest: String, path: String, input: String, known: String },
    #[error("cannot read {source_path} for {path} in the {manifest} image: build or install it")]
    Read { manifest: String, path: String, source_path: PathBuf, source: std::io::Error },
    #[error("{path} can't go into the {manifest} image")]
    Static { manifest: String, path: String, source: elf::StaticError },
    #[error("the libraries of {path} in the {manifest} image could not be gathered")]
    Libraries { manifest: String, path: String, source: ClosureError },
    #[error("the {manifest} manifest is contradictory")]
    Insert { manifest: String, source: InsertError },
}

impl Manifest {
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Parses a manifest; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, LoadError> {
        let manifest: Self = toml::from_str(text)
            .map_err(|source| LoadError::Parse { path: path.into(), source: Box::new(source) })?;
        for file in &manifest.file {
            let sources = [file.input.is_some(), file.host.is_some(), file.text.is_some()];
            if sources.iter().filter(|there| **there).count() != 1 {
                return Err(LoadError::Source { path: path.into(), file: file.path.clone() });
            }
        }
        Ok(manifest)
    }

    /// The inputs that an image with `vmm` needs.
    pub fn inputs(&self, vmm: Vmm) -> impl Iterator<Item = &str> {
        self.files(vmm).filter_map(|file| file.input.as_deref())
    }

    fn files(&self, vmm: Vmm) -> impl Iterator<Item = &FileEntry> {
        self.file.iter().filter(move |file| file.vmm.is_none_or(|only| only == vmm))
    }

    /// Every file on this machine that decides what an image with `vmm` contains, with its place there.
    fn sources(
        &self,
        vmm: Vmm,
        inputs: &BTreeMap<String, PathBuf>,
    ) -> Result<Vec<SourceFile>, AssembleError> {
        let mut sources = Vec::new();
        for file in self.files(vmm) {
            let source = match (&file.input, &file.host) {
                (Some(input), _) => self.input(file, input, inputs)?,
                (None, Some(host)) => host.clone(),
                (None, None) => continue,
            };
            if file.must_be_static {
                elf::require_static(&source).map_err(|source| AssembleError::Static {
                    manifest: self.name.clone(),
                    path: file.path.clone(),
                    source,
                })?;
            }
            if file.libraries {
                let closure = elf::closure(&source).map_err(|source| AssembleError::Libraries {
                    manifest: self.name.clone(),
                    path: file.path.clone(),
                    source,
                })?;
                sources.extend(closure.into_iter().map(|(path, source)| SourceFile {
                    path,
                    mode: 0o755,
                    part: file.part.clone(),
                    source,
                }));
            }
            sources.push(SourceFile {
                path: file.path.clone(),
                mode: file.mode.0,
                part: file.part.clone(),
                source,
            });
        }
        Ok(sources)
    }

    fn input(
        &self,
        file: &FileEntry,
        input: &str,
        inputs: &BTreeMap<String, PathBuf>,
    ) -> Result<PathBuf, AssembleError> {
        inputs.get(input).cloned().ok_or_else(|| AssembleError::UnknownInput {
            manifest: self.name.clone(),
            path: file.path.clone(),
            input: input.into(),
            known: inputs.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// Reads all sources and lays out the archive.
    pub fn assemble(&self, vmm: Vmm, inputs: &BTreeMap<String, PathBuf>) -> Result<Assembled, AssembleError> {
        let mut out = Assembled::default();
        self.insert_layout(&mut out)?;
        for file in self.files(vmm) {
            if let Some(text) = &file.text {
                self.insert(&mut out, &file.path, &file.part, Entry::file(text.as_bytes(), file.mode.0))?;
            }
        }
        for file in self.sources(vmm, inputs)? {
            let data = std::fs::read(&file.source).map_err(|source| AssembleError::Read {
                manifest: self.name.clone(),
                path: file.path.clone(),
                source_path: file.source.clone(),
                source,
            })?;
            self.insert(&mut out, &file.path, &file.part, Entry::file(data, file.mode))?;
        }
        Ok(out)
    }

    fn insert_layout(&self, out: &mut Assembled) -> Result<(), AssembleError> {
        for entry in &self.directory {
            self.insert(out, &entry.path, LAYOUT, Entry::directory(entry.mode.0))?;
        }
        for entry in &self.symlink {
            self.insert(out, &entry.path, LAYOUT, Entry::symlink(&entry.target))?;
        }
        for entry in &self.character_device {
            let kind = Kind::CharacterDevice { major: entry.major, minor: entry.minor };
            self.insert(out, &entry.path, LAYOUT, Entry { kind, mode: entry.mode.0 })?;
        }
        Ok(())
    }

    fn insert(&self, out: &mut Assembled, path: &str, part: &str, entry: Entry) -> Result<(), AssembleError> {
        out.archive
            .insert(path, entry)
            .map_err(|source| AssembleError::Insert { manifest: self.name.clone(), source })?;
        // The first tool that needs a shared library pays for it in the size table.
        out.parts.entry(path.trim_start_matches('/').to_owned()).or_insert_with(|| part.to_owned());
        Ok(())
    }
}

struct SourceFile {
    path: String,
    mode: u32,
    part: Part,
    source: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Manifest, String> {
        Manifest::parse(text, Path::new("node.toml")).map_err(|error| {
            let mut message = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(inner) = source {
                message.push_str(": ");
                message.push_str(&inner.to_string());
                source = inner.source();
            }
            message
        })
    }

    const SMALL: &str = r#"
        name = "small"
        [[directory]]
        path = "/data"
        mode = "0700"
        [[symlink]]
        path = "/lib"
        target = "usr/lib"
        [[character_device]]
        path = "/dev/console"
        mode = "0600"
        major = 5
        minor = 1
        [[file]]
        path = "/init"
        mode = "0755"
        part = "init"
        input = "init"
        [[file]]
        path = "/usr/bin/alioth"
        mode = "0755"
        part = "vmm"
        vmm = "alioth"
        input = "alioth"
        [[file]]
        path = "/etc/hello"
        mode = "0644"
        part = "text"
        text = "hello"
    "#;

    #[test]
    fn an_image_is_assembled_as_described() {
        let directory = tempfile::tempdir().unwrap();
        let init = directory.path().join("init");
        std::fs::write(&init, "program").unwrap();
        let inputs = BTreeMap::from([("init".to_owned(), init)]);
        let image = parse(SMALL).unwrap().assemble(Vmm::CloudHypervisor, &inputs).unwrap();
        assert_eq!(image.archive.file("/init"), Some(&b"program"[..]));
        assert_eq!(image.archive.file("/etc/hello"), Some(&b"hello"[..]));
        assert_eq!(image.archive.get("/data").unwrap(), &Entry::directory(0o700));
        assert_eq!(image.archive.get("/lib").unwrap(), &Entry::symlink("usr/lib"));
        assert_eq!(
            image.archive.get("/dev/console").unwrap().kind,
            Kind::CharacterDevice { major: 5, minor: 1 }
        );
        assert_eq!(image.archive.get("/usr/bin/alioth"), None, "that is the other image's");
        assert_eq!(image.parts["init"], "init");
    }

    #[test]
    fn a_missing_input_is_named_with_what_there_is() {
        let inputs = BTreeMap::from([("init".to_owned(), PathBuf::from("/dev/null"))]);
        let error = parse(SMALL).unwrap().assemble(Vmm::Alioth, &inputs).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/usr/bin/alioth in the small manifest wants the input \"alioth\", which was not supplied; there is init"
        );
        let inputs = BTreeMap::from([("init".to_owned(), PathBuf::from("/nowhere/init"))]);
        let error = parse(SMALL).unwrap().assemble(Vmm::CloudHypervisor, &inputs).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read /nowhere/init for /init in the small image: build or install it"
        );
    }

    #[test]
    fn mistakes_in_a_manifest_are_named() {
        let error = parse("name = \"x\"\n[[directory]]\npath = \"/a\"\nmode = \"9\"").unwrap_err();
        assert!(error.contains("mode \"9\" is not octal permission bits such as \"0755\""), "{error}");
        let error = parse("name = \"x\"\nsize = 3").unwrap_err();
        assert!(error.starts_with("the manifest node.toml is not valid: "), "{error}");
        assert!(error.contains("unknown field `size`"), "{error}");
        let file = "name = \"x\"\n[[file]]\npath = \"/a\"\nmode = \"0644\"\npart = \"p\"\n";
        let error = parse(&format!("{file}input = \"a\"\ntext = \"b\"")).unwrap_err();
        assert_eq!(error, "/a in the manifest node.toml needs exactly one of input, host and text");
        assert!(parse(file).is_err());
    }

    #[test]
    fn a_dynamic_program_is_refused_where_a_static_one_is_required() {
        let manifest = format!(
            "{SMALL}\n[[file]]\npath = \"/x\"\nmode = \"0755\"\npart = \"x\"\nstatic = true\ninput = \"me\""
        );
        let inputs = BTreeMap::from([
            ("init".to_owned(), PathBuf::from("/dev/null")),
            ("me".to_owned(), std::env::current_exe().unwrap()),
        ]);
        let error = parse(&manifest).unwrap().assemble(Vmm::CloudHypervisor, &inputs).unwrap_err();
        assert_eq!(error.to_string(), "/x can't go into the small image");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            cause.contains("is linked dynamically") && cause.contains("supply a static build"),
            "{cause}"
        );
    }

    #[test]
    fn a_tool_brings_its_libraries() {
        let manifest = format!(
            "{SMALL}\n[[file]]\npath = \"/usr/bin/me\"\nmode = \"0755\"\npart = \"me\"\nlibraries = true\ninput = \"me\""
        );
        let inputs = BTreeMap::from([
            ("init".to_owned(), PathBuf::from("/dev/null")),
            ("me".to_owned(), std::env::current_exe().unwrap()),
        ]);
        let image = parse(&manifest).unwrap().assemble(Vmm::CloudHypervisor, &inputs).unwrap();
        let libc =
            image.archive.iter().find(|(path, _)| path.ends_with("/libc.so.6")).expect("libc is there");
        assert_eq!(image.parts[libc.0], "me");
    }

    #[test]
    fn the_shipped_manifests_are_valid() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
        let mut names = Vec::new();
        for file in std::fs::read_dir(directory).unwrap() {
            names.push(Manifest::load(&file.unwrap().path()).unwrap().name);
        }
        names.sort();
        assert_eq!(names, ["guest", "node"]);
    }
}
