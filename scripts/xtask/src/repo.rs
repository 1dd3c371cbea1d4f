//! Where things are: the source tree, the cache, and how tools are run.
//!
//! Must never write into the source tree.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};

/// The root of the source tree this binary was built from.
///
/// Cargo sets the variable for what it runs, so a moved or copied checkout is found too; the path
/// at build time serves when the binary is started by hand.
pub(crate) fn root() -> PathBuf {
    let manifest =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.ancestors().nth(2).map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// `$CROFT_CACHE`, else `$HOME/.cache/croft`: what takes long to make and can be made again.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(path) = env::var_os("CROFT_CACHE").filter(|value| !value.is_empty()) {
        return std::path::absolute(path).context("CROFT_CACHE names no usable path");
    }
    let home = env::var_os("HOME").filter(|value| !value.is_empty());
    let home = home
        .context("neither CROFT_CACHE nor HOME is set: set CROFT_CACHE to a directory for build results")?;
    Ok(PathBuf::from(home).join(".cache/croft"))
}

/// Is there such a program on the `PATH`?
pub(crate) fn on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Runs a command to its end and returns what it printed.
///
/// Fails with the last lines of its standard error when it fails.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let output = command.output().with_context(|| format!("can't start `{name}`"))?;
    check_output(&name, &output)?;
    String::from_utf8(output.stdout).with_context(|| format!("`{name}` printed something that is no text"))
}

fn check_output(name: &str, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!("`{name}` failed ({}): {}", output.status, last_lines(&stderr, 10))
}

/// Runs a command whose output goes straight to the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let status = command.status().with_context(|| format!("can't start `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed ({status})");
    }
    Ok(())
}

/// The command as one would type it, for messages.
fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// The last `count` lines of a text, trimmed.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_holds_the_workspace_manifest() {
        let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace]"));
    }

    #[test]
    fn a_failing_command_is_named_with_its_last_words() {
        let error =
            capture(Command::new("sh").args(["-c", "echo the disk is full >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c") && text.contains("the disk is full") && text.contains('3'), "{text}");
    }

    #[test]
    fn last_lines_keeps_the_end() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 5), "a");
    }
}
