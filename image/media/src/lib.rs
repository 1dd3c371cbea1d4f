//! Boot media from one signed boot file.
//!
//! The boot file is an EFI-stub kernel with everything built in; whoever makes it hands its bytes in. This crate
//! signs it, and wraps the same bytes for every medium: a USB disk image, a hybrid ISO, a netboot folder. The
//! farm's addition (`croft_protocol::addition`) goes beside it, unread.
//!
//! Equal inputs give equal bytes: no clock, no randomness and no host name goes into a medium. Must never write to a
//! device that it was not told to, and never over a key.
//!
//! ```text
//!   boot file ── authenticode::sign (db key) ──▶ signed boot file ─┬─▶ usb::image ──▶ flash::write
//!   addition  ─────────────────────────────────────────────────────┼─▶ iso::image
//!                                                                  └─▶ netboot::write ──▶ serve::*
//!   keys::KeyFolder ── enrolment ──▶ PK.auth, KEK.auth, db.auth, certificates
//! ```

pub mod authenticode;
pub mod efi_variable;
pub mod esp;
mod fat;
pub mod flash;
pub mod gpt;
pub mod iso;
pub mod keys;
pub mod netboot;
pub mod pe;
pub mod pkcs7;
pub mod rsa;
pub mod serve;
pub mod usb;
pub mod x509;

/// The largest boot file that any medium takes; the budget is 32 MB, and a mistake must not fill a disk.
pub const BOOT_FILE_BYTES_MAX: usize = 256 * 1024 * 1024;

#[cfg(test)]
mod testing;

/// SHA-256, which everything here is identified by.
fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}
