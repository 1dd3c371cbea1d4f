//! Many orders at once: the production machines of buyers and farmers, the real ledger core, real seals and signatures;
//! time is virtual, so that what is measured is work, not waiting.
//!
//! ```text
//!   message, wake, answer, block ──> Order or Desk ──> outputs, carried out at once ──> what comes of it, later
//! ```
//! Nobody lies and nothing is lost here: `cargo xtask sim market` is for that. It must never count an order that is not
//! a contract on the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use croft_it::report::{Limit, Row, Times};
use croft_ledger::{BlockContext, StateError, StateRead, StateReadExt, execute_block, execute_genesis};
use croft_market::conversation::Party;
use croft_market::desk::Books;
use croft_market::order::{Offered, Place, WINDOW_MS};
use croft_market::score::Weights;
use croft_market::{
    Candidate, Demand, Desk, DeskEvent, DeskOutput, Order, OrderEvent, OrderOutput, Policy, Wish, rank,
};
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::contract::Quorum;
use croft_protocol::header::Allocation;
use croft_protocol::keys::Domain;
use croft_protocol::market::{NegotiationId, Said, SignedMessage};
use croft_protocol::record::{HardwareSummary, NodeBody, TrustClass};
use croft_protocol::seal::SealingKey;
use croft_protocol::{
    Capacity, ChainId, Command, CommandBody, ContractId, FarmId, Genesis, Grains, Hash, Name, NodeId,
    PriceList, PublicKey, Rejection, SecretKey, SignedCommand, StateKey, TrustPolicy, ValidatorSet, limits,
    seal,
};

use crate::Plan;
use crate::town::COUNTRIES;

const START_MS: u64 = 1_800_000_000_000;
const FARMS: usize = 100;
/// A message on its way, through a relay on the same continent.
const LATENCY_MS: u64 = 20;
/// From a command to the block that has it.
const BLOCK_MS: u64 = 50;
/// Nodes that a bot looks at, as in `croft deploy`.
const LOOKED_AT: usize = 512;
/// Every order ends within this; its window is four seconds.
const LIMIT_MS: u64 = 3_600_000;
const RANKED: usize = 50;

pub(crate) fn rows(plan: &Plan) -> Result<Vec<Row>> {
    eprintln!("bench: {} bots order {} workloads on {} nodes", plan.bots, plan.workloads, plan.nodes);
    let mut crowd = Crowd::new(plan)?;
    let ranked = crowd.ranked()?;
    let started = Instant::now();
    crowd.run()?;
    let wall = started.elapsed();
    let placed = crowd.took.len();
    ensure!(placed == plan.workloads, "{placed} of {} workloads were placed", plan.workloads);
    let took = Times::new(std::mem::take(&mut crowd.took));
    let each = |count: u64| count as f64 / placed as f64;
    Ok(vec![
        Row::new(format!("fits among {} candidates, cheapest first, p95", plan.nodes), ranked.percentile_ms(95.0), "ms")
            .limit(Limit::AtMost { budget: 50.0, goal: 10.0 })
            .note(format!("no ledger, no network: one demand against all of them; {}", ranked.show()))
            .details(ranked.json()),
        Row::new(
            format!("placing {placed} workloads on {} nodes by {} bots", plan.nodes, plan.bots),
            wall.as_secs_f64(),
            "s",
        )
        .note(format!(
            "one thread for everybody: bots, farms, ledger; {:.1} workloads/s, {:.1} messages and {:.2} refusals each; in its own time an order takes {}",
            placed as f64 / wall.as_secs_f64(),
            each(crowd.messages),
            each(crowd.refused),
            took.show()
        ))
        .details(took.json()),
    ])
}

enum What {
    ToBuyer { bot: usize, number: usize, event: Box<OrderEvent> },
    ToFarm { farm: usize, from: PublicKey, message: Box<SignedMessage> },
    WakeBuyer { bot: usize, number: usize },
    WakeFarm(usize),
    Block,
}

struct Bot {
    key: SecretKey,
    order: Option<Order>,
    number: usize,
    began_ms: u64,
}

struct Farm {
    key: SecretKey,
    id: FarmId,
    name: Name,
    country: &'static str,
    prices: PriceList,
    desk: Desk,
    /// Whether it is to be woken.
    waking: bool,
}

struct Node {
    id: NodeId,
    name: Name,
    farm: usize,
}

struct Crowd {
    ledger: Ledger,
    bots: Vec<Bot>,
    farms: Vec<Farm>,
    /// In the order of their ids, as a search hands them out.
    nodes: Vec<Node>,
    at: BTreeMap<NodeId, usize>,
    farm_of: BTreeMap<PublicKey, usize>,
    bot_of: BTreeMap<PublicKey, usize>,
    sealing: SealingKey,
    events: BTreeMap<(u64, u64), What>,
    sequence: u64,
    now_ms: u64,
    /// Whom an approval on its way is for, and the node that a negotiation is about.
    negotiated: BTreeMap<NegotiationId, NodeId>,
    submitted: Vec<(usize, usize, ContractId, SignedCommand)>,
    orders: usize,
    ordered: usize,
    took: Vec<Duration>,
    messages: u64,
    refused: u64,
}

fn key(role: &str, number: usize) -> SecretKey {
    SecretKey::from_seed(&Hash::of_bytes(format!("bench crowd {role} {number}").as_bytes()).0)
}

fn name(text: &str) -> Result<Name> {
    Ok(Name::new(text)?)
}

/// Scattered over a range, the same in every run.
fn scattered(number: usize, range: u64) -> u64 {
    let hash = Hash::of("bench crowd choice", &(number as u64)).0;
    u64::from_le_bytes(hash[..8].try_into().unwrap_or_default()) % range.max(1)
}

impl Crowd {
    fn new(plan: &Plan) -> Result<Self> {
        let allocation = |role: &str, number: usize| -> Result<Allocation> {
            let name = name(&format!("{role}-{number}"))?;
            Ok(Allocation { name, bot: key(role, number).public(), grains: Grains(1_000_000_000) })
        };
        let farmers = (0..FARMS).map(|number| allocation("farmer", number));
        let users = (0..plan.bots).map(|number| allocation("user", number));
        let genesis = Genesis {
            name: name("bench")?,
            time_ms: START_MS,
            validators: ValidatorSet::of_equals(&[key("validator", 0).public()]),
            allocations: farmers.chain(users).collect::<Result<_>>()?,
            trust: TrustPolicy::default(),
            faucet: None,
        };
        let ledger = Ledger::new(&genesis)?;
        let bots: Vec<Bot> = (0..plan.bots)
            .map(|number| Bot { key: key("user", number), order: None, number: 0, began_ms: 0 })
            .collect();
        let mut crowd = Self {
            ledger,
            bot_of: bots.iter().enumerate().map(|(at, bot)| (bot.key.public(), at)).collect(),
            farm_of: BTreeMap::new(),
            bots,
            farms: Vec::new(),
            nodes: Vec::new(),
            at: BTreeMap::new(),
            sealing: SealingKey::from_seed(&[7; 32]),
            events: BTreeMap::new(),
            sequence: 0,
            now_ms: START_MS,
            negotiated: BTreeMap::new(),
            submitted: Vec::new(),
            orders: plan.workloads,
            ordered: 0,
            took: Vec::new(),
            messages: 0,
            refused: 0,
        };
        crowd.open(plan.nodes)?;
        Ok(crowd)
    }

    /// Farms and nodes on the ledger; every desk has its books.
    fn open(&mut self, nodes: usize) -> Result<()> {
        let chain = self.ledger.chain;
        let mut create = Vec::new();
        for number in 0..FARMS {
            let (key, called) = (key("farmer", number), name(&format!("farm-{number}"))?);
            let country = COUNTRIES[number % COUNTRIES.len()];
            let prices = PriceList { cpu: 10 + number as u64 % 25, memory_gib: 2, ssd_gib: 0, hdd_gib: 0 };
            let command = Command::CreateFarm {
                name: called.clone(),
                country: country.to_owned(),
                region: None,
                prices,
            };
            create.push(self.ledger.sign(&key, 0, command)?);
            let policy = Policy { floor_percent: 70 + number as u8 % 31, ..Policy::default() };
            let desk = Desk::new(Party { key: key.clone(), chain }, policy);
            let id = FarmId::new(&key.public(), &called);
            self.farm_of.insert(key.public(), number);
            self.farms.push(Farm { key, id, name: called, country, prices, desk, waking: false });
        }
        self.ledger.block(START_MS + 1, &create)?;
        for first in (0..nodes).step_by(limits::COMMANDS_PER_BLOCK) {
            let numbers = first..nodes.min(first + limits::COMMANDS_PER_BLOCK);
            let commands: Vec<SignedCommand> =
                numbers.map(|number| self.register(number)).collect::<Result<_>>()?;
            self.ledger.block(START_MS + 2, &commands)?;
        }
        self.nodes.sort_unstable_by_key(|node| node.id);
        self.at = self.nodes.iter().enumerate().map(|(at, node)| (node.id, at)).collect();
        Ok(())
    }

    fn register(&mut self, number: usize) -> Result<SignedCommand> {
        let (node, farm) = (key("node", number), number % FARMS);
        let its = &self.farms[farm];
        let join = Join { farm: its.id, expires_ms: START_MS * 2, nonce: [1; 16] };
        let signature = its.key.sign_as_bot(Domain::JOIN, &self.ledger.chain, &join);
        let called = name(&format!("node-{number}"))?;
        let body = NodeBody {
            farm: its.id,
            name: called.clone(),
            sealing_key: self.sealing.public(),
            capacity: Capacity { cpu_millis: 4_000, memory_bytes: 16 << 30, ..Capacity::default() },
            hardware: HardwareSummary::default(),
            trust: TrustClass::Plain,
            addresses: Vec::new(),
            release: "0.1.0".to_owned(),
            session: 1,
            troubles: Vec::new(),
        };
        self.nodes.push(Node { id: node.public(), name: called, farm });
        let join = Some(SignedJoin { join, signature });
        self.ledger.sign(&node, 0, Command::RegisterNode { node: body, join, attestation: None })
    }

    /// One demand against every node.
    fn ranked(&self) -> Result<Times> {
        let all: Vec<Candidate> =
            self.nodes.iter().map(|node| self.candidate(node).map(|o| o.candidate)).collect::<Result<_>>()?;
        let mut times = Vec::with_capacity(RANKED);
        for number in 0..RANKED {
            let wish = Self::wish(number, number)?;
            let demand = Demand {
                resources: wish.resources,
                duration_s: wish.duration_s,
                countries: wish.place.countries,
                max_price: Some(wish.max_price),
                ..Demand::default()
            };
            let started = Instant::now();
            let matches = rank(&all, &demand);
            times.push(started.elapsed());
            ensure!(!matches.fits.is_empty(), "no node fits {demand:?}");
        }
        Ok(Times::new(times))
    }

    fn run(&mut self) -> Result<()> {
        for bot in 0..self.bots.len() {
            self.order(bot)?;
        }
        while self.took.len() < self.orders {
            let ((at_ms, _), what) =
                self.events.pop_first().context("an order ends before nothing happens")?;
            self.now_ms = self.now_ms.max(at_ms);
            ensure!(self.now_ms < START_MS + LIMIT_MS, "orders do not end");
            match what {
                What::ToBuyer { bot, number, event } => self.tell_buyer(bot, number, *event)?,
                What::WakeBuyer { bot, number } => self.tell_buyer(bot, number, OrderEvent::Tick)?,
                What::ToFarm { farm, from, message } => self.tell_farm(farm, from, message)?,
                What::WakeFarm(farm) => {
                    self.farms[farm].waking = false;
                    self.drive_farm(farm, DeskEvent::Tick)?;
                }
                What::Block => self.block()?,
            }
        }
        Ok(())
    }

    fn later(&mut self, in_ms: u64, what: What) {
        self.sequence += 1;
        self.events.insert((self.now_ms + in_ms, self.sequence), what);
    }

    fn wish(bot: usize, number: usize) -> Result<Wish> {
        let millis = 250 * (1 + scattered(number, 4));
        Ok(Wish {
            name: name(&format!("w{number}"))?,
            resources: Capacity { cpu_millis: millis, memory_bytes: 1 << 30, ..Capacity::default() },
            ports: Vec::new(),
            duration_s: 3_600,
            grace_s: 60,
            prepaid_s: None,
            quorum: Quorum::default(),
            place: Place {
                countries: vec![COUNTRIES[(bot + number) % COUNTRIES.len()].to_owned()],
                ..Place::default()
            },
            window_ms: WINDOW_MS,
            max_price: Grains(3_600 * 60),
            max_hold_fee: Grains(10_000),
            opening_percent: 80,
            weights: Weights::default(),
            avoid: BTreeSet::new(),
            seed: Hash::of("bench crowd seed", &(number as u64)).0[..16].try_into().unwrap_or_default(),
        })
    }

    /// The bot's next order, if there are any left.
    fn order(&mut self, bot: usize) -> Result<()> {
        if self.ordered == self.orders {
            return Ok(());
        }
        self.ordered += 1;
        let number = self.ordered;
        let party = Party { key: self.bots[bot].key.clone(), chain: self.ledger.chain };
        let (order, outputs) = Order::new(party, Self::wish(bot, number)?);
        let it = &mut self.bots[bot];
        (it.order, it.number, it.began_ms) = (Some(order), number, self.now_ms);
        self.carry_out(bot, outputs)
    }

    fn tell_buyer(&mut self, bot: usize, number: usize, event: OrderEvent) -> Result<()> {
        let now_ms = self.now_ms;
        let it = &mut self.bots[bot];
        let Some(order) = it.order.as_mut().filter(|_| it.number == number) else { return Ok(()) };
        let outputs = order.handle(event, now_ms);
        self.carry_out(bot, outputs)
    }

    fn carry_out(&mut self, bot: usize, outputs: Vec<OrderOutput>) -> Result<()> {
        let number = self.bots[bot].number;
        let to_buyer = |event| What::ToBuyer { bot, number, event: Box::new(event) };
        for output in outputs {
            match output {
                OrderOutput::Write(_) => {}
                OrderOutput::Search => {
                    let found = self.search(bot, number)?;
                    self.later(LATENCY_MS, to_buyer(OrderEvent::Found(found)));
                }
                OrderOutput::Send { to, message } => self.send_to_farm(bot, to, message)?,
                OrderOutput::Seal { negotiation, node } => {
                    let sealed = seal::seal(&self.sealing.public(), &self.ledger.chain, &node, &[5; 500])?;
                    self.later(0, to_buyer(OrderEvent::Sealed { negotiation, sealed: Some(sealed) }));
                }
                OrderOutput::Submit(signed) => {
                    let contract = signed.terms.id();
                    let command = self.ledger.sign(&self.bots[bot].key, 0, Command::Agree(signed))?;
                    if self.submitted.is_empty() {
                        self.later(BLOCK_MS, What::Block);
                    }
                    self.submitted.push((bot, number, contract, command));
                }
                OrderOutput::Look(contract) => {
                    let agreed = self.ledger.contract(&contract)?.is_some();
                    let ledger_ms = self.ledger.time_ms;
                    let looked = OrderEvent::Looked { contract, agreed, announced: None, ledger_ms };
                    self.later(LATENCY_MS, to_buyer(looked));
                }
                OrderOutput::Refused { .. } => self.refused += 1,
                OrderOutput::Done(outcome) => {
                    let contract = outcome.result.map_err(|failure| anyhow!("order {number}: {failure}"))?;
                    ensure!(self.ledger.contract(&contract)?.is_some(), "order {number} is no contract");
                    self.took.push(Duration::from_millis(self.now_ms - self.bots[bot].began_ms));
                    self.bots[bot].order = None;
                    return self.order(bot);
                }
            }
        }
        if let Some(wake_ms) = self.bots[bot].order.as_ref().and_then(Order::next_wake_ms) {
            let in_ms = wake_ms.saturating_sub(self.now_ms).max(1);
            self.later(in_ms, What::WakeBuyer { bot, number });
        }
        Ok(())
    }

    /// What the ledger's index would hand out, proved.
    fn search(&self, bot: usize, number: usize) -> Result<Vec<Offered>> {
        let wish = Self::wish(bot, number)?;
        let fits = |node: &&Node| wish.place.countries.iter().any(|c| c == self.farms[node.farm].country);
        let mut found = Vec::with_capacity(LOOKED_AT);
        for node in self.nodes.iter().filter(fits) {
            let offered = self.candidate(node)?;
            if offered.candidate.capacity.free().shortfalls(&wish.resources).is_empty() {
                found.push(offered);
            }
            if found.len() == LOOKED_AT {
                break;
            }
        }
        Ok(found)
    }

    fn candidate(&self, node: &Node) -> Result<Offered> {
        let farm = &self.farms[node.farm];
        let candidate = Candidate {
            node: node.id,
            name: node.name.clone(),
            farm: farm.id,
            farm_name: farm.name.clone(),
            farmer: farm.key.public(),
            country: farm.country.to_owned(),
            prices: farm.prices,
            capacity: self.ledger.capacity(&node.id)?.context("a registered node has books")?,
            trust: TrustClass::Plain,
            addresses: Vec::new(),
            taken_ports: BTreeSet::new(),
            contracts: self.ledger.node_contracts(&node.id)?.contracts.len(),
            connected: Some(true),
            draining: None,
        };
        Ok(Offered { candidate, uptime_permille: None })
    }

    fn send_to_farm(&mut self, bot: usize, to: PublicKey, message: Box<SignedMessage>) -> Result<()> {
        self.messages += 1;
        if let Said::Demand(demand) = &message.message.said {
            self.negotiated.insert(message.message.negotiation, demand.node);
        }
        let farm = *self.farm_of.get(&to).context("a farmer")?;
        let from = self.bots[bot].key.public();
        self.later(LATENCY_MS, What::ToFarm { farm, from, message });
        Ok(())
    }

    /// As `croft farm serve` does: the books of the node first, as the ledger has them now.
    fn tell_farm(&mut self, farm: usize, from: PublicKey, message: Box<SignedMessage>) -> Result<()> {
        if let Some(node) = self.negotiated.get(&message.message.negotiation).copied() {
            let its = &self.farms[farm];
            let books = Books {
                farm: its.id,
                country: its.country.to_owned(),
                region: None,
                prices: its.prices,
                capacity: self.ledger.capacity(&node)?.context("a registered node has books")?,
                taken_ports: BTreeSet::new(),
                contracts: self.ledger.node_contracts(&node)?.contracts.len(),
                // Nobody is silent here, so nothing is announced.
                reserved: BTreeSet::new(),
                is_draining: false,
                connected: Some(true),
            };
            self.drive_farm(farm, DeskEvent::Books { node, books: Some(Box::new(books)) })?;
        }
        let funds = Some(self.ledger.account(&from)?.balance);
        self.drive_farm(farm, DeskEvent::Message { from, funds, message })
    }

    fn drive_farm(&mut self, farm: usize, event: DeskEvent) -> Result<()> {
        let outputs = self.farms[farm].desk.handle(event, self.now_ms);
        let from = self.farms[farm].key.public();
        for output in outputs {
            match output {
                DeskOutput::Send { to, message } => {
                    self.messages += 1;
                    let bot = *self.bot_of.get(&to).context("a buyer")?;
                    let number = self.bots[bot].number;
                    let event = Box::new(OrderEvent::Message { from, message });
                    self.later(LATENCY_MS, What::ToBuyer { bot, number, event });
                }
                DeskOutput::Refused { .. } => self.refused += 1,
                // Nothing is lost here, and nobody is asked.
                _ => {}
            }
        }
        // Reservations that are used end with their block; what else waits is only forgotten later.
        let its = &self.farms[farm];
        if let Some(wake_ms) = its.desk.next_wake_ms().filter(|_| !its.waking) {
            self.farms[farm].waking = true;
            let in_ms = wake_ms.saturating_sub(self.now_ms).max(1_000);
            self.later(in_ms, What::WakeFarm(farm));
        }
        Ok(())
    }

    fn block(&mut self) -> Result<()> {
        let submitted = std::mem::take(&mut self.submitted);
        let commands: Vec<SignedCommand> = submitted.iter().map(|(.., command)| command.clone()).collect();
        let results = self.ledger.block(self.now_ms, &commands)?;
        for ((bot, number, contract, _), result) in submitted.into_iter().zip(results) {
            if result.is_ok() {
                let body = self.ledger.contract(&contract)?.context("what was agreed is on the ledger")?;
                let farm = self.nodes[self.at[&body.signed.terms.node]].farm;
                self.drive_farm(farm, DeskEvent::Agreed { contract })?;
            }
            let event = Box::new(OrderEvent::Submitted { contract, result });
            self.later(LATENCY_MS, What::ToBuyer { bot, number, event });
        }
        Ok(())
    }
}

/// The real core on a map, without trees and certificates, which the market does not see.
struct Ledger {
    chain: ChainId,
    height: u64,
    time_ms: u64,
    state: BTreeMap<StateKey, Vec<u8>>,
}

impl StateRead for Ledger {
    fn get(&self, key: &StateKey) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.state.get(key).cloned())
    }
}

impl Ledger {
    fn new(genesis: &Genesis) -> Result<Self> {
        let outcome = execute_genesis(genesis)?;
        let state = outcome.writes.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        Ok(Self { chain: genesis.chain_id(), height: 0, time_ms: genesis.time_ms, state })
    }

    fn sign(&self, key: &SecretKey, ahead: u64, command: Command) -> Result<SignedCommand> {
        let author = key.public();
        let sequence = self.account(&author)?.next_sequence + ahead;
        let expires_height = self.height + 1_000;
        let body = CommandBody { chain: self.chain, author, sequence, expires_height, command };
        Ok(SignedCommand::sign(body, key))
    }

    fn block(&mut self, time_ms: u64, commands: &[SignedCommand]) -> Result<Vec<Result<(), Rejection>>> {
        let (prev, prev_ms) = (Hash::of("bench crowd header", &self.height), self.time_ms);
        self.height += 1;
        self.time_ms = (self.time_ms + 1).max(time_ms);
        let ctx =
            BlockContext { chain: self.chain, height: self.height, time_ms: self.time_ms, prev, prev_ms };
        let outcome = execute_block(self, ctx, commands)?;
        for (key, value) in outcome.writes {
            match value {
                Some(value) => drop(self.state.insert(key, value)),
                None => drop(self.state.remove(&key)),
            }
        }
        Ok(outcome.results.into_iter().map(|result| result.map(drop)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_of_a_small_crowd_becomes_a_contract() {
        let plan = Plan { nodes: 200, bots: 3, workloads: 6, ..Plan::parse(["--quick".to_owned()]).unwrap() };
        let mut crowd = Crowd::new(&plan).unwrap();
        crowd.run().unwrap();
        assert_eq!(crowd.took.len(), 6);
        assert!(crowd.messages >= 6 * 4, "they spoke: {}", crowd.messages);
    }
}
