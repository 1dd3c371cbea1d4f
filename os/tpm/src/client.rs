//! Commands to a TPM: framing, authorisation, patience with a busy TPM, and errors that say what to do.

use std::time::Duration;

use croft_attest::pcr::PcrValues;
use croft_attest::public::alg;
use croft_attest::{FormatError, PcrSelection, Reader, Writer};
use croft_protocol::Hash;

use crate::code::{Code, Meaning, meaning};
use crate::keys::Loaded;
use crate::session::{self, Auth};
use crate::transport::{MESSAGE_BYTES, Transport, TransportError};

const TAG_NO_SESSIONS: u16 = 0x8001;
const TAG_SESSIONS: u16 = 0x8002;
/// The slowest command of the slowest TPM makes a key: the kernel too allows it minutes.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);
/// A busy TPM is asked again after 10 ms, 20 ms, ... 2 s each: 40 times, a bit more than a minute.
const RETRIES: u32 = 40;

/// Why a TPM did not do it.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("the TPM's key is unusable")]
    Key(#[from] croft_attest::public::KeyError),
    #[error("the TPM stayed busy through {tries} tries of {command}: power-cycle the machine")]
    Busy { command: &'static str, tries: u32 },
    #[error(
        "the TPM is locked out after too many wrong passwords and refuses {command}: leave the machine on for {recovery_s} s, \
         or clear the TPM in the firmware setup, which loses its keys"
    )]
    Lockout { command: &'static str, recovery_s: u32 },
    #[error(
        "somebody set a password in the TPM that {command} needs: clear the TPM in the firmware setup, which loses its \
         present keys"
    )]
    Password { command: &'static str },
    #[error(
        "the TPM keeps the key for another Secure Boot state: put Secure Boot and its keys back to what they were when \
         the node was first started"
    )]
    Policy,
    #[error("the TPM has nothing at handle {handle:#x}")]
    NoSuchHandle { handle: u32 },
    #[error(
        "the TPM did not make what {command} got: it comes from another TPM, or this one was cleared since"
    )]
    Foreign { command: &'static str },
    #[error("the TPM index {index:#x} is locked: it is written once")]
    Locked { index: u32 },
    #[error("the TPM has no room for {command}: remove unused indices or clear it in the firmware setup")]
    Memory { command: &'static str },
    #[error("the TPM refuses {command} with code {code:#x}")]
    Refused { command: &'static str, code: u32 },
    #[error("the answer to {command} does not come from the TPM: something on its bus alters messages")]
    Forged { command: &'static str },
    #[error("the TPM has no SHA-256 register {pcr}: turn on the SHA-256 bank in the firmware setup")]
    NoBank { pcr: u8 },
    #[error(
        "the firmware's event log does not explain the TPM's register {pcr}: update the machine's firmware"
    )]
    LogDiffers { pcr: u8 },
    #[error(transparent)]
    TooLarge(#[from] croft_protocol::attestation::AttestationTooLarge),
    #[error("the TPM's registers changed each time they were read")]
    Restless,
    #[error("what is kept in the TPM at {index:#x} is damaged ({reason})")]
    Damaged { index: u32, reason: &'static str },
    #[error(
        "the TPM index {index:#x} was made by something else: remove it, or clear the TPM in the firmware setup"
    )]
    Occupied { index: u32 },
    #[error("the kernel gives no randomness ({reason})")]
    Entropy { reason: String },
}

/// What a TPM says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Four letters: `INTC`, `AMD `, `IFX `, `STM `, `IBM ` for swtpm.
    pub manufacturer: String,
    pub vendor: String,
    pub firmware: u64,
    pub lockout: Lockout,
    /// Bytes of one read or write of an index.
    pub(crate) nv_buffer: u32,
}

/// State of the protection against guessed passwords.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lockout {
    pub active: bool,
    pub failures: u32,
    pub max_failures: u32,
    /// Seconds until one failure is forgotten.
    pub recovery_s: u32,
}

/// An open TPM.
pub struct Tpm<T: Transport> {
    pub(crate) transport: T,
    pub(crate) storage: Option<Loaded>,
    pub(crate) attestation: Option<Loaded>,
    pub(crate) nv_buffer: Option<u32>,
}

/// What a command works on: a handle, and the name that its HMAC covers.
pub(crate) struct Entity {
    pub(crate) handle: u32,
    pub(crate) name: Vec<u8>,
}

impl Entity {
    /// Registers, hierarchies and sessions: their name is their handle (part 1, chapter 16).
    pub(crate) fn fixed(handle: u32) -> Self {
        Self { handle, name: handle.to_be_bytes().to_vec() }
    }
}

impl<T: Transport> Tpm<T> {
    /// Takes a TPM that the firmware started.
    #[must_use]
    pub fn new(transport: T) -> Self {
        Self { transport, storage: None, attestation: None, nv_buffer: None }
    }

    /// Starts a TPM that no firmware started: emulators. A started one says so, which is as good.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn startup(&mut self) -> Result<(), TpmError> {
        match self.plain(Code::STARTUP, &[], Writer::new().u16(0).done()) {
            Ok(_) | Err(TpmError::Refused { code: 0x100, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Who made it, and whether it is locked out.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn properties(&mut self) -> Result<Properties, TpmError> {
        let fixed = self.capability(0x100, 64)?;
        let variable = self.capability(0x200, 64)?;
        let get = |list: &[(u32, u32)], id| {
            list.iter().find(|(known, _)| *known == id).map_or(0, |(_, value)| *value)
        };
        let text = |ids: &[u32]| -> String {
            let bytes = ids.iter().flat_map(|id| get(&fixed, *id).to_be_bytes());
            let letters = bytes.filter(|byte| byte.is_ascii_graphic() || *byte == b' ').map(char::from);
            letters.collect::<String>().trim().to_owned()
        };
        Ok(Properties {
            manufacturer: text(&[0x105]),
            vendor: text(&[0x106, 0x107, 0x108, 0x109]),
            firmware: u64::from(get(&fixed, 0x10b)) << 32 | u64::from(get(&fixed, 0x10c)),
            lockout: Lockout {
                active: get(&variable, 0x200) & (1 << 9) != 0,
                failures: get(&variable, 0x20e),
                max_failures: get(&variable, 0x20f),
                recovery_s: get(&variable, 0x210),
            },
            nv_buffer: get(&fixed, 0x12c),
        })
    }

    /// Properties from one on.
    fn capability(&mut self, first: u32, count: u32) -> Result<Vec<(u32, u32)>, TpmError> {
        let parameters = Writer::new().u32(6).u32(first).u32(count).done();
        let response = self.plain(Code::GET_CAPABILITY, &[], parameters)?;
        let mut reader = Reader::new("the TPM's list of properties", &response);
        reader.u8("more")?;
        let kind = reader.u32("capability")?;
        reader.expect("capability", kind, 6u32, "6, properties")?;
        let got = reader.u32("count")? as usize;
        reader.limit("count", got, 256)?;
        (0..got).map(|_| Ok((reader.u32("property")?, reader.u32("value")?))).collect()
    }

    /// Handles that are loaded or kept, from one on: what a test looks at for leaks.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn handles(&mut self, first: u32) -> Result<Vec<u32>, TpmError> {
        let parameters = Writer::new().u32(1).u32(first).u32(64).done();
        let response = self.plain(Code::GET_CAPABILITY, &[], parameters)?;
        let mut reader = Reader::new("the TPM's list of handles", &response);
        reader.u8("more")?;
        reader.u32("capability")?;
        let got = reader.u32("count")? as usize;
        reader.limit("count", got, 256)?;
        (0..got).map(|_| Ok(reader.u32("handle")?)).collect()
    }

    /// Registers of the SHA-256 bank, all of the same moment.
    ///
    /// # Errors
    /// [`TpmError::NoBank`] where the firmware turned the bank off.
    pub fn pcr_read(&mut self, selection: PcrSelection) -> Result<PcrValues, TpmError> {
        // A TPM gives some eight at a time; the counter says whether one changed in between.
        for _ in 0..8 {
            if let Some(values) = self.pcr_read_once(selection)? {
                return Ok(values);
            }
        }
        Err(TpmError::Restless)
    }

    fn pcr_read_once(&mut self, selection: PcrSelection) -> Result<Option<PcrValues>, TpmError> {
        let mut values = PcrValues::new();
        let (mut left, mut counter) = (selection, None);
        while !left.is_empty() {
            let response = self.plain(Code::PCR_READ, &[], left.encode())?;
            let mut reader = Reader::new("the TPM's registers", &response);
            let now = reader.u32("update counter")?;
            if *counter.get_or_insert(now) != now {
                return Ok(None);
            }
            let missing = TpmError::NoBank { pcr: left.iter().next().unwrap_or_default() };
            // A TPM without the bank answers with no bank at all.
            let Ok(read) = PcrSelection::read(&mut reader) else { return Err(missing) };
            let count = reader.u32("number of digests")?;
            reader.expect("number of digests", count, read.iter().count() as u64, "one for each register")?;
            for pcr in read.iter() {
                let digest = reader.sized("digest", 32)?;
                let digest = digest.try_into().map_err(|_| TpmError::NoBank { pcr })?;
                values.insert(pcr, Hash(digest));
            }
            if read.is_empty() {
                return Err(missing);
            }
            left = left.without(read);
        }
        Ok(Some(values))
    }

    /// Extends a register of the SHA-256 bank: before a kexec, [`croft_attest::pcr::PCR_KEXEC`] with the hash of the
    /// new boot file.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn pcr_extend(&mut self, pcr: u8, digest: &Hash) -> Result<(), TpmError> {
        let parameters = Writer::new().u32(1).u16(alg::SHA256).bytes(&digest.0).done();
        self.run(Code::PCR_EXTEND, &[Entity::fixed(pcr.into())], &mut [Auth::Password], parameters, 0)?;
        Ok(())
    }

    /// Removes a key or a session from the TPM's memory.
    pub(crate) fn flush(&mut self, handle: u32) -> Result<(), TpmError> {
        self.plain(Code::FLUSH_CONTEXT, &[], Writer::new().u32(handle).done()).map(drop)
    }

    /// A command without authorisation. Handles that need none stand in front of the parameters.
    pub(crate) fn plain(
        &mut self,
        code: Code,
        handles: &[u32],
        parameters: Vec<u8>,
    ) -> Result<Vec<u8>, TpmError> {
        let entities: Vec<Entity> = handles.iter().map(|handle| Entity::fixed(*handle)).collect();
        Ok(self.run(code, &entities, &mut [], parameters, 0)?.1)
    }

    /// One command: gives back the handles and the parameters of its response. The first entities are authorised by
    /// `auths`, in order.
    pub(crate) fn run(
        &mut self,
        code: Code,
        entities: &[Entity],
        auths: &mut [Auth<'_>],
        mut parameters: Vec<u8>,
        handles_back: usize,
    ) -> Result<(Vec<u32>, Vec<u8>), TpmError> {
        let names: Vec<Vec<u8>> = entities.iter().map(|entity| entity.name.clone()).collect();
        let handles = entities.iter().fold(Writer::new(), |all, entity| all.u32(entity.handle)).done();
        let (tag, area) = if auths.is_empty() {
            (TAG_NO_SESSIONS, vec![])
        } else {
            let area = session::authorise(auths, code, &names, &mut parameters)?;
            (TAG_SESSIONS, Writer::new().u32(area.len() as u32).bytes(&area).done())
        };
        let body = [handles, area, parameters].concat();
        let command = Writer::new().u16(tag).u32(10 + body.len() as u32).u32(code.0).bytes(&body).done();
        assert!(command.len() <= MESSAGE_BYTES, "callers bound what they send");
        let response = self.patiently(code, entities, &command)?;

        let mut reader = Reader::new("the TPM's response", &response);
        let back = (0..handles_back).map(|_| reader.u32("handle")).collect::<Result<Vec<_>, _>>()?;
        if auths.is_empty() {
            return Ok((back, reader.remaining().to_vec()));
        }
        let size = reader.u32("parameters' size")? as usize;
        let mut parameters = reader.bytes("parameters", size)?.to_vec();
        session::check(auths, code, &mut parameters, reader.remaining())?;
        Ok((back, parameters))
    }

    /// Sends until the TPM has time. Gives back what follows the header.
    fn patiently(&mut self, code: Code, entities: &[Entity], command: &[u8]) -> Result<Vec<u8>, TpmError> {
        let mut pause = Duration::from_millis(10);
        for _ in 0..RETRIES {
            let response = self.transport.exchange(command, COMMAND_LIMIT)?;
            let mut reader = Reader::new("the TPM's response", &response);
            reader.u16("tag")?;
            let size = reader.u32("size")?;
            reader.expect("size", size, response.len() as u64, "as many bytes as came")?;
            let result = reader.u32("code")?;
            if result == 0 {
                return Ok(reader.remaining().to_vec());
            }
            if meaning(result) != Meaning::Again {
                return Err(self.failure(code, entities, result));
            }
            self.transport.pause(pause);
            pause = (pause * 2).min(Duration::from_secs(2));
        }
        Err(TpmError::Busy { command: code.1, tries: RETRIES })
    }

    fn failure(&mut self, code: Code, entities: &[Entity], result: u32) -> TpmError {
        let command = code.1;
        let last = entities.last().map_or(0, |entity| entity.handle);
        match meaning(result) {
            Meaning::Lockout => {
                let lockout = self.properties().map(|properties| properties.lockout);
                TpmError::Lockout { command, recovery_s: lockout.map_or(7200, |lockout| lockout.recovery_s) }
            }
            Meaning::Auth => TpmError::Password { command },
            Meaning::Policy => TpmError::Policy,
            Meaning::NoSuchHandle => TpmError::NoSuchHandle { handle: last },
            Meaning::Integrity => TpmError::Foreign { command },
            Meaning::NvLocked => TpmError::Locked { index: last },
            Meaning::Memory => TpmError::Memory { command },
            Meaning::Again | Meaning::NvUnwritten | Meaning::Other => {
                TpmError::Refused { command, code: result }
            }
        }
    }
}

impl<T: Transport> Drop for Tpm<T> {
    fn drop(&mut self) {
        // The kernel's resource manager would do it; without one, the next user would find the memory full.
        for key in [self.attestation.take(), self.storage.take()].into_iter().flatten() {
            let _ = self.flush(key.handle);
        }
    }
}

#[cfg(test)]
mod tests;
