//! The node's network as a whole: watches the kernel, runs one task per NIC, and knows which one is the uplink.
//!
//! All NICs are configured at a time. The first that gets a default route is the uplink and stays it while it has
//! carrier and route; then the next takes over. Whoever waits for the uplink waits with a limit and gets the reason of
//! each NIC; the work goes on in the background all the same.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};

use crate::compound::{self, Step};
use crate::config::{ConfigError, LinkConfig, LinkMode, NetworkConfig};
use crate::link::{Facts, LinkTask, Report, chain};
use crate::mac::MacAddr;
use crate::rtnl::{Address, Link, NetlinkError, Route, Rtnl};
use crate::status::{AddressSource, AddressStatus, FailedLink, LinkStatus, NetworkStatus, NoUplink};
use crate::sysctl;
use crate::workload::LINK_PREFIX;

/// The kernel may drop messages when we are slow; at the latest after this time we look for ourselves.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Changes come in bursts: one look for all of them.
const BURST: Duration = Duration::from_millis(20);

/// Bond, members, VLAN, and what they replace.
const COMPOSE_ROUNDS: u32 = 5;

/// How long to wait for an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitLimits {
    /// When no NIC has carrier by then, nothing can come any more: cards take up to 4 s to agree on a speed.
    pub carrier: Duration,
    pub total: Duration,
}

impl Default for WaitLimits {
    fn default() -> Self {
        Self { carrier: Duration::from_secs(6), total: Duration::from_secs(10) }
    }
}

#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// A running network. Dropping it stops the tasks and leaves the kernel as it is: a process that restarts finds its
/// addresses again.
#[derive(Debug)]
pub struct Network {
    status: watch::Receiver<NetworkStatus>,
    config: watch::Sender<NetworkConfig>,
    started: Instant,
    task: JoinHandle<()>,
}

impl Network {
    /// Begins to configure all NICs, in the network namespace of the calling thread. Returns at once.
    pub async fn start(config: NetworkConfig) -> Result<Self, StartError> {
        config.validate()?;
        let rtnl = Rtnl::open()?;
        let (sender, status) = watch::channel(NetworkStatus::default());
        let (config_sender, config) = watch::channel(config);
        let mut monitor = Monitor {
            config,
            failed: Vec::new(),
            pause: None,
            rtnl,
            managed: BTreeMap::new(),
            tasks: JoinSet::new(),
            wake: Arc::new(Notify::new()),
            ranks: Arc::new(AtomicU32::new(0)),
            hostname: hostname(),
            status: sender,
        };
        for family in ["ipv4", "ipv6"] {
            for place in ["all", "default"] {
                let name = format!("{family}/conf/{place}/ignore_routes_with_linkdown");
                if let Err(error) = sysctl::set_if_present(&name, "1") {
                    tracing::warn!(error = chain(&error), "a dead link's routes stay in use");
                }
            }
        }
        monitor.look().await?;
        let task = tokio::spawn(monitor.run());
        Ok(Self { status, config: config_sender, started: Instant::now(), task })
    }

    /// From now on, this. Links whose settings are the same are left alone.
    pub fn configure(&self, config: NetworkConfig) -> Result<(), ConfigError> {
        config.validate()?;
        self.config.send_replace(config);
        Ok(())
    }

    pub fn status(&self) -> NetworkStatus {
        self.status.borrow().clone()
    }

    /// Tells each change, for the report and for whoever has to follow the uplink.
    pub fn subscribe(&self) -> watch::Receiver<NetworkStatus> {
        self.status.clone()
    }

    /// The uplink, as soon as there is one. After the limits each NIC's reason; the network goes on trying.
    pub async fn wait_uplink(&self, limits: WaitLimits) -> Result<LinkStatus, NoUplink> {
        let mut status = self.status.clone();
        let (carrier_end, end) = (self.started + limits.carrier, self.started + limits.total);
        loop {
            let now = Instant::now();
            let seen = status.borrow_and_update().clone();
            if let Some(uplink) = seen.uplink() {
                return Ok(uplink.clone());
            }
            let has_carrier = seen.links.iter().any(|link| link.carrier);
            if now >= end || (!has_carrier && now >= carrier_end) {
                let waited = now.duration_since(self.started);
                return Err(NoUplink::explain(&seen, waited.as_secs_f64().round() as u64));
            }
            let until = if has_carrier { end } else { carrier_end.min(end) };
            // A timeout is handled above; the sender lives as long as the monitor.
            if let Ok(Err(_)) = timeout_at(until, status.changed()).await {
                return Err(NoUplink::explain(&seen, limits.total.as_secs()));
            }
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Managed {
    name: String,
    mac: MacAddr,
    config: LinkConfig,
    facts: watch::Sender<Facts>,
    report: watch::Receiver<Report>,
    task: AbortHandle,
}

struct Monitor {
    config: watch::Receiver<NetworkConfig>,
    failed: Vec<FailedLink>,
    /// What failed for these settings, and when it may be tried again: an attempt takes links down for a moment.
    pause: Option<(NetworkConfig, Instant)>,
    rtnl: Rtnl,
    /// By the kernel's index.
    managed: BTreeMap<u32, Managed>,
    tasks: JoinSet<()>,
    wake: Arc<Notify>,
    ranks: Arc<AtomicU32>,
    hostname: Option<String>,
    status: watch::Sender<NetworkStatus>,
}

impl Monitor {
    async fn run(mut self) {
        loop {
            let mut changes = match Rtnl::changes() {
                Ok(changes) => changes.left_stream(),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "kernel tells no changes, looking for them");
                    futures_util::stream::pending().right_stream()
                }
            };
            loop {
                if let Err(error) = self.look().await {
                    tracing::warn!(error = chain(&error), "can't read the kernel's links");
                }
                let more = tokio::select! {
                    change = changes.next() => change.is_some(),
                    () = self.wake.notified() => true,
                    changed = self.config.changed() => {
                        if changed.is_err() {
                            // The network is being dropped.
                            return;
                        }
                        true
                    }
                    () = sleep(LOOK_INTERVAL) => true,
                };
                if !more {
                    break;
                }
                sleep(BURST).await;
                while let Some(Some(())) = changes.next().now_or_never() {}
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Reads links, addresses and routes; starts and ends tasks; tells the status.
    async fn look(&mut self) -> Result<(), NetlinkError> {
        let config = self.config.borrow_and_update().clone();
        let links = self.compose(&config).await?;
        if let Some(lo) = links.iter().find(|link| link.loopback && !link.up) {
            self.rtnl.set_up(lo.index, true).await?;
        }
        // A task that died is started anew below.
        while self.tasks.try_join_next().is_some() {}
        self.managed.retain(|_, managed| !managed.task.is_finished());

        let ours: Vec<(&Link, MacAddr, LinkConfig)> =
            links.iter().filter_map(|link| ours(&config, &links, link)).collect();
        self.managed.retain(|index, managed| {
            let same = |(link, mac, config): &(&Link, MacAddr, LinkConfig)| {
                link.index == *index
                    && link.name == managed.name
                    && *mac == managed.mac
                    && *config == managed.config
            };
            let stays = ours.iter().any(same);
            if !stays {
                managed.task.abort();
            }
            stays
        });
        for (link, mac, config) in &ours {
            let facts = Facts { up: link.up, carrier: link.up && link.carrier, mtu_bytes: link.mtu_bytes };
            match self.managed.get(&link.index) {
                Some(managed) => {
                    managed.facts.send_if_modified(|old| std::mem::replace(old, facts) != facts);
                }
                None => self.manage(link, *mac, config.clone(), facts),
            }
        }
        let addresses = self.rtnl.addresses().await?;
        let routes = self.rtnl.routes().await?;
        let links: Vec<(&Link, &Managed)> =
            ours.iter().filter_map(|(link, ..)| Some((*link, self.managed.get(&link.index)?))).collect();
        let status =
            NetworkStatus { failed: self.failed.clone(), ..describe(&config, &links, &addresses, &routes) };
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
        Ok(())
    }

    /// Makes bonds and VLANs, and removes those that are not wanted any more. The links as they are then.
    async fn compose(&mut self, config: &NetworkConfig) -> Result<Vec<Link>, NetlinkError> {
        if self.pause.as_ref().is_some_and(|(of, until)| of == config && Instant::now() < *until) {
            return self.rtnl.links().await;
        }
        let mut failed: Vec<FailedLink> = Vec::new();
        let mut pause = None;
        let mut tried: Vec<Step> = Vec::new();
        // Each round can make what the next one stands on: bond, members, VLAN.
        for _ in 0..COMPOSE_ROUNDS {
            let links = self.rtnl.links().await?;
            let (mut steps, troubles) = compound::steps(config, &links);
            steps.retain(|step| !tried.contains(step));
            if steps.is_empty() {
                failed.extend(troubles.into_iter().map(|(link, cause)| FailedLink { link, cause }));
                break;
            }
            for step in steps {
                if let Err(error) = self.take(&step).await {
                    pause = Some((config.clone(), Instant::now() + LOOK_INTERVAL));
                    let link = step.link().unwrap_or("a link that is not wanted any more");
                    failed.push(FailedLink { link: link.to_owned(), cause: chain(&error) });
                }
                tried.push(step);
            }
        }
        for failure in failed.iter().filter(|failure| !self.failed.contains(failure)) {
            tracing::warn!(
                link = failure.link,
                cause = failure.cause,
                "VLAN or bond failed, tried again soon"
            );
        }
        self.failed = failed;
        self.pause = pause;
        self.rtnl.links().await
    }

    async fn take(&mut self, step: &Step) -> Result<(), NetlinkError> {
        let made = match step {
            Step::Remove { index } => return self.rtnl.delete_link(*index).await,
            Step::MakeBond { name, mode } => {
                self.rtnl.add_bond(name, *mode).await?;
                name
            }
            Step::Join { member, bond, .. } => {
                // Its task would bring it up again meanwhile.
                if let Some(managed) = self.managed.remove(member) {
                    managed.task.abort();
                }
                return self.rtnl.join_bond(*member, *bond).await;
            }
            Step::MakeVlan { name, parent, vlan } => {
                self.rtnl.add_vlan(name, *parent, *vlan).await?;
                name
            }
        };
        let link = self.rtnl.link(made).await?;
        self.rtnl.set_alias(link.index, compound::ALIAS).await
    }

    fn manage(&mut self, link: &Link, mac: MacAddr, config: LinkConfig, facts: Facts) {
        let mode = config.mode;
        let (facts_sender, facts) = watch::channel(facts);
        let (report_sender, report) = watch::channel(Report::new(mode));
        let task = LinkTask {
            index: link.index,
            name: link.name.clone(),
            mac,
            config: config.clone(),
            hostname: self.hostname.clone(),
            rtnl: self.rtnl.clone(),
            facts,
            report: report_sender,
            wake: self.wake.clone(),
            ranks: self.ranks.clone(),
        };
        tracing::info!(link = link.name, %mac, %mode, "link found");
        let task = self.tasks.spawn(task.run());
        let managed = Managed { name: link.name.clone(), mac, config, facts: facts_sender, report, task };
        self.managed.insert(link.index, managed);
    }
}

/// A network card, or what the configuration names, with its settings. Workloads' links never.
fn ours<'a>(
    config: &NetworkConfig,
    links: &[Link],
    link: &'a Link,
) -> Option<(&'a Link, MacAddr, LinkConfig)> {
    let mac = link.mac.filter(|mac| !mac.is_unusable())?;
    let possible = !link.loopback && link.ethernet && !link.name.starts_with(LINK_PREFIX);
    let role = possible.then(|| compound::role(config, links, link)).flatten()?;
    Some((link, mac, role))
}

/// The status from what the kernel has and what the tasks say.
fn describe(
    config: &NetworkConfig,
    links: &[(&Link, &Managed)],
    addresses: &[Address],
    routes: &[Route],
) -> NetworkStatus {
    let statuses: Vec<LinkStatus> = links
        .iter()
        .map(|(link, managed)| {
            describe_link(link, managed.config.mode, managed.mac, &managed.report.borrow(), addresses, routes)
        })
        .collect();
    let uplink = choose_uplink(&statuses, routes);
    let present =
        |entry: &&LinkConfig| !statuses.iter().any(|status| entry.matches(&status.name, status.mac));
    let missing = config.links.iter().filter(present).map(LinkConfig::label).collect();
    NetworkStatus { links: statuses, uplink, missing, failed: Vec::new() }
}

/// The link whose default route the kernel prefers, among those that carry packets. IPv4 decides where both are there.
fn choose_uplink(statuses: &[LinkStatus], routes: &[Route]) -> Option<String> {
    let metric = |status: &LinkStatus| {
        let best = |v4: bool| {
            let own = |route: &&Route| {
                is_default(route) && route.link == status.index && route.destination.addr().is_ipv4() == v4
            };
            routes.iter().filter(own).map(|route| route.metric).min().unwrap_or(u32::MAX)
        };
        (best(true), best(false), status.index)
    };
    let candidates = statuses.iter().filter(|status| status.is_uplink_candidate());
    candidates.min_by_key(|status| metric(status)).map(|status| status.name.clone())
}

fn describe_link(
    link: &Link,
    mode: LinkMode,
    mac: MacAddr,
    report: &Report,
    addresses: &[Address],
    routes: &[Route],
) -> LinkStatus {
    let usable = |address: &&Address| address.link == link.index && !address.tentative;
    let mut addresses: Vec<AddressStatus> = addresses
        .iter()
        .filter(usable)
        .map(|address| AddressStatus { address: address.net, source: source(address, report) })
        .collect();
    addresses.sort();
    let mut defaults: Vec<&Route> =
        routes.iter().filter(|route| is_default(route) && route.link == link.index).collect();
    defaults.sort_by_key(|route| (route.destination.addr().is_ipv6(), route.metric));
    let mut gateways: Vec<IpAddr> = defaults.iter().filter_map(|route| route.gateway).collect();
    gateways.dedup();
    LinkStatus {
        name: link.name.clone(),
        index: link.index,
        mac,
        carrier: link.up && link.carrier,
        mtu_bytes: link.mtu_bytes,
        mode,
        state: report.state,
        addresses,
        gateways,
        dns: report.dns.clone(),
        ntp: report.ntp.clone(),
        dhcp_server: report.dhcp_server,
        last_error: report.last_error.clone(),
    }
}

fn source(address: &Address, report: &Report) -> AddressSource {
    if address.link_local {
        return AddressSource::LinkLocal;
    }
    match report.owned.iter().find(|(net, _)| *net == address.net) {
        Some((_, source)) => *source,
        None if address.dynamic => AddressSource::Slaac,
        None => AddressSource::Foreign,
    }
}

fn is_default(route: &Route) -> bool {
    route.destination.prefix_len() == 0
}

/// What the DHCP server may list us by; nothing where the machine has no name.
fn hostname() -> Option<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let usable = !name.is_empty() && name != "(none)" && name != "localhost";
    usable.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, carrier: bool) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mac: Some(MacAddr([2, 0, 0, 0, 0, index as u8])),
            permanent_mac: None,
            up: true,
            carrier,
            mtu_bytes: 1500,
            kind: None,
            alias: None,
            controller: None,
            parent: None,
            vlan: None,
            ethernet: true,
            loopback: false,
        }
    }

    fn default(link: u32, gateway: &str, metric: u32) -> Route {
        let gateway: IpAddr = gateway.parse().unwrap();
        let any = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        Route { link, destination: any.parse().unwrap(), gateway: Some(gateway), metric, ours: true }
    }

    fn address(link: u32, net: &str) -> Address {
        Address {
            link,
            net: net.parse().unwrap(),
            dynamic: net.contains("::"),
            link_local: false,
            tentative: false,
        }
    }

    fn status(link: &Link, addresses: &[Address], routes: &[Route]) -> LinkStatus {
        let mut report = Report::new(LinkMode::Dhcp);
        report.owned.push(("10.0.0.5/24".parse().unwrap(), AddressSource::Dhcp));
        describe_link(link, LinkMode::Dhcp, link.mac.unwrap(), &report, addresses, routes)
    }

    #[test]
    fn the_best_default_route_with_carrier_is_the_uplink() {
        let addresses = [address(1, "10.0.0.5/24"), address(2, "10.0.1.5/24"), address(3, "2001:db8::5/64")];
        let routes = [default(1, "10.0.0.1", 101), default(2, "10.0.1.1", 100), default(3, "fe80::1", 1)];
        let choose = |carriers: [bool; 3]| {
            let statuses: Vec<LinkStatus> = (1..)
                .zip(carriers)
                .map(|(index, carrier)| status(&link(index, carrier), &addresses, &routes))
                .collect();
            choose_uplink(&statuses, &routes)
        };
        assert_eq!(choose([true, true, true]).as_deref(), Some("eth2"), "the lowest metric");
        assert_eq!(choose([true, false, true]).as_deref(), Some("eth1"), "the next when its cable is gone");
        assert_eq!(choose([false, false, true]).as_deref(), Some("eth3"), "IPv6 alone will do");
        assert_eq!(choose([false, false, false]), None);
    }

    #[test]
    fn each_address_says_where_it_comes_from() {
        let link_local = Address { link_local: true, ..address(1, "fe80::5/64") };
        let tentative = Address { tentative: true, ..address(1, "2001:db8::9/64") };
        let addresses = [
            address(1, "10.0.0.5/24"),
            address(1, "10.9.9.9/32"),
            address(1, "2001:db8::5/64"),
            link_local,
            tentative,
        ];
        let status = status(&link(1, true), &addresses, &[default(1, "10.0.0.1", 100)]);
        let sources: Vec<AddressSource> = status.addresses.iter().map(|address| address.source).collect();
        assert_eq!(
            sources,
            [AddressSource::Dhcp, AddressSource::Foreign, AddressSource::Slaac, AddressSource::LinkLocal]
        );
        assert_eq!(status.address().unwrap().to_string(), "10.0.0.5/24");
    }

    #[test]
    fn only_network_cards_are_touched_unasked() {
        assert!(link(1, true).is_physical());
        for virtual_link in [
            Link { kind: Some(rtnetlink::packet_route::link::InfoKind::Veth), ..link(1, true) },
            Link { loopback: true, ..link(1, true) },
            Link { ethernet: false, ..link(1, true) },
        ] {
            assert!(!virtual_link.is_physical());
        }
    }
}
