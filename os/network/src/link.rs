//! One task per NIC: brings it up, gets or sets its addresses, and keeps them right for as long as the link exists.
//!
//! ```text
//!   prepare (settings, up) --> carrier? --no--> wait for it
//!                                 | yes
//!                 dhcp: run the client, put each grant on the link, take each loss off
//!                 static: put the configured addresses on the link
//!   anything that fails is reported, and tried again after a pause; nothing here ever gives up or holds up a boot
//! ```
//!
//! The kernel's state is compared with what is wanted each time, so a node process that restarts adopts what it finds.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::{LinkConfig, LinkMode};
use crate::dhcp::socket::DhcpSocket;
use crate::dhcp::{Client, Destination, Event, Ignored, Lease, LostReason};
use crate::mac::MacAddr;
use crate::rtnl::{Address, NetlinkError, Route, Rtnl};
use crate::status::{AddressSource, LinkState};
use crate::sysctl::{self, SysctlError};

/// Before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// A socket on a link that is down fails at once; the news of that comes a moment later.
const SOCKET_PAUSE: Duration = Duration::from_millis(200);
/// Metric of the first link that gets a default route; each later one is one worse, so the first stays the uplink.
const METRIC_FIRST: u32 = 100;

/// What the monitor sees of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) up: bool,
    pub(crate) carrier: bool,
    pub(crate) mtu_bytes: u32,
}

/// What the task tells the monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) state: LinkState,
    /// Addresses that we put on the link; what else is there comes from the kernel.
    pub(crate) owned: Vec<(IpNet, AddressSource)>,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) ntp: Vec<IpAddr>,
    pub(crate) dhcp_server: Option<IpAddr>,
    pub(crate) last_error: Option<String>,
}

/// What should be on the link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    /// With the moment when the lease ends.
    addresses: Vec<(IpNet, Option<Instant>)>,
    routes: Vec<Route>,
    mtu_bytes: Option<u32>,
}

#[derive(Debug, Error)]
enum LinkError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error("can't open a packet socket for DHCP: the kernel needs PACKET")]
    Socket(#[source] io::Error),
}

pub(crate) struct LinkTask {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: MacAddr,
    pub(crate) config: LinkConfig,
    pub(crate) hostname: Option<String>,
    pub(crate) rtnl: Rtnl,
    pub(crate) facts: watch::Receiver<Facts>,
    pub(crate) report: watch::Sender<Report>,
    /// Woken after each change of the report.
    pub(crate) wake: Arc<Notify>,
    /// How many links have had a default route, shared by all.
    pub(crate) ranks: Arc<AtomicU32>,
}

/// What the task has in hand besides its configuration.
struct Progress {
    client: Client,
    /// The client's time starts here.
    origin: Instant,
    socket: Option<DhcpSocket>,
    carrier: bool,
    prepared: bool,
    desired: Desired,
    /// The kernel has not been brought to `desired` yet.
    dirty: bool,
    metric: Option<u32>,
    retry_at: Option<Instant>,
}

enum Wakeup {
    Facts,
    Packet(Vec<u8>),
    SocketFailed(io::Error),
    Timer,
    /// The monitor is gone.
    Orphaned,
}

impl Report {
    pub(crate) fn new(mode: LinkMode) -> Self {
        let state = if mode == LinkMode::Off { LinkState::Off } else { LinkState::NoCarrier };
        Self { state, owned: vec![], dns: vec![], ntp: vec![], dhcp_server: None, last_error: None }
    }
}

impl LinkTask {
    /// Runs until the task is aborted or its monitor goes.
    pub(crate) async fn run(mut self) {
        let seed = getrandom::u64().unwrap_or_else(|_| u64::from(self.index) << 48 | mac_number(self.mac));
        let mut progress = Progress {
            client: Client::new(self.mac, self.hostname.clone(), seed),
            origin: Instant::now(),
            socket: None,
            carrier: false,
            prepared: false,
            desired: Desired::default(),
            dirty: false,
            metric: None,
            retry_at: None,
        };
        self.update(|report| report.dns = Vec::new());
        loop {
            match self.advance(&mut progress).await {
                Ok(()) => {
                    progress.retry_at = None;
                    self.settle(&progress);
                }
                Err(error) => {
                    progress.retry_at = Some(Instant::now() + RETRY);
                    self.fail(&error);
                }
            }
            match self.wait(&progress).await {
                Wakeup::Facts | Wakeup::Timer => {}
                Wakeup::Packet(bytes) => self.handle_packet(&mut progress, &bytes),
                Wakeup::SocketFailed(error) => {
                    // The link went down under us; opened anew when it is up.
                    tracing::debug!(link = self.name, %error, "dhcp socket failed");
                    progress.socket = None;
                    sleep(SOCKET_PAUSE).await;
                }
                Wakeup::Orphaned => return,
            }
        }
    }

    /// One round of everything that can be done now.
    async fn advance(&mut self, progress: &mut Progress) -> Result<(), LinkError> {
        let facts = *self.facts.borrow_and_update();
        if self.config.mode == LinkMode::Off {
            if facts.up {
                self.rtnl.set_up(self.index, false).await?;
            }
            return Ok(());
        }
        if !progress.prepared || !facts.up {
            self.prepare().await?;
            progress.prepared = true;
        }
        if progress.carrier != facts.carrier {
            progress.carrier = facts.carrier;
            tracing::info!(link = self.name, carrier = facts.carrier, "carrier changed");
            // The kernel drops static IPv6 addresses and routes with the carrier.
            progress.dirty = true;
            self.carrier_changed(progress, facts.carrier);
        }
        if self.config.mode == LinkMode::Carrier {
            // Nothing stands on the link itself.
        } else if self.config.mode == LinkMode::Dhcp {
            self.advance_dhcp(progress)?;
        } else if progress.desired.addresses.is_empty() {
            let metric =
                self.metric(progress, self.config.gateway.is_some() || self.config.gateway6.is_some());
            progress.desired = Desired::of_config(self.index, &self.config, metric);
            progress.dirty = true;
        }
        if progress.dirty && facts.carrier {
            self.apply(&progress.desired).await?;
            progress.dirty = false;
        }
        Ok(())
    }

    /// Settings that must hold before the link is up, then up.
    async fn prepare(&self) -> Result<(), LinkError> {
        let name = &self.name;
        let has_static_v6 = self.config.addresses.iter().any(|net| net.addr().is_ipv6());
        // 2: also where forwarding is on, which a node needs for its workloads.
        let accept = if has_static_v6 { "0" } else { "2" };
        // Where others stand on a link, routers on it speak to them, not to us.
        let no_v6 = if self.config.mode == LinkMode::Carrier { "1" } else { "0" };
        sysctl::set_if_present(&format!("ipv6/conf/{name}/disable_ipv6"), no_v6)?;
        sysctl::set_if_present(&format!("ipv6/conf/{name}/accept_ra"), accept)?;
        sysctl::set_if_present(&format!("ipv6/conf/{name}/autoconf"), if has_static_v6 { "0" } else { "1" })?;
        // A dead link's routes step aside for the next link's.
        sysctl::set_if_present(&format!("ipv4/conf/{name}/ignore_routes_with_linkdown"), "1")?;
        sysctl::set_if_present(&format!("ipv6/conf/{name}/ignore_routes_with_linkdown"), "1")?;
        Ok(self.rtnl.set_up(self.index, true).await?)
    }

    fn carrier_changed(&self, progress: &mut Progress, carrier: bool) {
        if self.config.mode != LinkMode::Dhcp {
            return;
        }
        if carrier {
            progress.client.start(progress.now());
        } else {
            progress.client.stop();
            progress.socket = None;
        }
    }

    fn advance_dhcp(&self, progress: &mut Progress) -> Result<(), LinkError> {
        progress.client.handle_timeout(progress.now());
        while let Some(event) = progress.client.poll_event() {
            self.handle_event(progress, event);
        }
        if !progress.carrier {
            return Ok(());
        }
        if progress.socket.is_none() {
            progress.socket = Some(DhcpSocket::open(self.index, &self.name).map_err(LinkError::Socket)?);
        }
        let Some(socket) = &progress.socket else { return Ok(()) };
        while let Some(transmit) = progress.client.poll_transmit() {
            let sent = match transmit.to {
                Destination::Broadcast => socket.broadcast(&transmit.payload),
                Destination::Server { from, server } => socket.unicast(from, server, &transmit.payload),
            };
            // As good as lost on the wire: the client repeats it.
            if let Err(error) = sent {
                tracing::debug!(link = self.name, %error, "dhcp message not sent");
            }
        }
        Ok(())
    }

    fn handle_packet(&self, progress: &mut Progress, bytes: &[u8]) {
        let Err(ignored) = progress.client.handle_packet(progress.now(), bytes) else { return };
        tracing::debug!(link = self.name, reason = %ignored, "dhcp packet ignored");
        // "No answer" would mislead where there is one that can't be used.
        if matches!(ignored, Ignored::Malformed(_) | Ignored::BadAddress(_))
            && progress.client.lease().is_none()
        {
            self.update(|report| report.last_error = Some(format!("DHCP answer is useless: {ignored}")));
        }
    }

    fn handle_event(&self, progress: &mut Progress, event: Event) {
        progress.dirty = true;
        match event {
            Event::Granted(lease) => {
                let metric = self.metric(progress, lease.gateway.is_some());
                let ends = progress.client.time_left(progress.now()).map(|left| Instant::now() + left);
                tracing::info!(link = self.name, address = %lease.address, server = %lease.server, "dhcp lease");
                progress.desired = Desired::of_lease(self.index, &lease, ends, metric);
            }
            Event::Lost(reason) => {
                let cause = match reason {
                    LostReason::Expired => "DHCP lease ran out, and no server renewed it".to_owned(),
                    LostReason::Refused { server, message } => {
                        refusal("took the address back", server, &message)
                    }
                };
                tracing::warn!(link = self.name, cause, "dhcp lease lost");
                progress.desired = Desired::default();
                self.update(|report| report.last_error = Some(cause));
            }
            Event::Refused { server, message } => {
                let cause = refusal("refuses us", server, &message);
                tracing::warn!(link = self.name, cause, "dhcp refused");
                self.update(|report| report.last_error = Some(cause));
            }
        }
    }

    /// Fixed when the link first has a default route.
    fn metric(&self, progress: &mut Progress, has_gateway: bool) -> u32 {
        if let Some(metric) = progress.metric {
            return metric;
        }
        if !has_gateway {
            return METRIC_FIRST;
        }
        let metric = METRIC_FIRST + self.ranks.fetch_add(1, Ordering::Relaxed);
        *progress.metric.insert(metric)
    }

    /// Brings the kernel to what is wanted: what doesn't belong goes first, so that two leases never mix.
    async fn apply(&self, desired: &Desired) -> Result<(), LinkError> {
        let (addresses, routes) = (self.rtnl.addresses().await?, self.rtnl.routes().await?);
        let facts = *self.facts.borrow();
        if let Some(mtu_bytes) = desired.mtu_bytes.filter(|mtu| *mtu != facts.mtu_bytes) {
            // A card that can't is no reason to go without network.
            if let Err(error) = self.rtnl.set_mtu(self.index, mtu_bytes).await {
                tracing::warn!(link = self.name, mtu_bytes, %error, "mtu of the DHCP server not set");
            }
        }
        for route in desired.superfluous_routes(self.index, &routes) {
            self.rtnl.delete_route(route).await?;
        }
        for net in desired.superfluous_addresses(self.index, &addresses) {
            self.rtnl.delete_address(self.index, net).await?;
        }
        let now = Instant::now();
        for (net, ends) in &desired.addresses {
            let valid_s = ends
                .map(|ends| u32::try_from(ends.saturating_duration_since(now).as_secs()).unwrap_or(u32::MAX));
            self.rtnl.set_address(self.index, *net, valid_s).await?;
            if !addresses.iter().any(|known| known.link == self.index && known.net == *net) {
                tracing::info!(link = self.name, address = %net, "address set");
            }
        }
        for route in &desired.routes {
            self.rtnl.set_route(route).await?;
        }
        Ok(())
    }

    /// After a round without error.
    fn settle(&self, progress: &Progress) {
        let lease = progress.client.lease();
        let state = match self.config.mode {
            LinkMode::Off => LinkState::Off,
            _ if !progress.carrier => LinkState::NoCarrier,
            LinkMode::Dhcp if lease.is_none() => LinkState::WaitingForDhcp,
            LinkMode::Dhcp | LinkMode::Static | LinkMode::Carrier => LinkState::Ready,
        };
        let source =
            if self.config.mode == LinkMode::Static { AddressSource::Static } else { AddressSource::Dhcp };
        let v4 = |list: &[Ipv4Addr]| list.iter().map(|address| IpAddr::V4(*address)).collect::<Vec<_>>();
        self.update(|report| {
            report.state = state;
            report.owned = progress.desired.addresses.iter().map(|(net, _)| (*net, source)).collect();
            report.dns.clone_from(&self.config.dns);
            report.dns.extend(lease.map(|lease| v4(&lease.dns)).unwrap_or_default());
            report.ntp = lease.map(|lease| v4(&lease.ntp)).unwrap_or_default();
            report.dhcp_server = lease.map(|lease| lease.server.into());
            if matches!(state, LinkState::Ready | LinkState::Off) {
                report.last_error = None;
            }
        });
    }

    fn fail(&self, error: &LinkError) {
        let text = chain(error);
        tracing::warn!(link = self.name, error = text, "link failed, tried again soon");
        self.update(|report| {
            report.state = LinkState::Failed;
            report.last_error = Some(text);
        });
    }

    fn update(&self, change: impl FnOnce(&mut Report)) {
        let changed = self.report.send_if_modified(|report| {
            let before = report.clone();
            change(report);
            *report != before
        });
        if changed {
            self.wake.notify_one();
        }
    }

    async fn wait(&mut self, progress: &Progress) -> Wakeup {
        // After a failure the client's deadline may lie in the past, out of reach: only the pause counts then.
        let timeout = progress.client.poll_timeout().map(|at| progress.origin + at);
        let next = progress.retry_at.or(timeout);
        let timer = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let packet = async {
            match &progress.socket {
                Some(socket) => socket.receive().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.facts.changed() => if changed.is_ok() { Wakeup::Facts } else { Wakeup::Orphaned },
            received = packet => match received {
                Ok(bytes) => Wakeup::Packet(bytes),
                Err(error) => Wakeup::SocketFailed(error),
            },
            () = timer => Wakeup::Timer,
        }
    }
}

impl Progress {
    /// For the DHCP client.
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}

impl Desired {
    fn of_lease(link: u32, lease: &Lease, ends: Option<Instant>, metric: u32) -> Self {
        let default = lease.gateway.map(|gateway| default_route(link, gateway.into(), metric));
        let others = lease.routes.iter().map(|(net, hop)| Route {
            link,
            destination: (*net).into(),
            gateway: Some(*hop).filter(|hop| !hop.is_unspecified()).map(IpAddr::V4),
            metric,
            ours: true,
        });
        Self {
            addresses: vec![(lease.address.into(), ends)],
            routes: others.chain(default).collect(),
            mtu_bytes: lease.mtu_bytes.map(u32::from),
        }
    }

    fn of_config(link: u32, config: &LinkConfig, metric: u32) -> Self {
        let gateways = config.gateway.map(IpAddr::V4).into_iter().chain(config.gateway6.map(IpAddr::V6));
        Self {
            addresses: config.addresses.iter().map(|net| (*net, None)).collect(),
            routes: gateways.map(|gateway| default_route(link, gateway, metric)).collect(),
            mtu_bytes: None,
        }
    }

    /// Whatever else is on the link, but for what the kernel put there itself: link-local and router advertisements.
    fn superfluous_addresses(&self, link: u32, present: &[Address]) -> Vec<IpNet> {
        let foreign = |address: &&Address| address.link == link && !address.dynamic && !address.link_local;
        let wanted = |net: &IpNet| self.addresses.iter().any(|(wanted, _)| wanted == net);
        present.iter().filter(foreign).map(|address| address.net).filter(|net| !wanted(net)).collect()
    }

    /// Routes that we made earlier and don't want now.
    fn superfluous_routes<'a>(&'a self, link: u32, present: &'a [Route]) -> impl Iterator<Item = &'a Route> {
        present.iter().filter(move |route| route.link == link && route.ours && !self.routes.contains(route))
    }
}

fn default_route(link: u32, gateway: IpAddr, metric: u32) -> Route {
    let destination = match gateway {
        IpAddr::V4(_) => Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    Route { link, destination, gateway: Some(gateway), metric, ours: true }
}

fn refusal(what: &str, server: Option<Ipv4Addr>, message: &str) -> String {
    let server = server.map_or_else(|| "a DHCP server".to_owned(), |server| format!("DHCP server {server}"));
    let message = if message.is_empty() { String::new() } else { format!(": {message}") };
    format!("{server} {what}{message}")
}

/// The whole chain of causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn mac_number(mac: MacAddr) -> u64 {
    mac.0.iter().fold(0, |number, octet| number << 8 | u64::from(*octet))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(net: &str, dynamic: bool, link_local: bool) -> Address {
        Address { link: 2, net: net.parse().unwrap(), dynamic, link_local, tentative: false }
    }

    fn lease() -> Lease {
        Lease {
            address: "10.0.2.15/24".parse().unwrap(),
            server: Ipv4Addr::new(10, 0, 2, 2),
            gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
            routes: vec![("192.168.0.0/16".parse().unwrap(), Ipv4Addr::UNSPECIFIED)],
            dns: vec![],
            ntp: vec![],
            mtu_bytes: Some(1400),
            times: None,
        }
    }

    #[test]
    fn a_lease_becomes_address_routes_and_mtu() {
        let desired = Desired::of_lease(2, &lease(), None, 101);
        assert_eq!(desired.addresses, [("10.0.2.15/24".parse().unwrap(), None)]);
        assert_eq!(desired.mtu_bytes, Some(1400));
        let [other, default] = &desired.routes[..] else { panic!("{desired:?}") };
        assert_eq!((other.destination.to_string(), other.gateway), ("192.168.0.0/16".into(), None));
        assert_eq!((default.destination.to_string(), default.metric), ("0.0.0.0/0".into(), 101));
    }

    #[test]
    fn what_an_earlier_lease_left_goes_and_the_kernels_own_stays() {
        let desired = Desired::of_lease(2, &lease(), None, 100);
        let present = [
            address("10.0.2.15/24", false, false),
            address("10.0.9.7/24", false, false),
            address("2001:db8::5/64", true, false),
            address("2001:db8::6/64", false, false),
            address("fe80::1/64", false, true),
            Address { link: 3, ..address("10.1.1.1/24", false, false) },
        ];
        let gone: Vec<String> =
            desired.superfluous_addresses(2, &present).iter().map(ToString::to_string).collect();
        assert_eq!(gone, ["10.0.9.7/24", "2001:db8::6/64"]);

        let old = default_route(2, "10.0.9.1".parse().unwrap(), 100);
        let advertised = Route { ours: false, ..default_route(2, "fe80::1".parse().unwrap(), 1024) };
        let elsewhere = default_route(3, "10.1.1.254".parse().unwrap(), 100);
        let present = [old.clone(), advertised, elsewhere, desired.routes[1].clone()];
        assert_eq!(desired.superfluous_routes(2, &present).collect::<Vec<_>>(), [&old]);
    }

    #[test]
    fn a_refusal_reads_as_a_sentence() {
        assert_eq!(
            refusal("refuses us", Some(Ipv4Addr::new(10, 0, 0, 1)), "no lease"),
            "DHCP server 10.0.0.1 refuses us: no lease"
        );
        assert_eq!(refusal("took the address back", None, ""), "a DHCP server took the address back");
    }
}
