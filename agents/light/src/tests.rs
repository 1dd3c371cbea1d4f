//! Hostile replicas: every byte of every message altered, and honest messages out of place.

mod contracts;
mod handovers;
mod proofs;
mod tips;

use croft_ledger::memory::{Scenario, key};
use croft_protocol::header::ValidatorSet;
use croft_protocol::{Header, SecretKey, SignedHeader};

use crate::{LightClient, Tip};

/// A client of the scenario's grid, which pins its validators.
fn client(scenario: &Scenario) -> LightClient {
    LightClient::new(scenario.ledger.chain(), scenario.ledger.genesis().validators.hash())
}

/// The scenario's tip, believed.
fn tip(scenario: &Scenario) -> Tip {
    client(scenario).accept_tip(scenario.ledger.tip(), None).expect("an honest tip is believed")
}

/// An altered header, certified again by the scenario's validators as if it were theirs.
fn recertified(scenario: &Scenario, of: &SignedHeader, change: impl FnOnce(&mut Header)) -> SignedHeader {
    let mut header = of.header;
    change(&mut header);
    croft_ledger::certify(header, 0, of.validators.clone(), &scenario.validators)
}

/// Another set of four, with its keys.
fn other_set() -> (ValidatorSet, Vec<SecretKey>) {
    let keys: Vec<_> = (111..=114).map(key).collect();
    let publics: Vec<_> = keys.iter().map(SecretKey::public).collect();
    (ValidatorSet::of_equals(&publics), keys)
}
