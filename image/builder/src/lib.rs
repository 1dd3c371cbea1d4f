//! Turns static binaries, kernels and a few host tools into the node image.
//!
//! ```text
//! manifest (TOML) + inputs (named files) --resolve--> Archive --compress--> initramfs.zst
//!                                                                |
//!                                                                +--> Sizes (table, JSON, verdict)
//! ```
//!
//! It must never let the machine that builds leak into the image: times, owners, inode numbers and
//! order are fixed, so that the same inputs give the same bytes. It must never put an unchecked
//! download or a binary that can't run on the node into an image.

pub mod build;
pub mod cpio;
pub mod elf;
pub mod image;
pub mod initramfs;
pub mod manifest;
pub mod sizes;
pub mod vmm;

pub use cpio::{Archive, Entry, Kind};
pub use image::{Image, Recipe};
pub use initramfs::{append_segment, compress, read};
pub use manifest::{Manifest, Part};
pub use sizes::Sizes;
pub use vmm::Vmm;
