//! Signatures of commands: one rule, with the same answer for one alone and for many together.
//!
//! A replica checks thousands of commands a second, and together they cost half. The equation of RFC 8032 can be checked
//! with or without the cofactor; checked together it has to be with, and then every checker must do so, or replicas would
//! judge crafted signatures differently. The rule is algorithm 2 of "Taming the Many EdDSAs" (Chalkias, Garillot,
//! Nikolaenko 2020): keys and nonces in their one canonical encoding, no key of small order, a scalar below the order of
//! the group, and the equation with the cofactor. As with `verify_strict`, nobody can sign for another, turn one signature
//! into a second one, or sign two messages with one signature; only a key's owner can make signatures on which the two
//! rules differ. All other signatures are checked alone, by `verify_strict` ([`crate::keys`]).

use std::sync::LazyLock;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::SeedableRng as _;
use curve25519_dalek::constants::EIGHT_TORSION;
use ed25519_zebra::{VerificationKey, VerificationKeyBytes, batch};
use sha2::{Digest as _, Sha256};

use crate::{PublicKey, Signature};

/// That a key signed a message.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) key: PublicKey,
    pub(crate) signature: Signature,
    pub(crate) message: Vec<u8>,
}

impl Claim {
    /// What the equation alone does not ask.
    fn is_well_formed(&self) -> bool {
        let (nonce, _) = self.signature.0.split_first_chunk::<32>().expect("a signature has 64 bytes");
        is_canonical(&self.key.0) && !SMALL_ORDER.contains(&self.key.0) && is_canonical(nonce)
    }

    fn zebra(&self) -> ed25519_zebra::Signature {
        ed25519_zebra::Signature::from_bytes(&self.signature.0)
    }

    /// Checks one alone.
    pub(crate) fn holds(&self) -> bool {
        self.is_well_formed()
            && VerificationKey::try_from(self.key.0)
                .and_then(|key| key.verify(&self.zebra(), &self.message))
                .is_ok()
    }
}

/// Checks all together: whether each of them would hold alone.
pub(crate) fn all_hold(claims: &[Claim]) -> bool {
    if !claims.iter().all(Claim::is_well_formed) {
        return false;
    }
    let mut verifier = batch::Verifier::new();
    let mut seed = Sha256::new_with_prefix(b"croft/batch/1");
    for claim in claims {
        verifier.queue((VerificationKeyBytes::from(claim.key.0), claim.zebra(), &claim.message));
        seed.update(claim.key.0);
        seed.update(claim.signature.0);
        seed.update(Sha256::digest(&claim.message));
    }
    // The weights are a function of all that is checked: whoever chooses one of them changes all weights, and the answer
    // needs no source of randomness.
    verifier.verify(ChaCha20Rng::from_seed(seed.finalize().into())).is_ok()
}

static SMALL_ORDER: LazyLock<[[u8; 32]; 8]> =
    LazyLock::new(|| EIGHT_TORSION.map(|point| point.compress().to_bytes()));

/// Whether these bytes are how a point is written, if they are a point: y below the field's prime, and no sign on x = 0.
fn is_canonical(bytes: &[u8; 32]) -> bool {
    let (mut y, sign) = (*bytes, bytes[31] & 0x80 != 0);
    y[31] &= 0x7f;
    let top = y[1..31].iter().all(|byte| *byte == 0xff) && y[31] == 0x7f;
    // The prime ends with 0xed; y = 1 and y = -1 have x = 0.
    let below_prime = !(top && y[0] >= 0xed);
    let without_x = (y[0] == 1 && y[1..].iter().all(|byte| *byte == 0)) || (top && y[0] == 0xec);
    below_prime && !(without_x && sign)
}

#[cfg(test)]
mod tests {
    use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
    use curve25519_dalek::scalar::Scalar;
    use sha2::Sha512;

    use super::*;

    fn wide(parts: &[&[u8]]) -> Scalar {
        let mut hash = Sha512::new();
        for part in parts {
            hash.update(part);
        }
        Scalar::from_bytes_mod_order_wide(&hash.finalize().into())
    }

    /// A signature as its owner could make it who adds points of small order to key and nonce.
    fn crafted(n: u8, key_torsion: usize, nonce_torsion: usize) -> Claim {
        let (secret, nonce) = (wide(&[b"secret", &[n]]), wide(&[b"nonce", &[n]]));
        let key = (EdwardsPoint::mul_base(&secret) + EIGHT_TORSION[key_torsion]).compress().to_bytes();
        let r = (EdwardsPoint::mul_base(&nonce) + EIGHT_TORSION[nonce_torsion]).compress().to_bytes();
        let message = vec![n; 40];
        let s = nonce + wide(&[&r, &key, &message]) * secret;
        let signature = Signature([r, s.to_bytes()].concat().try_into().unwrap());
        Claim { key: PublicKey(key), signature, message }
    }

    fn good(n: u8) -> Claim {
        crafted(n, 0, 0)
    }

    fn strict(claim: &Claim) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(&claim.signature.0);
        ed25519_dalek::VerifyingKey::from_bytes(&claim.key.0)
            .is_ok_and(|key| key.verify_strict(&claim.message, &signature).is_ok())
    }

    /// Alone, and among others at every place.
    fn answers(claim: &Claim) -> Vec<bool> {
        let mut answers = vec![claim.holds(), all_hold(std::slice::from_ref(claim))];
        for place in 0..4 {
            let mut claims: Vec<Claim> = (0..3).map(|n| good(100 + n)).collect();
            claims.insert(place, claim.clone());
            answers.push(all_hold(&claims));
        }
        answers
    }

    #[test]
    fn what_is_signed_holds_alone_and_together_and_by_the_strict_rule() {
        let claims: Vec<Claim> = (0..70).map(good).collect();
        assert!(claims.iter().all(|claim| claim.holds() && strict(claim)));
        assert!(all_hold(&claims) && all_hold(&[]));
        // Several by one key.
        let mut same = vec![good(1); 3];
        assert!(all_hold(&same));
        same[1].message[0] ^= 1;
        assert!(!all_hold(&same));
    }

    #[test]
    fn one_wrong_bit_anywhere_is_found_alone_and_at_every_place() {
        for bit in (0..64 * 8).step_by(7) {
            let mut claim = good(5);
            claim.signature.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(answers(&claim), [false; 6], "signature, bit {bit}");
        }
        for bit in (0..32 * 8).step_by(5) {
            let mut claim = good(5);
            claim.key.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(answers(&claim), [false; 6], "key, bit {bit}");
        }
    }

    #[test]
    fn crafted_signatures_have_one_answer_where_the_strict_rule_has_another() {
        let mut differing = 0;
        for (key, nonce) in (0..8).flat_map(|key| (0..8).map(move |nonce| (key, nonce))) {
            let claim = crafted(9, key, nonce);
            assert_eq!(answers(&claim), [true; 6], "torsion {key}, {nonce}");
            differing += u32::from(!strict(&claim));
        }
        assert!(differing > 40, "the two rules differ on {differing} of 64");
    }

    #[test]
    fn two_wrong_ones_do_not_make_up_for_each_other() {
        let (mut one, mut other) = (good(1), good(2));
        // Without weights the sum of both scalars would be right.
        let scalar = |claim: &Claim| {
            Scalar::from_canonical_bytes(claim.signature.0[32..].try_into().unwrap()).unwrap()
        };
        let (a, b) = (scalar(&one) + Scalar::ONE, scalar(&other) - Scalar::ONE);
        one.signature.0[32..].copy_from_slice(a.as_bytes());
        other.signature.0[32..].copy_from_slice(b.as_bytes());
        assert!(!all_hold(&[one, other]));
    }

    #[test]
    fn a_key_of_small_order_signs_nothing() {
        // Zero as scalar and nonce at the neutral element: right for any message, by the equation alone.
        for point in EIGHT_TORSION {
            let key = PublicKey(point.compress().to_bytes());
            let mut signature = Signature([0; 64]);
            signature.0[0] = 1;
            let claim = Claim { key, signature, message: b"anything".to_vec() };
            assert_eq!(answers(&claim), [false; 6], "{key}");
        }
    }

    #[test]
    fn a_scalar_of_the_groups_order_and_above_is_refused() {
        let mut claim = good(3);
        let order: [u8; 32] = {
            // -1, plus 1 without reduction.
            let mut bytes = (-Scalar::ONE).to_bytes();
            bytes[0] += 1;
            bytes
        };
        let mut carry = 0_u16;
        for (byte, more) in claim.signature.0[32..].iter_mut().zip(order) {
            carry += u16::from(*byte) + u16::from(more);
            *byte = carry as u8;
            carry >>= 8;
        }
        assert_eq!(answers(&claim), [false; 6]);
    }

    #[test]
    fn points_have_one_encoding() {
        let prime_plus = |n: u8| {
            let mut bytes = [0xff; 32];
            bytes[0] = 0xed + n;
            bytes[31] = 0x7f;
            bytes
        };
        // Each of these is another way to write 0 to 18 as y.
        for n in 0..19 {
            assert!(!is_canonical(&prime_plus(n)), "{n}");
            let mut signed = prime_plus(n);
            signed[31] |= 0x80;
            assert!(!is_canonical(&signed), "{n}");
        }
        let (one, mut minus_one) = ([&[1][..], &[0; 31]].concat(), prime_plus(0));
        minus_one[0] = 0xec;
        for mut bytes in [one.try_into().unwrap(), minus_one] {
            assert!(is_canonical(&bytes));
            bytes[31] |= 0x80;
            assert!(!is_canonical(&bytes), "x = 0 has no sign");
        }
        for n in 0..200 {
            let point = good(n).key.0;
            assert!(is_canonical(&point) && CompressedEdwardsY(point).decompress().is_some());
        }
    }
}
