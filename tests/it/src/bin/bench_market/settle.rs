//! The state machine alone: contracts settled per second, in full blocks, beside as many transfers.
//!
//! A block is executed again and again on one state, and its outcome thrown away: signatures, checks, payments and
//! records count, trees and disk do not.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use croft_it::report::{Row, Times};
use croft_ledger::memory::Scenario;
use croft_ledger::{BlockContext, StateReadExt, execute_block};
use croft_protocol::record::WorkloadState;
use croft_protocol::{Capacity, Command, ContractId, Grains, Rate, SignedCommand, limits};

/// As many as one node may have.
const CONTRACTS: usize = limits::CONTRACTS_PER_NODE;

pub(crate) fn rows(blocks: usize) -> Result<Vec<Row>> {
    let mut scenario = Scenario::new();
    let contracts = agree(&mut scenario)?;
    let start_ms = scenario.now_ms();
    let running: Vec<_> = contracts.iter().map(|id| (*id, WorkloadState::Running, 0)).collect();
    ensure!(scenario.report(start_ms, start_ms, running).is_ok(), "the node reports that all of them run");
    let user = scenario.user.clone();
    let of_user = |count: usize, command: &dyn Fn(usize) -> Command| -> Vec<SignedCommand> {
        (0..count).map(|i| scenario.ledger.sign_ahead(&user, command(i), i as u64)).collect()
    };
    let transfers = of_user(CONTRACTS, &|_| {
        let to = scenario.other.public();
        Command::Transfer { to, amount: Grains(1), memo: String::new() }
    });
    let settle = of_user(CONTRACTS, &|i| Command::Settle { contract: contracts[i] });
    // A minute of each one ran; then all of them are over.
    let (minute_ms, over_ms) = (start_ms + 60_000, start_ms + 2_000_000);
    let lines = contracts.iter().map(|id| (*id, WorkloadState::Running, 50_000)).collect();
    let report = scenario.report_body(start_ms, minute_ms, lines);
    let report = [scenario.ledger.sign(&scenario.node, Command::Report(report))];
    let transferred = execute(&scenario, minute_ms, &transfers, blocks)?;
    let reported = execute(&scenario, minute_ms, &report, blocks)?;
    let ended = execute(&scenario, over_ms, &settle, blocks)?;
    let base = per_second(&transferred);
    let row = |what: &str, times: &Times, note: &str| {
        Row::new(what, per_second(times), "contracts/s")
            .note(format!(
                "{note}; {:.2} of as many transfers, {base:.0}/s; {}",
                per_second(times) / base,
                times.show()
            ))
            .details(times.json())
    };
    Ok(vec![
        row(
            "settled on the state machine: ended by Settle",
            &ended,
            "each its own signed command, refunded, capacity freed",
        ),
        row(
            "settled on the state machine: paid by a report",
            &reported,
            "256 contracts in one signed report",
        ),
    ])
}

/// As many small contracts as a node and a wallet take.
fn agree(scenario: &mut Scenario) -> Result<Vec<ContractId>> {
    let mut contracts = Vec::with_capacity(CONTRACTS);
    for number in 0..CONTRACTS {
        let mut terms = scenario.terms(&format!("c{number}"));
        terms.resources = Capacity { cpu_millis: 10, memory_bytes: 16 << 20, ..Capacity::default() };
        terms.rate = Rate(1);
        contracts.push(scenario.agree(terms)?);
    }
    Ok(contracts)
}

fn execute(scenario: &Scenario, time_ms: u64, commands: &[SignedCommand], blocks: usize) -> Result<Times> {
    let header = &scenario.ledger.tip().header;
    let ctx = BlockContext::after(header, time_ms.max(header.time_ms + 1));
    let mut times = Vec::with_capacity(blocks);
    for _ in 0..blocks.max(1) {
        let started = Instant::now();
        let outcome = execute_block(&scenario.ledger, ctx, commands)?;
        times.push(started.elapsed());
        let refused = outcome.results.iter().find_map(|result| result.as_ref().err());
        ensure!(refused.is_none(), "a command of the bench was refused: {refused:?}");
    }
    ensure!(scenario.ledger.account(&scenario.user.public()).is_ok(), "the state can be read");
    Ok(Times::new(times))
}

/// Contracts, by the median block.
fn per_second(times: &Times) -> f64 {
    let median = Duration::from_secs_f64(times.percentile_ms(50.0) / 1e3);
    CONTRACTS as f64 / median.as_secs_f64()
}
