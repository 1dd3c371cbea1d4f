//! Finding a bot's contracts: searched for where a search is enough, proved always.

use croft_protocol::api::{ContractQuery, Phases, Query};
use croft_protocol::record::WorkloadState;
use croft_protocol::{Body, BotId, ContractId, Kind, Name, Record, RecordId};
use serde::Serialize;

use super::{Acting, CommandError};
use crate::exit::Failure;
use crate::grid::{Contract, Grid, GridError};

/// A user's contracts, running ones first, newest first. A replica may hide some; none is made up.
pub(super) async fn of_user(acting: &Acting, ended: bool) -> Result<Vec<Contract>, GridError> {
    let me = acting.id();
    let phases = if ended { Phases::ALL } else { Phases::LIVE };
    let query = Query::Contracts(ContractQuery { user: Some(me), phases, ..ContractQuery::default() });
    let mut ids: Vec<ContractId> = acting
        .grid
        .find_unproved(&query)
        .await?
        .into_iter()
        .filter(|id| id.kind == Kind::Contract)
        .map(|id| ContractId(id.id))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let mut contracts = acting.grid.contracts(&ids).await?;
    contracts.retain(|c| c.body.signed.terms.user == me && (ended || c.body.ended_ms == 0));
    contracts.sort_by_key(|c| (c.body.ended_ms > 0, std::cmp::Reverse(c.body.agreed_ms), c.id));
    Ok(contracts)
}

/// The running contract of this name; `None` is proved.
pub(super) async fn running(grid: &Grid, user: BotId, name: &Name) -> Result<Option<Contract>, GridError> {
    match grid.contract_named(user, name).await? {
        Some(id) => grid.contract(id).await,
        None => Ok(None),
    }
}

/// The running contract of this name, else the one that ended last.
pub(super) async fn any(acting: &Acting, name: &Name) -> Result<Contract, Failure> {
    if let Some(contract) = running(&acting.grid, acting.id(), name).await? {
        return Ok(contract);
    }
    let all = of_user(acting, true).await?;
    all.into_iter()
        .filter(|c| c.body.signed.terms.name == *name)
        .max_by_key(|c| c.body.ended_ms)
        .ok_or_else(|| no_contract(acting, name))
}

/// What the node last reported of a contract, as the ledger has it.
#[derive(Debug, Serialize)]
pub(super) struct ReportView {
    pub(super) state: WorkloadState,
    pub(super) detail: String,
    pub(super) height: u64,
    pub(super) time_ms: u64,
    pub(super) ran_ms: u64,
}

/// Its line in the node's latest report, if there is one.
pub(super) async fn last_report(grid: &Grid, contract: &Contract) -> Result<Option<ReportView>, GridError> {
    let id = RecordId::report(&contract.body.signed.terms.node);
    let Some(Record { body: Body::Report(report), height, time_ms, .. }) = grid.record(id).await? else {
        return Ok(None);
    };
    Ok(report.contracts.into_iter().find(|r| r.contract == contract.id).map(|r| ReportView {
        state: r.state,
        detail: r.detail,
        height,
        time_ms,
        ran_ms: r.ran_ms,
    }))
}

pub(super) fn no_contract(acting: &Acting, name: &Name) -> Failure {
    Failure::not_found(CommandError::NoContract {
        contract: name.clone(),
        bot: acting.name.clone(),
        grid: acting.grid.name().clone(),
    })
}
