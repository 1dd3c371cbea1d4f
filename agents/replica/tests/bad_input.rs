//! Bad input over QUIC: each kind has a typed answer that says what to do, and costs nobody else anything.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::{ALLOWANCE, Bench, PATIENCE, key, within};
use croft_protocol::api::{Failure, FarmQuery, Query, Request, Response};
use croft_protocol::keys::Domain;
use croft_protocol::state::Account;
use croft_protocol::{
    ChainId, Command, CommandBody, Grains, Hash, InvalidChange, Kind, RecordId, Rejection, SecretKey,
    SignedCommand, SignedValidatorChange, StateKey, ValidatorChange, ValidatorSet, encode, limits,
};
use croft_transport::{Client, Connection, Endpoint, frame};

/// A replica, somebody who means well, and somebody who does not.
struct Trial {
    bench: Bench,
    honest: Client,
    sequence: AtomicU64,
    /// The other end of everything bad: a bot, so that quotas of strangers are not what stops it.
    connection: Connection,
    _endpoint: Endpoint,
}

impl Trial {
    async fn start() -> Self {
        let bench = Bench::start().await;
        let (endpoint, connection) = connect(&bench, &bench.user).await;
        let honest = bench.client(&bench.farmer);
        Self { bench, honest, sequence: AtomicU64::new(0), connection, _endpoint: endpoint }
    }

    fn author(&self) -> croft_protocol::PublicKey {
        self.bench.user.public()
    }

    /// The bad one's command, altered before it is signed.
    fn signed(&self, command: Command, alter: impl FnOnce(&mut CommandBody)) -> SignedCommand {
        let mut body = self.bench.sign(&self.bench.user, 0, command).body;
        alter(&mut body);
        SignedCommand::sign(body, &self.bench.user)
    }

    fn pay(&self, alter: impl FnOnce(&mut CommandBody)) -> SignedCommand {
        self.signed(self.bench.pay(1), alter)
    }

    async fn submit(&self, command: SignedCommand) -> Response {
        self.ask(&encode(&Request::Submit(Box::new(command)))).await
    }

    async fn rejected(&self, command: SignedCommand) -> Rejection {
        let answer = self.submit(command).await;
        let Response::Rejected(rejection) = answer else { panic!("{answer:?}") };
        rejection
    }

    async fn ask(&self, request: &[u8]) -> Response {
        ask(&self.connection, u32::try_from(request.len()).unwrap(), request).await
    }

    async fn failed(&self, request: &[u8]) -> Failure {
        failure(self.ask(request).await)
    }

    /// Nothing of what happened is in anybody else's way, nor in the ledger.
    async fn still_serves(&self) {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let memo = "honest".to_owned();
        let pay = Command::Transfer { to: self.author(), amount: Grains(1), memo };
        let command = self.bench.sign(&self.bench.farmer, sequence, pay);
        within(self.honest.submit(command)).await.expect("an honest command becomes final");
        assert!(self.connection.is_open(), "a bad request costs its stream, not the connection");
    }

    async fn account(&self, of: &SecretKey) -> Account {
        let (_, values) = self.honest.get(vec![StateKey::Account(of.public())]).await.unwrap().value;
        borsh::from_slice(values[0].value.as_ref().unwrap()).unwrap()
    }
}

async fn connect(bench: &Bench, me: &SecretKey) -> (Endpoint, Connection) {
    let (endpoint, pin) = (Endpoint::client(me).unwrap(), bench.pin());
    let connection = within(endpoint.connect(pin.address, pin.key)).await.unwrap();
    (endpoint, connection)
}

/// Writes a length and some bytes, which need not be as many, and reads the answer.
async fn ask(connection: &Connection, len: u32, bytes: &[u8]) -> Response {
    let (mut send, mut recv) = within(connection.open()).await.unwrap();
    // The replica may answer and close its end before it has read all of it.
    let sent = async {
        send.write_all(&len.to_le_bytes()).await.ok()?;
        send.write_all(bytes).await.ok()?;
        send.finish().ok()
    };
    let _ = within(sent).await;
    frame::read(&mut recv, "the response", limits::RESPONSE_BYTES, PATIENCE).await.unwrap()
}

fn failure(answer: Response) -> Failure {
    let Response::Failed(failure) = answer else { panic!("{answer:?}") };
    failure
}

/// The same numbers in each run (SplitMix64).
fn number(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[tokio::test]
async fn an_oversized_command_is_rejected_with_its_size_and_an_oversized_request_before_it_is_read() {
    let trial = Trial::start().await;
    let long = |bytes: usize| {
        let (to, memo) = (trial.bench.farmer.public(), "m".repeat(bytes));
        trial.signed(Command::Transfer { to, amount: Grains(1), memo }, |_| {})
    };
    for bytes in [limits::COMMAND_BYTES, limits::REQUEST_BYTES, 1 << 20] {
        let command = long(bytes);
        let len = encode(&command).len();
        let reason = format!("{len} bytes, more than the limit of {}", limits::COMMAND_BYTES);
        let rejection = trial.rejected(command).await;
        assert_eq!(rejection.to_string(), format!("the command is malformed: {reason}"));
        assert_eq!(rejection, Rejection::Malformed { reason });
        trial.still_serves().await;
    }
    // Only the length is sent: the answer does not wait for the bytes.
    let limit = limits::BLOB_BYTES + 64;
    let refused = failure(ask(&trial.connection, u32::try_from(limit + 1).unwrap(), &[]).await);
    assert_eq!(
        refused.to_string(),
        format!("the request asks for {} bytes, at most {limit} are allowed", limit + 1)
    );
    let (_endpoint, stranger) = connect(&trial.bench, &key(99)).await;
    let refused = failure(ask(&stranger, u32::try_from(limits::REQUEST_BYTES + 1).unwrap(), &[]).await);
    assert!(matches!(refused, Failure::Quota { .. }), "strangers get no memory for blobs: {refused}");
    trial.still_serves().await;
    trial.bench.stop().await;
}

#[tokio::test]
async fn a_truncated_command_is_malformed_wherever_it_is_cut() {
    let trial = Trial::start().await;
    let whole = encode(&Request::Submit(Box::new(trial.pay(|_| {}))));
    let step = (whole.len() / 16).max(1);
    for cut in (1..whole.len()).step_by(step) {
        let refused = trial.failed(&whole[..cut]).await;
        assert!(matches!(refused, Failure::Malformed { .. }), "{cut} bytes: {refused}");
        let text = refused.to_string();
        assert!(text.starts_with("the request is malformed: the request is malformed: "), "{text}");
    }
    let announced = u32::try_from(whole.len()).unwrap();
    let refused = failure(ask(&trial.connection, announced, &whole[..whole.len() - 1]).await);
    assert_eq!(
        refused.to_string(),
        "the request is malformed: the other end ended the stream before the request was complete"
    );
    let longer = [&whole[..], &[0]].concat();
    assert!(matches!(trial.failed(&longer).await, Failure::Malformed { .. }), "a byte too many");
    trial.still_serves().await;
    let account = trial.account(&trial.bench.user).await;
    assert_eq!(account.next_sequence, 0, "a part of a command was executed");
    trial.bench.stop().await;
}

#[tokio::test]
async fn random_bytes_and_altered_commands_change_nothing() {
    let trial = Trial::start().await;
    let mut state = 1;
    for _ in 0..64 {
        let len = 8 + number(&mut state) as usize % 600;
        // No request of one byte, and none that only asks: those are answered.
        let bytes: Vec<u8> = (0..len).map(|_| number(&mut state) as u8 | 0x40).collect();
        let refused = trial.failed(&bytes).await;
        assert!(matches!(refused, Failure::Malformed { .. }), "{refused}");
        assert!(refused.to_string().len() < 1024, "{refused}");
    }
    trial.still_serves().await;
    let whole = encode(&Request::Submit(Box::new(trial.pay(|_| {}))));
    for _ in 0..64 {
        let mut altered = whole.clone();
        let at = 1 + number(&mut state) as usize % (whole.len() - 1);
        altered[at] ^= 1 << (number(&mut state) % 8);
        match trial.ask(&altered).await {
            Response::Rejected(
                Rejection::BadSignature { .. }
                | Rejection::WrongChain { .. }
                | Rejection::Expired { .. }
                | Rejection::ExpiryTooFar { .. },
            )
            | Response::Failed(Failure::Malformed { .. }) => {}
            other => panic!("byte {at} altered: {other:?}"),
        }
    }
    trial.still_serves().await;
    let account = trial.account(&trial.bench.user).await;
    assert_eq!(account, Account { balance: Grains(ALLOWANCE + 2), next_sequence: 0 });
    trial.bench.stop().await;
}

#[tokio::test]
async fn a_replayed_command_is_rejected_and_paid_once() {
    let trial = Trial::start().await;
    let (author, command) = (trial.author(), trial.pay(|_| {}));
    assert!(matches!(trial.submit(command.clone()).await, Response::Final { .. }));
    for _ in 0..3 {
        let rejection = trial.rejected(command.clone()).await;
        assert_eq!(rejection, Rejection::Sequence { author, got: 0, expected: 1 });
        assert_eq!(
            rejection.to_string(),
            format!(
                "sequence number 0 of {author} is wrong, expected 1: the command was already used or one before it is missing"
            )
        );
    }
    let account = trial.account(&trial.bench.user).await;
    assert_eq!(account, Account { balance: Grains(ALLOWANCE - 1), next_sequence: 1 });
    trial.still_serves().await;
    trial.bench.stop().await;
}

#[tokio::test]
async fn commands_of_another_chain_or_another_author_are_rejected_and_say_whose() {
    let trial = Trial::start().await;
    let (theirs, ours) = (ChainId(Hash([9; 32])), trial.bench.chain());
    let rejection = trial.rejected(trial.pay(|body| body.chain = theirs)).await;
    assert_eq!(rejection, Rejection::WrongChain { theirs, ours });
    assert_eq!(
        rejection.to_string(),
        format!(
            "the command is for chain {theirs}, but this grid is {ours}: check the grid that the configuration pins"
        )
    );
    trial.still_serves().await;
    // Signed for another chain, and then said to be of this one.
    let mut moved = trial.pay(|body| body.chain = theirs);
    moved.body.chain = ours;
    let author = trial.author();
    assert_eq!(trial.rejected(moved).await, Rejection::BadSignature { author });
    // Signed by another than it names.
    let forged = SignedCommand::sign(trial.pay(|_| {}).body, &key(77));
    let rejection = trial.rejected(forged.clone()).await;
    let (by, of) = (key(77).public().short(), author.short());
    assert_eq!(rejection.to_string(), format!("key {by} is none of bot {of}: sign with the bot's own key"));
    let rejection = trial.rejected(SignedCommand { key: author, ..forged }).await;
    assert_eq!(
        rejection.to_string(),
        format!("the signature of {author} is wrong: sign again with the author's key")
    );
    // The signature of something else by the right key.
    let body = trial.pay(|_| {}).body;
    let signature = trial.bench.user.sign(Domain::TERMS, &ours, &body);
    assert_eq!(
        trial.rejected(SignedCommand { body, key: author, signature }).await,
        Rejection::BadSignature { author }
    );
    trial.still_serves().await;
    trial.bench.stop().await;
}

#[tokio::test]
async fn a_gap_in_the_sequence_is_waited_for_a_moment_and_then_named() {
    let trial = Trial::start().await;
    let author = trial.author();
    let far = trial.rejected(trial.pay(|body| body.sequence = 64)).await;
    assert_eq!(far, Rejection::Sequence { author, got: 64, expected: 0 }, "too far ahead to wait for");
    let last = trial.rejected(trial.pay(|body| body.sequence = u64::MAX)).await;
    assert_eq!(last, Rejection::Sequence { author, got: u64::MAX, expected: 0 });
    trial.still_serves().await;
    let waits = trial.rejected(trial.pay(|body| body.sequence = 1));
    let (gap, ()) = tokio::join!(within(waits), trial.still_serves());
    assert_eq!(gap, Rejection::Sequence { author, got: 1, expected: 0 });
    // What was given up may come again once the one before it is there.
    assert!(matches!(trial.submit(trial.pay(|_| {})).await, Response::Final { .. }));
    assert!(matches!(trial.submit(trial.pay(|body| body.sequence = 1)).await, Response::Final { .. }));
    trial.bench.stop().await;
}

#[tokio::test]
async fn an_expired_command_and_one_that_never_expires_are_rejected_with_the_height() {
    let trial = Trial::start().await;
    trial.still_serves().await;
    let rejection = trial.rejected(trial.pay(|body| body.expires_height = 1)).await;
    let Rejection::Expired { expired: 1, height } = rejection else { panic!("{rejection}") };
    assert!(height >= 2);
    assert_eq!(
        rejection.to_string(),
        format!("the command expired at height 1, the ledger is at {height}: sign it again")
    );
    for expires in [u64::MAX, limits::EXPIRY_BLOCKS * 2] {
        let rejection = trial.rejected(trial.pay(|body| body.expires_height = expires)).await;
        let Rejection::ExpiryTooFar { height, limit, .. } = rejection else { panic!("{rejection}") };
        assert_eq!(
            rejection.to_string(),
            format!(
                "expiry height {expires} is more than {limit} blocks ahead of {height}: choose a nearer one"
            )
        );
    }
    trial.still_serves().await;
    trial.bench.stop().await;
}

#[tokio::test]
async fn a_change_that_removes_more_than_a_third_of_the_validators_is_rejected_whoever_signed_it() {
    let trial = Trial::start().await;
    let present = trial.bench.config().key;
    let record = StateKey::Record(RecordId::validators());
    let (_, values) = trial.honest.get(vec![record]).await.unwrap().value;
    let prev = Hash::of_bytes(values[0].value.as_ref().unwrap());
    let set = |keys: &[&SecretKey]| {
        ValidatorSet::of_equals(&keys.iter().map(|key| key.public()).collect::<Vec<_>>())
    };
    let signed = |prev: Hash, validators: ValidatorSet, by: &[&SecretKey]| {
        let mut signed =
            SignedValidatorChange { change: ValidatorChange { prev, validators }, signatures: Vec::new() };
        for key in by {
            signed.add(signed.change.sign(key, &trial.bench.chain()));
        }
        signed
    };
    let others = [key(90), key(91)];
    let taken_over = set(&[&others[0], &others[1]]);
    let grown = set(&[&present, &others[0]]);
    for (change, expected, says) in [
        (
            signed(prev, taken_over.clone(), &[&present]),
            InvalidChange::TooMuchRemoved { kept: 0, total: 1 },
            "of the present validators' power 1 only 0 would stay, at least two thirds must: replace fewer at a time".to_owned(),
        ),
        (
            signed(prev, grown.clone(), &[]),
            InvalidChange::TooLittlePower { power: 0, total: 1 },
            "it is signed by 0 of 1 power, more than two thirds are needed: have more validators sign it".to_owned(),
        ),
        (
            signed(prev, grown.clone(), &[&others[0]]),
            InvalidChange::NotValidator { key: others[0].public() },
            format!("{} signed it but is no validator: leave that signature out", others[0].public()),
        ),
        (
            signed(Hash::ZERO, grown.clone(), &[&present]),
            InvalidChange::Stale { theirs: Hash::ZERO, present: prev },
            format!(
                "it supersedes validators record {}, but the present one is {prev}: propose it again and have it signed again",
                Hash::ZERO
            ),
        ),
    ] {
        let command = trial.signed(Command::SetValidators(Box::new(change)), |_| {});
        let rejection = trial.rejected(command).await;
        assert_eq!(rejection.to_string(), format!("the validators can't be changed so: {says}"));
        assert_eq!(rejection, Rejection::Validators(expected));
        trial.still_serves().await;
    }
    let mut forged = signed(prev, grown, &[&present]);
    forged.change.validators = set(&[&present, &others[1]]);
    let rejection = trial.rejected(trial.signed(Command::SetValidators(Box::new(forged)), |_| {})).await;
    assert_eq!(rejection, Rejection::Validators(InvalidChange::BadSignature { key: present.public() }));
    let status = trial.honest.status().await.unwrap().value;
    assert_eq!(status.validators, set(&[&present]));
    trial.bench.stop().await;
}

#[tokio::test]
async fn a_flood_from_one_identity_is_answered_and_delays_nobody_else() {
    const FLOOD: u64 = 1_000;
    let trial = Trial::start().await;
    let author = trial.author();
    // Three kinds at once: far ahead, the same number for different commands, and one and the same command.
    let mut flood = tokio::task::JoinSet::new();
    for n in 0..FLOOD {
        let connection = trial.connection.clone();
        let command = match n % 3 {
            0 => trial.pay(|body| body.sequence = 64 + n),
            1 => trial.signed(trial.bench.pay(1 + n), |body| body.sequence = 40),
            _ => trial.pay(|body| body.sequence = 41),
        };
        let request = encode(&Request::Submit(Box::new(command)));
        flood.spawn(async move { ask(&connection, u32::try_from(request.len()).unwrap(), &request).await });
    }
    for _ in 0..5 {
        trial.still_serves().await;
    }
    let mut busy = 0;
    for answer in within(flood.join_all()).await {
        match answer {
            Response::Rejected(Rejection::Sequence { author: named, .. }) => assert_eq!(named, author),
            Response::Rejected(Rejection::Busy { .. }) => busy += 1,
            Response::Failed(Failure::Busy { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(busy > 0, "only a few may wait for one and the same command");
    let account = trial.account(&trial.bench.user).await;
    assert_eq!(account, Account { balance: Grains(ALLOWANCE + 5), next_sequence: 0 });
    assert!(matches!(trial.submit(trial.pay(|_| {})).await, Response::Final { .. }), "it may go on");
    trial.bench.stop().await;
}

#[tokio::test]
async fn numbers_at_their_ends_are_answered_and_nothing_breaks_inside_the_replica() {
    let trial = Trial::start().await;
    let id = RecordId { kind: Kind::Bot, id: Hash(trial.author().0) };
    let farms = Query::Farms(FarmQuery::default());
    let query = |count, prove| Request::Query { query: farms.clone(), after: None, count, prove };
    for request in [
        Request::Header { height: u64::MAX },
        Request::Range { first: u64::MAX, count: 256 },
        Request::Range { first: 0, count: u32::MAX },
        Request::Range { first: u64::MAX, count: 0 },
        Request::History { id, first_version: u64::MAX, count: 256 },
        Request::History { id, first_version: 0, count: u32::MAX },
        query(u32::MAX, false),
        query(u32::MAX, true),
        query(0, true),
        Request::Handover { validators: Hash([0xff; 32]) },
        Request::SnapshotRecords { first: u64::MAX, size: u64::MAX },
        Request::SnapshotValues { id: u64::MAX, after: Some(StateKey::Supply) },
        Request::Get { keys: Vec::new() },
        Request::HasBlobs { hashes: vec![Hash::ZERO; 4_000] },
        Request::Presence { keys: Vec::new() },
    ] {
        let answer = trial.ask(&encode(&request)).await;
        if let Response::Failed(failure) = &answer {
            assert!(!matches!(failure, Failure::Storage { .. }), "{request:?}: {failure}");
        }
    }
    trial.still_serves().await;
    // What only other replicas may ask, asked by one of them: the validator itself.
    let (_endpoint, validator) = connect(&trial.bench, &trial.bench.config().key).await;
    for request in [
        Request::SnapshotRecords { first: u64::MAX, size: u64::MAX },
        Request::SnapshotRecords { first: 0, size: u64::MAX },
        Request::SnapshotRecords { first: 1, size: 0 },
        Request::SnapshotValues { id: u64::MAX, after: None },
    ] {
        let request = encode(&request);
        let answer = ask(&validator, u32::try_from(request.len()).unwrap(), &request).await;
        let refused = failure(answer);
        assert!(!matches!(refused, Failure::Storage { .. }), "{refused}");
    }
    trial.still_serves().await;
    trial.bench.stop().await;
}
