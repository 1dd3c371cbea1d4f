//! What tests share: tools of others that may be absent.

use std::process::Command;

/// Whether a tool of another project is there. Says that the test skips where it isn't.
pub(crate) fn have_tool(name: &str) -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(name).is_file());
    if !found {
        eprintln!("skipped: {name} is not installed");
    }
    found
}

/// Whether we are root. Says that the test skips where we aren't.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Runs a tool; its output, or what it complained of.
pub(crate) fn run_tool(name: &str, args: &[&str]) -> Result<String, String> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(name)
        .args(args)
        .env("PATH", path)
        .output()
        .map_err(|e| format!("{name} can't be started: {e}"))?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(text) } else { Err(format!("{name} {args:?}: {text}")) }
}
