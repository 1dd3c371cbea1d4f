//! `croft bot rotate`: another key signs for a bot from now on.
//!
//! ```text
//!   ledger asked: which key holds? ──another one than was known──> taken up, nothing is replaced
//!        └─the known one──> new key written, marked as next ──> RotateKey ──> its key for messages published ──> known here
//! ```
//! The new key is in the home before the ledger hears of it, and a run that was interrupted goes on with it: whatever
//! happened, the next run asks the ledger. It must never tell the ledger of a second key while one waits, nor show one.

use croft_protocol::identity::{KeysBody, Link, last_key};
use croft_protocol::message::message_key;
use croft_protocol::{BotId, Command, Name, PublicKey, SecretKey};
use serde::Serialize;

use super::keys::text_for;
use super::{CommandError, Context, directory};
use crate::exit::Failure;
use crate::grid::Grid;
use crate::home::{HomeError, Successor};

#[derive(Debug, thiserror::Error)]
enum RotateError {
    #[error(
        "key {key} signs for bot '{bot}' on grid '{grid}' since block {height}, and this home does not have it: bring it with 'croft bot import --later', from an exported file or its recovery phrase"
    )]
    NotHere { bot: Name, grid: Name, key: PublicKey, height: u64 },
    #[error(
        "another machine replaced the key of bot '{bot}' at the same time: 'croft bot rotate {bot} --resume' says by which one"
    )]
    Overtaken { bot: Name },
    #[error("another 'croft bot rotate' of bot '{bot}' is under way in this home: wait for it")]
    UnderWay { bot: Name },
}

#[derive(Serialize)]
struct Rotated {
    bot: Name,
    id: BotId,
    grid: Name,
    key: PublicKey,
    changes: usize,
    /// Of the last change; 0 where there was none.
    height: u64,
    /// Whether this run replaced it.
    changed: bool,
}

pub(super) async fn rotate(c: &mut Context<'_>, name: Option<Name>, resume: bool) -> Result<(), Failure> {
    let name = c.home.acting_name(name.as_ref().or(c.bot.as_ref()))?;
    let pin = c.pin()?;
    let Some(_alone) = c.home.lock_keys(&name)? else {
        return Err(Failure::failed(RotateError::UnderWay { bot: name }));
    };
    let opened = c.opened(&name)?;
    // Asked by whoever there is: the key that holds is what we ask about.
    let stranger = SecretKey::generate().map_err(HomeError::Randomness)?;
    let grid = Grid::open(&c.home, pin.clone(), &stranger)?;
    let asked = grid.verified().owner_of(opened[0].0.public()).await;
    let (bot, keys) = asked.map_err(|error| Failure::from(grid.error(error)))?;
    if grid.bot(bot).await?.is_none() {
        return Err(Failure::not_found(CommandError::NotRegistered { bot: name, grid: pin.name }));
    }
    let (height, links) = (keys.changes.last().map_or(0, |change| change.height), keys.links());
    let present = last_key(&bot, &links);
    let Some((held, passphrase)) = opened.iter().find(|(key, _)| key.public() == present) else {
        let error = RotateError::NotHere { bot: name, grid: pin.name, key: present, height };
        return Err(Failure::not_found(error));
    };
    let held = held.clone().of_bot(bot, links, &pin.chain).map_err(Failure::failed)?;
    let known = c.home.successor(&pin.name, &name)?;
    let news = known.as_ref().map_or(0, |known| known.links.len()) != held.links().len();
    // What an interrupted run, or another machine, brought about is taken up; another change needs another word.
    if resume || news {
        take_up(c, &pin, &name, &held).await?;
        grid.close().await;
        return show(c, name, &held, &keys, false, pin.name);
    }
    let waiting = known.and_then(|known| known.next);
    let waiting = opened.iter().map(|(key, _)| key).find(|key| Some(key.public()) == waiting);
    let new = if let Some(waiting) = waiting {
        waiting.clone()
    } else {
        let new = SecretKey::generate().map_err(HomeError::Randomness)?;
        c.home.add_key(&name, &text_for(&name, &new, passphrase.as_deref())?)?;
        let next = Some(new.public());
        c.home.keep_successor(&pin.name, &name, &Successor { bot, links: held.links().to_vec(), next })?;
        new
    };
    let link = Link::sign(&held, &new, &pin.chain);
    let submitted = grid.submit(&held, &Command::RotateKey(Box::new(link))).await;
    let keys = grid.verified().keys(bot).await.map_err(|error| Failure::from(grid.error(error)))?;
    let keys = keys.unwrap_or_default();
    grid.close().await;
    // An interrupted run's command may have been faster: then this one is refused, and the key is replaced all the same.
    if keys.present(&bot) != new.public() {
        return Err(match submitted {
            Err(error) => error.into(),
            Ok(_) => Failure::failed(RotateError::Overtaken { bot: name }),
        });
    }
    let acting = new.of_bot(bot, keys.links(), &pin.chain).map_err(Failure::failed)?;
    take_up(c, &pin, &name, &acting).await?;
    show(c, name, &acting, &keys, true, pin.name)
}

/// From now on this home acts with the key, and others write to it.
async fn take_up(
    c: &Context<'_>,
    pin: &croft_protocol::boot::GridPin,
    name: &Name,
    acting: &SecretKey,
) -> Result<(), Failure> {
    let (bot, links) = (acting.id(), acting.links().to_vec());
    // First what the ledger is told, then what is known here: a run that was interrupted between the two sees news again.
    let grid = Grid::open(&c.home, pin.clone(), acting)?;
    let ours = message_key(acting).public();
    if let Some(mut profile) = grid.profile(bot).await?
        && profile.encryption_key.is_some_and(|published| published != ours)
    {
        profile.encryption_key = Some(ours);
        let _: croft_protocol::Record = directory::publish(&grid, acting, &profile).await?;
    }
    grid.close().await;
    let next = c.home.successor(&pin.name, name)?.and_then(|known| known.next);
    // A key that waits goes on waiting, until it holds.
    let next = next.filter(|next| *next != acting.public());
    c.home.keep_successor(&pin.name, name, &Successor { bot, links, next })?;
    Ok(())
}

fn show(
    c: &mut Context<'_>,
    bot: Name,
    acting: &SecretKey,
    keys: &KeysBody,
    changed: bool,
    grid: Name,
) -> Result<(), Failure> {
    let height = keys.changes.last().map_or(0, |change| change.height);
    let shown = Rotated {
        bot,
        id: acting.id(),
        grid,
        key: acting.public(),
        changes: keys.changes.len(),
        height,
        changed,
    };
    c.terminal.result(&shown, |r| match (r.changed, r.changes) {
        (true, _) => format!(
            "bot '{0}' signs with a new key since block {1}: the old one, and its recovery phrase, are worth nothing on grid '{2}'\n  \
             key {3}\n  write the new phrase down: 'croft bot phrase {0}'; start anew what runs as this bot\n",
            r.bot, r.height, r.grid, r.key
        ),
        (false, 0) => format!("bot '{}' signs with its first key on grid '{}'\n", r.bot, r.grid),
        (false, _) => format!(
            "bot '{}' signs with the key of block {} on grid '{}', and so does this home now\n  key {}\n",
            r.bot, r.height, r.grid, r.key
        ),
    })
}
