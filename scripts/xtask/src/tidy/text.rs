//! Text rules: words and paths that don't belong in the tree, and the shape of Rust files.

use std::env;
use std::path::Path;

use super::Finding;
use super::mask::code_only;

/// Lines of a Rust file without its tests. Above that, nobody finds anything in it.
const FILE_LINES_MAX: usize = 800;

/// Lines above an unsafe block in which its safety argument may stand.
const SAFETY_COMMENT_REACH: usize = 8;

/// Hosts of package registries: where packages come from is the machine's own setting (mirrors,
/// proxies), so no file may name one. In two halves, since this file is checked too.
const REGISTRY_HOSTS: [(&str, &str); 7] = [
    ("crates", ".io"),
    ("pypi", ".org"),
    ("pythonhosted", ".org"),
    ("registry.npmjs", ".org"),
    ("deb.debian", ".org"),
    ("archive.ubuntu", ".com"),
    ("proxy.golang", ".org"),
];

/// Written by cargo, and naming its registry there is right.
const GENERATED: [&str; 1] = ["Cargo.lock"];

/// Directories in which checkouts lie on many machines: naming one says nothing about a machine.
const COMMON_PARENTS: [&str; 16] = [
    "/",
    "/app",
    "/build",
    "/builds",
    "/code",
    "/data",
    "/home",
    "/mnt",
    "/opt",
    "/repo",
    "/root",
    "/src",
    "/srv",
    "/tmp",
    "/usr",
    "/workspace",
];

/// Absolute paths that exist on this machine only.
pub(super) struct MachinePlaces(Vec<String>);

impl MachinePlaces {
    /// The checkout, what lies beside it, and hidden directories of whoever runs this.
    pub(super) fn of_this_machine(root: &Path) -> Self {
        let mut places = vec![format!("{}/", root.display())];
        if let Some(home) = env::var_os("HOME").filter(|home| home.len() > 1) {
            places.push(format!("{}/.", home.to_string_lossy()));
        }
        if let Some(parent) =
            root.parent().filter(|parent| !COMMON_PARENTS.iter().any(|common| *parent == Path::new(common)))
        {
            places.push(format!("{}/", parent.display()));
        }
        Self(places)
    }
}

/// Registry hosts and machine paths in any text file.
pub(super) fn forbidden(file: &str, text: &str, places: &MachinePlaces) -> Vec<Finding> {
    if GENERATED.contains(&file) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for host in REGISTRY_HOSTS.map(|(name, domain)| format!("{name}{domain}")) {
            if line.contains(&host) {
                let text = format!(
                    "names the package registry {host}: leave the choice to the machine's own setting"
                );
                findings.push(Finding::new(file, index + 1, text));
            }
        }
        for place in places.0.iter().filter(|place| contains_path(line, place)) {
            let text = format!("names {place}, a path of one machine: use a relative path or a variable");
            findings.push(Finding::new(file, index + 1, text));
        }
    }
    findings
}

/// Is the path there, and not as the tail of a longer one (`/mnt/disk/src/` holds `/src/`)?
fn contains_path(line: &str, path: &str) -> bool {
    let inside_longer = |at: usize| {
        line[..at].ends_with(|before: char| {
            before.is_alphanumeric() || ['_', '-', '.', '}', ')', '>', '*'].contains(&before)
        })
    };
    line.match_indices(path).any(|(at, _)| !inside_longer(at))
}

/// Rules for Rust files.
pub(super) fn rust(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let stem = Path::new(file).file_stem().unwrap_or_default().to_string_lossy();
    let tests_only = stem == "tests"
        || stem.ends_with("_tests")
        || file.split('/').any(|part| part == "tests" || part == "benches");
    if !tests_only {
        let lines = lines_without_tests(text);
        if lines > FILE_LINES_MAX {
            let text = format!(
                "has {lines} lines without tests, more than {FILE_LINES_MAX}: cut it along owned state"
            );
            findings.push(Finding::new(file, 0, text));
        }
        if !text.starts_with("//!") && !text.trim().is_empty() {
            findings.push(Finding::new(
                file,
                1,
                "opens without a `//!` header that says what the file is for",
            ));
        }
    }
    let code = code_only(text);
    findings.extend(allows_without_reason(file, text, &code));
    findings.extend(unsafe_without_argument(file, text, &code));
    findings
}

/// Lines up to the test module at the end.
fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let starts_tests = |pair: &[&str]| {
        pair[0].trim() == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
    };
    lines.windows(2).position(starts_tests).unwrap_or(lines.len())
}

/// `allow(unsafe_code)` and `expect(unsafe_code)` say why safe code won't do.
fn allows_without_reason(file: &str, text: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, _) in code.match_indices("unsafe_code") {
        let before = &code[..at];
        let Some(open) = before.rfind("#[").max(before.rfind("#![")) else { continue };
        let end = code[at..].find(']').map_or(code.len(), |end| at + end);
        let attribute = &code[open..end];
        let grants = attribute.contains("allow(") || attribute.contains("expect(");
        // The reason's text is a literal, so its presence shows in the original only.
        let reason = text_of(text, code, open, end).split("reason").nth(1).unwrap_or_default().to_owned();
        if grants && !reason.contains('"') {
            findings.push(Finding::new(
                file,
                line_of(code, at),
                "unsafe code is allowed without `reason = \"…\"`",
            ));
        }
    }
    findings
}

/// The original text of a range of the masked code. Both have the same characters per line, so the
/// range is found by counting characters.
fn text_of<'a>(text: &'a str, code: &str, from: usize, to: usize) -> &'a str {
    let position = |bytes: usize| {
        let count = code[..bytes].chars().count();
        text.char_indices().nth(count).map_or(text.len(), |(at, _)| at)
    };
    &text[position(from)..position(to)]
}

/// Every unsafe block and unsafe impl stands under a `SAFETY:` comment.
fn unsafe_without_argument(file: &str, text: &str, code: &str) -> Vec<Finding> {
    let lines: Vec<&str> = text.lines().collect();
    let mut findings = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let opens = line.match_indices("unsafe").any(|(at, word)| {
            let alone = !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
            let after = line[at + word.len()..].trim_start();
            alone
                && (after.starts_with('{')
                    || after.starts_with("impl")
                    || (after.is_empty() && line.trim() != "unsafe_code"))
        });
        let reach = index.saturating_sub(SAFETY_COMMENT_REACH);
        if opens && !lines[reach..=index].iter().any(|line| line.contains("SAFETY:")) {
            findings.push(Finding::new(file, index + 1, "unsafe without a `// SAFETY:` comment above it"));
        }
    }
    findings
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> MachinePlaces {
        MachinePlaces(vec!["/checkout/".to_owned(), "/home/ann/.".to_owned()])
    }

    fn texts(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_registry_host_is_found_and_the_lock_file_may_name_one() {
        let line = format!("# see https://{}{}/crates/x\n", "crates", ".io");
        assert_eq!(forbidden("README.md", &line, &places()).len(), 1);
        assert_eq!(forbidden("Cargo.lock", &line, &places()), []);
    }

    #[test]
    fn a_machine_path_is_found_and_a_longer_path_with_the_same_tail_is_not() {
        let text = "cd /checkout/tree\nupper=/run/overlay/checkout/x\nHOME=/home/ann\n\"/home/ann/.cargo\"\n$dir/checkout/\n${dir}/checkout/\n";
        let found = forbidden("x.sh", text, &places());
        assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [1, 4]);
    }

    #[test]
    fn tests_at_the_end_do_not_count_for_the_length() {
        let body = "fn f() {}\n".repeat(FILE_LINES_MAX - 1);
        let tests = "#[cfg(test)]\nmod tests {\n".to_owned() + &"// x\n".repeat(500) + "}\n";
        assert_eq!(rust("a/src/lib.rs", &format!("//! x\n{body}{tests}")), []);
        let found = rust("a/src/lib.rs", &format!("//! x\n\n{body}{tests}"));
        assert_eq!(
            texts(&found),
            ["a/src/lib.rs: has 801 lines without tests, more than 800: cut it along owned state"]
        );
    }

    #[test]
    fn a_file_without_a_header_is_found() {
        let found = rust("a/src/lib.rs", "use x;\n");
        assert_eq!(
            texts(&found),
            ["a/src/lib.rs:1: opens without a `//!` header that says what the file is for"]
        );
        for tests in ["a/src/x/tests.rs", "a/src/x_tests.rs", "tests/it/main.rs"] {
            assert_eq!(rust(tests, "use super::*;\n"), [], "{tests}");
        }
    }

    #[test]
    fn unsafe_needs_a_reason_where_it_is_allowed() {
        let allowed = "//! x\n#[allow(\n    unsafe_code,\n    reason = \"the kernel's ioctl has no wrapper\"\n)]\nfn f() {}\n";
        assert_eq!(rust("a.rs", allowed), []);
        for bare in
            ["//! x\n#[allow(unsafe_code)]\nfn f() {}\n", "//! x\n#![expect(unsafe_code, reason = )]\n"]
        {
            assert_eq!(
                texts(&rust("a.rs", bare)),
                ["a.rs:2: unsafe code is allowed without `reason = \"…\"`"]
            );
        }
        assert_eq!(rust("a.rs", "//! x\n#![forbid(unsafe_code)]\n"), []);
    }

    #[test]
    fn unsafe_needs_an_argument_where_it_is_used() {
        let argued =
            "//! x\nfn f() {\n    // SAFETY: the pointer lives as long as `x`.\n    unsafe { g() }\n}\n";
        assert_eq!(rust("a.rs", argued), []);
        let bare = "//! x\nfn f() {\n    let s = \"unsafe { }\";\n    unsafe { g() }\n}\n";
        assert_eq!(texts(&rust("a.rs", bare)), ["a.rs:4: unsafe without a `// SAFETY:` comment above it"]);
    }
}
