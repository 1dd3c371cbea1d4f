//! VLANs and bonds on a real kernel, with a machine on the other side of each. Where the kernel has none of them, what the
//! node says of that is tested instead.

use croft_network::status::{AddressSource, LinkState};
use croft_network::{BondConfig, BondMode, LinkConfig, LinkMode, Network, NetworkConfig, NetworkStatus};
use rtnetlink::{LinkBond, LinkVlan, packet_route::link};

use crate::harness::{Lab, PATIENCE, address, down, in_node, link, netlink, up, wire};

fn fixed(name: &str, net: &str) -> LinkConfig {
    LinkConfig {
        name: Some(name.into()),
        mode: LinkMode::Static,
        addresses: vec![net.parse().unwrap()],
        gateway: Some("192.0.2.1".parse().unwrap()),
        ..LinkConfig::default()
    }
}

async fn until(network: &Network, what: &str, holds: impl Fn(&NetworkStatus) -> bool) -> NetworkStatus {
    let mut status = network.subscribe();
    let waited = tokio::time::timeout(PATIENCE, status.wait_for(|status| holds(status))).await;
    match waited {
        Ok(Ok(status)) => status.clone(),
        _ => panic!("never {what}: {:#?}", network.status()),
    }
}

fn has(status: &NetworkStatus, link: &str, net: &str) -> bool {
    let there = |address: &croft_network::status::AddressStatus| {
        address.address.to_string() == net && address.source == AddressSource::Static
    };
    status.links.iter().any(|known| known.name == link && known.addresses.iter().any(there))
}

/// Waits for the link with its address; `false` where the kernel can't make such links, and the node says so as it should.
async fn made(network: &Network, link: &str, refusal: (&str, &str)) -> bool {
    let (blamed, cause) = refusal;
    let settled = |status: &NetworkStatus| has(status, link, "192.0.2.10/24") || !status.failed.is_empty();
    let status = until(network, "made", settled).await;
    let Some(failed) = status.failed.first() else { return true };
    assert_eq!(failed.link, blamed);
    assert!(failed.cause.contains(cause), "{failed:?}");
    println!("skipped in part: {}", failed.cause);
    false
}

/// Whether a machine at the far end answers: a connection that is refused came there.
async fn reaches(target: &str) {
    let to = format!("{target}:9");
    let search = async {
        loop {
            match tokio::net::TcpStream::connect(&to).await {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return,
                Ok(_) => return,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("{target} is never reached"));
}

#[test]
fn a_vlan_carries_the_addresses_and_its_link_has_none() {
    in_node("vlan", |lab: Lab| async move {
        let world = lab.namespace("world").await;
        wire("eth0", "w0", &world).await;
        world.run(|| async { up("w0").await }).await.unwrap();
        let entry = LinkConfig { vlan: Some(7), ..fixed("eth0", "192.0.2.10/24") };
        let network = Network::start(NetworkConfig { links: vec![entry.clone()] }).await.unwrap();
        if !made(&network, "eth0.7", ("eth0.7", "create VLAN 7 as eth0.7: the kernel needs VLAN_8021Q")).await
        {
            let error = network
                .wait_uplink(croft_network::WaitLimits {
                    carrier: std::time::Duration::ZERO,
                    total: std::time::Duration::ZERO,
                })
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains("eth0.7 failed: can't create VLAN 7"), "{error}");
            return;
        }
        world
            .run(|| async {
                let parent = link(&netlink(), "w0").await.header.index;
                netlink().link().add(LinkVlan::new("w0.7", parent, 7).build()).execute().await.unwrap();
                up("w0.7").await;
                address("w0.7", "192.0.2.1/24").await;
            })
            .await
            .unwrap();
        reaches("192.0.2.1").await;
        let status = until(&network, "an uplink", |status| status.uplink.as_deref() == Some("eth0.7")).await;
        let carrier = status.links.iter().find(|link| link.name == "eth0").unwrap();
        assert_eq!((carrier.mode, carrier.state), (LinkMode::Carrier, LinkState::Ready));
        assert!(carrier.addresses.is_empty(), "{carrier:?}");

        // Another VLAN takes the place of the first, whose link goes.
        let other = LinkConfig { vlan: Some(8), ..entry };
        network.configure(NetworkConfig { links: vec![other] }).unwrap();
        let status = until(&network, "VLAN 8", |status| has(status, "eth0.8", "192.0.2.10/24")).await;
        assert!(!status.links.iter().any(|link| link.name == "eth0.7"), "{status:#?}");

        // And back to none.
        network.configure(NetworkConfig { links: vec![fixed("eth0", "192.0.2.11/24")] }).unwrap();
        let status = until(&network, "no VLAN", |status| has(status, "eth0", "192.0.2.11/24")).await;
        assert_eq!(status.links.len(), 1);
    });
}

#[test]
fn when_one_member_of_a_bond_loses_its_cable_the_other_takes_over() {
    in_node("bond", |lab: Lab| async move {
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
        let members = vec!["eth0".to_owned(), "eth1".to_owned()];
        let bond = BondConfig { members, mode: BondMode::ActiveBackup };
        let entry = LinkConfig { bond: Some(bond), ..fixed("bond0", "192.0.2.10/24") };
        let network = Network::start(NetworkConfig { links: vec![entry.clone()] }).await.unwrap();
        if !made(&network, "bond0", ("bond0", "create bond bond0: the kernel needs BONDING")).await {
            return;
        }
        // A bridge joins both wires, as a switch would.
        world
            .run(|| async {
                netlink().link().add(rtnetlink::LinkBridge::new("sw").build()).execute().await.unwrap();
                crate::harness::into_bridge("w0", "sw").await;
                crate::harness::into_bridge("w1", "sw").await;
                up("sw").await;
                address("sw", "192.0.2.1/24").await;
            })
            .await
            .unwrap();
        reaches("192.0.2.1").await;
        let status = until(&network, "two members", |status| {
            let carries =
                |name: &str| status.links.iter().any(|l| l.name == name && l.mode == LinkMode::Carrier);
            carries("eth0") && carries("eth1")
        })
        .await;
        assert_eq!(status.failed, []);
        world.run(|| async { down("w0").await }).await.unwrap();
        until(&network, "a member without carrier", |status| {
            status.links.iter().any(|link| link.name == "eth0" && !link.carrier)
        })
        .await;
        reaches("192.0.2.1").await;
        assert!(network.status().links.iter().any(|link| link.name == "bond0" && link.carrier));

        // A member that is not there is named; the others go on.
        let members = vec!["eth0".to_owned(), "eth1".to_owned(), "eth9".to_owned()];
        let bond = BondConfig { members, mode: BondMode::ActiveBackup };
        network.configure(NetworkConfig { links: vec![LinkConfig { bond: Some(bond), ..entry }] }).unwrap();
        let status = until(&network, "a complaint", |status| !status.failed.is_empty()).await;
        assert_eq!(
            (status.failed[0].link.as_str(), status.failed[0].cause.as_str()),
            ("bond0", "its member eth9 is not in this machine: correct members, or check the card")
        );
        // Without its entry the bond goes, and its members are free.
        network.configure(NetworkConfig { links: vec![fixed("eth1", "192.0.2.12/24")] }).unwrap();
        let status = until(&network, "a free member", |status| has(status, "eth1", "192.0.2.12/24")).await;
        assert!(!status.links.iter().any(|link| link.name == "bond0"), "{status:#?}");
    });
}

#[test]
fn a_bond_by_802_3ad_agrees_with_its_peer_and_carries_a_vlan() {
    in_node("lacp", |lab: Lab| async move {
        let world = lab.namespace("world").await;
        wire("eth0", "w0", &world).await;
        wire("eth1", "w1", &world).await;
        let members = vec!["eth0".to_owned(), "eth1".to_owned()];
        let bond = BondConfig { members, mode: BondMode::Lacp };
        let entry = LinkConfig { bond: Some(bond), vlan: Some(7), ..fixed("bond0", "192.0.2.10/24") };
        let peer = world
            .run(|| async {
                let peer = LinkBond::new("peer").mode(link::BondMode::Ieee8023Ad).miimon(100).build();
                if netlink().link().add(peer).execute().await.is_err() {
                    return false;
                }
                for member in ["w0", "w1"] {
                    crate::harness::into_bridge(member, "peer").await;
                }
                up("peer").await;
                true
            })
            .await
            .unwrap();
        let network = Network::start(NetworkConfig { links: vec![entry] }).await.unwrap();
        if !peer {
            made(&network, "bond0.7", ("bond0", "create bond bond0: the kernel needs BONDING")).await;
            return;
        }
        until(&network, "a VLAN on the bond", |status| has(status, "bond0.7", "192.0.2.10/24")).await;
        world
            .run(|| async {
                let parent = crate::harness::link(&netlink(), "peer").await.header.index;
                netlink().link().add(LinkVlan::new("peer.7", parent, 7).build()).execute().await.unwrap();
                up("peer.7").await;
                address("peer.7", "192.0.2.1/24").await;
            })
            .await
            .unwrap();
        reaches("192.0.2.1").await;
        let status = network.status();
        let carriers = status.links.iter().filter(|link| link.mode == LinkMode::Carrier).count();
        assert_eq!((carriers, status.failed.len()), (3, 0), "{status:#?}");
    });
}
