//! The TPM's own memory, which outlives every disk: the sealed identity, the counter, the maker's certificate.
//!
//! ```text
//!   absent ──define──▶ defined ──write──▶ written ──lock──▶ locked: nobody writes again, only the owner removes
//!                         └── a power cut in between leaves what the next create() takes up again
//! ```
//! It must never write over a locked index, nor remove one.

use croft_attest::{Reader, Writer};

use crate::client::{Entity, Tpm, TpmError};
use crate::code::{Code, HIERARCHY_OWNER};
use crate::session::Auth;
use crate::transport::Transport;

/// The sealed identity. In the owner's range (TCG Registry of Reserved TPM 2.0 Handles: 0x01800000 to 0x01bfffff), far
/// from its beginning, where other software puts its own.
pub const IDENTITY_INDEX: u32 = 0x0184_c0f1;
/// The counter against rollback.
pub const COUNTER_INDEX: u32 = 0x0184_c0f2;
/// The floor against old releases.
pub const FLOOR_INDEX: u32 = 0x0184_c0f3;
/// The maker's certificate for the endorsement key on P-256 (TCG EK Credential Profile).
pub const EK_CERTIFICATE_INDEX: u32 = 0x01c0_000a;

const OWNER_WRITE: u32 = 1 << 1;
const TYPE_COUNTER: u32 = 1 << 4;
const TYPE_MASK: u32 = 0xf << 4;
const WRITE_LOCKED: u32 = 1 << 11;
/// Once locked, locked for good.
const WRITE_DEFINE: u32 = 1 << 13;
/// Once locked, locked until the machine restarts.
const WRITE_STCLEAR: u32 = 1 << 14;
const OWNER_READ: u32 = 1 << 17;
const AUTH_READ: u32 = 1 << 18;
const NO_DA: u32 = 1 << 25;
const WRITTEN: u32 = 1 << 29;
/// Bits that the TPM sets as the index lives.
const STATE: u32 = WRITE_LOCKED | WRITTEN | 1 << 28;
/// The identity: written once by the owner, read by anybody on this machine. What is in it is sealed; nobody can guess
/// a password that it doesn't have, so it stands apart from the lockout.
const IDENTITY_ATTRIBUTES: u32 = OWNER_WRITE | WRITE_DEFINE | OWNER_READ | AUTH_READ | NO_DA;
const COUNTER_ATTRIBUTES: u32 = OWNER_WRITE | TYPE_COUNTER | OWNER_READ | AUTH_READ | NO_DA;
/// The floor: written at most once in a boot. Only the owner, root on a node, can remove it.
const FLOOR_ATTRIBUTES: u32 = OWNER_WRITE | WRITE_STCLEAR | OWNER_READ | AUTH_READ | NO_DA;
const FLOOR_BYTES: usize = 8;
/// Certificates have some 1 KiB.
const NV_BYTES: usize = 4096;
/// What the identity may take. Room for a longer seal of some other TPM; one write of the smallest TPM.
const IDENTITY_BYTES: usize = 512;

/// What an index holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NvState {
    Absent,
    /// Defined, never written.
    Empty,
    /// Written, but not locked: a power cut came before the end.
    Open(Vec<u8>),
    Locked(Vec<u8>),
}

struct NvPublic {
    attributes: u32,
    size: usize,
}

impl<T: Transport> Tpm<T> {
    /// The maker's certificate (DER) of the endorsement key on P-256, where the TPM has one. Not verified.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn endorsement_certificate(&mut self) -> Result<Option<Vec<u8>>, TpmError> {
        match self.nv_public(EK_CERTIFICATE_INDEX)? {
            Some(public) if public.attributes & WRITTEN != 0 => {
                let bytes = self.nv_read(EK_CERTIFICATE_INDEX, public.size)?;
                // The index may be larger than the certificate: DER says how long it is.
                Ok(Some(der_prefix(&bytes).unwrap_or(&bytes).to_vec()))
            }
            _ => Ok(None),
        }
    }

    /// What is kept as the identity.
    ///
    /// # Errors
    /// [`TpmError::Occupied`] when the index is not of our making.
    pub fn identity_state(&mut self) -> Result<NvState, TpmError> {
        let Some(public) = self.nv_public(IDENTITY_INDEX)? else { return Ok(NvState::Absent) };
        if public.attributes & !STATE != IDENTITY_ATTRIBUTES || public.size > IDENTITY_BYTES {
            return Err(TpmError::Occupied { index: IDENTITY_INDEX });
        }
        if public.attributes & WRITTEN == 0 {
            return Ok(NvState::Empty);
        }
        let bytes = self.nv_read(IDENTITY_INDEX, public.size)?;
        Ok(if public.attributes & WRITE_LOCKED == 0 { NvState::Open(bytes) } else { NvState::Locked(bytes) })
    }

    /// Keeps the identity, for good.
    ///
    /// # Errors
    /// [`TpmError::Locked`] when there is one already.
    ///
    /// # Panics
    /// When it is larger than any sealed key.
    pub fn identity_write(&mut self, bytes: &[u8]) -> Result<(), TpmError> {
        assert!(bytes.len() <= IDENTITY_BYTES, "a sealed key is smaller");
        match self.identity_state()? {
            NvState::Locked(_) => return Err(TpmError::Locked { index: IDENTITY_INDEX }),
            // Left by a power cut, perhaps of another size: nobody was told of it.
            NvState::Empty | NvState::Open(_) => {
                self.run(
                    Code::NV_UNDEFINE_SPACE,
                    &owner_and(IDENTITY_INDEX),
                    &mut [Auth::Password],
                    vec![],
                    0,
                )?;
            }
            NvState::Absent => {}
        }
        self.identity_begin(bytes.len())?;
        self.identity_put(bytes)?;
        self.identity_lock()
    }

    pub(crate) fn identity_begin(&mut self, size: usize) -> Result<(), TpmError> {
        self.nv_define(IDENTITY_INDEX, IDENTITY_ATTRIBUTES, size)
    }

    /// One write: a TPM does all of it or nothing.
    pub(crate) fn identity_put(&mut self, bytes: &[u8]) -> Result<(), TpmError> {
        let parameters = Writer::new().sized(bytes).u16(0).done();
        self.run(Code::NV_WRITE, &owner_and(IDENTITY_INDEX), &mut [Auth::Password], parameters, 0).map(drop)
    }

    /// Ends the writing of the identity.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn identity_lock(&mut self) -> Result<(), TpmError> {
        self.run(Code::NV_WRITE_LOCK, &owner_and(IDENTITY_INDEX), &mut [Auth::Password], vec![], 0).map(drop)
    }

    /// The counter: never goes back, not even when it is removed and made again. `None` before the first step.
    ///
    /// # Errors
    /// [`TpmError::Occupied`] when the index is not of our making.
    pub fn counter(&mut self) -> Result<Option<u64>, TpmError> {
        let Some(public) = self.nv_public(COUNTER_INDEX)? else { return Ok(None) };
        if public.attributes & TYPE_MASK != TYPE_COUNTER || public.size != 8 {
            return Err(TpmError::Occupied { index: COUNTER_INDEX });
        }
        if public.attributes & WRITTEN == 0 {
            return Ok(None);
        }
        let bytes = self.nv_read(COUNTER_INDEX, 8)?;
        Ok(Some(Reader::new("the TPM's counter", &bytes).u64("value")?))
    }

    /// One step; makes the counter first where there is none. What was written with an older value is from before.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn counter_step(&mut self) -> Result<u64, TpmError> {
        if self.nv_public(COUNTER_INDEX)?.is_none() {
            self.nv_define(COUNTER_INDEX, COUNTER_ATTRIBUTES, 8)?;
        }
        self.run(Code::NV_INCREMENT, &owner_and(COUNTER_INDEX), &mut [Auth::Password], vec![], 0)?;
        self.counter()?.ok_or(TpmError::Damaged { index: COUNTER_INDEX, reason: "it counts nothing" })
    }

    /// The highest number that was ever kept as the floor; `None` before the first.
    ///
    /// # Errors
    /// [`TpmError::Occupied`] when the index is not of our making.
    pub fn floor(&mut self) -> Result<Option<u64>, TpmError> {
        let written = self.floor_public()?.is_some_and(|public| public.attributes & WRITTEN != 0);
        if !written {
            return Ok(None);
        }
        let bytes = self.nv_read(FLOOR_INDEX, FLOOR_BYTES)?;
        Ok(Some(Reader::new("the TPM's floor", &bytes).u64("value")?))
    }

    /// Raises the floor to at least this, and locks it until the machine restarts, so that no old disk raises or
    /// lowers it after that. Root can remove the index and define it anew: this holds against disks, not against him. Gives back what it is then: more than asked for where it was higher. A power cut leaves the old floor or the
    /// new one.
    ///
    /// # Errors
    /// [`TpmError::Locked`] when it would have to be raised and was locked in this boot already.
    pub fn raise_floor(&mut self, to: u64) -> Result<u64, TpmError> {
        let public = self.floor_public()?;
        let locked = public.as_ref().is_some_and(|public| public.attributes & WRITE_LOCKED != 0);
        let now = self.floor()?;
        match now {
            Some(now) if now >= to => {}
            _ if locked => return Err(TpmError::Locked { index: FLOOR_INDEX }),
            _ => {
                if public.is_none() {
                    self.nv_define(FLOOR_INDEX, FLOOR_ATTRIBUTES, FLOOR_BYTES)?;
                }
                let parameters = Writer::new().sized(&to.to_be_bytes()).u16(0).done();
                self.run(Code::NV_WRITE, &owner_and(FLOOR_INDEX), &mut [Auth::Password], parameters, 0)?;
            }
        }
        if !locked {
            self.run(Code::NV_WRITE_LOCK, &owner_and(FLOOR_INDEX), &mut [Auth::Password], vec![], 0)?;
        }
        Ok(now.map_or(to, |now| now.max(to)))
    }

    fn floor_public(&mut self) -> Result<Option<NvPublic>, TpmError> {
        let Some(public) = self.nv_public(FLOOR_INDEX)? else { return Ok(None) };
        if public.attributes & !STATE != FLOOR_ATTRIBUTES || public.size != FLOOR_BYTES {
            return Err(TpmError::Occupied { index: FLOOR_INDEX });
        }
        Ok(Some(public))
    }

    fn nv_define(&mut self, index: u32, attributes: u32, size: usize) -> Result<(), TpmError> {
        let public = Writer::new()
            .u32(index)
            .u16(croft_attest::public::alg::SHA256)
            .u32(attributes)
            .sized(&[])
            .u16(size as u16)
            .done();
        let parameters = Writer::new().sized(&[]).sized(&public).done();
        let owner = [Entity::fixed(HIERARCHY_OWNER)];
        self.run(Code::NV_DEFINE_SPACE, &owner, &mut [Auth::Password], parameters, 0).map(drop)
    }

    fn nv_public(&mut self, index: u32) -> Result<Option<NvPublic>, TpmError> {
        let response = match self.plain(Code::NV_READ_PUBLIC, &[index], vec![]) {
            Ok(response) => response,
            Err(TpmError::NoSuchHandle { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut reader = Reader::new("the TPM's index", &response);
        let mut public = Reader::new("the TPM's index", reader.sized("description", 256)?);
        let got = public.u32("number")?;
        public.expect("number", got, index, "the one that was asked for")?;
        public.u16("name algorithm")?;
        let attributes = public.u32("attributes")?;
        public.sized("policy", 64)?;
        let size = usize::from(public.u16("size")?);
        public.limit("size", size, NV_BYTES)?;
        Ok(Some(NvPublic { attributes, size }))
    }

    fn nv_read(&mut self, index: u32, size: usize) -> Result<Vec<u8>, TpmError> {
        if self.nv_buffer.is_none() {
            // Some TPMs don't say; 512 is the least that PC clients have.
            self.nv_buffer = Some(self.properties()?.nv_buffer.clamp(512, 1024));
        }
        let step = self.nv_buffer.unwrap_or(512) as usize;
        let mut bytes = Vec::with_capacity(size);
        while bytes.len() < size {
            let count = step.min(size - bytes.len());
            let parameters = Writer::new().u16(count as u16).u16(bytes.len() as u16).done();
            let entities = [Entity::fixed(index), Entity::fixed(index)];
            let (_, response) = self.run(Code::NV_READ, &entities, &mut [Auth::Password], parameters, 0)?;
            let mut reader = Reader::new("the TPM's index", &response);
            let part = reader.sized("data", count)?;
            reader.expect("data size", part.len() as u64, count as u64, "as many bytes as were asked for")?;
            bytes.extend_from_slice(part);
        }
        Ok(bytes)
    }
}

fn owner_and(index: u32) -> [Entity; 2] {
    [Entity::fixed(HIERARCHY_OWNER), Entity::fixed(index)]
}

/// The first DER element, without the padding behind it.
fn der_prefix(bytes: &[u8]) -> Option<&[u8]> {
    let [0x30, 0x82, high, low, ..] = bytes else { return None };
    bytes.get(..4 + usize::from(u16::from_be_bytes([*high, *low])))
}
