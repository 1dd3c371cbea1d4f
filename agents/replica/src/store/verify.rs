//! A whole ledger, checked from its first block to its last as somebody would who trusts nothing but the genesis.
//!
//! ```text
//!   genesis ──> block 0 ──> … each block: header, certificate, records, log root ──> state, its root, its sums
//!                                                                                            │
//!                                                               the file itself: trees, versions, index
//! ```
//! Nothing stored is taken for granted that can be made anew: log roots come from the records, the state's root
//! from its values. A ledger that began with a snapshot has no blocks below it: there the handovers from the
//! genesis on lead to the first header, whose log root all earlier records must make. It stops at the first thing that is wrong and says at which height. It must never write.

use std::collections::BTreeMap;

use croft_ledger::log_tree::Replay;
use croft_ledger::{BrokenInvariant, check_invariants, state_map};
use croft_light::LightClient;
use croft_protocol::{
    Body, Capacity, ChainId, ContractId, ContractState, Genesis, Grains, Hash, Header, Name, NodeId,
    PublicKey, Record, RecordId, StateKey, decode, limits,
};
use redb::ReadableDatabase;

use super::snapshot::{Snapshot, identify};
use super::tables::FORMAT;
use super::{Disk, OpenError, StoreError, audit, write};

/// What a whole check found to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub grid: Name,
    pub chain: ChainId,
    /// Height of the first block that is here.
    pub first: u64,
    pub height: u64,
    pub records: u64,
    /// Values of the state, the latest versions of records among them.
    pub values: u64,
    /// Blocks after which other validators certified.
    pub handovers: u64,
    pub contracts: u64,
    /// All grains: what accounts have and escrows hold.
    pub supply: Grains,
}

/// The first thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("block {height} is wrong: {what}")]
    Wrong { height: u64, what: String },
    /// The ledger's content is right, but not what this file has made of it to find and prove it.
    #[error("all blocks are right, but the file around them is not: {what}")]
    File { what: String },
    #[error("the ledger's file can't be read")]
    Read(#[source] StoreError),
}

fn wrong(height: u64, what: impl Into<String>) -> VerifyError {
    VerifyError::Wrong { height, what: what.into() }
}

fn expect(holds: bool, height: u64, what: impl FnOnce() -> String) -> Result<(), VerifyError> {
    if holds { Ok(()) } else { Err(wrong(height, what())) }
}

/// What could not be read belongs to the height that was being looked at.
fn at(height: u64) -> impl Fn(StoreError) -> VerifyError {
    move |error| match error {
        StoreError::Damaged { what } => wrong(height, what),
        error => VerifyError::Read(error),
    }
}

/// Checks a whole ledger on a disk. `genesis` is what its grid began with, as its owner knows it; without it the
/// file's own is taken, and only its chain id tells whose ledger it is. `progress` hears of blocks done and in
/// all.
///
/// # Errors
/// [`VerifyError`] names the first thing that is wrong, with the height of its block.
pub fn verify(
    disk: &dyn Disk,
    genesis: Option<&Genesis>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Verified, VerifyError> {
    let database = disk.open()?;
    let read = |error: StoreError| VerifyError::Read(error);
    let transaction = database.begin_read().map_err(|error| read(error.into()))?;
    let path = disk.path().to_owned();
    let damaged = |error: StoreError| match error {
        StoreError::Damaged { what } => OpenError::Damaged { path: path.clone(), reason: what }.into(),
        error => VerifyError::Read(error),
    };
    let (format, _) = identify(&transaction).map_err(damaged)?;
    if format != FORMAT {
        return Err(OpenError::Format { path, found: format, expected: FORMAT }.into());
    }
    let snapshot = Snapshot::new(&transaction).map_err(damaged)?;
    let stored = snapshot.genesis().clone();
    let genesis = genesis.unwrap_or(&stored);
    if stored != *genesis {
        let (found, expected) = (stored.chain_id(), genesis.chain_id());
        return Err(OpenError::WrongChain { path, found, expected }.into());
    }
    let tip = snapshot.height();
    let first = snapshot.base();
    let mut walk = Walk::new(genesis)?;
    if first > 0 {
        walk.hand_over(&snapshot)?;
    }
    for height in first..=tip {
        walk.block(&snapshot, height)?;
        progress(height - first + 1, tip - first + 1);
    }
    let values = check_state(&snapshot, &walk, genesis)?;
    let whole = audit::audit(&snapshot, &genesis.chain_id());
    whole.map_err(|error| match error {
        StoreError::Damaged { what } => VerifyError::File { what },
        error => VerifyError::Read(error),
    })?;
    Ok(Verified {
        grid: genesis.name.clone(),
        chain: genesis.chain_id(),
        first,
        height: tip,
        records: walk.log.head().size,
        values,
        handovers: walk.handovers,
        contracts: walk.books.contracts,
        supply: supply_of(genesis).unwrap_or_default(),
    })
}

/// What the blocks so far have come to.
struct Walk<'g> {
    genesis: &'g Genesis,
    /// What the genesis makes: its header, and the hashes of its records.
    made: (Header, Vec<Hash>),
    before: Option<Header>,
    /// Height of the record before.
    dated: u64,
    log: Replay,
    /// Version and hash of the newest record of each thing.
    newest: BTreeMap<RecordId, (u64, Hash)>,
    /// Hash of the set that certifies the next block.
    validators: Hash,
    handovers: u64,
    books: Books,
}

impl<'g> Walk<'g> {
    fn new(genesis: &'g Genesis) -> Result<Self, VerifyError> {
        let (header, records) = write::made_by(genesis).map_err(|what| wrong(0, what))?;
        Ok(Self {
            genesis,
            made: (header, records.iter().map(Record::hash).collect()),
            before: None,
            dated: 0,
            log: Replay::default(),
            newest: BTreeMap::new(),
            validators: genesis.validators.hash(),
            handovers: 0,
            books: Books::default(),
        })
    }

    /// From the genesis' validators to those who certified the first block that is here.
    fn hand_over(&mut self, snapshot: &Snapshot) -> Result<(), VerifyError> {
        let mut light = LightClient::new(self.genesis.chain_id(), self.validators);
        self.handovers += audit::walk_to_base(snapshot, &mut light).map_err(at(snapshot.base()))?;
        self.validators = light.trusted();
        Ok(())
    }

    fn block(&mut self, snapshot: &Snapshot, height: u64) -> Result<(), VerifyError> {
        let signed = snapshot.header(height).map_err(at(height))?;
        let signed = signed.ok_or_else(|| wrong(height, "its header is missing"))?;
        let header = signed.header;
        self.check_header(&header, height)?;
        croft_light::verify_certificate(&signed).map_err(|error| wrong(height, error.to_string()))?;
        expect(height > 0 || header == self.made.0, 0, || "it is not what the genesis makes".to_owned())?;
        let mut next_validators = self.validators;
        for position in self.log.head().size..header.log_size {
            let bytes = snapshot.record_bytes(position).map_err(at(height))?;
            let bytes = bytes.ok_or_else(|| wrong(height, format!("record {position} is missing")))?;
            self.log.push(&bytes);
            let record: Record = decode("a record", &bytes, limits::RECORD_BYTES)
                .map_err(|error| wrong(height, format!("record {position}: {error}")))?;
            self.check_record(&header, position, &record, Hash::of_bytes(&bytes))?;
            if let Body::Validators(set) = &record.body {
                next_validators = set.hash();
            }
            self.books.record(&record).map_err(|what| wrong(height, what))?;
        }
        expect(self.log.head().root == header.log_root, height, || {
            "its log root is not that of the records up to it".to_owned()
        })?;
        expect(header.next_validators == next_validators, height, || {
            "the next validators that it names are not those of the validators' record".to_owned()
        })?;
        self.handovers += u64::from(next_validators != self.validators);
        self.validators = next_validators;
        self.before = Some(header);
        Ok(())
    }

    fn check_header(&self, header: &Header, height: u64) -> Result<(), VerifyError> {
        let prev = match self.before {
            Some(before) => before.hash(),
            None if height == 0 => Hash::ZERO,
            // What came before the snapshot is not here.
            None => header.prev,
        };
        let later = self.before.is_none_or(|before| header.time_ms > before.time_ms);
        let rules = [
            (header.chain == self.genesis.chain_id(), "its header is of another chain"),
            (header.height == height, "its header is of another height"),
            (header.prev == prev, "it does not name the block before it"),
            (later, "its time is not later than that of the block before it"),
            (header.log_size >= self.log.head().size, "its log is shorter than that of the block before it"),
            (header.validators == self.validators, "it is certified by other validators than are in force"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(wrong(height, *what)),
            None => Ok(()),
        }
    }

    fn check_record(
        &mut self,
        header: &Header,
        position: u64,
        record: &Record,
        hash: Hash,
    ) -> Result<(), VerifyError> {
        let (id, height) = (record.id, header.height);
        let before = self.newest.get(&id).copied();
        let (version, prev) = before.map_or((0, None), |(version, hash)| (version, Some(hash)));
        let about = || format!("record {position}, version {} of {:?} {}", record.version, id.kind, id.id);
        expect(record.body.kind() == id.kind, height, || format!("{} says something else", about()))?;
        let own = record.height == height && record.time_ms == header.time_ms;
        // The first block that is here brings the records of all before it.
        let earlier = self.before.is_none() && (self.dated..height).contains(&record.height);
        expect(own || earlier, height, || format!("{} is dated to another block", about()))?;
        self.dated = record.height;
        let genesis = self.made.1.get(usize::try_from(position).unwrap_or(usize::MAX));
        expect(genesis.is_none_or(|made| *made == hash), height, || {
            format!("{} is not the one that the genesis makes", about())
        })?;
        expect(record.version == version + 1 && record.prev == prev, height, || {
            format!("{} does not name version {version} as the one before it", about())
        })?;
        self.newest.insert(id, (record.version, hash));
        Ok(())
    }
}

/// What of each node is sold, by the records alone.
#[derive(Default)]
struct Books {
    total: BTreeMap<NodeId, Capacity>,
    used: BTreeMap<NodeId, Capacity>,
    /// What running contracts have.
    running: BTreeMap<ContractId, (NodeId, Capacity)>,
    contracts: u64,
}

impl Books {
    fn record(&mut self, record: &Record) -> Result<(), String> {
        let id = record.id.id;
        match &record.body {
            Body::Node(node) => drop(self.total.insert(PublicKey(id.0), node.capacity)),
            Body::Contract(contract) => {
                let (terms, id) = (&contract.signed.terms, ContractId(id));
                if record.version == 1 {
                    self.contracts += 1;
                    self.sell(id, terms.node, terms.resources)?;
                }
                if matches!(contract.state, ContractState::Ended(_))
                    && let Some((node, resources)) = self.running.remove(&id)
                    && let Some(used) = self.used.get_mut(&node)
                {
                    *used = used.saturating_sub(&resources);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn sell(&mut self, id: ContractId, node: NodeId, resources: Capacity) -> Result<(), String> {
        let total = self.total.get(&node).ok_or_else(|| format!("contract {id} is on an unknown node"))?;
        let used = self.used.entry(node).or_default();
        let sum = used.checked_add(&resources).filter(|sum| total.covers(sum));
        *used = sum.ok_or_else(|| format!("contract {id} takes more than node {node} has left"))?;
        self.running.insert(id, (node, resources));
        Ok(())
    }
}

fn supply_of(genesis: &Genesis) -> Option<Grains> {
    let faucet = genesis.faucet.iter().map(|faucet| faucet.fund);
    let grains = genesis.allocations.iter().map(|allocation| allocation.grains).chain(faucet);
    grains.into_iter().try_fold(Grains::ZERO, Grains::checked_add)
}

/// The state is that of the records, its root is the tip's, and its sums are right.
fn check_state(snapshot: &Snapshot, walk: &Walk<'_>, genesis: &Genesis) -> Result<u64, VerifyError> {
    let height = snapshot.height();
    let mut state: BTreeMap<StateKey, Vec<u8>> = BTreeMap::new();
    for (id, (version, hash)) in &walk.newest {
        let position = snapshot.position(id, *version).map_err(at(height))?;
        let bytes = match position {
            Some(position) => snapshot.record_bytes(position).map_err(at(height))?,
            None => None,
        };
        let bytes = bytes.filter(|bytes| Hash::of_bytes(bytes) == *hash).ok_or_else(|| {
            VerifyError::File { what: format!("the newest version of {:?} {} is not found", id.kind, id.id) }
        })?;
        state.insert(StateKey::Record(*id), bytes);
    }
    let others = snapshot.each_value(|key, value| {
        if matches!(key, StateKey::Record(_)) {
            return Err(StoreError::damaged(format!("{key:?} stands among the values")));
        }
        state.insert(key, value);
        Ok(())
    });
    others.map_err(at(height))?;
    let root = state_map::root_of(state.iter().map(|(key, value)| (key.clone(), Hash::of_bytes(value))));
    // What is not conserved says more than that the root is another one.
    let sums = check_sums(&state, genesis);
    sums.map_err(|BrokenInvariant(what)| wrong(height, what))?;
    expect(root == snapshot.tip().header.state_root, height, || {
        "its state root is not that of the records and values in the file".to_owned()
    })?;
    Ok(state.len() as u64)
}

fn check_sums(state: &BTreeMap<StateKey, Vec<u8>>, genesis: &Genesis) -> Result<(), BrokenInvariant> {
    check_invariants(state.iter().map(|(key, value)| (key, value.as_slice())))?;
    let supply = state.get(&StateKey::Supply).and_then(|bytes| borsh::from_slice::<Grains>(bytes).ok());
    if supply == supply_of(genesis) {
        return Ok(());
    }
    let (now, first) = (supply.unwrap_or_default(), supply_of(genesis).unwrap_or_default());
    Err(BrokenInvariant(format!("there are {now}, the genesis made {first}")))
}

#[cfg(test)]
mod tests;
