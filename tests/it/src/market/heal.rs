//! A node dies for good, and nobody has to look.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::scenes::web;
use super::{KEPT, Market, number};
use crate::scene::Say;
use crate::service::Service;

/// Until a bot that keeps something has replaced a silent node: the replica misses it, a minute of silence, a look each
/// quarter of a minute, offers, and the start of a microVM; on a busy machine.
const REPLACED: Duration = Duration::from_secs(600);
/// As in the keep file.
const LIMIT: u64 = 6_500_000;
const KEEP: &str = include_str!("../../fixtures/market/keep.toml");

impl Market {
    /// Scene 4: `croft keep` orders, its node is killed, it orders a successor within its limits and closes the old one.
    pub(super) async fn heal(&mut self, say: Say<'_>) -> Result<String> {
        self.file("kept-web.toml", &web("kept", KEPT))?;
        let file = self.file("keep.toml", KEEP)?;
        say("bob$ croft keep keep.toml");
        let keep = ["--bot", "bob", "--json", "keep", &file];
        let keeper = self.grid.service("keep", &keep, "\"keeping\"").await?;
        let ordered = keeper.wait_for("kept-0-1", REPLACED).await?;
        say(&format!("  {}", told(&ordered)));
        self.keeper = Some(keeper);
        self.kept_answers(0, "kept-0-1").await?;
        let before = self.contract("bob", "kept-0-1").await?;
        say("  it answers from n1; now n1 dies for good (SIGKILL)");
        self.kill_host(0).await?;
        let died = Instant::now();
        // The time that silence takes is somebody else's time to work.
        self.shop_image().await?;
        let keeper = self.keeper.as_ref().context("croft keep runs")?;
        let again = keeper.wait_for("kept-0-2", REPLACED).await?;
        say(&format!("  {}", told(&again)));
        self.kept_answers(1, "kept-0-2").await?;
        let took = died.elapsed();
        let after = self.until("bob", "kept-0-2", "active").await?;
        ensure!(after["node"] == "n2", "the successor is elsewhere: {after}");
        for contract in [&before, &after] {
            let price = number(contract, "price")?;
            ensure!(price <= LIMIT, "{price} is beyond the owner's limit of {LIMIT}: {contract}");
        }
        let old = self.until("bob", "kept-0-1", "ended").await?;
        ensure!(old["online"] == false, "n1 is dead: {old}");
        // What ran since the last report waits for a final one; the rest is back.
        let rest = number(&old, "price")? - number(&old, "paid")? - number(&old, "held")?;
        ensure!(number(&old, "refunded")? == rest && rest > 0, "what did not run is refunded: {old}");
        Ok(format!(
            "{:.0} s from death to an answer from n2; n1's contract closed and refunded",
            took.as_secs_f64()
        ))
    }

    async fn kept_answers(&mut self, host: usize, contract: &str) -> Result<()> {
        let answer = self.answers(host, contract, KEPT).await;
        let lines = self.keeper.as_ref().map(Service::lines).unwrap_or_default();
        answer.map(drop).with_context(|| format!("the keeper said:\n{}", lines.join("\n")))
    }

    /// Ends `croft keep` in order.
    pub(super) async fn stop_keeping(&mut self) -> Result<()> {
        let keeper = self.keeper.take().context("croft keep runs")?;
        keeper.stop().await
    }
}

/// A line of `croft keep --json`, for people.
fn told(line: &str) -> String {
    let event: Value = serde_json::from_str(line).unwrap_or_default();
    let part = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
    format!("{} {}: {}", part("event"), part("name"), part("reason"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_keeper_is_told_in_words() {
        let line = r#"{"time_ms":1,"order":"kept","event":"order","name":"kept-0-1","reason":"replica 0 is missing"}"#;
        assert_eq!(told(line), "order kept-0-1: replica 0 is missing");
    }
}
