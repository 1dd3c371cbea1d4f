//! The search index: what is kept of each thing, under which keys it is found, and how both follow a block.
//!
//! ```text
//!   record, capacity ──Entry::of──> Entry ──keys_of──> keys in INDEX, each ending with the thing's id
//! ```
//! The keys are a function of the entry, so a change removes those of the old entry and adds those of the new
//! one, in the transaction of its block. Nothing here is proved; it must never miss a thing, and never hold a
//! key that no entry has: the audit checks both.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::api::Phase;
use croft_protocol::record::TrustClass;
use croft_protocol::{
    Body, BotId, Capacity, FarmId, Hash, Kind, Name, NodeCapacity, NodeId, PriceList, PublicKey, Record,
    RecordId, Role, StateKey, encode,
};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, WriteTransaction};

use super::snapshot::{Snapshot, decoded};
use super::tables::{ENTRIES, INDEX, INDEX_VERSION, META, META_INDEX, RECORDS, STATE, VERSIONS};
use super::{Block, StoreError};

/// What the keys of one part of the index are made of, before the id of the thing. The number is the key's
/// first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Part {
    /// Nothing: all farms.
    Farms = 1,
    /// Owner.
    FarmsOfOwner = 2,
    /// Country, region and a zero byte.
    FarmsInCountry = 3,
    /// `Priced` and its price.
    FarmsByPrice = 4,
    /// Nothing: all nodes.
    Nodes = 5,
    /// Farm.
    NodesOfFarm = 6,
    /// `Amount` and how much of it is free; only where some is.
    NodesByFree = 7,
    /// Trust class.
    NodesByTrust = 8,
    /// Whether it has ended.
    Contracts = 9,
    /// User, farmer or node, and whether it has ended.
    ContractsOf = 10,
    /// Phase.
    ContractsByPhase = 11,
    /// Whether it has ended, and when its time is or was over; only where that is known.
    ContractsByExpiry = 12,
    /// Bot and height.
    TransfersOf = 13,
    /// Whether it is withdrawn.
    Recipes = 14,
    /// Author, and whether it is withdrawn.
    RecipesOf = 15,
    /// Nothing: all bots with a profile.
    Bots = 16,
    /// Role.
    BotsByRole = 17,
    /// Capability and a zero byte.
    BotsByCapability = 18,
    /// User or farmer.
    ReservationsOf = 19,
}

/// Resources by which nodes are ordered.
pub(super) const AMOUNTS: usize = 5;
/// Resources that have a price.
pub(super) const PRICED: usize = 4;

/// How much of each resource there is, in the order of the keys.
pub(super) fn amounts(capacity: &Capacity) -> [u64; AMOUNTS] {
    [
        capacity.cpu_millis,
        capacity.memory_bytes,
        capacity.ssd_bytes,
        capacity.hdd_bytes,
        u64::from(capacity.public_addresses),
    ]
}

/// The price of each resource, in the order of the keys.
pub(super) fn unit_prices(prices: &PriceList) -> [u64; PRICED] {
    [prices.cpu, prices.memory_gib, prices.ssd_gib, prices.hdd_gib]
}

/// What searches compare.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) enum Entry {
    Farm(FarmEntry),
    Node(NodeEntry),
    Contract(ContractEntry),
    Recipe(RecipeEntry),
    Bot(BotEntry),
    Reservation(ReservationEntry),
}

/// Of a bot that has a profile; found under the profile's id.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct BotEntry {
    pub(super) name: Name,
    pub(super) roles: BTreeSet<Role>,
    pub(super) capabilities: BTreeSet<Name>,
    pub(super) description: String,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct FarmEntry {
    pub(super) owner: BotId,
    pub(super) country: String,
    pub(super) region: Option<Name>,
    pub(super) prices: PriceList,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct NodeEntry {
    pub(super) farm: FarmId,
    pub(super) trust: TrustClass,
    pub(super) free: Capacity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct ContractEntry {
    pub(super) user: BotId,
    pub(super) farmer: BotId,
    pub(super) node: NodeId,
    pub(super) phase: Phase,
    pub(super) expires_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct RecipeEntry {
    pub(super) author: BotId,
    pub(super) withdrawn: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct ReservationEntry {
    pub(super) user: BotId,
    pub(super) farmer: BotId,
}

impl Entry {
    /// The entry of the latest version of a thing; `None` for kinds that have none. `free` is asked for nodes.
    fn of(
        record: &Record,
        free: impl FnOnce() -> Result<Capacity, StoreError>,
    ) -> Result<Option<Self>, StoreError> {
        Ok(Some(match &record.body {
            Body::Farm(farm) => Self::Farm(FarmEntry {
                owner: farm.owner,
                country: farm.country.clone(),
                region: farm.region.clone(),
                prices: farm.prices,
            }),
            Body::Node(node) => Self::Node(NodeEntry { farm: node.farm, trust: node.trust, free: free()? }),
            Body::Contract(contract) => {
                let terms = &contract.signed.terms;
                Self::Contract(ContractEntry {
                    user: terms.user,
                    farmer: terms.farmer,
                    node: terms.node,
                    phase: contract.state.into(),
                    expires_ms: contract.expires_ms(),
                })
            }
            Body::Recipe(recipe) => {
                Self::Recipe(RecipeEntry { author: recipe.author, withdrawn: recipe.withdrawn.is_some() })
            }
            Body::Profile(profile) => Self::Bot(BotEntry {
                name: profile.name.clone(),
                roles: profile.roles.clone(),
                capabilities: profile.capabilities.clone(),
                description: profile.description.clone(),
            }),
            Body::Reservation(body) => {
                let held = &body.signed.reservation;
                Self::Reservation(ReservationEntry { user: held.user, farmer: held.farmer })
            }
            _ => return Ok(None),
        }))
    }

    /// Everything under which the thing is found.
    fn keys(&self, id: &Hash) -> BTreeSet<Vec<u8>> {
        let mut keys = BTreeSet::new();
        let mut add = |part: Part, pieces: &[&[u8]]| keys.insert([&start(part, pieces), &id.0[..]].concat());
        match self {
            Self::Farm(farm) => {
                add(Part::Farms, &[]);
                add(Part::FarmsOfOwner, &[&farm.owner.0]);
                let region = farm.region.as_ref().map_or("", Name::as_str);
                add(Part::FarmsInCountry, &[farm.country.as_bytes(), region.as_bytes(), &[0]]);
                for (n, price) in (0_u8..).zip(unit_prices(&farm.prices)) {
                    add(Part::FarmsByPrice, &[&[n], &price.to_be_bytes()]);
                }
            }
            Self::Node(node) => {
                add(Part::Nodes, &[]);
                add(Part::NodesOfFarm, &[&node.farm.0.0]);
                add(Part::NodesByTrust, &[&[node.trust as u8]]);
                for (n, amount) in (0_u8..).zip(amounts(&node.free)).filter(|(_, amount)| *amount > 0) {
                    add(Part::NodesByFree, &[&[n], &amount.to_be_bytes()]);
                }
            }
            Self::Contract(contract) => {
                let ended = [u8::from(contract.phase == Phase::Ended)];
                add(Part::Contracts, &[&ended]);
                for party in [&contract.user, &contract.farmer, &contract.node] {
                    add(Part::ContractsOf, &[&party.0, &ended]);
                }
                add(Part::ContractsByPhase, &[&[contract.phase as u8]]);
                if let Some(expires_ms) = contract.expires_ms {
                    add(Part::ContractsByExpiry, &[&ended, &expires_ms.to_be_bytes()]);
                }
            }
            Self::Recipe(recipe) => {
                let withdrawn = [u8::from(recipe.withdrawn)];
                add(Part::Recipes, &[&withdrawn]);
                add(Part::RecipesOf, &[&recipe.author.0, &withdrawn]);
            }
            Self::Bot(bot) => {
                add(Part::Bots, &[]);
                for role in &bot.roles {
                    add(Part::BotsByRole, &[&[*role as u8]]);
                }
                for one in &bot.capabilities {
                    add(Part::BotsByCapability, &[one.as_str().as_bytes(), &[0]]);
                }
            }
            Self::Reservation(reservation) => {
                for party in [&reservation.user, &reservation.farmer] {
                    add(Part::ReservationsOf, &[&party.0]);
                }
            }
        }
        keys
    }
}

/// Start of all keys of a part with these pieces.
pub(super) fn start(part: Part, pieces: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + pieces.iter().map(|piece| piece.len()).sum::<usize>() + 32);
    key.push(part as u8);
    for piece in pieces {
        key.extend_from_slice(piece);
    }
    key
}

/// The thing that a key is of.
pub(super) fn id_of(key: &[u8]) -> Result<Hash, StoreError> {
    match key.last_chunk::<32>() {
        Some(id) => Ok(Hash(*id)),
        None => Err(StoreError::damaged(format!("an index key has {} bytes", key.len()))),
    }
}

/// The keys of a thing of which there is one version only and nothing to compare.
fn keys_of_record(record: &Record) -> BTreeSet<Vec<u8>> {
    let Body::Transfer(transfer) = &record.body else { return BTreeSet::new() };
    let height = record.height.to_be_bytes();
    let of = |bot: &BotId| [&start(Part::TransfersOf, &[&bot.0, &height]), &record.id.id.0[..]].concat();
    BTreeSet::from([of(&transfer.from), of(&transfer.to)])
}

fn is_indexed(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Farm
            | Kind::Node
            | Kind::Contract
            | Kind::Transfer
            | Kind::Recipe
            | Kind::Profile
            | Kind::Reservation
    )
}

struct Writer<'t> {
    state: Table<'t, &'static [u8], &'static [u8]>,
    index: Table<'t, &'static [u8], ()>,
    entries: Table<'t, &'static [u8], &'static [u8]>,
}

impl<'t> Writer<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            state: transaction.open_table(STATE)?,
            index: transaction.open_table(INDEX)?,
            entries: transaction.open_table(ENTRIES)?,
        })
    }

    fn free(&self, node: &NodeId) -> Result<Capacity, StoreError> {
        match self.state.get(encode(&StateKey::Capacity(*node)).as_slice())? {
            Some(bytes) => Ok(decoded::<NodeCapacity>("a node's capacity", bytes.value())?.free()),
            None => Ok(Capacity::default()),
        }
    }

    fn entry(&self, id: &RecordId) -> Result<Option<Entry>, StoreError> {
        let entry = self.entries.get(encode(id).as_slice())?;
        entry.map(|bytes| decoded("an index entry", bytes.value())).transpose()
    }

    /// The newest version of a thing.
    fn record(&mut self, record: &Record) -> Result<(), StoreError> {
        let node = PublicKey(record.id.id.0);
        if let Some(entry) = Entry::of(record, || self.free(&node))? {
            return self.replace(&record.id, &entry);
        }
        for key in keys_of_record(record) {
            self.index.insert(key.as_slice(), ())?;
        }
        Ok(())
    }

    /// What is free on a node whose record has not changed.
    fn capacity(&mut self, node: &NodeId) -> Result<(), StoreError> {
        let id = RecordId::node(node);
        let Some(Entry::Node(entry)) = self.entry(&id)? else {
            return Err(StoreError::damaged(format!("node {node} has capacity, but no entry in the index")));
        };
        let free = self.free(node)?;
        self.replace(&id, &Entry::Node(NodeEntry { free, ..entry }))
    }

    fn replace(&mut self, id: &RecordId, entry: &Entry) -> Result<(), StoreError> {
        let old = self.entry(id)?;
        if old.as_ref() == Some(entry) {
            return Ok(());
        }
        let before = old.map(|old| old.keys(&id.id)).unwrap_or_default();
        let after = entry.keys(&id.id);
        for key in before.difference(&after) {
            self.index.remove(key.as_slice())?;
        }
        for key in after.difference(&before) {
            self.index.insert(key.as_slice(), ())?;
        }
        self.entries.insert(encode(id).as_slice(), encode(entry).as_slice())?;
        Ok(())
    }
}

/// Updates the index from a block whose records and state are written already.
pub(super) fn update(transaction: &WriteTransaction, block: &Block) -> Result<(), StoreError> {
    let mut writer = Writer::open(transaction)?;
    // The last version in a block is the newest; a map keeps it.
    let records = block.outcome.records.iter().filter(|record| is_indexed(record.id.kind));
    let newest: BTreeMap<RecordId, &Record> = records.map(|record| (record.id, record)).collect();
    for record in newest.values() {
        writer.record(record)?;
    }
    for key in block.outcome.writes.keys() {
        if let StateKey::Capacity(node) = key
            && !newest.contains_key(&RecordId::node(node))
        {
            writer.capacity(node)?;
        }
    }
    Ok(())
}

/// Makes the index where it is missing or that of another release.
pub(super) fn ensure(database: &Database) -> Result<(), StoreError> {
    let version = INDEX_VERSION.to_le_bytes();
    {
        let meta = database.begin_read()?.open_table(META)?;
        if meta.get(META_INDEX)?.is_some_and(|known| known.value() == version) {
            return Ok(());
        }
    }
    let transaction = database.begin_write()?;
    rebuild(&transaction)?;
    transaction.open_table(META)?.insert(META_INDEX, version.as_slice())?;
    transaction.commit()?;
    Ok(())
}

/// Makes the index anew from the records and the state in the file: for a ledger that came by another way
/// than block by block.
pub(super) fn rebuild(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.delete_table(INDEX)?;
    transaction.delete_table(ENTRIES)?;
    let mut writer = Writer::open(transaction)?;
    let versions = transaction.open_table(VERSIONS)?;
    let records = transaction.open_table(RECORDS)?;
    // Versions of a thing stand together, the newest last: each is known to be so when the next is another's.
    let mut newest: Option<(Vec<u8>, u64)> = None;
    let mut add = |position: u64| -> Result<(), StoreError> {
        let bytes = records.get(position)?;
        let bytes = bytes.ok_or_else(|| StoreError::damaged(format!("record {position} is missing")))?;
        let record: Record = decoded("a record", bytes.value())?;
        if is_indexed(record.id.kind) { writer.record(&record) } else { Ok(()) }
    };
    for version in versions.iter()? {
        let (key, position) = version?;
        let (thing, _) = key
            .value()
            .split_last_chunk::<8>()
            .ok_or_else(|| StoreError::damaged("a version has no number"))?;
        if let Some((before, position)) = newest.take()
            && before != thing
        {
            add(position)?;
        }
        newest = Some((thing.to_vec(), position.value()));
    }
    match newest {
        Some((_, position)) => add(position),
        None => Ok(()),
    }
}

/// Counts the keys and entries that the things of a ledger should have, and finds the first that is not there.
#[derive(Debug, Default)]
pub(super) struct Check {
    keys: u64,
    entries: u64,
}

impl Check {
    /// The newest version of a thing.
    pub(super) fn record(&mut self, snapshot: &Snapshot, record: &Record) -> Result<(), StoreError> {
        let id = record.id;
        if !is_indexed(id.kind) {
            return Ok(());
        }
        let entry = Entry::of(record, || snapshot.free(&PublicKey(id.id.0)))?;
        let keys = match &entry {
            None => keys_of_record(record),
            Some(entry) => {
                self.entries += 1;
                if snapshot.entry(&id)?.as_ref() != Some(entry) {
                    return Err(StoreError::damaged(format!(
                        "the index entry of {id:?} is not that of its record"
                    )));
                }
                entry.keys(&id.id)
            }
        };
        for key in keys {
            self.keys += 1;
            if snapshot.index().get(key.as_slice())?.is_none() {
                let part = key[0];
                return Err(StoreError::damaged(format!("{id:?} is missing in part {part} of the index")));
            }
        }
        Ok(())
    }

    /// Nothing else is in the index.
    pub(super) fn finish(self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let (keys, entries) = (snapshot.index().len()?, snapshot.entries().len()?);
        if (keys, entries) != (self.keys, self.entries) {
            return Err(StoreError::damaged(format!(
                "the index has {keys} keys and {entries} entries, the records make {} and {}",
                self.keys, self.entries
            )));
        }
        Ok(())
    }
}
