//! Does size matter: a ledger with a long history against one with a short one, both with as many nodes.
//!
//! Both are built in this process by the replica's own store in full blocks, without agreement, and then served by
//! a replica of its own process, as people would find it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use croft_attest::soft::SoftTpm;
use croft_ledger::{StateReadExt, assemble};
use croft_light::{LightClient, verify_value};
use croft_protocol::api::{NodeQuery, Query};
use croft_protocol::attestation::Attestation;
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::keys::Domain;
use croft_protocol::record::{NodeBody, TrustClass};
use croft_protocol::trust::{Endorsement, RecentHeader, RecentHeaders};
use croft_protocol::units::show_bytes;
use croft_protocol::{
    Capacity, ChainId, Command, FarmId, Genesis, Grains, Hash, NodeId, PriceList, RecordId, SecretKey,
    SignedCommand, StateKey, TrustPolicy, limits,
};
use croft_replica::join::{JoinPlan, join};
use croft_replica::ordering::{make_block, wall_clock};
use croft_replica::store::{FILE, Store};
use croft_replica::{GridPlan, ReplicaConfig, init_grid};
use croft_transport::Client;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::grid::{Author, allocation, free_udp_addresses, key, name, now_ms, start_replica};
use crate::light::node_body;
use croft_it::report::{Limit, Row, Times};

/// Who makes the transfers; few, so that a page of each one's is full in the short history too.
const PAYERS: usize = 50;
const FARMS: usize = 100;
const COUNTRIES: [&str; 8] = ["be", "nl", "de", "fr", "it", "es", "se", "pl"];
/// Between two blocks of the made-up past.
const BLOCK_MS: u64 = 1_000;
/// A copy is there within this.
const JOIN: Duration = Duration::from_secs(3_600);
/// Things in a page that is asked for.
const PAGE: u32 = 32;

/// How large the two are, and how often each is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) short: usize,
    pub(crate) long: usize,
    pub(crate) nodes: usize,
    pub(crate) asks: usize,
    /// Bytes of a transfer's memo.
    pub(crate) memo: usize,
}

/// What one ledger showed.
struct Shown {
    records: u64,
    bytes: f64,
    build: Duration,
    ready: Duration,
    resident: f64,
    gets: Times,
    pages: Times,
    searches: Times,
    join: Duration,
}

pub(crate) async fn rows(dir: &Path, plan: Plan) -> Result<Vec<Row>> {
    let short = one(&dir.join("short"), plan, plan.short).await?;
    let long = one(&dir.join("long"), plan, plan.long).await?;
    let ratio =
        |pick: fn(&Shown) -> &Times| pick(&long).percentile_ms(50.0) / pick(&short).percentile_ms(50.0);
    let flat = Limit::AtMost { budget: 2.0, goal: 1.2 };
    let both = |pick: fn(&Shown) -> &Times| {
        format!("{}; {} records: {}", pick(&long).show(), short.records, pick(&short).show())
    };
    let details =
        |pick: fn(&Shown) -> &Times| json!({ "long": pick(&long).json(), "short": pick(&short).json() });
    let records = long.records;
    let compared = |what: &str, pick: fn(&Shown) -> &Times| {
        Row::new(format!("{what}, {records} over {} records, p50", short.records), ratio(pick), "x")
            .limit(flat)
            .note(both(pick))
            .details(details(pick))
    };
    Ok(vec![
        Row::new(format!("disk of {records} records"), long.bytes / 1e6, "MB").note(format!(
            "{:.0} bytes per record; {} records: {} ({:.0} bytes per record)",
            long.bytes / records as f64,
            short.records,
            show_bytes(short.bytes as u64),
            short.bytes / short.records as f64
        )),
        Row::new(
            format!("building {records} records in full blocks, durable"),
            records as f64 / long.build.as_secs_f64(),
            "records/s",
        )
        .note("one replica's share alone: signature, execution, both trees, one transaction per block"),
        Row::new(
            format!("memory of a replica with {records} records, after start"),
            long.resident / 1e6,
            "MB",
        )
        .note(format!("{} records: {:.1} MB", short.records, short.resident / 1e6)),
        Row::new(format!("start of a replica with {records} records"), long.ready.as_secs_f64(), "s")
            .note(format!("{} records: {:.1} s", short.records, short.ready.as_secs_f64())),
        Row::new(format!("snapshot join, {records} records"), long.join.as_secs_f64(), "s").note(format!(
            "a verified copy from one replica over loopback, {:.0} records/s; {} records: {:.1} s",
            records as f64 / long.join.as_secs_f64(),
            short.records,
            short.join.as_secs_f64()
        )),
        compared("get with proof", |shown| &shown.gets),
        compared("a page of one bot's transfers", |shown| &shown.pages),
        compared("search for nodes", |shown| &shown.searches),
        Row::new(format!("search over {} nodes, p95", plan.nodes), long.searches.percentile_ms(95.0), "ms")
            .limit(Limit::AtMost { budget: 50.0, goal: 10.0 })
            .note(long.searches.show())
            .details(long.searches.json()),
    ])
}

/// Builds one ledger and asks it.
async fn one(dir: &Path, plan: Plan, records: usize) -> Result<Shown> {
    let target = dir.to_owned();
    let built = tokio::task::spawn_blocking(move || build(&target, plan, records)).await??;
    let bytes = std::fs::metadata(built.data.join(FILE))?.len() as f64;
    let started = Instant::now();
    let process = start_replica(&built.config, 1, dir.join("replica.log")).await?;
    let ready = started.elapsed();
    let client = Client::new(&key("reader", 0), vec![built.pin.clone()])?;
    fresh(&client).await?;
    let status = client.status().await?.value;
    let resident = process.resident_bytes()?;
    let gets = gets(&client, &built, plan).await?;
    let pages = pages(&client, plan).await?;
    let searches = searches(&client, plan).await?;
    client.close().await;
    let join = copy(&built, &dir.join("copy"), status.records).await?;
    process.stop().await?;
    let (records, build) = (status.records, built.took);
    Ok(Shown { records, bytes, build, ready, resident, gets, pages, searches, join })
}

/// Building took its time: waits for a block of now, which an idle replica makes by itself, since clients believe no
/// tip that is old.
async fn fresh(client: &Client) -> Result<()> {
    let patience = Duration::from_millis(6 * limits::HEARTBEAT_MS);
    let wait = async {
        while client.tip().await?.value.header.time_ms + limits::TIP_MAX_AGE_MS / 2 < now_ms() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(())
    };
    timeout(patience, wait)
        .await
        .with_context(|| format!("an idle replica makes no block in {patience:?}"))?
}

/// A verified copy for a replica that has nothing yet.
async fn copy(built: &Built, dir: &Path, records: u64) -> Result<Duration> {
    std::fs::create_dir_all(dir)?;
    let plan = JoinPlan {
        dir: dir.to_owned(),
        genesis: built.genesis.clone(),
        key: built.key.clone(),
        replicas: vec![built.pin.clone()],
        clock: wall_clock(),
        progress: Arc::new(|_| {}),
    };
    let started = Instant::now();
    let report = timeout(JOIN, join(plan)).await.with_context(|| format!("no copy after {JOIN:?}"))??;
    let took = started.elapsed();
    ensure!(report.records >= records, "the copy has {} of {records} records", report.records);
    Ok(took)
}

/// A ledger on disk.
struct Built {
    config: PathBuf,
    data: PathBuf,
    pin: ReplicaAddress,
    genesis: Genesis,
    /// The one validator's.
    key: SecretKey,
    transfers_each: u64,
    took: Duration,
}

fn build(dir: &Path, plan: Plan, records: usize) -> Result<Built> {
    let blocks = records.div_ceil(limits::COMMANDS_PER_BLOCK) as u64 + 8;
    let mut allocations: Vec<_> = (0..PAYERS).map(|number| allocation("payer", number)).collect();
    allocations.push(allocation("farmer", 0));
    // It ends about now, as a real one does.
    let time_ms = now_ms() - blocks * BLOCK_MS;
    let listen = free_udp_addresses(1)?;
    let trust = TrustPolicy { endorsement: Endorsement::Unchecked, ..TrustPolicy::default() };
    let plan_of_grid = GridPlan { name: name("bench"), time_ms, allocations, listen, trust, faucet: None };
    let made = init_grid(dir, plan_of_grid)?;
    let replica = made.replicas.into_iter().next().context("a grid of one replica")?;
    let (genesis, pin) =
        (made.genesis, ReplicaAddress { address: replica.listen, key: replica.key.public() });
    let data = ReplicaConfig::load(&replica.config)?.dir;
    let store = Store::open(&data, &genesis)?;
    let mut history = History::new(genesis.chain_id(), plan, time_ms);
    let start = std::time::Instant::now();
    let mut shown = start;
    loop {
        let recent: Option<RecentHeaders> = store.latest().read(&StateKey::RecentHeaders)?;
        history.quotable = recent.and_then(|recent| recent.headers.last().copied());
        let left = records.saturating_sub(usize::try_from(store.latest().tip().header.log_size)?);
        let commands = history.next_block(left.min(limits::COMMANDS_PER_BLOCK));
        if commands.is_empty() {
            break;
        }
        let before = store.latest();
        let time_ms = before.tip().header.time_ms + BLOCK_MS;
        let block = make_block(&before, time_ms, &commands, |header| {
            assemble::certify(header, 0, genesis.validators.clone(), std::slice::from_ref(&replica.key))
        })?;
        if let Some(Err(rejection)) = block.outcome.results.iter().find(|result| result.is_err()) {
            anyhow::bail!("a command of the made-up history was rejected: {rejection}");
        }
        store.commit(&block)?;
        if shown.elapsed() > Duration::from_secs(15) {
            shown = std::time::Instant::now();
            let have = store.latest().tip().header.log_size;
            eprintln!("bench: {have} of {records} records built, {} s", start.elapsed().as_secs());
        }
    }
    let transfers_each = history.payers[PAYERS - 1].1;
    ensure!(transfers_each > 0, "{records} records leave no room for transfers beside {} nodes", plan.nodes);
    Ok(Built {
        config: replica.config,
        data,
        pin,
        genesis,
        key: replica.key,
        transfers_each,
        took: start.elapsed(),
    })
}

/// A past that people might have had: farms, nodes, then payments.
struct History {
    chain: ChainId,
    plan: Plan,
    start_ms: u64,
    farmer: Author,
    farms: usize,
    nodes: usize,
    /// Each with the number of its transfers.
    payers: Vec<(Author, u64)>,
    turn: usize,
    /// What nodes of the next block quote.
    quotable: Option<RecentHeader>,
}

const EXPIRES: u64 = 50_000;

impl History {
    fn new(chain: ChainId, plan: Plan, start_ms: u64) -> Self {
        let author = |role, number| Author::new(key(role, number), chain, EXPIRES);
        let payers = (0..PAYERS).map(|number| (author("payer", number), 0)).collect();
        let farmer = author("farmer", 0);
        Self { chain, plan, start_ms, farmer, farms: 0, nodes: 0, payers, turn: 0, quotable: None }
    }

    fn next_block(&mut self, count: usize) -> Vec<SignedCommand> {
        if self.farms == 0 {
            self.farms = FARMS;
            return (0..FARMS).map(|number| self.farm(number)).collect();
        }
        if self.nodes < self.plan.nodes {
            let numbers = self.nodes..self.plan.nodes.min(self.nodes + count);
            self.nodes = numbers.end;
            return numbers.map(|number| self.node(number)).collect();
        }
        (0..count).map(|_| self.transfer()).collect()
    }

    fn farm(&mut self, number: usize) -> SignedCommand {
        let country = COUNTRIES[number % COUNTRIES.len()].to_owned();
        let prices =
            PriceList { cpu: 10 + number as u64, memory_gib: 1 + number as u64 % 7, ssd_gib: 0, hdd_gib: 0 };
        let region = Some(name(&format!("region-{}", number % 5)));
        self.farmer.sign(Command::CreateFarm { name: farm_name(number), country, region, prices })
    }

    fn node(&self, number: usize) -> SignedCommand {
        let farm = FarmId::new(&self.farmer.public(), &farm_name(number % FARMS));
        let join = Join { farm, expires_ms: self.start_ms * 2, nonce: [1; 16] };
        let signature = self.farmer.key().sign_as_bot(Domain::JOIN, &self.chain, &join);
        // Sizes in steps, so that many are alike, as machines are.
        let capacity = Capacity {
            cpu_millis: 4_000 * (1 + (number / FARMS) as u64 % 16),
            memory_bytes: (8 << 30) * (1 + number as u64 / 7 % 16),
            ssd_bytes: (256 << 30) * (1 + number as u64 % 4),
            ..Capacity::default()
        };
        let trust = if number.is_multiple_of(3) { TrustClass::Sealed } else { TrustClass::Plain };
        let node = node_body(farm, &format!("node-{number}"), capacity, trust);
        let key = key("machine", number);
        let attestation = self.attestation(number, &key.public(), &node);
        let register =
            Command::RegisterNode { node, join: Some(SignedJoin { join, signature }), attestation };
        Author::new(key, self.chain, EXPIRES).sign(register)
    }

    /// A program plays the TPM: this grid checks no endorsement.
    fn attestation(&self, number: usize, id: &NodeId, node: &NodeBody) -> Option<Box<Attestation>> {
        let RecentHeader { height, hash, .. } = self.quotable.filter(|_| node.trust > TrustClass::Plain)?;
        let bound = (&self.chain, height, hash, id, Attestation::statement(node));
        let events = SoftTpm::booted(&[Hash::of_bytes(b"boot file")]);
        Some(Box::new(SoftTpm::new(number as u64).attest(bound, events)))
    }

    fn transfer(&mut self) -> SignedCommand {
        let to = self.payers[(self.turn + 1) % PAYERS].0.public();
        let memo = "m".repeat(self.plan.memo);
        let (author, made) = &mut self.payers[self.turn];
        self.turn = (self.turn + 1) % PAYERS;
        *made += 1;
        author.sign(Command::Transfer { to, amount: Grains(1), memo })
    }
}

fn farm_name(number: usize) -> croft_protocol::Name {
    name(&format!("farm-{number}"))
}

/// Scattered over a range, the same in every run.
fn scattered(number: usize, range: u64) -> u64 {
    let hash = croft_protocol::Hash::of("bench ledger choice", &(number as u64)).0;
    u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
        % range.max(1)
}

/// Verified reads of records all over the history.
async fn gets(client: &Client, built: &Built, plan: Plan) -> Result<Times> {
    let pinned = LightClient::new(built.genesis.chain_id(), built.genesis.validators.hash());
    let mut times = Vec::with_capacity(plan.asks);
    for number in 0..plan.asks {
        let payer = key("payer", number % PAYERS).public();
        let id = RecordId::transfer(&payer, scattered(number, built.transfers_each));
        let record = StateKey::Record(id);
        let started = Instant::now();
        let (signed, values) = client.get(vec![record.clone()]).await?.value;
        let tip = pinned.clone().accept_tip(&signed, Some(now_ms()))?;
        let value = verify_value(&tip, &record, &values[0])?;
        times.push(started.elapsed());
        ensure!(value.is_some(), "transfer {number} of the history is not there");
    }
    Ok(Times::new(times))
}

async fn pages(client: &Client, plan: Plan) -> Result<Times> {
    let mut times = Vec::with_capacity(plan.asks);
    for number in 0..plan.asks {
        let of = key("payer", number % PAYERS).public();
        let started = Instant::now();
        let page = client.query(Query::Transfers { of }, None, PAGE).await?.value;
        times.push(started.elapsed());
        ensure!(
            page.records.len() == PAGE as usize,
            "a page of transfers has {} records",
            page.records.len()
        );
    }
    Ok(Times::new(times))
}

/// What a user's bot asks for: from what nearly all offer to what hardly anybody or nobody does.
fn wish(number: usize) -> NodeQuery {
    let country = || Some(COUNTRIES[number % COUNTRIES.len()].to_owned());
    let free = |cpu: u64, memory_gib: u64| Capacity {
        cpu_millis: cpu * 1_000,
        memory_bytes: memory_gib << 30,
        ..Capacity::default()
    };
    match number % 6 {
        0 => NodeQuery { free: free(1, 1), ..NodeQuery::default() },
        1 => NodeQuery { country: country(), free: free(4, 8), ..NodeQuery::default() },
        2 => NodeQuery {
            country: country(),
            free: free(32, 64),
            max_per_hour: Some(Grains(2_000)),
            ..NodeQuery::default()
        },
        3 => NodeQuery { trust: Some(TrustClass::Sealed), free: free(60, 120), ..NodeQuery::default() },
        4 => NodeQuery { max_per_hour: Some(Grains(25)), free: free(2, 4), ..NodeQuery::default() },
        // More than any has.
        _ => NodeQuery {
            country: country(),
            free: free(64, 1_000),
            trust: Some(TrustClass::Sealed),
            ..NodeQuery::default()
        },
    }
}

async fn searches(client: &Client, plan: Plan) -> Result<Times> {
    let mut times = Vec::with_capacity(plan.asks);
    let mut found = 0;
    for number in 0..plan.asks {
        let query = Query::Nodes(wish(number));
        let started = Instant::now();
        let page = client.query(query, None, PAGE).await?.value;
        times.push(started.elapsed());
        found += page.records.len();
    }
    ensure!(found > 0, "no search found any of {} nodes", plan.nodes);
    Ok(Times::new(times))
}
