//! A bot's key is replaced: who signs from then on, and who never does again.

use croft_protocol::identity::{KeyRefusal, RefusedChange};
use croft_protocol::{Capacity, Command, CommandBody, Grains, SecretKey, SignedCommand, Terms};

use super::*;
use crate::block::check_admission;
use crate::memory::{MemoryLedger, Scenario};

fn fresh(n: u8) -> SecretKey {
    SecretKey::from_seed(&[200 + n; 32])
}

fn rotation(scenario: &Scenario, present: &SecretKey, new: &SecretKey) -> Command {
    Command::RotateKey(Box::new(Link::sign(present, new, &scenario.ledger.chain())))
}

/// Replaces a key; the new one, as whose bot it is.
fn rotate(scenario: &mut Scenario, present: &SecretKey, new: u8) -> Result<SecretKey, Rejection> {
    let command = rotation(scenario, present, &fresh(new));
    scenario.ledger.submit(present, command)?;
    let (bot, chain) = (present.id(), scenario.ledger.chain());
    let links = scenario.ledger.keys(&bot).unwrap().unwrap().links();
    Ok(fresh(new).of_bot(bot, links, &chain).unwrap())
}

fn pass(scenario: &mut Scenario, blocks: u64) {
    for _ in 0..blocks {
        let now_ms = scenario.now_ms();
        scenario.ledger.commit(now_ms + 1, &[]);
    }
}

fn height(ledger: &MemoryLedger) -> u64 {
    ledger.tip().header.height
}

fn pay(scenario: &mut Scenario, from: &SecretKey) -> Result<(), Rejection> {
    let (to, memo) = (scenario.other.public(), String::new());
    scenario.ledger.submit(from, Command::Transfer { to, amount: Grains(1), memo }).map(drop)
}

#[test]
fn the_new_key_signs_for_the_same_bot_and_the_old_one_for_nobody() {
    let mut scenario = Scenario::new();
    let old = scenario.user.clone();
    let id = old.public();
    let before = scenario.ledger.account(&id).unwrap().balance;
    let new = rotate(&mut scenario, &old, 1).unwrap();
    let at = height(&scenario.ledger);
    pay(&mut scenario, &new).unwrap();
    assert_eq!(scenario.ledger.account(&id).unwrap().balance, Grains(before.0 - 1));

    let replaced = KeyRefusal::Replaced { bot: id, key: id, height: at };
    assert_eq!(pay(&mut scenario, &old), Err(Rejection::Key(replaced)));
    let signed = scenario.ledger.sign(&old, Command::ClaimFaucet);
    let next = height(&scenario.ledger) + 1;
    let admitted = check_admission(&scenario.ledger, &scenario.ledger.chain(), next, &signed).unwrap();
    assert_eq!(admitted, Err(Rejection::Key(replaced)));
    // The new key alone, without the bot's id, is nobody.
    let alone = pay(&mut scenario, &fresh(1));
    assert_eq!(alone, Err(Rejection::Key(KeyRefusal::Follows { bot: id, key: new.public() })));
    // And nobody else signs with a key of his own.
    let body = CommandBody { author: id, ..scenario.ledger.sign(&new, Command::ClaimFaucet).body };
    let stranger = SignedCommand::sign(body, &fresh(9));
    let refused = scenario.ledger.commit(scenario.now_ms() + 1, &[stranger]).pop().unwrap();
    assert_eq!(refused, Err(Rejection::Key(KeyRefusal::Foreign { bot: id, key: fresh(9).public() })));
}

#[test]
fn a_command_of_the_old_key_in_the_same_block_counts_before_the_change_and_not_after_it() {
    let mut scenario = Scenario::new();
    let old = scenario.user.clone();
    let to = scenario.other.public();
    let transfer = || Command::Transfer { to, amount: Grains(1), memo: String::new() };
    let change = rotation(&scenario, &old, &fresh(1));
    let commands = [
        scenario.ledger.sign_ahead(&old, transfer(), 0),
        scenario.ledger.sign_ahead(&old, change, 1),
        scenario.ledger.sign_ahead(&old, transfer(), 2),
    ];
    let results = scenario.ledger.commit(scenario.now_ms() + 1, &commands);
    assert!(results[0].is_ok() && results[1].is_ok(), "{results:?}");
    assert!(matches!(results[2], Err(Rejection::Key(KeyRefusal::Replaced { .. }))), "{results:?}");
    assert_eq!(scenario.ledger.account(&old.public()).unwrap().next_sequence, 2, "its number is not used up");
}

#[test]
fn a_change_needs_both_keys_and_this_grid_and_a_bot() {
    let mut scenario = Scenario::new();
    let (user, chain) = (scenario.user.clone(), scenario.ledger.chain());
    let good = Link::sign(&user, &fresh(1), &chain);
    let elsewhere = croft_protocol::ChainId(croft_protocol::Hash([8; 32]));
    for bad in [
        Link { by_new: good.by_old, ..good.clone() },
        Link { by_old: good.by_new, ..good.clone() },
        Link { key: fresh(2).public(), ..good.clone() },
        Link::sign(&scenario.other, &fresh(1), &chain),
        Link::sign(&user, &fresh(1), &elsewhere),
    ] {
        let refused = scenario.ledger.submit(&user, Command::RotateKey(Box::new(bad))).unwrap_err();
        assert_eq!(refused, Rejection::KeyChange(RefusedChange::Unsigned));
        let text = "the bot's key stays as it is: it is not signed by the present key and by the new one: sign it again with the bot's present key";
        assert_eq!(refused.to_string(), text);
    }
    let nobody = fresh(7);
    let refused = rotate(&mut scenario, &nobody, 1).unwrap_err();
    assert_eq!(refused, Rejection::UnknownBot { author: nobody.public() });
    assert!(scenario.ledger.keys(&user.public()).unwrap().is_none());
}

#[test]
fn nobody_takes_a_key_that_is_or_was_anybodys() {
    let mut scenario = Scenario::new();
    let (user, other) = (scenario.user.clone(), scenario.other.clone());
    let user2 = rotate(&mut scenario, &user, 1).unwrap();
    pass(&mut scenario, limits::KEY_CHANGE_BLOCKS);
    let (bot, node, validator) =
        (scenario.farmer.clone(), scenario.node.clone(), scenario.validators[0].clone());
    let used = [other.clone(), bot, node, validator, user.clone(), fresh(1)];
    for key in used {
        let refused = |by: &SecretKey, scenario: &mut Scenario| {
            let command = rotation(scenario, by, &key);
            scenario.ledger.submit(by, command).unwrap_err()
        };
        let in_use = Rejection::KeyChange(RefusedChange::InUse { key: key.public() });
        assert_eq!(refused(&other, &mut scenario), in_use);
        assert_eq!(refused(&user2, &mut scenario), in_use, "not its own former ones either");
    }
    // And nobody registers with one.
    let create = Command::CreateBot(croft_protocol::record::BotBody {
        name: croft_protocol::Name::new("carol").unwrap(),
    });
    let refused = scenario.ledger.submit(&fresh(1), create).unwrap_err();
    let follows = KeyRefusal::Follows { bot: user.public(), key: fresh(1).public() };
    assert_eq!(refused, Rejection::Key(follows));
}

#[test]
fn changes_are_apart_and_end_somewhere() {
    let mut scenario = Scenario::new();
    let mut key = scenario.user.clone();
    for n in 1..=u8::try_from(limits::KEY_CHANGES).unwrap() {
        key = rotate(&mut scenario, &key, n).unwrap();
        let at = height(&scenario.ledger);
        pass(&mut scenario, limits::KEY_CHANGE_BLOCKS - 2);
        if usize::from(n) < limits::KEY_CHANGES {
            let soon = rotate(&mut scenario, &key, n + 1).unwrap_err();
            let next = at + limits::KEY_CHANGE_BLOCKS;
            assert_eq!(soon, Rejection::KeyChange(RefusedChange::TooSoon { height: at, next }));
        }
        pass(&mut scenario, 1);
    }
    pass(&mut scenario, limits::KEY_CHANGE_BLOCKS);
    let over = rotate(&mut scenario, &key, 50).unwrap_err();
    let text = "the bot's key stays as it is: it was replaced 8 times, which is all that a bot may: make another bot";
    assert_eq!(over.to_string(), text);
    pay(&mut scenario, &key).unwrap();
}

#[test]
fn terms_joins_and_announcements_of_a_replaced_key_are_refused() {
    let mut scenario = Scenario::new();
    let (user, farmer) = (scenario.user.clone(), scenario.farmer.clone());
    let terms = |scenario: &Scenario, called: &str| Terms {
        resources: Capacity { cpu_millis: 100, memory_bytes: 1 << 20, ..Capacity::default() },
        expires_ms: scenario.now_ms() + 60_000,
        ..scenario.terms(called)
    };
    let by_old = scenario.sign(terms(&scenario, "one"));
    let old_announcement = scenario.announcement(terms(&scenario, "two"), Grains(5));
    let announced = scenario.announcement(terms(&scenario, "three"), Grains(5));
    let announce = |a: &croft_protocol::Announcement| Command::AnnounceReservation(Box::new(a.clone()));
    scenario.ledger.submit(&farmer, announce(&announced)).unwrap();
    let old_join = scenario.join();

    let new_farmer = rotate(&mut scenario, &farmer, 1).unwrap();
    let at = height(&scenario.ledger);
    let id = farmer.public();
    let replaced = Rejection::Key(KeyRefusal::Replaced { bot: id, key: id, height: at });
    let agree = |signed| Command::Agree(Box::new(signed));
    let refused = scenario.ledger.submit(&user, agree(by_old.clone())).unwrap_err();
    assert_eq!(refused, replaced);
    let refused = scenario.ledger.submit(&new_farmer, announce(&old_announcement)).unwrap_err();
    assert_eq!(refused, replaced);
    let other_node = fresh(5);
    let register = Command::RegisterNode {
        node: croft_protocol::record::NodeBody {
            name: croft_protocol::Name::new("n2").unwrap(),
            ..scenario.node_body()
        },
        join: Some(old_join),
        attestation: None,
    };
    assert_eq!(scenario.ledger.submit(&other_node, register).unwrap_err(), replaced);

    // What the ledger took while the key held stays good: the user pays for it.
    let signed = {
        let chain = scenario.ledger.chain();
        let user = user.sign_as_bot(croft_protocol::keys::Domain::TERMS, &chain, &announced.terms);
        croft_protocol::SignedTerms {
            terms: announced.terms.clone(),
            user,
            farmer: announced.approval.clone(),
        }
    };
    scenario.ledger.submit(&user, agree(signed)).unwrap();

    // With the new key, everything goes.
    scenario.farmer = new_farmer.clone();
    let again = scenario.sign(by_old.terms);
    scenario.ledger.submit(&user, agree(again)).unwrap();
    let announcement = scenario.announcement(terms(&scenario, "four"), Grains(5));
    scenario.ledger.submit(&new_farmer, announce(&announcement)).unwrap();
    let register = Command::RegisterNode {
        node: croft_protocol::record::NodeBody {
            name: croft_protocol::Name::new("n2").unwrap(),
            ..scenario.node_body()
        },
        join: Some(scenario.join()),
        attestation: None,
    };
    scenario.ledger.submit(&other_node, register).unwrap();
}

#[test]
fn a_contract_goes_on_under_the_new_key() {
    let mut scenario = Scenario::new();
    let contract = scenario.agree(scenario.terms("web")).unwrap();
    let user = scenario.user.clone();
    let new = rotate(&mut scenario, &user, 1).unwrap();
    let close = Command::Close { contract };
    assert!(matches!(scenario.ledger.submit(&user, close.clone()), Err(Rejection::Key(_))));
    scenario.ledger.submit(&new, close).unwrap();
    let body = scenario.ledger.contract(&contract).unwrap().unwrap();
    assert!(matches!(body.state, croft_protocol::ContractState::Ended(_)), "{:?}", body.state);
}

#[test]
fn who_proved_a_key_is_told_apart() {
    let mut scenario = Scenario::new();
    let user = scenario.user.clone();
    let new = rotate(&mut scenario, &user, 1).unwrap();
    let ledger = &scenario.ledger;
    let id = user.public();
    assert_eq!(ledger.identity_of(&new.public()).unwrap(), Ok(id));
    let refused = ledger.identity_of(&id).unwrap().unwrap_err();
    assert!(matches!(refused, KeyRefusal::Replaced { .. }), "{refused}");
    let node = scenario.node.public();
    assert_eq!(ledger.identity_of(&node).unwrap(), Ok(node), "a node is its key");
    assert_eq!(ledger.present_key(&id).unwrap(), new.public());
    assert_eq!(ledger.present_key(&node).unwrap(), node);
}
