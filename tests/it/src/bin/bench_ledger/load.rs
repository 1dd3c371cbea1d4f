//! Closed-loop load: so many commands are under way at a time, and the next goes out when one is final.
//!
//! ```text
//!   warming up ──> measured window ──> the rest comes in
//! ```
//! Only what becomes final inside the window counts; its latency runs from the first attempt to submit it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use croft_protocol::{Command, Grains, PublicKey, Rejection, SignedCommand, encode};
use croft_transport::{Client, ClientError};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::grid::{Author, Grid, REPLICAS, key};
use crate::machine;
use croft_it::report::{Row, Times};

/// How many people there are. Each has an account, a key and a connection.
pub(crate) const AUTHORS: usize = 256;
/// What an author may have under way: well below the window of sequence numbers that a replica keeps.
const PIPELINE: usize = 16;
/// A replica that is busy is asked again after this.
const BUSY: Duration = Duration::from_millis(20);
/// What is under way when the window closes is final within this.
const DRAIN: Duration = Duration::from_secs(60);

/// How many commands are under way at a time, and of how many clients.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) clients: usize,
    pub(crate) pipeline: usize,
}

impl Load {
    /// Spread over clients that have at most [`PIPELINE`] each.
    pub(crate) fn of(in_flight: usize) -> Self {
        let pipeline = (in_flight / 64).clamp(2, PIPELINE);
        Self { clients: (in_flight / pipeline).clamp(1, AUTHORS), pipeline }
    }

    pub(crate) fn in_flight(self) -> usize {
        self.clients * self.pipeline
    }
}

/// When clients stop sending.
#[derive(Debug)]
pub(crate) struct Stop {
    at: Instant,
    left: AtomicI64,
}

impl Stop {
    pub(crate) fn after_time(at: Instant) -> Arc<Self> {
        Arc::new(Self { at, left: AtomicI64::new(i64::MAX) })
    }

    fn after_count(count: usize, limit: Duration) -> Arc<Self> {
        Arc::new(Self { at: Instant::now() + limit, left: AtomicI64::new(count as i64) })
    }

    /// Whether one more may go out.
    pub(crate) fn take(&self) -> bool {
        Instant::now() < self.at && self.left.fetch_sub(1, Ordering::Relaxed) > 0
    }
}

/// One operation: when it was done, and how long it took.
pub(crate) type Done = (Instant, Duration);

/// What a window showed.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) per_second: f64,
    pub(crate) times: Times,
}

impl Measured {
    pub(crate) fn of(done: &[Done], from: Instant, until: Instant) -> Result<Self> {
        let inside: Vec<Duration> =
            done.iter().filter(|(at, _)| (from..until).contains(at)).map(|(_, took)| *took).collect();
        if inside.is_empty() {
            bail!("nothing became final within {:?}", until - from);
        }
        let per_second = inside.len() as f64 / (until - from).as_secs_f64();
        Ok(Self { per_second, times: Times::new(inside) })
    }
}

/// A person with a connection to one replica.
struct Person {
    author: Author,
    client: Client,
    replica: usize,
    to: PublicKey,
}

/// All who make load, between loads.
pub(crate) struct Crowd {
    people: Vec<Person>,
    memo: String,
    record_bytes: usize,
}

impl Crowd {
    /// `record_bytes` is what an encoded record of a transfer is to have.
    pub(crate) async fn new(grid: &Grid, record_bytes: usize) -> Result<Self> {
        let expires = grid.status(0).await?.height + 50_000;
        let mut people = Vec::with_capacity(AUTHORS);
        for number in 0..AUTHORS {
            let replica = number % REPLICAS;
            let secret = key("author", number);
            let client = Client::new(&secret, vec![grid.pins()[replica].clone()])?;
            // Each pays another: no account is hotter than the others.
            let to = key("author", (number + 1) % AUTHORS).public();
            people.push(Person { author: Author::new(secret, grid.chain(), expires), client, replica, to });
        }
        let mut crowd = Self { people, memo: String::new(), record_bytes: 0 };
        let bare = crowd.probe(grid).await?;
        let memo = record_bytes
            .checked_sub(bare)
            .with_context(|| format!("a record has at least {bare} bytes, {record_bytes} are asked for"))?;
        crowd.memo = "m".repeat(memo);
        crowd.record_bytes = crowd.probe(grid).await?;
        Ok(crowd)
    }

    /// Size of the record of one transfer, as the ledger has it.
    async fn probe(&mut self, grid: &Grid) -> Result<usize> {
        let command = self.people[0].transfer(&self.memo);
        let id = croft_protocol::RecordId::transfer(&command.body.author, command.body.sequence);
        grid.submit(command).await?;
        let found = grid.control(0).history(id, 1, 1).await?.value.1;
        Ok(encode(&found.first().context("a final transfer has a record")?.record).len())
    }

    pub(crate) fn record_bytes(&self) -> usize {
        self.record_bytes
    }

    /// Runs clients until `stop`; those of the replicas that `at` names.
    async fn run(&mut self, load: Load, at: &[usize], stop: &Arc<Stop>) -> Result<Vec<Done>> {
        let (chosen, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.people).into_iter().partition(|person| at.contains(&person.replica));
        self.people = rest;
        let mut tasks = JoinSet::new();
        for (number, person) in chosen.into_iter().enumerate() {
            if number < load.clients {
                tasks.spawn(person.send(load.pipeline, self.memo.clone(), stop.clone()));
            } else {
                self.people.push(person);
            }
        }
        let mut all = Vec::new();
        let mut failure = None;
        while let Some(ended) = tasks.join_next().await {
            match ended? {
                (person, Ok(done)) => {
                    self.people.push(person);
                    all.extend(done);
                }
                // Its sequence numbers are in doubt: it sends nothing any more.
                (person, Err(error)) => {
                    failure = Some(error.context(format!("at replica {}", person.replica + 1)));
                }
            }
        }
        self.people.sort_by_key(|person| (person.author.public(), person.replica));
        match failure {
            Some(failure) => Err(failure),
            None => Ok(all),
        }
    }

    /// Makes so many records through some replicas.
    pub(crate) async fn make(&mut self, count: usize, at: &[usize], within: Duration) -> Result<()> {
        let stop = Stop::after_count(count, within);
        let made = self.run(Load { clients: AUTHORS, pipeline: 4 }, at, &stop).await?.len();
        if made < count {
            bail!("only {made} of {count} records were final within {within:?}");
        }
        Ok(())
    }

    /// Measures one load against all replicas.
    pub(crate) async fn measure(
        &mut self,
        grid: &Grid,
        load: Load,
        warm: Duration,
        window: Duration,
    ) -> Result<(Row, Measured)> {
        let from = Instant::now() + warm;
        let until = from + window;
        let all: Vec<usize> = (0..REPLICAS).collect();
        let stop = Stop::after_time(until);
        let observed = async {
            tokio::time::sleep_until(from).await;
            let before = Usage::now(grid).await?;
            tokio::time::sleep_until(until).await;
            Ok::<_, anyhow::Error>((before, Usage::now(grid).await?))
        };
        let running = timeout(warm + window + DRAIN, self.run(load, &all, &stop));
        let (done, observed) = tokio::join!(running, observed);
        let done = done.with_context(|| format!("commands were not final {DRAIN:?} after the window"))??;
        let (before, after) = observed?;
        let measured = Measured::of(&done, from, until)?;
        let usage = Usage::between(&before, &after);
        let what =
            format!("final records, 4 replicas, {} in flight of {} clients", load.in_flight(), load.clients);
        let row = Row::new(what, measured.per_second, "records/s")
            .note(format!("{}; {}", measured.times.show(), usage.show()))
            .details(json!({ "latency": measured.times.json(), "usage": usage.json() }));
        Ok((row, measured))
    }
}

impl Person {
    fn transfer(&mut self, memo: &str) -> SignedCommand {
        self.author.sign(Command::Transfer { to: self.to, amount: Grains(1), memo: memo.to_owned() })
    }

    async fn send(mut self, pipeline: usize, memo: String, stop: Arc<Stop>) -> (Self, Result<Vec<Done>>) {
        let mut waiting = FuturesUnordered::new();
        let mut done = Vec::new();
        loop {
            while waiting.len() < pipeline && stop.take() {
                let command = self.transfer(&memo);
                let client = self.client.clone();
                waiting.push(async move { submit(&client, command).await });
            }
            match waiting.next().await {
                None => break,
                Some(Ok(one)) => done.push(one),
                Some(Err(error)) => {
                    drop(waiting);
                    return (self, Err(error));
                }
            }
        }
        drop(waiting);
        (self, Ok(done))
    }
}

/// Brings one command to the ledger, as often as it takes.
async fn submit(client: &Client, command: SignedCommand) -> Result<Done> {
    let started = Instant::now();
    loop {
        match client.submit(command.clone()).await {
            Ok(_) => return Ok((Instant::now(), started.elapsed())),
            Err(ClientError::Rejected { rejection, .. }) if matches!(*rejection, Rejection::Busy { .. }) => {
                sleep(BUSY).await;
            }
            Err(error) => return Err(anyhow::Error::new(error).context("a command was not taken")),
        }
    }
}

/// What had been used up to a moment.
struct Usage {
    at: Instant,
    replicas: Duration,
    bench: Duration,
    busy: Duration,
    height: u64,
    records: u64,
}

/// What a window used, for each record.
struct Used {
    seconds: f64,
    replicas_us: f64,
    bench_us: f64,
    others: f64,
    records_per_block: f64,
    blocks_per_second: f64,
}

impl Usage {
    async fn now(grid: &Grid) -> Result<Self> {
        let status = grid.status(0).await?;
        Ok(Self {
            at: Instant::now(),
            replicas: grid.cpu()?,
            bench: machine::own_cpu()?,
            busy: machine::busy()?,
            height: status.height,
            records: status.records,
        })
    }

    fn between(before: &Self, after: &Self) -> Used {
        let seconds = (after.at - before.at).as_secs_f64();
        let records = (after.records - before.records).max(1) as f64;
        let blocks = (after.height - before.height).max(1) as f64;
        let used = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64();
        let (replicas, bench) = (used(before.replicas, after.replicas), used(before.bench, after.bench));
        Used {
            seconds,
            replicas_us: replicas * 1e6 / records,
            bench_us: bench * 1e6 / records,
            others: (used(before.busy, after.busy) - replicas - bench).max(0.0) / seconds,
            records_per_block: records / blocks,
            blocks_per_second: blocks / seconds,
        }
    }
}

impl Used {
    fn show(&self) -> String {
        format!(
            "{:.0} records per block, {:.1} blocks/s; per record {:.0} us of the replicas' processors, {:.0} us of the \
             clients'; others kept {:.2} processors busy",
            self.records_per_block, self.blocks_per_second, self.replicas_us, self.bench_us, self.others
        )
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "seconds": self.seconds, "replicas_cpu_us_per_record": self.replicas_us,
            "clients_cpu_us_per_record": self.bench_us, "processors_of_others": self.others,
            "records_per_block": self.records_per_block, "blocks_per_second": self.blocks_per_second,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_spread_over_clients_within_their_limits() {
        for in_flight in [32, 256, 1024, 4096] {
            let load = Load::of(in_flight);
            assert_eq!(load.in_flight(), in_flight, "{load:?}");
            assert!(load.clients <= AUTHORS && load.pipeline <= PIPELINE, "{load:?}");
        }
    }

    #[test]
    fn only_what_is_done_inside_the_window_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let took = Duration::from_millis(5);
        let done: Vec<Done> = (0..10).map(|second| (at(second), took)).collect();
        let measured = Measured::of(&done, at(2), at(6)).unwrap();
        assert!((measured.per_second - 1.0).abs() < 1e-9);
        assert_eq!(measured.times.count(), 4);
        let error = Measured::of(&done, at(20), at(21)).unwrap_err().to_string();
        assert_eq!(error, "nothing became final within 1s");
    }
}
