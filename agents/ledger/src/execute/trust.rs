//! What a node's registration is worth: weighs the attestation that it carries, or notes that it carries none.
//!
//! ```text
//!   attestation ──header recent? TPM another node's?──▶ croft_attest::assess ──Refusal──▶ the command is rejected
//!                                                              └──Assessment──▶ attested | sealed | plain, with reasons
//!   none ──never had one──▶ plain, nothing is kept
//!        ├─same boot, only addresses or troubles changed──▶ as before
//!        └─had one before──▶ plain, and the reason says so; the TPM stays the node's
//! ```
//! What was weighed is kept with it (`WeighedQuote`), so that everybody can weigh it again.
//!
//! It must never give more than the node itself claims: a node with its key on a disk is `plain` whatever its TPM says.
//! And it must never forget in which TPM a node lives; a TPM goes over to another node only when the first one is stale.

use croft_attest::{Assessment, Claim, Policy, Refusal, assess};
use croft_protocol::attestation::Attestation;
use croft_protocol::record::{NodeBody, TrustClass};
use croft_protocol::release::Release;
use croft_protocol::trust::{
    NodeTrust, RecentHeader, RecentHeaders, RefusedQuote, TrustPolicy, WeighedQuote, says_the_same,
};
use croft_protocol::{FarmId, Hash, NodeId, Rejection, StateKey, limits};

use super::releases;
use crate::state::{StateError, StateRead, StateReadExt};
use crate::work::{Step, Work};

/// Where a node stands after what it says now: its class, after the ledger has kept what belongs to it.
pub(super) fn weigh(
    work: &mut Work<'_>,
    node: NodeId,
    before: Option<&NodeBody>,
    after: &NodeBody,
    attestation: Option<&Attestation>,
) -> Step<TrustClass> {
    let known = work.node_trust(&node)?;
    let replaced = known.as_ref().map(|known| known.key);
    let trust = match (attestation, known) {
        (Some(attestation), known) => {
            let (trust, quote) = quoted(work, node, after, attestation, known.as_ref())?;
            work.put(StateKey::NodeQuote(node), &quote);
            if let Some(other) =
                trust.endorsement_key.map(|key| elsewhere(work, key, node)).transpose()?.flatten()
                && let Some(left) = work.node_trust(&other)?
            {
                work.put(StateKey::NodeTrust(other), &NodeTrust { endorsement_key: None, ..left });
            }
            trust
        }
        (None, None) => return Ok(TrustClass::Plain),
        (None, Some(known)) => {
            if known.session == after.session && before.is_some_and(|before| says_the_same(before, after)) {
                known
            } else {
                silent(known, after)
            }
        }
    };
    if let Some(before) = replaced.filter(|before| *before != trust.key) {
        work.remove(StateKey::TpmKey(before));
    }
    work.put(StateKey::TpmKey(trust.key), &node);
    if let Some(endorsement) = trust.endorsement_key {
        work.put(StateKey::Endorsement(endorsement), &node);
    }
    let class = trust.class;
    work.put(StateKey::NodeTrust(node), &trust);
    Ok(class)
}

/// The other node for which the TPM with this endorsement key speaks.
fn elsewhere(work: &Work<'_>, endorsement: Hash, node: NodeId) -> Step<Option<NodeId>> {
    Ok(work.read::<NodeId>(&StateKey::Endorsement(endorsement))?.filter(|other| *other != node))
}

/// A node whose TPM spoke before, and does not now.
fn silent(known: NodeTrust, after: &NodeBody) -> NodeTrust {
    let reason = if known.session == after.session {
        "it changed what it says of itself since its TPM spoke for it: register again with a quote"
    } else {
        "its TPM spoke for it in an earlier boot, and does not in this one: look at the node's identity stage, and turn \
         the TPM on in the firmware setup"
    };
    NodeTrust {
        class: TrustClass::Plain,
        session: after.session,
        release: None,
        secure_boot: None,
        reasons: vec![reason.to_owned()],
        ..known
    }
}

fn quoted(
    work: &Work<'_>,
    node: NodeId,
    after: &NodeBody,
    attestation: &Attestation,
    known: Option<&NodeTrust>,
) -> Step<(NodeTrust, WeighedQuote)> {
    let refuse = |reason| Rejection::Attestation { node, reason };
    let recent: RecentHeaders = work.read(&StateKey::RecentHeaders)?.unwrap_or_default();
    let Some(header) = recent.at(attestation.height).copied() else {
        let height_of = |header: Option<&RecentHeader>| header.map_or(0, |h| h.height);
        let (first, last) = (height_of(recent.headers.first()), height_of(recent.headers.last()));
        return Err(refuse(RefusedQuote::Header { height: attestation.height, first, last }).into());
    };
    let policy = policy(work, &after.farm)?;
    let chain = work.ctx().chain;
    let claim = Claim {
        chain: &chain,
        node: &node,
        statement: Attestation::statement(after),
        header: header.hash,
        header_age_ms: work.now_ms().saturating_sub(header.time_ms),
        known_key: known.map(|known| known.key),
        known_endorsement: known.and_then(|known| known.endorsement_key),
    };
    let assessment =
        assess(attestation, &claim, &policy).map_err(|refusal| refuse(refused_quote(refusal)))?;
    let key = attestation.key_hash();
    // One machine is one node: otherwise a single TPM would make a whole farm of sealed ones. It makes any number of
    // attestation keys, but its maker certified one endorsement key.
    let endorsement = assessment.endorsement_key.or(claim.known_endorsement);
    // A machine that was sold, or whose TPM was cleared, is somebody else once the node that it was is stale.
    if let Some(other) = endorsement.map(|key| elsewhere(work, key, node)).transpose()?.flatten() {
        let grid: TrustPolicy = work.read(&StateKey::TrustPolicy)?.unwrap_or_default();
        let is_stale = |trust: NodeTrust| grid.is_stale(trust.quoted_ms, work.now_ms());
        if !work.node_trust(&other)?.is_some_and(is_stale) {
            return Err(refuse(RefusedQuote::EndorsementTaken { node: other }).into());
        }
    }
    if let Some(other) = work.read::<NodeId>(&StateKey::TpmKey(key))?.filter(|other| *other != node) {
        return Err(refuse(RefusedQuote::TpmTaken { node: other }).into());
    }
    let quote = WeighedQuote {
        node: after.clone(),
        attestation: attestation.clone(),
        header,
        height: work.ctx().height,
        time_ms: work.now_ms(),
    };
    let trust = kept(assessment, after, header, key);
    Ok((NodeTrust { endorsement_key: endorsement, ..trust }, quote))
}

fn kept(assessment: Assessment, after: &NodeBody, header: RecentHeader, key: Hash) -> NodeTrust {
    let class = assessment.class_for(after.trust);
    let Assessment { class: _, release, secure_boot, firmware, endorsement, endorsement_key, reasons } =
        assessment;
    let mut reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    if after.trust == TrustClass::Plain {
        let reason = "its key is on a disk, where whoever copies the disk has it too";
        reasons.insert(0, reason.to_owned());
    }
    if reasons.len() > limits::TRUST_REASONS {
        let more = reasons.len() + 1 - limits::TRUST_REASONS;
        reasons.truncate(limits::TRUST_REASONS - 1);
        reasons.push(format!("and {more} more"));
    }
    NodeTrust {
        class,
        session: after.session,
        key,
        height: header.height,
        quoted_ms: header.time_ms,
        release,
        secure_boot,
        firmware,
        endorsement,
        endorsement_key,
        reasons,
    }
}

/// The parts of a refusal that somebody can do something about have a type of their own.
fn refused_quote(refusal: Refusal) -> RefusedQuote {
    match refusal {
        Refusal::Nonce => RefusedQuote::Nonce,
        Refusal::Stale { age_s, limit_s } => RefusedQuote::Stale { age_s, limit_s },
        Refusal::OtherTpm { known, got } => RefusedQuote::OtherTpm { known, got },
        Refusal::Replay => RefusedQuote::Replay,
        Refusal::Quote(croft_attest::quote::QuoteError::Signature { .. }) => RefusedQuote::Signature,
        other => RefusedQuote::Malformed { reason: other.to_string() },
    }
}

/// The releases of the channel that a farm follows: their boot files count as known, beside those of the genesis.
pub(super) fn followed_releases(state: &dyn StateRead, farm: &FarmId) -> Result<Vec<Release>, StateError> {
    match state.farm_policy(farm)? {
        Some(policy) => releases::in_force(state, &policy.channel),
        None => Ok(Vec::new()),
    }
}

/// What this grid accepts now of a farm's nodes.
fn policy(state: &dyn StateRead, farm: &FarmId) -> Result<Policy, StateError> {
    let policy: TrustPolicy = state.read(&StateKey::TrustPolicy)?.unwrap_or_default();
    Ok(Policy::of(policy, &state.validators()?.set, &followed_releases(state, farm)?))
}

#[cfg(test)]
mod tests;
