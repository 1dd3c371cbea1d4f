//! The node's own links, with dnsmasq as the DHCP server and router.

use std::net::IpAddr;
use std::time::Duration;

use croft_network::status::{AddressSource, LinkState};
use croft_network::{LinkConfig, LinkMode, LinkStatus, Network, NetworkConfig, NetworkStatus, WaitLimits};

use crate::harness::{Dnsmasq, Lab, PATIENCE, address, down, in_node, up, wire};

const LONG: WaitLimits = WaitLimits { carrier: PATIENCE, total: PATIENCE };
const SHORT: WaitLimits =
    WaitLimits { carrier: Duration::from_millis(300), total: Duration::from_millis(1_500) };

/// The tests' links are virtual, so the configuration has to name them.
fn dhcp(name: &str) -> LinkConfig {
    LinkConfig { name: Some(name.into()), ..LinkConfig::default() }
}

fn config(links: impl IntoIterator<Item = LinkConfig>) -> NetworkConfig {
    NetworkConfig { links: links.into_iter().collect() }
}

async fn until(network: &Network, what: &str, holds: impl Fn(&NetworkStatus) -> bool) -> NetworkStatus {
    let mut status = network.subscribe();
    // No test wants a link to fail, and a failure costs a boot five seconds: waiting it out would hide it.
    let failed = |status: &NetworkStatus| status.links.iter().any(|link| link.state == LinkState::Failed);
    let waited =
        tokio::time::timeout(PATIENCE, status.wait_for(|status| holds(status) || failed(status))).await;
    assert!(!failed(&network.status()), "{:#?}", network.status());
    match waited {
        Ok(Ok(status)) => status.clone(),
        _ => panic!("never {what}: {:#?}", network.status()),
    }
}

fn sources(link: &LinkStatus) -> Vec<(String, AddressSource)> {
    let routable = link.addresses.iter().filter(|address| address.source != AddressSource::LinkLocal);
    routable.map(|address| (address.address.to_string(), address.source)).collect()
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

/// A world with a server on link `w0`, wired to the node's `eth0`.
async fn world(lab: &Lab, options: &[&str]) -> Option<(croft_network::workload::Namespace, Dnsmasq)> {
    let world = lab.namespace("world").await;
    wire("eth0", "w0", &world).await;
    world
        .run(|| async {
            up("w0").await;
            address("w0", "192.0.2.1/24").await;
        })
        .await
        .unwrap();
    let mut all = vec![
        "--dhcp-range=192.0.2.50,192.0.2.50,255.255.255.0,2m",
        "--dhcp-option=option:router,192.0.2.1",
        "--dhcp-option=option:dns-server,192.0.2.53",
        "--dhcp-option=option:ntp-server,192.0.2.123",
    ];
    all.extend(options);
    let server = Dnsmasq::start(lab, &world, "w0", &all).await?;
    Some((world, server))
}

#[test]
fn a_dhcp_server_gives_address_route_and_servers_and_renews() {
    in_node("dhcp", |lab| async move {
        let Some((_world, mut server)) =
            world(&lab, &["--dhcp-option=option:T1,3", "--dhcp-option=option:mtu,1400"]).await
        else {
            return;
        };
        let network = Network::start(config([dhcp("eth0")])).await.unwrap();
        let uplink = network.wait_uplink(LONG).await.unwrap();
        assert_eq!(uplink.name, "eth0");
        assert_eq!(uplink.state, LinkState::Ready);
        assert_eq!(sources(&uplink), [("192.0.2.50/24".to_owned(), AddressSource::Dhcp)]);
        assert_eq!(uplink.gateways, ips(&["192.0.2.1"]));
        assert_eq!((uplink.dns.clone(), uplink.ntp.clone()), (ips(&["192.0.2.53"]), ips(&["192.0.2.123"])));
        assert_eq!(uplink.dhcp_server, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(uplink.last_error, None);
        until(&network, "mtu 1400", |status| status.links[0].mtu_bytes == 1400).await;

        server.logged("DHCPDISCOVER(").await;
        server.logged("DHCPACK(").await;
        // T1 comes after three seconds (dnsmasq takes no less): the renewal is unicast, and answered.
        server.logged("DHCPREQUEST(").await;
        server.logged("DHCPACK(").await;
        assert_eq!(network.status().links[0].state, LinkState::Ready);
    });
}

#[test]
fn without_an_answer_the_wait_ends_with_the_reason_and_the_work_goes_on() {
    in_node("no-dhcp", |lab| async move {
        let world_side = lab.namespace("world").await;
        wire("eth0", "w0", &world_side).await;
        world_side
            .run(|| async {
                up("w0").await;
                address("w0", "192.0.2.1/24").await;
            })
            .await
            .unwrap();
        let network = Network::start(config([dhcp("eth0"), dhcp("eth9")])).await.unwrap();
        let error = network.wait_uplink(SHORT).await.unwrap_err().to_string();
        assert!(
            error.contains(
                "no DHCP answer on eth0 in 2 s: check the server or set a static address in boot.toml"
            ),
            "{error}"
        );
        assert!(
            error.contains("boot.toml names link eth9, which this machine does not have: it has eth0 ("),
            "{error}"
        );
        assert_eq!(network.status().links[0].state, LinkState::WaitingForDhcp);

        let options =
            ["--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,2m", "--dhcp-option=option:router,192.0.2.1"];
        let Some(_server) = Dnsmasq::start(&lab, &world_side, "w0", &options).await else { return };
        network.wait_uplink(LONG).await.unwrap();
    });
}

#[test]
fn a_cable_that_comes_late_is_noticed_and_one_that_goes_too() {
    in_node("carrier", |lab| async move {
        let Some((world, mut server)) = world(&lab, &[]).await else { return };
        world.run(|| async { down("w0").await }).await.unwrap();
        let network = Network::start(config([dhcp("eth0")])).await.unwrap();
        let error = network.wait_uplink(SHORT).await.unwrap_err();
        assert_eq!(error.to_string(), "no carrier on eth0: check the cable");

        world.run(|| async { up("w0").await }).await.unwrap();
        network.wait_uplink(LONG).await.unwrap();
        server.logged("DHCPDISCOVER(").await;
        server.logged("DHCPACK(").await;

        world.run(|| async { down("w0").await }).await.unwrap();
        let status = until(&network, "without uplink", |status| status.uplink.is_none()).await;
        assert_eq!(status.links[0].state, LinkState::NoCarrier);
        world.run(|| async { up("w0").await }).await.unwrap();
        until(&network, "ready again", |status| {
            status.uplink.is_some() && status.links[0].state == LinkState::Ready
        })
        .await;
        // The old lease is confirmed without a new search.
        let next = server.logged_any(&["DHCPDISCOVER(", "DHCPREQUEST("]).await;
        assert!(next.contains("DHCPREQUEST("), "{next}");
    });
}

#[test]
fn a_static_link_needs_nobody() {
    in_node("static", |lab| async move {
        let world = lab.namespace("world").await;
        wire("eth0", "w0", &world).await;
        world.run(|| async { up("w0").await }).await.unwrap();
        // What an earlier configuration left behind goes.
        address("eth0", "198.51.100.7/24").await;
        let eth0 = LinkConfig {
            mode: LinkMode::Static,
            addresses: vec!["192.0.2.10/24".parse().unwrap(), "2001:db8::10/64".parse().unwrap()],
            gateway: Some("192.0.2.1".parse().unwrap()),
            gateway6: Some("2001:db8::1".parse().unwrap()),
            dns: ips(&["192.0.2.53"]),
            ..dhcp("eth0")
        };
        let network = Network::start(config([eth0])).await.unwrap();
        network.wait_uplink(LONG).await.unwrap();
        let complete = |status: &NetworkStatus| {
            let link = &status.links[0];
            link.state == LinkState::Ready && link.gateways.len() == 2 && sources(link).len() == 2
        };
        let status = until(&network, "configured", complete).await;
        let link = &status.links[0];
        assert_eq!(
            sources(link),
            [
                ("192.0.2.10/24".to_owned(), AddressSource::Static),
                ("2001:db8::10/64".to_owned(), AddressSource::Static)
            ]
        );
        assert_eq!(link.gateways, ips(&["192.0.2.1", "2001:db8::1"]));
        assert_eq!(status.dns(), ips(&["192.0.2.53"]));

        // After a loss of carrier the kernel has forgotten the IPv6 part; it is put back.
        world.run(|| async { down("w0").await }).await.unwrap();
        until(&network, "without carrier", |status| !status.links[0].carrier).await;
        world.run(|| async { up("w0").await }).await.unwrap();
        until(&network, "complete again", complete).await;
    });
}

#[test]
fn the_second_nic_takes_over_from_a_dead_uplink() {
    in_node("failover", |lab| async move {
        let world = lab.namespace("world").await;
        wire("eth0", "w0", &world).await;
        wire("eth1", "w1", &world).await;
        world
            .run(|| async {
                up("w0").await;
                up("w1").await;
            })
            .await
            .unwrap();
        let link = |name: &str, net: u8| LinkConfig {
            mode: LinkMode::Static,
            addresses: vec![format!("10.7.{net}.10/24").parse().unwrap()],
            gateway: Some(format!("10.7.{net}.1").parse().unwrap()),
            ..dhcp(name)
        };
        let network = Network::start(config([link("eth0", 0), link("eth1", 1)])).await.unwrap();
        let both = |status: &NetworkStatus| status.links.iter().all(|link| link.gateways.len() == 1);
        let status = until(&network, "both ready", both).await;
        let first = status.uplink.clone().unwrap();
        let (cable, other) = if first == "eth0" { ("w0", "eth1") } else { ("w1", "eth0") };
        world.run(move || async move { down(cable).await }).await.unwrap();
        until(&network, "taken over", |status| status.uplink.as_deref() == Some(other)).await;
        world.run(move || async move { up(cable).await }).await.unwrap();
        until(&network, "back", |status| status.uplink.as_deref() == Some(&first)).await;
    });
}

#[test]
fn a_router_advertisement_gives_an_ipv6_address() {
    in_node("slaac", |lab| async move {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            println!("skipped slaac: the kernel has no IPv6");
            return;
        }
        let options =
            ["--enable-ra", "--dhcp-range=2001:db8:7::,ra-only,64,2m", "--ra-param=w0,mtu:1400,4,60"];
        let Some((world, _server)) = world(&lab, &options).await else { return };
        world.run(|| async { address("w0", "2001:db8:7::1/64").await }).await.unwrap();
        let network = Network::start(config([dhcp("eth0")])).await.unwrap();
        let has_slaac = |status: &NetworkStatus| {
            sources(&status.links[0])
                .iter()
                .any(|(net, source)| *source == AddressSource::Slaac && net.starts_with("2001:db8:7:"))
                && status.links[0].gateways.iter().any(IpAddr::is_ipv6)
        };
        until(&network, "with an advertised address", has_slaac).await;
    });
}

#[test]
fn a_link_that_is_off_is_left_down() {
    in_node("off", |lab| async move {
        let world = lab.namespace("world").await;
        wire("eth0", "w0", &world).await;
        up("eth0").await;
        let network =
            Network::start(config([LinkConfig { mode: LinkMode::Off, ..dhcp("eth0") }])).await.unwrap();
        let error = network.wait_uplink(SHORT).await.unwrap_err().to_string();
        assert_eq!(error, "eth0 is off in boot.toml: set its mode to dhcp or static");
        assert_eq!(network.status().links[0].state, LinkState::Off);
    });
}

#[test]
fn a_wrong_configuration_is_refused_before_anything_is_touched() {
    in_node("refused", |_lab| async move {
        let wrong = LinkConfig { mode: LinkMode::Static, ..dhcp("eth0") };
        let error = Network::start(config([wrong])).await.unwrap_err().to_string();
        assert!(error.starts_with("link eth0 is static but has no addresses"), "{error}");
    });
}
