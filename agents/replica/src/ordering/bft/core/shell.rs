//! What surrounds the engine: its timers, its log, its signatures, and what it wants said.
//!
//! It must never let a signed message out before the log holds what it stands on.

use std::collections::VecDeque;
use std::sync::Arc;

use croft_protocol::SecretKey;
use malachite::{Effect, Resumable, Resume};
use malachite_types::{Timeout, TimeoutKind};

use super::{Health, Now, Output, PeerMessage, TIMEOUTS, Todo};
use crate::chain::Chain;
use crate::ordering::bft::certificates;
use crate::ordering::bft::context::{self, Grid, SignedProposal};
use crate::ordering::bft::evidence::Evidence;
use crate::ordering::bft::log::{Entry, Log, LogError};
use crate::ordering::bft::message::Signed;

/// The engine's surroundings: all but its state, so that effects can be handled while it is borrowed.
pub(super) struct Shell {
    pub(super) key: SecretKey,
    pub(super) chain: Arc<Chain>,
    pub(super) log: Option<Log>,
    pub(super) now: Now,
    pub(super) replaying: bool,
    pub(super) timers: Vec<(Timeout, u64)>,
    pub(super) todo: VecDeque<Todo>,
    pub(super) out: Vec<Output>,
    pub(super) health: Health,
    /// The last proposal of ours, for peers whose link comes up after it.
    pub(super) proposed: Option<PeerMessage>,
}

impl Shell {
    pub(super) fn say(&mut self, message: PeerMessage) {
        self.out.push(Output::Broadcast(message));
    }

    pub(super) fn trouble(&mut self, error: &dyn std::error::Error) {
        let reason = crate::chain_of(error);
        if self.health.trouble.as_ref() != Some(&reason) {
            tracing::error!(reason, "no block can be stored");
        }
        self.health.trouble = Some(reason);
    }

    /// From now on nothing is signed: what was said can't be remembered.
    pub(super) fn lose_log(&mut self, error: &LogError) {
        let reason = crate::chain_of(error);
        tracing::error!(
            reason,
            "this replica signs nothing more: its consensus log failed; make room or mend the disk, then start it again"
        );
        self.stop_signing(reason);
    }

    pub(super) fn stop_signing(&mut self, reason: String) {
        self.health.not_signing = Some(reason);
        self.log = None;
    }

    pub(super) fn append(&mut self, entry: &Entry) {
        if let Some(log) = &mut self.log
            && !self.replaying
        {
            log.append(entry);
        }
    }

    /// Whether everything that was appended is durable.
    pub(super) fn flush(&mut self, height: u64) -> bool {
        let Some(log) = &mut self.log else { return false };
        match log.flush(height) {
            Ok(()) => true,
            Err(error) => {
                self.lose_log(&error);
                false
            }
        }
    }

    /// Says something that this validator has signed, once it can't be forgotten. `false` when it could be, and
    /// nothing was said.
    pub(super) fn say_signed(&mut self, message: PeerMessage) -> bool {
        let height = self.chain.latest().height() + 1;
        let durable = self.flush(height);
        if durable {
            self.say(message);
        }
        durable
    }

    pub(super) fn effect(&mut self, effect: Effect<Grid>) -> Resume<Grid> {
        let chain = self.chain.latest().tip().header.chain;
        match effect {
            Effect::CancelAllTimeouts(r) => {
                self.timers.clear();
                r.resume_with(())
            }
            Effect::CancelTimeout(timeout, r) => {
                self.timers.retain(|(known, _)| *known != timeout);
                r.resume_with(())
            }
            Effect::ScheduleTimeout(timeout, r) => {
                let after = u64::try_from(TIMEOUTS.duration_for(timeout).as_millis()).unwrap_or(u64::MAX);
                self.timers.retain(|(known, _)| *known != timeout);
                if !matches!(timeout.kind, TimeoutKind::FinalizeHeight(_)) {
                    self.timers.push((timeout, self.now.since_ms.saturating_add(after)));
                }
                r.resume_with(())
            }
            Effect::StartRound(_, round, _, _, r) => {
                tracing::debug!(%round, "round");
                r.resume_with(())
            }
            Effect::PublishConsensusMsg(message, r) => {
                match message {
                    malachite::SignedConsensusMsg::Vote(vote) => {
                        self.say_signed(PeerMessage::Vote(vote.into()));
                    }
                    malachite::SignedConsensusMsg::Proposal(proposal) => {
                        let proposal = PeerMessage::Proposal(Signed::from(proposal));
                        // Only what is in the log may be said again.
                        if self.say_signed(proposal.clone()) {
                            self.proposed = Some(proposal);
                        }
                    }
                }
                r.resume_with(())
            }
            Effect::PublishLivenessMsg(message, r) => {
                self.say_signed(match message {
                    malachite::LivenessMsg::Vote(vote) => PeerMessage::Vote(vote.into()),
                    malachite::LivenessMsg::PolkaCertificate(c) => PeerMessage::PolkaCertificate(c),
                    malachite::LivenessMsg::SkipRoundCertificate(c) => PeerMessage::RoundCertificate(c),
                });
                r.resume_with(())
            }
            Effect::RepublishVote(vote, r) => {
                self.say_signed(PeerMessage::Vote(vote.into()));
                r.resume_with(())
            }
            Effect::RepublishRoundCertificate(certificate, r) => {
                self.say_signed(PeerMessage::RoundCertificate(certificate));
                r.resume_with(())
            }
            Effect::GetValue(_, round, _, r) => {
                self.todo.push_back(Todo::MakeBlock(round));
                r.resume_with(())
            }
            Effect::RestreamProposal(_, _, _, _, header, r) => {
                self.todo.push_back(Todo::Restream(header));
                r.resume_with(())
            }
            Effect::Decide(certificate, _, r) => {
                self.todo.push_back(Todo::Decided(certificate));
                r.resume_with(())
            }
            Effect::Finalize(_, _, evidence, r) => {
                self.out.extend(Evidence::of(evidence).into_iter().map(Output::Evidence));
                r.resume_with(())
            }
            Effect::SignVote(vote, r) => {
                let signature = context::sign_vote(&self.key, &chain, &vote);
                r.resume_with(context::SignedVote::new(vote, signature))
            }
            Effect::SignProposal(proposal, r) => {
                let signature = context::sign_proposal(&self.key, &chain, &proposal);
                r.resume_with(SignedProposal::new(proposal, signature))
            }
            Effect::VerifySignature(message, key, r) => r.resume_with(match &message.message {
                malachite::ConsensusMsg::Vote(vote) => {
                    context::verify_vote(&chain, vote, &key, &message.signature)
                }
                malachite::ConsensusMsg::Proposal(proposal) => {
                    context::verify_proposal(&chain, proposal, &key, &message.signature)
                }
            }),
            Effect::VerifyCommitCertificate(certificate, set, thresholds, r) => {
                r.resume_with(certificates::commit(&chain, &certificate, &set, thresholds))
            }
            Effect::VerifyPolkaCertificate(certificate, set, thresholds, r) => {
                r.resume_with(certificates::polka(&chain, &certificate, &set, thresholds))
            }
            Effect::VerifyRoundCertificate(certificate, set, thresholds, r) => {
                r.resume_with(certificates::round(&chain, &certificate, &set, thresholds))
            }
            Effect::WalAppend(_, entry, r) => {
                if let Some(entry) = Entry::of(entry) {
                    self.append(&entry);
                }
                r.resume_with(())
            }
            // Blocks of others are taken with their certificates, outside the engine; votes carry no extensions.
            Effect::CertVerifiedSyncValue(_, _, r) | Effect::CertRejectedSyncValue(_, _, _, r) => {
                r.resume_with(())
            }
            Effect::VerifyExtendedCommitCertificate(certificate, set, thresholds, _, r) => r.resume_with(
                certificates::commit(&chain, &certificate.trim_vote_extensions(), &set, thresholds),
            ),
            Effect::ExtendVote(_, _, _, _, r) => r.resume_with(None),
            Effect::VerifyVoteExtension(_, _, _, _, _, _, r) => {
                r.resume_with(Err(malachite::VoteExtensionError::InvalidVoteExtension))
            }
        }
    }
}
