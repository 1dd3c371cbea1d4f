//! The dm-verity hash tree of an image (kernel documentation, `admin-guide/device-mapper/verity.rst`):
//! format 1, SHA-256, 4096-byte blocks of data and hashes, salt before the block, no superblock.
//!
//! ```text
//!   data blocks | level n (one block) | ... | level 1 | level 0
//! ```
//! Level 0 holds the hashes of the data, each level above those of the level below, 128 to a block; the root
//! hash is that of the only block of the top level. The tree is built level by level through the file, so
//! that memory stays the same whatever the image's size.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use croft_protocol::Hash;
use croft_protocol::image::{BLOCK_BYTES, Verity};
use sha2::{Digest as _, Sha256};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Hashes in one block.
const FANOUT: u64 = BLOCK_BYTES / 32;
/// Blocks that are read at once.
const BATCH: usize = 256;

/// Where one level of the tree stands, in blocks from the start of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    first: u64,
    count: u64,
}

/// The levels above `data_blocks` blocks, level 0 first.
fn levels(data_blocks: u64) -> Vec<Level> {
    let mut counts = Vec::new();
    let mut count = data_blocks;
    while count > 1 {
        count = count.div_ceil(FANOUT);
        counts.push(count);
    }
    // On disk the top comes first.
    let mut first = data_blocks;
    let mut levels: Vec<Level> = counts
        .iter()
        .rev()
        .map(|&count| {
            let level = Level { first, count };
            first += count;
            level
        })
        .collect();
    levels.reverse();
    levels
}

/// Pads a file to whole blocks, at least two, and appends the tree. Returns its parameters and the new
/// length of the file in bytes.
pub(crate) fn append_tree(
    file: &File,
    salt: [u8; 32],
    progress: &mut dyn FnMut(u64),
) -> io::Result<(Verity, u64)> {
    let data_blocks = file.metadata()?.len().div_ceil(BLOCK_BYTES).max(2);
    file.set_len(data_blocks * BLOCK_BYTES)?;
    let mut below = Level { first: 0, count: data_blocks };
    let mut end = data_blocks;
    for level in levels(data_blocks) {
        hash_level(file, below, level, &salt, progress)?;
        end = end.max(level.first + level.count);
        below = level;
    }
    let mut top = [0; BLOCK];
    file.read_exact_at(&mut top, below.first * BLOCK_BYTES)?;
    let root = hash_block(&salt, &top);
    Ok((Verity { data_blocks, root, salt }, end * BLOCK_BYTES))
}

/// Writes the hashes of all blocks of one level into the next.
fn hash_level(
    file: &File,
    from: Level,
    to: Level,
    salt: &[u8; 32],
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut data = vec![0; BATCH * BLOCK];
    let mut hashes: Vec<u8> = Vec::with_capacity(BLOCK);
    let mut written = 0;
    let mut flush = |hashes: &mut Vec<u8>| {
        hashes.resize(BLOCK, 0);
        file.write_all_at(hashes, (to.first + written) * BLOCK_BYTES)?;
        written += 1;
        hashes.clear();
        io::Result::Ok(())
    };
    let mut done = 0;
    while done < from.count {
        let blocks = (from.count - done).min(BATCH as u64);
        let data = &mut data[..blocks as usize * BLOCK];
        file.read_exact_at(data, (from.first + done) * BLOCK_BYTES)?;
        for block in data.chunks_exact(BLOCK) {
            hashes.extend_from_slice(&hash_block(salt, block).0);
            if hashes.len() == BLOCK {
                flush(&mut hashes)?;
            }
        }
        done += blocks;
        progress(data.len() as u64);
    }
    if !hashes.is_empty() {
        flush(&mut hashes)?;
    }
    assert_eq!(written, to.count, "a level has as many blocks as were laid out for it");
    Ok(())
}

fn hash_block(salt: &[u8; 32], block: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(salt);
    hasher.update(block);
    Hash(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{have_tool, run_tool};

    #[test]
    fn levels_are_laid_out_top_first() {
        assert_eq!(levels(2), [Level { first: 2, count: 1 }]);
        assert_eq!(levels(128), [Level { first: 128, count: 1 }]);
        assert_eq!(levels(129), [Level { first: 130, count: 2 }, Level { first: 129, count: 1 }]);
        let three = levels(128 * 128 + 1);
        assert_eq!(three.iter().map(|l| l.count).collect::<Vec<_>>(), [129, 2, 1]);
        assert_eq!(three[2].first, 128 * 128 + 1);
        assert_eq!(three[0].first, 128 * 128 + 1 + 1 + 2);
    }

    /// A file of so many blocks, each different.
    fn image(blocks: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        for i in 0..blocks {
            let mut block = [0x5a; BLOCK];
            block[..8].copy_from_slice(&i.to_le_bytes());
            file.as_file().write_all_at(&block, i * BLOCK_BYTES).unwrap();
        }
        file
    }

    #[test]
    fn veritysetup_accepts_the_tree_and_notices_a_flipped_bit() {
        if !have_tool("veritysetup") {
            return;
        }
        let salt = [0xab; 32];
        // One level, two levels with a ragged end, three levels.
        for blocks in [2, 100, 129, 1000, 128 * 128 + 3] {
            let file = image(blocks);
            let (verity, len) = append_tree(file.as_file(), salt, &mut |_| {}).unwrap();
            assert_eq!(file.as_file().metadata().unwrap().len(), len);
            let path = file.path().to_str().unwrap();
            let verify = || {
                run_tool(
                    "veritysetup",
                    &[
                        "verify",
                        "--no-superblock",
                        &format!("--hash-offset={}", verity.data_blocks * BLOCK_BYTES),
                        &format!("--data-blocks={}", verity.data_blocks),
                        "--data-block-size=4096",
                        "--hash-block-size=4096",
                        "--hash=sha256",
                        &format!("--salt={}", hex::encode(verity.salt)),
                        path,
                        path,
                        &verity.root.to_string(),
                    ],
                )
            };
            verify().unwrap_or_else(|e| panic!("{blocks} blocks: {e}"));
            file.as_file().write_all_at(b"!", BLOCK_BYTES + 17).unwrap();
            verify().expect_err("a flipped bit must be noticed");
        }
    }

    #[test]
    fn a_short_file_is_padded_to_two_blocks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(b"x", 0).unwrap();
        let (verity, len) = append_tree(file.as_file(), [0; 32], &mut |_| {}).unwrap();
        assert_eq!((verity.data_blocks, len), (2, 3 * BLOCK_BYTES));
    }
}
