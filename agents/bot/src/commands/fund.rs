//! `croft fund` and `croft settle`: money into a contract, and doing what time has made due.

use croft_protocol::{Command, ContractId, ContractState, Grains, Name};
use serde::Serialize;

use super::show::BotNames;
use super::{Context, show, target};
use crate::exit::Failure;
use crate::grid::{Contract, GridError, now_ms};
use crate::plan::ContractTarget;
use crate::terminal::{push, show_time};

#[derive(Serialize)]
struct Money {
    name: Name,
    contract: ContractId,
    owner: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    price: Option<Grains>,
    deposit: Grains,
    paid: Grains,
    held: Grains,
    refunded: Grains,
    /// If it runs all the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    funded_until_ms: Option<u64>,
    /// What a paused one needs to go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<Grains>,
    balance: Grains,
}

impl Money {
    async fn of(c: &super::Acting, contract: &Contract) -> Result<Self, GridError> {
        let (body, escrow) = (&contract.body, &contract.escrow);
        let terms = &body.signed.terms;
        Ok(Self {
            name: terms.name.clone(),
            contract: contract.id,
            owner: BotNames::default().name(&c.grid, terms.user).await?,
            state: show::state(body.state),
            reason: show::end_reason(body.state),
            price: terms.price(),
            deposit: escrow.deposit,
            paid: escrow.paid,
            held: escrow.held(),
            refunded: escrow.refunded,
            funded_until_ms: show::funded_until_ms(contract),
            missing: show::missing(contract),
            balance: c.grid.account(c.id()).await?.balance,
        })
    }
}

pub(super) async fn fund(
    c: &mut Context<'_>,
    contract: &ContractTarget,
    amount: Grains,
) -> Result<(), Failure> {
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let contract = target::find(&acting, contract, &[]).await?;
    acting.grid.submit(&acting.key, &Command::Fund { contract: contract.id, amount }).await?;
    let after = acting.grid.contract(contract.id).await?.unwrap_or(contract);
    let money = Money::of(&acting, &after).await?;
    acting.grid.close().await;
    c.terminal.result(&money, |m| {
        let mut text = format!("'{}' of {} got {amount}: {} in all\n", m.name, m.owner, m.deposit);
        match (m.missing, m.funded_until_ms) {
            (Some(missing), _) => push!(text, "  it is still paused: {missing} more resume it\n"),
            (None, Some(until)) => {
                push!(text, "  it is {}, and can run until {}\n", m.state, show_time(until))
            }
            (None, None) => push!(text, "  it is {}\n", m.state),
        }
        push!(text, "  wallet    {}\n", m.balance);
        text
    })
}

pub(super) async fn settle(c: &mut Context<'_>, contract: &ContractTarget) -> Result<(), Failure> {
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let before = target::find(&acting, contract, &[]).await?;
    acting.grid.submit(&acting.key, &Command::Settle { contract: before.id }).await?;
    let after = acting.grid.contract(before.id).await?.unwrap_or_else(|| before.clone());
    let money = Money::of(&acting, &after).await?;
    acting.grid.close().await;
    let changed = before.body.state != after.body.state || before.escrow != after.escrow;
    let until = after.body.final_report_until_ms().filter(|until| now_ms() < *until);
    c.terminal.result(&money, |m| {
        let mut text = format!(
            "'{}' of {} is {}{}\n",
            m.name,
            m.owner,
            show::state_cell(after.body.state),
            if changed { "" } else { ": nothing was due" }
        );
        if let (ContractState::Ended(_), Some(until)) = (after.body.state, until) {
            push!(text, "  {} wait for its node's final report until {}\n", m.held, show_time(until));
        }
        push!(text, "  paid {}, held {}, refunded {}\n", m.paid, m.held, m.refunded);
        text
    })
}
