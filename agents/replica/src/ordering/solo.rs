//! One validator orders alone: what waits becomes a block as soon as the block before is on the disk.
//!
//! ```text
//!   idle ──command, heartbeat──> building ──committed──> idle
//!    ^                              │ the disk fails
//!    └── recovered, every 5 s ── read-only: answers, but makes no block
//! ```
//! It must never certify two blocks of one height. A certificate leaves this module only after its block is
//! durable, and after a failure the next block stands on what the disk holds then.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_ledger::{StateError, StateReadExt, assemble};
use croft_protocol::api::Failure;
use croft_protocol::{PublicKey, SecretKey, SignedCommand, ValidatorSet, limits};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::mempool::{Mempool, Taken};
use super::{Clock, Ordering, Verdict, make_block};
use crate::chain::Chain;
use crate::store::{Snapshot, StoreError};

/// How long a replica whose disk failed waits before it tries again.
const RETRY: Duration = Duration::from_secs(5);
/// An idle ledger makes an empty block this often.
const HEARTBEAT: Duration = Duration::from_millis(limits::HEARTBEAT_MS);

/// A key that can't order alone.
#[derive(Debug, thiserror::Error)]
pub enum NotAlone {
    #[error(
        "key {key} is no validator of this grid: use the validator.key that was made with it, or correct `key` in replica.toml"
    )]
    NoValidator { key: PublicKey },
    #[error("this grid has {count} validators, but one replica orders alone: only grids of one can be run")]
    NotOne { count: usize },
    #[error(transparent)]
    State(#[from] StateError),
}

/// The set that certifies the next block, if it is this key and nobody else.
fn alone(before: &Snapshot, key: PublicKey) -> Result<ValidatorSet, NotAlone> {
    // Not the tip's set: that block may just have replaced it.
    let set = before.validators()?.set;
    if set.power_of(&key) == 0 {
        return Err(NotAlone::NoValidator { key });
    }
    match set.validators.len() {
        1 => Ok(set),
        count => Err(NotAlone::NotOne { count }),
    }
}

/// Orders alone.
#[derive(Debug)]
pub struct Solo {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    chain: Arc<Chain>,
    key: SecretKey,
    pool: Mutex<Mempool>,
    /// Somebody put something into the queue.
    arrived: Notify,
    /// Why no block can be made now.
    trouble: Mutex<Option<Failure>>,
}

impl Solo {
    /// Starts making blocks.
    ///
    /// # Errors
    /// [`NotAlone`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(chain: Arc<Chain>, key: SecretKey, clock: Clock) -> Result<Self, NotAlone> {
        alone(&chain.latest(), key.public())?;
        let shared = Arc::new(Shared {
            chain,
            key,
            pool: Mutex::default(),
            arrived: Notify::new(),
            trouble: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(shared.clone(), clock, stopped));
        Ok(Self { shared, stop, task: Mutex::new(Some(task)) })
    }

    /// Finishes the block that is being made, tells those who still wait, and ends.
    pub async fn stop(&self) {
        // Fails only when the task is gone already.
        let _ = self.stop.send(true);
        let task = lock(&self.task).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    /// Waits until no more blocks are made: after [`Self::stop`], or by a fault of ours.
    pub async fn ended(&self) {
        self.stop.closed().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ordering for Solo {
    fn enqueue(&self, command: SignedCommand) -> Result<oneshot::Receiver<Verdict>, Verdict> {
        if let Some(failure) = lock(&self.shared.trouble).clone() {
            return Err(Verdict::Failed(failure));
        }
        let receiver = lock(&self.shared.pool).insert(command, Instant::now()).map_err(Verdict::Rejected)?;
        self.shared.arrived.notify_one();
        Ok(receiver)
    }

    fn waiting(&self) -> u32 {
        u32::try_from(lock(&self.shared.pool).len()).unwrap_or(u32::MAX)
    }
}

async fn run(shared: Arc<Shared>, clock: Clock, mut stopped: watch::Receiver<bool>) {
    let mut heartbeat = Instant::now() + HEARTBEAT;
    let mut slow_clock = false;
    while !*stopped.borrow() {
        let in_trouble = lock(&shared.trouble).is_some();
        let gap = lock(&shared.pool).next_gap().filter(|_| !in_trouble);
        let wake = gap.map_or(heartbeat, |gap| gap.min(heartbeat));
        tokio::select! {
            () = shared.arrived.notified(), if !in_trouble => {}
            () = sleep_until(wake) => {}
            // An error means that nobody can stop us any more: the owner is gone.
            result = stopped.changed() => if result.is_err() { break },
        }
        let due = Instant::now() >= heartbeat;
        let (block_by, time_ms) = (shared.clone(), clock());
        slow_clock = shared.warn_of_clock(time_ms, slow_clock);
        let step = tokio::task::spawn_blocking(move || block_by.step(time_ms, due)).await;
        heartbeat = match step {
            Ok(Step::Nothing) => heartbeat,
            Ok(Step::Block) => Instant::now() + HEARTBEAT,
            Ok(Step::Trouble) => Instant::now() + RETRY,
            Err(error) => {
                tracing::error!(%error, "making a block panicked");
                break;
            }
        };
    }
    let busy = Failure::Busy { what: "it is stopping".to_owned() };
    *lock(&shared.trouble) = Some(busy.clone());
    let left = lock(&shared.pool).drain();
    for taken in left {
        taken.answer(Verdict::Failed(busy.clone()));
    }
}

enum Step {
    Nothing,
    Block,
    Trouble,
}

impl Shared {
    /// Says once that the clock is behind the chain, and once that it has caught up.
    fn warn_of_clock(&self, time_ms: u64, warned: bool) -> bool {
        let behind_ms = self.chain.latest().tip().header.time_ms.saturating_sub(time_ms);
        let slow = behind_ms > limits::CLOCK_SLACK_MS;
        match (slow, warned) {
            (true, false) => {
                tracing::warn!(
                    behind_ms,
                    "this machine's clock is behind the ledger: set it, or clients find blocks too old"
                );
            }
            (false, true) => tracing::info!("this machine's clock has caught up with the ledger"),
            _ => {}
        }
        slow
    }

    /// Makes at most one block of what waits, or an empty one if it is due.
    fn step(&self, time_ms: u64, due: bool) -> Step {
        let before = match self.chain.store().recover() {
            Ok(before) => before,
            Err(error) => return self.trouble(Vec::new(), &error),
        };
        if let Err(error) = self.chain.store().check_space() {
            return self.trouble(Vec::new(), &error);
        }
        // A change of validators ends the time of one who orders alone; others must sign the next block.
        let validators = match alone(&before, self.key.public()) {
            Ok(validators) => validators,
            Err(error) => return self.trouble(Vec::new(), &error),
        };
        let batch = match self.take(&before) {
            Ok(batch) => batch,
            Err(error) => return self.trouble(Vec::new(), &error),
        };
        if batch.is_empty() && !due {
            return Step::Nothing;
        }
        match self.build(&before, validators, time_ms, &batch) {
            Ok(verdicts) => {
                for (taken, verdict) in batch.into_iter().zip(verdicts) {
                    taken.answer(verdict);
                }
                // More may wait than fitted, and what came meanwhile has rung only once.
                self.arrived.notify_one();
                Step::Block
            }
            Err(error) => self.trouble(batch, &error),
        }
    }

    fn take(&self, before: &Snapshot) -> Result<Vec<Taken>, StateError> {
        let next = |author: &PublicKey| before.account(author).map(|account| account.next_sequence);
        let mut pool = lock(&self.pool);
        let batch = pool.take_batch(next)?;
        if batch.is_empty() {
            pool.drop_gaps(Instant::now(), next)?;
        }
        Ok(batch)
    }

    /// One block, durable when this returns.
    fn build(
        &self,
        before: &Snapshot,
        validators: ValidatorSet,
        time_ms: u64,
        batch: &[Taken],
    ) -> Result<Vec<Verdict>, StoreError> {
        let commands: Vec<SignedCommand> = batch.iter().map(|taken| taken.command.clone()).collect();
        let certify = |header| assemble::certify(header, 0, validators, std::slice::from_ref(&self.key));
        let block = make_block(before, time_ms, &commands, certify)?;
        let height = block.signed.header.height;
        let verdicts = block.outcome.results.iter().map(|result| match result {
            Ok(receipt) => Verdict::Final { height, records: receipt.records.clone() },
            Err(rejection) => Verdict::Rejected(rejection.clone()),
        });
        let verdicts = verdicts.collect();
        self.chain.commit(block, || {
            // Before anybody hears of the block and sends commands.
            if lock(&self.trouble).take().is_some() {
                tracing::info!(height, "blocks are made again");
            }
        })?;
        Ok(verdicts)
    }

    fn trouble(&self, batch: Vec<Taken>, error: &dyn std::error::Error) -> Step {
        let failure = Failure::Storage { reason: crate::chain_of(error) };
        tracing::error!(reason = %failure, "no block can be made");
        *lock(&self.trouble) = Some(failure.clone());
        let waiting = lock(&self.pool).drain();
        for taken in batch.into_iter().chain(waiting) {
            taken.answer(Verdict::Failed(failure.clone()));
        }
        Step::Trouble
    }
}

#[cfg(test)]
mod tests;
