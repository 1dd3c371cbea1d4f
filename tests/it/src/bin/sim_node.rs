//! A node without a machine: it registers, follows the ledger with proofs, opens what is sealed to it, answers its users,
//! and reports, all by the real protocol. What it runs is a line on its output and a file that stands for the data.
//!
//! ```text
//!   addressed ── agreed: waits ── may run: opened, data made once, reported as running ── paused: stopped, data kept
//!                                                                    └── ended: final report; data deleted after the grace
//! ```
//! It must never run what the ledger does not prove to be approved and paid, nor delete data before the grace period is
//! over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use croft_protocol::api::Concern;
use croft_protocol::boot::BootConfig;
use croft_protocol::peer::{Explanation, LogLine, NodeRequest, NodeResponse, Step};
use croft_protocol::record::{
    ContractReport, HardwareSummary, NodeBody, ReportBody, TrustClass, WorkloadState,
};
use croft_protocol::seal::SealingKey;
use croft_protocol::state::NodeContracts;
use croft_protocol::workload::Workload;
use croft_protocol::{
    Body, Capacity, Command, ContractBody, ContractId, ContractState, Name, Record, RecordId, SecretKey,
    StateKey, limits, units,
};
use croft_transport::verified::{Followed, Keep, Trusted, Verified};
use croft_transport::{Relayed, frame, peer_accept};
use tokio::io::AsyncWriteExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, timeout};

const USAGE: &str = "usage: sim_node --boot-config FILE --dir DIR --name NAME [--cpu CPUS] [--memory SIZE] [--ssd SIZE] [--report-every SECONDS]";
/// Between two looks when nothing is heard.
const LOOK: Duration = Duration::from_secs(1);
/// A caller has this long for each step.
const CALL: Duration = Duration::from_secs(20);
/// Blocks that a command of ours is good for.
const EXPIRES: u64 = 1_000;
/// What a real node with little to do needs; a caller beyond that is hung up.
const CALLS: usize = 32;

struct Options {
    boot: BootConfig,
    dir: PathBuf,
    name: Name,
    capacity: Capacity,
    report_every_ms: u64,
}

impl Options {
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let (mut boot, mut dir, mut name) = (None, None, None);
        let mut capacity =
            Capacity { cpu_millis: 2_000, memory_bytes: 4 << 30, ssd_bytes: 16 << 30, ..Capacity::default() };
        let mut report_every_ms = 10_000;
        let mut arguments = arguments.into_iter();
        while let Some(flag) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{flag} needs a value\n{USAGE}"))?;
            match flag.as_str() {
                "--boot-config" => {
                    let text =
                        std::fs::read_to_string(&value).with_context(|| format!("can't read {value}"))?;
                    boot = Some(BootConfig::parse(&text)?);
                }
                "--dir" => dir = Some(PathBuf::from(value)),
                "--name" => name = Some(Name::new(&value)?),
                "--cpu" => capacity.cpu_millis = units::parse_cpu_millis(&value)?.into(),
                "--memory" => capacity.memory_bytes = units::parse_bytes(&value)?,
                "--ssd" => capacity.ssd_bytes = units::parse_bytes(&value)?,
                "--report-every" => {
                    let seconds: u64 = value.parse().context("--report-every takes seconds")?;
                    report_every_ms = seconds.saturating_mul(1000);
                }
                other => bail!("unknown argument '{other}'\n{USAGE}"),
            }
        }
        Ok(Self {
            boot: boot.context(USAGE)?,
            dir: dir.context(USAGE)?,
            name: name.context(USAGE)?,
            capacity,
            report_every_ms,
        })
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A line for whoever watches; nobody there is no trouble.
fn say(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let done = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => run(options).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sim_node failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<()> {
    std::fs::create_dir_all(options.dir.join("data"))?;
    let key = identity(&options.dir.join("key"))?;
    let session = next_session(&options.dir.join("session"))?;
    let pin = &options.boot.grid;
    let trusted = Trusted { chain: pin.chain, validators: pin.validators, replicas: pin.replicas.clone() };
    let verified = Verified::open(&key, trusted, Forgetful)?;
    let mut calls = verified.listen();
    let mut events = verified.follow(vec![Concern::Node(key.public())]).await?;
    let mut node = Node {
        sealing: SealingKey::from_seed(&key.seed()),
        key: key.clone(),
        verified: verified.clone(),
        data: options.dir.join("data"),
        session,
        report_every_ms: options.report_every_ms,
        reported_ms: now_ms(),
        changed: false,
        held: BTreeMap::new(),
    };
    node.register(&options).await?;
    // Listening is asked for in the background: the replica's word shows that it has arrived.
    while verified.unproved().presence(&[key.public()]).await?.first() != Some(&true) {
        tokio::task::yield_now().await;
    }
    say(&format!("registered '{}' as {}", options.name, key.public()));
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(CALLS));
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        let looks = tokio::select! {
            _ = terminate.recv() => break,
            _ = ticks.tick() => true,
            event = events.next() => match event {
                Ok(Followed::Block { records, .. }) => !records.is_empty(),
                Ok(Followed::Resumed) => true,
                Ok(Followed::Presence { .. }) => false,
                // The ticks go on looking.
                Err(_) => { tokio::time::sleep(LOOK).await; false }
            },
            call = calls.accept() => {
                let (Some(call), Ok(permit)) = (call, permits.clone().try_acquire_owned()) else { continue };
                let (key, state) = (node.key.clone(), node.states());
                tokio::spawn(async move {
                    // A caller who goes away has what he wanted, or asks again.
                    let _ = answer(call, &key, &state).await;
                    drop(permit);
                });
                false
            }
        };
        // What can't be asked or reported now is asked again with the next tick.
        if looks && let Err(error) = node.look().await {
            say(&format!("trouble: {error:#}"));
        }
    }
    verified.close().await;
    Ok(())
}

/// The key, made at the first start.
fn identity(path: &Path) -> Result<SecretKey> {
    if let Ok(text) = std::fs::read_to_string(path) {
        let seed = croft_protocol::hash::parse_hex("the key", text.trim()).context("the key is damaged")?;
        return Ok(SecretKey::from_seed(&seed));
    }
    let key = SecretKey::generate()?;
    let digits = croft_protocol::Hash(key.seed()).to_string();
    std::fs::write(path, digits).with_context(|| format!("can't write {}", path.display()))?;
    Ok(key)
}

/// Grows with each start, as that of a machine with each boot.
fn next_session(path: &Path) -> Result<u64> {
    let before: u64 =
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    std::fs::write(path, (before + 1).to_string())
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(before + 1)
}

/// Keeps nothing from run to run: it starts from the pinned validators each time.
#[derive(Debug)]
struct Forgetful;

impl Keep for Forgetful {
    fn now_ms(&self) -> Option<u64> {
        Some(now_ms())
    }
    fn trail(&self) -> Option<Vec<u8>> {
        None
    }
    fn keep_trail(&self, _: u64, _: &[u8]) {}
    fn evidence(&self) -> Option<Vec<u8>> {
        None
    }
    fn keep_evidence(&self, _: &[u8]) {}
    fn evidence_place(&self) -> String {
        "nowhere".to_owned()
    }
}

/// A contract that is, or was, addressed to the node.
struct Held {
    body: ContractBody,
    /// Opened once; what its first microVM would start.
    workload: Option<Workload>,
    /// Since when it runs, if it does.
    running_ms: Option<u64>,
    /// What was said last, so that nothing is said twice.
    said: String,
    /// Ended, and its final report is out.
    settled: bool,
}

struct Node {
    key: SecretKey,
    sealing: SealingKey,
    verified: Verified,
    data: PathBuf,
    session: u64,
    report_every_ms: u64,
    reported_ms: u64,
    /// Since the last report.
    changed: bool,
    held: BTreeMap<ContractId, Held>,
}

impl Node {
    async fn register(&mut self, options: &Options) -> Result<()> {
        let join = options.boot.farm.permission()?;
        let node = NodeBody {
            farm: join.join.farm,
            name: options.name.clone(),
            sealing_key: self.sealing.public(),
            capacity: options.capacity,
            hardware: HardwareSummary::default(),
            trust: TrustClass::Plain,
            addresses: vec!["192.0.2.7".to_owned()],
            release: env!("CARGO_PKG_VERSION").to_owned(),
            session: self.session,
            troubles: Vec::new(),
        };
        let register = Command::RegisterNode { node, join: Some(join), attestation: None };
        self.verified.submit(&self.key, &register, EXPIRES).await?;
        Ok(())
    }

    /// Reads what is addressed to it, does what follows, and reports.
    async fn look(&mut self) -> Result<()> {
        let me = self.key.public();
        let (_, values) = self.verified.get(&[StateKey::NodeContracts(me)]).await?;
        let addressed: NodeContracts = match values.first().and_then(Option::as_deref) {
            Some(bytes) => croft_protocol::decode("a node's contracts", bytes, limits::RESPONSE_BYTES)?,
            None => NodeContracts::default(),
        };
        let mut ids = addressed.contracts;
        ids.extend(self.held.keys().filter(|id| !ids.contains(id)).copied().collect::<Vec<_>>());
        for page in ids.chunks(limits::KEYS_PER_GET) {
            let keys: Vec<StateKey> =
                page.iter().map(|id| StateKey::Record(RecordId::contract(id))).collect();
            let (_, values) = self.verified.get(&keys).await?;
            for (id, value) in page.iter().zip(values) {
                let Some(bytes) = value else { bail!("contract {id} is addressed to us and has no record") };
                let record: Record = croft_protocol::decode("a contract", &bytes, limits::RECORD_BYTES)?;
                let Body::Contract(body) = record.body else { bail!("record {id} is no contract") };
                self.take(*id, *body)?;
            }
        }
        let runs = self.held.values().any(|held| held.running_ms.is_some());
        if self.changed || (runs && now_ms() >= self.reported_ms.saturating_add(self.report_every_ms)) {
            self.report().await?;
        }
        Ok(())
    }

    /// Does what a contract's newest version asks for.
    fn take(&mut self, id: ContractId, body: ContractBody) -> Result<()> {
        let name = body.signed.terms.name.clone();
        let state = body.state;
        let file = self.data.join(id.to_string());
        let held = self.held.entry(id).or_insert_with(|| Held {
            body: body.clone(),
            workload: None,
            running_ms: None,
            said: String::new(),
            settled: false,
        });
        held.body = body;
        let before = held.running_ms;
        let mut says = match state {
            ContractState::Agreed => "waits for its approvers, nothing runs".to_owned(),
            ContractState::Paused { .. } => "paused: stopped, its data is kept".to_owned(),
            ContractState::Ended(reason) => format!("stopped: {reason:?}"),
            _ => String::new(),
        };
        if state.may_run() {
            if held.workload.is_none() {
                held.body.signed.verify(self.verified.chain())?;
                let sealed = &held.body.signed.terms.sealed;
                let plain = self.sealing.open(self.verified.chain(), &self.key.public(), sealed)?;
                held.workload =
                    Some(croft_protocol::decode("a workload", &plain, limits::SEALED_WORKLOAD_BYTES)?);
            }
            let kept = file.exists();
            if held.running_ms.is_none() {
                if !kept {
                    std::fs::write(&file, format!("written at {} ms\n", now_ms()))?;
                }
                held.running_ms = Some(now_ms());
            }
            says = if held.said.is_empty() || held.said.contains("approvers") {
                "running".to_owned()
            } else if held.said.starts_with("paused") {
                ensure!(kept, "the data of '{name}' is gone");
                "running again, with the data of before".to_owned()
            } else {
                held.said.clone()
            };
        } else if !matches!(state, ContractState::Ended(_)) {
            held.running_ms = None;
        }
        let over = held.body.data_kept_until_ms().is_some_and(|until_ms| now_ms() >= until_ms);
        if over && held.settled {
            let _ = std::fs::remove_file(&file);
            says = format!("{says}; its data is deleted");
        }
        self.changed |=
            before != held.running_ms || (matches!(state, ContractState::Ended(_)) && !held.settled);
        if held.said != says {
            say(&format!("workload {name}: {says}"));
            held.said = says;
        }
        if over && held.settled {
            self.held.remove(&id);
        }
        Ok(())
    }

    /// Covers the time since the last report, as far back as one may.
    async fn report(&mut self) -> Result<()> {
        let until_ms = now_ms().max(self.reported_ms);
        let from_ms = self.reported_ms.max(until_ms.saturating_sub(limits::REPORT_COVERS_MS));
        let line = |(id, held): (&ContractId, &Held)| {
            let since_ms = held.running_ms?;
            let ended = matches!(held.body.state, ContractState::Ended(_));
            let end_ms = if ended { held.body.ended_ms.min(until_ms) } else { until_ms };
            let state = if ended { WorkloadState::Finished } else { WorkloadState::Running };
            let ran_ms = end_ms.saturating_sub(since_ms.max(from_ms));
            Some(ContractReport { contract: *id, state, ran_ms, detail: "simulated".to_owned() })
        };
        let contracts = self.held.iter().filter_map(line).collect();
        let report =
            ReportBody { node: self.key.public(), session: self.session, from_ms, until_ms, contracts };
        self.verified.submit(&self.key, &Command::Report(report), EXPIRES).await?;
        self.reported_ms = until_ms;
        self.changed = false;
        for held in self.held.values_mut().filter(|h| matches!(h.body.state, ContractState::Ended(_))) {
            (held.settled, held.running_ms) = (true, None);
        }
        Ok(())
    }

    /// For callers.
    fn states(&self) -> BTreeMap<ContractId, (WorkloadState, String)> {
        let state = |held: &Held| match held.running_ms {
            Some(_) => WorkloadState::Running,
            None => WorkloadState::Preparing,
        };
        self.held.iter().map(|(id, held)| (*id, (state(held), held.said.clone()))).collect()
    }
}

async fn answer(
    call: Relayed,
    key: &SecretKey,
    states: &BTreeMap<ContractId, (WorkloadState, String)>,
) -> Result<()> {
    let (mut stream, _caller) = peer_accept(call.stream, key).await?;
    let request: NodeRequest =
        frame::read(&mut stream, "the request", limits::PEER_MESSAGE_BYTES, CALL).await?;
    let unknown = |id: &ContractId| NodeResponse::Refused { reason: format!("contract {id} is not here") };
    let response = match &request {
        NodeRequest::Explain { contract } => match states.get(contract) {
            Some((state, said)) => {
                let step = Step { time_ms: now_ms(), what: said.clone(), failed: false };
                NodeResponse::Explained(Explanation { state: *state, steps: vec![step], vms: Vec::new() })
            }
            None => unknown(contract),
        },
        NodeRequest::Logs { contract, .. } => match states.get(contract) {
            Some((_, said)) => {
                NodeResponse::Logs(vec![LogLine { time_ms: now_ms(), stderr: false, text: said.clone() }])
            }
            None => unknown(contract),
        },
    };
    frame::write(&mut stream, "the answer", &response, limits::PEER_MESSAGE_BYTES, CALL).await?;
    // The caller has it when it hangs up, or never will.
    let ended = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = timeout(CALL, ended).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let says = |line: &str| {
            let options = Options::parse(line.split_whitespace().map(str::to_owned));
            options.err().map(|error| format!("{error:#}")).unwrap_or_default()
        };
        assert!(says("").starts_with("usage: sim_node"));
        assert!(says("--name").starts_with("--name needs a value"));
        assert!(says("--fast 1").starts_with("unknown argument '--fast'"));
        assert!(says("--boot-config /nowhere").starts_with("can't read /nowhere"));
        assert!(says("--memory lots").contains("lots"));
    }

    #[test]
    fn a_node_is_the_same_after_a_restart_in_a_later_session() {
        let dir = tempfile::tempdir().unwrap();
        let (key, session) = (dir.path().join("key"), dir.path().join("session"));
        assert_eq!(identity(&key).unwrap().public(), identity(&key).unwrap().public());
        assert_eq!((next_session(&session).unwrap(), next_session(&session).unwrap()), (1, 2));
    }
}
