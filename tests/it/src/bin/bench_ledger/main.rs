//! `cargo xtask bench ledger`: what the ledger costs and how fast it is, beside what others would use instead.
//!
//! ```text
//!   four replicas: load, light client, catch-up, followers ──┐ one after the other, never two at a time
//!   etcd, PostgreSQL: the same load                          ├──> table, target/bench/ledger.json, exit code
//!   a long history against a short one                     ──┘
//! ```
//! All traffic stays on loopback, all files in one temporary folder, and every process that is started is ended. It
//! must never call a budget held that was not measured.

mod catch_up;
mod etcd;
mod followers;
mod grid;
mod history;
mod light;
mod load;
mod machine;
mod postgres;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::grid::{Grid, allocation};
use crate::load::{AUTHORS, Crowd, Load, Measured};
use croft_it::report::{self, Limit, Report, Row};

const USAGE: &str = "\
usage: cargo xtask bench ledger [options]
  --quick              smaller counts and shorter windows: to try, not to judge
  --only PART          load, light, catch-up, followers or history; may be given several times
  --records N          size of the long history; default 1000000, with --quick 60000
  --record-bytes N     size of a record under load; default 512
  --dir FOLDER         where the files go; default: the system's temporary folder";
/// What measures at full length.
const PARTS: [&str; 5] = ["load", "light", "catch-up", "followers", "history"];
const NO_YARDSTICK: &str = "is not installed: install with: scripts/setup --bench";

/// How much is measured.
#[derive(Debug, Clone)]
struct Plan {
    quick: bool,
    parts: Vec<String>,
    record_bytes: usize,
    dir: PathBuf,
    loads: Vec<usize>,
    warm: Duration,
    window: Duration,
    gets: usize,
    missed: usize,
    followers: usize,
    blocks: usize,
    history: history::Plan,
}

impl Plan {
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let (mut quick, mut parts, mut records) = (false, Vec::new(), None);
        let (mut record_bytes, mut dir) = (512, std::env::temp_dir());
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--quick" => quick = true,
                "--only" => parts.push(value()?),
                "--records" => records = Some(value()?.parse().context("--records needs a number")?),
                "--record-bytes" => {
                    record_bytes = value()?.parse().context("--record-bytes needs a number")?;
                }
                "--dir" => dir = value()?.into(),
                other => bail!("unknown argument '{other}'\n{USAGE}"),
            }
        }
        if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
            bail!("'{unknown}' is no part: there are {}", PARTS.join(", "));
        }
        if parts.is_empty() {
            parts = PARTS.map(str::to_owned).to_vec();
        }
        let nodes = 10_000;
        let short = nodes + 2_000;
        let long = records.unwrap_or(if quick { 60_000 } else { 1_000_000 });
        if long <= short {
            bail!("--records must be more than {short}, the size of the short history");
        }
        let seconds = |quick_s, full_s| Duration::from_secs(if quick { quick_s } else { full_s });
        Ok(Self {
            quick,
            parts,
            record_bytes,
            dir,
            loads: if quick { vec![32, 256, 1024] } else { vec![32, 256, 1024, 4096] },
            warm: seconds(2, 5),
            window: seconds(5, 20),
            gets: if quick { 300 } else { 2_000 },
            missed: if quick { 2_000 } else { 5_000 },
            followers: if quick { 1_000 } else { 10_000 },
            blocks: if quick { 5 } else { 20 },
            history: history::Plan {
                short,
                long,
                nodes,
                asks: if quick { 300 } else { 2_000 },
                // A record without a memo has about 200 bytes.
                memo: record_bytes.saturating_sub(200).min(1_000),
            },
        })
    }

    fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    report::exit_code(&run_until_told().await)
}

async fn run_until_told() -> Result<bool> {
    report::only_in_release("cargo xtask bench ledger")?;
    let plan = Plan::parse(std::env::args().skip(1))?;
    report::until_told(run(plan)).await
}

async fn run(plan: Plan) -> Result<bool> {
    let mut report = Report::default();
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    report.circumstance("build", "release");
    report.circumstance("counts", if plan.quick { "quick: to try, not to judge" } else { "full" });
    report.circumstance("processors", processors.to_string());
    report.circumstance("load before", machine::load_average());
    std::fs::create_dir_all(&plan.dir)?;
    let dir = tempfile::Builder::new().prefix("croft-bench-").tempdir_in(&plan.dir)?;
    if machine::in_memory(dir.path())? {
        report.circumstance("disk", "none: the files lie in memory, where durable writes cost nothing");
    }
    eprintln!("bench: in {}, load average {}", dir.path().display(), machine::load_average());
    if ["load", "light", "catch-up", "followers"].iter().any(|part| plan.has(part)) {
        let rows = grid_rows(&plan, &dir.path().join("grid"), &mut report).await;
        if let Err(error) = rows {
            report.add(Row::missing("four replicas", format!("{error:#}")));
        }
    }
    if plan.has("history") {
        eprintln!(
            "bench: building a ledger of {} records and one of {}",
            plan.history.long, plan.history.short
        );
        report.part("long history", history::rows(&dir.path().join("history"), plan.history).await);
    }
    report.circumstance("load after", machine::load_average());
    report.finish("ledger")
}

/// Everything that needs the four replicas, and the yardsticks under the same load after them.
async fn grid_rows(plan: &Plan, dir: &Path, report: &mut Report) -> Result<()> {
    let mut allocations: Vec<_> = (0..AUTHORS).map(|number| allocation("author", number)).collect();
    allocations.extend(["farmer", "user", "follower"].map(|role| allocation(role, 0)));
    std::fs::create_dir_all(dir)?;
    let mut grid = Grid::start(dir, allocations).await?;
    let mut crowd = Crowd::new(&grid, plan.record_bytes).await?;
    report.circumstance("record", format!("{} bytes", crowd.record_bytes()));
    if plan.has("light") {
        report.part("light client", light::rows(&grid, plan.gets).await);
    }
    let mut ours = Vec::new();
    if plan.has("load") {
        for in_flight in &plan.loads {
            let load = Load::of(*in_flight);
            match crowd.measure(&grid, load, plan.warm, plan.window).await {
                Ok((row, measured)) => {
                    report.add(row);
                    ours.push(measured);
                }
                Err(error) => {
                    report.part(&format!("final records, {in_flight} in flight"), Err(error));
                    // Replicas may be in any state: what comes next would measure that.
                    break;
                }
            }
        }
    }
    if plan.has("catch-up") {
        report.part("catch-up", catch_up::rows(&mut grid, &mut crowd, plan.missed).await);
    }
    if plan.has("followers") {
        report.part("followers", followers::rows(&grid, plan.followers, plan.blocks).await);
    }
    let record_bytes = crowd.record_bytes();
    drop(crowd);
    grid.stop().await?;
    if plan.has("load") {
        let theirs = etcd_rows(plan, record_bytes, report).await;
        postgres_rows(plan, record_bytes, report).await;
        compare(&ours, &theirs, report);
    }
    Ok(())
}

/// What finality may take, p95, in milliseconds.
const FINALITY_MS: f64 = 1_000.0;

/// The load with the most writes among those that answer in time; among all, if none does.
fn best(of: &[Measured]) -> Option<&Measured> {
    let in_time = |one: &&Measured| one.times.percentile_ms(95.0) <= FINALITY_MS;
    let most = |a: &&Measured, b: &&Measured| a.per_second.total_cmp(&b.per_second);
    of.iter().filter(in_time).max_by(most).or_else(|| of.iter().max_by(most))
}

/// The budgets of the load.
fn compare(ours: &[Measured], theirs: &[Measured], report: &mut Report) {
    const RATIO: &str = "final records/s over etcd's, each at its best load with p95 in a second";
    let Some(our) = best(ours) else {
        report.add(Row::missing(RATIO, "no load of the replicas was measured"));
        return;
    };
    match best(theirs) {
        None => report.add(Row::missing(RATIO, "etcd was not measured")),
        Some(their) => {
            let limit = Limit::AtLeast { budget: 0.5, goal: 1.0 };
            let note = format!("{:.0} records/s over {:.0} writes/s", our.per_second, their.per_second);
            report.add(Row::new(RATIO, our.per_second / their.per_second, "x").limit(limit).note(note));
        }
    }
    let finality = Row::new("finality at the replicas' best load, p95", our.times.percentile_ms(95.0), "ms");
    report.add(finality.limit(Limit::AtMost { budget: FINALITY_MS, goal: 500.0 }).note(our.times.show()));
}

async fn etcd_rows(plan: &Plan, record_bytes: usize, report: &mut Report) -> Vec<Measured> {
    let Some(program) = etcd::program() else {
        report.add(Row::missing("etcd", format!("etcd {NO_YARDSTICK}")));
        return Vec::new();
    };
    let mut measured = Vec::new();
    let outcome = async {
        let dir = tempfile::Builder::new().prefix("croft-bench-etcd-").tempdir_in(&plan.dir)?;
        let etcd = etcd::Etcd::start(dir.path(), &program, record_bytes).await?;
        for in_flight in &plan.loads {
            match etcd.measure(Load::of(*in_flight), plan.warm, plan.window).await {
                Ok((row, one)) => {
                    report.add(row);
                    measured.push(one);
                }
                // Its best load was a smaller one.
                Err(error) if error.is::<etcd::Overloaded>() && !measured.is_empty() => {
                    report.circumstance("etcd's limit", format!("{error:#}, at {in_flight} in flight"));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        etcd.stop().await
    };
    if let Err(error) = outcome.await {
        report.add(Row::missing("etcd", format!("{error:#}")));
    }
    measured
}

async fn postgres_rows(plan: &Plan, record_bytes: usize, report: &mut Report) {
    let Some(programs) = postgres::programs() else {
        report.add(Row::missing("PostgreSQL", format!("PostgreSQL with pgbench {NO_YARDSTICK}")));
        return;
    };
    let outcome = async {
        // Of its own, because another user must reach it.
        let dir = tempfile::Builder::new().prefix("croft-bench-postgres-").tempdir_in(&plan.dir)?;
        let server = postgres::Postgres::start(dir.path(), programs, record_bytes).await?;
        for in_flight in plan.loads.iter().filter(|load| **load <= 256) {
            report.add(server.measure(Load::of(*in_flight), plan.window).await?);
        }
        server.stop().await
    };
    if let Err(error) = outcome.await {
        report.add(Row::missing("PostgreSQL", format!("{error:#}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Plan> {
        Plan::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn without_options_everything_is_measured_at_full_length() {
        let plan = parse("").unwrap();
        assert_eq!((plan.history.long, plan.followers, plan.missed), (1_000_000, 10_000, 5_000));
        assert!(PARTS.iter().all(|part| plan.has(part)));
        assert!(parse("--quick").unwrap().window < plan.window);
    }

    #[test]
    fn what_is_unknown_or_impossible_is_named() {
        let says = |text: &str| parse(text).unwrap_err().to_string();
        assert!(says("--fast").starts_with("unknown argument '--fast'\nusage: cargo xtask bench ledger"));
        assert!(says("--only").starts_with("--only needs a value"));
        let parts = "'market' is no part: there are load, light, catch-up, followers, history";
        assert_eq!(says("--only market"), parts);
        assert_eq!(says("--records 9"), "--records must be more than 12000, the size of the short history");
    }

    #[test]
    fn a_load_that_answers_too_late_is_no_ones_best() {
        let measured = |per_second, ms| Measured {
            per_second,
            times: croft_it::report::Times::new(vec![Duration::from_millis(ms)]),
        };
        let loads = [measured(500.0, 100), measured(900.0, 800), measured(1_000.0, 1_200)];
        assert!((best(&loads).unwrap().per_second - 900.0).abs() < 1e-9);
        assert!((best(&loads[2..]).unwrap().per_second - 1_000.0).abs() < 1e-9);
        assert!(best(&[]).is_none());
    }

    #[test]
    fn a_ratio_without_one_of_its_sides_is_not_measured() {
        let measured = |per_second| Measured {
            per_second,
            times: croft_it::report::Times::new(vec![Duration::from_millis(100)]),
        };
        let mut report = Report::default();
        compare(&[measured(500.0), measured(900.0)], &[measured(1_000.0)], &mut report);
        assert!(report.holds(), "{}", report.table());
        let mut report = Report::default();
        compare(&[measured(900.0)], &[], &mut report);
        assert!(report.table().contains("NOT MEASURED: etcd was not measured"));
        assert!(!report.holds());
    }
}
