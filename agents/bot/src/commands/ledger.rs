//! `croft ledger get`, `log` and `history`: records of the ledger, each with its proof.

mod query;
mod verify;

use croft_protocol::{Body, Hash, Kind, PublicKey, Record, RecordId, StateKey, limits};
use serde::Serialize;

use super::show::BotNames;
use super::{Context, history};
use crate::exit::Failure;
use crate::grid::{Grid, GridError};
use crate::plan::{LedgerAction, Thing};
use crate::terminal::{printable, push, show_time};

#[derive(Debug, thiserror::Error)]
enum LedgerError {
    #[error("it is proved that there is no {what} on grid '{grid}' at block {height}")]
    Nothing { what: String, grid: croft_protocol::Name, height: u64 },
    #[error("the log has {size} records, from 0 on: there is none at {from} yet")]
    PastEnd { from: u64, size: u64 },
}

pub(super) async fn ledger(c: &mut Context<'_>, action: LedgerAction) -> Result<(), Failure> {
    match action {
        LedgerAction::Get(thing) => get(c, &thing).await,
        LedgerAction::Log { from, count, follow } => log(c, from, count, follow).await,
        LedgerAction::History(thing) => history::history(c, &thing).await,
        LedgerAction::Query(plan) => query::query(c, plan).await,
        LedgerAction::Verify { path } => verify::verify(c, &path),
    }
}

#[derive(Serialize)]
struct GetView {
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    id: Hash,
    /// Always true: what can't be proved is an error.
    proved: bool,
    tip_height: u64,
    tip_time_ms: u64,
    version: u64,
    height: u64,
    time_ms: u64,
    author: PublicKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    author_name: Option<String>,
    prev: Option<Hash>,
    hash: Hash,
    body: Body,
}

async fn get(c: &mut Context<'_>, thing: &Thing) -> Result<(), Failure> {
    let (grid, id, name) = history::find(c, thing).await?;
    let proved = grid.get(&[StateKey::Record(id)]).await?;
    let Some(bytes) = proved.values.into_iter().next().flatten() else {
        let what = name.unwrap_or_else(|| format!("{:?} {}", id.kind, id.id).to_lowercase());
        let (grid, height) = (grid.name().clone(), proved.tip.height());
        return Err(Failure::not_found(LedgerError::Nothing { what, grid, height }));
    };
    let hash = Hash::of_bytes(&bytes);
    let malformed = |source| GridError::Malformed { grid: grid.name().clone(), what: "a record", source };
    let record: Record =
        croft_protocol::decode("a record", &bytes, limits::RECORD_BYTES).map_err(malformed)?;
    let author_name = author_name(&mut BotNames::default(), &grid, &record).await?;
    grid.close().await;
    let Record { version, prev, body, author, height, time_ms, .. } = record;
    let view = GetView {
        kind: id.kind,
        name,
        id: id.id,
        proved: true,
        tip_height: proved.tip.height(),
        tip_time_ms: proved.tip.time_ms(),
        version,
        height,
        time_ms,
        author,
        author_name,
        prev,
        hash,
        body,
    };
    c.terminal.result(&view, get_text)
}

fn get_text(v: &GetView) -> String {
    let what = v.name.clone().unwrap_or_else(|| format!("{:?}", v.kind).to_lowercase());
    let author = v.author_name.clone().unwrap_or_else(|| v.author.to_string());
    let mut text = format!("{}\n", printable(&what));
    push!(text, "  id          {}\n", v.id);
    push!(
        text,
        "  proof       the latest version as of block {} ({})\n",
        v.tip_height,
        show_time(v.tip_time_ms)
    );
    push!(text, "  version     {}\n", v.version);
    push!(text, "  block       {} ({})\n", v.height, show_time(v.time_ms));
    push!(text, "  author      {}\n", printable(&author));
    push!(text, "  hash        {}\n", v.hash);
    push!(text, "  supersedes  {}\n", v.prev.map_or_else(|| "nothing".to_owned(), |prev| prev.to_string()));
    if let Ok(body) = serde_json::to_string_pretty(&v.body) {
        // serde_json escapes control characters, so what strangers wrote can't move the cursor.
        text.push_str(&body);
        text.push('\n');
    }
    text
}

/// The bot who signed the command of a record; nodes have no name of their own.
pub(super) async fn author_name(
    names: &mut BotNames,
    grid: &Grid,
    record: &Record,
) -> Result<Option<String>, GridError> {
    match (&record.body, record.author.0 == [0; 32]) {
        (_, true) => Ok(Some("genesis".to_owned())),
        (Body::Report(_) | Body::Node(_), _) => Ok(None),
        _ => names.registered(grid, record.author).await,
    }
}

#[derive(Serialize)]
struct LogItem {
    position: u64,
    height: u64,
    time_ms: u64,
    kind: Kind,
    id: Hash,
    version: u64,
    author: PublicKey,
    prev: Option<Hash>,
    hash: Hash,
    what: String,
    body: Body,
}

fn item(position: u64, record: Record) -> LogItem {
    let hash = record.hash();
    let Record { id: RecordId { kind, id }, version, prev, body, author, height, time_ms } = record;
    let what = history::what(&body, None);
    LogItem { position, height, time_ms, kind, id, version, author, prev, hash, what, body }
}

fn item_text(i: &LogItem) -> String {
    let kind = format!("{:?}", i.kind).to_lowercase();
    format!(
        "{:<7} block {:<7} {}  {kind:<10} {}  v{:<4} {}",
        i.position,
        i.height,
        show_time(i.time_ms),
        i.id.short(),
        i.version,
        i.what
    )
}

async fn log(c: &mut Context<'_>, from: Option<u64>, count: u64, follow: bool) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let size = grid.tip().await?.header().log_size;
    let mut at = from.unwrap_or_else(|| size.saturating_sub(count));
    if at > size || (at == size && !follow && from.is_some()) {
        return Err(Failure::not_found(LedgerError::PastEnd { from: at, size }));
    }
    // Opened before the last page is read, so that nothing falls between.
    let mut news = if follow { Some(grid.follow(Vec::new()).await?) } else { None };
    let mut end = size.min(at.saturating_add(count));
    loop {
        while at < end {
            let page = (end - at).min(limits::RECORDS_PER_PAGE as u64);
            let (_, records) = tokio::select! {
                () = c.stop.wait() => return Ok(()),
                page = grid.log(at, u32::try_from(page).unwrap_or(1)) => page?,
            };
            if records.is_empty() {
                // This replica is behind the one that told of them; the next block wakes us again.
                break;
            }
            for record in records {
                c.terminal.item(&item(at, record), item_text)?;
                at += 1;
            }
        }
        let Some(stream) = &mut news else { break };
        tokio::select! {
            () = c.stop.wait() => break,
            event = stream.next() => if event.is_err() {
                // The replica went away: another takes over, and nothing is lost since the log has positions.
                news = Some(grid.follow(Vec::new()).await?);
            },
        }
        end = grid.tip().await?.header().log_size;
    }
    grid.close().await;
    Ok(())
}
