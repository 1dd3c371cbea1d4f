//! What a light client pays: the proof check alone, and a verified read over loopback.

use std::time::Duration;

use anyhow::{Context as _, Result};
use croft_light::{LightClient, verify_contract, verify_value};
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::contract::Quorum;
use croft_protocol::keys::Domain;
use croft_protocol::record::{HardwareSummary, NodeBody, TrustClass};
use croft_protocol::{
    Capacity, Command, ContractId, FarmId, Hash, NodeId, PriceList, Rate, RecordId, SignedTerms, StateKey,
    Terms,
};
use croft_transport::Client;
use tokio::time::Instant;

use crate::grid::{Author, Grid, key, name, now_ms};
use croft_it::report::{Limit, Row, Times};

/// A workload file of some length, sealed.
const SEALED_BYTES: usize = 2_000;
const PROOFS: usize = 1_000;

pub(crate) fn node_body(farm: FarmId, called: &str, capacity: Capacity, trust: TrustClass) -> NodeBody {
    NodeBody {
        farm,
        name: name(called),
        sealing_key: [7; 32],
        capacity,
        hardware: HardwareSummary::default(),
        trust,
        addresses: vec!["192.0.2.1".to_owned()],
        release: "0.1.0".to_owned(),
        session: 1,
        troubles: Vec::new(),
    }
}

/// A farm, a node and a contract on it.
async fn agree(grid: &Grid) -> Result<(NodeId, ContractId)> {
    let expires = grid.status(0).await?.height + 50_000;
    let person = |role| Author::new(key(role, 0), grid.chain(), expires);
    let (mut farmer, mut user, mut node) = (person("farmer"), person("user"), person("node"));
    let prices = PriceList { cpu: 10, memory_gib: 1, ssd_gib: 0, hdd_gib: 0 };
    let farm = FarmId::new(&farmer.public(), &name("light"));
    let create = Command::CreateFarm { name: name("light"), country: "be".to_owned(), region: None, prices };
    grid.submit(farmer.sign(create)).await?;
    let join = Join { farm, expires_ms: now_ms() + 3_600_000, nonce: [1; 16] };
    let signature = farmer.key().sign_as_bot(Domain::JOIN, &grid.chain(), &join);
    let capacity = Capacity { cpu_millis: 8_000, memory_bytes: 16 << 30, ..Capacity::default() };
    let body = node_body(farm, "n1", capacity, TrustClass::Plain);
    let register =
        Command::RegisterNode { node: body, join: Some(SignedJoin { join, signature }), attestation: None };
    grid.submit(node.sign(register)).await?;
    let terms = Terms {
        name: name("web"),
        user: user.public(),
        farmer: farmer.public(),
        farm,
        node: node.public(),
        resources: Capacity { cpu_millis: 1_000, memory_bytes: 1 << 30, ..Capacity::default() },
        ports: Vec::new(),
        rate: Rate(10),
        duration_s: 1_000,
        grace_s: 3_600,
        prepaid_s: None,
        capacity_version: 1,
        quorum: Quorum::default(),
        sealed: vec![5; SEALED_BYTES],
        expires_ms: now_ms() + 600_000,
        nonce: Hash::of_bytes(b"web").0[..16].try_into().context("a hash has 16 bytes")?,
    };
    let contract = terms.id();
    let sign = |who: &Author| who.key().sign_as_bot(Domain::TERMS, &grid.chain(), &terms);
    let (by_user, by_farmer) = (sign(&user), sign(&farmer));
    let signed = SignedTerms { terms, user: by_user, farmer: by_farmer };
    grid.submit(user.sign(Command::Agree(Box::new(signed)))).await?;
    Ok((node.public(), contract))
}

/// The rows of the light client, on a grid that is idle otherwise.
pub(crate) async fn rows(grid: &Grid, gets: usize) -> Result<Vec<Row>> {
    let (node, contract) = agree(grid).await?;
    let record = StateKey::Record(RecordId::contract(&contract));
    let pinned = LightClient::new(grid.chain(), grid.genesis().validators.hash());
    let (signed, values) = grid.control(0).get(vec![record.clone()]).await?.value;
    let mut checks = Vec::new();
    for _ in 0..PROOFS {
        let started = Instant::now();
        let tip = pinned.clone().accept_tip(&signed, Some(now_ms()))?;
        verify_contract(&tip, &node, &contract, &values[0])?.check_may_run()?;
        checks.push(started.elapsed());
    }
    let tip = pinned.clone().accept_tip(&signed, Some(now_ms()))?;
    let mut proofs = Vec::new();
    for _ in 0..PROOFS {
        let started = Instant::now();
        verify_value(&tip, &record, &values[0])?.context("the contract is there")?;
        proofs.push(started.elapsed());
    }
    // A client of its own: its connection is made by the first read, which does not count.
    let client = Client::new(&key("reader", 0), vec![grid.pins()[0].clone()])?;
    client.tip().await?;
    let mut reads = Vec::new();
    for _ in 0..gets {
        let started = Instant::now();
        let (signed, values) = client.get(vec![record.clone()]).await?.value;
        let tip = pinned.clone().accept_tip(&signed, Some(now_ms()))?;
        verify_contract(&tip, &node, &contract, &values[0])?;
        reads.push(started.elapsed());
    }
    client.close().await;
    Ok(vec![
        timed("contract proof check: certificate, state proof, both parties", checks)
            .limit(Limit::AtMost { budget: 1.0, goal: 0.5 }),
        timed("  of it the state proof alone", proofs),
        timed("verified get of a contract over loopback, p95", reads)
            .limit(Limit::AtMost { budget: 5.0, goal: 2.0 }),
    ])
}

/// A row of the 95th percentile.
fn timed(what: &str, times: Vec<Duration>) -> Row {
    let times = Times::new(times);
    Row::new(what, times.percentile_ms(95.0), "ms")
        .note(format!("p50 {:.3}, p99 {:.3} ms", times.percentile_ms(50.0), times.percentile_ms(99.0)))
        .details(times.json())
}
