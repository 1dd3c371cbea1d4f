//! What outlives a run: the newest header, and the proof of a broken word.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use croft_light::verify_certificate;
use croft_protocol::{Header, SignedHeader, limits};

/// Where the client's owner keeps things, and what it knows of the time.
pub trait Keep: fmt::Debug + Send + Sync + 'static {
    /// Now: milliseconds since 1970, UTC, where a clock can be trusted to judge the age of headers.
    fn now_ms(&self) -> Option<u64>;

    /// A header was believed; bounds a clock that was never set.
    fn saw_header(&self, header: &Header) {
        let _ = header;
    }

    /// What [`Self::keep_trail`] kept last.
    fn trail(&self) -> Option<Vec<u8>>;

    /// Keeps how far the ledger was seen, unless another process kept something of a greater height
    /// ([`super::Trail::height_of`]). A failure costs only that the next run starts where this one did.
    fn keep_trail(&self, height: u64, bytes: &[u8]);

    /// What [`Self::keep_evidence`] kept.
    fn evidence(&self) -> Option<Vec<u8>>;

    /// Keeps the proof that the validators broke their word. Never overwrites an earlier one.
    fn keep_evidence(&self, bytes: &[u8]);

    /// Where that is, for people.
    fn evidence_place(&self) -> String;
}

/// Two final headers that can't both be: more than a third of the validators' power signed both.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Evidence {
    /// What was believed.
    pub known: SignedHeader,
    /// What came later, certified like it.
    pub other: SignedHeader,
}

impl Evidence {
    /// A proof that is one. A file that anybody garbled must not stop a grid.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let evidence: Self =
            croft_protocol::decode("evidence", bytes, limits::RESPONSE_BYTES).ok().filter(Self::holds)?;
        Some(evidence)
    }

    fn holds(&self) -> bool {
        let (known, other) = (&self.known.header, &self.other.header);
        let two = known != other && known.chain == other.chain;
        let exclusive = known.height == other.height
            || other.time_ms <= known.time_ms
            || other.log_size < known.log_size
            || (other.height == known.height + 1 && other.prev != known.hash());
        two && exclusive && verify_certificate(&self.known).is_ok() && verify_certificate(&self.other).is_ok()
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (known, other) = (&self.known.header, &self.other.header);
        write!(f, "header {} {} against header {} {}", known.height, known.hash(), other.height, other.hash())
    }
}
