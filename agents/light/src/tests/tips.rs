//! Which headers are believed.

use croft_ledger::certify;
use croft_ledger::memory::{Scenario, key};
use croft_protocol::header::{Validator, ValidatorSet};
use croft_protocol::{ChainId, Command, Grains, Hash, SignedHeader};

use super::{client, other_set, recertified};
use crate::{Bounds, Fault, LightClient, LightError, verify_certificate};

fn refusal(scenario: &Scenario, signed: &SignedHeader) -> LightError {
    client(scenario).accept_tip(signed, None).expect_err("the header must be refused")
}

#[test]
fn an_honest_tip_is_believed_and_so_are_all_that_follow() {
    let scenario = Scenario::new();
    let mut client = client(&scenario);
    for signed in scenario.ledger.headers() {
        let tip = client.accept_tip(signed, Some(signed.header.time_ms + 5)).unwrap();
        assert_eq!((tip.height(), tip.hash()), (signed.header.height, signed.header.hash()));
        assert_eq!(tip.time_ms(), signed.header.time_ms);
        client.accept_tip(signed, None).expect("the same tip again is no news");
    }
    assert_eq!(client.newest(), scenario.ledger.headers().last());
}

#[test]
fn an_altered_byte_anywhere_in_a_final_header_is_noticed() {
    let scenario = Scenario::new();
    let honest = scenario.ledger.tip();
    let bytes = croft_protocol::encode(honest);
    let (mut decoded, mut undecoded) = (0, 0);
    for at in 0..bytes.len() {
        for flip in [1, 0x80] {
            let mut altered = bytes.clone();
            altered[at] ^= flip;
            match croft_protocol::decode::<SignedHeader>("header", &altered, 1 << 20) {
                Err(_) => undecoded += 1,
                Ok(signed) => {
                    decoded += 1;
                    assert_ne!(signed, *honest);
                    let result = client(&scenario).accept_tip(&signed, None);
                    assert!(result.is_err(), "byte {at} of {} was not noticed", bytes.len());
                }
            }
        }
    }
    assert!(decoded > 1000 && undecoded > 0, "{decoded} and {undecoded}");
}

#[test]
fn a_certificate_needs_more_than_two_thirds() {
    let scenario = Scenario::new();
    let tip = scenario.ledger.tip();
    let by = |keys: &[_]| certify(tip.header, 0, tip.validators.clone(), keys);
    assert!(verify_certificate(&by(&scenario.validators[..3])).is_ok());
    let error = refusal(&scenario, &by(&scenario.validators[..2]));
    assert_eq!(error.to_string(), "header 2 is signed by 2 of 4 power, more than two thirds are needed");
    assert_eq!(error.fault(), Fault::Lie);
}

#[test]
fn exactly_two_thirds_are_not_enough_and_power_counts_not_heads() {
    let keys: Vec<_> = (101..=103).map(key).collect();
    let set = |powers: [u64; 3]| {
        let mut validators: Vec<_> =
            keys.iter().zip(powers).map(|(key, power)| Validator { key: key.public(), power }).collect();
        validators.sort_by_key(|validator| validator.key);
        ValidatorSet { validators }
    };
    let mut header = Scenario::new().ledger.tip().header;
    let mut verdict = |powers, signers: &[usize]| {
        let set = set(powers);
        header.validators = set.hash();
        let signers: Vec<_> = signers.iter().map(|i| keys[*i].clone()).collect();
        verify_certificate(&certify(header, 0, set, &signers))
    };
    assert!(matches!(
        verdict([1, 1, 1], &[0, 1]),
        Err(LightError::TooLittlePower { power: 2, total: 3, .. })
    ));
    assert_eq!(verdict([1, 1, 1], &[0, 1, 2]), Ok(()));
    assert_eq!(verdict([3, 1, 0x1], &[0, 1]), Ok(()));
    assert!(matches!(verdict([1_000_000, 1, 1], &[1, 2]), Err(LightError::TooLittlePower { power: 2, .. })));
    assert_eq!(verdict([1_000_000, 1, 1], &[0]), Ok(()));
}

#[test]
fn signatures_count_once_each_in_order_and_of_members_only() {
    let scenario = Scenario::new();
    let tip = scenario.ledger.tip();
    let mut twice = tip.clone();
    twice.certificate.signatures[1] = twice.certificate.signatures[0];
    let (first, second) = (tip.certificate.signatures[0].0, tip.certificate.signatures[1].0);
    let says = |key| {
        format!("the signatures of header 2 must stand in ascending order of keys, each once; {key} does not")
    };
    assert_eq!(refusal(&scenario, &twice).to_string(), says(first));
    let mut swapped = tip.clone();
    swapped.certificate.signatures.swap(0, 1);
    assert_eq!(refusal(&scenario, &swapped).to_string(), says(first));
    assert!(second > first);

    let stranger = key(77);
    let mut keys = scenario.validators.clone();
    keys[0] = stranger.clone();
    let foreign = certify(tip.header, 0, tip.validators.clone(), &keys);
    let error = refusal(&scenario, &foreign);
    assert_eq!(error.to_string(), format!("{} signed header 2 but is no validator of it", stranger.public()));

    // One bad signature spoils it, even beyond the quorum: nobody honest passes it on.
    let mut spoilt = tip.clone();
    spoilt.certificate.signatures[3].1 = spoilt.certificate.signatures[2].1;
    let key = spoilt.certificate.signatures[3].0;
    let error = refusal(&scenario, &spoilt);
    assert_eq!(error.to_string(), format!("the signature of validator {key} over header 2 is wrong"));
}

#[test]
fn a_certificate_belongs_to_one_header_and_round() {
    let scenario = Scenario::new();
    let [.., before, tip] = scenario.ledger.headers() else { unreachable!() };
    let mut moved = tip.clone();
    moved.certificate = before.certificate.clone();
    let error = refusal(&scenario, &moved);
    assert_eq!(
        error.to_string(),
        "the certificate that came with header 2 is for height 1 or another header"
    );
    let mut relabelled = tip.clone();
    relabelled.certificate.round += 1;
    assert!(matches!(refusal(&scenario, &relabelled), LightError::BadSignature { height: 2, .. }));
    let mut altered = tip.clone();
    altered.header.state_root.0[0] ^= 1;
    assert!(matches!(refusal(&scenario, &altered), LightError::WrongCertificate { .. }));
}

#[test]
fn another_chain_is_not_this_grid() {
    let scenario = Scenario::new();
    let theirs = ChainId(Hash([9; 32]));
    let foreign = recertified(&scenario, scenario.ledger.tip(), |header| header.chain = theirs);
    let error = refusal(&scenario, &foreign);
    let ours = scenario.ledger.chain();
    assert_eq!(
        error.to_string(),
        format!("it sent a header of chain {theirs}, but this grid is {ours}: check the replica's address")
    );
}

#[test]
fn validators_that_nobody_pinned_are_not_believed() {
    let scenario = Scenario::new();
    let (set, keys) = other_set();
    let mut header = scenario.ledger.tip().header;
    (header.validators, header.next_validators) = (set.hash(), set.hash());
    let forged = certify(header, 0, set.clone(), &keys);
    assert!(verify_certificate(&forged).is_ok(), "it is sound in itself");
    let error = refusal(&scenario, &forged);
    let trusted = scenario.ledger.genesis().validators.hash();
    assert_eq!(
        error.to_string(),
        format!(
            "header 2 is certified by validators {}, trusted are {trusted}: fetch the handover header, or pin the \
             grid's present validators",
            set.hash()
        )
    );
    assert_eq!(error.fault(), Fault::Ours);

    // The same with the pinned hash in the header but the other set beside it.
    let mut mixed = scenario.ledger.tip().clone();
    mixed.validators = set.clone();
    let error = refusal(&scenario, &mixed);
    assert!(
        matches!(error, LightError::WrongValidators { got, named, .. } if got == set.hash() && named == trusted)
    );
    let mut none = scenario.ledger.tip().clone();
    none.validators.validators.clear();
    let error = refusal(&scenario, &none);
    assert_eq!(error.to_string(), "the validators that came with header 2 are no set");
}

#[test]
fn heights_never_go_back() {
    let scenario = Scenario::new();
    let mut client = client(&scenario);
    let [.., before, tip] = scenario.ledger.headers() else { unreachable!() };
    client.accept_tip(tip, None).unwrap();
    let error = client.accept_tip(before, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "header 1 is older than header 2, which is already known: the replica is behind"
    );
    assert_eq!(error.fault(), Fault::Lag);
    client.accept_tip(tip, None).expect("and the client is as before");
}

#[test]
fn two_final_headers_of_one_height_are_kept_as_evidence() {
    let scenario = Scenario::new();
    let tip = scenario.ledger.tip();
    let mut client = client(&scenario);
    client.accept_tip(tip, None).unwrap();
    let other = recertified(&scenario, tip, |header| header.state_root.0[0] ^= 1);
    let error = client.accept_tip(&other, None).unwrap_err();
    assert_eq!(error.fault(), Fault::Validators);
    assert!(
        error.to_string().ends_with("validators signed both; stop and tell the grid's owners"),
        "{error}"
    );
    let LightError::Contradiction(evidence) = error else { panic!("{error}") };
    assert_eq!((&evidence.known, &evidence.other), (tip, &other));
    assert!(verify_certificate(&evidence.known).is_ok() && verify_certificate(&evidence.other).is_ok());

    // What is not certified is no evidence, only a lie.
    let mut forged = other;
    forged.certificate.signatures.truncate(1);
    assert!(matches!(client.accept_tip(&forged, None), Err(LightError::TooLittlePower { .. })));
}

#[test]
fn the_same_header_in_another_round_contradicts_nothing() {
    let scenario = Scenario::new();
    let tip = scenario.ledger.tip();
    let mut client = client(&scenario);
    client.accept_tip(tip, None).unwrap();
    let fewer = certify(tip.header, 1, tip.validators.clone(), &scenario.validators[1..]);
    assert!(client.accept_tip(&fewer, None).is_ok());
}

#[test]
fn a_header_must_follow_the_one_that_is_known() {
    let scenario = Scenario::new();
    let tip = scenario.ledger.tip();
    let mut known = client(&scenario);
    known.accept_tip(tip, None).unwrap();
    let next = |change: &dyn Fn(&mut croft_protocol::Header)| {
        recertified(&scenario, tip, |header| {
            header.height += 1;
            header.time_ms += 1;
            header.prev = tip.header.hash();
            change(header);
        })
    };
    assert!(known.clone().accept_tip(&next(&|_| {}), None).is_ok());
    for (bad, says) in [
        (next(&|header| header.time_ms = tip.header.time_ms), "its time is not later"),
        (next(&|header| header.log_size -= 1), "its log is shorter"),
        (next(&|header| header.prev = Hash::ZERO), "it names another parent"),
    ] {
        let error = known.clone().accept_tip(&bad, None).unwrap_err();
        assert_eq!(error.to_string(), format!("header 3 does not follow header 2: {says}"));
        assert_eq!(error.fault(), Fault::Validators);
    }
}

#[test]
fn a_tip_is_fresh_where_there_is_a_clock() {
    let scenario = Scenario::new();
    let tip = scenario.ledger.tip();
    let time_ms = tip.header.time_ms;
    let at = |now_ms| client(&scenario).accept_tip(tip, Some(now_ms)).map(|_| ());
    assert_eq!(at(time_ms + 120_000), Ok(()));
    let old = at(time_ms + 120_001).unwrap_err();
    assert_eq!(
        old.to_string(),
        "header 2 is 120001 ms old, at most 120000 are allowed: the replica is cut off, or this clock is wrong"
    );
    assert_eq!(old.fault(), Fault::Lag);
    assert_eq!(at(time_ms - 60_000), Ok(()));
    let future = at(time_ms - 60_001).unwrap_err();
    assert_eq!(
        future.to_string(),
        "header 2 is 60001 ms in the future, at most 60000 are allowed: this clock or the grid's is wrong"
    );
    assert!(client(&scenario).accept_tip(tip, None).is_ok(), "without a clock age is not checked");

    let strict = Bounds { max_age_ms: 10, max_ahead_ms: 0 };
    let mut strict = client(&scenario).with_bounds(strict);
    assert!(strict.accept_tip(tip, Some(time_ms + 11)).is_err());
    assert_eq!(strict.newest(), None, "what is refused leaves no trace");
}

/// A grid whose header 2 hands over to another set, which certifies header 3.
fn handover() -> (Scenario, SignedHeader, SignedHeader) {
    let scenario = Scenario::new();
    let (set, keys) = other_set();
    let old = scenario.ledger.tip().clone();
    let handover = recertified(&scenario, &old, |header| header.next_validators = set.hash());
    let mut header = handover.header;
    header.height += 1;
    header.time_ms += 1;
    header.prev = handover.header.hash();
    header.validators = set.hash();
    let after = certify(header, 0, set, &keys);
    (scenario, handover, after)
}

#[test]
fn the_old_validators_hand_over_to_the_new() {
    let (scenario, handover, after) = handover();
    let mut client = client(&scenario);
    assert!(matches!(client.accept_tip(&after, None), Err(LightError::UnknownValidators { height: 3, .. })));
    client.accept_handover(&handover).unwrap();
    assert_eq!(client.trusted(), after.header.validators);
    client.accept_handover(&handover).expect("the same again is no news");
    client.accept_tip(&after, None).unwrap();

    // The next start pins the new set and needs no handover.
    let mut later = LightClient::new(*client.chain(), client.trusted());
    assert!(later.accept_tip(&after, None).is_ok());
}

#[test]
fn a_tip_that_hands_over_does_so_too() {
    let (scenario, handover, after) = handover();
    let mut client = client(&scenario);
    client.accept_tip(&handover, None).unwrap();
    client.accept_tip(&after, None).unwrap();
}

#[test]
fn the_old_validators_have_no_say_after_the_handover() {
    let (scenario, handover, after) = handover();
    let mut client = client(&scenario);
    client.accept_handover(&handover).unwrap();
    let usurped = recertified(&scenario, &handover, |header| {
        header.height += 1;
        header.time_ms += 1;
        header.prev = handover.header.hash();
    });
    assert!(matches!(
        client.accept_tip(&usurped, None),
        Err(LightError::UnknownValidators { height: 3, .. })
    ));
    client.accept_tip(&after, None).unwrap();
}

#[test]
fn a_handover_must_hand_over_and_be_certified() {
    let (scenario, handover, _) = handover();
    let mut client = client(&scenario);
    let error = client.accept_handover(scenario.ledger.tip()).unwrap_err();
    assert_eq!(error.to_string(), "header 2 hands over to nobody: its next validators are its own");
    let mut forged = handover;
    forged.certificate.signatures.truncate(2);
    assert!(matches!(client.accept_handover(&forged), Err(LightError::TooLittlePower { .. })));
    assert_eq!(client.trusted(), scenario.ledger.genesis().validators.hash());
}

#[test]
fn a_grid_can_grow_from_one_validator_to_four() {
    let one = key(90);
    let mut genesis = Scenario::new().ledger.genesis().clone();
    genesis.validators = ValidatorSet::of_equals(&[one.public()]);
    let mut ledger = croft_ledger::MemoryLedger::new(genesis.clone(), vec![one.clone()]).unwrap();
    let to = key(2).public();
    ledger.submit(&key(1), Command::Transfer { to, amount: Grains(1), memo: String::new() }).unwrap();
    let mut client = LightClient::new(ledger.chain(), genesis.validators.hash());
    client.accept_tip(ledger.tip(), None).unwrap();
    let (set, keys) = other_set();
    let mut header = ledger.tip().header;
    header.height += 1;
    header.time_ms += 1;
    header.prev = ledger.tip().header.hash();
    header.next_validators = set.hash();
    client.accept_tip(&certify(header, 0, genesis.validators, &[one]), None).unwrap();
    header.prev = header.hash();
    header.height += 1;
    header.time_ms += 1;
    header.validators = set.hash();
    client.accept_tip(&certify(header, 0, set, &keys), None).unwrap();
}
