//! The floor against old releases that outlives the data disk: the highest version that was ever confirmed on this
//! machine, in the memory of its TPM.
//!
//! ```text
//!   start ── floor below the journal's confirmed version ──raise, lock──▶ locked until the machine restarts
//!     └───── otherwise ──────────────────────────────────lock──────────▶ read only
//! ```
//! The journal on the disk has the same, but a disk can be emptied, or be a copy from before. The TPM is written at the
//! start alone, and locked then (root could still remove the index: this is against disks); what is confirmed in this boot
//! follows at the next one. Where nothing was ever confirmed there is no floor, and nothing to lock. Only where the TPM has the node's key, and the disk is that node's: nothing is put into a TPM that is not used, and
//! nothing of another node's disk.
//!
//! It must never lower the floor, and never keep a machine from running because its TPM does not answer: the floor on
//! the disk still holds then.

use std::path::Path;

use croft_protocol::ReleaseVersion;
use croft_tpm::{NvState, Tpm, TpmError, Transport, TransportError};

use crate::ledger::chain_of;
use crate::witness::{self, Places};

/// Versions in their order.
fn number(version: ReleaseVersion) -> u64 {
    u64::from(version.major) << 48 | u64::from(version.minor) << 32 | u64::from(version.patch)
}

fn version(number: u64) -> ReleaseVersion {
    ReleaseVersion { major: (number >> 48) as u16, minor: (number >> 32) as u16, patch: number as u32 }
}

/// What the machine's TPM says, after it heard what the disk says. `None` where no TPM keeps one.
#[must_use]
pub fn read(
    places: Places<'_>,
    identity: &Path,
    confirmed: Option<ReleaseVersion>,
) -> Option<ReleaseVersion> {
    let mut tpm = match witness::open(places) {
        Ok(transport) => Tpm::new(transport),
        Err(TransportError::Missing { .. }) => return None,
        Err(error) => {
            tracing::warn!(error = %chain_of(&error), "the TPM keeps no floor against old releases");
            return None;
        }
    };
    match kept(&mut tpm, identity, confirmed) {
        Ok(floor) => floor,
        Err(error) => {
            tracing::warn!(error = %chain_of(&error), "the TPM keeps no floor against old releases");
            None
        }
    }
}

fn kept<T: Transport>(
    tpm: &mut Tpm<T>,
    identity: &Path,
    confirmed: Option<ReleaseVersion>,
) -> Result<Option<ReleaseVersion>, TpmError> {
    let NvState::Locked(key) = tpm.identity_state()? else { return Ok(None) };
    let before = tpm.floor()?;
    // What another node's disk says is not for ever.
    let confirmed = confirmed.filter(|_| croft_identity::is_disk_of(identity, &key));
    // Where nothing was confirmed ever, there is nothing to keep, and an index less.
    let Some(wanted) = confirmed.map(number).max(before) else { return Ok(None) };
    match tpm.raise_floor(wanted) {
        Ok(floor) => Ok(Some(version(floor))),
        // After a kexec: it was locked when the machine started, and rises at its next start.
        Err(TpmError::Locked { .. }) => Ok(before.map(version)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use croft_tpm::swtpm::Swtpm;

    use super::*;

    fn v(minor: u16) -> ReleaseVersion {
        ReleaseVersion { major: 1, minor, patch: 70_000 }
    }

    #[test]
    fn numbers_stand_in_the_order_of_versions() {
        let texts = ["0.0.0", "0.0.4294967295", "0.1.0", "0.65535.1", "1.0.0", "65535.65535.4294967295"];
        let versions = texts.map(|text| text.parse::<ReleaseVersion>().unwrap());
        assert!(versions.is_sorted_by_key(|version| number(*version)));
        for one in versions {
            assert_eq!(version(number(one)), one);
        }
    }

    #[test]
    fn the_floor_outlives_the_disk_and_never_falls() {
        let swtpm = Swtpm::new();
        let (disk, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (disk, key) in [(&disk, 1), (&others, 2)] {
            let marker = croft_protocol::Hash::of_bytes(&[key; 64]).to_string();
            std::fs::write(disk.path().join("tpm.key"), marker).unwrap();
        }
        let kept = |tpm: &mut _, confirmed| kept(tpm, disk.path(), confirmed);
        let mut machine = swtpm.power_on();
        assert_eq!(kept(&mut machine.tpm, Some(v(3))).unwrap(), None, "the node's key is elsewhere");
        machine.tpm.identity_write(&[1; 64]).unwrap();
        let swapped = super::kept(&mut machine.tpm, others.path(), Some(v(9)));
        assert_eq!(swapped.unwrap(), None, "what another node's disk says raises nothing");
        assert_eq!(kept(&mut machine.tpm, None).unwrap(), None, "nothing was confirmed ever");
        assert_eq!(kept(&mut machine.tpm, Some(v(3))).unwrap(), Some(v(3)));
        // Confirmed in this boot, and the agent starts again, or after a kexec: the next start of the machine keeps it.
        assert_eq!(kept(&mut machine.tpm, Some(v(4))).unwrap(), Some(v(3)));
        drop(machine);
        let mut machine = swtpm.power_on();
        assert_eq!(kept(&mut machine.tpm, Some(v(4))).unwrap(), Some(v(4)));
        drop(machine);
        // An empty disk, and a copy from before.
        for old in [None, Some(v(2))] {
            let mut machine = swtpm.power_on();
            assert_eq!(kept(&mut machine.tpm, old).unwrap(), Some(v(4)));
            assert!(matches!(machine.tpm.raise_floor(u64::MAX), Err(TpmError::Locked { .. })));
        }
    }

    fn at(device: &str) -> Places<'_> {
        let nowhere = Path::new("/nowhere");
        Places { device: Path::new(device), event_log: nowhere, sysfs: nowhere, pause: |_| {} }
    }

    #[test]
    fn a_machine_without_a_tpm_or_with_a_deaf_one_goes_on() {
        assert_eq!(read(at("/nowhere/tpmrm0"), Path::new("/nowhere"), Some(v(1))), None);
        assert_eq!(read(at("/dev/null"), Path::new("/nowhere"), Some(v(1))), None);
    }
}
