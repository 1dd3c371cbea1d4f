//! Platform configuration registers of the SHA-256 bank: which, what they hold, and how they get there.

use std::collections::BTreeMap;

use croft_protocol::Hash;
use croft_protocol::attestation::MeasuredEvent;

use crate::public::alg;
use crate::wire::{FormatError, Reader, Writer};

/// A PC has 24 registers.
pub const PCR_COUNT: u8 = 24;

/// A set of registers of the SHA-256 bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PcrSelection(u32);

impl PcrSelection {
    /// Firmware, option ROMs, what was booted and with which options, Secure Boot's keys, and what was started by kexec
    /// since.
    ///
    /// The others say nothing that decides: 1, 3 and 5 hold settings and boot variables that differ in honest
    /// machines, 6 is the maker's, 8 belongs to boot loaders that Croft does without.
    pub const QUOTED: Self =
        Self(1 << 0 | 1 << 2 | 1 << PCR_BOOT | 1 << PCR_SECURE_BOOT | 1 << PCR_OPTIONS | 1 << PCR_KEXEC);
    /// What a seal may hang on: Secure Boot's state and keys, which an upgrade of Croft leaves alone.
    pub const SECURE_BOOT: Self = Self(1 << PCR_SECURE_BOOT);

    /// # Panics
    /// When a register does not exist.
    #[must_use]
    pub const fn of(pcrs: &[u8]) -> Self {
        let (mut mask, mut at) = (0, 0);
        while at < pcrs.len() {
            assert!(pcrs[at] < PCR_COUNT, "a PC has 24 registers");
            mask |= 1 << pcrs[at];
            at += 1;
        }
        Self(mask)
    }

    #[must_use]
    pub fn contains(self, pcr: u8) -> bool {
        pcr < PCR_COUNT && self.0 & (1 << pcr) != 0
    }

    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..PCR_COUNT).filter(move |pcr| self.contains(*pcr))
    }

    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// TPML_PCR_SELECTION with one bank.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        Writer::new().u32(1).u16(alg::SHA256).u8(3).bytes(&self.0.to_le_bytes()[..3]).done()
    }

    /// Reads TPML_PCR_SELECTION with exactly one bank, SHA-256.
    ///
    /// # Errors
    /// [`FormatError`], for other banks too.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let banks = reader.u32("number of banks")?;
        reader.expect("number of banks", banks, 1u32, "one, of SHA-256")?;
        let bank = reader.u16("bank")?;
        reader.expect("bank", bank, alg::SHA256, "0xb, SHA-256")?;
        let size = reader.u8("bitmap size")?;
        if !(1..=4).contains(&size) {
            return Err(reader.unexpected("bitmap size", size.into(), "1 to 4 bytes"));
        }
        let mut mask = [0; 4];
        mask[..usize::from(size)].copy_from_slice(reader.bytes("bitmap", size.into())?);
        let mask = u32::from_le_bytes(mask);
        if mask >> PCR_COUNT != 0 {
            return Err(reader.unexpected("bitmap", mask.into(), "registers 0 to 23"));
        }
        Ok(Self(mask))
    }
}

/// Boot applications and the kernel's boot file.
pub const PCR_BOOT: u8 = 4;
/// Secure Boot's state, keys, and which of them was used.
pub const PCR_SECURE_BOOT: u8 = 7;
/// What the kernel's EFI stub got beside itself: load options, and an initramfs of somebody else's. Both could replace what
/// the boot file carries, and neither is in [`PCR_BOOT`].
pub const PCR_OPTIONS: u8 = 9;
/// What Croft itself started by kexec, one extension each. No firmware and no loader of ours touches it.
pub const PCR_KEXEC: u8 = 11;

/// Values of some registers.
pub type PcrValues = BTreeMap<u8, Hash>;

/// A register's next value.
#[must_use]
pub fn extended(value: &Hash, digest: &Hash) -> Hash {
    Hash::of_bytes(&[value.0, digest.0].concat())
}

/// The registers of a selection after some events. Register 0 begins with the locality of the firmware's start.
#[must_use]
pub fn replay(selection: PcrSelection, locality: u8, events: &[MeasuredEvent]) -> PcrValues {
    let mut values: PcrValues = selection.iter().map(|pcr| (pcr, Hash::ZERO)).collect();
    if let Some(value) = values.get_mut(&0) {
        value.0[31] = locality;
    }
    for event in events {
        if let Some(value) = values.get_mut(&event.pcr) {
            *value = extended(value, &event.digest);
        }
    }
    values
}

/// What a quote holds of some registers: SHA-256 of their values in ascending order.
#[must_use]
pub fn digest(values: &PcrValues) -> Hash {
    let all: Vec<u8> = values.values().flat_map(|value| value.0).collect();
    Hash::of_bytes(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_has_the_tpms_encoding() {
        let selection = PcrSelection::of(&[0, 7, 11]);
        assert_eq!(selection.encode(), [0, 0, 0, 1, 0, 0x0b, 3, 0x81, 0x08, 0]);
        let bytes = selection.encode();
        assert_eq!(PcrSelection::read(&mut Reader::new("the quote", &bytes)).unwrap(), selection);
        assert_eq!(selection.iter().collect::<Vec<_>>(), [0, 7, 11]);
    }

    #[test]
    fn another_bank_or_two_banks_are_refused_by_name() {
        let mut sha1 = PcrSelection::QUOTED.encode();
        sha1[5] = 4;
        let error = PcrSelection::read(&mut Reader::new("the quote", &sha1)).unwrap_err().to_string();
        assert_eq!(error, "the quote has bank 0x4, wanted is 0xb, SHA-256");
        let mut two = PcrSelection::QUOTED.encode();
        two[3] = 2;
        let error = PcrSelection::read(&mut Reader::new("the quote", &two)).unwrap_err().to_string();
        assert_eq!(error, "the quote has number of banks 0x2, wanted is one, of SHA-256");
    }

    #[test]
    fn register_0_begins_with_the_locality() {
        let values = replay(PcrSelection::of(&[0, 4]), 3, &[]);
        assert_eq!(values[&0].0[31], 3);
        assert_eq!(values[&4], Hash::ZERO);
    }
}
