//! The main job, end to end, as a person would do it: the demo shows it, the lifecycle test asserts it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use croft_qemu_harness::Machine;

use crate::grid::Grid;
use crate::table::Table;
use crate::{http, oci};

/// From power-on to registered, with emulation on a busy machine.
const REGISTERED: Duration = Duration::from_secs(600);
/// From the contract to the first reply.
const ANSWERS: Duration = Duration::from_secs(900);

/// Two times expiry, write-back and journal commit: 2 + 1 + 5 s each.
const WRITTEN_BACK: Duration = Duration::from_secs(16);

/// The deploy file of the demo.
pub const WEB: &str = include_str!("../fixtures/web.toml");

/// A grid with a node and a workload that answers.
pub struct Scene {
    pub grid: Grid,
    pub node: Machine,
    pub table: Table,
    /// What it boots again from after a power cut; empty for one that firmware booted.
    image: PathBuf,
    web: SocketAddr,
}

/// Says what goes on.
pub type Say<'a> = &'a mut dyn FnMut(&str);

impl Scene {
    /// Steps 3 and 4: ledger, farm, and a machine that boots and registers.
    ///
    /// # Errors
    /// Names the step that failed, with the last lines of the machine.
    pub async fn begin(dir: &Path, image: &Path, replicas: u16, say: Say<'_>) -> Result<Self> {
        let mut table = Table::default();
        say("starting the ledger (croft grid up) and a farm owned by a bot");
        let started = Instant::now();
        let mut grid = Grid::start(dir, replicas).await?;
        grid.farm().await?;
        let what = match replicas {
            1 => "croft grid up, farm 'alpha' of bot 'farmer'".to_owned(),
            n => format!("{n} replicas that decide together, farm 'alpha' of bot 'farmer'"),
        };
        table.add("ledger and farm", started.elapsed(), what);
        say("booting the image on an empty machine in QEMU");
        let started = Instant::now();
        let mut node = grid.boot_node(image).await?;
        say(&format!("  {}", node.decision().reason));
        let line = registered(&mut node).await?;
        table.add("boot to registered", started.elapsed(), line);
        let web = node.address(grid.web_port()).context("the published port is forwarded")?;
        Ok(Self { grid, node, table, image: image.to_owned(), web })
    }

    /// With a machine that runs already and forwards the web port.
    ///
    /// # Errors
    /// When it does not forward it.
    pub fn with(grid: Grid, node: Machine) -> Result<Self> {
        let web = node.address(grid.web_port()).context("the published port is forwarded")?;
        Ok(Self { grid, node, table: Table::default(), image: PathBuf::new(), web })
    }

    /// Step 5 and 6: an OCI image made by other tools, a contract, and a workload that answers.
    ///
    /// # Errors
    /// Names the step that failed.
    pub async fn deploy(&mut self, cache: &Path, say: Say<'_>) -> Result<()> {
        say("making an OCI image of nginx from the distribution's packages (mmdebstrap, umoci)");
        let started = Instant::now();
        let layout = oci::nginx_layout(cache)?;
        self.table.add("OCI image", started.elapsed(), layout.display().to_string());
        say("turning it into a workload image: EROFS, dm-verity, chunks");
        let started = Instant::now();
        let source = format!("{}:{}", layout.display(), oci::TAG);
        self.grid.croft(["image", "build", &source, "--name", "nginx"]).await?;
        self.table.add("workload image", started.elapsed(), "EROFS + dm-verity, in chunks");
        say("deploying web.toml as bot 'alice'");
        self.grid.croft(["bot", "new", "alice", "--grains", "1000000000"]).await?;
        let file = self.grid.dir().join("web.toml");
        std::fs::write(&file, WEB.replace("18080", &self.grid.web_port().to_string()))?;
        let started = Instant::now();
        let file = file.to_str().context("a path in UTF-8")?.to_owned();
        self.grid.croft(["--bot", "alice", "deploy", &file, "--yes", "--detach"]).await?;
        self.table.add("contract final", started.elapsed(), "signed by both bots, sealed to the node");
        let started = Instant::now();
        let answer =
            http::wait_for_ok(self.web, "/", ANSWERS).await.with_context(|| self.node.serial().tail())?;
        ensure!(answer.body.contains("Croft"), "another server answers: {}", answer.body);
        self.table.add("first reply", started.elapsed(), format!("HTTP 200 from http://{}/", self.web));
        Ok(())
    }

    /// Writes to both kinds of volume through nginx, and waits until a power cut can't take it back: nginx does not
    /// sync, so the kernels of guest and node bring it to the disk, each within some seconds.
    ///
    /// # Errors
    /// When nginx does not take it.
    pub async fn write(&self, text: &str) -> Result<()> {
        for path in ["/data/note", "/shared/note"] {
            let answer = http::put(self.web, path, text).await?;
            ensure!(matches!(answer.status, 201 | 204), "PUT {path}: status {}", answer.status);
        }
        tokio::time::sleep(WRITTEN_BACK).await;
        Ok(())
    }

    /// Reads what was written.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn read(&self, expected: &str) -> Result<()> {
        for path in ["/data/note", "/shared/note"] {
            let answer = http::get(self.web, path).await?;
            ensure!(answer.status == 200 && answer.body == expected, "GET {path}: {answer:?}");
        }
        Ok(())
    }

    /// Step 7: pulls the power and boots again, with nobody's help.
    ///
    /// # Errors
    /// When the workload does not come back.
    pub async fn power_cut(&mut self, say: Say<'_>) -> Result<()> {
        say("pulling the power (SIGKILL on QEMU) and booting again");
        self.node.kill().await?;
        if self.grid.replicas() > 1 {
            say("killing the first replica too: the others go on");
            self.grid.kill_replica(0).await?;
        }
        ensure!(http::is_silent(self.web).await, "something else answers on {}", self.web);
        let started = Instant::now();
        self.node = self.grid.boot_node(&self.image).await?;
        self.web = self.node.address(self.grid.web_port()).context("the published port is forwarded")?;
        http::wait_for_ok(self.web, "/", ANSWERS).await.with_context(|| self.node.serial().tail())?;
        self.table.add("power cut to reply", started.elapsed(), "the same workload, nobody's help");
        if self.grid.replicas() > 1 {
            self.grid.start_replica(0).await?;
        }
        Ok(())
    }

    /// Step 8: stops the contract and waits until nothing answers.
    ///
    /// # Errors
    /// When it goes on, or the ledger does not show the end.
    pub async fn stop(&mut self, say: Say<'_>) -> Result<()> {
        say("stopping the contract");
        let started = Instant::now();
        self.grid.croft(["--bot", "alice", "stop", "web"]).await?;
        self.node
            .serial()
            .wait_for("workload web: stopped", Duration::from_secs(120))
            .await
            .context("the node stops the workload")?;
        self.table.add("contract stopped", started.elapsed(), "microVM gone, capacity free, rest refunded");
        ensure!(http::is_silent(self.web).await, "the workload still answers");
        Ok(())
    }

    /// Runs a croft command and says what it printed.
    ///
    /// # Errors
    /// The command's own message.
    pub async fn show(&self, arguments: &[&str], say: Say<'_>) -> Result<()> {
        let output = self.grid.croft(arguments).await?;
        let shown = arguments.strip_prefix(&["--bot", "alice"]).unwrap_or(arguments);
        say(&format!("$ croft {}\n{}", shown.join(" "), output.trim_end()));
        Ok(())
    }

    /// Address of the workload on this machine.
    #[must_use]
    pub fn web(&self) -> SocketAddr {
        self.web
    }
}

/// Waits until the machine says that it is registered; what it said.
///
/// # Errors
/// With the last lines of the machine.
pub async fn registered(node: &mut Machine) -> Result<String> {
    let line =
        node.serial().wait_for("register: ok", REGISTERED).await.context("the machine does not register")?;
    Ok(line.text.split("register: ").nth(1).unwrap_or_default().to_owned())
}
