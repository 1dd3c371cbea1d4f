//! Whose node this machine is: kept on the data disk from its first registration on.
//!
//! A medium or a boot server says to which grid and farm a machine belongs, and a fresh machine has to believe it. One that
//! has joined does not: another grid's validators, or another owner's farm, would end its contracts and delete their data.
//! It must never go on with an addition of another owner, and never forget the first one by itself.

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::{ChainId, DecodeError, PublicKey};
use croft_storage::data::Data;
use croft_storage::documents::{Documents, GetDocumentError, OpenDocumentsError};

use crate::ledger::chain_of;

const DOCUMENT: &str = "owner";
const BYTES: usize = 1024;

/// What an addition is signed for, and by whose bot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Owner {
    pub chain: ChainId,
    pub bot: PublicKey,
}

#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error("whose node this machine is can't be looked up")]
    Open(#[from] OpenDocumentsError),
    #[error("whose node this machine is can't be read")]
    Read(#[from] GetDocumentError),
    #[error(
        "what the data disk says of this machine's owner is damaged: take the disk out and wipe it in another machine to begin anew"
    )]
    Damaged(#[from] DecodeError),
    #[error(
        "this machine is a node of bot {} on chain {}, and the farm's addition is of bot {} for chain {}: take out that medium, or stop that server; to give the machine to another farm, take its data disk out and wipe it in another machine",
        kept.bot.short(), kept.chain.0.short(), found.bot.short(), found.chain.0.short()
    )]
    Other { kept: Box<Owner>, found: Box<Owner> },
}

/// See the module.
pub struct Membership {
    documents: Documents,
    kept: Option<Owner>,
    found: Option<Owner>,
}

impl Membership {
    /// `found` is the addition's owner; none where the image itself has the boot configuration, which is as trusted as the
    /// image.
    ///
    /// # Errors
    /// [`MembershipError`]: then nothing of the addition may be believed.
    pub fn open(data: &Data, found: Option<Owner>) -> Result<Self, MembershipError> {
        Self::open_on(Documents::open(&data.folder("membership"))?, found)
    }

    fn open_on(documents: Documents, found: Option<Owner>) -> Result<Self, MembershipError> {
        let bytes = documents.get(DOCUMENT)?;
        let decode = |bytes: Vec<u8>| croft_protocol::decode("owner of this machine", &bytes, BYTES);
        let kept: Option<Owner> = bytes.map(decode).transpose()?;
        match (kept, found) {
            (Some(kept), Some(found)) if kept != found => {
                Err(MembershipError::Other { kept: Box::new(kept), found: Box::new(found) })
            }
            _ => Ok(Self { documents, kept, found }),
        }
    }

    /// The ledger has taken this node: from now on it belongs to who it joined.
    pub fn joined(&mut self) {
        let Some(found) = self.found.filter(|_| self.kept.is_none()) else { return };
        match self.documents.put(DOCUMENT, &croft_protocol::encode(&found)) {
            Ok(()) => self.kept = Some(found),
            Err(error) => {
                tracing::warn!(error = %chain_of(&error), "the data disk does not know yet whose node this is");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use croft_protocol::{Hash, SecretKey};

    use super::*;

    fn owner(chain: u8, bot: u8) -> Owner {
        Owner { chain: ChainId(Hash([chain; 32])), bot: SecretKey::from_seed(&[bot; 32]).public() }
    }

    fn open(dir: &Path, found: Option<Owner>) -> Result<Membership, MembershipError> {
        Membership::open_on(Documents::open(dir).unwrap(), found)
    }

    #[test]
    fn a_machine_that_joined_takes_no_other_owners_addition_and_one_that_did_not_takes_any() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), Some(owner(1, 9))).unwrap();
        open(dir.path(), Some(owner(1, 1))).unwrap().joined();
        open(dir.path(), Some(owner(1, 1))).unwrap().joined();
        for (chain, bot) in [(1, 2), (2, 1)] {
            let error = open(dir.path(), Some(owner(chain, bot))).err().unwrap().to_string();
            let (one, other) = (owner(1, 1), owner(chain, bot));
            let expected = format!(
                "this machine is a node of bot {} on chain {}, and the farm's addition is of bot {} for chain {}: take out",
                one.bot.short(),
                one.chain.0.short(),
                other.bot.short(),
                other.chain.0.short()
            );
            assert!(error.starts_with(&expected), "{error}");
            assert!(error.ends_with("to give the machine to another farm, take its data disk out and wipe it in another machine"), "{error}");
        }
        // What the image itself says needs no addition, and makes nobody the owner.
        open(dir.path(), None).unwrap().joined();
        assert!(open(dir.path(), Some(owner(1, 2))).is_err());
    }

    #[test]
    fn a_damaged_word_on_the_owner_is_no_reason_to_take_another() {
        let dir = tempfile::tempdir().unwrap();
        Documents::open(dir.path()).unwrap().put(DOCUMENT, &[1, 2, 3]).unwrap();
        let error = open(dir.path(), Some(owner(1, 2))).err().unwrap();
        assert!(matches!(error, MembershipError::Damaged(_)), "{error}");
    }
}
