//! A grid in virtual time: machines, links, submitters, and what goes wrong.
//!
//! ```text
//!   queue of happenings, by time and order ──next──> one machine handles one event ──> oracle looks
//!     ^                                                      │
//!     └── messages with their delays, alarms, faults <───────┘
//! ```
//! It draws no time and no chance from outside: a seed is a run, to the byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use croft_protocol::{Genesis, PublicKey, SecretKey, TrustPolicy, ValidatorSet};

use super::clients::{self, Clients};
use super::disk::Failing;
use super::liar::{Liar, Said, View};
use super::machine::Machine;
use super::network::Network;
use super::oracle::{Check, Oracle, Violation, ensure};
use super::plan::{FINE, Fault, Plan};
use super::random::Random;
use super::trace::{Trace, Words};
use super::{Options, START_MS, Summary};
use crate::ordering::bft::core::{Event, Output};
use crate::ordering::bft::message::PeerMessage;

/// After the last fault everything is to be well within this time.
const RECOVERY_MS: u64 = 180_000;
/// Submitters go on a little after the last fault.
const AFTERWORK_MS: u64 = 4_000;
/// Between two looks at whether all is well.
const LOOK_MS: u64 = 250;
/// Between two acts of a liar.
const ACT_MS: u64 = 150;

enum Happening {
    Deliver {
        from: usize,
        to: usize,
        made: u64,
        message: Box<PeerMessage>,
    },
    Alarm {
        who: usize,
        life: u64,
    },
    /// A link may have come up or gone down.
    Link {
        from: usize,
        to: usize,
    },
    Fault(Fault),
    Turn(usize),
    /// A liar does something of its own accord.
    Act(usize),
    Look,
}

pub(crate) struct World {
    now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    machines: Vec<Machine>,
    index: BTreeMap<PublicKey, usize>,
    network: Network,
    oracle: Oracle,
    clients: Clients,
    genesis: Genesis,
    plan: Plan,
    options: Options,
    /// For faults of disks and for whom a submitter asks.
    chance: Random,
    events: u64,
    pub(crate) trace: Trace,
}

/// Keys of validators that depend on a number only.
fn key(who: usize) -> SecretKey {
    SecretKey::from_seed(&[u8::try_from(100 + who).unwrap_or(u8::MAX); 32])
}

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::new(&mut random.fork(1));
        let validators: Vec<_> = (0..plan.validators).map(key).collect();
        let publics: Vec<_> = validators.iter().map(SecretKey::public).collect();
        let genesis = Genesis {
            name: "sim".parse().expect("it is a name"),
            time_ms: START_MS,
            validators: ValidatorSet::of_equals(&publics),
            allocations: clients::allocations(),
            trust: TrustPolicy::default(),
            faucet: None,
        };
        let count = plan.validators + usize::from(plan.spare);
        let mut machines: Vec<_> = (0..count)
            .map(|who| Machine::new(format!("replica {who}"), key(who), &genesis, &validators))
            .collect();
        for (machine, ahead_ms) in machines.iter_mut().zip(&plan.clocks_ms) {
            machine.ahead_ms = *ahead_ms;
        }
        let first_liar = plan.validators - plan.liars;
        let mut liars = BTreeSet::new();
        for machine in &mut machines[first_liar..plan.validators] {
            let liar = Liar::new(machine.key.clone(), genesis.chain_id(), random.fork(10));
            machine.liar = Some(liar);
            liars.insert(machine.public());
        }
        let keys = (0..count).map(key).collect();
        let mut world = Self {
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            index: machines.iter().enumerate().map(|(who, machine)| (machine.public(), who)).collect(),
            machines,
            network: Network::new(count, random.fork(2)),
            oracle: Oracle::new(genesis.clone(), keys, liars),
            clients: Clients::new(random.fork(3)),
            genesis,
            plan,
            options,
            chance: random.fork(4),
            events: 0,
            trace: Trace::new(options.aloud),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.trace.add(0, format_args!("{:?}", self.plan));
        if let Some((at, replaces)) = self.plan.change {
            let first = usize::from(replaces);
            let keys: Vec<_> = (first..self.machines.len()).map(|who| key(who).public()).collect();
            let signers = (0..self.plan.validators).map(key).collect();
            self.clients.plan_change(at, ValidatorSet::of_equals(&keys), signers);
        }
        for (at, fault) in std::mem::take(&mut self.plan.faults) {
            self.schedule(at, Happening::Fault(fault));
        }
        for who in 0..self.machines.len() {
            let after = self.chance.between(0, 300);
            self.schedule(after, Happening::Fault(Fault::Boot(who)));
        }
        for author in 0..self.clients.count() {
            self.schedule(500, Happening::Turn(author));
        }
        for who in 0..self.machines.len() {
            if let Some(liar) = &self.machines[who].liar {
                self.trace.add(0, format_args!("{who} lies: {:?}", liar.tactics));
                self.schedule(ACT_MS, Happening::Act(who));
            }
        }
        self.schedule(self.plan.calm_at_ms, Happening::Look);
    }

    fn schedule(&mut self, at: u64, what: Happening) {
        self.order += 1;
        self.queue.insert((at, self.order), what);
    }

    pub(crate) fn run(&mut self) -> Check<Summary> {
        while let Some(((at, _), what)) = self.queue.pop_first() {
            self.now = at;
            if matches!(what, Happening::Look) {
                if self.is_well() {
                    return self.end();
                }
                ensure(at < self.plan.calm_at_ms + RECOVERY_MS, || self.complaint())?;
                self.schedule(at + LOOK_MS, Happening::Look);
                continue;
            }
            self.happen(what)?;
        }
        Err(Violation("nothing happens any more".to_owned()))
    }

    fn happen(&mut self, what: Happening) -> Check {
        match what {
            Happening::Deliver { from, to, made, message } => {
                if let Some(until) = self.frozen(to) {
                    self.schedule(until, Happening::Deliver { from, to, made, message });
                    return Ok(());
                }
                if !self.network.carries(from, to, made) || self.machines[to].process.is_none() {
                    return Ok(());
                }
                self.trace.add(self.now, format_args!("{from} > {to}  {}", Words(&message)));
                if self.machines[to].liar.is_some() {
                    let said = self.lie(to, |liar, view| liar.hear(view, &message));
                    self.send_all(to, said);
                }
                let event = Event::Message(self.machines[from].public(), message);
                self.handle(to, event)
            }
            Happening::Alarm { who, life } => {
                let machine = &self.machines[who];
                if machine.life != life || machine.wake_at.is_none_or(|at| at > self.now) {
                    return Ok(());
                }
                if let Some(until) = self.frozen(who) {
                    self.schedule(until, Happening::Alarm { who, life });
                    return Ok(());
                }
                self.handle(who, Event::Tick)
            }
            Happening::Link { from, to } => self.link(from, to),
            Happening::Fault(fault) => self.fail(fault),
            Happening::Turn(author) => self.turn(author),
            Happening::Act(who) => {
                let said = self.lie(who, Liar::act);
                self.send_all(who, said);
                self.schedule(self.now + ACT_MS, Happening::Act(who));
                Ok(())
            }
            Happening::Look => Ok(()),
        }
    }

    fn frozen(&self, who: usize) -> Option<u64> {
        let until = self.machines[who].frozen_until;
        (until > self.now && self.machines[who].process.is_some()).then_some(until)
    }

    /// One machine handles one event, and the oracle looks at what comes of it.
    fn handle(&mut self, who: usize, event: Event) -> Check {
        if self.machines[who].process.is_none() {
            return Ok(());
        }
        self.events += 1;
        let machine = &mut self.machines[who];
        let before = machine.wake_at;
        let outputs = machine.handle(event, self.now)?;
        machine.show(&mut self.oracle)?;
        if machine.disks.lost_power() {
            // What it was about to say was never said.
            self.down(who, "loses its power in the middle of an event", true);
            return Ok(());
        }
        let me = machine.public();
        if machine.liar.is_some() {
            for output in outputs {
                let said = self.lie(who, |liar, view| liar.say(view, output));
                self.send_all(who, said);
            }
            self.alarm(who, before);
            return Ok(());
        }
        for output in &outputs {
            self.oracle.hear(&me, output)?;
        }
        self.alarm(who, before);
        for output in outputs {
            match output {
                Output::Send(to, message) => {
                    if let Some(to) = self.index.get(&to).copied() {
                        self.send(who, to, message);
                    }
                }
                Output::Broadcast(message) => {
                    for to in (0..self.machines.len()).filter(|to| *to != who) {
                        self.send(who, to, message.clone());
                    }
                }
                Output::Evidence(evidence) => {
                    let culprit = self.index.get(&evidence.culprit());
                    self.trace.add(self.now, format_args!("{who} has evidence against {culprit:?}"));
                }
            }
        }
        Ok(())
    }

    fn alarm(&mut self, who: usize, before: Option<u64>) {
        let machine = &self.machines[who];
        let life = machine.life;
        if let Some(at) = machine.wake_at.filter(|at| Some(*at) != before) {
            self.schedule(at, Happening::Alarm { who, life });
        }
    }

    /// Lets a liar speak that runs.
    fn lie(&mut self, who: usize, speak: impl FnOnce(&mut Liar, &View<'_>) -> Said) -> Said {
        let everybody: Vec<_> = self.machines.iter().map(Machine::public).collect();
        let machine = &mut self.machines[who];
        let Machine { process: Some(process), liar: Some(liar), .. } = machine else { return Vec::new() };
        speak(liar, &View { everybody: &everybody, ledger: process.chain.latest() })
    }

    fn send_all(&mut self, from: usize, said: Said) {
        for (to, message) in said {
            self.send(from, to, message);
        }
    }

    fn send(&mut self, from: usize, to: usize, message: PeerMessage) {
        let (copies, made) = self.network.send(from, to, message.is_bulk());
        for after in copies {
            let message = Box::new(message.clone());
            self.schedule(self.now + after, Happening::Deliver { from, to, made, message });
        }
    }

    // ---- machines and links ------------------------------------------------------------------------------

    fn boot(&mut self, who: usize) -> Check {
        if self.machines[who].process.is_some() {
            return Ok(());
        }
        if !self.machines[who].boot(self.now, &self.genesis, self.options.mutation)? {
            let power = self.machines[who].disks.lost_power();
            self.down(who, "does not get as far as to run", power);
            return Ok(());
        }
        let height = self.machines[who].height();
        self.trace.add(self.now, format_args!("{who} boots at height {height:?}"));
        self.links_of(who, 100);
        // As the thread of a replica does first.
        self.handle(who, Event::Tick)
    }

    fn down(&mut self, who: usize, how: &str, power: bool) {
        self.trace.add(self.now, format_args!("{who} {how}"));
        if power {
            self.machines[who].crash(&mut self.chance);
        } else {
            let in_order = self.chance.percent(50);
            self.machines[who].exit(in_order);
        }
        self.links_of(who, 3_000);
        let at = self.now + self.chance.between(50, 8_000);
        self.schedule(at, Happening::Fault(Fault::Boot(who)));
    }

    /// All links of one machine are looked at, each after a moment.
    fn links_of(&mut self, who: usize, within_ms: u64) {
        for other in (0..self.machines.len()).filter(|other| *other != who) {
            for (from, to) in [(who, other), (other, who)] {
                let at = self.now + self.chance.between(1, within_ms);
                self.schedule(at, Happening::Link { from, to });
            }
        }
    }

    fn link(&mut self, from: usize, to: usize) -> Check {
        let both_run = self.machines[from].process.is_some() && self.machines[to].process.is_some();
        let (is, ought) = (self.network.is_up(from, to), both_run && !self.network.is_cut(from, to));
        if is == ought {
            return Ok(());
        }
        self.network.set_up(from, to, ought);
        let peer = self.machines[to].public();
        self.trace.add(self.now, format_args!("{from} - {to}  {}", if ought { "linked" } else { "gone" }));
        self.handle(from, if ought { Event::Connected(peer) } else { Event::Gone(peer) })
    }

    fn fail(&mut self, fault: Fault) -> Check {
        self.trace.add(self.now, format_args!("{fault:?}"));
        match fault {
            Fault::Boot(who) => return self.boot(who),
            Fault::Exit(who) if self.runs(who) => self.down(who, "ends", false),
            Fault::Crash(who) if self.runs(who) => self.down(who, "loses its power", true),
            Fault::Exit(_) | Fault::Crash(_) => {}
            Fault::CrashAfter { who, steps } => self.machines[who].disks.fail_after(steps, Failing::Power),
            Fault::DiskFull { who, steps } => self.machines[who].disks.fail_after(steps, Failing::Full),
            Fault::LowSpace(who) => self.machines[who].disks.set_low_space(true),
            Fault::RoomMade(who) => self.make_room(who),
            Fault::Partition(set) => {
                self.network.part(set);
                self.all_links(5_000);
            }
            Fault::Cut { from, to } => {
                self.network.cut(from, to);
                self.all_links(5_000);
            }
            Fault::Healed => {
                self.network.heal();
                self.all_links(2_000);
            }
            Fault::Weather(weather) => self.network.set_weather(weather),
            Fault::Freeze { who, for_ms } => self.machines[who].frozen_until = self.now + for_ms,
            Fault::Clock { who, ahead_ms } => {
                let far = self.plan.clocks_ms[who].abs() > 60_000;
                if !far {
                    self.machines[who].ahead_ms = ahead_ms;
                }
            }
            Fault::Calm => self.calm_down(),
        }
        Ok(())
    }

    fn runs(&self, who: usize) -> bool {
        self.machines[who].process.is_some()
    }

    fn all_links(&mut self, within_ms: u64) {
        for who in 0..self.machines.len() {
            self.links_of(who, within_ms);
        }
    }

    /// There is room again; who lost its log over it is started again, as it says itself.
    fn make_room(&mut self, who: usize) {
        self.machines[who].disks.heal();
        let lost = self.machines[who].process.as_ref().is_some_and(|p| p.core.health().not_signing.is_some());
        if lost {
            self.down(who, "is started again", false);
        }
    }

    fn calm_down(&mut self) {
        self.network.heal();
        self.network.set_weather(FINE);
        self.all_links(1_000);
        for who in 0..self.machines.len() {
            self.machines[who].frozen_until = 0;
            self.make_room(who);
        }
    }

    // ---- submitters --------------------------------------------------------------------------------------

    fn turn(&mut self, author: usize) -> Check {
        let makes_more = self.now < self.plan.calm_at_ms + AFTERWORK_MS;
        let wall_ms = START_MS + self.now;
        let submissions = self.clients.turn(author, self.now, wall_ms, makes_more, &mut self.oracle)?;
        for submission in submissions {
            let who = self.chance.index(self.machines.len());
            if self.frozen(who).is_some() {
                continue;
            }
            let command = submission.command.clone();
            let Some(answer) = self.machines[who].submit(command, self.now) else { continue };
            let taken = answer.is_ok();
            self.trace.add(
                self.now,
                format_args!("author {author} submits {:?} to {who}: {taken}", submission.hash),
            );
            self.clients.answered(&submission, answer, &self.oracle);
            if taken {
                self.handle(who, Event::Arrived)?;
            }
        }
        let pause = self.clients.pause_ms();
        self.schedule(self.now + pause, Happening::Turn(author));
        Ok(())
    }

    // ---- the end -----------------------------------------------------------------------------------------

    /// Everybody runs, has the same ledger, and nobody waits.
    fn is_well(&self) -> bool {
        let height = self.oracle.height();
        self.now >= self.plan.calm_at_ms + AFTERWORK_MS
            && self.clients.are_content()
            && self
                .machines
                .iter()
                .filter(|m| m.liar.is_none())
                .all(|m| m.height() == Some(height) && m.waiting() == 0)
    }

    fn complaint(&self) -> String {
        let mut text = format!(
            "{} s after the last fault all is not well: the ledger has height {}",
            RECOVERY_MS / 1_000,
            self.oracle.height()
        );
        for machine in &self.machines {
            let health = machine.process.as_ref().map(|process| process.core.health());
            let _ = write!(
                text,
                "; {} has height {:?}, {} commands wait, {health:?}",
                machine.name,
                machine.height(),
                machine.waiting()
            );
        }
        text + "; submitters wait for: " + &self.clients.waiting().join(", ")
    }

    /// Starts every machine once more from its disks and reads its whole ledger.
    fn end(&mut self) -> Check<Summary> {
        self.clients.check_end()?;
        for who in 0..self.machines.len() {
            // A liar need not be up to date.
            let before = self.machines[who].height();
            self.machines[who].crash(&mut self.chance);
            let runs = self.machines[who].boot(self.now, &self.genesis, None)?;
            let machine = &self.machines[who];
            ensure(runs && before.is_none_or(|before| machine.height() == Some(before)), || {
                format!("{} lost blocks", machine.name)
            })?;
            machine.audit()?;
        }
        Ok(Summary {
            trace: self.trace.hash(),
            height: self.oracle.height(),
            finals: self.oracle.finals,
            refused: self.clients.refused,
            evidence: self.oracle.evidence,
            events: self.events,
            lives: self.machines.iter().map(|machine| machine.life).sum(),
            virtual_ms: self.now,
        })
    }
}
