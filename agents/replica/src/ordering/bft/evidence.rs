//! Proof that a validator broke its word: two of its signatures that no honest one gives.

use std::path::{Path, PathBuf};

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::{ChainId, PublicKey};

use super::context::{self, Grid, Proposal, Vote};
use super::message::Signed;

/// Name of the folder of evidence in a replica's data folder.
pub const DIR: &str = "evidence";
/// Files that are kept: who lies much needs no more proofs.
const KEPT: usize = 256;

/// Two contradicting messages of one validator at one height and round.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Evidence {
    Votes(Signed<Vote>, Signed<Vote>),
    Proposals(Signed<Proposal>, Signed<Proposal>),
}

impl Evidence {
    /// What the engine found at one height.
    #[must_use]
    pub fn of(found: malachite::MisbehaviorEvidence<Grid>) -> Vec<Self> {
        let votes = found.votes.into_iter().flat_map(|(_, pairs)| pairs);
        let votes = votes.map(|(a, b)| Self::Votes(a.into(), b.into()));
        let proposals: Vec<_> = found
            .proposals
            .iter()
            .flat_map(|(_, pairs)| pairs)
            .map(|(a, b)| Self::Proposals(a.clone().into(), b.clone().into()))
            .collect();
        votes.chain(proposals).collect()
    }

    /// Who did it.
    #[must_use]
    pub fn culprit(&self) -> PublicKey {
        match self {
            Self::Votes(vote, _) => vote.message.voter.0,
            Self::Proposals(proposal, _) => proposal.message.proposer.0,
        }
    }

    #[must_use]
    pub fn height(&self) -> u64 {
        match self {
            Self::Votes(vote, _) => vote.message.height.0,
            Self::Proposals(proposal, _) => proposal.message.height.0,
        }
    }

    /// Whether it proves what it claims.
    #[must_use]
    pub fn holds(&self, chain: &ChainId) -> bool {
        match self {
            Self::Votes(a, b) => {
                let (x, y) = (&a.message, &b.message);
                (x.height, x.round, x.kind, x.voter) == (y.height, y.round, y.kind, y.voter)
                    && x.value != y.value
                    && [a, b]
                        .iter()
                        .all(|s| context::verify_vote(chain, &s.message, &s.message.voter.0, &s.signature))
            }
            Self::Proposals(a, b) => {
                let (x, y) = (&a.message, &b.message);
                (x.height, x.round, x.proposer) == (y.height, y.round, y.proposer)
                    && x != y
                    && [a, b].iter().all(|s| {
                        context::verify_proposal(chain, &s.message, &s.message.proposer.0, &s.signature)
                    })
            }
        }
    }

    /// Keeps it in a replica's data folder, unless there is plenty already.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn keep(&self, dir: &Path) -> std::io::Result<Option<PathBuf>> {
        let dir = dir.join(DIR);
        std::fs::create_dir_all(&dir)?;
        if std::fs::read_dir(&dir)?.count() >= KEPT {
            return Ok(None);
        }
        let bytes = croft_protocol::encode(self);
        let hash = croft_protocol::Hash::of_bytes(&bytes);
        let path = dir.join(format!("{}-{}-{}", self.height(), self.culprit().short(), hash.short()));
        std::fs::write(&path, bytes)?;
        Ok(Some(path))
    }
}
