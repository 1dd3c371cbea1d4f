//! The score of the node kernel's configuration, by `kernel-hardening-checker`.
//!
//! What is left undone on purpose, and why, is in kernel-config/README.md; the checker's list in the nightly shows what
//! it is today. Must never take a checker's failure for a good score.

use std::env;
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::repo;

/// At most so many of its checks fail, and of the Kernel Self-Protection Project's: 240 of 259 and 86 of 95 pass. What fails is
/// counted, since packages of one version of the checker have lists of other lengths.
const FAILED_MAX: usize = 19;
const KSPP_FAILED_MAX: usize = 9;
/// The group of checks as the checker names it.
const KSPP: &str = "kspp";
/// Fewer checks than this are not the checker's whole list.
const CHECKS_MIN: usize = 200;

/// One check, as `-m json` prints it. Further fields are the checker's own business.
#[derive(Debug, Deserialize)]
struct Check {
    #[serde(rename = "option_name")]
    option: String,
    decision: String,
    #[serde(rename = "check_result")]
    result: String,
    #[serde(rename = "check_result_bool")]
    passed: bool,
}

/// What the nightly keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Score {
    pub(super) checker: String,
    pub(super) ok: usize,
    pub(super) total: usize,
    pub(super) kspp_ok: usize,
    pub(super) kspp_total: usize,
    /// `option: what the checker says`.
    pub(super) failed: Vec<String>,
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ok, total, kspp_ok, kspp_total, checker, .. } = self;
        write!(f, "{ok} of {total} checks, of them KSPP {kspp_ok} of {kspp_total} ({checker})")
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum ScoreError {
    #[error("kernel-hardening-checker printed {count} checks, which is not its list: is it another version?")]
    TooFew { count: usize },
    #[error(
        "the node kernel's hardening is {ok} of {total} checks (at most {FAILED_MAX} may fail), KSPP {kspp_ok} of \
         {kspp_total} (at most {KSPP_FAILED_MAX}): see hardening.json for what fails"
    )]
    Below { ok: usize, total: usize, kspp_ok: usize, kspp_total: usize },
}

fn program() -> String {
    env::var("CROFT_HARDENING_CHECKER").unwrap_or_else(|_| "kernel-hardening-checker".to_owned())
}

/// What the checker calls itself.
pub(super) fn version() -> Result<String> {
    version_of(&program())
}

fn version_of(program: &str) -> Result<String> {
    repo::capture(Command::new(program).arg("--version")).context(
        "the hardening score needs kernel-hardening-checker: install the package (newer distributions have it), or name \
         the program in CROFT_HARDENING_CHECKER",
    )
}

/// Runs the checker over a configuration; its JSON, and what it comes to.
pub(super) fn run(config: &Path) -> Result<(String, Score)> {
    let (program, version) = (program(), version()?);
    let json = repo::capture(Command::new(&program).arg("-c").arg(config).args(["-m", "json"]))?;
    let score = score(&json, version.trim())?;
    Ok((json, score))
}

fn score(json: &str, checker: &str) -> Result<Score> {
    let checks: Vec<Check> =
        serde_json::from_str(json).context("kernel-hardening-checker printed no list of checks")?;
    if checks.len() < CHECKS_MIN {
        return Err(ScoreError::TooFew { count: checks.len() }.into());
    }
    let kspp = || checks.iter().filter(|check| check.decision == KSPP);
    let failed = checks.iter().filter(|check| !check.passed);
    Ok(Score {
        checker: checker.to_owned(),
        ok: checks.iter().filter(|check| check.passed).count(),
        total: checks.len(),
        kspp_ok: kspp().filter(|check| check.passed).count(),
        kspp_total: kspp().count(),
        failed: failed.map(|check| format!("{}: {}", check.option, check.result)).collect(),
    })
}

impl Score {
    /// Whether it is good enough to publish.
    pub(super) fn judge(&self) -> Result<(), ScoreError> {
        let Self { ok, total, kspp_ok, kspp_total, .. } = *self;
        if total - ok > FAILED_MAX || kspp_total - kspp_ok > KSPP_FAILED_MAX {
            return Err(ScoreError::Below { ok, total, kspp_ok, kspp_total });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ok: usize, failed: usize) -> String {
        let check = |index: usize| {
            let (result, passed) = if index < ok { ("OK", true) } else { ("FAIL: \"is not set\"", false) };
            let decision = if index.is_multiple_of(3) { "kspp" } else { "grsec" };
            serde_json::json!({ "option_name": format!("CONFIG_{index}"), "type": "kconfig", "reason": "r",
                "decision": decision, "desired_val": "y", "check_result": result, "check_result_bool": passed })
        };
        serde_json::to_string(&(0..ok + failed).map(check).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_score_counts_what_passes_and_names_what_does_not() {
        let score = score(&list(240, 19), "checker 1").unwrap();
        assert_eq!(score.to_string(), "240 of 259 checks, of them KSPP 80 of 87 (checker 1)");
        assert_eq!(score.failed.len(), 19);
        assert_eq!(score.failed[0], "CONFIG_240: FAIL: \"is not set\"");
        score.judge().unwrap();
    }

    #[test]
    fn a_score_below_the_goal_is_refused_with_the_figures() {
        let text = score(&list(239, 20), "c").unwrap().judge().unwrap_err().to_string();
        assert!(text.contains("239 of 259 checks (at most 19 may fail)"), "{text}");
        // A shorter list, as the distribution's package has it.
        score(&list(232, 18), "c").unwrap().judge().unwrap();
        assert!(score(&list(230, 20), "c").unwrap().judge().is_err());
    }

    #[test]
    fn a_missing_checker_is_named_with_two_ways_to_get_one() {
        let text = format!("{:#}", version_of("/nowhere/checker").unwrap_err());
        assert!(text.contains("install the package") && text.contains("CROFT_HARDENING_CHECKER"), "{text}");
        assert!(text.contains("/nowhere/checker"), "{text}");
    }

    #[test]
    fn a_checker_that_checks_nothing_gives_no_score() {
        assert!(score("[]", "c").unwrap_err().to_string().contains("printed 0 checks"));
        assert!(score("usage: …", "c").unwrap_err().to_string().contains("no list of checks"));
    }
}
