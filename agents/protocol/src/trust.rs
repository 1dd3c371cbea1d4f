//! What a grid asks of its nodes' TPMs, and what the ledger found out about each of them.
//!
//! Only the forms and their bounds are here; `croft-attest` weighs, `croft-ledger` decides and keeps.

use std::collections::BTreeSet;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::attestation::Attestation;
use crate::record::{NodeBody, TrustClass};
use crate::{Hash, NodeId, limits};

/// How well a TPM itself must be known for more than `plain`.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Endorsement {
    /// Any quote counts. A program that plays a TPM passes: for test grids.
    Unchecked,
    /// The attestation key was activated beside an endorsement key, so one TPM can't claim another's key.
    Activated,
    /// And that endorsement key has the certificate of a TPM's maker: a program can't play it.
    #[default]
    Certified,
}

/// What a grid accepts, fixed in its genesis. Vouchers count when validators gave them.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustPolicy {
    pub endorsement: Endorsement,
    /// Authenticode SHA-256 of boot files that count as known, beside those of releases.
    pub boot_files: Vec<Hash>,
    /// The same of loaders that may run before a boot file: an iPXE build, a shim.
    pub loaders: Vec<Hash>,
    /// SHA-256 of load options (UTF-16) with which a boot file may be started.
    pub options: Vec<Hash>,
    /// How many seconds after its quote a node's class is called stale: [`limits::STALE_LEAST_S`] to
    /// [`limits::STALE_MOST_S`]. The class itself stands; who relies on it sees its age.
    pub stale_after_s: u64,
}

impl Default for TrustPolicy {
    fn default() -> Self {
        Self {
            endorsement: Endorsement::default(),
            boot_files: Vec::new(),
            loaders: Vec::new(),
            options: Vec::new(),
            stale_after_s: 86_400,
        }
    }
}

/// A policy that no grid may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTrustPolicy {
    #[error("the trust policy lists {got} {what}, at most {limit} different ones are allowed", limit = limits::KNOWN_DIGESTS)]
    List { what: &'static str, got: usize },
    #[error(
        "the trust policy calls a quote stale after {got} s, allowed are {from} to {to}",
        from = limits::STALE_LEAST_S, to = limits::STALE_MOST_S
    )]
    StaleAfter { got: u64 },
}

impl TrustPolicy {
    /// Whether a quote of that time is stale now.
    #[must_use]
    pub fn is_stale(&self, quoted_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(quoted_ms) > self.stale_after_s.saturating_mul(1000)
    }

    /// How long after its last quote a node quotes anew: early enough that three may fail.
    #[must_use]
    pub fn requote_after_ms(&self) -> u64 {
        (self.stale_after_s.saturating_mul(1000) / 4).min(limits::REQUOTE_EVERY_MS)
    }

    /// Checks every length and bound.
    ///
    /// # Errors
    /// [`InvalidTrustPolicy`] names the first list that is too long or repeats itself, or the bound.
    pub fn check(&self) -> Result<(), InvalidTrustPolicy> {
        let lists =
            [("boot files", &self.boot_files), ("loaders", &self.loaders), ("load options", &self.options)];
        for (what, list) in lists {
            let different: BTreeSet<_> = list.iter().collect();
            if list.len() > limits::KNOWN_DIGESTS || different.len() != list.len() {
                return Err(InvalidTrustPolicy::List { what, got: list.len() });
            }
        }
        if !(limits::STALE_LEAST_S..=limits::STALE_MOST_S).contains(&self.stale_after_s) {
            return Err(InvalidTrustPolicy::StaleAfter { got: self.stale_after_s });
        }
        Ok(())
    }
}

/// A past header that a quote may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct RecentHeader {
    pub height: u64,
    pub time_ms: u64,
    pub hash: Hash,
}

/// Headers that are fresh enough for quotes, oldest first, [`limits::RECENT_HEADER_EVERY_MS`] apart or more.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize, Serialize)]
pub struct RecentHeaders {
    pub headers: Vec<RecentHeader>,
}

impl RecentHeaders {
    /// Takes the header before the present block, where the newest is old enough, and drops those that no quote may
    /// name any more. Returns whether anything changed.
    pub fn add(&mut self, header: RecentHeader, now_ms: u64) -> bool {
        let newest = self.headers.last();
        if newest.is_some_and(|n| header.time_ms < n.time_ms.saturating_add(limits::RECENT_HEADER_EVERY_MS)) {
            return false;
        }
        self.headers.retain(|old| old.time_ms.saturating_add(limits::QUOTE_FRESH_MS) >= now_ms);
        self.headers.push(header);
        true
    }

    #[must_use]
    pub fn at(&self, height: u64) -> Option<&RecentHeader> {
        self.headers.iter().find(|header| header.height == height)
    }
}

/// What the ledger knows of a node whose TPM ever spoke for it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct NodeTrust {
    /// As on the node's record.
    pub class: TrustClass,
    /// The boot that this is about.
    pub session: u64,
    /// SHA-256 of the attestation key. Another one is taken only beside the same endorsement key.
    pub key: Hash,
    /// Height of the header that the last quote names.
    pub height: u64,
    /// Time of that header, milliseconds since 1970, UTC: how old the quote is.
    pub quoted_ms: u64,
    /// Authenticode SHA-256 of the boot file that runs, when it is known.
    pub release: Option<Hash>,
    /// Whether Secure Boot was on, when the log shows it.
    pub secure_boot: Option<bool>,
    /// Digest of registers 0 and 2: the same for machines with the same firmware.
    pub firmware: Hash,
    pub endorsement: Endorsement,
    /// SHA-256 of the endorsement key, since enough vouchers named one: the TPM in which this node lives for ever.
    pub endorsement_key: Option<Hash>,
    /// Why it is not worth more, for people: at most [`limits::TRUST_REASONS`].
    pub reasons: Vec<String>,
}

/// The last attestation of a node that the ledger took, and what it was weighed against: with it, whoever doubts the
/// class weighs it again. A registration carries all of it, so that one fits into [`limits::COMMAND_BYTES`]; most have
/// some 5 KiB.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct WeighedQuote {
    /// What the node said, as the quote's nonce holds it. The record has the ledger's class, and maybe newer addresses.
    pub node: NodeBody,
    pub attestation: Attestation,
    /// The header that the quote's nonce holds.
    pub header: RecentHeader,
    /// Height and time of the block that carries the registration.
    pub height: u64,
    pub time_ms: u64,
}

/// Whether a node that says `after` in the boot in which it said `before` still is what its quote was about: only
/// where it is reached, and what troubles it has, may change.
#[must_use]
pub fn says_the_same(before: &NodeBody, after: &NodeBody) -> bool {
    let NodeBody {
        farm,
        name,
        sealing_key,
        capacity,
        hardware,
        trust: _,
        addresses: _,
        release,
        session,
        troubles: _,
    } = before;
    (farm, name, sealing_key, capacity) == (&after.farm, &after.name, &after.sealing_key, &after.capacity)
        && (hardware, release, session) == (&after.hardware, &after.release, &after.session)
}

/// How many of so many validators must vouch for a TPM: more than a third, so that one of them is honest.
#[must_use]
pub fn vouchers_needed(validators: usize) -> usize {
    (validators / 3 + 1).min(limits::VOUCHERS)
}

/// Why an attestation is refused, and with it the registration that carries it.
#[derive(
    Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize, thiserror::Error,
)]
#[serde(rename_all = "snake_case")]
pub enum RefusedQuote {
    #[error("{reason}")]
    Malformed { reason: String },
    #[error(
        "the header {height} that it names is none of the recent ones, {first} to {last}: quote again, over the newest"
    )]
    Header { height: u64, first: u64, last: u64 },
    #[error(
        "the header that it names is {age_s} s older than the block, allowed are {limit_s} s: quote again"
    )]
    Stale { age_s: u64, limit_s: u64 },
    #[error("it is for another moment, node or statement: quote again, over the newest header")]
    Nonce,
    #[error("it is not signed by the attestation key that came with it")]
    Signature,
    #[error("its events do not replay to the quoted registers: the log is altered, or incomplete")]
    Replay,
    #[error(
        "the node's TPM had the attestation key {known}, this one has {got}: the same node key in another TPM is a copy; \
         put the disk back into its machine, or wipe it to register this machine as a new node"
    )]
    OtherTpm { known: Hash, got: Hash },
    #[error(
        "its TPM already speaks for node {node}: a machine is one node; clear the TPM in the firmware setup to start \
         as a new one"
    )]
    TpmTaken { node: NodeId },
    #[error(
        "its TPM already speaks for node {node}, by its endorsement key, which no clearing changes: a machine is one node; \
         start it with that node's key, wait until that node's last quote is stale, or turn the TPM off in the \
         firmware setup to go on as a plain node"
    )]
    EndorsementTaken { node: NodeId },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_headers_are_apart_and_bounded_whatever_the_pace() {
        for pace_ms in [1, 700, 9_999, 10_000, 60_000, 3_600_000] {
            let mut recent = RecentHeaders::default();
            let most = limits::QUOTE_FRESH_MS / limits::RECENT_HEADER_EVERY_MS + 2;
            for height in 0..5_000 {
                let time_ms = height * pace_ms;
                recent.add(RecentHeader { height, time_ms, hash: Hash::ZERO }, time_ms + pace_ms);
                assert!(recent.headers.len() as u64 <= most, "{pace_ms}: {}", recent.headers.len());
                // There always is one to quote that is hardly older than the tip.
                let newest = recent.headers.last().unwrap();
                assert!(time_ms - newest.time_ms < limits::RECENT_HEADER_EVERY_MS);
            }
            let apart =
                |pair: &[RecentHeader]| pair[1].time_ms - pair[0].time_ms >= limits::RECENT_HEADER_EVERY_MS;
            assert!(recent.headers.windows(2).all(apart));
        }
    }

    #[test]
    fn a_policy_that_repeats_itself_or_has_no_end_is_named() {
        let many = |count: usize| (0..count).map(|n| Hash::of("n", &(n as u64))).collect::<Vec<_>>();
        TrustPolicy { boot_files: many(64), ..TrustPolicy::default() }.check().unwrap();
        let long = TrustPolicy { loaders: many(65), ..TrustPolicy::default() };
        let error = long.check().unwrap_err().to_string();
        assert_eq!(error, "the trust policy lists 65 loaders, at most 64 different ones are allowed");
        let twice = TrustPolicy { options: vec![Hash::ZERO; 2], ..TrustPolicy::default() };
        assert!(twice.check().unwrap_err().to_string().contains("lists 2 load options"));
    }

    #[test]
    fn a_genesis_without_a_policy_asks_for_makers_certificates() {
        let policy: TrustPolicy = toml::from_str("").unwrap();
        assert_eq!(policy.endorsement, Endorsement::Certified);
        assert!(policy.boot_files.is_empty());
        let unchecked: TrustPolicy = toml::from_str("endorsement = \"unchecked\"").unwrap();
        assert_eq!(unchecked.endorsement, Endorsement::Unchecked);
        assert!(toml::from_str::<TrustPolicy>("boot_file = []").is_err());
        assert_eq!(policy.stale_after_s, 86_400);
    }

    #[test]
    fn a_quote_is_stale_after_the_policys_time_and_a_new_one_comes_long_before() {
        let policy = TrustPolicy::default();
        assert!(!policy.is_stale(1_000, 1_000 + 86_400_000));
        assert!(policy.is_stale(1_000, 1_001 + 86_400_000));
        assert!(!policy.is_stale(5_000, 1_000), "clocks differ");
        assert_eq!(policy.requote_after_ms(), limits::REQUOTE_EVERY_MS);
        let strict = TrustPolicy { stale_after_s: 3600, ..policy.clone() };
        strict.check().unwrap();
        assert_eq!(strict.requote_after_ms(), 15 * 60_000);
        for got in [0, 3599, limits::STALE_MOST_S + 1, u64::MAX] {
            let error = TrustPolicy { stale_after_s: got, ..policy.clone() }.check().unwrap_err();
            let text =
                format!("the trust policy calls a quote stale after {got} s, allowed are 3600 to 7776000");
            assert_eq!(error.to_string(), text);
        }
    }
}
