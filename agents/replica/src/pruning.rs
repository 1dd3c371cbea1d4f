//! Takes away what has left its window, beside the making of blocks.
//!
//! ```text
//!   waiting ──block──> slice ──more──> (rest) ──> slice ... ──nothing left, or a block goes first──> waiting
//! ```
//! It must never make a block wait for longer than one slice, and never stop the replica: what it can't do
//! now it does after a later block.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::chain::Chain;
use crate::ordering::Ordering;
use crate::store::{Keep, Slice};

/// Things that one slice removes: some milliseconds, which is what a block may have to wait.
const SLICE: usize = 512;
/// While commands wait, a slice is followed by a rest this many times as long.
const RESTS: u32 = 3;

/// Removes in the background until it is aborted.
pub(crate) fn start(chain: Arc<Chain>, ordering: Arc<dyn Ordering>, keep: Keep) -> JoinHandle<()> {
    tokio::spawn(run(chain, ordering, keep))
}

async fn run(chain: Arc<Chain>, ordering: Arc<dyn Ordering>, keep: Keep) {
    let mut blocks = chain.subscribe();
    loop {
        match blocks.recv().await {
            // Which blocks there were does not matter.
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
        loop {
            let begun = Instant::now();
            let pruned_by = chain.clone();
            let slice = tokio::task::spawn_blocking(move || pruned_by.store().prune(keep, SLICE)).await;
            match slice {
                Ok(Ok(Slice::More { .. })) => {}
                Ok(Ok(Slice::Done { .. } | Slice::Deferred)) => break,
                Ok(Err(error)) => {
                    tracing::error!(cause = crate::chain_of(&error), "old blocks can't be removed");
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "removing old blocks panicked");
                    return;
                }
            }
            if ordering.waiting() > 0 {
                let rest: Duration = begun.elapsed() * RESTS;
                sleep_until(Instant::now() + rest).await;
            }
        }
    }
}
