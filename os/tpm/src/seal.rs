//! Secrets that only this TPM gives back.
//!
//! What a seal hangs on is release-independent, so that an upgrade never loses the key: either on the TPM alone, or also
//! on register 7, which holds Secure Boot's state and keys. Registers of firmware (0, 2) and of the boot file (4) change
//! with updates; they are quoted, not sealed to. With Secure Boot off, register 7 protects nothing: any program boots
//! with the same value, so [`SealPolicy::Tpm`] is as good and survives more.

use croft_attest::pcr;
use croft_attest::public::{alg, attribute};
use croft_attest::{PcrSelection, Reader, Writer};
use croft_protocol::Hash;
use zeroize::Zeroizing;

use crate::client::{Entity, Tpm, TpmError};
use crate::code::Code;
use crate::session::{Auth, Session};
use crate::transport::Transport;

/// A TPM seals at most 128 bytes at once (part 2, MAX_SYM_DATA).
const SECRET_BYTES: usize = 128;
const PUBLIC_BYTES: usize = 256;
const PRIVATE_BYTES: usize = 512;
const MAGIC: &[u8; 8] = b"croftSL1";

/// Under which conditions the TPM gives a secret back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealPolicy {
    /// Whatever runs on this machine.
    Tpm,
    /// What Secure Boot let run, with the same Secure Boot keys.
    SecureBoot,
}

/// A sealed secret: useless without its TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub policy: SealPolicy,
    public: Vec<u8>,
    private: Vec<u8>,
}

impl Sealed {
    /// Mark, policy, both halves, and the first 8 bytes of SHA-256 of all that.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let policy = match self.policy {
            SealPolicy::Tpm => 0,
            SealPolicy::SecureBoot => 1,
        };
        let bytes = Writer::new().bytes(MAGIC).u8(policy).sized(&self.public).sized(&self.private).done();
        let check = Hash::of_bytes(&bytes);
        Writer(bytes).bytes(&check.0[..8]).done()
    }

    /// # Errors
    /// What is wrong with it, in a few words.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let Some((body, check)) = bytes.split_last_chunk::<8>() else { return Err("it is too short") };
        let Some(rest) = body.strip_prefix(MAGIC) else { return Err("it is of another kind or release") };
        if Hash::of_bytes(body).0[..8] != *check {
            return Err("its check value does not match");
        }
        let mut reader = Reader::new("the sealed key", rest);
        let read = |reader: &mut Reader<'_>| {
            let policy = reader.u8("policy")?;
            let public = reader.sized("public half", PUBLIC_BYTES)?.to_vec();
            Ok::<_, croft_attest::FormatError>((
                policy,
                public,
                reader.sized("private half", PRIVATE_BYTES)?.to_vec(),
            ))
        };
        let (policy, public, private) = read(&mut reader).map_err(|_| "its lengths do not fit")?;
        let policy = match policy {
            0 => SealPolicy::Tpm,
            1 => SealPolicy::SecureBoot,
            _ => return Err("its policy is unknown to this release"),
        };
        reader.finish().map_err(|_| "its lengths do not fit")?;
        Ok(Self { policy, public, private })
    }
}

/// The policy's digest: PolicyPCR on one selection (part 3, 23.7).
fn policy_pcr(selection: PcrSelection, values: &pcr::PcrValues) -> Hash {
    let code = Code::POLICY_PCR.0.to_be_bytes();
    Hash::of_bytes(&[&[0; 32][..], &code, &selection.encode(), &pcr::digest(values).0].concat())
}

impl<T: Transport> Tpm<T> {
    /// Seals at most 128 bytes.
    ///
    /// # Errors
    /// [`TpmError`].
    ///
    /// # Panics
    /// When the secret is longer.
    pub fn seal(&mut self, secret: &[u8], policy: SealPolicy) -> Result<Sealed, TpmError> {
        assert!(secret.len() <= SECRET_BYTES, "a TPM seals at most 128 bytes at once");
        let fixed = attribute::FIXED_TPM | attribute::FIXED_PARENT | attribute::NO_DA;
        let (attributes, digest) = match policy {
            SealPolicy::Tpm => (fixed | attribute::USER_WITH_AUTH, vec![]),
            SealPolicy::SecureBoot => {
                let values = self.pcr_read(PcrSelection::SECURE_BOOT)?;
                (fixed, policy_pcr(PcrSelection::SECURE_BOOT, &values).0.to_vec())
            }
        };
        let template = Writer::new()
            .u16(alg::KEYEDHASH)
            .u16(alg::SHA256)
            .u32(attributes)
            .sized(&digest)
            .u16(alg::NULL)
            .sized(&[])
            .done();
        let sensitive = Zeroizing::new(Writer::new().sized(&[]).sized(secret).done());
        let parameters = Writer::new().sized(&sensitive).sized(&template).sized(&[]).u32(0).done();
        let storage = self.storage_key()?;
        let response = self.with_session(false, |tpm, session| {
            Ok(tpm.run(Code::CREATE, &[storage.entity()], &mut [Auth::Sends(session)], parameters, 0)?.1)
        })?;
        let mut reader = Reader::new("the sealed key", &response);
        let private = reader.sized("private half", PRIVATE_BYTES)?.to_vec();
        let public = reader.sized("public half", PUBLIC_BYTES)?.to_vec();
        Ok(Sealed { policy, public, private })
    }

    /// Gives a secret back.
    ///
    /// # Errors
    /// [`TpmError::Foreign`] when another TPM sealed it, [`TpmError::Policy`] when Secure Boot's state is another.
    pub fn unseal(&mut self, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let storage = self.storage_key()?;
        let parameters = Writer::new().sized(&sealed.private).sized(&sealed.public).done();
        let (handles, response) = self.with_session(false, |tpm, session| {
            tpm.run(Code::LOAD, &[storage.entity()], &mut [Auth::Session(session)], parameters, 1)
        })?;
        let handle = handles[0];
        let name = Reader::new("the sealed key", &response).sized("name", 66).map(<[u8]>::to_vec);
        let secret = name.map_err(TpmError::from).and_then(|name| {
            let object = Entity { handle, name };
            let policy = sealed.policy;
            self.with_session(policy == SealPolicy::SecureBoot, |tpm, session| {
                tpm.open(&object, policy, session)
            })
        });
        let flushed = self.flush(handle);
        let secret = secret?;
        flushed.map(|()| secret)
    }

    fn open(
        &mut self,
        object: &Entity,
        policy: SealPolicy,
        session: &mut Session,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        if policy == SealPolicy::SecureBoot {
            // An empty digest: whatever the registers are now; the object says whether that is right.
            let parameters = Writer::new().sized(&[]).bytes(&PcrSelection::SECURE_BOOT.encode()).done();
            self.plain(Code::POLICY_PCR, &[session.handle], parameters)?;
        }
        let object = Entity { handle: object.handle, name: object.name.clone() };
        let (_, response) = self.run(Code::UNSEAL, &[object], &mut [Auth::Receives(session)], vec![], 0)?;
        let response = Zeroizing::new(response);
        Ok(Zeroizing::new(Reader::new("the unsealed key", &response).sized("secret", SECRET_BYTES)?.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> Sealed {
        Sealed { policy: SealPolicy::SecureBoot, public: vec![1; 78], private: vec![2; 150] }
    }

    #[test]
    fn a_sealed_key_fits_in_one_write_and_comes_back() {
        let bytes = sealed().encode();
        assert!(bytes.len() <= 512, "the smallest TPM writes 512 bytes at once; these are {}", bytes.len());
        assert_eq!(Sealed::decode(&bytes).unwrap(), sealed());
    }

    #[test]
    fn damage_anywhere_is_noticed() {
        let bytes = sealed().encode();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Sealed::decode(&bad).is_err(), "{at}");
            assert!(Sealed::decode(&bytes[..at]).is_err(), "{at}");
        }
        assert_eq!(Sealed::decode(&[0; 600]), Err("it is of another kind or release"));
    }
}
