//! Names that follow from ids: links, taps, MAC addresses. The same everywhere and at every boot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::mac::MacAddr;

/// Root end of a deployment's link. The firewall knows workloads by it, so no other link may begin with it.
pub(crate) const LINK_PREFIX: &str = "cw";
/// Guests' taps, inside the namespace.
pub(crate) const TAP_PREFIX: &str = "ct";
/// Far end of the link, inside the namespace.
pub(crate) const PEER: &str = "up0";
pub(crate) const BRIDGE: &str = "br0";
/// 48 bits: prefix and digits stay within the kernel's 15 characters.
const NAME_DIGITS: usize = 12;
/// Before a deployment's full id in the alias of its link, so that a name collision is noticed.
pub(crate) const ALIAS_PREFIX: &str = "croft:";

/// Which contract a network belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeploymentId([u8; 32]);

#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a deployment id of 64 hexadecimal digits")]
pub struct DeploymentIdError(String);

impl DeploymentId {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// All 64 digits.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Name of the link in the root namespace.
    pub fn link_name(&self) -> String {
        format!("{LINK_PREFIX}{self}")
    }

    pub(crate) fn alias(&self) -> String {
        format!("{ALIAS_PREFIX}{}", self.to_hex())
    }

    pub(crate) fn from_alias(alias: &str) -> Option<Self> {
        alias.strip_prefix(ALIAS_PREFIX)?.parse().ok()
    }

    /// MAC address of the root end, the guests' gateway.
    pub(crate) fn gateway_mac(&self) -> MacAddr {
        mac(&self.digest("gateway", ""))
    }

    pub(crate) fn tap_name(&self, machine: &str) -> String {
        format!("{TAP_PREFIX}{}", &hex::encode(self.digest("tap", machine))[..NAME_DIGITS])
    }

    pub(crate) fn machine_mac(&self, machine: &str) -> MacAddr {
        mac(&self.digest("mac", machine))
    }

    /// Where the search for a free subnet begins.
    pub(crate) fn pool_seed(&self) -> u64 {
        let digest = self.digest("subnet", "");
        u64::from_be_bytes(digest.first_chunk().copied().unwrap_or_default())
    }

    fn digest(&self, purpose: &str, machine: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"croft network 1\0");
        hash.update(purpose.as_bytes());
        hash.update([0]);
        hash.update(self.0);
        hash.update(machine.as_bytes());
        hash.finalize().into()
    }
}

/// Locally administered, one machine.
fn mac(digest: &[u8; 32]) -> MacAddr {
    let mut octets = [0u8; 6];
    octets.copy_from_slice(&digest[..6]);
    octets[0] = (octets[0] & 0xfc) | 0x02;
    MacAddr(octets)
}

/// Short form: the digits that the link's name carries.
impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..NAME_DIGITS / 2]))
    }
}

impl fmt::Debug for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DeploymentId {
    type Err = DeploymentIdError;

    fn from_str(text: &str) -> Result<Self, DeploymentIdError> {
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| DeploymentIdError(text.chars().take(80).collect()))?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for DeploymentId {
    type Error = DeploymentIdError;

    fn try_from(text: String) -> Result<Self, DeploymentIdError> {
        text.parse()
    }
}

impl From<DeploymentId> for String {
    fn from(id: DeploymentId) -> Self {
        id.to_hex()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::{LINK_NAME_LEN_MAX, is_link_name};

    #[test]
    fn every_name_fits_the_kernel() {
        let id = DeploymentId::new([0xf7; 32]);
        for name in [id.link_name(), id.tap_name("a machine with a rather long name")] {
            assert!(is_link_name(&name) && name.len() <= LINK_NAME_LEN_MAX, "{name}");
        }
        assert_eq!(id.link_name(), "cwf7f7f7f7f7f7");
        assert_eq!(id.to_string(), "f7f7f7f7f7f7");
    }

    #[test]
    fn names_are_fixed_for_ever() {
        // A change here changes the MAC address of every running guest: don't.
        let id = DeploymentId::new([7; 32]);
        assert_eq!(id.tap_name("web"), "ct25f69d57a4c0");
        assert_eq!(id.machine_mac("web").to_string(), "2a:11:f1:8d:e5:96");
        assert_eq!(id.gateway_mac().to_string(), "de:19:ed:04:b5:66");
    }

    #[test]
    fn machines_and_deployments_never_share_a_mac() {
        let mut seen = BTreeSet::new();
        for deployment in 0..20u8 {
            let id = DeploymentId::new([deployment; 32]);
            assert!(seen.insert(id.gateway_mac()));
            for machine in 0..20 {
                let mac = id.machine_mac(&format!("m{machine}"));
                assert!(!mac.is_unusable() && mac.0[0] & 2 == 2, "{mac}");
                assert!(seen.insert(mac));
            }
        }
    }

    #[test]
    fn an_id_is_read_back_from_hex_and_alias() {
        let id = DeploymentId::new([0xab; 32]);
        assert_eq!(id.to_hex().parse(), Ok(id));
        assert_eq!(DeploymentId::from_alias(&id.alias()), Some(id));
        assert_eq!(DeploymentId::from_alias("eth0"), None);
        assert_eq!(
            "abc".parse::<DeploymentId>().unwrap_err().to_string(),
            "\"abc\" is not a deployment id of 64 hexadecimal digits"
        );
        assert_eq!(serde_json::from_str::<DeploymentId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
    }
}
