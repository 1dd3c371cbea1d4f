//! Those who submit commands: people, a farmer, a machine and whoever changes the validators.
//!
//! ```text
//!   make ──> outstanding ──submit to some replica──> waits ──┬─ final: gone
//!                 ^                                          ├─ rejected: looks at the ledger, makes another
//!                 └────────── no answer in time ─────────────┘
//! ```
//! Each is as simple as a real one may be: it knows its key, asks one replica after the other, and submits the same
//! command again until it hears what became of it.

use std::collections::VecDeque;

use croft_ledger::{MemoryLedger, StateReadExt};
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::contract::Quorum;
use croft_protocol::header::Allocation;
use croft_protocol::keys::Domain;
use croft_protocol::record::{
    BotBody, ContractReport, HardwareSummary, NodeBody, ReportBody, TrustClass, WorkloadState,
};
use croft_protocol::{
    Body, Capacity, Command, CommandBody, FarmId, Grains, Hash, Name, PriceList, Rate, RecordId, Rejection,
    SecretKey, SignedCommand, SignedTerms, SignedValidatorChange, Terms, ValidatorChange, ValidatorSet,
    limits,
};
use tokio::sync::oneshot;

use super::oracle::{Check, Oracle, ensure};
use super::random::Random;
use crate::ordering::Verdict;

/// What each bot owns in the beginning.
const ALLOWANCE: u64 = 1_000_000;
/// How long a submitter waits before it asks another replica.
const PATIENCE_MS: u64 = 6_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    User,
    Farmer,
    Node,
    Bystander,
    /// Nobody knows it yet.
    Stranger,
}

#[derive(Debug)]
struct Outstanding {
    command: SignedCommand,
    hash: Hash,
    asked: Vec<oneshot::Receiver<Verdict>>,
    ask_again_at: u64,
}

#[derive(Debug)]
struct Author {
    key: SecretKey,
    role: Role,
    outstanding: VecDeque<Outstanding>,
}

/// A command for a replica, and whose it is.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) author: usize,
    pub(crate) hash: Hash,
    pub(crate) command: SignedCommand,
}

pub(crate) struct Clients {
    random: Random,
    authors: Vec<Author>,
    /// The validators to come, and when they are to.
    change: Option<(u64, ValidatorSet, Vec<SecretKey>)>,
    nonce: u64,
    pub(crate) made: u64,
    pub(crate) refused: u64,
}

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn name(text: &str) -> Name {
    text.parse().expect("the simulator's names are names")
}

fn user() -> SecretKey {
    key(1)
}

fn farmer() -> SecretKey {
    key(2)
}

fn machine() -> SecretKey {
    key(3)
}

fn farm() -> FarmId {
    FarmId::new(&farmer().public(), &name("green"))
}

/// Who owns grains in the beginning.
pub(crate) fn allocations() -> Vec<Allocation> {
    [("alice", 1), ("fred", 2), ("olga", 4), ("otto", 5)]
        .map(|(bot, seed)| Allocation { name: name(bot), bot: key(seed).public(), grains: Grains(ALLOWANCE) })
        .to_vec()
}

impl Clients {
    pub(crate) fn new(random: Random) -> Self {
        let roles = [
            (1, Role::User),
            (2, Role::Farmer),
            (3, Role::Node),
            (4, Role::Bystander),
            (5, Role::Bystander),
            (6, Role::Stranger),
        ];
        let author = |(seed, role)| Author { key: key(seed), role, outstanding: VecDeque::new() };
        let authors = roles.into_iter().map(author).collect();
        Self { random, authors, change: None, nonce: 0, made: 0, refused: 0 }
    }

    /// At a time, other validators are brought to the ledger, with these keys' signatures.
    pub(crate) fn plan_change(&mut self, at_ms: u64, to: ValidatorSet, signers: Vec<SecretKey>) {
        self.change = Some((at_ms, to, signers));
    }

    pub(crate) fn count(&self) -> usize {
        self.authors.len()
    }

    /// Whether nobody waits for anything.
    pub(crate) fn are_content(&self) -> bool {
        self.authors.iter().all(|author| author.outstanding.is_empty()) && self.change.is_none()
    }

    /// What somebody still waits for, in words.
    pub(crate) fn waiting(&self) -> Vec<String> {
        let all = self.authors.iter().flat_map(|author| &author.outstanding);
        all.map(|o| format!("{} {} {:?}", o.command.body.author.short(), o.command.body.sequence, o.hash))
            .collect()
    }

    /// How long until this author looks again.
    pub(crate) fn pause_ms(&mut self) -> u64 {
        self.random.between(50, 600)
    }

    /// One author's turn: hears its answers, and says what it wants submitted now.
    pub(crate) fn turn(
        &mut self,
        author: usize,
        now_ms: u64,
        wall_ms: u64,
        makes_more: bool,
        oracle: &mut Oracle,
    ) -> Check<Vec<Submission>> {
        self.hear(author, oracle)?;
        let room = self.random.between(1, 3) as usize;
        let waits = self.authors[author].outstanding.len();
        let changes = self.change.is_some() && self.authors[author].role == Role::Bystander && waits == 0;
        if (makes_more || changes) && waits < room {
            self.make(author, now_ms, wall_ms, oracle);
        }
        let mut submissions = Vec::new();
        for o in &mut self.authors[author].outstanding {
            if o.ask_again_at > now_ms {
                continue;
            }
            o.ask_again_at = now_ms + PATIENCE_MS;
            submissions.push(Submission { author, hash: o.hash, command: o.command.clone() });
        }
        Ok(submissions)
    }

    fn hear(&mut self, author: usize, oracle: &Oracle) -> Check {
        let mut at = 0;
        while at < self.authors[author].outstanding.len() {
            let o = &mut self.authors[author].outstanding[at];
            let mut verdict = None;
            o.asked.retain_mut(|answer| match answer.try_recv() {
                Ok(heard) => {
                    // A final one counts more than a rejected one: replicas may be at different heights.
                    if !matches!(verdict, Some(Verdict::Final { .. })) {
                        verdict = Some(heard);
                    }
                    false
                }
                Err(oneshot::error::TryRecvError::Empty) => true,
                Err(oneshot::error::TryRecvError::Closed) => {
                    o.ask_again_at = 0;
                    false
                }
            });
            match verdict {
                Some(Verdict::Final { height, .. }) => {
                    oracle.acknowledged(&o.hash, height)?;
                    self.authors[author].outstanding.remove(at);
                    continue;
                }
                Some(Verdict::Rejected(rejection)) if self.rejected(author, at, &rejection, oracle) => {
                    continue;
                }
                Some(Verdict::Failed(_)) => self.authors[author].outstanding[at].ask_again_at = 0,
                _ => {}
            }
            at += 1;
        }
        Ok(())
    }

    /// What an author does about a rejection; `true` when the command is given up or known to be final.
    fn rejected(&mut self, author: usize, at: usize, rejection: &Rejection, oracle: &Oracle) -> bool {
        let outstanding = &mut self.authors[author].outstanding;
        let o = &mut outstanding[at];
        if oracle.is_final(&o.hash) {
            outstanding.remove(at);
            return true;
        }
        match rejection {
            Rejection::Busy { .. } => false,
            // The one before it is not there yet.
            Rejection::Sequence { got, expected, .. } if got > expected => false,
            _ => {
                // Those after it have no predecessor now.
                self.refused += (outstanding.len() - at) as u64;
                outstanding.truncate(at);
                true
            }
        }
    }

    /// A replica took a submission, or refused it at once.
    pub(crate) fn answered(
        &mut self,
        submission: &Submission,
        answer: Result<oneshot::Receiver<Verdict>, Rejection>,
        oracle: &Oracle,
    ) {
        let author = submission.author;
        let place = self.authors[author].outstanding.iter().position(|o| o.hash == submission.hash);
        let Some(at) = place else { return };
        match answer {
            Ok(receiver) => self.authors[author].outstanding[at].asked.push(receiver),
            Err(rejection) => {
                self.rejected(author, at, &rejection, oracle);
            }
        }
    }

    // ---- commands ----------------------------------------------------------------------------------------

    fn make(&mut self, author: usize, now_ms: u64, wall_ms: u64, oracle: &mut Oracle) {
        let command = match &self.change {
            Some((at, ..)) if now_ms >= *at && self.authors[author].role == Role::Bystander => {
                self.change_validators(oracle.model())
            }
            _ => self.imagine(self.authors[author].role, wall_ms, oracle.model()),
        };
        let Some((command, doomed)) = command else { return };
        let Author { key, outstanding, .. } = &self.authors[author];
        let model = oracle.model();
        let height = model.tip().header.height;
        let account = model.account(&key.public()).expect("memory can be read");
        let sequence =
            outstanding.back().map_or(account.next_sequence, |last| last.command.body.sequence + 1);
        let mut body = CommandBody {
            chain: model.chain(),
            author: key.public(),
            sequence,
            expires_height: height + limits::EXPIRY_BLOCKS / 2,
            command,
        };
        if doomed && self.random.percent(20) {
            body.chain.0 = Hash([7; 32]);
        }
        let mut command = SignedCommand::sign(body, key);
        if doomed && self.random.percent(20) {
            command.signature.0[5] ^= 1;
        }
        let hash = command.hash();
        if doomed {
            oracle.doom(hash);
        }
        self.made += 1;
        let o = Outstanding { command, hash, asked: Vec::new(), ask_again_at: 0 };
        self.authors[author].outstanding.push_back(o);
    }

    fn change_validators(&mut self, model: &MemoryLedger) -> Option<(Command, bool)> {
        let present = StateReadExt::validators(model).expect("memory can be read");
        let (_, to, signers) = self.change.as_ref()?;
        if present.set == *to {
            self.change = None;
            return None;
        }
        let change = ValidatorChange { prev: present.record, validators: to.clone() };
        let mut signed = SignedValidatorChange { change, signatures: Vec::new() };
        for key in signers.iter().filter(|key| present.set.power_of(&key.public()) > 0) {
            signed.add(signed.change.sign(key, &model.chain()));
        }
        Some((Command::SetValidators(Box::new(signed)), false))
    }

    /// Something that somebody in this role might want, and whether it must fail.
    fn imagine(&mut self, role: Role, wall_ms: u64, model: &MemoryLedger) -> Option<(Command, bool)> {
        let farm_is_open = model.farm(&farm()).expect("memory can be read").is_some();
        let machine_is_here = model.node(&machine().public()).expect("memory can be read").is_some();
        let choice = self.random.below(100);
        let fine = |command| Some((command, false));
        match role {
            Role::Stranger if model.bot(&key(6).public()).expect("memory can be read").is_none() => {
                if choice < 50 {
                    return Some((self.transfer(1), true));
                }
                fine(Command::CreateBot(BotBody { name: name("newcomer") }))
            }
            Role::Farmer if !farm_is_open => {
                let (name, country, prices) = (name("green"), "be".to_owned(), PriceList::default());
                fine(Command::CreateFarm { name, country, region: None, prices })
            }
            Role::Node if !machine_is_here => farm_is_open.then(|| (Self::register(wall_ms, model), false)),
            Role::Node => fine(self.report(wall_ms, model)),
            Role::User | Role::Farmer if machine_is_here && choice < 70 => {
                let contracts =
                    model.node_contracts(&machine().public()).expect("memory can be read").contracts;
                match contracts.as_slice() {
                    [] => fine(self.agree(wall_ms, model)),
                    _ if choice < 45 => fine(self.agree(wall_ms, model)),
                    some => {
                        let contract = *self.random.pick(some);
                        fine(if choice < 60 {
                            Command::Settle { contract }
                        } else {
                            Command::Close { contract }
                        })
                    }
                }
            }
            _ if choice >= 90 => Some((self.transfer(5 * ALLOWANCE), true)),
            _ => {
                let amount = self.random.between(1, 400);
                fine(self.transfer(amount))
            }
        }
    }

    fn transfer(&mut self, grains: u64) -> Command {
        let to = key(*self.random.pick(&[1, 2, 4, 5])).public();
        Command::Transfer { to, amount: Grains(grains), memo: String::new() }
    }

    fn register(wall_ms: u64, model: &MemoryLedger) -> Command {
        let join = Join { farm: farm(), expires_ms: wall_ms * 2, nonce: [1; 16] };
        let signature = farmer().sign_as_bot(Domain::JOIN, &model.chain(), &join);
        let node = NodeBody {
            farm: farm(),
            name: name("n1"),
            sealing_key: [7; 32],
            capacity: Capacity { cpu_millis: 8_000, memory_bytes: 16 << 30, ..Capacity::default() },
            hardware: HardwareSummary::default(),
            trust: TrustClass::Plain,
            addresses: vec!["192.0.2.1".to_owned()],
            release: "0.1.0".to_owned(),
            session: 1,
            troubles: Vec::new(),
        };
        Command::RegisterNode { node, join: Some(SignedJoin { join, signature }), attestation: None }
    }

    /// A contract for much of what the machine has, so that several can't be had at once.
    fn agree(&mut self, wall_ms: u64, model: &MemoryLedger) -> Command {
        self.nonce += 1;
        let books = model.capacity(&machine().public()).expect("memory can be read");
        let cpu_millis = self.random.between(1, 6) * 1_000;
        let terms = Terms {
            name: name(&format!("w{}", self.random.below(4))),
            user: user().public(),
            farmer: farmer().public(),
            farm: farm(),
            node: machine().public(),
            resources: Capacity { cpu_millis, memory_bytes: 1 << 30, ..Capacity::default() },
            ports: Vec::new(),
            rate: Rate(self.random.between(1, 20)),
            duration_s: self.random.between(2, 30),
            grace_s: 60,
            prepaid_s: None,
            capacity_version: books.map_or(1, |books| books.version),
            quorum: Quorum::default(),
            sealed: vec![5; 40],
            expires_ms: wall_ms + 600_000,
            nonce: Hash::of("sim/nonce", &self.nonce).0[..16].try_into().unwrap_or_default(),
        };
        let chain = model.chain();
        let (by_user, by_farmer) = (
            user().sign_as_bot(Domain::TERMS, &chain, &terms),
            farmer().sign_as_bot(Domain::TERMS, &chain, &terms),
        );
        Command::Agree(Box::new(SignedTerms { terms, user: by_user, farmer: by_farmer }))
    }

    fn report(&mut self, wall_ms: u64, model: &MemoryLedger) -> Command {
        let node = machine().public();
        let before = model.record(&RecordId::report(&node)).expect("memory can be read");
        let from_ms = match before.map(|record| record.body) {
            Some(Body::Report(before)) => before.until_ms,
            _ => wall_ms - 1_000,
        };
        let until_ms = wall_ms.max(from_ms);
        let states = [WorkloadState::Running, WorkloadState::Running, WorkloadState::Failing];
        let contracts = model.node_contracts(&node).expect("memory can be read").contracts;
        let line = |contract| ContractReport {
            contract,
            state: *self.random.pick(&states),
            ran_ms: until_ms - from_ms,
            detail: String::new(),
        };
        let contracts = contracts.into_iter().map(line).collect();
        Command::Report(ReportBody { node, session: 1, from_ms, until_ms, contracts })
    }

    /// After the run: nobody may still hope for what can't be.
    pub(crate) fn check_end(&self) -> Check {
        ensure(self.are_content(), || format!("still waiting: {}", self.waiting().join(", ")))
    }
}
