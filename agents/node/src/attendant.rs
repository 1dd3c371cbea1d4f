//! Serves whoever stands before the machine: the orders of the screen's menu, one after the other.
//!
//! ```text
//!   Order::Network ─> settings as in boot.toml, checked ─> os/network, until the machine restarts
//!   Order::Wipe ─> `wipe`, which checks the disk again ─> os/storage
//! ```
//! It must never apply settings that a boot configuration could not hold, and never touch a disk but through `wipe`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use croft_hardware::Health;
use croft_network::{LinkConfig, MacAddr, Network};
use croft_protocol::boot::{BootConfig, LinkMode, LinkSettings};
use croft_screen::model::{LinkOrder, Order};
use croft_storage::examine::Examined;
use tokio::sync::mpsc;

use crate::ledger::chain_of;
use crate::links::{self, LinkError};
use crate::screen::{self, Asked, Board};
use crate::wipe;

#[derive(Debug, thiserror::Error)]
enum SettingsError {
    #[error("'{text}' is no address")]
    Address { text: String },
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Network(#[from] croft_network::config::ConfigError),
}

/// See the module.
pub struct Attendant {
    network: Arc<Network>,
    /// What the boot configuration said of links, and what was changed since.
    links: Mutex<Vec<LinkConfig>>,
    /// The disk that the machine started from, where that is known.
    medium: Option<String>,
    data: Option<String>,
}

impl Attendant {
    /// Shows the disks, too.
    ///
    /// # Errors
    /// [`LinkError`] where the boot configuration can't be used.
    pub fn new(
        network: Arc<Network>,
        boot: &BootConfig,
        medium: Option<String>,
        data: Option<String>,
        (disks, health): (&[Examined], &BTreeMap<String, Health>),
        board: Board,
    ) -> Result<Self, LinkError> {
        let shown = screen::disks(disks, health, medium.as_deref(), data.as_deref());
        board.change(|status| status.disks = shown);
        Ok(Self { network, links: Mutex::new(links::config(boot)?.links), medium, data })
    }

    /// Until the agent ends.
    pub async fn serve(self, mut orders: mpsc::Receiver<Asked>) {
        let this = Arc::new(self);
        while let Some(Asked { order, answer }) = orders.recv().await {
            let text = match order {
                Order::Network(order) => this.set_link(&order).unwrap_or_else(|error| chain_of(&error)),
                Order::Wipe { disk, typed } => {
                    let this = this.clone();
                    let (medium, data) = (this.medium.clone(), this.data.clone());
                    let wiped = tokio::task::spawn_blocking(move || {
                        wipe::carry_out(&disk, &typed, medium.as_deref(), data.as_deref())
                            .unwrap_or_else(|error| chain_of(&error))
                    });
                    wiped.await.unwrap_or_else(|_| "a defect of this release: nothing more was done".into())
                }
            };
            tracing::warn!(text, "order of a person at the machine");
            let _ = answer.send(text);
        }
    }

    fn set_link(&self, order: &LinkOrder) -> Result<String, SettingsError> {
        let config = links::link(&settings(order)?)?;
        let mut known = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let status = self.network.status();
        let mac = |name: &str| status.links.iter().find(|link| link.name == name).map(|link| link.mac);
        let links = with_new(&known, &order.link, config, mac);
        self.network.configure(croft_network::NetworkConfig { links: links.clone() })?;
        *known = links;
        Ok(format!(
            "{} has new settings until the machine restarts; the status shows what comes of it",
            order.link
        ))
    }
}

/// The entries with that of one link replaced. What the link is made of, a bond's members or a VLAN's parent, stays.
fn with_new(
    entries: &[LinkConfig],
    link: &str,
    new: LinkConfig,
    mac: impl Fn(&str) -> Option<MacAddr>,
) -> Vec<LinkConfig> {
    // By name or by address.
    let is_of = |entry: &LinkConfig, name: &str| {
        mac(name).is_some_and(|mac| entry.matches(name, mac)) || entry.name.as_deref() == Some(name)
    };
    if let Some(place) = entries.iter().position(|entry| is_vlan(entry, link, is_of)) {
        let mut entries = entries.to_vec();
        let old = entries.remove(place);
        let vlan = new.vlan.or(old.vlan);
        entries.push(LinkConfig { name: old.name, mac: old.mac, bond: old.bond, vlan, ..new });
        return entries;
    }
    // VLANs on the link are links of their own.
    let goes = |entry: &&LinkConfig| is_of(entry, link) && (entry.vlan.is_none() || entry.vlan == new.vlan);
    let (old, mut kept): (Vec<&LinkConfig>, Vec<&LinkConfig>) = entries.iter().partition(goes);
    let bond = old.into_iter().find_map(|entry| entry.bond.clone());
    let new = LinkConfig { bond, ..new };
    kept.push(&new);
    kept.into_iter().cloned().collect()
}

/// Whether an entry makes the VLAN that the kernel calls `link`: `eth0.7`, or `vlan7` where that is too long.
fn is_vlan(entry: &LinkConfig, link: &str, is_of: impl Fn(&LinkConfig, &str) -> bool) -> bool {
    let Some(vlan) = entry.vlan else { return false };
    match link.rsplit_once('.') {
        Some((parent, number)) => number.parse() == Ok(vlan) && is_of(entry, parent),
        None => link.strip_prefix("vlan").is_some_and(|number| number.parse() == Ok(vlan)),
    }
}

/// As a boot configuration would say it.
fn settings(order: &LinkOrder) -> Result<LinkSettings, SettingsError> {
    let address = |text: &String| text.parse().map_err(|_| SettingsError::Address { text: text.clone() });
    let some = |text: &String| (!text.is_empty()).then(|| address(text)).transpose();
    let is_static = !order.address.is_empty();
    Ok(LinkSettings {
        name: order.link.clone(),
        mode: if is_static { LinkMode::Static } else { LinkMode::Dhcp },
        addresses: if is_static { vec![format!("{}/{}", order.address, order.prefix)] } else { vec![] },
        gateway: some(&order.gateway)?,
        dns: some(&order.dns)?.into_iter().collect(),
        vlan: (order.vlan != 0).then_some(order.vlan),
        bond: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_becomes_what_a_boot_configuration_would_say() {
        let order = LinkOrder {
            link: "eth0".into(),
            address: "192.0.2.10".into(),
            prefix: 24,
            gateway: "192.0.2.1".into(),
            dns: String::new(),
            vlan: 7,
        };
        let link = settings(&order).unwrap();
        assert_eq!(
            (link.mode, link.addresses.as_slice()),
            (LinkMode::Static, &["192.0.2.10/24".to_owned()][..])
        );
        assert_eq!((link.gateway, link.vlan), (Some("192.0.2.1".parse().unwrap()), Some(7)));
        let dhcp = settings(&LinkOrder { link: "eth0".into(), ..LinkOrder::default() }).unwrap();
        assert_eq!((dhcp.mode, dhcp.addresses.len(), dhcp.vlan), (LinkMode::Dhcp, 0, None));
        let wrong = LinkOrder { gateway: "x".into(), ..order };
        assert_eq!(settings(&wrong).unwrap_err().to_string(), "'x' is no address");
    }

    fn entry(name: &str, vlan: Option<u16>, bond: bool) -> LinkConfig {
        let bond = bond.then(|| croft_network::BondConfig {
            members: vec!["eth1".into(), "eth2".into()],
            ..croft_network::BondConfig::default()
        });
        LinkConfig { name: Some(name.into()), vlan, bond, ..LinkConfig::default() }
    }

    /// Each entry after eth0 has the address 2:..:n; VLANs have their parent's.
    fn changed(entries: &[LinkConfig], link: &str, new: LinkConfig) -> Vec<LinkConfig> {
        let mac = |name: &str| {
            let parent = name.split('.').next().unwrap_or(name);
            parent.strip_prefix("eth")?.parse().ok().map(|n| MacAddr([2, 0, 0, 0, 0, n]))
        };
        let links = with_new(entries, link, new, mac);
        croft_network::NetworkConfig { links: links.clone() }.validate().unwrap();
        links
    }

    fn fixed(name: &str) -> LinkConfig {
        let addresses = vec!["192.0.2.9/24".parse().unwrap()];
        LinkConfig { mode: croft_network::LinkMode::Static, addresses, ..entry(name, None, false) }
    }

    #[test]
    fn a_bond_that_gets_an_address_keeps_its_members() {
        let links = changed(&[entry("bond0", None, true)], "bond0", fixed("bond0"));
        assert_eq!(links.len(), 1);
        assert_eq!(links[0].bond.as_ref().unwrap().members, ["eth1", "eth2"]);
        assert_eq!(links[0].addresses.len(), 1);
        let on_vlan = changed(&[entry("bond0", Some(7), true)], "bond0.7", fixed("bond0.7"));
        assert_eq!(on_vlan, [LinkConfig { vlan: Some(7), ..links[0].clone() }]);
    }

    #[test]
    fn a_vlans_own_settings_are_those_of_its_entry_and_its_number_may_change() {
        let by_mac =
            LinkConfig { mac: Some(MacAddr([2, 0, 0, 0, 0, 0])), name: None, ..entry("", Some(7), false) };
        for before in [entry("eth0", Some(7), false), by_mac] {
            let links = changed(std::slice::from_ref(&before), "eth0.7", fixed("eth0.7"));
            let expected =
                LinkConfig { name: before.name.clone(), mac: before.mac, vlan: Some(7), ..fixed("") };
            assert_eq!(links, std::slice::from_ref(&expected));
            let moved = changed(&[before], "eth0.7", LinkConfig { vlan: Some(9), ..fixed("eth0.7") });
            assert_eq!(moved, [LinkConfig { vlan: Some(9), ..expected }]);
        }
        assert_eq!(
            changed(&[entry("enp129s0f0np0", Some(70), false)], "vlan70", fixed("vlan70"))[0].vlan,
            Some(70)
        );
    }

    #[test]
    fn settings_of_a_card_leave_its_vlans_and_other_cards_alone() {
        let before = [entry("eth0", None, false), entry("eth0", Some(7), false), entry("eth1", None, false)];
        let links = changed(&before, "eth0", fixed("eth0"));
        assert_eq!(links, [before[1].clone(), before[2].clone(), fixed("eth0")]);
        // A card that was untagged and is put on a VLAN is not both.
        let tagged = changed(&before, "eth0", LinkConfig { vlan: Some(7), ..fixed("eth0") });
        assert_eq!(tagged, [before[2].clone(), LinkConfig { vlan: Some(7), ..fixed("eth0") }]);
        assert_eq!(changed(&[], "eth3", fixed("eth3")), [fixed("eth3")], "nothing was said of it before");
    }
}
