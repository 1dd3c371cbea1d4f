//! `croft wallet`: what there is, what contracts hold, and giving some away.

use croft_protocol::api::Query;
use croft_protocol::{Body, BotId, Command, Grains, Kind, Name, Record, RecordId, StateKey, limits};
use serde::Serialize;

use super::show::BotNames;
use super::{Acting, CommandError, Context, contracts};
use crate::exit::Failure;
use crate::grid::GridError;
use crate::terminal::{printable, push, show_time, table};

/// The latest transfers that are shown.
const TRANSFERS: usize = 100;

#[derive(Serialize)]
struct Wallet {
    bot: Name,
    id: BotId,
    balance: Grains,
    /// In the escrow of running contracts.
    held: Grains,
    /// Latest first.
    transfers: Vec<Transfer>,
}

#[derive(Serialize)]
struct Transfer {
    height: u64,
    time_ms: u64,
    from: String,
    to: String,
    amount: Grains,
    memo: String,
}

pub(super) async fn show(c: &mut Context<'_>) -> Result<(), Failure> {
    let acting = c.acting()?;
    let balance = acting.grid.account(acting.id()).await?.balance;
    let running = contracts::of_user(&acting, false).await?;
    let held = running.iter().map(|contract| contract.escrow.held().0).fold(0, u64::saturating_add);
    let transfers = transfers(&acting).await?;
    acting.grid.close().await;
    let wallet = Wallet { bot: acting.name.clone(), id: acting.id(), balance, held: Grains(held), transfers };
    c.terminal.result(&wallet, |w| {
        let mut text = format!("bot '{}' has {}", w.bot, w.balance);
        if w.held > Grains::ZERO {
            push!(text, "; its running contracts hold {}", w.held);
        }
        text.push('\n');
        if !w.transfers.is_empty() {
            let rows: Vec<Vec<String>> = w.transfers.iter().map(row).collect();
            text.push('\n');
            text.push_str(&table(&["TIME", "FROM", "TO", "AMOUNT", "MEMO"], &rows));
        }
        text
    })
}

fn row(t: &Transfer) -> Vec<String> {
    vec![show_time(t.time_ms), t.from.clone(), t.to.clone(), t.amount.to_string(), printable(&t.memo)]
}

/// Transfers that a replica finds, each proved to be on the ledger.
async fn transfers(acting: &Acting) -> Result<Vec<Transfer>, GridError> {
    let me = acting.id();
    let mut ids = acting.grid.find_unproved(&Query::Transfers { of: me }).await?;
    ids.retain(|id| id.kind == Kind::Transfer);
    ids.dedup();
    let keys: Vec<StateKey> = ids.iter().map(|id| StateKey::Record(*id)).collect();
    let proved = acting.grid.get(&keys).await?;
    let mut names = BotNames::default();
    let mut transfers = Vec::new();
    for bytes in proved.values.into_iter().flatten() {
        let record: Record =
            croft_protocol::decode("a transfer", &bytes, limits::RECORD_BYTES).map_err(|source| {
                GridError::Malformed { grid: acting.grid.name().clone(), what: "a transfer", source }
            })?;
        let Body::Transfer(body) = record.body else { continue };
        if body.from != me && body.to != me {
            continue;
        }
        transfers.push((record.height, record.time_ms, body));
    }
    transfers.sort_by_key(|(height, time_ms, _)| std::cmp::Reverse((*height, *time_ms)));
    transfers.truncate(TRANSFERS);
    let mut shown = Vec::with_capacity(transfers.len());
    for (height, time_ms, body) in transfers {
        shown.push(Transfer {
            height,
            time_ms,
            from: match body.from {
                croft_protocol::faucet::ACCOUNT => "the faucet".to_owned(),
                from => names.name(&acting.grid, from).await?,
            },
            to: names.name(&acting.grid, body.to).await?,
            amount: body.amount,
            memo: body.memo,
        });
    }
    Ok(shown)
}

#[derive(Serialize)]
struct Sent {
    from: Name,
    to: Name,
    amount: Grains,
    memo: String,
    height: u64,
    balance: Grains,
}

pub(super) async fn send(
    c: &mut Context<'_>,
    to: &Name,
    amount: Grains,
    memo: String,
) -> Result<(), Failure> {
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let Some(receiver) = acting.grid.bot_named(to).await? else {
        let error = CommandError::NoBot { bot: to.clone(), grid: acting.grid.name().clone() };
        return Err(Failure::not_found(error));
    };
    let command = Command::Transfer { to: receiver, amount, memo: memo.clone() };
    let done = acting.grid.submit(&acting.key, &command).await?;
    // The record itself says whether it was this transfer that used the number.
    let record = acting.grid.record(RecordId::transfer(&acting.id(), done.sequence)).await?;
    let height = match record {
        Some(Record { body: Body::Transfer(body), height, .. })
            if body.to == receiver && body.amount == amount =>
        {
            height
        }
        _ => return Err(GridError::OutcomeUnknown { grid: acting.grid.name().clone() }.into()),
    };
    let balance = acting.grid.account(acting.id()).await?.balance;
    acting.grid.close().await;
    let sent = Sent { from: acting.name.clone(), to: to.clone(), amount, memo, height, balance };
    c.terminal.result(&sent, |s| {
        format!(
            "'{}' gave {} to '{}' in block {}; it has {} left\n",
            s.from, s.amount, s.to, s.height, s.balance
        )
    })
}

#[derive(Serialize)]
struct Claimed {
    bot: Name,
    amount: Grains,
    balance: Grains,
    height: u64,
}

/// Grains of a test grid, for whoever asks.
pub(super) async fn faucet(c: &mut Context<'_>) -> Result<(), Failure> {
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let done = acting.grid.submit(&acting.key, &Command::ClaimFaucet).await?;
    let record = acting.grid.record(RecordId::transfer(&acting.id(), done.sequence)).await?;
    let Some(Record { body: Body::Transfer(body), height, .. }) = record else {
        return Err(GridError::OutcomeUnknown { grid: acting.grid.name().clone() }.into());
    };
    let balance = acting.grid.account(acting.id()).await?.balance;
    acting.grid.close().await;
    let claimed = Claimed { bot: acting.name.clone(), amount: body.amount, balance, height };
    c.terminal.result(&claimed, |claimed| {
        format!("the faucet gave {} to '{}'; it has {}\n", claimed.amount, claimed.bot, claimed.balance)
    })
}
