//! What happened in a run: all of it as one hash, the end of it as text.

use std::collections::VecDeque;
use std::fmt;

use croft_protocol::{Hash, PublicKey};
use malachite_types::{NilOrVal, Round, VoteType};

use crate::ordering::bft::message::PeerMessage;

/// Lines that are kept for whoever looks at a failure.
const KEPT: usize = 400;

/// FNV-1a, 64 bits: not against forgers, only to tell two runs apart.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: VecDeque<String>,
    /// Every line goes to the terminal as well.
    aloud: bool,
}

impl Trace {
    pub(crate) fn new(aloud: bool) -> Self {
        Self { hash: OFFSET, lines: VecDeque::new(), aloud }
    }

    pub(crate) fn add(&mut self, now_ms: u64, what: impl fmt::Display) {
        let line = format!("{:>9.3} s  {what}", now_ms as f64 / 1_000.0);
        for byte in line.bytes().chain([b'\n']) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        if self.aloud {
            eprintln!("{line}");
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn tail(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}

/// A message in a few words.
pub(crate) struct Words<'a>(pub(crate) &'a PeerMessage);

struct At(u64, Round);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{} r{}", self.0, self.1.as_i64())
    }
}

fn short(hash: &Hash) -> String {
    PublicKey(hash.0).short()
}

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            PeerMessage::Status { height, .. } => write!(f, "status h{height}"),
            PeerMessage::Vote(vote) => {
                let vote = &vote.message;
                let kind = if vote.kind == VoteType::Prevote { "prevote" } else { "precommit" };
                let value = match &vote.value {
                    NilOrVal::Nil => "nil".to_owned(),
                    NilOrVal::Val(hash) => short(hash),
                };
                write!(f, "{kind} {} {value} by {}", At(vote.height.0, vote.round), vote.voter)
            }
            PeerMessage::Proposal(proposal) => {
                let proposal = &proposal.message;
                let (value, valid) = (short(&proposal.value.header), proposal.pol_round.as_i64());
                let at = At(proposal.height.0, proposal.round);
                write!(f, "proposal {at} {value} valid r{valid} by {}", proposal.proposer)
            }
            PeerMessage::PolkaCertificate(polka) => {
                write!(f, "polka {} {}", At(polka.height.0, polka.round), short(&polka.value_id))
            }
            PeerMessage::RoundCertificate(round) => {
                write!(f, "round certificate {}", At(round.height.0, round.round))
            }
            PeerMessage::Body(body) => {
                write!(f, "body h{} {} of {}", body.height, short(&body.hash()), body.commands.len())
            }
            PeerMessage::WantBody { height, body } => write!(f, "wants body h{height} {}", short(body)),
            PeerMessage::Commands(commands) => write!(f, "{} commands", commands.len()),
            PeerMessage::WantBlocks { first, .. } => write!(f, "wants blocks from h{first}"),
            PeerMessage::Blocks(blocks) => {
                let first = blocks.first().map_or(0, |block| block.signed.header.height);
                write!(f, "{} blocks from h{first}", blocks.len())
            }
        }
    }
}
