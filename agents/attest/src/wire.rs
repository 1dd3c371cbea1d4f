//! Bytes of a TPM, big-endian, each field with a name and each length with a limit (TPM 2.0 Library, part 1, chapter
//! on data formats). It must never allocate what a length merely claims.

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("{what} is truncated: its {field} needs {need} bytes, {have} are left")]
    Truncated { what: &'static str, field: &'static str, need: usize, have: usize },
    #[error("{what} is malformed: its {field} has {got}, more than the limit of {limit}")]
    TooLong { what: &'static str, field: &'static str, got: usize, limit: usize },
    #[error("{what} is followed by {count} bytes that belong to nothing")]
    Trailing { what: &'static str, count: usize },
    #[error("{what} has {field} {got:#x}, wanted is {wanted}")]
    Unexpected { what: &'static str, field: &'static str, got: u64, wanted: &'static str },
}

/// Reads fields off the front of some bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// `what` names the whole in errors: "the quote".
    #[must_use]
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[must_use]
    pub fn remaining(&self) -> &'a [u8] {
        self.rest
    }

    /// # Errors
    /// [`FormatError::Truncated`], as for all below.
    pub fn bytes(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], FormatError> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return Err(FormatError::Truncated {
                what: self.what,
                field,
                need: count,
                have: self.rest.len(),
            });
        };
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FormatError> {
        Ok(self.bytes(field, N)?.try_into().expect("exactly N bytes were taken"))
    }

    pub fn u8(&mut self, field: &'static str) -> Result<u8, FormatError> {
        Ok(self.array::<1>(field)?[0])
    }

    pub fn u16(&mut self, field: &'static str) -> Result<u16, FormatError> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    pub fn u32(&mut self, field: &'static str) -> Result<u32, FormatError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    pub fn u64(&mut self, field: &'static str) -> Result<u64, FormatError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// The event log alone is little-endian.
    pub fn u16_le(&mut self, field: &'static str) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub fn u32_le(&mut self, field: &'static str) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// A TPM2B: a 16-bit length and as many bytes, at most `limit`.
    pub fn sized(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], FormatError> {
        let count = usize::from(self.u16(field)?);
        self.limit(field, count, limit)?;
        self.bytes(field, count)
    }

    /// A TPM2B of a number of at most 32 bytes, left-padded.
    pub fn number(&mut self, field: &'static str) -> Result<[u8; 32], FormatError> {
        let bytes = self.sized(field, 32)?;
        let mut padded = [0; 32];
        padded[32 - bytes.len()..].copy_from_slice(bytes);
        Ok(padded)
    }

    /// A number that some field announces.
    ///
    /// # Errors
    /// [`FormatError::TooLong`].
    pub fn limit(&self, field: &'static str, got: usize, limit: usize) -> Result<(), FormatError> {
        if got > limit {
            return Err(FormatError::TooLong { what: self.what, field, got, limit });
        }
        Ok(())
    }

    /// A field that has one right value.
    ///
    /// # Errors
    /// [`FormatError::Unexpected`].
    pub fn expect(
        &self,
        field: &'static str,
        got: impl Into<u64>,
        want: impl Into<u64>,
        wanted: &'static str,
    ) -> Result<(), FormatError> {
        let (got, want) = (got.into(), want.into());
        if got != want {
            return Err(self.unexpected(field, got, wanted));
        }
        Ok(())
    }

    #[must_use]
    pub fn unexpected(&self, field: &'static str, got: u64, wanted: &'static str) -> FormatError {
        FormatError::Unexpected { what: self.what, field, got, wanted }
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// [`FormatError::Trailing`].
    pub fn finish(self) -> Result<(), FormatError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(FormatError::Trailing { what: self.what, count: self.rest.len() })
    }
}

/// Writes fields one after the other.
#[derive(Debug, Clone, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    #[must_use]
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    #[must_use]
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    #[must_use]
    pub fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }

    /// A TPM2B.
    ///
    /// # Panics
    /// When there are more than 65535 bytes: callers bound what they write far below.
    #[must_use]
    pub fn sized(self, value: &[u8]) -> Self {
        let count = u16::try_from(value.len()).expect("what is written to a TPM is far below 64 KiB");
        self.u16(count).bytes(value)
    }

    #[must_use]
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let bytes = Writer::new().u8(1).u16(2).u32(3).sized(b"four").done();
        let mut reader = Reader::new("the test", &bytes);
        assert_eq!(reader.u8("a").unwrap(), 1);
        assert_eq!(reader.u16("b").unwrap(), 2);
        assert_eq!(reader.u32("c").unwrap(), 3);
        assert_eq!(reader.sized("d", 4).unwrap(), b"four");
        reader.finish().unwrap();
    }

    #[test]
    fn errors_name_the_whole_and_the_field() {
        let mut reader = Reader::new("the quote", &[0, 9, 1]);
        assert_eq!(
            reader.clone().sized("signer", 8).unwrap_err().to_string(),
            "the quote is malformed: its signer has 9, more than the limit of 8"
        );
        assert_eq!(
            reader.clone().sized("signer", 9).unwrap_err().to_string(),
            "the quote is truncated: its signer needs 9 bytes, 1 are left"
        );
        reader.u16("x").unwrap();
        assert_eq!(
            reader.finish().unwrap_err().to_string(),
            "the quote is followed by 1 bytes that belong to nothing"
        );
    }

    #[test]
    fn short_numbers_are_padded_on_the_left() {
        let bytes = Writer::new().sized(&[1, 2]).done();
        let number = Reader::new("the signature", &bytes).number("r").unwrap();
        assert_eq!(number[..30], [0; 30]);
        assert_eq!(number[30..], [1, 2]);
    }
}
