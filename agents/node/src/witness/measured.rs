//! What runs after a kexec, told to the TPM before it runs; and the log by which others understand the registers.
//!
//! ```text
//!   log of what runs now ─+ hash of the next boot file─▶ kept on the data disk (durable) ─▶ register 11 ─▶ kexec
//!   next start: firmware's log or the kept one, whichever replays to the registers ─▶ quotes
//! ```
//! Firmware measures only what it starts itself, and its log ends there; the kernel that comes by kexec need not even find
//! it. What is kept is no secret and is not believed: the registers decide, here and at whoever reads a quote. A power cut
//! empties the registers, and with them what is kept stops to fit.
//!
//! It must never let a kernel start untold where quotes of this TPM would then speak of the one before.

use std::path::{Path, PathBuf};
use std::time::Duration;

use borsh::{BorshDeserialize, BorshSerialize};
use croft_attest::event_log::kind;
use croft_attest::pcr::{PCR_KEXEC, PcrValues, replay};
use croft_attest::{MeasuredBoot, PcrSelection};
use croft_identity::{DiskKeyStore, KeyError};
use croft_protocol::Hash;
use croft_protocol::attestation::MeasuredEvent;
use croft_storage::documents::{Documents, OpenDocumentsError, PutDocumentError};
use croft_tpm::{NvState, Tpm, TpmError, Transport, TransportError, boot_log};

use super::{self as witness, Places};
use crate::ledger::chain_of;

/// Beside what else tells where the node's key is.
const FOLDER: &str = "measured";
const DOCUMENT: &str = "log";
/// Three times what the events take that a registration may carry (`limits::MEASURED_EVENTS`).
const LOG_BYTES: usize = 64 * 1024;

/// [`MeasuredBoot`] on the disk.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Kept {
    locality: u8,
    events: Vec<MeasuredEvent>,
}

/// Whom the hash of a boot file was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Register 11 holds it. If that file does not start now, this boot can't be quoted any more.
    Register,
    /// Nobody will ask this machine's TPM; why.
    Nobody(String),
}

/// Why a boot file must not be started.
#[derive(Debug, thiserror::Error)]
pub enum TellError {
    #[error("the TPM was not told what is to run, and its quotes would speak of the release before")]
    Tpm(#[from] TpmError),
    /// It may have been done, so this boot can't be quoted any more.
    #[error("it is not known whether the TPM was told what is to run")]
    Unsure(#[source] TpmError),
    #[error("it is not known whether the TPM quotes for this node")]
    Key(#[from] KeyError),
    #[error("the log for the TPM's register 11 can't be opened")]
    Open(#[from] OpenDocumentsError),
    #[error("the log for the TPM's register 11 can't be written")]
    Write(#[from] PutDocumentError),
}

/// Tells a machine's TPM what is about to run.
#[derive(Debug, Clone)]
pub struct Teller {
    device: PathBuf,
    event_log: PathBuf,
    sysfs: PathBuf,
    pause: fn(Duration),
    /// The folder of the node's identity.
    identity: PathBuf,
}

impl Teller {
    #[must_use]
    pub fn new(places: Places<'_>, identity: &Path) -> Self {
        Self {
            device: places.device.to_owned(),
            event_log: places.event_log.to_owned(),
            sysfs: places.sysfs.to_owned(),
            pause: places.pause,
            identity: identity.to_owned(),
        }
    }

    /// To be called when the kernel is loaded and only has to be started. Blocks for as long as the TPM does.
    ///
    /// # Errors
    /// [`TellError`]: then it must not be started.
    pub fn about_to_run(&self, authenticode: Hash) -> Result<Told, TellError> {
        let (device, event_log, sysfs) = (&*self.device, &*self.event_log, &*self.sysfs);
        let mut tpm = match witness::open(Places { device, event_log, sysfs, pause: self.pause }) {
            Ok(transport) => Tpm::new(transport),
            Err(error @ TransportError::Missing { .. }) => return Ok(Told::Nobody(error.to_string())),
            Err(error) => return self.unless_the_key_is_on_the_disk(error.into()),
        };
        let state = match tpm.identity_state() {
            Ok(state) => state,
            Err(error) => return self.unless_the_key_is_on_the_disk(error),
        };
        let firmware = boot_log::read(&self.event_log).ok().map(|log| log.measured(PcrSelection::QUOTED));
        tell_whoever(&mut tpm, &state, firmware.as_ref(), (&self.identity, authenticode))
    }

    /// A node whose key is on the disk never quotes, whatever its TPM does.
    fn unless_the_key_is_on_the_disk(&self, error: TpmError) -> Result<Told, TellError> {
        if DiskKeyStore::new(&self.identity).exists()? {
            return Ok(Told::Nobody(chain_of(&error)));
        }
        Err(error.into())
    }
}

/// Tells a TPM whatever it holds: the next kernel may make its key in it, and would quote a boot without this one.
fn tell_whoever<T: Transport>(
    tpm: &mut Tpm<T>,
    state: &NvState,
    firmware: Option<&MeasuredBoot>,
    (identity, authenticode): (&Path, Hash),
) -> Result<Told, TellError> {
    match (tell(tpm, firmware, identity, authenticode), state) {
        (Ok(()), _) => Ok(Told::Register),
        (Err(error @ TellError::Unsure(_)), _) | (Err(error), NvState::Locked(_)) => Err(error),
        (Err(error), _) => Ok(Told::Nobody(chain_of(&error))),
    }
}

/// Keeps the log that will be true, then makes it true.
fn tell<T: Transport>(
    tpm: &mut Tpm<T>,
    firmware: Option<&MeasuredBoot>,
    identity: &Path,
    authenticode: Hash,
) -> Result<(), TellError> {
    let documents = Documents::open(&identity.join(FOLDER))?;
    let values = tpm.pcr_read(PcrSelection::QUOTED)?;
    if let Some(MeasuredBoot { locality, mut events }) = explain(&values, firmware, read(&documents).as_ref())
    {
        events.push(MeasuredEvent { pcr: PCR_KEXEC, kind: kind::IPL, digest: authenticode });
        documents.put(DOCUMENT, &croft_protocol::encode(&Kept { locality, events }))?;
    } else {
        // Nobody can quote this boot, and nobody will be able to quote the next one: no log is true, and none is kept.
        tracing::warn!("no log explains the TPM's registers: the next release can't be attested");
    }
    tpm.pcr_extend(PCR_KEXEC, &authenticode).map_err(TellError::Unsure)
}

/// The log that explains the registers: the firmware's, if no kept one does.
///
/// # Errors
/// The firmware's own, where only that counts.
pub fn explained<T: Transport>(
    tpm: &mut Tpm<T>,
    firmware: Result<MeasuredBoot, String>,
    identity: &Path,
) -> Result<MeasuredBoot, String> {
    let Ok(documents) = Documents::open(&identity.join(FOLDER)) else { return firmware };
    let Some(kept) = read(&documents) else { return firmware };
    // A TPM that does not show its registers does not quote them either, and says why then.
    let Ok(values) = tpm.pcr_read(PcrSelection::QUOTED) else { return firmware };
    explain(&values, firmware.as_ref().ok(), Some(&kept)).map_or(firmware, Ok)
}

/// `None` for none, and for one that can't be read: then the firmware's counts.
fn read(documents: &Documents) -> Option<MeasuredBoot> {
    let bytes = documents.get(DOCUMENT).ok()??;
    let Kept { locality, events } = croft_protocol::decode("kept log", &bytes, LOG_BYTES).ok()?;
    Some(MeasuredBoot { locality, events })
}

fn explain(
    values: &PcrValues,
    firmware: Option<&MeasuredBoot>,
    kept: Option<&MeasuredBoot>,
) -> Option<MeasuredBoot> {
    // What was kept before the register was extended is one event ahead if nothing came of it.
    let behind = kept.and_then(|log| {
        let (_, events) = log.events.split_last()?;
        Some(MeasuredBoot { locality: log.locality, events: events.to_vec() })
    });
    let mut logs = [firmware.cloned(), kept.cloned(), behind].into_iter().flatten();
    logs.find(|log| replay(PcrSelection::QUOTED, log.locality, &log.events) == *values)
}

#[cfg(test)]
mod tests {
    use croft_tpm::swtpm::{Powered, Swtpm};

    use super::*;
    use croft_identity::KeyStore as _;

    const MEDIUM: Hash = Hash([1; 32]);
    const FIRST: Hash = Hash([2; 32]);
    const SECOND: Hash = Hash([3; 32]);

    fn event(pcr: u8, digest: Hash) -> MeasuredEvent {
        MeasuredEvent { pcr, kind: kind::IPL, digest }
    }

    /// Power on: firmware starts what is on the medium.
    fn power_on(swtpm: &Swtpm) -> (Powered, MeasuredBoot) {
        let mut machine = swtpm.power_on();
        let events = vec![event(0, Hash([9; 32])), event(4, MEDIUM)];
        for event in &events {
            machine.tpm.pcr_extend(event.pcr, &event.digest).unwrap();
        }
        (machine, MeasuredBoot { locality: 0, events })
    }

    fn kexecs(log: &Result<MeasuredBoot, String>) -> Vec<Hash> {
        let events = &log.as_ref().unwrap().events;
        events.iter().filter(|event| event.pcr == PCR_KEXEC).map(|event| event.digest).collect()
    }

    /// What `attest` would quote: it has to replay.
    fn replays(machine: &mut Powered, log: &Result<MeasuredBoot, String>) -> bool {
        let log = log.as_ref().unwrap();
        let values = machine.tpm.pcr_read(PcrSelection::QUOTED).unwrap();
        replay(PcrSelection::QUOTED, log.locality, &log.events) == values
    }

    #[test]
    fn each_release_after_a_kexec_finds_a_log_that_names_it_last() {
        let (swtpm, dir) = (Swtpm::new(), tempfile::tempdir().unwrap());
        let (mut machine, firmware) = power_on(&swtpm);
        let before = explained(&mut machine.tpm, Ok(firmware.clone()), dir.path());
        assert_eq!(before, Ok(firmware.clone()), "nothing was started by kexec");
        // The first one still sees the firmware's log, the second one does not.
        tell(&mut machine.tpm, Some(&firmware), dir.path(), FIRST).unwrap();
        let log = explained(&mut machine.tpm, Ok(firmware.clone()), dir.path());
        assert_eq!(kexecs(&log), [FIRST]);
        assert!(replays(&mut machine, &log));
        tell(&mut machine.tpm, None, dir.path(), SECOND).unwrap();
        let log = explained(&mut machine.tpm, Err("it is gone".to_owned()), dir.path());
        assert_eq!(kexecs(&log), [FIRST, SECOND]);
        assert!(replays(&mut machine, &log));
    }

    #[test]
    fn a_tpm_without_a_key_is_told_too_since_the_next_kernel_may_make_one() {
        let (swtpm, dir) = (Swtpm::new(), tempfile::tempdir().unwrap());
        let (mut machine, firmware) = power_on(&swtpm);
        let state = machine.tpm.identity_state().unwrap();
        assert_eq!(state, NvState::Absent);
        let told = tell_whoever(&mut machine.tpm, &state, Some(&firmware), (dir.path(), FIRST)).unwrap();
        assert_eq!(told, Told::Register);
        let log = explained(&mut machine.tpm, Err("it is gone".to_owned()), dir.path());
        assert_eq!(kexecs(&log), [FIRST]);
        assert!(replays(&mut machine, &log));
    }

    #[test]
    fn after_a_power_cut_only_the_firmwares_log_counts() {
        let (swtpm, dir) = (Swtpm::new(), tempfile::tempdir().unwrap());
        let (mut machine, firmware) = power_on(&swtpm);
        tell(&mut machine.tpm, Some(&firmware), dir.path(), FIRST).unwrap();
        drop(machine);
        let (mut machine, firmware) = power_on(&swtpm);
        let log = explained(&mut machine.tpm, Ok(firmware.clone()), dir.path());
        assert_eq!(log, Ok(firmware.clone()));
        // And the chain begins anew.
        tell(&mut machine.tpm, Some(&firmware), dir.path(), SECOND).unwrap();
        assert_eq!(kexecs(&explained(&mut machine.tpm, Ok(firmware), dir.path())), [SECOND]);
    }

    #[test]
    fn what_was_kept_and_never_told_is_left_out() {
        let (swtpm, dir) = (Swtpm::new(), tempfile::tempdir().unwrap());
        let (mut machine, firmware) = power_on(&swtpm);
        tell(&mut machine.tpm, Some(&firmware), dir.path(), FIRST).unwrap();
        // The agent ends between the disk and the TPM.
        let documents = Documents::open(&dir.path().join(FOLDER)).unwrap();
        let mut kept = read(&documents).unwrap();
        kept.events.push(event(PCR_KEXEC, SECOND));
        let MeasuredBoot { locality, events } = kept;
        documents.put(DOCUMENT, &croft_protocol::encode(&Kept { locality, events })).unwrap();
        let log = explained(&mut machine.tpm, Err("it is gone".to_owned()), dir.path());
        assert_eq!(kexecs(&log), [FIRST]);
        assert!(replays(&mut machine, &log));
    }

    #[test]
    fn a_forged_log_is_not_taken() {
        let (swtpm, dir) = (Swtpm::new(), tempfile::tempdir().unwrap());
        let (mut machine, firmware) = power_on(&swtpm);
        tell(&mut machine.tpm, Some(&firmware), dir.path(), FIRST).unwrap();
        let documents = Documents::open(&dir.path().join(FOLDER)).unwrap();
        let forged = [firmware.events.clone(), vec![event(PCR_KEXEC, SECOND)]].concat();
        documents.put(DOCUMENT, &croft_protocol::encode(&Kept { locality: 0, events: forged })).unwrap();
        let log = explained(&mut machine.tpm, Ok(firmware.clone()), dir.path());
        // Then the firmware's is as good as any: the quote fails, and the node says so.
        assert_eq!(log, Ok(firmware.clone()));
        assert!(!replays(&mut machine, &log));
        for damage in [vec![], vec![0; 5], vec![0xff; 70_000]] {
            documents.put(DOCUMENT, &damage).unwrap();
            assert_eq!(explained(&mut machine.tpm, Ok(firmware.clone()), dir.path()), Ok(firmware.clone()));
        }
        // The next one is told all the same.
        tell(&mut machine.tpm, Some(&firmware), dir.path(), SECOND).unwrap();
        let all = [firmware.events, vec![event(PCR_KEXEC, FIRST), event(PCR_KEXEC, SECOND)]].concat();
        assert!(replays(&mut machine, &Ok(MeasuredBoot { locality: 0, events: all })));
    }

    #[test]
    fn a_machine_whose_tpm_quotes_nothing_boots_on_and_one_that_may_quote_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |device: &str| {
            let nowhere = Path::new("/nowhere");
            let places =
                Places { device: Path::new(device), event_log: nowhere, sysfs: nowhere, pause: |_| {} };
            Teller::new(places, dir.path()).about_to_run(FIRST)
        };
        let Told::Nobody(why) = at("/nowhere/tpmrm0").unwrap() else { panic!("a TPM from nowhere") };
        assert!(why.starts_with("there is no TPM 2.0 at /nowhere/tpmrm0"), "{why}");
        // It takes every command and answers none.
        let error = at("/dev/null").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the TPM was not told what is to run, and its quotes would speak of the release before"
        );
        DiskKeyStore::new(dir.path()).create(&[7; 32]).unwrap();
        assert!(matches!(at("/dev/null").unwrap(), Told::Nobody(_)));
    }
}
