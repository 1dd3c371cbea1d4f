//! Proposals and bodies of others: brought together, executed, and told to the engine.
//!
//! It must never execute a body that no validator whose turn it is has proposed.

use croft_protocol::{ChainId, Hash, PublicKey, limits};
use malachite::full_proposal::MAX_PROPOSALS_PER_ROUND;
use malachite::{Input, MAX_FUTURE_ROUND_LOOKAHEAD, ProposedValue};
use malachite_types::{Round, Validity, ValueOrigin};

use super::{Body, Core, Output, PeerMessage, Wanted};
use crate::ordering::bft::context::{self, Grid, Height, Member, SignedProposal, Validators, Value};
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
            let round = proposal.message.round.as_u32().unwrap_or_default();
            if self.is_wanted(&value, round)
                && self.has_turn(proposer, proposal.message.round)
                && context::verify_proposal(
                    &self.chain_id(),
                    &proposal.message,
                    &proposer.0,
                    &proposal.signature,
                )
            {
                self.proposed.entry(round).or_default().insert(value);
                let ask_at = self.shell.now.since_ms + BODY_MS;
                self.wanted.insert(value, Wanted { proposal: proposal.clone(), ask_at, asked: 0 });
            }
        }
        self.feed(Input::Proposal(proposal));
        self.match_bodies();
    }

    fn chain_id(&self) -> ChainId {
        self.shell.chain.store().chain()
    }

    /// Whether the body of what was proposed is to be fetched and executed.
    fn is_wanted(&self, value: &Value, round: u32) -> bool {
        let known = self.built.contains_key(&value.header)
            || self.wanted.contains_key(value)
            || self.refused.contains(value);
        let now = self.state.round().as_u32().filter(|_| self.deciding).unwrap_or_default();
        let proposed = self.proposed.get(&round);
        let fits = proposed.is_none_or(|all| all.contains(value) || all.len() < MAX_PROPOSALS_PER_ROUND);
        // The engine keeps no more either, but of a value that has a polka.
        let has_polka =
            || self.deciding && self.state.polka_certificate(Round::new(round), &value.header).is_some();
        !known && round <= now + MAX_FUTURE_ROUND_LOOKAHEAD && (fits || has_polka())
    }

    /// Whether somebody may propose in a round of the height that is to be decided: a stranger's word must not
    /// make us fetch and execute anything.
    fn has_turn(&self, proposer: Member, round: Round) -> bool {
        use malachite_types::{Context as _, Validator as _};
        let height = Height(self.height());
        if self.state.height() == height {
            return *Grid.select_proposer(self.state.validator_set(), height, round).address() == proposer;
        }
        // The engine still has those of the height before.
        let Ok(set) = super::next_validators(&self.shell.chain.latest()) else { return false };
        *Grid.select_proposer(&Validators::new(&set), height, round).address() == proposer
    }

    pub(super) fn body(&mut self, from: PublicKey, body: Body) {
        if body.height != self.height() {
            return;
        }
        let hash = body.hash();
        if self.deciding && self.wanted.keys().any(|value| value.body == hash) {
            self.examine(body, hash);
        } else if let Some(peer) = self.peers.get_mut(&from) {
            // Bodies and proposals travel on different streams; the body may be here first.
            if peer.loose.len() == LOOSE_PER_PEER {
                peer.loose.pop_front();
            }
            peer.loose.push_back(body);
        }
    }

    /// Brings bodies and proposals together. Not before the height has begun: the engine would forget again what it
    /// hears of a value until then.
    pub(super) fn match_bodies(&mut self) {
        while self.deciding
            && let Some((body, hash)) = self.matching_body()
        {
            self.examine(body, hash);
        }
    }

    fn matching_body(&mut self) -> Option<(Body, Hash)> {
        let wanted: Vec<Hash> = self.wanted.keys().map(|value| value.body).collect();
        if wanted.is_empty() {
            return None;
        }
        self.peers.values_mut().find_map(|peer| {
            let hash = |body: &Body| Some(body.hash()).filter(|hash| wanted.contains(hash));
            let (index, hash) =
                peer.loose.iter().enumerate().find_map(|(index, body)| Some((index, hash(body)?)))?;
            Some((peer.loose.remove(index)?, hash))
        })
    }

    /// Executes a wanted body and tells the engine whether it is what its proposal says.
    pub(super) fn examine(&mut self, body: Body, hash: Hash) {
        let Some(value) = self.wanted.keys().find(|value| value.body == hash).copied() else { return };
        let Some(Wanted { proposal, .. }) = self.wanted.remove(&value) else { return };
        let tip = self.shell.chain.latest();
        let ahead_ms = body.time_ms.saturating_sub(self.shell.now.wall_ms);
        let in_time = ahead_ms <= limits::CLOCK_SLACK_MS;
        if !in_time {
            tracing::warn!(ahead_ms, proposer = %proposal.message.proposer, "a proposed block is from the future");
        }
        let executed = match Self::execute(&tip, body) {
            Ok(executed) => executed,
            // No word about it: it is not to blame.
            Err(error) => return self.fails(&error),
        };
        let executed = executed.filter(|(got, built)| {
            // Commands that fail change nothing: a proposer who puts them in only wastes everybody's disk.
            *got == value.header && built.block.outcome.results.iter().all(Result::is_ok)
        });
        if executed.is_none() {
            self.refused.insert(value);
        }
        let executed = executed.filter(|_| in_time);
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
        if !self.deciding {
            return;
        }
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
