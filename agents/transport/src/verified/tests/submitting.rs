//! Commands whose fate a replica does not tell, or tells wrongly.

use std::sync::atomic::{AtomicBool, Ordering};

use croft_ledger::memory::ALLOWANCE;
use croft_protocol::api::{Request, Response};
use croft_protocol::{Command, Grains, Hash, Rejection};

use super::fake::{Act, Fake, Ledger, balance, client, client_of_first};
use super::{grid, within};
use crate::verified::*;

fn pay(ledger: &Ledger, grains: u64) -> Command {
    let to = ledger.with(|s| s.other.public());
    Command::Transfer { to, amount: Grains(grains), memo: "thanks".to_owned() }
}

fn user(ledger: &Ledger) -> SecretKey {
    ledger.with(|s| s.user.clone())
}

fn paid(ledger: &Ledger) -> u64 {
    let other = ledger.with(|s| s.other.clone());
    balance(ledger, &other) - ALLOWANCE.0
}

/// Submits seven grains through the first replica.
async fn submit(ledger: &Ledger, replicas: &[&Fake]) -> Result<Final, VerifiedError> {
    let verified = client_of_first(ledger, replicas);
    within(verified.submit(&user(ledger), &pay(ledger, 7), 600)).await
}

#[tokio::test]
async fn a_final_command_is_proved_to_be_final() {
    let ledger = grid();
    let fake = Fake::honest(1, &ledger);
    let done = submit(&ledger, &[&fake]).await.unwrap();
    assert_eq!(done, Final { sequence: 0, height: Some(3), proved_at: 3 });
    assert_eq!(paid(&ledger), 7);
}

#[tokio::test]
async fn several_at_once_of_one_author_all_become_final() {
    let ledger = grid();
    let fake = Fake::honest(1, &ledger);
    let verified = client(&ledger, &[&fake]);
    let (user, pay) = (user(&ledger), pay(&ledger, 7));
    let both = tokio::join!(verified.submit(&user, &pay, 600), verified.submit(&user, &pay, 600));
    assert!(both.0.is_ok() && both.1.is_ok(), "{both:?}");
    assert_eq!(paid(&ledger), 14);
}

#[tokio::test]
async fn a_replica_that_takes_it_and_goes_away_has_it_found_through_another() {
    let ledger = grid();
    let takes = Fake::start(1, &ledger, |request, ledger| match request {
        Request::Submit(_) => {
            ledger.answer(request);
            Act::HangUp
        }
        _ => Act::Honest,
    });
    let honest = Fake::honest(2, &ledger);
    let done = submit(&ledger, &[&takes, &honest]).await.unwrap();
    assert_eq!(done.height, None, "nobody said at which height");
    assert_eq!(paid(&ledger), 7, "once");
    assert_eq!(honest.asked(|request| matches!(request, Request::Submit(_))), 0, "it was there already");
}

#[tokio::test]
async fn a_replica_that_loses_it_has_the_same_bytes_sent_elsewhere() {
    let ledger = grid();
    let loses = Fake::start(1, &ledger, |request, _| match request {
        Request::Submit(_) => Act::HangUp,
        _ => Act::Honest,
    });
    let honest = Fake::honest(2, &ledger);
    let done = submit(&ledger, &[&loses, &honest]).await.unwrap();
    assert!(done.height.is_some());
    assert_eq!(paid(&ledger), 7, "once");
    let submitted = |fake: &Fake| {
        let requests = fake.requests.lock().unwrap();
        requests.iter().find_map(|r| if let Request::Submit(c) = r { Some(c.clone()) } else { None }).unwrap()
    };
    assert_eq!(submitted(&loses), submitted(&honest));
}

#[tokio::test]
async fn a_replica_that_is_cut_off_from_the_others_keeps_a_command_from_nobody() {
    let ledger = grid();
    let cut_off = Fake::start(1, &ledger, |request, _| match request {
        Request::Submit(_) => Act::Silent,
        _ => Act::Honest,
    });
    let honest = Fake::honest(2, &ledger);
    let verified = client_of_first(&ledger, &[&cut_off, &honest]);
    // Far sooner than the silent one would be given up: that takes half a minute.
    let (user, pay) = (user(&ledger), pay(&ledger, 7));
    let submitted = verified.submit(&user, &pay, 600);
    timeout(Duration::from_secs(20), submitted).await.expect("the next one has it too").unwrap();
    assert_eq!(paid(&ledger), 7, "once");
}

#[tokio::test]
async fn alone_with_a_replica_that_loses_it_once_it_is_sent_again() {
    let ledger = grid();
    let lost = AtomicBool::new(false);
    let fake = Fake::start(1, &ledger, move |request, _| match request {
        Request::Submit(_) if !lost.swap(true, Ordering::SeqCst) => Act::HangUp,
        _ => Act::Honest,
    });
    submit(&ledger, &[&fake]).await.unwrap();
    assert_eq!(paid(&ledger), 7, "once");
}

#[tokio::test]
async fn what_a_replica_calls_final_is_not_believed_before_the_ledger_shows_it() {
    let ledger = grid();
    for height in [2, 3, u64::MAX] {
        let before = paid(&ledger);
        let liar = Fake::start(1, &ledger, move |request, _| match request {
            Request::Submit(_) => Act::Say(Response::Final { height, records: vec![Hash::ZERO] }),
            _ => Act::Honest,
        });
        let honest = Fake::honest(2, &ledger);
        submit(&ledger, &[&liar, &honest]).await.unwrap();
        assert_eq!(paid(&ledger), before + 7, "brought by the other one");
        liar.stop().await;
        honest.stop().await;
    }
}

#[tokio::test]
async fn a_sequence_rejection_of_the_same_command_that_became_final_is_success() {
    let ledger = grid();
    let takes = Fake::start(1, &ledger, |request, ledger| match request {
        Request::Submit(_) => {
            ledger.answer(request);
            Act::HangUp
        }
        Request::Get { .. } | Request::Tip if ledger.tip().header.height > 2 => Act::HangUp,
        _ => Act::Honest,
    });
    // It has not heard of the block yet when it is asked for the account, and has when the command comes again.
    let (late, caught_up) = (ledger.fork(), Arc::new(AtomicBool::new(false)));
    let (heard, shared) = (caught_up.clone(), ledger.clone());
    let behind = Fake::start(2, &late, move |request, late| {
        if matches!(request, Request::Submit(_)) {
            heard.store(true, Ordering::SeqCst);
        }
        let ledger = if heard.load(Ordering::SeqCst) { &shared } else { late };
        Act::Say(ledger.answer(request))
    });
    let done = submit(&ledger, &[&takes, &behind]).await.unwrap();
    assert!(caught_up.load(Ordering::SeqCst), "it was sent again");
    assert_eq!((done.height, done.sequence), (None, 0));
    assert_eq!(paid(&ledger), 7, "once");
}

#[tokio::test]
async fn a_number_that_another_command_used_is_told_as_what_it_is() {
    let ledger = grid();
    let other = ledger.with(|s| {
        let to = s.farmer.public();
        s.ledger.sign(&s.user, Command::Transfer { to, amount: Grains(1), memo: String::new() })
    });
    // The number goes to something else while the replica is away with the command.
    let taken = Fake::start(1, &ledger, move |request, ledger| match request {
        Request::Submit(command) if **command != other => {
            ledger.answer(&Request::Submit(Box::new(other.clone())));
            Act::HangUp
        }
        _ => Act::Honest,
    });
    let honest = Fake::honest(2, &ledger);
    let verified = client_of_first(&ledger, &[&taken, &honest]);
    let command = ledger.with(|s| {
        s.ledger
            .sign(&s.user, Command::Transfer { to: s.other.public(), amount: Grains(7), memo: String::new() })
    });
    let error = within(verified.submit_signed(&command)).await.unwrap_err();
    assert!(matches!(error.rejection(), Some(Rejection::Sequence { got: 0, expected: 1, .. })), "{error}");
    assert_eq!(paid(&ledger), 0);
}

#[tokio::test]
async fn one_replicas_no_is_not_the_ledgers() {
    let ledger = grid();
    let liar = Fake::start(1, &ledger, |request, _| match request {
        Request::Submit(_) => Act::Say(Response::Rejected(Rejection::Overflow)),
        _ => Act::Honest,
    });
    let honest = Fake::honest(2, &ledger);
    submit(&ledger, &[&liar, &honest]).await.unwrap();
    assert_eq!(paid(&ledger), 7);

    let verified = client(&ledger, &[&honest, &liar]);
    let too_much = pay(&ledger, u64::MAX);
    let error = within(verified.submit(&user(&ledger), &too_much, 600)).await.unwrap_err();
    assert!(error.rejection().is_some(), "{error}");
}

#[tokio::test]
async fn a_command_that_is_void_before_anybody_takes_it_is_told_so() {
    let ledger = grid();
    let loses = Fake::start(1, &ledger, |request, ledger| match request {
        Request::Submit(_) => {
            ledger.beat();
            ledger.beat();
            Act::HangUp
        }
        _ => Act::Honest,
    });
    let verified = client(&ledger, &[&loses]);
    let error = within(verified.submit(&user(&ledger), &pay(&ledger, 7), 1)).await.unwrap_err();
    assert!(matches!(error.rejection(), Some(Rejection::Expired { expired: 3, .. })), "{error}");
}
