//! Mailboxes over QUIC: who may leave mail, who gets it, and calls that are for messages only.

mod common;

use common::{Bench, Files, key, name, within};
use croft_protocol::api::{Failure, Mail, Service};
use croft_protocol::identity::{KeyRefusal, Link};
use croft_protocol::message::{Message, MessageId, message_key};
use croft_protocol::record::BotBody;
use croft_protocol::{Command, Hash, limits};
use croft_transport::{Client, ClientError};

fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::Failed { failure, .. } => failure,
        other => panic!("{other}"),
    }
}

fn sealed(files: &Files, text: &str) -> Vec<u8> {
    let (from, to) = (&files.user, &files.farmer);
    let id = MessageId(Hash::of_bytes(text.as_bytes()).0[..16].try_into().unwrap());
    let message = Message { id, from: from.public(), to: to.public(), time_ms: 5, text: text.to_owned() };
    message.seal(from, &files.chain(), &message_key(to).public()).unwrap()
}

async fn fetched(client: &Client) -> Vec<Mail> {
    let (mail, more) = client.fetch_mail(0).await.unwrap().value;
    assert!(!more);
    mail
}

#[tokio::test]
async fn mail_outlives_a_restart_and_is_its_receivers_alone() {
    let bench = Bench::start().await;
    let (user, farmer) = (bench.client(&bench.user), bench.client(&bench.farmer));
    let to = bench.farmer.public();
    let sealed = sealed(&bench, "hello");
    let expires_ms = user.leave_mail(to, sealed.clone()).await.unwrap().value;
    assert!(expires_ms > common::now_ms() + 29 * 86_400_000);
    // Once more, as after an answer that got lost.
    assert_eq!(user.leave_mail(to, sealed.clone()).await.unwrap().value, expires_ms);
    assert!(fetched(&user).await.is_empty());

    let bench = bench.restart().await;
    let mail = fetched(&farmer).await;
    assert_eq!(mail.len(), 1);
    let (opened, _) =
        Message::open(&mail[0].sealed, &bench.chain(), &to, &message_key(&bench.farmer)).unwrap();
    assert_eq!((opened.text.as_str(), opened.from), ("hello", bench.user.public()));
    assert_eq!(user.drop_mail(vec![mail[0].id()]).await.unwrap().value, 0, "it is not the sender's any more");
    assert_eq!(farmer.drop_mail(vec![mail[0].id()]).await.unwrap().value, 1);
    assert!(fetched(&farmer).await.is_empty());
    bench.stop().await;
}

#[tokio::test]
async fn only_bots_leave_mail_only_for_bots_and_within_bounds() {
    let bench = Bench::start().await;
    let (user, stranger) = (bench.client(&bench.user), bench.client(&key(50)));
    let to = bench.farmer.public();
    let refused = failure(stranger.leave_mail(to, vec![1; 300]).await.unwrap_err()).to_string();
    assert!(
        refused.contains("is no bot on this grid and may not send messages; create it first"),
        "{refused}"
    );
    let nobody = failure(user.leave_mail(key(51).public(), vec![1; 300]).await.unwrap_err());
    assert_eq!(nobody.to_string(), format!("there is no bot {} here", key(51).public()));
    let long = vec![1; limits::SEALED_MESSAGE_BYTES + 1];
    let long = failure(user.leave_mail(to, long).await.unwrap_err());
    assert!(matches!(long, Failure::TooMuch { .. }), "{long:?}");
    let many = vec![Hash::ZERO; limits::MAIL_PER_REQUEST + 1];
    let many = failure(user.drop_mail(many).await.unwrap_err());
    assert!(matches!(many, Failure::TooMuch { .. }), "{many:?}");

    let mut quota = None;
    for n in 0..=200_u8 {
        if let Err(error) = user.leave_mail(to, vec![n; 300]).await {
            quota = Some(failure(error).to_string());
            break;
        }
    }
    let quota = quota.expect("a flood is stopped");
    assert!(quota.contains("60 messages within a minute; send the next one in"), "{quota}");
    // Nobody else is in its way.
    let other = key(60);
    let client = bench.client(&other);
    let create = bench.sign(&other, 0, Command::CreateBot(BotBody { name: name("other") }));
    client.submit(create).await.unwrap();
    client.leave_mail(to, vec![7; 301]).await.unwrap();
    bench.stop().await;
}

#[tokio::test]
async fn a_mailbox_stays_its_bots_when_the_key_is_replaced_and_the_old_key_opens_nothing() {
    let bench = Bench::start().await;
    let (user, farmer) = (bench.client(&bench.user), bench.client(&bench.farmer));
    let to = bench.farmer.public();
    user.leave_mail(to, sealed(&bench, "before")).await.unwrap();
    let _old = farmer.listen();
    bench.wait_for_listener(&user, to).await;
    let new = key(70);
    let link = Link::sign(&bench.farmer, &new, &bench.chain());
    farmer.submit(bench.sign(&bench.farmer, 0, Command::RotateKey(Box::new(link)))).await.unwrap();

    let refused = |what: &str, failure: Failure| match failure {
        Failure::Key(refusal @ KeyRefusal::Replaced { .. }) => {
            assert!(refusal.to_string().contains("signs nothing any more"), "{what}: {refusal}");
        }
        other => panic!("{what}: {other}"),
    };
    refused("fetch", failure(farmer.fetch_mail(0).await.unwrap_err()));
    let id = Hash::of_bytes(b"any");
    refused("drop", failure(farmer.drop_mail(vec![id]).await.unwrap_err()));
    let left = farmer.leave_mail(bench.user.public(), vec![1; 300]).await;
    refused("leave", failure(left.unwrap_err()));
    refused("call", failure(farmer.peer_for(bench.user.public(), Service::Calls).await.unwrap_err()));
    // Whoever calls the old key, which still listens, does not get through to it.
    refused("be called", failure(user.peer_for(to, Service::Calls).await.unwrap_err()));

    let present = bench.client(&new);
    let mail = fetched(&present).await;
    assert_eq!(mail.len(), 1, "mail lies under the bot's id");
    user.leave_mail(to, sealed(&bench, "after")).await.unwrap();
    assert_eq!(fetched(&present).await.len(), 2);
    assert_eq!(present.drop_mail(vec![mail[0].id()]).await.unwrap().value, 1);
    bench.stop().await;
}

#[tokio::test]
async fn calls_for_messages_go_to_who_listens_for_messages() {
    let bench = Bench::start().await;
    let user = bench.client(&bench.user);
    let (serving, reading) = (bench.client(&bench.farmer), bench.client(&bench.farmer));
    let to = bench.farmer.public();
    let mut calls = serving.listen();
    bench.wait_for_listener(&user, to).await;
    let absent = user.peer_for(to, Service::Messages).await.unwrap_err();
    assert_eq!(failure(absent), Failure::NotListening { key: to });

    // The newer connection of the same key takes nothing from the older one.
    let mut messages = reading.listen_for(Service::Messages);
    let called = within(async {
        loop {
            let (called, taken) = tokio::join!(user.peer_for(to, Service::Messages), async {
                let taken = tokio::time::timeout(std::time::Duration::from_secs(1), messages.accept()).await;
                match taken {
                    Ok(Some(call)) => Some(croft_transport::peer_accept(call.stream, &bench.farmer).await),
                    _ => None,
                }
            });
            if let (Ok(stream), Some(Ok((_, from)))) = (called, taken) {
                return (stream, from);
            }
        }
    })
    .await;
    assert_eq!(called.1, bench.user.public());
    let plain = user.relay(to).await.unwrap();
    let call = within(async {
        loop {
            let call = calls.accept().await.unwrap();
            if call.from == bench.user.public() {
                return call;
            }
        }
    })
    .await;
    assert_eq!(call.from, bench.user.public());
    drop((plain, call));
    bench.stop().await;
}
