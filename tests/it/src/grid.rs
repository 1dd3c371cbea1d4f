//! A grid on one machine: a ledger, a farmer's bot, a user's bot, each its own process, and nodes in QEMU.

use std::ffi::OsStr;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use croft_qemu_harness::{Boot, Forward, Machine, Medium, Profile};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::service::Service;

/// Any single croft command.
const COMMAND: Duration = Duration::from_secs(300);

/// A grid under construction and in use.
pub struct Grid {
    dir: PathBuf,
    croft: PathBuf,
    replica_port: u16,
    web_port: u16,
    /// One process for each replica.
    ledger: Vec<Option<Service>>,
    farmer: Option<Service>,
    /// What every process lives by, if it is not this machine's.
    clock: Option<Clock>,
}

/// A farm to be opened.
#[derive(Debug, Clone, Copy)]
pub struct FarmPlan<'a> {
    pub name: &'a str,
    /// Its owner.
    pub bot: &'a str,
    pub country: &'a str,
    /// What its machine in QEMU is called.
    pub node: &'a str,
    /// Grains per second for a CPU and for a GiB of memory.
    pub prices: [u64; 2],
}

impl Grid {
    /// A new grid called `demo` below `dir`, with its ledger running: on one replica that orders alone, or on
    /// several that decide together, each its own process.
    ///
    /// # Errors
    /// Names the step that failed.
    pub async fn start(dir: &Path, replicas: u16) -> Result<Self> {
        Self::start_with(dir, replicas, &[]).await
    }

    /// The same with more arguments for `croft grid init`.
    ///
    /// # Errors
    /// Names the step that failed.
    pub async fn start_with(dir: &Path, replicas: u16, more: &[&str]) -> Result<Self> {
        Self::make(dir, replicas, more, None).await
    }

    /// One replica, and a clock that can be moved.
    ///
    /// # Errors
    /// Names the step that failed.
    pub async fn start_with_clock(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let clock = Clock::new(dir)?;
        Self::make(dir, 1, &[], Some(clock)).await
    }

    async fn make(dir: &Path, replicas: u16, more: &[&str], clock: Option<Clock>) -> Result<Self> {
        let croft = binary("croft")?;
        std::fs::create_dir_all(dir)?;
        let replica_port = free_udp_ports(replicas)?;
        let mut grid = Self {
            dir: dir.to_owned(),
            croft,
            replica_port,
            web_port: free_tcp_port()?,
            ledger: (0..replicas).map(|_| None).collect(),
            farmer: None,
            clock,
        };
        let (listen, count) = (format!("127.0.0.1:{replica_port}"), replicas.to_string());
        let init = ["grid", "init", "demo", "--listen", &listen, "--replicas", &count];
        grid.croft(init.iter().chain(more)).await?;
        grid.start_ledger().await?;
        Ok(grid)
    }

    /// Starts every process of the ledger.
    ///
    /// # Errors
    /// When one does not get ready.
    pub async fn start_ledger(&mut self) -> Result<()> {
        for index in 0..self.ledger.len() {
            self.start_replica(index).await?;
        }
        Ok(())
    }

    /// Starts one process of the ledger, counted from 0.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start_replica(&mut self, index: usize) -> Result<()> {
        let mut command = self.command();
        let number = (index + 1).to_string();
        command.args(["grid", "up", "--replica", &number]);
        let log = self.dir.join(format!("ledger-{number}.log"));
        self.ledger[index] = Some(Service::start("croft grid up", command, "ready", &log).await?);
        Ok(())
    }

    /// Ends the ledger's processes in order.
    ///
    /// # Errors
    /// When one does not end.
    pub async fn stop_ledger(&mut self) -> Result<()> {
        for index in 0..self.ledger.len() {
            self.stop_replica(index).await?;
        }
        Ok(())
    }

    /// Ends one process of the ledger in order.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop_replica(&mut self, index: usize) -> Result<()> {
        match self.ledger[index].take() {
            Some(replica) => replica.stop().await,
            None => Ok(()),
        }
    }

    /// Kills one process of the ledger, as a power cut would.
    ///
    /// # Errors
    /// When it can't be killed.
    pub async fn kill_replica(&mut self, index: usize) -> Result<()> {
        match self.ledger[index].take() {
            Some(replica) => replica.kill().await,
            None => Ok(()),
        }
    }

    /// How many replicas the grid has.
    #[must_use]
    pub fn replicas(&self) -> usize {
        self.ledger.len()
    }

    /// A farm called `alpha` of a bot called `farmer`, whose process answers proposals.
    ///
    /// # Errors
    /// Names the command that failed.
    pub async fn farm(&mut self) -> Result<()> {
        self.croft(["bot", "new", "farmer", "--grains", "1000000"]).await?;
        self.boot_config_of("alpha", &self.boot_file(), &["--node-name", "n1"]).await?;
        let mut command = self.command();
        command.args(["--bot", "farmer", "farm", "serve"]);
        let log = self.dir.join("farmer.log");
        self.farmer = Some(Service::start("croft farm serve", command, "serves", &log).await?);
        Ok(())
    }

    /// Opens a farm of the bot `farmer` where there is none of that name, and writes what its machines boot with.
    ///
    /// # Errors
    /// The command's own message.
    pub async fn boot_config_of(&self, farm: &str, out: &Path, more: &[&str]) -> Result<()> {
        let out = out.to_str().context("a path in UTF-8")?;
        let new = ["--bot", "farmer", "farm", "new", farm, "--country", "be", "--boot-config", out];
        let node = ["--public-address", "127.0.0.1"];
        let mut arguments: Vec<String> =
            new.iter().chain(&node).chain(more).map(ToString::to_string).collect();
        arguments.extend(self.replicas_for_machines());
        self.croft(arguments).await.map(drop)
    }

    /// Another farm of a new bot; the boot configuration of its machines in QEMU and on this machine.
    ///
    /// # Errors
    /// The command's own message.
    pub async fn open_farm(&self, plan: FarmPlan<'_>) -> Result<FarmBoot> {
        self.croft(["bot", "new", plan.bot, "--grains", "1000000"]).await?;
        let path = |kind: &str| self.dir.join(format!("{}-{kind}.toml", plan.name));
        let (inside, outside) = (path("machine"), path("process"));
        let [cpu, memory] = plan.prices.map(|price| price.to_string());
        let new = ["--bot", plan.bot, "farm", "new", plan.name, "--country", plan.country];
        let prices = ["--price-cpu", &cpu, "--price-memory", &memory, "--public-address", "127.0.0.1"];
        let common: Vec<String> = new.iter().chain(&prices).map(ToString::to_string).collect();
        let to = |file: &Path| Ok::<_, anyhow::Error>(["--boot-config".to_owned(), text(file)?]);
        self.croft(common.iter().cloned().chain(to(&outside)?)).await?;
        let node = ["--node-name", plan.node].map(str::to_owned);
        let machine =
            common.iter().cloned().chain(node).chain(to(&inside)?).chain(self.replicas_for_machines());
        self.croft(machine).await?;
        Ok(FarmBoot { machine: std::fs::read_to_string(inside)?, process: outside })
    }

    /// Flags that name the replicas as QEMU shows this machine to a node.
    fn replicas_for_machines(&self) -> Vec<String> {
        let ports = (self.replica_port..).take(self.ledger.len());
        ports.flat_map(|port| ["--replica-address".to_owned(), format!("10.0.2.2:{port}")]).collect()
    }

    /// Runs a croft command that goes on until its handle ends it.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn service(&self, name: &str, arguments: &[&str], ready: &str) -> Result<Service> {
        let mut command = self.command();
        command.args(arguments);
        Service::start(name, command, ready, &self.dir.join(format!("{name}.log"))).await
    }

    /// Runs another program of the workspace by the grid's clock.
    ///
    /// # Errors
    /// When it is not built, or does not get ready.
    pub async fn program(
        &self,
        name: &str,
        program: &str,
        arguments: &[String],
        ready: &str,
    ) -> Result<Service> {
        let mut command = Command::new(binary(program)?);
        if let Some(clock) = &self.clock {
            clock.of(&mut command);
        }
        command.args(arguments);
        Service::start(name, command, ready, &self.dir.join(format!("{name}.log"))).await
    }

    /// The clock that everybody but machines in QEMU lives by.
    ///
    /// # Errors
    /// When the grid was started without one.
    pub fn clock(&mut self) -> Result<&mut Clock> {
        self.clock.as_mut().context("this grid lives by the machine's clock")
    }

    fn boot_file(&self) -> PathBuf {
        self.dir.join("boot.toml")
    }

    /// The boot configuration of the farm's nodes.
    ///
    /// # Errors
    /// Before [`Self::farm`].
    pub fn boot_config(&self) -> Result<String> {
        std::fs::read_to_string(self.boot_file()).context("the farm's boot configuration")
    }

    /// What [`Self::boot_node`] boots, to be changed by a test.
    ///
    /// # Errors
    /// When there is no such profile, or no farm yet.
    pub fn node(&self, image: &Path, boot_toml: &str) -> Result<Boot> {
        let boot = self.machine("node", image, boot_toml)?;
        Ok(boot.forward(Forward::tcp(self.web_port).at_host_port(self.web_port)))
    }

    /// A machine that boots an image directory, with a data disk of its own; nothing of it is forwarded yet.
    ///
    /// # Errors
    /// When there is no such profile.
    pub fn machine(&self, name: &str, image: &Path, boot_toml: &str) -> Result<Boot> {
        let boot = Boot::image(Profile::named("standard")?, image, self.dir.join(name));
        Ok(boot.boot_file(boot_toml).lifetime(Duration::from_secs(3600)))
    }

    /// Boots the farm's node from an image directory, with its data disk.
    ///
    /// # Errors
    /// When QEMU does not start.
    pub async fn boot_node(&self, image: &Path) -> Result<Machine> {
        Ok(self.node(image, &self.boot_config()?)?.start().await?)
    }

    /// A medium for the farm's machines: `usb`, `iso` or `netboot`, made by its owner with `croft farm image`.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn image(&self, boot_file: &Path, kind: &str, out: &Path) -> Result<()> {
        self.image_of(("alpha", &self.boot_file()), boot_file, kind, out).await
    }

    /// The same for a farm with this boot configuration.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn image_of(
        &self,
        (farm, boot_config): (&str, &Path),
        boot_file: &Path,
        kind: &str,
        out: &Path,
    ) -> Result<()> {
        let arguments = ["--bot", "farmer", "farm", "image", "--farm", farm, "--medium", kind];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).to_vec();
        for (name, path) in [("--boot-file", boot_file), ("--boot-config", boot_config), ("--out", out)] {
            arguments.extend([name.to_owned(), text(path)?]);
        }
        self.croft(arguments).await.map(drop)
    }

    /// Boots the farm's node from what `croft farm image` makes of a boot file: as firmware does, with nothing added. Its
    /// data disk is the same each time.
    ///
    /// # Errors
    /// When the medium can't be made, or QEMU does not start.
    pub async fn boot_medium(&self, boot_file: &Path, disc: bool) -> Result<Machine> {
        Ok(self.medium(boot_file, disc).await?.start().await?)
    }

    /// What [`Self::boot_medium`] boots, to be changed by a test.
    ///
    /// # Errors
    /// When the medium can't be made.
    pub async fn medium(&self, boot_file: &Path, disc: bool) -> Result<Boot> {
        let (kind, out) = if disc { ("iso", "medium.iso") } else { ("usb", "medium.img") };
        let out = self.dir.join(out);
        self.image(boot_file, kind, &out).await?;
        let medium = if disc { Medium::Disc(out) } else { Medium::Usb(out) };
        let boot = Boot::medium(Profile::named("standard")?, medium, self.dir.join("node-by-firmware"))
            .lifetime(Duration::from_secs(3600))
            .forward(Forward::tcp(self.web_port).at_host_port(self.web_port));
        Ok(boot)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.croft);
        if let Some(clock) = &self.clock {
            clock.of(&mut command);
        }
        command.arg("--home").arg(self.dir.join("home")).kill_on_drop(true);
        command
    }

    /// The port of the node, and of this machine, on which the workload is published.
    #[must_use]
    pub fn web_port(&self) -> u16 {
        self.web_port
    }

    /// The start of every croft command for this grid, for people.
    #[must_use]
    pub fn shown_command(&self) -> String {
        format!("{} --home {}", self.croft.display(), self.dir.join("home").display())
    }

    /// Where everything of this grid lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs a croft command; its standard output.
    ///
    /// # Errors
    /// The command's own message, when it fails.
    pub async fn croft<I, S>(&self, arguments: I) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let (code, stdout, stderr) = self.try_croft(arguments).await?;
        ensure!(code == 0, "croft failed with exit code {code}: {}", stderr.trim());
        Ok(stdout)
    }

    /// Runs a croft command that may fail: exit code, standard output, standard error.
    ///
    /// # Errors
    /// When it can't be started or does not end.
    pub async fn try_croft<I, S>(&self, arguments: I) -> Result<(i32, String, String)>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::null());
        let shown = format!("{:?}", command.as_std());
        let output =
            timeout(COMMAND, command.output()).await.with_context(|| format!("{shown} does not end"))??;
        Ok((
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }

    /// Runs a croft command with `--json`.
    ///
    /// # Errors
    /// The command's own message, or output that is no JSON.
    pub async fn json<I, S>(&self, arguments: I) -> Result<Value>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut all = vec![std::ffi::OsString::from("--json")];
        all.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        let text = self.croft(all).await?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// Ends every process in order.
    ///
    /// # Errors
    /// Names the one that does not end.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(farmer) = self.farmer.take() {
            farmer.stop().await?;
        }
        self.stop_ledger().await
    }
}

/// A program of the workspace: beside the running one, or one directory up (tests lie in `deps`).
///
/// # Errors
/// Says how to build it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    me.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file()).with_context(|| {
        format!("{name} is not built: run 'cargo build -p croft-bot -p croft-it --bins' first")
    })
}

/// What machines of a farm boot with.
#[derive(Debug)]
pub struct FarmBoot {
    /// The text, for one in QEMU.
    pub machine: String,
    /// The file, for one that is a process here.
    pub process: PathBuf,
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).context("a path in UTF-8")
}

/// The first of some UDP ports of loopback in a row that nobody has now.
fn free_udp_ports(count: u16) -> Result<u16> {
    for _ in 0..100 {
        let first = UdpSocket::bind(("127.0.0.1", 0))?;
        let port = first.local_addr()?.port();
        let others = (1..count).map(|n| UdpSocket::bind(("127.0.0.1", port.checked_add(n)?)).ok());
        if others.collect::<Option<Vec<_>>>().is_some() {
            return Ok(port);
        }
    }
    bail!("there are no {count} free UDP ports in a row")
}

/// A TCP port of loopback that nobody has now.
///
/// # Errors
/// Of the kernel.
pub fn free_tcp_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The images that were built, by VMM, in a fixed order: below `CROFT_IMAGES` or `target/image`.
///
/// # Errors
/// When there is none: says how to build one.
pub fn images() -> Result<Vec<(String, PathBuf)>> {
    let root = std::env::var_os("CROFT_IMAGES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/image"), PathBuf::from);
    let found: Vec<(String, PathBuf)> = ["cloud-hypervisor", "alioth"]
        .into_iter()
        .map(|vmm| (vmm.to_owned(), root.join(vmm)))
        .filter(|(_, dir)| dir.join("initramfs.zst").is_file())
        .collect();
    ensure!(!found.is_empty(), "no node image below {}: run 'cargo xtask image'", root.display());
    Ok(found)
}
