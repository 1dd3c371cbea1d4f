//! The firmware's event log in its crypto-agile form, as Linux gives it in `binary_bios_measurements` (TCG PC Client
//! Platform Firmware Profile 1.06, chapter 10). Little-endian, unlike everything else of a TPM.
//!
//! It must never be believed by itself: only what replays to quoted registers was measured, and even then its event
//! types and data are words of whoever handed it over. Digests alone are bound.

use croft_protocol::Hash;
use croft_protocol::attestation::MeasuredEvent;

use crate::pcr::{PCR_COUNT, PcrSelection, PcrValues, replay};
use crate::public::alg;
use crate::wire::{FormatError, Reader};

/// Firmware of servers writes 30 to 120 KiB; the rest is room for long lists of Secure Boot keys.
pub const LOG_BYTES: usize = 1024 * 1024;
const EVENTS: usize = 8192;
const ALGORITHMS: usize = 16;
const WHAT: &str = "the event log";
const SIGNATURE: &[u8; 16] = b"Spec ID Event03\0";
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// Event types that are told apart.
pub mod kind {
    pub const NO_ACTION: u32 = 0x3;
    pub const SEPARATOR: u32 = 0x4;
    pub const IPL: u32 = 0xd;
    pub const EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
    pub const EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
    pub const EFI_ACTION: u32 = 0x8000_0007;
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub measured: MeasuredEvent,
    pub data: Vec<u8>,
}

/// A whole log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    pub locality: u8,
    /// What was extended, in order; entries that only inform are left out.
    pub events: Vec<Event>,
}

/// What of a log goes to the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MeasuredBoot {
    pub locality: u8,
    pub events: Vec<MeasuredEvent>,
}

impl EventLog {
    /// Reads a log with a SHA-256 bank.
    ///
    /// # Errors
    /// [`FormatError`] names the field.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, bytes);
        reader.limit("length", bytes.len(), LOG_BYTES)?;
        let algorithms = read_head(&mut reader)?;
        let mut log = Self { locality: 0, events: Vec::new() };
        while !reader.is_empty() {
            reader.limit("number of events", log.events.len() + 1, EVENTS)?;
            let (measured, data) = read_event(&mut reader, &algorithms)?;
            if measured.kind == kind::NO_ACTION {
                if let Some(rest) = data.strip_prefix(STARTUP_LOCALITY.as_slice()) {
                    log.locality = match rest {
                        [locality @ (0 | 3 | 4)] => *locality,
                        [other, ..] => {
                            return Err(reader.unexpected("locality", u64::from(*other), "0, 3 or 4"));
                        }
                        [] => 0,
                    };
                }
            } else {
                log.events.push(Event { measured, data: data.to_vec() });
            }
        }
        Ok(log)
    }

    /// The registers as this log makes them.
    #[must_use]
    pub fn replay(&self, selection: PcrSelection) -> PcrValues {
        let measured = self.measured(selection);
        replay(selection, measured.locality, &measured.events)
    }

    /// Only the events of some registers, without their data.
    #[must_use]
    pub fn measured(&self, selection: PcrSelection) -> MeasuredBoot {
        let events = self.events.iter().map(|event| event.measured);
        MeasuredBoot {
            locality: self.locality,
            events: events.filter(|event| selection.contains(event.pcr)).collect(),
        }
    }
}

/// `(algorithm, digest size)` of each bank.
type Algorithms = Vec<(u16, usize)>;

/// The first entry, in the form of TPM 1.2, tells the form of the others.
fn read_head(reader: &mut Reader<'_>) -> Result<Algorithms, FormatError> {
    reader.u32_le("first register")?;
    let first = reader.u32_le("first event type")?;
    reader.expect("first event type", first, kind::NO_ACTION, "0x3, which begins a crypto-agile log")?;
    reader.bytes("first digest", 20)?;
    let size = reader.u32_le("first event size")? as usize;
    reader.limit("first event size", size, 4096)?;
    let mut head = Reader::new(WHAT, reader.bytes("first event", size)?);
    if head.bytes("signature", 16)? != SIGNATURE {
        return Err(head.unexpected("signature", 0, "\"Spec ID Event03\", a crypto-agile log of TPM 2.0"));
    }
    head.bytes("versions", 8)?;
    let count = head.u32_le("number of algorithms")? as usize;
    head.limit("number of algorithms", count, ALGORITHMS)?;
    let mut algorithms = Algorithms::new();
    for _ in 0..count {
        let id = head.u16_le("algorithm")?;
        let size = usize::from(head.u16_le("digest size")?);
        head.limit("digest size", size, 64)?;
        algorithms.push((id, size));
    }
    let vendor = head.u8("vendor information's size")?;
    head.bytes("vendor information", vendor.into())?;
    match algorithms.iter().find(|(id, _)| *id == alg::SHA256) {
        Some((_, 32)) => Ok(algorithms),
        Some((_, size)) => Err(head.unexpected("SHA-256 digest size", *size as u64, "32")),
        None => {
            Err(head.unexpected("SHA-256 bank", 0, "one: turn on SHA-256 for the TPM in the firmware setup"))
        }
    }
}

fn read_event<'a>(
    reader: &mut Reader<'a>,
    algorithms: &Algorithms,
) -> Result<(MeasuredEvent, &'a [u8]), FormatError> {
    let pcr = reader.u32_le("register")?;
    let kind = reader.u32_le("event type")?;
    // Entries that extend nothing may name any register: 0xffffffff has been seen.
    let pcr = match u8::try_from(pcr) {
        Ok(pcr) if pcr < PCR_COUNT => pcr,
        _ if kind == kind::NO_ACTION => 0,
        _ => return Err(reader.unexpected("register", pcr.into(), "0 to 23")),
    };
    let count = reader.u32_le("number of digests")? as usize;
    reader.limit("number of digests", count, ALGORITHMS)?;
    let mut digest = None;
    for _ in 0..count {
        let id = reader.u16_le("algorithm")?;
        let Some((_, size)) = algorithms.iter().find(|(known, _)| *known == id) else {
            return Err(reader.unexpected("algorithm", id.into(), "one that the log's head announces"));
        };
        let bytes = reader.bytes("digest", *size)?;
        if id == alg::SHA256 {
            digest = Some(Hash(bytes.try_into().expect("the head was checked")));
        }
    }
    let size = reader.u32_le("event size")? as usize;
    let data = reader.bytes("event", size)?;
    let Some(digest) = digest else {
        return Err(reader.unexpected("SHA-256 digest", 0, "one in every event"));
    };
    Ok((MeasuredEvent { pcr, kind, digest }, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(algorithms: &[(u16, u16)]) -> Vec<u8> {
        let mut data = SIGNATURE.to_vec();
        data.extend([0, 0, 0, 0, 0, 2, 0, 2]);
        data.extend((algorithms.len() as u32).to_le_bytes());
        for (id, size) in algorithms {
            data.extend(id.to_le_bytes());
            data.extend(size.to_le_bytes());
        }
        data.push(0);
        let mut log = [0u32.to_le_bytes(), kind::NO_ACTION.to_le_bytes()].concat();
        log.extend([0; 20]);
        log.extend((data.len() as u32).to_le_bytes());
        log.extend(data);
        log
    }

    fn event(pcr: u32, kind: u32, digest: [u8; 32], data: &[u8]) -> Vec<u8> {
        let mut event = [pcr.to_le_bytes(), kind.to_le_bytes(), 2u32.to_le_bytes()].concat();
        event.extend(4u16.to_le_bytes());
        event.extend([1; 20]);
        event.extend(alg::SHA256.to_le_bytes());
        event.extend(digest);
        event.extend((data.len() as u32).to_le_bytes());
        event.extend(data);
        event
    }

    fn log() -> Vec<u8> {
        let locality = [STARTUP_LOCALITY.as_slice(), &[3]].concat();
        [
            head(&[(4, 20), (alg::SHA256, 32)]),
            event(0, kind::NO_ACTION, [0; 32], &locality),
            event(0, 8, [1; 32], b"version"),
            event(4, kind::SEPARATOR, [2; 32], &[0; 4]),
            event(4, kind::EFI_BOOT_SERVICES_APPLICATION, [3; 32], b"path"),
            event(5, 7, [4; 32], b""),
        ]
        .concat()
    }

    #[test]
    fn a_log_replays_to_the_registers() {
        let log = EventLog::decode(&log()).unwrap();
        assert_eq!(log.locality, 3);
        assert_eq!(log.events.len(), 4, "what extends nothing is left out");
        let values = log.replay(PcrSelection::of(&[0, 4]));
        let mut start = Hash::ZERO;
        start.0[31] = 3;
        let want = |start: Hash, digests: &[u8]| {
            digests.iter().fold(start, |value, byte| crate::pcr::extended(&value, &Hash([*byte; 32])))
        };
        assert_eq!(values[&0], want(start, &[1]));
        assert_eq!(values[&4], want(Hash::ZERO, &[2, 3]));
        let measured = log.measured(PcrSelection::of(&[4]));
        assert_eq!(measured.events.iter().map(|event| event.pcr).collect::<Vec<_>>(), [4, 4]);
    }

    #[test]
    fn a_log_without_sha256_says_where_to_turn_it_on() {
        let error = EventLog::decode(&head(&[(4, 20)])).unwrap_err().to_string();
        assert!(error.ends_with("turn on SHA-256 for the TPM in the firmware setup"), "{error}");
        let error = EventLog::decode(&head(&[(alg::SHA256, 33)])).unwrap_err().to_string();
        assert_eq!(error, "the event log has SHA-256 digest size 0x21, wanted is 32");
    }

    #[test]
    fn what_a_log_claims_is_bounded() {
        let good = head(&[(4, 20), (alg::SHA256, 32)]);
        let mut many = good.clone();
        many.extend([4u32, 13, 1_000_000].iter().flat_map(|n| n.to_le_bytes()));
        let error = EventLog::decode(&many).unwrap_err().to_string();
        assert_eq!(
            error,
            "the event log is malformed: its number of digests has 1000000, more than the limit of 16"
        );
        let mut huge = [good.clone(), event(4, 13, [1; 32], b"")].concat();
        let at = huge.len() - 4;
        huge[at..].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = EventLog::decode(&huge).unwrap_err().to_string();
        assert_eq!(error, "the event log is truncated: its event needs 4294967295 bytes, 0 are left");
        let error = EventLog::decode(&[good, event(24, 13, [1; 32], b"")].concat()).unwrap_err().to_string();
        assert_eq!(error, "the event log has register 0x18, wanted is 0 to 23");
        let error = EventLog::decode(&vec![0; LOG_BYTES + 1]).unwrap_err().to_string();
        assert!(error.contains("more than the limit of 1048576"), "{error}");
    }

    #[test]
    fn a_log_cut_anywhere_is_shorter_or_refused() {
        let whole = log();
        let events = EventLog::decode(&whole).unwrap().events.len();
        for end in 0..whole.len() {
            if let Ok(log) = EventLog::decode(&whole[..end]) {
                assert!(log.events.len() < events, "{end}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(noise in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..200) {
            let mut bytes = log();
            let at = at.min(bytes.len());
            bytes.splice(at.., noise);
            let _ = EventLog::decode(&bytes);
        }
    }
}
