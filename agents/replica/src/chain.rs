//! The stored chain and those who wait for its next block.
//!
//! It must never announce a block that is not stored durably.

use std::sync::Arc;

use croft_protocol::{Record, SignedHeader};
use tokio::sync::broadcast;

use crate::store::{Block, Snapshot, Store, StoreError};

/// Blocks that a follower may be behind before it is dropped: ten seconds of load, minutes of quiet.
const BLOCKS_BEHIND: usize = 64;

/// What a block means to those who watch.
#[derive(Debug)]
pub struct FinalBlock {
    pub header: SignedHeader,
    pub records: Vec<Record>,
}

/// The ledger's file, and news of it.
#[derive(Debug)]
pub struct Chain {
    store: Store,
    blocks: broadcast::Sender<Arc<FinalBlock>>,
}

impl Chain {
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, blocks: broadcast::Sender::new(BLOCKS_BEHIND) }
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The state at the newest final block.
    #[must_use]
    pub fn latest(&self) -> Arc<Snapshot> {
        self.store.latest()
    }

    /// Every block from the next one on. Whoever falls behind too far is told so and loses them.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<FinalBlock>> {
        self.blocks.subscribe()
    }

    /// Stores a block durably, does what `stored` says, and then announces it.
    ///
    /// # Errors
    /// As [`Store::commit`]; nothing is announced.
    pub fn commit(&self, block: Block, stored: impl FnOnce()) -> Result<Arc<Snapshot>, StoreError> {
        let snapshot = self.store.commit(&block)?;
        stored();
        self.announce(block);
        Ok(snapshot)
    }

    /// Announces a block that is stored already.
    pub fn announce(&self, block: Block) {
        // Fails only when nobody watches.
        let _ =
            self.blocks.send(Arc::new(FinalBlock { header: block.signed, records: block.outcome.records }));
    }
}
