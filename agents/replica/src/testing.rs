//! People, farms and blocks for tests.

use croft_ledger::{StateReadExt, assemble};
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::contract::Quorum;
use croft_protocol::header::Allocation;
use croft_protocol::keys::Domain;
use croft_protocol::record::{HardwareSummary, NodeBody, TrustClass};
use croft_protocol::{
    Capacity, ChainId, Command, CommandBody, Endorsement, FarmId, Genesis, Grains, Hash, Header, Name,
    PriceList, Rate, Record, SecretKey, SignedCommand, SignedHeader, SignedTerms, Terms, TrustPolicy,
    ValidatorSet, limits,
};

use crate::ordering::make_block;
use crate::store::faults::MemoryDisk;
use crate::store::{Block, Snapshot, Store};

pub(crate) const START_MS: u64 = 1_800_000_000_000;
/// Digest of the one boot file that this grid knows.
pub(crate) const BOOT_FILE: Hash = Hash([0x11; 32]);

pub(crate) fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A grid with one validator, a user, a farmer and a machine.
#[derive(Debug)]
pub(crate) struct Grid {
    pub(crate) genesis: Genesis,
    pub(crate) validator: SecretKey,
    pub(crate) user: SecretKey,
    pub(crate) farmer: SecretKey,
    pub(crate) node: SecretKey,
}

impl Grid {
    pub(crate) fn new() -> Self {
        let (validator, user, farmer, node) = (key(100), key(1), key(2), key(3));
        let allocations = [("alice", &user), ("fred", &farmer)].map(|(bot, key)| Allocation {
            name: name(bot),
            bot: key.public(),
            grains: Grains(1_000_000),
        });
        let genesis = Genesis {
            name: name("test"),
            time_ms: START_MS,
            validators: ValidatorSet::of_equals(&[validator.public()]),
            allocations: allocations.to_vec(),
            trust: TrustPolicy {
                endorsement: Endorsement::Unchecked,
                boot_files: vec![BOOT_FILE],
                ..TrustPolicy::default()
            },
            faucet: None,
        };
        Self { genesis, validator, user, farmer, node }
    }

    pub(crate) fn chain(&self) -> ChainId {
        self.genesis.chain_id()
    }

    pub(crate) fn certify(&self, header: Header) -> SignedHeader {
        let keys = std::slice::from_ref(&self.validator);
        assemble::certify(header, 0, self.genesis.validators.clone(), keys)
    }

    /// A ledger in memory with the genesis block.
    pub(crate) fn store(&self) -> (Store, MemoryDisk) {
        let disk = MemoryDisk::new();
        let store =
            Store::create_on(Box::new(disk.clone()), &self.genesis, &|header| self.certify(header)).unwrap();
        (store, disk)
    }

    pub(crate) fn open(&self, disk: &MemoryDisk) -> Result<Store, crate::store::OpenError> {
        Store::open_on(Box::new(disk.clone()), &self.genesis)
    }

    /// The next block, not committed.
    pub(crate) fn block(&self, store: &Store, commands: &[SignedCommand]) -> Block {
        let before = store.latest();
        let time_ms = before.tip().header.time_ms + 1_000;
        make_block(&before, time_ms, commands, |header| self.certify(header)).unwrap()
    }

    /// Commits one block; every command must succeed.
    pub(crate) fn commit(&self, store: &Store, commands: &[SignedCommand]) -> Vec<Record> {
        let block = self.block(store, commands);
        for result in &block.outcome.results {
            result.as_ref().unwrap();
        }
        store.commit(&block).unwrap();
        block.outcome.records
    }

    /// Signs with the author's next sequence number plus `ahead`.
    pub(crate) fn sign(
        &self,
        view: &Snapshot,
        key: &SecretKey,
        ahead: u64,
        command: Command,
    ) -> SignedCommand {
        let author = key.public();
        let body = CommandBody {
            chain: self.chain(),
            author,
            sequence: view.account(&author).unwrap().next_sequence + ahead,
            expires_height: view.height() + limits::EXPIRY_BLOCKS,
            command,
        };
        SignedCommand::sign(body, key)
    }

    pub(crate) fn farm(&self) -> FarmId {
        FarmId::new(&self.farmer.public(), &name("green"))
    }

    pub(crate) fn create_farm() -> Command {
        let prices = PriceList { cpu: 10, memory_gib: 0, ssd_gib: 0, hdd_gib: 0 };
        Command::CreateFarm { name: name("green"), country: "be".to_owned(), region: None, prices }
    }

    pub(crate) fn node_body(&self, called: &str, session: u64) -> NodeBody {
        NodeBody {
            farm: self.farm(),
            name: name(called),
            sealing_key: [7; 32],
            capacity: Capacity { cpu_millis: 8_000, memory_bytes: 16 << 30, ..Capacity::default() },
            hardware: HardwareSummary::default(),
            trust: TrustClass::Plain,
            addresses: vec!["192.0.2.1".to_owned()],
            release: "0.1.0".to_owned(),
            session,
            troubles: Vec::new(),
        }
    }

    pub(crate) fn register(&self, called: &str) -> Command {
        let join = Join { farm: self.farm(), expires_ms: START_MS * 2, nonce: [1; 16] };
        let signature = self.farmer.sign_as_bot(Domain::JOIN, &self.chain(), &join);
        Command::RegisterNode {
            node: self.node_body(called, 1),
            join: Some(SignedJoin { join, signature }),
            attestation: None,
        }
    }

    pub(crate) fn terms(&self, called: &str, capacity_version: u64) -> Terms {
        Terms {
            name: name(called),
            user: self.user.public(),
            farmer: self.farmer.public(),
            farm: self.farm(),
            node: self.node.public(),
            resources: Capacity { cpu_millis: 1_000, memory_bytes: 1 << 30, ..Capacity::default() },
            ports: Vec::new(),
            rate: Rate(10),
            duration_s: 1_000,
            grace_s: 3_600,
            prepaid_s: None,
            capacity_version,
            quorum: Quorum::default(),
            sealed: vec![5; 100],
            expires_ms: START_MS * 2,
            nonce: Hash::of_bytes(called.as_bytes()).0[..16].try_into().unwrap(),
        }
    }

    pub(crate) fn agree(&self, terms: Terms) -> Command {
        let user = self.user.sign_as_bot(Domain::TERMS, &self.chain(), &terms);
        let farmer = self.farmer.sign_as_bot(Domain::TERMS, &self.chain(), &terms);
        Command::Agree(Box::new(SignedTerms { terms, user, farmer }))
    }

    pub(crate) fn pay(&self, grains: u64) -> Command {
        Command::Transfer { to: self.farmer.public(), amount: Grains(grains), memo: "thanks".to_owned() }
    }

    /// Blocks 1 to 3: a farm, its node, and a contract on it.
    pub(crate) fn populate(&self, store: &Store) {
        let farm = self.sign(&store.latest(), &self.farmer, 0, Self::create_farm());
        self.commit(store, &[farm]);
        let node = self.sign(&store.latest(), &self.node, 0, self.register("n1"));
        self.commit(store, &[node]);
        let agree = self.sign(&store.latest(), &self.user, 0, self.agree(self.terms("web", 1)));
        self.commit(store, &[agree]);
    }
}
