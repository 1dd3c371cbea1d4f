//! Network cards: `/sys/class/net`.

use crate::tree::{Tree, excerpt};
use serde::{Deserialize, Serialize};

/// `ARPHRD_ETHER` of linux/if_arp.h.
const ETHERNET: u64 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    pub name: String,
    /// The card's own address, `52:54:00:12:34:56`, also while it is part of a bond.
    pub mac: Option<String>,
    pub driver: Option<String>,
    /// `None` while the link is down, and on cards that do not know.
    pub speed_mbit: Option<u32>,
    /// Whether a cable with something alive at the other end is plugged in; `None` while the link is down.
    pub carrier: Option<bool>,
    /// Place on the bus, `0000:00:03.0`.
    pub pci_address: Option<String>,
    /// `1af4:1000`, vendor and device.
    pub pci_id: Option<String>,
}

pub(crate) fn read(tree: &Tree) -> Vec<Nic> {
    tree.names("sys/class/net").into_iter().filter_map(|name| read_nic(tree, name)).collect()
}

fn read_nic(tree: &Tree, name: String) -> Option<Nic> {
    let folder = format!("sys/class/net/{name}");
    // Bridges, bonds, taps and the loopback have no device behind them.
    if !tree.exists(&format!("{folder}/device")) {
        return None;
    }
    let at = |file: &str| format!("{folder}/{file}");
    if let Some(kind) = tree.number(&at("type")).filter(|kind| *kind != ETHERNET) {
        tree.find(&folder, &format!("link of type {kind} is not Ethernet and not used"));
        return None;
    }
    let link = tree.link(&folder).unwrap_or_default();
    let pci_address = link.split('/').rev().find(|part| is_pci_address(part)).map(ToOwned::to_owned);
    let pci_id = pci_address.as_ref().and_then(|address| {
        let id = |file: &str| tree.number(&format!("sys/bus/pci/devices/{address}/{file}"));
        Some(format!("{:04x}:{:04x}", id("vendor")?, id("device")?))
    });
    Some(Nic {
        mac: mac(tree, &folder),
        driver: tree
            .link(&at("device/driver"))
            .and_then(|link| link.rsplit('/').next().map(ToOwned::to_owned)),
        speed_mbit: tree
            .quiet_text(&at("speed"))
            .and_then(|text| text.parse().ok())
            .filter(|speed| *speed > 0),
        carrier: tree.quiet_text(&at("carrier")).and_then(|text| match text.as_str() {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        }),
        pci_address,
        pci_id,
        name,
    })
}

/// In a bond all cards show the bond's address; their own is kept beside.
fn mac(tree: &Tree, folder: &str) -> Option<String> {
    let own = format!("{folder}/bonding_slave/perm_hwaddr");
    let path = if tree.exists(&own) { own } else { format!("{folder}/address") };
    let text = tree.text(&path)?;
    let octets: Vec<Option<u8>> =
        text.split(':').map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2)).collect();
    let valid = octets.len() == 6
        && octets.iter().all(Option::is_some)
        && octets.iter().any(|octet| *octet != Some(0));
    if valid {
        Some(text.to_ascii_lowercase())
    } else {
        tree.find(&path, &format!("{:?} is not an Ethernet address", excerpt(&text)));
        None
    }
}

/// `dddd:bb:dd.f`
fn is_pci_address(part: &str) -> bool {
    let bytes = part.as_bytes();
    bytes.len() == 12
        && bytes.iter().enumerate().all(|(index, byte)| match index {
            4 | 7 => *byte == b':',
            10 => *byte == b'.',
            _ => byte.is_ascii_hexdigit(),
        })
}
