//! Boot files on the data disk: fetched piece by piece, whole or not there at all.
//!
//! ```text
//!   manifest (hash checked) -> chunks (hashes checked) ─append─> <sha256>.partial ─whole file's hash─> <sha256>.efi
//! ```
//! A partial file is a row of whole chunks; what a power cut left behind the last whole one is cut off, and what it
//! spoiled is found by the whole file's hash. It must never hand out a file that is not the release's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use croft_media::pe::{Pe, PeError};
use croft_protocol::release::{BootFile, BootManifest, InvalidBootManifest};
use croft_protocol::{Hash, limits};
use futures_util::{StreamExt as _, stream};
use sha2::{Digest as _, Sha256};

use crate::images::BlobSource;

/// Chunks on their way at the same time.
const FETCHED_AT_ONCE: usize = 4;
/// Chunks between two syncs: what a power cut costs at most.
const SYNC_CHUNKS: u64 = 8;

#[derive(Debug, thiserror::Error)]
pub enum BootFileError {
    #[error("can't fetch {what} {hash}: {reason}")]
    Fetch { what: &'static str, hash: Hash, reason: String },
    #[error(transparent)]
    Manifest(#[from] InvalidBootManifest),
    #[error("chunk {index} of boot file {file} is not what the release names: trying elsewhere")]
    Chunk { file: Hash, index: u64 },
    #[error("the chunks of boot file {file} are not the file that was signed: it is fetched anew")]
    Whole { file: Hash },
    #[error(
        "boot file {file} has the Authenticode hash {found}, its release says {wanted}: it is not started"
    )]
    OtherProgram { file: Hash, found: Hash, wanted: Hash },
    #[error("boot file {file} is no boot file: it is not started")]
    NoProgram { file: Hash, source: PeError },
    #[error("boot file {file} is not on the data disk any more")]
    Missing { file: Hash },
    #[error("can't {action} {path}: check the data disk")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// A folder of boot files.
#[derive(Debug, Clone)]
pub struct BootFiles {
    folder: PathBuf,
}

impl BootFiles {
    /// # Errors
    /// [`BootFileError::Io`] when the folder can't be made.
    pub fn open(folder: &Path) -> Result<Self, BootFileError> {
        fs::create_dir_all(folder).map_err(io_error("make", folder))?;
        Ok(Self { folder: folder.to_owned() })
    }

    fn path(&self, file: Hash, suffix: &str) -> PathBuf {
        self.folder.join(format!("{file}.{suffix}"))
    }

    /// Whether the file was fetched. It is checked again when it is used.
    #[must_use]
    pub fn has(&self, file: &BootFile) -> bool {
        fs::metadata(self.path(file.sha256, "efi")).is_ok_and(|meta| meta.len() == file.size_bytes)
    }

    /// Brings a boot file here, going on where an earlier try ended.
    ///
    /// # Errors
    /// [`BootFileError`]; what is verified so far stays for the next try, unless it is to blame.
    pub async fn fetch(&self, file: &BootFile, source: &impl BlobSource) -> Result<(), BootFileError> {
        if self.has(file) {
            return Ok(());
        }
        let fetch = |what, hash| move |reason| BootFileError::Fetch { what, hash, reason };
        let bytes = source.blob(file.manifest).await.map_err(fetch("boot manifest", file.manifest))?;
        let manifest = BootManifest::check(&bytes, file)?;
        let partial = self.path(file.sha256, "partial");
        let io = |action| io_error(action, &partial);
        let mut out =
            OpenOptions::new().append(true).create(true).mode(0o600).open(&partial).map_err(io("open"))?;
        let here = out.metadata().map_err(io("read"))?.len().min(file.size_bytes);
        let done = here / limits::CHUNK_BYTES as u64;
        out.set_len(done * limits::CHUNK_BYTES as u64).map_err(io("cut"))?;
        let wanted = manifest.chunks.iter().enumerate().skip(usize::try_from(done).unwrap_or(usize::MAX));
        let wanted: Vec<(usize, Hash)> = wanted.map(|(index, chunk)| (index, chunk.hash)).collect();
        let mut coming = stream::iter(wanted)
            .map(|(index, chunk)| async move { (index, chunk, source.blob(chunk).await) })
            .buffered(FETCHED_AT_ONCE);
        while let Some((index, chunk, packed)) = coming.next().await {
            let packed = packed.map_err(fetch("chunk of a boot file", chunk))?;
            let wrong = || BootFileError::Chunk { file: file.sha256, index: index as u64 };
            if Hash::of_bytes(&packed) != chunk {
                return Err(wrong());
            }
            let expected = manifest.chunk_len(index);
            let plain = zstd::bulk::decompress(&packed, expected).map_err(|_| wrong())?;
            if plain.len() != expected {
                return Err(wrong());
            }
            out.write_all(&plain).map_err(io("write"))?;
            if (index as u64 + 1).is_multiple_of(SYNC_CHUNKS) {
                out.sync_data().map_err(io("write"))?;
            }
        }
        out.sync_all().map_err(io("write"))?;
        drop(out);
        self.finish(file, &partial)
    }

    fn finish(&self, file: &BootFile, partial: &Path) -> Result<(), BootFileError> {
        if read_checked(partial, file).map_err(io_error("read", partial))?.is_none() {
            // Either a power cut spoiled it, or the release's manifest lies: in both cases it is of no use.
            fs::remove_file(partial).map_err(io_error("remove", partial))?;
            return Err(BootFileError::Whole { file: file.sha256 });
        }
        fs::rename(partial, self.path(file.sha256, "efi")).map_err(io_error("rename", partial))?;
        let sync = File::open(&self.folder).and_then(|folder| folder.sync_all());
        sync.map_err(io_error("sync", &self.folder))
    }

    /// Copies a boot file to where init takes kernels from, checked on the way.
    ///
    /// # Errors
    /// [`BootFileError`]; a file that is damaged is removed, to be fetched again.
    pub fn stage(&self, file: &BootFile, kernels: &Path) -> Result<PathBuf, BootFileError> {
        let path = self.path(file.sha256, "efi");
        let bytes = match read_checked(&path, file) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
                return Err(BootFileError::Whole { file: file.sha256 });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BootFileError::Missing { file: file.sha256 });
            }
            Err(source) => return Err(io_error("read", &path)(source)),
        };
        // By this hash the TPM is told what runs. The journal, which names both, is nobody's word: a disk can be written
        // to elsewhere.
        let no_program = |source| BootFileError::NoProgram { file: file.sha256, source };
        let found = Hash(Pe::parse(&bytes).map_err(no_program)?.hash());
        if found != file.authenticode {
            return Err(BootFileError::OtherProgram { file: file.sha256, found, wanted: file.authenticode });
        }
        fs::create_dir_all(kernels).map_err(io_error("make", kernels))?;
        let staged = kernels.join(format!("{}.efi", file.sha256));
        fs::write(&staged, bytes).map_err(io_error("write", &staged))?;
        Ok(staged)
    }

    /// Removes every file but these.
    pub fn keep_only(&self, kept: &[Hash]) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let hash = name.to_str().and_then(|name| name.split('.').next()?.parse::<Hash>().ok());
            if hash.is_some_and(|hash| !kept.contains(&hash))
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "an old boot file stays");
            }
        }
    }
}

/// The file's bytes, if they are the ones that were signed.
fn read_checked(path: &Path, file: &BootFile) -> io::Result<Option<Vec<u8>>> {
    let most = limits::BOOT_FILE_BYTES.min(file.size_bytes);
    let mut bytes = Vec::with_capacity(usize::try_from(most).unwrap_or(0));
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    let good = bytes.len() as u64 == file.size_bytes && Hash(Sha256::digest(&bytes).into()) == file.sha256;
    Ok(good.then_some(bytes))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BootFileError + use<> {
    let path = path.to_owned();
    move |source| BootFileError::Io { action, path, source }
}
