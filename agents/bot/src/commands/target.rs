//! Finding the contract that somebody means: by its name, by owner and name, by its id or the beginning of it.

use croft_protocol::api::{ContractQuery, Phases, Query};
use croft_protocol::{ContractId, Kind, Name};

use super::{Acting, CommandError};
use crate::exit::Failure;
use crate::grid::Contract;
use crate::plan::ContractTarget;

/// Fewer digits of an id name too many things.
const PREFIX_DIGITS: usize = 6;

#[derive(Debug, thiserror::Error)]
enum TargetError {
    #[error("there is no contract {id} on grid '{grid}'")]
    NoId { id: ContractId, grid: Name },
    #[error("bot '{owner}' has no running contract '{name}' on grid '{grid}'")]
    NoName { owner: Name, name: Name, grid: Name },
    #[error(
        "no contract is meant by '{text}': name your own, or write OWNER/NAME, an id, or at least {PREFIX_DIGITS} digits of it"
    )]
    Nothing { text: String },
    #[error("'{text}' means several contracts: {}", ids.join(", "))]
    Several { text: String, ids: Vec<String> },
}

/// The contract that is meant; `near` are contracts that the command is about, found before any other of that name.
pub(super) async fn find(
    acting: &Acting,
    target: &ContractTarget,
    near: &[Contract],
) -> Result<Contract, Failure> {
    let grid = &acting.grid;
    let no_id = |id| Failure::not_found(TargetError::NoId { id, grid: grid.name().clone() });
    match target {
        ContractTarget::Id(id) => grid.contract(*id).await?.ok_or_else(|| no_id(*id)),
        ContractTarget::Of { owner, name } => {
            let bot = grid.bot_named(owner).await?.ok_or_else(|| {
                Failure::not_found(CommandError::NoBot { bot: owner.clone(), grid: grid.name().clone() })
            })?;
            let id = grid.contract_named(bot, name).await?.ok_or_else(|| {
                let (owner, name) = (owner.clone(), name.clone());
                Failure::not_found(TargetError::NoName { owner, name, grid: grid.name().clone() })
            })?;
            grid.contract(id).await?.ok_or_else(|| no_id(id))
        }
        ContractTarget::Text(text) => {
            let named = |c: &&Contract| c.body.signed.terms.name.as_str() == text;
            if let Some(contract) = only(text, near.iter().filter(named).cloned().collect())? {
                return Ok(contract);
            }
            if let Ok(name) = Name::new(text)
                && let Some(id) = grid.contract_named(acting.id(), &name).await?
            {
                return grid.contract(id).await?.ok_or_else(|| no_id(id));
            }
            by_prefix(acting, text, near).await
        }
    }
}

async fn by_prefix(acting: &Acting, text: &str, near: &[Contract]) -> Result<Contract, Failure> {
    let nothing = || {
        Failure::not_found(TargetError::Nothing { text: text.to_owned() })
            .remedy("'croft ps' lists your contracts, 'croft approvals' those that wait for you")
    };
    let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !digits || text.len() < PREFIX_DIGITS {
        return Err(nothing());
    }
    let begins = |id: &ContractId| id.to_string().starts_with(text);
    if let Some(contract) = only(text, near.iter().filter(|c| begins(&c.id)).cloned().collect())? {
        return Ok(contract);
    }
    let query = Query::Contracts(ContractQuery { phases: Phases::ALL, ..ContractQuery::default() });
    let found = acting.grid.find_unproved(&query).await?;
    let mut ids: Vec<ContractId> = found
        .into_iter()
        .filter(|id| id.kind == Kind::Contract)
        .map(|id| ContractId(id.id))
        .filter(|id| begins(id))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    only(text, acting.grid.contracts(&ids).await?)?.ok_or_else(nothing)
}

fn only(text: &str, mut found: Vec<Contract>) -> Result<Option<Contract>, Failure> {
    if found.len() > 1 {
        let ids = found.iter().take(8).map(|c| c.id.to_string()).collect();
        return Err(Failure::usage(TargetError::Several { text: text.to_owned(), ids }));
    }
    Ok(found.pop())
}
