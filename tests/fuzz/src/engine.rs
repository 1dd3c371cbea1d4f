//! Runs a target on its seeds, on what once broke it, and on altered copies of both.
//!
//! ```text
//!   seeds, regressions ──run──> every one of them must hold
//!          └──mutate (numbers from a seed)──> as many inputs as asked for ──run──> the first that fails, made small
//! ```
//! It must never draw numbers from the machine nor stop by the clock: the same binary runs the same inputs everywhere.
//!
//! Why not `bolero`, `proptest` or `quickcheck`: their inputs are random values, and a decoder refuses nearly all random
//! bytes at the first field. Outside of a nightly fuzzer none of them alters a corpus; `bolero` also takes its seeds from
//! the machine and stops after a second. Targets are plain functions, so that libFuzzer and AFL drive them too.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Target;

/// No input becomes longer: what a target takes is bounded by its own limit, not by ours.
const INPUT_BYTES: usize = 64 * 1024;
/// Tries to make a failing input smaller. Each is one run.
const SHRINK_RUNS: usize = 2_000;

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same for ever.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// Numbers that belong to a name: a new target changes nobody else's.
    #[must_use]
    pub fn of(name: &str, seed: u64) -> Self {
        let name = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(name ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`; 0 where there is nothing below it.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next_u64() % end as u64) as usize }
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A stretch of bytes, empty where there are none.
    fn stretch(&mut self, bytes: usize) -> std::ops::Range<usize> {
        let start = self.below(bytes);
        let longest = (bytes - start).min(1 + self.below(64));
        start..start + self.below(longest + 1)
    }
}

/// Lengths, counts and tags that decoders trip over.
const BYTES: [u8; 9] = [0, 1, 2, 0x20, 0x7f, 0x80, 0xc0, 0xfe, 0xff];
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    i64::MAX as u64,
    u64::MAX - 1,
    u64::MAX,
];
/// What parsers of text trip over.
const WORDS: [&str; 18] = [
    "-1",
    "+1",
    "0",
    "1e9",
    "18446744073709551616",
    "99999999999999999999999",
    "\"",
    "'",
    "[",
    "{",
    "=",
    "\n",
    "\0",
    "..",
    "/",
    "é",
    "\u{202e}",
    " ",
];

/// An altered copy of a seed: one to four changes, now and then with a piece of another seed.
#[must_use]
pub fn mutate(numbers: &mut Numbers, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = numbers.pick(seeds).clone();
    for _ in 0..=numbers.below(4) {
        change(numbers, &mut bytes, seeds);
    }
    bytes.truncate(INPUT_BYTES);
    bytes
}

fn change(numbers: &mut Numbers, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let at = numbers.below(bytes.len());
    match numbers.below(13) {
        0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << numbers.below(8),
        2 if !bytes.is_empty() => bytes[at] = *numbers.pick(&BYTES),
        3 if !bytes.is_empty() => bytes[at] = numbers.next_u64() as u8,
        4 => overwrite(bytes, at, &(*numbers.pick(&NUMBERS) as u32).to_le_bytes()),
        5 => overwrite(bytes, at, &numbers.pick(&NUMBERS).to_le_bytes()),
        6 => overwrite(bytes, at, &(*numbers.pick(&NUMBERS) as u32).to_be_bytes()),
        7 => bytes.truncate(at),
        8 => drop(bytes.drain(numbers.stretch(bytes.len()))),
        9 => {
            let piece = bytes[numbers.stretch(bytes.len())].to_vec();
            insert(bytes, at, &piece);
        }
        10 => {
            let other = numbers.pick(seeds);
            let piece = other[numbers.stretch(other.len())].to_vec();
            insert(bytes, at, &piece);
        }
        11 => insert(bytes, at, numbers.pick(&WORDS).as_bytes()),
        _ => {
            for _ in 0..=numbers.below(16) {
                bytes.push(numbers.next_u64() as u8);
            }
        }
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    for (byte, with) in bytes.iter_mut().skip(at).zip(with) {
        *byte = *with;
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    drop(bytes.splice(at..at, piece.iter().copied()));
}

/// An input that breaks a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "target {target} fails for {} bytes ({reason}); after the fix keep them: printf {} | xxd -r -p > regressions/{target}/NAME",
    input.len(),
    hex::encode(input)
)]
pub struct Finding {
    pub target: &'static str,
    pub input: Vec<u8>,
    pub reason: String,
}

/// Runs every input that is given, then `rounds` altered ones.
///
/// # Errors
/// [`Finding`]: the first input that breaks the target, made as small as it could be.
pub fn fuzz(target: &Target, inputs: &[Vec<u8>], rounds: usize, seed: u64) -> Result<(), Box<Finding>> {
    for input in inputs {
        run(target, input)?;
    }
    let mut numbers = Numbers::of(target.name, seed);
    for _ in 0..rounds {
        let input = mutate(&mut numbers, inputs);
        if let Err(finding) = run(target, &input) {
            return Err(Box::new(smaller(target, *finding, &mut numbers)));
        }
    }
    Ok(())
}

/// Runs one input.
///
/// # Errors
/// [`Finding`] when the target panics: a property does not hold, or the decoder itself broke.
pub fn run(target: &Target, input: &[u8]) -> Result<(), Box<Finding>> {
    // Targets keep nothing between runs but what they computed once, which no input changes.
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "it panics".to_owned());
        Box::new(Finding { target: target.name, input: input.to_vec(), reason })
    })
}

/// Leaves out what the failure does not need.
fn smaller(target: &Target, mut finding: Finding, numbers: &mut Numbers) -> Finding {
    // Each try that still fails would print its panic.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for _ in 0..SHRINK_RUNS {
        let mut input = finding.input.clone();
        let range = numbers.stretch(input.len());
        if numbers.below(4) == 0 {
            input.truncate(range.start);
        } else {
            drop(input.drain(range));
        }
        if input.len() < finding.input.len()
            && let Err(found) = run(target, &input)
        {
            finding = *found;
        }
    }
    std::panic::set_hook(hook);
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(run: fn(&[u8])) -> Target {
        Target {
            name: "trial",
            decodes: "a trial",
            sent_by: "us",
            files: &[],
            seeds: || vec![("one".to_owned(), b"0123456789abcdef".to_vec())],
            rounds: 500,
            run,
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_inputs_and_another_makes_others() {
        let seeds = vec![b"0123456789".to_vec(), b"abc".to_vec()];
        let made = |seed| {
            let mut numbers = Numbers::of("x", seed);
            (0..200).map(|_| mutate(&mut numbers, &seeds)).collect::<Vec<_>>()
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
        let distinct: std::collections::BTreeSet<_> = made(1).into_iter().collect();
        assert!(distinct.len() > 150, "{}", distinct.len());
    }

    #[test]
    fn a_broken_target_is_found_named_and_its_input_made_small() {
        let target = target(|bytes| assert!(!bytes.contains(&0xff), "there is a 255"));
        let inputs: Vec<_> = (target.seeds)().into_iter().map(|(_, bytes)| bytes).collect();
        let found = fuzz(&target, &inputs, target.rounds, 0).unwrap_err();
        assert_eq!(found.input, [0xff]);
        assert_eq!(
            found.to_string(),
            "target trial fails for 1 bytes (there is a 255); after the fix keep them: printf ff | xxd -r -p > regressions/trial/NAME"
        );
    }

    #[test]
    fn a_target_that_holds_passes() {
        let target = target(|bytes| assert!(bytes.len() <= INPUT_BYTES));
        let inputs = vec![vec![7; INPUT_BYTES]];
        fuzz(&target, &inputs, 300, 0).unwrap();
    }
}
