//! What was measured, against budgets: a table for people, JSON for machines.
//!
//! What could not be measured is a row too, and fails the run as loudly as a missed budget. The frame of every program
//! that measures is here too: [`until_told`], [`Report::finish`], [`exit_code`].

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

/// What the design asks for.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// Smaller is better.
    AtMost { budget: f64, goal: f64 },
    /// Larger is better.
    AtLeast { budget: f64, goal: f64 },
}

impl Limit {
    fn verdict(self, measured: f64) -> &'static str {
        // What is no number holds no budget.
        let (holds, reached) = match self {
            Self::AtMost { budget, goal } => (measured <= budget, measured <= goal),
            Self::AtLeast { budget, goal } => (measured >= budget, measured >= goal),
        };
        match (holds, reached) {
            (false, _) => MISSED,
            (true, false) => "within budget",
            (true, true) => "goal reached",
        }
    }

    fn show(self) -> (String, String) {
        let (sign, budget, goal) = match self {
            Self::AtMost { budget, goal } => ("<=", budget, goal),
            Self::AtLeast { budget, goal } => (">=", budget, goal),
        };
        (format!("{sign} {budget}"), format!("{sign} {goal}"))
    }
}

const MISSED: &str = "MISSED";
const NOT_MEASURED: &str = "NOT MEASURED";

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    what: String,
    /// Why there is no figure, otherwise.
    measured: Result<f64, String>,
    unit: &'static str,
    limit: Option<Limit>,
    note: String,
    /// Figures beside the main one, for machines.
    details: Value,
}

impl Row {
    /// A figure.
    pub fn new(what: impl Into<String>, measured: f64, unit: &'static str) -> Self {
        let (what, note) = (what.into(), String::new());
        Self { what, measured: Ok(measured), unit, limit: None, note, details: Value::Null }
    }

    /// No figure, and why: it fails the run.
    pub fn missing(what: impl Into<String>, reason: impl Into<String>) -> Self {
        let (what, note) = (what.into(), String::new());
        Self { what, measured: Err(reason.into()), unit: "", limit: None, note, details: Value::Null }
    }

    /// What the figure is held against.
    #[must_use]
    pub fn limit(mut self, limit: Limit) -> Self {
        self.limit = Some(limit);
        self
    }

    /// A line for people below the figure.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Figures beside the main one, for machines.
    #[must_use]
    pub fn details(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    fn verdict(&self) -> &'static str {
        match (&self.measured, self.limit) {
            (Err(_), _) => NOT_MEASURED,
            (Ok(_), None) => "",
            (Ok(measured), Some(limit)) => limit.verdict(*measured),
        }
    }

    fn failed(&self) -> bool {
        [MISSED, NOT_MEASURED].contains(&self.verdict())
    }
}

/// All rows, and under which circumstances.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    circumstances: Vec<(&'static str, String)>,
}

impl Report {
    /// Adds a row and tells it on standard error at once.
    pub fn add(&mut self, row: Row) {
        eprintln!("bench: {}", show(&row, 0).trim_end());
        self.rows.push(row);
    }

    /// Adds the rows of a part, or one that says why there are none.
    pub fn part(&mut self, what: &str, rows: Result<Vec<Row>>) {
        match rows {
            Ok(rows) => rows.into_iter().for_each(|row| self.add(row)),
            Err(error) => self.add(Row::missing(what, format!("{error:#}"))),
        }
    }

    /// Something about the machine or the run that the figures depend on.
    pub fn circumstance(&mut self, name: &'static str, value: impl Into<String>) {
        self.circumstances.push((name, value.into()));
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.circumstances {
            let _ = writeln!(text, "{name:<12} {value}");
        }
        let width = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0).max(8);
        let _ = writeln!(
            text,
            "\n{:<width$} {:>12} {:<10} {:>9} {:>9}  verdict",
            "what", "measured", "", "budget", "goal"
        );
        for row in &self.rows {
            text.push_str(&show(row, width));
        }
        let failed = self.rows.iter().filter(|row| row.failed()).count();
        let _ = match failed {
            0 => writeln!(text, "every budget holds"),
            failed => writeln!(text, "{failed} missed or not measured"),
        };
        text
    }

    /// Whether anything was measured, all of it, and every budget held.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.rows.is_empty() && !self.rows.iter().any(Row::failed)
    }

    /// Prints the table, writes it as `NAME.json`, and says whether it holds.
    ///
    /// # Errors
    /// Of the file system; they name the file.
    pub fn finish(&self, name: &str) -> Result<bool> {
        println!("\n{}", self.table());
        eprintln!("bench: written to {}", self.write(name)?.display());
        Ok(self.holds())
    }

    /// Writes `NAME.json` into the target directory's `bench` folder and hands its path back.
    ///
    /// # Errors
    /// Of the file system; they name the file.
    pub fn write(&self, name: &str) -> Result<PathBuf> {
        let rows: Vec<Value> = self.rows.iter().map(json_of).collect();
        let circumstances: serde_json::Map<_, _> = self
            .circumstances
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str())))
            .collect();
        let json = json!({ "bench": name, "circumstances": circumstances, "rows": rows });
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
        std::fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        let path = dir.join(format!("{name}.json"));
        std::fs::write(&path, serde_json::to_vec_pretty(&json)?)
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(path.canonicalize()?)
    }
}

/// What a program that measures ends with: whether everything held, or why it could not measure.
#[must_use]
pub fn exit_code(outcome: &Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Figures of a debug build mean nothing.
///
/// # Errors
/// In one, with the command that builds in release.
pub fn only_in_release(command: &str) -> Result<()> {
    if cfg!(debug_assertions) {
        bail!("figures of a debug build mean nothing: start this with '{command}'");
    }
    Ok(())
}

/// Ends what was started on a signal too: dropping the run drops the handles.
///
/// # Errors
/// The run's own, or the signal's name.
pub async fn until_told(run: impl Future<Output = Result<bool>>) -> Result<bool> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        outcome = run => outcome,
        _ = terminate.recv() => bail!("stopped by SIGTERM"),
        _ = interrupt.recv() => bail!("stopped by SIGINT"),
    }
}

fn json_of(row: &Row) -> Value {
    let (budget, goal, direction) = match row.limit {
        None => (None, None, None),
        Some(Limit::AtMost { budget, goal }) => (Some(budget), Some(goal), Some("at most")),
        Some(Limit::AtLeast { budget, goal }) => (Some(budget), Some(goal), Some("at least")),
    };
    json!({
        "what": row.what, "measured": row.measured.as_ref().ok(), "unit": row.unit,
        "reason": row.measured.as_ref().err(), "budget": budget, "goal": goal, "direction": direction,
        "verdict": row.verdict(), "note": row.note, "details": row.details,
    })
}

fn show(row: &Row, width: usize) -> String {
    let what = &row.what;
    let mut text = match &row.measured {
        Err(reason) => format!("{what:<width$} {NOT_MEASURED}: {reason}\n"),
        Ok(measured) => {
            let (budget, goal) = row.limit.map_or_else(Default::default, Limit::show);
            let (unit, verdict) = (row.unit, row.verdict());
            let digits = if *measured >= 1000.0 { 0 } else { 3 };
            format!("{what:<width$} {measured:>12.digits$} {unit:<10} {budget:>9} {goal:>9}  {verdict}")
                .trim_end()
                .to_owned()
                + "\n"
        }
    };
    if !row.note.is_empty() {
        let _ = writeln!(text, "    {}", row.note);
    }
    text
}

/// Times in ascending order.
#[derive(Debug, Clone, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Of times in any order.
    #[must_use]
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The time that `percent` of all are not above (nearest rank), in milliseconds; NaN of none.
    #[must_use]
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        let found = self.0.get(rank.saturating_sub(1)).map(Duration::as_secs_f64);
        found.map_or(f64::NAN, |seconds| seconds * 1e3)
    }

    /// For people.
    #[must_use]
    pub fn show(&self) -> String {
        let [p50, p95, p99] = [50.0, 95.0, 99.0].map(|percent| self.percentile_ms(percent));
        format!("p50 {p50:.1}, p95 {p95:.1}, p99 {p99:.1} ms")
    }

    /// For machines.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "count": self.count(), "p50_ms": self.percentile_ms(50.0), "p95_ms": self.percentile_ms(95.0),
            "p99_ms": self.percentile_ms(99.0), "slowest_ms": self.percentile_ms(100.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATIO: Limit = Limit::AtLeast { budget: 0.5, goal: 1.0 };
    const TIME: Limit = Limit::AtMost { budget: 5.0, goal: 2.0 };

    #[test]
    fn limits_know_which_way_is_better_and_no_number_holds_none() {
        let verdicts = |limit: Limit, values: [f64; 3]| values.map(|value| limit.verdict(value));
        assert_eq!(verdicts(RATIO, [0.4, 0.5, 1.5]), [MISSED, "within budget", "goal reached"]);
        assert_eq!(verdicts(TIME, [5.1, 5.0, 1.0]), [MISSED, "within budget", "goal reached"]);
        assert_eq!([RATIO, TIME].map(|limit| limit.verdict(f64::NAN)), [MISSED, MISSED]);
    }

    #[test]
    fn what_was_not_measured_fails_the_run_and_says_why() {
        let mut report = Report::default();
        report.add(Row::new("a ratio", 0.7, "x").limit(RATIO));
        assert!(report.holds());
        report.part("a part", Err(anyhow::anyhow!("etcd is not installed")));
        assert!(!report.holds());
        let table = report.table();
        assert!(table.contains("a part") && table.contains("NOT MEASURED: etcd is not installed"), "{table}");
        assert!(table.ends_with("1 missed or not measured\n"), "{table}");
        assert!(!Report::default().holds(), "nothing measured is nothing reached");
    }

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times = Times::new((1..=100).rev().map(Duration::from_millis).collect());
        let got = [1.0, 50.0, 95.0, 99.0, 100.0].map(|percent| times.percentile_ms(percent).round() as u64);
        assert_eq!(got, [1, 50, 95, 99, 100]);
        assert!((Times::new(vec![Duration::from_millis(7)]).percentile_ms(50.0) - 7.0).abs() < 1e-9);
        assert!(Times::default().percentile_ms(50.0).is_nan());
    }
}
