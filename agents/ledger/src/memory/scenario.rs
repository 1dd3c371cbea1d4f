//! A small grid that most tests start from: a user, a farmer with a farm and a node, and a bystander.

use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::contract::{Quorum, SignedTerms};
use croft_protocol::header::Allocation;
use croft_protocol::keys::Domain;
use croft_protocol::market::{NegotiationId, RESERVATION, Reservation, SignedReservation};
use croft_protocol::record::{
    BotBody, ContractReport, HardwareSummary, NodeBody, ReportBody, TrustClass, WorkloadState,
};
use croft_protocol::{
    Announcement, Capacity, Command, ContractBody, ContractId, Escrow, FarmId, Faucet, Genesis, Grains, Hash,
    Name, NodeId, PriceList, Rate, Rejection, SecretKey, Terms, TrustPolicy, ValidatorSet,
};

use super::MemoryLedger;
use crate::block::Receipt;
use crate::state::StateReadExt;

/// Time of the genesis: milliseconds since 1970, UTC.
pub const START_MS: u64 = 1_700_000_000_000;
/// What each of the three bots owns in the beginning.
pub const ALLOWANCE: Grains = Grains(1_000_000);

/// The grid and everybody's keys.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub ledger: MemoryLedger,
    pub validators: Vec<SecretKey>,
    pub user: SecretKey,
    pub farmer: SecretKey,
    /// A bot that is no party to anything.
    pub other: SecretKey,
    pub node: SecretKey,
    pub farm: FarmId,
}

/// A key that depends on a number only.
#[must_use]
pub fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

/// A name that is known to be one.
///
/// # Panics
/// When it isn't.
#[must_use]
pub fn name(text: &str) -> Name {
    text.parse().expect("the test's name is a name")
}

impl Default for Scenario {
    fn default() -> Self {
        Self::new()
    }
}

impl Scenario {
    /// Bots `alice` (user), `fred` (farmer) and `olga` (other), fred's farm `green` with prices, and its node
    /// `n1` with 8 CPUs, 16 GiB and 100 GiB of SSD. Four validators, of whom three are needed.
    ///
    /// # Panics
    /// When the state machine refuses what it must accept.
    #[must_use]
    pub fn new() -> Self {
        Self::without_node().joined()
    }

    fn joined(mut self) -> Self {
        let register =
            Command::RegisterNode { node: self.node_body(), join: Some(self.join()), attestation: None };
        let node = self.node.clone();
        self.ledger.submit(&node, register).expect("the node may join");
        self
    }

    /// The same before the node registers.
    ///
    /// # Panics
    /// When the state machine refuses what it must accept.
    #[must_use]
    pub fn without_node() -> Self {
        Self::of_validators(&[101, 102, 103, 104])
    }

    /// The same with other validators, given by the numbers of their keys, all of the same power.
    ///
    /// # Panics
    /// When the state machine refuses what it must accept.
    #[must_use]
    pub fn of_validators(numbers: &[u8]) -> Self {
        let publics: Vec<_> = numbers.iter().map(|n| key(*n).public()).collect();
        Self::with_validators(ValidatorSet::of_equals(&publics), numbers)
    }

    /// The same with any set of validators, whose keys have these numbers.
    ///
    /// # Panics
    /// When the state machine refuses what it must accept.
    #[must_use]
    pub fn with_validators(set: ValidatorSet, numbers: &[u8]) -> Self {
        Self::with_policy(set, numbers, TrustPolicy::default())
    }

    /// The same with a policy for nodes' TPMs.
    ///
    /// # Panics
    /// When the state machine refuses what it must accept.
    #[must_use]
    pub fn with_policy(set: ValidatorSet, numbers: &[u8], trust: TrustPolicy) -> Self {
        Self::with_genesis(set, numbers, trust, None)
    }

    /// [`Self::new`] with a faucet.
    ///
    /// # Panics
    /// When the state machine refuses what it must accept.
    #[must_use]
    pub fn with_faucet(faucet: Faucet) -> Self {
        let numbers = [101, 102, 103, 104];
        let publics = numbers.map(|n| key(n).public());
        let set = ValidatorSet::of_equals(&publics);
        Self::with_genesis(set, &numbers, TrustPolicy::default(), Some(faucet)).joined()
    }

    fn with_genesis(set: ValidatorSet, numbers: &[u8], trust: TrustPolicy, faucet: Option<Faucet>) -> Self {
        let (user, farmer, other, node) = (key(1), key(2), key(3), key(4));
        let validators: Vec<_> = numbers.iter().map(|n| key(*n)).collect();
        let genesis = Genesis {
            name: name("test"),
            time_ms: START_MS,
            validators: set,
            allocations: [("alice", &user), ("fred", &farmer), ("olga", &other)]
                .map(|(bot, key)| Allocation { name: name(bot), bot: key.public(), grains: ALLOWANCE })
                .to_vec(),
            trust,
            faucet,
        };
        let mut ledger = MemoryLedger::new(genesis, validators.clone()).expect("the genesis is valid");
        let farm = FarmId::new(&farmer.public(), &name("green"));
        let prices = PriceList { cpu: 10, memory_gib: 2, ssd_gib: 1, hdd_gib: 0 };
        let create =
            Command::CreateFarm { name: name("green"), country: "be".to_owned(), region: None, prices };
        ledger.submit(&farmer, create).expect("a farm can be opened");
        Self { ledger, validators, user, farmer, other, node, farm }
    }

    /// Time of the tip: milliseconds since 1970, UTC.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.ledger.tip().header.time_ms
    }

    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.node.public()
    }

    /// What the node says of itself in its first boot.
    #[must_use]
    pub fn node_body(&self) -> NodeBody {
        NodeBody {
            farm: self.farm,
            name: name("n1"),
            sealing_key: [7; 32],
            capacity: Capacity {
                cpu_millis: 8000,
                memory_bytes: 16 << 30,
                ssd_bytes: 100 << 30,
                ..Capacity::default()
            },
            hardware: HardwareSummary {
                cpu_model: "test".to_owned(),
                threads: 8,
                vendor: "croft".to_owned(),
                product: "scenario".to_owned(),
                inventory: Hash([9; 32]),
            },
            trust: TrustClass::Plain,
            addresses: vec!["192.0.2.1".to_owned()],
            release: "0.1.0".to_owned(),
            session: 1,
            troubles: Vec::new(),
        }
    }

    /// The farmer's permission to join, good for an hour.
    #[must_use]
    pub fn join(&self) -> SignedJoin {
        self.join_of(Join { farm: self.farm, expires_ms: self.now_ms() + 3_600_000, nonce: [1; 16] })
    }

    /// A permission that the farmer signed.
    #[must_use]
    pub fn join_of(&self, join: Join) -> SignedJoin {
        let signature = self.farmer.sign_as_bot(Domain::JOIN, &self.ledger.chain(), &join);
        SignedJoin { join, signature }
    }

    /// One CPU and 1 GiB for 1000 seconds at 10 grains each, without ports and approvers.
    #[must_use]
    pub fn terms(&self, called: &str) -> Terms {
        Terms {
            name: name(called),
            user: self.user.id(),
            farmer: self.farmer.id(),
            farm: self.farm,
            node: self.node_id(),
            resources: Capacity { cpu_millis: 1000, memory_bytes: 1 << 30, ..Capacity::default() },
            ports: Vec::new(),
            rate: Rate(10),
            duration_s: 1000,
            grace_s: 3600,
            prepaid_s: None,
            capacity_version: 1,
            quorum: Quorum::default(),
            sealed: vec![5; 100],
            expires_ms: self.now_ms() + 600_000,
            nonce: [2; 16],
        }
    }

    /// Both parties' signatures.
    #[must_use]
    pub fn sign(&self, terms: Terms) -> SignedTerms {
        let chain = self.ledger.chain();
        let user = self.user.sign_as_bot(Domain::TERMS, &chain, &terms);
        let farmer = self.farmer.sign_as_bot(Domain::TERMS, &chain, &terms);
        SignedTerms { terms, user, farmer }
    }

    /// Both sign, the user brings it.
    ///
    /// # Errors
    /// [`Rejection`] when the ledger refuses.
    pub fn agree(&mut self, terms: Terms) -> Result<ContractId, Rejection> {
        let id = terms.id();
        let command = Command::Agree(Box::new(self.sign(terms)));
        let user = self.user.clone();
        self.ledger.submit(&user, command).map(|_| id)
    }

    /// A reservation for these terms, signed by both, with the farmer's approval of the terms.
    #[must_use]
    pub fn announcement(&self, terms: Terms, fee: Grains) -> Announcement {
        let chain = self.ledger.chain();
        let negotiation = NegotiationId(Hash([4; 32]));
        let reservation = Reservation::of(negotiation, &terms, fee);
        let reservation = SignedReservation {
            user: self.user.sign_as_bot(RESERVATION, &chain, &reservation),
            farmer: self.farmer.sign_as_bot(RESERVATION, &chain, &reservation),
            reservation,
        };
        let approval = self.farmer.sign_as_bot(Domain::TERMS, &chain, &terms);
        Announcement { reservation, terms, approval }
    }

    /// Both sign, the farmer announces it.
    ///
    /// # Errors
    /// [`Rejection`] when the ledger refuses.
    pub fn reserve(&mut self, terms: Terms, fee: Grains) -> Result<ContractId, Rejection> {
        let id = terms.id();
        let command = Command::AnnounceReservation(Box::new(self.announcement(terms, fee)));
        let farmer = self.farmer.clone();
        self.ledger.submit(&farmer, command).map(|_| id)
    }

    /// A report by the node in its first session, in a block at `until_ms`.
    ///
    /// # Errors
    /// [`Rejection`] when the ledger refuses.
    pub fn report(
        &mut self,
        from_ms: u64,
        until_ms: u64,
        lines: Vec<(ContractId, WorkloadState, u64)>,
    ) -> Result<Receipt, Rejection> {
        let report = self.report_body(from_ms, until_ms, lines);
        let (node, at_ms) = (self.node.clone(), until_ms.max(self.now_ms() + 1));
        self.ledger.submit_at(at_ms, &node, Command::Report(report))
    }

    #[must_use]
    pub fn report_body(
        &self,
        from_ms: u64,
        until_ms: u64,
        lines: Vec<(ContractId, WorkloadState, u64)>,
    ) -> ReportBody {
        let line =
            |(contract, state, ran_ms)| ContractReport { contract, state, ran_ms, detail: String::new() };
        ReportBody {
            node: self.node_id(),
            session: 1,
            from_ms,
            until_ms,
            contracts: lines.into_iter().map(line).collect(),
        }
    }

    /// A contract's latest version.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn contract(&self, id: &ContractId) -> ContractBody {
        self.ledger.contract(id).expect("memory can be read").expect("the contract exists")
    }

    /// A contract's money.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn escrow(&self, id: &ContractId) -> Escrow {
        self.ledger.escrow(id).expect("memory can be read").expect("the contract exists")
    }

    /// A bot's balance.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn balance(&self, bot: &SecretKey) -> Grains {
        self.ledger.account(&bot.public()).expect("memory can be read").balance
    }

    /// What is free on the node.
    ///
    /// # Panics
    /// When it is not registered.
    #[must_use]
    pub fn free(&self) -> Capacity {
        let books = self.ledger.capacity(&self.node_id()).expect("memory can be read");
        books.expect("the node is registered").free()
    }

    /// Adds a bot.
    ///
    /// # Panics
    /// When its name is taken.
    pub fn add_bot(&mut self, called: &str, key: &SecretKey) {
        let create = Command::CreateBot(BotBody { name: name(called) });
        self.ledger.submit(key, create).expect("the name is free");
    }
}
