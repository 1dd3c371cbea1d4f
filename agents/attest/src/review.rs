//! A node's class weighed once more, by whoever doubts the ledger.
//!
//! ```text
//!   proved: record, NodeTrust, WeighedQuote, policy, releases ┐
//!   final header at the quote's height, certified             ┴──▶ review() ──▶ checks, class ──▶ does the ledger's hold?
//! ```
//! The ledger's class says what validators found at a registration; this says what the same evidence is worth by what
//! holds now. The two differ honestly where a release was halted or validators were replaced since.
//!
//! It must never call a check passed that it did not make, nor take the ledger's reasons for its own.

use croft_protocol::attestation::Attestation;
use croft_protocol::record::{NodeBody, TrustClass};
use croft_protocol::trust::{NodeTrust, RecentHeader, WeighedQuote, says_the_same};
use croft_protocol::{ChainId, NodeId};
use serde::Serialize;

use crate::assess::{Assessment, Claim, Degradation, Endorsement, Policy, Refusal, assess};

/// What is proved of a node.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    pub chain: &'a ChainId,
    pub node: &'a NodeId,
    /// As its record has it, with the ledger's class.
    pub body: &'a NodeBody,
    /// Of nodes whose TPM ever spoke for them.
    pub known: Option<(&'a NodeTrust, &'a WeighedQuote)>,
    /// The final header at the height that the quote names, where one was found that the present validators certified.
    pub header: Option<RecentHeader>,
}

/// What is looked at, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The node's TPM quoted for it.
    Quote,
    /// The quote's key is the one that the ledger knows, and signed it.
    Signature,
    /// The nonce is of this chain, header, node, key, and of what the node registered.
    Nonce,
    /// The header in the nonce is a final one.
    Header,
    /// The header was young when the quote was weighed.
    Fresh,
    /// The node still says what the quote was about.
    Statement,
    /// The event log replays to the quoted registers.
    Replay,
    /// The boot file is a known one, and nothing unknown ran before it or by kexec.
    BootFile,
    /// What its release predicts is in the registers.
    Measurements,
    /// It was started without options or an initramfs of somebody else's.
    Options,
    SecureBoot,
    /// As many replicas as the policy wants vouch for the TPM.
    Endorsement,
    /// The key is in the TPM, and not on a disk.
    Key,
}

/// A check and how it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub check: Check,
    /// `None`: it could not be made, or it decides nothing.
    pub passed: Option<bool>,
    /// For people.
    pub detail: String,
}

/// What the evidence is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    pub class: TrustClass,
    /// What the ledger says, on the node's record and beside it.
    pub ledger: TrustClass,
    pub checks: Vec<Checked>,
    pub assessment: Option<Assessment>,
}

impl Review {
    /// Whether what was found is what the ledger says.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.class == self.ledger
    }
}

/// Weighs what the ledger weighed, by the rules of `policy`.
#[must_use]
pub fn review(evidence: &Evidence<'_>, policy: &Policy) -> Review {
    let ledger = evidence.body.trust;
    let mut checks = Checks::default();
    let Some((trust, quote)) = evidence.known else {
        checks.add(Check::Quote, Some(false), "no TPM ever spoke for this node");
        return Review { class: TrustClass::Plain, ledger, checks: checks.0, assessment: None };
    };
    let assessment = weigh(evidence, trust, quote, policy, &mut checks);
    let class = match &assessment {
        Some(assessment) if checks.stand() => assessment.class_for(quote.node.trust),
        _ => TrustClass::Plain,
    };
    checks.0.sort_by_key(|checked| checked.check);
    Review { class, ledger, checks: checks.0, assessment }
}

fn weigh(
    evidence: &Evidence<'_>,
    trust: &NodeTrust,
    quote: &WeighedQuote,
    policy: &Policy,
    checks: &mut Checks,
) -> Option<Assessment> {
    let Evidence { chain, node, body, header, .. } = *evidence;
    let attestation = &quote.attestation;
    checks.header(quote, header);
    if says_the_same(&quote.node, body) {
        checks.add(Check::Statement, Some(true), "the record says what the quote is about");
    } else if quote.node.session == body.session {
        checks.add(
            Check::Statement,
            Some(false),
            "the node says something else of itself than what it quoted",
        );
    } else {
        checks.add(
            Check::Statement,
            Some(false),
            "the quote is of an earlier boot: in this one its TPM is silent",
        );
    }
    let claim = Claim {
        chain,
        node,
        statement: Attestation::statement(&quote.node),
        header: header.map_or(quote.header.hash, |header| header.hash),
        header_age_ms: quote.time_ms.saturating_sub(quote.header.time_ms),
        known_key: Some(trust.key),
        known_endorsement: trust.endorsement_key,
    };
    let assessment = match assess(attestation, &claim, policy) {
        Ok(assessment) => assessment,
        Err(refusal) => {
            checks.refused(&refusal);
            return None;
        }
    };
    checks.add(Check::Quote, Some(true), format!("taken in block {}", quote.height));
    checks.add(Check::Signature, Some(true), format!("by attestation key {}", trust.key));
    checks.add(Check::Nonce, Some(true), "of this chain, node, key, and of what it registered");
    let age_s = claim.header_age_ms / 1000;
    checks.add(Check::Fresh, Some(true), format!("the header was {age_s} s old when the quote was weighed"));
    checks.add(
        Check::Replay,
        Some(true),
        format!("{} events replay to the quoted registers", attestation.events.len()),
    );
    checks.degradations(&assessment, policy);
    match quote.node.trust {
        TrustClass::Plain => {
            checks.add(Check::Key, Some(false), "on a disk: whoever copies the disk has it too");
        }
        TrustClass::Sealed | TrustClass::Attested => {
            checks.add(Check::Key, Some(true), "in the TPM, as the node says");
        }
    }
    Some(assessment)
}

/// The checks that were made.
#[derive(Default)]
struct Checks(Vec<Checked>);

impl Checks {
    fn add(&mut self, check: Check, passed: Option<bool>, detail: impl Into<String>) {
        self.0.push(Checked { check, passed, detail: detail.into() });
    }

    /// Whether nothing failed without which a quote proves nothing.
    fn stand(&self) -> bool {
        let needed = [Check::Header, Check::Statement];
        !self.0.iter().any(|checked| needed.contains(&checked.check) && checked.passed == Some(false))
    }

    fn header(&mut self, quote: &WeighedQuote, found: Option<RecentHeader>) {
        let RecentHeader { height, hash, .. } = quote.header;
        match found {
            Some(header) if header == quote.header && quote.attestation.height == height => {
                self.add(Check::Header, Some(true), format!("header {height} is final: {hash}"));
            }
            Some(header) => {
                let found = header.hash;
                let detail =
                    format!("header {height} is {found}, the ledger weighed the quote against {hash}");
                self.add(Check::Header, Some(false), detail);
            }
            None => {
                let detail = format!(
                    "no replica shows header {height} with a certificate of the present validators: the ledger's word is \
                     taken for {hash}"
                );
                self.add(Check::Header, None, detail);
            }
        }
    }

    fn refused(&mut self, refusal: &Refusal) {
        let check = match refusal {
            Refusal::OtherTpm { .. }
            | Refusal::OtherEndorsement { .. }
            | Refusal::Key(_)
            | Refusal::Quote(_) => Check::Signature,
            Refusal::Nonce => Check::Nonce,
            Refusal::Stale { .. } => Check::Fresh,
            Refusal::Replay => Check::Replay,
            Refusal::TooLarge(_) | Refusal::Selection | Refusal::Locality { .. } => Check::Quote,
        };
        self.add(check, Some(false), refusal.to_string());
    }

    fn degradations(&mut self, assessment: &Assessment, policy: &Policy) {
        let of = |check: Check| {
            let reasons = assessment.reasons.iter().filter(move |reason| check_of(reason) == check);
            reasons.map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let mut add = |check: Check, good: String| {
            let bad = of(check);
            let (passed, detail) = if bad.is_empty() { (true, good) } else { (false, bad) };
            self.add(check, Some(passed), detail);
        };
        let file = assessment.release;
        add(Check::BootFile, file.map_or_else(String::new, |file| format!("{file} is a known boot file")));
        let predicted =
            file.and_then(|file| policy.releases.get(&file)).map_or(0, std::collections::BTreeSet::len);
        add(
            Check::Measurements,
            match predicted {
                0 => "none are predicted of this boot file beside its own hash".to_owned(),
                _ => format!("{predicted} are predicted, and those of its way to start are there"),
            },
        );
        add(Check::Options, "none that are unknown".to_owned());
        let needed = policy.vouchers_needed;
        let level = match assessment.endorsement {
            Endorsement::Certified => {
                format!("{needed} validators vouch that the TPM is genuine and holds the key")
            }
            Endorsement::Activated => {
                format!("{needed} validators vouch that a TPM holds the key; nobody knows its maker")
            }
            Endorsement::Unchecked => "this grid asks nobody to vouch: a program can play a TPM".to_owned(),
        };
        let key =
            assessment.endorsement_key.map_or_else(String::new, |key| format!(", endorsement key {key}"));
        add(Check::Endorsement, level + &key);
        let secure_boot = match assessment.secure_boot {
            Some(true) => "on",
            Some(false) => "off",
            None => "not shown by the log",
        };
        self.add(Check::SecureBoot, None, secure_boot);
    }
}

fn check_of(reason: &Degradation) -> Check {
    match reason {
        Degradation::NothingBooted | Degradation::UnknownBoot { .. } | Degradation::UnknownKexec { .. } => {
            Check::BootFile
        }
        Degradation::UnknownOptions { .. } => Check::Options,
        Degradation::NotMeasured { .. } => Check::Measurements,
        Degradation::Vouchers { .. } => Check::Endorsement,
    }
}
