//! Proofs against a verified header: what the state map holds or lacks, and what the log carries.

use croft_protocol::api::{ProvedRecord, ProvedValue};
use croft_protocol::{Hash, Record, RecordId, StateKey};
use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
use jmt::KeyHash;
use jmt::proof::SparseMerkleProof;

use crate::tip::{LightError, Tip};

/// A state proof has at most 256 siblings of 65 bytes and a leaf.
const VALUE_PROOF_BYTES: usize = 20 * 1024;
/// A log proof has at most 64 hashes, and one more for consistency.
const LOG_PROOF_BYTES: usize = 65 * 32;
/// Larger logs don't exist; beyond 2^63 the tree's arithmetic overflows.
const LOG_SIZE_MAX: u64 = 1 << 62;

/// The value under a key as of the tip; `None` when it is proved that there is none.
///
/// # Errors
/// [`LightError::Value`] when the proof shows neither.
pub fn verify_value(tip: &Tip, key: &StateKey, proved: &ProvedValue) -> Result<Option<Vec<u8>>, LightError> {
    let wrong =
        |reason: String| LightError::Value { height: tip.height(), key: Box::new(key.clone()), reason };
    let proof: SparseMerkleProof<sha2::Sha256> =
        croft_protocol::decode("state proof", &proved.proof, VALUE_PROOF_BYTES)
            .map_err(|e| wrong(e.to_string()))?;
    let digest = proved.value.as_deref().map(|bytes| Hash::of_bytes(bytes).0);
    proof
        .verify(jmt::RootHash(tip.header().state_root.0), KeyHash(key.hash().0), digest)
        .map_err(|e| wrong(e.to_string()))?;
    Ok(proved.value.clone())
}

/// A record of the log at its position as of the tip.
///
/// # Errors
/// [`LightError::Record`] when the proof does not show it.
pub fn verify_record<'a>(tip: &Tip, proved: &'a ProvedRecord) -> Result<&'a Record, LightError> {
    let wrong = |reason: String| LightError::Record {
        height: tip.height(),
        index: proved.index,
        id: proved.record.id,
        reason,
    };
    let root = log_root(tip).ok_or_else(|| wrong("the log has an impossible size".to_owned()))?;
    if proved.proof.len() > LOG_PROOF_BYTES {
        return Err(wrong(format!("{} bytes are too many", proved.proof.len())));
    }
    let proof = InclusionProof::try_from_bytes(proved.proof.clone()).map_err(|e| wrong(e.to_string()))?;
    let leaf = croft_protocol::encode(&proved.record);
    root.verify_inclusion(&leaf, proved.index, &proof).map_err(|e| wrong(e.to_string()))?;
    Ok(&proved.record)
}

/// Consecutive versions of one thing, oldest first, each in the log and naming the one before it.
///
/// # Errors
/// [`LightError::Record`] names the first that is not.
pub fn verify_history<'a>(
    tip: &Tip,
    id: &RecordId,
    versions: &'a [ProvedRecord],
) -> Result<Vec<&'a Record>, LightError> {
    let mut records: Vec<&Record> = Vec::with_capacity(versions.len());
    for proved in versions {
        let record = verify_record(tip, proved)?;
        let wrong = |reason: &str| LightError::Record {
            height: tip.height(),
            index: proved.index,
            id: record.id,
            reason: reason.to_owned(),
        };
        if record.id != *id {
            return Err(wrong("it is of another thing than was asked for"));
        }
        let follows = records.last().is_none_or(|before| {
            before.version.checked_add(1) == Some(record.version) && record.prev == Some(before.hash())
        });
        if !follows {
            return Err(wrong("it does not supersede the one before it"));
        }
        records.push(record);
    }
    Ok(records)
}

/// Shows that the tip's log begins with a log of `size` records and this root. The proof is empty when that is
/// all of it.
///
/// # Errors
/// [`LightError::Prefix`] when the proof does not show it.
pub fn verify_prefix(tip: &Tip, size: u64, root: &Hash, proof: &[u8]) -> Result<(), LightError> {
    let end = tip.header().log_size;
    let wrong =
        |reason: String| LightError::Prefix { height: tip.height(), size: end, old_size: size, reason };
    if size == end {
        let same = *root == tip.header().log_root && proof.is_empty();
        return if same { Ok(()) } else { Err(wrong("the roots differ".to_owned())) };
    }
    let new = log_root(tip).filter(|_| (1..end).contains(&size));
    let new = new.ok_or_else(|| wrong("a log has an impossible size".to_owned()))?;
    if proof.len() > LOG_PROOF_BYTES {
        return Err(wrong(format!("{} bytes are too many", proof.len())));
    }
    let proof = ConsistencyProof::try_from_bytes(proof.to_vec()).map_err(|e| wrong(e.to_string()))?;
    new.verify_consistency(&RootHash::new(root.0.into(), size), &proof).map_err(|e| wrong(e.to_string()))
}

/// Shows that the newer tip's log begins with all of the older one's.
///
/// # Errors
/// [`LightError::Consistency`] when the proof does not show it.
pub fn verify_consistency(older: &Tip, newer: &Tip, proof: &[u8]) -> Result<(), LightError> {
    let wrong = |reason: String| LightError::Consistency {
        height: newer.height(),
        size: newer.header().log_size,
        old_size: older.header().log_size,
        reason,
    };
    let impossible = || wrong("a log has an impossible size".to_owned());
    let (old, new) = (log_root(older).ok_or_else(impossible)?, log_root(newer).ok_or_else(impossible)?);
    if proof.len() > LOG_PROOF_BYTES {
        return Err(wrong(format!("{} bytes are too many", proof.len())));
    }
    let proof = ConsistencyProof::try_from_bytes(proof.to_vec()).map_err(|e| wrong(e.to_string()))?;
    new.verify_consistency(&old, &proof).map_err(|e| wrong(e.to_string()))
}

fn log_root(tip: &Tip) -> Option<RootHash<sha2_next::Sha256>> {
    let header = tip.header();
    (1..=LOG_SIZE_MAX)
        .contains(&header.log_size)
        .then(|| RootHash::new(header.log_root.0.into(), header.log_size))
}
