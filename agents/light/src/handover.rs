//! From the pinned validators to the present ones, and from one replica's word to another's.
//!
//! ```text
//!   trusted A ── Handover{A}? ──> header: A certifies, B is next ── Handover{B}? ──> ... ──> the tip's validators
//! ```
//! The caller asks a replica; [`HandoverWalk`] decides whether each answer is a step forward. It must never walk
//! in a circle, nor for longer than [`HANDOVERS`] steps, whatever a replica sends.

use croft_protocol::{Hash, SignedHeader};

use crate::tip::{Contradiction, LightClient, LightError, verify_certificate};

/// Handovers that are followed in a row. A replica answers with the last handover of a set, so an honest chain
/// visits each set once: weekly changes for five years. More are a replica's way to keep us busy.
pub const HANDOVERS: usize = 256;

/// One walk along the handovers of a grid.
#[derive(Debug, Clone)]
pub struct HandoverWalk {
    left: usize,
}

impl Default for HandoverWalk {
    fn default() -> Self {
        Self { left: HANDOVERS }
    }
}

impl HandoverWalk {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whose handover to ask for next, if the client does not trust those yet who certified `tip`.
    #[must_use]
    pub fn next(&self, light: &LightClient, tip: &SignedHeader) -> Option<Hash> {
        let above = light.newest().is_none_or(|newest| newest.header.height < tip.header.height);
        (above && tip.header.validators != light.trusted()).then(|| light.trusted())
    }

    /// Takes the handover that was asked for: the client trusts the next validators from then on.
    ///
    /// # Errors
    /// [`LightError`]; the client is as before.
    pub fn step(&mut self, light: &mut LightClient, signed: &SignedHeader) -> Result<(), LightError> {
        let (height, theirs, asked) = (signed.header.height, signed.header.validators, light.trusted());
        if theirs != asked {
            return Err(LightError::WrongHandover { height, theirs, asked });
        }
        let left = self.left.checked_sub(1).ok_or(LightError::TooManyHandovers { limit: HANDOVERS })?;
        light.accept_handover(signed)?;
        self.left = left;
        Ok(())
    }
}

/// Compares a header that is believed with what another replica says of the same height.
///
/// # Errors
/// [`LightError::Contradiction`] when both are final and differ; else why the other one is no final header of
/// that height.
pub fn compare(known: &SignedHeader, other: &SignedHeader) -> Result<(), LightError> {
    let (ours, theirs) = (&known.header, &other.header);
    if theirs == ours {
        return Ok(());
    }
    if theirs.chain != ours.chain {
        return Err(LightError::WrongChain { theirs: theirs.chain, ours: ours.chain });
    }
    if theirs.height != ours.height {
        return Err(LightError::OtherHeight { height: theirs.height, asked: ours.height });
    }
    if theirs.validators != ours.validators {
        // Not contradictory in itself: those may have been validators once, and sign anything now.
        let (height, theirs, trusted) = (theirs.height, theirs.validators, ours.validators);
        return Err(LightError::UnknownValidators { height, theirs, trusted });
    }
    verify_certificate(other)?;
    let contradiction = Contradiction { known: known.clone(), other: other.clone() };
    Err(LightError::Contradiction(Box::new(contradiction)))
}
