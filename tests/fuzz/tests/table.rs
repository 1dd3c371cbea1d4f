//! The table is whole: every file that decodes something is a target's or has a reason why not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use croft_fuzz::all;
use croft_fuzz::elsewhere::ELSEWHERE;

/// What decoders of this tree look like. Writing is not decoding: `copy_from_slice` and its kind are left out.
const SIGNS: [&str; 14] = [
    "borsh::from_slice",
    "BorshDeserialize for",
    "croft_protocol::decode(",
    "crate::decode(",
    "toml::from_str",
    "serde_json::from_",
    "::from_le_bytes",
    "::from_be_bytes",
    "::from_ne_bytes",
    "FromStr for",
    "fn parse",
    "fn decode",
    "hex::decode",
    "new_checked(",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// Files below the crates' `src` that decode, relative to the workspace; their tests don't count.
fn decoders() -> BTreeSet<String> {
    let root = workspace().canonicalize().unwrap();
    let mut files = Vec::new();
    for area in ["agents", "os", "image"] {
        for entry in std::fs::read_dir(root.join(area)).unwrap() {
            let src = entry.unwrap().path().join("src");
            if src.is_dir() {
                sources(&src, &mut files);
            }
        }
    }
    let decodes = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        SIGNS.iter().any(|sign| code.contains(sign))
    };
    let name = |path: PathBuf| path.strip_prefix(&root).unwrap().display().to_string();
    let is_test = |name: &String| {
        name.contains("/tests/")
            || name.ends_with("tests.rs")
            || name.contains("_tests/")
            || name.ends_with("/fuzzing.rs")
    };
    files.into_iter().filter(decodes).map(name).filter(|name| !is_test(name)).collect()
}

#[test]
fn every_file_that_decodes_is_a_targets_or_says_why_not() {
    let known: BTreeSet<&str> = all()
        .iter()
        .flat_map(|target| target.files.iter().copied())
        .chain(ELSEWHERE.iter().map(|(f, _)| *f))
        .collect();
    let missing: Vec<_> = decoders().into_iter().filter(|file| !known.contains(file.as_str())).collect();
    assert_eq!(missing, [""; 0], "give each a target in tests/fuzz, or a reason in src/elsewhere.rs");
}

#[test]
fn every_file_in_the_table_is_there_and_none_is_in_both_lists() {
    let targets = all();
    for file in targets.iter().flat_map(|t| t.files).chain(ELSEWHERE.iter().map(|(file, _)| file)) {
        assert!(workspace().join(file).is_file(), "{file} is gone: correct the table");
    }
    for (file, reason) in ELSEWHERE {
        assert!(!targets.iter().any(|target| target.files.contains(file)), "{file} has a target now");
        assert!(reason.len() > 10, "{file} needs a reason");
    }
}

#[test]
fn every_target_is_named_once_and_says_what_it_decodes_and_from_whom() {
    let targets = all();
    let names: BTreeSet<_> = targets.iter().map(|target| target.name).collect();
    assert_eq!(names.len(), targets.len());
    for target in &targets {
        let plain = target.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        assert!(plain && !target.decodes.is_empty() && !target.sent_by.is_empty(), "{}", target.name);
        assert!(!target.files.is_empty() && target.rounds >= 50, "{}", target.name);
    }
}
