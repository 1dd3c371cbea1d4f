//! Credential activation: proof that an attestation key lives in the same TPM as an endorsement key (TPM 2.0 Library,
//! part 1, chapter 24). A replica or bot plays the verifier while a node registers:
//!
//! ```text
//!   node ── endorsement key, its certificate, attestation key ──▶ verifier: attributes right? certificate of a maker?
//!   node ◀── Credential: a secret only that TPM opens, and only beside that key ── Challenge::new
//!   node: TPM2_ActivateCredential ── the secret ──▶ Challenge::answer ──▶ Voucher, signed, carried by registrations
//! ```
//! A challenge is answered once and dropped; the secret is the verifier's, fresh for each, and never logged.

use croft_protocol::attestation::Voucher;
use croft_protocol::{Hash, NodeId};
use p256::ecdh::diffie_hellman;
use zeroize::Zeroizing;

use crate::kdf::{cfb_encrypt, hmac, kdfa, kdfe};
use crate::public::{EccKey, EccPoint, KeyError};
use crate::wire::Writer;

/// What a TPM needs to give the secret back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Contents of TPM2B_ID_OBJECT.
    pub blob: Vec<u8>,
    /// Contents of TPM2B_ENCRYPTED_SECRET.
    pub secret: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the random bytes are no key of P-256: draw others")]
    Entropy,
    #[error(
        "the node did not open the credential: its attestation key is not in the TPM of the endorsement key"
    )]
    WrongAnswer,
}

/// TPM2_MakeCredential in software: wraps `secret` so that only the TPM with the endorsement key, holding an object of
/// this name, gives it back. `ephemeral` are 32 fresh random bytes.
///
/// # Errors
/// [`CredentialError`].
pub fn make_credential(
    endorsement: &EccKey,
    name: &[u8; 34],
    secret: &[u8; 32],
    ephemeral: &[u8; 32],
) -> Result<Credential, CredentialError> {
    endorsement.check_endorsement()?;
    let ephemeral = p256::SecretKey::from_slice(ephemeral).map_err(|_| CredentialError::Entropy)?;
    let point = EccPoint::of(&ephemeral.public_key());
    let z = diffie_hellman(ephemeral.to_nonzero_scalar(), endorsement.point.key()?.as_affine());
    let seed = kdfe(z.raw_secret_bytes(), "IDENTITY", &point.x, &endorsement.point.x);
    let cipher = kdfa(&seed[..], "STORAGE", name, &[], 128);
    let integrity = kdfa(&seed[..], "INTEGRITY", &[], &[], 256);
    let mut sealed = Writer::new().sized(secret).done();
    cfb_encrypt(&cipher, &[0; 16], &mut sealed);
    let mac = hmac(&integrity, &[&sealed, name]);
    Ok(Credential { blob: Writer::new().sized(&mac).bytes(&sealed).done(), secret: point.encode() })
}

/// The verifier's side while it waits for the secret.
#[derive(Debug)]
pub struct Challenge {
    secret: Zeroizing<[u8; 32]>,
    node: NodeId,
    key: Hash,
    endorsement: Hash,
    certificate: Option<Hash>,
}

impl Challenge {
    /// `entropy` are 64 fresh random bytes; `certificate` is the hash of the endorsement key's certificate when the
    /// caller checked it up to a maker's root, and that it is for this very key.
    ///
    /// # Errors
    /// [`CredentialError`] when a key is not of its role.
    pub fn new(
        node: NodeId,
        attestation: &EccKey,
        endorsement: &EccKey,
        certificate: Option<Hash>,
        entropy: &Zeroizing<[u8; 64]>,
    ) -> Result<(Self, Credential), CredentialError> {
        attestation.check_attestation()?;
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(&entropy[..32]);
        let ephemeral = Zeroizing::new(<[u8; 32]>::try_from(&entropy[32..]).expect("the other half"));
        let credential = make_credential(endorsement, &attestation.name(), &secret, &ephemeral)?;
        let challenge =
            Self { secret, node, key: attestation.hash(), endorsement: endorsement.hash(), certificate };
        Ok((challenge, credential))
    }

    /// What may be vouched for when the node's answer is right.
    ///
    /// # Errors
    /// [`CredentialError::WrongAnswer`].
    pub fn answer(self, answer: &[u8], height: u64) -> Result<Voucher, CredentialError> {
        // Both under a key of this one comparison, so that the time it takes tells nothing of the secret.
        let same = hmac(&self.secret[..], &[b"answer"]) == hmac(answer, &[b"answer"]);
        if !same {
            return Err(CredentialError::WrongAnswer);
        }
        let Self { node, key, endorsement, certificate, .. } = self;
        Ok(Voucher { node, key, endorsement, certificate, height })
    }
}
