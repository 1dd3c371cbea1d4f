//! `cargo xtask tidy`: rules of this tree that no compiler checks.
//!
//! Each rule is a pure function from text or from the crate graph to findings, so that its tests
//! need no files. Must never change anything, and never stop at the first finding.

mod buildroot;
mod edges;
mod manifest;
mod mask;
mod text;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::repo;

#[derive(Debug, Args)]
pub(crate) struct Arguments {}

/// A rule that is broken, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Relative to the source tree.
    file: String,
    /// Counted from 1; 0 where the finding is about the whole file.
    line: usize,
    text: String,
}

impl Finding {
    fn new(file: &str, line: usize, text: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.text),
            line => write!(f, "{}:{line}: {}", self.file, self.text),
        }
    }
}

pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    let root = repo::root();
    let findings = findings(&root)?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        1 => bail!("tidy: one rule is broken, see above"),
        count => bail!("tidy: {count} rules are broken, see above"),
    }
}

fn findings(root: &Path) -> Result<BTreeSet<Finding>> {
    let mut all = BTreeSet::new();
    all.extend(edges::check(&edges::Graph::of_workspace(root)?));
    let places = text::MachinePlaces::of_this_machine(root);
    for file in files(root)? {
        let name = file.to_string_lossy().into_owned();
        let bytes = match fs::read(root.join(&file)) {
            Ok(bytes) => bytes,
            // Deleted, but not yet from the index; or a link to nowhere.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("can't read {name}")),
        };
        // Anything else is no text, and not for people to read.
        let Ok(content) = String::from_utf8(bytes) else { continue };
        if content.contains('\0') {
            continue;
        }
        all.extend(text::forbidden(&name, &content, &places));
        if file.extension().is_some_and(|extension| extension == "rs") {
            all.extend(text::rust(&name, &content));
        }
        if name == "Cargo.toml" {
            all.extend(manifest::reasons(&name, &content));
        } else if name.ends_with("/Cargo.toml") {
            all.extend(manifest::member(&name, &content));
        }
    }
    all.extend(buildroot::check(root)?);
    Ok(all)
}

/// What git knows or would add, relative to the root.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.arg("-C").arg(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listing = repo::capture(&mut git)?;
    let names: BTreeSet<&str> = listing.split('\0').filter(|name| !name.is_empty()).collect();
    Ok(names.into_iter().map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_like_a_compiler_message() {
        assert_eq!(Finding::new("a/b.rs", 7, "too long").to_string(), "a/b.rs:7: too long");
        assert_eq!(Finding::new("a/b.rs", 0, "too long").to_string(), "a/b.rs: too long");
    }
}
