//! QUIC endpoints and connections whose both ends are known by their keys.
//!
//! ```text
//!   connect(address, key) ──handshake──> Connection ──idle, closed, broken──> LostError
//!         └─> ConnectError                    ^
//!   accept ─> Incoming ──finish──────────────┘
//! ```
//! It must never hand out a connection whose other end has not proved its key.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use croft_protocol::{PublicKey, SecretKey, api};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, IdleTimeout, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use crate::tls::{self, ExpectedKey, IdentityError};

/// A silent connection is given up after this long: followers hear of a dead machine that much later, and
/// a machine that stalls for longer loses its connection.
const IDLE_MS: u32 = 15_000;
/// Often enough that two lost packets don't end an idle connection.
const KEEP_ALIVE_MS: u64 = 4_000;
/// A handshake is a few packets; more means that nobody is there.
const HANDSHAKE_MS: u64 = 10_000;
/// Requests that one peer may have open at a time.
const PEER_STREAMS: u32 = 64;
/// What one stream may send ahead of its reader: a blob fits, so that one read never stalls another.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024 + 64 * 1024;
/// What a replica may send a client ahead of its readers: some blobs at a time.
const CLIENT_WINDOW_BYTES: u32 = 4 * STREAM_WINDOW_BYTES;
/// What a stranger may send a replica ahead of its readers: one blob. Times all connections, this is the
/// memory that strangers can fill.
const SERVER_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES;
/// Handshakes that wait to be looked at; the rest are dropped before any cryptography.
const WAITING_HANDSHAKES: usize = 256;
/// How long a closing endpoint waits for its goodbyes to leave.
const CLOSE_MS: u64 = 500;

/// An address on which no endpoint can be opened, or a key that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "can't open UDP address {address}: is another program on this port, and does the machine have this address?"
    )]
    Socket { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the TLS library lacks the cipher that QUIC starts with")]
    Cipher(#[from] NoInitialCipherSuite),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "{address} proved key {found}, but {expected} was expected: somebody else answers there, or the pinned key is old"
    )]
    WrongKey { address: SocketAddr, expected: PublicKey, found: PublicKey },
    #[error(
        "nobody answers at {address} within {limit_ms} ms: is {} running, and does UDP get through to it?",
        expected.short()
    )]
    Silent { address: SocketAddr, expected: PublicKey, limit_ms: u64 },
    #[error("{} at {address} turns us away: {reason}", expected.short())]
    Refused { address: SocketAddr, expected: PublicKey, reason: String },
    #[error("the handshake with {} at {address} failed", expected.short())]
    Handshake { address: SocketAddr, expected: PublicKey, source: ConnectionError },
    #[error("can't send to {address}: is there a route to it?")]
    Local { address: SocketAddr, source: quinn::ConnectError },
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Why an incoming connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("the handshake with {address} took more than {limit_ms} ms")]
    Slow { address: SocketAddr, limit_ms: u64 },
    #[error("the handshake with {address} failed")]
    Handshake { address: SocketAddr, source: ConnectionError },
    #[error("{address} proved no ed25519 key")]
    NoKey { address: SocketAddr },
}

/// Why a connection ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LostError {
    #[error("{} closed the connection: {reason}", peer.short())]
    Closed { peer: PublicKey, reason: String },
    #[error("{} has not been heard for {IDLE_MS} ms", peer.short())]
    Silent { peer: PublicKey },
    #[error("the connection was closed at this end")]
    Here,
    #[error("the connection to {} broke", peer.short())]
    Broken { peer: PublicKey, source: ConnectionError },
}

impl LostError {
    fn new(peer: PublicKey, error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                Self::Closed { peer, reason: String::from_utf8_lossy(&close.reason).into_owned() }
            }
            ConnectionError::TimedOut => Self::Silent { peer },
            ConnectionError::LocallyClosed => Self::Here,
            source => Self::Broken { peer, source },
        }
    }
}

/// One UDP socket and one identity, from which connections go out and to which they come in.
#[derive(Debug, Clone)]
pub struct Endpoint {
    inner: quinn::Endpoint,
    me: Arc<SecretKey>,
    transport: Arc<TransportConfig>,
}

fn transport(receive_window_bytes: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)))
        .max_concurrent_bidi_streams(VarInt::from_u32(PEER_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(receive_window_bytes))
        .send_window(u64::from(STREAM_WINDOW_BYTES))
        .datagram_receive_buffer_size(None);
    config
}

impl Endpoint {
    /// An endpoint that only opens connections, on any free port, over IPv6 and IPv4 or, where the machine
    /// has no IPv6, over IPv4 alone.
    ///
    /// # Errors
    /// [`BindError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn client(me: &SecretKey) -> Result<Self, BindError> {
        let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let inner = quinn::Endpoint::client(both)
            .or_else(|_| quinn::Endpoint::client(v4))
            .map_err(|source| BindError::Socket { address: v4, source })?;
        Ok(Self { inner, me: Arc::new(me.clone()), transport: Arc::new(transport(CLIENT_WINDOW_BYTES)) })
    }

    /// An endpoint that accepts connections at an address; port 0 takes a free one.
    ///
    /// # Errors
    /// [`BindError`] names the address.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn server(me: &SecretKey, address: SocketAddr) -> Result<Self, BindError> {
        let transport = Arc::new(transport(SERVER_WINDOW_BYTES));
        let crypto = QuicServerConfig::try_from(tls::server_config(me, api::ALPN)?)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(transport.clone()).max_incoming(WAITING_HANDSHAKES);
        let inner = quinn::Endpoint::server(config, address)
            .map_err(|source| BindError::Socket { address, source })?;
        Ok(Self { inner, me: Arc::new(me.clone()), transport })
    }

    /// The address of our socket.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Our own key.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.me.public()
    }

    pub(crate) fn secret(&self) -> &SecretKey {
        &self.me
    }

    /// Connects to whoever holds a key, and to nobody else.
    ///
    /// # Errors
    /// [`ConnectError`]; when the other end proved another key, it names both.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected: PublicKey,
    ) -> Result<Connection, ConnectError> {
        self.connect_within(address, expected, Duration::from_millis(HANDSHAKE_MS)).await
    }

    /// As [`Self::connect`], with a time of its own.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_within(
        &self,
        address: SocketAddr,
        expected: PublicKey,
        within: Duration,
    ) -> Result<Connection, ConnectError> {
        let verifier = ExpectedKey::new(expected);
        let tls = tls::client_config(&self.me, verifier.clone(), api::ALPN).map_err(BindError::from)?;
        let crypto = QuicClientConfig::try_from(tls).map_err(BindError::from)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.transport.clone());
        let connecting = self
            .inner
            .connect_with(config, address, &server_name(address.ip()))
            .map_err(|source| ConnectError::Local { address, source })?;
        let silent = || ConnectError::Silent {
            address,
            expected,
            limit_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        };
        let error = match timeout(within, connecting).await {
            Err(_) | Ok(Err(ConnectionError::TimedOut)) => return Err(silent()),
            Ok(Ok(inner)) => return Ok(Connection { inner, peer: expected }),
            Ok(Err(error)) => error,
        };
        Err(match (verifier.refused(), error) {
            (Some(found), _) => ConnectError::WrongKey { address, expected, found },
            (None, ConnectionError::ApplicationClosed(close)) => ConnectError::Refused {
                address,
                expected,
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            (None, source) => ConnectError::Handshake { address, expected, source },
        })
    }

    /// The next connection that somebody tries to open; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        self.inner.accept().await.map(|inner| Incoming { inner })
    }

    /// Connections that are open or being opened.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.inner.open_connections()
    }

    /// Ends every connection with a reason and waits a moment until the others have been told.
    pub async fn close(&self, reason: &str) {
        self.inner.close(VarInt::from_u32(0), reason.as_bytes());
        // Those who don't hear it find out by silence.
        let _ = timeout(Duration::from_millis(CLOSE_MS), self.inner.wait_idle()).await;
    }
}

impl Endpoint {
    /// Closes and waits until the address is free for the next endpoint, which takes until every clone and
    /// every connection is dropped; gives up waiting after a second.
    pub async fn shut_down(self, reason: &str) {
        self.close(reason).await;
        let address = self.inner.local_addr();
        drop(self);
        let Ok(address) = address else { return };
        // The socket goes with the library's own task, which tells nobody when it is done.
        let free = async {
            while std::net::UdpSocket::bind(address).is_err() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let _ = timeout(Duration::from_millis(2 * CLOSE_MS), free).await;
    }
}

/// TLS wants a name; an IP address is one that is never sent.
fn server_name(ip: IpAddr) -> String {
    ip.to_string()
}

/// A connection that somebody wants; nothing was spent on it yet.
#[derive(Debug)]
pub struct Incoming {
    inner: quinn::Incoming,
}

impl Incoming {
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// Whether the other end has shown that it can be reached under its address.
    #[must_use]
    pub fn is_validated(&self) -> bool {
        self.inner.remote_address_validated()
    }

    /// Makes the other end show that it can be reached under its address; it comes back if it can.
    pub fn demand_validation(self) {
        // Fails only for a validated address, which need not show it again.
        let _ = self.inner.retry();
    }

    /// Turns it away without any cryptography.
    pub fn refuse(self) {
        self.inner.refuse();
    }

    /// Does the handshake.
    ///
    /// # Errors
    /// [`AcceptError`] names the address.
    pub async fn finish(self) -> Result<Connection, AcceptError> {
        let address = self.inner.remote_address();
        let failed = |source| AcceptError::Handshake { address, source };
        let connecting = self.inner.accept().map_err(failed)?;
        let inner = timeout(Duration::from_millis(HANDSHAKE_MS), connecting)
            .await
            .map_err(|_| AcceptError::Slow { address, limit_ms: HANDSHAKE_MS })?
            .map_err(failed)?;
        let peer = inner
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
            .and_then(|certificates| tls::proved_key(&certificates))
            .ok_or(AcceptError::NoKey { address })?;
        Ok(Connection { inner, peer })
    }
}

/// A QUIC connection between two proved keys. Clones are the same connection.
#[derive(Debug, Clone)]
pub struct Connection {
    inner: quinn::Connection,
    peer: PublicKey,
}

impl Connection {
    /// The key that the other end proved.
    #[must_use]
    pub fn peer(&self) -> PublicKey {
        self.peer
    }

    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// A number that no other connection of this process has while this one lives.
    #[must_use]
    pub fn id(&self) -> usize {
        self.inner.stable_id()
    }

    /// Opens a stream; waits while too many are open.
    ///
    /// # Errors
    /// [`LostError`].
    pub async fn open(&self) -> Result<(quinn::SendStream, quinn::RecvStream), LostError> {
        self.inner.open_bi().await.map_err(|e| LostError::new(self.peer, e))
    }

    /// The next stream that the other end opens.
    ///
    /// # Errors
    /// [`LostError`].
    pub async fn accept(&self) -> Result<(quinn::SendStream, quinn::RecvStream), LostError> {
        self.inner.accept_bi().await.map_err(|e| LostError::new(self.peer, e))
    }

    /// Waits for the end.
    pub async fn closed(&self) -> LostError {
        LostError::new(self.peer, self.inner.closed().await)
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        self.inner.close_reason().is_none()
    }

    /// Ends it and tells the other end why.
    pub fn close(&self, reason: &str) {
        self.inner.close(VarInt::from_u32(0), reason.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use croft_protocol::api::{Request, Response};
    use croft_protocol::limits;

    use super::*;
    use crate::frame;

    const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    const PATIENCE: Duration = Duration::from_secs(20);

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    /// Accepts one connection and answers every request on it with a list of one `true`.
    fn serve(server: Endpoint) -> tokio::task::JoinHandle<Result<PublicKey, AcceptError>> {
        tokio::spawn(async move {
            let connection = server.accept().await.expect("open").finish().await?;
            let peer = connection.peer();
            while let Ok((mut send, mut recv)) = connection.accept().await {
                let asked: Result<Request, _> =
                    frame::read(&mut recv, "the request", limits::REQUEST_BYTES, PATIENCE).await;
                match asked {
                    Ok(_) => frame::write(&mut send, "it", &Response::Blobs(vec![true]), 64, PATIENCE)
                        .await
                        .unwrap(),
                    Err(error) => connection.close(&error.to_string()),
                }
            }
            Ok(peer)
        })
    }

    #[tokio::test]
    async fn both_ends_learn_each_others_key() {
        let server = Endpoint::server(&key(1), LOOPBACK).unwrap();
        let address = server.local_address().unwrap();
        let served = serve(server);
        let client = Endpoint::client(&key(2)).unwrap();
        let connection = client.connect(address, key(1).public()).await.unwrap();
        assert_eq!(connection.peer(), key(1).public());
        let response = frame::request(&connection, &Request::Tip, 64, PATIENCE).await.unwrap();
        assert_eq!(response, Response::Blobs(vec![true]));
        connection.close("done");
        assert_eq!(served.await.unwrap().unwrap(), key(2).public());
    }

    #[tokio::test]
    async fn a_server_with_another_key_is_refused_and_both_keys_are_named() {
        let server = Endpoint::server(&key(1), LOOPBACK).unwrap();
        let address = server.local_address().unwrap();
        let served = serve(server);
        let client = Endpoint::client(&key(2)).unwrap();
        let error = client.connect(address, key(3).public()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{address} proved key {}, but {} was expected: somebody else answers there, or the pinned key is old",
                key(1).public(),
                key(3).public()
            )
        );
        assert!(matches!(served.await.unwrap(), Err(AcceptError::Handshake { .. })));
    }

    #[tokio::test]
    async fn a_server_that_does_not_hold_the_key_it_shows_is_refused() {
        let mut tls = tls::server_config(&key(9), api::ALPN).unwrap();
        tls.cert_resolver = Arc::new(rustls::server::AlwaysResolvesServerRawPublicKeys::new(
            tls::tests::impostor(&key(1).public(), &key(9)),
        ));
        let crypto = QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let server = quinn::Endpoint::server(config, LOOPBACK).unwrap();
        let address = server.local_addr().unwrap();
        let served = tokio::spawn(async move { server.accept().await.unwrap().await.map(|_| ()) });
        let client = Endpoint::client(&key(2)).unwrap();
        let error = client.connect(address, key(1).public()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
        assert!(served.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_client_that_does_not_hold_the_key_it_shows_is_refused() {
        let server = Endpoint::server(&key(1), LOOPBACK).unwrap();
        let address = server.local_address().unwrap();
        let served = serve(server);
        let client = quinn::Endpoint::client(LOOPBACK).unwrap();
        let tls = tls::client_config_with(
            tls::tests::impostor(&key(2).public(), &key(9)),
            key(2).public(),
            ExpectedKey::new(key(1).public()),
            api::ALPN,
        );
        let crypto = QuicClientConfig::try_from(tls.unwrap()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let connecting = client.connect_with(config, address, "127.0.0.1").unwrap();
        // The client is done before the server has seen its proof; then it is thrown out.
        if let Ok(connection) = connecting.await {
            connection.closed().await;
        }
        assert!(matches!(served.await.unwrap(), Err(AcceptError::Handshake { .. })));
    }

    #[tokio::test]
    async fn a_client_without_a_key_is_refused() {
        let server = Endpoint::server(&key(1), LOOPBACK).unwrap();
        let address = server.local_address().unwrap();
        let served = serve(server);
        let mut tls = tls::client_config(&key(2), ExpectedKey::new(key(1).public()), api::ALPN).unwrap();
        #[derive(Debug)]
        struct NoKey;
        impl rustls::client::ResolvesClientCert for NoKey {
            fn resolve(
                &self,
                _: &[&[u8]],
                _: &[rustls::SignatureScheme],
            ) -> Option<Arc<rustls::sign::CertifiedKey>> {
                None
            }
            fn has_certs(&self) -> bool {
                false
            }
        }
        tls.client_auth_cert_resolver = Arc::new(NoKey);
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let client = quinn::Endpoint::client(LOOPBACK).unwrap();
        if let Ok(connection) = client.connect_with(config, address, "127.0.0.1").unwrap().await {
            connection.closed().await;
        }
        assert!(matches!(served.await.unwrap(), Err(AcceptError::Handshake { .. })));
    }

    #[tokio::test]
    async fn an_oversized_frame_ends_at_its_length_on_both_sides() {
        let server = Endpoint::server(&key(1), LOOPBACK).unwrap();
        let address = server.local_address().unwrap();
        let served = serve(server);
        let client = Endpoint::client(&key(2)).unwrap();
        let connection = client.connect(address, key(1).public()).await.unwrap();
        let error = frame::request(&connection, &Request::Tip, 4, PATIENCE).await.unwrap_err();
        let frame::Exchange::Unanswered(cause) = error else { panic!("{error}") };
        assert_eq!(cause.to_string(), "the response has 6 bytes, more than the limit of 4");
        let (mut send, _recv) = connection.open().await.unwrap();
        send.write_all(&(limits::REQUEST_BYTES as u32 + 1).to_le_bytes()).await.unwrap();
        let LostError::Closed { reason, .. } = connection.closed().await else { panic!() };
        assert_eq!(reason, "the request has 131073 bytes, more than the limit of 131072");
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_machine_that_does_not_answer_is_named_with_a_remedy() {
        let silent = std::net::UdpSocket::bind(LOOPBACK).unwrap();
        let address = silent.local_addr().unwrap();
        let client = Endpoint::client(&key(2)).unwrap();
        let within = Duration::from_millis(50);
        let error = client.connect_within(address, key(1).public(), within).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "nobody answers at {address} within 50 ms: is {} running, and does UDP get through to it?",
                key(1).public().short()
            )
        );
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = Endpoint::server(&key(1), LOOPBACK).unwrap();
        let address = first.local_address().unwrap();
        let error = Endpoint::server(&key(1), address).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "can't open UDP address {address}: is another program on this port, and does the machine have this address?"
            )
        );
    }
}
