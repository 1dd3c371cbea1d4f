//! The buyer's bot as a machine, for one order: it asks, haggles, chooses, reserves and commits, and survives crashes.
//!
//! ```text
//!   ask ──> Collecting ──window is over──> Sealing ──> Proposing ──Approve──> Committing ──ledger──> Placed
//!              ^  └ a price per round, all at once       │  written first       │  written first
//!              └──────── next best, or another attempt ──┴──────────────────────┴──> Failed(why)
//! ```
//! Prices are answered at the end of each round, to everybody at once, so that a fast reply earns nothing. A round ends
//! early only when everybody who was asked has answered, or can't be reached. One
//! reservation at a time: the next farm is asked only when the one before can't become a contract any more. It does no
//! I/O: outputs are to be carried out in order, and what is written must be durable before the next one. It must never
//! exceed the owner's limits, nor sign two contracts for one order.

mod asking;

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::contract::{PublishedPort, Quorum};
use croft_protocol::keys::Domain;
use croft_protocol::market::{
    NegotiationId, RESERVATION, RESERVATION_MS, Reason, Reservation, Role, Said, SignedMessage,
};
use croft_protocol::record::TrustClass;
use croft_protocol::{
    BotId, BotSignature, Capacity, ContractId, Grains, Hash, Name, NodeId, Rejection, SignedTerms, Terms,
};

use self::asking::half;
use crate::advice::Scoring;
use crate::conversation::{Conversation, Heard, Party};
use crate::rank::Candidate;
use crate::score::{Explain, Scored, Weights, Why};
use crate::transcript::{MessageRefusal, Transcript};

/// Farms that are asked at once: half by price, half by lot, so that nobody crowds the others out with cheap lies.
pub const ASKED: usize = 8;
/// Nodes of one farmer among them.
const PER_FARMER: usize = 2;
/// Times that an order starts anew after nobody could be had.
const ATTEMPTS: u32 = 4;
/// Prices are answered once per round.
const ROUNDS: u32 = 4;
/// How long offers are collected, unless the owner wants otherwise: a farmer's bot answers within a second of network.
pub const WINDOW_MS: u64 = 4_000;
/// What stays unanswered is said again.
const AGAIN_MS: u64 = 2_000;
/// A message of ours is good for this long.
const OPEN_MS: u64 = 60_000;

/// Where it may run, and what is in the wallet. Empty is anywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    pub node: Option<Name>,
    pub farm: Option<Name>,
    pub countries: Vec<String>,
    /// At least this.
    pub trust: Option<TrustClass>,
    pub funds: Option<Grains>,
}

/// What is wanted, and the owner's limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Unique among the owner's running contracts: what makes a second contract for one order impossible.
    pub name: Name,
    pub resources: Capacity,
    pub ports: Vec<PublishedPort>,
    pub duration_s: u64,
    pub grace_s: u64,
    /// As in [`Terms::prepaid_s`].
    pub prepaid_s: Option<u64>,
    pub quorum: Quorum,
    pub place: Place,
    /// Offers are collected for at most this long.
    pub window_ms: u64,
    /// For the whole duration; never exceeded.
    pub max_price: Grains,
    /// For a reservation that is not used; never exceeded.
    pub max_hold_fee: Grains,
    /// Where the first counter-offer starts: hundredths of the list price.
    pub opening_percent: u8,
    pub weights: Weights,
    /// Nodes that let the owner down before.
    pub avoid: BTreeSet<NodeId>,
    /// 16 random bytes, secret until the choice is made. One order, one seed.
    pub seed: [u8; 16],
}

/// A node that may serve, with what is known of its past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    pub candidate: Candidate,
    pub uptime_permille: Option<u16>,
}

/// What can happen to an order.
#[derive(Debug, Clone)]
pub enum OrderEvent {
    Message {
        from: BotId,
        message: Box<SignedMessage>,
    },
    /// The answer to [`OrderOutput::Seal`]; `None` when it can't be sealed to that node.
    Sealed {
        negotiation: NegotiationId,
        sealed: Option<Vec<u8>>,
    },
    /// The answer to [`OrderOutput::Submit`].
    Submitted {
        contract: ContractId,
        result: Result<(), Rejection>,
    },
    /// The answer to [`OrderOutput::Look`]: what the ledger proves at a time of its own.
    Looked {
        contract: ContractId,
        agreed: bool,
        announced: Option<(BotSignature, BotSignature)>,
        ledger_ms: u64,
    },
    /// Fresh candidates, as [`OrderOutput::Search`] asked for.
    Found(Vec<Offered>),
    /// A message did not arrive, or was not taken: nobody needs to wait for its answer.
    Unheard {
        negotiation: NegotiationId,
        problem: Unheard,
    },
    /// The owner does not want it any more. Without effect once a proposal is out: that has to be settled first.
    Cancel,
    Tick,
}

/// Why a farmer's bot did not take a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unheard {
    Unreachable,
    /// In its own words, shortened.
    Refused(String),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderOutput {
    /// Durable before anything after it.
    Write(Box<OrderEntry>),
    /// Search the ledger; [`OrderEvent::Found`] is the answer.
    Search,
    Send {
        to: BotId,
        message: Box<SignedMessage>,
    },
    /// Seal the workload to this node; [`OrderEvent::Sealed`] is the answer.
    Seal {
        negotiation: NegotiationId,
        node: NodeId,
    },
    /// Bring it to the ledger, once or often; [`OrderEvent::Submitted`] is the answer.
    Submit(Box<SignedTerms>),
    /// Look at the ledger; [`OrderEvent::Looked`] is the answer.
    Look(ContractId),
    /// Nothing was changed by a message, for this reason.
    Refused {
        from: BotId,
        refusal: MessageRefusal,
    },
    /// It is over.
    Done(Box<Outcome>),
}

/// What a buyer's bot must not forget of an order.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum OrderEntry {
    /// Demands go out. A restart before anything else begins with new ones.
    Started {
        attempt: u32,
    },
    /// A fee is promised: this must be settled before anybody else is asked.
    Proposed(Transcript),
    /// The contract is signed.
    Committing {
        transcript: Transcript,
        signed: Box<SignedTerms>,
    },
    /// That one came to nothing, for good.
    Void(ContractId),
    Placed(ContractId),
    Failed,
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub result: Result<ContractId, OrderFailure>,
    pub explain: Explain,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderFailure {
    #[error("no node fits '{name}' within its limits: ask for less, widen the placement, or raise the price")]
    NoFit { name: Name },
    #[error(
        "no farm could be had for '{name}' in {attempts} attempts: see why with --explain, or raise the price"
    )]
    NoBid { name: Name, attempts: u32 },
    #[error("the ledger refuses '{name}' wherever it is placed")]
    Ledger { name: Name, source: Rejection },
    #[error("'{name}' is over already: it failed before the restart; order it anew")]
    Before { name: Name },
    #[error("'{name}' was not ordered: its owner was asked and said no")]
    Declined { name: Name },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Searching,
    Collecting { round: u32, round_ends_ms: u64 },
    Sealing { id: NegotiationId },
    Proposing { id: NegotiationId, again_ms: u64 },
    Committing { id: NegotiationId, signed: Box<SignedTerms>, again_ms: u64 },
    Done,
}

/// One order.
#[derive(Debug)]
pub struct Order {
    party: Party,
    wish: Wish,
    attempt: u32,
    state: State,
    options: BTreeMap<NodeId, Offered>,
    talks: BTreeMap<NegotiationId, Conversation>,
    /// Best first, once the window is over.
    queue: Vec<Scored>,
    why: BTreeMap<NodeId, Vec<Why>>,
    /// Nodes that could not be had: not asked again by this order.
    avoid: BTreeSet<NodeId>,
    /// Signed or proposed once, and given up.
    voided: BTreeSet<ContractId>,
    /// Whose last message from us got nowhere, and why.
    unheard: BTreeMap<NegotiationId, Why>,
    /// The owner's own view of offers.
    scoring: Option<Box<dyn Scoring>>,
}

impl Order {
    /// A new order. The first output asks for candidates.
    #[must_use]
    pub fn new(party: Party, wish: Wish) -> (Self, Vec<OrderOutput>) {
        let (options, talks, queue, why, voided, unheard) = Default::default();
        let avoid = wish.avoid.clone();
        let state = State::Searching;
        (
            Self {
                party,
                wish,
                attempt: 0,
                state,
                options,
                talks,
                queue,
                why,
                avoid,
                voided,
                unheard,
                scoring: None,
            },
            vec![OrderOutput::Search],
        )
    }

    /// After a restart, from what was written for this order.
    ///
    /// # Errors
    /// [`MessageRefusal`] when an entry does not hold: it is not what this bot wrote.
    pub fn recover(
        party: Party,
        wish: Wish,
        entries: &[OrderEntry],
        now_ms: u64,
    ) -> Result<(Self, Vec<OrderOutput>), MessageRefusal> {
        let (mut order, mut out) = Self::new(party, wish);
        let mut open: Option<(&Transcript, Option<&SignedTerms>)> = None;
        for entry in entries {
            match entry {
                OrderEntry::Started { attempt } => order.attempt = *attempt,
                OrderEntry::Proposed(transcript) => open = Some((transcript, None)),
                OrderEntry::Committing { transcript, signed } => open = Some((transcript, Some(signed))),
                OrderEntry::Void(contract) => {
                    order.voided.insert(*contract);
                    let avoided = open.take().map(|(transcript, _)| transcript.demand().node);
                    order.avoid.extend(avoided);
                }
                OrderEntry::Placed(contract) => {
                    let outcome = Outcome { result: Ok(*contract), explain: Explain::default() };
                    order.state = State::Done;
                    return Ok((order, vec![OrderOutput::Done(Box::new(outcome))]));
                }
                OrderEntry::Failed => {
                    let failure = OrderFailure::Before { name: order.wish.name.clone() };
                    let outcome = Outcome { result: Err(failure), explain: Explain::default() };
                    order.state = State::Done;
                    return Ok((order, vec![OrderOutput::Done(Box::new(outcome))]));
                }
            }
        }
        if let Some((transcript, signed)) = open {
            out.clear();
            let id = transcript.id();
            let talk = Conversation::restore(&order.party, Role::Buyer, transcript.clone())?;
            order.talks.insert(id, talk);
            order.state = match signed {
                Some(signed) => State::Committing { id, signed: Box::new(signed.clone()), again_ms: now_ms },
                None => State::Proposing { id, again_ms: now_ms },
            };
            order.tick(now_ms, &mut out);
        }
        Ok((order, out))
    }

    /// The owner's own view of offers, which adds to the score. It changes no limit, and nothing that is paid.
    pub fn set_scoring(&mut self, scoring: Option<Box<dyn Scoring>>) {
        self.scoring = scoring;
    }

    /// Takes an event; says what is to be done.
    #[must_use]
    pub fn handle(&mut self, event: OrderEvent, now_ms: u64) -> Vec<OrderOutput> {
        let mut out = Vec::new();
        match event {
            OrderEvent::Message { from, message } => {
                if let Err(refusal) = self.hear(from, *message, now_ms, &mut out) {
                    out.push(OrderOutput::Refused { from, refusal });
                }
            }
            OrderEvent::Found(options) if self.state == State::Searching => {
                self.ask(options, now_ms, &mut out);
            }
            OrderEvent::Sealed { negotiation, sealed }
                if self.state == (State::Sealing { id: negotiation }) =>
            {
                self.propose(negotiation, sealed, now_ms, &mut out);
            }
            OrderEvent::Submitted { contract, result } => self.submitted(contract, result, now_ms, &mut out),
            OrderEvent::Looked { contract, agreed, announced, ledger_ms } => {
                self.looked(contract, agreed, announced, ledger_ms, now_ms, &mut out);
            }
            OrderEvent::Unheard { negotiation, problem } => {
                self.not_heard(negotiation, problem, now_ms, &mut out);
            }
            OrderEvent::Cancel => self.cancel(now_ms, &mut out),
            OrderEvent::Tick => self.tick(now_ms, &mut out),
            // Answers to what was asked before a change of state.
            OrderEvent::Found(_) | OrderEvent::Sealed { .. } => {}
        }
        out
    }

    /// When [`OrderEvent::Tick`] is due; `None` when nothing waits for time.
    #[must_use]
    pub fn next_wake_ms(&self) -> Option<u64> {
        match self.state {
            State::Searching | State::Sealing { .. } | State::Done => None,
            State::Collecting { round_ends_ms, .. } => Some(round_ends_ms),
            State::Proposing { again_ms, .. } | State::Committing { again_ms, .. } => Some(again_ms),
        }
    }

    fn hear(
        &mut self,
        from: BotId,
        message: SignedMessage,
        now_ms: u64,
        out: &mut Vec<OrderOutput>,
    ) -> Result<(), MessageRefusal> {
        let id = message.message.negotiation;
        let talk = self.talks.get_mut(&id).ok_or(MessageRefusal::Unknown { negotiation: id })?;
        let (step, author) = (message.message.step, message.message.author);
        if author != from {
            let expected = talk.transcript().demand().party(Role::of_step(step));
            return Err(MessageRefusal::Turn { step, author: from, expected });
        }
        let heard = talk.hear(&self.party.chain, message, now_ms)?;
        if let Heard::Repeat(Some(message)) = &heard {
            out.push(OrderOutput::Send { to: from, message: message.clone() });
        }
        if heard == Heard::New {
            self.unheard.remove(&id);
            match self.state {
                State::Proposing { id: of, .. } if of == id => self.answered(id, now_ms, out),
                State::Collecting { .. } if self.everybody_answered() => self.end_round(now_ms, out),
                // It came too late, and its author must not wait until it expires.
                State::Done => self.reject_others(None, now_ms, out),
                _ => {}
            }
        }
        Ok(())
    }

    /// The farmer's answer to our proposal is there.
    fn answered(&mut self, id: NegotiationId, now_ms: u64, out: &mut Vec<OrderOutput>) {
        let Some(talk) = self.talks.get(&id) else { return };
        match &talk.transcript().last().message.said {
            Said::Approve { .. } => {
                let terms = talk.transcript().proposal().map(|(terms, ..)| terms);
                let user =
                    terms.map(|terms| self.party.key.sign_as_bot(Domain::TERMS, &self.party.chain, terms));
                if let Some(signed) = user.and_then(|user| talk.transcript().agreed(user)) {
                    self.commit(id, signed, now_ms, out);
                }
            }
            Said::Reject { reason, .. } => {
                let reason = reason.clone();
                self.void(id, reason, now_ms, out);
            }
            _ => {}
        }
    }

    /// Signs for good: written first, brought to the ledger then.
    fn commit(&mut self, id: NegotiationId, signed: SignedTerms, now_ms: u64, out: &mut Vec<OrderOutput>) {
        let Some(talk) = self.talks.get(&id) else { return };
        let (transcript, signed) = (talk.transcript().clone(), Box::new(signed));
        let entry = OrderEntry::Committing { transcript, signed: signed.clone() };
        out.push(OrderOutput::Write(Box::new(entry)));
        out.push(OrderOutput::Submit(signed.clone()));
        self.state = State::Committing { id, signed, again_ms: now_ms + AGAIN_MS };
    }

    fn tick(&mut self, now_ms: u64, out: &mut Vec<OrderOutput>) {
        match self.state.clone() {
            State::Collecting { round_ends_ms, .. } if now_ms >= round_ends_ms => {
                self.end_round(now_ms, out);
            }
            State::Proposing { id, again_ms } if now_ms >= again_ms => {
                let Some(talk) = self.talks.get(&id) else { return };
                let farmer = talk.transcript().demand().farmer;
                if let Some(message) = talk.unanswered().filter(|m| now_ms <= m.message.expires_ms) {
                    out.push(OrderOutput::Send { to: farmer, message: Box::new(message.clone()) });
                }
                out.extend(talk.transcript().proposal().map(|(terms, ..)| OrderOutput::Look(terms.id())));
                self.state = State::Proposing { id, again_ms: now_ms + AGAIN_MS };
            }
            State::Committing { id, signed, again_ms } if now_ms >= again_ms => {
                out.push(OrderOutput::Submit(signed.clone()));
                out.push(OrderOutput::Look(signed.terms.id()));
                self.state = State::Committing { id, signed, again_ms: now_ms + AGAIN_MS };
            }
            _ => {}
        }
    }

    /// The best that is left, or another attempt with others.
    fn try_next(&mut self, now_ms: u64, out: &mut Vec<OrderOutput>) {
        for scored in &self.queue {
            let talk = self.talks.values().find(|talk| talk.transcript().demand().node == scored.node);
            let usable = |talk: &&Conversation| talk.is_my_turn() && now_ms <= talk.expires_ms();
            if self.avoid.contains(&scored.node) {
                continue;
            }
            if let Some(talk) = talk.filter(usable) {
                let id = talk.transcript().id();
                self.state = State::Sealing { id };
                out.push(OrderOutput::Seal { negotiation: id, node: scored.node });
                return;
            }
        }
        // Whoever was asked in vain is not asked again.
        let asked: Vec<NodeId> = self.talks.values().map(|talk| talk.transcript().demand().node).collect();
        for node in asked {
            if !self.why.contains_key(&node) {
                self.not(node, Why::NoReply);
            }
            self.avoid.insert(node);
        }
        self.reject_others(None, now_ms, out);
        if self.attempt >= ATTEMPTS {
            let (name, attempts) = (self.wish.name.clone(), self.attempt);
            return self.fail(OrderFailure::NoBid { name, attempts }, out);
        }
        self.state = State::Searching;
        out.push(OrderOutput::Search);
    }

    fn propose(
        &mut self,
        id: NegotiationId,
        sealed: Option<Vec<u8>>,
        now_ms: u64,
        out: &mut Vec<OrderOutput>,
    ) {
        let Some(talk) = self.talks.get_mut(&id) else { return };
        if now_ms > talk.expires_ms() && self.attempt < ATTEMPTS {
            // The owner thought about it for longer than the offers stood: the same ones are asked anew.
            self.reject_others(None, now_ms, out);
            self.state = State::Searching;
            return out.push(OrderOutput::Search);
        }
        let demand = talk.transcript().demand().clone();
        let (Some(sealed), Some(quote)) = (sealed, talk.transcript().quote()) else {
            self.not(demand.node, Why::Failed { reason: Reason::Malformed });
            self.avoid.insert(demand.node);
            return self.try_next(now_ms, out);
        };
        let nonce = half(Hash::of("croft/market-terms/1", &(self.wish.seed, id)));
        let terms = Terms {
            name: self.wish.name.clone(),
            user: demand.buyer,
            farmer: demand.farmer,
            farm: demand.farm,
            node: demand.node,
            resources: demand.resources,
            ports: demand.ports,
            rate: quote.rate,
            duration_s: demand.duration_s,
            grace_s: demand.grace_s,
            prepaid_s: demand.prepaid_s,
            capacity_version: quote.capacity_version,
            quorum: self.wish.quorum.clone(),
            sealed,
            expires_ms: now_ms + quote.hold_ms.min(RESERVATION_MS),
            nonce,
        };
        let (fee, expires_ms, farmer) = (quote.hold_fee, terms.expires_ms, terms.farmer);
        let reservation = Reservation::of(id, &terms, fee);
        let user = self.party.key.sign_as_bot(RESERVATION, &self.party.chain, &reservation);
        let said = Said::Propose { terms: Box::new(terms), fee, user };
        match talk.say(&self.party, said, expires_ms) {
            Ok(message) => {
                out.push(OrderOutput::Write(Box::new(OrderEntry::Proposed(talk.transcript().clone()))));
                out.push(OrderOutput::Send { to: farmer, message: Box::new(message) });
                self.state = State::Proposing { id, again_ms: now_ms + AGAIN_MS };
            }
            Err(refusal) => {
                self.not(demand.node, Why::Invalid { problem: refusal.to_string() });
                self.avoid.insert(demand.node);
                self.try_next(now_ms, out);
            }
        }
    }

    fn submitted(
        &mut self,
        contract: ContractId,
        result: Result<(), Rejection>,
        now_ms: u64,
        out: &mut Vec<OrderOutput>,
    ) {
        let State::Committing { id, .. } = self.state else { return };
        if self.contract_of(id) != Some(contract) {
            return;
        }
        match result {
            Ok(()) | Err(Rejection::Duplicate { .. }) => self.placed(id, contract, now_ms, out),
            // Perhaps by ourselves: a farmer can still bring what the ledger refused at first.
            Err(Rejection::NameTaken { .. }) if !self.voided.is_empty() => {
                out.extend(self.voided.iter().copied().map(OrderOutput::Look));
            }
            Err(Rejection::Key(refusal)) if *refusal.bot() != self.party.id() => {
                self.void(id, Reason::Ledger, now_ms, out);
            }
            Err(rejection) if is_the_nodes(&rejection) => self.void(id, Reason::Ledger, now_ms, out),
            Err(rejection) if is_ours(&rejection) => {
                let name = self.wish.name.clone();
                out.push(OrderOutput::Write(Box::new(OrderEntry::Void(contract))));
                self.reject_others(None, now_ms, out);
                self.fail(OrderFailure::Ledger { name, source: rejection }, out);
            }
            // Busy, a number used by another command, an expiry: said again, until the ledger's time decides.
            Err(_) => {}
        }
    }

    fn looked(
        &mut self,
        contract: ContractId,
        agreed: bool,
        announced: Option<(BotSignature, BotSignature)>,
        ledger_ms: u64,
        now_ms: u64,
        out: &mut Vec<OrderOutput>,
    ) {
        let (State::Proposing { id, .. } | State::Committing { id, .. }) = self.state else { return };
        if agreed && (self.contract_of(id) == Some(contract) || self.voided.contains(&contract)) {
            return self.placed(id, contract, now_ms, out);
        }
        if self.contract_of(id) != Some(contract) {
            return;
        }
        let Some((terms, ..)) = self.talks.get(&id).and_then(|talk| talk.transcript().proposal()) else {
            return;
        };
        if ledger_ms > terms.expires_ms {
            // Proved absent at a time at which it can't come any more.
            return self.void(id, Reason::Ledger, now_ms, out);
        }
        if let (State::Proposing { .. }, Some((farmer, _))) = (&self.state, announced) {
            // The farmer's answer got lost, but it put it where we find it.
            let terms = terms.clone();
            if terms.farmer.verify(Domain::TERMS, &self.party.chain, &terms, &farmer).is_ok() {
                let user = self.party.key.sign_as_bot(Domain::TERMS, &self.party.chain, &terms);
                self.commit(id, SignedTerms { terms, user, farmer }, now_ms, out);
            }
        }
    }

    fn contract_of(&self, id: NegotiationId) -> Option<ContractId> {
        self.talks.get(&id)?.transcript().proposal().map(|(terms, ..)| terms.id())
    }

    fn placed(&mut self, id: NegotiationId, contract: ContractId, now_ms: u64, out: &mut Vec<OrderOutput>) {
        out.push(OrderOutput::Write(Box::new(OrderEntry::Placed(contract))));
        let said = Said::Commit { contract };
        if let Some(talk) = self.talks.get_mut(&id)
            && let Ok(message) = talk.say(&self.party, said, now_ms + OPEN_MS)
        {
            let to = talk.transcript().demand().farmer;
            out.push(OrderOutput::Send { to, message: Box::new(message) });
        }
        self.reject_others(Some(id), now_ms, out);
        let node = self.talks.get(&id).map(|talk| talk.transcript().demand().node);
        let explain = self.explain(node);
        self.state = State::Done;
        out.push(OrderOutput::Done(Box::new(Outcome { result: Ok(contract), explain })));
    }

    /// The owner says no: everybody is told, and nothing was promised.
    fn cancel(&mut self, now_ms: u64, out: &mut Vec<OrderOutput>) {
        if !matches!(self.state, State::Searching | State::Collecting { .. } | State::Sealing { .. }) {
            return;
        }
        self.reject_others(None, now_ms, out);
        let name = self.wish.name.clone();
        self.fail(OrderFailure::Declined { name }, out);
    }

    /// A proposal that can't become a contract any more.
    fn void(&mut self, id: NegotiationId, reason: Reason, now_ms: u64, out: &mut Vec<OrderOutput>) {
        if let Some(contract) = self.contract_of(id) {
            self.voided.insert(contract);
            out.push(OrderOutput::Write(Box::new(OrderEntry::Void(contract))));
        }
        if let Some(talk) = self.talks.get_mut(&id) {
            let (node, to) = (talk.transcript().demand().node, talk.transcript().demand().farmer);
            let said = Said::Reject { last: true, reason: reason.clone() };
            if talk.is_my_turn()
                && let Ok(message) = talk.say(&self.party, said, now_ms + OPEN_MS)
            {
                out.push(OrderOutput::Send { to, message: Box::new(message) });
            }
            self.not(node, Why::Failed { reason });
            self.avoid.insert(node);
        }
        self.try_next(now_ms, out);
    }

    /// Everybody else is told, so that nobody waits for us.
    fn reject_others(&mut self, chosen: Option<NegotiationId>, now_ms: u64, out: &mut Vec<OrderOutput>) {
        for (id, talk) in &mut self.talks {
            if Some(*id) == chosen || !talk.is_my_turn() {
                continue;
            }
            let to = talk.transcript().demand().farmer;
            let said = Said::Reject { last: true, reason: Reason::ChoseAnother };
            if let Ok(message) = talk.say(&self.party, said, now_ms + OPEN_MS) {
                out.push(OrderOutput::Send { to, message: Box::new(message) });
            }
        }
    }

    fn fail(&mut self, failure: OrderFailure, out: &mut Vec<OrderOutput>) {
        let explain = self.explain(None);
        self.state = State::Done;
        out.push(OrderOutput::Write(Box::new(OrderEntry::Failed)));
        out.push(OrderOutput::Done(Box::new(Outcome { result: Err(failure), explain })));
    }

    fn not(&mut self, node: NodeId, why: Why) {
        self.why.entry(node).or_default().push(why);
    }

    /// The order's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.wish.name
    }

    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// What was said to and by each farm that was asked in the present attempt.
    pub fn transcripts(&self) -> impl Iterator<Item = &Transcript> {
        self.talks.values().map(Conversation::transcript)
    }
}

/// Whether the ledger's reason lies in the node: another one may do.
fn is_the_nodes(rejection: &Rejection) -> bool {
    matches!(
        rejection,
        Rejection::Stale { .. }
            | Rejection::Capacity { .. }
            | Rejection::PortTaken { .. }
            | Rejection::NodeFull { .. }
            | Rejection::UnknownNode { .. }
            | Rejection::UnknownFarm { .. }
    )
}

/// Whether it lies in the order: no other farm helps.
fn is_ours(rejection: &Rejection) -> bool {
    matches!(
        rejection,
        Rejection::Funds { .. }
            | Rejection::NameTaken { .. }
            | Rejection::UnknownBot { .. }
            | Rejection::Overflow
            | Rejection::Bounds { .. }
            | Rejection::Malformed { .. }
            | Rejection::WrongChain { .. }
            | Rejection::Key(_)
    )
}

#[cfg(test)]
mod tests;
