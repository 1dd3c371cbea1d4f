//! The formats of TPM 2.0 that cross a machine's border, and what a node's quote is worth. No I/O.
//!
//! ```text
//!   event log ──replay──▶ registers ──digest──┐
//!   chain, header, node, statement ──nonce────┼──▶ quote, signed by the attestation key ──▶ assess() ──▶ trust class
//!   endorsement key ──credential──▶ voucher ──┘                                                  └──▶ why not more
//! ```
//! [`assess()`] tells forgeries, which are refused, from honest machines that run something else, which are worth
//! less; every reason is a value of its own. [`review`] does the same for whoever doubts what the ledger found.
//! [`certificate`] tells a maker's endorsement key from a program's, [`credential`] proves that an attestation key lives
//! beside it, [`event_log`] reads what the firmware measured, [`predict`] what a release's boot file leaves in
//! the registers, [`public`] and [`quote`] what the TPM signed.
//!
//! It must never believe a field of a node that the TPM did not sign, nor read a length that it did not bound.

pub mod assess;
pub mod certificate;
pub mod credential;
pub mod event_log;
pub mod kdf;
pub mod pcr;
pub mod predict;
pub mod public;
pub mod quote;
pub mod review;
#[cfg(feature = "soft")]
pub mod soft;
pub mod wire;

pub use assess::{Assessment, Claim, Degradation, Endorsement, Policy, Refusal, assess};
pub use event_log::{EventLog, MeasuredBoot};
pub use pcr::{PcrSelection, PcrValues};
pub use public::{EccKey, EccPoint};
pub use quote::{Quote, Quoted};
pub use wire::{FormatError, Reader, Writer};
