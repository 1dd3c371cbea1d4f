//! The boot configuration of a node, `/etc/croft/boot.toml`: which grid, which farm, which addresses.

use std::net::{IpAddr, SocketAddr};

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::command::SignedJoin;
use crate::hash::ParseHexError;
use crate::{ChainId, Hash, Name, PublicKey};

/// A join permission, with as many links between its signer's keys as there can be.
const JOIN_BYTES: usize = 2048;

/// All that a machine is told before it boots. Unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    pub grid: GridPin,
    pub farm: FarmJoin,
    #[serde(default)]
    pub node: NodeSettings,
    #[serde(default, rename = "link", skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<LinkSettings>,
    #[serde(default)]
    pub clock: ClockSettings,
}

/// What the node trusts: it acts on nothing that another chain or other validators signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridPin {
    pub name: Name,
    pub chain: ChainId,
    /// Hash of the trusted validator set.
    pub validators: Hash,
    #[serde(rename = "replica")]
    pub replicas: Vec<ReplicaAddress>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaAddress {
    pub address: SocketAddr,
    pub key: PublicKey,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FarmJoin {
    pub name: Name,
    /// [`SignedJoin`], encoded, in hex.
    pub join: String,
}

impl FarmJoin {
    #[must_use]
    pub fn new(name: Name, join: &SignedJoin) -> Self {
        Self { name, join: hex::encode(crate::encode(join)) }
    }

    /// The permission to join.
    ///
    /// # Errors
    /// [`InvalidBootConfig::Join`] when it is damaged.
    pub fn permission(&self) -> Result<SignedJoin, InvalidBootConfig> {
        let damaged = |reason: String| InvalidBootConfig::Join { reason };
        let bytes = hex::decode(&self.join).map_err(|e| damaged(e.to_string()))?;
        crate::decode("join permission", &bytes, JOIN_BYTES).map_err(|e| damaged(e.to_string()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSettings {
    /// Default: `node-` and the first digits of the node's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// How others reach the node's published ports. Default: the addresses of its uplink.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public_addresses: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSettings {
    /// Interface name, or MAC address as `52:54:00:12:34:56`.
    pub name: String,
    #[serde(default)]
    pub mode: LinkMode,
    /// `192.0.2.10/24`, `2001:db8::10/64`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// The addresses are on this VLAN (IEEE 802.1Q, 1 to 4094) of the link, not on the link itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The link is made of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<BondSettings>,
}

/// Several links that act as one, which has the entry's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BondSettings {
    /// Interface names or MAC addresses.
    pub members: Vec<String>,
    #[serde(default)]
    pub mode: BondMode,
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum BondMode {
    /// One carries everything, another takes over. Needs nothing of the switch.
    #[default]
    ActiveBackup,
    /// IEEE 802.3ad; the switch must be set up for it.
    Lacp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkMode {
    #[default]
    Dhcp,
    Static,
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockSettings {
    /// NTP servers: addresses or names, with an optional `:port`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<String>,
}

/// A boot configuration that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBootConfig {
    #[error(
        "the boot configuration is not valid: {reason}; make a new one with 'croft farm new' or correct the line"
    )]
    Syntax { reason: String },
    #[error("the boot configuration names no replica: add a [[grid.replica]] with address and key")]
    NoReplica,
    #[error("the farm's permission to join is damaged ({reason}): copy it again from 'croft farm new'")]
    Join { reason: String },
    #[error("link '{name}' is static but has no address: add `addresses`")]
    NoAddress { name: String },
    #[error(transparent)]
    Hex(#[from] ParseHexError),
}

impl BootConfig {
    /// Reads a boot configuration.
    ///
    /// # Errors
    /// [`InvalidBootConfig`] names the line or the field.
    pub fn parse(text: &str) -> Result<Self, InvalidBootConfig> {
        // Never the line itself: it may be the permission to join, and the reason goes to the kernel's log.
        let config: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            InvalidBootConfig::Syntax { reason: format!("line {line}: {}", error.message()) }
        })?;
        if config.grid.replicas.is_empty() {
            return Err(InvalidBootConfig::NoReplica);
        }
        config.farm.permission()?;
        for link in &config.links {
            if link.mode == LinkMode::Static && link.addresses.is_empty() {
                return Err(InvalidBootConfig::NoAddress { name: link.name.clone() });
            }
        }
        Ok(config)
    }

    /// The file's text.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every field has a TOML form")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_faulty_line_is_named_by_number_and_never_shown() {
        let text = "[grid]\nname = \"demo\"\n\n[farm]\njoin = \"5ec2e7\"5ec2e7\n";
        let error = BootConfig::parse(text).unwrap_err().to_string();
        assert!(error.contains("line 5: "), "{error}");
        assert!(!error.contains("5ec2e7"), "the permission to join is a secret: {error}");
        assert!(error.ends_with("make a new one with 'croft farm new' or correct the line"), "{error}");
    }
}
