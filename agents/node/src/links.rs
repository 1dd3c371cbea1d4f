//! The node's own links, and its clock: started first, never waited for without a limit.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use croft_network::clock::{self, LedgerBounds, UnixTime};
use croft_network::{BondConfig, BondMode, LinkConfig, LinkMode, MacAddr, NetworkConfig, sntp};
use croft_protocol::boot::{self, BootConfig};
use croft_protocol::{TroubleKind, limits};

use crate::time::Time;
use crate::troubles::{self, Troubles};

/// One round of questions to time servers; a boot goes on meanwhile.
const NTP_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two rounds once the clock is good.
const NTP_EVERY: Duration = Duration::from_secs(3600);
/// Between two rounds while nobody answers.
const NTP_RETRY: Duration = Duration::from_secs(64);
/// After so many rounds without an answer the farmer hears of it.
const NTP_PATIENCE: u32 = 8;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("link '{name}' has '{text}' where {what} is needed: correct boot.toml")]
    Text { name: String, text: String, what: &'static str },
}

/// What `os/network` takes, from what the farmer wrote.
///
/// # Errors
/// [`LinkError`] names link and text.
pub fn config(boot: &BootConfig) -> Result<NetworkConfig, LinkError> {
    let links = boot.links.iter().map(link).collect::<Result<_, _>>()?;
    Ok(NetworkConfig { links })
}

/// One link's settings.
///
/// # Errors
/// [`LinkError`] names link and text.
pub fn link(settings: &boot::LinkSettings) -> Result<LinkConfig, LinkError> {
    let mac: Option<MacAddr> = if settings.name.contains(':') {
        let parsed = settings.name.parse().map_err(|_| LinkError::Text {
            name: settings.name.clone(),
            text: settings.name.clone(),
            what: "a MAC address such as 52:54:00:12:34:56",
        })?;
        Some(parsed)
    } else {
        None
    };
    let mut config = LinkConfig {
        name: mac.is_none().then(|| settings.name.clone()),
        mac,
        mode: match settings.mode {
            boot::LinkMode::Dhcp => LinkMode::Dhcp,
            boot::LinkMode::Static => LinkMode::Static,
            boot::LinkMode::Off => LinkMode::Off,
        },
        dns: settings.dns.clone(),
        vlan: settings.vlan,
        bond: settings.bond.as_ref().map(bond),
        ..LinkConfig::default()
    };
    for text in &settings.addresses {
        let address = text.parse().map_err(|_| LinkError::Text {
            name: settings.name.clone(),
            text: text.clone(),
            what: "an address with its prefix length such as 192.0.2.10/24",
        })?;
        config.addresses.push(address);
    }
    match settings.gateway {
        Some(IpAddr::V4(gateway)) => config.gateway = Some(gateway),
        Some(IpAddr::V6(gateway)) => config.gateway6 = Some(gateway),
        None => {}
    }
    Ok(config)
}

fn bond(settings: &boot::BondSettings) -> BondConfig {
    let mode = match settings.mode {
        boot::BondMode::ActiveBackup => BondMode::ActiveBackup,
        boot::BondMode::Lacp => BondMode::Lacp,
    };
    BondConfig { members: settings.members.clone(), mode }
}

/// Keeps the clock right for as long as the node runs: by time servers, within what final headers allow.
pub async fn keep_time(
    time: Arc<Time>,
    servers: Vec<String>,
    status: tokio::sync::watch::Receiver<croft_network::NetworkStatus>,
    troubles: Troubles,
) {
    let mut unanswered = 0_u32;
    loop {
        let (names, resolvers) = {
            let status = status.borrow();
            let mut names = servers.clone();
            names.extend(status.ntp().iter().map(ToString::to_string));
            (names, status.dns())
        };
        let asks = !names.is_empty();
        let pause = match sntp::query_names(&names, &resolvers, NTP_TIMEOUT).await {
            Ok(measured) => {
                let decision = clock::choose_time(clock::now(), &measured.offsets(), bounds(&time));
                tracing::info!("clock: {decision}");
                apply(&decision);
                if decision.used > 0 {
                    time.trust();
                    NTP_EVERY
                } else {
                    NTP_RETRY
                }
            }
            Err(error) => {
                tracing::debug!(%error, "no time server");
                NTP_RETRY
            }
        };
        unanswered = if asks && pause == NTP_RETRY { unanswered.saturating_add(1) } else { 0 };
        // The first rounds fall into the boot, where nothing answers yet.
        let trouble = (unanswered >= NTP_PATIENCE).then(troubles::no_time_server);
        troubles.set(TroubleKind::Clock, trouble.into_iter().collect());
        tokio::time::sleep(pause).await;
    }
}

/// Moves a clock that a fresh final header shows to be wrong; a header that replicas hold to be the tip now is the
/// best witness where NTP is blocked.
pub fn agree_with_tip(time: &Time) {
    let decision = clock::choose_time(clock::now(), &[], bounds(time));
    if decision.step.is_some() {
        tracing::info!("clock: {decision}");
        apply(&decision);
    }
    time.trust();
}

fn bounds(time: &Time) -> LedgerBounds {
    match time.header_ms() {
        0 => LedgerBounds::unknown(),
        header => LedgerBounds::tip(
            UnixTime::from_millis(header as i64),
            Duration::from_millis(limits::TIP_MAX_AGE_MS),
        ),
    }
}

fn apply(decision: &clock::Decision) {
    if let Some(step) = decision.step
        && let Err(error) = clock::step(step)
    {
        tracing::warn!(error = %crate::ledger::chain_of(&error), "the clock stays wrong");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_protocol::boot::{LinkMode as Mode, LinkSettings};

    fn settings(name: &str, addresses: &[&str]) -> LinkSettings {
        LinkSettings {
            name: name.into(),
            mode: Mode::Static,
            addresses: addresses.iter().map(ToString::to_string).collect(),
            gateway: Some("192.0.2.1".parse().unwrap()),
            dns: vec![],
            vlan: None,
            bond: None,
        }
    }

    #[test]
    fn a_vlan_on_a_bond_is_taken_as_written_and_checked() {
        let bond = Some(boot::BondSettings { members: vec!["eth1".into()], mode: boot::BondMode::Lacp });
        let bonded = boot::LinkSettings { bond, vlan: Some(7), ..settings("bond0", &["192.0.2.10/24"]) };
        let config = link(&bonded).unwrap();
        assert_eq!(config.vlan, Some(7));
        let made = config.bond.clone().unwrap();
        assert_eq!((made.mode, made.members), (BondMode::Lacp, vec!["eth1".to_owned()]));
        assert!(NetworkConfig { links: vec![config] }.validate().is_ok());
        let far = boot::LinkSettings { vlan: Some(4095), ..settings("eth0", &["192.0.2.10/24"]) };
        let config = NetworkConfig { links: vec![link(&far).unwrap()] };
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "link eth0 has vlan = 4095: VLANs are numbered from 1 to 4094"
        );
    }

    #[test]
    fn a_static_link_is_taken_as_written() {
        let config = link(&settings("eth0", &["192.0.2.10/24"])).unwrap();
        assert_eq!(config.name.as_deref(), Some("eth0"));
        assert_eq!(config.addresses[0].to_string(), "192.0.2.10/24");
        assert!(NetworkConfig { links: vec![config] }.validate().is_ok());
        assert!(link(&settings("52:54:00:12:34:56", &[])).unwrap().mac.is_some());
    }

    #[test]
    fn a_wrong_address_is_named_with_its_link() {
        let error = link(&settings("eth0", &["192.0.2.10"])).unwrap_err().to_string();
        assert_eq!(
            error,
            "link 'eth0' has '192.0.2.10' where an address with its prefix length such as 192.0.2.10/24 is needed: \
             correct boot.toml"
        );
        assert!(link(&settings("52:54:zz", &[])).unwrap_err().to_string().contains("a MAC address"));
    }
}
