//! Who orders the ledger from the next block on.

use croft_protocol::{Body, InvalidChange, PublicKey, RecordId, Rejection, SignedValidatorChange};

use crate::state::StateReadExt;
use crate::work::{Step, Work};

pub(super) fn set_validators(work: &mut Work<'_>, author: PublicKey, signed: &SignedValidatorChange) -> Step {
    let refuse = |reason| Err(Rejection::Validators(reason).into());
    let present = work.validators()?;
    if present.height == work.ctx().height {
        // Between two headers at most one step, or a third of the power could be passed by twice.
        return refuse(InvalidChange::TwiceInBlock);
    }
    if let Err(reason) = signed.check(&work.ctx().chain, present.record, &present.set) {
        return refuse(reason);
    }
    let next = signed.change.validators.clone();
    work.append(RecordId::validators(), Body::Validators(next), author)
}

#[cfg(test)]
mod tests;
