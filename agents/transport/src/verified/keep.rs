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
        // Those who certify the later header are whom the earlier one names: others may sign what they like.
        let exclusive = match other.height.checked_sub(known.height) {
            None => false,
            Some(0) => other.validators == known.validators,
            Some(ahead) => {
                other.validators == known.next_validators
                    && (other.time_ms <= known.time_ms
                        || other.log_size < known.log_size
                        || (ahead == 1 && other.prev != known.hash()))
            }
        };
        two && exclusive && verify_certificate(&self.known).is_ok() && verify_certificate(&self.other).is_ok()
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (known, other) = (&self.known.header, &self.other.header);
        write!(f, "header {} {} against header {} {}", known.height, known.hash(), other.height, other.hash())
    }
}

#[cfg(test)]
mod tests {
    use croft_ledger::certify;
    use croft_ledger::memory::{Scenario, key};
    use croft_protocol::{SecretKey, ValidatorSet};

    use super::*;

    fn read(known: &SignedHeader, other: &SignedHeader) -> Option<Evidence> {
        let evidence = Evidence { known: known.clone(), other: other.clone() };
        Evidence::read(&croft_protocol::encode(&evidence))
    }

    /// The scenario's newest header, altered and certified by some keys as a set of equals.
    fn altered(scenario: &Scenario, keys: &[SecretKey], change: impl FnOnce(&mut Header)) -> SignedHeader {
        let set = ValidatorSet::of_equals(&keys.iter().map(SecretKey::public).collect::<Vec<_>>());
        let mut header = scenario.ledger.tip().header;
        change(&mut header);
        header.validators = set.hash();
        certify(header, 0, set, keys)
    }

    #[test]
    fn two_headers_that_can_not_both_be_are_a_proof() {
        let scenario = Scenario::new();
        let tip = scenario.ledger.tip();
        let same_height = altered(&scenario, &scenario.validators, |header| header.time_ms += 1);
        let later = altered(&scenario, &scenario.validators, |header| header.height += 1);
        assert!(read(tip, &same_height).is_some());
        assert!(read(tip, &later).is_some(), "its time is not later");
    }

    #[test]
    fn honest_headers_in_any_order_and_headers_of_strangers_are_no_proof() {
        let scenario = Scenario::new();
        let headers = scenario.ledger.headers();
        for known in headers {
            for other in headers {
                assert_eq!(read(known, other), None, "{} and {}", known.header.height, other.header.height);
            }
        }
        let strangers: Vec<_> = (111..=114).map(key).collect();
        for height in [0, 1] {
            let other = altered(&scenario, &strangers, |header| {
                header.height += height;
                header.time_ms -= 1;
            });
            assert_eq!(read(scenario.ledger.tip(), &other), None, "anybody can certify with keys of his own");
        }
    }
}
