//! Certificates of the engine: whether enough of a validator set signed what they claim, each member once.

#![allow(clippy::result_large_err, reason = "the error's type is the engine's")]

use std::collections::BTreeSet;

use croft_protocol::{ChainId, Hash, Signature};
use malachite_types::{
    CertificateError, CommitSignature, NilOrVal, PolkaSignature, RoundCertificateType, RoundSignature,
    ThresholdParams, Validator as _, ValidatorSet as _, VoteType,
};

use super::context::{
    self, CommitCertificate, Grid, Member, PolkaCertificate, RoundCertificate, Validators, Vote,
};

type Verdict = Result<(), CertificateError<Grid>>;

/// One signature of a certificate: who, what exactly, and the error when it is wrong.
type Signed<'a> = (Member, Vote, &'a Signature, CertificateError<Grid>);

fn check<'a>(
    chain: &ChainId,
    set: &Validators,
    signatures: impl Iterator<Item = Signed<'a>>,
    is_met: impl FnOnce(u64, u64) -> bool,
) -> Verdict {
    let mut seen = BTreeSet::new();
    let mut power = 0_u64;
    for (member, vote, signature, wrong) in signatures {
        if !seen.insert(member) {
            return Err(CertificateError::DuplicateVote(member));
        }
        let validator = set.get_by_address(&member).ok_or(CertificateError::UnknownValidator(member))?;
        if !context::verify_vote(chain, &vote, validator.public_key(), signature) {
            return Err(wrong);
        }
        // At most 64 members of at most a million each.
        power += validator.voting_power();
    }
    let total = set.total_voting_power();
    if is_met(power, total) {
        Ok(())
    } else {
        Err(CertificateError::NotEnoughVotingPower { signed: power, total, expected: total * 2 / 3 + 1 })
    }
}

/// More than two thirds precommitted the value.
///
/// # Errors
/// [`CertificateError`] names the first culprit.
pub fn commit(
    chain: &ChainId,
    certificate: &CommitCertificate,
    set: &Validators,
    thresholds: ThresholdParams,
) -> Verdict {
    let CommitCertificate { height, round, value_id, .. } = *certificate;
    let signatures = certificate.commit_signatures.iter().map(|s| {
        let value = NilOrVal::<Hash>::Val(value_id);
        let vote = Vote { kind: VoteType::Precommit, height, round, value, voter: s.address };
        let wrong = CertificateError::InvalidCommitSignature(CommitSignature::new(s.address, s.signature));
        (s.address, vote, &s.signature, wrong)
    });
    check(chain, set, signatures, |power, total| thresholds.quorum.is_met(power, total))
}

/// More than two thirds prevoted the value.
///
/// # Errors
/// [`CertificateError`] names the first culprit.
pub fn polka(
    chain: &ChainId,
    certificate: &PolkaCertificate,
    set: &Validators,
    thresholds: ThresholdParams,
) -> Verdict {
    let PolkaCertificate { height, round, value_id, .. } = *certificate;
    let signatures = certificate.polka_signatures.iter().map(|s| {
        let value = NilOrVal::<Hash>::Val(value_id);
        let vote = Vote { kind: VoteType::Prevote, height, round, value, voter: s.address };
        let wrong = CertificateError::InvalidPolkaSignature(PolkaSignature::new(s.address, s.signature));
        (s.address, vote, &s.signature, wrong)
    });
    check(chain, set, signatures, |power, total| thresholds.quorum.is_met(power, total))
}

/// Enough votes of a round to leave it: precommits of more than two thirds, or any votes of more than a third.
///
/// # Errors
/// [`CertificateError`] names the first culprit.
pub fn round(
    chain: &ChainId,
    certificate: &RoundCertificate,
    set: &Validators,
    thresholds: ThresholdParams,
) -> Verdict {
    let RoundCertificate { height, round, ref cert_type, ref round_signatures } = *certificate;
    let is_skip = matches!(cert_type, RoundCertificateType::Skip);
    if !is_skip && let Some(s) = round_signatures.iter().find(|s| s.vote_type != VoteType::Precommit) {
        return Err(CertificateError::InvalidVoteType(s.address));
    }
    let signatures = round_signatures.iter().map(|s| {
        let vote = Vote { kind: s.vote_type, height, round, value: s.value_id, voter: s.address };
        let wrong = CertificateError::InvalidRoundSignature(RoundSignature::new(
            s.vote_type,
            s.value_id,
            s.address,
            s.signature,
        ));
        (s.address, vote, &s.signature, wrong)
    });
    let threshold = if is_skip { thresholds.honest } else { thresholds.quorum };
    check(chain, set, signatures, |power, total| threshold.is_met(power, total))
}
