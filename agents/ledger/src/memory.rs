//! A ledger without a disk: state, trees and certificates in ordered maps, for tests and simulators.
//!
//! It executes, assembles and proves with the same functions as a replica. It panics where a replica would
//! stop: its store never fails, so what fails is the state machine.

mod scenario;

use std::collections::BTreeMap;

use croft_protocol::api::{ProvedRecord, ProvedValue};
use croft_protocol::{
    ChainId, Command, CommandBody, Genesis, Hash, Record, Rejection, SecretKey, SignedCommand, SignedHeader,
    SignedValidatorChange, StateKey, ValidatorChange, ValidatorSet,
};

use crate::assemble::{Before, assemble, certify};
use crate::block::{
    BlockContext, BlockOutcome, Event, InvalidGenesis, Receipt, execute_block, execute_genesis,
};
use crate::invariants::check_invariants;
use crate::log_tree::{self, NodeAt};
use crate::state::{StateError, StateRead, StateReadExt};
use crate::state_map::{self, MapHead};

pub use scenario::{ALLOWANCE, START_MS, Scenario, key, name};

/// A whole grid in one value.
#[derive(Debug, Clone)]
pub struct MemoryLedger {
    genesis: Genesis,
    chain: ChainId,
    keys: Vec<SecretKey>,
    /// Who certifies the next block.
    validators: ValidatorSet,
    state: BTreeMap<StateKey, Vec<u8>>,
    log_nodes: BTreeMap<NodeAt, Hash>,
    map_nodes: BTreeMap<Vec<u8>, Vec<u8>>,
    map: MapHead,
    headers: Vec<SignedHeader>,
    records: Vec<Record>,
    events: Vec<Event>,
}

impl MemoryLedger {
    /// A grid with its genesis block. `keys` sign for the validators; more than two thirds of the power is
    /// needed for valid certificates.
    ///
    /// # Errors
    /// [`InvalidGenesis`] names the culprit.
    pub fn new(genesis: Genesis, keys: Vec<SecretKey>) -> Result<Self, InvalidGenesis> {
        let outcome = execute_genesis(&genesis)?;
        let ctx = BlockContext::genesis(&genesis);
        let mut ledger = Self {
            chain: ctx.chain,
            keys,
            validators: genesis.validators.clone(),
            genesis,
            state: BTreeMap::new(),
            log_nodes: BTreeMap::new(),
            map_nodes: BTreeMap::new(),
            map: MapHead::EMPTY,
            headers: Vec::new(),
            records: Vec::new(),
            events: Vec::new(),
        };
        ledger.store(ctx, outcome);
        Ok(ledger)
    }

    /// Makes the next block. Rejected commands leave no trace.
    ///
    /// # Panics
    /// When `time_ms` is not greater than the tip's, when there are too many commands, and when an invariant
    /// breaks.
    pub fn commit(&mut self, time_ms: u64, commands: &[SignedCommand]) -> Vec<Result<Receipt, Rejection>> {
        let ctx = BlockContext::after(&self.tip().header, time_ms);
        let outcome = execute_block(self, ctx, commands).expect("the block can be executed");
        let results = outcome.results.clone();
        self.store(ctx, outcome);
        results
    }

    fn store(&mut self, ctx: BlockContext, outcome: BlockOutcome) {
        let before = match self.headers.last() {
            None => Before::Genesis(&self.genesis),
            Some(signed) => Before::Header { header: &signed.header, map: self.map },
        };
        let assembled = assemble(before, ctx, &outcome, &self.log_nodes, &self.map_nodes)
            .expect("a block that was executed can be assembled");
        self.log_nodes.extend(assembled.log.nodes);
        self.map_nodes.extend(assembled.map.nodes);
        for stale in &assembled.map.stale {
            self.map_nodes.remove(stale);
        }
        self.map = assembled.map.head;
        for (key, value) in outcome.writes {
            match value {
                Some(value) => drop(self.state.insert(key, value)),
                None => drop(self.state.remove(&key)),
            }
        }
        self.records.extend(outcome.records);
        self.events = outcome.events;
        let signing: Vec<_> =
            self.keys.iter().filter(|k| self.validators.power_of(&k.public()) > 0).cloned().collect();
        self.headers.push(certify(assembled.header, 0, self.validators.clone(), &signing));
        self.validators = StateReadExt::validators(self).expect("memory can be read").set;
        if let Err(broken) = self.check() {
            panic!("after block {}: {broken}", ctx.height);
        }
    }

    /// Signs a command with the author's next sequence number and the farthest expiry.
    #[must_use]
    pub fn sign(&self, key: &SecretKey, command: Command) -> SignedCommand {
        self.sign_ahead(key, command, 0)
    }

    /// As [`Self::sign`], for a command that follows `ahead` others of the same author in the same block.
    #[must_use]
    pub fn sign_ahead(&self, key: &SecretKey, command: Command, ahead: u64) -> SignedCommand {
        let author = key.id();
        let body = CommandBody {
            chain: self.chain,
            author,
            sequence: self.account(&author).expect("memory can be read").next_sequence + ahead,
            expires_height: self.tip().header.height + croft_protocol::limits::EXPIRY_BLOCKS,
            command,
        };
        SignedCommand::sign(body, key)
    }

    /// Signs a command and makes a block of it, one millisecond after the tip.
    ///
    /// # Errors
    /// [`Rejection`] when the command changes nothing.
    pub fn submit(&mut self, key: &SecretKey, command: Command) -> Result<Receipt, Rejection> {
        self.submit_at(self.tip().header.time_ms + 1, key, command)
    }

    /// As [`Self::submit`], in a block of a given time.
    ///
    /// # Errors
    /// [`Rejection`] when the command changes nothing.
    pub fn submit_at(
        &mut self,
        time_ms: u64,
        key: &SecretKey,
        command: Command,
    ) -> Result<Receipt, Rejection> {
        let signed = self.sign(key, command);
        self.commit(time_ms, &[signed]).pop().expect("one command has one result")
    }

    /// Keys of validators that a later change brings in: they sign when their time comes.
    pub fn add_keys(&mut self, keys: impl IntoIterator<Item = SecretKey>) {
        self.keys.extend(keys);
    }

    /// A change to other validators, signed by some.
    #[must_use]
    pub fn sign_change(&self, validators: ValidatorSet, signers: &[SecretKey]) -> SignedValidatorChange {
        let prev = StateReadExt::validators(self).expect("memory can be read").record;
        let change = ValidatorChange { prev, validators };
        let mut signed = SignedValidatorChange { change, signatures: Vec::new() };
        for key in signers {
            signed.add(signed.change.sign(key, &self.chain));
        }
        signed
    }

    /// Checks every invariant of the whole state.
    ///
    /// # Errors
    /// [`crate::BrokenInvariant`] says what does not hold.
    pub fn check(&self) -> Result<(), crate::BrokenInvariant> {
        check_invariants(self.state.iter().map(|(key, value)| (key, value.as_slice())))
    }

    #[must_use]
    pub fn chain(&self) -> ChainId {
        self.chain
    }

    #[must_use]
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The newest final header.
    ///
    /// # Panics
    /// Never: there is always the genesis block.
    #[must_use]
    pub fn tip(&self) -> &SignedHeader {
        self.headers.last().expect("there is always the genesis block")
    }

    /// All final headers by height.
    #[must_use]
    pub fn headers(&self) -> &[SignedHeader] {
        &self.headers
    }

    /// All records in the order of the log.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// What happened in the newest block.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The whole state.
    #[must_use]
    pub fn state(&self) -> &BTreeMap<StateKey, Vec<u8>> {
        &self.state
    }

    /// The nodes of the log.
    #[must_use]
    pub fn log_nodes(&self) -> &BTreeMap<NodeAt, Hash> {
        &self.log_nodes
    }

    /// The nodes of the state map.
    #[must_use]
    pub fn map_nodes(&self) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        &self.map_nodes
    }

    /// A value, or its absence, with a proof against the tip.
    ///
    /// # Panics
    /// When the map is not that of the state.
    #[must_use]
    pub fn prove(&self, key: &StateKey) -> ProvedValue {
        state_map::prove(&self.map_nodes, self.map, key, self.state.get(key).cloned())
            .expect("the map is that of the state")
    }

    /// A record of the log with a proof against the tip; `None` when there is none at `index`.
    ///
    /// # Panics
    /// When the log lacks a node.
    #[must_use]
    pub fn prove_record(&self, index: u64) -> Option<ProvedRecord> {
        let record = self.records.get(usize::try_from(index).ok()?)?.clone();
        let proof = log_tree::prove_inclusion(&self.log_nodes, self.tip().header.log_size, index)
            .expect("the log has every node");
        Some(ProvedRecord { index, record, proof })
    }

    /// Proof that the log at `height` is a prefix of the log at the tip.
    ///
    /// # Panics
    /// When there is no such height.
    #[must_use]
    pub fn prove_consistency(&self, height: usize) -> Vec<u8> {
        let old_size = self.headers[height].header.log_size;
        log_tree::prove_consistency(&self.log_nodes, old_size, self.tip().header.log_size)
            .expect("the log has every node")
    }
}

impl StateRead for MemoryLedger {
    fn get(&self, key: &StateKey) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.state.get(key).cloned())
    }
}
