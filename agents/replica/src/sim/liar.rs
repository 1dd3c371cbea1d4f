//! A validator that lies: an honest core with somebody in between who has its key.
//!
//! ```text
//!   core ──says──> liar ──something else to each──> peers
//!                    ^ └── of its own accord: forged, repeated, too much
//!                    └ hears everything that the core hears
//! ```
//! It keeps to nothing, but it can't sign for others. It needs no sense either: what matters is that nobody who is
//! honest is led astray by it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use croft_ledger::assemble;
use croft_protocol::{ChainId, Hash, Header, PublicKey, SecretKey, SignedCommand, limits};
use malachite_types::{NilOrVal, PolkaSignature, Round, RoundCertificateType, RoundSignature, VoteType};

use super::random::Random;
use crate::ordering::bft::context::{
    self, Height, Member, PolkaCertificate, Proposal, RoundCertificate, Value, Vote,
};
use crate::ordering::bft::core::Output;
use crate::ordering::bft::message::{Body, FinalBlock, PeerMessage, Signed};
use crate::ordering::make_block;
use crate::store::Snapshot;

/// Messages that it can repeat.
const REMEMBERED: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tactic {
    /// Other votes for some than for the rest.
    TwoVotes,
    /// Another block for some than for the rest, and votes to match.
    TwoBlocks,
    /// Votes for whatever anybody proposes or votes for, whatever it voted for before.
    VotesForAll,
    /// Says some kinds of things to some, or to nobody.
    Withholds,
    /// Votes and certificates in the name of others.
    Forges,
    /// Blocks and bodies that are not what was decided.
    Tampers,
    /// What it heard or said long ago.
    Repeats,
    Floods,
    /// Says that it is further than everybody, and has nothing to show for it.
    Boasts,
}

const TACTICS: [Tactic; 9] = [
    Tactic::TwoVotes,
    Tactic::TwoBlocks,
    Tactic::VotesForAll,
    Tactic::Withholds,
    Tactic::Forges,
    Tactic::Tampers,
    Tactic::Repeats,
    Tactic::Floods,
    Tactic::Boasts,
];

/// What a liar knows when it speaks.
pub(crate) struct View<'a> {
    /// All replicas, itself too.
    pub(crate) everybody: &'a [PublicKey],
    pub(crate) ledger: Arc<Snapshot>,
}

pub(crate) struct Liar {
    key: SecretKey,
    chain: ChainId,
    random: Random,
    pub(crate) tactics: Vec<Tactic>,
    /// To whom it shows its other face: a set of peers.
    duped: u64,
    /// Blocks that it proposed, and what it told those others instead.
    faces: BTreeMap<Hash, (Hash, Body)>,
    heard: VecDeque<PeerMessage>,
}

/// Whom a message goes to, and the message.
pub(crate) type Said = Vec<(usize, PeerMessage)>;

impl Liar {
    pub(crate) fn new(key: SecretKey, chain: ChainId, mut random: Random) -> Self {
        let count = random.between(1, 4);
        let tactics = (0..count).map(|_| *random.pick(&TACTICS)).collect();
        let duped = random.next();
        Self { key, chain, random, tactics, duped, faces: BTreeMap::new(), heard: VecDeque::new() }
    }

    fn uses(&self, tactic: Tactic) -> bool {
        self.tactics.contains(&tactic)
    }

    fn is_duped(&self, who: usize) -> bool {
        self.duped >> (who % 64) & 1 == 1
    }

    fn remember(&mut self, message: &PeerMessage) {
        if self.heard.len() == REMEMBERED {
            self.heard.pop_front();
        }
        self.heard.push_back(message.clone());
    }

    /// What it makes of what its core wants said.
    pub(crate) fn say(&mut self, view: &View<'_>, output: Output) -> Said {
        let me = self.key.public();
        let (to, message): (Vec<usize>, _) = match output {
            Output::Evidence(_) => return Vec::new(),
            Output::Send(to, message) => {
                (view.everybody.iter().position(|key| *key == to).into_iter().collect(), message)
            }
            Output::Broadcast(message) => {
                ((0..view.everybody.len()).filter(|who| view.everybody[*who] != me).collect(), message)
            }
        };
        self.remember(&message);
        let mut said = Vec::new();
        for who in to {
            if self.uses(Tactic::Withholds) && self.withholds(who, &message) {
                continue;
            }
            said.extend(self.twisted(view, who, &message).into_iter().map(|message| (who, message)));
        }
        said
    }

    fn withholds(&mut self, who: usize, message: &PeerMessage) -> bool {
        match message {
            PeerMessage::Body(_) | PeerMessage::Proposal(_) => self.is_duped(who),
            PeerMessage::Vote(vote) if vote.message.kind == VoteType::Precommit => self.is_duped(who + 7),
            PeerMessage::Blocks(_) => self.random.percent(80),
            PeerMessage::Commands(_) => true,
            _ => self.random.percent(10),
        }
    }

    /// What one peer hears instead of a message.
    fn twisted(&mut self, view: &View<'_>, who: usize, message: &PeerMessage) -> Vec<PeerMessage> {
        let duped = self.is_duped(who);
        match message {
            PeerMessage::Proposal(proposal)
                if self.uses(Tactic::TwoBlocks) && proposal.message.proposer.0 == self.key.public() =>
            {
                let Some((other, body)) = self.other_face(view, &proposal.message) else {
                    return vec![message.clone()];
                };
                // Some hear both, so that the lie comes out.
                if self.random.percent(15) {
                    vec![message.clone(), other, PeerMessage::Body(body)]
                } else if duped {
                    vec![other, PeerMessage::Body(body)]
                } else {
                    vec![message.clone()]
                }
            }
            PeerMessage::Vote(vote) if vote.message.voter.0 == self.key.public() => {
                let face = match &vote.message.value {
                    NilOrVal::Val(header) => self.faces.get(header).map(|(other, _)| *other),
                    NilOrVal::Nil => None,
                };
                if let Some(other) = face.filter(|_| duped) {
                    return vec![self.vote(Vote { value: NilOrVal::Val(other), ..vote.message.clone() })];
                }
                if self.uses(Tactic::TwoVotes) && duped {
                    let value = match &vote.message.value {
                        NilOrVal::Val(_) => NilOrVal::Nil,
                        NilOrVal::Nil => NilOrVal::Val(Hash([9; 32])),
                    };
                    let other = self.vote(Vote { value, ..vote.message.clone() });
                    return if self.random.percent(20) { vec![message.clone(), other] } else { vec![other] };
                }
                vec![message.clone()]
            }
            PeerMessage::Body(body) if self.uses(Tactic::Tampers) && self.random.percent(50) => {
                vec![PeerMessage::Body(self.tampered_body(body))]
            }
            PeerMessage::Blocks(blocks) if self.uses(Tactic::Tampers) => {
                vec![PeerMessage::Blocks(self.tampered_blocks(view, blocks))]
            }
            PeerMessage::Status { .. } if self.uses(Tactic::Boasts) => {
                let height = *self.random.pick(&[u64::MAX, 1_000_000, view.ledger.height() + 1]);
                vec![PeerMessage::Status { height, earliest: 0 }]
            }
            PeerMessage::Blocks(_) if self.uses(Tactic::Boasts) => Vec::new(),
            _ => vec![message.clone()],
        }
    }

    fn vote(&self, message: Vote) -> PeerMessage {
        let signature = context::sign_vote(&self.key, &self.chain, &message);
        PeerMessage::Vote(Signed { message, signature })
    }

    /// Another block for the height and round of a proposal, signed.
    fn other_face(&mut self, view: &View<'_>, proposal: &Proposal) -> Option<(PeerMessage, Body)> {
        if !self.faces.contains_key(&proposal.value.header) {
            let time_ms = view.ledger.tip().header.time_ms + self.random.between(1, 2_000);
            let (header, body) = block(&view.ledger, time_ms, Vec::new())?;
            self.faces.insert(proposal.value.header, (header.hash(), body));
        }
        let (header, body) = self.faces.get(&proposal.value.header)?.clone();
        let value = Value { header, body: body.hash() };
        let message = Proposal { value, ..proposal.clone() };
        let signature = context::sign_proposal(&self.key, &self.chain, &message);
        Some((PeerMessage::Proposal(Signed { message, signature }), body))
    }

    fn tampered_body(&mut self, body: &Body) -> Body {
        let mut body = body.clone();
        match self.random.below(3) {
            0 => body.time_ms += 1,
            1 => drop(body.commands.pop()),
            _ => body.commands.reverse(),
        }
        body
    }

    fn tampered_blocks(&mut self, view: &View<'_>, blocks: &[FinalBlock]) -> Vec<FinalBlock> {
        let mut blocks = blocks.to_vec();
        if blocks.is_empty() {
            return blocks;
        }
        let at = self.random.index(blocks.len());
        let block = &mut blocks[at];
        match self.random.below(8) {
            0 => drop(block.commands.pop()),
            1 => block.signed.header.time_ms += 1,
            2 => block.signed.certificate.signatures.truncate(1),
            3 => {
                let first = block.signed.certificate.signatures[0];
                block.signed.certificate.signatures.fill(first);
            }
            4 => block.signed.header.state_root = Hash([3; 32]),
            5 => {
                block.signed.certificate.round += 1;
            }
            // A block of its own, certified by nobody but itself.
            _ => {
                if let Some(own) = self.own_block(view, block.signed.header.height) {
                    return vec![own];
                }
                blocks.rotate_left(1);
            }
        }
        blocks
    }

    /// A block that follows one of the ledger's, with a certificate that is none.
    fn own_block(&mut self, view: &View<'_>, height: u64) -> Option<FinalBlock> {
        if height != view.ledger.height() + 1 && height != view.ledger.height() {
            return None;
        }
        // What it knows of the height: the commands of it are left out, and the time is another.
        let time_ms = view.ledger.tip().header.time_ms + self.random.between(1, 5_000);
        let (header, body) = block(&view.ledger, time_ms, Vec::new())?;
        let set = view.ledger.tip().validators.clone();
        let signed = assemble::certify(header, 0, set, std::slice::from_ref(&self.key));
        Some(FinalBlock { signed, commands: body.commands })
    }

    /// Listens, and may answer at once.
    pub(crate) fn hear(&mut self, view: &View<'_>, message: &PeerMessage) -> Said {
        self.remember(message);
        if !self.uses(Tactic::VotesForAll) {
            return Vec::new();
        }
        let (height, round, header) = match message {
            PeerMessage::Proposal(p) => (p.message.height, p.message.round, p.message.value.header),
            PeerMessage::Vote(Signed {
                message: Vote { height, round, value: NilOrVal::Val(header), .. },
                ..
            }) => (*height, *round, *header),
            _ => return Vec::new(),
        };
        if height.0 != view.ledger.height() + 1 {
            return Vec::new();
        }
        let (value, voter) = (NilOrVal::Val(header), Member(self.key.public()));
        let votes = [VoteType::Prevote, VoteType::Precommit]
            .map(|kind| self.vote(Vote { kind, height, round, value, voter }));
        votes.into_iter().flat_map(|vote| self.to_all(view, &vote)).collect()
    }

    fn to_all(&self, view: &View<'_>, message: &PeerMessage) -> Said {
        let me = self.key.public();
        let others = (0..view.everybody.len()).filter(|who| view.everybody[*who] != me);
        others.map(|who| (who, message.clone())).collect()
    }

    /// What it does of its own accord.
    pub(crate) fn act(&mut self, view: &View<'_>) -> Said {
        let mut said = Vec::new();
        if self.uses(Tactic::Forges) {
            let forged = self.forged(view);
            said.extend(self.to_all(view, &forged));
        }
        if self.uses(Tactic::Repeats) && !self.heard.is_empty() {
            for _ in 0..3 {
                let message = self.heard[self.random.index(self.heard.len())].clone();
                said.push((self.random.index(view.everybody.len()), message));
            }
        }
        if self.uses(Tactic::Floods) {
            for _ in 0..self.random.between(1, 40) {
                let junk = self.junk(view);
                said.push((self.random.index(view.everybody.len()), junk));
            }
        }
        let me = self.key.public();
        said.retain(|(who, _)| view.everybody[*who] != me);
        said
    }

    fn forged(&mut self, view: &View<'_>) -> PeerMessage {
        let (height, round) = (Height(view.ledger.height() + 1), Round::new(self.random.below(3) as u32));
        let voter = Member(*self.random.pick(view.everybody));
        let header = Hash([u8::try_from(self.random.below(4)).unwrap_or_default(); 32]);
        let vote = |kind| Vote { kind, height, round, value: NilOrVal::Val(header), voter };
        let sign = |vote: &Vote| context::sign_vote(&self.key, &self.chain, vote);
        match self.random.below(4) {
            0 => {
                let message = vote(VoteType::Precommit);
                let signature = sign(&message);
                PeerMessage::Vote(Signed { message, signature })
            }
            1 => {
                let signature = sign(&vote(VoteType::Prevote));
                let all = view.everybody.iter().map(|key| PolkaSignature::new(Member(*key), signature));
                let polka_signatures = all.collect();
                PeerMessage::PolkaCertificate(PolkaCertificate {
                    height,
                    round,
                    value_id: header,
                    polka_signatures,
                })
            }
            2 => {
                let kind = VoteType::Precommit;
                let own = Vote { voter: Member(self.key.public()), ..vote(kind) };
                let signature = RoundSignature::new(kind, own.value, own.voter, sign(&own));
                let round_signatures = vec![signature; view.everybody.len()];
                let cert_type = RoundCertificateType::Precommit;
                PeerMessage::RoundCertificate(RoundCertificate { height, round, cert_type, round_signatures })
            }
            _ => {
                let value = Value { header, body: header };
                let message = Proposal { height, round, value, pol_round: Round::Nil, proposer: voter };
                let signature = context::sign_proposal(&self.key, &self.chain, &message);
                PeerMessage::Proposal(Signed { message, signature })
            }
        }
    }

    /// Something that only costs.
    fn junk(&mut self, view: &View<'_>) -> PeerMessage {
        let (tip, me) = (view.ledger.height(), Member(self.key.public()));
        let header = Hash::of("sim/junk", &self.random.next());
        let ahead = *self.random.pick(&[1, 2, 5, 1_000]);
        let (height, round) = (Height(tip + ahead), Round::new(self.random.below(40) as u32));
        match self.random.below(6) {
            0 => self.vote(Vote {
                kind: VoteType::Prevote,
                height,
                round,
                value: NilOrVal::Val(header),
                voter: me,
            }),
            1 => {
                let (value, pol_round) = (Value { header, body: header }, Round::Nil);
                let height = Height(tip + 1);
                let message = Proposal { height, round, value, pol_round, proposer: me };
                let signature = context::sign_proposal(&self.key, &self.chain, &message);
                PeerMessage::Proposal(Signed { message, signature })
            }
            2 => {
                PeerMessage::Body(Body { height: tip + 1, time_ms: self.random.next(), commands: Vec::new() })
            }
            3 => PeerMessage::WantBlocks { first: self.random.below(tip + 2), count: u32::MAX },
            4 => PeerMessage::WantBody { height: tip + 1, body: header },
            _ => PeerMessage::Commands(self.spam(view)),
        }
    }

    /// Commands that nobody signed, or that are of no use.
    fn spam(&mut self, view: &View<'_>) -> Vec<SignedCommand> {
        let Ok(Some(mut commands)) = view.ledger.commands(view.ledger.height()) else { return Vec::new() };
        for command in &mut commands {
            command.body.sequence += self.random.below(3);
            command.body.expires_height = view.ledger.height() + limits::EXPIRY_BLOCKS + 2;
        }
        commands
    }
}

/// A block on the tip of a ledger.
fn block(ledger: &Snapshot, time_ms: u64, commands: Vec<SignedCommand>) -> Option<(Header, Body)> {
    let set = ledger.tip().validators.clone();
    let unsigned = |header| assemble::with_signatures(header, 0, set, Vec::new());
    let block = make_block(ledger, time_ms, &commands, unsigned).ok()?;
    let header = block.signed.header;
    Some((header, Body { height: header.height, time_ms: header.time_ms, commands }))
}
