//! From an OCI image to a workload image in the local store.
//!
//! ```text
//!   OCI layout ──layers──> tree ──mkfs.erofs──> file system ──verity──> image file ──cut, zstd──> blobs
//! ```
//! The same OCI image gives the same manifest hash wherever it is built with the same mkfs.erofs: the salt
//! comes from the OCI digest, and nothing of the machine, the time or the builder goes in. Everything
//! streams; memory holds one chunk at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use croft_protocol::image::{Chunk, ImageManifest, InvalidManifest};
use croft_protocol::{Hash, limits, units};

use super::blobs::{BlobError, BlobStore};
use super::erofs::{self, ErofsError, Recipe};
use super::layers::{self, LayerError};
use super::oci::{self, LayoutError, LayoutRef};
use super::tree::{Tree, TreeError, TreeSummary};
use super::verity;
use crate::files;
use crate::terminal::Progress;

/// Compression level of chunks. The file system inside is compressed already; higher levels gain little.
const ZSTD_LEVEL: i32 = 6;

/// How directories begin that builds work in.
const PREFIX: &str = "build-";
const LOCK: &str = "lock";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error("the image's file system can't be laid out")]
    Tree(#[source] TreeFailure),
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    #[error("the image has {size}, more than the {limit} that a manifest can describe: make it smaller", size = units::show_bytes(*bytes), limit = units::show_bytes(MAX_BYTES))]
    TooLarge { bytes: u64 },
    #[error(
        "can't work in the scratch directory {dir}: is there enough space? choose another with --scratch"
    )]
    Scratch { dir: PathBuf, source: io::Error },
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Manifest(#[from] InvalidManifest),
}

/// The tree's own error, which others don't need to know in detail.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TreeFailure(#[from] TreeError);

/// The manifest itself must fit into a blob: 36 bytes for each chunk, and room for the configuration.
const MAX_BYTES: u64 = ((limits::BLOB_BYTES - 256 * 1024) / 36) as u64 * limits::CHUNK_BYTES as u64;

/// A finished image.
#[derive(Debug)]
pub struct Built {
    pub hash: Hash,
    pub manifest: ImageManifest,
    /// Files, directories and links.
    pub files: u64,
    /// Bytes of all files before compression.
    pub content_bytes: u64,
    /// Bytes of the chunks as they are stored and sent.
    pub stored_bytes: u64,
    pub tag: Option<String>,
    pub notes: Vec<String>,
}

/// Builds an image and stores its blobs.
pub fn build(
    layout: &LayoutRef,
    scratch: &Path,
    store: &BlobStore,
    progress: &mut dyn Progress,
) -> Result<Built, BuildError> {
    build_as(layout, scratch, store, progress, rustix::process::geteuid().is_root())
}

fn build_as(
    layout: &LayoutRef,
    scratch: &Path,
    store: &BlobStore,
    progress: &mut dyn Progress,
    as_root: bool,
) -> Result<Built, BuildError> {
    erofs::check_tools(as_root)?;
    let image = oci::open(layout)?;
    let failed = |source| BuildError::Scratch { dir: scratch.to_owned(), source };
    let (work, _lock) = work_dir(scratch).map_err(failed)?;

    let image_path = work.path().join("image");
    let summary = make_file_system(&image, work.path(), &image_path, as_root, progress)?;

    let file = File::options().read(true).write(true).open(&image_path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > MAX_BYTES {
        return Err(BuildError::TooLarge { bytes });
    }
    progress.start("hashing", bytes);
    let salt = Hash::of("croft/verity-salt/1", &image.digest).0;
    let (verity, size_bytes) =
        verity::append_tree(&file, salt, &mut |n| progress.advance(n)).map_err(failed)?;
    progress.finish();

    let (chunks, stored_bytes) = store_chunks(&file, size_bytes, scratch, store, progress)?;
    let manifest =
        ImageManifest { version: 1, verity, size_bytes, chunks, config: image.config, source: image.digest };
    let encoded = croft_protocol::encode(&manifest);
    let hash = store.put(&encoded)?;
    store.sync()?;
    // What nobody else would accept must not leave this machine.
    ImageManifest::check(&encoded, hash)?;
    Ok(Built {
        hash,
        manifest,
        files: summary.files,
        content_bytes: summary.bytes,
        stored_bytes,
        tag: image.tag,
        notes: image.notes,
    })
}

/// A directory to work in, held by its lock, which goes with the process. Those of builds that were
/// interrupted are removed: nobody holds their locks any more.
fn work_dir(scratch: &Path) -> io::Result<(tempfile::TempDir, File)> {
    let _alone = files::lock(scratch)?;
    for entry in std::fs::read_dir(scratch)? {
        let path = entry?.path();
        let is_ours = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        if is_ours && File::open(path.join(LOCK)).map_or(true, |lock| lock.try_lock().is_ok()) {
            std::fs::remove_dir_all(&path)?;
        }
    }
    let work = tempfile::Builder::new().prefix(PREFIX).tempdir_in(scratch)?;
    let lock = File::create(work.path().join(LOCK))?;
    lock.lock()?;
    Ok((work, lock))
}

fn make_file_system(
    image: &oci::OciImage,
    work: &Path,
    output: &Path,
    as_root: bool,
    progress: &mut dyn Progress,
) -> Result<TreeSummary, BuildError> {
    let root = work.join("root");
    std::fs::create_dir(&root).map_err(|source| BuildError::Scratch { dir: work.to_owned(), source })?;
    let tree_failed = |e| BuildError::Tree(TreeFailure(e));
    let mut tree = Tree::with_privilege(&root, as_root).map_err(tree_failed)?;
    let stored: u64 = image.layers.iter().map(|l| l.size_bytes).fold(0, u64::saturating_add);
    let what = match image.layers.len() {
        1 => "unpacking 1 layer".to_owned(),
        n => format!("unpacking {n} layers"),
    };
    progress.start(&what, stored.saturating_mul(2));
    layers::unpack(&image.layers, &mut tree, &mut |n| progress.advance(n))?;
    let summary = tree.finish().map_err(tree_failed)?;
    progress.finish();

    progress.start("making the file system", 0);
    erofs::make(&Recipe {
        tree: &root,
        output,
        scratch: work,
        fakeroot_state: tree.fakeroot_state().map_err(tree_failed)?.as_deref(),
        xattrs: tree.has_xattrs(),
        newest_s: summary.newest_s,
    })?;
    progress.finish();
    Ok(summary)
}

fn store_chunks(
    file: &File,
    size_bytes: u64,
    scratch: &Path,
    store: &BlobStore,
    progress: &mut dyn Progress,
) -> Result<(Vec<Chunk>, u64), BuildError> {
    let failed = |source| BuildError::Scratch { dir: scratch.to_owned(), source };
    let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(failed)?;
    let mut chunks = Vec::new();
    let mut stored_bytes = 0;
    let mut buffer = vec![0; limits::CHUNK_BYTES];
    let mut at = 0;
    progress.start("storing", size_bytes);
    while at < size_bytes {
        let len = (size_bytes - at).min(limits::CHUNK_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..len], at).map_err(failed)?;
        let compressed = compressor.compress(&buffer[..len]).map_err(failed)?;
        let hash = store.put(&compressed)?;
        stored_bytes += compressed.len() as u64;
        chunks.push(Chunk { hash, compressed_bytes: compressed.len() as u32 });
        at += len as u64;
        progress.advance(len as u64);
    }
    progress.finish();
    Ok((chunks, stored_bytes))
}

#[cfg(test)]
mod tests;
