//! Proposals and bodies of others: brought together, executed, and told to the engine.
//!
//! It must never execute a body that no validator whose turn it is has proposed.

use croft_protocol::{Hash, PublicKey, limits};
use malachite::{Input, ProposedValue};
use malachite_types::{Validity, ValueOrigin};

use super::{Body, Core, Output, PeerMessage, Wanted};
use crate::ordering::bft::context::{self, Grid, Height, SignedProposal};
use crate::ordering::bft::log::Entry;

/// Bodies that one peer may have here before their proposals are.
const LOOSE_PER_PEER: usize = 2;
/// How long to wait for a body before somebody else is asked for it.
const BODY_MS: u64 = 300;

impl Core {
    pub(super) fn proposal(&mut self, proposal: SignedProposal) {
        let height = self.height();
        let (value, proposer) = (proposal.message.value, proposal.message.proposer);
        if proposal.message.height.0 == height {
            self.heard_next |= !self.deciding;
            let chain = self.shell.chain.latest().tip().header.chain;
            let known = self.built.contains_key(&value.header) || self.wanted.contains_key(&value.header);
            let expected = {
                use malachite_types::{Context as _, Validator as _};
                let set = self.state.validator_set();
                *Grid.select_proposer(set, Height(height), proposal.message.round).address()
            };
            // A stranger's word must not make us fetch and execute anything.
            if !known
                && expected == proposer
                && context::verify_proposal(&chain, &proposal.message, &proposer.0, &proposal.signature)
            {
                let ask_at = self.shell.now.since_ms + BODY_MS;
                self.wanted.insert(value.header, Wanted { proposal: proposal.clone(), ask_at, asked: 0 });
            }
        }
        self.feed(Input::Proposal(proposal));
        self.match_bodies();
    }

    pub(super) fn body(&mut self, from: PublicKey, body: Body) {
        if body.height != self.height() {
            return;
        }
        let hash = body.hash();
        if self.wanted.values().any(|wanted| wanted.proposal.message.value.body == hash) {
            self.examine(body, hash);
        } else if let Some(peer) = self.peers.get_mut(&from) {
            // Bodies and proposals travel on different streams; the body may be here first.
            if peer.loose.len() == LOOSE_PER_PEER {
                peer.loose.pop_front();
            }
            peer.loose.push_back(body);
        }
    }

    /// Brings bodies and proposals together.
    pub(super) fn match_bodies(&mut self) {
        let wanted: Vec<Hash> = self.wanted.values().map(|w| w.proposal.message.value.body).collect();
        if wanted.is_empty() {
            return;
        }
        for peer in self.peers.values_mut() {
            let found = peer.loose.iter().position(|body| wanted.contains(&body.hash()));
            if let Some(body) = found.and_then(|index| peer.loose.remove(index)) {
                let hash = body.hash();
                return self.examine(body, hash);
            }
        }
    }

    /// Executes a wanted body and tells the engine whether it is what its proposal says.
    pub(super) fn examine(&mut self, body: Body, hash: Hash) {
        let Some(header) = self
            .wanted
            .iter()
            .find(|(_, w)| w.proposal.message.value.body == hash)
            .map(|(header, _)| *header)
        else {
            return;
        };
        let Some(Wanted { proposal, .. }) = self.wanted.remove(&header) else { return };
        let tip = self.shell.chain.latest();
        let ahead_ms = body.time_ms.saturating_sub(self.shell.now.wall_ms);
        let in_time = ahead_ms <= limits::CLOCK_SLACK_MS;
        if !in_time {
            tracing::warn!(ahead_ms, proposer = %proposal.message.proposer, "a proposed block is from the future");
        }
        let executed = Self::execute(&tip, body).filter(|(got, built)| {
            // Commands that fail change nothing: a proposer who puts them in only wastes everybody's disk.
            in_time && *got == header && built.block.outcome.results.iter().all(Result::is_ok)
        });
        let valid = executed.is_some();
        if let Some((header, built)) = executed {
            self.shell.append(&Entry::Body { made_in: None, body: built.body.clone() });
            self.built.insert(header, built);
        }
        let proposal = proposal.message;
        let value = ProposedValue {
            height: proposal.height,
            round: proposal.round,
            valid_round: proposal.pol_round,
            proposer: proposal.proposer,
            value: proposal.value,
            validity: Validity::from_bool(valid),
        };
        self.feed(Input::ProposedValue(value, ValueOrigin::Consensus));
    }

    pub(super) fn ask_for_bodies(&mut self) {
        let (now, height) = (self.shell.now.since_ms, self.height());
        let peers: Vec<PublicKey> = self.peers.keys().copied().collect();
        for wanted in self.wanted.values_mut() {
            if wanted.ask_at > now {
                continue;
            }
            wanted.ask_at = now + BODY_MS;
            let proposer = wanted.proposal.message.proposer.0;
            // First whoever proposed it, then one after the other.
            let peer = if wanted.asked == 0 && peers.contains(&proposer) {
                Some(proposer)
            } else {
                (!peers.is_empty()).then(|| peers[wanted.asked % peers.len()])
            };
            wanted.asked += 1;
            if let Some(peer) = peer {
                let body = wanted.proposal.message.value.body;
                self.shell.out.push(Output::Send(peer, PeerMessage::WantBody { height, body }));
            }
        }
    }
}
