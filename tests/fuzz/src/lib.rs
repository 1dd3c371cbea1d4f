//! Fuzz targets: every decoder of what comes from outside, in one table, with what it must hold.
//!
//! ```text
//!   Target { seeds, run } ──corpus──> corpus/TARGET/*       real values, made anew by `croft-fuzz corpus`
//!          │                          regressions/TARGET/*  what once broke it
//!          └──engine──> the same altered copies in every run of the tests
//!                 └──── libFuzzer, AFL: libfuzzer/, `croft-fuzz run TARGET FILE`
//! ```
//! A target is a plain function over bytes that panics when a property does not hold. Beyond "does not panic" that is:
//! one encoding per value, memory that the input pays for, messages of bounded length, nothing believed that was not
//! signed or proved. No target may read the clock, the network, or anything but its input.
//!
//! Whoever adds a decoder adds a row here: `tests/table.rs` finds it in the source and fails until it is listed as a
//! target's or as [`elsewhere`].

pub mod check;
pub mod corpus;
pub mod elsewhere;
pub mod engine;
pub mod scene;
pub mod targets;

/// Bytes with a name, for a file of the corpus.
pub type Seed = (String, Vec<u8>);

/// One decoder, or some that read the same bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Of its corpus folder: letters, digits, `-`.
    pub name: &'static str,
    /// What the bytes are.
    pub decodes: &'static str,
    /// Who chooses them.
    pub sent_by: &'static str,
    /// Where the decoder is, relative to the workspace.
    pub files: &'static [&'static str],
    /// Real values. Always the same ones.
    pub seeds: fn() -> Vec<Seed>,
    /// Altered inputs per run of the tests: fewer where one costs a signature or files.
    pub rounds: usize,
    /// Panics when a property does not hold.
    pub run: fn(&[u8]),
}

/// Every target, by name.
#[must_use]
pub fn all() -> Vec<Target> {
    let mut all: Vec<Target> = [
        targets::protocol::TARGETS,
        targets::texts::TARGETS,
        targets::light::TARGETS,
        targets::transport::TARGETS,
        targets::replica::TARGETS,
        targets::attest::TARGETS,
        targets::bot::TARGETS,
        targets::guest::TARGETS,
        targets::network::TARGETS,
        targets::netboot::TARGETS,
        targets::machine::TARGETS,
        targets::market::TARGETS,
        targets::reservation::TARGETS,
        targets::image::TARGETS,
        targets::skills::TARGETS,
    ]
    .concat();
    all.sort_by_key(|target| target.name);
    all
}

/// The target of a name.
#[must_use]
pub fn find(name: &str) -> Option<Target> {
    all().into_iter().find(|target| target.name == name)
}
