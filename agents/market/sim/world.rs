//! The world: who says what to whom and when, what gets lost, who crashes, and what the ledger decides.
//!
//! ```text
//!   event (message, wake, restart, block, report, look-after) ──> machine ──> outputs, one after the other
//!                                                        └─ a crash may come before each of them
//! ```
//! Outputs are carried out as a real bot would: what is written survives, everything else is gone after a crash.

pub(crate) mod funds;
mod reservations;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use croft_ledger::StateReadExt;
use croft_market::desk::Books;
use croft_market::journal::{Journal, MemoryJournal};
use croft_market::order::{Offered, OrderFailure};
use croft_market::{Candidate, Desk, DeskEvent, DeskOutput, Order, OrderEvent, OrderOutput, Outcome};
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::contract::{ContractState, EndReason};
use croft_protocol::header::Allocation;
use croft_protocol::keys::Domain;
use croft_protocol::market::{NOTICE_MS, Said, SignedMessage};
use croft_protocol::record::{ContractReport, ReportBody, TrustClass, WorkloadState};
use croft_protocol::{
    Announcement, Command, ContractId, Genesis, Grains, Name, NodeId, PublicKey, TrustPolicy, ValidatorSet,
};

use self::reservations::Brought;
use crate::Mutation;
use crate::actors::{Bot, Buyer, Farm, Seller};
use crate::cast::{alter, bot, farm, key, name, node_body};
use crate::ledger::Ledger;
use crate::oracle::check_words;
use crate::random::Random;

pub(crate) const START_MS: u64 = 1_800_000_000_000;
const BLOCK_MS: u64 = 1_000;
const REPORT_MS: u64 = 300_000;
/// How often a bot looks after what it ordered.
const LOOK_AFTER_MS: u64 = 30_000;
/// What does not run by then is given up, and replaced elsewhere.
const PATIENCE_MS: u64 = 120_000;
/// By then everybody honest has what he ordered.
const LIMIT_MS: u64 = 3 * 3_600_000;
/// How long everything must stay well.
const CALM_MS: u64 = 600_000;
/// One seed in four lasts at least this long, so that what was prepaid is used up.
const LONG_MS: u64 = 2 * 3_600_000;
const LONG_EVERY: u64 = 4;
pub(crate) const DURATION_S: u64 = 4 * 3_600;
const TRACE: usize = 60;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) bots: usize,
    pub(crate) farms: usize,
    pub(crate) mutation: Option<Mutation>,
}

impl Default for Options {
    fn default() -> Self {
        Self { bots: 16, farms: 18, mutation: None }
    }
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) placed: u64,
    pub(crate) failed_orders: u64,
    pub(crate) replaced: u64,
    pub(crate) messages: u64,
    pub(crate) refused: u64,
    pub(crate) crashes: u64,
    pub(crate) announced: u64,
    pub(crate) fees_paid: u64,
    pub(crate) claims_refused: u64,
    pub(crate) funded: u64,
    pub(crate) paused: u64,
    /// Honest bots for which the market had no room in the end.
    pub(crate) without: u64,
    pub(crate) blocks: u64,
    pub(crate) virtual_s: u64,
}

enum What {
    Message {
        to: PublicKey,
        from: PublicKey,
        message: Box<SignedMessage>,
    },
    Order {
        bot: usize,
        number: u32,
        event: Box<OrderEvent>,
    },
    WakeBot(usize),
    WakeFarm(usize),
    RestartBot(usize),
    RestartFarm(usize),
    Block,
    Report(usize),
    LookAfter(usize),
    /// A farmer brings an announcement, which may be too late.
    Announce(usize, Box<Announcement>),
}

pub(crate) struct World {
    pub(crate) options: Options,
    /// It goes on until then at least.
    least_ms: u64,
    random: Random,
    pub(crate) now_ms: u64,
    pub(crate) ledger: Ledger,
    events: BTreeMap<(u64, u64), What>,
    sequence: u64,
    pub(crate) bots: Vec<Bot>,
    pub(crate) farms: Vec<Farm>,
    who: BTreeMap<PublicKey, (bool, usize)>,
    submitted: BTreeMap<u64, (usize, u32, ContractId)>,
    /// Announcements and claims on their way.
    brought: BTreeMap<u64, (usize, Brought)>,
    /// Everything that was ever announced.
    pub(crate) announced: BTreeSet<ContractId>,
    /// What each bot paid for reservations that it did not use.
    pub(crate) fees: BTreeMap<PublicKey, u64>,
    /// Contracts whose funds ran out, and what they had paid by then.
    pub(crate) paused: BTreeMap<ContractId, u64>,
    /// Every contract that ever was, by its user's name for it.
    pub(crate) agreed: BTreeMap<(PublicKey, Name), BTreeSet<ContractId>>,
    overheard: VecDeque<(PublicKey, PublicKey, SignedMessage)>,
    pub(crate) summary: Summary,
    pub(crate) trace: VecDeque<String>,
}

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let mut random = Random::new(seed);
        let validator = key(seed, 0, 0);
        let bots: Vec<Bot> = (0..options.bots).map(|i| bot(seed, i, options.bots, &mut random)).collect();
        let farms: Vec<Farm> =
            (0..options.farms).map(|i| farm(seed, i, options.farms, &mut random)).collect();
        let users = bots.iter().enumerate().map(|(i, bot)| (format!("u{i}"), bot.key.public(), bot.funds));
        let farmers = farms.iter().enumerate().map(|(i, farm)| (format!("f{i}"), farm.key.public(), 1_000));
        let allocation = |(called, bot, grains): (String, PublicKey, u64)| Allocation {
            name: name(&called),
            bot,
            grains: Grains(grains),
        };
        let genesis = Genesis {
            name: name("sim"),
            time_ms: START_MS,
            validators: ValidatorSet::of_equals(&[validator.public()]),
            allocations: users.chain(farmers).map(allocation).collect(),
            trust: TrustPolicy::default(),
            faucet: None,
        };
        let ledger = Ledger::new(&genesis);
        let mut who = BTreeMap::new();
        who.extend(bots.iter().enumerate().map(|(i, bot)| (bot.key.public(), (true, i))));
        who.extend(farms.iter().enumerate().map(|(i, farm)| (farm.key.public(), (false, i))));
        let least_ms = START_MS + if seed.is_multiple_of(LONG_EVERY) { LONG_MS } else { 0 };
        let mut world = Self {
            options,
            least_ms,
            random,
            now_ms: START_MS,
            ledger,
            events: BTreeMap::new(),
            sequence: 0,
            bots,
            farms,
            who,
            submitted: BTreeMap::new(),
            brought: BTreeMap::new(),
            announced: BTreeSet::new(),
            fees: BTreeMap::new(),
            paused: BTreeMap::new(),
            agreed: BTreeMap::new(),
            overheard: VecDeque::new(),
            summary: Summary::default(),
            trace: VecDeque::new(),
        };
        world.open();
        world
    }

    /// Farms and nodes register; everybody gets a first appointment.
    fn open(&mut self) {
        for farm in &self.farms {
            let called = name(&format!("farm-{}", farm.index));
            let country = ["be", "nl", "de"][farm.index % 3].to_owned();
            let create = Command::CreateFarm { name: called, country, region: None, prices: farm.prices };
            self.ledger.submit(&farm.key, create);
        }
        let created = self.ledger.commit(START_MS + 1);
        assert!(created.iter().all(|(_, result)| result.is_ok()), "{created:?}");
        for farm in &self.farms {
            let join = Join { farm: farm.id, expires_ms: START_MS + 3_600_000, nonce: [1; 16] };
            let signature = farm.key.sign_as_bot(Domain::JOIN, &self.ledger.chain(), &join);
            let join = Some(SignedJoin { join, signature });
            let register = Command::RegisterNode { node: node_body(farm), join, attestation: None };
            self.ledger.submit(&farm.node, register);
        }
        let registered = self.ledger.commit(START_MS + 2);
        assert!(registered.iter().all(|(_, result)| result.is_ok()), "{registered:?}");
        for index in 0..self.farms.len() {
            let (policy, party) =
                (self.farms[index].policy.clone(), self.farms[index].party(self.ledger.chain()));
            self.farms[index].desk = Some(Desk::new(party, policy));
            self.tell_books(index);
            let at = START_MS + self.random.between(1_000, REPORT_MS);
            self.at(at, What::Report(index));
        }
        for index in 0..self.bots.len() {
            let at = START_MS + self.random.between(1_000, 10_000);
            self.at(at, What::LookAfter(index));
        }
        self.at(START_MS + BLOCK_MS, What::Block);
    }

    fn at(&mut self, at_ms: u64, what: What) {
        self.sequence += 1;
        self.events.insert((at_ms.max(self.now_ms), self.sequence), what);
    }

    pub(crate) fn note(&mut self, line: String) {
        if self.trace.len() >= TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>9} {line}", self.now_ms - START_MS));
    }

    /// Runs until everybody honest has what he paid for, and for a while after.
    pub(crate) fn run(&mut self) -> Result<Summary, String> {
        let mut well_since = None;
        while let Some(((at_ms, _), what)) = self.events.pop_first() {
            self.now_ms = self.now_ms.max(at_ms);
            let is_block = matches!(what, What::Block);
            self.happen(what)?;
            if !is_block {
                continue;
            }
            match (self.everybody_is_served(), well_since) {
                (true, None) => well_since = Some(self.now_ms),
                (true, Some(since)) if self.now_ms > self.least_ms.max(since + CALM_MS) => break,
                (true, Some(_)) => {}
                (false, _) => well_since = None,
            }
            if self.now_ms > START_MS + LIMIT_MS {
                return Err(self.who_is_not_served());
            }
        }
        self.summary.without =
            self.bots.iter().filter(|bot| bot.kind == Buyer::Honest && !self.is_served(bot)).count() as u64;
        self.settle_up()?;
        self.summary.virtual_s = (self.now_ms - START_MS) / 1000;
        Ok(self.summary.clone())
    }

    fn happen(&mut self, what: What) -> Result<(), String> {
        match what {
            What::Message { to, from, message } => self.deliver(to, from, message),
            What::Order { bot, number, event } => {
                if self.bots[bot].number == number {
                    self.drive_bot(bot, *event)
                } else {
                    Ok(())
                }
            }
            What::WakeBot(bot) => {
                self.bots[bot].wake_ms = None;
                self.drive_bot(bot, OrderEvent::Tick)
            }
            What::WakeFarm(farm) => {
                self.farms[farm].wake_ms = None;
                self.drive_farm(farm, DeskEvent::Tick)
            }
            What::RestartBot(bot) => self.restart_bot(bot),
            What::RestartFarm(farm) => self.restart_farm(farm),
            What::Block => self.block(),
            What::Report(farm) => {
                self.report(farm);
                Ok(())
            }
            What::LookAfter(bot) => self.look_after(bot),
            What::Announce(farm, announcement) => {
                self.announce(farm, announcement);
                Ok(())
            }
        }
    }

    // ---- the network

    fn send(&mut self, from: PublicKey, to: PublicKey, message: SignedMessage) {
        self.summary.messages += 1;
        self.overheard.push_back((from, to, message.clone()));
        if self.overheard.len() > 200 {
            self.overheard.pop_front();
        }
        if self.random.permille(15) {
            // An altered copy, under the author's name.
            let forged = alter(message.clone(), &mut self.random);
            self.post(from, to, forged, 0);
        }
        if self.random.permille(15) {
            // Something said before, by whoever it was, to whomever.
            let pick = self.random.below(self.overheard.len() as u64) as usize;
            let (author, before, old) = self.overheard[pick].clone();
            let to = if self.random.permille(500) { before } else { to };
            let from = if self.random.permille(500) { author } else { from };
            self.post(from, to, old, 5_000);
        }
        if self.random.permille(40) {
            return;
        }
        let late = if self.random.permille(20) { 20_000 } else { 0 };
        if self.random.permille(30) {
            self.post(from, to, message.clone(), late);
        }
        self.post(from, to, message, late);
    }

    fn post(&mut self, from: PublicKey, to: PublicKey, message: SignedMessage, late_ms: u64) {
        let at = self.now_ms + self.random.between(3, 300) + late_ms;
        self.at(at, What::Message { to, from, message: Box::new(message) });
    }

    fn deliver(&mut self, to: PublicKey, from: PublicKey, message: Box<SignedMessage>) -> Result<(), String> {
        match self.who.get(&to).copied() {
            Some((true, bot)) => self.drive_bot(bot, OrderEvent::Message { from, message }),
            Some((false, farm)) if self.farms[farm].kind != Seller::Sybil => {
                let funds = Some(Grains(self.ledger.balance(&from)));
                self.drive_farm(farm, DeskEvent::Message { from, funds, message })
            }
            _ => Ok(()),
        }
    }

    // ---- buyers

    fn drive_bot(&mut self, bot: usize, event: OrderEvent) -> Result<(), String> {
        let now_ms = self.now_ms;
        let Some(order) = self.bots[bot].order.as_mut() else { return Ok(()) };
        let outputs = order.handle(event, now_ms);
        self.carry_out(bot, outputs)?;
        self.plan_bot(bot);
        Ok(())
    }

    fn plan_bot(&mut self, bot: usize) {
        let wake = self.bots[bot].order.as_ref().and_then(Order::next_wake_ms);
        if let Some(wake) = wake.filter(|wake| self.bots[bot].wake_ms.is_none_or(|known| *wake < known)) {
            self.bots[bot].wake_ms = Some(wake);
            self.at(wake, What::WakeBot(bot));
        }
    }

    fn carry_out(&mut self, bot: usize, outputs: Vec<OrderOutput>) -> Result<(), String> {
        for output in outputs {
            if self.random.permille(4) {
                self.crash_bot(bot);
                return Ok(());
            }
            let (from, number) = (self.bots[bot].key.public(), self.bots[bot].number);
            match output {
                OrderOutput::Write(entry) => {
                    self.note(format!("bot {bot} writes {}", shown(&format!("{entry:?}"))));
                    let Ok(()) = self.bots[bot].journal.write(&entry);
                }
                OrderOutput::Search => {
                    let found = self.candidates();
                    self.later(bot, number, OrderEvent::Found(found));
                }
                OrderOutput::Send { to, message } => self.send(from, to, *message),
                OrderOutput::Seal { negotiation, .. } => {
                    // As random as real seals are: made twice, they differ.
                    let sealed = Some(self.random.bytes().to_vec());
                    self.later(bot, number, OrderEvent::Sealed { negotiation, sealed });
                }
                OrderOutput::Submit(_) if self.bots[bot].kind == Buyer::Hoarder => {}
                OrderOutput::Submit(signed) => {
                    let contract = signed.terms.id();
                    if self.random.permille(50) {
                        continue;
                    }
                    let ticket = self.ledger.submit(&self.bots[bot].key.clone(), Command::Agree(signed));
                    self.submitted.insert(ticket, (bot, number, contract));
                }
                OrderOutput::Look(contract) => {
                    let agreed = self.ledger.contract(&contract).map_err(|e| e.to_string())?.is_some();
                    let announced = self.approval(bot, &contract)?;
                    let ledger_ms = self.ledger.time_ms;
                    if !self.random.permille(50) {
                        self.later(
                            bot,
                            number,
                            OrderEvent::Looked { contract, agreed, announced, ledger_ms },
                        );
                    }
                }
                OrderOutput::Refused { refusal, .. } => {
                    self.summary.refused += 1;
                    check_words(&refusal.to_string())?;
                }
                OrderOutput::Done(outcome) => self.done(bot, *outcome)?,
            }
        }
        Ok(())
    }

    fn later(&mut self, bot: usize, number: u32, event: OrderEvent) {
        let at = self.now_ms + self.random.between(1, 200);
        self.at(at, What::Order { bot, number, event: Box::new(event) });
    }

    fn crash_bot(&mut self, bot: usize) {
        self.summary.crashes += 1;
        self.note(format!("bot {bot} crashes"));
        self.bots[bot].order = None;
        self.bots[bot].is_down = true;
        if self.options.mutation == Some(Mutation::ForgetsIntents) {
            self.bots[bot].journal = MemoryJournal::default();
        }
        let at = self.now_ms + self.random.between(500, 5_000);
        self.at(at, What::RestartBot(bot));
    }

    fn restart_bot(&mut self, bot: usize) -> Result<(), String> {
        let (party, chain_ms) = (self.bots[bot].party(self.ledger.chain()), self.now_ms);
        let Ok(entries) = self.bots[bot].journal.entries();
        let wish = self.bots[bot].wish.clone();
        let (order, outputs) = Order::recover(party, wish, &entries, chain_ms).map_err(|e| e.to_string())?;
        self.bots[bot].order = Some(order);
        self.bots[bot].is_down = false;
        self.carry_out(bot, outputs)?;
        self.plan_bot(bot);
        Ok(())
    }

    fn done(&mut self, bot: usize, outcome: Outcome) -> Result<(), String> {
        self.check_outcome(bot, &outcome)?;
        self.bots[bot].order = None;
        match outcome.result {
            Ok(contract) => {
                self.note(format!("bot {bot} has contract {contract}"));
                self.summary.placed += 1;
                self.bots[bot].placed = Some(contract);
            }
            Err(failure) => {
                self.note(format!("bot {bot} has nothing: {failure}"));
                self.summary.failed_orders += 1;
            }
        }
        Ok(())
    }

    /// A standing order: what is not there is ordered, what does not run is replaced.
    fn look_after(&mut self, bot: usize) -> Result<(), String> {
        let at = self.now_ms + LOOK_AFTER_MS + self.random.below(1_000);
        self.at(at, What::LookAfter(bot));
        if self.bots[bot].order.is_some() || self.bots[bot].is_down {
            return Ok(());
        }
        if let Some(contract) = self.bots[bot].placed {
            let body = self.ledger.contract(&contract).map_err(|e| e.to_string())?;
            let body =
                body.ok_or_else(|| format!("bot {bot} has contract {contract}, which is not on the ledger"))?;
            let node = body.signed.terms.node;
            if body.ended_ms == 0 {
                if self.look_after_funds(bot, contract, &body)? {
                    return Ok(());
                }
                let patient = self.now_ms < body.agreed_ms + PATIENCE_MS;
                if patient || self.runs(node, &contract) {
                    return Ok(());
                }
                self.note(format!("bot {bot} gives up contract {contract}"));
                self.ledger.submit(&self.bots[bot].key.clone(), Command::Close { contract });
                self.summary.replaced += 1;
            }
            if body.state != ContractState::Ended(EndReason::OutOfFunds) {
                self.bots[bot].avoid.insert(node);
            }
            self.bots[bot].placed = None;
        }
        self.order(bot)
    }

    fn order(&mut self, bot: usize) -> Result<(), String> {
        let chain = self.ledger.chain();
        let seed = self.random.bytes();
        let it = &mut self.bots[bot];
        it.number += 1;
        it.wish.name = name(&format!("o{}", it.number));
        it.wish.seed = seed;
        it.wish.avoid = it.avoid.clone();
        it.journal = MemoryJournal::default();
        let (order, outputs) = Order::new(it.party(chain), it.wish.clone());
        it.order = Some(order);
        self.carry_out(bot, outputs)
    }

    fn candidates(&self) -> Vec<Offered> {
        self.farms.iter().filter_map(|farm| self.candidate(farm)).collect()
    }

    fn candidate(&self, farm: &Farm) -> Option<Offered> {
        let books = self.books(farm)?;
        let candidate = Candidate {
            node: farm.node.public(),
            name: name("n1"),
            farm: farm.id,
            farm_name: name(&format!("farm-{}", farm.index)),
            farmer: farm.key.public(),
            country: books.country,
            prices: farm.prices,
            capacity: books.capacity,
            trust: TrustClass::Plain,
            addresses: Vec::new(),
            taken_ports: BTreeSet::new(),
            contracts: books.contracts,
            draining: None,
            connected: None,
        };
        Some(Offered { candidate, uptime_permille: None })
    }

    // ---- farms

    fn books(&self, farm: &Farm) -> Option<Books> {
        let node = farm.node.public();
        Some(Books {
            farm: farm.id,
            country: ["be", "nl", "de"][farm.index % 3].to_owned(),
            region: None,
            prices: farm.prices,
            capacity: self.ledger.capacity(&node).ok()??,
            taken_ports: BTreeSet::new(),
            contracts: self.ledger.node_contracts(&node).ok()?.contracts.len(),
            reserved: self.ledger.node_reservations(&node).ok()?.contracts.into_iter().collect(),
            is_draining: false,
            connected: Some(true),
        })
    }

    fn tell_books(&mut self, farm: usize) {
        let books = self.books(&self.farms[farm]);
        let node = self.farms[farm].node.public();
        let now_ms = self.now_ms;
        if let Some(desk) = self.farms[farm].desk.as_mut() {
            let event = DeskEvent::Books { node, books: books.clone().map(Box::new) };
            let outputs = desk.handle(event, now_ms);
            assert!(outputs.is_empty(), "books ask for nothing");
        }
        self.farms[farm].books = books;
    }

    fn drive_farm(&mut self, farm: usize, event: DeskEvent) -> Result<(), String> {
        let now_ms = self.now_ms;
        let Some(desk) = self.farms[farm].desk.as_mut() else { return Ok(()) };
        let outputs = desk.handle(event, now_ms);
        for output in outputs {
            if self.random.permille(3) {
                self.crash_farm(farm);
                return Ok(());
            }
            self.carry_out_farm(farm, output)?;
        }
        let wake = self.farms[farm].desk.as_ref().and_then(Desk::next_wake_ms);
        if let Some(wake) = wake.filter(|wake| self.farms[farm].wake_ms.is_none_or(|known| *wake < known)) {
            self.farms[farm].wake_ms = Some(wake);
            self.at(wake, What::WakeFarm(farm));
        }
        Ok(())
    }

    fn carry_out_farm(&mut self, farm: usize, output: DeskOutput) -> Result<(), String> {
        let (from, kind) = (self.farms[farm].key.public(), self.farms[farm].kind);
        match output {
            DeskOutput::Write(entry) => {
                let Ok(()) = self.farms[farm].journal.write(&entry);
            }
            DeskOutput::Send { to, message } => {
                let approves = matches!(message.message.said, Said::Approve { .. });
                if approves && kind == Seller::Honest {
                    self.check_promises(farm)?;
                }
                if approves && kind == Seller::Extortionist {
                    return Ok(());
                }
                let contract = approves.then(|| self.contract_of(farm, &message)).flatten();
                self.send(from, to, *message);
                let forgets = kind == Seller::Reneger
                    || (kind == Seller::Honest && self.options.mutation == Some(Mutation::SellsTwice));
                if let (Some(contract), true, Some(desk)) =
                    (contract, forgets, self.farms[farm].desk.as_mut())
                {
                    drop(desk.handle(DeskEvent::Agreed { contract }, self.now_ms));
                }
            }
            DeskOutput::Ask { negotiation, .. } => {
                // People mostly say yes, and sometimes nothing.
                if self.random.permille(900) {
                    let approved = self.random.permille(800);
                    return self.drive_farm(farm, DeskEvent::Decided { negotiation, approved });
                }
            }
            DeskOutput::Announce(announcement) => {
                let late = self.random.permille(300);
                let at_ms = match kind {
                    // The last moment, when nobody has the time to look any more.
                    Seller::Extortionist if late => announcement.terms.expires_ms - NOTICE_MS + BLOCK_MS,
                    // Some never get there, and are said again.
                    _ if self.random.permille(100) => return Ok(()),
                    _ => self.now_ms,
                };
                self.at(at_ms, What::Announce(farm, announcement));
            }
            DeskOutput::Claim(reservation) => {
                let contract = reservation.reservation.contract;
                if self.random.permille(900) {
                    let key = self.farms[farm].key.clone();
                    let ticket = self.ledger.submit(&key, Command::ClaimReservation { contract });
                    self.brought.insert(ticket, (farm, Brought::Claim(contract)));
                }
            }
            DeskOutput::Refused { refusal, .. } => {
                self.summary.refused += 1;
                check_words(&refusal.to_string())?;
            }
        }
        Ok(())
    }

    fn contract_of(&self, farm: usize, message: &SignedMessage) -> Option<ContractId> {
        let transcript = self.farms[farm].desk.as_ref()?.transcript(&message.message.negotiation)?;
        transcript.proposal().map(|(terms, ..)| terms.id())
    }

    fn crash_farm(&mut self, farm: usize) {
        self.summary.crashes += 1;
        self.note(format!("farm {farm} crashes"));
        self.farms[farm].desk = None;
        self.farms[farm].is_down = true;
        let at = self.now_ms + self.random.between(500, 5_000);
        self.at(at, What::RestartFarm(farm));
    }

    fn restart_farm(&mut self, farm: usize) -> Result<(), String> {
        let party = self.farms[farm].party(self.ledger.chain());
        let Ok(entries) = self.farms[farm].journal.entries();
        let policy = self.farms[farm].policy.clone();
        let desk = Desk::recover(party, policy, &entries, self.now_ms).map_err(|e| e.to_string())?;
        self.farms[farm].desk = Some(desk);
        self.farms[farm].is_down = false;
        self.tell_books(farm);
        self.tell_agreed(farm)?;
        self.drive_farm(farm, DeskEvent::Tick)
    }

    /// What is on the ledger is not only reserved any more.
    fn tell_agreed(&mut self, farm: usize) -> Result<(), String> {
        let Some(desk) = self.farms[farm].desk.as_ref() else { return Ok(()) };
        let held = desk.reservations().into_iter().map(|held| held.reservation.contract);
        let open: Vec<ContractId> = held.chain(desk.claims()).collect();
        for contract in open {
            if self.ledger.contract(&contract).map_err(|e| e.to_string())?.is_some() {
                self.drive_farm(farm, DeskEvent::Agreed { contract })?;
            }
        }
        Ok(())
    }

    // ---- the ledger and the nodes

    fn block(&mut self) -> Result<(), String> {
        self.at(self.now_ms + BLOCK_MS, What::Block);
        let results = self.ledger.commit(self.now_ms);
        self.summary.blocks += 1;
        for (ticket, result) in &results {
            if let Some((farm, brought)) = self.brought.remove(ticket) {
                self.brought(farm, brought, result.clone())?;
            }
            let Some((bot, number, contract)) = self.submitted.remove(ticket) else { continue };
            if result.is_ok() {
                self.check_agreed(bot, contract)?;
            }
            if !self.random.permille(50) {
                let result = result.clone();
                self.later(bot, number, OrderEvent::Submitted { contract, result });
            }
        }
        for farm in 0..self.farms.len() {
            self.run_contracts(farm)?;
            let version = self.farms[farm].books.as_ref().map(|books| books.capacity.version);
            let now = self.ledger.capacity(&self.farms[farm].node.public()).map_err(|e| e.to_string())?;
            if now.map(|now| now.version) != version {
                self.tell_books(farm);
                self.tell_agreed(farm)?;
            }
        }
        if self.summary.blocks.is_multiple_of(60) { self.ledger.check() } else { Ok(()) }
    }

    /// The node takes up what is addressed to it, as far as it does.
    fn run_contracts(&mut self, farm: usize) -> Result<(), String> {
        let node = self.farms[farm].node.public();
        let addressed = self.ledger.node_contracts(&node).map_err(|e| e.to_string())?.contracts;
        let mut may_run = BTreeSet::new();
        for contract in addressed {
            let body = self.ledger.contract(&contract).map_err(|e| e.to_string())?;
            let body = body.ok_or_else(|| format!("contract {contract} is addressed and not there"))?;
            self.check_pause(contract, body.state)?;
            if body.state.may_run() {
                may_run.insert(contract);
            }
        }
        self.farms[farm].running.retain(|contract, _| may_run.contains(contract));
        for contract in may_run {
            if !self.farms[farm].running.contains_key(&contract) && self.farms[farm].takes_up() {
                self.farms[farm].running.insert(contract, self.now_ms);
            }
        }
        Ok(())
    }

    pub(crate) fn runs(&self, node: NodeId, contract: &ContractId) -> bool {
        self.farms.iter().any(|farm| farm.node.public() == node && farm.running.contains_key(contract))
    }

    fn report(&mut self, farm: usize) {
        self.at(self.now_ms + REPORT_MS, What::Report(farm));
        let it = &self.farms[farm];
        let (from_ms, until_ms) = (it.reported_ms.max(START_MS), self.ledger.time_ms);
        let node = it.node.public();
        let addressed = self.ledger.node_contracts(&node).map(|all| all.contracts).unwrap_or_default();
        let lines = addressed.into_iter().filter_map(|contract| {
            let since_ms = match it.kind {
                Seller::LivenessLiar => from_ms,
                _ => *it.running.get(&contract)?,
            };
            let ran_ms = until_ms.saturating_sub(from_ms.max(since_ms));
            Some(ContractReport { contract, state: WorkloadState::Running, ran_ms, detail: String::new() })
        });
        let contracts = lines.collect();
        let report = ReportBody { node, session: 1, from_ms, until_ms, contracts };
        self.ledger.submit(&it.node, Command::Report(report));
        self.farms[farm].reported_ms = until_ms;
    }

    pub(crate) fn everybody_is_served(&self) -> bool {
        self.bots
            .iter()
            .filter(|bot| bot.kind == Buyer::Honest)
            .all(|bot| self.is_served(bot) || self.is_rightly_without(bot))
    }

    pub(crate) fn is_served(&self, bot: &Bot) -> bool {
        let Some(contract) = bot.placed else { return false };
        let body = self.ledger.contract(&contract).ok().flatten();
        body.is_some_and(|body| body.ended_ms == 0 && self.runs(body.signed.terms.node, &contract))
    }
}

fn shown(text: &str) -> String {
    text.chars().take(24).collect()
}

/// Whether an order that failed may be tried again: all of them, one by one.
pub(crate) fn explains(failure: &OrderFailure) -> bool {
    !failure.to_string().is_empty()
}
