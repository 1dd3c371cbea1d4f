//! A whole replica on loopback, asked by real clients over QUIC.

mod common;

use common::{Bench, Files, LOOPBACK, PATIENCE, key, name, within};
use croft_light::{LightClient, verify_history, verify_record, verify_value};
use croft_protocol::api::{Concern, ContractQuery, Event, Failure, FarmQuery, Query, Request, Response};
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::command::SignedJoin;
use croft_protocol::keys::Domain;
use croft_protocol::record::FarmBody;
use croft_protocol::state::Account;
use croft_protocol::{
    Body, ChainId, Command, Grains, Hash, RecordId, Rejection, SignedCommand, StateKey, limits,
};
use croft_replica::store::Keep;
use croft_replica::{Replica, ReplicaConfig};
use croft_transport::{ClientError, Endpoint, frame, peer_accept, peer_connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn rejection(error: ClientError) -> Rejection {
    match error {
        ClientError::Rejected { rejection, .. } => *rejection,
        other => panic!("{other}"),
    }
}

fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::Failed { failure, .. } => failure,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_farmer_finds_the_machines_that_were_refused_and_no_strangers() {
    let bench = Bench::start().await;
    bench.client(&bench.farmer).submit(bench.sign(&bench.farmer, 0, Files::create_farm())).await.unwrap();
    let reader = bench.client(&key(50));
    let refused = async || reader.refused(bench.farm()).await.unwrap().value;
    let machine = bench.client(&bench.node);
    let registers = |change: &dyn Fn(&mut SignedJoin)| {
        let Command::RegisterNode { node, join: Some(mut join), attestation } = bench.register() else {
            panic!()
        };
        change(&mut join);
        Command::RegisterNode { node, join: Some(join), attestation }
    };
    // A permission that the owner did not sign: anybody could send it.
    let forged = registers(&|join| join.join.nonce = [9; 16]);
    let error = rejection(machine.submit(bench.sign(&bench.node, 0, forged)).await.unwrap_err());
    assert!(error.to_string().contains("not signed by the owner"), "{error}");
    assert_eq!(refused().await, []);

    let expired = registers(&|join| {
        join.join.expires_ms = 7;
        join.signature = bench.farmer.sign_as_bot(Domain::JOIN, &bench.chain(), &join.join);
    });
    for count in 1..=2 {
        let error = rejection(machine.submit(bench.sign(&bench.node, 0, expired.clone())).await.unwrap_err());
        let list = refused().await;
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].node, &list[0].name, list[0].count), (bench.node.public(), &name("n1"), count));
        assert_eq!(list[0].reason, error.to_string());
        assert!(list[0].reason.contains("d ago, at 1970-01-01 00:00:00 UTC"), "{}", list[0].reason);
        assert!(list[0].reason.ends_with("ask the farm's owner for a new boot configuration"));
    }
    machine.submit(bench.sign(&bench.node, 0, bench.register())).await.unwrap();
    assert_eq!(refused().await, [], "it is registered now");

    // Of a node that the farm has, every refusal concerns it.
    let Command::RegisterNode { mut node, .. } = bench.register() else { panic!() };
    node.session = 0;
    let stale = Command::RegisterNode { node, join: None, attestation: None };
    machine.submit(bench.sign(&bench.node, 1, stale)).await.unwrap_err();
    assert!(refused().await[0].reason.contains("the same key runs twice"));
}

#[tokio::test]
async fn a_command_becomes_final_and_is_proved_to_a_light_client() {
    let bench = Bench::start().await;
    let farmer = bench.client(&bench.farmer);
    let done = farmer.submit(bench.sign(&bench.farmer, 0, Files::create_farm())).await.unwrap().value;
    let farm = RecordId::farm(&bench.farm());

    let reader = bench.client(&key(50));
    let genesis = reader.genesis().await.unwrap().value;
    assert_eq!(genesis.chain_id(), bench.chain());
    let mut light = LightClient::new(bench.chain(), genesis.validators.hash());
    let keys =
        vec![StateKey::Record(farm), StateKey::FarmName(name("green")), StateKey::FarmName(name("red"))];
    let (signed, values) = reader.get(keys.clone()).await.unwrap().value;
    let tip = light.accept_tip(&signed, Some(common::now_ms())).unwrap();
    assert!(tip.height() >= done.height);
    let record = verify_value(&tip, &keys[0], &values[0]).unwrap().unwrap();
    assert_eq!(Hash::of_bytes(&record), *done.records.last().unwrap());
    assert!(verify_value(&tip, &keys[1], &values[1]).unwrap().is_some());
    assert_eq!(verify_value(&tip, &keys[2], &values[2]).unwrap(), None);

    let (signed, history) = reader.history(farm, 1, 10).await.unwrap().value;
    let tip = light.accept_tip(&signed, None).unwrap();
    assert_eq!(history.len(), 1);
    let record = verify_record(&tip, &history[0]).unwrap();
    let Body::Farm(FarmBody { owner, .. }) = &record.body else { panic!() };
    assert_eq!(*owner, bench.farmer.public());
    verify_history(&tip, &farm, &history).unwrap();

    let (signed, log) = reader.range(0, 256).await.unwrap().value;
    let tip = light.accept_tip(&signed, None).unwrap();
    assert_eq!(log.len() as u64, tip.header().log_size);
    for proved in &log {
        verify_record(&tip, proved).unwrap();
    }

    let header = reader.header(done.height).await.unwrap().value;
    assert_eq!(header.header.height, done.height);
    let error = failure(reader.header(1_000_000).await.unwrap_err());
    assert_eq!(error.to_string(), "there is no header 1000000 here");
    let found = reader.query(Query::Farms(FarmQuery::default()), None, 10).await.unwrap().value;
    assert_eq!(found.records.iter().map(|r| r.id).collect::<Vec<_>>(), [farm]);
    let status = reader.status().await.unwrap().value;
    assert_eq!((status.chain, &status.name), (bench.chain(), &name("test")));
    assert!(status.connections >= 2, "{status:?}");
    bench.stop().await;
}

#[tokio::test]
async fn replays_strangers_and_other_chains_are_rejected_with_their_reason() {
    let bench = Bench::start().await;
    let client = bench.client(&bench.user);
    let pay = bench.sign(&bench.user, 0, bench.pay(5));
    client.submit(pay.clone()).await.unwrap();
    let author = bench.user.public();
    let replay = rejection(client.submit(pay).await.unwrap_err());
    assert_eq!(replay, Rejection::Sequence { author, got: 0, expected: 1 });

    let mut other = bench.sign(&bench.user, 1, bench.pay(5)).body;
    other.chain = ChainId(Hash([9; 32]));
    let other = SignedCommand::sign(other, &bench.user);
    let wrong = rejection(client.submit(other).await.unwrap_err());
    assert_eq!(wrong, Rejection::WrongChain { theirs: ChainId(Hash([9; 32])), ours: bench.chain() });

    let forged = SignedCommand::sign(bench.sign(&bench.user, 1, bench.pay(5)).body, &key(77));
    let foreign = Rejection::Key(croft_protocol::KeyRefusal::Foreign { bot: author, key: key(77).public() });
    assert_eq!(rejection(client.submit(forged).await.unwrap_err()), foreign);

    let poor = rejection(client.submit(bench.sign(&bench.user, 1, bench.pay(u64::MAX))).await.unwrap_err());
    assert!(matches!(poor, Rejection::Funds { .. }), "{poor}");
    bench.stop().await;
}

#[tokio::test]
async fn one_author_may_send_several_at_once_and_all_become_final() {
    let bench = Bench::start().await;
    let client = bench.client(&bench.user);
    let mut sent = tokio::task::JoinSet::new();
    for i in (0..20).rev() {
        let (client, pay) = (client.clone(), bench.sign(&bench.user, i, bench.pay(1)));
        sent.spawn(async move { client.submit(pay).await.unwrap() });
    }
    let heights: Vec<u64> = sent.join_all().await.into_iter().map(|answer| answer.value.height).collect();
    assert_eq!(heights.len(), 20);
    let key = StateKey::Account(bench.farmer.public());
    let (_, values) = client.get(vec![key]).await.unwrap().value;
    let account: Account = borsh::from_slice(values[0].value.as_ref().unwrap()).unwrap();
    assert_eq!(account.balance, Grains(common::ALLOWANCE + 20));
    bench.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_everything_and_the_chain_goes_on() {
    let bench = Bench::start().await;
    let client = bench.client(&bench.user);
    let before = client.submit(bench.sign(&bench.user, 0, bench.pay(5))).await.unwrap().value;
    let hash = client.put_blob(b"a chunk".to_vec()).await.unwrap();
    let bench = bench.restart().await;
    let after = client.submit(bench.sign(&bench.user, 1, bench.pay(6))).await.unwrap().value;
    assert!(after.height > before.height);
    let (_, found) = client.range(0, 256).await.unwrap().value;
    let hashes: Vec<Hash> = found.iter().map(|proved| proved.record.hash()).collect();
    assert!(before.records.iter().chain(&after.records).all(|record| hashes.contains(record)));
    assert_eq!(client.get_blob(hash).await.unwrap(), b"a chunk");
    bench.stop().await;
}

#[tokio::test]
async fn a_follower_hears_of_every_block_and_of_what_concerns_it_only() {
    let bench = Bench::start().await;
    let watcher = bench.client(&key(50));
    let concerning = vec![Concern::Bot(bench.farmer.public()), Concern::Presence(key(60).public())];
    let mut follow = watcher.follow(concerning).await.unwrap();
    let Event::Block { header, records } = within(follow.next()).await.unwrap().value else { panic!() };
    assert_eq!(records, []);
    let mut height = header.header.height;
    let absent = Event::Presence { key: key(60).public(), connected: false };
    assert_eq!(within(follow.next()).await.unwrap().value, absent);

    let farmer = bench.client(&bench.farmer);
    let user = bench.client(&bench.user);
    let farm = farmer.submit(bench.sign(&bench.farmer, 0, Files::create_farm())).await.unwrap().value;
    let paid = user.submit(bench.sign(&bench.user, 0, bench.pay(5))).await.unwrap().value;
    let mut seen = Vec::new();
    while height < paid.height {
        let Event::Block { header, records } = within(follow.next()).await.unwrap().value else { panic!() };
        assert_eq!(header.header.height, height + 1, "no block is left out");
        height += 1;
        seen.extend(records.iter().map(croft_protocol::Record::hash));
    }
    assert!(farm.records.iter().all(|record| !seen.contains(record)), "the farm itself was not asked for");
    assert_eq!(seen.iter().filter(|record| paid.records.contains(record)).count(), 1);

    let guest = bench.client(&key(60));
    guest.tip().await.unwrap();
    let came = loop {
        if let Event::Presence { key, connected } = within(follow.next()).await.unwrap().value {
            break (key, connected);
        }
    };
    assert_eq!(came, (key(60).public(), true));
    assert_eq!(
        watcher.presence(vec![key(60).public(), key(61).public()]).await.unwrap().value,
        [true, false]
    );
    guest.close().await;
    let went = loop {
        if let Event::Presence { key, connected } = within(follow.next()).await.unwrap().value {
            break (key, connected);
        }
    };
    assert_eq!(went, (key(60).public(), false));
    bench.stop().await;
}

#[tokio::test]
async fn following_too_much_is_refused_with_a_reason() {
    let bench = Bench::start().await;
    let client = bench.client(&key(50));
    let many = (0..513u64).map(|i| Concern::Record(RecordId::transfer(&key(1).public(), i))).collect();
    let error = failure(within(client.follow(many).await.unwrap().next()).await.unwrap_err());
    assert_eq!(error.to_string(), "the request asks for 513 things to follow, at most 512 are allowed");
    let mut follows = Vec::new();
    for _ in 0..8 {
        let mut follow = client.follow(Vec::new()).await.unwrap();
        within(follow.next()).await.unwrap();
        follows.push(follow);
    }
    let error = failure(within(client.follow(Vec::new()).await.unwrap().next()).await.unwrap_err());
    assert_eq!(error.to_string(), "quota: 8 streams are followed; close some of them");
    bench.stop().await;
}

#[tokio::test]
async fn blobs_come_back_to_anybody_but_only_bots_may_store_them() {
    let bench = Bench::start().await;
    let bot = bench.client(&bench.user);
    let large = vec![7; limits::BLOB_BYTES];
    let hash = bot.put_blob(large.clone()).await.unwrap();
    assert_eq!(hash, Hash::of_bytes(&large));
    let stranger = bench.client(&key(50));
    assert_eq!(stranger.get_blob(hash).await.unwrap(), large);
    assert_eq!(stranger.has_blobs(vec![hash, Hash::ZERO]).await.unwrap().value, [true, false]);
    for bytes in [vec![1; 10], vec![1; limits::BLOB_BYTES]] {
        let error = failure(stranger.put_blob(bytes).await.unwrap_err());
        assert_eq!(
            error.to_string(),
            format!(
                "quota: {} is no bot on this grid and may not store blobs; create it first with 'croft bot new'",
                key(50).public()
            )
        );
    }
    let error = failure(stranger.get_blob(Hash::ZERO).await.unwrap_err());
    assert_eq!(error.to_string(), format!("there is no blob {} here", Hash::ZERO));
    let status = stranger.status().await.unwrap().value;
    assert_eq!(status.blob_bytes, limits::BLOB_BYTES as u64);
    bench.stop().await;
}

#[tokio::test]
async fn a_replica_forgets_old_commands_and_proofs_by_itself_and_says_how_far_back_it_goes() {
    let bench = Bench::start_with(|config| config.keep = Keep { proof_blocks: 2, command_blocks: 3 }).await;
    let user = bench.client(&bench.user);
    let mut sequence = 0;
    // What was removed after a block shows with the next one.
    let kept = within(async {
        loop {
            user.submit(bench.sign(&bench.user, sequence, bench.pay(1))).await.unwrap();
            sequence += 1;
            let status = user.status().await.unwrap().value;
            if status.height > 8 && status.kept.commands.is_some_and(|from| from + 5 > status.height) {
                return status.kept;
            }
        }
    })
    .await;
    assert_eq!(kept.headers, 0);
    assert!(kept.proofs > 2, "{kept:?}");
    assert_eq!(user.header(1).await.unwrap().value.header.height, 1, "headers stay");
    bench.stop().await;
}

#[tokio::test]
async fn a_blob_that_was_tampered_with_on_the_disk_is_not_served() {
    let bench = Bench::start().await;
    let client = bench.client(&bench.user);
    let hash = client.put_blob(b"the right bytes".to_vec()).await.unwrap();
    let shelf = bench.dir().join("data/blobs").join(&hash.to_string()[..2]);
    let file = std::fs::read_dir(shelf).unwrap().next().unwrap().unwrap().path();
    std::fs::write(file, b"the wrong bytes").unwrap();
    let error = failure(client.get_blob(hash).await.unwrap_err());
    assert_eq!(error.to_string(), format!("there is no blob {hash} here"));
    client.put_blob(b"the right bytes".to_vec()).await.unwrap();
    assert_eq!(client.get_blob(hash).await.unwrap(), b"the right bytes");
    bench.stop().await;
}

#[tokio::test]
async fn two_identities_talk_through_the_replica_and_prove_who_they_are() {
    let bench = Bench::start().await;
    let (user, farmer) = (bench.client(&bench.user), bench.client(&bench.farmer));
    let to = bench.farmer.public();
    let absent = failure(user.relay(to).await.unwrap_err());
    assert_eq!(
        absent.to_string(),
        format!("{to} is not connected to this replica: is the machine on and online?")
    );
    let mut listener = farmer.listen();
    bench.wait_for_listener(&user, to).await;
    let farmer_key = bench.farmer.clone();
    let answering = tokio::spawn(async move {
        loop {
            let call = listener.accept().await.unwrap();
            // Calls that only tried whether anybody listens hang up.
            let Ok((mut stream, caller)) = peer_accept(call.stream, &farmer_key).await else { continue };
            assert_eq!(call.from, caller);
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            stream.write_all(text.to_uppercase().as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            return caller;
        }
    });
    let relayed = user.relay(to).await.unwrap().value;
    let mut stream = peer_connect(relayed, &bench.user, to).await.unwrap();
    let long = "what a farm costs ".repeat(10_000);
    stream.write_all(long.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, long.to_uppercase());
    assert_eq!(within(answering).await.unwrap(), bench.user.public());
    bench.stop().await;
}

#[tokio::test]
async fn a_listener_can_be_called_again_after_the_replica_restarted() {
    let bench = Bench::start().await;
    let farmer = bench.client(&bench.farmer);
    let mut listener = farmer.listen();
    let user = bench.client(&bench.user);
    bench.wait_for_listener(&user, bench.farmer.public()).await;
    within(listener.accept()).await.unwrap();
    let bench = bench.restart().await;
    bench.wait_for_listener(&user, bench.farmer.public()).await;
    let call = within(listener.accept()).await.unwrap();
    assert_eq!(call.from, bench.user.public());
    bench.stop().await;
}

#[tokio::test]
async fn the_relay_is_no_open_proxy() {
    let bench = Bench::start().await;
    let farmer = bench.client(&bench.farmer);
    // Connected, but not listening.
    farmer.tip().await.unwrap();
    let to = bench.farmer.public();
    let user = bench.client(&bench.user);
    let error = failure(user.relay(to).await.unwrap_err());
    assert_eq!(error, Failure::NotListening { key: to });
    let stranger = bench.client(&key(50));
    let error = failure(stranger.relay(to).await.unwrap_err());
    assert_eq!(
        error.to_string(),
        format!(
            "quota: {} is neither a bot nor a node on this grid and may not call anybody; create it first with 'croft bot new'",
            key(50).public()
        )
    );
    // Who is not on the ledger can't be called either, whether it listens or not.
    let error = failure(user.relay(key(50).public()).await.unwrap_err());
    let says =
        format!("quota: {} is neither a bot nor a node on this grid and may not be called", key(50).public());
    assert!(error.to_string().starts_with(&says), "{error}");
    let mut listener = farmer.listen();
    let mut picked_up = Vec::new();
    tokio::spawn(async move {
        while let Some(call) = listener.accept().await {
            picked_up.push(call);
        }
    });
    bench.wait_for_listener(&user, to).await;
    let mut calls = Vec::new();
    let refused = loop {
        assert!(calls.len() <= 16, "there is no limit");
        match within(user.relay(to)).await {
            Ok(call) => calls.push(call),
            Err(error) => break failure(error),
        }
    };
    // A call that was hung up a moment ago may still be counted.
    assert!((14..=16).contains(&calls.len()), "{} calls", calls.len());
    assert_eq!(refused.to_string(), "quota: you have 16 calls under way; hang up some of them");
    drop(calls);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while user.relay(to).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "hung-up calls are not counted any more");
        tokio::task::yield_now().await;
    }
    bench.stop().await;
}

#[tokio::test]
async fn requests_for_too_much_or_of_nonsense_are_refused_and_the_connection_lives_on() {
    let bench = Bench::start().await;
    let client = bench.client(&key(50));
    let keys = vec![StateKey::Supply; limits::KEYS_PER_GET + 1];
    let error = failure(client.get(keys).await.unwrap_err());
    assert_eq!(error.to_string(), "the request asks for 257 keys, at most 256 are allowed");
    let error = failure(client.range(0, 257).await.unwrap_err());
    assert_eq!(error.to_string(), "the request asks for 257 records, at most 256 are allowed");
    let endpoint = Endpoint::client(&key(51)).unwrap();
    let pin = bench.pin();
    let connection = endpoint.connect(pin.address, pin.key).await.unwrap();
    for (bytes, reason) in [
        (&[1, 0, 0, 0, 200][..], "the request is malformed: the request is malformed: "),
        (&[9, 0, 0, 0, 1][..], "the request is malformed: the other end ended the stream before the request"),
        (&u32::MAX.to_le_bytes()[..], "the request asks for 4294967295 bytes, at most 2097216 are allowed"),
    ] {
        let (mut send, mut recv) = connection.open().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        let answer: Response =
            frame::read(&mut recv, "the response", limits::RESPONSE_BYTES, PATIENCE).await.unwrap();
        let Response::Failed(failure) = answer else { panic!("{answer:?}") };
        assert!(failure.to_string().starts_with(reason), "{failure}");
    }
    let tip = frame::request(&connection, &Request::Tip, limits::RESPONSE_BYTES, PATIENCE).await.unwrap();
    assert!(matches!(tip, Response::Header(_)));
    bench.stop().await;
}

#[tokio::test]
async fn the_ninth_connection_of_a_key_takes_the_place_of_the_first() {
    let bench = Bench::start().await;
    let pin = bench.pin();
    let mut connections = Vec::new();
    for _ in 0..9 {
        let endpoint = Endpoint::client(&key(50)).unwrap();
        let connection = endpoint.connect(pin.address, pin.key).await.unwrap();
        // An answer shows that it was counted.
        frame::request(&connection, &Request::Tip, limits::RESPONSE_BYTES, PATIENCE).await.unwrap();
        connections.push((endpoint, connection));
    }
    let reason = within(connections[0].1.closed()).await.to_string();
    assert!(
        reason.ends_with(
            "closed the connection: a newer connection of the same key took its place: close those you don't use"
        ),
        "{reason}"
    );
    assert!(connections[1..].iter().all(|(_, connection)| connection.is_open()));
    bench.stop().await;
}

#[tokio::test]
async fn a_replica_that_is_down_is_named_with_what_to_look_at() {
    let bench = Bench::start().await;
    let client = bench.client(&bench.user);
    let pin: ReplicaAddress = bench.pin();
    client.tip().await.unwrap();
    bench.stop().await;
    let error = client.tip().await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!(
            "no replica of the grid can be used: replica {} at {}: nobody answers at {} within ",
            pin.key.short(),
            pin.address,
            pin.address
        )),
        "{error}"
    );
    assert!(error.ends_with("running, and does UDP get through to it?"), "{error}");
}

#[tokio::test]
async fn a_second_replica_on_the_same_files_and_another_key_are_refused() {
    let bench = Bench::start().await;
    let second = ReplicaConfig { listen: LOOPBACK, ..bench.config() };
    let error = Replica::start(second.clone()).await.unwrap_err().to_string();
    assert!(error.ends_with("is in use by another process: stop the other replica first"), "{error}");
    let config = bench.config();
    let _files = bench.halt().await;
    let wrong = ReplicaConfig { key: key(99), ..config.clone() };
    let error = Replica::start(wrong).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("key {} is no validator of this grid", key(99).public())), "{error}");
    let mut genesis = config.genesis.clone();
    genesis.time_ms += 1;
    let error = Replica::start(ReplicaConfig { genesis, ..config }).await.unwrap_err().to_string();
    assert!(error.contains("but the genesis says"), "{error}");
}

#[tokio::test]
async fn a_slow_reader_costs_only_itself() {
    let bench = Bench::start().await;
    let slow = bench.client(&key(50));
    // Opened, and never read.
    let follow = slow.follow(vec![Concern::Bot(bench.user.public())]).await.unwrap();
    let client = bench.client(&bench.user);
    for i in 0..5 {
        within(client.submit(bench.sign(&bench.user, i, bench.pay(1)))).await.unwrap();
    }
    let tip = within(client.tip()).await.unwrap().value;
    assert!(tip.header.height >= 5);
    drop(follow);
    bench.stop().await;
}

#[tokio::test]
async fn a_contract_goes_from_registration_to_its_end_and_the_node_hears_of_it() {
    let bench = Bench::start().await;
    let (user, farmer, node) =
        (bench.client(&bench.user), bench.client(&bench.farmer), bench.client(&bench.node));
    farmer.submit(bench.sign(&bench.farmer, 0, Files::create_farm())).await.unwrap();
    node.submit(bench.sign(&bench.node, 0, bench.register())).await.unwrap();
    let mut follow = node.follow(vec![Concern::Node(bench.node.public())]).await.unwrap();
    let terms = bench.terms("web");
    let contract = terms.id();
    user.submit(bench.sign(&bench.user, 0, bench.agree(terms))).await.unwrap();
    let heard = loop {
        if let Event::Block { records, .. } = within(follow.next()).await.unwrap().value
            && let Some(record) = records.into_iter().next()
        {
            break record;
        }
    };
    assert_eq!(heard.id, RecordId::contract(&contract));
    user.submit(bench.sign(&bench.user, 1, Command::Close { contract })).await.unwrap();
    let live = ContractQuery { user: Some(bench.user.public()), ..ContractQuery::default() };
    let live = Query::Contracts(live);
    assert_eq!(user.query(live, None, 10).await.unwrap().value.records, []);
    let (_, history) = user.history(RecordId::contract(&contract), 1, 10).await.unwrap().value;
    let versions: Vec<u64> = history.iter().map(|proved| proved.record.version).collect();
    assert_eq!(versions, [1, 2]);
    bench.stop().await;
}
