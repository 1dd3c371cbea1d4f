//! The node image as a directory: `bzImage`, `initramfs.zst`, `sizes.json`, and `key`, which says what
//! they were made from.
//!
//! ```text
//! assemble guest -> its cpio becomes an input -> assemble node -> key unchanged? -> done
//!                                                                     | no
//!                                                                     +-> compress, write, key last
//! ```
//!
//! `key` is removed first and written last, so a build that was cut short is never taken for finished.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::initramfs;
use crate::manifest::{AssembleError, LoadError, Manifest};
use crate::sizes::Sizes;
use crate::vmm::Vmm;

/// Input that the guest manifest produces for the node manifest.
const GUEST_INITRAMFS: &str = "guest-initramfs";

/// Everything that decides an image.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub vmm: Vmm,
    /// Directory with `node.toml` and `guest.toml`.
    pub manifests: PathBuf,
    /// Named inputs of the manifests, except `guest-initramfs`, which is made here.
    pub inputs: BTreeMap<String, PathBuf>,
    /// The node kernel's bzImage.
    pub kernel: PathBuf,
    /// zstd level, normally [`initramfs::COMPRESSION_LEVEL`].
    pub level: i32,
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Image {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub sizes: Sizes,
    /// False when everything was there already.
    pub rebuilt: bool,
}

/// Why an image could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Manifest(#[from] LoadError),
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    #[error("cannot read the node kernel {path}: build it with `cargo xtask kernel`")]
    Kernel { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}: check free space and rights")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no finished image: build it with `cargo xtask image`")]
    NotThere { path: PathBuf },
}

impl Recipe {
    /// Makes the image in `out`, or finds that it is there already.
    pub fn make(&self, out: &Path) -> Result<Image, ImageError> {
        let write = |path: &Path, bytes: &[u8]| {
            std::fs::write(path, bytes).map_err(|source| ImageError::Write { path: path.into(), source })
        };
        std::fs::create_dir_all(out).map_err(|source| ImageError::Write { path: out.into(), source })?;

        let mut inputs = self.inputs.clone();
        let guest = Manifest::load(&self.manifests.join("guest.toml"))?.assemble(self.vmm, &inputs)?;
        let guest_initramfs = out.join(GUEST_INITRAMFS);
        write(&guest_initramfs, &guest.archive.to_bytes())?;
        inputs.insert(GUEST_INITRAMFS.into(), guest_initramfs);
        let node = Manifest::load(&self.manifests.join("node.toml"))?.assemble(self.vmm, &inputs)?;
        let kernel = std::fs::read(&self.kernel)
            .map_err(|source| ImageError::Kernel { path: self.kernel.clone(), source })?;

        let key = self.key(&node.archive.to_bytes(), &kernel);
        if std::fs::read_to_string(out.join("key")).is_ok_and(|there| there == key)
            && let Ok(image) = open(out)
        {
            return Ok(image);
        }
        let _ = std::fs::remove_file(out.join("key"));
        let compressed = initramfs::compress(&node.archive, self.level);
        let sizes = Sizes::new(self.vmm, &compressed.contributions, &node.parts, kernel.len() as u64);
        write(&out.join("bzImage"), &kernel)?;
        write(&out.join("initramfs.zst"), &compressed.bytes)?;
        let json = serde_json::to_vec_pretty(&sizes).expect("sizes are plain data");
        write(&out.join("sizes.json"), &json)?;
        write(&out.join("key"), key.as_bytes())?;
        Ok(Image { rebuilt: true, ..open(out)? })
    }

    fn key(&self, archive: &[u8], kernel: &[u8]) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.level.to_le_bytes());
        hasher.update((archive.len() as u64).to_le_bytes());
        hasher.update(archive);
        hasher.update(kernel);
        hex::encode(hasher.finalize())
    }
}

/// The finished image in `directory`.
pub fn open(directory: &Path) -> Result<Image, ImageError> {
    let not_there = || ImageError::NotThere { path: directory.into() };
    let (kernel, initramfs) = (directory.join("bzImage"), directory.join("initramfs.zst"));
    let finished = [&kernel, &initramfs, &directory.join("key")].iter().all(|path| path.exists());
    let json = std::fs::read(directory.join("sizes.json")).map_err(|_| not_there())?;
    let sizes = serde_json::from_slice(&json).map_err(|_| not_there())?;
    if !finished {
        return Err(not_there());
    }
    Ok(Image { kernel, initramfs, sizes, rebuilt: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Workshop {
        directory: tempfile::TempDir,
        recipe: Recipe,
    }

    fn workshop() -> Workshop {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("manifests")).unwrap();
        let guest =
            "name = \"guest\"\n[[file]]\npath = \"/init\"\nmode = \"0755\"\npart = \"g\"\ninput = \"guest\"";
        let node = "name = \"node\"\n[[file]]\npath = \"/init\"\nmode = \"0755\"\npart = \"init\"\ninput = \"init\"\n\
                    [[file]]\npath = \"/usr/lib/croft/guest/initramfs\"\nmode = \"0444\"\npart = \"g\"\n\
                    input = \"guest-initramfs\"";
        std::fs::write(at("manifests/guest.toml"), guest).unwrap();
        std::fs::write(at("manifests/node.toml"), node).unwrap();
        for name in ["init", "guest", "bzImage"] {
            std::fs::write(at(name), name.repeat(100)).unwrap();
        }
        let recipe = Recipe {
            vmm: Vmm::Alioth,
            manifests: at("manifests"),
            inputs: BTreeMap::from([("init".into(), at("init")), ("guest".into(), at("guest"))]),
            kernel: at("bzImage"),
            level: 1,
        };
        Workshop { directory, recipe }
    }

    #[test]
    fn the_node_image_holds_the_guests() {
        let workshop = workshop();
        let image = workshop.recipe.make(&workshop.directory.path().join("out")).unwrap();
        assert!(image.rebuilt);
        let node = initramfs::read(&std::fs::read(&image.initramfs).unwrap()).unwrap();
        let guest = initramfs::read(node.file("/usr/lib/croft/guest/initramfs").unwrap()).unwrap();
        assert_eq!(guest.file("/init"), Some("guest".repeat(100).as_bytes()));
        assert_eq!(std::fs::read(&image.kernel).unwrap(), "bzImage".repeat(100).as_bytes());
        let file_bytes = [&image.kernel, &image.initramfs].map(|path| std::fs::metadata(path).unwrap().len());
        assert_eq!(image.sizes.total_bytes, file_bytes.iter().sum::<u64>());
    }

    #[test]
    fn two_builds_in_two_places_are_byte_identical() {
        let workshop = workshop();
        let build = |name: &str| {
            let image = workshop.recipe.make(&workshop.directory.path().join(name)).unwrap();
            std::fs::read(image.initramfs).unwrap()
        };
        assert_eq!(build("one"), build("two"));
    }

    #[test]
    fn a_second_build_does_nothing_until_an_input_changes() {
        let workshop = workshop();
        let out = workshop.directory.path().join("out");
        assert!(workshop.recipe.make(&out).unwrap().rebuilt);
        assert!(!workshop.recipe.make(&out).unwrap().rebuilt);
        std::fs::write(workshop.directory.path().join("guest"), "changed").unwrap();
        assert!(workshop.recipe.make(&out).unwrap().rebuilt);
        std::fs::write(workshop.directory.path().join("bzImage"), "changed").unwrap();
        assert!(workshop.recipe.make(&out).unwrap().rebuilt);
        std::fs::remove_file(out.join("initramfs.zst")).unwrap();
        assert!(workshop.recipe.make(&out).unwrap().rebuilt);
    }

    #[test]
    fn an_unfinished_image_is_not_opened() {
        let workshop = workshop();
        let out = workshop.directory.path().join("out");
        workshop.recipe.make(&out).unwrap();
        std::fs::remove_file(out.join("key")).unwrap();
        let error = open(&out).unwrap_err().to_string();
        assert!(error.ends_with("out holds no finished image: build it with `cargo xtask image`"), "{error}");
    }

    #[test]
    fn a_missing_kernel_says_how_to_build_it() {
        let workshop = workshop();
        let recipe = Recipe { kernel: "/nowhere/bzImage".into(), ..workshop.recipe };
        let error = recipe.make(&workshop.directory.path().join("out")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the node kernel /nowhere/bzImage: build it with `cargo xtask kernel`"
        );
    }
}
