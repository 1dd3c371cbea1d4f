//! Searching, agreeing and idling, as people have it: programs of their own, a replica, loopback.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use croft_it::report::{Limit, Report, Row, Times};
use croft_it::{measure, oci};
use croft_protocol::api::{NodeQuery, Query};
use croft_protocol::{Capacity, Grains, SecretKey};
use croft_transport::Client;

use crate::Plan;
use crate::town::{ALIVE, COUNTRIES, Town};

/// Things in a page that is asked for.
const PAGE: u32 = 32;
const DEPLOY: &str = "\
[vm.main]
image = \"nginx\"
cpu = \"0.1\"
memory = \"64M\"
[terms]
duration = \"1h\"
[placement]
";

pub(crate) async fn measure(plan: &Plan, dir: &Path, report: &mut Report) -> Result<()> {
    eprintln!("bench: {} nodes register", plan.nodes);
    let started = Instant::now();
    let town = Town::build(&dir.join("town"), plan.nodes).await?;
    let per_second = plan.nodes as f64 / started.elapsed().as_secs_f64();
    report.circumstance("registering", format!("{per_second:.0} nodes/s, with everybody's start"));
    if plan.has("idle") {
        report.part("idle bots", idle(&town, plan.idle_s).await);
    }
    if plan.has("search") {
        report.part("search", search(&town, plan).await);
    }
    if plan.has("agree") {
        report.part("agreeing", agree(&town, plan.deals).await);
    }
    town.end().await
}

/// What a user's bot asks for: from what nearly all offer to what hardly anybody or nobody does.
fn wish(number: usize) -> NodeQuery {
    let country = || Some(COUNTRIES[number % COUNTRIES.len()].to_owned());
    let free = |cpu: u64, memory_gib: u64| Capacity {
        cpu_millis: cpu * 1_000,
        memory_bytes: memory_gib << 30,
        ..Capacity::default()
    };
    match number % 5 {
        0 => NodeQuery { free: free(1, 1), ..NodeQuery::default() },
        1 => NodeQuery { country: country(), free: free(4, 8), ..NodeQuery::default() },
        2 => NodeQuery { country: country(), free: free(32, 64), ..NodeQuery::default() },
        3 => NodeQuery { max_per_hour: Some(Grains(110_000)), free: free(2, 4), ..NodeQuery::default() },
        // More than any has.
        _ => NodeQuery { country: country(), free: free(64, 1_000), ..NodeQuery::default() },
    }
}

/// A page of the replica's index over QUIC; and a whole `croft find`, which proves what it shows.
async fn search(town: &Town, plan: &Plan) -> Result<Vec<Row>> {
    let client = Client::new(&SecretKey::generate()?, town.boot.grid.replicas.clone())?;
    let (mut times, mut found) = (Vec::with_capacity(plan.searches), 0);
    for number in 0..plan.searches {
        let query = Query::Nodes(wish(number));
        let started = Instant::now();
        let page = client.query(query, None, PAGE).await?.value;
        times.push(started.elapsed());
        found += page.records.len();
    }
    client.close().await;
    ensure!(found > 0, "no search found any of {} nodes", plan.nodes);
    let times = Times::new(times);
    let mut finds = Vec::with_capacity(plan.finds);
    for country in COUNTRIES.into_iter().cycle().take(plan.finds) {
        let started = Instant::now();
        town.grid.croft(["find", "--country", country, "--cpu", "2", "--memory", "4G"]).await?;
        finds.push(started.elapsed());
    }
    let finds = Times::new(finds);
    Ok(vec![
        Row::new(format!("search over {} nodes, p95", plan.nodes), times.percentile_ms(95.0), "ms")
            .limit(Limit::AtMost { budget: 50.0, goal: 10.0 })
            .note(times.show())
            .details(times.json()),
        Row::new("croft find, from start to end, p50", finds.percentile_ms(50.0), "ms")
            .note(format!("512 nodes at most are looked at, each proved; {}", finds.show()))
            .details(finds.json()),
    ])
}

/// A farmer's bot hears so many of one user in a minute and no more (`desk::KNOWN_PER_PEER`, `desk::OPEN_PER_PEER`).
const DEALS_PER_BUYER: usize = 16;

/// From the start of `croft deploy` to a contract that both signed and the ledger has.
async fn agree(town: &Town, deals: usize) -> Result<Vec<Row>> {
    let grid = &town.grid;
    let layout = oci::nginx_layout(&oci::cache())?;
    let source = format!("{}:{}", layout.display(), oci::TAG);
    grid.croft(["image", "build", &source, "--name", "nginx"]).await?;
    let mut times = Vec::with_capacity(deals);
    let mut buyer = String::new();
    // The first one brings the image too, and is not counted.
    for number in 0..=deals {
        if number.is_multiple_of(DEALS_PER_BUYER) {
            buyer = format!("alice-{number}");
            grid.croft(["bot", "new", &buyer, "--grains", "1000000000"]).await?;
        }
        let text = format!("name = \"w{number}\"\n{DEPLOY}country = [\"{ALIVE}\"]\n");
        let file = grid.dir().join("deploy.toml");
        std::fs::write(&file, text)?;
        let file = file.to_str().context("a path in UTF-8")?;
        let started = Instant::now();
        grid.croft(["--bot", &buyer, "deploy", file, "--yes", "--detach"]).await?;
        if number > 0 {
            times.push(started.elapsed());
        }
    }
    let times = Times::new(times);
    Ok(vec![
        Row::new("discovery to dual-signed contract, p50, loopback", times.percentile_ms(50.0), "ms")
            .limit(Limit::AtMost { budget: 500.0, goal: 250.0 })
            .note(format!(
                "a whole 'croft deploy' each, from the start of its process, with the bots of three farms; {}",
                times.show()
            ))
            .details(times.json()),
    ])
}

/// What bots cost that wait for somebody.
async fn idle(town: &Town, seconds: u64) -> Result<Vec<Row>> {
    let pids: Vec<u32> = town.farmers.iter().filter_map(croft_it::service::Service::pid).collect();
    ensure!(pids.len() == town.farmers.len(), "a farmer's bot has ended");
    let cpu = || pids.iter().map(|pid| measure::cpu(*pid)).sum::<Result<Duration>>();
    let before = cpu()?;
    let started = Instant::now();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let took = cpu()?.saturating_sub(before).as_secs_f64() * 1e3;
    let per_second = took / started.elapsed().as_secs_f64() / pids.len() as f64;
    let (mut resident, mut own) = (0.0, 0.0);
    for pid in &pids {
        let (all, its) = measure::memory(*pid)?;
        (resident, own) = (resident + all, own + its);
    }
    let of_one = |bytes: f64| bytes / pids.len() as f64 / f64::from(1 << 20);
    Ok(vec![
        Row::new("memory of an idle farmer's bot", of_one(own), "MiB").note(format!(
            "its part of what {} bots share; {:.1} MiB resident",
            pids.len(),
            of_one(resident)
        )),
        Row::new("processor time of an idle farmer's bot", per_second, "cpu ms/s")
            .note(format!("{} bots over {seconds} s", pids.len())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_differ_and_begin_with_what_nearly_all_offer() {
        assert_eq!(wish(0).free.cpu_millis, 1_000);
        assert!((1..5).all(|number| wish(number) != wish(0)));
        assert_ne!(wish(1).country, wish(6).country);
    }
}
