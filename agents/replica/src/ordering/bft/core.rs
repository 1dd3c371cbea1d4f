//! One validator without I/O of its own but its two files: events and time go in, messages to others come out.
//!
//! ```text
//!             ┌────────────── waiting ─────────────┐  nothing to decide: nothing is said
//!             │ command, heartbeat, vote of others │
//!             v                                    │
//!          deciding ── engine: propose, prevote, precommit, next round ──> decided ──> committed
//!             │                                                                ^
//!             └── others are further: their certified blocks are executed ─────┘
//! ```
//! It must never let a message out before the consensus log holds what it stands on, never sign at a height that
//! an earlier log may have signed, and never commit a block without a certificate of the validators in force.
//! The same code runs in a replica and in the simulator, so it draws neither time nor randomness by itself.

mod blocks;
mod proposals;
mod shell;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_ledger::{StateError, StateReadExt, assemble};
use croft_protocol::{
    Body as RecordBody, Hash, PublicKey, RecordId, SecretKey, SignedHeader, ValidatorSet, limits,
};
use malachite::{Input, LocallyProposedValue, State};
use malachite_types::{LinearTimeouts, Round, ThresholdParams, ValuePayload, VoteExtensionPolicy};
use tokio::time::Instant;

use self::shell::Shell;
use super::context::{CommitCertificate, Grid, Height, Member, SignedProposal, Validators, Value};
use super::evidence::Evidence;
use super::log::{Entry, Log, LogError};
use super::message::{Body, GOSSIP_BYTES, PeerMessage};
use crate::chain::Chain;
use crate::ordering::mempool::Mempool;
use crate::ordering::{Verdict, make_block};
use crate::store::{Block, Snapshot, StoreError};

/// How long a proposer may take; grows with each round that fails.
const TIMEOUTS: LinearTimeouts = LinearTimeouts {
    propose: Duration::from_secs(1),
    propose_delta: Duration::from_millis(500),
    prevote: Duration::from_millis(300),
    prevote_delta: Duration::from_millis(200),
    precommit: Duration::from_millis(300),
    precommit_delta: Duration::from_millis(200),
    rebroadcast: Duration::from_secs(1),
    max_timeout: Duration::from_secs(20),
};
/// Messages of later heights that are kept, and of each of them.
const QUEUED_HEIGHTS: usize = 16;
const QUEUED_PER_HEIGHT: usize = 1_024;
/// Between two words about how far we are.
const STATUS_MS: u64 = 1_000;
/// Commands that are looked at each time because they have waited for long: bounds what that costs.
const OVERDUE: usize = 64;
/// After the ledger's file failed.
const RETRY_MS: u64 = 1_000;

/// Both clocks of the machine, as they are when an event is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the process started: for time limits.
    pub since_ms: u64,
    /// Milliseconds since 1970, UTC: for block time.
    pub wall_ms: u64,
}

/// What happens to a validator.
#[derive(Debug)]
pub enum Event {
    /// A link to a replica came up.
    Connected(PublicKey),
    Gone(PublicKey),
    Message(PublicKey, Box<PeerMessage>),
    /// Commands were put into the queue by clients of this replica.
    Arrived,
    /// [`Core::wake_at`] has come.
    Tick,
}

/// What a validator wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Send(PublicKey, PeerMessage),
    Broadcast(PeerMessage),
    Evidence(Evidence),
}

/// How a validator is, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why nothing is signed, if so.
    pub not_signing: Option<String>,
    /// Why no block can be stored, if so.
    pub trouble: Option<String>,
    /// The height and round under way; none while there is nothing to decide.
    pub deciding: Option<(u64, u32)>,
    /// Connected replicas and how far they say they are.
    pub peers: Vec<(PublicKey, u64)>,
}

#[derive(Debug, Default)]
struct Peer {
    height: u64,
    earliest: u64,
    loose: VecDeque<Body>,
}

/// What came of asking a peer for blocks.
#[derive(Debug, Default)]
struct Credit {
    /// How often in a row it did not send what it said it has.
    failures: u32,
    /// Until then it is not believed.
    doubted_until: u64,
}

/// A block of the height that is being decided, executed.
#[derive(Debug)]
struct Built {
    body: Body,
    block: Block,
}

/// A proposal whose body is awaited.
#[derive(Debug)]
struct Wanted {
    proposal: SignedProposal,
    ask_at: u64,
    asked: usize,
}

#[derive(Debug)]
enum Todo {
    MakeBlock(Round),
    Restream(Hash),
    Decided(CommitCertificate),
}

#[derive(Debug)]
struct Request {
    peer: PublicKey,
    until: u64,
}

/// One validator, or an observer that follows the others.
pub struct Core {
    state: State<Grid>,
    shell: Shell,
    pool: Arc<Mutex<Mempool>>,
    epoch: Instant,
    peers: BTreeMap<PublicKey, Peer>,
    /// Bodies of this height that were executed, by the hash of their header.
    built: BTreeMap<Hash, Built>,
    /// Which block this validator made for a round of this height.
    made: BTreeMap<u32, Hash>,
    wanted: BTreeMap<Value, Wanted>,
    /// What was proposed in each round of this height: a liar may not have us fetch and execute without
    /// end.
    proposed: BTreeMap<u32, BTreeSet<Value>>,
    /// What turned out to be no block. A header may stand beside the body of another: both count.
    refused: BTreeSet<Value>,
    /// Whether the engine works on the height after the tip.
    deciding: bool,
    /// Somebody voted or proposed at the next height.
    heard_next: bool,
    /// A final block that could not be stored, and when to try again.
    unstored: Option<(Box<Block>, u64)>,
    /// The ledger's file failed; when to open it again.
    mend_at: Option<u64>,
    /// Nothing was done yet in this process.
    begins: bool,
    heartbeat_at: u64,
    status_at: u64,
    /// When to ask for blocks, where others are said to be further.
    ask_at: Option<u64>,
    request: Option<Request>,
    /// Stays when a link breaks, so that a liar gains nothing by breaking it.
    credit: BTreeMap<PublicKey, Credit>,
    gossiped: u64,
    /// A fault on purpose: takes blocks without looking at their certificates.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) is_credulous: bool,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("key", &self.shell.key)
            .field("height", &self.shell.chain.latest().height())
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The validators that certify the block after the tip.
fn next_validators(tip: &Snapshot) -> Result<ValidatorSet, StoreError> {
    let signed = tip.tip();
    if signed.header.next_validators == signed.header.validators {
        return Ok(signed.validators.clone());
    }
    match tip.record(&RecordId::validators())?.map(|record| record.body) {
        Some(RecordBody::Validators(set)) if set.hash() == signed.header.next_validators => Ok(set),
        _ => Err(StoreError::Damaged {
            what: "the record of its validators is not that of its header".to_owned(),
        }),
    }
}

impl Core {
    /// A validator on its ledger. Without a log it signs nothing and follows the others.
    ///
    /// # Errors
    /// [`StoreError`] when the ledger does not know its validators; [`LogError`] as text in [`Health`] otherwise.
    pub fn new(
        chain: Arc<Chain>,
        log: Result<Log, LogError>,
        key: SecretKey,
        pool: Arc<Mutex<Mempool>>,
        epoch: Instant,
        now: Now,
    ) -> Result<Self, StoreError> {
        let tip = chain.latest();
        let validators = Validators::new(&next_validators(&tip)?);
        let params = malachite::Params {
            address: Member(key.public()),
            threshold_params: ThresholdParams::default(),
            value_payload: ValuePayload::ProposalAndParts,
            enabled: false,
        };
        let height = Height(tip.height() + 1);
        let state = State::new(Grid, height, validators, params, QUEUED_HEIGHTS, QUEUED_PER_HEIGHT);
        let mut health = Health::default();
        let log = match log {
            Ok(log) => Some(log),
            Err(error) => {
                let reason = crate::chain_of(&error);
                tracing::error!(
                    reason,
                    "this replica signs nothing: its consensus log can't be trusted; it follows the others. \
                     To sign again: stop it, run 'replica rejoin', start it"
                );
                health.not_signing = Some(reason);
                None
            }
        };
        let shell = Shell {
            key,
            chain,
            log,
            now,
            replaying: false,
            timers: Vec::new(),
            todo: VecDeque::new(),
            out: Vec::new(),
            health,
            proposed: None,
        };
        let mut core = Self {
            state,
            shell,
            pool,
            epoch,
            peers: BTreeMap::new(),
            built: BTreeMap::new(),
            made: BTreeMap::new(),
            wanted: BTreeMap::new(),
            proposed: BTreeMap::new(),
            refused: BTreeSet::new(),
            deciding: false,
            heard_next: false,
            unstored: None,
            mend_at: None,
            begins: true,
            heartbeat_at: now.since_ms + limits::HEARTBEAT_MS,
            status_at: now.since_ms,
            ask_at: None,
            request: None,
            credit: BTreeMap::new(),
            gossiped: 0,
            #[cfg(any(test, feature = "sim"))]
            is_credulous: false,
        };
        // What was begun before a crash goes on at once: others may wait for it.
        core.heard_next = core.recovered().is_some_and(|entries| !entries.is_empty());
        Ok(core)
    }

    fn recovered(&mut self) -> Option<Vec<Entry>> {
        let height = self.height();
        match self.shell.log.as_ref()?.entries(height) {
            Ok(entries) => Some(entries),
            Err(error) => {
                self.shell.lose_log(&error);
                None
            }
        }
    }

    /// The height that is decided next.
    fn height(&self) -> u64 {
        self.shell.chain.latest().height() + 1
    }

    /// Handles one event. To be called again when [`Self::wake_at`] has come.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Output> {
        self.shell.now = now;
        if std::mem::take(&mut self.begins) {
            // The log is read before anything else is heard: what is heard may not change what was said.
            self.settle();
        }
        match event {
            Event::Connected(peer) => self.connected(peer),
            Event::Gone(peer) => {
                self.peers.remove(&peer);
            }
            Event::Message(from, message) => self.message(from, *message),
            Event::Arrived => self.gossip(),
            Event::Tick => {}
        }
        self.elapsed();
        self.settle();
        self.shell.health.peers = self.peers.iter().map(|(key, peer)| (*key, peer.height)).collect();
        self.shell.health.deciding =
            self.deciding.then(|| (self.state.height().0, self.state.round().as_u32().unwrap_or_default()));
        std::mem::take(&mut self.shell.out)
    }

    /// When something has to be done without any event, in [`Now::since_ms`].
    #[must_use]
    pub fn wake_at(&self) -> u64 {
        let mut at = self.status_at;
        if self.is_free() {
            at = at.min(self.heartbeat_at);
        }
        for (_, timer) in &self.shell.timers {
            at = at.min(*timer);
        }
        for wanted in self.wanted.values().filter(|_| self.deciding) {
            at = at.min(wanted.ask_at);
        }
        let asks = match &self.request {
            Some(request) => Some(request.until),
            None => self.ask_at.filter(|_| self.unstored.is_none()),
        };
        let retries = self.unstored.as_ref().map(|(_, retry_at)| *retry_at);
        for waits in [asks, retries, self.mend_at].into_iter().flatten() {
            at = at.min(waits);
        }
        at
    }

    #[must_use]
    pub fn health(&self) -> &Health {
        &self.shell.health
    }

    /// Whether this replica's key is among those who decide the next block.
    #[must_use]
    pub fn is_validator(&self) -> bool {
        use malachite_types::ValidatorSet as _;
        self.state.validator_set().get_by_address(self.state.address()).is_some()
    }

    // ---- peers -------------------------------------------------------------------------------------------

    fn connected(&mut self, peer: PublicKey) {
        self.peers.entry(peer).or_default();
        let status = self.status();
        self.shell.out.push(Output::Send(peer, status));
        if let Some(proposed) = self.shell.proposed.clone() {
            self.shell.out.push(Output::Send(peer, proposed));
        }
    }

    fn status(&self) -> PeerMessage {
        let tip = self.shell.chain.latest();
        // Unreadable is as good as absent.
        let earliest = tip.earliest_commands().unwrap_or(u64::MAX);
        PeerMessage::Status { height: tip.height(), earliest }
    }

    fn message(&mut self, from: PublicKey, message: PeerMessage) {
        match message {
            PeerMessage::Status { height, earliest } => {
                let peer = self.peers.entry(from).or_default();
                (peer.height, peer.earliest) = (height, earliest);
            }
            PeerMessage::Vote(vote) => {
                // While a height is decided its own votes are no reason to begin the one after it.
                self.heard_next |= !self.deciding && vote.message.height.0 == self.height();
                self.feed(Input::Vote(vote.into()));
            }
            PeerMessage::Proposal(proposal) => self.proposal(proposal.into()),
            PeerMessage::PolkaCertificate(certificate) => {
                if self.deciding && certificate.polka_signatures.len() <= limits::VALIDATORS {
                    self.feed(Input::PolkaCertificate(certificate));
                }
            }
            PeerMessage::RoundCertificate(certificate) => {
                if self.deciding && certificate.round_signatures.len() <= 2 * limits::VALIDATORS {
                    self.feed(Input::RoundCertificate(certificate));
                }
            }
            PeerMessage::Body(body) => self.body(from, body),
            PeerMessage::WantBody { height, body } => {
                let found = self.built.values().find(|built| built.body.hash() == body);
                if let Some(built) = found.filter(|_| height == self.height()) {
                    self.shell.out.push(Output::Send(from, PeerMessage::Body(built.body.clone())));
                }
            }
            PeerMessage::Commands(commands) => self.commands(commands),
            PeerMessage::WantBlocks { first, count } => {
                let blocks = self.blocks(first, count);
                self.shell.out.push(Output::Send(from, PeerMessage::Blocks(blocks)));
            }
            PeerMessage::Blocks(blocks) => self.take_blocks(from, blocks),
        }
    }

    // ---- commands ----------------------------------------------------------------------------------------

    /// Tells the others of commands that came in here.
    fn gossip(&mut self) {
        let fresh = lock(&self.pool).take_fresh(GOSSIP_BYTES);
        if !fresh.is_empty() && !self.peers.is_empty() {
            self.gossiped += fresh.len() as u64;
            self.shell.out.push(Output::Broadcast(PeerMessage::Commands(fresh)));
        }
    }

    /// Takes commands that others have admitted, after looking at them ourselves.
    fn commands(&mut self, commands: Vec<croft_protocol::SignedCommand>) {
        let tip = self.shell.chain.latest();
        let now = self.instant();
        let new: Vec<_> = {
            let pool = lock(&self.pool);
            commands.into_iter().filter(|command| !pool.knows(command)).collect()
        };
        tip.learn_signatures(&new);
        for command in new {
            let admitted =
                croft_ledger::check_admission(&*tip, &tip.tip().header.chain, tip.height() + 1, &command);
            if matches!(admitted, Ok(Ok(()))) {
                // A full queue or a taken number: its author hears of it from the replica that it asked.
                let _ = lock(&self.pool).insert_passed_on(command, now);
            }
        }
    }

    /// What waits for too long is refused, or told to the others once more: whoever proposes may have refused it, and
    /// only he knows, or may never have heard of it.
    fn look_through_queue(&mut self) -> Result<(), StateError> {
        let (tip, instant) = (self.shell.chain.latest(), self.instant());
        let next = |author: &PublicKey| tip.account(author).map(|account| account.next_sequence);
        let overdue = {
            let mut pool = lock(&self.pool);
            pool.drop_gaps(instant, next)?;
            pool.overdue(instant, OVERDUE, next)?
        };
        // Who is behind knows too little to refuse anything.
        let is_behind = self.request.is_some() || self.ask_at.is_some();
        if overdue.is_empty() || is_behind {
            return Ok(());
        }
        // The grid's time and not ours: a clock that is wrong must not refuse what is right.
        let block = make_block(&tip, tip.tip().header.time_ms + 1, &overdue, unsigned(&tip))?;
        let mut pool = lock(&self.pool);
        for (command, result) in overdue.iter().zip(block.outcome.results) {
            match result {
                Ok(_) => pool.pass_on_again(command),
                Err(rejection) => pool.settle(command, Verdict::Rejected(rejection)),
            }
        }
        drop(pool);
        self.gossip();
        Ok(())
    }

    fn instant(&self) -> Instant {
        self.epoch + Duration::from_millis(self.shell.now.since_ms)
    }

    // ---- one height --------------------------------------------------------------------------------------

    /// Gives the engine an input and remembers what it asks for. `false` when the engine can't take it.
    fn feed(&mut self, input: Input<Grid>) -> bool {
        let (state, shell) = (&mut self.state, &mut self.shell);
        let result: Result<(), malachite::Error<Grid>> = malachite::process!(
            input: input,
            state: state,
            metrics: &(),
            with: effect => Ok::<_, std::convert::Infallible>(shell.effect(effect))
        );
        if let Err(error) = &result {
            tracing::warn!(%error, "the engine refuses an input");
        }
        result.is_ok()
    }

    /// Whether the next height may be begun.
    fn is_free(&self) -> bool {
        !self.deciding && self.unstored.is_none() && self.mend_at.is_none() && self.request.is_none()
    }

    /// Whether there is a reason to decide the next block.
    fn has_reason(&self) -> bool {
        self.heard_next || self.shell.now.since_ms >= self.heartbeat_at || !lock(&self.pool).is_empty()
    }

    fn start_height(&mut self) {
        let tip = self.shell.chain.latest();
        let validators = match next_validators(&tip) {
            Ok(set) => Validators::new(&set),
            Err(error) => return self.fails(&error),
        };
        let height = Height(tip.height() + 1);
        let entries = self.recovered().unwrap_or_default();
        let may_sign = self.shell.log.as_ref().is_some_and(|log| height.0 > log.sign_above());
        self.state.params.enabled = may_sign;
        self.deciding = true;
        self.heard_next = false;
        self.shell.replaying = !entries.is_empty();
        self.feed(Input::StartHeight(height, validators, false, None, VoteExtensionPolicy::Disabled));
        if !entries.is_empty() {
            self.replay(&tip, entries);
        }
        self.match_bodies();
        self.ask_for_bodies();
    }

    /// Brings the engine to where it was when the process ended.
    fn replay(&mut self, tip: &Snapshot, entries: Vec<Entry>) {
        tracing::info!(height = tip.height() + 1, entries = entries.len(), "the consensus log is read again");
        for entry in &entries {
            let Entry::Body { made_in, body } = entry else { continue };
            match Self::execute(tip, body.clone()) {
                Ok(Some((header, built))) => {
                    if let Some(round) = made_in {
                        self.made.insert(*round, header);
                    }
                    self.built.insert(header, built);
                }
                Ok(None) => {}
                Err(error) => self.fails(&error),
            }
        }
        let inputs: Vec<Input<Grid>> = entries.into_iter().filter_map(Entry::input).collect();
        self.state.index_wal_entries(inputs.iter());
        let mut agrees = true;
        for input in inputs {
            agrees &= self.feed(input);
        }
        self.state.reset_entries_index();
        self.shell.replaying = false;
        if !agrees {
            // Whoever derives something else than it said before must say nothing more.
            self.state.params.enabled = false;
            self.shell.stop_signing("the consensus log leads to other votes than it holds".to_owned());
        }
    }

    /// What the engine asked for, timers that fired, and everything that follows from them.
    fn settle(&mut self) {
        loop {
            while let Some(todo) = self.shell.todo.pop_front() {
                match todo {
                    Todo::MakeBlock(round) => self.make_block(round),
                    Todo::Restream(header) => {
                        if let Some(built) = self.built.get(&header) {
                            self.shell.say(PeerMessage::Body(built.body.clone()));
                        }
                    }
                    Todo::Decided(certificate) => self.decide(certificate),
                }
            }
            self.check_peers();
            if self.is_free() && self.has_reason() {
                self.start_height();
            } else if self.shell.todo.is_empty() {
                break;
            }
        }
    }

    fn elapsed(&mut self) {
        let now = self.shell.now.since_ms;
        if now >= self.status_at {
            self.status_at = now + STATUS_MS;
            let status = self.status();
            self.shell.say(status);
            if let Err(error) = self.look_through_queue() {
                tracing::warn!(%error, "the queue can't be looked through");
            }
        }
        while let Some(index) = self.shell.timers.iter().position(|(_, at)| *at <= now) {
            let (timeout, _) = self.shell.timers.swap_remove(index);
            self.feed(Input::TimeoutElapsed(timeout));
        }
        self.mend();
        self.ask_for_bodies();
    }

    /// Makes the block that this validator proposes.
    fn make_block(&mut self, round: Round) {
        let tip = self.shell.chain.latest();
        let Some(number) = round.as_u32() else { return };
        if self.state.height().0 != tip.height() + 1 {
            return;
        }
        if !self.made.contains_key(&number) {
            let Some((header, built)) = self.fresh_block(&tip) else { return };
            self.shell.append(&Entry::Body { made_in: Some(number), body: built.body.clone() });
            self.made.insert(number, header);
            self.built.insert(header, built);
        }
        let header = self.made[&number];
        let Some(built) = self.built.get(&header) else { return };
        let body = built.body.clone();
        let value = Value { header, body: body.hash() };
        self.feed(Input::Propose(LocallyProposedValue::new(self.state.height(), round, value)));
        if self.shell.flush(tip.height() + 1) {
            self.shell.say(PeerMessage::Body(body));
        }
    }

    /// A block of what waits. Commands that fail are refused now; the block holds those that succeed.
    fn fresh_block(&mut self, tip: &Snapshot) -> Option<(Hash, Built)> {
        let next = |author: &PublicKey| tip.account(author).map(|account| account.next_sequence);
        let picked = lock(&self.pool).peek_batch(next);
        let batch = match picked {
            Ok(batch) => batch,
            Err(error) => {
                self.fails(&error);
                return None;
            }
        };
        let time_ms = self.shell.now.wall_ms.max(tip.tip().header.time_ms + 1);
        let mut block = match make_block(tip, time_ms, &batch, unsigned(tip)) {
            Ok(block) => block,
            Err(error) => {
                self.fails(&error);
                return None;
            }
        };
        // A refused command changes nothing, so the block without it is the same block.
        let results = std::mem::take(&mut block.outcome.results);
        let commands = std::mem::take(&mut block.commands);
        for (command, result) in commands.into_iter().zip(results) {
            match result {
                Ok(receipt) => {
                    block.commands.push(command);
                    block.outcome.results.push(Ok(receipt));
                }
                Err(rejection) => lock(&self.pool).settle(&command, Verdict::Rejected(rejection)),
            }
        }
        let body = Body { height: tip.height() + 1, time_ms, commands: block.commands.clone() };
        Some((block.signed.header.hash(), Built { body, block }))
    }

    /// Executes a body on the tip; `None` when it can't be a block.
    ///
    /// # Errors
    /// When the ledger can't be read: that says nothing of the body.
    fn execute(tip: &Snapshot, body: Body) -> Result<Option<(Hash, Built)>, StateError> {
        if body.height != tip.height() + 1
            || body.time_ms <= tip.tip().header.time_ms
            || body.commands.len() > limits::COMMANDS_PER_BLOCK
        {
            return Ok(None);
        }
        let block = make_block(tip, body.time_ms, &body.commands, unsigned(tip))?;
        Ok(Some((block.signed.header.hash(), Built { body, block })))
    }
}

/// For blocks that nobody has certified yet.
fn unsigned(tip: &Snapshot) -> impl FnOnce(croft_protocol::Header) -> SignedHeader {
    let set = tip.tip().validators.clone();
    move |header| assemble::with_signatures(header, 0, set, Vec::new())
}
