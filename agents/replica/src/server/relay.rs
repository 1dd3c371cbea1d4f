//! Splices two streams: from one who calls to one who listens.
//!
//! Whoever calls pays: calls under way, new calls and bytes of each caller have a bound, and both ends must be known
//! to the ledger. It must never connect to anybody who does not listen here, never look at what it carries, and never
//! buffer more than two small pieces per call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_protocol::PublicKey;
use croft_protocol::api::{Failure, IncomingRelay, Response, Service};
use croft_protocol::units::show_bytes;
use croft_transport::{RecvStream, SendStream, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::{Server, respond};
use crate::rate::{Meter, Rate, show_wait};

/// Calls that one key may make at a time, so that one caller can't use up a node's streams.
const CALLS_PER_CALLER: u32 = 16;
/// Calls that one key may be called with at a time, so that many callers can't use up a node's streams either.
const CALLS_PER_CALLED: u32 = 128;
/// New calls of one key: each costs the called a TLS handshake. Who waits for a workload asks once a second.
const CALLS_PER_TIME: Rate = Rate { amount: 240, per: Duration::from_secs(60) };
/// What one key's calls may carry, both ways together: logs and proposals, no images.
const BYTES_PER_TIME: Rate = Rate { amount: 1024 * 1024 * 1024, per: Duration::from_secs(3_600) };
/// Code with which a stream ends whose caller has used up that.
const OVER_QUOTA: u32 = 2;
/// Calls in all: each takes a task and its buffers.
const CALLS: u32 = 2_048;
/// One piece on its way, in each direction.
const BUFFER_BYTES: usize = 16 * 1024;
/// How long the called has to take the stream.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// A call without a byte in either direction for this long is hung up. Followed logs may be quiet.
const IDLE: Duration = Duration::from_secs(3_600);

/// Calls under way, and what their callers have used.
#[derive(Debug)]
pub(super) struct Relays(Mutex<Used>);

#[derive(Debug)]
struct Used {
    callers: BTreeMap<PublicKey, u32>,
    called: BTreeMap<PublicKey, u32>,
    calls: Meter,
    bytes: Meter,
}

impl Default for Relays {
    fn default() -> Self {
        Self(Mutex::new(Used {
            callers: BTreeMap::new(),
            called: BTreeMap::new(),
            calls: Meter::new(CALLS_PER_TIME),
            bytes: Meter::new(BYTES_PER_TIME),
        }))
    }
}

/// Counts one call until dropped.
#[derive(Debug)]
struct Call {
    relays: Arc<Relays>,
    from: PublicKey,
    to: PublicKey,
}

impl Relays {
    fn lock(&self) -> MutexGuard<'_, Used> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>, from: PublicKey, to: PublicKey, now: Instant) -> Result<Call, Failure> {
        let used = &mut *self.lock();
        if used.callers.values().sum::<u32>() >= CALLS {
            return Err(Failure::Busy { what: format!("{CALLS} calls are under way") });
        }
        if used.callers.get(&from).is_some_and(|calls| *calls >= CALLS_PER_CALLER) {
            return Err(Failure::Quota {
                what: format!("you have {CALLS_PER_CALLER} calls under way"),
                remedy: "hang up some of them".to_owned(),
            });
        }
        if used.called.get(&to).is_some_and(|calls| *calls >= CALLS_PER_CALLED) {
            return Err(Failure::Busy { what: format!("{to} has {CALLS_PER_CALLED} calls under way") });
        }
        used.bytes.check(&from, now).map_err(|wait| Failure::Quota {
            what: format!("your calls have carried {} within an hour", show_bytes(BYTES_PER_TIME.amount)),
            remedy: format!("call again in {}", show_wait(wait)),
        })?;
        used.calls.take(from, 1, now).map_err(|wait| Failure::Quota {
            what: format!("you have made {} calls within a minute", CALLS_PER_TIME.amount),
            remedy: format!("call again in {}", show_wait(wait)),
        })?;
        *used.callers.entry(from).or_default() += 1;
        *used.called.entry(to).or_default() += 1;
        Ok(Call { relays: self.clone(), from, to })
    }
}

impl Call {
    /// Counts what was carried; `false` when the caller has used up what he may.
    fn carried(&self, bytes: usize, now: Instant) -> bool {
        self.relays.lock().bytes.charge(self.from, bytes as u64, now).is_ok()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let used = &mut *self.relays.lock();
        for (calls, key) in [(&mut used.callers, self.from), (&mut used.called, self.to)] {
            if let Some(count) = calls.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    calls.remove(&key);
                }
            }
        }
    }
}

pub(super) async fn run(
    server: &Arc<Server>,
    from: PublicKey,
    (to, service): (PublicKey, Service),
    mut send: SendStream,
    recv: RecvStream,
) {
    match connect(server, from, to, service).await {
        Err(failure) => respond(&mut send, Response::Failed(failure)).await,
        Ok((call, out, back)) => {
            let answer = Response::Relayed;
            let told = frame::write(&mut send, "the response", &answer, 64, ANSWER_TIME).await;
            if told.is_ok() {
                splice(&call, send, recv, out, back).await;
            }
        }
    }
}

async fn connect(
    server: &Arc<Server>,
    from: PublicKey,
    to: PublicKey,
    service: Service,
) -> Result<(Call, SendStream, RecvStream), Failure> {
    // Both are keys of connections: a bot that replaced its key is called under its present one.
    let caller = server.identity(from).await?;
    let called = server.identity(to).await?;
    if !server.is_known(caller).await? {
        return Err(Failure::Quota {
            what: format!("{from} is neither a bot nor a node on this grid and may not call anybody"),
            remedy: "create it first with 'croft bot new'".to_owned(),
        });
    }
    if !server.is_known(called).await? {
        return Err(Failure::Quota {
            what: format!("{to} is neither a bot nor a node on this grid and may not be called"),
            remedy: "check whom you call; a node can be called once it is registered".to_owned(),
        });
    }
    let call = server.relays.begin(caller, called, Instant::now())?;
    let absent = || Failure::NotListening { key: to };
    let listener = server.presence.listener(&to, service).ok_or_else(absent)?;
    let (mut out, back) = timeout(ANSWER_TIME, listener.open())
        .await
        .map_err(|_| Failure::Busy { what: format!("{to} has too many calls under way") })?
        .map_err(|_| absent())?;
    let hello = IncomingRelay { from };
    frame::write(&mut out, "the caller", &hello, 64, ANSWER_TIME).await.map_err(|_| absent())?;
    Ok((call, out, back))
}

/// Carries bytes both ways until both directions have ended, one breaks, or nothing moves any more.
async fn splice(
    call: &Call,
    mut send: SendStream,
    mut recv: RecvStream,
    mut out: SendStream,
    mut back: RecvStream,
) {
    let start = Instant::now();
    let moved = AtomicU64::new(0);
    let there = pump(call, &mut recv, &mut out, start, &moved);
    let here = pump(call, &mut back, &mut send, start, &moved);
    let both = async { tokio::try_join!(there, here) };
    tokio::select! {
        _ = both => {}
        () = idle(start, &moved) => {}
    }
}

/// Returns an error for a direction that broke, so that the other one is broken off too. A reader that hung up ends
/// its own direction only: it may have said all it had to say, and the answer be still on its way.
async fn pump(
    call: &Call,
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
        if !call.carried(n, Instant::now()) {
            // Whoever wonders why is told with the next call. Both fail only when there is nothing left to end.
            let _ = to.reset(OVER_QUOTA.into());
            let _ = from.stop(OVER_QUOTA.into());
            return Err(std::io::ErrorKind::QuotaExceeded.into());
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

#[cfg(test)]
mod tests {
    use super::*;

    const ANNA: PublicKey = PublicKey([1; 32]);
    const BEN: PublicKey = PublicKey([2; 32]);

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    #[test]
    fn calls_under_way_are_bounded_for_the_caller_and_for_the_called() {
        let (relays, now) = (Arc::new(Relays::default()), Instant::now());
        let mut calls: Vec<Call> =
            (0..CALLS_PER_CALLER).map(|_| relays.begin(ANNA, BEN, now).unwrap()).collect();
        let refused = relays.begin(ANNA, BEN, now).unwrap_err().to_string();
        assert_eq!(refused, "quota: you have 16 calls under way; hang up some of them");
        for n in 1..=7 {
            calls.extend((0..CALLS_PER_CALLER).map(|_| relays.begin(key(10 + n), BEN, now).unwrap()));
        }
        let busy = relays.begin(key(30), BEN, now).unwrap_err().to_string();
        assert_eq!(
            busy,
            format!("the replica is busy: {BEN} has 128 calls under way; try again in a moment")
        );
        drop(calls);
        relays.begin(ANNA, BEN, now).unwrap();
        assert!(relays.lock().called.is_empty(), "what was hung up is forgotten");
    }

    #[test]
    fn new_calls_are_bounded_in_time_and_the_refusal_says_when_to_call_again() {
        let (relays, now) = (Arc::new(Relays::default()), Instant::now());
        for _ in 0..CALLS_PER_TIME.amount {
            drop(relays.begin(ANNA, BEN, now).unwrap());
        }
        let refused = relays.begin(ANNA, BEN, now).unwrap_err().to_string();
        assert_eq!(refused, "quota: you have made 240 calls within a minute; call again in 1 s");
        relays.begin(BEN, ANNA, now).unwrap();
        relays.begin(ANNA, BEN, now + Duration::from_secs(1)).unwrap();
    }

    #[test]
    fn whoever_carried_too_much_is_cut_off_and_may_call_again_later() {
        let (relays, now) = (Arc::new(Relays::default()), Instant::now());
        let call = relays.begin(ANNA, BEN, now).unwrap();
        let most = usize::try_from(BYTES_PER_TIME.amount).unwrap();
        assert!(call.carried(most, now));
        assert!(!call.carried(most / 60, now));
        let refused = relays.begin(ANNA, BEN, now).unwrap_err().to_string();
        assert_eq!(refused, "quota: your calls have carried 1 GiB within an hour; call again in 60 s");
        relays.begin(BEN, ANNA, now).unwrap();
        relays.begin(ANNA, BEN, now + Duration::from_secs(60)).unwrap();
    }
}
