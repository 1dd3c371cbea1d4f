//! What a disk says about its own health: NVMe by its SMART log, ATA by SMART RETURN STATUS.
//!
//! ```text
//!   nvme ──Get Log Page 02h (NVME_IOCTL_ADMIN_CMD)──> NvmeLog ──┐
//!   sata ──ATA PASS-THROUGH (SG_IO), SMART RETURN STATUS────────┼──> Health
//!   others, and whatever fails ─────────────────────────────────┘ Unknown, with the reason
//! ```
//! Only questions are sent, never a command that changes a disk, and each has a time limit. A disk that does not answer is
//! `Unknown`, never `Good`.
//!
//! Sources: NVM Express Base Specification 2.0, figure 207 (log page 02h); ATA8-ACS, 7.52.6 (SMART RETURN STATUS); SAT-4,
//! 12.2 (ATA PASS-THROUGH) and 12.2.6 (ATA Status Return descriptor).

mod ask;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, Transport};

/// A disk's verdict on itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It sees no trouble.
    Good,
    /// It works, and says what to watch.
    Worn {
        reasons: Vec<String>,
    },
    /// It expects to fail, or has failed in part.
    Failing {
        reasons: Vec<String>,
    },
    Unknown {
        reason: String,
    },
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good => f.write_str("health good"),
            Self::Worn { reasons } => write!(f, "health: {}", reasons.join(", ")),
            Self::Failing { reasons } => write!(f, "failing: {}: replace the disk", reasons.join(", ")),
            Self::Unknown { reason } => write!(f, "health unknown: {reason}"),
        }
    }
}

/// Bytes of log page 02h.
pub const NVME_LOG_BYTES: usize = 512;

/// The SMART log of an NVMe controller, as far as it tells of health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvmeLog {
    /// Bits as `CRITICAL` names them.
    pub critical_warning: u8,
    /// 0 where the controller does not say.
    pub temperature_kelvin: u16,
    pub spare_percent: u8,
    pub spare_threshold_percent: u8,
    /// May pass 100; 255 stands for all above 254.
    pub used_percent: u8,
    pub power_on_hours: u128,
    pub media_errors: u128,
}

/// Critical warnings by bit.
const CRITICAL: [&str; 6] = [
    "its spare blocks are used up",
    "its temperature is out of bounds",
    "it is no longer reliable",
    "it has become read-only",
    "its memory for power cuts has failed",
    "its persistent memory region is unreliable",
];

impl NvmeLog {
    /// Reads a log page; `None` where it is too short, or says what no controller can say.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let page: &[u8; NVME_LOG_BYTES] = bytes.get(..NVME_LOG_BYTES)?.try_into().ok()?;
        let wide = |at: usize| {
            let mut number = [0; 16];
            number.copy_from_slice(&page[at..at + 16]);
            u128::from_le_bytes(number)
        };
        let log = Self {
            critical_warning: page[0],
            temperature_kelvin: u16::from_le_bytes([page[1], page[2]]),
            spare_percent: page[3],
            spare_threshold_percent: page[4],
            used_percent: page[5],
            power_on_hours: wide(128),
            media_errors: wide(160),
        };
        (log.spare_percent <= 100 && log.spare_threshold_percent <= 100).then_some(log)
    }

    #[must_use]
    pub fn health(&self) -> Health {
        let failing: Vec<String> = CRITICAL
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.critical_warning >> bit & 1 == 1)
            .map(|(_, text)| (*text).to_owned())
            .collect();
        if !failing.is_empty() {
            return Health::Failing { reasons: failing };
        }
        let mut worn = Vec::new();
        if self.used_percent >= 100 {
            worn.push(format!("{}% of its planned life is used", self.used_percent));
        }
        if self.media_errors > 0 {
            worn.push(format!("{} blocks could not be read", self.media_errors));
        }
        if worn.is_empty() { Health::Good } else { Health::Worn { reasons: worn } }
    }
}

/// Bytes of sense data that are asked for.
pub const SENSE_BYTES: usize = 32;

/// What the registers of an ATA disk say after SMART RETURN STATUS, out of the sense data of a pass-through.
#[must_use]
pub fn ata_health(sense: &[u8]) -> Health {
    let unknown = |reason: &str| Health::Unknown { reason: reason.to_owned() };
    let Some((middle, high)) = registers(sense) else {
        return unknown("its controller does not pass on what the disk answers");
    };
    // ATA8-ACS, table 126: the signature stays, or is turned round where a threshold was crossed.
    match (middle, high) {
        (0x4f, 0xc2) => Health::Good,
        (0xf4, 0x2c) => Health::Failing { reasons: vec!["it expects to fail soon (SMART)".into()] },
        _ => unknown("the disk has no SMART, or it is switched off"),
    }
}

/// LBA bits 15:8 and 23:16 of the ATA Status Return descriptor, or of fixed sense data that carries them (SAT-4, 12.2.7).
fn registers(sense: &[u8]) -> Option<(u8, u8)> {
    match sense.first()? & 0x7f {
        0x72 => {
            let end = 8 + usize::from(*sense.get(7)?);
            let mut rest = sense.get(8..end.min(sense.len()))?;
            while let [kind, length, ..] = *rest {
                let whole = 2 + usize::from(length);
                if kind == 0x09 && length >= 12 {
                    return Some((*rest.get(9)?, *rest.get(11)?));
                }
                rest = rest.get(whole..)?;
            }
            None
        }
        // Additional sense code 00/1D: ATA pass through information available.
        0x70 if sense.get(12..14) == Some(&[0x00, 0x1d]) => Some((*sense.get(10)?, *sense.get(11)?)),
        _ => None,
    }
}

/// Asks the disk. `dev` is `/dev`. Takes at most some seconds.
#[must_use]
pub fn ask(disk: &Disk, dev: &Path) -> Health {
    let unknown = |reason: String| Health::Unknown { reason };
    let device = dev.join(&disk.name);
    match disk.transport {
        Transport::Nvme => match ask::nvme_log(&device) {
            Ok(page) => NvmeLog::decode(&page)
                .map_or_else(|| unknown("its SMART log makes no sense".into()), |log| log.health()),
            Err(error) => unknown(format!("it does not tell its SMART log: {error}")),
        },
        Transport::Sata => match ask::ata_status(&device) {
            Ok(sense) => ata_health(&sense),
            Err(error) => unknown(format!("it does not answer: {error}")),
        },
        Transport::Virtio => unknown("a virtual disk tells none".into()),
        Transport::Usb => unknown("not asked over USB".into()),
        Transport::Network => unknown("the disk is in another machine".into()),
        Transport::Mmc | Transport::Sas | Transport::Scsi | Transport::Unknown => {
            unknown("not asked on this kind of controller".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU's controller answers, with changes.
    fn page(changes: &[(usize, u8)]) -> Vec<u8> {
        let mut bytes = vec![0; NVME_LOG_BYTES];
        for (at, byte) in [(1, 0x43), (2, 0x01), (3, 100), (4, 10), (128, 2)].iter().chain(changes) {
            bytes[*at] = *byte;
        }
        bytes
    }

    fn health(changes: &[(usize, u8)]) -> Health {
        NvmeLog::decode(&page(changes)).unwrap().health()
    }

    #[test]
    fn an_nvme_log_is_read_as_the_specification_lays_it_out() {
        let log = NvmeLog::decode(&page(&[(5, 7), (160, 1), (161, 1)])).unwrap();
        assert_eq!(log.temperature_kelvin, 323);
        assert_eq!((log.spare_percent, log.spare_threshold_percent, log.used_percent), (100, 10, 7));
        assert_eq!((log.power_on_hours, log.media_errors), (2, 257));
    }

    #[test]
    fn every_critical_warning_is_a_failure_with_its_name() {
        assert_eq!(health(&[]), Health::Good);
        assert_eq!(
            health(&[(0, 0b1001)]).to_string(),
            "failing: its spare blocks are used up, it has become read-only: replace the disk"
        );
        assert_eq!(
            health(&[(5, 103), (160, 4)]).to_string(),
            "health: 103% of its planned life is used, 4 blocks could not be read"
        );
        // Bits that no version has named yet.
        assert_eq!(health(&[(0, 0b1100_0000)]), Health::Good);
    }

    #[test]
    fn a_log_that_is_short_or_impossible_is_none() {
        assert_eq!(NvmeLog::decode(&[0; 511]), None);
        assert_eq!(NvmeLog::decode(&page(&[(3, 101)])), None);
    }

    fn sense(middle: u8, high: u8) -> Vec<u8> {
        let mut bytes = vec![0; SENSE_BYTES];
        bytes[..8].copy_from_slice(&[0x72, 0x01, 0x00, 0x1d, 0, 0, 0, 14]);
        bytes[8..22].copy_from_slice(&[0x09, 12, 0, 0, 0, 0, 0, 0, 0, middle, 0, high, 0, 0x50]);
        bytes
    }

    #[test]
    fn an_ata_disk_that_turns_its_signature_round_expects_to_fail() {
        assert_eq!(ata_health(&sense(0x4f, 0xc2)), Health::Good);
        assert_eq!(
            ata_health(&sense(0xf4, 0x2c)).to_string(),
            "failing: it expects to fail soon (SMART): replace the disk"
        );
        assert!(
            matches!(ata_health(&sense(0, 0)), Health::Unknown { reason } if reason.contains("no SMART"))
        );
        let mut fixed = vec![0; 18];
        fixed[0] = 0x70;
        fixed[10..14].copy_from_slice(&[0x4f, 0xc2, 0x00, 0x1d]);
        assert_eq!(ata_health(&fixed), Health::Good);
    }

    #[test]
    fn sense_data_of_any_length_and_content_is_never_good_by_accident() {
        let whole = sense(0x4f, 0xc2);
        for length in 0..20 {
            assert!(matches!(ata_health(&whole[..length]), Health::Unknown { .. }), "{length}");
        }
        let mut loops = vec![0; SENSE_BYTES];
        loops[0] = 0x72;
        loops[7] = 255;
        assert!(matches!(ata_health(&loops), Health::Unknown { .. }));
    }
}
