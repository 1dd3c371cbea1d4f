//! Puts the layers of an image on top of each other in a tree.
//!
//! ```text
//!   each layer:  survey (digests, paths, whiteouts) ──> whiteouts remove what lies below ──> unpack
//! ```
//! The survey reads a layer once to its end before anything is made of it: its bytes are then known to be
//! what the manifest names, and its whiteouts can be carried out first, so that they hit only layers below,
//! wherever in the archive they stand (OCI image specification, `layer.md`, "Whiteouts").

use std::fs::File;
use std::io::{self, BufReader, Read};

use croft_protocol::Hash;
use flate2::bufread::MultiGzDecoder;
use rustix::fs::FileType;
use sha2::{Digest as _, Sha256};

use super::layer_tar::{Entry, EntryKind, LayerTar, TarError};
use super::oci::{Compression, Layer};
use super::tree::{Attributes, Tree, TreeError, TreePath};

/// Things in all layers together. ext4 makes as many inodes per 64 GiB; beyond this somebody plays.
const ENTRIES: u64 = 4_000_000;
/// Bytes of one layer's archive, and so of its files: what a manifest can describe at all.
const ARCHIVE_BYTES: u64 = 64 << 30;
const BUFFER_BYTES: usize = 256 * 1024;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What AUFS kept for itself.
const AUFS: &[u8] = b".wh..wh.";

/// A layer that can't be unpacked.
#[derive(Debug, thiserror::Error)]
#[error("layer {number} ({digest}) can't be used")]
pub struct LayerError {
    /// From 1.
    pub number: usize,
    pub digest: Hash,
    #[source]
    pub reason: LayerFailure,
}

/// Why.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct LayerFailure(#[from] Failure);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("its blob {path} can't be opened: export the image again")]
    Open { path: std::path::PathBuf, source: io::Error },
    #[error("it has {found} bytes where the manifest announces {expected}: export the image again")]
    Size { expected: u64, found: u64 },
    #[error("its bytes have the digest {found}: it was damaged or altered, export the image again")]
    Digest { found: Hash },
    #[error("its archive has the digest {found}, but the image's configuration says {expected}")]
    DiffId { expected: Hash, found: Hash },
    #[error("it holds more than {ARCHIVE_BYTES} bytes: images end there")]
    TooLarge,
    #[error("the image has more than {ENTRIES} files: images end there")]
    TooMany,
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("it can't be decompressed")]
    Decompress { source: io::Error },
}

/// Unpacks layers, lowest first. `progress` hears how many stored bytes were read, of twice the sum of all
/// layers' sizes.
pub(crate) fn unpack(
    layers: &[Layer],
    tree: &mut Tree,
    progress: &mut dyn FnMut(u64),
) -> Result<(), LayerError> {
    let mut entries = 0;
    for (i, layer) in layers.iter().enumerate() {
        let failed =
            |reason| LayerError { number: i + 1, digest: layer.digest, reason: LayerFailure(reason) };
        let whiteouts = survey(layer, &mut entries, progress).map_err(failed)?;
        for whiteout in &whiteouts {
            match whiteout {
                Whiteout::Children(path) => tree.remove_children(path),
                Whiteout::One(path) => tree.remove(path),
            }
            .map_err(|e| failed(e.into()))?;
        }
        drop(whiteouts);
        fill(layer, tree, progress).map_err(failed)?;
    }
    Ok(())
}

/// What a layer hides of those below.
#[derive(Debug, PartialEq, Eq)]
enum Whiteout {
    One(TreePath),
    Children(TreePath),
}

/// Reads a whole layer, checks it and collects its whiteouts.
fn survey(layer: &Layer, entries: &mut u64, progress: &mut dyn FnMut(u64)) -> Result<Vec<Whiteout>, Failure> {
    let mut tar = LayerTar::new(LayerReader::open(layer, progress)?);
    let mut whiteouts = Vec::new();
    while let Some(entry) = tar.next_entry().map_err(unwrap_limit)? {
        *entries += 1;
        if *entries > ENTRIES {
            return Err(Failure::TooMany);
        }
        let path = TreePath::new(&entry.path)?;
        if let Role::Whiteout(whiteout) = role(path)? {
            whiteouts.push(whiteout);
        }
        if let EntryKind::HardLink { target } = &entry.kind {
            TreePath::new(target)?;
        }
    }
    tar.into_inner().finish()?;
    Ok(whiteouts)
}

/// Makes everything that a surveyed layer holds.
fn fill(layer: &Layer, tree: &mut Tree, progress: &mut dyn FnMut(u64)) -> Result<(), Failure> {
    let mut tar = LayerTar::new(LayerReader::open(layer, progress)?);
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Some(entry) = tar.next_entry().map_err(unwrap_limit)? {
        let Role::Content(path) = role(TreePath::new(&entry.path)?)? else { continue };
        make(&entry, &path, tree, &mut tar, &mut buffer)?;
    }
    // Again: the file may have been exchanged since the survey.
    tar.into_inner().finish()
}

fn make<R: Read>(
    entry: &Entry,
    path: &TreePath,
    tree: &mut Tree,
    tar: &mut LayerTar<R>,
    buffer: &mut [u8],
) -> Result<(), Failure> {
    let attributes = Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime_s: entry.mtime_s };
    match &entry.kind {
        EntryKind::Directory => tree.directory(path, &attributes, &entry.xattrs)?,
        EntryKind::File { .. } => {
            tree.file::<Failure>(path, &attributes, &entry.xattrs, |write| {
                loop {
                    let got = tar.read_content(buffer).map_err(unwrap_limit)?;
                    if got == 0 {
                        return Ok(());
                    }
                    write(&buffer[..got])?;
                }
            })?;
        }
        EntryKind::Symlink { target } => tree.symlink(path, target, &attributes)?,
        EntryKind::HardLink { target } => tree.hard_link(path, &TreePath::new(target)?)?,
        EntryKind::CharDevice { major, minor } => {
            tree.special(path, FileType::CharacterDevice, (*major, *minor), &attributes)?;
        }
        EntryKind::BlockDevice { major, minor } => {
            tree.special(path, FileType::BlockDevice, (*major, *minor), &attributes)?;
        }
        EntryKind::Fifo => tree.special(path, FileType::Fifo, (0, 0), &attributes)?,
    }
    Ok(())
}

enum Role {
    Content(TreePath),
    Whiteout(Whiteout),
    /// Not for us.
    Ignored,
}

fn role(path: TreePath) -> Result<Role, TreeError> {
    let Some((parent, name)) = path.split() else { return Ok(Role::Content(path)) };
    if name == OPAQUE {
        return Ok(Role::Whiteout(Whiteout::Children(parent)));
    }
    if name.starts_with(AUFS) {
        return Ok(Role::Ignored);
    }
    match name.strip_prefix(WHITEOUT) {
        Some(hidden) => Ok(Role::Whiteout(Whiteout::One(parent.join(hidden)?))),
        None => Ok(Role::Content(path)),
    }
}

/// The archive inside a layer's blob; hashes the blob and the archive on the way.
struct LayerReader<'a> {
    layer: Layer,
    decoder: Decoder,
    archive: Sha256,
    archive_bytes: u64,
    reported: u64,
    progress: &'a mut dyn FnMut(u64),
}

enum Decoder {
    Plain(BlobReader),
    Gzip(Box<MultiGzDecoder<BufReader<BlobReader>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<BlobReader>>>),
}

struct BlobReader {
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buffer)?;
        self.hasher.update(&buffer[..got]);
        self.bytes += got as u64;
        Ok(got)
    }
}

/// Marks the error of a reader that passed its limit, since a `Read` can only return an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("the archive is too large")]
struct PastLimit;

/// Marks an error of the decompressor.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotDecompressed(io::Error);

fn unwrap_limit(error: TarError) -> Failure {
    let TarError::Read { offset, source } = error else { return Failure::Tar(error) };
    if source.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<PastLimit>) {
        return Failure::TooLarge;
    }
    if source.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<NotDecompressed>) {
        return Failure::Decompress { source };
    }
    Failure::Tar(TarError::Read { offset, source })
}

impl<'a> LayerReader<'a> {
    fn open(layer: &Layer, progress: &'a mut dyn FnMut(u64)) -> Result<Self, Failure> {
        let failed = |source| Failure::Open { path: layer.path.clone(), source };
        let file = File::open(&layer.path).map_err(failed)?;
        let blob = BlobReader { file, hasher: Sha256::new(), bytes: 0 };
        let buffered = |blob| BufReader::with_capacity(BUFFER_BYTES, blob);
        let decoder = match layer.compression {
            Compression::None => Decoder::Plain(blob),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(buffered(blob)))),
            Compression::Zstd => Decoder::Zstd(Box::new(
                zstd::Decoder::with_buffer(buffered(blob))
                    .map_err(|source| Failure::Decompress { source })?,
            )),
        };
        Ok(Self {
            layer: layer.clone(),
            decoder,
            archive: Sha256::new(),
            archive_bytes: 0,
            reported: 0,
            progress,
        })
    }

    /// Reads to the end and compares sizes and digests.
    fn finish(mut self) -> Result<(), Failure> {
        let mut buffer = vec![0; BUFFER_BYTES];
        while self.read(&mut buffer).map_err(|source| unwrap_limit(TarError::Read { offset: 0, source }))? > 0
        {
        }
        let mut blob = match self.decoder {
            Decoder::Plain(blob) => blob,
            Decoder::Gzip(gzip) => gzip.into_inner().into_inner(),
            Decoder::Zstd(zstd) => zstd.finish().into_inner(),
        };
        io::copy(&mut blob, &mut io::sink())
            .map_err(|source| Failure::Open { path: self.layer.path.clone(), source })?;
        (self.progress)(blob.bytes.saturating_sub(self.reported));
        if blob.bytes != self.layer.size_bytes {
            return Err(Failure::Size { expected: self.layer.size_bytes, found: blob.bytes });
        }
        let found = Hash(blob.hasher.finalize().into());
        if found != self.layer.digest {
            return Err(Failure::Digest { found });
        }
        let found = Hash(self.archive.finalize().into());
        if found != self.layer.diff_id {
            return Err(Failure::DiffId { expected: self.layer.diff_id, found });
        }
        Ok(())
    }

    fn blob_bytes(&self) -> u64 {
        match &self.decoder {
            Decoder::Plain(blob) => blob.bytes,
            Decoder::Gzip(gzip) => gzip.get_ref().get_ref().bytes,
            Decoder::Zstd(zstd) => zstd.get_ref().get_ref().bytes,
        }
    }
}

impl Read for LayerReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = match &mut self.decoder {
            Decoder::Plain(blob) => blob.read(buffer)?,
            Decoder::Gzip(gzip) => gzip.read(buffer).map_err(not_decompressed)?,
            Decoder::Zstd(zstd) => zstd.read(buffer).map_err(not_decompressed)?,
        };
        self.archive.update(&buffer[..got]);
        self.archive_bytes += got as u64;
        if self.archive_bytes > ARCHIVE_BYTES {
            return Err(io::Error::other(PastLimit));
        }
        let read = self.blob_bytes();
        (self.progress)(read - self.reported);
        self.reported = read;
        Ok(got)
    }
}

fn not_decompressed(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), NotDecompressed(error))
}

#[cfg(test)]
mod tests;
