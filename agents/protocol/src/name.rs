//! Names that people type: of bots, farms, nodes, workloads and volumes.

use std::fmt;
use std::io;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// 1 to 32 of `a-z`, `0-9` and `-`, starting with a letter and not ending with `-`: a DNS label
/// (RFC 1035) that also fits into a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize)]
pub struct Name(String);

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is not a name: use 1 to 32 of a-z, 0-9 and '-', starting with a letter, not ending with '-'"
)]
pub struct InvalidName {
    pub text: String,
}

impl Name {
    /// Checks a text.
    ///
    /// # Errors
    /// [`InvalidName`] with at most the first 80 characters of the culprit.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let bytes = text.as_bytes();
        let ok = (1..=32).contains(&bytes.len())
            && bytes[0].is_ascii_lowercase()
            && bytes[bytes.len() - 1] != b'-'
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName { text: text.chars().take(80).collect() })
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a text is a country as the ledger writes them: two lower-case letters (ISO 3166-1 alpha-2).
#[must_use]
pub fn is_country(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|b| b.is_ascii_lowercase())
}

impl BorshDeserialize for Name {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        let text = String::deserialize_reader(reader)?;
        Self::new(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&<String as Deserialize>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_and_nothing_else() {
        for good in ["a", "web", "web-1", "x".repeat(32).as_str()] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "1a", "-a", "a-", "A", "a b", "../x", "ü", "x".repeat(33).as_str()] {
            let error = Name::new(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{bad}' is not a name: use")), "{error}");
        }
    }

    #[test]
    fn an_encoded_bad_name_is_not_decoded() {
        let bytes = borsh::to_vec("../etc").unwrap();
        assert!(borsh::from_slice::<Name>(&bytes).is_err());
    }
}
