//! VLANs and bonds: which links have to be made, of which others, and what each link of the machine is for.
//!
//! ```text
//!   configuration + the kernel's links ──steps──> make, join, remove       (the monitor does them)
//!                                      ──role───> addresses | carrier      (the link's task keeps it)
//! ```
//! Pure: nothing here touches the kernel. What was made is marked by [`ALIAS`], and only that is ever removed.

use crate::config::{BondMode, LinkConfig, LinkMode, NetworkConfig};
use crate::mac::MacAddr;
use crate::rtnl::Link;
use rtnetlink::packet_route::link::InfoKind;

/// Marks links that this process made.
pub(crate) const ALIAS: &str = "croft: made from boot.toml";

/// What has to be done to the kernel's links, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Remove { index: u32 },
    MakeBond { name: String, mode: BondMode },
    Join { member: u32, bond: u32, bond_name: String },
    MakeVlan { name: String, parent: u32, vlan: u16 },
}

impl Step {
    /// The link that a failure is told of.
    pub(crate) fn link(&self) -> Option<&str> {
        match self {
            Self::Remove { .. } => None,
            Self::MakeBond { name, .. } | Self::MakeVlan { name, .. } => Some(name),
            Self::Join { bond_name, .. } => Some(bond_name),
        }
    }
}

/// What is wanted and can't be had: link, and why.
pub(crate) type Trouble = (String, String);

/// Name of a VLAN's link: the parent's with the VLAN's number, as everybody knows it; shorter where that is too long.
pub(crate) fn vlan_name(parent: &str, vlan: u16) -> String {
    let name = format!("{parent}.{vlan}");
    if name.len() <= crate::config::LINK_NAME_LEN_MAX { name } else { format!("vlan{vlan}") }
}

/// The link that an entry's addresses or VLAN stand on.
fn base<'a>(entry: &LinkConfig, links: &'a [Link]) -> Option<&'a Link> {
    links.iter().find(|link| {
        // VLANs have their parent's address.
        link.kind != Some(InfoKind::Vlan) && link.own_mac().is_some_and(|mac| entry.matches(&link.name, mac))
    })
}

fn find_member<'a>(member: &str, links: &'a [Link]) -> Option<&'a Link> {
    let mac: Option<MacAddr> = member.parse().ok();
    links.iter().find(|link| {
        let made = matches!(link.kind, Some(InfoKind::Vlan | InfoKind::Bond));
        !made && (link.name == member || mac.is_some() && link.own_mac() == mac)
    })
}

/// What is still to be done, and what is not possible with the links that are there.
pub(crate) fn steps(config: &NetworkConfig, links: &[Link]) -> (Vec<Step>, Vec<Trouble>) {
    let (mut steps, mut troubles) = (Vec::new(), Vec::new());
    let mut wanted: Vec<u32> = Vec::new();
    for entry in &config.links {
        if let Some(bond) = &entry.bond {
            let name = entry.label();
            match links.iter().find(|link| link.name == name) {
                None => steps.push(Step::MakeBond { name: name.clone(), mode: bond.mode }),
                Some(there) if there.kind != Some(InfoKind::Bond) => {
                    troubles.push((
                        name.clone(),
                        "a link of that name is there and is no bond: choose another name".into(),
                    ));
                }
                Some(there) => {
                    wanted.push(there.index);
                    for member in &bond.members {
                        match find_member(member, links) {
                            None => troubles.push((
                                name.clone(),
                                format!("its member {member} is not in this machine: correct members, or check the card"),
                            )),
                            Some(link) if link.controller != Some(there.index) => steps.push(Step::Join {
                                member: link.index,
                                bond: there.index,
                                bond_name: name.clone(),
                            }),
                            Some(_) => {}
                        }
                    }
                }
            }
        }
        if let Some(vlan) = entry.vlan
            && let Some(parent) = base(entry, links)
        {
            match links.iter().find(|link| link.is_vlan_of(parent, vlan)) {
                Some(there) => wanted.push(there.index),
                None => {
                    steps.push(Step::MakeVlan {
                        name: vlan_name(&parent.name, vlan),
                        parent: parent.index,
                        vlan,
                    });
                }
            }
        }
    }
    let made =
        links.iter().filter(|link| link.alias.as_deref() == Some(ALIAS) && !wanted.contains(&link.index));
    // VLANs before the bonds that they stand on.
    let mut removals: Vec<&Link> = made.collect();
    removals.sort_by_key(|link| link.kind != Some(InfoKind::Vlan));
    let removals = removals.into_iter().map(|link| Step::Remove { index: link.index });
    (removals.chain(steps).collect(), troubles)
}

/// What a link is for: its settings, with the mode [`LinkMode::Carrier`] where others stand on it. `None`: not ours.
pub(crate) fn role(config: &NetworkConfig, links: &[Link], link: &Link) -> Option<LinkConfig> {
    let carrier =
        || LinkConfig { name: Some(link.name.clone()), mode: LinkMode::Carrier, ..LinkConfig::default() };
    let settings = |entry: &LinkConfig| LinkConfig {
        name: Some(link.name.clone()),
        mac: None,
        vlan: None,
        bond: None,
        ..entry.clone()
    };
    if link.kind == Some(InfoKind::Vlan) {
        let parent = links.iter().find(|parent| Some(parent.index) == link.parent);
        let entry = config.links.iter().find(|entry| {
            let on_base =
                || base(entry, links).is_some_and(|base| parent.is_some_and(|p| p.index == base.index));
            entry.vlan.is_some() && entry.vlan == link.vlan && on_base()
        });
        // One that somebody else made is ours where the configuration names it.
        let named = || {
            config.links.iter().find(|entry| entry.vlan.is_none() && entry.name.as_ref() == Some(&link.name))
        };
        return entry.or_else(named).map(settings);
    }
    if let Some(bond) = link.controller.and_then(|index| links.iter().find(|bond| bond.index == index))
        && config.links.iter().any(|entry| entry.bond.is_some() && entry.name.as_ref() == Some(&bond.name))
    {
        return Some(carrier());
    }
    let mac = link.own_mac()?;
    let is_member = config
        .links
        .iter()
        .filter_map(|entry| entry.bond.as_ref())
        .any(|bond| bond.members.iter().any(|member| *member == link.name || member.parse() == Ok(mac)));
    if is_member && link.kind != Some(InfoKind::Bond) {
        // Not joined yet: left alone until it is.
        return None;
    }
    let entries = || config.links.iter().filter(|entry| entry.matches(&link.name, mac));
    if let Some(entry) = entries().find(|entry| entry.vlan.is_none()) {
        return Some(settings(entry));
    }
    if entries().next().is_some() {
        return Some(carrier());
    }
    link.is_physical().then(|| LinkConfig { name: Some(link.name.clone()), ..LinkConfig::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BondConfig;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            mac: Some(MacAddr([2, 0, 0, 0, 0, index as u8])),
            permanent_mac: None,
            up: true,
            carrier: true,
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

    fn entry(name: &str, vlan: Option<u16>) -> LinkConfig {
        LinkConfig { name: Some(name.into()), vlan, ..LinkConfig::default() }
    }

    fn bond(name: &str, members: &[&str]) -> LinkConfig {
        let members = members.iter().map(ToString::to_string).collect();
        LinkConfig { bond: Some(BondConfig { members, mode: BondMode::Lacp }), ..entry(name, None) }
    }

    fn config(links: &[LinkConfig]) -> NetworkConfig {
        NetworkConfig { links: links.to_vec() }
    }

    fn made(kind: InfoKind, link: Link) -> Link {
        Link { kind: Some(kind), alias: Some(ALIAS.into()), ..link }
    }

    #[test]
    fn a_vlan_is_made_on_its_link_which_then_carries_and_has_no_addresses() {
        let config = config(&[entry("eth0", Some(7)), entry("eth0", Some(8))]);
        let eth0 = link(2, "eth0");
        let vlan = |name: &str, vlan| Step::MakeVlan { name: name.into(), parent: 2, vlan };
        let (todo, troubles) = steps(&config, std::slice::from_ref(&eth0));
        assert_eq!((todo, troubles.len()), (vec![vlan("eth0.7", 7), vlan("eth0.8", 8)], 0));
        let seven = made(InfoKind::Vlan, Link { parent: Some(2), vlan: Some(7), ..link(3, "eth0.7") });
        let links = [eth0, seven];
        assert_eq!(steps(&config, &links).0, [vlan("eth0.8", 8)]);
        assert_eq!(role(&config, &links, &links[0]).unwrap().mode, LinkMode::Carrier);
        let role = role(&config, &links, &links[1]).unwrap();
        assert_eq!((role.name.as_deref(), role.mode, role.vlan), (Some("eth0.7"), LinkMode::Dhcp, None));
    }

    #[test]
    fn an_untagged_entry_beside_a_vlan_keeps_its_addresses() {
        let config = config(&[entry("eth0", None), entry("eth0", Some(7))]);
        let links = [link(2, "eth0")];
        assert_eq!(role(&config, &links, &links[0]).unwrap().mode, LinkMode::Dhcp);
    }

    #[test]
    fn a_bond_is_made_then_joined_then_its_members_carry() {
        let config = config(&[bond("bond0", &["eth0", "02:00:00:00:00:03"])]);
        let mut links = vec![link(2, "eth0"), link(3, "eth1")];
        assert_eq!(steps(&config, &links).0, [Step::MakeBond { name: "bond0".into(), mode: BondMode::Lacp }]);
        assert_eq!(role(&config, &links, &links[0]), None, "left alone until it has joined");
        assert_eq!(role(&config, &links, &links[1]), None);
        links.push(made(InfoKind::Bond, link(4, "bond0")));
        let join = |member| Step::Join { member, bond: 4, bond_name: "bond0".into() };
        assert_eq!(steps(&config, &links).0, [join(2), join(3)]);
        for link in &mut links[..2] {
            // Members show the bond's address.
            link.permanent_mac = link.mac.replace(MacAddr([2, 0, 0, 0, 0, 4]));
            link.controller = Some(4);
        }
        assert_eq!(steps(&config, &links), (vec![], vec![]));
        assert_eq!(role(&config, &links, &links[0]).unwrap().mode, LinkMode::Carrier);
        assert_eq!(role(&config, &links, &links[2]).unwrap().mode, LinkMode::Dhcp);
    }

    #[test]
    fn a_vlan_on_a_bond_stands_on_both() {
        let mut tagged = bond("bond0", &["eth0"]);
        tagged.vlan = Some(7);
        let config = config(&[tagged]);
        let bond = made(InfoKind::Bond, link(4, "bond0"));
        let links = [Link { controller: Some(4), ..link(2, "eth0") }, bond];
        assert_eq!(steps(&config, &links).0, [Step::MakeVlan { name: "bond0.7".into(), parent: 4, vlan: 7 }]);
        assert_eq!(role(&config, &links, &links[1]).unwrap().mode, LinkMode::Carrier);
    }

    #[test]
    fn what_is_not_there_or_in_the_way_is_named() {
        let config = config(&[bond("bond0", &["eth9"]), bond("eth0", &["eth1"])]);
        let links = [link(2, "eth0"), made(InfoKind::Bond, link(4, "bond0"))];
        let (todo, troubles) = steps(&config, &links);
        assert_eq!(todo, []);
        assert_eq!(
            troubles,
            [
                (
                    "bond0".to_owned(),
                    "its member eth9 is not in this machine: correct members, or check the card".to_owned()
                ),
                (
                    "eth0".to_owned(),
                    "a link of that name is there and is no bond: choose another name".to_owned()
                ),
            ]
        );
    }

    #[test]
    fn only_what_was_made_here_is_removed_and_vlans_first() {
        let theirs = Link { kind: Some(InfoKind::Bond), ..link(3, "bond9") };
        let links = [
            link(2, "eth0"),
            theirs,
            made(InfoKind::Bond, link(4, "bond0")),
            made(InfoKind::Vlan, Link { parent: Some(4), vlan: Some(7), ..link(5, "bond0.7") }),
        ];
        let todo = steps(&NetworkConfig::default(), &links).0;
        assert_eq!(todo, [Step::Remove { index: 5 }, Step::Remove { index: 4 }]);
        assert_eq!(role(&NetworkConfig::default(), &links, &links[1]), None);
        assert_eq!(role(&NetworkConfig::default(), &links, &links[0]).unwrap().mode, LinkMode::Dhcp);
    }

    #[test]
    fn names_of_vlans_fit_the_kernel() {
        assert_eq!(vlan_name("enp3s0", 4094), "enp3s0.4094");
        assert_eq!(vlan_name("enp129s0f1np1", 100), "vlan100");
    }
}
