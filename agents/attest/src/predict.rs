//! What a boot file leaves in a TPM's registers, whatever machine it runs on.
//!
//! ```text
//!   firmware starts it ──▶ its Authenticode SHA-256 in register 4 ┐
//!   kexec starts it    ──▶ the same in register 11                ┴──▶ Release::measurements ──▶ missing() in the log
//! ```
//! It must never predict what depends on the machine or on how it was started. Register 9 does: the stub measures the
//! load options there, which our netboot script gives and a disk does not. So does register 7: it tells by which of the
//! machine's own keys Secure Boot let the file run. Kernel, initramfs and command line are in the file, so their bytes
//! are in its hash and have no measurement of their own.

use std::collections::BTreeSet;

use croft_protocol::Hash;
use croft_protocol::attestation::MeasuredEvent;
use croft_protocol::release::Measurement;

use crate::pcr::{PCR_BOOT, PCR_KEXEC, PcrSelection};

/// Who started a boot file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartedBy {
    Firmware,
    Kexec,
}

/// What a release predicts for its boot file, in a release's order.
#[must_use]
pub fn predicted(authenticode: Hash) -> Vec<Measurement> {
    [PCR_BOOT, PCR_KEXEC].map(|pcr| Measurement { pcr, digest: authenticode }).to_vec()
}

/// What a start leaves out of what was predicted. After a kexec no firmware and no stub measured anything: register 11
/// alone speaks of the new kernel, and of nobody else.
pub fn missing<'a>(
    predicted: &'a BTreeSet<Measurement>,
    started: StartedBy,
    events: &[MeasuredEvent],
) -> impl Iterator<Item = &'a Measurement> {
    // What no quote covers, nobody signed for.
    let quoted = events.iter().filter(|event| PcrSelection::QUOTED.contains(event.pcr));
    let found: BTreeSet<Measurement> =
        quoted.map(|event| Measurement { pcr: event.pcr, digest: event.digest }).collect();
    let by_kexec = started == StartedBy::Kexec;
    predicted
        .iter()
        .filter(move |measurement| (measurement.pcr == PCR_KEXEC) == by_kexec && !found.contains(measurement))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Hash = Hash([0x11; 32]);

    fn event(pcr: u8, digest: Hash) -> MeasuredEvent {
        MeasuredEvent { pcr, kind: 4, digest }
    }

    fn absent(predicted: &[Measurement], started: StartedBy, events: &[MeasuredEvent]) -> Vec<Measurement> {
        missing(&predicted.iter().copied().collect(), started, events).copied().collect()
    }

    #[test]
    fn a_release_predicts_its_file_in_both_registers_that_tell_of_starts_and_in_order() {
        let predicted = predicted(FILE);
        assert_eq!(predicted.iter().map(|m| (m.pcr, m.digest)).collect::<Vec<_>>(), [(4, FILE), (11, FILE)]);
        assert!(predicted.is_sorted());
    }

    #[test]
    fn each_start_is_asked_for_its_own_register_only() {
        let predicted = predicted(FILE);
        assert_eq!(absent(&predicted, StartedBy::Firmware, &[event(4, FILE)]), []);
        assert_eq!(absent(&predicted, StartedBy::Kexec, &[event(11, FILE)]), []);
        // The register of the other way to start is no excuse.
        assert_eq!(absent(&predicted, StartedBy::Firmware, &[event(11, FILE)]), [predicted[0]]);
        assert_eq!(absent(&predicted, StartedBy::Kexec, &[event(4, FILE)]), [predicted[1]]);
    }

    #[test]
    fn a_register_that_is_not_quoted_shows_nothing() {
        let predicted = [Measurement { pcr: 14, digest: FILE }];
        assert_eq!(absent(&predicted, StartedBy::Firmware, &[event(14, FILE)]), predicted);
    }
}
