//! One simulated replica: its disks, its clock, and the process on it while it runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_ledger::{assemble, check_admission};
use croft_protocol::{Genesis, PublicKey, Rejection, SecretKey, SignedCommand};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::disk::Disks;
use super::liar::Liar;
use super::oracle::{Check, Oracle, Violation, ensure};
use super::random::Random;
use super::{Mutation, START_MS};
use crate::chain::Chain;
use crate::ordering::Verdict;
use crate::ordering::bft::core::{Core, Event, Now, Output};
use crate::ordering::bft::log::Log;
use crate::ordering::mempool::Mempool;
use crate::store::Store;

/// What runs between a boot and an exit.
pub(crate) struct Process {
    pub(crate) core: Core,
    pub(crate) chain: Arc<Chain>,
    pool: Arc<Mutex<Mempool>>,
    epoch: Instant,
    booted_at: u64,
}

pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) key: SecretKey,
    pub(crate) disks: Disks,
    /// How far its clock is ahead.
    pub(crate) ahead_ms: i64,
    pub(crate) process: Option<Process>,
    /// Counts lives: what was on its way to an earlier one is lost.
    pub(crate) life: u64,
    /// When it next wants to be woken, in simulated time.
    pub(crate) wake_at: Option<u64>,
    pub(crate) frozen_until: u64,
    /// Who speaks in its stead.
    pub(crate) liar: Option<Liar>,
    /// Up to here the oracle has looked at its ledger.
    seen: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// A machine with a new ledger and a new log, not booted.
    pub(crate) fn new(name: String, key: SecretKey, genesis: &Genesis, validators: &[SecretKey]) -> Self {
        let disks = Disks::new();
        let sign = |header| assemble::certify(header, 0, genesis.validators.clone(), validators);
        drop(Store::create_on(Box::new(disks.store.clone()), genesis, &sign).expect("an empty disk"));
        drop(Log::create(&disks.log, genesis.chain_id(), 0).expect("an empty disk"));
        Self {
            name,
            key,
            disks,
            ahead_ms: 0,
            process: None,
            life: 0,
            wake_at: None,
            frozen_until: 0,
            liar: None,
            seen: 0,
        }
    }

    pub(crate) fn public(&self) -> PublicKey {
        self.key.public()
    }

    pub(crate) fn wall_ms(&self, now_ms: u64) -> u64 {
        (START_MS + now_ms).saturating_add_signed(self.ahead_ms)
    }

    fn now(&self, now_ms: u64) -> Now {
        let booted_at = self.process.as_ref().map_or(now_ms, |process| process.booted_at);
        Now { since_ms: now_ms - booted_at, wall_ms: self.wall_ms(now_ms) }
    }

    /// Starts the process on what the disks hold. `false` when a disk fails on the way; then nothing runs.
    pub(crate) fn boot(&mut self, now_ms: u64, genesis: &Genesis, mutation: Option<Mutation>) -> Check<bool> {
        let store = match Store::open_on(Box::new(self.disks.store.clone()), genesis) {
            Ok(store) => store,
            Err(_) if self.disks.have_failed() => return Ok(false),
            Err(error) => return Err(Violation(format!("{} has no ledger any more: {error}", self.name))),
        };
        let height = store.latest().height();
        ensure(height >= self.seen, || {
            format!("{} had height {} and comes back with {height}", self.name, self.seen)
        })?;
        let fails = |error: &dyn std::error::Error| {
            Violation(format!("{} does not start: {}", self.name, crate::chain_of(error)))
        };
        let forgets = mutation == Some(Mutation::ForgetsVotes) && self.life > 0;
        let log = if forgets {
            Log::create(&Disks::new().log, genesis.chain_id(), 0)
        } else {
            Log::open(&self.disks.log, genesis.chain_id())
        };
        let log = match log {
            Ok(log) => log,
            Err(_) if self.disks.have_failed() => return Ok(false),
            Err(error) => return Err(fails(&error)),
        };
        let (chain, pool) = (Arc::new(Chain::new(store)), Arc::<Mutex<Mempool>>::default());
        let epoch = Instant::now();
        let now = Now { since_ms: 0, wall_ms: self.wall_ms(now_ms) };
        let mut core = Core::new(chain.clone(), Ok(log), self.key.clone(), pool.clone(), epoch, now)
            .map_err(|error| fails(&error))?;
        core.is_credulous = mutation == Some(Mutation::SkipsCertificates);
        self.process = Some(Process { core, chain, pool, epoch, booted_at: now_ms });
        self.life += 1;
        self.wake_at = None;
        self.frozen_until = 0;
        Ok(true)
    }

    /// The process ends, in order or not; its machine goes on.
    pub(crate) fn exit(&mut self, in_order: bool) {
        if !in_order {
            self.disks.cut_power();
        }
        self.process = None;
        self.disks = self.disks.after_exit();
    }

    /// The power goes.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        self.disks.cut_power();
        self.process = None;
        self.disks = self.disks.after_power_cut(random);
    }

    /// Lets the process handle an event; nothing when it does not run. An error when it would never rest.
    pub(crate) fn handle(&mut self, event: Event, now_ms: u64) -> Check<Vec<Output>> {
        let now = self.now(now_ms);
        let Some(process) = &mut self.process else { return Ok(Vec::new()) };
        let outputs = process.core.handle(event, now);
        let wake_at = process.core.wake_at();
        self.wake_at = Some(process.booted_at.saturating_add(wake_at).max(now_ms + 1));
        ensure(wake_at > now.since_ms || self.disks.lost_power(), || {
            format!("{} wants to be woken at {wake_at}, it is {}: it never rests", self.name, now.since_ms)
        })?;
        Ok(outputs)
    }

    /// As a server does with a client's command.
    pub(crate) fn submit(
        &mut self,
        command: SignedCommand,
        now_ms: u64,
    ) -> Option<Result<oneshot::Receiver<Verdict>, Rejection>> {
        let since_ms = self.now(now_ms).since_ms;
        let process = self.process.as_ref()?;
        if process.core.health().trouble.is_some() {
            return None;
        }
        let tip = process.chain.latest();
        let header = tip.tip().header;
        let admitted = check_admission(&*tip, &header.chain, header.height + 1, &command).ok()?;
        if let Err(rejection) = admitted {
            return Some(Err(rejection));
        }
        let at = process.epoch + std::time::Duration::from_millis(since_ms);
        Some(lock(&process.pool).insert(command, at))
    }

    /// Shows the oracle what is new in the ledger.
    pub(crate) fn show(&mut self, oracle: &mut Oracle) -> Check {
        let Some(process) = &self.process else { return Ok(()) };
        let tip = process.chain.latest();
        while self.seen < tip.height() {
            if !oracle.look_at(&self.name, &tip, self.seen + 1)? {
                break;
            }
            self.seen += 1;
        }
        Ok(())
    }

    pub(crate) fn height(&self) -> Option<u64> {
        self.process.as_ref().map(|process| process.chain.latest().height())
    }

    pub(crate) fn waiting(&self) -> usize {
        self.process.as_ref().map_or(0, |process| lock(&process.pool).len())
    }

    /// Reads the whole ledger.
    pub(crate) fn audit(&self) -> Check {
        let Some(process) = &self.process else { return Ok(()) };
        let report = process.chain.store().audit();
        report
            .map(drop)
            .map_err(|error| Violation(format!("the ledger of {} is damaged: {error}", self.name)))
    }
}
