//! Many who listen: what each final block costs the replicas, and when the last follower has it.
//!
//! A connection may have eight streams that follow, and an address 512 connections, so that many followers are spread
//! over all replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use croft_protocol::api::Event;
use croft_protocol::{Command, Grains};
use croft_transport::Client;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::grid::{Author, Grid, REPLICAS, key};
use croft_it::report::{Row, Times};

const STREAMS_PER_CONNECTION: usize = 8;
/// Connections that are made at a time: a replica takes only so many handshakes.
const AT_A_TIME: usize = 8;
const CONNECTED: Duration = Duration::from_secs(300);
/// The last follower has a block within this.
const HEARD: Duration = Duration::from_secs(60);

/// Who has heard of which height, and when the last one did.
#[derive(Debug)]
struct Board {
    /// Highest height that followers are counted for.
    height: AtomicU64,
    heard: AtomicUsize,
    gone: AtomicUsize,
}

/// Runs until the client is closed.
async fn follow(client: Client, board: Arc<Board>, ready: tokio::sync::mpsc::Sender<()>) {
    let mut counted = 0;
    if let Ok(mut stream) = client.follow(Vec::new()).await {
        let mut first = true;
        while let Ok(answer) = stream.next().await {
            let Event::Block { header, .. } = answer.value else { continue };
            if first {
                first = false;
                // Fails only when nobody waits any more.
                let _ = ready.send(()).await;
            }
            let awaited = board.height.load(Ordering::Acquire);
            if awaited > counted && header.header.height >= awaited {
                counted = awaited;
                board.heard.fetch_add(1, Ordering::AcqRel);
            }
        }
    }
    board.gone.fetch_add(1, Ordering::AcqRel);
}

pub(crate) async fn rows(grid: &Grid, followers: usize, blocks: usize) -> Result<Vec<Row>> {
    let expires = grid.status(0).await?.height + 50_000;
    let mut author = Author::new(key("follower", 0), grid.chain(), expires);
    let board = Arc::new(Board { height: AtomicU64::new(0), heard: 0.into(), gone: 0.into() });
    let alone = some_blocks(grid, &mut author, &board, 0, blocks).await?;
    let before = grid.resident_bytes()?;
    let started = Instant::now();
    let (clients, streams) = timeout(CONNECTED, connect(grid, followers, &board))
        .await
        .with_context(|| format!("{followers} followers are not there after {CONNECTED:?}"))??;
    let took = started.elapsed();
    let memory = (grid.resident_bytes()? - before).max(0.0) / followers as f64 / 1024.0;
    let many = some_blocks(grid, &mut author, &board, followers, blocks).await?;
    for client in &clients {
        client.close().await;
    }
    drop(streams);
    let times = Times::new(many.last);
    let cost_ms = (many.cpu.saturating_sub(alone.cpu)).as_secs_f64() * 1e3 / blocks as f64;
    Ok(vec![
        Row::new(format!("a final block at the last of {followers} followers, p95"), times.percentile_ms(95.0), "ms")
            .note(format!("after its submitter has it; {}; {} connections, made in {:.1} s", times.show(), clients.len(), took.as_secs_f64()))
            .details(times.json()),
        Row::new(format!("cost of {followers} followers per final block"), cost_ms, "cpu ms")
            .note(format!(
                "all {REPLICAS} replicas together; {:.1} us for each follower; a block without them takes {:.1} cpu ms",
                cost_ms * 1e3 / followers as f64,
                alone.cpu.as_secs_f64() * 1e3 / blocks as f64
            ))
            .details(json!({ "cpu_us_per_follower": cost_ms * 1e3 / followers as f64 })),
        Row::new("memory of the replicas per follower", memory, "KiB"),
    ])
}

/// What blocks of one record each did.
struct Blocks {
    cpu: Duration,
    last: Vec<Duration>,
}

async fn some_blocks(
    grid: &Grid,
    author: &mut Author,
    board: &Board,
    followers: usize,
    blocks: usize,
) -> Result<Blocks> {
    let to = key("author", 0).public();
    let before = grid.cpu()?;
    let mut last = Vec::new();
    for _ in 0..blocks {
        let command = author.sign(Command::Transfer { to, amount: Grains(1), memo: String::new() });
        board.heard.store(0, Ordering::Release);
        board.height.store(grid.status(0).await?.height + 1, Ordering::Release);
        grid.submit(command).await?;
        let r#final = Instant::now();
        let all = async {
            while board.heard.load(Ordering::Acquire) < followers {
                sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(HEARD, all).await.is_err() {
            let (heard, gone) = (board.heard.load(Ordering::Acquire), board.gone.load(Ordering::Acquire));
            bail!("only {heard} of {followers} followers heard of a block within {HEARD:?}; {gone} are gone");
        }
        last.push(r#final.elapsed());
    }
    Ok(Blocks { cpu: grid.cpu()?.saturating_sub(before), last })
}

/// Opens all streams; returns when each has had its first event.
async fn connect(grid: &Grid, followers: usize, board: &Arc<Board>) -> Result<(Vec<Client>, JoinSet<()>)> {
    let (mut clients, mut streams) = (Vec::new(), JoinSet::new());
    let (ready, mut there) = tokio::sync::mpsc::channel(followers.max(1));
    let mut opened = 0;
    let mut heard = 0;
    while heard < followers {
        while opened < followers && opened - heard < AT_A_TIME * STREAMS_PER_CONNECTION {
            let number = clients.len();
            let pin = grid.pins()[number % REPLICAS].clone();
            let client = Client::new(&key("follower", 1 + number), vec![pin])?;
            for _ in 0..STREAMS_PER_CONNECTION.min(followers - opened) {
                streams.spawn(follow(client.clone(), board.clone(), ready.clone()));
                opened += 1;
            }
            clients.push(client);
        }
        tokio::select! {
            Some(()) = there.recv() => heard += 1,
            () = sleep(Duration::from_secs(1)) => {
                let gone = board.gone.load(Ordering::Acquire);
                if gone > 0 {
                    bail!("{gone} of {opened} followers were refused or dropped");
                }
            }
        }
    }
    Ok((clients, streams))
}
