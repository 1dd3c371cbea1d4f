//! What must hold after each event of a run, whatever happened before.
//!
//! - no two final headers at one height, so every ledger is a prefix of the longest;
//! - every final header is certified by the validators in force;
//! - its two roots are those of a model that executes the same commands in memory, where grains are conserved and
//!   no capacity is sold twice;
//! - a command is final at most once, and one that must fail never;
//! - what a submitter was told to be final is;
//! - a validator that does not lie signs at most one proposal, prevote and precommit in each round, over all its
//!   lives;
//! - evidence names liars only.

use std::collections::{BTreeMap, BTreeSet};

use croft_ledger::{MemoryLedger, StateReadExt};
use croft_protocol::{
    Certificate, Genesis, Hash, PublicKey, SecretKey, SignedCommand, SignedHeader, ValidatorSet,
};
use malachite_types::{NilOrVal, VoteType};

use crate::ordering::bft::context::{
    self, Height, Member, PolkaCertificate, Proposal, RoundCertificate, Vote,
};
use crate::ordering::bft::core::Output;
use crate::ordering::bft::evidence::Evidence;
use crate::ordering::bft::message::PeerMessage;
use crate::store::Snapshot;

/// Something that must never happen, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Violation(pub(crate) String);

pub(crate) type Check<T = ()> = Result<T, Violation>;

pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(Violation(what())) }
}

/// What a validator signs once: its key, height and round, and the kind of message.
type Signing = (PublicKey, u64, i64, Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Proposal,
    Prevote,
    Precommit,
}

pub(crate) struct Oracle {
    model: MemoryLedger,
    /// Every final command and its height.
    commands: BTreeMap<Hash, u64>,
    doomed: BTreeSet<Hash>,
    signed: BTreeMap<Signing, Hash>,
    liars: BTreeSet<PublicKey>,
    pub(crate) finals: u64,
    pub(crate) evidence: u64,
}

impl Oracle {
    pub(crate) fn new(genesis: Genesis, keys: Vec<SecretKey>, liars: BTreeSet<PublicKey>) -> Self {
        let model = MemoryLedger::new(genesis, keys).expect("the simulator's genesis is one");
        Self {
            model,
            commands: BTreeMap::new(),
            doomed: BTreeSet::new(),
            signed: BTreeMap::new(),
            liars,
            finals: 0,
            evidence: 0,
        }
    }

    /// The model at the greatest final height.
    pub(crate) fn model(&self) -> &MemoryLedger {
        &self.model
    }

    pub(crate) fn height(&self) -> u64 {
        self.model.tip().header.height
    }

    pub(crate) fn is_final(&self, command: &Hash) -> bool {
        self.commands.contains_key(command)
    }

    pub(crate) fn validators(&self) -> ValidatorSet {
        StateReadExt::validators(&self.model).expect("memory can be read").set
    }

    /// From now on this command must never be final.
    pub(crate) fn doom(&mut self, command: Hash) {
        self.doomed.insert(command);
    }

    // ---- ledgers -----------------------------------------------------------------------------------------

    /// Looks at a height of somebody's ledger. `false` when its disk can't be read now.
    pub(crate) fn look_at(&mut self, who: &str, ledger: &Snapshot, height: u64) -> Check<bool> {
        let (Ok(Some(signed)), Ok(commands)) = (ledger.header(height), ledger.commands(height)) else {
            return Ok(false);
        };
        croft_light::verify_certificate(&signed)
            .map_err(|error| Violation(format!("{who} has a header without a certificate: {error}")))?;
        self.note_certificate(&signed)?;
        if height > self.height() {
            ensure(height == self.height() + 1, || format!("{who} leaves out a height before {height}"))?;
            let commands = commands
                .ok_or_else(|| Violation(format!("{who} has no commands of its newest block {height}")))?;
            self.extend(who, &signed, &commands)?;
        }
        let known = &self.model.headers()[usize::try_from(height).unwrap_or(usize::MAX)].header;
        ensure(*known == signed.header, || {
            format!("two final headers at height {height}: {who} has {:?}, known is {known:?}", signed.header)
        })?;
        Ok(true)
    }

    /// A height that nobody had before: the model executes it as well.
    fn extend(&mut self, who: &str, signed: &SignedHeader, commands: &[SignedCommand]) -> Check {
        let height = signed.header.height;
        let in_force = self.validators().hash();
        ensure(signed.header.validators == in_force, || {
            format!("header {height} of {who} is certified by validators that are not in force")
        })?;
        ensure(signed.header.time_ms > self.model.tip().header.time_ms, || {
            format!("the time of block {height} of {who} is not later than that of the one before")
        })?;
        for command in commands {
            let hash = command.hash();
            ensure(!self.doomed.contains(&hash), || {
                format!("block {height} of {who} has a command that must fail: {:?}", command.body.command)
            })?;
            if let Some(before) = self.commands.insert(hash, height) {
                let reason = format!("command {hash} is final at height {before} and again at {height}");
                return Err(Violation(reason));
            }
        }
        // Panics where an invariant of the state breaks.
        let results = self.model.commit(signed.header.time_ms, commands);
        if let Some(Err(rejection)) = results.iter().find(|result| result.is_err()) {
            return Err(Violation(format!(
                "block {height} of {who} carries a command that fails: {rejection}"
            )));
        }
        let expected = &self.model.tip().header;
        ensure(*expected == signed.header, || {
            format!("block {height} of {who} yields {:?}, in the model {expected:?}", signed.header)
        })?;
        self.finals += commands.len() as u64;
        Ok(())
    }

    /// A submitter was told that its command is final.
    pub(crate) fn acknowledged(&self, command: &Hash, height: u64) -> Check {
        let known = self.commands.get(command);
        ensure(known == Some(&height), || {
            format!("command {command} was called final at height {height}, but is at {known:?}")
        })
    }

    // ---- signatures --------------------------------------------------------------------------------------

    fn note(&mut self, signing: Signing, what: Hash) -> Check {
        if self.liars.contains(&signing.0) {
            return Ok(());
        }
        let before = *self.signed.entry(signing).or_insert(what);
        ensure(before == what, || {
            let (key, height, round, kind) = signing;
            format!(
                "validator {} contradicts itself: {kind:?} at height {height} round {round} is {what}, was {before}",
                key.short()
            )
        })
    }

    fn note_vote(&mut self, vote: &Vote) -> Check {
        let kind = if vote.kind == VoteType::Prevote { Kind::Prevote } else { Kind::Precommit };
        let value = match vote.value {
            NilOrVal::Nil => Hash::ZERO,
            NilOrVal::Val(header) => header,
        };
        self.note((vote.voter.0, vote.height.0, vote.round.as_i64(), kind), value)
    }

    fn note_proposal(&mut self, proposal: &Proposal) -> Check {
        let at = (proposal.proposer.0, proposal.height.0, proposal.round.as_i64(), Kind::Proposal);
        self.note(at, Hash::of("sim/proposal", proposal))
    }

    fn note_certificate(&mut self, signed: &SignedHeader) -> Check {
        let Certificate { height, round, header, signatures } = &signed.certificate;
        for (key, _) in signatures {
            self.note((*key, *height, i64::from(*round), Kind::Precommit), *header)?;
        }
        Ok(())
    }

    /// Looks at what somebody who does not lie says.
    pub(crate) fn hear(&mut self, from: &PublicKey, output: &Output) -> Check {
        let message = match output {
            Output::Evidence(evidence) => return self.check_evidence(evidence),
            Output::Send(_, message) | Output::Broadcast(message) => message,
        };
        match message {
            PeerMessage::Vote(vote) if vote.message.voter.0 == *from => self.note_vote(&vote.message),
            PeerMessage::Proposal(proposal) if proposal.message.proposer.0 == *from => {
                self.note_proposal(&proposal.message)
            }
            // Others repeat what was signed, too, and may know more than their author did after its crash.
            PeerMessage::PolkaCertificate(polka) => self.note_polka(polka),
            PeerMessage::RoundCertificate(round) => self.note_round(round),
            _ => Ok(()),
        }
    }

    fn note_polka(&mut self, polka: &PolkaCertificate) -> Check {
        let (kind, value) = (VoteType::Prevote, NilOrVal::Val(polka.value_id));
        for signature in &polka.polka_signatures {
            let (height, round, voter) = (polka.height, polka.round, signature.address);
            self.note_foreign(&Vote { kind, height, round, value, voter }, &signature.signature)?;
        }
        Ok(())
    }

    fn note_round(&mut self, round: &RoundCertificate) -> Check {
        for signature in &round.round_signatures {
            let (height, voter): (Height, Member) = (round.height, signature.address);
            let (kind, value) = (signature.vote_type, signature.value_id);
            let vote = Vote { kind, height, round: round.round, value, voter };
            self.note_foreign(&vote, &signature.signature)?;
        }
        Ok(())
    }

    fn note_foreign(&mut self, vote: &Vote, signature: &croft_protocol::Signature) -> Check {
        if context::verify_vote(&self.model.chain(), vote, &vote.voter.0, signature) {
            self.note_vote(vote)?;
        }
        Ok(())
    }

    fn check_evidence(&mut self, evidence: &Evidence) -> Check {
        let culprit = evidence.culprit();
        ensure(evidence.holds(&self.model.chain()), || {
            format!("evidence that proves nothing: {evidence:?}")
        })?;
        ensure(self.liars.contains(&culprit), || {
            format!("evidence against {}, who does not lie", culprit.short())
        })?;
        self.evidence += 1;
        Ok(())
    }
}
