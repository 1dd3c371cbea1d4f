//! Splices two streams: from one who calls to one who listens.
//!
//! It must never connect to anybody who does not listen here, never look at what it carries, and never
//! buffer more than two small pieces per call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use croft_protocol::PublicKey;
use croft_protocol::api::{Failure, IncomingRelay, Response};
use croft_transport::{RecvStream, SendStream, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::{Server, respond};

/// Calls that one key may make at a time, so that one caller can't use up a node's streams.
const CALLS_PER_CALLER: u32 = 16;
/// Calls in all: each takes a task and its buffers.
const CALLS: u32 = 2_048;
/// One piece on its way, in each direction.
const BUFFER_BYTES: usize = 16 * 1024;
/// How long the called has to take the stream.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// A call without a byte in either direction for this long is hung up. Followed logs may be quiet.
const IDLE: Duration = Duration::from_secs(3_600);

/// Calls under way.
#[derive(Debug, Default)]
pub(super) struct Relays {
    callers: Mutex<BTreeMap<PublicKey, u32>>,
}

/// Counts one call until dropped.
struct Call {
    relays: Arc<Relays>,
    from: PublicKey,
}

impl Relays {
    fn begin(self: &Arc<Self>, from: PublicKey) -> Result<Call, Failure> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.values().sum::<u32>() >= CALLS {
            return Err(Failure::Busy { what: format!("{CALLS} calls are under way") });
        }
        let calls = callers.entry(from).or_default();
        if *calls >= CALLS_PER_CALLER {
            return Err(Failure::Quota {
                what: format!("you have {CALLS_PER_CALLER} calls under way"),
                remedy: "hang up some of them".to_owned(),
            });
        }
        *calls += 1;
        Ok(Call { relays: self.clone(), from })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut callers = self.relays.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = callers.get_mut(&self.from) {
            *calls -= 1;
            if *calls == 0 {
                callers.remove(&self.from);
            }
        }
    }
}

pub(super) async fn run(
    server: &Arc<Server>,
    from: PublicKey,
    to: PublicKey,
    mut send: SendStream,
    recv: RecvStream,
) {
    match connect(server, from, to).await {
        Err(failure) => respond(&mut send, Response::Failed(failure)).await,
        Ok((call, out, back)) => {
            let answer = Response::Relayed;
            let told = frame::write(&mut send, "the response", &answer, 64, ANSWER_TIME).await;
            if told.is_ok() {
                splice(send, recv, out, back).await;
            }
            drop(call);
        }
    }
}

async fn connect(
    server: &Arc<Server>,
    from: PublicKey,
    to: PublicKey,
) -> Result<(Call, SendStream, RecvStream), Failure> {
    if !server.is_known(from).await? {
        return Err(Failure::Quota {
            what: format!("{from} is neither a bot nor a node on this grid and may not call anybody"),
            remedy: "create it first with 'croft bot new'".to_owned(),
        });
    }
    let call = server.relays.begin(from)?;
    let absent = || Failure::NotListening { key: to };
    let listener = server.presence.listener(&to).ok_or_else(absent)?;
    let (mut out, back) = timeout(ANSWER_TIME, listener.open())
        .await
        .map_err(|_| Failure::Busy { what: format!("{to} has too many calls under way") })?
        .map_err(|_| absent())?;
    let hello = IncomingRelay { from };
    frame::write(&mut out, "the caller", &hello, 64, ANSWER_TIME).await.map_err(|_| absent())?;
    Ok((call, out, back))
}

/// Carries bytes both ways until both directions have ended, one breaks, or nothing moves any more.
async fn splice(mut send: SendStream, mut recv: RecvStream, mut out: SendStream, mut back: RecvStream) {
    let start = Instant::now();
    let moved = AtomicU64::new(0);
    let there = pump(&mut recv, &mut out, start, &moved);
    let here = pump(&mut back, &mut send, start, &moved);
    let both = async { tokio::try_join!(there, here) };
    tokio::select! {
        _ = both => {}
        () = idle(start, &moved) => {}
    }
}

/// Returns an error for a direction that broke, so that the other one is broken off too. A reader that hung up ends
/// its own direction only: it may have said all it had to say, and the answer be still on its way.
async fn pump(
    from: &mut RecvStream,
    to: &mut SendStream,
    start: Instant,
    moved: &AtomicU64,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut hung_up = std::pin::pin!(to.stopped());
    loop {
        let n = tokio::select! {
            n = AsyncReadExt::read(from, &mut buffer) => n?,
            _ = &mut hung_up => {
                // Fails only when there is nothing left to stop.
                let _ = from.stop(0_u32.into());
                return Ok(());
            }
        };
        moved.store(start.elapsed().as_secs(), Ordering::Relaxed);
        if n == 0 {
            return to.shutdown().await;
        }
        AsyncWriteExt::write_all(to, &buffer[..n]).await?;
    }
}

async fn idle(start: Instant, moved: &AtomicU64) {
    loop {
        let last = start + Duration::from_secs(moved.load(Ordering::Relaxed));
        if last.elapsed() >= IDLE {
            return;
        }
        tokio::time::sleep_until(last + IDLE).await;
    }
}
