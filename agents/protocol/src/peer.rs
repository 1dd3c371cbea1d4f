//! What nodes and bots say to each other, inside TLS, through a relay that can't read it.
//!
//! One request and its answer per stream, framed as in [`crate::api`]; [`NodeRequest::Logs`] with `follow`
//! answers with one frame per piece until either side ends the stream. The caller is the key that it
//! proved in TLS.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::Serialize;

use crate::Name;
use crate::contract::ContractId;
use crate::market::SignedMessage;
use crate::record::WorkloadState;

/// ALPN of the TLS inside a relayed stream.
pub const ALPN: &[u8] = b"croft-peer/1";

/// To a node.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum NodeRequest {
    /// Output of a microVM; only its user may ask.
    Logs { contract: ContractId, vm: Name, tail_lines: u32, follow: bool },
    /// What the node knows of a contract; its user and its farmer may ask.
    Explain { contract: ContractId },
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum NodeResponse {
    Logs(Vec<LogLine>),
    Explained(Explanation),
    Refused { reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct LogLine {
    /// Milliseconds since 1970, UTC, by the node's clock.
    pub time_ms: u64,
    pub stderr: bool,
    /// One line without its end, at most 16 KiB.
    pub text: String,
}

/// A node's own account of a contract.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Explanation {
    pub state: WorkloadState,
    /// Oldest first, bounded.
    pub steps: Vec<Step>,
    pub vms: Vec<VmExplanation>,
}

/// Something that happened to a contract on its node.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct Step {
    pub time_ms: u64,
    pub what: String,
    pub failed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize)]
pub struct VmExplanation {
    pub name: Name,
    pub phase: String,
    pub since_ms: u64,
    pub restarts: u32,
    pub address: String,
    pub detail: String,
}

/// To a farmer's bot.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum FarmRequest {
    /// The next message of a negotiation, of which the caller must be the author. Said again, it is answered again.
    Negotiate { message: Box<SignedMessage> },
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum FarmResponse {
    /// The farmer's next message.
    Said { message: Box<SignedMessage> },
    /// It was taken, and there is nothing to say to it now: say it again later where an answer is due.
    Heard,
    /// It was not taken.
    Refused { reason: String },
}

/// To a bot that listens for messages.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum BotRequest {
    /// A message as [`crate::message`] seals it. Who calls need not be who wrote it.
    Deliver { sealed: Vec<u8> },
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum BotResponse {
    /// The receiver has it, now or from before.
    Taken,
    Refused {
        reason: String,
    },
}
