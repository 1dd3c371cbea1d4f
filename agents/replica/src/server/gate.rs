//! Admission: commands that arrive while others are being looked at are looked at together, since signatures cost half
//! as much together.
//!
//! ```text
//!   command ─> waiting ─┐                        ┌─> admitted | rejected, each to its own stream
//!   command ─> waiting ─┴─ one thread: a batch ──┤
//!   meanwhile: waiting ... the next batch        └─> (nobody left waiting: the thread goes)
//! ```
//! A command that comes alone waits for nobody. It must never hold what is decided about one command up for another's
//! sake longer than a batch takes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_ledger::check_admission;
use croft_protocol::api::Failure;
use croft_protocol::{Rejection, SignedCommand};
use tokio::sync::oneshot;

use super::answer::failed;
use crate::chain::Chain;
use crate::store::StoreError;

/// Commands in one batch: some milliseconds of one processor.
const BATCH: usize = 128;
/// Commands that wait at most; each holds a stream, so this is passed only by many peers together.
const WAITING: usize = 8 * 1024;

/// The command itself, if it may wait for its block.
type Looked = Result<Result<SignedCommand, Rejection>, Failure>;

#[derive(Debug, Default)]
struct State {
    waiting: Vec<(SignedCommand, oneshot::Sender<Looked>)>,
    /// Whether a thread is at it.
    is_open: bool,
}

#[derive(Debug)]
pub(super) struct Gate {
    chain: Arc<Chain>,
    state: Mutex<State>,
}

impl Gate {
    pub(super) fn new(chain: Arc<Chain>) -> Arc<Self> {
        Arc::new(Self { chain, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a command against the newest state: envelope, signature, sequence number.
    pub(super) async fn look_at(self: &Arc<Self>, command: SignedCommand) -> Looked {
        let (sender, receiver) = oneshot::channel();
        let opens = {
            let mut state = self.state();
            if state.waiting.len() >= WAITING {
                return Err(Failure::Busy { what: format!("{WAITING} commands are being looked at") });
            }
            state.waiting.push((command, sender));
            !std::mem::replace(&mut state.is_open, true)
        };
        if opens {
            let gate = self.clone();
            // Not this stream's own: others wait for it too when this one is gone.
            tokio::task::spawn_blocking(move || gate.work());
        }
        receiver.await.unwrap_or_else(|_| Err(Failure::Busy { what: "it is stopping".to_owned() }))
    }

    fn work(&self) {
        let _closes = Closes(self);
        loop {
            let batch: Vec<_> = {
                let mut state = self.state();
                if state.waiting.is_empty() {
                    state.is_open = false;
                    return;
                }
                let some = state.waiting.len().min(BATCH);
                state.waiting.drain(..some).collect()
            };
            self.look_at_batch(batch);
        }
    }

    fn look_at_batch(&self, batch: Vec<(SignedCommand, oneshot::Sender<Looked>)>) {
        let snapshot = self.chain.latest();
        let header = snapshot.tip().header;
        let (commands, senders): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        snapshot.learn_signatures(&commands);
        for (command, sender) in commands.into_iter().zip(senders) {
            let looked = check_admission(&*snapshot, &header.chain, header.height + 1, &command)
                .map_err(|error| failed(StoreError::State(error)))
                .map(|verdict| verdict.map(|()| command));
            // Whoever hung up learns it from the ledger.
            let _ = sender.send(looked);
        }
    }
}

/// Where the thread ends by a panic, those who wait are let go, and the next command opens anew.
struct Closes<'a>(&'a Gate);

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.0.state();
            state.waiting.clear();
            state.is_open = false;
        }
    }
}
