//! What replicas say to each other. Everything is checked by whoever reads it; nothing is taken on trust.

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::{Hash, Signature, SignedCommand, SignedHeader, limits};

use super::context::{PolkaCertificate, Proposal, RoundCertificate, SignedProposal, SignedVote, Vote};

/// A message: a body, or some blocks.
pub const MESSAGE_BYTES: usize = limits::RESPONSE_BYTES + limits::BLOCK_BYTES;
/// Blocks in one answer, besides their bytes.
pub const BLOCKS_PER_ANSWER: u32 = 64;
/// Bytes of commands that are passed on in one message.
pub const GOSSIP_BYTES: usize = 512 * 1024;

/// A vote or proposal with its author's signature.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Signed<T> {
    pub message: T,
    pub signature: Signature,
}

impl From<SignedVote> for Signed<Vote> {
    fn from(vote: SignedVote) -> Self {
        Self { message: vote.message, signature: vote.signature }
    }
}

impl From<Signed<Vote>> for SignedVote {
    fn from(vote: Signed<Vote>) -> Self {
        Self::new(vote.message, vote.signature)
    }
}

impl From<SignedProposal> for Signed<Proposal> {
    fn from(proposal: SignedProposal) -> Self {
        Self { message: proposal.message, signature: proposal.signature }
    }
}

impl From<Signed<Proposal>> for SignedProposal {
    fn from(proposal: Signed<Proposal>) -> Self {
        Self::new(proposal.message, proposal.signature)
    }
}

/// What a header is executed from.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Body {
    pub height: u64,
    /// Milliseconds since 1970, UTC, by the proposer's clock.
    pub time_ms: u64,
    /// Every one of them succeeds.
    pub commands: Vec<SignedCommand>,
}

impl Body {
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of("croft/body/1", self)
    }
}

/// A final block as another replica executes it again.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct FinalBlock {
    pub signed: SignedHeader,
    pub commands: Vec<SignedCommand>,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum PeerMessage {
    /// How far the sender is: sent when a link comes up, after each block, and every second.
    Status {
        height: u64,
        /// The first height of which it can send the commands.
        earliest: u64,
    },
    Vote(Signed<Vote>),
    Proposal(Signed<Proposal>),
    PolkaCertificate(PolkaCertificate),
    RoundCertificate(RoundCertificate),
    Body(Body),
    /// Asks for the body with this hash, of the height that is being decided.
    WantBody {
        height: u64,
        body: Hash,
    },
    /// Admitted commands, for whoever proposes next.
    Commands(Vec<SignedCommand>),
    /// Asks for final blocks.
    WantBlocks {
        first: u64,
        count: u32,
    },
    Blocks(Vec<FinalBlock>),
}

impl PeerMessage {
    /// Whether it may wait behind others: what decides a round never does.
    #[must_use]
    pub fn is_bulk(&self) -> bool {
        matches!(self, Self::Body(_) | Self::Commands(_) | Self::Blocks(_))
    }
}
