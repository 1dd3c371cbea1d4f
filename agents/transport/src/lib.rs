//! QUIC between ed25519 identities
