//! Key derivation and the cipher of the TPM, over SHA-256 and AES-128 (TPM 2.0 Library, part 1, 11.4.10).

use aes::cipher::KeyIvInit;
use hmac::{KeyInit, Mac};
use sha2_next::{Digest, Sha256};
use zeroize::Zeroizing;

type HmacSha256 = hmac::Hmac<Sha256>;

/// HMAC-SHA-256 of several parts in a row.
///
/// # Panics
/// Never: HMAC takes keys of every length.
#[must_use]
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = HmacSha256::new_from_slice(key).expect("HMAC takes keys of every length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Whether an HMAC is right, in constant time.
#[must_use]
pub fn hmac_is(key: &[u8], parts: &[&[u8]], claimed: &[u8]) -> bool {
    let Ok(mut mac) = HmacSha256::new_from_slice(key) else { return false };
    for part in parts {
        mac.update(part);
    }
    mac.verify_slice(claimed).is_ok()
}

/// KDFa (SP 800-108 in counter mode) for at most 256 bits: one round.
#[must_use]
pub fn kdfa(key: &[u8], label: &str, u: &[u8], v: &[u8], bits: u32) -> Zeroizing<Vec<u8>> {
    assert!(
        bits <= 256 && bits.is_multiple_of(8),
        "one round of HMAC-SHA-256 is enough for all that is used"
    );
    let round =
        Zeroizing::new(hmac(key, &[&1u32.to_be_bytes(), label.as_bytes(), &[0], u, v, &bits.to_be_bytes()]));
    Zeroizing::new(round[..bits as usize / 8].to_vec())
}

/// KDFe (SP 800-56A) for 256 bits: the secret of a key agreement.
#[must_use]
pub fn kdfe(z: &[u8], label: &str, party_u: &[u8; 32], party_v: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let digest = Sha256::new()
        .chain_update(1u32.to_be_bytes())
        .chain_update(z)
        .chain_update(label.as_bytes())
        .chain_update([0])
        .chain_update(party_u)
        .chain_update(party_v)
        .finalize();
    Zeroizing::new(digest.into())
}

/// AES-128 in CFB mode, in place.
///
/// # Panics
/// When key or initial value do not have 16 bytes.
pub fn cfb_encrypt(key: &[u8], iv: &[u8], data: &mut [u8]) {
    cfb_mode::Encryptor::<aes::Aes128>::new_from_slices(key, iv).expect("16 bytes each").encrypt(data);
}

/// # Panics
/// When key or initial value do not have 16 bytes.
pub fn cfb_decrypt(key: &[u8], iv: &[u8], data: &mut [u8]) {
    cfb_mode::Decryptor::<aes::Aes128>::new_from_slices(key, iv).expect("16 bytes each").decrypt(data);
}
