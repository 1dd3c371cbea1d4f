//! A node that registers, listens, opens workloads and reports, but runs nothing.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use croft_attest::soft::SoftTpm;
use croft_protocol::api::{Concern, Event};
use croft_protocol::attestation::Attestation;
use croft_protocol::boot::BootConfig;
use croft_protocol::peer::{Explanation, LogLine, NodeRequest, NodeResponse, Step, VmExplanation};
use croft_protocol::record::{
    ContractReport, HardwareSummary, NodeBody, ReportBody, TrustClass, WorkloadState,
};
use croft_protocol::seal::SealingKey;
use croft_protocol::trust::{RecentHeader, RecentHeaders};
use croft_protocol::workload::Workload;
use croft_protocol::{
    Body, Capacity, Command, CommandBody, ContractBody, ContractState, Hash, Name, NodeTrouble, SecretKey,
    SignedCommand, StateKey, limits,
};
use croft_transport::{Client, Relayed, frame, peer_accept};
use tokio::sync::{oneshot, watch};

use super::world::World;
use crate::grid::now_ms;

const WITHIN: Duration = Duration::from_secs(20);

/// What it says of every workload.
#[derive(Clone)]
pub(super) struct Behaviour {
    pub(super) state: WorkloadState,
    pub(super) step: String,
    /// What it says is wrong with it.
    pub(super) troubles: Vec<NodeTrouble>,
    /// What it boots and quotes, of a node that a program plays a TPM for.
    pub(super) boots: Option<Hash>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            state: WorkloadState::Running,
            step: "microVM 'web' is running".to_owned(),
            troubles: Vec::new(),
            boots: None,
        }
    }
}

#[derive(Clone, Default)]
struct Opened(Arc<(Mutex<Option<Workload>>, Condvar)>);

pub(super) struct FakeNode {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    opened: Opened,
}

impl FakeNode {
    /// Boots with the world's boot configuration; returns once it is registered and listens.
    pub(super) fn start(world: &World, behaviour: Behaviour) -> Self {
        Self::start_with(&world.boot_config(), behaviour)
    }

    /// The same with a boot configuration of any farm.
    pub(super) fn start_with(boot_config: &str, behaviour: Behaviour) -> Self {
        let config = BootConfig::parse(boot_config).unwrap();
        let (stop, mut stopped) = watch::channel(false);
        let (ready, is_ready) = oneshot::channel();
        let opened = Opened::default();
        let keeps = opened.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let key = SecretKey::generate().unwrap();
                let client = Client::new(&key, config.grid.replicas.clone()).unwrap();
                tokio::select! {
                    () = serve(config, key, client.clone(), behaviour, keeps, ready) => panic!("the node ended"),
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
                client.close().await;
            });
        });
        is_ready.blocking_recv().expect("the node became ready");
        Self { stop, thread: Some(thread), opened }
    }

    /// Another one, which the ledger does not take.
    pub(super) fn is_refused(world: &World) {
        let config = BootConfig::parse(&world.boot_config()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let key = SecretKey::generate().unwrap();
            let client = Client::new(&key, config.grid.replicas.clone()).unwrap();
            let node = Node::new(&config, key, client.clone(), Behaviour::default(), Opened::default());
            let command = node.signed(node.registration(&config).await);
            client.submit(command).await.expect_err("it is refused");
            client.close().await;
        });
    }

    /// The last workload that it opened.
    pub(super) fn workload(&self) -> Workload {
        self.opened.0.0.lock().unwrap().clone().expect("a workload was opened")
    }

    /// Waits until it may run something, and has opened it.
    pub(super) fn wait_until_opened(&self) {
        let opened = self.opened.0.0.lock().unwrap();
        let (opened, timeout) =
            self.opened.0.1.wait_timeout_while(opened, WITHIN, |opened| opened.is_none()).unwrap();
        assert!(!timeout.timed_out() && opened.is_some(), "nothing was opened");
    }

    pub(super) fn stop(self) {
        drop(self);
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            // A panic of the node fails the test, unless the test is failing already.
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

struct Node {
    key: SecretKey,
    sealing: SealingKey,
    chain: croft_protocol::ChainId,
    client: Client,
    sequence: u64,
    behaviour: Behaviour,
    opened: Opened,
    reported_ms: u64,
}

async fn serve(
    config: BootConfig,
    key: SecretKey,
    client: Client,
    behaviour: Behaviour,
    opened: Opened,
    ready: oneshot::Sender<()>,
) {
    let mut node = Node::new(&config, key, client.clone(), behaviour.clone(), opened);
    let mut calls = client.listen();
    let mut events = client.follow(vec![Concern::Node(node.key.public())]).await.unwrap();
    node.register(&config).await;
    // Listening is asked for in the background: the first answer shows that it has arrived.
    while !client.presence(vec![node.key.public()]).await.unwrap().value[0] {
        tokio::task::yield_now().await;
    }
    ready.send(()).unwrap();
    loop {
        tokio::select! {
            event = events.next() => match event.unwrap().value {
                Event::Block { records, .. } => for record in records {
                    if let Body::Contract(contract) = record.body {
                        node.take(&contract).await;
                    }
                },
                Event::Presence { .. } => {}
                Event::Failed(failure) => panic!("{failure}"),
            },
            call = calls.accept() => {
                let (key, behaviour) = (node.key.clone(), behaviour.clone());
                tokio::spawn(answer(call.unwrap(), key, behaviour));
            }
        }
    }
}

impl Node {
    fn new(
        config: &BootConfig,
        key: SecretKey,
        client: Client,
        behaviour: Behaviour,
        opened: Opened,
    ) -> Self {
        let (sealing, chain) = (SealingKey::from_seed(&key.seed()), config.grid.chain);
        Self { key, sealing, chain, client, sequence: 0, behaviour, opened, reported_ms: now_ms() }
    }

    fn signed(&self, command: Command) -> SignedCommand {
        let body = CommandBody {
            chain: self.chain,
            author: self.key.public(),
            sequence: self.sequence,
            expires_height: 10_000,
            command,
        };
        SignedCommand::sign(body, &self.key)
    }

    async fn submit(&mut self, command: Command) {
        self.client.submit(self.signed(command)).await.unwrap();
        self.sequence += 1;
    }

    async fn register(&mut self, config: &BootConfig) {
        let command = self.registration(config).await;
        self.submit(command).await;
    }

    async fn registration(&self, config: &BootConfig) -> Command {
        let join = config.farm.permission().unwrap();
        let node = NodeBody {
            farm: join.join.farm,
            name: Name::new("node-1").unwrap(),
            sealing_key: self.sealing.public(),
            capacity: Capacity {
                cpu_millis: 2000,
                memory_bytes: 4 << 30,
                ssd_bytes: 100 << 30,
                ..Capacity::default()
            },
            hardware: HardwareSummary::default(),
            trust: if self.behaviour.boots.is_some() { TrustClass::Sealed } else { TrustClass::Plain },
            addresses: vec!["192.0.2.7".to_owned()],
            release: "0.1.0".to_owned(),
            session: 1,
            troubles: self.behaviour.troubles.clone(),
        };
        let attestation = match self.behaviour.boots {
            Some(image) => Some(Box::new(self.quote(&node, image).await)),
            None => None,
        };
        Command::RegisterNode { node, join: Some(join), attestation }
    }

    async fn quote(&self, node: &NodeBody, image: Hash) -> Attestation {
        let answer = self.client.get(vec![StateKey::RecentHeaders]).await.unwrap().value.1;
        let recent = answer[0].value.as_deref().expect("the ledger keeps headers for quotes");
        let recent: RecentHeaders =
            croft_protocol::decode("recent headers", recent, limits::RECORD_BYTES).unwrap();
        let RecentHeader { height, hash, .. } = *recent.headers.last().unwrap();
        let id = self.key.public();
        let bound = (&self.chain, height, hash, &id, Attestation::statement(node));
        SoftTpm::new(7_u8).attest(bound, SoftTpm::booted(&[image]))
    }

    /// Opens a contract's workload and reports on it.
    async fn take(&mut self, contract: &ContractBody) {
        if contract.state != ContractState::Approved {
            return;
        }
        let terms = &contract.signed.terms;
        let plain = self.sealing.open(&self.chain, &self.key.public(), &terms.sealed).unwrap();
        let workload: Workload =
            croft_protocol::decode("a workload", &plain, limits::SEALED_WORKLOAD_BYTES).unwrap();
        *self.opened.0.0.lock().unwrap() = Some(workload);
        self.opened.0.1.notify_all();
        let until_ms = now_ms().max(self.reported_ms);
        let report = ReportBody {
            node: self.key.public(),
            session: 1,
            from_ms: self.reported_ms,
            until_ms,
            contracts: vec![ContractReport {
                contract: terms.id(),
                state: self.behaviour.state,
                ran_ms: 0,
                detail: self.behaviour.step.clone(),
            }],
        };
        self.reported_ms = until_ms;
        self.submit(Command::Report(report)).await;
    }
}

async fn answer(call: Relayed, key: SecretKey, behaviour: Behaviour) {
    let Ok((mut stream, _caller)) = peer_accept(call.stream, &key).await else { return };
    let request = frame::read(&mut stream, "the request", limits::PEER_MESSAGE_BYTES, WITHIN).await;
    let response = match request {
        Ok(NodeRequest::Explain { .. }) => NodeResponse::Explained(Explanation {
            state: behaviour.state,
            steps: vec![Step {
                time_ms: now_ms(),
                what: behaviour.step,
                failed: behaviour.state != WorkloadState::Running,
            }],
            vms: vec![VmExplanation {
                name: Name::new("web").unwrap(),
                phase: "running".to_owned(),
                since_ms: now_ms(),
                restarts: 0,
                address: "10.1.0.2".to_owned(),
                detail: String::new(),
            }],
        }),
        Ok(NodeRequest::Logs { tail_lines, .. }) => {
            let line = |text: &str| LogLine { time_ms: 1, stderr: false, text: text.to_owned() };
            let mut lines = vec![line("starting"), line("listening on 80")];
            lines.drain(..lines.len().saturating_sub(tail_lines as usize));
            NodeResponse::Logs(lines)
        }
        Err(_) => return,
    };
    let _ = frame::write(&mut stream, "the answer", &response, limits::PEER_MESSAGE_BYTES, WITHIN).await;
    crate::peers::finish(&mut stream).await;
}
