//! The commands of each block as they lie on the disk: what replicas that were away execute again.
//!
//! An entry is one byte that says how it is packed, then the encoded list. It must never take more memory than a
//! block may have, whatever the file says.

use croft_protocol::{SignedCommand, encode, limits};

use super::StoreError;
use super::snapshot::decoded;

/// A list of commands: what a block may hold, and its length.
const LIST_BYTES: usize = limits::BLOCK_BYTES + 4;
/// Lists below this size gain nothing from being packed.
const SMALL_BYTES: usize = 256;
/// The fastest level: keys and signatures don't shrink whatever one tries.
const LEVEL: i32 = 1;

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// Packs the commands of a block.
///
/// # Errors
/// [`StoreError::Unfit`]: they are more than a block may have.
pub(super) fn packed(commands: &[SignedCommand]) -> Result<Vec<u8>, StoreError> {
    let count = commands.len();
    let list = encode(commands);
    if count > limits::COMMANDS_PER_BLOCK || list.len() > LIST_BYTES {
        let what = format!("it has {count} commands of {} bytes", list.len());
        return Err(StoreError::Unfit { what });
    }
    let small = if list.len() < SMALL_BYTES { None } else { zstd::bulk::compress(&list, LEVEL).ok() };
    Ok(match small.filter(|small| small.len() < list.len()) {
        Some(small) => [&[ZSTD], &small[..]].concat(),
        None => [&[PLAIN], &list[..]].concat(),
    })
}

/// The commands of the block at a height.
///
/// # Errors
/// [`StoreError::Damaged`] names the height.
pub(super) fn unpacked(height: u64, bytes: &[u8]) -> Result<Vec<SignedCommand>, StoreError> {
    let what = format!("the list of commands of block {height}");
    let damaged = |reason: &str| StoreError::damaged(format!("{what} {reason}"));
    let (packing, rest) = bytes.split_first().ok_or_else(|| damaged("is empty"))?;
    let list = match *packing {
        PLAIN => rest.to_vec(),
        // Refused as soon as it would be larger than the limit.
        ZSTD => zstd::bulk::decompress(rest, LIST_BYTES)
            .map_err(|error| damaged(&format!("can't be unpacked: {error}")))?,
        packing => return Err(damaged(&format!("is packed in an unknown way, {packing}"))),
    };
    if list.len() > LIST_BYTES {
        return Err(damaged(&format!("has {} bytes", list.len())));
    }
    let commands: Vec<SignedCommand> = decoded(&what, &list)?;
    if commands.len() > limits::COMMANDS_PER_BLOCK {
        return Err(damaged(&format!("has {} entries", commands.len())));
    }
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Grid;

    #[test]
    fn commands_come_back_as_they_were_and_damage_is_named() {
        let grid = Grid::new();
        let (store, _) = grid.store();
        let many: Vec<_> =
            (0..50).map(|i| grid.sign(&store.latest(), &grid.user, i, grid.pay(i + 1))).collect();
        let small = packed(&many).unwrap();
        assert!(small.len() < encode(&many).len(), "transfers of one author shrink");
        assert_eq!(unpacked(7, &small).unwrap(), many);
        assert_eq!(unpacked(7, &packed(&[]).unwrap()).unwrap(), []);
        assert_eq!(unpacked(7, &packed(&many[..1]).unwrap()).unwrap(), many[..1]);
        for (bytes, says) in [
            (vec![], "the list of commands of block 7 is empty"),
            (vec![9, 0], "the list of commands of block 7 is packed in an unknown way, 9"),
            (vec![PLAIN, 1, 0, 0, 0], "the list of commands of block 7 can't be decoded"),
            (vec![ZSTD, 1, 2, 3], "the list of commands of block 7 can't be unpacked"),
        ] {
            let error = unpacked(7, &bytes).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_list_that_unpacks_to_more_than_a_block_is_refused_before_it_takes_the_memory() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let error = unpacked(3, &[&[ZSTD], &bomb[..]].concat()).unwrap_err().to_string();
        assert!(error.contains("the list of commands of block 3 can't be unpacked"), "{error}");
    }

    #[test]
    fn a_block_with_too_many_commands_is_refused() {
        let grid = Grid::new();
        let (store, _) = grid.store();
        let one = grid.sign(&store.latest(), &grid.user, 0, grid.pay(1));
        let error = packed(&vec![one; limits::COMMANDS_PER_BLOCK + 1]).unwrap_err().to_string();
        assert!(
            error.starts_with("the block does not follow the stored one: it has 1001 commands"),
            "{error}"
        );
    }
}
