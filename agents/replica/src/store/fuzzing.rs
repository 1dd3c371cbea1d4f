//! Doors to decoders of the store that nobody outside calls, for `tests/fuzz`. They must do nothing that the store
//! itself does not do with the same bytes.

use croft_protocol::SignedCommand;

use super::index::Entry;
use super::snapshot::decoded;
use super::{StoreError, bodies};

/// How the commands of a block lie on the disk.
///
/// # Errors
/// [`StoreError::Unfit`].
pub fn packed(commands: &[SignedCommand]) -> Result<Vec<u8>, StoreError> {
    bodies::packed(commands)
}

/// The commands of a block as they lay on the disk.
///
/// # Errors
/// [`StoreError::Damaged`].
pub fn unpacked(bytes: &[u8]) -> Result<Vec<SignedCommand>, StoreError> {
    bodies::unpacked(7, bytes)
}

/// An entry of the search index, encoded again.
///
/// # Errors
/// [`StoreError::Damaged`].
pub fn index_entry(bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
    decoded::<Entry>("an entry", bytes).map(|entry| croft_protocol::encode(&entry))
}
