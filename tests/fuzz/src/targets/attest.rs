//! What a TPM and a machine's firmware say, as replicas and bots read it.

use croft_attest::event_log::EventLog;
use croft_attest::pcr::{PcrSelection, digest};
use croft_attest::public::EccKey;
use croft_attest::quote::Quote;
use croft_attest::wire::{Reader, Writer};

use crate::Target;
use crate::check::{bounded, bounded_message};

pub const TARGETS: &[Target] = &[
    Target {
        name: "event-log",
        decodes: "what firmware measured (TCG PC Client, crypto-agile)",
        sent_by: "a machine's firmware",
        files: &["agents/attest/src/event_log.rs", "agents/attest/src/wire.rs"],
        seeds: || vec![("ovmf".to_owned(), OVMF.to_vec())],
        rounds: 600,
        run: event_log,
    },
    Target {
        name: "tpm-key",
        decodes: "a public key of a TPM (TPMT_PUBLIC)",
        sent_by: "a machine",
        files: &["agents/attest/src/public.rs"],
        seeds: || vec![("attestation".to_owned(), key())],
        rounds: 400,
        run: tpm_key,
    },
    Target {
        name: "tpm-quote",
        decodes: "a quote of a TPM and its signature",
        sent_by: "a machine",
        files: &["agents/attest/src/quote.rs"],
        seeds: || vec![("signature".to_owned(), signature()), ("quote".to_owned(), quote())],
        rounds: 400,
        run: tpm_quote,
    },
    Target {
        name: "pcr-selection",
        decodes: "which registers a quote is over (TPML_PCR_SELECTION)",
        sent_by: "a machine",
        files: &["agents/attest/src/pcr.rs"],
        seeds: || vec![("quoted".to_owned(), PcrSelection::QUOTED.encode())],
        rounds: 2_000,
        run: selection,
    },
];

/// Of a boot under OVMF.
const OVMF: &[u8] = include_bytes!("../../../../os/tpm/tests/data/ovmf-event-log.bin");

/// The base point of P-256 (SP 800-186, section 3.2.1.3): the key of secret 1.
const POINT: [&str; 2] = [
    "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5",
];

fn key() -> Vec<u8> {
    // An elliptic curve, SHA-256, an attestation key's attributes, no policy, no cipher, ECDSA, P-256, no derivation.
    let head = Writer::new().u16(0x23).u16(0x0b).u32(0x0005_0032).sized(&[]);
    let mut writer = head.u16(0x10).u16(0x18).u16(0x0b).u16(0x03).u16(0x10);
    for number in POINT {
        writer = writer.sized(&hex::decode(number).expect("it is hex"));
    }
    writer.done()
}

fn signature() -> Vec<u8> {
    Writer::new().u16(0x18).u16(0x0b).sized(&[1; 32]).sized(&[2; 32]).done()
}

/// A statement that nobody signed.
fn quote() -> Vec<u8> {
    let head = Writer::new().u32(0xff54_4347).u16(0x8018).sized(&[0, 0x0b]).sized(&[5; 32]);
    let head = head.bytes(&[0; 8]).u32(1).u32(0).u8(1).bytes(&[0; 8]);
    head.bytes(&PcrSelection::QUOTED.encode()).sized(&[9; 32]).done()
}

/// A log replays to the same registers each time, and measures nothing in registers that it does not have.
fn event_log(bytes: &[u8]) {
    match bounded("an event log", bytes.len(), || EventLog::decode(bytes)) {
        Ok(log) => {
            let registers = log.replay(PcrSelection::QUOTED);
            assert_eq!(digest(&registers), digest(&log.replay(PcrSelection::QUOTED)));
            let measured = log.measured(PcrSelection::QUOTED);
            assert!(measured.events.len() <= log.events.len());
        }
        Err(error) => bounded_message("an event log", &error.to_string()),
    }
}

/// A key that is taken is shown as it came.
fn tpm_key(bytes: &[u8]) {
    match bounded("a TPM's key", bytes.len(), || EccKey::decode(bytes)) {
        Ok(key) => assert_eq!(key.encoded(), bytes),
        Err(error) => bounded_message("a TPM's key", &error.to_string()),
    }
}

/// Nothing is a quote that the key did not sign, and nobody here can sign.
fn tpm_quote(bytes: &[u8]) {
    let known = EccKey::decode(&key()).expect("it is a key");
    match bounded("a quote's signature", bytes.len(), || Quote::signature(bytes)) {
        Ok(signature) => {
            let quote = Quote { attest: quote(), signature };
            assert!(quote.verify(&known).is_err(), "a forged signature is taken");
        }
        Err(error) => bounded_message("a quote's signature", &error.to_string()),
    }
    let quote = Quote { attest: bytes.to_vec(), signature: [3; 64] };
    let error = quote.verify(&known).expect_err("a forged quote is taken");
    bounded_message("a quote", &error.to_string());
}

/// A selection has one encoding for each bank that we read.
fn selection(bytes: &[u8]) {
    let mut reader = Reader::new("the selection", bytes);
    match bounded("a selection", bytes.len(), || PcrSelection::read(&mut reader)) {
        Ok(selection) => {
            let encoded = selection.encode();
            let again = PcrSelection::read(&mut Reader::new("the selection", &encoded));
            assert_eq!(again, Ok(selection), "it is read as it is written");
        }
        Err(error) => bounded_message("a selection", &error.to_string()),
    }
}
