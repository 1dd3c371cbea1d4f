//! The machine's TPM 2.0: what it is, what it measured, what it keeps and signs for the node.
//!
//! ```text
//!   Transport (/dev/tpmrm0) ◀── Tpm: command, sessions, retries ◀── seal, nv, keys, quote, boot_log
//! ```
//! Own marshalling of the twenty commands that are needed, with a bound on each field: the image is static, so there is
//! no tss2, and the crates that know all of TPM 2.0 change their types with every release.
//!
//! It must never wait without limit, send a secret over the bus in the clear, leave a key or session behind in a TPM
//! without a resource manager, or clear, lock or take ownership of anything that is not Croft's.
//!
//! Secrets go through sessions salted to the storage key, with the parameter encrypted (AES-128-CFB): who listens on the
//! bus learns nothing. Who *answers* in the TPM's place during a boot could offer a key of his own; only an activated
//! attestation key (`croft_attest::credential`) tells the grid that it speaks with the real one.

pub mod boot_log;
mod client;
pub mod code;
pub mod driver;
mod keys;
mod nv;
mod quote;
mod seal;
mod session;
#[cfg(feature = "swtpm")]
pub mod swtpm;
pub mod transport;

pub use client::{Lockout, Properties, Tpm, TpmError};
pub use keys::Loaded;
pub use nv::{COUNTER_INDEX, EK_CERTIFICATE_INDEX, FLOOR_INDEX, IDENTITY_INDEX, NvState};
pub use quote::Moment;
pub use seal::{SealPolicy, Sealed};
pub use transport::{FdTransport, Transport, TransportError};
