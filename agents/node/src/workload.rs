//! The owner task of one contract: everything that it runs, from the sealed bytes to the published port.
//!
//! ```text
//!   Opening ──> Fetching ──> Building ──> Watching ──┐
//!      │            │            │           │       │ stop
//!      │ refused    └── failed ──┴───────────┴──> back-off, again
//!      ▼                                             ▼
//!   Refused (waits for the ledger to end it)      Stopped: microVMs, ports and network are gone; data stays
//! ```
//! It must never delete a volume, nor run a workload that differs from the contract.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_guest::wire::Step as GuestStep;
use croft_microvm::status::{EndCause, Phase, VmStatus};
use croft_network::workload::{DeploymentNetwork, DeploymentSpec, MachineSpec, Owner};
use croft_protocol::peer::{Explanation, Step, VmExplanation};
use croft_protocol::record::WorkloadState;
use croft_protocol::seal::SealingKey;
use croft_protocol::workload::{RestartPolicy, Vm, Workload};
use croft_protocol::{ContractBody, ContractId, Hash, NodeId};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::images::{BlobSource, Image, ImageError, ImageStore};
use crate::ledger::{BackOff, Ledger, chain_of};
use crate::machines::{Machine, Machines};
use crate::networks::{self, Networks};
use crate::peers::{Desk, Entry};
use crate::screen::Board;
use crate::spec::{self, GuestFiles, Place, Surroundings, WorkloadError};
use crate::time::Time;
use crate::volumes::Volumes;

/// Steps that are remembered for an explanation.
const STEPS: usize = 64;
/// For taking everything down beyond the workload's own grace.
const TEARDOWN: Duration = Duration::from_secs(60);

/// What every owner task needs.
pub struct Context {
    pub node: NodeId,
    pub sealing: SealingKey,
    pub ledger: Arc<Ledger>,
    pub images: ImageStore,
    /// Images of contracts that run: the others may go.
    pub in_use: InUse,
    pub volumes: Volumes,
    pub networks: Networks,
    pub machines: Machines,
    pub guest: GuestFiles,
    pub log_dir: PathBuf,
    pub desk: Desk,
    pub time: Arc<Time>,
    /// Resolvers that guests use.
    pub dns: watch::Receiver<Vec<IpAddr>>,
    pub mtu_bytes: u32,
    /// Wakes the main loop when a task's state changes.
    pub news: Notify,
    /// What the monitor shows.
    pub board: Board,
    /// Whether the ledger knows this boot.
    pub registered: watch::Sender<bool>,
}

/// Which contract needs which images.
#[derive(Default)]
pub struct InUse(Mutex<BTreeMap<ContractId, BTreeSet<Hash>>>);

impl InUse {
    fn add(&self, contract: ContractId, images: impl Iterator<Item = Hash>) {
        self.lock().insert(contract, images.collect());
    }

    /// The contract is gone: images that nobody else needs go too. Returns the bytes freed.
    ///
    /// # Errors
    /// [`ImageError::Io`]; the images stay.
    pub fn release(&self, contract: &ContractId, images: &ImageStore) -> Result<u64, ImageError> {
        let mut needed = self.lock();
        needed.remove(contract);
        images.remove_unused(|hash| needed.values().any(|set| set.contains(&hash)))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ContractId, BTreeSet<Hash>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a task tells the main loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskState {
    pub state: WorkloadState,
    /// Why, for people.
    pub detail: String,
}

/// A contract's owner task.
pub struct Task {
    stop: watch::Sender<bool>,
    state: watch::Receiver<TaskState>,
    handle: JoinHandle<()>,
}

impl Task {
    /// Starts working on a contract that may run.
    #[must_use]
    pub fn start(context: Arc<Context>, id: ContractId, body: ContractBody) -> Self {
        let (stop, stopping) = watch::channel(false);
        let first = TaskState { state: WorkloadState::Preparing, detail: "taken from the ledger".into() };
        let (sender, state) = watch::channel(first);
        let mut keeper = Keeper {
            context,
            id,
            body,
            stopping,
            state: sender,
            steps: VecDeque::new(),
            vms: Vec::new(),
            logs: BTreeMap::new(),
        };
        Self { stop, state, handle: tokio::spawn(async move { keeper.run().await }) }
    }

    /// Asks for an ordered end; data stays.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    #[must_use]
    pub fn state(&self) -> TaskState {
        self.state.borrow().clone()
    }

    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits for the end.
    pub async fn join(self) {
        // A panic of the task was logged by the panic hook; the main loop starts a new one.
        let _ = self.handle.await;
    }
}

/// How one try ended.
enum End {
    Stopped,
    Refused(String),
    Failed(String),
}

#[derive(Debug, thiserror::Error)]
enum TryError {
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Volume(#[from] crate::volumes::VolumeError),
    #[error(transparent)]
    Network(#[from] networks::NetworkError),
    #[error(transparent)]
    Machine(#[from] crate::machines::MachineError),
    #[error("it was told to stop")]
    Stopped,
}

struct Keeper {
    context: Arc<Context>,
    id: ContractId,
    body: ContractBody,
    stopping: watch::Receiver<bool>,
    state: watch::Sender<TaskState>,
    steps: VecDeque<Step>,
    vms: Vec<VmExplanation>,
    logs: BTreeMap<croft_protocol::Name, croft_microvm::logs::Logs>,
}

impl BlobSource for Ledger {
    async fn blob(&self, hash: Hash) -> Result<Vec<u8>, String> {
        self.verified().get_blob(hash).await.map_err(|e| chain_of(&e))
    }
}

impl Keeper {
    async fn run(&mut self) {
        let name = self.body.signed.terms.name.clone();
        self.step("the ledger proves the contract; both signatures are good", false);
        let mut back_off = BackOff::default();
        loop {
            let end = self.once().await;
            self.take_down().await;
            match end {
                End::Stopped => break,
                End::Refused(reason) => {
                    self.step(&reason, true);
                    self.enter(WorkloadState::Refused, reason);
                    self.wait_for_stop().await;
                    break;
                }
                End::Failed(reason) => {
                    self.step(&reason, true);
                    self.enter(WorkloadState::Failing, reason);
                    let pause = back_off.next();
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.wait_for_stop() => break,
                    }
                }
            }
        }
        self.context.desk.remove(&self.id);
        tracing::info!(contract = %self.id, "workload {name}: stopped");
    }

    /// One try, from the seal to the end of its microVMs.
    async fn once(&mut self) -> End {
        let result = async {
            let (workload, images) = self.fetch().await?;
            let machines = self.build(&workload, &images).await?;
            Ok::<_, TryError>(self.watch(&workload, &images, machines).await)
        };
        match result.await {
            Ok(end) => end,
            Err(TryError::Stopped) => End::Stopped,
            Err(TryError::Workload(error)) => End::Refused(chain_of(&error)),
            Err(TryError::Image(error)) if error.is_final() => End::Refused(chain_of(&error)),
            Err(error) => End::Failed(chain_of(&error)),
        }
    }

    /// Opens the seal, and gets every image whole and verified.
    async fn fetch(&mut self) -> Result<(Workload, Vec<Image>), TryError> {
        let context = self.context.clone();
        let sealed = &self.body.signed.terms.sealed;
        let plain = context
            .sealing
            .open(context.ledger.chain(), &context.node, sealed)
            .map_err(WorkloadError::from)?;
        let workload = spec::open(&plain, &self.body)?;
        context.in_use.add(self.id, workload.vms.iter().map(|vm| vm.image));
        let mut images = Vec::new();
        for vm in &workload.vms {
            if let Some(image) = context.images.get(vm.image) {
                images.push(image);
                continue;
            }
            self.enter(WorkloadState::Preparing, format!("fetching image {}", vm.image.short()));
            let state = self.state.clone();
            let mut stopping = self.stopping.clone();
            let fetched = context.images.fetch(vm.image, &*context.ledger, |done, of| {
                let percent = done * 100 / of.max(1);
                state.send_if_modified(|s| {
                    let detail = format!("fetching image {}: {percent} %", vm.image.short());
                    std::mem::replace(&mut s.detail, detail.clone()) != detail
                });
            });
            let image = tokio::select! {
                image = fetched => image?,
                _ = stopping.wait_for(|stop| *stop) => return Err(TryError::Stopped),
            };
            self.step(&format!("image {} is here and verified", vm.image.short()), false);
            images.push(image);
        }
        Ok((workload, images))
    }

    /// Makes volumes and network, and starts the microVMs.
    async fn build(&mut self, workload: &Workload, images: &[Image]) -> Result<Vec<Machine>, TryError> {
        let context = self.context.clone();
        self.enter(WorkloadState::Preparing, "making volumes and network".into());
        for volume in &workload.volumes {
            context.volumes.ensure(&self.id, volume).await?;
        }
        let network = context
            .networks
            .ensure(&DeploymentSpec {
                id: networks::deployment(&self.id),
                machines: workload
                    .vms
                    .iter()
                    .enumerate()
                    .map(|(index, vm)| MachineSpec {
                        name: vm.name.to_string(),
                        index: index as u16,
                        // The jail gives each tap to its monitor's own user.
                        owner: Owner { uid: 0, gid: 0 },
                    })
                    .collect(),
                mtu_bytes: context.mtu_bytes,
            })
            .await?;
        context.networks.publish(&self.id, networks::ports(&self.id, workload, &network)).await?;
        let neighbours: Vec<(String, Ipv4Addr)> = workload
            .vms
            .iter()
            .zip(&network.taps)
            .map(|(vm, tap)| (vm.name.to_string(), tap.address.addr()))
            .collect();
        let mut machines = Vec::new();
        for (index, image) in images.iter().enumerate() {
            let surroundings = Surroundings {
                place: self.place(&network, index),
                files: &context.guest,
                neighbours: &neighbours,
                log_dir: &context.log_dir,
                now_ms: context.time.now_ms(),
            };
            let spec = spec::vm_spec(&self.id, workload, index, image, &surroundings, |volume| {
                context.volumes.path(&self.id, volume)
            })?;
            machines.push(context.machines.start(spec)?);
        }
        self.logs = workload
            .vms
            .iter()
            .zip(&machines)
            .map(|(vm, machine)| (vm.name.clone(), machine.logs()))
            .collect();
        self.vms = workload
            .vms
            .iter()
            .zip(&network.taps)
            .map(|(vm, tap)| VmExplanation {
                name: vm.name.clone(),
                phase: Phase::Preparing.to_string(),
                since_ms: context.time.now_ms(),
                restarts: 0,
                address: tap.address.addr().to_string(),
                detail: String::new(),
            })
            .collect();
        self.step("volumes, network and ports are made; microVMs start", false);
        Ok(machines)
    }

    fn place(&self, network: &DeploymentNetwork, index: usize) -> Place {
        let tap = &network.taps[index];
        Place {
            netns: network.namespace.clone(),
            tap: tap.name.clone(),
            mac: tap.mac.0,
            address: tap.address.addr(),
            prefix: tap.address.prefix_len(),
            gateway: network.gateway,
            dns: self.context.dns.borrow().clone(),
        }
    }

    /// Follows the microVMs until they are told to stop, or one can't go on.
    async fn watch(&mut self, workload: &Workload, images: &[Image], mut machines: Vec<Machine>) -> End {
        let end = loop {
            let statuses: Vec<VmStatus> = machines.iter_mut().map(Machine::status).collect();
            self.describe(workload, &statuses);
            if let Some(index) = damaged_root(&statuses)
                && matches!(ImageStore::verify(&images[index]), Ok(false))
            {
                break End::Failed(format!(
                    "image {} was damaged on the disk: it is fetched again",
                    workload.vms[index].image.short()
                ));
            }
            let (state, detail) = judge(&workload.vms, &statuses);
            if state == WorkloadState::Running && self.state.borrow().state != WorkloadState::Running {
                self.step("every microVM runs", false);
                for ((vm, status), machine) in workload.vms.iter().zip(&statuses).zip(&machines) {
                    if let Some(t) = status.timings {
                        tracing::info!(
                            "workload {}: microVM {} runs: spawned {} ms, booted {} ms, hello {} ms, started {} ms, \
                             {} KiB of host memory beside its own",
                            self.body.signed.terms.name,
                            vm.name,
                            t.spawned.as_millis(),
                            t.booted.as_millis(),
                            t.hello.as_millis(),
                            t.started.as_millis(),
                            machine.overhead_bytes().unwrap_or(0) >> 10
                        );
                    }
                }
            }
            self.enter(state, detail);
            tokio::select! {
                () = changed(&mut machines) => {}
                () = self.wait_for_stop() => break End::Stopped,
            }
        };
        let grace = workload.vms.iter().map(|vm| u64::from(vm.stop_grace_s)).max().unwrap_or(0);
        for (machine, vm) in machines.iter().zip(&workload.vms) {
            machine.stop(Duration::from_secs(u64::from(vm.stop_grace_s)));
        }
        let all = async {
            for machine in &mut machines {
                machine.ended().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(grace) + TEARDOWN, all).await.is_err() {
            tracing::error!(contract = %self.id, "a microVM does not end: its processes are left to the kernel");
        }
        end
    }

    /// Ports and network go; volumes and images stay.
    async fn take_down(&mut self) {
        self.logs.clear();
        self.vms.clear();
        if let Err(error) = self.context.networks.remove(&self.id).await {
            tracing::warn!(contract = %self.id, error = %chain_of(&error), "the network is not gone yet");
        }
    }

    async fn wait_for_stop(&self) {
        let mut stopping = self.stopping.clone();
        // An error means that the handle is gone: that is a stop too.
        let _ = stopping.wait_for(|stop| *stop).await;
    }

    fn enter(&self, state: WorkloadState, detail: String) {
        let next = TaskState { state, detail };
        let changed = self.state.send_if_modified(|now| {
            let changed = *now != next;
            if changed && now.state != next.state {
                tracing::info!(
                    contract = %self.id,
                    "workload {}: {:?}: {}",
                    self.body.signed.terms.name,
                    next.state,
                    next.detail
                );
            }
            *now = next.clone();
            changed
        });
        if changed {
            self.context.news.notify_one();
            self.show();
        }
    }

    fn step(&mut self, what: &str, failed: bool) {
        if self.steps.back().is_some_and(|last| last.what == what && last.failed == failed) {
            return;
        }
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        let what = what.chars().take(croft_protocol::limits::TEXT_BYTES).collect();
        self.steps.push_back(Step { time_ms: self.context.time.now_ms(), what, failed });
        self.show();
    }

    fn describe(&mut self, workload: &Workload, statuses: &[VmStatus]) {
        for ((vm, status), shown) in workload.vms.iter().zip(statuses).zip(&mut self.vms) {
            shown.name = vm.name.clone();
            shown.phase = status.phase.to_string();
            shown.since_ms = status.since_ms;
            shown.restarts = status.restarts;
            shown.detail = detail(status);
        }
        self.show();
    }

    fn show(&self) {
        let terms = &self.body.signed.terms;
        let explanation = Explanation {
            state: self.state.borrow().state,
            steps: self.steps.iter().cloned().collect(),
            vms: self.vms.clone(),
        };
        let entry = Entry { user: terms.user, farmer: terms.farmer, explanation, logs: self.logs.clone() };
        self.context.desk.set(self.id, entry);
    }
}

/// Waits for news of any of them.
async fn changed(machines: &mut [Machine]) {
    let waits: Vec<_> = machines.iter_mut().map(|machine| Box::pin(machine.changed())).collect();
    if waits.is_empty() {
        std::future::pending::<()>().await;
    }
    futures_util::future::select_all(waits).await;
}

fn detail(status: &VmStatus) -> String {
    match (&status.phase, &status.last_end) {
        (Phase::Running, _) => status
            .health
            .iter()
            .find(|(_, health)| health.state == croft_guest::wire::HealthState::Unhealthy)
            .map_or_else(String::new, |(check, health)| format!("health check {check}: {}", health.detail)),
        (_, Some(end)) => end.to_string(),
        (_, None) => String::new(),
    }
}

/// The microVM whose root could not be read, if there is one: its image may be damaged on the disk.
fn damaged_root(statuses: &[VmStatus]) -> Option<usize> {
    statuses.iter().position(|status| {
        status.phase != Phase::Running
            && matches!(
                status.last_end,
                Some(EndCause::GuestFailed { step: GuestStep::RootImage | GuestStep::EntryPoint, .. })
            )
    })
}

/// The state of the whole from the states of its parts.
fn judge(vms: &[Vm], statuses: &[VmStatus]) -> (WorkloadState, String) {
    let named = |index: usize, what: String| format!("microVM '{}': {what}", vms[index].name);
    if let Some(index) = statuses.iter().position(|s| {
        s.phase == Phase::BackingOff || (s.phase == Phase::Ended && !ended_well(s)) || is_unhealthy(s)
    }) {
        return (WorkloadState::Failing, named(index, detail(&statuses[index])));
    }
    if statuses.iter().zip(vms).all(|(s, vm)| s.phase == Phase::Ended && vm.restart != RestartPolicy::Always)
    {
        return (WorkloadState::Finished, "every microVM ended as it was meant to".into());
    }
    if statuses.iter().all(|s| s.phase == Phase::Running || (s.phase == Phase::Ended && ended_well(s))) {
        return (WorkloadState::Running, String::new());
    }
    // A restart within a second should not look like a new contract, nor be paid for.
    let restarting = statuses.iter().position(|s| s.restarts > 0 && s.phase != Phase::Running);
    match restarting {
        Some(index) => (WorkloadState::Failing, named(index, detail(&statuses[index]))),
        None => (WorkloadState::Preparing, "microVMs start".into()),
    }
}

fn ended_well(status: &VmStatus) -> bool {
    status.last_end.as_ref().is_some_and(EndCause::is_success)
}

fn is_unhealthy(status: &VmStatus) -> bool {
    status.phase == Phase::Running && !status.is_healthy()
}

#[cfg(test)]
mod tests;
