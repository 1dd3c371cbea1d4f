//! A farmer's bot at work: drives `croft_market::Desk` with what the ledger proves, and keeps what it promised.
//!
//! ```text
//!   message ──look: books of its node, funds of its author──> Desk ──Write──> journal ──durable──> the answer
//!                                                               ├──Ask──> a person: decide()
//!                                                               └──Todo──> carry_out(): the ledger, and its answer
//! ```
//! The same message said again gets the same answer. Nothing is promised on books older than those that were seen, nor
//! twice: what is promised is kept over restarts, until the ledger has it or it expires. When the journal can't be
//! written nothing more is answered. It must never hold the desk while it waits for the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use croft_market::advice::Pricing;
use croft_market::conversation::Party;
use croft_market::desk::Books;
use croft_market::journal::Journal as _;
use croft_market::transcript::MessageRefusal;
use croft_market::{Desk, DeskEntry, DeskEvent, DeskOutput, Policy};
use croft_protocol::contract::PublishedPort;
use croft_protocol::market::{NegotiationId, Reason, Reservation, Said, SignedMessage, SignedReservation};
use croft_protocol::peer::FarmResponse;
use croft_protocol::{
    Announcement, BotId, Command, ContractId, FarmId, Grains, Name, NodeId, PublicKey, SecretKey, Terms,
    limits,
};
use tokio::sync::mpsc;

use super::journal::{FileJournal, JournalError};
use crate::grid::{Grid, GridError, now_ms};
use crate::skills::OwnSkill;

/// The journal is rewritten with what is still promised when it has grown to this.
const REWRITE_BYTES: u64 = 16 << 20;
/// What waits for the ledger. The desk asks again for what finds no place.
const TODO: usize = 64;
/// How often the books are looked up again for one message when others were faster.
const LOOKS: usize = 3;

/// Why a message can't be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfficeError {
    #[error("the ledger can't be asked")]
    Grid(#[from] GridError),
    /// Nothing may be promised any more.
    #[error("what was promised can't be kept: the bot must end here, and start anew")]
    Journal(#[from] JournalError),
    #[error("the journal holds what this bot did not say: restore it, or move it away")]
    Kept(#[from] MessageRefusal),
    #[error("a message of bot {} is signed by another key than the one that proved itself: it is not heard", author.short())]
    OtherKey { author: BotId },
    #[error("another call broke the books: the bot must start anew")]
    Broken,
}

impl OfficeError {
    /// Why the caller's key, or its message's, does not stand for it, if that is what is wrong.
    pub(crate) fn key_refusal(&self) -> Option<String> {
        match self {
            Self::Grid(error) => error.key_refusal(),
            Self::OtherKey { .. } => Some(self.to_string()),
            _ => None,
        }
    }

    /// Whether the bot must not go on.
    pub(crate) fn is_fatal(&self) -> bool {
        !matches!(self, Self::Grid(_) | Self::OtherKey { .. })
    }
}

/// What happened, for the log and for the person who is asked.
#[derive(Debug)]
pub(crate) enum News {
    /// The farm signed.
    Signed(Deal),
    /// It said no, for good or until something else is said.
    Refused { user: BotId, node: Option<NodeId>, deal: Option<Deal>, reason: String },
    /// A person is to be asked.
    Ask { negotiation: NegotiationId, deal: Deal },
    /// The skill that names prices had no answer.
    Skill { reason: String },
    /// What the ledger said of a reservation.
    Reservation { event: &'static str, held: Box<Reservation>, reason: String },
}

/// What is to be brought to the ledger, one after the other, while messages are answered.
#[derive(Debug)]
pub(crate) enum Todo {
    Announce(Box<Announcement>),
    Claim(Box<SignedReservation>),
}

/// What is signed, or asked about.
#[derive(Debug, Clone)]
pub(crate) struct Deal {
    pub(crate) contract: ContractId,
    pub(crate) name: Name,
    pub(crate) user: BotId,
    pub(crate) node: NodeId,
    pub(crate) price: Option<Grains>,
    pub(crate) duration_s: u64,
}

impl Deal {
    fn of(terms: &Terms) -> Self {
        Self {
            contract: terms.id(),
            name: terms.name.clone(),
            user: terms.user,
            node: terms.node,
            price: terms.price(),
            duration_s: terms.duration_s,
        }
    }
}

struct Inner {
    desk: Desk,
    journal: FileJournal<DeskEntry>,
    /// The newest books of each of our nodes that the desk was told.
    versions: BTreeMap<NodeId, u64>,
    todo: mpsc::Sender<Todo>,
    /// What names prices, within the policy.
    skill: Option<OwnSkill>,
}

/// What the ledger says of a node, at one height.
struct Seen {
    node: NodeId,
    books: Option<Books>,
    contracts: Vec<ContractId>,
}

pub(crate) struct Office {
    key: SecretKey,
    me: BotId,
    grid: Grid,
    farms: BTreeSet<FarmId>,
    inner: Mutex<Inner>,
}

impl Office {
    /// Opens the journal and takes up what it holds. What is received is to be carried out.
    pub(crate) fn open(
        key: &SecretKey,
        grid: Grid,
        farms: BTreeSet<FarmId>,
        policy: Policy,
        skill: Option<OwnSkill>,
        dir: &Path,
    ) -> Result<(Self, mpsc::Receiver<Todo>), OfficeError> {
        let mut journal = FileJournal::open(dir)?;
        let entries = still_promised(journal.entries()?);
        journal.replace(&entries)?;
        let party = Party { key: key.clone(), chain: grid.pin().chain };
        let mut desk = Desk::recover(party, policy, &entries, now_ms())?;
        desk.set_pricing(skill.clone().map(|skill| Box::new(skill) as Box<dyn Pricing>));
        let (todo, to_do) = mpsc::channel(TODO);
        let inner = Mutex::new(Inner { desk, journal, versions: BTreeMap::new(), todo, skill });
        Ok((Self { key: key.clone(), me: key.id(), grid, farms, inner }, to_do))
    }

    /// Brings something to the ledger and tells the desk what it said. Where nobody knows, the desk asks again: the
    /// ledger takes each announcement and each claim once.
    pub(crate) async fn carry_out(&self, todo: Todo) -> Result<Vec<News>, OfficeError> {
        let (command, held) = match &todo {
            Todo::Announce(announcement) => {
                (Command::AnnounceReservation(announcement.clone()), &announcement.reservation.reservation)
            }
            Todo::Claim(signed) => {
                let contract = signed.reservation.contract;
                (Command::ClaimReservation { contract }, &signed.reservation)
            }
        };
        let (contract, held) = (held.contract, Box::new(held.clone()));
        let result = match self.grid.submit(&self.key, &command).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.rejection().cloned().ok_or(error)?),
        };
        let mut news = Vec::new();
        let (event, reason) = match (&todo, &result) {
            (Todo::Announce(_), Ok(())) => {
                ("announced", format!("its buyer is silent: {} are held", held.fee))
            }
            (Todo::Claim(_), Ok(())) => {
                ("unused", format!("the reservation was not used: its fee of {} is paid", held.fee))
            }
            (Todo::Announce(_), Err(rejection)) => ("failed", format!("it can't be announced: {rejection}")),
            (Todo::Claim(_), Err(rejection)) => ("failed", format!("its fee is not due: {rejection}")),
        };
        news.push(News::Reservation { event, held, reason });
        let event = match todo {
            Todo::Announce(_) => DeskEvent::Announced { contract, result },
            Todo::Claim(_) => DeskEvent::Claimed { contract, result },
        };
        news.extend(self.lock()?.tell(event, self.me)?.1);
        Ok(news)
    }

    pub(crate) fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Takes a message of a caller that proved a key; gives its answer.
    pub(crate) async fn hear(
        &self,
        proved: PublicKey,
        message: Box<SignedMessage>,
    ) -> Result<(FarmResponse, Vec<News>), OfficeError> {
        let known = self.grid.verified().identity_of(proved).await;
        let caller = known.map_err(|error| OfficeError::Grid(self.grid.error(error)))?;
        let author = message.message.author;
        // What a replaced key signed is not heard from the key that replaced it either.
        if author == caller && message.signature.key(&author) != proved {
            return Err(OfficeError::OtherKey { author });
        }
        let Some((node, ports)) = self.concerns(&message)? else {
            // Nothing that is known here: the desk says so, without any look at the ledger.
            let mut inner = self.lock()?;
            return inner.tell(DeskEvent::Message { from: caller, funds: None, message }, caller);
        };
        let funds = Some(self.grid.account(caller).await?.balance);
        let mut looks = 0;
        loop {
            let seen = self.look(node, &ports).await?;
            looks += 1;
            let mut inner = self.lock()?;
            // Where others are always faster, the newer books that the desk has do.
            if inner.take(seen)? || looks >= LOOKS {
                return inner.told(DeskEvent::Message { from: caller, funds, message }, caller);
            }
        }
    }

    /// The person who was asked has decided. The buyer gets the answer when it asks again.
    pub(crate) async fn decide(
        &self,
        negotiation: NegotiationId,
        approved: bool,
    ) -> Result<Vec<News>, OfficeError> {
        let about = {
            let inner = self.lock()?;
            inner.desk.transcript(&negotiation).map(|t| (t.demand().node, asked_ports(&t.demand().ports)))
        };
        let Some((node, ports)) = about else { return Ok(Vec::new()) };
        let mut looks = 0;
        loop {
            let seen = self.look(node, &ports).await?;
            looks += 1;
            let mut inner = self.lock()?;
            if inner.take(seen)? || looks >= LOOKS {
                let decided = DeskEvent::Decided { negotiation, approved };
                return inner.told(decided, self.me).map(|(_, news)| news);
            }
        }
    }

    /// What time has made due: reservations that were not used are free again.
    pub(crate) async fn tick(&self) -> Result<Vec<News>, OfficeError> {
        let held: Vec<ContractId> = {
            let inner = self.lock()?;
            if inner.desk.next_wake_ms().is_none_or(|wake_ms| wake_ms > now_ms()) {
                return Ok(Vec::new());
            }
            let held = inner.desk.reservations().into_iter().map(|held| held.reservation.contract);
            held.chain(inner.desk.claims()).collect()
        };
        // What became a contract was used, whatever became of it since.
        let agreed = self.grid.contracts(&held).await?;
        let mut inner = self.lock()?;
        let mut news = Vec::new();
        for contract in agreed {
            news.extend(inner.tell(DeskEvent::Agreed { contract: contract.id }, self.me)?.1);
        }
        news.extend(inner.told(DeskEvent::Tick, self.me)?.1);
        inner.rewrite_journal()?;
        Ok(news)
    }

    /// Reservations that stand.
    pub(crate) fn promised(&self) -> Result<usize, OfficeError> {
        Ok(self.lock()?.desk.reservations().len())
    }

    fn lock(&self) -> Result<MutexGuard<'_, Inner>, OfficeError> {
        // A call that panicked may have left half a change behind.
        self.inner.lock().map_err(|_| OfficeError::Broken)
    }

    /// Which node a message is about, and which ports are asked for there.
    fn concerns(&self, message: &SignedMessage) -> Result<Option<(NodeId, Vec<PublishedPort>)>, OfficeError> {
        if let Said::Demand(demand) = &message.message.said {
            return Ok(Some((demand.node, asked_ports(&demand.ports))));
        }
        let inner = self.lock()?;
        let known = inner.desk.transcript(&message.message.negotiation);
        Ok(known.map(|known| (known.demand().node, asked_ports(&known.demand().ports))))
    }

    async fn look(&self, node: NodeId, ports: &[PublishedPort]) -> Result<Seen, OfficeError> {
        let Some(found) = self.grid.node(node).await? else {
            return Ok(Seen { node, books: None, contracts: Vec::new() });
        };
        let contracts = found.contracts.clone();
        let farm_id = found.body.farm;
        let farm = if self.farms.contains(&farm_id) { self.grid.farm(farm_id).await? } else { None };
        let Some(farm) = farm.filter(|farm| farm.owner == self.me) else {
            return Ok(Seen { node, books: None, contracts });
        };
        let keys: Vec<_> = ports.iter().map(|port| (node, *port)).collect();
        let taken = self.grid.ports_taken(&keys).await?;
        let taken_ports =
            ports.iter().zip(taken).filter(|(_, taken)| *taken).map(|(port, _)| *port).collect();
        let books = Books {
            farm: farm_id,
            country: farm.country,
            region: farm.region,
            prices: farm.prices,
            capacity: found.capacity,
            taken_ports,
            contracts: found.contracts.len(),
            reserved: found.reserved.into_iter().collect(),
            is_draining: found.draining.is_some(),
            connected: self.grid.presence_unproved(&[node]).await?.first().copied(),
        };
        Ok(Seen { node, books: Some(books), contracts })
    }
}

/// A list that is too long is refused by the desk; it need not be looked up.
fn asked_ports(ports: &[PublishedPort]) -> Vec<PublishedPort> {
    ports.iter().take(limits::PORTS_PER_CONTRACT).copied().collect()
}

/// What was promised and is neither free again nor settled, oldest first.
fn still_promised(entries: Vec<DeskEntry>) -> Vec<DeskEntry> {
    let over: BTreeSet<ContractId> = entries
        .iter()
        .filter_map(|entry| match entry {
            DeskEntry::Freed(contract) | DeskEntry::Settled(contract) => Some(*contract),
            DeskEntry::Held(_) | DeskEntry::Announcing(_) | DeskEntry::Unused(_) => None,
        })
        .collect();
    let stands = |entry: &DeskEntry| match entry {
        // What is held is the last proposal.
        DeskEntry::Held(transcript) => {
            transcript.proposal().is_some_and(|(terms, ..)| !over.contains(&terms.id()))
        }
        DeskEntry::Announcing(contract) | DeskEntry::Unused(contract) => !over.contains(contract),
        DeskEntry::Freed(_) | DeskEntry::Settled(_) => false,
    };
    entries.into_iter().filter(stands).collect()
}

impl Inner {
    /// Tells the desk what the ledger says. Returns whether these are the newest books that it knows.
    fn take(&mut self, seen: Seen) -> Result<bool, OfficeError> {
        let Seen { node, books, contracts } = seen;
        // A contract on the ledger is there for good, however old the look at it.
        for contract in contracts {
            self.tell(DeskEvent::Agreed { contract }, node)?;
        }
        match &books {
            Some(books) => {
                let version = self.versions.entry(node).or_default();
                if books.capacity.version < *version {
                    return Ok(false);
                }
                *version = books.capacity.version;
            }
            None => drop(self.versions.remove(&node)),
        }
        self.tell(DeskEvent::Books { node, books: books.map(Box::new) }, node)?;
        Ok(true)
    }

    /// Carries out what the desk wants, in its order. What is written survives before anything after it is said.
    fn tell(&mut self, event: DeskEvent, caller: BotId) -> Result<(FarmResponse, Vec<News>), OfficeError> {
        let is_repeat = self.is_repeat(&event);
        let (mut response, mut news) = (FarmResponse::Heard, Vec::new());
        for output in self.desk.handle(event, now_ms()) {
            match output {
                DeskOutput::Write(entry) => self.journal.write(&entry)?,
                DeskOutput::Send { to, message } => {
                    if !is_repeat {
                        news.extend(self.said(&message));
                    }
                    if to == caller {
                        response = FarmResponse::Said { message };
                    }
                }
                DeskOutput::Ask { negotiation, terms } => {
                    news.push(News::Ask { negotiation, deal: Deal::of(&terms) });
                }
                // What finds no place the desk asks for again.
                DeskOutput::Announce(announcement) => {
                    drop(self.todo.try_send(Todo::Announce(announcement)));
                }
                DeskOutput::Claim(reservation) => drop(self.todo.try_send(Todo::Claim(reservation))),
                DeskOutput::Refused { from, refusal } => {
                    let reason = refusal.to_string();
                    news.push(News::Refused { user: from, node: None, deal: None, reason: reason.clone() });
                    response = FarmResponse::Refused { reason };
                }
            }
        }
        Ok((response, news))
    }

    /// As [`Self::tell`], for what is passed on to a person: with what went wrong in the skill since the last time.
    fn told(&mut self, event: DeskEvent, caller: BotId) -> Result<(FarmResponse, Vec<News>), OfficeError> {
        let (response, mut news) = self.tell(event, caller)?;
        let trouble = self.skill.as_ref().and_then(OwnSkill::take_trouble);
        news.extend(trouble.map(|reason| News::Skill { reason }));
        Ok((response, news))
    }

    /// Whether an event only makes the desk say again what it said.
    fn is_repeat(&self, event: &DeskEvent) -> bool {
        let DeskEvent::Message { message, .. } = event else { return false };
        self.desk.transcript(&message.message.negotiation).is_some_and(|known| known.holds(message))
    }

    /// What is worth a line: signatures and refusals, not every price.
    fn said(&self, message: &SignedMessage) -> Option<News> {
        let transcript = self.desk.transcript(&message.message.negotiation)?;
        let deal = transcript.proposal().map(|(terms, ..)| Deal::of(terms));
        match &message.message.said {
            Said::Approve { .. } => deal.map(News::Signed),
            // The buyer is still haggling.
            Said::Reject { last: false, reason: Reason::PriceTooLow } => None,
            Said::Reject { reason, .. } => {
                let demand = transcript.demand();
                let (user, node) = (demand.buyer, Some(demand.node));
                Some(News::Refused { user, node, deal, reason: reason.to_string() })
            }
            _ => None,
        }
    }

    fn rewrite_journal(&mut self) -> Result<(), OfficeError> {
        if self.journal.bytes() >= REWRITE_BYTES {
            let entries = still_promised(self.journal.entries()?);
            self.journal.replace(&entries)?;
        }
        Ok(())
    }
}
