//! What a node's attestation is worth.
//!
//! ```text
//!   too large, wrong bank, wrong key, old nonce, log that does not replay ──▶ Refusal: somebody lies or is broken
//!   nobody vouched for the TPM's endorsement key, and the policy wants it ──▶ plain: may be a TPM in software
//!   unknown boot file, loader, options, initramfs or kexec                ──▶ sealed: this TPM, but what runs?
//!   a release that left out what it predicts                              ──▶ sealed: not as it was released
//!   everything in registers 4, 9 and 11 known, the TPM vouched for        ──▶ attested
//! ```
//! It must never decide by an event's type or data: only digests are signed for. What ran before us is known by its
//! digest or not at all.
//!
//! What this can't see: firmware that measures falsely (registers 0 and 2 are carried as `firmware`, to be compared
//! over time and between machines of one model), and somebody who resets the TPM on its bus without the machine.

use std::collections::{BTreeMap, BTreeSet};

use croft_protocol::attestation::{Attestation, AttestationTooLarge, MeasuredEvent};
use croft_protocol::record::TrustClass;
use croft_protocol::release::{Measurement, Release};
pub use croft_protocol::trust::Endorsement;
use croft_protocol::trust::{TrustPolicy, vouchers_needed};
use croft_protocol::{ChainId, Hash, NodeId, PublicKey, ValidatorSet, limits};

use crate::pcr::{self, PCR_BOOT, PCR_KEXEC, PCR_OPTIONS, PCR_SECURE_BOOT, PcrSelection};
use crate::predict::{StartedBy, missing};
use crate::public::{EccKey, KeyError};
use crate::quote::{Quote, QuoteError};

/// What the verifier knows of the moment and of the node.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    pub chain: &'a ChainId,
    pub node: &'a NodeId,
    /// [`Attestation::statement`] of what the node registers.
    pub statement: Hash,
    /// Hash of the final header at the attestation's height, on this chain.
    pub header: Hash,
    /// How much older that header is than the block that carries the registration.
    pub header_age_ms: u64,
    /// [`Attestation::key_hash`] of the node's last registration, if it had one.
    pub known_key: Option<Hash>,
    /// Hash of its endorsement key, if enough vouchers ever named one.
    pub known_endorsement: Option<Hash>,
}

/// What the grid accepts.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Authenticode SHA-256 of the boot files of all releases in force, each with what its releases predict. Several
    /// releases of one file predict for the same bytes, so all of it counts.
    pub releases: BTreeMap<Hash, BTreeSet<Measurement>>,
    /// The same of loaders that may run before a release: an iPXE build, a shim.
    pub loaders: BTreeSet<Hash>,
    /// SHA-256 of load options (UTF-16) that a release may be started with: those of our own netboot script.
    pub options: BTreeSet<Hash>,
    pub endorsement: Endorsement,
    /// Whose vouchers count.
    pub vouchers: BTreeSet<PublicKey>,
    /// How many of them, by different authors.
    pub vouchers_needed: usize,
}

impl Policy {
    /// What a grid accepts of the nodes of a farm: its own policy, its validators' vouchers, and the releases of the
    /// channel that the farm follows. The ledger and whoever checks it make it here.
    #[must_use]
    pub fn of(policy: TrustPolicy, validators: &ValidatorSet, followed: &[Release]) -> Self {
        let mut releases: BTreeMap<Hash, BTreeSet<Measurement>> =
            policy.boot_files.into_iter().map(|file| (file, BTreeSet::new())).collect();
        for release in followed {
            releases.entry(release.boot_file.authenticode).or_default().extend(&release.measurements);
        }
        Self {
            releases,
            loaders: policy.loaders.into_iter().collect(),
            options: policy.options.into_iter().collect(),
            endorsement: policy.endorsement,
            vouchers: validators.validators.iter().map(|validator| validator.key).collect(),
            vouchers_needed: vouchers_needed(validators.validators.len()),
        }
    }
}

/// What an attestation shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assessment {
    pub class: TrustClass,
    /// The release that runs now, when it is known.
    pub release: Option<Hash>,
    /// Whether Secure Boot was on, when the log shows it.
    pub secure_boot: Option<bool>,
    /// Digest of registers 0 and 2: the same for machines with the same firmware.
    pub firmware: Hash,
    pub endorsement: Endorsement,
    /// Hash of the endorsement key that as many vouchers name as that takes.
    pub endorsement_key: Option<Hash>,
    /// Why it is not worth more.
    pub reasons: Vec<Degradation>,
}

impl Assessment {
    /// What a node is that claims so much of itself: a key on a disk is `plain` whatever the machine's TPM says.
    #[must_use]
    pub fn class_for(&self, claimed: TrustClass) -> TrustClass {
        if claimed == TrustClass::Plain { TrustClass::Plain } else { self.class }
    }
}

/// Why an honest-looking node is worth less. Each can be shown to its farmer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Degradation {
    #[error("no boot file was measured: boot by UEFI, with the TPM turned on in the firmware setup")]
    NothingBooted,
    #[error("{digest} ran before or instead of a release: boot an unmodified release, without other loaders")]
    UnknownBoot { digest: Hash },
    #[error(
        "the boot file was started with options or an initramfs ({digest}) that are not its own: make a boot entry \
         without options"
    )]
    UnknownOptions { digest: Hash },
    #[error("{digest}, which was started by kexec, is no release in force: upgrade the node")]
    UnknownKexec { digest: Hash },
    #[error(
        "register {pcr} does not show {digest}, which the release with boot file {release} predicts: boot that file \
         unmodified, or have its release say what it measures"
    )]
    NotMeasured { release: Hash, pcr: u8, digest: Hash },
    #[error(
        "{have} of {need} vouchers say that the TPM's endorsement key is {wanted}: register through more replicas"
    )]
    Vouchers { have: usize, need: usize, wanted: &'static str },
}

/// Why an attestation is thrown away as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    TooLarge(#[from] AttestationTooLarge),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Quote(#[from] QuoteError),
    #[error("the quote is for another moment, node or statement: quote again, over the newest header")]
    Nonce,
    #[error("the quote's header is {age_s} s older than the block, allowed are {limit_s} s: quote again")]
    Stale { age_s: u64, limit_s: u64 },
    #[error(
        "the node's attestation key was {known}, now it is {got}: the same node key in another TPM is a copy; a \
         machine with a new TPM registers as a new node"
    )]
    OtherTpm { known: Hash, got: Hash },
    #[error(
        "the node's TPM had the endorsement key {known}, now vouchers name {got}: the same node key in another TPM is a \
         copy; a machine with a new TPM registers as a new node"
    )]
    OtherEndorsement { known: Hash, got: Hash },
    #[error("the quote covers other registers than those asked for")]
    Selection,
    #[error("locality {locality} is none that firmware starts a TPM from: 0, 3 or 4")]
    Locality { locality: u8 },
    #[error("the events do not replay to the quoted registers: the log is altered, or incomplete")]
    Replay,
}

/// Weighs an attestation.
///
/// # Errors
/// [`Refusal`] when it proves nothing at all.
pub fn assess(attestation: &Attestation, claim: &Claim<'_>, policy: &Policy) -> Result<Assessment, Refusal> {
    attestation.check()?;
    let key = EccKey::decode(&attestation.key)?;
    key.check_attestation()?;
    check_quote(attestation, claim, &key)?;
    let events =
        |pcr: u8| attestation.events.iter().filter(move |event| event.pcr == pcr).map(|event| event.digest);

    let mut reasons = Vec::new();
    let (endorsement, endorsement_key) = endorsement(attestation, claim, &key, policy, &mut reasons);
    check_same_tpm(claim, key.hash(), endorsement_key)?;
    let release = running(&attestation.events, policy, &mut reasons);
    // The stub measures options even where there are none.
    let none = Hash::of_bytes(&[]);
    let known = |digest: &Hash| *digest == none || policy.options.contains(digest);
    let unknown = events(PCR_OPTIONS).filter(|digest| !known(digest));
    reasons.extend(unknown.map(|digest| Degradation::UnknownOptions { digest }));
    let class = if endorsement < policy.endorsement {
        TrustClass::Plain
    } else if reasons.is_empty() {
        TrustClass::Attested
    } else {
        TrustClass::Sealed
    };
    let firmware = pcr::replay(PcrSelection::of(&[0, 2]), attestation.locality, &attestation.events);
    Ok(Assessment {
        class,
        release,
        secure_boot: events(PCR_SECURE_BOOT).next().and_then(secure_boot),
        firmware: pcr::digest(&firmware),
        endorsement,
        endorsement_key,
        reasons,
    })
}

/// A node lives in one TPM. That has one endorsement key and can make any number of attestation keys beside it, so a
/// new one of these is no other TPM where vouchers name the endorsement key that is known.
fn check_same_tpm(claim: &Claim<'_>, got: Hash, endorsement: Option<Hash>) -> Result<(), Refusal> {
    let proved = match (claim.known_endorsement, endorsement) {
        (Some(known), Some(got)) if known != got => return Err(Refusal::OtherEndorsement { known, got }),
        (known, got) => known.is_some() && known == got,
    };
    match claim.known_key.filter(|known| *known != got && !proved) {
        Some(known) => Err(Refusal::OtherTpm { known, got }),
        None => Ok(()),
    }
}

/// Everything whose failure means a lie.
fn check_quote(attestation: &Attestation, claim: &Claim<'_>, key: &EccKey) -> Result<(), Refusal> {
    let got = key.hash();
    // Where no endorsement key can show that it is the same TPM, that is the first thing to say.
    if claim.known_endorsement.is_none() {
        check_same_tpm(claim, got, None)?;
    }
    let quote = Quote { attest: attestation.quote.clone(), signature: attestation.signature };
    let quoted = quote.verify(key)?;
    let Claim { chain, node, statement, header, .. } = claim;
    if quoted.nonce != Attestation::nonce(chain, attestation.height, header, node, statement, &got).0 {
        return Err(Refusal::Nonce);
    }
    if claim.header_age_ms > limits::QUOTE_FRESH_MS {
        return Err(Refusal::Stale {
            age_s: claim.header_age_ms / 1000,
            limit_s: limits::QUOTE_FRESH_MS / 1000,
        });
    }
    if quoted.selection != PcrSelection::QUOTED {
        return Err(Refusal::Selection);
    }
    if ![0, 3, 4].contains(&attestation.locality) {
        return Err(Refusal::Locality { locality: attestation.locality });
    }
    let values = pcr::replay(PcrSelection::QUOTED, attestation.locality, &attestation.events);
    if quoted.digest != pcr::digest(&values) {
        return Err(Refusal::Replay);
    }
    Ok(())
}

/// How well the TPM is known, by vouchers of different authors whom the policy names.
fn endorsement(
    attestation: &Attestation,
    claim: &Claim<'_>,
    key: &EccKey,
    policy: &Policy,
    reasons: &mut Vec<Degradation>,
) -> (Endorsement, Option<Hash>) {
    // All must speak of one endorsement key: two halves of a majority about two TPMs are none.
    let mut activated: BTreeMap<Hash, BTreeSet<PublicKey>> = BTreeMap::new();
    let mut certified = activated.clone();
    for signed in &attestation.vouchers {
        let voucher = &signed.voucher;
        let about_this = voucher.node == *claim.node && voucher.key == key.hash();
        if !about_this || !policy.vouchers.contains(&signed.by) || signed.verify(claim.chain).is_err() {
            continue;
        }
        activated.entry(voucher.endorsement).or_default().insert(signed.by);
        if voucher.certificate.is_some() {
            certified.entry(voucher.endorsement).or_default().insert(signed.by);
        }
    }
    let most = |by: &BTreeMap<Hash, BTreeSet<PublicKey>>| by.values().map(BTreeSet::len).max().unwrap_or(0);
    // Zero vouchers never make a TPM known, whatever the policy asks for.
    let need = policy.vouchers_needed.max(1);
    // Most vouchers; of equals the greatest hash, so that every replica takes the same one.
    let named = |by: &BTreeMap<Hash, BTreeSet<PublicKey>>| {
        let best = by.iter().max_by_key(|(_, authors)| authors.len());
        best.filter(|(_, authors)| authors.len() >= need).map(|(key, _)| *key)
    };
    let (reached, endorsement_key) = match (named(&certified), named(&activated)) {
        (Some(key), _) => (Endorsement::Certified, Some(key)),
        (None, Some(key)) => (Endorsement::Activated, Some(key)),
        (None, None) => (Endorsement::Unchecked, None),
    };
    if reached < policy.endorsement {
        let (have, wanted) = match policy.endorsement {
            Endorsement::Certified => (most(&certified), "genuine and holds the attestation key"),
            _ => (most(&activated), "beside the attestation key"),
        };
        reasons.push(Degradation::Vouchers { have, need, wanted });
    }
    (reached, endorsement_key)
}

/// The release that runs, and everything unknown that ran before it.
fn running(events: &[MeasuredEvent], policy: &Policy, reasons: &mut Vec<Degradation>) -> Option<Hash> {
    let of = |pcr: u8| events.iter().filter(move |event| event.pcr == pcr).map(|event| event.digest);
    let harmless = harmless();
    let mut release = None;
    let mut unknown = false;
    let mut started = Vec::new();
    for digest in of(PCR_BOOT).filter(|digest| !harmless.contains(digest) && !policy.loaders.contains(digest))
    {
        release = policy.releases.contains_key(&digest).then_some(digest);
        if release.is_none() {
            unknown = true;
            reasons.push(Degradation::UnknownBoot { digest });
        }
        started.extend(release.map(|release| (release, StartedBy::Firmware)));
    }
    if release.is_none() && !unknown {
        reasons.push(Degradation::NothingBooted);
    }
    for digest in of(PCR_KEXEC) {
        release = policy.releases.contains_key(&digest).then_some(digest);
        if release.is_none() {
            reasons.push(Degradation::UnknownKexec { digest });
        }
        started.extend(release.map(|release| (release, StartedBy::Kexec)));
    }
    // Of each release that ran, not of the last one alone: who ran earlier could have lied about what came later.
    for (release, by) in started {
        for Measurement { pcr, digest } in missing(&policy.releases[&release], by, events) {
            let reason = Degradation::NotMeasured { release, pcr: *pcr, digest: *digest };
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
    }
    release
}

/// Digests that every firmware extends into register 4 and that load nothing: its separator and its actions.
fn harmless() -> [Hash; 4] {
    [
        Hash::of_bytes(&[0; 4]),
        Hash::of_bytes(&[0xff; 4]),
        Hash::of_bytes(b"Calling EFI Application from Boot Option"),
        Hash::of_bytes(b"Returning from EFI Application from Boot Option"),
    ]
}

/// What register 7 begins with: UEFI_VARIABLE_DATA of `SecureBoot`.
#[must_use]
pub fn secure_boot_digest(on: bool) -> Hash {
    // 8be4df61-93ca-11d2-aa0d-00e098032b8c, EFI_GLOBAL_VARIABLE, as UEFI lays it out.
    let guid =
        [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
    let name: Vec<u8> = "SecureBoot".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let data: [&[u8]; 5] = [&guid, &10u64.to_le_bytes(), &1u64.to_le_bytes(), &name, &[u8::from(on)]];
    Hash::of_bytes(&data.concat())
}

fn secure_boot(digest: Hash) -> Option<bool> {
    [true, false].into_iter().find(|on| secure_boot_digest(*on) == digest)
}
