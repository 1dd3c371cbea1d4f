//! Connections between ed25519 identities: QUIC to replicas, and TLS through replicas to peers.
//!
//! Both ends of every connection are known by their raw public keys (RFC 7250); there are no certificates,
//! no names to resolve, no session tickets and no 0-RTT. This crate moves frames and knows who is at the
//! other end. It must never decide what a peer may do, never believe what a replica says (that is for
//! `light`, which [`verified`] asks), and never wait without a time limit.
//!
//! Where to look: [`Endpoint`] and [`Connection`] are QUIC; [`frame`] is how messages lie on a stream;
//! [`peer_connect`] and [`peer_accept`] speak TLS inside a relayed stream; [`Client`] asks one of
//! several pinned replicas; [`verified::Verified`] is what nodes and bots use: several replicas at once, and
//! nothing that was not proved.

mod client;
mod endpoint;
pub mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod relay;
mod tls;
pub mod verified;

pub use client::{Answer, Client, ClientError, Follow, Listener, Relayed, ReplicaProblem, Submitted};
pub use endpoint::{AcceptError, BindError, ConnectError, Connection, Endpoint, Incoming, LostError};
pub use frame::{Exchange, FrameError, FrameReader, request};
pub use relay::{PeerError, PeerStream, RelayStream, peer_accept, peer_connect};
pub use tls::IdentityError;

/// Readable ends of QUIC streams.
pub use quinn::{RecvStream, SendStream};
