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
use croft_network::{LinkConfig, Network};
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
        let mut links = known.clone();
        // The card's own entry, whether it was found by name or by address.
        let status = self.network.status();
        let mac = status.links.iter().find(|link| link.name == order.link).map(|link| link.mac);
        links.retain(|link| match mac {
            Some(mac) => !link.matches(&order.link, mac),
            None => link.name.as_deref() != Some(&order.link),
        });
        links.push(config);
        self.network.configure(croft_network::NetworkConfig { links: links.clone() })?;
        *known = links;
        Ok(format!(
            "{} has new settings until the machine restarts; the status shows what comes of it",
            order.link
        ))
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
}
