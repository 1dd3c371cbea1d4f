//! Verifies headers, certificates and proofs
