//! Keeps the search index in step with a block. Nothing here is proved; it must only never miss an entry.

use std::collections::BTreeSet;

use croft_protocol::record::{FarmBody, NodeBody};
use croft_protocol::{
    Body, Capacity, ContractState, NodeCapacity, NodeId, Record, RecordId, StateKey, encode,
};
use redb::{ReadableTable, Table, WriteTransaction};

use super::snapshot::{decoded, index_value};
use super::tables::{INDEX, Index, RECORDS, STATE, VERSIONS, index_key, version_key};
use super::{Block, StoreError};

struct Tables<'t> {
    records: Table<'t, u64, &'static [u8]>,
    versions: Table<'t, &'static [u8], u64>,
    state: Table<'t, &'static [u8], &'static [u8]>,
    index: Table<'t, &'static [u8], &'static [u8]>,
}

/// Updates the index from a block whose records and state are written already.
pub(super) fn update(transaction: &WriteTransaction, block: &Block) -> Result<(), StoreError> {
    let mut tables = Tables {
        records: transaction.open_table(RECORDS)?,
        versions: transaction.open_table(VERSIONS)?,
        state: transaction.open_table(STATE)?,
        index: transaction.open_table(INDEX)?,
    };
    let mut nodes = BTreeSet::new();
    for record in &block.outcome.records {
        match &record.body {
            Body::Farm(farm) if record.version == 1 => tables.farm(record, farm)?,
            Body::Node(_) => {
                nodes.insert(croft_protocol::PublicKey(record.id.id.0));
                if record.version > 1 {
                    tables.remove_moved_node(record)?;
                }
            }
            Body::Contract(contract) => {
                let terms = &contract.signed.terms;
                let parties = [terms.user.0, terms.farmer.0, terms.node.0];
                tables.contract(record, &parties, contract.state)?;
            }
            Body::Transfer(transfer) => {
                let first = tables.first(&record.id)?;
                for bot in BTreeSet::from([transfer.from, transfer.to]) {
                    tables.insert(Index::TransfersOf, &bot.0, first, &record.id, None)?;
                }
            }
            _ => {}
        }
    }
    for key in block.outcome.writes.keys() {
        if let StateKey::Capacity(node) = key {
            nodes.insert(*node);
        }
    }
    for node in nodes {
        tables.node(&node)?;
    }
    Ok(())
}

impl Tables<'_> {
    fn insert(
        &mut self,
        index: Index,
        scope: &[u8],
        first: u64,
        id: &RecordId,
        free: Option<&Capacity>,
    ) -> Result<(), StoreError> {
        let key = index_key(index, scope, first);
        self.index.insert(key.as_slice(), index_value(id, free).as_slice())?;
        Ok(())
    }

    fn remove(&mut self, index: Index, scope: &[u8], first: u64) -> Result<(), StoreError> {
        self.index.remove(index_key(index, scope, first).as_slice())?;
        Ok(())
    }

    fn record_at(&self, id: &RecordId, version: u64) -> Result<Option<Record>, StoreError> {
        let Some(position) = self.versions.get(version_key(id, version).as_slice())? else {
            return Ok(None);
        };
        let bytes = self.records.get(position.value())?;
        let bytes = bytes.ok_or_else(|| StoreError::damaged(format!("a version of {id:?} is missing")))?;
        Ok(Some(decoded("a record", bytes.value())?))
    }

    fn latest(&self, id: &RecordId) -> Result<Option<Record>, StoreError> {
        let (first, last) = (version_key(id, 0), version_key(id, u64::MAX));
        let position = match self.versions.range::<&[u8]>(first.as_slice()..=last.as_slice())?.next_back() {
            Some(entry) => entry?.1.value(),
            None => return Ok(None),
        };
        match self.records.get(position)? {
            Some(bytes) => Ok(Some(decoded("a record", bytes.value())?)),
            None => Err(StoreError::damaged(format!("the newest version of {id:?} is missing"))),
        }
    }

    /// Position in the log of a thing's first version.
    fn first(&self, id: &RecordId) -> Result<u64, StoreError> {
        let position = self.versions.get(version_key(id, 1).as_slice())?;
        let position = position.ok_or_else(|| StoreError::damaged(format!("{id:?} has no first version")))?;
        Ok(position.value())
    }

    fn farm(&mut self, record: &Record, farm: &FarmBody) -> Result<(), StoreError> {
        let first = self.first(&record.id)?;
        self.insert(Index::Farms, &[], first, &record.id, None)?;
        self.insert(Index::FarmsOfOwner, &farm.owner.0, first, &record.id, None)
    }

    /// Where a node is found: its farm and the farm's country.
    fn scopes(&self, node: &NodeBody) -> Result<[(Index, Vec<u8>); 3], StoreError> {
        let country = match self.latest(&RecordId::farm(&node.farm))?.map(|record| record.body) {
            Some(Body::Farm(farm)) => farm.country,
            _ => return Err(StoreError::damaged(format!("farm {} of a node is missing", node.farm))),
        };
        Ok([
            (Index::Nodes, Vec::new()),
            (Index::NodesOfFarm, node.farm.0.0.to_vec()),
            (Index::NodesInCountry, country.into_bytes()),
        ])
    }

    fn node(&mut self, node: &NodeId) -> Result<(), StoreError> {
        let id = RecordId::node(node);
        let Some(Body::Node(body)) = self.latest(&id)?.map(|record| record.body) else {
            return Err(StoreError::damaged(format!("node {node} has capacity, but no record")));
        };
        let capacity = match self.state.get(encode(&StateKey::Capacity(*node)).as_slice())? {
            Some(bytes) => decoded("a node's capacity", bytes.value())?,
            None => NodeCapacity::default(),
        };
        let first = self.first(&id)?;
        for (index, scope) in self.scopes(&body)? {
            self.insert(index, &scope, first, &id, Some(&capacity.free()))?;
        }
        Ok(())
    }

    /// Takes a node out of where its previous version was; [`Self::node`] puts it where it is now.
    fn remove_moved_node(&mut self, record: &Record) -> Result<(), StoreError> {
        if let Some(Body::Node(old)) = self.record_at(&record.id, record.version - 1)?.map(|r| r.body) {
            let first = self.first(&record.id)?;
            for (index, scope) in self.scopes(&old)? {
                self.remove(index, &scope, first)?;
            }
        }
        Ok(())
    }

    fn contract(
        &mut self,
        record: &Record,
        parties: &[[u8; 32]; 3],
        state: ContractState,
    ) -> Result<(), StoreError> {
        let first = self.first(&record.id)?;
        if record.version == 1 {
            self.insert(Index::Contracts, &[], first, &record.id, None)?;
            self.insert(Index::LiveContracts, &[], first, &record.id, None)?;
            for party in parties {
                self.insert(Index::ContractsOf, party, first, &record.id, None)?;
                self.insert(Index::LiveContractsOf, party, first, &record.id, None)?;
            }
        }
        if matches!(state, ContractState::Ended(_)) {
            self.remove(Index::LiveContracts, &[], first)?;
            for party in parties {
                self.remove(Index::LiveContractsOf, party, first)?;
            }
        }
        Ok(())
    }
}
