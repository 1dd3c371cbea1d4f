//! One replica tampers with each field of each message that it sends; the other one is honest.

use croft_protocol::{Command, Grains, Hash, StateKey};

use super::fake::{Act, Fake, Ledger, client_of_first, value};
use super::{grid, grown, within};
use crate::verified::*;
use croft_protocol::api::{Request, Response};

/// A byte of every field of at least this size is hit; smaller ones lie in places that are hit by chance, and `light`
/// alters every single byte of the same messages.
const STRIDE: usize = 11;

/// The answer with one byte altered, if it can still be read.
fn altered(response: &Response, at: usize) -> Option<Response> {
    let mut bytes = croft_protocol::encode(response);
    *bytes.get_mut(at)? ^= 1 << (at % 8);
    croft_protocol::decode("the response", &bytes, 1 << 22).ok()
}

/// For bytes all over the answer to `request`: a client that asks the liar first, and what it finds out.
async fn each_lie<T, Run>(
    ledger: &Ledger,
    request: Request,
    run: impl Fn(Verified) -> Run,
    right: impl Fn(&T) -> bool,
) where
    Run: Future<Output = Result<T, VerifiedError>>,
{
    let honest = Fake::honest(1, ledger);
    let same_kind = move |asked: &Request| std::mem::discriminant(asked) == std::mem::discriminant(&request);
    let example = ledger.answer(&example(ledger, &same_kind));
    let length = croft_protocol::encode(&example).len();
    // What can't be read any more is the fuzzer's affair.
    let cases: Vec<usize> =
        (0..length).step_by(STRIDE).filter(|at| altered(&example, *at).is_some()).collect();
    assert!(cases.len() > 20, "{}", cases.len());
    let (honest, same_kind, run, right) = (&honest, &same_kind, &run, &right);
    let each = futures_util::stream::iter(cases).for_each_concurrent(4, |at| async move {
        let same_kind = same_kind.clone();
        let liar = Fake::start(2, ledger, move |asked, ledger| {
            if !same_kind(asked) {
                return Act::Honest;
            }
            altered(&ledger.answer(asked), at).map_or(Act::HangUp, Act::Say)
        });
        let verified = client_of_first(ledger, &[&liar, honest]);
        // On a busy machine the honest one may be slow to connect; then the client says so and is asked again.
        let ask_on = async {
            loop {
                if let Ok(found) = run(verified.clone()).await {
                    return found;
                }
            }
        };
        let found = within(ask_on).await;
        assert!(right(&found), "byte {at} was believed");
        assert_eq!(verified.evidence(), None, "byte {at} proves nothing");
        let newest = verified.newest().map(|newest| newest.header);
        assert!(newest.is_none_or(|newest| newest.hash() == known(ledger, newest.height)), "byte {at}");
    });
    each.await;
}

/// Hash of the true header of that height.
fn known(ledger: &Ledger, height: u64) -> Hash {
    ledger.with(|s| s.ledger.headers()[height as usize].header.hash())
}

fn example(ledger: &Ledger, same_kind: &impl Fn(&Request) -> bool) -> Request {
    let pinned = ledger.with(|s| s.ledger.genesis().validators.hash());
    [
        Request::Tip,
        Request::Get { keys: vec![StateKey::Supply] },
        Request::Range { first: 0, count: 3 },
        Request::Handover { validators: pinned },
    ]
    .into_iter()
    .find(|request| same_kind(request))
    .unwrap()
}

#[tokio::test]
async fn no_altered_tip_is_believed() {
    let ledger = grid();
    let height = ledger.tip().header.height;
    let run = |verified: Verified| async move { verified.tip().await };
    each_lie(&ledger, Request::Tip, run, |tip: &Tip| tip.height() == height).await;
}

#[tokio::test]
async fn no_altered_value_or_proof_is_believed() {
    let ledger = grid();
    let right = value(&ledger, &StateKey::Supply);
    let run = |verified: Verified| async move { verified.get(&[StateKey::Supply]).await };
    let request = Request::Get { keys: Vec::new() };
    each_lie(&ledger, request, run, |(_, values): &(Tip, Vec<_>)| values[0] == right).await;
}

#[tokio::test]
async fn no_altered_record_is_believed() {
    let ledger = grid();
    let right = ledger.with(|s| s.ledger.records()[..3].to_vec());
    let run = |verified: Verified| async move {
        let check = |tip: &Tip, proved: &Vec<croft_protocol::api::ProvedRecord>| {
            proved.iter().map(|p| croft_light::verify_record(tip, p).cloned()).collect::<Result<Vec<_>, _>>()
        };
        verified.prove(|client| async move { client.range(0, 3).await }, check).await
    };
    // That a record has the position that was asked for is the asker's affair: `Grid::range` checks it.
    let is_true = |records: &Vec<croft_protocol::Record>| records.iter().all(|record| right.contains(record));
    each_lie(&ledger, Request::Range { first: 0, count: 0 }, run, is_true).await;
}

#[tokio::test]
async fn no_altered_handover_is_followed() {
    let ledger = grown();
    let height = ledger.tip().header.height;
    let run = |verified: Verified| async move { verified.tip().await };
    let request = Request::Handover { validators: Hash::ZERO };
    each_lie(&ledger, request, run, |tip: &Tip| tip.height() == height).await;
}

#[tokio::test]
async fn a_replica_that_answers_for_other_keys_or_another_question_is_a_liar() {
    let ledger = grid();
    let honest = Fake::honest(1, &ledger);
    let name = ledger.with(|s| StateKey::Account(s.user.public()));
    let stolen = name.clone();
    let other_key = Fake::start(2, &ledger, move |request, ledger| match request {
        Request::Get { .. } => Act::Say(ledger.answer(&Request::Get { keys: vec![stolen.clone()] })),
        _ => Act::Honest,
    });
    let verified = client_of_first(&ledger, &[&other_key, &honest]);
    let (_, values) = within(verified.get(&[StateKey::Supply])).await.unwrap();
    assert_eq!(values, [value(&ledger, &StateKey::Supply)]);
    let views = verified.unproved().replicas().await;
    let liar = views.iter().find(|view| view.replica == other_key.address).unwrap();
    assert!(liar.problem.as_ref().unwrap().starts_with("it lied: the proof for the supply"), "{liar:?}");

    let other_question = Fake::start(3, &ledger, |request, ledger| match request {
        Request::Get { .. } => Act::Say(ledger.answer(&Request::Tip)),
        _ => Act::Honest,
    });
    let verified = client_of_first(&ledger, &[&other_question, &honest]);
    within(verified.get(&[StateKey::Supply])).await.unwrap();
}

#[tokio::test]
async fn a_replica_that_sends_handovers_in_circles_is_passed_over() {
    let ledger = grown();
    let honest = Fake::honest(1, &ledger);
    for which in 0..3 {
        let circle = Fake::start(2, &ledger, move |request, ledger| match request {
            Request::Handover { validators } => {
                let all = ledger.with(|s| {
                    let headers = s.ledger.headers().iter();
                    headers
                        .filter(|h| h.header.validators != h.header.next_validators)
                        .cloned()
                        .collect::<Vec<_>>()
                });
                let first = all[0].header.validators == *validators;
                Act::Say(Response::Header(Box::new(match which {
                    // The same again and again; always the last one; one that is none.
                    0 => all[0].clone(),
                    1 if !first => all[0].clone(),
                    1 => all[all.len() - 1].clone(),
                    _ => ledger.tip(),
                })))
            }
            _ => Act::Honest,
        });
        let verified = client_of_first(&ledger, &[&circle, &honest]);
        let tip = within(verified.tip()).await.unwrap();
        assert_eq!(tip.height(), ledger.tip().header.height, "{which}");
        circle.stop().await;
    }
}

#[tokio::test]
async fn a_follower_leaves_a_replica_that_streams_forged_headers() {
    let ledger = grid();
    let honest = Fake::honest(1, &ledger);
    let other = ledger.fork();
    other.with(|s| {
        let user = s.user.clone();
        let to = s.other.public();
        s.ledger.submit(&user, Command::Transfer { to, amount: Grains(1), memo: String::new() }).unwrap();
    });
    // It streams the truth without the signatures that make it one.
    let liar = Fake::start(2, &ledger, |request, ledger| match request {
        Request::Follow { .. } => {
            let mut forged = ledger.tip();
            forged.certificate.signatures.truncate(2);
            Act::Say(Response::Header(Box::new(forged)))
        }
        _ => Act::Honest,
    });
    let verified = client_of_first(&ledger, &[&liar, &honest]);
    let mut following = verified.follow(Vec::new()).await.unwrap();
    let heard = within(async {
        loop {
            match following.next().await.unwrap() {
                Followed::Block { tip: Some(tip), .. } => return tip,
                _ => ledger.beat(),
            }
        }
    })
    .await;
    assert_eq!(heard.hash(), ledger.with(|s| s.ledger.headers()[heard.height() as usize].header.hash()));
    assert_eq!(following.replica(), Some(honest.address.key));
}
