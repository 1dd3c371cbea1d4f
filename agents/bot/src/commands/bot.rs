//! `croft bot`: keys in the home, names on the ledger.

use croft_protocol::message::message_key;
use croft_protocol::record::BotBody;
use croft_protocol::{BotId, Command, Grains, Name, Profile, SecretKey};
use serde::Serialize;

use super::directory::{self, ProfileView};
use super::{CommandError, Context};
use crate::exit::Failure;
use crate::grid::{Grid, GridError};
use crate::home::HomeError;

#[derive(Debug, thiserror::Error)]
enum BotError {
    #[error(
        "bot '{name}' is on grid '{grid}' already, with the key of this home: see it with 'croft bot show {name}', give it more with 'croft wallet send {name} GRAINS --bot {treasury}'"
    )]
    Exists { name: Name, grid: Name, treasury: String },
    #[error("the name '{name}' is taken on grid '{grid}': choose another name")]
    NameTaken { name: Name, grid: Name },
    #[error("no key of the treasury of grid '{grid}' is in {home}: make the bot without --grains and ask for some; whoever has them gives them with 'croft wallet send {name} {grains}'", grains = grains.0)]
    NoTreasury { name: Name, grid: Name, home: std::path::PathBuf, grains: Grains },
    #[error("the genesis of grid '{grid}' is not the pinned one: {found} instead of {expected}")]
    OtherGenesis { grid: Name, found: croft_protocol::ChainId, expected: croft_protocol::ChainId },
}

#[derive(Serialize)]
struct NewBot {
    bot: Name,
    id: BotId,
    grid: Name,
    balance: Grains,
}

pub(super) async fn new(c: &mut Context<'_>, name: &Name, grains: Option<Grains>) -> Result<(), Failure> {
    let pin = c.pin()?;
    // A key from an interrupted run is used again; nothing is ever overwritten.
    let known = match c.home.key_file(name) {
        Ok(_) => Some(c.present_key_of(name)?),
        Err(HomeError::NoBot { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let asking = match &known {
        Some(key) => key.clone(),
        None => SecretKey::generate().map_err(HomeError::Randomness)?,
    };
    // Everything that can be wrong is found before a key is made.
    let grid = Grid::open(&c.home, pin.clone(), &asking)?;
    let owner = grid.bot_named(name).await?;
    let ours = known.as_ref().map(SecretKey::id);
    if let Some(owner) = owner.filter(|owner| Some(*owner) != ours) {
        let _: BotId = owner;
        return Err(Failure::refused(BotError::NameTaken { name: name.clone(), grid: pin.name }));
    }
    let treasury = match grains {
        Some(grains) => Some((treasury(c, &grid, name, grains).await?, grains)),
        None => None,
    };
    if let (Some(key), Some(_)) = (&known, owner) {
        let balance = grid.account(key.id()).await?.balance;
        let finished = grid.profile(key.id()).await?.is_some();
        if finished && (treasury.is_none() || balance > Grains::ZERO) {
            let treasury = treasury.map_or_else(|| "treasury".to_owned(), |((name, _), _)| name.to_string());
            return Err(Failure::refused(BotError::Exists { name: name.clone(), grid: pin.name, treasury }));
        }
    }
    let key = match known {
        Some(key) => key,
        None => c.home.new_bot(name)?,
    };
    if owner.is_none() {
        register(c, &pin, name, &key, ours.is_none()).await?;
    }
    if grid.profile(key.id()).await?.is_none() {
        let encryption_key = Some(message_key(&key).public());
        let profile = Profile { encryption_key, ..Profile::named(name.clone()) };
        directory::publish(&grid, &key, &profile).await?;
    }
    if let Some(((_, treasury_key), amount)) = treasury {
        let memo = format!("for {name}");
        grid.submit(&treasury_key, &Command::Transfer { to: key.id(), amount, memo }).await?;
    }
    let balance = grid.account(key.id()).await?.balance;
    grid.close().await;
    let shown = NewBot { bot: name.clone(), id: key.id(), grid: pin.name, balance };
    c.terminal.result(&shown, |b| {
        format!("bot '{}' is on grid '{}' with {}\n  id {}\n", b.bot, b.grid, b.balance, b.id)
    })
}

async fn register(
    c: &Context<'_>,
    pin: &croft_protocol::boot::GridPin,
    name: &Name,
    key: &SecretKey,
    made_now: bool,
) -> Result<(), Failure> {
    let grid = Grid::open(&c.home, pin.clone(), key)?;
    let done = grid.submit(key, &Command::CreateBot(BotBody { name: name.clone() })).await;
    grid.close().await;
    match done {
        Ok(_) => Ok(()),
        Err(error) => {
            // Only what the ledger certainly does not know may be forgotten.
            if made_now && error.rejection().is_some() {
                c.home.forget_unused_bot(name)?;
            }
            Err(error.into())
        }
    }
}

/// A bot of this home to which genesis gave grains.
async fn treasury(
    c: &Context<'_>,
    grid: &Grid,
    name: &Name,
    grains: Grains,
) -> Result<(Name, SecretKey), Failure> {
    let genesis = grid.genesis_unproved().await?;
    let (found, expected) = (genesis.chain_id(), grid.pin().chain);
    if found != expected {
        let error = BotError::OtherGenesis { grid: grid.name().clone(), found, expected };
        return Err(Failure::failed(error));
    }
    for bot in c.home.bots()? {
        let id = c.home.bot_id(grid.name(), &bot)?;
        if genesis.allocations.iter().any(|a| a.bot == id) {
            let key = c.present_key_of(&bot)?;
            return Ok((bot, key));
        }
    }
    let error = BotError::NoTreasury {
        name: name.clone(),
        grid: grid.name().clone(),
        home: c.home.root().to_owned(),
        grains,
    };
    Err(Failure::not_found(error))
}

#[derive(Serialize)]
struct ShownBot {
    bot: Name,
    id: BotId,
    grid: Name,
    registered: bool,
    /// Whether its key is in this home.
    own: bool,
    balance: Grains,
    next_sequence: u64,
    #[serde(flatten)]
    said: ProfileView,
    /// Whether it has a profile, and so is in the directory.
    listed: bool,
}

pub(super) async fn show(c: &mut Context<'_>, name: Option<Name>) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let (name, own) = if let Some(name) = name {
        let own = match c.home.bot_id(grid.name(), &name) {
            Ok(id) => Some(id),
            Err(HomeError::NoBot { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        (name, own)
    } else {
        let name = c.home.acting_name(c.bot.as_ref())?;
        let own = c.home.bot_id(grid.name(), &name)?;
        (name, Some(own))
    };
    let registered = grid.bot_named(&name).await?;
    let Some(id) = registered.or(own) else {
        return Err(Failure::not_found(CommandError::NoBot { bot: name, grid: grid.name().clone() }));
    };
    let account = grid.account(id).await.map_err(|e: GridError| Failure::from(e))?;
    let profile = grid.profile(id).await?;
    grid.close().await;
    let listed = profile.is_some();
    let said = ProfileView::new(&profile.unwrap_or_else(|| Profile::named(name.clone())));
    let shown = ShownBot {
        bot: name,
        id,
        grid: grid.name().clone(),
        registered: registered.is_some(),
        own: own == Some(id),
        balance: account.balance,
        next_sequence: account.next_sequence,
        said,
        listed,
    };
    c.terminal.result(&shown, |b| {
        let place = match (b.registered, b.own) {
            (true, true) => "its key is in this home",
            (true, false) => "its key is elsewhere",
            (false, _) => "it has a key here, but is not on the ledger: 'croft bot new' registers it",
        };
        format!(
            "bot '{}' on grid '{}': {place}\n  id      {}\n  wallet  {}\n{}",
            b.bot,
            b.grid,
            b.id,
            b.balance,
            if b.listed { b.said.lines() } else { String::new() }
        )
    })
}
