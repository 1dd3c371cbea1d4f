//! Disks, cache and volumes of the node.
//!
//! ```text
//! disks of the inventory -> examine -> attach -> Data (/data on a disk, or in memory)
//!                                                 |-- Cache      verified blobs by digest, evicted by age
//!                                                 |-- Documents  small files that survive a power cut
//!                                                 `-- Volumes    tenants' data: images and folders with quota
//! ```
//!
//! It must never write to a disk that is neither empty nor ours, never ignore a disk without saying why, never hand
//! out bytes that it has not verified, and never delete a tenant's data but for [`volumes::Ended`].

pub mod cache;
pub mod capacity;
pub mod data;
pub mod digest;
pub mod documents;
pub mod examine;
pub mod files;
pub mod marker;
pub mod quota;
pub mod signature;
pub mod tools;
pub mod volumes;
pub mod wipe;

#[cfg(test)]
mod power_cut;
