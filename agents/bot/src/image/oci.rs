//! Reads an OCI image layout (image specification 1.1, `image-layout.md`): which layers make the image, and
//! what its maker set as defaults. Every document is checked against size and digest before it is parsed.
//!
//! It must never write, and never unpack: [`super::layers`] does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use croft_protocol::Hash;
use croft_protocol::image::ImageConfig;
use oci_spec::image::{
    ANNOTATION_REF_NAME, Arch, Descriptor, Digest, DigestAlgorithm, ImageConfiguration, ImageIndex,
    ImageManifest, MediaType, OciLayout, Os, Platform,
};

/// An index, manifest or configuration. Registries allow 4 MiB.
const DOCUMENT_BYTES: u64 = 4 * 1024 * 1024;
/// overlayfs-based runtimes stop at 128 layers; nobody has more.
const LAYERS: usize = 512;
/// An index may name another one; more would be a loop or a joke.
const INDEX_DEPTH: usize = 4;

/// What people type: `DIR` or `DIR:TAG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutRef {
    pub dir: PathBuf,
    pub tag: Option<String>,
}

impl LayoutRef {
    /// Splits at the last colon, unless the whole is a directory that exists.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if !Path::new(text).is_dir()
            && let Some((dir, tag)) = text.rsplit_once(':')
            && !dir.is_empty()
            && !tag.is_empty()
            && !tag.contains('/')
        {
            return Self { dir: dir.into(), tag: Some(tag.to_owned()) };
        }
        Self { dir: text.into(), tag: None }
    }
}

/// One image of a layout.
#[derive(Debug)]
pub(crate) struct OciImage {
    /// Digest of the image manifest.
    pub(crate) digest: Hash,
    /// The tag that chose it, if any did.
    pub(crate) tag: Option<String>,
    /// Lowest first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: ImageConfig,
    /// What the image wants and a microVM doesn't give by itself.
    pub(crate) notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) path: PathBuf,
    /// Of the blob as it is stored.
    pub(crate) digest: Hash,
    pub(crate) size_bytes: u64,
    /// Of the archive within.
    pub(crate) diff_id: Hash,
    pub(crate) compression: Compression,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A layout that holds no usable image.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error(
        "{dir} is no OCI image layout, it has no {missing}: make one with 'umoci', 'buildah push … oci:DIR:TAG' or 'skopeo copy docker://… oci:DIR:TAG'"
    )]
    NotALayout { dir: PathBuf, missing: &'static str },
    #[error("can't read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} has {bytes} bytes; {what} has at most {DOCUMENT_BYTES}")]
    TooLarge { path: PathBuf, what: &'static str, bytes: u64 },
    #[error("{path} is no {what}")]
    Syntax { path: PathBuf, what: &'static str, source: serde_json::Error },
    #[error("{dir} has layout version {version}; only 1.0.0 is known")]
    Version { dir: PathBuf, version: String },
    #[error("{dir} has no image tagged '{tag}'; it has {known}")]
    NoTag { dir: PathBuf, tag: String, known: String },
    #[error("{dir} holds several images, choose one as {dir}:TAG; it has {known}")]
    ManyImages { dir: PathBuf, known: String },
    #[error("{dir} holds no image for linux/amd64, only {found}: export that platform too")]
    Platform { dir: PathBuf, found: String },
    #[error("blob {digest} has the digest {found}: the layout is damaged, export the image again")]
    Digest { digest: String, found: Hash },
    #[error(
        "blob {digest} has {found} bytes where {expected} are announced: the layout is damaged, export the image again"
    )]
    Size { digest: String, expected: u64, found: u64 },
    #[error("digest '{digest}' is not SHA-256, which is all that this release reads")]
    Algorithm { digest: String },
    #[error("{what} {digest} is of the type '{media_type}', which is no container image")]
    MediaType { what: &'static str, digest: String, media_type: String },
    #[error("the image {digest} contradicts itself: {reason}")]
    Contradiction { digest: String, reason: String },
}

/// Finds an image in a layout and reads what describes it.
pub(crate) fn open(reference: &LayoutRef) -> Result<OciImage, LayoutError> {
    let layout = Layout::open(&reference.dir)?;
    let index: ImageIndex = Layout::document(&layout.dir.join("index.json"), "OCI index")?;
    let chosen = layout.choose(&index, reference.tag.as_deref())?;
    let tag = reference.tag.clone().or_else(|| tag_of(&chosen).map(str::to_owned));
    let (descriptor, manifest) = layout.manifest(chosen, 0)?;
    layout.image(&descriptor, &manifest, tag)
}

struct Layout {
    dir: PathBuf,
}

impl Layout {
    fn open(dir: &Path) -> Result<Self, LayoutError> {
        for missing in ["oci-layout", "index.json"] {
            if !dir.join(missing).is_file() {
                return Err(LayoutError::NotALayout { dir: dir.to_owned(), missing });
            }
        }
        let layout = Self { dir: dir.to_owned() };
        let marker: OciLayout = Self::document(&dir.join("oci-layout"), "OCI layout marker")?;
        if marker.image_layout_version() != "1.0.0" {
            let version = marker.image_layout_version().chars().take(40).collect();
            return Err(LayoutError::Version { dir: dir.to_owned(), version });
        }
        Ok(layout)
    }

    /// The one entry of the index that is meant.
    fn choose(&self, index: &ImageIndex, tag: Option<&str>) -> Result<Descriptor, LayoutError> {
        let images = index.manifests();
        let known = || {
            let mut tags: Vec<&str> = images.iter().filter_map(tag_of).take(20).collect();
            tags.sort_unstable();
            if tags.is_empty() { format!("{} images without tags", images.len()) } else { tags.join(", ") }
        };
        let Some(tag) = tag else {
            return match &images[..] {
                [only] => Ok(only.clone()),
                // One image for several platforms, without a tag to tell images apart.
                [_, ..] if images.iter().all(|d| tag_of(d).is_none()) => self.for_this_platform(images),
                _ => images
                    .iter()
                    .find(|d| tag_of(d) == Some("latest"))
                    .cloned()
                    .ok_or_else(|| LayoutError::ManyImages { dir: self.dir.clone(), known: known() }),
            };
        };
        let tagged: Vec<Descriptor> = images.iter().filter(|d| tag_of(d) == Some(tag)).cloned().collect();
        match &tagged[..] {
            [] => Err(LayoutError::NoTag { dir: self.dir.clone(), tag: tag.to_owned(), known: known() }),
            [only] => Ok(only.clone()),
            several => self.for_this_platform(several),
        }
    }

    fn for_this_platform(&self, images: &[Descriptor]) -> Result<Descriptor, LayoutError> {
        let fits = |d: &&Descriptor| d.platform().as_ref().is_none_or(is_ours);
        images.iter().find(fits).cloned().ok_or_else(|| {
            let found: Vec<String> = images
                .iter()
                .filter_map(|d| d.platform().as_ref())
                .map(|p| format!("{}/{}", p.os(), p.architecture()))
                .take(20)
                .collect();
            let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
            LayoutError::Platform { dir: self.dir.clone(), found }
        })
    }

    /// Follows indexes down to an image manifest.
    fn manifest(&self, at: Descriptor, depth: usize) -> Result<(Descriptor, ImageManifest), LayoutError> {
        let media_type = at.media_type();
        let is = |ours: MediaType, docker: &str| {
            *media_type == ours || matches!(media_type, MediaType::Other(t) if t == docker)
        };
        if is(MediaType::ImageManifest, "application/vnd.docker.distribution.manifest.v2+json") {
            let manifest = self.blob(&at, "image manifest")?;
            return Ok((at, manifest));
        }
        if depth < INDEX_DEPTH
            && is(MediaType::ImageIndex, "application/vnd.docker.distribution.manifest.list.v2+json")
        {
            let index: ImageIndex = self.blob(&at, "image index")?;
            return self.manifest(self.for_this_platform(index.manifests())?, depth + 1);
        }
        Err(LayoutError::MediaType {
            what: "manifest",
            digest: at.digest().to_string(),
            media_type: media_type.to_string(),
        })
    }

    fn image(
        &self,
        descriptor: &Descriptor,
        manifest: &ImageManifest,
        tag: Option<String>,
    ) -> Result<OciImage, LayoutError> {
        let name = descriptor.digest().to_string();
        let contradiction = |reason| LayoutError::Contradiction { digest: name.clone(), reason };
        let config_type = manifest.config().media_type();
        let known = matches!(config_type, MediaType::ImageConfig)
            || matches!(config_type, MediaType::Other(t) if t == "application/vnd.docker.container.image.v1+json");
        if !known {
            return Err(LayoutError::MediaType {
                what: "configuration",
                digest: manifest.config().digest().to_string(),
                media_type: config_type.to_string(),
            });
        }
        let config: ImageConfiguration = self.blob(manifest.config(), "image configuration")?;
        if *config.os() != Os::Linux || *config.architecture() != Arch::Amd64 {
            let found = format!("{}/{}", config.os(), config.architecture());
            return Err(LayoutError::Platform { dir: self.dir.clone(), found });
        }
        let diff_ids = config.rootfs().diff_ids();
        if manifest.layers().len() != diff_ids.len() || diff_ids.len() > LAYERS {
            return Err(contradiction(format!(
                "{} layers, {} of them described, at most {LAYERS} allowed",
                manifest.layers().len(),
                diff_ids.len()
            )));
        }
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (layer, diff_id) in manifest.layers().iter().zip(diff_ids) {
            let diff_id: Digest =
                diff_id.parse().map_err(|_| contradiction(format!("'{diff_id}' is no digest")))?;
            layers.push(Layer {
                path: self.blob_path(layer.digest())?,
                digest: sha256(layer.digest())?,
                size_bytes: layer.size(),
                diff_id: sha256(&diff_id)?,
                compression: compression(layer)?,
            });
        }
        let (defaults, notes) = defaults(&config);
        Ok(OciImage { digest: sha256(descriptor.digest())?, tag, layers, config: defaults, notes })
    }

    /// Reads, checks and parses a blob that is a document.
    fn blob<T: serde::de::DeserializeOwned>(
        &self,
        descriptor: &Descriptor,
        what: &'static str,
    ) -> Result<T, LayoutError> {
        let path = self.blob_path(descriptor.digest())?;
        let bytes = read_bounded(&path, what)?;
        if bytes.len() as u64 != descriptor.size() {
            return Err(LayoutError::Size {
                digest: descriptor.digest().to_string(),
                expected: descriptor.size(),
                found: bytes.len() as u64,
            });
        }
        let found = Hash::of_bytes(&bytes);
        if found != sha256(descriptor.digest())? {
            return Err(LayoutError::Digest { digest: descriptor.digest().to_string(), found });
        }
        serde_json::from_slice(&bytes).map_err(|source| LayoutError::Syntax { path, what, source })
    }

    fn document<T: serde::de::DeserializeOwned>(path: &Path, what: &'static str) -> Result<T, LayoutError> {
        let bytes = read_bounded(path, what)?;
        serde_json::from_slice(&bytes).map_err(|source| LayoutError::Syntax {
            path: path.to_owned(),
            what,
            source,
        })
    }

    fn blob_path(&self, digest: &Digest) -> Result<PathBuf, LayoutError> {
        Ok(self.dir.join("blobs/sha256").join(sha256(digest)?.to_string()))
    }
}

fn read_bounded(path: &Path, what: &'static str) -> Result<Vec<u8>, LayoutError> {
    let failed = |source| LayoutError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(DOCUMENT_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > DOCUMENT_BYTES {
        return Err(LayoutError::TooLarge { path: path.to_owned(), what, bytes: bytes.len() as u64 });
    }
    Ok(bytes)
}

fn tag_of(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations().as_ref()?.get(ANNOTATION_REF_NAME).map(String::as_str)
}

fn is_ours(platform: &Platform) -> bool {
    *platform.os() == Os::Linux && *platform.architecture() == Arch::Amd64
}

fn sha256(digest: &Digest) -> Result<Hash, LayoutError> {
    let other = || LayoutError::Algorithm { digest: digest.to_string().chars().take(160).collect() };
    if *digest.algorithm() != DigestAlgorithm::Sha256 {
        return Err(other());
    }
    digest.digest().parse().map_err(|_| other())
}

fn compression(layer: &Descriptor) -> Result<Compression, LayoutError> {
    match layer.media_type() {
        MediaType::ImageLayer | MediaType::ImageLayerNonDistributable => Ok(Compression::None),
        MediaType::ImageLayerGzip | MediaType::ImageLayerNonDistributableGzip => Ok(Compression::Gzip),
        MediaType::ImageLayerZstd | MediaType::ImageLayerNonDistributableZstd => Ok(Compression::Zstd),
        MediaType::Other(t) if t == "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Ok(Compression::Gzip)
        }
        MediaType::Other(t) if t == "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            Ok(Compression::Zstd)
        }
        MediaType::Other(t) if t == "application/vnd.docker.image.rootfs.diff.tar" => Ok(Compression::None),
        other => Err(LayoutError::MediaType {
            what: "layer",
            digest: layer.digest().to_string(),
            media_type: other.to_string(),
        }),
    }
}

/// The OCI configuration in our terms. Sorted where OCI has sets, so that equal images stay equal.
pub(crate) fn defaults(config: &ImageConfiguration) -> (ImageConfig, Vec<String>) {
    let Some(c) = config.config() else { return (ImageConfig::default(), Vec::new()) };
    let mut notes = Vec::new();
    let mut env = BTreeMap::new();
    for pair in c.env().iter().flatten() {
        match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                env.insert(key.to_owned(), value.to_owned());
            }
            _ => notes.push(format!("left out '{pair}' of the image's environment: it is no KEY=VALUE")),
        }
    }
    let mut exposed_ports = c.exposed_ports().clone().unwrap_or_default();
    exposed_ports.sort_unstable();
    let mut volumes = c.volumes().clone().unwrap_or_default();
    volumes.sort_unstable();
    for path in volumes {
        notes.push(format!(
            "the image wants a volume at {path}: what it writes there is lost when it restarts, unless croft.toml mounts one"
        ));
    }
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let config = ImageConfig {
        entrypoint: c.entrypoint().clone().unwrap_or_default(),
        cmd: c.cmd().clone().unwrap_or_default(),
        env,
        user: text(c.user()),
        working_dir: text(c.working_dir()),
        stop_signal: text(c.stop_signal()),
        exposed_ports,
    };
    (config, notes)
}
