//! A workload image: a read-only EROFS file system with its dm-verity tree, in compressed chunks.
//!
//! The image file is `data || hash tree`, 4096-byte blocks, no verity superblock. It is cut into chunks of
//! [`limits::CHUNK_BYTES`]; each is compressed with zstd and stored under SHA-256 of the compressed bytes,
//! so that whoever carries it can check it without unpacking. The manifest is itself a blob; its hash is
//! what a workload names, and so what both parties and the node agree on.

use std::collections::BTreeMap;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::{DecodeError, Hash, limits};

/// Bytes per block of data and of the hash tree.
pub const BLOCK_BYTES: u64 = 4096;

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct ImageManifest {
    /// 1.
    pub version: u32,
    pub verity: Verity,
    /// Length of the image file: data and hash tree.
    pub size_bytes: u64,
    pub chunks: Vec<Chunk>,
    pub config: ImageConfig,
    /// Digest of the OCI manifest that it was made from.
    pub source: Hash,
}

/// Parameters of dm-verity (kernel documentation, `device-mapper/verity`), format 1, SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Verity {
    /// Blocks of data; the hash tree starts right after them.
    pub data_blocks: u64,
    pub root: Hash,
    pub salt: [u8; 32],
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Chunk {
    /// SHA-256 of the compressed bytes.
    pub hash: Hash,
    pub compressed_bytes: u32,
}

/// What the image's maker set as defaults (OCI image specification, `config`).
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    pub user: String,
    pub working_dir: String,
    /// A name such as `SIGQUIT`; empty for `SIGTERM`.
    pub stop_signal: String,
    pub exposed_ports: Vec<String>,
}

/// A manifest that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("image manifest {hash} is not what was asked for ({wanted}): the sender is broken or lies")]
    Hash { hash: Hash, wanted: Hash },
    #[error("image manifest {hash} is inconsistent: {reason}; build the image again")]
    Inconsistent { hash: Hash, reason: String },
}

impl ImageManifest {
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of_bytes(&crate::encode(self))
    }

    /// Decodes and checks a manifest that should have this hash.
    ///
    /// # Errors
    /// [`InvalidManifest`] when it is another's, malformed or inconsistent.
    pub fn check(bytes: &[u8], wanted: Hash) -> Result<Self, InvalidManifest> {
        let hash = Hash::of_bytes(bytes);
        if hash != wanted {
            return Err(InvalidManifest::Hash { hash, wanted });
        }
        let manifest: Self = crate::decode("image manifest", bytes, limits::BLOB_BYTES)?;
        let inconsistent = |reason: String| Err(InvalidManifest::Inconsistent { hash, reason });
        if manifest.version != 1 {
            return inconsistent(format!("version {} is unknown", manifest.version));
        }
        if manifest.chunks.len() > limits::MANIFEST_CHUNKS {
            return inconsistent(format!("{} chunks", manifest.chunks.len()));
        }
        let blocks = manifest.size_bytes / BLOCK_BYTES;
        if !manifest.size_bytes.is_multiple_of(BLOCK_BYTES)
            || manifest.verity.data_blocks == 0
            || blocks <= manifest.verity.data_blocks
        {
            return inconsistent(format!(
                "{} bytes hold no tree over {} data blocks",
                manifest.size_bytes, manifest.verity.data_blocks
            ));
        }
        let expected = manifest.size_bytes.div_ceil(limits::CHUNK_BYTES as u64);
        if manifest.chunks.len() as u64 != expected {
            return inconsistent(format!("{} chunks where {expected} are needed", manifest.chunks.len()));
        }
        if let Some(chunk) = manifest.chunks.iter().find(|c| c.compressed_bytes as usize > limits::BLOB_BYTES)
        {
            return inconsistent(format!("chunk {} has {} bytes", chunk.hash, chunk.compressed_bytes));
        }
        Ok(manifest)
    }

    /// Uncompressed bytes of chunk `index`.
    #[must_use]
    pub fn chunk_len(&self, index: usize) -> usize {
        let start = index as u64 * limits::CHUNK_BYTES as u64;
        self.size_bytes.saturating_sub(start).min(limits::CHUNK_BYTES as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> ImageManifest {
        ImageManifest {
            version: 1,
            verity: Verity { data_blocks: 2, root: Hash([1; 32]), salt: [2; 32] },
            size_bytes: 3 * BLOCK_BYTES,
            chunks: vec![Chunk { hash: Hash([3; 32]), compressed_bytes: 100 }],
            config: ImageConfig::default(),
            source: Hash([4; 32]),
        }
    }

    #[test]
    fn a_manifest_is_accepted_under_its_own_hash_only() {
        let m = manifest();
        let bytes = crate::encode(&m);
        assert_eq!(ImageManifest::check(&bytes, m.hash()), Ok(m.clone()));
        let error = ImageManifest::check(&bytes, Hash::ZERO).unwrap_err().to_string();
        assert!(error.ends_with("the sender is broken or lies"), "{error}");
    }

    #[test]
    fn a_manifest_whose_environment_stands_in_another_order_is_no_manifest() {
        let mut m = manifest();
        m.config.env = BTreeMap::from([("A", "1"), ("B", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        let bytes = crate::encode(&m);
        assert_eq!(ImageManifest::check(&bytes, m.hash()), Ok(m));
        let at = bytes.windows(5).position(|part| part == b"\x01\0\0\0A").unwrap();
        for names in [[b'B', b'A'], [b'A', b'A']] {
            let mut other = bytes.clone();
            (other[at + 4], other[at + 14]) = (names[0], names[1]);
            let error = ImageManifest::check(&other, Hash::of_bytes(&other)).unwrap_err().to_string();
            assert!(error.starts_with("image manifest is malformed"), "{error}");
        }
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let mut missing_chunk = manifest();
        missing_chunk.chunks.clear();
        let mut no_tree = manifest();
        no_tree.verity.data_blocks = 3;
        let mut odd = manifest();
        odd.size_bytes += 1;
        for (bad, says) in
            [(missing_chunk, "0 chunks where 1 are needed"), (no_tree, "hold no tree"), (odd, "hold no tree")]
        {
            let error = ImageManifest::check(&crate::encode(&bad), bad.hash()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
