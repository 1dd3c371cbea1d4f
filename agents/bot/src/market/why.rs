//! Why nothing could be had, for people: each node with its reason, an exit code that scripts can rely on, and what to do.

use croft_market::score::{Explain, NotTaken, Why};
use croft_market::{Exclusion, OrderFailure};
use croft_protocol::{Name, Rejection};

use crate::exit::{Exit, Failure};
use crate::terminal::{printable, push};

/// Nodes that are shown to a person; JSON has all.
pub(crate) const SHOWN: usize = 8;

#[derive(Debug, thiserror::Error)]
enum NothingHad {
    #[error("there is no node on grid '{grid}' yet: farmers add them with 'croft farm new'")]
    NoNodes { grid: Name },
    #[error("no node of grid '{grid}' can run '{name}':{reasons}")]
    NoFit { grid: Name, name: Name, reasons: String },
    #[error("none of the nodes that fit '{name}' could be had:{reasons}")]
    NotHad { name: Name, reasons: String },
    #[error("the ledger refuses '{name}' wherever it is placed")]
    Ledger { name: Name, source: Rejection },
    #[error("'{name}' was not ordered: nothing is paid, nothing is reserved")]
    Declined { name: Name },
    #[error(transparent)]
    Other(OrderFailure),
}

/// What a failed order says, and its exit code.
pub(crate) fn failure(name: Name, grid: &Name, failure: OrderFailure, explain: &Explain) -> Failure {
    let others = &explain.others;
    match failure {
        OrderFailure::NoFit { .. } if others.is_empty() => {
            Failure::not_found(NothingHad::NoNodes { grid: grid.clone() })
        }
        OrderFailure::NoFit { .. } => {
            let remedy = remedy(&name, others);
            let reasons = list(others);
            Failure::not_found(NothingHad::NoFit { grid: grid.clone(), name, reasons }).remedy(remedy)
        }
        OrderFailure::NoBid { .. } => {
            // Those that the ledger excludes were never asked.
            let asked: Vec<&NotTaken> = others.iter().filter(|other| !is_excluded(other)).collect();
            let all = |test: fn(&Why) -> bool| {
                !asked.is_empty() && asked.iter().all(|other| other.why.iter().any(test))
            };
            let (exit, remedy) = if all(|why| matches!(why, Why::Unreachable | Why::NoReply)) {
                let remedy = "try again in a moment, or ask the farms' owners to run 'croft farm serve'";
                (Exit::Unreachable, remedy)
            } else if all(|why| matches!(why, Why::TooDear { .. })) {
                (Exit::NotFound, "raise --max-price or max_price under [terms], or shorten duration")
            } else {
                (Exit::Refused, "ask for what the farms say they sell, or widen [placement]")
            };
            let reasons = list(others);
            Failure::new(exit, NothingHad::NotHad { name, reasons }).remedy(remedy)
        }
        OrderFailure::Ledger { source, .. } => Failure::refused(NothingHad::Ledger { name, source }),
        OrderFailure::Declined { .. } => Failure::failed(NothingHad::Declined { name }),
        other @ OrderFailure::Before { .. } => Failure::failed(NothingHad::Other(other)),
    }
}

fn is_excluded(other: &NotTaken) -> bool {
    other.why.iter().all(|why| matches!(why, Why::Ledger(_)))
}

fn remedy(name: &Name, others: &[NotTaken]) -> String {
    let every = |test: fn(&Exclusion) -> bool| {
        let has = |why: &Why| matches!(why, Why::Ledger(exclusion) if test(exclusion));
        others.iter().all(|other| other.why.iter().any(has))
    };
    if every(|r| matches!(r, Exclusion::Funds { .. })) {
        "top up the wallet: whoever has grains gives some with 'croft wallet send BOT GRAINS'".to_owned()
    } else if every(|r| matches!(r, Exclusion::TooDear { .. })) {
        "raise --max-price or max_price under [terms], or shorten duration".to_owned()
    } else if every(|r| matches!(r, Exclusion::Offline)) {
        "wait until a machine is back online: 'croft farm nodes --all' shows which are".to_owned()
    } else if every(|r| matches!(r, Exclusion::PortTaken { .. })) {
        "publish another port".to_owned()
    } else {
        format!(
            "ask for less, or widen [placement]; 'croft find' shows what is free, 'croft cost' what '{name}' needs"
        )
    }
}

/// Nodes with their reasons, one per line.
fn list(others: &[NotTaken]) -> String {
    let mut text = String::new();
    for other in others.iter().take(SHOWN) {
        push!(text, "\n  - {}", line(other));
    }
    if others.len() > SHOWN {
        push!(text, "\n  - and {} more nodes", others.len() - SHOWN);
    }
    text
}

/// One node with its reasons.
pub(crate) fn line(other: &NotTaken) -> String {
    let why: Vec<String> = other.why.iter().map(|why| printable(&why.to_string())).collect();
    format!("node '{}' of farm '{}': {}", other.name, other.farm_name, why.join("; "))
}
