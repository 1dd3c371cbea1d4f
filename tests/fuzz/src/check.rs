//! What is asked of every decoder: one encoding per value, and no more memory than the input pays for.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a decoder may take before it has looked at the input: borsh takes up to 1 MiB for the first bytes of a vector.
const ADVANCE_BYTES: u64 = (1 << 20) + (256 << 10);
/// Bytes of memory for one of the input: a value that is one byte on the wire may be a large variant in memory, and a
/// vector that grows is there twice.
const PER_BYTE: u64 = 192;

/// Runs a decoder and asserts that what it takes at any one time is paid for by its input.
///
/// # Panics
/// When it takes more.
pub fn bounded<T>(what: &str, input: usize, decode: impl FnOnce() -> T) -> T {
    let mut value = None;
    let info = allocation_counter::measure(|| value = Some(decode()));
    let allowed = ADVANCE_BYTES + PER_BYTE * input as u64;
    assert!(
        info.bytes_max <= allowed,
        "{what}: {input} bytes make it take {} bytes of memory, {allowed} would be bounded",
        info.bytes_max
    );
    value.expect("measure runs what it is given")
}

/// Decodes borsh. What decodes must encode to the very same bytes: else one value has several hashes.
///
/// # Panics
/// When it does not, or when decoding takes too much memory.
pub fn canonical<T>(what: &'static str, limit: usize, bytes: &[u8]) -> Option<T>
where
    T: BorshSerialize + BorshDeserialize,
{
    let value: T = bounded(what, bytes.len(), || {
        croft_protocol::decode(what, bytes, limit).map_err(|e| e.to_string()).ok()
    })?;
    assert_eq!(hex::encode(croft_protocol::encode(&value)), hex::encode(bytes), "{what} has two encodings");
    Some(value)
}

/// Parses a text. What is shown of the value must mean the same value again.
///
/// # Panics
/// When it does not.
pub fn shown<T>(what: &str, text: &str) -> Option<T>
where
    T: FromStr + Display + PartialEq + Debug,
    T::Err: Display,
{
    match bounded(what, text.len(), || text.parse::<T>()) {
        Ok(value) => {
            let again = value.to_string().parse::<T>().map_err(|e| e.to_string());
            assert_eq!(again.as_ref(), Ok(&value), "{what} '{value}' is not read as it is shown");
            Some(value)
        }
        Err(error) => {
            bounded_message(what, &error.to_string());
            None
        }
    }
}

/// A message goes on a console, into a log or back over the network: a stranger must not choose its length.
///
/// # Panics
/// When it is too long.
pub fn bounded_message(what: &str, message: &str) {
    assert!(message.len() <= 4 * 1024, "{what} is refused with {} bytes of message", message.len());
}

/// A value that came from a file must be written as a file that means the same.
///
/// # Panics
/// When it is not.
pub fn toml_again<T>(what: &str, value: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let text = toml::to_string(value).unwrap_or_else(|e| panic!("{what} can't be written: {e}"));
    let again = toml::from_str::<T>(&text).map_err(|e| e.to_string());
    assert_eq!(again.as_ref(), Ok(value), "{what} is not read as it is written:\n{text}");
}

/// As [`toml_again`], for JSON.
///
/// # Panics
/// When it is not.
pub fn json_again<T>(what: &str, value: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let text = serde_json::to_string(value).unwrap_or_else(|e| panic!("{what} can't be written: {e}"));
    let again = serde_json::from_str::<T>(&text).map_err(|e| e.to_string());
    assert_eq!(again.as_ref(), Ok(value), "{what} is not read as it is written:\n{text}");
}

/// The input as text, for decoders of text; what is no UTF-8 never reaches them.
#[must_use]
pub fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(run: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let panic = std::panic::catch_unwind(run).unwrap_err();
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn a_decoder_that_believes_a_length_is_caught() {
        let greedy = || bounded("greedy", 4, || Vec::<u8>::with_capacity(64 << 20).capacity());
        let text = message(|| _ = greedy());
        assert!(text.starts_with("greedy: 4 bytes make it take 67108864 bytes of memory"), "{text}");
        assert_eq!(bounded("modest", 4, || vec![0_u8; 1 << 20].len()), 1 << 20);
    }

    #[test]
    fn a_second_encoding_of_a_value_is_caught() {
        /// Reads any non-zero byte as true.
        #[derive(Debug)]
        struct Lax(bool);
        impl BorshSerialize for Lax {
            fn serialize<W: std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
                BorshSerialize::serialize(&self.0, writer)
            }
        }
        impl BorshDeserialize for Lax {
            fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
                u8::deserialize_reader(reader).map(|byte| Self(byte != 0))
            }
        }
        assert!(canonical::<Lax>("lax", 1, &[1]).is_some_and(|lax| lax.0));
        let text = message(|| _ = canonical::<Lax>("lax", 1, &[7]));
        assert!(text.contains("lax has two encodings"), "{text}");
    }
}
