//! The ledger's state machine
