//! Vouches for the TPM of a node that asks.
//!
//! ```text
//!   Vouch(Introduction) ──limits, keys of their roles, certificate of a maker──▶ Credential
//!        the node's TPM opens it ──▶ the secret in one frame ──right?──▶ Vouched(SignedVoucher), by the replica's key
//! ```
//! The node may not be on the ledger yet, so strangers are served: few at a time, few a minute each, with a limit on
//! every wait. A secret is drawn for one stream and dropped with it. It must never vouch for a key that the stream's own
//! peer did not show to be in the TPM.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use croft_attest::credential::{Author, CredentialError};
use croft_protocol::api::{Failure, Response};
use croft_protocol::attestation::{Introduction, SignedVoucher};
use croft_protocol::{PublicKey, SecretKey};
use croft_transport::{RecvStream, SendStream, frame};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{ANSWER_TIME, Server, respond};
use crate::rate::{Meter, Rate, show_wait};

/// Nodes at a time: each costs two multiplications on a curve, then only a wait.
const AT_A_TIME: usize = 256;
/// Of one key. A node asks once a boot, and again when its registration is refused.
const PER_NODE: Rate = Rate { amount: 6, per: Duration::from_secs(60) };
/// The slowest TPMs take half a minute to load both keys and open a credential.
const TPM_TIME: Duration = Duration::from_secs(120);
/// The secret has 32.
const SECRET_BYTES: usize = 64;

/// Who vouches, and what it costs.
#[derive(Debug)]
pub(crate) struct Vouching {
    key: SecretKey,
    /// Root certificates of makers, DER.
    makers: Vec<Vec<u8>>,
    turns: Semaphore,
    asked: Mutex<Meter>,
}

impl Vouching {
    pub(crate) fn new(key: SecretKey, makers: Vec<Vec<u8>>) -> Self {
        Self { key, makers, turns: Semaphore::new(AT_A_TIME), asked: Mutex::new(Meter::new(PER_NODE)) }
    }
}

pub(super) async fn run(
    server: &Server,
    node: PublicKey,
    introduction: Introduction,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let answer = match vouch(server, node, &introduction, &mut send, &mut recv).await {
        Ok(signed) => Response::Vouched(Box::new(signed)),
        Err(failure) => Response::Failed(failure),
    };
    respond(&mut send, answer).await;
}

async fn vouch(
    server: &Server,
    node: PublicKey,
    introduction: &Introduction,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<SignedVoucher, Failure> {
    let vouching = &server.vouching;
    let busy = || Failure::Busy { what: format!("{AT_A_TIME} nodes are being vouched for") };
    let _turn = vouching.turns.try_acquire().map_err(|_| busy())?;
    let asked = {
        let mut meter = vouching.asked.lock().unwrap_or_else(PoisonError::into_inner);
        meter.take(node, 1, Instant::now())
    };
    asked.map_err(|wait| Failure::Quota {
        what: format!("you have asked to be vouched for {} times within a minute", PER_NODE.amount),
        remedy: format!("ask again in {}", show_wait(wait)),
    })?;
    let header = server.chain.latest().tip().header;
    let makers: Vec<&[u8]> = vouching.makers.iter().map(Vec::as_slice).collect();
    let author = Author { chain: &header.chain, key: &vouching.key, makers: &makers };
    let mut entropy = Zeroizing::new([0; 64]);
    getrandom::fill(&mut entropy[..])
        .map_err(|_| Failure::Busy { what: "it has no randomness".to_owned() })?;
    // Once in 2^32 the bytes are no key: the node asks again.
    let (challenge, credential) =
        author.introduce(node, introduction, header.time_ms, &entropy).map_err(refused)?;
    let unreadable = |error: croft_transport::FrameError| Failure::Malformed { reason: error.to_string() };
    let offer = Response::Credential(Box::new(credential));
    frame::write(send, "the credential", &offer, 2048, ANSWER_TIME).await.map_err(unreadable)?;
    let answer: Zeroizing<Vec<u8>> =
        Zeroizing::new(frame::read(recv, "the secret", SECRET_BYTES, TPM_TIME).await.map_err(unreadable)?);
    author.vouch(challenge, &answer, server.chain.latest().height()).map_err(refused)
}

fn refused(error: CredentialError) -> Failure {
    match error {
        CredentialError::WrongAnswer => Failure::NotAllowed {
            what: "this TPM".to_owned(),
            remedy: "open the credential with the TPM that has both keys".to_owned(),
        },
        other => Failure::Malformed { reason: crate::chain_of(&other) },
    }
}
