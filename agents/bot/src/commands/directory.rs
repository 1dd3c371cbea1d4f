//! `croft bot update` and `croft bot find`: what bots say of themselves.

use std::collections::BTreeSet;

use croft_protocol::api::{BotQuery, Query};
use croft_protocol::message::message_key;
use croft_protocol::{Body, BotId, Command, Name, Profile, PublicKey, Record, RecordId, Role, SecretKey};
use serde::Serialize;

use super::Context;
use crate::exit::Failure;
use crate::flags::{BotFindFlags, BotUpdateFlags};
use crate::grid::{Grid, GridError};
use crate::terminal::{printable, push, table};

/// Pages of a search that are asked for: a replica that finds nothing must not keep us for ever.
const PAGES: usize = 256;

#[derive(Serialize)]
struct Updated {
    bot: Name,
    id: BotId,
    #[serde(flatten)]
    said: ProfileView,
    version: u64,
    height: u64,
}

/// A profile as it is shown.
#[derive(Serialize)]
pub(super) struct ProfileView {
    roles: BTreeSet<Role>,
    capabilities: BTreeSet<Name>,
    description: String,
    /// X25519, hex.
    encryption_key: Option<String>,
}

impl ProfileView {
    pub(super) fn new(profile: &Profile) -> Self {
        Self {
            roles: profile.roles.clone(),
            capabilities: profile.capabilities.clone(),
            description: profile.description.clone(),
            encryption_key: profile.encryption_key.map(hex::encode),
        }
    }

    /// Some lines, each beginning with two spaces.
    pub(super) fn lines(&self) -> String {
        let list = |words: Vec<&str>| if words.is_empty() { "none".to_owned() } else { words.join(", ") };
        let roles = list(self.roles.iter().map(|role| role.as_str()).collect());
        let capabilities = list(self.capabilities.iter().map(Name::as_str).collect());
        let messages = if self.encryption_key.is_some() { "takes messages" } else { "takes no messages" };
        let mut text = format!("  roles         {roles}\n  capabilities  {capabilities}\n  {messages}\n");
        if !self.description.is_empty() {
            push!(text, "  '{}'\n", printable(&self.description));
        }
        text
    }
}

pub(super) async fn update(c: &mut Context<'_>, flags: &BotUpdateFlags) -> Result<(), Failure> {
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let (grid, me) = (&acting.grid, acting.id());
    let name = grid.bot(me).await?.map_or_else(|| acting.name.clone(), |bot| bot.name);
    let mut profile = grid.profile(me).await?.unwrap_or_else(|| Profile::named(name));
    if flags.no_roles || !flags.roles.is_empty() {
        profile.roles = flags.roles.iter().map(|role| Role::from(*role)).collect();
    }
    if flags.no_capabilities || !flags.capabilities.is_empty() {
        profile.capabilities = flags.capabilities.iter().cloned().collect();
    }
    if let Some(description) = &flags.description {
        profile.description.clone_from(description);
    }
    profile.encryption_key = (!flags.no_messages).then(|| message_key(&acting.key).public());
    profile.check().map_err(Failure::usage)?;
    let record = publish(grid, &acting.key, &profile).await?;
    grid.close().await;
    let updated = Updated {
        bot: acting.name.clone(),
        id: me,
        said: ProfileView::new(&profile),
        version: record.version,
        height: record.height,
    };
    c.terminal.result(&updated, |u| {
        format!("bot '{}' says of itself, since block {}:\n{}", u.bot, u.height, u.said.lines())
    })
}

/// Brings a profile to the ledger, unless it is there already.
pub(super) async fn publish(grid: &Grid, key: &SecretKey, profile: &Profile) -> Result<Record, GridError> {
    let id = RecordId::profile(&key.id());
    let is_it = |record: &Record| matches!(&record.body, Body::Profile(known) if known == profile);
    if let Some(record) = grid.record(id).await?.filter(is_it) {
        return Ok(record);
    }
    grid.submit(key, &Command::UpdateBot(profile.clone())).await?;
    let unknown = || GridError::OutcomeUnknown { grid: grid.name().clone() };
    grid.record(id).await?.filter(is_it).ok_or_else(unknown)
}

#[derive(Serialize)]
struct Found {
    bots: Vec<FoundBot>,
    more: bool,
}

#[derive(Serialize)]
struct FoundBot {
    bot: Name,
    id: BotId,
    roles: BTreeSet<Role>,
    capabilities: BTreeSet<Name>,
    description: String,
    /// Whether it takes any.
    messages: bool,
    height: u64,
}

pub(super) async fn find(c: &mut Context<'_>, flags: BotFindFlags) -> Result<(), Failure> {
    let BotFindFlags { text, role, capability, limit } = flags;
    let query = BotQuery { text, role: role.map(Role::from), capability };
    Query::Bots(query.clone()).check().map_err(Failure::usage)?;
    let grid = c.reading_grid()?;
    let found = search(&grid, &query, limit as usize).await?;
    grid.close().await;
    c.terminal.result(&found, |found| {
        if found.bots.is_empty() {
            return "no bots found\n".to_owned();
        }
        let rows: Vec<Vec<String>> = found.bots.iter().map(row).collect();
        let mut text = table(&["BOT", "ROLES", "CAPABILITIES", "MESSAGES", "DESCRIPTION"], &rows);
        if found.more {
            text.push_str("there are more: raise --limit, or ask for less\n");
        }
        text
    })
}

fn row(bot: &FoundBot) -> Vec<String> {
    let list = |words: Vec<&str>| if words.is_empty() { "-".to_owned() } else { words.join(",") };
    vec![
        bot.bot.to_string(),
        list(bot.roles.iter().map(|role| role.as_str()).collect()),
        list(bot.capabilities.iter().map(Name::as_str).collect()),
        if bot.messages { "yes" } else { "no" }.to_owned(),
        printable(&bot.description),
    ]
}

/// Profiles that a replica finds, each proved, and each looked at again: what does not match is left out.
async fn search(grid: &Grid, query: &BotQuery, limit: usize) -> Result<Found, GridError> {
    let asked = Query::Bots(query.clone());
    let mut bots: Vec<FoundBot> = Vec::new();
    let mut known = BTreeSet::new();
    let mut from = None;
    for _ in 0..PAGES {
        let page = grid.find(&asked, from.clone(), limit.saturating_sub(bots.len()), true).await?;
        for thing in page.things {
            let Record { id, body: Body::Profile(profile), height, .. } = thing.record else { continue };
            let bot = PublicKey(id.id.0);
            if id != RecordId::profile(&bot) || !query.matches_profile(&profile) || !known.insert(bot) {
                continue;
            }
            let Profile { name, roles, capabilities, encryption_key, description } = profile;
            let messages = encryption_key.is_some();
            bots.push(FoundBot { bot: name, id: bot, roles, capabilities, description, messages, height });
        }
        let ended = page.next.is_none() || page.next == from;
        if ended || bots.len() >= limit {
            let more = !ended || bots.len() > limit;
            bots.truncate(limit);
            return Ok(sorted(bots, more));
        }
        from = page.next;
    }
    Ok(sorted(bots, true))
}

fn sorted(mut bots: Vec<FoundBot>, more: bool) -> Found {
    bots.sort_by(|a, b| a.bot.cmp(&b.bot));
    Found { bots, more }
}
