//! Replicas played on loopback: down, slow, lying, restarting.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use croft_protocol::api::IncomingRelay;
use croft_protocol::{ChainId, Command, CommandBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::endpoint::{Connection, Endpoint};
use crate::relay::peer_accept;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENCE: Duration = Duration::from_secs(20);

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

/// A replica that answers as a closure says; `None` hangs up the whole connection.
struct Fake {
    address: ReplicaAddress,
    connections: Arc<AtomicU32>,
    endpoint: Endpoint,
    task: JoinHandle<()>,
}

impl Fake {
    fn start(
        seed: u8,
        at: SocketAddr,
        answer: impl Fn(Request) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let endpoint = Endpoint::server(&key(seed), at).unwrap();
        let address = ReplicaAddress { address: endpoint.local_address().unwrap(), key: key(seed).public() };
        let connections = Arc::new(AtomicU32::new(0));
        let counted = connections.clone();
        let answer = Arc::new(answer);
        let server = endpoint.clone();
        let task = tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                let Ok(connection) = incoming.finish().await else { continue };
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(connection, answer.clone()));
            }
        });
        Self { address, connections, endpoint, task }
    }

    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
        self.endpoint.shut_down("the replica stops").await;
    }
}

async fn serve(
    connection: Connection,
    answer: Arc<impl Fn(Request) -> Option<Response> + Send + Sync + 'static>,
) {
    while let Ok((mut send, mut recv)) = connection.accept().await {
        let limit = limits::BLOB_BYTES + 64;
        let request: Request = frame::read(&mut recv, "the request", limit, PATIENCE).await.unwrap();
        let relay = matches!(request, Request::Relay { .. });
        let Some(response) = answer(request) else {
            connection.close("hung up");
            return;
        };
        frame::write(&mut send, "the response", &response, limit, PATIENCE).await.unwrap();
        if relay && response == Response::Relayed {
            // Back to the caller, as if it had called itself.
            let (mut out, mut back) = connection.open().await.unwrap();
            let from = IncomingRelay { from: connection.peer() };
            frame::write(&mut out, "the caller", &from, 64, PATIENCE).await.unwrap();
            tokio::spawn(async move { tokio::io::copy(&mut recv, &mut out).await });
            tokio::spawn(async move { tokio::io::copy(&mut back, &mut send).await });
        }
    }
}

#[allow(clippy::unnecessary_wraps, reason = "what a fake replica answers is optional")]
fn blobs(_: Request) -> Option<Response> {
    Some(Response::Blobs(vec![true]))
}

fn ask_blobs() -> Vec<Hash> {
    vec![Hash::ZERO]
}

#[tokio::test]
async fn requests_share_one_connection() {
    let fake = Fake::start(1, LOOPBACK, blobs);
    let client = Client::new(&key(9), vec![fake.address.clone()]).unwrap();
    let (a, b) = tokio::join!(client.has_blobs(ask_blobs()), client.has_blobs(ask_blobs()));
    assert_eq!(a.unwrap().value, [true]);
    assert_eq!(b.unwrap().replica, fake.address.key);
    assert_eq!(fake.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_restarted_replica_is_found_again() {
    let fake = Fake::start(1, LOOPBACK, blobs);
    let address = fake.address.clone();
    let client = Client::new(&key(9), vec![address.clone()]).unwrap();
    client.has_blobs(ask_blobs()).await.unwrap();
    fake.stop().await;
    let again = Fake::start(1, address.address, blobs);
    assert_eq!(client.has_blobs(ask_blobs()).await.unwrap().value, [true]);
    assert_eq!(again.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_next_replica_is_asked_when_one_hangs_up() {
    let broken = Fake::start(1, LOOPBACK, |_| None);
    let good = Fake::start(2, LOOPBACK, blobs);
    let client = Client::new(&key(9), vec![broken.address.clone(), good.address.clone()]).unwrap();
    assert_eq!(client.has_blobs(ask_blobs()).await.unwrap().replica, good.address.key);
    assert_eq!(broken.connections.load(Ordering::SeqCst), 1);
    assert_eq!(client.current().await, Some(good.address.clone()));
}

#[tokio::test]
async fn a_replica_that_is_full_or_busy_is_passed_over_and_its_failure_told_when_it_is_alone() {
    let full = || {
        Fake::start(1, LOOPBACK, |_| {
            Some(Response::Failed(Failure::Storage { reason: "no space left on device".to_owned() }))
        })
    };
    let (first, second) = (full(), Fake::start(2, LOOPBACK, blobs));
    let client = Client::new(&key(9), vec![first.address.clone(), second.address.clone()]).unwrap();
    assert_eq!(client.has_blobs(ask_blobs()).await.unwrap().replica, second.address.key);
    let alone = Client::new(&key(9), vec![first.address.clone()]).unwrap();
    let error = alone.has_blobs(ask_blobs()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "replica {}: the replica can't write: no space left on device; its owner must look after it",
            first.address.key.short()
        )
    );
}

#[tokio::test]
async fn a_liar_is_set_aside_and_the_message_says_so() {
    let liar = Fake::start(1, LOOPBACK, |_| Some(Response::Listening));
    let good = Fake::start(2, LOOPBACK, blobs);
    let client = Client::new(&key(9), vec![liar.address.clone(), good.address.clone()]).unwrap();
    assert_eq!(client.has_blobs(ask_blobs()).await.unwrap().replica, good.address.key);
    client.report_lie(&good.address.key, "its tip is signed by nobody").await;
    let error = client.has_blobs(ask_blobs()).await.unwrap_err();
    let expected = format!(
        "no replica of the grid can be used: \
         replica {} at {}: it is set aside for 10 minutes because it lied: it answered something else than was asked; ask its owner, or pin another; \
         replica {} at {}: it is set aside for 10 minutes because it lied: its tip is signed by nobody; ask its owner, or pin another",
        liar.address.key.short(),
        liar.address.address,
        good.address.key.short(),
        good.address.address,
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_blob_with_other_bytes_is_taken_from_the_next_replica() {
    let right = b"the right bytes".to_vec();
    let bytes = right.clone();
    let liar = Fake::start(1, LOOPBACK, |_| Some(Response::Blob(b"other bytes".to_vec())));
    let good = Fake::start(2, LOOPBACK, move |_| Some(Response::Blob(bytes.clone())));
    let client = Client::new(&key(9), vec![liar.address.clone(), good.address.clone()]).unwrap();
    let hash = Hash::of_bytes(&right);
    assert_eq!(client.get_blob(hash).await.unwrap(), right);
    let alone = Client::new(&key(9), vec![liar.address.clone()]).unwrap();
    let error = alone.get_blob(hash).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("blob {hash} does not have the bytes of its name at any replica: publish it again")
    );
}

fn command() -> SignedCommand {
    let body = CommandBody {
        chain: ChainId(Hash::ZERO),
        author: key(9).public(),
        sequence: 0,
        expires_height: 10,
        command: Command::Settle { contract: croft_protocol::ContractId(Hash::ZERO) },
    };
    SignedCommand::sign(body, &key(9))
}

#[tokio::test]
async fn a_command_that_may_have_arrived_is_not_sent_twice() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = |asked: &Arc<AtomicU32>| {
        let asked = asked.clone();
        move |_| {
            asked.fetch_add(1, Ordering::SeqCst);
            None
        }
    };
    let first = Fake::start(1, LOOPBACK, count(&asked));
    let second = Fake::start(2, LOOPBACK, count(&asked));
    let client = Client::new(&key(9), vec![first.address.clone(), second.address.clone()]).unwrap();
    let error = client.submit(command()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "replica {} went away before it said whether the command is final: look at the ledger before signing it again",
            first.address.key.short()
        )
    );
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_rejection_comes_with_its_reason() {
    let busy = Rejection::Busy { waiting: 7 };
    let answer = busy.clone();
    let fake = Fake::start(1, LOOPBACK, move |_| Some(Response::Rejected(answer.clone())));
    let client = Client::new(&key(9), vec![fake.address.clone()]).unwrap();
    let error = client.submit(command()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the ledger refuses: the ledger is busy: 7 commands are waiting; try again in a moment"
    );
    assert!(matches!(error, ClientError::Rejected { rejection, .. } if *rejection == busy));
}

#[tokio::test]
async fn a_wrong_key_behind_the_address_is_told_with_both_keys() {
    let fake = Fake::start(1, LOOPBACK, blobs);
    let pinned = ReplicaAddress { address: fake.address.address, key: key(7).public() };
    let client = Client::new(&key(9), vec![pinned.clone()]).unwrap();
    let error = client.has_blobs(ask_blobs()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "no replica of the grid can be used: replica {} at {address}: {address} proved key {}, but {} was expected: somebody else answers there, or the pinned key is old",
            pinned.key.short(),
            fake.address.key,
            pinned.key,
            address = pinned.address,
        )
    );
}

#[tokio::test]
async fn calls_reach_a_listener_and_tls_proves_the_caller() {
    let fake = Fake::start(1, LOOPBACK, |request| {
        Some(match request {
            Request::Listen => Response::Listening,
            _ => Response::Relayed,
        })
    });
    let client = Client::new(&key(9), vec![fake.address.clone()]).unwrap();
    let mut listener = client.listen();
    let called = tokio::spawn(async move {
        let call = listener.accept().await.unwrap();
        let (mut stream, caller) = peer_accept(call.stream, &key(9)).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        (text, caller, call.from)
    });
    let mut stream = client.peer(key(9).public()).await.unwrap();
    stream.write_all(b"hello through the relay").await.unwrap();
    stream.shutdown().await.unwrap();
    let (text, caller, from) = called.await.unwrap();
    assert_eq!(text, "hello through the relay");
    assert_eq!((caller, from), (key(9).public(), key(9).public()));
}

#[tokio::test]
async fn no_replica_is_said_at_once() {
    let error = Client::new(&key(9), Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "the configuration names no replica: add one with its address and key");
}
