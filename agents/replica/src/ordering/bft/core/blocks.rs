//! Decided blocks: stored, given to those who were away, and taken from those who were not.
//!
//! It must never store a block without a certificate of the validators that are in force.

use croft_ledger::assemble;
use croft_protocol::{PublicKey, SignedHeader, limits};

use super::{Body, Core, Output, PeerMessage, RETRY_MS, Request, lock, next_validators};
use crate::ordering::Verdict;
use crate::ordering::bft::context::CommitCertificate;
use crate::ordering::bft::message::{BLOCKS_PER_ANSWER, FinalBlock};
use crate::store::{Block, Snapshot, StoreError};

/// How long a peer may take to send blocks before another is asked.
const BLOCKS_MS: u64 = 3_000;
/// How long to wait for the votes of a height that others have decided before asking for its block.
const BEHIND_MS: u64 = 400;
/// How long a peer is not believed that did not send what it said it has; doubles each time.
const DOUBT_MS: u64 = 2_000;
const DOUBLINGS: u32 = 5;

impl Core {
    pub(super) fn decide(&mut self, certificate: CommitCertificate) {
        let height = certificate.height.0;
        if height != self.height() {
            return;
        }
        let Some(built) = self.built.get(&certificate.value_id) else {
            // The engine decides on full proposals only; if it did otherwise, the others have the block.
            tracing::error!(height, "a decided block is not here: it is fetched");
            return self.leave_height();
        };
        let mut block = built.block.clone();
        let tip = self.shell.chain.latest();
        let set = match next_validators(&tip) {
            Ok(set) => set,
            Err(error) => return self.fails(&error),
        };
        let signatures = certificate.commit_signatures.iter().map(|s| (s.address.0, s.signature)).collect();
        let round = certificate.round.as_u32().unwrap_or_default();
        block.signed = assemble::with_signatures(block.signed.header, round, set, signatures);
        self.keep(block);
    }

    /// Stores a final block, now or as soon as it can be: nothing new is said before. `false` when it is not yet
    /// stored.
    pub(super) fn keep(&mut self, block: Block) -> bool {
        match self.commit(&block) {
            Ok(()) => true,
            Err(error) => {
                self.shell.trouble(&error);
                self.unstored = Some((Box::new(block), self.shell.now.since_ms + RETRY_MS));
                false
            }
        }
    }

    /// The ledger's file failed while it was read: it is opened again.
    pub(super) fn fails(&mut self, error: &dyn std::error::Error) {
        self.shell.trouble(error);
        self.mend_at = Some(self.shell.now.since_ms + RETRY_MS);
    }

    /// Tries again what failed because of the ledger's file.
    pub(super) fn mend(&mut self) {
        let now = self.shell.now.since_ms;
        if self.unstored.as_ref().is_some_and(|(_, retry_at)| *retry_at <= now)
            && let Some((block, _)) = self.unstored.take()
        {
            self.keep(*block);
        }
        if self.mend_at.is_some_and(|at| at <= now) {
            self.mend_at = None;
            match self.shell.chain.store().recover() {
                Ok(_) => self.shell.health.trouble = None,
                Err(error) => self.fails(&error),
            }
        }
    }

    /// Stores a certified block and answers whoever waits for its commands.
    fn commit(&mut self, block: &Block) -> Result<(), StoreError> {
        let height = block.signed.header.height;
        let chain = self.shell.chain.clone();
        let tip =
            chain.store().recover().map_err(|error| StoreError::Damaged { what: crate::chain_of(&error) })?;
        if tip.tip().header == block.signed.header {
            // Its first write failed, and yet the file has it.
            chain.announce(block.clone());
        } else {
            chain.commit(block.clone(), || {})?;
        }
        self.shell.health.trouble = None;
        let mut pool = lock(&self.pool);
        for (command, result) in block.commands.iter().zip(&block.outcome.results) {
            let verdict = match result {
                Ok(receipt) => Verdict::Final { height, records: receipt.records.clone() },
                Err(rejection) => Verdict::Rejected(rejection.clone()),
            };
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
        self.proposed.clear();
        self.refused.clear();
        self.shell.timers.clear();
        self.shell.todo.clear();
        self.shell.proposed = None;
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
        if let Some(request) = &self.request
            && (now >= request.until || !self.peers.contains_key(&request.peer))
        {
            let peer = request.peer;
            self.request = None;
            self.doubt(peer);
        }
        let believed = |key: &PublicKey| self.credit.get(key).is_none_or(|c| c.doubted_until <= now);
        let further = || self.peers.iter().filter(|(key, peer)| peer.height > tip && believed(key));
        let Some(best) = further().map(|(_, peer)| peer.height).max() else {
            self.ask_at = None;
            return;
        };
        // The votes for the next height may be on their way.
        let patience = if best == tip + 1 { BEHIND_MS } else { 0 };
        let ask_at = *self.ask_at.get_or_insert(now + patience);
        if (now < ask_at && best == tip + 1) || self.request.is_some() || self.unstored.is_some() {
            return;
        }
        let useful = further().filter(|(_, peer)| peer.earliest <= tip + 1);
        let Some((peer, _)) = useful.max_by_key(|(key, peer)| (peer.height, **key)) else {
            let reason = "the others no longer have the blocks that this replica lacks: stop it, move its data \
                          away and run 'replica join'";
            self.shell.health.trouble = Some(reason.to_owned());
            self.ask_at = Some(now + BLOCKS_MS);
            return;
        };
        let peer = *peer;
        self.request = Some(Request { peer, until: now + BLOCKS_MS });
        let count = BLOCKS_PER_ANSWER;
        self.shell.out.push(Output::Send(peer, PeerMessage::WantBlocks { first: tip + 1, count }));
    }

    /// A peer did not send the blocks that it said it has: for a while it is not asked.
    fn doubt(&mut self, peer: PublicKey) {
        let credit = self.credit.entry(peer).or_default();
        let doubt_ms = DOUBT_MS << credit.failures.min(DOUBLINGS);
        credit.failures += 1;
        credit.doubted_until = self.shell.now.since_ms + doubt_ms;
        self.ask_at = None;
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
        self.ask_at = None;
        let asked_for = self.height();
        for block in blocks {
            if self.unstored.is_some() {
                break;
            }
            if block.signed.header.height < self.height() {
                continue;
            }
            if let Err(reason) = self.take_block(block) {
                tracing::warn!(peer = %from.short(), reason, "a block of another replica is not taken");
                break;
            }
        }
        if self.height() > asked_for {
            self.credit.remove(&from);
        } else if self.unstored.is_none() && self.mend_at.is_none() {
            self.doubt(from);
        }
    }

    fn take_block(&mut self, block: FinalBlock) -> Result<(), String> {
        let FinalBlock { signed, commands } = block;
        let tip = self.shell.chain.latest();
        self.check_certified(&tip, &signed)?;
        let body = Body { height: signed.header.height, time_ms: signed.header.time_ms, commands };
        let executed = Self::execute(&tip, body).map_err(|error| {
            self.fails(&error);
            crate::chain_of(&error)
        })?;
        let (header, built) = executed.ok_or("its commands can't be executed")?;
        if header != signed.header.hash() {
            return Err(format!("its commands yield header {header}, certified is {}", signed.header.hash()));
        }
        let mut block = built.block;
        block.signed = signed;
        if self.keep(block) { Ok(()) } else { Err("it can't be stored yet".to_owned()) }
    }

    #[cfg_attr(
        not(any(test, feature = "sim")),
        allow(clippy::unused_self, reason = "only the simulation puts a fault in here")
    )]
    fn check_certified(&self, tip: &Snapshot, signed: &SignedHeader) -> Result<(), String> {
        check_next(tip, signed)?;
        #[cfg(any(test, feature = "sim"))]
        if self.is_credulous {
            return Ok(());
        }
        croft_light::verify_certificate(signed).map_err(|error| error.to_string())
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

/// Whether a header is the next one; its certificate is another matter.
fn check_next(tip: &Snapshot, signed: &SignedHeader) -> Result<(), String> {
    let (header, before) = (&signed.header, &tip.tip().header);
    if header.chain != before.chain || header.height != before.height + 1 || header.prev != before.hash() {
        return Err(format!("header {} does not follow header {}", header.height, before.height));
    }
    if header.validators != before.next_validators {
        return Err(format!("header {} names other validators than those in force", header.height));
    }
    Ok(())
}
