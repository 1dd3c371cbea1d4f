//! Streams, keys of connections, and what a client keeps between its runs.

use std::cell::OnceCell;
use std::time::Duration;

use croft_protocol::api::Request;
use croft_protocol::{SignedHeader, limits};
use croft_transport::verified::{Evidence, Trail};
use croft_transport::{FrameReader, frame, fuzzing};

use crate::check::bounded;
use crate::scene::{encoded, is_known, scene};
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[
    Target {
        name: "frames",
        decodes: "messages on a stream, each after its length",
        sent_by: "anybody",
        files: &["agents/transport/src/frame.rs"],
        seeds: frames,
        rounds: 1_500,
        run: stream,
    },
    Target {
        name: "raw-public-key",
        decodes: "the key that the other end of a connection shows (RFC 7250)",
        sent_by: "anybody",
        files: &["agents/transport/src/tls.rs"],
        seeds: || vec![("ed25519".to_owned(), spki(&scene().scenario.node_id().0))],
        rounds: 1_000,
        run: raw_public_key,
    },
    Target {
        name: "kept-trail",
        decodes: "headers that an earlier run of a client kept",
        sent_by: "a disk",
        files: &["agents/transport/src/verified/trail.rs"],
        seeds: trails,
        rounds: 400,
        run: kept_trail,
    },
    Target {
        name: "kept-evidence",
        decodes: "the proof that the validators broke their word",
        sent_by: "a disk",
        files: &["agents/transport/src/verified/keep.rs"],
        seeds: proofs,
        rounds: 400,
        run: kept_evidence,
    },
];

/// Of RFC 8410: algorithm 1.3.101.112 and 32 bytes.
fn spki(key: &[u8; 32]) -> Vec<u8> {
    let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    [&prefix[..], key].concat()
}

thread_local! {
    static RUNTIME: OnceCell<tokio::runtime::Runtime> = const { OnceCell::new() };
}

/// Whatever a stream holds is there at once, so nothing waits.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let start =
        || tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
    RUNTIME.with(|runtime| runtime.get_or_init(start).block_on(future))
}

/// Two readers of frames must agree, however the bytes arrive.
fn stream(bytes: &[u8]) {
    const WHAT: &str = "the request";
    let limit = limits::REQUEST_BYTES;
    let whole = bounded("frames", bytes.len(), || {
        block_on(async {
            let (mut rest, mut read) = (bytes, Vec::new());
            loop {
                let next = frame::read_or_end::<_, Request>(&mut rest, WHAT, limit, Duration::from_secs(60));
                match next.await {
                    Ok(Some(request)) => read.push(request),
                    Ok(None) => return (read, None),
                    Err(error) => return (read, Some(error.to_string())),
                }
            }
        })
    });
    let pieces = block_on(async {
        let (mut reader, mut read, mut rest) = (FrameReader::new(), Vec::new(), bytes);
        loop {
            // A piece of three bytes at a time.
            let mut piece = tokio::io::AsyncReadExt::take(&mut rest, 3);
            match reader.next::<_, Request>(&mut piece, WHAT, limit).await {
                Ok(Some(request)) => {
                    assert!(reader.last_bytes() <= limit);
                    read.push(request);
                }
                Err(frame::FrameError::Ended { .. }) | Ok(None) if !rest.is_empty() => {}
                Ok(None) => return (read, None),
                Err(error) => return (read, Some(error.to_string())),
            }
        }
    });
    assert_eq!(whole.0, pieces.0, "two readers read different messages");
    assert_eq!(
        whole.1.is_some(),
        pieces.1.is_some(),
        "{:?} for one reader, {:?} for the other",
        whole.1,
        pieces.1
    );
    let again: Vec<u8> = whole
        .0
        .iter()
        .flat_map(|request| frame::encode(WHAT, request, limit).expect("it was read"))
        .collect();
    assert!(bytes.starts_with(&again), "what was read is written otherwise");
}

fn raw_public_key(bytes: &[u8]) {
    if let Some(key) = fuzzing::key_of_spki(bytes) {
        assert_eq!(spki(&key.0), bytes, "a key has two forms");
    }
}

fn kept_trail(bytes: &[u8]) {
    let ledger = &scene().scenario.ledger;
    let (chain, pinned) = (ledger.chain(), ledger.genesis().validators.hash());
    let height = bounded("kept headers", bytes.len(), || Trail::height_of(&chain, bytes));
    if let Some(newest) = fuzzing::resumed(chain, pinned, bytes) {
        assert!(is_known(&newest), "a kept header is believed that nobody certified");
        assert_eq!(height, Some(newest.header.height));
    }
}

fn kept_evidence(bytes: &[u8]) {
    if let Some(evidence) = bounded("kept evidence", bytes.len(), || Evidence::read(bytes)) {
        let honest = is_known(&evidence.known) && is_known(&evidence.other);
        assert!(!honest, "validators are accused that kept their word: {evidence}");
        assert!(proofs().iter().any(|(_, seed)| seed == bytes), "an altered proof holds");
    }
}

/// Two headers at one height, and two that are no proof: the honest ones of two heights.
fn proofs() -> Vec<Seed> {
    let scenario = &scene().scenario;
    let tip = &scenario.ledger.headers()[4];
    let mut header = tip.header;
    header.time_ms += 1;
    let other = croft_ledger::certify(header, 0, tip.validators.clone(), &scenario.validators);
    let honest = &scenario.ledger.headers()[3];
    vec![
        encoded("broken-word", &Evidence { known: tip.clone(), other }),
        encoded("honest", &Evidence { known: honest.clone(), other: tip.clone() }),
        encoded("honest-swapped", &Evidence { known: tip.clone(), other: honest.clone() }),
    ]
}

fn frames() -> Vec<Seed> {
    let requests = [Request::Tip, Request::Header { height: 7 }, Request::PutBlob { bytes: vec![9; 300] }];
    let frames: Vec<Vec<u8>> = requests
        .iter()
        .map(|request| frame::encode("seed", request, limits::REQUEST_BYTES).expect("it is small"))
        .collect();
    vec![("one".to_owned(), frames[0].clone()), ("three".to_owned(), frames.concat())]
}

fn trails() -> Vec<Seed> {
    let headers = scene().scenario.ledger.headers();
    let handovers = headers.iter().filter(|h| h.header.next_validators != h.header.validators);
    let way: Vec<SignedHeader> = handovers.chain(headers.last()).cloned().collect();
    vec![encoded("way", &way), encoded("genesis", &headers[..1].to_vec())]
}
