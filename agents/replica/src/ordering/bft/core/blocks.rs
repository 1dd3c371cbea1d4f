//! Decided blocks: stored, given to those who were away, and taken from those who were not.
//!
//! It must never store a block without a certificate of the validators that are in force.

use croft_ledger::assemble;
use croft_protocol::{PublicKey, SignedHeader, limits};

use super::{Body, Core, Output, PeerMessage, Request, lock, next_validators};
use crate::ordering::Verdict;
use crate::ordering::bft::context::CommitCertificate;
use crate::ordering::bft::message::{BLOCKS_PER_ANSWER, FinalBlock};
use crate::store::{Block, Snapshot, StoreError};

/// How long a peer may take to send blocks before another is asked.
const BLOCKS_MS: u64 = 3_000;
/// How long to wait for the votes of a height that others have decided before asking for its block.
pub(super) const BEHIND_MS: u64 = 400;
/// Why a block of another replica is not taken.
pub(super) enum NotTaken {
    /// No honest replica sends it.
    Wrong(String),
    /// It is right, but our ledger can't be written.
    NotStored,
}

/// After a block that could not be stored.
const RETRY_MS: u64 = 1_000;

impl Core {
    pub(super) fn decide(&mut self, certificate: CommitCertificate) {
        let height = certificate.height.0;
        if height != self.height() {
            return;
        }
        let Some(built) = self.built.get(&certificate.value_id) else {
            // The engine decides on full proposals only; if it did otherwise, the others have the block.
            tracing::error!(height, "a decided block is not here: it is fetched");
            self.behind_since = Some(0);
            return self.leave_height();
        };
        let mut block = built.block.clone();
        let tip = self.shell.chain.latest();
        let set = match next_validators(&tip) {
            Ok(set) => set,
            Err(error) => return self.shell.trouble(&error),
        };
        let signatures = certificate.commit_signatures.iter().map(|s| (s.address.0, s.signature)).collect();
        let round = certificate.round.as_u32().unwrap_or_default();
        block.signed = assemble::with_signatures(block.signed.header, round, set, signatures);
        if let Err(error) = self.commit(block) {
            self.shell.trouble(&error);
            // The log still holds the votes: nothing is lost, and nothing new is said until it is stored.
            self.decided = Some((certificate, self.shell.now.since_ms + RETRY_MS));
        }
    }

    /// Stores a certified block and answers whoever waits for its commands.
    pub(super) fn commit(&mut self, block: Block) -> Result<(), StoreError> {
        let height = block.signed.header.height;
        self.shell
            .chain
            .store()
            .recover()
            .map_err(|error| StoreError::Damaged { what: crate::chain_of(&error) })?;
        let commands = block.commands.clone();
        let verdicts: Vec<Verdict> = block
            .outcome
            .results
            .iter()
            .map(|result| match result {
                Ok(receipt) => Verdict::Final { height, records: receipt.records.clone() },
                Err(rejection) => Verdict::Rejected(rejection.clone()),
            })
            .collect();
        self.shell.chain.commit(block, || {})?;
        self.shell.health.trouble = None;
        let mut pool = lock(&self.pool);
        for (command, verdict) in commands.iter().zip(verdicts) {
            pool.settle(command, verdict);
        }
        drop(pool);
        self.leave_height();
        self.heartbeat_at = self.shell.now.since_ms + limits::HEARTBEAT_MS;
        let status = self.status();
        self.shell.say(status);
        Ok(())
    }

    /// Forgets everything that was of the height that is over.
    pub(super) fn leave_height(&mut self) {
        self.deciding = false;
        self.built.clear();
        self.made.clear();
        self.wanted.clear();
        self.shell.timers.clear();
        self.shell.todo.clear();
        self.shell.proposed = None;
        self.decided = None;
        if let Some(log) = &mut self.shell.log {
            log.forget_pending();
        }
        let height = self.height();
        for peer in self.peers.values_mut() {
            peer.loose.retain(|body| body.height >= height);
        }
    }

    /// Asks for blocks when others are further.
    pub(super) fn check_peers(&mut self) {
        let (now, tip) = (self.shell.now.since_ms, self.shell.chain.latest().height());
        if self
            .request
            .as_ref()
            .is_some_and(|request| now >= request.until || !self.peers.contains_key(&request.peer))
        {
            let late = self.request.take().map(|request| request.peer);
            // It may be as far as it says, but it is of no use now.
            if let Some(peer) = late.and_then(|peer| self.peers.get_mut(&peer)) {
                peer.height = 0;
            }
        }
        let best = self.peers.values().map(|peer| peer.height).max().unwrap_or_default();
        if best <= tip {
            self.behind_since = None;
            return;
        }
        let since = *self.behind_since.get_or_insert(now);
        let patient = best == tip + 1 && now < since + BEHIND_MS;
        if patient || self.request.is_some() || now < self.fetch_not_before {
            return;
        }
        let useful = self.peers.iter().filter(|(_, peer)| peer.height > tip && peer.earliest <= tip + 1);
        let Some((peer, _)) = useful.max_by_key(|(key, peer)| (peer.height, **key)) else {
            let reason = "the others no longer have the blocks that this replica lacks: stop it, move its data \
                          away and run 'replica join'";
            self.shell.health.trouble = Some(reason.to_owned());
            return;
        };
        let peer = *peer;
        self.request = Some(Request { peer, until: now + BLOCKS_MS });
        let count = BLOCKS_PER_ANSWER;
        self.shell.out.push(Output::Send(peer, PeerMessage::WantBlocks { first: tip + 1, count }));
    }

    /// Final blocks for somebody who is behind: as many as fit.
    pub(super) fn blocks(&self, first: u64, count: u32) -> Vec<FinalBlock> {
        let tip = self.shell.chain.latest();
        final_blocks(&tip, first, count)
    }

    pub(super) fn take_blocks(&mut self, from: PublicKey, blocks: Vec<FinalBlock>) {
        if self.request.as_ref().is_none_or(|request| request.peer != from) {
            return;
        }
        self.request = None;
        let asked_for = self.height();
        for block in blocks {
            if block.signed.header.height < self.height() {
                continue;
            }
            match self.take_block(block) {
                Ok(()) => {}
                // Our own disk: the peer did nothing wrong, and asking again at once changes nothing.
                Err(NotTaken::NotStored) => {
                    self.fetch_not_before = self.shell.now.since_ms + RETRY_MS;
                    return;
                }
                Err(NotTaken::Wrong(reason)) => {
                    tracing::warn!(peer = %from.short(), reason, "a block of another replica is not taken");
                    break;
                }
            }
        }
        if self.height() == asked_for
            && let Some(peer) = self.peers.get_mut(&from)
        {
            // Empty or useless: another is asked, and this one when it says again how far it is.
            peer.height = 0;
        }
        self.behind_since = None;
    }

    pub(super) fn take_block(&mut self, block: FinalBlock) -> Result<(), NotTaken> {
        let FinalBlock { signed, commands } = block;
        let tip = self.shell.chain.latest();
        check_next(&tip, &signed).map_err(NotTaken::Wrong)?;
        let body = Body { height: signed.header.height, time_ms: signed.header.time_ms, commands };
        let (header, built) = Self::execute(&tip, body)
            .ok_or_else(|| NotTaken::Wrong("its commands can't be executed".to_owned()))?;
        if header != signed.header.hash() {
            let certified = signed.header.hash();
            return Err(NotTaken::Wrong(format!(
                "its commands yield header {header}, certified is {certified}"
            )));
        }
        let mut block = built.block;
        block.signed = signed;
        self.commit(block).map_err(|error| {
            self.shell.trouble(&error);
            NotTaken::NotStored
        })
    }
}

/// Blocks of a ledger with their commands, in order, as many as one answer may have.
#[must_use]
fn final_blocks(tip: &Snapshot, first: u64, count: u32) -> Vec<FinalBlock> {
    let mut blocks = Vec::new();
    let mut bytes = 0;
    for height in (first.max(1)..=tip.height()).take(count.min(BLOCKS_PER_ANSWER) as usize) {
        let (Ok(Some(signed)), Ok(Some(commands))) = (tip.header(height), tip.commands(height)) else {
            break;
        };
        let block = FinalBlock { signed, commands };
        bytes += croft_protocol::encode(&block).len();
        if bytes > limits::RESPONSE_BYTES && !blocks.is_empty() {
            break;
        }
        blocks.push(block);
    }
    blocks
}

/// Whether a certified header is the next one.
fn check_next(tip: &Snapshot, signed: &SignedHeader) -> Result<(), String> {
    let (header, before) = (&signed.header, &tip.tip().header);
    if header.chain != before.chain || header.height != before.height + 1 || header.prev != before.hash() {
        return Err(format!("header {} does not follow header {}", header.height, before.height));
    }
    if header.validators != before.next_validators {
        return Err(format!("header {} names other validators than those in force", header.height));
    }
    croft_light::verify_certificate(signed).map_err(|error| error.to_string())
}
