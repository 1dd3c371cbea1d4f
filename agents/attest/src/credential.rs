//! Credential activation: proof that an attestation key lives in the same TPM as an endorsement key (TPM 2.0 Library,
//! part 1, chapter 24). A replica or bot plays the verifier while a node registers:
//!
//! ```text
//!   node ── Introduction ──▶ Author::introduce: attributes right? certificate of a maker, for this very key?
//!   node ◀── Credential: a secret only that TPM opens, and only beside that key ── Challenge
//!   node: TPM2_ActivateCredential ── the secret ──▶ Challenge::answer ──▶ Voucher, signed, carried by registrations
//! ```
//! A challenge is answered once and dropped; the secret is the verifier's, fresh for each, and never logged.

use croft_protocol::attestation::{AttestationTooLarge, Introduction, SignedVoucher, Voucher};
use croft_protocol::{ChainId, Hash, NodeId, SecretKey};
use p256::ecdh::diffie_hellman;
use zeroize::Zeroizing;

pub use croft_protocol::attestation::Credential;

use crate::certificate::{self, CertificateError};
use crate::kdf::{cfb_encrypt, hmac, kdfa, kdfe};
use crate::public::{EccKey, EccPoint, KeyError};
use crate::wire::Writer;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error(transparent)]
    TooLarge(#[from] AttestationTooLarge),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
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

/// Who vouches for TPMs: a replica or a bot, with the makers that it trusts.
pub struct Author<'a> {
    pub chain: &'a ChainId,
    pub key: &'a SecretKey,
    /// Root certificates of makers, DER.
    pub makers: &'a [&'a [u8]],
}

impl Author<'_> {
    /// Answers a node that introduced itself; the caller knows its key from the transport. A TPM without a certificate
    /// gets a voucher that says so; a wrong certificate gets none.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn introduce(
        &self,
        node: NodeId,
        introduction: &Introduction,
        now_ms: u64,
        entropy: &Zeroizing<[u8; 64]>,
    ) -> Result<(Challenge, Credential), CredentialError> {
        introduction.check()?;
        let attestation = EccKey::decode(&introduction.key)?;
        let endorsement = EccKey::decode(&introduction.endorsement)?;
        let chain: Vec<&[u8]> = introduction.certificates.iter().map(Vec::as_slice).collect();
        let certificate = match chain.split_first() {
            None => None,
            Some((own, issuers)) => {
                Some(certificate::verify(own, issuers, self.makers, &endorsement, now_ms)?)
            }
        };
        Challenge::new(node, &attestation, &endorsement, certificate, entropy)
    }

    /// Vouches, when the node's answer is right.
    ///
    /// # Errors
    /// [`CredentialError::WrongAnswer`].
    pub fn vouch(
        &self,
        challenge: Challenge,
        answer: &[u8],
        height: u64,
    ) -> Result<SignedVoucher, CredentialError> {
        Ok(SignedVoucher::sign(challenge.answer(answer, height)?, self.chain, self.key))
    }
}
