//! A bot's key is replaced by another one.
//!
//! The command is signed by the key that holds, the link by it and by the new one. What it writes is what everybody asks
//! before a signature is believed: which keys followed a bot's first one and since when, and whose key a key is. It must
//! never give a bot a key that ever acted on this grid, its own former ones neither, or that is a validator's or release key
//! now.

use croft_protocol::identity::{KeyChange, Link, RefusedChange};
use croft_protocol::{Body, PublicKey, RecordId, Rejection, StateKey, limits};

use super::known_bot;
use crate::state::{StateError, StateRead, StateReadExt};
use crate::work::{Step, Work};

pub(super) fn rotate(work: &mut Work<'_>, author: PublicKey, link: &Link) -> Step {
    known_bot(work, &author)?;
    let refused = |why| Rejection::KeyChange(why);
    let mut keys = work.keys(&author)?.unwrap_or_default();
    if keys.changes.len() >= limits::KEY_CHANGES {
        return Err(refused(RefusedChange::TooMany).into());
    }
    let height = work.ctx().height;
    if let Some(last) = keys.changes.last() {
        let next = last.height.saturating_add(limits::KEY_CHANGE_BLOCKS);
        if height < next {
            return Err(refused(RefusedChange::TooSoon { height: last.height, next }).into());
        }
    }
    if is_in_use(work, &link.key)? {
        return Err(refused(RefusedChange::InUse { key: link.key }).into());
    }
    if !link.follows(&author, &keys.links(), &work.ctx().chain) {
        return Err(refused(RefusedChange::Unsigned).into());
    }
    for key in [author, link.key] {
        work.put(StateKey::KeyOwner(key), &author);
    }
    keys.changes.push(KeyChange { link: link.clone(), height });
    work.append(RecordId::keys(&author), Body::Keys(keys), author)
}

/// Whether a key ever acted on this grid, or may sign for it.
fn is_in_use(work: &Work<'_>, key: &PublicKey) -> Result<bool, StateError> {
    if work.validators()?.set.power_of(key) > 0 || work.release_keys()?.is_some_and(|k| k.contains(key)) {
        return Ok(true);
    }
    let things = [
        StateKey::KeyOwner(*key),
        // Whoever ever acted has one.
        StateKey::Account(*key),
        StateKey::Record(RecordId::bot(key)),
        StateKey::Record(RecordId::node(key)),
    ];
    for thing in &things {
        if work.get(thing)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
