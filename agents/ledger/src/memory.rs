//! A ledger without a disk: state, trees and certificates in ordered maps, for tests and simulators.

use croft_protocol::api::{ProvedRecord, ProvedValue};
use croft_protocol::{Genesis, Record, SecretKey, SignedCommand, SignedHeader, StateKey};

use crate::block::{InvalidGenesis, Receipt};
use crate::state::{StateError, StateRead};

/// A whole grid in one value.
#[derive(Debug, Clone)]
pub struct MemoryLedger {}

impl MemoryLedger {
    /// A grid with its genesis block. `keys` sign for the validators; more than two thirds of the power is
    /// needed for valid certificates.
    ///
    /// # Errors
    /// [`InvalidGenesis`] names the culprit.
    pub fn new(_genesis: Genesis, _keys: Vec<SecretKey>) -> Result<Self, InvalidGenesis> {
        todo!()
    }

    /// Makes the next block. Rejected commands leave no trace.
    pub fn commit(
        &mut self,
        _time_ms: u64,
        _commands: &[SignedCommand],
    ) -> Vec<Result<Receipt, croft_protocol::Rejection>> {
        todo!()
    }

    /// The newest final header.
    #[must_use]
    pub fn tip(&self) -> &SignedHeader {
        todo!()
    }

    /// All final headers by height.
    #[must_use]
    pub fn headers(&self) -> &[SignedHeader] {
        todo!()
    }

    /// All records in the order of the log.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        todo!()
    }

    /// A value, or its absence, with a proof against the tip.
    #[must_use]
    pub fn prove(&self, _key: &StateKey) -> ProvedValue {
        todo!()
    }

    /// A record of the log with a proof against the tip; `None` when there is none at `index`.
    #[must_use]
    pub fn prove_record(&self, _index: u64) -> Option<ProvedRecord> {
        todo!()
    }
}

impl StateRead for MemoryLedger {
    fn get(&self, _key: &StateKey) -> Result<Option<Vec<u8>>, StateError> {
        todo!()
    }
}
