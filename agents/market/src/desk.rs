//! The farmer's bot as a machine: messages, books and time in; answers, reservations and intents out.
//!
//! ```text
//!   Demand ──> Offer ──> Counter* ──> Propose ──room, policy──> held, written ──> Approve ──ledger──> sold
//!                                        └─ a person is asked ─┘     │ half of its time: written, Announce
//!                                                                    └ expired: free again, written, Claim the fee
//! ```
//! What is announced or claimed is said again until the ledger's answer is known: the ledger takes each once.
//! It does no I/O: outputs are to be carried out in their order, and what is written must be durable before the next
//! one. It must never promise capacity twice, approve what it did not quote, or answer one step in two ways. Free text
//! never reaches a decision. Everything a stranger can fill has a bound.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::contract::PublishedPort;
use croft_protocol::keys::Domain;
use croft_protocol::market::{
    CLAIM_MS, NOTICE_MS, NegotiationId, Quote, RESERVATION, Reason, Reservation, Role, Said, SignedMessage,
    SignedReservation,
};
use croft_protocol::{
    Announcement, BotId, Capacity, ContractId, FarmId, Grains, Name, NodeCapacity, NodeId, PriceList, Rate,
    Rejection, ReservationRefusal, Terms, limits,
};

use crate::advice::{Advice, Priced, Pricing, bounded};
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
/// An announcement without an answer is made again after this.
const ANNOUNCE_AGAIN_MS: u64 = 5_000;
/// What is held for less can't be announced in time, were the ledger asked twice.
pub const HOLD_LEAST_MS: u64 = NOTICE_MS + 2 * ANNOUNCE_AGAIN_MS;
/// A claim without an answer is made again after this: a day is long enough for many.
const CLAIM_AGAIN_MS: u64 = 60_000;
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
    /// Contracts for which capacity is reserved on the ledger: the books have it in use already.
    pub reserved: BTreeSet<ContractId>,
    /// Nothing new is taken there.
    pub is_draining: bool,
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
    /// The ledger's answer to [`DeskOutput::Announce`].
    Announced { contract: ContractId, result: Result<(), Rejection> },
    /// The ledger's answer to [`DeskOutput::Claim`].
    Claimed { contract: ContractId, result: Result<(), Rejection> },
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
    /// [`DeskEvent::Announced`] is the answer.
    Announce(Box<Announcement>),
    /// The reservation was not used: its fee is due. [`DeskEvent::Claimed`] is the answer.
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
    /// It is being announced: the ledger may know it from now on.
    Announcing(ContractId),
    /// It is not promised any more, and its fee is claimed.
    Unused(ContractId),
    /// The ledger has decided about the fee.
    Settled(ContractId),
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

/// How far the announcement of a reservation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    Due {
        at_ms: u64,
    },
    /// Without an answer so far.
    Sent {
        again_ms: u64,
    },
    Done,
    /// The ledger does not take it: no fee will be due.
    Refused,
}

#[derive(Debug, Clone)]
struct Held {
    announcement: Announcement,
    notice: Notice,
}

impl Held {
    fn terms(&self) -> &Terms {
        &self.announcement.terms
    }

    /// Whether the ledger may know of it.
    fn is_out(&self) -> bool {
        matches!(self.notice, Notice::Sent { .. } | Notice::Done)
    }

    /// When it is to be announced, if it still can be.
    fn announce_ms(&self) -> Option<u64> {
        let (Notice::Due { at_ms } | Notice::Sent { again_ms: at_ms }) = self.notice else { return None };
        (at_ms.saturating_add(NOTICE_MS) <= self.terms().expires_ms).then_some(at_ms)
    }
}

/// A fee that is due, as far as the ledger has not said otherwise.
#[derive(Debug, Clone)]
struct Owed {
    reservation: SignedReservation,
    again_ms: u64,
}

/// The farmer's bot.
#[derive(Debug)]
pub struct Desk {
    party: Party,
    policy: Policy,
    /// The farmer's own prices, within the policy's bounds.
    pricing: Option<Box<dyn Pricing>>,
    nodes: BTreeMap<NodeId, Books>,
    talks: BTreeMap<NegotiationId, Talk>,
    held: BTreeMap<ContractId, Held>,
    owed: BTreeMap<ContractId, Owed>,
    /// Unused reservations, and until when they count.
    strikes: BTreeMap<BotId, (u32, u64)>,
}

impl Desk {
    #[must_use]
    pub fn new(party: Party, policy: Policy) -> Self {
        let (nodes, talks, held, owed, strikes) = Default::default();
        Self { party, policy, pricing: None, nodes, talks, held, owed, strikes }
    }

    /// After a restart, from what was written. What a former key of the bot approved and nobody announced is not held
    /// any more: the ledger takes it from nobody.
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
                DeskEntry::Announcing(contract) => {
                    if let Some(held) = desk.held.get_mut(contract) {
                        held.notice = Notice::Sent { again_ms: now_ms };
                    }
                }
                DeskEntry::Unused(contract) => {
                    if let Some(held) = desk.held.remove(contract) {
                        let reservation = held.announcement.reservation;
                        desk.owed.insert(*contract, Owed { reservation, again_ms: now_ms });
                    }
                }
                DeskEntry::Settled(contract) => drop(desk.owed.remove(contract)),
                DeskEntry::Held(transcript) => {
                    let conversation = Conversation::restore(&desk.party, Role::Farmer, transcript.clone())?;
                    desk.hold(&conversation, now_ms);
                    let until_ms = conversation.expires_ms();
                    desk.talks.insert(transcript.id(), Talk { conversation, funds: None, until_ms });
                }
            }
        }
        let (bot, present) = (desk.party.id(), desk.party.key.public());
        desk.held.retain(|_, held| held.is_out() || held.announcement.approval.key(&bot) == present);
        Ok(desk)
    }

    /// Another policy, from now on. What was quoted stays quoted.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// The farmer's own prices from now on. The policy keeps saying whether anything is sold, and its bounds stand.
    pub fn set_pricing(&mut self, pricing: Option<Box<dyn Pricing>>) {
        self.pricing = pricing;
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
                self.agreed(contract, &mut out);
            }
            DeskEvent::Announced { contract, result } => self.announced(contract, &result, &mut out),
            DeskEvent::Claimed { contract, result } => self.claimed(contract, &result, now_ms, &mut out),
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
        let over_ms = |held: &Held| held.terms().expires_ms.saturating_add(SLACK_MS + 1);
        let held = self.held.values().map(|held| held.announce_ms().unwrap_or_else(|| over_ms(held)));
        let owed = self.owed.values().map(|owed| owed.again_ms);
        held.chain(owed).chain(self.talks.values().map(|talk| talk.until_ms + 1)).min()
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
                let said = self.price(transcript, now_ms);
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
                // The buyer gives an approved reservation back, in time: others may have it. What the ledger holds
                // it holds until the expiry.
                if let Some(reservation) = transcript.reservation() {
                    let contract = reservation.reservation.contract;
                    if self.held.get(&contract).is_some_and(|held| !held.is_out()) {
                        self.held.remove(&contract);
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
    fn price(&self, transcript: &Transcript, now_ms: u64) -> Said {
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
        let Some(rate) = self.advised(&view, rate, books, now_ms) else { return reject(true, Reason::Rule) };
        let (Some(_), Some(hold_fee)) = (rate.for_seconds(demand.duration_s), self.policy.hold_fee(rate))
        else {
            return reject(true, Reason::Overflow);
        };
        let (hold_ms, capacity_version) = (self.policy.hold_ms(), books.capacity.version);
        let quote = Quote { rate, hold_fee, hold_ms, capacity_version };
        if transcript.next_step() == 1 { Said::Offer(quote) } else { Said::Counter(quote) }
    }

    /// What the farmer's own prices make of the policy's; `None` where they sell nothing.
    fn advised(&self, view: &View<'_>, policy: Rate, books: &Books, now_ms: u64) -> Option<Rate> {
        let Some(pricing) = &self.pricing else { return Some(policy) };
        let floor = self.policy.floor(view.list, view.demand.duration_s);
        let free = self.free(view.demand.node, books);
        let priced = Priced { view: *view, now_ms, free, floor, policy };
        match pricing.price(&priced) {
            Advice::Policy => Some(policy),
            Advice::Rate(rate) => Some(bounded(&priced, rate)),
            Advice::Refuse => None,
        }
    }

    /// What is free of a node after all that is promised and kept.
    fn free(&self, node: NodeId, books: &Books) -> Capacity {
        let free = books.capacity.free().saturating_sub(&self.policy.keep);
        self.held_beside(node, books).fold(free, |free, held| free.saturating_sub(&held.terms().resources))
    }

    /// What is promised of a node and not in its books yet.
    fn held_beside(&self, node: NodeId, books: &Books) -> impl Iterator<Item = &Held> {
        let beside = move |(contract, held): &(&ContractId, &Held)| {
            held.terms().node == node && !books.reserved.contains(contract)
        };
        self.held.iter().filter(beside).map(|(_, held)| held)
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
        if books.is_draining {
            return Err(Reason::Draining);
        }
        if books.connected == Some(false) {
            return Err(Reason::Offline);
        }
        if !self.free(node, books).covers(resources) {
            return Err(Reason::NoRoom);
        }
        let held = || self.held_beside(node, books);
        let taken = |port: &&PublishedPort| {
            // All that is held, in the books or not: those have only the ports that were asked for when they were read.
            let ours = |held: &Held| held.terms().node == node && held.terms().ports.contains(port);
            books.taken_ports.contains(port) || self.held.values().any(ours)
        };
        if let Some(port) = ports.iter().find(taken) {
            return Err(Reason::PortTaken { port: *port });
        }
        if books.contracts + books.reserved.len() + held().count() >= limits::CONTRACTS_PER_NODE {
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
        // Sooner than that it could not be announced, and would be held for nothing.
        let expiries = now_ms.saturating_add(HOLD_LEAST_MS)
            ..=now_ms.saturating_add(self.policy.hold_ms()).saturating_add(SLACK_MS);
        if !expiries.contains(&terms.expires_ms) {
            return Err((false, Reason::NotAsQuoted));
        }
        let needed =
            terms.deposit().and_then(|deposit| deposit.checked_add(fee)).ok_or((true, Reason::Overflow))?;
        if talk.funds.is_some_and(|funds| funds < needed) {
            return Err((true, Reason::Funds));
        }
        let open = self.held.values().filter(|held| held.terms().user == terms.user).count();
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
            terms: self.party.key.sign_as_bot(Domain::TERMS, &self.party.chain, terms),
            reservation: self.party.key.sign_as_bot(RESERVATION, &self.party.chain, &reservation),
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
        let Some(Said::Approve { terms: approval, .. }) = transcript
            .messages()
            .iter()
            .rev()
            .map(|m| &m.message.said)
            .find(|said| matches!(said, Said::Approve { .. }))
        else {
            return;
        };
        let Some((terms, ..)) = transcript.proposal() else { return };
        let contract = reservation.reservation.contract;
        let left_ms = terms.expires_ms.saturating_sub(now_ms);
        let at_ms = now_ms + (left_ms / 2).min(left_ms.saturating_sub(NOTICE_MS + ANNOUNCE_AGAIN_MS));
        let announcement = Announcement { reservation, terms: terms.clone(), approval: approval.clone() };
        self.held.insert(contract, Held { announcement, notice: Notice::Due { at_ms } });
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
            if now_ms > held.terms().expires_ms.saturating_add(SLACK_MS) {
                over.push(*contract);
            } else if held.announce_ms().is_some_and(|at_ms| now_ms >= at_ms)
                && now_ms.saturating_add(NOTICE_MS) <= held.terms().expires_ms
            {
                if !held.is_out() {
                    out.push(DeskOutput::Write(Box::new(DeskEntry::Announcing(*contract))));
                }
                held.notice = Notice::Sent { again_ms: now_ms.saturating_add(ANNOUNCE_AGAIN_MS) };
                out.push(DeskOutput::Announce(Box::new(held.announcement.clone())));
            }
        }
        for contract in over {
            self.unused(contract, now_ms, out);
        }
        self.claim_again(now_ms, out);
    }

    /// A reservation is over, and its user did not use it.
    fn unused(&mut self, contract: ContractId, now_ms: u64, out: &mut Vec<DeskOutput>) {
        let Some(held) = self.held.remove(&contract) else { return };
        let user = held.terms().user;
        // What the ledger can't know costs nothing.
        if held.is_out() && self.owed.len() < OPEN {
            out.push(DeskOutput::Write(Box::new(DeskEntry::Unused(contract))));
            self.owed.insert(contract, Owed { reservation: held.announcement.reservation, again_ms: now_ms });
        } else {
            out.push(DeskOutput::Write(Box::new(DeskEntry::Freed(contract))));
        }
        if self.strikes.len() < OPEN || self.strikes.contains_key(&user) {
            let strikes = self.strikes.entry(user).or_default();
            *strikes = (strikes.0.saturating_add(1), now_ms.saturating_add(STRIKE_MS));
        }
    }

    /// Fees without an answer are claimed again, as long as they can be.
    fn claim_again(&mut self, now_ms: u64, out: &mut Vec<DeskOutput>) {
        self.owed.retain(|contract, owed| {
            if now_ms > owed.reservation.reservation.expires_ms.saturating_add(CLAIM_MS) {
                // It is the user's again, once somebody says so.
                out.push(DeskOutput::Claim(Box::new(owed.reservation.clone())));
                out.push(DeskOutput::Write(Box::new(DeskEntry::Settled(*contract))));
                return false;
            }
            if now_ms >= owed.again_ms {
                owed.again_ms = now_ms.saturating_add(CLAIM_AGAIN_MS);
                out.push(DeskOutput::Claim(Box::new(owed.reservation.clone())));
            }
            true
        });
    }

    /// The ledger has the contract: nothing is only promised, and nothing is owed.
    fn agreed(&mut self, contract: ContractId, out: &mut Vec<DeskOutput>) {
        if self.held.remove(&contract).is_some() {
            out.push(DeskOutput::Write(Box::new(DeskEntry::Freed(contract))));
        }
        if self.owed.remove(&contract).is_some() {
            out.push(DeskOutput::Write(Box::new(DeskEntry::Settled(contract))));
        }
    }

    fn announced(&mut self, contract: ContractId, result: &Result<(), Rejection>, out: &mut Vec<DeskOutput>) {
        let Some(held) = self.held.get_mut(&contract) else { return };
        match result {
            Ok(()) | Err(Rejection::Reservation { reason: ReservationRefusal::Announced, .. }) => {
                held.notice = Notice::Done;
            }
            Err(Rejection::Duplicate { .. }) => self.agreed(contract, out),
            // Others of this user's, or his empty wallet: both may change before it is too late.
            Err(
                Rejection::Funds { .. }
                | Rejection::Reservation {
                    reason:
                        ReservationRefusal::TooManyOfUser { .. }
                        | ReservationRefusal::TooManyOfFarmer { .. }
                        | ReservationRefusal::TooManyAtOnce { .. },
                    ..
                },
            ) => {}
            Err(rejection) if may_pass(rejection) => {}
            Err(_) => held.notice = Notice::Refused,
        }
    }

    fn claimed(
        &mut self,
        contract: ContractId,
        result: &Result<(), Rejection>,
        now_ms: u64,
        out: &mut Vec<DeskOutput>,
    ) {
        let Some(owed) = self.owed.get_mut(&contract) else { return };
        match result {
            Err(Rejection::Reservation { reason, .. }) if !reason.is_final() => {
                // The ledger's time is behind ours.
                owed.again_ms = owed.again_ms.min(now_ms.saturating_add(ANNOUNCE_AGAIN_MS));
            }
            Ok(()) | Err(Rejection::Reservation { .. }) => {
                self.owed.remove(&contract);
                out.push(DeskOutput::Write(Box::new(DeskEntry::Settled(contract))));
            }
            Err(_) => {}
        }
    }

    /// Promises and contracts together are no more than a node has, as far as its books are known.
    fn invariant_nothing_promised_twice(&self) {
        let mut ports = BTreeSet::new();
        for terms in self.held.values().map(Held::terms) {
            for port in &terms.ports {
                let first = ports.insert((terms.node, *port));
                assert!(first, "port {port} of node {} is promised twice", terms.node);
            }
        }
    }

    /// Reservations that stand.
    #[must_use]
    pub fn reservations(&self) -> Vec<&SignedReservation> {
        self.held.values().map(|held| &held.announcement.reservation).collect()
    }

    /// Contracts whose fee is claimed, and about which the ledger has not decided.
    #[must_use]
    pub fn claims(&self) -> Vec<ContractId> {
        self.owed.keys().copied().collect()
    }

    /// What was said in a negotiation that is not forgotten yet.
    #[must_use]
    pub fn transcript(&self, id: &NegotiationId) -> Option<&Transcript> {
        self.talks.get(id).map(|talk| talk.conversation.transcript())
    }
}

/// Whether a refusal has nothing to do with what was asked for, and may not come again.
fn may_pass(rejection: &Rejection) -> bool {
    matches!(
        rejection,
        Rejection::Busy { .. }
            | Rejection::Sequence { .. }
            | Rejection::Expired { .. }
            | Rejection::RateLimited { .. }
            | Rejection::ExpiryTooFar { .. }
    )
}

#[cfg(test)]
mod tests;
