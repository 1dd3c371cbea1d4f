//! Streams that a replica splices between two identities, and the TLS inside them.
//!
//! ```text
//!   bot ──QUIC──> replica ──QUIC──> node      RelayStream at both ends, spliced in the middle
//!   bot ══════════ TLS ════════════ node      PeerStream: the replica carries what it can't read
//! ```
//! It must never hand on a byte of a stream whose other end has not proved its key: what the replica says
//! about who called is only a hint.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use croft_protocol::{PublicKey, SecretKey, peer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::tls::{self, ExpectedKey, IdentityError};

/// A TLS handshake through a relay takes two round trips; slower than this is nobody.
const HANDSHAKE_MS: u64 = 15_000;

/// TLS over a relayed stream.
pub type PeerStream = TlsStream<RelayStream>;

/// A raw stream through a replica; both ends of one QUIC stream as one.
#[derive(Debug)]
pub struct RelayStream {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
}

impl RelayStream {
    #[must_use]
    pub fn new(send: quinn::SendStream, recv: quinn::RecvStream) -> Self {
        Self { send, recv }
    }

    /// The two halves, to be copied independently.
    #[must_use]
    pub fn into_halves(self) -> (quinn::SendStream, quinn::RecvStream) {
        (self.send, self.recv)
    }
}

impl AsyncRead for RelayStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf)
    }
}

impl AsyncWrite for RelayStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}

/// Why two peers don't talk.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error(
        "the peer proved key {found}, but {expected} was expected: the relay connected us to somebody else"
    )]
    WrongKey { expected: PublicKey, found: PublicKey },
    #[error("the TLS handshake with the peer failed")]
    Handshake(#[source] io::Error),
    #[error("the peer proved no ed25519 key")]
    NoKey,
    #[error("the peer did not finish the handshake within {limit_ms} ms: try again")]
    Slow { limit_ms: u64 },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Speaks TLS as the caller; whoever holds `expected` is the other end, or nobody.
///
/// # Errors
/// [`PeerError`]; a wrong key is named with the expected one.
pub async fn peer_connect<S>(
    stream: S,
    me: &SecretKey,
    expected: PublicKey,
) -> Result<TlsStream<S>, PeerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let verifier = ExpectedKey::new(expected);
    let config = tls::client_config(me, verifier.clone(), peer::ALPN)?;
    let connector = TlsConnector::from(Arc::new(config));
    // TLS wants a name; an IP address is one that is never sent.
    let nobody = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    match timeout(Duration::from_millis(HANDSHAKE_MS), connector.connect(nobody, stream)).await {
        Err(_) => Err(PeerError::Slow { limit_ms: HANDSHAKE_MS }),
        Ok(Ok(stream)) => Ok(TlsStream::Client(stream)),
        Ok(Err(error)) => Err(match verifier.refused() {
            Some(found) => PeerError::WrongKey { expected, found },
            None => PeerError::Handshake(error),
        }),
    }
}

/// Speaks TLS as the called; returns who called.
///
/// # Errors
/// [`PeerError`].
pub async fn peer_accept<S>(stream: S, me: &SecretKey) -> Result<(TlsStream<S>, PublicKey), PeerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(me, peer::ALPN)?));
    let stream = timeout(Duration::from_millis(HANDSHAKE_MS), acceptor.accept(stream))
        .await
        .map_err(|_| PeerError::Slow { limit_ms: HANDSHAKE_MS })?
        .map_err(PeerError::Handshake)?;
    let key = stream.get_ref().1.peer_certificates().and_then(tls::proved_key).ok_or(PeerError::NoKey)?;
    Ok((TlsStream::Server(stream), key))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    /// A relay between two ends that keeps all it sees.
    fn spliced() -> (DuplexStream, DuplexStream, Arc<Mutex<Vec<u8>>>) {
        let (a, a_relay) = duplex(4096);
        let (b, b_relay) = duplex(4096);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (a_read, a_write) = tokio::io::split(a_relay);
        let (b_read, b_write) = tokio::io::split(b_relay);
        for (mut from, mut to) in [(a_read, b_write), (b_read, a_write)] {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(n @ 1..) = from.read(&mut buffer).await {
                    seen.lock().unwrap().extend_from_slice(&buffer[..n]);
                    if to.write_all(&buffer[..n]).await.is_err() {
                        break;
                    }
                }
                let _ = to.shutdown().await;
            });
        }
        (a, b, seen)
    }

    #[tokio::test]
    async fn peers_know_each_other_and_the_relay_sees_no_plain_text() {
        let (a, b, seen) = spliced();
        let called = tokio::spawn(async move {
            let (mut stream, caller) = peer_accept(b, &key(2)).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            (text, caller)
        });
        let mut stream = peer_connect(a, &key(1), key(2).public()).await.unwrap();
        stream.write_all(b"the secret of the farm").await.unwrap();
        stream.shutdown().await.unwrap();
        let (text, caller) = called.await.unwrap();
        assert_eq!(text, "the secret of the farm");
        assert_eq!(caller, key(1).public());
        let seen = seen.lock().unwrap().clone();
        assert!(seen.len() > text.len(), "the relay carried it");
        let found = |needle: &[u8]| seen.windows(needle.len()).any(|window| window == needle);
        assert!(!found(b"secret"), "the relay could read the text");
        assert!(!found(&key(1).public().0), "the relay could read who called");
    }

    #[tokio::test]
    async fn a_relay_that_connects_to_somebody_else_is_caught() {
        let (a, b, _) = spliced();
        let called = tokio::spawn(async move { peer_accept(b, &key(3)).await.map(|_| ()) });
        let error = peer_connect(a, &key(1), key(2).public()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the peer proved key {}, but {} was expected: the relay connected us to somebody else",
                key(3).public(),
                key(2).public()
            )
        );
        assert!(matches!(called.await.unwrap(), Err(PeerError::Handshake(_))));
    }

    #[tokio::test]
    async fn a_relay_that_changes_a_byte_is_caught() {
        let (a, mut a_relay) = duplex(65_536);
        let (b, mut b_relay) = duplex(65_536);
        let tamper = Arc::new(AtomicBool::new(false));
        let relay_tampers = tamper.clone();
        tokio::spawn(async move {
            let (mut ours, mut theirs) = ([0; 4096], [0; 4096]);
            loop {
                tokio::select! {
                    n = a_relay.read(&mut ours) => {
                        let Ok(n @ 1..) = n else { break };
                        if relay_tampers.load(Ordering::SeqCst) {
                            ours[n - 1] ^= 1;
                        }
                        b_relay.write_all(&ours[..n]).await.unwrap();
                    }
                    n = b_relay.read(&mut theirs) => {
                        let Ok(n @ 1..) = n else { break };
                        a_relay.write_all(&theirs[..n]).await.unwrap();
                    }
                }
            }
        });
        let called = tokio::spawn(async move {
            let (mut stream, _) = peer_accept(b, &key(2)).await?;
            let mut byte = [0];
            stream.read_exact(&mut byte).await.map_err(PeerError::Handshake)?;
            Ok::<_, PeerError>(byte)
        });
        let mut stream = peer_connect(a, &key(1), key(2).public()).await.unwrap();
        tamper.store(true, Ordering::SeqCst);
        stream.write_all(b"x").await.unwrap();
        stream.flush().await.unwrap();
        called.await.unwrap().unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_answers_is_given_up() {
        let (a, _b) = duplex(65_536);
        let error = peer_connect(a, &key(1), key(2).public()).await.unwrap_err();
        assert_eq!(error.to_string(), "the peer did not finish the handshake within 15000 ms: try again");
    }
}
