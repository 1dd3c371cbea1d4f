//! The grid's one hash: SHA-256, shown as 64 hex digits.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// A SHA-256 digest (FIPS 180-4), 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// All zero: the `prev` of the first header, the root of nothing.
    pub const ZERO: Self = Self([0; 32]);

    /// Plain SHA-256 of some bytes, as OCI and `sha256sum` would compute it.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// SHA-256 of a domain and an encoded value, so that equal bytes of two kinds never share a hash.
    #[must_use]
    pub fn of<T: BorshSerialize + ?Sized>(domain: &str, value: &T) -> Self {
        let mut hasher = Sha256::new();
        hasher.update((domain.len() as u32).to_le_bytes());
        hasher.update(domain.as_bytes());
        hasher.update(crate::encode(value));
        Self(hasher.finalize().into())
    }

    /// The first eight hex digits, for people; never for comparison.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({})", self.short())
    }
}

/// A text that is not 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {what}: expected {expected} hex digits")]
pub struct ParseHexError {
    pub text: String,
    pub what: &'static str,
    pub expected: usize,
}

/// Parses exactly `N` bytes of hex.
///
/// # Errors
/// [`ParseHexError`] with at most the first 80 characters of the culprit.
pub fn parse_hex<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], ParseHexError> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseHexError {
        text: text.chars().take(80).collect(),
        what,
        expected: N * 2,
    })?;
    Ok(bytes)
}

impl FromStr for Hash {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex("a hash", text).map(Self)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as Deserialize>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
