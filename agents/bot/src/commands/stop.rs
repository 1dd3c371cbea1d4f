//! `croft stop`: ends a contract and shows what came back.

use croft_protocol::{Command, ContractId, ContractState, Grains, Name};
use serde::Serialize;

use super::{Context, contracts, show};
use crate::exit::Failure;
use crate::grid::GridError;
use crate::terminal::{push, show_time};

#[derive(Serialize)]
struct Stopped {
    name: Name,
    contract: ContractId,
    state: &'static str,
    reason: Option<&'static str>,
    height: u64,
    price: Option<Grains>,
    paid: Grains,
    /// For what the node's final report may claim.
    held: Grains,
    refunded: Grains,
    balance: Grains,
    data_kept_until_ms: Option<u64>,
    /// While something is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    final_report_until_ms: Option<u64>,
}

pub(super) async fn stop(c: &mut Context<'_>, name: &Name) -> Result<(), Failure> {
    let acting = c.acting()?;
    let Some(running) = contracts::running(&acting.grid, acting.id(), name).await? else {
        return Err(contracts::no_contract(&acting, name)
            .remedy("it may have ended already: 'croft ps --all' shows ended ones"));
    };
    // Final means that a block carries it: the ledger has refunded in the same step what no final report can claim.
    acting.grid.submit(&acting.key, &Command::Close { contract: running.id }).await?;
    let ended = acting.grid.contract(running.id).await?;
    let Some(ended) = ended.filter(|e| matches!(e.body.state, ContractState::Ended(_))) else {
        return Err(GridError::OutcomeUnknown { grid: acting.grid.name().clone() }.into());
    };
    let balance = acting.grid.account(acting.id()).await?.balance;
    acting.grid.close().await;
    let stopped = Stopped {
        name: name.clone(),
        contract: ended.id,
        state: show::state(ended.body.state),
        reason: show::end_reason(ended.body.state),
        height: ended.record.height,
        price: ended.body.signed.terms.price(),
        paid: ended.escrow.paid,
        held: ended.escrow.held(),
        refunded: ended.escrow.refunded,
        balance,
        data_kept_until_ms: ended.body.data_kept_until_ms(),
        final_report_until_ms: ended
            .body
            .final_report_until_ms()
            .filter(|_| ended.escrow.held() > Grains::ZERO),
    };
    c.terminal.result(&stopped, |s| {
        let mut text = format!(
            "'{}' ended in block {} ({})\n  paid      {}\n  refunded  {}\n  wallet    {}\n",
            s.name,
            s.height,
            s.reason.unwrap_or("ended"),
            s.paid,
            s.refunded,
            s.balance
        );
        if let Some(until) = s.final_report_until_ms {
            push!(
                text,
                "  {} wait for the node's final report, until {} at most; 'croft settle' then refunds the rest\n",
                s.held,
                show_time(until)
            );
        }
        if let Some(until) = s.data_kept_until_ms {
            push!(text, "  its volumes are kept until {}\n", show_time(until));
        }
        text
    })
}
