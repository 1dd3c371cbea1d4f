//! Envelopes, admission, genesis, and what a rejection leaves behind: nothing.

use croft_protocol::header::{Allocation, ValidatorSet};
use croft_protocol::{Command, CommandBody, KeyRefusal, limits};

use super::*;
use crate::memory::{ALLOWANCE, MemoryLedger, START_MS, Scenario, key, name};

fn pay(scenario: &Scenario, grains: u64) -> Command {
    Command::Transfer { to: scenario.other.public(), amount: Grains(grains), memo: "thanks".to_owned() }
}

fn body(scenario: &Scenario) -> CommandBody {
    scenario.ledger.sign(&scenario.user, pay(scenario, 1)).body
}

/// The one verdict on one command, by execution and by admission, which must agree.
fn verdict(scenario: &mut Scenario, command: SignedCommand) -> Result<(), Rejection> {
    let height = scenario.ledger.tip().header.height + 1;
    let chain = scenario.ledger.chain();
    let admitted = check_admission(&scenario.ledger, &chain, height, &command).unwrap();
    let before = scenario.ledger.state().clone();
    let at_ms = scenario.now_ms() + 1;
    let executed = scenario.ledger.commit(at_ms, &[command]).pop().unwrap().map(|_| ());
    if executed.is_err() {
        assert_eq!(*scenario.ledger.state(), before, "a rejected command changes nothing");
    }
    assert_eq!(admitted, executed);
    executed
}

fn refusal(change: impl FnOnce(&mut CommandBody)) -> String {
    let mut scenario = Scenario::new();
    let mut body = body(&scenario);
    change(&mut body);
    let command = SignedCommand::sign(body, &scenario.user);
    verdict(&mut scenario, command).unwrap_err().to_string()
}

#[test]
fn a_command_of_another_chain_is_refused_with_both_chains() {
    let other = ChainId(Hash([1; 32]));
    let text = refusal(|body| body.chain = other);
    assert!(text.starts_with(&format!("the command is for chain {other}, but this grid is ")), "{text}");
}

#[test]
fn a_command_is_carried_by_its_expiry_height_and_no_later() {
    let mut scenario = Scenario::new();
    let height = scenario.ledger.tip().header.height + 1;
    let mut last = body(&scenario);
    last.expires_height = height;
    let command = SignedCommand::sign(last, &scenario.user);
    assert_eq!(verdict(&mut scenario, command), Ok(()));
    let text = refusal(|body| body.expires_height = height - 1);
    assert_eq!(
        text,
        format!("the command expired at height {}, the ledger is at {height}: sign it again", height - 1)
    );
}

#[test]
fn a_command_may_not_expire_too_far_ahead() {
    let text = refusal(|body| body.expires_height += 2);
    assert!(text.contains("is more than 100000 blocks ahead of"), "{text}");
    let text = refusal(|body| body.expires_height = u64::MAX);
    assert!(text.contains("choose a nearer one"), "{text}");
}

#[test]
fn a_command_that_is_too_large_is_malformed() {
    let text = refusal(|body| {
        if let Command::Transfer { memo, .. } = &mut body.command {
            *memo = "x".repeat(limits::COMMAND_BYTES);
        }
    });
    assert!(text.starts_with("the command is malformed: 98"), "{text}");
    assert!(text.ends_with("bytes, more than the limit of 98304"), "{text}");
}

#[test]
fn a_command_that_another_key_signed_or_anybody_altered_is_refused() {
    let mut scenario = Scenario::new();
    let user = scenario.user.public();
    let forged = SignedCommand::sign(body(&scenario), &scenario.other);
    let foreign = KeyRefusal::Foreign { bot: user, key: scenario.other.public() };
    let named = SignedCommand { key: user, ..forged.clone() };
    assert_eq!(verdict(&mut scenario, forged), Err(Rejection::Key(foreign)));
    let wrong = Rejection::BadSignature { author: user };
    assert_eq!(verdict(&mut scenario, named), Err(wrong.clone()));
    assert_eq!(
        wrong.to_string(),
        format!("the signature of {user} is wrong: sign again with the author's key")
    );
    let mut altered = scenario.ledger.sign(&scenario.user, pay(&scenario, 1));
    altered.body.command = pay(&scenario, 2);
    assert_eq!(verdict(&mut scenario, altered), Err(wrong));
}

#[test]
fn a_command_can_not_be_replayed() {
    let mut scenario = Scenario::new();
    let command = scenario.ledger.sign(&scenario.user, pay(&scenario, 1));
    assert_eq!(verdict(&mut scenario, command.clone()), Ok(()));
    let text = verdict(&mut scenario, command).unwrap_err().to_string();
    assert!(text.starts_with("sequence number 0 of "), "{text}");
    assert!(text.contains("expected 1: the command was already used or one before it is missing"), "{text}");
}

#[test]
fn a_replay_within_one_block_is_refused_too() {
    let mut scenario = Scenario::new();
    let command = scenario.ledger.sign(&scenario.user, pay(&scenario, 1));
    let at_ms = scenario.now_ms() + 1;
    let results = scenario.ledger.commit(at_ms, &[command.clone(), command]);
    assert!(results[0].is_ok());
    assert!(matches!(results[1], Err(Rejection::Sequence { got: 0, expected: 1, .. })));
    assert_eq!(scenario.balance(&scenario.other), Grains(ALLOWANCE.0 + 1));
}

#[test]
fn commands_may_wait_for_those_before_them_but_not_be_executed_before_them() {
    let scenario = Scenario::new();
    let (chain, height) = (scenario.ledger.chain(), scenario.ledger.tip().header.height + 1);
    let admit = |ahead| {
        let command = scenario.ledger.sign_ahead(&scenario.user, pay(&scenario, 1), ahead);
        check_admission(&scenario.ledger, &chain, height, &command).unwrap()
    };
    assert_eq!(admit(0), Ok(()));
    assert_eq!(admit(SEQUENCE_WINDOW - 1), Ok(()));
    assert!(matches!(admit(SEQUENCE_WINDOW), Err(Rejection::Sequence { got: 64, expected: 0, .. })));

    let mut scenario = scenario;
    let at_ms = scenario.now_ms() + 1;
    let second = scenario.ledger.sign_ahead(&scenario.user, pay(&scenario, 1), 1);
    let first = scenario.ledger.sign(&scenario.user, pay(&scenario, 1));
    let early = scenario.ledger.commit(at_ms, std::slice::from_ref(&second));
    assert!(matches!(early[0], Err(Rejection::Sequence { got: 1, expected: 0, .. })));
    let both = scenario.ledger.commit(at_ms + 1, &[first, second]);
    assert!(both.iter().all(Result::is_ok), "{both:?}");
}

#[test]
fn a_rejected_command_passes_once_it_fits_unless_its_number_was_used() {
    let mut scenario = Scenario::new();
    let poor = key(50);
    scenario.add_bot("poor", &poor);
    let gift = Command::Transfer { to: scenario.other.public(), amount: Grains(5), memo: String::new() };
    let early = scenario.ledger.sign(&poor, gift);
    assert!(matches!(verdict_of(&mut scenario, &early), Err(Rejection::Funds { .. })));

    let mut gave_up = scenario.clone();
    let user = scenario.user.clone();
    let top_up = Command::Transfer { to: poor.public(), amount: Grains(9), memo: String::new() };
    scenario.ledger.submit(&user, top_up.clone()).unwrap();
    assert!(verdict_of(&mut scenario, &early).is_ok(), "it was never used");

    gave_up.ledger.submit(&user, top_up).unwrap();
    let instead = Command::Transfer { to: gave_up.user.public(), amount: Grains(1), memo: String::new() };
    gave_up.ledger.submit(&poor, instead).unwrap();
    assert!(matches!(verdict_of(&mut gave_up, &early), Err(Rejection::Sequence { .. })));
}

fn verdict_of(scenario: &mut Scenario, command: &SignedCommand) -> Result<Receipt, Rejection> {
    let at_ms = scenario.now_ms() + 1;
    scenario.ledger.commit(at_ms, std::slice::from_ref(command)).pop().unwrap()
}

#[test]
fn one_rejected_command_does_not_hinder_the_others() {
    let mut scenario = Scenario::new();
    let at_ms = scenario.now_ms() + 1;
    let commands = [
        scenario.ledger.sign(&scenario.user, pay(&scenario, 1)),
        scenario.ledger.sign(&scenario.farmer, pay(&scenario, ALLOWANCE.0 + 1)),
        scenario.ledger.sign_ahead(&scenario.user, pay(&scenario, 2), 1),
    ];
    let records = scenario.ledger.records().len();
    let results = scenario.ledger.commit(at_ms, &commands);
    assert!(results[0].is_ok() && results[1].is_err() && results[2].is_ok());
    let new = &scenario.ledger.records()[records..];
    assert_eq!(new.len(), 2);
    for (at, result) in results.iter().flatten().enumerate() {
        assert_eq!((result.first, &result.records[..]), (at, &[new[at].hash()][..]));
    }
}

#[test]
fn what_a_rejected_command_had_begun_does_not_leak_into_the_next() {
    let mut scenario = Scenario::new();
    let id = scenario.agree(scenario.terms("web")).unwrap();
    let start_ms = scenario.now_ms();
    let at_ms = start_ms + 1000;
    // Its first line is good and would be paid, its second is not.
    let nowhere = ContractId(Hash([255; 32]));
    let running = croft_protocol::record::WorkloadState::Running;
    let report = scenario.report_body(start_ms, at_ms, vec![(id, running, 1000), (nowhere, running, 0)]);
    let report = scenario.ledger.sign(&scenario.node, Command::Report(report));
    let transfer = scenario.ledger.sign(&scenario.user, pay(&scenario, 1));

    let mut alone = scenario.ledger.clone();
    let results = scenario.ledger.commit(at_ms, &[report, transfer.clone()]);
    assert!(matches!(results[0], Err(Rejection::Report { .. })));
    assert_eq!(results[1], alone.commit(at_ms, &[transfer]).pop().unwrap());
    assert_eq!(scenario.ledger.state(), alone.state());
    assert_eq!(scenario.ledger.events(), alone.events());
    assert_eq!(scenario.ledger.tip(), alone.tip());
}

/// Of a block that claims height 9.
fn context(scenario: &Scenario, time_ms: u64) -> BlockContext {
    BlockContext { height: 9, ..BlockContext::after(&scenario.ledger.tip().header, time_ms) }
}

#[test]
fn a_failing_store_stops_the_block_and_is_no_rejection() {
    struct Broken;
    impl StateRead for Broken {
        fn get(&self, _: &StateKey) -> Result<Option<Vec<u8>>, StateError> {
            Err(StateError::new(std::io::Error::other("disk on fire")))
        }
    }
    let scenario = Scenario::new();
    let ctx = context(&scenario, START_MS + 9);
    let command = scenario.ledger.sign(&scenario.user, pay(&scenario, 1));
    let error = execute_block(&Broken, ctx, std::slice::from_ref(&command)).unwrap_err();
    assert_eq!(error.to_string(), "disk on fire");
    assert!(check_admission(&Broken, &ctx.chain, 9, &command).is_err());
}

#[test]
fn corrupt_state_stops_the_block_and_names_the_key() {
    struct Corrupt(MemoryLedger, StateKey);
    impl StateRead for Corrupt {
        fn get(&self, key: &StateKey) -> Result<Option<Vec<u8>>, StateError> {
            if *key == self.1 { Ok(Some(vec![1, 2, 3])) } else { self.0.get(key) }
        }
    }
    let scenario = Scenario::new();
    let ctx = context(&scenario, START_MS + 9);
    let command = scenario.ledger.sign(&scenario.user, pay(&scenario, 1));
    let account = StateKey::Account(scenario.other.public());
    let error = execute_block(&Corrupt(scenario.ledger, account), ctx, &[command]).unwrap_err().to_string();
    assert!(error.starts_with("the ledger's state is corrupt at Account("), "{error}");
    assert!(error.ends_with("restore this replica from another"), "{error}");
}

#[test]
fn a_block_has_a_limited_number_of_commands() {
    let scenario = Scenario::new();
    let ctx = context(&scenario, START_MS + 9);
    let command = scenario.ledger.sign(&scenario.user, pay(&scenario, 1));
    let commands = vec![command; limits::COMMANDS_PER_BLOCK + 1];
    let error = execute_block(&scenario.ledger, ctx, &commands).unwrap_err().to_string();
    assert_eq!(error, "block 9 has 1001 commands, at most 1000 are allowed");
}

#[test]
fn writes_hold_only_what_changed() {
    let mut scenario = Scenario::new();
    scenario.add_bot("new", &key(60));
    let ctx = context(&scenario, scenario.now_ms() + 1);
    let there = scenario.ledger.sign(&scenario.user, pay(&scenario, 7));
    let outcome = execute_block(&scenario.ledger, ctx, &[there]).unwrap();
    for (key, value) in &outcome.writes {
        assert_ne!(scenario.ledger.get(key).unwrap(), *value, "{key:?}");
    }
    let nothing = execute_block(&scenario.ledger, ctx, &[]).unwrap();
    assert_eq!(nothing, BlockOutcome::default());
}

fn genesis() -> Genesis {
    Scenario::new().ledger.genesis().clone()
}

#[test]
fn the_genesis_gives_each_bot_its_record_name_and_grains() {
    let genesis = genesis();
    let ledger = MemoryLedger::new(genesis.clone(), Vec::new()).unwrap();
    assert_eq!(ledger.records().len(), 4);
    assert!(ledger.records().iter().all(|record| record.author == PublicKey([0; 32]) && record.height == 0));
    let header = ledger.tip().header;
    assert_eq!((header.height, header.time_ms, header.prev), (0, START_MS, Hash::ZERO));
    assert_eq!((header.validators, header.next_validators, header.log_size), {
        let set = genesis.validators.hash();
        (set, set, 4)
    });
    for allocation in &genesis.allocations {
        assert_eq!(ledger.account(&allocation.bot).unwrap().balance, allocation.grains);
        let holder: Option<PublicKey> = ledger.read(&StateKey::BotName(allocation.name.clone())).unwrap();
        assert_eq!(holder, Some(allocation.bot));
    }
    let supply: Option<Grains> = ledger.read(&StateKey::Supply).unwrap();
    assert_eq!(supply, Some(Grains(3 * ALLOWANCE.0)));
}

#[test]
fn a_genesis_that_contradicts_itself_is_refused_with_the_culprit() {
    let refused = |change: &dyn Fn(&mut Genesis)| {
        let mut genesis = genesis();
        change(&mut genesis);
        execute_genesis(&genesis).unwrap_err().to_string()
    };
    let bot = key(1).public();
    assert_eq!(
        refused(&|g| g.allocations[1].bot = bot),
        format!("bot {bot} has two allocations in the genesis: give it one")
    );
    assert_eq!(
        refused(&|g| g.allocations[1].name = name("alice")),
        "two bots of the genesis are named 'alice': give each its own name"
    );
    assert_eq!(
        refused(&|g| g.allocations[0].grains = Grains(u64::MAX)),
        "the allocations of the genesis exceed 2^64 - 1 grains"
    );
    assert_eq!(
        refused(&|g| g.time_ms = 0),
        "the genesis time must be milliseconds since 1970, greater than 0"
    );
    assert_eq!(
        refused(&|g| g.validators = ValidatorSet { validators: Vec::new() }),
        "a validator set has 1 to 64 validators, not 0"
    );
    let many = |g: &mut Genesis| g.allocations = Vec::<Allocation>::new();
    let mut empty = genesis();
    many(&mut empty);
    assert!(execute_genesis(&empty).is_ok(), "a grid without grains is a grid");
}
