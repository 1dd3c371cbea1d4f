//! From pinned validators to the present ones, past replicas that would rather lead us astray.

use croft_ledger::certify;
use croft_ledger::memory::{Scenario, key};
use croft_protocol::header::ValidatorSet;
use croft_protocol::{Command, Hash, SecretKey, SignedHeader};

use super::{client, other_set, recertified};
use crate::{Fault, HANDOVERS, HandoverWalk, LightClient, LightError, compare};

fn keys(numbers: &[u8]) -> Vec<SecretKey> {
    numbers.iter().map(|n| key(*n)).collect()
}

fn set(numbers: &[u8]) -> ValidatorSet {
    ValidatorSet::of_equals(&keys(numbers).iter().map(SecretKey::public).collect::<Vec<_>>())
}

/// A grid whose four validators are replaced one by one, with some blocks in between. The first set comes back
/// once in the middle.
fn grown() -> Scenario {
    let mut scenario = Scenario::new();
    scenario.ledger.add_keys((105..=108).map(key));
    let mut present = vec![101, 102, 103, 104];
    for next in [
        [102, 103, 104, 105],
        [101, 102, 103, 104],
        [102, 103, 104, 105],
        [103, 104, 105, 106],
        [104, 105, 106, 107],
    ] {
        let signed = scenario.ledger.sign_change(set(&next), &keys(&present));
        let user = scenario.user.clone();
        scenario.ledger.submit(&user, Command::SetValidators(Box::new(signed))).unwrap();
        let at_ms = scenario.now_ms() + 1;
        scenario.ledger.commit(at_ms, &[]);
        present = next.to_vec();
    }
    scenario
}

/// As an honest replica answers: the last handover of a set, none of the present one.
fn honest(scenario: &Scenario, asked: Hash) -> Option<SignedHeader> {
    let tip = scenario.ledger.tip().header;
    let mut handovers = scenario.ledger.headers().iter().rev();
    let found = handovers.find(|h| h.header.validators == asked && h.header.next_validators != asked);
    found.filter(|_| asked != tip.next_validators).cloned()
}

/// Walks until the tip can be believed; how many handovers that took.
fn walk(
    light: &mut LightClient,
    tip: &SignedHeader,
    answer: impl Fn(usize, Hash) -> Option<SignedHeader>,
) -> Result<usize, LightError> {
    let mut walk = HandoverWalk::new();
    let mut steps = 0;
    while let Some(asked) = walk.next(light, tip) {
        let Some(handover) = answer(steps, asked) else { break };
        walk.step(light, &handover)?;
        steps += 1;
    }
    light.accept_tip(tip, None).map(|_| steps)
}

#[test]
fn the_present_validators_are_reached_by_the_last_handover_of_each_set() {
    let scenario = grown();
    let tip = scenario.ledger.tip();
    let mut light = client(&scenario);
    assert!(matches!(light.clone().accept_tip(tip, None), Err(LightError::UnknownValidators { .. })));
    let steps = walk(&mut light, tip, |_, asked| honest(&scenario, asked)).unwrap();
    assert_eq!(steps, 4 - 1, "the first set's way back is passed over");
    assert_eq!(light.trusted(), set(&[104, 105, 106, 107]).hash());
    assert_eq!(walk(&mut light, tip, |_, _| unreachable!("nothing is left to ask")).unwrap(), 0);
}

#[test]
fn the_way_is_found_from_every_header_of_the_past() {
    let scenario = grown();
    let tip = scenario.ledger.tip();
    for known in scenario.ledger.headers() {
        let mut light = LightClient::new(scenario.ledger.chain(), known.header.validators);
        light.accept_tip(known, None).unwrap();
        walk(&mut light, tip, |_, asked| honest(&scenario, asked)).unwrap();
        assert_eq!(light.newest(), Some(tip), "from header {}", known.header.height);
    }
}

#[test]
fn every_step_of_the_way_will_do_where_a_replica_is_behind() {
    let scenario = grown();
    // The first handover of each set instead of the last, as a replica says that knows no more.
    let first = |after: u64, asked: Hash| {
        let mut handovers = scenario.ledger.headers().iter().map(|h| (h, h.header));
        let found =
            handovers.find(|(_, h)| h.height > after && h.validators == asked && h.next_validators != asked);
        found.map(|(signed, _)| signed.clone())
    };
    let mut light = client(&scenario);
    let mut walk = HandoverWalk::new();
    let mut steps = 0;
    while let Some(asked) = walk.next(&light, scenario.ledger.tip()) {
        let known = light.newest().map_or(0, |newest| newest.header.height);
        walk.step(&mut light, &first(known, asked).unwrap()).unwrap();
        steps += 1;
    }
    assert_eq!(steps, 5);
    light.accept_tip(scenario.ledger.tip(), None).unwrap();
}

#[test]
fn a_loop_is_noticed_at_its_first_repetition() {
    let scenario = grown();
    let handovers: Vec<_> = scenario
        .ledger
        .headers()
        .iter()
        .filter(|h| h.header.next_validators != h.header.validators)
        .collect();
    // First to second set, back, and again the same two.
    let mut light = client(&scenario);
    let tip = scenario.ledger.tip();
    let error = walk(&mut light, tip, |step, _| Some(handovers[step % 2].clone())).unwrap_err();
    let (known, height) = (handovers[1].header.height, handovers[0].header.height);
    assert_eq!(error, LightError::Back { height, known });
    // The same again and again.
    let mut light = client(&scenario);
    let error = walk(&mut light, tip, |_, _| Some(handovers[0].clone())).unwrap_err();
    assert!(matches!(error, LightError::WrongHandover { .. }), "{error}");
    assert_eq!(error.fault(), Fault::Lie);
}

#[test]
fn a_handover_that_was_not_asked_for_is_a_lie() {
    let scenario = grown();
    let wrong =
        scenario.ledger.headers().iter().rev().find(|h| h.header.next_validators != h.header.validators);
    let (wrong, mut light) = (wrong.unwrap(), client(&scenario));
    let before = light.trusted();
    let error = walk(&mut light, scenario.ledger.tip(), |_, _| Some(wrong.clone())).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "asked for the handover by validators {before}, it sent header {} by {}",
            wrong.header.height, wrong.header.validators
        )
    );
    assert_eq!((light.trusted(), light.newest()), (before, None), "the client is as before");
}

#[test]
fn a_forged_handover_leads_nowhere() {
    let scenario = grown();
    let tip = scenario.ledger.tip();
    let pinned = scenario.ledger.genesis().validators.hash();
    let honest = honest(&scenario, pinned).unwrap();
    let (usurpers, usurping) = other_set();
    let mut named = honest.header;
    named.next_validators = usurpers.hash();
    let by_few = certify(named, 0, honest.validators.clone(), &keys(&[101, 102]));
    let by_others = certify(named, 0, honest.validators.clone(), &usurping);
    let mut renamed = honest.clone();
    renamed.header.next_validators = usurpers.hash();
    let mut of_themselves = honest.clone();
    of_themselves.validators = usurpers;
    let mut elsewhere = honest.clone();
    elsewhere.header.chain = croft_protocol::ChainId(Hash([9; 32]));
    let not_one = scenario.ledger.headers()[1].clone();
    for (forged, says) in [
        (by_few, "is signed by 2 of 4 power"),
        (by_others, "but is no validator of it"),
        (renamed, "or another header"),
        (of_themselves, "the header names"),
        (elsewhere, "it sent a header of chain"),
        (not_one, "hands over to nobody"),
    ] {
        let mut light = client(&scenario);
        let error = walk(&mut light, tip, |_, _| Some(forged.clone())).unwrap_err();
        assert!(error.to_string().contains(says), "{says}: {error}");
        assert_eq!(error.fault(), Fault::Lie, "{error}");
        assert_eq!((light.trusted(), light.newest()), (pinned, None), "the client is as before");
    }
}

#[test]
fn an_altered_byte_anywhere_in_a_handover_is_noticed() {
    let scenario = grown();
    let pinned = scenario.ledger.genesis().validators.hash();
    let bytes = croft_protocol::encode(&honest(&scenario, pinned).unwrap());
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        if let Ok(signed) = croft_protocol::decode::<SignedHeader>("header", &altered, 1 << 20) {
            let mut light = client(&scenario);
            assert!(HandoverWalk::new().step(&mut light, &signed).is_err(), "byte {at}");
            assert_eq!(light.trusted(), pinned);
        }
    }
}

#[test]
fn nobody_is_led_along_for_ever() {
    // Validators who would do anything to keep a client busy: an endless, certified to and fro.
    let scenario = Scenario::new();
    let (other, others) = other_set();
    let ours = scenario.ledger.genesis().validators.clone();
    let mut header = scenario.ledger.tip().header;
    let mut light = client(&scenario);
    let mut walk = HandoverWalk::new();
    let mut step = || {
        let from_us = header.validators == ours.hash();
        (header.next_validators, header.prev) =
            (if from_us { other.hash() } else { ours.hash() }, header.hash());
        header.height += 2;
        header.time_ms += 1;
        let (set, keys) = if from_us { (&ours, &scenario.validators) } else { (&other, &others) };
        let signed = certify(header, 0, set.clone(), keys);
        header.validators = header.next_validators;
        walk.step(&mut light, &signed)
    };
    for _ in 0..HANDOVERS {
        step().unwrap();
    }
    assert_eq!(
        step().unwrap_err().to_string(),
        "more than 256 handovers lie between the trusted validators and the replica's: pin the grid's present validators"
    );
}

#[test]
fn two_replicas_words_on_one_height_are_compared() {
    let scenario = grown();
    let [.., before, tip] = scenario.ledger.headers() else { unreachable!() };
    assert_eq!(compare(tip, tip), Ok(()));
    let fewer = certify(tip.header, 3, tip.validators.clone(), &keys(&[104, 105, 106]));
    assert_eq!(compare(tip, &fewer), Ok(()), "another certificate for the same header");
    assert_eq!(
        compare(tip, before).unwrap_err().to_string(),
        format!("asked for header {}, it sent header {}", tip.header.height, before.header.height)
    );
    let mut header = tip.header;
    header.state_root.0[0] ^= 1;
    let signers = keys(&[104, 105, 106]);
    let fork = certify(header, 0, tip.validators.clone(), &signers);
    let LightError::Contradiction(proof) = compare(tip, &fork).unwrap_err() else { panic!() };
    assert_eq!((&proof.known, &proof.other), (tip, &fork));
    let forged = certify(header, 0, tip.validators.clone(), &signers[1..]);
    assert_eq!(compare(tip, &forged).unwrap_err().fault(), Fault::Lie);
    // Those who were validators once prove nothing by what they sign now.
    let old = recertified(&scenario, &scenario.ledger.headers()[0], |h| h.height = tip.header.height);
    let error = compare(tip, &old).unwrap_err();
    assert!(matches!(error, LightError::UnknownValidators { .. }), "{error}");
}
