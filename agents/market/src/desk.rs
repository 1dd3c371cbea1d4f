//! The farmer's bot as a machine: messages, books and time in; answers, reservations and intents out.
//!
//! ```text
//!   Demand ──> Offer ──> Counter* ──> Propose ──room, policy──> held, written ──> Approve ──ledger──> sold
//!                                        └─ a person is asked ─┘     │ half of its time: Announce
//!                                                                    └ expired: free again, Claim the fee
//! ```
//! It does no I/O: outputs are to be carried out in their order, and what is written must be durable before the next
//! one. It must never promise capacity twice, approve what it did not quote, or answer one step in two ways. Free text
//! never reaches a decision. Everything a stranger can fill has a bound.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::contract::PublishedPort;
use croft_protocol::keys::Domain;
use croft_protocol::market::{
    NegotiationId, Quote, RESERVATION, Reason, Reservation, Role, Said, SignedMessage, SignedReservation,
};
use croft_protocol::{
    BotId, Capacity, ContractId, FarmId, Grains, Name, NodeCapacity, NodeId, PriceList, Signature, Terms,
    limits,
};

use crate::conversation::{Conversation, Heard, Party};
use crate::policy::Policy;
use crate::strategy::{Decision, Strategy as _, View};
use crate::transcript::{MessageRefusal, Transcript};

/// Negotiations of one bot that go on. A user has a few; who wants more at once is a flood.
pub const OPEN_PER_PEER: usize = 8;
/// Negotiations of one bot with those that ended, which are remembered until their messages are void.
pub const KNOWN_PER_PEER: usize = 64;
/// Negotiations of all. Each may keep two proposals with sealed workloads.
pub const OPEN: usize = 1024;
/// Reservations of one bot: the most that one identity can hold back.
pub const HELD_PER_PEER: usize = 4;
/// Reservations left unused after which a bot gets none for a while.
const STRIKES: u32 = 3;
/// How long that is, and how long unused reservations are remembered.
const STRIKE_MS: u64 = 3_600_000;
/// A quote is good for this long.
const QUOTE_MS: u64 = 60_000;
/// Clocks of buyers may be ahead by this much, and blocks come this late.
const SLACK_MS: u64 = 10_000;

/// One of the farm's nodes, as the ledger describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Books {
    pub farm: FarmId,
    pub country: String,
    pub region: Option<Name>,
    /// The farm's prices on the ledger.
    pub prices: PriceList,
    pub capacity: NodeCapacity,
    pub taken_ports: BTreeSet<PublishedPort>,
    pub contracts: usize,
    pub connected: Option<bool>,
}

/// What can happen to a farmer's bot.
#[derive(Debug, Clone)]
pub enum DeskEvent {
    /// A message. `from` is who proved to have sent it; `funds` what that bot has, where somebody looked.
    Message { from: BotId, funds: Option<Grains>, message: Box<SignedMessage> },
    /// The ledger says this of a node; `None` when it is gone.
    Books { node: NodeId, books: Option<Box<Books>> },
    /// The ledger has this contract.
    Agreed { contract: ContractId },
    /// The person who was asked has decided.
    Decided { negotiation: NegotiationId, approved: bool },
    /// Time has passed.
    Tick,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeskOutput {
    /// Durable before anything after it.
    Write(Box<DeskEntry>),
    Send {
        to: BotId,
        message: Box<SignedMessage>,
    },
    /// Ask a person; [`DeskEvent::Decided`] is the answer.
    Ask {
        negotiation: NegotiationId,
        terms: Box<Terms>,
    },
    /// The buyer is silent: put the approval where it can't say that it never came.
    Announce {
        reservation: Box<SignedReservation>,
        terms: Signature,
    },
    /// The reservation was not used: its fee is due.
    Claim(Box<SignedReservation>),
    /// Nothing was changed by a message, for this reason.
    Refused {
        from: BotId,
        refusal: DeskRefusal,
    },
}

/// What a farmer's bot must not forget.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum DeskEntry {
    /// Capacity is promised.
    Held(Transcript),
    /// It is not any more.
    Freed(ContractId),
}

/// Why a message is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeskRefusal {
    #[error(transparent)]
    Message(#[from] MessageRefusal),
    #[error("the message is {author}'s, but {from} sent it: it was replayed; bots speak for themselves")]
    NotTheAuthor { from: BotId, author: BotId },
    #[error("{from} has {limit} negotiations open here, which is all it may have: end some")]
    PeerLimit { from: BotId, limit: usize },
    #[error("{from} had {limit} negotiations here within a minute, which is all it may have: wait for one")]
    PeerPace { from: BotId, limit: usize },
    #[error("{limit} negotiations are open here, which is all there may be: try again in a minute")]
    Limit { limit: usize },
    #[error("a negotiation has at most two proposals: open another one")]
    Proposals,
}

#[derive(Debug, Clone)]
struct Talk {
    conversation: Conversation,
    /// What the buyer had when it spoke last.
    funds: Option<Grains>,
    /// Remembered until then, so that a replay is known as one.
    until_ms: u64,
}

#[derive(Debug, Clone)]
struct Held {
    node: NodeId,
    user: BotId,
    resources: Capacity,
    ports: Vec<PublishedPort>,
    reservation: SignedReservation,
    terms: Signature,
    announce_ms: u64,
    announced: bool,
}

/// The farmer's bot.
#[derive(Debug)]
pub struct Desk {
    party: Party,
    policy: Policy,
    nodes: BTreeMap<NodeId, Books>,
    talks: BTreeMap<NegotiationId, Talk>,
    held: BTreeMap<ContractId, Held>,
    /// Unused reservations, and until when they count.
    strikes: BTreeMap<BotId, (u32, u64)>,
}

impl Desk {
    #[must_use]
    pub fn new(party: Party, policy: Policy) -> Self {
        let (nodes, talks, held, strikes) = Default::default();
        Self { party, policy, nodes, talks, held, strikes }
    }

    /// After a restart, from what was written.
    ///
    /// # Errors
    /// [`MessageRefusal`] when an entry does not hold: it is not what this bot wrote.
    pub fn recover(
        party: Party,
        policy: Policy,
        entries: &[DeskEntry],
        now_ms: u64,
    ) -> Result<Self, MessageRefusal> {
        let mut desk = Self::new(party, policy);
        for entry in entries {
            match entry {
                DeskEntry::Freed(contract) => drop(desk.held.remove(contract)),
                DeskEntry::Held(transcript) => {
                    let conversation = Conversation::restore(&desk.party, Role::Farmer, transcript.clone())?;
                    desk.hold(&conversation, now_ms);
                    let until_ms = conversation.expires_ms();
                    desk.talks.insert(transcript.id(), Talk { conversation, funds: None, until_ms });
                }
            }
        }
        Ok(desk)
    }

    /// Another policy, from now on. What was quoted stays quoted.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Takes an event; says what is to be done.
    #[must_use]
    pub fn handle(&mut self, event: DeskEvent, now_ms: u64) -> Vec<DeskOutput> {
        let mut out = Vec::new();
        match event {
            DeskEvent::Message { from, funds, message } => {
                if let Err(refusal) = self.hear(from, funds, *message, now_ms, &mut out) {
                    out.push(DeskOutput::Refused { from, refusal });
                }
            }
            DeskEvent::Books { node, books: Some(books) } => drop(self.nodes.insert(node, *books)),
            DeskEvent::Books { node, books: None } => drop(self.nodes.remove(&node)),
            DeskEvent::Agreed { contract } => {
                if self.held.remove(&contract).is_some() {
                    out.push(DeskOutput::Write(Box::new(DeskEntry::Freed(contract))));
                }
            }
            DeskEvent::Decided { negotiation, approved } => {
                self.decided(negotiation, approved, now_ms, &mut out);
            }
            DeskEvent::Tick => self.tick(now_ms, &mut out),
        }
        self.invariant_nothing_promised_twice();
        out
    }

    /// When [`DeskEvent::Tick`] is due; `None` when nothing waits.
    #[must_use]
    pub fn next_wake_ms(&self) -> Option<u64> {
        let held = self.held.values().map(|held| {
            if held.announced {
                held.reservation.reservation.expires_ms + SLACK_MS + 1
            } else {
                held.announce_ms
            }
        });
        held.chain(self.talks.values().map(|talk| talk.until_ms + 1)).min()
    }

    fn hear(
        &mut self,
        from: BotId,
        funds: Option<Grains>,
        message: SignedMessage,
        now_ms: u64,
        out: &mut Vec<DeskOutput>,
    ) -> Result<(), DeskRefusal> {
        let (id, author) = (message.message.negotiation, message.message.author);
        if author != from {
            return Err(DeskRefusal::NotTheAuthor { from, author });
        }
        let Some(talk) = self.talks.get_mut(&id) else { return self.open(from, funds, message, now_ms, out) };
        let proposes = matches!(message.message.said, Said::Propose { .. });
        if proposes && message.message.step == talk.conversation.transcript().next_step() {
            let is_proposal = |m: &&SignedMessage| matches!(m.message.said, Said::Propose { .. });
            if talk.conversation.transcript().messages().iter().filter(is_proposal).count() >= 2 {
                return Err(DeskRefusal::Proposals);
            }
        }
        let expires_ms = message.message.expires_ms;
        match talk.conversation.hear(&self.party.chain, message, now_ms)? {
            Heard::Repeat(Some(message)) => out.push(DeskOutput::Send { to: from, message }),
            Heard::Repeat(None) => {}
            Heard::New => {
                talk.funds = funds;
                talk.until_ms = talk.until_ms.max(expires_ms);
                self.answer(id, now_ms, out);
            }
        }
        Ok(())
    }

    fn open(
        &mut self,
        from: BotId,
        funds: Option<Grains>,
        message: SignedMessage,
        now_ms: u64,
        out: &mut Vec<DeskOutput>,
    ) -> Result<(), DeskRefusal> {
        let id = message.message.negotiation;
        let conversation = Conversation::answer(&self.party, message, now_ms)?;
        let of_peer = |talk: &&Talk| talk.conversation.transcript().demand().buyer == from;
        let is_open = |talk: &&Talk| !talk.conversation.transcript().is_ended();
        if self.talks.values().filter(of_peer).filter(is_open).count() >= OPEN_PER_PEER {
            return Err(DeskRefusal::PeerLimit { from, limit: OPEN_PER_PEER });
        }
        if self.talks.values().filter(of_peer).count() >= KNOWN_PER_PEER {
            return Err(DeskRefusal::PeerPace { from, limit: KNOWN_PER_PEER });
        }
        if self.talks.len() >= OPEN {
            return Err(DeskRefusal::Limit { limit: OPEN });
        }
        let until_ms = conversation.expires_ms();
        self.talks.insert(id, Talk { conversation, funds, until_ms });
        self.answer(id, now_ms, out);
        Ok(())
    }

    /// Says what the policy says to the last message.
    fn answer(&mut self, id: NegotiationId, now_ms: u64, out: &mut Vec<DeskOutput>) {
        let Some(talk) = self.talks.get(&id) else { return };
        let transcript = talk.conversation.transcript();
        match &transcript.last().message.said {
            Said::Demand(_) | Said::Counter(_) | Said::Reject { last: false, .. } => {
                let said = self.price(transcript);
                self.say(id, said, now_ms.saturating_add(QUOTE_MS), out);
            }
            Said::Propose { .. } => {
                let verdict = self.check_proposal(talk, now_ms);
                match verdict {
                    Ok(()) if self.asks(transcript) => {
                        if let Some((terms, ..)) = transcript.proposal() {
                            let terms = Box::new(terms.clone());
                            out.push(DeskOutput::Ask { negotiation: id, terms });
                        }
                    }
                    Ok(()) => self.approve(id, now_ms, out),
                    Err((last, reason)) => {
                        self.say(id, Said::Reject { last, reason }, now_ms.saturating_add(QUOTE_MS), out);
                    }
                }
            }
            Said::Reject { last: true, .. } => {
                // The buyer gives an approved reservation back, in time: others may have it.
                if let Some(reservation) = transcript.reservation() {
                    let contract = reservation.reservation.contract;
                    if self.held.remove(&contract).is_some() {
                        out.push(DeskOutput::Write(Box::new(DeskEntry::Freed(contract))));
                    }
                }
            }
            Said::Commit { .. } | Said::Offer(_) | Said::Approve { .. } => {}
        }
    }

    fn asks(&self, transcript: &Transcript) -> bool {
        let price = transcript.proposal().and_then(|(terms, ..)| terms.price());
        price.is_none_or(|price| self.policy.asks(price))
    }

    /// The answer to a demand or a price.
    fn price(&self, transcript: &Transcript) -> Said {
        let reject = |last, reason| Said::Reject { last, reason };
        let demand = transcript.demand();
        let Some(books) = self.nodes.get(&demand.node).filter(|books| books.farm == demand.farm) else {
            return reject(true, Reason::UnknownNode);
        };
        if let Err(reason) = self.check_room(demand.node, books, &demand.resources, &demand.ports) {
            return reject(true, reason);
        }
        let Some(list) = self.policy.list(&books.prices, &demand.resources) else {
            return reject(true, Reason::Overflow);
        };
        let ours = transcript.quote_of(Role::Farmer);
        let theirs = transcript.quote_of(Role::Buyer);
        let said_before =
            transcript.messages().iter().filter(|m| Role::of_step(m.message.step) == Role::Farmer);
        let view = View {
            role: Role::Farmer,
            demand,
            country: &books.country,
            region: books.region.as_ref(),
            list,
            theirs,
            ours: ours.map(|quote| quote.rate),
            round: said_before.count() as u32,
            rounds: self.policy.rounds,
        };
        let rate = match self.policy.strategy().decide(&view) {
            Decision::Ready => theirs.map_or(list, |quote| quote.rate),
            // Nobody's price goes up while he haggles.
            Decision::Negotiating(rate) => ours.map_or(rate, |ours| rate.min(ours.rate)),
            // Too low is not the end: our last price stands.
            Decision::Reject(Reason::PriceTooLow) => return reject(false, Reason::PriceTooLow),
            Decision::Reject(reason) => return reject(true, reason),
        };
        let (Some(_), Some(hold_fee)) = (rate.for_seconds(demand.duration_s), self.policy.hold_fee(rate))
        else {
            return reject(true, Reason::Overflow);
        };
        let (hold_ms, capacity_version) = (self.policy.hold_ms(), books.capacity.version);
        let quote = Quote { rate, hold_fee, hold_ms, capacity_version };
        if transcript.next_step() == 1 { Said::Offer(quote) } else { Said::Counter(quote) }
    }

    /// What is free of a node after all that is promised and kept.
    fn free(&self, node: NodeId, books: &Books) -> Capacity {
        let held = self.held.values().filter(|held| held.node == node);
        held.fold(books.capacity.free().saturating_sub(&self.policy.keep), |free, held| {
            free.saturating_sub(&held.resources)
        })
    }

    fn check_room(
        &self,
        node: NodeId,
        books: &Books,
        resources: &Capacity,
        ports: &[PublishedPort],
    ) -> Result<(), Reason> {
        if resources.cpu_millis == 0
            || resources.memory_bytes == 0
            || ports.len() > limits::PORTS_PER_CONTRACT
        {
            return Err(Reason::Malformed);
        }
        if books.connected == Some(false) {
            return Err(Reason::Offline);
        }
        if !self.free(node, books).covers(resources) {
            return Err(Reason::NoRoom);
        }
        let held = || self.held.values().filter(|held| held.node == node);
        let taken = |port: &&PublishedPort| {
            books.taken_ports.contains(port) || held().any(|held| held.ports.contains(port))
        };
        if let Some(port) = ports.iter().find(taken) {
            return Err(Reason::PortTaken { port: *port });
        }
        if books.contracts + held().count() >= limits::CONTRACTS_PER_NODE {
            return Err(Reason::NodeFull);
        }
        Ok(())
    }

    /// Whether a proposal, which is what was quoted, can be approved now.
    fn check_proposal(&self, talk: &Talk, now_ms: u64) -> Result<(), (bool, Reason)> {
        let transcript = talk.conversation.transcript();
        let Some((terms, fee, _)) = transcript.proposal() else { return Err((true, Reason::Malformed)) };
        let Some(books) = self.nodes.get(&terms.node) else { return Err((true, Reason::UnknownNode)) };
        if self.policy.maintenance {
            return Err((true, Reason::Maintenance));
        }
        let sealed = 1..=limits::SEALED_WORKLOAD_BYTES;
        if !sealed.contains(&terms.sealed.len())
            || terms.quorum.approvers.len() > limits::APPROVERS_PER_CONTRACT
        {
            return Err((true, Reason::Malformed));
        }
        if terms.expires_ms < now_ms || terms.expires_ms - now_ms > self.policy.hold_ms() + SLACK_MS {
            return Err((false, Reason::NotAsQuoted));
        }
        let needed =
            terms.deposit().and_then(|deposit| deposit.checked_add(fee)).ok_or((true, Reason::Overflow))?;
        if talk.funds.is_some_and(|funds| funds < needed) {
            return Err((true, Reason::Funds));
        }
        let open = self.held.values().filter(|held| held.user == terms.user).count();
        let strikes = self.strikes.get(&terms.user).filter(|(_, until_ms)| now_ms <= *until_ms);
        if open >= HELD_PER_PEER || strikes.is_some_and(|(count, _)| *count >= STRIKES) {
            return Err((true, Reason::TooManyReservations));
        }
        self.check_room(terms.node, books, &terms.resources, &terms.ports).map_err(|reason| (false, reason))
    }

    fn decided(&mut self, id: NegotiationId, approved: bool, now_ms: u64, out: &mut Vec<DeskOutput>) {
        let Some(talk) = self.talks.get(&id).filter(|talk| talk.conversation.is_my_turn()) else { return };
        let last = &talk.conversation.transcript().last().message;
        if !matches!(last.said, Said::Propose { .. }) || now_ms > last.expires_ms {
            return;
        }
        let verdict =
            if approved { self.check_proposal(talk, now_ms) } else { Err((true, Reason::NotApproved)) };
        match verdict {
            Ok(()) => self.approve(id, now_ms, out),
            Err((last, reason)) => {
                self.say(id, Said::Reject { last, reason }, now_ms.saturating_add(QUOTE_MS), out);
            }
        }
    }

    /// Promises the capacity: written first, said then.
    fn approve(&mut self, id: NegotiationId, now_ms: u64, out: &mut Vec<DeskOutput>) {
        let Some(talk) = self.talks.get_mut(&id) else { return };
        let Some((terms, fee, _)) = talk.conversation.transcript().proposal() else { return };
        let reservation = Reservation::of(id, terms, fee);
        let (user, expires_ms) = (terms.user, terms.expires_ms);
        let said = Said::Approve {
            terms: self.party.key.sign(Domain::TERMS, &self.party.chain, terms),
            reservation: self.party.key.sign(RESERVATION, &self.party.chain, &reservation),
        };
        // It can be said: the proposal is the last message, and it is our turn.
        let Ok(message) = talk.conversation.say(&self.party, said, expires_ms) else { return };
        talk.until_ms = talk.until_ms.max(expires_ms);
        let conversation = talk.conversation.clone();
        self.hold(&conversation, now_ms);
        out.push(DeskOutput::Write(Box::new(DeskEntry::Held(conversation.transcript().clone()))));
        out.push(DeskOutput::Send { to: user, message: Box::new(message) });
    }

    fn hold(&mut self, conversation: &Conversation, now_ms: u64) {
        let transcript = conversation.transcript();
        let Some(reservation) = transcript.reservation() else { return };
        let Some(Said::Approve { terms: signature, .. }) = transcript
            .messages()
            .iter()
            .rev()
            .map(|m| &m.message.said)
            .find(|said| matches!(said, Said::Approve { .. }))
        else {
            return;
        };
        let Some((terms, ..)) = transcript.proposal() else { return };
        let held = Held {
            node: terms.node,
            user: terms.user,
            resources: terms.resources,
            ports: terms.ports.clone(),
            announce_ms: now_ms + terms.expires_ms.saturating_sub(now_ms) / 2,
            terms: *signature,
            announced: false,
            reservation: reservation.clone(),
        };
        self.held.insert(reservation.reservation.contract, held);
    }

    fn say(&mut self, id: NegotiationId, said: Said, expires_ms: u64, out: &mut Vec<DeskOutput>) {
        let Some(talk) = self.talks.get_mut(&id) else { return };
        let to = talk.conversation.transcript().demand().buyer;
        // What can't be said now, such as one price too many, is left unsaid: the other side sees it expire.
        if let Ok(message) = talk.conversation.say(&self.party, said, expires_ms) {
            talk.until_ms = talk.until_ms.max(expires_ms);
            out.push(DeskOutput::Send { to, message: Box::new(message) });
        }
    }

    fn tick(&mut self, now_ms: u64, out: &mut Vec<DeskOutput>) {
        self.talks.retain(|_, talk| talk.until_ms >= now_ms);
        self.strikes.retain(|_, (_, until_ms)| *until_ms >= now_ms);
        let mut over = Vec::new();
        for (contract, held) in &mut self.held {
            if now_ms > held.reservation.reservation.expires_ms + SLACK_MS {
                over.push(*contract);
            } else if now_ms >= held.announce_ms && !held.announced {
                held.announced = true;
                let (reservation, terms) = (Box::new(held.reservation.clone()), held.terms);
                out.push(DeskOutput::Announce { reservation, terms });
            }
        }
        for contract in over {
            let Some(held) = self.held.remove(&contract) else { continue };
            out.push(DeskOutput::Write(Box::new(DeskEntry::Freed(contract))));
            out.push(DeskOutput::Claim(Box::new(held.reservation)));
            if self.strikes.len() < OPEN || self.strikes.contains_key(&held.user) {
                let strikes = self.strikes.entry(held.user).or_default();
                *strikes = (strikes.0.saturating_add(1), now_ms.saturating_add(STRIKE_MS));
            }
        }
    }

    /// Promises and contracts together are no more than a node has, as far as its books are known.
    fn invariant_nothing_promised_twice(&self) {
        let mut ports = BTreeSet::new();
        for held in self.held.values() {
            for port in &held.ports {
                assert!(
                    ports.insert((held.node, *port)),
                    "port {port} of node {} is promised twice",
                    held.node
                );
            }
        }
    }

    /// Reservations that stand.
    #[must_use]
    pub fn reservations(&self) -> Vec<&SignedReservation> {
        self.held.values().map(|held| &held.reservation).collect()
    }

    /// What was said in a negotiation that is not forgotten yet.
    #[must_use]
    pub fn transcript(&self, id: &NegotiationId) -> Option<&Transcript> {
        self.talks.get(id).map(|talk| talk.conversation.transcript())
    }
}

#[cfg(test)]
mod tests;
