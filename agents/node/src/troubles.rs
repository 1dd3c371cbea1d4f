//! What is wrong with this machine: one list, of which screen, kernel log and ledger say the same.
//!
//! ```text
//!   inventory, disks, links, TPM, microVMs, clock, releases ──set──▶ Troubles ──▶ registration, and again when it changed
//!        └── the same texts ──▶ stages and screen                                         (`voice`, at the pace of Telling)
//! ```
//! It must never say on the ledger, which everybody reads for ever, what is the owner's alone: labels of filesystems,
//! serial numbers, addresses of his network. And it must never make a node that flaps fill the ledger.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use croft_hardware::{Health, Inventory};
use croft_network::NetworkStatus;
use croft_network::status::{LinkState, LinkStatus};
use croft_protocol::units::show_bytes;
use croft_protocol::{NodeTrouble, TroubleKind};
use croft_screen::model::Tone;
use croft_storage::data::{Data, Medium};
use croft_storage::examine::{Examined, Verdict};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::capacity;

/// What changes within this time is told once: a link that comes up passes several states.
const SETTLE: Duration = Duration::from_secs(20);
/// Between two times that troubles are told: the first pause, and what it doubles to while they go on changing.
const PAUSE_FIRST: Duration = Duration::from_secs(120);
const PAUSE_MOST: Duration = Duration::from_secs(3600);
/// Without news for so long, the pause is the first one again.
const QUIET: Duration = Duration::from_secs(2 * 3600);
/// After a telling that was not taken, as for addresses: the moment that links change is the one in which it fails.
const RETRY_FIRST: Duration = Duration::from_secs(20);
const RETRY_MOST: Duration = Duration::from_secs(1200);

/// What the farmer is asked to do about a disk that somebody else wrote.
pub const WIPE: &str = "to give it to the node wipe it with F1";

/// The list, shared by all parts of the agent. Each kind has one part that sets it.
#[derive(Clone)]
pub struct Troubles(Arc<watch::Sender<Vec<NodeTrouble>>>);

impl Default for Troubles {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }
}

impl Troubles {
    /// Replaces what was said of this kind.
    pub fn set(&self, kind: TroubleKind, found: Vec<NodeTrouble>) {
        debug_assert!(found.iter().all(|trouble| trouble.kind == kind), "{kind} has one owner");
        self.0.send_if_modified(|all| {
            let mut now: Vec<_> = all.iter().filter(|trouble| trouble.kind != kind).cloned().collect();
            now.extend(found);
            now.sort_unstable();
            let changed = *all != now;
            *all = now;
            changed
        });
    }

    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Vec<NodeTrouble>> {
        self.0.subscribe()
    }
}

/// Too little memory to sell anything.
#[must_use]
pub fn memory(inventory: &Inventory) -> Option<NodeTrouble> {
    let total_bytes = inventory.memory.total_bytes;
    (total_bytes < capacity::LEAST_MEMORY_BYTES).then(|| {
        let (has, least) = (show_bytes(total_bytes), show_bytes(capacity::LEAST_MEMORY_BYTES));
        let reason = format!("only {has} of memory, and nothing can be sold below {least}");
        NodeTrouble::new(TroubleKind::Memory, "", &reason, "add memory")
    })
}

/// No disk that keeps anything.
#[must_use]
pub fn no_data_disk() -> NodeTrouble {
    let reason = "no usable data disk: identity and volumes are lost at the next boot";
    NodeTrouble::new(TroubleKind::Disk, "", reason, "add an empty disk")
}

/// Disks that are of no use though they could be, and those that say that they fail. `medium` is the name of the disk that
/// the machine started from.
#[must_use]
pub fn disks(
    data: &Data,
    examined: &[Examined],
    health: &BTreeMap<String, Health>,
    medium: Option<&str>,
) -> Vec<NodeTrouble> {
    let has_disk = matches!(data.medium, Medium::Disk { .. });
    let mut found: Vec<_> = (!has_disk).then(no_data_disk).into_iter().collect();
    for one in examined {
        let name = one.disk.name.as_str();
        if medium != Some(name) {
            found.extend(verdict(name, &one.verdict, has_disk));
        }
        found.extend(health.get(name).and_then(|health| unhealthy(name, health)));
    }
    found
}

/// What stands in the way of using a disk; where the node has one already, only what is broken counts.
fn verdict(name: &str, verdict: &Verdict, has_disk: bool) -> Option<NodeTrouble> {
    let broken = matches!(verdict, Verdict::Broken { .. } | Verdict::Unreadable { .. });
    if has_disk && !broken {
        return None;
    }
    let (reason, remedy) = match verdict {
        // Whose it was is told to whoever stands before the machine, not to everybody.
        Verdict::Foreign { what } => {
            let what = what.split_once(" labelled ").map_or(what.as_str(), |(what, _)| what);
            (Verdict::Foreign { what: what.to_owned() }.to_string(), WIPE.to_owned())
        }
        other => (other.to_string(), other.remedy(name)?),
    };
    Some(NodeTrouble::new(TroubleKind::Disk, name, &reason, &remedy))
}

/// `reason: remedy` is what [`Health`] says where it is bad.
fn unhealthy(name: &str, health: &Health) -> Option<NodeTrouble> {
    let (reason, remedy) = match health {
        Health::Failing { reasons } => (format!("failing: {}", reasons.join(", ")), "replace the disk"),
        Health::Worn { reasons } => {
            (format!("health: {}", reasons.join(", ")), "have another disk ready to replace it")
        }
        Health::Good | Health::Unknown { .. } => return None,
    };
    Some(NodeTrouble::new(TroubleKind::Disk, name, &reason, remedy))
}

/// What is wrong with one link, and how much.
#[must_use]
pub fn link(link: &LinkStatus, status: &NetworkStatus) -> Option<(Tone, NodeTrouble)> {
    const SERVER: &str = "check the DHCP server, or set an address with F1";
    let trouble =
        |reason: &str, remedy: &str| NodeTrouble::new(TroubleKind::Network, &link.name, reason, remedy);
    match (link.state, &link.last_error) {
        (LinkState::Off, _) => None,
        // Where another card carries everything, an empty socket is no fault.
        _ if !link.carrier => status
            .uplink
            .is_none()
            .then(|| (Tone::Bad, trouble(&format!("no carrier on {}", link.name), "check the cable"))),
        (LinkState::Failed | LinkState::WaitingForDhcp, Some(cause)) => Some((
            Tone::Bad,
            trouble(cause, "check the cable, the switch and the DHCP server, or set an address with F1"),
        )),
        (LinkState::Failed, None) => {
            Some((Tone::Bad, trouble("it failed, and is tried again", "check the cable and the switch")))
        }
        (LinkState::WaitingForDhcp | LinkState::NoCarrier, _) => {
            Some((Tone::Warning, trouble("asks for an address", SERVER)))
        }
        (LinkState::Ready, _) if link.gateways.is_empty() && status.uplink.is_none() => {
            Some((Tone::Warning, trouble("it has no gateway", "name one in the settings, or with F1")))
        }
        (LinkState::Ready, _) => None,
    }
}

/// Links that could not be made, and those that this machine does not have: each with its name.
#[must_use]
pub fn absent_links(status: &NetworkStatus) -> Vec<NodeTrouble> {
    let failed = status.failed.iter().map(|failed| {
        let remedy = "correct its settings on the boot medium, or set others with F1";
        NodeTrouble::new(TroubleKind::Network, &failed.link, &failed.cause, remedy)
    });
    let missing = status.missing.iter().map(|name| {
        let reason = "the settings name it, and this machine does not have it";
        let remedy = "plug the card in, or correct the settings on the boot medium";
        NodeTrouble::new(TroubleKind::Network, name, reason, remedy)
    });
    failed.chain(missing).collect()
}

/// All of the network, for the ledger.
#[must_use]
pub fn network(status: &NetworkStatus) -> Vec<NodeTrouble> {
    let of_links = status.links.iter().filter_map(|one| Some(link(one, status)?.1));
    let all = of_links.chain(absent_links(status));
    all.map(|trouble| NodeTrouble { reason: without_addresses(&trouble.reason), ..trouble }).collect()
}

/// A cause without addresses of the owner's network: his DHCP server is nobody's business.
fn without_addresses(text: &str) -> String {
    let is_address = |word: &str| {
        let word = word.trim_matches(|c: char| !c.is_ascii_hexdigit() && c != ':');
        let (address, _) = word.split_once('/').unwrap_or((word, ""));
        let address = address.trim_end_matches(':');
        address.parse::<IpAddr>().is_ok() || address.parse::<std::net::SocketAddr>().is_ok()
    };
    let words = text.split(' ').map(|word| if is_address(word) { "(an address)" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// A machine with a TPM that can't keep the node's key.
#[must_use]
pub fn tpm(why: &str) -> NodeTrouble {
    let remedy = "look at the TPM in the firmware setup, and update the firmware";
    NodeTrouble::new(TroubleKind::Trust, "", why, remedy)
}

/// A node whose TPM has its key, and gives no quote.
#[must_use]
pub fn no_quote(why: &str) -> NodeTrouble {
    let reason = format!("the node registers without a quote: {why}");
    NodeTrouble::new(TroubleKind::Trust, "", &reason, "update the firmware, and look at its TPM settings")
}

#[must_use]
pub fn no_releases(why: &str) -> NodeTrouble {
    let remedy = "restart the node; if it stays so, boot it from a newer medium, and report this";
    NodeTrouble::new(TroubleKind::Upgrade, "", &format!("this node takes no releases: {why}"), remedy)
}

#[must_use]
pub fn no_time_server() -> NodeTrouble {
    let reason = "no time server answers, so the ledger's time alone corrects the clock";
    NodeTrouble::new(
        TroubleKind::Clock,
        "",
        reason,
        "name time servers that it reaches in its settings or by DHCP",
    )
}

#[must_use]
pub fn listens(what: &str) -> NodeTrouble {
    let reason = format!("it waits for connections: {what}");
    NodeTrouble::new(TroubleKind::Other, "", &reason, "a node must not: report this")
}

/// When what changed is told: where the node is reached at once, troubles when they have settled, and ever more seldom
/// while they go on changing.
///
/// ```text
///   quiet ──changed──▶ waits ──at──▶ told ──▶ quiet
///                        ▲            │ not taken: again after a pause that doubles
///                        └────────────┘
/// ```
#[derive(Debug, Clone)]
pub struct Telling {
    at: Option<Instant>,
    retry: Duration,
    /// When anything was told last, and how long troubles wait since.
    told: Option<Instant>,
    pause: Duration,
}

impl Default for Telling {
    fn default() -> Self {
        Self { at: None, retry: RETRY_FIRST, told: None, pause: PAUSE_FIRST }
    }
}

impl Telling {
    /// When to tell, if there is anything.
    #[must_use]
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// The node is reached elsewhere.
    pub fn moved(&mut self, now: Instant) {
        self.at = Some(now);
    }

    /// Its troubles are others.
    pub fn troubled(&mut self, now: Instant) {
        let settled = now + SETTLE;
        let at = self.told.map_or(settled, |told| settled.max(told + self.pause));
        // What is told anyway, or tried again, tells these too.
        self.at.get_or_insert(at);
    }

    /// Everything is told. `anew`: whether that took another record.
    pub fn told(&mut self, now: Instant, anew: bool) {
        (self.at, self.retry) = (None, RETRY_FIRST);
        if anew {
            let quiet = self.told.is_none_or(|told| now >= told + QUIET);
            self.pause = if quiet { PAUSE_FIRST } else { (2 * self.pause).min(PAUSE_MOST) };
            self.told = Some(now);
        }
    }

    /// It was not taken.
    pub fn failed(&mut self, now: Instant) {
        self.at = Some(now + self.retry);
        self.retry = (2 * self.retry).min(RETRY_MOST);
    }
}

#[cfg(test)]
mod tests;
