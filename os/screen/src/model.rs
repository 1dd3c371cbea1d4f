//! What the agent tells the screen, and what the menu asks of the agent. Plain data with bounds.
//!
//! Everything here is text for people: it was made by others (firmware, disks, servers, tenants), so a status that came
//! over the wire goes through [`Status::bounded`] before anything else looks at it.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::text::plain;

/// Network cards, disks and workloads that are told of; more are counted.
pub const LIST_MAX: usize = 64;
/// Addresses of one network card.
const ADDRESSES_MAX: usize = 8;

/// How good the news is: it decides the colour, and what is shown first where room is short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Tone {
    Good,
    #[default]
    Plain,
    Warning,
    Bad,
}

/// The node as its agent knows it. Empty text: not known yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Status {
    /// Of the image.
    pub version: String,
    /// The node's name on the ledger.
    pub name: String,
    pub farm: String,
    /// The node's public key in hexadecimal: what the QR code holds.
    pub id: String,
    /// The first digits of the key, as commands show it.
    pub fingerprint: String,
    /// `attested`, `sealed` or `plain`.
    pub trust: String,
    pub ledger: Line,
    pub registration: Line,
    pub links: Vec<Link>,
    pub disks: Vec<Disk>,
    pub workloads: Vec<Workload>,
}

/// One line with its tone.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Line {
    pub text: String,
    pub tone: Tone,
}

impl Line {
    #[must_use]
    pub fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Link {
    pub name: String,
    pub mac: String,
    pub addresses: Vec<String>,
    /// `ready`, or why it carries nothing and what to do.
    pub state: Line,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Disk {
    pub name: String,
    pub size: String,
    pub model: String,
    pub serial: String,
    /// Why it is used or not.
    pub verdict: Line,
    /// What the disk says about itself.
    pub health: Line,
    /// Why it can't be wiped; empty where it can.
    pub keep: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Workload {
    pub name: String,
    pub state: Line,
}

impl Status {
    /// With every text made harmless and every list cut.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let texts = [
            &mut self.version,
            &mut self.name,
            &mut self.farm,
            &mut self.id,
            &mut self.fingerprint,
            &mut self.trust,
            &mut self.ledger.text,
            &mut self.registration.text,
        ];
        texts.into_iter().for_each(clean);
        self.links.truncate(LIST_MAX);
        for link in &mut self.links {
            link.addresses.truncate(ADDRESSES_MAX);
            link.addresses.iter_mut().for_each(clean);
            [&mut link.name, &mut link.mac, &mut link.state.text].into_iter().for_each(clean);
        }
        self.disks.truncate(LIST_MAX);
        for disk in &mut self.disks {
            let texts = [
                &mut disk.name,
                &mut disk.size,
                &mut disk.model,
                &mut disk.serial,
                &mut disk.verdict.text,
                &mut disk.health.text,
                &mut disk.keep,
            ];
            texts.into_iter().for_each(clean);
        }
        self.workloads.truncate(LIST_MAX);
        for workload in &mut self.workloads {
            [&mut workload.name, &mut workload.state.text].into_iter().for_each(clean);
        }
        self
    }
}

fn clean(text: &mut String) {
    *text = plain(text);
}

impl Disk {
    /// What has to be typed before this disk is wiped: its serial number, else its model; `None` where it tells neither,
    /// and then it can't be wiped here.
    #[must_use]
    pub fn confirmation(&self) -> Option<&str> {
        [&self.serial, &self.model].into_iter().find(|text| !essence(text).is_empty()).map(String::as_str)
    }
}

/// What counts of a typed confirmation: letters and digits. Dashes and dots lie elsewhere on other keyboards.
#[must_use]
pub fn essence(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// What the menu asks of the agent. The agent checks everything again.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Order {
    /// Settings of one link, until the machine restarts.
    Network(LinkOrder),
    /// Everything on a disk goes.
    Wipe {
        /// `nvme0n1`.
        disk: String,
        /// What the person typed.
        typed: String,
    },
}

/// Settings of one link as they were typed.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct LinkOrder {
    pub link: String,
    /// Empty: by DHCP.
    pub address: String,
    pub prefix: u8,
    /// Empty: none.
    pub gateway: String,
    /// Empty: none.
    pub dns: String,
    /// 0: none.
    pub vlan: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_from_outside_is_cut_and_cleaned_everywhere() {
        let evil = "\x1b[2Jx\n".repeat(400);
        let line = Line::new(Tone::Bad, evil.clone());
        let status = Status {
            version: evil.clone(),
            links: vec![
                Link {
                    name: evil.clone(),
                    addresses: vec![evil.clone(); 500],
                    state: line.clone(),
                    ..Link::default()
                };
                500
            ],
            disks: vec![Disk { serial: evil.clone(), verdict: line.clone(), ..Disk::default() }; 500],
            workloads: vec![Workload { name: evil, state: line }; 500],
            ..Status::default()
        }
        .bounded();
        assert_eq!((status.links.len(), status.disks.len(), status.workloads.len()), (64, 64, 64));
        assert_eq!(status.links[0].addresses.len(), ADDRESSES_MAX);
        let text = format!("{status:?}");
        assert!(!text.contains("\\u{1b}") && !text.contains("[2J") && !text.contains("\\n"), "{text}");
    }

    #[test]
    fn a_disk_is_confirmed_by_its_serial_number_else_its_model() {
        let disk = |serial: &str, model: &str| Disk {
            serial: serial.into(),
            model: model.into(),
            ..Disk::default()
        };
        assert_eq!(disk("S-1", "M").confirmation(), Some("S-1"));
        assert_eq!(disk("--", "M 2").confirmation(), Some("M 2"));
        assert_eq!(disk("", " ").confirmation(), None);
        assert_eq!(essence("WD-40 x.Y"), "wd40xy");
    }
}
