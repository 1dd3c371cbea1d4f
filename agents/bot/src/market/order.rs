//! One order, from a resolved file to a contract on the ledger: drives `croft_market::Order`.
//!
//! ```text
//!   journal ──open?──> upload ──> Search ──> offers for the window ──> the owner agrees ──> Propose ──> Commit
//!      └ a proposal or signature was under way: that is settled first, whatever the file says now
//! ```
//! No terminal: the owner's answer comes from a function, progress goes to whoever watches. What it is about to do is
//! durable before it does it, so that a crash between any two steps never orders twice, and the next call with the same
//! name takes up what the journal holds. It must never pay more than the limits, nor propose what the owner did not
//! agree to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use borsh::{BorshDeserialize, BorshSerialize};
use croft_market::conversation::Party;
use croft_market::journal::Journal as _;
use croft_market::order::{Place, Unheard, WINDOW_MS};
use croft_market::score::{Explain, Weights};
use croft_market::transcript::MessageRefusal;
use croft_market::{Demand, Order, OrderEntry, OrderEvent, OrderFailure, OrderOutput, Outcome, Wish};
use croft_protocol::contract::Quorum;
use croft_protocol::market::{NegotiationId, SignedMessage};
use croft_protocol::record::{FarmBody, TrustClass};
use croft_protocol::seal::SealError;
use croft_protocol::{
    Body, BotId, BotSignature, Capacity, Command, ContractId, Grains, Hash, Name, NodeId, Record, RecordId,
    ReservationState, SecretKey, SignedTerms, StateKey, limits, seal,
};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::candidates::{Scope, candidates};
use super::journal::{FileJournal, JournalError};
use super::{upload, why};
use crate::deploy_file::Resolved;
use crate::exit::Failure;
use crate::grid::{Contract, Grid, GridError, Node, now_ms};
use crate::home::Home;
use crate::peers::{self, PeerProblem};
use crate::skills::{OrderScoring, OwnSkill};
use crate::terminal::Progress;

/// The grid may be away for so long before an order gives up; its journal keeps what is open.
const TROUBLE_MS: u64 = 60_000;
/// Farewells to farmers that were not chosen.
const FAREWELL_MS: u64 = 1_500;
/// Of the highest price, in hundredths: the highest fee for a reservation that is not used ...
const HOLD_FEE_PERCENT: u128 = 5;
/// ... but what so many seconds cost is always fine, since capacity is held for a minute.
const HOLD_FEE_S: u128 = 120;

/// Who orders.
#[derive(Clone, Copy)]
pub(crate) struct Buyer<'a> {
    pub(crate) home: &'a Home,
    pub(crate) name: &'a Name,
    pub(crate) key: &'a SecretKey,
    pub(crate) grid: &'a Grid,
}

/// The owner's limits, beyond what the deploy file says.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// For the whole duration. The file's counts too; without either it is what the wallet has.
    pub(crate) max_price: Option<Grains>,
    /// Offers are collected for at most this long.
    pub(crate) window_ms: u64,
    /// At least this.
    pub(crate) trust: Option<TrustClass>,
    /// Nodes that let the owner down before.
    pub(crate) avoid: BTreeSet<NodeId>,
    pub(crate) quorum: Quorum,
    /// What counts on top of the built-in score.
    pub(crate) skill: Option<OwnSkill>,
    #[cfg(test)]
    pub(crate) crash: Option<Crash>,
}

/// For tests: where the process ends.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// Before this output, counted from 0.
    Before(usize),
    /// Before the contract is brought to the ledger.
    Submit,
}

impl Default for Limits {
    fn default() -> Self {
        let (max_price, trust, avoid, quorum, skill) = Default::default();
        Self {
            max_price,
            window_ms: WINDOW_MS,
            trust,
            avoid,
            quorum,
            skill,
            #[cfg(test)]
            crash: None,
        }
    }
}

/// What the owner is asked about before anything is promised.
#[derive(Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) name: &'a Name,
    pub(crate) duration_s: u64,
    /// The chosen node with its price, and why each other one is not.
    pub(crate) explain: &'a Explain,
}

/// What came of an order.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) contract: Contract,
    pub(crate) node: Node,
    pub(crate) farm: FarmBody,
    pub(crate) explain: Explain,
    /// It was begun by an earlier run that did not get to its end.
    pub(crate) resumed: bool,
}

/// Why there is no contract.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error(
        "'{name}' runs already, on node '{node}': end it with 'croft stop {name}', or give this one another name"
    )]
    Exists { name: Name, node: String },
    #[error("the resources of '{name}' exceed what can be counted: ask for less")]
    Overflow { name: Name },
    #[error("'{name}' can't be sealed to a node")]
    Seal { name: Name, source: SealError },
    #[error("the kernel gives no randomness")]
    Randomness(#[source] getrandom::Error),
    #[error("the order '{name}' can't be kept")]
    Journal { name: Name, source: JournalError },
    #[error("the journal of order '{name}' holds what this bot did not say: restore it, or move it away")]
    Kept { name: Name, source: MessageRefusal },
    /// Says all by itself.
    #[error("{}", .0.message())]
    Upload(Box<Failure>),
    #[error("'{name}' was not placed")]
    Failed { name: Name, grid: Name, source: Box<OrderFailure>, explain: Box<Explain> },
    #[error(
        "an earlier 'croft deploy' of '{name}' was interrupted, and went through now: contract {contract}, of the file as it was then; end it with 'croft stop {name}', then deploy again"
    )]
    OtherFile { name: Name, contract: ContractId },
    #[error(
        "the order '{name}' could not be brought to its end; what is open is kept, and 'croft deploy' with the same name goes on with it"
    )]
    Interrupted { name: Name, source: Box<GridError> },
    #[error("contract '{name}' is not on the ledger although the command was final: look with 'croft ps'")]
    NotAgreed { name: Name },
    #[error(transparent)]
    Grid(#[from] GridError),
    #[cfg(test)]
    #[error("the process ended")]
    Crashed,
}

impl PlaceError {
    fn failed(name: Name, grid: Name, source: OrderFailure, explain: Explain) -> Self {
        Self::Failed { name, grid, source: Box::new(source), explain: Box::new(explain) }
    }
}

/// What is kept of an order.
#[derive(Debug, BorshSerialize, BorshDeserialize)]
enum Entry {
    /// The seed of all its randomness, and the hash of what is to run.
    Began {
        seed: [u8; 16],
        workload: Hash,
    },
    Order(OrderEntry),
    /// A later run goes on with another file.
    Changed {
        workload: Hash,
    },
}

/// What an earlier run left open.
struct Kept {
    seed: [u8; 16],
    /// Of the file of the last run.
    workload: Hash,
    entries: Vec<OrderEntry>,
    /// Contracts that may come of it, or came, each with the file that it is of.
    contracts: BTreeMap<ContractId, Hash>,
}

impl Kept {
    /// `None` when nothing was promised: demands alone bind nobody, and are forgotten.
    fn open(entries: Vec<Entry>) -> Option<Self> {
        let mut kept: Option<Self> = None;
        for entry in entries {
            match (entry, kept.as_mut()) {
                (Entry::Began { seed, workload }, _) => {
                    let (entries, contracts) = Default::default();
                    kept = Some(Self { seed, workload, entries, contracts });
                }
                (Entry::Order(OrderEntry::Placed(_) | OrderEntry::Failed), _) => kept = None,
                (Entry::Order(entry), Some(kept)) => kept.take(entry),
                (Entry::Changed { workload }, Some(kept)) => kept.workload = workload,
                (Entry::Order(_) | Entry::Changed { .. }, None) => {}
            }
        }
        kept.filter(|kept| kept.entries.iter().any(|entry| !matches!(entry, OrderEntry::Started { .. })))
    }

    fn take(&mut self, entry: OrderEntry) {
        let contract = match &entry {
            OrderEntry::Proposed(transcript) => transcript.proposal().map(|(terms, ..)| terms.id()),
            _ => None,
        };
        // What was proposed first stays of its file, whichever run signs it.
        if let Some(contract) = contract {
            self.contracts.entry(contract).or_insert(self.workload);
        }
        self.entries.push(entry);
    }
}

/// Orders what a file describes: brings its images to the grid, negotiates, asks `agrees`, and agrees on the ledger.
/// Returns when the contract is there. What is limited stays within its limits.
///
/// # Errors
/// [`PlaceError`] says what to do; what may still become a contract is kept, and taken up by the next call.
pub(crate) async fn place(
    buyer: &Buyer<'_>,
    resolved: &Resolved,
    limits: &Limits,
    agrees: &mut (dyn FnMut(&Choice<'_>) -> bool + '_),
    progress: &mut dyn Progress,
) -> Result<Placed, PlaceError> {
    let name = &resolved.name;
    let resources = resources(resolved)?;
    let unkept = |source| PlaceError::Journal { name: name.clone(), source };
    let dir = buyer.home.order_dir(buyer.grid.name(), buyer.name, name);
    let mut journal = FileJournal::<Entry>::open(&dir).map_err(unkept)?;
    let kept = Kept::open(journal.entries().map_err(unkept)?);
    if kept.is_none() {
        must_not_run(buyer, name).await?;
    }
    let workload = Hash::of("croft/order-workload/1", &resolved.workload);
    let funds = buyer.grid.account(buyer.key.id()).await?.balance;
    let seed = match &kept {
        Some(kept) => kept.seed,
        None => random_seed()?,
    };
    let wish = wish(resolved, limits, resources, funds, seed);
    let party = Party { key: buyer.key.clone(), chain: buyer.grid.pin().chain };
    let search = Demand {
        resources,
        ports: wish.ports.clone(),
        duration_s: wish.duration_s,
        farm: wish.place.farm.clone(),
        countries: wish.place.countries.clone(),
        ..Demand::default()
    };
    if kept.is_none() {
        somebody_fits(buyer, &party, &wish, &search).await?;
    }
    let store = buyer.home.blobs();
    for image in &resolved.images {
        let sent = upload::upload(buyer.grid, &store, image, progress).await;
        sent.map_err(|failure| PlaceError::Upload(Box::new(failure)))?;
    }
    let (mut order, first) = begin(&mut journal, kept.as_ref(), party, wish, workload, progress)?;
    if let Some(skill) = limits.skill.clone() {
        let duration_s = resolved.terms.duration_s;
        order.set_scoring(Some(Box::new(OrderScoring { skill, resources, duration_s })));
    }
    let run = Run {
        buyer: *buyer,
        resolved,
        search: &search,
        order,
        journal,
        queue: first.into(),
        work: FuturesUnordered::new(),
        submitting: false,
        looking: false,
        skill: limits.skill.as_ref(),
        agreed: None,
        trouble: None,
        #[cfg(test)]
        crash: limits.crash,
    };
    let (outcome, mut journal) = run.until_done(agrees, progress).await?;
    // It holds nothing any more that is open.
    journal.replace(&[]).map_err(unkept)?;
    let contract = match outcome.result {
        Ok(contract) => contract,
        Err(source) => {
            let (name, grid) = (name.clone(), buyer.grid.name().clone());
            return Err(PlaceError::failed(name, grid, source, outcome.explain));
        }
    };
    if kept.as_ref().and_then(|kept| kept.contracts.get(&contract)).is_some_and(|of| *of != workload) {
        return Err(PlaceError::OtherFile { name: name.clone(), contract });
    }
    placed(buyer, name, contract, outcome.explain, kept.is_some()).await
}

/// A new order, or the one that an earlier run left open.
fn begin(
    journal: &mut FileJournal<Entry>,
    kept: Option<&Kept>,
    party: Party,
    wish: Wish,
    workload: Hash,
    progress: &mut dyn Progress,
) -> Result<(Order, Vec<OrderOutput>), PlaceError> {
    let name = wish.name.clone();
    let unkept = |source| PlaceError::Journal { name: name.clone(), source };
    let Some(kept) = kept else {
        journal.replace(&[Entry::Began { seed: wish.seed, workload }]).map_err(unkept)?;
        return Ok(Order::new(party, wish));
    };
    progress.note(&format!("going on with '{name}' where an earlier run was interrupted"));
    if kept.workload != workload {
        journal.write(&Entry::Changed { workload }).map_err(unkept)?;
    }
    let recovered = Order::recover(party, wish, &kept.entries, now_ms());
    recovered.map_err(|source| PlaceError::Kept { name: name.clone(), source })
}

async fn placed(
    buyer: &Buyer<'_>,
    name: &Name,
    contract: ContractId,
    explain: Explain,
    resumed: bool,
) -> Result<Placed, PlaceError> {
    let gone = || PlaceError::NotAgreed { name: name.clone() };
    let contract = buyer.grid.contract(contract).await?.ok_or_else(gone)?;
    let terms = &contract.body.signed.terms;
    let node = buyer.grid.node(terms.node).await?.ok_or_else(gone)?;
    let farm = buyer.grid.farm(terms.farm).await?.ok_or_else(gone)?;
    Ok(Placed { contract, node, farm, explain, resumed })
}

/// Fails where no node fits, before images are sent in vain.
async fn somebody_fits(
    buyer: &Buyer<'_>,
    party: &Party,
    wish: &Wish,
    search: &Demand,
) -> Result<(), PlaceError> {
    let found = candidates(buyer.grid, search, Scope::WithRoom).await?;
    // Nothing of what this one wants is carried out.
    let (mut trial, _) = Order::new(party.clone(), wish.clone());
    for output in trial.handle(OrderEvent::Found(found), now_ms()) {
        if let OrderOutput::Done(outcome) = output
            && let Err(source) = outcome.result
        {
            let (name, grid) = (wish.name.clone(), buyer.grid.name().clone());
            return Err(PlaceError::failed(name, grid, source, outcome.explain));
        }
    }
    Ok(())
}

/// The name must be free: the ledger would refuse it too, but only after farmers were asked.
async fn must_not_run(buyer: &Buyer<'_>, name: &Name) -> Result<(), PlaceError> {
    let Some(id) = buyer.grid.contract_named(buyer.key.id(), name).await? else { return Ok(()) };
    let Some(running) = buyer.grid.contract(id).await? else { return Ok(()) };
    let node = running.body.signed.terms.node;
    let node = buyer.grid.node(node).await?.map_or_else(|| node.short(), |n| n.body.name.to_string());
    Err(PlaceError::Exists { name: name.clone(), node })
}

fn random_seed() -> Result<[u8; 16], PlaceError> {
    let mut seed = [0; 16];
    getrandom::fill(&mut seed).map_err(PlaceError::Randomness)?;
    Ok(seed)
}

pub(crate) fn resources(resolved: &Resolved) -> Result<Capacity, PlaceError> {
    let overflow = || PlaceError::Overflow { name: resolved.name.clone() };
    resolved.workload.resources().ok_or_else(overflow)
}

/// The lowest of all limits on the price.
pub(crate) fn max_price(resolved: &Resolved, limit: Option<Grains>) -> Option<Grains> {
    [resolved.terms.max_price.map(Grains), limit].into_iter().flatten().min()
}

/// The highest price of which a wallet has what is paid ahead.
pub(crate) fn affordable(resolved: &Resolved, funds: Grains) -> Grains {
    let duration_s = resolved.terms.duration_s;
    let prepaid_s = resolved.terms.prepaid_s.unwrap_or(duration_s).max(1);
    let price = u128::from(funds.0) * u128::from(duration_s) / u128::from(prepaid_s);
    Grains(u64::try_from(price).unwrap_or(u64::MAX))
}

fn wish(resolved: &Resolved, limits: &Limits, resources: Capacity, funds: Grains, seed: [u8; 16]) -> Wish {
    let max_price = max_price(resolved, limits.max_price).unwrap_or_else(|| affordable(resolved, funds));
    Wish {
        name: resolved.name.clone(),
        resources,
        ports: resolved.workload.published_ports(),
        duration_s: resolved.terms.duration_s,
        grace_s: resolved.terms.grace_s,
        prepaid_s: resolved.terms.prepaid_s,
        quorum: limits.quorum.clone(),
        place: Place {
            node: resolved.placement.node.clone(),
            farm: resolved.placement.farm.clone(),
            countries: resolved.placement.countries.clone(),
            trust: limits.trust,
            funds: Some(funds),
        },
        window_ms: limits.window_ms,
        max_price,
        max_hold_fee: max_hold_fee(max_price, resolved.terms.duration_s),
        opening_percent: 70,
        weights: Weights::default(),
        avoid: limits.avoid.clone(),
        seed,
    }
}

fn max_hold_fee(max_price: Grains, duration_s: u64) -> Grains {
    let price = u128::from(max_price.0);
    let by_time = price * HOLD_FEE_S / u128::from(duration_s.max(1));
    // At most the price itself, so it fits.
    Grains((price * HOLD_FEE_PERCENT / 100).max(by_time).min(price) as u64)
}

/// What became of a piece of work.
enum Happened {
    Event(OrderEvent),
    Submitted(Result<OrderEvent, GridError>),
    Looked(Result<OrderEvent, GridError>),
    /// Nothing, or the grid could not be asked for a call.
    Sent(Result<(), GridError>),
    Fatal(PlaceError),
}

type Work<'a> = Pin<Box<dyn Future<Output = Happened> + 'a>>;

/// An order while it runs.
struct Run<'a> {
    buyer: Buyer<'a>,
    resolved: &'a Resolved,
    search: &'a Demand,
    order: Order,
    journal: FileJournal<Entry>,
    queue: VecDeque<OrderOutput>,
    work: FuturesUnordered<Work<'a>>,
    /// One of each at a time: the order asks again by itself.
    submitting: bool,
    looking: bool,
    skill: Option<&'a OwnSkill>,
    /// The highest price that the owner agreed to.
    agreed: Option<Grains>,
    trouble: Option<Instant>,
    #[cfg(test)]
    crash: Option<Crash>,
}

impl Run<'_> {
    async fn until_done(
        mut self,
        agrees: &mut (dyn FnMut(&Choice<'_>) -> bool + '_),
        progress: &mut dyn Progress,
    ) -> Result<(Outcome, FileJournal<Entry>), PlaceError> {
        loop {
            while let Some(output) = self.queue.pop_front() {
                if let Some(outcome) = self.carry_out(output, agrees, progress)? {
                    // Whoever does not hear it sees his offer expire.
                    let farewell = async {
                        while let Some(happened) = self.work.next().await {
                            let Happened::Event(event) = happened else { continue };
                            for output in self.order.handle(event, now_ms()) {
                                if let OrderOutput::Send { to, message } = output {
                                    self.work.push(Box::pin(send(self.buyer, to, message)));
                                }
                            }
                        }
                    };
                    let _ = tokio::time::timeout(Duration::from_millis(FAREWELL_MS), farewell).await;
                    return Ok((outcome, self.journal));
                }
            }
            let wake = self.order.next_wake_ms();
            let happened = tokio::select! {
                Some(happened) = self.work.next() => happened,
                () = until(wake) => Happened::Event(OrderEvent::Tick),
            };
            if let Some(event) = self.take(happened)? {
                self.queue.extend(self.order.handle(event, now_ms()));
            }
            if let Some(trouble) = self.skill.and_then(OwnSkill::take_trouble) {
                progress.note(&trouble);
            }
        }
    }

    fn take(&mut self, happened: Happened) -> Result<Option<OrderEvent>, PlaceError> {
        let asked = match happened {
            Happened::Event(event) => return Ok(Some(event)),
            Happened::Fatal(error) => return Err(error),
            Happened::Sent(sent) => sent.map(|()| None),
            Happened::Submitted(submitted) => {
                self.submitting = false;
                submitted.map(Some)
            }
            Happened::Looked(looked) => {
                self.looking = false;
                looked.map(Some)
            }
        };
        match asked {
            Ok(Some(event)) => {
                self.trouble = None;
                Ok(Some(event))
            }
            Ok(None) => Ok(None),
            // The order tries again by itself, until it is enough.
            Err(source) => {
                let since = *self.trouble.get_or_insert_with(Instant::now);
                if since.elapsed() < Duration::from_millis(TROUBLE_MS) {
                    return Ok(None);
                }
                let name = self.resolved.name.clone();
                Err(PlaceError::Interrupted { name, source: Box::new(source) })
            }
        }
    }

    /// Carries an output out, or begins to.
    fn carry_out(
        &mut self,
        output: OrderOutput,
        agrees: &mut (dyn FnMut(&Choice<'_>) -> bool + '_),
        progress: &mut dyn Progress,
    ) -> Result<Option<Outcome>, PlaceError> {
        #[cfg(test)]
        match (&mut self.crash, &output) {
            (Some(Crash::Before(left)), _) => *left = left.checked_sub(1).ok_or(PlaceError::Crashed)?,
            (Some(Crash::Submit), OrderOutput::Submit(_)) => return Err(PlaceError::Crashed),
            _ => {}
        }
        let (buyer, name) = (self.buyer, &self.resolved.name);
        match output {
            OrderOutput::Write(entry) => {
                let unkept = |source| PlaceError::Journal { name: name.clone(), source };
                self.journal.write(&Entry::Order(*entry)).map_err(unkept)?;
            }
            OrderOutput::Search => self.work.push(Box::pin(search(buyer, self.search))),
            OrderOutput::Send { to, message } => self.work.push(Box::pin(send(buyer, to, message))),
            OrderOutput::Seal { negotiation, node } => {
                if self.owner_agrees(node, agrees) {
                    self.work.push(Box::pin(seal_to(buyer, self.resolved, negotiation, node)));
                } else {
                    self.queue.extend(self.order.handle(OrderEvent::Cancel, now_ms()));
                }
            }
            OrderOutput::Submit(signed) => {
                if !std::mem::replace(&mut self.submitting, true) {
                    self.work.push(Box::pin(submit(buyer, signed)));
                }
            }
            OrderOutput::Look(contract) => {
                if !std::mem::replace(&mut self.looking, true) {
                    self.work.push(Box::pin(look(buyer, contract)));
                }
            }
            OrderOutput::Refused { from, refusal } => {
                progress.note(&format!("a message of farmer {} counts for nothing: {refusal}", from.short()));
            }
            OrderOutput::Done(outcome) => return Ok(Some(*outcome)),
        }
        Ok(None)
    }

    fn owner_agrees(&mut self, node: NodeId, agrees: &mut (dyn FnMut(&Choice<'_>) -> bool + '_)) -> bool {
        let explain = self.order.explain(Some(node));
        let Some(price) = explain.chosen.as_ref().map(|chosen| chosen.price) else { return false };
        // He who agreed to a price is not asked about a lower one.
        if self.agreed.is_some_and(|agreed| price <= agreed) {
            return true;
        }
        let (name, duration_s) = (&self.resolved.name, self.resolved.terms.duration_s);
        let yes = agrees(&Choice { name, duration_s, explain: &explain });
        if yes {
            self.agreed = Some(price);
        }
        yes
    }
}

async fn until(wake_ms: Option<u64>) {
    match wake_ms {
        Some(at) => tokio::time::sleep(Duration::from_millis(at.saturating_sub(now_ms()))).await,
        None => std::future::pending().await,
    }
}

async fn search(buyer: Buyer<'_>, demand: &Demand) -> Happened {
    match candidates(buyer.grid, demand, Scope::WithRoom).await {
        Ok(found) => Happened::Event(OrderEvent::Found(found)),
        Err(error) => Happened::Fatal(error.into()),
    }
}

async fn send(buyer: Buyer<'_>, to: BotId, message: Box<SignedMessage>) -> Happened {
    let negotiation = message.message.negotiation;
    let unheard = |problem| Happened::Event(OrderEvent::Unheard { negotiation, problem });
    match peers::negotiate(buyer.grid, to, message).await {
        Ok(Some(message)) => Happened::Event(OrderEvent::Message { from: to, message }),
        Ok(None) => Happened::Sent(Ok(())),
        Err(PeerProblem::Grid(error)) => Happened::Sent(Err(error)),
        Err(PeerProblem::Refused { reason, .. }) => unheard(Unheard::Refused(reason)),
        Err(problem @ PeerProblem::Nonsense { .. }) => unheard(Unheard::Refused(problem.to_string())),
        Err(_) => unheard(Unheard::Unreachable),
    }
}

async fn seal_to(
    buyer: Buyer<'_>,
    resolved: &Resolved,
    negotiation: NegotiationId,
    node: NodeId,
) -> Happened {
    let sealed = match buyer.grid.node(node).await {
        Ok(Some(found)) => {
            let plain = croft_protocol::encode(&resolved.workload);
            match seal::seal(&found.body.sealing_key, &buyer.grid.pin().chain, &node, &plain) {
                Ok(sealed) => Some(sealed),
                Err(source @ SealError::TooLarge { .. }) => {
                    let name = resolved.name.clone();
                    return Happened::Fatal(PlaceError::Seal { name, source });
                }
                // The node's own key is no good: another node may do.
                Err(_) => None,
            }
        }
        Ok(None) => None,
        Err(error) => return Happened::Fatal(error.into()),
    };
    Happened::Event(OrderEvent::Sealed { negotiation, sealed })
}

async fn submit(buyer: Buyer<'_>, signed: Box<SignedTerms>) -> Happened {
    let contract = signed.terms.id();
    let result = match buyer.grid.submit(buyer.key, &Command::Agree(signed)).await {
        Ok(_) => Ok(()),
        Err(error) => match error.rejection().cloned() {
            Some(rejection) => Err(rejection),
            None => return Happened::Submitted(Err(error)),
        },
    };
    Happened::Submitted(Ok(OrderEvent::Submitted { contract, result }))
}

async fn look(buyer: Buyer<'_>, contract: ContractId) -> Happened {
    let keys = [RecordId::contract(&contract), RecordId::reservation(&contract)].map(StateKey::Record);
    let looked = buyer.grid.get(&keys).await;
    Happened::Looked(looked.map(|proved| OrderEvent::Looked {
        contract,
        agreed: proved.values.first().is_some_and(Option::is_some),
        announced: proved.values.get(1).and_then(Option::as_deref).and_then(approval),
        ledger_ms: proved.tip.time_ms(),
    }))
}

/// The farmer's signatures over terms and reservation, where the ledger still holds its capacity. The order checks them.
fn approval(record: &[u8]) -> Option<(BotSignature, BotSignature)> {
    let record: Record = croft_protocol::decode("a reservation", record, limits::RECORD_BYTES).ok()?;
    match record.body {
        Body::Reservation(body) if body.state == ReservationState::Held => {
            Some((body.approval, body.signed.farmer))
        }
        _ => None,
    }
}

impl From<PlaceError> for Failure {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Upload(failure) => *failure,
            PlaceError::Grid(error) => error.into(),
            PlaceError::Exists { .. } | PlaceError::OtherFile { .. } => Self::refused(error),
            PlaceError::Overflow { .. } | PlaceError::Seal { .. } => Self::usage(error),
            PlaceError::Interrupted { .. } => Self::unreachable(error),
            PlaceError::Failed { name, grid, source, explain } => {
                why::failure(name, &grid, *source, &explain)
            }
            PlaceError::Randomness(_)
            | PlaceError::Journal { .. }
            | PlaceError::Kept { .. }
            | PlaceError::NotAgreed { .. } => Self::failed(error),
            #[cfg(test)]
            PlaceError::Crashed => Self::failed(error),
        }
    }
}
