//! Layers and layouts as tests need them, hostile ones included.

use std::io::Write as _;
use std::path::Path;

use croft_protocol::Hash;
use serde_json::json;
use tar::{EntryType, Header};

use super::oci::{Compression, Layer};

/// A layer that grows entry by entry, without any of the checks that well-behaved writers make.
#[derive(Default)]
pub(crate) struct TarBuilder {
    bytes: Vec<u8>,
}

impl TarBuilder {
    pub(crate) fn raw(
        mut self,
        path: &str,
        kind: EntryType,
        edit: impl FnOnce(&mut Header),
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        edit(&mut header);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.raw(path, EntryType::Regular, |_| {}, content.as_bytes())
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.raw(path, EntryType::Directory, |_| {}, b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(path, EntryType::Symlink, |h| h.set_link_name_literal(target).unwrap(), b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(path, EntryType::Link, |h| h.set_link_name_literal(target).unwrap(), b"")
    }

    pub(crate) fn device(self, path: &str, kind: EntryType, major: u32, minor: u32) -> Self {
        let edit = |h: &mut Header| {
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
        };
        self.raw(path, kind, edit, b"")
    }

    /// A file with an extended attribute.
    pub(crate) fn file_with_xattr(self, path: &str, name: &str, value: &str) -> Self {
        let body = format!(" SCHILY.xattr.{name}={value}\n");
        let mut len = body.len();
        while len != body.len() + len.to_string().len() {
            len = body.len() + len.to_string().len();
        }
        self.raw("pax", EntryType::XHeader, |_| {}, format!("{len}{body}").as_bytes()).file(path, "")
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    /// Writes the layer as a blob of a layout.
    pub(crate) fn layer(self, dir: &Path, compression: Compression) -> Layer {
        let archive = self.finish();
        let blob = match compression {
            Compression::None => archive.clone(),
            Compression::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(&archive).unwrap();
                gzip.finish().unwrap()
            }
            Compression::Zstd => zstd::encode_all(&archive[..], 1).unwrap(),
        };
        let digest = write_blob(dir, &blob);
        Layer {
            path: dir.join("blobs/sha256").join(digest.to_string()),
            digest,
            size_bytes: blob.len() as u64,
            diff_id: Hash::of_bytes(&archive),
            compression,
        }
    }
}

pub(crate) fn write_blob(dir: &Path, bytes: &[u8]) -> Hash {
    let digest = Hash::of_bytes(bytes);
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(digest.to_string()), bytes).unwrap();
    digest
}

/// A whole layout with one image of these layers. Returns the digest of its manifest.
pub(crate) fn write_layout(dir: &Path, tag: &str, layers: &[Layer], config: &serde_json::Value) -> Hash {
    let describe = |media_type: &str, digest: Hash, size: u64| json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size });
    let document = |value: &serde_json::Value| {
        let bytes = serde_json::to_vec(value).unwrap();
        (write_blob(dir, &bytes), bytes.len() as u64)
    };
    let (config_digest, config_size) = document(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| format!("sha256:{}", l.diff_id)).collect::<Vec<_>>() },
    }));
    let layers: Vec<_> = layers
        .iter()
        .map(|l| {
            let suffix = match l.compression {
                Compression::None => "",
                Compression::Gzip => "+gzip",
                Compression::Zstd => "+zstd",
            };
            describe(&format!("application/vnd.oci.image.layer.v1.tar{suffix}"), l.digest, l.size_bytes)
        })
        .collect();
    let (manifest, size) = document(&json!({
        "schemaVersion": 2,
        "config": describe("application/vnd.oci.image.config.v1+json", config_digest, config_size),
        "layers": layers,
    }));
    let mut entry = describe("application/vnd.oci.image.manifest.v1+json", manifest, size);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    std::fs::write(
        dir.join("index.json"),
        serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [entry] })).unwrap(),
    )
    .unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    manifest
}
