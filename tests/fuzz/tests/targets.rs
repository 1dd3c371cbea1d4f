//! Every target on its corpus, on what once broke it, and on a fixed number of altered inputs.

use croft_fuzz::{all, corpus, engine, find};

/// Runs those targets whose turn it is: eight tests of about the same length run beside each other.
fn part(n: usize) {
    let mut failed = Vec::new();
    for (_, target) in all().into_iter().enumerate().filter(|(place, _)| place % 8 == n) {
        let inputs = corpus::inputs(&target).unwrap();
        assert!(!inputs.is_empty(), "target {} has no corpus: run `croft-fuzz corpus`", target.name);
        if let Err(finding) = engine::fuzz(&target, &inputs, target.rounds, 0) {
            failed.push(finding.to_string());
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

macro_rules! parts {
    ($($name:ident: $n:expr),*) => {
        $(#[test]
        fn $name() {
            part($n);
        })*
    };
}

parts! {
    every_target_holds_1_of_8: 0,
    every_target_holds_2_of_8: 1,
    every_target_holds_3_of_8: 2,
    every_target_holds_4_of_8: 3,
    every_target_holds_5_of_8: 4,
    every_target_holds_6_of_8: 5,
    every_target_holds_7_of_8: 6,
    every_target_holds_8_of_8: 7
}

#[test]
fn the_committed_corpus_is_what_the_targets_make() {
    let differences = corpus::differences(&all()).unwrap();
    assert_eq!(differences, [""; 0], "run `cargo run -p croft-fuzz -- corpus` and commit what it makes");
}

#[test]
fn a_target_is_found_by_its_name_only() {
    assert_eq!(find("record").unwrap().decodes, "a record of the log");
    assert!(find("recor").is_none());
}
