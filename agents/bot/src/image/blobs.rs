//! The local store of blobs: compressed chunks and manifests, each in a file named by its SHA-256.
//!
//! A blob is written aside and renamed, so that a file under its name is whole; and it is checked whenever it
//! is read, so that a damaged disk or a hand in the store is noticed before a node does.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use croft_protocol::image::ImageManifest;
use croft_protocol::{Hash, limits};

use crate::files;

/// A blob that can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("blob {hash} is missing from {dir}: build the image again")]
    Missing { hash: Hash, dir: PathBuf },
    #[error(
        "blob {path} was altered or damaged, its content has the hash {found}: remove it and build the image again"
    )]
    Altered { path: PathBuf, found: Hash },
    #[error(
        "chunk {index} of image {manifest} doesn't decompress to {expected} bytes: build the image again"
    )]
    Chunk { manifest: Hash, index: usize, expected: usize },
    #[error("can't read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("can't write {path}")]
    Write { path: PathBuf, source: io::Error },
}

pub struct BlobStore {
    dir: PathBuf,
}

impl BlobStore {
    /// A store in a directory that exists or will be made on the first write.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where a blob is or would be.
    #[must_use]
    pub fn path(&self, hash: &Hash) -> PathBuf {
        let name = hash.to_string();
        self.dir.join(&name[..2]).join(name)
    }

    /// Stores bytes under their hash. Storing twice is storing once.
    pub fn put(&self, bytes: &[u8]) -> Result<Hash, BlobError> {
        let hash = Hash::of_bytes(bytes);
        if self.get(&hash).is_ok() {
            return Ok(hash);
        }
        let path = self.path(&hash);
        files::aside(&path, bytes, false)
            .and_then(|file| file.replace(&path, false))
            .map_err(|source| BlobError::Write { path, source })?;
        Ok(hash)
    }

    /// Makes everything durable that was stored so far. Once for many blobs: each is checked when it is read,
    /// so a power cut before this costs a rebuild and never a wrong byte.
    pub fn sync(&self) -> Result<(), BlobError> {
        let failed = |source| BlobError::Write { path: self.dir.clone(), source };
        let dir = fs::File::open(&self.dir).map_err(failed)?;
        rustix::fs::syncfs(&dir).map_err(|e| failed(e.into()))
    }

    /// Reads and checks a blob.
    pub fn get(&self, hash: &Hash) -> Result<Vec<u8>, BlobError> {
        let path = self.path(hash);
        let failed = |source| BlobError::Read { path: path.clone(), source };
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(BlobError::Missing { hash: *hash, dir: self.dir.clone() });
            }
            Err(e) => return Err(failed(e)),
        };
        let mut bytes = Vec::new();
        file.take(limits::BLOB_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        let found = Hash::of_bytes(&bytes);
        if found != *hash {
            return Err(BlobError::Altered { path, found });
        }
        Ok(bytes)
    }

    /// One uncompressed chunk of an image.
    pub fn chunk(&self, manifest: &ImageManifest, index: usize) -> Result<Vec<u8>, BlobError> {
        let expected = manifest.chunk_len(index);
        let compressed = self.get(&manifest.chunks[index].hash)?;
        zstd::bulk::decompress(&compressed, expected)
            .ok()
            .filter(|bytes| bytes.len() == expected)
            .ok_or_else(|| BlobError::Chunk { manifest: manifest.hash(), index, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_blob_comes_back_and_a_tampered_one_is_refused_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::new(dir.path());
        let hash = store.put(b"hello").unwrap();
        assert_eq!(store.put(b"hello").unwrap(), hash);
        assert_eq!(store.get(&hash).unwrap(), b"hello");
        fs::write(store.path(&hash), b"hellO").unwrap();
        let error = store.get(&hash).unwrap_err().to_string();
        assert!(error.contains(&format!("{hash} was altered or damaged")), "{error}");
        assert!(error.ends_with("remove it and build the image again"), "{error}");
        // Storing again repairs it.
        store.put(b"hello").unwrap();
        assert_eq!(store.get(&hash).unwrap(), b"hello");
    }

    #[test]
    fn a_missing_blob_is_named_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = BlobStore::new(dir.path()).get(&Hash::ZERO).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("blob {} is missing from {}: build the image again", Hash::ZERO, dir.path().display())
        );
    }
}
