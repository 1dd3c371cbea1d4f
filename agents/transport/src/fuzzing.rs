//! Doors to decoders of this crate that nobody outside calls, for `tests/fuzz`. They must do nothing that the crate
//! itself does not do with the same bytes.

use croft_protocol::{ChainId, Hash, PublicKey, SignedHeader};

use crate::verified::Trail;

/// The key in the raw public key (RFC 7250) that the other end of a connection shows.
#[must_use]
pub fn key_of_spki(der: &[u8]) -> Option<PublicKey> {
    crate::tls::key_of_spki(der)
}

/// The newest header that is believed after a start with what an earlier run kept.
#[must_use]
pub fn resumed(chain: ChainId, pinned: Hash, kept: &[u8]) -> Option<SignedHeader> {
    Trail::resume(chain, pinned, Some(kept)).light().newest().cloned()
}
