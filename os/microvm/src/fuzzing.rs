//! Doors to decoders of this crate that nobody outside calls, for `tests/fuzz`. They must do nothing that the crate
//! itself does not do with the same bytes.

use croft_guest::wire::{FrameError, GuestEnvelope};

/// Status and body of a VMM's answer; `None` while some of it is missing.
///
/// # Errors
/// Why it is no answer.
pub fn vmm_answer(bytes: &[u8]) -> Result<Option<(u16, Vec<u8>)>, String> {
    crate::vmm::api::answer_of(bytes)
}

/// The frames that a guest's bytes hold, and how many bytes are left of them.
///
/// # Errors
/// [`FrameError`].
pub fn guest_frames(bytes: &[u8]) -> Result<(Vec<GuestEnvelope>, usize), FrameError> {
    crate::guest::frames_of(bytes)
}
