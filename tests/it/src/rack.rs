//! A rack on one machine: a switch with a netboot server in a network namespace, and a DHCP server of somebody else's in
//! another, and where it is asked for a second netboot server. Machines are QEMU on taps of the switch. Nothing of it reaches outside; it goes away with its handle.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::time::timeout;

/// The server's address on the switch.
pub const SERVER: &str = "10.78.0.1";
const DHCP: &str = "10.78.0.2";
/// The second server's.
pub const OTHER_SERVER: &str = "10.78.0.3";
/// Programs that play machines, each with an address of its own: a server serves only so much to one address.
const CLIENTS: &str = "10.78.0.128/25";
/// A process that serves says so within this.
const READY: Duration = Duration::from_secs(60);

/// Namespaces that exist as long as this does.
pub struct Rack {
    switch: String,
    office: String,
    other: String,
    dhcp: Option<Child>,
    server: Option<Server>,
    other_server: Option<Server>,
}

/// A program that serves, and what it said so far.
struct Server {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    more: Arc<Notify>,
}

impl Rack {
    /// A switch with one tap, and no server yet. Needs root.
    ///
    /// # Errors
    /// Names the command that failed.
    pub async fn new(name: &str) -> Result<Self> {
        let name = |what: &str| format!("croft{}-{name}-{what}", std::process::id());
        let rack = Self {
            switch: name("switch"),
            office: name("office"),
            other: name("other"),
            dhcp: None,
            server: None,
            other_server: None,
        };
        let (switch, server) = (rack.switch.as_str(), format!("{SERVER}/24"));
        ip(&[
            &["netns", "add", switch],
            &["-n", switch, "link", "add", "br0", "type", "bridge"],
            &["-n", switch, "address", "add", &server, "dev", "br0"],
            &["-n", switch, "tuntap", "add", "dev", "tap0", "mode", "tap"],
            &["-n", switch, "link", "set", "tap0", "master", "br0", "up"],
            &["-n", switch, "link", "set", "br0", "up"],
            &["-n", switch, "link", "set", "lo", "up"],
        ])
        .await?;
        rack.plug(&rack.office, "p0", DHCP).await?;
        Ok(rack)
    }

    /// A namespace with this address on the switch.
    async fn plug(&self, namespace: &str, port: &str, address: &str) -> Result<()> {
        let (switch, address) = (self.switch.as_str(), format!("{address}/24"));
        ip(&[
            &["netns", "add", namespace],
            &["-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace],
            &["-n", namespace, "address", "add", &address, "dev", "eth0"],
            &["-n", namespace, "link", "set", "eth0", "up"],
            &["-n", switch, "link", "set", port, "master", "br0", "up"],
        ])
        .await
    }

    /// The namespace in which machines find the switch as `tap0`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.switch
    }

    /// Starts the DHCP server, which knows of no boot file.
    ///
    /// # Errors
    /// When there is no dnsmasq.
    pub fn dhcp(&mut self, dir: &Path) -> Result<()> {
        let log = std::fs::File::create(dir.join("dnsmasq.log"))?;
        let child = Command::new("ip")
            .args(["netns", "exec", &self.office, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null"])
            .args(["--port=0", "--interface=eth0", "--bind-interfaces", "--user=root", "--pid-file"])
            .args(["--dhcp-authoritative", "--dhcp-range=10.78.0.50,10.78.0.99,1h", "--log-facility=-"])
            .arg(format!("--dhcp-option=3,{SERVER}"))
            .arg(format!("--dhcp-leasefile={}", dir.join("leases").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("can't start dnsmasq: run scripts/setup")?;
        self.dhcp = Some(child);
        Ok(())
    }

    /// Lets no more through to the first machine than this.
    ///
    /// # Errors
    /// When the kernel has no token bucket filter.
    pub async fn slow_down(&self, megabit: u32) -> Result<()> {
        let rate = format!("{megabit}mbit");
        let limit = ["qdisc", "add", "dev", "tap0", "root", "tbf", "rate", &rate];
        let output = Command::new("ip")
            .args(["netns", "exec", &self.switch, "tc"])
            .args(limit)
            .args(["burst", "32k", "latency", "400ms"])
            .output()
            .await
            .context("can't run tc")?;
        ensure!(output.status.success(), "tc: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// Starts `croft media serve` on the switch, instead of the one before.
    ///
    /// # Errors
    /// When it does not get ready: with what it said.
    pub async fn serve(&mut self, croft: &Path, folder: &Path, more: &[&str]) -> Result<()> {
        self.stop_serving().await;
        self.server = Some(Server::serving(croft, folder, (&self.switch, more)).await?);
        Ok(())
    }

    /// Starts a second one at [`OTHER_SERVER`], from another folder.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub async fn serve_too(&mut self, croft: &Path, folder: &Path) -> Result<()> {
        self.plug(&self.other, "p1", OTHER_SERVER).await?;
        self.other_server = Some(Server::serving(croft, folder, (&self.other, &[])).await?);
        Ok(())
    }

    /// A namespace whose `eth0` is on the switch, for programs that play machines with the addresses of [`client`].
    ///
    /// # Errors
    /// Names the command that failed.
    pub async fn plug_clients(&self) -> Result<String> {
        self.plug(&self.other, "p1", OTHER_SERVER).await?;
        ip(&[&["-n", &self.other, "route", "add", "local", CLIENTS, "dev", "eth0"]]).await?;
        Ok(self.other.clone())
    }

    async fn stop_serving(&mut self) {
        if let Some(mut server) = self.server.take() {
            // Its ports are free when this returns.
            let _ = server.child.kill().await;
        }
    }

    /// Waits for a line of the netboot server.
    ///
    /// # Errors
    /// When it does not come: with the lines that came.
    pub async fn said(&self, text: &str, limit: Duration) -> Result<String> {
        self.server.as_ref().context("nothing is served")?.said(text, limit).await
    }
}

/// Runs one `ip` after the other.
async fn ip(lines: &[&[&str]]) -> Result<()> {
    for line in lines {
        let output = Command::new("ip").args(*line).output().await.context("can't run ip")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "ip {}: {}", line.join(" "), said.trim());
    }
    Ok(())
}

impl Server {
    /// `croft media serve` in a namespace, ready.
    async fn serving(croft: &Path, folder: &Path, (namespace, more): (&str, &[&str])) -> Result<Self> {
        let home = folder.with_extension("home");
        let log = folder.with_extension("serve.log");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(croft).arg("--home").arg(home);
        command.args(["media", "serve", "--folder"]).arg(folder).args(more);
        let server = Self::start(command, &log)?;
        if server.said("serves ", READY).await.is_err() {
            anyhow::bail!("croft media serve: {}", std::fs::read_to_string(log).unwrap_or_default());
        }
        Ok(server)
    }

    async fn said(&self, text: &str, limit: Duration) -> Result<String> {
        let look = || -> Result<String, Vec<String>> {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.iter().find(|line| line.contains(text)).cloned().ok_or_else(|| lines.clone())
        };
        let wait = async {
            loop {
                let more = self.more.notified();
                if let Ok(line) = look() {
                    return line;
                }
                more.await;
            }
        };
        let waited = timeout(limit, wait).await;
        waited
            .or_else(|_| look())
            .map_err(|lines| anyhow::anyhow!("'{text}' is not in:\n{}", lines.join("\n")))
    }

    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let stderr = std::fs::File::create(log).with_context(|| format!("can't write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).kill_on_drop(true);
        let mut child = command.spawn().context("can't start the netboot server")?;
        let mut output = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let (lines, more) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let (kept, told) = (lines.clone(), more.clone());
        tokio::spawn(async move {
            while let Ok(Some(line)) = output.next_line().await {
                eprintln!("  server: {line}");
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                // One waits at most; a permit is kept for it.
                told.notify_one();
            }
        });
        Ok(Self { child, lines, more })
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        // Processes in them were killed with their handles; a namespace goes when the last one has ended.
        self.dhcp = None;
        self.server = None;
        self.other_server = None;
        for name in [&self.switch, &self.office, &self.other] {
            // There need not be a second server; ip says so.
            let mut command = std::process::Command::new("ip");
            let _ = command.args(["netns", "delete", name]).stderr(Stdio::null()).status();
        }
    }
}

/// The address of a machine that a program plays; there is room for 126.
#[must_use]
pub fn client(machine: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, 129 + machine % 126)
}

/// Whether namespaces can be made here.
#[must_use]
pub fn is_possible() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/dev/net/tun").exists()
}
