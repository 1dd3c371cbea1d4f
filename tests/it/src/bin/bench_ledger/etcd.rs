//! The yardstick: an etcd of three members under the same closed loop, in its own protocol.
//!
//! Puts go over gRPC, which is HTTP/2 with small frames around protobuf (the gRPC-over-HTTP/2 protocol); etcd's JSON
//! gateway would cost it a third. A put that etcd did not acknowledge never counts.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use croft_protocol::Hash;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::load::{Done, Load, Measured, Stop};
use crate::machine::{self, Process};
use croft_it::report::Row;

const MEMBERS: usize = 3;
/// The members have a leader within this.
const READY: Duration = Duration::from_secs(60);
/// A single put.
const PUT: Duration = Duration::from_secs(30);
/// What a record's id takes in the ledger: kind and hash.
const KEY_BYTES: usize = 33;

/// More is under way than etcd lets be: its own limit, and no failure of the measure.
#[derive(Debug, thiserror::Error)]
#[error("etcd refuses more: {message}")]
pub(crate) struct Overloaded {
    message: String,
}

/// A running cluster.
pub(crate) struct Etcd {
    processes: Vec<Process>,
    clients: Vec<SocketAddr>,
    /// No key is put twice.
    next: Arc<AtomicU64>,
    value: Bytes,
}

impl Etcd {
    /// Starts it; `record_bytes` is what key and value have together.
    pub(crate) async fn start(dir: &Path, program: &Path, record_bytes: usize) -> Result<Self> {
        let port = |_| machine::free_tcp_port().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let clients: Vec<_> = (0..MEMBERS).map(port).collect::<Result<_>>()?;
        let peers: Vec<_> = (0..MEMBERS).map(port).collect::<Result<_>>()?;
        let cluster = peers.iter().enumerate().map(|(n, peer)| format!("m{n}=http://{peer}"));
        let cluster = cluster.collect::<Vec<_>>().join(",");
        let mut processes = Vec::new();
        for (n, (client, peer)) in clients.iter().zip(&peers).enumerate() {
            let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let mut command = Command::new(program);
            command.arg("--data-dir").arg(dir.join(format!("m{n}"))).args([
                "--name",
                &format!("m{n}"),
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                "--initial-cluster",
                &cluster,
                "--initial-cluster-state",
                "new",
                "--initial-cluster-token",
                "croft-bench",
                "--log-level",
                "error",
            ]);
            let log = dir.join(format!("m{n}.log"));
            processes.push(Process::start(format!("etcd member {n}"), command, None, log).await?);
        }
        // Nothing that shrinks: neither end compresses, but no disk may either.
        let mut value = BytesMut::new();
        for n in 0u64.. {
            if value.len() >= record_bytes.saturating_sub(KEY_BYTES) {
                break;
            }
            value.extend_from_slice(&Hash::of("bench value", &n).0);
        }
        value.truncate(record_bytes.saturating_sub(KEY_BYTES));
        let etcd = Self { processes, clients, next: Arc::default(), value: value.freeze() };
        etcd.wait_until_ready().await?;
        Ok(etcd)
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY;
        for address in &self.clients {
            while let Err(error) = self.first_put(*address).await {
                let last = || self.processes.iter().map(Process::last_words).collect::<Vec<_>>().join("; ");
                ensure!(
                    Instant::now() < deadline,
                    "etcd takes no writes after {READY:?}: {error:#}; it says: {}",
                    last()
                );
                sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    async fn first_put(&self, address: SocketAddr) -> Result<()> {
        let connection = connect(address).await?;
        put(&connection, self.message()).await.map(drop)
    }

    fn message(&self) -> Bytes {
        message(self.next.fetch_add(1, Ordering::Relaxed), &self.value)
    }

    /// The same closed loop as the ledger's.
    pub(crate) async fn measure(
        &self,
        load: Load,
        warm: Duration,
        window: Duration,
    ) -> Result<(Row, Measured)> {
        let mut connections = Vec::new();
        for number in 0..load.clients {
            connections.push(connect(self.clients[number % MEMBERS]).await?);
        }
        let from = Instant::now() + warm;
        let until = from + window;
        let stop = Stop::after_time(until);
        let mut tasks = JoinSet::new();
        for connection in connections {
            let (stop, next, value) = (stop.clone(), self.next.clone(), self.value.clone());
            tasks.spawn(client(connection, load.pipeline, stop, next, value));
        }
        let cpu = || self.processes.iter().map(Process::cpu).sum::<Result<Duration>>();
        tokio::time::sleep_until(from).await;
        let (before, own_before) = (cpu()?, machine::own_cpu()?);
        tokio::time::sleep_until(until).await;
        let (after, own_after) = (cpu()?, machine::own_cpu()?);
        let mut done = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            done.extend(ended??);
        }
        let measured = Measured::of(&done, from, until)?;
        let us = |before: Duration, after: Duration| {
            after.saturating_sub(before).as_secs_f64() * 1e6 / measured.times.count() as f64
        };
        let (members, clients) = (us(before, after), us(own_before, own_after));
        let what = format!(
            "etcd writes, {MEMBERS} members, {} in flight of {} clients",
            load.in_flight(),
            load.clients
        );
        let row = Row::new(what, measured.per_second, "writes/s")
            .note(format!(
                "{}; per write {members:.0} us of the members' processors, {clients:.0} us of the clients'",
                measured.times.show()
            ))
            .details(json!({
                "latency": measured.times.json(), "members_cpu_us_per_write": members,
                "clients_cpu_us_per_write": clients,
            }));
        Ok((row, measured))
    }

    pub(crate) async fn stop(self) -> Result<()> {
        for process in self.processes {
            process.stop().await?;
        }
        Ok(())
    }
}

async fn client(
    connection: SendRequest<Bytes>,
    pipeline: usize,
    stop: Arc<Stop>,
    next: Arc<AtomicU64>,
    value: Bytes,
) -> Result<Vec<Done>> {
    let mut waiting = FuturesUnordered::new();
    let mut done = Vec::new();
    loop {
        while waiting.len() < pipeline && stop.take() {
            let message = message(next.fetch_add(1, Ordering::Relaxed), &value);
            waiting.push(put(&connection, message));
        }
        match waiting.next().await {
            None => return Ok(done),
            Some(one) => done.push(one?),
        }
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Bytes>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .handshake(tcp)
        .await?;
    // It ends when the client is dropped; what goes wrong is told to each request.
    tokio::spawn(async move { drop(connection.await) });
    client.ready().await.context("the connection to etcd")
}

async fn put(connection: &SendRequest<Bytes>, message: Bytes) -> Result<Done> {
    let started = Instant::now();
    timeout(PUT, exchange(connection, message)).await.context("etcd does not answer")??;
    Ok((Instant::now(), started.elapsed()))
}

async fn exchange(connection: &SendRequest<Bytes>, message: Bytes) -> Result<()> {
    let request = Request::post("http://etcd/etcdserverpb.KV/Put")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut connection = connection.clone().ready().await?;
    let (response, mut body) = connection.send_request(request, false)?;
    body.send_data(message, true)?;
    let (head, mut body) = response.await?.into_parts();
    if head.headers.contains_key("grpc-status") {
        return check(&head.headers);
    }
    while let Some(chunk) = body.data().await {
        let length = chunk?.len();
        body.flow_control().release_capacity(length)?;
    }
    check(&body.trailers().await?.context("etcd's answer has no status")?)
}

fn check(trailers: &HeaderMap) -> Result<()> {
    let text = |name| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if text("grpc-message").contains("too many requests") {
        return Err(Overloaded { message: text("grpc-message").to_owned() }.into());
    }
    ensure!(text("grpc-status") == "0", "etcd refuses: {} {}", text("grpc-status"), text("grpc-message"));
    Ok(())
}

/// A gRPC frame with `PutRequest { key = 1, value = 2 }` of etcd's rpc.proto.
fn message(number: u64, value: &Bytes) -> Bytes {
    let mut key = [0; KEY_BYTES];
    // Scattered over the key space, as hashes are.
    key[1..].copy_from_slice(&Hash::of("bench key", &number).0);
    let mut put = BytesMut::with_capacity(value.len() + KEY_BYTES + 16);
    for (field, bytes) in [(1u8, &key[..]), (2, &value[..])] {
        put.put_u8(field << 3 | 2);
        let mut length = bytes.len();
        while length >= 0x80 {
            put.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        put.put_u8(length as u8);
        put.put_slice(bytes);
    }
    let mut frame = BytesMut::with_capacity(put.len() + 5);
    frame.put_u8(0);
    frame.put_u32(put.len() as u32);
    frame.unsplit(put);
    frame.freeze()
}

/// etcd on the `PATH`.
pub(crate) fn program() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join("etcd")).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_etcds_own_is_told_from_a_failure() {
        let trailers = |status: &'static str, message: &'static str| {
            let of = |text| http::HeaderValue::from_static(text);
            HeaderMap::from_iter([
                (http::HeaderName::from_static("grpc-status"), of(status)),
                (http::HeaderName::from_static("grpc-message"), of(message)),
            ])
        };
        assert!(check(&trailers("0", "")).is_ok());
        let limit = check(&trailers("14", "etcdserver: too many requests")).unwrap_err();
        assert_eq!(limit.to_string(), "etcd refuses more: etcdserver: too many requests");
        assert!(limit.is::<Overloaded>());
        let failure = check(&trailers("14", "etcdserver: no leader")).unwrap_err();
        assert_eq!(failure.to_string(), "etcd refuses: 14 etcdserver: no leader");
        assert!(!failure.is::<Overloaded>());
    }

    #[test]
    fn a_put_is_framed_as_grpc_and_protobuf_want_it() {
        let frame = message(7, &Bytes::from(vec![9; 300]));
        assert_eq!(frame[0], 0, "not compressed");
        assert_eq!(u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize, frame.len() - 5);
        assert_eq!(frame[5..7], [0x0a, 33]);
        assert_eq!(frame[7 + 33..7 + 33 + 3], [0x12, 0xac, 0x02], "300 as a varint");
        assert_ne!(frame, message(8, &Bytes::from(vec![9; 300])));
    }
}
