//! Manifests: a reason for each dependency, the workspace's lints in each crate.

use super::Finding;

/// Every entry of `[workspace.dependencies]` stands under a comment. One comment may speak for a
/// group: the lines directly below it.
pub(super) fn reasons(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut inside = false;
    let mut argued = false;
    let mut open_brackets = 0_usize;
    for (index, raw) in text.lines().enumerate() {
        let line = raw.trim();
        if open_brackets == 0 && line.starts_with('[') {
            (inside, argued) = (line == "[workspace.dependencies]", false);
        } else if !inside {
        } else if open_brackets > 0 {
            open_brackets =
                open_brackets.saturating_add(brackets(line, '[')).saturating_sub(brackets(line, ']'));
        } else if line.is_empty() {
            argued = false;
        } else if line.starts_with('#') {
            argued = true;
        } else {
            open_brackets = brackets(line, '[').saturating_sub(brackets(line, ']'));
            if !argued {
                let name = line.split(['=', '.', ' ']).next().unwrap_or(line);
                findings.push(Finding::new(
                    file,
                    index + 1,
                    format!("{name} has no comment above it that says why it is there"),
                ));
            }
        }
    }
    findings
}

fn brackets(line: &str, bracket: char) -> usize {
    line.matches(bracket).count()
}

/// A member takes over the workspace's lints, else `unsafe_code = "deny"` doesn't reach it.
pub(super) fn member(file: &str, text: &str) -> Vec<Finding> {
    let takes_lints = match toml::from_str::<toml::Table>(text) {
        Ok(manifest) => {
            let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
            // A root of its own, built by other compilers for another machine, has nothing to inherit from.
            let is_root = manifest.get("workspace").is_some();
            manifest.get("package").is_none() || is_root || lints.and_then(toml::Value::as_bool) == Some(true)
        }
        Err(error) => return vec![Finding::new(file, 0, format!("is no TOML: {}", error.message()))],
    };
    if takes_lints {
        return Vec::new();
    }
    vec![Finding::new(
        file,
        0,
        "lacks `[lints] workspace = true`, so the workspace's lints don't reach this crate",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_without_a_reason_is_named() {
        let text = "[workspace]\nmembers = [\n]\n\n[workspace.dependencies]\n# Errors.\nanyhow = \"1\"\nthiserror = \"2\"\n\nserde = \"1\"\n";
        let findings = reasons("Cargo.toml", text);
        assert_eq!(findings.len(), 1);
        assert_eq!(
            findings[0].to_string(),
            "Cargo.toml:10: serde has no comment above it that says why it is there"
        );
    }

    #[test]
    fn lists_over_several_lines_are_one_entry() {
        let text = "[workspace.dependencies]\n# Runtime.\ntokio = { version = \"1\", features = [\n  \"net\",\n] }\n\n[profile.dev]\nopt-level = 1\n";
        assert_eq!(reasons("Cargo.toml", text), []);
    }

    #[test]
    fn a_member_without_the_lints_is_named() {
        assert_eq!(member("a/Cargo.toml", "[package]\nname = \"a\"\n[lints]\nworkspace = true\n"), []);
        assert_eq!(member("a/Cargo.toml", "[package]\nname = \"a\"\n").len(), 1);
    }
}
