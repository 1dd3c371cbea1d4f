//! Namespaces, wires between them, and peers in them.

use std::fs::File;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use croft_network::workload::Namespace;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::sched::CloneFlags;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Far beyond what anything here takes, even on a busy machine; only a failure waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long silence is listened to where a packet must not arrive. Too short can hide a fault, never make one.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);

/// Runs `test` in a network namespace of its own with loopback up; it plays the node's root namespace.
pub(crate) fn in_node<F, Fut>(name: &str, test: F)
where
    F: FnOnce(Lab) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    let name = name.to_owned();
    let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
        if let Err(error) = nix::sched::unshare(CloneFlags::CLONE_NEWNET) {
            println!("skipped {name}: can't make a network namespace ({error}); run as root");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let lab = Lab::new();
            if let Err(missing) = lab.probe().await {
                println!("skipped {name}: {missing}");
                return;
            }
            test(lab).await;
        });
    });
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// What a test makes and what is cleaned up after it.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Directory of all namespaces of the test.
    pub(crate) fn namespaces(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// A namespace beside the node's, with loopback up.
    pub(crate) async fn namespace(&self, name: &str) -> Namespace {
        let namespace = Namespace::ensure(&self.dir.path().join(name)).await.unwrap();
        namespace.run(|| async { up("lo").await }).await.unwrap();
        namespace
    }

    /// Whether this kernel has what the tests need.
    async fn probe(&self) -> Result<(), String> {
        let namespace =
            Namespace::ensure(&self.dir.path().join("probe")).await.map_err(|error| error.to_string())?;
        let handle = netlink();
        let request = LinkMessageBuilder::<LinkVeth>::new("probe0", "probe1").build();
        handle
            .link()
            .add(request)
            .execute()
            .await
            .map_err(|error| format!("the kernel has no veth ({error})"))?;
        let probe = link(&handle, "probe0").await.header.index;
        handle.link().del(probe).execute().await.map_err(|error| error.to_string())?;
        if !Path::new("/dev/net/tun").exists() {
            return Err("there is no /dev/net/tun".into());
        }
        croft_network::firewall::remove().map_err(|error| format!("no nftables: {error}"))?;
        drop(namespace);
        Ok(())
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Nested mounts first unmount, then the directory goes.
        for entry in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            let _ = Namespace::remove(&entry.path());
        }
    }
}

pub(crate) fn netlink() -> Handle {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    handle
}

pub(crate) async fn find_link(handle: &Handle, name: &str) -> Option<LinkMessage> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.unwrap();
    let named =
        |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(other) if other == name);
    links.into_iter().find(|link| link.attributes.iter().any(named))
}

pub(crate) async fn link(handle: &Handle, name: &str) -> LinkMessage {
    find_link(handle, name).await.unwrap_or_else(|| panic!("no link {name}"))
}

async fn set(
    name: &str,
    change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
) {
    let handle = netlink();
    let index = link(&handle, name).await.header.index;
    let message = change(LinkMessageBuilder::<LinkUnspec>::new().index(index)).build();
    handle.link().set(message).execute().await.unwrap();
}

pub(crate) async fn up(name: &str) {
    set(name, LinkMessageBuilder::up).await;
}

pub(crate) async fn down(name: &str) {
    set(name, LinkMessageBuilder::down).await;
}

pub(crate) async fn into_bridge(name: &str, bridge: &str) {
    let index = link(&netlink(), bridge).await.header.index;
    set(name, |builder| builder.controller(index)).await;
}

/// A wire between link `near` of this namespace and link `far` of another.
pub(crate) async fn wire(near: &str, far: &str, other: &Namespace) {
    let file = File::open(other.path()).unwrap();
    let peer = LinkMessageBuilder::<LinkUnspec>::new().name(far).setns_by_fd(file.as_raw_fd()).build();
    let message = LinkMessageBuilder::<LinkVeth>::new(near, far)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    netlink().link().add(message).execute().await.unwrap();
}

pub(crate) async fn address(name: &str, net: &str) {
    let handle = netlink();
    let net: IpNet = net.parse().unwrap();
    let index = link(&handle, name).await.header.index;
    handle.address().add(index, net.addr(), net.prefix_len()).execute().await.unwrap();
}

pub(crate) async fn route(to: &str, via: &str) {
    let (to, via): (IpNet, IpAddr) = (to.parse().unwrap(), via.parse().unwrap());
    let message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to.network(), to.prefix_len())
        .unwrap()
        .gateway(via)
        .unwrap()
        .build();
    netlink().route().add(message).execute().await.unwrap();
}

/// Up, with an address and a default route: a simple machine.
pub(crate) async fn machine(name: &str, net: &str, gateway: &str) {
    up(name).await;
    address(name, net).await;
    route("0.0.0.0/0", gateway).await;
}

/// Where a tool is; `None` prints that the test is skipped.
pub(crate) fn tool(name: &str, package: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|path| path.exists());
    if found.is_none() {
        println!("skipped in part: no {name} (Debian: apt-get install {package})");
    }
    found
}

/// A dnsmasq that serves DHCP (and router advertisements) in a namespace.
pub(crate) struct Dnsmasq {
    child: Child,
    lines: UnboundedReceiver<String>,
}

impl Dnsmasq {
    /// `None` where it isn't installed.
    pub(crate) async fn start(
        lab: &Lab,
        namespace: &Namespace,
        interface: &str,
        options: &[&str],
    ) -> Option<Self> {
        let path = tool("dnsmasq", "dnsmasq-base")?;
        let mut command = Command::new(path);
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--port=0",
                "--no-resolv",
                "--no-hosts",
                "--no-ping",
            ])
            .args(["--user=root", "--pid-file", "--dhcp-authoritative", "--log-dhcp", "--log-facility=-"])
            .arg(format!("--interface={interface}"))
            .arg(format!("--dhcp-leasefile={}", lab.file("leases").display()))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = namespace.run(move || async move { command.spawn().unwrap() }).await.unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Some(Self { child, lines })
    }

    /// Waits for a line of its log that contains `text`.
    pub(crate) async fn logged(&mut self, text: &str) -> String {
        self.logged_any(&[text]).await
    }

    pub(crate) async fn logged_any(&mut self, texts: &[&str]) -> String {
        let mut seen = Vec::new();
        let search = async {
            while let Some(line) = self.lines.recv().await {
                if texts.iter().any(|text| line.contains(text)) {
                    return Some(line);
                }
                seen.push(line);
            }
            None
        };
        let found = tokio::time::timeout(PATIENCE, search).await.ok().flatten();
        found.unwrap_or_else(|| panic!("dnsmasq never logged {texts:?}:\n{}", seen.join("\n")))
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
