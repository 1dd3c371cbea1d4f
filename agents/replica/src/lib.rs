//! The ledger's agent: state machine, store, ordering and QUIC API
