//! Validators are replaced by those who are there, one clear step at a time.

use croft_protocol::header::Validator;
use croft_protocol::keys::Domain;
use croft_protocol::{
    Body, Command, Hash, Rejection, SecretKey, Signature, SignedValidatorChange, ValidatorSet,
};

use super::*;
use crate::memory::{Scenario, key};

/// The validators of the scenario are 101 to 104.
fn keys(numbers: &[u8]) -> Vec<SecretKey> {
    numbers.iter().map(|n| key(*n)).collect()
}

fn equals(numbers: &[u8]) -> ValidatorSet {
    ValidatorSet::of_equals(&keys(numbers).iter().map(SecretKey::public).collect::<Vec<_>>())
}

fn submit(scenario: &mut Scenario, signed: SignedValidatorChange) -> Result<(), Rejection> {
    let before = scenario.ledger.state().clone();
    let user = scenario.user.clone();
    let result = scenario.ledger.submit(&user, Command::SetValidators(Box::new(signed))).map(|_| ());
    if result.is_err() {
        assert_eq!(*scenario.ledger.state(), before, "a rejected command changes nothing");
    }
    result
}

fn refusal(change: impl FnOnce(&Scenario) -> SignedValidatorChange) -> String {
    let mut scenario = Scenario::new();
    let signed = change(&scenario);
    let rejection = submit(&mut scenario, signed).unwrap_err();
    assert!(matches!(rejection, Rejection::Validators(_)), "{rejection:?}");
    let text = rejection.to_string();
    text.strip_prefix("the validators can't be changed so: ").unwrap().to_owned()
}

#[test]
fn one_validator_is_replaced_and_the_new_ones_certify_from_the_next_block_on() {
    let mut scenario = Scenario::new();
    scenario.ledger.add_keys([key(105)]);
    let (before, after) = (equals(&[101, 102, 103, 104]), equals(&[101, 102, 103, 105]));
    let present = scenario.ledger.validators().unwrap();
    assert_eq!((present.set, present.height), (before.clone(), 0));

    let signed = scenario.ledger.sign_change(after.clone(), &keys(&[101, 103, 104]));
    submit(&mut scenario, signed).unwrap();
    let tip = scenario.ledger.tip();
    let handover = tip.header;
    assert_eq!((handover.validators, handover.next_validators), (before.hash(), after.hash()));
    assert_eq!(tip.validators, before, "the old ones certify the block that replaces them");
    let record = scenario.ledger.record(&RecordId::validators()).unwrap().unwrap();
    assert_eq!((record.version, record.prev), (2, Some(present.record)));
    assert_eq!(record.author, scenario.user.public(), "whoever brought it");
    assert_eq!(record.body, Body::Validators(after.clone()));

    let at_ms = scenario.now_ms() + 1;
    scenario.ledger.commit(at_ms, &[]);
    let tip = scenario.ledger.tip();
    assert_eq!((tip.header.validators, tip.header.next_validators), (after.hash(), after.hash()));
    assert_eq!(tip.validators, after);
    let signers: Vec<_> = tip.certificate.signatures.iter().map(|(key, _)| *key).collect();
    assert_eq!(signers, after.validators.iter().map(|v| v.key).collect::<Vec<_>>());
}

#[test]
fn one_validator_grows_to_four_in_one_step_with_its_own_signature() {
    let mut scenario = Scenario::of_validators(&[101]);
    scenario.ledger.add_keys(keys(&[102, 103, 104]));
    let signed = scenario.ledger.sign_change(equals(&[101, 102, 103, 104]), &keys(&[101]));
    submit(&mut scenario, signed).unwrap();
    let at_ms = scenario.now_ms() + 1;
    scenario.ledger.commit(at_ms, &[]);
    assert_eq!(scenario.ledger.tip().validators, equals(&[101, 102, 103, 104]));
    // And one of the four can't go on alone.
    let signed = scenario.ledger.sign_change(equals(&[101]), &keys(&[101, 102, 103, 104]));
    assert!(submit(&mut scenario, signed).is_err());
}

#[test]
fn anybody_may_bring_it_even_a_stranger() {
    let mut scenario = Scenario::new();
    let signed = scenario.ledger.sign_change(equals(&[101, 102, 103]), &keys(&[101, 102, 103]));
    scenario.ledger.submit(&key(77), Command::SetValidators(Box::new(signed))).unwrap();
}

#[test]
fn a_change_that_supersedes_another_record_is_stale_and_so_can_not_be_replayed() {
    let mut scenario = Scenario::new();
    let all = [101, 102, 103, 104];
    let there = scenario.ledger.sign_change(equals(&[101, 102, 103]), &keys(&all));
    submit(&mut scenario, there.clone()).unwrap();
    let back = scenario.ledger.sign_change(equals(&all), &keys(&all[..3]));
    submit(&mut scenario, back).unwrap();
    let present = scenario.ledger.validators().unwrap().record;
    let text = submit(&mut scenario, there.clone()).unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "the validators can't be changed so: it supersedes validators record {}, but the present one is {present}: propose it again and have it signed again",
            there.change.prev
        )
    );
}

#[test]
fn more_than_two_thirds_of_the_power_must_sign() {
    let text = refusal(|s| s.ledger.sign_change(equals(&[101, 102, 103]), &keys(&[101, 102])));
    assert_eq!(
        text,
        "it is signed by 2 of 4 power, more than two thirds are needed: have more validators sign it"
    );
    // Exactly two thirds are not more than two thirds.
    let mut scenario = Scenario::of_validators(&[101, 102, 103]);
    let next = equals(&[101, 102, 103, 104]);
    let two = scenario.ledger.sign_change(next.clone(), &keys(&[101, 102]));
    let expected = InvalidChange::TooLittlePower { power: 2, total: 3 };
    assert_eq!(submit(&mut scenario, two), Err(Rejection::Validators(expected)));
    let three = scenario.ledger.sign_change(next, &keys(&[101, 102, 103]));
    submit(&mut scenario, three).unwrap();
}

#[test]
fn a_signer_that_is_no_validator_is_named_even_one_that_is_about_to_be() {
    let stranger = key(105).public();
    let text =
        refusal(|s| s.ledger.sign_change(equals(&[101, 102, 103, 104, 105]), &keys(&[101, 102, 103, 105])));
    assert_eq!(text, format!("{stranger} signed it but is no validator: leave that signature out"));
}

#[test]
fn signatures_stand_in_order_each_once() {
    let mut culprit = None;
    let mut swapped = |twice: bool| {
        refusal(|s| {
            let mut signed = s.ledger.sign_change(equals(&[101, 102, 103]), &keys(&[101, 102, 103, 104]));
            if twice {
                signed.signatures[1] = signed.signatures[0];
            } else {
                signed.signatures.swap(0, 1);
            }
            culprit = Some(signed.signatures[1].0);
            signed
        })
    };
    let texts = [swapped(true), swapped(false)];
    for text in &texts {
        let says = "the signatures must stand in ascending order of their keys, each once; ";
        assert!(text.starts_with(says), "{text}");
    }
    assert!(texts[1].ends_with(&format!("{} does not", culprit.unwrap())), "{}", texts[1]);
}

#[test]
fn a_wrong_signature_is_named() {
    let culprit = key(102).public();
    let expected = format!("the signature of validator {culprit} is wrong: have it signed again");
    let forge = |s: &Scenario| s.ledger.sign_change(equals(&[101, 102, 103]), &keys(&[101, 102, 103]));
    let replace = |signed: &mut SignedValidatorChange, signature: Signature| {
        for (key, at) in &mut signed.signatures {
            if *key == culprit {
                *at = signature;
            }
        }
    };
    // Of another key.
    let text = refusal(|s| {
        let mut signed = forge(s);
        let other = signed.change.sign(&key(104), &s.ledger.chain()).1;
        replace(&mut signed, other);
        signed
    });
    assert_eq!(text, expected);
    // For another chain.
    let text = refusal(|s| {
        let mut signed = forge(s);
        let other = signed.change.sign(&key(102), &croft_protocol::ChainId(Hash([9; 32]))).1;
        replace(&mut signed, other);
        signed
    });
    assert_eq!(text, expected);
    // For another purpose.
    let text = refusal(|s| {
        let mut signed = forge(s);
        let other = key(102).sign(Domain::CERTIFICATE, &s.ledger.chain(), &signed.change);
        replace(&mut signed, other);
        signed
    });
    assert_eq!(text, expected);
    // For another change.
    let text = refusal(|s| {
        let mut signed = forge(s);
        let other = s.ledger.sign_change(equals(&[101, 102, 104]), &keys(&[102]));
        replace(&mut signed, other.signatures[0].1);
        signed
    });
    assert_eq!(text, expected);
}

#[test]
fn what_is_no_set_is_refused_with_the_sets_own_reason() {
    let all = [101, 102, 103, 104];
    let odd = |set: ValidatorSet| refusal(|s| s.ledger.sign_change(set, &keys(&all)));
    assert_eq!(odd(ValidatorSet { validators: Vec::new() }), "a validator set has 1 to 64 validators, not 0");
    let mut unordered = equals(&all);
    unordered.validators.swap(0, 1);
    assert!(
        odd(unordered).starts_with("validators must stand in ascending order of their keys, each once; ")
    );
    let mut mighty = equals(&all);
    mighty.validators[0].power = 1_000_001;
    let text = odd(mighty);
    assert!(text.ends_with("has power 1000001; allowed are 1 to 1000000"), "{text}");
}

#[test]
fn the_same_set_again_is_no_change() {
    let all = [101, 102, 103, 104];
    let text = refusal(|s| s.ledger.sign_change(equals(&all), &keys(&all)));
    assert_eq!(text, "the validators and their powers are already these");
}

#[test]
fn at_least_two_thirds_of_the_present_power_stay_where_they_are() {
    let all = [101, 102, 103, 104];
    let removed = |set: ValidatorSet| refusal(|s| s.ledger.sign_change(set, &keys(&all)));
    let expected = |kept| {
        format!(
            "of the present validators' power 4 only {kept} would stay, at least two thirds must: replace fewer at a time"
        )
    };
    assert_eq!(removed(equals(&[101, 102])), expected(2), "removed");
    assert_eq!(removed(equals(&[101, 102, 105, 106])), expected(2), "replaced");

    // Less power is as good as removed, and more elsewhere does not make up for it.
    let weights = |powers: [u64; 3]| {
        let validators = [101, 102, 103].iter().zip(powers);
        let mut set = ValidatorSet {
            validators: validators.map(|(n, power)| Validator { key: key(*n).public(), power }).collect(),
        };
        set.validators.sort_by_key(|v| v.key);
        set
    };
    let mut scenario = Scenario::with_validators(weights([3, 3, 3]), &[101, 102, 103]);
    let signers = keys(&[101, 102, 103]);
    let shift = scenario.ledger.sign_change(weights([1, 1, 9]), &signers);
    let expected = InvalidChange::TooMuchRemoved { kept: 5, total: 9 };
    assert_eq!(submit(&mut scenario, shift), Err(Rejection::Validators(expected)));
    let shift = scenario.ledger.sign_change(weights([1, 2, 9]), &signers);
    submit(&mut scenario, shift).unwrap();
}

#[test]
fn one_block_carries_one_change() {
    let mut scenario = Scenario::new();
    let all = [101, 102, 103, 104];
    let first = scenario.ledger.sign_change(equals(&[101, 102, 103]), &keys(&all));
    let at_ms = scenario.now_ms() + 1;
    let user = scenario.user.clone();
    // Whoever knows the record that the first will make could sign the second before the first is final.
    let mut ahead = scenario.ledger.clone();
    let command = scenario.ledger.sign(&user, Command::SetValidators(Box::new(first)));
    ahead.commit(at_ms, std::slice::from_ref(&command)).pop().unwrap().unwrap();
    let second = ahead.sign_change(equals(&[101, 102]), &keys(&[101, 102, 103]));
    let after = scenario.ledger.sign_ahead(&user, Command::SetValidators(Box::new(second)), 1);
    let results = scenario.ledger.commit(at_ms, &[command, after]);
    assert!(results[0].is_ok());
    assert_eq!(results[1], Err(Rejection::Validators(InvalidChange::TwiceInBlock)));
    assert_eq!(
        results[1].as_ref().unwrap_err().to_string(),
        "the validators can't be changed so: the validators were changed in this very block: submit it again"
    );
}
