//! A block in the making: the state before it, what its commands changed so far, and what the command at
//! hand would change.
//!
//! ```text
//!   read ──> pending (this command) ──> writes (this block) ──> view (before the block)
//!                │ keep                     │ finish
//!                └──> writes                └──> BlockOutcome, with grains conserved
//! ```

use std::collections::BTreeMap;

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::state::Account;
use croft_protocol::trust::{RecentHeader, RecentHeaders};
use croft_protocol::{
    Body, BotId, Escrow, Grains, Hash, PublicKey, Record, RecordId, Rejection, SignedCommand, StateKey,
};

use crate::block::{BlockContext, BlockOutcome, Event, Receipt};
use crate::state::{StateError, StateRead, StateReadExt};

/// Why a command does not go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The command's own fault; it changes nothing. Boxed because it is large and rare.
    Rejected(Box<Rejection>),
    /// Nobody's fault; the whole block stops.
    Failed(StateError),
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(Box::new(rejection))
    }
}

impl From<StateError> for Stop {
    fn from(error: StateError) -> Self {
        Self::Failed(error)
    }
}

pub(crate) type Step<T = ()> = Result<T, Stop>;

pub(crate) struct Work<'a> {
    view: &'a dyn StateRead,
    ctx: BlockContext,
    outcome: BlockOutcome,
    pending: BTreeMap<StateKey, Option<Vec<u8>>>,
    pending_records: Vec<Record>,
    pending_hashes: Vec<Hash>,
    pending_events: Vec<Event>,
}

impl StateRead for Work<'_> {
    fn get(&self, key: &StateKey) -> Result<Option<Vec<u8>>, StateError> {
        match self.pending.get(key).or_else(|| self.outcome.writes.get(key)) {
            Some(value) => Ok(value.clone()),
            None => self.view.get(key),
        }
    }

    fn is_signed(&self, command: &SignedCommand) -> bool {
        self.view.is_signed(command)
    }
}

impl<'a> Work<'a> {
    pub(crate) fn new(view: &'a dyn StateRead, ctx: BlockContext) -> Self {
        Self {
            view,
            ctx,
            outcome: BlockOutcome::default(),
            pending: BTreeMap::new(),
            pending_records: Vec::new(),
            pending_hashes: Vec::new(),
            pending_events: Vec::new(),
        }
    }

    pub(crate) fn ctx(&self) -> BlockContext {
        self.ctx
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.ctx.time_ms
    }

    pub(crate) fn put<T: BorshSerialize>(&mut self, key: StateKey, value: &T) {
        self.pending.insert(key, Some(croft_protocol::encode(value)));
    }

    pub(crate) fn remove(&mut self, key: StateKey) {
        self.pending.insert(key, None);
    }

    /// Keeps the previous header for quotes, now and then.
    pub(crate) fn remember_header(&mut self) -> Result<(), StateError> {
        let BlockContext { height, time_ms, prev, prev_ms, .. } = self.ctx;
        let Some(before) = height.checked_sub(1) else { return Ok(()) };
        let mut recent: RecentHeaders = self.read(&StateKey::RecentHeaders)?.unwrap_or_default();
        if recent.add(RecentHeader { height: before, time_ms: prev_ms, hash: prev }, time_ms) {
            // Of the block, not of any command.
            let bytes = croft_protocol::encode(&recent);
            self.outcome.writes.insert(StateKey::RecentHeaders, Some(bytes));
        }
        Ok(())
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.pending_events.push(event);
    }

    /// Appends the next version of a thing.
    pub(crate) fn append(&mut self, id: RecordId, body: Body, author: PublicKey) -> Step {
        let key = StateKey::Record(id);
        let (version, prev) = match self.get(&key)? {
            None => (1, None),
            Some(bytes) => {
                let before: Record = borsh::from_slice(&bytes).map_err(|e| StateError::corrupt(&key, e))?;
                let version = before.version.checked_add(1).ok_or(Rejection::Overflow)?;
                (version, Some(Hash::of_bytes(&bytes)))
            }
        };
        if id.kind != body.kind() {
            return Err(StateError::broken(format_args!("{id:?} has a body of its kind")).into());
        }
        let record =
            Record { id, version, prev, body, author, height: self.ctx.height, time_ms: self.ctx.time_ms };
        let bytes = croft_protocol::encode(&record);
        self.pending_hashes.push(Hash::of_bytes(&bytes));
        self.pending.insert(key, Some(bytes));
        self.pending_records.push(record);
        Ok(())
    }

    /// Adds grains to an account.
    pub(crate) fn credit(&mut self, bot: &BotId, amount: Grains) -> Step {
        let mut account = self.account(bot)?;
        account.balance = account.balance.checked_add(amount).ok_or(Rejection::Overflow)?;
        self.put(StateKey::Account(*bot), &account);
        Ok(())
    }

    /// Takes grains from an account that has them.
    pub(crate) fn debit(&mut self, bot: &BotId, amount: Grains) -> Step {
        let mut account = self.account(bot)?;
        account.balance = account.balance.checked_sub(amount).ok_or(Rejection::Funds {
            bot: *bot,
            have: account.balance,
            need: amount,
        })?;
        self.put(StateKey::Account(*bot), &account);
        Ok(())
    }

    /// The command at hand is accepted.
    pub(crate) fn keep(&mut self) -> Receipt {
        let first = self.outcome.records.len();
        // Not `append`: that goes through the whole map for each command.
        self.outcome.writes.extend(std::mem::take(&mut self.pending));
        self.outcome.records.append(&mut self.pending_records);
        self.outcome.events.append(&mut self.pending_events);
        Receipt { records: std::mem::take(&mut self.pending_hashes), first }
    }

    /// The command at hand is rejected: as if it had never been.
    pub(crate) fn discard(&mut self) {
        self.pending.clear();
        self.pending_records.clear();
        self.pending_hashes.clear();
        self.pending_events.clear();
    }

    /// Drops what did not change in the end, and checks that no grain came or went.
    pub(crate) fn finish(
        mut self,
        results: Vec<Result<Receipt, Rejection>>,
    ) -> Result<BlockOutcome, StateError> {
        let mut outcome = std::mem::take(&mut self.outcome);
        let mut difference: i128 = 0;
        let mut unchanged = Vec::new();
        for (key, new) in &outcome.writes {
            let old = self.view.get(key)?;
            if old == *new {
                unchanged.push(key.clone());
            } else {
                difference += grains_in(key, new.as_deref())? - grains_in(key, old.as_deref())?;
            }
        }
        if difference != 0 {
            return Err(StateError::broken(format_args!(
                "grains are conserved: block {} would change their sum by {difference}",
                self.ctx.height
            )));
        }
        for key in unchanged {
            outcome.writes.remove(&key);
        }
        outcome.results = results;
        Ok(outcome)
    }
}

/// The grains that a value stands for.
fn grains_in(key: &StateKey, bytes: Option<&[u8]>) -> Result<i128, StateError> {
    fn decode<T: BorshDeserialize>(key: &StateKey, bytes: &[u8]) -> Result<T, StateError> {
        borsh::from_slice(bytes).map_err(|e| StateError::corrupt(key, e))
    }
    let Some(bytes) = bytes else { return Ok(0) };
    Ok(match key {
        StateKey::Account(_) => i128::from(decode::<Account>(key, bytes)?.balance.0),
        StateKey::Escrow(_) => i128::from(decode::<Escrow>(key, bytes)?.held().0),
        StateKey::HeldFee(_) => i128::from(decode::<Grains>(key, bytes)?.0),
        _ => 0,
    })
}
