//! The main loop: what the ledger proves against what runs, every second and at every piece of news.
//!
//! It must never wait for the network: it hears and speaks through queues, and beats for init in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use croft_protocol::contract::KeptContract;
use croft_protocol::record::WorkloadState;
use croft_protocol::{ContractId, ContractState, limits};
use croft_storage::documents::Documents;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::contracts::Pulled;
use crate::coverage::Coverage;
use crate::late::Late;
use crate::ledger::chain_of;
use crate::membership::Membership;
use crate::reconcile::{self, Action, Activity};
use crate::screen;
use crate::sequence::Alive;
use crate::time::sleep_until_some;
use crate::voice::{Heard, Say};
use crate::volumes::VolumeError;
use crate::workload::{Context, Task};

/// Between two looks when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// Changes within this time are one report.
const SETTLE: Duration = Duration::from_millis(300);
/// For the ledger's answer to a report.
const REPORT_ANSWER: Duration = Duration::from_secs(120);
/// After a report that was not taken.
const REPORT_RETRY: Duration = Duration::from_secs(10);
/// How far what is stored of paid time may be off, before it is stored anew.
const STORED_SOONER_MS: u64 = 10_000;
const STORED_LATER_MS: u64 = 600_000;
/// Between two requests to settle the same contract.
const SETTLE_RETRY: Duration = Duration::from_secs(30);
/// For all workloads to end when the machine goes down; init waits for 45 s.
const SHUTDOWN: Duration = Duration::from_secs(40);

/// A registration, when the main loop begins.
#[derive(Debug, Clone, Copy)]
pub struct Entered {
    pub session: u64,
    /// Where the reports of earlier boots ended.
    pub reported_until_ms: u64,
}

/// A node in its main loop.
pub struct Running {
    context: Arc<Context>,
    documents: Documents,
    membership: Membership,
    known: BTreeMap<ContractId, KeptContract>,
    /// Until when each contract was reported in this boot.
    reported: BTreeMap<ContractId, u64>,
    /// What the data disk says of how long each is paid for.
    stored: BTreeMap<ContractId, u64>,
    tasks: BTreeMap<ContractId, Task>,
    /// Contracts that are taken from the ledger but can't be run, with why.
    refused: BTreeMap<ContractId, String>,
    coverage: Coverage,
    /// The session of this boot.
    session: Option<u64>,
    /// Another machine runs with this node's key, and this one runs nothing any more.
    superseded: bool,
    /// A report is on its way, or was refused a moment ago.
    report_not_before: Option<Instant>,
    changed_at: Option<Instant>,
    settling: BTreeMap<ContractId, Instant>,
    deleting: BTreeMap<ContractId, JoinHandle<Result<(), VolumeError>>>,
    say: mpsc::Sender<Say>,
    heard: mpsc::Receiver<Heard>,
    known_ids: watch::Sender<BTreeSet<ContractId>>,
}

impl Running {
    /// Starts from what an earlier boot knew.
    #[must_use]
    pub fn new(
        context: Arc<Context>,
        (documents, mut membership): (Documents, Membership),
        known: BTreeMap<ContractId, KeptContract>,
        registered: Option<Entered>,
        say: mpsc::Sender<Say>,
        heard: mpsc::Receiver<Heard>,
        known_ids: watch::Sender<BTreeSet<ContractId>>,
    ) -> Self {
        known_ids.send_replace(known.keys().copied().collect());
        let from_ms =
            context.time.now_ms().max(registered.as_ref().map_or(0, |entered| entered.reported_until_ms));
        if registered.is_some() {
            membership.joined();
        }
        let stored = known.iter().map(|(id, kept)| (*id, kept.paid_until_ms)).collect();
        Self {
            context,
            documents,
            membership,
            known,
            reported: BTreeMap::new(),
            stored,
            tasks: BTreeMap::new(),
            refused: BTreeMap::new(),
            coverage: Coverage::new(from_ms),
            session: registered.map(|entered| entered.session),
            superseded: false,
            report_not_before: None,
            changed_at: None,
            settling: BTreeMap::new(),
            deleting: BTreeMap::new(),
            say,
            heard,
            known_ids,
        }
    }

    /// Runs until SIGTERM, then ends every workload in order.
    pub async fn run(mut self, alive: &Alive, mut late: Late<'_>) {
        let mut terminate = signal(SignalKind::terminate()).expect("a signal handler can be installed");
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let settled_at = self.settled_at();
            tokio::select! {
                _ = tick.tick() => {
                    alive.beat();
                    late.look();
                }
                Some(what) = self.heard.recv() => {
                    late.heard(&what);
                    self.hear(what);
                }
                // A task has news, or a report is due: a user sees "running" as soon as it is true.
                () = self.context.news.notified() => {}
                () = sleep_until_some(settled_at) => {}
                _ = terminate.recv() => break,
            }
            self.reap();
            self.reconcile().await;
            self.report();
        }
        tracing::info!("asked to end: stopping {} workloads", self.tasks.len());
        for task in self.tasks.values() {
            task.stop();
        }
        let all = async {
            for (_, task) in std::mem::take(&mut self.tasks) {
                task.join().await;
            }
        };
        if timeout(SHUTDOWN, alive.through(all)).await.is_err() {
            tracing::error!("some workloads did not end in time");
        }
    }

    fn hear(&mut self, what: Heard) {
        match what {
            Heard::Pulled(pulled) => self.pulled(pulled),
            Heard::Registered { session, height, reported_until_ms, standing } => {
                tracing::info!(session, height, trust = %standing, "registered");
                self.context.board.change(|status| {
                    status.registration = screen::registered(session);
                    status.trust = standing.to_string();
                });
                self.session = Some(session);
                self.membership.joined();
                self.context.registered.send_replace(true);
                self.coverage.reported(reported_until_ms, &[]);
            }
            Heard::Superseded { reason } => self.superseded(&reason),
            Heard::NotRegistered { reason } => {
                self.context.board.change(|status| status.registration = screen::not_registered(&reason));
                tracing::warn!(reason, "not registered yet");
            }
            Heard::Reported { until_ms, contracts } => {
                self.coverage.reported(until_ms, &contracts);
                self.reported.extend(contracts.iter().map(|line| (line.contract, until_ms)));
                self.report_not_before = None;
                self.changed_at = None;
            }
            Heard::NotReported { reason } => {
                tracing::warn!(reason, "the report was not taken; it is sent again");
                self.report_not_before = Some(Instant::now() + REPORT_RETRY);
            }
        }
    }

    /// One key, one machine: what came later counts, here as on the ledger, or two machines would run the same workloads.
    fn superseded(&mut self, reason: &str) {
        if std::mem::replace(&mut self.superseded, true) {
            return;
        }
        tracing::error!(
            reason,
            "another machine runs with this node's key: this one stops its workloads; switch one of the two off, and give it an empty disk"
        );
        self.context.board.change(|status| status.registration = screen::superseded());
        self.context.registered.send_replace(false);
    }

    fn pulled(&mut self, pulled: Pulled) {
        if let Some(own) = self.session.filter(|own| *own < pulled.session) {
            self.superseded(&format!("session {} is newer than {own}, this one's", pulled.session));
        }
        for (id, reason) in pulled.refused {
            if self.refused.insert(id, reason.clone()).as_ref() != Some(&reason) {
                tracing::error!(contract = %id, "{reason}");
            }
        }
        let now_ms = self.context.time.now_ms();
        for (id, (body, escrow)) in pulled.contracts {
            self.refused.remove(&id);
            // A proof from before our newest report would count twice what that one settled: the next one is right.
            let reported_ms = self.reported.get(&id).copied().unwrap_or(0);
            let settled_ms = reported_ms.min(body.expires_ms().unwrap_or(reported_ms));
            let stale = escrow.covered_until_ms < settled_ms && body.state.may_run();
            let mut kept = KeptContract::new(body, &escrow, self.coverage.unreported_ms(&id), now_ms);
            let before = self.known.get(&id);
            if let Some(before) = before.filter(|before| stale && before.body == kept.body) {
                kept.paid_until_ms = before.paid_until_ms;
            }
            let same = before.is_some_and(|before| before.body == kept.body);
            if !same {
                let (name, state) = (&kept.body.signed.terms.name, kept.body.state);
                tracing::info!(contract = %id, "contract {name} is {state:?} at height {}", pulled.height);
            }
            // Durable before anything is done about it: a power cut must not forget a contract that ran.
            if !same
                || self
                    .stored
                    .get(&id)
                    .is_none_or(|stored_ms| is_worth_storing(*stored_ms, kept.paid_until_ms))
            {
                match self.documents.put(&id.to_string(), &croft_protocol::encode(&kept)) {
                    Ok(()) => {
                        self.stored.insert(id, kept.paid_until_ms);
                    }
                    Err(error) => {
                        tracing::error!(contract = %id, error = %chain_of(&error), "the contract is not kept for the next boot");
                    }
                }
            }
            self.known.insert(id, kept);
        }
        self.known_ids.send_replace(self.known.keys().copied().collect());
    }

    /// Forgets owner tasks that ended.
    fn reap(&mut self) {
        self.tasks.retain(|_, task| !task.is_finished());
    }

    async fn reconcile(&mut self) {
        if self.superseded {
            self.tasks.values().filter(|task| !task.is_stopping()).for_each(Task::stop);
            return;
        }
        let activities: BTreeMap<ContractId, Activity> = self
            .tasks
            .iter()
            .map(|(id, task)| (*id, if task.is_stopping() { Activity::Stopping } else { Activity::Working }))
            .collect();
        for action in reconcile::actions(&self.known, &activities, self.context.time.now_ms()) {
            match action {
                Action::Start(id) => {
                    let body = self.known[&id].body.clone();
                    self.tasks.insert(id, Task::start(self.context.clone(), id, body));
                }
                Action::Stop(id, reason) => {
                    tracing::info!(contract = %id, ?reason, "workload {}: stopping", self.known[&id].body.signed.terms.name);
                    self.tasks[&id].stop();
                }
                Action::Settle(id) => self.settle(id),
                Action::DeleteData(id) => self.delete_data(id).await,
            }
        }
    }

    fn settle(&mut self, id: ContractId) {
        let now = Instant::now();
        if self.settling.get(&id).is_some_and(|not_before| now < *not_before) {
            return;
        }
        if self.say.try_send(Say::Settle(id)).is_ok() {
            self.settling.insert(id, now + SETTLE_RETRY);
        }
    }

    /// Off the main loop: a tenant's millions of files take minutes, in which the node has to show that it lives.
    async fn delete_data(&mut self, id: ContractId) {
        let body = &self.known[&id].body;
        match self.deleting.remove(&id) {
            Some(deleting) if !deleting.is_finished() => {
                self.deleting.insert(id, deleting);
                return;
            }
            Some(deleting) => match deleting.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(contract = %id, error = %chain_of(&error), "the data of an ended contract is not gone yet");
                    return;
                }
                Err(_) => return,
            },
            None => {
                let ledger_ms = self.context.time.header_ms();
                // Our clock may be ahead of the ledger's, and only the ledger's counts here.
                if body.data_kept_until_ms().is_some_and(|until_ms| ledger_ms >= until_ms) {
                    let (context, body) = (self.context.clone(), body.clone());
                    let delete = async move { context.volumes.delete(&id, &body, ledger_ms).await };
                    self.deleting.insert(id, tokio::spawn(delete));
                }
                return;
            }
        }
        if let Err(error) = self.documents.remove(&id.to_string()) {
            tracing::warn!(contract = %id, error = %chain_of(&error), "an ended contract is still stored");
            return;
        }
        tracing::info!(contract = %id, "contract {}: the grace period is over, its data is deleted", body.signed.terms.name);
        match self.context.in_use.release(&id, &self.context.images) {
            Ok(freed) => tracing::debug!(freed, "images that nobody needs are gone"),
            Err(error) => {
                tracing::warn!(error = %chain_of(&error), "images that nobody needs are still there");
            }
        }
        self.known.remove(&id);
        self.reported.remove(&id);
        self.stored.remove(&id);
        self.settling.remove(&id);
        self.known_ids.send_replace(self.known.keys().copied().collect());
    }

    /// For whoever stands before the machine.
    fn show(&self, states: &BTreeMap<ContractId, (WorkloadState, String)>) {
        let name =
            |id| self.known.get(id).map_or_else(|| id.to_string(), |k| k.body.signed.terms.name.to_string());
        let workloads =
            states.iter().map(|(id, (state, detail))| screen::workload(&name(id), *state, detail)).collect();
        self.context.board.change(|status| status.workloads = workloads);
    }

    /// When what changed has settled enough to be reported; none while a report is on its way.
    fn settled_at(&self) -> Option<Instant> {
        let at = self.changed_at? + SETTLE;
        Some(self.report_not_before.map_or(at, |not_before| at.max(not_before)))
    }

    /// Reports a change soon, and otherwise once an hour.
    fn report(&mut self) {
        let now_ms = self.context.time.now_ms();
        let mut states: BTreeMap<ContractId, (WorkloadState, String)> = self
            .tasks
            .iter()
            .map(|(id, task)| {
                let state = task.state();
                (*id, (state.state, state.detail))
            })
            .collect();
        for (id, reason) in &self.refused {
            states.insert(*id, (WorkloadState::Refused, reason.clone()));
        }
        self.coverage.observe(now_ms, &states);
        self.show(&states);
        if self.session.is_none() || self.superseded {
            return;
        }
        let now = Instant::now();
        if self.coverage.changed() {
            self.changed_at.get_or_insert(now);
        }
        let settled = self.changed_at.is_some_and(|at| now >= at + SETTLE);
        let due = !states.is_empty() && now_ms >= self.coverage.since_ms() + limits::REPORT_EVERY_MS;
        if !(settled || due) || self.report_not_before.is_some_and(|at| now < at) {
            return;
        }
        let (from_ms, until_ms, contracts) =
            self.coverage.report(|id| self.known.get(id).is_some_and(|kept| is_reported(kept, now_ms)));
        if contracts.is_empty() {
            self.coverage.reported(until_ms, &[]);
            self.changed_at = None;
            return;
        }
        let sent = self.say.try_send(Say::Report { from_ms, until_ms, contracts }).is_ok();
        // Until the answer, which the speaker always gives; soon again where it has no room for the request.
        self.report_not_before = Some(now + if sent { REPORT_ANSWER } else { TICK });
    }
}

/// What the ledger still pays for: contracts that may run, and those that ended a moment ago.
fn is_reported(kept: &KeptContract, now_ms: u64) -> bool {
    let ended = matches!(kept.body.state, ContractState::Ended(_));
    let counts = kept.body.final_report_until_ms().is_some_and(|until_ms| now_ms < until_ms);
    kept.body.state.may_run() || (ended && counts)
}

/// Sooner must be known to the next boot; later only now and then, since it costs a write of the whole contract.
fn is_worth_storing(stored_ms: u64, paid_until_ms: u64) -> bool {
    paid_until_ms.saturating_add(STORED_SOONER_MS) < stored_ms
        || paid_until_ms > stored_ms.saturating_add(STORED_LATER_MS)
}
