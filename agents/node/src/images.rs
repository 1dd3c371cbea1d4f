//! Workload images on this node: fetched chunk by chunk, verified, assembled once, kept for the next boot.
//!
//! ```text
//! manifest (hash checked) -> chunks (hash checked, resumed after a power cut) -> <hash>.partial
//!    -> hash tree's top block against the verity root -> fsync -> rename to <hash>.img
//! ```
//! It must never hand out a file that is not whole. Later damage on the disk is found by dm-verity on every read;
//! [`ImageStore::verify`] tells whether the file is to blame.

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use croft_protocol::image::{BLOCK_BYTES, ImageManifest, InvalidManifest, Verity};
use croft_protocol::{Hash, limits};
use futures_util::{StreamExt as _, stream};
use sha2::{Digest, Sha256};

/// Chunks on their way at the same time: hides the round trip, holds some megabytes at most.
const FETCHED_AT_ONCE: usize = 4;
/// Chunks between two syncs of a partial image: what a power cut costs at most.
const SYNC_CHUNKS: usize = 32;

/// Where blobs come from.
pub trait BlobSource: Sync {
    /// The bytes that somebody sends under this hash. Nobody has checked them.
    fn blob(&self, hash: Hash) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("can't fetch {what} {hash}: {reason}")]
    Fetch { what: &'static str, hash: Hash, reason: String },
    #[error(transparent)]
    Manifest(#[from] InvalidManifest),
    #[error(
        "chunk {index} of image {image} is not {hash}: whoever sent it is broken or lies; trying elsewhere"
    )]
    Chunk { image: Hash, index: usize, hash: Hash },
    #[error(
        "chunk {index} of image {image} does not unpack to {expected} bytes: the image was built wrongly, build it again"
    )]
    Unpack { image: Hash, index: usize, expected: usize },
    #[error(
        "the verity root of image {image} does not belong to its bytes: the image was built wrongly, build it again"
    )]
    Root { image: Hash },
    #[error("no space on the data disk for image {image} of {size_bytes} bytes: end contracts or add a disk")]
    Full { image: Hash, size_bytes: u64 },
    #[error(
        "image {image} of {size_bytes} bytes does not fit beside the {used_bytes} bytes of images that this node keeps; it \
         sets aside {quota_bytes}: end contracts, or choose a node with a larger disk"
    )]
    Quota { image: Hash, size_bytes: u64, used_bytes: u64, quota_bytes: u64 },
    #[error("can't {action} {path}: check the data disk")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl ImageError {
    /// Whether another try can't help, whoever sends the bytes.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Unpack { .. } | Self::Root { .. } => true,
            Self::Manifest(e) => !matches!(e, InvalidManifest::Hash { .. }),
            Self::Quota { size_bytes, quota_bytes, .. } => size_bytes > quota_bytes,
            Self::Fetch { .. } | Self::Chunk { .. } | Self::Full { .. } | Self::Io { .. } => false,
        }
    }
}

/// An image that can be attached.
#[derive(Debug, Clone)]
pub struct Image {
    pub path: PathBuf,
    pub manifest: Arc<ImageManifest>,
}

/// The images of one node, in one directory of its data disk.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: PathBuf,
    quota_bytes: u64,
}

impl ImageStore {
    /// A store in a directory, which is made when needed. All images together stay within the quota: the rest of the
    /// disk is sold as volumes.
    ///
    /// # Errors
    /// [`ImageError::Io`] when it can't be made.
    pub fn open(dir: &Path, quota_bytes: u64) -> Result<Self, ImageError> {
        fs::create_dir_all(dir).map_err(io_error("make", dir))?;
        Ok(Self { dir: dir.to_owned(), quota_bytes })
    }

    /// Bytes of all images but one.
    fn used_beside(&self, hash: Hash) -> Result<u64, ImageError> {
        let entries = fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))?.flatten();
        let own = hash.to_string();
        Ok(entries
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with(&own))
            .map(|entry| entry.metadata().map_or(0, |m| m.len()))
            .sum())
    }

    fn path(&self, hash: Hash, suffix: &str) -> PathBuf {
        self.dir.join(format!("{hash}.{suffix}"))
    }

    /// The image, if it is here and whole.
    #[must_use]
    pub fn get(&self, hash: Hash) -> Option<Image> {
        let manifest = ImageManifest::check(&fs::read(self.path(hash, "manifest")).ok()?, hash).ok()?;
        let path = self.path(hash, "img");
        (fs::metadata(&path).ok()?.len() == manifest.size_bytes)
            .then(|| Image { path, manifest: Arc::new(manifest) })
    }

    /// The image from here, or fetched and verified. `progress` hears of bytes done and bytes in all.
    ///
    /// # Errors
    /// [`ImageError`]; what was verified so far stays for the next try.
    pub async fn fetch(
        &self,
        hash: Hash,
        source: &impl BlobSource,
        progress: impl Fn(u64, u64),
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.get(hash) {
            return Ok(image);
        }
        let bytes = source.blob(hash).await.map_err(|reason| ImageError::Fetch {
            what: "image manifest",
            hash,
            reason,
        })?;
        let manifest = ImageManifest::check(&bytes, hash)?;
        let (size_bytes, used_bytes) = (manifest.size_bytes, self.used_beside(hash)?);
        if used_bytes.saturating_add(size_bytes) > self.quota_bytes {
            let quota_bytes = self.quota_bytes;
            return Err(ImageError::Quota { image: hash, size_bytes, used_bytes, quota_bytes });
        }
        write_whole(&self.path(hash, "manifest"), &bytes)?;
        let partial = self.path(hash, "partial");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&partial)
            .map_err(io_error("open", &partial))?;
        let full = |source: io::Error| {
            if source.kind() == io::ErrorKind::StorageFull || source.kind() == io::ErrorKind::QuotaExceeded {
                ImageError::Full { image: hash, size_bytes: manifest.size_bytes }
            } else {
                io_error("write", &partial)(source)
            }
        };
        // All space at once: a disk that is too full says so before anything is fetched.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, manifest.size_bytes)
            .map_err(|e| full(e.into()))?;
        let mut done = self.progress(hash);
        let wanted: Vec<(usize, Hash)> =
            manifest.chunks.iter().map(|chunk| chunk.hash).enumerate().skip(done).collect();
        // They come from whoever is asked, and are written in their order.
        let mut coming = stream::iter(wanted)
            .map(|(index, chunk)| async move { (index, chunk, source.blob(chunk).await) })
            .buffered(FETCHED_AT_ONCE);
        while let Some((index, chunk, packed)) = coming.next().await {
            progress(index as u64 * limits::CHUNK_BYTES as u64, manifest.size_bytes);
            let packed =
                packed.map_err(|reason| ImageError::Fetch { what: "image chunk", hash: chunk, reason })?;
            if Hash::of_bytes(&packed) != chunk {
                return Err(ImageError::Chunk { image: hash, index, hash: chunk });
            }
            let expected = manifest.chunk_len(index);
            let plain = zstd::bulk::decompress(&packed, expected)
                .ok()
                .filter(|plain| plain.len() == expected)
                .ok_or(ImageError::Unpack { image: hash, index, expected })?;
            file.write_all_at(&plain, index as u64 * limits::CHUNK_BYTES as u64).map_err(full)?;
            if (index + 1 - done).is_multiple_of(SYNC_CHUNKS) {
                file.sync_data().map_err(full)?;
                done = index + 1;
                write_whole(&self.path(hash, "progress"), &(done as u64).to_le_bytes())?;
            }
        }
        let top = read_block(&file, manifest.verity.data_blocks).map_err(io_error("read", &partial))?;
        if salted(&manifest.verity, &top) != manifest.verity.root {
            let _ = fs::remove_file(&partial);
            let _ = fs::remove_file(self.path(hash, "progress"));
            return Err(ImageError::Root { image: hash });
        }
        file.sync_all().map_err(full)?;
        let path = self.path(hash, "img");
        fs::rename(&partial, &path).map_err(io_error("rename", &partial))?;
        let _ = fs::remove_file(self.path(hash, "progress"));
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(io_error("sync", &self.dir))?;
        progress(manifest.size_bytes, manifest.size_bytes);
        Ok(Image { path, manifest: Arc::new(manifest) })
    }

    /// Chunks that are known to be on disk from an earlier try.
    fn progress(&self, hash: Hash) -> usize {
        fs::read(self.path(hash, "progress"))
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, |bytes| u64::from_le_bytes(bytes) as usize)
    }

    /// Reads a whole image and compares it with its hash tree; a damaged one is removed, to be fetched anew.
    /// Returns whether it was whole.
    ///
    /// # Errors
    /// [`ImageError::Io`] when it can't be read.
    pub fn verify(image: &Image) -> Result<bool, ImageError> {
        let whole =
            verify_tree(&image.path, &image.manifest.verity).map_err(io_error("read", &image.path))?;
        if !whole {
            fs::remove_file(&image.path).map_err(io_error("remove", &image.path))?;
        }
        Ok(whole)
    }

    /// Removes every image that is not in use. Returns the bytes freed.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the directory can't be read.
    pub fn remove_unused(&self, in_use: impl Fn(Hash) -> bool) -> Result<u64, ImageError> {
        let mut freed = 0;
        for entry in fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))?.flatten() {
            let name = entry.file_name();
            let Some(hash) = name.to_str().and_then(|n| n.split('.').next()?.parse::<Hash>().ok()) else {
                continue;
            };
            if !in_use(hash) {
                freed += entry.metadata().map_or(0, |m| m.len());
                fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(freed)
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError + use<> {
    let path = path.to_owned();
    move |source| ImageError::Io { action, path, source }
}

/// Writes a small file so that a power cut leaves the old one or the new one.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io_error("write", path))
}

fn read_block(file: &File, index: u64) -> io::Result<Vec<u8>> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    file.read_exact_at(&mut block, index * BLOCK_BYTES)?;
    Ok(block)
}

/// dm-verity format 1: the salt comes first.
fn salted(verity: &Verity, block: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(verity.salt);
    hasher.update(block);
    Hash(hasher.finalize().into())
}

/// Hashes of one block of the tree: 4096 / 32.
const HASHES_PER_BLOCK: u64 = BLOCK_BYTES / 32;

fn verify_tree(path: &Path, verity: &Verity) -> io::Result<bool> {
    let file = File::open(path)?;
    // Blocks of each level, from the one over the data up to the single top block, which comes first on disk.
    let mut levels = vec![verity.data_blocks.div_ceil(HASHES_PER_BLOCK)];
    while let Some(&last) = levels.last().filter(|n| **n > 1) {
        levels.push(last.div_ceil(HASHES_PER_BLOCK));
    }
    let mut start = verity.data_blocks;
    let starts: Vec<u64> = levels
        .iter()
        .rev()
        .map(|blocks| {
            let at = start;
            start += blocks;
            at
        })
        .collect();
    let mut below = (0, verity.data_blocks);
    for (blocks, at) in levels.iter().zip(starts.iter().rev()) {
        let mut index = 0;
        while index < below.1 {
            let hashes = read_block(&file, at + index / HASHES_PER_BLOCK)?;
            for slot in 0..HASHES_PER_BLOCK.min(below.1 - index) {
                let block = read_block(&file, below.0 + index + slot)?;
                let at = slot as usize * 32;
                if salted(verity, &block).0 != hashes[at..at + 32] {
                    return Ok(false);
                }
            }
            index += HASHES_PER_BLOCK;
        }
        below = (*at, *blocks);
    }
    let top = read_block(&file, verity.data_blocks)?;
    Ok(salted(verity, &top) == verity.root)
}

#[cfg(test)]
mod tests;
