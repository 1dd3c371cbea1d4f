//! TLS 1.3 with raw ed25519 public keys at both ends (RFC 8446, RFC 7250, RFC 8410).
//!
//! A handshake proves that the other end holds the secret key of the public key that it shows. What the
//! key may do is for others to decide. It must never accept X.509, TLS 1.2, another signature scheme, a
//! session ticket or early data.

use std::sync::{Arc, Mutex, PoisonError};

use croft_protocol::{PublicKey, SecretKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};

/// `SubjectPublicKeyInfo` of an ed25519 key up to the 32 key bytes (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key with which no TLS configuration can be made.
#[derive(Debug, thiserror::Error)]
#[error("the identity {key} can't be used for TLS: make a new one")]
pub struct IdentityError {
    pub key: PublicKey,
    pub source: Error,
}

/// The DER form of a public key.
fn spki(key: &PublicKey) -> Vec<u8> {
    [&SPKI_PREFIX[..], &key.0].concat()
}

/// The key in a `SubjectPublicKeyInfo`, if it is an ed25519 key in its one DER form.
pub(crate) fn key_of_spki(der: &[u8]) -> Option<PublicKey> {
    let key = der.strip_prefix(&SPKI_PREFIX)?;
    Some(PublicKey(key.try_into().ok()?))
}

/// The key that the other end proved, from what TLS keeps of its certificate message.
pub(crate) fn proved_key(certificates: &[CertificateDer<'_>]) -> Option<PublicKey> {
    match certificates {
        [one] => key_of_spki(one),
        _ => None,
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certified(me: &SecretKey) -> Result<Arc<CertifiedKey>, IdentityError> {
    let public = me.public();
    let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(me.pkcs8_der()));
    let signer = rustls::crypto::ring::sign::any_supported_type(&secret)
        .map_err(|source| IdentityError { key: public, source })?;
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki(&public))], signer)))
}

/// For the end that opens the connection: it refuses everybody but `verifier.expected`.
pub(crate) fn client_config(
    me: &SecretKey,
    verifier: Arc<ExpectedKey>,
    alpn: &[u8],
) -> Result<ClientConfig, IdentityError> {
    client_config_with(certified(me)?, me.public(), verifier, alpn)
}

pub(crate) fn client_config_with(
    certified: Arc<CertifiedKey>,
    me: PublicKey,
    verifier: Arc<ExpectedKey>,
    alpn: &[u8],
) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| IdentityError { key: me, source })?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// For the end that accepts: any key will do, if the other end proves that it holds it.
pub(crate) fn server_config(me: &SecretKey, alpn: &[u8]) -> Result<ServerConfig, IdentityError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| IdentityError { key: me.public(), source })?
        .with_client_cert_verifier(Arc::new(AnyKey { provider: provider() }))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(me)?)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn verify_signature(
    provider: &CryptoProvider,
    message: &[u8],
    cert: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    if signature.scheme != SignatureScheme::ED25519 {
        return Err(Error::InvalidCertificate(CertificateError::BadSignature));
    }
    let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
    verify_tls13_signature_with_raw_key(
        message,
        &spki,
        signature,
        &provider.signature_verification_algorithms,
    )
}

fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken here".to_owned())
}

/// Accepts exactly one key, and remembers another one that came instead, so that the error can name it.
#[derive(Debug)]
pub(crate) struct ExpectedKey {
    expected: PublicKey,
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<PublicKey>>,
}

impl ExpectedKey {
    pub(crate) fn new(expected: PublicKey) -> Arc<Self> {
        Arc::new(Self { expected, provider: provider(), found: Mutex::new(None) })
    }

    /// The wrong key that was refused, if that is what happened.
    pub(crate) fn refused(&self) -> Option<PublicKey> {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for ExpectedKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key = key_of_spki(end_entity)
            .filter(|_| intermediates.is_empty())
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if key == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(&self.provider, message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct AnyKey {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyKey {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        key_of_spki(end_entity)
            .filter(|_| intermediates.is_empty())
            .map(|_| ClientCertVerified::assertion())
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(&self.provider, message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Shows one key and signs with another: what a thief of identities would do.
    pub(crate) fn impostor(shown: &PublicKey, held: &SecretKey) -> Arc<CertifiedKey> {
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(held.pkcs8_der()));
        let signer = rustls::crypto::ring::sign::any_supported_type(&secret).unwrap();
        Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki(shown))], signer))
    }

    #[test]
    fn a_key_survives_its_der_form_and_other_algorithms_are_refused() {
        let key = PublicKey([5; 32]);
        assert_eq!(key_of_spki(&spki(&key)), Some(key));
        let mut x25519 = spki(&key);
        x25519[8] = 0x6e;
        assert_eq!(key_of_spki(&x25519), None);
        assert_eq!(key_of_spki(&spki(&key)[..43]), None);
        assert_eq!(key_of_spki(&[spki(&key), vec![0]].concat()), None);
    }
}
