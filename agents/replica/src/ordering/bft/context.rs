//! What Malachite has to know of a grid: heights, values, votes, proposals, validators, and who proposes when.
//!
//! A value is the header that a block would have; its id is the header's hash. A precommit for it is signed over
//! exactly what a certificate of the grid is signed over, so that a quorum of precommits is a certificate, and
//! light clients need to know nothing of rounds of voting.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::keys::Domain;
use croft_protocol::{Certificate, ChainId, Hash, PublicKey, SecretKey, Signature, ValidatorSet};
use malachite_types::{
    LinearTimeouts, NilOrVal, Round, SignedExtension, SigningScheme, VoteType, VotingPower,
};

/// The kind of agreement: one grid's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grid;

pub type SignedVote = malachite_types::SignedVote<Grid>;
pub type SignedProposal = malachite_types::SignedProposal<Grid>;
pub type PolkaCertificate = malachite_types::PolkaCertificate<Grid>;
pub type RoundCertificate = malachite_types::RoundCertificate<Grid>;
pub type CommitCertificate = malachite_types::CommitCertificate<Grid>;

/// A validator by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Member(pub PublicKey);

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}

impl malachite_types::Address for Member {}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize,
)]
pub struct Height(pub u64);

impl fmt::Display for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl malachite_types::Height for Height {
    const ZERO: Self = Self(0);
    const INITIAL: Self = Self(1);

    fn increment_by(&self, n: u64) -> Self {
        Self(self.0 + n)
    }

    fn decrement_by(&self, n: u64) -> Option<Self> {
        self.0.checked_sub(n).map(Self)
    }

    fn as_u64(&self) -> u64 {
        self.0
    }
}

/// A block that may become final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Value {
    /// Hash of the header that the block has after execution.
    pub header: Hash,
    /// Hash of its body, so that a wrong body is refused before it costs an execution.
    pub body: Hash,
}

impl malachite_types::Value for Value {
    type Id = Hash;

    fn id(&self) -> Hash {
        self.header
    }
}

/// What validators say in a round.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Vote {
    pub kind: VoteType,
    pub height: Height,
    pub round: Round,
    pub value: NilOrVal<Hash>,
    pub voter: Member,
}

impl malachite_types::Vote<Grid> for Vote {
    fn height(&self) -> Height {
        self.height
    }

    fn round(&self) -> Round {
        self.round
    }

    fn value(&self) -> &NilOrVal<Hash> {
        &self.value
    }

    fn take_value(self) -> NilOrVal<Hash> {
        self.value
    }

    fn vote_type(&self) -> VoteType {
        self.kind
    }

    fn validator_address(&self) -> &Member {
        &self.voter
    }

    fn extension(&self) -> Option<&SignedExtension<Grid>> {
        None
    }

    fn take_extension(&mut self) -> Option<SignedExtension<Grid>> {
        None
    }

    /// Votes of a grid carry no extensions; the engine asks for none.
    fn extend(self, _extension: SignedExtension<Grid>) -> Self {
        self
    }
}

/// What a proposer says.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Proposal {
    pub height: Height,
    pub round: Round,
    pub value: Value,
    /// The round in which a quorum prevoted for the value already, if there is one.
    pub pol_round: Round,
    pub proposer: Member,
}

impl malachite_types::Proposal<Grid> for Proposal {
    fn height(&self) -> Height {
        self.height
    }

    fn round(&self) -> Round {
        self.round
    }

    fn value(&self) -> &Value {
        &self.value
    }

    fn take_value(self) -> Value {
        self.value
    }

    fn pol_round(&self) -> Round {
        self.pol_round
    }

    fn validator_address(&self) -> &Member {
        &self.proposer
    }
}

/// Bodies travel beside the engine, so it never sees a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPart {}

impl malachite_types::ProposalPart<Grid> for NoPart {
    fn is_first(&self) -> bool {
        match *self {}
    }

    fn is_last(&self) -> bool {
        match *self {}
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validator {
    member: Member,
    power: u64,
}

impl malachite_types::Validator<Grid> for Validator {
    fn address(&self) -> &Member {
        &self.member
    }

    fn public_key(&self) -> &PublicKey {
        &self.member.0
    }

    fn voting_power(&self) -> VotingPower {
        self.power
    }
}

/// Those who decide at a height, in ascending order of their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validators {
    members: Vec<Validator>,
    total: u64,
}

impl Validators {
    #[must_use]
    pub fn new(set: &ValidatorSet) -> Self {
        let members: Vec<_> =
            set.validators.iter().map(|v| Validator { member: Member(v.key), power: v.power }).collect();
        Self { members, total: set.total_power() }
    }

    /// Everybody proposes in turn, starting with another one at each height; the more power, the more often
    /// first. Never fails: a set has at least one member.
    fn proposer(&self, height: u64, round: u32) -> &Validator {
        let point = if self.members.iter().all(|m| m.power == self.members[0].power) {
            (height % self.members.len() as u64) * self.members[0].power
        } else {
            let hash = Hash::of("croft/proposer/1", &height);
            let mut first = [0; 8];
            first.copy_from_slice(&hash.0[..8]);
            u64::from_le_bytes(first) % self.total
        };
        let mut below = 0;
        let first = self.members.iter().position(|member| {
            below += member.power;
            point < below
        });
        let first = first.unwrap_or_default();
        &self.members[(first + round as usize) % self.members.len()]
    }
}

impl malachite_types::ValidatorSet<Grid> for Validators {
    fn count(&self) -> usize {
        self.members.len()
    }

    fn total_voting_power(&self) -> VotingPower {
        self.total
    }

    fn get_by_address(&self, address: &Member) -> Option<&Validator> {
        self.members.binary_search_by(|v| v.member.cmp(address)).ok().map(|index| &self.members[index])
    }

    fn get_by_index(&self, index: usize) -> Option<&Validator> {
        self.members.get(index)
    }
}

/// ed25519, as everywhere on a grid. The engine never holds a secret key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ed25519;

impl SigningScheme for Ed25519 {
    type DecodingError = &'static str;
    type Signature = Signature;
    type PublicKey = PublicKey;
    type PrivateKey = ();

    fn decode_signature(bytes: &[u8]) -> Result<Signature, &'static str> {
        bytes.try_into().map(Signature).map_err(|_| "a signature has 64 bytes")
    }

    fn encode_signature(signature: &Signature) -> Vec<u8> {
        signature.0.to_vec()
    }

    fn decode_public_key(bytes: &[u8]) -> Result<PublicKey, &'static str> {
        bytes.try_into().map(PublicKey).map_err(|_| "a public key has 32 bytes")
    }

    fn encode_public_key(key: &PublicKey) -> Vec<u8> {
        key.0.to_vec()
    }
}

impl malachite_types::Context for Grid {
    type Address = Member;
    type Height = Height;
    type ProposalPart = NoPart;
    type Proposal = Proposal;
    type Validator = Validator;
    type ValidatorSet = Validators;
    type Timeouts = LinearTimeouts;
    type Value = Value;
    type Vote = Vote;
    type Extension = ();
    type SigningScheme = Ed25519;

    fn select_proposer<'a>(&self, set: &'a Validators, height: Height, round: Round) -> &'a Validator {
        set.proposer(height.0, round.as_u32().unwrap_or_default())
    }

    fn new_proposal(
        &self,
        height: Height,
        round: Round,
        value: Value,
        pol_round: Round,
        proposer: Member,
    ) -> Proposal {
        Proposal { height, round, value, pol_round, proposer }
    }

    fn new_prevote(&self, height: Height, round: Round, value: NilOrVal<Hash>, voter: Member) -> Vote {
        Vote { kind: VoteType::Prevote, height, round, value, voter }
    }

    fn new_precommit(&self, height: Height, round: Round, value: NilOrVal<Hash>, voter: Member) -> Vote {
        Vote { kind: VoteType::Precommit, height, round, value, voter }
    }
}

/// The height, round and header that a precommit for a block certifies; `None` of any other vote.
fn certified(vote: &Vote) -> Option<(u64, u32, &Hash)> {
    match (vote.kind, &vote.value, vote.round) {
        (VoteType::Precommit, NilOrVal::Val(header), Round::Some(round)) => {
            Some((vote.height.0, round, header))
        }
        _ => None,
    }
}

/// Signs a vote; a precommit for a block as part of its certificate.
#[must_use]
pub fn sign_vote(key: &SecretKey, chain: &ChainId, vote: &Vote) -> Signature {
    match certified(vote) {
        Some((height, round, header)) => Certificate::sign(key, chain, height, round, header),
        None => key.sign(Domain::VOTE, chain, vote),
    }
}

#[must_use]
pub fn verify_vote(chain: &ChainId, vote: &Vote, key: &PublicKey, signature: &Signature) -> bool {
    match certified(vote) {
        Some((height, round, header)) => {
            key.verify(Domain::CERTIFICATE, chain, &(height, round, *header), signature).is_ok()
        }
        None => key.verify(Domain::VOTE, chain, vote, signature).is_ok(),
    }
}

#[must_use]
pub fn sign_proposal(key: &SecretKey, chain: &ChainId, proposal: &Proposal) -> Signature {
    key.sign(Domain::PROPOSAL, chain, proposal)
}

#[must_use]
pub fn verify_proposal(chain: &ChainId, proposal: &Proposal, key: &PublicKey, signature: &Signature) -> bool {
    key.verify(Domain::PROPOSAL, chain, proposal, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use croft_protocol::Validator as Weighted;

    use super::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn set(powers: &[u64]) -> Validators {
        let mut validators: Vec<_> = (1_u8..)
            .zip(powers)
            .map(|(seed, power)| Weighted { key: key(seed).public(), power: *power })
            .collect();
        validators.sort_by_key(|v| v.key);
        Validators::new(&ValidatorSet { validators })
    }

    #[test]
    fn equals_propose_in_turn_by_height_and_by_round() {
        let set = set(&[1, 1, 1, 1]);
        let by_height: Vec<_> = (0..4).map(|height| set.proposer(height, 0).member).collect();
        let by_round: Vec<_> = (0..4).map(|round| set.proposer(0, round).member).collect();
        let all: Vec<_> = set.members.iter().map(|v| v.member).collect();
        assert_eq!((by_height, by_round), (all.clone(), all));
    }

    #[test]
    fn more_power_proposes_more_often_and_everybody_gets_a_round() {
        let set = set(&[1, 7]);
        let strong = set.members.iter().find(|v| v.power == 7).unwrap().member;
        let first = (0..800).filter(|height| set.proposer(*height, 0).member == strong).count();
        assert!((600..800).contains(&first), "{first}");
        for height in 0..50 {
            assert_ne!(set.proposer(height, 0).member, set.proposer(height, 1).member);
        }
    }

    #[test]
    fn a_precommit_for_a_block_is_a_signature_of_its_certificate_and_no_other_vote_is() {
        let (chain, key) = (ChainId(Hash::ZERO), key(1));
        let header = Hash([7; 32]);
        let vote = |kind, value| Vote {
            kind,
            height: Height(5),
            round: Round::new(2),
            value,
            voter: Member(key.public()),
        };
        let precommit = vote(VoteType::Precommit, NilOrVal::Val(header));
        let signature = sign_vote(&key, &chain, &precommit);
        assert_eq!(signature, Certificate::sign(&key, &chain, 5, 2, &header));
        assert!(verify_vote(&chain, &precommit, &key.public(), &signature));
        for other in [
            vote(VoteType::Prevote, NilOrVal::Val(header)),
            vote(VoteType::Precommit, NilOrVal::Nil),
            vote(VoteType::Precommit, NilOrVal::Val(Hash::ZERO)),
        ] {
            assert!(!verify_vote(&chain, &other, &key.public(), &signature), "{other:?}");
            let own = sign_vote(&key, &chain, &other);
            assert!(verify_vote(&chain, &other, &key.public(), &own));
        }
    }
}
