//! A replica vouches over QUIC for TPMs that are what they say, and for no others.

mod common;

use common::{Bench, key};
use croft_attest::soft::SoftTpm;
use croft_protocol::api::Failure;
use croft_protocol::attestation::{Credential, Introduction};
use croft_tpm::swtpm::Swtpm;
use croft_transport::{Client, ClientError};
use std::sync::Mutex;

async fn ask(
    client: &Client,
    introduction: &Introduction,
    answer: impl Fn(Credential) -> Result<Vec<u8>, String>,
) -> Result<croft_protocol::attestation::SignedVoucher, ClientError> {
    let answer = &answer;
    client.vouch(introduction, |credential| async move { answer(credential) }).await
}

fn failure(result: Result<croft_protocol::attestation::SignedVoucher, ClientError>) -> Failure {
    match result {
        Err(ClientError::Failed { failure, .. }) => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_tpm_that_opens_the_credential_gets_a_voucher_of_the_replica() {
    let bench = Bench::start().await;
    let swtpm = Swtpm::new();
    let (mut tpm, _process) = swtpm.power_on().split();
    let introduction = tpm.introduce().unwrap();
    let tpm = Mutex::new(tpm);
    let node = key(70);
    let client = bench.client(&node);
    let open = |credential: Credential| {
        let secret = tpm.lock().unwrap().activate_credential(&credential).map_err(|e| e.to_string())?;
        Ok(secret.to_vec())
    };
    let signed = ask(&client, &introduction, open).await.unwrap();
    signed.verify(&bench.chain()).unwrap();
    assert_eq!((signed.by, signed.voucher.node), (bench.pin().key, node.public()));
    assert_eq!(signed.voucher.key, croft_protocol::Hash::of_bytes(&introduction.key));
    assert_eq!(signed.voucher.certificate, None, "swtpm has no maker");
}

#[tokio::test]
async fn who_does_not_open_it_gets_nothing() {
    let bench = Bench::start().await;
    let client = bench.client(&key(71));
    let introduction = SoftTpm::new(7_u8).introduce();
    let wrong = failure(ask(&client, &introduction, |_| Ok(vec![0; 32])).await);
    assert!(wrong.to_string().contains("open the credential with the TPM that has both keys"), "{wrong}");
    let long = failure(ask(&client, &introduction, |_| Ok(vec![0; 200])).await);
    assert!(matches!(long, Failure::Malformed { .. }), "{long}");
    // An attestation key in the place of an endorsement key would sign anything.
    let swapped = Introduction { endorsement: introduction.key.clone(), ..introduction.clone() };
    let refused = failure(ask(&client, &swapped, |_| Ok(vec![0; 32])).await);
    assert!(refused.to_string().contains("not those of an endorsement key"), "{refused}");
    let huge = Introduction { certificates: vec![vec![0x30; 4097]], ..introduction };
    let refused = failure(ask(&client, &huge, |_| Ok(vec![0; 32])).await);
    assert!(refused.to_string().contains("longest certificate has 4097"), "{refused}");
}

#[tokio::test]
async fn one_node_may_ask_a_few_times_a_minute() {
    let bench = Bench::start().await;
    let client = bench.client(&key(72));
    let introduction = SoftTpm::new(7_u8).introduce();
    let mut answers = Vec::new();
    for _ in 0..7 {
        answers.push(failure(ask(&client, &introduction, |_| Ok(vec![0; 32])).await));
    }
    let quota = answers.pop().unwrap();
    assert!(matches!(quota, Failure::Quota { .. }), "{quota}");
    assert!(quota.to_string().contains("6 times within a minute; ask again in "), "{quota}");
    assert!(answers.iter().all(|failure| matches!(failure, Failure::NotAllowed { .. })), "{answers:?}");
    // Others are served.
    let other = failure(ask(&bench.client(&key(73)), &introduction, |_| Ok(vec![0; 32])).await);
    assert!(matches!(other, Failure::NotAllowed { .. }), "{other}");
}
