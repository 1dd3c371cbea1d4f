//! Who takes part: honest bots and farms, and everybody who tries to live off them. All of them run the production
//! machines; attackers differ in what they do with the outputs, in their policies, and in what their nodes report.

use std::collections::{BTreeMap, BTreeSet};

use croft_market::conversation::Party;
use croft_market::desk::Books;
use croft_market::journal::MemoryJournal;
use croft_market::{Desk, DeskEntry, Order, OrderEntry, Policy, Wish};
use croft_protocol::{ContractId, FarmId, NodeId, PriceList, SecretKey};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Buyer {
    Honest,
    /// Reserves and never commits.
    Hoarder,
    /// Has nothing in its wallet.
    NonPayer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seller {
    Honest,
    /// Cheapest on the ledger, one of many keys of one owner, and never answers.
    Sybil,
    /// Cheap on the ledger, dear in the offer.
    Gouger,
    /// Signs, and its node never runs anything.
    NoShow,
    /// Registers a hundred times what it has.
    CapacityLiar,
    /// Its node reports that it runs what it does not run.
    LivenessLiar,
    /// Promises the same capacity to everybody.
    Reneger,
    /// Keeps approvals to itself, announces them too late or only on the ledger, and claims the fee.
    Extortionist,
}

pub(crate) struct Bot {
    pub(crate) kind: Buyer,
    pub(crate) key: SecretKey,
    pub(crate) wish: Wish,
    pub(crate) order: Option<Order>,
    pub(crate) journal: MemoryJournal<OrderEntry>,
    /// Orders so far: each has a name of its own.
    pub(crate) number: u32,
    pub(crate) is_down: bool,
    pub(crate) placed: Option<ContractId>,
    pub(crate) avoid: BTreeSet<NodeId>,
    pub(crate) funds: u64,
    pub(crate) wake_ms: Option<u64>,
}

pub(crate) struct Farm {
    pub(crate) kind: Seller,
    pub(crate) key: SecretKey,
    pub(crate) node: SecretKey,
    pub(crate) id: FarmId,
    pub(crate) index: usize,
    pub(crate) prices: PriceList,
    pub(crate) policy: Policy,
    pub(crate) desk: Option<Desk>,
    pub(crate) journal: MemoryJournal<DeskEntry>,
    pub(crate) is_down: bool,
    pub(crate) wake_ms: Option<u64>,
    pub(crate) books: Option<Books>,
    /// What its node really runs.
    pub(crate) running: BTreeMap<ContractId, u64>,
    pub(crate) reported_ms: u64,
}

impl Bot {
    pub(crate) fn party(&self, chain: croft_protocol::ChainId) -> Party {
        Party { key: self.key.clone(), chain }
    }
}

impl Farm {
    pub(crate) fn party(&self, chain: croft_protocol::ChainId) -> Party {
        Party { key: self.key.clone(), chain }
    }

    /// Whether a contract that is on the ledger is really started.
    pub(crate) fn takes_up(&self) -> bool {
        match self.kind {
            Seller::Honest | Seller::Gouger | Seller::Reneger | Seller::Extortionist => true,
            Seller::CapacityLiar => self.running.len() < 2,
            Seller::Sybil | Seller::NoShow | Seller::LivenessLiar => false,
        }
    }
}
