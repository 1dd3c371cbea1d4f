//! What quotes are worth on the ledger, and every way to lie with one.

use croft_attest::credential::Author;
use croft_attest::predict::predicted;
use croft_attest::review::{Check, Evidence, Review, review};
use croft_attest::soft::SoftTpm;
use croft_protocol::attestation::{SignedVoucher, Voucher};
use croft_protocol::release::{
    BootFile, FarmPolicy, KeyChange, Measurement, ReleaseKeys, Signatures, SignedKeyChange, SignedRelease,
    StopRule, add_signature,
};
use croft_protocol::trust::{Endorsement, RecentHeader, vouchers_needed};
use croft_protocol::{
    Body, Command, NodeTrouble, RecordId, ReleaseVersion, SecretKey, TroubleKind, ValidatorSet,
};
use proptest::prelude::*;

use super::*;
use crate::memory::{Scenario, key, name};

const RELEASE: Hash = Hash([0x11; 32]);
const EVIL: Hash = Hash([0x66; 32]);

fn policy(endorsement: Endorsement) -> TrustPolicy {
    TrustPolicy { endorsement, boot_files: vec![RELEASE], ..TrustPolicy::default() }
}

/// A grid of four validators without a node yet.
fn grid(endorsement: Endorsement) -> Scenario {
    let numbers = [101, 102, 103, 104];
    let keys: Vec<_> = numbers.iter().map(|n| key(*n).public()).collect();
    Scenario::with_policy(ValidatorSet::of_equals(&keys), &numbers, policy(endorsement))
}

fn sealed_body(scenario: &Scenario) -> NodeBody {
    NodeBody { trust: TrustClass::Sealed, ..scenario.node_body() }
}

fn newest(scenario: &Scenario) -> RecentHeader {
    let recent: RecentHeaders = scenario.ledger.read(&StateKey::RecentHeaders).unwrap().unwrap();
    *recent.headers.last().unwrap()
}

/// What an honest node with this TPM sends.
fn quote(scenario: &Scenario, tpm: &SoftTpm, node: NodeId, body: &NodeBody, images: &[Hash]) -> Attestation {
    let RecentHeader { height, hash, .. } = newest(scenario);
    let chain = scenario.ledger.chain();
    tpm.attest((&chain, height, hash, &node, Attestation::statement(body)), SoftTpm::booted(images))
}

fn register(
    scenario: &mut Scenario,
    by: &SecretKey,
    node: NodeBody,
    attestation: Option<Attestation>,
) -> Result<(), Rejection> {
    let first = scenario.ledger.node(&by.public()).unwrap().is_none();
    let join = first.then(|| scenario.join());
    let command = Command::RegisterNode { node, join, attestation: attestation.map(Box::new) };
    scenario.ledger.submit(by, command).map(drop)
}

fn refused(result: Result<(), Rejection>) -> RefusedQuote {
    match result {
        Err(Rejection::Attestation { reason, .. }) => reason,
        other => panic!("not refused for its quote: {other:?}"),
    }
}

fn trust(scenario: &Scenario) -> NodeTrust {
    scenario.ledger.node_trust(&scenario.node_id()).unwrap().unwrap()
}

fn class(scenario: &Scenario) -> TrustClass {
    scenario.ledger.node(&scenario.node_id()).unwrap().unwrap().trust
}

/// The node registers in its first boot.
fn registered(images: &[Hash]) -> (Scenario, SoftTpm) {
    let (mut scenario, tpm) = (grid(Endorsement::Unchecked), SoftTpm::new(7_u8));
    let (node, body) = (scenario.node.clone(), sealed_body(&scenario));
    let attestation = quote(&scenario, &tpm, node.public(), &body, images);
    register(&mut scenario, &node, body, Some(attestation)).unwrap();
    (scenario, tpm)
}

#[test]
fn a_known_boot_file_is_attested_and_an_unknown_one_sealed_with_its_name() {
    let (scenario, tpm) = registered(&[RELEASE]);
    assert_eq!(class(&scenario), TrustClass::Attested);
    let found = trust(&scenario);
    assert_eq!((found.release, found.reasons), (Some(RELEASE), vec![]));
    assert_eq!(found.key, Hash::of_bytes(&tpm.key()));
    let (scenario, _) = registered(&[EVIL]);
    assert_eq!(class(&scenario), TrustClass::Sealed);
    let found = trust(&scenario);
    assert_eq!(found.release, None);
    assert!(found.reasons[0].starts_with(&EVIL.to_string()), "{:?}", found.reasons);
}

/// A release of this boot file, in the channel that the node's farm follows.
fn publish(scenario: &mut Scenario, file: Hash, measurements: Vec<Measurement>) {
    let (chain, keys) = (scenario.ledger.chain(), ReleaseKeys::new(1, vec![key(61).public()]));
    let change = KeyChange { prev: None, keys };
    let mut signatures = Signatures::new();
    (101..=103).for_each(|n| add_signature(&mut signatures, change.sign(&key(n), &chain)));
    let set_keys = Command::SetReleaseKeys(Box::new(SignedKeyChange { change, signatures }));
    scenario.ledger.submit(&key(61), set_keys).unwrap();
    let (channel, none) = (name("stable"), ReleaseVersion::default());
    let policy = FarmPolicy { channel: channel.clone(), share_per_mille: 1000, window: None, hold: false };
    let (farm, farmer) = (scenario.farm, scenario.farmer.clone());
    scenario.ledger.submit(&farmer, Command::SetFarmPolicy { farm, policy }).unwrap();
    let boot_file =
        BootFile { sha256: Hash([1; 32]), size_bytes: 1, authenticode: file, manifest: Hash([3; 32]) };
    let release = Release {
        channel,
        version: "1.0.0".parse().unwrap(),
        previous: None,
        minimum: none,
        boot_file,
        measurements,
        stop: StopRule::default(),
        notes: String::new(),
    };
    let signatures = vec![release.sign(&key(61), &chain)];
    let publish = Command::PublishRelease(Box::new(SignedRelease { release, signatures }));
    scenario.ledger.submit(&key(61), publish).unwrap();
}

#[test]
fn a_release_that_left_all_that_it_predicts_is_attested_and_another_one_sealed() {
    let file = Hash([0x22; 32]);
    let absent = Measurement { pcr: 9, digest: Hash([4; 32]) };
    let cases = [
        (vec![], TrustClass::Attested),
        (predicted(file), TrustClass::Attested),
        ([predicted(file), vec![absent]].concat(), TrustClass::Sealed),
    ];
    for (mut measurements, expected) in cases {
        measurements.sort_unstable();
        let (mut scenario, tpm) = (grid(Endorsement::Unchecked), SoftTpm::new(7_u8));
        publish(&mut scenario, file, measurements);
        let (node, body) = (scenario.node.clone(), sealed_body(&scenario));
        let attestation = quote(&scenario, &tpm, node.public(), &body, &[file]);
        register(&mut scenario, &node, body, Some(attestation)).unwrap();
        assert_eq!((class(&scenario), trust(&scenario).release), (expected, Some(file)));
        let named = format!("register 9 does not show {}", absent.digest);
        let reasons = trust(&scenario).reasons;
        assert_eq!(reasons.iter().any(|reason| reason.starts_with(&named)), expected == TrustClass::Sealed);
    }
}

/// What a bot finds out that sees the same ledger, and this header where the quote names one.
fn reviewed_with(scenario: &Scenario, header: impl FnOnce(RecentHeader) -> Option<RecentHeader>) -> Review {
    let (ledger, node) = (&scenario.ledger, scenario.node_id());
    let body = ledger.node(&node).unwrap().unwrap();
    let (trust, quote) = (ledger.node_trust(&node).unwrap(), ledger.node_quote(&node).unwrap());
    let known = trust.as_ref().zip(quote.as_ref());
    let final_header = |(_, quote): (_, &WeighedQuote)| {
        let signed = &ledger.headers()[usize::try_from(quote.header.height).unwrap()];
        let croft_protocol::Header { height, time_ms, .. } = signed.header;
        header(RecentHeader { height, time_ms, hash: signed.header.hash() })
    };
    let header = known.and_then(final_header);
    let chain = ledger.chain();
    let evidence = Evidence { chain: &chain, node: &node, body: &body, known, header };
    review(&evidence, &super::policy(ledger, &body.farm).unwrap())
}

fn reviewed(scenario: &Scenario) -> Review {
    reviewed_with(scenario, Some)
}

fn checked(review: &Review, check: Check) -> (Option<bool>, &str) {
    let found = review.checks.iter().find(|checked| checked.check == check);
    found.map_or((None, ""), |checked| (checked.passed, checked.detail.as_str()))
}

#[test]
fn a_bot_finds_out_itself_what_the_ledger_says_and_every_check_is_named() {
    let (scenario, _) = registered(&[RELEASE]);
    let review = reviewed(&scenario);
    assert_eq!((review.class, review.agrees()), (TrustClass::Attested, true));
    let passed = |review: &Review, check| checked(review, check).0;
    for check in [
        Check::Quote,
        Check::Signature,
        Check::Nonce,
        Check::Header,
        Check::Fresh,
        Check::Statement,
        Check::Replay,
        Check::BootFile,
        Check::Measurements,
        Check::Options,
        Check::Endorsement,
        Check::Key,
    ] {
        assert_eq!(passed(&review, check), Some(true), "{check:?}: {:?}", review.checks);
    }
    assert_eq!(review.checks.iter().filter(|checked| checked.check != Check::SecureBoot).count(), 12);
    assert!(review.checks.is_sorted_by_key(|checked| checked.check));
    let (scenario, _) = registered(&[EVIL]);
    let review = reviewed(&scenario);
    assert_eq!((review.class, review.agrees()), (TrustClass::Sealed, true));
    let (passed, detail) = checked(&review, Check::BootFile);
    assert!(passed == Some(false) && detail.starts_with(&EVIL.to_string()), "{detail}");
}

#[test]
fn a_bot_sees_through_validators_that_made_a_node_better_than_its_quote() {
    let (scenario, tpm) = registered(&[EVIL]);
    let (ledger, node) = (&scenario.ledger, scenario.node_id());
    let body = NodeBody { trust: TrustClass::Attested, ..ledger.node(&node).unwrap().unwrap() };
    let (trust, quote) =
        (ledger.node_trust(&node).unwrap().unwrap(), ledger.node_quote(&node).unwrap().unwrap());
    let policy = super::policy(ledger, &body.farm).unwrap();
    let chain = ledger.chain();
    let judge = |quote: &WeighedQuote, header: Option<RecentHeader>| {
        let evidence =
            Evidence { chain: &chain, node: &node, body: &body, known: Some((&trust, quote)), header };
        review(&evidence, &policy)
    };
    let found = judge(&quote, Some(quote.header));
    assert_eq!(
        (found.class, found.ledger, found.agrees()),
        (TrustClass::Sealed, TrustClass::Attested, false)
    );
    // Another log, another machine, another statement, another moment: each is plain, and the check says why.
    let mut log = quote.clone();
    log.attestation.events.retain(|event| event.digest != EVIL);
    let mut key = quote.clone();
    key.attestation.key = SoftTpm::new(8_u8).key();
    let mut larger = quote.clone();
    larger.node.capacity.cpu_millis += 1;
    let bound = (&chain, quote.header.height, Hash([9; 32]), &node, Attestation::statement(&quote.node));
    let elsewhere =
        WeighedQuote { attestation: tpm.attest(bound, SoftTpm::booted(&[RELEASE])), ..quote.clone() };
    let late =
        WeighedQuote { time_ms: quote.header.time_ms + limits::QUOTE_FRESH_MS + 1_000, ..quote.clone() };
    for (forged, check) in [
        (&log, Check::Replay),
        (&key, Check::Signature),
        (&larger, Check::Nonce),
        (&elsewhere, Check::Nonce),
        (&late, Check::Fresh),
    ] {
        let found = judge(forged, Some(quote.header));
        assert_eq!((found.class, checked(&found, check).0), (TrustClass::Plain, Some(false)), "{check:?}");
    }
    let (passed, detail) = (judge(&larger, Some(quote.header)), Check::Statement);
    assert_eq!(checked(&passed, detail).0, Some(false), "the record says another size");
    // A header that is not the final one is no moment at all; one that nobody shows any more is said to be that.
    let other = RecentHeader { hash: Hash([9; 32]), ..quote.header };
    let found = judge(&quote, Some(other));
    assert_eq!((found.class, checked(&found, Check::Header).0), (TrustClass::Plain, Some(false)));
    let found = judge(&quote, None);
    assert_eq!((found.class, checked(&found, Check::Header).0), (TrustClass::Sealed, None));
    assert!(checked(&found, Check::Header).1.contains("the ledger's word is taken"), "{:?}", found.checks);
}

#[test]
fn a_claim_without_a_quote_is_plain() {
    for claimed in [TrustClass::Plain, TrustClass::Sealed, TrustClass::Attested] {
        let mut scenario = grid(Endorsement::Unchecked);
        let (node, body) = (scenario.node.clone(), scenario.node_body());
        register(&mut scenario, &node, NodeBody { trust: claimed, ..body }, None).unwrap();
        assert_eq!(class(&scenario), TrustClass::Plain);
        assert_eq!(scenario.ledger.node_trust(&node.public()).unwrap(), None);
    }
}

#[test]
fn a_key_on_a_disk_is_plain_whatever_its_machine_booted() {
    let (mut scenario, tpm) = (grid(Endorsement::Unchecked), SoftTpm::new(7_u8));
    let (node, body) = (scenario.node.clone(), scenario.node_body());
    let attestation = quote(&scenario, &tpm, node.public(), &body, &[RELEASE]);
    register(&mut scenario, &node, body, Some(attestation)).unwrap();
    assert_eq!(class(&scenario), TrustClass::Plain);
    assert!(trust(&scenario).reasons[0].contains("on a disk"), "{:?}", trust(&scenario));
}

#[test]
fn a_replayed_quote_is_refused() {
    let (mut scenario, tpm) = registered(&[RELEASE]);
    let node = scenario.node.clone();
    let first = sealed_body(&scenario);
    let old = quote(&scenario, &tpm, node.public(), &first, &[RELEASE]);
    let next = NodeBody { session: 2, ..first };
    assert_eq!(refused(register(&mut scenario, &node, next.clone(), Some(old.clone()))), RefusedQuote::Nonce);
    // The same moment, but another height written over it.
    let at_ms = scenario.now_ms() + limits::RECENT_HEADER_EVERY_MS;
    scenario.ledger.commit(at_ms, &[]);
    scenario.ledger.commit(at_ms + 1, &[]);
    let moved = Attestation { height: newest(&scenario).height, ..old };
    assert_eq!(refused(register(&mut scenario, &node, next, Some(moved))), RefusedQuote::Nonce);
    assert_eq!(class(&scenario), TrustClass::Attested, "what was refused changes nothing");
}

#[test]
fn a_header_that_is_none_of_the_recent_ones_is_refused() {
    let (mut scenario, tpm) = registered(&[RELEASE]);
    let (node, chain) = (scenario.node.clone(), scenario.ledger.chain());
    let body = NodeBody { session: 2, ..sealed_body(&scenario) };
    // A real header, which the ledger did not keep: they would have been two of one moment.
    let tip = scenario.ledger.tip().header;
    let bound = (&chain, tip.height, tip.hash(), &node.public(), Attestation::statement(&body));
    let attestation = tpm.attest(bound, SoftTpm::booted(&[RELEASE]));
    let reason = refused(register(&mut scenario, &node, body, Some(attestation)));
    assert_eq!(reason, RefusedQuote::Header { height: tip.height, first: 0, last: 0 });
    assert!(reason.to_string().ends_with("quote again, over the newest"), "{reason}");
}

#[test]
fn a_quote_is_good_until_it_is_stale_and_not_a_second_longer() {
    for (late_ms, stale) in [(0, false), (1_000, true)] {
        let (mut scenario, tpm) = registered(&[RELEASE]);
        let node = scenario.node.clone();
        let body = NodeBody { session: 2, ..sealed_body(&scenario) };
        let attestation = quote(&scenario, &tpm, node.public(), &body, &[RELEASE]);
        let at_ms = newest(&scenario).time_ms + limits::QUOTE_FRESH_MS + late_ms;
        let command =
            Command::RegisterNode { node: body, join: None, attestation: Some(Box::new(attestation)) };
        let result = scenario.ledger.submit_at(at_ms, &node, command).map(drop);
        if !stale {
            result.unwrap();
            continue;
        }
        // By then it is dropped from the recent ones, or older than a quote may be: either way it says so.
        match refused(result) {
            RefusedQuote::Stale { age_s, limit_s } => assert_eq!((age_s, limit_s), (601, 600)),
            RefusedQuote::Header { height, .. } => assert_eq!(height, 0),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_copy_of_the_key_in_another_tpm_is_refused_with_the_remedy() {
    let (mut scenario, _) = registered(&[RELEASE]);
    let (node, other) = (scenario.node.clone(), SoftTpm::new(8_u8));
    let body = NodeBody { session: 2, ..sealed_body(&scenario) };
    let attestation = quote(&scenario, &other, node.public(), &body, &[RELEASE]);
    let reason = refused(register(&mut scenario, &node, body, Some(attestation)));
    assert!(matches!(reason, RefusedQuote::OtherTpm { .. }), "{reason}");
    assert!(reason.to_string().contains("put the disk back into its machine, or wipe it"), "{reason}");
}

#[test]
fn another_machines_quote_is_refused() {
    let (mut scenario, tpm) = registered(&[RELEASE]);
    // A node of another key shows what the first one's TPM said of that one.
    let second = key(40);
    let body = NodeBody { name: name("n2"), ..sealed_body(&scenario) };
    let stolen = quote(&scenario, &tpm, scenario.node_id(), &body, &[RELEASE]);
    assert_eq!(refused(register(&mut scenario, &second, body, Some(stolen))), RefusedQuote::Nonce);
}

#[test]
fn one_tpm_is_one_node() {
    let (mut scenario, tpm) = registered(&[RELEASE]);
    let second = key(40);
    let body = NodeBody { name: name("n2"), ..sealed_body(&scenario) };
    let attestation = quote(&scenario, &tpm, second.public(), &body, &[RELEASE]);
    let reason = refused(register(&mut scenario, &second, body, Some(attestation)));
    assert_eq!(reason, RefusedQuote::TpmTaken { node: scenario.node_id() });
    assert!(reason.to_string().contains("clear the TPM"), "{reason}");
}

/// A quote with vouchers of two validators, who saw the maker's certificate of the endorsement key.
fn vouched(scenario: &Scenario, tpm: &SoftTpm, node: NodeId, body: &NodeBody) -> Attestation {
    let mut attestation = quote(scenario, tpm, node, body, &[RELEASE]);
    let voucher = Voucher {
        node,
        key: attestation.key_hash(),
        endorsement: Hash::of_bytes(&tpm.introduce().endorsement),
        certificate: Some(Hash([0xce; 32])),
        height: 1,
    };
    let vouch = |n| SignedVoucher::sign(voucher.clone(), &scenario.ledger.chain(), &key(n));
    attestation.vouchers = vec![vouch(101), vouch(102)];
    attestation
}

/// The node registers in its first boot, its TPM vouched for.
fn certified() -> (Scenario, SoftTpm, NodeBody) {
    let (mut scenario, tpm) = (grid(Endorsement::Certified), SoftTpm::new(7_u8));
    let (node, body) = (scenario.node.clone(), sealed_body(&scenario));
    let attestation = vouched(&scenario, &tpm, node.public(), &body);
    register(&mut scenario, &node, body.clone(), Some(attestation)).unwrap();
    assert_eq!(class(&scenario), TrustClass::Attested, "{:?}", trust(&scenario));
    (scenario, tpm, body)
}

#[test]
fn one_tpm_is_one_node_whatever_attestation_keys_it_makes() {
    let (mut scenario, tpm, body) = certified();
    let endorsement = Hash::of_bytes(&tpm.introduce().endorsement);
    assert_eq!(trust(&scenario).endorsement_key, Some(endorsement));
    let (second, body) = (key(40), NodeBody { name: name("n2"), ..body });
    let attestation = vouched(&scenario, &tpm.with_other_key(8_u8), second.public(), &body);
    let reason = refused(register(&mut scenario, &second, body.clone(), Some(attestation)));
    assert_eq!(reason, RefusedQuote::EndorsementTaken { node: scenario.node_id() });
    let text = reason.to_string();
    assert!(text.starts_with(&format!("its TPM already speaks for node {}", scenario.node_id())), "{text}");
    assert!(text.contains("wait until that node's last quote is stale, or turn the TPM off"), "{text}");
    // Vouchers for nothing but the attestation key are no way around: without enough of them it is plain.
    let mut attestation = vouched(&scenario, &tpm.with_other_key(8_u8), second.public(), &body);
    attestation.vouchers.pop();
    register(&mut scenario, &second, body, Some(attestation)).unwrap();
    assert_eq!(scenario.ledger.node(&second.public()).unwrap().unwrap().trust, TrustClass::Plain);
    // A genuine second machine is welcome.
    let (third, body) = (key(41), NodeBody { name: name("n3"), ..sealed_body(&scenario) });
    let attestation = vouched(&scenario, &SoftTpm::new(9_u8), third.public(), &body);
    register(&mut scenario, &third, body, Some(attestation)).unwrap();
    assert_eq!(scenario.ledger.node(&third.public()).unwrap().unwrap().trust, TrustClass::Attested);
}

#[test]
fn a_machine_that_was_sold_is_another_node_once_the_first_one_is_stale() {
    let (mut scenario, tpm, body) = certified();
    let endorsement = Hash::of_bytes(&tpm.introduce().endorsement);
    let first = scenario.node_id();
    let at_ms = scenario.now_ms() + TrustPolicy::default().stale_after_s * 1000 + 1;
    scenario.ledger.commit(at_ms, &[]);
    scenario.ledger.commit(at_ms + 1, &[]);
    let (second, sold) = (key(40), NodeBody { name: name("n2"), ..body.clone() });
    let attestation = vouched(&scenario, &tpm.with_other_key(8_u8), second.public(), &sold);
    register(&mut scenario, &second, sold, Some(attestation)).unwrap();
    assert_eq!(scenario.ledger.node(&second.public()).unwrap().unwrap().trust, TrustClass::Attested);
    assert_eq!(trust(&scenario).endorsement_key, None, "it speaks for the other one now");
    assert_eq!(scenario.ledger.read(&StateKey::Endorsement(endorsement)).unwrap(), Some(second.public()));
    // The node that it was can't come back beside it.
    let again = NodeBody { session: 2, ..body };
    let attestation = vouched(&scenario, &tpm, first, &again);
    let node = scenario.node.clone();
    let reason = refused(register(&mut scenario, &node, again, Some(attestation)));
    assert_eq!(reason, RefusedQuote::EndorsementTaken { node: second.public() });
}

#[test]
fn a_node_may_have_a_new_attestation_key_in_its_own_tpm_and_in_no_other() {
    let (mut scenario, tpm, body) = certified();
    let (node, before) = (scenario.node.clone(), trust(&scenario).key);
    let next = NodeBody { session: 2, ..body };
    let renewed = tpm.with_other_key(8_u8);
    // Unless vouchers show that it is the same TPM, it looks like another one.
    let silent = quote(&scenario, &renewed, node.public(), &next, &[RELEASE]);
    let reason = refused(register(&mut scenario, &node, next.clone(), Some(silent)));
    assert!(matches!(reason, RefusedQuote::OtherTpm { .. }), "{reason}");
    let attestation = vouched(&scenario, &renewed, node.public(), &next);
    register(&mut scenario, &node, next.clone(), Some(attestation)).unwrap();
    assert_eq!(class(&scenario), TrustClass::Attested);
    let after = trust(&scenario);
    assert_eq!(after.key, Hash::of_bytes(&renewed.key()));
    assert_ne!(after.key, before);
    assert_eq!(scenario.ledger.read::<NodeId>(&StateKey::TpmKey(before)).unwrap(), None, "it was let go");
    assert!(reviewed(&scenario).agrees(), "{:?}", reviewed(&scenario).checks);
    // The same attestation key beside another endorsement key is no TPM at all.
    let next = NodeBody { session: 3, ..next };
    let other = SoftTpm::new(9_u8).with_other_key(8_u8);
    let attestation = vouched(&scenario, &other, node.public(), &next);
    let reason = refused(register(&mut scenario, &node, next.clone(), Some(attestation))).to_string();
    assert!(reason.starts_with("the node's TPM had the endorsement key "), "{reason}");
    assert!(reason.contains("the same node key in another TPM is a copy"), "{reason}");
    // And a boot without vouchers forgets nothing.
    let plain = quote(&scenario, &renewed, node.public(), &next, &[RELEASE]);
    register(&mut scenario, &node, next, Some(plain)).unwrap();
    assert_eq!(
        (class(&scenario), trust(&scenario).endorsement_key),
        (TrustClass::Plain, after.endorsement_key)
    );
}

#[test]
fn what_the_quote_was_not_about_is_refused() {
    let (mut scenario, tpm) = registered(&[RELEASE]);
    let node = scenario.node.clone();
    let body = NodeBody { session: 2, ..sealed_body(&scenario) };
    let honest = quote(&scenario, &tpm, node.public(), &body, &[RELEASE]);
    let mut larger = body.clone();
    larger.capacity.cpu_millis += 1;
    assert_eq!(refused(register(&mut scenario, &node, larger, Some(honest.clone()))), RefusedQuote::Nonce);
    let mut log = honest.clone();
    log.events.pop();
    assert_eq!(refused(register(&mut scenario, &node, body.clone(), Some(log))), RefusedQuote::Replay);
    let mut signature = honest.clone();
    signature.quote[20] ^= 1;
    assert_eq!(
        refused(register(&mut scenario, &node, body.clone(), Some(signature))),
        RefusedQuote::Signature
    );
    let huge = Attestation { events: vec![honest.events[0]; limits::MEASURED_EVENTS + 1], ..honest };
    let reason = refused(register(&mut scenario, &node, body, Some(huge))).to_string();
    assert_eq!(reason, "the attestation's events has 513, more than the limit of 512");
}

#[test]
fn silence_after_a_quote_is_visible_and_the_tpm_stays_the_nodes() {
    let (mut scenario, tpm) = registered(&[RELEASE]);
    let node = scenario.node.clone();
    let body = sealed_body(&scenario);
    // Only where it is reached, and what is wrong with it, may change without a new quote.
    let moved = NodeBody { addresses: vec!["192.0.2.9".to_owned()], ..body.clone() };
    register(&mut scenario, &node, moved.clone(), None).unwrap();
    assert_eq!(class(&scenario), TrustClass::Attested);
    let trouble = NodeTrouble::new(TroubleKind::Disk, "sda", "it expects to fail soon", "replace the disk");
    let failing = NodeBody { troubles: vec![trouble], ..moved };
    register(&mut scenario, &node, failing.clone(), None).unwrap();
    assert_eq!(class(&scenario), TrustClass::Attested);
    let record = scenario.ledger.record(&RecordId::node(&node.public())).unwrap().unwrap();
    assert_eq!(record.body, Body::Node(NodeBody { trust: TrustClass::Attested, ..failing }));
    let mut grown = body.clone();
    grown.capacity.cpu_millis += 1;
    register(&mut scenario, &node, grown, None).unwrap();
    assert_eq!(class(&scenario), TrustClass::Plain);
    assert!(trust(&scenario).reasons[0].contains("register again with a quote"), "{:?}", trust(&scenario));
    let next = NodeBody { session: 2, ..body };
    register(&mut scenario, &node, next.clone(), None).unwrap();
    assert_eq!(class(&scenario), TrustClass::Plain);
    assert!(trust(&scenario).reasons[0].contains("earlier boot"), "{:?}", trust(&scenario));
    let other = quote(&scenario, &SoftTpm::new(8_u8), node.public(), &next, &[RELEASE]);
    let reason = refused(register(&mut scenario, &node, next.clone(), Some(other)));
    assert!(matches!(reason, RefusedQuote::OtherTpm { .. }), "{reason}");
    // And back, in the same boot.
    let again = quote(&scenario, &tpm, node.public(), &next, &[RELEASE]);
    register(&mut scenario, &node, next, Some(again)).unwrap();
    assert_eq!(class(&scenario), TrustClass::Attested);
}

#[test]
fn a_strict_grid_wants_vouchers_of_more_than_a_third_of_its_validators() {
    let cases: [(Endorsement, &[u8], Option<Hash>, TrustClass); 5] = [
        (Endorsement::Activated, &[101, 102], None, TrustClass::Attested),
        (Endorsement::Activated, &[101], None, TrustClass::Plain),
        // A bot is no validator.
        (Endorsement::Activated, &[101, 1], None, TrustClass::Plain),
        (Endorsement::Certified, &[101, 102, 103], None, TrustClass::Plain),
        (Endorsement::Certified, &[101, 103], Some(Hash([0xce; 32])), TrustClass::Attested),
    ];
    for (endorsement, by, certificate, expected) in cases {
        let (mut scenario, tpm) = (grid(endorsement), SoftTpm::new(7_u8));
        let (node, body, chain) = (scenario.node.clone(), sealed_body(&scenario), scenario.ledger.chain());
        let mut attestation = quote(&scenario, &tpm, node.public(), &body, &[RELEASE]);
        let voucher = Voucher {
            node: node.public(),
            key: attestation.key_hash(),
            endorsement: Hash::of_bytes(&tpm.introduce().endorsement),
            certificate,
            height: 1,
        };
        let vouch = |n: &u8| SignedVoucher::sign(voucher.clone(), &chain, &key(*n));
        attestation.vouchers = by.iter().map(vouch).collect();
        register(&mut scenario, &node, body, Some(attestation)).unwrap();
        assert_eq!(class(&scenario), expected, "{endorsement:?} {by:?}: {:?}", trust(&scenario).reasons);
    }
    assert_eq!([1, 2, 3, 4, 7, 64].map(vouchers_needed), [1, 1, 2, 2, 3, 16]);
    // Somebody's keys introduce themselves well: the author would give each a credential of its own.
    let (chain, by) = (grid(Endorsement::Activated).ledger.chain(), key(101));
    let author = Author { chain: &chain, key: &by, makers: &[] };
    let entropy = zeroize::Zeroizing::new([5; 64]);
    author.introduce(key(4).public(), &SoftTpm::new(7_u8).introduce(), 1, &entropy).unwrap();
}

#[test]
fn a_second_machine_with_the_same_key_is_refused_or_takes_over() {
    let (mut scenario, _) = registered(&[RELEASE]);
    let node = scenario.node.clone();
    let body = sealed_body(&scenario);
    let mut twin = body.clone();
    twin.hardware.inventory = Hash([0x77; 32]);
    let error = register(&mut scenario, &node, twin, None).unwrap_err();
    assert!(error.to_string().contains("the same key runs twice"), "{error}");
    // A later session ends the earlier one: its reports and registrations are refused from then on.
    register(&mut scenario, &node, NodeBody { session: 9, ..body.clone() }, None).unwrap();
    let error = register(&mut scenario, &node, NodeBody { session: 8, ..body }, None).unwrap_err();
    assert!(matches!(error, Rejection::StaleSession { got: 8, known: 9, .. }), "{error}");
    let now_ms = scenario.now_ms();
    let report = scenario.report_body(now_ms, now_ms, vec![]);
    let error = scenario.ledger.submit(&node, Command::Report(report)).unwrap_err();
    assert!(matches!(error, Rejection::StaleSession { got: 1, known: 9, .. }), "{error}");
}

#[derive(Debug, Clone)]
enum Act {
    /// Time passes.
    Wait { ms: u64 },
    /// A machine boots and registers: with which TPM, which image, whether it quotes, whether the quote is kept for later.
    Boot { tpm: u8, known_image: bool, quotes: bool },
    /// It says the same again without a quote, from elsewhere or with another size.
    Change { grows: bool },
    /// Somebody brings the last good quote once more, in a new session.
    Replay,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => (0_u64..700_000).prop_map(|ms| Act::Wait { ms }),
        4 => (7_u8..9, any::<bool>(), prop::bool::weighted(0.8))
            .prop_map(|(tpm, known_image, quotes)| Act::Boot { tpm, known_image, quotes }),
        2 => any::<bool>().prop_map(|grows| Act::Change { grows }),
        1 => Just(Act::Replay),
    ]
}

/// What a naive reader of the rules expects.
#[derive(Default)]
struct Model {
    tpm: Option<u8>,
    class: Option<TrustClass>,
    session: u64,
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(48)
    })]

    /// Whatever machines boot with one key: the class is what the last accepted registration showed, and the first TPM
    /// that spoke is the only one that ever does.
    #[test]
    fn trust_follows_the_naive_rules(acts in prop::collection::vec(act(), 1..30)) {
        let mut scenario = grid(Endorsement::Unchecked);
        let node = scenario.node.clone();
        let mut model = Model::default();
        let mut body = sealed_body(&scenario);
        let mut last: Option<Attestation> = None;
        for act in acts {
            match act {
                Act::Wait { ms } => {
                    let at_ms = scenario.now_ms() + 1 + ms;
                    scenario.ledger.commit(at_ms, &[]);
                    // The header of the wait's end can be quoted from here on.
                    scenario.ledger.commit(at_ms + 1, &[]);
                }
                Act::Boot { tpm, known_image, quotes } => {
                    let after = NodeBody { session: model.session + 1, ..body.clone() };
                    let image = if known_image { RELEASE } else { EVIL };
                    let attestation =
                        quotes.then(|| quote(&scenario, &SoftTpm::new(tpm), node.public(), &after, &[image]));
                    let found = register(&mut scenario, &node, after.clone(), attestation.clone());
                    let expected = !quotes || model.tpm.is_none_or(|known| known == tpm);
                    prop_assert_eq!(found.is_ok(), expected, "{:?}", found);
                    if expected {
                        model.session += 1;
                        body = after;
                        let sealed = if known_image { TrustClass::Attested } else { TrustClass::Sealed };
                        model.class = Some(if quotes { sealed } else { TrustClass::Plain });
                        if quotes {
                            model.tpm = Some(tpm);
                            last = attestation;
                        }
                    }
                }
                Act::Change { grows } => {
                    let Some(class) = model.class else { continue };
                    body.addresses = vec![format!("192.0.2.{}", body.addresses[0].len())];
                    if grows {
                        body.capacity.cpu_millis += 1;
                    }
                    register(&mut scenario, &node, body.clone(), None).unwrap();
                    model.class = Some(if grows { TrustClass::Plain } else { class });
                }
                Act::Replay => {
                    let Some(old) = last.clone() else { continue };
                    let after = NodeBody { session: model.session + 1, ..body.clone() };
                    let reason = refused(register(&mut scenario, &node, after, Some(old)));
                    let old = matches!(
                        reason,
                        RefusedQuote::Nonce | RefusedQuote::Stale { .. } | RefusedQuote::Header { .. }
                    );
                    prop_assert!(old, "{}", reason);
                }
            }
            let found = scenario.ledger.node(&node.public()).unwrap().map(|node| node.trust);
            prop_assert_eq!(found, model.class);
            if found.is_some() {
                let review = reviewed(&scenario);
                prop_assert!(review.agrees(), "a bot finds {:?}: {:?}", review.class, review.checks);
            }
            let key = scenario.ledger.node_trust(&node.public()).unwrap().map(|trust| trust.key);
            prop_assert_eq!(key, model.tpm.map(|tpm| Hash::of_bytes(&SoftTpm::new(tpm).key())));
        }
    }
}
