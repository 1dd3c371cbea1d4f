//! Blocks: admission of commands, and their execution one after the other.
//!
//! A rejected command changes nothing, not even its author's sequence number, and its submitter is told why.
//! So whoever holds it may submit it again, and it succeeds once it fits, as long as its sequence number is
//! still the author's next and it has not expired. An author who gives up on a command makes it void by using
//! its sequence number for another one, or by waiting for its expiry height.

use std::collections::BTreeMap;

use croft_protocol::{
    BotId, ChainId, ContractId, ContractState, Genesis, Grains, Hash, Name, NodeId, PublicKey, Record,
    Rejection, SignedCommand, StateKey,
};

use crate::state::{StateError, StateRead};

/// How far ahead of the author's next sequence number a command may wait in a queue.
pub const SEQUENCE_WINDOW: u64 = 64;

/// What every command of a block shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockContext {
    pub chain: ChainId,
    /// Of the block that is being made: the previous one's plus one.
    pub height: u64,
    /// The block's time: milliseconds since 1970, UTC; greater than the previous one's.
    pub time_ms: u64,
}

/// What an accepted command made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receipt {
    /// Hashes of its records in the order in which they were made. Empty for a settlement that found nothing
    /// to do.
    pub records: Vec<Hash>,
    /// Position of the first of them in [`BlockOutcome::records`].
    pub first: usize,
}

/// Something that happened, for indexes, followers and simulators; never part of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A contract came to be (`from` is `None`) or changed its state.
    Contract {
        contract: ContractId,
        user: BotId,
        farmer: BotId,
        node: NodeId,
        from: Option<ContractState>,
        to: ContractState,
    },
    /// Escrow paid its farmer.
    Paid { contract: ContractId, to: BotId, amount: Grains },
    /// Escrow returned to its user.
    Refunded { contract: ContractId, to: BotId, amount: Grains },
    /// A node's total, used or version changed.
    Capacity { node: NodeId },
    /// A bot gave grains away.
    Transferred { from: BotId, to: BotId, amount: Grains },
}

/// All that a block changes. To be stored as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockOutcome {
    /// New records in the order of the log.
    pub records: Vec<Record>,
    /// The new value of every key that changed; `None` where it is gone. Never holds a key whose value stayed.
    pub writes: BTreeMap<StateKey, Option<Vec<u8>>>,
    /// One for each command, in order.
    pub results: Vec<Result<Receipt, Rejection>>,
    pub events: Vec<Event>,
}

/// A genesis that can't be a grid's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGenesis {
    #[error(transparent)]
    Validators(#[from] croft_protocol::header::InvalidValidatorSet),
    #[error("the genesis time must be milliseconds since 1970, greater than 0")]
    Time,
    #[error("bot {bot} has two allocations in the genesis: give it one")]
    SameBot { bot: PublicKey },
    #[error("two bots of the genesis are named '{name}': give each its own name")]
    SameName { name: Name },
    #[error("the allocations of the genesis exceed 2^64 - 1 grains")]
    Overflow,
}

/// Block 0: a bot record and an account for each allocation, the supply, and the validator set.
///
/// # Errors
/// [`InvalidGenesis`] names the culprit.
pub fn execute_genesis(_genesis: &Genesis) -> Result<BlockOutcome, InvalidGenesis> {
    todo!()
}

/// Executes commands in their order on the state before the block. A command that can't be executed yields a
/// [`Rejection`] and changes nothing; the others go on.
///
/// # Errors
/// [`StateError`] when the store fails, when it holds what this ledger can't have written, or when an
/// invariant would break: then nothing of the block may be kept.
pub fn execute_block(
    _view: &dyn StateRead,
    _ctx: BlockContext,
    _commands: &[SignedCommand],
) -> Result<BlockOutcome, StateError> {
    todo!()
}

/// The cheap checks before a command waits in a queue: size, chain, expiry, signature and sequence number,
/// which may be up to [`SEQUENCE_WINDOW`] ahead of the author's next. `height` is that of the next block.
///
/// # Errors
/// [`StateError`] when the store fails. The inner result is the verdict on the command.
pub fn check_admission(
    _view: &dyn StateRead,
    _chain: &ChainId,
    _height: u64,
    _command: &SignedCommand,
) -> Result<Result<(), Rejection>, StateError> {
    todo!()
}
