//! What changed since the last nightly, from the history.
//!
//! Must never leave the list out where the last nightly's commit is unknown here: it says so instead.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::repo;

/// A list that nobody reads to its end helps nobody.
const LISTED_MAX: usize = 500;

/// The commit that is built.
pub(super) fn head(root: &Path) -> Result<String> {
    Ok(repo::capture(git(root).args(["rev-parse", "HEAD"]))?.trim().to_owned())
}

/// The list as text. `last` is the commit of the last nightly.
pub(super) fn list(root: &Path, last: Option<&str>) -> Result<String> {
    let (range, title) = match last {
        None => ("HEAD".to_owned(), "The first nightly here; the newest changes:".to_owned()),
        Some(last) if !is_commit(last) || !known(root, last) => (
            "HEAD".to_owned(),
            format!("The last nightly's commit {last:?} is not in this history; the newest changes:"),
        ),
        Some(last) => (format!("{last}..HEAD"), format!("Changes since {last}:")),
    };
    let log = repo::capture(git(root).args([
        "log",
        "--no-merges",
        &format!("--max-count={}", LISTED_MAX + 1),
        "--format=%h %cs %s",
        &range,
        "--",
    ]))?;
    let mut text = format!("{title}\n\n");
    if log.trim().is_empty() {
        text.push_str("none\n");
    }
    for (index, line) in log.lines().enumerate() {
        if index == LISTED_MAX {
            let _ = writeln!(text, "- and more");
            break;
        }
        let _ = writeln!(text, "- {line}");
    }
    Ok(text)
}

fn git(root: &Path) -> Command {
    let mut git = Command::new("git");
    git.arg("-C").arg(root);
    git
}

/// What comes out of a file must not become an option of git.
fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn known(root: &Path, commit: &str) -> bool {
    repo::capture(git(root).args(["merge-base", "--is-ancestor", commit, "HEAD"])).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> (tempfile::TempDir, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| repo::capture(git(dir.path()).args(arguments)).unwrap();
        run(&["init", "-q"]);
        let mut commits = Vec::new();
        for title in ["a: one", "b: two", "c: three"] {
            let who = ["-c", "user.name=t", "-c", "user.email=t@localhost"];
            let commit = ["commit", "-q", "--allow-empty", "-m", title];
            run(&[&who[..], &commit[..]].concat());
            commits.push(head(dir.path()).unwrap());
        }
        (dir, commits)
    }

    #[test]
    fn the_list_has_what_came_after_the_last_nightly() {
        let (dir, commits) = history();
        let text = list(dir.path(), Some(&commits[0])).unwrap();
        assert!(text.starts_with(&format!("Changes since {}:\n", commits[0])), "{text}");
        assert!(text.contains("b: two") && text.contains("c: three") && !text.contains("a: one"), "{text}");
        assert!(list(dir.path(), Some(&commits[2])).unwrap().ends_with("\n\nnone\n"));
    }

    #[test]
    fn an_unknown_commit_is_said_and_the_newest_changes_are_listed() {
        let (dir, _) = history();
        for bad in ["0123456789012345678901234567890123456789", "--output=x", "HEAD~1"] {
            let text = list(dir.path(), Some(bad)).unwrap();
            assert!(text.contains("is not in this history") && text.contains("a: one"), "{text}");
        }
        assert!(list(dir.path(), None).unwrap().starts_with("The first nightly here"));
    }
}
