//! Replicas on loopback that answer from a ledger in memory, honestly or as a test wants it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_ledger::memory::Scenario;
use croft_ledger::{StateRead as _, StateReadExt as _};
use croft_protocol::api::{Event, Failure, IncomingRelay, Request, Response};
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::{Hash, PublicKey, SecretKey, SignedCommand, SignedHeader, limits};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::{Keep, Trusted, Verified};
use crate::endpoint::{Connection, Endpoint};
use crate::frame;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

/// A ledger that several replicas may share.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    scenario: Arc<Mutex<Scenario>>,
    height: watch::Sender<u64>,
}

impl Ledger {
    pub(super) fn new(scenario: Scenario) -> Self {
        let height = scenario.ledger.tip().header.height;
        Self { scenario: Arc::new(Mutex::new(scenario)), height: watch::Sender::new(height) }
    }

    /// The same history, which goes on by itself from here.
    pub(super) fn fork(&self) -> Self {
        Self::new(self.with(|scenario| scenario.clone()))
    }

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Scenario) -> T) -> T {
        let mut scenario = self.scenario.lock().unwrap();
        let result = change(&mut scenario);
        let height = scenario.ledger.tip().header.height;
        drop(scenario);
        self.height.send_if_modified(|known| std::mem::replace(known, height) != height);
        result
    }

    /// An empty block.
    pub(super) fn beat(&self) {
        self.with(|scenario| {
            let at_ms = scenario.now_ms() + 1;
            scenario.ledger.commit(at_ms, &[]);
        });
    }

    pub(super) fn tip(&self) -> SignedHeader {
        self.with(|scenario| scenario.ledger.tip().clone())
    }

    pub(super) fn trusted(&self, replicas: &[&Fake]) -> Trusted {
        self.with(|scenario| Trusted {
            chain: scenario.ledger.chain(),
            validators: scenario.ledger.genesis().validators.hash(),
            replicas: replicas.iter().map(|fake| fake.address.clone()).collect(),
        })
    }

    /// What an honest replica answers.
    pub(super) fn answer(&self, request: &Request) -> Response {
        let not_found = |what: &str| Response::Failed(Failure::NotFound { what: what.to_owned() });
        let header = |signed: Option<&SignedHeader>| match signed {
            Some(signed) => Response::Header(Box::new(signed.clone())),
            None => not_found("header"),
        };
        self.with(|scenario| {
            let ledger = &mut scenario.ledger;
            let tip = Box::new(ledger.tip().clone());
            match request {
                Request::Tip => Response::Header(tip),
                Request::Header { height } => header(ledger.headers().get(*height as usize)),
                Request::Handover { validators } if *validators == tip.header.next_validators => {
                    not_found("handover")
                }
                Request::Handover { validators } => {
                    header(ledger.headers().iter().rev().find(|h| {
                        h.header.validators == *validators && h.header.next_validators != *validators
                    }))
                }
                Request::Get { keys } => {
                    Response::Values { tip, values: keys.iter().map(|key| ledger.prove(key)).collect() }
                }
                Request::Range { first, count } => {
                    let records = (*first..*first + u64::from(*count)).map_while(|i| ledger.prove_record(i));
                    Response::Records { tip, records: records.collect() }
                }
                Request::Submit(command) => commit(scenario, command),
                Request::GetBlob { .. } => not_found("blob"),
                _ => Response::Failed(Failure::Malformed { reason: "not in this test".to_owned() }),
            }
        })
    }
}

fn commit(scenario: &mut Scenario, command: &SignedCommand) -> Response {
    let at_ms = scenario.now_ms() + 1;
    match scenario.ledger.commit(at_ms, std::slice::from_ref(command)).pop().unwrap() {
        Ok(receipt) => {
            Response::Final { height: scenario.ledger.tip().header.height, records: receipt.records }
        }
        Err(rejection) => Response::Rejected(rejection),
    }
}

/// What a fake replica does with a request.
pub(super) enum Act {
    /// What its ledger says.
    Honest,
    Say(Response),
    /// Ends the whole connection.
    HangUp,
    /// Never answers.
    Silent,
}

type Hook = dyn Fn(&Request, &Ledger) -> Act + Send + Sync;

/// Listeners by their keys.
type Listening = Arc<Mutex<BTreeMap<PublicKey, Connection>>>;

/// A replica.
pub(super) struct Fake {
    pub(super) address: ReplicaAddress,
    /// Connections that were ever made to it.
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) requests: Arc<Mutex<Vec<Request>>>,
    pub(super) listening: Listening,
    endpoint: Endpoint,
    task: JoinHandle<()>,
}

impl Fake {
    pub(super) fn honest(seed: u8, ledger: &Ledger) -> Self {
        Self::start(seed, ledger, |_, _| Act::Honest)
    }

    pub(super) fn start(
        seed: u8,
        ledger: &Ledger,
        hook: impl Fn(&Request, &Ledger) -> Act + Send + Sync + 'static,
    ) -> Self {
        let endpoint = Endpoint::server(&key(seed), LOOPBACK).unwrap();
        let address = ReplicaAddress { address: endpoint.local_address().unwrap(), key: key(seed).public() };
        let (connections, requests, listening) =
            (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<Request>>>::default(), Listening::default());
        let serving = Serving {
            ledger: ledger.clone(),
            hook: Arc::new(hook),
            requests: requests.clone(),
            listening: listening.clone(),
        };
        let (server, counted) = (endpoint.clone(), connections.clone());
        let task = tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                let Ok(connection) = incoming.finish().await else { continue };
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serving.clone().connection(connection));
            }
        });
        Self { address, connections, requests, listening, endpoint, task }
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn asked(&self, what: impl Fn(&Request) -> bool) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| what(request)).count()
    }

    pub(super) async fn stop(&self) {
        self.task.abort();
        self.endpoint.close("the replica stops").await;
    }
}

#[derive(Clone)]
struct Serving {
    ledger: Ledger,
    hook: Arc<Hook>,
    requests: Arc<Mutex<Vec<Request>>>,
    listening: Listening,
}

impl Serving {
    async fn connection(self, connection: Connection) {
        while let Ok((send, recv)) = connection.accept().await {
            tokio::spawn(self.clone().stream(connection.clone(), send, recv));
        }
        self.listening.lock().unwrap().remove(&connection.peer());
    }

    async fn stream(self, connection: Connection, mut send: crate::SendStream, mut recv: crate::RecvStream) {
        let limit = limits::BLOB_BYTES + 64;
        let Ok(request) = frame::read::<_, Request>(&mut recv, "the request", limit, PATIENCE).await else {
            return;
        };
        self.requests.lock().unwrap().push(request.clone());
        let response = match (self.hook)(&request, &self.ledger) {
            Act::Honest => None,
            Act::Say(response) => Some(response),
            Act::HangUp => return connection.close("hung up"),
            Act::Silent => return std::future::pending().await,
        };
        match (response, request) {
            (None, Request::Follow { .. }) => self.follow(send).await,
            (None, Request::Listen) => {
                self.listening.lock().unwrap().insert(connection.peer(), connection.clone());
                let _ = frame::write(&mut send, "the response", &Response::Listening, limit, PATIENCE).await;
            }
            (None, Request::Relay { to }) => {
                let listener = self.listening.lock().unwrap().get(&to).cloned();
                let Some(listener) = listener else {
                    let failed = Response::Failed(Failure::NotListening { key: to });
                    let _ = frame::write(&mut send, "the response", &failed, limit, PATIENCE).await;
                    return;
                };
                frame::write(&mut send, "the response", &Response::Relayed, limit, PATIENCE).await.unwrap();
                let (mut out, mut back) = listener.open().await.unwrap();
                let from = IncomingRelay { from: connection.peer() };
                frame::write(&mut out, "the caller", &from, 64, PATIENCE).await.unwrap();
                let there = async { tokio::io::copy(&mut recv, &mut out).await };
                let back = async { tokio::io::copy(&mut back, &mut send).await };
                let _ = tokio::join!(there, back);
            }
            (response, request) => {
                let response = response.unwrap_or_else(|| self.ledger.answer(&request));
                let _ = frame::write(&mut send, "the response", &response, limit, PATIENCE).await;
            }
        }
    }

    async fn follow(self, mut send: crate::SendStream) {
        let mut height = self.ledger.height.subscribe();
        loop {
            height.borrow_and_update();
            let header = Box::new(self.ledger.tip());
            let event = Event::Block { header, records: Vec::new() };
            if frame::write(&mut send, "an event", &event, limits::RESPONSE_BYTES, PATIENCE).await.is_err() {
                return;
            }
            if height.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Keeps things in memory. Clones are one and the same, as two runs of one program have one disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) now_ms: Option<u64>,
    pub(super) trail: Arc<Mutex<Option<Vec<u8>>>>,
    pub(super) evidence: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Keep for Disk {
    fn now_ms(&self) -> Option<u64> {
        self.now_ms
    }

    fn trail(&self) -> Option<Vec<u8>> {
        self.trail.lock().unwrap().clone()
    }

    fn keep_trail(&self, _: u64, bytes: &[u8]) {
        *self.trail.lock().unwrap() = Some(bytes.to_vec());
    }

    fn evidence(&self) -> Option<Vec<u8>> {
        self.evidence.lock().unwrap().clone()
    }

    fn keep_evidence(&self, bytes: &[u8]) {
        *self.evidence.lock().unwrap() = Some(bytes.to_vec());
    }

    fn evidence_place(&self) -> String {
        "the test's memory".to_owned()
    }
}

/// A client of some replicas with an empty disk.
pub(super) fn client(ledger: &Ledger, replicas: &[&Fake]) -> Verified {
    client_on(ledger, replicas, &Disk::default())
}

pub(super) fn client_on(ledger: &Ledger, replicas: &[&Fake], disk: &Disk) -> Verified {
    Verified::open(&key(200), ledger.trusted(replicas), disk.clone()).unwrap()
}

/// A client that asks the first of these before the others: which one that is depends on keys.
pub(super) fn client_of_first(ledger: &Ledger, replicas: &[&Fake]) -> Verified {
    for seed in 201..=255 {
        let me = key(seed);
        let rank = |fake: &&Fake| Hash::of("croft/replica-order", &(me.public(), fake.address.key));
        let first = replicas.iter().min_by_key(|fake| rank(fake)).unwrap();
        if first.address.key == replicas[0].address.key {
            return Verified::open(&me, ledger.trusted(replicas), Disk::default()).unwrap();
        }
    }
    unreachable!("one of many keys puts it first")
}

/// The state before a block as the ledger has it, for what a test expects.
pub(super) fn value(ledger: &Ledger, key: &croft_protocol::StateKey) -> Option<Vec<u8>> {
    ledger.with(|scenario| scenario.ledger.get(key).unwrap())
}

pub(super) fn balance(ledger: &Ledger, of: &SecretKey) -> u64 {
    ledger.with(|scenario| scenario.ledger.account(&of.public()).unwrap().balance.0)
}
