//! What is wrong with a command, sent over QUIC as a stranger would, and the typed answer to each.

mod common;

use common::{Bench, PATIENCE, key, within};
use croft_protocol::api::{Failure, Request, Response};
use croft_protocol::{ChainId, Hash, Rejection, SignedCommand, encode, limits};
use croft_transport::{Connection, Endpoint, frame};

/// Sends these bytes as one frame of this length, whatever they are.
async fn send(connection: &Connection, len: u32, bytes: &[u8]) -> Response {
    let (mut send, mut recv) = connection.open().await.unwrap();
    // The replica may have answered, and stopped listening, before all is there.
    let _ = send.write_all(&[&len.to_le_bytes(), bytes].concat()).await;
    let _ = send.finish();
    frame::read(&mut recv, "the response", limits::RESPONSE_BYTES, PATIENCE).await.unwrap()
}

async fn submit(connection: &Connection, command: &SignedCommand) -> Response {
    let bytes = encode(&Request::Submit(Box::new(command.clone())));
    send(connection, bytes.len() as u32, &bytes).await
}

fn rejected(response: Response) -> Rejection {
    match response {
        Response::Rejected(rejection) => rejection,
        other => panic!("{other:?}"),
    }
}

fn failed(response: Response) -> Failure {
    match response {
        Response::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

async fn connect(bench: &Bench) -> (Endpoint, Connection) {
    let endpoint = Endpoint::client(&key(50)).unwrap();
    let pin = bench.pin();
    let connection = endpoint.connect(pin.address, pin.key).await.unwrap();
    (endpoint, connection)
}

#[tokio::test]
async fn what_is_no_command_is_refused_by_its_form() {
    let bench = Bench::start().await;
    let (_endpoint, connection) = connect(&bench).await;
    let good = encode(&Request::Submit(Box::new(bench.sign(&bench.user, 0, bench.pay(1)))));
    let len = good.len() as u32;

    let truncated = failed(send(&connection, len, &good[..good.len() / 2]).await);
    assert!(matches!(truncated, Failure::Malformed { .. }), "{truncated:?}");
    assert!(
        truncated.to_string().contains("ended the stream before the request was complete"),
        "{truncated}"
    );
    // Whole by its frame, but half a command.
    let half = &good[..good.len() / 2];
    let cut = failed(send(&connection, half.len() as u32, half).await);
    assert!(matches!(cut, Failure::Malformed { .. }), "{cut:?}");
    let longer = [&good[..], &[0; 7]].concat();
    let trailing = failed(send(&connection, longer.len() as u32, &longer).await);
    assert!(matches!(trailing, Failure::Malformed { .. }), "{trailing:?}");
    let mut state = 1_u64;
    for size in [1, 3, 100, 10_000] {
        let bytes: Vec<u8> = (0..size)
            .map(|_| {
                // Numerical Recipes' generator: any bytes will do, the same in each run.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8 | 0x80
            })
            .collect();
        let random = failed(send(&connection, size, &bytes).await);
        assert!(matches!(random, Failure::Malformed { .. }), "{random:?}");
    }
    // More than a request may have: only a bot's blob is this large, and this is a stranger.
    let oversized = failed(send(&connection, limits::REQUEST_BYTES as u32 + 1, &[]).await);
    assert!(matches!(oversized, Failure::Quota { .. }), "{oversized:?}");
    let huge = failed(send(&connection, u32::MAX, &[]).await);
    assert!(matches!(huge, Failure::TooMuch { .. }), "{huge:?}");
    // The connection has survived it all, and so has the command.
    assert!(matches!(send(&connection, len, &good).await, Response::Final { .. }));
    bench.stop().await;
}

#[tokio::test]
async fn a_command_larger_than_any_is_rejected_though_it_is_well_formed() {
    let bench = Bench::start().await;
    let (_endpoint, connection) = connect(&bench).await;
    let mut terms = bench.terms("web");
    terms.sealed = vec![7; limits::COMMAND_BYTES];
    let large = bench.sign(&bench.user, 0, bench.agree(terms));
    let rejection = rejected(submit(&connection, &large).await);
    assert!(matches!(rejection, Rejection::Bounds { .. } | Rejection::Malformed { .. }), "{rejection}");
    bench.stop().await;
}

#[tokio::test]
async fn replayed_foreign_forged_and_expired_commands_are_rejected_with_their_reason() {
    let bench = Bench::start().await;
    let (_endpoint, connection) = connect(&bench).await;
    let author = bench.user.public();
    let pay = bench.sign(&bench.user, 0, bench.pay(5));
    assert!(matches!(submit(&connection, &pay).await, Response::Final { .. }));
    let replayed = rejected(submit(&connection, &pay).await);
    assert_eq!(replayed, Rejection::Sequence { author, got: 0, expected: 1 });

    let mut body = bench.sign(&bench.user, 1, bench.pay(5)).body;
    body.chain = ChainId(Hash([9; 32]));
    let foreign = SignedCommand::sign(body.clone(), &bench.user);
    let wrong = Rejection::WrongChain { theirs: body.chain, ours: bench.chain() };
    assert_eq!(rejected(submit(&connection, &foreign).await), wrong);
    // Moved to this chain without its author.
    body.chain = bench.chain();
    let moved = SignedCommand { body: body.clone(), key: body.author, signature: foreign.signature };
    assert_eq!(rejected(submit(&connection, &moved).await), Rejection::BadSignature { author });
    let forged = SignedCommand::sign(body.clone(), &key(77));
    let foreign = Rejection::Key(croft_protocol::KeyRefusal::Foreign { bot: author, key: key(77).public() });
    assert_eq!(rejected(submit(&connection, &forged).await), foreign);
    body.expires_height = 0;
    let expired = SignedCommand::sign(body.clone(), &bench.user);
    let rejection = rejected(submit(&connection, &expired).await);
    assert!(matches!(rejection, Rejection::Expired { expired: 0, .. }), "{rejection}");
    body.expires_height = u64::MAX;
    let eternal = SignedCommand::sign(body, &bench.user);
    let rejection = rejected(submit(&connection, &eternal).await);
    assert!(matches!(rejection, Rejection::ExpiryTooFar { .. }), "{rejection}");
    bench.stop().await;
}

#[tokio::test]
async fn a_gap_in_the_sequence_is_waited_for_and_then_named() {
    let bench = Bench::start().await;
    let (_endpoint, connection) = connect(&bench).await;
    let author = bench.user.public();
    let gap = rejected(within(submit(&connection, &bench.sign(&bench.user, 2, bench.pay(1)))).await);
    assert_eq!(gap, Rejection::Sequence { author, got: 2, expected: 0 });
    let far = rejected(submit(&connection, &bench.sign(&bench.user, 1_000_000, bench.pay(1))).await);
    assert!(matches!(far, Rejection::Sequence { got: 1_000_000, expected: 0, .. }), "{far}");
    bench.stop().await;
}

#[tokio::test]
async fn who_floods_is_told_when_to_go_on_and_delays_nobody_else() {
    let bench = Bench::start_with(|config| config.commands_per_minute = 5).await;
    let (_endpoint, connection) = connect(&bench).await;
    let author = bench.user.public();
    for sequence in 0..5 {
        let pay = bench.sign(&bench.user, sequence, bench.pay(1));
        assert!(matches!(submit(&connection, &pay).await, Response::Final { .. }));
    }
    let rejection = rejected(submit(&connection, &bench.sign(&bench.user, 5, bench.pay(1))).await);
    let Rejection::RateLimited { author: named, per_minute, retry_ms } = rejection.clone() else {
        panic!("{rejection}")
    };
    assert_eq!((named, per_minute), (author, 5));
    assert!((1..=12_001).contains(&retry_ms), "a fifth of a minute: {retry_ms} ms");
    assert_eq!(
        rejection.to_string(),
        format!(
            "{author} has brought 5 commands within a minute: the next one is taken in {retry_ms} ms, or by another replica"
        )
    );
    // A forged one in another's name costs that one nothing.
    let victim = bench.farmer.public();
    for _ in 0..8 {
        let forged = SignedCommand::sign(bench.sign(&bench.farmer, 0, bench.pay(1)).body, &key(77));
        let foreign = croft_protocol::KeyRefusal::Foreign { bot: victim, key: key(77).public() };
        assert_eq!(rejected(submit(&connection, &forged).await), Rejection::Key(foreign));
    }
    let farm = bench.sign(&bench.farmer, 0, common::Files::create_farm());
    assert!(matches!(submit(&connection, &farm).await, Response::Final { .. }));
    bench.stop().await;
}
