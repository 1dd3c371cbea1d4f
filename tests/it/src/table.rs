//! What happened, as a table with times.

use std::fmt::Write;
use std::time::Duration;

/// Stages in order, each with how long it took and what it showed.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Row>,
}

#[derive(Debug, Clone)]
pub struct Row {
    pub stage: String,
    pub took: Duration,
    pub detail: String,
}

impl Table {
    pub fn add(&mut self, stage: &str, took: Duration, detail: impl Into<String>) {
        self.rows.push(Row { stage: stage.into(), took, detail: detail.into() });
    }

    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The time of a stage, if it is there.
    #[must_use]
    pub fn took(&self, stage: &str) -> Option<Duration> {
        self.rows.iter().find(|row| row.stage == stage).map(|row| row.took)
    }

    /// Aligned text with a sum.
    #[must_use]
    pub fn show(&self) -> String {
        let width = self.rows.iter().map(|row| row.stage.chars().count()).max().unwrap_or(0).max(5);
        let mut text = String::new();
        for row in &self.rows {
            let seconds = row.took.as_secs_f64();
            let _ = writeln!(text, "  {:<width$}  {seconds:>7.1} s  {}", row.stage, row.detail);
        }
        let sum: Duration = self.rows.iter().map(|row| row.took).sum();
        let _ = writeln!(text, "  {:<width$}  {:>7.1} s", "total", sum.as_secs_f64());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_adds_up() {
        let mut table = Table::default();
        table.add("boot", Duration::from_millis(1500), "registered");
        table.add("deploy", Duration::from_millis(500), "answers");
        let shown = table.show();
        assert_eq!(shown.lines().next(), Some("  boot        1.5 s  registered"));
        assert!(shown.lines().last().unwrap().starts_with("  total       2.0 s"));
        assert_eq!(table.took("deploy"), Some(Duration::from_millis(500)));
    }
}
