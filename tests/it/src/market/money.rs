//! Money runs out. Hours pass here in a moment: the grid's clock is moved, and nothing else is different.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{sleep, timeout};

use super::{Market, SMALL, has, is, number};
use crate::scene::Say;

/// The ledger makes a block after each jump: it does so by itself, within a heartbeat.
const FRESH: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(250);
/// What is paid ahead lasts for an hour; the last half minute of it is not worth a start.
const NEARLY_AN_HOUR: Duration = Duration::from_secs(3570);
/// The grace period of the contracts, and a little.
const GRACE: Duration = Duration::from_secs(31 * 60);
/// With the others more than two hours: as long as a report may be missing.
const SILENCE: Duration = Duration::from_secs(70 * 60);

impl Market {
    /// Scene 6: two contracts run out of what was paid ahead. One is funded and goes on with its data, the other ends
    /// after its grace period. What nobody kept on the dead machine is degraded, and costs nothing.
    pub(super) async fn money(&mut self, say: Say<'_>) -> Result<String> {
        // Machines keep their own clocks.
        self.stop_keeping().await?;
        self.switch_off().await?;
        for name in ["paid", "lapsed"] {
            let hourly = SMALL.replace("NAME", name).replace("grace =", "prepaid = \"1h\"\ngrace =");
            let file = self.file(&format!("{name}.toml"), &hourly)?;
            self.show("bob", &["deploy", &file, "--yes"], say).await?;
            self.heard(&format!("workload {name}: running")).await?;
        }
        say("nearly an hour passes");
        self.pass(NEARLY_AN_HOUR).await?;
        for name in ["paid", "lapsed"] {
            self.heard(&format!("workload {name}: paused: stopped, its data is kept")).await?;
        }
        self.show("bob", &["ps"], say).await?;
        let paused = self.contract("bob", "paid").await?;
        is(&paused, "state", "paused")?;
        let missing = number(&paused, "missing")?;
        ensure!(number(&paused, "paused_until_ms")? > self.grid.clock()?.now_ms(), "{paused}");
        self.show("bob", &["fund", "paid", &missing.to_string()], say).await?;
        let on = self.heard("workload paid: running again, with the data of before").await?;
        self.until("bob", "paid", "active").await?;

        say("the grace period passes; anybody settles");
        let before = self.balance("bob").await?;
        self.pass(GRACE).await?;
        let text = self.show("olga", &["settle", "bob/lapsed"], say).await?;
        has(&text, "ended")?;
        self.heard("workload lapsed: stopped: OutOfFunds; its data is deleted").await?;
        let lapsed = self.contract("bob", "lapsed").await?;
        is(&lapsed, "reason", "out of funds")?;
        let (deposit, paid) = (number(&lapsed, "deposit")?, number(&lapsed, "paid")?);
        let refunded = number(&lapsed, "refunded")?;
        ensure!(paid > 0 && paid + refunded == deposit, "all of the deposit is somewhere: {lapsed}");
        ensure!(self.balance("bob").await? == before + refunded, "{refunded} went back to bob");
        is(&self.contract("bob", "paid").await?, "state", "active")?;
        self.silence(say).await?;
        Ok(format!("paid: resumed on {on} with its data; lapsed: ended, {refunded} of {deposit} grains back"))
    }

    /// What ran on the machine that died, and was nobody's to keep: no report, no pay.
    async fn silence(&mut self, say: Say<'_>) -> Result<()> {
        let before = self.contract("alice", "web").await?;
        is(&before, "state", "active")?;
        say("another hour passes without a word of n1");
        self.pass(SILENCE).await?;
        let text = self.show("otto", &["settle", "alice/web"], say).await?;
        has(&text, "is degraded")?;
        let after = self.contract("alice", "web").await?;
        ensure!(after["paid"] == before["paid"], "silence was paid: {before} {after}");
        let ended = self.show("alice", &["stop", "web"], say).await?;
        has(&ended, "ended")
    }

    /// So much time passes, and the ledger has noticed when this returns.
    async fn pass(&mut self, time: Duration) -> Result<()> {
        self.grid.clock()?.advance(time)?;
        let now_ms = self.grid.clock()?.now_ms();
        let noticed = async {
            loop {
                // Until then its newest header is too old to be believed.
                let (code, status, _) = self.grid.try_croft(["--json", "grid", "status"]).await?;
                let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
                if code == 0 && status["time_ms"].as_u64() >= Some(now_ms) {
                    return anyhow::Ok(());
                }
                sleep(POLL).await;
            }
        };
        match timeout(FRESH, noticed).await {
            Ok(done) => done,
            Err(_) => anyhow::bail!("the ledger makes no block within {FRESH:?} after the clock was moved"),
        }
    }
}
