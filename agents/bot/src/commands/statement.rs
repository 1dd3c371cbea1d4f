//! `croft wallet statement`: every change of a balance, with the record behind it, and whether they add up.
//!
//! ```text
//!   genesis, transfers, contracts (searched for, proved) ──> lines ──sum──> the balance that is proved
//!   contracts' reports (whole history, proved) ──the ledger's own sum──> pay, report by report
//! ```
//! A balance is proved, and so is each line; that no line is missing is shown by their sum alone. It must never call a
//! statement complete whose lines do not make the balance.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use croft_protocol::api::{ContractQuery, Phases, Query};
use croft_protocol::record::ReportBody;
use croft_protocol::{
    Body, BotId, ContractBody, ContractId, ContractState, Grains, Hash, Kind, Name, NodeId, Record, RecordId,
    ReservationBody, ReservationState, StateKey, faucet, limits,
};
use serde::Serialize;

use super::show::BotNames;
use super::{Acting, Context};
use crate::exit::Failure;
use crate::grid::{Contract, FOUND_LIMIT, Grid, GridError};
use crate::terminal::{printable, push, show_time, table};

/// How often the ledger is read again when the balance changes meanwhile.
const ATTEMPTS: usize = 3;
/// Commands of a bot whose records are looked at, its last ones: some eighty questions.
const SEQUENCES: u64 = 20_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    time_ms: u64,
    height: u64,
    what: &'static str,
    /// Negative where grains went away.
    amount: i128,
    /// The other bot, or the contract and the other bot.
    with: String,
    /// Hash of the record, or the chain id for the genesis.
    record: Hash,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    memo: Option<String>,
}

#[derive(Serialize)]
struct Sums {
    #[serde(rename = "in")]
    came: i128,
    #[serde(rename = "out")]
    went: i128,
}

#[derive(Serialize)]
struct Statement {
    bot: Name,
    id: BotId,
    tip_height: u64,
    balance: Grains,
    /// Before the first line.
    opening: i128,
    complete: bool,
    /// The balance less what the lines make.
    unexplained: i128,
    lines: Vec<Line>,
    sums: Sums,
    /// In the escrow of running contracts.
    held: Grains,
    #[serde(skip)]
    cut: bool,
}

pub(super) async fn statement(c: &mut Context<'_>, since_ms: Option<u64>) -> Result<(), Failure> {
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let mut statement = collect(&acting).await?;
    for _ in 1..ATTEMPTS {
        if statement.unexplained == 0 {
            break;
        }
        // Something happened between the first read and the last one, or something is missing.
        statement = collect(&acting).await?;
    }
    acting.grid.close().await;
    if let Some(since_ms) = since_ms {
        let (before, rest): (Vec<Line>, _) =
            statement.lines.into_iter().partition(|line| line.time_ms < since_ms);
        statement.opening = before.iter().map(|line| line.amount).sum();
        statement.lines = rest;
    }
    let sum = |pick: fn(&i128) -> bool| -> i128 {
        statement.lines.iter().map(|line| line.amount).filter(pick).sum()
    };
    statement.sums = Sums { came: sum(|amount| *amount > 0), went: sum(|amount| *amount < 0) };
    c.terminal.result(&statement, text)
}

async fn collect(acting: &Acting) -> Result<Statement, Failure> {
    let (grid, me) = (&acting.grid, acting.id());
    let mut names = BotNames::default();
    let (mut lines, mut cut) = (Vec::new(), false);
    genesis_line(grid, me, &mut lines).await?;
    cut |= transfers(grid, me, &mut names, &mut lines).await?;
    cut |= fundings(grid, me, &mut names, &mut lines).await?;
    cut |= reservations(grid, me, &mut names, &mut lines).await?;
    let mut held = 0_u64;
    let mut reports = BTreeMap::new();
    let (contracts, more) = contracts(grid, me).await?;
    cut |= more;
    for contract in &contracts {
        let terms = &contract.body.signed.terms;
        if terms.user == me {
            held = held.saturating_add(contract.escrow.held().0);
            let with = format!("'{}' of {}", terms.name, names.name(grid, terms.farmer).await?);
            spent(grid, contract, &with, &mut lines).await?;
        }
        if terms.farmer == me && contract.escrow.paid > Grains::ZERO {
            let with = format!("'{}' of {}", terms.name, names.name(grid, terms.user).await?);
            let reports = reports_of(grid, terms.node, &mut reports).await?;
            lines.extend(earned(contract, reports, &with));
        }
    }
    lines.sort_by_key(|line| (line.height, line.time_ms, line.record));
    let tip_height = grid.tip().await?.height();
    let balance = grid.account(me).await?.balance;
    let sum: i128 = lines.iter().map(|line| line.amount).sum();
    let unexplained = i128::from(balance.0) - sum;
    Ok(Statement {
        bot: acting.name.clone(),
        id: me,
        tip_height,
        balance,
        opening: 0,
        complete: unexplained == 0,
        unexplained,
        lines,
        sums: Sums { came: 0, went: 0 },
        held: Grains(held),
        cut,
    })
}

/// What the genesis gave; its hash is the chain that is pinned.
async fn genesis_line(grid: &Grid, me: BotId, lines: &mut Vec<Line>) -> Result<(), GridError> {
    let genesis = grid.genesis_unproved().await?;
    if genesis.chain_id() != grid.pin().chain {
        // A replica that tells of another genesis tells nothing; the sum will show it.
        return Ok(());
    }
    let given = genesis.allocations.iter().find(|allocation| allocation.bot == me);
    lines.extend(given.map(|allocation| Line {
        time_ms: genesis.time_ms,
        height: 0,
        what: "genesis",
        amount: i128::from(allocation.grains.0),
        with: genesis.name.to_string(),
        record: genesis.chain_id().0,
        kind: "genesis",
        memo: None,
    }));
    Ok(())
}

/// Whether the search was cut off.
async fn transfers(
    grid: &Grid,
    me: BotId,
    names: &mut BotNames,
    lines: &mut Vec<Line>,
) -> Result<bool, GridError> {
    let mut ids = grid.find_unproved(&Query::Transfers { of: me }).await?;
    let cut = ids.len() >= FOUND_LIMIT;
    ids.retain(|id| id.kind == Kind::Transfer);
    ids.sort_unstable();
    ids.dedup();
    let keys: Vec<StateKey> = ids.iter().map(|id| StateKey::Record(*id)).collect();
    for bytes in grid.get(&keys).await?.values.into_iter().flatten() {
        let record: Record =
            croft_protocol::decode("a transfer", &bytes, limits::RECORD_BYTES).map_err(|source| {
                GridError::Malformed { grid: grid.name().clone(), what: "a transfer", source }
            })?;
        let Body::Transfer(body) = &record.body else { continue };
        let amount = i128::from(body.amount.0);
        let (what, amount, other) = match (body.from == me, body.to == me) {
            (true, false) => ("sent", -amount, body.to),
            (false, true) if body.from == faucet::ACCOUNT => ("faucet", amount, body.from),
            (false, true) => ("received", amount, body.from),
            _ => continue,
        };
        let with = match what {
            "faucet" => "the faucet".to_owned(),
            _ => names.name(grid, other).await?,
        };
        let memo = (!body.memo.is_empty()).then(|| body.memo.clone());
        lines.push(line(&record, what, amount, &with, memo));
    }
    Ok(cut)
}

/// What the bot paid into contracts later, its own and others'. The ids follow from the author's sequence numbers, so
/// each one is proved to be there or not, and none can be held back. Whether there are too many to ask for.
async fn fundings(
    grid: &Grid,
    me: BotId,
    names: &mut BotNames,
    lines: &mut Vec<Line>,
) -> Result<bool, GridError> {
    let used = grid.account(me).await?.next_sequence;
    let asked = used.min(SEQUENCES);
    let keys: Vec<StateKey> =
        (used - asked..used).map(|sequence| StateKey::Record(RecordId::funding(&me, sequence))).collect();
    for bytes in grid.get(&keys).await?.values.into_iter().flatten() {
        let record: Record =
            croft_protocol::decode("a funding", &bytes, limits::RECORD_BYTES).map_err(|source| {
                GridError::Malformed { grid: grid.name().clone(), what: "a funding", source }
            })?;
        let Body::Funding(body) = &record.body else { continue };
        let with = match grid.contract(body.contract).await? {
            Some(contract) => {
                let terms = &contract.body.signed.terms;
                format!("'{}' of {}", terms.name, names.name(grid, terms.farmer).await?)
            }
            None => body.contract.0.short(),
        };
        lines.push(line(&record, "funding", -i128::from(body.amount.0), &with, None));
    }
    Ok(used > asked)
}

/// Fees of reservations: taken with the announcement, and then somebody's. Whether the search was cut off.
async fn reservations(
    grid: &Grid,
    me: BotId,
    names: &mut BotNames,
    lines: &mut Vec<Line>,
) -> Result<bool, GridError> {
    let mut ids = grid.find_unproved(&Query::Reservations { of: me }).await?;
    let cut = ids.len() >= FOUND_LIMIT;
    ids.retain(|id| id.kind == Kind::Reservation);
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let (_, versions) = grid.history(id).await?;
        for record in &versions {
            let Body::Reservation(body) = &record.body else { continue };
            let held = &body.signed.reservation;
            let other = if held.user == me { held.farmer } else { held.user };
            if held.fee == Grains::ZERO {
                continue;
            }
            let with = format!("{} of {}", held.contract.0.short(), names.name(grid, other).await?);
            for (what, amount) in fee_lines(me, body) {
                lines.push(line(record, what, amount, &with, None));
            }
        }
    }
    Ok(cut)
}

/// What one version of a reservation means for a bot's balance. Who is both user and farmer pays himself.
fn fee_lines(me: BotId, body: &ReservationBody) -> Vec<(&'static str, i128)> {
    let held = &body.signed.reservation;
    let fee = i128::from(held.fee.0);
    let lines = match body.state {
        ReservationState::Held => [(held.user, "reservation", -fee)],
        ReservationState::Claimed => [(held.farmer, "fee", fee)],
        ReservationState::Used | ReservationState::Withdrawn | ReservationState::Lapsed => {
            [(held.user, "fee back", fee)]
        }
    };
    lines.into_iter().filter(|(whose, ..)| *whose == me).map(|(_, what, amount)| (what, amount)).collect()
}

fn line(record: &Record, what: &'static str, amount: i128, with: &str, memo: Option<String>) -> Line {
    let kind = match record.id.kind {
        Kind::Contract => "contract",
        Kind::Report => "report",
        Kind::Funding => "funding",
        Kind::Reservation => "reservation",
        _ => "transfer",
    };
    let (time_ms, height) = (record.time_ms, record.height);
    Line { time_ms, height, what, amount, with: with.to_owned(), record: record.hash(), kind, memo }
}

/// All contracts that a bot has a part in, each once, and whether the search was cut off.
async fn contracts(grid: &Grid, me: BotId) -> Result<(Vec<Contract>, bool), GridError> {
    let all = ContractQuery { phases: Phases::ALL, ..ContractQuery::default() };
    let (mut ids, mut cut) = (Vec::new(), false);
    for query in
        [ContractQuery { user: Some(me), ..all.clone() }, ContractQuery { farmer: Some(me), ..all.clone() }]
    {
        let found = grid.find_unproved(&Query::Contracts(query)).await?;
        cut |= found.len() >= FOUND_LIMIT;
        ids.extend(found.into_iter().filter(|id| id.kind == Kind::Contract).map(|id| ContractId(id.id)));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok((grid.contracts(&ids).await?, cut))
}

/// What a user's contract took from the balance, and what it gave back.
async fn spent(grid: &Grid, contract: &Contract, with: &str, lines: &mut Vec<Line>) -> Result<(), GridError> {
    let (_, versions) = grid.history(RecordId::contract(&contract.id)).await?;
    let (Some(first), Some(last)) = (versions.first(), versions.last()) else { return Ok(()) };
    // What came later has records of its own.
    let deposit = contract.body.signed.terms.deposit().unwrap_or_default();
    if deposit > Grains::ZERO {
        lines.push(line(first, "deposit", -i128::from(deposit.0), with, None));
    }
    let ended = matches!(&last.body, Body::Contract(body) if matches!(body.state, ContractState::Ended(_)));
    if ended && contract.escrow.refunded > Grains::ZERO {
        lines.push(line(last, "refund", i128::from(contract.escrow.refunded.0), with, None));
    }
    Ok(())
}

async fn reports_of<'a>(
    grid: &Grid,
    node: NodeId,
    known: &'a mut BTreeMap<NodeId, Vec<Record>>,
) -> Result<&'a [Record], GridError> {
    let reports = match known.entry(node) {
        Entry::Occupied(reports) => reports.into_mut(),
        Entry::Vacant(place) => place.insert(grid.history(RecordId::report(&node)).await?.1),
    };
    Ok(reports.as_slice())
}

/// What a farmer's contract paid, report by report where the reports make what was paid, else in one line.
fn earned(contract: &Contract, reports: &[Record], with: &str) -> Vec<Line> {
    let mut pay = Pay::new(contract);
    let mut lines = Vec::new();
    for record in reports {
        let Body::Report(report) = &record.body else { continue };
        let due = pay.due(contract.id, record.time_ms, report);
        if due > 0 {
            lines.push(line(record, "pay", i128::from(due), with, None));
        }
    }
    if pay.paid == contract.escrow.paid.0 {
        return lines;
    }
    vec![line(&contract.record, "pay", i128::from(contract.escrow.paid.0), with, None)]
}

/// The ledger's sum of covered time, made anew (`agents/ledger`, reports and contracts).
struct Pay<'a> {
    body: &'a ContractBody,
    deposit: u64,
    expires_ms: u64,
    covered_ms: u64,
    covered_until_ms: u64,
    paid: u64,
}

impl<'a> Pay<'a> {
    fn new(contract: &'a Contract) -> Self {
        let body = &contract.body;
        Self {
            body,
            deposit: contract.escrow.deposit.0,
            expires_ms: body.expires_ms().unwrap_or(body.starts_ms),
            covered_ms: 0,
            covered_until_ms: body.starts_ms,
            paid: 0,
        }
    }

    /// What one report made due.
    fn due(&mut self, id: ContractId, at_ms: u64, report: &ReportBody) -> u64 {
        let body = self.body;
        let Some(told) = report.contracts.iter().find(|told| told.contract == id) else { return 0 };
        if body.starts_ms == 0 || at_ms < body.starts_ms {
            return 0;
        }
        // The final report comes after the end, and is about the time before it.
        let ended = body.ended_ms > 0 && at_ms > body.ended_ms;
        let last_ms = if ended { self.expires_ms.min(body.ended_ms) } else { self.expires_ms };
        let from_ms = report.from_ms.max(body.starts_ms).max(self.covered_until_ms);
        let until_ms = report.until_ms.min(last_ms);
        self.covered_ms += told.ran_ms.min(until_ms.saturating_sub(from_ms));
        self.covered_until_ms = self.covered_until_ms.max(until_ms);
        let owed = u128::from(body.signed.terms.rate.0) * u128::from(self.covered_ms) / 1000;
        let owed = u64::try_from(owed).unwrap_or(u64::MAX).min(self.deposit);
        let due = owed.saturating_sub(self.paid);
        self.paid += due;
        due
    }
}

/// `+1 250` or `-3`.
fn signed(amount: i128) -> String {
    let sign = if amount < 0 { "-" } else { "+" };
    let digits = Grains(u64::try_from(amount.unsigned_abs()).unwrap_or(u64::MAX)).to_string();
    format!("{sign}{}", digits.trim_end_matches(" grains"))
}

fn text(s: &Statement) -> String {
    let mut balance = s.opening;
    let mut rows = Vec::with_capacity(s.lines.len());
    for line in &s.lines {
        balance += line.amount;
        let memo = line.memo.as_deref().map(|memo| format!(" ({})", printable(memo))).unwrap_or_default();
        rows.push(vec![
            show_time(line.time_ms),
            line.height.to_string(),
            format!("{} {}{memo}", line.what, line.with),
            signed(line.amount),
            signed(balance),
            format!("{}:{}", line.kind, line.record.short()),
        ]);
    }
    let mut text = format!("bot '{}' has {}", s.bot, s.balance);
    if s.held > Grains::ZERO {
        push!(text, "; its running contracts hold {}", s.held);
    }
    push!(text, "\n\n{}\n", table(&["TIME", "BLOCK", "WHAT", "AMOUNT", "BALANCE", "RECORD"], &rows));
    if s.opening != 0 {
        push!(text, "opening balance {}; ", signed(s.opening));
    }
    push!(text, "in {}, out {}\n", signed(s.sums.came), signed(s.sums.went));
    if s.complete {
        text.push_str("these lines make the balance, to the grain\n");
    } else {
        push!(text, "NOT COMPLETE: {} are not explained by these lines; ", signed(s.unexplained));
        text.push_str(if s.cut {
            "a search shows two thousand of a kind, and twenty thousand commands are looked at\n"
        } else {
            "a replica may have held something back: try again, or ask another one\n"
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_a_sign_and_groups_of_three() {
        assert_eq!((signed(1_250_000).as_str(), signed(-3).as_str()), ("+1 250 000", "-3"));
    }
}
