//! What the load on a grid is made of: the same for whoever submits it and whoever checks what became of it.

use croft_protocol::boot::ReplicaAddress;
use croft_protocol::{ChainId, Command, CommandBody, Grains, SecretKey, SignedCommand};
use serde::{Deserialize, Serialize};

/// The work of one load process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub chain: ChainId,
    pub replicas: Vec<ReplicaAddress>,
    pub authors: u16,
    /// Of each author.
    pub commands: u64,
}

/// What the authors know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// How many commands of each author are final.
    pub acknowledged: Vec<u64>,
    /// Of how many the replica that took them did not live to tell.
    pub found_later: u64,
}

/// What one replica holds, at a height that all of them have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The header at the plan's height.
    pub header: croft_protocol::Hash,
    /// Its time, milliseconds since 1970, UTC.
    pub time_ms: u64,
    /// The next sequence number of each author.
    pub next_sequence: Vec<u64>,
    /// What the payee has, in grains.
    pub paid: u64,
}

/// The key of an author.
#[must_use]
pub fn author(index: u16) -> SecretKey {
    let mut seed = [0x5a; 32];
    seed[..2].copy_from_slice(&index.to_le_bytes());
    SecretKey::from_seed(&seed)
}

/// Whom all authors pay.
#[must_use]
pub fn payee() -> SecretKey {
    author(u16::MAX)
}

/// One transfer of one grain.
#[must_use]
pub fn command(plan: &Plan, key: &SecretKey, sequence: u64) -> SignedCommand {
    let transfer =
        Command::Transfer { to: payee().public(), amount: Grains(1), memo: format!("number {sequence}") };
    let body = CommandBody {
        chain: plan.chain,
        author: key.public(),
        sequence,
        expires_height: croft_protocol::limits::EXPIRY_BLOCKS / 2,
        command: transfer,
    };
    SignedCommand::sign(body, key)
}
