//! What must hold of a whole state, whatever happened before. For tests, simulators and audits.

use croft_protocol::StateKey;

/// An invariant that a state breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BrokenInvariant(pub String);

/// Checks a whole state, given by all its keys and values in any order.
///
/// # Errors
/// [`BrokenInvariant`] says what does not hold, and for whom.
pub fn check_invariants<'a>(
    _state: impl IntoIterator<Item = (&'a StateKey, &'a [u8])>,
) -> Result<(), BrokenInvariant> {
    todo!()
}
