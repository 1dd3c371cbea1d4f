//! Keys of the node in its TPM.
//!
//! All are primaries: the TPM derives them from a seed and a template, so the same TPM without any disk has the same
//! keys, and there is nothing to store or to lose. Storage and attestation key come from the owner's seed: whoever
//! clears the TPM for another owner gets another identity with it. The endorsement key comes from the maker's seed, and
//! stays.

use croft_attest::public::{alg, attribute};
use croft_attest::{EccKey, EccPoint, Reader, Writer};
use croft_protocol::attestation::{Credential, Introduction};
use croft_protocol::{Hash, limits};
use p256::ecdh::diffie_hellman;
use zeroize::Zeroizing;

use crate::client::{Entity, Tpm, TpmError};
use crate::code::{Code, HIERARCHY_ENDORSEMENT, HIERARCHY_NULL, HIERARCHY_OWNER};
use crate::session::{Auth, Session};
use crate::transport::Transport;

/// PolicySecret of the endorsement hierarchy: whoever knows its password, which is empty, may use the key (TCG EK
/// Credential Profile 2.5, template L-2).
const ENDORSEMENT_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd,
    0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// A key in the TPM's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub(crate) handle: u32,
    pub key: EccKey,
}

impl Loaded {
    pub(crate) fn entity(&self) -> Entity {
        Entity { handle: self.handle, name: self.key.name().to_vec() }
    }
}

/// A template on P-256: `cipher` for keys that protect others.
fn template(attributes: u32, policy: &[u8], cipher: bool, scheme: u16, unique: &EccPoint) -> Vec<u8> {
    let head = Writer::new().u16(alg::ECC).u16(alg::SHA256).u32(attributes).sized(policy);
    let head = if cipher { head.u16(alg::AES).u16(128).u16(alg::CFB) } else { head.u16(alg::NULL) };
    let head = if scheme == alg::NULL { head.u16(scheme) } else { head.u16(scheme).u16(alg::SHA256) };
    head.u16(alg::P256).u16(alg::NULL).bytes(&unique.encode()).done()
}

const ZERO: EccPoint = EccPoint { x: [0; 32], y: [0; 32] };
const IN_THIS_TPM: u32 = attribute::FIXED_TPM | attribute::FIXED_PARENT | attribute::SENSITIVE_DATA_ORIGIN;

impl<T: Transport> Tpm<T> {
    /// The key that protects what is sealed (TCG Provisioning Guidance, SRK template for P-256).
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn storage_key(&mut self) -> Result<Loaded, TpmError> {
        if let Some(key) = &self.storage {
            return Ok(key.clone());
        }
        let attributes = IN_THIS_TPM
            | attribute::USER_WITH_AUTH
            | attribute::NO_DA
            | attribute::RESTRICTED
            | attribute::DECRYPT;
        let template = template(attributes, &[], true, alg::NULL, &ZERO);
        let loaded = self.create_primary(HIERARCHY_OWNER, &template)?;
        Ok(self.storage.insert(loaded).clone())
    }

    /// The key that signs quotes.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn attestation_key(&mut self) -> Result<Loaded, TpmError> {
        if let Some(key) = &self.attestation {
            return Ok(key.clone());
        }
        let attributes = IN_THIS_TPM
            | attribute::USER_WITH_AUTH
            | attribute::NO_DA
            | attribute::RESTRICTED
            | attribute::SIGN;
        // Tells our key from that of any other software that makes a primary of this form.
        let unique = EccPoint { x: Hash::of_bytes(b"croft/attestation-key/1").0, y: [0; 32] };
        let template = template(attributes, &[], false, alg::ECDSA, &unique);
        let loaded = self.create_primary(HIERARCHY_OWNER, &template)?;
        loaded.key.check_attestation()?;
        Ok(self.attestation.insert(loaded).clone())
    }

    /// The public half of the endorsement key on P-256.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn endorsement_key(&mut self) -> Result<EccKey, TpmError> {
        let loaded = self.load_endorsement_key()?;
        self.flush(loaded.handle)?;
        Ok(loaded.key)
    }

    fn load_endorsement_key(&mut self) -> Result<Loaded, TpmError> {
        let attributes =
            IN_THIS_TPM | attribute::ADMIN_WITH_POLICY | attribute::RESTRICTED | attribute::DECRYPT;
        let template = template(attributes, &ENDORSEMENT_POLICY, true, alg::NULL, &ZERO);
        self.create_primary(HIERARCHY_ENDORSEMENT, &template)
    }

    fn create_primary(&mut self, hierarchy: u32, template: &[u8]) -> Result<Loaded, TpmError> {
        // No password, no data; no outside information; no registers recorded.
        let sensitive = Writer::new().sized(&[]).sized(&[]).done();
        let parameters = Writer::new().sized(&sensitive).sized(template).sized(&[]).u32(0).done();
        let (handles, response) = self.run(
            Code::CREATE_PRIMARY,
            &[Entity::fixed(hierarchy)],
            &mut [Auth::Password],
            parameters,
            1,
        )?;
        let handle = handles[0];
        let mut reader = Reader::new("the TPM's new key", &response);
        let decoded = reader
            .sized("public area", limits::TPM_KEY_BYTES)
            .map_err(TpmError::from)
            .and_then(|public| Ok(EccKey::decode(public)?));
        match decoded {
            Ok(key) => Ok(Loaded { handle, key }),
            Err(error) => {
                let _ = self.flush(handle);
                Err(error)
            }
        }
    }

    /// Opens a session that is salted to the storage key, runs something in it, closes it.
    pub(crate) fn with_session<R>(
        &mut self,
        policy: bool,
        act: impl FnOnce(&mut Self, &mut Session) -> Result<R, TpmError>,
    ) -> Result<R, TpmError> {
        let storage = self.storage_key()?;
        let mut session = self.start_session(&storage, policy)?;
        let result = act(self, &mut session);
        let closed = self.flush(session.handle);
        let result = result?;
        closed.map(|()| result)
    }

    fn start_session(&mut self, storage: &Loaded, policy: bool) -> Result<Session, TpmError> {
        let entropy = |bytes: &mut [u8]| {
            getrandom::fill(bytes).map_err(|e| TpmError::Entropy { reason: e.to_string() })
        };
        let mut nonce = [0; 32];
        entropy(&mut nonce)?;
        let mut secret = Zeroizing::new([0; 32]);
        let ephemeral = loop {
            entropy(&mut secret[..])?;
            // Once in 2^32 the bytes are no key.
            if let Ok(key) = p256::SecretKey::from_slice(&secret[..]) {
                break key;
            }
        };
        let point = EccPoint::of(&ephemeral.public_key());
        let z = diffie_hellman(ephemeral.to_nonzero_scalar(), storage.key.point.key()?.as_affine());
        let salt = croft_attest::kdf::kdfe(z.raw_secret_bytes(), "SECRET", &point.x, &storage.key.point.x);
        let parameters = Writer::new()
            .sized(&nonce)
            .sized(&point.encode())
            .u8(u8::from(policy))
            .u16(alg::AES)
            .u16(128)
            .u16(alg::CFB)
            .u16(alg::SHA256)
            .done();
        let entities = [storage.entity(), Entity::fixed(HIERARCHY_NULL)];
        let (handles, response) = self.run(Code::START_AUTH_SESSION, &entities, &mut [], parameters, 1)?;
        let mut reader = Reader::new("the TPM's new session", &response);
        let nonce_tpm = reader.sized("nonce", 64)?;
        Ok(Session::new(handles[0], &salt[..], nonce, nonce_tpm))
    }

    /// What the node says to whoever shall vouch for its TPM.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn introduce(&mut self) -> Result<Introduction, TpmError> {
        let introduction = Introduction {
            key: self.attestation_key()?.key.encoded().to_vec(),
            endorsement: self.endorsement_key()?.encoded().to_vec(),
            certificates: self.endorsement_certificate()?.into_iter().collect(),
        };
        introduction.check()?;
        Ok(introduction)
    }

    /// Opens a credential: gives the secret back only where both keys are in this TPM.
    ///
    /// # Errors
    /// [`TpmError::Foreign`] when it was made for another endorsement key or another attestation key.
    pub fn activate_credential(&mut self, credential: &Credential) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        credential.check()?;
        let attestation = self.attestation_key()?;
        self.storage_key()?;
        let endorsement = self.load_endorsement_key()?;
        let parameters = Writer::new().sized(&credential.blob).sized(&credential.secret).done();
        let answer = self.with_session(true, |tpm, session| {
            let entities = [Entity::fixed(HIERARCHY_ENDORSEMENT), Entity::fixed(session.handle)];
            // No nonce, no bound command, no reference, no expiry.
            let unlimited = Writer::new().sized(&[]).sized(&[]).sized(&[]).u32(0).done();
            tpm.run(Code::POLICY_SECRET, &entities, &mut [Auth::Password], unlimited, 0)?;
            let entities = [attestation.entity(), endorsement.entity()];
            let mut auths = [Auth::Password, Auth::Receives(session)];
            let (_, response) = tpm.run(Code::ACTIVATE_CREDENTIAL, &entities, &mut auths, parameters, 0)?;
            let response = Zeroizing::new(response);
            Ok(Zeroizing::new(Reader::new("the credential", &response).sized("secret", 64)?.to_vec()))
        });
        let flushed = self.flush(endorsement.handle);
        let answer = answer?;
        flushed.map(|()| answer)
    }
}
