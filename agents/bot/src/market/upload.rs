//! Brings an image's blobs to the replica: only those that it lacks, so an interrupted upload goes on where it
//! stopped. The manifest goes last: whoever finds it there, finds its chunks.

use croft_protocol::image::{ImageManifest, InvalidManifest};
use croft_protocol::{Hash, units};
use tokio::task::JoinSet;

use crate::deploy_file::ResolvedImage;
use crate::exit::Failure;
use crate::grid::Grid;
use crate::image::{BlobError, BlobStore};
use crate::terminal::Progress;

/// Hashes in one question.
const ASKED_AT_ONCE: usize = 512;
/// Blobs on their way at the same time: hides the round trip, holds a few megabytes.
const SENT_AT_ONCE: usize = 4;
/// After a change of replica in the middle, another round fills the gaps.
const ROUNDS: usize = 3;

#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error("image '{image}'")]
    Manifest { image: String, source: InvalidManifest },
    #[error(
        "image '{image}' is still incomplete at the replicas after {ROUNDS} rounds, {missing} blobs are missing: try again"
    )]
    Incomplete { image: String, missing: usize },
}

/// Reads and checks a manifest of the local store.
pub(crate) fn manifest(store: &BlobStore, hash: Hash) -> Result<ImageManifest, BlobError> {
    let bytes = store.get(&hash)?;
    ImageManifest::check(&bytes, hash)
        .map_err(|_| BlobError::Altered { path: store.path(&hash), found: Hash::of_bytes(&bytes) })
}

pub(crate) async fn upload(
    grid: &Grid,
    store: &BlobStore,
    image: &ResolvedImage,
    progress: &mut dyn Progress,
) -> Result<(), Failure> {
    let bytes = store.get(&image.manifest)?;
    let manifest = ImageManifest::check(&bytes, image.manifest)
        .map_err(|source| Failure::failed(UploadError::Manifest { image: image.name.clone(), source }))?;
    let mut chunks: Vec<(Hash, u64)> =
        manifest.chunks.iter().map(|c| (c.hash, u64::from(c.compressed_bytes))).collect();
    chunks.sort_unstable();
    chunks.dedup();
    for _ in 0..ROUNDS {
        let missing = missing(grid, &chunks).await?;
        let whole = missing.is_empty() && has(grid, image.manifest).await?;
        if whole {
            return Ok(());
        }
        let total = missing.iter().map(|(_, bytes)| bytes).sum();
        if total > 0 {
            progress.start(&format!("sending image '{}' ({})", image.name, units::show_bytes(total)), total);
        }
        send(grid, store, &missing, progress).await?;
        grid.verified().put_blob(bytes.clone()).await.map_err(|e| grid.error(e))?;
        if total > 0 {
            progress.finish();
        }
    }
    let missing = missing(grid, &chunks).await?.len();
    if missing == 0 && has(grid, image.manifest).await? {
        return Ok(());
    }
    Err(Failure::unreachable(UploadError::Incomplete { image: image.name.clone(), missing }))
}

async fn has(grid: &Grid, hash: Hash) -> Result<bool, Failure> {
    let present = grid.verified().has_blobs(&[hash]).await.map_err(|e| grid.error(e))?;
    Ok(present.first().copied().unwrap_or(false))
}

async fn missing(grid: &Grid, chunks: &[(Hash, u64)]) -> Result<Vec<(Hash, u64)>, Failure> {
    let mut missing = Vec::new();
    for some in chunks.chunks(ASKED_AT_ONCE) {
        let hashes: Vec<Hash> = some.iter().map(|(hash, _)| *hash).collect();
        let present = grid.verified().has_blobs(&hashes).await.map_err(|e| grid.error(e))?;
        missing.extend(some.iter().zip(present).filter(|(_, present)| !present).map(|(chunk, _)| *chunk));
    }
    Ok(missing)
}

async fn send(
    grid: &Grid,
    store: &BlobStore,
    chunks: &[(Hash, u64)],
    progress: &mut dyn Progress,
) -> Result<(), Failure> {
    let mut sending = JoinSet::new();
    for (hash, len) in chunks {
        if sending.len() >= SENT_AT_ONCE {
            sent(grid, sending.join_next().await, progress)?;
        }
        // Checked against its hash while it is read.
        let bytes = store.get(hash)?;
        let (verified, len) = (grid.verified().clone(), *len);
        sending.spawn(async move { verified.put_blob(bytes).await.map(|_| len) });
    }
    while !sending.is_empty() {
        sent(grid, sending.join_next().await, progress)?;
    }
    Ok(())
}

type Sent = Option<Result<Result<u64, croft_transport::verified::VerifiedError>, tokio::task::JoinError>>;

fn sent(grid: &Grid, result: Sent, progress: &mut dyn Progress) -> Result<(), Failure> {
    match result {
        None => Ok(()),
        Some(Ok(Ok(bytes))) => {
            progress.advance(bytes);
            Ok(())
        }
        Some(Ok(Err(error))) => Err(grid.error(error).into()),
        Some(Err(error)) => Err(Failure::failed(error)),
    }
}
