//! Many authors submit transfers to a grid's replicas and insist until each is final. Runs in a network namespace of
//! its own; prints `acknowledged N` as it goes, and at the end what each author knows to be final.
//!
//! An author's commands are told from each other by their sequence numbers, so a command may be submitted again
//! wherever its fate is unknown: it becomes final once, or its number is found to be used, by itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use croft_it::load::{Held, Outcome, Plan, author, command, payee};
use croft_protocol::state::Account;
use croft_protocol::{Rejection, StateKey};
use croft_transport::{Client, ClientError};

/// For one command, whatever happens to the grid meanwhile.
const PATIENCE: Duration = Duration::from_secs(240);
/// Before a command is submitted again.
const PAUSE: Duration = Duration::from_millis(200);

#[tokio::main]
async fn main() -> Result<()> {
    const USAGE: &str = "usage: ledger_load submit|check PLAN.json";
    let mode = std::env::args().nth(1).context(USAGE)?;
    let path = std::env::args().nth(2).map(PathBuf::from).context(USAGE)?;
    let plan: Plan = serde_json::from_slice(&std::fs::read(&path)?)?;
    match mode.as_str() {
        "submit" => submit(Arc::new(plan)).await,
        "check" => check(&plan).await,
        _ => bail!(USAGE),
    }
}

/// What every replica holds, once all are level.
async fn check(plan: &Plan) -> Result<()> {
    let clients: Vec<Client> = plan
        .replicas
        .iter()
        .map(|replica| Client::new(&author(0), vec![replica.clone()]))
        .collect::<Result<_, _>>()?;
    let mut highest = 0;
    for client in &clients {
        highest = highest.max(client.tip().await?.value.header.height);
    }
    let mut held = Vec::new();
    for client in &clients {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while client.tip().await?.value.header.height < highest {
            ensure!(tokio::time::Instant::now() < deadline, "a replica does not come to height {highest}");
            tokio::time::sleep(PAUSE).await;
        }
        let header = client.header(highest).await?.value.header;
        let mut keys: Vec<StateKey> =
            (0..plan.authors).map(|index| StateKey::Account(author(index).public())).collect();
        keys.push(StateKey::Account(payee().public()));
        let (_, values) = client.get(keys).await?.value;
        let mut accounts = Vec::new();
        for value in values {
            accounts.push(match value.value {
                Some(bytes) => croft_protocol::decode("an account", &bytes, 1024)?,
                None => Account::default(),
            });
        }
        let payee = accounts.pop().context("the payee was asked for")?;
        let next_sequence = accounts.iter().map(|account| account.next_sequence).collect();
        let (time_ms, header) = (header.time_ms, header.hash());
        held.push(Held { header, time_ms, next_sequence, paid: payee.balance.0 });
    }
    println!("{}", serde_json::to_string(&held)?);
    Ok(())
}

async fn submit(plan: Arc<Plan>) -> Result<()> {
    let acknowledged = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..plan.authors)
        .map(|index| tokio::spawn(insist(plan.clone(), index, acknowledged.clone())))
        .collect();
    let mut outcome = Outcome { acknowledged: Vec::new(), found_later: 0 };
    for task in tasks {
        let (count, found_later) = task.await??;
        outcome.acknowledged.push(count);
        outcome.found_later += found_later;
    }
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// All commands of one author, one after the other.
async fn insist(plan: Arc<Plan>, index: u16, acknowledged: Arc<AtomicU64>) -> Result<(u64, u64)> {
    let key = author(index);
    let mut replicas = plan.replicas.clone();
    let first = usize::from(index) % replicas.len();
    replicas.rotate_left(first);
    let client = Client::new(&key, replicas)?;
    let mut found_later = 0;
    for sequence in 0..plan.commands {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match client.submit(command(&plan, &key, sequence)).await {
                Ok(_) => break,
                // It was final, and nobody could tell us.
                Err(ClientError::Rejected { rejection, .. }) if matches!(*rejection, Rejection::Sequence { expected, .. } if expected > sequence) =>
                {
                    found_later += 1;
                    break;
                }
                Err(error) if tokio::time::Instant::now() >= deadline => {
                    bail!("author {index}, command {sequence}: {error:#}")
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        let all = acknowledged.fetch_add(1, Ordering::Relaxed) + 1;
        if all.is_multiple_of(100) {
            println!("acknowledged {all}");
        }
    }
    client.close().await;
    Ok((plan.commands, found_later))
}
