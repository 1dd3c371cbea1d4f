//! Several replicas, some of them dead, slow, late or lying.

mod fake;
mod hostile;
mod submitting;

use croft_ledger::memory::{Scenario, key as scenario_key};
use croft_protocol::api::{Concern, Failure, Request, Response};
use croft_protocol::{Command, StateKey, ValidatorSet};
use fake::{Act, Disk, Fake, Ledger, client, client_of_first, client_on, key, value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::relay::peer_accept;

fn grid() -> Ledger {
    Ledger::new(Scenario::new())
}

fn supply() -> Vec<StateKey> {
    vec![StateKey::Supply]
}

/// Whatever must happen, however slow this machine is.
async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), what).await.expect("it must happen")
}

/// Looks again and again, as the background does every ten seconds.
async fn until(verified: &Verified, holds: impl Fn() -> bool) {
    within(async {
        while !holds() {
            verified.look().await;
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_value_is_proved_and_the_newest_header_is_known_from_then_on() {
    let ledger = grid();
    let fake = Fake::honest(1, &ledger);
    let verified = client(&ledger, &[&fake]);
    let (tip, values) = verified.get(&supply()).await.unwrap();
    assert_eq!(tip.height(), ledger.tip().header.height);
    assert_eq!(values, [value(&ledger, &StateKey::Supply)]);
    assert_eq!(verified.newest(), Some(ledger.tip()));
    assert_eq!(verified.tip().await.unwrap(), tip);
}

#[tokio::test]
async fn a_header_of_the_past_is_final_or_not_handed_out() {
    let ledger = grown();
    // One that sends another header than was asked for, and one that cuts signatures off.
    let other = Fake::start(1, &ledger, |request, ledger| match request {
        Request::Header { .. } => Act::Say(ledger.answer(&Request::Header { height: 1 })),
        _ => Act::Honest,
    });
    let unsigned = Fake::start(2, &ledger, |request, ledger| match request {
        Request::Header { .. } => {
            let mut forged = ledger.tip();
            forged.certificate.signatures.truncate(2);
            Act::Say(Response::Header(Box::new(forged)))
        }
        _ => Act::Honest,
    });
    let honest = Fake::honest(3, &ledger);
    let height = ledger.tip().header.height;
    for liar in [&other, &unsigned] {
        let verified = client_of_first(&ledger, &[liar, &honest]);
        assert_eq!(within(verified.header(height)).await.unwrap(), Some(ledger.tip()));
        assert_eq!(within(verified.header(height + 100)).await.unwrap(), None, "nobody has it");
    }
    let verified = client(&ledger, &[&honest]);
    // Those who certified it have handed over since.
    assert_eq!(within(verified.header(1)).await.unwrap(), None);
}

#[tokio::test]
async fn who_holds_a_key_is_proved_and_asked_anew_each_time() {
    let ledger = grid();
    let fake = Fake::honest(1, &ledger);
    let verified = client(&ledger, &[&fake]);
    let (user, node) = ledger.with(|scenario| (scenario.user.clone(), scenario.node.public()));
    let id = user.public();
    assert_eq!(verified.identity_of(id).await.unwrap(), id);
    assert_eq!(verified.owner_of(id).await.unwrap().1.changes, []);

    let new = scenario_key(90);
    let height = ledger.with(|scenario| {
        let link = croft_protocol::identity::Link::sign(&user, &new, &scenario.ledger.chain());
        scenario.ledger.submit(&user, Command::RotateKey(Box::new(link))).unwrap();
        scenario.ledger.tip().header.height
    });
    assert_eq!(verified.identity_of(new.public()).await.unwrap(), id);
    assert_eq!(verified.present_key(id).await.unwrap(), new.public());
    assert_eq!(verified.owner_of(new.public()).await.unwrap().0, id);
    verified.check_key(id, new.public()).await.unwrap();
    let replaced = KeyRefusal::Replaced { bot: id, key: id, height };
    for refused in [verified.identity_of(id).await.map(drop), verified.check_key(id, id).await] {
        assert!(matches!(&refused, Err(VerifiedError::Key(why)) if *why == replaced), "{refused:?}");
    }
    let alone = verified.check_key(new.public(), new.public()).await.unwrap_err();
    assert!(matches!(alone, VerifiedError::Key(KeyRefusal::Follows { bot, .. }) if bot == id), "{alone}");
    let foreign = verified.check_key(node, new.public()).await.unwrap_err();
    assert!(matches!(foreign, VerifiedError::Key(KeyRefusal::Foreign { .. })), "{foreign}");
    assert_eq!(verified.identity_of(node).await.unwrap(), node);
}

#[tokio::test]
async fn several_replicas_are_kept_connected_but_no_more_than_three() {
    let ledger = grid();
    let fakes: Vec<Fake> = (1..=5).map(|seed| Fake::honest(seed, &ledger)).collect();
    let all: Vec<&Fake> = fakes.iter().collect();
    let verified = client(&ledger, &all);
    verified.get(&supply()).await.unwrap();
    verified.look().await;
    verified.look().await;
    let connected = || fakes.iter().filter(|fake| fake.connections() > 0).count();
    assert_eq!(connected(), 3);

    // One of them goes: another one takes its place.
    let gone = fakes.iter().find(|fake| fake.connections() > 0).unwrap();
    gone.stop().await;
    until(&verified, || connected() == 4).await;
    let views = verified.unproved().replicas().await;
    let problem = views.iter().find(|view| view.replica == gone.address).unwrap();
    assert!(!problem.connected && problem.problem.is_some(), "{problem:?}");
}

#[tokio::test]
async fn a_replica_that_hangs_up_costs_nothing_but_its_turn() {
    let ledger = grid();
    let broken = Fake::start(1, &ledger, |_, _| Act::HangUp);
    let good = Fake::honest(2, &ledger);
    let verified = client_of_first(&ledger, &[&broken, &good]);
    let (_, values) = within(verified.get(&supply())).await.unwrap();
    assert_eq!(values, [value(&ledger, &StateKey::Supply)]);
    good.stop().await;
    let error = within(verified.get(&supply())).await.unwrap_err();
    assert!(error.to_string().starts_with("no replica of the grid can be used: "), "{error}");
}

#[tokio::test]
async fn a_slow_replica_is_overtaken_by_the_next() {
    let ledger = grid();
    let slow = Fake::start(1, &ledger, |_, _| Act::Silent);
    let good = Fake::honest(2, &ledger);
    let verified = client_of_first(&ledger, &[&slow, &good]);
    // Far sooner than the slow one would be given up: its own limit is ten seconds, twice.
    let read = timeout(Duration::from_secs(9), verified.get(&supply())).await.expect("the next one is asked");
    assert_eq!(read.unwrap().1, [value(&ledger, &StateKey::Supply)]);
    assert!(slow.asked(|_| true) > 0);
}

#[tokio::test]
async fn a_replica_that_is_behind_is_not_believed_and_not_a_liar() {
    let ledger = grid();
    let behind = Fake::honest(1, &ledger.fork());
    let good = Fake::honest(2, &ledger);
    ledger.beat();
    let verified = client_of_first(&ledger, &[&behind, &good]);
    within(async {
        while verified.newest() != Some(ledger.tip()) {
            verified.look().await;
        }
    })
    .await;
    for _ in 0..3 {
        let (tip, _) = verified.get(&supply()).await.unwrap();
        assert_eq!(tip.height(), ledger.tip().header.height);
    }
    let views = verified.unproved().replicas().await;
    let view = views.iter().find(|view| view.replica == behind.address).unwrap();
    assert!(view.connected, "{view:?}");
    good.stop().await;
    let error = within(verified.get(&supply())).await.unwrap_err();
    assert!(
        matches!(&error, VerifiedError::NotBelieved { source, .. } if matches!(**source, LightError::Back { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_tip_that_is_too_old_is_refused_where_there_is_a_clock() {
    let ledger = grid();
    let fake = Fake::honest(1, &ledger);
    let disk = Disk { now_ms: Some(ledger.tip().header.time_ms + 200_000), ..Disk::default() };
    let verified = client_on(&ledger, &[&fake], &disk);
    let error = within(verified.get(&supply())).await.unwrap_err();
    let VerifiedError::NotBelieved { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().contains("200000 ms old, at most 120000 are allowed"), "{source}");
}

#[tokio::test]
async fn what_one_run_has_seen_binds_the_next() {
    let ledger = grid();
    let old = ledger.fork();
    ledger.beat();
    let (fake, disk) = (Fake::honest(1, &ledger), Disk::default());
    let verified = client_on(&ledger, &[&fake], &disk);
    verified.get(&supply()).await.unwrap();
    verified.close().await;
    assert_eq!(
        disk.trail().and_then(|bytes| Trail::height_of(verified.chain(), &bytes)),
        Some(ledger.tip().header.height)
    );

    let restored = Fake::honest(2, &old);
    let verified = client_on(&ledger, &[&restored], &disk);
    let error = within(verified.get(&supply())).await.unwrap_err();
    assert!(
        matches!(&error, VerifiedError::NotBelieved { source, .. } if matches!(**source, LightError::Back { .. })),
        "{error}"
    );

    // What is garbled there binds nobody.
    *disk.trail.lock().unwrap() = Some(vec![1, 2, 3]);
    client_on(&ledger, &[&restored], &disk).get(&supply()).await.unwrap();
}

/// Two histories from one on, both certified by the same validators.
fn two_histories() -> (Ledger, Ledger) {
    let ledger = grid();
    ledger.beat();
    let other = ledger.fork();
    let pay = |ledger: &Ledger, grains| {
        ledger.with(|s| {
            let (user, to) = (s.user.clone(), s.other.public());
            let amount = croft_protocol::Grains(grains);
            s.ledger.submit(&user, Command::Transfer { to, amount, memo: String::new() }).unwrap();
        });
    };
    pay(&ledger, 1);
    pay(&other, 2);
    (ledger, other)
}

#[tokio::test]
async fn two_histories_stop_everything_and_the_proof_is_kept() {
    let (ledger, other) = two_histories();
    let (a, b) = (Fake::honest(1, &ledger), Fake::honest(2, &other));
    let disk = Disk::default();
    let verified = client_on(&ledger, &[&a, &b], &disk);
    until(&verified, || verified.evidence().is_some()).await;
    let error = verified.get(&supply()).await.unwrap_err();
    assert!(
        error.to_string().starts_with("the validators of this grid signed two histories, header 4 "),
        "{error}"
    );
    assert!(error.to_string().contains("the proof is in the test's memory"), "{error}");
    let kept = Evidence::read(&disk.evidence().unwrap()).unwrap();
    assert_eq!(Some(kept.clone()), verified.evidence());
    let mut headers = [kept.known, kept.other].map(|signed| signed.header.hash());
    headers.sort_unstable();
    let mut expected = [ledger.tip(), other.tip()].map(|signed| signed.header.hash());
    expected.sort_unstable();
    assert_eq!(headers, expected);

    // The next run does not even ask.
    let again = client_on(&ledger, &[&a, &b], &disk);
    let asked = a.asked(|_| true) + b.asked(|_| true);
    assert!(matches!(again.tip().await, Err(VerifiedError::Contradicted { .. })));
    assert!(matches!(again.follow(Vec::new()).await, Err(VerifiedError::Contradicted { .. })));
    assert!(matches!(again.peer(key(9).public()).await, Err(VerifiedError::Contradicted { .. })));
    assert_eq!(a.asked(|_| true) + b.asked(|_| true), asked);
    // Garbled evidence is none.
    let mut bytes = disk.evidence().unwrap();
    bytes[40] ^= 1;
    assert_eq!(Evidence::read(&bytes), None);
}

#[tokio::test]
async fn histories_that_split_below_their_tips_are_noticed_too() {
    let (ledger, other) = two_histories();
    other.beat();
    other.beat();
    let (a, b) = (Fake::honest(1, &ledger), Fake::honest(2, &other));
    let verified = client(&ledger, &[&a, &b]);
    until(&verified, || verified.evidence().is_some()).await;
    let evidence = verified.evidence().unwrap();
    assert_eq!(evidence.known.header.height, evidence.other.header.height);
}

#[tokio::test]
async fn a_history_that_was_exchanged_as_a_whole_is_noticed_against_what_is_known() {
    let (ledger, other) = two_histories();
    let disk = Disk::default();
    let honest = Fake::honest(1, &ledger);
    let verified = client_on(&ledger, &[&honest], &disk);
    verified.get(&supply()).await.unwrap();
    verified.close().await;
    other.beat();
    other.beat();
    let exchanged = Fake::honest(2, &other);
    let verified = client_on(&ledger, &[&exchanged], &disk);
    until(&verified, || verified.evidence().is_some()).await;
}

#[tokio::test]
async fn a_replica_that_is_behind_with_another_history_is_noticed_too() {
    let (ledger, other) = two_histories();
    ledger.beat();
    ledger.beat();
    let (ahead, late, disk) = (Fake::honest(1, &ledger), Fake::honest(2, &other), Disk::default());
    let verified = client_on(&ledger, &[&ahead], &disk);
    verified.get(&supply()).await.unwrap();
    verified.close().await;
    let verified = client_on(&ledger, &[&ahead, &late], &disk);
    until(&verified, || verified.evidence().is_some()).await;
    assert_eq!(verified.evidence().unwrap().other.header.height, other.tip().header.height);
}

/// A grid whose validators were all replaced, one after the other.
fn grown() -> Ledger {
    let ledger = grid();
    ledger.with(|s| {
        s.ledger.add_keys((105..=108).map(scenario_key));
        for first in 102..=105_u8 {
            let keys: Vec<_> = (first - 1..first + 3).map(scenario_key).collect();
            let next: Vec<_> = (first..first + 4).map(|n| scenario_key(n).public()).collect();
            let change = s.ledger.sign_change(ValidatorSet::of_equals(&next), &keys);
            let user = s.user.clone();
            s.ledger.submit(&user, Command::SetValidators(Box::new(change))).unwrap();
        }
    });
    ledger.beat();
    ledger
}

fn handovers(request: &Request) -> bool {
    matches!(request, Request::Handover { .. })
}

#[tokio::test]
async fn handovers_are_followed_from_the_pinned_validators_and_need_not_be_asked_for_again() {
    let ledger = grown();
    let (fake, disk) = (Fake::honest(1, &ledger), Disk::default());
    let verified = client_on(&ledger, &[&fake], &disk);
    let (tip, _) = within(verified.get(&supply())).await.unwrap();
    assert_eq!(tip.height(), ledger.tip().header.height);
    assert_eq!(verified.validators(), Some(ledger.tip().validators));
    assert_eq!(fake.asked(handovers), 4);
    verified.close().await;

    let without =
        Fake::start(2, &ledger, |request, _| if handovers(request) { Act::HangUp } else { Act::Honest });
    let verified = client_on(&ledger, &[&without], &disk);
    within(verified.get(&supply())).await.unwrap();
    assert_eq!(without.asked(handovers), 0, "the way was kept");
    // A newer pin that the way passes through will do as well.
    let mut trusted = ledger.trusted(&[&without]);
    trusted.validators = ledger.with(|s| s.ledger.headers()[4].header.validators);
    let verified = Verified::open(&key(200), trusted, disk).unwrap();
    within(verified.get(&supply())).await.unwrap();
    assert_eq!(without.asked(handovers), 0);
}

#[tokio::test]
async fn a_follower_goes_on_at_another_replica_and_is_told_to_look_again() {
    let ledger = grid();
    let fakes = [Fake::honest(1, &ledger), Fake::honest(2, &ledger)];
    let verified = client(&ledger, &[&fakes[0], &fakes[1]]);
    let mut following = verified.follow(vec![Concern::Node(key(4).public())]).await.unwrap();
    let first = within(following.next()).await.unwrap();
    assert!(matches!(first, Followed::Block { tip: Some(_), .. }), "{first:?}");
    ledger.beat();
    let next = within(following.next()).await.unwrap();
    let Followed::Block { tip: Some(tip), .. } = next else { panic!("{next:?}") };
    assert_eq!(tip.height(), ledger.tip().header.height);

    let at = following.replica().unwrap();
    let (gone, left): (Vec<_>, Vec<_>) = fakes.iter().partition(|fake| fake.address.key == at);
    gone[0].stop().await;
    ledger.beat();
    assert_eq!(within(following.next()).await.unwrap(), Followed::Resumed);
    assert_eq!(following.replica(), Some(left[0].address.key));
    let next = within(following.next()).await.unwrap();
    let Followed::Block { tip: Some(tip), .. } = next else { panic!("{next:?}") };
    assert_eq!(tip.height(), ledger.tip().header.height);
}

#[tokio::test]
async fn a_peer_is_reached_whichever_replica_it_listens_at() {
    let ledger = grid();
    let refuses = |request: &Request, _: &Ledger| match request {
        Request::Listen => Act::Say(Response::Failed(Failure::Busy { what: "full".to_owned() })),
        _ => Act::Honest,
    };
    let fakes =
        [Fake::start(1, &ledger, refuses), Fake::start(2, &ledger, refuses), Fake::honest(3, &ledger)];
    let all: Vec<&Fake> = fakes.iter().collect();
    let (callee, caller) = (key(210), client(&ledger, &all));
    let here = Verified::open(&callee, ledger.trusted(&all), Disk::default()).unwrap();

    let absent = within(caller.peer(callee.public())).await.unwrap_err();
    assert!(
        matches!(
            absent,
            VerifiedError::Client(ClientError::Failed { failure: Failure::NotListening { .. }, .. })
        ),
        "{absent}"
    );
    let mut listener = here.listen();
    let answering = callee.clone();
    let answer = tokio::spawn(async move {
        let call = listener.accept().await.unwrap();
        let (mut stream, from) = peer_accept(call.stream, &answering).await.unwrap();
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&word).await.unwrap();
        stream.shutdown().await.unwrap();
        from
    });
    let mut stream = within(async {
        loop {
            if let Ok(stream) = caller.peer(callee.public()).await {
                return stream;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    stream.write_all(b"hello").await.unwrap();
    let mut word = [0; 5];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"hello");
    assert_eq!(answer.await.unwrap(), caller.key());
}

#[tokio::test]
async fn a_listener_listens_at_every_connected_replica() {
    let ledger = grid();
    let fakes: Vec<Fake> = (1..=3).map(|seed| Fake::honest(seed, &ledger)).collect();
    let all: Vec<&Fake> = fakes.iter().collect();
    let verified = client(&ledger, &all);
    let _listener = verified.listen();
    let me = verified.key();
    within(async {
        while !fakes.iter().all(|fake| fake.listening.lock().unwrap().contains_key(&me)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_blob_is_stored_at_two_replicas_and_missing_until_it_is() {
    let ledger = grid();
    let bytes = b"chunk".to_vec();
    let hash = Hash::of_bytes(&bytes);
    let store = |seed: u8, full: bool| {
        let kept = std::sync::atomic::AtomicBool::new(false);
        Fake::start(seed, &ledger, move |request, _| match request {
            Request::PutBlob { .. } if full => {
                Act::Say(Response::Failed(Failure::Storage { reason: "it is full".to_owned() }))
            }
            Request::PutBlob { .. } => {
                kept.store(true, std::sync::atomic::Ordering::SeqCst);
                Act::Say(Response::BlobStored { hash })
            }
            Request::HasBlobs { .. } => {
                Act::Say(Response::Blobs(vec![kept.load(std::sync::atomic::Ordering::SeqCst)]))
            }
            _ => Act::Honest,
        })
    };
    let fakes = [store(1, true), store(2, false), store(3, false)];
    let puts = |fake: &Fake| fake.asked(|request| matches!(request, Request::PutBlob { .. }));
    let all: Vec<&Fake> = fakes.iter().collect();
    let verified = client_of_first(&ledger, &all);
    assert_eq!(verified.has_blobs(&[hash]).await.unwrap(), [false]);
    assert_eq!(within(verified.put_blob(bytes.clone())).await.unwrap(), hash);
    assert_eq!((puts(&fakes[1]), puts(&fakes[2])), (1, 1), "the full one is made up for");
    assert_eq!(verified.has_blobs(&[hash]).await.unwrap(), [true]);
    let alone = client(&ledger, &[&fakes[0]]);
    let error = within(alone.put_blob(bytes)).await.unwrap_err();
    assert!(error.to_string().contains("it is full"), "{error}");
}

#[tokio::test]
async fn a_blob_comes_from_whichever_replica_has_its_bytes() {
    let ledger = grid();
    let bytes = b"chunk".to_vec();
    let hash = Hash::of_bytes(&bytes);
    let wrong = Fake::start(1, &ledger, |request, _| match request {
        Request::GetBlob { .. } => Act::Say(Response::Blob(b"other".to_vec())),
        _ => Act::Honest,
    });
    let empty = Fake::honest(2, &ledger);
    let right = Fake::start(3, &ledger, move |request, _| match request {
        Request::GetBlob { .. } => Act::Say(Response::Blob(bytes.clone())),
        _ => Act::Honest,
    });
    let verified = client_of_first(&ledger, &[&wrong, &empty, &right]);
    assert_eq!(within(verified.get_blob(hash)).await.unwrap(), b"chunk");
    right.stop().await;
    let error = within(verified.get_blob(hash)).await.unwrap_err().to_string();
    assert!(error.contains("there is no blob here") || error.contains("does not have the bytes"), "{error}");
}

#[tokio::test]
async fn blobs_come_from_several_replicas_and_one_that_lacks_some_is_not_blamed() {
    let ledger = grid();
    let chunks: Vec<Vec<u8>> = (0..16_u8).map(|n| vec![n; 100]).collect();
    let holder = |seed, held: Vec<Vec<u8>>| {
        Fake::start(seed, &ledger, move |request, _| match request {
            Request::GetBlob { hash } => match held.iter().find(|chunk| Hash::of_bytes(chunk) == *hash) {
                Some(chunk) => Act::Say(Response::Blob(chunk.clone())),
                None => Act::Honest,
            },
            _ => Act::Honest,
        })
    };
    let (first, second, empty) =
        (holder(1, chunks.clone()), holder(2, chunks.clone()), holder(3, Vec::new()));
    let verified = client_of_first(&ledger, &[&first, &second, &empty]);
    for chunk in &chunks {
        assert_eq!(within(verified.get_blob(Hash::of_bytes(chunk))).await.unwrap(), *chunk);
    }
    let asked = |fake: &Fake| fake.asked(|request| matches!(request, Request::GetBlob { .. }));
    assert!(asked(&first) > 0 && asked(&second) > 0, "{} and {}", asked(&first), asked(&second));
    let blamed: Vec<_> =
        verified.inner.members.order().iter().filter(|m| m.failures() > 0).cloned().collect();
    assert!(blamed.is_empty(), "{blamed:?}");
}
