//! Tells what a machine's TPM can do for a node: `probe [BOOT-FILE-HASH]` as root. Changes nothing in the TPM.
//!
//! Every step prints its time, because firmware TPMs differ by a factor of fifty.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use croft_attest::{Claim, Endorsement, PcrSelection, Policy, assess};
use croft_protocol::{ChainId, Hash, SecretKey};
use croft_tpm::{FdTransport, Moment, SealPolicy, Tpm, boot_log, transport};

type Failure = Box<dyn std::error::Error>;

fn step<R>(what: &str, act: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
    let start = Instant::now();
    let result = act();
    println!(
        "{what:24} {:5} ms {}",
        start.elapsed().as_millis(),
        if result.is_ok() { "ok" } else { "failed" }
    );
    result
}

fn main() -> Result<(), Failure> {
    let release: Option<Hash> = std::env::args().nth(1).map(|text| text.parse()).transpose()?;
    let mut tpm = Tpm::new(FdTransport::open(Path::new(transport::DEVICE))?);
    let properties = step("properties", || Ok(tpm.properties()?))?;
    println!("  {properties:?}");
    let log = step("event log", || Ok(boot_log::read(Path::new(boot_log::PATH))?))?;
    step("storage key", || Ok(tpm.storage_key()?))?;
    let key = step("attestation key", || Ok(tpm.attestation_key()?))?;
    step("endorsement key", || Ok(tpm.endorsement_key()?))?;
    let certificate = step("maker's certificate", || Ok(tpm.endorsement_certificate()?))?;
    println!("  {} bytes", certificate.map_or(0, |der| der.len()));
    for policy in [SealPolicy::Tpm, SealPolicy::SecureBoot] {
        let sealed = step("seal", || Ok(tpm.seal(&[7; 32], policy)?))?;
        let secret = step("unseal", || Ok(tpm.unseal(&sealed)?))?;
        assert_eq!(**secret, [7; 32]);
    }
    println!("  identity {:?}, counter {:?}", tpm.identity_state()?, tpm.counter()?);

    let (chain, node) = (ChainId(Hash::ZERO), SecretKey::from_seed(&[1; 32]).public());
    let (header, statement) = (Hash([1; 32]), Hash([2; 32]));
    let moment = Moment { chain: &chain, height: 1, header, node: &node, statement };
    let attestation =
        step("attest", || Ok(tpm.attest(&moment, log.measured(PcrSelection::QUOTED), vec![])?))?;
    let claim = Claim {
        chain: &chain,
        node: &node,
        statement,
        header,
        header_age_ms: 0,
        known_key: Some(key.key.hash()),
        known_endorsement: None,
    };
    let policy = Policy {
        releases: release.map(|release| (release, BTreeSet::new())).into_iter().collect(),
        endorsement: Endorsement::Unchecked,
        ..Policy::default()
    };
    let assessment = step("assess", || Ok(assess(&attestation, &claim, &policy)?))?;
    println!("  {:?}, Secure Boot {:?}", assessment.class, assessment.secure_boot);
    for reason in &assessment.reasons {
        println!("  {reason}");
    }
    println!("  {} events, {} bytes", attestation.events.len(), croft_protocol::encode(&attestation).len());
    Ok(())
}
