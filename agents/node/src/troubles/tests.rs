//! What a machine says of itself, and how often.

use croft_hardware::{Disk, Transport};
use croft_network::{LinkMode, MacAddr};
use croft_protocol::{limits, trouble};
use croft_storage::data::WhyMemory;

use super::*;

fn no_disk() -> Data {
    Data { path: "/data".into(), medium: Medium::Memory { limit_bytes: 1 << 30, why: WhyMemory::NoDisk } }
}

fn on_disk() -> Data {
    let medium = Medium::Disk {
        name: "sda".into(),
        uuid: [1; 16],
        rotational: false,
        project_quota: true,
        new: false,
        repaired: false,
    };
    Data { path: "/data".into(), medium }
}

fn examined(name: &str, verdict: Verdict) -> Examined {
    let disk = Disk {
        name: name.into(),
        size_bytes: 20 << 30,
        rotational: false,
        model: Some("Maker 3000".into()),
        serial: Some("S-SECRET".into()),
        transport: Transport::Sata,
        removable: false,
        read_only: false,
        logical_block_bytes: 512,
        partitions: vec![],
        holders: vec![],
    };
    Examined { disk, verdict }
}

fn link_of(name: &str, state: LinkState, last_error: Option<&str>) -> LinkStatus {
    LinkStatus {
        name: name.into(),
        index: 2,
        mac: MacAddr([2; 6]),
        carrier: true,
        mtu_bytes: 1500,
        mode: LinkMode::Dhcp,
        state,
        addresses: vec![],
        gateways: vec![],
        dns: vec![],
        ntp: vec![],
        dhcp_server: None,
        last_error: last_error.map(str::to_owned),
    }
}

fn told(troubles: &Troubles) -> Vec<NodeTrouble> {
    let told = trouble::bounded(troubles.subscribe().borrow().clone());
    assert_eq!(trouble::check(&told), Ok(()));
    told
}

fn texts(troubles: &[NodeTrouble]) -> Vec<String> {
    troubles.iter().map(|one| format!("{} {}: {one}", one.kind, one.subject)).collect()
}

#[tokio::test]
async fn a_node_without_virtualisation_and_without_a_disk_tells_both_with_what_to_do() {
    let troubles = Troubles::default();
    let machines = crate::machines::Machines::open(false).await;
    let none = machines.trouble().cloned();
    // Where tests run there is no monitor in the image's place.
    troubles.set(TroubleKind::Virtualisation, none.into_iter().collect());
    troubles.set(TroubleKind::Disk, disks(&no_disk(), &[], &BTreeMap::new(), None));
    let told = told(&troubles);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0].kind, TroubleKind::Virtualisation);
    assert!(told[0].reason.starts_with("no microVM can run here: "), "{told:?}");
    assert_eq!(
        texts(&told[1..]),
        ["disk : no usable data disk: identity and volumes are lost at the next boot: add an empty disk"]
    );
}

#[test]
fn disks_that_could_be_of_use_are_told_and_their_labels_and_serial_numbers_are_not() {
    let foreign = Verdict::Foreign { what: "an ntfs filesystem labelled \"Holidays\"".into() };
    let failing = Health::Failing { reasons: vec!["it has become read-only".into()] };
    let all = [
        examined("sda", foreign.clone()),
        examined("sdb", Verdict::Unreadable { error: "input/output error".into() }),
        examined("sdc", foreign),
        examined("sdd", Verdict::Removable),
    ];
    let health = BTreeMap::from([("sdb".to_owned(), failing), ("sdd".to_owned(), Health::Good)]);
    let found = trouble::bounded(disks(&no_disk(), &all, &health, Some("sdc")));
    assert_eq!(
        texts(&found),
        [
            "disk : no usable data disk: identity and volumes are lost at the next boot: add an empty disk",
            "disk sda: not touched: it holds an ntfs filesystem: to give it to the node wipe it with F1",
            "disk sdb: failing: it has become read-only: replace the disk",
            "disk sdb: not used: it can't be read: input/output error: check its cable and power, then replace it",
        ]
    );
    assert!(!format!("{found:?}").contains("SECRET"), "{found:?}");
    // Where the node has its disk, another that it could not use is no trouble; a broken one is.
    let found = disks(&on_disk(), &all, &BTreeMap::new(), Some("sdc"));
    assert_eq!(texts(&found).len(), 1);
    assert_eq!(found[0].subject, "sdb");
}

#[test]
fn the_ledger_hears_of_links_what_the_screen_says_without_the_owners_addresses() {
    let refused = "DHCP server 192.168.7.1 refuses us: \"10.0.0.5/24 is taken\"";
    let status = NetworkStatus {
        links: vec![
            link_of("eth0", LinkState::WaitingForDhcp, Some(refused)),
            link_of("eth1", LinkState::Off, None),
        ],
        missing: vec!["eth9".into()],
        ..NetworkStatus::default()
    };
    let found = network(&status);
    assert_eq!(
        texts(&found),
        [
            "network eth0: DHCP server (an address) refuses us: (an address) is taken\": check the cable, the switch and the \
             DHCP server, or set an address with F1",
            "network eth9: the settings name it, and this machine does not have it: plug the card in, or correct the \
             settings on the boot medium",
        ]
    );
    let shown = crate::screen::links(&status);
    assert_eq!(shown[0].state.text.replace(refused, ""), found[0].to_string().replace(&found[0].reason, ""));
    assert_eq!(shown[2].state.text, found[1].to_string());
}

#[test]
fn a_kind_is_replaced_as_a_whole_and_what_stays_the_same_is_no_news() {
    let troubles = Troubles::default();
    let mut seen = troubles.subscribe();
    troubles.set(TroubleKind::Upgrade, vec![no_releases("it is so")]);
    troubles.set(TroubleKind::Clock, vec![no_time_server()]);
    assert!(seen.has_changed().unwrap());
    assert_eq!(seen.borrow_and_update()[0].kind, TroubleKind::Clock);
    troubles.set(TroubleKind::Clock, vec![no_time_server()]);
    assert!(!seen.has_changed().unwrap());
    troubles.set(TroubleKind::Clock, vec![]);
    assert_eq!(told(&troubles).len(), 1);
}

/// The speaker of `voice`, in virtual time and with a ledger that keeps records.
struct Speaker {
    telling: Telling,
    now: Instant,
    /// What the ledger knows, and how many records that took.
    known: u64,
    records: u32,
}

impl Speaker {
    fn new() -> Self {
        Self { telling: Telling::default(), now: Instant::now(), known: 0, records: 0 }
    }

    /// Lets time pass, in which the node has the trouble `is`.
    fn pass(&mut self, time: Duration, is: u64) {
        let end = self.now + time;
        while let Some(at) = self.telling.at().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let anew = self.known != is;
            self.records += u32::from(anew);
            self.known = is;
            self.telling.told(self.now, anew);
        }
        self.now = end;
    }
}

#[test]
fn a_changed_trouble_is_told_once() {
    let mut speaker = Speaker::new();
    speaker.telling.troubled(speaker.now);
    speaker.pass(SETTLE / 2, 1);
    assert_eq!(speaker.records, 0, "it has not settled");
    speaker.pass(Duration::from_secs(3600), 1);
    assert_eq!((speaker.records, speaker.known), (1, 1));
    // What comes and goes before it is told needs no record.
    speaker.telling.troubled(speaker.now);
    speaker.telling.troubled(speaker.now);
    speaker.pass(Duration::from_secs(3600), 1);
    assert_eq!(speaker.records, 1);
}

#[test]
fn a_node_that_flaps_for_a_day_tells_so_some_thirty_times() {
    for period_s in [3, 61, 127, 600] {
        let mut speaker = Speaker::new();
        let period = Duration::from_secs(period_s);
        let (mut is, end) = (0, speaker.now + Duration::from_secs(86_400));
        while speaker.now < end {
            // Each time another one, so that no two are ever the same.
            is += 1;
            speaker.telling.troubled(speaker.now);
            speaker.pass(period, is);
        }
        assert!((20..=32).contains(&speaker.records), "{period_s}: {}", speaker.records);
        // And in the end the ledger knows what is so.
        speaker.pass(Duration::from_secs(2 * 3600), is);
        assert_eq!(speaker.known, is);
    }
}

#[test]
fn after_a_quiet_time_news_travels_fast_again_and_a_move_is_told_at_once() {
    let mut speaker = Speaker::new();
    for is in 1..20 {
        speaker.telling.troubled(speaker.now);
        speaker.pass(Duration::from_secs(60), is);
    }
    speaker.pass(QUIET + PAUSE_MOST, 20);
    let before = speaker.records;
    speaker.telling.troubled(speaker.now);
    speaker.pass(SETTLE, 21);
    assert_eq!(speaker.records, before + 1);
    speaker.telling.moved(speaker.now);
    assert_eq!(speaker.telling.at(), Some(speaker.now));
}

#[test]
fn what_is_not_taken_is_tried_again_ever_later() {
    let (mut telling, start) = (Telling::default(), Instant::now());
    let mut now = start;
    telling.troubled(now);
    let mut tries = 0;
    while now < start + Duration::from_secs(86_400) {
        now = telling.at().unwrap();
        telling.failed(now);
        // Others do not make it try sooner.
        telling.troubled(now);
        tries += 1;
    }
    assert!((70..90).contains(&tries), "{tries}");
}

#[test]
fn whatever_is_wrong_has_room_on_the_ledger() {
    let long = "x".repeat(4000);
    for one in [tpm(&long), no_quote(&long), no_releases(&long), listens(&long), no_time_server()] {
        assert_eq!(trouble::check(std::slice::from_ref(&one)), Ok(()));
        assert!(one.reason.len() <= limits::TROUBLE_TEXT_BYTES);
    }
}
