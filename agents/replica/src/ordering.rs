//! How commands become final: one trait, so that one validator and many write the same blocks.
//!
//! ```text
//!   admitted command ──enqueue──> waiting ──batch, execute, certify, commit──> Verdict
//! ```
//! An implementation must never answer [`Verdict::Final`] before the block is stored durably, and never
//! certify two blocks of one height.

pub mod bft;
pub mod mempool;
pub mod solo;

use std::fmt;
use std::sync::Arc;

use croft_ledger::{BlockContext, StateError, assemble, execute_block};
use croft_protocol::api::{Agreement, Failure};
use croft_protocol::{Hash, Header, PublicKey, Rejection, SignedCommand, SignedHeader};
use tokio::sync::oneshot;

use self::bft::Inbox;
use crate::store::{Block, Snapshot};

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is final at this height and made these records.
    Final {
        height: u64,
        records: Vec<Hash>,
    },
    Rejected(Rejection),
    /// The replica can't decide: its disk fails, or it stops.
    Failed(Failure),
}

/// Makes commands final.
pub trait Ordering: fmt::Debug + Send + Sync {
    /// Queues a command that passed admission. The receiver hears its fate; when it hears nothing, the
    /// replica stopped.
    ///
    /// # Errors
    /// The verdict, where it is known at once.
    fn enqueue(&self, command: SignedCommand) -> Result<oneshot::Receiver<Verdict>, Verdict>;

    /// Commands that wait.
    fn waiting(&self) -> u32;

    /// Where the messages of another replica go in.
    ///
    /// # Errors
    /// [`Failure::NotAllowed`] when this replica does not decide with that one.
    fn inbox(&self, peer: &PublicKey) -> Result<Inbox, Failure> {
        Err(Failure::NotAllowed {
            what: format!("replica {}", peer.short()),
            remedy: "this replica orders alone; its owner lists the others under [[peers]] in replica.toml"
                .to_owned(),
        })
    }

    /// How it decides with others, if it does.
    fn agreement(&self) -> Option<Agreement> {
        None
    }
}

/// Where block time comes from: milliseconds since 1970, UTC. The one place where the wall clock comes in.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The machine's clock.
#[must_use]
pub fn wall_clock() -> Clock {
    Arc::new(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // Before 1970 only on a machine whose clock was never set; block time then just counts on.
        since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    })
}

/// Executes commands on a state and certifies what comes out.
///
/// # Errors
/// [`StateError`]: the state can't be read, or the block would break an invariant.
pub fn make_block(
    before: &Snapshot,
    time_ms: u64,
    commands: &[SignedCommand],
    certify: impl FnOnce(Header) -> SignedHeader,
) -> Result<Block, StateError> {
    let header = before.tip().header;
    // Time only ever grows, whatever the clock does.
    let time_ms = time_ms.max(header.time_ms + 1);
    let ctx = BlockContext::after(&header, time_ms);
    before.learn_signatures(commands);
    let outcome = execute_block(before, ctx, commands)?;
    let from = assemble::Before::Header { header: &header, map: before.map_head() };
    let assembled = assemble::assemble(from, ctx, &outcome, before, before)?;
    Ok(Block {
        signed: certify(assembled.header),
        commands: commands.to_vec(),
        outcome,
        log: assembled.log,
        map: assembled.map,
    })
}
