//! What this node shows on its monitor: a picture that each part of the agent keeps true, sent to the process that draws
//! it (`croft_init::screen`), and the orders that its menu sends back.
//!
//! ```text
//!   stages, links, ledger, workloads ──change──> Board ──tell──> /run/croft/screen
//!                                   keeper of the order <──Asked──┘
//! ```
//! It must never wait for the screen: a node without one runs all the same. An order comes from whoever stands before
//! the machine; it is checked here as if it came from a stranger.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use croft_hardware::{Disk as Hardware, Health};
use croft_network::NetworkStatus;
use croft_network::status::{LinkState, LinkStatus};
use croft_protocol::record::WorkloadState;
use croft_protocol::units::show_bytes;
use croft_screen::model::{Disk, Line, Link, Order, Status, Tone, Workload};
use croft_screen::wire::{Inbox, SOCKET, ToAgent, ToScreen, encode};
use croft_storage::examine::{Examined, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::troubles;

/// Between two pictures: a block a second is no reason to send more.
const EVERY: Duration = Duration::from_secs(1);
/// Before the screen is looked for again.
const RETRY: Duration = Duration::from_secs(5);
/// A screen that does not read for so long is left.
const SEND: Duration = Duration::from_secs(10);
/// Wiping waits for a disk; nothing else takes long.
const ANSWER: Duration = Duration::from_secs(60);

/// The picture, shared by all parts of the agent.
#[derive(Clone)]
pub struct Board(Arc<watch::Sender<Status>>);

/// An order, and where its answer goes.
pub struct Asked {
    pub order: Order,
    pub answer: oneshot::Sender<String>,
}

impl Board {
    /// A board, and the orders that come from the screen.
    #[must_use]
    pub fn start(first: Status) -> (Self, mpsc::Receiver<Asked>) {
        let (sender, seen) = watch::channel(first);
        let (asked, orders) = mpsc::channel(1);
        tokio::spawn(tell(seen, asked));
        (Self(Arc::new(sender)), orders)
    }

    pub fn change(&self, change: impl FnOnce(&mut Status)) {
        self.0.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }
}

/// Keeps the screen told, for as long as the agent runs.
async fn tell(mut seen: watch::Receiver<Status>, asked: mpsc::Sender<Asked>) {
    loop {
        if let Ok(stream) = UnixStream::connect(SOCKET).await
            && let Err(reason) = converse(stream, &mut seen, &asked).await
        {
            tracing::debug!(reason, "the screen is gone");
        }
        if asked.is_closed() {
            return;
        }
        sleep(RETRY).await;
    }
}

async fn converse(
    stream: UnixStream,
    seen: &mut watch::Receiver<Status>,
    asked: &mpsc::Sender<Asked>,
) -> Result<(), String> {
    let (mut reader, mut writer) = stream.into_split();
    let mut inbox = Inbox::default();
    let mut buffer = vec![0; 4096];
    seen.mark_changed();
    loop {
        tokio::select! {
            changed = seen.changed() => {
                changed.map_err(|_| "the agent ends")?;
                let status = seen.borrow_and_update().clone();
                send(&mut writer, &ToScreen::Status(Box::new(status.bounded()))).await?;
                sleep(EVERY).await;
            }
            read = reader.read(&mut buffer) => {
                let length = read.map_err(|error| error.to_string())?;
                if length == 0 {
                    return Err("it closed the connection".into());
                }
                inbox.push(&buffer[..length]);
                while let Some(message) = inbox.next_message().map_err(|error| error.to_string())? {
                    let ToAgent::Order(order) = ToAgent::decode(&message).map_err(|error| error.to_string())?;
                    let text = carry_out(order, asked).await;
                    send(&mut writer, &ToScreen::Answer(text)).await?;
                }
            }
        }
    }
}

async fn carry_out(order: Order, asked: &mpsc::Sender<Asked>) -> String {
    let (answer, answered) = oneshot::channel();
    if asked.try_send(Asked { order, answer }).is_err() {
        return "the node is busy with an earlier order, or still starting: try again".into();
    }
    match timeout(ANSWER, answered).await {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => "the node can't do that now: try again when its boot is done".into(),
        Err(_) => format!("no answer within {} s: look at the kernel log (Alt-F2)", ANSWER.as_secs()),
    }
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), message: &ToScreen) -> Result<(), String> {
    let bytes = encode(message).map_err(|error| error.to_string())?;
    match timeout(SEND, writer.write_all(&bytes)).await {
        Ok(written) => written.map_err(|error| error.to_string()),
        Err(_) => Err("it does not read".into()),
    }
}

/// Network cards as people look at them.
#[must_use]
pub fn links(status: &NetworkStatus) -> Vec<Link> {
    let mut links: Vec<Link> = status.links.iter().map(|link| shown(link, status)).collect();
    links.extend(troubles::absent_links(status).into_iter().map(|trouble| Link {
        state: Line::new(Tone::Bad, trouble.to_string()),
        name: trouble.subject,
        ..Link::default()
    }));
    links
}

fn shown(link: &LinkStatus, status: &NetworkStatus) -> Link {
    let is_uplink = status.uplink.as_ref() == Some(&link.name);
    let state = match troubles::link(link, status) {
        Some((tone, trouble)) => Line::new(tone, trouble.to_string()),
        None if link.state == LinkState::Off => Line::new(Tone::Plain, "off: its settings say so"),
        None if !link.carrier => {
            Line::new(Tone::Plain, format!("no carrier on {}: check the cable", link.name))
        }
        None if is_uplink => Line::new(Tone::Good, "ready"),
        None => Line::new(Tone::Plain, "ready"),
    };
    let mut addresses = link.addresses.clone();
    // Link-local addresses say nothing where there is another.
    addresses.sort_by_key(|address| address.source == croft_network::status::AddressSource::LinkLocal);
    let routable = link.address().is_some();
    let told = addresses
        .iter()
        .filter(|address| !routable || address.source != croft_network::status::AddressSource::LinkLocal);
    Link {
        name: link.name.clone(),
        mac: link.mac.to_string(),
        addresses: told.map(|address| address.address.to_string()).collect(),
        state,
    }
}

/// Disks with why each is used or not. `medium`: the name of the disk that the machine started from; `data`: of the one
/// that is in use.
#[must_use]
pub fn disks(
    examined: &[Examined],
    health: &BTreeMap<String, Health>,
    medium: Option<&str>,
    data: Option<&str>,
) -> Vec<Disk> {
    let known = |one: &Examined| health.get(&one.disk.name).map(told).unwrap_or_default();
    examined.iter().map(|one| Disk { health: known(one), ..disk(one, medium, data) }).collect()
}

fn told(health: &Health) -> Line {
    let tone = match health {
        Health::Good => Tone::Good,
        Health::Worn { .. } => Tone::Warning,
        Health::Failing { .. } => Tone::Bad,
        Health::Unknown { .. } => Tone::Plain,
    };
    Line::new(tone, health.to_string())
}

fn disk(one: &Examined, medium: Option<&str>, data: Option<&str>) -> Disk {
    let Hardware { name, size_bytes, model, serial, .. } = &one.disk;
    let is_medium = medium == Some(name.as_str());
    let is_data = data == Some(name.as_str());
    let tone = match &one.verdict {
        Verdict::Data { .. } => Tone::Good,
        Verdict::Empty { .. } if is_data => Tone::Good,
        Verdict::Broken { .. } | Verdict::Unreadable { .. } => Tone::Bad,
        Verdict::Foreign { .. } if !is_medium => Tone::Warning,
        _ => Tone::Plain,
    };
    let verdict = match &one.verdict {
        _ if is_medium => "the machine started from it".to_owned(),
        // So it was found.
        Verdict::Empty { .. } if is_data => "data disk of this node, formatted in this boot".to_owned(),
        Verdict::Foreign { .. } => format!("{}; {}", one.verdict, troubles::WIPE),
        verdict => match verdict.remedy(name) {
            Some(remedy) => format!("{verdict}; {remedy}"),
            None => verdict.to_string(),
        },
    };
    Disk {
        name: name.clone(),
        size: show_bytes(*size_bytes),
        model: model.clone().unwrap_or_default(),
        serial: serial.clone().unwrap_or_default(),
        verdict: Line::new(tone, verdict),
        health: Line::default(),
        keep: crate::wipe::keep(one, medium, data).unwrap_or_default(),
    }
}

/// The newest final header.
#[must_use]
pub fn ledger(grid: &str, height: u64) -> Line {
    Line::new(Tone::Good, format!("grid {grid}, height {height}"))
}

/// The ledger as it was seen last, and why it is not seen now.
#[must_use]
pub fn ledger_out_of_reach(grid: &str, height: Option<u64>, reason: &str) -> Line {
    let last =
        height.map_or_else(|| "never seen".to_owned(), |height| format!("last seen at height {height}"));
    Line::new(Tone::Warning, format!("grid {grid} is out of reach ({last}): {reason}"))
}

#[must_use]
pub fn superseded() -> Line {
    Line::new(
        Tone::Bad,
        "another machine runs with this node's key, so this one runs nothing: switch one of them off, and give it an empty disk",
    )
}

#[must_use]
pub fn registered(session: u64) -> Line {
    Line::new(Tone::Good, format!("registered, session {session}"))
}

#[must_use]
pub fn not_registered(reason: &str) -> Line {
    Line::new(Tone::Warning, format!("not registered yet: {reason}"))
}

#[must_use]
pub fn workload(name: &str, state: WorkloadState, detail: &str) -> Workload {
    let (tone, word) = match state {
        WorkloadState::Preparing => (Tone::Plain, "preparing"),
        WorkloadState::Running => (Tone::Good, "running"),
        WorkloadState::Failing => (Tone::Bad, "failing"),
        WorkloadState::Refused => (Tone::Bad, "refused"),
        WorkloadState::Finished => (Tone::Plain, "finished"),
    };
    let told = if detail.is_empty() || state == WorkloadState::Running {
        String::new()
    } else {
        format!(": {detail}")
    };
    Workload { name: name.to_owned(), state: Line::new(tone, format!("{word}{told}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_hardware::Transport;
    use croft_network::{LinkMode, MacAddr};

    fn link(name: &str, state: LinkState, carrier: bool) -> LinkStatus {
        LinkStatus {
            name: name.into(),
            index: 2,
            mac: MacAddr([2; 6]),
            carrier,
            mtu_bytes: 1500,
            mode: LinkMode::Dhcp,
            state,
            addresses: vec![],
            gateways: vec![],
            dns: vec![],
            ntp: vec![],
            dhcp_server: None,
            last_error: None,
        }
    }

    #[test]
    fn a_card_without_a_cable_is_bad_news_only_where_no_other_carries_the_node() {
        let mut status = NetworkStatus {
            links: vec![link("eth0", LinkState::NoCarrier, false), link("eth1", LinkState::Ready, true)],
            ..NetworkStatus::default()
        };
        let first = &links(&status)[0];
        assert_eq!(first.state, Line::new(Tone::Bad, "no carrier on eth0: check the cable"));
        assert!(links(&status)[1].state.text.contains("no gateway"));
        status.uplink = Some("eth1".into());
        status.missing = vec!["eth9".into()];
        let shown = links(&status);
        assert_eq!(shown[0].state.tone, Tone::Plain);
        assert_eq!(shown[1].state, Line::new(Tone::Good, "ready"));
        assert!(shown[2].name == "eth9" && shown[2].state.tone == Tone::Bad);
    }

    fn examined(name: &str, verdict: Verdict, transport: Transport) -> Examined {
        let disk = Hardware {
            name: name.into(),
            size_bytes: 20 << 30,
            rotational: false,
            model: None,
            serial: Some("S-1".into()),
            transport,
            removable: false,
            read_only: false,
            logical_block_bytes: 512,
            partitions: vec![],
            holders: vec![],
        };
        Examined { disk, verdict }
    }

    #[test]
    fn a_disk_that_was_found_empty_and_is_used_now_says_so() {
        let empty = || Verdict::Empty { interrupted: false };
        let all = [examined("sda", empty(), Transport::Sata), examined("sdb", empty(), Transport::Sata)];
        let shown = disks(&all, &BTreeMap::new(), None, Some("sda"));
        assert_eq!(shown[0].verdict, Line::new(Tone::Good, "data disk of this node, formatted in this boot"));
        assert_eq!(shown[1].verdict, Line::new(Tone::Plain, "empty"));
    }

    #[test]
    fn a_foreign_disk_is_offered_to_be_wiped_and_the_medium_is_not() {
        let foreign = || Verdict::Foreign { what: "an ntfs filesystem".into() };
        let all = [examined("sda", foreign(), Transport::Sata), examined("sdb", foreign(), Transport::Sata)];
        let reasons = vec!["it has become read-only".to_owned()];
        let health = BTreeMap::from([("sda".to_owned(), Health::Failing { reasons })]);
        let shown = disks(&all, &health, Some("sdb"), None);
        assert_eq!(shown[0].health.tone, Tone::Bad);
        assert_eq!(shown[1].health.text, "");
        assert_eq!(
            shown[0].verdict.text,
            "not touched: it holds an ntfs filesystem; to give it to the node wipe it with F1"
        );
        assert_eq!(shown[0].keep, "");
        assert_eq!(shown[1].verdict, Line::new(Tone::Plain, "the machine started from it"));
        assert!(shown[1].keep.contains("started from it"));
    }

    #[test]
    fn a_failing_workload_says_why_and_a_running_one_is_just_that() {
        assert_eq!(
            workload("web", WorkloadState::Running, "all healthy").state,
            Line::new(Tone::Good, "running")
        );
        let failing = workload("web", WorkloadState::Failing, "no image");
        assert_eq!(failing.state, Line::new(Tone::Bad, "failing: no image"));
    }

    #[tokio::test]
    async fn the_screen_hears_of_changes_and_its_orders_are_answered() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (sender, mut seen) = watch::channel(Status { name: "n1".into(), ..Status::default() });
        let (asked, mut orders) = mpsc::channel(1);
        let talk = tokio::spawn(async move { converse(ours, &mut seen, &asked).await });
        let mut inbox = Inbox::default();
        let first = next(&mut theirs, &mut inbox).await;
        assert!(matches!(first, ToScreen::Status(status) if status.name == "n1"));
        let order = Order::Wipe { disk: "sda".into(), typed: "x".into() };
        theirs.write_all(&encode(&ToAgent::Order(order.clone())).unwrap()).await.unwrap();
        let heard = orders.recv().await.unwrap();
        assert_eq!(heard.order, order);
        heard.answer.send("no".into()).unwrap();
        assert_eq!(next(&mut theirs, &mut inbox).await, ToScreen::Answer("no".into()));
        drop(theirs);
        sender.send_replace(Status::default());
        assert!(talk.await.unwrap().is_err());
    }

    async fn next(stream: &mut UnixStream, inbox: &mut Inbox) -> ToScreen {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = inbox.next_message().unwrap() {
                return ToScreen::decode(&message).unwrap();
            }
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "the connection ended");
            inbox.push(&buffer[..length]);
        }
    }
}
