//! Headers: one way to make them, for replicas and tests alike.

use croft_protocol::{Genesis, Hash, Header, PublicKey, SecretKey, Signature, SignedHeader, ValidatorSet};

use crate::block::{BlockContext, BlockOutcome};
use crate::log_tree::{LogNodes, LogUpdate};
use crate::state::StateError;
use crate::state_map::{MapHead, MapNodes, MapUpdate};

/// A header and the nodes that its two roots stand on. To be stored with the block's outcome as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    pub header: Header,
    pub log: LogUpdate,
    /// Its head must be remembered: a header knows the root but not the map's version.
    pub map: MapUpdate,
}

/// What comes before a block.
#[derive(Debug, Clone, Copy)]
pub enum Before<'a> {
    /// Nothing: the block is the genesis.
    Genesis(&'a Genesis),
    Header {
        header: &'a Header,
        map: MapHead,
    },
}

/// Makes the header of a block from what its execution yielded.
///
/// # Errors
/// [`StateError`] when a store fails or lacks a node, and when height or time don't follow the previous
/// header.
pub fn assemble(
    _before: Before<'_>,
    _ctx: BlockContext,
    _outcome: &BlockOutcome,
    _log: &dyn LogNodes,
    _map: &dyn MapNodes,
) -> Result<Assembled, StateError> {
    todo!()
}

/// Certifies a header with keys of validators.
#[must_use]
pub fn certify(_header: Header, _round: u32, _validators: ValidatorSet, _keys: &[SecretKey]) -> SignedHeader {
    todo!()
}

/// Puts signatures that validators made elsewhere in order around a header.
#[must_use]
pub fn with_signatures(
    _header: Header,
    _round: u32,
    _validators: ValidatorSet,
    _signatures: Vec<(PublicKey, Signature)>,
) -> SignedHeader {
    todo!()
}

/// Root of an empty log: SHA-256 of nothing (RFC 6962, section 2.1).
#[must_use]
pub fn empty_log_root() -> Hash {
    Hash::of_bytes(&[])
}
