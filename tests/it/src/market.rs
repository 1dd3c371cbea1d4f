//! The market with nobody watching: three farms in three countries, five nodes, and bots that find, negotiate, pay,
//! approve and heal. The demo shows it, the end-to-end test asserts it; both are this.
//!
//! ```text
//!   alpha (be)  n1: the image in QEMU ──┐
//!   beta  (nl)  n2: the image in QEMU ──┼── one replica ── croft farm serve x 3, croft keep, and whoever acts
//!   gamma (de)  g1 g2 g3: sim_node    ──┘
//! ```
//! Everything but the machines lives by a clock that the last scene moves. What must answer runs on the machines, what
//! only has to be paid runs on simulated nodes. Without an image the first two nodes are simulated too: then their word
//! stands for an answer. It must never call a scene done whose outcome it did not look at.

mod heal;
mod money;
mod scenes;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use croft_qemu_harness::{Boot, Forward, Machine};
use serde_json::Value;

use crate::grid::{FarmPlan, Grid};
use crate::scene::{self, Say};
use crate::service::Service;
use crate::table::Table;
use crate::{http, oci};

/// From the contract to the first reply, on an emulated machine that emulates another one.
const ANSWERS: Duration = Duration::from_secs(600);
/// A simulated node hears of what concerns it.
const HEARD: Duration = Duration::from_secs(60);
/// Ports of the nodes: of the deployed server, of the kept one, of the recipe's.
const WEB: u16 = 18080;
const KEPT: u16 = 18081;
const SHOP: u16 = 18082;

const FARMS: [(FarmPlan<'static>, &str); 3] = [
    (
        FarmPlan { name: "alpha", bot: "ann", country: "be", node: "n1", prices: [100, 50] },
        include_str!("../fixtures/market/alpha.toml"),
    ),
    (
        FarmPlan { name: "beta", bot: "ben", country: "nl", node: "n2", prices: [110, 55] },
        include_str!("../fixtures/market/beta.toml"),
    ),
    (
        FarmPlan { name: "gamma", bot: "cas", country: "de", node: "g0", prices: [60, 30] },
        include_str!("../fixtures/market/gamma.toml"),
    ),
];
/// Simulated nodes of the last farm: name, CPUs, memory.
const SIMULATED: [(&str, &str, &str); 3] = [("g1", "4", "8G"), ("g2", "2", "4G"), ("g3", "0.5", "1G")];
const SMALL: &str = include_str!("../fixtures/market/small.toml");

/// The six scenes in their order, each with what it shows.
pub const SCENES: [&str; 6] = [
    "find: matches with prices, the others with reasons",
    "deploy: offers, a price below the limit, a workload that answers",
    "approve: a quorum by weight, and a refusal that refunds",
    "heal: a node dies, the bot replaces it by itself",
    "recipe: an expert's architecture with two parameters",
    "money: it runs out, the data stays, it goes on or ends",
];

/// What n1 and n2 are.
enum Host {
    /// The image in QEMU.
    Machine(Box<Machine>),
    Simulated(Box<Service>),
    Off,
}

/// Everybody, between two scenes.
pub struct Market {
    pub grid: Grid,
    pub table: Table,
    /// n1 and n2.
    hosts: [Host; 2],
    simulated: Vec<Service>,
    farmers: Vec<Service>,
    keeper: Option<Service>,
    cache: PathBuf,
}

impl Market {
    /// The ledger, three farms that sell by their policies, and five nodes that are registered. The first two boot these
    /// images, or the only one; none, and they are simulated.
    ///
    /// # Errors
    /// Names the step that failed, with the last lines of the machine.
    pub async fn begin(dir: &Path, images: &[PathBuf], cache: &Path, say: Say<'_>) -> Result<Self> {
        let mut table = Table::default();
        let started = Instant::now();
        say(
            "starting the ledger, and opening three farms in three countries, each served by a bot of its own",
        );
        let grid = Grid::start_with_clock(dir).await?;
        let mut boots = Vec::new();
        let mut farmers = Vec::new();
        for (plan, policy) in FARMS {
            boots.push(grid.open_farm(plan).await?);
            let file = dir.join(format!("{}.policy.toml", plan.name));
            std::fs::write(&file, policy)?;
            let serve = ["--bot", plan.bot, "farm", "serve", plan.name, "--policy", path(&file)?];
            let ready = format!("serves {}", plan.name);
            farmers.push(grid.service(&format!("farm-{}", plan.name), &serve, &ready).await?);
        }
        table.add("ledger and farms", started.elapsed(), "alpha (be), beta (nl), gamma (de), one bot each");
        let mut market = Self {
            grid,
            table,
            hosts: [Host::Off, Host::Off],
            simulated: Vec::new(),
            farmers,
            keeper: None,
            cache: cache.to_owned(),
        };
        let started = Instant::now();
        say("starting five nodes: two machines in QEMU where there is an image, the others simulated");
        for index in [0, 1] {
            let name = FARMS[index].0.node;
            let image = images.get(index).or(images.first());
            market.hosts[index] = match image {
                Some(image) => {
                    Host::Machine(Box::new(market.boot(name, image, &boots[index].machine, say).await?))
                }
                None => Host::Simulated(Box::new(
                    market.simulate(name, "2", "2560M", &boots[index].process).await?,
                )),
            };
        }
        for (name, cpu, memory) in SIMULATED {
            let node = market.simulate(name, cpu, memory, &boots[2].process).await?;
            market.simulated.push(node);
        }
        market.bots().await?;
        for host in &mut market.hosts {
            if let Host::Machine(machine) = host {
                scene::registered(machine).await?;
            }
        }
        let what = if images.is_empty() { "5 processes" } else { "2 machines in QEMU, 3 processes" };
        market.table.add("five nodes", started.elapsed(), format!("{what}; all on the ledger"));
        Ok(market)
    }

    async fn boot(&self, name: &str, image: &Path, boot: &str, say: Say<'_>) -> Result<Machine> {
        let boot = self.grid.machine(name, image, boot)?;
        let forwards = [WEB, KEPT, SHOP].map(Forward::tcp);
        let machine = forwards.into_iter().fold(boot, Boot::forward).start().await?;
        say(&format!("  {name}: {} ({})", image.display(), machine.decision().reason));
        Ok(machine)
    }

    async fn simulate(&self, name: &str, cpu: &str, memory: &str, boot: &Path) -> Result<Service> {
        let dir = self.grid.dir().join(name);
        let arguments = ["--boot-config", path(boot)?, "--dir", path(&dir)?, "--name", name, "--cpu", cpu];
        let more = ["--memory", memory, "--report-every", "5"];
        let arguments: Vec<String> = arguments.iter().chain(&more).map(ToString::to_string).collect();
        self.grid.program(name, "sim_node", &arguments, "registered").await
    }

    /// Users, approvers, an expert, and the image that they deploy, while machines boot.
    async fn bots(&self) -> Result<()> {
        for (bot, grains) in [
            ("alice", "1000000000"),
            ("bob", "1000000000"),
            ("carol", "1000000000"),
            ("eve", "1000"),
            ("olga", "1000"),
            ("otto", "1000"),
        ] {
            self.grid.croft(["bot", "new", bot, "--grains", grains]).await?;
        }
        let layout = oci::nginx_layout(&self.cache)?;
        let source = format!("{}:{}", layout.display(), oci::TAG);
        self.grid.croft(["image", "build", &source, "--name", "nginx"]).await?;
        Ok(())
    }

    /// All six scenes, one after the other.
    ///
    /// # Errors
    /// Names the scene that failed.
    pub async fn play(&mut self, say: Say<'_>) -> Result<()> {
        for (number, scene) in (1..).zip(SCENES) {
            say(&format!("scene {number} of {}: {scene}", SCENES.len()));
            let started = Instant::now();
            let done = match number {
                1 => self.find(say).await,
                2 => self.deploy(say).await,
                3 => self.approve(say).await,
                4 => self.heal(say).await,
                5 => self.recipe(say).await,
                _ => self.money(say).await,
            };
            let detail = done.with_context(|| format!("scene {number}, {scene}"))?;
            let name = scene.split_once(':').map_or(scene, |(name, _)| name);
            self.table.add(&format!("{number} {name}"), started.elapsed(), detail);
        }
        Ok(())
    }

    /// Ends every process in order, and switches off what still runs.
    ///
    /// # Errors
    /// Names the one that does not end.
    pub async fn end(mut self) -> Result<()> {
        self.switch_off().await?;
        let services = self.keeper.into_iter().chain(self.farmers).chain(self.simulated);
        for service in services {
            service.stop().await?;
        }
        self.grid.stop().await
    }

    async fn switch_off(&mut self) -> Result<()> {
        for index in [0, 1] {
            self.kill_host(index).await?;
        }
        Ok(())
    }

    /// As a power cut would, for good.
    async fn kill_host(&mut self, index: usize) -> Result<()> {
        match std::mem::replace(&mut self.hosts[index], Host::Off) {
            Host::Machine(mut machine) => machine.kill().await.map(drop).map_err(Into::into),
            Host::Simulated(node) => node.kill().await,
            Host::Off => Ok(()),
        }
    }

    /// Where this machine finds a port of one in QEMU.
    fn address(&self, host: usize, port: u16) -> Result<SocketAddr> {
        let Host::Machine(machine) = &self.hosts[host] else { bail!("there is no machine in QEMU") };
        machine.address(port).with_context(|| format!("port {port} is forwarded"))
    }

    /// Waits until a workload on a host answers; what it said. A simulated one says of itself that it runs.
    async fn answers(&mut self, host: usize, workload: &str, port: u16) -> Result<Option<http::Answer>> {
        match &mut self.hosts[host] {
            Host::Machine(machine) => {
                let address = machine.address(port).with_context(|| format!("port {port} is forwarded"))?;
                let waited = http::wait_for_ok(address, "/", ANSWERS).await;
                waited.map(Some).with_context(|| machine.serial().tail())
            }
            Host::Simulated(node) => {
                node.wait_for(&format!("workload {workload}: running"), ANSWERS).await?;
                Ok(None)
            }
            Host::Off => bail!("'{workload}' is to answer on a host that is off"),
        }
    }

    /// Writes a file beside the grid; its path.
    fn file(&self, name: &str, text: &str) -> Result<String> {
        let file = self.grid.dir().join(name);
        std::fs::write(&file, text)?;
        Ok(path(&file)?.to_owned())
    }

    /// A contract of a bot as `croft ps --all` shows it: the newest of this name.
    async fn contract(&self, bot: &str, name: &str) -> Result<Value> {
        let all = self.grid.json(["--bot", bot, "ps", "--all"]).await?;
        let contracts = all["contracts"].as_array().context("ps lists contracts")?.iter();
        let newest = contracts.filter(|c| c["name"] == name).max_by_key(|c| c["agreed_ms"].as_u64());
        newest.cloned().with_context(|| format!("'{bot}' has no contract '{name}': {all}"))
    }

    async fn balance(&self, bot: &str) -> Result<u64> {
        number(&self.grid.json(["--bot", bot, "wallet", "show"]).await?, "balance")
    }

    /// Waits until a simulated node says something; which node.
    async fn heard(&self, text: &str) -> Result<&'static str> {
        let waits = self.simulated.iter().zip(SIMULATED).map(|(service, (name, ..))| {
            Box::pin(async move { service.wait_for(text, HEARD).await.map(|_| name) })
        });
        let (name, _) = futures_util::future::select_ok(waits).await?;
        Ok(name)
    }

    /// Whether no simulated node said something so far.
    fn unheard(&self, text: &str) -> bool {
        let said = |service: &Service| service.lines().iter().any(|line| line.contains(text));
        !self.simulated.iter().any(said)
    }

    /// Runs a croft command as a bot, and shows it with what it printed.
    async fn show(&self, bot: &str, arguments: &[&str], say: Say<'_>) -> Result<String> {
        let short = |word: &&'_ str| match word.strip_prefix('/') {
            Some(path) => path.rsplit('/').next().unwrap_or(path).to_owned(),
            None => (*word).to_owned(),
        };
        let shown: Vec<String> = arguments.iter().map(short).collect();
        say(&format!("{bot}$ croft {}", shown.join(" ")));
        let output = self.grid.croft(["--bot", bot].iter().chain(arguments)).await?;
        for line in output.trim_end().lines() {
            say(&format!("  {line}"));
        }
        Ok(output)
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

fn number(value: &Value, field: &str) -> Result<u64> {
    value[field].as_u64().with_context(|| format!("'{field}' is a number in {value}"))
}

/// Something that people read has this in it.
fn has(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "'{part}' is not in:\n{text}");
    Ok(())
}

fn is(value: &Value, field: &str, expected: &str) -> Result<()> {
    ensure!(value[field] == expected, "'{field}' is {}, not '{expected}': {value}", value[field]);
    Ok(())
}
