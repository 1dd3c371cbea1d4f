//! Which commands this process has found to be signed: admission, proposals and execution ask for the same ones.
//!
//! It must never remember what it did not compute. A command is known by the hash of all its bytes, its signature too.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use croft_protocol::{Hash, SignedCommand, limits};

/// Twice what may wait: about 2 MiB.
const REMEMBERED: usize = 20 * limits::COMMANDS_PER_BLOCK;
/// Signatures that are checked together: more gain little, and one wrong one costs all of them.
const BATCH: usize = 128;
/// Fewer are checked faster one by one.
const WORTHWHILE: usize = 4;

#[derive(Debug, Default)]
struct Known {
    hashes: BTreeSet<Hash>,
    /// The same, the oldest first.
    order: VecDeque<Hash>,
}

#[derive(Debug, Default)]
pub(super) struct Signatures(Mutex<Known>);

impl Signatures {
    /// Whether the command's author signed it; computed once.
    pub(super) fn holds(&self, command: &SignedCommand) -> bool {
        let hash = command.hash();
        if self.knows(&hash) {
            return true;
        }
        let holds = command.verify().is_ok();
        if holds {
            self.remember(hash);
        }
        holds
    }

    /// Looks at many together, so that [`Self::holds`] knows them afterwards. Of a batch in which one is wrong it learns
    /// nothing: then each is computed when it is asked for.
    pub(super) fn learn(&self, commands: &[SignedCommand]) {
        let mut unknown: Vec<(Hash, &SignedCommand)> = {
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let hashed = commands.iter().map(|command| (command.hash(), command));
            hashed.filter(|(hash, _)| !known.hashes.contains(hash)).collect()
        };
        unknown.dedup_by_key(|(hash, _)| *hash);
        for batch in unknown.chunks(BATCH) {
            if batch.len() < WORTHWHILE {
                break;
            }
            let together: Vec<&SignedCommand> = batch.iter().map(|(_, command)| *command).collect();
            if SignedCommand::all_verify(&together) {
                for (hash, _) in batch {
                    self.remember(*hash);
                }
            }
        }
    }

    fn knows(&self, hash: &Hash) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).hashes.contains(hash)
    }

    fn remember(&self, hash: Hash) {
        let known = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.hashes.insert(hash) {
            known.order.push_back(hash);
        }
        if known.order.len() > REMEMBERED
            && let Some(oldest) = known.order.pop_front()
        {
            known.hashes.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use croft_protocol::{ChainId, Command, CommandBody, ContractId, SecretKey};

    use super::*;

    fn command(sequence: u64) -> SignedCommand {
        let key = SecretKey::from_seed(&[1; 32]);
        let command = Command::Settle { contract: ContractId(Hash::ZERO) };
        let (chain, author) = (ChainId(Hash::ZERO), key.public());
        SignedCommand::sign(CommandBody { chain, author, sequence, expires_height: 9, command }, &key)
    }

    #[test]
    fn what_is_signed_is_known_and_what_differs_in_a_bit_is_not() {
        let (signatures, signed) = (Signatures::default(), command(1));
        assert!(signatures.holds(&signed) && signatures.knows(&signed.hash()));
        let (mut other_signature, mut other_body) = (signed.clone(), signed);
        other_signature.signature.0[9] ^= 1;
        other_body.body.sequence += 1;
        for forged in [other_signature, other_body] {
            assert!(!signatures.holds(&forged) && !signatures.knows(&forged.hash()));
        }
    }

    #[test]
    fn of_many_the_good_batches_are_learnt_and_nothing_of_a_bad_one() {
        let signatures = Signatures::default();
        let mut commands: Vec<SignedCommand> = (0..2 * BATCH as u64 + 2).map(command).collect();
        commands[BATCH + 5].signature.0[3] ^= 1;
        signatures.learn(&commands);
        let known = |range: std::ops::Range<usize>| {
            commands[range].iter().filter(|command| signatures.knows(&command.hash())).count()
        };
        assert_eq!((known(0..BATCH), known(BATCH..2 * BATCH)), (BATCH, 0));
        // Two are left for later: alone they are cheaper.
        assert_eq!(known(2 * BATCH..2 * BATCH + 2), 0);
        assert!(!signatures.holds(&commands[BATCH + 5]) && signatures.holds(&commands[BATCH + 6]));
        signatures.learn(&commands);
        assert_eq!(known(0..BATCH), BATCH);
    }

    #[test]
    fn the_oldest_are_forgotten_and_then_computed_again() {
        let (signatures, first) = (Signatures::default(), command(1));
        assert!(signatures.holds(&first));
        for number in 0..REMEMBERED as u64 {
            signatures.remember(Hash::of("test", &number));
        }
        assert!(!signatures.knows(&first.hash()));
        let known = signatures.0.lock().unwrap();
        assert_eq!((known.hashes.len(), known.order.len()), (REMEMBERED, REMEMBERED));
        drop(known);
        assert!(signatures.holds(&first) && signatures.knows(&first.hash()));
    }
}
