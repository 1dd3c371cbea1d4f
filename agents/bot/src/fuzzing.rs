//! Doors to decoders of this crate that nobody outside calls, for `tests/fuzz`. They must do nothing that the crate
//! itself does not do with the same bytes.

use std::io::Read;

use croft_protocol::image::ImageConfig;
use croft_protocol::{ChainId, SignedValidatorChange};
use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};

use crate::image::layer_tar::{EntryKind, LayerTar};
use crate::image::oci;
use crate::image::tree::TreePath;

/// An entry of a layer, as far as it was looked at before anything is made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerEntry {
    /// Where it would be made; `None` where that is refused.
    pub path: Option<String>,
    /// Bytes of content that were there.
    pub content_bytes: u64,
    /// Bytes of extended attributes, names included.
    pub xattr_bytes: usize,
}

/// Walks the tar stream of a layer and reads all contents.
///
/// # Errors
/// What the unpacker says.
pub fn walk_layer(archive: impl Read) -> Result<Vec<LayerEntry>, String> {
    let mut tar = LayerTar::new(archive);
    let mut entries = Vec::new();
    let mut buffer = [0; 4096];
    while let Some(entry) = tar.next_entry().map_err(|e| e.to_string())? {
        if let EntryKind::HardLink { target } = &entry.kind {
            let _ = TreePath::new(target);
        }
        let mut content_bytes = 0;
        loop {
            match tar.read_content(&mut buffer).map_err(|e| e.to_string())? {
                0 => break,
                got => content_bytes += got as u64,
            }
        }
        let path = TreePath::new(&entry.path).ok().map(|path| path.to_string());
        let xattr_bytes = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        entries.push(LayerEntry { path, content_bytes, xattr_bytes });
    }
    Ok(entries)
}

/// The defaults in an OCI image configuration.
///
/// # Errors
/// What the parser says.
pub fn image_defaults(bytes: &[u8]) -> Result<ImageConfig, String> {
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    Ok(oci::defaults(&config).0)
}

/// How many things an OCI index or manifest names.
///
/// # Errors
/// What the parser says.
pub fn image_documents(bytes: &[u8]) -> Result<usize, String> {
    match serde_json::from_slice::<ImageIndex>(bytes) {
        Ok(index) => Ok(index.manifests().len()),
        Err(_) => serde_json::from_slice::<ImageManifest>(bytes)
            .map(|manifest| manifest.layers().len())
            .map_err(|e| e.to_string()),
    }
}

/// The file in which a release, or a change of the release keys, goes from one to the next: whether it is one.
#[must_use]
pub fn release_file(text: &str) -> bool {
    crate::commands::release::is_file(text)
}

/// The file in which a change of the validators goes from one to the next.
///
/// # Errors
/// What the parser says.
pub fn validator_change(text: &str) -> Result<(ChainId, SignedValidatorChange), String> {
    crate::commands::validators::parse(text)
}
