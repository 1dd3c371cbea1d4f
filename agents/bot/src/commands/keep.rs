//! `croft keep`: runs a standing order until it is told otherwise.
//!
//! ```text
//!   ledger, presence ──facts──> standing::look ──> state on the disk ──> acts, one after the other ──> again
//! ```
//! What is decided is [`croft_market::standing`]; this asks, writes the state down before anything is done, and does it.
//! It must never act on a state that is not on the disk, nor beside another process that keeps the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use croft_market::standing::{Act, Facts, Seen, Standing};
use croft_protocol::api::{Concern, ContractQuery, Phases, Query};
use croft_protocol::{Command, ContractId, Grains, Kind, Name, NodeId};
use serde::Serialize;

use super::{Acting, Context, deploy, quorum};
use crate::deploy_file::Resolved;
use crate::exit::Failure;
use crate::flags::KeepFlags;
use crate::grid::{Contract, Grid, GridError, now_ms};
use crate::home::KeptOrder;
use crate::keep_file::{KeepFile, KeepFileError};
use crate::market::candidates::{Scope, candidates};
use crate::market::order::{self, Buyer, Limits};
use crate::terminal::show_time;

/// Between two looks when nothing is heard. Presence is not followed, so a node that goes is seen by then.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// After acts, to see what came of them.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// While the grid is out of reach.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("standing order '{name}' is kept by another process already: stop that one first")]
    Kept { name: Name },
    #[error(
        "the deploy file asks for {price} at most, the keep file for {limit}: name one limit, in the keep file"
    )]
    Limits { price: Grains, limit: Grains },
}

/// One line of the log.
#[derive(Serialize)]
struct Line<'a> {
    time_ms: u64,
    order: &'a Name,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contract: Option<ContractId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<Grains>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) async fn keep(c: &mut Context<'_>, flags: &KeepFlags) -> Result<(), Failure> {
    let file = KeepFile::read(&flags.file).map_err(file_failure)?;
    let mut resolved = deploy::read(c, &file.deploy)?;
    if !file.countries.is_empty() {
        resolved.placement.countries.clone_from(&file.countries);
    }
    let limit = file.wanted.max_price;
    if let Some(price) = resolved.terms.max_price.filter(|price| *price < limit.0) {
        return Err(Failure::usage(KeepError::Limits { price: Grains(price), limit }));
    }
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let order = c.home.standing_order(acting.grid.name(), &acting.name, &file.wanted.name)?;
    let Some(order) = order else {
        return Err(Failure::refused(KeepError::Kept { name: file.wanted.name.clone() }));
    };
    let mut keeper = Keeper { standing: order.read()?, file, resolved, order, said: BTreeMap::new() };
    keeper.say(c, "keeping", |_| {})?;
    let done = keeper.run(c, &acting, flags.once).await;
    acting.grid.close().await;
    done
}

fn file_failure(error: KeepFileError) -> Failure {
    match error {
        KeepFileError::Missing { .. } => Failure::not_found(error),
        KeepFileError::Read { .. } => Failure::failed(error),
        _ => Failure::usage(error),
    }
}

struct Keeper {
    file: KeepFile,
    resolved: Resolved,
    standing: Standing,
    order: KeptOrder,
    /// By slot: the last reason to wait, which is said once.
    said: BTreeMap<u32, String>,
}

impl Keeper {
    async fn run(&mut self, c: &mut Context<'_>, acting: &Acting, once: bool) -> Result<(), Failure> {
        loop {
            let pause = match self.pass(c, acting).await {
                Ok(true) => LOOK_SOON,
                Ok(false) => LOOK_EVERY,
                Err(failure) if once => return Err(failure),
                Err(failure) => {
                    self.say(c, "unreachable", |line| line.error = Some(failure.message()))?;
                    LOOK_AGAIN
                }
            };
            if once || self.rests(c, acting, pause).await {
                return self.say(c, "resting", |_| {});
            }
        }
    }

    /// Waits for news or for the time; `true` when it is asked to end.
    async fn rests(&self, c: &mut Context<'_>, acting: &Acting, pause: Duration) -> bool {
        let news = async {
            // Without news the time is enough.
            let Ok(mut following) = acting.grid.follow(vec![Concern::Bot(acting.id())]).await else {
                return std::future::pending::<()>().await;
            };
            while let Ok(followed) = following.next().await {
                use croft_transport::verified::Followed;
                if matches!(followed, Followed::Block { records, .. } if !records.is_empty()) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        let mut stop = c.stop.clone();
        tokio::select! {
            () = stop.wait() => true,
            () = tokio::time::sleep(pause) => false,
            () = news => false,
        }
    }

    /// Looks once and does what is to be done. Returns whether something was.
    async fn pass(&mut self, c: &mut Context<'_>, acting: &Acting) -> Result<bool, Failure> {
        let facts = self.facts(&acting.grid, acting).await?;
        let mut next = self.standing.clone();
        let acts = next.look(&self.file.wanted, &facts);
        self.write(next)?;
        let mut acted = false;
        for act in acts {
            if c.stop.is_due() {
                break;
            }
            if let Act::Wait { slot, reason } = &act {
                if self.said.insert(*slot, kind_of(reason)) != Some(kind_of(reason)) {
                    self.say(c, "waiting", |line| line.reason = Some(reason.as_str()))?;
                }
                continue;
            }
            acted = true;
            self.do_it(c, acting, &act).await?;
        }
        Ok(acted)
    }

    async fn do_it(&mut self, c: &mut Context<'_>, acting: &Acting, act: &Act) -> Result<(), Failure> {
        let submit = async |command: Command| {
            acting.grid.submit(&acting.key, &command).await.map(drop).map_err(Failure::from)
        };
        self.say_act(c, act, None)?;
        let done = match act {
            Act::Order { name, avoid, max_price, .. } => self.place(c, acting, name, avoid, *max_price).await,
            Act::Close { contract, .. } => submit(Command::Close { contract: *contract }).await,
            Act::Settle { contract, .. } => submit(Command::Settle { contract: *contract }).await,
            Act::Fund { contract, amount, .. } => {
                submit(Command::Fund { contract: *contract, amount: *amount }).await
            }
            Act::Wait { .. } => Ok(()),
        };
        let Err(failure) = done else { return Ok(()) };
        let mut next = self.standing.clone();
        next.failed(act, now_ms());
        self.write(next)?;
        self.say_act(c, act, Some(failure.message()))
    }

    async fn place(
        &self,
        c: &mut Context<'_>,
        acting: &Acting,
        name: &Name,
        avoid: &BTreeSet<NodeId>,
        max_price: Grains,
    ) -> Result<(), Failure> {
        let mut resolved = self.resolved.clone();
        resolved.name = name.clone();
        let mut avoid = avoid.clone();
        avoid.extend(self.elsewhere(acting, &resolved).await?);
        let quorum = quorum::resolve(&acting.grid, resolved.approval.as_ref()).await?;
        let limits = Limits { max_price: Some(max_price), avoid, quorum, ..Limits::default() };
        let home = c.home.clone();
        let buyer = Buyer { home: &home, name: &acting.name, key: &acting.key, grid: &acting.grid };
        // The limits are the owner's yes.
        order::place(&buyer, &resolved, &limits, &mut |_| true, &mut *c.progress()).await?;
        Ok(())
    }

    /// Nodes outside of the regions that are wanted.
    async fn elsewhere(&self, acting: &Acting, resolved: &Resolved) -> Result<Vec<NodeId>, Failure> {
        let regions = &self.file.regions;
        if regions.is_empty() {
            return Ok(Vec::new());
        }
        let demand = deploy::demand(acting, resolved, None).await?;
        let mut elsewhere = Vec::new();
        for offered in candidates(&acting.grid, &demand, Scope::All).await? {
            let farm = acting.grid.farm(offered.candidate.farm).await?;
            if !farm.and_then(|farm| farm.region).is_some_and(|region| regions.contains(&region)) {
                elsewhere.push(offered.candidate.node);
            }
        }
        Ok(elsewhere)
    }

    /// Durable before anything is done.
    fn write(&mut self, next: Standing) -> Result<(), Failure> {
        if next != self.standing {
            self.order.write(&next)?;
            self.standing = next;
        }
        Ok(())
    }

    /// Every running contract of this order, as far as a replica shows them, and those that the state knows; proved.
    async fn facts(&self, grid: &Grid, acting: &Acting) -> Result<Facts, GridError> {
        let user = Some(acting.id());
        let query =
            Query::Contracts(ContractQuery { user, phases: Phases::LIVE, ..ContractQuery::default() });
        let found = grid.find_unproved(&query).await?;
        let mut ids: Vec<ContractId> =
            found.into_iter().filter(|id| id.kind == Kind::Contract).map(|id| ContractId(id.id)).collect();
        ids.extend(self.standing.contracts());
        // What was ordered is found by its name, whatever the search shows.
        for name in self.standing.ordered() {
            ids.extend(grid.contract_named(acting.id(), name).await?);
        }
        ids.sort_unstable();
        ids.dedup();
        let mut contracts = grid.contracts(&ids).await?;
        let known: BTreeSet<ContractId> = self.standing.contracts().collect();
        contracts.retain(|contract| {
            let terms = &contract.body.signed.terms;
            let ours = terms.user == acting.id() && Standing::is_of(&self.file.wanted, &terms.name);
            ours && (contract.body.ended_ms == 0 || known.contains(&contract.id))
        });
        let nodes: Vec<NodeId> = contracts.iter().map(|c| c.body.signed.terms.node).collect();
        let present = grid.presence_unproved(&nodes).await?;
        let draining = grid.drained(&nodes).await?;
        let now_ms = now_ms();
        let seen = |((contract, present), draining): ((&Contract, &bool), &bool)| {
            seen(contract, (*present, *draining), now_ms)
        };
        Ok(Facts { now_ms, contracts: contracts.iter().zip(&present).zip(&draining).map(seen).collect() })
    }

    fn say<'a>(
        &'a self,
        c: &mut Context<'_>,
        event: &'static str,
        with: impl FnOnce(&mut Line<'a>),
    ) -> Result<(), Failure> {
        let mut line = line(&self.file.wanted.name, event);
        with(&mut line);
        c.terminal.item(&line, text)
    }

    fn say_act(&self, c: &mut Context<'_>, act: &Act, error: Option<String>) -> Result<(), Failure> {
        let mut line = line(&self.file.wanted.name, "failed");
        let (event, reason) = match act {
            Act::Order { name, reason, .. } => {
                line.name = Some(name);
                ("order", reason)
            }
            Act::Close { contract, reason } => {
                line.contract = Some(*contract);
                ("close", reason)
            }
            Act::Settle { contract, reason } => {
                line.contract = Some(*contract);
                ("settle", reason)
            }
            Act::Fund { contract, amount, reason } => {
                (line.contract, line.amount) = (Some(*contract), Some(*amount));
                ("fund", reason)
            }
            Act::Wait { reason, .. } => ("waiting", reason),
        };
        if error.is_none() {
            line.event = event;
        }
        line.reason = Some(reason.as_str());
        line.error = error;
        c.terminal.item(&line, text)
    }
}

fn line<'a>(order: &'a Name, event: &'static str) -> Line<'a> {
    Line {
        time_ms: now_ms(),
        order,
        event,
        name: None,
        contract: None,
        amount: None,
        reason: None,
        error: None,
    }
}

fn text(line: &Line<'_>) -> String {
    use crate::terminal::push;
    let mut text = format!("{}  '{}': {}", show_time(line.time_ms), line.order, line.event);
    if let Some(name) = line.name {
        push!(text, " '{name}'");
    }
    if let Some(contract) = line.contract {
        push!(text, " contract {}", contract.0.short());
    }
    if let Some(amount) = line.amount {
        push!(text, " with {amount}");
    }
    if let Some(reason) = line.reason {
        push!(text, ": {reason}");
    }
    if let Some(error) = &line.error {
        push!(text, ": {error}");
    }
    text
}

/// A reason without its numbers: what only counts down is said once.
fn kind_of(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn seen(contract: &Contract, (present, draining): (bool, bool), now_ms: u64) -> Seen {
    let Contract { id, body, escrow, .. } = contract;
    let terms = &body.signed.terms;
    let runs_ms = escrow.runs_ms(terms.rate);
    Seen {
        contract: *id,
        name: terms.name.clone(),
        node: terms.node,
        state: body.state,
        present,
        draining,
        starts_ms: body.starts_ms,
        covered_until_ms: escrow.covered_until_ms,
        expires_ms: body.expires_ms(),
        price: terms.price().unwrap_or(Grains(u64::MAX)),
        deposit: escrow.deposit,
        paid: escrow.paid,
        held: escrow.held(),
        // From now on, as if it had always run since what is covered.
        funded_ms: runs_ms.saturating_sub(now_ms.saturating_sub(escrow.covered_until_ms)),
        hour: terms.rate.for_seconds(3600).unwrap_or(Grains(u64::MAX)),
        missing_to_resume: body.missing_to_resume(escrow, now_ms),
        final_report_until_ms: body.final_report_until_ms(),
    }
}
