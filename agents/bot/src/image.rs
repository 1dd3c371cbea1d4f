//! Workload images: read an OCI image, make one verified read-only file of it, keep it in chunks.
//!
//! [`build()`] is the way through; [`oci`] and [`layers`] read what strangers made, `tree` is the only place
//! where their files touch this machine, [`blobs`] keeps the result.

pub mod blobs;
pub mod build;
pub(crate) mod erofs;
pub(crate) mod layer_tar;
pub mod layers;
pub mod oci;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tree;
pub(crate) mod verity;

pub use blobs::{BlobError, BlobStore};
pub use build::{BuildError, Built, build};
pub use erofs::ErofsError;
pub use oci::{LayoutError, LayoutRef};

/// The version of the tool that makes file systems: another one may make other bytes of the same image.
#[must_use]
pub fn tool_version() -> Option<String> {
    erofs::version()
}
