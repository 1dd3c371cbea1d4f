//! The real ledger core in virtual time: commands wait for the next block, which is executed as replicas do.
//!
//! No trees and certificates, which the market does not see; invariants of the whole state are checked by whoever
//! drives it. It must never hand out a state that was not executed.

use std::collections::BTreeMap;

use croft_ledger::{
    BlockContext, StateError, StateRead, StateReadExt, check_invariants, execute_block, execute_genesis,
};
use croft_protocol::{
    ChainId, Command, CommandBody, Genesis, Hash, PublicKey, Rejection, SecretKey, SignedCommand, StateKey,
    limits,
};

pub(crate) struct Ledger {
    chain: ChainId,
    pub(crate) height: u64,
    pub(crate) time_ms: u64,
    state: BTreeMap<StateKey, Vec<u8>>,
    waiting: Vec<(u64, SecretKey, Command)>,
    tickets: u64,
}

impl StateRead for Ledger {
    fn get(&self, key: &StateKey) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.state.get(key).cloned())
    }
}

impl Ledger {
    pub(crate) fn new(genesis: &Genesis) -> Self {
        let outcome = execute_genesis(genesis).expect("the simulator's genesis is valid");
        let state = outcome.writes.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let chain = genesis.chain_id();
        Self { chain, height: 0, time_ms: genesis.time_ms, state, waiting: Vec::new(), tickets: 0 }
    }

    pub(crate) fn chain(&self) -> ChainId {
        self.chain
    }

    /// Queues a command; the ticket names its result.
    pub(crate) fn submit(&mut self, key: &SecretKey, command: Command) -> u64 {
        self.tickets += 1;
        self.waiting.push((self.tickets, key.clone(), command));
        self.tickets
    }

    /// Makes blocks of all that waits.
    pub(crate) fn commit(&mut self, time_ms: u64) -> Vec<(u64, Result<(), Rejection>)> {
        let mut results = Vec::new();
        while !self.waiting.is_empty() {
            let many = self.waiting.len().min(limits::COMMANDS_PER_BLOCK);
            let batch: Vec<_> = self.waiting.drain(..many).collect();
            results.extend(self.block(time_ms, &batch));
        }
        self.time_ms = self.time_ms.max(time_ms);
        results
    }

    /// Commands of one author after a rejected one would have a wrong number: each is signed for what is known then.
    fn block(
        &mut self,
        time_ms: u64,
        batch: &[(u64, SecretKey, Command)],
    ) -> Vec<(u64, Result<(), Rejection>)> {
        let mut results = Vec::new();
        // Nobody here looks into a header; quotes of TPMs would name it.
        let (prev, prev_ms) = (Hash::of("croft/sim-header/1", &self.height), self.time_ms);
        self.height += 1;
        self.time_ms = (self.time_ms + 1).max(time_ms);
        let mut ahead = BTreeMap::<PublicKey, u64>::new();
        let mut signed = Vec::new();
        for (_, key, command) in batch {
            let author = key.public();
            let ahead = ahead.entry(author).or_default();
            let sequence = self.account(&author).expect("memory can be read").next_sequence + *ahead;
            *ahead += 1;
            let expires_height = self.height + 1000;
            let body =
                CommandBody { chain: self.chain, author, sequence, expires_height, command: command.clone() };
            signed.push(SignedCommand::sign(body, key));
        }
        let ctx =
            BlockContext { chain: self.chain, height: self.height, time_ms: self.time_ms, prev, prev_ms };
        let outcome = execute_block(self, ctx, &signed).expect("the ledger goes on");
        for (key, value) in outcome.writes {
            match value {
                Some(value) => drop(self.state.insert(key, value)),
                None => drop(self.state.remove(&key)),
            }
        }
        for ((ticket, key, command), result) in batch.iter().zip(outcome.results) {
            match result {
                // One before it was rejected: its author signs again.
                Err(Rejection::Sequence { .. }) => self.waiting.push((*ticket, key.clone(), command.clone())),
                other => results.push((*ticket, other.map(drop))),
            }
        }
        results
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        check_invariants(self.state.iter().map(|(key, value)| (key, value.as_slice())))
            .map_err(|e| e.to_string())
    }

    pub(crate) fn balance(&self, bot: &PublicKey) -> u64 {
        self.account(bot).expect("memory can be read").balance.0
    }
}
