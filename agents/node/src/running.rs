//! The main loop: what the ledger proves against what runs, every second and at every piece of news.
//!
//! It must never wait for the network: it hears and speaks through queues, and beats for init in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use croft_protocol::record::WorkloadState;
use croft_protocol::{ContractBody, ContractId, limits};
use croft_storage::documents::Documents;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::contracts::Pulled;
use crate::coverage::Coverage;
use crate::ledger::chain_of;
use crate::reconcile::{self, Action, Activity};
use crate::screen;
use crate::sequence::Alive;
use crate::voice::{Heard, Say};
use crate::workload::{Context, Task};

/// Between two looks when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// Changes within this time are one report.
const SETTLE: Duration = Duration::from_millis(300);
/// For the ledger's answer to a report.
const REPORT_ANSWER: Duration = Duration::from_secs(120);
/// After a report that was not taken.
const REPORT_RETRY: Duration = Duration::from_secs(10);
/// Between two requests to settle the same contract.
const SETTLE_RETRY: Duration = Duration::from_secs(30);
/// For all workloads to end when the machine goes down; init waits for 45 s.
const SHUTDOWN: Duration = Duration::from_secs(40);

/// A node in its main loop.
pub struct Running {
    context: Arc<Context>,
    documents: Documents,
    known: BTreeMap<ContractId, ContractBody>,
    tasks: BTreeMap<ContractId, Task>,
    /// Contracts that are taken from the ledger but can't be run, with why.
    refused: BTreeMap<ContractId, String>,
    coverage: Coverage,
    registered: bool,
    /// A report is on its way, or was refused a moment ago.
    report_not_before: Option<Instant>,
    changed_at: Option<Instant>,
    settling: BTreeMap<ContractId, Instant>,
    say: mpsc::Sender<Say>,
    heard: mpsc::Receiver<Heard>,
    known_ids: watch::Sender<BTreeSet<ContractId>>,
}

impl Running {
    /// Starts from what an earlier boot knew.
    #[must_use]
    pub fn new(
        context: Arc<Context>,
        documents: Documents,
        known: BTreeMap<ContractId, ContractBody>,
        registered: Option<u64>,
        say: mpsc::Sender<Say>,
        heard: mpsc::Receiver<Heard>,
        known_ids: watch::Sender<BTreeSet<ContractId>>,
    ) -> Self {
        known_ids.send_replace(known.keys().copied().collect());
        let from_ms = context.time.now_ms().max(registered.unwrap_or(0));
        Self {
            context,
            documents,
            known,
            tasks: BTreeMap::new(),
            refused: BTreeMap::new(),
            coverage: Coverage::new(from_ms),
            registered: registered.is_some(),
            report_not_before: None,
            changed_at: None,
            settling: BTreeMap::new(),
            say,
            heard,
            known_ids,
        }
    }

    /// Runs until SIGTERM, then ends every workload in order.
    pub async fn run(mut self, alive: &Alive) {
        let mut terminate = signal(SignalKind::terminate()).expect("a signal handler can be installed");
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let settled_at = self.settled_at();
            tokio::select! {
                _ = tick.tick() => alive.beat(),
                Some(what) = self.heard.recv() => self.hear(what),
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
                self.registered = true;
                self.context.registered.send_replace(true);
                self.coverage.reported(reported_until_ms, &[]);
            }
            Heard::NotRegistered { reason } => {
                self.context.board.change(|status| status.registration = screen::not_registered(&reason));
                tracing::warn!(reason, "not registered yet");
            }
            Heard::Reported { until_ms, contracts } => {
                self.coverage.reported(until_ms, &contracts);
                self.report_not_before = None;
                self.changed_at = None;
            }
            Heard::NotReported { reason } => {
                tracing::warn!(reason, "the report was not taken; it is sent again");
                self.report_not_before = Some(Instant::now() + REPORT_RETRY);
            }
        }
    }

    fn pulled(&mut self, pulled: Pulled) {
        for (id, reason) in pulled.refused {
            if self.refused.insert(id, reason.clone()).as_ref() != Some(&reason) {
                tracing::error!(contract = %id, "{reason}");
            }
        }
        for (id, body) in pulled.contracts {
            self.refused.remove(&id);
            if self.known.get(&id) == Some(&body) {
                continue;
            }
            tracing::info!(contract = %id, "contract {} is {:?} at height {}", body.signed.terms.name, body.state, pulled.height);
            // Durable before anything is done about it: a power cut must not forget a contract that ran.
            if let Err(error) = self.documents.put(&id.to_string(), &croft_protocol::encode(&body)) {
                tracing::error!(contract = %id, error = %chain_of(&error), "the contract is not kept for the next boot");
            }
            self.known.insert(id, body);
        }
        self.known_ids.send_replace(self.known.keys().copied().collect());
    }

    /// Forgets owner tasks that ended.
    fn reap(&mut self) {
        self.tasks.retain(|_, task| !task.is_finished());
    }

    async fn reconcile(&mut self) {
        let activities: BTreeMap<ContractId, Activity> = self
            .tasks
            .iter()
            .map(|(id, task)| (*id, if task.is_stopping() { Activity::Stopping } else { Activity::Working }))
            .collect();
        for action in reconcile::actions(&self.known, &activities, self.context.time.now_ms()) {
            match action {
                Action::Start(id) => {
                    let body = self.known[&id].clone();
                    self.tasks.insert(id, Task::start(self.context.clone(), id, body));
                }
                Action::Stop(id, reason) => {
                    tracing::info!(contract = %id, ?reason, "workload {}: stopping", self.known[&id].signed.terms.name);
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

    async fn delete_data(&mut self, id: ContractId) {
        let body = &self.known[&id];
        let ledger_ms = self.context.time.header_ms();
        if body.data_kept_until_ms().is_none_or(|until_ms| ledger_ms < until_ms) {
            // Our clock is ahead of the ledger's, and only the ledger's counts here.
            return;
        }
        if let Err(error) = self.context.volumes.delete(&id, body, ledger_ms).await {
            tracing::error!(contract = %id, error = %chain_of(&error), "the data of an ended contract is not gone yet");
            return;
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
        self.settling.remove(&id);
        self.known_ids.send_replace(self.known.keys().copied().collect());
    }

    /// For whoever stands before the machine.
    fn show(&self, states: &BTreeMap<ContractId, (WorkloadState, String)>) {
        let name =
            |id| self.known.get(id).map_or_else(|| id.to_string(), |body| body.signed.terms.name.to_string());
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
        if !self.registered {
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
            self.coverage.report(|id| self.known.get(id).is_some_and(|body| body.state.may_run()));
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

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
