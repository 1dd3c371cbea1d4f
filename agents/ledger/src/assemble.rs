//! Headers: one way to make them, for replicas and tests alike.

use croft_protocol::{
    Body, Certificate, Genesis, Hash, Header, PublicKey, SecretKey, Signature, SignedHeader, ValidatorSet,
};

use crate::block::{BlockContext, BlockOutcome};
use crate::log_tree::{self, LogNodes, LogUpdate};
use crate::state::StateError;
use crate::state_map::{self, MapHead, MapNodes, MapUpdate};

/// A header and the nodes that its two roots stand on. To be stored with the block's outcome as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    pub header: Header,
    pub log: LogUpdate,
    /// Its head must be remembered: a header knows the root but not the map's version.
    pub map: MapUpdate,
}

/// What comes before a block.
#[derive(Debug, Clone, Copy)]
pub enum Before<'a> {
    /// Nothing: the block is the genesis.
    Genesis(&'a Genesis),
    Header {
        header: &'a Header,
        map: MapHead,
    },
}

/// Makes the header of a block from what its execution yielded.
///
/// # Errors
/// [`StateError`] when a store fails or lacks a node, and when chain, height or time don't follow the
/// previous header.
pub fn assemble(
    before: Before<'_>,
    ctx: BlockContext,
    outcome: &BlockOutcome,
    log: &dyn LogNodes,
    map: &dyn MapNodes,
) -> Result<Assembled, StateError> {
    let (prev, log_size, map_head, validators) = match before {
        Before::Genesis(genesis) => {
            if ctx != BlockContext::genesis(genesis) {
                return Err(StateError::broken(format_args!("{ctx:?} is that of the genesis block")));
            }
            (Hash::ZERO, 0, MapHead::EMPTY, genesis.validators.hash())
        }
        Before::Header { header, map } => {
            check_follows(header, ctx, map)?;
            (header.hash(), header.log_size, map, header.next_validators)
        }
    };
    let leaves: Vec<_> = outcome.records.iter().map(croft_protocol::encode).collect();
    let log = log_tree::append(log, log_size, leaves.iter().map(Vec::as_slice))?;
    let map = state_map::update(map, map_head, &outcome.writes)?;
    // A new set certifies from the next block on.
    let next_validators = outcome
        .records
        .iter()
        .rev()
        .find_map(|record| match &record.body {
            Body::Validators(set) => Some(set.hash()),
            _ => None,
        })
        .unwrap_or(validators);
    let header = Header {
        chain: ctx.chain,
        height: ctx.height,
        time_ms: ctx.time_ms,
        prev,
        log_root: log.head.root,
        log_size: log.head.size,
        state_root: map.head.root,
        validators,
        next_validators,
    };
    Ok(Assembled { header, log, map })
}

fn check_follows(prev: &Header, ctx: BlockContext, map: MapHead) -> Result<(), StateError> {
    if ctx.chain != prev.chain || prev.height.checked_add(1) != Some(ctx.height) {
        return Err(StateError::broken(format_args!("block {} follows block {}", ctx.height, prev.height)));
    }
    if ctx.time_ms <= prev.time_ms {
        return Err(StateError::broken(format_args!(
            "the time of block {}, {} ms, is greater than that of the previous one, {} ms",
            ctx.height, ctx.time_ms, prev.time_ms
        )));
    }
    if ctx.prev != prev.hash() || ctx.prev_ms != prev.time_ms {
        return Err(StateError::broken(format_args!("block {} names the header before it", ctx.height)));
    }
    if map.root != prev.state_root {
        return Err(StateError::broken(format_args!("the state map is that of block {}", prev.height)));
    }
    Ok(())
}

/// Certifies a header with keys of validators.
#[must_use]
pub fn certify(header: Header, round: u32, validators: ValidatorSet, keys: &[SecretKey]) -> SignedHeader {
    let hash = header.hash();
    let sign = |key: &SecretKey| Certificate::sign(key, &header.chain, header.height, round, &hash);
    let signatures = keys.iter().map(|key| (key.public(), sign(key))).collect();
    with_signatures(header, round, validators, signatures)
}

/// Puts signatures that validators made elsewhere in order around a header.
#[must_use]
pub fn with_signatures(
    header: Header,
    round: u32,
    validators: ValidatorSet,
    mut signatures: Vec<(PublicKey, Signature)>,
) -> SignedHeader {
    signatures.sort_unstable();
    signatures.dedup_by_key(|(key, _)| *key);
    let certificate = Certificate { height: header.height, round, header: header.hash(), signatures };
    SignedHeader { header, certificate, validators }
}

#[cfg(test)]
mod tests;
