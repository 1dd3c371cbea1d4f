//! Whole registrations: a machine boots, quotes, and is weighed; and every way to lie about it.

use std::collections::BTreeSet;

use croft_attest::assess::secure_boot_digest;
use croft_attest::credential::Challenge;
use croft_attest::event_log::kind;
use croft_attest::predict::predicted;
use croft_attest::{
    Claim, Degradation, Endorsement, EventLog, MeasuredBoot, PcrSelection, Policy, Refusal, assess,
};
use croft_protocol::attestation::{Attestation, MeasuredEvent, SignedVoucher};
use croft_protocol::record::TrustClass;
use croft_protocol::release::Measurement;
use croft_protocol::{ChainId, Hash, NodeId, SecretKey, limits};
use croft_tpm::Moment;
use croft_tpm::swtpm::{Powered, Swtpm};
use zeroize::Zeroizing;

/// EV_EVENT_TAG: what the kernel's stub measures.
const EVENT_TAG: u32 = 6;
const CHAIN: ChainId = ChainId(Hash([0xc0; 32]));
const RELEASE: Hash = Hash([0x11; 32]);
const UPGRADE: Hash = Hash([0x22; 32]);
const EVIL: Hash = Hash([0x66; 32]);
const HEADER: Hash = Hash([0x33; 32]);
const STATEMENT: Hash = Hash([0x44; 32]);

fn node() -> NodeId {
    SecretKey::from_seed(&[1; 32]).public()
}

fn replica() -> SecretKey {
    SecretKey::from_seed(&[2; 32])
}

/// Boots as OVMF measures it: the log, and the registers with it.
fn boot(swtpm: &Swtpm, images: &[Hash]) -> (Powered, MeasuredBoot) {
    let mut machine = swtpm.power_on();
    let separator = Hash::of_bytes(&[0; 4]);
    let calling = Hash::of_bytes(b"Calling EFI Application from Boot Option");
    let event = |pcr, kind, digest| MeasuredEvent { pcr, kind, digest };
    let mut events = vec![
        event(0, 8, Hash([0xa0; 32])),
        event(7, kind::EFI_VARIABLE_DRIVER_CONFIG, secure_boot_digest(true)),
        event(7, kind::EFI_VARIABLE_DRIVER_CONFIG, Hash([0xa7; 32])),
        event(4, kind::EFI_ACTION, calling),
    ];
    events.extend([0, 2, 4, 7].map(|pcr| event(pcr, kind::SEPARATOR, separator)));
    events.extend(images.iter().map(|image| event(4, kind::EFI_BOOT_SERVICES_APPLICATION, *image)));
    events.push(event(9, EVENT_TAG, Hash::of_bytes(&[])));
    for event in &events {
        machine.tpm.pcr_extend(event.pcr, &event.digest).unwrap();
    }
    (machine, MeasuredBoot { locality: 0, events })
}

fn claim() -> Claim<'static> {
    static NODE: std::sync::LazyLock<NodeId> = std::sync::LazyLock::new(node);
    Claim {
        chain: &CHAIN,
        node: &NODE,
        statement: STATEMENT,
        header: HEADER,
        header_age_ms: 5_000,
        known_key: None,
        known_endorsement: None,
    }
}

/// A boot file and what `croft release prepare` predicts of it.
fn released(file: Hash) -> (Hash, BTreeSet<Measurement>) {
    (file, predicted(file).into_iter().collect())
}

fn policy() -> Policy {
    Policy {
        releases: [RELEASE, UPGRADE].map(released).into(),
        loaders: BTreeSet::new(),
        options: BTreeSet::new(),
        endorsement: Endorsement::Certified,
        vouchers: BTreeSet::from([replica().public()]),
        vouchers_needed: 1,
    }
}

/// What the node does at registration.
fn attest(machine: &mut Powered, boot: &MeasuredBoot) -> Attestation {
    let vouchers = vec![vouch(machine, Some(Hash([0xce; 32])))];
    let moment = Moment { chain: &CHAIN, height: 9, header: HEADER, node: &node(), statement: STATEMENT };
    machine.tpm.attest(&moment, boot.clone(), vouchers).unwrap()
}

/// The dialogue with a replica, which takes the certificate's word here.
fn vouch(machine: &mut Powered, certificate: Option<Hash>) -> SignedVoucher {
    let (attestation, endorsement) =
        (machine.tpm.attestation_key().unwrap().key, machine.tpm.endorsement_key().unwrap());
    let entropy = Zeroizing::new([8; 64]);
    let (challenge, credential) =
        Challenge::new(node(), &attestation, &endorsement, certificate, &entropy).unwrap();
    let answer = machine.tpm.activate_credential(&credential).unwrap();
    SignedVoucher::sign(challenge.answer(&answer, 8).unwrap(), &CHAIN, &replica())
}

fn honest(swtpm: &Swtpm) -> Attestation {
    let (mut machine, measured) = boot(swtpm, &[RELEASE]);
    attest(&mut machine, &measured)
}

#[test]
fn a_release_on_a_genuine_tpm_is_attested() {
    let swtpm = Swtpm::new();
    let attestation = honest(&swtpm);
    let known = Claim { known_key: Some(attestation.key_hash()), ..claim() };
    for claim in [claim(), known] {
        let assessment = assess(&attestation, &claim, &policy()).unwrap();
        assert_eq!(assessment.class, TrustClass::Attested);
        assert_eq!(assessment.release, Some(RELEASE));
        assert_eq!(assessment.secure_boot, Some(true));
        assert_eq!(assessment.endorsement, Endorsement::Certified);
        assert_eq!(assessment.reasons, []);
    }
    let bytes = croft_protocol::encode(&attestation);
    assert!(bytes.len() < 2048, "a registration grows by {} bytes", bytes.len());
}

#[test]
fn a_log_that_explains_nothing_is_noticed_by_the_node_itself() {
    let swtpm = Swtpm::new();
    let (mut machine, mut measured) = boot(&swtpm, &[RELEASE]);
    measured.events.retain(|event| event.digest != RELEASE);
    let moment = Moment { chain: &CHAIN, height: 9, header: HEADER, node: &node(), statement: STATEMENT };
    let error = machine.tpm.attest(&moment, measured, vec![]).unwrap_err().to_string();
    assert_eq!(
        error,
        "the firmware's event log does not explain the TPM's register 4: update the machine's firmware"
    );
}

#[test]
fn an_upgrade_by_kexec_shows_what_runs_now() {
    let swtpm = Swtpm::new();
    let (mut machine, mut measured) = boot(&swtpm, &[RELEASE]);
    let mut kexec = |machine: &mut Powered, digest| {
        machine.tpm.pcr_extend(11, &digest).unwrap();
        measured.events.push(MeasuredEvent { pcr: 11, kind: kind::IPL, digest });
        measured.clone()
    };
    let upgraded = kexec(&mut machine, UPGRADE);
    let assessment = assess(&attest(&mut machine, &upgraded), &claim(), &policy()).unwrap();
    assert_eq!((assessment.class, assessment.release), (TrustClass::Attested, Some(UPGRADE)));
    let evil = kexec(&mut machine, EVIL);
    let assessment = assess(&attest(&mut machine, &evil), &claim(), &policy()).unwrap();
    assert_eq!((assessment.class, assessment.release), (TrustClass::Sealed, None));
    assert_eq!(assessment.reasons, [Degradation::UnknownKexec { digest: EVIL }]);
}

#[test]
fn a_modified_image_is_sealed_at_most_and_named() {
    let swtpm = Swtpm::new();
    let (mut machine, measured) = boot(&swtpm, &[EVIL]);
    let attestation = attest(&mut machine, &measured);
    let assessment = assess(&attestation, &claim(), &policy()).unwrap();
    assert_eq!((assessment.class, assessment.release), (TrustClass::Sealed, None));
    assert_eq!(assessment.reasons, [Degradation::UnknownBoot { digest: EVIL }]);
    let text = assessment.reasons[0].to_string();
    assert!(text.starts_with(&EVIL.to_string()) && text.contains("boot an unmodified release"), "{text}");

    // With the log of a release, the registers don't fit.
    let evil = attestation.events.iter().position(|event| event.digest == EVIL).unwrap();
    let mut lying = attestation.clone();
    lying.events[evil].digest = RELEASE;
    assert_eq!(assess(&lying, &claim(), &policy()).unwrap_err(), Refusal::Replay);
    // Nor does it help to call the evil program an action or a separator: types are nobody's word.
    let mut lying = attestation;
    lying.events[evil].kind = kind::SEPARATOR;
    let assessment = assess(&lying, &claim(), &policy()).unwrap();
    assert_eq!(assessment.reasons, [Degradation::UnknownBoot { digest: EVIL }]);
}

#[test]
fn a_program_before_the_release_counts_unless_it_is_a_known_loader() {
    let swtpm = Swtpm::new();
    let ipxe = Hash([0x77; 32]);
    let (mut machine, measured) = boot(&swtpm, &[ipxe, RELEASE]);
    let attestation = attest(&mut machine, &measured);
    let assessment = assess(&attestation, &claim(), &policy()).unwrap();
    assert_eq!((assessment.class, assessment.release), (TrustClass::Sealed, Some(RELEASE)));
    assert_eq!(assessment.reasons, [Degradation::UnknownBoot { digest: ipxe }]);
    let known = Policy { loaders: BTreeSet::from([ipxe]), ..policy() };
    assert_eq!(assess(&attestation, &claim(), &known).unwrap().class, TrustClass::Attested);
}

#[test]
fn options_or_an_initramfs_beside_the_release_count_unless_they_are_ours() {
    let swtpm = Swtpm::new();
    let (mut machine, mut measured) = boot(&swtpm, &[RELEASE]);
    let options: Vec<u8> = "initrd=\\evil.img".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let digest = Hash::of_bytes(&options);
    machine.tpm.pcr_extend(9, &digest).unwrap();
    measured.events.push(MeasuredEvent { pcr: 9, kind: EVENT_TAG, digest });
    let attestation = attest(&mut machine, &measured);
    let assessment = assess(&attestation, &claim(), &policy()).unwrap();
    assert_eq!((assessment.class, assessment.release), (TrustClass::Sealed, Some(RELEASE)));
    assert_eq!(assessment.reasons, [Degradation::UnknownOptions { digest }]);
    let ours = Policy { options: BTreeSet::from([digest]), ..policy() };
    assert_eq!(assess(&attestation, &claim(), &ours).unwrap().class, TrustClass::Attested);
}

/// OVMF of Debian 12 in QEMU: from its shell, which ran `startup.nsh`, it booted a node kernel with load options. The
/// registers are what that kernel showed in sysfs.
#[test]
fn the_log_of_a_real_firmware_replays_and_names_all_that_ran() {
    let log = EventLog::decode(include_bytes!("data/ovmf-event-log.bin")).unwrap();
    let registers = [
        (0, "eaa650ae9b6b9c6d0ef4fab4dda3af9769f23c839ca3c98307a7a84831cbb472"),
        (1, "8afd4fd11e6a0df8eca3c18787feb2878036bfef9745be018c82bb33994a3d81"),
        (2, "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"),
        (4, "c650f57cef3daee7b5219ba300122ad37d2ea8417bd328183e7bccbbca72cf18"),
        (5, "a5ceb755d043f32431d63e39f5161464620a3437280494b5850dc1b47cc074e0"),
        (7, "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068"),
        (9, "33e7744d378c97cdc9dce8b29fc1006ebaa5ab549ccaf9edb6617258762819c7"),
    ];
    for (pcr, value) in registers {
        assert_eq!(log.replay(PcrSelection::of(&[pcr]))[&pcr].to_string(), value, "register {pcr}");
    }
    let swtpm = Swtpm::new();
    let mut machine = swtpm.power_on();
    let measured = log.measured(PcrSelection::QUOTED);
    for event in &measured.events {
        machine.tpm.pcr_extend(event.pcr, &event.digest).unwrap();
    }
    let attestation = attest(&mut machine, &measured);
    // Authenticode SHA-256 of that kernel's file, computed from the file.
    let kernel = "92fa7e875f33fde923198be75b467c0c21e5dd397adba9f909ddf442e4e76a71".parse().unwrap();
    let shell = "d6cb71f2c6241bd0fd4c7a0765103406efe2d2b886bac12d992c12b1b803c908".parse().unwrap();
    let options = "0d101957446f25f083decfec35077695485027883d7aa6c55b8cce964110ee0e".parse().unwrap();
    let policy = Policy { releases: [released(kernel)].into(), ..policy() };
    let assessment = assess(&attestation, &claim(), &policy).unwrap();
    assert_eq!(
        assessment.reasons,
        [Degradation::UnknownBoot { digest: shell }, Degradation::UnknownOptions { digest: options }]
    );
    assert_eq!((assessment.release, assessment.secure_boot), (Some(kernel), Some(false)));
    let knowing = Policy { loaders: BTreeSet::from([shell]), options: BTreeSet::from([options]), ..policy };
    assert_eq!(assess(&attestation, &claim(), &knowing).unwrap().class, TrustClass::Attested);
}

#[test]
fn a_release_that_did_not_leave_what_it_predicts_is_sealed_and_the_register_is_named() {
    let swtpm = Swtpm::new();
    let attestation = honest(&swtpm);
    let expected = Measurement { pcr: 9, digest: Hash([0x99; 32]) };
    let mut demanding = policy();
    demanding.releases.get_mut(&RELEASE).unwrap().insert(expected);
    let assessment = assess(&attestation, &claim(), &demanding).unwrap();
    assert_eq!((assessment.class, assessment.release), (TrustClass::Sealed, Some(RELEASE)));
    let Measurement { pcr, digest } = expected;
    assert_eq!(assessment.reasons, [Degradation::NotMeasured { release: RELEASE, pcr, digest }]);
    assert_eq!(
        assessment.reasons[0].to_string(),
        format!(
            "register 9 does not show {digest}, which the release with boot file {RELEASE} predicts: boot that file \
             unmodified, or have its release say what it measures"
        )
    );
    // What another register holds is no excuse.
    demanding.releases.insert(RELEASE, BTreeSet::from([Measurement { pcr: 7, digest: RELEASE }]));
    let assessment = assess(&attestation, &claim(), &demanding).unwrap();
    assert_eq!(assessment.class, TrustClass::Sealed);
    // And a release that predicts nothing is as good as before releases predicted anything.
    demanding.releases.insert(RELEASE, BTreeSet::new());
    assert_eq!(assess(&attestation, &claim(), &demanding).unwrap().class, TrustClass::Attested);
}

#[test]
fn a_machine_that_measured_nothing_says_how_to_boot() {
    let swtpm = Swtpm::new();
    let mut machine = swtpm.power_on();
    let attestation = attest(&mut machine, &MeasuredBoot::default());
    let assessment = assess(&attestation, &claim(), &policy()).unwrap();
    assert_eq!((assessment.class, assessment.secure_boot), (TrustClass::Sealed, None));
    assert_eq!(assessment.reasons, [Degradation::NothingBooted]);
}

#[test]
fn a_replayed_quote_is_refused() {
    let swtpm = Swtpm::new();
    let attestation = honest(&swtpm);
    let later = Claim { header: Hash([0x34; 32]), ..claim() };
    assert_eq!(assess(&attestation, &later, &policy()).unwrap_err(), Refusal::Nonce);
    // Moving the height along does not move the nonce.
    let moved = Attestation { height: 10, ..attestation.clone() };
    assert_eq!(assess(&moved, &claim(), &policy()).unwrap_err(), Refusal::Nonce);
    let old = Claim { header_age_ms: limits::QUOTE_FRESH_MS + 1_000, ..claim() };
    let error = assess(&attestation, &old, &policy()).unwrap_err().to_string();
    assert_eq!(error, "the quote's header is 601 s older than the block, allowed are 600 s: quote again");
    let grander = Claim { statement: Hash([0x45; 32]), ..claim() };
    assert_eq!(assess(&attestation, &grander, &policy()).unwrap_err(), Refusal::Nonce);
    let elsewhere = Claim { chain: &ChainId(Hash([1; 32])), ..claim() };
    assert_eq!(assess(&attestation, &elsewhere, &policy()).unwrap_err(), Refusal::Nonce);
}

#[test]
fn another_machines_quote_is_refused() {
    let swtpm = Swtpm::new();
    let attestation = honest(&swtpm);
    let thief = SecretKey::from_seed(&[9; 32]).public();
    let stolen = Claim { node: &thief, ..claim() };
    assert_eq!(assess(&attestation, &stolen, &policy()).unwrap_err(), Refusal::Nonce);
}

#[test]
fn a_copied_node_key_on_another_tpm_is_refused() {
    let (first, second) = (Swtpm::new(), Swtpm::new());
    let known = honest(&first).key_hash();
    let copy = honest(&second);
    let error = assess(&copy, &Claim { known_key: Some(known), ..claim() }, &policy()).unwrap_err();
    assert_eq!(error, Refusal::OtherTpm { known, got: copy.key_hash() });
    assert!(error.to_string().contains("the same node key in another TPM is a copy"), "{error}");

    // With the first one's public key before the second one's quote, the signature is wrong.
    let masked = Attestation { key: honest(&first).key, ..copy };
    let error =
        assess(&masked, &Claim { known_key: Some(known), ..claim() }, &policy()).unwrap_err().to_string();
    assert!(error.starts_with("the quote is not signed by the attestation key "), "{error}");
}

#[test]
fn without_a_makers_certificate_a_tpm_may_be_a_program() {
    let swtpm = Swtpm::new();
    let (mut machine, measured) = boot(&swtpm, &[RELEASE]);
    let mut attestation = attest(&mut machine, &measured);
    attestation.vouchers = vec![vouch(&mut machine, None)];
    let assessment = assess(&attestation, &claim(), &policy()).unwrap();
    assert_eq!((assessment.class, assessment.endorsement), (TrustClass::Plain, Endorsement::Activated));
    assert_eq!(
        assessment.reasons[0].to_string(),
        "0 of 1 vouchers say that the TPM's endorsement key is genuine and holds the attestation key: register through \
         more replicas"
    );
    let lenient = Policy { endorsement: Endorsement::Activated, ..policy() };
    assert_eq!(assess(&attestation, &claim(), &lenient).unwrap().class, TrustClass::Attested);
    attestation.vouchers.clear();
    assert_eq!(assess(&attestation, &claim(), &lenient).unwrap().class, TrustClass::Plain);
}

#[test]
fn vouchers_count_once_from_known_authors_for_this_key_and_node() {
    let swtpm = Swtpm::new();
    let (mut machine, measured) = boot(&swtpm, &[RELEASE]);
    let mut attestation = attest(&mut machine, &measured);
    let good = attestation.vouchers[0].clone();
    let two = Policy { vouchers_needed: 2, ..policy() };
    attestation.vouchers = vec![good.clone(), good.clone()];
    assert_eq!(assess(&attestation, &claim(), &two).unwrap().class, TrustClass::Plain, "the same one twice");
    let stranger = SecretKey::from_seed(&[7; 32]);
    let mut bad = vec![SignedVoucher::sign(good.voucher.clone(), &CHAIN, &stranger)];
    let mut other = good.voucher.clone();
    other.node = stranger.public();
    bad.push(SignedVoucher::sign(other, &CHAIN, &replica()));
    let mut other = good.voucher.clone();
    other.key = Hash([1; 32]);
    bad.push(SignedVoucher::sign(other, &CHAIN, &replica()));
    let mut altered = good;
    altered.voucher.endorsement = Hash([1; 32]);
    bad.push(altered);
    for voucher in bad {
        attestation.vouchers = vec![voucher];
        assert_eq!(assess(&attestation, &claim(), &policy()).unwrap().class, TrustClass::Plain);
    }
}

#[test]
fn other_registers_or_another_bank_are_refused() {
    let swtpm = Swtpm::new();
    let (mut machine, measured) = boot(&swtpm, &[EVIL]);
    let mut attestation = attest(&mut machine, &measured);
    let key = machine.tpm.attestation_key().unwrap().key;
    let nonce = Attestation::nonce(&CHAIN, 9, &HEADER, &node(), &STATEMENT, &key.hash());
    // All but the register that tells.
    let quote = machine.tpm.quote(PcrSelection::of(&[0, 2, 7, 9, 11]), &nonce).unwrap();
    (attestation.quote, attestation.signature) = (quote.attest, quote.signature);
    assert_eq!(assess(&attestation, &claim(), &policy()).unwrap_err(), Refusal::Selection);
    let error = machine.tpm.quote_of_bank(0x0004, PcrSelection::QUOTED, &nonce).map(|quote| {
        (attestation.quote, attestation.signature) = (quote.attest, quote.signature);
        assess(&attestation, &claim(), &policy()).unwrap_err().to_string()
    });
    assert_eq!(error.unwrap(), "the quote has bank 0x4, wanted is 0xb, SHA-256");
}

#[test]
fn cut_altered_and_swollen_attestations_are_refused() {
    let swtpm = Swtpm::new();
    let good = honest(&swtpm);
    let refused = |bad: Attestation| assess(&bad, &claim(), &policy()).unwrap_err().to_string();
    for end in 0..good.quote.len() {
        refused(Attestation { quote: good.quote[..end].to_vec(), ..good.clone() });
    }
    for end in 0..good.key.len() {
        refused(Attestation { key: good.key[..end].to_vec(), ..good.clone() });
    }
    for at in 0..good.quote.len() {
        let mut quote = good.quote.clone();
        quote[at] ^= 0x10;
        refused(Attestation { quote, ..good.clone() });
    }
    for at in 0..64 {
        let mut signature = good.signature;
        signature[at] ^= 0x10;
        refused(Attestation { signature, ..good.clone() });
    }
    for at in 0..good.events.len() {
        let mut events = good.events.clone();
        events.remove(at);
        assert_eq!(
            refused(Attestation { events, ..good.clone() }),
            Refusal::Replay.to_string(),
            "without event {at}"
        );
    }
    assert!(refused(Attestation { locality: 3, ..good.clone() }).contains("do not replay"));
    assert!(refused(Attestation { locality: 9, ..good.clone() }).contains("locality 9"));
    let events = vec![good.events[0]; limits::MEASURED_EVENTS + 1];
    assert_eq!(
        refused(Attestation { events, ..good.clone() }),
        "the attestation's events has 513, more than the limit of 512"
    );
    assert!(refused(Attestation { quote: vec![0; 70_000], ..good }).contains("more than the limit of 1024"));
}
