//! Blocks: admission of commands, and their execution one after the other.
//!
//! A rejected command changes nothing, not even its author's sequence number, and its submitter is told why.
//! So whoever holds it may submit it again, and it succeeds once it fits, as long as its sequence number is
//! still the author's next and it has not expired. An author who gives up on a command makes it void by using
//! its sequence number for another one, or by waiting for its expiry height.

use std::collections::{BTreeMap, BTreeSet};

use croft_protocol::faucet;
use croft_protocol::record::BotBody;
use croft_protocol::state::Account;
use croft_protocol::{
    Body, BotId, ChainId, ContractId, ContractState, Genesis, Grains, Hash, Header, Name, NodeId, PublicKey,
    Record, RecordId, Rejection, SignedCommand, StateKey, limits,
};

use crate::execute;
use crate::state::{StateError, StateRead, StateReadExt};
use crate::work::{Stop, Work};

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
    /// Hash and time of the previous header: quotes name it. Both zero for block 0.
    pub prev: Hash,
    pub prev_ms: u64,
}

impl BlockContext {
    /// That of block 0.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        let (chain, time_ms) = (genesis.chain_id(), genesis.time_ms);
        Self { chain, height: 0, time_ms, prev: Hash::ZERO, prev_ms: 0 }
    }

    /// That of the block after a header.
    #[must_use]
    pub fn after(header: &Header, time_ms: u64) -> Self {
        Self {
            chain: header.chain,
            height: header.height + 1,
            time_ms,
            prev: header.hash(),
            prev_ms: header.time_ms,
        }
    }
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
    /// Somebody paid into an escrow after the agreement.
    Funded { contract: ContractId, from: BotId, amount: Grains },
    /// A bot gave grains away.
    Transferred { from: BotId, to: BotId, amount: Grains },
    /// The fee of a reservation left its escrow.
    Fee { contract: ContractId, to: BotId, amount: Grains },
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
    #[error(transparent)]
    Trust(#[from] croft_protocol::trust::InvalidTrustPolicy),
    #[error(transparent)]
    Faucet(#[from] croft_protocol::faucet::InvalidFaucet),
}

/// Block 0: a bot record and an account for each allocation, the supply, and the validator set.
///
/// # Errors
/// [`InvalidGenesis`] names the culprit.
pub fn execute_genesis(genesis: &Genesis) -> Result<BlockOutcome, InvalidGenesis> {
    genesis.validators.check()?;
    genesis.trust.check()?;
    if genesis.time_ms == 0 {
        return Err(InvalidGenesis::Time);
    }
    let (mut bots, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut supply = Grains::ZERO;
    let mut outcome = BlockOutcome::default();
    let mut write = |key, bytes| outcome.writes.insert(key, Some(bytes));
    let record = |id, body| Record {
        id,
        version: 1,
        prev: None,
        body,
        author: PublicKey([0; 32]),
        height: 0,
        time_ms: genesis.time_ms,
    };
    let mut records = vec![record(RecordId::validators(), Body::Validators(genesis.validators.clone()))];
    for allocation in &genesis.allocations {
        if !bots.insert(allocation.bot) {
            return Err(InvalidGenesis::SameBot { bot: allocation.bot });
        }
        if !names.insert(&allocation.name) {
            return Err(InvalidGenesis::SameName { name: allocation.name.clone() });
        }
        supply = supply.checked_add(allocation.grains).ok_or(InvalidGenesis::Overflow)?;
        let account = Account { balance: allocation.grains, next_sequence: 0 };
        write(StateKey::Account(allocation.bot), croft_protocol::encode(&account));
        write(StateKey::BotName(allocation.name.clone()), croft_protocol::encode(&allocation.bot));
        records.push(record(
            RecordId::bot(&allocation.bot),
            Body::Bot(BotBody { name: allocation.name.clone() }),
        ));
    }
    if let Some(faucet) = &genesis.faucet {
        faucet.check()?;
        if !bots.insert(faucet::ACCOUNT) {
            return Err(InvalidGenesis::SameBot { bot: faucet::ACCOUNT });
        }
        supply = supply.checked_add(faucet.fund).ok_or(InvalidGenesis::Overflow)?;
        let account = Account { balance: faucet.fund, next_sequence: 0 };
        write(StateKey::Account(faucet::ACCOUNT), croft_protocol::encode(&account));
        write(StateKey::Faucet, croft_protocol::encode(faucet));
    }
    write(StateKey::Supply, croft_protocol::encode(&supply));
    write(StateKey::TrustPolicy, croft_protocol::encode(&genesis.trust));
    for record in &records {
        write(StateKey::Record(record.id), croft_protocol::encode(record));
    }
    outcome.records = records;
    Ok(outcome)
}

/// Executes commands in their order on the state before the block. A command that can't be executed yields a
/// [`Rejection`] and changes nothing; the others go on.
///
/// # Errors
/// [`StateError`] when the store fails, when it holds what this ledger can't have written, when there are
/// more commands than a block may have, or when an invariant would break: then nothing of the block may be
/// kept.
pub fn execute_block(
    view: &dyn StateRead,
    ctx: BlockContext,
    commands: &[SignedCommand],
) -> Result<BlockOutcome, StateError> {
    if commands.len() > limits::COMMANDS_PER_BLOCK {
        return Err(StateError::new(format!(
            "block {} has {} commands, at most {} are allowed",
            ctx.height,
            commands.len(),
            limits::COMMANDS_PER_BLOCK
        )));
    }
    let mut work = Work::new(view, ctx);
    work.remember_header()?;
    match execute::reservations::expire(&mut work) {
        Ok(()) => drop(work.keep()),
        Err(Stop::Failed(error)) => return Err(error),
        Err(Stop::Rejected(rejection)) => {
            return Err(StateError::broken(format_args!("what expired can be freed: {rejection}")));
        }
    }
    let mut results = Vec::with_capacity(commands.len());
    for command in commands {
        match execute_command(&mut work, command) {
            Ok(()) => results.push(Ok(work.keep())),
            Err(Stop::Rejected(rejection)) => {
                work.discard();
                results.push(Err(*rejection));
            }
            Err(Stop::Failed(error)) => return Err(error),
        }
    }
    work.finish(results)
}

fn execute_command(work: &mut Work<'_>, command: &SignedCommand) -> Result<(), Stop> {
    let (ctx, author) = (work.ctx(), command.body.author);
    check_envelope(work, &ctx.chain, ctx.height, command)?;
    work.check_key(&author, &command.key)?.map_err(Rejection::Key)?;
    let account = work.account(&author)?;
    if command.body.sequence != account.next_sequence {
        return Err(wrong_sequence(command, account.next_sequence).into());
    }
    execute::dispatch(work, author, command)?;
    // Read again: the command may have moved the author's own grains.
    let mut account = work.account(&author)?;
    account.next_sequence = account.next_sequence.checked_add(1).ok_or(Rejection::Overflow)?;
    work.put(StateKey::Account(author), &account);
    Ok(())
}

/// The cheap checks before a command waits in a queue: size, chain, expiry, signature, its key and sequence
/// number, which may be up to [`SEQUENCE_WINDOW`] ahead of the author's next. `height` is that of the next block.
///
/// # Errors
/// [`StateError`] when the store fails. The inner result is the verdict on the command.
pub fn check_admission(
    view: &dyn StateRead,
    chain: &ChainId,
    height: u64,
    command: &SignedCommand,
) -> Result<Result<(), Rejection>, StateError> {
    if let Err(rejection) = check_envelope(view, chain, height, command) {
        return Ok(Err(rejection));
    }
    if let Err(refusal) = view.check_key(&command.body.author, &command.key)? {
        return Ok(Err(Rejection::Key(refusal)));
    }
    let next = view.account(&command.body.author)?.next_sequence;
    let ahead = command.body.sequence.checked_sub(next);
    Ok(match ahead {
        Some(ahead) if ahead < SEQUENCE_WINDOW => Ok(()),
        _ => Err(wrong_sequence(command, next)),
    })
}

/// What can be checked without any value of the state; the signature last, since it costs most.
fn check_envelope(
    view: &dyn StateRead,
    chain: &ChainId,
    height: u64,
    command: &SignedCommand,
) -> Result<(), Rejection> {
    let body = &command.body;
    if body.chain != *chain {
        return Err(Rejection::WrongChain { theirs: body.chain, ours: *chain });
    }
    if body.expires_height < height {
        return Err(Rejection::Expired { expired: body.expires_height, height });
    }
    if body.expires_height - height > limits::EXPIRY_BLOCKS {
        return Err(Rejection::ExpiryTooFar {
            expires: body.expires_height,
            height,
            limit: limits::EXPIRY_BLOCKS,
        });
    }
    let len = croft_protocol::encode(command).len();
    if len > limits::COMMAND_BYTES {
        let limit = limits::COMMAND_BYTES;
        return Err(Rejection::Malformed { reason: format!("{len} bytes, more than the limit of {limit}") });
    }
    if view.is_signed(command) { Ok(()) } else { Err(Rejection::BadSignature { author: command.key }) }
}

fn wrong_sequence(command: &SignedCommand, expected: u64) -> Rejection {
    Rejection::Sequence { author: command.body.author, got: command.body.sequence, expected }
}

#[cfg(test)]
mod tests;
